"""From a network's answers to `denoise(x, sigma)`, the clean guess that samplers walk along."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .samplers import Array, Denoise
from .schedule import Plan

if TYPE_CHECKING:
    from .backend import Model


def guided(model: Model, text: Any, plan: Plan, guidance: float, more: Array | None = None) -> Denoise:
    """`denoise(x, sigma)` of a model with its text: the clean guess, guided away from the negative prompt.

    `more` (1, h, w, c) are the channels that the network takes beside the latents.

    Where the model gives two answers: classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).
    """

    def answer(x: Array, timestep: float) -> Array:
        told, without = model.predict(x, timestep, text, more)
        return told if without is None else without + (told - without) * guidance

    return _clean(answer, plan)


def edited(
    model: Model, text: Any, plain: Any, plan: Plan, guidance: float, image_guidance: float, kept: Array
) -> Denoise:
    """`denoise(x, sigma)` of a model that edits the picture `kept` (1, h, w, c) as told.

    Guided twice, by the words and by the picture (Brooks et al. 2023, https://arxiv.org/abs/2211.09800, eq. 3). `plain`
    is the negative prompt alone, None where there is no guidance.
    """

    def answer(x: Array, timestep: float) -> Array:
        told, seen = model.predict(x, timestep, text, kept)
        if seen is None:
            return told
        free, _ = model.predict(x, timestep, plain, kept * 0.0)
        return free + (told - seen) * guidance + (seen - free) * image_guidance

    return _clean(answer, plan)


def _clean(answer: Callable[[Array, float], Array], plan: Plan) -> Denoise:
    """`denoise(x, sigma)`: the clean guess that follows from a network's answer, by what it predicts."""

    def denoise(x: Array, sigma: float) -> Array:
        scale = 1 / math.sqrt(sigma * sigma + 1)
        said = answer(x * scale, plan.timestep(sigma))
        if plan.prediction == "epsilon":
            return x - said * sigma
        if plan.prediction == "v":
            return x * (scale * scale) - said * (sigma * scale)
        return said  # "sample": the model's answer is the guess

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
        return denoise(x, sigma) * mask + source * (1 - mask)

    return inside
