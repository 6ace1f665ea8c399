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

from mlxldm.config import ClipTextConfig, Defaults, ScheduleConfig, UNetConfig, VaeConfig
from mlxldm.errors import UserError, nearest
from mlxldm.folder import Manifest, member, read_bytes, read_json, tokenizer_files
from mlxldm.hub import choose_weights
from mlxldm.tensors import shown
from mlxldm.tokenizer import ClipTokenizer

from .names import DIFFUSERS, Dialect
from .read import Weights, open_weights

# model_index.json's names -> our parts, and the classes each may have
PARTS = {
    "text_encoder": ("text", ("CLIPTextModel", "CLIPTextModelWithProjection")),
    "text_encoder_2": ("text_2", ("CLIPTextModelWithProjection",)),
    "unet": ("denoiser", ("UNet2DConditionModel",)),
    "vae": ("vae", ("AutoencoderKL",)),
}
OTHERS = {"tokenizer", "tokenizer_2", "scheduler"}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")

# Components that make no difference to the picture, and why each is left out.
IGNORED = {
    "safety_checker": "judges finished pictures; it takes no part in making them",
    "feature_extractor": "prepares pictures for the safety checker or the image encoder",
    "image_encoder": "is for picture prompts (IP-Adapter), which this version does not have",
}
# Plain settings in model_index.json that are no components.
SETTINGS = {"requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker", "requires_aesthetics_score"}

FAMILY_GUIDANCE = {"sd1": 7.5, "sd2": 7.5, "sdxl": 5.0}


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
        if (path / "config.json").exists():
            raise UserError(
                f"{shown(path)} is one component of a model (it has config.json but no model_index.json): give the "
                f"folder above it."
            )
        raise UserError(f"{shown(path)} has no model_index.json, so it is not a diffusers folder.")
    return _diffusers(path, wish)


def _diffusers(root: Path, wish: Wish) -> Found:
    index = read_json(root / "model_index.json")
    if not isinstance(index, dict):
        raise UserError(f"{shown(root / 'model_index.json')} is not an object: the file is damaged.")
    pipeline = index.get("_class_name")
    why = [f"model_index.json says {shown(pipeline)}"]
    classes, left_out = _components(index, root)
    for needed in ("text_encoder", "tokenizer", "unet", "vae", "scheduler"):
        if needed not in classes:
            raise UserError(
                f"{shown(root)} ({shown(pipeline)}) has no {needed}: only text-to-image models with a CLIP text "
                f"encoder, a U-Net and an autoencoder can be read."
            )

    unet = UNetConfig.from_dict(_config(root, "unet"))
    if wish.heads is not None:
        unet = dataclasses.replace(unet, heads=(wish.heads,) * unet.levels)
        why.append(f"{wish.heads} attention heads, as --heads says")
    vae = VaeConfig.from_dict(_config(root, "vae"))
    if unet.in_channels != vae.latent_channels or unet.out_channels != vae.latent_channels:
        raise UserError(
            f"{shown(root)} has a U-Net of {unet.in_channels} input and {unet.out_channels} output channels for "
            f"latents of {vae.latent_channels}: inpainting, depth and edit models come with a later version."
        )
    family = _family(unet, "text_encoder_2" in classes, why)
    if wish.family not in (None, family):
        raise UserError(f"{shown(root)} is of the family {family} by its configs, but --family says {wish.family}.")
    texts = {
        PARTS[name][0]: _text(root, name, classes[name], -2 if family == "sdxl" else -1)
        for name in ("text_encoder", "text_encoder_2")
        if name in classes
    }
    schedule, sampler = _schedule(root, family, why)
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

    name, source = _identity(root)
    height, width = ((side * vae.factor) for side in (unet.sample_size or (64, 64)))
    few = sampler in ("lcm", "tcd")
    defaults = Defaults(
        width=width,
        height=height,
        steps=4 if few else 25,
        guidance=1.0 if few else FAMILY_GUIDANCE[family],
        sampler=sampler,
    )
    manifest = Manifest(
        name=name,
        family=family,
        text=texts["text"],
        text_2=texts.get("text_2"),
        denoiser=unet,
        vae=vae,
        schedule=schedule,
        defaults=defaults,
        source={"name": source, "kind": "diffusers folder"},
        license=_license(root),
        zeros_for_empty=family == "sdxl" and index.get("force_zeros_for_empty_prompt", True) is True,
    )
    parts = {}
    for folder in (name for name in PARTS if name in classes):
        listed = sorted(entry.name for entry in (root / folder).iterdir())
        file, note = choose_weights(folder, listed)
        if note:
            why.append(note)
        weights = open_weights(root, folder, file)
        files = {f"{folder}/{path.name}": path for path in weights.paths}
        parts[PARTS[folder][0]] = PartSource(weights, DIFFUSERS, f"{folder}/{file}", files)

    def tokenizer(number: int) -> dict[str, bytes]:
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


def _config(root: Path, folder: str) -> dict[str, Any]:
    path = member(root, folder, "config.json")
    if path is None:
        raise UserError(f"{shown(root / folder)} has no config.json: the model is not complete.")
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{shown(path)} is not an object: the file is damaged.")
    return values


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
    config = ClipTextConfig.from_transformers({**_config(root, folder), "architectures": [cls]}, skip=skip, **ids)
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"{shown(root)}: {number} has {tokenizer.size} tokens, but {folder} has embeddings for "
            f"{config.vocab_size} only."
        )
    return config


def _schedule(root: Path, family: str, why: list[str]) -> tuple[ScheduleConfig, str]:
    """The schedule, and the name of the default sampler."""
    from mlxldm.samplers import SAMPLERS

    path = member(root, "scheduler", "scheduler_config.json")
    if path is None:
        raise UserError(f"{shown(root / 'scheduler')} has no scheduler_config.json: the model is not complete.")
    schedule = ScheduleConfig.from_diffusers(read_json(path, infinity=True))
    why.append(f"the scheduler predicts {schedule.prediction}")
    if family != "sdxl" and schedule.steps_offset != 1:
        # diffusers' Stable Diffusion pipelines do so to configs that are older than the offset
        schedule = dataclasses.replace(schedule, steps_offset=1)
        why.append("steps_offset is taken as 1, as diffusers' pipelines take it")
    sampler = schedule.sampler
    if sampler not in SAMPLERS:
        sampler = "dpmpp_2m"
        why.append(f"its own sampler, {schedule.sampler}, comes with a later version; {sampler} is the default instead")
    return schedule, sampler


def _identity(root: Path) -> tuple[str, str]:
    """A name for the model, and where it came from: in a hub cache the repository's id."""
    full = root.resolve()
    if full.parent.name == "snapshots" and full.parent.parent.name.startswith("models--"):
        source = full.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return source.rpartition("/")[2], source
    return full.name or "model", full.name or "model"


def _license(root: Path) -> str | None:
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
