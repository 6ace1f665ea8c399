"""The middle column: the picture, what it may become, how far it is, and what went wrong."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QMimeData, QPoint, QPointF, QRectF, QSize, Qt, QUrl, Signal
from PySide6.QtGui import (
    QAction,
    QColor,
    QDrag,
    QImage,
    QImageReader,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPainterPath,
    QPaintEvent,
    QPen,
    QPixmap,
    QResizeEvent,
    QWheelEvent,
)
from PySide6.QtWidgets import (
    QApplication,
    QFrame,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from . import theme
from .errors import Notice
from .widgets import Elided

ZOOM = 1.25
LEAST, MOST = 0.05, 32.0
TILE = 112  # side of the live picture in the corner
LINE = 26  # pixels: of the bar's first one, with its sign and its button to close
STATUS = 180, 250  # pixels that the line below the picture has before buttons get any, and while something runs


class Canvas(QWidget):
    """A picture at a zoom, which can be pushed about; and the live one, in its place or in a corner of it."""

    zoomed = Signal(float)
    live_wanted = Signal()

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName("Picture")
        self.setMinimumSize(200, 160)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.path = ""
        self.dimmed = False
        self._pixmap: QPixmap | None = None
        self._live: QPixmap | None = None
        self._live_size = QSize()  # of the picture it will be
        self._live_shown = True  # in the middle, and not in the corner
        self._zoom: float | None = None  # None fits
        self._offset = QPointF()
        self._held: QPoint | None = None
        self._panning = False

    # What is shown.

    def show_file(self, path: str, name: str) -> bool:
        """A picture from a file; False if it cannot be read."""
        reader = QImageReader(path)
        reader.setAutoTransform(True)
        image = reader.read()
        if image.isNull():
            return False
        self.show_image(image, path, name)
        return True

    def show_image(self, image: QImage, path: str, name: str) -> None:
        """A picture."""
        if self._pixmap is None or self._pixmap.size() != image.size():
            self._zoom = None
        self._pixmap, self.path = QPixmap.fromImage(image), path
        self.setAccessibleDescription(name)
        self._live_shown = self._live_shown and self._live is None
        self.update()
        self.zoomed.emit(self.zoom)

    def clear(self) -> None:
        """No picture."""
        self._pixmap, self.path = None, ""
        self.update()

    def show_live(self, image: QImage | None, size: QSize | None = None) -> None:
        """What the running picture may become, to be drawn as large as `size` is; None when there is nothing more."""
        if image is None:
            self._live, self._live_shown = None, True
        else:
            self._live = QPixmap.fromImage(image)
            self._live_size = size if size is not None and size.isValid() else image.size()
        self.update()

    def show_live_in_place(self, yes: bool = True) -> None:
        """The live picture in the middle, or in the corner beside another."""
        self._live_shown = yes
        self.update()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to see."""
        return self._pixmap is None and self._live is None

    @property
    def live_in_corner(self) -> bool:
        """Whether the live picture is the small one."""
        return self._live is not None and not self._live_shown and self._pixmap is not None

    # Where it is.

    @property
    def _main(self) -> tuple[QPixmap | None, QSize]:
        if self._live is not None and not self.live_in_corner:
            return self._live, self._live_size
        return self._pixmap, self._pixmap.size() if self._pixmap is not None else QSize()

    @property
    def zoom(self) -> float:
        """Points of the screen for a pixel of the picture."""
        if self._zoom is not None:
            return self._zoom
        size = self._main[1]
        if not size.isValid() or size.isEmpty():
            return 1.0
        room = self.size() - QSize(32, 32)
        return max(LEAST, min(room.width() / size.width(), room.height() / size.height()))

    def set_zoom(self, zoom: float | None, at: QPointF | None = None) -> None:
        """A zoom, with the point `at` staying where it is; None fits the picture into the window."""
        before = self._place()
        self._zoom = None if zoom is None else min(max(zoom, LEAST), MOST)
        if zoom is None:
            self._offset = QPointF()
        elif before.width() > 0:
            at = QPointF(self.rect().center()) if at is None else at
            part = QPointF((at.x() - before.x()) / before.width(), (at.y() - before.y()) / before.height())
            after = self._place()
            now = QPointF(after.x() + part.x() * after.width(), after.y() + part.y() * after.height())
            self._offset += at - now
        self._keep_inside()
        self.update()
        self.zoomed.emit(self.zoom)

    def zoom_by(self, factor: float, at: QPointF | None = None) -> None:
        """Larger or smaller."""
        self.set_zoom(self.zoom * factor, at)

    def _place(self) -> QRectF:
        size = self._main[1]
        shown = QRectF(0, 0, size.width() * self.zoom, size.height() * self.zoom)
        shown.moveCenter(QRectF(self.rect()).center() + self._offset)
        return shown

    def _keep_inside(self) -> None:
        size = self._main[1]
        wide, high = (max(0.0, (side * self.zoom - room) / 2) for side, room in
                      ((size.width(), self.width() - 32), (size.height(), self.height() - 32)))  # fmt: skip
        self._offset = QPointF(min(max(self._offset.x(), -wide), wide), min(max(self._offset.y(), -high), high))

    def _corner(self) -> QRectF:
        return QRectF(self.width() - TILE - 14, self.height() - TILE - 14, TILE, TILE)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """The picture on its ground."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor(theme.colours().canvas))
        pixmap, _ = self._main
        if pixmap is not None:
            place = self._place()
            smooth = pixmap is self._live or self._zoom is None or self._zoom * self.devicePixelRatioF() < 4
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, smooth)
            painter.setOpacity(0.4 if self.dimmed and pixmap is self._pixmap else 1.0)
            painter.drawPixmap(place, pixmap, QRectF(pixmap.rect()))
            painter.setOpacity(1.0)
        if self.live_in_corner and self._live is not None:
            place = self._corner()
            path = QPainterPath()
            path.addRoundedRect(place, 8, 8)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            painter.save()
            painter.setClipPath(path)
            painter.drawPixmap(place, self._live, cropped(self._live.size()))
            painter.restore()
            painter.setPen(QPen(QColor(theme.colours().ring), 2))
            painter.drawPath(path)
        if self.hasFocus() and pixmap is None:
            painter.setPen(QPen(QColor(theme.colours().ring), 1))
            painter.drawRect(self.rect().adjusted(1, 1, -2, -2))
        painter.end()

    # What a person does with it.

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """It stays inside."""
        self._keep_inside()
        self.zoomed.emit(self.zoom)

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        """Scrolls; with ⌘ (Ctrl) it zooms where the pointer is."""
        if self._main[0] is None:
            return
        if event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            self.zoom_by(1.0015 ** event.angleDelta().y(), event.position())
        else:
            moved = event.pixelDelta() if not event.pixelDelta().isNull() else event.angleDelta() / 2
            self._offset += QPointF(moved)
            self._keep_inside()
            self.update()
        event.accept()

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """The beginning of a push or of a drag, or a click on the corner."""
        if event.button() == Qt.MouseButton.LeftButton:
            if self.live_in_corner and self._corner().contains(event.position()):
                self.live_wanted.emit()
                return
            self._held = event.position().toPoint()
            size = self._main[1]
            self._panning = size.width() * self.zoom > self.width() or size.height() * self.zoom > self.height()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """Push what is larger than its room; drag out what is not."""
        if self._held is None:
            return
        moved = event.position().toPoint() - self._held
        if self._panning:
            self._offset += QPointF(moved)
            self._held = event.position().toPoint()
            self._keep_inside()
            self.update()
        elif self.path and moved.manhattanLength() >= QApplication.startDragDistance():
            self._held = None
            drag = QDrag(self)
            drag.setMimeData(file_data([self.path]))
            if self._pixmap is not None:
                drag.setPixmap(self._pixmap.scaled(96, 96, Qt.AspectRatioMode.KeepAspectRatio))
            drag.exec(Qt.DropAction.CopyAction)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """The end of it."""
        self._held = None

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """Between fitting and pixel for pixel."""
        if self._main[0] is not None:
            self.set_zoom(1 / self.devicePixelRatioF() if self._zoom is None else None, event.position())

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Arrows push it about."""
        step = {Qt.Key.Key_Left: (40, 0), Qt.Key.Key_Right: (-40, 0), Qt.Key.Key_Up: (0, 40), Qt.Key.Key_Down: (0, -40)}
        by = step.get(Qt.Key(event.key()))
        if by is None or self._zoom is None:
            super().keyPressEvent(event)
            return
        self._offset += QPointF(*by)
        self._keep_inside()
        self.update()


class Bar(QFrame):
    """The bar for what went wrong or is asked: a sentence, what to do, details. It is never in the way."""

    acted = Signal(str)  # the name of a command
    copied = Signal()  # its details are wanted as a text to send
    closed = Signal()

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.setObjectName("notice")
        self.notice: Notice | None = None
        self.sign = QLabel()
        self.sign.setFixedSize(20, LINE)
        self.words = QLabel()
        self.words.setWordWrap(True)
        self.words.setContentsMargins(0, (LINE - self.words.fontMetrics().height()) // 2, 0, 0)
        self.words.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.words.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.words.setTextFormat(Qt.TextFormat.PlainText)
        self.more = QPushButton("Details")
        self.more.setCheckable(True)
        self.copy = QPushButton("Copy Details")
        self.copy.clicked.connect(self.copied)
        self.copy.hide()
        self.close_button = QToolButton()
        self.close_button.setProperty("flat", True)
        self.close_button.setAccessibleName("Close this message")
        self.close_button.setToolTip("Close")
        self.details = QPlainTextEdit()
        self.details.setReadOnly(True)
        self.details.setTabChangesFocus(True)
        self.details.setAccessibleName("Details")
        self.details.setFixedHeight(130)
        self.details.hide()
        self._buttons = QHBoxLayout()
        self._buttons.setSpacing(8)
        above = QHBoxLayout()
        above.setSpacing(8)
        above.addWidget(self.sign, 0, Qt.AlignmentFlag.AlignTop)
        above.addWidget(self.words, 1)
        above.addWidget(self.close_button, 0, Qt.AlignmentFlag.AlignTop)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 8, 8, 8)
        layout.setSpacing(6)
        layout.addLayout(above)
        row = QHBoxLayout()
        row.setContentsMargins(28, 0, 4, 0)
        row.addLayout(self._buttons)
        row.addWidget(self.more)
        row.addStretch(1)
        layout.addLayout(row)
        layout.addWidget(self.details)
        layout.addWidget(self.copy, 0, Qt.AlignmentFlag.AlignLeft)
        self.more.toggled.connect(self.details.setVisible)
        self.more.toggled.connect(self.copy.setVisible)
        self.close_button.clicked.connect(self.closed)
        self.hide()

    def show_notice(self, notice: Notice | None) -> None:
        """Another message, or none."""
        self.notice = notice
        while self._buttons.count():
            widget = self._buttons.takeAt(0).widget()
            if widget is not None:
                widget.hide()
                widget.deleteLater()
        self.setVisible(notice is not None)
        if notice is None:
            return
        self.words.setText(notice.text)
        self.set_dark()
        for text, command in notice.actions:
            button = QPushButton(text)
            button.clicked.connect(lambda _=False, command=command: self.acted.emit(command))
            self._buttons.addWidget(button)
        self.more.setChecked(False)
        self.more.setVisible(bool(notice.details))
        self.details.setPlainText(notice.details)
        self.setAccessibleName(notice.text)

    def set_dark(self) -> None:
        """Its signs, in the scheme that is on."""
        error = self.notice is not None and self.notice.kind == "error"
        c = theme.colours()
        self.sign.setPixmap(theme.icon("warning" if error else "info", c.red if error else c.quiet).pixmap(16, 16))
        self.close_button.setIcon(theme.icon("close", c.quiet))


class Viewer(QWidget):
    """The middle column."""

    example = Signal(str)
    models_wanted = Signal()

    def __init__(
        self, actions: list[QAction], more: list[QAction | None], rare: QAction, parent: QWidget | None = None
    ):
        """`actions` get buttons as far as there is room, `rare` only if needed; all, and `more`, are in the menu."""
        super().__init__(parent)
        self.canvas = Canvas()
        self.bar = Bar()
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setRange(0, 1000)
        self.progress.setAccessibleName("How far the pictures are")
        self.status = Elided()
        self.status.setProperty("quiet", True)
        self._actions = actions = [*actions, rare]
        self._rare = rare
        self._needed: QAction | None = None
        self._busy = self._empty = False
        self._buttons: list[QPushButton] = []
        below = QHBoxLayout()
        below.setSpacing(8)
        below.addWidget(self.status, 1)
        for action in actions:
            button = QPushButton()
            button.clicked.connect(action.trigger)
            action.changed.connect(self._follow)
            self._buttons.append(button)
            below.addWidget(button)
        self.more = QToolButton()
        self.more.setAccessibleName("More commands for this picture")
        self.more.setToolTip("More")
        self.more.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self.more)
        for one in [*actions, None, *more]:
            menu.addSeparator() if one is None else menu.addAction(one)
        self.more.setMenu(menu)
        below.addWidget(self.more)
        self._welcome()
        lower = QVBoxLayout()
        lower.setContentsMargins(16, 8, 16, 10)
        lower.setSpacing(8)
        lower.addWidget(self.bar)
        lower.addWidget(self.progress)
        lower.addLayout(below)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        self.pages = QStackedWidget()  # what is in the middle: the picture, or what somebody does with it
        self.pages.addWidget(self.canvas)
        layout.addWidget(self.pages, 1)
        layout.addLayout(lower)
        self.setMinimumWidth(320)
        self._follow()
        self.set_dark()

    def _welcome(self) -> None:
        """What is shown before there is a picture: one sentence and three things to try."""
        self.welcome = QWidget(self.canvas)
        column = QVBoxLayout(self.welcome)
        column.setSpacing(10)
        heading = QLabel("mlxldm makes pictures on this computer.")
        heading.setProperty("heading", True)
        heading.setAlignment(Qt.AlignmentFlag.AlignCenter)
        words = QLabel("Nothing leaves it. Describe one at the left, or try:")
        words.setProperty("quiet", True)
        words.setAlignment(Qt.AlignmentFlag.AlignCenter)
        column.addWidget(heading)
        column.addWidget(words)
        column.addSpacing(6)
        for text in (
            "a red lighthouse by the sea at dusk",
            "a green hill under a yellow sun",
            "a blue house in the snow",
        ):
            button = QPushButton(text)
            button.clicked.connect(lambda _=False, text=text: self.example.emit(text))
            column.addWidget(button, 0, Qt.AlignmentFlag.AlignHCenter)
        more = QPushButton("Models that know more of the world…")
        more.setProperty("flat", True)
        more.setProperty("quiet", True)
        more.clicked.connect(self.models_wanted)
        column.addSpacing(6)
        column.addWidget(more, 0, Qt.AlignmentFlag.AlignHCenter)
        outside = QVBoxLayout(self.canvas)
        outside.addWidget(self.welcome, 0, Qt.AlignmentFlag.AlignCenter)

    def show_progress(self, fraction: float | None, text: str) -> None:
        """The bar and the line below; no fraction while a model loads, text alone when nothing runs."""
        self.progress.setRange(0, 0 if fraction is None else 1000)
        if fraction is not None:
            self.progress.setValue(round(fraction * 1000))
        self.status.say(text)

    def show_idle(self, text: str = "") -> None:
        """Nothing runs."""
        self.progress.setRange(0, 1000)
        self.progress.setValue(0)
        self.status.say(text)

    def set_busy(self, busy: bool) -> None:
        """Whether the progress bar has something to show. Its room stays, or the picture would jump."""
        self.progress.setProperty("idle", not busy)
        policy = self.progress.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.progress.setSizePolicy(policy)
        self.progress.setVisible(busy)
        self._busy = busy
        self._follow()

    def need(self, action: QAction | None) -> None:
        """A command that has a button however narrow it is; None for no such."""
        self._needed = action
        self._follow()

    def set_empty(self, empty: bool) -> None:
        """Whether there was never a picture."""
        self.welcome.setVisible(empty)
        self._empty = empty
        self._follow()

    def set_dark(self) -> None:
        """The signs, in the scheme that is on."""
        self.more.setIcon(theme.icon("more"))
        self.bar.set_dark()
        self.canvas.update()

    def _follow(self) -> None:
        """Buttons say what their commands say; the first is there while something runs, the others while
        there is a picture and room, and always what is needed."""
        first = [one for at, one in enumerate(self._actions) if one is self._needed or (self._busy and at == 0)]
        rest = [] if self._empty else [one for one in self._actions[1:] if one is not self._rare and one not in first]
        room = self.width() - 32 - self.more.sizeHint().width() - STATUS[self._busy]
        buttons = dict(zip(self._actions, self._buttons, strict=True))
        for action, button in buttons.items():
            text = action.text().replace("&", "")
            if button.text() != text:
                button.setText(text)
            button.setEnabled(action.isEnabled())
        seen = set()
        for action in [*first, *rest]:
            wide = buttons[action].sizeHint().width() + 8
            if action.isVisible() and (action in first or wide <= room):
                seen.add(action)
                room -= wide
        for action, button in buttons.items():
            button.setVisible(action in seen)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """As many buttons as there is room for."""
        super().resizeEvent(event)
        self._follow()

    def event(self, event: QEvent) -> bool:
        """Another scheme needs other signs."""
        if event.type() == QEvent.Type.PaletteChange:
            self.set_dark()
        return super().event(event)


def cropped(size: QSize) -> QRectF:
    """The largest square in the middle."""
    side = min(size.width(), size.height())
    return QRectF((size.width() - side) / 2, (size.height() - side) / 2, side, side)


def file_data(paths: list[str]) -> QMimeData:
    """Files, as they are dragged and copied."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(path) for path in paths])
    return data
