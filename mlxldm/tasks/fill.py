"""Holes in pictures filled without words (Rombach et al. 2022, section 4.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..job import Job
from ..samplers import Array
from .told import Told

if TYPE_CHECKING:
    from ..folder import Manifest


class Fill(Told):
    """Beside the latents, the network takes those of the picture with black where the mask is, and the mask.

    As in scripts/inpaint.py of https://github.com/CompVis/latent-diffusion.
    """

    DRAWS = "fills holes (--mask, white is one) in pictures (--image) without words"
    TAKES = frozenset(("extend",))
    LEAVES = Told.LEAVES - {"image", "mask"}
    MORE = 1
    MORE_LATENTS = 1

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if job.image is None or not job.masked:
            raise UserError(f"{manifest.name} {cls.DRAWS}: give both.")
        return super().check(job, manifest)

    def beside(self) -> Array:
        image, mask = self.inputs.image, self.inputs.mask
        assert image is not None and mask is not None
        around, _ = self.encode(image * (1 - mask) - mask)
        model = self.model
        unscaled = model.numpy(around) / model.manifest.vae.scaling_factor
        return model.array(np.concatenate([unscaled, 2 * model.numpy(self.latent_mask()) - 1], axis=-1))
