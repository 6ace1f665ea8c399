"""Drawing what lies as deep as is said (Stable Diffusion 2 with depth)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UserError
from ..job import Job
from ..picture import load_depth, size_of
from ..schedule import Plan
from .base import GUIDANCE, Inputs
from .paint import Paint

if TYPE_CHECKING:
    from ..backend import Model
    from ..folder import Manifest


class Depth(Paint):
    """As painting, with a map of depths as one more channel."""

    TAKES = GUIDANCE | {"depth", "hires", "tile"}
    MORE = 1

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if job.depth is None or job.mask is not None:
            raise UserError(
                f"{manifest.name} draws what lies as deep as you say: give a depth map with --depth (near is white), "
                f"and no --mask; --image may say where to start."
            )
        size_of(job.depth)  # complains if it cannot be read
        return super().check(job, manifest)

    def __init__(self, model: Model, job: Job, plan: Plan, inputs: Inputs):
        super().__init__(model, job, plan, inputs)
        assert job.depth is not None
        self.more = model.array(load_depth(job.depth, self.width, self.height, self.factor))
