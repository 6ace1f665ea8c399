"""One GGUF file: metadata, names with shapes and types, then the data, most of it in small blocks of few bits.

Two kinds hold models for pictures. stable-diffusion.cpp writes whole checkpoints under their original names, usually
without any metadata. ComfyUI-GGUF writes the U-Net alone, without `model.diffusion_model.`; `general.architecture`
says which ("sd1", "sdxl"), and a tensor whose rows are no whole blocks is stored as [n / 256, 256] with its own shape
in the metadata, under `comfy.gguf.orig_shape.` and its name.

Files come from strangers, and readers of this format have been crashed by every length in it. Here each count and each
length is held against the bytes that are left before anything is allocated or skipped, and the data must lie as ggml's
own writers lay it: one tensor after the other, each at a multiple of the alignment, nothing between and nothing behind.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
The blocks: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, `block_q4_0` and its neighbours
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from mlxldm.errors import UserError
from mlxldm.tensors import DTYPES, MAX_DIMS, MAX_METADATA, MAX_TENSORS, OpenFile, Tensor, shown

MAX_HEADER = 64 << 20  # bytes before the data; the largest vocabularies of language models take a quarter of it
MAX_KEYS = 100_000
MAX_KEY = 65_535  # bytes, as the format has it
MAX_NAME = 1024  # bytes; the format says 64, but SDXL's names are longer and are written all the same
MAX_STRINGS = 1 << 19  # in all lists together; a language model of 2024 has 400,000
ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20  # bytes: where a file says nothing, and more than any page
SHAPE = "comfy.gguf.orig_shape."
CHUNK = 1 << 18  # values that are decoded at a time: a megabyte of float32


# ---------------------------------------------------------------------------------------------------------------------
# Blocks: a few scales, and many small numbers packed into bytes. A block's dtype is ggml's struct, field by field.


def _unpack(packed: np.ndarray, width: int, run: int) -> np.ndarray:
    """Numbers of `width` bits from bytes [blocks, n]: each run of bytes gives its lowest bits first, then the next.

    So a byte's neighbours in a block are not each other's neighbours in it: with nibbles and a run of 16, byte 0 holds
    the numbers 0 and 16.
    """
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    numbers = (packed.reshape(len(packed), -1, 1, run) >> shifts) & np.uint8((1 << width) - 1)
    return numbers.reshape(len(packed), -1)


def _float(blocks: np.ndarray, field: str) -> np.ndarray:
    values: np.ndarray = blocks[field].astype(np.float32)
    return values


def _scaled(numbers: np.ndarray, scales: np.ndarray, minima: np.ndarray | None = None) -> np.ndarray:
    """numbers * scale - minimum, each scale for a group of neighbours: numbers [blocks, n], scales [blocks, groups]."""
    values: np.ndarray = numbers.astype(np.float32).reshape(*scales.shape, -1) * scales[..., None]
    if minima is not None:
        values -= minima[..., None]
    return values.reshape(len(numbers), -1)


def _fifth_bits(blocks: np.ndarray) -> np.ndarray:
    bits: np.ndarray = np.unpackbits(blocks["qh"], axis=-1, bitorder="little")
    return bits << np.uint8(4)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _scaled(_unpack(blocks["qs"], 4, 16).view(np.int8) - 8, _float(blocks, "d"))


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _scaled(_unpack(blocks["qs"], 4, 16), _float(blocks, "d"), -_float(blocks, "m"))


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    numbers = _unpack(blocks["qs"], 4, 16) | _fifth_bits(blocks)
    return _scaled(numbers.view(np.int8) - 16, _float(blocks, "d"))


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    numbers = _unpack(blocks["qs"], 4, 16) | _fifth_bits(blocks)
    return _scaled(numbers, _float(blocks, "d"), -_float(blocks, "m"))


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return _scaled(blocks["qs"], _float(blocks, "d"))


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    scales, minima = blocks["scales"] & 15, blocks["scales"] >> 4
    return _scaled(_unpack(blocks["qs"], 2, 32), scales * _float(blocks, "d"), minima * _float(blocks, "dmin"))


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    # Scales and numbers are both cut in two: the upper bits lie apart from the lower ones.
    packed = blocks["scales"]
    scales = _unpack(packed[:, :8], 4, 8) | _unpack(packed[:, 8:], 2, 4) << 4
    numbers = _unpack(blocks["qs"], 2, 32) | _unpack(blocks["hmask"], 1, 32) << 2
    return _scaled(numbers.view(np.int8) - 4, (scales.view(np.int8) - 32) * _float(blocks, "d"))


def _scales_of_six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima in 12 bytes; the last four of each have their upper bits on top of the first."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scales, minima


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    scales, minima = _scales_of_six_bits(blocks["scales"])
    return _scaled(_unpack(blocks["qs"], 4, 32), scales * _float(blocks, "d"), minima * _float(blocks, "dmin"))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    scales, minima = _scales_of_six_bits(blocks["scales"])
    numbers = _unpack(blocks["qs"], 4, 32) | _unpack(blocks["qh"], 1, 32) << 4
    return _scaled(numbers, scales * _float(blocks, "d"), minima * _float(blocks, "dmin"))


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    numbers = _unpack(blocks["ql"], 4, 64) | _unpack(blocks["qh"], 2, 32) << 4
    return _scaled(numbers.view(np.int8) - 32, blocks["scales"] * _float(blocks, "d"))


@dataclass(frozen=True)
class Block:
    """A quantized type: how many values one block gives, how its bytes lie, and how they become float32."""

    values: int
    layout: np.dtype[Any]
    decode: Callable[[np.ndarray], np.ndarray]


def _layout(*fields: tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype([(name, kind, (count,)) for name, kind, count in fields])


_D, _M, _DMIN = ("d", "<f2", 1), ("m", "<f2", 1), ("dmin", "<f2", 1)
BLOCKS: dict[str, Block] = {
    "Q4_0": Block(32, _layout(_D, ("qs", "u1", 16)), _q4_0),
    "Q4_1": Block(32, _layout(_D, _M, ("qs", "u1", 16)), _q4_1),
    "Q5_0": Block(32, _layout(_D, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_0),
    "Q5_1": Block(32, _layout(_D, _M, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_1),
    "Q8_0": Block(32, _layout(_D, ("qs", "i1", 32)), _q8_0),
    "Q2_K": Block(256, _layout(("scales", "u1", 16), ("qs", "u1", 64), _D, _DMIN), _q2_k),
    "Q3_K": Block(256, _layout(("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), _D), _q3_k),
    "Q4_K": Block(256, _layout(_D, _DMIN, ("scales", "u1", 12), ("qs", "u1", 128)), _q4_k),
    "Q5_K": Block(256, _layout(_D, _DMIN, ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)), _q5_k),
    "Q6_K": Block(256, _layout(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D), _q6_k),
}

# ggml's numbers. The first ones are stored as they are, and safetensors has the same names for them.
PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
QUANTIZED = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
}  # fmt: skip
# Known by name and not decoded: hardly a model for pictures comes in them.
OTHERS = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


def dequantize(kind: str, data: np.ndarray) -> np.ndarray:
    """The float32 values [blocks, values of a block] of blocks of a type of `BLOCKS`; `data` is their bytes, uint8.

    The same bits as ggml's own: a scale has 11 bits and what it is multiplied by 13 at most, so every product is exact
    in float32, and only the last subtraction rounds.
    """
    block = BLOCKS[kind]
    with np.errstate(invalid="ignore"):  # a scale of a damaged file may be infinite; who uses the values looks at them
        return block.decode(data.reshape(-1).view(block.layout))


# ---------------------------------------------------------------------------------------------------------------------
# The file

# The metadata's types, and the form that `struct` has for the numbers among them.
UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", BOOL: "<B", 10: "<Q", 11: "<q", 12: "<d"}
WHOLE = (0, 1, 2, 3, 4, 5, 10, 11)


class GgufFile(OpenFile):
    """An open GGUF file. `metadata`, `tensors` and `types` are known; `raw` brings one tensor.

    `types` has each tensor's type as GGUF calls it, "Q4_K" or "F16"; `tensors` has what `raw` gives. For quantized
    types that is F16: a scale is a float16 itself, so all values are multiples of float16's smallest step, and nothing
    is lost at the small end; at the large end rounding moves a value by at most 2**-11 of itself, for Q8_0 a sixteenth
    of the step between two values (for Q4_0 a 256th), of which quantizing has lost up to a half already. F32 would
    double the memory and the disk for that. What does not fit float16 (above 65504) becomes infinite.

    `metadata` has texts, numbers and truth values, as texts; lists are left out.
    """

    ENDS = "it ends within"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check `path`; what is wrong with it is a UserError that names it."""
        super().__init__(path)
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.types: dict[str, str] = {}
        self._offsets: dict[str, int] = {}  # from the file's beginning
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def raw(self, name: str) -> np.ndarray:
        """One tensor with its stored bits, bfloat16 as uint16; a quantized one as float16 values."""
        tensor, offset, kind = self.tensors[name], self._offsets[name], self.types[name]
        array = np.empty(tensor.shape, DTYPES[tensor.dtype])
        flat = array.reshape(-1)
        if kind not in BLOCKS:
            self._fill(offset, memoryview(flat.view(np.uint8).data), name)
            return array
        block = BLOCKS[kind]
        piece = np.empty(min(CHUNK, flat.size) // block.values * block.layout.itemsize, np.uint8)
        for begin in range(0, flat.size, CHUNK):
            part = flat[begin : begin + CHUNK]
            data = piece[: part.size // block.values * block.layout.itemsize]
            self._fill(offset, memoryview(data.data), name)
            with np.errstate(over="ignore"):
                part[:] = dequantize(kind, data).reshape(-1)
            offset += data.size
        return array

    def _bad(self, what: str) -> UserError:
        return UserError(f"{shown(self.path)} is damaged or not a GGUF file: {shown(what)}.")

    def _read_header(self) -> None:
        head = _Header(self)
        if head.take(4, "GGUF") != b"GGUF":
            raise self._bad("it does not begin with GGUF")
        version = head.take(4, "the version")
        if version in (b"\0\0\0\1", b"\0\0\0\2", b"\0\0\0\3"):
            raise UserError(
                f"{shown(self.path)} is a big-endian GGUF file (version bytes {version.hex(' ')}), and only "
                f"little-endian ones are read: get the file for ordinary machines."
            )
        number = int.from_bytes(version, "little")
        if number not in (2, 3):
            raise self._bad(f"its version is {number}, and only 2 and 3 are read")
        tensors = head.count("tensors", MAX_TENSORS, 8 + 4 + 4 + 8)
        pairs = head.count("metadata keys", MAX_KEYS, 8 + 4 + 1)
        shapes = self._read_metadata(head, pairs)
        alignment = self._alignment()
        spans = [self._read_info(head, shapes, alignment) for _ in range(tensors)]
        self._place(spans, head.at, alignment)

    def _read_metadata(self, head: _Header, count: int) -> dict[str, tuple[int, ...]]:
        """Fill `metadata`; returns the shapes that ComfyUI-GGUF keeps there, by tensor."""
        shapes: dict[str, tuple[int, ...]] = {}
        keys: set[str] = set()
        room = MAX_METADATA
        for _ in range(count):
            key = head.text("a metadata key", MAX_KEY)
            if not key or key in keys:
                raise self._bad(f"the metadata key '{key}' stands there twice" if key else "a metadata key is empty")
            keys.add(key)
            kind = head.number("<I", key)
            if key == "general.alignment" and kind != UINT32:
                raise self._bad(f"{key} has the metadata type {kind}, and {UINT32} was expected")
            if key.startswith(SHAPE):
                shapes[key.removeprefix(SHAPE)] = self._shape(key, head.array(key) if kind == ARRAY else None)
            elif kind == ARRAY:
                head.array(key)
            elif kind == STRING:
                self.metadata[key] = head.text(f"the text of {key}", MAX_METADATA)
            elif kind == BOOL:
                if (truth := head.number("<B", key)) not in (0, 1):
                    raise self._bad(f"{key} is {truth}, and a truth value is 0 or 1")
                self.metadata[key] = "true" if truth else "false"
            elif kind in NUMBERS:
                self.metadata[key] = str(head.number(NUMBERS[kind], key))
            else:
                raise self._bad(f"{key} has the metadata type {kind}, which is not known (0 to 12 are)")
            room -= len(key) + len(self.metadata.get(key, ""))
            if room < 0:
                raise self._bad(f"its metadata is longer than {MAX_METADATA} characters")
        return shapes

    def _shape(self, key: str, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        if shape is None or len(shape) > MAX_DIMS or not all(size > 0 for size in shape):
            raise self._bad(f"{key} is no list of at most {MAX_DIMS} whole numbers above 0")
        return shape

    def _alignment(self) -> int:
        alignment = int(self.metadata.get("general.alignment", ALIGNMENT))
        if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._bad(f"its alignment is {alignment}, and a power of two from 8 to {MAX_ALIGNMENT} was expected")
        return alignment

    def _read_info(self, head: _Header, shapes: dict[str, tuple[int, ...]], alignment: int) -> tuple[int, int, str]:
        """Check one tensor's entry and fill it in; returns where its data begins and ends, from the data's begin."""
        name = head.text("a tensor's name", MAX_NAME)
        if not name or name in self.tensors:
            raise self._bad(f"the tensor {name} stands there twice" if name else "a tensor has no name")
        rank = head.number("<I", name)
        if rank > MAX_DIMS:
            raise self._bad(f"{name} has {rank} dimensions, more than {MAX_DIMS}")
        sizes = [head.number("<Q", name) for _ in range(rank)]  # the fastest first
        if 0 in sizes:
            raise self._bad(f"{name} has a dimension of 0 in {sizes[::-1]}")
        number = head.number("<I", name)
        offset = head.number("<Q", name)
        if number in OTHERS:
            raise UserError(
                f"{shown(self.path)} holds {shown(name)} as {OTHERS[number]}, which is not read: get the model as "
                f"F16, BF16, {', '.join(reversed(QUANTIZED.values()))}."
            )
        kind = PLAIN.get(number) or QUANTIZED.get(number)
        if kind is None:
            raise self._bad(f"{name} has the type {number}, which is not known")
        count = math.prod(sizes)
        if kind in BLOCKS:
            block = BLOCKS[kind]
            row = sizes[0] if sizes else 1
            if row % block.values:
                raise self._bad(f"{name} has rows of {row} values, but a block of {kind} has {block.values}")
            nbytes, dtype = count // block.values * block.layout.itemsize, "F16"
        else:
            nbytes, dtype = count * DTYPES[kind].itemsize, kind
        if nbytes > self._size:
            raise self._bad(f"{name} of shape {sizes[::-1]} takes {nbytes} bytes, and the whole file has {self._size}")
        if offset % alignment:
            raise self._bad(f"{name} begins at byte {offset} of the data, which is no multiple of {alignment}")
        shape = shapes.get(name, tuple(reversed(sizes)))
        if math.prod(shape) != count:
            raise self._bad(f"{name} has {count} values, and its metadata gives it the shape {list(shape)}")
        self.tensors[name] = Tensor(dtype, shape)
        self.types[name] = kind
        return offset, offset + nbytes, name

    def _place(self, spans: list[tuple[int, int, str]], header: int, alignment: int) -> None:
        """Check that the data is one tensor after the other, and fill in where each begins in the file."""
        start = header + -header % alignment if spans else header
        end, before = 0, "the header"
        for begin, stop, name in sorted(spans):
            if start + stop > self._size:
                raise self._bad(
                    f"{name} ends at byte {start + stop}, and the file has only {self._size} bytes: get it again"
                )
            expected = end + -end % alignment
            if begin != expected:
                what = f"overlaps {before}" if begin < end else "leaves a hole before it"
                raise self._bad(f"{name} begins at byte {begin} of the data and {what} (expected {expected})")
            self._offsets[name] = start + begin
            end, before = stop, name
        behind = self._size - (start + end)
        if behind > -(start + end) % alignment:
            raise self._bad(f"{behind} bytes follow after the last tensor")


class _Header:
    """A GGUF file read forwards through a small window; nothing is believed to be longer than what is left."""

    WINDOW = 1 << 16

    def __init__(self, file: GgufFile) -> None:
        self.at = 0
        self._file = file
        self._end = min(file._size, MAX_HEADER)
        self._window = b""
        self._begin = 0
        self._strings = 0

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        begin = self.at
        self.skip(count, what)
        at = begin - self._begin
        if at + count > len(self._window):
            data = bytearray(min(max(count, self.WINDOW), self._end - begin))
            self._file._fill(begin, memoryview(data), "its header")
            self._window, self._begin, at = bytes(data), begin, 0
        return self._window[at : at + count]

    def skip(self, count: int, what: str) -> None:
        """Leave out the next bytes."""
        if count > self._end - self.at:
            self._short(f"{what} at byte {self.at} takes {count} bytes, and")
        self.at += count

    def number(self, form: str, what: str) -> Any:
        """The next number, in a form of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, what: str, most: int, least: int) -> int:
        """How many follow of things that take at least `least` bytes each."""
        count: int = self.number("<Q", f"the number of {what}")
        if count > most:
            raise self._file._bad(f"it claims to have {count} {what}, and at most {most} are read")
        if count * least > self._end - self.at:
            self._short(f"it claims to have {count} {what}, and")
        return count

    def text(self, what: str, most: int) -> str:
        """The next text, of at most `most` bytes."""
        at = self.at
        length: int = self.number("<Q", what)
        if length > most:
            raise self._file._bad(f"{what} at byte {at} is {length} bytes long, and at most {most} are read")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._file._bad(f"{what} at byte {at} is not UTF-8") from None

    def array(self, key: str) -> tuple[int, ...] | None:
        """Pass over the next list; a short one of whole numbers is returned."""
        kind: int = self.number("<I", key)
        at = self.at
        count: int = self.number("<Q", key)
        if kind == ARRAY:
            raise self._file._bad(f"{key} is a list of lists, which nothing writes")
        if kind == STRING:
            self._strings += count
            if self._strings > MAX_STRINGS:
                raise self._file._bad(f"{key} at byte {at} is a list of {count} texts, more than are read")
            if count * 8 > self._end - self.at:
                self._short(f"{key} at byte {at} is a list of {count} texts, and")
            for _ in range(count):
                self.skip(self.number("<Q", key), key)
            return None
        if kind not in NUMBERS:
            raise self._file._bad(f"{key} is a list of the metadata type {kind}, which is not known (0 to 12 are)")
        if kind in WHOLE and count <= MAX_DIMS:
            return tuple(self.number(NUMBERS[kind], key) for _ in range(count))
        self.skip(count * struct.calcsize(NUMBERS[kind]), key)
        return None

    def _short(self, what: str) -> NoReturn:
        if self._end == MAX_HEADER:
            raise self._file._bad(f"{what} a header of more than {MAX_HEADER} bytes is not read")
        raise self._file._bad(f"{what} the file has only {self._end - self.at} bytes left")
