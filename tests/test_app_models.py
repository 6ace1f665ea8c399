"""The model sheet: with a real worker, and with lists that are given to it."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("PySide6.QtWidgets", reason="Qt is not here, or not all of it", exc_type=ImportError)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import QMimeData, QPointF, QSettings, Qt, QUrl  # noqa: E402
from PySide6.QtGui import QDropEvent  # noqa: E402
from PySide6.QtTest import QTest  # noqa: E402
from PySide6.QtWidgets import QApplication, QLabel, QPushButton, QWidget  # noqa: E402

from mlxldm_app.model_sheet import ModelSheet, report  # noqa: E402
from mlxldm_app.shelf import Item, Keeper, Role, gigabytes  # noqa: E402

ROWS = [
    {"name": "broken", "state": "no", "why": "broken.ckpt is no checkpoint.", "path": "/m/broken.ckpt",
     "origin": "added", "folder": "/m"},
    {"name": "SSD", "state": "not there", "path": "/Volumes/SSD", "origin": "added", "folder": "/Volumes/SSD"},
    {"name": "zebra", "family": "sdxl", "task": "inpaint", "kind": "single file", "state": "ready", "path": "/m/zebra",
     "bytes": 6_940_000_000, "origin": "registered"},
    {"name": "style", "family": "sd1", "state": "LoRA", "path": "/m/style", "bytes": 2_000_000, "origin": "added",
     "folder": "/m"},
    {"name": "own", "family": "sd1", "task": "text-to-image", "state": "ready", "path": "/home/own", "origin": "own"},
    {"name": "scenes", "family": "sd1", "state": "ready", "path": "/s", "bytes": 24_750_134, "origin": "embedded"},
]  # fmt: skip

# A worker whose downloads go half way and then fail, stop or are done, as the model's name says.
HALF = """
import json, sys
def say(ev, data=b"", **more):
    line = {"ev": ev, **more, **({"bytes": len(data)} if data else {})}
    sys.stdout.buffer.write(json.dumps(line).encode() + b"\\n" + data); sys.stdout.buffer.flush()
say("ready", protocol=1)
for line in sys.stdin:
    asked = json.loads(line); name = asked["id"]
    if asked["op"] == "models":
        say("models", b"[]", id=name)
    elif asked["op"] == "pull":
        say("progress", id=name, fraction=0.5, message="unet.safetensors")
        if "fails" in asked["model"]: say("error", id=name, kind="wish", message="The network went away.")
        if "dies" in asked["model"]: sys.exit(1)
        if "works" in asked["model"]: say("done", id=name, seconds=1)
    elif asked["op"] == "cancel":
        say("cancelled", id=name)
"""


@pytest.fixture(autouse=True)
def app() -> QApplication:
    return QApplication.instance() or QApplication([])  # type: ignore[return-value]


def wait(done: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "nothing came"
        QTest.qWait(10)


class Still(Keeper):
    """Lists what it is given; nobody is asked."""

    def __init__(self, rows: list[dict]):
        super().__init__()
        self.shelf.show_models(rows)

    def refresh(self) -> None:
        self.listed.emit()


@pytest.fixture
def sheet():
    made = ModelSheet(Still(ROWS))
    made.show()
    QApplication.processEvents()
    yield made
    made.close()


@pytest.fixture
def keeper(tmp_path: Path):
    made = Keeper(settings=QSettings(str(tmp_path / "s.ini"), QSettings.Format.IniFormat))
    yield made
    made.close()


def names(keeper: Keeper) -> list[str]:
    shelf = keeper.shelf
    return [shelf.index(row).data(Role.ITEM).name for row in range(shelf.rowCount())]


def choose(sheet: ModelSheet, name: str) -> None:
    sheet.list.setCurrentIndex(sheet.keeper.shelf.index(sheet.keeper.shelf.row_of(name)))


def buttons(sheet: ModelSheet) -> set[str]:
    return {button.text() for button in sheet.pages.currentWidget().findChildren(QPushButton) if button.isVisible()}


def test_what_can_be_used_stands_first_and_what_is_wrong_is_said(sheet: ModelSheet):
    assert names(sheet.keeper) == ["scenes", "own", "zebra", "style", "SSD", "broken"]
    always = {"Get…", "Add File…", "Add Folder…", "Done"}
    choose(sheet, "scenes")
    assert buttons(sheet) == always | {"Draw with It"}
    choose(sheet, "own")
    assert "Move to Trash" in buttons(sheet) and "Forget" not in buttons(sheet)
    choose(sheet, "zebra")
    assert {"Draw with It", "Convert…", "Forget"} <= buttons(sheet) and "Move to Trash" not in buttons(sheet)
    choose(sheet, "broken")
    assert sheet.why.text() == "broken.ckpt is no checkpoint." and "Forget Its Folder" in buttons(sheet)
    assert "Draw with It" not in buttons(sheet)
    choose(sheet, "SSD")
    assert "Connect its disk" in sheet.why.text() and buttons(sheet) == always | {"Forget"}
    zebra = sheet.keeper.shelf.index(sheet.keeper.shelf.row_of("zebra"))
    said = zebra.data(Qt.ItemDataRole.AccessibleTextRole)
    assert said == "zebra, Stable Diffusion XL · inpainting · single file, 6.9 GB"


def test_search_and_sizes(sheet: ModelSheet):
    QTest.keyClicks(sheet.search, "diffusion inpaint")
    assert names(sheet.keeper) == ["zebra"]
    assert [gigabytes(size) for size in (None, 999, 24_750_134, 6_940_000_000, 13_900_000_000)] == [
        "", "999 bytes", "25 MB", "6.9 GB", "14 GB"]  # fmt: skip


def test_the_first_card_is_there_while_only_the_embedded_model_is():
    sheet = ModelSheet(Still(ROWS[-1:]))
    sheet.show()
    assert sheet.card.isVisible()
    sheet.keeper.shelf.show_models(ROWS)
    assert not sheet.card.isVisible()
    sheet.close()


def test_every_page_is_whole_and_every_widget_has_a_name(sheet: ModelSheet):
    choose(sheet, "zebra")
    for show in (sheet.show_list, sheet.show_get, sheet.show_convert):
        show()
        QApplication.processEvents()
        for widget in sheet.pages.currentWidget().findChildren(QWidget):
            if not widget.isVisible() or widget.objectName().startswith("qt_"):
                continue
            if widget.focusPolicy() != Qt.FocusPolicy.NoFocus and not isinstance(widget, QLabel):
                assert widget.accessibleName() or getattr(widget, "text", lambda: "")(), widget
            if isinstance(widget, QPushButton):
                assert widget.width() >= widget.minimumSizeHint().width(), widget.text()
            if isinstance(widget.parent(), QWidget) and widget.parent() is sheet.pages.currentWidget():
                assert widget.parent().rect().contains(widget.geometry()), widget


def test_keys(sheet: ModelSheet):
    picked = []
    sheet.picked.connect(picked.append)
    choose(sheet, "zebra")
    sheet.show_convert()
    assert sheet.target.text() == "zebra-half"
    sheet.form.setCurrentIndex(1)
    assert sheet.target.text() == "zebra-8bit"
    sheet.target.setText("own")
    assert not sheet.start_convert.isEnabled() and "already" in sheet.target_says.text()
    sheet.target.setText("a/b")
    assert not sheet.start_convert.isEnabled()
    QTest.keyClick(sheet.target, Qt.Key.Key_Escape)
    assert sheet.pages.currentIndex() == 0 and sheet.isVisible()
    QTest.keyClick(sheet.list, Qt.Key.Key_Return)
    assert picked == ["zebra"] and not sheet.isVisible()


def test_a_file_is_looked_at_added_in_place_and_forgotten(keeper: Keeper, tmp_path: Path):
    refused: list[str] = []
    keeper.refused.connect(refused.append)
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(b"nothing")
    keeper.add(str(bad))
    wait(lambda: refused)
    assert "‘bad.ckpt’ was not added." in refused[0] and len(refused[0]) > 40
    sheet = ModelSheet(keeper)
    sheet.show()
    wait(lambda: names(keeper) == ["scenes"])
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(tmp_path))])
    drop = QDropEvent(QPointF(50, 50), Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton,
                      Qt.KeyboardModifier.NoModifier)  # fmt: skip
    sheet.dropEvent(drop)
    wait(lambda: "bad" in names(keeper))
    choose(sheet, "bad")
    assert sheet.why.text() and sheet.current.folder == str(tmp_path)
    keeper.forget(sheet.current)
    wait(lambda: names(keeper) == ["scenes"])
    assert bad.exists()
    sheet.close()


def test_a_conversion_ends_in_a_report_and_in_the_list(keeper: Keeper):
    sheet = ModelSheet(keeper)
    sheet.show()
    wait(lambda: names(keeper) == ["scenes"])
    seen: list[float] = []
    keeper.shelf.dataChanged.connect(lambda *_: seen.append(keeper.shelf.index(0).data(Role.ITEM).fraction))
    keeper.convert("scenes", "small", 8, None)
    assert sheet.keeper.shelf.tasks["small"].state == "running"
    wait(lambda: "small" in names(keeper) and not keeper.shelf.tasks)
    assert sheet.pages.currentIndex() == 3 and seen
    assert "U-Net" in sheet.report.toPlainText() and "matrices quantized" in sheet.report.toPlainText()
    keeper.convert("scenes", "small", 8, None)
    refused: list[str] = []
    keeper.refused.connect(refused.append)
    wait(lambda: refused)
    assert not keeper.shelf.tasks
    sheet.close()


@pytest.mark.parametrize("how", ["fails", "dies", "stops"])
def test_a_download_that_is_cut_is_remembered_and_goes_on(tmp_path: Path, how: str):
    store = QSettings(str(tmp_path / "s.ini"), QSettings.Format.IniFormat)
    command = (sys.executable, ["-c", HALF], {})
    keeper = Keeper(command, store)
    keeper.pull(f"a/{how}")
    wait(lambda: keeper.shelf.tasks[f"a/{how}"].fraction == 0.5 or keeper.shelf.tasks[f"a/{how}"].state == "stopped")
    keeper.pull(f"a/{how}")  # while it runs: nothing more
    if how == "stops":
        keeper.stop(f"a/{how}")
    wait(lambda: keeper.shelf.tasks[f"a/{how}"].state == "stopped")
    keeper.close()
    assert json.loads(store.value("downloads")) == [f"a/{how}"]
    again = Keeper(command, store)
    item = again.shelf.tasks[f"a/{how}"]
    assert item.state == "stopped" and "What arrived is kept" in item.about
    again.forget(item)
    assert not again.shelf.tasks and json.loads(store.value("downloads")) == []
    changed: list[int] = []
    again.changed.connect(lambda: changed.append(1))
    again.pull("a/works")
    wait(lambda: changed)
    assert not again.shelf.tasks and json.loads(store.value("downloads")) == []
    again.close()


def test_a_row_without_anything_and_a_report_without_parts():
    item = Item.of({"name": "x", "bytes": "many", "family": None})
    assert item.about == "" and item.size == "" and item.usable
    assert report("x", {}).startswith("‘x’ is ready.")


def test_a_worker_that_cannot_start_is_said(tmp_path: Path):
    script = tmp_path / "none"
    script.write_text("#!/bin/sh\necho 'no such thing' >&2; exit 3\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    for program in (str(script), str(tmp_path / "missing")):
        keeper, refused = Keeper((program, [], {})), []
        keeper.refused.connect(refused.append)
        keeper.refresh()
        wait(lambda refused=refused: refused)
        assert refused[0].startswith("The worker ended: ")
        keeper.close()
