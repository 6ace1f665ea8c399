"""LoRA files and textual inversions in memory, in everybody's names, written as their trainers write them.

The names here are made by substitution, as trainers make them; the converter looks them up in a table made from the
configs, so that a mistake in one does not hide in the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm.config import ClipTextConfig, UNetConfig
from mlxldm.parameters import parameters
from mlxldm.tensors import Tensor

NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


class Arrays:
    """A file in memory: tensors, or shapes alone where nobody reads them; bfloat16 as ("BF16", bits)."""

    def __init__(self, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None, name="some.safetensors"):
        self.path = Path("models") / name
        self.metadata = metadata or {}
        self.tensors: dict[str, Tensor] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self.read: list[str] = []  # what was asked for
        for key, value in tensors.items():
            if isinstance(value, tuple) and value and isinstance(value[0], str):
                dtype, array = value
            elif isinstance(value, tuple):
                dtype, array = "F16", np.broadcast_to(np.float16(0), value)
            else:
                array = np.asarray(value)
                dtype = NAMES[str(array.dtype)]
            self.tensors[key], self._arrays[key] = Tensor(dtype, array.shape), array

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def raw(self, name: str) -> np.ndarray:
        self.read.append(name)
        return self._arrays[name]

    def close(self) -> None:
        pass


def tiny(kind: str) -> dict[str, Any]:
    """Configs with every block of the family (so that all names are there), a few channels wide."""
    clip = {"vocab_size": 100, "intermediate_size": 24, "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
            "pad_token_id": 1}  # fmt: skip
    if kind in ("sd1", "sd2"):
        return {
            "text": ClipTextConfig(hidden_size=12, num_hidden_layers=12 if kind == "sd1" else 23, **clip),
            "denoiser": UNetConfig.from_dict({
                "block_out_channels": [4, 8, 16, 16], "cross_attention_dim": 12, "norm_num_groups": 2,
                "attention_head_dim": 2, "use_linear_projection": kind == "sd2",
            }),
        }  # fmt: skip
    return {
        "text": ClipTextConfig(hidden_size=12, num_hidden_layers=12, **clip),
        "text_2": ClipTextConfig(hidden_size=8, num_hidden_layers=32, projection_dim=6, **clip),
        "denoiser": UNetConfig.from_dict({
            "block_out_channels": [4, 8, 16],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": 2, "cross_attention_dim": 20,
            "norm_num_groups": 2, "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30,
        }),
    }  # fmt: skip


def matrices(config: Any) -> dict[str, tuple[int, ...]]:
    """The modules that LoRAs are made for, with their weights' shapes in torch's layout (1x1 as matrices)."""
    found = {}
    for name, shape in parameters(config).items():
        if name.endswith(".weight") and len(shape) > 1 and "embeddings." not in name:
            found[name.removesuffix(".weight")] = (shape[0], shape[3], *shape[1:3]) if len(shape) == 4 else shape
    return found


def lora(shape: tuple[int, ...], rank: int, stream: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Random factors (down, up) of a weight of a torch shape."""
    down = stream.standard_normal((rank, *shape[1:])) / math.sqrt(math.prod(shape[1:]))
    up = stream.standard_normal((shape[0], rank, *(1 for _ in shape[2:])))
    return down.astype(np.float32), up.astype(np.float32)


KOHYA_PREFIX = {"denoiser": "lora_unet", "text": "lora_te1", "text_2": "lora_te2"}
DIFFUSERS_PREFIX = {"denoiser": "unet", "text": "text_encoder", "text_2": "text_encoder_2"}


def kohya(part: str, module: str) -> str:
    return f"{KOHYA_PREFIX[part]}_{module.replace('.', '_')}"


def lycoris(part: str, module: str) -> str:
    return f"lycoris_{module.replace('.', '_')}"


def peft(part: str, module: str) -> str:
    return f"{DIFFUSERS_PREFIX[part]}.{module}"


def bare(part: str, module: str) -> str:
    return module


def wrapped(part: str, module: str) -> str:
    return f"base_model.model.{module}"


def comfy(part: str, module: str) -> str:
    begin = {"denoiser": "diffusion_model", "text": "text_encoders.clip_l.transformer",
             "text_2": "text_encoders.clip_g.transformer"}[part]  # fmt: skip
    return f"{begin}.{module}"


ENDINGS = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "peft with a name": (".lora_A.default_0.weight", ".lora_B.default_0.weight"),
    "diffusers": (".lora.down.weight", ".lora.up.weight"),
    "diffusers, text": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}


def processors(part: str, module: str) -> tuple[str, tuple[str, str]]:
    """The names of diffusers' first LoRAs, in which attention was changed by processors of its own."""
    endings = ENDINGS["diffusers"]
    if part == "denoiser" and ".attn" in module:
        module = module.replace(".to_out.0", ".to_out")
        block, _, last = module.rpartition(".")
        return f"unet.{block}.processor.{last}", ("_lora.down.weight", "_lora.up.weight")
    if part.startswith("text") and ".self_attn." in module:
        block, _, last = module.rpartition(".")
        return f"{DIFFUSERS_PREFIX[part]}.{block}.to_{last.removesuffix('_proj')}", (
            "_lora.down.weight", "_lora.up.weight")  # fmt: skip
    return peft(part, module), endings if part == "denoiser" else ENDINGS["diffusers, text"]


def file(
    model: Mapping[str, Any],
    spell: Callable[[str, str], str] = kohya,
    endings: tuple[str, str] = ENDINGS["kohya"],
    rank: int = 2,
    only: Callable[[str, str], bool] = lambda part, module: True,
    numbers: bool = True,
    alpha: float | None = None,
    **more: Any,
) -> Arrays:
    """A LoRA for every module of a model, in one spelling; without `numbers` its shapes alone."""
    stream = np.random.RandomState(7)
    tensors: dict[str, Any] = {}
    for part, config in model.items():
        for module, shape in matrices(config).items():
            if not only(part, module):
                continue
            name, ends = (spell(part, module), endings) if spell is not processors else processors(part, module)
            if numbers:
                down, up = lora(shape, rank, stream)
            else:
                down, up = (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
            tensors[name + ends[0]], tensors[name + ends[1]] = down, up
            if alpha is not None:
                tensors[f"{name}.alpha"] = np.float32(alpha)
    return Arrays(tensors, **more)


def for_the_embedded(path: Path, metadata: dict[str, str] | None = None, strange: int = 0) -> Path:
    """A LoRA for the embedded model's cross attention, with `strange` tensors that have no place in it."""
    from safetensors.numpy import save_file

    from mlxldm import store

    parts = {"denoiser": store.find(None).manifest.parts["denoiser"]}
    made = file(parts, only=lambda part, module: ".attn2." in module)
    tensors = {name: made.raw(name) for name in made.tensors}
    for i in range(strange):
        tensors[f"lora_unet_nowhere_{i}.lora_down.weight"] = np.ones((2, 4), np.float32)
    save_file(tensors, path, metadata)
    return path
