"""The app's process: what it loads and holds, that a person has one of it, and that this Qt suits this Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib

import pytest
from app_things import application, gone, until
from conftest import ROOT, needs_mlx
from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QLabel, QWidget

from mlxldm_app import alone, places


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXLDM_HOME", str(tmp_path))
    return tmp_path


# What it loads.

STARTED = """
import sys, app.__main__
from PySide6.QtWidgets import QApplication
def look(qt):
    qt.processEvents()
    print([name for name in {} if name in sys.modules])
    print(*[line for line in open("/proc/self/status") if "VmHWM" in line])
    next(one for one in qt.topLevelWidgets() if one.windowTitle() == "mlxldm").close()
    return 0
QApplication.exec = look
sys.exit(app.__main__.main([]))
"""
# Frameworks, which would take a second and hundreds of megabytes; and what loads libraries of several megabytes
# (OpenSSL, Qt's network) for things that can be had without them.
NOT_LOADED = ("numpy", "PIL", "mlx", "torch", "hashlib", "ssl", "multiprocessing", "asyncio", "PySide6.QtNetwork")
# Opened seldom: imported when they are.
NOT_YET = ("app.model_sheet", "app.shelf", "app.talk", "app.settings_page", "app.backends", "app.probe",
           "app.difference", "app.compare", "app.inpaint", "app.mask", "app.canvas")  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory a process has is asked of Linux")
def test_it_starts_with_little(place):
    code = STARTED.format(NOT_LOADED + NOT_YET)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded, _, peak = done.stdout.partition("\n")
    assert loaded == "[]" and int(peak.split()[1]) < 95_000


@needs_mlx
def test_a_bundled_worker_gets_its_arguments(place):
    start = "import sys; from mlxldm_app.__main__ import main; sys.exit(main(sys.argv[1:]))"
    for program in (["-c", start], ["-m", "mlxldm.worker"]):  # of PyInstaller, and of Briefcase
        done = subprocess.run([sys.executable, *program, "--worker", "--backend", "mlx", "--device", "cpu"],
                              input=b"", capture_output=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stderr
        ready = json.loads(done.stdout.splitlines()[0])
        assert (ready["ev"], ready["backend"], ready["device"]) == ("ready", "mlx", "cpu")


# One of it.


def test_a_later_start_hands_its_files_to_the_first_and_leaves(place):
    application()
    first, came = alone.lock(places.data()), []
    assert first is not None and alone.lock(places.data()) is None
    handed = alone.Handed(places.data())
    handed.came.connect(came.append)
    picture = str(place / "näive 狐.png")
    for files in ([picture], []):
        later = subprocess.run([sys.executable, "-m", "app", *files], cwd=ROOT, capture_output=True, timeout=30)
        assert later.returncode == 0, later.stderr
    until(lambda: len(came) == 2)
    assert came == [[picture], []] and not list((places.data() / "handed").iterdir())
    gone(handed)
    first.close()
    again = alone.lock(places.data())
    assert again is not None
    again.close()


def test_one_that_crashed_is_in_nobodys_way(place):
    code = (
        "import sys, time; from mlxldm_app import alone, places; first = alone.lock(places.data()); "
        "alone.hand_over(places.data(), ['lost']); print('here', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"here\n"
        assert alone.lock(places.data()) is None
        os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    first = alone.lock(places.data())
    assert first is not None
    application()
    handed = alone.Handed(places.data())
    assert not list((places.data() / "handed").iterdir()), "what nobody took is forgotten"
    gone(handed)
    first.close()


@pytest.mark.parametrize("text", ["", "{", "7", json.dumps([1])])
def test_what_no_start_of_ours_wrote_does_no_harm(place, text):
    application()
    handed, came = alone.Handed(places.data()), []
    handed.came.connect(came.append)
    (places.data() / "handed" / "1.json").write_text(text)
    until(lambda: came)
    assert came == ([["1"]] if text == "[1]" else [[]])
    gone(handed)


# Qt and Python.


class Busy(QWidget):
    """Calls without a result in every direction: into Qt, from Qt into ours, by signal."""

    said = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.label = QLabel(self)
        self.said.connect(self.hear)
        self.heard = self.painted = 0

    def hear(self, number: int) -> None:
        """A slot."""
        self.heard += 1

    def paintEvent(self, event: QObject) -> None:  # noqa: N802
        """An override."""
        self.painted += 1


def test_qt_keeps_its_references_to_none():
    """PySide6 6.12.0 drops one at each such call; where None can die (up to Python 3.11) the process dies of it, after
    some thousand calls and so not in a short test. From 3.12 on None is immortal and its count stands still."""
    application()
    busy = Busy()
    busy.show()
    application().processEvents()

    def work(turns: int) -> None:
        for turn in range(turns):
            busy.label.setText(str(turn))
            busy.setDisabled(turn % 2 == 0)
            busy.repaint()
            busy.said.emit(turn)

    work(5)  # whatever is made once
    before = [sys.getrefcount(one) for one in (None, True, False)]
    work(300)
    after = [sys.getrefcount(one) for one in (None, True, False)]
    assert busy.heard == 305 and busy.painted >= 305
    gone(busy)
    changed = dict(zip(("None", "True", "False"), map(int.__sub__, after, before), strict=True))
    assert all(abs(count) < 60 for count in changed.values()), f"{changed}: this PySide6 kills this Python"


def test_what_is_asked_for_keeps_that_qt_from_that_python():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["app"]
    packaging = pytest.importorskip("packaging.requirements")
    requirements = [packaging.Requirement(one) for one in asked]
    for python, qt, good in (("3.11", "6.12.0", False), ("3.11", "6.11.3", True), ("3.12", "6.12.0", True)):
        held = [one for one in requirements if one.marker is None or one.marker.evaluate({"python_version": python})]
        assert held and all(one.specifier.contains(qt) for one in held) is good, (python, qt)


def test_a_queue_that_cannot_be_opened_is_said_and_left_alone(place):
    data = place / "app"
    (data / "mlxldm.db-wal").mkdir(parents=True)  # as a full disk would do
    code = (
        "import sys; from PySide6.QtWidgets import QMessageBox; from app.__main__ import main;"
        "QMessageBox.critical = lambda parent, title, text: print(text); sys.exit(main([]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1 and done.stdout.startswith(f"The queue in {data} cannot be opened now: ")
    assert "Nothing is lost" in done.stdout and "Traceback" not in done.stderr
    assert not list(data.glob("*damaged*"))
