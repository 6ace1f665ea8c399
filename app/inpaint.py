"""The middle column while a mask is painted: the painter, its buttons, and what the next job gets of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtGui import QAction, QColor, QImage, QImageReader, QKeySequence
from PySide6.QtWidgets import QApplication, QVBoxLayout, QWidget

from mlxldm.job import Job

from . import theme
from .canvas import Easel
from .mask import MaskPainter, has_holes
from .mask_bar import MaskBar
from .panel import Panel
from .widgets import Instead


class Inpaint(Instead):
    """The painter over the panel's start picture. A mask belongs to its picture and is shown again with it."""

    def __init__(self, panel: Panel, keep: Callable[[bytes], str | None], parent: QWidget | None = None):
        """`keep` makes a file of a mask that a job refers to, and returns its path."""
        super().__init__(parent)
        self.panel = panel
        self.painter = MaskPainter()
        self.bar = MaskBar(self.painter)
        self._keep = keep
        self._image: str | None = None  # what is painted on
        self._mask: str | None = None  # the file that the painter's mask came from or went to
        self._quiet = False  # while a job is shown
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.bar)
        layout.addWidget(self.painter, 1)
        masking = panel.masking
        masking.keep = self._file
        masking.dropped.connect(self._dropped)
        panel.changed.connect(self.follow)
        self.painter.mask_changed.connect(self._painted)
        self.painter.extension_changed.connect(self._extended)
        self.bar.only_masked_changed.connect(self._wished)
        self.set_dark()

    @property
    def easel(self) -> Easel:
        """What is zoomed and has the keys."""
        return self.painter

    # The panel's picture.

    def open(self) -> bool:
        """Show the panel's start picture with its mask; False if there is none that can be read."""
        job = self.panel.job()
        if job.image is None:
            return False
        image = read(job.image)
        if image.isNull():
            return False
        self._quiet = True
        try:
            fresh = self.painter.kept(job.image) is None
            self._image, self._mask = job.image, job.mask
            self.painter.show_picture(image, job.image)
            self._show_mask(job)
            self._extend_by(job)
            self._wish()
        finally:
            self._quiet = False
        if fresh and job.mask is None and has_holes(image):
            self.painter.layer.load(image)  # what is transparent is what is missing
        return True

    def follow(self) -> None:
        """The panel was changed, perhaps by a job that was restored."""
        if self.isHidden():
            return
        panel = self.panel
        if panel.image is None or not panel.current.takes("mask"):
            self.closed.emit()
        elif panel.image != self._image:
            if not self.open():
                self.closed.emit()
        elif not panel.masking.fresh:  # not the painter's own doing
            job = panel.job()
            self._quiet = True
            try:
                if job.mask != self._mask:
                    self._mask = job.mask
                    self._show_mask(job)
                self._extend_by(job)
                self._wish()
            finally:
                self._quiet = False

    def mask_for(self, image: str) -> str | None:
        """The mask that a picture had when it was painted on before, as a file; None if it had none."""
        layer = self.painter.kept(image)
        return self._keep(layer.png()) if layer is not None and layer.covered() else None

    def extend(self) -> None:
        """Let the picture be dragged out by its edges, by hand or by keys."""
        self.painter.set_extendable(True)
        self.painter.handles[2].setFocus()

    def _show_mask(self, job: Job) -> None:
        layer = self.painter.layer
        if job.mask is None:
            layer.fill(False)
            return
        data = Path(job.mask).read_bytes() if Path(job.mask).exists() else b""
        if data and data != layer.png():
            layer.load(data)

    def _extend_by(self, job: Job) -> None:
        takes = self.panel.current.takes("extend")
        self.bar.edges.setVisible(takes)
        if job.extend is not None or not takes:
            self.painter.set_extendable(takes)
        if job.extend != self.painter.extension():
            self.painter.set_extension(job.extend)

    def _wish(self) -> None:
        only = self.panel.masking.only
        self.bar.wish_only_masked(None if only == self.painter.suggests_only_masked() else only)

    # The painter's hand.

    def _file(self) -> str | None:
        data = self.painter.mask_png()
        self._mask = self._keep(data) if data is not None else None
        return self._mask

    def _painted(self) -> None:
        if not self._quiet:
            self.panel.masking.painted(self.painter.layer.covered() > 0)

    def _extended(self, extend: str | None) -> None:
        if not self._quiet:
            self.panel.masking.grown(extend)

    def _wished(self, only: bool) -> None:
        if not self._quiet:
            self.panel.masking.wished(only)

    def _dropped(self) -> None:
        """The panel's button took the mask away; the painter can undo that."""
        if self._image == self.panel.image:
            self.painter.layer.fill(False)
            self.painter.set_extension(None)

    # Commands.

    @property
    def at_hand(self) -> bool:
        """Whether keys are the painter's now: undo is of its strokes."""
        focus = QApplication.focusWidget()
        return self.isVisible() and focus is not None and (focus is self or self.isAncestorOf(focus))

    def actions_for_menu(self, parent: QWidget) -> list[QAction]:
        """The painter's commands that the window has not. Their keys are the painter's own while it has the focus."""
        ours = {"Undo Stroke", "Redo Stroke", "Zoom In", "Zoom Out", "Fit", "Actual Size"}
        made = []
        for command in self.painter.commands():
            if command.text not in ours:
                action = QAction(command.text, parent)
                keys = [QKeySequence(key).toString(QKeySequence.SequenceFormat.NativeText) for key in command.keys[:1]]
                action.setText("\t".join([command.text, *keys]))
                action.triggered.connect(lambda _=False, text=command.text: self.run(text))
                made.append(action)
        return made

    def run(self, text: str) -> None:
        """Do one of the painter's commands, by its name."""
        next(command for command in self.painter.commands() if command.text == text).run()

    def import_mask(self, path: str) -> None:
        """Take the mask from a picture's file. ValueError or OSError if it is none."""
        self.painter.layer.load(Path(path).read_bytes())

    def export_mask(self, path: str) -> None:
        """Write the mask as a PNG. OSError if that fails."""
        Path(path).write_bytes(self.painter.layer.png())

    def set_dark(self) -> None:
        """The ground, in the scheme that is on."""
        self.painter.ground = QColor(theme.colours().canvas)
        self.painter.update()


def read(path: str) -> QImage:
    """A picture's pixels, upright; a null one if it cannot be read."""
    reader = QImageReader(path)
    reader.setAutoTransform(True)
    return reader.read()
