"""Models for one task draw what diffusers draws: inpainting models, which see the mask and the picture around it, and
models that edit a picture as told (InstructPix2Pix).
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from conftest import has, needs_torch

from mlxldm.errors import UserError
from mlxldm.generate import generate, resolve
from mlxldm.job import Job

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

from test_parity import APART, BAR, NEGATIVE, PROMPT, psnr, put_back, scheduler  # noqa: E402

import mlxldm.backend  # noqa: E402
from mlxldm_convert import view  # noqa: E402


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(picture, mask) of a size, as paths."""
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")

    def make(width: int, height: int) -> tuple[str, str]:
        paths = root / f"{width}.png", root / f"{width}-mask.png"
        y, x = np.mgrid[0:height, 0:width] / 96
        Image.fromarray((np.stack([x, y, (x + y > 0.7) * 0.8], -1) * 255).astype(np.uint8)).save(paths[0])
        white = np.zeros((height, width), np.uint8)
        white[height // 4 : height // 2, width // 4 : -width // 4] = 255
        Image.fromarray(white).save(paths[1])
        return str(paths[0]), str(paths[1])

    return make


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(diffusers' pipeline for the task, {backend: our model}, the folder) of a kind."""
    import diffusers
    import single_files

    root, made = tmp_path_factory.mktemp("tasks"), {}

    def make(kind: str):
        if kind not in made:
            tiny = single_files.pipeline(kind)
            for module in (tiny.text_encoder, getattr(tiny, "text_encoder_2", None)):
                # made for CLIP's own vocabulary, whose last token is not this tokenizer's
                for inner in () if module is None else module.modules():
                    if hasattr(inner, "eos_token_id"):
                        inner.eos_token_id = (tiny.tokenizer or tiny.tokenizer_2).eos_token_id
            path = single_files.folder(tiny, kind, root / kind)
            folder = view(path)
            cls = getattr(diffusers, single_files.LAYOUTS[kind][1])
            wanted = inspect.signature(cls).parameters
            parts = {name: tiny.components.get(name) for name, about in wanted.items() if about.default is about.empty}
            if "low_res_scheduler" in wanted:
                parts["low_res_scheduler"] = diffusers.DDPMScheduler.from_pretrained(path / "low_res_scheduler")
            said = {"requires_safety_checker": False, "requires_aesthetics_score": kind == "sdxl-refiner"}
            pipe = cls(**parts, **{name: value for name, value in said.items() if name in wanted})
            pipe.set_progress_bar_config(disable=True)
            ours = {name: mlxldm.backend.load(folder, name, "cpu", "float32") for name in ("mlx", "torch")}
            made[kind] = pipe, ours, path
        return made[kind]

    return make


def drawn(model, job: Job) -> np.ndarray:
    return next(event.pixels for event in generate(model, job) if hasattr(event, "pixels"))


INPAINT = [
    (kind, size, strength, sampler)
    for kind in ("sd1-inpaint", "sd2-inpaint", "sdxl-inpaint")
    for size, strength, sampler in (((64, 96), 1.0, "ddim"), ((96, 64), 0.6, "euler"), ((64, 64), 1.0, "dpmpp_2m"))
]


@pytest.mark.parametrize("kind, size, strength, sampler", INPAINT)
def test_an_inpainting_model_draws_what_diffusers_draws(kind, size, strength, sampler, models, pictures):
    import torch
    from PIL import Image

    pipe, ours, root = models(kind)
    image, mask = pictures(*size)
    pipe.scheduler = scheduler(root, sampler, "model")
    job = Job(prompt=PROMPT, negative=NEGATIVE, seed=7, steps=5, guidance=7.5, sampler=sampler, width=size[0],
              height=size[1], image=image, mask=mask, strength=strength)  # fmt: skip
    wanted = pipe(
        PROMPT, negative_prompt=NEGATIVE, image=Image.open(image), mask_image=Image.open(mask), strength=strength,
        guidance_scale=7.5, num_inference_steps=5, generator=torch.Generator("cpu").manual_seed(7), output_type="np",
        width=size[0], height=size[1],
    ).images[0]  # fmt: skip
    wanted = put_back(np.round(wanted * 255).astype(np.uint8), image, mask)
    mlx, torch_ = (drawn(ours[name], job) for name in ("mlx", "torch"))
    print(f"{kind} {sampler}: {psnr(mlx, wanted):.1f} {psnr(torch_, wanted):.1f} {psnr(mlx, torch_):.1f} dB")
    assert min(psnr(mlx, wanted), psnr(torch_, wanted), psnr(mlx, torch_)) >= BAR
    for change in ({"seed": 8}, {"prompt": "a boat"}):
        assert psnr(drawn(ours["mlx"], job.replace(**change)), mlx) <= APART, change


def test_an_inpainting_model_asks_for_a_picture_and_a_mask(models, pictures):
    _, ours, _ = models("sd1-inpaint")
    image, mask = pictures(64, 64)
    for more in ({}, {"image": image}):
        with pytest.raises(UserError, match="paints into pictures: give the picture with --image"):
            resolve(Job(prompt="x", **more), ours["mlx"].manifest)
    assert resolve(Job(prompt="x", image=image, mask=mask), ours["mlx"].manifest).strength == 1.0


@pytest.mark.parametrize("size, sampler, guidance, keep", [
    ((64, 96), "ddim", 7.5, 1.5), ((96, 64), "euler", 3.0, 2.5), ((64, 64), "euler_a", 7.5, 1.0),
    ((64, 64), "ddim", 1.0, 1.5),
])  # fmt: skip
def test_an_editing_model_draws_what_diffusers_draws(size, sampler, guidance, keep, models, pictures):
    import torch
    from PIL import Image

    pipe, ours, root = models("sd1-edit")
    image, _ = pictures(*size)
    pipe.scheduler = scheduler(root, sampler, "model")
    job = Job(prompt=PROMPT, negative=NEGATIVE, seed=7, steps=5, guidance=guidance, image_guidance=keep,
              sampler=sampler, width=size[0], height=size[1], image=image)  # fmt: skip
    wanted = pipe(
        PROMPT, negative_prompt=NEGATIVE, image=Image.open(image), guidance_scale=guidance, image_guidance_scale=keep,
        num_inference_steps=5, generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).images[0]  # fmt: skip
    wanted = np.round(wanted * 255).astype(np.uint8)
    mlx, torch_ = (drawn(ours[name], job) for name in ("mlx", "torch"))
    print(f"edit {sampler}: {psnr(mlx, wanted):.1f} {psnr(torch_, wanted):.1f} {psnr(mlx, torch_):.1f} dB")
    assert min(psnr(mlx, wanted), psnr(torch_, wanted), psnr(mlx, torch_)) >= BAR
    changes = [{"seed": 8}, {"prompt": "a boat"}]
    if guidance > 1:
        changes += [{"image_guidance": keep + 2}, {"guidance": guidance + 2}]
    for change in changes:
        assert psnr(drawn(ours["mlx"], job.replace(**change)), mlx) <= APART, change


@pytest.mark.parametrize("more", [{}, {"image": "x", "strength": 0.5}, {"image": "x", "mask": "x"}])
def test_an_editing_model_asks_for_a_picture_and_no_more(more, models, pictures):
    _, ours, _ = models("sd1-edit")
    more = {key: pictures(64, 64)[key == "mask"] if value == "x" else value for key, value in more.items()}
    with pytest.raises(UserError, match="edits a picture as told: give it with --image"):
        resolve(Job(prompt="x", **more), ours["mlx"].manifest)


def test_image_guidance_is_for_models_that_edit(models, pictures):
    image, mask = pictures(64, 64)
    with pytest.raises(UserError, match="only models that edit as told have"):
        resolve(Job(prompt="x", image=image, mask=mask, image_guidance=1.5), models("sd1-inpaint")[1]["mlx"].manifest)
    manifest = models("sd1-edit")[1]["mlx"].manifest
    assert resolve(Job(prompt="x", image=image), manifest).image_guidance == 1.5
    with pytest.raises(UserError, match="from 1 up"):
        resolve(Job(prompt="x", image=image, image_guidance=0.5), manifest)


@pytest.mark.parametrize("size, sampler, strength", [((64, 96), "ddim", 0.8), ((96, 64), "euler", 0.5)])
def test_a_model_with_depth_draws_what_diffusers_draws(size, sampler, strength, models, pictures, tmp_path):
    import torch
    from PIL import Image

    pipe, ours, root = models("sd2-depth")
    image, _ = pictures(*size)
    deep = np.random.RandomState(3).randint(0, 65536, (size[1], size[0])).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "depth.png")
    pipe.scheduler = scheduler(root, sampler, "model")
    job = Job(prompt=PROMPT, negative=NEGATIVE, seed=7, steps=5, guidance=7.5, sampler=sampler, strength=strength,
              width=size[0], height=size[1], image=image, depth=str(tmp_path / "depth.png"))  # fmt: skip
    depth_map = torch.tensor(deep.astype(np.float32)[None])
    wanted = pipe(
        PROMPT, negative_prompt=NEGATIVE, image=Image.open(image), depth_map=depth_map,
        strength=strength, guidance_scale=7.5, num_inference_steps=5,
        generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).images[0]  # fmt: skip
    wanted = np.round(wanted * 255).astype(np.uint8)
    mlx, torch_ = (drawn(ours[name], job) for name in ("mlx", "torch"))
    print(f"depth {sampler}: {psnr(mlx, wanted):.1f} {psnr(torch_, wanted):.1f} {psnr(mlx, torch_):.1f} dB")
    assert min(psnr(mlx, wanted), psnr(torch_, wanted), psnr(mlx, torch_)) >= BAR
    Image.fromarray(deep[::-1].copy()).save(tmp_path / "other.png")
    for change in ({"seed": 8}, {"depth": str(tmp_path / "other.png")}):
        assert psnr(drawn(ours["mlx"], job.replace(**change)), mlx) <= APART, change
    assert drawn(ours["mlx"], job.replace(image=None, strength=None)).shape == (size[1], size[0], 3)


def test_a_picture_with_depth_is_drawn_over_with_depth(models, pictures, tmp_path):
    from PIL import Image

    _, ours, _ = models("sd2-depth")
    near, _ = pictures(64, 96)
    job = Job(prompt=PROMPT, seed=7, steps=2, width=64, height=96, depth=near, hires=1.5, hires_strength=1.0)
    twice = drawn(ours["mlx"], job)
    Image.fromarray(drawn(ours["mlx"], job.replace(hires=None, hires_strength=None))).save(tmp_path / "first.png")
    by_hand = Job(prompt=PROMPT, seed=7, steps=2, width=96, height=144, depth=near, strength=1.0,
                  image=str(tmp_path / "first.png"))  # fmt: skip
    assert np.array_equal(twice, drawn(ours["mlx"], by_hand)) and twice.shape == (144, 96, 3)


@pytest.mark.parametrize("kind", ["sd1-inpaint", "sd1-edit"])
def test_models_that_start_from_no_picture_have_no_second_pass(kind, models, pictures):
    image, mask = pictures(64, 64)
    more = {"mask": mask} if kind == "sd1-inpaint" else {}
    with pytest.raises(UserError, match="a second pass, which only models that start from any picture have"):
        resolve(Job(prompt="x", image=image, hires=2.0, **more), models(kind)[1]["mlx"].manifest)
    if kind == "sd1-edit":
        with pytest.raises(UserError, match="an extension, which only models that paint a part of a picture take"):
            resolve(Job(prompt="x", image=image, extend="8,0,0,0"), models(kind)[1]["mlx"].manifest)


def test_a_depth_map_is_for_models_with_depth(models, pictures, tmp_path):
    from PIL import Image

    image, mask = pictures(64, 64)
    manifest = models("sd2-depth")[1]["mlx"].manifest
    for more in ({}, {"depth": image, "image": image, "mask": mask}):
        with pytest.raises(UserError, match="give a depth map with --depth"):
            resolve(Job(prompt="x", **more), manifest)
    with pytest.raises(UserError, match="only models with depth take"):
        resolve(Job(prompt="x", depth=image, image=image, mask=mask), models("sd1-inpaint")[1]["mlx"].manifest)
    Image.new("L", (64, 64), 7).save(tmp_path / "flat.png")
    with pytest.raises(UserError, match="one grey all over"):
        drawn(models("sd2-depth")[1]["mlx"], Job(prompt="x", depth=str(tmp_path / "flat.png"), width=64, height=64))
