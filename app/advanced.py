"""The settings that few people need: closed until somebody opens them, and only those that the model knows."""

from __future__ import annotations

import contextlib
from typing import Any

from PySide6.QtCore import QRegularExpression, Signal
from PySide6.QtGui import QRegularExpressionValidator
from PySide6.QtWidgets import QGridLayout, QLabel, QLineEdit, QPushButton, QSpinBox, QVBoxLayout, QWidget

from mlxldm.job import Job, variation_of

from . import theme
from .models import Model
from .widgets import Amount, Combo, Text, roomy

HIRES = (1.5, 2.0, 3.0, 4.0)
HIRES_STRENGTH = 0.5  # the library's
SEAMLESS = (("No", None), ("Left and right", "x"), ("Above and below", "y"), ("On all sides", "both"))
NOISES = (("The same everywhere", "torch-cpu"), ("As on an NVIDIA GPU", "nvidia"))


class Advanced(QWidget):
    """Fields of a job, in rows below a button that opens them."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._hires_steps: int | None = None
        self._given: str | None = None  # the variation of the job that was shown, as it wrote it
        self.button = QPushButton("Advanced")
        self.button.setProperty("flat", True)
        self.button.setCheckable(True)
        self.hires = Combo()
        self.hires.addItem("No", None)
        for times in HIRES:
            self.hires.addItem(f"{times:g} times as large", times)
        self.hires_strength = Amount("How much to redraw when upscaling", 0.05, 1, 2)
        self.seamless, self.noise = Combo(), Combo()
        for combo, pairs in ((self.seamless, SEAMLESS), (self.noise, NOISES)):
            for text, value in pairs:
                combo.addItem(text, value)
        self.rescale = Amount("Guidance rescale", 0, 1, 2)
        self.clip_skip = QSpinBox()
        self.clip_skip.setRange(0, 12)
        self.clip_skip.setSpecialValueText("The model’s own")
        roomy(self.clip_skip)
        self.prompt_2 = Text("The same as above", 2, 4)
        self.variation = Amount("Variation", 0, 1, 2)
        self.other = QLineEdit()
        self.other.setValidator(QRegularExpressionValidator(QRegularExpression(r"\d{1,20}")))
        self._rows = {
            "hires": self._row("Upscale", self.hires, "Draw the picture a second time, larger, over itself"),
            "hires_strength": self._row("Redraw", self.hires_strength, "How much of it to change then"),
            "variation": self._row("Variation", self.variation, "How much of another seed’s noise to mix in"),
            "other": self._row("… seed", self.other, "That seed; it is the one that counts up over several pictures"),
            "seamless": self._row("Seamless", self.seamless, "Let the picture go on at its other side, for tiles"),
            "guidance_rescale": self._row("Rescale", self.rescale, "How much of guidance’s gain in contrast to undo"),
            "clip_skip": self._row("Clip skip", self.clip_skip, "Which layer of the text encoder is read, 1 the last"),
            "prompt_2": self._row("Prompt 2", self.prompt_2, "What the second text encoder reads instead"),
            "noise": self._row("Noise", self.noise, "Whose random numbers a seed stands for"),
        }
        self.hires_strength.set(HIRES_STRENGTH)
        self._lay_out()
        self.other.setAccessibleName("Seed of the variation")
        for signal in (self.variation.changed, self.other.textChanged, self.hires.currentIndexChanged,
                       self.hires_strength.changed, self.prompt_2.textChanged, self.seamless.currentIndexChanged,
                       self.noise.currentIndexChanged, self.rescale.changed, self.clip_skip.valueChanged):  # fmt: skip
            signal.connect(self.changed)
        self.button.toggled.connect(self._open)
        self._open(False)

    def _row(self, text: str, field: QWidget, tip: str) -> tuple[QLabel, QWidget]:
        label = QLabel(text)
        for widget in (label, field):
            widget.setToolTip(tip)
        if not isinstance(field, Amount):
            field.setAccessibleName("Clip skip" if field is self.clip_skip else text)
        field.setAccessibleDescription(tip)
        return label, field

    def _lay_out(self) -> None:
        self.body = QWidget()
        form = QGridLayout(self.body)
        form.setContentsMargins(0, 0, 0, 0)
        form.setHorizontalSpacing(10)
        form.setVerticalSpacing(8)
        form.setColumnStretch(1, 1)
        for at, (label, field) in enumerate(self._rows.values()):
            form.addWidget(label, at, 0)
            form.addWidget(field, at, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(8)
        column.addWidget(self.button)
        column.addWidget(self.body)

    @property
    def labels(self) -> list[QLabel]:
        """The words at the left."""
        return [label for label, _ in self._rows.values()]

    # What a job says.

    def _values(self) -> dict[str, Any]:
        twice = self.hires.currentData()
        return {
            "hires": twice,
            "hires_strength": None if self.hires_strength.value == HIRES_STRENGTH else self.hires_strength.value,
            "hires_steps": self._hires_steps,
            "variation": self._variation(),
            "seamless": self.seamless.currentData(),
            "guidance_rescale": self.rescale.value or None,
            "clip_skip": self.clip_skip.value() or None,
            "prompt_2": self.prompt_2.toPlainText().strip() or None,
            "noise": self.noise.currentData(),
        }

    def _variation(self) -> str | None:
        amount, seed = self.variation.value, min(int(self.other.text() or 1), 2**64 - 1)
        if not amount:
            return None
        given = self._given
        same = given is not None and variation_of(given) == (seed, amount)
        return given if same else f"{seed}:{amount:g}"

    def fields(self, model: Model, masked: bool, whole: bool) -> dict[str, Any]:
        """What a job says for a model; `masked`: of a picture a part is painted; `whole`: but all of it is seen."""
        values = self._values()
        for name in values:
            if name != "noise" and not known(name.replace("hires_steps", "hires"), model):
                values[name] = None
        if masked:
            values["hires"] = None
        if not whole:
            values["seamless"] = None
        if values["hires"] is None:
            values["hires_strength"] = values["hires_steps"] = None
        return values

    def show_job(self, job: Job) -> None:
        """Bring it to a job."""
        for combo, value in ((self.hires, job.hires), (self.seamless, job.seamless), (self.noise, job.noise)):
            if combo.findData(value) < 0:
                combo.addItem(f"{value:g} times as large" if combo is self.hires else str(value), value)
            combo.setCurrentIndex(combo.findData(value))
        self.hires_strength.set(HIRES_STRENGTH if job.hires_strength is None else job.hires_strength)
        self._hires_steps = job.hires_steps
        self._given = job.variation
        with contextlib.suppress(Exception):  # what is no variation is for the worker to complain about
            seed, amount = variation_of(job.variation or "1:0")
            self.other.setText(str(seed))
            self.variation.set(amount)
        self.rescale.set(job.guidance_rescale or 0.0)
        self.clip_skip.setValue(job.clip_skip or 0)
        self.prompt_2.replace(job.prompt_2 or "")

    # How it looks.

    def follow(self, model: Model, masked: bool, whole: bool) -> None:
        """Only what the model knows, and the job can have."""
        for name, (label, field) in self._rows.items():
            shown = known(name, model) and not (masked and name.startswith("hires")) and (whole or name != "seamless")
            if name == "hires_strength":
                shown = shown and self.hires.currentData() is not None
            if name == "other":
                shown = self.variation.value > 0
            label.setVisible(shown)
            field.setVisible(shown)

    def _open(self, opened: bool) -> None:
        self.body.setVisible(opened)
        self.set_dark()

    def set_dark(self) -> None:
        """The sign, in the scheme that is on."""
        self.button.setIcon(theme.icon("open" if self.button.isChecked() else "closed", theme.colours().quiet))


def known(name: str, model: Model) -> bool:
    """Whether a field means anything to a model."""
    if name in ("hires", "hires_strength"):
        return model.takes("hires")
    if name == "guidance_rescale":
        return model.guided and model.takes("rescale")
    if name in ("clip_skip", "prompt_2"):
        return model.takes("prompt") and model.reads(2 if name == "prompt_2" else 1)
    return True
