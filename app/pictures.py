"""Pictures as files: `2026-11-21/0007-a-red-lighthouse.png`, written whole or not at all, with the whole job inside.

Also the input pictures of jobs, and the scan that makes the index from the files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from PySide6.QtCore import QBuffer, QByteArray, QIODevice, QObject, Signal
from PySide6.QtGui import QImage, QImageReader, QImageWriter

from mlxldm.job import Job

from .history import Found, History
from .models import EMBEDDED
from .naming import PATTERN, file_name, number_in
from .places import digest

CHUNK = "mlxldm"  # the text in a PNG that has the job and what made it
INPUTS = ("image", "mask", "depth", "semantic")  # fields of a job that name a picture
BATCH = 100  # files of a transaction, for which the window's own may have to wait


def save(folder: Path, png: bytes, job: Job, pattern: str = PATTERN) -> Path:
    """Write a picture to its `place`. OSError if it cannot be; then nothing is left."""
    path = place(folder, job, pattern)
    write(path, png)
    return path


def place(folder: Path, job: Job, pattern: str = PATTERN) -> Path:
    """A name below `folder` that nobody has, in a folder that is there then. OSError if it cannot be."""

    def path(number: int, again: str = "") -> Path:
        name = file_name(pattern, now, number, job.prompt, job.seed or 0, job.model or EMBEDDED)
        return folder / f"{name}{again}.png"

    now = datetime.now()
    below = path(1).parent
    below.mkdir(parents=True, exist_ok=True)
    if "{number}" in pattern:
        first = 1 + max((number_in(pattern, name.removesuffix(".png")) for name in os.listdir(below)), default=0)
        paths = (path(number) for number in itertools.count(first))
    else:
        paths = (path(1, f"-{number}" if number > 1 else "") for number in itertools.count(1))
    return next(one for one in paths if not one.exists())


def without_texts(png: bytes) -> bytes:
    """The same pixels, and nothing of how they were made. Chunks: https://www.w3.org/TR/png-3/#5Chunk-layout"""
    kept, at = [png[:8]], 8
    while at + 8 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def copy_as_jpeg(path: Path) -> None:
    """A JPEG beside a PNG; OSError if it cannot be."""
    data = QByteArray()
    buffer = QBuffer(data)  # and not the file: Qt would not say that the disk was full
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    writer = QImageWriter(buffer, QByteArray(b"jpeg"))
    writer.setQuality(92)
    if not writer.write(QImage(str(path))):
        raise OSError(writer.errorString())
    write(path.with_suffix(".jpg"), bytes(data.data()))


def keep_input(folder: Path, data: bytes) -> Path:
    """An input picture of a job that waits, by what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest(data)[:32]}.png"
    if not path.exists():
        write(path, data)
    return path


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and on the disk when this returns. OSError if it cannot be."""
    part = part_of(path)
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # its name, too
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems cannot, and need not
            os.fsync(folder)
        os.close(folder)


def part_of(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(path.name + ".part")


def read(path: str | Path) -> Found | None:
    """What a picture's file says; None for one that is no picture."""
    reader = QImageReader(str(path))
    size = reader.size()
    try:
        about = os.stat(path)
    except OSError:
        return None
    if not size.isValid():
        return None
    return Found(str(path), about.st_mtime, about.st_size, size.width(), size.height(), record(reader.text(CHUNK)))


def record_of(png: bytes) -> dict[str, Any]:
    """The same from a PNG that is not a file yet."""
    data = QByteArray(png)
    buffer = QBuffer(data)
    buffer.open(QIODevice.OpenModeFlag.ReadOnly)
    return record(QImageReader(buffer, QByteArray(b"png")).text(CHUNK))


def record(text: str) -> dict[str, Any]:
    """{"job": ..., "made_by": ...} from the text in a PNG; empty where it is none of ours."""
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("job"), dict) else {}


class Rescan(QObject):
    """Brings the index to what the folder has, in a thread of its own with a connection of its own."""

    progress = Signal(int, int)  # files seen, files in all
    changed = Signal(object, int)  # all pictures there are now, and how many edits of `history` they surely contain
    finished = Signal()

    def __init__(self, history: History, folder: Path, parent: QObject | None = None):
        super().__init__(parent)
        self._history, self._folder = history, folder
        self._thread: threading.Thread | None = None
        self._again = self._stop = False

    def start(self) -> None:
        """Scan; if one runs already, once more after it."""
        if self._thread is not None and self._thread.is_alive():
            self._again = True
            return
        self._thread = threading.Thread(target=self._run, name="rescan", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop soon; returns when it has."""
        self._stop = True
        if self._thread is not None:
            self._thread.join(10)

    def _run(self) -> None:
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk: the files are there, for the next scan
            self._scan_all()
        if not self._stop:
            self.finished.emit()

    def _scan_all(self) -> None:
        history = History(self._history.path, durable=False)
        try:
            self._again = True
            while self._again and not self._stop:
                self._again = False
                self._scan(history)
        finally:
            history.close()

    def _scan(self, history: History) -> None:
        known, seen, new = history.known(), [], []
        for path, about in _files(self._folder):
            seen.append(path)
            before = known.pop(path, None)
            if before is None or before != (about.st_mtime, about.st_size, False):
                new.append(path)
            if self._stop:
                return
        missing = [path for path, (_, _, gone) in known.items() if not gone and not os.path.exists(path)]
        if missing:
            history.missing(missing)
        for at in range(0, len(new), BATCH):
            if self._stop:
                return
            found = list(filter(None, map(read, new[at : at + BATCH])))  # before the window has to wait to write
            history.add_pictures(found)
            self.progress.emit(min(at + BATCH, len(new)), len(new))
        if missing or new:
            edits = self._history.edits
            self.changed.emit(history.pictures(), edits)


def _files(folder: Path) -> Any:
    """Every PNG below `folder` with its stat, sub-folders too; nothing where the folder is not there."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from _files(Path(entry.path))
                elif entry.name.lower().endswith(".png"):
                    with contextlib.suppress(OSError):
                        yield entry.path, entry.stat()
    except OSError:
        return
