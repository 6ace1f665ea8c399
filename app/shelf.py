"""The models of a place as a list for Qt, and what can be done with them: add, look, download, convert, forget.

What is here, and what a file is, are the library's answers; `mlxldm models` and this list always agree.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QObject, QPersistentModelIndex, QSettings, Qt, Signal

from .talk import Talk

Index = QModelIndex | QPersistentModelIndex

FAMILIES = {
    "sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL", "refiner": "XL refiner",
    "ldm": "Latent Diffusion",
}  # fmt: skip
TASKS = {
    "text-to-image": "pictures of words", "inpaint": "inpainting", "edit": "edits as told",
    "depth": "pictures over depth",
    "super-resolution": "makes pictures larger", "unconditional": "pictures of one kind",
    "class-to-image": "pictures of a class", "semantic": "pictures of maps", "layout": "pictures of boxes",
    "retrieval": "pictures like others", "part": "one part of a model",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A row: a model, something that goes into one, a file that is none, or a download or conversion under way."""

    name: str
    state: str = "ready"  # ready, part, LoRA, textual inversion, damaged, not there, no; or running, stopped
    family: str | None = None
    task: str | None = None
    kind: str | None = None
    prediction: str | None = None
    dtypes: str | None = None
    bytes: int | None = None
    path: str = ""
    why: str = ""
    origin: str = "registered"
    folder: str = ""
    fraction: float | None = None  # of what is under way; below 0: nobody knows
    message: str = ""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Item:
        """From a row of the worker's list, whatever of it is there."""
        texts = ("family", "task", "kind", "prediction", "dtypes", "path", "why", "origin", "folder", "state")
        known = {key: str(row[key]) for key in texts if row.get(key)}
        size = row.get("bytes")
        return cls(name=str(row.get("name")), bytes=size if isinstance(size, int) else None, **known)  # type: ignore[arg-type]

    @property
    def title(self) -> str:
        """What people read first."""
        return "Scenes" if self.origin == "embedded" else self.name

    @property
    def about(self) -> str:
        """What it is, in a line."""
        if self.fraction is not None:
            return self.message
        if self.origin == "embedded":
            return "Built in · small pictures of simple scenes, at once"
        if self.state == "not there":
            return "Its disk is not connected, or it was moved"
        if self.state in ("no", "damaged"):
            return "Cannot be used" if self.state == "no" else "Damaged"
        family = FAMILIES.get(self.family or "", self.family or "")
        if self.state in ("LoRA", "textual inversion"):
            return " · ".join(filter(None, (self.state, f"for {family}" if family else "")))
        return " · ".join(filter(None, (family, TASKS.get(self.task or "", ""), self.kind or "")))

    @property
    def wrong(self) -> str:
        """What is wrong with it, in a sentence; empty for nothing."""
        if self.state == "not there":
            what = "folder" if self.folder == self.path or self.origin == "added" else "model"
            return f"This {what} is not there now. Connect its disk, and it is back; if it moved, add it again."
        if self.state == "damaged":
            return self.why or "Its files are damaged: download or convert it again."
        return self.why if self.state in ("no", "stopped") else ""

    @property
    def size(self) -> str:
        """On disk."""
        return gigabytes(self.bytes)

    @property
    def place(self) -> str:
        """Where it is, with ~ for home."""
        home = os.path.expanduser("~")
        return "~" + self.path[len(home) :] if self.path.startswith(home + os.sep) else self.path

    @property
    def usable(self) -> bool:
        """Whether it draws now."""
        return self.state == "ready"

    @property
    def forgettable(self) -> str:
        """What `forget` has to be told: a name, or the added folder; empty where there is nothing to forget."""
        if self.fraction is not None or self.origin in ("embedded", "own"):
            return ""
        return (self.folder or self.path) if self.origin == "added" else self.name


def _fits(item: Item, words: list[str]) -> bool:
    text = f"{item.name} {item.about} {item.path}".lower()
    return all(word in text for word in words)


def gigabytes(size: int | None) -> str:
    """Bytes on disk for people."""
    if not size:
        return ""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.1f} {unit}" if size < 10 * one else f"{size / one:.0f} {unit}"
    return f"{size} bytes"


ORDER = {
    "running": 0, "stopped": 1, "ready": 2, "part": 3, "LoRA": 4, "textual inversion": 5, "damaged": 6, "not there": 7,
}  # fmt: skip


class Role(IntEnum):
    """What the list can be asked for beside Qt's own."""

    ITEM = Qt.ItemDataRole.UserRole


class Shelf(QAbstractListModel):
    """The rows, those under way first, then what can be used, then what cannot; `search` narrows them."""

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self.models: list[Item] = []
        self.tasks: dict[str, Item] = {}
        self._search = ""
        self._shown: list[Item] = []

    def show_models(self, rows: list[dict[str, Any]]) -> None:
        """Another list of models."""
        self.models = [Item.of(row) for row in rows]
        self._sort()

    def show_task(self, name: str, item: Item | None) -> None:
        """Something under way, or None when it is over."""
        before = self.tasks.get(name)
        if item is None:
            self.tasks.pop(name, None)
        else:
            self.tasks[name] = item
        if item is not None and before in self._shown:
            row = self._shown.index(before)
            self._shown[row] = item
            self.dataChanged.emit(self.index(row), self.index(row))
        else:
            self._sort()

    def search(self, text: str) -> None:
        """Only rows with all these words in them."""
        self._search = text
        self._sort()

    def at(self, index: Index) -> Item | None:
        """The row's item."""
        return self._shown[index.row()] if index.isValid() and index.row() < len(self._shown) else None

    def row_of(self, name: str) -> int:
        """The row of a name, or -1."""
        return next((row for row, item in enumerate(self._shown) if item.name == name), -1)

    def _sort(self) -> None:
        words = self._search.lower().split()
        items = [*self.tasks.values(), *self.models]
        found = [item for item in items if _fits(item, words)]
        found.sort(key=lambda item: (ORDER.get(item.state, 8), item.origin != "embedded", item.title.lower()))
        if found != self._shown:
            self.beginResetModel()
            self._shown = found
            self.endResetModel()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008, N802
        """How many are shown."""
        return 0 if parent.isValid() else len(self._shown)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """An item, its texts, and what a screen reader says of it."""
        item = self.at(index)
        if item is None:
            return None
        if role == Role.ITEM:
            return item
        if role == Qt.ItemDataRole.DisplayRole:
            return item.title
        if role == Qt.ItemDataRole.ToolTipRole:
            return "\n".join(filter(None, (item.place, item.wrong)))
        if role == Qt.ItemDataRole.AccessibleTextRole:
            done = f"{item.fraction:.0%}" if item.fraction is not None and item.fraction >= 0 else ""
            return ", ".join(filter(None, (item.title, done, item.about, item.size, item.wrong)))
        return None


class Keeper(QObject):
    """Keeps a shelf as the models of a place are, and does what is asked with them."""

    listed = Signal()  # the list is new
    refused = Signal(str)  # something did not work: a sentence
    changed = Signal()  # models came or went: others should list them again
    looked = Signal(str, object)  # a path, and what it is
    written = Signal(str, object)  # a conversion's name and its `converted` message
    tasks_changed = Signal()  # what is under way, or how far it is
    arrived = Signal(str, bool)  # what was downloaded, or converted (True)

    def __init__(self, command: tuple[str, list[str], dict[str, str]] | None = None, settings: QSettings | None = None,
                 parent: QObject | None = None, key: str = "downloads"):  # fmt: skip
        """`settings` remember downloads that did not end, under `key`."""
        super().__init__(parent)
        self.shelf = Shelf(self)
        self._settings, self._key = settings, key
        self._talk = Talk(command, self)
        self._talk.gone.connect(self._gone)
        for name in self._unfinished():
            self.shelf.show_task(name, _cut(name))

    def close(self) -> None:
        """End its worker; a download goes on the next time."""
        self._talk.close()

    def rest(self) -> None:
        """Nobody looks: its worker ends, if it has nothing to do. The next question starts another."""
        if not self._talk.busy:
            self._talk.close()

    def refresh(self) -> None:
        """List again what is here."""

        def listed(message: dict[str, Any], payload: bytes) -> None:
            if message["ev"] == "models":
                rows = json.loads(payload)
                self.shelf.show_models([row for row in rows if isinstance(row, dict)])
                self.listed.emit()
            else:
                self.refused.emit(str(message.get("message")))

        self._talk.ask("models", listed, ("models",))

    def look(self, path: str) -> None:
        """Say what a file is; `looked` follows."""

        def heard(message: dict[str, Any], payload: bytes) -> None:
            if message["ev"] == "looked":
                self.looked.emit(path, message.get("says") or {})
            else:
                self.refused.emit(str(message.get("message")))

        self._talk.ask("look", heard, ("looked",), path=path)

    def add(self, path: str) -> None:
        """A checkpoint or a folder of them, in place. A file that cannot be used is not added, and it is said why."""

        def looked(message: dict[str, Any], payload: bytes) -> None:
            says = message.get("says") or {}
            if message["ev"] == "looked" and says.get("state") == "no":
                self.refused.emit(f"‘{Path(path).name}’ was not added. {says.get('why') or ''}".strip())
            elif message["ev"] == "looked":
                self._do("add", path=path)
            else:
                self.refused.emit(str(message.get("message")))

        if Path(path).is_dir():
            self._do("add", path=path)
        else:
            self._talk.ask("look", looked, ("looked",), path=path)

    def forget(self, item: Item) -> None:
        """List it no more; its files stay. An unfinished download is asked for no more."""
        if item.state == "stopped":
            self._remember(item.name, False)
            self.shelf.show_task(item.name, None)
        elif item.forgettable:
            self._do("forget", what=item.forgettable)

    def pull(self, what: str) -> None:
        """Download a model of the hub, going on where it stopped."""
        what = what.strip()
        if what and self.shelf.tasks.get(what, Item("")).state != "running":
            self._remember(what, True)
            self._run(what, Item(what, "running", fraction=-1.0, message="Asking the hub…"), "pull", model=what)

    def convert(self, source: str, target: str, bits: int | None, dtype: str | None) -> None:
        """Write a model folder among the models here; `written` follows, with what became of it."""
        more = {key: value for key, value in (("quantize", bits), ("dtype", dtype)) if value is not None}
        item = Item(target, "running", fraction=-1.0, message=f"Converting {source}…")
        self._run(target, item, "convert", source=source, target=target, **more)

    @property
    def running(self) -> list[Item]:
        """What is under way."""
        return [item for item in self.shelf.tasks.values() if item.state == "running"]

    def _show(self, name: str, item: Item | None) -> None:
        self.shelf.show_task(name, item)
        self.tasks_changed.emit()

    def stop(self, name: str) -> None:
        """Stop what is under way."""
        if name in self.shelf.tasks:
            self._talk.cancel(f"task {name}")

    def _run(self, name: str, item: Item, op: str, **fields: Any) -> None:
        self._show(name, item)

        def heard(message: dict[str, Any], payload: bytes) -> None:
            event = message["ev"]
            if event == "progress":
                said = {"pull": "Downloading", "convert": "Converting"}[op]
                fraction = float(message.get("fraction") or 0.0)
                text = " · ".join(filter(None, (f"{said} {fraction:.0%}", str(message.get("message") or ""))))
                self._show(name, replace(item, fraction=fraction, message=text))
            elif event == "converted":
                self.written.emit(name, message)
            elif event == "done":
                self._remember(name, False)
                self._show(name, None)
                self.changed.emit()
                self.arrived.emit(name, op == "convert")
                self.refresh()
            elif op == "pull" and (event == "cancelled" or message.get("kind") == "crash"):
                self._show(name, _cut(name))
            else:
                self._show(name, _cut(name, str(message.get("message"))) if op == "pull" else None)
                if event == "error":
                    self.refused.emit(str(message.get("message")))

        self._talk.ask(op, heard, id=f"task {name}", **fields)

    def _do(self, op: str, **fields: Any) -> None:
        def heard(message: dict[str, Any], payload: bytes) -> None:
            if message["ev"] == "done":
                self.changed.emit()
                self.refresh()
            elif message["ev"] == "error":
                self.refused.emit(str(message.get("message")))

        self._talk.ask(op, heard, **fields)

    def _gone(self, code: int, log: str) -> None:
        self._talk.log.clear()

    def _unfinished(self) -> list[str]:
        try:
            names = json.loads(str(self._settings.value(self._key, "[]"))) if self._settings is not None else []
        except ValueError:
            names = []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def _remember(self, name: str, unfinished: bool) -> None:
        if self._settings is not None:
            others = [one for one in self._unfinished() if one != name]
            self._settings.setValue(self._key, json.dumps([*others, name] if unfinished else others))


def _cut(name: str, why: str = "") -> Item:
    return Item(name, "stopped", fraction=0.0, message="The download is not complete. What arrived is kept.", why=why)
