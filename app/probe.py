"""What a machine has: asked of a worker that is started for this and draws nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from .client import PROTOCOL
from .remote import Place
from .ssh import explained
from .talk import Talk

PATIENCE = 40.0  # seconds for a machine to say all about itself: it may have to import torch


@dataclass(frozen=True)
class Found:
    """What a machine said about itself."""

    device: str  # "Apple M2", "NVIDIA RTX 4090", "CPU"
    backend: str
    memory: int | None
    version: str
    models: int
    backends: tuple[dict[str, Any], ...] = ()
    auto: dict[str, Any] | None = None

    @property
    def line(self) -> str:
        """In one line: "RTX 4090 · 24 GB · mlxldm 0.3 · 12 models"."""
        facts = (self.device, memory(self.memory), f"mlxldm {self.version}", count(self.models))
        return " · ".join(filter(None, facts))


def memory(size: int | None) -> str:
    """Bytes of memory as people count them; nothing for nothing."""
    return f"{size / (1 << 30):.0f} GB" if size else ""


def count(models: int) -> str:
    """A number of models."""
    return "1 model" if models == 1 else f"{models} models"


class Probe(QObject):
    """Asks a machine what it has, with a worker of its own that draws nothing and ends when it has answered."""

    found = Signal(object)  # a Found
    failed = Signal(str)  # a sentence

    def __init__(self, place: Place, parent: QObject | None = None, version: str | None = None):
        """`version`: ours, to say when the other is another; None: do not look."""
        super().__init__(parent)
        self._place, self._version = place, version
        self._ready: dict[str, Any] | None = None
        self._models: int | None = None
        self._backends: dict[str, Any] | None = None
        self._over = False
        self._talk = Talk(place.command, self)
        self._talk.received.connect(self._take)
        self._talk.gone.connect(self._gone)
        self._timer = QTimer(self, singleShot=True, interval=int(PATIENCE * 1000))
        self._timer.timeout.connect(self._late)

    def start(self) -> None:
        """Ask; `found` or `failed` follows, once."""
        self._timer.start()
        self._talk.start()

    def stop(self) -> None:
        """Nobody waits for the answer any more."""
        self._over = True
        self._timer.stop()
        self._talk.close()

    def _take(self, message: dict[str, Any], payload: bytes) -> None:
        event = message["ev"]
        if event == "ready":
            if message.get("protocol") != PROTOCOL:
                self._fail(self._other_version(message))
                return
            self._ready = message
            self._talk.ask("models", self._listed, ("models",))
            self._talk.ask("backends", self._told, ("backends",))
        elif event == "error" and message.get("id") is None:
            self._fail(str(message.get("message") or "It cannot draw, and does not say why."))

    def _listed(self, message: dict[str, Any], payload: bytes) -> None:
        if message.get("kind") != "crash":
            rows = json.loads(payload) if message["ev"] == "models" else []
            self._models = sum(1 for row in rows if row.get("state") == "ready")
            self._end()

    def _told(self, message: dict[str, Any], payload: bytes) -> None:
        if message.get("kind") != "crash":
            self._backends = message if message["ev"] == "backends" else {}  # an older one knows no such question
            self._end()

    def _end(self) -> None:
        ready, models, backends = self._ready, self._models, self._backends
        if self._over or ready is None or models is None or backends is None:
            return
        device = str(ready.get("device_name") or ready.get("device") or "unknown device")
        self.stop()
        self.found.emit(Found(
            {"cpu": "CPU"}.get(device, device), str(ready.get("backend")), ready.get("memory"),
            str(ready.get("version")), models, tuple(backends.get("backends") or ()), backends.get("auto"),
        ))  # fmt: skip

    def _other_version(self, message: dict[str, Any]) -> str:
        where = f"‘{self._place.host}’ has" if self._place.host else "This machine has"
        own = f" {self._version}" if self._version else ""
        return (f"{where} mlxldm {message.get('version')}, which speaks another protocol than this app{own}: install "
                f"the same version on both.")  # fmt: skip

    def _gone(self, code: int, log: str) -> None:
        if self._place.host:
            self._fail(explained(self._place.host, log, code))
        else:
            last = log.strip().splitlines()[-1][:200] if log.strip() else f"code {code}"
            self._fail(f"The worker did not start here: {last}")

    def _late(self) -> None:
        where = f"‘{self._place.host.rpartition('@')[2]}’" if self._place.host else "This machine"
        self._fail(f"{where} did not answer within {PATIENCE:.0f} seconds.")

    def _fail(self, sentence: str) -> None:
        if not self._over:
            self.stop()
            self.failed.emit(sentence)
