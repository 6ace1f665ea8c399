"""exp, erf and softmax on a CPU, in MLX's own memory, with NumPy's vector instructions.

MLX's CPU backend computes them one number at a time on one core: 12 to 26 ns a number, against 0.5 to 3 here, which
would be most of a U-Net's time. A finished MLX array lends its memory to NumPy, so nothing is copied. The price is that
the graph is computed up to that point at once; on a CPU, where nothing runs ahead, that is free.

Every function here may overwrite the array it is given: pass a result nobody else has.
"""

from __future__ import annotations

import math
import threading

import mlx.core as mx
import numpy as np

BLOCK = 1 << 15  # numbers worked on at a time: input and scratch stay in a core's own cache
PIECE = 1 << 22  # bytes of attention scores at a time
# erf(z) = 1 - t(a1 + t(a2 + ...)) exp(-z²), t = 1/(1 + pz), z >= 0, to 1.5e-7: Abramowitz & Stegun 1964, 7.1.26
_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_local = threading.local()


def usable(x: mx.array) -> bool:
    """Whether NumPy can work in this array's memory: it knows no bfloat16, and is slow at float16."""
    return x.dtype == mx.float32


def silu(x: mx.array, shift: mx.array | None = None) -> mx.array:
    """y * sigmoid(y) of y = x + shift, in x's memory. shift: one number per channel (the last axis), or None."""
    rows = _rows(x)
    each = None if shift is None else _rows(shift)[0]
    step = max(1, BLOCK // rows.shape[1])
    with np.errstate(over="ignore"):  # exp of a very negative number's opposite: x / inf is the 0 it should be
        for i in range(0, len(rows), step):
            y = rows[i : i + step]
            t = _room(0, y)
            if each is not None:
                y += each
            np.negative(y, out=t)
            np.exp(t, out=t)
            t += 1.0
            y /= t
    return x


def normal(product: mx.array, gate: mx.array) -> mx.array:
    """product * Phi(gate), in product's memory; Phi is the normal distribution function. Both (..., n)."""
    rows, gates = _rows(product), _rows(gate)
    step = max(1, BLOCK // rows.shape[1])
    for i in range(0, len(rows), step):
        g = gates[i : i + step]
        t, e, p = (_room(number, g) for number in range(3))
        np.abs(g, out=t)
        t *= math.sqrt(0.5)
        np.multiply(t, t, out=e)
        np.negative(e, out=e)
        np.exp(e, out=e)
        t *= _P
        t += 1.0
        np.reciprocal(t, out=t)
        e *= t  # e holds exp(-z²) t, then times the polynomial in t
        np.multiply(t, _A[4], out=p)
        for k in (3, 2, 1, 0):
            p += _A[k]
            if k:
                p *= t
        e *= p
        e *= -0.5
        e += 0.5  # half of erf(|g| / sqrt 2)
        np.copysign(e, g, out=e)
        e += 0.5
        rows[i : i + step] *= e
    return product


def attend(q: mx.array, k: mx.array, v: mx.array, scale: float, piece: int = PIECE) -> mx.array:
    """softmax(q k^T scale) v over (B, heads, L, size), in pieces of `piece` bytes of scores that stay in the cache."""
    batch, heads, length, _ = q.shape
    q, k, v = mx.contiguous(q * scale), mx.contiguous(k), mx.contiguous(v)
    mx.eval(q, k, v)
    keys = k.swapaxes(-1, -2)
    row = k.shape[2] * 4
    some = max(1, min(heads, piece // (length * row)))
    rows = length if some > 1 else max(1, min(length, piece // row))
    outputs = []
    for b in range(batch):
        for h in range(0, heads, some):
            parts = []
            for i in range(0, length, rows):
                scores = q[b, h : h + some, i : i + rows] @ keys[b, h : h + some]
                total = _exponentials(scores)
                parts.append((scores @ v[b, h : h + some]) * mx.array(1.0 / total))
            outputs.append(parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1))
            mx.eval(outputs[-1])
    return mx.concatenate(outputs, axis=0).reshape(batch, heads, length, -1)


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
