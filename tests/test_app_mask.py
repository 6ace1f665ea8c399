"""The app's mask painter: hands and keys hit the right pixels, steps go back bit for bit, edges give numbers."""

from __future__ import annotations

import gc
import os

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("PySide6.QtWidgets", reason="Qt is not here, or not all of it", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt is not here, or not all of it", exc_type=ImportError)

from PySide6.QtCore import QEvent, QMimeData, QPoint, QPointF, QRect, Qt, QUrl  # noqa: E402
from PySide6.QtGui import (  # noqa: E402
    QAccessible,
    QColor,
    QDragEnterEvent,
    QDropEvent,
    QEnterEvent,
    QImage,
    QInputDevice,
    QKeyEvent,
    QNativeGestureEvent,
    QPainter,
    QPointingDevice,
    QTabletEvent,
    QWheelEvent,
)
from PySide6.QtTest import QTest  # noqa: E402
from PySide6.QtWidgets import QApplication, QLineEdit, QPushButton, QVBoxLayout, QWidget  # noqa: E402

from mlxldm.job import Job  # noqa: E402
from mlxldm_app.mask import OPACITY, SOFTNESS, UNDO, Mask, MaskPainter  # noqa: E402
from mlxldm_app.mask_bar import MaskBar  # noqa: E402

LEFT, SHIFT, CTRL = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.ShiftModifier, Qt.KeyboardModifier.ControlModifier
KEY, NONE = Qt.Key, Qt.KeyboardModifier.NoModifier
WIDTH, HEIGHT = 250, 200  # no multiples of four: Qt's rows are longer then


@pytest.fixture(scope="module")
def app():
    yield QApplication.instance() or QApplication([])


@pytest.fixture
def painter(app):
    widget = MaskPainter()
    widget.resize(640, 520)
    widget.show_picture(grey(WIDTH, HEIGHT), "a")
    widget.show()
    widget.activateWindow()
    widget.setFocus()
    yield widget
    widget.close()
    widget.deleteLater()
    app.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def grey(width: int, height: int, value: int = 128) -> QImage:
    image = QImage(width, height, QImage.Format.Format_RGB32)
    image.fill(QColor(value, value, value))
    return image


def place(painter: MaskPainter, x: float, y: float) -> QPoint:
    """The view's pixel nearest to a place of the picture."""
    return painter.to_view(QPointF(x, y)).toPoint()


def stroke(painter: MaskPainter, *places: tuple[float, float], modifiers: Qt.KeyboardModifier = NONE) -> None:
    points = [place(painter, *one) for one in places]
    QTest.mousePress(painter, LEFT, modifiers, points[0])
    for point in points[1:]:
        QTest.mouseMove(painter, point)
    QTest.mouseRelease(painter, LEFT, modifiers, points[-1])


def rows(image: QImage) -> list[bytes]:
    """A mask's pixels, without what Qt puts at the ends of its rows."""
    data, step = bytes(image.constBits()), image.bytesPerLine()
    return [data[y * step : y * step + image.width()] for y in range(image.height())]


def white(mask: Mask) -> set[tuple[int, int]]:
    """The pixels that a job paints anew."""
    return {(x, y) for y, row in enumerate(rows(mask.image)) for x, value in enumerate(row) if value > 127}


def near(places: list[tuple[float, float]], radius: float) -> set[tuple[int, int]]:
    """The pixels whose middle is within a radius of a line through some places."""
    found = set()
    for (ax, ay), (bx, by) in zip(places, places[1:] or places, strict=False):
        length = (bx - ax) ** 2 + (by - ay) ** 2
        for y in range(HEIGHT):
            for x in range(WIDTH):
                px, py = x + 0.5 - ax, y + 0.5 - ay
                t = min(max((px * (bx - ax) + py * (by - ay)) / length, 0), 1) if length else 0
                if (px - t * (bx - ax)) ** 2 + (py - t * (by - ay)) ** 2 <= radius * radius:
                    found.add((x, y))
    return found


# Strokes.


@pytest.mark.parametrize("zoom", [0.37, 1, 2.5, 11])
def test_a_stroke_paints_what_is_under_the_ring_at_every_zoom(painter, zoom):
    painter.zoom(zoom / painter.scale)
    painter.pan(painter.to_view(QPointF(125, 100)) - painter.to_view(QPointF(120, 90)))
    painter.set_width_of_tool(20)
    here = [painter.to_picture(QPointF(place(painter, x, 95))) for x in (112, 121, 130)]
    stroke(painter, *[(point.x(), point.y()) for point in here])
    painted = white(painter.layer)
    line = [(point.x(), point.y()) for point in here]
    assert near(line, 9.6) <= painted <= near(line, 10.4)
    assert len(painted) > 300


def test_the_brush_fades_over_its_band_and_no_more(painter):
    painter.set_width_of_tool(40)
    painter.layer.begin()
    painter.layer.line(QPointF(100.5, 100.5), QPointF(100.5, 100.5), 40)
    painter.layer.end()
    row = rows(painter.layer.image)[100]
    assert set(row[83:118]) == {255} and not any(row[:78]) and not any(row[123:])  # radius 20, 2 to both sides
    assert 100 < row[120] < 155  # one half at the rim
    assert list(row[118:123]) == sorted(row[118:123], reverse=True)


def test_crossing_itself_makes_a_stroke_no_whiter_and_a_soft_one_stays_soft(painter):
    mask = painter.layer
    mask.begin()
    for _ in range(3):
        mask.line(QPointF(50, 60), QPointF(150, 60), 30, 1.0)
    mask.end()
    once = Mask(mask.image.size())
    once.begin()
    once.line(QPointF(50, 60), QPointF(150, 60), 30, 1.0)
    once.end()
    assert rows(once.image) == rows(mask.image)


def test_the_eraser_has_its_own_size_and_takes_away(painter):
    painter.set_width_of_tool(60)
    stroke(painter, (100, 100))
    QTest.keyClick(painter, KEY.Key_E)
    assert painter.eraser and painter.width_of_tool == pytest.approx(WIDTH / 12)
    painter.set_width_of_tool(20)
    stroke(painter, (100, 100))
    painted = white(painter.layer)
    assert (100, 100) not in painted and (100, 115) in painted and (125, 100) in painted
    QTest.keyClick(painter, KEY.Key_X)
    assert not painter.eraser and painter.width_of_tool == 60
    QTest.keyClick(painter, KEY.Key_X)
    assert painter.eraser and painter.width_of_tool == 20


def test_nothing_is_painted_outside_the_picture(painter):
    painter.set_extendable(True)
    painter.set_sides((0, 1, 2, 3), 64)
    painter.set_width_of_tool(30)
    stroke(painter, (-40, -40), (-30, 100))
    stroke(painter, (WIDTH + 20, 50))
    assert not white(painter.layer) and painter.layer.history.count() == 0
    stroke(painter, (-40, 100), (10, 100))  # comes in from outside
    assert {x for x, _ in white(painter.layer)} == set(range(25))
    assert painter.layer.image.size() == painter.picture_size()


def test_shift_click_draws_a_straight_line_from_the_last_stroke(painter):
    painter.set_width_of_tool(12)
    stroke(painter, (30, 40))
    stroke(painter, (200, 150), modifiers=SHIFT)
    line = [painter.to_picture(QPointF(place(painter, *at))).toTuple() for at in ((30, 40), (200, 150))]
    assert near(line, 5.5) <= white(painter.layer) <= near(line, 6.5)
    assert painter.layer.history.count() == 2
    painter.layer.undo()
    assert len(white(painter.layer)) < 130  # the first dab alone


def test_a_pen_paints_as_wide_as_it_is_pressed_and_its_other_end_erases(painter):
    kinds, types = QInputDevice.Capability, QPointingDevice.PointerType

    def pen(kind: QEvent.Type, at: tuple[float, float], pressure: float, end=types.Pen) -> None:
        device = QPointingDevice("pen", 7, QInputDevice.DeviceType.Stylus, end, kinds.Position | kinds.Pressure, 1, 1)
        point = painter.to_view(QPointF(*at))
        pressed = LEFT if kind != QEvent.Type.TabletRelease else Qt.MouseButton.NoButton
        button = Qt.MouseButton.NoButton if kind == QEvent.Type.TabletMove else LEFT
        event = QTabletEvent(
            kind, device, point, point + QPointF(painter.mapToGlobal(QPoint())), pressure, 0, 0, 0, 0, 0, NONE,
            button, pressed,
        )  # fmt: skip
        QApplication.sendEvent(painter, event)
        assert event.isAccepted()

    painter.set_width_of_tool(60)
    pen(QEvent.Type.TabletPress, (60, 100), 0.2)
    pen(QEvent.Type.TabletMove, (180, 100), 0.8)
    pen(QEvent.Type.TabletRelease, (180, 100), 0)
    painted = white(painter.layer)
    heights = [sum((x, y) in painted for y in range(HEIGHT)) for x in (60, 120, 180)]
    assert heights == [pytest.approx(wide, abs=2) for wide in (12, 30, 48)]
    assert painter.layer.history.count() == 1
    pen(QEvent.Type.TabletPress, (120, 100), 0.5, types.Eraser)
    pen(QEvent.Type.TabletRelease, (120, 100), 0, types.Eraser)
    assert (120, 100) not in white(painter.layer) and not painter.eraser


# The history.


def test_undo_and_redo_are_exact(painter):
    mask, seen = painter.layer, []
    seen.append(rows(mask.image))
    for at in ((20, 20), (240, 190), (125, 100)):
        stroke(painter, at, (at[0] - 15, at[1] + 9))
        seen.append(rows(mask.image))
    QTest.keyClick(painter, KEY.Key_I)
    seen.append(rows(mask.image))
    QTest.keyClick(painter, KEY.Key_E)
    stroke(painter, (60, 60), (90, 60))
    seen.append(rows(mask.image))
    QTest.keyClick(painter, KEY.Key_Backspace, CTRL)
    seen.append(rows(mask.image))
    assert len({b"".join(state) for state in seen[1:]}) == len(seen) - 1
    for state in seen[-2::-1]:
        QTest.keyClick(painter, KEY.Key_Z, CTRL)
        assert rows(mask.image) == state
    QTest.keyClick(painter, KEY.Key_Z, CTRL)  # nothing is left to undo
    for state in seen[1:]:
        QTest.keyClick(painter, KEY.Key_Z, CTRL | SHIFT)
        assert rows(mask.image) == state


def test_a_step_keeps_the_changed_rectangle_only(painter):
    painter.set_width_of_tool(20)
    stroke(painter, (100, 100), (130, 100))
    step = painter.layer.history.command(0)
    assert step._rect.width() < 60 and step._rect.height() < 30
    seen: list[QRect] = []
    painter.layer.changed.connect(seen.append)
    painter.layer.undo()
    assert seen == [step._rect]


def test_what_changes_nothing_is_no_step(painter):
    painter.set_eraser(True)
    stroke(painter, (100, 100), (120, 100))
    painter.layer.fill(False)
    assert painter.layer.history.count() == 0


def test_two_hundred_strokes_keep_a_hundred_steps_and_no_memory(painter):
    mask = painter.layer

    def strokes(count: int) -> None:
        for i in range(count):
            mask.begin()
            mask.line(QPointF(i % 240, 20), QPointF(i % 240, 180), 14, erase=i % 2 == 1)
            mask.end()
        gc.collect()

    def steps() -> int:
        return sum(type(thing).__name__ == "_Change" for thing in gc.get_objects())

    strokes(UNDO)
    full = steps()
    strokes(2 * UNDO)
    assert mask.history.count() == UNDO and steps() == full == UNDO


def test_escape_takes_back_the_stroke_that_is_painted(painter):
    stroke(painter, (50, 50))
    before = rows(painter.layer.image)
    QTest.mousePress(painter, LEFT, NONE, place(painter, 150, 100))
    QTest.keyClick(painter, KEY.Key_I)  # nothing else happens meanwhile
    QTest.keyClick(painter, KEY.Key_Z, CTRL)
    assert len(white(painter.layer)) > len(white_of(before))
    QTest.keyClick(painter, KEY.Key_Escape)
    QTest.mouseMove(painter, place(painter, 160, 120))
    QTest.mouseRelease(painter, LEFT, NONE, place(painter, 160, 120))
    assert rows(painter.layer.image) == before and painter.layer.history.count() == 1


def white_of(state: list[bytes]) -> list[int]:
    return [value for row in state for value in row if value > 127]


# All of it, and files.


def test_invert_select_all_and_clear(painter):
    stroke(painter, (100, 100))
    before = rows(painter.layer.image)
    QTest.keyClick(painter, KEY.Key_I)
    assert rows(painter.layer.image) == [bytes(255 - value for value in row) for row in before]
    QTest.keyClick(painter, KEY.Key_A, CTRL)
    assert set(b"".join(rows(painter.layer.image))) == {255} and painter.layer.covered() == 1
    QTest.keyClick(painter, KEY.Key_Backspace, CTRL)
    assert set(b"".join(rows(painter.layer.image))) == {0} and painter.layer.covered() == 0
    assert painter.mask_png() is None


def test_export_is_grey_of_eight_bits_and_comes_back_unchanged(painter):
    stroke(painter, (100, 100), (180, 140))
    data = painter.mask_png()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert (width, height, data[24], data[25]) == (WIDTH, HEIGHT, 8, 0)  # PNG's IHDR: 8 bits, colour type 0
    before = rows(painter.layer.image)
    painter.layer.fill(False)
    painter.layer.load(data)
    assert rows(painter.layer.image) == before
    painter.layer.undo()
    assert painter.layer.covered() == 0


def test_the_library_reads_the_exported_mask_as_it_was_painted(painter, tmp_path):
    pytest.importorskip("numpy")
    from mlxldm.canvas import _white

    stroke(painter, (100, 100), (180, 140))
    (tmp_path / "mask.png").write_bytes(painter.mask_png())
    found = _white(tmp_path / "mask.png", (WIDTH, HEIGHT))
    assert {(x, y) for y, x in zip(*found.nonzero(), strict=True)} == white(painter.layer)
    assert found.mean() == pytest.approx(painter.layer.covered(), abs=1e-12)


def test_a_mask_of_another_size_is_stretched_and_what_is_no_picture_refused(painter):
    image = QImage(50, 40, QImage.Format.Format_Grayscale8)
    image.fill(0)
    half = QPainter(image)
    half.fillRect(0, 0, 25, 40, QColor(255, 255, 255))
    half.end()
    painter.layer.load(image)
    assert painter.layer.image.size() == painter.picture_size()
    assert painter.layer.covered() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="not a picture"):
        painter.layer.load(b"no picture at all")
    assert painter.layer.history.count() == 1


def dropped(painter: MaskPainter, path) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    QApplication.sendEvent(painter, QDragEnterEvent(QPoint(9, 9), Qt.DropAction.CopyAction, data, LEFT, NONE))
    QApplication.sendEvent(painter, QDropEvent(QPointF(9, 9), Qt.DropAction.CopyAction, data, LEFT, NONE))


def test_holes_of_a_dropped_picture_become_the_mask_and_a_plain_picture_does_not(painter, tmp_path):
    image = grey(WIDTH, HEIGHT).convertToFormat(QImage.Format.Format_ARGB32)
    hole = QPainter(image)
    hole.setCompositionMode(QPainter.CompositionMode.CompositionMode_Clear)
    hole.fillRect(20, 30, 40, 50, QColor(0, 0, 0))
    hole.end()
    image.save(str(tmp_path / "holes.png"))
    dropped(painter, tmp_path / "holes.png")
    assert white(painter.layer) == {(x, y) for x in range(20, 60) for y in range(30, 80)}

    other, seen = QImage(WIDTH, HEIGHT, QImage.Format.Format_ARGB32), []
    other.fill(QColor(200, 30, 30))
    other.save(str(tmp_path / "red.png"))
    painter.picture_dropped.connect(seen.append)
    dropped(painter, tmp_path / "red.png")
    assert seen == [str(tmp_path / "red.png")] and painter.layer.history.count() == 1


def test_a_mask_belongs_to_its_picture_and_stays(painter):
    stroke(painter, (100, 100))
    first = rows(painter.layer.image)
    painter.show_picture(grey(64, 48), "b")
    assert painter.mask_png() is None and painter.layer.image.width() == 64
    painter.show_picture(grey(WIDTH, HEIGHT, 50), "a")  # drawn anew
    assert rows(painter.layer.image) == first
    QTest.keyClick(painter, KEY.Key_Z, CTRL)
    assert painter.mask_png() is None


def test_only_the_masked_area_is_suggested_for_little_and_follows_until_somebody_says(painter):
    bar, seen = MaskBar(painter), []
    bar.only_masked_changed.connect(seen.append)
    assert not bar.only_masked.isChecked() and not bar.only_masked.isEnabled()
    stroke(painter, (100, 100))
    assert bar.only_masked.isChecked() and painter.suggests_only_masked()
    painter.layer.fill(True)
    assert not bar.only_masked.isChecked()
    painter.layer.undo()
    assert bar.only_masked.isChecked() and seen == [True, False, True]
    bar.only_masked.click()
    painter.layer.invert()
    painter.layer.invert()
    assert not bar.only_masked.isChecked()
    bar.reset_only_masked()
    assert bar.only_masked.isChecked()


def test_the_buttons_do_what_the_keys_do_and_follow_them(painter):
    bar = MaskBar(painter)
    bar.show()
    QTest.mouseClick(bar.eraser, LEFT)
    assert painter.eraser and bar.eraser.isChecked() and not bar.brush.isChecked()
    QTest.keyClick(painter, KEY.Key_B)
    assert bar.brush.isChecked() and not bar.eraser.isChecked()
    bar.width_slider.setValue(bar.width_slider.maximum())
    assert painter.width_of_tool == 400 and bar.width_label.text() == "400 px"
    QTest.keyClick(painter, "[")
    assert bar.width_label.text() == "364 px" and bar.width_slider.value() < bar.width_slider.maximum()
    bar.softness.setValue(70)
    assert painter.softness == 0.7 and painter.width_of_tool == 364
    assert not bar.undo.isEnabled() and not bar.clear.isEnabled()
    QTest.mouseClick(bar.invert, LEFT)
    assert painter.layer.covered() == 1 and bar.undo.isEnabled()
    QTest.mouseClick(bar.undo, LEFT)
    assert painter.layer.covered() == 0 and bar.redo.isEnabled()
    QTest.mouseClick(bar.redo, LEFT)
    QTest.mouseClick(bar.clear, LEFT)
    assert painter.layer.covered() == 0
    QTest.mouseClick(bar.eye, LEFT)
    assert not painter.shown
    QTest.mouseClick(bar.edges, LEFT)
    painter.set_sides((0,), 16)
    assert painter.extension() == "16,0,0,0"
    QTest.mouseClick(bar.edges, LEFT)
    assert painter.extension() is None and not painter.handles[0].isVisible()
    bar.close()


# What is seen.


def pixel(painter: MaskPainter, x: float, y: float) -> tuple[int, int, int]:
    colour = painter.grab().toImage().pixelColor(place(painter, x, y))
    return colour.red(), colour.green(), colour.blue()


def test_the_overlay_is_red_over_what_is_painted_can_be_hidden_and_have_another_colour(painter):
    painter.set_width_of_tool(60)
    stroke(painter, (100, 100))
    painter._move_ring(None)
    assert pixel(painter, 100, 100) == pytest.approx([128 + (c - 128) * OPACITY for c in (255, 38, 38)], abs=2)
    assert pixel(painter, 200, 100) == (128, 128, 128)
    QTest.keyClick(painter, KEY.Key_M)
    assert pixel(painter, 100, 100) == (128, 128, 128)
    stroke(painter, (200, 60))  # nobody paints unseen
    painter._move_ring(None)
    painter.set_colour(QColor(0, 0, 255))
    red, green, blue = pixel(painter, 100, 100)
    assert painter.shown and blue > 180 and red == green < 80
    painter.pattern = True
    assert len({pixel(painter, 100 + i / painter.scale, 100) for i in range(12)}) > 1  # stripes


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_the_ring_is_seen_on_every_colour(painter, ground):
    painter.show_picture(grey(WIDTH, HEIGHT, ground), f"ground {ground}")
    without = painter.grab().toImage()
    QTest.mouseMove(painter, place(painter, 50, 50))  # the last test may have left it just there
    QTest.mouseMove(painter, place(painter, 100, 100))
    image = painter.grab().toImage()
    radius = painter.width_of_tool / 2 * painter.scale
    centre = place(painter, 100, 100)
    for way in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        line = [image.pixelColor(centre + QPoint(*(round(part * r) for part in way))).lightness()
                for r in range(round(radius) - 4, round(radius) + 5)]  # fmt: skip
        assert max(abs(value - ground) for value in line) > 100
    assert image != without


# Keys, names and the focus.


def test_sizes_by_keys(painter):
    assert painter.width_of_tool == pytest.approx(WIDTH / 12)
    painter.set_width_of_tool(100)
    QTest.keyClick(painter, "]")
    assert painter.width_of_tool == 110
    QTest.keyClick(painter, "[")
    assert painter.width_of_tool == 100
    QTest.keyClick(painter, "}")
    assert painter.width_of_tool == pytest.approx(100 * 1.1**5, abs=1)
    for _ in range(20):
        QTest.keyClick(painter, "}")
    assert painter.width_of_tool == 400
    for _ in range(40):
        QTest.keyClick(painter, "{")
    assert painter.width_of_tool == 4


def test_a_mask_is_painted_by_keys_alone(painter):
    painter.set_width_of_tool(20)
    for _ in range(4):
        QTest.keyClick(painter, KEY.Key_Left, SHIFT)  # four brushes to the left of the middle
    QTest.keyClick(painter, KEY.Key_Up)
    QTest.keyClick(painter, KEY.Key_Return)
    assert near([(45, 95)], 9.6) <= white(painter.layer) <= near([(45, 95)], 10.4)
    for _ in range(6):
        QTest.keyClick(painter, KEY.Key_Right, SHIFT)
    QTest.keyClick(painter, KEY.Key_Return, SHIFT)
    line = [(45, 95), (165, 95)]
    assert near(line, 9.6) <= white(painter.layer) <= near(line, 10.4)
    QTest.keyClick(painter, KEY.Key_E)
    QTest.keyClick(painter, KEY.Key_Return)
    assert (165, 95) not in white(painter.layer) and (100, 95) in white(painter.layer)
    for _ in range(40):
        QTest.keyClick(painter, KEY.Key_Right, SHIFT)
    assert painter._at == QPointF(WIDTH, 95)  # no farther than the picture


def test_letters_belong_to_the_painter_only_while_it_has_the_focus(app):
    window, field, painter, button = QWidget(), QLineEdit(), MaskPainter(), QPushButton("other")
    column = QVBoxLayout(window)
    for widget in (field, painter, button):
        column.addWidget(widget)
    painter.show_picture(grey(64, 64), "a")
    window.show()
    window.activateWindow()
    assert QTest.qWaitForWindowActive(window)

    def enters() -> None:
        QApplication.sendEvent(painter, QEnterEvent(QPointF(5, 5), QPointF(5, 5), QPointF(5, 5)))

    field.setFocus()
    enters()
    assert field.hasFocus()  # somebody writes
    QTest.keyClick(field, KEY.Key_E)
    assert field.text() == "e" and not painter.eraser
    QApplication.sendEvent(painter, QEvent(QEvent.Type.Leave))
    button.setFocus()
    enters()
    assert painter.hasFocus()
    QTest.keyClick(painter, KEY.Key_E)
    assert painter.eraser
    QApplication.sendEvent(painter, QEvent(QEvent.Type.Leave))
    assert button.hasFocus()  # given back
    window.close()


@pytest.mark.parametrize("key, modifiers, text, ours", [
    (KEY.Key_B, NONE, "b", True), (KEY.Key_Z, CTRL, "", True), (KEY.Key_Space, NONE, " ", True),
    (KEY.Key_Left, NONE, "", True), (KEY.Key_Return, NONE, "\r", True), (KEY.Key_Return, CTRL, "\r", False),
    (KEY.Key_Escape, NONE, "", False), (KEY.Key_S, CTRL, "", False), (KEY.Key_D, NONE, "d", False),
])  # fmt: skip
def test_the_window_keeps_its_own_keys(painter, key, modifiers, text, ours):
    event = QKeyEvent(QEvent.Type.ShortcutOverride, key, modifiers, text)
    event.ignore()
    QApplication.sendEvent(painter, event)
    assert event.isAccepted() is ours


def test_screen_readers_are_told_what_is_what(painter):
    painter.set_extendable(True)
    bar = MaskBar(painter)
    told = QAccessible.queryAccessibleInterface(painter)
    assert told.role() == QAccessible.Role.Graphic and told.text(QAccessible.Text.Name) == "Mask painter"
    for handle in painter.handles[:4]:
        told = QAccessible.queryAccessibleInterface(handle)
        assert told.role() == QAccessible.Role.Slider and "edge" in told.text(QAccessible.Text.Name)
    focusable = [widget for widget in bar.findChildren(QWidget) if widget.focusPolicy() & Qt.FocusPolicy.TabFocus]
    assert len(focusable) > 8
    for widget in focusable:
        assert QAccessible.queryAccessibleInterface(widget).text(QAccessible.Text.Name), widget


# Zoom and pan.


def test_zoom_keeps_the_place_under_the_cursor_and_fit_shows_everything(painter):
    at = place(painter, 200, 50)
    for delta in (120, 120, -120, 360):
        event = QWheelEvent(
            QPointF(at), painter.mapToGlobal(QPointF(at)), QPoint(), QPoint(0, delta), Qt.MouseButton.NoButton, NONE,
            Qt.ScrollPhase.NoScrollPhase, False,
        )  # fmt: skip
        before = painter.to_picture(QPointF(at))
        QApplication.sendEvent(painter, event)
        assert (painter.to_picture(QPointF(at)) - before).manhattanLength() < 1e-6
    QTest.keyClick(painter, KEY.Key_8, CTRL)
    assert painter.scale == pytest.approx(1 / painter.devicePixelRatioF())
    QTest.keyClick(painter, KEY.Key_Plus, CTRL)
    assert painter.scale == pytest.approx(1.25 / painter.devicePixelRatioF())
    QTest.keyClick(painter, KEY.Key_Minus, CTRL)
    QTest.keyClick(painter, KEY.Key_9, CTRL)
    whole = painter.area(painter.canvas())
    assert painter.rect().contains(whole.toAlignedRect()) and max(whole.width() / 640, whole.height() / 520) > 0.9


def test_two_fingers_pinch(painter):
    device, before = QPointingDevice.primaryPointingDevice(), painter.scale
    at = QPointF(300, 200)
    event = QNativeGestureEvent(
        Qt.NativeGestureType.ZoomNativeGesture, device, 2, at, at, painter.mapToGlobal(at), 0.5, QPointF()
    )
    here = painter.to_picture(at)
    QApplication.sendEvent(painter, event)
    assert painter.scale == pytest.approx(1.5 * before)
    assert (painter.to_picture(at) - here).manhattanLength() < 1e-6


def test_space_and_a_drag_move_the_picture_and_paint_nothing(painter):
    painter.zoom(3)
    start = painter.to_picture(QPointF(300, 200))
    QTest.keyPress(painter, KEY.Key_Space)
    assert painter.cursor().shape() == Qt.CursorShape.OpenHandCursor
    QTest.mousePress(painter, LEFT, NONE, QPoint(300, 200))
    QTest.mouseMove(painter, QPoint(340, 180))
    QTest.mouseRelease(painter, LEFT, NONE, QPoint(340, 180))
    QTest.keyRelease(painter, KEY.Key_Space)
    assert (painter.to_picture(QPointF(340, 180)) - start).manhattanLength() < 1e-6
    assert painter.layer.history.count() == 0 and painter.cursor().shape() == Qt.CursorShape.BlankCursor


# Beyond the edges.


@pytest.fixture
def edges(painter):
    painter.set_extendable(True)
    QTest.qWait(0)
    return painter


def drag(painter: MaskPainter, handle: int, x: float, y: float) -> None:
    """Pull a handle so far, in pixels of the picture."""
    one = painter.handles[handle]
    centre, by = one.rect().center(), QPoint(round(x * painter.scale), round(y * painter.scale))
    QTest.mousePress(one, LEFT, NONE, centre)
    start, moves = one.mapTo(painter, centre), 6
    for i in range(1, moves + 1):  # the handle moves with the hand: each event is told in its new place
        QTest.mouseMove(one, one.mapFrom(painter, start + by * i / moves))
    QTest.mouseRelease(one, LEFT, NONE, one.mapFrom(painter, start + by))


def test_dragging_a_side_extends_it_in_steps_of_eight(edges):
    edges.zoom(0.5)
    seen = []
    edges.extension_changed.connect(seen.append)
    drag(edges, 2, 61, 30)
    assert edges.extension() == "0,0,64,0" and seen[-1] == "0,0,64,0"
    drag(edges, 1, 0, -30)
    assert edges.extension() == "0,32,64,0"
    drag(edges, 2, -500, 0)  # not into the picture
    assert edges.extension() == "0,32,0,0"
    assert all(int(side) % 8 == 0 for text in seen if text for side in text.split(","))
    job = Job(image="a.png", extend=edges.extension())
    assert Job.from_json(job.to_json()) == job


def test_dragging_a_corner_extends_both_its_sides(edges):
    edges.zoom(0.5)
    drag(edges, 4, -24, -40)
    assert edges.extension() == "24,40,0,0"


def test_a_hand_that_leaves_the_view_is_followed(edges):
    scale = edges.scale
    drag(edges, 2, 400, 0)
    assert edges.scale < scale and edges.fits
    assert int(edges.extension().split(",")[2]) >= 400
    assert edges.rect().contains(edges.area(edges.canvas()).toAlignedRect())


def test_a_double_click_on_a_handle_takes_back_its_sides(edges):
    edges.set_extension("16,24,32,40")
    handle = edges.handles[0]
    QTest.mouseDClick(handle, LEFT, NONE, handle.rect().center())
    assert edges.extension() == "0,24,32,40"
    corner = edges.handles[6]
    QTest.mouseDClick(corner, LEFT, NONE, corner.rect().center())
    assert edges.extension() == "0,24,0,0"


def test_edges_by_keys_alone(edges):
    names = []
    edges.setFocus()
    for _ in range(4):
        QTest.keyClick(QApplication.focusWidget(), KEY.Key_Tab)
        names.append(QApplication.focusWidget().accessibleName().split()[0])
    assert names == ["Left", "Top", "Right", "Bottom"]
    bottom = edges.handles[3]
    for key, modifiers, expected in (
        (KEY.Key_Down, NONE, "0,0,0,8"), (KEY.Key_Down, SHIFT, "0,0,0,72"), (KEY.Key_Up, NONE, "0,0,0,64"),
        (KEY.Key_PageUp, NONE, "0,0,0,128"), (KEY.Key_PageDown, NONE, "0,0,0,64"), (KEY.Key_Home, NONE, None),
        (KEY.Key_Up, NONE, None),
    ):  # fmt: skip
        QTest.keyClick(bottom, key, modifiers)
        assert edges.extension() == expected
    QTest.keyClick(edges.handles[0], KEY.Key_Left)
    assert edges.extension() == "8,0,0,0" and edges.handles[0].value() == 8
    QTest.keyClick(edges.handles[0], KEY.Key_Z, CTRL)  # goes through to the painter, and undoes no edge
    assert edges.extension() == "8,0,0,0"


def test_an_extension_is_put_back_and_a_wrong_one_refused(edges):
    edges.set_extension("8,16,24,32")
    assert edges.extension() == "8,16,24,32" and edges.canvas() == QRect(-8, -16, WIDTH + 32, HEIGHT + 48)
    for wrong in ("8,16,24", "a,b,c,d", "-8,0,0,0", "99999,0,0,0"):
        with pytest.raises(ValueError):
            edges.set_extension(wrong)
    edges.set_extension(None)
    assert edges.extension() is None


def test_a_growing_picture_leaves_the_mask_where_it_was(edges):
    stroke(edges, (100, 100))
    before = rows(edges.layer.image)
    edges.set_extension("64,64,0,0")
    assert rows(edges.layer.image) == before
    edges.set_width_of_tool(20)
    edges.layer.fill(False)
    stroke(edges, (50, 60))
    at = edges.to_picture(QPointF(place(edges, 50, 60))).toTuple()
    assert near([at], 9.6) <= white(edges.layer) <= near([at], 10.4)


def test_the_usual_softness_is_a_fifth(painter):
    assert painter.softness == SOFTNESS == 0.2
    painter.set_softness(3)
    assert painter.softness == 1
