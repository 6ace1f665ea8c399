"""A model folder on disk: `model.json`, one safetensors file a part, the tokenizers. Written by `mlxldm-convert`.

    model.json                  what the model is (`Manifest`)
    text.safetensors            [text_2.safetensors]  denoiser.safetensors  vae.safetensors
    tokenizer/  [tokenizer_2/]

Tensors have diffusers' parameter names (CLIP with the `text_model.` prefix), convolutions are channel-last (OHWI), 1x1
convolutions are plain matrices [out, in]. Of a quantized matrix NAME.weight there are three: NAME.weight (its codes,
packed), NAME.scales and NAME.biases, see `quantized.py`. The layout is declared, in `model.json` and in each file's
metadata, because it cannot be seen from shapes: `encoder.conv_in` of an autoencoder is (128, 3, 3, 3) in either order.

Whoever presents a model (a folder written by us, or another program's checkpoint seen through the converter) does it as
a `Folder`: the manifest, and tensors read one by one when asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from mlxldm import quantized
from mlxldm.config import (
    KINDS,
    BertConfig,
    ClassEmbedderConfig,
    ClipTextConfig,
    Defaults,
    LowScaleConfig,
    PartConfig,
    RescalerConfig,
    ScheduleConfig,
    UNetConfig,
    VaeConfig,
    VqConfig,
)
from mlxldm.errors import UserError, nearest
from mlxldm.parameters import parameters
from mlxldm.tensors import Tensor, TensorFile, open_regular, shown

__all__ = ["FORMAT", "LAYOUT", "PARTS", "Folder", "Manifest", "Packed", "Tensor", "open_folder"]

FORMAT = 1
LAYOUT = "OHWI"
# Every part a model may have, with the kinds (`config.KINDS`) it may be of; the first is meant where nothing is said.
PARTS: dict[str, tuple[str, ...]] = {
    "text": ("clip", "bert"),
    "text_2": ("clip",),
    "classes": ("classes",),
    "rescaler": ("rescaler",),
    "denoiser": ("unet",),
    "controlnet": ("controlnet",),
    "vae": ("kl", "vq"),
}
FAMILIES = (
    *("sd1", "sd2", "sdxl", "sdxl-refiner", "upscaler"),
    # the original latent diffusion models (Rombach et al. 2022)
    *("ldm-uncond", "ldm-churches", "ldm-inpaint", "ldm-sr", "ldm-semantic", "ldm-layout", "ldm-classes"),
    *("ldm-classes-v2", "ldm-text256", "ldm-text", "ldm-retrieval", "ldm-first-stage"),
)
# What a model is for, with the parts it needs for that. "part" is one part alone, to be used in another model.
TASKS: dict[str, tuple[str, ...]] = {
    "text-to-image": ("text", "denoiser", "vae"),
    "inpaint": ("denoiser", "vae"),  # and text, but for ldm-inpaint
    "edit": ("text", "denoiser", "vae"),
    "depth": ("text", "denoiser", "vae"),
    "refine": ("text", "denoiser", "vae"),
    "upscale": ("text", "denoiser", "vae"),
    "unconditional": ("denoiser", "vae"),
    "class-to-image": ("classes", "denoiser", "vae"),
    "super-resolution": ("denoiser", "vae"),
    "semantic": ("rescaler", "denoiser", "vae"),
    "layout": ("text", "denoiser", "vae"),
    "retrieval": ("denoiser", "vae"),
    "part": (),
}
TOKENIZER_FILES = (
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "vocab.txt",  # BERT's
)

C = TypeVar("C", bound=PartConfig)
D = TypeVar("D", bound=PartConfig)

MAX_JSON = 16 << 20  # bytes of a json file we read whole
MAX_TOKENIZER_FILE = 64 << 20


# ---------------------------------------------------------------------------------------------------------------------
# The manifest


@dataclass(frozen=True)
class Manifest:
    """What `model.json` says: everything about a model but its numbers.

    `source` is where it came from: {"name": ..., "sha256": {file: digest}} with what is known.
    """

    name: str
    family: str  # of FAMILIES
    parts: Mapping[str, PartConfig]  # by their names in PARTS
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    defaults: Defaults = field(default_factory=Defaults)
    task: str = "text-to-image"  # of TASKS
    low_scale: LowScaleConfig | None = None  # upscalers: how the small picture is noised
    layout: str = LAYOUT
    format: int = FORMAT
    quantization: dict[str, Any] | None = None  # {"mode": "affine", "bits": 8, "group": 64}: the largest group
    source: dict[str, Any] = field(default_factory=dict)
    license: str | None = None
    zeros_for_empty: bool = False  # SDXL: a negative prompt that was not given is zeros, not the empty prompt

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", {part: self.parts[part] for part in PARTS if part in self.parts})

    def part(self, name: str, kind: type[C], *others: type[D]) -> C | D:
        """The config of a part that must be there, of one of these kinds; or a UserError with what the model has."""
        config = self.parts.get(name)
        if isinstance(config, (kind, others)):
            return config
        has = f"has {', '.join(self.parts)} and no {name}" if config is None else f"has a {name} of another kind"
        raise UserError(f"{self.name} cannot be run here: it {has} ({(config or kind).WHAT}).")

    @property
    def text(self) -> ClipTextConfig | BertConfig:
        """The text encoder."""
        return self.part("text", ClipTextConfig, BertConfig)

    @property
    def text_2(self) -> ClipTextConfig | None:
        """The second text encoder, if there is one."""
        return self.part("text_2", ClipTextConfig) if "text_2" in self.parts else None

    @property
    def texts(self) -> dict[str, ClipTextConfig | BertConfig]:
        """The text encoders by the names of their parts: none, one or two."""
        there = [part for part in ("text", "text_2") if part in self.parts]
        return {part: self.part(part, ClipTextConfig, BertConfig) for part in there}

    @property
    def classes(self) -> ClassEmbedderConfig:
        """The table of classes."""
        return self.part("classes", ClassEmbedderConfig)

    @property
    def rescaler(self) -> RescalerConfig:
        """What brings a map of labels to the size of the latents."""
        return self.part("rescaler", RescalerConfig)

    @property
    def denoiser(self) -> UNetConfig:
        """The U-Net."""
        return self.part("denoiser", UNetConfig)

    @property
    def vae(self) -> VaeConfig | VqConfig:
        """The autoencoder, with a KL-regularised latent or with a table of codes."""
        return self.part("vae", VaeConfig, VqConfig)

    def to_json(self) -> dict[str, Any]:
        """The object that stands in `model.json`."""
        return {
            "format": self.format,
            "name": self.name,
            "family": self.family,
            "task": self.task,
            "layout": self.layout,
            "parts": {part: {"kind": config.KIND, **config.to_dict()} for part, config in self.parts.items()},
            "schedule": self.schedule.to_dict(),
            "defaults": self.defaults.to_dict(),
            "low_scale": None if self.low_scale is None else self.low_scale.to_dict(),
            "quantization": self.quantization,
            "source": self.source,
            "license": self.license,
            "zeros_for_empty": self.zeros_for_empty,
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
        known = [*wanted, "format", "layout", "quantization", "source", "license", "zeros_for_empty", "low_scale"]
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
        for part in TASKS[values["task"]]:
            if part not in parts:
                raise UserError(f"{where} has no part '{part}': the model folder is not complete.")
        if not parts:
            raise UserError(f"{where} has no parts: the model folder is not complete.")
        quantization = values.get("quantization")
        if quantization is not None and not _known_quantization(quantization):
            raise UserError(
                f"{where} says the model is quantized in a way that this version does not read "
                f"({json.dumps(quantization)[:80]}): update mlxldm."
            )
        source, licence = values.get("source", {}), values.get("license")
        zeros = values.get("zeros_for_empty", False)
        if not isinstance(source, Mapping) or not isinstance(licence, str | None) or not isinstance(zeros, bool):
            raise UserError(f"{where} has a source, license or zeros_for_empty of the wrong kind: convert again.")
        low_scale = values.get("low_scale")
        if (values["task"] == "upscale") != (low_scale is not None):
            raise UserError(f"{where} has a low_scale, or lacks one, that its task {values['task']} does not ask for.")
        return cls(
            name=values["name"],
            family=values["family"],
            task=values["task"],
            parts={part: _config(part, config, where) for part, config in parts.items()},
            schedule=ScheduleConfig.from_dict(values["schedule"]),
            defaults=Defaults.from_dict(values["defaults"]),
            low_scale=None if low_scale is None else LowScaleConfig.from_dict(low_scale),
            quantization=quantization,
            source=dict(source),
            license=licence,
            zeros_for_empty=zeros,
        )


def _config(part: str, values: Any, where: str) -> PartConfig:
    """A part's config, of the kind it says."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} has a part '{part}' that is not an object: the model folder is damaged.")
    kind = values.get("kind", PARTS[part][0])
    if kind not in PARTS[part]:
        raise UserError(
            f"{where} has a {part} of kind '{str(kind)[:80]}', but this version knows {', '.join(PARTS[part])}."
        )
    return KINDS[kind].from_dict({key: value for key, value in values.items() if key != "kind"})


def _known_quantization(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and set(values) == {"mode", "bits", "group"}
        and values["mode"] == "affine"
        and values["bits"] in quantized.BITS
        and values["group"] in quantized.GROUPS
    )


@dataclass(frozen=True)
class Packed:
    """A quantized matrix as it is stored: MLX's affine codes, and what they are in."""

    codes: np.ndarray  # uint32 (out, in * bits / 32)
    scales: np.ndarray  # float16 (out, in / group)
    biases: np.ndarray  # float16 (out, in / group)
    bits: int
    group: int


class Folder(Protocol):
    """A model, ready to be read: written by us, or another checkpoint presented as if it were."""

    manifest: Manifest

    def names(self, part: str) -> dict[str, Tensor]:
        """Every tensor of a part with its stored dtype and its shape in our layout."""
        ...

    def read(self, part: str, name: str) -> np.ndarray:
        """One tensor, in our layout. bfloat16 comes as float32; float16 stays float16, and so come quantized ones."""
        ...

    def raw(self, part: str, name: str) -> np.ndarray:
        """One tensor, in our layout, with its stored bits: bfloat16 as uint16. For what is not quantized."""
        ...

    def groups(self, part: str) -> dict[str, int]:
        """The matrices that are stored quantized, with the size of their groups."""
        ...

    def packed(self, part: str, name: str) -> Packed:
        """One of the quantized matrices as its codes."""
        ...

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        """The files of `tokenizer/` (1) or `tokenizer_2/` (2), by name; those of `TOKENIZER_FILES` that exist."""
        ...

    def nbytes(self, part: str) -> int:
        """How many bytes the part's tensors take as stored."""
        ...

    def hashes(self) -> dict[str, str]:
        """The sha256 of every weight file this model comes from, by its name."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Files of a folder


def member(root: Path, *names: str) -> Path | None:
    """`root/names...` if it exists and does not lead out of `root`; None if it does not exist.

    In a hub cache every file is a link to `../../blobs/<hash>` of the same repository, which is as good as inside.
    """
    path = root.joinpath(*names)
    if not os.path.lexists(path):
        return None
    base, target = root.resolve(), path.resolve()
    homes = [base]
    for parent in (base, *base.parents):
        if parent.parent.name == "snapshots":
            homes.append(parent.parent.parent / "blobs")
            break
    if not any(target.is_relative_to(home) for home in homes):
        raise UserError(f"{shown(path)} is a link out of the model's folder, which is not followed.")
    return path


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"{shown(path)} has {size} bytes; at most {limit} were expected.")
        return file.read(size)


def read_json(path: Path, infinity: bool = False) -> Any:
    """A JSON file. `infinity` lets through the `-Infinity` that diffusers writes into scheduler configs."""
    data = read_bytes(path, MAX_JSON)

    def constant(text: str) -> float:
        if infinity and text != "NaN":
            return float(text)
        raise ValueError(text)

    try:
        return json.loads(data.decode("utf-8"), parse_constant=constant)
    except (ValueError, RecursionError):
        raise UserError(f"{shown(path)} is not JSON: the file is damaged.") from None


def tokenizer_files(root: Path, folder: str) -> dict[str, bytes]:
    """The files of a tokenizer folder that are needed to build the tokenizer, by name."""
    found = {}
    for name in TOKENIZER_FILES:
        path = member(root, folder, name)
        if path is not None:
            found[name] = read_bytes(path, MAX_TOKENIZER_FILE)
    return found


def check(part: str, found: Mapping[str, Tensor], config: Any, where: str) -> None:
    """Every parameter that `config` implies must be in `found` with its shape, and nothing else: or a UserError."""
    wanted = parameters(config)
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    wrong = [name for name in wanted if name in found and found[name].shape != wanted[name]]
    if missing:
        raise UserError(f"{where} lacks {len(missing)} of the {part}'s {len(wanted)} tensors: {_some(missing)}.")
    if extra:
        raise UserError(f"{where} has {len(extra)} tensors that have no place in the {part}: {_some(extra)}.")
    if wrong:
        named = [f"{name} is {list(found[name].shape)}, expected {list(wanted[name])}" for name in wrong[:5]]
        raise UserError(f"{where}: {len(wrong)} tensors are not of the shape the {part}'s config says: {_some(named)}.")


def beside(name: str, what: str) -> str:
    """ "a.b.weight" -> "a.b.scales"."""
    return f"{name.rpartition('.')[0]}.{what}"


def _some(names: list[str]) -> str:
    """The first five names, and whether there are more."""
    return ", ".join(shown(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")


class _Written:
    """A folder written by us."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.from_json(read_json(path / "model.json"), shown(path / "model.json"))
        self._files: dict[str, TensorFile] = {}
        self._groups: dict[str, dict[str, int]] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}  # as if nothing were quantized
        for part, config in self.manifest.parts.items():
            file = member(path, f"{part}.safetensors")
            if file is None:
                raise UserError(f"{shown(path)} has no {part}.safetensors: the model folder is not complete.")
            opened = self._files[part] = TensorFile(file)
            if opened.metadata.get("layout") != LAYOUT or opened.metadata.get("part") != part:
                raise UserError(
                    f"{shown(file)} has no layout mark of mlxldm, so it was not written by mlxldm-convert: "
                    f"convert the model again."
                )
            self._groups[part] = groups = self._quantized(opened, config, shown(file))
            self._tensors[part] = tensors = dict(opened.tensors)
            for name in groups:
                tensors[name] = Tensor("F16", parameters(config)[name])
                del tensors[beside(name, "scales")], tensors[beside(name, "biases")]
            check(part, tensors, config, shown(file))

    def _quantized(self, file: TensorFile, config: Any, where: str) -> dict[str, int]:
        """The group of every quantized matrix: it has scales, and the three are of the shapes its config says."""
        groups: dict[str, int] = {}
        how = self.manifest.quantization
        if how is None:
            return groups
        for name, shape in parameters(config).items():
            three = [file.tensors.get(key) for key in (name, beside(name, "scales"), beside(name, "biases"))]
            if three[1] is None or not name.endswith(".weight"):
                continue
            groups[name] = group = shape[-1] // max(three[1].shape[-1], 1) if three[1].shape else 0
            expected: list[Tensor] | None = None
            if group in quantized.GROUPS and quantized.fits(shape, group):
                shapes = quantized.packed_shapes(shape, how["bits"], group)
                expected = [Tensor(dtype, size) for dtype, size in zip(("U32", "F16", "F16"), shapes, strict=True)]
            if three != expected:
                raise UserError(
                    f"{where}: {shown(name)} is not a matrix of {list(shape)} in {how['bits']} bits with its scales "
                    f"and biases in float16: the folder is damaged, convert the model again."
                )
        return groups

    def names(self, part: str) -> dict[str, Tensor]:
        return dict(self._tensors[part])

    def read(self, part: str, name: str) -> np.ndarray:
        if name not in self._groups[part]:
            return self._files[part].read(name)
        packed = self.packed(part, name)
        return quantized.dequantize(packed.codes, packed.scales, packed.biases, packed.bits, packed.group)

    def raw(self, part: str, name: str) -> np.ndarray:
        return self._files[part].raw(name)

    def groups(self, part: str) -> dict[str, int]:
        return dict(self._groups[part])

    def packed(self, part: str, name: str) -> Packed:
        assert self.manifest.quantization is not None
        file = self._files[part]
        codes, scales, biases = (file.raw(key) for key in (name, beside(name, "scales"), beside(name, "biases")))
        return Packed(codes, scales, biases, self.manifest.quantization["bits"], self._groups[part][name])

    def hashes(self) -> dict[str, str]:
        """The sha256 of what this folder came from, as its manifest has it."""
        sums = self.manifest.source.get("sha256", {})
        return dict(sums) if isinstance(sums, dict) else {}

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        return tokenizer_files(self.path, "tokenizer" if number == 1 else f"tokenizer_{number}")

    def nbytes(self, part: str) -> int:
        return sum(tensor.nbytes for tensor in self._files[part].tensors.values())


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """A model folder written by `mlxldm-convert`, checked: every tensor its configs imply is there, and no other.

    Raises UserError for a folder that is not one, is damaged, or is of another version.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"There is no folder {shown(path)}.")
    if not (path / "model.json").is_file():
        raise UserError(f"{shown(path)} has no model.json, so it was not written by mlxldm-convert.")
    return _Written(path)
