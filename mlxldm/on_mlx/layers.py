"""The small parts every network here is made of: convolution, norms, attention, feed-forward, residual block.

Pictures and feature maps are (batch, height, width, channels), token sequences (batch, length, channels).
Attribute names are the parameter names of the checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import cpu
from .device import fused, gpu

FUSED_HEADS = (64, 80, 96, 128)  # head sizes for which Metal has an attention kernel that never stores the scores
SCORES = 1 << 25  # bytes of attention scores to hold at a time where they are stored


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x)."""
    return cpu.silu(x + 0.0) if _numpy(x) else _silu(x)


def gelu(x: mx.array) -> mx.array:
    """x times the normal distribution function at x, exact."""
    return gated(mx.ones_like(x), x)


def quick_gelu(x: mx.array) -> mx.array:
    """OpenAI's approximation: x * sigmoid(1.702 x)."""
    return silu(1.702 * x) * (1 / 1.702)


def gated(x: mx.array, gate: mx.array) -> mx.array:
    """x * gelu(gate)."""
    return cpu.gelu(0.5 * x, gate) if _numpy(x) else _gated(x, gate)


def affine(x: mx.array, scale: mx.array, shift: mx.array, act: bool, spend: bool = False) -> mx.array:
    """x * scale + shift in float32, through SiLU if asked; x (B, H, W, C), scale and shift (B, C) float32.

    spend: nobody else needs x, and on a CPU its memory becomes the result's.
    """
    if _numpy(x):
        return cpu.affine(x if spend else x + 0.0, scale, shift, act)
    scale, shift = scale[:, None, None, :], shift[:, None, None, :]
    return _affine_silu(x, scale, shift) if act else _affine(x, scale, shift)


def _numpy(x: mx.array) -> bool:
    return not gpu() and cpu.usable(x)


@fused
def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


@fused
def _gated(x: mx.array, gate: mx.array) -> mx.array:
    return x * (gate * (0.5 + 0.5 * mx.erf(gate * math.sqrt(0.5))))


@fused
def _affine(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    return (x.astype(mx.float32) * scale + shift).astype(x.dtype)


@fused
def _affine_silu(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    y = x.astype(mx.float32) * scale + shift
    return (y * mx.sigmoid(y)).astype(x.dtype)


class Linear(nn.Linear):
    """nn.Linear; on a CPU the bias is added last, where MLX would first copy it to every row."""

    def __call__(self, x: mx.array) -> mx.array:
        if gpu() or "bias" not in self:
            return super().__call__(x)
        return x @ self.weight.T + self.bias


class PackedLinear(nn.Module):
    """A Linear whose weight stays in memory as a quantized folder's codes; MLX multiplies by them directly."""

    def __init__(self, codes: mx.array, scales: mx.array, biases: mx.array, bits: int, group: int):
        """codes uint32 (out, in * bits / 32), scales and biases (out, in / group) in the type of what comes in."""
        super().__init__()
        self.weight, self.scales, self.biases = codes, scales, biases
        self._bits, self._group = bits, group  # underscores keep them out of the parameters
        self._beside: tuple[mx.array, mx.array] | None = None

    def put_beside(self, down: mx.array | None, up: mx.array | None) -> None:
        """Add up @ down to the weight from now on, without unpacking it: down (r, in), up (out, r); None: no more."""
        self._beside = None if down is None or up is None else (down.T, up.T)

    def __call__(self, x: mx.array) -> mx.array:
        y = mx.quantized_matmul(
            x, self.weight, self.scales, self.biases, transpose=True, group_size=self._group, bits=self._bits
        )
        if self._beside is not None:
            down, up = self._beside
            y = y + (x @ down) @ up
        return y + self.bias if "bias" in self else y

    def dequantized(self) -> mx.array:
        """The weight (out, in)."""
        return mx.dequantize(self.weight, self.scales, self.biases, group_size=self._group, bits=self._bits)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm, in one pass on a CPU."""

    def __call__(self, x: mx.array) -> mx.array:
        if _numpy(x):
            return cpu.layer_norm(x + 0.0, self.weight, self.bias, self.eps)
        return super().__call__(x)


class Conv2d(nn.Module):
    """A convolution over NHWC pictures; weight (out, height, width, in)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int | None = None):
        super().__init__()
        self.weight = mx.zeros((outputs, kernel, kernel, inputs))
        self.bias = mx.zeros((outputs,))
        self.stride = stride
        self.padding = kernel // 2 if padding is None else padding
        self.seamless = ""  # "x", "y" or "both": where the picture continues on its other side instead of with zeros

    def __call__(self, x: mx.array, shift: mx.array | None = None, twice: bool = False) -> mx.array:
        """shift: (1 or B, out), added to the bias. twice: of x with every pixel repeated, to twice its size."""
        bias = self.bias[None] if shift is None else self.bias + shift
        axes = AXES[self.seamless]
        if axes and twice:
            x, twice = doubled(x), False
        x = continued(x, axes, self.padding, self.padding)
        if self.weight.shape[1] == 3 and self.stride == self.padding == 1 and _numpy(x):
            y = cpu.conv3x3(x, self.weight, bias, twice)
            return y[:, _middle(1 in axes), _middle(2 in axes)] if axes else y
        x = doubled(x) if twice else x
        padding = (0 if 1 in axes else self.padding, 0 if 2 in axes else self.padding)
        return mx.conv2d(x, self.weight, self.stride, padding) + bias[:, None, None, :]


AXES: dict[str, tuple[int, ...]] = {"": (), "x": (2,), "y": (1,), "both": (1, 2)}


def continued(x: mx.array, axes: tuple[int, ...], before: int, after: int) -> mx.array:
    """x (B, H, W, C) with its end in front of its beginning and its beginning behind its end, by so many pixels."""
    for axis in axes:
        end = [mx.split(x, [x.shape[axis] - before], axis)[1]] if before else []
        start = [mx.split(x, [after], axis)[0]] if after else []
        x = mx.concatenate([*end, x, *start], axis)
    return x


def _middle(cut: bool) -> slice:
    return slice(1, -1) if cut else slice(None)


class GroupNorm(nn.Module):
    """Normalise groups of channels over a whole picture, then scale and shift; SiLU in the same pass if asked.

    Two sums per channel give one scale and one shift per channel, so the picture is never transposed.
    Sums, scale and shift are float32 whatever the picture is.
    """

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__()
        self.weight = mx.ones((channels,))
        self.bias = mx.zeros((channels,))
        self.groups = groups
        self.eps = eps

    def __call__(
        self,
        x: mx.array,
        act: bool = False,
        extra: tuple[mx.array, mx.array] | None = None,
        spend: bool = False,
    ) -> mx.array:
        """extra: (scale, shift), each (batch, channels), applied as y * (1 + scale) + shift before the activation.

        spend: nobody else needs x, and on a CPU its memory becomes the result's.
        """
        batch, _, _, channels = x.shape
        if _numpy(x):
            mean, square = cpu.moments(x)
        else:
            x32 = x.astype(mx.float32)
            mean, square = _picture_mean(x32), _picture_mean(mx.square(x32))
        mean = mx.mean(mean.reshape(batch, self.groups, -1), axis=-1, keepdims=True)
        square = mx.mean(square.reshape(batch, self.groups, -1), axis=-1, keepdims=True)
        scale = mx.rsqrt(mx.maximum(square - mx.square(mean), 0.0) + self.eps)
        shift = mx.broadcast_to(-mean * scale, (batch, self.groups, channels // self.groups)).reshape(batch, channels)
        scale = mx.broadcast_to(scale, (batch, self.groups, channels // self.groups)).reshape(batch, channels)
        weight = self.weight.astype(mx.float32)
        scale, shift = scale * weight, shift * weight + self.bias.astype(mx.float32)
        if extra is not None:
            more = 1.0 + extra[0].astype(mx.float32)
            scale, shift = scale * more, shift * more + extra[1].astype(mx.float32)
        return affine(x, scale, shift, act, spend)


def _picture_mean(x: mx.array) -> mx.array:
    """(B, H, W, C) -> (B, C); rows first, so that float32 does not add a hundred thousand numbers in a line."""
    return mx.mean(mx.mean(x, axis=2), axis=1)


class Attention(nn.Module):
    """Multi-head attention of one sequence to itself or to another, with diffusers' names (to_q, to_k, to_v, to_out.0).

    Attention Is All You Need, Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(self, channels: int, heads: int, head: int, source: int | None = None, bias: bool = False):
        """channels of the sequence, number of heads, size of a head, channels of what it looks at (None: itself)."""
        super().__init__()
        inner = heads * head
        self.to_q = Linear(channels, inner, bias=bias)
        self.to_k = Linear(source or channels, inner, bias=bias)
        self.to_v = Linear(source or channels, inner, bias=bias)
        self.to_out = [Linear(inner, channels)]
        self.heads = heads
        self.scale = head**-0.5  # of the true head size: zeros that pad a head change no product
        self.true_head = self.head = head  # as it is, and as it is stored

    def keys_values(self, source: mx.array) -> tuple[mx.array, mx.array]:
        """The two things that depend on `source` (B, L, channels) alone, split into heads."""
        return split_heads(self.to_k(source), self.heads), split_heads(self.to_v(source), self.heads)

    def __call__(self, x: mx.array, keys_values: tuple[mx.array, mx.array] | None = None) -> mx.array:
        keys, values = self.keys_values(x) if keys_values is None else keys_values
        out = attend(split_heads(self.to_q(x), self.heads), keys, values, self.scale)
        return self.to_out[0](join_heads(out))

    def pad_heads(self, size: int) -> None:
        """Fill every head with zeros up to `size`: the same function, in a size for which Metal has a fused kernel."""
        for layer in (self.to_q, self.to_k, self.to_v):
            for name in ("weight", "scales", "biases", "bias"):
                if name in layer:
                    layer[name] = pad(layer[name], 0, self.heads, size)
        out = self.to_out[0]
        if isinstance(out, PackedLinear):  # its groups run across the heads: no zeros fit in between
            bias, weight = out.bias, out.dequantized()
            out = self.to_out[0] = Linear(1, 1)
            out.weight, out.bias = weight, bias
        out.weight = pad(out.weight, 1, self.heads, size)
        self.head = size
        mx.eval(self.parameters())


class PictureAttention(Attention):
    """Every place of a feature map looks at every other, with its norm and shortcut."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float):
        super().__init__(channels, heads, channels // heads, bias=True)
        self.group_norm = GroupNorm(groups, channels, eps)

    def __call__(self, x: mx.array, _: Any = None) -> mx.array:
        """The second argument stands where a transformer is given the text."""
        batch, height, width, channels = x.shape
        y = super().__call__(self.group_norm(x).reshape(batch, height * width, channels))
        return x + y.reshape(batch, height, width, channels)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """(B, L, heads * size) -> (B, heads, L, size)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def join_heads(x: mx.array) -> mx.array:
    """(B, heads, L, size) -> (B, L, heads * size)."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def pad(x: mx.array, axis: int, heads: int, size: int) -> mx.array:
    """An axis of `heads` parts, each filled up with zeros to `size`; or cut down to it, where they are larger."""
    shape = list(x.shape)
    x = x.reshape(*shape[:axis], heads, shape[axis] // heads, *shape[axis + 1 :])
    more = size - x.shape[axis + 1]
    if more < 0:
        x = x[(slice(None),) * (axis + 1) + (slice(size),)]
    else:
        x = mx.pad(x, [(0, more if i == axis + 1 else 0) for i in range(x.ndim)])
    return x.reshape(*shape[:axis], heads * size, *shape[axis + 1 :])


def attend(q: mx.array, k: mx.array, v: mx.array, scale: float, limit: int = SCORES) -> mx.array:
    """softmax(q k^T scale) v over (B, heads, L, size); at most about `limit` bytes of scores exist at a time.

    Where a kernel keeps the scores on the chip nothing is cut; elsewhere the queries are, which changes no number
    that matters: every row of scores is on its own.
    """
    if _numpy(q):
        return cpu.attend(q, k, v, scale)
    if gpu() and q.shape[-1] in FUSED_HEADS:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    row = q.shape[0] * q.shape[1] * k.shape[2] * 4
    rows = max(1, min(q.shape[2], limit // row))
    if rows == q.shape[2]:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    cut = list(range(rows, q.shape[2], rows))
    parts = [mx.fast.scaled_dot_product_attention(part, k, v, scale=scale) for part in mx.split(q, cut, axis=2)]
    return mx.concatenate(parts, axis=2)


class GEGLU(nn.Module):
    """A linear map to twice the width; one half, through GELU, gates the other. Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.proj = Linear(channels, 2 * inner)

    def __call__(self, x: mx.array) -> mx.array:
        if not _numpy(x) or isinstance(self.proj, PackedLinear):
            return gated(*mx.split(self.proj(x), 2, axis=-1))
        weights, biases = mx.split(self.proj.weight, 2), mx.split(self.proj.bias, 2)
        return gated(*(x @ weight.T + bias for weight, bias in zip(weights, biases, strict=True)))


class FeedForward(nn.Module):
    """The transformer's two-layer perceptron, four times as wide inside."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = [GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels)]  # dropout was at 1

    def __call__(self, x: mx.array) -> mx.array:
        return self.net[2](self.net[0](x))


class Resnet(nn.Module):
    """Two convolutions around a shortcut, told the time in between. He et al. 2015, arXiv:1512.03385."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        eps: float,
        time: int | None = None,
        *,
        scale_shift: bool = False,
        resample: Callable[[mx.array], mx.array] | None = None,
    ):
        """time: width of the time embedding, None for none; scale_shift: the embedding scales as well as shifts;
        resample: what makes the picture smaller or larger, before the first convolution and in the shortcut."""
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs, eps)
        self.conv1 = Conv2d(inputs, outputs)
        if time is not None:
            self.time_emb_proj = Linear(time, 2 * outputs if scale_shift else outputs)
        self.norm2 = GroupNorm(groups, outputs, eps)
        self.conv2 = Conv2d(outputs, outputs)
        if inputs != outputs:
            self.conv_shortcut = Linear(inputs, outputs)
        self.scale_shift = scale_shift
        self.resample = resample

    def __call__(self, x: mx.array, time: mx.array | None = None) -> mx.array:
        """time: the embedding (1 or B, width), already through its activation."""
        y = self.norm1(x, act=True)
        if self.resample is not None:
            x, y = self.resample(x), self.resample(y)
        if time is None:
            y = self.conv1(y)
            y = self.norm2(y, act=True, spend=True)
        elif self.scale_shift:
            scale, shift = mx.split(self.time_emb_proj(time), 2, axis=-1)
            y = self.norm2(self.conv1(y), act=True, extra=(scale, shift), spend=True)
        else:
            y = self.norm2(self.conv1(y, self.time_emb_proj(time)), act=True, spend=True)
        y = self.conv2(y)
        return (self.conv_shortcut(x) if "conv_shortcut" in self else x) + y

    def spend(self, held: list[mx.array]) -> mx.array:
        """A call without time, of the one array in `held`: it is taken out, and let go as early as can be."""
        x = held.pop()
        if "conv_shortcut" not in self or self.resample is not None or not _numpy(x):
            return self(x)
        shortcut = self.conv_shortcut(x)
        mx.eval(shortcut)
        x = self.norm1(x, act=True, spend=True)
        x = self.conv1(x)
        x = self.norm2(x, act=True, spend=True)
        return shortcut + self.conv2(x)


def halved(x: mx.array) -> mx.array:
    """(B, H, W, C) of even sides -> (B, H/2, W/2, C): the mean of each four pixels."""
    batch, height, width, channels = x.shape
    return mx.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def doubled(x: mx.array) -> mx.array:
    """(B, H, W, C) -> (B, 2H, 2W, C): every pixel four times."""
    batch, height, width, channels = x.shape
    x = mx.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


class Downsample(nn.Module):
    """Halve height and width with a strided convolution; padding 0 means one row and column after, none before."""

    def __init__(self, channels: int, padding: int = 1):
        super().__init__()
        self.conv = Conv2d(channels, channels, stride=2, padding=padding)

    def __call__(self, x: mx.array) -> mx.array:
        if self.conv.padding == 0:
            axes = AXES[self.conv.seamless]
            x = continued(x, axes, 0, 1)
            x = mx.pad(x, [(0, 0), (0, 1 - axes.count(1)), (0, 1 - axes.count(2)), (0, 0)])
        return self.conv(x)


class Upsample(nn.Module):
    """Repeat every pixel, to twice the size or to the size given, then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels)

    def __call__(self, x: mx.array, size: tuple[int, int] | None = None) -> mx.array:
        """size: (height, width) wanted, between one less than double and double."""
        _, height, width, _ = x.shape
        if size in (None, (2 * height, 2 * width)):
            return self.conv(x, twice=True)
        return self.conv(doubled(x)[:, : size[0], : size[1], :])
