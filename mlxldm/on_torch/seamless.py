"""Convolutions that continue a picture on its other side instead of with zeros, along one axis or both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers.models.downsampling import Downsample2D
from torch import Tensor, nn

AXES = {"": (), "x": (3,), "y": (2,), "both": (2, 3)}


def make_seamless(net: nn.Module, axes: str) -> Callable[[], None]:
    """Do so in every convolution of `net` that pads, along "x", "y" or "both"; what is returned undoes it.

    torch's own `padding_mode="circular"` knows both axes only, and loses channels_last.
    """
    undo: list[Callable[[], None]] = []

    def hook(module: nn.Module, before: tuple[int, int], after: tuple[int, int]) -> None:
        def extend(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (_continued(inputs[0], AXES[axes], before, after), *inputs[1:])

        undo.append(module.register_forward_pre_hook(extend).remove)

    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.padding != (0, 0):
            old = module.padding
            hook(module, old, old)
            module.padding = tuple(0 if axis in AXES[axes] else side for axis, side in zip((2, 3), old, strict=True))
            undo.append(partial(setattr, module, "padding", old))
        elif isinstance(module, Downsample2D) and module.use_conv and module.padding == 0:
            hook(module, (0, 0), (1, 1))  # the autoencoder's: it adds zeros behind, which nothing looks at any more

    def restore() -> None:
        for step in undo:
            step()

    return restore


def _continued(x: Tensor, axes: tuple[int, ...], before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """x (N, C, H, W) with its end in front and its beginning behind, by so many rows and columns."""
    for axis in axes:
        end = x.narrow(axis, x.shape[axis] - before[axis - 2], before[axis - 2])
        x = torch.cat([end, x, x.narrow(axis, 0, after[axis - 2])], axis)
    return x
