"""Stable Diffusion XL's kinds that edit and refine draw what diffusers draws."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import has, needs_torch

from mlxldm.errors import UserError
from mlxldm.generate import resolve
from mlxldm.job import Job

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

from test_parity import APART, BAR, NEGATIVE, PROMPT, psnr, scheduler  # noqa: E402
from test_tasks import drawn, models, pictures  # noqa: E402, F401


def as_bytes(picture: np.ndarray) -> np.ndarray:
    return np.round(picture * 255).astype(np.uint8)


def same(ours, job: Job, wanted: np.ndarray, changes: list[dict]) -> None:
    """Both backends draw `wanted`, and something else with each of `changes`."""
    mlx, torch = (drawn(ours[name], job) for name in ("mlx", "torch"))
    print(f"{job.sampler}: {psnr(mlx, wanted):.1f} {psnr(torch, wanted):.1f} {psnr(mlx, torch):.1f} dB")
    assert min(psnr(mlx, wanted), psnr(torch, wanted), psnr(mlx, torch)) >= BAR
    for change in changes:
        assert psnr(drawn(ours["mlx"], job.replace(**change)), mlx) <= APART, change


@pytest.mark.parametrize("size, sampler, guidance, keep, negative", [
    ((64, 96), "ddim", 7.5, 1.5, NEGATIVE), ((96, 64), "euler", 3.0, 2.5, None), ((64, 64), "euler_a", 7.5, 1.0, ""),
    ((64, 64), "dpmpp_2m", 1.0, 1.5, None),
])  # fmt: skip
def test_an_editing_model_of_xl(size, sampler, guidance, keep, negative, models, pictures):  # noqa: F811
    import torch
    from PIL import Image

    pipe, ours, root = models("sdxl-edit")
    image, _ = pictures(*size)
    pipe.scheduler = scheduler(root, sampler, "model")
    job = Job(prompt=PROMPT, negative=negative, seed=7, steps=4, guidance=guidance, image_guidance=keep,
              sampler=sampler, width=size[0], height=size[1], image=image)  # fmt: skip
    wanted = pipe(
        PROMPT, negative_prompt=negative, image=Image.open(image), guidance_scale=guidance, image_guidance_scale=keep,
        num_inference_steps=4, generator=torch.Generator("cpu").manual_seed(7), output_type="np",
        width=size[0], height=size[1],
    ).images[0]  # fmt: skip
    changes = [{"seed": 8}, {"prompt": "a boat"}]
    if guidance > 1:
        changes += [{"image_guidance": keep + 2}, {"guidance": guidance + 2}, {"negative": "a blue boat"}]
    same(ours, job, as_bytes(wanted), changes)


@pytest.mark.parametrize("size, sampler, guidance, strength, negative", [
    ((64, 96), "euler", 5.0, 0.5, NEGATIVE), ((96, 64), "ddim", 3.0, 1.0, None), ((64, 64), "euler_a", 5.0, 0.7, ""),
    ((64, 96), "dpmpp_2m", 1.0, 0.6, None),
])  # fmt: skip
def test_a_refiner_over_a_picture(size, sampler, guidance, strength, negative, models, pictures):  # noqa: F811
    import torch
    from PIL import Image

    pipe, ours, root = models("sdxl-refiner")
    image, _ = pictures(*size)
    pipe.scheduler = scheduler(root, sampler, "model")
    job = Job(prompt=PROMPT, negative=negative, seed=7, steps=5, guidance=guidance, strength=strength,
              sampler=sampler, image=image)  # fmt: skip
    wanted = pipe(
        PROMPT, negative_prompt=negative, image=Image.open(image), guidance_scale=guidance, strength=strength,
        num_inference_steps=5, generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).images[0]  # fmt: skip
    changes = [{"seed": 8}, {"prompt": "a boat"}, {"strength": 0.3}]
    same(ours, job, as_bytes(wanted), changes)


def test_a_refiner_is_told_how_beautiful(models, pictures, monkeypatch):  # noqa: F811
    from mlxldm.tasks import refine

    _, ours, _ = models("sdxl-refiner")
    job = Job(prompt=PROMPT, seed=7, steps=5, guidance=5.0, strength=0.9, image=pictures(64, 64)[0])
    assert resolve(job.replace(strength=None), ours["mlx"].manifest).strength == 0.3
    usual = drawn(ours["mlx"], job)
    monkeypatch.setattr(refine, "SCORES", (6.0, 9.0))
    assert psnr(drawn(ours["mlx"], job), usual) < BAR


@pytest.mark.parametrize("more", [{}, {"mask": "x"}])
def test_a_refiner_asks_for_a_picture(more, models, pictures):  # noqa: F811
    image, mask = pictures(64, 64)
    more = {"image": image, "mask": mask} if more else {}
    with pytest.raises(UserError, match="refines pictures: give one with --image and no --mask"):
        resolve(Job(prompt="x", **more), models("sdxl-refiner")[1]["mlx"].manifest)
