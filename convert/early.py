"""The folders of diffusers' pipelines for the first latent diffusion models: LDMTextToImagePipeline (with a BERT of its
own), LDMSuperResolutionPipeline and LDMPipeline (no text at all). Their autoencoder is called `vqvae`, whatever it is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mlxldm.config import BertConfig, Defaults, PartConfig, UNetConfig, VaeConfig, VqConfig
from mlxldm.errors import UserError
from mlxldm.folder import Manifest, tokenizer_files
from mlxldm.hub import choose_weights
from mlxldm.tensors import shown

from . import detect, single
from .names import DIFFUSERS
from .read import open_weights

# What a folder's pipeline is for, by its class: task and family, where the U-Net is of no published size.
PIPELINES = {
    "LDMTextToImagePipeline": ("text-to-image", "ldm-text"),
    "LDMSuperResolutionPipeline": ("super-resolution", "ldm-sr"),
    "LDMPipeline": ("unconditional", "ldm-uncond"),
    "LatentDiffusionUncondPipeline": ("unconditional", "ldm-uncond"),  # its name in diffusers 0.0
}
CLASSES: dict[str, tuple[str, ...]] = {
    "bert": ("LDMBertModel",),
    "tokenizer": ("BertTokenizer", "BertTokenizerFast"),
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vqvae": ("VQModel", "AutoencoderKL"),
}
PARTS = {"bert": "text", "unet": "denoiser", "vqvae": "vae"}
NOT_SAID = 0.18215  # a VQModel's scaling_factor in diffusers, where nobody said another


def early(root: Path, index: dict[str, Any], wish: detect.Wish) -> detect.Found:
    """The model in such a folder; `index` is its model_index.json."""
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        raise UserError(
            f"{shown(root)} is of {shown(pipeline)}, but of pipelines with a vqvae this version reads "
            f"{', '.join(PIPELINES)} only."
        )
    task, family = PIPELINES[pipeline]
    why = [f"model_index.json says {shown(pipeline)}"]
    classes = _classes(root, index, task)

    unet = UNetConfig.from_dict({**detect.config_of(root, "unet"), "_class_name": classes["unet"]})
    if wish.heads is not None:
        unet = dataclasses.replace(unet, heads=(wish.heads,) * unet.levels)
        why.append(f"{wish.heads} attention heads, as --heads says")
    kind = VqConfig if classes["vqvae"] == "VQModel" else VaeConfig
    values = detect.config_of(root, "vqvae")
    vae = kind.from_dict(values)
    configs: dict[str, PartConfig] = {"denoiser": unet, "vae": vae}
    if "bert" in classes:
        configs["text"] = BertConfig.from_transformers(detect.config_of(root, "bert"))
    parts = {}
    for folder, part in PARTS.items():
        if part not in configs:
            continue
        file, note = choose_weights(folder, sorted(entry.name for entry in (root / folder).iterdir()))
        if note:
            why.append(note)
        weights = open_weights(root, folder, file)
        files = {f"{folder}/{path.name}": path for path in weights.paths}
        parts[part] = detect.PartSource(weights, DIFFUSERS, f"{folder}/{file}", files)

    found = single.facts({name: tensor.shape for name, tensor in parts["denoiser"].weights.tensors.items()})
    row = single.row_of(found) if found else None
    published = row is not None and single.table_of(row)["task"] == task
    if row is not None and published:
        family = row
        why.append(f"{single.table_of(row)['title']}: {found}")
    if wish.family not in (None, family):
        raise UserError(f"{shown(root)} is of the family {family} by its configs, but --family says {wish.family}.")
    if isinstance(vae, VqConfig):
        if "scaling_factor" not in values:
            why.append("how its latents are scaled is not said: by 1, as of all published models with such codes")
        elif vae.scaling_factor == NOT_SAID and published:
            # diffusers draws nothing with these but noise: https://github.com/huggingface/diffusers/issues/6725
            why.append(f"its latents are scaled by 1, not by {NOT_SAID}, which diffusers writes where it was not told")
            configs["vae"] = vae = dataclasses.replace(vae, scaling_factor=1.0)
    elif published and "scaling_factor" not in values:
        why.append(f"its latents are scaled by {vae.scaling_factor}: its config says nothing else")
    _fits(root, task, unet, vae, configs.get("text"))

    schedule = detect.schedule_of(root, family, why)
    if wish.prediction is not None:
        schedule = dataclasses.replace(schedule, prediction=wish.prediction)
        why.append(f"it predicts {wish.prediction}, as --prediction says")
    table = single.table_of(family)
    height, width = ((side * vae.factor) for side in (unet.sample_size or (64, 64)))
    name, source = detect.identity_of(root)
    if "text" in configs and not tokenizer_files(root, "tokenizer"):
        raise UserError(f"{shown(root / 'tokenizer')} has no tokenizer files: the model is not complete.")
    manifest = Manifest(
        name=name,
        family=family,
        task=task,
        parts=configs,
        schedule=schedule,
        defaults=Defaults(
            width=width, height=height, steps=table["steps"], guidance=table["guidance"], sampler=schedule.sampler
        ),
        source={"name": source, "kind": "diffusers folder"},
        license=detect.license_of(root),
    )
    return detect.Found(
        root, manifest, parts,
        lambda number: tokenizer_files(root, "tokenizer") if number == 1 and "text" in configs else {},
        why,
    )  # fmt: skip


def _classes(root: Path, index: dict[str, Any], task: str) -> dict[str, str]:
    """The classes of the components, which must be those of such a pipeline."""
    classes: dict[str, str] = {}
    for name, value in index.items():
        if name.startswith("_") or value is None or value == [None, None]:
            continue
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):
            raise UserError(f"{shown(root / 'model_index.json')} has a setting '{shown(name)}' that is not known.")
        if name != "scheduler" and value[1] not in CLASSES.get(name, ()):
            raise UserError(
                f"{shown(root)} has the component '{shown(name)}' ({shown(value[1])}), which no such pipeline has."
            )
        classes[name] = value[1]
    needed = ["unet", "vqvae", "scheduler"] + (["bert", "tokenizer"] if task == "text-to-image" else [])
    for name in needed:
        if name not in classes:
            raise UserError(f"{shown(root)} has no {name}: the model is not complete.")
    for name in classes:
        if name not in needed:
            raise UserError(f"{shown(root)} has the component '{name}', which no such model has.")
    return classes


def _fits(root: Path, task: str, unet: UNetConfig, vae: VaeConfig | VqConfig, text: PartConfig | None) -> None:
    """The parts belong together, and the U-Net takes what the task gives it."""
    more = vae.in_channels if task == "super-resolution" else 0
    if unet.out_channels != vae.latent_channels or unet.in_channels != vae.latent_channels + more:
        raise UserError(
            f"{shown(root)} has a U-Net of {unet.in_channels} input and {unet.out_channels} output channels for "
            f"latents of {vae.latent_channels}, but for {task} it would take {vae.latent_channels + more}."
        )
    wide = text.hidden_size if isinstance(text, BertConfig) else 0
    if set(unet.cross_attention_dim) != ({wide} if wide else set()):
        reads = f"text of width {unet.cross_attention_dim[0]}" if unet.cross_attention_dim else "no text"
        raise UserError(
            f"{shown(root)} has a U-Net that reads {reads}, but its text encoders give {wide}: its parts do not belong "
            f"together."
        )
