"""Our torch backend against diffusers' float16 defaults on an NVIDIA GPU: the same random SD 1.5 weights, side by side.

    python benchmarks/sd15_cuda.py [--size 512] [--steps 25] [--limit 120] > sd15_cuda.json
    python benchmarks/sd15_cuda.py --device cpu --tiny        tries the script itself on any machine

A table goes to stderr, one JSON object to stdout. Sections that fail or that no longer fit into --limit seconds are
named in it, the others still stand. Nothing is downloaded and nothing is written.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from common import NEGATIVE, PROMPT, clock, once, psnr

from mlxldm import on_torch
from mlxldm.generate import generate
from mlxldm.job import Job

GUIDANCE, SEED = 7.5, 1


def main() -> int:
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    bench = Bench(options)
    half = torch.float16 if options.device == "cuda" else torch.float32  # a CPU has no fast float16
    pipes = [common.pipeline(options.tiny, half, options.device)]
    folder = common.InMemory(pipes[0])

    bench.section("diffusers", lambda: measure_diffusers(bench, pipes.pop()))
    bench.section("ours", lambda: measure_ours(bench, folder, "auto"))
    bench.section("ours float32", lambda: measure_ours(bench, folder, "float32", reference=True))
    bench.section("ours bfloat16", lambda: measure_ours(bench, folder, "bfloat16"))
    bench.report()
    return 1 if bench.failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the tests' tiny model, to try the script")
    parser.add_argument("--size", type=int, help="pixels a side (512; tiny: 64)")
    parser.add_argument("--steps", type=int, help="steps a picture (25; tiny: 3)")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which no further section starts")
    options = parser.parse_args()
    options.size = options.size or (64 if options.tiny else 512)
    options.steps = options.steps or (3 if options.tiny else 25)
    return options


class Bench:
    """What was measured so far, and how to measure on this device."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.start = options, time.perf_counter()
        self.gpu = options.device == "cuda"
        self.results: dict[str, dict[str, Any]] = {}
        self.pictures: dict[str, np.ndarray] = {}
        self.failed: dict[str, str] = {}

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Let go of everything dropped so far and start counting peak memory anew."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, float]:
        """GiB: what tensors took at most, and what the process had taken from the device at most."""
        if not self.gpu:
            return {}
        return {
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }

    def section(self, name: str, run: Callable[[], tuple[dict[str, Any], np.ndarray]]) -> None:
        if time.perf_counter() - self.start > self.options.limit:
            self.failed[name] = f"not started: {self.options.limit:.0f} s were over"
            return
        self.clear()
        try:
            self.results[name], self.pictures[name] = run()
        except Exception as error:
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {error}"
        self.clear()

    def report(self) -> None:
        names = list(self.results)
        keys = dict.fromkeys(key for result in self.results.values() for key in result if key != "description")
        for name in names:
            self.results[name]["psnr_db"] = {
                other: round(psnr(self.pictures[name], self.pictures[other]), 2) for other in names if other != name
            }
        rows = [["", *names]]
        rows += [[key, *(_cell(self.results[name].get(key)) for name in names)] for key in keys]
        for other in names:
            rows.append([f"PSNR to {other}, dB", *(_cell(self.results[name]["psnr_db"].get(other)) for name in names)])
        device = torch.cuda.get_device_name() if self.gpu else "CPU"
        ratios = self._ratios()
        print(f"\n{device}, {common.versions()}", file=sys.stderr)
        size, steps = self.options.size, self.options.steps
        print(f"{size}x{size}, {steps} steps, guidance {GUIDANCE}\n", file=sys.stderr)
        print(common.table(rows), file=sys.stderr)
        for name, ratio in ratios.items():
            print(f"{name}: {ratio:.2f}", file=sys.stderr)
        for name, why in self.failed.items():
            print(f"{name} FAILED: {why}", file=sys.stderr)
        facts = {
            "device": device,
            "versions": common.versions(),
            "options": vars(self.options),
            "results": self.results,
            "ratios": ratios,
            "failed": self.failed,
            "seconds": round(time.perf_counter() - self.start, 1),
        }
        print(json.dumps(facts, indent=1))

    def _ratios(self) -> dict[str, float]:
        theirs, ours = self.results.get("diffusers"), self.results.get("ours")
        if not theirs or not ours:
            return {}
        speed = {f"diffusers/ours {key}": theirs[key] / ours[key] for key in ("step_ms", "decode_ms", "picture_s")}
        if "peak_gib" in ours:
            speed |= {f"ours/diffusers {key}": ours[key] / theirs[key] for key in ("peak_gib", "peak_reserved_gib")}
        return speed


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def measure_diffusers(bench: Bench, pipe) -> tuple[dict[str, Any], np.ndarray]:
    """diffusers as its users run it: float16, everything else left alone."""
    options, device = bench.options, pipe.device
    side, dtype = options.size // 8, pipe.unet.dtype
    latents = torch.randn(1, 4, side, side, device=device, dtype=dtype)
    context = torch.randn(2, 77, pipe.unet.config.cross_attention_dim, device=device, dtype=dtype)
    timestep = torch.tensor(500, device=device)

    def step() -> None:
        pipe.unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=context, return_dict=False)

    def draw() -> np.ndarray:
        return pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            guidance_scale=GUIDANCE,
            num_inference_steps=options.steps,
            width=options.size,
            height=options.size,
            generator=torch.Generator("cpu").manual_seed(SEED),
            output_type="np",
        ).images[0]

    result: dict[str, Any] = {"dtype": str(dtype)}
    with torch.no_grad():
        result["first_picture_s"], _ = once(draw, bench.wait)
        bench.clear()
        result["picture_s"], picture = min((once(draw, bench.wait) for _ in range(3)), key=lambda lap: lap[0])
        result |= bench.memory()
        result["step_ms"] = 1000 * clock(step, 10, bench.wait)
        result["decode_ms"] = 1000 * clock(lambda: pipe.vae.decode(latents, return_dict=False), 3, bench.wait)
    return result, np.round(picture * 255)


def measure_ours(
    bench: Bench, folder: common.InMemory, precision: str, reference: bool = False
) -> tuple[dict[str, Any], np.ndarray]:
    """mlxldm's torch backend on the same weights; as a `reference`, only its picture counts."""
    options = bench.options
    job = Job(
        prompt=PROMPT,
        negative=NEGATIVE,
        guidance=GUIDANCE,
        seed=SEED,
        steps=options.steps,
        sampler="ddim",
        spacing="model",
        width=options.size,
        height=options.size,
    )

    def draw() -> np.ndarray:
        return next(event.pixels for event in generate(model, job) if hasattr(event, "pixels"))

    seconds, model = once(lambda: on_torch.load(folder, options.device, precision), bench.wait)
    result: dict[str, Any] = {"dtype": str(model.dtype), "load_s": seconds}
    result["first_picture_s"], picture = once(draw, bench.wait)
    if not reference:
        bench.clear()  # as for diffusers: memory is that of every later picture
        result["picture_s"], picture = min((once(draw, bench.wait) for _ in range(3)), key=lambda lap: lap[0])
        result |= bench.memory()
        side = options.size // 8
        latent = model.array(np.random.default_rng(0).standard_normal((1, side, side, 4), dtype=np.float32))
        cond = model.encode_text(PROMPT, NEGATIVE, options.size, options.size)
        result["step_ms"] = 1000 * clock(lambda: model.predict(latent, 500.0, cond), 10, bench.wait)
        result["decode_ms"] = 1000 * clock(lambda: model.decode(latent), 3, bench.wait)
        result["description"] = model.description
    model.unload()
    return result, picture


if __name__ == "__main__":
    sys.exit(main())
