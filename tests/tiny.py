"""Tiny diffusers pipelines with random weights and the real block structure, built here, never downloaded.

`sd1`, `sd2` and `sdxl` build diffusers pipelines of a few hundred thousand parameters; `save` writes one to a folder,
either as transformers 5 writes it today or as the hubs have it. The weights are scaled so that text, seed and guidance
change the picture a lot: a test that mixes two of them up fails.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = "a the red blue house boat tree at dusk dawn with sea mountain under night snow lighthouse balloon"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


# The tokenizer: CLIP's byte-level format with a few dozen merges.


def _byte_letters() -> list[str]:
    """The 256 printable letters that stand for the 256 bytes, in the order of CLIP's vocabulary (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """`(vocab, merges)` as CLIP lays them out: letters, letters ending a word, merged pairs, the two special tokens."""
    letters = _byte_letters()
    merges: list[tuple[str, str]] = []
    for word in WORDS.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:  # earlier merges come first, as the encoder will apply them
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == pair:
                    parts[i : i + 2] = ["".join(pair)]
                i += 1
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
    names = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), BOS, EOS]
    assert len(set(names)) == len(names)
    return {name: i for i, name in enumerate(names)}, merges


def tokenizer(pad: str = EOS) -> CLIPTokenizer:
    """A `CLIPTokenizer` of 77 positions over `vocabulary()`; SD 2.x pads with "!"."""
    vocab, merges = vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


# The parts.


def _scale(module: torch.nn.Module, pattern: str, factor: float) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if re.search(pattern, name):
                parameter.mul_(factor)


def _shake(module: torch.nn.Module) -> None:
    """Random norms and biases instead of ones and zeros, so that a forgotten or swapped one shows."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                base = 1.0 if re.search(r"norm.*weight$", name) else 0.0
                parameter.copy_(base + 0.1 * torch.randn_like(parameter))


def text_model(
    width: int = 32, layers: int = 2, act: str = "quick_gelu", projection: int | None = None, seed: int = 0, **more
):
    """A tiny CLIP text encoder; with `projection` a `CLIPTextModelWithProjection`.

    `eos_token_id` is 2, a token that never ends a text: so the hubs' configs say.
    """
    torch.manual_seed(seed)
    config = {
        "vocab_size": len(vocabulary()[0]),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": act,
        "projection_dim": projection or width,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(CLIPTextConfig(**(config | more)))
    _shake(model)
    _scale(model, r"embedding", 20)  # CLIP starts at 0.02: tokens would hardly differ
    _scale(model, r"(mlp|self_attn).*weight", 3)
    return model.eval()


def unet(seed: int = 1, **more) -> UNet2DConditionModel:
    """A tiny conditional U-Net: SD 1.x's levels with head sizes 20 and 40, one layer each, unless `more` says else."""
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (40, 80, 80, 80),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 2,  # diffusers' name for the number of heads
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    }
    model = UNet2DConditionModel(**(config | more))
    _shake(model)
    _scale(model, r"attn2\.to_(v|out\.0)\.weight", 3)  # the text must matter
    _scale(model, r"attn2\.to_(q|k)\.weight", 2)
    _scale(model, r"conv_out\.weight", 2)
    return model.eval()


def vae(seed: int = 2, **more) -> AutoencoderKL:
    """A tiny autoencoder: four levels (f8), 4 latent channels."""
    torch.manual_seed(seed)
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 16, 32, 32),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 64,
        "scaling_factor": 0.18215,
    }
    model = AutoencoderKL(**(config | more))
    _shake(model)
    _scale(model, r"decoder\.conv_out\.weight", 1.3)
    _scale(model, r"^quant_conv.weight", 4)  # latents of about unit size after the scaling factor
    return model.eval()


# The pipelines.


def sd1(prediction: str = "epsilon", layers: int = 1) -> StableDiffusionPipeline:
    """A tiny Stable Diffusion 1.x with SD 1.5's PNDM scheduler; `layers` per level (the real one has 2)."""
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        prediction_type=prediction,
    )
    scheduler.register_to_config(clip_sample=False)  # as SD 1.5's file has it, though PNDM has no such setting
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_model(),
        tokenizer=tokenizer(),
        unet=unet(layers_per_block=layers),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2() -> StableDiffusionPipeline:
    """A tiny Stable Diffusion 2.x: heads per level, linear projections, GELU, padded with "!", v-prediction, DDIM."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type="v_prediction",
    )
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_model(act="gelu", layers=3, projection_dim=16),
        tokenizer=tokenizer(pad="!"),
        unet=unet(
            block_out_channels=(16, 32, 32, 32),
            attention_head_dim=(1, 2, 2, 4),
            use_linear_projection=True,
            layers_per_block=2,
        ),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(zeros: bool = True) -> StableDiffusionXLPipeline:
    """A tiny SDXL: two text encoders, several transformer layers a level, size and pooled text as added embeddings.

    zeros: a negative prompt that is not given is zeros, as SDXL base has it; otherwise it is the empty prompt.
    """
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        interpolation_type="linear",
        timestep_spacing="leading",
    )
    # as SDXL base's file has them, though Euler has no such settings
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True)
    vocab = vocabulary()[0]
    ids = {"bos_token_id": vocab[BOS], "eos_token_id": vocab[EOS]}
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=text_model(layers=3),
        text_encoder_2=text_model(width=16, layers=3, act="gelu", projection=16, seed=3, **ids),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(pad="!"),
        unet=unet(
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(1, 2, 4),
            transformer_layers_per_block=(1, 2, 3),
            use_linear_projection=True,
            cross_attention_dim=48,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
            layers_per_block=2,
        ),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=zeros,
    )


# The folders.

KINDS = {
    "sd1": sd1,
    "sd1-v": lambda: sd1("v_prediction"),
    "sd2": sd2,
    "sdxl": sdxl,
    "sdxl-words": lambda: sdxl(zeros=False),
}


def saved(kind: str, layout: str, root: Path) -> Path:
    """The folder of `KINDS[kind]` in `layout` under `root`, written on the first call (fixture: `tiny_folder`)."""
    folder = Path(root) / f"{kind}-{layout}"
    return folder if folder.is_dir() else save(KINDS[kind](), folder, layout)


def save(pipe, folder: Path, layout: str = "today") -> Path:
    """Write `pipe` to `folder`: `"today"` as transformers 5 writes it, `"hub"` as the files published before 2026 are.

    The hubs' text encoders carry `text_model.` in every name and their tokenizers are `vocab.json` and `merges.txt`;
    transformers 5 drops the prefix (of `CLIPTextModel` only) and writes `tokenizer.json` alone. Their scheduler configs
    are short: no spacing, so that every sampler keeps its own.
    """
    folder = Path(folder)
    pipe.save_pretrained(folder, safe_serialization=True)
    if layout == "today":
        return folder
    assert layout == "hub", layout
    for part in ("text_encoder", "text_encoder_2"):
        file = folder / part / "model.safetensors"
        if file.exists():
            tensors = load_file(file)
            if not any(name.startswith("text_model.") for name in tensors):
                tensors = {"text_model." + name: tensor for name, tensor in tensors.items()}
            save_file(tensors, file, metadata={"format": "pt"})
    _save_old_scheduler(folder / "scheduler" / "scheduler_config.json")
    for part in ("tokenizer", "tokenizer_2"):
        if (folder / part).is_dir():
            config = json.loads((folder / part / "tokenizer_config.json").read_text())
            _save_old_tokenizer(folder / part, config["pad_token"])
    return folder


def _save_old_scheduler(file: Path) -> None:
    config = json.loads(file.read_text())
    kept = "_class_name _diffusers_version beta_start beta_end beta_schedule num_train_timesteps set_alpha_to_one "
    kept += "steps_offset trained_betas clip_sample skip_prk_steps"
    if config.get("prediction_type") != "epsilon":
        kept += " prediction_type"
    file.write_text(json.dumps({key: config[key] for key in kept.split() if key in config}, indent=2))


def _save_old_tokenizer(folder: Path, pad: str) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    vocab, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "errors": "replace"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | config))
