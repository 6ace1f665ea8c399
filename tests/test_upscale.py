"""The x4 upscaler draws what diffusers draws, at any size; and pictures in tiles have no seams."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import has, needs_torch

from mlxldm.errors import UserError
from mlxldm.generate import resolve
from mlxldm.job import Job
from mlxldm.windows import Window, tiled, windows

both = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

if has("mlx"):
    from test_large_models import as_bytes, same
    from test_parity import BAR, NEGATIVE, PROMPT, psnr, scheduler
    from test_tasks import drawn, models, pictures  # noqa: F401


def need_both(test):
    for mark in both:
        test = mark(test)
    return test


@need_both
@pytest.mark.parametrize("size, sampler, guidance, level, negative", [
    ((24, 32), "ddim", 9.0, None, NEGATIVE), ((32, 16), "euler", 4.0, 120, None), ((20, 28), "euler_a", 9.0, 0, ""),
    ((16, 16), "dpmpp_2m", 1.0, 350, None),
])  # fmt: skip
def test_the_upscaler_draws_what_diffusers_draws(size, sampler, guidance, level, negative, models, pictures):  # noqa: F811
    import torch
    from PIL import Image

    pipe, ours, root = models("upscaler")
    image, _ = pictures(*size)
    pipe.scheduler = scheduler(root, sampler, "model")
    job = Job(prompt=PROMPT, negative=negative, seed=7, steps=4, guidance=guidance, sampler=sampler, image=image,
              noise_level=level)  # fmt: skip
    wanted = pipe(
        PROMPT, negative_prompt=negative, image=Image.open(image), guidance_scale=guidance, num_inference_steps=4,
        noise_level=20 if level is None else level, generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).images[0]  # fmt: skip
    assert wanted.shape == (4 * size[1], 4 * size[0], 3)
    same(ours, job, as_bytes(wanted), [{"seed": 8}, {"prompt": "a boat"}, {"noise_level": 200}])


@need_both
@pytest.mark.parametrize("size", [(13, 9), (7, 30)])
def test_a_small_picture_may_have_any_size(size, models, pictures):  # noqa: F811
    ours = models("upscaler")[1]
    job = Job(prompt=PROMPT, seed=7, steps=3, image=pictures(*size)[0])
    mlx, torch = (drawn(ours[name], job) for name in ("mlx", "torch"))
    assert mlx.shape == (4 * size[1], 4 * size[0], 3)
    assert psnr(mlx, torch) >= BAR


@need_both
def test_what_the_upscaler_does_not_take_is_said(models, pictures):  # noqa: F811
    manifest = models("upscaler")[1]["mlx"].manifest
    image, mask = pictures(16, 16)
    with pytest.raises(UserError, match="4 times as large: give one with --image"):
        resolve(Job(prompt="x"), manifest)
    for name, value in (("mask", mask), ("strength", 0.5)):
        with pytest.raises(UserError, match=f"The job has a {name}, but .* makes small pictures .* leave it out"):
            resolve(Job(prompt="x", image=image, **{name: value}), manifest)
    for level in (-1, 351):
        with pytest.raises(UserError, match=f"noise level is {level}, but .* knows 0 to 350"):
            resolve(Job(prompt="x", image=image, noise_level=level), manifest)
    with pytest.raises(UserError, match="The width is 128, but .* 64 × 64 pixels, 4 times as large: leave it out"):
        resolve(Job(prompt="x", image=image, width=128), manifest)
    job = resolve(Job(prompt="x", image=image), manifest)
    assert (job.width, job.height, job.noise_level) == (64, 64, 20)
    assert resolve(job, manifest) == job
    with pytest.raises(UserError, match="a noise level, which only models that make small pictures larger take"):
        resolve(Job(prompt="x", image=image, mask=mask, noise_level=3), models("sd1-inpaint")[1]["mlx"].manifest)


# Tiles.


class NumPy:
    """The part of a model that tiles use."""

    @staticmethod
    def array(x):
        return x

    @staticmethod
    def evaluate(x):
        return x


@pytest.mark.parametrize("height, width, size", [(32, 32, 32), (33, 100, 32), (90, 20, 32), (65, 64, 16), (9, 8, 8)])
def test_windows_cover_everything_and_overlap(height, width, size):
    places = windows(height, width, size)
    assert len({(place.height, place.width) for place in places}) == 1  # so that a GPU's graph is captured once
    assert (places[0].height, places[0].width) == (min(size, height), min(size, width))
    seen = np.zeros((height, width))
    for place in places:
        assert 0 <= place.top <= height - place.height and 0 <= place.left <= width - place.width
        place.of(seen[None])[:] += 1
    assert seen.min() >= 1
    for starts in ({place.top for place in places}, {place.left for place in places}):
        assert all(after - before <= size - size // 4 for before, after in zip(sorted(starts), sorted(starts)[1:]))  # noqa: B905


def test_windows_that_agree_are_the_whole_and_one_that_is_large_enough_is_it():
    x = np.random.RandomState(0).standard_normal((1, 40, 50, 4)).astype(np.float32)

    def at(window: Window):
        return lambda part, sigma: part * sigma + 1

    np.testing.assert_allclose(tiled(at, 40, 50, 16, NumPy)(x, 3.0), x * 3 + 1, rtol=1e-5)
    assert (tiled(at, 40, 50, 50, NumPy)(x, 3.0) == x * 3 + 1).all()


def test_windows_that_do_not_agree_meet_without_a_jump():
    stream = np.random.RandomState(1)

    def at(window: Window):
        own = float(stream.standard_normal())
        return lambda part, sigma: part * 0.0 + own

    size = 16
    guess = tiled(at, 64, 64, size, NumPy)(np.zeros((1, 64, 64, 1), np.float32), 1.0)[0, :, :, 0]
    assert guess.std() > 0.3  # windows differ
    steps = np.abs(np.diff(guess, axis=1))
    edges = {edge - 1 for place in windows(64, 64, size) for edge in (place.left, place.left + size) if 0 < edge < 64}
    at_edges = steps[:, sorted(edges)]
    assert at_edges.max() <= steps[:, [i for i in range(63) if i not in edges]].max() * 1.001
    assert steps.max() < np.ptp(guess) / 3  # all of it is made in small steps


def test_cfgpp_gets_both_guesses_of_every_window():
    x = np.random.RandomState(0).standard_normal((1, 40, 50, 4)).astype(np.float32)
    guess, free = tiled(lambda window: lambda part, sigma: (part + 1, part - 1), 40, 50, 16, NumPy)(x, 3.0)
    np.testing.assert_allclose(guess, x + 1, atol=1e-5)
    np.testing.assert_allclose(free, x - 1, atol=1e-5)


@need_both
@pytest.mark.parametrize("kind", ["upscaler", "sdxl-edit", "sd1-inpaint", "sdxl-refiner"])
def test_a_picture_in_tiles(kind, models, pictures):  # noqa: F811
    ours = models(kind)[1]
    image, mask = pictures(*((40, 24) if kind == "upscaler" else (160, 96)))
    more = {"sd1-inpaint": {"mask": mask}, "sdxl-refiner": {"strength": 0.9}}.get(kind, {})
    job = Job(prompt=PROMPT, seed=7, steps=3, guidance=3.0, sampler="euler", image=image, **more)
    whole = drawn(ours["mlx"], job)
    assert (drawn(ours["mlx"], job.replace(tile=160)) == whole).all()
    mlx, torch = (drawn(ours[name], job.replace(tile=64)) for name in ("mlx", "torch"))
    assert mlx.shape == whole.shape and psnr(mlx, whole) < BAR
    assert psnr(mlx, torch) >= BAR
    steps = np.abs(np.diff(mlx.astype(float), axis=1)).mean(axis=(0, 2))
    factor = ours["mlx"].manifest.vae.factor
    places = windows(96 // factor, 160 // factor, 64 // factor)
    edges = {edge * factor for place in places for edge in (place.left, place.left + place.width)} - {0, 160}
    print(kind, steps[[edge - 1 for edge in edges]].mean(), steps.mean())
    # the picture changes no more where a tile ends than where any other latent does
    others = [x for x in range(factor, 160, factor) if x not in edges]
    assert steps[[edge - 1 for edge in edges]].max() <= steps[[x - 1 for x in others]].max() * 1.1


@need_both
def test_a_tile_that_cannot_be_is_refused(models, pictures):  # noqa: F811
    manifest = models("upscaler")[1]["mlx"].manifest
    for tile in (0, 32, 100):
        with pytest.raises(UserError, match=f"tile is {tile} pixels, but it must be a multiple of 8 from 64 up"):
            resolve(Job(prompt="x", image=pictures(16, 16)[0], tile=tile), manifest)


@need_both
def test_the_upscaler_takes_tiles_by_itself_above_a_size(models, pictures, monkeypatch):  # noqa: F811
    from mlxldm.tasks.upscale import Upscale

    ours = models("upscaler")[1]["mlx"]
    job = Job(prompt=PROMPT, seed=7, steps=2, image=pictures(40, 24)[0])
    asked = drawn(ours, job.replace(tile=64))
    assert Upscale.TILE == 1024
    monkeypatch.setattr(Upscale, "TILE", 64)
    assert (drawn(ours, job) == asked).all()
