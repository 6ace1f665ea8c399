"""A hand at the real app: it lives in the app's process and does with keys and the mouse what it is told on stdin.

    python tests/app_hand.py [FILE ...]

One JSON list a line, answered by one JSON value a line: `["keys", "Ctrl+F", ...]`, `["type", "words"]`,
`["click", NAME]`, `["stroke", NAME, [[x, y], ...]]` (parts of the widget's sides), `["drop", NAME, PATH]`,
`["look"]`, `["grab", PATH]`. NAME is what a screen reader says. Keys and clicks go in where the window system's do, to
whatever then has the focus or lies on top; nothing of the window is called.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PySide6.QtCore import QMimeData, QObject, QPoint, QPointF, Qt, QTimer, QUrl, Signal
from PySide6.QtGui import QAccessible, QDragEnterEvent, QDragMoveEvent, QDropEvent, QGuiApplication, QKeySequence
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel, QLineEdit, QPlainTextEdit, QWidget

LEFT, NONE = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier


class Hand(QObject):
    """What comes in by a thread is done by Qt's."""

    told = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.pressing = False
        self.told.connect(self.do, Qt.ConnectionType.QueuedConnection)
        self.ear = threading.Thread(target=self.listen, daemon=True)
        self.ear.start()

    def listen(self) -> None:
        for line in sys.stdin:
            self.told.emit(line)

    def do(self, line: str) -> None:
        if self.pressing and QApplication.activeModalWidget() is None:
            QTimer.singleShot(2, lambda: self.do(line))  # Qt works off events while a key goes down and up
            return
        name, *given = json.loads(line)
        if name == "keys":  # answered first: a dialog that a key opens lets nothing return until it is closed
            self.pressing = True
            print("null", flush=True)
            self.keys(*given)
            self.pressing = False
            return
        try:
            said = getattr(self, name)(*given)
        except LookupError as error:
            said = {"error": str(error)}
        print(json.dumps(said), flush=True)

    # What it does.

    def keys(self, *sequences: str) -> None:
        for text in sequences:
            key = QKeySequence(text)[0]
            QTest.keyClick(window(), key.key(), key.keyboardModifiers())

    def type(self, text: str) -> None:
        for letter in text:
            QTest.keyClick(window(), letter)

    def click(self, name: str) -> None:
        widget = named(name)
        QTest.mouseClick(widget.window().windowHandle(), LEFT, NONE, inside(widget, 0.5, 0.5))

    def stroke(self, name: str, places: list[tuple[float, float]]) -> None:
        widget = named(name)
        handle, points = widget.window().windowHandle(), [inside(widget, *place) for place in places]
        QTest.mouseMove(handle, points[0])
        QTest.mousePress(handle, LEFT, NONE, points[0])
        for point in points[1:]:
            QTest.mouseMove(handle, point)
        QTest.mouseRelease(handle, LEFT, NONE, points[-1])

    def drop(self, name: str, path: str) -> None:
        """From another program: entering, moving, letting go, as Qt hands it to its widgets."""
        widget = named(name)
        data, at = QMimeData(), QPointF(widget.rect().center())
        data.setUrls([QUrl.fromLocalFile(path)])
        held = (Qt.DropAction.CopyAction, data, LEFT, NONE)
        for event in (QDragEnterEvent(at.toPoint(), *held), QDragMoveEvent(at.toPoint(), *held), QDropEvent(at, *held)):
            QApplication.sendEvent(widget, event)

    def look(self) -> dict[str, Any]:
        """What is there to see: texts, the names of what can be used, where the focus is."""
        at, focus = window(), QApplication.focusWidget()
        seen = [one for one in QApplication.allWidgets() if one.isVisible()]
        return {
            "focus": spoken(focus) if focus is not None else "",
            "window": at.title(),
            "texts": [one.text() for one in seen if isinstance(one, QLabel) and one.text()],
            "fields": {spoken(one): text_of(one) for one in seen if isinstance(one, QLineEdit | QPlainTextEdit)},
            "buttons": [one.text() or spoken(one) for one in seen if isinstance(one, QAbstractButton)
                        and one.isEnabled()],
            "platform": QGuiApplication.platformName(),
        }  # fmt: skip

    def grab(self, path: str) -> bool:
        return QApplication.activeWindow().grab().save(path)


def window() -> Any:
    """What the window system would hand a key to. Without a window manager, somebody must give it the focus."""
    found = QGuiApplication.modalWindow() or QGuiApplication.focusWindow()
    found = found or next(one for one in QGuiApplication.topLevelWindows() if one.isVisible())
    if found is not QGuiApplication.focusWindow() and QApplication.activePopupWidget() is None:
        found.requestActivate()
        QTest.qWaitForWindowActive(found, 5000)
    return found


def spoken(widget: QWidget) -> str:
    """What a screen reader says of it."""
    about = QAccessible.queryAccessibleInterface(widget)
    return about.text(QAccessible.Text.Name) if about is not None else ""


def named(name: str) -> QWidget:
    """What can be used under this name: no label beside it."""
    for widget in QApplication.allWidgets():
        if widget.isVisible() and widget.focusPolicy() != Qt.FocusPolicy.NoFocus and spoken(widget) == name:
            return widget
    raise LookupError(f"there is no {name!r} here")


def text_of(widget: QLineEdit | QPlainTextEdit) -> str:
    return widget.text() if isinstance(widget, QLineEdit) else widget.toPlainText()


def inside(widget: QWidget, x: float, y: float) -> QPoint:
    """A place of a widget in its window, once that has been laid out and drawn."""
    QTest.qWait(20)
    return widget.mapTo(widget.window(), QPoint(round(x * widget.width()), round(y * widget.height())))


if __name__ == "__main__":
    from app import __main__ as app

    hands, runs = [], QApplication.exec

    def begin(*_: object) -> int:
        hands.append(Hand())
        return runs()

    QApplication.exec = begin  # the first moment at which the app is all there
    code = app.main(sys.argv[1:])
    hands[0].ear.join()  # until nobody speaks any more
    sys.exit(code)
