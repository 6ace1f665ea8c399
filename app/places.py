"""Where the app keeps things: its database, the pictures, what can be made again.

`MLXLDM_HOME` puts all of it into one folder, as it does for the library; tests and second installations use that.
"""

from __future__ import annotations

import os
from pathlib import Path

from PySide6.QtCore import QCryptographicHash, QSettings, QStandardPaths

Standard = QStandardPaths.StandardLocation


def data() -> Path:
    """The database and the input pictures of waiting jobs."""
    return _place("app", Standard.AppDataLocation)


def cache() -> Path:
    """Thumbnails."""
    return _place("cache/thumbnails", Standard.CacheLocation, "thumbnails")


def pictures() -> Path:
    """Finished pictures, a folder a day; the settings may name another place."""
    chosen = settings().value("pictures")
    return Path(str(chosen)) if chosen else usual_pictures()


def usual_pictures() -> Path:
    """Where they are if nobody chose another place."""
    return _place("pictures", Standard.PicturesLocation, "mlxldm")


def settings() -> QSettings:
    """What the window remembers."""
    if os.environ.get("MLXLDM_HOME"):
        return QSettings(str(data() / "settings.ini"), QSettings.Format.IniFormat)
    return QSettings()


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal. By Qt, which is here already: Python's hashlib loads OpenSSL, four megabytes more."""
    return QCryptographicHash.hash(data, QCryptographicHash.Algorithm.Sha256).toHex().toStdString()


def _place(below_home: str, standard: Standard, *more: str) -> Path:
    own = os.environ.get("MLXLDM_HOME")
    path = Path(own).expanduser() / below_home if own else Path(QStandardPaths.writableLocation(standard), *more)
    path.mkdir(parents=True, exist_ok=True)
    return path
