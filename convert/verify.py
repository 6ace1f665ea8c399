"""Whether a written folder holds what its source holds: both read again, by other means than wrote it.

The result is opened as a plain file with a JSON header, not by our reader; a tensor is compared by moving the axes of
the result back, not by repeating what made it; quantized matrices are unpacked bit by bit. What a plan is wrong about
cannot be found this way (which of a source's tensors goes where): that is for the tests, against other programs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm.errors import UserError
from mlxldm.folder import Folder, beside
from mlxldm.tensors import shown

from .view import View

BLOCK = 1 << 20  # numbers that are compared at a time

# What rounding to a dtype may change: relative to the number, and near zero.
ROUNDING = {"F32": (2.0**-24, 2.0**-149), "F16": (2.0**-11, 2.0**-25), "BF16": (2.0**-8, 2.0**-133)}


@dataclass
class Verified:
    """What the comparison of one part found; every tensor was equal or within what its dtype allows."""

    tensors: int = 0
    equal: int = 0  # bit for bit
    rounded: int = 0  # within half a unit in the last place of the dtype
    quantized: int = 0  # within half a step of its group's codes (one step at the end of a group's range)


def verify(folder: Folder, written: Path) -> dict[str, Verified]:
    """Compare the written folder with what it was made from, tensor by tensor.

    Raises UserError naming the first tensor that is missing, of another shape, or further off than its dtype explains.
    """
    found: dict[str, Verified] = {}
    for part in folder.manifest.parts:
        header, data = _plain(written / f"{part}.safetensors")
        result = found[part] = Verified()
        manifest = json.loads((written / "model.json").read_text(encoding="utf-8"))
        bits = (manifest["quantization"] or {}).get("bits", 0)
        for name, tensor in folder.names(part).items():
            if name not in header:
                raise UserError(f"{shown(written)} lacks {part}'s {shown(name)}: convert again, and report this.")
            theirs = _flat(folder, part, name)
            if bits and name.endswith(".weight") and beside(name, "scales") in header:
                codes = _array(header, data, name)
                scales, biases = (_array(header, data, beside(name, key)) for key in ("scales", "biases"))
                good = _quantized(theirs.reshape(tensor.shape), codes, scales, biases, bits)
                result.quantized += good
            else:
                ours = _array(header, data, name)
                if list(ours.shape) != header[name]["shape"] or ours.size != theirs.size:
                    good = False
                elif header[name]["dtype"] == tensor.dtype and np.array_equal(
                    ours.reshape(-1), _bits(folder, part, name)
                ):
                    good = True
                    result.equal += 1
                else:
                    good = _close(theirs, ours, header[name]["dtype"])
                    result.rounded += good
            if not good:
                raise UserError(
                    f"{shown(written)} does not hold what its source holds: {part}'s {shown(name)} differs; remove it, "
                    f"convert again, and report this."
                )
            result.tensors += 1
    return found


def _plain(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The header and the bytes after it; the file was closed and comes from the disk or the system's cache."""
    whole = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(whole[:8].tobytes(), "little")
    return json.loads(whole[8 : 8 + length].tobytes()), whole[8 + length :]


def _array(header: dict[str, Any], data: np.ndarray, name: str) -> np.ndarray:
    entry = header[name]
    begin, end = entry["data_offsets"]
    kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U32": "<u4"}[entry["dtype"]]
    return data[begin:end].view(kind).reshape(entry["shape"])


def _bits(folder: Folder, part: str, name: str) -> np.ndarray:
    """The source's stored bits in our order of axes, flat."""
    if not isinstance(folder, View):
        return folder.raw(part, name).reshape(-1)
    step = folder.plans[part].steps[name]
    source = folder.found.parts[part].weights.raw(step.source)
    shape = step.tensor.shape
    if step.op.startswith("rows "):
        which, of = (int(text) for text in step.op[5:].split("/"))
        source = np.array_split(source, of)[which]
    if step.op.startswith("heads "):
        which, _, heads = (int(text) for text in step.op[6:].replace(" of ", "/").split("/"))
        source = np.concatenate([np.array_split(head, 3)[which] for head in np.array_split(source, heads)])
    if step.op == "transposed":
        return np.einsum("ij->ji", source).reshape(-1)
    if len(shape) == 4:
        return np.moveaxis(source, 1, -1).reshape(-1)
    return source.reshape(-1)


def _flat(folder: Folder, part: str, name: str) -> np.ndarray:
    """The source's numbers, flat."""
    if not isinstance(folder, View):
        return folder.read(part, name).reshape(-1)
    step = folder.plans[part].steps[name]
    bits = _bits(folder, part, name)
    kind = folder.found.parts[part].weights.tensors[step.source].dtype
    if kind == "BF16":
        return np.left_shift(bits.astype("<u4"), 16).view("<f4")
    if kind.startswith("F8"):
        return folder.read(part, name).reshape(-1)
    return bits


def _close(theirs: np.ndarray, ours: np.ndarray, dtype: str) -> bool:
    relative, small = ROUNDING[dtype]
    flat = ours.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        exact = theirs[start : start + BLOCK].astype(np.float64)
        mine = flat[start : start + BLOCK]
        if dtype == "BF16":
            mine = np.left_shift(mine.astype("<u4"), 16).view("<f4")
        off = np.abs(mine - exact)
        same = ~np.isfinite(exact) & ~np.isfinite(mine.astype(np.float64))
        if not ((off <= np.abs(exact) * relative + small) | same).all():
            return False
    return True


def _quantized(weight: np.ndarray, codes: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> bool:
    """Every weight within half a step of its group's codes, give or take what rounding scale and bias changed."""
    rows = max(1, BLOCK // weight.shape[1])
    weights = 1 << np.arange(bits)
    for start in range(0, len(weight), rows):
        some = slice(start, start + rows)
        stream = np.unpackbits(np.ascontiguousarray(codes[some]).view(np.uint8), bitorder="little")
        values = (stream.reshape(-1, bits) * weights).sum(-1).reshape(len(weight[some]), scales.shape[1], -1)
        step, edge = scales[some, :, None].astype(np.float64), biases[some, :, None].astype(np.float64)
        exact = weight[some].astype(np.float64).reshape(values.shape)
        rounding = (np.abs(step) * (2**bits - 1) + np.abs(edge)) * 2.0**-10 + np.abs(exact) * 2.0**-11
        # a float16 scale below the normal numbers has few digits left, and its error counts once for each code
        rounding = rounding + (2**bits) * 2.0**-24
        # the last code also stands for what lies just beyond it: the step was stretched so that zero has a code
        most = np.where(values == 2**bits - 1, 1.05, 0.5) * np.abs(step)
        if not (np.abs(values * step + edge - exact) <= most + rounding).all():
            return False
    return True
