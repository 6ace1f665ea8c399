"""From a job to pictures: one way for text, image and inpainting jobs, on any backend.

    noise ─► SAMPLERS[sampler](masked(guided(model, text, guidance), source, mask), x, sigmas) ─► decode ─► Picture

What differs between jobs is only where x starts and what the sampler's `denoise` is wrapped in. Random numbers are
drawn in diffusers' order, so that a job is the picture that `StableDiffusionPipeline` and its image-to-image and
inpainting brothers give for the same seed.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError, nearest
from .job import NOISES, Job
from .noise import Noise
from .picture import load_depth, load_image, load_mask, size_of
from .samplers import SAMPLERS, Array, Denoise
from .schedule import SPACINGS, Plan, Schedule

if TYPE_CHECKING:
    from .backend import Model
    from .folder import Manifest


@dataclass(frozen=True)
class Step:
    """One sampling step of one picture is done."""

    index: int  # which picture, from 0
    step: int  # which step, from 1
    of: int  # how many there are
    sigma: float  # the noise level it started from
    guess: Array  # what the picture may become: a latent (1, h, w, c) on the backend
    seconds: float  # it took


@dataclass(frozen=True)
class Picture:
    """A finished picture, and the job that makes it again: its own seed, a count of one, nothing left open."""

    index: int  # which one, from 0
    pixels: np.ndarray  # (H, W, 3) uint8
    job: Job
    seconds: float  # from its first random number to its last pixel, without the text encoder


def generate(model: Model, job: Job) -> Iterator[Step | Picture]:
    """Work on `job`: a `Step` after every sampling step and a `Picture` when one is finished, `count` times.

    Raises `UserError` at once for a job the model cannot do (`resolve`). Stop by not asking for more.
    """
    return _pictures(model, resolve(job, model.manifest))


# The job.


def resolve(job: Job, manifest: Manifest) -> Job:
    """`job` with the model's defaults where it says nothing, checked as far as can be without loading the model.

    Raises `UserError` with what was found and what to do. Resolving twice changes nothing.
    """
    own = manifest.defaults
    _check_drawn(manifest)
    _check_plain(job)
    _check_picture_in(job)
    latents = manifest.vae.latent_channels
    more = {"inpaint": 1 + latents, "edit": latents, "depth": 1}.get(manifest.task, 0)
    if manifest.denoiser.in_channels != latents + more:
        raise UserError(
            f"{manifest.name} takes {manifest.denoiser.in_channels} channels where a model for {manifest.task} takes "
            f"{latents + more}: the model folder is damaged, convert it again."
        )
    if manifest.task == "inpaint" and (job.image is None or job.mask is None):
        raise UserError(
            f"{manifest.name} paints into pictures: give the picture with --image and what to paint anew with --mask "
            f"(white in it), or choose another model."
        )
    _check_edit(job, manifest)
    _check_depth(job, manifest)
    sampler = job.sampler or own.sampler
    if sampler not in SAMPLERS:
        whose = "" if job.sampler else f", which {manifest.name} asks for"
        raise UserError(
            f"There is no sampler {sampler!r}{whose}.{nearest(sampler, SAMPLERS)} There are {', '.join(SAMPLERS)}."
        )
    spacing = job.spacing or own.spacing
    if spacing not in SPACINGS:
        raise UserError(
            f"There is no spacing {spacing!r}.{nearest(spacing, SPACINGS)} There are {', '.join(SPACINGS)}."
        )
    width, height = _size(job, manifest)
    strength = job.strength
    if job.image is not None and strength is None and manifest.task != "edit":
        strength = 0.8 if job.mask is None else 1.0  # diffusers' own
    job = job.replace(
        seed=secrets.randbelow(2**32) if job.seed is None else job.seed,
        steps=own.steps if job.steps is None else job.steps,
        guidance=own.guidance if job.guidance is None else job.guidance,
        sampler=sampler,
        spacing=spacing,
        width=width,
        height=height,
        strength=strength,
        image_guidance=1.5 if manifest.task == "edit" and job.image_guidance is None else job.image_guidance,
    )
    _plan(job, manifest)  # complains where steps, spacing, sampler and strength do not fit together
    return job


# Models that open and convert, and wait for the code that draws with them: what each is for.
WAITING = {
    "refine": "refining pictures of Stable Diffusion XL",
    "upscale": "making small pictures four times as large",
    "unconditional": "pictures of one kind, of nothing that is asked for",
    "class-to-image": "pictures of a class",
    "super-resolution": "making small pictures four times as large",
    "semantic": "pictures of a map of labels",
    "layout": "pictures of boxes with labels",
    "retrieval": "pictures like others that are found for a text",
}


def _check_drawn(manifest: Manifest) -> None:
    if manifest.task == "part":
        parts = " and ".join(config.WHAT for config in manifest.parts.values())
        raise UserError(
            f"{manifest.name} is no whole model but a part of one ({parts}): it opens and converts, but using it "
            f"beside a whole model comes with a later version."
        )
    what = WAITING.get(manifest.task)
    if manifest.family == "ldm-inpaint":
        what = "inpainting without words"
    if (manifest.family, manifest.task) == ("sdxl", "edit"):
        what = "editing pictures as told, of the Stable Diffusion XL kind"
    if what is not None:
        raise UserError(
            f"{manifest.name} is a model for {what}: it opens and converts, but this version does not draw with it."
        )
    if manifest.family in ("ldm-text", "ldm-text256"):
        raise UserError(
            f"{manifest.name} is one of the first latent diffusion models: it opens and converts, but this version "
            f"does not draw with it."
        )


def _check_edit(job: Job, manifest: Manifest) -> None:
    if manifest.task != "edit":
        if job.image_guidance is not None:
            raise UserError(
                f"The job has an image guidance, which only models that edit as told have; {manifest.name} is none: "
                f"leave it out."
            )
        return
    if job.image is None or job.mask is not None or job.strength is not None:
        raise UserError(
            f"{manifest.name} edits a picture as told: give it with --image, what to do in the prompt, and no --mask "
            f"or --strength; --image-guidance says how closely to keep to it."
        )
    if job.image_guidance is not None and not (math.isfinite(job.image_guidance) and job.image_guidance >= 1):
        raise UserError(f"The job's image guidance is {job.image_guidance}, but it must be a number from 1 up.")


def _check_depth(job: Job, manifest: Manifest) -> None:
    if manifest.task != "depth":
        if job.depth is not None:
            raise UserError(
                f"The job has a depth map, which only models with depth take; {manifest.name} is none: leave it out."
            )
        return
    if job.depth is None or job.mask is not None:
        raise UserError(
            f"{manifest.name} draws what lies as deep as you say: give a depth map with --depth (near is white), and "
            f"no --mask; --image may say where to start."
        )
    size_of(job.depth)  # complains if it cannot be read


def _check_plain(job: Job) -> None:
    if job.count < 1:
        raise UserError(f"The job's count is {job.count}, but at least one picture must be made.")
    if job.seed is not None and not 0 <= job.seed <= 2**64 - job.count:
        raise UserError(f"The job's seed is {job.seed}, but seeds go from 0 to {2**64 - 1}.")
    if job.steps is not None and job.steps < 1:
        raise UserError(f"The job has {job.steps} steps, but at least 1 is needed; 20 to 30 are usual.")
    if job.guidance is not None and not (math.isfinite(job.guidance) and job.guidance >= 0):
        raise UserError(f"The job's guidance is {job.guidance}, but it must be a number from 0 up; 7.5 is usual.")
    if job.noise not in NOISES:
        raise UserError(f"There is no noise {job.noise!r}.{nearest(job.noise, NOISES)} There are {', '.join(NOISES)}.")


def _check_picture_in(job: Job) -> None:
    if job.mask is not None and job.image is None:
        raise UserError("The job has a mask but no image; give the picture that is to be painted over as well.")
    if job.strength is not None:
        if job.image is None:
            raise UserError("The job has a strength but no image to start from; give an image or leave it out.")
        if not 0 < job.strength <= 1:  # false for NaN too
            raise UserError(f"The job's strength is {job.strength}, but it must be above 0 and at most 1.")
    if job.mask is not None:
        size_of(job.mask)  # complains if it cannot be read


def _size(job: Job, manifest: Manifest) -> tuple[int, int]:
    """The picture's width and height in pixels: as asked, else the input picture's (cut to whole latents), else own."""
    unit = max(8, _factor(manifest))
    width, height = job.width, job.height
    if job.image is not None:
        image = [side // unit * unit for side in size_of(job.image)]
        if min(image) == 0 and None in (width, height):
            raise UserError(f"{job.image!r} is smaller than {unit} × {unit} pixels; give a larger picture or a size.")
        width = image[0] if width is None else width
        height = image[1] if height is None else height
    width = manifest.defaults.width if width is None else width
    height = manifest.defaults.height if height is None else height
    for name, side in (("width", width), ("height", height)):
        if side < unit or side % unit:
            near = max(unit, round(side / unit) * unit)
            raise UserError(f"The {name} is {side}, but it must be a multiple of {unit}, for example {near}.")
    return width, height


def _factor(manifest: Manifest) -> int:
    """How many pixels of a side make one of a latent."""
    return int(2 ** (len(manifest.vae.block_out_channels) - 1))


def _plan(job: Job, manifest: Manifest) -> Plan:
    assert job.steps is not None and job.spacing is not None and job.sampler is not None
    strength = 1.0 if job.strength is None else job.strength
    return Schedule(manifest.schedule).plan(job.steps, job.spacing, job.sampler, strength)


# The work.


def _pictures(model: Model, job: Job) -> Iterator[Step | Picture]:
    """The pictures of a resolved job."""
    assert job.seed is not None and job.guidance is not None and job.width is not None and job.height is not None
    assert job.sampler is not None
    plan = _plan(job, model.manifest)
    factor = _factor(model.manifest)
    shape = (1, job.height // factor, job.width // factor, model.manifest.vae.latent_channels)
    negative = (job.negative or "") if job.guidance > 1 else None
    zeros = job.negative is None and model.manifest.zeros_for_empty
    text = model.encode_text(job.prompt, negative, job.width, job.height, zeros)

    posterior, mask, around = None, None, None
    sees_mask = model.manifest.task == "inpaint"  # and the picture around it, at every step
    if job.image is not None:
        picture = load_image(job.image, job.width, job.height)
        posterior = model.encode_image(model.array(picture))
        if sees_mask:
            assert job.mask is not None
            outside = load_mask(job.mask, job.width, job.height, 1) < 0.5
            around = model.encode_image(model.array(picture * outside))
    if job.mask is not None:
        mask = model.array(load_mask(job.mask, job.width, job.height, factor))
    deep = None
    if job.depth is not None:
        deep = model.array(load_depth(job.depth, job.width, job.height, factor))
    edits = model.manifest.task == "edit"
    kept, plain = None, None
    if edits and posterior is not None:
        kept = posterior[0] * (1 / model.manifest.vae.scaling_factor)  # as trained: the latents without their scale
        plain = model.encode_text(negative, None, job.width, job.height) if negative is not None else None

    for index in range(job.count):
        began = time.perf_counter()
        own = job.replace(seed=job.seed + index, count=1)
        noise = Noise(job.seed + index, job.noise)

        def draw(noise: Noise = noise) -> Array:
            return model.array(noise.draw(*shape))

        source, more = None, deep
        if posterior is None or edits:
            x = draw() * plan.start_scale
        else:
            mean, deviation = posterior
            pure = mask is not None and job.strength == 1
            if not (sees_mask and pure):  # diffusers' order: each of these draws counts
                source = mean + deviation * draw()
            first = draw()
            if around is not None:
                hidden = around[0] + around[1] * draw()
                more = model.array(np.concatenate([model.numpy(mask), model.numpy(hidden)], axis=-1))
            elif mask is not None:
                noise.draw(*shape)  # it encodes the masked picture for other models too
            x = first * plan.start_scale if pure else source + first * plan.sigmas[0]
            model.evaluate(x)  # so that the first step's seconds are its own

        if edits:
            assert job.image_guidance is not None
            denoise = edited(model, text, plain, plan, job.guidance, job.image_guidance, kept)
        else:
            denoise = guided(model, text, plan, job.guidance, more)
        if mask is not None and not sees_mask:
            denoise = masked(denoise, source, first, mask)
        clock = time.perf_counter()
        walk = SAMPLERS[job.sampler](denoise, x, plan.sigmas, draw, **plan.options)
        for step, (x, guess) in enumerate(walk, 1):
            model.evaluate(x)
            yield Step(index, step, plan.steps, plan.sigmas[step - 1], guess, time.perf_counter() - clock)
            clock = time.perf_counter()

        latent = x * plan.end_scale
        if mask is not None and not sees_mask:
            latent = latent * mask + source * (1 - mask)
        pixels = _bytes(model.numpy(model.decode(latent)))
        yield Picture(index, pixels, own, time.perf_counter() - began)


def guided(model: Model, text: Any, plan: Plan, guidance: float, more: Array | None = None) -> Denoise:
    """`denoise(x, sigma)` of a model with its text: the clean guess, guided away from the negative prompt.

    `more` (1, h, w, c) are the channels that the network takes beside the latents.

    Where the model gives two answers: classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).
    """

    def answer(x: Array, timestep: float) -> Array:
        told, without = model.predict(x, timestep, text, more)
        return told if without is None else without + (told - without) * guidance

    return _clean(answer, plan)


def edited(
    model: Model, text: Any, plain: Any, plan: Plan, guidance: float, image_guidance: float, kept: Array
) -> Denoise:
    """`denoise(x, sigma)` of a model that edits the picture `kept` (1, h, w, c) as told.

    Guided twice, by the words and by the picture (Brooks et al. 2023, https://arxiv.org/abs/2211.09800, eq. 3). `plain`
    is the negative prompt alone, None where there is no guidance.
    """

    def answer(x: Array, timestep: float) -> Array:
        told, seen = model.predict(x, timestep, text, kept)
        if seen is None:
            return told
        free, _ = model.predict(x, timestep, plain, kept * 0.0)
        return free + (told - seen) * guidance + (seen - free) * image_guidance

    return _clean(answer, plan)


def _clean(answer: Callable[[Array, float], Array], plan: Plan) -> Denoise:
    """`denoise(x, sigma)`: the clean guess that follows from a network's answer, by what it predicts."""

    def denoise(x: Array, sigma: float) -> Array:
        scale = 1 / math.sqrt(sigma * sigma + 1)
        said = answer(x * scale, plan.timestep(sigma))
        if plan.prediction == "epsilon":
            return x - said * sigma
        if plan.prediction == "v":
            return x * (scale * scale) - said * (sigma * scale)
        return said  # "sample": the model's answer is the guess

    return denoise


def masked(denoise: Denoise, source: Array, noise: Array, mask: Array) -> Denoise:
    """`denoise` that only sees and changes what is inside the mask (1 = paint anew); outside it is `source`.

    Before a call, x outside becomes `source` with the call's amount of `noise`; after it, the guess there is `source`.
    The first call sees x as it is: diffusers blends after a step, and starts from pure noise everywhere at strength 1.
    """
    fresh = True

    def inside(x: Array, sigma: float) -> Array:
        nonlocal fresh
        if not fresh:
            x = x * mask + (source + noise * sigma) * (1 - mask)
        fresh = False
        return denoise(x, sigma) * mask + source * (1 - mask)

    return inside


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """(1, H, W, 3) in [-1, 1] as (H, W, 3) uint8, rounded as diffusers does."""
    if not np.isfinite(pixels).all():
        raise UserError("The picture came out as no numbers: too large for this precision; use --precision float32.")
    return np.rint(np.clip(pixels[0] * np.float32(0.5) + np.float32(0.5), 0, 1) * 255).astype(np.uint8)
