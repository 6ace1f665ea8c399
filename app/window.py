"""The window: three columns, the menu bar, and what belongs to all of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import (
    QBuffer,
    QByteArray,
    QEvent,
    QFile,
    QFileInfo,
    QFileSystemWatcher,
    QIODevice,
    QItemSelectionModel,
    QSize,
    Qt,
    QTimer,
    QUrl,
    qVersion,
)
from PySide6.QtGui import (
    QAccessible,
    QAccessibleAnnouncementEvent,
    QAction,
    QActionGroup,
    QCloseEvent,
    QDesktopServices,
    QDragEnterEvent,
    QDropEvent,
    QImage,
    QImageReader,
    QImageWriter,
    QKeySequence,
    QUndoCommand,
    QUndoStack,
)
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QApplication,
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QLineEdit,
    QMainWindow,
    QMenu,
    QPlainTextEdit,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from mlxldm import __version__
from mlxldm.job import Job

from . import adapters, pictures, places, theme
from .client import Client
from .commands import COMMANDS, COMPARE, COMPARED, DONE, MENUS, PAINT, Command
from .desk import Desk
from .dresser import Dresser
from .errors import Notice, report
from .gallery import Gallery, Side
from .history import Entry, History, Picture
from .jobs import Progress, Queue, State
from .masking import FIELDS as MASKED
from .masking import STRENGTHS
from .models import EMBEDDED, ENLARGES, Model, usable
from .panel import Panel
from .pictures import Rescan
from .remote import Place
from .settings import Settings
from .thumbnails import Thumbnails
from .viewer import Viewer, file_data
from .widgets import PICTURES, Unheard, picture_of

if TYPE_CHECKING:
    from .compare import Compare
    from .inpaint import Inpaint

CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".gguf")
FILTER = "Pictures (" + " ".join(f"*{ending}" for ending in PICTURES) + ")"
VARIATIONS, VARIATION = 4, 0.3  # how many, and how far from the picture: the part of other noise mixed in
UPSCALE, UPSCALE_STRENGTH = 2, 0.35  # sides times, and how much is painted anew

Trasher = Callable[[str], str | None]


def to_trash(path: str) -> str | None:
    """Move a file to the system's Trash; where it is now, or None where that is not said. OSError if it cannot be."""
    file = QFile(path)
    if not file.moveToTrash():
        raise OSError(file.errorString())
    return file.fileName() if file.fileName() != path else None


class Trash(QUndoCommand):
    """Pictures moved to the Trash, and back."""

    def __init__(self, window: Window, chosen: list[Picture]):
        super().__init__("Move to Trash")
        self._window, self._chosen = window, chosen
        self._moved: list[tuple[Picture, str | None]] = []

    def redo(self) -> None:
        """There."""
        self._moved = []
        for picture in self._chosen:
            try:
                self._moved.append((picture, self._window.trash(picture.path)))
            except OSError as error:
                self._window.say(Notice(f"‘{Path(picture.path).name}’ could not be moved to the Trash: {error}."))
                break
        gone = [picture for picture, _ in self._moved]
        self._window.history.missing([picture.path for picture in gone])
        self._window.removed(gone)

    def undo(self) -> None:
        """And back."""
        back = []
        for picture, where in self._moved:
            with contextlib.suppress(OSError):
                if where is not None and not os.path.exists(picture.path):
                    Path(picture.path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(where, picture.path)
                    Path(where).parent.parent.joinpath("info", Path(where).name + ".trashinfo").unlink(missing_ok=True)
            if os.path.exists(picture.path):
                back.append(picture)
        self._window.history.missing([picture.path for picture in back], False)
        self._window.came_back(back)
        if len(back) < len(self._moved):
            self._window.say(Notice("Not every picture could be taken out of the Trash again. They are still in it."))


class Window(QMainWindow):
    """All of it. `client` and `trash` may be others, for tests."""

    def __init__(self, client: Client | None = None, trash: Trasher = to_trash):
        super().__init__()
        self.setWindowTitle("mlxldm")
        self.setAcceptDrops(True)
        self.resize(1280, 800)
        self.trash = trash
        self.settings = places.settings()
        preferences = Settings(self.settings, self)
        self.history = History(places.data() / "mlxldm.db")
        place = Place.of(preferences.get("place"))
        self.client = client or Client(place.command, self, place.host)
        self.queue = Queue(self.history, self.client, places.pictures, places.data() / "inputs", self)
        self.desk = Desk(self, preferences, self.client, self.queue)
        self.undo_stack = QUndoStack(self)
        self.undo_stack.setUndoLimit(200)
        self.gallery_model = Gallery(self.history)
        self.thumbnails = Thumbnails(places.cache(), self)
        self.rescan = Rescan(self.history, places.pictures(), self)
        self.shown: Picture | None = None  # the picture in the middle
        self._following = True  # whether new pictures are shown by themselves
        self._rows: list[dict[str, Any]] = []
        self._wanted: Job | None = None  # what was remembered, until its model is known
        self._copied: list[QUrl] = []  # what the clipboard may hold of ours
        self._start_is_meant = False  # whether a start picture came last, and not another picture to look at
        self._offered = ""  # a picture's file that the bar asks about
        self._picked = ""  # a model that was chosen in the sheet, until it is listed
        self._again: dict[int, Picture] = {}  # what jobs of the queue make again
        self._pair: tuple[Picture, Picture] | None = None  # a picture and what came of making it again
        self._compared = ("", "")  # their files
        self._place_before = self.desk.place  # where pictures were made before one was made again elsewhere
        self._closed = False
        self._large: tuple[bool, bool] | None = None

        self.actions_: dict[str, QAction] = {}
        self._make_actions()
        act = self.actions_
        self.panel = Panel(self.undo_stack)
        self.viewer = Viewer(
            [act[name] for name in ("stop", "mask", "variations", "upscale")],
            [act["force_stop"], act["enlarge"], None, act["reuse"], act["reuse_new"], act["make_again"],
             act["make_again_on"], act["start_from"], None, act["favourite"], act["details"], act["copy"],
             act["copy_prompt"], act["save"], act["reveal"], None, act["trash"]],
            act["compare"],
        )  # fmt: skip
        self._inpaint: Inpaint | None = None
        self._compare: Compare | None = None
        self._mask_actions: list[QAction] = []
        self.dresser = Dresser(self.client, self.panel, self)
        self.side = Side(self.gallery_model, self.queue, self.thumbnails)
        self.split = QSplitter()
        self.split.setHandleWidth(1)
        self.split.setChildrenCollapsible(False)
        for at, widget in enumerate((self.panel, self.viewer, self.side)):
            self.split.addWidget(widget)
            self.split.setStretchFactor(at, 1 if at == 1 else 0)
        self.split.setSizes([300, 700, 280])
        self.setCentralWidget(self.split)
        self._make_menus()
        unheard = Unheard(self)
        for field in [*self.findChildren(QLineEdit), *self.findChildren(QAbstractSpinBox)]:
            field.installEventFilter(unheard)
        self._connect()
        self._recall()
        self.gallery_model.load()
        if self.gallery_model.shown:
            self._select(0)
        self._follow()
        QTimer.singleShot(0, self._begin)

    def _begin(self) -> None:
        """What can wait until the window is there."""
        if self._closed:
            return
        self.client.start()
        self.queue.greet()
        if self.history.damaged:
            self.say(Notice("The list of waiting pictures was damaged and was put aside. Your pictures are all there.",
                            (), self.history.damaged, "news"))  # fmt: skip
        self.rescan.start()
        self._watch()
        self.panel.prompt.setFocus()

    # Commands.

    def _make_actions(self) -> None:
        for command in COMMANDS:
            if not isinstance(command, Command):
                continue
            action = QAction(command.text, self)
            action.setObjectName(command.name)
            keys = [
                sequence
                for key in command.keys
                for sequence in (
                    QKeySequence.keyBindings(key)[:1]
                    if isinstance(key, QKeySequence.StandardKey)
                    else [QKeySequence(key)]
                )
            ]
            action.setShortcuts(list(dict.fromkeys(keys)))
            action.setMenuRole(command.role)
            action.setCheckable(command.checkable)
            if command.here:
                action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
            action.triggered.connect(getattr(self, f"do_{command.name}"))
            self.actions_[command.name] = action

    def _make_menus(self) -> None:
        menus: dict[str, QMenu] = {name: self.menuBar().addMenu(name) for name in MENUS}
        for command in COMMANDS:
            if isinstance(command, Command):
                menus[command.menu].addAction(self.actions_[command.name])
                if command.here:
                    self.side.grid.addAction(self.actions_[command.name])
                    self.viewer.canvas.addAction(self.actions_[command.name])
            else:
                menus[command].addSeparator()
        self._mask_menu = menus["&Mask"]
        self._mask_menu.aboutToShow.connect(lambda: self.inpaint)  # it has more entries
        appearance = menus["&View"].addMenu("&Appearance")
        group = QActionGroup(self)
        chosen = self.desk.settings.get("appearance")
        self._appearances: dict[str, QAction] = {}
        for name in ("system", "light", "dark"):
            action = appearance.addAction({"system": "As the &System"}.get(name, f"&{name.capitalize()}"))
            action.setCheckable(True)
            action.setChecked(name == chosen)
            action.triggered.connect(lambda _=False, name=name: self.set_appearance(name))
            group.addAction(action)
            self._appearances[name] = action

    def _connect(self) -> None:
        panel, viewer, side, queue, desk = self.panel, self.viewer, self.side, self.queue, self.desk
        panel.models_wanted.connect(self.do_models)
        viewer.models_wanted.connect(self.do_models)
        panel.backends_wanted.connect(self.do_backends)
        desk.said.connect(self.say)
        desk.picked.connect(self._pick)
        desk.models_changed.connect(self._list_models)
        desk.models_changed.connect(self.dresser.refresh)
        desk.memory_changed.connect(lambda: self._ask(panel.job()))
        desk.place_changed.connect(self._follow)
        desk.task.connect(panel.show_task)
        desk.folder_changed.connect(self._look_in_folder)
        desk.appearance_changed.connect(self._scheme_changed)
        desk.elsewhere.connect(self._make_again_on)
        viewer.bar.copied.connect(self._copy_report)
        queue.rested.connect(self._rested)
        panel.generate.connect(self._add)
        panel.choose_picture.connect(self.do_open)
        panel.picture_dropped.connect(self.start_from)
        panel.masking.asked.connect(self.do_edit_mask)
        panel.changed.connect(self._follow_focus)
        panel.take_seed.connect(self._take_seed)
        panel.recall.connect(self._recall_prompt)
        panel.asks.connect(self._ask)
        panel.disclosure.toggled.connect(self.actions_["settings_shown"].setChecked)
        panel.advanced.button.toggled.connect(self.actions_["advanced_shown"].setChecked)
        viewer.example.connect(self._example)
        viewer.bar.acted.connect(self._act)
        viewer.bar.closed.connect(lambda: self.say(None))
        viewer.canvas.live_wanted.connect(self.do_live)
        side.search.textChanged.connect(self._filter)
        side.search.returnPressed.connect(lambda: side.grid.setFocus())
        side.hearts.toggled.connect(self._filter)
        side.grid.selectionModel().selectionChanged.connect(lambda *_: self._follow())
        side.grid.selectionModel().currentChanged.connect(self._current)
        side.grid.clicked.connect(lambda index: self._current(index))
        side.grid.opened.connect(self.do_large)
        side.grid.menu_wanted.connect(lambda place: viewer.more.menu().popup(place))
        side.waiting.selectionModel().currentChanged.connect(lambda *_: self._follow())
        queue.changed.connect(self._follow)
        queue.notice.connect(self.say)
        queue.preview.connect(self._preview)
        queue.progressed.connect(lambda _: self._progress())
        queue.saved.connect(self._saved)
        queue.announced.connect(self._announce)
        self.client.ready.connect(self._ready)
        self.dresser.notice.connect(self.say)
        self.undo_stack.indexChanged.connect(lambda _: self._follow())
        self.rescan.changed.connect(self._reload)
        QApplication.clipboard().dataChanged.connect(self._follow_clipboard)
        self._clock = QTimer(self, interval=1000)
        self._clock.timeout.connect(self._progress)
        self._rescan_soon = QTimer(self, singleShot=True, interval=600)
        self._rescan_soon.timeout.connect(self._rescan)
        self._watcher = QFileSystemWatcher(self)
        self._watcher.directoryChanged.connect(lambda _: self._rescan_soon.start())
        app = QApplication.instance()
        if isinstance(app, QApplication):
            app.focusChanged.connect(lambda *_: self._follow_focus())
            app.styleHints().colorSchemeChanged.connect(lambda _: self._scheme_changed())

    # Making pictures.

    def _add(self, job: Job, front: bool = False) -> Entry | None:
        self._following = True
        self.leave()
        return self.queue.add(job, front)

    def do_generate(self) -> None:
        """What the button does."""
        self.panel.make(False)

    def do_generate_next(self) -> None:
        """The same, before all that waits."""
        self.panel.make(True)

    def _example(self, text: str) -> None:
        self.panel.restore(self.panel.job().replace(prompt=text), "Example")
        self.panel.make(False)

    def do_make_again(self) -> None:
        """The shown picture's job once more, with its seed; what came out differently is said."""
        job = self.job_of(self.shown)
        if job is not None and self.shown is not None:
            self._again_of(self.shown, job)

    def _again_of(self, picture: Picture, job: Job, front: bool = False) -> None:
        entry = self._add(job, front)
        if entry is not None:
            self._again[entry.id] = picture

    def do_make_again_on(self) -> None:
        """The same on another backend or machine, which is chosen first."""
        if self.job_of(self.shown) is not None:
            self.panel.show()
            self.desk.show_elsewhere(self.panel.backend)

    def _make_again_on(self, place: Place) -> None:
        job = self.job_of(self.shown)
        if job is not None and self.shown is not None:
            self._place_before = self.desk.place
            self.desk.go(place)
            self._again_of(self.shown, job, front=True)

    def do_variations(self) -> None:
        """Pictures like the shown one: its own noise with some of other seeds' in it."""
        job = self.job_of(self.shown)
        if job is not None:
            other = random.randrange(2**32)
            like = {"variation": f"{other}:{VARIATION}"} if job.seed is not None else {"seed": other}
            self._add(job.replace(count=VARIATIONS, **like))

    def do_upscale(self) -> None:
        """The shown picture painted anew on a larger canvas: the library's second pass, without making the first."""
        job = self.job_of(self.shown)
        if job is None or self.shown is None or not self._model_of(job).redraws:
            return
        kept = self._keep_input(self.shown.path)
        if kept is not None:
            width, height = (side * UPSCALE // 8 * 8 for side in (self.shown.width, self.shown.height))
            if int((job.steps or self._model_of(job).steps) * UPSCALE_STRENGTH) < 1:
                job = job.replace(steps=math.ceil(1 / UPSCALE_STRENGTH))  # one is left
            job = job.replace(**dict.fromkeys((*MASKED, "hires", "hires_strength", "hires_steps")))
            self._add(job.replace(image=kept, strength=UPSCALE_STRENGTH, width=width, height=height))

    def do_enlarge(self) -> None:
        """The shown picture made larger by a model that does just this."""
        model, job = self._enlarger(), self.job_of(self.shown)
        kept = self._keep_input(self.shown.path) if self.shown is not None and model is not None else None
        if kept is not None and model is not None:
            words = job if job is not None and model.takes("prompt") else Job()
            self._add(Job(prompt=words.prompt, negative=words.negative, model=model.name, image=kept))

    def _enlarger(self) -> Model | None:
        return next((model for model in self.panel.models if model.usable and model.task in ENLARGES), None)

    def _model_of(self, job: Job) -> Model:
        """The model of a job, as far as it is known here."""
        name = job.model or EMBEDDED
        return next((model for model in self.panel.models if model.name == name), Model(name))

    def job_of(self, picture: Picture | None) -> Job | None:
        """The job in a picture, for one picture; None where it has none. Input pictures come along if they are kept."""
        if picture is None:
            return None
        return self._job_in(self.history.record(picture.id))

    def _job_in(self, record: dict[str, Any]) -> Job | None:
        try:
            job = Job.from_json(record["job"]).replace(count=1)
        except Exception:  # of another version, or none
            return None
        for key in pictures.INPUTS:
            name = getattr(job, key)
            if name is not None:
                kept = self.queue.inputs / Path(name).name
                job = job.replace(**{key: str(kept) if kept.exists() else None})
        if job.image is None:
            return job.replace(strength=None, **dict.fromkeys(MASKED))
        return job if job.masked else job.replace(**dict.fromkeys(MASKED))

    def do_reuse(self) -> None:
        """The controls as they were for the shown picture; one step that can be undone."""
        job = self.job_of(self.shown)
        if job is not None:
            self.panel.restore(job)

    def do_reuse_new(self) -> None:
        """The same, with a new seed."""
        job = self.job_of(self.shown)
        if job is not None:
            self.panel.restore(job.replace(seed=None, variation=None))

    def _take_seed(self) -> None:
        job = self.job_of(self.shown)
        if job is not None and job.seed is not None:
            self.panel.restore(self.panel.job().replace(seed=job.seed, variation=job.variation), "Take seed")

    def _recall_prompt(self) -> None:
        prompts = self.history.last_prompts(1)
        if prompts:
            self.panel.restore(self.panel.job().replace(prompt=prompts[0]), "Last prompt")

    # Start pictures.

    def do_open(self) -> None:
        """Choose a picture's file."""
        path, _ = QFileDialog.getOpenFileName(self, "Open Picture", str(places.pictures()), FILTER)
        if path:
            self.take_file(path)

    def do_start_from(self) -> None:
        """Start from the shown picture."""
        if self.shown is not None:
            self.start_from(self.shown.path)

    def start_from(self, path: str) -> None:
        """Start from a picture; one step that can be undone."""
        kept = self._keep_input(path)
        if kept is not None:
            self._start_is_meant = True
            job, mask = self.panel.job(), self._inpaint.mask_for(kept) if self._inpaint else None
            if kept == job.image:
                return  # with its mask, as it is
            strength = job.strength
            if strength is None or strength in STRENGTHS:
                strength = self.panel.usual_strength(mask is not None, False)
            job = job.replace(**{**dict.fromkeys(MASKED), "mask": mask})
            self.panel.restore(job.replace(image=kept, width=None, height=None, strength=strength), "Start picture")

    def _keep_input(self, path: str) -> str | None:
        """A copy of a picture as PNG, so that a job that waits still has it tomorrow."""
        try:
            if path.lower().endswith(".png") and QImageReader(path).canRead():
                data = Path(path).read_bytes()
            else:
                reader = QImageReader(path)
                reader.setAutoTransform(True)
                data = png(reader.read())
            return str(pictures.keep_input(self.queue.inputs, data))
        except (OSError, ValueError) as error:
            self.say(Notice(f"‘{Path(path).name}’ cannot be used as a picture: {error}."))
            return None

    # What the middle has instead of the picture; made when it is first asked for.

    @property
    def inpaint(self) -> Inpaint:
        """The mask painter."""
        if self._inpaint is None:
            from .inpaint import Inpaint

            self._inpaint = page = Inpaint(self.panel, self._keep_mask)
            self.viewer.pages.addWidget(page)
            page.closed.connect(self.leave)
            page.painter.picture_dropped.connect(self.take_file)
            page.bar.only_masked_changed.connect(lambda _: self._follow_focus())
            self._mask_actions = page.actions_for_menu(self)
            self._mask_menu.addActions(self._mask_actions)
            self._follow_focus()
        return self._inpaint

    @property
    def comparing(self) -> Compare:
        """Two pictures over each other."""
        if self._compare is None:
            from .compare import Compare

            self._compare = Compare()
            self.viewer.pages.addWidget(self._compare)
            self._compare.closed.connect(self.leave)
        return self._compare

    @property
    def page(self) -> Inpaint | Compare | None:
        """The one that is there now, or none."""
        page = self.viewer.pages.currentWidget()
        return next((one for one in (self._inpaint, self._compare) if one is page and one is not None), None)

    @property
    def painting(self) -> bool:
        """Whether a mask is painted now."""
        return self.page is not None and self.page is self._inpaint

    # Two pictures.

    def compare(self, first: str, second: str) -> None:
        """Show two pictures' files over each other, and what was set differently."""
        if self.comparing.show_files(first, second):
            self._go(self.comparing)
        else:
            self.say(Notice("One of the two pictures cannot be read."))

    def do_compare(self) -> None:
        """The two selected pictures, or the shown one with what it was made from or the one before it; or be done."""
        two = self._two()
        if self.page is not None and self.page is self._compare:
            self.leave()
        elif two is not None:
            self.compare(*two)

    def _two(self) -> tuple[str, str] | None:
        chosen = self.side.grid.chosen
        if len(chosen) == 2:
            return chosen[1].path, chosen[0].path  # the older one is the first
        job = self.job_of(self.shown)
        if self.shown is None or len(chosen) > 2:
            return None
        if job is not None and job.image is not None:
            return job.image, self.shown.path
        row = self.gallery_model.row_of(self.shown.id) + 1
        older = self.gallery_model.shown[row : row + 1] if row else []
        return (older[0].path, self.shown.path) if older else None

    # Masks.

    def _keep_mask(self, data: bytes) -> str | None:
        try:
            return str(pictures.keep_input(self.queue.inputs, data))
        except OSError as error:
            self.say(Notice(f"The mask was not kept: {error.strerror or error}."))
            return None

    def do_mask(self) -> None:
        """Paint on the shown picture, or on the start picture if that came last; or be done with it."""
        if self.painting:
            self.leave()
            return
        if self.shown is not None and not (self._start_is_meant and self.panel.image is not None):
            self.start_from(self.shown.path)
        self.do_edit_mask()

    def do_edit_mask(self) -> None:
        """Paint on the start picture."""
        if self.panel.image is not None and self.panel.current.takes("mask") and self.inpaint.open():
            self._start_is_meant = True
            self._go(self.inpaint)

    def do_extend(self) -> None:
        """Drag the picture's edges outwards, and let what is new be painted."""
        if not self.painting:
            self.do_mask()
        if self.painting:
            self.inpaint.extend()

    def do_only_masked(self) -> None:
        """Draw only what lies around the mask, from near."""
        self.inpaint.bar.only_masked.click()

    def do_import_mask(self) -> None:
        """Take a mask from a file."""
        path, _ = QFileDialog.getOpenFileName(self, "Open Mask", str(places.pictures()), FILTER)
        if path:
            try:
                self.inpaint.import_mask(path)
            except (OSError, ValueError) as error:
                self.say(Notice(f"‘{Path(path).name}’ was not taken as a mask. {error}"))

    def do_export_mask(self) -> None:
        """Write the mask into a file."""
        path, _ = QFileDialog.getSaveFileName(self, "Save Mask", "mask.png", "PNG (*.png)")
        if path:
            try:
                self.inpaint.export_mask(path)
            except OSError as error:
                self.say(Notice(f"The mask was not saved: {error.strerror or error}."))

    def _go(self, page: Inpaint | Compare) -> None:
        """Another page in the middle; what is made meanwhile does not push it away."""
        self._following = False
        self.viewer.pages.setCurrentWidget(page)
        page.easel.setFocus()
        self._follow()

    def leave(self) -> None:
        """Back to the picture, from whatever was done with it."""
        if self.viewer.pages.currentWidget() is not self.viewer.canvas:
            inside = self.viewer.pages.isAncestorOf(self.focusWidget() or self)
            self.viewer.pages.setCurrentWidget(self.viewer.canvas)
            if inside:
                self.viewer.canvas.setFocus()
            self._follow()

    def take_file(self, path: str) -> None:
        """A file that was dropped, opened or handed over: a picture, or a model."""
        if Path(path).is_dir() or path.lower().endswith(CHECKPOINTS):
            self._take_models([path])
            return
        found = pictures.read(path)
        if found is None:
            self.say(Notice(f"‘{Path(path).name}’ is no picture that can be read here, and no model."))
        elif found.record:
            self._offered = path
            self.say(Notice(f"‘{Path(path).name}’ has its settings inside.",
                            (("Restore its settings", "restore_offered"), ("Use as start picture", "start_offered")),
                            kind="question"))  # fmt: skip
        else:
            self.start_from(path)

    def _take_models(self, paths: list[str]) -> None:
        """Models into their sheet; what goes into a model, as a LoRA does, into its list here."""
        if self.client.greeting is None or self.client.host or len(paths) > 1 or Path(paths[0]).is_dir():
            self.desk.show_models(paths)
            return
        path = paths[0]

        def added(message: dict[str, Any], payload: bytes) -> None:
            if message["ev"] == "error":
                self.say(Notice(f"‘{Path(path).name}’ was not added: {message.get('message')}"))
            else:
                self.dresser.refresh(path)

        def looked(message: dict[str, Any], payload: bytes) -> None:
            if (message.get("says") or {}).get("what") in ("LoRA", "textual inversion"):
                self.client.ask("add", added, path=path)
            else:
                self.desk.show_models([path])

        self.client.ask("look", looked, path=path)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        """Files, and pictures from other programs."""
        if event.source() is None and (event.mimeData().hasUrls() or event.mimeData().hasImage()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        """Take the first picture, or all models."""
        event.acceptProposedAction()
        data = event.mimeData()
        paths = [url.toLocalFile() for url in data.urls() if url.isLocalFile()]
        found = [path for path in paths if Path(path).is_dir() or path.lower().endswith(CHECKPOINTS)]
        if found:
            self._take_models(found)
        elif paths:
            self.take_file(paths[0])
        elif data.hasImage():
            self._start_from_image(QImage(data.imageData()))

    def _start_from_image(self, image: QImage) -> None:
        try:
            kept = pictures.keep_input(self.queue.inputs, png(image))
        except (OSError, ValueError) as error:
            self.say(Notice(f"The picture cannot be used: {error}."))
            return
        self.start_from(str(kept))

    # The worker.

    def _ready(self, message: dict[str, Any]) -> None:
        self.panel.set_samplers(message.get("samplers") or [], message.get("spacings") or [])
        if not self._rows:  # the rest comes later; after a crash, all of them are known already
            self._models(message.get("models") or [])
        self._list_models()
        self._follow()
        self.panel.asks.emit(self.panel.job())

    def _list_models(self) -> None:
        def listed(message: dict[str, Any], payload: bytes) -> None:
            with contextlib.suppress(ValueError):
                self._models(json.loads(payload))

        self.client.ask("models", listed, "models")

    def _models(self, rows: list[dict[str, Any]]) -> None:
        if rows != self._rows:
            self._rows = rows
            self.panel.set_models(usable(rows))
            self.dresser.refresh()
            if self._wanted is not None:  # what was remembered, now that its model can be shown
                job, self._wanted = self._wanted, None
                self.panel.show_job(job)
                self._start_is_meant = self.panel.image is not None
                self.panel.loras.recall(self.settings.value("loras"))
            self._pick(self._picked)

    def _pick(self, what: str) -> None:
        """Draw with a model from now on: by its name or path, when it is listed."""
        self._picked = what
        found = next((one for one in self.panel.models if what and what in (one.name, one.path)), None)
        if found is not None:
            self._picked = ""
            self.panel.model.setCurrentIndex(self.panel.model.findData(found.name))

    def _ask(self, job: Job) -> None:
        """How long this takes, how much memory, how many words: asked without its pictures, which change none of it."""
        model: Model = self.panel.current
        if not model.usable or not model.name:
            return
        if job.image is not None:
            job = costs_like(job, QImageReader(job.image).size(), model)
        asked = job.to_json()

        def estimated(message: dict[str, Any], payload: bytes) -> None:
            if message["ev"] == "estimate":
                whole = (self.client.greeting or {}).get("memory")
                self.panel.show_estimate(message.get("seconds"), message.get("memory"), message.get("available"), whole)
                if message.get("short"):
                    self.panel.estimate.setToolTip(str(message["short"]))
            else:
                self.panel.estimate.say(str(message.get("message")))

        def counted(message: dict[str, Any], payload: bytes) -> None:
            if message["ev"] == "tokens":
                self.panel.show_tokens(*(int(message.get(key) or 0) for key in ("prompt", "negative", "limit")))

        self.client.ask("estimate", estimated, "estimate", job=asked)
        self.client.ask("tokens", counted, "tokens", job=asked)

    # What is shown.

    def say(self, notice: Notice | None) -> None:
        """A message in the bar, or none."""
        self.viewer.bar.show_notice(notice)
        if notice is not None:
            self._announce(notice.text)

    def _announce(self, text: str) -> None:
        QAccessible.updateAccessibility(QAccessibleAnnouncementEvent(self, text))

    def _act(self, command: str) -> None:
        """What a button of the bar does."""
        last = self.queue.last
        self.say(None)
        if command == "resume":
            self.queue.resume()
        elif command == "discard":
            self.queue.clear_waiting()
            self.queue.resume()
        elif command == "again" and last is not None:
            self.queue.again(last.id)
        elif command == "smaller" and last is not None:
            self.queue.smaller(last.id)
        elif command == "restart":
            self.client.start()
        elif command == "work_here":
            self.desk.go(Place())
        elif command == "place_back":
            self.desk.go(self._place_before)
        elif command == "compare_again":
            self.compare(*self._compared)
        elif command in ("models", "reveal"):
            self.actions_[command].trigger()
        elif command == "force_stop":
            self.queue.force_stop()
        elif command == "save_again":
            self.queue.save_again()
        elif command == "restore_offered":
            found = pictures.read(self._offered)
            job = self._job_in(found.record) if found is not None else None
            if job is not None:
                self.panel.restore(job)
            else:
                self.say(Notice("Its settings are of another version and cannot be read here."))
        elif command == "start_offered":
            self.start_from(self._offered)

    def _current(self, index: Any, _before: Any = None) -> None:
        """Another picture was chosen."""
        picture = index.data(Gallery.PICTURE) if index.isValid() else None
        if picture is None:
            return
        if self.queue.state.busy and picture != self.shown:
            self._following = False
        self._start_is_meant = False
        self.leave()
        self._show(picture)
        self.viewer.canvas.show_live_in_place(self._following)

    def _show(self, picture: Picture | None) -> None:
        self.shown = picture
        if picture is None:
            self.viewer.canvas.clear()
        elif self.viewer.canvas.path != picture.path and not self.viewer.canvas.show_file(
            picture.path, self.gallery_model.name(picture)
        ):
            self.viewer.canvas.clear()
            self.shown = None
            self._rescan_soon.start()  # it went, and perhaps others with it
        self._follow()

    def _select(self, row: int) -> None:
        index = self.gallery_model.index(row)
        flags = QItemSelectionModel.SelectionFlag.ClearAndSelect
        self.side.grid.selectionModel().setCurrentIndex(index, flags)

    def _preview(self, image: QImage) -> None:
        entry, model = self.queue.running, self.panel.current
        size = QSize()
        if entry is not None:
            job = entry.job
            size = QSize(job.width or model.width, job.height or model.height)
            if job.width is None:
                size = image.size().scaled(size, Qt.AspectRatioMode.KeepAspectRatio)
        self.viewer.canvas.show_live(image, size)
        self.viewer.canvas.show_live_in_place(self._following)
        if self.viewer.welcome.isVisible():
            self.viewer.set_empty(False)

    def _saved(self, picture: Picture, job: Job) -> None:
        top = self.side.grid.verticalScrollBar().value() == 0
        self.gallery_model.add(picture)
        running = self.queue.running
        original = self._again.pop(running.id, None) if running is not None else None
        if original is not None:
            self._pair = original, picture
        if self._following:
            self.viewer.canvas.show_live(None)
            row = self.gallery_model.row_of(picture.id)
            if row >= 0 and top:
                meant = self._start_is_meant
                self._select(row)
                self._following, self._start_is_meant = True, meant
            else:
                self._show(picture)
        self._watch()

    def _rested(self, well: bool) -> None:
        """Nothing runs any more: what there is to be said of it."""
        pair, self._pair = self._pair, None
        self._again.clear()
        if pair is not None:
            self._tell_difference(*pair)
        elif well and self.settings.value("hinted") != "true":
            self.settings.setValue("hinted", "true")
            if self.viewer.bar.notice is not None:
                return
            folder = places.pictures()
            self.say(Notice(f"Pictures are saved in ‘{folder.parent.name}/{folder.name}’. Drag them anywhere.",
                            (("Show in Folder", "reveal"),), kind="news"))  # fmt: skip

    def _tell_difference(self, before: Picture, after: Picture) -> None:
        from .difference import difference

        apart = difference(QImage(before.path), QImage(after.path))
        makers = [self.history.record(one.id).get("made_by", {}).get("backend", "unknown") for one in (before, after)]
        makers = [re.sub(r" \([^)]*\)", "", str(maker)) for maker in makers]  # in short
        made = f"Made again by {makers[1]}" + (f", before by {makers[0]}" if makers[0] != makers[1] else "")
        back, self._compared = self._place_before, (before.path, after.path)
        actions = [("Compare", "compare_again")] if apart and apart.psnr < math.inf else []
        actions += [("Back to " + back.name, "place_back")] if back != self.desk.place else []
        words = apart.words if apart else "a picture of another size"
        self.say(Notice(f"{made}: {words}.", tuple(actions), kind="news"))

    def do_live(self) -> None:
        """Back to the picture that is being made."""
        self._following = True
        self.leave()
        self.viewer.canvas.show_live_in_place(True)

    def _progress(self) -> None:
        """The line below the picture."""
        queue, viewer = self.queue, self.viewer
        if queue.state is State.LOADING:
            viewer.show_progress(None, f"Loading {queue.loading}…")
        elif queue.state is State.STOPPING and queue.progress is not None:
            viewer.show_progress(queue.progress.fraction, "It has not stopped yet." if queue.may_force
                                 else queue.progress.text(stopping=True))  # fmt: skip
        elif isinstance(queue.progress, Progress) and queue.state is State.GENERATING:
            viewer.show_progress(queue.progress.fraction, queue.progress.text())

    def _follow(self) -> None:
        """Bring every widget to the one state."""
        if self._closed:
            return
        queue, act, state = self.queue, self.actions_, self.queue.state
        busy, held, here = state.busy, queue.held, self.shown is not None
        chosen = self.side.grid.chosen
        self.viewer.set_busy(busy)
        self.viewer.set_empty(not here and not self.gallery_model.any and not busy)
        self.viewer.canvas.dimmed = state is State.LOADING
        if busy:
            self._progress()
            self._clock.start()
        else:
            self._clock.stop()
            self.viewer.show_idle(self._idle_line())
            self.viewer.canvas.show_live(None)
        self.panel.set_running(busy or bool(queue.waiting))
        act["stop"].setText("Force &Stop" if queue.may_force else "&Stop")
        act["stop"].setEnabled(busy and (state is not State.STOPPING or queue.may_force))
        act["stop"].setVisible(True)
        act["force_stop"].setEnabled(busy)
        act["pause"].setText("&Resume" if held else "&Pause")
        job = self.job_of(self.shown)
        with_job = job is not None
        for name in ("variations", "reuse", "reuse_new", "make_again", "copy_prompt"):
            act[name].setEnabled(with_job)
        act["upscale"].setEnabled(job is not None and self._model_of(job).redraws)
        enlarger = self._enlarger()
        act["enlarge"].setVisible(enlarger is not None)
        act["enlarge"].setText(f"&Enlarge with {enlarger.title}" if enlarger is not None else "&Enlarge")
        act["enlarge"].setEnabled(here)
        comparing = self.page is not None and not self.painting
        act["compare"].setText(COMPARED if comparing else COMPARE)
        act["compare"].setEnabled(comparing or self._two() is not None)
        two = comparing or len(chosen) == 2
        self.viewer.need(act["mask"] if self.painting else act["compare"] if two else None)
        for name in ("copy", "save", "reveal", "start_from", "details"):
            act[name].setEnabled(here)
        for name in ("fit", "pixels", "zoom_in", "zoom_out"):
            act[name].setEnabled(here or self.page is not None)
        for name in ("trash", "favourite"):
            act[name].setEnabled(bool(chosen) or here)
        act["favourite"].setChecked(bool(self._meant) and all(one.favourite for one in self._meant))
        act["live"].setEnabled(busy)
        entry = self.side.waiting.entry
        act["again"].setEnabled(entry is not None and entry.state not in ("running", "waiting"))
        act["remove"].setEnabled(entry is not None)
        act["earlier"].setEnabled(entry is not None and entry.state in ("waiting", "paused"))
        act["later"].setEnabled(entry is not None and entry.state in ("waiting", "paused"))
        act["clear_waiting"].setEnabled(bool(queue.waiting))
        act["clear_ended"].setEnabled(bool(queue.ended_badly))
        self.panel.take.setEnabled(with_job)
        act["undo"].setEnabled(True)
        self._follow_focus()
        act["controls"].setChecked(not self.panel.isHidden())
        act["gallery"].setChecked(not self.side.isHidden())
        self._show_backend()

    def _follow_focus(self) -> None:
        """What commands are about where the focus is, and with this model."""
        if self._closed:
            return
        act, painting = self.actions_, self.painting
        history = self.inpaint.painter.layer.history if self._at_mask else self.undo_stack
        act["undo"].setText(f"&Undo {history.undoText()}".rstrip())
        act["redo"].setText(f"&Redo {history.redoText()}".rstrip())
        masks = self.panel.current.takes("mask")
        act["mask"].setText(DONE if painting else PAINT)
        act["start_from"].setVisible(self.panel.current.takes("image"))
        act["mask"].setVisible(masks)
        act["mask"].setEnabled(masks and (self.shown is not None or self.panel.image is not None))
        act["extend"].setVisible(masks and self.panel.current.takes("extend"))
        act["extend"].setEnabled(act["mask"].isEnabled())
        only = self.inpaint.bar.only_masked if painting else None
        act["only_masked"].setChecked(only is not None and only.isChecked())
        act["only_masked"].setEnabled(only is not None and only.isEnabled())
        for action in (*self._mask_actions, act["import_mask"], act["export_mask"]):
            action.setEnabled(painting)

    def _idle_line(self) -> str:
        if self.queue.state is State.STARTING:
            return "Starting the generator…"
        if self.queue.held and self.queue.waiting:
            return "The queue is paused."
        if self.shown is not None:
            made = self.history.record(self.shown.id).get("job", {})
            seed = f" · seed {made['seed']}" if "seed" in made else ""
            return f"{self.shown.width} × {self.shown.height}{seed}"
        return ""

    def _show_backend(self) -> None:
        greeting, c = self.client.greeting, theme.colours()
        down = greeting is None and self.queue.state in (State.DOWN, State.LOST)
        waits = "The generator is not running" if down else "Waiting for the generator…"
        self.panel.without_models(waits if greeting is None else "Get a model first")
        if greeting is None:
            place = self.desk.place
            starting = f"Connecting to {place.name}…" if place.host else "Starting…"
            gone = f"No connection to {place.name}" if place.host else "The generator is not running"
            self.panel.show_backend(gone if down else starting, c.red if down else None)
            return
        name = {"mlx": "MLX", "torch": "PyTorch"}.get(str(greeting.get("backend")), str(greeting.get("backend")))
        device = greeting.get("device_name") or greeting.get("device") or ""
        where = [Place(host=self.client.host).name] if self.client.host else []
        state = "working" if self.queue.state.busy else "ready"
        state = f"then {self.desk.place.name}" if self.client.leaving else state
        self.panel.show_backend(" · ".join([*where, name, device, state]), "#2f9e5b")

    # The gallery.

    def _filter(self) -> None:
        number = self.shown.id if self.shown is not None else -1
        self.gallery_model.filter(self.side.search.text(), self.side.hearts.isChecked())
        self.side.set_dark()
        self._select_again(number)

    def _select_again(self, number: int) -> None:
        """The selection after the list was made anew."""
        row = self.gallery_model.row_of(number)
        if row >= 0:
            self._select(row)
        elif self.gallery_model.shown and self.shown is None:
            self._select(0)

    def _reload(self, found: list[Picture], edits: int) -> None:
        if self._closed:
            return
        number = self.shown.id if self.shown is not None else -1
        bar = self.side.grid.verticalScrollBar()
        place = bar.value()
        self.gallery_model.load(found if edits == self.history.edits else None)
        if self.shown is not None and not os.path.exists(self.shown.path):
            self._show(None)
        self._select_again(number)
        bar.setValue(place)
        self._watch()
        self._follow()

    def removed(self, gone: list[Picture]) -> None:
        """Pictures left; the next one is shown."""
        if not gone:
            return
        row = min(max(0, self.gallery_model.row_of(one.id)) for one in gone)
        self.gallery_model.remove(gone)
        count = len(self.gallery_model.shown)
        self.viewer.canvas.clear()
        self.shown = None
        if count:
            row = min(row, count - 1)
            self._select(row)
            self._show(self.gallery_model.shown[row])  # also where the selection is the same row as before
        self._follow()

    def came_back(self, back: list[Picture]) -> None:
        """Pictures are there again."""
        self.gallery_model.load()
        if back:
            self._select_again(back[0].id)
        self._follow()

    @property
    def _meant(self) -> list[Picture]:
        """What a command for pictures is about: the selected ones, or the shown one."""
        return self.side.grid.chosen or ([self.shown] if self.shown is not None else [])

    def do_trash(self) -> None:
        """To the Trash; undo brings them back."""
        if self._meant:
            self.undo_stack.push(Trash(self, self._meant))

    def do_favourite(self) -> None:
        """A heart for all that are selected, or for none of them."""
        meant = self._meant
        if meant:
            number = self.shown.id if self.shown is not None else meant[0].id
            self.gallery_model.favour(meant, not all(one.favourite for one in meant))
            row = self.gallery_model.row_of(number)
            if row >= 0:
                self.shown = self.gallery_model.shown[row]
            self._follow()

    def do_details(self) -> None:
        """All that is known of a picture, as text."""
        if self.shown is None:
            return
        record = self.history.record(self.shown.id)
        lines = [self.shown.path, f"{self.shown.width} × {self.shown.height}", ""]
        made_by = dict(record.get("made_by") or {})
        effect = adapters.told(made_by.pop("adapters", None))
        lines += [f"{'made by' if key == 'backend' else key}: {value}" for key, value in made_by.items()]
        lines += ["", *(f"{key}: {value}" for key, value in record.get("job", {}).items())]
        lines += ["", *effect] if effect else []
        show_text(self, "Details", "\n".join(lines))

    def do_copy(self) -> None:
        """The picture, as a picture and as a file."""
        if self.shown is not None:
            data = file_data([one.path for one in self._meant])
            data.setImageData(QImage(self.shown.path))
            QApplication.clipboard().setMimeData(data)
            self._copied = data.urls()

    def do_copy_prompt(self) -> None:
        """Its words."""
        job = self.job_of(self.shown)
        if job is not None:
            QApplication.clipboard().setText(job.prompt)

    def do_paste(self) -> None:
        """A picture to start from, or words."""
        data = QApplication.clipboard().mimeData()
        path = picture_of(data)
        if path:
            self.take_file(path)
        elif data.hasImage():
            self._start_from_image(QImage(data.imageData()))
        elif data.hasText():
            self.panel.prompt.setFocus()
            self.panel.prompt.paste()

    def _follow_clipboard(self) -> None:
        if not self._closed:
            data = QApplication.clipboard().mimeData()
            self.actions_["paste"].setEnabled(
                data is not None and (data.hasImage() or data.hasText() or data.hasUrls())
            )

    def do_save(self) -> None:
        """A copy somewhere else."""
        if self.shown is None:
            return
        path, _ = QFileDialog.getSaveFileName(self, "Save a Copy", Path(self.shown.path).name, "PNG (*.png)")
        if path:
            try:
                shutil.copyfile(self.shown.path, path)
            except OSError as error:
                self.say(Notice(f"The copy was not saved: {error.strerror or error}."))

    def do_reveal(self) -> None:
        """Its folder, in the system's way."""
        if self.shown is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(QFileInfo(self.shown.path).absolutePath()))

    # The queue.

    def do_stop(self) -> None:
        """Stop what runs; by force if it has not stopped after a while."""
        if self.queue.may_force:
            self.queue.force_stop()
        else:
            self.queue.stop()

    def do_force_stop(self) -> None:
        """End the worker now; another one comes."""
        self.queue.force_stop()

    def do_pause(self) -> None:
        """Let nothing more start, or go on."""
        self.queue.resume() if self.queue.held else self.queue.pause()

    def do_again(self) -> None:
        """Let the selected job of the queue try again."""
        if self.side.waiting.entry is not None:
            self.queue.again(self.side.waiting.entry.id)

    def do_earlier(self) -> None:
        """Let it come earlier."""
        if self.side.waiting.entry is not None:
            self.queue.move(self.side.waiting.entry.id, -1)

    def do_later(self) -> None:
        """Let it come later."""
        if self.side.waiting.entry is not None:
            self.queue.move(self.side.waiting.entry.id, 1)

    def do_remove(self) -> None:
        """Forget it."""
        if self.side.waiting.entry is not None:
            self.queue.remove(self.side.waiting.entry.id)

    def do_clear_waiting(self) -> None:
        """Forget all that wait."""
        self.queue.clear_waiting()

    def do_clear_ended(self) -> None:
        """Forget all that ended badly or were stopped."""
        self.queue.clear_ended()

    def do_queue(self) -> None:
        """Go there."""
        self.side.show()
        self.side.waiting.setFocus()
        if not self.side.waiting.currentIndex().isValid() and self.queue.rowCount():
            self.side.waiting.setCurrentIndex(self.queue.index(0))
        self._follow()

    def do_unload(self) -> None:
        """Let the worker let go of its model."""
        self.client.unload()

    # Models, places, settings.

    def do_models(self) -> None:
        """What models are here; get, add, convert."""
        self.desk.show_models()

    def do_backends(self) -> None:
        """Where pictures are made."""
        self.panel.show()
        self.desk.show_backends(self.panel.backend)

    def do_preferences(self) -> None:
        """The settings' page."""
        self.desk.show_settings(self.panel.backend)

    def _look_in_folder(self) -> None:
        """The pictures' folder is another one."""
        self.rescan.close()
        self.rescan = Rescan(self.history, places.pictures(), self)
        self.rescan.changed.connect(self._reload)
        self.rescan.start()
        self._watch()

    def _copy_report(self) -> None:
        """What the bar says, as a text to send to somebody who can help."""
        notice = self.viewer.bar.notice
        if notice is not None:
            QApplication.clipboard().setText(report(notice, self._versions()))

    def _versions(self) -> list[str]:
        greeting = self.client.greeting or {}
        worker = ", ".join(str(greeting[key]) for key in ("version", "backend", "device", "device_name")
                           if greeting.get(key))  # fmt: skip
        return [f"mlxldm {__version__}, Qt {qVersion()}, Python {platform.python_version()}, {platform.platform()}",
                f"worker: {worker or 'not running'}"]  # fmt: skip

    # The view.

    def do_large(self) -> None:
        """Only the picture, and back."""
        self.do_only_picture()

    def do_only_picture(self) -> None:
        """Hide both sides, or bring back those that were there."""
        if self._large is None:
            self._large = (not self.panel.isHidden(), not self.side.isHidden())
            self.panel.hide()
            self.side.hide()
            (self.page.easel if self.page is not None else self.viewer.canvas).setFocus()
        else:
            left, right = self._large
            self._large = None
            self.panel.setVisible(left or not right)
            self.side.setVisible(right or not left)
            self.side.grid.setFocus()
        self._follow()

    def do_controls(self) -> None:
        """Show or hide the left side."""
        self.panel.setVisible(self.panel.isHidden())
        self._large = None
        self._follow()

    def do_gallery(self) -> None:
        """Show or hide the right side."""
        self.side.setVisible(self.side.isHidden())
        self._large = None
        self._follow()

    def do_settings_shown(self) -> None:
        """Open or close the settings of the picture."""
        self.panel.disclosure.setChecked(not self.panel.disclosure.isChecked())

    def do_advanced_shown(self) -> None:
        """Open or close the settings that few people need."""
        opened = not self.panel.advanced.button.isChecked()
        self.panel.advanced.button.setChecked(opened)
        if opened:
            self.panel.disclosure.setChecked(True)

    def do_fit(self) -> None:
        """The whole picture."""
        self.page.easel.fit() if self.page is not None else self.viewer.canvas.set_zoom(None)

    def do_pixels(self) -> None:
        """One pixel of it for one of the screen."""
        if self.page is not None:
            self.page.easel.actual_size()
        else:
            self.viewer.canvas.set_zoom(1 / self.devicePixelRatioF())

    def do_zoom_in(self) -> None:
        """Larger."""
        self._zoom_by(1.25)

    def do_zoom_out(self) -> None:
        """Smaller."""
        self._zoom_by(0.8)

    def _zoom_by(self, factor: float) -> None:
        self.page.easel.zoom(factor) if self.page is not None else self.viewer.canvas.zoom_by(factor)

    def do_next_picture(self) -> None:
        """The one before it in time."""
        self._step(1)

    def do_previous_picture(self) -> None:
        """The one after it in time."""
        self._step(-1)

    def _step(self, by: int) -> None:
        row = self.gallery_model.row_of(self.shown.id) if self.shown is not None else -1
        if self.gallery_model.shown:
            self._select(min(max(row + by, 0), len(self.gallery_model.shown) - 1))

    def do_full_screen(self) -> None:
        """All of the screen, and back."""
        self.showNormal() if self.isFullScreen() else self.showFullScreen()

    def do_search(self) -> None:
        """Go to the search."""
        self.side.show()
        self.side.search.setFocus()
        self.side.search.selectAll()
        self._follow()

    def do_prompt(self) -> None:
        """Go to the prompt."""
        self.panel.show()
        self.panel.prompt.setFocus()
        self._follow()

    @property
    def _at_mask(self) -> bool:
        """Whether undo is of the mask's strokes."""
        return self.painting and self.inpaint.at_hand

    def do_undo(self) -> None:
        """The last step of the controls or the gallery, or of the mask while that is painted."""
        self.inpaint.painter.layer.undo() if self._at_mask else self.undo_stack.undo()
        self._follow_focus()

    def do_redo(self) -> None:
        """And forward again."""
        self.inpaint.painter.layer.redo() if self._at_mask else self.undo_stack.redo()
        self._follow_focus()

    def do_shortcuts(self) -> None:
        """All keys."""
        native = QKeySequence.SequenceFormat.NativeText
        listed: dict[str, list[tuple[str, str]]] = {}
        for command in COMMANDS:
            if isinstance(command, Command) and not self.actions_[command.name].shortcut().isEmpty():
                action = self.actions_[command.name]
                pair = action.shortcut().toString(native), action.text().replace("&", "")
                listed.setdefault(command.menu.replace("&", ""), []).append(pair)
        wide = max(len(keys) for pairs in listed.values() for keys, _ in pairs) + 3
        lines = ["\n".join([menu, *(f"  {keys:{wide}}{words}" for keys, words in pairs), ""])
                 for menu, pairs in listed.items()]  # fmt: skip
        show_text(self, "Keyboard Shortcuts", "\n".join(lines), fixed=True)

    def do_about(self) -> None:
        """Versions."""
        greeting = self.client.greeting or {}
        lines = ["mlxldm", "Latent diffusion on your own computer. Nothing leaves it.", ""]
        lines += [
            f"{key}: {greeting[key]}"
            for key in ("version", "backend", "device", "device_name", "why")
            if greeting.get(key)
        ]
        show_text(self, "About mlxldm", "\n".join(lines))

    def do_quit(self) -> None:
        """Close the window; what waits, waits."""
        self.close()

    def set_appearance(self, name: str) -> None:
        """Light, dark, or as the system."""
        self.desk.settings.set("appearance", name)

    def _scheme_changed(self) -> None:
        app, name = QApplication.instance(), self.desk.settings.get("appearance")
        if isinstance(app, QApplication) and not self._closed:
            theme.apply(app, name)
            self._appearances[name].setChecked(True)
            self.panel.set_dark()
            self.viewer.set_dark()
            for page in filter(None, (self._inpaint, self._compare)):
                page.set_dark()
            self.side.set_dark()
            self._follow()

    # From one start to the next.

    def _recall(self) -> None:
        settings = self.settings
        for key, restore in (("geometry", self.restoreGeometry), ("columns", self.split.restoreState)):
            value = settings.value(key)
            if isinstance(value, QByteArray):
                restore(value)
        self.panel.setVisible(settings.value("controls", "true") != "false")
        self.side.setVisible(settings.value("gallery", "true") != "false")
        self.panel.disclosure.setChecked(settings.value("settings") == "true")
        self.panel.advanced.button.setChecked(settings.value("advanced") == "true")
        with contextlib.suppress(Exception):  # of another version: then the controls are as at first
            self._wanted = Job.from_json(str(settings.value("job")))
            self.panel.prompt.replace(self._wanted.prompt)

    def _remember(self) -> None:
        settings = self.settings
        settings.setValue("geometry", self.saveGeometry())
        settings.setValue("columns", self.split.saveState())
        left, right = self._large or (not self.panel.isHidden(), not self.side.isHidden())
        settings.setValue("controls", "true" if left else "false")
        settings.setValue("gallery", "true" if right else "false")
        settings.setValue("settings", "true" if self.panel.disclosure.isChecked() else "false")
        settings.setValue("advanced", "true" if self.panel.advanced.button.isChecked() else "false")
        job = self.panel.job() if self._wanted is None else self._wanted.replace(prompt=self.panel.prompt.toPlainText())
        settings.setValue("job", json.dumps(job.to_json()))
        if self._wanted is None:
            settings.setValue("loras", self.panel.loras.state())
        settings.sync()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Remember everything, end the worker."""
        if not self._closed:
            self._remember()
            self._closed = True
            clipboard = QApplication.clipboard()
            if self._copied and clipboard.mimeData().urls() == self._copied:  # freed after Python, ours would crash
                clipboard.setImage(clipboard.image())
            self._clock.stop()
            self._rescan_soon.stop()
            self.rescan.close()
            self.thumbnails.close()
            self.queue.leave()
            self.desk.close()
            self.client.close()
            self.history.close()
        super().closeEvent(event)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Somebody may have moved pictures while another window was in front."""
        if event.type() == QEvent.Type.ActivationChange and self.isActiveWindow() and not self._closed:
            self._rescan_soon.start()
        super().changeEvent(event)

    def _rescan(self) -> None:
        if not self._closed:
            self.rescan.start()

    def _watch(self) -> None:
        """Look at the pictures' folder and its newest days."""
        folder = places.pictures()
        with contextlib.suppress(OSError):
            days = sorted((str(one.path) for one in os.scandir(folder) if one.is_dir()), reverse=True)[:30]
            new = set([str(folder), *days]) - set(self._watcher.directories())
            if new:
                self._watcher.addPaths(list(new))


def costs_like(job: Job, start: QSize, model: Model) -> Job:
    """A job from words alone that takes as long and as much memory as this one, which starts from a picture."""
    left, top, right, bottom = (int(side) for side in (job.extend or "0,0,0,0").split(","))
    near = (model.width, model.height) if job.only_masked else (start.width() + left + right,
                                                                start.height() + top + bottom)  # fmt: skip
    width, height = job.width or -(-near[0] // 8) * 8, job.height or -(-near[1] // 8) * 8
    steps = max(1, round((job.steps or model.steps) * (job.strength or 1.0)))
    job = job.replace(image=None, strength=None, **dict.fromkeys(MASKED))
    return job.replace(steps=steps, width=width, height=height)


def png(image: QImage) -> bytes:
    """A picture as PNG; ValueError for none."""
    if image.isNull():
        raise ValueError("it cannot be read")
    data = QByteArray()
    buffer = QBuffer(data)
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    writer = QImageWriter(buffer, QByteArray(b"png"))
    if not writer.write(image):
        raise ValueError(writer.errorString())
    return bytes(data.data())


def show_text(parent: QWidget, heading: str, text: str, fixed: bool = False) -> None:
    """Text that can be selected, in a small window that is in nobody's way."""
    dialog = QDialog(parent)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.setWindowTitle(heading)
    box = QPlainTextEdit(text)
    box.setReadOnly(True)
    box.setAccessibleName(heading)
    box.setTabChangesFocus(True)
    if fixed:
        font = box.font()
        font.setFamily("monospace")
        font.setStyleHint(font.StyleHint.Monospace)
        box.setFont(font)
    buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
    buttons.rejected.connect(dialog.close)
    layout = QVBoxLayout(dialog)
    layout.addWidget(box)
    layout.addWidget(buttons)
    dialog.resize(520, 420)
    dialog.show()
