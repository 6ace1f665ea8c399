"""The settings, each with its type and default."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject, QSettings, Signal

from .naming import PATTERN, wrong_pattern
from .remote import Place
from .ssh import is_host


@dataclass(frozen=True)
class Setting:
    """One of them: what it is before anybody changes it, and what it may be."""

    default: Any
    allowed: tuple[Any, ...] = ()


SETTINGS = {
    "pictures": Setting(""),  # a folder; empty: the system's for pictures
    "pattern": Setting(PATTERN),
    "jpeg": Setting(False),  # a JPEG beside every PNG
    "inside": Setting(True),  # the job in the file
    "memory": Setting(0, (0, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)),  # GB; 0: automatic
    "previews": Setting("every", ("every", "third", "off")),
    "keep": Setting(10, (10, -1, 0)),  # minutes a model stays in memory; -1: always
    "awake": Setting(True),
    "notify": Setting(True),
    "appearance": Setting("system", ("system", "light", "dark")),
    "hosts": Setting([]),
    "place": Setting("auto"),  # `Place.key`
}


class Settings(QObject):
    """Typed access to a QSettings: what it holds that makes no sense counts as the default."""

    changed = Signal(str, object)  # a name and its new value

    def __init__(self, store: QSettings, parent: QObject | None = None):
        super().__init__(parent)
        self.store = store

    def get(self, name: str) -> Any:
        """The value of a setting, of the type of its default."""
        setting = SETTINGS[name]
        if not self.store.contains(name):
            return list(setting.default) if isinstance(setting.default, list) else setting.default
        try:
            return _checked(name, _read(self.store.value(name), setting.default))
        except (ValueError, TypeError):
            return list(setting.default) if isinstance(setting.default, list) else setting.default

    def set(self, name: str, value: Any) -> None:
        """Another value. Raises ValueError for one that it may not have."""
        value = _checked(name, value)
        if value != self.get(name):
            self.store.setValue(name, json.dumps(value) if isinstance(value, list) else value)
            self.changed.emit(name, value)

    def reset(self) -> None:
        """All as at first, but for the other machines and the choice of one: those are nobody's defaults."""
        for name, setting in SETTINGS.items():
            if name in ("hosts", "place"):
                continue
            before = self.get(name)
            self.store.remove(name)
            if before != setting.default:
                self.changed.emit(name, self.get(name))


def _read(value: Any, default: Any) -> Any:
    """What an ini file gives back as text, as the default's type."""
    if isinstance(default, bool):
        if str(value).lower() not in ("true", "false"):
            raise ValueError
        return str(value).lower() == "true"
    if isinstance(default, int):
        return int(value)
    if isinstance(default, list):
        return json.loads(str(value))
    return str(value)


def _checked(name: str, value: Any) -> Any:
    setting = SETTINGS[name]
    if type(value) is not type(setting.default) or (setting.allowed and value not in setting.allowed):
        raise ValueError(f"{name} cannot be {value!r}")
    if name == "pattern":
        why = wrong_pattern(value)
        if why:
            raise ValueError(why)
    if name == "hosts":
        value = list(dict.fromkeys(host for host in value if isinstance(host, str) and is_host(host)))
    if name == "place":
        value = Place.of(value).key
    return value
