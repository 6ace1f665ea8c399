"""The worker's process: started, spoken with as docs/worker.md says, watched, and started again when it dies.

Every job that was handed to it ends once here, whatever happens over there: with the worker's own word, or with ours
when the process is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QCoreApplication, QObject, QProcess, QProcessEnvironment, QTimer, Signal

from .ssh import explained, line_broke

Message = dict[str, Any]
Answer = Callable[[Message, bytes], None]
Command = tuple[str, list[str], dict[str, str]]

PROTOCOL = 1
LINE = 64 << 10  # bytes of a message's line, the most
PAYLOAD = 1 << 30  # bytes after it, the most
ENDS = ("done", "cancelled", "error")
KEPT = 200  # lines of stderr

BEAT = 5.0  # seconds between two pings, while nothing runs
PATIENCE = 15.0  # seconds without an answer to them
SLOW = 60.0  # seconds without a word while something runs, or ten of its usual steps if those are longer
CRASHES, WITHIN = 3, 120.0  # so many crashes in so many seconds, and it stays down
AGAIN = (5.0, 10.0, 20.0, 40.0, 60.0)  # seconds until another machine is tried again, after a line that broke
GOODBYE = 3000  # milliseconds for one that is replaced to leave by itself


def worker_command(module: str = "mlxldm.worker") -> Command:
    """Program, arguments and environment of a worker: from a checkout or pip, in a Briefcase bundle, or PyInstaller's.

    A frozen app's `sys.executable` is the app itself: asked for a module it would open a second window.
    """
    if getattr(sys, "frozen", False):
        return QCoreApplication.applicationFilePath(), ["--worker"], {}
    if os.environ.get("BRIEFCASE_MAIN_MODULE") or _in_a_bundle():
        return QCoreApplication.applicationFilePath(), ["--worker"], {"BRIEFCASE_MAIN_MODULE": module}
    return sys.executable, ["-m", "mlxldm.cli", "worker"], {}


def _in_a_bundle() -> bool:
    """Whether a Briefcase stub runs us: there, the program is not Python, and packages lie in `app_packages`."""
    return any(path.rstrip("/\\").endswith("app_packages") for path in sys.path)


def process_in(
    environment: dict[str, str],
    parent: QObject,
    read: Callable[[], None],
    read_log: Callable[[], None],
    finished: Callable[..., None],
    failed: Callable[..., None],
) -> QProcess:
    """A process that is not started yet, in our environment with this over it; the others hear what comes of it."""
    process = QProcess(parent)
    process.readyReadStandardOutput.connect(read)
    process.readyReadStandardError.connect(read_log)
    process.finished.connect(finished)
    process.errorOccurred.connect(failed)
    whole = QProcessEnvironment.systemEnvironment()
    for key, value in {"TOKENIZERS_PARALLELISM": "false", **environment}.items():
        whole.insert(key, value)
    process.setProcessEnvironment(whole)
    return process


class Broken(Exception):
    """What came is no message, and nobody knows where the next one begins."""


class Frames:
    """Bytes in pieces of any size in; messages with their payloads out.

    Before the first message, lines that are none are let through as `noise` (ssh and shells greet); after it they are
    `Broken`.
    """

    def __init__(self) -> None:
        self.noise: list[str] = []
        self._bytes = bytearray()
        self._searched = 0
        self._message: Message | None = None  # whose payload is still to come
        self._begun = False

    def feed(self, data: bytes) -> list[tuple[Message, bytes]]:
        """The messages that are whole with these bytes."""
        self._bytes += data
        whole: list[tuple[Message, bytes]] = []
        while True:
            if self._message is None:
                end = self._bytes.find(b"\n", self._searched)
                if max(end, len(self._bytes) - 1 if end < 0 else 0) >= LINE:
                    raise Broken(f"a line of more than {LINE >> 10} KiB")
                if end < 0:
                    self._searched = len(self._bytes)
                    return whole
                line = bytes(self._bytes[:end])
                del self._bytes[: end + 1]
                self._searched = 0
                self._message = self._parsed(line)
            else:
                count = self._message.get("bytes", 0)
                if len(self._bytes) < count:
                    return whole
                whole.append((self._message, bytes(self._bytes[:count])))
                del self._bytes[:count]
                self._message = None

    def _parsed(self, line: bytes) -> Message | None:
        try:
            message = json.loads(line)
            if not isinstance(message, dict) or not isinstance(message.get("ev"), str):
                raise ValueError("no ev")
            count = message.get("bytes", 0)
            if type(count) is not int or not 0 <= count <= PAYLOAD:
                raise ValueError(f"bytes: {count!r}")
        except (ValueError, RecursionError) as error:
            text = line[:200].decode("utf-8", "replace")
            if self._begun:
                raise Broken(f"{text!r} ({error})") from None
            self.noise.append(text)
            return None
        self._begun = True
        return message


@dataclass(frozen=True)
class Crash:
    """How a worker went without being asked to."""

    text: str  # the end of a sentence: "it used up the memory"
    details: str
    kind: str  # "memory", "crash", "protocol", "start", "refused", or "line": no connection to its machine


class Client(QObject):
    """One worker. `start()` it; it says `ready`, then `said` for whatever jobs say, and `ended` once for each job."""

    ready = Signal(object)  # the ready message
    said = Signal(object, object)  # a job's message that is no end, and its payload
    ended = Signal(str, object)  # a job's id and its end: done, cancelled or error; kind "crash" if the worker went
    crashed = Signal(object)  # a Crash; another worker is on its way
    lost = Signal(object, float)  # a Crash: the line to its machine broke; seconds until it is tried again
    replaced = Signal()  # it left for another one, which is on its way
    down = Signal(object)  # a Crash; no other comes until `start()`
    quiet = Signal(bool)  # it does not answer (True); it does again (False)

    def __init__(self, command: Command | None = None, parent: QObject | None = None, host: str | None = None):
        """`host`: the machine that `command` reaches through ssh, if it is another."""
        super().__init__(parent)
        self.greeting: Message | None = None  # what `ready` said, while it runs
        self.log: deque[str] = deque(maxlen=KEPT)
        self._command, self._host = command or worker_command(), host
        self._next: tuple[Command, str | None] | None = None  # who takes over when nothing runs
        self._met = False  # whether this machine was ever reached
        self._tries = 0
        self._hello: dict[str, Any] = {}
        self._again = QTimer(self, singleShot=True)
        self._again.timeout.connect(self.start)
        self._process: QProcess | None = None
        self._frames = Frames()
        self._running: dict[str, str] = {}  # jobs that have not ended, by what they are
        self._answers: dict[str, tuple[str, Answer]] = {}  # questions that wait, with their keys
        self._crashes: deque[float] = deque(maxlen=CRASHES)
        self._count = 0
        self._refused: str | None = None  # why there is no backend
        self._forced = self._leaving = self._is_quiet = False
        self._broken: str | None = None
        self._heard = time.monotonic()
        self._slowest = 0.0  # seconds of a usual step
        self._beat = QTimer(self, interval=int(BEAT * 1000))
        self._beat.timeout.connect(self._check)

    # Its life.

    @property
    def pid(self) -> int:
        """The process, or 0."""
        return self._process.processId() if self._process else 0

    def start(self) -> None:
        """Start a worker, if there is none."""
        self._again.stop()
        if self._process is not None:
            return
        program, arguments, environment = self._command
        process = process_in(environment, self, self._read, self._read_log, self._finished, self._failed)
        self._process, self._frames, self._broken, self._refused = process, Frames(), None, None
        self._forced = self._leaving = False
        self.log.clear()
        self._heard = time.monotonic()
        process.start(program, arguments)
        self._beat.start()

    def use(self, command: Command, host: str | None = None) -> None:
        """From now on another worker: at once, or when the job that runs has ended. It is not handed another one."""
        self._next = command, host
        if not self._running:
            self._replace()

    @property
    def host(self) -> str | None:
        """The other machine that it runs on, if it does."""
        return self._host

    @property
    def leaving(self) -> bool:
        """Whether another worker waits for the job that runs."""
        return self._next is not None

    def _replace(self) -> None:
        assert self._next is not None
        (self._command, self._host), self._next = self._next, None
        process, self._process, self.greeting = self._process, None, None
        self._met, self._tries = False, 0
        self._answers.clear()
        self._crashes.clear()
        self.log.clear()
        if self._is_quiet:
            self._is_quiet = False
            self.quiet.emit(False)
        if process is not None:
            for signal_, slot in ((process.readyReadStandardOutput, self._read), (process.finished, self._finished),
                                  (process.readyReadStandardError, self._read_log),
                                  (process.errorOccurred, self._failed)):  # fmt: skip
                signal_.disconnect(slot)
            process.finished.connect(process.deleteLater)
            process.closeWriteChannel()
            QTimer.singleShot(GOODBYE, process, process.kill)
            if process.state() == QProcess.ProcessState.NotRunning:
                process.deleteLater()
        self.replaced.emit()
        self.start()

    def kill(self) -> None:
        """End it now; running jobs end as cancelled, and another worker starts."""
        if self._process is not None:
            self._forced = True
            self._process.kill()

    def close(self, wait: float = 3.0) -> None:
        """End it for good: politely, and after `wait` seconds not."""
        self._leaving = True
        self._beat.stop()
        self._again.stop()
        process = self._process
        if process is not None and process.state() != QProcess.ProcessState.NotRunning:
            process.closeWriteChannel()
            if not process.waitForFinished(int(wait * 1000)):
                process.kill()
                process.waitForFinished(2000)

    # To it.

    def generate(self, name: str, job: dict[str, Any], files: dict[str, bytes] | None = None) -> None:
        """Hand a job over, with its pictures."""
        files = files or {}
        sizes = {key: len(data) for key, data in files.items()}
        self._running[name] = "generate"
        self._send("generate", b"".join(files.values()), id=name, job=job, files=sizes)

    def cancel(self, name: str) -> None:
        """Ask a job to stop; it ends as cancelled, or as it would have if it is quicker."""
        self._send("cancel", id=name)

    def ask(self, op: str, then: Answer, key: str | None = None, **fields: Any) -> None:
        """Ask a question. Its answer, or its error, goes to `then`; of several with one `key`, the newest's only."""
        if self.greeting is None:
            return
        if key is not None:
            self._answers = {name: one for name, one in self._answers.items() if one[0] != key}
        self._count += 1
        name = f"?{self._count}"
        self._answers[name] = key or name, then
        self._send(op, id=name, **fields)

    def greet(self, **fields: Any) -> None:
        """How every worker is wanted from now on: the fields of `hello`."""
        self._hello = fields
        if self.greeting is not None:
            self._send("hello", **fields)

    def unload(self) -> None:
        """Let it let go of its model."""
        self._send("unload")

    def _send(self, op: str, payload: bytes = b"", **fields: Any) -> None:
        if self._process is None:
            return
        message = {"op": op, **fields, **({"bytes": len(payload)} if payload else {})}
        self._process.write(json.dumps(message).encode() + b"\n" + bytes(payload))

    # From it.

    def _read(self) -> None:
        if self._process is None or self._broken is not None:
            return
        try:
            messages = self._frames.feed(self._process.readAllStandardOutput().data())
        except Broken as error:
            self._broken = str(error)
            self._process.kill()
            return
        for line in self._frames.noise:
            self.log.append(line)
        self._frames.noise.clear()
        if messages:
            self._heard = time.monotonic()
            if self._is_quiet:
                self._is_quiet = False
                self.quiet.emit(False)
        last_preview = max((i for i, (one, _) in enumerate(messages) if one["ev"] == "preview"), default=-1)
        for i, (message, payload) in enumerate(messages):
            if message["ev"] != "preview" or i == last_preview:  # an older one was never seen
                self._take(message, payload)

    def _take(self, message: Message, payload: bytes) -> None:
        event, name = message["ev"], message.get("id")
        if event == "ready":
            if message.get("protocol") != PROTOCOL:
                self._refused = f"This worker speaks version {message.get('protocol')!r}, and this app {PROTOCOL}."
                if self._process is not None:
                    self._process.closeWriteChannel()
                return
            self.greeting, self._met, self._tries = message, True, 0
            if self._hello:
                self._send("hello", **self._hello)
            self.ready.emit(message)
        elif isinstance(name, str) and name in self._answers:
            if event != "log":
                self._answers.pop(name)[1](message, payload)
        elif isinstance(name, str) and name in self._running:
            if event in ENDS:
                del self._running[name]
                last = self._next is not None and not self._running
                if last:
                    self.greeting = None  # so that nobody gives it more
                self.ended.emit(name, message)
                if last and self._next is not None:
                    self._replace()
                return
            if event == "step" and isinstance(message.get("seconds"), int | float):
                self._slowest = max(self._slowest * 0.9, message["seconds"])
            self.said.emit(message, payload)
        elif event == "error" and name is None and self.greeting is None:
            self._refused = str(message.get("message") or "no reason was given")
        elif event in ("log", "error"):
            self.log.append(str(message.get("message")))

    def _read_log(self) -> None:
        if self._process is not None:
            text = self._process.readAllStandardError().data().decode("utf-8", "replace")
            self.log.extend(line[:2000] for line in text.splitlines())

    def _check(self) -> None:
        """Ping it while nothing runs; say so when it is silent for too long. It is never killed for that."""
        if self.greeting is None:
            return
        silent = time.monotonic() - self._heard
        if not self._running:
            self._send("ping", id="beat")
        if not self._is_quiet and silent > (max(SLOW, 10 * self._slowest) if self._running else PATIENCE):
            self._is_quiet = True
            self.quiet.emit(True)

    # Its end.

    def _failed(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart and self._process is not None:
            program = self._command[0]
            self._gone(Crash(f"it could not be started: {self._process.errorString()}", program, "start"), stay=True)

    def _finished(self, code: int, status: QProcess.ExitStatus) -> None:
        if self._process is None:
            return
        self._read()
        self._read_log()
        details = "\n".join(self.log)
        if self._refused is not None:
            self._gone(Crash(self._refused, details, "refused"), stay=True)
            return
        if self._broken is not None:
            text, kind = "it said something that makes no sense", "protocol"
            details = f"{self._broken}\n{details}"
        elif status == QProcess.ExitStatus.CrashExit and code == 9 and not self._forced:
            text, kind = "the system ended it, most likely because it used up the memory", "memory"
        elif status == QProcess.ExitStatus.CrashExit:
            text, kind = f"it crashed ({_signal(code)})", "crash"
        elif self._host is not None and (not self._met or line_broke(details, code)):
            text, kind = explained(self._host, details, code), "line"
        else:
            text, kind = f"it left with exit code {code}", "crash"
        self._gone(Crash(text, details, kind))

    def _gone(self, crash: Crash, stay: bool = False) -> None:
        process, forced = self._process, self._forced
        self._process = self.greeting = None
        self._beat.stop()
        if process is not None:
            process.deleteLater()
        if self._is_quiet:
            self._is_quiet = False
            self.quiet.emit(False)
        self._answers.clear()
        unfinished, self._running = list(self._running), {}
        line = crash.kind == "line"
        if not (self._leaving or forced or line):
            self._crashes.append(time.monotonic())
            stay = stay or (len(self._crashes) == CRASHES and self._crashes[-1] - self._crashes[0] < WITHIN)
        for name in unfinished:
            kind = "line" if line else "crash"
            lost = {"ev": "error", "id": name, "kind": kind, "message": crash.text, "details": crash.details}
            self.ended.emit(name, {"ev": "cancelled", "id": name} if forced else lost)
        if self._leaving:
            return
        if self._next is not None:
            if not forced:
                self.crashed.emit(crash)
            self._replace()
        elif line and self._met:
            seconds = AGAIN[min(self._tries, len(AGAIN) - 1)]
            self._tries += 1
            self._again.start(int(seconds * 1000))
            self.lost.emit(crash, seconds)
        elif stay or line:
            self._crashes.clear()
            self.down.emit(crash)
        else:
            if not forced:
                self.crashed.emit(crash)
            self.start()


def _signal(code: int) -> str:
    try:
        return signal.Signals(code).name
    except ValueError:
        return f"code {code}"
