"""A little model folder made with NumPy alone, for tests of what needs any model at all but no torch."""

from __future__ import annotations

import json
from pathlib import Path

import weights

from mlxldm.config import ClipTextConfig, Defaults, ScheduleConfig, UNetConfig, VaeConfig
from mlxldm.folder import Manifest

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def tokenizer_files() -> dict[str, bytes]:
    """CLIP's byte-level format without a single merge: every byte is a token, so prompts are soon too long."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    names = [*letters, *(letter + "</w>" for letter in letters), BOS, EOS]
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    return {
        "vocab.json": json.dumps({name: i for i, name in enumerate(names)}).encode(),
        "merges.txt": b"#version: 0.2\n",
        "special_tokens_map.json": json.dumps(special).encode(),
    }


class Little(weights.ArrayFolder):
    """Stable Diffusion 1.x's shape with a few thousand random weights; 64 × 64 pixels, 4 steps of ddim."""

    def __init__(self):
        text = ClipTextConfig(
            vocab_size=514, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=512, eos_token_id=513, pad_token_id=513,
        )  # fmt: skip
        denoiser = UNetConfig.from_dict({
            "in_channels": 4, "out_channels": 4, "sample_size": 8, "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 16, "norm_num_groups": 4,
        })  # fmt: skip
        vae = VaeConfig.from_dict({
            "block_out_channels": [8, 8, 8, 8], "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 1, "latent_channels": 4,
            "norm_num_groups": 4, "sample_size": 64,
        })  # fmt: skip
        schedule = ScheduleConfig(sampler="ddim", spacing="leading", steps_offset=1, set_alpha_to_one=False)
        defaults = Defaults(width=64, height=64, steps=4, guidance=3.0, sampler="ddim")
        configs = {"text": text, "denoiser": denoiser, "vae": vae}
        manifest = Manifest("little", "sd1", configs, schedule=schedule, defaults=defaults, license="MIT")
        parts = {part: weights.random(config, i) for i, (part, config) in enumerate(manifest.parts.items())}
        super().__init__(parts, manifest)

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        return tokenizer_files()

    def nbytes(self, part: str) -> int:
        return sum(array.nbytes for array in self.parts[part].values())


def write(folder: Path) -> Path:
    """The little model as a folder on disk."""
    from mlxldm_convert.write import write

    write(Little(), folder)
    return folder
