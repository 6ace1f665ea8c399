"""Small pictures made larger: a pixel becomes what a latent stands for, four by four (Rombach et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UserError
from ..job import Job
from ..picture import size_of
from ..samplers import Array
from .told import Told

if TYPE_CHECKING:
    from ..folder import Manifest


class Enlarge(Told):
    """Beside the latents, the network takes the small picture, which has their size.

    As trained, the picture is the same at every step; diffusers' LDMSuperResolutionPipeline scales it down with the
    latents under samplers that scale these (Euler's and the like), and draws something else there.
    """

    DRAWS = "makes small pictures (--image) larger"
    LEAVES = Told.LEAVES - {"image"}
    MORE = 3
    SMALL = True

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if job.image is None:
            raise UserError(f"{manifest.name} {cls.DRAWS}, {manifest.vae.factor} times: give one.")
        return super().check(job, manifest)

    @classmethod
    def like(cls, job: Job, manifest: Manifest) -> tuple[int, int] | None:
        assert job.image is not None
        width, height = size_of(job.image)
        return width * manifest.vae.factor, height * manifest.vae.factor

    def beside(self) -> Array:
        assert self.inputs.image is not None
        return self.model.array(self.inputs.image)
