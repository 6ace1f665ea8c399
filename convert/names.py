"""From other people's names to ours: which tensor each of ours is made from, and what is left out and why.

`plan` decides for every tensor of a part where it goes and how its shape becomes ours, from names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlxldm.config import BertConfig, ClipTextConfig, UNetConfig, VaeConfig, VqConfig
from mlxldm.errors import UserError
from mlxldm.parameters import parameters
from mlxldm.tensors import Tensor, shown

from . import original

TO_LOGITS = "guesses words, which the model has no use for"

# Attention to the picture alone before diffusers 0.17, by the last two parts of a name.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# The dtypes weights come in, and what each is read as: double precision is more than any model was trained in, and
# every float8 number is a float16 number.
FLOATS = {"F64": "F32", "F32": "F32", "F16": "F16", "BF16": "BF16", "F8_E4M3": "F16", "F8_E5M2": "F16"}


@dataclass(frozen=True)
class Step:
    """How one of our tensors is made: from which source tensor, and what happens to its axes."""

    source: str
    # "as it is", "channels last", "1x1 to matrix", "transposed", "rows 0/3" (a third of its rows), "heads 0/3 of 8" (of
    # each head's rows a third)
    op: str
    tensor: Tensor  # ours


@dataclass
class Plan:
    """All steps of one part, by our names, and what was left out: {source name: reason}."""

    steps: dict[str, Step] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    renamed: int = 0

    def count(self, op: str) -> int:
        """How many tensors are made by `op`."""
        return sum(step.op == op for step in self.steps.values())


# A source tensor and what is done to it before it fits: "", "rows 0/3", "heads 0/3 of 8" or "transposed".
From = tuple[str, str]


@dataclass(frozen=True)
class Dialect:
    """Somebody's names: where one of our tensors may come from, and which tensors need no place."""

    candidates: Callable[[str, Any], Sequence[From]]  # our name, the part's config
    ignored: Callable[[str, Any], str | None]  # their name, the part's config: the reason, or None


def _diffusers(name: str, config: Any) -> list[From]:
    found = [name]
    if isinstance(config, ClipTextConfig) and name.startswith("text_model."):
        found.append(name.removeprefix("text_model."))  # CLIPTextModel is saved without the prefix since transformers 5
    before = isinstance(config, VaeConfig | VqConfig) or (
        isinstance(config, UNetConfig) and config.diffusers == "UNet2DModel"
    )
    if before and ".attentions." in name:
        head, _, last = name.rpartition(".")
        for old, new in OLD_ATTENTION.items():
            if head.endswith(f".{new}"):
                found.append(f"{head.removesuffix(new)}{old}.{last}")
    return [(theirs, "") for theirs in found]


def _diffusers_ignored(name: str, config: Any) -> str | None:
    if name.endswith(".position_ids") or name == "position_ids":
        return "positions are 0, 1, 2, ... always"
    if isinstance(config, ClipTextConfig) and config.projection_dim is None and name == "text_projection.weight":
        return "this pipeline does not read the projected text"
    if isinstance(config, BertConfig) and name.startswith("to_logits."):
        return TO_LOGITS
    return None


def _original_ignored(name: str, config: Any) -> str | None:
    if isinstance(config, ClipTextConfig):
        if name.endswith("position_ids"):
            return "positions are 0, 1, 2, ... always"
        if name in ("logit_scale", "attn_mask", "transformer.text_model.embeddings.position_ids"):
            return "is for comparing texts with pictures"
        if config.projection_dim is None and name in ("text_projection", "text_projection.weight"):
            return "this pipeline does not read the projected text"
        if name.startswith(f"transformer.resblocks.{config.num_hidden_layers}."):
            return "the last layer: the model reads the last but one"
    if isinstance(config, BertConfig) and name.startswith("to_logits."):
        return TO_LOGITS
    if isinstance(config, VaeConfig | VqConfig) and name.startswith("loss."):
        return "was needed in training only"
    return None


DIFFUSERS = Dialect(_diffusers, _diffusers_ignored)
UNET = Dialect(lambda name, config: [original.unet_name(name, config)], _original_ignored)
CONTROLNET = Dialect(lambda name, config: [original.controlnet_name(name, config)], _original_ignored)
VAE = Dialect(lambda name, config: [original.vae_name(name, config)], _original_ignored)
OPENCLIP = Dialect(lambda name, config: [original.openclip_name(name, config)], _original_ignored)
BERT = Dialect(lambda name, config: [original.bert_name(name, config)], _original_ignored)
# single files keep transformers' names (very old merges lost the `text_model.`), and class embedder and rescaler theirs
CLIP = Dialect(_diffusers, _original_ignored)


def plan(part: str, config: Any, source: Mapping[str, Tensor], where: str, dialect: Dialect = DIFFUSERS) -> Plan:
    """Where every tensor of `source` goes. `where` names the source in messages.

    Raises UserError naming the first five tensors that are missing, have no place, or have the wrong shape.
    """
    wanted = parameters(config)
    result = Plan()
    missing: list[str] = []
    wrong: list[str] = []
    used: set[str] = set()
    for ours, shape in wanted.items():
        candidates = dialect.candidates(ours, config)
        there = [found for found in candidates if found[0] in source]
        if not there:
            missing.append(candidates[0][0])
            continue
        if len(there) > 1:
            raise UserError(
                f"{where} has both {shown(there[0][0])} and {shown(there[1][0])} for {ours}: which one is meant?"
            )
        name, cut = there[0]
        used.add(name)
        tensor = source[name]
        op = _op(tensor.shape, shape, cut)
        if op is None:
            wrong.append(f"{shown(name)} is {list(tensor.shape)}, expected {_theirs(shape, cut)}")
            continue
        if tensor.dtype not in FLOATS:
            raise UserError(f"{where} has {shown(name)} as {tensor.dtype}, but floating-point weights were expected.")
        result.steps[ours] = Step(name, op, Tensor(FLOATS[tensor.dtype], shape))
        result.renamed += ours != name
    extra = []
    for name in source:
        if name not in used:
            reason = dialect.ignored(name, config)
            if reason is None:
                extra.append(name)
            else:
                result.ignored[name] = reason
    if missing:
        raise UserError(f"{where} lacks {len(missing)} of the {part}'s {len(wanted)} tensors: {_first(missing)}.")
    if extra:
        raise UserError(
            f"{where} has {len(extra)} tensors that have no place in the part its config describes: {_first(extra)}."
        )
    if wrong:
        raise UserError(f"{where}: {len(wrong)} tensors are not of the shape the config says: {_first(wrong, '; ')}.")
    return result


def _op(theirs: tuple[int, ...], ours: tuple[int, ...], cut: str = "") -> str | None:
    if cut == "transposed":
        return cut if theirs == ours[::-1] else None
    if cut:
        _, of, heads = _rows(cut)
        whole = (of * ours[0], *ours[1:])
        return cut if theirs in (whole, (*whole, 1)) and ours[0] % heads == 0 else None
    if len(ours) == 4:
        if len(theirs) == 4 and (theirs[0], theirs[2], theirs[3], theirs[1]) == ours:
            return "channels last"
        return None
    if theirs == ours:
        return "as it is"
    if len(ours) == 2 and theirs in ((*ours, 1, 1), (*ours, 1)):
        return "1x1 to matrix"
    return None


def _rows(cut: str) -> tuple[int, int, int]:
    """Which part of how many, and of how many heads: "heads 1/3 of 8" is (1, 3, 8), "rows 1/3" is (1, 3, 1)."""
    which, of, *heads = (int(number) for number in re.findall(r"\d+", cut))
    return which, of, heads[0] if heads else 1


def apply(op: str, array: np.ndarray) -> np.ndarray:
    """A source tensor as ours, with the same bits; the caller gives it our shape."""
    if op == "channels last":
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    if op == "transposed":
        return np.ascontiguousarray(array.T)
    if op.startswith(("rows ", "heads ")):
        which, of, heads = _rows(op)
        rows = array.reshape(heads, of, -1, *array.shape[1:])[:, which]
        return np.ascontiguousarray(rows).reshape(-1, *array.shape[1:])
    return array


def as_plain(array: np.ndarray, dtype: str) -> np.ndarray:
    """Stored bits as those of the dtype that `FLOATS` reads them as; exact but for double precision."""
    if dtype == "F64":
        return array.astype(np.float32)
    if dtype in FLOAT8:
        return FLOAT8[dtype][array]
    return array


def _float8(exponent_bits: int) -> np.ndarray:
    """All 256 values as float16: E5M2 is float16's upper byte; E4M3 has no infinities (Micikevicius et al. 2022)."""
    codes = np.arange(256, dtype=np.uint16)
    if exponent_bits == 5:
        return (codes << 8).view(np.float16)
    exponent, fraction = (codes >> 3) & 15, (codes & 7).astype(np.float64)
    values = np.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent.astype(np.float64) - 7))
    values = np.where((codes & 127) == 127, np.nan, values)
    return np.where(codes & 128, -values, values).astype(np.float16)


FLOAT8 = {"F8_E4M3": _float8(4), "F8_E5M2": _float8(5)}


def _theirs(ours: tuple[int, ...], cut: str = "") -> list[int]:
    """Our shape as the source would have it, for messages."""
    if cut == "transposed":
        return list(ours[::-1])
    if cut:
        one = [1] if cut.startswith("heads") and len(ours) == 2 else []  # a convolution of one dimension
        return [3 * ours[0], *ours[1:], *one]
    return [ours[0], ours[3], ours[1], ours[2]] if len(ours) == 4 else list(ours)


def _first(names: list[str], between: str = ", ") -> str:
    return between.join(shown(name) for name in names[:5]) + (f"{between}..." if len(names) > 5 else "")
