"""The way of a job, on a made-up model in NumPy: what is drawn when, who is called how often, what comes out."""

from __future__ import annotations

import dataclasses
import math

import little
import numpy as np
import pytest
from PIL import Image

from mlxldm.adapters import Weights
from mlxldm.errors import UserError
from mlxldm.generate import Picture, Step, generate, resolve
from mlxldm.guidance import guided, masked
from mlxldm.job import Job
from mlxldm.noise import Noise
from mlxldm.plan import Machine
from mlxldm.prompt import Reader
from mlxldm.schedule import Schedule

MANIFEST = little.Little().manifest  # 64 × 64 pixels, 4 steps of ddim, guidance 3; latents are 8 × 8 × 4


class Fake:
    """A `Model` that remembers what it was asked."""

    machine = Machine("torch", "cpu", "float32")

    def __init__(self, manifest=MANIFEST, blur=0.25):
        self.manifest, self.blur = manifest, blur
        self.reader = Reader(little.Little())
        self.texts, self.calls, self.latents, self.evaluated = [], [], [], 0
        self.weights = Weights()

    def learn(self, words):
        assert not words

    def array(self, x):
        assert x.dtype == np.float32
        return x

    def numpy(self, x):
        return np.asarray(x, np.float32)

    def encode_text(self, prompt, negative, width, height, zeros=False):
        self.zeros = zeros
        words = prompt.words.first, negative and negative.words.first
        self.texts.append((*words, width, height))
        return words

    def predict(self, x, timestep, cond, more=None):
        assert x.dtype == np.float32 and type(timestep) is float
        self.calls.append((x, timestep))
        answer = (np.tanh(x + 0.3 * np.roll(x, 1, 2)) * 0.5 + len(cond[0]) * 0.01).astype(np.float32)
        return answer, None if cond[1] is None else answer * 0.5

    def deviation(self, x):
        return x.std(keepdims=True)

    def encode_image(self, pixels):
        assert pixels.shape[3] == 3 and np.abs(pixels).max() <= 1
        mean = pixels[:, ::8, ::8][..., [0, 1, 2, 0]]
        return mean, np.full_like(mean, self.blur)

    def decode(self, latent):
        self.latents.append(latent)
        return latent[..., :3].repeat(8, 1).repeat(8, 2)

    def evaluate(self, x):
        self.evaluated += 1
        return x


@pytest.fixture
def files(tmp_path):
    """A picture of 70 × 90 pixels, and a mask whose right half is to be painted anew."""
    random = np.random.RandomState(0)
    Image.fromarray(random.randint(0, 256, (90, 70, 3), np.uint8)).save(tmp_path / "picture.png")
    mask = np.zeros((90, 70), np.uint8)
    mask[:, 35:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def run(job, model=None):
    return list(generate(model or Fake(), job))


def test_steps_come_and_then_the_picture_once_for_each_seed():
    events = run(Job("a boat", seed=5, count=2))
    assert [type(event) for event in events] == [Step] * 4 + [Picture] + [Step] * 4 + [Picture]
    steps = [event for event in events if isinstance(event, Step)]
    assert [(step.index, step.step, step.of) for step in steps] == [(i, n, 4) for i in (0, 1) for n in (1, 2, 3, 4)]
    assert steps[0].sigma > steps[1].sigma > steps[2].sigma > steps[3].sigma > 0
    assert steps[0].guess.shape == (1, 8, 8, 4) and steps[0].seconds >= 0
    first, second = events[4], events[9]
    assert first.pixels.shape == (64, 64, 3) and first.pixels.dtype == np.uint8
    assert (first.job.seed, second.job.seed, first.job.count, second.job.count) == (5, 6, 1, 1)
    assert np.abs(first.pixels.astype(int) - second.pixels).max() > 20


def test_a_pictures_job_makes_it_again(files):
    job = Job("a boat", seed=2**32 - 1, count=2, sampler="euler_a", image=str(files / "picture.png"))
    picture = run(job)[-1]
    assert picture.job == resolve(picture.job, MANIFEST)
    np.testing.assert_array_equal(run(picture.job)[-1].pixels, picture.pixels)


def test_the_text_is_encoded_once_and_the_model_finishes_every_step():
    model = Fake()
    run(Job("a boat", "rain", seed=1, count=3), model)
    assert model.texts == [("a boat", "rain", 64, 64)]
    assert model.evaluated == 3 * (1 + 4) and len(model.calls) == 12  # where each begins, and its steps


@pytest.mark.parametrize(
    ("sampler", "steps", "calls"), [("ddim", 5, 5), ("heun", 5, 9), ("pndm", 8, 17), ("dpmpp_sde", 5, 9), ("lcm", 5, 5)]
)
def test_step_counts_and_model_calls(sampler, steps, calls):
    model = Fake()
    events = run(Job(seed=1, sampler=sampler, steps=steps), model)
    done = [event for event in events if isinstance(event, Step)]
    assert len(model.calls) == calls
    assert [step.step for step in done] == list(range(1, done[0].of + 1))
    assert done[0].of == (calls if sampler == "pndm" else steps)  # little's config has Runge-Kutta: a step is a call


@pytest.mark.parametrize(("guidance", "negative"), [(0.0, None), (1.0, None), (1.01, "rain"), (7.5, "rain")])
def test_guidance_above_one_asks_for_the_negative_prompt(guidance, negative):
    model = Fake()
    run(Job("a boat", "rain", seed=1, guidance=guidance), model)
    assert model.texts[0][1] == negative


@pytest.mark.parametrize(("given", "knows", "zeros"), [(None, True, True), ("", True, False), (None, False, False)])
def test_a_negative_prompt_not_given_is_zeros_where_the_model_says_so(given, knows, zeros):
    model = Fake(dataclasses.replace(MANIFEST, zeros_for_empty=knows))
    run(Job("a boat", given, seed=1), model)
    assert model.texts[0][1] == "" and model.zeros == zeros


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_guided_gives_the_clean_latent_of_each_kind_of_answer(prediction):
    config = dataclasses.replace(MANIFEST.schedule, prediction=prediction)
    plan = Schedule(config).plan(4)
    clean, noise = np.random.RandomState(0).randn(2, 1, 8, 8, 4).astype(np.float32)
    sigma = plan.sigmas[1]
    alpha = 1 / math.sqrt(1 + sigma**2)
    answer = {"epsilon": noise, "v": noise * alpha - clean * (sigma * alpha), "sample": clean}[prediction]

    class Perfect(Fake):
        def predict(self, x, timestep, cond, more=None):
            np.testing.assert_allclose(x, clean * alpha + noise * (sigma * alpha), atol=1e-5)
            assert timestep == plan.timesteps[1]
            return (answer, None) if cond is None else (answer, answer - 1)

    x = clean + noise * sigma
    np.testing.assert_allclose(guided(Perfect(), None, plan, 1.0)(x, sigma), clean, atol=1e-5)
    scale = {"epsilon": -sigma, "v": -sigma * alpha, "sample": 1.0}[prediction]  # of the answer in the guess
    pushed = guided(Perfect(), "text", plan, 4.0)(x, sigma)
    np.testing.assert_allclose(pushed, clean + 3 * scale, atol=1e-4)


def test_an_image_job_starts_from_the_picture_with_noise_in_diffusers_order(files):
    """First the autoencoder's own sample, then the noise."""
    model = Fake()
    job = Job(seed=9, image=str(files / "picture.png"), strength=0.5, sampler="euler", guidance=1.0)
    events = run(job, model)
    assert events[-1].pixels.shape == (88, 64, 3)  # the picture's size, cut to whole latents
    assert len([event for event in events if isinstance(event, Step)]) == 2
    noise = Noise(9)
    sample, first = noise.draw(1, 11, 8, 4), noise.draw(1, 11, 8, 4)
    assert np.abs(sample - first).max() > 1
    sigma = events[0].sigma
    x, _ = model.calls[0]
    pixels = np.asarray(Image.open(files / "picture.png").resize((64, 88), Image.Resampling.LANCZOS), np.float32)
    mean = (pixels / 127.5 - 1)[None, ::8, ::8][..., [0, 1, 2, 0]]
    expected = (mean + 0.25 * sample + sigma * first) / math.sqrt(1 + sigma**2)
    np.testing.assert_allclose(x, expected, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "heun", "pndm", "dpmpp_2m", "unipc", "lcm"])
@pytest.mark.parametrize("strength", [None, 0.75])
def test_outside_the_mask_the_latent_stays_the_pictures(files, sampler, strength):
    model = Fake()
    job = Job(
        seed=4, image=str(files / "picture.png"), mask=str(files / "mask.png"), width=64, height=64,
        sampler=sampler, steps=8, strength=strength, guidance=1.0,
    )  # fmt: skip
    run(job, model)
    noise = Noise(4)
    pixels = np.asarray(Image.open(files / "picture.png").resize((64, 64), Image.Resampling.LANCZOS), np.float32)
    source = (pixels / 127.5 - 1)[None, ::8, ::8][..., [0, 1, 2, 0]] + 0.25 * noise.draw(1, 8, 8, 4)
    left = np.s_[:, :, :3]
    np.testing.assert_allclose(model.latents[0][left], source[left], atol=1e-5)
    assert np.abs(model.latents[0][:, :, 5:] - source[:, :, 5:]).max() > 0.05

    first = noise.draw(1, 8, 8, 4)
    plan = Schedule(MANIFEST.schedule).plan(8, "model", sampler, strength or 1.0)
    alphas = Schedule(MANIFEST.schedule).alphas_cumprod
    for i, (x, timestep) in enumerate(model.calls):
        a = alphas[round(timestep)]
        if i == 0 and strength is None:  # from nothing but noise, everywhere
            start = first * plan.start_scale / math.sqrt(1 + plan.sigmas[0] ** 2)
            np.testing.assert_allclose(x, start, atol=1e-4)
        elif timestep == round(timestep):
            expected = math.sqrt(a) * source[left] + math.sqrt(1 - a) * first[left]
            np.testing.assert_allclose(x[left], expected, atol=1e-3)


def test_masked_shows_the_source_and_answers_with_it():
    source, noise, x = (np.full((1, 2, 2, 1), value, np.float32) for value in (5, 1, 7))
    mask = np.array([[[[1], [0]], [[0], [1]]]], np.float32)
    seen = []
    inside = masked(lambda x, sigma: seen.append(x) or x * 0, source, noise, mask)
    first = inside(x, 3.0)
    second = inside(x, 2.0)
    np.testing.assert_array_equal(seen[0], x)
    np.testing.assert_array_equal(seen[1][0, ..., 0], [[7, 7], [7, 7]])  # 5 + 2 · 1 outside
    inside(x, 1.0)
    np.testing.assert_array_equal(seen[2][0, ..., 0], [[7, 6], [6, 7]])
    for guess in (first, second):
        np.testing.assert_array_equal(guess[0, ..., 0], [[0, 5], [5, 0]])


def test_a_gpus_noise_gives_another_picture():
    cpu, gpu = (run(Job(seed=1, noise=noise))[-1].pixels.astype(int) for noise in ("torch-cpu", "nvidia"))
    assert np.abs(cpu - gpu).max() > 20


def test_resolve_fills_in_the_models_own_and_leaves_zero_alone():
    job = resolve(Job("x"), MANIFEST)
    own = MANIFEST.defaults
    assert (job.width, job.height, job.steps, job.guidance) == (own.width, own.height, own.steps, own.guidance)
    assert (job.sampler, job.spacing, job.strength) == (own.sampler, own.spacing, None)
    assert 0 <= job.seed < 2**32 and resolve(job, MANIFEST) == job
    job = resolve(Job(seed=0, guidance=0.0), MANIFEST)
    assert job.seed == 0 and job.guidance == 0
    assert resolve(Job(), MANIFEST).seed != resolve(Job(), MANIFEST).seed


def test_resolve_knows_diffusers_strengths_and_the_pictures_size(files):
    image, mask = str(files / "picture.png"), str(files / "mask.png")
    job = resolve(Job(image=image), MANIFEST)
    assert (job.width, job.height, job.strength) == (64, 88, 0.8)
    assert resolve(Job(image=image, mask=mask), MANIFEST).strength == 1.0
    job = resolve(Job(image=image, width=128), MANIFEST)
    assert (job.width, job.height) == (128, 88)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"width": 65}, "width is 65.* multiple of 8, for example 64"),
        ({"height": 0}, "height is 0"),
        ({"width": -64}, "width is -64"),
        ({"steps": 0}, "0 steps"),
        ({"steps": -3}, "-3 steps"),
        ({"steps": 5000}, "5000 steps"),
        ({"count": 0}, "count is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64 - 1, "count": 2}, "seed"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"sampler": "eulr"}, "no sampler 'eulr'. Did you mean 'euler'"),
        ({"spacing": "karras2"}, "no spacing 'karras2'. Did you mean 'karras'"),
        ({"sampler": "lcm", "spacing": "karras"}, "lcm"),
        ({"noise": "mps"}, "no noise 'mps'"),
        ({"mask": "mask.png"}, "a mask but no image"),
        ({"strength": 0.5}, "a strength but no image"),
        ({"image": "picture.png", "strength": 0.0}, "strength is 0.0"),
        ({"image": "picture.png", "strength": 1.5}, "strength is 1.5"),
        ({"image": "picture.png", "strength": math.nan}, "strength is nan"),
        ({"image": "picture.png", "strength": 0.1}, "none of the 4 steps"),
        ({"image": "nowhere.png"}, "no file"),
        ({"image": "text.png"}, "not a picture"),
        ({"image": "picture.png", "mask": "nowhere.png"}, "no file"),
        ({"image": "picture.png", "mask": "text.png"}, "not a picture"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_computed(files, wish, words):
    wish = {key: str(files / value) if key in ("image", "mask") else value for key, value in wish.items()}
    model = Fake()
    with pytest.raises(UserError, match=words) as caught:
        generate(model, Job(**wish))  # at the call, not at the first step
    assert "\n" not in str(caught.value) and model.texts == []


def test_a_picture_smaller_than_a_latent_is_refused(tmp_path):
    Image.new("RGB", (7, 40)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match="smaller than 8"):
        resolve(Job(image=str(tmp_path / "small.png")), MANIFEST)


def test_a_model_whose_own_sampler_is_not_here_can_be_given_another():
    manifest = dataclasses.replace(MANIFEST, defaults=dataclasses.replace(MANIFEST.defaults, sampler="dpm3"))
    with pytest.raises(UserError, match="no sampler 'dpm3', which little asks for"):
        resolve(Job(), manifest)
    assert resolve(Job(sampler="euler"), manifest).sampler == "euler"


def test_a_model_whose_channels_are_not_those_of_its_task_is_refused():
    parts = {**MANIFEST.parts, "denoiser": dataclasses.replace(MANIFEST.denoiser, in_channels=9)}
    manifest = dataclasses.replace(MANIFEST, parts=parts)
    with pytest.raises(UserError, match="takes 9 channels where a model for text-to-image takes 4"):
        resolve(Job(), manifest)


def test_numbers_that_overflowed_are_not_shown_as_a_black_picture():
    class Broken(Fake):
        def decode(self, latent):
            return super().decode(latent) * np.float32(np.nan)

    with pytest.raises(UserError, match="precision"):
        run(Job(seed=1), Broken())
