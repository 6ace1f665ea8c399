"""A prompt's field: it completes what the prompt's language calls by name, and Ctrl+Up and Down weigh words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QEvent, QPoint, Qt
from PySide6.QtGui import QFocusEvent, QKeyEvent, QMouseEvent, QTextCursor
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QWidget

from .weights import reweighed
from .widgets import Text

LINES = 7  # of the list
SHORTEST = 2  # letters of a plain word before names are proposed
LORA = re.compile(r"<(?:l(?:o(?:r(?:a(?::([^<>:]*))?)?)?)?)?\Z", re.IGNORECASE)
WILDCARD = re.compile(r"(?<!\w)__([\w*./-]*)\Z")
WORD = re.compile(r"(?:^|(?<=[\s,()\[\]{}|:>]))<?[^\s,()\[\]{}|:<>]+\Z")


@dataclass(frozen=True)
class Name:
    """What can be completed: how it is shown, and what is written."""

    shown: str
    written: str


class Names:
    """All that a prompt may call by name."""

    def __init__(self, loras: Iterable[Name] = (), words: Iterable[str] = (), wildcards: Iterable[str] = ()):
        self.loras = list(loras)
        self.words = [Name(word, word) for word in words]
        self.wildcards = [Name(f"__{name}__", f"__{name}__") for name in wildcards]

    def proposed(self, before: str) -> tuple[int, list[Name]]:
        """For the text before the cursor: how many letters of it are replaced, and by what, the best first."""
        match = LORA.search(before)
        if match is not None:
            words = [] if match[1] is not None else [one for one in self.words if one.written.startswith(match[0])]
            return len(match[0]), [*words, *_found(match[1] or "", self.loras)]
        match = WILDCARD.search(before)
        if match is not None:
            return len(match[0]), _found(match[1], self.wildcards)
        match = WORD.search(before)
        if match is None or len(match[0]) < SHORTEST:
            return 0, []
        return len(match[0]), [one for one in _found(match[0], self.words) if one.written != match[0]]


def _found(part: str, names: list[Name]) -> list[Name]:
    """Those that begin so, then those that have it in them."""
    part = part.casefold()
    begin = [one for one in names if one.shown.casefold().lstrip("_<").startswith(part)]
    return begin + [one for one in names if one not in begin and part in one.shown.casefold()]


class Proposals(QListWidget):
    """The list under the cursor. It never has the focus: the field does."""

    def __init__(self, parent: QWidget):
        super().__init__(parent)
        self.setWindowFlags(Qt.WindowType.ToolTip)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setAccessibleName("Names that begin so")
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setUniformItemSizes(True)
        self.setMouseTracking(True)
        self.setObjectName("proposals")

    def propose(self, names: list[Name], at: QPoint, above: int) -> None:
        """Show names at a place of the screen, or above it by so much where there is no room below."""
        self.clear()
        for name in names:
            QListWidgetItem(name.shown, self).setData(Qt.ItemDataRole.UserRole, name)
        self.setCurrentRow(0)
        widest = max(self.fontMetrics().horizontalAdvance(name.shown) for name in names)
        high = self.sizeHintForRow(0) * min(len(names), LINES) + 2 * self.frameWidth() + 8
        self.setFixedSize(min(max(widest + 36, 120), 360), high)
        room = self.parentWidget().screen().availableGeometry()
        if at.y() + high > room.bottom():
            at = QPoint(at.x(), at.y() - above - high)
        self.move(max(room.left(), min(at.x(), room.right() - self.width())), at.y())
        self.show()

    def step(self, by: int) -> None:
        """Another one, round and round."""
        self.setCurrentRow((self.currentRow() + by) % self.count())

    @property
    def chosen(self) -> Name:
        """The one that Return takes."""
        return self.currentItem().data(Qt.ItemDataRole.UserRole)


class Prompt(Text):
    """A field for a prompt."""

    def __init__(self, placeholder: str, lines: int, most: int, parent: QWidget | None = None):
        super().__init__(placeholder, lines, most, parent)
        self.names = Names()
        self.proposals = Proposals(self)
        self.proposals.itemClicked.connect(lambda _: self._take())

    def insert_words(self, words: str) -> None:
        """Put words at the end, as the next of a list; the field's own undo takes them back."""
        cursor, before = self.textCursor(), self.toPlainText().rstrip()
        cursor.setPosition(_units(before))
        cursor.movePosition(QTextCursor.MoveOperation.End, QTextCursor.MoveMode.KeepAnchor)
        cursor.insertText(words if not before else f" {words}" if before.endswith((",", ".")) else f", {words}")
        self.setTextCursor(cursor)

    # The weight of words.

    def _weigh(self, up: bool) -> None:
        cursor = self.textCursor()
        made = reweighed(self.toPlainText(), *_in_text(self, cursor), up)
        if made is None:
            return
        text, start, end = made
        old = self.toPlainText()
        same = next((at for at, (a, b) in enumerate(zip(old, text, strict=False)) if a != b), min(len(old), len(text)))
        rest = 0
        while rest < min(len(old), len(text)) - same and old[-1 - rest] == text[-1 - rest]:
            rest += 1
        cursor.setPosition(_units(old[:same]))
        cursor.setPosition(_units(old[: len(old) - rest]), QTextCursor.MoveMode.KeepAnchor)
        cursor.insertText(text[same : len(text) - rest])
        cursor.setPosition(_units(text[:start]))
        cursor.setPosition(_units(text[:end]), QTextCursor.MoveMode.KeepAnchor)
        self.setTextCursor(cursor)

    # Completion.

    def _propose(self) -> None:
        cursor = self.textCursor()
        block = cursor.block().text()
        _, names = self.names.proposed(_from_units(block, cursor.positionInBlock()))
        if not names or cursor.hasSelection():
            self.proposals.hide()
            return
        place = self.cursorRect()
        below = self.viewport().mapToGlobal(QPoint(place.left(), place.bottom() + 2))
        self.proposals.propose(names, below, place.height() + 4)

    def _take(self) -> None:
        cursor = self.textCursor()
        before = _from_units(cursor.block().text(), cursor.positionInBlock())
        count, _ = self.names.proposed(before)
        chosen = self.proposals.chosen
        self.proposals.hide()
        cursor.setPosition(cursor.position() - _units(before[len(before) - count :]), QTextCursor.MoveMode.KeepAnchor)
        cursor.insertText(chosen.written)
        self.setTextCursor(cursor)

    # What a person does.

    def event(self, event: QEvent) -> bool:
        """While names are proposed, Esc and Tab are about them; and Ctrl+Up is no shortcut of anything else."""
        if isinstance(event, QKeyEvent):
            ours = _weighs(event) or (self.proposals.isVisible() and event.key() == Qt.Key.Key_Escape)
            if event.type() == QEvent.Type.ShortcutOverride and ours:
                event.accept()
                return True
            if event.type() == QEvent.Type.KeyPress and self._proposal_key(event):
                return True
        return super().event(event)

    def _proposal_key(self, event: QKeyEvent) -> bool:
        if not self.proposals.isVisible() or event.modifiers() & ~Qt.KeyboardModifier.KeypadModifier:
            return False
        step = {Qt.Key.Key_Down: 1, Qt.Key.Key_Up: -1}.get(Qt.Key(event.key()))
        if step is not None:
            self.proposals.step(step)
        elif event.key() in (Qt.Key.Key_Tab, Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self._take()
        elif event.key() == Qt.Key.Key_Escape:
            self.proposals.hide()
        else:
            return False
        return True

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Weigh words, or write, and look what may be meant."""
        if _weighs(event):
            self._weigh(event.key() == Qt.Key.Key_Up)
            self.proposals.hide()
            return
        super().keyPressEvent(event)
        if event.text().strip() or (event.key() == Qt.Key.Key_Backspace and self.proposals.isVisible()):
            self._propose()
        elif event.key() not in (Qt.Key.Key_Shift, Qt.Key.Key_Control, Qt.Key.Key_Alt, Qt.Key.Key_Meta):
            self.proposals.hide()

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """Elsewhere now."""
        self.proposals.hide()
        super().mousePressEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        """No list without the field."""
        self.proposals.hide()
        super().focusOutEvent(event)

    def hideEvent(self, event: Any) -> None:  # noqa: N802
        """The same."""
        self.proposals.hide()
        super().hideEvent(event)


def _weighs(event: QKeyEvent) -> bool:
    held = event.modifiers() & ~Qt.KeyboardModifier.KeypadModifier
    return event.key() in (Qt.Key.Key_Up, Qt.Key.Key_Down) and held == Qt.KeyboardModifier.ControlModifier


# Qt counts in UTF-16, Python in letters.


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _from_units(text: str, units: int) -> str:
    """The beginning of a text that is so long for Qt."""
    return text.encode("utf-16-le", "surrogatepass")[: 2 * units].decode("utf-16-le", "surrogatepass")


def _in_text(field: Text, cursor: QTextCursor) -> tuple[int, int]:
    """Where a cursor's selection begins and ends, in letters."""
    text = field.toPlainText()
    start, end = (len(_from_units(text, at)) for at in (cursor.selectionStart(), cursor.selectionEnd()))
    return start, end
