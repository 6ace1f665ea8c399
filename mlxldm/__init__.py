"""Latent diffusion on your own computer: native on Apple silicon with MLX, on NVIDIA machines with PyTorch.

    import mlxldm
    mlxldm.draw("a lighthouse on a cliff at dusk", seed=7).save("lighthouse.png")

Importing this loads no framework: MLX or torch comes with the first model.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .job import Job

if TYPE_CHECKING:
    from collections.abc import Iterator

    import PIL.Image

    from .adapters import Adapters, Effect
    from .backend import Model
    from .folder import Folder
    from .generate import Picture, Step

__version__ = "0.1.0"
__all__ = ["Job", "UserError", "draw", "generate", "load", "__version__"]

_last: dict[tuple[str | None, str, str | None, str], Model] = {}  # draw's one model, so that a second picture is quick


def load(
    model: str | Folder | None = None, *, backend: str = "auto", device: str | None = None, precision: str = "auto"
) -> Model:
    """A model, ready to draw.

    `model` is a name, a folder written by `mlxldm-convert`, None for the embedded one, or anything that presents itself
    as a `Folder`: `mlxldm.load(mlxldm_convert.view("path/to/a/diffusers/folder"))` runs a checkpoint in place.
    """
    from . import backend as backends
    from . import store

    folder = store.find(model, None) if model is None or isinstance(model, str) else model
    return backends.load(folder, backend, device, precision)


def generate(
    model: Model, job: Job, refiner: Model | None = None, adapters: Adapters | None = None
) -> Iterator[Effect | Step | Picture]:
    """Work on `job` with a loaded model: a `Step` after every sampling step, a `Picture` when one is finished.

    `refiner`: a second one that ends what the first begins (Stable Diffusion XL's).
    A job with LoRAs or textual inversions needs them as `mlxldm.adapters.worn(job, model.manifest,
    mlxldm_convert.adapter)` reads them; what they do to the model, an `Effect`, is then the first that comes.
    """
    from .generate import generate as run

    return run(model, job, refiner=refiner, adapters=adapters)


def draw(
    prompt: str,
    *,
    model: str | None = None,
    backend: str = "auto",
    device: str | None = None,
    precision: str = "auto",
    **wishes: Any,
) -> PIL.Image.Image:
    """One picture of `prompt` as a Pillow image; `wishes` are a Job's fields (seed, steps, guidance, width ...).

    Keeps the last model it used. For more than one picture, or for the steps between, use `load` and `generate`.
    """
    from PIL import Image

    if wishes.get("count", 1) != 1:
        raise UserError("draw makes one picture; for a count use mlxldm.load and mlxldm.generate.")
    job = Job.from_json({"prompt": prompt, "model": model, **wishes})
    key = (model, backend, device, precision)
    if key not in _last:
        _last.clear()
        _last[key] = load(model, backend=backend, device=device, precision=precision)
    for event in generate(_last[key], job):
        if hasattr(event, "pixels"):
            return Image.fromarray(event.pixels)
    raise AssertionError("generate ended without a picture")


class _Package(ModuleType):
    """Keeps `mlxldm.generate` the function when the file of that name is imported for the first time."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "generate" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
