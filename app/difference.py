"""How far two pictures are apart, in Qt's own means: the app has no arrays."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf, log10

from PySide6.QtGui import QImage, QPainter

SEEN = 40.0  # dB above which nobody sees a difference in a picture


@dataclass(frozen=True)
class Difference:
    """Of two pictures of one size, over red, green and blue."""

    psnr: float  # dB; infinite for equal ones
    largest: int  # of 255
    share: float  # of all values, how many differ

    @property
    def words(self) -> str:
        """For people."""
        if self.psnr == inf:
            return "the same picture, to the bit"
        figures = f"{self.psnr:.0f} dB, {self.share:.0%} of its values differ, by {self.largest} of 255 at most"
        return f"the same picture to the eye ({figures})" if self.psnr >= SEEN else f"another picture ({figures})"


def difference(first: QImage, second: QImage) -> Difference | None:
    """None where sizes differ, or one could not be read."""
    if first.isNull() or first.size() != second.size():
        return None
    apart = first.convertToFormat(QImage.Format.Format_RGB32)
    painter = QPainter(apart)
    painter.setCompositionMode(QPainter.CompositionMode.CompositionMode_Difference)
    painter.drawImage(0, 0, second.convertToFormat(QImage.Format.Format_RGB32))
    painter.end()
    count = Counter(bytes(apart.constBits()))  # four bytes a pixel, of which the unused one is 255
    pixels = apart.width() * apart.height()
    count[255] -= pixels
    squares = sum(value * value * often for value, often in count.items())
    largest = max(value for value, often in count.items() if often)
    psnr = inf if squares == 0 else 10 * log10(255**2 * 3 * pixels / squares)
    return Difference(psnr, largest, 1 - count[0] / (3 * pixels))
