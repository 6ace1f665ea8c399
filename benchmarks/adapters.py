"""What it costs to change LoRAs between two jobs, against one step of Stable Diffusion 1.5, in one run.

    python benchmarks/adapters.py --folder MODEL [--runs mlx,torch-float32,torch-bfloat16] [--size 512]
        [--adapters lora:8,lora:32,lora:128,locon:32] [--rounds 3]

MODEL: a model folder of Stable Diffusion 1.5's shapes, such as the one that `benchmarks/sd15.py --folder` writes. The
LoRAs are of random numbers and of the modules that trainers take: every matrix of the U-Net's transformers and of the
text encoder (192 and 72), for "locon" the convolutions and matrices of the residual blocks too.

Every run is a process of its own. A round is: a step; A at 0.8 ("first"); A at 0.5 ("weight"); B ("other"); nothing
("off"). Each figure is the median of its rounds. Files are read before the clock starts, as they are for any job but
their first. The bytes that must be touched and the multiplications are counted beside it: a GPU has to do the same. A
table goes to stderr, one JSON object to stdout; on a busy machine `cpu_s`, seconds of all cores together, tells more
than the wall.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from adapter_files import matrices  # noqa: E402

from mlxldm import backend as backends  # noqa: E402
from mlxldm.adapters import NONE, Adapters, put_on, worn  # noqa: E402
from mlxldm.folder import open_folder  # noqa: E402
from mlxldm.job import Job  # noqa: E402

RUNS = ("mlx", "torch-float32", "torch-bfloat16")
KINDS = ("lora", "locon", "loha", "dora")
COLUMNS = ("weight", "other", "off", "first", "of which answer")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--runs", default=",".join(RUNS), help="mlx or torch, and a precision")
    parser.add_argument("--adapters", default="lora:8,lora:32,lora:128,locon:32", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options)))
        return 0
    results = []
    for run in options.runs.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--run", run]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(_lines(results[-1]), file=sys.stderr)
    print(json.dumps({"size": options.size, "rounds": options.rounds, "results": results}, indent=1))
    return 0


def _lines(result: dict[str, Any]) -> str:
    lines = [f"{result['model']}: change / step, in seconds of the wall and (of all cores)"]
    for name, row in result["adapters"].items():
        ratios = (f"{key} {row[key]['s'] / row['step']['s']:.3f} ({row[key]['cpu_s'] / row['step']['cpu_s']:.3f})"
                  for key in COLUMNS)  # fmt: skip
        lines.append(f"{name:10} step {row['step']['s']:.2f} ({row['step']['cpu_s']:.2f})  {'  '.join(ratios)}")
    return "\n".join(lines)


# One run, in its own process.


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All adapters on one backend."""
    name, _, precision = options.run.partition("-")
    folder = open_folder(Path(options.folder))
    model = backends.load(folder, name, options.device, precision or "auto")
    step = _step(model, options.size)
    step()
    found = {}
    with tempfile.TemporaryDirectory() as root:
        for each in options.adapters.split(","):
            kind, _, rank = each.partition(":")
            paths = [Path(root) / f"{kind}-{rank}-{seed}.safetensors" for seed in range(2)]
            for seed, path in enumerate(paths):
                write(path, dict(folder.manifest.parts), kind, int(rank or 32), seed)
            found[each] = _rounds(model, paths, step, options.rounds)
    return {"run": options.run, "model": model.description, "adapters": found}


def _rounds(model: Any, paths: list[Path], step: Callable[[], None], rounds: int) -> dict[str, Any]:
    from mlxldm_convert import adapter

    opened = {str(path): adapter(path, dict(model.manifest.parts)) for path in paths}
    one, other = opened

    def wear(*texts: str) -> Adapters:
        return worn(Job(loras=texts), model.manifest, lambda name, parts: opened[name])

    reading = timed(lambda: wear(one, other))
    laps: dict[str, list[tuple[float, float]]] = {}

    def lap(name: str, call: Callable[[], Any]) -> None:
        laps.setdefault(name, []).append(timed(call))

    for number in range(rounds):
        lap("step", step)
        strong, weak = wear(f"{one}:{0.8 + number / 1000}"), wear(f"{one}:{0.5 + number / 1000}")
        another = wear(f"{other}:{0.8 + number / 1000}")
        lap("first", lambda strong=strong: put_on(model, strong))
        lap("weight", lambda weak=weak: put_on(model, weak))
        lap("other", lambda another=another: put_on(model, another))
        lap("off", lambda: put_on(model, NONE))
        lap("of which answer", lambda: _answer(model))
    medians = {name: dict(zip(("s", "cpu_s"), (round(statistics.median(each), 4) for each in zip(*of, strict=True)),
                              strict=True)) for name, of in laps.items()}  # fmt: skip
    return {"read": {"s": round(reading[0], 3)}, **medians, "counted": counted(opened[one], model)}


def _answer(model: Any) -> None:
    from mlxldm.adapters import _ask

    _ask(model)


def _step(model: Any, size: int) -> Callable[[], None]:
    cond = model.encode_text("a red house", "", size, size)
    latent = np.random.RandomState(0).standard_normal((1, size // 8, size // 8, 4))

    def step() -> None:
        model.numpy(sum(model.predict(model.array(latent), 500.0, cond)))

    return step


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the wall, and of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def counted(adapter: Any, model: Any) -> dict[str, Any]:
    """What changing a weight has to do at the least: read and write every weight once, and multiply the factors."""
    value = 4 if model.precision == "float32" else 2
    weights = factors = products = 0
    for change in adapter.changes.values():
        if change.form == "low":
            up, down = change.arrays
            weights, factors = weights + len(up) * down.shape[1], factors + up.size + down.size
            products += up.size * down.shape[1]
    return {"modules": len(adapter.changes), "weights": weights, "GB": 2 * value * weights / 1e9,
            "factors_GB": factors * value / 1e9, "GFLOP": 2 * products / 1e9}  # fmt: skip


def write(path: Path, parts: dict[str, Any], kind: str, rank: int, seed: int) -> None:
    """A file of random factors in float16."""
    from safetensors.numpy import save_file

    stream, tensors = np.random.RandomState(seed), {}
    for part, prefix in (("denoiser", "lora_unet"), ("text", "lora_te")):
        for module, shape in matrices(parts[part]).items():
            blocks = (".attentions.", ".resnets.", "samplers.") if kind == "locon" else (".attentions.",)
            if part == "denoiser" and not any(block in module for block in blocks):
                continue
            name, width = f"{prefix}_{module.replace('.', '_')}", math.prod(shape[1:])
            pairs = ("lora_up.weight", "lora_down.weight"), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")
            for up, down in pairs[1:] if kind == "loha" else pairs[:1]:
                inner = shape[1:] if kind == "locon" else (width,)
                ones = (1,) * (len(inner) - 1)
                tensors[f"{name}.{up}"] = _some(stream, shape[0], rank, *ones)
                tensors[f"{name}.{down}"] = _some(stream, rank, *inner)
            if kind == "dora":
                tensors[f"{name}.dora_scale"] = np.ones((shape[0], 1), np.float16)
    save_file(tensors, path)


def _some(stream: np.random.RandomState, *shape: int) -> np.ndarray:
    return (stream.standard_normal(shape) * 0.01).astype(np.float16)


if __name__ == "__main__":
    sys.exit(main())
