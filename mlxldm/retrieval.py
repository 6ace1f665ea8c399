"""Pictures to look at while drawing: those of a folder that are most like a text, as CLIP sees both.

Retrieval-augmented diffusion (Blattmann et al. 2022, https://arxiv.org/abs/2204.11824): the network attends to the
text's vector and to those of its nearest neighbours, all of length 1. Vectors of pictures are remembered, in a folder
of our own, for as long as the picture and the CLIP stay what they are.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import UserError
from .picture import open_rgb
from .store import cache
from .tensors import shown

if TYPE_CHECKING:
    from .backend import Clip
    from .clip import ClipFolder

log = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that CLIP learned from, and how they spread
SPREAD = (0.26862954, 0.26130258, 0.27577711)
LONGEST = 32  # times as long as wide
BATCH = 8  # pictures that CLIP looks at together


def pictures(folder: str) -> list[Path]:
    """The pictures below a folder, by the ends of their names, sorted; links are not followed into other folders."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder {folder!r}: give one with pictures.")
    found = [
        Path(where) / name
        for where, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(PICTURES) and not name.startswith(".")
    ]
    if not found:
        raise UserError(f"The folder {folder!r} has no pictures in it ({' '.join(PICTURES)}).")
    return sorted(found)


def prepared(path: Path, size: int) -> np.ndarray:
    """A picture as CLIP's vision tower wants it: (size, size, 3) float32, its middle, as transformers prepares it.

    Raises UserError for a file that is none.
    """
    from PIL import Image

    picture = open_rgb(path)
    short = min(picture.size)
    if max(picture.size) > LONGEST * short:
        raise UserError(f"{str(path)!r} is more than {LONGEST} times as long as it is wide.")
    width, height = (size if side == short else int(size * side / short) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    values = np.asarray(picture)[top : top + size, left : left + size].astype(np.float32) * np.float32(1 / 255)
    return (values - np.array(MEAN, np.float32)) / np.array(SPREAD, np.float32)


def vectors(folder: str, clip: Clip, opened: ClipFolder) -> tuple[list[Path], np.ndarray]:
    """The pictures of a folder that can be read, and their vectors (N, width) of length 1.

    A file that is no picture after all is named in a warning and left out; if none is one, that is a UserError.
    """
    paths = pictures(folder)
    memory = cache() / "pictures" / f"{_digest(Path(folder).expanduser().resolve(), opened.digest)}.npz"
    known = _remembered(memory)
    marks = {path: _mark(path) for path in paths}
    found = {path: known[mark] for path, mark in marks.items() if mark in known}
    fresh = [path for path in paths if path not in found]
    try:
        for i in range(0, len(fresh), BATCH):
            read: dict[Path, np.ndarray] = {}
            for path in fresh[i : i + BATCH]:
                try:
                    read[path] = prepared(path, opened.vision.image_size)
                except UserError as error:
                    log.warning("%s It is left out.", error)
            if read:
                found |= dict(zip(read, _unit(clip.pictures(np.stack(list(read.values())))), strict=True))
    finally:  # whoever stops here goes on from here the next time
        if fresh and found:
            _remember(memory, {marks[path]: vector for path, vector in found.items()})
    there = [path for path in paths if path in found]
    if not there:
        raise UserError(f"None of the {len(paths)} pictures in {folder!r} can be read.")
    return there, np.stack([found[path] for path in there])


def nearest(query: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` vectors of `rows` (N, width) that point most as `query` (width,) does, best first."""
    return np.argsort(-(rows @ _unit(query[None])[0]), kind="stable")[:count]


def context(prompt: str, clip: Clip, rows: np.ndarray | None, count: int) -> np.ndarray:
    """What the network attends to, (1, 1 + count, width): the text, and its nearest neighbours among `rows`."""
    text = _unit(clip.text(prompt)[None])
    near = text[:0] if rows is None else rows[nearest(text[0], rows, count)]
    return np.concatenate([text, near])[None].astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


# What is remembered: for each file a digest of its path, size and time, and its vector.


def _mark(path: Path) -> str:
    try:
        about = path.stat()
    except OSError:  # a link to nowhere: said when it is read
        return _digest(path)
    return _digest(path.resolve(), about.st_size, about.st_mtime_ns)


def _digest(*facts: object) -> str:
    return hashlib.sha256("\0".join(map(str, facts)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _remembered(memory: Path) -> dict[str, np.ndarray]:
    """Vectors by their files' marks; what cannot be read is forgotten."""
    try:
        with np.load(memory, allow_pickle=False) as stored:
            marks, rows = stored["marks"], stored["vectors"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    if marks.ndim != 1 or rows.ndim != 2 or len(marks) != len(rows) or rows.dtype != np.float32:
        return {}
    return dict(zip(marks.tolist(), rows, strict=True))


def _remember(memory: Path, found: dict[str, np.ndarray]) -> None:
    part = memory.with_name(f".{memory.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.savez(file, marks=np.array(list(found)), vectors=np.stack(list(found.values())))
        os.replace(part, memory)
    except OSError as error:  # costs time, no more
        log.warning("%s cannot be written: %s.", shown(memory.parent), error.strerror or error)
    finally:
        part.unlink(missing_ok=True)

