"""Draw small illustrated landscapes from a few named factors.

`sample(rng)` chooses the factors of one picture, `render(factors, rng, size)` draws it. Skies, glows and ridges are
smooth NumPy gradients with analytic edges; objects, trees and clouds are sprites drawn once per process by Pillow at
four times the size. All lengths are shares of the picture's side, so 128 and 256 pixels show the same scene.
The same generator state gives the same picture.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Factors = dict[str, Any]
Color = tuple[float, float, float]

FACTORS: dict[str, tuple[str, ...]] = {
    "terrain": ("sea", "lake", "mountains", "hills", "desert"),
    "time": ("dawn", "day", "dusk", "night"),
    "sky": ("clear", "cloudy"),
    "season": ("spring", "summer", "autumn", "winter"),
    "object": ("house", "boat", "balloon", "tent", "windmill", "lighthouse", "none"),
    "color": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white"),
    "position": ("left", "center", "right"),
    "trees": ("none", "pine", "leafy", "palm", "cactus"),
    "light": ("none", "sun", "moon", "crescent"),
}

# Terrains of an object, as weights in FACTORS["terrain"]'s order. Boats take the water, so that the other
# objects stand a little more often on land: every terrain comes out near one fifth.
TERRAINS: dict[str, tuple[float, ...]] = {
    "boat": (0.5, 0.5, 0, 0, 0),
    "lighthouse": (0.24, 0.18, 0.19, 0.20, 0.19),
    "house": (0.12, 0.13, 0.25, 0.25, 0.25),
    "balloon": (0.13, 0.13, 0.25, 0.24, 0.25),
    "tent": (0.12, 0.13, 0.25, 0.25, 0.25),
    "windmill": (0.13, 0.13, 0.24, 0.26, 0.24),
    "none": (0.2, 0.2, 0.2, 0.2, 0.2),
}
TREES: dict[str, tuple[str, ...]] = {
    "sea": ("none", "palm", "pine", "leafy"),
    "lake": ("none", "pine", "leafy"),
    "mountains": ("none", "pine", "leafy"),
    "hills": ("none", "pine", "leafy"),
    "desert": ("none", "cactus", "palm"),
}
LIGHTS: dict[str, tuple[str, ...]] = {
    "dawn": ("none", "sun"),
    "day": ("none", "sun"),
    "dusk": ("none", "sun"),
    "night": ("none", "moon", "crescent"),
}
COLUMN = {"left": 0.22, "center": 0.5, "right": 0.78}


def _pick(rng: np.random.Generator, values: tuple[str, ...], weights: tuple[float, ...] | None = None) -> str:
    if weights is None:
        return values[int(rng.integers(len(values)))]
    edges = np.cumsum(weights)
    return values[min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(values) - 1)]


def sample(rng: np.random.Generator) -> Factors:
    """Factors of one picture that fit together: `{name: value}` for every name of FACTORS.

    `color` and `position` are None when there is no object.
    """
    names = FACTORS["object"]
    what = _pick(rng, names, tuple(0.08 if n == "none" else 0.92 / 6 for n in names))
    terrain = _pick(rng, FACTORS["terrain"], TERRAINS[what])
    time = _pick(rng, FACTORS["time"])
    trees = TREES[terrain]
    lights = LIGHTS[time]
    return {
        "terrain": terrain,
        "time": time,
        "sky": _pick(rng, FACTORS["sky"]),
        "season": _pick(rng, FACTORS["season"]),
        "object": what,
        "color": None if what == "none" else _pick(rng, FACTORS["color"]),
        "position": None if what == "none" else _pick(rng, FACTORS["position"]),
        "trees": _pick(rng, trees, (0.3,) + (0.7 / (len(trees) - 1),) * (len(trees) - 1)),
        "light": _pick(rng, lights, (0.3,) + (0.7 / (len(lights) - 1),) * (len(lights) - 1)),
    }


def valid(factors: Factors) -> bool:
    """True where `sample` could have drawn these factors."""
    what, terrain, time = factors["object"], factors["terrain"], factors["time"]
    return (
        TERRAINS[what][FACTORS["terrain"].index(terrain)] > 0
        and factors["trees"] in TREES[terrain]
        and factors["light"] in LIGHTS[time]
        and (factors["color"] is None) == (what == "none")
        and (factors["position"] is None) == (what == "none")
    )


# ---------------------------------------------------------------------------------------------------- colours


def _rgb(text: str) -> Color:
    return (int(text[0:2], 16) / 255, int(text[2:4], 16) / 255, int(text[4:6], 16) / 255)


def _mix(a: Color, b: Color, t: float) -> Color:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def _mul(a: Color, b: Color) -> Color:
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


def _dim(a: Color, k: float) -> Color:
    return (a[0] * k, a[1] * k, a[2] * k)


PAINT: dict[str, Color] = {
    "red": _rgb("d81e2c"),
    "orange": _rgb("fb8112"),
    "yellow": _rgb("ffdc1e"),
    "green": _rgb("1fa648"),
    "blue": _rgb("1c56e0"),
    "purple": _rgb("8428b8"),
    "pink": _rgb("ff7ab8"),
    "white": _rgb("f8f8f8"),
}
# per time: sky from the zenith to the horizon (some variants), tint of the scene, tint of the object, sun or moon,
# clouds' light and shade, haze of the far ridges
SKIES: dict[str, tuple[tuple[Color, ...], ...]] = {
    "dawn": (
        (_rgb("8fb4e3"), _rgb("d9c4e6"), _rgb("fbcfd3"), _rgb("ffe7c4")),
        (_rgb("a3b5e6"), _rgb("e3bfe0"), _rgb("ffc9cf"), _rgb("ffe2cf")),
        (_rgb("84bde0"), _rgb("bcd3e8"), _rgb("f9d6d8"), _rgb("fff0c9")),
    ),
    "day": (
        (_rgb("2f80e0"), _rgb("5aa7f0"), _rgb("98cdf8"), _rgb("d5eefc")),
        (_rgb("3a8ee6"), _rgb("6bb8f2"), _rgb("a8dcf7"), _rgb("dff5fa")),
        (_rgb("2474d4"), _rgb("4c9aea"), _rgb("8cc4f5"), _rgb("c8e6fb")),
    ),
    "dusk": (
        (_rgb("6a3a86"), _rgb("c04e76"), _rgb("f3744e"), _rgb("ffb54a")),
        (_rgb("7d3f7c"), _rgb("d75a62"), _rgb("f98345"), _rgb("ffc25a")),
        (_rgb("54397f"), _rgb("a9487c"), _rgb("e9665a"), _rgb("ffa65c")),
    ),
    "night": (
        (_rgb("0b1236"), _rgb("131d4c"), _rgb("1e2b62"), _rgb("2f3f7c")),
        (_rgb("0c1030"), _rgb("1a1b4a"), _rgb("2a2862"), _rgb("41397c")),
        (_rgb("081a35"), _rgb("0f2a4b"), _rgb("1a3d62"), _rgb("2c5578")),
    ),
}
TINT: dict[str, Color] = {
    "dawn": (1.0, 0.91, 0.91),
    "day": (1, 1, 1),
    "dusk": (0.86, 0.68, 0.62),
    "night": (0.37, 0.43, 0.64),
}
LAMP: dict[str, Color] = {
    "dawn": (1.0, 0.97, 0.97),
    "day": (1, 1, 1),
    "dusk": (0.94, 0.87, 0.86),
    "night": (0.88, 0.87, 0.92),
}
SHINE: dict[str, Color] = {
    "dawn": _rgb("fff0b0"),
    "day": _rgb("fff2a8"),
    "dusk": _rgb("ffe08a"),
    "night": _rgb("f6f1d8"),
}
CLOUD: dict[str, tuple[Color, Color]] = {
    "dawn": (_rgb("fff6f2"), _rgb("dcb6cf")),
    "day": (_rgb("ffffff"), _rgb("c3d3e4")),
    "dusk": (_rgb("ffc59a"), _rgb("94506f")),
    "night": (_rgb("66719c"), _rgb("2d3763")),
}
GROUND: dict[str, Color] = {
    "spring": _rgb("a3d65c"),
    "summer": _rgb("3f9440"),
    "autumn": _rgb("d08a2e"),
    "winter": _rgb("f0f4fb"),
}
SAND = _rgb("eec98a")
DESERT: dict[str, Color] = {
    "spring": _rgb("b4d670"),
    "summer": _rgb("f0cd8c"),
    "autumn": _rgb("b5602f"),
    "winter": _rgb("f0f4fb"),
}
ROCK = _rgb("76809a")
WATER: dict[str, Color] = {
    "dawn": _rgb("8fb3d6"),
    "day": _rgb("2a86cf"),
    "dusk": _rgb("7a4a80"),
    "night": _rgb("14234f"),
}


# ---------------------------------------------------------------------------------------------------- sprites


class _Pen:
    """A Pillow canvas four times too large, in units of the sprite's width; the second layer says what glows."""

    def __init__(self, width: int, height: int) -> None:
        self.k = 4
        self.unit = width * self.k
        self.size = (width, height)
        big = (width * self.k, height * self.k)
        self.paint = Image.new("RGB", big)
        self.alpha = Image.new("L", big)
        self.shine = Image.new("L", big)
        self.pens = [ImageDraw.Draw(i) for i in (self.paint, self.alpha, self.shine)]

    def _draw(self, shape: str, where: list[tuple[float, float]], color: Color, glow: float) -> None:
        at = [(x * self.unit, y * self.unit) for x, y in where]
        fills = (tuple(int(round(255 * min(max(c, 0), 1))) for c in color), 255, int(255 * glow))
        for pen, fill in zip(self.pens, fills, strict=True):
            getattr(pen, shape)(at, fill=fill)

    def poly(self, points: list[tuple[float, float]], color: Color, glow: float = 0) -> None:
        self._draw("polygon", points, color, glow)

    def rect(self, x0: float, y0: float, x1: float, y1: float, color: Color, glow: float = 0) -> None:
        self._draw("rectangle", [(x0, y0), (x1, y1)], color, glow)

    def oval(self, x: float, y: float, rx: float, ry: float, color: Color, glow: float = 0) -> None:
        self._draw("ellipse", [(x - rx, y - ry), (x + rx, y + ry)], color, glow)

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float, color: Color, end: float = -1) -> None:
        """A straight limb with round ends, `width` wide at its start and `end` at its end."""
        end = width if end < 0 else end
        long = math.hypot(x1 - x0, y1 - y0) or 1
        nx, ny = (y0 - y1) / long / 2, (x1 - x0) / long / 2
        self.poly(
            [
                (x0 + nx * width, y0 + ny * width),
                (x1 + nx * end, y1 + ny * end),
                (x1 - nx * end, y1 - ny * end),
                (x0 - nx * width, y0 - ny * width),
            ],
            color,
        )
        self.oval(x0, y0, width / 2, width / 2, color)
        self.oval(x1, y1, end / 2, end / 2, color)

    def done(self, flip: bool = False) -> np.ndarray:
        """uint8 (height, width, 5): colour, cover, glow. Colour is spread under the edge, so that no seam shows."""
        a = np.asarray(self.alpha.resize(self.size, Image.Resampling.BOX), np.float32)[..., None]
        held = Image.new("RGB", self.paint.size)
        held.paste(self.paint, mask=self.alpha)
        rgb = np.asarray(held.resize(self.size, Image.Resampling.BOX), np.float32) * 255 / np.maximum(a, 1)
        g = np.asarray(self.shine.resize(self.size, Image.Resampling.BOX), np.float32)[..., None]
        out = np.concatenate([np.clip(rgb, 0, 255), a, g], -1)
        return np.ascontiguousarray(np.round(out[:, ::-1] if flip else out).astype(np.uint8))


WOOD = _rgb("6b4330")
SNOW = _rgb("f4f7fd")
WARM = _rgb("ffd978")
GLASS = _rgb("4a5a72")


def _house(p: _Pen, c: Color, lit: bool, snow: bool) -> None:
    roof = SNOW if snow else _rgb("5b3536")
    edge = _rgb("c9d3e4") if snow else _rgb("44282b")
    window, glow = (WARM, 1.0) if lit else (GLASS, 0.0)
    p.rect(0.70, 0.0, 0.80, 0.22, _rgb("7c4a40"))
    p.poly([(0.45, 0.42), (0.95, 0.42), (0.95, 0.87), (0.45, 0.87)], _dim(c, 0.80))
    p.poly([(0.05, 0.87), (0.05, 0.43), (0.25, 0.12), (0.45, 0.43), (0.45, 0.87)], c)
    p.poly([(0.25, 0.06), (0.82, 0.06), (1.0, 0.47), (0.49, 0.47)], roof)
    p.poly([(0.25, 0.05), (0.0, 0.46), (0.06, 0.49), (0.25, 0.17), (0.44, 0.49), (0.51, 0.47)], edge)
    p.rect(0.18, 0.60, 0.32, 0.87, _rgb("50302a"))
    for x in (0.53, 0.76):
        p.rect(x - 0.015, 0.545, x + 0.145, 0.735, _rgb("f2ead8"))
        p.rect(x, 0.56, x + 0.13, 0.72, window, glow)
    p.oval(0.25, 0.38, 0.055, 0.055, window, glow)


def _tent(p: _Pen, c: Color, lit: bool, snow: bool) -> None:
    p.poly([(0.38, 0.05), (0.74, 0.09), (1.0, 0.68), (0.66, 0.72)], _dim(c, 0.74))
    p.poly([(0.0, 0.72), (0.38, 0.05), (0.67, 0.72)], c)
    p.poly([(0.25, 0.72), (0.38, 0.26), (0.50, 0.72)], WARM if lit else _rgb("3a2622"), 1.0 if lit else 0)
    p.poly([(0.25, 0.72), (0.38, 0.26), (0.335, 0.72)], _mix(c, (1, 1, 1), 0.25))
    p.line(0.38, 0.0, 0.38, 0.07, 0.025, WOOD)
    if snow:
        p.poly([(0.33, 0.14), (0.38, 0.03), (0.75, 0.07), (0.81, 0.2), (0.68, 0.14), (0.55, 0.2), (0.43, 0.13)], SNOW)


def _envelope(width: float) -> list[tuple[float, float]]:
    right = []
    for i in range(25):
        a = math.pi * (i / 24) * 0.66
        right.append((math.sin(a) * 0.49, 0.5 - math.cos(a) * 0.49))
    right.append((0.11, 1.1))
    return [(0.5 + x * width, y) for x, y in right] + [(0.5 - x * width, y) for x, y in reversed(right)]


def _balloon(p: _Pen, c: Color, lit: bool, snow: bool) -> None:
    light = _rgb("cdd4de") if min(c) > 0.9 else _mix(c, (1, 1, 1), 0.42)
    for x in (0.40, 0.60):
        p.line(x, 1.08, 0.5 + (x - 0.5) * 0.8, 1.28, 0.018, WOOD)
    for width, color in ((1.0, _dim(c, 0.86)), (0.80, light), (0.52, c), (0.2, light)):
        p.poly(_envelope(width), color, 0.35 if lit else 0)
    p.poly([(0.39, 1.06), (0.61, 1.06), (0.585, 1.12), (0.415, 1.12)], WARM if lit else _dim(c, 0.6), 1.0 if lit else 0)
    p.poly([(0.40, 1.26), (0.60, 1.26), (0.575, 1.42), (0.425, 1.42)], _rgb("8a5a34"))
    p.rect(0.39, 1.245, 0.61, 1.285, WOOD)


def _boat(p: _Pen, c: Color, lit: bool, snow: bool) -> None:
    def sail(x: float, top: float, foot: float, color: Color) -> None:
        edge = [(x, top)]
        for i in range(1, 9):
            t = i / 8
            edge.append((x + (foot - x) * (t**0.8), top + (0.80 - top) * t))
        p.poly(edge + [(x, 0.80)], color, 0.12 if lit else 0)

    p.line(0.50, 0.02, 0.50, 0.9, 0.024, WOOD)
    sail(0.475, 0.04, 0.06, c)
    sail(0.53, 0.12, 0.93, _dim(c, 0.84) if min(c) > 0.9 else _mix(c, (1, 1, 1), 0.16))
    p.poly([(0.02, 0.86), (0.98, 0.86), (0.84, 1.05), (0.17, 1.05)], _rgb("7a4630"))
    p.poly([(0.02, 0.86), (0.98, 0.86), (0.955, 0.905), (0.055, 0.905)], c)
    if lit:
        for x in (0.32, 0.5, 0.68):
            p.oval(x, 0.965, 0.028, 0.028, WARM, 1.0)


def _windmill(p: _Pen, c: Color, lit: bool, snow: bool, turn: float) -> None:
    window, glow = (WARM, 1.0) if lit else (GLASS, 0.0)
    p.poly([(0.26, 1.14), (0.355, 0.46), (0.645, 0.46), (0.74, 1.14)], c)
    p.poly([(0.54, 1.14), (0.53, 0.46), (0.645, 0.46), (0.74, 1.14)], _dim(c, 0.80))
    p.rect(0.42, 0.90, 0.56, 1.14, _rgb("50302a"))
    p.rect(0.43, 0.66, 0.55, 0.79, _rgb("f2ead8"))
    p.rect(0.445, 0.675, 0.535, 0.775, window, glow)
    p.poly([(0.32, 0.48), (0.36, 0.36), (0.5, 0.27), (0.64, 0.36), (0.68, 0.48)], SNOW if snow else _rgb("5b3536"))
    sheet = _rgb("e6ddc9") if min(c) > 0.9 else _rgb("f7f0df")
    for i in range(4):
        a = turn + i * math.pi / 2
        ux, uy = math.cos(a), math.sin(a)

        def at(r: float, s: float, ux: float = ux, uy: float = uy) -> tuple[float, float]:
            return (0.5 + ux * r - uy * s, 0.46 + uy * r + ux * s)

        p.poly([at(0.12, 0.0), at(0.48, 0.0), at(0.48, 0.11), at(0.12, 0.085)], sheet, 0.0)
        p.poly([at(0, -0.016), at(0.49, -0.016), at(0.49, 0.016), at(0, 0.016)], WOOD)
    p.oval(0.5, 0.46, 0.045, 0.045, _rgb("3f2a24"))


def _lighthouse(p: _Pen, c: Color, lit: bool, snow: bool) -> None:
    white = _rgb("c3ccd8") if min(c) > 0.9 else _rgb("f6f3ec")

    def side(y: float) -> float:
        return 0.15 + 0.085 * (y - 0.42) / 1.2

    p.rect(0.60, 1.30, 0.98, 1.62, _rgb("efe6d6"))
    p.poly([(0.56, 1.33), (0.64, 1.13), (0.94, 1.13), (1.02, 1.33)], SNOW if snow else c)
    p.rect(0.76, 1.41, 0.87, 1.53, WARM if lit else GLASS, 1.0 if lit else 0)
    for i in range(5):
        y0, y1 = 0.42 + i * 0.24, 0.42 + (i + 1) * 0.24
        color = c if i % 2 == 0 else white
        a, b = side(y0), side(y1)
        p.poly([(0.36 - a, y0), (0.36 + a, y0), (0.36 + b, y1), (0.36 - b, y1)], color)
        p.poly([(0.36 + a * 0.35, y0), (0.36 + a, y0), (0.36 + b, y1), (0.36 + b * 0.35, y1)], _dim(color, 0.82))
    p.rect(0.29, 1.40, 0.42, 1.62, _rgb("50302a"))
    p.rect(0.24, 0.20, 0.48, 0.38, WARM if lit else _rgb("ffeeb0"), 1.0 if lit else 0.2)
    for x in (0.24, 0.35, 0.46):
        p.rect(x, 0.20, x + 0.02, 0.38, _rgb("3c4250"))
    p.rect(0.16, 0.37, 0.56, 0.43, _rgb("3c4250"))
    p.poly([(0.19, 0.21), (0.27, 0.09), (0.36, 0.02), (0.45, 0.09), (0.53, 0.21)], SNOW if snow else _dim(c, 0.62))


# width of the sprite as a share of the picture, height in widths
OBJECTS: dict[str, tuple[float, float]] = {
    "house": (0.40, 0.88),
    "tent": (0.42, 0.73),
    "balloon": (0.33, 1.43),
    "boat": (0.40, 1.06),
    "windmill": (0.43, 1.15),
    "lighthouse": (0.32, 1.63),
}


@lru_cache(maxsize=4096)
def _object(name: str, color: str, width: int, lit: bool, snow: bool, variant: int) -> np.ndarray:
    pen = _Pen(width, int(math.ceil(width * OBJECTS[name][1])))
    c = PAINT[color]
    flip = variant % 2 == 1
    if name == "windmill":
        _windmill(pen, c, lit, snow, math.radians((12, 30, 48)[variant % 3]))
    else:
        {"house": _house, "tent": _tent, "balloon": _balloon, "boat": _boat, "lighthouse": _lighthouse}[name](
            pen, c, lit, snow
        )
    return pen.done(flip)


LEAVES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "spring": (("f29ac0", "fbb9d3", "ffd6e6"), ("f6a6c6", "fcc6da", "fff0f5"), ("e98bb6", "f7afd0", "ffcfe2")),
    "summer": (("1f6b34", "2f8a40", "4aa552"), ("256f2c", "388f3a", "58aa4a"), ("1c6440", "2b8450", "46a066")),
    "autumn": (("c2501a", "e3741f", "f59a35"), ("b8391d", "d95a26", "ee7f3c"), ("cf8414", "eaa522", "f9c548")),
    "winter": (("a9b6cc", "d6deea", "f6f9fe"), ("a3b0c8", "d0d9e8", "f4f7fd"), ("aeb9cc", "dbe2ee", "f8fafe")),
}
TREE_SHAPE = {"pine": 1.75, "leafy": 1.22, "palm": 1.3, "cactus": 1.35, "bush": 0.62, "patch": 0.42}


def _pine(p: _Pen, season: str, v: int) -> None:
    dark, light = {
        "spring": ("2f7a48", "4d9a58"),
        "summer": ("1c5a38", "2f7747"),
        "autumn": ("5a5f2c", "7d7a36"),
        "winter": ("3b5f62", "557b7c"),
    }[season]
    p.rect(0.45, 1.45, 0.55, 1.75, WOOD)
    tiers = ((1.50, 0.48, 0.55), (1.16, 0.40, 0.52), (0.84, 0.32, 0.48), (0.54, 0.23, 0.50))
    for base, half, tall in tiers:
        top = base - tall
        p.poly([(0.5, top), (0.5 + half, base), (0.5 - half, base)], _rgb(dark))
        p.poly([(0.5, top), (0.5 - half, base), (0.5 - half * 0.1, base)], _rgb(light))
        if season == "winter":
            p.poly(
                [
                    (0.5, top),
                    (0.5 + half * 0.72, top + tall * 0.72),
                    (0.5 + half * 0.3, top + tall * 0.58),
                    (0.5, top + tall * 0.78),
                    (0.5 - half * 0.35, top + tall * 0.6),
                    (0.5 - half * 0.76, top + tall * 0.76),
                ],
                SNOW,
            )


def _leafy(p: _Pen, season: str, v: int) -> None:
    dark, mid, light = (_rgb(c) for c in LEAVES[season][v % 3])
    p.line(0.5, 1.2, 0.5, 0.7, 0.12, WOOD, 0.08)
    p.line(0.5, 0.9, 0.3, 0.62, 0.06, WOOD)
    p.line(0.5, 0.9, 0.7, 0.62, 0.06, WOOD)
    for x, y, r in ((0.27, 0.58, 0.26), (0.73, 0.58, 0.26), (0.5, 0.36, 0.34), (0.5, 0.62, 0.27)):
        p.oval(x, y, r, r * 0.95, dark)
    for x, y, r in ((0.24, 0.53, 0.20), (0.68, 0.52, 0.20), (0.46, 0.32, 0.27)):
        p.oval(x, y, r, r * 0.9, mid)
    for x, y, r in ((0.20, 0.47, 0.11), (0.40, 0.25, 0.16), (0.63, 0.46, 0.11)):
        p.oval(x, y, r, r * 0.85, light)


def _palm(p: _Pen, season: str, v: int) -> None:
    bend = (0.10, -0.08, 0.16)[v % 3]
    x, y = 0.5 - bend, 1.3
    for i in range(8):
        t = (i + 1) / 8
        nx, ny = 0.5 - bend + bend * t * t, 1.3 - 0.92 * t
        p.line(x, y, nx, ny, 0.10 - 0.05 * (t - 0.125), _rgb("8a6240"), 0.10 - 0.05 * t)
        x, y = nx, ny
    dark, light = {
        "spring": ("3f9a44", "6cc05a"),
        "summer": ("1f7a3a", "35994a"),
        "autumn": ("a8882c", "cfa93c"),
        "winter": ("5f8582", "eef3fb"),
    }[season]
    for i, a in enumerate((-165, -140, -115, -65, -40, -15, -190, 10)):
        r = math.radians(a)
        ux, uy = math.cos(r), math.sin(r)
        mx, my = x + ux * 0.24, y + uy * 0.2 - 0.03
        ex, ey = x + ux * 0.46, y + uy * 0.25 + 0.13
        p.poly(
            [(x, y - 0.02), (mx, my - 0.045), (ex, ey), (mx, my + 0.05), (x, y + 0.03)], _rgb(light if i % 2 else dark)
        )
    for dx in (-0.04, 0.04):
        p.oval(x + dx, y + 0.04, 0.04, 0.04, _rgb("5a3d28"))


def _cactus(p: _Pen, season: str, v: int) -> None:
    body, light = {
        "spring": ("3f9a52", "62b56c"),
        "summer": ("2c7d46", "46985c"),
        "autumn": ("6d7a35", "8d9646"),
        "winter": ("3f7a62", "5c957c"),
    }[season]
    a = (0.0, 0.1, -0.08)[v % 3]
    for color, dx, k in ((_rgb(body), 0.0, 1.0), (_rgb(light), -0.035, 0.36)):
        p.line(0.5 + dx, 1.27, 0.5 + dx, 0.16, 0.22 * k, color)
        p.line(0.5 + dx, 0.86 + a, 0.16 + dx, 0.86 + a, 0.16 * k, color)
        p.line(0.16 + dx, 0.86 + a, 0.16 + dx, 0.50 + a, 0.16 * k, color)
        p.line(0.5 + dx, 0.72 - a, 0.84 + dx, 0.72 - a, 0.16 * k, color)
        p.line(0.84 + dx, 0.72 - a, 0.84 + dx, 0.34 - a, 0.16 * k, color)
    tops = ((0.5, 0.09, 0.10), (0.16, 0.44 + a, 0.08), (0.84, 0.28 - a, 0.08))
    for x, y, r in tops:
        if season == "winter":
            p.oval(x, y + 0.02, r * 1.2, r * 0.9, SNOW)
        elif season == "spring":
            p.oval(x, y, r * 0.9, r * 0.8, _rgb("ff7fb4"))


def _bush(p: _Pen, season: str, v: int) -> None:
    dark, mid, light = (_rgb(c) for c in LEAVES[season][v % 3])
    if season == "spring":
        dark, mid = _rgb("6fb14a"), _rgb("8fcb5e")
    for x, y, r in ((0.22, 0.44, 0.2), (0.5, 0.34, 0.31), (0.79, 0.45, 0.19)):
        p.oval(x, y, r, r, dark)
    for x, y, r in ((0.19, 0.39, 0.14), (0.45, 0.28, 0.22), (0.76, 0.40, 0.13)):
        p.oval(x, y, r, r * 0.85, mid)
    if season == "spring":
        for x, y in ((0.18, 0.40), (0.48, 0.26), (0.78, 0.42)):
            p.oval(x, y, 0.11, 0.11, (light, _rgb("ff8fbd"))[int(x * 100) % 2])
    else:
        for x, y, r in ((0.15, 0.34, 0.07), (0.39, 0.21, 0.12), (0.72, 0.36, 0.07)):
            p.oval(x, y, r, r * 0.8, light)
    p.rect(0, 0.60, 1, 0.62, dark)


def _patch(p: _Pen, season: str, v: int) -> None:
    """Flowers, grass, fallen leaves or snow drifts that lie on the ground."""
    rng = np.random.default_rng([v, 17])
    if season == "winter":
        p.oval(0.5, 0.3, 0.5, 0.10, _rgb("d3dcec"))
        p.oval(0.47, 0.25, 0.42, 0.10, SNOW)
        return
    colors = {
        "spring": ("ff9cc8", "ffd6e6", "ff9cc8", "ffd6e6"),
        "summer": ("2c7a35", "2c7a35", "59ad4b", "59ad4b"),
        "autumn": ("b8391d", "e3741f", "f5b02e", "8f3a1c"),
    }[season]
    for i in range(3):
        x, y = 0.14 + 0.28 * (i + 0.6 * rng.random()), 0.14 + 0.14 * rng.random()
        c = _rgb(colors[i % 4])
        if season == "summer":
            p.poly([(x - 0.07, y + 0.08), (x, y - 0.10), (x + 0.07, y + 0.08)], c)
        elif season == "spring":
            p.oval(x, y, 0.11, 0.10, c)
        else:
            p.oval(x, y, 0.14, 0.09, c)


@lru_cache(maxsize=4096)
def _plant(name: str, season: str, width: int, variant: int) -> np.ndarray:
    pen = _Pen(width, int(math.ceil(width * TREE_SHAPE[name])))
    {"pine": _pine, "leafy": _leafy, "palm": _palm, "cactus": _cactus, "bush": _bush, "patch": _patch}[name](
        pen, season, variant
    )
    return pen.done(variant >= 3)


@lru_cache(maxsize=64)
def _clouds(size: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Cover and light (both float32 (h, w), 0..1) of some clouds."""
    out = []
    for v in range(18):
        rng = np.random.default_rng([v, 5])
        wide = (0.34, 0.46, 0.60)[v % 3]
        w, h = int(wide * size), int(wide * 0.50 * size)
        k = 3
        cover = Image.new("L", (w * k, h * k))
        light = Image.new("L", (w * k, h * k))
        pen, sun = ImageDraw.Draw(cover), ImageDraw.Draw(light)
        puffs = []
        for i in range(8):
            t = (i + 0.5) / 8
            puffs.append((0.16 + 0.68 * t, 0.09 + 0.12 * math.sin(math.pi * t) * rng.uniform(0.6, 1.1)))
        for x, r in puffs:
            y = 0.78 - r * 1.25
            box = [(x - r) * w * k, (y * h - r * w) * k, (x + r) * w * k, (y * h + r * w) * k]
            pen.ellipse(box, fill=255)
            sun.ellipse([box[0], box[1] - 0.04 * h * k, box[2] - 0.10 * r * w * k, box[3] - 0.5 * r * w * k], fill=255)
        pen.rectangle([0, 0.82 * h * k, w * k, h * k], fill=0)
        cover = cover.filter(ImageFilter.GaussianBlur(0.010 * size * k)).resize((w, h), Image.Resampling.BOX)
        light = light.filter(ImageFilter.GaussianBlur(0.016 * size * k)).resize((w, h), Image.Resampling.BOX)
        a = np.asarray(cover, np.float32) / 255
        across = np.linspace(0, 1, w, dtype=np.float32)
        fade = np.clip(np.minimum(across, 1 - across) * 14, 0, 1) * 0.94
        out.append((a * fade, np.asarray(light, np.float32) / 255))
    return tuple(out)


@lru_cache(maxsize=16)
def _spot(radius: int) -> np.ndarray:
    """A soft round spot, float32 (2 radius + 1) squared, 1 in the middle and 0 at the rim."""
    x = np.linspace(-1, 1, 2 * radius + 1, dtype=np.float32)
    r2 = np.clip(1 - x[None] ** 2 - x[:, None] ** 2, 0, 1)
    return r2 * r2


@lru_cache(maxsize=256)
def _streak(width: int, height: int) -> np.ndarray:
    """A soft flat lens, float32 (height, width)."""
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height + 2, dtype=np.float32)[1:-1]
    return np.clip(1 - x[None] ** 2 - y[:, None] ** 2, 0, 1)


@lru_cache(maxsize=64)
def _floe(width: int, variant: int) -> np.ndarray:
    """A piece of drifting ice."""
    rng = np.random.default_rng([variant, 29])
    pen = _Pen(width, max(int(width * 0.3), 2))
    angle = np.linspace(0, 2 * math.pi, 9, endpoint=False)
    r = rng.uniform(0.75, 1.0, 9)
    top = [(0.5 + 0.49 * math.cos(a) * k, 0.12 + 0.11 * math.sin(a) * k) for a, k in zip(angle, r, strict=True)]
    pen.poly([(x, y + 0.055) for x, y in top], _rgb("9cbcd6"))
    pen.poly(top, _rgb("f2f7fd"))
    return pen.done()


# ---------------------------------------------------------------------------------------------------- painting


def _blend(img: np.ndarray, x: int, y: int, cover: np.ndarray, color: Any) -> None:
    """Lay a colour (three numbers or an (h, w, 3) array) over img with its cover's top left corner at (x, y)."""
    h, w = cover.shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, img.shape[1]), min(y + h, img.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    cut = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
    part = img[y0:y1, x0:x1]
    color = np.asarray(color, np.float32)
    part += (color[cut] if color.ndim == 3 else color) * cover[cut][..., None] - part * cover[cut][..., None]


def _paste(img: np.ndarray, sprite: np.ndarray, x: int, y: int, tint: Color, strength: float = 1.0) -> np.ndarray:
    """Lay a sprite over img, its colours tinted except where it glows. Returns its cover."""
    part = sprite.astype(np.float32) * np.float32(1 / 255)
    glow = part[..., 4:5]
    t = np.asarray(tint, np.float32)
    color = part[..., :3] * (t + (1 - t) * glow)
    cover = part[..., 3] * np.float32(strength)
    _blend(img, x, y, cover, color)
    return cover


def _curve(rng: np.random.Generator, xs: np.ndarray, rough: float, waves: int = 3) -> np.ndarray:
    """A smooth curve of about -1 .. 1 over xs."""
    out = np.zeros_like(xs)
    for i in range(waves):
        out += np.sin(xs * (2.2 * rough * (i + 1)) + rng.uniform(0, 6.28)) / (i + 1) ** 1.3
    return (out / 1.5).astype(np.float32)


def _ridge(img: np.ndarray, edge: np.ndarray, top: Color, bottom: Color, fade: float, foot: float = 1.0) -> None:
    """Fill from an edge (share of the height, one value a column) down to `foot`, fading from top to bottom colour."""
    size = img.shape[0]
    line = edge * size
    end = int(foot * size)
    within = np.flatnonzero(line < end + 1)
    if not len(within):
        return
    steep = np.sqrt(1 + np.gradient(line) ** 2)
    x0, x1 = int(within[0]), int(within[-1]) + 1
    line, steep = line[x0:x1], steep[x0:x1]
    y0 = int(max(math.floor(float(line.min())) - 1, 0))
    if y0 >= end:
        return
    rows = np.arange(y0, end, dtype=np.float32)[:, None]
    depth = rows + 0.5 - line[None]
    cover = np.clip(depth / steep + 0.5, 0, 1)[..., None]
    t = np.clip(depth / (fade * size), 0, 1)[..., None]
    a, b = np.asarray(top, np.float32), np.asarray(bottom, np.float32)
    part = img[y0:end, x0:x1]
    part += (a + (b - a) * t - part) * cover


def _peak(
    img: np.ndarray,
    rng: np.random.Generator,
    x: float,
    y: float,
    base: float,
    half: float,
    rock: Color,
    snow: Color,
    cap: float,
    side: int,
    haze: Color,
) -> None:
    """One mountain with a lit and a dark side and a snow cap of `cap` of its height."""
    size = img.shape[0]
    y0, y1 = max(int(y * size) - 1, 0), min(int(base * size) + 1, size)
    x0, x1 = max(int((x - half * 1.2) * size), 0), min(int((x + half * 1.2) * size) + 1, size)
    if x0 >= x1 or y0 >= y1:
        return
    rows = (np.arange(y0, y1, dtype=np.float32) + 0.5) / size
    cols = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / size)[None]
    t = np.clip((rows - y) / (base - y), 0, 1)
    knots = np.linspace(0, 1, 6)

    def wobble(k: float) -> np.ndarray:
        return np.interp(t, knots, np.concatenate([[0], rng.uniform(-k, k, 5)])).astype(np.float32)

    left = (x - half * t + half * wobble(0.09))[:, None]
    right = (x + half * t + half * wobble(0.09))[:, None]
    middle = (x + half * (wobble(0.20) + 0.10 * t))[:, None]
    cover = np.clip((cols - left) * size * 0.75 + 0.5, 0, 1) * np.clip((right - cols) * size * 0.75 + 0.5, 0, 1)
    cover *= np.clip((rows[:, None] - y) * size + 0.5, 0, 1)
    dark = np.clip((cols - middle) * size * 0.6 * side + 0.5, 0, 1)[..., None]
    zig = np.abs(((cols - x) / half * 2.6 + rng.random()) % 1.0 - 0.5) * 0.42 * min(cap, 0.5)
    white = np.clip((cap + zig - t[:, None]) * (base - y) * size * 0.5 + 0.5, 0, 1)[..., None] if cap > 0 else 0
    r, s, h = (np.asarray(c, np.float32) for c in (rock, snow, haze))
    color = r + (s - r) * white
    color = color * (1 - 0.26 * dark)
    color += (h - color) * (0.55 * t[:, None, None] ** 1.5)
    _blend(img, x0, y0, cover, color)


def _glow(img: np.ndarray, x: float, y: float, radius: float, color: Color, power: float, bottom: int) -> None:
    """Light scattered around a point, down to row `bottom`."""
    size = img.shape[1]
    cols = (np.arange(size, dtype=np.float32) + 0.5) / size - x
    rows = (np.arange(bottom, dtype=np.float32) + 0.5) / size - y
    d = (cols * cols)[None] + (rows * rows)[:, None]
    g = np.float32(power) / (1 + d * np.float32(1 / radius**2))
    g = np.clip(g - np.float32(power * 0.06), 0, 1)[..., None]
    part = img[:bottom]
    part += (np.asarray(color, np.float32) - part) * g


def _disc(img: np.ndarray, x: float, y: float, r: float, color: Color, crescent: int = 0) -> None:
    size = img.shape[0]
    x0, y0 = int((x - r) * size) - 1, int((y - r) * size) - 1
    n = int(2 * r * size) + 4
    at = np.arange(n, dtype=np.float32) + 0.5
    dx, dy = (at + x0 - x * size)[None], (at + y0 - y * size)[:, None]
    cover = np.clip(r * size - np.sqrt(dx * dx + dy * dy) + 0.5, 0, 1)
    if crescent:
        ox, oy = dx - 0.52 * r * size * crescent, dy + 0.20 * r * size
        cover = cover * (1 - np.clip(0.88 * r * size - np.sqrt(ox * ox + oy * oy) + 0.5, 0, 1))
    _blend(img, x0, y0, cover.astype(np.float32), color)


def _shade(img: np.ndarray, x: float, y: float, width: float, height: float, power: float) -> None:
    """A soft shadow on the ground."""
    size = img.shape[0]
    w, h = max(int(width * size), 3), max(int(height * size), 2)
    _blend(
        img,
        int(x * size) - w // 2,
        int(y * size) - h // 2,
        np.sqrt(_streak(w, h)) * np.float32(power),
        (0.10, 0.10, 0.20),
    )


def render(
    factors: Factors, rng: np.random.Generator, size: int = 256, lights: list[tuple[float, float, float]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Returns the picture, uint8 (size, size, 3), and the object's cover, uint8 (size, size), 255 where it stands. The
    sun's or moon's x, y and radius, of a picture of size 1, are appended to `lights`.
    """
    if size < 64:
        raise ValueError(f"size {size} is too small: at least 64 is needed")
    terrain, time, season, what = (factors[k] for k in ("terrain", "time", "season", "object"))
    cloudy = factors["sky"] == "cloudy"
    night, winter = time == "night", season == "winter"
    water = terrain in ("sea", "lake")
    tint, lamp = TINT[time], LAMP[time]
    column = COLUMN.get(factors["position"] or "", -1.0)
    if column >= 0:
        column += float(rng.uniform(-0.03, 0.03))
    xs = (np.arange(size, dtype=np.float32) + 0.5) / size
    horizon = float(rng.uniform(0.55, 0.60)) if water else float(rng.uniform(0.58, 0.63))

    # sky
    stops = np.array(SKIES[time][int(rng.integers(len(SKIES[time])))], np.float32)
    if cloudy:
        stops = stops + (stops.mean(1, keepdims=True) * np.array([0.97, 0.98, 1.04]) - stops) * 0.28
    at = np.clip((np.arange(size) + 0.5) / size / horizon, 0, 1)
    sky = np.stack([np.interp(at, (0, 0.38, 0.72, 1), stops[:, i]) for i in range(3)], 1).astype(np.float32)
    img = np.empty((size, size, 3), np.float32)
    img[:] = sky[:, None]
    low: Color = tuple(float(v) for v in stops[3])  # type: ignore[assignment]
    haze = _mix(low, stops[2].tolist(), 0.35)
    bottom = int((horizon + 0.05) * size)

    # stars
    if night:
        radius = max(size // 90, 1)
        for _ in range(int(rng.integers(9, 15)) if not cloudy else 0):
            x, y = rng.random(), rng.random() ** 1.2 * (horizon - 0.10)
            _blend(
                img,
                int(x * size),
                int(y * size),
                _spot(radius + int(rng.random() < 0.25)) * rng.uniform(0.45, 1.0),
                (0.97, 0.97, 1.0),
            )

    # sun or moon, not behind the object
    light = factors["light"]
    shine = SHINE[time]
    columns = [c for c in (0.20, 0.5, 0.80) if column < 0 or abs(c - column) > 0.2]
    lx = float(columns[int(rng.integers(len(columns)))] + rng.uniform(-0.04, 0.04))
    if time in ("dawn", "dusk"):
        ly, radius_l = horizon - float(rng.uniform(0.12, 0.20)), 0.074
        ly -= {"mountains": 0.16, "hills": 0.10, "lake": 0.05, "desert": 0.13}.get(terrain, 0.0)
    else:
        ly, radius_l = float(rng.uniform(0.11, 0.19)), 0.062
    if light == "none":
        if time in ("dawn", "dusk"):
            _glow(img, lx, horizon, 0.30, _mix(shine, low, 0.5), 0.25, bottom)
    else:
        power = {"dawn": 0.75, "day": 0.55, "dusk": 0.75, "night": 0.34}[time]
        spread = {"dawn": 0.14, "day": 0.10, "dusk": 0.15, "night": 0.10}[time]
        _glow(img, lx, ly, spread, shine, power, bottom)

    # clouds
    if cloudy:
        bank = _clouds(size)
        bright, shadow = (np.asarray(c, np.float32) for c in CLOUD[time])
        count = int(rng.integers(3, 5))
        start = rng.random()
        for i in range(count):
            cover, lit = bank[int(rng.integers(len(bank)))]
            x = ((start + i * 0.618) % 1.0) * 1.1 - 0.05
            y = 0.04 + (horizon - 0.22) * ((i * 0.381 + rng.uniform(0, 0.12)) % 1.0)
            _blend(
                img,
                int(x * size) - cover.shape[1] // 2,
                int(y * size) - cover.shape[0] // 3,
                cover,
                shadow + (bright - shadow) * lit[..., None],
            )
    if light != "none":
        if lights is not None:
            lights.append((lx, ly, radius_l))
        if cloudy:
            _glow(img, lx, ly, 0.055, shine, 0.5, bottom)
        _disc(
            img,
            lx,
            ly,
            radius_l,
            shine if night else _mix(shine, _rgb("ffd84a"), {"dawn": 0.35, "day": 0.6, "dusk": 0.15}[time]),
            0 if light != "crescent" else (1 if rng.random() < 0.5 else -1),
        )
        if light == "moon":
            for dx, dy, r in ((-0.25, -0.15, 0.24), (0.3, 0.25, 0.18), (0.1, -0.45, 0.13)):
                _disc(img, lx + dx * radius_l, ly + dy * radius_l, r * radius_l, _dim(shine, 0.90))

    # far land
    side = 1 if lx < 0.5 else -1
    ground = DESERT[season] if terrain == "desert" else GROUND[season]
    # snow under coloured light would be orange or blue: keep it paler than the rest
    soil = _mix(_mul(ground, tint), _mul(ground, lamp), 0.8 if winter and not night else 0.14)

    frost = _mul(SNOW, _mix(tint, lamp, 0.55 if not night else 0.15))

    def far(color: Color, t: float) -> Color:
        return _mix(_mul(color, tint), haze, t)

    if terrain == "mountains":
        for n, tall, t in ((3, 0.29, 0.52), (2, 0.38, 0.22)):
            shift = rng.random() / n
            order = rng.permutation(n + 1)
            for i in order:
                x = (i + 0.25 + shift) / n - 0.15 + rng.uniform(-0.03, 0.03)
                h = tall * rng.uniform(0.72, 1.05)
                cap = {"winter": 0.80, "spring": 0.40, "autumn": 0.34, "summer": 0.26}[season]
                _peak(
                    img,
                    rng,
                    x,
                    horizon + 0.06 - h,
                    horizon + 0.16,
                    h * rng.uniform(0.85, 1.1) * 1.1,
                    far(ROCK, t),
                    _mix(frost, haze, t * 0.6),
                    cap,
                    side,
                    far(_mix(ROCK, ground, 0.3), t + 0.15),
                )
        edge = horizon + 0.06 + 0.03 * _curve(rng, xs, 1.6)
        _ridge(img, edge, _mix(soil, haze, 0.30), _mix(soil, haze, 0.12), 0.16)
    elif terrain == "hills":
        for i, t in enumerate((0.58, 0.36, 0.18)):
            edge = horizon - 0.14 + 0.09 * i + (0.062 - 0.012 * i) * _curve(rng, xs, 2.3 + 0.2 * i, 2)
            back = _mix(soil, _dim(soil, 0.72), 0.65 if not winter else 0.15)
            _ridge(img, edge, _mix(soil, haze, t), _mix(back, haze, t * 0.8), 0.20)
    elif terrain == "desert":
        dune = _mix(SAND, SNOW, 0.30) if winter else SAND
        rock = _rgb("b0603f")
        for _ in range(2):
            # table mountains, which tell a desert from hills in any season
            x, w = rng.uniform(0.08, 0.92), rng.uniform(0.07, 0.13)
            top = horizon - rng.uniform(0.13, 0.19)
            edge = top + np.maximum(np.abs(xs - x) - w, 0) * 3.2 + 0.006 * _curve(rng, xs, 5.0, 2)
            edge += np.where(np.abs(xs - x) > w + 0.022, np.minimum((np.abs(xs - x) - w - 0.022) * -2.2, 0), 0)
            _ridge(img, edge.astype(np.float32), far(rock, 0.18), far(_dim(rock, 0.85), 0.45), 0.2, horizon + 0.11)
            dark = edge + np.maximum((x + 0.3 * w * side - xs) * side, 0) * 8.0
            _ridge(
                img,
                dark.astype(np.float32),
                far(_dim(rock, 0.72), 0.2),
                far(_dim(rock, 0.68), 0.45),
                0.2,
                horizon + 0.11,
            )
            if winter:
                cover = np.where(np.abs(xs - x) < w, edge, 2.0)
                _ridge(img, cover.astype(np.float32), frost, frost, 0.2, horizon + 0.11)
                _ridge(
                    img,
                    np.maximum(edge, top + 0.026 + 0.012 * np.abs(np.sin((xs - x) * 60))).astype(np.float32),
                    far(rock, 0.2),
                    far(rock, 0.45),
                    0.2,
                    horizon + 0.11,
                )
                _ridge(
                    img,
                    np.maximum(dark, top + 0.026).astype(np.float32),
                    far(_dim(rock, 0.72), 0.2),
                    far(_dim(rock, 0.68), 0.45),
                    0.2,
                    horizon + 0.11,
                )
        for i, t in enumerate((0.45, 0.22)):
            edge = horizon - 0.04 + 0.075 * i + 0.045 * _curve(rng, xs, 1.7 + 0.4 * i, 2)
            _ridge(img, edge, far(dune, t), far(_dim(dune, 0.74), t * 0.8), 0.17)
            # a dune's dark side: the same ridge again, cut by a slanting edge
            x = rng.uniform(0.35, 0.65) - 0.15 * side
            cut = edge + np.maximum((x - xs) * side, 0) * 0.9 + np.maximum((xs - x) * side - 0.25, 0) * 0.25
            _ridge(img, cut.astype(np.float32), far(_dim(dune, 0.80), t), far(_dim(dune, 0.66), t * 0.8), 0.2)
    elif terrain == "lake":
        n = 3
        shift = rng.random() / n
        for i in rng.permutation(n + 1):
            h = 0.20 * rng.uniform(0.7, 1.1)
            _peak(
                img,
                rng,
                (i + shift) / n - 0.1,
                horizon + 0.02 - h,
                horizon + 0.10,
                h * 1.3,
                far(ROCK, 0.45),
                _mix(frost, haze, 0.3),
                0.8 if winter else 0.26,
                side,
                far(_mix(ROCK, ground, 0.3), 0.5),
            )
        edge = horizon - 0.045 + 0.028 * _curve(rng, xs, 1.9)
        _ridge(img, edge, _mix(soil, haze, 0.34), _mix(_dim(soil, 0.85), haze, 0.20), 0.06)
    else:
        if rng.random() < 0.5:
            x, w = rng.uniform(0.1, 0.9), rng.uniform(0.10, 0.2)
            edge = horizon + 0.01 - 0.06 * np.exp(-(((xs - x) / w) ** 2)) + 0.0 * xs
            _ridge(img, edge.astype(np.float32), far(_mix(ROCK, ground, 0.3), 0.5), far(ROCK, 0.5), 0.1)

    # water: the upper half upside down, coloured, with light on it
    boat = what == "boat"
    shore = float(rng.uniform(0.85, 0.87)) if boat else float(rng.uniform(0.76, 0.79))
    if water:
        h0 = int(horizon * size)
        n = size - h0
        deep = WATER[time]
        if winter and terrain == "lake":
            deep = _mix(deep, _mul(_rgb("dcebf6"), tint), 0.5 if time == "day" else 0.25)
        rows = np.clip(h0 - 1 - np.arange(n), 0, size - 1)
        mirror = img[rows]
        down = (np.arange(n, dtype=np.float32) / n)[:, None, None]
        keep = (0.62 if terrain == "lake" else 0.42) - 0.35 * down
        base_color = np.asarray(deep, np.float32)
        img[h0:] = base_color * (0.92 - 0.12 * down) + (mirror - base_color) * keep
        pale = _mix(low, (1, 1, 1), 0.15)
        for _ in range(4):
            t1 = rng.random()
            w, h = int((0.10 + 0.22 * t1) * size), max(int((0.012 + 0.012 * t1) * size), 2)
            _blend(
                img,
                int(rng.uniform(-0.1, 1.0) * size),
                h0 + 1 + int(t1 * (shore - horizon) * size),
                _streak(w, h) * np.float32(0.25),
                pale,
            )
        if light != "none":
            for i in range(4):
                t1 = (i + 0.4) / 4
                w = int((0.07 + 0.12 * t1 + rng.uniform(0, 0.04)) * size)
                h = max(int((0.016 + 0.016 * t1) * size), 2)
                _blend(
                    img,
                    int((lx + rng.uniform(-0.02, 0.02)) * size) - w // 2,
                    h0 + 1 + int(t1 * (1 - horizon) * size),
                    _streak(w, h) * np.float32(0.60 - 0.25 * t1),
                    shine,
                )
        if winter:
            ice = _mix(tint, lamp, 0.30)
            floes = 6 if terrain == "sea" else 4
            for i in range(floes):
                t1 = (i + rng.random()) / floes
                w = max(int((0.12 + 0.17 * t1) * size) // 4 * 4, 4)
                _paste(
                    img,
                    _floe(w, int(rng.integers(4))),
                    int(rng.uniform(-0.1, 1.0) * size),
                    h0 + 1 + int(t1 * (shore - horizon - 0.02) * size),
                    ice,
                )

    # the ground one stands on
    front = shore if water else horizon + 0.115
    edge = front + 0.014 * _curve(rng, xs, 1.5)
    if water:
        beach = _mix(SAND, SNOW, 0.6) if winter else SAND
        _ridge(img, edge - 0.018, _mul(beach, tint), _mul(beach, tint), 0.1)
        edge = edge + 0.008 * _curve(rng, xs, 2.5)
    _ridge(img, edge, _mix(soil, haze, 0.06), _dim(soil, 0.93 if winter else 0.80), 1.0 - front)

    # what grows and lies there; nothing in the object's column
    lit_tint = _mix(tint, lamp, 0.8 if winter and not night else 0.20)
    stands = what not in ("none", "boat")
    width0 = OBJECTS[what][0] if what != "none" else 0.0

    def free(x: float, w: float) -> bool:
        return not stands or abs(x - column) > (width0 + w) * 0.5 + 0.01

    for i in range(2):
        x, y = (i + rng.random()) / 2, rng.uniform(front + 0.06, 0.96)
        w = int((0.19 + 0.12 * (y - front)) * size) // 3 * 3
        if not (terrain == "desert" and season == "summer"):
            patch = _plant("patch", season, w, int(rng.integers(6)))
            _paste(img, patch, int(x * size) - w // 2, int(y * size) - patch.shape[0] // 2, lit_tint)
    kind = factors["trees"]
    if kind != "none":
        places = []
        for i in range(7):
            x = (i + rng.uniform(0.2, 0.8)) / 7
            tall = rng.uniform(0.30, 0.37) if kind in ("pine", "palm") else rng.uniform(0.25, 0.31)
            w = tall / TREE_SHAPE[kind]
            y = rng.uniform(front + 0.02, front + 0.08) if not boat else rng.uniform(0.91, 0.96)
            if boat and abs(x - column) < (width0 + w) * 0.5 + 0.01:
                continue
            if free(x, w):
                places.append((y, x, w))
        keep_n = int(rng.integers(2, 4))
        chosen = [places[int(j)] for j in rng.permutation(len(places))[:keep_n]]
        for y, x, w in sorted(chosen):
            step = max(int(round(w * size / 4)) * 4, 4)
            tree = _plant(kind, season, step, int(rng.integers(6)))
            _shade(img, x + 0.02 * side, y, w * 0.95, 0.028, 0.30)
            _paste(img, tree, int(x * size) - step // 2, int(y * size) - tree.shape[0] + 1, lit_tint)
    bare = terrain == "desert" and season == "summer"
    for x in (rng.uniform(0.0, 0.08), rng.uniform(0.92, 1.0)):
        y, w = rng.uniform(0.97, 1.02), rng.uniform(0.19, 0.25)
        if not bare and free(float(x), float(w)):
            step = int(w * size) // 4 * 4
            bush = _plant("bush", season, step, int(rng.integers(6)))
            _paste(img, bush, int(x * size) - step // 2, int(y * size) - bush.shape[0], lit_tint)

    # the object
    mask = np.zeros((size, size), np.uint8)
    if what != "none":
        lamps = time in ("night", "dusk")
        scale = (0.92, 0.97, 1.02)[int(rng.integers(3))]
        step = int(round(width0 * scale * size))
        sprite = _object(what, factors["color"], step, lamps, winter, int(rng.integers(6)))
        h, w = sprite.shape[:2]
        if what == "balloon":
            base = float(rng.uniform(0.035, 0.10)) + h / size
        elif what == "boat":
            base = float(rng.uniform(0.775, 0.80))
        else:
            base = float(rng.uniform(0.885, 0.925))
        x, y = int(round(column * size - w / 2)), int(round(base * size)) - h
        x = min(max(x, 2), size - w - 2)
        if what == "boat":
            flip = sprite[::-1][: int(h * 0.45)]
            fading = np.linspace(0.38, 0.05, flip.shape[0], dtype=np.float32)[:, None]
            part = flip[..., :3].astype(np.float32) / 255 * np.asarray(_mix(tint, lamp, 0.5), np.float32)
            room = int(min(flip.shape[0], max((shore - 0.03 - base) * size, 0)))
            _blend(img, x, y + h, (flip[..., 3].astype(np.float32) / 255 * fading)[:room], part[:room])
            _shade(img, column, base, w / size * 0.9, 0.02, 0.25)
        elif what != "balloon":
            _shade(
                img, column + 0.03 * side, base - 0.004, w / size * (0.8 if what == "windmill" else 1.1), 0.045, 0.38
            )
        if lamps and what != "balloon":
            r = int(w * 0.75)
            warm = _spot(r) * np.float32(0.20 if night else 0.08)
            _blend(
                img, x + w // 2 - r, y + int(h * (0.18 if what == "lighthouse" else 0.6)) - r, warm, (1.0, 0.82, 0.5)
            )
        cover = _paste(img, sprite, x, y, lamp)
        x1, y1 = min(x + w, size), min(y + h, size)
        mask[max(y, 0) : y1, max(x, 0) : x1] = np.round(cover[max(-y, 0) : y1 - y, max(-x, 0) : x1 - x] * 255)
    np.clip(img, 0, 1, out=img)
    img *= 255
    img += 0.5
    return img.astype(np.uint8), mask
