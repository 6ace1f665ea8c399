"""Samplers by what must be true of them: order of convergence where the exact path is known, the right variance, the
same numbers on every kind of array."""

from __future__ import annotations

import importlib.util
import math
from itertools import pairwise

import numpy as np
import pytest

from mlxldm.config import ScheduleConfig
from mlxldm.samplers import CFGPP, SAMPLERS, plms_calls
from mlxldm.schedule import SPACINGS, Schedule

MEAN, SPREAD = 0.7, 0.5  # of the clean data: one Gaussian, for which the best guess and the exact path are known


def best_guess(x, sigma):
    return (x * (SPREAD**2 / (SPREAD**2 + sigma**2))) + MEAN * sigma**2 / (SPREAD**2 + sigma**2)


def path(x, a, b):
    """Where the probability-flow ODE takes `x` from level `a` to `b`."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + b**2) / (SPREAD**2 + a**2))


def walk(name, denoise, x, sigmas, draw=None, **options):
    return list(SAMPLERS[name](as_it_wants(name, denoise), x, sigmas, draw, **options))[-1][0]


def as_it_wants(name, denoise):
    """CFG++ is told two guesses: here the same one twice, with which it is what it is made of."""

    def twice(x, sigma):
        guess = denoise(x, sigma)
        return guess, guess

    return twice if name in CFGPP else denoise


def error(name, steps, sigmas):
    levels = sigmas(steps)
    x = np.array([12.0, -5.0])
    return np.abs(walk(name, best_guess, x, levels) - path(x, levels[0], levels[-1])).max()


def geometric(steps):
    return np.geomspace(10, 0.2, steps + 1).tolist()


def even(steps):
    return np.linspace(5, 0.5, steps + 1).tolist()


ORDERS = {
    "ddim": (1, geometric),
    "euler": (1, geometric),
    "heun": (2, geometric),
    "dpm2": (2, geometric),
    "dpmpp_2s": (2, geometric),
    "dpmpp_2m": (2, geometric),
    "deis": (2, geometric),
    "unipc": (3, geometric),  # its corrector adds one to its predictor's two
    "lms": (2, geometric),  # in the end its one first step of order 1 decides, before it climbs to 4
    "pndm": (2, even),  # its weights are those of even steps
}


@pytest.mark.parametrize("name", ORDERS)
def test_halving_the_step_divides_the_error_by_two_to_the_order(name):
    order, sigmas = ORDERS[name]
    ratio = error(name, 160, sigmas) / error(name, 320, sigmas)
    assert ratio > 0.85 * 2**order, ratio
    if order == 1:
        assert ratio < 2.2, ratio


@pytest.mark.parametrize("name", ["dpmpp_2s", "dpmpp_2m", "unipc", "deis"])
@pytest.mark.parametrize("order", [1, 3])
def test_solver_orders_are_what_they_say(name, order):
    def at(steps):
        levels, x = geometric(steps), np.array([12.0, -5.0])
        if name == "dpmpp_2s":
            orders = [1 + i % order for i in range(steps)]
        else:
            orders = [min(order, i + 1) for i in range(steps)]
        kind = {"kind": "heun"} if name.startswith("dpmpp") else {}
        return np.abs(walk(name, best_guess, x, levels, orders=orders, **kind) - path(x, levels[0], levels[-1])).max()

    ratio = at(120) / at(240)
    # UniPC's corrector adds one. A multistep's first step is of order 1, so that its error falls by 4 in the end.
    expected = {("dpmpp_2m", 3): 2, ("deis", 3): 2, ("unipc", 1): 2, ("unipc", 3): 4}.get((name, order), order)
    assert ratio > 0.85 * 2**expected, ratio


def creeping(steps):
    """As `geometric`, but for two first steps so small that their low order costs nothing."""
    h = math.log(50) / steps
    return [10.0, 10 * math.exp(-(h**3)), 10 * math.exp(-(h**2)), *geometric(steps)[1:]]


@pytest.mark.parametrize(("order", "expected"), [(1, 1), (2, 2), (3, 3)])
def test_deis_climbs_to_its_order(order, expected):
    def at(steps):
        levels, x = creeping(steps), np.array([12.0, -5.0])
        orders = [min(order, i + 1) for i in range(len(levels) - 1)]
        return np.abs(walk("deis", best_guess, x, levels, orders=orders) - path(x, levels[0], levels[-1])).max()

    ratio = at(160) / at(320)
    assert 0.85 * 2**expected < ratio < 1.3 * 2**expected, ratio


def test_without_its_noise_a_reverse_sde_is_an_ode_too():
    """dx / dl = 2 (guess - x) over l = -log sigma; here for a guess of sin l, whatever x is."""

    def settled(sigma):
        return 0.8 * math.sin(-math.log(sigma)) - 0.4 * math.cos(math.log(sigma))

    def at(name, steps):
        levels = creeping(steps)
        x = np.array([settled(levels[0])])
        kind = {"kind": "heun"} if name == "dpmpp_2m_sde" else {}
        found = walk(name, lambda x, sigma: 0 * x - math.sin(math.log(sigma)), x, levels, lambda: 0.0, **kind)
        return abs(found[0] - settled(levels[-1]))

    for name in ("dpmpp_2m_sde", "dpmpp_3m_sde"):
        assert 3.7 < at(name, 160) / at(name, 320) < 4.3
    assert 4 < at("dpmpp_2m_sde", 320) / at("dpmpp_3m_sde", 320) < 6


def test_tcd_goes_from_ddim_to_lcm_with_how_far_down_it_goes():
    sigmas, x = [10.0, 3.0, 1.0, 0.0], np.full(8, 9.0)

    def run(name, **options):
        random = np.random.RandomState(1)
        return walk(name, best_guess, x, sigmas, lambda: random.randn(8), **options)

    np.testing.assert_allclose(run("tcd", downs=sigmas[1:]), run("ddim"))
    np.testing.assert_allclose(run("tcd", downs=[0.0, 0.0, 0.0]), run("lcm"))
    np.testing.assert_allclose(run("tcd"), run("tcd", downs=[0.7 * b for b in sigmas[1:]]))
    for other in ("ddim", "lcm"):
        assert np.abs(run("tcd") - run(other)).max() > 0.01


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_sde", "dpmpp_3m_sde"])
def test_samplers_with_noise_end_at_the_datas_variance(name):
    random = np.random.RandomState(0)
    size = 20_000
    sigmas = [*np.geomspace(20, 0.02, 240).tolist(), 0.0]
    x = MEAN + math.sqrt(SPREAD**2 + sigmas[0] ** 2) * random.randn(size)
    x = walk(name, best_guess, x, sigmas, lambda: random.randn(size))
    assert abs(x.mean() - MEAN) < 0.02
    assert abs(x.std() / SPREAD - 1) < 0.03


@pytest.mark.parametrize("name", ["euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_sde", "dpmpp_3m_sde", "lcm", "tcd"])
def test_fresh_noise_matters(name):
    sigmas = [10.0, 3.0, 1.0, 0.0]
    one, two = np.random.RandomState(1), np.random.RandomState(2)
    first = walk(name, best_guess, np.full(8, 9.0), sigmas, lambda: one.randn(8))
    second = walk(name, best_guess, np.full(8, 9.0), sigmas, lambda: two.randn(8))
    assert np.abs(first - second).max() > 0.01


def test_lcm_is_its_last_guess():
    x = walk("lcm", best_guess, np.full(8, 9.0), [10.0, 0.0], None)
    np.testing.assert_allclose(x, best_guess(np.full(8, 9.0), 10.0))


@pytest.mark.parametrize("name", sorted(CFGPP))
def test_cfgpp_without_guidance_is_the_sampler_it_is_made_of(name):
    for spacing in ("leading", "trailing", "karras"):
        plan = Schedule(ScheduleConfig()).plan(6, spacing, name)
        other = name.removesuffix("_cfgpp")
        plain = Schedule(ScheduleConfig()).plan(6, spacing, other)
        assert (plan.sigmas, plan.timesteps, plan.options) == (plain.sigmas, plain.timesteps, plain.options)
        assert plan.both and not plain.both
        found, expected = (
            walk(one, best_guess, np.full(8, 9.0), plan.sigmas, lambda: np.ones(8), **plan.options)
            for one in (name, other)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_plms_visits_the_second_level_twice():
    calls = plms_calls([4.0, 3.0, 2.0, 1.0])
    assert [call[1] for call in calls] == [4.0, 3.0, 3.0, 2.0]
    assert [call[0] for call in calls] == ["first", "again", "next", "next"]
    assert plms_calls([4.0, 0.0]) == [("first", 4.0, 4.0, 0.0)]


CALLS = {name: lambda n: 2 * n - 1 for name in ("heun", "dpm2", "dpm2_a", "dpmpp_sde")} | {"pndm": lambda n: n + 1}


@pytest.mark.parametrize("name", SAMPLERS)
def test_how_often_the_model_is_called_and_that_it_hears_floats(name):
    """A NumPy float would turn an MLX array into a NumPy one without a word."""
    for spacing in SPACINGS:
        if name in ("lcm", "tcd") and spacing in ("karras", "exponential", "sgm_uniform", "beta", "ays"):
            continue
        plan = Schedule(ScheduleConfig(options={"skip_prk_steps": True}), "sd1").plan(6, spacing, name)
        heard = []

        def denoise(x, sigma, heard=heard):
            heard.append(sigma)
            return x * 0.5

        walk = SAMPLERS[name](as_it_wants(name, denoise), np.ones(3), plan.sigmas, lambda: np.zeros(3), **plan.options)
        steps = list(walk)
        assert len(steps) == plan.steps == len(plan.timesteps)
        assert len(heard) == CALLS.get(name, lambda n: n)(6)
        told = [plan.timestep(sigma) for sigma in heard]
        for numbers in (heard, told, plan.sigmas, plan.timesteps, [plan.start_scale, plan.end_scale]):
            assert {type(number) for number in numbers} == {float}
        assert all(a >= b for a, b in pairwise(heard))
        # a middle of dpm2_a stands where the next step does, whose timestep is rounded or interpolated another way
        slack = 0.51 if name == "dpm2_a" else 0
        assert all(a >= b - slack for a, b in pairwise(told))


@pytest.mark.parametrize("kind", ["mlx", "torch"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_numbers_on_every_kind_of_array(name, kind):
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is missing")
    if kind == "mlx":
        from mlxldm import on_mlx  # noqa: F401  (chooses the BLAS before mlx is imported)

        array = __import__("mlx.core").core.array
    else:
        array = __import__("torch").from_numpy
    random = np.random.RandomState(0)
    start = random.randn(1, 4, 4, 4).astype(np.float32) * 14
    draws = [random.randn(1, 4, 4, 4).astype(np.float32) for _ in range(20)]
    plan = Schedule(ScheduleConfig(options={"skip_prk_steps": True})).plan(5, "model", name)

    def run(make):
        numbers = iter(draws)
        x = make(start)
        return walk(name, best_guess, x, plan.sigmas, lambda: make(next(numbers)), **plan.options)

    expected, found = run(lambda x: x), run(array)
    assert expected.dtype == np.float32 and type(found) is type(array(start))
    assert "float32" in str(found.dtype)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=2e-5)
