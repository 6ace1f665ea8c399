"""The settings on one page, where every change counts at once."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QFont
from PySide6.QtWidgets import (
    QDialog,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from .naming import file_name, wrong_pattern
from .settings import SETTINGS, Settings
from .widgets import Check, Combo, Elided, restyle


class SettingsPage(QDialog):
    """All of it on one page. There is no Apply."""

    models_wanted = Signal()
    backends_wanted = Signal()

    def __init__(self, settings: Settings, pictures: str, parent: QWidget | None = None):
        """`pictures`: the folder where pictures go if none is chosen."""
        super().__init__(parent)
        self.setWindowTitle("Settings")
        self.settings, self._pictures = settings, pictures
        self._show: list[Any] = []
        grid = QGridLayout()
        grid.setHorizontalSpacing(14)
        grid.setVerticalSpacing(9)
        grid.setColumnStretch(1, 1)
        self._grid, self._row = grid, 0

        self._section("Pictures")
        self.folder = Elided()
        self.folder.setMinimumWidth(220)
        self.folder_button = _button("Choose…", self._choose)
        self.folder_button.setAccessibleName("Choose the pictures folder")
        self._line("Folder", self.folder, self.folder_button)
        self._show.append(lambda: self.folder.say(settings.get("pictures") or pictures))
        self.pattern = QLineEdit()
        self.pattern.setAccessibleName("File names")
        self.pattern.textEdited.connect(self._patterned)
        self.pattern.editingFinished.connect(self.show_all)
        self._line("File names", self.pattern)
        self.example = QLabel()
        self.example.setWordWrap(True)
        self._line("", self.example)
        self._show += [lambda: self.pattern.setText(settings.get("pattern")), self._example]
        self._check("inside", "Keep a picture’s settings in its file, so that it can be made again")
        self._check("jpeg", "Write a JPEG beside every PNG")

        self._section("Drawing")
        limits = [f"At most {one} GB" for one in SETTINGS["memory"].allowed[1:]]
        self._choice("memory", "Memory", ["Automatic", *limits])
        self._choice("previews", "Previews", ["Every step", "Every third step", "None"])
        self._choice("keep", "Keep the model", ["10 minutes after the last picture", "Always", "Never"])
        self._line("Models", QLabel("Where checkpoints lie"), _button("Models…", self.models_wanted.emit))
        self.hosts = Elided()
        self._line("Other machines", self.hosts, _button("Machines…", self.backends_wanted.emit))
        self._show.append(lambda: self.hosts.say(", ".join(settings.get("hosts")) or "None"))

        self._section("This app")
        self._choice("appearance", "Appearance", ["As the system", "Light", "Dark"])
        self._check("awake", "Keep the computer awake while drawing")
        self._check("notify", "Notify when pictures are done and the window is behind")

        layout = QVBoxLayout(self)
        layout.setContentsMargins(24, 20, 24, 18)
        layout.setSpacing(18)
        layout.addLayout(grid)
        layout.addStretch(1)
        bottom = QHBoxLayout()
        self.reset_button = _button("Reset", self._reset)
        self.done_button = _button("Done", self.accept)
        bottom.addWidget(self.reset_button)
        bottom.addStretch(1)
        bottom.addWidget(self.done_button)
        layout.addLayout(bottom)
        self.setMinimumWidth(620)
        settings.changed.connect(lambda *_: self.show_all())
        self.show_all()

    def show_all(self) -> None:
        """The values as they are."""
        for show in self._show:
            show()

    def _section(self, words: str) -> None:
        label = QLabel(words)
        font = label.font()
        font.setWeight(QFont.Weight.DemiBold)
        label.setFont(font)
        if self._row:
            self._grid.setRowMinimumHeight(self._row, 12)
            self._row += 1
        self._grid.addWidget(label, self._row, 0, 1, 3)
        self._row += 1

    def _line(self, words: str, widget: QWidget, button: QWidget | None = None) -> None:
        label = QLabel(words)
        label.setProperty("quiet", True)
        label.setBuddy(widget)
        self._grid.addWidget(label, self._row, 0, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self._grid.addWidget(widget, self._row, 1, 1, 1 if button else 2)
        if button:
            self._grid.addWidget(button, self._row, 2)
        self._row += 1

    def _check(self, name: str, words: str) -> None:
        box = Check(words)
        setattr(self, name, box)
        box.toggled.connect(lambda on: self.settings.set(name, on))
        self._show.append(lambda: box.setChecked(self.settings.get(name)))
        self._grid.addWidget(box, self._row, 1, 1, 2)
        self._row += 1

    def _choice(self, name: str, words: str, choices: list[str]) -> None:
        combo = Combo()
        combo.setAccessibleName(words)
        combo.addItems(choices)
        setattr(self, name, combo)
        values = SETTINGS[name].allowed
        combo.activated.connect(lambda at: self.settings.set(name, values[at]))
        self._show.append(lambda: combo.setCurrentIndex(values.index(self.settings.get(name))))
        self._line(words, combo)

    def _choose(self) -> None:
        before = self.settings.get("pictures") or self._pictures
        chosen = QFileDialog.getExistingDirectory(self, "Pictures Folder", before)
        if chosen:
            self.settings.set("pictures", chosen)

    def _patterned(self, text: str) -> None:
        if not wrong_pattern(text):
            at = self.pattern.cursorPosition()
            self.settings.set("pattern", text)
            self.pattern.setCursorPosition(at)
        self._example()

    def _example(self) -> None:
        text = self.pattern.text()
        why = wrong_pattern(text)
        restyle(self.example, level="red" if why else None, quiet=not why)
        name = "" if why else file_name(text, datetime(2026, 11, 20), 7, "A lighthouse at dusk", 42, "scenes")
        self.example.setText(why or f"{name}.png")

    def _reset(self) -> None:
        self.settings.reset()
        self.show_all()


def _button(words: str, do: Any) -> QPushButton:
    button = QPushButton(words)
    button.setAutoDefault(False)
    button.clicked.connect(lambda _=False: do())
    return button
