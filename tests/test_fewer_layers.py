"""Models from which layers were taken away (SSD-1B, Vega): built as their configs say, drawn as diffusers draws them.

The middle is one residual block without a transformer, and in SSD-1B the transformers of a level differ in depth.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import has, needs_torch

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

KINDS = ("ssd-1b", "vega")
BAR, APART = 55.0, 40.0  # dB: the same picture; another picture
WIDTH, HEIGHT = 96, 64
JOBS = {  # sampler, spacing and strength: from text alone if it is None, else from a picture
    "euler": ("euler", "model", None),
    "dpmpp_2m": ("dpmpp_2m", "karras", None),
    "picture": ("unipc", "trailing", 0.6),
}
PROMPT, NEGATIVE, SEED, STEPS, GUIDANCE = "a red house at dusk", "snow", 7, 5, 5.0


@pytest.fixture(scope="module")
def pipes():
    """diffusers' pipelines: the tiny SDXL with a U-Net of fewer layers."""
    import single_files
    import tiny
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # pictures this small are slower with more
    found = {}
    for kind in KINDS:
        pipe = found[kind] = tiny.sdxl()
        config = {key: value for key, value in pipe.unet.config.items() if key[0] != "_"}
        pipe.unet = tiny.unet(**config | single_files.LAYOUTS[kind][2])
        pipe.set_progress_bar_config(disable=True)
    yield found
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(pipes, tmp_path_factory):
    import tiny

    root = tmp_path_factory.mktemp("fewer")
    return {kind: tiny.save(pipe, root / kind) for kind, pipe in pipes.items()}


@pytest.fixture(scope="module")
def models(folders):
    """`(kind, backend)`: the folder loaded by a backend of ours, in float32."""
    import mlxldm.backend
    from mlxldm_convert import view

    return {(kind, backend): mlxldm.backend.load(view(folders[kind]), backend, "cpu", "float32")
            for kind in KINDS for backend in ("mlx", "torch")}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A picture to start from."""
    from PIL import Image

    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 96
    path = tmp_path_factory.mktemp("start") / "start.png"
    Image.fromarray((np.stack([x, y, (x + y > 0.7) * 0.8], axis=-1) * 255).astype(np.uint8)).save(path)
    return str(path)


def ours(model, what: str, start: str, **changes) -> np.ndarray:
    from mlxldm.generate import generate
    from mlxldm.job import Job

    sampler, spacing, strength = JOBS[what]
    job = Job(
        prompt=PROMPT, negative=NEGATIVE, seed=SEED, steps=STEPS, guidance=GUIDANCE, sampler=sampler, spacing=spacing,
        width=WIDTH, height=HEIGHT, image=None if strength is None else start, strength=strength,
    ).replace(**changes)  # fmt: skip
    return next(event.pixels for event in generate(model, job) if hasattr(event, "pixels"))


def theirs(pipe, folder, what: str, start: str) -> np.ndarray:
    import diffusers
    import torch
    from PIL import Image
    from test_parity import scheduler

    sampler, spacing, strength = JOBS[what]
    settings = {"width": WIDTH, "height": HEIGHT}
    if strength is not None:
        pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components)
        pipe.set_progress_bar_config(disable=True)
        settings = {"image": Image.open(start), "strength": strength}
    pipe.scheduler = scheduler(folder, sampler, spacing)
    pixels = pipe(
        PROMPT, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE, num_inference_steps=STEPS,
        generator=torch.Generator("cpu").manual_seed(SEED), output_type="np", **settings,
    ).images[0]  # fmt: skip
    return np.round(pixels * 255).astype(np.uint8)


@pytest.mark.parametrize("what", JOBS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_picture_of_diffusers(kind, what, pipes, folders, models, start):
    from test_parity import psnr

    wanted = theirs(pipes[kind], folders[kind], what, start)
    mlx, torch = (ours(models[kind, backend], what, start) for backend in ("mlx", "torch"))
    found = {
        "MLX and diffusers": psnr(mlx, wanted),
        "torch and diffusers": psnr(torch, wanted),
        "MLX and torch": psnr(mlx, torch),
    }
    assert min(found.values()) >= BAR, {pair: round(decibels, 1) for pair, decibels in found.items()}


@pytest.mark.parametrize("backend", ["mlx", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_another_wish_gives_another_picture(kind, backend, models, start):
    """So that the test above can fail."""
    from test_parity import psnr

    model = models[kind, backend]
    picture = ours(model, "euler", start)
    for change in ({"seed": 8}, {"prompt": "a blue boat"}, {"negative": "the sea at night"}, {"guidance": 2.0}):
        decibels = psnr(ours(model, "euler", start, **change), picture)
        assert decibels <= APART, f"{change} changes too little: {decibels:.1f} dB"


@pytest.mark.parametrize("kind", KINDS)
def test_the_mlx_unet_of_the_published_size_has_the_parameters_of_its_config(kind):
    """Nothing is computed: MLX's arrays are only shapes until they are asked for."""
    import mlxldm.on_mlx  # noqa: F401, I001  (before mlx.core: brings the fast BLAS)
    from mlx.utils import tree_flatten
    from mlxldm.config import UNetConfig
    from mlxldm.on_mlx.unet import UNet
    from mlxldm.parameters import parameters
    from test_layouts import REAL

    config = UNetConfig.from_dict(REAL[kind][1])
    built = {name: array.shape for name, array in tree_flatten(UNet(config).parameters())}
    assert built == parameters(config)
