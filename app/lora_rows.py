"""The LoRAs of the next picture: a row for each with its weight, and a list of what fits the model to add from."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from PySide6.QtCore import QEvent, QPoint, QRect, QSize, Qt, Signal
from PySide6.QtGui import QColor, QKeyEvent, QPainter, QUndoCommand, QUndoStack
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QPushButton,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from . import theme
from .adapters import Adapter, Wardrobe, Wear, title
from .widgets import Amount, Check, Elided, restyle

LEAST, MOST = -2.0, 2.0  # of the slider; the box goes further
BEYOND = 100.0
ROWS = 8  # of the list to add from
INDENT = 28  # pixels: below a row's name


class Change(QUndoCommand):
    """Other rows. Steps of one row's weight that follow each other are one."""

    def __init__(self, rows: LoraRows, after: tuple[Wear, ...], what: str, row: int = -1):
        super().__init__(what)
        self._rows, self._before, self._after, self._row = rows, rows.wears, after, row

    def id(self) -> int:
        """One for all, so that they are asked whether they merge."""
        return 1

    def mergeWith(self, other: QUndoCommand) -> bool:  # noqa: N802
        """A further step of the same slider."""
        if not isinstance(other, Change) or self._row < 0 or other._row != self._row or other._before != self._after:
            return False
        self._after = other._after
        return True

    def redo(self) -> None:
        """To the new ones."""
        self._rows.show_wears(self._after)

    def undo(self) -> None:
        """Back to what was there."""
        self._rows.show_wears(self._before)


class LoraRow(QWidget):
    """One LoRA: on or off, its weight, the words that call it."""

    weighed = Signal(float)
    switched = Signal(bool)
    removed = Signal()
    inserted = Signal(str)

    def __init__(self, wear: Wear, parent: QWidget | None = None):
        super().__init__(parent)
        name = title(wear.name)
        self.switch = Check()
        self.switch.setAccessibleName(f"Use {name}")
        self.name = Elided(name)
        self.close_button = QToolButton()
        self.close_button.setProperty("flat", True)
        self.close_button.setAccessibleName(f"Remove {name}")
        self.close_button.setToolTip("Remove")
        self.weight = Amount(f"Weight of {name}", LEAST, MOST, 2)
        self.weight.box.setRange(-BEYOND, BEYOND)
        self.word = QPushButton()
        self.word.setProperty("flat", True)
        self.word.setProperty("quiet", True)
        self.more = QToolButton()
        self.more.setProperty("flat", True)
        self.more.setAccessibleName(f"Other words that call {name}")
        self.more.setToolTip("Other words that call it")
        self.more.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.more.setMenu(QMenu(self))
        self.says = QLabel()
        self.says.setWordWrap(True)
        first, second = QHBoxLayout(), QHBoxLayout()
        first.setSpacing(8)
        first.addWidget(self.switch)
        first.addWidget(self.name, 1)
        first.addWidget(self.close_button)
        second.setContentsMargins(INDENT - 1, 0, 0, 0)
        second.addWidget(self.word, 1)
        second.addWidget(self.more)
        amount = QHBoxLayout()
        amount.setContentsMargins(INDENT, 0, 0, 0)
        amount.addWidget(self.weight)
        said = QHBoxLayout()
        said.setContentsMargins(INDENT, 0, 0, 0)
        said.addWidget(self.says)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addLayout(first)
        column.addLayout(amount)
        column.addLayout(second)
        column.addLayout(said)
        self._phrase = ""
        self.switch.toggled.connect(self.switched)
        self.weight.changed.connect(lambda: self.weighed.emit(self.weight.value))
        self.close_button.clicked.connect(self.removed)
        self.word.clicked.connect(lambda: self.inserted.emit(self._phrase))
        self.set_dark()

    def show_wear(self, wear: Wear, adapter: Adapter | None, known: bool, prompt: str) -> None:
        """As it is now; `known`: whether the worker has said what there is."""
        for widget in (self.switch, self.weight.box, self.weight.slider):
            widget.blockSignals(True)
        self.switch.setChecked(wear.on)
        if self.weight.value != round(wear.weight, 2):
            self.weight.set(wear.weight)
            self.weight.slider.setValue(round(wear.weight * 100))
        for widget in (self.switch, self.weight.box, self.weight.slider):
            widget.blockSignals(False)
        usable = adapter is None or adapter.fits
        words = adapter.words if adapter is not None and usable else ()
        self._show_words([word for word in words if word.lower() not in prompt.lower()])
        says = ""
        if known and adapter is None:
            says = "It is not here now: add its file again."
        elif adapter is not None and not adapter.fits:
            says = f"It is left out with this model. {adapter.why}"
        elif f"<lora:{title(wear.name)}".lower() in prompt.lower():
            says = "The prompt asks for it too: both count."
        restyle(self.says, level="amber" if says and not says.startswith("The prompt") else "", quiet=True)
        self.says.setText(says)
        self.says.setVisible(bool(says))
        self.weight.setEnabled(wear.on and usable)
        self.name.setEnabled(wear.on and usable)
        self.name.setToolTip("\n".join(filter(None, (adapter.path, adapter.about))) if adapter else "")

    def _show_words(self, words: list[str]) -> None:
        """The first that is not in the prompt yet on a button, the rest in a menu."""
        self._phrase = words[0] if words else ""
        self.word.setVisible(bool(words))
        self.word.setToolTip(f"Put ‘{self._phrase}’ into the prompt")
        self.word.setAccessibleName(f"Put {self._phrase} into the prompt")
        self._fit()
        self.more.setVisible(len(words) > 1)
        menu = self.more.menu()
        menu.clear()
        for word in words[1:]:
            menu.addAction(word[:80].replace("&", "&&")).triggered.connect(
                lambda _=False, word=word: self.inserted.emit(word)
            )

    def resizeEvent(self, event: Any) -> None:  # noqa: N802
        """The words fit."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        room = max(40, self.width() - INDENT - 48)
        text = self.word.fontMetrics().elidedText(f"+ {self._phrase}", Qt.TextElideMode.ElideRight, room)
        self.word.setText(text.replace("&", "&&"))

    def set_dark(self) -> None:
        """The signs, in the scheme that is on."""
        self.close_button.setIcon(theme.icon("close", theme.colours().quiet))
        self.more.setIcon(theme.icon("more", theme.colours().quiet))


class Line(QStyledItemDelegate):
    """A LoRA in the list: its name, and what it is below that."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Any) -> QSize:  # noqa: N802
        """Two lines."""
        return QSize(100, 2 * option.fontMetrics.lineSpacing() + 12)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Any) -> None:
        """Both."""
        c, selected = theme.colours(), bool(option.state & QStyle.StateFlag.State_Selected)
        adapter: Adapter = index.data(Qt.ItemDataRole.UserRole)
        place, high = option.rect.adjusted(8, 5, -8, -5), option.fontMetrics.lineSpacing()
        painter.save()
        if selected:
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(c.accent))
            painter.drawRoundedRect(option.rect, 5, 5)
        for at, (text, colour) in enumerate(((adapter.title, c.text), (adapter.about, c.quiet))):
            painter.setPen(QColor(c.on_accent if selected else colour))
            line = QRect(place.left(), place.top() + at * high, place.width(), high)
            fits = option.fontMetrics.elidedText(text, Qt.TextElideMode.ElideRight, place.width())
            painter.drawText(line, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, fits)
        painter.restore()


class Picker(QFrame):
    """A list to search, beside nothing else: what is picked is added, Esc closes it."""

    picked = Signal(object)  # an Adapter

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent, Qt.WindowType.Popup)
        self.setObjectName("popover")
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search LoRAs")
        self.search.setAccessibleName("Search LoRAs")
        self.search.setClearButtonEnabled(False)
        self.list = QListWidget()
        self.list.setAccessibleName("LoRAs that fit the model")
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setItemDelegate(Line(self.list))
        self.list.setUniformItemSizes(True)
        self.note = QLabel()
        self.note.setProperty("quiet", True)
        self.note.setWordWrap(True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(10, 10, 10, 10)
        layout.setSpacing(8)
        layout.addWidget(self.search)
        layout.addWidget(self.list)
        layout.addWidget(self.note)
        self._adapters: list[Adapter] = []
        self._others = 0
        self.search.textChanged.connect(lambda _: self._fill())
        self.search.installEventFilter(self)
        self.list.itemClicked.connect(lambda item: self._pick(item))

    def open_at(self, widget: QWidget, adapters: list[Adapter], others: int) -> None:
        """Show these below a widget; `others` are for other models."""
        self._adapters, self._others = adapters, others
        self.search.clear()
        self._fill()
        self.setFixedWidth(max(260, widget.width()))
        row = self.list.sizeHintForRow(0) if adapters else 0
        self.list.setFixedHeight(min(len(adapters), ROWS) * row + 4)
        self.adjustSize()
        below = widget.mapToGlobal(QPoint(0, widget.height() + 4))
        room = widget.screen().availableGeometry()
        if below.y() + self.height() > room.bottom():
            below = widget.mapToGlobal(QPoint(0, -self.height() - 4))
        self.move(max(room.left(), min(below.x(), room.right() - self.width())), max(room.top(), below.y()))
        self.show()
        self.search.setFocus()

    def _fill(self) -> None:
        words = self.search.text().casefold().split()
        self.list.clear()
        for one in self._adapters:
            text = f"{one.title} {one.about} {' '.join(one.words)}".casefold()
            if all(word in text for word in words):
                item = QListWidgetItem(one.title, self.list)
                item.setData(Qt.ItemDataRole.UserRole, one)
                item.setToolTip(one.path)
        self.list.setCurrentRow(0)
        notes = [] if self.list.count() else ["None is called so."]
        if self._others:
            notes.append(f"{self._others} more {'is' if self._others == 1 else 'are'} for other models.")
        self.note.setText(" ".join(notes))
        self.note.setVisible(bool(notes))

    def _pick(self, item: QListWidgetItem | None) -> None:
        if item is not None:
            self.hide()
            self.picked.emit(item.data(Qt.ItemDataRole.UserRole))

    def eventFilter(self, watched: Any, event: QEvent) -> bool:  # noqa: N802
        """Arrows and Return in the field are the list's."""
        if event.type() == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            step = {Qt.Key.Key_Down: 1, Qt.Key.Key_Up: -1, Qt.Key.Key_PageDown: ROWS, Qt.Key.Key_PageUp: -ROWS}
            if Qt.Key(event.key()) in step:
                row = self.list.currentRow() + step[Qt.Key(event.key())]
                self.list.setCurrentRow(min(max(row, 0), self.list.count() - 1))
                return True
            if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self._pick(self.list.currentItem())
                return True
        return super().eventFilter(watched, event)


class LoraRows(QWidget):
    """All rows. What they say goes into the job by `texts`; it is hidden where there is nothing to say."""

    changed = Signal()
    inserted = Signal(str)  # words for the prompt

    def __init__(self, undo: QUndoStack, parent: QWidget | None = None):
        super().__init__(parent)
        self._undo = undo
        self.wears: tuple[Wear, ...] = ()
        self.wardrobe = Wardrobe()
        self._known = False  # whether the worker has said what there is
        self._stale = False  # whether that was of another model
        self._prompt = ""
        self.rows: list[LoraRow] = []
        self.add_button = QPushButton("Add a LoRA…")
        self.add_button.clicked.connect(lambda _=False: self.open())
        self.picker = Picker(self)
        self.picker.picked.connect(self.add)
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(8)
        self._column.addWidget(self.add_button)
        self._show()

    # The job.

    def texts(self) -> tuple[str, ...]:
        """As a job has them: those that are on, and not for another model."""
        return tuple(wear.text for wear in self.wears if wear.on and self._fits(wear))

    def show_texts(self, texts: tuple[str, ...]) -> None:
        """Bring the rows to a job."""
        if texts != self.texts():
            self.show_wears(tuple(map(Wear.of, texts)))

    def show_wears(self, wears: tuple[Wear, ...]) -> None:
        """Bring them to what they were."""
        if wears != self.wears or [wear.said for wear in wears] != [wear.said for wear in self.wears]:
            self.wears = wears
            self._show()
            self.changed.emit()

    def state(self) -> str:
        """All rows, for the next start: a job has only those that count."""
        return json.dumps([[wear.text, wear.on] for wear in self.wears])

    def recall(self, state: Any) -> None:
        """The rows of the last start; those of another version are left as they are."""
        try:
            rows = [(text, on) for text, on in json.loads(state) if isinstance(text, str) and isinstance(on, bool)]
        except (TypeError, ValueError):
            return
        self.show_wears(tuple(replace(Wear.of(text), on=on) for text, on in rows))

    def show_wardrobe(self, wardrobe: Wardrobe) -> None:
        """What there is, and what of it fits the model."""
        before = self.texts()
        self.wardrobe, self._known, self._stale = wardrobe, True, False
        self._show()
        if self.texts() != before:
            self.changed.emit()

    def expect(self) -> None:
        """The model is another one: until the worker has said what fits it, nothing is left out."""
        self._stale = True

    def show_prompt(self, prompt: str) -> None:
        """What is in the prompt need not be put there, and counts beside a row."""
        self._prompt = prompt
        self._follow()

    def _fits(self, wear: Wear) -> bool:
        adapter = self.wardrobe.get(wear.name)
        return self._stale or adapter is None or adapter.fits

    # What a person does with them; each is a step that can be undone.

    def open(self) -> None:
        """The list to add from."""
        loras = self.wardrobe.loras
        others = sum(one.what == "LoRA" for one in self.wardrobe.all) - len(loras)
        worn = {wear.name for wear in self.wears}
        self.picker.open_at(self.add_button, [one for one in loras if one.name not in worn], others)

    def add(self, adapter: Adapter) -> None:
        """One more, with the weight that it is meant with; one that is there already is turned on."""
        at = next((at for at, wear in enumerate(self.wears) if self.wardrobe.get(wear.name) == adapter), None)
        if at is not None:
            self._switch(at, True)
        else:
            wear = Wear(adapter.name, 1.0 if adapter.weight is None else adapter.weight)
            self._undo.push(Change(self, (*self.wears, wear), "Add LoRA"))
        row = self.rows[-1 if at is None else at]
        row.weight.slider.setFocus()

    def _weigh(self, at: int, weight: float) -> None:
        self._edit(at, self.wears[at].weighing(round(weight, 2)), "Weight", at)

    def _switch(self, at: int, on: bool) -> None:
        self._edit(at, replace(self.wears[at], on=on), "Turn LoRA On" if on else "Turn LoRA Off")

    def _edit(self, at: int, wear: Wear, what: str, row: int = -1) -> None:
        if wear != self.wears[at]:
            self._undo.push(Change(self, (*self.wears[:at], wear, *self.wears[at + 1 :]), what, row))

    def _remove(self, at: int) -> None:
        self._undo.push(Change(self, self.wears[:at] + self.wears[at + 1 :], "Remove LoRA"))
        (self.rows[min(at, len(self.rows) - 1)].switch if self.rows else self.add_button).setFocus()

    # How it looks.

    def _show(self) -> None:
        """Rows for what is worn; those that stay keep the focus and what is being dragged."""
        if len(self.rows) != len(self.wears) or any(
            row.name.whole != title(wear.name) for row, wear in zip(self.rows, self.wears, strict=False)
        ):
            for row in self.rows:
                self._column.removeWidget(row)
                row.hide()
                row.deleteLater()
            self.rows = [LoraRow(wear, self) for wear in self.wears]
            for at, row in enumerate(self.rows):
                self._column.insertWidget(at, row)
                row.weighed.connect(lambda weight, at=at: self._weigh(at, weight))
                row.switched.connect(lambda on, at=at: self._switch(at, on))
                row.removed.connect(lambda at=at: self._remove(at), Qt.ConnectionType.QueuedConnection)
                row.inserted.connect(self.inserted)
        self._follow()

    def _follow(self) -> None:
        for row, wear in zip(self.rows, self.wears, strict=True):
            row.show_wear(wear, self.wardrobe.get(wear.name), self._known, self._prompt)
        self.add_button.setVisible(bool(self.wardrobe.loras))
        self.setVisible(bool(self.wears or self.wardrobe.loras))

    def set_dark(self) -> None:
        """The signs, in the scheme that is on."""
        for row in self.rows:
            row.set_dark()
