"""The networks of the first latent diffusion models as torch modules with the original code's parameter names.

Written from what these networks compute (Rombach et al. 2022), apart from the converter and from diffusers, so that a
file made of them says whether the converter's names and shapes are right, and what they compute says whether the
numbers are in their place. `ZOO` and `FIRST_STAGES` are the published models;
a smaller `base` width gives the same structure in little.

Structure and names: https://github.com/CompVis/latent-diffusion (ldm/modules), MIT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn


def norm(wide: int, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(32, wide, eps=eps)


def conv(wide: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(wide, out, 3, padding=1)


def attend(q, k, v, heads: int):
    """Softmax attention of (batch, place, channel) in heads that lie one after the other in the channels."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# ---------------------------------------------------------------------------------------------------------------------
# The U-Net


@dataclass(frozen=True)
class UNetPlan:
    """A U-Net's numbers. `levels` are the widths in units of `base`; `attends` says at which of them there is attention
    (besides the middle, always); `heads` is their number, or `size` the size of each."""

    base: int
    takes: int
    gives: int
    levels: tuple[int, ...]
    attends: tuple[int, ...]
    heads: int | None = None
    size: int = 32
    context: int | None = None
    depth: int = 1
    updown: bool = False  # residual blocks make the picture smaller and larger
    scaled: bool = False  # the time scales and shifts

    def heads_at(self, wide: int) -> int:
        return self.heads or wide // self.size


class Residual(nn.Module):
    """GroupNorm, SiLU, convolution, the time, and once more; smaller or larger (`way`) after the first SiLU."""

    def __init__(self, wide: int, out: int, time: int, scaled: bool = False, way: str | None = None):
        super().__init__()
        self.in_layers = nn.Sequential(norm(wide), nn.SiLU(), conv(wide, out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * out if scaled else out))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Dropout(0), conv(out, out))
        self.skip_connection = nn.Identity() if wide == out else nn.Conv2d(wide, out, 1)
        self.scaled, self.way = scaled, way

    def resample(self, x):
        if self.way == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.way == "up" else x

    def forward(self, x, time, text):
        inner = self.in_layers[2](self.resample(self.in_layers[1](self.in_layers[0](x))))
        said = self.emb_layers(time)[:, :, None, None]
        if self.scaled:
            scale, shift = said.chunk(2, dim=1)
            inner = self.out_layers[0](inner) * (1 + scale) + shift
        else:
            inner = self.out_layers[0](inner + said)
        return self.skip_connection(self.resample(x)) + self.out_layers[1:](inner)


class PictureAttention(nn.Module):
    """Every place looks at every other. Rows of `qkv` come head by head: a head's query, its key, its value."""

    def __init__(self, wide: int, heads: int):
        super().__init__()
        self.norm, self.heads = norm(wide), heads
        self.qkv, self.proj_out = nn.Conv1d(wide, 3 * wide, 1), nn.Conv1d(wide, wide, 1)

    def forward(self, x, time, text):
        flat = x.flatten(2)
        each = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1))
        q, k, v = (each[:, :, i].flatten(1, 2).transpose(1, 2) for i in range(3))
        seen = attend(q, k, v, self.heads).transpose(1, 2)
        return (flat + self.proj_out(seen)).view_as(x)


class Cross(nn.Module):
    def __init__(self, wide: int, context: int, heads: int):
        super().__init__()
        self.to_q, self.heads = nn.Linear(wide, wide, bias=False), heads
        self.to_k, self.to_v = (nn.Linear(context, wide, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(wide, wide), nn.Dropout(0))

    def forward(self, x, text):
        return self.to_out(attend(self.to_q(x), self.to_k(text), self.to_v(text), self.heads))


class Gated(nn.Module):
    def __init__(self, wide: int, out: int):
        super().__init__()
        self.proj = nn.Linear(wide, 2 * out)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class Layer(nn.Module):
    def __init__(self, wide: int, context: int, heads: int):
        super().__init__()
        self.attn1, self.attn2 = Cross(wide, wide, heads), Cross(wide, context, heads)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(Gated(wide, 4 * wide), nn.Dropout(0), nn.Linear(4 * wide, wide))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(wide) for _ in range(3))

    def forward(self, x, text):
        own = self.norm1(x)
        x = x + self.attn1(own, own)
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff.net(self.norm3(x))


class TextAttention(nn.Module):
    def __init__(self, wide: int, heads: int, context: int, depth: int):
        super().__init__()
        self.norm = norm(wide, 1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(wide, wide, 1), nn.Conv2d(wide, wide, 1)
        self.transformer_blocks = nn.ModuleList(Layer(wide, context, heads) for _ in range(depth))

    def forward(self, x, time, text):
        inner = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for layer in self.transformer_blocks:
            inner = layer(inner, text)
        return x + self.proj_out(inner.transpose(1, 2).unflatten(2, x.shape[2:]))


class Smaller(nn.Module):
    def __init__(self, wide: int):
        super().__init__()
        self.op = nn.Conv2d(wide, wide, 3, stride=2, padding=1)

    def forward(self, x, time, text):
        return self.op(x)


class Larger(nn.Module):
    def __init__(self, wide: int):
        super().__init__()
        self.conv = conv(wide, wide)

    def forward(self, x, time, text):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, x, time, text):
        return super().forward(x)


class UNet(nn.Module):
    """Down, middle, up, with two residual blocks a level (three on the way up) and what they made remembered."""

    def __init__(self, plan: UNetPlan):
        super().__init__()
        self.plan = plan
        time, base = 4 * plan.base, plan.base

        def block(wide: int, out: int, level: int) -> list[nn.Module]:
            looks = [self.attention(out)] if level in plan.attends else []
            return [Residual(wide, out, time, plan.scaled), *looks]

        def between(wide: int, way: str) -> nn.Module:
            if plan.updown:
                return Residual(wide, wide, time, plan.scaled, way)
            return Smaller(wide) if way == "down" else Larger(wide)

        self.time_embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        down, kept, wide = [[First(plan.takes, base, 3, padding=1)]], [base], base
        for level, times in enumerate(plan.levels):
            for _ in range(2):
                down.append(block(wide, times * base, level))
                wide = times * base
                kept.append(wide)
            if level != len(plan.levels) - 1:
                down.append([between(wide, "down")])
                kept.append(wide)
        self.input_blocks = nn.ModuleList(nn.ModuleList(layers) for layers in down)
        middle = [Residual(wide, wide, time, plan.scaled), self.attention(wide)]
        self.middle_block = nn.ModuleList([*middle, Residual(wide, wide, time, plan.scaled)])
        up = []
        for level, times in reversed(list(enumerate(plan.levels))):
            for i in range(3):
                layers = block(wide + kept.pop(), times * base, level)
                wide = times * base
                up.append([*layers, between(wide, "up")] if level and i == 2 else layers)
        self.output_blocks = nn.ModuleList(nn.ModuleList(layers) for layers in up)
        self.out = nn.Sequential(norm(base), nn.SiLU(), conv(base, plan.gives))

    def attention(self, wide: int) -> nn.Module:
        plan, heads = self.plan, self.plan.heads_at(wide)
        if plan.context is None:
            return PictureAttention(wide, heads)
        return TextAttention(wide, heads, plan.context, plan.depth)

    def forward(self, x, t, text=None):
        half = self.plan.base // 2
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        kept = []
        for layers in self.input_blocks:
            for layer in layers:
                x = layer(x, time, text)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, time, text)
        for layers in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in layers:
                x = layer(x, time, text)
        return self.out(x)


# ---------------------------------------------------------------------------------------------------------------------
# First stages


@dataclass(frozen=True)
class StagePlan:
    """A first stage's numbers; `codes` 0: a KL autoencoder."""

    levels: tuple[int, ...]
    latent: int
    codes: int = 0
    attends: tuple[int, ...] = ()
    middle: bool = True  # the middle attends
    base: int = 128


class Block(nn.Module):
    def __init__(self, wide: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = norm(wide, 1e-6), conv(wide, out)
        self.norm2, self.conv2 = norm(out, 1e-6), conv(out, out)
        if wide != out:
            self.nin_shortcut = nn.Conv2d(wide, out, 1)
        self.same = wide == out

    def forward(self, x):
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return inner + (x if self.same else self.nin_shortcut(x))


class Look(nn.Module):
    def __init__(self, wide: int):
        super().__init__()
        self.norm = norm(wide, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(wide, wide, 1) for _ in range(4))

    def forward(self, x):
        inner = self.norm(x)
        q, k, v = (layer(inner).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.proj_out(attend(q, k, v, 1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Level(nn.Module):
    """Blocks, each with a look around where the level attends; then smaller or larger by a convolution."""

    def __init__(self, wide: int, out: int, count: int, looks: bool, way: str | None):
        super().__init__()
        self.block = nn.ModuleList(Block(out if i else wide, out) for i in range(count))
        self.attn = nn.ModuleList(Look(out) for _ in range(count if looks else 0))
        self.way = way
        if way:
            inner = nn.Module()
            inner.conv = conv(out, out) if way == "upsample" else nn.Conv2d(out, out, 3, stride=2)
            setattr(self, way, inner)

    def forward(self, x):
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if self.way == "downsample":
            return self.downsample.conv(F.pad(x, (0, 1, 0, 1)))
        return self.upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) if self.way else x


class Middle(nn.Module):
    def __init__(self, wide: int, looks: bool):
        super().__init__()
        self.block_1, self.block_2 = Block(wide, wide), Block(wide, wide)
        self.attn_1 = Look(wide) if looks else nn.Identity()

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, plan: StagePlan):
        super().__init__()
        widths = [plan.base * times for times in plan.levels]
        self.conv_in = conv(3, plan.base)
        self.down = nn.ModuleList(
            Level(plan.base if i == 0 else widths[i - 1], wide, 2, i in plan.attends,
                  "downsample" if i < len(widths) - 1 else None)
            for i, wide in enumerate(widths)
        )  # fmt: skip
        self.mid = Middle(widths[-1], plan.middle)
        self.norm_out = norm(widths[-1], 1e-6)
        self.conv_out = conv(widths[-1], plan.latent if plan.codes else 2 * plan.latent)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, plan: StagePlan):
        super().__init__()
        widths = [plan.base * times for times in plan.levels]
        self.conv_in = conv(plan.latent, widths[-1])
        self.mid = Middle(widths[-1], plan.middle)
        self.up = nn.ModuleList(
            Level(widths[min(i + 1, len(widths) - 1)], wide, 3, i in plan.attends, "upsample" if i else None)
            for i, wide in enumerate(widths)
        )
        self.norm_out = norm(widths[0], 1e-6)
        self.conv_out = conv(widths[0], 3)

    def forward(self, z):
        z = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            z = level(z)
        return self.conv_out(F.silu(self.norm_out(z)))


class FirstStage(nn.Module):
    """`encode` gives the latents the U-Net sees (the mean, of a KL autoencoder); `decode` the picture."""

    def __init__(self, plan: StagePlan):
        super().__init__()
        both = plan.latent if plan.codes else 2 * plan.latent
        self.encoder, self.decoder = Encoder(plan), Decoder(plan)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(both, both, 1), nn.Conv2d(plan.latent, plan.latent, 1)
        self.latent = plan.latent
        if plan.codes:
            self.quantize = nn.Module()
            self.quantize.embedding = nn.Embedding(plan.codes, plan.latent)

    def encode(self, x):
        return self.quant_conv(self.encoder(x))[:, : self.latent]

    def decode(self, z):
        if hasattr(self, "quantize"):
            table = self.quantize.embedding.weight
            places = z.permute(0, 2, 3, 1)
            nearest = ((places[..., None, :] - table) ** 2).sum(-1).argmin(-1)
            z = table[nearest].permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(z))


# ---------------------------------------------------------------------------------------------------------------------
# What a picture is to be of


class SelfAttention(nn.Module):
    def __init__(self, wide: int, heads: int = 8, size: int = 64):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(wide, heads * size, bias=False) for _ in range(3))
        self.to_out = nn.Linear(heads * size, wide)

    def forward(self, x):
        return self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))


class After(nn.Module):
    def __init__(self, wide: int):
        super().__init__()
        first = nn.Sequential(nn.Linear(wide, 4 * wide), nn.GELU())
        self.net = nn.Sequential(first, nn.Dropout(0), nn.Linear(4 * wide, wide))

    def forward(self, x):
        return self.net(x)


class Bert(nn.Module):
    """A transformer whose layers norm what they read; two entries of `attn_layers.layers` for each."""

    def __init__(self, words: int, places: int, wide: int, layers: int):
        super().__init__()
        self.token_emb = nn.Embedding(words, wide)
        self.pos_emb = nn.Module()
        self.pos_emb.emb = nn.Embedding(places, wide)
        self.attn_layers = nn.Module()
        self.attn_layers.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(wide), (After if i % 2 else SelfAttention)(wide)]) for i in range(2 * layers)
        )
        self.norm = nn.LayerNorm(wide)
        self.to_logits = nn.Linear(wide, words)

    def forward(self, ids):
        x = self.token_emb(ids) + self.pos_emb.emb.weight[: ids.shape[1]]
        for before, layer in self.attn_layers.layers:
            x = x + layer(before(x))
        return self.norm(x)


class Text(nn.Module):
    """The conditioning stage around it, which gives its tensors their beginning."""

    def __init__(self, **numbers):
        super().__init__()
        self.transformer = Bert(**numbers)


class Classes(nn.Module):
    def __init__(self, classes: int, wide: int):
        super().__init__()
        self.embedding = nn.Embedding(classes, wide)

    def forward(self, ids):
        return self.embedding(ids[:, None])


class Rescaler(nn.Module):
    def __init__(self, labels: int, out: int, stages: int):
        super().__init__()
        self.channel_mapper, self.stages = nn.Conv2d(labels, out, 1, bias=False), stages

    def forward(self, x):
        for _ in range(self.stages):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(x)


# ---------------------------------------------------------------------------------------------------------------------
# What was published

FIRST_STAGES = {
    "kl-f4": StagePlan((1, 2, 4), 3),
    "kl-f8": StagePlan((1, 2, 4, 4), 4),
    "kl-f16": StagePlan((1, 1, 2, 2, 4), 16, attends=(4,)),
    "kl-f32": StagePlan((1, 1, 2, 2, 4, 4), 64, attends=(4, 5)),
    "vq-f4": StagePlan((1, 2, 4), 3, 8192),
    "vq-f4-noattn": StagePlan((1, 2, 4), 3, 8192, middle=False),
    "vq-f8": StagePlan((1, 2, 2, 4), 4, 16384, attends=(3,)),
    "vq-f8-n256": StagePlan((1, 2, 2, 4), 4, 256, attends=(3,)),
    "vq-f16": StagePlan((1, 1, 2, 2, 4), 8, 16384, attends=(4,)),
}


@dataclass(frozen=True)
class Zoo:
    """A published model: its U-Net, its first stage, what conditions it, and what else lies in its file."""

    unet: UNetPlan
    first: str
    task: str
    betas: tuple[float, float]
    scale: float = 1.0
    condition: tuple[type[nn.Module], dict] | None = None
    ema: bool = True
    buffer: bool = False  # the scale is in the file
    parts: tuple[str, ...] = ("denoiser", "vae")
    family: str = ""
    extra: tuple[str, ...] = field(default=())


BERT = {"words": 30522, "places": 77, "layers": 32}
ZOO = {
    "ldm-uncond": Zoo(UNetPlan(224, 3, 3, (1, 2, 3, 4), (1, 2, 3)), "vq-f4", "unconditional", (0.0015, 0.0195)),
    "ldm-churches": Zoo(UNetPlan(192, 4, 4, (1, 2, 2, 4, 4), (0, 1, 2, 3), heads=8, updown=True, scaled=True), "kl-f8",
                        "unconditional", (0.0015, 0.0155), scale=0.22765929, buffer=True),
    "ldm-inpaint": Zoo(UNetPlan(256, 7, 3, (1, 2, 3, 4), (1, 2, 3), heads=8, updown=True), "vq-f4-noattn", "inpaint",
                       (0.0015, 0.0205), extra=("first stage twice",)),
    "ldm-sr": Zoo(UNetPlan(160, 6, 3, (1, 2, 2, 4), (3,)), "vq-f4", "super-resolution", (0.0015, 0.0155)),
    "ldm-semantic": Zoo(UNetPlan(128, 6, 3, (1, 4, 8), (), heads=8), "vq-f4", "semantic", (0.0015, 0.0205),
                        condition=(Rescaler, {"labels": 182, "out": 3, "stages": 2}),
                        parts=("rescaler", "denoiser", "vae")),
    "ldm-layout": Zoo(UNetPlan(128, 3, 3, (1, 2, 3, 4), (1, 2, 3), context=512, depth=3), "vq-f4", "layout",
                      (0.0015, 0.0205), condition=(Text, {"words": 8192, "places": 92, "layers": 16, "wide": 512}),
                      parts=("text", "denoiser", "vae")),
    "ldm-classes": Zoo(UNetPlan(256, 4, 4, (1, 2, 4), (0, 1, 2), context=512), "vq-f8", "class-to-image",
                       (0.0015, 0.0195), condition=(Classes, {"classes": 1000, "wide": 512}),
                       parts=("classes", "denoiser", "vae")),
    "ldm-classes-v2": Zoo(UNetPlan(192, 3, 3, (1, 2, 3, 5), (1, 2, 3), heads=1, context=512), "vq-f4", "class-to-image",
                          (0.0015, 0.0195), condition=(Classes, {"classes": 1001, "wide": 512}), ema=False,
                          parts=("classes", "denoiser", "vae")),
    "ldm-text256": Zoo(UNetPlan(192, 3, 3, (1, 2, 3, 5), (1, 2, 3), context=640), "vq-f4", "text-to-image",
                       (0.0015, 0.0195), condition=(Text, {**BERT, "wide": 640}), parts=("text", "denoiser", "vae")),
    "ldm-text": Zoo(UNetPlan(320, 4, 4, (1, 2, 4, 4), (0, 1, 2), heads=8, context=1280), "kl-f8", "text-to-image",
                    (0.00085, 0.012), 0.18215, condition=(Text, {**BERT, "wide": 1280}), ema=False,
                    parts=("text", "denoiser", "vae")),
    "ldm-retrieval": Zoo(UNetPlan(448, 16, 16, (1, 2, 3, 4), (0, 1, 2), context=768), "kl-f16", "retrieval",
                         (0.0015, 0.015), 0.22765929),
}  # fmt: skip


def little(zoo: Zoo) -> Zoo:
    """The same structure at small widths, with few words and layers; text and classes are 64 wide."""
    small = {"words": 60, "places": 9, "layers": 2, "wide": 64, "labels": 5, "classes": 7}
    condition = zoo.condition and (
        zoo.condition[0], {key: small.get(key, value) for key, value in zoo.condition[1].items()}
    )  # fmt: skip
    context = zoo.unet.context and 64
    return replace(zoo, unet=replace(zoo.unet, base=32, context=context), condition=condition)


def stage(name: str, small: bool = False) -> FirstStage:
    """A first stage; `small`: 32 wide at first, with up to 40 codes."""
    plan = FIRST_STAGES[name]
    return FirstStage(replace(plan, base=32, codes=min(plan.codes, 40)) if small else plan)


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """The module with numbers drawn so that nothing vanishes or explodes, ready to be asked."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.normal_(0, 0.1, generator=generator)
            if name.endswith("weight") and value.ndim == 1:
                value += 1
            elif value.ndim > 1 and "emb" not in name.split(".")[-2]:
                value *= 10 / math.sqrt(value[0].numel())
            elif value.ndim == 2:
                value *= 10
    return module.eval().requires_grad_(False)


def whole(zoo: Zoo, small: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, nn.Module]]:
    """The file of a model, and its modules by the names of the parts. On the meta device it is shapes only."""
    modules = {"denoiser": UNet(zoo.unet), "vae": stage(zoo.first, small)}
    if zoo.condition:
        kind, numbers = zoo.condition
        modules[zoo.parts[0]] = kind(**numbers)
    if modules["vae"].encoder.conv_in.weight.device.type != "meta":
        for i, module in enumerate(modules.values()):
            seeded(module, i)
    begins = {"denoiser": "model.diffusion_model.", "vae": "first_stage_model."}
    file = {f"{begins.get(part, 'cond_stage_model.')}{name}": value
            for part, module in modules.items() for name, value in module.state_dict().items()}  # fmt: skip
    return file, modules


def tables(zoo: Zoo) -> dict[str, torch.Tensor]:
    """What training leaves in a file besides weights."""
    start, end = zoo.betas
    betas = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    found = {"betas": betas, "alphas_cumprod": alphas, "sqrt_alphas_cumprod": alphas.sqrt()}
    found = {name: value.float() for name, value in found.items()} | {"logvar": torch.zeros(1000)}
    return found | ({"scale_factor": torch.tensor(zoo.scale)} if zoo.buffer else {})
