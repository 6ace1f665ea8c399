"""Every sampler and spacing against the diffusers scheduler of that name, on a small made-up model.

The walk around the schedulers is that of StableDiffusionPipeline, StableDiffusionImg2ImgPipeline and
StableDiffusionInpaintPipeline; whole pictures are compared in test_parity.py.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import math

import numpy as np
import pytest

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("diffusers") is None:
    pytest.skip("torch and diffusers are missing", allow_module_level=True)

import diffusers
import torch
from diffusers.schedulers import AysSchedules

from mlxldm.config import ScheduleConfig
from mlxldm.guidance import masked
from mlxldm.noise import TorchCpu
from mlxldm.samplers import SAMPLERS
from mlxldm.schedule import Schedule

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_a": "KDPM2AncestralDiscreteScheduler",
    "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_sde": "DPMSolverSDEScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
NEEDS = {"lms": "scipy", "dpmpp_sde": "torchsde"}
PLAIN = ("model", "leading", "trailing", "linspace")
CURVES = ("karras", "exponential", *(("beta",) if importlib.util.find_spec("scipy") else ()))  # diffusers needs it
CURVED = "euler heun lms dpm2 dpm2_a dpmpp_2s dpmpp_2m dpmpp_2m_sde dpmpp_sde unipc deis".split()
PAIRS = [(s, p) for s in CLASSES for p in (*PLAIN, *(CURVES if s in CURVED else ()))]

SD = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True,
    "clip_sample": False,
}  # fmt: skip
SHAPE = (1, 4, 4, 4)
# text; image to image at two strengths; inpainting from pure noise and from the picture
TASKS = [("text", 1.0), ("image", 0.5), ("image", 0.9), ("mask", 1.0), ("mask", 0.7)]


def model(x, timestep):
    """A network's answer: neither linear nor pointwise, so that what is outside a mask is seen inside."""
    x = x.astype(np.float64)
    near = x + 0.2 * np.roll(x, 1, -1)
    answer = 0.5 * np.tanh(1.7 * near) + near * (0.3 + 0.2 * math.sin(timestep / 150)) + 0.1 * math.cos(timestep / 90)
    return answer.astype(np.float32)


def scheduler(sampler, config, spacing):
    """The diffusers scheduler, as people switch to it from a pipeline's own; some take a while to make."""
    key = sampler, json.dumps(config), spacing
    if key not in MADE:
        MADE.clear()
        MADE[key] = _scheduler(sampler, config, spacing)
    return copy.deepcopy(MADE[key])


MADE = {}


def _scheduler(sampler, config, spacing):
    if importlib.util.find_spec(NEEDS.get(sampler, "torch")) is None:
        pytest.skip(f"{NEEDS[sampler]} is missing, which diffusers needs for {sampler}")
    change = {"algorithm_type": "sde-dpmsolver++"} if sampler == "dpmpp_2m_sde" else {}
    if spacing in CURVES:
        change |= {f"use_{curve}_sigmas": curve == spacing for curve in CURVES}
    elif spacing not in ("model", "ays"):
        change |= {"timestep_spacing": spacing}
    return getattr(diffusers, CLASSES[sampler]).from_config(config, **change)


class BrownianNoise:
    """Stands in for torchsde: one Brownian path a step from the same generator as everything else."""

    def __init__(self, generator):
        self.generator, self.half = generator, None

    def __call__(self, a, b):
        a, b, fresh = float(a), float(b), torch.randn(SHAPE, generator=self.generator)
        if self.half is None:
            self.half = (b, fresh)
            return fresh
        middle, half = self.half
        self.half = None
        return half * ((a - middle) / (a - b)) ** 0.5 + fresh * ((middle - b) / (a - b)) ** 0.5


def theirs(sampler, config, spacing, steps, task, strength, source, mask):
    """Latents and timesteps of diffusers."""
    made = scheduler(sampler, config, spacing)
    if spacing == "ays":
        made.set_timesteps(timesteps=AysSchedules["StableDiffusionTimesteps"])
    else:
        made.set_timesteps(steps)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(SHAPE, generator=generator)
    timesteps = made.timesteps
    if task != "text":
        begin = max(steps - min(int(steps * strength), steps), 0) * made.order
        timesteps = timesteps[begin:]
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(begin)
    pure = task == "text" or (task == "mask" and strength == 1)
    x = noise * made.init_noise_sigma if pure else made.add_noise(source, noise, timesteps[:1])
    if sampler == "dpmpp_sde":
        made.noise_sampler = BrownianNoise(generator)
    more = {"generator": generator} if "generator" in inspect.signature(made.step).parameters else {}
    for i, timestep in enumerate(timesteps):
        answer = torch.from_numpy(model(made.scale_model_input(x, timestep).numpy(), float(timestep)))
        x = made.step(answer, timestep, x, return_dict=False, **more)[0]
        if task == "mask":
            last = i == len(timesteps) - 1
            outside = source if last else made.add_noise(source, noise, torch.tensor([timesteps[i + 1]]))
            x = (1 - mask) * outside + mask * x
    return x.numpy(), [float(timestep) for timestep in timesteps]


def ours(sampler, config, spacing, steps, task, strength, source, mask):
    """Latents and timesteps of ours, in diffusers' channel order."""
    config = ScheduleConfig.from_diffusers(config)
    plan = Schedule(config, "sd1").plan(steps, spacing, sampler, strength)
    stream = TorchCpu(3)
    told = []

    def draw():
        return stream.normal(math.prod(SHAPE)).reshape(SHAPE)

    def denoise(x, sigma):
        timestep, scale = plan.timestep(sigma), 1 / math.sqrt(1 + sigma * sigma)
        told.append(timestep)
        answer = model(x * scale, timestep)
        return x - answer * sigma if config.prediction == "epsilon" else x * scale**2 - answer * (sigma * scale)

    noise = draw()
    if task == "mask":
        denoise = masked(denoise, source, noise, mask)
    pure = task == "text" or (task == "mask" and strength == 1)
    x = noise * plan.start_scale if pure else source + noise * plan.sigmas[0]
    walked = list(SAMPLERS[sampler](denoise, x, plan.sigmas, draw, **plan.options))
    assert len(walked) == plan.steps
    x = walked[-1][0] * plan.end_scale
    return (x * mask + source * (1 - mask) if task == "mask" else x), told


def assert_same(sampler, config, spacing, steps, task, strength, tolerance=5e-5):
    random = np.random.RandomState(1)
    source = random.randn(*SHAPE).astype(np.float32)
    mask = (random.rand(1, 1, 4, 4) > 0.5).astype(np.float32)
    case = sampler, config, spacing, steps, task, strength
    expected, timesteps = theirs(*case, torch.from_numpy(source), torch.from_numpy(mask))
    found, told = ours(*case, source, mask)
    assert found.dtype == np.float32
    near = 1e-3
    if (sampler, steps) == ("dpm2_a", 2):  # from 15 to 0.03 at once: float32 costs diffusers' class five digits there
        near, tolerance = 0.02, 2e-4
    np.testing.assert_allclose(told, timesteps, rtol=0, atol=near, err_msg=f"timesteps of {case}")
    assert np.isfinite(expected).all(), f"diffusers makes no numbers of {case}"
    size = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found / size, expected / size, rtol=0, atol=tolerance, err_msg=str(case))


def tasks(sampler, steps):
    for task, strength in TASKS:
        # diffusers blends with the noise of the step's end while the model hears of its middle: not a thing to repeat
        if int(steps * strength) >= 1 and not (sampler in ("dpm2", "dpm2_a", "dpmpp_sde") and task == "mask"):
            yield task, strength


@pytest.mark.parametrize(("sampler", "spacing"), PAIRS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_latents_are_diffusers(sampler, spacing, prediction):
    config = SD | {"prediction_type": prediction}
    for steps in (1, 2, 3, 7, 10) if prediction == "epsilon" else (3, 8):
        for task, strength in tasks(sampler, steps):
            assert_same(sampler, config, spacing, steps, task, strength)


@pytest.mark.parametrize(
    ("samplers", "spacings", "change"),
    [
        ("ddim pndm", PLAIN, {"skip_prk_steps": False, "set_alpha_to_one": True}),
        ("ddim pndm euler unipc", PLAIN, {"steps_offset": 0, "beta_schedule": "linear"}),
        ("dpmpp_2s dpmpp_2m dpmpp_2m_sde", ("model", "karras"), {"solver_order": 3, "solver_type": "heun"}),
        ("dpmpp_2s dpmpp_2m dpmpp_2m_sde unipc", ("leading", "exponential"), {"solver_order": 3}),
        ("dpmpp_2m unipc deis", ("model",), {"solver_order": 1}),
        ("deis", (*PLAIN, "karras"), {"solver_order": 3}),
        ("deis", ("model", "exponential"), {"solver_order": 3, "lower_order_final": False}),
        ("dpmpp_2m", ("model",), {"lower_order_final": False, "euler_at_final": True}),
        ("euler dpmpp_2s dpmpp_2m dpmpp_2m_sde unipc", (*PLAIN, "karras"), {"final_sigmas_type": "sigma_min"}),
        ("unipc", ("model",), {"final_sigmas_type": "sigma_min", "solver_type": "bh1"}),
        ("dpmpp_2s dpmpp_2m", PLAIN, {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}),
        ("euler heun dpm2 dpmpp_2m unipc deis", ("model",), {"use_karras_sigmas": True}),
        ("ddim ddpm euler_a pndm lcm tcd", ("model",), {"use_karras_sigmas": True}),  # whose classes take no notice
        ("euler dpmpp_2s", ("model",), {"use_exponential_sigmas": True}),
        ("euler dpmpp_2m", ("model",), {f"use_{CURVES[-1]}_sigmas": True}),
        ("dpmpp_2m dpmpp_2m_sde unipc", ("model",), {"use_lu_lambdas": True}),  # unipc's class takes no notice
        ("euler heun lms dpm2_a dpmpp_2s dpmpp_2m dpmpp_sde unipc deis", CURVES, {"sigma_min": 0.05, "sigma_max": 9.0}),
        ("lcm", ("model",), {"original_inference_steps": 20, "timestep_scaling": 5.0}),
        ("tcd", ("model",), {"original_inference_steps": 100}),
        ("ddim euler dpmpp_2m", PLAIN, {"num_train_timesteps": 400}),
        ("ddim euler pndm", ("model",), {"timestep_spacing": "trailing"}),
    ],
)
def test_what_a_config_says_is_done(samplers, spacings, change):
    for sampler in samplers.split():
        for spacing in spacings:
            for steps in (4, 9, 16):
                for task, strength in (("text", 1.0), ("image", 0.6)):
                    assert_same(sampler, SD | change, spacing, steps, task, strength)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2s", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("spacing", ["model", "leading", "trailing"])  # of the config: it says how large noise begins
def test_aligned_steps_are_diffusers_table(sampler, spacing):
    config = SD if spacing == "model" else SD | {"timestep_spacing": spacing}
    for task, strength in tasks(sampler, 10):
        assert_same(sampler, config, "ays", 10, task, strength)


@pytest.mark.parametrize(
    ("sampler", "steps"),
    # SDXL-Turbo; SDXL-Lightning; Hyper-SD; LCM-LoRA and LCM models; TCD-LoRA
    [("euler_a", (1, 4)), ("euler", (1, 2, 4, 8)), ("ddim", (1, 2, 4, 8)), ("lcm", (1, 4, 8)), ("tcd", (1, 4, 8))],
)
def test_distilled_models_are_drawn_as_their_authors_say(sampler, steps):
    """They are Stable Diffusion XL, whose own config says leading, with `timestep_spacing="trailing"`."""
    config = SD | {"timestep_spacing": "leading", "interpolation_type": "linear", "sample_max_value": 1.0}
    for count in steps:
        for task, strength in tasks(sampler, count):
            assert_same(sampler, config, "trailing", count, task, strength)


@pytest.mark.parametrize(
    "sampler", ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd"]
)
def test_zero_terminal_snr(sampler):
    """At a sigma of 4096, float32 has 2e-4 left; in diffusers' Euler that ends up in the latents."""
    config = SD | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    for steps in (1, 4, 11):
        for task, strength in tasks(sampler, steps):
            assert_same(sampler, config, "trailing", steps, task, strength, tolerance=2e-3)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpmpp_2m"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_cfgpp_is_a_step_of_diffusers_from_the_unguided_guess_and_the_way_to_the_guided(sampler, spacing):
    """So the paper has it; diffusers itself does not."""
    guidance, steps = 0.6, 7

    def free(x, timestep):
        return model(0.8 * x, timestep + 200)

    made = scheduler(sampler, SD, spacing)
    made.set_timesteps(steps)
    alphas = made.alphas_cumprod
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(SHAPE, generator=generator) * made.init_noise_sigma
    more = {"generator": generator} if "generator" in inspect.signature(made.step).parameters else {}
    for i, timestep in enumerate(made.timesteps):
        told = made.scale_model_input(y, timestep).numpy()
        one, two = (torch.from_numpy(answer(told, float(timestep))) for answer in (model, free))
        if sampler == "ddim":
            before = int(timestep) - 1000 // steps
            alpha, after = alphas[int(timestep)], alphas[before] if before >= 0 else made.final_alpha_cumprod
            sigma = ((1 - alpha) / alpha) ** 0.5
        else:
            sigma, after = made.sigmas[i], 1 / (1 + made.sigmas[i + 1] ** 2)
        # in the units of the scheduler, which are those of x at unit variance but for Euler's
        y = made.step(two, timestep, y, return_dict=False, **more)[0]
        y = y + (two - one) * (guidance * sigma * (1.0 if sampler.startswith("euler") else after**0.5))

    plan = Schedule(ScheduleConfig.from_diffusers(SD)).plan(steps, spacing, f"{sampler}_cfgpp")
    stream = TorchCpu(3)

    def draw():
        return stream.normal(math.prod(SHAPE)).reshape(SHAPE)

    def denoise(x, sigma):
        told = x / math.sqrt(1 + sigma * sigma), plan.timestep(sigma)
        one, two = model(*told), free(*told)
        return x - (two + (one - two) * guidance) * sigma, x - two * sigma

    *_, (x, _) = SAMPLERS[f"{sampler}_cfgpp"](denoise, draw() * plan.start_scale, plan.sigmas, draw, **plan.options)
    np.testing.assert_allclose(x * plan.end_scale, y.numpy(), rtol=0, atol=1e-4)


def test_these_comparisons_can_fail():
    """The wrong spacing, strength, prediction or last level are far outside the tolerance."""
    random = np.random.RandomState(1)
    source, mask = random.randn(*SHAPE).astype(np.float32), np.ones((1, 1, 4, 4), np.float32)
    for sampler in ("ddim", "euler", "dpmpp_2m", "pndm"):
        expected, _ = theirs(sampler, SD, "leading", 6, "image", 0.5, torch.from_numpy(source), torch.from_numpy(mask))
        for config, spacing, strength in [
            (SD, "trailing", 0.5),
            (SD, "leading", 0.7),
            (SD | {"prediction_type": "v_prediction"}, "leading", 0.5),
            (SD | {"steps_offset": 0}, "leading", 0.5),
        ]:
            found, _ = ours(sampler, config, spacing, 6, "image", strength, source, mask)
            assert np.abs(found - expected).max() > 1e-3, (sampler, config, spacing, strength)
    expected, _ = theirs("ddim", SD, "leading", 6, "text", 1.0, None, None)
    found, _ = ours("ddim", SD | {"set_alpha_to_one": True}, "leading", 6, "text", 1.0, None, None)
    assert np.abs(found - expected).max() > 1e-3
