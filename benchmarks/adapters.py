"""What it costs to change LoRAs between two jobs, against one step of Stable Diffusion 1.5, in one run.

    python benchmarks/adapters.py [--backend mlx|torch] [--device cpu] [--size 512] [--rank 32] [--kind lora|loha|dora]

A model of random weights and a LoRA for every matrix of its U-Net's transformers and its text encoder, as trainers make
them. The adapter's file is read before the clock starts, as it is for any job but its first. One JSON object on stdout;
a busy machine shows in `cpu_s`, seconds of all cores together, whose ratio then tells more than the wall's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
from adapter_files import matrices

from mlxldm import backend as backends
from mlxldm.adapters import NONE, put_on, worn
from mlxldm.job import Job


def write(path: Path, parts: dict[str, Any], kind: str, rank: int) -> None:
    """A file of random factors for every Linear of transformers and text encoder, in float16."""
    from safetensors.numpy import save_file

    stream, tensors = np.random.RandomState(0), {}
    for part, prefix in (("denoiser", "lora_unet"), ("text", "lora_te")):
        for module, shape in matrices(parts[part]).items():
            if part == "denoiser" and ".attentions." not in module:
                continue
            name, width = f"{prefix}_{module.replace('.', '_')}", math.prod(shape[1:])
            pairs = ("lora_up.weight", "lora_down.weight"), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")
            for up, down in pairs[1:] if kind == "loha" else pairs[:1]:
                tensors[f"{name}.{up}"] = (stream.standard_normal((shape[0], rank)) * 0.01).astype(np.float16)
                tensors[f"{name}.{down}"] = (stream.standard_normal((rank, width)) * 0.01).astype(np.float16)
            if kind == "dora":
                tensors[f"{name}.dora_scale"] = np.ones((shape[0], 1), np.float16)
    save_file(tensors, path)


def timed(call: Callable[[], Any], rounds: int) -> dict[str, float]:
    """The quickest of some calls, on the wall and in processor time."""
    laps = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        laps.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {"s": round(min(lap[0] for lap in laps), 4), "cpu_s": round(min(lap[1] for lap in laps), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--kind", default="lora", choices=["lora", "loha", "dora"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="the tests' tiny model, to see that this runs")
    args = parser.parse_args()

    from mlxldm_convert import adapter

    folder = common.InMemory(common.pipeline(args.small, common.torch.float16, "cpu"))
    model = backends.load(folder, args.backend, args.device, args.precision)
    manifest = folder.manifest
    del folder
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "one.safetensors"
        write(path, dict(manifest.parts), args.kind, args.rank)
        opened = adapter(path, dict(manifest.parts))
        reading = timed(lambda: opened.changes, 1)

        def wear(strength: float) -> Any:
            return worn(Job(loras=(f"{path}:{strength}",)), manifest, lambda *_: opened)

        first = timed(lambda: put_on(model, wear(0.8)), 1)
        strengths = iter(np.linspace(0.1, 0.7, args.rounds))
        change = timed(lambda: put_on(model, wear(next(strengths))), args.rounds)
        strengths = iter(np.linspace(0.1, 0.7, args.rounds))
        weights = timed(lambda: model.weights.put(wear(next(strengths))), args.rounds)
        off = timed(lambda: put_on(model, NONE), 1)

    cond = model.encode_text("a red house", "", args.size, args.size)
    latent = np.random.RandomState(0).standard_normal((1, args.size // 8, args.size // 8, 4))

    def step() -> None:
        model.numpy(model.predict(model.array(latent), 500.0, cond)[0])

    step()
    one = timed(step, args.rounds)
    figures = {"read": reading, "first": first, "change": change, "of which weights": weights, "off": off, "step": one}
    result = {
        "model": model.description, "kind": args.kind, "rank": args.rank, "size": args.size, **figures,
        "change / step": round(change["s"] / one["s"], 4), "in cpu_s": round(change["cpu_s"] / one["cpu_s"], 4),
        "versions": common.versions(),
    }  # fmt: skip
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
