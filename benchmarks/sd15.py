"""A Stable Diffusion 1.5 of random weights on the CPU: MLX, our torch backend and diffusers' defaults, side by side.

    python benchmarks/sd15.py [--size 512] [--steps 4] [--only mlx,torch-bfloat16] [--folder DIR] > sd15.json

Every runner is a process of its own, one after the other, so that peak memory is its own and no two compete. A table
goes to stderr, one JSON object to stdout. Times are seconds, the best of a few: `_s` on the wall, `_cpu_s` of all cores
together. `share` says how much of its cores the process got while it was measured: far below 1 means that the machine
was busy and the times on the wall are too long; then --threads 1 and the ratios of `_cpu_s` still tell the truth.
Needs about 5 GB of disk for the model in both forms (--folder keeps and reuses them) and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNNERS = ("diffusers", "torch-float32", "torch-bfloat16", "mlx")
PROMPT, NEGATIVE, SEED, GUIDANCE = "a red house at dusk", "snow", 1, 7.5


def main() -> int:
    options = _options()
    if options.run:
        print(json.dumps(measure(options)))
        return 0
    if options.folder:
        return compare(options, Path(options.folder))
    with tempfile.TemporaryDirectory(prefix="mlxldm-bench-") as folder:
        return compare(options, Path(folder))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--steps", type=int, default=4, help="steps of the whole picture")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every runner (all cores)")
    parser.add_argument("--only", default=",".join(RUNNERS), help=f"of {','.join(RUNNERS)}")
    parser.add_argument("--folder", help="where the model is kept; made there if it is not")
    parser.add_argument("--tiny", action="store_true", help="the tests' tiny model, to try the script")
    parser.add_argument("--run", choices=RUNNERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, folder: Path) -> int:
    """Make the model if need be, run every runner on it, print."""
    import common

    if not (folder / "mlxldm" / "model.json").exists():
        print(f"writing the model to {folder} ...", file=sys.stderr)
        make = "import sys, sd15; sd15.make(sys.argv[1], sys.argv[2] == 'True')"
        here = Path(__file__).parent
        subprocess.run([sys.executable, "-c", make, folder, str(options.tiny)], check=True, cwd=here)
    results: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for runner in options.only.split(","):
        print(f"{runner} ...", file=sys.stderr)
        command = [sys.executable, __file__, "--run", runner, "--folder", folder]
        command += ["--size", str(options.size), "--steps", str(options.steps), "--threads", str(options.threads)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads)
        if done.returncode:
            failed[runner] = f"exit {done.returncode}"
        else:
            results[runner] = json.loads(done.stdout.splitlines()[-1])
    keys = list(dict.fromkeys(key for result in results.values() for key in result))
    rows = [["", *results], *([key, *(_cell(results[name].get(key)) for name in results)] for key in keys)]
    print(f"\n{_cpu()}, {options.threads} of {os.cpu_count()} cores, {common.versions()}", file=sys.stderr)
    size, steps = options.size, options.steps
    print(f"{size}x{size}, two rows a step (guidance), {steps} steps a picture\n", file=sys.stderr)
    print(common.table(rows), file=sys.stderr)
    ratios = _ratios(results)
    for what, ratio in ratios.items():
        print(f"{what}: {ratio:.2f}", file=sys.stderr)
    for name, why in failed.items():
        print(f"{name} FAILED: {why}", file=sys.stderr)
    facts = {"cpu": _cpu(), "cores": os.cpu_count(), "versions": common.versions(), "size": options.size}
    facts |= {"steps": options.steps, "threads": options.threads}
    facts |= {"results": results, "ratios": ratios, "failed": failed}
    print(json.dumps(facts, indent=1))
    return 1 if failed else 0


def _ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    ratios = {}
    pairs = [("mlx", "torch-float32"), *(("diffusers", name) for name in ("torch-float32", "torch-bfloat16", "mlx"))]
    for key in ("step_s", "step_cpu_s", "decode_s", "decode_cpu_s", "picture_s", "picture_cpu_s"):
        for a, b in pairs:
            if a in results and b in results:
                ratios[f"{key} {a} / {b}"] = results[a][key] / results[b][key]
    for name, result in results.items():
        ratios[f"load peak / model size, {name}"] = result["load_peak_gib"] / result["model_gib"]
    return ratios


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


def make(folder: str, small: bool) -> None:
    """Write the model twice under `folder`: as diffusers does, in float16, and as our converter does."""
    import common
    import torch

    from mlxldm_convert import view, write

    pipe = common.pipeline(small, torch.float16, "cpu")
    pipe.save_pretrained(Path(folder) / "diffusers")
    del pipe
    write(view(Path(folder) / "diffusers"), Path(folder) / "mlxldm", dtype="float16")


# One runner, in its own process.


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load, U-Net step, decode, whole picture of one runner."""
    runner = _Diffusers if options.run == "diffusers" else _Ours
    draw = runner(options)
    before = _resident()
    load_s, _ = _seconds(draw.load)
    result: dict[str, Any] = {
        "what": draw.description,
        "model_gib": draw.weights / 2**30,
        "load_s": load_s,
        "load_peak_gib": (_peak() - before) / 2**30,  # above the interpreter and its libraries
    }
    wall, cpu = time.perf_counter(), time.process_time()
    draw.step()
    result["step_s"], result["step_cpu_s"] = map(min, zip(*(_seconds(draw.step) for _ in range(2)), strict=True))
    draw.decode()
    result["decode_s"], result["decode_cpu_s"] = _seconds(draw.decode)
    result["picture_s"], result["picture_cpu_s"] = _seconds(draw.picture)
    spent = time.process_time() - cpu
    result["share"] = spent / (time.perf_counter() - wall) / options.threads
    result["peak_gib"] = _peak() / 2**30
    return result


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Of one call: on the wall, and of all cores together."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak so far is near enough, imports only grow
        return _peak()


class _Diffusers:
    """diffusers' defaults: float32, NCHW."""

    def __init__(self, options: argparse.Namespace):
        import torch
        from diffusers import StableDiffusionPipeline

        self.options, self.torch, self.kind = options, torch, StableDiffusionPipeline
        self.description = "float32"

    def load(self) -> None:
        torch = self.torch
        folder = Path(self.options.folder) / "diffusers"
        self.pipe = self.kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
        self.pipe.set_progress_bar_config(disable=True)
        parts = (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder)
        self.weights = sum(p.nbytes for part in parts for p in part.parameters())
        side = self.options.size // 8
        self.latent = torch.randn(1, 4, side, side)
        self.context = torch.randn(2, 77, self.pipe.unet.config.cross_attention_dim)

    def step(self) -> None:
        with self.torch.no_grad():
            self.pipe.unet(self.torch.cat([self.latent] * 2), 500, encoder_hidden_states=self.context)

    def decode(self) -> None:
        with self.torch.no_grad():
            self.pipe.vae.decode(self.latent)

    def picture(self) -> None:
        size = self.options.size
        numbers = self.torch.Generator().manual_seed(SEED)
        self.pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=self.options.steps,
            guidance_scale=GUIDANCE,
            width=size,
            height=size,
            generator=numbers,
            output_type="np",
        )


class _Ours:
    """One of our backends on the CPU."""

    def __init__(self, options: argparse.Namespace):
        import numpy as np

        # What load would import, torch and diffusers above all, is not the model's memory: import it first.
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        self.options, self.numpy = options, np
        backend, _, precision = options.run.partition("-")
        if backend == "mlx":
            import mlxldm.on_mlx.model  # noqa: F401
            from mlxldm import on_mlx as package
        else:
            import mlxldm.on_torch.build  # noqa: F401
            from mlxldm import on_torch as package
        self.package, self.precision = package, precision or "float32"

    def load(self) -> None:
        from mlxldm.folder import open_folder

        self.model = self.package.load(open_folder(Path(self.options.folder) / "mlxldm"), "cpu", self.precision)
        self.description, self.weights = self.precision, self.model.memory()["weights"]
        side = self.options.size // 8
        numbers = self.numpy.random.default_rng(0)
        self.latent = self.model.array(numbers.standard_normal((1, side, side, 4), dtype=self.numpy.float32))
        self.cond = None

    def step(self) -> None:
        size = self.options.size
        self.cond = self.cond or self.model.encode_text(PROMPT, NEGATIVE, size, size)
        for row in self.model.predict(self.latent, 500.0, self.cond):
            self.model.numpy(row)

    def decode(self) -> None:
        self.model.numpy(self.model.decode(self.latent))

    def picture(self) -> None:
        from mlxldm.generate import generate
        from mlxldm.job import Job

        size = self.options.size
        job = Job(
            prompt=PROMPT,
            negative=NEGATIVE,
            seed=SEED,
            steps=self.options.steps,
            guidance=GUIDANCE,
            sampler="ddim",
            spacing="model",
            width=size,
            height=size,
        )
        for _ in generate(self.model, job):
            pass


if __name__ == "__main__":
    sys.exit(main())
