"""MLX's affine quantization without MLX: the words that `mx.quantize` writes, and the weights they stand for.

A row of a Linear's weight is cut into groups of 32, 64 or 128 neighbours. A group keeps a scale and a bias, and of each
weight a code of 2 to 8 bits; weight = scale * code + bias. Codes stand one after the other in a row's bits, lowest
first, so codes of 3, 5 and 6 bits cross the borders of bytes and words.

Quantizing is done here rather than by MLX so that a converter needs no MLX, and that one checkpoint gives the same
bytes on every machine: MLX's GPU kernels round halves unlike its CPU, and count a zero into groups that have nothing
positive (0.32, by their source). PyTorch has no such format, so its weights are dequantized as they are loaded.

Layout and rule: https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html and, in
https://github.com/ml-explore/mlx, mlx/backend/cpu/quantized.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlxldm.errors import UserError

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)

BLOCK = 1 << 18  # weights at a time: what is worked on stays in the processor's cache, whatever the matrix' size
LARGEST = np.float32(np.finfo(np.float16).max)
SMALLEST_STEP = np.float32(1e-7)

Shape = tuple[int, ...]


def fits(shape: Shape, group: int) -> bool:
    """Whether a weight of `shape` can be quantized in groups of `group`: a matrix whose rows are whole groups."""
    _known(group=group)
    return len(shape) == 2 and shape[1] > 0 and shape[1] % group == 0


def group_for(width: int, wanted: int) -> int | None:
    """The largest group up to `wanted` that divides rows of `width`; None if none does: keep that Linear as it is."""
    _known(group=wanted)
    return next((group for group in reversed(GROUPS) if group <= wanted and fits((1, width), group)), None)


def packed_shapes(shape: Shape, bits: int, group: int) -> tuple[Shape, Shape, Shape]:
    """The shapes of packed, scales and biases for a weight of `shape` (out, in); ValueError if it does not fit."""
    _known(bits, group)
    if not fits(shape, group):
        raise ValueError(f"a weight of shape {shape} is not a matrix whose rows are groups of {group}")
    rows, width = shape
    return (rows, width * bits // 32), (rows, width // group), (rows, width // group)


def quantize(weight: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The packed codes uint32 (out, in * bits / 32), scales and biases float16 (out, in / group) of `weight`.

    weight: (out, in), float16 or float32; bfloat16 is given as float32. Bit for bit what `mx.quantize` makes of
    `weight` in float16 on a CPU. float32 is rounded to float16 first, for so are the scales and biases, which loses
    nothing of any ordinary bfloat16; bfloat16 scales, as MLX would have them, would cost more than 8 bits do.

    A weight that is not finite, or a group that spans more than float16 can hold, is a UserError; a weight of another
    shape or type is a ValueError. Needs a few megabytes beyond its result.
    """
    shapes = packed_shapes(weight.shape, bits, group)
    if weight.dtype not in (np.float16, np.float32):
        raise ValueError(f"the weight is {weight.dtype}, but float16 or float32 is quantized (bfloat16 as float32)")
    packed = np.empty(shapes[0], np.uint32)
    scales, biases = np.empty(shapes[1], np.float16), np.empty(shapes[2], np.float16)
    for rows in _blocks(weight.shape):
        packed[rows], scales[rows], biases[rows] = _quantize(weight[rows], bits, group, rows.start)
    return packed, scales, biases


def _quantize(weight: np.ndarray, bits: int, group: int, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`quantize` for the few rows that begin at `first`. Every operation is float32's, in MLX's order."""
    most = np.float32(2**bits - 1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is refused below
        w = weight.astype(np.float16).astype(np.float32).reshape(len(weight), -1, group)
        low, high = w.min(axis=-1), w.max(axis=-1)
        # Code 0 is the end that is further from zero, exactly; the step leads from there towards the other end.
        downwards = np.abs(low) <= np.abs(high)
        edge = np.where(downwards, high, low)
        step = np.maximum((high - low) / most, SMALLEST_STEP)
        step = np.where(downwards, -step, step)
        # The step is then stretched a little, so that zero has a code and stays zero.
        zero = np.rint(edge / step)
        np.divide(edge, zero, out=step, where=zero != 0)
        edge[zero == 0] = 0
        scales, biases = step.astype(np.float16), edge.astype(np.float16)
        bad = ~(np.abs(scales.astype(np.float32)) * most <= LARGEST).all(axis=1)  # not <=, so that NaN is bad too
    if bad.any():
        raise UserError(
            f"Row {first + int(bad.argmax())} of a weight is not finite, or spans more than float16's {LARGEST:.0f}: "
            "it cannot be quantized."
        )
    w -= edge[..., None]
    w /= step[..., None]
    np.rint(w, out=w)
    np.clip(w, 0, most, out=w)
    return _pack(w.astype(np.uint8).reshape(weight.shape), bits), scales, biases


def dequantize(packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, group: int) -> np.ndarray:
    """The weight (out, in) that the three stand for, in the scales' type: float16 or float32.

    Exactly `mx.dequantize` on a CPU: the product is rounded to that type, then the sum. (Metal may round once.)
    Tensors that do not belong together, or another type, are a ValueError.
    """
    shape = _shape(packed.shape, scales.shape, biases.shape, bits, group)
    if packed.dtype != np.uint32 or scales.dtype != biases.dtype or scales.dtype not in (np.float16, np.float32):
        raise ValueError(
            f"packed, scales and biases are {packed.dtype}, {scales.dtype} and {biases.dtype}, "
            "but uint32 and twice float16 or float32 are expected"
        )
    weight = np.empty(shape, scales.dtype)
    for rows in _blocks(shape):
        weight[rows] = _dequantize(packed[rows], scales[rows], biases[rows], bits, group)
    return weight


def _dequantize(packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, group: int) -> np.ndarray:
    rows, width = len(packed), scales.shape[1] * group
    stream = np.ascontiguousarray(packed, "<u4").view(np.uint8)
    codes = np.empty((rows, width), np.uint8)
    _unpack(stream, codes, bits)
    # In float32, which holds any product of a code and a float16 scale: rounding it is float16's own multiplication,
    # and quicker than NumPy's.
    w = codes.reshape(rows, -1, group).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # other programs' scales may be anything
        w *= scales[..., None]
        if scales.dtype == np.float16:
            w = w.astype(np.float16).astype(np.float32)
        w += biases[..., None]
        return w.astype(scales.dtype, copy=False).reshape(rows, width)


def dequantize_torch(
    packed: Any, scales: Any, biases: Any, bits: int, group: int, dtype: Any, device: Any = None
) -> Any:
    """`dequantize`'s numbers as a torch tensor (out, in), cast to `dtype`, from torch tensors.

    packed: uint32 or int32; scales and biases: one floating type, whose arithmetic is used. `device`: where to; the
    packed words travel there, not the weight; None: they stay where they are. While it works it needs some two bytes a
    weight beyond the result, and the weight in the scales' type where `dtype` is another. Tensors that do not belong
    together are a ValueError.
    """
    shape = _shape(tuple(packed.shape), tuple(scales.shape), tuple(biases.shape), bits, group)
    if packed.element_size() != 4 or scales.dtype != biases.dtype or not scales.is_floating_point():
        raise ValueError(
            f"packed, scales and biases are {packed.dtype}, {scales.dtype} and {biases.dtype}, "
            "but 32-bit words and one floating type are expected"
        )
    # torch.uint8 without importing torch, which is for mlxldm.on_torch alone. As bytes, for torch cannot shift uint32.
    byte = scales.new_empty(0).byte().dtype
    stream = packed.contiguous().view(byte)
    if device is not None:
        stream, scales, biases = stream.to(device), scales.to(device), biases.to(device)
    codes = stream.new_empty(shape)
    _unpack(stream, codes, bits)
    rows, groups = scales.shape
    weight = codes.to(scales.dtype).reshape(rows, groups, group)
    weight *= scales[..., None]
    weight += biases[..., None]  # two roundings, as in NumPy: addcmul would round once
    return weight.reshape(shape).to(dtype)


def error(
    weight: np.ndarray, packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, group: int
) -> float:
    """How far the quantized weight is from `weight`: the root of the mean square difference, relative to `weight`'s.

    Some 0.005 at 8 bits, 0.09 at 4, for normal numbers; 0 for a weight of zeros that stayed zeros.
    """
    shape = _shape(packed.shape, scales.shape, biases.shape, bits, group)
    if weight.shape != shape:
        raise ValueError(f"the weight has shape {weight.shape}, its quantized form {shape}")
    off = whole = 0.0
    for rows in _blocks(shape):
        exact = weight[rows].astype(np.float64)
        off += float(np.sum((dequantize(packed[rows], scales[rows], biases[rows], bits, group) - exact) ** 2))
        whole += float(np.sum(exact**2))
    if not whole:
        return math.inf if off else 0.0
    return math.sqrt(off / whole)


def _known(bits: int = 8, group: int = 64) -> None:
    if bits not in BITS:
        raise ValueError(f"bits is {bits!r}, but must be one of {BITS}")
    if group not in GROUPS:
        raise ValueError(f"group is {group!r}, but must be one of {GROUPS}")


def _shape(packed: Shape, scales: Shape, biases: Shape, bits: int, group: int) -> Shape:
    """The shape of the weight that tensors of these shapes stand for."""
    _known(bits, group)
    if len(packed) == 2:
        shape = packed[0], packed[1] * 32 // bits
        if fits(shape, group) and packed_shapes(shape, bits, group) == (packed, scales, biases):
            return shape
    raise ValueError(
        f"packed {packed}, scales {scales} and biases {biases} do not belong together at {bits} bits, groups of {group}"
    )


def _blocks(shape: Shape) -> Iterator[slice]:
    """Slices of some rows each, about `BLOCK` weights."""
    rows, width = shape
    many = max(1, BLOCK // width)
    for first in range(0, rows, many):
        yield slice(first, min(first + many, rows))


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (rows, width), uint8, as one stream of bits a row: uint32 (rows, width * bits / 32)."""
    values, size = _period(bits)
    stream = np.zeros((len(codes), codes.shape[1] // values, size), np.uint8)
    codes = codes.reshape(len(codes), -1, values)
    for i in range(values):
        byte, shift = divmod(i * bits, 8)
        stream[..., byte] |= codes[..., i] << shift  # uint8: what is shifted out goes into the next byte
        if shift + bits > 8:
            stream[..., byte + 1] |= codes[..., i] >> (8 - shift)
    return stream.reshape(len(codes), -1).view("<u4")


def _unpack(stream: Any, codes: Any, bits: int) -> None:
    """Fill codes (rows, width) from stream (rows, width * bits / 8), both uint8, both NumPy's or both torch's."""
    values, size = _period(bits)
    rows, width = codes.shape
    stream = stream.reshape(rows, width // values, size)
    codes = codes.reshape(rows, width // values, values)
    for i in range(values):
        byte, shift = divmod(i * bits, 8)
        code = stream[..., byte] >> shift
        if shift + bits > 8:
            code = code | stream[..., byte + 1] << (8 - shift)
        codes[..., i] = code & (2**bits - 1)


def _period(bits: int) -> tuple[int, int]:
    """After how many codes, and in how many bytes, the stream is at the border of a byte again."""
    common = math.gcd(bits, 8)
    return 8 // common, bits // common
