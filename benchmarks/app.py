"""What the desktop app promises, measured offscreen beside its targets: start, memory, previews, 20,000 pictures.

    python benchmarks/app.py [--only start,previews,gallery,session] [--count 20000] [--folder DIR] > app.json

Every part is a process of its own. A table goes to stderr, one JSON object to stdout; the exit status is 1 where a
target was missed. Milliseconds are the median, unless the line says that they are the longest of all. Busy machines
show in the longest times first: something else was given the core.

Start: from the moment the process is asked for until a letter that is typed is painted. Warm: as it comes after other
starts. Cold: before each start the kernel is asked to drop every file that the process has read or mapped
(posix_fadvise); how much of them it still held then, because other programs use them too, is said. What a disk or a
host below this machine keeps, nobody here can drop. Linux only.
Memory: of the app's own process, five seconds after that and with the worker beside it. RSS counts all it has of every
library, PSS its share of those that others use too, USS what would be free without it. The target is RSS's. MB are
2**20 bytes, as `top` and its like count them.
Previews: a worker in a second process, real pipes; from the worker's write until they are painted and Qt waits again.
Gallery: that many real PNG files of 512 x 512 (about 60 kB each) are written; --folder keeps them for another time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

MB = 2**20
# part, figure, its target (None: only told)
TARGETS: list[tuple[str, str, float | None]] = [
    ("start", "start, cold (ms)", 1000),
    ("start", "start, warm (ms)", 1000),
    ("start", "of which a core worked for it (ms)", None),
    ("start", "files still in memory before a cold start (MB)", None),
    ("start", "files that were to go (MB)", None),
    ("start", "resident, idle: RSS (MB)", 80),
    ("start", "PSS (MB)", None),
    ("start", "USS (MB)", None),
    ("previews", "preview of 64 x 64, to the repaint (ms)", 5),
    ("previews", "preview of 512 x 512, to the repaint (ms)", 5),
    ("previews", "the longest of them (ms)", None),
    ("gallery", "rebuild of the index (s)", 10),
    ("gallery", "the longest that the window waited meanwhile (ms)", 30),
    ("gallery", "start with that many pictures, warm (ms)", 1000),
    ("gallery", "first paint of the gallery (ms)", 150),
    ("gallery", "search, each letter (ms)", 20),
    ("gallery", "the longest search (ms)", None),
    ("gallery", "a frame of scrolling (ms)", None),
    ("gallery", "the longest frame, thumbnails made beside it (ms)", 30),
    ("gallery", "the longest frame, thumbnails kept from before (ms)", 30),
    ("session", "growth in 300 pictures and 2,000 previews (MB)", 8),
]
PARTS = tuple(dict.fromkeys(part for part, _, _ in TARGETS))


def main() -> int:
    options = _options()
    if options.run:
        print(json.dumps({"rebuild": rebuild, "gallery": gallery, "previews": previews, "session": session,
                          "worker": worker, "files": files}[options.run](options)))  # fmt: skip
        return 0
    if options.folder:
        return compare(options, Path(options.folder))
    with tempfile.TemporaryDirectory(prefix="mlxldm-app-") as folder:
        return compare(options, Path(folder))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--count", type=int, default=20_000, help="pictures in the gallery")
    parser.add_argument("--rounds", type=int, default=7, help="starts of each kind")
    parser.add_argument("--folder", help="where the pictures are kept; made there if they are not")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--pace", type=float, default=0.02, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=512, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, folder: Path) -> int:
    """Run every part, print its figures beside their targets."""
    figures: dict[str, float] = {}
    missed = []
    for part in options.only.split(","):
        found = _part(part, options, folder)
        for of, name, target in TARGETS:
            if of == part and name in found:
                over = target is not None and found[name] > target
                missed += [name] if over else []
                beside = "" if target is None else f"   target {target:g}{'   MISSED' if over else ''}"
                print(f"{name:60} {found[name]:9.1f}{beside}", file=sys.stderr, flush=True)
        figures |= found
    print(json.dumps({"python": sys.version.split()[0], "cores": os.cpu_count(), "load": os.getloadavg()[0],
                      "figures": figures, "missed": missed}, indent=1))  # fmt: skip
    return 1 if missed else 0


def _part(part: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    if part == "start":
        return starts(folder / "empty", options.rounds)
    home = folder / part
    if part != "gallery":
        return _child(part, home, options)
    if not (home / "pictures").exists():
        print(f"writing {options.count} pictures to {home} ...", file=sys.stderr)
        _child("files", home, options)
    found = _child("rebuild", home, options)
    warm = median(start(home)["usable"] for _ in range(options.rounds))
    return found | {"start with that many pictures, warm (ms)": warm} | _child("gallery", home, options)


def _child(what: str, home: Path, options: argparse.Namespace) -> dict[str, float]:
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--run", what, "--count", str(options.count)]
    done = subprocess.run(command, env={**os.environ, "MLXLDM_HOME": str(home)}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def median(numbers: Iterable[float]) -> float:
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2]


def milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


# Start and memory.

STARTED = """
import json, os, sys, time
import app.__main__
from PySide6.QtCore import QEvent, Qt, QTimer
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QApplication

loop = QApplication.exec

def look(qt):
    window = next(one for one in qt.topLevelWidgets() if one.windowTitle() == "mlxldm")
    prompt = window.panel.prompt
    while not prompt.hasFocus():
        qt.processEvents()
    before = len(prompt.toPlainText())
    QApplication.sendEvent(prompt, QKeyEvent(QEvent.Type.KeyPress, Qt.Key.Key_X, Qt.KeyboardModifier.NoModifier, "x"))
    while len(prompt.toPlainText()) == before:
        qt.processEvents()
    window.repaint()
    usable, processor = time.monotonic(), time.process_time()
    QTimer.singleShot(int(1000 * float(os.environ["IDLE"])), qt.quit)
    loop()
    said = {}
    for line in open("/proc/self/smaps_rollup"):
        words = line.split()
        if len(words) == 3:
            said[words[0][:-1]] = 1024 * int(words[1])
    mapped = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
    read = {getattr(module, key, None) for module in sys.modules.values() for key in ("__file__", "__cached__")}
    files = sorted(path for path in mapped | read if path and os.path.isfile(path))
    print(json.dumps({"usable": usable, "processor": processor, "memory": said, "files": files}))
    window.close()
    return 0

QApplication.exec = look
sys.exit(app.__main__.main([]))
"""


def start(home: Path, idle: float = 0) -> dict[str, Any]:
    """One start of the app: milliseconds to a usable window, memory after so many idle seconds, files it read."""
    home.mkdir(parents=True, exist_ok=True)
    surroundings = {**os.environ, "MLXLDM_HOME": str(home), "IDLE": str(idle), "PYTHONPATH": str(ROOT)}
    surroundings.pop("PYTHONDONTWRITEBYTECODE", None)  # as it is installed: compiled
    surroundings["PYTHONPYCACHEPREFIX"] = str(home / "compiled")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STARTED], env=surroundings, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    said = json.loads(done.stdout.splitlines()[-1])
    return said | {"usable": 1000 * (said["usable"] - began)}


def starts(home: Path, rounds: int) -> dict[str, float]:
    """Warm starts with their memory, then cold ones."""
    read = start(home)["files"]
    warm = [start(home, idle=5) for _ in range(rounds)]
    cold, held = [], []
    for _ in range(rounds):
        held.append(drop(read))
        cold.append(start(home)["usable"])
    memory = {key: median(one["memory"][key] for one in warm) / MB for key in ("Rss", "Pss")}
    own = median(one["memory"]["Private_Clean"] + one["memory"]["Private_Dirty"] for one in warm) / MB
    return {
        "start, cold (ms)": median(cold), "start, warm (ms)": median(one["usable"] for one in warm),
        "of which a core worked for it (ms)": 1000 * median(one["processor"] for one in warm),
        "files still in memory before a cold start (MB)": median(held) / MB,
        "files that were to go (MB)": sum(map(os.path.getsize, read)) / MB,
        "resident, idle: RSS (MB)": memory["Rss"], "PSS (MB)": memory["Pss"], "USS (MB)": own,
    }  # fmt: skip


def drop(paths: list[str]) -> int:
    """Ask the kernel to forget what it has of files; bytes that it kept all the same."""
    os.sync()
    kept, page = 0, os.sysconf("SC_PAGE_SIZE")
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        for place in range(0, os.path.getsize(path), page):
            try:
                kept += page * bool(os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT))
            except BlockingIOError:
                continue  # it would have to be read
        os.close(file)
    return kept


# Windows.


def window_with(worker: list[str]) -> Any:
    """The app's window, shown, with such a worker that is ready."""
    from PySide6.QtWidgets import QApplication

    from mlxldm_app import theme
    from mlxldm_app.client import Client
    from mlxldm_app.window import Window

    app = QApplication.instance() or QApplication(["mlxldm"])
    app.setApplicationName("mlxldm")
    theme.apply(app, "light")
    window = Window(Client((sys.executable, worker, {})))
    window.show()
    until(lambda: window.client.greeting and window.panel.model.count())
    return window


def until(true: Callable[[], object], limit: float = 120) -> None:
    """Let Qt work until something is so."""
    from PySide6.QtCore import QCoreApplication, QEventLoop

    end = time.monotonic() + limit
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("that never came")
        QCoreApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 5)
        time.sleep(0.0005)


def resident() -> int:
    """Bytes of this process in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


# Previews.


def worker(options: argparse.Namespace) -> dict[str, float]:
    """The second process: the tests' worker, but its previews have any size and say when they were written."""
    import fake_worker

    class Timed(fake_worker.Fake):
        """Draws nothing but previews."""

        def draw(self, name: str, job: dict[str, Any], files: dict[str, int], payload: bytes) -> dict[str, Any]:
            side, of = options.side, job["steps"]
            shades = [bytes([shade]) * (3 * side * side) for shade in range(0, 256, 16)]
            for step in range(1, of + 1):
                time.sleep(0.02)
                self.send("step", id=name, index=0, step=step, of=of, seconds=0.02)
                self.send("preview", shades[step % 16], id=name, index=0, step=step, width=side, height=side,
                          encoding="rgb8", sent=time.monotonic())  # fmt: skip
            return {"ev": "done", "seconds": 1.0}

    Timed(fake_worker.options([])).run()
    return {}


def previews(options: argparse.Namespace) -> dict[str, float]:
    """200 of each size, twenty milliseconds apart."""
    from PySide6.QtCore import QTimer

    from mlxldm.job import Job
    from mlxldm_app.viewer import Canvas

    sent: list[float] = []
    waits: list[float] = []
    paint = Canvas.paintEvent

    def back(written: float) -> None:
        waits.append(1000 * (time.monotonic() - written))

    def watched(canvas: Canvas, event: Any) -> None:
        paint(canvas, event)
        if sent:
            written = sent.pop()
            QTimer.singleShot(0, lambda: back(written))  # when the screen has it, too
            sent.clear()

    Canvas.paintEvent = watched  # type: ignore[method-assign]
    found, longest = {}, 0.0
    for side in (64, 512):
        window = window_with([__file__, "--run", "worker", "--side", str(side)])
        window.client.said.connect(lambda message, _: sent.append(message["sent"]) if "sent" in message else None)
        waits.clear()
        window.queue.add(Job(prompt="a fox", seed=1, steps=210))
        until(lambda window=window: window.queue.last is not None or len(waits) and not window.queue.state.busy)
        window.close()
        assert len(waits) > 100, "too few were painted to say anything"
        found[f"preview of {side} x {side}, to the repaint (ms)"] = median(waits[5:])
        longest = max(longest, *waits[5:])
    return found | {"the longest of them (ms)": longest}


# Twenty thousand pictures.

WORDS = ("a red fox in the snow", "an owl at night, oil on canvas", "lighthouse by the sea at dusk, long exposure",
         "portrait of an old fisherman, 85mm", "isometric castle made of paper")  # fmt: skip


def files(options: argparse.Namespace) -> dict[str, float]:
    """PNG files with their jobs inside, a hundred a day."""
    import struct
    import zlib

    from PySide6.QtCore import QBuffer, QByteArray, QIODevice, QPointF
    from PySide6.QtGui import QColor, QImage, QLinearGradient, QPainter

    def picture(number: int) -> bytes:
        image = QImage(512, 512, QImage.Format.Format_RGB888)
        painter = QPainter(image)
        shade = QLinearGradient(QPointF(0, 0), QPointF(512, 400 + number * 7))
        shade.setColorAt(0, QColor.fromHsv(number * 13 % 360, 120, 230))
        shade.setColorAt(1, QColor.fromHsv(number * 31 % 360, 200, 60))
        painter.fillRect(image.rect(), shade)
        for at in range(900):
            painter.fillRect(at * 7919 % 512, at * 104729 % 512, 3 + at % 17, 3 + at % 13,
                             QColor.fromHsv((at * number) % 360, at % 255, 255 - at % 200))  # fmt: skip
        painter.end()
        data = QByteArray()
        buffer = QBuffer(data)
        buffer.open(QIODevice.OpenModeFlag.WriteOnly)
        image.save(buffer, "PNG")
        return data.data()

    def with_text(png: bytes, text: str) -> bytes:
        body = b"tEXt" + b"mlxldm\0" + text.encode("latin-1")
        return png[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[33:]

    pngs = [picture(number) for number in range(16)]
    pictures, now = Path(os.environ["MLXLDM_HOME"]) / "pictures", time.time()
    for number in range(options.count):
        when = now - number * 864
        day = pictures / time.strftime("%Y-%m-%d", time.localtime(when))
        day.mkdir(parents=True, exist_ok=True)
        job = {"prompt": f"{WORDS[number % 5]}, number{number % 40}", "seed": number, "steps": 25, "guidance": 7.5,
               "sampler": "dpmpp_2m", "width": 512, "height": 512, "model": "dreamshaper-8"}  # fmt: skip
        text = json.dumps({"job": job, "made_by": {"mlxldm": "0.1.0", "backend": "mlx", "seconds": 4.2}})
        path = day / f"{number:05}.png"
        path.write_bytes(with_text(pngs[number % 16], text))
        os.utime(path, (when, when))
    return {}


FAKE = [str(ROOT / "tests" / "fake_worker.py")]


def rebuild(options: argparse.Namespace) -> dict[str, float]:
    """The index is gone: how long until all pictures are there, and how long the window waited at most."""
    from PySide6.QtCore import QTimer

    data = Path(os.environ["MLXLDM_HOME"]) / "app"
    for left in data.glob("mlxldm.db*"):
        left.unlink()
    window = window_with(FAKE)  # its scan has begun
    began = last = time.perf_counter()
    longest = 0.0

    def beat() -> None:
        nonlocal last, longest
        now = time.perf_counter()
        longest, last = max(longest, 1000 * (now - last)), now

    clock = QTimer(interval=1)
    clock.timeout.connect(beat)
    clock.start()
    until(lambda: len(window.gallery_model.shown) == options.count)
    took = time.perf_counter() - began
    beat()
    window.close()
    return {
        "rebuild of the index (s)": took,
        "the longest that the window waited meanwhile (ms)": longest,
    }


def gallery(options: argparse.Namespace) -> dict[str, float]:
    """First paint, search, and scrolling through all of it, twice."""
    window = window_with(FAKE)
    grid, search = window.side.grid, window.side.search
    until(lambda: len(window.gallery_model.shown) == options.count)

    def first() -> None:
        window.gallery_model.load()
        grid.viewport().repaint()

    paints = [milliseconds(first) for _ in range(9)]
    searches = []
    for words in ("fox snow", "number7", "lighthouse exposure number3", "zebra", "o", "the sea"):
        for end in (*range(1, len(words) + 1), 0):
            search.blockSignals(True)
            search.setText(words[:end])
            search.blockSignals(False)

            def found() -> None:
                window._filter()
                grid.viewport().repaint()

            searches.append(milliseconds(found))
    fresh, kept = scroll(window), scroll(window)
    window.close()
    return {
        "first paint of the gallery (ms)": median(paints),
        "search, each letter (ms)": median(searches), "the longest search (ms)": max(searches),
        "a frame of scrolling (ms)": median(fresh),
        "the longest frame, thumbnails made beside it (ms)": max(fresh),
        "the longest frame, thumbnails kept from before (ms)": max(kept),
    }  # fmt: skip


def scroll(window: Any) -> list[float]:
    """Milliseconds of every frame, sixty in a second, from the first picture to the last."""
    from PySide6.QtCore import QCoreApplication

    bar, view, frames = window.side.grid.verticalScrollBar(), window.side.grid.viewport(), []

    def frame(at: int) -> None:
        bar.setValue(at)
        view.repaint()
        QCoreApplication.processEvents()

    for at in range(0, bar.maximum(), 330):
        frames.append(milliseconds(partial(frame, at)))
        time.sleep(max(0.0, 1 / 60 - frames[-1] / 1000))
    return frames


# A long session.


def session(options: argparse.Namespace) -> dict[str, float]:
    """What 300 pictures and 2,000 previews leave behind, once 200 pictures have filled what is kept on purpose."""
    from mlxldm.job import Job

    window = window_with([*FAKE, "--pace", "0.001"])

    def draw(count: int) -> None:
        before = len(window.gallery_model.shown)
        for at in range(0, count, 10):
            window.queue.add(Job(prompt="fine fox", seed=at, count=10, steps=7, width=256, height=256))
        until(lambda: len(window.gallery_model.shown) == before + count and not window.queue.state.busy)

    draw(200)
    before = resident()
    draw(300)
    grown = resident() - before
    window.close()
    return {"growth in 300 pictures and 2,000 previews (MB)": grown / MB}


if __name__ == "__main__":
    sys.exit(main())
