"""Manners of a Mac, as far as they can be tried elsewhere; what a bundle is made of, and its check."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

import mlxldm
from mlxldm.awake import MAY_SLEEP, USER_INITIATED, Awake

pytest.importorskip("PySide6.QtWidgets", reason="Qt is not here, or not all of it", exc_type=ImportError)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtWidgets import QApplication  # noqa: E402

from mlxldm_app import mac  # noqa: E402


class Granted:
    def __init__(self):
        self.said: list = []

    def begin(self, options: int, reason: str) -> int:
        self.said.append(options)
        return 1

    def end(self, token: int) -> None:
        self.said.append("end")


@pytest.fixture
def manners():
    QApplication.instance() or QApplication([])
    granted, badges, told = Granted(), [], []
    made = mac.Manners(Awake(granted), badges.append, lambda *text: told.append(text))
    return made, granted, badges, told


def test_awake_and_a_number_while_there_is_work(manners):
    made, granted, badges, _ = manners
    made.work(True, 2)
    made.work(True, 2)
    made.work(True, 1)
    made.work(False, 0)
    made.work(True, 0, sleepless=False)
    made.close()
    assert granted.said == [USER_INITIATED, "end", MAY_SLEEP, "end"]
    assert badges == [3, 2, 0, 1, 0]


def test_a_notification_only_where_nobody_looks(manners, monkeypatch: pytest.MonkeyPatch):
    made, _, _, told = manners
    monkeypatch.setattr(mac, "in_background", lambda: False)
    made.picture()
    made.idle()
    monkeypatch.setattr(mac, "in_background", lambda: True)
    made.idle()
    assert told == [], "what was seen is not told again"
    made.picture()
    made.picture()
    made.idle(wanted=False)
    made.picture()
    made.idle()
    assert told == [("mlxldm", "Your picture is ready.")]


def test_the_texts_of_a_notification_are_no_part_of_a_script():
    evil = '" & (do shell script "rm -rf /") & "'
    command = mac.notification_command("darwin", "mlxldm", evil)
    assert command[-1] == evil and evil not in command[2] and "item 2 of argv" in command[2]
    assert mac.notification_command("linux", "t", "-x")[-3:] == ["--", "t", "-x"]
    assert mac.notification_command("win32", "t", "x") == []


OPENING = """
import sys
from PySide6.QtCore import QCoreApplication, QUrl
from PySide6.QtGui import QFileOpenEvent
from mlxldm_app.mac import Application
app, seen = Application([]), []
QCoreApplication.sendEvent(app, QFileOpenEvent(QUrl.fromLocalFile("/a.png")))
app.listen(seen.append)
QCoreApplication.sendEvent(app, QFileOpenEvent(QUrl.fromLocalFile("/b.safetensors")))
assert app.sendEvent(app, QFileOpenEvent(QUrl("https://x/y.png"))) in (True, False)
print(*seen)
"""


def test_files_that_are_opened_wait_until_somebody_listens():
    done = subprocess.run([sys.executable, "-c", OPENING], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == ["/a.png", "/b.safetensors"], done.stderr


def briefcase() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["briefcase"]


def test_the_bundle_is_of_this_version():
    found = briefcase()
    app = found["app"]["mlxldm-desktop"]
    assert found["version"] == mlxldm.__version__
    assert app["requires"][0] == f"dist/mlxldm-{mlxldm.__version__}-py3-none-any.whl"
    assert not any("torch" in one for one in app["requires"])
    assert (ROOT / app["sources"][0] / "__main__.py").exists()
    assert app["macOS"] == {"universal_build": False, "min_os_version": "14.0"}
    for kind in ("png", "safetensors"):
        about = app["document_type"][kind]["macOS"]
        assert (about["CFBundleTypeRole"], about["LSHandlerRank"]) == ("Viewer", "Alternate")


def bundle(where: Path, *files: str) -> Path:
    for name in files:
        path = where / "mlxldm.app" / "Contents" / "Resources" / "app_packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return where / "mlxldm.app"


@pytest.mark.parametrize(("files", "says"), [
    (("mlx/lib/libmlx.dylib", "mlx/lib/mlx.metallib"), None),
    (("mlx/lib/libmlx.dylib",), "mlx.metallib is there 0 times"),
    (("mlx/lib/mlx.metallib",), "libmlx.dylib is there 0 times"),
    (("mlx/lib/libmlx.dylib", "mlx/mlx.metallib"), "side by side"),
    (("mlx/lib/libmlx.dylib", "mlx/lib/mlx.metallib", "other/mlx.metallib"), "mlx.metallib is there 2 times"),
    (("mlx/lib/libmlx.dylib", "mlx/lib/mlx.metallib", "torch/__init__.py"), "torch is in the bundle"),
])  # fmt: skip
def test_the_check_of_a_bundle(tmp_path: Path, files: tuple[str, ...], says: str | None):
    command = [sys.executable, ROOT / "tools" / "verify_bundle.py", bundle(tmp_path, *files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (says is not None)
    assert (says or "each once") in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_or_an_empty_file_is_no_library(tmp_path: Path):
    app = bundle(tmp_path, "mlx/lib/libmlx.dylib", "mlx/lib/mlx.metallib")
    library = next(app.rglob("libmlx.dylib"))
    library.rename(tmp_path / "libmlx.dylib")
    library.symlink_to(tmp_path / "libmlx.dylib")
    next(app.rglob("mlx.metallib")).write_bytes(b"")
    command = [sys.executable, ROOT / "tools" / "verify_bundle.py", app]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "is a link" in done.stderr and "is empty" in done.stderr
    assert subprocess.run([*command[:2], tmp_path / "none.app"], capture_output=True).returncode == 1
