"""What stands around the picture: models, the place where pictures are made, settings; and what the system is told.

The sheet, the popover and the page are imported when they are opened for the first time, so that the window is there
at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QWidget

from . import places
from .client import Client
from .errors import Notice
from .jobs import Queue
from .mac import Manners
from .remote import Place
from .settings import Settings

if TYPE_CHECKING:
    from .backends import BackendPopover
    from .model_sheet import ModelSheet
    from .settings_page import SettingsPage
    from .shelf import Keeper

GB = 1 << 30
EVERY = {"every": 1, "third": 3, "off": 1}  # steps of a preview
FOR_GOOD = 10**8  # seconds that a model stays in memory: three years


class Desk(QObject):
    """Opens and closes these for a window, and does at once what is changed there."""

    said = Signal(object)  # a Notice for the bar
    picked = Signal(str)  # a model to draw with, by its name or path
    models_changed = Signal()
    task = Signal(str)  # what is downloaded or converted now, in a line; empty for nothing
    folder_changed = Signal()
    appearance_changed = Signal()
    memory_changed = Signal()
    place_changed = Signal()
    elsewhere = Signal(object)  # a Place, for once

    def __init__(self, window: QWidget, settings: Settings, client: Client, queue: Queue):
        super().__init__(window)
        self.settings, self.manners = settings, Manners(parent=self)
        self._window, self._client, self._queue = window, client, queue
        self._popovers: dict[str, BackendPopover] = {}
        self._page: SettingsPage | None = None
        self._keepers: dict[str, Keeper] = {}  # by machine: what they do goes on while their sheets are closed
        self._sheets: dict[str, ModelSheet] = {}
        settings.changed.connect(self._changed)
        queue.changed.connect(self._work)
        queue.saved.connect(lambda *_: self.manners.picture())
        queue.rested.connect(lambda _: self.manners.idle(settings.get("notify")))
        queue.notice.connect(self._trouble)
        self._greet()
        self._name_files()

    @property
    def place(self) -> Place:
        """Where pictures are made, or will be after the one that is being made."""
        return Place.of(self.settings.get("place"))

    def _greet(self) -> None:
        get, keep = self.settings.get, self.settings.get("keep")
        preview = "none" if get("previews") == "off" else self.place.preview
        self._client.greet(preview=preview, every=EVERY[get("previews")], awake=get("awake"),
                           memory=get("memory") * GB, idle=FOR_GOOD if keep < 0 else 60 * keep)  # fmt: skip

    def go(self, place: Place) -> None:
        """Make pictures there from now on; one that is being made is finished where it is."""
        self.settings.set("place", place.key)

    def close(self) -> None:
        """The window leaves, and with it what was opened from it."""
        for popover in self._popovers.values():
            popover.stop()
        for keeper in self._keepers.values():
            keeper.close()
        self.manners.close()

    # What is opened.

    def show_models(self, add: list[str] | None = None) -> None:
        """The models of the machine that draws; `add`: files and folders that are added there."""
        place = self.place
        if add and place.host:
            self.said.emit(Notice(f"Pictures are made on ‘{place.name}’ now, and ‘{Path(add[0]).name}’ is on this "
                                  f"machine. Copy it there, or work here.",
                                  (("Work on this machine", "work_here"),)))  # fmt: skip
            return
        sheet = self._sheet(place)
        sheet.open()
        for path in add or ():
            sheet.add(path)

    def _sheet(self, place: Place) -> ModelSheet:
        from .model_sheet import ModelSheet

        host = place.host or ""
        if host not in self._sheets:
            self._sheets[host] = ModelSheet(self.keeper(place), self._window, here=not host)
            self._sheets[host].picked.connect(self.picked)
            self._sheets[host].finished.connect(lambda _: self.keeper(place).rest())
        return self._sheets[host]

    def keeper(self, place: Place) -> Keeper:
        """Who keeps the models of that machine: all of its backends share them."""
        from .shelf import Keeper

        host = place.host or ""
        if host not in self._keepers:
            keeper = Keeper(Place(host=place.host).command, self.settings.store, self, f"downloads {host}".strip())
            keeper.changed.connect(self.models_changed)
            keeper.tasks_changed.connect(self._tell_task)
            keeper.arrived.connect(self._arrived)
            keeper.refused.connect(lambda sentence: self._refused(host, sentence))
            self._keepers[host] = keeper
        return self._keepers[host]

    def _tell_task(self) -> None:
        running = [item for keeper in self._keepers.values() for item in keeper.running]
        lines = []
        for item in running:
            done = f"{item.fraction:.0%} · " if item.fraction is not None and item.fraction >= 0 else ""
            lines.append(f"{done}{item.name.rpartition('/')[2]}")
        self.task.emit(", ".join(lines))

    def _arrived(self, name: str, converted: bool) -> None:
        words = f"‘{name}’ was converted." if converted else f"‘{name}’ is on this machine now."
        self.said.emit(Notice(words, (("Show models", "models"),), kind="news"))
        self.manners.say(words, self.settings.get("notify"))

    def _refused(self, host: str, sentence: str) -> None:
        if host not in self._sheets or not self._sheets[host].isVisible():  # else the sheet says it
            self.said.emit(Notice(sentence, (("Show models", "models"),)))

    def show_backends(self, below: QWidget) -> None:
        """Where pictures are made, to be changed."""
        popover = self._popover("Where pictures are made")
        popover.set_busy(self._queue.state.busy)
        popover.open_at(below)

    def show_elsewhere(self, below: QWidget) -> None:
        """Where one picture is made again."""
        popover = self._popover("Make it again on")
        popover.set_busy(self._queue.state.busy)
        popover.open_at(below)

    def _popover(self, heading: str) -> BackendPopover:
        from mlxldm import __version__

        from .backends import BackendPopover

        if heading not in self._popovers:
            popover = BackendPopover(self.place, self.settings.get("hosts"), self._window, __version__, heading)
            popover.hosts_changed.connect(lambda hosts: self.settings.set("hosts", hosts))
            self._popovers[heading] = popover
            if heading == "Where pictures are made":
                popover.chosen.connect(self.go)
            else:
                popover.chosen.connect(self.elsewhere)
                popover.chosen.connect(popover.hide)
        self._popovers[heading].show_places(self.place, self.settings.get("hosts"))
        return self._popovers[heading]

    def show_settings(self, below: QWidget) -> None:
        """The settings' page; `below`: what the popover of places stands over."""
        from .settings_page import SettingsPage

        if self._page is None:
            self._page = page = SettingsPage(self.settings, str(places.usual_pictures()), self._window)
            page.models_wanted.connect(page.hide)
            page.models_wanted.connect(lambda: self.show_models())
            page.backends_wanted.connect(page.hide)
            page.backends_wanted.connect(lambda: self.show_backends(below))
        self._page.show()
        self._page.raise_()
        self._page.activateWindow()

    # What follows.

    def _changed(self, name: str, value: Any) -> None:
        if name == "place":
            self._greet()
            self._client.use(self.place.command, self.place.host)
            self.place_changed.emit()
        elif name in ("previews", "awake", "memory", "keep"):
            self._greet()
            if name == "memory":
                self.memory_changed.emit()
        elif name in ("pattern", "inside", "jpeg"):
            self._name_files()
        elif name == "pictures":
            self.folder_changed.emit()
        elif name == "appearance":
            self.appearance_changed.emit()

    def _name_files(self) -> None:
        get = self.settings.get
        self._queue.pattern, self._queue.inside, self._queue.jpeg = get("pattern"), get("inside"), get("jpeg")

    def _work(self) -> None:
        busy = self._queue.state.busy
        self.manners.work(busy, len(self._queue.waiting), self.settings.get("awake"))
        for popover in self._popovers.values():
            popover.set_busy(busy)

    def _trouble(self, notice: Notice | None) -> None:
        if notice is not None and notice.kind == "error":
            self.manners.say(notice.text, self.settings.get("notify"))
