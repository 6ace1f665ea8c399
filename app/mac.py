"""Manners of a Mac, and of other desktops where they have the same: awake while working, a number on the Dock, a
notification in the background, files that the Finder hands over. Nothing here is needed to draw.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtGui import QFileOpenEvent, QGuiApplication
from PySide6.QtWidgets import QApplication

from mlxldm.awake import Awake

Notify = Callable[[str, str], None]


class Application(QApplication):
    """Files that are opened with the app, or dropped on its icon, come as events; before anybody listens they wait."""

    opened = Signal(str)  # a file

    def __init__(self, arguments: list[str]):
        super().__init__(arguments)
        self._waiting: list[str] | None = []

    def event(self, event: QEvent) -> bool:
        """Take files."""
        if isinstance(event, QFileOpenEvent) and event.file():
            if self._waiting is None:
                self.opened.emit(event.file())
            else:
                self._waiting.append(event.file())
            return True
        return super().event(event)

    def listen(self, take: Callable[[str], Any]) -> None:
        """From now on `take` gets every file, those that waited first."""
        self.opened.connect(take)
        waiting, self._waiting = self._waiting or [], None
        for path in waiting:
            self.opened.emit(path)


class Manners(QObject):
    """Told whether there is work and what became of it, it does what is usual."""

    def __init__(self, awake: Awake | None = None, badge: Callable[[int], Any] | None = None,
                 notify: Notify | None = None, parent: QObject | None = None):  # fmt: skip
        super().__init__(parent)
        self._awake = awake or Awake()
        self._badge = badge or getattr(QGuiApplication.instance(), "setBadgeNumber", None)
        self._notify = notify or notification
        self._working = False
        self._count: int | None = None
        self._made = 0

    def work(self, busy: bool, waiting: int, sleepless: bool = True) -> None:
        """Whether a picture is being made, and how many jobs wait; `sleepless`: the computer stays awake for it."""
        if busy and not self._working:
            self._awake.begin("Making pictures", sleepless)
        elif self._working and not busy:
            self._awake.end()
        self._working = busy
        count = waiting + busy
        if count != self._count and self._badge is not None:
            self._badge(count)
        self._count = count

    def picture(self) -> None:
        """One was made."""
        self._made += 1

    def idle(self, wanted: bool = True) -> None:
        """All is done: say so where nobody looks, if that is wanted."""
        made, self._made = self._made, 0
        if made and wanted and in_background():
            self._notify("mlxldm", "Your picture is ready." if made == 1 else f"{made} pictures are ready.")

    def say(self, text: str, wanted: bool = True) -> None:
        """Something else that is worth knowing, where nobody looks."""
        if wanted and in_background():
            self._notify("mlxldm", text)

    def close(self) -> None:
        """The app leaves: no number stays on its icon."""
        self.work(False, 0)


def in_background() -> bool:
    """Whether no window of the app is in front."""
    return QGuiApplication.applicationState() != Qt.ApplicationState.ApplicationActive


def notification(title: str, text: str) -> None:
    """Through what the system has for it; where it has nothing, nothing happens."""
    command = notification_command(sys.platform, title, text)
    if command:
        import subprocess

        try:
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError:
            return


def notification_command(platform: str, title: str, text: str) -> list[str]:
    """The command that shows one. The texts are arguments of a script, never part of it."""
    if platform == "darwin":
        script = "on run argv\ndisplay notification (item 2 of argv) with title (item 1 of argv)\nend run"
        return ["/usr/bin/osascript", "-e", script, title, text]
    if platform.startswith("linux"):
        return ["notify-send", "--app-name=mlxldm", "--", title, text]
    return []
