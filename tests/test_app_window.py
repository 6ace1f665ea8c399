"""The window, offscreen, with the scripted worker: what it shows, that the keyboard is enough, that it fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import fake_worker
import pytest
from app_things import application, command, full_disk, gone, spend, until
from conftest import ROOT, needs_mlx
from PySide6.QtCore import QMimeData, QPoint, Qt, QUrl
from PySide6.QtGui import QAccessible, QFontMetrics, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractScrollArea, QApplication, QLabel, QPushButton, QWidget

from mlxldm.job import Job, variation_of
from mlxldm_app import pictures, theme
from mlxldm_app.client import Client
from mlxldm_app.commands import COMMANDS, Command
from mlxldm_app.history import History
from mlxldm_app.jobs import State
from mlxldm_app.window import Window

CONTROL, SHIFT, ALT = (Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier,
                       Qt.KeyboardModifier.AltModifier)  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXLDM_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def opened(place):
    """`opened(*flags)`: a window that is ready. Trash is a folder."""
    application()
    trash = place / "trash"
    trash.mkdir()

    def away(path: str) -> str:
        where = trash / os.path.basename(path)
        os.rename(path, where)
        return str(where)

    windows = []

    def make(*flags: str, size: tuple[int, int] = (1280, 800)) -> Window:
        window = Window(Client(command(*flags)), away)
        windows.append(window)
        window.resize(*size)
        window.show()
        window.activateWindow()
        until(lambda: window.client.greeting and window.panel.model.count() > 1)
        return window

    yield make
    for window in windows:
        window.close()
        gone(window, window.client)


def files(place, count: int, days: int = 3) -> None:
    """Pictures as if they had been made over some days."""
    for at in range(count):
        when = time.time() - (at % days) * 86400 - at
        folder = place / "pictures" / time.strftime("%Y-%m-%d", time.localtime(when))
        folder.mkdir(parents=True, exist_ok=True)
        record = {"job": {"prompt": f"fine picture {at} of {'owls' if at % 2 else 'foxes'}", "seed": at, "steps": 7,
                          "guidance": 2.0, "sampler": "heun"}, "made_by": {"mlxldm": "0"}}  # fmt: skip
        path = folder / f"{at:04}.png"
        path.write_bytes(fake_worker.png(64, 48, at, {"mlxldm": json.dumps(record)}))
        os.utime(path, (when, when))


def press(window: Window, key: Qt.Key, *modifiers: Qt.KeyboardModifier) -> None:
    """A key, to whatever has the focus."""
    held = Qt.KeyboardModifier.NoModifier
    for one in modifiers:
        held |= one
    QTest.keyClick(window.focusWidget() or window, key, held)
    application().processEvents()


def drawn(window: Window, count: int) -> None:
    until(lambda: len(window.gallery_model.shown) == count and not window.queue.state.busy)


# Making pictures.


def test_by_keyboard_alone_from_words_to_a_picture_and_on(opened, place):
    window = opened("--pace", "0.02")
    assert window.focusWidget() is window.panel.prompt and not window.panel.button.isEnabled()
    assert window.panel.button.text() == "Describe a picture first"
    QTest.keyClicks(window.panel.prompt, "slow red fox")
    assert window.panel.button.text() == "Generate"
    press(window, Qt.Key.Key_Return, CONTROL)
    until(lambda: window.queue.state is State.GENERATING and window.queue.progress.step)
    assert window.panel.button.text() == "Add to queue" and "tep 1 of 4" in window.viewer.status.whole
    press(window, Qt.Key.Key_Period, CONTROL)
    until(lambda: not window.queue.state.busy)
    assert window.queue.ended_badly[0].job.prompt == "slow red fox"
    press(window, Qt.Key.Key_A, CONTROL)
    QTest.keyClicks(window.panel.prompt, "fine owl at night")
    press(window, Qt.Key.Key_Return, CONTROL)
    drawn(window, 1)
    assert window.shown is not None and os.path.exists(window.shown.path)
    press(window, Qt.Key.Key_F, CONTROL)
    assert window.focusWidget() is window.side.search
    QTest.keyClicks(window.side.search, "zebra")
    assert not window.gallery_model.shown
    press(window, Qt.Key.Key_A, CONTROL)
    QTest.keyClicks(window.side.search, "ow")
    assert len(window.gallery_model.shown) == 1
    press(window, Qt.Key.Key_Return)
    assert window.focusWidget() is window.side.grid
    press(window, Qt.Key.Key_D, CONTROL)
    assert window.gallery_model.shown[0].favourite
    press(window, Qt.Key.Key_E, CONTROL)
    press(window, Qt.Key.Key_A, CONTROL)
    QTest.keyClicks(window.panel.prompt, "something else")
    press(window, Qt.Key.Key_R, CONTROL)
    assert window.panel.prompt.toPlainText() == "fine owl at night" and window.panel.seed.text()
    press(window, Qt.Key.Key_Z, CONTROL)
    assert window.panel.prompt.toPlainText() == "something else" and not window.panel.seed.text()
    window.side.grid.setFocus()
    press(window, Qt.Key.Key_Backspace)
    assert not window.gallery_model.shown and len(os.listdir(place / "trash")) == 1
    press(window, Qt.Key.Key_Z, CONTROL)
    assert len(window.gallery_model.shown) == 1 and not os.listdir(place / "trash")


def test_what_is_added_while_one_runs_waits_and_can_be_put_first(opened):
    window = opened("--pace", "0.03")
    for words, keys in (("slow a", (CONTROL,)), ("fine b", (CONTROL,)), ("fine c", (CONTROL, SHIFT))):
        window.panel.prompt.replace(words)
        press(window, Qt.Key.Key_Return, *keys)
    assert [entry.job.prompt for entry in window.queue.waiting] == ["fine c", "fine b"]
    assert "1 running, 2 waiting" in window.side.heading.whole and window.side.below.isVisible()
    press(window, Qt.Key.Key_J, CONTROL)
    assert window.focusWidget() is window.side.waiting
    press(window, Qt.Key.Key_Down)
    press(window, Qt.Key.Key_Down)
    press(window, Qt.Key.Key_Up, ALT)
    assert [entry.job.prompt for entry in window.queue.waiting] == ["fine b", "fine c"]
    press(window, Qt.Key.Key_Delete)
    assert [entry.job.prompt for entry in window.queue.waiting] == ["fine c"]
    press(window, Qt.Key.Key_P, CONTROL)
    assert window.queue.held
    press(window, Qt.Key.Key_Period, CONTROL, ALT)
    assert not window.queue.waiting


def test_a_preview_is_shown_in_its_place_and_in_the_corner_of_another(opened, place):
    files(place, 3)
    window = opened("--pace", "0.05")
    until(lambda: len(window.gallery_model.shown) == 3)
    window._add(Job(prompt="slow", seed=1, steps=30, width=64, height=64))
    until(lambda: window.viewer.canvas._live is not None)
    assert not window.viewer.canvas.live_in_corner
    window._select(2)
    assert window.viewer.canvas.live_in_corner and window.shown == window.gallery_model.shown[2]
    press(window, Qt.Key.Key_L, CONTROL, SHIFT)
    assert not window.viewer.canvas.live_in_corner
    window.do_stop()
    until(lambda: not window.queue.state.busy)
    assert window.viewer.canvas._live is None


def test_errors_are_in_the_bar_with_something_to_do(opened):
    window = opened()
    window._add(Job(prompt="fault", seed=1))
    until(lambda: window.queue.state is State.ERROR)
    bar = window.viewer.bar
    assert bar.isVisible() and "inside mlxldm" in bar.words.text() and not bar.details.isVisible()
    bar.more.click()
    assert bar.details.isVisible() and "Traceback" in bar.details.toPlainText()
    bar.close_button.click()
    assert not bar.isVisible()
    window._add(Job(prompt="crash", seed=1))
    until(lambda: window.queue.state is State.CRASHED and window.client.greeting)
    assert "back in the queue, paused" in bar.words.text()


def test_after_a_crash_the_message_and_the_chosen_model_stay(opened):
    window = opened()
    window.panel.show_job(Job(prompt="fine", model="dreamshaper-8", steps=31, width=512, height=512))
    window._add(Job(prompt="crash", seed=1))
    window._add(Job(prompt="fine", seed=2))
    drawn(window, 1)
    spend(0.3)
    assert "back in the queue, paused" in window.viewer.bar.words.text() and window.viewer.bar.isVisible()
    assert (window.panel.job().model, window.panel.job().steps) == ("dreamshaper-8", 31)
    window.queue.again(window.queue.waiting[0].id)
    until(lambda: window.queue.state is State.GENERATING)


def test_without_a_generator_the_button_says_so(place):
    application()
    window = Window(Client(command("--refuse")))
    try:
        window.show()
        until(lambda: window.queue.state is State.DOWN)
        assert window.panel.button.text() == "The generator is not running" and not window.panel.button.isEnabled()
        assert window.viewer.bar.words.text() == "Nothing here can draw: There is no backend here."
    finally:
        window.close()
        gone(window)


def test_a_queue_from_before_is_asked_about(opened, place):
    (place / "app").mkdir()
    history = History(place / "app" / "mlxldm.db")
    for seed in (1, 2):
        history.add_job(Job(prompt="fine", seed=seed, count=2), float(seed))
    history.close()
    window = opened()
    spend(0.2)
    assert window.viewer.bar.words.text() == "4 pictures were waiting." and window.queue.running is None
    window.viewer.bar.findChildren(QPushButton)
    next(one for one in window.viewer.bar.findChildren(QPushButton) if one.text() == "Resume").click()
    drawn(window, 4)


def test_a_job_that_runs_while_the_window_is_closed_keeps_its_place(opened):
    window = opened()
    window._add(Job(prompt="slow", seed=1, count=2))
    window._add(Job(prompt="fine", seed=7))
    until(lambda: window.queue.state is State.GENERATING)
    window.close()
    again = opened()
    assert again.viewer.bar.words.text() == "3 pictures were waiting." and not again.queue.ended_badly
    assert [entry.job.seed for entry in again.queue.waiting] == [1, 7]


# Controls.


def test_a_job_goes_in_and_comes_out(opened):
    window = opened()
    for job in (
        Job(prompt="a fox", model="dreamshaper-8", negative="snow", seed=0, steps=31, guidance=2.5, sampler="heun",
            spacing="karras", width=640, height=448, count=7),
        Job(prompt="x", width=64, height=64),
        Job(prompt="x", width=64, height=64, noise="nvidia", guidance_rescale=0.5, clip_skip=2, seamless="x"),
        Job(prompt="x", width=64, height=64, hires=1.75, hires_strength=0.4, hires_steps=9, variation="12:0.300"),
    ):  # fmt: skip
        window.panel.show_job(job)
        assert window.panel.job() == job
    unknown = Job(prompt="x", model="a/model-that-is-not-here", width=512, height=512)
    window.panel.show_job(unknown)
    assert window.panel.job() == unknown and window.panel.button.text() == "This model is not here now"


def test_what_a_model_cannot_do_is_not_shown(opened):
    window, panel = opened(), None
    panel = window.panel
    panel.disclosure.setChecked(True)
    panel.model.setCurrentIndex(panel.model.findData("a-turbo"))
    assert not panel.negative.isVisible() and not panel.guidance.isVisible() and panel.steps.value == 4
    panel.model.setCurrentIndex(panel.model.findData("celebahq"))
    assert not panel.prompt.isVisible() and not panel.well.isVisible() and panel.button.text() == "Generate"
    assert panel.job().prompt == ""
    panel.model.setCurrentIndex(panel.model.findData("dreamshaper-8"))
    assert panel.negative.isVisible() and panel.guidance.isVisible() and panel.steps.value == 25
    panel.advanced.button.setChecked(True)
    advanced = panel.advanced
    assert advanced.hires.isVisible() and advanced.rescale.isVisible() and not advanced.prompt_2.isVisible()
    assert not advanced.hires_strength.isVisible() and not advanced.other.isVisible()
    advanced.hires.setCurrentIndex(2)
    advanced.rescale.set(0.7)
    assert (panel.job().hires, panel.job().guidance_rescale) == (2.0, 0.7) and advanced.hires_strength.isVisible()
    panel.model.setCurrentIndex(panel.model.findData("a-turbo"))
    assert advanced.prompt_2.isVisible() and panel.job().guidance_rescale is None and panel.job().hires == 2.0
    panel.model.setCurrentIndex(panel.model.findData("celebahq"))
    assert not advanced.hires.isVisible() and not advanced.clip_skip.isVisible() and panel.job().hires is None
    panel.model.setCurrentIndex(panel.model.findData("upscaler-x4"))
    assert panel.button.text() == "Describe a picture first" and panel.well.isVisible()
    panel.prompt.replace("a fox")
    assert panel.button.text() == "Choose a picture first"
    last = panel.model.findData("on-another-disk")
    assert not panel.model.model().item(last).isEnabled()


def test_estimate_and_tokens(opened):
    window = opened()
    window.panel.prompt.replace("word " * 80)
    until(lambda: window.panel.counter.isVisible())
    assert "80" in window.panel.counter.text() and window.panel.counter.property("level") == "amber"
    assert window.panel.estimate.whole == "About 9 s · 3.1 of 16 GB"
    for memory, level in ((13e9, "amber"), (17e9, "red")):
        window.panel.show_estimate(9, int(memory), int(16e9), int(16e9))
        assert window.panel.estimate.property("level") == level
    assert "will use swap" in window.panel.estimate.whole


def test_a_start_picture_by_drop_and_undo(opened, place):
    window = opened()
    outside = place / "outside.jpg"
    QImage(80, 56, QImage.Format.Format_RGB32).save(str(outside), "JPG")
    window.take_file(str(outside))
    job = window.panel.job()
    assert job.image is not None and job.image.endswith(".png") and os.path.exists(job.image) and job.strength == 0.6
    assert (job.width, job.height) == (None, None) and window.panel.shape.currentText() == "Like the picture"
    window.panel.prompt.replace("fine")
    until(lambda: window.panel.estimate.whole.startswith("About"))
    window.do_generate()
    drawn(window, 1)
    assert window.job_of(window.shown).image == job.image, "it can be made again from what was kept"
    window.undo_stack.undo()
    assert window.panel.job().image is None
    window.panel.set_image(str(outside))
    window.panel.well.close_button.click()
    assert window.panel.job().image is None


def test_a_picture_with_its_settings_is_asked_about(opened, place):
    files(place / "elsewhere", 3)
    window = opened()
    path = next((place / "elsewhere").rglob("0002.png"))
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    QApplication.clipboard().setMimeData(data)
    window.do_paste()
    assert "has its settings inside" in window.viewer.bar.words.text()
    window._act("restore_offered")
    job = window.panel.job()
    assert (job.prompt, job.seed, job.steps, job.sampler) == ("fine picture 2 of foxes", 2, 7, "heun")
    window.do_undo()
    assert window.panel.prompt.toPlainText() == ""
    QApplication.clipboard().clear()


def test_reuse_variations_upscale_and_again(opened, place):
    files(place, 1)
    window = opened()
    until(lambda: window.shown is not None)
    window.queue.pause()
    window.do_make_again()
    window.do_variations()
    window.do_upscale()
    same, others, larger = (entry.job for entry in window.queue.waiting)
    assert (same.seed, same.steps, same.count) == (0, 7, 1)
    seed, amount = variation_of(others.variation)
    assert (others.count, others.prompt, others.seed, amount) == (4, same.prompt, same.seed, 0.3) and seed != same.seed
    assert (larger.width, larger.height) == (128, 96) and os.path.exists(larger.image)
    window.do_enlarge()
    *_, enlarged = (entry.job for entry in window.queue.waiting)
    assert window.actions_["enlarge"].text() == "&Enlarge with upscaler-x4" and enlarged.model == "upscaler-x4"
    assert enlarged.image == larger.image and enlarged.prompt == same.prompt and enlarged.strength is None
    window.do_reuse_new()
    assert window.panel.job().seed is None and window.panel.job().guidance == 2.0
    window.panel.take.click()
    assert window.panel.seed.text() == "0"


COPIES = """
import sys, app.window
from PySide6.QtWidgets import QApplication
application = QApplication([])
window = app.window.Window()
window.show()
assert window.shown is not None
window.do_copy()
assert len(application.clipboard().mimeData().urls()) == 1
window.close()
assert application.clipboard().image().width() == 64
sys.exit(7)
"""


def test_what_was_copied_stays_and_leaving_does_not_crash(place):
    files(place, 1)
    (place / "app").mkdir()
    history = History(place / "app" / "mlxldm.db")
    history.add_pictures([pictures.read(path) for path in (place / "pictures").rglob("*.png")])
    history.close()
    assert subprocess.run([sys.executable, "-c", COPIES], cwd=ROOT).returncode == 7


# The gallery.


def test_days_arrows_selection_and_trash_with_undo(opened, place):
    files(place, 30)
    window = opened()
    until(lambda: len(window.gallery_model.shown) == 30)
    grid = window.side.grid
    assert grid._days[:2] == ["Today", "Yesterday"] and len(grid._days) == 3 and grid._columns == 2
    rects = [grid._rect(row) for row in range(30)]
    assert not any(a.intersects(b) for a, b in combinations(rects, 2))
    assert all(rect.left() >= 0 and rect.right() < grid.viewport().width() for rect in rects)
    assert all(grid.indexAt(grid.visualRect(grid.model().index(row, 0)).center()).row() == row for row in range(4))
    assert list(grid._visible(0, 10**6)) == list(range(30))
    window._select(0)
    grid.setFocus()
    press(window, Qt.Key.Key_Down)
    assert grid.currentIndex().row() == 2
    press(window, Qt.Key.Key_Right)
    press(window, Qt.Key.Key_Down)
    assert grid.currentIndex().row() == 5
    press(window, Qt.Key.Key_End)
    assert grid.currentIndex().row() == 29 and grid.verticalScrollBar().value() == grid.verticalScrollBar().maximum()
    assert window.shown == window.gallery_model.shown[29]
    press(window, Qt.Key.Key_Home)
    press(window, Qt.Key.Key_Right, SHIFT)
    press(window, Qt.Key.Key_Right, SHIFT)
    assert len(grid.chosen) == 3
    urls = window.gallery_model.mimeData(grid.selectionModel().selectedIndexes()).urls()
    assert len(urls) == 3 and all(os.path.exists(url.toLocalFile()) for url in urls)
    gone = [one.path for one in grid.chosen]
    press(window, Qt.Key.Key_Delete)
    assert not any(map(os.path.exists, gone)) and len(window.gallery_model.shown) == 27 and window.shown is not None
    window.do_undo()
    assert all(map(os.path.exists, gone)) and len(window.gallery_model.shown) == 30
    press(window, Qt.Key.Key_Space)
    assert window.panel.isHidden() and window.side.isHidden()
    press(window, Qt.Key.Key_Space)
    assert not window.panel.isHidden() and not window.side.isHidden()


def test_files_that_are_moved_in_another_program_are_followed(opened, place):
    files(place, 4)
    window = opened()
    until(lambda: len(window.gallery_model.shown) == 4)
    os.unlink(window.gallery_model.shown[1].path)
    until(lambda: len(window.gallery_model.shown) == 3)
    files(place, 6)
    until(lambda: len(window.gallery_model.shown) == 6)


def test_twenty_thousand_pictures(opened, place):
    """First paint, search and scrolling, in times that also hold on a busy machine; a benchmark says the real ones."""
    from mlxldm_app.history import Found

    (place / "app").mkdir()
    history = History(place / "app" / "mlxldm.db")
    missing = str(place / "pictures")
    history.add_pictures(
        Found(f"{missing}/{i}.png", 1.7e9 + i * 300, 1000, 512, 512, {"job": {"prompt": f"fox number{i % 40}"}})
        for i in range(20_000)
    )
    history.close()
    application()
    window = Window(Client(command()))
    try:
        window.rescan.start = lambda: None  # the files are not there
        window.resize(1280, 800)
        began = time.perf_counter()
        window.show()
        window.side.grid.grab()
        first = time.perf_counter() - began
        assert len(window.gallery_model.shown) == 20_000 and first < 0.6
        bar, worst = window.side.grid.verticalScrollBar(), 0.0
        for at in range(0, bar.maximum(), bar.maximum() // 40):
            began = time.perf_counter()
            bar.setValue(at)
            window.side.grid.viewport().repaint()
            worst = max(worst, time.perf_counter() - began)
        assert worst < 0.15
        window.side.search.setText("number7")
        assert len(window.gallery_model.shown) == 500
    finally:
        window.close()
        gone(window)


# How it looks.


STATES = {
    "idle": (None, lambda window: window.queue.state is State.IDLE),
    "generating": (
        "slow fox",
        lambda window: window.queue.state is State.GENERATING and window.queue.progress.step > 1,
    ),
    "error": ("memory of a fox", lambda window: window.queue.state is State.ERROR),
    "crashed": ("crash of a fox", lambda window: window.queue.state is State.CRASHED and window.client.greeting),
    "painting": (None, lambda window: window.inpaint.isVisible() or window.do_extend()),
    "wearing": (None, lambda window: len(window.panel.loras.rows) == 4 and window.panel.loras.wardrobe.all),
    "comparing": (None, lambda window: window.comparing.isVisible() or window.do_compare()),
}


@pytest.mark.parametrize("size", [(1280, 800), (1024, 640), (900, 600)])
@pytest.mark.parametrize("state", STATES)
def test_nothing_is_clipped_and_nothing_is_outside(opened, place, state, size):
    files(place, 5)
    window = opened("--pace", "0.05", *(["--loras"] if state == "wearing" else []), size=size)
    until(lambda: len(window.gallery_model.shown) == 5)
    worn = ("ink wash:-0.85", "Detail tweaker (more of everything, v2):1:0.5", "xl-film", "lost")
    worn = worn if state == "wearing" else ()
    window.panel.show_job(Job(prompt="fine, <lora:ink wash:1>", model="dreamshaper-8", count=64, loras=worn))
    window.panel.disclosure.setChecked(True)
    window.panel.advanced.button.setChecked(True)
    window.start_from(window.shown.path)
    prompt, there = STATES[state]
    if prompt:
        window._add(Job(prompt=prompt, seed=1, steps=20))
    until(lambda: there(window))
    if state == "painting":
        window.inpaint.painter.set_sides((0, 2), 64)  # now the panel has the mask's numbers
    spend(0.3)
    for widget in window.findChildren(QWidget):
        if not widget.isVisible() or widget.window() is not window:
            continue
        parent, inside_scroll = widget.parentWidget(), False
        one = widget
        while one is not None:
            inside_scroll |= isinstance(one.parentWidget(), QAbstractScrollArea) or isinstance(one, QAbstractScrollArea)
            one = one.parentWidget()
        if parent is not None and not isinstance(widget, QAbstractScrollArea) and not inside_scroll:
            assert parent.rect().contains(widget.geometry()), (
                widget,
                widget.objectName(),
                widget.geometry(),
                parent.rect(),
            )
        text = widget.text() if isinstance(widget, QLabel | QPushButton) else ""
        if text and not (isinstance(widget, QLabel) and widget.wordWrap()):
            wide = max(
                QFontMetrics(widget.font()).horizontalAdvance(line) for line in text.replace("&", "").split("\n")
            )
            assert wide <= widget.width(), (text, wide, widget.width())
        elif text:
            assert widget.heightForWidth(widget.width()) <= widget.height() + 2, (text, widget.size())
    for box in (window.panel.count, window.panel.steps.box, window.panel.guidance.box, window.panel.strength.box):
        shown = box.lineEdit()
        assert QFontMetrics(box.font()).horizontalAdvance(shown.text()) + 12 <= shown.width() + 6, shown.text()
    masking, advanced = window.panel.masking, window.panel.advanced
    for box in (masking.grow, masking.blur, advanced.clip_skip, *(row.weight.box for row in window.panel.loras.rows)):
        shown = box.lineEdit()
        assert QFontMetrics(box.font()).horizontalAdvance(shown.text()) + 12 <= shown.width() + 6 or not box.isVisible()
    for combo in (window.panel.model, window.panel.sampler, window.panel.spacing, window.panel.shape, advanced.hires,
                  advanced.seamless, advanced.noise):  # fmt: skip
        assert QFontMetrics(combo.font()).horizontalAdvance(combo.currentText()) <= combo.width() - 30, (
            combo.currentText()
        )


def test_everything_that_takes_the_focus_has_a_name(opened, place):
    files(place, 2)
    window = opened("--loras")
    window.panel.disclosure.setChecked(True)
    window.panel.show_job(Job(prompt="fine", loras=("ink wash", "soft light")))
    until(lambda: window.shown is not None and len(window.panel.loras.rows) == 2 and window.panel.loras.wardrobe.all)
    window._add(Job(prompt="fault", seed=1))
    until(lambda: window.viewer.bar.isVisible())
    pages, named = [window.inpaint, window.comparing], 0
    assert all(window.isAncestorOf(page) for page in pages)
    for widget in window.findChildren(QWidget):
        if widget.focusPolicy() == Qt.FocusPolicy.NoFocus or widget.objectName().startswith("qt_"):
            continue
        if type(widget) is QWidget or widget.focusProxy() is not None:
            continue
        about = QAccessible.queryAccessibleInterface(widget)
        assert about is not None and about.text(QAccessible.Text.Name).strip(), (widget, widget.parentWidget())
        named += 1
    assert named > 25
    grid = QAccessible.queryAccessibleInterface(window.side.grid)
    assert grid.childCount() >= 2
    assert "fine picture" in window.gallery_model.index(0).data(Qt.ItemDataRole.AccessibleTextRole)


def test_every_command_is_in_the_menu_bar_once_and_no_two_have_one_key(opened):
    window = opened()
    listed = [
        action for menu in window.menuBar().actions() for action in menu.menu().actions() if not action.isSeparator()
    ]
    commands = [command for command in COMMANDS if isinstance(command, Command)]
    for one in commands:
        assert listed.count(window.actions_[one.name]) == 1, one.name
    keys = [(key.toString(), one.name) for one in commands for key in window.actions_[one.name].shortcuts()]
    assert len({key for key, _ in keys}) == len(keys), sorted(keys)
    for action in window.viewer.more.menu().actions():
        assert action.isSeparator() or action in listed


def test_colours_can_be_read():
    for c in (theme.LIGHT, theme.DARK):
        pairs = [(c.text, ground) for ground in (c.window, c.base, c.raised, c.pressed, c.canvas, c.notice)]
        pairs += [(c.quiet, ground) for ground in (c.window, c.base, c.canvas)]
        pairs += [(level, c.window) for level in (c.amber, c.red)] + [(c.on_accent, c.accent), (c.red, c.notice)]
        for text, ground in pairs:
            assert theme.contrast(text, ground) >= 4.5, (text, ground)
        assert theme.contrast(c.ring, c.window) >= 3, "a ring is no text"
    assert theme.contrast("#000000", "#ffffff") == pytest.approx(21)


def test_both_schemes_and_what_is_remembered(opened, place):
    window = opened()
    window.set_appearance("dark")
    assert window.grab().toImage().pixelColor(5, 400).lightness() < 60
    window.panel.show_job(Job(prompt="remember me", model="dreamshaper-8", steps=33, width=512, height=512))
    window.panel.disclosure.setChecked(True)
    window.do_gallery()
    window.close()
    again = opened()
    assert again.panel.job() == Job(prompt="remember me", model="dreamshaper-8", steps=33, width=512, height=512)
    assert again.panel.disclosure.isChecked() and again.side.isHidden()
    again.set_appearance("light")
    assert again.grab().toImage().pixelColor(5, 400).lightness() > 200


def test_zoom_stays_where_the_pointer_is(opened, place):
    files(place, 1)
    window = opened()
    until(lambda: window.shown is not None)
    canvas = window.viewer.canvas
    fit = canvas.zoom
    at = QPoint(canvas.width() // 2 + 50, canvas.height() // 2 - 40).toPointF()
    before = canvas._place()
    part = (at.x() - before.x()) / before.width()
    canvas.zoom_by(3.0, at)
    after = canvas._place()
    assert (at.x() - after.x()) / after.width() == pytest.approx(part, abs=1e-3) and canvas.zoom == pytest.approx(
        3 * fit
    )
    window.do_pixels()
    assert canvas.zoom == 1
    window.do_fit()
    assert canvas.zoom == fit


# The process.


@needs_mlx
def test_a_picture_from_the_real_worker(place):
    """`--smoke`: the window, the real worker, the embedded model, two steps, a file."""
    done = subprocess.run(
        [sys.executable, "-m", "app", "--smoke"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@needs_mlx
def test_the_real_worker_in_a_window(place):
    application()
    window = Window()
    window.show()
    try:
        until(lambda: window.client.greeting, 60)
        until(lambda: window.panel.model.count())
        assert window.panel.current.name == "scenes" and window.panel.shape.currentData() is not None
        window.panel.prompt.replace("a red lighthouse by the sea")
        window.panel.steps.set(2)
        window.panel.seed.setText("5")
        until(lambda: window.panel.button.isEnabled())
        window.do_generate()
        until(lambda: window.shown is not None and not window.queue.state.busy, 60)
        job = window.job_of(window.shown)
        assert (job.prompt, job.seed, job.steps) == ("a red lighthouse by the sea", 5, 2)
        assert "Pictures are saved in" in window.viewer.bar.words.text()
        first = Path(window.shown.path).read_bytes()
        window.do_make_again()
        until(lambda: len(window.gallery_model.shown) == 2 and not window.queue.state.busy, 60)
        assert Path(window.shown.path).read_bytes() == first, "the same job is the same file"
    finally:
        window.close()
        gone(window)


def test_a_wish_that_cannot_be_kept_is_not_taken(opened):
    window = opened()
    window.panel.prompt.setPlainText("fine")
    with full_disk():
        window.do_generate()
    assert "not put into the queue" in window.viewer.bar.notice.text and not window.queue.waiting
    assert window.queue.running is None and window.history.jobs() == []
    window.do_generate()
    until(lambda: window.history.pictures())
