"""The mask painter's buttons, in two rows that fit beside a narrow picture: tool and history, softness and cost."""

from __future__ import annotations

import math
from collections.abc import Callable

from PySide6.QtCore import QEvent, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QColor, QIcon, QKeySequence, QPainter, QPainterPath, QPalette, QPen, QPixmap
from PySide6.QtWidgets import QHBoxLayout, QLabel, QSlider, QToolButton, QVBoxLayout, QWidget

from . import theme
from .mask import LARGEST, SMALLEST, MaskPainter
from .widgets import Check

_NATIVE = QKeySequence.SequenceFormat.NativeText
_FINE = 200  # steps of the slider for the size, which is even in its logarithm


class MaskBar(QWidget):
    """What the painter's keys do, for the mouse; and whether only the masked area is drawn."""

    only_masked_changed = Signal(bool)

    def __init__(self, painter: MaskPainter, parent: QWidget | None = None):
        super().__init__(parent)
        self.painter = painter
        self._wish: bool | None = None  # None follows the mask, until somebody says
        self._signs: list[tuple[QToolButton, str]] = []
        self.brush = self._button("brush", "Brush", "B", lambda: painter.set_eraser(False), True)
        self.eraser = self._button("eraser", "Eraser", "E", lambda: painter.set_eraser(True), True)
        self.width_slider, self.width_label = self._slider(_FINE, self._wider), self._number("400 px")
        self.undo = self._button("undo", "Undo stroke", "Ctrl+Z", lambda: painter.layer.undo())
        self.redo = self._button("redo", "Redo stroke", "Ctrl+Shift+Z", lambda: painter.layer.redo())
        self.invert = self._button("invert", "Invert mask", "I", lambda: painter.layer.invert())
        self.clear = self._button("clear", "Clear mask", "Ctrl+Backspace", lambda: painter.layer.fill(False))
        self.eye = self._button("eye", "Show mask", "M", lambda: painter.show_mask(not painter.shown), True)
        self.edges = self._button("edges", "Paint beyond the edges", "", self._toggle_edges, True)
        self.softness = self._slider(100, lambda value: painter.set_softness(value / 100))
        self.softness.setAccessibleName("Softness of the brush")
        self.softness_label = self._number("100 %")
        self.only_masked = Check("Only the masked area")
        self.only_masked.setToolTip("Draws the masked area at the full size and puts it back: finer, for small masks")
        self.only_masked.clicked.connect(self._wished)
        self.only_masked.toggled.connect(self.only_masked_changed)
        self.setStyleSheet("QToolButton:checked { background: palette(highlight); border-color: palette(highlight); }")
        self._lay_out()
        painter.tool_changed.connect(self._show_tool)
        painter.mask_changed.connect(self._show_mask)
        painter.extension_changed.connect(lambda _: self._show_mask())
        self._show_tool()
        self._show_mask()

    def reset_only_masked(self) -> None:
        """Let it follow the mask again: for another picture."""
        self.wish_only_masked(None)

    def wish_only_masked(self, on: bool | None) -> None:
        """What somebody said before; None follows the mask."""
        self._wish = on
        self._show_mask()

    # What it is made of.

    def _lay_out(self) -> None:
        rows = QVBoxLayout(self)
        rows.setContentsMargins(16, 6, 16, 6)
        rows.setSpacing(6)
        first = QHBoxLayout()
        first.setSpacing(4)
        for widget in (self.brush, self.eraser, self.width_slider, self.width_label):
            first.addWidget(widget)
        first.addStretch(1)
        for widget in (self.undo, self.redo, self.invert, self.clear, self.eye, self.edges):
            first.addWidget(widget)
        second = QHBoxLayout()
        second.setSpacing(8)
        label = QLabel("Softness")
        label.setBuddy(self.softness)
        for widget in (label, self.softness, self.softness_label):
            second.addWidget(widget)
        second.addStretch(1)
        second.addWidget(self.only_masked)
        rows.addLayout(first)
        rows.addLayout(second)

    def _button(self, sign: str, text: str, keys: str, run: Callable[[], object], stays: bool = False) -> QToolButton:
        button = QToolButton()
        button.setAccessibleName(text)
        button.setToolTip(f"{text} ({QKeySequence(keys).toString(_NATIVE)})" if keys else text)
        button.setCheckable(stays)
        button.clicked.connect(lambda: run())
        self._signs.append((button, sign))
        button.setIcon(_icon(sign, self.palette()))
        return button

    def _slider(self, steps: int, changed: Callable[[int], object]) -> QSlider:
        slider = QSlider(Qt.Orientation.Horizontal)
        slider.setRange(0, steps)
        slider.setMinimumWidth(60)
        slider.setMaximumWidth(150)
        slider.valueChanged.connect(changed)
        return slider

    def _number(self, widest: str) -> QLabel:
        label = QLabel(widest)
        label.setMinimumWidth(label.sizeHint().width())
        return label

    def changeEvent(self, event: QEvent) -> None:
        if event.type() == QEvent.Type.PaletteChange:
            for button, sign in self._signs:
                button.setIcon(_icon(sign, self.palette()))
        super().changeEvent(event)

    # What it shows, and what it is told.

    def _wider(self, value: int) -> None:
        self.painter.set_width_of_tool(round(SMALLEST * (LARGEST / SMALLEST) ** (value / _FINE)))

    def _toggle_edges(self) -> None:
        self.painter.set_extendable(self.edges.isChecked())
        if not self.edges.isChecked():
            self.painter.set_extension(None)

    def _wished(self, on: bool) -> None:
        self._wish = on

    def _show_tool(self) -> None:
        painter = self.painter
        self.brush.setChecked(not painter.eraser)
        self.eraser.setChecked(painter.eraser)
        self.eye.setChecked(painter.shown)
        self.edges.setChecked(painter.extendable)
        width = painter.width_of_tool
        name = "eraser" if painter.eraser else "brush"
        self.width_slider.setAccessibleName(f"Size of the {name} in pixels of the picture")
        self.width_label.setText(f"{width:.0f} px")
        self.softness_label.setText(f"{painter.softness * 100:.0f} %")
        step = round(math.log(width / SMALLEST) / math.log(LARGEST / SMALLEST) * _FINE)
        for slider, value in ((self.width_slider, step), (self.softness, round(painter.softness * 100))):
            slider.blockSignals(True)
            slider.setValue(value)
            slider.blockSignals(False)

    def _show_mask(self) -> None:
        history, covered = self.painter.layer.history, self.painter.layer.covered()
        self.undo.setEnabled(history.canUndo())
        self.redo.setEnabled(history.canRedo())
        self.clear.setEnabled(covered > 0)
        self.only_masked.setEnabled(covered > 0)
        self.only_masked.setChecked(self.painter.suggests_only_masked() if self._wish is None else self._wish)


_LINES: dict[str, list[list[tuple[float, float]]]] = {
    "brush": [[(13.5, 2.5), (7.5, 9)]],
    "eraser": [
        [(6, 13), (2.5, 9.5), (9, 3), (13.5, 7.5), (8, 13), (6, 13)], [(5.5, 6.5), (10, 11)], [(6, 13.2), (13.5, 13.2)],
    ],
    "undo": [[(5.5, 3), (2.5, 6), (5.5, 9)], [(2.5, 6), (9.5, 6)]],
    "redo": [[(10.5, 3), (13.5, 6), (10.5, 9)], [(13.5, 6), (6.5, 6)]],
    "edges": [
        [(5, 5), (11, 5), (11, 11), (5, 11), (5, 5)], [(8, 2.6), (8, 1)], [(8, 13.4), (8, 15)],
        [(2.6, 8), (1, 8)], [(13.4, 8), (15, 8)],
    ],
    "clear": [[(4, 4), (12, 12)], [(12, 4), (4, 12)]],
}  # fmt: skip


def _icon(sign: str, palette: QPalette) -> QIcon:
    """A small sign in the text's colour: drawn, since a font may lack it."""
    made, roles, faint = QIcon(), QPalette.ColorRole, palette.color(QPalette.ColorRole.ButtonText)
    faint.setAlphaF(0.35)
    for colour, mode, state in (
        (palette.color(roles.ButtonText), QIcon.Mode.Normal, QIcon.State.Off),
        (palette.color(roles.HighlightedText), QIcon.Mode.Normal, QIcon.State.On),
        (faint, QIcon.Mode.Disabled, QIcon.State.Off),
    ):
        for scale in theme.scales():
            pixmap = QPixmap(16 * scale, 16 * scale)
            pixmap.setDevicePixelRatio(scale)
            pixmap.fill(Qt.GlobalColor.transparent)
            painter = QPainter(pixmap)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            _draw(painter, sign, colour)
            painter.end()
            made.addPixmap(pixmap, mode, state)
    return made


def _draw(painter: QPainter, sign: str, colour: QColor) -> None:
    painter.setPen(QPen(colour, 1.4, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, Qt.PenJoinStyle.RoundJoin))
    for line in _LINES.get(sign, []):
        painter.drawPolyline([QPointF(x, y) for x, y in line])
    path = QPainterPath()
    if sign == "brush":
        path.moveTo(6.8, 8.6)
        path.cubicTo(3.5, 8.4, 4.6, 12, 2, 13)
        path.cubicTo(6, 14.4, 9, 12.6, 8.2, 10)
        path.closeSubpath()
        painter.fillPath(path, colour)
    if sign in ("undo", "redo"):
        left, way = (9.5, 1) if sign == "undo" else (6.5, -1)
        path.moveTo(left, 6)
        path.cubicTo(left + 4.8 * way, 6, left + 4.8 * way, 13, left, 13)
        path.lineTo(left - 3 * way, 13)
        painter.drawPath(path)
    if sign == "invert":
        painter.drawEllipse(QPointF(8, 8), 5.5, 5.5)
        path.moveTo(8, 2.5)
        path.arcTo(QRectF(2.5, 2.5, 11, 11), 90, 180)
        painter.fillPath(path, colour)
    if sign == "eye":
        path.moveTo(1.5, 8)
        path.cubicTo(4.5, 2.8, 11.5, 2.8, 14.5, 8)
        path.cubicTo(11.5, 13.2, 4.5, 13.2, 1.5, 8)
        painter.drawPath(path)
        painter.setBrush(colour)
        painter.drawEllipse(QPointF(8, 8), 1.6, 1.6)
