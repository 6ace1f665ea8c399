"""What kind of file this is, by its first bytes and never by its name; and the door through which its tensors come.

Every kind of container gives the same thing, a `Source`: names with dtype and shape, known at once, and one tensor at a
time when it is asked for. `Weights` are the tensors of one part of a model, wherever they lie.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from mlxldm.errors import UserError
from mlxldm.folder import member, read_json
from mlxldm.tensors import Tensor, TensorFile, open_regular, shown

LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # pickled 0x1950a86a20f9469cfc6c: torch 0.1.10 to 1.5

# Recognised and not read: what it is, and what the person can do.
REFUSED = {
    "lfs": "is a Git LFS pointer, not the weights themselves: run `git lfs pull` in that folder",
    "html": "is a web page or an error message that was saved instead of the file: download it again",
    "empty": "is empty: the download or the copy failed, fetch it again",
    "zip": "is a zip archive and no checkpoint: unpack it and give the folder or file inside",
    "tar": "is a checkpoint in a tar archive (torch before 0.1.10): load it once with an old torch and save it again",
    "unknown": "is no checkpoint of a known kind (safetensors, a PyTorch checkpoint or GGUF was expected)",
}


class Source(Protocol):
    """An open checkpoint file. Its names are whatever its writer chose."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    def raw(self, name: str) -> np.ndarray:
        """One tensor with its stored bits; bfloat16 as uint16, float8 as uint8."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def kind(path: Path) -> str:
    """ "safetensors", "torch", "gguf", or a key of `REFUSED`."""
    number = open_regular(path)
    with os.fdopen(number, "rb", buffering=0) as file:
        first = file.read(512) or b""
        size = os.fstat(file.fileno()).st_size
    if not first:
        return "empty"
    if first.startswith(b"PK\x03\x04"):
        # torch's archives begin with ROOT/data.pkl, or (TorchScript) with a file of ROOT/
        return "torch" if b"/data.pkl" in first or b"/version" in first or b"/code/" in first else "zip"
    if first[257:262] == b"ustar" or first.startswith((b"storages", b"tensors")):
        return "tar"
    if first.startswith(LEGACY) or first[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "torch"
    if first.startswith((b"(dp0", b"(lp0", b"ccollections", b"c__builtin__", b"cos\n", b"cposix")):
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


def open_file(path: Path) -> Source:
    """The checkpoint at `path`; what is none is a UserError that says what it is."""
    found = kind(path)
    if found == "torch":
        from .torch_file import TorchFile

        return TorchFile(path)
    if found == "gguf":
        from .gguf import GgufFile

        return GgufFile(path)
    if found == "safetensors":
        return TensorFile(path)
    raise UserError(f"{shown(path)} {REFUSED[found]}.")


class Weights:
    """The tensors of one part: from one file, from several shards, or some of a file's under other names."""

    def __init__(self, origin: Mapping[str, tuple[Source, str]]) -> None:
        """`origin`: for each tensor of the part, the file it is in and what it is called there."""
        self._origin = dict(origin)
        self.tensors: dict[str, Tensor] = {name: file.tensors[theirs] for name, (file, theirs) in origin.items()}

    def raw(self, name: str) -> np.ndarray:
        """The tensor's stored bits; bfloat16 as uint16."""
        file, theirs = self._origin[name]
        return file.raw(theirs)

    def full(self, name: str) -> str:
        """What the tensor is called in its file."""
        return self._origin[name][1]

    @property
    def paths(self) -> list[Path]:
        """The files, each once, in order of their first use."""
        return list(dict.fromkeys(file.path for file, _ in self._origin.values()))


def open_weights(root: Path, folder: str, name: str) -> Weights:
    """The tensors behind `root/folder/name`: a checkpoint file, or the index of a sharded one.

    The shards must hold exactly what the index says: a file that is not there, a tensor it does not hold, and a tensor
    that the index does not mention are errors.
    """
    path = member(root, folder, name)
    if path is None:
        raise UserError(f"{shown(root / folder)} has no {name}: the model is not complete.")
    if ".index." not in name:
        one = open_file(path)
        return Weights({tensor: (one, tensor) for tensor in one.tensors})
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise UserError(f"{shown(path)} has no usable weight_map: the index is damaged.")
    opened: dict[str, Source] = {}
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
    return Weights({tensor: (opened[place], tensor) for tensor, place in places.items()})
