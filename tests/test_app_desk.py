"""What is opened from the window, joined with it: models, places, settings, making again, what the system is told."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from app_things import application, command, gone, until
from conftest import needs_mlx, needs_torch
from PIL import Image
from PySide6.QtCore import QMimeData, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from mlxldm.job import Job
from mlxldm_app import desk, mac
from mlxldm_app.client import Client
from mlxldm_app.difference import difference
from mlxldm_app.errors import Notice
from mlxldm_app.jobs import State
from mlxldm_app.remote import Place
from mlxldm_app.ssh import ssh
from mlxldm_app.window import Window

STUDIO = Place(host="me@studio.local")


@pytest.fixture
def window(tmp_path, monkeypatch):
    """A window whose every worker is the scripted one; that of another machine has its own name and colours."""
    monkeypatch.setenv("MLXLDM_HOME", str(tmp_path))

    def scripted(place: Place):
        return command("--pace", "0.03", *(("--name", "far", "--shade", "9") if place.host else ()))

    monkeypatch.setattr(Place, "command", property(scripted))
    application()
    window = Window()
    window.show()
    window.activateWindow()
    until(lambda: window.client.greeting and window.panel.model.count() > 1)
    yield window
    window.close()
    gone(window)


def made(window: Window, job: Job) -> None:
    before = len(window.gallery_model.shown)
    window._add(job)
    until(lambda: len(window.gallery_model.shown) == before + job.count and not window.queue.state.busy)


def wishes(window: Window) -> list[dict]:
    """The hellos that the worker got."""
    return [json.loads(line) for line in window.client.log if '"hello"' in line]


# Settings.


def test_what_is_set_is_told_to_the_worker_at_once_and_to_the_next_one(window):
    until(lambda: wishes(window))
    assert wishes(window)[-1] == {"op": "hello", "preview": "rgb8", "every": 1, "awake": True, "memory": 0, "idle": 600}
    window.do_preferences()
    page = window.desk._page
    for combo, choice in ((page.previews, "Every third step"), (page.memory, "At most 8 GB"), (page.keep, "Never")):
        combo.setCurrentText(choice)
        combo.activated.emit(combo.currentIndex())
    QTest.mouseClick(page.awake, Qt.MouseButton.LeftButton)
    wanted = {"op": "hello", "preview": "rgb8", "every": 3, "awake": False, "memory": 8 << 30, "idle": 0}
    until(lambda: wishes(window)[-1] == wanted)
    window.desk.settings.set("previews", "off")
    window.desk.go(STUDIO)
    until(lambda: window.client.greeting and window.client.host)
    until(lambda: wishes(window) and wishes(window)[-1] == {**wanted, "preview": "none", "every": 1})
    window.desk.settings.set("previews", "every")
    until(lambda: wishes(window)[-1]["preview"] == "jpeg", 5)
    page.done_button.click()


def test_how_pictures_are_kept(window, tmp_path):
    for name, value in (("pattern", "{model}/{seed}"), ("inside", False), ("jpeg", True)):
        window.desk.settings.set(name, value)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    window.desk.settings.set("pictures", str(elsewhere))
    made(window, Job(prompt="a secret", seed=7, model="dreamshaper-8", width=64, height=64))
    assert sorted(os.listdir(elsewhere / "dreamshaper-8")) == ["7.jpg", "7.png"]
    assert b"secret" not in (elsewhere / "dreamshaper-8" / "7.png").read_bytes()
    assert window.job_of(window.shown).prompt == "a secret", "the index knows"
    window.rescan.start()
    assert window.job_of(window.shown).seed == 7
    assert str(elsewhere) in window._watcher.directories()


def test_appearance_in_the_menu_and_in_the_settings_are_one(window):
    window.desk.settings.set("appearance", "dark")
    assert window._appearances["dark"].isChecked()
    window._appearances["light"].trigger()
    assert window.desk.settings.get("appearance") == "light"


# Places.


def test_another_machine_is_tested_chosen_used_and_left(window):
    made(window, Job(prompt="fine", seed=1, width=64, height=64))
    window.panel.backend.click()
    popover = window.desk._popovers["Where pictures are made"]
    until(lambda: popover._here is not None)
    assert [row.radio.text() for row in popover.rows] == ["PyTorch, CPU (slow)"]
    assert popover.rows[0].radio.isChecked() and all(popover.rect().contains(row.geometry()) for row in popover.rows)
    assert popover.host.height() >= popover.host.sizeHint().height(), "the popover has grown with its rows"
    QTest.keyClicks(popover.host, "me@studio.local")
    QTest.keyClick(popover.host, Qt.Key.Key_Return)
    until(lambda: len(popover.rows) == 2)
    assert "Gradients" in popover.result.text() and window.desk.settings.get("hosts") == ["me@studio.local"]
    window._add(Job(prompt="slow one", seed=1, count=1, steps=3, width=64, height=64))
    window._add(Job(prompt="fine", seed=2, width=64, height=64))
    until(lambda: window.queue.state is State.GENERATING)
    popover.rows[1].radio.click()
    assert window.client.leaving and "then studio.local" in window.panel.backend.toolTip()
    assert "waits for the picture" in popover.note.text()
    popover.hide()
    until(lambda: len(window.gallery_model.shown) == 3 and not window.queue.state.busy)
    makers = [window.history.record(one.id)["made_by"]["backend"] for one in window.gallery_model.shown]
    assert makers == ["far", "fake", "fake"], "what ran was finished where it was"
    assert "studio.local · far" in window.panel.backend.toolTip()
    assert window.desk.settings.get("place") == "ssh me@studio.local"
    window.do_details()
    text = next(one for one in QApplication.topLevelWidgets() if one.windowTitle() == "Details")
    assert "made by: far" in text.findChild(type(window.viewer.bar.details)).toPlainText()
    text.close()
    window.desk._popover("Where pictures are made").forget(STUDIO)
    until(lambda: window.client.greeting and window.client.host is None)
    assert window.desk.settings.get("hosts") == [] and window.desk.place == Place()


def test_files_cannot_be_added_to_a_machine_that_has_them_not(window, tmp_path):
    window.desk.go(STUDIO)
    until(lambda: window.client.greeting and window.client.host)
    window.take_file(str(tmp_path / "dream.safetensors"))
    assert "is on this machine" in window.viewer.bar.words.text()
    window._act("work_here")
    until(lambda: window.client.greeting and window.client.host is None)


# Making again.


def test_made_again_here_and_elsewhere_with_the_difference(window):
    made(window, Job(prompt="fine", seed=1, width=64, height=64))
    assert "Pictures are saved in" in window.viewer.bar.words.text(), "said once"
    first = window.shown
    window.do_make_again()
    until(lambda: "Made again by fake" in window.viewer.bar.words.text())
    assert "the same picture, to the bit" in window.viewer.bar.words.text() and not window.viewer.bar.notice.actions
    window._show(first)
    window.do_make_again_on()
    popover = window.desk._popovers["Make it again on"]
    popover.show_places(Place(), ["me@studio.local"])
    popover.rows[-1].radio.click()
    assert not popover.isVisible()
    until(lambda: "Made again by far, before by fake" in window.viewer.bar.words.text())
    assert "another picture (" in window.viewer.bar.words.text()
    assert [name for _, name in window.viewer.bar.notice.actions] == ["compare_again", "place_back"]
    window._act("compare_again")
    assert window.comparing.isVisible()
    window._act("place_back")
    until(lambda: window.client.greeting and window.client.host is None)
    made(window, Job(prompt="fine", seed=2, width=64, height=64))
    assert not window.viewer.bar.isVisible(), "neither hint nor difference again"


def test_the_difference_is_that_of_its_definition():
    dice = np.random.default_rng(1)
    first = dice.integers(0, 256, (37, 51, 3), dtype=np.uint8)
    second = np.clip(first.astype(int) + dice.integers(-3, 4, first.shape), 0, 255).astype(np.uint8)

    def image(pixels: np.ndarray) -> QImage:
        height, width = pixels.shape[:2]
        return QImage(pixels.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888).copy()

    found = difference(image(first), image(second))
    apart = np.abs(first.astype(int) - second)
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / np.mean(apart**2)), abs=1e-9)
    assert found.largest == apart.max() and found.share == pytest.approx(np.mean(apart > 0))
    assert "to the eye" in found.words and difference(image(first), image(first)).words.endswith("to the bit")
    assert difference(image(first), image(first[1:])) is None and difference(QImage(), QImage()) is None


# Models.


def test_a_dropped_checkpoint_goes_through_the_sheet_and_can_be_drawn_with(window, tmp_path):
    path = tmp_path / "dream.safetensors"
    path.touch()
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    window.dropEvent(QDropEvent(QPointF(9, 9), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton,
                                Qt.KeyboardModifier.NoModifier))  # fmt: skip
    until(lambda: "" in window.desk._sheets and window.desk._sheets[""].isVisible())
    sheet = window.desk._sheets[""]
    until(lambda: sheet.current is not None and sheet.current.path == str(path))
    sheet.use_button.click()
    assert not sheet.isVisible()
    window.client.ask("add", lambda *_: window._list_models(), path=str(path))  # each scripted worker has its own list
    until(lambda: window.panel.current.name == "dream")


def test_downloads_and_conversions_go_on_while_the_sheet_is_closed(window):
    window.do_models()
    sheet = window.desk._sheets[""]
    until(lambda: sheet.keeper.shelf.models)
    sheet.show_get()
    QTest.keyClicks(sheet.wanted, "some/model")
    sheet.download_button.click()
    until(lambda: "% · model" in window.panel.task.toolTip())
    sheet.done_button.click()
    assert window.panel.task.isVisible()
    until(lambda: "model’ is on this machine now" in window.viewer.bar.words.text())
    assert window.panel.task.isHidden()
    window._act("models")
    assert sheet.isVisible()
    sheet.keeper.pull("other/model")
    until(lambda: sheet.keeper.running and sheet.keeper.running[0].fraction > 0)
    sheet.list.setCurrentIndex(sheet.keeper.shelf.index(0))
    sheet.stop_button.click()
    until(lambda: sheet.keeper.shelf.tasks and not sheet.keeper.running)
    sheet.go_button.click()
    until(lambda: not sheet.keeper.shelf.tasks)
    sheet.keeper.convert("dreamshaper-8", "small", 8, None)
    until(lambda: sheet.pages.currentIndex() == 3)
    assert "sha256 abab" in sheet.report.toPlainText()
    until(lambda: not sheet.keeper.running and not sheet.keeper._talk.busy)
    assert sheet.keeper._talk.ready is not None
    sheet.reject()
    assert sheet.keeper._talk.ready is None, "its worker has ended"
    window.do_models()
    until(lambda: sheet.keeper._talk.ready is not None)


# What the system is told, and what people send.


def test_what_nobody_sees_is_notified(window, monkeypatch):
    told = []
    monkeypatch.setattr(mac, "in_background", lambda: True)
    monkeypatch.setattr(window.desk.manners, "_notify", lambda title, text: told.append(text))
    made(window, Job(prompt="fine", seed=1, count=2, width=64, height=64))
    window._add(Job(prompt="memory of a hill", seed=1))
    until(lambda: len(told) == 2)
    assert told[0] == "2 pictures are ready." and "not enough memory" in told[1]
    window.desk.settings.set("notify", False)
    made(window, Job(prompt="fine", seed=3, width=64, height=64))
    assert len(told) == 2


def test_details_to_send_name_versions_and_neither_words_nor_the_home(window):
    home = os.path.expanduser("~")
    window.say(Notice("‘a secret hill’ went wrong.", (), f"Traceback\n  {home}/venv/x.py"))
    window.viewer.bar.more.click()
    window.viewer.bar.copy.click()
    text = QApplication.clipboard().text()
    assert "secret" not in text and home not in text and "~/venv/x.py" in text
    assert "Qt 6" in text and "worker: 0, fake, cpu, Gradients" in text


def test_the_numbers_of_the_settings_are_those_of_the_worker():
    from mlxldm import worker

    assert desk.FOR_GOOD < worker.MOST and 128 * desk.GB < worker.MOST


# Another machine, with the real worker.


@needs_mlx
@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ssh is a shell script")
def test_a_picture_over_ssh_with_small_previews(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXLDM_HOME", str(tmp_path / "home"))
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "Welcome"; exec "{sys.executable}" -m mlxldm.cli worker --backend mlx\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    application()
    client, said, ends = Client(ssh("me@studio"), host="me@studio"), [], []
    client.greet(preview=STUDIO.preview)
    client.said.connect(lambda message, payload: said.append((message, bytes(payload))))
    client.ended.connect(lambda name, end: ends.append(end))
    client.start()
    until(lambda: client.greeting, 60)
    client.generate("j", Job(prompt="a red house", seed=1, steps=3).to_json())
    until(lambda: ends, 60)
    assert ends[0]["ev"] == "done"
    previews = [payload for message, payload in said if message["ev"] == "preview"]
    assert previews and all(payload.startswith(b"\xff\xd8") for payload in previews)
    (picture,) = [payload for message, payload in said if message["ev"] == "picture"]
    (tmp_path / "a.png").write_bytes(picture)
    with Image.open(tmp_path / "a.png") as image:
        assert "MLX" in json.loads(image.text["mlxldm"])["made_by"]["backend"]
    client.close()
    gone(client)


@needs_mlx
@needs_torch
def test_made_again_on_the_other_backend_and_the_difference_is_said(tmp_path, monkeypatch):
    """The first picture ever, of the model that is built in, and once more on PyTorch."""
    monkeypatch.setenv("MLXLDM_HOME", str(tmp_path))
    application()
    window = Window()
    window.desk.go(Place("mlx", "cpu"))
    window.show()
    try:
        until(lambda: window.client.greeting and window.panel.model.count(), 60)
        assert window.viewer.welcome.isVisible()
        window.panel.show_job(Job(seed=5, steps=2, width=64, height=64))
        window.viewer.example.emit("a red lighthouse by the sea at dusk")
        until(lambda: window.shown is not None and not window.queue.state.busy, 60)
        window._make_again_on(Place("torch", "cpu"))
        until(lambda: "Made again by torch" in window.viewer.bar.words.text(), 120)
        text = window.viewer.bar.words.text()
        assert "before by MLX" in text and ("to the eye" in text or "to the bit" in text), text
        assert window.panel.backend.toolTip().startswith("PyTorch")
    finally:
        window.close()
        gone(window)
