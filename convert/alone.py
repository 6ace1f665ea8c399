"""One part of a model in a file of its own: a U-Net, a ControlNet, an autoencoder or a text encoder, in the original's
names or in diffusers'.

It becomes a model of one part, whose task is "part". What shapes do not say comes from the family, as for whole models
(`single.py`); an autoencoder's latent scale is in no file, so its family must be said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mlxldm.config import ControlNetConfig, Defaults, ScheduleConfig, UNetConfig, VaeConfig, VqConfig
from mlxldm.errors import UserError
from mlxldm.folder import Manifest, read_json
from mlxldm.hub import choose_weights
from mlxldm.tensors import Tensor, shown

from . import names, original, single
from .detect import Found, PartSource, Wish, license_of
from .read import Source, Weights, open_weights

SEEING = ("visual.", "vision_model.", "visual_projection.", "logit_scale", "logit_bias")  # whole CLIP models have them
COMPONENTS: dict[str, tuple[str, type[UNetConfig] | type[VaeConfig] | type[VqConfig]]] = {
    "UNet2DConditionModel": ("denoiser", UNetConfig),
    "UNet2DModel": ("denoiser", UNetConfig),
    "ControlNetModel": ("controlnet", ControlNetConfig),
    "AutoencoderKL": ("vae", VaeConfig),
    "VQModel": ("vae", VqConfig),
}
SCALES = {0.18215: "sd1", 0.13025: "sdxl", 0.08333: "upscaler"}
# The family and the place in it of a text encoder, by its width.
TEXT_PLACES = {768: ("sd1", "text"), 1024: ("sd2", "text"), 1280: ("sdxl", "text_2")}


def alone(path: Path, file: Source, part: str, begin: str, wish: Wish) -> Found:
    """The model of one part: `part` is of `FAMILY_OF`, `begin` what stands before its tensors' names."""
    why: list[str] = []
    if part == "text":
        begin = begin.removesuffix("text_model.")
    origin = {name[len(begin) :]: name for name in file.tensors if name.startswith(begin)}
    if part == "text":
        origin = {ours: theirs for ours, theirs in origin.items() if not ours.startswith(SEEING)}
    weights = Weights({ours: (file, theirs) for ours, theirs in origin.items()})
    family, place = FAMILY_OF[part](path, weights.tensors, wish, why)
    table = single.table_of(family)
    if place not in table["parts"]:
        raise UserError(f"{shown(path)} holds a {part}, but {table['title']} has none: leave --family out.")
    how = table["parts"][place]
    if part == "text" and how["names"] == "bert":
        raise UserError(
            f"{shown(path)} is a CLIP text encoder, but that of {table['title']} is none: leave --family out."
        )
    if part == "controlnet":  # its heads are those of the U-Net
        place = part
    theirs, dialect = _as_original(weights.tensors, part)
    if part == "text":
        how = how | {"names": "clip" if dialect is names.DIFFUSERS else "openclip"}
    config, own = single.part_of(path, place if part == "text" else part, how, theirs, wish, why)
    if part == "text" and dialect is names.DIFFUSERS and config.hidden_size != 768:
        config = type(config).from_dict({**config.to_dict(), "hidden_act": "gelu"})  # OpenCLIP's towers
    if part == "text" and "text_projection.weight" in weights.tensors and how.get("last"):
        wide = weights.tensors["text_projection.weight"].shape[:1]
        config = type(config).from_dict({**config.to_dict(), "projection_dim": wide[0] if wide else None})
    schedule = ScheduleConfig.from_diffusers(table["schedule"] | {"prediction_type": "epsilon"})
    if part == "denoiser":
        schedule = single.schedule_of(path, file, table, wish, why)
    manifest = Manifest(
        name=path.stem or "part",
        family=table["family"],
        task="part",
        parts={place: config},
        schedule=schedule,
        defaults=Defaults(width=table["size"], height=table["size"], steps=table["steps"], guidance=table["guidance"],
                          sampler=schedule.sampler),
        source={"name": path.name, "kind": "a part alone in a file"},
        license=file.metadata.get("modelspec.license") or None,
    )  # fmt: skip
    source = PartSource(weights, dialect or own, f"{path.name}: {begin}*", {path.name: path})
    return Found(
        path, manifest, {place: source},
        lambda number: single.tokenizers_of(table["parts"], "text" if number == 1 else "text_2"),
        why, single.left_out(file, set(origin.values())),
    )  # fmt: skip


def component(root: Path, wish: Wish) -> Found:
    """The model of one part in a diffusers folder of its own: `config.json` and weights, as repositories of single
    autoencoders and U-Nets are.
    """
    values = read_json(root / "config.json")
    cls = values.get("_class_name") if isinstance(values, dict) else None
    if not isinstance(cls, str) or cls not in COMPONENTS:
        raise UserError(
            f"{shown(root)} has a config.json of {shown(cls or 'no class')} and no model_index.json: of single "
            f"components this version reads {', '.join(COMPONENTS)}."
        )
    part, kind = COMPONENTS[cls]
    config = kind.from_dict(values)
    why = [f"config.json says {cls}, and there is no model_index.json: a part alone"]
    file, note = choose_weights(".", sorted(entry.name for entry in root.iterdir()))
    weights = open_weights(root, ".", file)
    if note:
        why.append(note)
    if isinstance(config, VaeConfig):
        family = wish.family or SCALES.get(round(config.scaling_factor, 5))
        if family is None:
            raise UserError(
                f"{shown(root)} is an autoencoder whose latents are scaled by {config.scaling_factor}, as those of no "
                f"family known here: say --family if it is made for one."
            )
        single.known(family)
        why.append(f"its latents are scaled by {config.scaling_factor}: {single.table_of(family)['title']}")
    elif isinstance(config, VqConfig):
        family = single.known(wish.family or "ldm-first-stage")
        codes, scale = config.num_vq_embeddings, config.scaling_factor
        why.append(f"{codes} codes, latents scaled by {scale}: a first stage of latent diffusion")
    else:
        family = _unet_family(root, weights.tensors, wish, why)[0]
    table = single.table_of(family)
    manifest = Manifest(
        name=root.resolve().name or "part",
        family=table["family"],
        task="part",
        parts={part: config},
        source={"name": root.resolve().name, "kind": "a part alone in a folder"},
        license=license_of(root),
    )
    source = PartSource(weights, names.DIFFUSERS, file, {path.name: path for path in weights.paths})
    return Found(root, manifest, {part: source}, lambda number: {}, why)


def _unet_family(path: Path, shapes: Mapping[str, Tensor], wish: Wish, why: list[str]) -> tuple[str, str]:
    found = single.facts({name: tensor.shape for name, tensor in shapes.items()})
    if found is None:
        raise UserError(f"{shown(path)} holds parts of a U-Net, but not its first layers: it is damaged or cut.")
    return single.family_of(path, found, wish, why), "denoiser"


def _vae_family(path: Path, shapes: Mapping[str, Tensor], wish: Wish, why: list[str]) -> tuple[str, str]:
    if wish.family is None and _first_stage(shapes, why):
        return "ldm-first-stage", "vae"
    if wish.family is None:
        raise UserError(
            f"{shown(path)} is an autoencoder alone, and how its latents are scaled is in no such file: say --family "
            f"sd1 (2.x has the same), --family sdxl, --family upscaler, or --family ldm-first-stage (by 1)."
        )
    name = single.known(wish.family)
    if "scaling_factor" not in single.table_of(name)["parts"]["vae"]["config"]:
        raise UserError(
            f"{shown(path)} is an autoencoder alone, and how those of {name} are scaled is in the whole model's file "
            f"only: say --family ldm-first-stage (by 1), or use the whole model."
        )
    why.append(f"an autoencoder of {single.table_of(name)['title']}, as --family says")
    return name, "vae"


def _first_stage(shapes: Mapping[str, Tensor], why: list[str]) -> bool:
    """Whether it is a first stage of latent diffusion that no other family has, by its codes or its latents."""
    codes, first = shapes.get("quantize.embedding.weight"), shapes.get("decoder.conv_in.weight")
    if codes is not None and len(codes.shape) == 2:
        why.append(f"an autoencoder with {codes.shape[0]} codes, a first stage of latent diffusion: such latents are "
                   f"scaled by 1")  # fmt: skip
        return True
    levels = {match[1] for name in shapes if (match := re.match(r"encoder\.down(?:_blocks)?\.(\d{1,2})\.", name))}
    form = (first.shape[1] if first is not None and len(first.shape) == 4 else 0, len(levels))
    if form not in KL_STAGES:
        return False
    why.append(f"{KL_STAGES[form]}, a first stage of latent diffusion, by its latents of {form[0]} channels: how they "
               f"are scaled is in no such file, by 1 is taken; --family says otherwise")  # fmt: skip
    return True


# First stages that are no other family's, by the channels of their latents and their levels.
KL_STAGES = {(3, 3): "kl-f4", (16, 5): "kl-f16", (64, 6): "kl-f32"}


def _text_family(path: Path, shapes: Mapping[str, Tensor], wish: Wish, why: list[str]) -> tuple[str, str]:
    table = next((t for name, t in shapes.items() if name.endswith("token_embedding.weight")), None)
    width = table.shape[-1] if table is not None and len(table.shape) == 2 else 0
    if wish.family is not None:
        name = single.known(wish.family)
        mark = "transformer.resblocks.0.attn.in_proj_weight" in shapes
        two = "text_2" in single.table_of(name)["parts"] and (mark or width == 1280)
        why.append(f"a text encoder of {single.table_of(name)['title']}, as --family says (width {width})")
        return name, "text_2" if two else "text"
    if width not in TEXT_PLACES:
        raise UserError(
            f"{shown(path)} is a text encoder of width {width}; known are "
            f"{', '.join(map(str, TEXT_PLACES))}: say --family if it is of one."
        )
    why.append(f"{single.TEXTS[width]}, by its width of {width}")
    return TEXT_PLACES[width]


FAMILY_OF = {"denoiser": _unet_family, "controlnet": _unet_family, "vae": _vae_family, "text": _text_family}


# ---------------------------------------------------------------------------------------------------------------------
# diffusers' names, as the original's: only to read a config from them


def _as_original(shapes: Mapping[str, Tensor], part: str) -> tuple[Mapping[str, Tensor], names.Dialect | None]:
    """The shapes under the names that configs are read from, and the dialect if the names are not the original's."""
    if part == "denoiser" and "conv_in.weight" in shapes:
        return _unet(shapes), names.DIFFUSERS
    if part == "controlnet" and "conv_in.weight" in shapes:
        return _unet(_hints(shapes)), names.DIFFUSERS
    if part == "vae" and any(name.startswith("encoder.down_blocks.") for name in shapes):
        return _vae(shapes), names.DIFFUSERS
    if part == "text" and "transformer.resblocks.0.attn.in_proj_weight" not in shapes:
        return shapes, names.DIFFUSERS
    return shapes, None


BLOCK = re.compile(r"(down|up)_blocks\.(\d{1,2})\.(resnets|attentions|downsamplers|upsamplers)\.(\d{1,2})\.(.+)")


def _unet(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    counts: dict[tuple[str, int], int] = {}
    for name in shapes:
        if (match := BLOCK.fullmatch(name)) and match[3] == "resnets":
            at = match[1], int(match[2])
            counts[at] = max(counts.get(at, 0), int(match[4]) + 1)

    def number(way: str, block: int, place: int) -> int:
        before = sum(counts.get((way, b), 0) + (way == "down") for b in range(block))
        return before + place + (way == "down")

    found: dict[str, Tensor] = {}
    for name, tensor in shapes.items():
        module, _, last = name.rpartition(".")
        match = BLOCK.fullmatch(name)
        if match is None:
            head = next((ours for ours in original.UNET if f"{module}.".startswith(f"{ours}.")), "")
            inner = module[len(head) :].lstrip(".")
            inner = original.RESNET.get(inner, inner) if ".resnets." in head else _joined(inner)
            found[".".join(filter(None, (original.UNET.get(head, head), inner, last)))] = tensor
            continue
        way, block, what, place, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        side = "input" if way == "down" else "output"
        if what == "resnets":
            inner, _, last = rest.rpartition(".")
            new = f"{side}_blocks.{number(way, block, place)}.0.{original.RESNET.get(inner, inner)}.{last}"
        elif what == "attentions":
            inner, _, last = rest.rpartition(".")
            new = f"{side}_blocks.{number(way, block, place)}.1.{_joined(inner)}.{last}"
        else:  # a convolution or a residual block
            inner, _, last = rest.rpartition(".")
            inner = original.RESNET.get(inner, "op" if what == "downsamplers" else inner)
            child = "0" if what == "downsamplers" else "2"
            new = f"{side}_blocks.{number(way, block + 1, 0) - 1}.{child}.{inner}.{last}"
        found[new] = tensor
    return found


def _hints(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What reads a ControlNet's picture under the original's names; the rest as it is."""
    inner = re.compile(r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d{1,2}))\.(weight|bias)")
    matches = {name: match for name in shapes if (match := inner.fullmatch(name))}
    blocks = 1 + max((int(match[2]) for match in matches.values() if match[2]), default=-1)

    def renamed(name: str) -> str:
        match = matches.get(name)
        if match is None:
            return name
        place = int(match[2]) + 1 if match[2] else 0 if match[1] == "conv_in" else blocks + 1
        return f"input_hint_block.{2 * place}.{match[3]}"

    return {renamed(name): tensor for name, tensor in shapes.items()}


def _joined(module: str) -> str:
    """Attention to the picture alone is one convolution in the original; all that is read of it is that it is there."""
    return "qkv" if module in ("to_q", "query") else module


def _vae(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    levels = 1 + max((int(m[1]) for name in shapes if (m := re.match(r"encoder\.down_blocks\.(\d{1,2})\.", name))),
                     default=0)  # fmt: skip

    def renamed(name: str) -> str:
        match = re.fullmatch(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d{1,2})\."
                             r"(resnets|attentions|downsamplers|upsamplers)\.(\d{1,2})\.(.+)", name)  # fmt: skip
        if match:
            side, block, what, place, rest = match[1], int(match[2]), match[3], match[4], match[5]
            down = side == "encoder"
            level = f"{side}.{'down' if down else 'up'}.{block if down else levels - 1 - block}"
            if what == "resnets":
                return f"{level}.block.{place}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
            if what == "attentions":
                return f"{level}.attn.{place}.{rest.replace('to_q.', 'q.').replace('query.', 'q.')}"
            return f"{level}.{'downsample' if down else 'upsample'}.{rest}"
        middle = (name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
                  .replace("mid_block.attentions.0", "mid.attn_1"))  # fmt: skip
        attention = middle.replace("attn_1.to_q.", "attn_1.q.").replace("attn_1.query.", "attn_1.q.")
        return attention.replace("conv_norm_out", "norm_out")

    return {renamed(name): tensor for name, tensor in shapes.items()}
