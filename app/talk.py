"""A conversation with a worker that draws nothing: what models are here, downloads, conversions, what a machine has.

A process of its own, so that none of this waits for a picture, and none of it ends when drawing crashes.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, QProcess, Signal

from .client import ENDS, KEPT, Broken, Frames, process_in, worker_command

Message = dict[str, Any]
Heard = Callable[[Message, bytes], None]


class Talk(QObject):
    """`start()` it, or just `ask`: what it is asked before it is ready waits until it is."""

    received = Signal(object, object)  # every message, and its payload
    gone = Signal(int, str)  # it went without being closed: its exit code (-1: never started) and what it wrote

    def __init__(self, command: tuple[str, list[str], dict[str, str]] | None = None, parent: QObject | None = None):
        super().__init__(parent)
        self.ready: Message | None = None
        self.log: deque[str] = deque(maxlen=KEPT)
        self._command = command or worker_command()
        self._process: QProcess | None = None
        self._frames = Frames()
        self._waiting: list[bytes] = []
        self._heard: dict[str, tuple[Heard, tuple[str, ...]]] = {}
        self._count = 0

    def start(self) -> None:
        """Start it, if it does not run."""
        if self._process is not None:
            return
        program, arguments, environment = self._command
        process = process_in(environment, self, self._read, self._read_log, self._finished, self._failed)
        self._process, self._frames = process, Frames()
        process.start(program, arguments)

    def send(self, op: str, payload: bytes = b"", **fields: Any) -> str:
        """A message; returns its id, which its answers carry."""
        self._count += 1
        name = str(fields.pop("id", f"t{self._count}"))
        message = {"op": op, "id": name, **fields, **({"bytes": len(payload)} if payload else {})}
        data = json.dumps(message).encode() + b"\n" + payload
        if self.ready is not None and self._process is not None:
            self._process.write(data)
        else:
            self._waiting.append(data)
            self.start()
        return name

    def ask(self, op: str, heard: Heard, until: tuple[str, ...] = ENDS, **fields: Any) -> str:
        """A message whose answers go to `heard`, up to the first of `until` or an error. Its id is returned."""
        name = self.send(op, **fields)
        self._heard[name] = heard, (*until, "error")
        return name

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._heard)

    def cancel(self, name: str) -> None:
        """Stop what has this id."""
        self.send("cancel", id=name)

    def close(self, wait: float = 0.0) -> None:
        """End it: politely, and after `wait` seconds not. Nothing is said of it."""
        process, self._process, self.ready = self._process, None, None
        self._heard.clear()
        self._waiting.clear()
        if process is None:
            return
        if process.state() == QProcess.ProcessState.NotRunning:
            process.deleteLater()
            return
        process.finished.connect(process.deleteLater)
        process.closeWriteChannel()
        if wait <= 0 or not process.waitForFinished(int(wait * 1000)):
            process.kill()
            process.waitForFinished(1000)

    def _read(self) -> None:
        process = self._process
        if process is None:
            return
        try:
            messages = self._frames.feed(bytes(process.readAllStandardOutput().data()))
        except Broken as error:
            self.log.append(str(error))
            process.kill()
            return
        self.log.extend(self._frames.noise)
        self._frames.noise.clear()
        for message, payload in messages:
            self._take(message, payload)

    def _take(self, message: Message, payload: bytes) -> None:
        event, name = message["ev"], message.get("id")
        if event == "ready" and self._process is not None:
            self.ready = message
            for data in self._waiting:
                self._process.write(data)
            self._waiting.clear()
        if isinstance(name, str) and name in self._heard:
            heard, until = self._heard[name]
            if event in until:
                self._heard.pop(name)
            heard(message, payload)
        self.received.emit(message, payload)

    def _read_log(self) -> None:
        if self._process is not None:
            text = bytes(self._process.readAllStandardError().data()).decode("utf-8", "replace")
            self.log.extend(line[:2000] for line in text.splitlines())

    def _failed(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart and self._process is not None:
            self.log.append(f"{self._command[0]}: {self._process.errorString()}")
            self._gone(-1)

    def _finished(self, code: int, status: QProcess.ExitStatus) -> None:
        self._read()
        self._read_log()
        self._gone(code)

    def _gone(self, code: int) -> None:
        process, self._process, self.ready = self._process, None, None
        if process is None:
            return
        process.deleteLater()
        log = "\n".join(self.log)
        heard, self._heard = self._heard, {}
        self._waiting.clear()
        last = self.log[-1] if self.log else f"code {code}"
        for name, (hear, _) in heard.items():
            what = {"kind": "crash", "message": f"The worker ended: {last}", "details": log}
            hear({"ev": "error", "id": name, **what}, b"")
        self.gone.emit(code, log)
