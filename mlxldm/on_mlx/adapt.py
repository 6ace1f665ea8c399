"""The weights of an MLX model, with adapters' changes in them; see `mlxldm.adapters`.

MLX's arrays never change: a weight as it was is the array that was there, kept, and taking an adapter off is to put it
back. Weights that stay packed as codes get plain factors beside them; any other change makes them whole weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..adapters import Key, Strong, Weights, factors, merged
from .device import gpu
from .layers import Attention, Linear, PackedLinear, pad

TOGETHER = 1 << 26  # bytes of weights to compute at a time: one by one would wait for a GPU each time


class MlxWeights(Weights):
    """The weights of text encoders and U-Net."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._parts = parts
        self._kept: dict[Key, tuple[nn.Module, mx.array, mx.array | None]] = {}  # module, weight and bias as they were
        self._waiting: list[mx.array] = []

    def array(self, x: np.ndarray, key: Key | None = None) -> mx.array:
        if key is None or not gpu():  # a CPU multiplies float32 only in good time
            return mx.array(x)
        layer, weight, _ = self._kept.get(key) or self._as_is(key)
        return mx.array(x).astype(layer.scales.dtype if isinstance(layer, PackedLinear) else weight.dtype)

    def base(self, key: Key) -> mx.array:
        layer, weight, _ = self._kept.get(key) or self._as_is(key)
        if isinstance(layer, PackedLinear):
            weight = layer.dequantized()
        return self._unpadded(key, _rows(weight.astype(mx.float32)))

    def change(self, key: Key, changes: Sequence[Strong]) -> None:
        layer, weight, bias = self._kept.setdefault(key, self._as_is(key))
        if isinstance(layer, PackedLinear):
            layer = self._packed(key, layer, changes)
        if not isinstance(layer, PackedLinear):
            together = None if weight.dtype == mx.uint32 else factors(changes, mx.concatenate)
            if together is None:
                whole = self._padded(key, merged(self.base(key), changes))
            else:
                up, down = self._padded_factors(key, *together[:2])
                whole = mx.addmm(_rows(weight).astype(up.dtype), up, down, together[2])
            # a packed layer's type is its scales'
            dtype = weight.dtype if weight.dtype != mx.uint32 else self._kept[key][0].scales.dtype
            layer.weight = whole.astype(dtype).reshape(-1, *_inner(weight, whole))
            self._wait(layer.weight)
        shifts = [(strength, change.bias) for strength, change in changes if change.bias is not None]
        if bias is not None:
            shift = sum((strength * more for strength, more in shifts), start=mx.zeros(()))
            if shifts and bias.shape != shifts[0][1].shape:  # of padded heads
                shift = self._padded(key, shift)
            layer.bias = (bias.astype(mx.float32) + shift).astype(bias.dtype) if shifts else bias

    def _packed(self, key: Key, layer: PackedLinear, changes: Sequence[Strong]) -> nn.Module:
        """A packed layer with the factors beside it, or where that does not do, a whole one in its place."""
        together = factors(changes, mx.concatenate)
        if together is None:
            layer.put_beside(None, None)
            whole = Linear(1, 1, bias="bias" in layer)
            self._set(key, whole)
            return whole
        self._set(key, layer)
        up, down = self._padded_factors(key, together[0] * together[2], together[1])
        up, down = up.astype(layer.scales.dtype), down.astype(layer.scales.dtype)
        layer.put_beside(down, up)
        self._wait(up, down)
        return layer

    def restore(self, keys: Sequence[Key] | None) -> None:
        self._waiting = []
        for key in list(self._kept) if keys is None else keys:
            layer, weight, bias = self._kept[key]
            if isinstance(layer, PackedLinear):
                layer.put_beside(None, None)
                self._set(key, layer)
            layer.weight = weight
            if bias is not None:
                layer.bias = bias
            del self._kept[key]

    def finish(self) -> None:
        mx.eval(self._waiting)
        self._waiting = []

    def _wait(self, *arrays: mx.array) -> None:
        self._waiting += arrays
        if sum(array.nbytes for array in self._waiting) > TOGETHER:
            self.finish()

    def _as_is(self, key: Key) -> tuple[nn.Module, mx.array, mx.array | None]:
        layer = _at(self._parts[key[0]], key[1].split("."))
        return layer, layer.weight, layer.bias if "bias" in layer else None

    def _set(self, key: Key, layer: nn.Module) -> None:
        *path, last = key[1].split(".")
        owner = _at(self._parts[key[0]], path)
        owner[int(last) if isinstance(owner, list) else last] = layer

    # Heads that are padded with zeros (`layers.Attention.pad_heads`).

    def _padded(self, key: Key, x: mx.array) -> mx.array:
        found = self._attention(key)
        return x if found is None else pad(x, found[0], found[1].heads, found[1].head)

    def _padded_factors(self, key: Key, up: mx.array, down: mx.array) -> tuple[mx.array, mx.array]:
        """Factors whose product is padded."""
        found = self._attention(key)
        if found is None:
            return up, down
        return (self._padded(key, up), down) if found[0] == 0 else (up, self._padded(key, down))

    def _unpadded(self, key: Key, x: mx.array) -> mx.array:
        found = self._attention(key)
        return x if found is None else pad(x, found[0], found[1].heads, found[1].true_head)

    def _attention(self, key: Key) -> tuple[int, Attention] | None:
        """The axis of a weight whose heads are padded, and the attention it is of."""
        path = key[1].split(".")
        if path[-1] in ("to_q", "to_k", "to_v"):
            axis, attention = 0, _at(self._parts[key[0]], path[:-1])
        elif path[-2:] == ["to_out", "0"]:
            axis, attention = 1, _at(self._parts[key[0]], path[:-2])
        else:
            return None
        return None if attention.head == attention.true_head else (axis, attention)


def _rows(weight: mx.array) -> mx.array:
    """A weight as the matrix (out, in) that changes are of."""
    return weight.reshape(weight.shape[0], -1)


def _inner(weight: mx.array, whole: mx.array) -> tuple[int, ...]:
    """The shape of one output's weights."""
    return tuple(weight.shape[1:]) if weight.dtype != mx.uint32 else (whole.shape[1],)


def _at(module: nn.Module, path: Sequence[str]) -> Any:
    """What lies at a parameter's path: a module, or a list of them."""
    owner: Any = module
    for step in path:
        owner = owner[int(step)] if isinstance(owner, list) else owner[step]
    return owner
