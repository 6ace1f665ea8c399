"""What models are for. A task is how a job's words and pictures become the start of a walk and what leads it.

One class a task, in a file of its own: what of a job it takes and refuses, what it reads once, and how each picture
begins. `generate` does what is the same for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UserError
from .base import Inputs, Start, Task
from .classes import ClassToImage
from .depth import Depth
from .edit import Edit
from .enlarge import Enlarge
from .fill import Fill
from .inpaint import Inpaint
from .layout import Layout
from .paint import Paint
from .refine import Refine
from .retrieve import Retrieve
from .semantic import Semantic
from .unconditional import Unconditional
from .upscale import Upscale

if TYPE_CHECKING:
    from ..folder import Manifest

__all__ = ["Inputs", "Refine", "Start", "Task", "task_of"]

TASKS: dict[str, type[Task]] = {
    "text-to-image": Paint,
    "inpaint": Inpaint,
    "edit": Edit,
    "depth": Depth,
    "unconditional": Unconditional,
    "class-to-image": ClassToImage,
    "super-resolution": Enlarge,
    "semantic": Semantic,
    "layout": Layout,
    "retrieval": Retrieve,
    "refine": Refine,
    "upscale": Upscale,
}


def task_of(manifest: Manifest) -> type[Task]:
    """The task of a model, or a `UserError` where it is a part of one."""
    if manifest.task == "part":
        parts = " and ".join(config.WHAT for config in manifest.parts.values())
        raise UserError(
            f"{manifest.name} is no whole model but a part of one ({parts}): it opens and converts, but using it "
            f"beside a whole model comes with a later version."
        )
    if manifest.task == "inpaint" and "text" not in manifest.parts:
        return Fill
    return TASKS[manifest.task]
