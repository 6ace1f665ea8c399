"""What a diffusers folder is, and why: which parts it has, of which family, and what its configs say.

It says most of it itself, in `model_index.json` and one `config.json` a part. Nothing is guessed from file names.
Whatever is decided here is written down in `why`, for the report. Single files are `single.py`'s.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxldm.config import ClipTextConfig, Defaults, LowScaleConfig, ScheduleConfig, UNetConfig, VaeConfig
from mlxldm.errors import UserError, nearest
from mlxldm.folder import Manifest, member, read_bytes, read_json, tokenizer_files
from mlxldm.hub import choose_weights
from mlxldm.tensors import shown
from mlxldm.tokenizer import ClipTokenizer

from . import distilled
from .names import DIFFUSERS, Dialect
from .read import Weights, open_weights

# model_index.json's names -> our parts, and the classes each may have
PARTS = {
    "text_encoder": ("text", ("CLIPTextModel", "CLIPTextModelWithProjection")),
    "text_encoder_2": ("text_2", ("CLIPTextModelWithProjection",)),
    "unet": ("denoiser", ("UNet2DConditionModel",)),
    "vae": ("vae", ("AutoencoderKL",)),
}
OTHERS = {"tokenizer", "tokenizer_2", "scheduler", "low_res_scheduler"}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")

# Components that make no difference to the picture, and why each is left out.
IGNORED = {
    "safety_checker": "judges finished pictures; it takes no part in making them",
    "feature_extractor": "prepares pictures for the safety checker or the image encoder",
    "depth_estimator": "estimates the depth of a picture, a network of its own (MiDaS)",
    "watermarker": "marks finished pictures; it takes no part in making them",
    "image_encoder": "is for picture prompts (IP-Adapter), which this version does not have",
}
# Plain settings in model_index.json that are no components.
SETTINGS = {"requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker", "requires_aesthetics_score"}
SETTINGS |= {"max_noise_level", "is_cosxl_edit"}

FAMILY_GUIDANCE = {"sd1": 7.5, "sd2": 7.5, "sdxl": 5.0, "sdxl-refiner": 5.0, "upscaler": 9.0}
PLAYGROUND_DATA = 0.5  # the spread that Playground 2.5 takes latents to have (Li et al. 2024)
# What the U-Net takes beside the noisy latents, in channels: what a model is for, and what these channels are.
MORE_CHANNELS = {
    0: ("text-to-image", "nothing"),
    1: ("depth", "a depth map"),
    3: ("upscale", "a small picture"),
    4: ("edit", "the picture to edit"),
    5: ("inpaint", "a mask and the picture around it"),
}


@dataclass(frozen=True)
class Wish:
    """What the person says of the source; it wins over every guess."""

    family: str | None = None
    prediction: str | None = None  # "epsilon" or "v"
    heads: int | None = None  # of the U-Net's attention
    ema: bool = True  # the averaged weights where a file has both


NO_WISH = Wish()


@dataclass(frozen=True)
class PartSource:
    """Where a part's tensors are, in whose names, and what to call the place."""

    weights: Weights
    dialect: Dialect
    label: str
    files: dict[str, Path]  # for the sums: a name for each file


@dataclass
class Found:
    """A model: its manifest, where each part's tensors are, and why we think so."""

    path: Path
    manifest: Manifest
    parts: dict[str, PartSource]
    tokenizer: Callable[[int], dict[str, bytes]]  # 1 or 2
    why: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)  # component or tensor -> reason


def detect(path: Path, wish: Wish = NO_WISH) -> Found:
    """Look at `path` and say what it is; a UserError in one sentence if it is nothing that can be read."""
    if not path.exists():
        raise UserError(f"There is no file or folder {shown(path)}.")
    if not path.is_dir():
        from .single import single

        return single(path, wish)
    if member(path, "model_index.json") is None:
        if member(path, "config.json") is not None:
            if (path.resolve().parent / "model_index.json").is_file():
                raise UserError(
                    f"{shown(path)} is one component of a model, {_component(path)}: give the folder above it."
                )
            from .alone import component

            return component(path, wish)
        raise UserError(f"{shown(path)} has no model_index.json, so it is not a diffusers folder.")
    return _diffusers(path, wish)


def _diffusers(root: Path, wish: Wish) -> Found:
    index = read_json(root / "model_index.json")
    if not isinstance(index, dict):
        raise UserError(f"{shown(root / 'model_index.json')} is not an object: the file is damaged.")
    if "vqvae" in index:
        from .early import early

        return early(root, index, wish)
    pipeline = index.get("_class_name")
    why = [f"model_index.json says {shown(pipeline)}"]
    classes, left_out = _components(index, root)
    # the refiner's only text encoder is called the second; here the first is the one that is always there
    alone = "text_encoder" not in classes and "text_encoder_2" in classes
    last = "_2" if alone else ""
    for needed in (f"text_encoder{last}", f"tokenizer{last}", "unet", "vae", "scheduler"):
        if needed not in classes:
            raise UserError(
                f"{shown(root)} ({shown(pipeline)}) has no {needed}: only text-to-image models with a CLIP text "
                f"encoder, a U-Net and an autoencoder can be read."
            )

    unet = UNetConfig.from_dict(config_of(root, "unet"))
    if wish.heads is not None:
        unet = dataclasses.replace(unet, heads=(wish.heads,) * unet.levels)
        why.append(f"{wish.heads} attention heads, as --heads says")
    vae = VaeConfig.from_dict(config_of(root, "vae"))
    task, family = _task(root, unet, vae, alone, "low_res_scheduler" in classes, why)
    if family is None:
        family = _family(unet, "text_encoder_2" in classes, why)
    if wish.family not in (None, family, f"{family}-{task}"):
        raise UserError(f"{shown(root)} is of the family {family} by its configs, but --family says {wish.family}.")
    places = {"text_encoder_2": "text"} if alone else {name: part for name, (part, _) in PARTS.items()}
    places |= {name: PARTS[name][0] for name in ("unet", "vae")}
    texts = {
        places[name]: _text(root, name, classes[name], -2 if family.startswith("sdxl") else -1)
        for name in ("text_encoder", "text_encoder_2")
        if name in classes
    }
    schedule = schedule_of(root, family, why)
    if bool(index.get("is_cosxl_edit")) != (task == "edit" and schedule.sigma_data is not None):
        raise UserError(
            f"{shown(root)} says is_cosxl_edit = {shown(index.get('is_cosxl_edit'))}, which does not go with its U-Net "
            f"and scheduler: CosXL Edit, and no other model, edits pictures on EDM's noise levels."
        )
    if wish.prediction is not None:
        schedule = dataclasses.replace(schedule, prediction=wish.prediction)
        why.append(f"it predicts {wish.prediction}, as --prediction says")
    context = sum(text.hidden_size for text in texts.values())
    for dim in set(unet.cross_attention_dim):
        if dim != context:
            raise UserError(
                f"{shown(root)} has a U-Net that reads text of width {dim}, but its text encoders give {context}: "
                f"its parts do not belong together."
            )

    name, source = identity_of(root)
    height, width = ((side * vae.factor) for side in (unet.sample_size or (64, 64)))
    defaults = Defaults(
        width=width,
        height=height,
        steps=25,
        guidance=guidance_of(schedule, FAMILY_GUIDANCE[family]),
        sampler=schedule.sampler,
    )
    defaults = distilled.of_folder(defaults, name, schedule, unet, why)
    manifest = Manifest(
        name=name,
        family=family,
        task=task,
        parts={**texts, "denoiser": unet, "vae": vae},
        schedule=schedule,
        defaults=defaults,
        low_scale=_low_scale(root, index) if task == "upscale" else None,
        source={"name": source, "kind": "diffusers folder"},
        license=license_of(root),
        zeros_for_empty=family.startswith("sdxl") and index.get("force_zeros_for_empty_prompt", True) is True,
    )
    parts = {}
    for folder in (name for name in PARTS if name in classes):
        listed = sorted(entry.name for entry in (root / folder).iterdir())
        file, note = choose_weights(folder, listed)
        if note:
            why.append(note)
        weights = open_weights(root, folder, file)
        files = {f"{folder}/{path.name}": path for path in weights.paths}
        parts[places[folder]] = PartSource(weights, DIFFUSERS, f"{folder}/{file}", files)
    _takes(root, unet, task, parts["denoiser"].weights)

    def tokenizer(number: int) -> dict[str, bytes]:
        if alone:
            return tokenizer_files(root, "tokenizer_2") if number == 1 else {}
        return tokenizer_files(root, "tokenizer" if number == 1 else f"tokenizer_{number}")

    return Found(root, manifest, parts, tokenizer, why, left_out)


def _components(index: dict[str, Any], root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The classes of the components that are there, and those left out with the reason."""
    classes: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name, value in index.items():
        if name.startswith("_") or name in SETTINGS:
            continue
        if value is None or value == [None, None]:
            continue
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):
            raise UserError(f"{shown(root / 'model_index.json')} has a setting '{shown(name)}' that is not known.")
        if name in IGNORED:
            left_out[name] = IGNORED[name]
            continue
        allowed = PARTS[name][1] if name in PARTS else TOKENIZERS if name.startswith("tokenizer") else None
        if name not in PARTS and name not in OTHERS:
            raise UserError(
                f"{shown(root)} has the component '{shown(name)}' ({shown(value[1])}), which this version does not "
                f"know.{nearest(name, [*PARTS, *OTHERS])}"
            )
        if allowed is not None and value[1] not in allowed:
            raise UserError(
                f"{shown(root)} has a {name} of class {shown(value[1])}, but this version reads "
                f"{' or '.join(allowed)} only."
            )
        classes[name] = value[1]
    return classes, left_out


def config_of(root: Path, folder: str) -> dict[str, Any]:
    """A component's `config.json`."""
    path = member(root, folder, "config.json")
    if path is None:
        raise UserError(f"{shown(root / folder)} has no config.json: the model is not complete.")
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{shown(path)} is not an object: the file is damaged.")
    return values


def _component(path: Path) -> str:
    """What a component's folder holds, in words."""
    values = read_json(path / "config.json")
    values = values if isinstance(values, dict) else {}
    name = shown(values.get("_class_name") or "/".join(map(str, values.get("architectures") or ())) or "of no class")
    takes = values.get("in_channels")
    return f"{name} with {takes} input channels" if isinstance(takes, int) else name


def _task(
    root: Path, unet: UNetConfig, vae: VaeConfig, alone: bool, low_scale: bool, why: list[str]
) -> tuple[str, str | None]:
    """What the model is for, by what its U-Net takes beside the latents; and its family where that is said too."""
    more = unet.in_channels - vae.latent_channels
    if unet.out_channels != vae.latent_channels or more not in MORE_CHANNELS:
        raise UserError(
            f"{shown(root)} has a U-Net of {unet.in_channels} input and {unet.out_channels} output channels for "
            f"latents of {vae.latent_channels}, which is no kind of model known here: text, inpainting, depth, edit "
            f"and upscaling models have {', '.join(str(4 + n) for n in (0, 5, 1, 4, 3))} and give 4."
        )
    task, takes = MORE_CHANNELS[more]
    if more:
        why.append(f"the U-Net takes {more} channels beside the latents ({takes}): {task}")
    if (task == "upscale") != low_scale or (low_scale and unet.num_class_embeds is None):
        raise UserError(
            f"{shown(root)} has some of what the x4 upscaler has (7 input channels, a table of classes, a "
            f"low_res_scheduler), but not all of it: this model is not known."
        )
    if task == "upscale":
        return task, "upscaler"
    if alone and unet.addition_embed_type == "text_time" and task == "text-to-image":
        why.append("size and pooled text are added to the time embedding, of the second text encoder only: refiner")
        return "refine", "sdxl-refiner"
    return task, None


def _low_scale(root: Path, index: dict[str, Any]) -> LowScaleConfig:
    path = member(root, "low_res_scheduler", "scheduler_config.json")
    if path is None:
        raise UserError(f"{shown(root / 'low_res_scheduler')} has no scheduler_config.json: the model is not complete.")
    return LowScaleConfig.from_diffusers(read_json(path, infinity=True), index.get("max_noise_level", 350))


def _takes(root: Path, unet: UNetConfig, task: str, weights: Weights) -> None:
    """The first layer takes what the config says, since that decided what the model is for."""
    first = weights.tensors.get("conv_in.weight")
    if first is not None and len(first.shape) == 4 and first.shape[1] != unet.in_channels:
        kind = {"inpaint": "inpainting"}.get(task, task)
        raise UserError(
            f"{shown(root)} has a U-Net config of {unet.in_channels} input channels ({kind}), but its weights take "
            f"{first.shape[1]}: they do not belong together."
        )


def _family(unet: UNetConfig, two_texts: bool, why: list[str]) -> str:
    if unet.addition_embed_type == "text_time":
        if not two_texts:
            raise UserError("This is an SDXL U-Net without a second text encoder, which no model of that family is.")
        why.append("size and pooled text are added to the time embedding, and there are two text encoders: SDXL")
        return "sdxl"
    if two_texts:
        raise UserError("There are two text encoders, but the U-Net takes no pooled text: this family is not known.")
    # the only thing in a config that tells 2.x from 1.x whatever the width
    if unet.use_linear_projection:
        why.append("attention is entered by linear maps (use_linear_projection): Stable Diffusion 2.x")
        return "sd2"
    why.append("one text encoder, attention entered by 1x1 convolutions: Stable Diffusion 1.x")
    return "sd1"


def _text(root: Path, folder: str, cls: str, skip: int) -> ClipTextConfig:
    """The text encoder's config, with the token ids of its tokenizer: those in old configs are not CLIP's."""
    number = folder.replace("text_encoder", "tokenizer")
    files = tokenizer_files(root, number)
    if not files:
        raise UserError(f"{shown(root / number)} has no tokenizer files: the model is not complete.")
    tokenizer = ClipTokenizer.from_files(files)
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    config = ClipTextConfig.from_transformers({**config_of(root, folder), "architectures": [cls]}, skip=skip, **ids)
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"{shown(root)}: {number} has {tokenizer.size} tokens, but {folder} has embeddings for "
            f"{config.vocab_size} only."
        )
    return config


def guidance_of(schedule: ScheduleConfig, usual: float) -> float:
    """The guidance of a model: its family's usual one, but what Playground 2.5's page advises for its kind of EDM."""
    return 3.0 if schedule.sigma_data == PLAYGROUND_DATA else usual


def schedule_of(root: Path, family: str, why: list[str]) -> ScheduleConfig:
    path = member(root, "scheduler", "scheduler_config.json")
    if path is None:
        raise UserError(f"{shown(root / 'scheduler')} has no scheduler_config.json: the model is not complete.")
    schedule = ScheduleConfig.from_diffusers(read_json(path, infinity=True))
    why.append(f"the scheduler predicts {schedule.prediction}")
    if family in ("sd1", "sd2") and schedule.steps_offset != 1:
        # diffusers' Stable Diffusion pipelines do so to configs that are older than the offset
        schedule = dataclasses.replace(schedule, steps_offset=1)
        why.append("steps_offset is taken as 1, as diffusers' pipelines take it")
    return schedule


def identity_of(root: Path) -> tuple[str, str]:
    """A name for the model, and where it came from: in a hub cache the repository's id."""
    full = root.resolve()
    if full.parent.name == "snapshots" and full.parent.parent.name.startswith("models--"):
        source = full.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return source.rpartition("/")[2], source
    return full.name or "model", full.name or "model"


def license_of(root: Path) -> str | None:
    """The license that the model card's front matter names, if there is a card."""
    path = member(root, "README.md")
    if path is None:
        return None
    text = read_bytes(path, 4 << 20).decode("utf-8", "replace")
    front = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    lines = re.findall(r"^(license(?:_name)?):[ \t]*['\"]?([\w.+-]+)", front[1] if front else "", re.MULTILINE)
    said = dict(reversed(lines))  # the first of a kind
    if said.get("license") == "other":
        return said.get("license_name", "other")
    return said.get("license")
