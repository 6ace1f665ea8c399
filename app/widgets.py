"""Small widgets that Qt has not, or not like this."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, QMimeData, QObject, QPoint, QRectF, QSize, Qt, Signal
from PySide6.QtGui import (
    QColor,
    QDragEnterEvent,
    QDragLeaveEvent,
    QDropEvent,
    QFontMetrics,
    QKeyEvent,
    QKeySequence,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QPixmap,
    QResizeEvent,
    QTextCursor,
)
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPlainTextEdit,
    QSizePolicy,
    QSlider,
    QToolButton,
    QWidget,
)

from . import theme


class Elided(QLabel):
    """A line that ends in … where it has no room, and then says itself whole in its tooltip."""

    def __init__(self, text: str = "", parent: QWidget | None = None):
        super().__init__(parent)
        self._whole = ""
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.say(text)

    def say(self, text: str) -> None:
        """Another text."""
        self._whole = text
        self._fit()

    @property
    def whole(self) -> str:
        """The text, also where it is not all shown."""
        return self._whole

    def sizeHint(self) -> QSize:  # noqa: N802
        """As wide as the whole text."""
        metrics = QFontMetrics(self.font())
        return QSize(metrics.horizontalAdvance(self._whole) + 4, metrics.height() + 2)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Fit it again."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        shown = self.fontMetrics().elidedText(self._whole, Qt.TextElideMode.ElideRight, max(0, self.width()))
        if shown != self.text():
            super().setText(shown)
        tip = self._whole if shown != self._whole else ""
        if tip != self.toolTip():
            self.setToolTip(tip)


class Unheard(QObject):
    """Keeps keys from a line of text that are the window's commands: on X it would take Ctrl+E and Ctrl+U, as Emacs."""

    KEYS = ("Ctrl+E", "Ctrl+U")

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Asked whether it wants one of them, it does not."""
        if not isinstance(event, QKeyEvent) or event.type() != QEvent.Type.ShortcutOverride:
            return super().eventFilter(watched, event)
        if QKeySequence(event.keyCombination()).toString() in self.KEYS:
            event.ignore()
            return True
        return super().eventFilter(watched, event)


def roomy(box: QAbstractSpinBox) -> None:
    """Some room beside a number: a style sheet's padding does not reach it."""
    box.lineEdit().setTextMargins(6, 0, 6, 0)


def chevron(widget: QWidget) -> None:
    """Draw the sign of something that opens at the right of a widget."""
    painter = QPainter(widget)
    colour = QColor(theme.colours().quiet)
    theme.draw(painter, "open", QRectF(widget.width() - 20, widget.height() / 2 - 6, 12, 12), colour)
    painter.end()


class Combo(QComboBox):
    """A choice that only changes on purpose: not by a wheel that scrolls past."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(4)

    def setAccessibleName(self, name: str) -> None:  # noqa: N802
        """The same for its list."""
        super().setAccessibleName(name)
        self.view().setAccessibleName(name)

    def wheelEvent(self, event: QEvent) -> None:  # noqa: N802
        """Leave it to what scrolls."""
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """With its sign."""
        super().paintEvent(event)
        chevron(self)


class Choice(Combo):
    """A choice from a menu with sub-menus. `pick` is called with what was chosen."""

    def __init__(self, pick: Callable[[str], None], parent: QWidget | None = None):
        super().__init__(parent)
        self._pick = pick
        self.value = ""
        self._names: dict[str, str] = {}
        self.menu = QMenu(self)
        self.addItem("")

    def fill(self, few: list[tuple[str, str]], more: list[tuple[str, str]], title: str) -> None:
        """Pairs of value and name; `more` go into a sub-menu with that title."""
        self.menu.clear()
        self._names = dict(few + more)
        self._add(self.menu, few)
        if more:
            self._add(self.menu.addMenu(title), more)
        self.choose(self.value)

    def _add(self, menu: QMenu, pairs: list[tuple[str, str]]) -> None:
        for value, name in pairs:
            action = menu.addAction(name)
            assert action is not None
            action.setCheckable(True)
            action.setData(value)
            action.triggered.connect(lambda _=False, value=value: self._pick(value))

    def choose(self, value: str) -> None:
        """Show a value."""
        self.value = value
        self.setItemText(0, self._names.get(value, value))
        for menu in [self.menu, *self.menu.findChildren(QMenu)]:
            for action in menu.actions():
                action.setChecked(action.isCheckable() and action.data() == value)

    def showPopup(self) -> None:  # noqa: N802
        """The menu, where a list would be."""
        self.menu.setMinimumWidth(self.width())
        self.menu.popup(self.mapToGlobal(self.rect().bottomLeft()))


class Text(QPlainTextEdit):
    """A prompt: plain text between two heights; Tab goes on, as everywhere else in the window."""

    recall = Signal()  # the last prompt is asked for, by ↑ in an empty box

    def __init__(self, placeholder: str, lines: int, most: int, parent: QWidget | None = None):
        super().__init__(parent)
        self._lines, self._most = lines, most
        self.setPlaceholderText(placeholder)
        self.setTabChangesFocus(True)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAsNeeded)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.document().documentLayout().documentSizeChanged.connect(lambda _: self._grow())
        self._grow()

    def replace(self, text: str) -> None:
        """Another text, which its own undo does not take back: the window's does."""
        if text != self.toPlainText():
            self.setPlainText(text)
            self.moveCursor(QTextCursor.MoveOperation.End)

    def _grow(self) -> None:
        lines = min(max(int(self.document().size().height()), self._lines), self._most)
        height = lines * self.fontMetrics().lineSpacing() + 18
        if height != self.height():
            self.setFixedHeight(height)

    def event(self, event: QEvent) -> bool:
        """Undo goes to the window when there is nothing of our own to undo."""
        if event.type() == QEvent.Type.ShortcutOverride and isinstance(event, QKeyEvent):
            document = self.document()
            if (event.matches(QKeySequence.StandardKey.Undo) and not document.isUndoAvailable()) or (
                event.matches(QKeySequence.StandardKey.Redo) and not document.isRedoAvailable()
            ):
                event.ignore()
                return False
        return super().event(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """↑ in an empty box brings the last prompt; undo with nothing to undo is the window's."""
        if event.key() == Qt.Key.Key_Up and not self.toPlainText():
            self.recall.emit()
            return
        if event.matches(QKeySequence.StandardKey.Undo) and not self.document().isUndoAvailable():
            event.ignore()
            return
        super().keyPressEvent(event)

    def canInsertFromMimeData(self, source: QMimeData) -> bool:  # noqa: N802
        """Text only: pictures and files that are dropped here are the window's."""
        return source.hasText() and not source.hasUrls() and not source.hasImage()


class Check(QCheckBox):
    """A box to tick that can be seen in both schemes, and its words."""

    def sizeHint(self) -> QSize:  # noqa: N802
        """Box and words."""
        words = 8 + self.fontMetrics().horizontalAdvance(self.text()) if self.text() else 0
        return QSize(20 + words, max(20, self.fontMetrics().height() + 2))

    def hitButton(self, place: QPoint) -> bool:  # noqa: N802
        """The words are as good as the box."""
        return self.rect().contains(place)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """The box, its tick, the words."""
        c, painter, on = theme.colours(), QPainter(self), self.isChecked()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        place = QRectF(2, self.height() / 2 - 8, 16, 16)
        edge = (c.text if on else c.ring) if self.hasFocus() else c.accent if on else c.quiet
        painter.setPen(QPen(QColor(edge), 1))
        painter.setBrush(QColor(c.accent if on else c.base))
        painter.drawRoundedRect(place.adjusted(0.5, 0.5, -0.5, -0.5), 4, 4)
        if on:
            theme.draw(painter, "tick", place, QColor(c.on_accent))
        painter.setPen(QColor(c.text if self.isEnabled() else c.quiet))
        painter.drawText(self.rect().adjusted(26, 0, 0, 0), Qt.AlignmentFlag.AlignVCenter, self.text())
        painter.end()


class Amount(QWidget):
    """A slider with a box for the exact number."""

    changed = Signal()

    def __init__(self, name: str, low: float, high: float, places: int = 0, most: float | None = None,
                 parent: QWidget | None = None):  # fmt: skip
        """`places` after the point; the box goes to `most`, the slider to `high`."""
        super().__init__(parent)
        self._factor = 10**places
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(round(low * self._factor), round(high * self._factor))
        self.slider.setAccessibleName(name)
        self.box = QDoubleSpinBox()
        self.box.setDecimals(places)
        self.box.setRange(low, high if most is None else most)
        self.box.setSingleStep(1 / self._factor if places < 2 else 0.05)
        self.box.setAccessibleName(name)
        self.box.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.box.setFixedWidth(54)
        roomy(self.box)
        self.slider.wheelEvent = lambda event: event.ignore()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(8)
        layout.addWidget(self.slider, 1)
        layout.addWidget(self.box)
        self.slider.valueChanged.connect(self._slid)
        self.box.valueChanged.connect(self._typed)

    @property
    def value(self) -> float:
        """The number."""
        return self.box.value()

    def set(self, value: float) -> None:
        """Another number."""
        self.box.setValue(value)

    def _slid(self, value: int) -> None:
        if round(self.box.value() * self._factor) != value:
            self.box.setValue(value / self._factor)

    def _typed(self, value: float) -> None:
        self.slider.blockSignals(True)
        self.slider.setValue(round(value * self._factor))
        self.slider.blockSignals(False)
        self.changed.emit()


class Instead(QWidget):
    """What stands in the middle column for a while instead of the picture."""

    closed = Signal()  # it has nothing to do any more, or somebody has enough of it

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Esc is done with it, where nothing runs that it would stop."""
        if event.key() == Qt.Key.Key_Escape and not event.modifiers():
            self.closed.emit()
        else:
            super().keyPressEvent(event)


class Well(QFrame):
    """Where a picture is dropped to start from."""

    dropped = Signal(str)  # a file
    asked = Signal()  # to choose one
    cleared = Signal()

    def __init__(self, words: str, parent: QWidget | None = None):
        super().__init__(parent)
        self.setObjectName("well")
        self.setAcceptDrops(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAccessibleName("Start picture")
        self.words = QLabel(words)
        self.words.setProperty("quiet", True)
        self.words.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.words.setWordWrap(True)
        self.close_button = QToolButton(self)
        self.close_button.setAccessibleName("Without a start picture")
        self.close_button.setToolTip("Without a start picture")
        self.close_button.clicked.connect(self.cleared)
        self.close_button.hide()
        layout = QHBoxLayout(self)
        layout.addWidget(self.words)
        self._pixmap: QPixmap | None = None
        self._above = False  # whether something is dragged over it
        self.setFixedHeight(76)

    def show_picture(self, pixmap: QPixmap | None) -> None:
        """A picture, or None for the words."""
        self._pixmap = pixmap
        self.words.setVisible(pixmap is None)
        self.close_button.setVisible(pixmap is not None)
        self.close_button.setIcon(theme.icon("close"))
        self.setFixedHeight(76 if pixmap is None else 120)
        self.update()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """The button stays in its corner."""
        super().resizeEvent(event)
        self.close_button.setGeometry(self.width() - 38, 8, 30, 28)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Its edge, and the picture, whole."""
        super().paintEvent(event)
        c, painter = theme.colours(), QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        pen = QPen(QColor(c.ring if self._above or self.hasFocus() else c.quiet), 1)
        if not self._above:
            pen.setDashPattern([4, 4])
        painter.setPen(pen)
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), 8, 8)
        if self._pixmap is not None and not self._pixmap.isNull():
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            room = self.rect().adjusted(8, 8, -8, -8)
            size = self._pixmap.size().scaled(room.size(), Qt.AspectRatioMode.KeepAspectRatio)
            place = QRectF(0, 0, size.width(), size.height())
            place.moveCenter(QRectF(room).center())
            painter.drawPixmap(place, self._pixmap, QRectF(self._pixmap.rect()))
        painter.end()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Return and space choose a file, backspace takes it away."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space) and not event.modifiers():
            self.asked.emit()
        elif event.key() in (Qt.Key.Key_Backspace, Qt.Key.Key_Delete) and self._pixmap is not None:
            self.cleared.emit()
        else:
            super().keyPressEvent(event)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """A click chooses a file."""
        if self.rect().contains(event.position().toPoint()):
            self.asked.emit()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        """Files of pictures are welcome."""
        if picture_of(event.mimeData()):
            event.acceptProposedAction()
            self._over(True)

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:  # noqa: N802
        """It went on."""
        self._over(False)

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        """Take it."""
        self._over(False)
        path = picture_of(event.mimeData())
        if path:
            event.acceptProposedAction()
            self.dropped.emit(path)

    def _over(self, over: bool) -> None:
        self._above = over
        self.update()


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def picture_of(data: QMimeData) -> str | None:
    """The first picture's file among what is dragged or pasted."""
    for url in data.urls():
        path = url.toLocalFile()
        if path.lower().endswith(PICTURES):
            return path
    return None


def restyle(widget: QWidget, **properties: object) -> None:
    """Set properties that the style sheet asks for, and let it look again."""
    if any(widget.property(key) != value for key, value in properties.items()):
        for key, value in properties.items():
            widget.setProperty(key, value)
        widget.style().unpolish(widget)
        widget.style().polish(widget)
