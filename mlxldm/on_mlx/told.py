"""What else than a text tells a U-Net what to draw: a class, a map of labels. Rombach et al. 2022, arXiv:2112.10752."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import ClassEmbedderConfig, RescalerConfig
from .layers import Linear


class ClassEmbedder(nn.Module):
    """Numbers of classes (B,) to what stands for them where a U-Net expects a text (B, 1, width)."""

    def __init__(self, config: ClassEmbedderConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_classes, config.hidden_size)

    def __call__(self, labels: list[int]) -> mx.array:
        return self.embedding(mx.array(labels, dtype=mx.int32))[:, None, :]


class Rescaler(nn.Module):
    """A map of labels (B, H, W, labels) to the channels and, stage by stage, to the size that a U-Net takes."""

    def __init__(self, config: RescalerConfig):
        super().__init__()
        self.channel_mapper = Linear(config.in_channels, config.out_channels, bias=config.bias)
        self.config = config

    def __call__(self, labels: mx.array) -> mx.array:
        x = self.channel_mapper(labels)  # first: it does not look beside a pixel, and leaves a few channels to resize
        for _ in range(self.config.stages):
            for axis in (1, 2):
                x = _shorter(x, axis, self.config.multiplier)
        return x


def _shorter(x: mx.array, axis: int, multiplier: float) -> mx.array:
    """Linear interpolation along an axis, between pixels' centres, as torch's `interpolate` with that scale factor."""
    length = x.shape[axis]
    places = np.maximum((np.arange(int(length * multiplier)) + 0.5) / multiplier - 0.5, 0)
    low = np.floor(places).astype(np.int32)
    high = np.minimum(low + 1, length - 1)
    share = mx.array((places - low).astype(np.float32)).astype(x.dtype).reshape([-1] + [1] * (x.ndim - 1 - axis))
    return mx.take(x, mx.array(low), axis) * (1 - share) + mx.take(x, mx.array(high), axis) * share
