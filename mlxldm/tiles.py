"""Large pictures through the autoencoder in overlapping tiles, on any backend, where memory is too short for the whole.

An autoencoder's memory grows with the pixels it sees at once, and what one pixel becomes depends on its neighbourhood
almost alone. Almost: GroupNorm takes mean and variance over the picture it is given, so a tile comes out a little
lighter or darker, or of a little more contrast, than it would as a part of the whole. Neighbours therefore overlap
widely and are faded into each other. Tiles are blended in NumPy, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .backend import Array, Model

OVERLAP = 16  # latents that neighbours share at least, 128 pixels of most models
MARGIN = 2  # latents at an inner edge that are not used: there the network saw zeros where the picture goes on
SMALLEST = 2 * OVERLAP  # latents of a side; below that a tile is more overlap than picture


def decode(model: Model, latent: Array, tile: int | None = None, seamless: str | None = None) -> np.ndarray:
    """Pixels (1, H, W, c) float32 of a latent (1, h, w, c), in tiles of at most `tile` latents a side; None: whole.

    `seamless`: "x", "y" or "both", the directions in which the picture goes on at its other side. The tiles then reach
    over the edge.
    """
    height, width = latent.shape[1:3]
    if tile is None or max(height, width) <= tile:
        return model.numpy(model.decode(latent))
    values, factor = model.numpy(latent), model.manifest.vae.factor
    if seamless is not None:
        wide, inside = _wrapped(values, seamless, OVERLAP, factor)
        return decode(model, model.array(wide), tile)[inside]

    def work(rows: slice, columns: slice) -> list[np.ndarray]:
        return [model.numpy(model.decode(model.array(values[:, rows, columns])))]

    return _blended(work, height, width, tile, factor)[0]


def encode(
    model: Model, pixels: np.ndarray, tile: int | None = None, seamless: str | None = None
) -> tuple[Array, Array]:
    """Mean and standard deviation (1, h, w, c) of the latent of pixels (1, H, W, 3), in tiles as `decode`'s."""
    factor = model.manifest.vae.factor
    height, width = pixels.shape[1] // factor, pixels.shape[2] // factor
    if tile is None or max(height, width) <= tile:
        return model.encode_image(model.array(pixels))
    if seamless is not None:
        wide, inside = _wrapped(pixels, seamless, OVERLAP * factor, 1 / factor)
        mean, deviation = encode(model, wide, tile)
        return mean[inside], deviation[inside]

    def work(rows: slice, columns: slice) -> list[np.ndarray]:
        here = [slice(side.start * factor, side.stop * factor) for side in (rows, columns)]
        return [model.numpy(x) for x in model.encode_image(model.array(pixels[:, here[0], here[1]]))]

    mean, deviation = _blended(work, height, width, tile, 1)
    return model.array(mean), model.array(deviation)


def _wrapped(
    values: np.ndarray, axes: str, reach: int, scale: float
) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """(1, h, w, c) with `reach` more of its other side around it, and where it lies in that, `scale` times as large."""
    reaches = [reach * (axes in (axis, "both")) for axis in "yx"]
    wide = np.pad(values, ((0, 0), *((each, each) for each in reaches), (0, 0)), mode="wrap")
    starts = [round(each * scale) for each in reaches]
    ends = [round((each + side) * scale) for each, side in zip(reaches, values.shape[1:3], strict=True)]
    return wide, (slice(None), slice(starts[0], ends[0]), slice(starts[1], ends[1]))


def _blended(
    work: Callable[[slice, slice], list[np.ndarray]], height: int, width: int, tile: int, scale: int
) -> list[np.ndarray]:
    """The results (1, height * scale, width * scale, c) of `work` on tiles of a picture of height × width."""
    wholes: list[np.ndarray] = []
    for rows, down in cuts(height, tile, scale):
        for columns, across in cuts(width, tile, scale):
            parts = work(rows, columns)
            if not wholes:
                wholes = [np.zeros((1, height * scale, width * scale, x.shape[3]), np.float32) for x in parts]
            weight = (down[:, None] * across)[..., None]
            for whole, part in zip(wholes, parts, strict=True):
                whole[:, rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale] += (
                    part * weight
                )
    return wholes


def cuts(length: int, tile: int, scale: int = 1) -> list[tuple[slice, np.ndarray]]:
    """Where the tiles of a side of `length` lie, and what each of their results, `scale` a place, counts for.

    As few as can be of at most `tile`, all of one length, neighbours sharing `OVERLAP` or a little more. At every place
    the weights of all tiles are one together; from a tile to its neighbour they go over along a straight line.
    """
    if length <= tile:
        return [(slice(0, length), np.ones(length * scale, np.float32))]
    if tile <= OVERLAP:
        raise ValueError(f"a tile of {tile} is all overlap: at least {OVERLAP + 1} are needed")
    count = math.ceil((length - OVERLAP) / (tile - OVERLAP))
    size = math.ceil((length + (count - 1) * OVERLAP) / count)
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    places = (np.arange(length * scale) + 0.5) / scale
    fades = [np.ones_like(places)]  # how much of what is left of a tile's left edge is gone
    for before, start in zip(starts, starts[1:], strict=False):
        begin, end = start + MARGIN, before + size - MARGIN
        fades.append(np.clip((places - begin) / (end - begin), 0, 1))
    fades.append(np.zeros_like(places))
    tiles = []
    for start, fade, after in zip(starts, fades, fades[1:], strict=False):
        inside = slice(start * scale, (start + size) * scale)
        tiles.append((slice(start, start + size), (fade - after)[inside].astype(np.float32)))
    return tiles
