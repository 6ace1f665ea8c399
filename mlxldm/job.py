"""What a person asks for, as plain data that goes through JSON and back unchanged.

Standard library only: the desktop app and the worker both import this, and neither may load a framework for it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from .errors import UserError, nearest

NOISES = ("torch-cpu", "nvidia")
SEAMLESS = ("x", "y", "both")


@dataclass(frozen=True)
class Box:
    """Where something is to be, for models that draw by boxes."""

    label: str | int  # what, by its name or its number
    box: tuple[float, float, float, float]  # left, top, right, bottom in parts of the picture, 0 to 1


@dataclass(frozen=True)
class Job:
    """A wish for one or more pictures. `None` means "not given": the model's own default, never zero."""

    prompt: str = ""
    negative: str | None = None  # None and "" differ for models that were taught with zeros for no text (SDXL)
    model: str | None = None  # a name, a folder, a file or a hub id; None is the embedded model
    prompt_2: str | None = None  # what a second text encoder (SDXL's) reads instead
    negative_2: str | None = None
    emphasis: str | None = None  # what brackets in prompts do: of `prompt.EMPHASES`
    clip_skip: int | None = None  # which layer of the text encoder is read, 1 the last: see `ClipTextConfig.layer`
    wildcards: str | None = None  # path of the folder with the files that __name__ in a prompt stands for a line of
    template: str | None = None  # what the prompt was before its choices were made; there are none to make then
    negative_template: str | None = None
    template_2: str | None = None
    negative_template_2: str | None = None
    seed: int | None = None  # None draws a fresh one; picture i of `count` has seed + i
    steps: int | None = None
    guidance: float | None = None
    guidance_rescale: float | None = None  # how much of guidance's gain in contrast to take back, 0 to 1
    guidance_start: float | None = None  # guide only from this part of the walk on, 0 to 1 ...
    guidance_stop: float | None = None  # ... and only up to this one
    refiner: str | None = None  # a second model that ends what the first begins (SDXL's refiner), named as `model` is
    refiner_start: float | None = None  # which part of the way it leaves to the first, 0 to 1
    sampler: str | None = None
    spacing: str | None = None
    width: int | None = None  # pixels, a multiple of 8
    height: int | None = None
    count: int = 1  # pictures; with a variation, it is the variation's seed that counts up
    variation: str | None = None  # "SEED:AMOUNT": mix so much of another seed's noise in, 0 to 1
    seamless: str | None = None  # "x", "y" or "both": the picture continues on its other side
    hires: float | None = None  # how many times as large a second pass draws the first one's picture over
    hires_strength: float | None = None  # how much of it to change then, 0 to 1
    hires_steps: int | None = None
    image: str | None = None  # path of the picture to start from
    strength: float | None = None  # how much of it to change, 0 to 1
    noise_level: int | None = None  # for models that enlarge: how much noise to put on the picture first
    tile: int | None = None  # pixels: make the picture in tiles of this size that overlap
    image_guidance: float | None = None  # for models that edit: how closely to keep to the picture
    depth: str | None = None  # path of a depth map, near is white: for models that take one
    mask: str | None = None  # path of the mask: white is painted anew, black stays
    mask_grow: int | None = None  # pixels by which its white grows, or shrinks if below 0
    mask_blur: int | None = None  # how softly new pixels go over into old ones: radius of a Gaussian, in pixels
    only_masked: bool | None = None  # draw only what lies around the mask, at the job's size, and put it back
    mask_padding: int | None = None  # how much around it, in pixels of the picture
    extend: str | None = None  # "LEFT,TOP,RIGHT,BOTTOM": pixels to paint beyond the picture's sides
    label: int | None = None  # for models of classes: the number of one
    boxes: tuple[Box, ...] | None = None  # for models that draw by boxes
    semantic: str | None = None  # path of a map of labels: for models that take one
    database: str | None = None  # path of a folder of pictures: for models that look at some while they draw
    neighbours: int | None = None  # how many of them
    clip: str | None = None  # the CLIP that finds them: path of its folder, or hub id
    loras: tuple[str, ...] = ()  # "NAME:SCALE[:SCALE of the text encoders][:lbw=...]", see `adapters.wish`
    embeddings: tuple[str, ...] = ()  # textual inversions: names or files of words that the prompts may use
    noise: str = "torch-cpu"  # whose random numbers: torch's CPU generator, or an NVIDIA GPU's

    @classmethod
    def from_json(cls, data: str | bytes | dict[str, Any]) -> Job:
        """The job in a JSON object (as text or already parsed).

        Strict: text that is not a JSON object, an unknown key or a value of the wrong type is a `UserError`.
        Whether the values make sense for a model is asked later, by `generate.resolve`.
        """
        if not isinstance(data, dict):
            data = parse(data, "This is not a job in JSON")
            if not isinstance(data, dict):
                kind = type(data).__name__
                raise UserError(f"A job is a JSON object like {{\"prompt\": \"...\"}}, but this is a {kind}.")
        known = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in known:
                raise UserError(
                    f"A job has no {key!r}.{nearest(key, known)} It knows {', '.join(known)}."
                )
            if key == "boxes" and value is not None:
                values[key] = boxes_of(value)
            elif key in ("loras", "embeddings"):
                values[key] = _texts(key, value)
            else:
                values[key] = _checked(key, value, str(known[key].type))
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """All that is given, as a dict for `json.dumps`; keys whose value is None or no item are left out."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None and value != ()}

    def replace(self, **changes: Any) -> Job:
        """A copy with some values changed."""
        return dataclasses.replace(self, **changes)

    def numbered(self, index: int) -> Job:
        """The job of one of its pictures: the seed is so much higher, or, with a variation, the variation's seed."""
        if self.variation is None:
            return self.replace(seed=None if self.seed is None else self.seed + index, count=1)
        seed, amount = variation_of(self.variation)
        return self.replace(variation=f"{seed + index}:{amount}", count=1)

    @property
    def masked(self) -> bool:
        """Whether it paints a part of a picture."""
        return self.mask is not None or self.extend is not None


def variation_of(text: str) -> tuple[int, float]:
    """The seed and the amount, 0 to 1, of a job's variation."""
    seed, _, amount = text.partition(":")
    try:
        found = int(seed), float(amount)
    except ValueError:
        found = -1, -1.0
    if not (0 <= found[0] < 2**64 and 0 <= found[1] <= 1):
        raise UserError(
            f"The job's variation is {text!r}, but it must be a seed and an amount from 0 to 1, for example 123:0.2."
        )
    return found


def parse(text: str | bytes, otherwise: str) -> Any:
    """What a text in JSON says; `otherwise` begins the `UserError` for one that is none."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not a JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{otherwise}: {error}.") from None


def boxes_of(value: Any) -> tuple[Box, ...]:
    """The boxes in a JSON list of objects with a label and a box; strict, as the job itself."""
    form = 'a list like [{"label": "Dog", "box": [0.1, 0.4, 0.5, 0.9]}, ...]'
    if not isinstance(value, list | tuple):
        raise UserError(f"Boxes are {form}, but this is {json.dumps(value, default=str)[:60]}.")
    found = []
    for item in value:
        sides = item.get("box") if isinstance(item, dict) and set(item) == {"label", "box"} else None
        label = item["label"] if sides is not None else None
        four = isinstance(sides, list | tuple) and len(sides) == 4 and all(_is_number(side) for side in sides)
        if sides is None or not four or not isinstance(label, str | int) or isinstance(label, bool):
            raise UserError(f"Boxes are {form}, but one of them is {json.dumps(item, default=str)[:80]}.")
        left, top, right, bottom = (_checked("box", side, "float") for side in sides)
        found.append(Box(label, (left, top, right, bottom)))
    return tuple(found)


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise UserError(f"The job's {key} should be a list of texts, but it is {json.dumps(value, default=str)[:60]}.")
    return tuple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked(key: str, value: Any, declared: str) -> Any:
    """`value` if it has the declared type (an int is good for a float; a bool is good for neither)."""
    kinds = [kind.strip() for kind in declared.split("|")]
    if value is None and "None" in kinds:
        return None
    if "int" in kinds and isinstance(value, int) and not isinstance(value, bool):
        return value
    if "float" in kinds and _is_number(value):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"The job's {key} is too large a number.") from None
    if ("str" in kinds and isinstance(value, str)) or ("bool" in kinds and isinstance(value, bool)):
        return value
    expected = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}[kinds[0]]
    raise UserError(f"The job's {key} should be {expected}, but it is {json.dumps(value, default=str)[:60]}.")
