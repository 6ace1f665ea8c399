"""A picture to work on: seen from near and far, moved about, and made larger by dragging its edges outwards.

Two kinds of places: those of the picture, in its pixels, and those of the view, in the widget's. Only `to_view`, `area`
and `to_picture` lead from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QPoint, QPointF, QRect, QRectF, QSize, Qt, Signal
from PySide6.QtGui import (
    QColor,
    QEnterEvent,
    QFocusEvent,
    QFontMetricsF,
    QImage,
    QKeyEvent,
    QKeySequence,
    QMouseEvent,
    QNativeGestureEvent,
    QPainter,
    QPainterPath,
    QPaintEvent,
    QPalette,
    QPen,
    QPixmap,
    QResizeEvent,
    QWheelEvent,
)
from PySide6.QtWidgets import QAbstractSlider, QLabel, QWidget

STEP = 8  # pixels of the picture by which it grows: what one latent pixel stands for
FAR = 2048  # pixels beyond a side at most
NEAREST, FARTHEST = 32.0, 0.02  # view pixels of one pixel of the picture
LEFT, TOP, RIGHT, BOTTOM = range(4)


@dataclass(frozen=True)
class Command:
    """Something to do by a key while the picture has the focus, and from a menu."""

    text: str
    keys: tuple[str, ...]  # as QKeySequence writes them; the first is the one to show
    run: Callable[[], object]


class Easel(QLabel):
    """One picture, zoomed and moved; with handles at its edges if it may be extended.

    A label, because that is what screen readers are told of as a picture; what it draws is its own.
    """

    extension_changed = Signal(object)  # a job's `extend`: "LEFT,TOP,RIGHT,BOTTOM" in pixels, or None
    zoom_changed = Signal(float)  # view pixels of one pixel of the picture

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.ground: QColor | None = None  # behind the picture; None is the window's colour
        self.scale = 1.0
        self._origin = QPointF()  # of the picture, in the view
        self.fits = True  # until somebody zooms or moves: stay as large as there is room
        self._sides = [0, 0, 0, 0]
        self._pulled = [0.0, 0.0, 0.0, 0.0]  # the sides as the hand has them, not in steps yet
        self._held: QPointF | None = None  # where the hand that moves the picture was last
        self._space = False
        self._shrunk: dict[int, QPixmap] = {}
        self.handles = [_Handle(self, sides) for sides in ((0,), (1,), (2,), (3,), (0, 1), (2, 1), (2, 3), (0, 3))]
        self.extendable = False
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.setMinimumSize(160, 120)
        self.setAccessibleName("Picture")

    # What it shows.

    def set_picture(self, picture: QImage) -> None:
        """Show a picture; nothing beyond its edges yet."""
        self.setPixmap(QPixmap.fromImage(picture))
        self._shrunk = {}
        self.set_extension(None)
        self.fit()

    def picture_size(self) -> QSize:
        return self.pixmap().size()

    def set_extendable(self, on: bool) -> None:
        """Whether there are handles at the edges."""
        self.extendable = on
        self._place_handles()
        if self.fits:
            self.fit()

    def extension(self) -> str | None:
        """A job's `extend`: the pixels beyond left, top, right and bottom; None if there are none."""
        return ",".join(map(str, self._sides)) if any(self._sides) else None

    def set_extension(self, text: str | None) -> None:
        """Put back what `extension` gave. ValueError for anything else."""
        sides = [int(part) for part in text.split(",")] if text else [0, 0, 0, 0]
        if len(sides) != 4 or not all(0 <= side <= FAR for side in sides):
            raise ValueError(f"{text!r} is not four numbers of pixels from 0 to {FAR}")
        self.extend(sides)
        if self.fits:
            self.fit()

    def extend(self, sides: Sequence[int]) -> None:
        """Let the picture go on by so many pixels beyond left, top, right and bottom; the view stays where it is."""
        if list(sides) == self._sides:
            return
        self._sides = list(sides)
        self._place_handles()
        self.update()
        self.extension_changed.emit(self.extension())

    def canvas(self) -> QRect:
        """The picture and what is beyond its edges, in pixels of the picture."""
        left, top, right, bottom = self._sides
        return QRect(QPoint(0, 0), self.picture_size()).adjusted(-left, -top, right, bottom)

    # Where things are.

    def to_view(self, place: QPointF) -> QPointF:
        """A point of the picture, in the view."""
        return self._origin + place * self.scale

    def area(self, part: QRect | QRectF) -> QRectF:
        """A rectangle of the picture, in the view."""
        part = QRectF(part)
        return QRectF(self.to_view(part.topLeft()), part.size() * self.scale)

    def to_picture(self, place: QPointF) -> QPointF:
        """A point of the view, in the picture: 0.5, 0.5 is the middle of its first pixel."""
        return (place - self._origin) / self.scale

    def fit(self) -> None:
        """As large as there is room."""
        self.fits = True
        canvas = self.canvas()
        if canvas.isEmpty():
            return
        margin = 40 if self.extendable else 16  # room for the handles
        room = QSize(max(1, self.width() - 2 * margin), max(1, self.height() - 2 * margin))
        scale = min(room.width() / canvas.width(), room.height() / canvas.height(), NEAREST)
        self._move(scale, QRectF(self.rect()).center() - QRectF(canvas).center() * scale)

    def actual_size(self) -> None:
        """One pixel of the picture for one of the screen."""
        self.zoom(1 / self.devicePixelRatioF() / self.scale)

    def zoom(self, factor: float, at: QPointF | None = None) -> None:
        """Larger or smaller, around a point of the view that stays where it is: its middle if none is given."""
        at = QRectF(self.rect()).center() if at is None else at
        scale = min(max(self.scale * factor, FARTHEST), NEAREST)
        self.fits = False
        self._move(scale, at - self.to_picture(at) * scale)

    def pan(self, by: QPointF) -> None:
        """Move the picture, in view pixels; some of it always stays in the middle."""
        self.fits = False
        self._move(self.scale, self._origin + by)

    def _move(self, scale: float, origin: QPointF) -> None:
        middle, canvas = QRectF(self.rect()).center(), QRectF(self.canvas())
        if scale != self.scale:
            self._shrunk = {}
            self.scale = scale
            self.zoom_changed.emit(scale)
        self._origin = QPointF(
            min(max(origin.x(), middle.x() - canvas.right() * scale), middle.x() - canvas.left() * scale),
            min(max(origin.y(), middle.y() - canvas.bottom() * scale), middle.y() - canvas.top() * scale),
        )
        self._place_handles()
        self.update()

    # Growing.

    def pull(self, sides: Sequence[int], by: QPointF) -> None:
        """A hand at these sides moved so far, in view pixels."""
        for side in sides:
            self._pulled[side] += (by.x(), by.y())[side % 2] * (1 if side in (RIGHT, BOTTOM) else -1) / self.scale
        self.extend([
            min(max(round(pulled / STEP) * STEP, 0), FAR) if side in sides else self._sides[side]
            for side, pulled in enumerate(self._pulled)
        ])  # fmt: skip
        room = QRectF(self.rect()).adjusted(8, 8, -8, -8)
        if self.fits and not room.contains(self.area(self.canvas())):
            self.fit()  # the hand left the view: show more

    def take(self) -> None:
        """A hand takes the edges where they are now."""
        self._pulled = [float(side) for side in self._sides]

    def let_go(self) -> None:
        """The hand is gone."""
        if self.fits:
            self.fit()

    def set_sides(self, sides: Sequence[int], pixels: int) -> None:
        """Let the picture go on by so many pixels beyond these sides, in steps."""
        pixels = min(max(pixels // STEP * STEP, 0), FAR)
        self.extend([pixels if side in sides else now for side, now in enumerate(self._sides)])
        self.let_go()

    def _place_handles(self) -> None:
        edges, seen = self.area(self.canvas()), QRectF(self.rect())
        for handle in self.handles:
            if len(handle.sides) == 1:
                handle.set_pixels(self._sides[handle.sides[0]])
            shown = edges.intersected(seen)
            centre = shown.center()
            x = {LEFT: edges.left() - 13, RIGHT: edges.right() + 13}
            y = {TOP: edges.top() - 13, BOTTOM: edges.bottom() + 13}
            for side in handle.sides:
                centre = QPointF(x.get(side, centre.x()), y.get(side, centre.y()))
            handle.move((centre - QRectF(handle.rect()).center()).toPoint())
            seen_here = self.rect().contains(centre.toPoint()) or handle.hasFocus()  # hidden, it would lose its keys
            handle.setVisible(self.extendable and not shown.isEmpty() and seen_here)

    # Painting.

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.fillRect(event.rect(), self.ground or self.palette().color(QPalette.ColorRole.Window))
        if self.pixmap().isNull():
            return
        inside, canvas = self.area(QRect(QPoint(0, 0), self.picture_size())), self.area(self.canvas())
        if any(self._sides):
            painter.setBrushOrigin(canvas.topLeft())
            painter.fillRect(canvas, _checker(self.palette().color(QPalette.ColorRole.Window).lightness() < 128))
        self.paint_pixmap(painter, self.pixmap(), inside, event.rect())
        self.paint_over(painter, event.rect())
        if any(self._sides):
            self._paint_sizes(painter, canvas)

    def paint_pixmap(self, painter: QPainter, pixmap: QPixmap, inside: QRectF, exposed: QRect) -> None:
        """A picture into its place. Shrunk once and kept: Qt's own way while it draws skips pixels below one half."""
        density = self.devicePixelRatioF()
        if self.scale * density < 1:
            size = (inside.size() * density).toSize().expandedTo(QSize(1, 1))
            shrunk = self._shrunk.get(pixmap.cacheKey())
            if shrunk is None or shrunk.size() != size:
                way = Qt.TransformationMode.SmoothTransformation
                shrunk = pixmap.scaled(size, Qt.AspectRatioMode.IgnoreAspectRatio, way)
                self._shrunk[pixmap.cacheKey()] = shrunk
            painter.drawPixmap(inside, shrunk, QRectF(shrunk.rect()))
            return
        painter.save()
        painter.setClipRect(exposed, Qt.ClipOperation.IntersectClip)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, self.scale * density < 4)
        painter.drawPixmap(inside, pixmap, QRectF(pixmap.rect()))
        painter.restore()

    def paint_over(self, painter: QPainter, exposed: QRect) -> None:
        """Whatever lies over the picture."""

    def _paint_sizes(self, painter: QPainter, canvas: QRectF) -> None:
        """How far the picture goes on beyond each side, and how large all of it is then."""
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        accent = self.palette().color(QPalette.ColorRole.Highlight)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(accent, 1.5))
        painter.drawRect(canvas.adjusted(-0.75, -0.75, 0.75, 0.75))
        inside = QRectF(QPointF(0, 0), self.picture_size())
        strips = (
            QRectF(-self._sides[LEFT], 0, self._sides[LEFT], inside.height()),
            QRectF(0, -self._sides[TOP], inside.width(), self._sides[TOP]),
            QRectF(inside.width(), 0, self._sides[RIGHT], inside.height()),
            QRectF(0, inside.height(), inside.width(), self._sides[BOTTOM]),
        )
        for pixels, strip in zip(self._sides, strips, strict=True):
            seen = self.area(strip) & QRectF(self.rect())
            if pixels and not seen.isEmpty():
                self.badge(painter, seen.center(), f"+{pixels}")
        whole = self.canvas()
        self.badge(painter, canvas.bottomRight() + QPointF(0, 19), f"{whole.width()} × {whole.height()}", True)

    def badge(self, painter: QPainter, at: QPointF, text: str, ends: bool = False) -> None:
        """A small text on a dark pill, its middle at a place, or its right end."""
        metrics = QFontMetricsF(self.font())
        pill = QRectF(0, 0, metrics.horizontalAdvance(text) + 16, metrics.height() + 6)
        pill.moveCenter(at - QPointF(pill.width() / 2, 0) if ends else at)
        pill.moveTopLeft(QPointF(round(pill.left()), round(pill.top())))
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(20, 20, 24, 214))
        painter.drawRoundedRect(pill, pill.height() / 2, pill.height() / 2)
        painter.setPen(QColor(255, 255, 255))
        painter.drawText(pill, Qt.AlignmentFlag.AlignCenter, text)

    # Hands and keys.

    def commands(self) -> list[Command]:
        """What keys do here, for a menu to show as well."""
        return [
            Command("Zoom In", ("Ctrl++", "Ctrl+="), lambda: self.zoom(1.25)),
            Command("Zoom Out", ("Ctrl+-",), lambda: self.zoom(0.8)),
            Command("Fit", ("Ctrl+9",), self.fit),
            Command("Actual Size", ("Ctrl+8",), self.actual_size),
        ]

    def _command(self, event: QKeyEvent) -> Command | None:
        """The command of a key. Brackets go by what is written, not by the key: some keyboards have them elsewhere."""
        if event.text() in ("[", "]", "{", "}"):
            name = event.text()
        else:
            modifiers = event.modifiers() & ~Qt.KeyboardModifier.KeypadModifier
            key = Qt.Key(event.key())
            if key == Qt.Key.Key_Plus:  # with Shift on many keyboards
                modifiers &= ~Qt.KeyboardModifier.ShiftModifier
            name = QKeySequence(modifiers.value | key.value).toString(QKeySequence.SequenceFormat.PortableText)
        return next((command for command in self.commands() if name in command.keys), None)

    def wants(self, event: QKeyEvent) -> bool:
        """Whether a key is for the picture while that has the focus, and not for the window."""
        return self._command(event) is not None or (event.key() == Qt.Key.Key_Space and not event.modifiers())

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ShortcutOverride and isinstance(event, QKeyEvent) and self.wants(event):
            event.accept()  # while the focus is here, these keys are not the window's
            return True
        if event.type() == QEvent.Type.NativeGesture and isinstance(event, QNativeGestureEvent):
            if event.gestureType() == Qt.NativeGestureType.ZoomNativeGesture:
                self.zoom(1 + event.value(), event.position())
                return True
            if event.gestureType() == Qt.NativeGestureType.SmartZoomNativeGesture:
                self.actual_size() if self.fits else self.fit()
                return True
        return super().event(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        command = self._command(event)
        if command is not None:
            command.run()
        elif event.key() == Qt.Key.Key_Space and not event.modifiers():
            if not event.isAutoRepeat():
                self._space = True
                self._point()
        else:
            super().keyPressEvent(event)

    def keyReleaseEvent(self, event: QKeyEvent) -> None:
        if event.key() == Qt.Key.Key_Space and not event.isAutoRepeat():
            self._space = False
            self._point()
        super().keyReleaseEvent(event)

    @property
    def moving(self) -> bool:
        """Whether the next hand moves the picture, or one does."""
        return self._space or self._held is not None

    def moves(self, event: QMouseEvent) -> bool:
        """Whether a hand with this event moves the picture."""
        return self.moving or event.button() == Qt.MouseButton.MiddleButton

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if self.moves(event):
            self._held = event.position()
            self._point()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if self._held is not None:
            self.pan(event.position() - self._held)
            self._held = event.position()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        if self._held is not None:
            self._held = None
            self._point()

    def wheelEvent(self, event: QWheelEvent) -> None:
        """A wheel zooms, two fingers move; with Ctrl or Command both zoom."""
        zooms = event.modifiers() & Qt.KeyboardModifier.ControlModifier
        if event.phase() == Qt.ScrollPhase.NoScrollPhase or zooms:
            turned = event.angleDelta().y() or event.angleDelta().x()
            self.zoom(math.pow(1.2, turned / 120), event.position())
        else:
            self.pan(QPointF(event.pixelDelta() or event.angleDelta() / 4))
        event.accept()

    def pointer(self) -> Qt.CursorShape:
        """The cursor while nothing is moved."""
        return Qt.CursorShape.ArrowCursor

    def _point(self) -> None:
        if self._held is not None:
            self.setCursor(Qt.CursorShape.ClosedHandCursor)
        else:
            self.setCursor(Qt.CursorShape.OpenHandCursor if self._space else self.pointer())
        self.update()

    def focusOutEvent(self, event: QFocusEvent) -> None:
        self._space, self._held = False, None
        self._point()
        super().focusOutEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        if self.fits:
            self.fit()
        else:
            self._move(self.scale, self._origin)

    def sizeHint(self) -> QSize:
        return QSize(640, 480)

    def minimumSizeHint(self) -> QSize:
        return QSize(160, 120)


_NAMES = ("Left edge", "Top edge", "Right edge", "Bottom edge")
_OUT = {LEFT: Qt.Key.Key_Left, TOP: Qt.Key.Key_Up, RIGHT: Qt.Key.Key_Right, BOTTOM: Qt.Key.Key_Down}
_IN = {LEFT: Qt.Key.Key_Right, TOP: Qt.Key.Key_Down, RIGHT: Qt.Key.Key_Left, BOTTOM: Qt.Key.Key_Up}


class _Handle(QAbstractSlider):
    """What an edge, or a corner with its two, is dragged by. A slider to screen readers and to keys, if an edge."""

    def __init__(self, easel: Easel, sides: tuple[int, ...]):
        super().__init__(easel)
        self.easel, self.sides = easel, sides
        self._grip: QPointF | None = None
        upright = sides in ((LEFT,), (RIGHT,))
        self.setRange(0, FAR)
        self.setSingleStep(STEP)
        self.setPageStep(8 * STEP)
        self.setOrientation(Qt.Orientation.Horizontal if upright else Qt.Orientation.Vertical)
        if len(sides) == 2:
            self.resize(22, 22)
            self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            slanted = Qt.CursorShape.SizeFDiagCursor if sides in ((0, 1), (2, 3)) else Qt.CursorShape.SizeBDiagCursor
            self.setCursor(slanted)
        else:
            self.resize(*((22, 52) if upright else (52, 22)))
            self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
            self.setCursor(Qt.CursorShape.SizeHorCursor if upright else Qt.CursorShape.SizeVerCursor)
            self.setAccessibleName(f"{_NAMES[sides[0]]}: pixels to paint beyond it")
            self.setAccessibleDescription("Arrow keys by 8 pixels, page up and down by 64, Home for none")
        self.setToolTip("Drag outwards to paint beyond the picture; double-click for none")
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self.valueChanged.connect(self._changed)
        self._quiet = False
        self.hide()

    def set_pixels(self, pixels: int) -> None:
        """Show what is; a screen reader asks this for it."""
        self._quiet = True
        self.setValue(pixels)
        self._quiet = False

    def _changed(self, pixels: int) -> None:
        if not self._quiet:  # by a screen reader, or a key
            self.easel.set_sides(self.sides, pixels)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        side, now = self.sides[0], self.value()
        leap = self.pageStep() if event.modifiers() & Qt.KeyboardModifier.ShiftModifier else self.singleStep()
        wanted = {
            _OUT[side]: now + leap, _IN[side]: now - leap, Qt.Key.Key_PageUp: now + self.pageStep(),
            Qt.Key.Key_PageDown: now - self.pageStep(), Qt.Key.Key_Home: 0, Qt.Key.Key_Delete: 0,
            Qt.Key.Key_Backspace: 0,
        }.get(Qt.Key(event.key()))  # fmt: skip
        if wanted is None:
            event.ignore()  # the easel's
        else:
            self.easel.set_sides(self.sides, wanted)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            self._grip = event.globalPosition()
            self.easel.take()
            self.update()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if self._grip is not None:
            self.easel.pull(self.sides, event.globalPosition() - self._grip)
            self._grip = event.globalPosition()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        if self._grip is not None:
            self._grip = None
            self.easel.let_go()
            self.update()

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        self._grip = None
        self.easel.set_sides(self.sides, 0)

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()  # no slider's step by an accident

    def enterEvent(self, event: QEnterEvent) -> None:
        self.update()
        super().enterEvent(event)

    def focusInEvent(self, event: QFocusEvent) -> None:
        self.update()
        super().focusInEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        self.update()
        super().focusOutEvent(event)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        middle, accent = QRectF(self.rect()).center(), self.palette().color(QPalette.ColorRole.Highlight)
        lit = self._grip is not None or self.underMouse()
        upright = self.orientation() == Qt.Orientation.Horizontal
        size = (10, 10) if len(self.sides) == 2 else (6, 34) if upright else (34, 6)
        bar = QRectF(0, 0, *size)
        bar.moveCenter(middle)
        if self.hasFocus():
            painter.setPen(QPen(accent, 2))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            ring = bar.adjusted(-4, -4, 4, 4)
            painter.drawRoundedRect(ring, 7, 7)
        painter.setPen(QPen(self.palette().color(QPalette.ColorRole.Window), 1))
        painter.setBrush(accent if lit else self.palette().color(QPalette.ColorRole.WindowText))
        round_by = min(size) / 2
        painter.drawRoundedRect(bar, round_by, round_by)


def _checker(dark: bool) -> QPixmap:
    """The sign for nothing there yet."""
    ground, square = ("#2a2a2f", "#36363c") if dark else ("#f6f6f8", "#e2e2e7")
    tile = QPixmap(20, 20)
    tile.fill(QColor(ground))
    painter = QPainter(tile)
    for x, y in ((0, 0), (10, 10)):
        painter.fillRect(x, y, 10, 10, QColor(square))
    painter.end()
    return tile


def outlined(painter: QPainter, path: QPainterPath) -> None:
    """A line that is seen on every colour: white between dark."""
    painter.setBrush(Qt.BrushStyle.NoBrush)
    painter.setPen(QPen(QColor(0, 0, 0, 150), 3.4))
    painter.drawPath(path)
    painter.setPen(QPen(QColor(255, 255, 255), 1.5))
    painter.drawPath(path)
