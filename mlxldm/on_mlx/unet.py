"""The U-Net of latent diffusion. Rombach et al. 2022, arXiv:2112.10752; names as in diffusers.

General over what a UNet2DConditionModel config can say for Stable Diffusion 1.x, 2.x and XL, and for models from
which layers were taken away (SSD-1B, Vega); and over what a UNet2DModel config can say for the first latent diffusion
models, which read no text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import MIDDLE, UNetConfig
from .layers import (
    Attention,
    Conv2d,
    Downsample,
    FeedForward,
    GroupNorm,
    LayerNorm,
    Linear,
    PictureAttention,
    Resnet,
    Upsample,
    doubled,
    halved,
    silu,
)

KeysValues = tuple[mx.array, mx.array]


def sinusoids(values: np.ndarray, size: int, flip: bool, shift: float) -> mx.array:
    """Numbers (n,) as waves (n, size) float32, sines first unless `flip`; Ho et al. 2020, arXiv:2006.11239."""
    half = size // 2
    frequencies = np.exp(-math.log(10000) * np.arange(half, dtype=np.float32) / np.float32(half - shift))
    angles = np.asarray(values, np.float32)[:, None] * frequencies[None, :].astype(np.float32)
    waves = [np.cos(angles), np.sin(angles)] if flip else [np.sin(angles), np.cos(angles)]
    return mx.array(np.pad(np.concatenate(waves, axis=1), ((0, 0), (0, size % 2))))


def guidance_waves(guidance: list[float], size: int) -> mx.array:
    """Scales of guidance (n,) as waves (n, size), for models that guide themselves; Meng et al. 2022, arXiv:2210.03142.

    In the paper's terms no guidance is 0, which is 1 here.
    """
    return sinusoids((np.array(guidance, np.float32) - 1) * 1000, size, flip=False, shift=1)


class Embedding(nn.Module):
    """Two linear maps around SiLU: waves or any vector to the width of the time embedding."""

    def __init__(self, inputs: int, outputs: int, condition: int | None = None):
        super().__init__()
        self.linear_1 = Linear(inputs, outputs)
        if condition is not None:
            self.cond_proj = Linear(condition, inputs, bias=False)
        self.linear_2 = Linear(outputs, outputs)

    def __call__(self, x: mx.array, condition: mx.array | None = None) -> mx.array:
        if condition is not None:
            x = x + self.cond_proj(condition)
        return self.linear_2(silu(self.linear_1(x)))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward."""

    def __init__(self, channels: int, heads: int, text: int, only_cross: bool):
        super().__init__()
        head = channels // heads
        self.norm1 = LayerNorm(channels)
        self.attn1 = Attention(channels, heads, head, text if only_cross else None)
        self.norm2 = LayerNorm(channels)
        self.attn2 = Attention(channels, heads, head, text)
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.only_cross = only_cross

    def cross(self) -> list[Attention]:
        """The attentions that look at the text, in the order they are met."""
        return [self.attn1, self.attn2] if self.only_cross else [self.attn2]

    def __call__(self, x: mx.array, text: Iterator[KeysValues]) -> mx.array:
        x = x + self.attn1(self.norm1(x), next(text) if self.only_cross else None)
        x = x + self.attn2(self.norm2(x), next(text))
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, around a shortcut."""

    def __init__(self, channels: int, heads: int, layers: int, text: int, groups: int, only_cross: bool = False):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.transformer_blocks = [TransformerBlock(channels, heads, text, only_cross) for _ in range(layers)]
        self.proj_out = Linear(channels, channels)

    def __call__(self, x: mx.array, text: Iterator[KeysValues]) -> mx.array:
        batch, height, width, channels = x.shape
        y = self.proj_in(self.norm(x).reshape(batch, height * width, channels))
        for block in self.transformer_blocks:
            y = block(y, text)
        return x + self.proj_out(y).reshape(batch, height, width, channels)


class DownBlock(nn.Module):
    """One level on the way down: residual blocks, each with a transformer or with attention to the picture if the level
    has them, then half the size."""

    def __init__(self, config: UNetConfig, level: int, inputs: int, time: int):
        super().__init__()
        outputs = config.block_out_channels[level]
        depths = config.layers_down(level)
        self.resnets = [_resnet(config, inputs if i == 0 else outputs, outputs, time) for i in range(len(depths))]
        if config.down_block_types[level] == "CrossAttnDownBlock2D":
            self.attentions = [_transformer(config, level, depth) for depth in depths]
        elif config.down_block_types[level] == "AttnDownBlock2D":
            self.attentions = [_picture_attention(config, level) for _ in depths]
        if config.smaller(level) == "conv":
            self.downsamplers = [Downsample(outputs)]
        elif config.smaller(level) == "resnet":
            self.downsamplers = [_resnet(config, outputs, outputs, time, halved)]

    def __call__(self, x: mx.array, time: mx.array, text: Iterator[KeysValues]) -> tuple[mx.array, list[mx.array]]:
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if "attentions" in self:
                x = self.attentions[i](x, text)
            skips.append(x)
        if "downsamplers" in self:
            between = self.downsamplers[0]
            x = between(x, time) if isinstance(between, Resnet) else between(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """The lowest level: residual block, transformer (of MIDDLE: attention to the picture), residual block; of
    "UNetMidBlock2D" the first alone (SSD-1B)."""

    def __init__(self, config: UNetConfig, time: int):
        super().__init__()
        channels = config.block_out_channels[-1]
        whole = config.mid_block_type != "UNetMidBlock2D"
        self.resnets = [_resnet(config, channels, channels, time) for _ in range(2 if whole else 1)]
        if config.mid_block_type == MIDDLE:
            self.attentions = [_picture_attention(config, config.levels - 1)]
        elif whole:
            depth = config.transformer_layers_per_block[-1]
            # the middle never has attention to the text alone, whatever only_cross_attention says
            self.attentions = [_transformer(config, config.levels - 1, depth, only_cross=False)]

    def __call__(self, x: mx.array, time: mx.array, text: Iterator[KeysValues]) -> mx.array:
        x = self.resnets[0](x, time)
        if "attentions" not in self:
            return x
        x = self.attentions[0](x, text)
        return self.resnets[1](x, time)


class UpBlock(nn.Module):
    """One level on the way up: as down, with one layer more, each joined by what the way down left."""

    def __init__(self, config: UNetConfig, place: int, time: int):
        """place: 0 is the lowest level."""
        super().__init__()
        level = config.levels - 1 - place
        outputs = config.block_out_channels[level]
        before = config.block_out_channels[min(level + 1, config.levels - 1)]
        after = config.block_out_channels[max(level - 1, 0)]
        depths = config.layers_up(place)
        self.resnets = []
        for i in range(len(depths)):
            skip = after if i == len(depths) - 1 else outputs
            self.resnets.append(_resnet(config, (before if i == 0 else outputs) + skip, outputs, time))
        if config.up_block_types[place] == "CrossAttnUpBlock2D":
            self.attentions = [_transformer(config, level, depth) for depth in depths]
        elif config.up_block_types[place] == "AttnUpBlock2D":
            self.attentions = [_picture_attention(config, level) for _ in depths]
        if config.larger(place) == "conv":
            self.upsamplers = [Upsample(outputs)]
        elif config.larger(place) == "resnet":
            self.upsamplers = [_resnet(config, outputs, outputs, time, doubled)]

    def __call__(
        self, x: mx.array, skips: list[mx.array], time: mx.array, text: Iterator[KeysValues], size: tuple[int, int]
    ) -> mx.array:
        """skips: taken from the end; size: (height, width) of the next level, which odd sizes make less than double."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(mx.concatenate([x, skips.pop()], axis=-1), time)
            if "attentions" in self:
                x = self.attentions[i](x, text)
        if "upsamplers" not in self:
            return x
        between = self.upsamplers[0]
        return between(x, time) if isinstance(between, Resnet) else between(x, size)


def _resnet(
    config: UNetConfig,
    inputs: int,
    outputs: int,
    time: int,
    resample: Callable[[mx.array], mx.array] | None = None,
) -> Resnet:
    scale_shift, groups = config.resnet_time_scale_shift == "scale_shift", config.norm_num_groups
    return Resnet(inputs, outputs, groups, config.norm_eps, time, scale_shift=scale_shift, resample=resample)


def _picture_attention(config: UNetConfig, level: int) -> PictureAttention:
    channels = config.block_out_channels[level]
    return PictureAttention(channels, config.heads[level], config.norm_num_groups, config.norm_eps)


def _transformer(config: UNetConfig, level: int, layers: int, only_cross: bool | None = None) -> Transformer:
    return Transformer(
        config.block_out_channels[level],
        config.heads[level],
        layers,
        config.cross_attention_dim[level],
        config.norm_num_groups,
        config.only_cross_attention[level] if only_cross is None else only_cross,
    )


class UNet(nn.Module):
    """Noisy latents, the time and a text to what the network predicts (the noise, or v).

    The work is cut where it changes: `keys_values` once a text, `embed` once a step, the call once a batch. A U-Net
    that reads no text is given no keys and values.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        first = config.block_out_channels[0]
        time = 4 * first
        self.conv_in = Conv2d(config.in_channels, first)
        self.time_embedding = Embedding(first, time, config.time_cond_proj_dim)
        kind, width = config.class_embed_type, config.projection_class_embeddings_input_dim
        if kind == "timestep":
            self.class_embedding = Embedding(first, time)
        elif kind == "projection":
            self.class_embedding = Embedding(width or 0, time)
        elif kind == "simple_projection":
            self.class_embedding = Linear(width or 0, time)
        elif kind is None and config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, time)
        if config.addition_embed_type == "text_time":
            self.add_embedding = Embedding(width or 0, time)
        self.down_blocks = []
        inputs = first
        for level in range(config.levels):
            self.down_blocks.append(DownBlock(config, level, inputs, time))
            inputs = config.block_out_channels[level]
        if config.mid_block_type is not None:
            self.mid_block = MidBlock(config, time)
        self.up_blocks = [UpBlock(config, place, time) for place in range(config.levels)]
        self.conv_norm_out = GroupNorm(config.norm_num_groups, first, config.norm_eps)
        self.conv_out = Conv2d(first, config.out_channels)
        self.config = config

    @property
    def dtype(self) -> mx.Dtype:
        """What the weights are, and so everything between input and output."""
        return self.conv_in.weight.dtype

    def _looking(self) -> list[nn.Module]:
        middle = [self.mid_block] if "mid_block" in self else []
        blocks: list[nn.Module] = [*self.down_blocks, *middle, *self.up_blocks]
        return [module for block in blocks if "attentions" in block for module in block.attentions]

    def transformers(self) -> list[Transformer]:
        """Every transformer, in the order the data meets them."""
        return [module for module in self._looking() if isinstance(module, Transformer)]

    def attentions(self) -> list[Attention]:
        """Every attention, of the transformers and those to the picture alone."""
        alone = [module for module in self._looking() if isinstance(module, PictureAttention)]
        blocks = [block for transformer in self.transformers() for block in transformer.transformer_blocks]
        return [*alone, *(attention for block in blocks for attention in (block.attn1, block.attn2))]

    def keys_values(self, text: mx.array) -> list[KeysValues]:
        """What the text (B, L, width) contributes to every cross-attention, in order; the same at every step."""
        text = text.astype(self.dtype)
        blocks = [block for transformer in self.transformers() for block in transformer.transformer_blocks]
        return [attention.keys_values(text) for block in blocks for attention in block.cross()]

    def embed(
        self,
        timestep: float,
        *,
        labels: mx.array | None = None,
        added: tuple[mx.array, np.ndarray] | None = None,
        condition: mx.array | None = None,
    ) -> mx.array:
        """The time and what else there is, as one vector (1 or B, width), through its activation.

        labels: class labels, (B,) whole numbers for an embedding table, (B,) numbers for "timestep", else (B, width).
        added: SDXL's pooled text (B, width) and its six sizes (B, 6). condition: LCM's guidance (B, width).
        """
        waves = (self.config.flip_sin_to_cos, self.config.freq_shift)
        first = self.config.block_out_channels[0]
        steps = sinusoids(np.array([timestep]), first, *waves).astype(self.dtype)
        out = self.time_embedding(steps, None if condition is None else condition.astype(self.dtype))
        if self.config.class_embed_type is not None or "class_embedding" in self:
            if labels is None:
                raise ValueError("this U-Net has a class embedding and needs labels")
            if self.config.class_embed_type == "timestep":
                labels = sinusoids(np.array(labels), first, *waves)
            if self.config.class_embed_type is not None:
                labels = labels.astype(self.dtype)
            out = out + (self.class_embedding(labels) if "class_embedding" in self else labels)
        if "add_embedding" in self:
            if added is None:
                raise ValueError("this U-Net has a text and time embedding and needs the pooled text and the sizes")
            pooled, sizes = added
            times = sinusoids(sizes.reshape(-1), self.config.addition_time_embed_dim or 0, *waves)
            both = mx.concatenate([pooled, times.reshape(sizes.shape[0], -1).astype(pooled.dtype)], axis=-1)
            out = out + self.add_embedding(both.astype(self.dtype))
        return silu(out)

    def __call__(self, x: mx.array, time: mx.array, text: list[KeysValues]) -> mx.array:
        """x (B, h, w, in) scaled noisy latents, `embed`'s vector, `keys_values`' list -> (B, h, w, out), x's dtype."""
        given, keys_values = x.dtype, iter(text)
        x = self.conv_in(x.astype(self.dtype))
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, time, keys_values)
            skips += more
        if "mid_block" in self:
            x = self.mid_block(x, time, keys_values)
        for block in self.up_blocks:
            # what is left after this block's own skips ends with the level above
            rest = skips[: len(skips) - len(block.resnets)]
            _, height, width, _ = (rest[-1] if rest else x).shape
            x = block(x, skips, time, keys_values, (height, width))
        return self.conv_out(self.conv_norm_out(x, act=True)).astype(given)
