"""diffusers' blocks with the same parameters and the same results, computed with less traffic.

diffusers' modules are written for every model there is; on a GPU they spend half their time copying between layouts and
starting small kernels. What is done here is exact up to rounding:

- GroupNorm and SiLU are one operation (`NormAct`), and so is the gated GELU (both in `kernels`);
- the projections of the time embedding of all residual blocks are one matrix product a step (`TimeProjections`), with
  the bias of the convolution they are added to;
- queries, keys and values of the self attention are one matrix product;
- keys and values of the text are computed once a job (`TextAttention.read`), not every step;
- 1x1 convolutions are matrix products, and a picture stays channels_last from the first block to the last.

U-Nets without text get what of this applies; residual blocks whose time scales as well as shifts stay diffusers' own.

`quicken_unet` and `quicken_vae` replace the modules of a filled model. Sources: Rombach et al. 2022 (the U-Net),
Wu and He 2018 (GroupNorm).
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel, Transformer2DModelOutput
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from . import kernels

log = logging.getLogger(__name__)

BAND = 1 << 26  # bytes of repeated pixels at a time: much less than a large picture, enough to keep a GPU busy


def _fast(weight: Tensor) -> bool:
    """Whether our own kernels run where this weight is; elsewhere torch's operations do."""
    return kernels.usable(weight.device, weight.dtype)


def window(rows: Tensor) -> nn.Parameter:
    """Some rows of a joined weight, as the parameter of the module that they came from: both are one memory."""
    return nn.Parameter(rows, requires_grad=False)


class NormAct(nn.Module):
    """GroupNorm over x (N, C, H, W) + add (N, C), then SiLU if `act`."""

    def __init__(self, norm: nn.GroupNorm, act: bool):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.act = norm.num_groups, norm.eps, act
        self.fast = _fast(norm.weight)

    def forward(self, x: Tensor, add: Tensor | None = None, spend: bool = False) -> Tensor:
        """spend: nobody else needs x, and its memory becomes the result's."""
        if self.fast:
            return kernels.norm_act(x, self.groups, self.weight, self.bias, self.eps, self.act, add, spend)
        if add is not None:
            x = x.add_(add[:, :, None, None]) if spend else x + add[:, :, None, None]
        if not spend:
            y = F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
            return F.silu(y, inplace=True) if self.act else y
        some = max(1, self.groups // 8)  # groups at a time: the second array is an eighth of x
        width = x.shape[1] // self.groups
        for first in range(0, self.groups, some):
            part = slice(first * width, min(first + some, self.groups) * width)
            weight, bias = self.weight[part], self.bias[part]
            y = F.group_norm(x[:, part], len(weight) // width, weight, bias, self.eps)
            x[:, part] = F.silu(y, inplace=True) if self.act else y
        return x


def pixels(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution as a matrix product: (N, C, H, W) channels_last in and out, `weight` (O, C) or (O, C, 1, 1)."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class Resnet(nn.Module):
    """A residual block, that may make the picture smaller or larger first.

    `temb` holds the projected time embeddings of all blocks; `rows` are this block's.
    """

    def __init__(self, block: ResnetBlock2D, rows: slice | None = None):
        super().__init__()
        self.norm1, self.norm2 = NormAct(block.norm1, True), NormAct(block.norm2, True)
        self.conv1, self.conv2, self.conv_shortcut = block.conv1, block.conv2, block.conv_shortcut
        self.resample = block.downsample if block.upsample is None else block.upsample
        self.rows = rows
        if self.conv_shortcut is not None:  # both biases in one addition
            both = self.conv_shortcut.bias + self.conv2.bias
            self.conv_shortcut.bias, self.conv2.bias = nn.Parameter(both, requires_grad=False), None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.norm1(x)
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        h = self.conv2(self.norm2(h, None if self.rows is None or temb is None else temb[:, self.rows], spend=True))
        if self.conv_shortcut is not None:
            x = pixels(x, self.conv_shortcut.weight, self.conv_shortcut.bias)
        return h.add_(x)

    def spend(self, held: list[Tensor]) -> Tensor:
        """`forward` without time, of the one tensor in `held`: it is taken out, and let go as early as can be."""
        if self.conv_shortcut is None or self.resample is not None:
            return self(held.pop())
        x = held.pop()
        shortcut = pixels(x, self.conv_shortcut.weight, self.conv_shortcut.bias)
        x = self.norm1(x, spend=True)
        x = self.conv1(x)
        x = self.norm2(x, spend=True)
        return self.conv2(x).add_(shortcut)


class TimeProjections(nn.Module):
    """SiLU of the time embedding (N, E), times the projections of all residual blocks at once: (N, sum of widths)."""

    def __init__(self, blocks: list[ResnetBlock2D]):
        super().__init__()
        self.weight = nn.Parameter(torch.cat([b.time_emb_proj.weight for b in blocks]), requires_grad=False)
        # conv1 adds its bias to every pixel, as the time is added: one addition does for both
        biases = [b.time_emb_proj.bias + b.conv1.bias for b in blocks]
        self.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        widths = [len(bias) for bias in biases]
        rows = zip(self.weight.split(widths), self.bias.split(widths), strict=True)
        for block, (weight, bias) in zip(blocks, rows, strict=True):
            block.time_emb_proj.weight, block.time_emb_proj.bias = window(weight), window(bias)
            block.conv1.bias = None

    def forward(self, emb: Tensor) -> Tensor:
        return F.linear(F.silu(emb), self.weight, self.bias)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, H*D) -> (B, H, L, D)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Attention of tokens (B, L, C) to each other; queries, keys and values from one product."""

    def __init__(self, attn: Attention):
        super().__init__()
        parts = (attn.to_q, attn.to_k, attn.to_v)
        self.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        self.bias = (
            None
            if attn.to_q.bias is None
            else nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
        )
        for part, rows in zip(parts, self.weight.chunk(3), strict=True):
            part.weight = window(rows)
        for part, rows in zip(parts, () if self.bias is None else self.bias.chunk(3), strict=self.bias is not None):
            part.bias = window(rows)
        self.out, self.heads = attn.to_out[0], attn.heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.weight, self.bias).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(_heads(q, self.heads), _heads(k, self.heads), _heads(v, self.heads))
        return self.out(y.transpose(1, 2).flatten(2))


class TextAttention(nn.Module):
    """Attention of tokens (B, L, C) to the text, whose keys and values `use` was given."""

    def __init__(self, attn: Attention):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.out = attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]
        self.heads = attn.heads
        self.text: tuple[Tensor, Tensor] | None = None

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, D) of a text (B, T, E)."""
        k, v = _heads(self.to_k(context), self.heads), _heads(self.to_v(context), self.heads)
        return k.contiguous(), v.contiguous()

    def use(self, text: tuple[Tensor, Tensor] | None) -> None:
        self.text = text

    def forward(self, x: Tensor) -> Tensor:
        assert self.text is not None, "no text was given"
        y = F.scaled_dot_product_attention(_heads(self.to_q(x), self.heads), *self.text)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One transformer layer: self attention (or text in its place), text, feed forward; tokens (B, L, C)."""

    def __init__(self, block: BasicTransformerBlock):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.wide, self.back = block.ff.net[0].proj, block.ff.net[2]
        self.fast = _fast(self.wide.weight)
        self.attn1 = TextAttention(block.attn1) if block.only_cross_attention else SelfAttention(block.attn1)
        self.attn2 = TextAttention(block.attn2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        h = self.wide(self.norm3(x))
        if self.fast:
            h = kernels.gated_gelu(h)
        else:
            value, gate = h.chunk(2, dim=-1)
            h = value * F.gelu(gate)
        return x + self.back(h)


class Transformer(nn.Module):
    """A picture (N, C, H, W) through transformer layers, added to itself."""

    def __init__(self, old: Transformer2DModel):
        super().__init__()
        self.norm = NormAct(old.norm, False)
        self.proj_in, self.proj_out = old.proj_in, old.proj_out
        self.blocks = nn.ModuleList(Block(block) for block in old.transformer_blocks)

    def forward(self, x: Tensor, *_, return_dict: bool = True, **__) -> tuple[Tensor] | Transformer2DModelOutput:
        # diffusers' blocks pass the text and a few Nones, all of them known here already
        n, _, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(n, h * w, -1)
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = F.linear(tokens, self.proj_out.weight.flatten(1), self.proj_out.bias)
        y = tokens.reshape(n, h, w, -1).permute(0, 3, 1, 2) + x
        return Transformer2DModelOutput(sample=y) if return_dict else (y,)


class PictureAttention(nn.Module):
    """Attention without text: the pixels (N, C, H, W) to each other, in the autoencoder in one head; added to them."""

    def __init__(self, attn: Attention):
        super().__init__()
        self.norm, self.attn = NormAct(attn.group_norm, False), SelfAttention(attn)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        n, _, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(n, h * w, -1)
        return self.attn(tokens).reshape(n, h, w, -1).permute(0, 3, 1, 2) + x


class Upsample(nn.Module):
    """Every pixel four times, then the convolution: in bands of rows, so that the repeated picture never exists."""

    def __init__(self, old: Upsample2D):
        super().__init__()
        self.conv = old.conv

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        rows = max(1, BAND // (n * 4 * c * w * x.element_size()))
        if rows >= h:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        shape, last = (n, self.conv.out_channels, 2 * h, 2 * w), torch.channels_last
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)
        wraps = self.conv.padding[0] == 0  # a seamless picture has neighbours everywhere
        for top in range(0, h, rows):
            end = min(top + rows, h)
            above, below = int(top > 0 or wraps), int(end < h or wraps)  # a row of neighbours, where there is one
            band = x[:, :, torch.arange(top - above, end + below) % h] if wraps else x[:, :, top - above : end + below]
            band = self.conv(F.interpolate(band, scale_factor=2.0, mode="nearest"))[:, :, 2 * above :]
            out[:, :, 2 * top : 2 * end] = band[:, :, : 2 * (end - top)]
        return out


class Straight(nn.Module):
    """An encoder's or a decoder's layers in one row: no tensor is held longer than it is needed."""

    def __init__(self, part: Encoder | Decoder):
        super().__init__()
        blocks = [part.mid_block, *part.up_blocks] if isinstance(part, Decoder) else [*part.down_blocks, part.mid_block]
        layers = [part.conv_in, *(layer for block in blocks for layer in _layers(block))]
        self.layers = nn.ModuleList(layers)
        self.norm, self.conv_out = NormAct(part.conv_norm_out, True), part.conv_out

    def forward(self, x: Tensor) -> Tensor:
        held = [x]
        del x
        for layer in self.layers:
            held.append(layer.spend(held) if isinstance(layer, Resnet) else layer(held.pop()))
        held.append(self.norm(held.pop(), spend=True))
        return self.conv_out(held.pop())


def _layers(block: nn.Module) -> list[nn.Module]:
    """A block's layers in the order the data meets them; the middle's first residual block has no attention after."""
    resnets, attentions = list(block.resnets), list(getattr(block, "attentions", None) or [])
    if isinstance(block, UNetMidBlock2D):
        return [resnets[0], *(a for a in attentions if a is not None), resnets[1]]
    inside = [layer for i, resnet in enumerate(resnets) for layer in (resnet, *attentions[i : i + 1])]
    ends = getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or []
    return [*inside, *(Upsample(end) if isinstance(end, Upsample2D) else end for end in ends)]


# Putting them in.


def _plain(block: ResnetBlock2D) -> bool:
    """Whether a residual block is the ordinary one, that `Resnet` computes."""
    return (
        block.time_embedding_norm in ("default", "group")  # "group": the autoencoder's, that get no time at all
        and not block.skip_time_act
        and block.output_scale_factor == 1.0
        and isinstance(block.nonlinearity, nn.SiLU)
        and (block.conv_shortcut is None or block.conv_shortcut.kernel_size == (1, 1))
    )


def _replace(root: nn.Module, kind: type[nn.Module], make) -> None:
    """Every module of a kind under `root`, replaced by `make(module)`."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                setattr(parent, name, make(child))


def _quicken_end(part: nn.Module) -> None:
    part.conv_norm_out, part.conv_act = NormAct(part.conv_norm_out, True), nn.Identity()


def quicken_unet(unet: UNet2DConditionModel | UNet2DModel) -> None:
    """Replace the blocks of a U-Net whose parameters are filled."""
    resnets = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    alone = isinstance(unet, UNet2DModel)
    if all(_plain(block) for block in resnets) and (alone or unet.time_embed_act is None):
        if alone:  # which adds nothing to the time between its embedding and the blocks
            assert unet.class_embedding is None
            unet.time_embedding = nn.Sequential(unet.time_embedding, TimeProjections(resnets))
        else:
            unet.time_embed_act = TimeProjections(resnets)
        ends = torch.tensor([block.out_channels for block in resnets]).cumsum(0).tolist()
        rows = {id(b): slice(end - b.out_channels, end) for b, end in zip(resnets, ends, strict=True)}
        _replace(unet, ResnetBlock2D, lambda block: Resnet(block, rows[id(block)]))
    else:
        log.info("the U-Net's residual blocks are not the ordinary ones: diffusers' own (slower) code runs them")
    _replace(unet, Transformer2DModel, Transformer)
    if alone:
        _replace(unet, Attention, PictureAttention)
    _quicken_end(unet)


def quicken_vae(vae: AutoencoderKL | VQModel) -> None:
    """Replace the blocks of an autoencoder whose parameters are filled."""
    assert all(_plain(module) for module in vae.modules() if isinstance(module, ResnetBlock2D))
    _replace(vae, ResnetBlock2D, Resnet)
    _replace(vae, Attention, PictureAttention)
    vae.encoder, vae.decoder = Straight(vae.encoder), Straight(vae.decoder)


def text_attentions(unet: UNet2DConditionModel) -> list[TextAttention]:
    """The layers that read the text, in order."""
    return [module for module in unet.modules() if isinstance(module, TextAttention)]
