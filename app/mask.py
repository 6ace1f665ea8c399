"""Painting what is to be drawn anew: a mask over a picture, white where a job paints.

`Mask` is the pixels and their history, `MaskPainter` the hand that paints them.
"""

from __future__ import annotations

import math
import zlib

from PySide6.QtCore import (
    QBuffer,
    QEvent,
    QIODevice,
    QMimeData,
    QObject,
    QPointF,
    QRect,
    QRectF,
    QSize,
    QSizeF,
    Qt,
    Signal,
)
from PySide6.QtGui import (
    QBrush,
    QColor,
    QDragEnterEvent,
    QDropEvent,
    QEnterEvent,
    QFocusEvent,
    QGuiApplication,
    QImage,
    QImageWriter,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPainterPath,
    QPen,
    QPixmap,
    QPointingDevice,
    QRadialGradient,
    QTabletEvent,
    QUndoCommand,
    QUndoStack,
    QWheelEvent,
    qRgba,
)
from PySide6.QtWidgets import QAbstractSpinBox, QApplication, QLineEdit, QPlainTextEdit, QTextEdit, QWidget

from .canvas import Command, Easel, outlined

UNDO = 100  # strokes
SMALLEST, LARGEST = 4, 400  # pixels of the picture across a brush
SOFTNESS = 0.2
FEW = 0.4  # of the picture: with less than that masked, it is drawn from near
RED = QColor(255, 38, 38)
OPACITY = 0.45

_GREY = QImage.Format.Format_Grayscale8
_COUNTS = bytes(128) + b"\1" * 128  # above one half a pixel counts as white: that is where the job cuts
_VEIL = [qRgba(255, 255, 255, value) for value in range(256)]
_HARD = [qRgba(255, 255, 255, 255 * count) for count in _COUNTS]
_SHIFT = Qt.KeyboardModifier.ShiftModifier
_ENTER = (Qt.Key.Key_Return, Qt.Key.Key_Enter)
_ARROWS = {
    Qt.Key.Key_Left: QPointF(-1, 0), Qt.Key.Key_Right: QPointF(1, 0),
    Qt.Key.Key_Up: QPointF(0, -1), Qt.Key.Key_Down: QPointF(0, 1),
}  # fmt: skip
_WRITTEN = (QLineEdit, QPlainTextEdit, QTextEdit, QAbstractSpinBox)


class Mask(QObject):
    """What is to be painted anew in one picture: 255 is, 0 is not. It outlives the painter's looking at it."""

    changed = Signal(QRect)  # in pixels of the picture

    def __init__(self, size: QSize, parent: QObject | None = None):
        super().__init__(parent)
        self.image = QImage(size, _GREY)
        self.image.fill(0)
        self.history = QUndoStack(self)
        self.history.setUndoLimit(UNDO)
        self._before: QImage | None = None  # while a stroke is painted
        self._touched = QRect()
        self._covered: float | None = 0.0
        self.changed.connect(self._forget)

    # Strokes.

    @property
    def painting(self) -> bool:
        """Whether a stroke has begun and not ended."""
        return self._before is not None

    def begin(self) -> None:
        """A stroke starts: `line` paints it, `end` makes it one step of the history, `cancel` takes it back."""
        self.end()
        self._before, self._touched = QImage(self.image), QRect()

    def line(self, start: QPointF, stop: QPointF, width: float, softness: float = SOFTNESS, erase: bool = False,
             first: float | None = None) -> None:  # fmt: skip
        """A straight piece of a stroke, in pixels of the picture; `width` is the brush's at its end, `first` where it
        starts. A brush is one half white at the rim of its width, white inside and black outside, over a band of
        `softness` times its radius. Crossing itself does not make it whiter."""
        first = width if first is None else first
        away = stop - start
        # Dabs a sixth of a radius apart leave the rim straight to less than a 200th of it.
        count = max(1, math.ceil(math.hypot(away.x(), away.y()) / max(min(width, first) / 12, 0.5)))
        modes = QPainter.CompositionMode
        painter = QPainter(self.image)
        painter.setCompositionMode(modes.CompositionMode_Darken if erase else modes.CompositionMode_Lighten)
        touched = QRect()
        for i in range(0 if away.isNull() else 1, count + 1):
            part = i / count
            touched |= _dab(painter, start + away * part, (first + (width - first) * part) / 2, softness, erase)
        painter.end()
        touched &= self.image.rect()
        self._touched |= touched
        if not touched.isEmpty():
            self.changed.emit(touched)

    def end(self, text: str = "Stroke") -> None:
        """The stroke is done: one step of the history, if it changed anything."""
        before, self._before = self._before, None
        if before is not None:
            self._push(text, before, self._touched)

    def undo(self) -> None:
        """One step back; a stroke that is still painted is one."""
        self.end()
        self.history.undo()

    def redo(self) -> None:
        """One step forward again."""
        self.end()
        self.history.redo()

    def cancel(self) -> None:
        """The stroke never was."""
        before, self._before = self._before, None
        if before is not None:
            self.image = before
            self.changed.emit(self._touched)

    # All of it.

    def fill(self, white: bool) -> None:
        """Everything, or nothing."""
        image = QImage(self.image.size(), _GREY)
        image.fill(255 if white else 0)
        self._replace("Select All" if white else "Clear", image)

    def invert(self) -> None:
        """What was to be painted stays, what stayed is painted."""
        image = self.image.copy()
        image.invertPixels()
        self._replace("Invert", image)

    def load(self, data: bytes | QImage) -> None:
        """Take the mask from a picture, or its file, stretched to this one's size. ValueError if it is none.

        What is transparent in it is painted anew; if nothing is, what is white.
        """
        image = data if isinstance(data, QImage) else QImage.fromData(data)
        if image.isNull():
            raise ValueError("This file is not a picture that can be read.")
        self._replace("Import Mask", mask_of(image, self.image.size()))

    def png(self) -> bytes:
        """A job's mask: grey of 8 bits, white is painted anew."""
        buffer = QBuffer()
        buffer.open(QIODevice.OpenModeFlag.WriteOnly)
        writer = QImageWriter(buffer, b"PNG")
        if not writer.write(self.image):
            raise OSError(writer.errorString())
        return bytes(buffer.data().data())

    def covered(self) -> float:
        """How much of the picture is to be painted anew, 0 to 1."""
        if self._covered is None:
            width, height = self.image.width(), self.image.height()
            tight = bytes(self.image.constBits())
            if self.image.bytesPerLine() != width:
                step = self.image.bytesPerLine()
                tight = b"".join(tight[y * step : y * step + width] for y in range(height))
            self._covered = tight.translate(_COUNTS).count(1) / (width * height)
        return self._covered

    def _forget(self) -> None:
        self._covered = None

    def _replace(self, text: str, image: QImage) -> None:
        self.cancel()
        before, self.image = self.image, image
        self._push(text, before, image.rect())

    def _push(self, text: str, before: QImage, rect: QRect) -> None:
        old, new = before.copy(rect), self.image.copy(rect)
        if not rect.isEmpty() and old != new:
            self.history.push(_Change(self, text, rect, _packed(old), _packed(new)))


class _Change(QUndoCommand):
    """One step: the changed rectangle as it was and as it is, packed, since a mask is mostly one colour."""

    def __init__(self, mask: Mask, text: str, rect: QRect, before: bytes, after: bytes):
        super().__init__(text)
        self._mask, self._rect, self._before, self._after = mask, rect, before, after

    def undo(self) -> None:
        self._put(self._before)

    def redo(self) -> None:
        self._put(self._after)

    def _put(self, packed: bytes) -> None:
        pixels, size = zlib.decompress(packed), self._rect.size()
        tile = QImage(pixels, size.width(), size.height(), len(pixels) // size.height(), _GREY)
        painter = QPainter(self._mask.image)
        painter.setCompositionMode(QPainter.CompositionMode.CompositionMode_Source)
        painter.drawImage(self._rect.topLeft(), tile)
        painter.end()
        self._mask.changed.emit(self._rect)


def _packed(tile: QImage) -> bytes:
    return zlib.compress(tile.constBits(), 1)


def _dab(painter: QPainter, at: QPointF, radius: float, softness: float, erase: bool) -> QRect:
    """One print of the brush; returns the pixels that it may have changed."""
    band = max(radius * softness / 2, 0.5)
    reach = radius + band
    gradient = QRadialGradient(at, reach)
    ink, none = (0, 255) if erase else (255, 0)
    gradient.setColorAt(max(radius - band, 0) / reach, QColor(ink, ink, ink))
    gradient.setColorAt(1, QColor(none, none, none))
    rect = QRectF(at.x() - reach, at.y() - reach, 2 * reach, 2 * reach).toAlignedRect()
    painter.fillRect(rect, QBrush(gradient))
    return rect


def has_holes(image: QImage) -> bool:
    """Whether any of a picture is transparent."""
    if not image.hasAlphaChannel():
        return False
    alpha = image.convertToFormat(QImage.Format.Format_Alpha8)
    width, step, pixels = alpha.width(), alpha.bytesPerLine(), bytes(alpha.constBits())
    return any(pixels[y * step : y * step + width].strip(b"\xff") for y in range(alpha.height()))


def mask_of(image: QImage, size: QSize) -> QImage:
    """A picture as a mask of a size: its transparency if it has any, else its brightness."""
    if has_holes(image):
        grey = image.convertToFormat(QImage.Format.Format_Alpha8)
        grey.reinterpretAsFormat(_GREY)
        grey.invertPixels()
    else:
        grey = image.convertToFormat(_GREY)
    if grey.size() != size:
        way = Qt.TransformationMode.SmoothTransformation
        grey = grey.scaled(size, Qt.AspectRatioMode.IgnoreAspectRatio, way).convertToFormat(_GREY)
    return grey


class MaskPainter(Easel):
    """A picture with its mask over it, painted by mouse, pen or keys."""

    mask_changed = Signal()  # after a stroke, an undo, another picture
    tool_changed = Signal()  # brush or eraser, its width, softness, what is shown
    picture_dropped = Signal(str)  # a file without holes and with colours: no mask

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._layers: dict[str, Mask] = {}
        self.layer = Mask(QSize(1, 1), self)
        self._eraser = False
        self._widths: list[float | None] = [None, None]  # of brush and eraser; None is a twelfth of the picture
        self._softness = SOFTNESS
        self._shown = True
        self._colour = QColor(RED)
        self.pattern: bool | None = None  # stripes, not a plain colour; None: if the system asks for contrast
        self._at: QPointF | None = None  # the ring, in pixels of the picture
        self._last: QPointF | None = None  # where the last stroke ended, and how wide
        self._last_width = 0.0
        self._erases = False  # the stroke that is being painted
        self._straight = False  # Shift is down: the next click draws a line
        self._came_from: QWidget | None = None
        self.setAcceptDrops(True)
        self.setCursor(self.pointer())
        self.setAccessibleName("Mask painter")
        self.setAccessibleDescription(
            "B brush, E eraser, arrow keys move it, Return paints, Shift and Return a line, brackets change the size, "
            "I inverts, M shows or hides the mask"
        )

    # What it shows.

    def show_picture(self, picture: QImage, key: str) -> None:
        """Show a picture with its own mask: the one it had when it was shown under this name before."""
        self.layer.end()
        for name in [name for name, mask in self._layers.items() if name != key and not mask.history.count()]:
            self._layers.pop(name).deleteLater()  # never painted on
        self.layer = self._layers.get(key) or self.layer
        if key not in self._layers or self.layer.image.size() != picture.size():
            self.layer = self._layers[key] = Mask(picture.size(), self)
            self.layer.changed.connect(self._repaint)
            self.layer.history.indexChanged.connect(self.mask_changed)
        self._at = self._last = None
        self.set_picture(picture)
        self.tool_changed.emit()
        self.mask_changed.emit()

    def kept(self, key: str) -> Mask | None:
        """The mask of a picture that was shown under this name; None if none was."""
        return self._layers.get(key)

    def mask_png(self) -> bytes | None:
        """The job's mask, or None if there is nothing to paint."""
        return self.layer.png() if self.layer.covered() else None

    def suggests_only_masked(self) -> bool:
        """Whether so little is masked that it is better drawn from near: a job's `only_masked`."""
        return 0 < self.layer.covered() < FEW and self.extension() is None

    def set_colour(self, colour: QColor) -> None:
        """The mask's on the screen."""
        self._colour = QColor(colour)
        self.update()

    @property
    def shown(self) -> bool:
        """Whether the mask is seen."""
        return self._shown

    def show_mask(self, on: bool) -> None:
        self._shown = on
        self.update()
        self.tool_changed.emit()

    def set_extendable(self, on: bool) -> None:
        super().set_extendable(on)
        self.tool_changed.emit()

    # The tool.

    @property
    def eraser(self) -> bool:
        """Whether the tool is the eraser, not the brush."""
        return self._eraser

    def set_eraser(self, on: bool) -> None:
        self._eraser = on
        self.update()
        self.tool_changed.emit()

    @property
    def width_of_tool(self) -> float:
        """Pixels of the picture across the brush, or across the eraser: each has its own."""
        chosen = self._widths[self._eraser]
        return min(max(self.picture_size().width() / 12 if chosen is None else chosen, SMALLEST), LARGEST)

    def set_width_of_tool(self, pixels: float) -> None:
        self._widths[self._eraser] = min(max(pixels, SMALLEST), LARGEST)
        self.update()
        self.tool_changed.emit()

    def step_width(self, steps: int) -> None:
        """Wider or narrower by a tenth, a pixel at least, so often."""
        width = self.width_of_tool
        for _ in range(abs(steps)):
            width = max(width * 1.1, width + 1) if steps > 0 else min(width / 1.1, width - 1)
        self.set_width_of_tool(round(width))

    @property
    def softness(self) -> float:
        """The part of the brush's radius over which it fades, 0 to 1."""
        return self._softness

    def set_softness(self, softness: float) -> None:
        self._softness = min(max(softness, 0.0), 1.0)
        self.tool_changed.emit()

    # On the screen.

    def paint_over(self, painter: QPainter, exposed: QRect) -> None:
        picture = self.area(self.layer.image.rect())
        seen = picture.toAlignedRect() & exposed
        if self._shown and not seen.isEmpty():
            painter.save()
            painter.setClipRect(picture)
            painter.drawImage(seen.topLeft(), self._overlay(seen))
            painter.restore()
        if self._at is not None and not self.moving:
            self._paint_ring(painter, self._at)

    def _overlay(self, seen: QRect) -> QImage:
        """The mask in a rectangle of the view: a veil, and a line around all that counts as white."""
        modes, density = QPainter.CompositionMode, self.devicePixelRatioF()
        size = QSizeF(seen.size())
        # A little more of the mask than is seen: where it is smoothed, what lies beside a pixel counts.
        part = QRectF(self.to_picture(QPointF(seen.topLeft())), size / self.scale).toAlignedRect()
        part = part.adjusted(-3, -3, 3, 3) & self.layer.image.rect()
        tile = self.layer.image.copy(part)
        if not bytes(tile.constBits()).strip(b"\0"):
            return QImage()  # the usual case, and then the quick one
        tile.reinterpretAsFormat(QImage.Format.Format_Indexed8)
        place = self.area(part).translated(-QPointF(seen.topLeft()))

        def layer(table: list[int]) -> QImage:
            image = QImage((size * density).toSize(), QImage.Format.Format_ARGB32_Premultiplied)
            image.setDevicePixelRatio(density)
            image.fill(Qt.GlobalColor.transparent)
            tile.setColorTable(table)
            painter = QPainter(image)
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, self.scale * density < 4)
            painter.drawImage(place, tile, QRectF(tile.rect()))
            painter.end()
            return image

        striped = self._striped()
        veil, hard = layer(_VEIL), layer(_HARD)
        painter = QPainter(veil)
        painter.setCompositionMode(modes.CompositionMode_SourceIn)
        painter.setBrushOrigin(-seen.topLeft())
        painter.setOpacity(1 if striped else OPACITY)
        brush = QBrush(_stripes(self._colour)) if striped else QBrush(self._colour)
        painter.fillRect(QRectF(QPointF(), size), brush)
        painter.end()

        line = hard.copy()
        painter = QPainter(line)
        for x, y in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            painter.drawImage(QPointF(x, y), hard)
        painter.setCompositionMode(modes.CompositionMode_DestinationOut)
        painter.drawImage(0, 0, hard)
        painter.setCompositionMode(modes.CompositionMode_SourceIn)
        painter.fillRect(QRectF(QPointF(), size), QColor(255, 255, 255, 225))  # white: some pictures are red, too
        painter.end()

        painter = QPainter(veil)
        painter.drawImage(0, 0, line)
        painter.end()
        return veil

    def _striped(self) -> bool:
        if self.pattern is not None:
            return self.pattern
        hints = QGuiApplication.styleHints()  # kept while it is asked: what it hands out lives no longer than it
        asked = hints.accessibility() if hasattr(hints, "accessibility") else None  # from Qt 6.10 on
        return asked is not None and asked.contrastPreference() == Qt.ContrastPreference.HighContrast

    def _paint_ring(self, painter: QPainter, at: QPointF) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        place, radius = self.to_view(at), self.width_of_tool / 2 * self.scale
        path = QPainterPath()
        if self._straight and self._last is not None:
            path.moveTo(self.to_view(self._last))
            path.lineTo(place)
        path.addEllipse(place, radius, radius)
        if radius > 6 and not self._straight:  # a minus or a plus in it: what it does
            path.moveTo(place - QPointF(3, 0))
            path.lineTo(place + QPointF(3, 0))
            if not self._eraser:
                path.moveTo(place - QPointF(0, 3))
                path.lineTo(place + QPointF(0, 3))
        outlined(painter, path)

    def _ring(self) -> QRect:
        """The view's pixels that the ring is on."""
        if self._at is None:
            return QRect()
        reach = self.width_of_tool / 2 * self.scale + 8
        place = self.to_view(self._at)
        return QRectF(place.x() - reach, place.y() - reach, 2 * reach, 2 * reach).toAlignedRect()

    def _repaint(self, rect: QRect) -> None:
        self.update(self.area(rect).toAlignedRect().adjusted(-3, -3, 3, 3))

    def _move_ring(self, at: QPointF | None) -> None:
        self.update(self._ring())
        self._at = at
        self.update(self.rect() if self._straight else self._ring())

    # Strokes.

    def _start(self, at: QPointF, width: float, line: bool, erase: bool) -> None:
        """A stroke begins at a place of the picture, by a straight line from the last one's end if asked for."""
        self._erases = erase
        self.layer.begin()
        start, first = (self._last, self._last_width) if line and self._last is not None else (at, width)
        self.layer.line(start, at, width, self._softness, erase, first)
        self._last, self._last_width = at, width
        if not self._shown:
            self.show_mask(True)  # what is painted unseen would be a surprise later

    def _go_on(self, at: QPointF, width: float) -> None:
        if self._last is not None and at != self._last:
            self.layer.line(self._last, at, width, self._softness, self._erases, self._last_width)
            self._last, self._last_width = at, width

    def _finish(self) -> None:
        self.layer.end("Erase" if self._erases else "Stroke")

    # Hands.

    def pointer(self) -> Qt.CursorShape:
        return Qt.CursorShape.BlankCursor

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if self.moves(event):
            super().mousePressEvent(event)
        elif event.button() == Qt.MouseButton.LeftButton and not self.pixmap().isNull():
            self._straight = bool(event.modifiers() & _SHIFT)
            at = self.to_picture(event.position())
            self._start(at, self.width_of_tool, self._straight, self._eraser)
            self._move_ring(at)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        super().mouseMoveEvent(event)
        at = self.to_picture(event.position())
        if self.layer.painting:
            self._go_on(at, self.width_of_tool)
        self._move_ring(at)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        super().mouseReleaseEvent(event)
        if event.button() == Qt.MouseButton.LeftButton and self.layer.painting:
            self._finish()

    def tabletEvent(self, event: QTabletEvent) -> None:
        """A pen paints as wide as it is pressed; its other end erases."""
        at, kind = self.to_picture(event.position()), event.type()
        width = max(self.width_of_tool * event.pressure(), 1.0)
        if kind == QEvent.Type.TabletPress and not self.moving and event.button() == Qt.MouseButton.LeftButton:
            other_end = event.pointerType() == QPointingDevice.PointerType.Eraser
            self._start(at, width, bool(event.modifiers() & _SHIFT), self._eraser or other_end)
        elif kind == QEvent.Type.TabletMove and self.layer.painting:
            self._go_on(at, width)
        elif kind == QEvent.Type.TabletRelease and self.layer.painting:
            self._finish()
        else:
            event.ignore()  # then it comes again, as a mouse
            return
        self._move_ring(at)
        event.accept()

    def wheelEvent(self, event: QWheelEvent) -> None:
        super().wheelEvent(event)
        self._move_ring(self.to_picture(event.position()))

    def enterEvent(self, event: QEnterEvent) -> None:
        """Keys are for the brush while the cursor is here, but never those of somebody who writes."""
        super().enterEvent(event)
        now = QApplication.focusWidget()
        if now is not self and not isinstance(now, _WRITTEN) and self.isActiveWindow():
            self._came_from = now
            self.setFocus(Qt.FocusReason.MouseFocusReason)

    def leaveEvent(self, event: QEvent) -> None:
        super().leaveEvent(event)
        if not self.layer.painting:
            self._move_ring(None)
        before, self._came_from = self._came_from, None
        alive = before is not None and before in QApplication.allWidgets()
        if before is not None and alive and self.hasFocus() and not self.isAncestorOf(before):
            before.setFocus(Qt.FocusReason.MouseFocusReason)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        if self.layer.painting:
            self._finish()
        self._straight = False
        super().focusOutEvent(event)

    # Keys.

    def commands(self) -> list[Command]:
        return [
            Command("Undo Stroke", ("Ctrl+Z",), self.layer.undo),
            Command("Redo Stroke", ("Ctrl+Shift+Z",), self.layer.redo),
            Command("Brush", ("B",), lambda: self.set_eraser(False)),
            Command("Eraser", ("E",), lambda: self.set_eraser(True)),
            Command("Swap Brush and Eraser", ("X",), lambda: self.set_eraser(not self._eraser)),
            Command("Smaller", ("[",), lambda: self.step_width(-1)),
            Command("Larger", ("]",), lambda: self.step_width(1)),
            Command("Much Smaller", ("{", "Shift+["), lambda: self.step_width(-5)),
            Command("Much Larger", ("}", "Shift+]"), lambda: self.step_width(5)),
            Command("Invert Mask", ("I",), self.layer.invert),
            Command("Mask Everything", ("Ctrl+A",), lambda: self.layer.fill(True)),
            Command("Clear Mask", ("Ctrl+Backspace", "Ctrl+Del"), lambda: self.layer.fill(False)),
            Command("Show or Hide Mask", ("M",), lambda: self.show_mask(not self._shown)),
            *super().commands(),
        ]

    def wants(self, event: QKeyEvent) -> bool:
        others = event.modifiers() & ~(_SHIFT | Qt.KeyboardModifier.KeypadModifier)
        if event.key() in _ARROWS:
            return others in (Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.AltModifier)
        if event.key() in _ENTER:
            return others == Qt.KeyboardModifier.NoModifier
        if event.key() == Qt.Key.Key_Escape:
            return self.layer.painting
        return super().wants(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() == Qt.Key.Key_Shift:
            self._straight = True
            self.update()
        if self.layer.painting:  # the history and all else wait for the hand
            if event.key() == Qt.Key.Key_Escape:
                self.layer.cancel()
        elif event.key() in _ARROWS and self.wants(event):
            self._step(_ARROWS[Qt.Key(event.key())], event.modifiers())
        elif event.key() in _ENTER and self.wants(event):
            at = self._middle() if self._at is None else self._at
            self._start(at, self.width_of_tool, bool(event.modifiers() & _SHIFT), self._eraser)
            self._finish()
            self._move_ring(at)
        else:
            super().keyPressEvent(event)

    def keyReleaseEvent(self, event: QKeyEvent) -> None:
        if event.key() == Qt.Key.Key_Shift:
            self._straight = False
            self.update()
        super().keyReleaseEvent(event)

    def _middle(self) -> QPointF:
        return QRectF(self.layer.image.rect()).center()

    def _step(self, way: QPointF, modifiers: Qt.KeyboardModifier) -> None:
        """Move the ring by a quarter of the brush; with Shift by all of it, with Alt by a pixel."""
        far = self.width_of_tool * (1 if modifiers & _SHIFT else 0.25)
        far = 1 if modifiers & Qt.KeyboardModifier.AltModifier else far
        at, end = (self._middle() if self._at is None else self._at) + way * far, self.picture_size()
        at = QPointF(min(max(at.x(), 0), end.width()), min(max(at.y(), 0), end.height()))
        self._move_ring(at)
        place, room = self.to_view(at), QRectF(self.rect()).adjusted(24, 24, -24, -24)
        x, y = min(max(place.x(), room.left()), room.right()), min(max(place.y(), room.top()), room.bottom())
        if not self.fits and QPointF(x, y) != place:
            self.pan(QPointF(x, y) - place)

    # Files.

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if _file_of(event.mimeData()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """A picture with holes is a mask, and so is a grey one of this size; any other may be one to start from."""
        path = _file_of(event.mimeData())
        image = QImage(path)
        grey = not image.isNull() and image.size() == self.picture_size() and image.allGray()
        if grey or has_holes(image):
            self.layer.load(image)
        else:
            self.picture_dropped.emit(path)
        event.acceptProposedAction()


def _stripes(colour: QColor) -> QPixmap:
    """A tile of broad slanted stripes: seen without seeing the colour."""
    tile = QPixmap(12, 12)
    tile.fill(Qt.GlobalColor.transparent)
    painter = QPainter(tile)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(QPen(colour, 3))
    for x in (-12, 0, 12):
        painter.drawLine(x - 3, 15, x + 15, -3)
    painter.end()
    return tile


def _file_of(data: QMimeData) -> str:
    """The first local file that is dragged; "" if there is none."""
    return next((url.toLocalFile() for url in data.urls() if url.isLocalFile()), "")
