"""Steps, spacings and sigmas that are known by heart, and what a schedule refuses."""

from __future__ import annotations

import importlib.util
import math
from itertools import pairwise

import numpy as np
import pytest

from mlxldm.config import ScheduleConfig
from mlxldm.errors import UserError
from mlxldm.samplers import SAMPLERS
from mlxldm.schedule import SPACINGS, Schedule, _beta_quantiles

SD = ScheduleConfig(
    sampler="pndm", spacing=None, steps_offset=1, set_alpha_to_one=False, options={"skip_prk_steps": True}
)


def plan(steps, spacing="model", sampler="euler", strength=1.0, config=SD, family="sd1"):
    return Schedule(config, family).plan(steps, spacing, sampler, strength)


PPF = {
    1e-12: 1.8558824624914097e-20, 1e-06: 1.8558824624053043e-10, 0.01: 0.0008612388215429059, 0.1: 0.03958440558878085,
    0.25: 0.17568037865269498, 0.4: 0.3627009907532143, 0.5: 0.5000000000000001,
    0.75: 0.824319621347305, 0.9: 0.9604155944112192, 0.999: 0.9999814412614826,
}  # fmt: skip


def test_stable_diffusions_noise_goes_from_a_thirty_fourth_to_fifteen():
    sigmas = plan(2, "linspace").sigmas
    assert sigmas[0] == pytest.approx(14.6146, abs=1e-4)
    assert sigmas[1] == pytest.approx(0.029167, abs=1e-6)
    assert sigmas[2] == 0


@pytest.mark.parametrize(
    ("sampler", "spacing", "steps", "expected"),
    [
        ("ddim", "model", 5, [801, 601, 401, 201, 1]),
        ("ddim", "trailing", 4, [999, 749, 499, 249]),
        ("ddim", "linspace", 4, [999, 666, 333, 0]),
        ("pndm", "model", 4, [751, 501, 501, 251, 1]),  # PLMS makes its first step twice
        ("euler", "model", 5, [999, 749.25, 499.5, 249.75, 0]),
        ("euler", "leading", 5, [801, 601, 401, 201, 1]),
        ("heun", "trailing", 2, [999, 499]),
        ("dpmpp_2m", "model", 4, [999, 749, 500, 250]),
        ("dpmpp_2m", "leading", 4, [801, 601, 401, 201]),
        ("dpmpp_2s", "leading", 4, [999, 749, 500, 250]),  # diffusers' class has one spacing
        ("unipc", "trailing", 4, [999, 749, 499, 249]),
        ("lcm", "model", 4, [999, 759, 499, 259]),
        ("tcd", "model", 4, [999, 759, 499, 259]),
        ("dpm2", "trailing", 2, [999, 499]),
        ("deis", "model", 4, [999, 749, 500, 250]),
        ("euler", "sgm_uniform", 4, [999, 749.25, 499.5, 249.75]),
        ("dpmpp_2m", "ays", 10, [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]),
    ],
)
def test_timesteps(sampler, spacing, steps, expected):
    assert plan(steps, spacing, sampler).timesteps == pytest.approx(expected)


def test_karras_is_even_in_the_seventh_root_between_the_ends_of_the_spacing():
    sigmas = np.array(plan(8, "karras").sigmas)
    assert sigmas[0] == pytest.approx(14.6146, abs=1e-4) and sigmas[-2] == pytest.approx(0.029167, abs=1e-6)
    np.testing.assert_allclose(np.diff(sigmas[:-1] ** (1 / 7), 2), 0, atol=1e-6)


def test_exponential_is_even_in_the_logarithm():
    np.testing.assert_allclose(np.diff(np.log(plan(8, "exponential").sigmas[:-1]), 2), 0, atol=1e-5)


def test_beta_quantiles_are_known_ones():
    """Those of a shape of one half, the arcsine distribution, by heart; those of 0.6 from scipy 1.17's beta.ppf."""
    shares = np.linspace(0, 1, 101)
    np.testing.assert_allclose(_beta_quantiles(shares, 0.5), np.sin(np.pi / 2 * shares) ** 2, rtol=0, atol=1e-15)
    np.testing.assert_allclose(_beta_quantiles(shares, 1.0), shares, rtol=0, atol=1e-15)
    np.testing.assert_allclose(_beta_quantiles(np.array(list(PPF)), 0.6), list(PPF.values()), rtol=0, atol=1e-15)


def test_beta_crowds_the_steps_at_both_ends():
    sigmas = np.array(plan(9, "beta").sigmas)
    assert sigmas[0] == pytest.approx(14.6146, abs=1e-4) and sigmas[-2] == pytest.approx(0.029167, abs=1e-6)
    np.testing.assert_allclose(sigmas[:-1] + sigmas[-2::-1], sigmas[0] + sigmas[-2], rtol=1e-6)  # the ends are alike
    gaps = -np.diff(sigmas[:-1])
    assert all(a < b for a, b in pairwise(gaps[:4]))


def test_aligned_steps_keep_their_ends_and_their_family():
    table, finer = plan(10, "ays"), plan(20, "ays")
    np.testing.assert_allclose(finer.sigmas[:-1:2], table.sigmas[:-1], rtol=1e-6)
    np.testing.assert_allclose(finer.sigmas[1] ** 2, table.sigmas[0] * table.sigmas[1], rtol=1e-6)
    assert finer.sigmas[-1] == 0 and finer.sigmas[-2] > 0.029167
    assert plan(10, "ays", family="sdxl").timesteps == pytest.approx(
        [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50])
def test_every_plan_falls_and_tells_timesteps_of_the_training(sampler, steps):
    for spacing in SPACINGS:
        if sampler in ("lcm", "tcd") and spacing in ("karras", "exponential", "sgm_uniform", "beta", "ays"):
            continue
        found = plan(steps, spacing, sampler)
        falling = found.sigmas[:-1] if sampler == "deis" else found.sigmas  # on a curve diffusers' last step is idle
        assert all(a > b for a, b in pairwise(falling)) or sampler in ("pndm", "ddim", "ddim_cfgpp")
        assert all(0 <= t <= 999 for t in found.timesteps)
        assert all(math.isfinite(number) for number in [*found.sigmas, found.start_scale, found.end_scale])
        assert len(found.timesteps) == found.steps
        assert [found.timestep(sigma) for sigma in found.sigmas[:-1]] == found.timesteps


def test_strength_leaves_out_the_first_steps():
    whole, part = plan(10, sampler="dpmpp_2m"), plan(10, sampler="dpmpp_2m", strength=0.35)
    assert part.steps == 3
    assert part.sigmas == whole.sigmas[-4:] and part.timesteps == whole.timesteps[-3:]


def test_ddim_and_pndm_end_where_their_config_says():
    ending = ScheduleConfig(steps_offset=1, set_alpha_to_one=False, options={"skip_prk_steps": True})
    going_on = ScheduleConfig(steps_offset=1, set_alpha_to_one=True, options={"skip_prk_steps": True})
    silent = ScheduleConfig(steps_offset=1, options={"skip_prk_steps": True})
    for sampler, config, zero in [
        ("ddim", ending, False), ("ddim", going_on, True), ("ddim", silent, True),
        ("pndm", ending, False), ("pndm", going_on, True), ("pndm", silent, False), ("euler", ending, True),
    ]:  # fmt: skip
        found = plan(5, "leading", sampler, config=config)
        assert (found.sigmas[-1] == 0) == zero
        if not zero:
            assert found.sigmas[-1] == pytest.approx(0.029167, abs=1e-6)
            assert found.end_scale == pytest.approx(1 / math.sqrt(1 + found.sigmas[-1] ** 2))


def test_the_first_noise_is_as_large_as_the_spacing_makes_it():
    for spacing, extra in [("leading", 1), ("linspace", 0), ("trailing", 0)]:
        found = plan(5, spacing, "euler")
        assert found.start_scale == pytest.approx(math.sqrt(found.sigmas[0] ** 2 + extra))
        found = plan(5, spacing, "ddim")
        assert found.start_scale == pytest.approx(math.sqrt(found.sigmas[0] ** 2 + 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr_stays_finite(sampler):
    config = ScheduleConfig(zero_snr=True, prediction="v", options={"skip_prk_steps": True})
    found = plan(4, "trailing", sampler, config=config)
    assert all(math.isfinite(sigma) for sigma in found.sigmas)
    if sampler in ("euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        assert found.sigmas[0] == pytest.approx(4096, rel=1e-3)
    assert Schedule(config).alphas_cumprod[-1] == 0


def test_a_timestep_between_those_of_a_plan_is_interpolated():
    found = plan(5, "linspace")
    middle = math.sqrt(found.sigmas[1] * found.sigmas[2])
    assert found.timesteps[2] < found.timestep(middle) < found.timesteps[1]


@pytest.mark.parametrize("steps", [61, 103, 121, 122])
def test_a_rounding_error_adds_no_step_before_the_first_timestep(steps):
    found = plan(steps, "trailing", "ddim")
    assert found.steps == steps and min(found.timesteps) >= 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampler": "eular"}, "Did you mean 'euler'"),
        ({"spacing": "karas"}, "Did you mean 'karras'"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 1001}, "1001 steps"),
        ({"steps": 1000, "sampler": "dpmpp_2m"}, "too many"),
        ({"steps": 1000, "spacing": "leading", "sampler": "ddim"}, "do not fit"),
        ({"steps": 60, "sampler": "lcm"}, "at most 50"),
        ({"steps": 60, "sampler": "tcd"}, "at most 50"),
        ({"sampler": "lcm", "spacing": "karras"}, "lcm"),
        ({"sampler": "tcd", "spacing": "beta"}, "tcd"),
        ({"sampler": "tcd", "spacing": "ays"}, "tcd"),
        ({"spacing": "ays", "family": "sd2"}, "table for Stable Diffusion 1 and XL"),
        ({"spacing": "ays", "family": "sdxl", "config": ScheduleConfig(prediction="v")}, "this model is neither"),
        ({"strength": 0.05}, "none of the 10 steps"),
        ({"strength": 1.5}, "between 0 and 1"),
        ({"steps": 3, "sampler": "pndm", "config": ScheduleConfig()}, "at least 4 steps"),
        ({"config": ScheduleConfig(options={"timestep_type": "continuous"})}, "timestep_type"),
        ({"config": ScheduleConfig(options={"solver_order": 4}), "sampler": "unipc"}, "solver_order = 4"),
        ({"config": ScheduleConfig(options={"solver_order": 4}), "sampler": "deis"}, "solver_order = 4"),
        ({"config": ScheduleConfig(options={"variance_type": "fixed_large"}), "sampler": "ddpm"}, "variance_type"),
    ],
)
def test_what_a_schedule_refuses(change, words):
    with pytest.raises(UserError, match=words):
        plan(**({"steps": 10} | change))


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("diffusers") is None,
    reason="torch and diffusers are missing",
)
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "trained", "zero_snr"])
def test_alphas_are_diffusers_own(kind):
    from diffusers import DDIMScheduler

    values = {"_class_name": "DDIMScheduler", "beta_start": 0.0015, "beta_end": 0.0195, "steps_offset": 1}
    if kind == "trained":
        values["trained_betas"] = np.linspace(0.001, 0.02, 1000).tolist()
    elif kind == "zero_snr":
        values |= {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    else:
        values["beta_schedule"] = kind
    expected = DDIMScheduler.from_config(values).alphas_cumprod.numpy()
    found = Schedule(ScheduleConfig.from_diffusers(values)).alphas_cumprod
    np.testing.assert_allclose(found, expected, rtol=2e-5 if kind == "zero_snr" else 2e-7, atol=1e-9)
