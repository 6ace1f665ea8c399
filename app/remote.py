"""Where pictures are made: on this machine, or on another through ssh; and the command line of its worker."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .client import Command, worker_command
from .ssh import is_host, ssh


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

    @property
    def command(self) -> Command:
        """The program that is its worker."""
        program, arguments, environment = ssh(self.host) if self.host else worker_command()
        more = [] if self.backend == "auto" else ["--backend", self.backend]
        more += ["--device", self.device] if self.device else []
        return program, [*arguments, *more], environment

    @property
    def name(self) -> str:
        """What people read: the machine's name, or what of this one."""
        if self.host:
            return self.host.rpartition("@")[2]
        if self.backend == "auto":
            return "this machine"
        words = {"mlx": "MLX", "torch": "PyTorch"}[self.backend]
        return f"{words} on {self.device.upper() if self.device else 'this machine'}"

    @property
    def preview(self) -> str:
        """How its previews should come: raw within a machine, small between two."""
        return "jpeg" if self.host else "rgb8"
