"""Two pictures over each other: what is seen where, by hand and by keys; what was set differently."""

from __future__ import annotations

from pathlib import Path

import fake_worker
import pytest
from app_things import application, until
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QColor, QImage
from PySide6.QtTest import QTest
from test_app_window import CONTROL, SHIFT, files, opened, place, press  # noqa: F401

from mlxldm_app import pictures
from mlxldm_app.compare import Compare, differences, fitted
from mlxldm_app.window import Window

KEY = Qt.Key
RED, BLUE = QColor(200, 30, 30), QColor(30, 30, 200)


def plain(path: Path, colour: QColor, width: int = 64, height: int = 48) -> str:
    image = QImage(width, height, QImage.Format.Format_RGB32)
    image.fill(colour)
    image.save(str(path))
    return str(path)


@pytest.fixture
def comparing(opened, place):  # noqa: F811
    """A window that compares a red picture with a blue one."""
    window = opened()
    window.compare(plain(place / "red.png", RED), plain(place / "blue.png", BLUE))
    return window


def seen(window: Window, part: float, down: float = 0.3) -> QColor:
    """The colour at a part of the pictures' width, as it is on the screen."""
    pair = window.comparing.pair
    area = pair.area(pair.canvas())
    at = QPoint(round(area.left() + part * area.width()), round(area.top() + down * area.height()))
    return pair.grab().toImage().pixelColor(at)


def test_the_first_is_left_of_the_line_and_the_second_right_of_it(comparing):
    window, pair = comparing, comparing.comparing.pair
    assert window.focusWidget() is pair and pair.isVisible()
    assert (seen(window, 0.4), seen(window, 0.6)) == (RED, BLUE)
    area = pair.area(pair.canvas())
    QTest.mousePress(pair, Qt.MouseButton.LeftButton, pos=QPoint(round(pair.line_x()), 100))
    QTest.mouseMove(pair, QPoint(round(area.left() + 0.8 * area.width()), 100))
    QTest.mouseRelease(pair, Qt.MouseButton.LeftButton, pos=QPoint(round(area.left() + 0.8 * area.width()), 100))
    assert pair.line == pytest.approx(0.8, abs=0.01) and window.comparing.slider.value() == round(pair.line * 1000)
    assert (seen(window, 0.7), seen(window, 0.9)) == (RED, BLUE)
    window.comparing.slider.setValue(200)
    assert (seen(window, 0.1), seen(window, 0.3)) == (RED, BLUE)


def test_by_keys_alone(comparing):
    window, pair = comparing, comparing.comparing.pair
    press(window, KEY.Key_Right)
    press(window, KEY.Key_Right, SHIFT)
    assert pair.line == pytest.approx(0.62)
    press(window, KEY.Key_Home)
    assert seen(window, 0.1) == BLUE
    press(window, KEY.Key_End)
    assert seen(window, 0.9) == RED
    QTest.keyPress(pair, KEY.Key_F)
    assert seen(window, 0.1) == BLUE
    QTest.keyRelease(pair, KEY.Key_F)
    assert seen(window, 0.1) == RED
    before = pair.scale
    press(window, KEY.Key_Plus, CONTROL)
    assert pair.scale == pytest.approx(before * 1.25)
    window.actions_["fit"].trigger()
    assert pair.fits and pair.scale == pytest.approx(before)
    press(window, KEY.Key_Escape)
    assert not pair.isVisible() and window.viewer.canvas.isVisible()


def test_both_zoom_and_move_together(opened, place):  # noqa: F811
    window = opened()
    paths = [place / "small.png", place / "large.png"]
    for path, scale in zip(paths, (1, 2), strict=True):  # the same half, in twice as many pixels
        image = QImage(64 * scale, 48 * scale, QImage.Format.Format_RGB32)
        image.fill(RED)
        for x in range(32 * scale):
            for y in range(48 * scale):
                image.setPixelColor(x, y, BLUE)
        image.save(str(path))
    window.compare(*map(str, paths))
    pair = window.comparing.pair
    for _ in range(2):
        edges = []
        for line in (1.0, 0.0):  # each alone
            pair.set_line(line)
            shot = pair.grab().toImage()
            blue = [x for x in range(shot.width()) if shot.pixelColor(x, shot.height() // 2).blue() > 115]
            blue = [x for x in blue if shot.pixelColor(x, shot.height() // 2).red() < 115]  # the ground is grey
            edges.append(max(blue))
        assert abs(edges[0] - edges[1]) <= 2 * pair.scale, edges
        pair.zoom(3)
        pair.pan(QPointF(-40, 60))


def test_what_is_selected_is_compared_and_nothing_made_meanwhile_pushes_it_away(opened, place):  # noqa: F811
    files(place, 3)
    window = opened("--pace", "0.02")
    until(lambda: len(window.gallery_model.shown) == 3 and window.shown is not None)
    act = window.actions_["compare"]
    window.side.grid.setFocus()
    press(window, KEY.Key_Right, SHIFT)
    assert len(window.side.grid.chosen) == 2
    press(window, KEY.Key_K, CONTROL)
    assert window.comparing.isVisible() and act.text() == "&Done Comparing"
    table = window.comparing.table
    rows = {table.item(row, 0).text(): [table.item(row, at).text() for at in (1, 2)] for row in range(table.rowCount())}
    assert rows == {"Prompt": ["fine picture 1 of owls", "fine picture 0 of foxes"], "Seed": ["1", "0"]}
    window.panel.prompt.replace("fine")
    window.queue.add(window.panel.job())
    until(lambda: len(window.gallery_model.shown) == 4 and not window.queue.state.busy)
    assert window.comparing.isVisible()
    press(window, KEY.Key_K, CONTROL)
    assert not window.comparing.isVisible() and act.text() == "&Compare"


def test_a_picture_alone_is_compared_with_what_it_was_made_from_or_the_one_before(opened, place):  # noqa: F811
    files(place, 2)
    window = opened()
    until(lambda: len(window.gallery_model.shown) == 2 and window.shown is not None)
    assert window._two() == (window.gallery_model.shown[1].path, window.gallery_model.shown[0].path)
    window.do_start_from()
    window.panel.prompt.replace("fine")
    start = window.panel.image
    window.do_generate()
    until(lambda: len(window.gallery_model.shown) == 3 and not window.queue.state.busy)
    assert window._two() == (start, window.shown.path)
    window._select(2)
    assert window._two() is None and not window.actions_["compare"].isEnabled()


def test_the_same_pixels_are_said_to_be_and_what_cannot_be_read_is_said(comparing, place):  # noqa: F811
    window = comparing
    record = '{"job": {"prompt": "a fox", "seed": 1}, "made_by": {"backend": "%s"}}'
    for name in ("mlx", "torch"):
        (place / f"{name}.png").write_bytes(fake_worker.png(32, 24, 5, {"mlxldm": record % name}))
    window.compare(str(place / "mlx.png"), str(place / "torch.png"))
    table = window.comparing.table
    assert window.comparing.words.whole == "The same picture, to the bit" and table.rowCount() == 1
    assert [table.item(0, at).text() for at in range(3)] == ["Made by: backend", "mlx", "torch"]
    window.compare(str(place / "mlx.png"), str(place / "mlx.png"))
    assert window.comparing.words.whole == "The same picture, to the bit; nothing was set differently"
    window.leave()
    window.compare(str(place / "mlx.png"), str(place / "nothing.png"))
    assert not window.comparing.isVisible() and "cannot be read" in window.viewer.bar.words.text()


def test_differences_are_listed_by_name():
    one = {"job": {"prompt": "a fox", "steps": 20, "guidance": 7, "loras": ["a:0.5"]}, "made_by": {"mlxldm": "1"}}
    other = {"job": {"prompt": "a fox", "steps": 25, "guidance": 7.0, "negative": "snow", "only_masked": True}}
    assert differences(one, other) == [
        ("Steps", "20", "25"), ("Loras", "a:0.5", "–"), ("Leave out", "–", "snow"), ("Only masked", "–", "yes"),
        ("Made by: mlxldm", "1", "–"),
    ]  # fmt: skip
    masks = [{"job": {"mask": name}} for name in ("0f3a.png", "77aa.png", None)]
    assert differences(masks[0], masks[1]) == [("Mask", "a picture", "another picture")]
    assert differences(masks[2], masks[1]) == [("Mask", "–", "a picture")]
    worn = {"made_by": {"adapters": {"answer": 0.1}}}
    assert differences(worn, {}) == []
    assert differences(one, one) == [] and differences({}, {}) == []
    assert differences({"job": "no dict"}, {"job": {"seed": 1}}) == [("Seed", "–", "1")]


def test_another_shape_is_fitted_into_the_middle():
    application()
    image = QImage(10, 20, QImage.Format.Format_RGB32)
    image.fill(RED)
    made = fitted(image, image.size() * 2)
    assert made.pixelColor(0, 0) == RED
    wide = fitted(image, image.size().transposed() * 2)
    assert wide.pixelColor(2, 10).alpha() == 0 and wide.pixelColor(20, 10) == RED


def test_a_file_that_is_no_picture_is_not_shown(tmp_path):
    application()
    (tmp_path / "a.png").write_bytes(b"no picture")
    page = Compare()
    assert not page.show_files(plain(tmp_path / "b.png", RED), str(tmp_path / "a.png"))
    assert pictures.read(tmp_path / "a.png") is None
    page.deleteLater()
