"""Pictures by boxes with labels: what is to be where (Rombach et al. 2022; the boxes' tokens are in `boxes`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import boxes
from ..config import BertConfig
from ..errors import UserError
from ..job import Job
from ..samplers import Array
from .base import GUIDANCE
from .told import Told

if TYPE_CHECKING:
    from ..folder import Manifest


class Layout(Told):
    """Attends to a layout; guided away from the layout without a box."""

    DRAWS = "draws by boxes (--box or --boxes)"
    TAKES = GUIDANCE | {"boxes"}
    GUIDED = True

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if not job.boxes:
            raise UserError(
                f"{manifest.name} {cls.DRAWS}: say what is where, like --box Dog:0.1,0.4,0.5,0.9 (left, top, right and "
                f"bottom, in parts of the picture)."
            )
        boxes.tokens(job.boxes, manifest.part("text", BertConfig))
        return job

    def told(self) -> tuple[Array, Array]:
        assert self.job.boxes is not None
        config = self.model.manifest.part("text", BertConfig)
        layout, empty = (self.model.embed_ids(boxes.tokens(some, config)) for some in (self.job.boxes, ()))
        return layout, empty
