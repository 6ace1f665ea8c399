"""The memory plan against what a process really holds, stage by stage, on random weights of real sizes.

    python benchmarks/memory.py [--models sd15,sdxl] [--runs mlx,torch-float32,torch-bfloat16] [--steps 2]
        [--sizes 512x512,768x512] [--lora RANK] [--refiner] > memory.json

Resident memory, Linux only: its peak is set back at the start of every stage (/proc/self/clear_refs), so that each has
its own. Every run is a process of its own. A table goes to stderr, one JSON object to stdout. Folders are written as
float16 (2.1 GB for Stable Diffusion 1.5, 6.9 GB for XL) and deleted afterwards, unless --folder keeps them; XL in
float32 needs 19 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mlxldm.config import ClipTextConfig, Defaults, ScheduleConfig, UNetConfig, VaeConfig  # noqa: E402
from mlxldm.folder import Manifest, Packed, open_folder  # noqa: E402
from mlxldm.job import Job  # noqa: E402
from mlxldm.parameters import parameters  # noqa: E402
from mlxldm.tensors import Tensor  # noqa: E402

RUNS = ("mlx", "torch-float32", "torch-bfloat16")
SIZES = {"mid": ("512x512",), "sd15": ("512x512",), "sdxl": ("1024x1024",)}


def main() -> int:
    options = _options()
    if options.run:
        print(json.dumps(measure(options)))
        return 0
    if options.folder:
        return compare(options, Path(options.folder))
    with tempfile.TemporaryDirectory(prefix="mlxldm-memory-") as folder:
        return compare(options, Path(folder))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="sd15,sdxl")
    parser.add_argument("--runs", default=",".join(RUNS), help=f"of {','.join(RUNS)}")
    parser.add_argument("--sizes", help="pixels, such as 512x512,768x512; default: the model's own")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--image", action="store_true", help="start from a picture, which is encoded")
    parser.add_argument("--lora", type=int, metavar="RANK", help="with a LoRA for every matrix of the transformers")
    parser.add_argument("--refiner", action="store_true", help="end with a refiner (sdxl and little-xl)")
    parser.add_argument("--folder", help="where the models are kept; made there if they are not")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, folder: Path) -> int:
    """Make the models if need be, run each size on each backend, print."""
    results = []
    for model in options.models.split(","):
        if not (folder / model / "model.json").exists():
            print(f"writing {model} to {folder} ...", file=sys.stderr)
            make(model, folder / model)
        if options.refiner and not (folder / f"{model}-refiner" / "model.json").exists():
            make(f"{model}-refiner", folder / f"{model}-refiner")
        for size in options.sizes.split(",") if options.sizes else SIZES[model]:
            for run in options.runs.split(","):
                print(f"{model} {size} {run} ...", file=sys.stderr)
                command = [sys.executable, __file__, "--run", run, "--folder", str(folder / model), "--sizes", size]
                command += ["--steps", str(options.steps), *(["--image"] if options.image else [])]
                command += ["--lora", str(options.lora)] if options.lora else []
                command += ["--refiner"] if options.refiner else []
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    print(f"FAILED: exit {done.returncode}", file=sys.stderr)
                    continue
                result = {"model": model, "size": size, "run": run, **json.loads(done.stdout.splitlines()[-1])}
                results.append(result)
                print(_lines(result), file=sys.stderr)
    print(json.dumps({"steps": options.steps, "results": results}, indent=1))
    return 0


def _lines(result: dict[str, Any]) -> str:
    lines = [f"{'stage':10}{'planned GB':>12}{'measured GB':>12}{'ratio':>8}{'seconds':>9}"]
    for stage, row in result["stages"].items():
        planned, measured = row["planned"] / 1e9, row["measured"] / 1e9
        lines.append(f"{stage:10}{planned:12.2f}{measured:12.2f}{planned / measured:8.2f}{row['seconds']:9.1f}")
    return "\n".join(lines)


# The models.


def manifest(model: str) -> Manifest:
    """Stable Diffusion 1.5's or XL's, with a small tokenizer's words only; "mid", a third of the former, and
    "little-xl", a fifth of the latter; "sdxl-refiner" and "little-xl-refiner" end what those begin."""
    clip = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407,
            "pad_token_id": 49407}  # fmt: skip
    text = ClipTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **clip)
    vae = {"block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
           "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4,
           "norm_num_groups": 32, "sample_size": 512}  # fmt: skip
    parts: dict[str, Any] = {"text": text, "vae": VaeConfig.from_dict(vae)}
    schedule = ScheduleConfig(sampler="ddim", spacing="leading", steps_offset=1, set_alpha_to_one=False)
    if model == "sd15":
        parts["denoiser"] = UNetConfig.from_dict({"cross_attention_dim": 768, "attention_head_dim": 8})
        return Manifest("sd15", "sd1", parts, schedule=schedule, defaults=Defaults(width=512, height=512, guidance=7.5))
    if model == "mid":
        parts["denoiser"] = UNetConfig.from_dict({
            "block_out_channels": [256, 512, 1024], "attention_head_dim": 8, "cross_attention_dim": 768,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1,
        })  # fmt: skip
        parts["vae"] = VaeConfig.from_dict({**vae, "block_out_channels": [64, 128, 128, 128], "layers_per_block": 1})
        return Manifest("mid", "sd1", parts, schedule=schedule, defaults=Defaults(width=512, height=512, guidance=7.5))
    little, last = model.startswith("little"), model.endswith("refiner")
    parts["text"] = ClipTextConfig(**{**text.to_dict(), "skip": -2})
    parts["text_2"] = ClipTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
        projection_dim=1280, skip=-2, **clip,
    )  # fmt: skip
    unet = {
        "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 2 if little else 10], "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    if little:
        parts["text_2"] = ClipTextConfig(**{**parts["text_2"].to_dict(), "num_hidden_layers": 8})
        unet |= {"layers_per_block": 1}
    if last:
        del parts["text"]
        unet |= {
            "block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24],
            "cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 2560,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": 1 if little else 4,
        }  # fmt: skip
    parts["denoiser"] = UNetConfig.from_dict(unet)
    defaults = Defaults(width=1024, height=1024, guidance=7.5)
    family, task = ("sdxl-refiner", "refine") if last else ("sdxl", "text-to-image")
    zeros = not last
    return Manifest(model, family, parts, task=task, schedule=schedule, defaults=defaults, zeros_for_empty=zeros)


class Made:
    """A folder whose tensors are drawn when they are asked for, float16, of a size that keeps what passes through."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self._numbers = np.random.default_rng(0).standard_normal(1_000_003, dtype=np.float32)

    def names(self, part: str) -> dict[str, Tensor]:
        return {name: Tensor("F16", shape) for name, shape in parameters(self.manifest.parts[part]).items()}

    def read(self, part: str, name: str) -> np.ndarray:
        shape = parameters(self.manifest.parts[part])[name]
        if len(shape) == 1:
            return np.full(shape, "norm" in name and name.endswith("weight"), np.float16)
        gain = 1.0 if "embedding." in name else math.prod(shape[1:]) ** -0.5
        return np.resize((self._numbers * gain).astype(np.float16), shape)

    raw = read

    def groups(self, part: str) -> dict[str, int]:
        return {}

    def packed(self, part: str, name: str) -> Packed:
        raise KeyError(name)

    def hashes(self) -> dict[str, str]:
        return {}

    def nbytes(self, part: str) -> int:
        return sum(2 * math.prod(tensor.shape) for tensor in self.names(part).values())

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        import little

        return little.tokenizer_files()


def make(model: str, folder: Path) -> None:
    """Write the model to `folder`."""
    from mlxldm_convert.write import write

    write(Made(manifest(model)), folder)


# One run, in its own process.


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """A picture of a few steps: planned and measured peak of every stage, and its seconds."""
    from mlxldm import backend, generate
    from mlxldm.adapters import worn
    from mlxldm.generate import resolve
    from mlxldm.plan import Beside, plan

    name, _, precision = options.run.partition("-")
    folder = open_folder(Path(options.folder))
    width, height = map(int, options.sizes.split("x"))
    job = Job(prompt="a red house", negative="snow", seed=1, steps=options.steps, width=width, height=height)
    if options.image:
        from PIL import Image

        path = Path(options.folder).parent / "start.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(path)
        job = job.replace(image=str(path), strength=1.0)
    last = open_folder(Path(f"{options.folder}-refiner")) if options.refiner else None
    job = resolve(job, folder.manifest, last.manifest if last else None)
    choice = backend.choose(name, "cpu")
    machine = backend.machine(choice, precision or "float32")
    adapters = None
    if options.lora:
        from adapters import write

        from mlxldm_convert import adapter

        path = Path(options.folder).parent / f"lora-{options.lora}.safetensors"
        write(path, dict(folder.manifest.parts), "lora", options.lora, 0)
        job = job.replace(loras=(f"{path}:0.8",))
        adapters = worn(job, folder.manifest, adapter)
    planned = plan(folder.manifest, machine, job, None, Beside(last.manifest if last else None, adapters))
    stages = Stages()
    stages.begin("load")
    model = backend.load(folder, choice.backend, choice.device, machine.precision)
    refiner = None if last is None else backend.load(last, choice.backend, choice.device, machine.precision)
    base = stages.rows["load"]["before"]
    for part, method in (("text", "encode_text"), ("encode", "encode_image"), ("denoise", "predict"),
                         ("decode", "decode")):  # fmt: skip
        stages.watch(model, part, method)
    if refiner is not None:
        stages.watch(refiner, "refine", "predict")
    if adapters is not None:
        stages.watch(model.weights, "adapters", "put")
    for _ in generate(model, job, refiner=refiner, adapters=adapters):
        pass
    stages.end()
    plans = {stage.name: stage.bytes for stage in planned.stages}
    rows = {name: {"planned": plans[name], **row} for name, row in stages.rows.items()}
    tiled = {stage.name: stage.tile for stage in planned.stages if stage.tile is not None}
    return {"base": base, "weights": model.memory()["weights"], "stages": rows, "tiles": tiled}


class Stages:
    """Which stage the process is in; peak resident memory and seconds of each."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._now = ""
        self._clock = 0.0

    def begin(self, name: str) -> None:
        """The stage that was is over, `name` begins; nothing happens if it goes on."""
        if name == self._now:
            return
        self.end()
        self._now, self._clock = name, time.perf_counter()
        row = self.rows.setdefault(name, {"measured": 0, "seconds": 0.0, "before": _status("VmRSS")})
        row["measured"] = max(row["measured"], _status("VmRSS"))
        Path("/proc/self/clear_refs").write_text("5")

    def end(self) -> None:
        if self._now:
            row = self.rows[self._now]
            row["measured"] = max(row["measured"], _status("VmHWM"))
            row["seconds"] += time.perf_counter() - self._clock

    def watch(self, model: Any, name: str, method: str) -> None:
        """Calling this method of the model begins the stage."""
        call = getattr(model, method)

        def watched(*args: Any, **more: Any) -> Any:
            self.begin(name)
            return call(*args, **more)

        setattr(model, method, watched)


def _status(key: str) -> int:
    lines: Iterator[str] = iter(Path("/proc/self/status").read_text().splitlines())
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    sys.exit(main())
