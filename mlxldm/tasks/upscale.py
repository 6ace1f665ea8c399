"""Making small pictures four times as large (Stable Diffusion x4 upscaler).

The small picture is three more channels of the network, noised as Ho et al. 2021 do it in a cascade of models
(https://arxiv.org/abs/2106.15282, section 4.2); the network is told how much.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..job import Job
from ..picture import size_of
from ..schedule import Plan, Schedule
from .base import GUIDANCE, Draws, Inputs, Start, Task

if TYPE_CHECKING:
    from ..backend import Model
    from ..folder import Manifest

TIMES = 4


class Upscale(Task):
    """Seven channels: the latents, and the small picture, which is of their size."""

    DRAWS = f"makes small pictures (--image) {TIMES} times as large"
    TAKES = GUIDANCE | {"noise_level", "tile"}
    LEAVES = frozenset(("strength", "mask"))
    SMALL = True
    MORE = 3
    TILE = 1024

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if job.image is None:
            raise UserError(
                f"{manifest.name} {cls.DRAWS}: give one with --image, and in the prompt what is in it; --noise-level "
                f"says how much of it to make up."
            )
        assert manifest.low_scale is not None
        level = manifest.low_scale.level if job.noise_level is None else job.noise_level
        if not 0 <= level <= manifest.low_scale.most:
            raise UserError(
                f"The job's noise level is {level}, but {manifest.name} knows 0 to {manifest.low_scale.most}; "
                f"{manifest.low_scale.level} is usual."
            )
        return job.replace(noise_level=level)

    @classmethod
    def size(cls, job: Job, manifest: Manifest) -> tuple[int, int]:
        """That of the input picture, whatever it is, times four."""
        assert job.image is not None
        width, height = (TIMES * side for side in size_of(job.image))
        for name, side, asked in (("width", width, job.width), ("height", height, job.height)):
            if asked not in (None, side):
                raise UserError(
                    f"The {name} is {asked}, but {manifest.name} makes {job.image!r} {width} × {height} pixels, "
                    f"{TIMES} times as large: leave it out."
                )
        return width, height

    def __init__(self, model: Model, job: Job, plan: Plan, inputs: Inputs):
        super().__init__(model, job, plan, inputs)
        low = model.manifest.low_scale
        assert inputs.image is not None and job.noise_level is not None and low is not None
        self.text = self.read_prompts()
        self.small = model.array(inputs.image)
        self.kept = float(Schedule(low.schedule).alphas_cumprod[job.noise_level])

    @property
    def more_told(self) -> dict[str, Any]:
        return {**super().more_told, "level": self.job.noise_level}

    def start(self, draw: Draws) -> Start:
        small = self.small * math.sqrt(self.kept) + draw(3) * math.sqrt(1 - self.kept)
        return Start(draw() * self.plan.start_scale, self.lead(self.text, small))
