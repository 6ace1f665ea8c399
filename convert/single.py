"""What a single-file checkpoint is, and why: told by its tensors' names and shapes, and a few marks its writer left.

Shapes say the family, every width and depth, but not the heads, the prediction, the autoencoder's scale, the schedule:
those stand in `families/*.json`, one file a family. Whatever is decided is written down in `why` with its evidence, and
what the person says (`Wish`) wins.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm.config import ClipTextConfig, Defaults, LowScaleConfig, ScheduleConfig, UNetConfig, VaeConfig
from mlxldm.errors import UserError, nearest
from mlxldm.folder import Manifest, read_bytes
from mlxldm.tensors import Tensor, from_bfloat16, shown
from mlxldm.tokenizer import BOS, EOS, LETTERS

from . import names, original
from .detect import Found, PartSource, Wish
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
    "visual": "sees pictures: the other half of a whole CLIP model",
    "vision_model.": "sees pictures: the other half of a whole CLIP model",
    "logit_scale": "is for comparing texts with pictures",
    "v_pred": "a mark that was read",
    "ztsnr": "a mark that was read",
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
)
READ = tuple(name for name, _, lacks in FAMILIES if lacks is None)

# Files that are no part of a model: a tensor that tells what it is instead.
OTHERS = (
    (r"(lora_unet_|lora_te\d?_|lycoris_).+", "a LoRA", "adapters"),
    (r".*\.(lora_A|lora_B|lora_down|lora_up|hada_w1_a|lokr_w1)(\..*)?", "a LoRA", "adapters"),
    (r"(control_model\.)?(input_hint_block\.0\.weight|zero_convs\.0\.0\.weight)", "a ControlNet", "ControlNets"),
    (r"controlnet_cond_embedding\.conv_in\.weight", "a ControlNet", "ControlNets"),
    (r"(string_to_param\..+|emb_params)", "a textual inversion", "textual inversions"),
    (r"joint_blocks\.0\..+|(model\.diffusion_model\.)?joint_blocks\..+", "Stable Diffusion 3", "transformer models"),
    (r"(model\.diffusion_model\.)?double_blocks\..+", "FLUX", "transformer models"),
    (r"(.*\.)?encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight", "a T5 text encoder", "transformer models"),
)
# Marks of what would open and draw something wrong.
REFUSED = (
    (r"edm_(mean|std|vpred\..+)", "was trained on EDM's noise levels, which come with a later version"),
    (
        r"(.*\.)?(scale_weight|weight_scale|scaled_fp8|comfy_quant)",
        "keeps its float8 numbers divided by scales, which come with a later version: use its float16 form",
    ),
)
# A part in the original's names and in diffusers': one tensor that every such part has, whatever stands before.
PARTS = (
    ("denoiser", "time_embed.0.weight"),
    ("denoiser", "time_embedding.linear_1.weight"),
    ("vae", "encoder.down.0.block.0.conv1.weight"),
    ("vae", "encoder.down_blocks.0.resnets.0.conv1.weight"),
    ("text", "encoder.layers.0.self_attn.q_proj.weight"),
    ("text", "transformer.resblocks.0.attn.in_proj_weight"),
)
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
    _fits(path, table, dict(_facts_of(name))["channels"], configs)
    schedule = schedule_of(path, file, table, wish, why)
    size = table["v_size"] if schedule.prediction == "v" and "v_size" in table else table["size"]
    manifest = Manifest(
        name=path.stem or "model",
        family=table["family"],
        task=table["task"],
        parts=configs,
        schedule=schedule,
        defaults=Defaults(
            width=size, height=size, steps=table["steps"], guidance=table["guidance"], sampler=schedule.sampler
        ),
        low_scale=_low_scale(path, file, table["low_scale"], why) if "low_scale" in table else None,
        source={"name": path.name, "kind": "single file"},
        license=file.metadata.get("modelspec.license") or None,
        zeros_for_empty=table.get("zeros_for_empty", False),
    )
    return Found(
        path,
        manifest,
        parts,
        lambda number: tokenizers_of(table["parts"], "text" if number == 1 else "text_2"),
        why,
        left_out(file, used),
    )


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
    found = []
    for part, mark in PARTS:
        for name in file.tensors:
            begin = name.removesuffix(mark)
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
        name = next((row for row in rows if _facts_of(row)["channels"] == found.channels), wish.family)
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
    if part == "denoiser":
        heads = wish.heads or how.get("heads")
        if wish.heads:
            why.append(f"{wish.heads} attention heads, as --heads says")
        else:
            size = f"{heads} attention heads" if heads else f"attention heads of size {how['head_size']}"
            why.append(f"{size}, as the family has them: shapes do not say")
        config = original.unet(shapes, heads, how.get("head_size")) | how.get("config", {})
        return UNetConfig.from_dict(config), names.UNET
    if part == "vae":
        return VaeConfig.from_dict({**original.vae(shapes), **how.get("config", {})}), names.VAE
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


def _fits(path: Path, table: dict[str, Any], channels: int, configs: Mapping[str, Any]) -> None:
    """The parts belong together, and the U-Net takes as many channels as its family does."""
    unet, vae = configs["denoiser"], configs["vae"]
    if unet.out_channels != vae.latent_channels or unet.in_channels != vae.latent_channels + channels - 4:
        raise UserError(
            f"{shown(path)} has a U-Net of {unet.in_channels} input and {unet.out_channels} output channels for "
            f"latents of {vae.latent_channels}, but {table['title']} takes {channels} and gives 4."
        )
    context = sum(configs[part].hidden_size for part in ("text", "text_2") if part in configs)
    if set(unet.cross_attention_dim) != {context}:
        raise UserError(
            f"{shown(path)} has a U-Net that reads text of width {unet.cross_attention_dim[0]}, but its text encoders "
            f"give {context}: its parts do not belong together."
        )


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
    """The family's schedule, with what this file predicts."""
    prediction, zero = _prediction(path, file, table, wish, why)
    return ScheduleConfig.from_diffusers(
        {**table["schedule"], "prediction_type": "v_prediction" if prediction == "v" else prediction}
        | ({"rescale_betas_zero_snr": True} if zero else {})
    )


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


def left_out(file: Source, used: set[str]) -> dict[str, str]:
    """Every tensor that no part takes, with the reason; tensors of one reason are counted together."""
    groups: dict[str, list[str]] = {}
    for name in file.tensors:
        if name in used:
            continue
        if name.startswith(EMA):
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
    return _tokenizer(parts[part]["pad"]) if part in parts else {}


@functools.cache
def _tokenizer(pad: str) -> dict[str, bytes]:
    vocabulary, merges = _vocabulary()
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode("utf-8"),
        "merges.txt": ("#version: 0.2\n" + "\n".join(merges) + "\n").encode("utf-8"),
        "special_tokens_map.json": json.dumps(special).encode("utf-8"),
    }
