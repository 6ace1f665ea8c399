"""exp, erf and softmax on a CPU, in MLX's own memory, with NumPy's vector instructions.

MLX's CPU backend computes them one number at a time on one core: 12 to 26 ns a number, against 0.5 to 3 here, which
would be most of a U-Net's time. A finished MLX array lends its memory to NumPy, so nothing is copied. The price is that
the graph is computed up to that point at once; on a CPU, where nothing runs ahead, that is free.

Every function here may overwrite the array it is given: pass a result nobody else has.

Large arrays are shared out among all cores. MLX's threads may share arrays that are computed, and nothing else.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import mlx.core as mx
import numpy as np

from . import BLAS

T = TypeVar("T")

BLOCK = 1 << 15  # numbers worked on at a time: input and scratch stay in a core's own cache
PIECE = 1 << 22  # bytes of attention scores at a time
BAND = 1 << 23  # bytes of Winograd tiles at a time
TILES = 128  # for fewer tiles, transforming the filters costs more than it saves
# erf(z) = 1 - t(a1 + t(a2 + ...)) exp(-z²), t = 1/(1 + pz), z >= 0, to 1.5e-7: Abramowitz & Stegun 1964, 7.1.26
_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
WORTH = 1 << 17  # numbers to work on, from which on waking other threads pays
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_local = threading.local()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def team() -> ThreadPoolExecutor:
    """The threads that help, one for each core but one, and at least one."""
    return ThreadPoolExecutor(max(1, cores() - 1), "mlxldm-helper")


@contextmanager
def alone() -> Iterator[None]:
    """In this thread, leave the other cores to whoever has them."""
    _local.alone = True
    try:
        yield
    finally:
        _local.alone = False


def _share(items: int, numbers: int, work: Callable[[int, int], T]) -> list[T]:
    """work(begin, end) over range(items), cut for all cores where this many numbers are worth it; results in order."""
    parts = 1 if numbers < WORTH or getattr(_local, "alone", False) else min(items, cores())
    if parts <= 1:
        return [work(0, items)]
    cuts = [items * i // parts for i in range(parts + 1)]
    BLAS.threads(1)
    try:
        helpers = [team().submit(work, *pair) for pair in zip(cuts[1:], cuts[2:], strict=False)]
        return [work(*cuts[:2]), *(helper.result() for helper in helpers)]
    finally:
        BLAS.threads(cores())


def usable(x: mx.array) -> bool:
    """Whether NumPy can work in this array's memory: it knows no bfloat16, and is slow at float16."""
    return x.dtype == mx.float32


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x), in x's memory."""
    rows = _rows(x)
    step = max(1, BLOCK // rows.shape[1])

    def work(begin: int, end: int) -> None:
        for i in range(begin, end, step):
            _silu(rows[i : min(i + step, end)])

    _share(len(rows), rows.size, work)
    return x


def _silu(y: np.ndarray) -> None:
    t = _room(0, y)
    with np.errstate(over="ignore"):  # exp of a very negative number's opposite: y / inf is the 0 it should be
        np.negative(y, out=t)
        np.exp(t, out=t)
    t += 1.0
    y /= t


def affine(x: mx.array, scale: mx.array, shift: mx.array, act: bool) -> mx.array:
    """x * scale + shift, through SiLU if asked, in x's memory; x (B, H, W, C), scale and shift (B, C)."""
    x = mx.contiguous(x)
    pictures = _view(x).reshape(x.shape[0], -1, x.shape[-1])
    scales, shifts = _view(scale), _view(shift)
    step = max(1, BLOCK // x.shape[-1])

    def work(begin: int, end: int) -> None:
        for b, picture in enumerate(pictures):
            for i in range(begin, end, step):
                y = picture[i : min(i + step, end)]
                y *= scales[b]
                y += shifts[b]
                if act:
                    _silu(y)

    _share(pictures.shape[1], x.size, work)
    return x


def moments(x: mx.array) -> tuple[mx.array, mx.array]:
    """Mean and mean square of every channel of x (B, H, W, C): (B, C) each. No second array of x's size is made."""
    x = mx.contiguous(x)
    pictures = _view(x).reshape(x.shape[0], -1, x.shape[-1])
    step = max(1, BLOCK // x.shape[-1])

    def work(begin: int, end: int) -> np.ndarray:
        sums = np.zeros((2, len(pictures), x.shape[-1]))  # float64 over blocks: a picture is a million numbers long
        for b, picture in enumerate(pictures):
            for i in range(begin, end, step):
                y = picture[i : min(i + step, end)]
                t = _room(0, y)
                sums[0, b] += y.sum(axis=0)
                np.multiply(y, y, out=t)
                sums[1, b] += t.sum(axis=0)
        return sums

    mean, square = np.sum(_share(pictures.shape[1], x.size, work), axis=0) / pictures.shape[1]
    return mx.array(mean.astype(np.float32)), mx.array(square.astype(np.float32))


def gelu(half: mx.array, gate: mx.array) -> mx.array:
    """2 * half * gelu(gate), in half's memory; both (..., n). 2 gelu(g) = g + |g| erf(|g| / sqrt 2)."""
    rows, gates = _rows(half), _rows(gate)
    step = max(1, BLOCK // rows.shape[1])

    def work(begin: int, end: int) -> None:
        with np.errstate(over="ignore"):  # the square of a huge number; its exp is the 0 it should be
            for i in range(begin, end, step):
                g = gates[i : min(i + step, end)]
                z, t, e, p = (_room(number, g) for number in range(4))
                np.abs(g, out=z)
                np.multiply(z, _P * math.sqrt(0.5), out=t)
                t += 1.0
                np.reciprocal(t, out=t)
                np.multiply(z, z, out=e)
                e *= -0.5
                np.exp(e, out=e)
                e *= t  # and then times the polynomial in t, and e is 1 - erf
                np.multiply(t, _A[4], out=p)
                for k in (3, 2, 1):
                    p += _A[k]
                    p *= t
                p += _A[0]
                e *= p
                np.subtract(1.0, e, out=e)
                e *= z
                e += g
                rows[i : i + len(g)] *= e

    _share(len(rows), rows.size, work)
    return half


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    """The last axis to mean 0 and variance 1, then scaled and shifted, in x's memory."""
    rows, scale, shift = _rows(x), _view(weight), _view(bias)
    step = max(1, BLOCK // rows.shape[1])
    ones = np.full((rows.shape[1], 1), 1.0 / rows.shape[1], np.float32)

    def work(begin: int, end: int) -> None:
        for i in range(begin, end, step):
            y = rows[i : min(i + step, end)]
            y -= y @ ones
            variance = np.einsum("ij,ij->i", y, y)[:, None] / rows.shape[1]
            y *= 1.0 / np.sqrt(variance + eps)
            y *= scale
            y += shift

    _share(len(rows), rows.size, work)
    return x


def attend(q: mx.array, k: mx.array, v: mx.array, scale: float, piece: int = PIECE) -> mx.array:
    """softmax(q k^T scale) v over (B, heads, L, size), in pieces of `piece` bytes of scores that stay in the cache."""
    batch, heads, length, _ = q.shape
    q, k, v = mx.contiguous(q * scale), mx.contiguous(k), mx.contiguous(v)
    mx.eval(q, k, v)
    keys = k.swapaxes(-1, -2)
    mx.eval(keys)
    row = k.shape[2] * 4
    some = max(1, min(heads, piece // (length * row)))
    rows = length if some > 1 else max(1, min(length, piece // row))
    pieces = [(b, h) for b in range(batch) for h in range(0, heads, some)]

    def work(begin: int, end: int) -> list[mx.array]:
        outputs = []
        for b, h in pieces[begin:end]:
            parts = []
            for i in range(0, length, rows):
                scores = q[b, h : h + some, i : i + rows] @ keys[b, h : h + some]
                total = _exponentials(scores)
                parts.append((scores @ v[b, h : h + some]) * mx.array(1.0 / total))
                mx.eval(parts[-1])  # or the scores of all pieces would wait together
            outputs.append(parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1))
            mx.eval(outputs[-1])
        return outputs

    outputs = sum(_share(len(pieces), batch * heads * length * k.shape[2], work), start=[])
    return mx.concatenate(outputs, axis=0).reshape(batch, heads, length, -1)


def conv3x3(x: mx.array, weight: mx.array, shift: mx.array, twice: bool = False) -> mx.array:
    """The 3x3 convolution with padding 1: x (B, H, W, C), weight (O, 3, 3, C), shift (1 or B, O) added to the result.

    twice: of x with every pixel repeated to a square of four.

    By Winograd's F(2x2, 3x3), which needs 4/9 of the products (Lavin & Gray 2015, arXiv:1509.09308), in bands of rows
    that stay in the cache; MLX's own way is to write every pixel's nine neighbours out, at nine times the memory.
    """
    _, height, width, channels = x.shape
    outputs = weight.shape[0]
    tiles = height * width if twice else ((height + 1) // 2) * ((width + 1) // 2)
    few = 9 * outputs <= channels
    if not few and channels >= 16 and tiles >= TILES:
        return _winograd(x, weight, shift, twice)
    if twice:
        x = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
    return (_conv3x3_few(x, weight) if few else mx.conv2d(x, weight, padding=1)) + shift[:, None, None, :]


def _conv3x3_few(x: mx.array, weight: mx.array) -> mx.array:
    """Few outputs: all nine products first, at every pixel, then nine shifted sums of a few channels each."""
    batch, height, width, channels = x.shape
    outputs = weight.shape[0]
    products = x.reshape(-1, channels) @ weight.reshape(-1, channels).T
    products = products.reshape(batch, height, width, outputs, 3, 3)
    padded = mx.pad(products, [(0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0)])
    places = [(i, j) for i in range(3) for j in range(3)]
    return sum((padded[:, i : i + height, j : j + width, :, i, j] for i, j in places), start=mx.array(0.0))


def _winograd(x: mx.array, weight: mx.array, shift: mx.array, twice: bool) -> mx.array:
    batch, height, width, channels = x.shape
    if twice:
        height, width = 2 * height, 2 * width
    outputs = weight.shape[0]
    high, wide = (height + 1) // 2, (width + 1) // 2  # tiles, each of 2x2 results
    out, filters = mx.zeros((batch, 2 * high, 2 * wide, outputs)), _filters(weight)
    mx.eval(out, filters)
    pixels, results, shifts = _view(x), _view(out), _view(shift)
    band = max(1, min(high, BAND // (64 * wide * max(channels, outputs))))
    bands = [(b, top) for b in range(batch) for top in range(0, high, band)]

    def work(begin: int, end: int) -> None:
        tiles = mx.zeros((16, band * wide, channels))
        padded = np.zeros((2 * band + 2, 2 * wide + 2, channels), np.float32)
        halves = np.empty((4, band, 2 * wide + 2, channels), np.float32)
        sums = np.empty((2, 4, band, wide, outputs), np.float32)
        for b, top in bands[begin:end]:
            n = min(band, high - top)
            first, last = 2 * top - 1, min(2 * (top + n) + 1, height)  # the rows of pixels that are looked at
            start = max(first, 0)
            rows = padded[: 2 * n + 2]
            rows[: start - first] = 0
            inside = rows[start - first : last - first, 1 : width + 1]
            if twice:
                inside[:, 0::2] = inside[:, 1::2] = pixels[b, np.arange(start, last) // 2]
            else:
                inside[:] = pixels[b, start:last]
            rows[last - first :] = 0
            _tiles(rows, halves[:, :n], _view(tiles).reshape(4, 4, -1, wide, channels)[:, :, :n])
            products = tiles[:, : n * wide] @ filters
            _results(
                _view(products).reshape(4, 4, n, wide, outputs),
                sums[:, :, :n],
                results[b, 2 * top : 2 * (top + n)].reshape(n, 2, wide, 2, outputs).transpose(1, 3, 0, 2, 4),
                shifts[b % len(shifts)],
            )

    _share(len(bands), out.size, work)
    return out if (2 * high, 2 * wide) == (height, width) else out[:, :height, :width]


def _tiles(rows: np.ndarray, halves: np.ndarray, tiles: np.ndarray) -> None:
    """Overlapping 4x4 tiles d of the padded rows to B'dB; B' takes (0, 1, 2, 3) to (0 - 2, 1 + 2, 2 - 1, 1 - 3)."""
    even, odd = rows[0::2], rows[1::2]
    np.subtract(even[:-1], even[1:], out=halves[0])
    np.add(odd[:-1], even[1:], out=halves[1])
    np.subtract(even[1:], odd[:-1], out=halves[2])
    np.subtract(odd[:-1], odd[1:], out=halves[3])
    even, odd = halves[:, :, 0::2], halves[:, :, 1::2]
    np.subtract(even[:, :, :-1], even[:, :, 1:], out=tiles[:, 0])
    np.add(odd[:, :, :-1], even[:, :, 1:], out=tiles[:, 1])
    np.subtract(even[:, :, 1:], odd[:, :, :-1], out=tiles[:, 2])
    np.subtract(odd[:, :, :-1], odd[:, :, 1:], out=tiles[:, 3])


def _filters(weight: mx.array) -> mx.array:
    """Filters g (O, 3, 3, C) to GgG' as (16, C, O); G takes (0, 1, 2) to (0, (0+1+2)/2, (0-1+2)/2, 2)."""
    taps = mx.contiguous(weight.transpose(1, 2, 0, 3)).reshape(9, -1)
    filters = mx.array(np.kron(_G, _G)) @ taps
    return filters.reshape(16, weight.shape[0], weight.shape[3]).swapaxes(-1, -2)


def _results(products: np.ndarray, sums: np.ndarray, results: np.ndarray, shift: np.ndarray) -> None:
    """Products m (4, 4, ...) to A'mA + shift (2, 2, ...); A' takes (0, 1, 2, 3) to (0 + 1 + 2, 1 - 2 - 3)."""
    np.add(products[0], products[1], out=sums[0])
    sums[0] += products[2]
    np.subtract(products[1], products[2], out=sums[1])
    sums[1] -= products[3]
    np.add(sums[:, 0], sums[:, 1], out=sums[:, 0])
    sums[:, 0] += sums[:, 2]
    np.add(sums[:, 0], shift, out=results[:, 0])
    np.subtract(sums[:, 1], sums[:, 2], out=sums[:, 1])
    sums[:, 1] -= sums[:, 3]
    np.add(sums[:, 1], shift, out=results[:, 1])


def _exponentials(scores: mx.array) -> np.ndarray:
    """exp(scores - their row's largest), in place; the sums of the rows."""
    values = _view(scores)
    values -= values.max(axis=-1, keepdims=True)
    np.exp(values, out=values)
    return values.sum(axis=-1, keepdims=True)


def _view(x: mx.array) -> np.ndarray:
    mx.eval(x)
    return np.array(x, copy=False)


def _rows(x: mx.array) -> np.ndarray:
    """The array's memory as (rows, last axis)."""
    values = _view(x)
    rows = values.reshape(-1, values.shape[-1])
    assert np.may_share_memory(rows, values), "this array cannot be worked on in place"
    return rows


def _room(number: int, x: np.ndarray) -> np.ndarray:
    """Scratch memory number `number` of this thread, in x's shape; a row longer than a block has room of its own."""
    if x.size > BLOCK:
        return np.empty_like(x)
    rooms = _local.__dict__.setdefault("rooms", {})
    if number not in rooms:
        rooms[number] = np.empty(BLOCK, np.float32)
    return rooms[number][: x.size].reshape(x.shape)
