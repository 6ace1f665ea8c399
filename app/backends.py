"""The popover under the backend line: what this machine has, other machines over ssh; exactly one is active."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QPoint, Qt, Signal
from PySide6.QtWidgets import (
    QButtonGroup,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QRadioButton,
    QVBoxLayout,
    QWidget,
)

from .probe import Found, Probe, count, memory
from .remote import Place
from .ssh import is_host
from .widgets import Elided, restyle

WIDTH = 440


def places(found: Found) -> list[tuple[Place, str, str]]:
    """The places of this machine: where, title, facts. What is taken by itself comes first and is automatic."""
    rows: list[tuple[Place, str, str]] = []
    for backend in found.backends:
        devices = [str(device) for device in backend.get("devices") or () if backend.get("ready")]
        for device in devices:
            auto = found.auto or {}
            own = auto.get("device") or devices[0]
            taken = auto.get("backend") == backend.get("name") and own == device
            place = Place() if taken else Place(str(backend["name"]), device)
            title = {"mlx": "MLX", "torch": "PyTorch"}.get(str(backend["name"]), str(backend["name"]))
            if device == "cpu":
                title += ", CPU (slow)"
            elif device.startswith("cuda"):
                title += f", {device.upper()}"
            elif backend["name"] == "torch":
                title += f", {device}"
            first = device == devices[0]
            facts = [backend.get("device_name") if first else "", memory(backend.get("memory")) if first else "",
                     f"version {backend.get('version')}", count(found.models)]  # fmt: skip
            rows.append((place, title, " · ".join(str(fact) for fact in facts if fact)))
    return sorted(rows, key=lambda row: row[0].key != "auto")


class Row(QWidget):
    """One place: a radio button, and below it what is there."""

    forgotten = Signal(object)

    def __init__(self, place: Place, title: str, facts: str = ""):
        super().__init__()
        self.place = place
        self.radio = QRadioButton(title)
        self.radio.setAccessibleDescription(facts)
        self.facts = Elided(facts)
        self.facts.setProperty("quiet", True)
        top = QHBoxLayout()
        top.addWidget(self.radio, 1)
        if place.host:
            forget = QPushButton("Forget")
            forget.setProperty("flat", True)
            forget.setAccessibleName(f"Forget {place.host}")
            forget.clicked.connect(lambda _=False: self.forgotten.emit(place))
            top.addWidget(forget)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(1)
        layout.addLayout(top)
        below = QHBoxLayout()
        below.setContentsMargins(24, 0, 0, 0)
        below.addWidget(self.facts)
        layout.addLayout(below)

    def tell(self, facts: str) -> None:
        """What is there."""
        self.facts.say(facts)
        self.radio.setAccessibleDescription(facts)


class BackendPopover(QFrame):
    """`chosen` says what was picked, `hosts_changed` which machines are remembered."""

    chosen = Signal(object)  # a Place
    hosts_changed = Signal(list)

    def __init__(self, current: Place, hosts: list[str], parent: QWidget | None = None, version: str | None = None,
                 heading: str = "Where pictures are made"):  # fmt: skip
        super().__init__(parent, Qt.WindowType.Popup)
        self.setObjectName("popover")
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setFixedWidth(WIDTH)
        self.current, self.hosts = current, list(hosts)
        self._version, self._busy = version, False
        self._probe: Probe | None = None  # of this machine
        self._test: Probe | None = None
        self._here: Found | None = None
        self._seen: dict[str, str] = {}  # what hosts said, by host
        self._below: QWidget | None = None  # what it stands above, also while it grows
        self.rows: list[Row] = []
        self._group = QButtonGroup(self)
        self._group.buttonToggled.connect(self._toggled)

        self._layout = layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 14, 16, 14)
        layout.setSpacing(10)
        title = QLabel(heading)
        title.setProperty("heading", True)
        layout.addWidget(title)
        self._list = QVBoxLayout()
        self._list.setSpacing(8)
        layout.addLayout(self._list)
        self.note = QLabel()
        self.note.setWordWrap(True)
        self.note.setProperty("quiet", True)
        layout.addWidget(self.note)
        other = QLabel("Another machine, over ssh")
        layout.addSpacing(2)
        layout.addWidget(other)
        self.host = QLineEdit()
        self.host.setPlaceholderText("user@host")
        self.host.setAccessibleName("Another machine, as user@host")
        other.setBuddy(self.host)
        self.test_button = QPushButton("Test")
        self.test_button.setAccessibleName("Test the connection")
        self.test_button.clicked.connect(lambda _=False: self.test())
        self.host.returnPressed.connect(self.test)
        self.host.textChanged.connect(self._typed)
        field = QHBoxLayout()
        field.setSpacing(8)
        field.addWidget(self.host, 1)
        field.addWidget(self.test_button)
        layout.addLayout(field)
        self.result = QLabel()
        self.result.setWordWrap(True)
        self.result.setTextFormat(Qt.TextFormat.PlainText)
        self.result.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        layout.addWidget(self.result)
        self._typed("")
        self._fill()

    def open_at(self, widget: QWidget) -> None:
        """Show it above a widget, and ask this machine what it has."""
        self._below = widget
        self.ask()
        self._fit()
        self.show()

    def show_places(self, current: Place, hosts: list[str]) -> None:
        """What is active and what is remembered, as it is now."""
        self.current, self.hosts = current, list(hosts)
        self._fill()

    def ask(self) -> None:
        """Ask this machine once what it has."""
        if self._here is None and self._probe is None:
            self._probe = Probe(Place(), self, self._version)
            self._probe.found.connect(self.show_here)
            self._probe.failed.connect(self._not_here)
            self._probe.start()
            self._fill()

    def set_busy(self, busy: bool) -> None:
        """Whether a picture is being made, which a change waits for."""
        self._busy = busy
        self._say()

    def show_here(self, found: Found) -> None:
        """What this machine has."""
        self._here, self._probe = found, None
        self._fill()

    def test(self) -> None:
        """Ask the machine in the field what it has; one that answers is remembered."""
        host = self.host.text().strip()
        if not is_host(host) or self._test is not None:
            return
        self._show_result(f"Asking ‘{host.rpartition('@')[2]}’…", None)
        self._test = Probe(Place(host=host), self, self._version)
        self._test.found.connect(lambda found: self._answered(host, found))
        self._test.failed.connect(self._unanswered)
        self.test_button.setEnabled(False)
        self._test.start()

    def stop(self) -> None:
        """Ask nobody any more."""
        for probe in (self._probe, self._test):
            if probe is not None:
                probe.stop()
        self._probe = self._test = None

    def forget(self, place: Place) -> None:
        """A machine that is remembered no more; if it was active, this one is."""
        self.hosts = [host for host in self.hosts if host != place.host]
        self.hosts_changed.emit(list(self.hosts))
        if self.current == place:
            self.current = Place()
            self.chosen.emit(self.current)
        self._fill()

    def _answered(self, host: str, found: Found) -> None:
        self._test = None
        self._seen[host] = found.line
        if host not in self.hosts:
            self.hosts.append(host)
            self.hosts_changed.emit(list(self.hosts))
        self.host.clear()
        self._fill()
        older = self._version and found.version != self._version
        more = f" It has mlxldm {found.version}, this machine {self._version}: pictures may differ." if older else ""
        self._show_result(f"{host.rpartition('@')[2]}: {found.line}.{more}", "amber" if older else None)

    def _unanswered(self, sentence: str) -> None:
        self._test = None
        self._typed(self.host.text())
        self._show_result(sentence, "red")

    def _not_here(self, sentence: str) -> None:
        self._probe = None
        self._fill()
        self._show_result(sentence, "red")

    def _typed(self, text: str) -> None:
        text = text.strip()
        self.test_button.setEnabled(is_host(text) and self._test is None)
        wrong = bool(text) and not is_host(text)
        says = "A machine is written as user@host: letters, digits and . _ - : @" if wrong else ""
        self._show_result(says, "red" if wrong else None)

    def _show_result(self, text: str, level: str | None) -> None:
        restyle(self.result, level=level, quiet=level is None)
        self.result.setText(text)
        self.result.setVisible(bool(text))
        self._fit()

    def _fill(self) -> None:
        had_focus = next((row.place for row in self.rows if row.radio.hasFocus()), None)
        for row in self.rows:
            self._group.removeButton(row.radio)
            self._list.removeWidget(row)
            row.hide()
            row.deleteLater()
        shown = places(self._here) if self._here else []
        if not any(place == Place() for place, *_ in shown):
            facts = "Asking what it has…" if self._probe else "It has nothing that could draw" if self._here else ""
            shown.insert(0, (Place(), "This machine", facts))
        if not self.current.host and not any(place == self.current for place, *_ in shown):
            missing = "" if self._here is None else "Not on this machine now"
            shown.append((self.current, f"{self.current.backend} {self.current.device or ''}".strip(), missing))
        hosts = list(self.hosts)
        if self.current.host and self.current.host not in hosts:
            hosts.append(self.current.host)
        shown += [(Place(host=host), host, self._seen.get(host, "Over ssh")) for host in hosts]
        self.rows = [Row(*row) for row in shown]
        self._group.blockSignals(True)
        for row in self.rows:
            row.forgotten.connect(self.forget, Qt.ConnectionType.QueuedConnection)
            self._list.addWidget(row)
            row.show()  # now, or it would have no height yet
            self._group.addButton(row.radio)
            row.radio.setChecked(row.place == self.current)
            if row.place == had_focus:
                row.radio.setFocus()
        self._group.blockSignals(False)
        self._say()

    def _toggled(self, button: Any, on: bool) -> None:
        row = next((row for row in self.rows if row.radio is button), None)
        if on and row is not None and row.place != self.current:
            self.current = row.place
            self.chosen.emit(row.place)
            self._say()

    def _say(self) -> None:
        waits = "A change waits for the picture that is being made. " if self._busy else ""
        self.note.setText(f"{waits}Every picture records what made it.")
        self._fit()

    def _fit(self) -> None:
        self._layout.activate()
        self.setFixedHeight(max(self._layout.totalHeightForWidth(WIDTH), 1))
        if self._below is not None:
            self.move(self._below.mapToGlobal(QPoint(0, -self.height() - 6)))
