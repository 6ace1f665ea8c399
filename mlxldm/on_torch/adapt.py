"""The weights of a torch model, with adapters' changes in them; see `mlxldm.adapters`.

Weights are written where they lie: what was recorded as a CUDA graph reads the same memory, and stays right. As they
were they are kept in copies beside them, while they are changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import Key, Strong, Weights, factors, merged

# Biases that a quick block adds together with a neighbour's (`blocks.Resnet`, `blocks.TimeProjections`).
JOINED = {"conv1": "time_emb_proj", "conv2": "conv_shortcut"}


@dataclass(frozen=True)
class Place:
    """Where a module's numbers lie: its weight as the matrix (out, in) that changes are of, and its bias.

    Both are windows into whatever the blocks compute with; a bias may be that of two modules together.
    """

    weight: Tensor
    bias: Tensor | None


def _matrix(weight: Tensor) -> Tensor:
    """A weight as (out, in), a convolution's with its channels last, in the same memory."""
    if weight.ndim == 4:
        weight = weight.permute(0, 2, 3, 1)
    matrix = weight.reshape(len(weight), -1)
    assert matrix.data_ptr() == weight.data_ptr(), "a convolution is not channels_last"
    return matrix


class TorchWeights(Weights):
    """The weights of text encoders and U-Net, by the modules that were there before quicker blocks took them over."""

    def __init__(self, parts: Mapping[str, Mapping[str, nn.Module]], device: torch.device) -> None:
        super().__init__()
        self._parts, self._device = parts, device
        self._kept: dict[Key, Tensor] = {}
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}  # by their address: the bias, and as it was
        self._shifts: dict[Key, tuple[int, Tensor]] = {}  # what comes to a bias, by its address, from one module

    def array(self, x: np.ndarray, key: Key | None = None) -> Tensor:
        dtype = torch.float32 if key is None else self._place(key).weight.dtype
        if self._device.type == "cpu" and dtype == torch.float16:  # which a CPU multiplies slowly
            dtype = torch.float32
        return torch.from_numpy(np.require(x, requirements="W")).to(self._device, dtype)

    def base(self, key: Key) -> Tensor:
        return (self._kept[key] if key in self._kept else self._place(key).weight).float()

    @torch.no_grad()
    def change(self, key: Key, changes: Sequence[Strong]) -> None:
        place = self._place(key)
        if key not in self._kept:
            self._kept[key] = place.weight.clone()
        together = factors(changes, torch.cat)
        if together is None:
            place.weight.copy_(merged(self.base(key), changes))
        else:
            up, down, strength = together
            if up.dtype == place.weight.dtype:
                place.weight.copy_(self._kept[key]).addmm_(up, down, alpha=strength)
            else:
                place.weight.copy_(self._kept[key].to(up.dtype).addmm_(up, down, alpha=strength))
        shifts = [strength * change.bias for strength, change in changes if change.bias is not None]
        self._shifts.pop(key, None)
        if shifts:
            assert place.bias is not None, key
            where = place.bias.data_ptr()
            self._biases.setdefault(where, (place.bias, place.bias.clone()))
            self._shifts[key] = where, sum(shifts[1:], start=shifts[0])

    @torch.no_grad()
    def restore(self, keys: Sequence[Key] | None) -> None:
        for key in list(self._kept) if keys is None else keys:
            self._shifts.pop(key, None)
            self._place(key).weight.copy_(self._kept[key])
            del self._kept[key]

    @torch.no_grad()
    def finish(self) -> None:
        for where, (bias, as_it_was) in list(self._biases.items()):
            shifts = [shift for place, shift in self._shifts.values() if place == where]
            if shifts:
                bias.copy_(as_it_was.float() + sum(shifts))
            else:
                bias.copy_(as_it_was)
                del self._biases[where]

    def _place(self, key: Key) -> Place:
        part, name = key
        modules = self._parts[part]
        # some versions of transformers leave out the first of CLIP's names
        layer = modules[name] if name in modules else modules[name.removeprefix("text_model.")]
        bias = getattr(layer, "bias", None)
        if bias is None:
            above, _, short = name.rpartition(".")
            neighbour = modules.get(f"{above}.{JOINED.get(short)}")
            bias = None if neighbour is None else neighbour.bias
        return Place(_matrix(layer.weight.data), None if bias is None else bias.data)


class TokenTable(nn.Module):
    """A table of tokens (ids, width), and the vectors of words: the id -1 - k is vector k."""

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self.weight = table.weight
        self.words: Tensor | None = None

    def learn(self, vectors: Sequence[Tensor]) -> None:
        """vectors, each (n, width): what the ids below 0 stand for from now on."""
        self.words = torch.cat(list(vectors)).to(self.weight) if vectors else None

    def forward(self, ids: Tensor) -> Tensor:
        tokens = F.embedding(ids.clamp(min=0), self.weight)
        if self.words is None:
            return tokens
        return torch.where((ids < 0)[..., None], self.words[(-1 - ids).clamp(min=0)], tokens)
