"""What all tasks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from .. import tiles
from ..canvas import extended_size
from ..errors import UserError
from ..guidance import Interval, Told, guided, levels, part_of
from ..job import Job
from ..picture import size_of
from ..samplers import Array, Denoise
from ..schedule import Plan
from ..windows import Window, tiled
from .script import Script

if TYPE_CHECKING:
    from ..backend import Model
    from ..folder import Manifest

# What a job may have and not every model takes: what it is, and who does.
OPTIONAL = {
    "guidance_rescale": ("a guidance rescale", "only models that are guided by words alone take"),
    "guidance_start": ("a guidance start", "only models that are guided by words alone take"),
    "guidance_stop": ("a guidance stop", "only models that are guided by words alone take"),
    "noise_level": ("a noise level", "only models that make small pictures larger take"),
    "tile": ("a tile", "only models that are led by words take"),
    "image_guidance": ("an image guidance", "only models that edit as told have"),
    "depth": ("a depth map", "only models with depth take"),
    "label": ("a class", "only models of classes take"),
    "boxes": ("boxes", "only models that draw by boxes take"),
    "semantic": ("a map of labels", "only models that draw by one take"),
    "database": ("a folder of pictures to find some in", "only models that look at pictures take"),
    "neighbours": ("a number of neighbours", "only models that look at pictures take"),
    "clip": ("a CLIP", "only models that look at pictures take"),
    "extend": ("an extension", "only models that paint a part of a picture take"),
    "hires": ("a second pass", "only models that start from any picture have"),
}


GUIDANCE = frozenset(("guidance_rescale", "guidance_start", "guidance_stop"))  # what `Task.lead` does
# What most models take, and not all.
USUAL = {
    "prompt": "a prompt",
    "negative": "a negative prompt",
    "image": "an image",
    "strength": "a strength",
    "mask": "a mask",
}


@dataclass(frozen=True)
class Inputs:
    """A job's pictures, read and brought to its size."""

    image: np.ndarray | None = None  # (1, H, W, 3) float32 in [-1, 1]; at the latents' size for tasks that say so
    mask: np.ndarray | None = None  # (1, H, W, 1) float32: 1 is painted anew, 0 stays
    encode_tile: int | None = None  # latents a side of what the autoencoder takes at once; None: whole pictures
    decode_tile: int | None = None


class Draws(Protocol):
    """The normal numbers of one picture: (1, h, w, c), of the latents' size and as many channels unless said."""

    def __call__(self, channels: int | None = None) -> Array: ...


def _as_it_is(latent: Array) -> Array:
    return latent


@dataclass(frozen=True)
class Start:
    """Where the walk of one picture begins, and what leads it."""

    x: Array  # (1, h, w, c), as the sampler takes it
    denoise: Denoise
    finish: Callable[[Array], Array] = _as_it_is  # from the walk's latent to the one that is decoded


class Task:
    """A resolved job at work on a loaded model. Making one reads the words and pictures, once for all its pictures."""

    DRAWS: ClassVar[str] = ""  # what a model for it does, as the end of a sentence; said where a job does not fit
    TAKES: ClassVar[frozenset[str]] = frozenset()  # the fields of `OPTIONAL` that it takes
    LEAVES: ClassVar[frozenset[str]] = frozenset()  # the fields of `USUAL` that it has no use for
    SMALL: ClassVar[bool] = False  # whether its image is read at the size of the latents
    MORE: ClassVar[int] = 0  # channels that the network takes beside the latents, without those below
    MORE_LATENTS: ClassVar[int] = 0  # ... and how many times as many as the latents have
    TILE: ClassVar[int | None] = None  # pixels: what is larger than this is made in tiles, though nothing is said

    @classmethod
    def channels(cls, manifest: Manifest) -> int:
        """How many channels the network takes."""
        latents = manifest.vae.latent_channels
        return latents + cls.MORE + cls.MORE_LATENTS * latents

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        """`job` with what the task takes where nothing is said, or a `UserError`; nothing is loaded for it."""
        return job

    @classmethod
    def like(cls, job: Job, manifest: Manifest) -> tuple[int, int] | None:
        """Width and height that the input picture asks for, in pixels; None without one, and where it has its own."""
        return None if job.image is None or job.only_masked else size_of(job.image)

    @classmethod
    def size(cls, job: Job, manifest: Manifest) -> tuple[int, int]:
        """Width and height in pixels: as asked, else the input picture's (cut to whole latents), else the model's.

        An extended picture's are its own and no others, up to whole latents.
        """
        unit = max(8, manifest.vae.factor)
        if manifest.denoiser.diffusers == "UNet2DModel":  # which halves its latents, and knows no halves of them
            unit = max(unit, manifest.vae.factor * 2 ** (manifest.denoiser.levels - 1))
        width, height = job.width, job.height
        if job.extend is not None and not job.only_masked:
            whole = [-(-side // unit) * unit for side in extended_size(job)]
            if width not in (None, whole[0]) or height not in (None, whole[1]):
                raise UserError(
                    f"An extended picture is as large as the picture and its extension, {whole[0]} × {whole[1]}: leave "
                    f"width and height out, or give --only-masked to draw the new part at another size."
                )
            return whole[0], whole[1]
        like = cls.like(job, manifest)
        if like is not None:
            image = [side // unit * unit for side in like]
            if min(image) == 0 and None in (width, height):
                raise UserError(
                    f"{job.image or job.semantic!r} is smaller than {unit} × {unit} pixels; give a larger picture or a "
                    f"size."
                )
            width = image[0] if width is None else width
            height = image[1] if height is None else height
        width = manifest.defaults.width if width is None else width
        height = manifest.defaults.height if height is None else height
        for name, side in (("width", width), ("height", height)):
            if side < unit or side % unit:
                near = max(unit, round(side / unit) * unit)
                raise UserError(f"The {name} is {side}, but it must be a multiple of {unit}, for example {near}.")
        return width, height

    def __init__(self, model: Model, job: Job, plan: Plan, inputs: Inputs):
        assert job.width is not None and job.height is not None and job.guidance is not None
        self.model, self.job, self.plan, self.inputs = model, job, plan, inputs
        self.factor = model.manifest.vae.factor
        self.width, self.height, self.guidance = job.width, job.height, job.guidance
        self.alone: Any = None  # the prompt without a negative one, once something asks for it

    def start(self, draw: Draws) -> Start:
        """How one picture begins; `draw` gives its normal numbers, in diffusers' order."""
        raise NotImplementedError

    # What most of them do.

    @property
    def guides(self) -> bool:
        """Whether the model is asked twice: with what it is told, and without."""
        return (self.guidance > 1 or self.plan.both) and not self.guides_itself

    @property
    def guides_itself(self) -> bool:
        """Whether the network is told how much to guide, and does it."""
        return self.model.manifest.denoiser.time_cond_proj_dim is not None

    @property
    def zeros(self) -> bool:
        """Whether zeros stand for the negative prompt."""
        given = self.job.negative is not None or self.job.negative_2 is not None
        return self.model.manifest.zeros_for_empty and not given

    @property
    def more_told(self) -> dict[str, Any]:
        """What the network is told besides prompts and size, as `encode_text` takes it."""
        return {"guidance": self.guidance} if self.guides_itself else {}

    def read_prompts(self) -> Told:
        """Prompts and negative prompts of all steps."""
        self.script = Script(self)
        return self.script.both()

    def lead(self, text: Any, more: Array | None = None) -> Denoise:
        """`denoise` of a model with what `read_prompts` gave, guided as the job says; `more`: see `guided`."""
        job, interval = self.job, None
        start, stop = part_of(job)
        if (start, stop) != (0, 1):
            if self.alone is None:  # several prompts together need the negative one all the way
                self.alone = text if self.script.composed else self.script.alone()
            interval = Interval(*levels(self.plan, start, stop), self.alone)

        def at(window: Window) -> Denoise:
            beside, rescale = None if more is None else window.of(more), job.guidance_rescale or 0.0
            return guided(self.model, text, self.plan, self.guidance if self.guides else 1.0, beside, rescale, interval)

        return self.tile(at)

    def tile(self, at: Callable[[Window], Denoise]) -> Denoise:
        """`denoise` of the whole picture from that of each `Window`: one, or as many as the job's tiles make it."""
        size = self.job.tile or self.TILE or max(self.width, self.height)
        height, width, size = (side // self.factor for side in (self.height, self.width, size))
        return tiled(at, height, width, size, self.model)

    def encode(self, pixels: np.ndarray) -> tuple[Array, Array]:
        """Mean and standard deviation of the latent of `pixels` (1, H, W, 3)."""
        return tiles.encode(self.model, pixels, self.inputs.encode_tile, self.job.seamless)

    def latent_mask(self) -> Array:
        """The mask at the size of the latents: as diffusers does, every `factor`-th pixel of it."""
        assert self.inputs.mask is not None
        return self.model.array(self.inputs.mask[:, :: self.factor, :: self.factor])
