"""From a job to pictures: one way for every task, on any backend.

    Job ─► resolve ─► Task.start ─► SAMPLERS[sampler](denoise, x, sigmas) ─► Task.finish ─► decode ─► Picture

What differs between jobs is only where x starts and what leads the sampler, `denoise`: that is their task's business
(`tasks`). Random numbers are drawn in diffusers' order, so that a job is the picture that `StableDiffusionPipeline` and
its image-to-image and inpainting brothers give for the same seed.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import canvas, passes, tiles
from .adapters import NONE, Adapters, Effect, put_on, wish
from .config import ClipTextConfig
from .errors import UserError, nearest
from .guidance import levels, part_of
from .job import NOISES, SEAMLESS, Job, variation_of
from .noise import Mixed, Noise
from .picture import load_image, stretched
from .plan import Beside, left, sides
from .prompt import EMPHASES, Network, Pass, networks, weigh
from .samplers import CFGPP, SAMPLERS, Array, Denoise
from .schedule import SPACINGS, Plan, Schedule
from .tasks import Inputs, Refine, Task, task_of
from .tasks.base import GUIDANCE, OPTIONAL, USUAL
from .tasks.script import lines
from .wildcards import PROMPTS, pictures, tellings

if TYPE_CHECKING:
    from .backend import Model
    from .folder import Manifest


@dataclass(frozen=True)
class Step:
    """One sampling step of one picture is done."""

    index: int  # which picture, from 0
    step: int  # which step, from 1; a second pass counts on
    of: int  # how many there are, in all passes
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


def generate(
    model: Model,
    job: Job,
    memory: int | None = None,
    refiner: Model | None = None,
    adapters: Adapters | None = None,
) -> Iterator[Effect | Step | Picture]:
    """Work on `job`: a `Step` after every sampling step and a `Picture` when one is finished, `count` times.

    `memory`: bytes that may be used, by which the autoencoder works in tiles or not (`plan`); None: what there is.
    `refiner` is a second model that ends what the first begins, at the job's `refiner_start`.
    `adapters` are the job's, found and read (`adapters.worn`); before all else comes the `Effect` that they have, and
    again where a picture's prompt asks for others than the one before. The model keeps them until its next job; a
    refiner has none.
    Raises `UserError` at once for a job the model cannot do (`resolve`). Stop by not asking for more.
    """
    if adapters is None and job.embeddings:
        raise UserError(
            "The job has textual inversions, and generate was not given them: "
            "adapters=mlxldm.adapters.worn(job, model.manifest, mlxldm_convert.adapter)."
        )
    job = resolve(job, model.manifest, refiner.manifest if refiner else None)
    for own in tellings(job):
        (adapters or NONE).of(own)  # complains
    beside = Beside(refiner.manifest if refiner else None, adapters)
    memory = left(model.manifest, model.machine, memory, beside)
    return _pictures(model, job, memory, refiner, adapters or NONE)


# The job.


def resolve(job: Job, manifest: Manifest, refiner: Manifest | None = None) -> Job:
    """`job` with the model's defaults where it says nothing, checked as far as can be without loading the model.

    Raises `UserError` with what was found and what to do. Resolving twice changes nothing.
    """
    task = task_of(manifest)
    _check_channels(task, manifest)
    _check_plain(job)
    _check_taken(task, job, manifest)
    _check_strength(job)
    job = task.check(passes.resolved(canvas.resolved(job)), manifest)
    job = _handed_over(job, manifest, refiner)
    own = manifest.defaults
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
    width, height = task.size(job, manifest)
    job = job.replace(
        seed=secrets.randbelow(2**32) if job.seed is None else job.seed,
        steps=own.steps if job.steps is None else job.steps,
        guidance=_guidance(job, sampler, own.guidance),
        sampler=sampler,
        spacing=spacing,
        width=width,
        height=height,
    )
    does_it = manifest.denoiser.time_cond_proj_dim is not None
    if does_it and (sampler in CFGPP or any(getattr(job, name) is not None for name in GUIDANCE)):
        raise UserError(
            f"{manifest.name} is told the guidance as a number and does it itself: take no sampler of CFG++, and no "
            f"guidance rescale, start or stop."
        )
    if sampler in CFGPP and not task.TAKES >= GUIDANCE:
        raise UserError(f"{sampler} is for models that are guided by words alone; {manifest.name} is none: take ddim.")
    planned = _walks(job, manifest, refiner)  # complains where steps, spacing, sampler, strength do not fit together
    for each, plan in planned:
        _check_guidance(each, plan)
        _check_seamless(each, manifest)
    if job.masked:
        _check_mask(job, manifest)
    check_words(job, manifest, [plan.walk for _, plan in planned])
    return job


def walks(job: Job, manifest: Manifest, refiner: Manifest | None = None) -> list[Pass]:
    """What schedules in a resolved job's prompts count in."""
    return [plan.walk for _, plan in _walks(job, manifest, refiner)]


def remarks(job: Job) -> list[str]:
    """What a person should know of a resolved job before it is worked on, a sentence each."""
    asked = [network for text in (job.negative, job.negative_2) for network in networks(text or "")[1]]
    return [f"{network} in a negative prompt changes nothing: it is read as words there, as A1111's web UI does"
            for network in dict.fromkeys(asked)]  # fmt: skip


def _check_channels(task: type[Task], manifest: Manifest) -> None:
    wanted = task.channels(manifest)
    if manifest.denoiser.in_channels != wanted:
        raise UserError(
            f"{manifest.name} takes {manifest.denoiser.in_channels} channels where a model for {manifest.task} takes "
            f"{wanted}: the model folder is damaged, convert it again."
        )


def _check_taken(task: type[Task], job: Job, manifest: Manifest) -> None:
    for name, (what, who) in OPTIONAL.items():
        if getattr(job, name) is not None and name not in task.TAKES:
            raise UserError(f"The job has {what}, which {who}; {manifest.name} is none: leave it out.")
    for name, what in USUAL.items():
        if name in task.LEAVES and getattr(job, name) not in (None, ""):
            raise UserError(f"The job has {what}, but {manifest.name} {task.DRAWS}: leave it out.")


def _check_plain(job: Job) -> None:
    if job.count < 1:
        raise UserError(f"The job's count is {job.count}, but at least one picture must be made.")
    counted = job.seed if job.variation is None else variation_of(job.variation)[0]
    if counted is not None and not 0 <= counted <= 2**64 - job.count:
        raise UserError(f"The job's seed is {counted}, but seeds go from 0 to {2**64 - 1}.")
    if job.seed is not None and not 0 <= job.seed < 2**64:
        raise UserError(f"The job's seed is {job.seed}, but seeds go from 0 to {2**64 - 1}.")
    if job.steps is not None and job.steps < 1:
        raise UserError(f"The job has {job.steps} steps, but at least 1 is needed; 20 to 30 are usual.")
    if job.guidance is not None and not (math.isfinite(job.guidance) and job.guidance >= 0):
        raise UserError(f"The job's guidance is {job.guidance}, but it must be a number from 0 up; 7.5 is usual.")
    for what, part in (("rescale", job.guidance_rescale), ("start", job.guidance_start), ("stop", job.guidance_stop)):
        if part is not None and not 0 <= part <= 1:  # false for NaN too
            raise UserError(f"The job's guidance {what} is {part}, but it must lie between 0 and 1.")
    if job.tile is not None and (job.tile < 64 or job.tile % 8):
        raise UserError(f"The job's tile is {job.tile} pixels, but it must be a multiple of 8 from 64 up.")
    for text in job.loras:
        wish(text)  # complains
    if job.noise not in NOISES:
        raise UserError(f"There is no noise {job.noise!r}.{nearest(job.noise, NOISES)} There are {', '.join(NOISES)}.")


def _check_strength(job: Job) -> None:
    if job.strength is not None:
        if job.image is None:
            raise UserError("The job has a strength but no image to start from; give an image or leave it out.")
        if not 0 < job.strength <= 1:  # false for NaN too
            raise UserError(f"The job's strength is {job.strength}, but it must be above 0 and at most 1.")


def _check_seamless(job: Job, manifest: Manifest) -> None:
    """Where latents are halved on the way down and one is left over, there would be a seam."""
    if job.seamless is None:
        return
    if job.seamless not in SEAMLESS:
        raise UserError(
            f"There is no seamless {job.seamless!r}.{nearest(job.seamless, SEAMLESS)} There are {', '.join(SEAMLESS)}."
        )
    if job.only_masked or job.extend is not None:
        raise UserError("Only whole pictures are seamless: leave out --seamless, or --only-masked and --extend.")
    assert job.width is not None and job.height is not None
    largest, tile = max(job.width, job.height), job.tile or task_of(manifest).TILE
    if tile is not None and tile < largest:
        raise UserError(f"Tiles of {tile} pixels have edges: leave --seamless out, or say --tile {largest}.")
    unit = manifest.vae.factor * 2 ** (manifest.denoiser.levels - 1)
    for axis, name, side in (("x", "width", job.width), ("y", "height", job.height)):
        if job.seamless in (axis, "both") and side % unit:
            near = max(unit, round(side / unit) * unit)
            raise UserError(
                f"The {name} is {side}, but {manifest.name} draws without a seam at multiples of {unit} only, for "
                f"example {near}."
            )


def _check_mask(job: Job, manifest: Manifest) -> None:
    factor = manifest.vae.factor
    if not canvas.Canvas(job).mask[:, ::factor, ::factor].any():
        raise UserError(
            f"What is to be painted anew is too thin for {manifest.name}, which looks at every {factor}th pixel of the "
            f"mask: paint it thicker or let it grow with --mask-grow."
        )


def _guidance(job: Job, sampler: str, own: float) -> float:
    """The job's guidance or the model's own; CFG++ goes between the two answers, and never beyond."""
    if sampler not in CFGPP:
        return own if job.guidance is None else job.guidance
    if job.guidance is None:
        return 0.6 if own > 1 else own  # the paper's, where others take 7.5
    if job.guidance > 1:
        raise UserError(f"{sampler} takes a guidance from 0 to 1, not {job.guidance:g}; 0.6 is usual.")
    return job.guidance


def _check_guidance(job: Job, plan: Plan) -> None:
    given = [name for name in sorted(GUIDANCE) if getattr(job, name) is not None]
    assert job.guidance is not None
    if given and job.guidance <= 1 and not plan.both:
        raise UserError(
            f"The job has a {given[0].replace('_', ' ')}, but a guidance of {job.guidance:g} is none; leave it out, or "
            f"guide by more than 1."
        )
    start, stop = part_of(job)
    high, low = levels(plan, start, stop)
    if (start, stop) != (0, 1) and not any(low < sigma <= high for sigma in plan.sigmas[:-1]):
        raise UserError(
            f"Guidance from {start:g} to {stop:g} of {plan.steps} steps is guidance in none of them; let it start "
            f"earlier or stop later."
        )


def check_words(job: Job, manifest: Manifest, walks: Sequence[Pass]) -> list[Network]:
    """What the prompts of all pictures ask for beside their words. `UserError` unless they make sense in these walks;
    nothing is loaded for it."""
    encoders = list(manifest.texts.values())
    if job.emphasis is not None and job.emphasis not in EMPHASES:
        raise UserError(
            f"There is no emphasis {job.emphasis!r}.{nearest(job.emphasis, EMPHASES)} There are {', '.join(EMPHASES)}."
        )
    if job.clip_skip is not None:
        layers = min([config.num_hidden_layers for config in encoders if isinstance(config, ClipTextConfig)], default=0)
        if not layers:
            raise UserError(f"The job has a clip skip, but {manifest.name} has no CLIP to read words: leave it out.")
        if not 1 <= job.clip_skip <= layers:
            raise UserError(
                f"The job's clip skip is {job.clip_skip}, but {manifest.name}'s text encoder has the layers 1 (the "
                f"last) to {layers}; 2 is usual where 1 is not."
            )
    if len(encoders) < 2 and (job.prompt_2 is not None or job.negative_2 is not None):
        raise UserError(
            f"The job has a second prompt, which only models with two text encoders read; {manifest.name} is none: "
            f"leave it out."
        )
    asked: dict[Network, None] = {}
    for own in tellings(job):
        asked |= dict.fromkeys(_check_prompts(own, walks))
    return list(asked)


def _check_prompts(job: Job, walks: Sequence[Pass]) -> list[Network]:
    for walk in walks:
        prompts, negatives = lines(job, walk)
        for words in {words for line in prompts for words, _ in line} | set(negatives):
            for text in (words.first, words.second):
                weigh(text or "", job.emphasis or EMPHASES[0])
    found = [network for text in (job.prompt, job.prompt_2) for network in networks(text or "")[1]]
    for network in found:
        wish(network.lora())  # complains
    return found


def _plan(job: Job, manifest: Manifest, refiner: Manifest | None = None) -> Plan:
    """The steps of a job that its model makes; with `refiner`, those that this one makes."""
    assert job.steps is not None and job.spacing is not None and job.sampler is not None
    strength = 1.0 if job.strength is None else job.strength
    schedule, part = manifest.schedule, (0.0, 1.0 if job.refiner_start is None else job.refiner_start)
    if refiner is not None:  # which goes on as the first model would
        schedule, part = dataclasses.replace(schedule, prediction=refiner.schedule.prediction), (part[1], 1.0)
    return Schedule(schedule, manifest.family).plan(job.steps, job.spacing, job.sampler, strength, part)


def _handed_over(job: Job, manifest: Manifest, refiner: Manifest | None) -> Job:
    """`job` with what a refiner asks for, or a `UserError` where it fits neither job nor model."""
    if refiner is None:
        if job.refiner is not None:
            raise UserError(f"The job has the refiner {job.refiner!r}, which has to be loaded beside the model.")
        if job.refiner_start is not None:
            raise UserError("The job has a refiner start but no refiner; name one or leave it out.")
        return job
    if (manifest.family, manifest.task) != ("sdxl", "text-to-image"):
        raise UserError(
            f"The job has a refiner, which ends what Stable Diffusion XL begins; {manifest.name} is none: leave it out."
        )
    if refiner.task != "refine":
        raise UserError(f"{refiner.name} is no refiner but a model for {refiner.task}; give another with --refiner.")
    kinds = "beta_schedule beta_start beta_end trained_betas num_train_timesteps zero_snr sigma_data".split()
    ways = [[getattr(each.schedule, kind) for kind in kinds] for each in (manifest, refiner)]
    latents = [(each.vae.latent_channels, each.vae.factor, each.vae.scale) for each in (manifest, refiner)]
    if ways[0] != ways[1] or latents[0] != latents[1]:
        raise UserError(
            f"{refiner.name} cannot go on from {manifest.name}: they were taught with other noise or other latents."
        )
    start = 0.8 if job.refiner_start is None else job.refiner_start
    if not 0 < start < 1:  # false for NaN too
        raise UserError(f"The job's refiner start is {start}, but it must lie between 0 and 1; 0.8 is usual.")
    for name in ("mask", "extend", "hires", "guidance_start", "guidance_stop", "prompt_2", "negative_2"):
        if getattr(job, name) is not None:
            raise UserError(f"The job has a {name.replace('_', ' ')} and a refiner, which do not go together.")
    return job.replace(refiner=job.refiner or refiner.name, refiner_start=start)


def _walks(job: Job, manifest: Manifest, refiner: Manifest | None = None) -> list[tuple[Job, Plan]]:
    """The job of each pass with its plan, which knows of the other; what a refiner does is the second."""
    jobs = _passes(job, manifest)
    plans = [_plan(each, manifest) for each in jobs]
    if refiner is not None:  # which is refused beside another pass
        jobs, plans = [job, job], [*plans, _plan(job, manifest, refiner)]
    if len(plans) == 2:
        first, second = plans
        plans = [dataclasses.replace(first, more=True), dataclasses.replace(second, before=first.steps)]
    return list(zip(jobs, plans, strict=True))


def _passes(job: Job, manifest: Manifest) -> list[Job]:
    return passes.passes(job, max(8, manifest.vae.factor))


# The work.


def _pictures(
    model: Model, job: Job, memory: int | None, refiner: Model | None, adapters: Adapters
) -> Iterator[Effect | Step | Picture]:
    """The pictures of a resolved job, each with what it wears."""
    inputs, finish = _inputs(_passes(job, model.manifest)[0], model.manifest)
    task: Task | None = None
    last: Refine | None = None
    wears: Adapters | None = None
    with _seamless(job.seamless, [model] if refiner is None else [model, refiner]):
        for index, own in enumerate(pictures(job)):
            if wears != (wanted := adapters.of(own)):
                wears, task = wanted, None  # what the text encoders said before may not be so any more
                effect = put_on(model, wears)
                if wears != NONE or index:
                    yield effect
            began = time.perf_counter()
            (first, plan), *over = _walks(own, model.manifest, refiner.manifest if refiner else None)
            of = plan.steps + sum(again.steps for _, again in over)
            if task is None or any(getattr(own, name) != getattr(task.job, name) for name in PROMPTS):
                task = _task(model, first, plan, inputs, memory)
                last = None if refiner is None else Refine(refiner, first, over[0][1], Inputs())
            pixels = finish((yield from _walk(task, own, index, 0, of, last)))
            for each, again in [] if last else over:
                assert each.width is not None and each.height is not None
                larger = Inputs(stretched(pixels, each.width, each.height))
                pixels = yield from _walk(_task(model, each, again, larger, memory), own, index, plan.steps, of)
            yield Picture(index, pixels, own, time.perf_counter() - began)


def _walk(
    task: Task, own: Job, index: int, done: int, of: int, last: Refine | None = None
) -> Generator[Step, None, np.ndarray]:
    """One pass of the picture that the job `own` is of: its steps, counted on from `done`, then its bytes (H, W, 3).

    `last` goes on where `task` ends.
    """
    assert own.seed is not None and own.sampler is not None
    model, plan = task.model, task.plan
    shape = (1, task.height // task.factor, task.width // task.factor, model.manifest.vae.latent_channels)
    noise = Noise(own.seed, own.noise)
    first: Noise | Mixed = noise  # what the picture starts from; whatever is drawn on the way is the seed's own
    if own.variation is not None:
        other, amount = variation_of(own.variation)
        first = Mixed(noise, Noise(other, own.noise), amount)

    def draw(channels: int | None = None) -> Array:
        return model.array(first.draw(*shape[:3], channels or shape[3]))

    start = task.start(draw)
    model.evaluate(start.x)  # so that the first step's seconds are its own
    x = yield from _steps(task, start.denoise, start.x, own, index, done, of, noise)
    if last is not None:
        x = last.model.array(model.numpy(x))
        model, plan, done = last.model, last.plan, done + plan.steps
        x = yield from _steps(last, last.lead(last.text), x, own, index, done, of, noise)
    return _bytes(tiles.decode(model, start.finish(x * plan.end_scale), task.inputs.decode_tile, own.seamless))


def _steps(
    task: Task, denoise: Denoise, x: Array, own: Job, index: int, done: int, of: int, noise: Noise
) -> Generator[Step, None, Array]:
    """The steps of one model, counted on from `done`; then where they lead."""
    assert own.sampler is not None
    model, plan, shape = task.model, task.plan, x.shape
    clock = time.perf_counter()
    walk = SAMPLERS[own.sampler](denoise, x, plan.sigmas, lambda: model.array(noise.draw(*shape)), **plan.options)
    for step, (x, guess) in enumerate(walk, 1):
        model.evaluate(x)
        yield Step(index, done + step, of, plan.sigmas[step - 1], guess, time.perf_counter() - clock)
        clock = time.perf_counter()
    return x


def _task(model: Model, job: Job, plan: Plan, inputs: Inputs, memory: int | None) -> Task:
    encode, decode = sides(model.manifest, model.machine, job, memory, inputs.image is not None)
    inputs = dataclasses.replace(inputs, encode_tile=encode, decode_tile=decode)
    return task_of(model.manifest)(model, job, plan, inputs)


def _inputs(job: Job, manifest: Manifest) -> tuple[Inputs, Callable[[np.ndarray], np.ndarray]]:
    """The job's pictures, read, and what becomes of the bytes that are drawn from them."""
    assert job.width is not None and job.height is not None
    if job.masked:
        whole = canvas.Canvas(job)
        return Inputs(whole.image, whole.mask), whole.finish
    scale = manifest.vae.factor if task_of(manifest).SMALL else 1
    image = None if job.image is None else load_image(job.image, job.width // scale, job.height // scale)
    return Inputs(image), lambda pixels: pixels


@contextmanager
def _seamless(axes: str | None, models: list[Model]) -> Iterator[None]:
    if axes is None:
        yield
        return
    try:
        for model in models:
            model.seamless(axes)
        yield
    finally:
        for model in models:
            model.seamless("")


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """(1, H, W, 3) in [-1, 1] as (H, W, 3) uint8, rounded as diffusers does."""
    if not np.isfinite(pixels).all():
        raise UserError("The picture came out as no numbers: too large for this precision; use --precision float32.")
    return np.rint(np.clip(pixels[0] * np.float32(0.5) + np.float32(0.5), 0, 1) * 255).astype(np.uint8)
