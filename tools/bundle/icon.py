"""Draws the app's icon, `mlxldm.icns` beside this file: a lighthouse at dusk. Needs Pillow."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIDE, SCALE = 1024, 2  # drawn larger, for smooth edges
SKY = ((0, (27, 32, 74)), (0.55, (214, 97, 92)), (0.75, (255, 190, 110)))


def sky(side: int) -> Image.Image:
    """From night above to the last light at the horizon."""
    column = Image.new("RGB", (1, side))
    for y in range(side):
        at = min(y / side, SKY[-1][0])
        low, high = next(pair for pair in zip(SKY, SKY[1:], strict=False) if at <= pair[1][0])
        part = (at - low[0]) / (high[0] - low[0])
        column.putpixel((0, y), tuple(round(a + part * (b - a)) for a, b in zip(low[1], high[1], strict=True)))
    return column.resize((side, side))


def draw() -> Image.Image:
    """The icon, with the margins and corners that macOS' own have."""
    side = SIDE * SCALE

    def at(*places: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * side, y * side) for x, y in places]

    picture = sky(side).convert("RGBA")
    beam = Image.new("RGBA", (side, side), (255, 236, 180, 0))
    ImageDraw.Draw(beam).polygon(at((0.56, 0.345), (0.0, 0.17), (0.0, 0.42)), fill=(255, 236, 180, 150))
    picture.alpha_composite(beam.filter(ImageFilter.GaussianBlur(side / 60)))
    pen = ImageDraw.Draw(picture)
    pen.rectangle(at((0, 0.755), (1, 1)), fill=(32, 46, 88))
    pen.polygon(at((0.38, 0.9), (0.47, 0.76), (0.68, 0.74), (0.9, 0.84), (0.9, 0.92)), fill=(20, 24, 46))
    pen.polygon(at((0.50, 0.77), (0.53, 0.42), (0.63, 0.42), (0.66, 0.77)), fill=(246, 240, 232))
    for top, bottom in ((0.49, 0.56), (0.63, 0.70)):
        left, right = (lambda y: 0.53 - (y - 0.42) * 0.0857), (lambda y: 0.63 + (y - 0.42) * 0.0857)
        corners = ((left(top), top), (right(top), top), (right(bottom), bottom), (left(bottom), bottom))
        pen.polygon(at(*corners), fill=(196, 62, 58))
    pen.rectangle(at((0.515, 0.40), (0.645, 0.425)), fill=(20, 24, 46))
    pen.rectangle(at((0.54, 0.30), (0.62, 0.40)), fill=(255, 226, 150))
    pen.polygon(at((0.525, 0.305), (0.58, 0.235), (0.635, 0.305)), fill=(196, 62, 58))

    mask = Image.new("L", (side, side), 0)
    edge = round(side * 0.098)
    ImageDraw.Draw(mask).rounded_rectangle((edge, edge, side - edge, side - edge), round(side * 0.18), fill=255)
    picture.putalpha(mask)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw().save(Path(__file__).with_name("mlxldm.icns"))
