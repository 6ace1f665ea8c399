"""What the benchmarks share: a Stable Diffusion 1.5 of random weights, seen as a model folder, and ways to measure."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny  # noqa: E402

from mlxldm.config import ClipTextConfig, Defaults, ScheduleConfig, UNetConfig, VaeConfig  # noqa: E402
from mlxldm.folder import Manifest, Packed  # noqa: E402
from mlxldm.tensors import Tensor  # noqa: E402

PROMPT, NEGATIVE = "a red house at dusk", "snow"


# The model.


def pipeline(small: bool, dtype: torch.dtype, device: str) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5's architecture with seeded random weights, or the tests' tiny one if `small`."""
    if small:
        pipe = tiny.sd1()
        pipe.scheduler = _scheduler()
    else:
        with torch.device("meta"):
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                sample_size=512,
            )
            clip = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                    eos_token_id=2,
                    projection_dim=768,
                )
            )
        for seed, module in enumerate((unet, vae, clip)):
            _randomize(module, seed, dtype, device)
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=clip,
            tokenizer=tiny.tokenizer(),
            unet=unet,
            scheduler=_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def _randomize(module: torch.nn.Module, seed: int, dtype: torch.dtype, device: str) -> None:
    """Weights that keep the size of what passes through; the same numbers whatever dtype they end up in."""
    module.to(dtype).to_empty(device=device)
    numbers = torch.Generator(device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            gain = 1.0 if "embedding" in name else parameter[0].numel() ** -0.5
            half = torch.randn(parameter.shape, generator=numbers, device=device, dtype=torch.float32) * gain
            parameter.data.copy_(half.half())  # float16 numbers, so that every precision starts from the same model
    for inner in module.modules():
        for name, buffer in inner.named_buffers(recurse=False):
            assert name == "position_ids", name
            setattr(inner, name, torch.arange(buffer.shape[-1], device=device).expand(1, -1))
    module.eval().requires_grad_(False)


class InMemory:
    """A pipeline's weights as a `Folder`, float16 in main memory: what a converted folder holds, without a disk."""

    def __init__(self, pipe: StableDiffusionPipeline):
        self._files = _tokenizer_files()
        parts = {"text": pipe.text_encoder, "denoiser": pipe.unet, "vae": pipe.vae}
        self._parts = {part: _folder_names(module) for part, module in parts.items()}
        ids = {"bos_token_id": pipe.tokenizer.bos_token_id, "eos_token_id": pipe.tokenizer.eos_token_id}
        text = pipe.text_encoder.config.to_dict()
        self.manifest = Manifest(
            name="random",
            family="sd1",
            parts={
                "text": ClipTextConfig.from_transformers(
                    text | {"architectures": ["CLIPTextModel"]}, **ids, pad_token_id=pipe.tokenizer.pad_token_id
                ),
                "denoiser": UNetConfig.from_dict(dict(pipe.unet.config)),
                "vae": VaeConfig.from_dict(dict(pipe.vae.config)),
            },
            schedule=ScheduleConfig.from_diffusers({"_class_name": "DDIMScheduler"} | dict(pipe.scheduler.config)),
            defaults=Defaults(),
        )

    def names(self, part: str) -> dict[str, Tensor]:
        return {name: Tensor("F16", array.shape) for name, array in self._parts[part].items()}

    def read(self, part: str, name: str) -> np.ndarray:
        return self._parts[part][name]

    def raw(self, part: str, name: str) -> np.ndarray:
        return self.read(part, name)

    def groups(self, part: str) -> dict[str, int]:
        return {}

    def packed(self, part: str, name: str) -> Packed:
        raise KeyError(name)

    def hashes(self) -> dict[str, str]:
        return {}

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        return self._files

    def nbytes(self, part: str) -> int:
        return sum(array.nbytes for array in self._parts[part].values())


def _folder_names(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The module's parameters as a model folder stores them: OHWI, 1x1 convolutions as matrices, CLIP's old prefix."""
    prefix = "text_model." if isinstance(module, CLIPTextModel) else ""
    arrays = {}
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor.flatten(1)
        elif tensor.ndim == 4:
            tensor = tensor.permute(0, 2, 3, 1)
        name = name if name.startswith(prefix) else prefix + name
        arrays[name] = tensor.half().contiguous().cpu().numpy()
    return arrays


def _tokenizer_files() -> dict[str, bytes]:
    import json

    vocab, merges = tiny.vocabulary()
    special = {"bos_token": tiny.BOS, "eos_token": tiny.EOS, "unk_token": tiny.EOS, "pad_token": tiny.EOS}
    return {
        "vocab.json": json.dumps(vocab).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
    }


# The measures.


def clock(call: Callable[[], Any], rounds: int, wait: Callable[[], None] = lambda: None) -> float:
    """Seconds a call takes: the best of three batches of `rounds`, after one call that is not counted."""
    call()
    wait()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(rounds):
            call()
        wait()
        best = min(best, (time.perf_counter() - start) / rounds)
    return best


def once(call: Callable[[], Any], wait: Callable[[], None] = lambda: None) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - start, result


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures with numbers from 0 to 255, in dB; 99 if they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


def versions() -> dict[str, str]:
    """Of what was measured."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in ("torch", "diffusers", "transformers", "mlx", "triton", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(rows: list[list[str]]) -> str:
    """Rows of cells as lines; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
