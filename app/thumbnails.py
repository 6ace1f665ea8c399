"""Small pictures for the gallery, made in other threads and kept as files where things can be made again."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from pathlib import Path

from PySide6.QtCore import QBuffer, QByteArray, QIODevice, QObject, QRunnable, QSize, Qt, QThreadPool, Signal
from PySide6.QtGui import QImage, QImageReader, QPixmap

from .history import Picture
from .places import digest

SIDE = 256  # pixels of the shorter side
KEPT = 150  # in memory, some 40 MB; more only where three windows full are more
BEHIND = 120  # requests; older ones are of pictures that were scrolled past, if no more are seen at once


class _Making(QRunnable):
    def __init__(self, thumbnails: Thumbnails, picture: Picture, turn: int):
        super().__init__()
        self._thumbnails, self._picture, self._turn = thumbnails, picture, turn

    def run(self) -> None:
        thumbnails = self._thumbnails
        if thumbnails.closed or self._turn < thumbnails.turn - max(BEHIND, 2 * thumbnails.seen):
            image = None
        else:
            image = _small(self._picture, thumbnails.folder)
        with contextlib.suppress(RuntimeError):  # the window went meanwhile
            thumbnails._made.emit(self._picture.id, image)


class Thumbnails(QObject):
    """`of(picture)` gives a thumbnail, or None and says `arrived` when it is there. The newest wish comes first."""

    arrived = Signal(int)
    _made = Signal(int, object)

    def __init__(self, folder: Path, parent: QObject | None = None):
        super().__init__(parent)
        self.folder, self.turn, self.closed = folder, 0, False
        self.seen = 0  # how many the window shows at once
        self._ready: OrderedDict[int, QPixmap] = OrderedDict()
        self._wanted: set[int] = set()
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(max(1, min(4, (os.cpu_count() or 2) - 1)))
        self._made.connect(self._take)

    def of(self, picture: Picture) -> QPixmap | None:
        """A thumbnail, if it is there; otherwise it is asked for."""
        pixmap = self._ready.get(picture.id)
        if pixmap is not None:
            self._ready.move_to_end(picture.id)
            return pixmap
        if picture.id not in self._wanted:
            self._wanted.add(picture.id)
            self.turn += 1
            self._pool.start(_Making(self, picture, self.turn), self.turn)
        return None

    def close(self) -> None:
        """No more of them."""
        self.closed = True
        self._pool.clear()
        self._pool.waitForDone(3000)

    def _take(self, number: int, image: QImage | None) -> None:
        self._wanted.discard(number)
        if image is None or self.closed:
            return
        self._ready[number] = QPixmap.fromImage(image)
        while len(self._ready) > max(KEPT, 3 * self.seen):
            self._ready.popitem(last=False)
        self.arrived.emit(number)


def _small(picture: Picture, folder: Path) -> QImage | None:
    """The picture made small, from its kept file if that is of this very picture."""
    name = digest(f"{picture.path}\n{picture.mtime}".encode())
    kept = folder / name[:2] / f"{name}.jpg"
    image = QImage(str(kept))
    if not image.isNull():
        return image
    reader = QImageReader(picture.path)
    reader.setAutoTransform(True)
    size = reader.size()
    if not size.isValid():
        return None
    image = reader.read()
    if image.isNull():
        return None
    if min(size.width(), size.height()) > SIDE:
        image = image.scaled(QSize(SIDE, SIDE), Qt.AspectRatioMode.KeepAspectRatioByExpanding,
                             Qt.TransformationMode.SmoothTransformation)  # fmt: skip
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")  # of one name: what a crash leaves is written over
        data = QByteArray()
        buffer = QBuffer(data)
        buffer.open(QIODevice.OpenModeFlag.WriteOnly)
        image.save(buffer, "JPEG", 88)
        try:
            part.write_bytes(data.data())  # Qt would not say that the disk was full
            os.replace(part, kept)
        finally:
            part.unlink(missing_ok=True)
    return image
