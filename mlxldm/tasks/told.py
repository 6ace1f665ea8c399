"""What tasks share that draw from noise alone, and are told what to draw by something else than words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UserError
from ..guidance import guided
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
        self.cond = self.told()
        self.more = self.beside()

    def told(self) -> Any:
        """What `predict` is told, with what it is told for guidance if the job has any."""
        return self.model.condition(None, None)

    def beside(self) -> Array | None:
        """The channels that the network takes beside the latents."""
        return None

    def start(self, draw: Draw) -> Start:
        denoise = guided(self.model, self.cond, self.plan, self.guidance, self.more)
        return Start(draw() * self.plan.start_scale, denoise)
