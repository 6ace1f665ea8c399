"""From the names in a diffusers folder to ours: today's, yesterday's, and what is left out and why.

`plan` decides for every tensor of a part where it goes and how its shape becomes ours, from names and shapes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxldm.config import ClipTextConfig
from mlxldm.errors import UserError
from mlxldm.parameters import parameters
from mlxldm.tensors import Tensor, shown

# The autoencoder's attention before diffusers 0.17, by the last two parts of a name.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Step:
    """How one of our tensors is made: from which source tensor, and whether its axes move."""

    source: str
    op: str  # "as it is", "channels last", "1x1 to matrix"
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


def our_name(part: str, name: str) -> str:
    """The canonical name of a diffusers or transformers tensor."""
    if part in ("text", "text_2"):
        # CLIPTextModel is saved without the prefix since transformers 5
        bare = ("embeddings.", "encoder.", "final_layer_norm.")
        return f"text_model.{name}" if name.startswith(bare) else name
    if part == "vae":
        head, _, last = name.rpartition(".")
        head, _, module = head.rpartition(".")
        if module in OLD_ATTENTION and ".attentions." in f".{head}.":
            return f"{head}.{OLD_ATTENTION[module]}.{last}"
    return name


def ignored(part: str, name: str, config: Any) -> str | None:
    """Why a tensor is left out, or None if it must have a place."""
    if name.endswith(".position_ids") or name == "position_ids":
        return "positions are 0, 1, 2, ... always"
    if isinstance(config, ClipTextConfig) and config.projection_dim is None and name == "text_projection.weight":
        return "this pipeline does not read the projected text"
    return None


def plan(part: str, config: Any, source: Mapping[str, Tensor], where: str) -> Plan:
    """Where every tensor of `source` goes. `where` names the source in messages.

    Raises UserError naming the first five tensors that are missing, have no place, or have the wrong shape.
    """
    wanted = parameters(config)
    result = Plan()
    extra: list[str] = []
    wrong: list[str] = []
    misshapen: set[str] = set()
    for name, tensor in source.items():
        reason = ignored(part, name, config)
        if reason is not None:
            result.ignored[name] = reason
            continue
        ours = our_name(part, name)
        if ours not in wanted:
            extra.append(name)
            continue
        if ours in result.steps:
            raise UserError(
                f"{where} has both {shown(result.steps[ours].source)} and {shown(name)} for {ours}: which one is meant?"
            )
        op = _op(tensor.shape, wanted[ours])
        if op is None:
            misshapen.add(ours)
            wrong.append(f"{shown(name)} is {list(tensor.shape)}, expected {_theirs(wanted[ours])}")
            continue
        if tensor.dtype not in FLOATS:
            raise UserError(f"{where} has {shown(name)} as {tensor.dtype}, but floating-point weights were expected.")
        dtype = "F32" if tensor.dtype == "F64" else tensor.dtype
        result.steps[ours] = Step(name, op, Tensor(dtype, wanted[ours]))
        result.renamed += ours != name
    missing = [name for name in wanted if name not in result.steps and name not in misshapen]
    if missing:
        raise UserError(f"{where} lacks {len(missing)} of {len(wanted)} tensors: {_first(missing)}.")
    if extra:
        raise UserError(
            f"{where} has {len(extra)} tensors that have no place in the part its config describes: {_first(extra)}."
        )
    if wrong:
        raise UserError(f"{where}: {len(wrong)} tensors are not of the shape the config says: {_first(wrong, '; ')}.")
    result.steps = {name: result.steps[name] for name in wanted}
    return result


def _op(theirs: tuple[int, ...], ours: tuple[int, ...]) -> str | None:
    if len(ours) == 4:
        if len(theirs) == 4 and (theirs[0], theirs[2], theirs[3], theirs[1]) == ours:
            return "channels last"
        return None
    if theirs == ours:
        return "as it is"
    if len(ours) == 2 and theirs in ((*ours, 1, 1), (*ours, 1)):
        return "1x1 to matrix"
    return None


def _theirs(ours: tuple[int, ...]) -> list[int]:
    """Our shape as the source would have it, for messages."""
    return [ours[0], ours[3], ours[1], ours[2]] if len(ours) == 4 else list(ours)


def _first(names: list[str], between: str = ", ") -> str:
    return between.join(shown(name) for name in names[:5]) + (f"{between}..." if len(names) > 5 else "")
