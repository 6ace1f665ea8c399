"""Two operations of the U-Net and the autoencoder as Triton kernels, for CUDA.

torch's GroupNorm on CUDA wants NCHW: between channels_last convolutions it copies the picture to NCHW and back, and
SiLU is one more pass. Here statistics are summed per channel, then one pass scales, shifts and applies SiLU, in NHWC.
Sums are float32, whatever the picture is. `usable` checks the kernels against torch once, on this machine, before they
are trusted; without Triton (Windows, say) everything runs on torch's own operations.
"""

from __future__ import annotations

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheel for this system
    triton = None

log = logging.getLogger(__name__)

CHANNELS, PIXELS = 64, 64  # of one tile: rows of 128 bytes in float16

if triton is not None:

    @triton.jit(do_not_specialize=["add_stride", "span"])
    def _sums(x, add, partial, hw, c, add_stride, span, ADD: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
        """Sum and sum of squares of `span` pixels, per channel: partial[picture, split, 0 and 1, channel]."""
        picture, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
        channel = tl.program_id(2) * C + tl.arange(0, C)
        here = channel < c
        base = x + picture.to(tl.int64) * hw * c
        shift = tl.zeros([C], tl.float32)
        if ADD:
            shift = tl.load(add + picture * add_stride + channel, mask=here, other=0.0).to(tl.float32)
        total = tl.zeros([P, C], tl.float32)
        square = tl.zeros([P, C], tl.float32)
        for start in range(split * span, split * span + span, P):
            pixel = start + tl.arange(0, P)
            inside = (pixel[:, None] < hw) & (pixel[:, None] < split * span + span) & here[None, :]
            value = tl.load(base + pixel[:, None].to(tl.int64) * c + channel[None, :], mask=inside, other=0.0)
            value = tl.where(inside, value.to(tl.float32) + shift[None, :], 0.0)
            total += value
            square += value * value
        out = partial + (picture * splits + split) * 2 * c + channel
        tl.store(out, tl.sum(total, axis=0), mask=here)
        tl.store(out + c, tl.sum(square, axis=0), mask=here)

    @triton.jit(do_not_specialize=["hw", "width", "splits", "add_stride"])
    def _affine(
        partial,
        weight,
        bias,
        add,
        scale,
        hw,
        c,
        width,
        splits,
        eps,
        add_stride,
        ADD: tl.constexpr,
        S: tl.constexpr,
        D: tl.constexpr,
    ):
        """From the sums to one factor and one summand per channel: scale[picture, 0 and 1, channel]."""
        picture, group = tl.program_id(0), tl.program_id(1)
        channel = group * width + tl.arange(0, D)
        here = tl.arange(0, D) < width
        total = tl.zeros([S, D], tl.float32)
        square = tl.zeros([S, D], tl.float32)
        for start in range(0, splits, S):  # S at a time: one by one, the loop would wait for every load
            split = start + tl.arange(0, S)
            at = partial + (picture * splits + split[:, None]) * 2 * c + channel[None, :]
            inside = (split[:, None] < splits) & here[None, :]
            total += tl.load(at, mask=inside, other=0.0)
            square += tl.load(at + c, mask=inside, other=0.0)
        count = (hw * width).to(tl.float32)
        mean = tl.sum(tl.sum(total, axis=0), axis=0) / count
        variance = tl.maximum(tl.sum(tl.sum(square, axis=0), axis=0) / count - mean * mean, 0.0)
        factor = tl.load(weight + channel, mask=here, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
        shift = tl.zeros([D], tl.float32) - mean
        if ADD:
            shift += tl.load(add + picture * add_stride + channel, mask=here, other=0.0).to(tl.float32)
        summand = tl.load(bias + channel, mask=here, other=0.0).to(tl.float32) + shift * factor
        tl.store(scale + picture * 2 * c + channel, factor, mask=here)
        tl.store(scale + picture * 2 * c + c + channel, summand, mask=here)

    @triton.jit
    def _apply(x, scale, y, hw, c, ACT: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
        """y = x * factor + summand, then SiLU if ACT."""
        picture = tl.program_id(0)
        pixel = tl.program_id(1) * P + tl.arange(0, P)
        channel = tl.program_id(2) * C + tl.arange(0, C)
        here = channel < c
        factor = tl.load(scale + picture * 2 * c + channel, mask=here, other=0.0)
        summand = tl.load(scale + picture * 2 * c + c + channel, mask=here, other=0.0)
        at = picture.to(tl.int64) * hw * c + pixel[:, None].to(tl.int64) * c + channel[None, :]
        inside = (pixel[:, None] < hw) & here[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factor[None, :] + summand[None, :]
        if ACT:
            value = value / (1.0 + tl.exp(-value))
        tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _gate(x, y, width, N: tl.constexpr):
        """y = first half of a row times GELU (the exact one) of the second half."""
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * N + tl.arange(0, N)
        here = column < width
        value = tl.load(x + row * 2 * width + column, mask=here, other=0.0).to(tl.float32)
        gate = tl.load(x + row * 2 * width + width + column, mask=here, other=0.0).to(tl.float32)
        gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
        tl.store(y + row * width + column, (value * gate).to(y.dtype.element_ty), mask=here)


def norm_act(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    act: bool,
    add: Tensor | None = None,
    spend: bool = False,
) -> Tensor:
    """GroupNorm of x + add, then SiLU if `act`; x (N, C, H, W) channels_last, add (N, C) or None.

    spend: nobody else needs x, and its memory becomes the result's.
    """
    n, c, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    y = x if spend else torch.empty_like(x)
    hw, tiles = h * w, triton.cdiv(c, CHANNELS)
    # enough programs for a large GPU, few partial sums, and whole tiles
    splits = max(1, min(triton.cdiv(hw, PIXELS), 512 // (n * tiles)))
    span = triton.cdiv(triton.cdiv(hw, splits), PIXELS) * PIXELS
    splits, width = triton.cdiv(hw, span), c // groups
    partial = torch.empty(n, splits, 2, c, device=x.device)
    scale = torch.empty(n, 2, c, device=x.device)
    extra, stride = (x, 0) if add is None else (add, add.stride(0))  # any pointer does
    given = add is not None
    _sums[(n, splits, tiles)](x, extra, partial, hw, c, stride, span, ADD=given, P=PIXELS, C=CHANNELS, num_warps=8)
    _affine[(n, groups)](
        partial,
        weight,
        bias,
        extra,
        scale,
        hw,
        c,
        width,
        splits,
        eps,
        stride,
        ADD=given,
        S=32,
        D=triton.next_power_of_2(width),
    )
    _apply[(n, triton.cdiv(hw, PIXELS), tiles)](x, scale, y, hw, c, ACT=act, P=PIXELS, C=CHANNELS)
    return y


def gated_gelu(x: Tensor) -> Tensor:
    """The first half of the last axis times GELU of the second: (..., 2K) -> (..., K)."""
    x = x.contiguous()
    width = x.shape[-1] // 2
    y = torch.empty(*x.shape[:-1], width, device=x.device, dtype=x.dtype)
    _gate[(x.numel() // (2 * width), triton.cdiv(width, 1024))](x, y, width, N=1024)
    return y


@functools.cache
def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels run on `device` and agree with torch there. Says why not in the log, once."""
    if device.type != "cuda":
        return False
    if triton is None:
        log.warning("Triton is not installed: GroupNorm and GELU run as torch's own, slower operations")
        return False
    try:
        worst = _disagreement(device, dtype)
    except Exception as error:  # a compiler, a driver and a C compiler are involved: anything can be raised
        log.warning("Triton fails here, GroupNorm and GELU run as torch's own, slower operations: %s", error)
        return False
    if not worst < 1e-4 + 16 * torch.finfo(dtype).eps:  # numbers go up to about 8
        log.warning("Triton computes wrong numbers here (off by %.3g): torch's own operations are used", worst)
        return False
    return True


def _disagreement(device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference between these kernels and torch in float32, on data of about unit size."""
    numbers = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=numbers).to(device, dtype)  # noqa: E731
    worst = 0.0
    for n, c, h, w, groups, add in ((2, 320, 9, 7, 32, True), (1, 96, 80, 40, 8, False)):
        x = draw(n, c, h, w).contiguous(memory_format=torch.channels_last)
        weight, bias, more = draw(c), draw(c), draw(n, 2 * c)[:, c:] if add else None
        wanted = x.float() if more is None else x.float() + more.float()[:, :, None, None]
        wanted = F.group_norm(wanted, groups, weight.float(), bias.float(), 1e-5)
        got = norm_act(x, groups, weight, bias, 1e-5, False, more).float()
        worst = max(worst, (got - wanted).abs().max().item())
        got = norm_act(x, groups, weight, bias, 1e-5, True, more).float()
        worst = max(worst, (got - F.silu(wanted)).abs().max().item())
    x = draw(3, 5, 2 * 1280)
    value, gate = x.float().chunk(2, dim=-1)
    return max(worst, (gated_gelu(x).float() - value * F.gelu(gate)).abs().max().item())
