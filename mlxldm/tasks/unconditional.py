"""Pictures of the one kind that a model has learned (Rombach et al. 2022): faces, bedrooms, churches."""

from __future__ import annotations

from .told import Told


class Unconditional(Told):
    """From noise, told nothing."""

    DRAWS = "is an unconditional model, which is told nothing"
