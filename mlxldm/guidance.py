"""From a network's answers to `denoise(x, sigma)`, the clean guess that samplers walk along."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .samplers import Array, Denoise
from .schedule import Plan

if TYPE_CHECKING:
    from .backend import Model
    from .job import Job


@dataclass(frozen=True)
class Interval:
    """The noise levels at which to guide: above `low`, and up to `high`. Elsewhere the model is given `alone`.

    Guidance at the noisiest levels makes pictures alike, and at the last ones does little (Kynkäänniemi et al. 2024,
    https://arxiv.org/abs/2404.07724). `alone` is the prompt without a negative one, which takes half the time.
    """

    high: float
    low: float
    alone: Any

    def __contains__(self, sigma: float) -> bool:
        return self.low < sigma <= self.high


@dataclass(frozen=True)
class Told:
    """What a model is told at each step: for every prompt that leads it what `predict` takes, and the prompt's weight.

    The first of a step comes with the negative prompt, where there is one; what several prompts say together is
    without + sum of weight · (prompt - without) (Liu et al. 2022, https://arxiv.org/abs/2206.01714, section 3.2).
    """

    steps: Sequence[Sequence[tuple[Any, float]]]


def _ask(
    model: Model, x: Array, timestep: float, told: Any, step: int, more: Array | None
) -> tuple[Array, Array | None]:
    """The network's answers with the prompts of that step, counted from 0, and with the negative one or None.

    `told` is a `Told`, or one thing for all steps as `predict` takes it.
    """
    if not isinstance(told, Told):
        return model.predict(x, timestep, told, more)
    (first, weight), *others = told.steps[step]
    said, without = model.predict(x, timestep, first, more)
    if without is None or (weight == 1 and not others):
        return said, without
    lead = (said - without) * weight
    for cond, weight in others:
        lead = lead + (model.predict(x, timestep, cond, more)[0] - without) * weight
    return without + lead, without


def part_of(job: Job) -> tuple[float, float]:
    """From where to where in its steps a job is guided; (0, 1) is all the way."""
    return job.guidance_start or 0.0, 1.0 if job.guidance_stop is None else job.guidance_stop


def levels(plan: Plan, start: float, stop: float) -> tuple[float, float]:
    """The `high` and `low` of an `Interval` that is the steps from the part `start` of a plan's to the part `stop`."""
    first, end = (math.ceil(part * plan.steps - 1e-9) for part in (start, stop))
    return plan.sigmas[first], plan.sigmas[end]


def guided(
    model: Model,
    text: Any,
    plan: Plan,
    guidance: float,
    more: Array | None = None,
    rescale: float = 0.0,
    interval: Interval | None = None,
) -> Denoise:
    """`denoise(x, sigma)` of a model with its text: the clean guess, guided away from the negative prompt.

    `text` is a `Told`, or what `predict` takes at every step; `more` (1, h, w, c) are the channels that the network
    takes beside the latents.

    Where the model gives two answers: classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598),
    of whose deviation `rescale` takes back so much of what it has beyond the prompt's (Lin et al. 2023,
    https://arxiv.org/abs/2305.08891, section 3.4).
    """

    def answer(x: Array, timestep: float, sigma: float) -> tuple[Array, Array]:
        inside = interval is None or sigma in interval
        given = text if interval is None or inside else interval.alone
        told, without = _ask(model, x, timestep, given, plan.step(sigma), more)
        if without is None or not inside:
            return told, told
        said = without + (told - without) * guidance
        if rescale > 0:
            said = said * (model.deviation(told) / model.deviation(said) * rescale + (1 - rescale))
        return said, without

    return _clean(answer, plan)


def edited(
    model: Model, text: Any, plain: Any, plan: Plan, guidance: float, image_guidance: float, kept: Array
) -> Denoise:
    """`denoise(x, sigma)` of a model that edits the picture `kept` (1, h, w, c) as told.

    Guided twice, by the words and by the picture (Brooks et al. 2023, https://arxiv.org/abs/2211.09800, eq. 3). `plain`
    is the negative prompt alone, None where there is no guidance.
    """

    def answer(x: Array, timestep: float, sigma: float) -> tuple[Array, Array]:
        step = plan.step(sigma)
        told, seen = _ask(model, x, timestep, text, step, kept)
        if seen is None:
            return told, told
        free, _ = _ask(model, x, timestep, plain, step, kept * 0.0)
        return free + (told - seen) * guidance + (seen - free) * image_guidance, free

    return _clean(answer, plan)


def _clean(answer: Callable[[Array, float, float], tuple[Array, Array]], plan: Plan) -> Denoise:
    """`denoise(x, sigma)`: the clean guess that follows from a network's answer, by what it predicts.

    `answer(x, timestep, sigma)`: of x as the network takes it, at unit variance; guided, and without the prompt.

    EDM's networks give a part of the guess, which x itself is the rest of (Karras et al. 2022,
    https://arxiv.org/abs/2206.00364, table 1); with a spread of 1 and the other sign that is what v means.
    """
    spread = 1.0 if plan.sigma_data is None else plan.sigma_data

    def denoise(x: Array, sigma: float) -> Array:
        scale = 1 / math.sqrt(sigma * sigma + spread * spread)

        def clean(said: Array) -> Array:
            if plan.prediction == "sample":
                return said  # the model's answer is the guess
            if plan.prediction == "epsilon" and plan.sigma_data is None:
                return x - said * sigma
            kept, part = x * (spread * scale * (spread * scale)), said * (sigma * spread * scale)
            return kept - part if plan.prediction == "v" else kept + part

        said, free = answer(x * scale, plan.timestep(sigma), sigma)
        return (clean(said), clean(free)) if plan.both else clean(said)

    return denoise


def masked(denoise: Denoise, source: Array, noise: Array, mask: Array) -> Denoise:
    """`denoise` that only sees and changes what is inside the mask (1 = paint anew); outside it is `source`.

    Before a call, x outside becomes `source` with the call's amount of `noise`; after it, the guess there is `source`.
    The first call sees x as it is: diffusers blends after a step, and starts from pure noise everywhere at strength 1.
    """
    fresh = True

    def inside(x: Array, sigma: float) -> Array:
        nonlocal fresh
        if not fresh:
            x = x * mask + (source + noise * sigma) * (1 - mask)
        fresh = False
        guess = denoise(x, sigma)
        if isinstance(guess, tuple):  # the two of CFG++
            return tuple(one * mask + source * (1 - mask) for one in guess)
        return guess * mask + source * (1 - mask)

    return inside
