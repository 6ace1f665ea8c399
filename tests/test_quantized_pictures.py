"""Eight bits a weight draw nearly the picture of the whole weights, for every family and task, on both backends.

A first stage with a table of codes jumps where the nearest code changes. How far depends on how dense the codes lie
where the latents are, so the tables here have as many codes as the published ones, and reach as far as the latents of
these random U-Nets (a spread of 12): 40 codes with a spread of 1, which the latents lie far outside of, jump further.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import has, needs_torch

from mlxldm.generate import generate
from mlxldm.job import Job

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

import compvis  # noqa: E402
import single_files  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from test_ldm_tasks import WORDS, files, job_of, small  # noqa: E402, F401
from test_parity import NEGATIVE, PROMPT, psnr  # noqa: E402

import mlxldm.backend  # noqa: E402
from mlxldm.folder import open_folder  # noqa: E402
from mlxldm_convert import view, write  # noqa: E402
from mlxldm_convert.detect import Wish  # noqa: E402

CLOSE = 30  # dB
KINDS = (
    *("sd1", "sd2", "sdxl", "ssd-1b", "sd1-inpaint", "sdxl-inpaint", "sd1-edit", "sdxl-edit", "sd2-depth"),
    *("sdxl-refiner", "upscaler", *compvis.ZOO),
)
SPREAD = 12
NEEDS = {  # of a job
    "inpaint": ("image", "mask"), "edit": ("image",), "depth": ("depth",), "refiner": ("image",),
    "upscaler": ("small",),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of a picture, a mask and a map of depths, 64 × 64, and of a small picture."""
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[0:64, 0:64] / 64
    Image.fromarray((np.stack([x, y, (x + y > 0.7) * 0.8], -1) * 255).astype(np.uint8)).save(root / "image.png")
    Image.open(root / "image.png").resize((16, 16)).save(root / "small.png")
    Image.fromarray((np.abs(x - 0.5) < 0.2).astype(np.uint8) * 255).save(root / "mask.png")
    Image.fromarray((np.hypot(x - 0.5, y - 0.4) * 255).astype(np.uint8)).save(root / "depth.png")
    return {name: str(root / f"{name}.png") for name in ("image", "mask", "depth", "small")}


def source(kind: str, root):
    """A random model of that kind, seen from what diffusers saves, or from a file of the original code."""
    if kind in tiny.KINDS:
        return view(tiny.saved(kind, "hub", root))
    if not kind.startswith("ldm-"):
        return view(single_files.folder(single_files.pipeline(kind), kind, root / kind))
    (root / kind).mkdir()
    (root / kind / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    state, _ = compvis.whole(small(kind))
    codes = compvis.FIRST_STAGES[small(kind).first].codes
    if codes:
        name = "first_stage_model.quantize.embedding.weight"
        table = torch.randn(codes, state[name].shape[1], generator=torch.Generator().manual_seed(1))
        state = state | {name: table * SPREAD}
    file = single_files.write(state | compvis.tables(small(kind)), root / kind / "model.safetensors")
    return view(file, Wish(family=kind, ema=False))


def wish(kind: str, pictures: dict[str, str], given: dict[str, str]) -> Job:
    if kind.startswith("ldm-"):
        return job_of(kind, given)
    named = {"small": "image"}  # fields that are not called like their picture
    needs = NEEDS.get(kind.rpartition("-")[2], ())
    size = {} if kind == "upscaler" else {"width": 64, "height": 64}
    return Job(PROMPT, NEGATIVE, seed=3, steps=4, **size, **{named.get(name, name): pictures[name] for name in needs})


def drawn(folder, backend: str, job: Job) -> np.ndarray:
    model = mlxldm.backend.load(folder, backend, "cpu", "float32")
    return next(event.pixels for event in generate(model, job) if hasattr(event, "pixels"))


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_draw_nearly_the_same_picture(kind, pictures, files, tmp_path):  # noqa: F811
    whole = source(kind, tmp_path)
    few = {bits: open_folder(write(whole, tmp_path / str(bits), bits=bits, group=32).path) for bits in (8, 2)}
    assert few[8].groups("denoiser")
    job = wish(kind, pictures, files)
    for backend in ("mlx", "torch"):
        exact = drawn(whole, backend, job)
        eight, two = (psnr(drawn(few[bits], backend, job), exact) for bits in (8, 2))
        print(f"{kind} {backend}: 8 bits {eight:.1f} dB, 2 bits {two:.1f} dB")
        assert eight >= CLOSE > two
