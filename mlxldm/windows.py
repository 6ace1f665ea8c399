"""Large pictures in windows that overlap and agree at every step.

MultiDiffusion (Bar-Tal et al. 2023, https://arxiv.org/abs/2302.08113): the clean guess of a large latent is the mean
of the guesses of windows of it. So the network never sees more than it was taught on or than memory holds, and since
the next step starts from what all windows agreed on, no seam grows between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .samplers import Array, Denoise

if TYPE_CHECKING:
    from .backend import Model

OVERLAP = 4  # neighbours share at least this part of a window: one in four


@dataclass(frozen=True)
class Window:
    """A rectangle of a latent (1, H, W, c), in its pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: Array) -> Array:
        """What of `x` lies in it."""
        return x[:, self.top : self.top + self.height, self.left : self.left + self.width]

    def put(self, x: Array, part: Array) -> None:
        """Add `part` to what lies there."""
        down, across = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        x[:, down, across] = x[:, down, across] + part


def windows(height: int, width: int, size: int) -> list[Window]:
    """Windows of `size` × `size`, less where the whole is less, all of one shape, that cover `height` × `width`."""
    high, wide = min(size, height), min(size, width)
    return [Window(top, left, high, wide) for top in _starts(height, high) for left in _starts(width, wide)]


def _starts(whole: int, size: int) -> list[int]:
    """Where windows along one side begin: as few as overlap enough, evenly spread."""
    count = 1 + math.ceil((whole - size) / max(1, size - size // OVERLAP))
    return [0] if count == 1 else [round(i * (whole - size) / (count - 1)) for i in range(count)]


def tiled(at: Callable[[Window], Denoise], height: int, width: int, size: int, model: Model) -> Denoise:
    """`denoise` of a latent (1, height, width, c) from that of each of its `windows` of `size`.

    Where windows overlap, each counts the less the nearer its own edge is. `model` evaluates one after the other, so
    that memory holds one at a time.
    """
    places = windows(height, width, size)
    if len(places) == 1:
        return at(places[0])
    ramp = _ramp(places[0].height)[:, None] * _ramp(places[0].width)
    whole = np.zeros((1, height, width, 1), np.float32)
    for place in places:
        place.put(whole, ramp[None, :, :, None])
    parts = [(place, at(place), model.array(ramp[None, :, :, None] / place.of(whole))) for place in places]

    def denoise(x: Array, sigma: float) -> Array:
        wholes: list[Array] = []
        for place, one, weight in parts:
            guess = one(place.of(x), sigma)
            guesses = guess if isinstance(guess, tuple) else (guess,)  # two for CFG++
            wholes = wholes or [x * 0.0 for _ in guesses]
            for all_of_it, part in zip(wholes, guesses, strict=True):
                place.put(all_of_it, part * weight)
                model.evaluate(all_of_it)
        return wholes[0] if len(wholes) == 1 else tuple(wholes)

    return denoise


def _ramp(size: int) -> np.ndarray:
    """How much the places along one side of a window count, float32: least at both ends, where neighbours take over."""
    ends = np.arange(1, size + 1, dtype=np.float32)
    return np.minimum(np.minimum(ends, ends[::-1]), max(1, size // OVERLAP))
