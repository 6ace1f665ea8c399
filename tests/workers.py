"""A client of `mlxldm worker`, for tests: a real process, its messages parsed as docs/worker.md says."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

ENDS = ("done", "cancelled", "error")


class Client:
    """`with Client() as worker:` starts one; `worker.first` is its `ready` message."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None, code: str | None = None):
        """`code`: Python to run instead of `mlxldm worker`."""
        start = ["-c", code] if code else ["-m", "mlxldm.cli", "worker", *arguments]
        self.process = subprocess.Popen(
            [sys.executable, *start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.events: queue.Queue = queue.Queue()
        self.errors = b""
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Client:
        self.first = self.next()
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # it may be gone already
            self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            for thread in self._threads:
                thread.join(10)
            self.process.stdout.close()
            self.process.stderr.close()

    def _read(self) -> None:
        out = self.process.stdout
        while line := out.readline():
            event = json.loads(line)
            assert len(line) <= 64 << 10, "a line is too long"
            event["payload"] = out.read(event["bytes"]) if event.get("bytes") else b""
            self.events.put(event)
        self.events.put(None)

    def _read_errors(self) -> None:
        for line in self.process.stderr:
            self.errors += line

    def raw(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, op: str, payload: bytes = b"", **fields) -> None:
        message = {"op": op, **fields, **({"bytes": len(payload)} if payload else {})}
        self.raw(json.dumps(message).encode() + b"\n" + payload)

    def generate(self, name: str, job: dict, **files: Path) -> None:
        data = {key: Path(path).read_bytes() for key, path in files.items()}
        sizes = {key: len(value) for key, value in data.items()}
        self.send("generate", b"".join(data.values()), id=name, job=job, files=sizes)

    def next(self, timeout: float = 60) -> dict | None:
        """The next message; None when the worker has gone."""
        return self.events.get(timeout=timeout)

    def until(self, name: str | None, *kinds: str, timeout: float = 60) -> list[dict]:
        """All messages up to one of `kinds` (an end, if none is said) of that job."""
        seen = []
        while True:
            event = self.next(timeout)
            assert event is not None, f"the worker is gone: {self.errors.decode()[-2000:]}"
            seen.append(event)
            if event.get("id") == name and event["ev"] in (kinds or ENDS):
                return seen
