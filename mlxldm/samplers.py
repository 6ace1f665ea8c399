"""Samplers: ways to walk from noise to a clean latent, each a pure function over `denoise(x, sigma) -> guess`.

x = clean + sigma * noise may be a NumPy, MLX or torch array: only + - * / touch it, and every number that meets it is a
Python float. `sigmas` fall from the noisiest level to the last (0, or a little above); `draw()` gives standard normal
numbers shaped like x. After every step a sampler yields (x, guess); the last x is the result. The keyword arguments are
what `Schedule.plan` works out so that the numbers are those of the diffusers scheduler of that name; without them a
sampler does what its paper says.

The samplers of CFG++ (Chung et al. 2024, https://arxiv.org/abs/2406.08070) need two guesses of one call, the guided one
and the one without the prompt: for those in CFGPP `denoise` returns both. A step of theirs is the other sampler's step
from the second guess, to which the way from there to the first is added: noise comes back as the model sees it, and
only the picture is guided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import expm1, inf, log, sqrt
from typing import Any

import numpy as np

Array = Any
Denoise = Callable[[Array, float], Array]
Draw = Callable[[], Array]
Walk = Iterator[tuple[Array, Array]]
Call = tuple[str, float, float, float]  # of pndm: its role, the level the model is told, and from where to where to go


def ddim(
    denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw, landings: Sequence[float] | None = None
) -> Walk:
    """DDIM with eta = 0 (Song et al. 2020, https://arxiv.org/abs/2010.02502).

    `landings`: the level at which a step really ends; diffusers counts it down from the step's own timestep, and then
    hands x to the next step as if it stood at that one's level. With leading spacing both are the same.
    """
    for i, (a, b) in enumerate(pairwise(sigmas)):
        guess = denoise(x, a)
        c = b if landings is None else landings[i]
        x = x * (c / a) + guess * (1 - c / a)
        if c != b:
            x = x * sqrt((1 + b * b) / (1 + c * c))
        yield x, guess


def euler(denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw) -> Walk:
    """Euler's method (Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 2 without churn)."""
    for a, b in pairwise(sigmas):
        guess = denoise(x, a)
        x = x * (b / a) + guess * (1 - b / a)
        yield x, guess


def euler_a(denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw) -> Walk:
    """Ancestral steps: down to less noise than asked for, then fresh noise on top.

    This is also DDPM (Ho et al. 2020, https://arxiv.org/abs/2006.11239, with the posterior's variance): in sigmas the
    two are one formula, and only their schedules differ.
    """
    for a, b in pairwise(sigmas):
        guess = denoise(x, a)
        down, up = _ancestral(a, b)
        x = x * (down / a) + guess * (1 - down / a)
        if up > 0:
            x = x + draw() * up
        yield x, guess


def heun(denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw) -> Walk:
    """Heun's method, two calls a step and one where the noise ends (Karras et al. 2022, algorithm 1)."""
    for a, b in pairwise(sigmas):
        guess = denoise(x, a)
        if b == 0:
            x = guess
        else:
            slope = (x - guess) / a
            ahead = x + slope * (b - a)
            guess = denoise(ahead, b)
            x = x + (slope + (ahead - guess) / b) * ((b - a) / 2)
        yield x, guess


def lms(denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw, earlier: Sequence[float] = ()) -> Walk:
    """Linear multistep of order 4: Adams-Bashforth for uneven steps in sigma (k-diffusion's sampler).

    `earlier`: levels that an image-to-image walk leaves out. diffusers weighs its first slopes as if those steps had
    been made; so does this, for the same picture.
    """
    levels = [*earlier, *sigmas]
    slopes: list[Array] = []
    for i in range(len(earlier), len(levels) - 1):
        guess = denoise(x, levels[i])
        slopes = [(x - guess) / levels[i], *slopes[:3]]
        for slope, weight in zip(slopes, _lms_weights(levels, i, min(i + 1, 4)), strict=False):
            x = x + slope * weight
        yield x, guess


def dpm2(denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw) -> Walk:
    """DPM-Solver-2, by way of the middle of a step: two calls, and one where the noise ends.

    Lu et al. 2022, https://arxiv.org/abs/2206.00927, algorithm 1; the middle is that of log sigma.
    """
    for a, b in pairwise(sigmas):
        guess = denoise(x, a)
        if b == 0:
            x = guess
        else:
            middle = sqrt(a * b)
            ahead = x * (middle / a) + guess * (1 - middle / a)
            guess = denoise(ahead, middle)
            x = x + (ahead - guess) * ((b - a) / middle)
        yield x, guess


def dpm2_a(denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw) -> Walk:
    """`dpm2` in ancestral steps: down to less noise than asked for, then fresh noise on top (k-diffusion's sampler)."""
    for a, b in pairwise(sigmas):
        guess = denoise(x, a)
        if b == 0:
            x = guess
        else:
            down, up = _ancestral(a, b)
            # Half way down in log sigma is b itself. A hair above it is no level of the plan, so that the model is told
            # the timestep of a middle, as by diffusers, and not that of the next step, which may be a rounded one.
            middle = b * (1 + 1e-9)
            ahead = x * (middle / a) + guess * (1 - middle / a)
            guess = denoise(ahead, middle)
            x = x + (ahead - guess) * ((down - a) / middle) + draw() * up
        yield x, guess


def pndm(
    denoise: Denoise,
    x: Array,
    sigmas: Sequence[float],
    draw: Draw,
    calls: Sequence[Call] | None = None,
    velocity: bool = False,
) -> Walk:
    """PNDM and its short form PLMS (Liu et al. 2022, https://arxiv.org/abs/2202.09778): a step here is one call.

    Roles: "first" and "again" make the first step of PLMS twice, "next" are its further steps, "prk0" to "prk3" the
    four calls of a Runge-Kutta step. `velocity`: average v rather than the noise, as diffusers does for v models.
    """
    calls = plms_calls(sigmas) if calls is None else calls
    levels = [call[1] for call in calls] + [calls[-1][3]]
    y = base = x * (1 / sqrt(1 + levels[0] ** 2))  # moves are made at unit variance: see `Call` about the two levels
    slopes: list[Array] = []
    total: Array = 0.0
    for (role, level, start, end), following in zip(calls, levels[1:], strict=True):
        guess = denoise(y * sqrt(1 + level * level), level)
        slope = _slope(y, guess, level, velocity)
        if role in ("first", "prk0"):
            slopes, base, move, total = [*slopes[-3:], slope], y, slope, slope * (1 / 6)
        elif role == "again":
            move = (slope + slopes[-1]) * 0.5
        elif role in ("prk1", "prk2"):
            move, total = slope, total + slope * (1 / 3)
        elif role == "prk3":
            move = total + slope * (1 / 6)
        else:
            slopes, base = [*slopes[-3:], slope], y
            weights = _ADAMS_BASHFORTH[len(slopes)]
            move = slopes[-1] * weights[0]
            for old, weight in zip(slopes[-2::-1], weights[1:], strict=True):
                move = move + old * weight
        y = _transfer(base, move, start, end, velocity)
        yield y * sqrt(1 + following * following), guess


def plms_calls(sigmas: Sequence[float]) -> list[Call]:
    """PLMS over plain levels: the second one is visited twice, the second time to repair the first step."""
    plain: list[Call] = [("next", a, a, b) for a, b in pairwise(sigmas)]
    _, a, _, b = plain[0]
    return [("first", a, a, b), *([("again", b, a, b)] if len(plain) > 1 else []), *plain[1:]]


def dpmpp_2s(
    denoise: Denoise,
    x: Array,
    sigmas: Sequence[float],
    draw: Draw,
    orders: Sequence[int] | None = None,
    kind: str = "midpoint",
) -> Walk:
    """DPM-Solver++(2S), one call a step (Lu et al. 2022, https://arxiv.org/abs/2211.01095).

    A step of order 1 goes ahead; the next, of order 2 (or 3), starts again where the round began and knows more.
    `orders`: 1, 2, 1, 2, ... by default. `kind`: "midpoint" or "heun".
    """
    orders = _alternating(sigmas) if orders is None else orders
    base = x
    guesses: list[Array] = []
    for i, (now, b) in enumerate(pairwise(sigmas)):
        guess = denoise(x, now)
        guesses = [*guesses[-2:], guess]
        order = 1 if b == 0 else orders[i]
        if order == 1:
            base = x
        a = sigmas[i - order + 1]
        r, first = b / a, guesses[-order]
        x = base * r + first * (1 - r)
        if order > 1:
            h = log(a / b)
            r0 = log(a / now) / h
            d0 = (guess - first) / r0
        if order == 2:
            x = x + d0 * (0.5 * (1 - r) if kind == "midpoint" else (r - 1) / h + 1)
        elif order == 3:
            r1 = log(a / sigmas[i - 1]) / h
            d1 = (guesses[-2] - first) / r1
            if kind == "midpoint":
                x = x + d0 * ((r - 1) / h + 1)
            else:
                x = x + (d1 * r0 - d0 * r1) * (((r - 1) / h + 1) / (r0 - r1))
                x = x - (d0 - d1) * (2 / (r0 - r1) * ((r - 1 + h) / (h * h) - 0.5))
        yield x, guess


def dpmpp_2m(
    denoise: Denoise,
    x: Array,
    sigmas: Sequence[float],
    draw: Draw,
    orders: Sequence[int] | None = None,
    kind: str = "midpoint",
    noisy: bool = False,
) -> Walk:
    """DPM-Solver++(2M): the last guesses say where the next is heading (Lu et al. 2022, https://arxiv.org/abs/2211.01095).

    `orders`: of every step; by default 1, then 2, and 1 where the noise ends. `kind`: "midpoint" or "heun".
    `noisy`: solve the reverse SDE instead (SDE-DPM-Solver++).
    """
    guesses: list[Array] = []
    for i, (a, b) in enumerate(pairwise(sigmas)):
        guess = denoise(x, a)
        guesses = [guess, *guesses[:2]]
        order = 1 if b == 0 else min(i + 1, 2) if orders is None else orders[i]
        h = log(a / b) if b > 0 else inf
        if noisy:  # the same formulas over twice the log-distance
            h = 2 * h
        r = (b / a) ** 2 if noisy else b / a
        x = x * r + guess * (1 - r)
        if order > 1:
            r0 = log(sigmas[i - 1] / a) / log(a / b)
            d1 = (guess - guesses[1]) / r0
        if order == 2:
            x = x + d1 * (0.5 * (1 - r) if kind == "midpoint" else (r - 1) / h + 1)
        elif order == 3:
            r1 = log(sigmas[i - 2] / sigmas[i - 1]) / log(a / b)
            bend = d1 - (guesses[1] - guesses[2]) / r1
            x = x + (d1 + bend * (r0 / (r0 + r1))) * ((r - 1) / h + 1)
            sign = -1 if noisy else 1  # of this half; diffusers has it the other way round in its SDE formula
            x = x + bend * (((1 - r - h) / (h * h) + sign * 0.5) / (r0 + r1))
        if noisy and b > 0:
            x = x + draw() * (b * sqrt(1 - r))
        yield x, guess


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Array,
    sigmas: Sequence[float],
    draw: Draw,
    orders: Sequence[int] | None = None,
    kind: str = "midpoint",
) -> Walk:
    """SDE-DPM-Solver++(2M): as `dpmpp_2m`, for the reverse SDE."""
    return dpmpp_2m(denoise, x, sigmas, draw, orders, kind, noisy=True)


def dpmpp_3m_sde(
    denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw, orders: Sequence[int] | None = None
) -> Walk:
    """SDE-DPM-Solver++(3M): the last three guesses say how the next one's way bends.

    k-diffusion's sampler, of the family of Lu et al. 2022, https://arxiv.org/abs/2211.01095, and not the third order of
    diffusers' class, which subtracts where this adds (see `dpmpp_2m`). As there, the bend weighs half of what its
    integral says: the order stays 2, with a fifth of the error of `dpmpp_2m_sde`. `orders`: of every step; by default
    1, 2, then 3, and 1 where the noise ends.
    """
    guesses: list[Array] = []
    for i, (a, b) in enumerate(pairwise(sigmas)):
        guess = denoise(x, a)
        guesses = [guess, *guesses[:2]]
        order = 1 if b == 0 else min(i + 1, 3) if orders is None else orders[i]
        r = (b / a) ** 2
        x = x * r + guess * (1 - r)
        if order > 1:
            h = log(a / b)
            phi2 = (r - 1) / (2 * h) + 1
            r0 = log(sigmas[i - 1] / a) / h
            rise = (guess - guesses[1]) / r0
        if order == 2:
            x = x + rise * phi2
        elif order == 3:
            r1 = log(sigmas[i - 2] / sigmas[i - 1]) / h
            bend = (rise - (guesses[1] - guesses[2]) / r1) / (r0 + r1)
            x = x + (rise + bend * r0) * phi2 - bend * (phi2 / (2 * h) - 0.5)
        if b > 0:
            x = x + draw() * (b * sqrt(1 - r))
        yield x, guess


def dpmpp_sde(denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw) -> Walk:
    """DPM-Solver++ for the SDE, two calls a step (k-diffusion's sampler, with r = 1/2).

    Both calls of a step see one Brownian path: the noise up to the middle is part of the noise of the whole step.
    """
    for a, b in pairwise(sigmas):
        guess = denoise(x, a)
        if b == 0:
            x = guess
        else:
            middle = sqrt(a * b)
            down, up = _ancestral(a, middle)
            half = draw()
            guess = denoise(x * (down / a) + guess * (1 - down / a) + half * up, middle)
            down, up = _ancestral(a, b)
            whole = half * sqrt((a - middle) / (a - b)) + draw() * sqrt((middle - b) / (a - b))
            x = x * (down / a) + guess * (1 - down / a) + whole * up
        yield x, guess


def unipc(
    denoise: Denoise,
    x: Array,
    sigmas: Sequence[float],
    draw: Draw,
    orders: Sequence[int] | None = None,
    kind: str = "bh2",
) -> Walk:
    """UniPC on guesses of the clean latent (Zhao et al. 2023, https://arxiv.org/abs/2302.04867).

    Every guess first corrects the step that led to it, then predicts the next. `orders`: by default 1, then 2, and 1
    where the noise ends. `kind`: the paper's B(h), "bh1" or "bh2".
    """
    guesses: list[Array] = []
    base, order = x, 0
    for i, (a, b) in enumerate(pairwise(sigmas)):
        guess = denoise(x, a)
        if order:
            x = _unipc_move(base, sigmas, i - 1, a, guesses, order, kind, ahead=guess)
        order = 1 if b == 0 else min(i + 1, 2) if orders is None else orders[i]
        guesses = [guess, *guesses[:2]]
        base = x
        x = _unipc_move(base, sigmas, i, b, guesses, order, kind)
        yield x, guess


def deis(
    denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw, orders: Sequence[int] | None = None
) -> Walk:
    """DEIS: a polynomial in log sigma through the last guesses of the noise, integrated exactly.

    Zhang and Chen 2022, https://arxiv.org/abs/2204.13902 ("log rho AB"). `orders`: of every step, 1 to 3; by default 1,
    then 2, and 1 where the noise ends.
    """
    slopes: list[Array] = []
    for i, (a, b) in enumerate(pairwise(sigmas)):
        guess = denoise(x, a)
        slopes = [(x - guess) / a, *slopes[:2]]
        order = 1 if b == 0 else min(i + 1, 2) if orders is None else orders[i]
        if b == 0:
            x = guess
        else:
            for slope, weight in zip(slopes, _deis_weights(sigmas, i, b, order), strict=False):
                x = x + slope * weight
        yield x, guess


def lcm(
    denoise: Denoise,
    x: Array,
    sigmas: Sequence[float],
    draw: Draw,
    boundary: Sequence[tuple[float, float]] | None = None,
) -> Walk:
    """Consistency sampling: guess, then noise the guess again (Luo et al. 2023, https://arxiv.org/abs/2310.04378).

    `boundary`: c_skip and c_out of every step.
    """
    for i, (a, b) in enumerate(pairwise(sigmas)):
        guess = denoise(x, a)
        skip, out = (0.0, 1.0) if boundary is None else boundary[i]
        guess = guess * out + x * (skip / sqrt(1 + a * a))
        x = guess if b == 0 else guess + draw() * b
        yield x, guess


def ddim_cfgpp(
    denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw, landings: Sequence[float] | None = None
) -> Walk:
    """`ddim` with CFG++ (the paper's algorithm 2)."""
    for i, (a, b) in enumerate(pairwise(sigmas)):
        guess, free = denoise(x, a)
        c = b if landings is None else landings[i]
        x = guess + (x - free) * (c / a)
        if c != b:
            x = x * sqrt((1 + b * b) / (1 + c * c))
        yield x, guess


def euler_cfgpp(denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw) -> Walk:
    """`euler` with CFG++."""
    for a, b in pairwise(sigmas):
        guess, free = denoise(x, a)
        x = guess + (x - free) * (b / a)
        yield x, guess


def euler_a_cfgpp(denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw) -> Walk:
    """`euler_a` with CFG++."""
    for a, b in pairwise(sigmas):
        guess, free = denoise(x, a)
        down, up = _ancestral(a, b)
        x = guess + (x - free) * (down / a)
        if up > 0:
            x = x + draw() * up
        yield x, guess


def dpmpp_2m_cfgpp(
    denoise: Denoise,
    x: Array,
    sigmas: Sequence[float],
    draw: Draw,
    orders: Sequence[int] | None = None,
    kind: str = "midpoint",
) -> Walk:
    """`dpmpp_2m` with CFG++, of order 2 where `orders` say more."""
    before: Array = None
    for i, (a, b) in enumerate(pairwise(sigmas)):
        guess, free = denoise(x, a)
        order = 1 if b == 0 else min(i + 1, 2) if orders is None else orders[i]
        r = b / a
        x = guess + (x - free) * r
        if order > 1:
            h = log(a / b)
            rise = (free - before) * (h / log(sigmas[i - 1] / a))
            x = x + rise * (0.5 * (1 - r) if kind == "midpoint" else (r - 1) / h + 1)
        before = free
        yield x, guess


GAMMA = 0.3  # of tcd: its authors' choice, and diffusers' eta


def tcd(
    denoise: Denoise, x: Array, sigmas: Sequence[float], draw: Draw, downs: Sequence[float] | None = None
) -> Walk:
    """Trajectory consistency: straight down past the next level, then noise up to it.

    Zheng et al. 2024, https://arxiv.org/abs/2402.19159, algorithm 4. `downs`: the level every step goes down to. The
    paper's gamma says how much farther than the step's end: that part of its timestep, which only a plan knows; by
    default that part of its sigma.
    """
    downs = [(1 - GAMMA) * b for b in sigmas[1:]] if downs is None else downs
    for (a, b), down in zip(pairwise(sigmas), downs, strict=True):
        guess = denoise(x, a)
        x = x * (down / a) + guess * (1 - down / a)
        if b > down:
            x = x + draw() * sqrt(b * b - down * down)
        yield x, guess


SAMPLERS: dict[str, Callable[..., Walk]] = {
    "ddim": ddim,
    "ddpm": euler_a,
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "lms": lms,
    "pndm": pndm,
    "dpm2": dpm2,
    "dpm2_a": dpm2_a,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": unipc,
    "deis": deis,
    "lcm": lcm,
    "tcd": tcd,
    "ddim_cfgpp": ddim_cfgpp,
    "euler_cfgpp": euler_cfgpp,
    "euler_a_cfgpp": euler_a_cfgpp,
    "dpmpp_2m_cfgpp": dpmpp_2m_cfgpp,
}
CFGPP = frozenset(name for name in SAMPLERS if name.endswith("_cfgpp"))


# The floats behind them.


def _ancestral(a: float, b: float) -> tuple[float, float]:
    """Where to go down to from `a`, and how much noise to add there, to stand at `b`."""
    return b * b / a, b * sqrt(max(0.0, 1 - (b / a) ** 2))


def _lms_weights(levels: Sequence[float], i: int, order: int) -> list[float]:
    """Integrals from levels[i] to levels[i + 1] of the polynomials that are 1 at one of the last `order` levels.

    Four Gauss points are exact for them.
    """
    nodes, weights = (values.tolist() for values in np.polynomial.legendre.leggauss(4))
    a, b = levels[i], levels[i + 1]
    found = []
    for j in range(order):
        integral = 0.0
        for node, weight in zip(nodes, weights, strict=True):
            at, product = (a + b + node * (b - a)) / 2, 1.0
            for k in range(order):
                if k != j:
                    product *= (at - levels[i - k]) / (levels[i - j] - levels[i - k])
            integral += weight * product
        found.append(integral * (b - a) / 2)
    return found


def _deis_weights(sigmas: Sequence[float], i: int, b: float, order: int) -> list[float]:
    """Integrals from sigmas[i] to `b` of the polynomials in log sigma that are 1 at one of the last `order` levels.

    They follow from the integrals of the powers of log(sigma / sigmas[i]), each from the one before (by parts).
    """
    a = sigmas[i]
    power, moments = b - a, [b - a]
    for k in range(1, order):
        power = b * log(b / a) ** k - k * power
        moments.append(power)
    logs = [log(sigmas[i - j] / a) for j in range(order)]
    powers = np.array([[value**k for value in logs] for k in range(order)])
    return np.linalg.solve(powers, np.array(moments)).tolist()


_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _slope(y: Array, guess: Array, sigma: float, velocity: bool) -> Array:
    """The model's output back from its guess: the noise, or v. `y` is x at unit variance."""
    alpha = 1 / sqrt(1 + sigma * sigma)
    if velocity:
        return (y * alpha - guess) / (sigma * alpha)
    return (y - guess * alpha) / (sigma * alpha)


def _transfer(y: Array, slope: Array, a: float, b: float, velocity: bool) -> Array:
    """`y` moved along `slope` from level `a` to `b`, at unit variance before and after."""
    noise = (slope + y * a) * (1 / sqrt(1 + a * a)) if velocity else slope
    return (y * sqrt(1 + a * a) + noise * (b - a)) * (1 / sqrt(1 + b * b))


def _alternating(sigmas: Sequence[float]) -> list[int]:
    return [1 + i % 2 for i in range(len(sigmas) - 1)]


def _unipc_move(
    x: Array,
    sigmas: Sequence[float],
    i: int,
    b: float,
    guesses: Sequence[Array],
    order: int,
    kind: str,
    ahead: Array | None = None,
) -> Array:
    """From sigmas[i] to `b` with the guesses made at sigmas[i], sigmas[i - 1], ... (the newest first).

    `ahead` is the guess made at `b` itself: with it this is the corrector, without it the predictor.
    """
    a = sigmas[i]
    now = guesses[0]
    x = x * (b / a) + now * (1 - b / a)
    if order == 1 and ahead is None:
        return x
    h = log(a / b)
    ratios = [log(a / sigmas[i - k]) / h for k in range(1, order)]
    if ahead is not None:
        ratios.append(1.0)
    weights = _unipc_weights(h, ratios, order, kind, corrector=ahead is not None)
    size = -h if kind == "bh1" else expm1(-h)
    for k, (ratio, weight) in enumerate(zip(ratios, weights, strict=True), 1):
        other = ahead if k == order else guesses[k]
        x = x - (other - now) * (size * weight / ratio)
    return x


def _unipc_weights(h: float, ratios: Sequence[float], order: int, kind: str, corrector: bool) -> list[float]:
    """The paper's rho, which make the first moments of the step exact; at order 2 (corrector: 1) it is simply 1/2."""
    if len(ratios) == 1:
        return [0.5]
    size = -h if kind == "bh1" else expm1(-h)
    moments, phi, factorial = [], expm1(-h) / -h - 1, 1
    for k in range(1, len(ratios) + 1):
        moments.append(phi * factorial / size)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    powers = np.array([[ratio**k for ratio in ratios] for k in range(len(ratios))])
    return np.linalg.solve(powers, np.array(moments)).tolist()
