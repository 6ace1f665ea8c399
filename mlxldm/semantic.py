"""Maps of labels, for models that draw what they say: PNGs whose pixels are the numbers of COCO-Stuff's labels.

As the dataset has them (Caesar et al. 2018, https://arxiv.org/abs/1612.03716, `stuffthingmaps`): 0 is a person, 90 a
hair brush, 91 a banner ... 181 wood, one less than the numbers of its list of labels; a palette in the file says how it
is shown and counts for nothing. There are no colours to read such a map from: COCO-Stuff's own paint all things black,
and the rainbow of DeepLab's, which made the maps that the model learned from, has one blue for two labels.
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
    """The map in a file as it is: int32 (height, width).

    Raises UserError for a file that holds colours, and for labels that the model does not know.
    """
    picture = read_picture(path)
    if picture.mode in ("LA", "PA", "RGBA") and picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert({"RGBA": "RGB"}.get(picture.mode, picture.mode[0]))
    values = np.asarray(picture)
    if picture.mode == "RGB" and (values == values[..., :1]).all():
        values = values[..., 0]  # grey that was saved as colours
    if values.ndim != 2 or picture.mode == "F":
        raise UserError(
            f"{os.fspath(path)!r} has colours or is transparent, but a map of labels is a PNG in grey or with a "
            f"palette, whose pixels are the labels' numbers (COCO-Stuff's, from 0)."
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
