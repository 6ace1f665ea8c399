"""Damaged files by the ten thousand: each is refused in a sentence, or read; nothing else may happen.

    python tests/fuzz.py [--count 50000] [--seed 1]        also: make fuzz

Mutants of every container the converter opens, and of whole checkpoints and folders seen as models. One that raises
anything but a UserError of one line, leaks a file, or takes more than two seconds is kept in fuzz-failures/ and named;
the exit code is then 1.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import numpy as np  # noqa: E402
import test_gguf  # noqa: E402
import tiny  # noqa: E402
import torch_files  # noqa: E402

from convert.read import open_file  # noqa: E402
from convert.view import view  # noqa: E402
from mlxldm.errors import UserError  # noqa: E402
from mlxldm.tensors import Tensor, header  # noqa: E402

LIMIT = 2.0  # seconds
Mutants = Iterator[tuple[Path, bytes]]  # a file that was damaged, and its bytes now


def containers(place: Path, rng: random.Random, count: int) -> Mutants:
    """Small safetensors, torch and GGUF files."""
    tensors = {"a": Tensor("F32", (2, 3)), "b.weight": Tensor("BF16", (4,)), "c": Tensor("F8_E4M3", (5, 1))}
    plain = header(tensors, {"format": "pt", "modelspec.title": "x"}, align=8) + bytes(37)
    gguf = test_gguf.good()
    pickles = torch_files.mutants(rng.randrange(1 << 30), count)
    for number, data in enumerate(pickles):
        yield place / "a.ckpt", data
        if number % 2:
            yield place / "a.gguf", test_gguf.mutant(gguf, rng, 1500)
        else:
            yield place / "a.safetensors", test_gguf.mutant(plain, rng, len(plain) - 37)


def folders(place: Path, rng: random.Random) -> Mutants:
    """Every json file of a tiny diffusers folder, in turn."""
    tiny.sd1().save_pretrained(place / "folder")
    look(place / "folder")  # undamaged it is accepted, or nothing below would mean anything
    files = sorted(path for path in (place / "folder").rglob("*.json"))
    while True:
        path = rng.choice(files)
        good = path.read_bytes()
        yield path, test_gguf.mutant(good, rng, len(good))
        path.write_bytes(good)


def read(path: Path) -> None:
    """Open a container and read all of it."""
    file = open_file(path)
    try:
        for name, tensor in file.tensors.items():
            array = file.raw(name)
            assert array.shape == tensor.shape, (name, array.shape, tensor)
    finally:
        file.close()


def look(path: Path) -> None:
    """See a folder as a model."""
    folder = view(next(home for home in (path, *path.parents) if (home / "model_index.json").exists()))
    for part in folder.manifest.parts:
        folder.names(part)


def run(mutants: Mutants, examine: Callable[[Path], None], count: int, failures: Path, rng: random.Random) -> int:
    """Examine `count` mutants; prints what became of them, and returns how many broke the rules."""
    ends: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    before = len(os.listdir("/dev/fd"))
    for number, (path, data) in zip(range(count), mutants, strict=False):
        path.write_bytes(data)
        start = time.process_time()
        problem = ""
        try:
            examine(path)
            ends["accepted"] += 1
        except UserError as error:
            ends["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 2000:
                problem = f"not one sentence: {error}"
        except MemoryError:
            problem = "MemoryError"
        except Exception:
            problem = traceback.format_exc()
        taken = time.process_time() - start
        slowest = max(slowest, taken)
        if taken > LIMIT:
            problem = problem or f"took {taken:.1f} s"
        if number % 500 == 0 and len(os.listdir("/dev/fd")) > before + 8:
            problem = problem or "files were left open"
        if problem:
            ends["WRONG"] += 1
            failures.mkdir(exist_ok=True)
            (failures / f"{examine.__name__}-{number}{path.suffix}").write_bytes(data)
            print(f"{path.name}, mutant {number}: {problem}", file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    said = ", ".join(f"{ends[end]} {end}" for end in ("refused", "accepted", "WRONG"))
    print(f"{examine.__name__:6} {sum(ends.values()):6} mutants: {said}; slowest {slowest:.3f} s, peak {peak:.0f} MB")
    return ends["WRONG"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    np.seterr(all="ignore")  # damaged numbers overflow
    failures = Path("fuzz-failures")
    with tempfile.TemporaryDirectory() as where:
        place = Path(where)
        few = args.count // 20
        wrong = run(containers(place, rng, args.count), read, args.count - few, failures, rng)
        wrong += run(folders(place, rng), look, few, failures, rng)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
