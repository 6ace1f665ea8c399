"""Pictures of a class, by its number (ImageNet's; Rombach et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UserError
from ..job import Job
from ..samplers import CFGPP, Array
from .base import GUIDANCE
from .told import Told

if TYPE_CHECKING:
    from ..folder import Manifest


class ClassToImage(Told):
    """Attends to what stands for a class; guided away from the class of nothing in particular, where there is one."""

    DRAWS = "draws pictures of a class (--class)"
    TAKES = GUIDANCE | {"label"}
    GUIDED = True

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        classes = manifest.classes
        if job.label is None:
            raise UserError(
                f"{manifest.name} {cls.DRAWS}: say which with its number, from 0 to {classes.num_classes - 1}."
            )
        classes.check(job.label)
        if classes.empty is not None:
            return job
        if (job.guidance is not None and job.guidance > 1) or job.sampler in CFGPP:
            raise UserError(
                f"{manifest.name} has not learned to draw without a class, so it knows no guidance: leave --guidance "
                f"out, and take a sampler without CFG++."
            )
        return job if job.guidance is not None else job.replace(guidance=1.0)

    def told(self) -> tuple[Array, Array | None]:
        assert self.job.label is not None
        empty = self.model.manifest.classes.empty
        return self.model.embed_class(self.job.label), None if empty is None else self.model.embed_class(empty)
