"""Grade the embedded model through the program itself, on captions and pictures that no training saw.

    python tools/scenes/evaluate.py --judge WORK/judge-half.pt [--model scenes] [--backend mlx] [--count 256]

Prints the judge's rate on real pictures (it must be at least .97 right on each attribute, or its word counts for
nothing), on reconstructions and on pictures generated from the captions; the PSNR of reconstructions; and the
wrong-caption table: the denoiser's error with one attribute of the caption wrong over its error with the true caption,
which must exceed 1. Exit code 1 where a gate fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import networks
import pictures as drawn
from pictures import ATTRIBUTES
from sheet import contact_sheet

from mlxldm import backend, store
from mlxldm.generate import Picture, generate, resolve
from mlxldm.job import Job
from mlxldm.schedule import Schedule

ALL_THREE = ("object", "color", "position")
GENERATED = {
    128: dict(time=0.95, terrain=0.90, season=0.90, position=0.85, object=0.80, color=0.75) | {"all three": 0.55},
    256: {**dict.fromkeys(ATTRIBUTES, 0.95), "all three": 0.85},
}
RECONSTRUCTED = {128: 30.0, 256: 33.0}  # dB


def judged(judge: networks.Judge, pixels: np.ndarray) -> np.ndarray:
    """The judge's choices, (n, attributes), for uint8 pictures (n, s, s, 3)."""
    rows = []
    with torch.no_grad():
        for part in np.array_split(pixels, max(1, len(pixels) // 32)):
            x = torch.from_numpy(part.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
            guesses = judge(x)
            rows.append(torch.stack([guesses[name].argmax(1) for name in ATTRIBUTES], 1).numpy())
    return np.concatenate(rows)


def rates(choices: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> dict[str, float]:
    """The share of right choices by attribute, over the rows where it is counted, and of all three of the object's."""
    right = choices == truth
    result = {name: float(right[counted[:, a], a].mean()) for a, name in enumerate(ATTRIBUTES)}
    columns = [list(ATTRIBUTES).index(name) for name in ALL_THREE]
    rows = counted[:, columns].all(1)
    result["all three"] = float(right[rows][:, columns].all(1).mean())
    return result


def reconstruct(model, rgb: np.ndarray) -> np.ndarray:
    """(s, s, 3) uint8 through the autoencoder and back."""
    x = model.array(rgb[None].astype(np.float32) / 127.5 - 1)
    mean, _ = model.encode_image(x)
    return to_uint8(model.numpy(model.decode(mean))[0])


def to_uint8(x: np.ndarray) -> np.ndarray:
    return ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def wrong_captions(model, held: dict, count: int) -> dict[str, float]:
    """By attribute: the denoiser's error with that part of the caption wrong, over its error with the true caption.

    Over captions that name the attribute: where one is silent about the time, a wrong moon still tells night.
    """
    schedule = Schedule(model.manifest.schedule)
    rng = np.random.default_rng(3)
    true, wrong = [], {name: [] for name in (*ATTRIBUTES, "empty")}
    for k in range(count):
        x = model.array(held["pixels"][k : k + 1, ..., :3].astype(np.float32) / 127.5 - 1)
        z = model.numpy(model.encode_image(x)[0])
        noise = rng.standard_normal(z.shape).astype(np.float32)
        t = int(rng.integers(300, 1000))
        a = float(schedule.alphas_cumprod[t])
        target = a**0.5 * noise - (1 - a) ** 0.5 * z

        noisy = model.array((a**0.5 * z + (1 - a) ** 0.5 * noise).astype(np.float32))

        def error(text: str, noisy=noisy, t=t, target=target) -> float:
            guess = model.predict(noisy, float(t), model.encode_text(text, None, *held["pixels"].shape[1:3]))[0]
            return float(np.square(model.numpy(guess) - target).mean())

        true.append(error(str(held["texts"][k])))
        wrong["empty"].append((error(""), true[-1]))
        for a_index, name in enumerate(ATTRIBUTES):
            other = str(held["wrong_texts"][a_index, k])
            named = held["mentions"][k, a_index] < ATTRIBUTES[name]
            if named and other != held["texts"][k]:
                wrong[name].append((error(other), true[-1]))
    return {name: sum(w for w, _ in rows) / sum(t for _, t in rows) for name, rows in wrong.items() if rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sampler")
    parser.add_argument("--sheet", help="write a contact sheet of the first pictures here")
    args = parser.parse_args()

    folder = store.find(args.model, None)
    model = backend.load(folder, args.backend)
    size = folder.manifest.defaults.width
    judge = networks.Judge(ATTRIBUTES)
    judge.load_state_dict(torch.load(args.judge, map_location="cpu", weights_only=True)["judge"])
    judge.float().eval()
    print(model.description, f"{size} px, {args.count} captions", flush=True)
    with tempfile.TemporaryDirectory() as tokenizer:
        for name, data in folder.tokenizer_files(1).items():
            (Path(tokenizer) / name).write_bytes(data)
        held = drawn.held_out(args.count, size, Path(tokenizer), networks.LENGTH)
    failures: list[str] = []

    def gate(what: str, value: float, least: float) -> None:
        if not value >= least:
            failures.append(f"{what} {value:.3f} < {least:.3f}")

    labels = held["labels"].astype(int)
    real = held["pixels"][..., :3]
    on_real = rates(judged(judge, real), labels, labels >= 0)
    print("judge on real pictures   ", table(on_real), flush=True)
    for name in ATTRIBUTES:
        gate(f"judge on real pictures: {name}", on_real[name], 0.97)

    again = np.stack([reconstruct(model, picture) for picture in real])
    decibel = -10 * np.log10(np.square((again.astype(float) - real) / 255).mean((1, 2, 3))).mean()
    on_again = rates(judged(judge, again), labels, labels >= 0)
    print(f"reconstructions {decibel:.2f} dB ", table(on_again), flush=True)
    gate("reconstructions, dB", decibel, RECONSTRUCTED[size])
    for name in ("object", "color"):
        gate(f"reconstructions: {name}", on_again[name], 0.90 * on_real[name])

    ratios = wrong_captions(model, held, args.count)
    print("error with a wrong caption, times that with the true one:", table(ratios), flush=True)
    for name, ratio in ratios.items():
        gate(f"wrong caption: {name}", ratio, 1.0)

    mentions = held["mentions"].astype(int)
    made, started = [], time.perf_counter()
    for k, text in enumerate(held["texts"]):
        job = Job(prompt=str(text), seed=k, steps=args.steps, guidance=args.guidance, sampler=args.sampler)
        made += [e.pixels for e in generate(model, resolve(job, folder.manifest)) if isinstance(e, Picture)]
    seconds = (time.perf_counter() - started) / args.count
    counted = mentions < np.array(list(ATTRIBUTES.values()))
    on_made = rates(judged(judge, np.stack(made)), mentions, counted)
    print(f"generated, {seconds:.2f} s each", table(on_made), flush=True)
    for name, least in GENERATED[size].items():
        gate(f"generated: {name}", on_made[name], least)
    if args.sheet:
        contact_sheet(made[:24], [str(t) for t in held["texts"][:24]], 6).save(args.sheet)
    print("all gates passed" if not failures else "failed: " + "; ".join(failures))
    return 1 if failures else 0


def table(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items())


if __name__ == "__main__":
    sys.exit(main())
