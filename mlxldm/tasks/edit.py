"""Editing pictures as told (InstructPix2Pix; Brooks et al. 2023, https://arxiv.org/abs/2211.09800)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import UserError
from ..guidance import edited
from ..job import Job
from ..samplers import Denoise
from ..schedule import Plan
from ..windows import Window
from .base import Draws, Inputs, Start, Task

if TYPE_CHECKING:
    from ..backend import Model
    from ..folder import Manifest


class Edit(Task):
    """Eight channels: the latents, and those of the picture that is edited."""

    TAKES = frozenset(("image_guidance", "tile"))
    MORE_LATENTS = 1

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if job.image is None or job.mask is not None or job.strength is not None:
            raise UserError(
                f"{manifest.name} edits a picture as told: give it with --image, what to do in the prompt, and no "
                f"--mask or --strength; --image-guidance says how closely to keep to it."
            )
        keep = 1.5 if job.image_guidance is None else job.image_guidance
        if not (math.isfinite(keep) and keep >= 1):
            raise UserError(f"The job's image guidance is {keep}, but it must be a number from 1 up.")
        return job.replace(image_guidance=keep)

    def __init__(self, model: Model, job: Job, plan: Plan, inputs: Inputs):
        super().__init__(model, job, plan, inputs)
        assert inputs.image is not None
        self.text = self.read_prompts()
        self.plain = self.script.negative() if self.script.guided else None
        mean, _ = self.encode(inputs.image)
        # As trained: the latents without their scale, but with it in the one edit model of EDM's levels (CosXL Edit).
        plain = model.manifest.schedule.sigma_data is None
        self.kept = mean * (1 / model.manifest.vae.scaling_factor) if plain else mean

    def start(self, draw: Draws) -> Start:
        keep = self.job.image_guidance
        assert keep is not None
        guidance = self.guidance if self.guides else 1.0

        def at(window: Window) -> Denoise:
            return edited(self.model, self.text, self.plain, self.plan, guidance, keep, window.of(self.kept))

        return Start(draw() * self.plan.start_scale, self.tile(at))
