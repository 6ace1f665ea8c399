"""What LoRAs of every kind change in a model's weights, and the vectors that textual inversions bring.

Whoever presents an adapter (the converter, which knows everybody's names) does it as an `Adapter`: what changes, by
module. `worn` brings a job's adapters together, read and checked against the model, before anything is loaded; a
backend puts their changes into its weights. Both use the one mathematics here, in `+ - * /`, `@`, `reshape` and `sum`
only, so that it runs on NumPy, MLX and torch arrays.

A weight W (out, in) becomes W + Σ strength * change. Every change is that of the model's own weight, so that the order
of adapters does not matter, DoRA's and IA3's included, and strengths of the same one twice add up. A convolution's
weight (out, height, width, in) counts as the matrix (out, height * width * in).

Sources: Hu et al. 2021, https://arxiv.org/abs/2106.09685 (LoRA); https://github.com/KohakuBlueleaf/LyCORIS (LoCon,
LoHa, LoKr, IA3); Liu et al. 2024, https://arxiv.org/abs/2402.09353 (DoRA); Gal et al. 2022,
https://arxiv.org/abs/2208.01618 (textual inversion).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from .config import ClipTextConfig, UNetConfig
from .errors import UserError
from .prompt import networks, written
from .tensors import Tensor, shown, to_bfloat16
from .wildcards import tellings

if TYPE_CHECKING:
    from .backend import Model
    from .folder import Folder, Manifest, Packed
    from .job import Job

Array = Any
Key = tuple[str, str]  # "denoiser", "text" or "text_2", and a module in it
Parts = Mapping[str, Any]  # {part: its config}

CALLED = {"denoiser": "the U-Net", "text": "the text encoder", "text_2": "the second text encoder"}


# The mathematics.


@dataclass(frozen=True, eq=False)
class Change:
    """How one weight and its bias are changed at strength 1; the numbers are float32.

    form and arrays: "low": up (out, r) @ down (r, in); "product": (a @ b) * (c @ d), of two such pairs; "kronecker":
    two arrays whose product, broadcast, is the change; "full": the change itself; "factor": what the weight is
    multiplied with; it broadcasts against the weight.
    magnitude: DoRA's, (out, 1, 1) or (1, 1, in) where the weight is seen as (out, height * width, in).
    """

    form: str
    arrays: tuple[Array, ...]
    inputs: int  # the weight's last axis
    magnitude: Array | None = None
    bias: Array | None = None

    def of(self, weight: Array) -> Array:
        """The change of `weight` (out, in), float32 as it is, in the arrays' framework."""
        if self.form == "low":
            up, down = self.arrays
            change = up @ down
        elif self.form == "product":
            a, b, c, d = self.arrays
            change = (a @ b) * (c @ d)
        elif self.form == "kronecker":
            one, two = self.arrays
            change = (one * two).reshape(weight.shape)
        elif self.form == "full":
            change = self.arrays[0]
        else:
            assert self.form == "factor", self.form
            change = weight * self.arrays[0]
        return change if self.magnitude is None else self._decomposed(weight, change)

    def _decomposed(self, weight: Array, change: Array) -> Array:
        """DoRA (equation 5): the changed weight gets the magnitudes that were learned; nothing stays nothing.

        The norm is that of the changed weight; ComfyUI divides by that of the weight as it was.
        """
        assert self.magnitude is not None
        merged = (weight + change).reshape(weight.shape[0], -1, self.inputs)
        axis = (0, 1) if self.magnitude.shape[0] == 1 and self.magnitude.shape[2] > 1 else (1, 2)
        norm = (merged * merged).sum(axis=axis, keepdims=True) ** 0.5
        return (merged * (self.magnitude / (norm + (norm == 0)))).reshape(weight.shape) - weight

    @property
    def plain(self) -> bool:
        """Whether it is two factors and nothing else: what can be computed beside a weight as well as in it."""
        return self.form == "low" and self.magnitude is None

    @functools.cached_property
    def square(self) -> float | None:
        """The sum of the squared numbers of the change; None where it depends on the weight."""
        if self.magnitude is not None or self.form == "factor":
            return None if self.magnitude is not None or np.any(self.arrays[0]) else 0.0
        if self.form == "low":  # of r x r numbers, without the product
            up, down = self.arrays
            square = float(((up.T @ up) * (down @ down.T)).sum(dtype=np.float64))
            return 0.0 if square < 0 else square  # NaN stays
        if self.form == "kronecker":
            return math.prod(float(np.square(side, dtype=np.float64).sum()) for side in self.arrays)
        return float(np.square(self.of(np.empty((0, 0))), dtype=np.float64).sum())

    @property
    def empty(self) -> bool:
        """Whether it changes nothing, whatever the weight."""
        return self.square == 0 and (self.bias is None or not np.any(self.bias))

    def moved(self, convert: Callable[[np.ndarray], Array]) -> Change:
        """The same in arrays of another framework or type."""
        magnitude = None if self.magnitude is None else convert(self.magnitude)
        bias = None if self.bias is None else convert(self.bias)
        return dataclasses.replace(
            self, arrays=tuple(convert(array) for array in self.arrays), magnitude=magnitude, bias=bias
        )


Strong = tuple[float, Change]  # how strongly, and what


def merged(weight: Array, changes: Sequence[Strong]) -> Array:
    """`weight` (out, in), float32, with its changes."""
    out = weight
    for strength, change in changes:
        out = out + change.of(weight) * strength
    return out


def factors(
    changes: Sequence[Strong], concatenate: Callable[[list[Array], int], Array]
) -> tuple[Array, Array, float] | None:
    """Plain changes as one: up (out, R), down (R, in) and a strength; None where one of them is not plain.

    Then one product is all there is to compute, in which the framework adds the weight on the way and rounds once.
    """
    if not all(change.plain for _, change in changes):
        return None
    (first, one), *others = changes
    up, down = one.arrays
    if others:
        up = concatenate([change.arrays[0] * (strength / first) for strength, change in changes], 1)
        down = concatenate([change.arrays[1] for _, change in changes], 0)
    return up, down, first


# What an adapter is.


class Adapter(Protocol):
    """A LoRA of any kind, understood as a change of a certain model."""

    @property
    def name(self) -> str:
        """What its file is called."""
        ...

    @property
    def kind(self) -> str:
        """ "lora", "locon", "loha", "lokr", "ia3", "dora", "full", or "mixed: ..."."""
        ...

    @property
    def changes(self) -> Mapping[Key, Change]:
        """What changes, by module; read from the file when first asked for. UserError for numbers that are none."""
        ...

    @property
    def unmatched(self) -> Mapping[str, str]:
        """The tensors that have no place in the model, with the reason."""
        ...

    @property
    def inversions(self) -> Sequence[Inversion]:
        """The textual inversions that it brings along."""
        ...


@runtime_checkable
class Inversion(Protocol):
    """A word, and the vectors that stand in its place."""

    token: str
    shapes: dict[str, tuple[int, int]]  # by text encoder: how many vectors, and their width

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called in a prompt: its token, and its file without the ending, as AUTOMATIC1111 calls it."""
        ...

    def read(self, part: str) -> np.ndarray:
        """The vectors for a text encoder ("text", "text_2"): float32 (n, width)."""
        ...


# The adapter of a name, for a model's parts: `cli.find_adapter`, which asks the converter.
Find = Callable[[str, Parts], "Adapter | Inversion"]


@dataclass(frozen=True)
class Wish:
    """A LoRA as a job asks for it: "NAME", "NAME:0.8", "NAME:0.8:0.5" (text encoders), "...:lbw=1,0,..." (blocks)."""

    name: str
    strength: float = 1.0
    text_strength: float | None = None  # None: the same
    blocks: tuple[float, ...] | None = None  # of the form of LBW

    def tag(self, name: str) -> str:
        """What asks for it in a prompt of A1111's, where it is called `name`; `prompt.Network.lora` is the way back."""
        numbers = [self.strength if self.text_strength is None else self.text_strength, self.strength]
        said = [written(number) for number in numbers[: 1 + (numbers[0] != numbers[1])]]
        blocks = [] if self.blocks is None else ["lbw=" + ",".join(map(written, self.blocks))]
        return f"<lora:{':'.join([name, *said, *blocks])}>"


NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
WISH = re.compile(rf"([^:].*?)(?::({NUMBER}))?(?::({NUMBER}))?(?::lbw=([^:]*))?", re.DOTALL)
# The names of U-Net blocks in the order of sd-webui-lora-block-weight, by how many numbers there are: Stable Diffusion
# without and with the blocks that have no attention, then XL's. As there, any of the four lists goes with any model,
# BASE is the text encoders, a block that a list does not name counts nothing, and what lies in no block counts whole.
_ALL = (*(f"IN{i:02}" for i in range(12)), "M00", *(f"OUT{i:02}" for i in range(12)))
_XL = (*(f"IN{i:02}" for i in range(9)), "M00", *(f"OUT{i:02}" for i in range(9)))
LBW = {
    17: ("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{i:02}" for i in range(3, 12))),
    26: ("BASE", *_ALL),
    12: ("BASE", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{i:02}" for i in range(6))),
    20: ("BASE", *_XL),
}


def wish(text: str) -> Wish:
    """What a job's text for a LoRA says; a UserError for one that says nothing sensible."""
    match = WISH.fullmatch(text)
    if match is None or not match[1].strip():
        raise UserError(f"A LoRA is given as NAME:0.8, but this is {shown(text)!r}: the name is missing.")
    name, *numbers = match[1], *(None if number is None else float(number) for number in match.group(2, 3))
    if any(number is not None and abs(number) > 100 for number in numbers):
        raise UserError(f"The LoRA {shown(text)!r} has a strength beyond 100; between 0 and 1 is usual.")
    blocks = None
    if match[4] is not None:
        said = match[4].split(",")
        if not all(re.fullmatch(NUMBER, one.strip()) for one in said) or len(said) not in LBW:
            raise UserError(
                f"The LoRA {shown(text)!r} has {len(said)} weights for blocks; 17 or 26 numbers with commas between "
                f"were expected, or 12 or 20 for Stable Diffusion XL, the text encoders' first."
            )
        blocks = tuple(map(float, said))
    return Wish(name, 1.0 if numbers[0] is None else numbers[0], numbers[1], blocks)


def asked(job: Job) -> tuple[str, ...]:
    """The LoRAs of one picture, whose choices are made, as a job has them: its own, then those in its prompts."""
    texts = [text for text in (job.prompt, job.prompt_2) if text is not None]
    return job.loras + tuple(network.lora() for text in texts for network in networks(text)[1])


def block(module: str, layers: Sequence[int]) -> str | None:
    """The block of the original U-Net that a module of diffusers' lies in: "IN04", "M00", "OUT11"; None: in no block.

    layers: how many residual blocks each level of the way down has.
    """
    if module.startswith("mid_block."):
        return "M00"
    if module == "conv_in":
        return "IN00"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", module)
    if match is None:
        return None
    level, index = int(match[2]), int(match[4])
    if match[1] == "down":  # each level ends with a downsampler in a block of its own
        index = layers[level] if match[3] == "downsamplers" else index
        return f"IN{1 + sum(layers[:level]) + level + index:02}"
    up = [one + 1 for one in reversed(layers)]
    index = up[level] - 1 if match[3] == "upsamplers" else index
    return f"OUT{sum(up[:level]) + index:02}"


@dataclass(frozen=True)
class Worn:
    """An adapter as it is put on: how strongly each of its changes counts."""

    text: str  # as the job has it
    adapter: Adapter
    strengths: Mapping[Key, float]


@dataclass(frozen=True)
class Word:
    """A word of a prompt by its names, and for each text encoder the vectors (n, width) that it stands for."""

    names: tuple[str, ...]
    vectors: Mapping[str, np.ndarray]

    @property
    def count(self) -> int:
        return len(next(iter(self.vectors.values())))


@dataclass(frozen=True)
class Adapters:
    """All that a job puts on a model; not every one of its pictures need wear all of it."""

    worn: tuple[Worn, ...] = ()
    words: tuple[Word, ...] = ()

    def of(self, job: Job) -> Adapters:
        """What one picture wears, whose job has its choices made. Raises UserError for a LoRA that is not here."""
        here = {one.text: one for one in self.worn}
        texts = asked(job)
        for text in texts:
            if text not in here:
                raise UserError(
                    f"The job has the LoRA {shown(text)!r}, and generate was not given it: "
                    f"adapters=mlxldm.adapters.worn(job, model.manifest, mlxldm_convert.adapter)."
                )
        return dataclasses.replace(self, worn=tuple(here[text] for text in texts))

    def changes(self) -> dict[Key, list[Strong]]:
        """What changes in each module; what counts nothing is left out."""
        found: dict[Key, list[Strong]] = {}
        for one in self.worn:
            for key, change in one.adapter.changes.items():
                if one.strengths[key]:
                    found.setdefault(key, []).append((one.strengths[key], change))
        return found


NONE = Adapters()


def changeable(manifest: Manifest) -> dict[str, Any]:
    """The parts of a model that adapters change, with their configs; none where no adapter is made for such a model."""
    parts = {part: config for part, config in manifest.parts.items()
             if part in CALLED and isinstance(config, ClipTextConfig | UNetConfig)}  # fmt: skip
    return parts if any(isinstance(config, ClipTextConfig) for config in parts.values()) else {}


def worn(job: Job, manifest: Manifest, find: Find) -> Adapters:
    """The adapters of all of a job's pictures, found, read and checked against the model, which is not loaded for it.

    Those in the prompts are among them, so the job's seed must be known where its prompts leave something to choose.
    Raises UserError for one that is not here, is damaged, is for another model, or changes nothing.
    """
    parts = changeable(manifest)
    first, *others = map(asked, tellings(job))
    texts = [*first, *dict.fromkeys(text for other in others for text in other if text not in first)]
    if texts and not parts:
        raise UserError(f"{manifest.name} is of a kind that no LoRA is made for: leave {texts[0]!r} out.")
    wishes = {text: wish(text) for text in texts}
    files: dict[str, Adapter] = {}
    brought: list[Inversion] = []
    for name in dict.fromkeys(one.name for one in wishes.values()):
        found = find(name, parts)
        if isinstance(found, Inversion):
            raise UserError(f"{shown(name)} is a textual inversion and no LoRA: give it with --embedding.")
        files[name] = found
        brought += found.inversions
    inversions: list[Inversion] = []
    for name in job.embeddings:
        found = find(name, parts)
        if not isinstance(found, Inversion):
            raise UserError(f"{shown(name)} is a LoRA and no textual inversion: give it with --lora.")
        inversions.append(found)
    loras = {text: _worn(text, wanted, files[wanted.name], parts) for text, wanted in wishes.items()}
    words = tuple(_word(one, parts, manifest.name) for one in inversions + brought)  # the first of a name is meant
    return Adapters(tuple(loras[text] for text in texts), words)


def _worn(text: str, wanted: Wish, adapter: Adapter, parts: Parts) -> Worn:
    if all(change.empty for change in adapter.changes.values()):
        raise UserError(f"{shown(adapter.name)} changes nothing: all its numbers are zero.")
    by_block = None if wanted.blocks is None else dict(zip(LBW[len(wanted.blocks)], wanted.blocks, strict=True))
    text_strength = wanted.strength if wanted.text_strength is None else wanted.text_strength
    strengths = {}
    for part, module in adapter.changes:
        strength = wanted.strength if part == "denoiser" else text_strength
        if by_block is not None:
            place = block(module, _layers(parts[part])) if part == "denoiser" else "BASE"
            strength *= 1.0 if place is None else by_block.get(place, 0.0)
        strengths[part, module] = strength
    return Worn(text, adapter, strengths)


def _layers(config: UNetConfig) -> list[int]:
    return [len(config.layers_down(level)) for level in range(config.levels)]


def _word(found: Inversion, parts: Parts, model: str) -> Word:
    """A word with vectors for every text encoder of the model."""
    wanted = {part: config.hidden_size for part, config in parts.items() if part != "denoiser"}
    given = {part: shape[1] for part, shape in found.shapes.items()}
    if not wanted or given != wanted:
        has = " and ".join(str(width) for width in given.values())
        reads = " and ".join(str(width) for width in wanted.values()) or "no such text"
        raise UserError(
            f"The textual inversion {shown(found.token)!r} has vectors of width {has}, but {model} reads {reads}: it "
            f"was made for another model."
        )
    return Word(found.names, {part: found.read(part) for part in wanted})


# What it did.


class Weights:
    """A model's weights, and the changes that are in them. What depends on the framework, each backend adds.

    The changes are computed into the weights, and the weights as they were are kept beside them: a step takes as long
    as without, taking an adapter off gives back the very same bits, and the price is the memory of what is changed.
    (Factors beside every weight, the other way, cost each step 5 to 20 % for a rank of 32, and cannot do DoRA, LoHa or
    LoKr. They are taken where a weight stays packed, which a person chose to save memory.)
    """

    def __init__(self) -> None:
        self.plain: np.ndarray | None = None  # the denoiser's answer to `_ask` without adapters
        self.answered: Answered | None = None  # the last one with some
        self._now: dict[Key, list[Strong]] | None = {}  # None: something stopped while they were changed
        self._moved: dict[Change, Change] = {}  # what is in use, in the framework's arrays
        self._squares: dict[Key, float] = {}  # of the weights as they were

    # Of the framework.

    def array(self, x: np.ndarray, key: Key | None = None) -> Array:
        """`x` where the weights are, float32; as a factor of a weight, in the type that it is multiplied in."""
        raise NotImplementedError

    def base(self, key: Key) -> Array:
        """A weight as it was (out, in), float32, without what a backend adds for its own purposes."""
        raise NotImplementedError

    def change(self, key: Key, changes: Sequence[Strong]) -> None:
        """Make a weight and its bias what they were, with these changes."""
        raise NotImplementedError

    def restore(self, keys: Sequence[Key] | None) -> None:
        """Make weights and biases what they were, bit for bit, and keep nothing beside them; None: all of them.

        Whatever stops it in the middle, it can be asked again.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Compute what was put off, if anything was."""

    # Of all.

    def put(self, adapters: Adapters) -> list[float]:
        """Make the weights what they were with these adapters' changes; by how much each of them changes its weights.

        That is the norm of the changes relative to the norm of the weights that it is for. Whatever stops this in the
        middle (memory, Ctrl-C), the weights are what they were without adapters.
        """
        changes = adapters.changes()
        if changes != self._now:
            try:
                self._put(changes)
            except BaseException:
                self._put({})
                raise
        return [_relative(one, self._square, self._square_of) for one in adapters.worn]

    def _put(self, changes: dict[Key, list[Strong]]) -> None:
        before, self._now = self._now, None
        self.restore(None if before is None else [key for key in before if key not in changes])
        self._moved = {
            change: self._moved.get(change) or self._move(key, change)
            for key, some in changes.items() for _, change in some
        }  # fmt: skip
        for key, some in changes.items():
            if before is None or some != before.get(key):
                self.change(key, [(strength, self._moved[change]) for strength, change in some])
        self.finish()
        self._now = changes

    def _move(self, key: Key, change: Change) -> Change:
        return change.moved(functools.partial(self.array, key=key) if change.plain else self.array)

    def _square(self, key: Key) -> float:
        if key not in self._squares:
            weight = self.base(key)
            self._squares[key] = float((weight * weight).sum())
        return self._squares[key]

    def _square_of(self, key: Key, change: Change) -> float:
        whole = self._moved[change].of(self.base(key))  # it is not plain
        return float((whole * whole).sum())


def _relative(one: Worn, square: Callable[[Key], float], square_of: Callable[[Key, Change], float]) -> float:
    """The norm of an adapter's changes relative to that of the weights that it is for, from the sums of squares."""
    change_square = weight_square = 0.0
    for key, change in one.adapter.changes.items():
        weight_square += square(key)
        if one.strengths[key]:
            found = square_of(key, change) if change.square is None else change.square
            change_square += found * one.strengths[key] ** 2
    return math.sqrt(change_square / weight_square) if weight_square else math.inf


def put_on(model: Model, adapters: Adapters) -> Effect:
    """Make the model what it was with these adapters, whatever it had on before; what they do to it.

    To ask the denoiser costs more than to change a weight: it is asked when an adapter comes, and when one counts by
    another order of magnitude; in between, the last answer is told, with what it is of.
    Raises UserError for LoRAs that change no answer of the denoiser; the model is without any then.
    """
    model.learn(adapters.words)
    weights = model.weights
    if not adapters.worn:
        weights.put(adapters)
        weights.answered = None  # which keeps the adapters in memory
        return effect(adapters, (), None)
    if weights.plain is None:
        weights.put(NONE)
        weights.plain = _ask(model)
    relative = weights.put(adapters)
    if weights.answered is None or not weights.answered.tells_of(adapters.worn):
        change = float(np.linalg.norm(_ask(model) - weights.plain) / np.linalg.norm(weights.plain))
        if not change and any(strength for one in adapters.worn for strength in one.strengths.values()):
            weights.put(NONE)
            raise UserError(
                f"{' and '.join(shown(one.adapter.name) for one in adapters.worn)} changes nothing that "
                f"{model.manifest.name} computes in {model.precision}: leave it out."
            )
        weights.answered = Answered(adapters.worn, change)
    return effect(adapters, relative, weights.answered)


@dataclass(frozen=True)
class Answered:
    """By how much one answer of the denoiser changed, relative to what it was, with adapters on."""

    worn: tuple[Worn, ...]
    change: float

    def tells_of(self, worn: Sequence[Worn]) -> bool:
        """Whether these are the same adapters, each as strong up to a factor of ten."""
        return len(worn) == len(self.worn) and all(
            new.adapter is old.adapter and _alike(new.strengths, old.strengths)
            for new, old in zip(worn, self.worn, strict=True)
        )


def _alike(new: Mapping[Key, float], old: Mapping[Key, float]) -> bool:
    """Whether all strengths are the old ones times one number from 0.1 to 10."""
    if any(bool(new[key]) != bool(old[key]) for key in old):
        return False
    ratios = [new[key] / old[key] for key in old if old[key]]
    return not ratios or (min(ratios) >= 0.1 and max(ratios) <= min(10, min(ratios) * (1 + 1e-6)))


def _ask(model: Model) -> np.ndarray:
    """The denoiser's answer to a small picture of noise and an empty prompt, the same each time."""
    manifest = model.manifest
    config = manifest.denoiser
    side = max(8, 1 << (config.levels - 1))
    x = np.random.RandomState(0).standard_normal((1, side, side, config.in_channels))
    pixels = side * manifest.vae.factor
    cond = model.encode_text(
        "", None, pixels, pixels,
        scores=(6.0, 2.5) if manifest.task == "refine" else None,
        level=None if manifest.low_scale is None else manifest.low_scale.level,
        guidance=None if config.time_cond_proj_dim is None else 7.5,
    )  # fmt: skip
    return model.numpy(model.glance(model.array(x), manifest.schedule.num_train_timesteps / 2, cond))


@dataclass(frozen=True)
class Effect:
    """What adapters did to a model: for people and for JSON."""

    # for each: name, kind, modules by part, how many tensors are unmatched, which ones and why (left), and the relative
    # change of the weights
    loras: tuple[dict[str, Any], ...]
    answer: float | None  # the relative change of one answer of the denoiser; None: there was no LoRA
    answer_of: tuple[str, ...]  # the LoRAs that it was with, which may have been stronger or weaker
    words: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "loras": list(self.loras), "answer": self.answer, "answer_of": list(self.answer_of),
            "words": list(self.words),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """What there is to say, a sentence each."""
        said = []
        for lora in self.loras:
            where = " and ".join(f"{count} modules of {CALLED[part]}" for part, count in lora["modules"].items())
            left = f"{lora['unmatched']} of its tensors have no place; " if lora["unmatched"] else ""
            said.append(f"{lora['text']}: {lora['kind']}, {where}; {left}weights change by {lora['weights']:.2%}")
        if self.answer is not None:
            together = "together they change" if len(self.loras) > 1 else "it changes"
            if self.answer_of != tuple(lora["text"] for lora in self.loras):
                together = f"{' and '.join(self.answer_of)} changed"
            said.append(f"{together} the denoiser's answer by {self.answer:.2%}")
        said += [f"{word!r} stands for its vectors" for word in self.words]
        return said


def effect(adapters: Adapters, weights: Sequence[float], answered: Answered | None) -> Effect:
    """weights: by how much each LoRA changes the weights it is for, relative to them."""
    loras = []
    for one, relative in zip(adapters.worn, weights, strict=True):
        modules: dict[str, int] = {}
        for part, _ in one.adapter.changes:
            modules[part] = modules.get(part, 0) + 1
        loras.append({
            "text": one.text, "name": one.adapter.name, "kind": one.adapter.kind, "modules": modules,
            "unmatched": len(one.adapter.unmatched), "left": grouped(one.adapter.unmatched), "weights": relative,
        })  # fmt: skip
    words = tuple(word.names[0] for word in adapters.words)
    if answered is None:
        return Effect(tuple(loras), None, (), words)
    return Effect(tuple(loras), answered.change, tuple(one.text for one in answered.worn), words)


def grouped(reasons: Mapping[str, str]) -> dict[str, str]:
    """Tensors of one reason told together: {the first of them, and how many more: why they have no place}."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(shown(name))
    return {
        (found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"): reason
        for reason, found in groups.items()
    }


# A model with adapters merged into it.


class Merged:
    """A folder whose weights have a job's adapters in them: to be written, or loaded as any other."""

    def __init__(self, folder: Folder, adapters: Adapters) -> None:
        """Raises UserError for a quantized model, and for words, which no model folder has a place for."""
        if folder.manifest.quantization is not None:
            raise UserError(
                f"{folder.manifest.name} is quantized, and quantizing what is merged again would add to its errors: "
                f"merge into the original, then quantize."
            )
        if adapters.words:
            raise UserError(f"A merged model has no place for the word {adapters.words[0].names[0]!r}: leave it out.")
        self._folder, self._adapters, self._changes = folder, adapters, adapters.changes()
        source = {**folder.manifest.source, "merged": [one.text for one in adapters.worn]}
        self.manifest = dataclasses.replace(folder.manifest, source=source)

    def names(self, part: str) -> dict[str, Tensor]:
        return self._folder.names(part)

    def read(self, part: str, name: str) -> np.ndarray:
        """As the folder has it; what is changed comes as float32, in more digits than it is stored with."""
        module, _, last = name.rpartition(".")
        changes = self._changes.get((part, module), [])
        values = self._folder.read(part, name)
        if last == "weight" and changes:
            return merged(self._base((part, module)), changes).reshape(values.shape)
        if last == "bias" and any(change.bias is not None for _, change in changes):
            biases = [strength * change.bias for strength, change in changes if change.bias is not None]
            return values.astype(np.float32) + sum(biases)
        return values

    def raw(self, part: str, name: str) -> np.ndarray:
        values, dtype = self.read(part, name), self.names(part)[name].dtype
        if dtype == "BF16":
            return to_bfloat16(values.astype(np.float32))
        with np.errstate(over="ignore"):  # what is not finite is refused when it is written
            return values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])

    def _base(self, key: Key) -> np.ndarray:
        values = self._folder.read(key[0], f"{key[1]}.weight").astype(np.float32)
        return values.reshape(len(values), -1)

    def effect(self) -> Effect:
        """By how much the weights were changed."""

        def square(key: Key) -> float:
            return float(np.square(self._base(key)).sum(dtype=np.float64))

        def square_of(key: Key, change: Change) -> float:
            return float(np.square(change.of(self._base(key))).sum(dtype=np.float64))

        return effect(self._adapters, [_relative(one, square, square_of) for one in self._adapters.worn], None)

    def groups(self, part: str) -> dict[str, int]:
        return {}

    def packed(self, part: str, name: str) -> Packed:
        raise KeyError(name)

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        return self._folder.tokenizer_files(number)

    def nbytes(self, part: str) -> int:
        return self._folder.nbytes(part)

    def hashes(self) -> dict[str, str]:
        return self._folder.hashes()


