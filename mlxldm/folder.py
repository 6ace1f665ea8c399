"""A model folder on disk: `model.json`, one safetensors file a part, the tokenizers. Written by `mlxldm-convert`.

    model.json                  what the model is (`Manifest`)
    text.safetensors            [text_2.safetensors]  denoiser.safetensors  vae.safetensors
    tokenizer/  [tokenizer_2/]

Tensors have diffusers' parameter names (CLIP with the `text_model.` prefix), convolutions are channel-last (OHWI), 1x1
convolutions are plain matrices [out, in]. The layout is declared, in `model.json` and in each file's metadata, because
it cannot be seen from shapes: `encoder.conv_in` of an autoencoder is (128, 3, 3, 3) in either order.

Whoever presents a model (a folder written by us, or another program's checkpoint seen through the converter) does it as
a `Folder`: the manifest, and tensors read one by one when asked for.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlxldm.config import ClipTextConfig, Defaults, ScheduleConfig, UNetConfig, VaeConfig
from mlxldm.errors import UserError, nearest

FORMAT = 1
LAYOUT = "OHWI"
PARTS = ("text", "text_2", "denoiser", "vae")
FAMILIES = ("sd1", "sd2", "sdxl")
TASKS = ("text-to-image",)
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

MAX_JSON = 16 << 20  # bytes of any json file we read whole
MAX_HEADER = 100_000_000  # bytes, as the safetensors library has it
MAX_METADATA = 1 << 20
MAX_TENSORS = 100_000
MAX_DEPTH = 32  # of nested json
MAX_TOKENIZER_FILE = 64 << 20

# safetensors' dtype names, their NumPy form; bfloat16 has none and is read as uint16
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor's safetensors dtype name ("F16", "BF16", "F32", ...) and shape, known without reading it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


# ---------------------------------------------------------------------------------------------------------------------
# The manifest


@dataclass(frozen=True)
class Manifest:
    """What `model.json` says: everything about a model but its numbers.

    `source` is where it came from: {"name": ..., "sha256": {file: digest}} with what is known.
    """

    name: str
    family: str  # "sd1", "sd2", "sdxl"
    text: ClipTextConfig
    denoiser: UNetConfig
    vae: VaeConfig
    text_2: ClipTextConfig | None = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    defaults: Defaults = field(default_factory=Defaults)
    task: str = "text-to-image"
    layout: str = LAYOUT
    format: int = FORMAT
    quantization: dict[str, Any] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    license: str | None = None

    @property
    def parts(self) -> dict[str, ClipTextConfig | UNetConfig | VaeConfig]:
        """The parts this model has, by their names in `PARTS`, with their configs."""
        found = {part: getattr(self, part) for part in PARTS}
        return {part: config for part, config in found.items() if config is not None}

    def to_json(self) -> dict[str, Any]:
        """The object that stands in `model.json`."""
        return {
            "format": self.format,
            "name": self.name,
            "family": self.family,
            "task": self.task,
            "layout": self.layout,
            "parts": {part: config.to_dict() for part, config in self.parts.items()},
            "schedule": self.schedule.to_dict(),
            "defaults": self.defaults.to_dict(),
            "quantization": self.quantization,
            "source": self.source,
            "license": self.license,
        }

    @classmethod
    def from_json(cls, values: Any, where: str = "model.json") -> Manifest:
        """Read what `to_json` wrote; anything else is a UserError that says what and `where`."""
        if not isinstance(values, Mapping):
            raise UserError(f"{where} is not an object: this is not a model folder of mlxldm.")
        if values.get("format") != FORMAT:
            raise UserError(
                f"{where} says format {values.get('format')!r}, but this version reads format {FORMAT}: "
                f"update mlxldm, or convert the model again."
            )
        if values.get("layout") != LAYOUT:
            raise UserError(
                f"{where} says layout {values.get('layout')!r}, but {LAYOUT!r} was expected: convert the model again."
            )
        wanted = {"name": str, "family": str, "task": str, "parts": Mapping, "schedule": Mapping, "defaults": Mapping}
        known = [*wanted, "format", "layout", "quantization", "source", "license"]
        for key in values:
            if key not in known:
                raise UserError(f"{where} has the key '{str(key)[:80]}', which is not known.{nearest(str(key), known)}")
        for key, kind in wanted.items():
            if not isinstance(values.get(key), kind):
                raise UserError(f"{where} lacks a usable '{key}': the model folder is damaged, convert it again.")
        for key, choices in (("family", FAMILIES), ("task", TASKS)):
            if values[key] not in choices:
                raise UserError(f"{where} says {key} '{values[key][:80]}'; this version knows {', '.join(choices)}.")
        parts = values["parts"]
        for part in parts:
            if part not in PARTS:
                raise UserError(f"{where} has the part '{str(part)[:80]}', but this version knows {', '.join(PARTS)}.")
        for part in ("text", "denoiser", "vae"):
            if part not in parts:
                raise UserError(f"{where} has no part '{part}': the model folder is not complete.")
        quantization = values.get("quantization")
        if quantization is not None:
            raise UserError(f"{where} says the model is quantized, which this version does not read: update mlxldm.")
        source, licence = values.get("source", {}), values.get("license")
        if not isinstance(source, Mapping) or not isinstance(licence, str | None):
            raise UserError(f"{where} has a source or license of the wrong kind: convert the model again.")
        return cls(
            name=values["name"],
            family=values["family"],
            task=values["task"],
            text=ClipTextConfig.from_dict(parts["text"]),
            text_2=ClipTextConfig.from_dict(parts["text_2"]) if "text_2" in parts else None,
            denoiser=UNetConfig.from_dict(parts["denoiser"]),
            vae=VaeConfig.from_dict(parts["vae"]),
            schedule=ScheduleConfig.from_dict(values["schedule"]),
            defaults=Defaults.from_dict(values["defaults"]),
            source=dict(source),
            license=licence,
        )


class Folder(Protocol):
    """A model, ready to be read: written by us, or another checkpoint presented as if it were."""

    manifest: Manifest

    def names(self, part: str) -> dict[str, Tensor]:
        """Every tensor of a part with its stored dtype and its shape in our layout."""
        ...

    def read(self, part: str, name: str) -> np.ndarray:
        """One tensor, in our layout. bfloat16 comes as float32; float16 stays float16."""
        ...

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        """The files of `tokenizer/` (1) or `tokenizer_2/` (2), by name; those of `TOKENIZER_FILES` that exist."""
        ...

    def nbytes(self, part: str) -> int:
        """How many bytes the part's tensors take as stored."""
        ...
