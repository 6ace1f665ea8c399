"""`mlxldm-app`, or `python -m app` in a checkout: the window, or with `--worker` the worker of a bundled app.

What this process is, is decided before Qt is imported: a worker has no window and needs none.
"""

from __future__ import annotations

import argparse
import linecache
import os
import runpy
import sqlite3
import sys
from pathlib import Path

NO_QT = (
    "mlxldm: the desktop app needs PySide6 (Qt), which is not installed here. Install it with\n"
    "    pip install 'mlxldm[app]'\n"
    'or draw from the command line: mlxldm generate "..."'
)


class Forgetful(dict):
    """What `linecache` keeps: nothing. To see who uses Qt, PySide reads the source of every module that is imported
    after it, through there, and would leave three megabytes of it."""

    def __setitem__(self, name: object, lines: object) -> None: ...


def main(arguments: list[str] | None = None) -> int:
    """Start. Exit code 0; 2 where Qt is missing; the worker's own with `--worker`; 1 where `--smoke` did not work."""
    if getattr(sys, "frozen", False):
        import multiprocessing

        multiprocessing.freeze_support()
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--worker" in arguments:
        sys.argv = [sys.argv[0], *(one for one in arguments if one != "--worker")]
        runpy.run_module("mlxldm.worker", run_name="__main__", alter_sys=True)
        return 0
    parser = argparse.ArgumentParser(prog="mlxldm-app", description="The desktop app of mlxldm.")
    parser.add_argument("files", nargs="*", metavar="FILE", help="pictures or models to open")
    parser.add_argument(
        "--smoke", action="store_true", help="make one small picture, say whether that worked, and leave"
    )
    parser.add_argument("--worker", action="store_true", help="be the worker of a bundled app")
    asked = parser.parse_args(arguments)
    linecache.cache = Forgetful()
    try:
        import PySide6.QtWidgets  # noqa: F401
    except ImportError:
        print(NO_QT, file=sys.stderr)
        return 2
    return _window([os.path.abspath(path) for path in asked.files], asked.smoke)


def _window(files: list[str], smoke: bool) -> int:
    from PySide6.QtCore import QTimer

    from .mac import Application

    if smoke:  # not among a person's pictures, and with no queue but its own
        import tempfile

        place = tempfile.TemporaryDirectory(prefix="mlxldm-smoke-", ignore_cleanup_errors=True)
        os.environ["MLXLDM_HOME"] = place.name
    app = Application(sys.argv[:1])
    app.setApplicationName("mlxldm")  # and no organization, or every place would be called twice
    app.setApplicationDisplayName("mlxldm")
    app.setDesktopFileName("mlxldm")
    from . import alone, places, theme

    first = alone.lock(places.data())
    if first is None:
        alone.hand_over(places.data(), files)
        return 0
    handed = alone.Handed(places.data(), app)
    from .window import Window

    theme.apply(app, str(places.settings().value("appearance", "system")))
    linecache.cache = {}
    try:
        window = Window()
    except sqlite3.OperationalError as error:
        _say_no_queue(str(error), str(places.data()))
        return 1
    window.show()
    handed.came.connect(lambda files: _come(window, files))
    app.listen(window.take_file)
    for path in files:
        QTimer.singleShot(0, lambda path=path: window.take_file(path))
    return _smoke(app, window) if smoke else app.exec()


def _say_no_queue(reason: str, place: str) -> None:
    from PySide6.QtWidgets import QMessageBox

    text = f"The queue in {place} cannot be opened now: {reason}. Is the disk full, or write-protected?"
    print(f"mlxldm: {text}", file=sys.stderr)
    QMessageBox.critical(None, "mlxldm", f"{text} Nothing is lost; start mlxldm again when that is mended.")


def _come(window, files: list[str]) -> None:
    """Another start: to the front, with what it was given."""
    window.showNormal() if window.isMinimized() else window.show()
    window.raise_()
    window.activateWindow()
    for path in files:
        window.take_file(path)


def _smoke(app, window) -> int:
    """One picture of the embedded model in two steps."""
    from PySide6.QtCore import QTimer

    from mlxldm.job import Job

    window.queue.saved.connect(lambda picture, job: app.exit(0 if Path(picture.path).exists() else 1))
    window.queue.notice.connect(lambda notice: notice and (print(notice.text, file=sys.stderr), app.exit(1)))
    QTimer.singleShot(120_000, lambda: app.exit(1))
    window.queue.add(Job(prompt="a red lighthouse by the sea at dusk", steps=2, seed=1))
    code = app.exec()
    window.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
