"""Single-file checkpoints in the original code's names, from tiny diffusers pipelines: the way back, written apart.

The converter goes from our names to the original's; here the original's are made from diffusers' by substitutions on
the names, as people's own scripts do it, so that a mistake in one does not hide in the other. The result is also given
to diffusers' `from_single_file`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import tiny
import torch
import weights
from safetensors.torch import save_file

SIZE = 49408  # CLIP's vocabulary, which single files rely on


# The layouts of the families: {kind: (whose pipeline it is like, diffusers' class, what its U-Net has else)}
LAYOUTS = {
    "sd1-inpaint": ("sd1", "StableDiffusionInpaintPipeline", {"in_channels": 9}),
    "sd1-edit": ("sd1", "StableDiffusionInstructPix2PixPipeline", {"in_channels": 8}),
    "sd2-inpaint": ("sd2", "StableDiffusionInpaintPipeline", {"in_channels": 9}),
    "sd2-depth": ("sd2", "StableDiffusionDepth2ImgPipeline", {"in_channels": 5}),
    "sdxl-inpaint": ("sdxl", "StableDiffusionXLInpaintPipeline", {"in_channels": 9}),
    "sdxl-edit": ("sdxl", "StableDiffusionXLInstructPix2PixPipeline", {"in_channels": 8}),
    "ssd-1b": ("sdxl", "StableDiffusionXLPipeline", {
        "transformer_layers_per_block": [1, [2, 2], [4, 4]], "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    }),
    "vega": ("sdxl", "StableDiffusionXLPipeline", {
        "transformer_layers_per_block": (1, 1, 2), "mid_block_type": "UNetMidBlock2D",
    }),
    "sdxl-refiner": ("sdxl", "StableDiffusionXLImg2ImgPipeline", {
        "block_out_channels": (64, 64, 128, 128), "attention_head_dim": (1, 1, 2, 2), "transformer_layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 64, "projection_class_embeddings_input_dim": 5 * 256 + 64,
    }),
    "upscaler": ("sd2", "StableDiffusionUpscalePipeline", {
        "in_channels": 7, "block_out_channels": (32, 64, 64, 128), "attention_head_dim": 8, "num_class_embeds": 1000,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",), "cross_attention_dim": 128,
        "only_cross_attention": (True, True, True, False),
    }),
}  # fmt: skip


def pipeline(kind: str):
    """A tiny pipeline whose text encoders have CLIP's vocabulary, and heads and norms what the families have."""
    if kind in LAYOUTS:
        return _changed(kind)
    pipe = tiny.KINDS[kind]()
    groups = {"norm_num_groups": 32}  # cannot be seen in a file, and is this in all of them
    pipe.vae = tiny.vae(block_out_channels=(32, 32, 64, 64), **groups)
    ids = {"vocab_size": SIZE, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    if kind.startswith("sd1"):
        pipe.text_encoder = tiny.text_model(width=64, num_attention_heads=1, **ids)
        pipe.unet = tiny.unet(
            block_out_channels=(64,) * 4, attention_head_dim=8, cross_attention_dim=64, layers_per_block=2, **groups
        )
    elif kind == "sd2":
        pipe.text_encoder = tiny.text_model(width=64, layers=3, act="gelu", num_attention_heads=1, **ids)
        pipe.unet = tiny.unet(
            block_out_channels=(64, 64, 128, 128), attention_head_dim=(1, 1, 2, 2), cross_attention_dim=64,
            use_linear_projection=True, layers_per_block=2, **groups,
        )  # fmt: skip
    else:
        pipe.text_encoder = tiny.text_model(width=64, layers=3, num_attention_heads=1, **ids)
        pipe.text_encoder_2 = tiny.text_model(
            width=64, layers=3, act="gelu", projection=64, seed=3, num_attention_heads=1, **ids
        )
        pipe.unet = tiny.unet(
            block_out_channels=(64, 64, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(1, 1, 2), transformer_layers_per_block=(1, 2, 3), use_linear_projection=True,
            cross_attention_dim=128, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + 64, layers_per_block=2, **groups,
        )  # fmt: skip
    return pipe


def _changed(kind: str):
    """A family's tiny pipeline with the U-Net, and what goes with it, of one of `LAYOUTS`."""
    base, _, changes = LAYOUTS[kind]
    pipe = pipeline(base)
    pipe.unet = tiny.unet(**{key: value for key, value in pipe.unet.config.items() if key[0] != "_"} | changes)
    if kind == "sdxl-refiner":
        pipe.text_encoder = pipe.tokenizer = None
    if kind == "upscaler":
        ids = {"vocab_size": SIZE, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
        pipe.text_encoder = tiny.text_model(width=128, layers=3, act="gelu", num_attention_heads=2, **ids)
        pipe.vae = tiny.vae(
            block_out_channels=(32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=32,
            up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.08333, sample_size=256,
        )  # fmt: skip
    return pipe


def folder(pipe, kind: str, path: Path) -> Path:
    """The pipeline as a diffusers folder of its class."""
    pipe.save_pretrained(path)
    index = json.loads((path / "model_index.json").read_text())
    if kind in LAYOUTS:
        index["_class_name"] = LAYOUTS[kind][1]
    if kind == "upscaler":
        index |= {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "max_noise_level": 350}
        (path / "low_res_scheduler").mkdir()
        noise = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
        config = {"_class_name": "DDPMScheduler", "variance_type": "fixed_small", "clip_sample": True, **noise}
        (path / "low_res_scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    if kind == "sd2-depth":
        index["depth_estimator"] = ["transformers", "DPTForDepthEstimation"]
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def original(pipe) -> dict[str, torch.Tensor]:
    """The whole pipeline as one state dict of the original code."""
    xl, alone = hasattr(pipe, "text_encoder_2"), pipe.text_encoder is None
    linear = pipe.unet.config.use_linear_projection
    out = {f"model.diffusion_model.{_unet(name, pipe.unet)}": value for name, value in pipe.unet.state_dict().items()}
    for name, value in pipe.vae.state_dict().items():
        theirs = _vae(name, len(pipe.vae.config.block_out_channels) - 1)
        if ".attn_1." in theirs and value.ndim == 2:
            value = value[..., None, None]
        out[f"first_stage_model.{theirs}"] = value
    clip = {} if alone else {name.removeprefix("text_model."): value
                             for name, value in pipe.text_encoder.state_dict().items()}  # fmt: skip
    if alone:
        out |= _openclip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.0.model.")
    elif xl:
        out |= {f"conditioner.embedders.0.transformer.text_model.{name}": value for name, value in clip.items()}
        out |= _openclip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    elif linear:
        out |= _openclip(pipe.text_encoder.state_dict(), "cond_stage_model.model.", more=True)
    else:
        out |= {f"cond_stage_model.transformer.text_model.{name}": value for name, value in clip.items()}
        out["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    out["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    out["alphas_cumprod"] = torch.cumprod(1 - out["betas"], 0)
    if pipe.unet.config.num_class_embeds:
        out["low_scale_model.betas"] = torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2
    if pipe.unet.config.in_channels == 5:
        out["depth_model.model.pretrained.cls_token"] = torch.zeros(1)
    return {name: value.detach().contiguous().clone() for name, value in out.items()}


def averaged(state: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """The state dict with an averaged U-Net too, whose numbers are `factor` times the raw ones."""
    begin = "model.diffusion_model."
    more = {"model_ema.diffusion_model" + name[len(begin) :].replace(".", ""): value * factor
            for name, value in state.items() if name.startswith(begin)}  # fmt: skip
    return {**state, **more, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


def write(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path, metadata={"format": "pt", **(metadata or {})})
    else:
        torch.save({"state_dict": state, "global_step": 875000}, path)
    return path


def _unet(name: str, unet) -> str:
    for new, old in (
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
        ("class_embedding.", "label_emb."),
        ("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2."),
    ):  # fmt: skip
        name = name.replace(new, old)
    if ".resnets." in name:
        for new, old in (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"),
                         ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
                         ("conv_shortcut", "skip_connection")):  # fmt: skip
            name = name.replace(new, old)
    per = unet.config.layers_per_block
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", name)
    name = name.replace("mid_block.attentions.0", "middle_block.1")

    def down(match) -> str:
        i, what, j = int(match[1]), match[2], int(match[3])
        if what == "downsamplers":
            return f"input_blocks.{(per + 1) * (i + 1)}.0.op"
        return f"input_blocks.{(per + 1) * i + j + 1}.{0 if what == 'resnets' else 1}"

    def up(match) -> str:
        i, what, j = int(match[1]), match[2], int(match[3])
        if what == "upsamplers":
            attends = unet.config.up_block_types[i].startswith("Cross")
            return f"output_blocks.{(per + 1) * i + per}.{2 if attends else 1}.conv"
        return f"output_blocks.{(per + 1) * i + j}.{0 if what == 'resnets' else 1}"

    name = re.sub(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)(?:\.conv(?=\.))?", down, name)
    return re.sub(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)(?:\.conv(?=\.))?", up, name)


def _vae(name: str, last: int) -> str:
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    if ".attn_1." in name:
        for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            name = name.replace(new, old)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def _openclip(state: dict[str, torch.Tensor], prefix: str, more: bool = False) -> dict[str, torch.Tensor]:
    """OpenCLIP's tower; `more`: with the last layer, projection and scale that Stability's 2.x files carry unused."""
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    out, layers = {}, 0
    for name, value in state.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if match:
            layers = max(layers, int(match[1]) + 1)
            inner = match[2]
            if inner.startswith(("self_attn.k", "self_attn.v")):
                continue
            if inner.startswith("self_attn.q"):
                last = inner.rpartition(".")[2]
                three = [state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                out[f"transformer.resblocks.{match[1]}.attn.in_proj_{last}"] = torch.cat(three)
                continue
            for new, old in (("layer_norm", "ln_"), ("self_attn", "attn"), ("fc1", "c_fc"), ("fc2", "c_proj")):
                inner = inner.replace(new, old)
            out[f"transformer.resblocks.{match[1]}.{inner}"] = value
        elif name == "text_projection.weight":
            out["text_projection"] = value.T
        elif name == "embeddings.position_embedding.weight":
            out["positional_embedding"] = value
        else:
            out[name.replace("embeddings.token", "token").replace("final_layer_norm", "ln_final")] = value
    if more:
        for name in [name for name in out if name.startswith(f"transformer.resblocks.{layers - 1}.")]:
            out[name.replace(f"resblocks.{layers - 1}.", f"resblocks.{layers}.")] = out[name] + 1
        width = out["positional_embedding"].shape[1]
        out |= {"text_projection": torch.ones(width, width), "logit_scale": torch.tensor(2.0)}
    return {prefix + name: value for name, value in out.items()}


def holds(folder, modules) -> None:
    """Every part of a folder has the numbers of its torch module ({part: module}), and no others."""
    for part, module in modules.items():
        wanted = weights.of_torch(module)
        assert folder.names(part).keys() == wanted.keys()
        for name, array in wanted.items():
            assert np.array_equal(folder.read(part, name), array), (part, name)


def same(one, other) -> None:
    """Assert that two folders hold the same parts, tensors and numbers."""
    assert one.manifest.parts == other.manifest.parts
    for part in one.manifest.parts:
        assert one.names(part).keys() == other.names(part).keys()
        for name in one.names(part):
            assert np.array_equal(one.read(part, name), other.read(part, name)), (part, name)
