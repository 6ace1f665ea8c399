"""Two pictures over each other with a line between them, and what was set differently."""

from __future__ import annotations

import math
from typing import Any

from PySide6.QtCore import QPointF, QRect, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFocusEvent, QImage, QKeyEvent, QMouseEvent, QPainter, QPainterPath, QPixmap
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QSlider,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from . import theme
from .canvas import Easel, outlined
from .difference import difference
from .pictures import INPUTS, read
from .widgets import Elided, Instead

NEAR = 14  # view pixels from the line where a hand takes it
STEPS = 1000  # of the slider
NAMES = {"negative": "leave out", "model": "model", "count": "pictures", "hires": "upscale", "hires_strength": "redraw",
         "mask_blur": "feather", "mask_grow": "grow", "guidance_rescale": "rescale"}  # fmt: skip
_MOVES = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1}


class Pair(Easel):
    """The first picture left of a line, the second right of it. Both zoom and move together."""

    moved = Signal(float)  # the line: 0 is at the left of what is seen, 1 at the right

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.line = 0.5
        self._second = QPixmap()
        self._flipped = False  # while a key is held: the second picture alone
        self._taken = False  # the line, by a hand
        self.setAccessibleName("Two pictures")
        self.setAccessibleDescription(
            "Left and right arrows move the line between them, Home shows the second and End the first alone, "
            "F shows the second as long as it is held"
        )

    def show_pair(self, first: QImage, second: QImage) -> None:
        """Two pictures; the smaller one is shown as large as the other."""
        size = max(first.size(), second.size(), key=lambda one: one.width() * one.height())
        self._second = QPixmap.fromImage(fitted(second, size))
        self.set_picture(fitted(first, size))
        self.set_line(0.5)

    def set_line(self, part: float) -> None:
        """Where the line is, 0 to 1."""
        self.line = min(max(part, 0.0), 1.0)
        self.update()
        self.moved.emit(self.line)

    @property
    def flipped(self) -> bool:
        """Whether the second picture is shown alone for now."""
        return self._flipped

    def flip(self, on: bool) -> None:
        self._flipped = on
        self.update()

    @property
    def _seen(self) -> QRectF:
        """What of the pictures is in the view."""
        return self.area(self.canvas()) & QRectF(self.rect())

    def line_x(self) -> float:
        """The line's place in the view."""
        return self._seen.left() + (0.0 if self._flipped else self.line) * self._seen.width()

    # Painting.

    def paint_over(self, painter: QPainter, exposed: QRect) -> None:
        seen, x = self._seen, self.line_x()
        right = QRectF(x, seen.top(), seen.right() - x, seen.height())
        painter.save()
        painter.setClipRect(right)
        painter.fillRect(right, self.ground or QColor(theme.colours().canvas))
        self.paint_pixmap(painter, self._second, self.area(self.canvas()), exposed)
        painter.restore()
        if not self._flipped:
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            path, middle = QPainterPath(), seen.center().y()
            path.moveTo(x, seen.top())
            path.lineTo(x, seen.bottom())
            for way in (-1, 1):
                path.moveTo(x + way * 7, middle - 5)
                path.lineTo(x + way * 12, middle)
                path.lineTo(x + way * 7, middle + 5)
            outlined(painter, path)
        if x - seen.left() > 40:
            self.badge(painter, seen.topLeft() + QPointF(20, 20), "1")
        if seen.right() - x > 40:
            self.badge(painter, seen.topRight() + QPointF(-20, 20), "2")

    # Hands and keys.

    def moves(self, event: QMouseEvent) -> bool:
        far = not self.fits and abs(event.position().x() - self.line_x()) > NEAR
        return super().moves(event) or (far and event.button() == Qt.MouseButton.LeftButton)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if not self.moves(event) and event.button() == Qt.MouseButton.LeftButton:
            self._taken = True
            self._drag(event.position())
        else:
            super().mousePressEvent(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if self._taken:
            self._drag(event.position())
        else:
            super().mouseMoveEvent(event)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self._taken = False
        super().mouseReleaseEvent(event)

    def _drag(self, at: QPointF) -> None:
        if self._seen.width() > 0:
            self.set_line((at.x() - self._seen.left()) / self._seen.width())

    def pointer(self) -> Qt.CursorShape:
        return Qt.CursorShape.SplitHCursor

    def wants(self, event: QKeyEvent) -> bool:
        others = event.modifiers() & ~(Qt.KeyboardModifier.ShiftModifier | Qt.KeyboardModifier.KeypadModifier)
        keys = (*_MOVES, Qt.Key.Key_Home, Qt.Key.Key_End, Qt.Key.Key_F)
        return (event.key() in keys and not others) or super().wants(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        key = Qt.Key(event.key())
        if not self.wants(event):
            super().keyPressEvent(event)
        elif key in _MOVES:
            far = 0.1 if event.modifiers() & Qt.KeyboardModifier.ShiftModifier else 0.02
            self.set_line(self.line + _MOVES[key] * far)
        elif key in (Qt.Key.Key_Home, Qt.Key.Key_End):
            self.set_line(float(key == Qt.Key.Key_End))
        elif key == Qt.Key.Key_F:
            self.flip(True)
        else:
            super().keyPressEvent(event)

    def keyReleaseEvent(self, event: QKeyEvent) -> None:
        if event.key() == Qt.Key.Key_F and not event.isAutoRepeat():
            self.flip(False)
        super().keyReleaseEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        self.flip(False)
        super().focusOutEvent(event)


class Compare(Instead):
    """The pair, the line as a slider, and a table of what differs."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.pair = Pair()
        self.first, self.second = Elided(), Elided()
        self.second.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(0, STEPS)
        self.slider.setPageStep(STEPS // 10)
        self.slider.setAccessibleName("How much of the first picture is seen")
        self.words = Elided()
        self.words.setProperty("quiet", True)
        self.table = QTableWidget(0, 3)
        self.table.setHorizontalHeaderLabels(["Setting", "1", "2"])
        self.table.setAccessibleName("What was set differently")
        self.table.verticalHeader().hide()
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setShowGrid(False)
        self.table.setTabKeyNavigation(False)
        self.table.setWordWrap(False)
        self.table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        header = self.table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.setHighlightSections(False)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        row = QHBoxLayout()
        row.setContentsMargins(16, 8, 16, 0)
        row.setSpacing(12)
        row.addWidget(self.first, 1)
        row.addWidget(self.slider, 2)
        row.addWidget(self.second, 1)
        below = QVBoxLayout()
        below.setContentsMargins(16, 0, 16, 0)
        below.addWidget(self.words)
        below.addWidget(self.table)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        column.addWidget(self.pair, 1)
        column.addLayout(row)
        column.addLayout(below)
        self.slider.valueChanged.connect(lambda value: self.pair.set_line(value / STEPS))
        self.pair.moved.connect(self._moved)
        self.set_dark()

    @property
    def easel(self) -> Easel:
        """What is zoomed and has the keys."""
        return self.pair

    def show_files(self, first: str, second: str) -> bool:
        """Two pictures' files; False if one of them cannot be read."""
        images, found = [QImage(path) for path in (first, second)], [read(path) for path in (first, second)]
        if any(image.isNull() for image in images):
            return False
        self.pair.show_pair(*images)
        one, other = (about.record if about is not None else {} for about in found)
        for label, image, number in ((self.first, images[0], 1), (self.second, images[1], 2)):
            label.say(f"{number} · {image.width()} × {image.height()}")
        rows = differences(one, other)
        self._fill(rows)
        told = [apart.words] if likely_alike(one, other) and (apart := difference(*images)) is not None else []
        if not rows:
            told.append("nothing was set differently" if one and other else "not both have their settings inside")
        words = "; ".join(told)
        self.words.say(words[:1].upper() + words[1:])
        self.words.setVisible(bool(words))
        return True

    def _fill(self, rows: list[tuple[str, str, str]]) -> None:
        self.table.setRowCount(len(rows))
        for at, row in enumerate(rows):
            for column, text in enumerate(row):
                item = QTableWidgetItem(" ".join(text.split()))
                item.setToolTip(text)
                self.table.setItem(at, column, item)
            self.table.setRowHeight(at, 24)
        shown = min(len(rows), 4)
        self.table.setFixedHeight(self.table.horizontalHeader().sizeHint().height() + 24 * shown + 2)
        self.table.setVisible(bool(rows))

    def _moved(self, part: float) -> None:
        self.slider.blockSignals(True)
        self.slider.setValue(round(part * STEPS))
        self.slider.blockSignals(False)

    def set_dark(self) -> None:
        """The ground, in the scheme that is on."""
        self.pair.ground = QColor(theme.colours().canvas)
        self.pair.update()


def fitted(image: QImage, size: QSize) -> QImage:
    """A picture as large as fits into a size, in its middle; transparent around it."""
    if image.size() == size:
        return image
    way = Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
    scaled = image.scaled(size, *way)
    made = QImage(size, QImage.Format.Format_ARGB32_Premultiplied)
    made.fill(Qt.GlobalColor.transparent)
    painter = QPainter(made)
    painter.drawImage((size.width() - scaled.width()) // 2, (size.height() - scaled.height()) // 2, scaled)
    painter.end()
    return made


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What differs between two pictures' records {"job": ..., "made_by": ...}: its name, and the two values as text.

    The prompt is first, then the job's fields in their order, then what made them.
    """
    rows = []
    for part, what in (("job", "{}"), ("made_by", "made by: {}")):
        one, other = (_dict(record.get(part)) for record in (first, second))
        for key in dict.fromkeys([*one, *other]):
            pair = one.get(key), other.get(key)
            if key == "adapters":
                continue  # what the LoRAs did: which they are is in the job
            if not _alike(*pair):
                pair = _pictures(*pair) if key in INPUTS else pair
                name = NAMES.get(key, key.replace("_", " "))
                rows.append((what.format(name).capitalize(), _said(pair[0]), _said(pair[1])))
    return rows


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def likely_alike(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two records say the same seed and words, so that it is of use to know how far the pictures are apart."""
    one, other = (_dict(record.get("job")) for record in (first, second))
    return all(one.get(key) == other.get(key) for key in ("prompt", "seed"))


def _alike(one: Any, other: Any) -> bool:
    """Equal, numbers as numbers: what went through JSON may have lost its point."""
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def _pictures(one: Any, other: Any) -> tuple[Any, Any]:
    """Files that say nothing by their names."""
    return (one and "a picture"), (other and ("another picture" if one else "a picture"))


def _said(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
