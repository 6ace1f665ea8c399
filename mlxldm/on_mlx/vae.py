"""The autoencoder between pictures and latents. Rombach et al. 2022, arXiv:2112.10752; names as in diffusers."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..config import VaeConfig
from .layers import Attention, Conv2d, Downsample, GroupNorm, Linear, Resnet, Upsample

EPS = 1e-6


class PixelAttention(Attention):
    """One head over all pixels, with its norm and shortcut."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, 1, channels, bias=True)
        self.group_norm = GroupNorm(groups, channels, EPS)

    def __call__(self, x: mx.array) -> mx.array:  # type: ignore[override]
        batch, height, width, channels = x.shape
        y = super().__call__(self.group_norm(x).reshape(batch, height * width, channels))
        return x + y.reshape(batch, height, width, channels)


class MidBlock(nn.Module):
    def __init__(self, config: VaeConfig):
        super().__init__()
        channels, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = [Resnet(channels, channels, groups, EPS) for _ in range(2)]
        if config.mid_block_add_attention:
            self.attentions = [PixelAttention(channels, groups)]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.resnets[0](x)
        if "attentions" in self:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, last: bool):
        super().__init__()
        self.resnets = [Resnet(inputs if i == 0 else outputs, outputs, groups, EPS) for i in range(layers)]
        if not last:
            self.downsamplers = [Downsample(outputs, padding=0)]

    def __call__(self, x: mx.array) -> mx.array:
        for resnet in self.resnets:
            x = resnet(x)
        return self.downsamplers[0](x) if "downsamplers" in self else x


class UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, last: bool):
        super().__init__()
        self.resnets = [Resnet(inputs if i == 0 else outputs, outputs, groups, EPS) for i in range(layers)]
        if not last:
            self.upsamplers = [Upsample(outputs)]

    def __call__(self, x: mx.array) -> mx.array:
        for resnet in self.resnets:
            x = resnet(x)
        return self.upsamplers[0](x) if "upsamplers" in self else x


class Encoder(nn.Module):
    """Pictures to mean and log variance of their latent, side by side."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv2d(config.in_channels, widths[0])
        self.down_blocks = [
            DownBlock(widths[max(i - 1, 0)], width, config.layers_per_block, groups, last=i == len(widths) - 1)
            for i, width in enumerate(widths)
        ]
        self.mid_block = MidBlock(config)
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out(self.mid_block(x), act=True))


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = Conv2d(config.latent_channels, widths[0])
        self.mid_block = MidBlock(config)
        self.up_blocks = [
            UpBlock(widths[max(i - 1, 0)], width, config.layers_per_block + 1, groups, last=i == len(widths) - 1)
            for i, width in enumerate(widths)
        ]
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = Conv2d(widths[-1], config.out_channels)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out(x, act=True))


class Vae(nn.Module):
    """The autoencoder, both ways. Latents here are the network's own; `model` applies the scaling factor."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.use_quant_conv:
            self.quant_conv = Linear(2 * config.latent_channels, 2 * config.latent_channels)
        if config.use_post_quant_conv:
            self.post_quant_conv = Linear(config.latent_channels, config.latent_channels)

    @property
    def dtype(self) -> mx.Dtype:
        """What the weights are."""
        return self.decoder.conv_in.weight.dtype

    def encode(self, pixels: mx.array) -> tuple[mx.array, mx.array]:
        """(B, H, W, 3) in [-1, 1] -> mean and standard deviation of the latent, (B, h, w, c) each, pixels' dtype."""
        x = self.encoder(pixels.astype(self.dtype))
        if "quant_conv" in self:
            x = self.quant_conv(x)
        mean, log_variance = mx.split(x.astype(pixels.dtype), 2, axis=-1)
        return mean, mx.exp(0.5 * mx.clip(log_variance, -30.0, 20.0))

    def decode(self, latent: mx.array) -> mx.array:
        """(B, h, w, c) -> (B, H, W, 3), about [-1, 1], latent's dtype."""
        x = latent.astype(self.dtype)
        if "post_quant_conv" in self:
            x = self.post_quant_conv(x)
        return self.decoder(x).astype(latent.dtype)
