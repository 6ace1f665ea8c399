"""Inpainting with models made for it, which see the mask and the picture around it at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..job import Job
from ..schedule import Plan
from .base import GUIDANCE, Draws, Inputs, Start, Task

if TYPE_CHECKING:
    from ..backend import Model
    from ..folder import Manifest


class Inpaint(Task):
    """Nine channels: the latents, the mask, and the latents of the picture with a hole where the mask is."""

    TAKES = GUIDANCE | {"extend", "tile"}
    MORE = 1
    MORE_LATENTS = 1

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if job.image is None or not job.masked:
            raise UserError(
                f"{manifest.name} paints into pictures: give the picture with --image and what to paint anew with "
                f"--mask (white in it) or --extend, or choose another model."
            )
        return job if job.strength is not None else job.replace(strength=1.0)

    def __init__(self, model: Model, job: Job, plan: Plan, inputs: Inputs):
        super().__init__(model, job, plan, inputs)
        assert inputs.image is not None and inputs.mask is not None
        self.text = self.read_prompts()
        self.posterior = self.encode(inputs.image)
        self.around = self.encode(inputs.image * (inputs.mask < 0.5))
        self.mask = self.latent_mask()

    def start(self, draw: Draws) -> Start:
        model, plan = self.model, self.plan
        if self.job.strength == 1:
            x = draw() * plan.start_scale
        else:
            mean, deviation = self.posterior
            source = mean + deviation * draw()
            x = source + draw() * plan.sigmas[0]
        mean, deviation = self.around
        around = mean + deviation * draw()
        more = model.array(np.concatenate([model.numpy(self.mask), model.numpy(around)], axis=-1))
        return Start(x, self.lead(self.text, more))
