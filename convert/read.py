"""What kind of file this is, by its first bytes and never by its name; and the door through which its tensors come.

Every kind of container will give the same thing: `tensors` (names with dtype and shape, known at once) and `raw(name)`.
Today that is safetensors. The others are recognised, so that the message says what the file is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlxldm.errors import UserError
from mlxldm.folder import member, read_json
from mlxldm.tensors import Tensor, TensorFile, open_regular, shown

LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # pickled 0x1950a86a20f9469cfc6c: torch 0.1.10 to 1.5

# Recognised and not read (yet): what it is, and what the person can do.
LATER = {
    "torch": "is a PyTorch checkpoint (pickle), which a later version reads: use a .safetensors copy of the model",
    "gguf": "is a GGUF file, which a later version reads: use a .safetensors copy of the model",
    "lfs": "is a Git LFS pointer, not the weights themselves: run `git lfs pull` in that folder",
    "html": "is a web page or an error message that was saved instead of the file: download it again",
    "empty": "is empty: the download or the copy failed, fetch it again",
    "zip": "is a zip archive: unpack it and give the folder or file inside",
    "unknown": "is no checkpoint of a known kind (safetensors was expected)",
}


def kind(path: Path) -> str:
    """"safetensors", or a key of `LATER`."""
    number = open_regular(path)
    with os.fdopen(number, "rb", buffering=0) as file:
        first = file.read(512) or b""
        size = os.fstat(file.fileno()).st_size
    if not first:
        return "empty"
    if first.startswith(b"PK\x03\x04"):
        return "torch" if b"data.pkl" in first or b"/data/" in first else "zip"
    if first.startswith(LEGACY) or first[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "torch"
    if first.startswith((b"storages", b"tensors", b"(dp0")) or first[257:262] == b"ustar":
        return "torch"
    if first.startswith(b"GGUF"):
        return "gguf"
    if first.startswith(b"version https://git-lfs"):
        return "lfs"
    text = first.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b'{"error"', b"<?xml")):
        return "html"
    if size > 8 and first[8:9] == b"{":
        return "safetensors"
    return "unknown"


class Weights:
    """The tensors of one part, from one file or from several shards."""

    def __init__(self, files: list[TensorFile], origin: Mapping[str, TensorFile]) -> None:
        self.files = files
        self._origin = dict(origin)
        self.tensors: dict[str, Tensor] = {name: file.tensors[name] for name, file in origin.items()}

    def raw(self, name: str) -> np.ndarray:
        """The tensor's stored bits; bfloat16 as uint16."""
        return self._origin[name].raw(name)

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [file.path for file in self.files]


def open_file(path: Path) -> TensorFile:
    """A safetensors file; everything else is a UserError that says what it is."""
    found = kind(path)
    if found != "safetensors":
        raise UserError(f"{shown(path)} {LATER[found]}.")
    return TensorFile(path)


def open_weights(root: Path, folder: str, name: str) -> Weights:
    """The tensors behind `root/folder/name`: a safetensors file, or the index of a sharded one.

    The shards must hold exactly what the index says: a file that is not there, a tensor it does not hold, and a tensor
    that the index does not mention are errors.
    """
    path = member(root, folder, name)
    if path is None:
        raise UserError(f"{shown(root / folder)} has no {name}: the model is not complete.")
    if ".index." not in name:
        one = open_file(path)
        return Weights([one], {tensor: one for tensor in one.tensors})
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise UserError(f"{shown(path)} has no usable weight_map: the index is damaged.")
    opened: dict[str, TensorFile] = {}
    for place in sorted(set(places.values())):
        if place != os.path.basename(place) or place in ("", ".", "..") or "\\" in place:
            raise UserError(f"{shown(path)} names the shard '{shown(place)}', which is not a file beside it.")
        shard = member(root, folder, place)
        if shard is None:
            raise UserError(f"{shown(path)} names the shard {shown(place)}, which is not there: get the whole model.")
        opened[place] = open_file(shard)
    for place, file in opened.items():
        for tensor in file.tensors:
            if places.get(tensor) != place:
                raise UserError(f"{shown(file.path)} holds {shown(tensor)}, which the index does not place there.")
    for tensor, place in places.items():
        if tensor not in opened[place].tensors:
            raise UserError(f"{shown(opened[place].path)} lacks {shown(tensor)}, which the index places there.")
    return Weights(list(opened.values()), {tensor: opened[place] for tensor, place in places.items()})
