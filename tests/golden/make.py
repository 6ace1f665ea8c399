"""Make tests/golden/modules.npz: what diffusers and transformers compute with weights from a NumPy seed.

    python tests/golden/make.py            (needs torch, diffusers, transformers; about a second)

The MLX side is then held by these numbers on machines that have no torch. The weights are not stored: `weights.random`
draws them again, from NumPy's frozen generator.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from weights import random  # noqa: E402

from mlxldm.config import BertConfig, ClipTextConfig, RescalerConfig, UNetConfig, VaeConfig, VqConfig  # noqa: E402

FILE = Path(__file__).with_name("modules.npz")
EOS = 98
CLIP = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 12, "bos_token_id": 97, "eos_token_id": EOS, "pad_token_id": EOS,
}  # fmt: skip
CROSS, PLAIN, UP_CROSS, UP_PLAIN = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
UNETS = {
    "sd1": {
        "block_out_channels": (40, 80), "down_block_types": (CROSS, PLAIN), "up_block_types": (UP_PLAIN, UP_CROSS),
        "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 2, "cross_attention_dim": 24,
    },
    "sdxl": {
        "block_out_channels": (16, 32, 32), "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": (UP_CROSS, UP_CROSS, UP_PLAIN), "layers_per_block": 2, "norm_num_groups": 8,
        "attention_head_dim": (1, 2, 4), "transformer_layers_per_block": (1, 2, 3), "cross_attention_dim": 24,
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 20,
    },
}  # fmt: skip
UNETS["ssd-1b"] = UNETS["sdxl"] | {
    "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, [2, 2], [3, 1]],
    "reverse_transformer_layers_per_block": [[3, 1, 4], [2, 1, 1], 1],
}  # fmt: skip
VAE = {
    "block_out_channels": (16, 32), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "norm_num_groups": 8,
}  # fmt: skip
# U-Nets that read no text
ALONE = {
    "ldm-uncond": {
        "_class_name": "UNet2DModel", "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 16,
    },
}  # fmt: skip
ALONE["ldm-churches"] = ALONE["ldm-uncond"] | {
    "downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 8, "down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2,
}  # fmt: skip
# Autoencoders that attend to the picture in a level, and one with a table of codes
LOOKING = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
VAES = {"vae": VAE, "vae, attending": VAE | LOOKING}
VQ = VAE | LOOKING | {"latent_channels": 4, "num_vq_embeddings": 40}
BERT = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "head_dim": 24, "max_position_embeddings": 12,
}  # fmt: skip
RESCALER = {"in_channels": 3, "out_channels": 5, "stages": 2, "multiplier": 0.7, "bias": True}


def given() -> dict[str, np.ndarray]:
    """The inputs, NHWC."""
    stream = np.random.RandomState(5)
    ids = stream.randint(0, 96, (2, 12))
    ids[:, 0], ids[0, 6:], ids[1, -1] = 97, EOS, EOS
    shapes = {"latent": (2, 6, 9, 4), "text": (2, 7, 24), "pooled": (2, 20), "pixels": (1, 12, 18, 3)}
    arrays = {name: stream.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["even"] = arrays["latent"][:, :, :8]
    return {"ids": ids, "sizes": np.array([[64, 48, 0, 8, 64, 48]] * 2, np.float32), **arrays}


def _into(module, weights: dict[str, np.ndarray]):
    import torch

    state = {}
    for name, parameter in module.state_dict().items():
        array = weights.get(name, weights.get("text_model." + name))
        assert array is not None, name
        if array.ndim == 4:
            array = array.transpose(0, 3, 1, 2)
        state[name] = torch.from_numpy(np.ascontiguousarray(array)).reshape(parameter.shape)
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def _nchw(array: np.ndarray):
    import torch

    return torch.from_numpy(array).permute(0, 3, 1, 2)


def make() -> dict[str, np.ndarray]:
    """Every stored result by name, NHWC."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
    from torch.nn.functional import conv2d, interpolate
    from transformers import CLIPTextConfig, CLIPTextModel

    inputs, results = given(), {}
    clip = _into(CLIPTextModel(CLIPTextConfig(**CLIP)), random(ClipTextConfig(**CLIP), 1))
    out = clip(torch.from_numpy(inputs["ids"]))
    results["clip hidden"], results["clip pooled"] = out.last_hidden_state.numpy(), out.pooler_output.numpy()
    for kind, settings in UNETS.items():
        unet = _into(UNet2DConditionModel(**settings), random(UNetConfig.from_dict(settings), 2))
        added = {"text_embeds": torch.from_numpy(inputs["pooled"]), "time_ids": torch.from_numpy(inputs["sizes"])}
        text = torch.from_numpy(inputs["text"])
        out = unet(_nchw(inputs["latent"]), 321.0, text, added_cond_kwargs=added).sample
        results[f"unet {kind}"] = out.permute(0, 2, 3, 1).numpy()
    for kind, settings in ALONE.items():
        config = UNetConfig.from_dict(settings)
        unet = _into(UNet2DModel(**config.to_diffusers()), random(config, 2))
        results[f"unet {kind}"] = unet(_nchw(inputs["even"]), 321.0).sample.permute(0, 2, 3, 1).numpy()
    for kind, settings in VAES.items():
        vae = _into(AutoencoderKL(**settings), random(VaeConfig.from_dict(settings), 3))
        results[f"{kind} decode"] = vae.decode(_nchw(inputs["latent"])).sample.permute(0, 2, 3, 1).numpy()
        posterior = vae.encode(_nchw(inputs["pixels"])).latent_dist
        results[f"{kind} mean"] = posterior.mean.permute(0, 2, 3, 1).numpy()
        results[f"{kind} std"] = posterior.std.permute(0, 2, 3, 1).numpy()
    vq = _into(VQModel(**VQ), random(VqConfig.from_dict(VQ), 4))
    results["vq decode"] = vq.decode(_nchw(inputs["latent"])).sample.permute(0, 2, 3, 1).numpy()
    results["vq encode"] = vq.encode(_nchw(inputs["pixels"])).latents.permute(0, 2, 3, 1).numpy()
    bert = LDMBertModel(LDMBertConfig(**BertConfig(**BERT).to_diffusers())).model
    weights = {name.removeprefix("model."): array for name, array in random(BertConfig(**BERT), 5).items()}
    results["bert"] = _into(bert, weights)(torch.from_numpy(inputs["ids"])).last_hidden_state.numpy()
    small, weights = _nchw(inputs["pixels"]), random(RescalerConfig(**RESCALER), 6)
    for _ in range(RESCALER["stages"]):
        small = interpolate(small, scale_factor=RESCALER["multiplier"], mode="bilinear")
    matrix, bias = (torch.from_numpy(weights[f"channel_mapper.{name}"]) for name in ("weight", "bias"))
    results["rescaler"] = conv2d(small, matrix[:, :, None, None], bias).permute(0, 2, 3, 1).numpy()
    return results


if __name__ == "__main__":
    np.savez_compressed(FILE, **make())
    print(f"{FILE}: {FILE.stat().st_size} bytes")
