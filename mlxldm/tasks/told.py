"""What tasks share that draw from noise alone, and are told what to draw by something else than words."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..errors import UserError
from ..guidance import part_of
from ..job import Job
from ..samplers import Array, Draw
from ..schedule import Plan
from .base import USUAL, Inputs, Start, Task

if TYPE_CHECKING:
    from ..backend import Model
    from ..folder import Manifest


class Told(Task):
    """Makes of a job what the network attends to (`told`), and what it is given beside the latents (`beside`)."""

    LEAVES = frozenset(USUAL)
    GUIDED: ClassVar[bool] = False  # whether it knows what to draw where nothing is said

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if cls.GUIDED:
            return job
        if job.guidance is not None and job.guidance != 1:
            raise UserError(f"{manifest.name} {cls.DRAWS} and knows no guidance: leave --guidance out.")
        return job.replace(guidance=1.0)

    def __init__(self, model: Model, job: Job, plan: Plan, inputs: Inputs):
        super().__init__(model, job, plan, inputs)
        attends, without = self.told()
        self.cond = model.condition(attends, without if self.guides else None)
        if part_of(job) != (0, 1):
            self.alone = model.condition(attends, None)
        self.more = self.beside()

    def told(self) -> tuple[Array | None, Array | None]:
        """What the network attends to (1, L, width), None where it attends to nothing; and that for guidance."""
        return None, None

    def beside(self) -> Array | None:
        """The channels (1, h, w, c) that the network takes beside the latents."""
        return None

    def start(self, draw: Draw) -> Start:
        return Start(draw() * self.plan.start_scale, self.lead(self.cond, self.more))
