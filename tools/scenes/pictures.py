"""The training set: pictures, object masks, labels and captions, drawn by every core into one file on disk.

Picture number i is a function of i alone, so a set that was interrupted is continued, and a larger one begins with the
smaller one. Drawing goes on in the background while training already uses what is there.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import render
import words

from mlxldm.tokenizer import ClipTokenizer

CHUNK = 64
CAPTIONS = 6  # for each picture
HELD_OUT = 10_000_000  # numbers from here on are never trained on

ATTRIBUTES = {name: len(values) for name, values in render.FACTORS.items()}


def labels_of(factors: dict) -> list[int]:
    """The index of each attribute's value; -1 where the picture has none (the colour of no object)."""
    return [
        render.FACTORS[name].index(factors[name]) if factors.get(name) in render.FACTORS[name] else -1
        for name in ATTRIBUTES
    ]


def draw(number: int, size: int) -> tuple[np.ndarray, list[int], dict, tuple[float, float, float]]:
    """Picture `number`: (size, size, 4) uint8 with the object's mask as fourth channel, its labels, its factors, and
    x, y and radius of sun or moon (0 where there is none)."""
    rng = np.random.default_rng([number, 2026])
    factors = render.sample(rng)
    lights: list[tuple[float, float, float]] = []
    pixels, mask = render.render(factors, rng, size, lights)
    mask = np.asarray(mask, np.float32)
    alpha = np.clip(mask * (255 if mask.max() <= 1 else 1), 0, 255).astype(np.uint8)
    return np.concatenate([pixels, alpha[..., None]], -1), labels_of(factors), factors, (*lights, (0.0, 0.0, 0.0))[0]


def tokenizer(folder: Path) -> ClipTokenizer:
    return ClipTokenizer.from_files({f.name: f.read_bytes() for f in Path(folder).iterdir() if f.is_file()})


def caption(
    factors: dict, rng: np.random.Generator, tokens: ClipTokenizer, length: int, **how
) -> tuple[list[int], list[int], str]:
    """A caption's ids; for each attribute the value it mentions (the number of values where it is silent); its text."""
    text, mentioned = words.caption_with_labels(factors, rng, **how)
    mentions = [
        render.FACTORS[name].index(mentioned[name]) if name in mentioned else n for name, n in ATTRIBUTES.items()
    ]
    return tokens.ids(text, length), mentions, text


class Pictures:
    """`count` pictures of `size` pixels under `folder`, appearing in order while `start()`ed workers draw them."""

    def __init__(self, folder: Path, count: int, size: int, length: int, tokenizer_folder: Path):
        self.folder, self.size, self.length, self.tokenizer_folder = Path(folder), size, length, Path(tokenizer_folder)
        self.chunks = (count + CHUNK - 1) // CHUNK
        self.count = self.chunks * CHUNK
        self.folder.mkdir(parents=True, exist_ok=True)
        shapes = {
            "pixels": (np.uint8, (self.count, size, size, 4)),
            "labels": (np.int8, (self.count, len(ATTRIBUTES))),
            "ids": (np.int16, (self.count, CAPTIONS, length)),
            "mentions": (np.int8, (self.count, CAPTIONS, len(ATTRIBUTES))),
            "lights": (np.float32, (self.count, 3)),
            "done": (np.uint8, (self.chunks,)),
        }
        for name, (dtype, shape) in shapes.items():
            path = self.folder / f"{name}.raw"
            size_in_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if not path.exists() or path.stat().st_size != size_in_bytes:
                with open(path, "ab") as file:
                    file.truncate(size_in_bytes)
            setattr(self, name, np.memmap(path, dtype, "r+", shape=shape))

    def start(self, workers: int | None = None) -> None:
        """Draw what is missing in the background, on all cores but one."""
        missing = [c for c in range(self.chunks) if not self.done[c]]
        workers = workers or max(1, (os.cpu_count() or 2) - 1)
        context = multiprocessing.get_context("spawn")
        self.processes = [
            context.Process(target=_draw_chunks, args=(self, missing[w::workers]), daemon=True) for w in range(workers)
        ]
        for process in self.processes:
            process.start()

    def ready(self) -> int:
        """How many pictures, from the first on, are there without a gap."""
        gaps = np.flatnonzero(np.asarray(self.done) == 0)
        return CHUNK * int(gaps[0] if len(gaps) else self.chunks)

    def failed(self) -> bool:
        return any(p.exitcode not in (None, 0) for p in getattr(self, "processes", []))

    def __getstate__(self) -> dict:
        return {
            "folder": self.folder, "count": self.count, "size": self.size, "length": self.length,
            "tokenizer_folder": self.tokenizer_folder,
        }  # fmt: skip

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _draw_chunks(pictures: Pictures, chunks: list[int]) -> None:
    tokens = tokenizer(pictures.tokenizer_folder)
    for chunk in chunks:
        for number in range(chunk * CHUNK, (chunk + 1) * CHUNK):
            pictures.pixels[number], pictures.labels[number], factors, lights = draw(number, pictures.size)
            pictures.lights[number] = lights
            rng = np.random.default_rng([number, 7])
            for k in range(CAPTIONS):
                ids, mentions, _ = caption(factors, rng, tokens, pictures.length)
                pictures.ids[number, k], pictures.mentions[number, k] = ids, mentions
        pictures.done[chunk] = 1


def held_out(count: int, size: int, tokenizer_folder: Path, length: int) -> dict[str, np.ndarray]:
    """Pictures that no training saw, each with one caption from the held-out templates and its wrong ones.

    Returns pixels (n, s, s, 4), labels (n, a), ids (n, length), mentions (n, a), texts (n,), wrong (a, n, length) and
    wrong_texts (a, n).
    """
    with multiprocessing.get_context("spawn").Pool() as pool:
        tasks = [(number, size, tokenizer_folder, length) for number in range(HELD_OUT, HELD_OUT + count)]
        rows = pool.starmap(_held_out_one, tasks, chunksize=16)
    held = {name: np.asarray([row[name] for row in rows]) for name in rows[0]}
    held["wrong"], held["wrong_texts"] = held["wrong"].swapaxes(0, 1), held["wrong_texts"].swapaxes(0, 1)
    return held


def _held_out_one(number: int, size: int, tokenizer_folder: Path, length: int) -> dict:
    tokens = tokenizer(tokenizer_folder)
    pixels, labels, factors, _ = draw(number, size)
    ids, mentions, text = caption(factors, np.random.default_rng([number, 7]), tokens, length, held_out=True)
    others = []
    for name in ATTRIBUTES:
        other = words.wrong(factors, name, np.random.default_rng([number, 8]))
        # The same generator picks the same template and words, so that one attribute is all that differs.
        others.append(caption(other, np.random.default_rng([number, 7]), tokens, length, held_out=True))
    return {
        "pixels": pixels, "labels": labels, "ids": ids, "mentions": mentions, "texts": text,
        "wrong": [o[0] for o in others], "wrong_texts": [o[2] for o in others],
    }  # fmt: skip
