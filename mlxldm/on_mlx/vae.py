"""The autoencoder between pictures and latents. Rombach et al. 2022, arXiv:2112.10752; names as in diffusers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import VaeConfig, VqConfig
from .device import gpu
from .layers import SCORES, Conv2d, Downsample, GroupNorm, Linear, PictureAttention, Resnet, Upsample

EPS = 1e-6


class MidBlock(nn.Module):
    def __init__(self, config: VaeConfig | VqConfig):
        super().__init__()
        channels, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = [Resnet(channels, channels, groups, EPS) for _ in range(2)]
        if config.mid_block_add_attention:
            self.attentions = [PictureAttention(channels, 1, groups, EPS)]

    def layers(self) -> list[nn.Module]:
        """In the order the data meets them."""
        return [self.resnets[0], *(self.attentions if "attentions" in self else []), self.resnets[1]]


class Level(nn.Module):
    """Residual blocks, each with attention to the whole picture if the level has it."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, attends: bool):
        super().__init__()
        self.resnets = [Resnet(inputs if i == 0 else outputs, outputs, groups, EPS) for i in range(layers)]
        if attends:
            self.attentions = [PictureAttention(outputs, 1, groups, EPS) for _ in range(layers)]

    def layers(self) -> list[nn.Module]:
        """In the order the data meets them."""
        attentions = self.attentions if "attentions" in self else []
        inside = [layer for i, resnet in enumerate(self.resnets) for layer in (resnet, *attentions[i : i + 1])]
        return [*inside, *(self.get("downsamplers") or self.get("upsamplers") or [])]


class DownBlock(Level):
    """A level, then half the size unless it is the last."""

    def __init__(self, config: VaeConfig | VqConfig, level: int):
        widths, attends = config.block_out_channels, config.down_block_types[level] == "AttnDownEncoderBlock2D"
        before, channels = widths[max(level - 1, 0)], widths[level]
        super().__init__(before, channels, config.layers_per_block, config.norm_num_groups, attends)
        if level < len(widths) - 1:
            self.downsamplers = [Downsample(channels, padding=0)]


class UpBlock(Level):
    """A level, then twice the size unless it is the last; place 0 is the lowest."""

    def __init__(self, config: VaeConfig | VqConfig, place: int):
        widths, attends = config.block_out_channels[::-1], config.up_block_types[place] == "AttnUpDecoderBlock2D"
        before, channels = widths[max(place - 1, 0)], widths[place]
        super().__init__(before, channels, config.layers_per_block + 1, config.norm_num_groups, attends)
        if place < len(widths) - 1:
            self.upsamplers = [Upsample(channels)]


class Encoder(nn.Module):
    """Pictures to mean and log variance of their latent, side by side; with a table of codes, to the latent alone."""

    def __init__(self, config: VaeConfig | VqConfig):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv2d(config.in_channels, widths[0])
        self.down_blocks = [DownBlock(config, level) for level in range(len(widths))]
        self.mid_block = MidBlock(config)
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = Conv2d(widths[-1], config.encoded)

    def __call__(self, x: mx.array) -> mx.array:
        x = _through([*self.down_blocks, self.mid_block], self.conv_in(x))
        return self.conv_out(self.conv_norm_out(x, act=True, spend=True))


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: VaeConfig | VqConfig):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = Conv2d(config.latent_channels, widths[0])
        self.mid_block = MidBlock(config)
        self.up_blocks = [UpBlock(config, place) for place in range(len(widths))]
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = Conv2d(widths[-1], config.out_channels)

    def __call__(self, x: mx.array) -> mx.array:
        x = _through([self.mid_block, *self.up_blocks], self.conv_in(x))
        return self.conv_out(self.conv_norm_out(x, act=True, spend=True))


def _through(blocks: list[Any], x: mx.array) -> mx.array:
    """x through every layer of the blocks; no array is held longer than it is needed."""
    held = [x]
    del x
    for layer in [layer for block in blocks for layer in block.layers()]:
        held.append(layer.spend(held) if isinstance(layer, Resnet) else layer(held.pop()))
    return held.pop()


class Autoencoder(nn.Module):
    """What both kinds have. Latents here are the network's own; `model` applies the scaling factor."""

    def __init__(self, config: VaeConfig | VqConfig):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> mx.Dtype:
        """What the weights are."""
        return self.decoder.conv_in.weight.dtype


class Vae(Autoencoder):
    """The autoencoder with a KL-regularised latent, both ways."""

    def __init__(self, config: VaeConfig):
        super().__init__(config)
        if config.use_quant_conv:
            self.quant_conv = Linear(2 * config.latent_channels, 2 * config.latent_channels)
        if config.use_post_quant_conv:
            self.post_quant_conv = Linear(config.latent_channels, config.latent_channels)

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


class Codes(nn.Module):
    """The table of codes, (codes, channels)."""

    def __init__(self, codes: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)

    def __call__(self, x: mx.array) -> mx.array:
        """Of each place of x (B, h, w, channels) the nearest code, in the table's dtype."""
        table = self.embedding.weight
        places = x.reshape(-1, x.shape[-1]).astype(mx.float32)
        rows = max(1, SCORES // (4 * table.shape[0]))  # places at a time, whose distances are in memory
        parts = mx.split(places, list(range(rows, places.shape[0], rows)))
        nearest = mx.concatenate([_nearest(part, table.astype(mx.float32)) for part in parts])
        return table[nearest].reshape(x.shape)


def _nearest(places: mx.array, table: mx.array) -> mx.array:
    """Numbers (n,) of the codes (k, c) nearest to n places (n, c), in float32 because two codes may be about as near.

    |p - c|² is least where p·c - |c|²/2 is largest. A GPU's matrix product may have ten bits only, so there is none.
    """
    if gpu():
        products = sum((places[:, i, None] * table[:, i] for i in range(table.shape[1])), start=mx.array(0.0))
    else:
        products = places @ table.T
    return mx.argmax(products - 0.5 * mx.sum(mx.square(table), axis=-1), axis=-1)


class Vq(Autoencoder):
    """The autoencoder with a table of codes, both ways. Esser et al. 2021, arXiv:2012.09841; here the nearest code is
    looked up before decoding, not after encoding, so that the U-Net works on what the encoder gives."""

    def __init__(self, config: VqConfig):
        super().__init__(config)
        self.quant_conv = Linear(config.latent_channels, config.code)
        self.quantize = Codes(config.num_vq_embeddings, config.code)
        self.post_quant_conv = Linear(config.code, config.latent_channels)

    def encode(self, pixels: mx.array) -> tuple[mx.array, mx.array]:
        """(B, H, W, 3) in [-1, 1] -> the latent (B, h, w, c) and zeros in its place, pixels' dtype: it is certain."""
        latent = self.quant_conv(self.encoder(pixels.astype(self.dtype))).astype(pixels.dtype)
        return latent, mx.zeros_like(latent)

    def decode(self, latent: mx.array) -> mx.array:
        """(B, h, w, c) -> (B, H, W, 3), about [-1, 1], latent's dtype."""
        return self.decoder(self.post_quant_conv(self.quantize(latent))).astype(latent.dtype)


def autoencoder(config: VaeConfig | VqConfig) -> Vae | Vq:
    """The autoencoder of a config's kind."""
    return Vq(config) if isinstance(config, VqConfig) else Vae(config)
