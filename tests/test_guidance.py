"""What guidance may do beside its scale: give contrast back, and keep to a part of the steps.

On a made-up model in NumPy, and whole pictures against diffusers' pipelines on both backends.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
from conftest import needs_mlx, needs_torch
from PIL import Image
from test_generate import MANIFEST, Fake, run

from mlxldm.errors import UserError
from mlxldm.generate import resolve
from mlxldm.guidance import Interval, guided, levels
from mlxldm.job import Job
from mlxldm.samplers import CFGPP, SAMPLERS
from mlxldm.schedule import Schedule


class Asked(Fake):
    """Remembers at which timesteps it was given a negative prompt."""

    def __init__(self):
        super().__init__()
        self.with_negative, self.without = [], []

    def predict(self, x, timestep, cond, more=None):
        (self.without if cond[1] is None else self.with_negative).append(timestep)
        return super().predict(x, timestep, cond, more)


@pytest.mark.parametrize(
    ("start", "stop", "guided_steps"),
    [(None, None, range(10)), (0.2, None, range(2, 10)), (None, 0.7, range(7)), (0.3, 0.6, range(3, 6)),
     (0.25, 0.31, [3]), (0.0, 1.0, range(10))],
)  # fmt: skip
def test_guidance_keeps_to_its_part_of_the_steps(start, stop, guided_steps):
    model = Asked()
    job = Job(seed=1, steps=10, sampler="euler", guidance=5.0, guidance_start=start, guidance_stop=stop, count=2)
    run(job, model)
    timesteps = Schedule(MANIFEST.schedule).plan(10, "model", "euler").timesteps
    expected = [timesteps[i] for i in guided_steps]
    assert model.with_negative == expected * 2
    assert sorted(model.with_negative + model.without) == sorted(timesteps * 2)
    assert [text[1] for text in model.texts] == ["", None][: 1 if len(expected) == 10 else 2]  # read once, at most


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_guides_in_some_steps_and_not_in_others(sampler):
    model = Asked()
    strong = 1.0 if sampler in CFGPP else 5.0
    run(Job(seed=1, steps=8, sampler=sampler, guidance=strong, guidance_start=0.25, guidance_stop=0.75), model)
    assert model.with_negative and model.without
    low, high = min(model.with_negative), max(model.with_negative)
    assert all(not low < timestep < high for timestep in model.without)
    assert min(model.without) < low and max(model.without) > high


def test_half_guided_is_neither_guided_nor_not():
    def pixels(**wish):
        return run(Job("a boat", seed=1, steps=6, guidance=6.0).replace(**wish))[-1].pixels.astype(int)

    found = [pixels(), pixels(guidance=1.0), pixels(guidance_stop=0.5), pixels(guidance_start=0.5)]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one - other).max() > 3


def test_rescaled_guidance_has_the_deviation_of_the_prompts_answer():
    plan = Schedule(MANIFEST.schedule).plan(4)
    random = np.random.RandomState(0)
    told, without, x = random.randn(3, 1, 8, 8, 4).astype(np.float32)

    class Two(Fake):
        def predict(self, x, timestep, cond, more=None):
            return told, without

    sigma = plan.sigmas[1]

    def answer(rescale):
        return (x - guided(Two(), "text", plan, 6.0, rescale=rescale)(x, sigma)) / sigma

    plain = without + (told - without) * 6
    np.testing.assert_allclose(answer(0.0), plain, atol=1e-4)
    np.testing.assert_allclose(answer(1.0).std(), told.std(), rtol=1e-4)
    np.testing.assert_allclose(answer(0.5), (plain + answer(1.0)) / 2, atol=1e-4)
    assert plain.std() > 3 * told.std()


def test_a_walk_that_ends_where_it_begins_is_a_job_too():
    assert resolve(Job(steps=1, sampler="deis", spacing="karras"), MANIFEST).steps == 1


def test_levels_of_a_walk():
    plan = Schedule(MANIFEST.schedule).plan(4, "model", "ddim")
    assert levels(plan, 0.0, 1.0) == (plan.sigmas[0], plan.sigmas[4])
    assert levels(plan, 0.25, 0.75) == (plan.sigmas[1], plan.sigmas[3])
    interval = Interval(*levels(plan, 0.25, 0.75), None)
    assert [sigma in interval for sigma in plan.sigmas[:4]] == [False, True, True, False]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"guidance_rescale": 1.2}, "guidance rescale is 1.2.* between 0 and 1"),
        ({"guidance_rescale": math.nan}, "guidance rescale is nan"),
        ({"guidance_start": -0.1}, "guidance start is -0.1"),
        ({"guidance_stop": 2.0}, "guidance stop is 2.0"),
        ({"guidance_start": 0.5, "guidance_stop": 0.5}, "from 0.5 to 0.5 of 4 steps is guidance in none"),
        ({"guidance_start": 0.8, "guidance_stop": 0.2}, "from 0.8 to 0.2 of 4 steps is guidance in none"),
        ({"guidance_start": 0.3, "guidance_stop": 0.4}, "from 0.3 to 0.4 of 4 steps is guidance in none"),
        ({"guidance_start": 1.0}, "from 1 to 1 of 4 steps"),
        ({"guidance_stop": 0.0}, "from 0 to 0 of 4 steps"),
        ({"guidance": 1.0, "guidance_rescale": 0.5}, "a guidance rescale, but a guidance of 1 is none"),
        ({"sampler": "euler_cfgpp", "guidance": 7.5}, "euler_cfgpp takes a guidance from 0 to 1, not 7.5"),
        ({"guidance": 0.0, "guidance_stop": 0.5}, "a guidance stop, but a guidance of 0 is none"),
    ],
)
def test_what_cannot_be_guided_is_said(wish, words):
    with pytest.raises(UserError, match=words) as caught:
        resolve(Job(**wish), MANIFEST)
    assert "\n" not in str(caught.value)


def test_cfgpp_goes_between_the_two_answers_and_walks_on_from_the_one_without():
    """One step down from the first level of a walk, by hand."""
    model = Fake()
    run(Job("a boat", seed=1, steps=2, sampler="euler_cfgpp", guidance=0.25), model)
    assert model.texts == [("a boat", "", 64, 64)]  # asked for without guidance above 1
    plan = Schedule(MANIFEST.schedule).plan(2, "model", "euler_cfgpp")
    (first, timestep), (second, _) = model.calls
    a, b = plan.sigmas[:2]
    told, without = Fake().predict(first, timestep, ("a boat", ""))
    x = first * math.sqrt(1 + a * a)
    expected = x - (without + (told - without) * 0.25) * a + without * b
    np.testing.assert_allclose(second * math.sqrt(1 + b * b), expected, rtol=1e-4, atol=1e-4)


def test_cfgpp_has_a_guidance_of_its_own():
    assert resolve(Job(sampler="ddim_cfgpp"), MANIFEST).guidance == 0.6
    distilled = dataclasses.replace(MANIFEST, defaults=dataclasses.replace(MANIFEST.defaults, guidance=1.0))
    assert resolve(Job(sampler="ddim_cfgpp"), distilled).guidance == 1.0
    assert resolve(Job(sampler="ddim_cfgpp", guidance=0.0, guidance_stop=0.5), MANIFEST).guidance == 0
    pixels = [run(Job("a boat", seed=1, sampler="ddim_cfgpp", guidance=g))[-1].pixels for g in (0.0, 0.5, 1.0)]
    assert all(np.abs(one.astype(int) - other).max() > 3 for one, other in itertools.combinations(pixels, 2))


def test_cfgpp_leaves_what_is_outside_a_mask(tmp_path):
    random = np.random.RandomState(0)
    Image.fromarray(random.randint(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "picture.png")
    white = np.zeros((64, 64), np.uint8)
    white[:, 32:] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    job = Job(seed=4, image=str(tmp_path / "picture.png"), mask=str(tmp_path / "mask.png"), sampler="dpmpp_2m_cfgpp")
    plain, guided_ = Fake(), Fake()
    run(job, guided_)
    run(job.replace(sampler="euler"), plain)
    np.testing.assert_allclose(guided_.latents[0][:, :, :4], plain.latents[0][:, :, :4], atol=1e-5)
    assert np.abs(guided_.latents[0][:, :, 4:] - plain.latents[0][:, :, 4:]).max() > 0.05


def test_a_model_that_is_guided_twice_refuses_it(tmp_path):
    parts = {**MANIFEST.parts, "denoiser": dataclasses.replace(MANIFEST.denoiser, in_channels=8)}
    manifest = dataclasses.replace(MANIFEST, task="edit", parts=parts)
    with pytest.raises(UserError, match="a guidance rescale, which only models that are guided by words alone take"):
        resolve(Job(guidance_rescale=0.5), manifest)
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    with pytest.raises(UserError, match="euler_cfgpp is for models that are guided by words alone; little is none"):
        resolve(Job(sampler="euler_cfgpp", image=str(tmp_path / "picture.png")), manifest)


@pytest.mark.parametrize("backend", [pytest.param("mlx", marks=needs_mlx), pytest.param("torch", marks=needs_torch)])
def test_a_backends_deviation_is_numpys(backend, little_folder):
    import mlxldm

    model = mlxldm.load(str(little_folder), backend=backend, device="cpu", precision="float32")
    x = np.random.RandomState(0).randn(1, 6, 5, 4).astype(np.float32) * 3
    found = model.numpy(model.deviation(model.array(x)))
    assert found.shape == (1, 1, 1, 1)
    np.testing.assert_allclose(found.item(), x.std(), rtol=1e-6)


@needs_mlx
def test_metal_has_what_the_deviation_needs():
    pytest.importorskip("mlxldm.on_mlx")
    import mlx.core as mx
    from test_metal_safe import complaints, primitives

    from mlxldm.on_mlx.model import MlxModel

    graph = primitives(lambda x: MlxModel.deviation(None, x), mx.ones((1, 8, 8, 4)))
    assert graph and complaints(graph, mx.float32) == []


# Against diffusers.

PICTURES = [
    ("sd1", "text", "ddim", {"guidance_rescale": 0.7}),
    ("sd1-v", "text", "euler", {"guidance_rescale": 0.5}),
    ("sdxl", "text", "euler", {"guidance_rescale": 0.7}),
    ("sdxl", "image", "dpmpp_2m", {"guidance_rescale": 1.0}),
    ("sd1", "text", "euler", {"guidance_stop": 0.2}),
    ("sd1", "text", "dpmpp_2m", {"guidance_start": 0.2}),
    ("sdxl", "text", "ddim", {"guidance_start": 0.2, "guidance_stop": 0.8}),
]


@pytest.fixture(scope="module")
def studio(tiny_folder, tmp_path_factory):
    from test_parity import Studio

    class Timed(Studio):
        """diffusers' pipelines read their guidance once a step, and a guidance of 1 is none."""

        def _pipe(self, case):
            pipe, wish, read = super()._pipe(case), dict(case.more), itertools.count()
            first = round(wish.get("guidance_start", 0) * case.steps)
            end = round(wish.get("guidance_stop", 1) * case.steps)

            class Changing(type(pipe)):
                @property
                def guidance_scale(self):
                    return case.guidance if first <= next(read) < end else 1.0

            changing = copy.copy(pipe)
            changing.__class__ = Changing
            return changing

    return Timed(tiny_folder, tmp_path_factory.mktemp("guidance"))


@needs_torch
@needs_mlx
@pytest.mark.parametrize("sampler", ["ddim_cfgpp", "euler_a_cfgpp"])
def test_both_backends_draw_the_same_with_cfgpp(studio, sampler):
    from test_parity import APART, BAR, Case, psnr

    case = Case(sampler, kind="sd1", size=(64, 64), guidance=1.0, steps=5)
    mlx, torch = (studio.draw(who, case) for who in ("mlx", "torch"))
    assert psnr(mlx, torch) >= BAR
    for other in ({"seed": 8}, {"guidance": 0.0}, {"sampler": sampler.removesuffix("_cfgpp")}):
        assert psnr(studio.draw("mlx", dataclasses.replace(case, **other)), mlx) <= APART, other


@needs_torch
@needs_mlx
@pytest.mark.parametrize(("kind", "task", "sampler", "wish"), PICTURES)
def test_the_picture_is_that_of_diffusers(studio, kind, task, sampler, wish):
    from test_parity import APART, BAR, Case, psnr

    strength = None if task == "text" else 0.8
    plain = Case(sampler, task=task, kind=kind, size=(64, 64), guidance=6.0, steps=5, strength=strength)
    case = dataclasses.replace(plain, more=tuple(wish.items()))
    found = {who: studio.draw(who, case) for who in ("diffusers", "mlx", "torch")}
    print({who: round(psnr(found[who], found["diffusers"]), 1) for who in ("mlx", "torch")})
    assert min(psnr(found[who], found["diffusers"]) for who in ("mlx", "torch")) >= BAR
    assert psnr(studio.draw("mlx", plain), found["mlx"]) <= APART
