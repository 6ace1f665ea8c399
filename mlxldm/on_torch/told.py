"""What else than a text tells a U-Net what to draw: a class, a map of labels. Rombach et al. 2022, arXiv:2112.10752."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ClassEmbedderConfig, RescalerConfig


class ClassEmbedder(nn.Module):
    """Numbers of classes (N,) to what stands for them where a U-Net expects a text (N, 1, width)."""

    def __init__(self, config: ClassEmbedderConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_classes, config.hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding(labels)[:, None]


class Rescaler(nn.Module):
    """A map of labels (N, labels, H, W) to the channels and, stage by stage, to the size that a U-Net takes."""

    def __init__(self, config: RescalerConfig):
        super().__init__()
        self.channel_mapper = nn.Conv2d(config.in_channels, config.out_channels, 1, bias=config.bias)
        self.stages, self.multiplier, self.method = config.stages, config.multiplier, config.method

    def forward(self, labels: Tensor) -> Tensor:
        x = self.channel_mapper(labels)  # first: it does not look beside a pixel, and leaves a few channels to resize
        for _ in range(self.stages):
            x = F.interpolate(x, scale_factor=self.multiplier, mode=self.method, align_corners=False)
        return x
