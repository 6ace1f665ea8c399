"""What a single-file checkpoint is, and why: told by its tensors' names and shapes, and a few marks its writer left.

Shapes say the family, every width and depth, but not the heads, the prediction, the autoencoder's scale, the schedule:
those stand in `families/*.json`, one file a family. Whatever is decided is written down in `why` with its evidence, and
what the person says (`Wish`) wins.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm.config import (
    BertConfig,
    ClassEmbedderConfig,
    ClipTextConfig,
    ControlNetConfig,
    Defaults,
    LowScaleConfig,
    RescalerConfig,
    ScheduleConfig,
    UNetConfig,
    VaeConfig,
    VqConfig,
)
from mlxldm.errors import UserError, nearest
from mlxldm.folder import Manifest, member, read_bytes
from mlxldm.tensors import Tensor, from_bfloat16, shown
from mlxldm.tokenizer import BOS, EOS, LETTERS

from . import distilled, names, original
from .detect import PLAYGROUND_DATA, Found, PartSource, Wish, guidance_of
from .read import Source, Weights, open_file

HERE = Path(__file__).parent / "families"
UNET = "model.diffusion_model."
EMA = "model_ema.diffusion_model"  # and the rest of the name without its dots

# What lies beside the parts in a checkpoint: by the beginning of its name, why it is left out.
LEFT_OUT = {
    "model_ema.": "bookkeeping of the averaged weights",
    "betas": "the schedule's tables are computed",
    "alphas_cumprod": "the schedule's tables are computed",
    "sqrt_": "the schedule's tables are computed",
    "log_one_minus_": "the schedule's tables are computed",
    "posterior_": "the schedule's tables are computed",
    "logvar": "was needed in training only",
    "lvlb_weights": "was needed in training only",
    "denoiser.sigmas": "the schedule's tables are computed",
    "loss.": "was needed in training only",
    "depth_model.": "estimates the depth of a picture, a network of its own (MiDaS)",
    "low_scale_model.": "the small picture's schedule is computed from its range",
    "scale_factor": "the scale of the latents, which was read",
    "control_model.": "a ControlNet, which lies in the same file",
    "visual": "sees pictures: the other half of a whole CLIP model",
    "vision_model.": "sees pictures: the other half of a whole CLIP model",
    "logit_scale": "is for comparing texts with pictures",
    "v_pred": "a mark that was read",
    "ztsnr": "a mark that was read",
    "edm_": "tells of EDM's noise levels or of its latents, which was read",
}


@dataclass(frozen=True)
class Facts:
    """What the U-Net's names and shapes say; None where there is no such tensor."""

    width: int  # of the first convolution
    channels: int  # it takes
    context: int | None  # width of the text it reads
    label: int | None  # width of the vector added to the time embedding
    classes: int | None  # rows of a table of classes added to the time embedding
    middle: bool  # whether the middle attends
    deepest: int  # transformer layers of the block that has most
    blocks: int  # on the way down

    def __str__(self) -> str:
        classes = f", {self.classes} classes" if self.classes else ""
        return (
            f"first width {self.width}, {self.channels} input channels, text width {self.context}, "
            f"added vector {self.label}{classes}, {self.blocks} input blocks, {self.deepest} transformer layers at "
            f"most{'' if self.middle else ', no attention in the middle'}"
        )


# First match wins: a file of `families/` without its end, what the U-Net's facts are, and what this version lacks for
# it, None where it can be read (what has no file is called by its name).
FAMILIES: tuple[tuple[str, dict[str, Any], str | None], ...] = (
    ("sdxl-refiner", {"context": 1280, "label": 2560, "channels": 4}, None),
    ("sdxl-inpaint", {"context": 2048, "label": 2816, "channels": 9}, None),
    ("sdxl-edit", {"context": 2048, "label": 2816, "channels": 8}, None),
    ("ssd-1b", {"context": 2048, "label": 2816, "channels": 4, "middle": False, "deepest": 10}, None),
    ("vega", {"context": 2048, "label": 2816, "channels": 4, "middle": False, "deepest": 2}, None),
    ("sdxl", {"context": 2048, "label": 2816, "channels": 4}, None),
    ("upscaler", {"context": 1024, "classes": 1000, "channels": 7}, None),
    ("Stable Diffusion 2.x unCLIP", {"context": 1024, "label": 1536, "channels": 4}, "unCLIP models"),
    ("Stable Diffusion 2.x unCLIP", {"context": 1024, "label": 2048, "channels": 4}, "unCLIP models"),
    ("sd2-inpaint", {"context": 1024, "label": None, "channels": 9}, None),
    ("sd2-depth", {"context": 1024, "label": None, "channels": 5}, None),
    ("sd2", {"context": 1024, "label": None, "channels": 4}, None),
    ("sd1-inpaint", {"context": 768, "width": 320, "label": None, "channels": 9}, None),
    ("sd1-edit", {"context": 768, "width": 320, "label": None, "channels": 8}, None),
    ("sd1", {"context": 768, "width": 320, "label": None, "channels": 4}, None),
    ("ldm-uncond", {"width": 224, "channels": 3, "context": None, "blocks": 12}, None),
    ("ldm-churches", {"width": 192, "channels": 4, "context": None, "blocks": 15}, None),
    ("ldm-inpaint", {"width": 256, "channels": 7, "context": None, "blocks": 12}, None),
    ("ldm-sr", {"width": 160, "channels": 6, "context": None, "blocks": 12}, None),
    ("ldm-semantic", {"width": 128, "channels": 6, "context": None, "blocks": 9}, None),
    ("ldm-layout", {"width": 128, "channels": 3, "context": 512, "blocks": 12}, None),
    ("ldm-classes", {"width": 256, "channels": 4, "context": 512, "blocks": 9}, None),
    ("ldm-classes-v2", {"width": 192, "channels": 3, "context": 512, "blocks": 12}, None),
    ("ldm-text256", {"width": 192, "channels": 3, "context": 640, "blocks": 12}, None),
    ("ldm-text", {"width": 320, "channels": 4, "context": 1280, "label": None, "blocks": 12}, None),
    ("ldm-retrieval", {"width": 448, "channels": 16, "context": 768, "blocks": 12}, None),
    ("ldm-first-stage", {"width": 0}, None),  # no U-Net: first stages that come alone
)
READ = tuple(name for name, _, lacks in FAMILIES if lacks is None)

# Files that are no part of a model: a tensor that tells what it is instead.
OTHERS = (
    (r"joint_blocks\.0\..+|(model\.diffusion_model\.)?joint_blocks\..+", "Stable Diffusion 3", "transformer models"),
    (r"(model\.diffusion_model\.)?double_blocks\..+", "FLUX", "transformer models"),
    (r"(.*\.)?encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight", "a T5 text encoder", "transformer models"),
)
# Marks of what would open and draw something wrong.
REFUSED = (
    (
        r"(.*\.)?(scale_weight|weight_scale|scaled_fp8|comfy_quant)",
        "keeps its float8 numbers divided by scales, which come with a later version: use its float16 form",
    ),
)
# A part in the original's names and in diffusers': one tensor that every such part has, whatever stands before.
PARTS = (
    ("controlnet", "input_hint_block.0.weight"),
    ("controlnet", "controlnet_cond_embedding.conv_in.weight"),
    ("denoiser", "time_embed.0.weight"),
    ("denoiser", "time_embedding.linear_1.weight"),
    ("vae", "encoder.down.0.block.0.conv1.weight"),
    ("vae", "encoder.down_blocks.0.resnets.0.conv1.weight"),
    ("text", "encoder.layers.0.self_attn.q_proj.weight"),
    ("text", "transformer.resblocks.0.attn.in_proj_weight"),
)
# Two ways to train on EDM's noise levels: Playground 2.5's (Li et al. 2024, https://arxiv.org/abs/2402.17245), whose
# latents have no mean and half a spread, and CosXL's, which predicts v (Stability AI 2024).
PLAYGROUND, PLAYGROUND_SCALE = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": PLAYGROUND_DATA}, 0.5
COSXL = {"_class_name": "EDMEulerScheduler", "sigma_data": 1.0, "sigma_max": 120.0, "prediction_type": "v_prediction"}
TEXTS = {
    768: "CLIP-L (the text encoder of Stable Diffusion 1.x, the first of XL)",
    1024: "OpenCLIP-H (the text encoder of Stable Diffusion 2.x)",
    1280: "OpenCLIP-bigG (the second text encoder of Stable Diffusion XL, the refiner's only one)",
}


def single(path: Path, wish: Wish) -> Found:
    """The model in the file at `path`; a UserError in one sentence if it is none that can be run."""
    file = open_file(path)
    try:
        return _single(path, file, wish)
    except BaseException:
        file.close()
        raise


def _single(path: Path, file: Source, wish: Wish) -> Found:
    why: list[str] = []
    facts = _whole(path, file)
    if facts is None:
        from . import alone

        part, begin = _parts_in(file)[0]
        return alone.alone(path, file, part, begin, wish)
    name = family_of(path, facts, wish, why)
    table = table_of(name)
    if "note" in table:
        why.append(table["note"])
    parts: dict[str, PartSource] = {}
    configs: dict[str, Any] = {}
    used: set[str] = set()
    for part, how in table["parts"].items():
        prefix = next((prefix for prefix in how["prefixes"] if _under(file, prefix)), None)
        if prefix is None:
            raise UserError(
                f"{shown(path)} is a {table['title']} file without the {part} (no tensor begins with "
                f"'{how['prefixes'][0]}'): parts of several files come together with a later version, use one that "
                f"holds the whole model."
            )
        origin = _under(file, prefix)
        used.update(origin.values())
        if part == "denoiser":
            averaged = _averaged(file, origin)
            if averaged and wish.ema:
                used.update(averaged.values())
                origin = averaged
                why.append(f"the averaged weights are used ({len(averaged)} of {len(averaged)} are there)")
            elif averaged:
                why.append("the averaged weights are left, as --no-ema says")
        weights = Weights({ours: (file, theirs) for ours, theirs in origin.items()})
        config, dialect = part_of(path, part, how, weights.tensors, wish, why)
        configs[part] = config
        parts[part] = PartSource(weights, dialect, f"{path.name}: {prefix}*", {path.name: path})
    configs["vae"] = _spread(path, file, _scaled(path, file, table, configs["vae"], why), why)
    _fits(path, table, dict(_facts_of(name))["channels"], configs)
    schedule = schedule_of(path, file, table, wish, why)
    words = _words_of(path, table, configs, why)
    size = table["v_size"] if schedule.prediction == "v" and "v_size" in table else table["size"]
    guidance = guidance_of(schedule, table["guidance"])
    defaults = Defaults(width=size, height=size, steps=table["steps"], guidance=guidance, sampler=schedule.sampler)
    if table["family"] in ("sd1", "sd2", "sdxl"):
        called = f"{path.stem} {file.metadata.get('modelspec.title', '')}"
        defaults = distilled.of_file(defaults, called, configs["denoiser"], why)
    manifest = Manifest(
        name=path.stem or "model",
        family=table["family"],
        task=table["task"],
        parts=configs,
        schedule=schedule,
        defaults=defaults,
        low_scale=_low_scale(path, file, table["low_scale"], why) if "low_scale" in table else None,
        source={"name": path.name, "kind": "single file"},
        license=file.metadata.get("modelspec.license") or None,
        zeros_for_empty=table.get("zeros_for_empty", False),
    )
    return Found(
        path,
        manifest,
        parts,
        lambda number: words if number == 1 and words is not None
        else tokenizers_of(table["parts"], "text" if number == 1 else "text_2"),
        why,
        left_out(file, used, _twice(file, table)),
    )  # fmt: skip


def _whole(path: Path, file: Source) -> Facts | None:
    """The facts of the U-Net in a file that may hold a whole model, None for a file with one part alone.

    A UserError says what it is otherwise.
    """
    for pattern, what in REFUSED:
        for name in file.tensors:
            if re.fullmatch(pattern, name):
                raise UserError(f"{shown(path)} {what} (it holds {shown(name)}).")
    shapes = {name[len(UNET) :]: tensor.shape for name, tensor in file.tensors.items() if name.startswith(UNET)}
    found = facts(shapes)
    others = any(name.startswith(("first_stage_model.", "cond_stage_model.", "conditioner.", "vae."))
                 for name in file.tensors)  # fmt: skip
    if found is not None and others:
        return found
    from . import beside

    changes = beside.kind_of(file)
    if changes is not None:
        raise UserError(
            f"{shown(path)} is a {changes}, which changes a model and is none itself: mlxldm-convert says which it is "
            f"for."
        )
    for pattern, what, these in OTHERS:
        if any(re.fullmatch(pattern, name) for name in file.tensors):
            raise UserError(f"{shown(path)} is {what}; {these} come with a later version.")
    inside = _parts_in(file)
    if {part for part, _ in inside} == {"denoiser", "vae", "text"}:
        raise UserError(
            f"{shown(path)} holds a whole model, but not in the original code's names (its U-Net's begin with "
            f"'{shown(inside[0][1])}'): give the diffusers folder it was made from."
        )
    if len(inside) == 1:
        return None
    there = [_described(part, begin, file) for part, begin in inside[:4]]
    if not there:
        some = ", ".join(shown(name) for name in list(file.tensors)[:3]) or "none at all"
        raise UserError(f"{shown(path)} holds {len(file.tensors)} tensors ({some}), which are no model known here.")
    raise UserError(
        f"{shown(path)} is {' and '.join(there)}, neither a whole model nor one part alone: use the file or folder "
        f"that holds the whole model."
    )


def _parts_in(file: Source) -> list[tuple[str, str]]:
    """The parts that lie in a file under any names, each with what stands before its names."""
    found: list[tuple[str, str]] = []
    for part, mark in PARTS:
        for name in file.tensors:
            begin = name.removesuffix(mark)
            if ("controlnet", begin) in found:
                continue  # it has the names of a U-Net's way down, too
            if name.endswith(mark) and (begin == "" or begin.endswith(".")) and "vis" not in begin:  # towers that see
                found.append((part, begin))
    return found


def _described(part: str, begin: str, file: Source) -> str:
    """A part in words: what family it may be of, and what it takes."""
    shapes = {name[len(begin) :]: tensor.shape for name, tensor in file.tensors.items() if name.startswith(begin)}
    if part == "denoiser":
        found = facts(shapes)
        name = next((name for name, wanted, _ in FAMILIES if found is not None and _agree(found, wanted) == 1), None)
        whose = "no family known here" if name is None else table_of(name)["title"] if name in READ else name
        return f"the U-Net of {whose} alone ({found or 'its first layers are not there'})"
    if part == "vae":
        levels = len({key.split(".")[2] for key in shapes if re.match(r"encoder\.down(_blocks)?\.\d+\.", key)})
        channels = next((shape[1] for key, shape in shapes.items()
                         if key == "decoder.conv_in.weight" and len(shape) == 4), 0)  # fmt: skip
        whose = {(4, 4): "Stable Diffusion 1.x, 2.x or XL, which their shapes do not tell apart",
                 (4, 3): "the x4 upscaler", (16, 4): "Stable Diffusion 3 or FLUX"}  # fmt: skip
        return (
            f"an autoencoder alone ({channels} latent channels, {1 << max(levels - 1, 0)} pixels to a latent, of "
            f"{whose.get((channels, levels), 'no family known here')})"
        )
    marks = [mark for kind_of, mark in PARTS if kind_of == "text" and mark in shapes]
    last = shapes[marks[0]] if marks else ()
    width = last[-1] if last else 0
    return f"{TEXTS.get(width, f'a CLIP text encoder of width {width}')} alone"


def facts(shapes: Mapping[str, tuple[int, ...]]) -> Facts | None:
    """What the names and shapes of a U-Net say, in the original's names or in diffusers'; None if it is none."""
    first = shapes.get("input_blocks.0.0.weight", shapes.get("conv_in.weight"))
    block = re.compile(r"input_blocks\.\d+\.|down_blocks\.\d+\.(resnets|downsamplers)\.\d+\.")
    blocks = {match[0] for name in shapes if (match := block.match(name))}
    if first is None or len(first) != 4 or not blocks:
        return None
    contexts = [shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2]
    label = shapes.get("label_emb.0.0.weight", shapes.get("add_embedding.linear_1.weight", ()))
    classes = shapes.get("label_emb.weight", shapes.get("class_embedding.weight", ()))
    inner = [int(match[1]) for name in shapes if (match := re.search(r"\.transformer_blocks\.(\d{1,4})\.", name))]
    return Facts(
        width=first[0],
        channels=first[1],
        context=contexts[0] if contexts else None,
        label=label[1] if len(label) == 2 else None,
        classes=classes[0] if len(classes) == 2 else None,
        middle=any(name.startswith(("middle_block.1.", "mid_block.attentions.0.")) for name in shapes),
        deepest=1 + max(inner, default=-1),
        blocks=len(blocks) + ("conv_in.weight" in shapes),
    )


def _agree(found: Facts, wanted: Mapping[str, Any]) -> float:
    """How much of what a family's U-Net is holds for this one, from 0 to 1."""
    return sum(getattr(found, key) == value for key, value in wanted.items()) / len(wanted)


def _facts_of(name: str) -> dict[str, Any]:
    return next(wanted for row, wanted, _ in FAMILIES if row == name)


def family_of(path: Path, found: Facts, wish: Wish, why: list[str]) -> str:
    """The row of `FAMILIES` that the U-Net is of."""
    if wish.family is not None:
        known(wish.family)
        # --family sd1 may be said of each of its layouts: the channels tell which
        rows = [wish.family, *(row for row in READ if table_of(row)["family"] == wish.family)]
        name = next((row for row in rows if _facts_of(row).get("channels") == found.channels), wish.family)
        if "denoiser" not in table_of(name)["parts"]:
            raise UserError(f"{shown(path)} has a U-Net ({found}), but --family says {name}, which is none.")
        why.append(f"it is {table_of(name)['title']}, as --family says ({found})")
        return name
    for name, wanted, lacks in FAMILIES:
        if _agree(found, wanted) == 1:
            if lacks is not None:
                raise UserError(f"{shown(path)} is {name} ({found}); {lacks} come with a later version.")
            why.append(f"{table_of(name)['title']}: {found}")
            return name
    closest = max(READ, key=lambda name: _agree(found, _facts_of(name)))
    raise UserError(
        f"{shown(path)} has a U-Net of no known family ({found}); {closest} is the nearest: say --family {closest} if "
        f"it is one."
    )


def row_of(found: Facts) -> str | None:
    """The row of `FAMILIES` whose published sizes these are, if it is one that can be read."""
    return next((name for name, wanted, lacks in FAMILIES if lacks is None and _agree(found, wanted) == 1), None)


def known(family: str) -> str:
    """`family` if it is one of `FAMILIES` that can be read; otherwise a UserError with the nearest."""
    if family not in READ:
        raise UserError(
            f"The family '{shown(family)}' is not known.{nearest(family, READ)} Known are {', '.join(sorted(READ))}."
        )
    return family


@functools.cache
def table_of(name: str) -> dict[str, Any]:
    """What a family's file says; where it is like another, on top of what that one says (null takes away)."""
    table: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return _over(table_of(table.pop("like")), table) if "like" in table else table


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    changed = {
        key: _over(below[key], value) if isinstance(value, dict) and key in below else value
        for key, value in above.items()
    }
    return {key: value for key, value in (below | changed).items() if key not in above or above[key] is not None}


def _under(file: Source, prefix: str) -> dict[str, str]:
    """The tensors under a prefix: {name without it: whole name}."""
    return {name[len(prefix) :]: name for name in file.tensors if name.startswith(prefix)}


def _averaged(file: Source, origin: Mapping[str, str]) -> dict[str, str]:
    """The averaged U-Net, if it is there whole. Its names lost their dots, so they are made, not read."""
    made = {name: EMA + name.replace(".", "") for name in origin}
    return made if all(name in file.tensors for name in made.values()) else {}


def part_of(
    path: Path, part: str, how: dict[str, Any], shapes: Mapping[str, Tensor], wish: Wish, why: list[str]
) -> tuple[Any, names.Dialect]:
    """A part's config, read from its shapes and its family's table, and whose names it has."""
    if part in ("denoiser", "controlnet"):
        heads = wish.heads or how.get("heads")
        if wish.heads:
            why.append(f"{wish.heads} attention heads, as --heads says")
        else:
            size = f"{heads} attention heads" if heads else f"attention heads of size {how['head_size']}"
            why.append(f"{size}, as the family has them: shapes do not say")
        if part == "controlnet":
            config = original.controlnet(shapes, heads, how.get("head_size")) | how.get("config", {})
            return ControlNetConfig.from_dict(config), names.CONTROLNET
        config = original.unet(shapes, heads, how.get("head_size")) | how.get("config", {})
        return UNetConfig.from_dict(config), names.UNET
    if part == "vae":
        config = {**original.vae(shapes), **how.get("config", {})}
        return (VqConfig if "num_vq_embeddings" in config else VaeConfig).from_dict(config), names.VAE
    if how["names"] == "bert":
        return BertConfig.from_dict(original.bert(shapes)), names.BERT
    if how["names"] in ("classes", "rescaler"):
        return _condition(path, how, shapes), names.CLIP
    if how["names"] == "openclip":
        config, dialect = original.openclip(shapes, how["skip"], how["last"]), names.OPENCLIP
    else:
        bare = not any(name.startswith("text_model.") for name in shapes)
        under = {f"text_model.{name}": tensor for name, tensor in shapes.items()} if bare else shapes
        config, dialect = original.clip(under, how["skip"]), names.CLIP
    ids, _ = _vocabulary()
    if config["vocab_size"] != len(ids):
        raise UserError(
            f"{shown(path)} has a text encoder of {config['vocab_size']} tokens, but CLIP's vocabulary has {len(ids)}: "
            f"only a diffusers folder can bring a tokenizer of its own."
        )
    numbers = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[how["pad"]]}
    return ClipTextConfig.from_dict({**config, **numbers}), dialect


def _condition(path: Path, how: dict[str, Any], shapes: Mapping[str, Tensor]) -> ClassEmbedderConfig | RescalerConfig:
    """The config of a table of classes or of what brings a map of labels to the latents' size."""
    name, axes = ("embedding.weight", 2) if how["names"] == "classes" else ("channel_mapper.weight", 4)
    tensor = shapes.get(name)
    if tensor is None or len(tensor.shape) != axes:
        raise UserError(f"{shown(path)} has no usable {name}: this is not what the original code's files have.")
    if how["names"] == "classes":
        count, wide = tensor.shape
        return ClassEmbedderConfig(count, wide, count - 1 if how.get("empty") == "last" else None)
    out, labels = tensor.shape[:2]
    bias = "channel_mapper.bias" in shapes
    return RescalerConfig.from_dict({"in_channels": labels, "out_channels": out, "bias": bias, **how["config"]})


def _fits(path: Path, table: dict[str, Any], channels: int, configs: Mapping[str, Any]) -> None:
    """The parts belong together, and the U-Net takes as many channels as its family does."""
    unet, vae = configs["denoiser"], configs["vae"]
    latent = table.get("latent", 4)
    if unet.out_channels != vae.latent_channels or unet.in_channels != vae.latent_channels + channels - latent:
        raise UserError(
            f"{shown(path)} has a U-Net of {unet.in_channels} input and {unet.out_channels} output channels for "
            f"latents of {vae.latent_channels}, but {table['title']} takes {channels} and gives {latent}."
        )
    if "rescaler" in configs and configs["rescaler"].out_channels != unet.in_channels - vae.latent_channels:
        raise UserError(
            f"{shown(path)} has a U-Net that takes {unet.in_channels - vae.latent_channels} channels beside the "
            f"latents, but its rescaler gives {configs['rescaler'].out_channels}: its parts do not belong together."
        )
    context = sum(configs[part].hidden_size for part in ("text", "text_2", "classes") if part in configs)
    if table["task"] == "retrieval" and unet.cross_attention_dim:
        return  # what it reads comes from an encoder of pictures and texts that is in no such file
    if set(unet.cross_attention_dim) != ({context} if context else set()):
        reads = f"text of width {unet.cross_attention_dim[0]}" if unet.cross_attention_dim else "no text"
        raise UserError(
            f"{shown(path)} has a U-Net that reads {reads}, but its text encoders give {context}: its parts do not "
            f"belong together."
        )


def _scaled(
    path: Path, file: Source, table: dict[str, Any], vae: VaeConfig | VqConfig, why: list[str]
) -> VaeConfig | VqConfig:
    """The autoencoder's config with the scale of the latents that is in the file, if one is."""
    tensor, own = file.tensors.get("scale_factor"), table["parts"]["vae"]["config"].get("scaling_factor")
    if tensor is None or math.prod(tensor.shape) != 1:
        if own is not None:
            return vae
        raise UserError(
            f"{shown(path)} lacks scale_factor, one number that says how the latents of {table['title']} are scaled: "
            f"the file is not complete."
        )
    value = _short(_values(file, "scale_factor").reshape(-1)[0])
    if not 0 < value < math.inf:
        raise UserError(f"{shown(path)} says that its latents are scaled by {value} (scale_factor): it is damaged.")
    if own is not None and abs(value - own) <= {"F64": 1e-6, "F32": 1e-6}.get(tensor.dtype, 1e-2) * own:
        return vae  # what rounding left of the family's
    why.append(f"its latents are scaled by {value}, as its scale_factor says")
    return dataclasses.replace(vae, scaling_factor=value)


def _spread(path: Path, file: Source, vae: VaeConfig | VqConfig, why: list[str]) -> VaeConfig | VqConfig:
    """The autoencoder's config with the mean and the spread of its latents that are in the file, if they are."""
    names = ("edm_mean", "edm_std")
    if not any(name in file.tensors for name in names):
        return vae
    if not all(name in file.tensors for name in names) or isinstance(vae, VqConfig):
        raise UserError(f"{shown(path)} has only one of {names[0]} and {names[1]}: the file is not complete.")
    mean, std = (tuple(_short(value) for value in _values(file, name).reshape(-1)) for name in names)
    why.append(f"its latents are centred and scaled a channel, as {names[0]} and {names[1]} say")
    return dataclasses.replace(vae, latents_mean=mean, latents_std=std, scaling_factor=PLAYGROUND_SCALE)


def _short(value: float) -> float:
    """As short as float32 has it."""
    return float(str(np.float32(value)))


def _range(path: Path, file: Source, values: dict[str, Any], why: list[str]) -> dict[str, Any]:
    """The schedule's range of betas as the file's own table of noise has it; the family's where there is no table."""
    name = "alphas_cumprod"
    if name not in file.tensors:
        return {}
    found, count = _values(file, name).reshape(-1), values["num_train_timesteps"]
    near = {"F64": 1e-6, "F32": 1e-4}.get(file.tensors[name].dtype, 1e-2)

    def fits(start: float, end: float) -> bool:
        betas = np.linspace(start**0.5, end**0.5, count) ** 2
        return found.shape == (count,) and np.allclose(found, np.cumprod(1 - betas), rtol=near, atol=near / 100)

    own = values["beta_start"], values["beta_end"]
    if fits(*own):
        why.append(f"its table of noise ({name}) has the family's betas, from {own[0]} to {own[1]}")
        return {}
    if len(found) > 1 and np.isfinite(found).all() and 0 < found[-1] < found[-2] and found[0] < 1:
        start, end = (float(f"{beta:.3g}") for beta in (1 - found[0], 1 - found[-1] / found[-2]))
        if 0 < start <= end < 1 and fits(start, end):
            why.append(f"noise is added by betas from {start} to {end}, as {name} says")
            return {"beta_start": start, "beta_end": end}
    raise UserError(f"{shown(path)} adds noise by a schedule that is not known ({name}).")


def _words_of(
    path: Path, table: dict[str, Any], configs: Mapping[str, Any], why: list[str]
) -> dict[str, bytes] | None:
    """The tokenizer's files of a model whose text encoder is BERT: its words, if they lie beside the file.

    None for other models. The words are in no checkpoint: the original code fetches those of bert-base-uncased.
    """
    if not isinstance(configs.get("text"), BertConfig):
        return None
    if not table["parts"]["text"].get("words"):
        return {}  # layouts come as tokens
    count, beside = configs["text"].vocab_size, member(path.parent, "vocab.txt")
    if beside is None:
        why.append(
            f"its text encoder's {count} words are not in the file: to draw, it needs vocab.txt of bert-base-uncased "
            f"beside it"
        )
        return {}
    data = read_bytes(beside, 16 << 20)
    lines = data.decode("utf-8", "replace").splitlines()
    if len(lines) != count:
        why.append(f"vocab.txt beside it has {len(lines)} words, its text encoder {count}: it is not used")
        return {}
    why.append(f"its text encoder's {count} words are those of vocab.txt beside it")
    return {"vocab.txt": data}


def _twice(file: Source, table: dict[str, Any]) -> dict[str, str]:
    """A first stage that is the condition, too (inpainting) lies in the file a second time: those names."""
    if set(table["parts"]) != {"denoiser", "vae"}:
        return {}
    condition, stage = "cond_stage_model.", "first_stage_model."
    return {
        name: "the first stage a second time, as what the picture is conditioned by"
        for name, tensor in file.tensors.items()
        if name.startswith(condition)
        and (other := file.tensors.get(stage + name.removeprefix(condition))) is not None
        and other.shape == tensor.shape
    }


def _low_scale(path: Path, file: Source, values: dict[str, Any], why: list[str]) -> LowScaleConfig:
    """The upscaler's schedule for its small picture: the family's, with the range that the file's own table has."""
    config = LowScaleConfig.from_dict(values)
    name = "low_scale_model.betas"
    if name not in file.tensors:
        why.append("the file has no schedule for the small picture (low_scale_model.betas): the family's own is taken")
        return config
    betas = _values(file, name)
    if betas.shape == (config.num_train_timesteps,) and np.isfinite(betas).all() and 0 < betas[0] < betas[-1] < 1:
        start, end = (float(f"{beta:.3g}") for beta in (betas[0], betas[-1]))
        if np.allclose(betas, np.linspace(start**0.5, end**0.5, len(betas)) ** 2, rtol=5e-3, atol=1e-7):
            why.append(f"the small picture is noised by betas from {start} to {end}, as {name} says")
            return LowScaleConfig.from_dict({**values, "beta_start": start, "beta_end": end})
    raise UserError(f"{shown(path)} noises the small picture by a schedule that is not known ({name}).")


def schedule_of(path: Path, file: Source, table: dict[str, Any], wish: Wish, why: list[str]) -> ScheduleConfig:
    """The family's schedule, with what this file predicts; EDM's where marks say so."""
    edm = _edm(path, file, why)
    if edm is not None:
        if table["family"] != "sdxl" or wish.prediction is not None:
            raise UserError(
                f"{shown(path)} has the marks of a model of EDM's noise levels (edm_...), which say what it predicts "
                f"and that it is Stable Diffusion XL's kind: leave --prediction and --family out."
            )
        return edm
    prediction, zero = _prediction(path, file, table, wish, why)
    own = _range(path, file, table["schedule"], why) if table.get("range_in_file") else {}
    return ScheduleConfig.from_diffusers(
        {**table["schedule"], **own, "prediction_type": "v_prediction" if prediction == "v" else prediction}
        | ({"rescale_betas_zero_snr": True} if zero else {})
    )


def _edm(path: Path, file: Source, why: list[str]) -> ScheduleConfig | None:
    """The schedule of a file that marks say was trained on EDM's noise levels."""
    if "edm_mean" in file.tensors:
        why.append("it holds the marks edm_mean and edm_std: trained on EDM's noise levels, as Playground 2.5")
        return ScheduleConfig.from_diffusers(PLAYGROUND)
    ends = {}
    for name in ("sigma_min", "sigma_max"):
        if f"edm_vpred.{name}" in file.tensors:
            values = _values(file, f"edm_vpred.{name}").reshape(-1)
            if len(values) != 1 or not 0 < values[0] < math.inf:
                raise UserError(f"{shown(path)} has no usable edm_vpred.{name}: one number above 0 was expected.")
            ends[name] = _short(values[0])
    if not ends:
        return None
    schedule = ScheduleConfig.from_diffusers({**COSXL, **ends})
    low, high = (schedule.options[name] for name in ("sigma_min", "sigma_max"))
    why.append(f"it holds the mark edm_vpred: it predicts v on EDM's noise levels, from {low:g} to {high:g}, as CosXL")
    return schedule


def _prediction(path: Path, file: Source, table: dict[str, Any], wish: Wish, why: list[str]) -> tuple[str, bool]:
    """ "epsilon" or "v", and whether the schedule ends in pure noise; the evidence goes to `why`."""
    zero = "ztsnr" in file.tensors or file.metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    if zero:
        why.append("its marks say that training ended in pure noise (zero-terminal SNR)")
    if wish.prediction is not None:
        why.append(f"it predicts {wish.prediction}, as --prediction says")
        return wish.prediction, zero
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        said = file.metadata.get(key, "").lower()
        if said in ("v", "epsilon", "eps"):
            why.append(f"its metadata says {key} = {said}")
            return "v" if said == "v" else "epsilon", zero
    if file.metadata.get("ss_v_parameterization", "").lower() == "true":
        why.append("its metadata says ss_v_parameterization")
        return "v", zero
    if "v_pred" in file.tensors:
        why.append("it holds the mark v_pred")
        return "v", zero
    beside = path.with_suffix(".yaml")
    if beside.is_file():
        text = read_bytes(beside, 1 << 20).decode("utf-8", "replace")
        said_there = re.search(r"^\s*parameterization\s*:\s*[\"']?(v|eps)\b", text, re.MULTILINE)
        if said_there:
            why.append(f"{shown(beside.name)} beside it says parameterization: {said_there[1]}")
            return ("v" if said_there[1] == "v" else "epsilon"), zero
    if table["prediction"] is not None:
        why.append(f"{table['title']} predicts {table['prediction']} unless marked otherwise")
        return table["prediction"], zero
    return _guessed(file, why), zero


def _guessed(file: Source, why: list[str]) -> str:
    """Stable Diffusion 2.x leaves no mark; the biases of one norm spread more in models that predict v (ComfyUI)."""
    name = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if name not in file.tensors:
        why.append("nothing says what it predicts; v is the family's usual: --prediction epsilon says otherwise")
        return "v"
    spread = float(np.std(_values(file, name)))
    guess = "v" if spread > 0.09 else "epsilon"
    why.append(
        f"a guess: it predicts {guess}, since {name.removeprefix(UNET)} has a deviation of {spread:.3f} (v above "
        f"0.09); --prediction says otherwise"
    )
    return guess


def _values(file: Source, name: str) -> np.ndarray:
    """A tensor's numbers as float64."""
    bits = file.raw(name)
    plain: np.ndarray = from_bfloat16(bits) if file.tensors[name].dtype == "BF16" else bits
    return plain.astype(np.float64)


def left_out(file: Source, used: set[str], reasons: Mapping[str, str] | None = None) -> dict[str, str]:
    """Every tensor that no part takes, with the reason; tensors of one reason are counted together."""
    groups: dict[str, list[str]] = {}
    for name in file.tensors:
        if name in used:
            continue
        if reasons and name in reasons:
            reason = reasons[name]
        elif name.startswith(EMA):
            reason = "averaged weights that are not used"
        else:
            reason = next((why for begin, why in LEFT_OUT.items() if name.startswith(begin)), "belongs to no part")
        groups.setdefault(reason, []).append(name)
    return {
        (found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"): reason
        for reason, found in groups.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# CLIP's tokenizer, which single files do not bring


@functools.cache
def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's tokens with their ids, and its merges: https://github.com/openai/CLIP (MIT), 48,894 merges."""
    merges = gzip.decompress((HERE / "clip_merges.txt.gz").read_bytes()).decode("utf-8").split("\n")[:-1]
    # CLIP numbers the printable bytes first, then the others (GPT-2's table), then the same ending a word
    letters = sorted(LETTERS.values(), key=lambda letter: (ord(letter) >= 256, ord(letter)))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m.split(" ")) for m in merges), BOS, EOS]
    return {token: number for number, token in enumerate(tokens)}, merges


def tokenizers_of(parts: Mapping[str, Any], part: str) -> dict[str, bytes]:
    """The files of a text encoder's tokenizer; none where there is no such part."""
    return _tokenizer(parts[part]["pad"]) if "pad" in parts.get(part, {}) else {}


@functools.cache
def _tokenizer(pad: str) -> dict[str, bytes]:
    vocabulary, merges = _vocabulary()
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode("utf-8"),
        "merges.txt": ("#version: 0.2\n" + "\n".join(merges) + "\n").encode("utf-8"),
        "special_tokens_map.json": json.dumps(special).encode("utf-8"),
    }
