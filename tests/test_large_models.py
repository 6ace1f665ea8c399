"""Stable Diffusion XL's kinds that edit and refine draw what diffusers draws."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import has, needs_torch

from mlxldm.errors import UserError
from mlxldm.generate import generate, resolve
from mlxldm.job import Job

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

from test_parity import APART, BAR, NEGATIVE, PROMPT, psnr, scheduler  # noqa: E402
from test_tasks import drawn, models, pictures  # noqa: E402, F401

import mlxldm.backend  # noqa: E402
from mlxldm_convert import view  # noqa: E402


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


# One model begins, the other ends.


@pytest.mark.parametrize("size, sampler, spacing, guidance, start, negative", [
    ((64, 96), "euler", "model", 5.0, 0.8, NEGATIVE), ((96, 64), "ddim", "model", 3.0, 0.5, None),
    ((64, 64), "euler_a", "trailing", 5.0, 0.6, ""), ((64, 64), "dpmpp_2m", "model", 1.0, 0.7, None),
    ((64, 64), "unipc", "model", 5.0, 0.4, NEGATIVE), ((64, 64), "lms", "karras", 5.0, 0.5, NEGATIVE),
])  # fmt: skip
def test_a_refiner_ends_what_the_base_begins(size, sampler, spacing, guidance, start, negative, halves):
    import torch

    (base, last), ours, root = halves
    base.scheduler, last.scheduler = (scheduler(root, sampler, spacing) for _ in range(2))
    generator = torch.Generator("cpu").manual_seed(7)
    same_for_both = {"negative_prompt": negative, "guidance_scale": guidance, "num_inference_steps": 6,
                     "generator": generator}  # fmt: skip
    latents = base(
        PROMPT, **same_for_both, denoising_end=start, output_type="latent", width=size[0], height=size[1]
    ).images
    wanted = last(PROMPT, **same_for_both, denoising_start=start, image=latents, output_type="np").images[0]
    job = Job(prompt=PROMPT, negative=negative, seed=7, steps=6, guidance=guidance, sampler=sampler, spacing=spacing,
              width=size[0], height=size[1], refiner_start=start)  # fmt: skip
    events = {name: list(generate(ours[name][0], job, refiner=ours[name][1])) for name in ours}
    mlx, torch_ = (events[name][-1].pixels for name in ("mlx", "torch"))
    print(f"{sampler}: {psnr(mlx, as_bytes(wanted)):.1f} {psnr(torch_, as_bytes(wanted)):.1f} {psnr(mlx, torch_):.1f}")
    assert min(psnr(mlx, as_bytes(wanted)), psnr(torch_, as_bytes(wanted)), psnr(mlx, torch_)) >= BAR
    assert [event.step for event in events["mlx"][:-1]] == list(range(1, 7)) and events["mlx"][0].of == 6
    other = list(generate(ours["mlx"][0], job.replace(refiner_start=start - 0.2), refiner=ours["mlx"][1]))[-1].pixels
    alone = drawn(ours["mlx"][0], job.replace(refiner_start=None))
    assert psnr(other, mlx) < BAR and psnr(alone, mlx) < BAR  # what little noise is left, both models see alike
    seed = list(generate(ours["mlx"][0], job.replace(seed=8), refiner=ours["mlx"][1]))[-1].pixels
    assert psnr(seed, mlx) <= APART
    assert events["mlx"][-1].job.refiner == ours["mlx"][1].manifest.name


@pytest.fixture(scope="module")
def halves(models, tmp_path_factory):  # noqa: F811
    """((diffusers' base, its refiner), {backend: (ours, ours)}, the base's folder)"""
    import single_files

    last, refiners, _ = models("sdxl-refiner")
    base = single_files.pipeline("sdxl")
    for module in (base.text_encoder, base.text_encoder_2):
        for inner in module.modules():
            if hasattr(inner, "eos_token_id"):
                inner.eos_token_id = base.tokenizer.eos_token_id
    base.set_progress_bar_config(disable=True)
    root = single_files.folder(base, "sdxl", tmp_path_factory.mktemp("halves") / "base")
    ours = {name: (mlxldm.backend.load(view(root), name, "cpu", "float32"), refiners[name]) for name in refiners}
    return (base, last), ours, root


def test_a_refiner_that_does_not_fit_is_refused(halves, models, pictures):  # noqa: F811
    _, ours, _ = halves
    base, last = (model.manifest for model in ours["mlx"])
    image, mask = pictures(64, 64)
    assert resolve(Job(prompt="x"), base, last).refiner_start == 0.8
    done = resolve(Job(prompt="x"), base, last)
    assert resolve(done, base, last) == done
    for job, first, second, complaint in (
        (Job(refiner_start=0.5), base, None, "a refiner start but no refiner"),
        (Job(refiner="r"), base, None, "has to be loaded beside the model"),
        (Job(), base, base, "is no refiner but a model for text-to-image"),
        (Job(image=image), models("sdxl-edit")[1]["mlx"].manifest, last, "ends what Stable Diffusion XL begins"),
        (Job(refiner_start=0.0), base, last, "must lie between 0 and 1"),
        (Job(refiner_start=1.0), base, last, "must lie between 0 and 1"),
        (Job(refiner_start=float("nan")), base, last, "must lie between 0 and 1"),
        (Job(image=image, mask=mask), base, last, "a mask and a refiner, which do not go together"),
        (Job(hires=2.0), base, last, "a hires and a refiner"),
        (Job(guidance_stop=0.5), base, last, "a guidance stop and a refiner"),
        (Job(steps=2, spacing="trailing", refiner_start=0.99), base, last, "Of 2 steps none is left from 0.99 to 1"),
        (Job(sampler="pndm"), base, last, "pndm cannot be shared by two models"),
    ):
        with pytest.raises(UserError, match=complaint):
            resolve(job.replace(prompt="x"), first, second)
