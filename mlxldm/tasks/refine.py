"""Refining pictures of Stable Diffusion XL (Podell et al. 2023, https://arxiv.org/abs/2307.01952, section 2.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..job import Job
from .base import GUIDANCE
from .paint import Paint

if TYPE_CHECKING:
    from ..folder import Manifest

SCORES = (6.0, 2.5)  # how beautiful, of 10, what is drawn is to be, and what it is guided away from: diffusers' own


class Refine(Paint):
    """As painting over a whole picture, by a model that was taught on the last steps alone."""

    TAKES = GUIDANCE | {"tile"}

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if job.image is None or job.mask is not None:
            raise UserError(
                f"{manifest.name} refines pictures: give one with --image and no --mask, or let it finish another "
                f"model's with --refiner."
            )
        return job if job.strength is not None else job.replace(strength=0.3)  # diffusers' own

    @property
    def more_told(self) -> dict[str, Any]:
        return {**super().more_told, "scores": SCORES}
