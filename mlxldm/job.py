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


@dataclass(frozen=True)
class Job:
    """A wish for one or more pictures. `None` means "not given": the model's own default, never zero."""

    prompt: str = ""
    negative: str | None = None  # None and "" differ for models that were taught with zeros for no text (SDXL)
    model: str | None = None  # a name, a folder, a file or a hub id; None is the embedded model
    seed: int | None = None  # None draws a fresh one; picture i of `count` has seed + i
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    spacing: str | None = None
    width: int | None = None  # pixels, a multiple of 8
    height: int | None = None
    count: int = 1
    image: str | None = None  # path of the picture to start from
    strength: float | None = None  # how much of it to change, 0 to 1
    image_guidance: float | None = None  # for models that edit: how closely to keep to the picture
    depth: str | None = None  # path of a depth map, near is white: for models that take one
    mask: str | None = None  # path of the mask: white is painted anew, black stays
    noise: str = "torch-cpu"  # whose random numbers: torch's CPU generator, or an NVIDIA GPU's

    @classmethod
    def from_json(cls, data: str | bytes | dict[str, Any]) -> Job:
        """The job in a JSON object (as text or already parsed).

        Strict: text that is not a JSON object, an unknown key or a value of the wrong type is a `UserError`.
        Whether the values make sense for a model is asked later, by `generate.resolve`.
        """
        if not isinstance(data, dict):
            data = _parse(data)
        known = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in known:
                raise UserError(
                    f"A job has no {key!r}.{nearest(key, known)} It knows {', '.join(known)}."
                )
            values[key] = _checked(key, value, str(known[key].type))
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """All that is given, as a dict for `json.dumps`; keys whose value is None are left out."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def replace(self, **changes: Any) -> Job:
        """A copy with some values changed."""
        return dataclasses.replace(self, **changes)


def _parse(text: str | bytes) -> dict[str, Any]:
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not a JSON number")

    try:
        data = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"This is not a job in JSON: {error}.") from None
    if not isinstance(data, dict):
        raise UserError(f"A job is a JSON object like {{\"prompt\": \"...\"}}, but this is a {type(data).__name__}.")
    return data


def _checked(key: str, value: Any, declared: str) -> Any:
    """`value` if it has the declared type (an int is good for a float; a bool is good for neither)."""
    kinds = [kind.strip() for kind in declared.split("|")]
    if value is None and "None" in kinds:
        return None
    if "int" in kinds and isinstance(value, int) and not isinstance(value, bool):
        return value
    if "float" in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"The job's {key} is too large a number.") from None
    if "str" in kinds and isinstance(value, str):
        return value
    expected = {"int": "a whole number", "float": "a number", "str": "a text"}[kinds[0]]
    raise UserError(f"The job's {key} should be {expected}, but it is {json.dumps(value, default=str)[:60]}.")
