"""Put pictures side by side: `python sheet.py OUT.png` draws samples of the renderer."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str] | None = None, columns: int = 8) -> Image.Image:
    """One picture of many uint8 (h, w, 3) pictures, row by row, each with its caption below it."""
    h, w = images[0].shape[:2]
    gap, line = 4, 11
    rows = -(-len(images) // columns)
    per_line = max(w // 6, 1)
    texts = [[] for _ in images] if captions is None else [_wrap(c, per_line) for c in captions]
    foot = max((len(t) for t in texts), default=0) * line
    sheet = Image.new("RGB", (columns * (w + gap) + gap, rows * (h + gap + foot) + gap), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = gap + i % columns * (w + gap), gap + i // columns * (h + gap + foot)
        sheet.paste(Image.fromarray(image), (x, y))
        for j, part in enumerate(text):
            pen.text((x, y + h + j * line), part, fill=(40, 40, 40))
    return sheet


def _wrap(text: str, width: int) -> list[str]:
    lines: list[str] = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def main() -> None:
    from render import render, sample
    from words import caption

    rng = np.random.default_rng(0)
    images, texts = [], []
    for _ in range(40):
        factors = sample(rng)
        images.append(render(factors, rng, 256)[0])
        texts.append(caption(factors, rng))
    contact_sheet(images, texts).save(sys.argv[1] if len(sys.argv) > 1 else "sheet.png")


if __name__ == "__main__":
    main()
