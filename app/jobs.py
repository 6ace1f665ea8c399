"""The queue, and whose turn it is. One `State` says what the whole window shows.

A job is in the database before it runs and its pictures are on the disk before they count as done; so whatever dies,
what is lost is at most the picture that was being made. Where a picture will be is in the database before it is there;
so none is made twice. Nothing starts by itself when the app does.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from PySide6.QtCore import (
    QAbstractListModel,
    QByteArray,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    QSize,
    Qt,
    QTimer,
    Signal,
)
from PySide6.QtGui import QImage, QImageReader

from mlxldm.job import Job

from . import adapters, errors, pictures
from .client import Client, Crash
from .errors import Notice
from .history import Entry, Found, History
from .naming import PATTERN

FORCE_AFTER = 3.0  # seconds of stopping, after which "Force stop" is offered
MOST = 64  # pictures of one job
Index = QModelIndex | QPersistentModelIndex


class State(Enum):
    """What the window shows."""

    STARTING = "starting"  # no worker yet
    DOWN = "down"  # no worker, and none comes by itself
    LOST = "lost"  # the line to its machine broke, and is tried again
    IDLE = "idle"
    LOADING = "loading"  # a model is being read
    GENERATING = "generating"
    STOPPING = "stopping"
    ERROR = "error"  # idle, and the last job ended badly
    CRASHED = "crashed"  # idle, and the worker had to be started again

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self in (State.LOADING, State.GENERATING, State.STOPPING)


class Progress:
    """Where the running job is, and how long it may still take."""

    def __init__(self, entry: Entry):
        self.before, self.count = entry.done, entry.job.count
        self.index = self.step = self.of = 0
        self._began: float | None = None
        self._steps = 0
        self._rest = 0.0  # seconds of a picture beside its steps
        self._sampled = 0.0
        self._last = 0.0

    def stepped(self, index: int, step: int, of: int, seconds: float) -> None:
        """A step was done."""
        self.index, self.step, self.of = index, step, of
        self._steps += 1
        self._sampled += seconds
        self._last = time.monotonic()

    def finished(self, seconds: float) -> None:
        """A picture was."""
        self._rest = max(0.0, seconds - self.of * self._sampled / max(1, self._steps))

    @property
    def fraction(self) -> float:
        """Of the whole job, 0 to 1."""
        if not self.of:
            return self.before / self.count
        return min(1.0, (self.before + self.index + self.step / self.of) / self.count)

    @property
    def left(self) -> float | None:
        """Seconds, once two steps are known."""
        if self._steps < 2:
            return None
        pictures_left = self.count - self.before - self.index - 1
        steps = self.of - self.step + pictures_left * self.of
        spent = time.monotonic() - self._last
        return max(0.0, steps * self._sampled / self._steps + (pictures_left + 1) * self._rest - spent)

    def text(self, stopping: bool = False) -> str:
        """The line under the picture."""
        if stopping:
            return "Stopping after this step…"
        parts = []
        if self.count > 1:
            parts.append(f"Picture {min(self.before + self.index + 1, self.count)} of {self.count}")
        if self.of:
            parts.append(f"step {self.step} of {self.of}" if parts else f"Step {self.step} of {self.of}")
        if self.left is not None:
            parts.append(f"{duration(self.left)} left")
        return " · ".join(parts) or "Starting…"


class Queue(QAbstractListModel):
    """What runs, waits, or did not work, in this order; and who hands one after another to the worker."""

    changed = Signal()  # the state, or what the queue holds
    notice = Signal(object)  # a Notice for the bar; None takes it away
    preview = Signal(object)  # a QImage of what the running picture may become
    progressed = Signal(object)  # a Progress
    saved = Signal(object, object)  # a Picture of the index, and its Job
    announced = Signal(str)  # for screen readers
    rested = Signal(bool)  # nothing runs any more, and nothing follows: whether the last one ended well

    ENTRY = Qt.ItemDataRole.UserRole

    def __init__(self, history: History, client: Client, folder: Any, inputs: Path, parent: QObject | None = None):
        """`folder()`: where pictures go. `inputs`: where the pictures that jobs start from are kept."""
        super().__init__(parent)
        self.state = State.STARTING
        self.held = False  # whether nothing more starts
        self.progress: Progress | None = None
        self.may_force = False
        self.inputs = inputs
        self.pattern, self.inside, self.jpeg = PATTERN, True, False  # how files are called, and what is in them
        self._history, self._client, self._folder = history, client, folder
        self._unsaved: list[tuple[Entry, bytes, Job]] = []
        self._unwritten: list[Callable[[], None]] = []  # what the database could not take
        self._silent = self._leaving = False
        self._blamed: int | None = None  # the job that the last message was about, for others not to take it away
        self._warning: Notice | None = None  # about the running job, for when it is done too
        self._entries = self._recovered()
        self._running: Entry | None = None
        self._heard = False  # whether the worker has said anything of it
        self._last: Entry | None = None  # of the last end, for what the bar offers
        self._fell: Entry | None = None  # whose worker has just died
        self.held = bool(self.waiting)
        self._force_timer = QTimer(self, singleShot=True, interval=int(FORCE_AFTER * 1000))
        self._force_timer.timeout.connect(self._offer_force)
        client.ready.connect(self._ready)
        client.said.connect(self._event)
        client.ended.connect(self._ended)
        client.crashed.connect(self._crashed)
        client.down.connect(self._down)
        client.lost.connect(self._lost)
        client.replaced.connect(self._replaced)
        client.quiet.connect(self._quiet)
        self._sort()

    def _recovered(self) -> list[Entry]:
        parts = [pictures.part_of(path) for path in self._history.recover()]
        for part in [*parts, *self.inputs.glob("*.part")]:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return self._history.jobs()

    def greet(self) -> None:
        """Ask what to do with what was waiting, if anything was."""
        if self.held:
            self.notice.emit(errors.of_waiting(sum(entry.job.count - entry.done for entry in self.waiting)))

    def leave(self) -> None:
        """The app closes: nothing more starts, and a job that its worker ends for that keeps its place."""
        self.held = self._leaving = True

    # What there is.

    @property
    def running(self) -> Entry | None:
        """The job that runs."""
        return self._running

    @property
    def waiting(self) -> list[Entry]:
        """What will run, or would if somebody resumed it."""
        return [entry for entry in self._entries if entry.state in ("waiting", "paused")]

    @property
    def ended_badly(self) -> list[Entry]:
        """What will not run by itself."""
        return [entry for entry in self._entries if entry.state in ("aside", "failed", "cancelled")]

    def entry(self, number: int) -> Entry | None:
        """The job of that number."""
        return next((entry for entry in self._entries if entry.id == number), None)

    # What a person does with it.

    def add(self, job: Job, front: bool = False) -> Entry | None:
        """Put a job at the end, or before all that wait. Its seed is drawn now: it is the same after a crash.

        None if the database cannot take it, which the bar says.
        """
        if job.seed is None:
            job = job.replace(seed=random.randrange(2**32))
        positions = [entry.pos for entry in self.waiting]
        pos = min(positions) - 1 if front and positions else max((e.pos for e in self._entries), default=0.0) + 1
        try:
            entry = self._history.add_job(job, pos)
        except sqlite3.Error as error:
            self.notice.emit(errors.of_adding(str(error)))
            return None
        self._entries.append(entry)
        self._sort()
        self._next()
        return entry

    def pause(self) -> None:
        """Let nothing more start; what runs is finished."""
        self.held = True
        self.changed.emit()

    def resume(self) -> None:
        """Go on."""
        self.held = False
        for entry in self._entries:
            if entry.state == "paused":
                self._set(entry, state="waiting")
        self._sort()
        self._next()

    def again(self, number: int) -> None:
        """Let a job that is paused, set aside or ended badly wait for its turn, as the next."""
        entry = self.entry(number)
        if entry is not None and entry is not self._running:
            first = min((e.pos for e in self.waiting), default=entry.pos)
            self._set(entry, state="waiting", error=None, pos=min(entry.pos, first - 1))
            self._sort()
            self._next()

    def stop(self) -> None:
        """Stop what runs, after the step it is in."""
        if self._running is not None and self.state is not State.STOPPING:
            self._client.cancel(str(self._running.id))
            self._force_timer.start()
            self._become(State.STOPPING)

    def force_stop(self) -> None:
        """End the worker; another one comes."""
        self._client.kill()

    def clear_waiting(self) -> None:
        """Forget all that waits. What runs is left alone."""
        self._drop(self.waiting)

    def clear_ended(self) -> None:
        """Forget what ended badly."""
        self._drop(self.ended_badly)

    def remove(self, number: int) -> None:
        """Forget one, or stop it if it runs."""
        entry = self.entry(number)
        if entry is self._running and entry is not None:
            self.stop()
        elif entry is not None:
            self._drop([entry])

    def move(self, number: int, by: int) -> None:
        """One that waits further to the front (-1) or to the back (1)."""
        waiting = self.waiting
        entry = self.entry(number)
        if entry not in waiting:
            return
        at = waiting.index(entry)
        to = min(max(at + by, 0), len(waiting) - 1)
        if to == at:
            return
        waiting.insert(to, waiting.pop(at))
        for one, pos in zip(waiting, sorted(e.pos for e in waiting), strict=True):
            self._set(one, pos=pos)
        self._sort()

    def smaller(self, number: int) -> None:
        """The same job with less to draw at once, as the next."""
        entry = self.entry(number)
        if entry is None:
            return
        if self.add(smaller(entry.rest), front=True) is not None:
            self._drop([entry])

    def save_again(self) -> None:
        """Write what could not be written: first the queue, then the pictures."""
        writes, self._unwritten = self._unwritten, []
        for write in writes:
            self._write(write)
        self._save_all()
        if not (self._unsaved or self._unwritten):
            self.notice.emit(None)
            self._next()

    @property
    def unsaved(self) -> int:
        """Pictures that are made and could not be written."""
        return len(self._unsaved)

    @property
    def stuck(self) -> bool:
        """Whether nothing more starts because something could not be written."""
        return bool(self._unsaved or self._unwritten)

    @property
    def last(self) -> Entry | None:
        """The job that the bar speaks of."""
        return self._last if self._last in self._entries else None

    # Whose turn it is.

    def _next(self) -> None:
        if self._running is None and not self.held and self._client.greeting is not None and not self.stuck:
            entry = next((entry for entry in self._entries if entry.state == "waiting"), None)
            if entry is not None:
                self._run(entry)
                return
        self.changed.emit()

    def _run(self, entry: Entry) -> None:
        job, files = entry.rest, {}
        try:
            for key in pictures.INPUTS:
                path = getattr(job, key)
                if path is not None:
                    files[key] = Path(path).read_bytes()
                    job = job.replace(**{key: Path(path).name})
        except OSError as error:
            self._set(entry, state="failed", error=f"Its {key} is not there any more: {error.strerror}.")
            self._last = entry
            self.notice.emit(Notice(f"{title(entry.job)}: {entry.error}"))
            self._sort()
            self._next()
            return
        self._running, self.progress, self._heard = entry, Progress(entry), False
        self._warning = None
        self._set(entry, state="running")
        self._sort()
        self._client.generate(str(entry.id), job.to_json(), files)
        self._become(State.GENERATING)
        self.progressed.emit(self.progress)

    def _become(self, state: State) -> None:
        self.may_force = self.may_force and state is State.STOPPING
        if state is not State.STOPPING:
            self._force_timer.stop()
        self.state = state
        self.changed.emit()

    # What the worker says.

    def _ready(self, message: dict[str, Any]) -> None:
        if self.state in (State.STARTING, State.DOWN, State.LOST):
            if self.state is not State.STARTING:
                self.notice.emit(None)
            self.state = State.IDLE
        self._next()

    def _event(self, message: dict[str, Any], payload: bytes) -> None:
        if self._running is None or message.get("id") != str(self._running.id) or self.progress is None:
            return
        event, self._heard = message["ev"], True
        if event == "loading":
            self._loading = str(message.get("model") or "the model")
            if self.state is State.GENERATING:
                self._become(State.LOADING)
        elif event == "step":
            if self.state is State.LOADING:
                self._become(State.GENERATING)
            index, step, of = (int(message.get(key) or 0) for key in ("index", "step", "of"))
            self.progress.stepped(index, step, of, float(message.get("seconds") or 0))
            self.progressed.emit(self.progress)
        elif event == "effect":
            warning = errors.of_unused(*adapters.unused(message))
            if warning is not None:  # a later picture may wear other ones
                self._warning = warning
                self.notice.emit(warning)
        elif event == "preview":
            image = decoded(message, payload)
            if image is not None:
                self.preview.emit(image)
        elif event == "picture":
            self.progress.finished(float(message.get("seconds") or 0))
            self._picture(message, payload)

    def _picture(self, message: dict[str, Any], payload: bytes) -> None:
        assert self._running is not None
        try:
            job = Job.from_json(message.get("job") or {})
        except Exception:  # a newer worker's job has fields that ours has not; the file has them all the same
            job = self._running.rest
        self._unsaved.append((self._running, payload, job))
        self._save_all()

    def _save_all(self) -> None:
        """In the order they were made: a job's `done` are its first ones."""
        while self._unsaved:
            entry, png, job = self._unsaved[0]
            if not self._save(entry, png, job):
                return
            del self._unsaved[0]
            if entry in self._entries:
                self._refresh(entry)
                if entry is not self._running and entry.done >= entry.job.count:
                    self._drop([entry])

    def _save(self, entry: Entry, png: bytes, job: Job) -> bool:
        folder = self._folder()
        try:
            path = pictures.place(folder, job, self.pattern)
            self._history.will_save(entry, path)
            pictures.write(path, png if self.inside else pictures.without_texts(png))
        except (OSError, sqlite3.Error) as error:
            self.notice.emit(errors.of_saving(getattr(error, "strerror", None) or str(error), str(folder)))
            return False
        found = pictures.read(path) or Found(str(path), time.time(), len(png), job.width or 1, job.height or 1, {})
        if not self.inside:  # then the index alone knows
            found = replace(found, record=pictures.record_of(png))
        if self.jpeg:
            self._copy(path)
        entry.done += 1
        self._write(lambda: self.saved.emit(self._history.has_saved(entry, found), job))
        return True

    def _copy(self, path: Path) -> None:
        try:
            pictures.copy_as_jpeg(path)
        except OSError as error:
            self.notice.emit(Notice(f"‘{path.name}’ was saved, but not its JPEG: {error.strerror or error}."))

    def _ended(self, name: str, end: dict[str, Any]) -> None:
        entry = self._running
        if entry is None or name != str(entry.id):
            return
        if self._leaving and end["ev"] != "done" and self.state is not State.STOPPING:
            return  # nobody asked for this end; the next start asks what to do with it
        self._running, self.progress = None, None
        self._last = entry
        state, what = State.IDLE, end["ev"]
        lacking = any(one is entry for one, _, _ in self._unsaved)
        if what == "done" and lacking:
            self._set(entry, state="paused")  # until they are written, or made again after a crash
        elif what == "done" or entry.done >= entry.job.count:
            self._drop([entry])
            self.announced.emit(f"{title(entry.job)} is finished.")
            if not self.stuck and (self._warning is not None or self._blamed in (None, entry.id)):
                self._blamed = None
                self.notice.emit(self._warning)
        elif what == "cancelled":
            self._set(entry, state="cancelled", error=None)
        elif end.get("kind") == "line":  # nothing is wrong with the job
            self._set(entry, state="waiting")
        elif end.get("kind") == "crash":
            state, self._fell = State.CRASHED, entry
            entry.crashes += self._heard  # one that it had not begun with did not kill it
            self._set(entry, state="aside" if entry.crashes >= 2 else "paused", error=str(end.get("message")))
        else:
            state, self._blamed = State.ERROR, entry.id
            notice = errors.of_job(title(entry.job), end)
            self._set(entry, state="failed", error=notice.text)
            self.notice.emit(notice)
        self._trim()
        self._sort()
        self._become(state)
        self._next()
        if self._running is None and not any(one.state == "waiting" for one in self._entries if not self.held):
            self.rested.emit(what == "done")

    def _crashed(self, crash: Crash) -> None:
        entry, self._fell = self._fell, None
        self._blamed = entry.id if entry is not None else None
        self.notice.emit(errors.of_crash(title(entry.job) if entry else None, crash.text, crash.details, crash.kind,
                                         entry is not None and entry.state == "aside"))  # fmt: skip
        if entry is None:
            self._become(State.STARTING)

    def _down(self, crash: Crash) -> None:
        self._fell = None
        self.notice.emit(errors.of_down(crash.text, crash.details, crash.kind))
        self._become(State.DOWN)

    def _lost(self, crash: Crash, seconds: float) -> None:
        self.notice.emit(errors.of_line(crash.text, seconds, crash.details))
        self._become(State.LOST)

    def _replaced(self) -> None:
        if self.state in (State.DOWN, State.LOST):
            self.notice.emit(None)
        self._become(State.STARTING)

    def _quiet(self, silent: bool) -> None:
        if silent or self._silent:
            self.notice.emit(errors.of_silence() if silent else None)
        self._silent = silent

    def _offer_force(self) -> None:
        if self.state is State.STOPPING:
            self.may_force = True
            self.changed.emit()

    @property
    def loading(self) -> str:
        """The model that is being read."""
        return getattr(self, "_loading", "the model")

    # The list.

    def _set(self, entry: Entry, **changes: Any) -> None:
        for key, value in changes.items():
            setattr(entry, key, value)
        self._write(lambda: self._history.keep_job(entry))

    def _write(self, write: Callable[[], None]) -> None:
        """Change the database. What it cannot take now it will have to take before anything else starts."""
        try:
            write()
        except sqlite3.Error as error:
            self._unwritten.append(write)
            self.notice.emit(errors.of_keeping(str(error)))

    def _trim(self, most: int = 20) -> None:
        """Forget the oldest of what ended badly, or the list grows for ever."""
        ended = sorted(self.ended_badly, key=lambda entry: entry.id)
        if len(ended) > most:
            self._drop(ended[:-most])

    def _drop(self, entries: list[Entry]) -> None:
        numbers = [entry.id for entry in entries]
        self._write(lambda: self._history.drop_jobs(numbers))
        self.beginResetModel()
        self._entries = [entry for entry in self._entries if entry not in entries]
        self.endResetModel()
        self.changed.emit()

    def _sort(self) -> None:
        order = {"running": 0, "paused": 1, "waiting": 1}
        self.beginResetModel()
        self._entries.sort(key=lambda entry: (order.get(entry.state, 2), entry.pos))
        self.endResetModel()

    def _refresh(self, entry: Entry) -> None:
        index = self.index(self._entries.index(entry))
        self.dataChanged.emit(index, index)

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008
        """How many there are."""
        return 0 if parent.isValid() else len(self._entries)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """A job as a line, for people and for screen readers."""
        entry = self._entries[index.row()]
        if role == self.ENTRY:
            return entry
        if role == Qt.ItemDataRole.DisplayRole:
            return title(entry.job)
        if role in (Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.AccessibleTextRole):
            words = {"aside": "set aside", "failed": "did not work"}.get(entry.state, entry.state)
            text = f"{entry.job.prompt or title(entry.job)}, {entry.done} of {entry.job.count} made, {words}"
            return f"{text}: {entry.error}" if entry.error else text
        return None

    def roleNames(self) -> dict[int, QByteArray]:  # noqa: N802
        """What the roles are called."""
        return {**super().roleNames(), int(self.ENTRY): QByteArray(b"entry")}


def smaller(job: Job) -> Job:
    """A job without its second pass, or else on three quarters of its sides: of the start picture's, if it has no own.

    Where a start picture is extended, the new part alone is drawn so large.
    """
    if job.hires is not None:
        return job.replace(hires=None, hires_strength=None, hires_steps=None)
    size = QImageReader(job.image).size() if job.image is not None and not job.only_masked else QSize()
    like = (size.width(), size.height()) if size.isValid() else (512, 512)
    sides = [max(64, int((side or other) * 0.75) // 64 * 64)
             for side, other in zip((job.width, job.height), like, strict=True)]  # fmt: skip
    return job.replace(width=sides[0], height=sides[1], only_masked=True if job.extend is not None else job.only_masked)


def title(job: Job, most: int = 40) -> str:
    """A job in a few words, quoted where they are the prompt's."""
    text = " ".join(job.prompt.split())
    if not text:
        return "A picture without words"
    if len(text) > most:
        text = text[: most + 1].rsplit(" ", 1)[0][:most].rstrip(" ,.;:") + "…"
    return f"‘{text}’"


def decoded(message: dict[str, Any], payload: bytes) -> QImage | None:
    """A preview as a picture; None if it is not what it says."""
    if message.get("encoding") == "rgb8":
        width, height = message.get("width"), message.get("height")
        if type(width) is int and type(height) is int and 0 < width * height * 3 == len(payload):
            return QImage(payload, width, height, width * 3, QImage.Format.Format_RGB888).copy()
        return None
    image = QImage.fromData(payload)
    return None if image.isNull() else image


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if seconds < 600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
