"""What the desktop app drives, here or through ssh: messages in, messages out. The protocol is in docs/worker.md.

stdout belongs to the protocol: file descriptor 1 is duplicated and pointed at stderr before anything heavy is imported,
so that a library that prints does no harm. One thread reads and never touches an array; one, the engine, owns every
array (MLX's graphs belong to their thread); downloads and conversions have a thread each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .awake import Awake
from .errors import UserError
from .job import Job
from .terminal import TOO_LARGE, no_memory

if TYPE_CHECKING:
    from .adapters import Adapters
    from .backend import Choice, Model
    from .folder import Folder, Manifest
    from .generate import Step
    from .preview import Preview

PROTOCOL = 1
LINE = 64 << 10  # bytes of a message's line, the most
PAYLOAD = 1 << 30  # bytes after it, the most
IDLE = 600.0  # seconds without work after which the model is let go
FILES = ("image", "mask", "depth", "semantic")  # fields of a job that name a picture, whose bytes come along
PLACES = "mlxldm-worker-"  # what folders with such pictures are called, before the process's number
MOST = 1 << 53  # of a number in a hello
PREVIEWS = ("rgb8", "jpeg", "none")

Message = dict[str, Any]


class Cancelled(Exception):
    """Whoever asked for this asked to stop."""


def run(backend: str = "auto", device: str | None = None, precision: str = "auto", idle: float = IDLE) -> int:
    """Serve until stdin closes. Exit code 0; 2 if there is no backend that could draw."""
    out = os.fdopen(os.dup(1), "wb", 65536)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return Worker(sys.stdin.buffer, out, backend, device, precision, idle).serve()


class Worker:
    """One program's worker: its messages come from `source` and go to `target`."""

    def __init__(
        self, source: BinaryIO, target: BinaryIO, backend: str, device: str | None, precision: str, idle: float
    ):
        self._source, self._target = source, target
        self._idle = self._usual_idle = idle
        self._wanted, self._precision = (backend, device), precision
        self._writing = threading.Lock()
        self._todo: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._stops: dict[str, threading.Event] = {}  # of every job that has not ended
        self._preview, self._every = "rgb8", 1  # a preview of every so many steps
        self._memory: int | None = None  # bytes that may be used; None: what is free
        self._awake, self._sleepless = Awake(), True
        self._choice: Choice | None = None
        self._loaded: dict[str, Model] = {}  # what the last job drew with: its model, its refiner
        self._adapters: dict[str, dict[Any, Any]] = {}  # of the last job and estimate, by file and model
        self._latent: Any = None  # the last step's, in NumPy
        self._look_at: Preview | None = None  # a latent of the loaded model

    def serve(self) -> int:
        """Read in a thread of its own, work in this one."""
        from . import __version__, backend
        from .samplers import SAMPLERS
        from .schedule import SPACINGS

        try:
            self._choice = choice = backend.choose(*self._wanted)
            backend.check_precision(self._precision)
        except UserError as error:
            self.send("error", id=None, kind="wish", message=str(error), details=None)
            return 2
        (facts,) = backend.available((choice.backend,))
        self.send(
            "ready",
            protocol=PROTOCOL,
            version=__version__,
            backend=choice.backend,
            device=choice.device or facts.get("device"),
            device_name=facts.get("device_name"),
            why=choice.why,
            memory=facts.get("memory"),
            models=_models(),
            samplers=list(SAMPLERS),
            spacings=list(SPACINGS),
            pid=os.getpid(),
        )
        _sweep()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while True:
            try:
                work = self._todo.get(timeout=self._idle if self._loaded else None)
            except queue.Empty:
                self._unload()
                continue
            if work is None:
                return 0
            work()

    # Messages out.

    def send(self, event: str, payload: bytes | None = None, **fields: Any) -> None:
        """One message, whole; whoever does not listen any more ends the worker."""
        message = {"ev": event, **fields}
        if payload is not None:
            message["bytes"] = len(payload)
        line = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._writing:
            try:
                self._target.write(line)
                if payload is not None:
                    self._target.write(payload)
                self._target.flush()
            except (OSError, ValueError):
                os._exit(0)

    # Messages in.

    def _read(self) -> None:
        try:
            while True:
                line = self._source.readline(LINE + 1)
                if not line.endswith(b"\n"):
                    if len(line) <= LINE:
                        break  # the end, whatever stands before it
                    self._skip_line()
                    self._refuse(None, f"a line of more than {LINE >> 10} KiB is no message")
                    continue
                message = self._understood(line)
                if message is None:
                    continue
                count = message.get("bytes", 0)
                if type(count) is not int or not 0 <= count <= PAYLOAD:
                    self._refuse(message, f"bytes is {count!r}")
                    continue
                payload = self._source.read(count) if count else b""
                if len(payload) < count:
                    break
                self._take(message, payload)
        finally:
            for stop in list(self._stops.values()):
                stop.set()
            self._todo.put(None)

    def _skip_line(self) -> None:
        while True:
            rest = self._source.readline(LINE)
            if not rest or rest.endswith(b"\n"):
                return

    def _understood(self, line: bytes) -> Message | None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            self._refuse(None, "a line that is not JSON")
            return None
        if not isinstance(message, dict) or not isinstance(message.get("op"), str):
            self._refuse(None, "a line without op")
            return None
        return message

    def _refuse(self, message: Message | None, why: str) -> None:
        name = None if message is None else message.get("id")
        name = name if isinstance(name, str) else None
        self.send("error", id=name, kind="protocol", message=f"Not understood: {why}.", details=None)

    def _take(self, message: Message, payload: bytes) -> None:
        """A message to whoever does what it asks for. In the reading thread: quick answers, and no arrays."""
        op, name = message["op"], message.get("id")
        if op == "hello":
            self._hello(message)
            return
        if op == "unload":
            self._todo.put(self._unload)
            return
        if not isinstance(name, str):
            self._refuse(message, f"{op[:40]} without an id")
        elif op == "ping":
            self.send("pong", id=name)
        elif op == "cancel":
            if name in self._stops:
                self._stops[name].set()
        elif op not in self._OPS:
            self._refuse(message, f"there is no op {op[:40]!r}")
        elif name in self._stops:
            self._refuse(message, f"there is a job {name!r} already")
        else:
            work, beside = self._OPS[op]
            stop = self._stops[name] = threading.Event()

            def ending() -> None:
                self._ended(name, lambda: work(self, message, payload, stop))

            if beside:
                threading.Thread(target=ending, name=op, daemon=True).start()
            else:
                self._todo.put(ending)

    def _hello(self, message: Message) -> None:
        """How whoever drives us wants it; what is not said, or makes no sense, is as at first."""

        def number(key: str, otherwise: float) -> float:
            value: Any = message.get(key)
            return value if type(value) in (int, float) and 0 <= value <= MOST else otherwise

        wanted = message.get("preview", "rgb8")
        self._preview = wanted if wanted in PREVIEWS else "rgb8"
        self._every = max(1, int(number("every", 1)))
        self._memory = int(number("memory", 0)) or None
        self._sleepless = message.get("awake", True) is not False
        self._idle = min(number("idle", self._usual_idle), threading.TIMEOUT_MAX)
        self._todo.put(lambda: None)  # the engine may be waiting for work, and waits so long from now on

    def _ended(self, name: str, work: Callable[[], bool]) -> None:
        """Do some work; whatever happens, it ends in one message."""
        began = time.monotonic()
        end: str | None = "done"
        fields: dict[str, Any] = {}
        try:
            if self._stops[name].is_set():
                raise Cancelled
            with self._awake.working("Making pictures", self._sleepless):
                if not work():
                    end = None
            fields["seconds"] = round(time.monotonic() - began, 3)
        except Cancelled:
            end = "cancelled"
        except Exception as error:
            end = "error"
            fields["kind"], fields["message"], fields["details"] = _explained(error)
        del self._stops[name]  # first: whoever hears of the end may use the id again
        if end:
            self.send(end, id=name, **fields)
        if fields.get("kind") == "memory":
            self._unload()

    # What is asked for. Each returns whether `done` is still to be said.

    def _generate(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from mlxldm_convert import look

        from . import __version__
        from .adapters import Effect
        from .cli import adapter_path, find_adapter, with_wildcards
        from .generate import Step, generate, remarks, resolve, walks
        from .picture import png
        from .recall import fingerprints, with_words

        name = message["id"]
        named = Job.from_json(_object(message, "job"))
        with _files(message, payload, named) as job:
            folder, second = _folders(job)
            last = None if second is None else second.manifest
            job = resolve(with_wildcards(job), folder.manifest, last)
            job = with_words(job, folder, find_adapter, look, walks(job, folder.manifest, last))
            for line in remarks(job):
                self.send("log", level="info", message=line)
            adapters = self._worn(job, folder.manifest, "generate")
            model, *refiner = self._load({job.model: folder} | ({job.refiner: second} if second else {}), name)
            made_by: dict[str, Any] = {"mlxldm": __version__, "backend": model.description}
            if hashes := fingerprints(job, adapter_path, look):
                made_by["hashes"] = hashes
            pace = Pace(self._pace_of(folder, second), job)
            for event in generate(model, job, self._memory, refiner[0] if refiner else None, adapters):
                if stop.is_set():
                    raise Cancelled
                if isinstance(event, Effect):
                    made_by |= {"adapters": event.to_json()}
                    self.send("effect", id=name, **event.to_json())
                elif isinstance(event, Step):
                    pace.step(event.seconds)
                    self.send("step", id=name, index=event.index, step=event.step, of=event.of,
                              seconds=round(event.seconds, 4))  # fmt: skip
                    self._show(name, model, event)
                else:
                    own = event.job.replace(**{field: getattr(named, field) for field in FILES})
                    if self._look_at is not None:
                        self._look_at.learn(self._latent, event.pixels)
                    pace.picture(event.seconds)
                    self.send("picture", png(event.pixels, own, made_by), id=name, index=event.index,
                              seed=own.seed, seconds=round(event.seconds, 3), job=own.to_json())  # fmt: skip
            pace.keep()
        return True

    def _worn(self, job: Job, manifest: Manifest, op: str) -> Adapters:
        """The job's adapters; those of the job before, or that was estimated last, are not read again, unless their
        files have changed."""
        from mlxldm_convert import adapter

        from .adapters import worn
        from .cli import adapter_path

        kept: dict[Any, Any] = {}

        def find(name: str, parts: Mapping[str, Any]) -> Any:
            path = adapter_path(name)
            about = path.stat()
            mark = (path, about.st_size, about.st_mtime_ns, repr(parts))
            known = (adapters.get(mark) for adapters in list(self._adapters.values()))
            kept[mark] = next(filter(None, known), None) or adapter(path, parts)
            return kept[mark]

        found = worn(job, manifest, find)
        self._adapters[op] = kept
        return found

    def _show(self, name: str, model: Model, step: Step) -> None:
        """A preview of a step; numbers that are none end the job here and not at its last pixel."""
        import numpy as np

        from .preview import Preview

        latent = model.numpy(step.guess)
        if not np.isfinite(latent).all():
            raise ArithmeticError
        self._latent = latent
        if self._preview == "none" or (step.step % self._every and step.step != step.of):
            return
        if self._look_at is None:
            self._look_at = Preview(model)
        pixels = self._look_at(latent)
        height, width = pixels.shape[:2]
        if self._preview == "jpeg":
            from PIL import Image

            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "jpeg", quality=85)
            payload = data.getvalue()
        else:
            payload = pixels.tobytes()
        self.send("preview", payload, id=name, index=step.index, step=step.step, width=width, height=height,
                  encoding=self._preview)  # fmt: skip

    def _load(self, wanted: Mapping[str | None, Folder], name: str) -> list[Model]:
        """A job's models, from memory where the last job had them; what it had besides is let go first."""
        from . import backend

        assert self._choice is not None
        keys = {json.dumps([called, _mark(called)]): folder for called, folder in wanted.items()}
        if next(iter(self._loaded), None) != next(iter(keys)):
            self._look_at = None
        for key in self._loaded.keys() - keys.keys():
            self._loaded.pop(key).unload()
        for key, folder in keys.items():
            if key not in self._loaded:
                self.send("loading", id=name, model=folder.manifest.name)
                model = backend.load(folder, self._choice.backend, self._choice.device, self._precision)
                self._loaded[key] = model
        self._loaded = {key: self._loaded[key] for key in keys}  # the one that begins comes first
        return list(self._loaded.values())

    def _unload(self) -> None:
        while self._loaded:
            self._loaded.popitem()[1].unload()
        self._look_at = None
        self.send("unloaded")

    def _estimate(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from . import backend
        from .cli import with_wildcards
        from .generate import resolve
        from .plan import Beside, plan

        named = Job.from_json(_object(message, "job"))
        with _files(message, payload, named) as job:
            folder, second = _folders(job)
            last = None if second is None else second.manifest
            job = resolve(with_wildcards(job), folder.manifest, last)
            adapters = self._worn(job, folder.manifest, "estimate")
        seconds = Pace(self._pace_of(folder, second), job).expected()
        assert self._choice is not None
        beside = Beside(last, adapters)
        memory = plan(folder.manifest, backend.machine(self._choice, self._precision), job, self._memory, beside)
        self.send("estimate", id=message["id"], seconds=seconds, known=seconds is not None, memory=memory.peak,
                  available=memory.available, short=memory.short)  # fmt: skip
        return False

    def _pace_of(self, folder: Folder, refiner: Folder | None) -> str:
        assert self._choice is not None
        names = " and ".join(each.manifest.name for each in (folder, refiner) if each is not None)
        return f"{names} {self._choice.backend} {self._choice.device} {self._precision}"

    def _tokens(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from mlxldm_convert import look

        from .cli import find_adapter, with_wildcards
        from .prompt import EMPHASES, Pass, Reader
        from .recall import with_words, words_of
        from .tasks.script import lines
        from .wildcards import chosen

        job = with_wildcards(Job.from_json(_object(message, "job")))
        job = chosen(job.replace(seed=job.seed or 0))  # its choices are nearly as long as others
        folder = _find(job.model)
        reader = Reader(folder)
        if not reader.tokenizers:
            self.send("tokens", id=message["id"], prompt=0, negative=0, limit=0)
            return False
        job = with_words(job, folder, find_adapter, look, [Pass(1)])
        reader.learn([(word.names, word.count) for word in words_of(job, folder.manifest, find_adapter)])
        (line, *_), (against, *_) = lines(job, Pass(1))
        texts = [reader(words, job.emphasis or EMPHASES[0]) for words in (line[0][0], against)]
        prompt, negative = (sum(chunk.used for chunk in text.encoders[0]) for text in texts)
        limit = max(text.chunks for text in texts) * (len(texts[0].encoders[0][0].ids) - 2)
        self.send("tokens", id=message["id"], prompt=prompt, negative=negative, limit=limit)
        return False

    def _list(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        self.send("models", json.dumps(_models(scan=True)).encode(), id=message["id"])
        return False

    def _list_adapters(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from .cli import adapters_for

        model = message.get("model")
        rows = adapters_for(model if isinstance(model, str) else None)
        self.send("adapters", json.dumps(rows).encode(), id=message["id"])
        return False

    def _wildcards(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from . import store
        from .wildcards import Files

        folder = store.wildcards()
        names = Files(str(folder)).names if folder.is_dir() else []
        self.send("wildcards", json.dumps(names).encode(), id=message["id"], folder=str(folder))
        return False

    def _look(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from mlxldm_convert import look

        path = Path(_text(message, "path"))
        if not path.exists():
            raise UserError(f"There is no file or folder {str(path)!r}.")
        self.send("looked", id=message["id"], says=look(path))
        return False

    def _add(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from . import store
        from .cli import add

        path = Path(_text(message, "path"))
        if path.is_dir() and any((path / name).exists() for name in ("model.json", "model_index.json")):
            store.register(path.name, path)
        else:
            add(str(path))
        return True

    def _forget(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from . import store

        store.forget(_text(message, "what"))
        return True

    def _pull(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from . import hub

        hub.pull(_text(message, "model"), self._progress(message["id"], stop))
        return True

    def _convert(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from mlxldm_convert import write

        from . import store

        bits, dtype = message.get("quantize"), message.get("dtype")
        if not isinstance(bits, int | None) or not isinstance(dtype, str | None):
            raise UserError("quantize is a number of bits and dtype a name: float32, float16 or bfloat16.")
        target = Path(_text(message, "target"))
        if not target.is_absolute() and len(target.parts) == 1:  # a name: among the models here
            store.home().mkdir(parents=True, exist_ok=True)
            target = store.home() / target
        say = self._progress(message["id"], stop)
        written = write(_find(_text(message, "source")), target, dtype=dtype, bits=bits,
                        progress=lambda done, total, part: say(done / max(1, total), part))  # fmt: skip
        parts = {part: dataclasses.asdict(outcome) for part, outcome in written.parts.items()}
        self.send("converted", id=message["id"], path=str(written.path), parts=parts)
        return True

    def _backends(self, message: Message, payload: bytes, stop: threading.Event) -> bool:
        from . import backend

        choice = None
        with contextlib.suppress(UserError):
            choice = dataclasses.asdict(backend.choose())
        self.send("backends", id=message["id"], backends=backend.available(), auto=choice)
        return False

    def _progress(self, name: str, stop: threading.Event) -> Callable[[float, str], None]:
        last = [-1.0]

        def say(fraction: float, what: str = "") -> None:
            if stop.is_set():
                raise Cancelled
            if fraction in (0.0, 1.0) or time.monotonic() - last[0] > 0.2:
                last[0] = time.monotonic()
                self.send("progress", id=name, fraction=round(fraction, 4), message=what)

        return say

    # What each op does, and whether beside the drawing.
    _OPS: dict[str, tuple[Callable[[Worker, Message, bytes, threading.Event], bool], bool]] = {
        "generate": (_generate, False),
        "estimate": (_estimate, True),
        "tokens": (_tokens, True),
        "models": (_list, True),
        "adapters": (_list_adapters, True),
        "wildcards": (_wildcards, True),
        "look": (_look, True),
        "add": (_add, True),
        "forget": (_forget, True),
        "pull": (_pull, True),
        "convert": (_convert, True),
        "backends": (_backends, True),
    }


# Messages.


def _object(message: Message, key: str) -> dict[str, Any]:
    value = message.get(key)
    if not isinstance(value, dict):
        raise UserError(f"The message has no {key}, which is an object.")
    return value


def _text(message: Message, key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"The message has no {key}, which is a text.")
    return value


@contextlib.contextmanager
def _files(message: Message, payload: bytes, job: Job) -> Iterator[Job]:
    """The job with the pictures that came along, as files that nobody else sees, for as long as this lasts."""
    sizes = message.get("files") or {}
    if not isinstance(sizes, dict) or not all(
        key in FILES and type(size) is int and size >= 0 for key, size in sizes.items()
    ):
        raise UserError(f"files are numbers of bytes of {', '.join(FILES)}.")
    if sum(sizes.values()) != len(payload):
        raise UserError(f"files are {sum(sizes.values())} bytes, but {len(payload)} came.")
    missing = [key for key in FILES if getattr(job, key) is not None and key not in sizes]
    if missing:
        raise UserError(f"The job names pictures that did not come along: {', '.join(missing)}.")
    with tempfile.TemporaryDirectory(prefix=f"{PLACES}{os.getpid()}-") as place:
        at, paths = 0, {}
        for key, size in sizes.items():
            paths[key] = str(Path(place) / key)
            Path(paths[key]).write_bytes(payload[at : at + size])
            at += size
        yield job.replace(**paths)


def _sweep() -> None:
    """Remove the pictures of jobs that workers before this one had when they were killed."""
    if os.name != "posix":  # elsewhere there is no harmless way to ask whether a process is there
        return
    for place in Path(tempfile.gettempdir()).glob(f"{PLACES}*-*"):
        number = place.name.removeprefix(PLACES).partition("-")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(place, ignore_errors=True)
        except (OSError, ValueError, OverflowError):
            continue  # another person's, or none of ours


def _explained(error: Exception) -> tuple[str, str, str | None]:
    """What went wrong: its kind, a sentence, and for our own faults where."""
    if isinstance(error, UserError):
        return "wish", " ".join(str(error).split()), None
    if isinstance(error, ArithmeticError):
        return "numbers", "The picture came out as no numbers: too large for this precision; use float32.", None
    if no_memory(error):
        return "memory", TOO_LARGE[:1].upper() + TOO_LARGE[1:], None
    return "fault", f"This is a fault of mlxldm: {type(error).__name__}.", traceback.format_exc()[-20_000:]


# How long things take.


class Pace:
    """Seconds of a step and of what is around the steps, as this machine had them, for `whose` model and a size."""

    def __init__(self, whose: str, job: Job):
        self._whose, self._job = whose, job
        self._steps: list[float] = []
        self._pictures: list[tuple[float, int]] = []

    def step(self, seconds: float) -> None:
        """A step was done."""
        self._steps.append(seconds)

    def picture(self, seconds: float) -> None:
        """A picture was finished, in so many seconds with its steps."""
        self._pictures.append((seconds, len(self._steps) - sum(steps for _, steps in self._pictures)))

    def keep(self) -> None:
        """Remember what was seen for the next time; of a job in two passes, whose steps differ, nothing."""
        from . import store

        if self._job.hires is not None:
            return
        steps = sorted(self._steps)
        rest = min(seconds for seconds, _ in self._pictures) - sum(self._steps) / len(self._pictures)
        known = _paces()
        known.setdefault(self._whose, {})[self._size] = [steps[len(steps) // 2], max(rest, 0.0)]
        with contextlib.suppress(UserError):  # what cannot be kept is unknown the next time, no more
            store.write_json(store.home() / PACES, known)

    def expected(self) -> float | None:
        """Seconds of the whole job; of another size by the number of pixels; None for a model never used here."""
        from .passes import passes

        seen = _paces().get(self._whose, {})
        times = [self._expected(job, seen) for job in passes(self._job, 8)] if seen else [None]
        return None if None in times else round(self._job.count * sum(filter(None, times)), 2)

    def _expected(self, job: Job, seen: dict[str, Any]) -> float | None:
        """Seconds of one pass of one picture."""
        own = f"{job.width}x{job.height}"
        area = _area(own)
        size = own if own in seen else min(seen, key=lambda one: abs(math.log(_area(one) / area)))
        try:
            step, rest = (float(value) * area / _area(size) for value in seen[size])
        except (TypeError, ValueError):
            return None
        assert job.steps is not None
        return max(1, round(job.steps * (1.0 if job.strength is None else job.strength))) * step + rest

    @property
    def _size(self) -> str:
        return f"{self._job.width}x{self._job.height}"


PACES = ".paces.json"


def _paces() -> dict[str, dict[str, Any]]:
    from . import store
    from .folder import read_json

    try:
        known = read_json(store.home() / PACES)
    except UserError:
        return {}
    return {key: value for key, value in known.items() if isinstance(value, dict)} if isinstance(known, dict) else {}


def _area(size: str) -> int:
    width, _, height = size.partition("x")
    return max(1, int(width) * int(height)) if width.isdigit() and height.isdigit() else 1


# Models.


def _find(name: str | None) -> Folder:
    from .cli import find

    return find(name)


def _folders(job: Job) -> tuple[Folder, Folder | None]:
    """The job's model and its refiner."""
    return _find(job.model), None if job.refiner is None else _find(job.refiner)


def _mark(name: str | None) -> list[Any]:
    """What changes when a model's files do."""
    from . import store

    path = store.embedded() if name in (None, store.EMBEDDED) else store.locate(str(name))
    about = path.stat()
    return [str(path), about.st_mtime_ns, about.st_size]


def _models(scan: bool = False) -> list[dict[str, Any]]:
    """Rows of the store, each with how it came to be listed: "embedded", "own" (in the models folder), "registered",
    or "added" with the added `folder` that it lies in."""
    from . import store

    rows = store.models()
    for row in rows:
        own = Path(row["path"]) == store.home() / row["name"]
        row["origin"] = "embedded" if row["name"] == store.EMBEDDED else "own" if own else "registered"
    if scan:
        from mlxldm_convert import look

        for row in rows:
            if row["state"] == "ready":
                row.update({key: value for key, value in look(Path(row["path"])).items() if value is not None})
        folders = store.folders()
        for row in store.scan(look):
            above = [folder for folder in folders if Path(row["path"]).is_relative_to(folder)]
            rows.append({**row, "origin": "added", "folder": str(max(above, key=lambda one: len(one.parts)))})
    return rows


if __name__ == "__main__":  # how a bundle, whose program is not Python, starts it
    from .cli import main

    sys.exit(main(["worker", *(one for one in sys.argv[1:] if one != "--worker")]))
