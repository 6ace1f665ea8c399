"""Maps of labels, for models that draw what they say: PNGs whose pixels are the numbers of COCO-Stuff's labels.

As the dataset has them (Caesar et al. 2018, https://arxiv.org/abs/1612.03716, `stuffthingmaps`): 0 is a person, 90 a
hair brush, 91 a banner ... 181 wood, one less than the numbers of its list of labels; a palette in the file says how it
is shown and counts for nothing.

A map in colours is read by the palette that segmentation tools share, the colour map of PASCAL VOC (Everingham et al.
2010, https://doi.org/10.1007/s11263-009-0275-4, `VOClabelcolormap` of its development kit), which has a colour of its
own for each of 256 numbers. COCO-Stuff's colours would not do: its own paint all things black, and the rainbow of
DeepLab's, which made the maps that the model learned from, has one blue for two labels.
"""

from __future__ import annotations

import os

import numpy as np

from .errors import UserError
from .picture import Pathlike, read_picture


def load_labels(path: Pathlike, width: int, height: int, labels: int) -> np.ndarray:
    """The map in a file at `width` x `height` pixels, nearest taken: one-hot float32 (1, height, width, labels)."""
    from PIL import Image

    picture = Image.fromarray(read_labels(path, labels))
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    return np.eye(labels, dtype=np.float32)[np.asarray(picture)][None]


def read_labels(path: Pathlike, labels: int) -> np.ndarray:
    """The map in a file as it is: int32 (height, width). Grey and palettes are numbers, colours are PASCAL VOC's.

    Raises UserError for a file with other colours, and for labels that the model does not know.
    """
    picture = read_picture(path)
    if picture.mode in ("LA", "PA", "RGBA") and picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert({"RGBA": "RGB"}.get(picture.mode, picture.mode[0]))
    values = np.asarray(picture)
    if picture.mode == "RGB" and (values == values[..., :1]).all():
        values = values[..., 0]  # grey that was saved as colours
    if picture.mode == "RGB" and values.ndim == 3:
        values = _numbers(values, path)
    if values.ndim != 2 or picture.mode == "F":
        raise UserError(
            f"{os.fspath(path)!r} is transparent or no map: a map of labels is a PNG in grey or with a palette, whose "
            f"pixels are the labels' numbers (COCO-Stuff's, from 0), or in PASCAL VOC's colours for them."
        )
    found = values.astype(np.int32)
    wrong = np.unique(found[(found < 0) | (found >= labels)])
    if len(wrong):
        void = " (COCO-Stuff's mark for pixels without one)" if 255 in wrong else ""
        some = ", ".join(str(number) for number in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise UserError(
            f"The map {os.fspath(path)!r} has the label {some}{void}, but the model knows 0 to {labels - 1}: give "
            f"those pixels another label."
        )
    return found


def palette() -> np.ndarray:
    """PASCAL VOC's colours: uint8 (256, 3). A number's bits go to red, green, blue in turn, the lowest ones highest."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = 3 * place + channel
            if bit < 8:
                colours[:, channel] |= ((numbers >> bit & 1) << (7 - place)).astype(np.uint8)
    return colours


def _numbers(colours: np.ndarray, path: Pathlike) -> np.ndarray:
    """The numbers (height, width) that a map's colours (height, width, 3) stand for."""
    weights = np.array([1 << 16, 1 << 8, 1])
    known = palette().astype(np.int64) @ weights
    order = np.argsort(known)
    asked = colours.astype(np.int64) @ weights
    found: np.ndarray = order[np.searchsorted(known[order], asked).clip(0, 255)]
    wrong = np.argwhere(known[found] != asked)
    if len(wrong):
        y, x = wrong[0]
        colour = "#" + colours[y, x].tobytes().hex()
        raise UserError(
            f"The map {os.fspath(path)!r} has the colour {colour} (at {x}, {y}), which is none of PASCAL VOC's colour "
            f"map: give a PNG in grey or with a palette whose pixels are the labels' numbers, or one in those colours."
        )
    return found
