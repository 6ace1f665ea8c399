"""The left column: what is wished for. One job goes in (`show_job`) and comes out (`job`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import QRegularExpression, Qt, QTimer, Signal
from PySide6.QtGui import QImageReader, QPixmap, QRegularExpressionValidator, QResizeEvent, QUndoCommand, QUndoStack
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from mlxldm.job import Job

from . import theme
from .adapters import Wardrobe
from .advanced import Advanced
from .jobs import MOST, duration
from .lora_rows import LoraRows
from .masking import STRENGTHS, Masking
from .models import Model
from .prompts import Name, Names, Prompt
from .widgets import Amount, Choice, Combo, Elided, Well, restyle, roomy

WAIT = 250  # milliseconds after the last change, before the worker is asked about it
SAFE = 0.8  # of the memory; above it the estimate is amber

FEW = ("", "dpmpp_2m", "dpmpp_2m_sde", "euler", "euler_a", "ddim", "unipc")
NAMES = {
    "": "The model’s own", "ddim": "DDIM", "ddpm": "DDPM", "euler": "Euler", "euler_a": "Euler ancestral",
    "heun": "Heun", "lms": "LMS", "pndm": "PNDM", "dpm2": "DPM2", "dpm2_a": "DPM2 ancestral", "dpmpp_2s": "DPM++ 2S",
    "dpmpp_2m": "DPM++ 2M", "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_sde": "DPM++ SDE", "dpmpp_3m_sde": "DPM++ 3M SDE",
    "unipc": "UniPC", "deis": "DEIS", "lcm": "LCM", "tcd": "TCD", "ddim_cfgpp": "DDIM CFG++",
    "euler_cfgpp": "Euler CFG++", "euler_a_cfgpp": "Euler ancestral CFG++", "dpmpp_2m_cfgpp": "DPM++ 2M CFG++",
}  # fmt: skip
SPACINGS = {
    "": "The model’s own", "leading": "Leading", "trailing": "Trailing", "linspace": "Linspace", "karras": "Karras",
    "exponential": "Exponential", "sgm_uniform": "SGM uniform", "beta": "Beta", "ays": "Align your steps",
}  # fmt: skip


class Restore(QUndoCommand):
    """The controls, brought to another job. The fields of a job that have no control come along."""

    def __init__(self, panel: Panel, job: Job, what: str):
        super().__init__(what)
        self._panel, self._before, self._after = panel, panel.job(), job
        self._worn = panel.loras.wears  # also those that are turned off, which no job has

    def redo(self) -> None:
        """To the new one."""
        self._panel.show_job(self._after)

    def undo(self) -> None:
        """Back to what was there."""
        self._panel.show_job(self._before)
        self._panel.loras.show_wears(self._worn)


class Panel(QWidget):
    """The controls. `generate` is emitted with a job, and whether it goes to the front."""

    generate = Signal(object, bool)
    choose_picture = Signal()
    picture_dropped = Signal(str)
    take_seed = Signal()
    recall = Signal()
    models_wanted = Signal()
    backends_wanted = Signal()
    asks = Signal(object)  # a Job: how long, how much, how many words
    changed = Signal()

    def __init__(self, undo: QUndoStack, parent: QWidget | None = None):
        super().__init__(parent)
        self._undo = undo
        self._models: list[Model] = []
        self._wildcards: list[str] = []
        self._rest = Job()  # what a restored job has and no control shows
        self._image: str | None = None
        self._quiet = False  # while a job is shown
        self._why_not = ""
        self._running = False
        self._without = "Waiting for the generator…"  # what the button says while there is no model

        self.model = Combo()
        self.model.setAccessibleName("Model")
        self.model.setPlaceholderText("No model yet")
        self.models_button = QToolButton()
        self.models_button.setAccessibleName("Models")
        self.models_button.setToolTip("Models: get, add, convert")
        self.task = QPushButton()
        self.task.setProperty("flat", True)
        self.task.setProperty("quiet", True)
        self.task.setAccessibleName("What is downloaded or converted")
        self.task.hide()
        self.prompt = Prompt("Describe a picture", 5, 10)
        self.prompt.setAccessibleName("Prompt")
        self.negative = Prompt("Leave out…", 2, 4)
        self.negative.setAccessibleName("What to leave out")
        self.counter = QLabel()
        self.counter.setProperty("quiet", True)
        self.counter.setAlignment(Qt.AlignmentFlag.AlignLeft)
        self.counter.setWordWrap(True)
        self.counter.hide()
        self.shape = Combo()
        self.shape.setAccessibleName("Size")
        self.count = QSpinBox()
        self.count.setRange(1, MOST)
        self.count.setPrefix("× ")
        self.count.setAccessibleName("How many pictures")
        self.count.setFixedWidth(62)
        roomy(self.count)
        self._custom = QWidget()
        self.width_box, self.height_box = QSpinBox(), QSpinBox()
        for box, name in ((self.width_box, "Width"), (self.height_box, "Height")):
            box.setRange(64, 4096)
            box.setSingleStep(8)
            roomy(box)
            box.setAccessibleName(f"{name} in pixels")
            box.editingFinished.connect(lambda box=box: box.setValue(max(64, round(box.value() / 8) * 8)))
        self.swap = QToolButton()
        self.swap.setAccessibleName("Swap width and height")
        self.swap.setToolTip("Swap width and height")
        self.button = QPushButton("Generate")
        self.button.setProperty("primary", True)
        self.button.setDefault(True)
        self.estimate = Elided()
        self.estimate.setProperty("quiet", True)
        self.disclosure = QPushButton("Settings")
        self.disclosure.setProperty("flat", True)
        self.disclosure.setCheckable(True)
        self.steps = Amount("Steps", 1, 100, most=1000)
        self.guidance = Amount("Guidance", 1, 20, 1, most=100)
        self.sampler = Choice(self._pick_sampler)
        self.sampler.setAccessibleName("Sampler")
        self.spacing = Combo()
        self.spacing.setAccessibleName("Spacing of the steps")
        self.seed = QLineEdit()
        self.seed.setPlaceholderText("Random")
        self.seed.setAccessibleName("Seed")
        self.seed.setValidator(QRegularExpressionValidator(QRegularExpression(r"\d{0,20}")))
        self.take = QToolButton()
        self.take.setAccessibleName("Take the seed of the shown picture")
        self.take.setToolTip("Take the seed of the shown picture")
        self.well = Well("Drop a picture to start from,\nor click to choose one")
        self.strength = Amount("Strength", 0, 1, 2)
        self.masking = Masking()
        self.advanced = Advanced()
        self.loras = LoraRows(self._undo)
        self.backend = QPushButton("Starting…")
        self.backend.setProperty("flat", True)
        self.backend.setProperty("quiet", True)
        self.backend.setAccessibleName("Where pictures are made")
        self._ask = QTimer(self, singleShot=True, interval=WAIT)
        self._ask.timeout.connect(lambda: self.asks.emit(self.job()))
        self._lay_out()
        self._connect()
        self.set_models([])
        self.set_samplers([], [])
        self.steps.set(25)
        self.guidance.set(7.5)
        self.strength.set(STRENGTHS[0])
        self.set_dark()

    def _lay_out(self) -> None:
        models = QHBoxLayout()
        models.setSpacing(8)
        models.addWidget(self.model, 1)
        models.addWidget(self.models_button)
        row = QHBoxLayout()
        row.setSpacing(8)
        row.addWidget(self.shape, 1)
        row.addWidget(self.count)
        custom = QHBoxLayout(self._custom)
        custom.setContentsMargins(0, 0, 0, 0)
        custom.setSpacing(8)
        custom.addWidget(self.width_box, 1)
        custom.addWidget(self.swap)
        custom.addWidget(self.height_box, 1)
        self._custom.hide()
        self.settings = QWidget()
        form = QGridLayout(self.settings)
        form.setContentsMargins(0, 0, 0, 0)
        form.setHorizontalSpacing(10)
        form.setVerticalSpacing(8)
        form.setColumnStretch(1, 1)
        seeding = QWidget()
        seed = QHBoxLayout(seeding)
        seed.setContentsMargins(0, 0, 0, 0)
        seed.setSpacing(8)
        seed.addWidget(self.seed, 1)
        seed.addWidget(self.take)
        labels = {}
        rows = {"Steps": self.steps, "Guidance": self.guidance, "Sampler": self.sampler, "Spacing": self.spacing,
                "Seed": seeding}  # fmt: skip
        for at, (name, field) in enumerate(rows.items()):
            labels[name] = QLabel(name)
            labels[name].setBuddy(field)
            form.addWidget(labels[name], at, 0)
            form.addWidget(field, at, 1)
        self._guidance_label = labels["Guidance"]
        self._strength_row = QWidget()
        strength = QHBoxLayout(self._strength_row)
        strength.setContentsMargins(0, 0, 0, 0)
        strength.setSpacing(10)
        label = QLabel("Strength")
        strength.addWidget(label)
        strength.addWidget(self.strength, 1)
        self._strength_row.hide()
        self.masking.hide()

        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(14, 12, 14, 8)
        column.setSpacing(8)
        words = [*labels.values(), *self.advanced.labels, label]
        for one in words:
            one.setMinimumWidth(max(word.sizeHint().width() for word in words))
        for item in (models, self.task, self.prompt, self.counter, self.negative, row, self._custom, self.button,
                     self.estimate, self.disclosure, self.settings, self.advanced, self.loras, self.well,
                     self._strength_row, self.masking):  # fmt: skip
            column.addLayout(item) if isinstance(item, QHBoxLayout) else column.addWidget(item)
        column.addStretch(1)
        self._scroll = QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setFrameShape(QFrame.Shape.NoFrame)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._scroll.setWidget(inside)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(0)
        whole.addWidget(self._scroll, 1)
        bottom = QHBoxLayout()
        bottom.setContentsMargins(12, 4, 12, 8)
        bottom.addWidget(self.backend, 1)
        whole.addLayout(bottom)
        self.setMinimumWidth(240)

    def _connect(self) -> None:
        self.button.clicked.connect(lambda: self.make(False))
        self.disclosure.toggled.connect(self._disclose)
        self._disclose(False)
        self.model.currentIndexChanged.connect(self._model_changed)
        self.shape.currentIndexChanged.connect(self._size_changed)
        self.swap.clicked.connect(self._swap)
        self.models_button.clicked.connect(self.models_wanted)
        self.task.clicked.connect(self.models_wanted)
        self.backend.clicked.connect(self.backends_wanted)
        self.take.clicked.connect(self.take_seed)
        self.prompt.recall.connect(self.recall)
        self.well.dropped.connect(self.picture_dropped)
        self.well.asked.connect(self.choose_picture)
        self.well.cleared.connect(lambda: self.set_image(None))
        self.masking.changed.connect(self._mask_changed)
        self.advanced.changed.connect(self._advanced_changed)
        self.loras.changed.connect(self._changed)
        self.loras.inserted.connect(self.prompt.insert_words)
        self.prompt.textChanged.connect(lambda: self.loras.show_prompt(self.prompt.toPlainText()))
        for signal in (self.prompt.textChanged, self.negative.textChanged, self.count.valueChanged,
                       self.seed.textChanged, self.width_box.valueChanged, self.height_box.valueChanged,
                       self.steps.changed, self.guidance.changed, self.strength.changed,
                       self.spacing.currentIndexChanged):  # fmt: skip
            signal.connect(self._changed)

    # The job.

    def job(self) -> Job:
        """What the controls say. What equals the model's own default is left to the model."""
        model = self.current
        seed = self.seed.text()
        width, height = self._sides()
        image = self._image if model.takes("image") else None
        advanced = self.advanced.fields(model, *self._masked)
        masking = self.masking.fields(*(image is not None and model.takes(what) for what in ("mask", "extend")))
        return self._rest.replace(
            prompt=self.prompt.toPlainText().strip() if model.takes("prompt") else "",
            negative=(self.negative.toPlainText().strip() or None) if model.takes("negative") else None,
            model=None if model.name in ("", "scenes") else model.name,
            seed=min(int(seed), 2**64 - 1) if seed else None,
            steps=None if round(self.steps.value) == model.steps else round(self.steps.value),
            guidance=None if not model.guided or self.guidance.value == model.guidance else self.guidance.value,
            sampler=self.sampler.value or None,
            spacing=self.spacing.currentData() or None,
            width=width, height=height, count=self.count.value(),
            image=image, strength=self.strength.value if image is not None and model.takes("strength") else None,
            **masking, **advanced, loras=self.loras.texts(), embeddings=self._embeddings(),
        )  # fmt: skip

    def _embeddings(self) -> tuple[str, ...]:
        """Those of a restored job that are not registered: the worker finds the others by their words."""
        return tuple(name for name in self._rest.embeddings if self.loras.wardrobe.get(name) is None)

    def show_job(self, job: Job) -> None:
        """Bring all controls to a job, at once."""
        self._quiet = True
        try:
            self._rest = job
            name = job.model or "scenes"
            at = self.model.findData(name)
            if at < 0 and job.model is not None:
                at = self._add_unknown(job.model)
            if at >= 0:
                self.model.setCurrentIndex(at)
            model = self.current
            self.prompt.replace(job.prompt)
            self.negative.replace(job.negative or "")
            self.seed.setText("" if job.seed is None else str(job.seed))
            self.count.setValue(job.count)
            self.steps.set(model.steps if job.steps is None else job.steps)
            self.guidance.set(model.guidance if job.guidance is None else job.guidance)
            self.advanced.show_job(job)
            self.sampler.choose(job.sampler or "")
            self.spacing.setCurrentIndex(max(0, self.spacing.findData(job.spacing or "")))
            self.set_image(job.image if job.image and Path(job.image).is_absolute() else None)
            self.masking.show_job(job if self._image is not None else Job())
            self.loras.show_texts(job.loras)
            if job.strength is not None:
                self.strength.set(job.strength)
            self._show_size(job.width, job.height)
            self._show_start()
        finally:
            self._quiet = False
        self._changed()

    def restore(self, job: Job, what: str = "Restore settings") -> None:
        """Bring the controls to a job, as one step that can be undone."""
        if job != self.job():
            self._undo.push(Restore(self, job, what))

    def make(self, front: bool) -> None:
        """Ask for the pictures, if they can be made."""
        if self.button.isEnabled():
            job = self.job()
            if not (self._masked[0] and self.masking.unkept):  # that was said; without it, all would be painted over
                self.generate.emit(job, front)

    # Models.

    @property
    def models(self) -> list[Model]:
        """All that the list has."""
        return self._models

    @property
    def current(self) -> Model:
        """The chosen model."""
        at = self.model.currentIndex()
        return self._models[at] if 0 <= at < len(self._models) else Model("")

    def set_models(self, models: list[Model]) -> None:
        """Another list; what was chosen stays chosen."""
        chosen = self.model.currentData()
        job = self.job() if chosen is not None else None
        self.model.blockSignals(True)
        self.model.clear()
        self._models = list(models)
        for at, model in enumerate(models):
            self.model.addItem(model.title, model.name)
            self.model.setItemData(at, model.about, Qt.ItemDataRole.ToolTipRole)
            if not model.usable:
                self.model.model().item(at).setEnabled(False)
        self.model.setCurrentIndex(max(0, self.model.findData(chosen)) if models else -1)
        self.model.blockSignals(False)
        if job is not None and self.model.currentData() == chosen:
            self._quiet = True
            self._model_changed()  # what is known of it now may be more
            self._quiet = False
            self.show_job(job)
        else:
            self._model_changed()

    def _add_unknown(self, name: str) -> int:
        """A model that a restored job names and this machine has not: shown, so that nothing changes silently."""
        self._models.append(Model(name, state="not there"))
        self.model.blockSignals(True)
        self.model.addItem(name.rpartition("/")[2], name)
        self.model.blockSignals(False)
        return self.model.count() - 1

    def set_adapters(self, wardrobe: Wardrobe) -> None:
        """The LoRAs and textual inversions that the worker has, and which fit the model."""
        self.loras.show_wardrobe(wardrobe)
        self._propose()
        self._changed()

    def set_wildcards(self, names: list[str]) -> None:
        """The wildcards that the worker has."""
        self._wildcards = names
        self._propose()

    def _propose(self) -> None:
        """What the prompts may call by name; a LoRA is no thing to leave out."""
        wardrobe = self.loras.wardrobe
        loras = [Name(one.title, f"<lora:{one.name}:{1.0 if one.weight is None else one.weight:g}>")
                 for one in wardrobe.loras]  # fmt: skip
        words = [one.words[0] if one.words else one.title for one in wardrobe.inversions]
        self.prompt.names = Names(loras, words, self._wildcards)
        self.negative.names = Names((), words, self._wildcards)

    def set_samplers(self, samplers: list[str], spacings: list[str]) -> None:
        """What the worker has."""
        names = [("", NAMES[""]), *((name, NAMES.get(name, name)) for name in samplers)]
        self.sampler.fill([pair for pair in names if pair[0] in FEW], [pair for pair in names if pair[0] not in FEW],
                          "All samplers")  # fmt: skip
        chosen = self.spacing.currentData() or ""
        self.spacing.blockSignals(True)
        self.spacing.clear()
        for name in ["", *(one for one in spacings if one != "model")]:
            self.spacing.addItem(SPACINGS.get(name, name), name)
        self.spacing.setCurrentIndex(max(0, self.spacing.findData(chosen)))
        self.spacing.blockSignals(False)

    def _model_changed(self) -> None:
        model = self.current
        self.model.setToolTip(model.about)
        if not self._quiet:
            self.steps.set(model.steps)
            self.guidance.set(model.guidance)
        self.prompt.setVisible(model.takes("prompt"))
        self.negative.setVisible(model.takes("negative"))
        self.guidance.setVisible(model.guided)
        self._guidance_label.setVisible(model.guided)
        self.well.setVisible(model.takes("image"))
        self._show_start()
        self._fill_sizes()
        self._changed()

    # Sizes.

    def _fill_sizes(self) -> None:
        before = self.shape.currentText().partition("  ")[0]
        self.shape.blockSignals(True)
        self.shape.clear()
        if self._image is not None:
            self.shape.addItem("Like the picture", None)
        for name, width, height in self.current.sizes():
            self.shape.addItem(f"{name}  {width} × {height}", (width, height))
        self.shape.addItem("Custom…", "custom")
        names = [self.shape.itemText(i).partition("  ")[0] for i in range(self.shape.count())]
        self.shape.setCurrentIndex(names.index(before) if before in names else 0)
        self.shape.blockSignals(False)
        self._size_changed()

    def _show_size(self, width: int | None, height: int | None) -> None:
        model = self.current
        wanted = (width or model.width, height or model.height)
        if width is None and height is None and self._image is not None:
            self.shape.setCurrentIndex(0)
            return
        for at in range(self.shape.count()):
            if self.shape.itemData(at) is not None and tuple(self.shape.itemData(at)) == wanted:
                self.shape.setCurrentIndex(at)
                return
        self.width_box.setValue(wanted[0])
        self.height_box.setValue(wanted[1])
        self.shape.setCurrentIndex(self.shape.count() - 1)

    def _size_changed(self) -> None:
        chosen = self.shape.currentData()
        if isinstance(chosen, tuple | list):
            for box, side in zip((self.width_box, self.height_box), chosen, strict=True):
                box.blockSignals(True)
                box.setValue(side)
                box.blockSignals(False)
        self._custom.setVisible(chosen == "custom")
        self._changed()

    def _sides(self) -> tuple[int | None, int | None]:
        if self.shape.currentData() is None:
            return None, None
        if self._grows:
            return None, None
        return max(64, self.width_box.value() // 8 * 8), max(64, self.height_box.value() // 8 * 8)

    def _swap(self) -> None:
        width, height = self.width_box.value(), self.height_box.value()
        self.width_box.setValue(height)
        self.height_box.setValue(width)

    # The start picture.

    def set_image(self, path: str | None) -> None:
        """Start from a picture, or from none."""
        self._image = path
        pixmap = None
        if path is not None:
            reader = QImageReader(path)
            reader.setAutoTransform(True)
            size = reader.size()
            if size.isValid() and max(size.width(), size.height()) > 480:
                reader.setScaledSize(size.scaled(480, 480, Qt.AspectRatioMode.KeepAspectRatio))
            pixmap = QPixmap.fromImage(reader.read())
        if path is None or not self._quiet:
            self.masking.clear()
        self.well.show_picture(pixmap)
        self.well.setAccessibleDescription("None" if path is None else Path(path).name)
        self._show_start()
        if (self.shape.itemData(0) is None) != (path is not None):
            self._fill_sizes()
            if path is not None:
                self.shape.setCurrentIndex(0)
        self._changed()

    def _show_start(self) -> None:
        """What goes with a start picture, where there is one and the model has a use for it."""
        model, there = self.current, self._image is not None
        self._strength_row.setVisible(there and model.takes("strength"))
        self.masking.setVisible(there and model.takes("mask"))
        self.shape.setEnabled(not self._grows)
        self.advanced.follow(model, *self._masked)

    @property
    def _masked(self) -> tuple[bool, bool]:
        """Whether a part of a picture is painted, and whether the whole of it is looked at all the same."""
        masking, model = self.masking, self.current
        masked = self._image is not None and model.takes("mask") and masking.masked
        return masked, not masked or not (masking.only or masking.extend is not None)

    def _advanced_changed(self) -> None:
        self.advanced.follow(self.current, *self._masked)
        self._changed()

    @property
    def _grows(self) -> bool:
        """Whether the picture is as large as the start picture and what is painted beyond it."""
        masking, model = self.masking, self.current
        there = self._image is not None and masking.extend is not None
        return there and not masking.only and model.takes("extend")

    def usual_strength(self, mask: bool, extend: bool) -> float:
        """How much of a start picture is changed where nobody says."""
        return STRENGTHS[2 if extend or self.current.task == "inpaint" else int(mask)]

    def _mask_changed(self) -> None:
        """Another strength is usual now; one that somebody chose stays."""
        if self.strength.value in STRENGTHS:
            self.strength.set(self.usual_strength(self.masking.masked, self.masking.extend is not None))
        if self._grows:
            self.shape.setCurrentIndex(0)
        self._show_start()
        self._changed()

    @property
    def image(self) -> str | None:
        """The start picture's file."""
        return self._image

    # What is said about the job.

    def _changed(self) -> None:
        if not self._quiet:
            self._ask.start()
            self._allow()
            self.changed.emit()

    def _pick_sampler(self, name: str) -> None:
        self.sampler.choose(name)
        self._changed()

    def _allow(self) -> None:
        """The button can be pressed, or says why not."""
        model = self.current
        why = ""
        if not model.name:
            why = self._without if not self._models else "Choose a model first"
        elif not model.usable:
            why = "This model is not here now"
        elif model.takes("prompt") and not self.prompt.toPlainText().strip():
            why = "Describe a picture first"
        else:
            why = model.lacks(self._image is not None, self.masking.masked)
        self._why_not = why
        self.button.setEnabled(not why)
        self.button.setText(why or ("Add to queue" if self._running else "Generate"))
        self.button.setAccessibleName(self.button.text())

    def set_running(self, running: bool) -> None:
        """Whether another picture is made now: then this one is added to the queue."""
        self._running = running
        self._allow()

    def without_models(self, why: str) -> None:
        """What the button says while there is no model."""
        self._without = why
        self._allow()

    def show_estimate(
        self, seconds: float | None, memory: int | None, available: int | None, whole: int | None
    ) -> None:
        """The line below the button; bytes."""
        parts = ["Not timed yet" if seconds is None else f"About {duration(seconds)}"]
        level = ""
        if memory:
            room = available or whole
            parts.append(f"{memory / 1e9:.1f} of {room / 1e9:.0f} GB" if room else f"{memory / 1e9:.1f} GB")
            if room and memory > room:
                level, parts = "red", [*parts, "will use swap"]
            elif room and memory > SAFE * room:
                level = "amber"
        restyle(self.estimate, level=level, quiet=not level)
        self.estimate.say(" · ".join(parts))

    def show_tokens(self, prompt: int, negative: int, limit: int) -> None:
        """The counter, where it has something to say."""
        over = [f"{what}{count} of {limit}" for what, count in
                (("", prompt), ("Left out: ", negative)) if limit and count > limit]  # fmt: skip
        near = limit and prompt > 0.75 * limit
        self.counter.setText(f"{over[0]} · too long for this model" if over else f"{prompt} of {limit}" if near else "")
        restyle(self.counter, level="amber" if over else "", quiet=not over)
        self.counter.setVisible(bool(self.counter.text()))

    # How it looks.

    def _disclose(self, opened: bool) -> None:
        self.settings.setVisible(opened)
        self.advanced.setVisible(opened)
        self.disclosure.setIcon(theme.icon("open" if opened else "closed", theme.colours().quiet))

    def set_dark(self) -> None:
        """The signs, in the scheme that is on."""
        self._disclose(self.disclosure.isChecked())
        self.swap.setIcon(theme.icon("swap"))
        self.models_button.setIcon(theme.icon("more"))
        self.take.setIcon(theme.icon("take"))
        self.backend.setIcon(theme.icon("dot", theme.colours().quiet))
        self.well.close_button.setIcon(theme.icon("close"))
        self.masking.set_dark()
        self.advanced.set_dark()
        self.loras.set_dark()

    def show_backend(self, text: str, colour: str | None = None) -> None:
        """What makes the pictures, and how it is."""
        self.backend.setIcon(theme.icon("dot", colour or theme.colours().quiet))
        self.backend.setToolTip(text)
        self._fit(self.backend)

    def show_task(self, text: str) -> None:
        """What is downloaded or converted meanwhile, below the models."""
        self.task.setToolTip(text)
        self.task.setAccessibleDescription(text)
        self.task.setVisible(bool(text))
        self._fit(self.task)

    def _fit(self, button: QPushButton) -> None:
        text = button.toolTip()
        button.setText(button.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, self.width() - 60))

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Lines on buttons fit."""
        super().resizeEvent(event)
        for button in (self.backend, self.task):
            if button.toolTip():
                self._fit(button)

    def state(self) -> dict[str, Any]:
        """What is remembered until the next start."""
        return {"job": self.job().to_json(), "settings": self.disclosure.isChecked()}
