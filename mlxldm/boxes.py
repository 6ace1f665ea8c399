"""Where things are to be, as the words of a layout: boxes with labels as tokens of the layout-to-image model.

An object is three tokens: its label, the place of its left upper corner, the place of its right lower one. A place is
one of n x n, n the root of the number of tokens, counted line by line. Objects that are not there are three times the
last token; two tokens at the end say which cut of a larger picture this is, which is always the whole here. As in Jahn
et al. 2021 (https://arxiv.org/abs/2105.06458), whose tokens Rombach et al. 2022 took, with the labels of
`openimages.txt`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from .config import BertConfig
from .errors import UserError, nearest
from .job import Box, boxes_of, parse

PUBLISHED = 8192  # tokens of the published model, whose labels have names
EACH = 3  # tokens of an object
CUT = 2  # tokens of the cut
MAX_FILE = 1 << 20


def read(path: str) -> tuple[Box, ...]:
    """The boxes in a JSON file: [{"label": "Dog", "box": [left, top, right, bottom]}, ...]."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UserError(f"The boxes in {path!r} cannot be read: {error.strerror or error}.") from None
    if len(data) > MAX_FILE:
        raise UserError(f"{path!r} has more than {MAX_FILE >> 20} MB, which no list of boxes has.")
    return boxes_of(parse(data, f"{path!r} is not a list of boxes in JSON"))


def from_text(text: str) -> Box:
    """A box as it is written on the command line: "Dog:0.1,0.4,0.5,0.9"."""
    label, _, sides = text.rpartition(":")
    try:
        left, top, right, bottom = map(float, sides.split(","))
    except ValueError:
        label = ""
    if not label.strip():
        raise UserError(
            f"The box {text!r} is not a label with four numbers: write it like Dog:0.1,0.4,0.5,0.9 (left, top, right "
            f"and bottom, in parts of the picture from 0 to 1)."
        )
    label = label.strip()
    return Box(int(label) if label.isdecimal() else label, (left, top, right, bottom))


def tokens(boxes: Iterable[Box], config: BertConfig) -> list[int]:
    """The layout as the model's text encoder reads it: `config.max_position_embeddings` tokens.

    Raises UserError for more boxes than that has room for, one that is empty or not within the picture, and a label
    that the model does not know.
    """
    boxes = list(boxes)
    most, rest = divmod(config.max_position_embeddings - CUT, EACH)
    none, across = config.vocab_size - 1, math.isqrt(config.vocab_size)
    if rest or most < 1 or across < 2:
        raise UserError(
            f"The model reads layouts of {config.max_position_embeddings} tokens, which are no objects of {EACH} and a "
            f"cut of {CUT}: this version does not know how it was trained."
        )
    if len(boxes) > most:
        raise UserError(f"The job has {len(boxes)} boxes, but the model knows {most} at most: leave some out.")

    def place(x: float, y: float) -> int:
        return round(y * (across - 1)) * across + round(x * (across - 1))

    found: list[int] = []
    for i, box in enumerate(boxes, 1):
        left, top, right, bottom = box.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # false for NaN too
            raise UserError(
                f"The box {i} ({box.label}) is {left:g}, {top:g}, {right:g}, {bottom:g}, but left, top, right and "
                f"bottom go from 0 to 1, left before right and top before bottom."
            )
        found += [_number(box.label, config.vocab_size), place(left, top), place(right, bottom)]
    found += [none] * (EACH * (most - len(boxes)))
    return [*found, place(0, 0), place(1, 1)]


def _number(label: str | int, vocabulary: int) -> int:
    """The label's token."""
    known = names() if vocabulary == PUBLISHED else {}
    count = max(known.values()) + 1 if known else vocabulary - 1
    if isinstance(label, int):
        if not 0 <= label < count:
            raise UserError(f"There is no label {label}: the model knows 0 to {count - 1}.")
        return label
    if not known:
        raise UserError(f"The names of this model's labels are not known: say {label!r} as a number below {count}.")
    by_small = {name.lower(): number for name, number in known.items()}
    if label.lower() not in by_small:
        raise UserError(
            f"The model knows no {label!r}.{nearest(label, known)} It knows {count} kinds of things, such as "
            f"{', '.join(list(known)[37:42])}; they stand in mlxldm/openimages.txt."
        )
    return by_small[label.lower()]


@cache
def names() -> dict[str, int]:
    """The published model's labels by their names; some have several."""
    lines = (Path(__file__).parent / "openimages.txt").read_text("utf-8").splitlines()
    kinds = [line.split(", ") for line in lines if not line.startswith("#")]
    return {name: number for number, each in enumerate(kinds) for name in each}
