"""Painting a part of a picture: masks, the region around them, extensions, and the old pixels put back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import has, needs_torch
from PIL import Image
from test_generate import MANIFEST, Fake, run

from mlxldm.canvas import Canvas, extended_size, grown, region
from mlxldm.errors import UserError
from mlxldm.generate import resolve
from mlxldm.job import Job
from mlxldm.picture import parameters, read_job, save_png


@pytest.fixture
def files(tmp_path):
    """A picture of 90 × 70 pixels and a mask with one white box."""
    pixels = np.random.RandomState(0).randint(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    white = np.zeros((70, 90), np.uint8)
    white[30:45, 50:74] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    return tmp_path


def job(files, **more) -> Job:
    return Job(**{"seed": 3, "image": str(files / "picture.png"), "mask": str(files / "mask.png"), **more})


def old(files, size=None) -> np.ndarray:
    picture = Image.open(files / "picture.png")
    return np.asarray(picture if size is None else picture.resize(size, Image.Resampling.LANCZOS))


def drawn(job) -> np.ndarray:
    return run(job)[-1].pixels


# Masks.


@pytest.mark.parametrize("pixels", [0, 1, 3, 7, -1, -3])
def test_a_mask_grows_by_a_disc(pixels):
    random = np.random.RandomState(1)
    white = random.rand(23, 31) > (0.97 if pixels > 0 else 0.03)
    y, x = np.mgrid[-9:10, -9:10]
    disc = y * y + x * x <= pixels * pixels
    mask = white if pixels >= 0 else ~white
    around = np.pad(mask, 9)
    wanted = np.array([[(around[i : i + 19, j : j + 19] & disc).any() for j in range(31)] for i in range(23)])
    found = grown(white, pixels)
    assert np.array_equal(found, wanted if pixels >= 0 else ~wanted)
    assert pixels == 0 or 0.02 < (found ^ white).mean() < 0.95


def test_a_mask_may_grow_far_beyond_its_picture_and_stays_black_if_it_is():
    white = np.zeros((5, 3), bool)
    assert not grown(white, 1000).any()
    white[4, 2] = True
    assert grown(white, 1000).all() and not grown(white, -1000).any()
    assert np.array_equal(grown(~white, -1), ~grown(white, 1))


def test_shrinking_leaves_the_pictures_own_edge():
    white = np.zeros((8, 8), bool)
    white[:, :5] = True
    assert np.array_equal(np.flatnonzero(grown(white, -2).all(axis=0)), [0, 1, 2])


@pytest.mark.parametrize("more", [{}, {"mask_grow": 6}, {"mask_grow": -4}, {"strength": 0.5}, {"width": 128}])
def test_what_the_mask_leaves_out_comes_back_bit_for_bit(files, more):
    size = resolve(job(files, **more), MANIFEST)
    size = size.width, size.height
    picture, white = old(files, size), Canvas(resolve(job(files, **more), MANIFEST)).mask[0, :, :, 0] == 1
    found = drawn(job(files, **more))
    assert found.shape == picture.shape and 0.01 < white.mean() < 0.5
    assert np.array_equal(found[~white], picture[~white])
    assert np.abs(found[white].astype(int) - picture[white]).mean() > 20


def test_a_blurred_mask_blends_and_leaves_the_rest_alone(files):
    hard, soft = drawn(job(files)), drawn(job(files, mask_blur=3))
    picture, mask = old(files, (88, 64)), Image.open(files / "mask.png").resize((88, 64), Image.Resampling.LANCZOS)
    from PIL import ImageFilter

    weight = np.asarray(mask.point(lambda v: 255 * (v > 127)).filter(ImageFilter.GaussianBlur(3)))[..., None] / 255
    assert np.array_equal(soft[weight[..., 0] == 0], picture[weight[..., 0] == 0])
    inside = weight[..., 0] > 0.6
    blended = weight * hard + (1 - weight) * picture
    assert np.abs(soft[inside] - blended[inside]).max() < 1
    assert 0.05 < ((weight > 0) & (weight < 1)).mean() < 0.5


def test_a_mask_of_another_size_is_scaled(files):
    Image.open(files / "mask.png").resize((180, 140), Image.Resampling.NEAREST).save(files / "large.png")
    assert np.abs(drawn(job(files)).astype(int) - drawn(job(files, mask=str(files / "large.png")))).mean() < 1


# Only what is masked.


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 64)])
def test_the_region_is_diffusers_own(size):
    image_processor = pytest.importorskip("diffusers.image_processor", reason="diffusers is missing")
    random = np.random.RandomState(0)
    exact = 0
    for _ in range(200):
        white = np.zeros((random.randint(8, 120), random.randint(8, 120)), bool)
        y, x = random.randint(0, white.shape[0]), random.randint(0, white.shape[1])
        white[y : y + random.randint(1, 60), x : x + random.randint(1, 60)] = True
        padding = random.randint(0, 40)
        mask = Image.fromarray(white.astype(np.uint8) * 255)
        theirs = image_processor.VaeImageProcessor.get_crop_region(mask, *size, pad=padding)
        ours = region(white, *size, padding)
        exact += ours == theirs
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1  # they divide in floats
    assert exact >= 190


def test_only_the_region_is_drawn_and_the_rest_comes_back_at_the_pictures_own_size(files):
    wish = job(files, only_masked=True, mask_padding=8, mask_grow=1)
    picture, found = old(files), drawn(wish)
    white = np.zeros((70, 90), bool)
    white[30:45, 50:74] = True
    white = grown(white, 1)
    assert found.shape == picture.shape
    assert np.array_equal(found[~white], picture[~white])
    assert np.abs(found[white].astype(int) - picture[white]).mean() > 20
    resolved = resolve(wish, MANIFEST)
    assert (resolved.width, resolved.height) == (64, 64)  # the model's own, not the picture's
    canvas = Canvas(resolved)
    assert canvas.box == (41, 17, 83, 59)
    near = Image.fromarray(picture).crop(canvas.box).resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(canvas.image[0], 2 * (np.asarray(near, np.float32) / 255) - 1)


def test_a_picture_of_other_proportions_is_not_stretched(files):
    """A mask all over has no room for a square: the picture's edges go on above and below, and are cut off again."""
    Image.new("L", (90, 70), 255).save(files / "all.png")
    canvas = Canvas(resolve(job(files, mask=str(files / "all.png"), only_masked=True), MANIFEST))
    assert canvas.box == (0, 0, 90, 70) and canvas.image.shape == (1, 64, 64, 3)
    rows = canvas.image[0, :, :, 0]
    assert (rows[:8] == rows[8]).all() and (rows[57:] == rows[56]).all() and (rows[9] != rows[8]).any()
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:57] = 200
    assert (canvas.finish(pixels) == 200).all()


@needs_torch
@pytest.mark.skipif(not has("mlx"), reason="MLX is missing")
@pytest.mark.parametrize("kind, task", [("sd1", "paint"), ("sd1-inpaint", "inpaint")])
def test_only_masked_draws_what_diffusers_draws(kind, task, files, tiny_folder, tmp_path_factory):
    import diffusers
    import single_files
    import tiny
    import torch
    from test_parity import APART, BAR, psnr, scheduler

    import mlxldm.backend
    from mlxldm_convert import view

    pipe = tiny.KINDS["sd1"]() if kind == "sd1" else single_files.pipeline(kind)
    if kind == "sd1":
        root = tiny_folder("sd1", "today")
    else:
        pipe.text_encoder.config.eos_token_id = pipe.tokenizer.eos_token_id
        root = single_files.folder(pipe, kind, tmp_path_factory.mktemp("canvas") / kind)
    pipe = diffusers.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler(root, "ddim", "model")
    wish = job(files, prompt="a red house at dusk", steps=4, guidance=4.0, sampler="ddim", width=64, height=64,
               only_masked=True, mask_padding=9, mask_blur=0)  # fmt: skip
    wanted = np.asarray(pipe(
        wish.prompt, image=Image.open(wish.image), mask_image=Image.open(wish.mask), padding_mask_crop=9, strength=1.0,
        guidance_scale=4.0, num_inference_steps=4, width=64, height=64, generator=torch.Generator().manual_seed(3),
    ).images[0])  # fmt: skip
    found = {}
    for name in ("mlx", "torch"):
        model = mlxldm.backend.load(view(root), name, "cpu", "float32")
        found[name] = run(wish, model)[-1].pixels
        assert psnr(found[name], wanted) >= BAR
        white = np.asarray(Image.open(wish.mask)) > 0
        assert np.array_equal(found[name][~white], wanted[~white])
        other = run(wish.replace(seed=4), model)[-1].pixels
        assert psnr(other[white], found[name][white]) <= APART
        wide = run(job(files, mask=None, extend="40,0,0,0", steps=2), model)[-1].pixels
        assert wide.shape == (70, 130, 3) and np.array_equal(wide[:, 80:], old(files)[:, 40:])
        assert len(np.unique(wide[:, :40])) > 20
    assert psnr(found["mlx"], found["torch"]) >= BAR


# Extensions.


@pytest.mark.parametrize("extend", ["32,0,32,0", "0,13,0,0", "5,0,7,8", "0,0,0,9", "300,0,0,200"])
def test_an_extended_picture_is_as_large_as_said_and_keeps_its_old_pixels(files, extend):
    left, top, right, bottom = map(int, extend.split(","))
    picture = old(files)
    found = drawn(job(files, mask=None, extend=extend, mask_grow=0, mask_blur=0))
    assert found.shape == (70 + top + bottom, 90 + left + right, 3)
    assert np.array_equal(found[top : top + 70, left : left + 90], picture)
    found = drawn(job(files, mask=None, extend=extend))
    reach = 16 + 3 * 6 + 1  # the overlap, and as far as a blur of 6 goes
    inner = [reach * (side > 0) for side in (left, top, right, bottom)]
    keep = np.s_[inner[1] : 70 - inner[3], inner[0] : 90 - inner[2]]
    assert picture[keep].size > 0
    assert np.array_equal(found[top : top + 70, left : left + 90][keep], picture[keep])
    assert not np.array_equal(found[top : top + 70, left : left + 90], picture)


def test_what_is_new_is_painted_wholly_and_the_rest_of_whole_latents_is_not(files):
    resolved = resolve(job(files, mask=None, extend="10,0,0,4"), MANIFEST)
    assert extended_size(resolved) == (100, 74) and (resolved.width, resolved.height) == (104, 80)
    assert resolve(resolved, MANIFEST) == resolved
    canvas = Canvas(resolved)
    white, soft = canvas.mask[0, :, :, 0] == 1, np.asarray(canvas.soft)
    assert white.shape == soft.shape == (80, 104)
    assert (soft[:, :10] == 255).all() and (soft[70:] == 255).all() and white[70:].all() and white[:, :26].all()
    assert not white[:54, 27:].any()  # not on the right: nothing was asked for there


def test_what_is_new_goes_on_in_the_colours_of_the_edge(files):
    y, x = np.mgrid[0:70, 0:90]
    Image.fromarray(np.stack([2 * x, 3 * y, x + y], -1).astype(np.uint8)).save(files / "picture.png")
    pixels = Canvas(resolve(job(files, mask=None, extend="30,0,0,26"), MANIFEST)).image[0]
    assert np.abs(pixels[:70, 29] - pixels[:70, 30]).max() < 0.15 and np.abs(pixels[69] - pixels[70]).max() < 0.15
    assert np.abs(pixels[:60, 5] - pixels[:60, 54]).max() < 0.15  # mirrored


def test_an_extension_with_a_mask_paints_both(files):
    resolved = resolve(job(files, extend="8,0,0,0", mask_grow=0, mask_blur=0), MANIFEST)
    white = Canvas(resolved).mask[0, :, :, 0] == 1
    assert white[:, :8].all() and white[30:45, 58:82].all() and white.sum() == 8 * white.shape[0] + 15 * 24


def test_only_the_extension_can_be_drawn_at_another_size(files):
    wish = job(files, mask=None, extend="0,0,30,0", only_masked=True, mask_padding=20, mask_grow=0, mask_blur=0)
    found = drawn(wish)
    assert found.shape == (70, 120, 3) and np.array_equal(found[:, :90], old(files))
    assert Canvas(resolve(wish, MANIFEST)).box == (50, 0, 120, 70)


# What is refused.


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"image": None}, "a mask but no image"),
        ({"image": None, "mask": None, "extend": "8,0,0,0"}, "an extension but no image"),
        ({"mask": None, "mask_blur": 3}, "has --mask-blur, but no mask"),
        ({"mask": None, "mask_grow": 3}, "has --mask-grow, but no mask"),
        ({"mask": None, "only_masked": True}, "has --only-masked, but no mask"),
        ({"mask_padding": 3}, "goes with --only-masked"),
        ({"mask_blur": -1}, "blur is -1"),
        ({"only_masked": True, "mask_padding": -1}, "padding is -1"),
        ({"mask": "black.png"}, "black everywhere, but what is painted anew is what is white"),
        ({"mask_grow": -30}, "Shrunk by 30 pixels"),
        ({"mask": "thin.png"}, "too thin .* every 8th pixel"),
        ({"mask": None, "extend": "0,0,0,1", "mask_grow": 0}, "too thin .* every 8th pixel"),
        ({"extend": "8,0,0"}, "must be four whole numbers"),
        ({"extend": "8,0,0,x"}, "must be four whole numbers"),
        ({"extend": "8,0,0,-1"}, "must be four whole numbers"),
        ({"extend": "0,0,0,0"}, "not all of them 0"),
        ({"extend": "8,0,0,0", "width": 128}, "as large as the picture and its extension, 104 × 72"),
        ({"hires": 2.0}, "A part of a picture is not drawn twice"),
    ],
)
def test_what_cannot_be_painted_is_said_before_anything_is_computed(files, wish, words):
    Image.new("L", (90, 70)).save(files / "black.png")
    thin = np.zeros((70, 90), np.uint8)
    thin[:, 60:62] = 255
    Image.fromarray(thin).save(files / "thin.png")
    wish = {key: str(files / value) if key == "mask" and value else value for key, value in wish.items()}
    with pytest.raises(UserError, match=words) as caught:
        resolve(job(files, **wish), MANIFEST)
    assert "\n" not in str(caught.value)


# All together.


@pytest.mark.parametrize("more", [
    {"mask_grow": 3, "mask_blur": 4}, {"only_masked": True}, {"mask": None, "extend": "9,0,0,3"},
])  # fmt: skip
def test_a_picture_of_a_count_is_made_again_from_its_png(files, more):
    first, second = (event for event in run(job(files, count=2, **more)) if hasattr(event, "pixels"))
    assert not np.array_equal(first.pixels, second.pixels)
    path = save_png(files / "out.png", second.pixels, second.job)
    assert np.array_equal(drawn(read_job(path)), second.pixels)
    assert read_job(path) == second.job == resolve(second.job, MANIFEST)


def test_the_text_for_other_programs(files):
    resolved = resolve(job(files, mask_blur=4, only_masked=True), MANIFEST)
    text = parameters(resolved)
    assert "Denoising strength: 1, Mask blur: 4, Inpaint area: Only masked, Masked area padding: 32" in text


def test_the_model_sees_the_grown_mask(files):
    """In 4 channels the latents outside it stay the picture's."""
    small, large = Fake(), Fake()
    run(job(files, width=88, height=64), small)
    run(job(files, width=88, height=64, mask_grow=8), large)
    changed = [np.abs(model.latents[0] - small.latents[0]).max(-1)[0] > 1e-6 for model in (large,)][0]
    assert changed.any() and changed.mean() < 0.5 and not math.isnan(float(large.latents[0].sum()))
