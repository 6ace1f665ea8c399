"""Eight bits a weight draw nearly the picture of the whole weights, for every family and task, on both backends."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import has, needs_torch

from mlxldm.generate import generate
from mlxldm.job import Job

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

from test_parity import NEGATIVE, PROMPT, psnr  # noqa: E402

import mlxldm.backend  # noqa: E402
from mlxldm.folder import open_folder  # noqa: E402
from mlxldm_convert import view, write  # noqa: E402

CLOSE = 30  # dB
KINDS = ("sd1", "sd2", "sdxl", "sd1-inpaint", "sdxl-inpaint", "sd1-edit", "sd2-depth", "ssd-1b")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of a picture, a mask and a map of depths, 64 × 64."""
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[0:64, 0:64] / 64
    Image.fromarray((np.stack([x, y, (x + y > 0.7) * 0.8], -1) * 255).astype(np.uint8)).save(root / "image.png")
    Image.fromarray((np.abs(x - 0.5) < 0.2).astype(np.uint8) * 255).save(root / "mask.png")
    Image.fromarray((np.hypot(x - 0.5, y - 0.4) * 255).astype(np.uint8)).save(root / "depth.png")
    return {name: str(root / f"{name}.png") for name in ("image", "mask", "depth")}


def source(kind: str, root):
    """A random model of that kind, as diffusers saves it."""
    import single_files
    import tiny

    if kind in tiny.KINDS:
        return tiny.saved(kind, "hub", root)
    return single_files.folder(single_files.pipeline(kind), kind, root / kind)


def wish(kind: str, pictures: dict[str, str]) -> Job:
    needs = {"inpaint": ("image", "mask"), "edit": ("image",), "depth": ("depth",)}.get(kind.partition("-")[2], ())
    return Job(PROMPT, NEGATIVE, seed=3, steps=4, width=64, height=64, **{name: pictures[name] for name in needs})


def drawn(folder, backend: str, job: Job) -> np.ndarray:
    model = mlxldm.backend.load(folder, backend, "cpu", "float32")
    return next(event.pixels for event in generate(model, job) if hasattr(event, "pixels"))


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_draw_nearly_the_same_picture(kind, pictures, tmp_path):
    whole = view(source(kind, tmp_path))
    few = {bits: open_folder(write(whole, tmp_path / str(bits), bits=bits, group=32).path) for bits in (8, 2)}
    assert few[8].groups("denoiser")
    job = wish(kind, pictures)
    for backend in ("mlx", "torch"):
        exact = drawn(whole, backend, job)
        eight, two = (psnr(drawn(few[bits], backend, job), exact) for bits in (8, 2))
        print(f"{kind} {backend}: 8 bits {eight:.1f} dB, 2 bits {two:.1f} dB")
        assert eight >= CLOSE > two
