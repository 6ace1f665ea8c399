"""Where the worker runs: here or on another machine through ssh, as a command line; and what is found there.

A remote worker needs no port and no password of ours: ssh asks its agent, and whatever goes wrong there becomes a
sentence with one thing to do.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from .client import PROTOCOL, worker_command
from .talk import Talk

Command = tuple[str, list[str], dict[str, str]]

HOST = re.compile(r"(?!-)[\w.@:-]+", re.ASCII)
SSH = ["-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ConnectTimeout=8"]
FOR_GOOD = 10**8  # seconds: three years
PATIENCE = 40.0  # seconds for a machine to say all about itself: it may have to import torch


@dataclass(frozen=True)
class Place:
    """Where pictures are made: `backend` and `device` of this machine, or a `host`; nothing said is automatic."""

    backend: str = "auto"
    device: str | None = None
    host: str | None = None

    @property
    def key(self) -> str:
        """For the settings: "auto", "torch cuda", "ssh user@host"."""
        return f"ssh {self.host}" if self.host else f"{self.backend} {self.device or ''}".strip()

    @classmethod
    def of(cls, key: str) -> Place:
        """From `key`; what makes no sense is automatic."""
        first, _, rest = key.partition(" ")
        if first == "ssh" and is_host(rest):
            return cls(host=rest)
        if first in ("mlx", "torch") and re.fullmatch(r"(cpu|gpu|mps|cuda(:\d+)?)?", rest):
            return cls(first, rest or None)
        return cls()

    def command(self, keep: int = 10) -> Command:
        """The program that is its worker. `keep`: minutes that a model stays in memory unused; -1: for good."""
        program, arguments, environment = ssh(self.host) if self.host else worker_command()
        more = [] if self.backend == "auto" else ["--backend", self.backend]
        more += ["--device", self.device] if self.device else []
        more += [] if keep == 10 else ["--idle", str(FOR_GOOD if keep < 0 else 60 * keep)]
        return program, [*arguments, *more], environment

    @property
    def preview(self) -> str:
        """How its previews should come: raw within a machine, small between two."""
        return "jpeg" if self.host else "rgb8"


def is_host(text: str) -> bool:
    """Whether ssh may be given this as a host: one word that can be neither an option nor anything of a shell's."""
    return bool(HOST.fullmatch(text))


def ssh(host: str) -> Command:
    """The worker of another machine. Raises ValueError for what is no host."""
    if not is_host(host):
        raise ValueError(f"{host!r} is not a host: user@name, with letters, digits and . _ - :")
    return "ssh", [*SSH, host, "mlxldm", "worker"], {}


# What ssh, or the shell over there, writes when it fails; and what that means. {host} is the machine, {name} without
# the user.
FAILURES = (
    (r"could not resolve hostname|name or service not known|nodename nor servname",
     "No machine is called ‘{name}’. Is the name right, and is it in this network?"),
    (r"host key verification failed|no .* host key is known",
     "ssh does not know ‘{name}’ yet. Run this in a terminal once and answer yes: ssh {host}"),
    (r"remote host identification has changed",
     "‘{name}’ has another host key than the last time. If you know why, remove the old one: ssh-keygen -R {name}"),
    (r"permission denied",
     "‘{name}’ asks for a password or does not know your key. Set one up, in a terminal: ssh-copy-id {host}"),
    (r"connection refused", "‘{name}’ is there but takes no ssh connections. Is remote login switched on there?"),
    (r"timed out|no route to host|host is down|network is unreachable|operation timed out",
     "‘{name}’ does not answer. Is it switched on, and in this network?"),
    (r"command not found|not found|no such file or directory|not recognized as an internal",
     "mlxldm was not found on ‘{name}’. Install it there, so that this works: ssh {host} mlxldm --version"),
    (r"connection (closed|reset)|broken pipe|kex_exchange", "‘{name}’ closed the connection. Try again in a moment."),
)  # fmt: skip


def explained(host: str, log: str, code: int) -> str:
    """A sentence for what ssh said before it failed."""
    name = host.rpartition("@")[2]
    # The key that changed is said in a banner, with the failed verification after it: the first that fits in this order
    order = (FAILURES[2], *FAILURES[:2], *FAILURES[3:])
    for pattern, sentence in order:
        if re.search(pattern, log, re.IGNORECASE):
            return sentence.format(name=name, host=host)
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    ending = f"it said: {last[:200]}" if last else f"ssh ended with code {code}"
    return f"No connection to ‘{name}’: {ending}"


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
        self._talk = Talk(place.command(), self)
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
