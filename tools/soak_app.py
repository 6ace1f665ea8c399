"""The app's process of `tools/soak.py`: the real window without a screen, a person who uses it, and somebody who kills.

It reads `plan.json` in MLXLDM_HOME, does through the window's own signals and commands what a person would do, and
writes every event into `journal` there, so that the next process after a kill goes on. Exit code 0 when all is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from PySide6.QtCore import QObject, QTimer  # noqa: E402
from PySide6.QtGui import QColor, QImage, qRgb  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402
from soak import APP_KILLED, events_of, number  # noqa: E402

from mlxldm.job import Job  # noqa: E402
from mlxldm_app import pictures, theme  # noqa: E402
from mlxldm_app.history import Entry, Picture  # noqa: E402
from mlxldm_app.jobs import State  # noqa: E402
from mlxldm_app.window import Window  # noqa: E402

DEPTH = 6  # jobs that wait, so that there are some when things break
CALM = 0.4  # seconds after a start in which nothing may begin
ROOM = 4096  # bytes of a file that still go onto the full disk: less than a picture has
SIDE = 64  # of the pictures that some jobs start from

# When a fault is made ready whose moment comes later, or is another thread's.
BEFORE = {"idle": "saved", "waiting": "added", "written": "step", "renaming": "step", "renamed": "step",
          "anytime": "started"}  # fmt: skip


class Person(QObject):
    """Adds the planned jobs, resumes what is paused, and does each job's fault at its moment."""

    def __init__(self, window: Window, planned: list[dict[str, Any]], home: Path):
        super().__init__(window)
        self.window, self.queue, self.client = window, window.queue, window.client
        self._home, self._planned = home, planned
        self._journal = os.open(home / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        events = events_of(home)
        self._hit = {event["n"] for event in events if event["what"] == "fault"}
        self._ended = {event["n"] for event in events if event["what"] == "end"}
        self._next = self._first_untaken(events)
        self._begun: int | None = None  # the job whose start was seen
        self._numbers: dict[str, int] = {}  # of jobs that ran, by their ids
        self._dying = 0  # a worker that was killed, until the app has noticed
        self._found = bool(self.queue.waiting)  # what waited at the start still does
        self._calm_until: float | None = None
        self._idle: Callable[[], None] | None = None  # what is to happen when nothing runs
        self._kill_at: str | None = None  # at which moment of writing a picture ...
        self._kill: Callable[[], None] = sys.exit  # ... and how
        self._leaving = False
        sys.addaudithook(self._audit)
        sys.excepthook = self._raised
        self.note("life", found=[number(entry.job.prompt) for entry in self.queue.waiting])
        self.client.ready.connect(self._ready)
        self.client.said.connect(self._said)  # after the queue has heard it
        self.client.ended.connect(self._job_ended)
        self.queue.saved.connect(self._saved)
        self.queue.changed.connect(self._look)
        self._clock = QTimer(self, interval=20)
        self._clock.timeout.connect(self._tick)
        self._clock.start()

    def note(self, what: str, **fields: Any) -> None:
        """A line of the journal, whole, whatever comes after it."""
        line = {"t": round(time.time(), 3), "what": what, **fields}
        full = self._is_full
        self._full(False)  # this file is not on that disk
        os.write(self._journal, json.dumps(line).encode() + b"\n")
        self._full(full)

    def _raised(self, kind: Any, error: Any, where: Any) -> None:
        sys.__excepthook__(kind, error, where)
        self.note("wrong", text=f"the app raised {kind.__name__}: {error}")

    def _first_untaken(self, events: list[dict[str, Any]]) -> int:
        """A job that was about to be added when the app was killed is there, or was never taken."""
        begun = max((event["n"] for event in events if event["what"] == "adding"), default=-1)
        taken = begun in {event["n"] for event in events if event["what"] == "added"}
        there = begun in {number(entry.job.prompt) for entry in self.window.history.jobs()}
        return begun + 1 if taken or there else max(begun, 0)

    # What a person does.

    def _tick(self) -> None:
        queue = self.queue
        if self._leaving or (self.client.greeting is None and queue.state is not State.DOWN):
            return
        if self._dying and self._dying == self.client.pid:
            return
        self._dying = 0
        if self._found:
            self._stay_calm()
            return
        for entry in queue.ended_badly:
            self._note_end(entry)
        if self._idle is not None:
            if queue.running is None:
                then, self._idle = self._idle, None
                then()
            return
        if queue.state is State.DOWN:
            self._press("restart")
        elif queue.stuck:
            self._full(False)
            self._press("save_again")
        elif self._is_full:
            return  # what is being made will not find room
        elif queue.held:
            self._press("resume")
        else:
            for entry in list(queue.waiting):
                if entry.state == "paused":
                    queue.again(entry.id)
            self._feed()

    def _stay_calm(self) -> None:
        """After a start with jobs that wait nothing begins, until somebody says so."""
        if self._calm_until is None:
            self._calm_until = time.monotonic() + CALM
        if self.queue.running is not None or not self.queue.held:
            self.note("wrong", text="something began by itself")
        if time.monotonic() > self._calm_until:
            self._found = False
            self._press("resume")

    def _press(self, command: str) -> None:
        self.window.viewer.bar.acted.emit(command)

    def _feed(self) -> None:
        while self._next < len(self._planned) and len(self.queue.waiting) < DEPTH:
            one = self._planned[self._next]
            job = Job.from_json(one["job"])
            if job.strength is not None:
                job = job.replace(image=self._start_picture(one["n"]))
            self.note("adding", n=one["n"])
            self.window.panel.generate.emit(job, False)
            self.note("added", n=one["n"])
            self._next += 1
            self._at("added", one["n"])
        if self._next == len(self._planned) and not self.queue.waiting and self.queue.running is None:
            self._leave()

    def _start_picture(self, n: int) -> str:
        rng = random.Random(n)
        image = QImage(SIDE, SIDE, QImage.Format.Format_RGB32)
        image.fill(QColor(qRgb(*(rng.randrange(256) for _ in range(3)))))
        path = self._home / "tmp" / "start.png"
        image.save(str(path))
        kept = pictures.keep_input(self.queue.inputs, path.read_bytes())
        path.unlink()
        return str(kept)

    def _leave(self) -> None:
        """Everything is done: the index is brought to the files once more, and the window closed."""
        self._leaving = True
        rescan = self.window.rescan

        def close() -> None:
            for entry in self.queue.ended_badly:
                self._note_end(entry)
            self.note("finished")
            self._close()

        rescan.finished.connect(close)
        rescan.start()

    def _close(self) -> None:
        self._leaving = True
        self.window.close()
        QApplication.exit(0)

    def _note_end(self, entry: Entry) -> None:
        n = number(entry.job.prompt)
        if n not in self._ended:
            self._ended.add(n)
            self.note("end", n=n, state=entry.state, error=entry.error)

    # What happens.

    def _ready(self, message: dict[str, Any]) -> None:
        self.note("worker", pid=message["pid"])

    def _look(self) -> None:
        """Whether another job runs now."""
        running = self.queue.running
        n = None if running is None else number(running.job.prompt)
        if n != self._begun:
            self._begun = n
            if running is not None and n is not None:
                self._numbers[str(running.id)] = n
                self.note("started", n=n)
                self._at("started", n)

    def _said(self, message: dict[str, Any], payload: bytes) -> None:
        running = self.queue.running
        if message["ev"] == "step" and running is not None:
            n = number(running.job.prompt)
            if message["index"] == 0 and message["step"] == 1:
                self.note("step", n=n)
                self._at("step", n)

    def _saved(self, picture: Picture, job: Job) -> None:
        n = number(job.prompt)
        self.note("saved", n=n, seed=job.seed)
        wanted = self._planned[n]["job"]
        if job.seed == wanted["seed"] + wanted.get("count", 1) - 1:
            self._at("saved", n, picture)

    def _job_ended(self, name: str, end: dict[str, Any]) -> None:
        entry = self.queue.entry(int(name))
        if end.get("kind") == "crash" and entry is not None:
            n = number(entry.job.prompt)
            self.note("crashed", n=n, state=entry.state, crashes=entry.crashes)
            if entry.state != ("aside" if entry.crashes >= 2 else "paused"):
                self.note("wrong", text=f"the worker died over job {n}, which is {entry.state}")
        for one in self.queue.ended_badly:
            self._note_end(one)
        if end["ev"] == "done":
            self._at("ended", self._numbers[name])

    # Faults.

    def _at(self, moment: str, n: int, picture: Picture | None = None) -> None:
        """It is this moment of that job: is there a fault for it?"""
        fault = self._planned[n]["fault"]
        if fault is None or (n in self._hit and fault["kind"] != "poisoned job"):
            return
        kind, when = fault["kind"], fault["moment"]
        if moment != BEFORE.get(when, when):
            return
        self._hit.add(n)
        if when == "idle":
            self.queue.pause()
            self._idle = lambda: self._do(n, kind, when)
        elif when in ("written", "renaming", "renamed"):
            self._kill_at, self._kill = when, lambda: self._do(n, kind, when)
        elif when == "anytime":
            threading.Timer(fault["after"], lambda: self._do(n, kind, when)).start()
        else:
            self._do(n, kind, when, picture)

    def _do(self, n: int, kind: str, when: str, picture: Picture | None = None) -> None:
        self.note("fault", n=n, kind=kind, moment=when)
        if kind in APP_KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "app closed":
            QTimer.singleShot(0, self._close)
        elif kind.startswith("worker killed"):
            self._dying = self.client.pid
            os.kill(self._dying, signal.SIGKILL)
        elif kind == "poisoned job":
            os.kill(self.client.pid, signal.SIGSEGV)
        elif kind == "disk full":
            self._full(True)
        elif kind == "input picture deleted":
            Path(self._entry(n).job.image or "").unlink()
        elif kind == "picture deleted" and picture is not None:
            seed = self.window.history.record(picture.id)["job"]["seed"]
            self.note("picture deleted", n=n, seed=seed)
            os.unlink(picture.path)
        elif kind == "cancelled" and when == "waiting":
            entry = self._entry(n)
            self.note("end", n=n, state="cancelled", error=None)
            self._ended.add(n)
            self.queue.remove(entry.id)
        elif kind == "cancelled":
            self.window.do_stop()
        elif kind == "force stop":
            self.window.do_force_stop()

    def _entry(self, n: int) -> Entry:
        return next(entry for entry in self.queue.waiting if number(entry.job.prompt) == n)

    def _full(self, full: bool) -> None:
        """A disk without room: the system refuses to let files grow, the queue's and the pictures'."""
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM if full else hard, hard))

    @property
    def _is_full(self) -> bool:
        return resource.getrlimit(resource.RLIMIT_FSIZE)[0] == ROOM

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python says what it is about to open or rename: the moments in which a file is half there."""
        if self._kill_at == "renaming" and event == "os.rename" and str(arguments[1]).endswith(".png"):
            self._kill()
        elif self._kill_at == "written" and event == "open" and str(arguments[0]).endswith(".png.part"):
            self._kill_at = None
            self._when_there(str(arguments[0]))
        elif self._kill_at == "renamed" and event == "os.rename" and str(arguments[1]).endswith(".png"):
            self._kill_at = None
            self._when_there(str(arguments[1]))

    def _when_there(self, path: str) -> None:
        """In a thread of its own, which may come too late to see the file under its first name."""
        whole = path.removesuffix(".part")

        def begun() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return os.path.getsize(path) > 0
            return os.path.exists(whole)

        def wait() -> None:
            while not begun():
                time.sleep(0)  # other threads write it
            self._kill()

        threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """The window, and who uses it."""
    home = Path(os.environ["MLXLDM_HOME"])
    app = QApplication(["mlxldm"])
    app.setApplicationName("mlxldm")
    theme.apply(app, "light")
    window = Window()
    window.show()
    Person(window, json.loads((home / "plan.json").read_text()), home)
    return app.exec()


if __name__ == "__main__":
    sys.exit(main())
