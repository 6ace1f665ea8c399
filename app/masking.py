"""Below the start picture: what of it is painted anew, and how the new goes over into the old."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QSpinBox, QToolButton, QVBoxLayout, QWidget

from mlxldm.job import Job

from . import theme
from .widgets import roomy

FIELDS = ("mask", "mask_grow", "mask_blur", "only_masked", "mask_padding", "extend")
# Pixels by which a mask grows, and the radius of its blur, where a job says nothing: of a mask, and of an extension.
USUAL = {False: (0, 0), True: (16, 6)}
STRENGTHS = (0.6, 0.8, 1.0)  # over a whole picture, within a mask, and where there was no picture


class Masking(QWidget):
    """The fields of a job about its mask. Who paints it says so (`painted`) and is asked for the file when it is due.

    A stroke is not a file yet: `keep` makes one when a job is read off the controls.
    """

    asked = Signal()  # to paint
    changed = Signal()
    dropped = Signal()  # no mask and no extension any more, by the button

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.keep: Callable[[], str | None] = lambda: None  # the painter's mask as a file
        self.extend: str | None = None
        self.only: bool | None = None  # whether only the masked area is drawn; None: nobody said
        self._file: str | None = None
        self._painted: bool | None = None  # whether anything is, where the painter is newer than the file
        self._padding: int | None = None
        self._loose = False  # whether the numbers shown are an extension's
        self.paint = QPushButton("Paint a Mask")
        self.paint.setToolTip("Paint over what is to be drawn anew")
        self.drop = QToolButton()
        self.drop.setAccessibleName("Without the mask")
        self.drop.setToolTip("Without the mask")
        self.grow, self.blur = QSpinBox(), QSpinBox()
        for box, name, least in ((self.grow, "Grow the mask", -256), (self.blur, "Feather the mask", 0)):
            box.setRange(least, 256)
            box.setSuffix(" px")
            box.setAlignment(Qt.AlignmentFlag.AlignRight)
            box.setAccessibleName(f"{name} by so many pixels")
            box.valueChanged.connect(self.changed)
            roomy(box)
        self.grow.setToolTip("Paint so far beyond the mask as well, or stay so far inside below 0")
        self.blur.setToolTip("Let new pixels go over into old ones softly; at 0, nothing outside of the mask changes")
        self._lay_out()
        self.paint.clicked.connect(self.asked)
        self.drop.clicked.connect(self._drop)
        self._follow()

    def _lay_out(self) -> None:
        first, self._numbers = QHBoxLayout(), QWidget()
        first.setSpacing(8)
        first.addWidget(self.paint, 1)
        first.addWidget(self.drop)
        second = QHBoxLayout(self._numbers)
        second.setContentsMargins(0, 0, 0, 0)
        second.setSpacing(8)
        for text, box in (("Grow", self.grow), ("Feather", self.blur)):
            label = QLabel(text)
            label.setBuddy(box)
            second.addWidget(label)
            second.addWidget(box, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(8)
        column.addLayout(first)
        column.addWidget(self._numbers)

    # What a job says.

    @property
    def masked(self) -> bool:
        """Whether a part of the picture is painted, and not all of it."""
        painted = self._file is not None if self._painted is None else self._painted
        return painted or self.extend is not None

    @property
    def fresh(self) -> bool:
        """Whether the painter has what no file has yet."""
        return self._painted is not None

    def file(self) -> str | None:
        """The mask's file; None for no mask, and where it cannot be kept (then it is still `unkept`)."""
        if self._painted is not None:
            file = self.keep() if self._painted else None
            if self._painted and file is None:
                return None
            self._file, self._painted = file, None
        return self._file

    @property
    def unkept(self) -> bool:
        """Whether there is a mask that no file has yet."""
        return bool(self._painted)

    def fields(self, mask: bool, extend: bool) -> dict[str, Any]:
        """What a job says about its mask, for a model that takes a mask or not, and an extension or not."""
        said: dict[str, Any] = dict.fromkeys(FIELDS)
        said["mask"], said["extend"] = self.file() if mask else None, self.extend if extend else None
        if said["mask"] is not None or said["extend"] is not None:
            grow, blur = USUAL[said["extend"] is not None]
            said["mask_grow"] = None if self.grow.value() == grow else self.grow.value()
            said["mask_blur"] = None if self.blur.value() == blur else self.blur.value()
            said["only_masked"] = self.only or None
            said["mask_padding"] = self._padding if self.only else None
        return said

    def show_job(self, job: Job) -> None:
        """Bring it to a job."""
        self._file = job.mask if job.mask and Path(job.mask).is_absolute() else None
        self._painted, self.extend = None, job.extend
        self.only = bool(job.only_masked) if self.masked else None
        self._padding = job.mask_padding
        self._loose = job.extend is not None
        grow, blur = USUAL[self._loose]
        for box, given, usual in ((self.grow, job.mask_grow, grow), (self.blur, job.mask_blur, blur)):
            box.blockSignals(True)
            box.setValue(usual if given is None else given)
            box.blockSignals(False)
        self._follow()

    def clear(self) -> None:
        """Without a picture there is nothing of it."""
        self.show_job(Job())

    # What the painter says.

    def painted(self, anything: bool) -> None:
        """The mask is another one now."""
        before, self._painted = self.masked, anything
        if self.masked != before:
            self._follow()
            self.changed.emit()

    def grown(self, extend: str | None) -> None:
        """The picture goes on beyond its edges, or not."""
        if extend != self.extend:
            self.extend = extend
            if self._loose != (extend is not None):
                self._loosen(extend is not None)
            self._follow()
            self.changed.emit()

    def wished(self, only: bool) -> None:
        """Whether only the masked area is drawn."""
        if only != bool(self.only):
            self.only = only
            self.changed.emit()

    def _loosen(self, loose: bool) -> None:
        """Other numbers are usual now; those that somebody chose stay."""
        for box, old, new in zip((self.grow, self.blur), USUAL[self._loose], USUAL[loose], strict=True):
            if box.value() == old:
                box.setValue(new)
        self._loose = loose

    def _drop(self) -> None:
        self.clear()
        self.dropped.emit()
        self.changed.emit()

    # How it looks.

    def _follow(self) -> None:
        self.paint.setText("Edit the Mask" if self.masked else "Paint a Mask")
        self.paint.setAccessibleName(self.paint.text())
        self.drop.setVisible(self.masked)
        self._numbers.setVisible(self.masked)

    def set_dark(self) -> None:
        """The sign, in the scheme that is on."""
        self.drop.setIcon(theme.icon("close"))
