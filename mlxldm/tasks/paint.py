"""Text to image, image to image, and inpainting with models that were not made for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..guidance import masked
from ..job import Job
from ..samplers import Array
from ..schedule import Plan
from .base import GUIDANCE, Draws, Inputs, Start, Task

if TYPE_CHECKING:
    from ..backend import Model
    from ..folder import Manifest


class Paint(Task):
    """From noise; or from a picture with noise on it; or that within a mask."""

    TAKES = GUIDANCE | {"extend", "hires", "tile"}

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if job.image is None or job.strength is not None:
            return job
        return job.replace(strength=1.0 if job.masked else 0.8)  # diffusers' own

    def __init__(self, model: Model, job: Job, plan: Plan, inputs: Inputs):
        super().__init__(model, job, plan, inputs)
        self.text = self.read_prompts()
        self.posterior = None if inputs.image is None else self.encode(inputs.image)
        self.mask = None if inputs.mask is None else self.latent_mask()
        self.more: Array | None = None  # what the network takes beside the latents

    def start(self, draw: Draws) -> Start:
        denoise = self.lead(self.text, self.more)
        if self.posterior is None:
            return Start(draw() * self.plan.start_scale, denoise)
        mean, deviation = self.posterior
        source = mean + deviation * draw()
        first = draw()
        mask = self.mask
        if mask is None:
            return Start(source + first * self.plan.sigmas[0], denoise)
        draw()  # diffusers encodes the masked picture for these models too
        pure = self.job.strength == 1
        x = first * self.plan.start_scale if pure else source + first * self.plan.sigmas[0]
        return Start(
            x,
            masked(denoise, source, first, mask),
            lambda latent: latent * mask + source * (1 - mask),
        )
