"""The right column: pictures, newest first, by day; below them the queue."""

from __future__ import annotations

import bisect
from datetime import date, timedelta
from typing import Any

from PySide6.QtCore import (
    QAbstractListModel,
    QEvent,
    QItemSelection,
    QItemSelectionModel,
    QMimeData,
    QModelIndex,
    QPersistentModelIndex,
    QPoint,
    QRect,
    QRectF,
    QSize,
    Qt,
    Signal,
)
from PySide6.QtGui import (
    QColor,
    QContextMenuEvent,
    QFont,
    QHelpEvent,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPainterPath,
    QPaintEvent,
    QPen,
    QRegion,
    QResizeEvent,
)
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QLineEdit,
    QListView,
    QSplitter,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QToolButton,
    QToolTip,
    QVBoxLayout,
    QWidget,
)

from . import theme
from .history import Entry, History, Picture
from .jobs import Queue
from .thumbnails import Thumbnails
from .viewer import cropped, file_data
from .widgets import Elided

Index = QModelIndex | QPersistentModelIndex
GAP = 6  # between two pictures
LEAST = 112  # side of a picture; more of them in a row where there is room
HEADER = 28


class Gallery(QAbstractListModel):
    """The pictures of the index, or those that a search finds."""

    PICTURE = Qt.ItemDataRole.UserRole

    def __init__(self, history: History, parent: QWidget | None = None):
        super().__init__(parent)
        self._history = history
        self._all: list[Picture] = []
        self._text, self._favourites = "", False
        self.shown: list[Picture] = []
        self._names: dict[int, str] = {}

    def load(self, pictures: list[Picture] | None = None) -> None:
        """Everything, from the index, or as another thread has read it there."""
        self._all = self._history.pictures() if pictures is None else pictures
        self.filter(self._text, self._favourites)

    def filter(self, text: str, favourites: bool = False) -> None:
        """Only pictures whose prompt has words that begin like these, and only favourites."""
        self._text, self._favourites = text, favourites
        found = self._history.search(text)
        self.beginResetModel()
        everything = found is None and not favourites
        self.shown = list(self._all) if everything else [one for one in self._all
                      if (found is None or one.id in found) and (not favourites or one.favourite)]  # fmt: skip
        self._names.clear()
        self.endResetModel()

    def add(self, picture: Picture) -> None:
        """A new one, at the front."""
        found = self._history.search(self._text)
        self._all.insert(0, picture)
        if (found is None or picture.id in found) and (not self._favourites or picture.favourite):
            self.beginInsertRows(QModelIndex(), 0, 0)
            self.shown.insert(0, picture)
            self.endInsertRows()

    def remove(self, pictures: list[Picture]) -> None:
        """These are shown no more."""
        gone = {one.id for one in pictures}
        self._all = [one for one in self._all if one.id not in gone]
        for row in reversed([row for row, one in enumerate(self.shown) if one.id in gone]):
            self.beginRemoveRows(QModelIndex(), row, row)
            del self.shown[row]
            self.endRemoveRows()

    def favour(self, pictures: list[Picture], favourite: bool) -> None:
        """A heart, or none."""
        self._history.favour([one.id for one in pictures], favourite)
        changed = {one.id for one in pictures}
        for where in (self._all, self.shown):
            for row, one in enumerate(where):
                if one.id in changed:
                    where[row] = Picture(one.id, one.path, one.mtime, one.width, one.height, favourite)
        self.dataChanged.emit(self.index(0), self.index(max(0, len(self.shown) - 1)))

    def row_of(self, number: int) -> int:
        """Where a picture is shown, or -1."""
        return next((row for row, one in enumerate(self.shown) if one.id == number), -1)

    def name(self, picture: Picture) -> str:
        """Its prompt, seed and model, for tooltips and screen readers."""
        if picture.id not in self._names:
            job = self._history.record(picture.id).get("job", {})
            about = " · ".join(filter(None, (f"seed {job['seed']}" if "seed" in job else "", job.get("model") or "")))
            self._names[picture.id] = "\n".join(filter(None, (job.get("prompt") or "A picture", about)))
        return self._names[picture.id]

    @property
    def favourites_only(self) -> bool:
        """Whether only favourites are shown."""
        return self._favourites

    @property
    def any(self) -> bool:
        """Whether there is any picture at all."""
        return bool(self._all)

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008
        """How many are shown."""
        return 0 if parent.isValid() else len(self.shown)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """A picture, and what to call it."""
        if not 0 <= index.row() < len(self.shown):
            return None
        picture = self.shown[index.row()]
        if role == self.PICTURE:
            return picture
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole, Qt.ItemDataRole.ToolTipRole):
            return self.name(picture) + ("\nFavourite" if picture.favourite else "")
        return None

    def flags(self, index: Index) -> Qt.ItemFlag:
        """They can be dragged out."""
        return Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsDragEnabled

    def mimeData(self, indexes: Any) -> QMimeData:  # noqa: N802
        """Their files."""
        return file_data([self.shown[index.row()].path for index in indexes])


class Thumb(QStyledItemDelegate):
    """One picture: its middle, a ring where it is selected, a heart where it is a favourite."""

    def __init__(self, thumbnails: Thumbnails, parent: QWidget | None = None):
        super().__init__(parent)
        self._thumbnails = thumbnails

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Into its square."""
        picture: Picture = index.data(Gallery.PICTURE)
        c, place = theme.colours(), QRectF(option.rect)
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        focused = bool(option.state & QStyle.StateFlag.State_HasFocus)
        inner = place.adjusted(3, 3, -3, -3)
        pixmap = self._thumbnails.of(picture)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        path = QPainterPath()
        path.addRoundedRect(inner, 4, 4)
        if pixmap is None:
            painter.fillPath(path, QColor(c.line))
        else:
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            painter.setClipPath(path)
            painter.drawPixmap(inner, pixmap, cropped(pixmap.size()))
            painter.setClipping(False)
        if selected or focused:
            painter.setPen(QPen(QColor(c.ring if selected else c.quiet), 2))
            painter.drawRoundedRect(place.adjusted(1, 1, -1, -1), 6, 6)
        if picture.favourite:
            theme.draw(painter, "heart", QRectF(inner.right() - 22, inner.bottom() - 22, 16, 16), QColor("#ff5d73"))
        painter.restore()


class Grid(QAbstractItemView):
    """Squares in columns, under the day they were made on.

    Where each is follows from the number of columns alone, so twenty thousand cost what the visible ones do.
    """

    opened = Signal()
    menu_wanted = Signal(QPoint)

    def __init__(self, thumbnails: Thumbnails, parent: QWidget | None = None):
        super().__init__(parent)
        self._thumbnails = thumbnails
        self._columns, self._side = 2, LEAST
        self._starts: list[int] = []  # the first row of each day ...
        self._tops: list[int] = []  # ... and where its heading is
        self._days: list[str] = []
        self._height = 0
        self.setAccessibleName("Pictures")
        self.setFrameShape(QAbstractItemView.Shape.NoFrame)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setDragEnabled(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.viewport().setAutoFillBackground(False)
        self.setItemDelegate(Thumb(thumbnails, self))
        thumbnails.arrived.connect(lambda number: self._arrived(number))

    # Where things are.

    def lay_out(self) -> None:
        """Work out days, columns and places."""
        pictures = self._pictures
        width = self.viewport().width()
        self._columns = max(2, (width + GAP) // (LEAST + GAP))
        self._side = max(16, (width - (self._columns - 1) * GAP) // self._columns)
        self._thumbnails.seen = self._columns * (self.viewport().height() // (self._side + GAP) + 2)
        self._starts, self._tops, self._days = [], [], []
        today, row, top = date.today(), 0, 0
        while row < len(pictures):
            day = made_on(pictures[row])
            end = bisect.bisect_right(pictures, -day.toordinal(), row + 1, key=lambda one: -made_on(one).toordinal())
            self._starts.append(row)
            self._tops.append(top)
            self._days.append(day_name(day, today))
            top += HEADER + self._rows(end - row) + GAP
            row = end
        self._height = max(0, top - GAP)
        self._update_bar()
        self.viewport().update()

    @property
    def _pictures(self) -> list[Picture]:
        model = self.model()
        return model.shown if isinstance(model, Gallery) else []

    def _rows(self, count: int) -> int:
        return -(-count // self._columns) * (self._side + GAP)

    def _update_bar(self) -> None:
        bar = self.verticalScrollBar()
        bar.setRange(0, max(0, self._height - self.viewport().height()))
        bar.setEnabled(bar.maximum() > 0)
        bar.setPageStep(self.viewport().height())
        bar.setSingleStep(max(1, self._side // 3))

    def _rect(self, row: int) -> QRect:
        """A picture's place, without the scrolling."""
        day = bisect.bisect_right(self._starts, row) - 1
        if day < 0:
            return QRect()
        line, column = divmod(row - self._starts[day], self._columns)
        return QRect(column * (self._side + GAP), self._tops[day] + HEADER + line * (self._side + GAP),
                     self._side, self._side)  # fmt: skip

    def _visible(self, top: int, bottom: int) -> range:
        """The rows between two heights, and perhaps a few more."""
        if not self._starts:
            return range(0)
        first = max(0, bisect.bisect_right(self._tops, top) - 1)
        last = max(0, bisect.bisect_right(self._tops, bottom) - 1)
        step = self._side + GAP
        start = self._starts[first] + max(0, (top - self._tops[first] - HEADER) // step) * self._columns
        end = self._starts[last] + (max(0, bottom - self._tops[last] - HEADER) // step + 1) * self._columns
        next_day = self._starts[last + 1] if last + 1 < len(self._starts) else len(self._pictures)
        return range(min(start, len(self._pictures)), min(end, next_day))

    def visualRect(self, index: Index) -> QRect:  # noqa: N802
        """A picture's place in the window."""
        if not index.isValid():
            return QRect()
        return self._rect(index.row()).translated(0, -self.verticalOffset())

    def indexAt(self, point: QPoint) -> QModelIndex:  # noqa: N802
        """The picture under a point."""
        place = point + QPoint(0, self.verticalOffset())
        for row in self._visible(place.y(), place.y()):
            if self._rect(row).contains(place):
                return self.model().index(row, 0)
        return QModelIndex()

    def scrollTo(
        self, index: Index, hint: QAbstractItemView.ScrollHint = QAbstractItemView.ScrollHint.EnsureVisible
    ) -> None:  # noqa: N802, E501
        """As little as shows it whole."""
        place, bar = self._rect(index.row()), self.verticalScrollBar()
        day = bisect.bisect_right(self._starts, index.row()) - 1
        top = place.top() - (HEADER if day >= 0 and index.row() - self._starts[day] < self._columns else GAP)
        if top < bar.value():
            bar.setValue(top)
        elif place.bottom() + GAP > bar.value() + self.viewport().height():
            bar.setValue(place.bottom() + 1 + GAP - self.viewport().height())

    def horizontalOffset(self) -> int:  # noqa: N802
        """None."""
        return 0

    def verticalOffset(self) -> int:  # noqa: N802
        """How far it is scrolled."""
        return self.verticalScrollBar().value()

    def isIndexHidden(self, index: Index) -> bool:  # noqa: N802
        """None is."""
        return False

    def moveCursor(self, action: QAbstractItemView.CursorAction, modifiers: Any) -> QModelIndex:  # noqa: N802
        """Arrows go to the neighbour, across days too."""
        count = len(self._pictures)
        if not count:
            return QModelIndex()
        row = self.currentIndex().row()
        if row < 0:
            return self.model().index(0, 0)
        move = QAbstractItemView.CursorAction
        if action in (move.MoveUp, move.MoveDown, move.MovePageUp, move.MovePageDown):
            up = action in (move.MoveUp, move.MovePageUp)
            step = self._side + GAP
            if action in (move.MovePageUp, move.MovePageDown):
                step = max(step, self.viewport().height() - step)
            row = self._towards(row, -step if up else step)
        else:
            row = {move.MoveLeft: row - 1, move.MovePrevious: row - 1, move.MoveRight: row + 1, move.MoveNext: row + 1,
                   move.MoveHome: 0, move.MoveEnd: count - 1}.get(action, row)  # fmt: skip
        return self.model().index(min(max(row, 0), count - 1), 0)

    def _towards(self, row: int, by: int) -> int:
        """The picture nearest to a place so much lower, in the same column if it can be."""
        here = self._rect(row).center()
        wanted = QPoint(here.x(), here.y() + by)
        near = self._visible(
            wanted.y() - abs(by) // 2 - HEADER - self._side, wanted.y() + abs(by) // 2 + HEADER + self._side
        )
        others = [one for one in near if (self._rect(one).center().y() - here.y()) * by > 0]
        return min(others, key=lambda one: (self._rect(one).center() - wanted).manhattanLength(), default=row)

    def setSelection(self, rect: QRect, command: QItemSelectionModel.SelectionFlag) -> None:  # noqa: N802
        """What a rectangle of the window touches, or what lies between its corners in time."""
        selection = QItemSelection()
        first, last = self.indexAt(rect.topLeft()), self.indexAt(rect.bottomRight())
        if self.state() != QAbstractItemView.State.DragSelectingState and first.isValid() and last.isValid():
            selection.select(*sorted((first, last)))  # with ⇧: all from the one to the other
        else:
            area = rect.normalized().translated(0, self.verticalOffset())
            for row in self._visible(area.top(), area.bottom()):
                if self._rect(row).intersects(area):
                    index = self.model().index(row, 0)
                    selection.select(index, index)
        self.selectionModel().select(selection, command)

    def visualRegionForSelection(self, selection: QItemSelection) -> QRegion:  # noqa: N802
        """What to paint again when it changes: all that is visible, which is little."""
        return QRegion(self.viewport().rect())

    # What happens.

    def setModel(self, model: Any) -> None:  # noqa: N802
        """Follow a model."""
        super().setModel(model)
        for signal in (model.modelReset, model.rowsInserted, model.rowsRemoved):
            signal.connect(lambda *_: self.lay_out())
        self.lay_out()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """The visible ones, and the headings of their days."""
        painter = QPainter(self.viewport())
        offset, area = self.verticalOffset(), event.rect()
        c = theme.colours()
        font = QFont(self.font())
        font.setBold(True)
        painter.setFont(font)
        painter.setPen(QColor(c.quiet))
        first = max(0, bisect.bisect_right(self._tops, offset) - 1)
        for top, day in zip(self._tops[first:], self._days[first:], strict=True):
            if top > offset + self.viewport().height():
                break
            painter.drawText(
                QRect(3, top - offset, self.viewport().width() - 3, HEADER), Qt.AlignmentFlag.AlignVCenter, day
            )
        if not self._pictures:
            painter.setFont(self.font())
            model = self.model()
            nothing = (
                "No picture has these words" if isinstance(model, Gallery) and model.any else "Pictures appear here"
            )
            painter.drawText(self.viewport().rect().adjusted(0, 24, 0, 0),
                             Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop, nothing)  # fmt: skip
        option = QStyleOptionViewItem()
        self.initViewItemOption(option)
        selection, current = self.selectionModel(), self.currentIndex()
        plain = option.state & ~(QStyle.StateFlag.State_Selected | QStyle.StateFlag.State_HasFocus)
        for row in self._visible(area.top() + offset, area.bottom() + offset):
            index = self.model().index(row, 0)
            option.rect = self.visualRect(index)
            option.state = plain
            if selection.isSelected(index):
                option.state |= QStyle.StateFlag.State_Selected
            if index == current and self.hasFocus():
                option.state |= QStyle.StateFlag.State_HasFocus
            self.itemDelegate().paint(painter, option, index)
        painter.end()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Other columns; what is in the middle stays there."""
        self.lay_out()
        super().resizeEvent(event)

    def updateGeometries(self) -> None:  # noqa: N802
        """The scroll bar is ours."""
        super().updateGeometries()
        self._update_bar()

    def scrollContentsBy(self, dx: int, dy: int) -> None:  # noqa: N802
        """Move what is there and paint the rest."""
        self.viewport().update()

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """Look at it large."""
        if self.indexAt(event.position().toPoint()).isValid():
            self.opened.emit()

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:  # noqa: N802
        """Its commands."""
        self.menu_wanted.emit(event.globalPos())

    def viewportEvent(self, event: QEvent) -> bool:  # noqa: N802
        """Tooltips, asked for late: their text is in the database."""
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            index = self.indexAt(event.pos())
            text = index.data(Qt.ItemDataRole.ToolTipRole) if index.isValid() else ""
            QToolTip.showText(event.globalPos(), text, self.viewport())
            return True
        return super().viewportEvent(event)

    def _arrived(self, number: int) -> None:
        offset = self.verticalOffset()
        for row in self._visible(offset, offset + self.viewport().height()):
            if self._pictures[row].id == number:
                self.viewport().update(self._rect(row).translated(0, -offset))

    @property
    def chosen(self) -> list[Picture]:
        """The selected pictures, as they are shown."""
        rows = sorted(index.row() for index in self.selectionModel().selectedIndexes())
        return [self._pictures[row] for row in rows]


def made_on(picture: Picture) -> date:
    """Its day, here."""
    return date.fromtimestamp(picture.mtime)


def day_name(day: date, today: date) -> str:
    """A day as people call it."""
    if day == today:
        return "Today"
    if day == today - timedelta(days=1):
        return "Yesterday"
    if timedelta(0) < today - day < timedelta(days=7):
        return f"{day:%A}"
    return f"{day.day} {day:%B}" if day.year == today.year else f"{day.day} {day:%B} {day.year}"


class Waiting(QStyledItemDelegate):
    """One job: its sign, its words, how many pictures, and ✕."""

    ROW = 28

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: N802
        """One line."""
        return QSize(100, self.ROW)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Into its line."""
        entry: Entry = index.data(Queue.ENTRY)
        c, place = theme.colours(), option.rect
        focused = bool(option.state & QStyle.StateFlag.State_HasFocus)
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if selected or option.state & QStyle.StateFlag.State_MouseOver:
            path = QPainterPath()
            path.addRoundedRect(QRectF(place).adjusted(0.5, 1.5, -0.5, -1.5), 5, 5)
            painter.fillPath(path, QColor(c.pressed))
            if focused:
                painter.setPen(QPen(QColor(c.ring), 1))
                painter.drawPath(path)
        bad = entry.state in ("failed", "aside")
        sign = {"running": "play", "paused": "pause", "failed": "warning", "aside": "warning"}.get(entry.state)
        if sign:
            colour = c.ring if sign == "play" else c.red if bad else c.quiet
            theme.draw(painter, sign, QRectF(place.left() + 4, place.center().y() - 6, 13, 13), QColor(colour))
        left, count = entry.job.count - entry.done, ""
        if entry.state in ("running", "paused", "waiting"):
            count = f"{entry.done} of {entry.job.count}" if entry.done else (f"× {left}" if left > 1 else "")
        elif entry.state == "cancelled":
            count = "stopped"
        room = place.adjusted(22, 0, -28, 0)
        metrics = option.fontMetrics
        painter.setPen(QColor(c.quiet))
        painter.drawText(room, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, count)
        room.setRight(room.right() - (metrics.horizontalAdvance(count) + 8 if count else 0))
        painter.setPen(QColor(c.quiet if entry.state == "cancelled" else c.text))
        words = " ".join(entry.job.prompt.split()) or "A picture without words"
        painter.drawText(room, Qt.AlignmentFlag.AlignVCenter,
                         metrics.elidedText(words, Qt.TextElideMode.ElideRight, room.width()))  # fmt: skip
        theme.draw(painter, "close", self.cross(place), QColor(c.quiet))
        painter.restore()

    @staticmethod
    def cross(place: QRect) -> QRectF:
        """Where its ✕ is."""
        return QRectF(place.right() - 20, place.center().y() - 5, 12, 12)


class QueueView(QListView):
    """The queue as lines. ✕ and ⌫ take one away, ⌥↑ and ⌥↓ move it, Return lets it try again."""

    def __init__(self, queue: Queue, parent: QWidget | None = None):
        super().__init__(parent)
        self._queue = queue
        self.setModel(queue)
        self.setItemDelegate(Waiting(self))
        self.setAccessibleName("Queue")
        self.setMouseTracking(True)
        self.setUniformItemSizes(True)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFrameShape(QListView.Shape.NoFrame)
        self.viewport().setAutoFillBackground(False)

    @property
    def entry(self) -> Entry | None:
        """The selected job."""
        index = self.currentIndex()
        return index.data(Queue.ENTRY) if index.isValid() else None

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """A click on ✕."""
        index = self.indexAt(event.position().toPoint())
        if index.isValid():
            cross = Waiting.cross(self.visualRect(index)).adjusted(-6, -8, 6, 8)
            if cross.contains(event.position()):
                self._queue.remove(index.data(Queue.ENTRY).id)
                return
        super().mouseReleaseEvent(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """As the class says."""
        entry, key = self.entry, event.key()
        if entry is None:
            super().keyPressEvent(event)
        elif key in (Qt.Key.Key_Delete, Qt.Key.Key_Backspace):
            row = self.currentIndex().row()
            self._queue.remove(entry.id)
            self._select(min(row, self._queue.rowCount() - 1))
        elif key in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and not event.modifiers():
            self._queue.again(entry.id)
            self._select_entry(entry.id)
        elif key in (Qt.Key.Key_Up, Qt.Key.Key_Down) and event.modifiers() & Qt.KeyboardModifier.AltModifier:
            self._queue.move(entry.id, -1 if key == Qt.Key.Key_Up else 1)
            self._select_entry(entry.id)
        else:
            super().keyPressEvent(event)

    def _select_entry(self, number: int) -> None:
        for row in range(self._queue.rowCount()):
            if self._queue.index(row).data(Queue.ENTRY).id == number:
                self._select(row)

    def _select(self, row: int) -> None:
        if row >= 0:
            self.setCurrentIndex(self._queue.index(row))


class Side(QWidget):
    """The right column."""

    def __init__(self, gallery: Gallery, queue: Queue, thumbnails: Thumbnails, parent: QWidget | None = None):
        super().__init__(parent)
        self.queue = queue
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search prompts")
        self.search.setAccessibleName("Search prompts")
        self.search.setClearButtonEnabled(True)
        self.hearts = QToolButton()
        self.hearts.setCheckable(True)
        self.hearts.setProperty("flat", True)
        self.hearts.setAccessibleName("Favourites only")
        self.hearts.setToolTip("Favourites only")
        self.grid = Grid(thumbnails)
        self.grid.setModel(gallery)
        self.heading = Elided()
        self.heading.setProperty("quiet", True)
        self.pause = QToolButton()
        self.pause.setProperty("flat", True)
        self.waiting = QueueView(queue)
        above = QHBoxLayout()
        above.setContentsMargins(12, 12, 12, 6)
        above.setSpacing(6)
        above.addWidget(self.search, 1)
        above.addWidget(self.hearts)
        upper = QWidget()
        column = QVBoxLayout(upper)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(above)
        inside = QHBoxLayout()
        inside.setContentsMargins(9, 0, 2, 0)
        inside.addWidget(self.grid)
        column.addLayout(inside, 1)
        self.below = QWidget()
        below = QVBoxLayout(self.below)
        below.setContentsMargins(12, 6, 8, 8)
        below.setSpacing(2)
        line = QHBoxLayout()
        line.setContentsMargins(3, 0, 0, 0)
        line.addWidget(self.heading, 1)
        line.addWidget(self.pause)
        below.addLayout(line)
        below.addWidget(self.waiting, 1)
        self.split = QSplitter(Qt.Orientation.Vertical)
        self.split.setHandleWidth(1)
        self.split.setChildrenCollapsible(False)
        self.split.addWidget(upper)
        self.split.addWidget(self.below)
        self.split.setStretchFactor(0, 1)
        self.below.setMinimumHeight(72)
        upper.setMinimumHeight(120)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.split)
        self.setMinimumWidth(2 * LEAST + 40)
        self.pause.clicked.connect(lambda: queue.resume() if queue.held else queue.pause())
        queue.changed.connect(self.follow)
        self.follow()
        self.set_dark()

    def follow(self) -> None:
        """What the queue is doing, in a line; no queue, no lines."""
        queue = self.queue
        running, waiting, bad = queue.running is not None, len(queue.waiting), len(queue.ended_badly)
        parts = [f"{1 if running else 0} running"] if running else []
        parts += [f"{waiting} waiting"] if waiting else []
        parts += [f"{bad} ended"] if bad and not parts else []
        name = "Queue, paused" if queue.held else "Queue"
        self.heading.say(" · ".join([name, ", ".join(parts)]) if parts else name)
        self.pause.setIcon(theme.icon("play" if queue.held else "pause", theme.colours().quiet))
        said = "Resume the queue" if queue.held else "Pause the queue"
        if self.pause.toolTip() != said:
            self.pause.setToolTip(said)
            self.pause.setAccessibleName(said)
        self.below.setVisible(queue.rowCount() > 0 or queue.held)
        rows = min(max(queue.rowCount(), 2), 6)
        wanted = rows * Waiting.ROW + 50
        if self.below.isVisible() and self.below.height() != wanted and not self.split.property("moved"):
            whole = self.split.height()
            if whole > wanted + 120:
                self.split.setSizes([whole - wanted, wanted])

    def set_dark(self) -> None:
        """The signs, in the scheme that is on."""
        c = theme.colours()
        only = self.hearts.isChecked()
        self.hearts.setIcon(theme.icon("heart" if only else "heart_open", "#ff5d73" if only else c.quiet))
        self.follow()
