"""Masks in the window: from the painter into the job and back, by keys alone; with the real worker, into the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from app_things import application, gone, until
from conftest import needs_mlx
from PySide6.QtCore import QPointF, Qt
from PySide6.QtGui import QImage
from PySide6.QtTest import QTest
from test_app_window import ALT, CONTROL, SHIFT, drawn, files, opened, place, press  # noqa: F401

from mlxldm.job import Job
from mlxldm_app import pictures
from mlxldm_app.jobs import State
from mlxldm_app.models import Model
from mlxldm_app.window import UPSCALE_STRENGTH, Window

KEY = Qt.Key


@pytest.fixture
def shown(opened, place):  # noqa: F811
    """A window with the newest of three pictures, 64 × 48."""
    files(place, 3)
    window = opened()
    until(lambda: window.shown is not None and len(window.gallery_model.shown) == 3)
    window.queue.pause()
    return window


def dab(window: Window, x: float = 32, y: float = 24, width: float = 20) -> None:
    """One print of the brush, at a place of the picture."""
    painter = window.inpaint.painter
    painter.set_width_of_tool(width)
    QTest.mouseClick(painter, Qt.MouseButton.LeftButton, pos=painter.to_view(QPointF(x, y)).toPoint())


def white(path: str) -> int:
    """The pixels of a mask's file that are painted anew."""
    mask = QImage(path)
    return sum(mask.pixelColor(x, y).red() > 127 for x in range(mask.width()) for y in range(mask.height()))


def test_by_keys_alone_from_a_picture_to_a_job_with_a_mask(shown):
    window = shown
    window.panel.prompt.replace("fine")
    window.side.grid.setFocus()
    press(window, KEY.Key_I, CONTROL)
    painter = window.inpaint.painter
    assert window.focusWidget() is painter and painter.isVisible() and not window.viewer.canvas.isVisible()
    assert Path(window.panel.image).read_bytes() == Path(window.shown.path).read_bytes()
    for key in (KEY.Key_Return, KEY.Key_Right, KEY.Key_Return):
        press(window, key)
    assert window.panel.masking.masked and window.panel.job().strength == 0.8
    QTest.keyClicks(painter, "e]]b")
    press(window, KEY.Key_Return, CONTROL)
    (entry,) = window.queue.waiting
    job = entry.job
    assert job.image == window.panel.image and job.only_masked and (job.mask_grow, job.mask_blur) == (None, None)
    assert 20 < white(job.mask) < 64 * 48 and Path(job.mask).parent == window.queue.inputs
    assert window.viewer.canvas.isVisible() and not painter.isVisible()
    assert Path(job.mask).read_bytes() == painter.layer.png()


def test_a_mask_stays_after_generating_and_comes_again_with_its_picture(shown):
    window = shown
    window.panel.prompt.replace("fine")
    window.do_mask()
    dab(window)
    first = window.inpaint.painter.layer.png()
    window.queue.resume()
    window.do_generate()
    drawn(window, 4)
    assert window.shown.path == window.gallery_model.shown[0].path  # what was made is looked at
    window.do_mask()  # and this is about the same start picture again
    assert window.inpaint.painter.layer.png() == first and window.panel.masking.paint.text() == "Edit the Mask"
    window.do_mask()
    window._select(2)
    window.do_mask()  # another picture was chosen: it has no mask
    assert window.inpaint.painter.mask_png() is None and window.panel.job().mask is None
    assert window.panel.job().strength == 0.6
    start = window.gallery_model.shown[1]
    window._select(1)
    assert not window.inpaint.isVisible()
    window.do_start_from()
    assert Path(window.panel.image).read_bytes() == Path(start.path).read_bytes()
    assert Path(window.panel.job().mask).read_bytes() == first and window.panel.job().strength == 0.8


def test_undo_is_of_strokes_in_the_painter_and_of_settings_elsewhere(shown):
    window = shown
    window.do_mask()
    dab(window, 20)
    once = window.inpaint.painter.layer.png()
    dab(window, 44)
    assert window.actions_["undo"].text() == "&Undo Stroke"
    window.actions_["undo"].trigger()
    assert window.inpaint.painter.layer.png() == once
    press(window, KEY.Key_Z, CONTROL, SHIFT)
    assert window.inpaint.painter.layer.png() != once
    press(window, KEY.Key_Z, CONTROL)
    window.panel.prompt.setFocus()
    assert window.actions_["undo"].text() == "&Undo Start picture"
    window.actions_["undo"].trigger()
    assert window.panel.image is None and not window.inpaint.isVisible()
    window.actions_["redo"].trigger()
    window.do_edit_mask()
    assert window.inpaint.painter.mask_png() is None  # as it was when the picture came


def test_reuse_brings_a_mask_back_in_one_step(shown):
    window = shown
    window.panel.prompt.replace("fine")
    window.do_mask()
    dab(window)
    window.panel.masking.blur.setValue(3)
    window.queue.resume()
    window.do_generate()
    drawn(window, 4)
    made = window.job_of(window.shown)
    assert made.mask is not None and made.mask_blur == 3
    window.panel.well.cleared.emit()
    window.panel.prompt.replace("something else")
    before = window.panel.job()
    assert before.mask is None and before.image is None
    steps = window.undo_stack.count()
    window.do_reuse()
    assert window.undo_stack.count() == steps + 1
    assert window.panel.job().mask == made.mask and window.panel.masking.blur.value() == 3
    window.do_edit_mask()
    assert window.inpaint.painter.layer.png() == Path(made.mask).read_bytes()
    window.panel.prompt.setFocus()
    window.do_undo()
    assert window.panel.job() == before and not window.inpaint.isVisible()


def test_a_job_with_a_mask_goes_in_and_comes_out(shown, place):  # noqa: F811
    window = shown
    image = pictures.keep_input(window.queue.inputs, Path(window.shown.path).read_bytes())
    mask = QImage(64, 48, QImage.Format.Format_Grayscale8)
    mask.fill(255)
    mask.save(str(place / "mask.png"))
    whole = {"prompt": "x", "image": str(image), "strength": 0.7}
    for job in (
        Job(**whole, mask=str(place / "mask.png")),
        Job(**whole, mask=str(place / "mask.png"), mask_grow=-4, mask_blur=5, only_masked=True, mask_padding=16,
            width=64, height=64),
        Job(**whole, extend="64,0,8,0"),
        Job(**whole, extend="64,0,8,0", mask_grow=0, mask_blur=9),
        Job(**whole, extend="0,0,0,8", mask=str(place / "mask.png"), only_masked=True, width=64, height=64),
    ):  # fmt: skip
        window.panel.show_job(job)
        assert window.panel.job() == job
        window.do_edit_mask()
        assert window.panel.job() == job, "opening the painter changes nothing"
        assert window.inpaint.painter.extension() == job.extend
        assert (window.inpaint.painter.mask_png() is None) == (job.mask is None)
        window.leave()


def test_dragged_edges_are_the_jobs_extension(shown):
    window = shown
    window.panel.prompt.replace("fine")
    window.side.grid.setFocus()
    press(window, KEY.Key_E, CONTROL, SHIFT)
    painter = window.inpaint.painter
    assert painter.extendable and window.focusWidget() is painter.handles[2]
    press(window, KEY.Key_Right)
    press(window, KEY.Key_PageUp)
    job = window.panel.job()
    assert job.extend == "0,0,72,0" and (job.width, job.height, job.strength) == (None, None, 1.0)
    assert (window.panel.masking.grow.value(), window.panel.masking.blur.value()) == (16, 6)
    assert not window.panel.shape.isEnabled() and (job.mask_grow, job.mask_blur) == (None, None)
    window.panel.masking.drop.click()
    assert painter.extension() is None and window.panel.job().extend is None and window.panel.shape.isEnabled()
    assert window.panel.job().strength == 0.6 and window.panel.masking.blur.value() == 0


def test_a_mask_waits_until_tomorrow(shown):
    window = shown
    window.panel.prompt.replace("fine")
    window.do_mask()
    dab(window)
    window.do_generate()
    (entry,) = window.queue.waiting
    os.remove(window.shown.path)
    assert os.path.exists(entry.job.mask) and os.path.exists(entry.job.image)
    dab_again = window.inpaint.painter.layer
    dab_again.fill(True)
    assert white(entry.job.mask) < 64 * 48, "what is painted later is another file"
    window.queue.resume()
    until(lambda: not window.queue.waiting and not window.queue.state.busy)
    assert window.queue.state is State.IDLE


def test_a_mask_is_there_after_a_restart_and_its_picture_comes_first(shown, opened):  # noqa: F811
    window = shown
    window.panel.prompt.replace("fine")
    window._select(2)
    window.do_mask()
    dab(window)
    painted, image = window.inpaint.painter.layer.png(), window.panel.image
    window.close()
    again = opened()
    until(lambda: again.panel.image == image and again.shown is not None)
    assert Path(again.panel.job().mask).read_bytes() == painted
    again.do_mask()  # and not the picture that is shown
    assert again.panel.image == image and again.inpaint.painter.layer.png() == painted


def test_the_keys_of_the_other_ways_to_go_on_from_a_picture(shown):
    window = shown
    window.side.grid.setFocus()
    for key, modifiers in ((KEY.Key_V, (CONTROL, ALT)), (KEY.Key_U, (CONTROL,)), (KEY.Key_U, (CONTROL, SHIFT))):
        press(window, key, *modifiers)
    varied, upscaled, enlarged = (entry.job for entry in window.queue.waiting)
    assert varied.variation and (upscaled.width, upscaled.height) == (128, 96) and enlarged.model == "upscaler-x4"
    assert upscaled.steps == varied.steps == 7
    window.history.record = lambda _: {"job": {"prompt": "fine", "seed": 1, "steps": 1}}  # of a quick model
    window.do_upscale()
    assert window.queue.waiting[-1].job.steps == 3  # a third of which is one
    press(window, KEY.Key_O, CONTROL, SHIFT)
    assert window.panel.job().strength == 0.6 and window.panel.image == upscaled.image
    assert not window.panel.advanced.body.isVisible()
    press(window, KEY.Key_2, CONTROL, ALT)
    assert window.panel.advanced.body.isVisible()


def test_models_that_paint_into_pictures_want_a_mask_and_enlarge_none():
    inpaint, sdxl, refiner = (Model("m", task=task) for task in ("inpaint", "text-to-image", "refine"))
    assert inpaint.lacks(True, False) == "Paint a mask first" and not inpaint.lacks(True, True)
    assert inpaint.lacks(False, False) == refiner.lacks(False, False) == "Choose a picture first"
    assert [one.redraws for one in (inpaint, sdxl, refiner)] == [False, True, True]
    wordless = Model("m", family="ldm-inpaint", task="inpaint", guidance=1.0)
    assert [what for what in ("prompt", "negative", "image", "strength", "mask", "extend", "hires")
            if wordless.takes(what)] == ["image", "mask", "extend"]  # fmt: skip


def test_pictures_that_were_only_looked_at_keep_no_mask(shown):
    window = shown
    for row in (0, 1, 2):
        window._select(row)
        window.do_mask()
        if row == 1:
            dab(window)
    painter = window.inpaint.painter
    assert len(painter._layers) == 2 and painter.kept(window.panel.image) is painter.layer


def test_what_a_model_cannot_do_with_a_mask_is_not_shown(shown):
    window = shown
    window.do_start_from()
    panel, act = window.panel, window.actions_
    assert panel.masking.isVisible() and act["mask"].isVisible() and act["extend"].isVisible()
    window.do_mask()
    dab(window)
    panel.model.setCurrentIndex(panel.model.findData("celebahq"))
    assert not panel.masking.isVisible() and not act["mask"].isVisible() and not act["extend"].isVisible()
    assert not window.inpaint.isVisible() and panel.job().mask is None and panel.job().mask_grow is None
    panel.model.setCurrentIndex(panel.model.findData("scenes"))
    assert panel.job().mask is not None


def test_a_mask_that_cannot_be_kept_makes_no_job_without_it(shown, monkeypatch):
    window = shown
    window.panel.prompt.replace("fine")
    window.do_mask()
    dab(window)

    def full(folder: Path, data: bytes) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mlxldm_app.pictures.keep_input", full)
        window.do_generate()
        assert "The mask was not kept: No space left" in window.viewer.bar.words.text() and not window.queue.waiting
        assert window.panel.masking.masked and window.inpaint.isVisible()
    window.do_generate()
    assert white(window.queue.waiting[0].job.mask) > 0


def test_a_mask_is_opened_and_saved(shown, place, monkeypatch):  # noqa: F811
    window = shown
    act = window.actions_
    assert not act["import_mask"].isEnabled()
    window.do_mask()
    dab(window)
    monkeypatch.setattr("mlxldm_app.window.QFileDialog.getSaveFileName", lambda *_: (str(place / "m.png"), ""))
    act["export_mask"].trigger()
    painted = window.inpaint.painter.layer.png()
    assert (place / "m.png").read_bytes() == painted
    window.inpaint.painter.layer.fill(True)
    monkeypatch.setattr("mlxldm_app.window.QFileDialog.getOpenFileName", lambda *_: (str(place / "m.png"), ""))
    act["import_mask"].trigger()
    assert window.inpaint.painter.layer.png() == painted
    (place / "m.png").write_bytes(b"no picture")
    act["import_mask"].trigger()
    assert "not taken as a mask" in window.viewer.bar.words.text()


def test_holes_of_a_start_picture_are_its_mask(shown, place):  # noqa: F811
    window = shown
    holed = QImage(64, 48, QImage.Format.Format_ARGB32)
    holed.fill(0xFF336699)
    for x in range(16):
        for y in range(48):
            holed.setPixel(x, y, 0)
    holed.save(str(place / "holed.png"))
    window.start_from(str(place / "holed.png"))
    window.do_mask()
    assert white(window.panel.job().mask) == 16 * 48


@needs_mlx
def test_the_real_worker_upscales_and_paints_inside_the_mask_only(place):  # noqa: F811
    application()
    window = Window()
    window.show()

    def made(count: int) -> QImage:
        until(lambda: len(window.gallery_model.shown) == count and not window.queue.state.busy, 60)
        notice = window.viewer.bar.notice
        assert notice is None or notice.kind == "news", notice
        return QImage(window.shown.path)

    try:
        until(lambda: window.client.greeting and window.panel.model.count(), 60)
        window.panel.show_job(Job(prompt="a green hill under a yellow sun", seed=5, steps=3))
        window.do_generate()
        before = made(1)
        window.do_upscale()
        upscaled = made(2)
        window._select(1)
        window._add(window.job_of(window.shown).replace(hires=2.0, hires_strength=UPSCALE_STRENGTH))
        assert made(3) == upscaled and upscaled.size() == 2 * before.size(), "the library's second pass"
        window._select(2)
        window.do_mask()
        dab(window, 64, 40, 50)
        window.panel.prompt.replace("a red house in the snow")
        for count, only in ((4, False), (5, True)):
            if window.inpaint.bar.only_masked.isChecked() != only:
                window.do_edit_mask()
                window.inpaint.bar.only_masked.click()
            window.do_generate()
            after, mask = made(count), QImage(window.job_of(window.shown).mask)
            assert after.size() == before.size() == mask.size()
            changed = 0
            for x in range(before.width()):
                for y in range(before.height()):
                    same = before.pixel(x, y) == after.pixel(x, y)
                    assert same or mask.pixelColor(x, y).red() > 127, (x, y)
                    changed += not same
            assert changed > 1000
    finally:
        window.close()
        gone(window)
