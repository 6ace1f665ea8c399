"""What the app's mask painter costs at 1024 x 1024: python benchmarks/app_mask.py

A piece of a stroke should take 1 ms or less and an undo 5 ms or less, so that the brush never lags behind the hand.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
from PySide6.QtCore import QPointF, QRect, QSize
from PySide6.QtGui import QColor, QImage
from PySide6.QtWidgets import QApplication

from mlxldm_app.mask import Mask, MaskPainter

SIDE, ROUNDS = 1024, 60


def milliseconds(run: Callable[[int], object]) -> tuple[float, float]:
    """The median and the longest of many runs."""
    times = []
    for i in range(ROUNDS):
        start = time.perf_counter()
        run(i)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), max(times)


def say(what: str, limit: float | None, run: Callable[[int], object]) -> bool:
    median, longest = milliseconds(run)
    print(f"{what:46} {median:7.2f} ms   longest {longest:7.2f} ms" + (f"   limit {limit:g} ms" if limit else ""))
    return limit is None or median <= limit


def main() -> int:
    app = QApplication([])
    mask, good = Mask(QSize(SIDE, SIDE)), True

    def piece(width: float) -> Callable[[int], object]:
        return lambda i: mask.line(QPointF(100 + 12 * i, 500), QPointF(112 + 12 * i, 503), width)

    for width in (20, SIDE / 12, 400):
        mask.begin()
        good &= say(f"a piece of a stroke, 12 px, brush of {width:.0f} px", 1.0, piece(width))
        mask.end()

    def whole(i: int) -> None:
        mask.begin()
        mask.line(QPointF(30, 17 * i), QPointF(430, 17 * i + 300), SIDE / 12)
        mask.end()

    say("a stroke of 500 px, with its step of the history", None, whole)
    good &= say("undo of such a stroke", 5.0, lambda i: mask.undo())
    good &= say("redo", 5.0, lambda i: mask.redo())
    say("invert", None, lambda i: mask.invert())
    good &= say("undo of an inversion", 5.0, lambda i: mask.undo())
    say("how much is covered", None, lambda i: (mask._forget(), mask.covered()))
    say("PNG", None, lambda i: mask.png())

    painter = MaskPainter()
    painter.resize(1000, 800)
    picture = QImage(SIDE, SIDE, QImage.Format.Format_RGB32)
    picture.fill(QColor(120, 130, 140))
    painter.show_picture(picture, "")
    painter.show()
    painter.layer.load(mask.png())
    app.processEvents()
    say("repaint of a piece of a stroke", None, lambda i: painter.repaint(QRect(200 + i, 300, 110, 110)))
    say("repaint of everything, 1000 x 800", None, lambda i: painter.repaint())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
