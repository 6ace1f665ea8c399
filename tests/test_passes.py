"""Two passes and variations: what is drawn twice, and from whose random numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import needs_mlx, needs_torch
from PIL import Image
from test_generate import MANIFEST, Fake, run

from mlxldm.errors import UserError
from mlxldm.generate import Step, resolve
from mlxldm.job import Job, variation_of
from mlxldm.noise import Mixed, Noise, slerp
from mlxldm.picture import parameters, read_job, save_png


def drawn(job: Job, model=None) -> np.ndarray:
    return run(job, model)[-1].pixels


# Two passes.


@pytest.mark.parametrize("more", [
    {}, {"sampler": "euler_a", "hires_steps": 7}, {"hires": 1.6, "hires_strength": 1.0, "variation": "9:0.4"},
    {"width": 128, "hires": 1.3, "noise": "nvidia"},
])  # fmt: skip
def test_two_passes_are_two_jobs_done_by_hand(tmp_path, more):
    job = Job("a boat", "rain", **{"seed": 5, "hires": 2.0, **more})
    events = run(job)
    steps = [event for event in events if isinstance(event, Step)]
    resolved = resolve(job, MANIFEST)
    first = run(job.replace(hires=None, hires_strength=None, hires_steps=None))[-1]
    path = save_png(tmp_path / "first.png", first.pixels, first.job)
    width, height = (round(side * job.hires / 8) * 8 for side in (resolved.width, resolved.height))
    again = job.replace(hires=None, hires_strength=None, hires_steps=None, image=str(path), width=width, height=height,
                        strength=job.hires_strength or 0.5, steps=job.hires_steps)  # fmt: skip
    by_hand = run(again)
    assert events[-1].pixels.shape == (height, width, 3)
    assert np.array_equal(events[-1].pixels, by_hand[-1].pixels)
    assert [step.step for step in steps] == list(range(1, steps[0].of + 1))
    assert len(steps) == 4 + len([event for event in by_hand if isinstance(event, Step)])


@needs_mlx
def test_two_passes_on_a_real_model(little_folder, tmp_path):
    import mlxldm

    model = mlxldm.load(str(little_folder), backend="mlx", device="cpu")
    job = Job("a boat", seed=5, steps=2, hires=1.5, hires_strength=1.0)
    found = run(job, model)[-1]
    first = run(job.replace(hires=None, hires_strength=None), model)[-1]
    path = save_png(tmp_path / "first.png", first.pixels, first.job)
    by_hand = run(Job("a boat", seed=5, steps=2, image=str(path), strength=1.0, width=96, height=96), model)[-1]
    assert np.array_equal(found.pixels, by_hand.pixels) and found.pixels.shape == (96, 96, 3)
    assert np.array_equal(run(found.job, model)[-1].pixels, found.pixels)


def test_each_picture_of_a_count_is_drawn_over_with_its_own_seed():
    job = Job("a boat", seed=5, hires=2.0, count=2)
    model = Fake()
    pictures = [event for event in run(job, model) if hasattr(event, "pixels")]
    assert [picture.job.seed for picture in pictures] == [5, 6]
    for picture in pictures:
        assert picture.pixels.shape == (128, 128, 3)
        assert np.array_equal(drawn(picture.job), picture.pixels)
    assert np.array_equal(drawn(job.replace(seed=6, count=1)), pictures[1].pixels)
    assert [text[2:] for text in model.texts] == [(64, 64), (128, 128), (128, 128)]


def test_a_started_picture_is_drawn_over_as_well(tmp_path):
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    job = Job(seed=1, image=str(tmp_path / "a.png"), strength=0.5, hires=2.0)
    assert drawn(job).shape == (128, 128, 3)
    assert not np.array_equal(drawn(job), drawn(job.replace(strength=0.75)))
    assert not np.array_equal(drawn(job), drawn(job.replace(hires_strength=0.75)))


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"hires_strength": 0.5}, "give --hires, usually 2"),
        ({"hires_steps": 5}, "give --hires, usually 2"),
        ({"hires": 1.0}, "hires is 1.0, but it must be above 1"),
        ({"hires": 0.5}, "hires is 0.5"),
        ({"hires": 9.0}, "hires is 9.0"),
        ({"hires": math.nan}, "hires is nan"),
        ({"hires": 2.0, "hires_strength": 0.0}, "second pass's strength is 0.0"),
        ({"hires": 2.0, "hires_strength": 1.5}, "second pass's strength is 1.5"),
        ({"hires": 2.0, "hires_steps": 0}, "second pass has 0 steps"),
        ({"hires": 2.0, "hires_strength": 0.1}, "none of the 4 steps"),
        ({"variation": "7"}, "variation is '7', but it must be a seed and an amount"),
        ({"variation": "7:1.5"}, "variation is '7:1.5'"),
        ({"variation": "7:-0.5"}, "variation is '7:-0.5'"),
        ({"variation": "7:nan"}, "variation is '7:nan'"),
        ({"variation": "-7:0.5"}, "variation is '-7:0.5'"),
        ({"variation": "x:0.5"}, "variation is 'x:0.5'"),
        ({"variation": f"{2**64 - 1}:0.5", "count": 2}, "seeds go from 0 to"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_computed(wish, words):
    with pytest.raises(UserError, match=words) as caught:
        resolve(Job(**wish), MANIFEST)
    assert "\n" not in str(caught.value)


# Variations.


def test_nothing_of_another_seed_is_the_seeds_own_picture():
    for sampler in ("ddim", "euler_a"):
        own = drawn(Job(seed=5, sampler=sampler))
        assert np.array_equal(drawn(Job(seed=5, sampler=sampler, variation="77:0")), own)
        assert np.array_equal(drawn(Job(seed=5, sampler=sampler, variation="5:0.5")), own)


def test_all_of_another_seed_is_its_picture_where_no_more_noise_is_drawn(tmp_path):
    assert np.array_equal(drawn(Job(seed=5, variation="77:1")), drawn(Job(seed=77)))
    noisy = drawn(Job(seed=5, sampler="euler_a", variation="77:1"))
    assert not np.array_equal(noisy, drawn(Job(seed=77, sampler="euler_a")))
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    image = {"image": str(tmp_path / "a.png"), "strength": 0.75}
    assert np.array_equal(drawn(Job(seed=5, variation="77:1", **image)), drawn(Job(seed=77, **image)))


def test_a_little_of_another_seed_changes_a_little():
    own, other = drawn(Job(seed=5)).astype(int), drawn(Job(seed=77)).astype(int)
    away = [np.abs(drawn(Job(seed=5, variation=f"77:{amount}")).astype(int) - own).mean() for amount in (0.1, 0.4, 0.8)]
    assert 0 < away[0] < away[1] < away[2] < np.abs(other - own).mean() * 1.3


def test_a_count_gives_variations_of_one_seed():
    pictures = [event for event in run(Job(seed=5, variation="77:0.3", count=3)) if hasattr(event, "pixels")]
    assert [(picture.job.seed, picture.job.variation) for picture in pictures] == [
        (5, "77:0.3"), (5, "78:0.3"), (5, "79:0.3"),
    ]  # fmt: skip
    for picture in pictures:
        assert np.array_equal(drawn(picture.job), picture.pixels)
    assert not np.array_equal(pictures[0].pixels, pictures[1].pixels)


@needs_torch
def test_noise_is_mixed_as_torch_mixes_it():
    """Along columns of a channel: what A1111's web UI calls the variation strength."""
    import torch

    a, b = (torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(seed)) for seed in (5, 77))
    angle = torch.acos(torch.nn.functional.cosine_similarity(a, b, dim=1))[:, None]
    wanted = (torch.sin(0.7 * angle) * a + torch.sin(0.3 * angle) * b) / torch.sin(angle)
    found = Mixed(Noise(5), Noise(77), 0.3).draw(1, 8, 6, 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0].transpose(2, 0, 1), wanted.numpy(), atol=1e-5)
    assert 0.9 < found.std() < 1.1


def test_vectors_in_one_line_are_mixed_straight():
    """A picture of one latent's height has columns of one number, with no angle between them but 0 and 180 degrees."""
    a, b = (np.array(row, np.float32).reshape(1, 1, 4, 1) for row in ([1, -2, 3, 4], [2, 2, -3, 4]))
    np.testing.assert_allclose(slerp(a, b, 0.25), 0.75 * a + 0.25 * b, rtol=1e-6)
    assert np.array_equal(slerp(a, b, 0), a) and np.array_equal(slerp(a, b, 1), b)


# Metadata.


def test_the_text_for_other_programs(tmp_path):
    job = resolve(Job("x", seed=5, variation="77:0.25", hires=2.0, hires_strength=0.6, hires_steps=7), MANIFEST)
    text = parameters(job)
    assert "Variation seed: 77, Variation seed strength: 0.25, Denoising strength: 0.6, Hires upscale: 2, " in text
    assert "Hires steps: 7, Hires upscaler: Lanczos" in text and "Tiling" not in text
    assert "Tiling: True" in parameters(job.replace(seamless="both"))
    assert read_job(save_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8), job)) == job
    assert variation_of(job.variation) == (77, 0.25)
