"""Keeps the panel to the LoRAs and textual inversions that the worker has, and takes files of them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Signal

from .adapters import WORD, Wardrobe
from .client import Client
from .errors import Notice
from .panel import Panel


class Dresser(QObject):
    """Asks the worker again when the model is another one, or what there is may be."""

    notice = Signal(object)  # a Notice for the bar

    def __init__(self, client: Client, panel: Panel, parent: QObject | None = None):
        super().__init__(parent)
        self._client, self._panel = client, panel
        self._model = ""  # of what the panel shows, or will soon
        self._added = ""  # a file that nobody has said anything of yet
        panel.changed.connect(self._follow)
        client.ready.connect(lambda _: self.refresh())

    def _follow(self) -> None:
        if self._panel.current.name != self._model:
            self._panel.loras.expect()
            self.refresh()

    def refresh(self, added: str = "") -> None:
        """What is there now. `added`: a file that was just added; a LoRA gets a row."""
        model = self._panel.current
        self._model, self._added = model.name, added or self._added

        def listed(message: dict[str, Any], payload: bytes) -> None:
            try:
                rows = json.loads(payload) if message["ev"] == "adapters" else []
            except ValueError:
                rows = []
            self._panel.set_adapters(Wardrobe(row for row in rows if isinstance(row, dict)))
            self._take()

        def named(message: dict[str, Any], payload: bytes) -> None:
            with contextlib.suppress(ValueError):
                names = json.loads(payload) if message["ev"] == "wildcards" else []
                self._panel.set_wildcards([name for name in names if isinstance(name, str)])

        self._client.ask("wildcards", named, "wildcards")
        if model.name and model.usable:
            self._client.ask("adapters", listed, "adapters", model=model.name)
        else:
            self._panel.set_adapters(Wardrobe())
            self._take()

    def _take(self) -> None:
        """A file that was added: what it is, now that there is a list with it."""
        path, self._added = self._added, ""
        adapter = self._panel.loras.wardrobe.at(path)
        name = f"‘{Path(path).name}’"
        if not path:
            return
        if adapter is None:
            self.notice.emit(Notice(f"{name} was added.", kind="news"))
        elif not adapter.fits:
            self.notice.emit(Notice(f"{name} was added. It does not fit the model that is chosen: {adapter.why}",
                                    kind="news"))  # fmt: skip
        elif adapter.what == WORD:
            word = adapter.words[0] if adapter.words else adapter.title
            self.notice.emit(Notice(f"{name} was added: write ‘{word}’ in a prompt to use it.", kind="news"))
        else:
            self._panel.loras.add(adapter)
            self.notice.emit(Notice(f"{name} was added to the LoRAs.", kind="news"))
