"""One safetensors file: a header of names, dtypes, shapes and offsets, then the bytes. Read strictly, tensor by tensor.

Files come from strangers, and the usual readers accept what they should not: overlaps, holes, trailing bytes, a key
that stands twice, a shape that wraps around. Here the header is checked whole before a byte of data is read, and data
is read from the very file that was checked (it stays open), into memory of its own, so that what is resident is what is
in use.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm.errors import UserError

MAX_HEADER = 100_000_000  # bytes, as the safetensors library has it
MAX_METADATA = 8 << 20
MAX_TENSORS = 100_000
MAX_NUMBER = 1 << 48
MAX_DIMS = 8

# safetensors' dtype names, their NumPy form; bfloat16 and float8 have none and are read as uint16 and uint8
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
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
        """Bytes it takes in a file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def open_regular(path: Path) -> int:
    """A file descriptor for reading; anything but a regular file (a folder, a pipe) is a UserError, without hanging."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        number = os.open(path, flags)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror or error}.") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f"{shown(path)} is not a regular file.")
    return number


def shown(text: object) -> str:
    """A name from a file or a path, safe to print: no control characters, not endless."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return safe if len(safe) <= 300 else safe[:140] + "..." + safe[-140:]


class OpenFile:
    """A file of tensors that is read a piece at a time, from any thread, and closed with its owner."""

    ENDS = "ends within"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = os.fdopen(open_regular(self.path), "rb", buffering=0)
        self._lock = threading.Lock()
        self._size = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Let go of the file; no tensor can be read afterwards."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _fill(self, offset: int, buffer: memoryview, what: str) -> None:
        with self._lock:
            self._file.seek(offset)
            done = 0
            while done < len(buffer):
                count = self._file.readinto(buffer[done : done + (1 << 30)])
                if not count:
                    raise self._bad(f"{self.ENDS} {what}: it changed while it was read")
                done += count

    def _bad(self, what: str) -> UserError:
        raise NotImplementedError


class TensorFile(OpenFile):
    """An open safetensors file. `tensors` and `metadata` are known; `read` brings one tensor."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check `path`; what is wrong with it is a UserError that names it."""
        super().__init__(path)
        try:
            header, self._start = self._header()
            self.metadata, self.tensors, self._offsets = self._check(header)
        except BaseException:
            self._file.close()
            raise

    def raw(self, name: str) -> np.ndarray:
        """One tensor with its stored bits; bfloat16 comes as uint16."""
        tensor = self.tensors[name]
        array = np.empty(tensor.shape, DTYPES[tensor.dtype])
        if array.nbytes:
            self._fill(self._start + self._offsets[name], memoryview(array.reshape(-1).view(np.uint8).data), name)
        return array

    def read(self, name: str) -> np.ndarray:
        """One tensor; bfloat16 comes as float32, everything else as stored."""
        array = self.raw(name)
        return from_bfloat16(array) if self.tensors[name].dtype == "BF16" else array

    def _bad(self, what: str) -> UserError:
        return UserError(f"{shown(self.path)} is damaged or not a safetensors file: {shown(what)}.")

    def _header(self) -> tuple[dict[str, Any], int]:
        if self._size < 10:
            raise self._bad(f"it has {self._size} bytes, too short")
        first = bytearray(8)
        self._fill(0, memoryview(first), "the header")
        length = int.from_bytes(first, "little")
        if length > min(MAX_HEADER, self._size - 8) or length < 2:
            raise self._bad(f"the header length is {length}")
        data = bytearray(length)
        self._fill(8, memoryview(data), "the header")
        if data[:1] != b"{":
            raise self._bad("the header does not begin with {")
        try:
            header = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        except UnicodeDecodeError:
            raise self._bad("the header is not UTF-8") from None
        except RecursionError:
            raise self._bad("the header nests too deep") from None
        except ValueError as error:
            raise self._bad(f"the header is not JSON ({error})") from None
        return header, 8 + length

    def _check(self, header: dict[str, Any]) -> tuple[dict[str, str], dict[str, Tensor], dict[str, int]]:
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise self._bad("__metadata__ is not an object of texts")
        if sum(len(key) + len(text) for key, text in metadata.items()) > MAX_METADATA:
            raise self._bad("__metadata__ is too large")
        if len(header) > MAX_TENSORS:
            raise self._bad(f"it has {len(header)} tensors, too many")
        tensors: dict[str, Tensor] = {}
        spans: list[tuple[int, int, str]] = []
        for name, entry in header.items():
            try:
                name.encode("utf-8")
            except UnicodeEncodeError:
                raise self._bad(f"bad tensor name {ascii(name)}") from None
            if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
                raise self._bad(f"{name}: the entry is not dtype, shape and data_offsets")
            dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not isinstance(dtype, str) or dtype not in DTYPES:
                raise self._bad(f"{name}: dtype {dtype!r} is not known")
            if not isinstance(shape, list) or len(shape) > MAX_DIMS or not isinstance(offsets, list):
                raise self._bad(f"{name}: bad shape or offsets")
            if len(offsets) != 2 or not all(type(n) is int and 0 <= n < MAX_NUMBER for n in (*shape, *offsets)):
                raise self._bad(f"{name}: a number is negative, huge or not whole")
            tensor = Tensor(dtype, tuple(shape))
            if tensor.nbytes != offsets[1] - offsets[0]:
                raise self._bad(f"{name}: {offsets[1] - offsets[0]} bytes for shape {shape} {dtype}")
            tensors[name] = tensor
            spans.append((offsets[0], offsets[1], name))
        end = 0
        for begin, stop, name in sorted(spans):
            if begin != end:
                raise self._bad(f"{name}: hole or overlap at {begin} (expected {end})")
            end = stop
        data = self._size - self._start
        if end != data:
            raise self._bad(f"data is {data} bytes, tensors cover {end}")
        return metadata, tensors, {name: begin for begin, _, name in spans}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key '{key[:80]}'")
            seen.add(key)
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"constant {text}")


def header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], align: int = 4096) -> bytes:
    """The bytes that begin a safetensors file whose data are `tensors` in this order; data starts at a page."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % align)  # the format allows trailing blanks
    return len(text).to_bytes(8, "little") + text


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits (uint16); exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) of finite float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
