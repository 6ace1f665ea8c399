"""How much memory a job will take, stage by stage, known from the model's manifest before anything is loaded.

    weights (exact: every parameter's shape is known) + what a stage holds at once + what the framework keeps

A stage's live set is the largest sum, over the network's layers, of the arrays that exist together; the walks below
follow the code of `on_mlx` and `on_torch` layer by layer. What follows from no architecture (the libraries themselves,
what they keep back) are constants, each with the measurement it comes from: `benchmarks/memory.py` holds the plan
against resident memory, on Linux CPUs. For GPUs the same walks are taken, but nobody has measured them there.

What a job loads beside its model counts as well (`Beside`): a refiner, and LoRAs, for which the weights as they were
are kept with those that are changed.

The plan also decides whether the autoencoder works in tiles (`tiles`): where the whole picture would not fit.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import UNetConfig, VaeConfig, VqConfig
from .parameters import parameters
from .passes import passes
from .terminal import size as plain
from .tiles import OVERLAP, SMALLEST

if TYPE_CHECKING:
    from .adapters import Adapters
    from .folder import Manifest
    from .job import Job

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MB, GB = 10**6, 10**9
TILES = (128, 96, 80, 64, 48, SMALLEST)  # latents a side that are tried, largest first

# What a process holds beside the weights when a model is loaded. Stable Diffusion 1.5, resident size less the weights:
# MLX 64 MB; torch, with diffusers and transformers, 580 MB in bfloat16 and 710 MB in float32.
BASE = {"mlx": 70 * MB, "torch": 600 * MB}
# MLX on a CPU: the pages OpenBLAS touches for its own copies of large matrices, of each of its threads (102 to 115 MB
# in /proc/self/smaps after a picture of 768 × 768 or 1024 × 1024).
BLAS = 105 * MB
# MLX gives back what is freed only above a limit: `CACHE` during the steps, where fresh memory would cost a CPU a fault
# every 4 KB, and `PICTURE_CACHE` while the autoencoder works (decoding 512 × 512 took 49 s with it and 52 s with the
# larger one, 1024 × 1024 65 s and 64 s). Both limits are reached: steps of 512 × 512 end 1.03 GiB above their live set.
CACHE, PICTURE_CACHE = 1 << 30, 1 << 27
# torch on a CPU: what malloc and oneDNN keep, above the live set; Stable Diffusion 1.5 at 512 × 512 decodes at 1.31 GB
# above the weights in float32 and 0.96 GB in bfloat16.
KEPT = 150 * MB


@dataclass(frozen=True)
class Machine:
    """Where a model computes, or would: what the plan must know of it."""

    backend: str  # mlx or torch
    device: str  # cpu, gpu, cuda:0, mps
    precision: str  # what the network computes in, never "auto"
    memory: int | None = None  # bytes a GPU has for us, weights included; None: unknown, or a CPU (see `ram`)

    @property
    def cpu(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Stage:
    """A part of the work: the most memory the process holds during it, in bytes, and what is done about it."""

    name: str  # load, adapters, text, encode, denoise, refine, decode; "denoise again" for a second pass
    bytes: int
    what: str
    tile: int | None = None  # of encode and decode: latents a side; None: the whole picture at once


@dataclass(frozen=True)
class MemoryPlan:
    """What a job will take, and how the autoencoder will work."""

    machine: Machine
    stages: tuple[Stage, ...]
    available: int | None  # bytes; None where nobody can tell
    short: str | None  # a sentence for the person, if it does not fit whatever is done

    @property
    def peak(self) -> int:
        """Of all stages, in bytes."""
        return max(stage.bytes for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """For `--plan --json`."""
        machine = {key: value for key, value in dataclasses.asdict(self.machine).items() if key != "memory"}
        stages = [dataclasses.asdict(stage) for stage in self.stages]
        return {**machine, "available": self.available, "peak": self.peak, "short": self.short, "stages": stages}


@dataclass(frozen=True)
class Beside:
    """What a job loads beside its model."""

    refiner: Manifest | None = None
    adapters: Adapters | None = None
    parts: Sequence[Manifest] = ()  # networks that are no whole models

    @property
    def manifests(self) -> list[Manifest]:
        """Of all networks."""
        return [*([] if self.refiner is None else [self.refiner]), *self.parts]


ALONE = Beside()


def plan(
    manifest: Manifest, machine: Machine, job: Job, memory: int | None = None, beside: Beside = ALONE
) -> MemoryPlan:
    """The plan of a resolved job. `memory`: bytes it may take; None: what the machine has to give now."""
    available = _available(machine, memory)
    manifests = [manifest, *beside.manifests]
    read, changed = _adapted(manifest, machine, beside.adapters)
    count = sum(sum(weights(each, machine).values()) for each in manifests)
    load = read + _loading(manifests, machine)
    stages = [Stage("load", load, f"{plain(count)} of weights")]
    held = _held(manifest, machine) + _beside(manifest, machine, beside)
    if beside.adapters is not None and beside.adapters.worn:
        stages.append(Stage("adapters", held, f"{plain(read + changed)} for what they change"))
    stages.append(Stage("text", held + max(_text(each, 2) for each in manifests), "whole"))
    for number, each in enumerate(passes(job, max(8, manifest.vae.factor))):
        again = " again" if number else ""
        image = number > 0 or each.image is not None
        for stage in _pass(manifest, machine, each, available, image, held, beside.refiner):
            stages.append(dataclasses.replace(stage, name=stage.name + again))
    short = None
    if available is not None and max(stage.bytes for stage in stages) > available:
        short = _short(manifest, machine, max(stages, key=lambda stage: stage.bytes), held, available)
    return MemoryPlan(machine, tuple(stages), available, short)


def sides(
    manifest: Manifest, machine: Machine, job: Job, memory: int | None, image: bool
) -> tuple[int | None, int | None]:
    """The tiles in which one pass encodes and decodes, as the plan has them; `image`: there is something to encode."""
    held, available = _held(manifest, machine), _available(machine, memory)
    stages = {stage.name: stage for stage in _pass(manifest, machine, job, available, image, held)}
    return stages["encode"].tile if image else None, stages["decode"].tile


def left(manifest: Manifest, machine: Machine, memory: int | None, beside: Beside) -> int | None:
    """The bytes that a model may take where so many may be taken with all that is beside it; None: nobody can tell."""
    available = _available(machine, memory)
    return None if available is None else max(1, available - _beside(manifest, machine, beside))


def _available(machine: Machine, memory: int | None) -> int | None:
    return memory if memory is not None else ram() if machine.cpu else machine.memory


def _held(manifest: Manifest, machine: Machine) -> int:
    """Bytes that are held in every stage after loading."""
    held = sum(weights(manifest, machine).values()) + (BASE[machine.backend] if machine.cpu else 0)
    return held + (BLAS * cores() if machine.cpu and machine.backend == "mlx" else 0)


def _beside(manifest: Manifest, machine: Machine, beside: Beside) -> int:
    """Bytes that what is beside the model holds."""
    networks = sum(sum(weights(each, machine).values()) for each in beside.manifests)
    return networks + sum(_adapted(manifest, machine, beside.adapters))


def _pass(
    manifest: Manifest, machine: Machine, job: Job, available: int | None, image: bool, held: int,
    refiner: Manifest | None = None,
) -> list[Stage]:  # fmt: skip
    """From the picture, if there is one, to the picture."""
    assert job.width is not None and job.height is not None and job.guidance is not None
    vae = manifest.vae
    height, width = job.height // vae.factor, job.width // vae.factor
    stages = []
    if image:
        stages.append(_picture("encode", held, height, width, manifest, machine, available))
    rows = 2 if job.guidance > 1 else 1
    value = BYTES[machine.precision]
    for name, net in (("denoise", manifest), *([("refine", refiner)] if refiner else [])):
        live, traffic = denoising(net.denoiser, height, width, machine)
        kept = min(CACHE, traffic * rows * value) if machine.backend == "mlx" else KEPT
        stages.append(Stage(name, held + live * rows * value + kept, f"{rows} at once" if rows > 1 else "whole"))
    stage = _picture("decode", held, height, width, manifest, machine, available)
    if machine.backend == "mlx":  # when decoding begins, the cache of the steps is still there
        stage = dataclasses.replace(stage, bytes=max(stage.bytes, held + kept))
    return [*stages, stage]


def _picture(
    name: str, held: int, height: int, width: int, manifest: Manifest, machine: Machine, available: int | None
) -> Stage:
    """To encode or decode a picture whose latent is height × width."""
    vae = manifest.vae
    kept = PICTURE_CACHE if machine.backend == "mlx" else KEPT
    pixels = height * width * vae.factor**2 * vae.out_channels * 4 * 4  # as float32, and on the way to bytes
    walk = decoding if name == "decode" else encoding
    value = BYTES[_vae_precision(manifest, machine)]

    def needs(tile: int) -> int:
        return held + kept + pixels + walk(vae, min(height, tile), min(width, tile), machine) * value

    whole = needs(max(height, width))
    smaller = [tile for tile in TILES if tile < max(height, width)]
    if available is None or whole <= available or not smaller:
        return Stage(name, whole, "whole")
    tile = next((tile for tile in smaller if needs(tile) <= available), smaller[-1])
    what = f"tiles of {tile * vae.factor} pixels, sharing {OVERLAP * vae.factor}"
    return Stage(name, needs(tile), what, tile)


def _short(manifest: Manifest, machine: Machine, stage: Stage, held: int, available: int) -> str:
    half = dataclasses.replace(machine, precision="bfloat16" if machine.cpu else "float16")
    saved = sum(weights(manifest, machine).values()) - sum(weights(manifest, half).values())
    if machine.precision == "float32" and stage.bytes - saved <= available:
        does = f"take --precision {half.precision}, which saves {plain(saved)} of weights"
    elif held <= available:
        does = "ask for a smaller picture"
    else:
        does = "take a smaller model"
    return (
        f"{manifest.name} needs about {plain(stage.bytes)} to {stage.name}, but {plain(available)} are free here: "
        f"{does}, or close what else runs."
    )


# The weights.


def weights(manifest: Manifest, machine: Machine) -> dict[str, int]:
    """Bytes of every part as the backend holds it."""
    found = {}
    for part, config in manifest.parts.items():
        each = _bytes_each(manifest, machine, part)
        found[part] = round(sum(math.prod(shape) for shape in parameters(config).values()) * each)
    return found


def _bytes_each(manifest: Manifest, machine: Machine, part: str) -> float:
    if part == "vae":
        return BYTES[_vae_precision(manifest, machine)]
    if part != "denoiser" and machine.cpu:
        return 4  # a CPU reads the prompt in float32
    packed = manifest.quantization
    if packed is not None and machine.backend == "mlx" and not machine.cpu:  # codes stay codes; two numbers a group
        return packed["bits"] / 8 + 2 * BYTES[machine.precision] / packed["group"]
    return BYTES[machine.precision]


def _vae_precision(manifest: Manifest, machine: Machine) -> str:
    """float32 where float16 overflows, as both backends do."""
    careful = machine.precision == "float16" and manifest.vae.force_upcast and manifest.family not in ("sd1", "sd2")
    return "float32" if careful else machine.precision


def _loading(manifests: Sequence[Manifest], machine: Machine) -> int:
    """The most while the parts are filled, tensor by tensor: one is there as stored, twice, beside its own place."""
    most = held = BASE[machine.backend] if machine.cpu else 0
    for manifest in manifests:
        for part, config in manifest.parts.items():
            for shape in parameters(config).values():
                numbers = math.prod(shape)
                held += round(numbers * _bytes_each(manifest, machine, part))
                most = max(most, held + 2 * 2 * numbers)
    return most


def _adapted(manifest: Manifest, machine: Machine, adapters: Adapters | None) -> tuple[int, int]:
    """Bytes that adapters hold: their numbers as they were read, float32; and on the device, those again and the
    weights as they were beside those that are changed. Weights that stay packed have only factors beside them."""
    if adapters is None:
        return 0, 0
    read = held = 0
    precise = BYTES["float32"]
    changes = {change: part for one in adapters.worn for (part, _), change in one.adapter.changes.items()}
    for change, part in changes.items():
        numbers = sum(array.size for array in (*change.arrays, change.magnitude, change.bias) if array is not None)
        read += precise * numbers
        stored = _bytes_each(manifest, machine, part)
        half = change.plain and stored < precise and machine.precision in _multiplied(machine)
        if machine.backend == "mlx" or half or not machine.cpu:  # torch on a CPU works with float32 as it was read
            held += (BYTES[machine.precision] if half else precise) * numbers
    shapes = {part: parameters(config) for part, config in manifest.parts.items()}
    for (part, module), some in adapters.changes().items():
        each = _bytes_each(manifest, machine, part)
        numbers = math.prod(shapes[part][f"{module}.weight"])
        if each not in BYTES.values():  # packed
            each = BYTES[machine.precision]
            if all(change.plain for _, change in some):
                numbers = sum(array.size for _, change in some for array in change.arrays)
        held += int(each) * numbers
    return read if machine.cpu or machine.backend == "mlx" else 0, held


def _multiplied(machine: Machine) -> tuple[str, ...]:
    """The half precisions in which factors are multiplied: those that the machine is quick at."""
    if not machine.cpu:
        return ("float16", "bfloat16")
    return ("bfloat16",) if machine.backend == "torch" else ()


def _text(manifest: Manifest, rows: int) -> int:
    """Prompts are short: a few dozen arrays of positions × width."""
    widths = [getattr(config, "hidden_size", 0) for part, config in manifest.parts.items() if part.startswith("text")]
    return rows * 77 * max(widths, default=0) * 4 * 40


# The live sets, in numbers (not bytes).


def decoding(vae: VaeConfig | VqConfig, height: int, width: int, machine: Machine) -> int:
    """Of decoding a latent of height × width."""
    pixels, most = height * width, 0
    widths = vae.block_out_channels[::-1]
    channels = widths[0]
    most = max(_resnet(channels, channels, machine), _picture_attention(channels)) * pixels
    for place, out in enumerate(widths):
        for _ in range(vae.layers_per_block + 1):
            most = max(most, _resnet(channels, out, machine) * pixels)
            channels = out
        if place < len(widths) - 1:
            # the repeated picture exists on a GPU of MLX only; elsewhere in bands
            most = max(most, (9 if machine.backend == "mlx" and not machine.cpu else 5) * out * pixels)
            pixels *= 4
    return most


def encoding(vae: VaeConfig | VqConfig, height: int, width: int, machine: Machine) -> int:
    """Of encoding a picture whose latent is height × width."""
    widths = vae.block_out_channels
    pixels, most, channels = height * width * vae.factor**2, 0, widths[0]
    for level, out in enumerate(widths):
        for _ in range(vae.layers_per_block):
            most = max(most, _resnet(channels, out, machine) * pixels)
            channels = out
        if level < len(widths) - 1:
            # the picture, the same with a row and a column more, the result; MLX on a CPU writes out nine neighbours
            neighbours = 9 / 4 if machine.backend == "mlx" and machine.cpu else 0
            most = max(most, math.ceil((2.25 + neighbours) * out * pixels))
            pixels //= 4
    return max(most, max(_resnet(channels, channels, machine), _picture_attention(channels)) * pixels)


def _resnet(inputs: int, outputs: int, machine: Machine) -> int:
    """Numbers a pixel in a residual block of the autoencoder.

    Without a shortcut of its own: the input, its norm and the first convolution's result. With one: the norm takes the
    input's memory; MLX on a GPU, where nothing is done in place, also has the norm's float32 (two of twice the size).
    """
    if machine.backend == "mlx" and not machine.cpu:
        half = 1 if machine.precision == "float32" else 2
        return max(2 * inputs + 2 * outputs, inputs * (1 + 2 * half))
    return 3 * outputs if inputs == outputs else inputs + 2 * outputs


def _picture_attention(channels: int) -> int:
    """The input, its norm, queries, keys, values, their copies in the order of heads, the result."""
    return 9 * channels


def denoising(config: UNetConfig, height: int, width: int, machine: Machine) -> tuple[int, int]:
    """Of one row of the U-Net on latents of height × width: the live set, and all that it writes on the way."""
    most = written = 0
    first = config.block_out_channels[0]
    skips = [first * height * width]
    channels = first
    # a transformer at its widest, in the feed-forward: the shortcuts, the norm, value and gate (4 each), and what
    # becomes of them; torch has both halves in one, GELU of one and the product
    token = 19 if machine.backend == "torch" else 15

    def local(numbers: int) -> None:
        nonlocal most, written
        most, written = max(most, sum(skips) + numbers), written + numbers

    for level, out in enumerate(config.block_out_channels):
        attends = "Attn" in config.down_block_types[level]
        for depth in config.layers_down(level):
            local(max(2 * channels + out, channels + 3 * out) * height * width)
            for _ in range(depth if attends else 0):
                local(token * out * height * width)
            channels = out
            skips.append(out * height * width)
        if level < config.levels - 1:
            height, width = (height + 1) // 2, (width + 1) // 2
            skips.append(out * height * width)
    local(token * channels * height * width)
    sizes = [(height, width)]
    for _ in range(config.levels):
        sizes.append((2 * sizes[-1][0], 2 * sizes[-1][1]))
    for place in range(config.levels):
        out = config.block_out_channels[config.levels - 1 - place]
        pixels = math.prod(sizes[place])
        for depth in config.layers_up(place):
            joined = channels + round((skips.pop() if skips else 0) / pixels)
            local((2 * joined + channels + out) * pixels)
            for _ in range(depth if "Attn" in config.up_block_types[place] else 0):
                local(token * out * pixels)
            channels = out
        if place < config.levels - 1:
            local(9 * out * pixels)
    return most, written


# What there is.


def ram() -> int | None:
    """Bytes this process may hold in main memory: what it holds and what is free beside it; None if nobody can tell."""
    if sys.platform == "darwin":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages * 3 // 4  # macOS tells nobody what it would give: a quarter is for it and what else runs
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, KeyError, ValueError):
        return None
    return min(free + own, _limit())


def _limit() -> int:
    """What a container may take."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return sys.maxsize


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
