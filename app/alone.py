"""One window for one person: a later start hands its files to the first one, and leaves.

A lock on a file and a folder that is watched, and no socket: Qt's network library is three megabytes of memory, which
nothing else here has a use for.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

from PySide6.QtCore import QFileSystemWatcher, QObject, Signal


def lock(place: Path) -> sqlite3.Connection | None:
    """What makes this start the first; None where another one is. The system takes it back however we end."""
    held = sqlite3.connect(place / "running", timeout=0, isolation_level=None)
    try:
        held.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        held.close()
        if "locked" in str(error):
            return None
        raise
    return held


def hand_over(place: Path, files: list[str]) -> None:
    """Ask the first start to come to the front and to take these."""
    folder = _folder(place)
    part = folder / f"{os.getpid()}.part"
    part.write_text(json.dumps(files), "utf-8")
    os.replace(part, part.with_suffix(".json"))


class Handed(QObject):
    """What later starts hand over: `came` with the files of each."""

    came = Signal(list)

    def __init__(self, place: Path, parent: QObject | None = None):
        super().__init__(parent)
        self._folder = _folder(place)
        for left in self._folder.iterdir():  # for a start that crashed
            left.unlink(missing_ok=True)
        self._watcher = QFileSystemWatcher([str(self._folder)], self)
        self._watcher.directoryChanged.connect(lambda _: self._take())

    def _take(self) -> None:
        for path in sorted(self._folder.glob("*.json")):
            files = []
            with contextlib.suppress(OSError, ValueError):
                files = json.loads(path.read_text("utf-8"))
            path.unlink(missing_ok=True)
            self.came.emit([str(file) for file in files] if isinstance(files, list) else [])


def _folder(place: Path) -> Path:
    folder = place / "handed"
    folder.mkdir(exist_ok=True)
    return folder
