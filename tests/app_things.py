"""What the app's tests share: an application, a window with the scripted worker, and waiting without sleeping."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import ROOT

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("PySide6", reason="PySide6 is not installed: pip install -e '.[app]'")
pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not all here", exc_type=ImportError)

from PySide6.QtCore import QCoreApplication, QEvent, QObject  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

FAKE = ROOT / "tests" / "fake_worker.py"


def command(*flags: str) -> tuple[str, list[str], dict[str, str]]:
    """How the scripted worker is started."""
    return sys.executable, [str(FAKE), *flags], {}


def application() -> QApplication:
    """The one application of this process, in light."""
    from mlxldm_app import theme

    app = QApplication.instance()
    if not isinstance(app, QApplication):
        app = QApplication(["mlxldm"])
        app.setApplicationName("mlxldm")
        theme.apply(app, "light")
    return app


def until(true: Callable[[], object], limit: float = 20) -> None:
    """Let Qt work until something is so; fail if it does not become so."""
    app, end = application(), time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, "that never came"
        app.processEvents()
        time.sleep(0.002)


def gone(*things: QObject) -> None:
    """Delete them now: Qt's objects that are left over when the interpreter ends take it down."""
    for thing in things:
        thing.deleteLater()
        QCoreApplication.sendPostedEvents(thing, QEvent.Type.DeferredDelete)


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def spend(seconds: float) -> None:
    """Let Qt work for a while."""
    app, end = application(), time.monotonic() + seconds
    while time.monotonic() < end:
        app.processEvents()
        time.sleep(0.002)


@contextlib.contextmanager
def full_disk(room: int = 1024) -> Iterator[None]:
    """The system lets no file of this process grow beyond `room` bytes, as if the disk were full."""
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
