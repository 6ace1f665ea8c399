"""Pictures as files: `2026-11-21/0007-a-red-lighthouse.png`, written whole or not at all, with the whole job inside.

Also the input pictures of jobs, and the scan that makes the index from the files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import threading
from datetime import date
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Signal
from PySide6.QtGui import QImageReader

from .history import Found, History
from .places import digest

CHUNK = "mlxldm"  # the text in a PNG that has the job and what made it
INPUTS = ("image", "mask", "depth", "semantic")  # fields of a job that name a picture
BATCH = 100  # files of a transaction, for which the window's own may have to wait


def save(folder: Path, png: bytes, prompt: str) -> Path:
    """Write a picture into today's folder, under the next number. OSError if it cannot be; then nothing is left."""
    path = place(folder, prompt)
    write(path, png)
    return path


def place(folder: Path, prompt: str) -> Path:
    """The next number in today's folder, which is there then. OSError if it cannot be."""
    day = folder / date.today().isoformat()
    day.mkdir(parents=True, exist_ok=True)
    taken = [int(name[:4]) for name in os.listdir(day) if re.match(r"\d{4}\D", name)]
    number = max(taken, default=0) + 1
    while True:
        path = day / ("-".join(filter(None, (f"{number:04}", slug(prompt)))) + ".png")
        if not path.exists():
            return path
        number += 1


def slug(prompt: str) -> str:
    """The first words of a prompt, as a file's name may have them on every system."""
    words = re.findall(r"\w+", prompt.lower())
    text = ""
    for word in words:
        if len(text) + 1 + len(word) > 40:
            break
        text += f"-{word}" if text else word
    return text or "".join(words)[:40]


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
