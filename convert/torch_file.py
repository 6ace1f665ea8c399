"""PyTorch checkpoints without PyTorch: the pickle inside is read as a text is read, and nothing it asks for is done.

A pickle is a program for a stack machine, and most of what it can say is "import this and call it". So files from
strangers are not unpickled here, not even by a restricted unpickler. A small machine walks the program and knows
containers, texts, numbers and the few names by which torch says "a tensor of this storage"; every other name stays a
name. What comes out is checked against the file before a byte of a tensor is read, and tensors are read from the very
file that was checked (it stays open), only the bytes they span.

Two containers. Since torch 1.6: a zip archive with ROOT/data.pkl and one member ROOT/data/KEY for each storage, not
compressed. Before: five pickles (a magic number, the version, the machine, the object, the keys of the storages), then
each storage behind the count of its elements.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import as_strided

from mlxldm.errors import UserError
from mlxldm.tensors import DTYPES, MAX_DIMS, MAX_NUMBER, MAX_TENSORS, OpenFile, Tensor, shown

from .read import REFUSED

MAX_PICKLE = 64 << 20  # bytes; that of a big model with its optimizer is a few megabytes
MAX_STEPS = 3_000_000  # of the machine; each leaves one object at most, so this bounds stack, memo and memory too
MAX_TEXT = 1 << 20  # bytes of one text in a pickle
MAX_NAME = 1000  # letters of a tensor's or a class's name
MAX_ENTRIES = 200_000  # members of an archive, entries of a state dict
MAX_DEPTH = 8  # dicts within dicts
MAX_ELEMENTS = 1 << 40
MAX_INFLATION = 32  # how much smaller than itself the compressed data.pkl may be

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two of the older container's five pickles
PIECE = 16 << 20  # bytes read at once


class _Damaged(Exception):
    """What is wrong with the file. `TorchFile` adds which file it is."""


class _Unsafe(Exception):
    """What the pickle asks for, and where."""


# --- What a pickle can mean -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function that the pickle names, "module.name". It is never looked up."""

    name: str


@dataclass(eq=False, slots=True)
class Made:
    """What calling `name` would have made. Nothing was called, and the arguments are forgotten."""

    name: str


@dataclass(eq=False, slots=True)
class Storage:
    """A run of `count` elements somewhere in the file; `dtype` is None where the elements are plain bytes."""

    key: str
    dtype: str | None
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes it must have in the file."""
        return self.count * (DTYPES[self.dtype].itemsize if self.dtype else 1)


@dataclass(eq=False, slots=True)
class View:
    """A tensor as the pickle describes it, numbers unchecked: offset, shape and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    marks: str  # what has to be done to the stored numbers first, "neg" or "conj"; mostly empty


STORAGES = {
    "torch.DoubleStorage": "F64", "torch.FloatStorage": "F32", "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16", "torch.LongStorage": "I64", "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16", "torch.CharStorage": "I8", "torch.ByteStorage": "U8", "torch.BoolStorage": "BOOL",
    "torch.storage.UntypedStorage": None,
}  # fmt: skip

# torch's dtypes as _rebuild_tensor_v3 names them; it is written for those that have no storage class of their own
KINDS = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8",
    "torch.uint64": "U64", "torch.uint32": "U32", "torch.uint16": "U16", "torch.uint8": "U8", "torch.bool": "BOOL",
}  # fmt: skip

ORDERED = "collections.OrderedDict"
TENSOR_2, TENSOR_3 = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"
PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
TENSORS = {TENSOR_2, TENSOR_3, *PARAMETERS}  # what a subclass may be rebuilt by

# Names that are refused outright. Nothing would be called anyway: this is so that the person hears of it.
DENIED = frozenset(
    """
    os posix nt posixpath ntpath subprocess _posixsubprocess sys shutil socket _socket ctypes _ctypes cffi pty
    signal importlib _frozen_importlib imp runpy zipimport pkgutil code.interact code.InteractiveInterpreter
    code.InteractiveConsole codeop types.CodeType types.FunctionType gc pickle _pickle cPickle dill cloudpickle
    joblib marshal shelve functools _functools _operator operator.attrgetter operator.methodcaller webbrowser
    commands.getoutput commands.getstatusoutput popen2 platform.popen pip ensurepip venv setuptools distutils.spawn
    pydoc pdb bdb cProfile profile.run profile.runctx profile.Profile timeit trace.Trace doctest unittest idlelib
    lib2to3 asyncio multiprocessing concurrent tempfile urllib urllib2 http.client http.server httplib requests
    aiohttp smtplib ftplib telnetlib nntplib xmlrpc ssl logging.config numpy.load numpy.f2py numpy.testing
    numpy.distutils torch.load torch.hub torch.jit torch.package torch.serialization.load
    torch.storage._load_from_bytes torch.ops torch.classes torch.fx.graph_module torch._dynamo torch._inductor
    torch.distributed.rpc torch.multiprocessing torch.utils.bottleneck torch.utils.collect_env
    torch.utils.cpp_extension torch.utils.model_zoo torch.utils.data.datapipes
    """.split()
)
DENIED_WITHIN = frozenset("os posix nt subprocess sys builtins __builtins__".split())  # torch.os, shutil.os.system
# Of Python's own names only those of plain values are let pass; eval, getattr and the like are not among them.
BUILTINS = frozenset(
    "set frozenset list dict tuple int long float complex bool str unicode bytes bytearray object slice range "
    "xrange".split()
)


def _denied(name: str) -> bool:
    parts = name.split(".")
    if parts[0] in ("builtins", "__builtin__"):
        return len(parts) != 2 or parts[1] not in BUILTINS
    begins = [".".join(parts[:count]) for count in range(1, min(len(parts), 5) + 1)]
    return not DENIED.isdisjoint(begins) or not DENIED_WITHIN.isdisjoint(parts)


def _what(value: object) -> str:
    if isinstance(value, Made):
        return f"an object of {value.name}"
    if isinstance(value, Named):
        return f"the name {value.name}"
    if isinstance(value, View):
        return "a tensor"
    kinds = {type(None): "nothing", str: "a text", bytes: "a text", int: "a number", float: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__.lower()}")


def _quoted(key: object) -> str:
    """A key as it is in the file; of what is no text or number only the kind, which may be endless when written out."""
    return shown(repr(key)) if type(key) in (str, bytes, int, float) else _what(key)


# --- The machine that walks a pickle ----------------------------------------------------------------------------------


class Machine:
    """One pickle, from where `file` stands to its end, which is `end` after `run`. Protocols 2 to 5.

    Storages that it names are collected in `storages`. `start` and `where` are for messages: "byte 17 of data.pkl".
    """

    def __init__(self, file: BinaryIO, where: str, start: int = 0) -> None:
        self.storages: dict[str, Storage] = {}
        self.end = start
        self._file = file
        self._where = where
        self._at = start  # of the instruction that is being done
        self._limit = start + MAX_PICKLE
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle describes."""
        for _ in range(MAX_STEPS):
            self._at = self.end
            code = self.take(1)
            if code == b".":
                value = self.pop()
                if self._stack or self._below:
                    raise self.bad("more than one object is left")
                return value
            step = STEPS.get(code)
            if step is None:
                raise self.bad(f"the instruction 0x{code.hex()} has no place in a checkpoint")
            step(self)
            if self.end > self._limit:
                raise self.bad(f"the pickle is longer than {MAX_PICKLE} bytes")
        raise self.bad(f"the pickle has more than {MAX_STEPS} instructions")

    def bad(self, what: str) -> _Damaged:
        return _Damaged(f"{what} (at byte {self._at} of {self._where})")

    # Reading

    def take(self, count: int) -> bytes:
        if count > MAX_TEXT:
            raise self.bad(f"a text or number of {count} bytes is too long")
        data = self._file.read(count)
        self.end += count
        if len(data) != count:
            raise self.bad("the pickle ends too early")
        return data

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def signed(self, count: int) -> int:
        if count > 255:
            raise self.bad(f"a number of {count} bytes is too long")
        return int.from_bytes(self.take(count), "little", signed=True)

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad("a text is not UTF-8") from None

    def line(self) -> str:
        data = self._file.readline(MAX_NAME + 1)
        self.end += len(data)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad("a name is not UTF-8") from None
        if not text.endswith("\n"):
            raise self.bad("a name is too long" if len(data) > MAX_NAME else "the pickle ends too early")
        return text[:-1]

    def old_text(self, count: int) -> str | bytes:
        """Python 2's one kind of string, which was either."""
        data = self.take(count)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data

    def protocol(self) -> None:
        version = self.number(1)
        if not 2 <= version <= 5:
            raise self.bad(f"the pickle's protocol is {version}, known are 2 to 5")

    def frame(self) -> None:
        self.take(8)  # the length of what follows, a help for those who read in pieces

    # The stack

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack:
            raise self.bad("something is taken from an empty stack")
        return self._stack.pop()

    def top(self) -> Any:
        if not self._stack:
            raise self.bad("the stack is empty")
        return self._stack[-1]

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        if not self._below:
            raise self.bad("there is no mark")
        values, self._stack = self._stack, self._below.pop()
        return values

    def drop(self) -> None:
        if self._stack or not self._below:
            self.pop()
        else:
            self.marked()

    def drop_marked(self) -> None:
        self.marked()

    def remember(self, index: int) -> None:
        self._memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise self.bad(f"the memo has no {index}")
        self.push(self._memo[index])

    # Containers

    def some(self, count: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is list:
            target.extend(values)
        elif type(target) is not Made:  # what is put into an object is forgotten with it
            raise self.bad(f"something is appended to {_what(target)}, which is no list")

    def items(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            raise self.bad("a key has no value")
        if type(target) is dict:
            for key, value in zip(values[::2], values[1::2], strict=True):
                self._item(target, key, value)
        elif type(target) is not Made:
            raise self.bad(f"an item is put into {_what(target)}, which is no dict")

    def _item(self, target: dict[Any, Any], key: Any, value: Any) -> None:
        if isinstance(key, list | dict):
            raise self.bad(f"{_what(key)} is used as a key")
        if isinstance(key, tuple):
            key = Made("tuple")  # Python's hash of deeply nested tuples overflows its stack
        if key in target:
            raise self.bad(f"there is a duplicate key {_quoted(key)}")
        target[key] = value

    def frozen(self) -> None:
        self.marked()
        self.push(Made("builtins.frozenset"))

    # What a real unpickler would import, call or fill

    def named(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or not module or not name:
            raise self.bad("a class is named by something that is no text")
        full = f"{module}.{name}"
        if len(full) > MAX_NAME or not re.fullmatch(r"[\w.<>-]+", full):
            raise self.bad(f"{shown(repr(full))} is no name of a class")
        if _denied(full):
            raise _Unsafe(f"{full} (at byte {self._at} of {self._where})")
        self.push(Named(full))

    def named_by_two(self) -> None:
        name = self.pop()
        self.named(self.pop(), name)

    def registered(self) -> None:
        raise _Unsafe(f"an entry of copyreg's EXT registry (at byte {self._at} of {self._where})")

    def call(self) -> None:
        arguments, called = self.pop(), self.pop()
        if type(called) is not Named or type(arguments) is not tuple:
            raise self.bad(f"{_what(called)} is called with {_what(arguments)}")
        if called.name == ORDERED and not arguments:
            self.push({})
        elif called.name in TENSORS or called.name == SUBCLASS:
            self.push(self._tensor(called.name, arguments))
        else:
            self.push(Made(called.name))

    def new(self, count: int) -> None:
        """An object of a class, from the arguments above it, of which there are `count`."""
        for _ in range(count):
            self.pop()
        made = self.pop()
        if type(made) is not Named:
            raise self.bad(f"an object is made of {_what(made)}, which is no class")
        self.push(Made(made.name))

    def build(self) -> None:
        """An object's state, which is forgotten; for a state dict that is its `_metadata`."""
        self.pop()
        if type(self.top()) not in (Made, dict):
            raise self.bad(f"{_what(self.top())} is given a state")

    def persistent(self) -> None:
        """torch's word for a storage, or (older files) for a class of modules with its source text."""
        said = self.pop()
        if type(said) is tuple and len(said) == 4 and said[0] == "module" and type(said[1]) is Named:
            self.push(said[1])
            return
        if type(said) is not tuple or len(said) not in (5, 6) or said[0] != "storage" or type(said[1]) is not Named:
            raise self.bad("a persistent id is none of a storage")
        kind, key, count = said[1].name, said[2], said[4]
        if kind not in STORAGES:
            raise self.bad(f"the storage class {kind} is not known")
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,64}", key):
            raise self.bad(f"the storage key {_quoted(key)} is none that torch writes")
        if type(count) is not int or not 0 <= count < MAX_NUMBER:
            raise self.bad(f"storage {key} has {_quoted(count)} elements")
        if len(said) == 6 and said[5] is not None:
            raise self.bad(f"storage {key} is a view of another, as only very old files have it")
        storage = self.storages.setdefault(key, Storage(key, STORAGES[kind], count))
        if (storage.dtype, storage.count) != (STORAGES[kind], count):
            raise self.bad(f"storage {key} is described in two ways")
        self.push(storage)

    def _tensor(self, name: str, arguments: tuple[Any, ...]) -> View:
        if name == SUBCLASS and len(arguments) == 4:  # function, class, its arguments, state
            function, _, inner, _ = arguments
            if type(function) is Named and function.name in TENSORS and type(inner) is tuple:
                return self._tensor(function.name, inner)
        elif name in PARAMETERS and arguments and type(arguments[0]) is View:
            return arguments[0]
        elif name == TENSOR_2 and len(arguments) in (6, 7) and type(arguments[0]) is Storage:
            storage: Storage = arguments[0]
            if storage.dtype is not None:
                return self._view(storage, arguments, storage.dtype, arguments[6:])
        elif name == TENSOR_3 and len(arguments) in (7, 8) and type(arguments[0]) is Storage:
            kind = arguments[6].name if type(arguments[6]) is Named else _what(arguments[6])
            if kind not in KINDS:
                raise self.bad(f"the dtype {kind} is not known")
            return self._view(arguments[0], arguments, KINDS[kind], arguments[7:])
        raise self.bad(f"{name} has arguments that torch does not write")

    def _view(self, storage: Storage, arguments: tuple[Any, ...], dtype: str, marks: tuple[Any, ...]) -> View:
        offset, shape, stride = arguments[1:4]
        if type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride) or len(shape) > MAX_DIMS:
            raise self.bad("a tensor's shape and strides are not of one length, or too long")
        if not all(type(number) is int for number in (offset, *shape, *stride)):
            raise self.bad("a tensor's offset, shape and strides are not whole numbers")
        said = marks[0] if marks else None
        if said is not None and not (type(said) is dict and all(isinstance(key, str) for key in said)):
            raise self.bad("a tensor's marks are no dict")
        return View(storage, offset, shape, stride, dtype, ", ".join(key for key, on in (said or {}).items() if on))


STEPS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": Machine.protocol,
    b"\x95": Machine.frame,
    # plain values
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.signed(4)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": lambda m: m.push(m.signed(m.number(1))),
    b"\x8b": lambda m: m.push(m.signed(m.number(4))),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"T": lambda m: m.push(m.old_text(m.number(4))),
    b"U": lambda m: m.push(m.old_text(m.number(1))),
    b"X": lambda m: m.push(m.text(m.number(4))),
    b"\x8c": lambda m: m.push(m.text(m.number(1))),
    b"\x8d": lambda m: m.push(m.text(m.number(8))),
    b"B": lambda m: m.push(m.take(m.number(4))),
    b"C": lambda m: m.push(m.take(m.number(1))),
    b"\x8e": lambda m: m.push(m.take(m.number(8))),
    b"\x96": lambda m: m.push(m.take(m.number(8))),
    # stack and memo
    b"(": Machine.mark,
    b"0": Machine.drop,
    b"1": Machine.drop_marked,
    b"q": lambda m: m.remember(m.number(1)),
    b"r": lambda m: m.remember(m.number(4)),
    b"\x94": lambda m: m.remember(len(m._memo)),
    b"h": lambda m: m.recall(m.number(1)),
    b"j": lambda m: m.recall(m.number(4)),
    # containers
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.some(1),
    b"\x86": lambda m: m.some(2),
    b"\x87": lambda m: m.some(3),
    b"t": lambda m: m.push(tuple(m.marked())),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.marked()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.items([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.items(m.marked()),
    b"\x8f": lambda m: m.push(Made("builtins.set")),
    b"\x90": lambda m: m.append(m.marked()),
    b"\x91": Machine.frozen,
    # names, calls, objects, storages
    b"c": lambda m: m.named(m.line(), m.line()),
    b"\x93": Machine.named_by_two,
    b"R": Machine.call,
    b"\x81": lambda m: m.new(1),
    b"\x92": lambda m: m.new(2),
    b"b": Machine.build,
    b"Q": Machine.persistent,
    b"\x82": Machine.registered,
    b"\x83": Machine.registered,
    b"\x84": Machine.registered,
}


# --- The zip archive --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive: `packed` bytes from `start`, which are `size` bytes if they are `deflated`."""

    name: str
    deflated: bool
    crc: int
    packed: int
    size: int
    header: int
    start: int


def members(read: Callable[[int, int], bytes], size: int) -> dict[str, Member]:
    """The members of the zip archive that fills a file of `size` bytes; `read(offset, count)` reads in it.

    Where programs differ in what they make of an archive (two end records, bytes before it, names that differ between
    the directory and the member, a name that stands twice, members that overlap), it is refused.
    """
    count, begin, end = _end_record(read, size)
    if count > MAX_ENTRIES:
        raise _Damaged(f"the archive has {count} members, too many")
    if end - begin > MAX_PICKLE or end - begin < 46 * count:
        raise _Damaged(f"the archive's directory has {end - begin} bytes for {count} members")
    directory = read(begin, end - begin)
    found: dict[str, Member] = {}
    at = 0
    for _ in range(count):
        member, at = _entry(directory, at, begin, read)
        if member.name in found:
            raise _Damaged(f"the archive has {member.name} twice")
        found[member.name] = member
    if at != len(directory):
        raise _Damaged(f"the archive's directory has {len(directory) - at} bytes too many")
    inside = sorted(found.values(), key=lambda member: member.header)
    if not inside or inside[0].header != 0:
        raise _Damaged("the archive does not begin with its first member: something stands before it")
    for one, other in pairwise(inside):
        if one.start + one.packed > other.header:
            raise _Damaged(f"{one.name} and {other.name} overlap in the archive at byte {other.header}")
    if inside[-1].start + inside[-1].packed > begin:
        raise _Damaged(f"{inside[-1].name} reaches into the archive's directory at byte {begin}")
    return found


def _end_record(read: Callable[[int, int], bytes], size: int) -> tuple[int, int, int]:
    """How many members, and where the directory begins and ends."""
    last = read(size - 22, 22) if size >= 22 else b""
    if last[:4] != b"PK\x05\x06" or last[20:] != b"\0\0":
        raise _Damaged("the archive has no end record at its end: it is cut off, or something was added")
    disk, first, here, count, length, begin = struct.unpack("<4H2L", last[4:20])
    end = size - 22
    locator = read(end - 20, 20) if end >= 20 + 56 else b""
    if locator[:4] != b"PK\x06\x07":
        if (disk, first) != (0, 0) or here != count or count == 0xFFFF or 0xFFFFFFFF in (length, begin):
            raise _Damaged("the archive's end record is of several disks, or lacks its zip64 part")
        if begin + length != end:
            raise _Damaged(f"the archive's directory ends at byte {end}, its end record says at {begin + length}")
        return count, begin, end
    end -= 20 + 56
    record = read(end, 56)
    if record[:4] != b"PK\x06\x06" or struct.unpack("<LQL", locator[4:]) not in ((0, end, 0), (0, end, 1)):
        raise _Damaged(f"the archive's zip64 end record is not at byte {end}")
    rest, _, _, disk64, first64, here64, count64, length64, begin64 = struct.unpack("<Q2H2L4Q", record[4:])
    if rest != 44 or (disk64, first64) != (0, 0) or here64 != count64 or begin64 + length64 != end:
        raise _Damaged(f"the archive's zip64 end record at byte {end} does not fit the file")
    short = ((disk, 0, 16), (first, 0, 16), (here, count64, 16), (count, count64, 16), (length, length64, 32))
    if not all(value in (true, (1 << bits) - 1) for value, true, bits in (*short, (begin, begin64, 32))):
        raise _Damaged("the archive's two end records disagree")
    return count64, begin64, end


def _entry(directory: bytes, at: int, begin: int, read: Callable[[int, int], bytes]) -> tuple[Member, int]:
    """The member whose entry is at `at` of the directory, compared with its own header; and where the next entry is."""
    if directory[at : at + 4] != b"PK\x01\x02" or len(directory) < at + 46:
        raise _Damaged(f"the archive's directory has no entry at byte {begin + at}")
    fields = struct.unpack("<6H3L5H2L", directory[at + 4 : at + 46])
    _, _, flags, method, _, _, crc, packed, size, name_length, more, note, disk, _, _, header = fields
    end = at + 46 + name_length + more + note
    if end > len(directory):
        raise _Damaged(f"the archive's directory ends within the entry at byte {begin + at}")
    written = directory[at + 46 : at + 46 + name_length]
    name = _member_name(written, begin + at)
    if flags & ~0x080E:  # known: how it was deflated, sizes behind the data, a UTF-8 name
        raise _Damaged(f"{name} is encrypted or written in a way that is not known (flags 0x{flags:04x})")
    if method not in (0, 8) or note or disk:
        raise _Damaged(f"{name} is written in a way that torch does not use (compression method {method})")
    short = size, packed, header
    size, packed, header = _wide(directory[end - more : end], short, name)
    if method == 0 and packed != size:
        raise _Damaged(f"{name} is not compressed, and has {size} and {packed} bytes")
    if header + 30 + name_length + packed > begin:
        raise _Damaged(f"{name} reaches past the archive's members, from byte {header}")
    local = read(header, 30 + name_length)
    if local[:4] != b"PK\x03\x04" or local[30:] != written:
        raise _Damaged(f"the local header at byte {header} disagrees with the directory, which has {name} there")
    _, flags2, method2, _, _, crc2, packed2, size2, length2, more2 = struct.unpack("<5H3L2H", local[4:30])
    # Sizes behind the data (which nobody reads): the header has zeros. Sizes above 32 bits: it has all ones.
    blank = {0, 0xFFFFFFFF} if flags & 8 else {0xFFFFFFFF}
    same = (flags2, method2, length2) == (flags, method, name_length) and crc2 in {crc, *(blank & {0})}
    if not same or packed2 not in {packed, *blank} or size2 not in {size, *blank}:
        raise _Damaged(f"the local header at byte {header} disagrees with the directory about {name}")
    return Member(name, method == 8, crc, packed, size, header, header + 30 + name_length + more2), end


def _member_name(written: bytes, at: int) -> str:
    try:
        name = written.decode("utf-8")
    except UnicodeDecodeError:
        raise _Damaged(f"the name in the archive's entry at byte {at} is not UTF-8") from None
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise _Damaged(f"the archive has a member with the bad name {shown(repr(name))}")
    return name


def _wide(extra: bytes, numbers: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Those of a directory's 32-bit numbers that are all ones stand in its zip64 part, in this order."""
    parts: dict[int, bytes] = {}
    at = 0
    while at < len(extra):
        kind, length = struct.unpack("<2H", extra[at : at + 4]) if at + 4 <= len(extra) else (0, len(extra))
        if at + 4 + length > len(extra) or kind in parts:
            raise _Damaged(f"the archive's directory has a bad extra part for {name}")
        parts[kind] = extra[at + 4 : at + 4 + length]
        at += 4 + length
    wide = parts.get(1, b"")
    if len(wide) != 8 * numbers.count(0xFFFFFFFF):
        raise _Damaged(f"the zip64 numbers of {name} are not those that are needed")
    found = iter(struct.unpack(f"<{len(wide) // 8}Q", wide))
    return tuple(next(found) if number == 0xFFFFFFFF else number for number in numbers)


# --- The checkpoint ---------------------------------------------------------------------------------------------------

# What training scripts put around a state dict, the likelier first.
WRAPPERS = ("state_dict", "model", "module", "params_ema", "params", "model_state_dict")
INVERSION = "string_to_param"  # a textual inversion's tensors; kept before their names, which are mostly just "*"
# And beside it: never looked at, so the optimizer's copies of the weights cost nothing.
BESIDE = frozenset(
    "optimizer_states optimizer optimizers optimizer_state_dict optim lr_schedulers lr_scheduler scheduler "
    "scheduler_state_dict callbacks loops hyper_parameters hparams args config cfg opt amp scaler grad_scaler "
    "native_amp_scaling_state amp_scaling_state rng_state rng_states random_state".split()
)

SAVE = "save the model's state_dict() with torch.save"
BARE = "is a bare pickle without the numbers of any tensor: save it again with torch.save, or get it as safetensors"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a storage's bytes are; `crc` is what they have to sum up to, if the writer said so."""

    start: int
    nbytes: int
    crc: int | None = None


class TorchFile(OpenFile):
    """An open PyTorch checkpoint. `tensors` are known; `raw` brings one. `metadata` are plain values beside them."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check `path`; what is wrong with it is a UserError that names it."""
        super().__init__(path)
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self._views: dict[str, View] = {}
        self._sound: set[str] = set()  # storages whose sum was right
        try:
            self._open()
        except _Damaged as error:
            self._file.close()
            raise self._bad(str(error)) from None
        except _Unsafe as error:
            self._file.close()
            raise UserError(
                f"{shown(self.path)} asks for {shown(error)}, which weights never need and which can run commands "
                "(nothing was run): open it with no other program, and get the model from somewhere else, best as "
                "safetensors."
            ) from None
        except BaseException:
            self._file.close()
            raise

    def raw(self, name: str) -> np.ndarray:
        """One tensor with its stored bits; bfloat16 comes as uint16, float8 as uint8."""
        tensor, view = self.tensors[name], self._views[name]
        array = np.empty(tensor.shape, DTYPES[tensor.dtype])
        if array.size:
            try:
                self._gather(array, view.storage.key, view.offset, view.stride)
            except _Damaged as error:
                raise self._bad(f"{name}: {error}") from None
        return array

    def _gather(self, out: np.ndarray, key: str, offset: int, stride: tuple[int, ...]) -> None:
        """Fill `out` with the elements from `offset` of a storage on. Long strides are read in parts."""
        item = out.itemsize
        if out.flags.c_contiguous and all(
            size == 1 or step * item == ours for size, step, ours in zip(out.shape, stride, out.strides, strict=True)
        ):
            self._load(out.reshape(-1).view(np.uint8), key, offset * item)
            return
        reach = [(size - 1) * step for size, step in zip(out.shape, stride, strict=True)]
        span = 1 + sum(reach)
        if span * item <= max(1 << 20, 2 * out.nbytes):
            near = np.empty(span, out.dtype)
            self._load(near.view(np.uint8), key, offset * item)
            out[...] = as_strided(near, out.shape, [step * item for step in stride], writeable=False)
            return
        axis = reach.index(max(reach))
        half = out.shape[axis] // 2
        before = (slice(None),) * axis
        self._gather(out[*before, :half], key, offset, stride)
        self._gather(out[*before, half:], key, offset + half * stride[axis], stride)

    def _load(self, buffer: np.ndarray, key: str, begin: int) -> None:
        """Bytes of a storage from `begin` on. A storage that is read whole is also summed up, once."""
        place = self._places[key]
        for done in range(0, len(buffer), PIECE):
            piece = self._bytes(place.start + begin + done, min(PIECE, len(buffer) - done))
            buffer[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        if place.crc is not None and len(buffer) == place.nbytes and key not in self._sound:
            if zlib.crc32(buffer.data) != place.crc:
                raise _Damaged(f"the bytes of storage {key} are not those that were written (bad CRC)")
            self._sound.add(key)

    def _bytes(self, offset: int, count: int) -> bytes:
        parts = []
        while count:
            part = os.pread(self._file.fileno(), count, offset)
            if not part:
                raise _Damaged(f"the file ends at byte {offset}: it changed while it was read")
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)

    def _bad(self, what: str) -> UserError:
        return UserError(f"{shown(self.path)} is damaged or not a PyTorch checkpoint: {shown(what)}.")

    def _cannot(self, what: str) -> UserError:
        return UserError(f"{shown(self.path)} {what}.")

    # What is in the file

    def _open(self) -> None:
        first = self._bytes(0, min(self._size, 512))
        if not first:
            raise self._cannot(REFUSED["empty"])
        if first[257:262] == b"ustar" or first.startswith((b"storages", b"tensors")):
            raise self._cannot(REFUSED["tar"])
        if first.startswith(b"PK\x03\x04"):
            value, self._places = self._zip()
        elif first.startswith(b"\x80"):
            value, self._places = self._legacy()
        elif first.startswith((b"(dp", b"(lp", b"(i", b"c")):  # protocol 0, in which nothing can name a storage
            raise self._cannot(BARE)
        else:
            raise _Damaged(f"it begins with {first[:8]!r}, as neither an archive nor a pickle does")
        found = self._state(value)
        if len(found) > MAX_TENSORS:
            raise _Damaged(f"it has {len(found)} tensors, too many")
        for name, view in found:
            if name in self._views:
                raise _Damaged(f"there is a duplicate tensor {name}")
            self.tensors[name] = self._check(name, view)
            self._views[name] = view

    def _zip(self) -> tuple[Any, dict[str, Place]]:
        """What data.pkl describes, and where the storages are."""
        found = members(self._bytes, self._size)
        root = next(iter(found)).partition("/")[0]
        inside = {}
        for name, member in found.items():
            if not name.startswith(f"{root}/"):
                raise _Damaged(f"the archive has {name} outside {root}/")
            inside[name[len(root) + 1 :]] = member
        if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
            raise self._cannot(
                "is a TorchScript archive, a program with weights in it: save the model's state_dict() with "
                "torch.save, or get it as safetensors"
            )
        if "data.pkl" not in inside or sum(name.endswith("/data.pkl") for name in found) != 1:
            raise _Damaged(f"the archive needs exactly one data.pkl, in {root}/")
        summed = any(member.crc for member in inside.values())  # torch can be told not to, and then writes zeros
        if "byteorder" in inside and self._member(inside["byteorder"], 16, summed) != b"little":
            raise self._cannot("was written on a big-endian machine: load it there with torch, and save as safetensors")
        pickled = self._member(inside["data.pkl"], MAX_PICKLE, summed)
        machine = Machine(io.BytesIO(pickled), "data.pkl")
        value = machine.run()
        if machine.end != len(pickled):
            raise _Damaged(f"data.pkl has {len(pickled) - machine.end} bytes after its pickle's end, another pickle?")
        places = {}
        for name, member in inside.items():
            if name.startswith("data/"):
                if member.deflated:
                    times = member.size // max(1, member.packed)
                    raise _Damaged(f"{member.name} is compressed ({times} times), as torch never writes it")
                places[name[5:]] = Place(member.start, member.size, member.crc if summed else None)
        return value, places

    def _member(self, member: Member, limit: int, summed: bool) -> bytes:
        if member.size > limit:
            raise _Damaged(f"{member.name} has {member.size} bytes, too many")
        if member.size > MAX_INFLATION * max(member.packed, 64):
            raise _Damaged(f"{member.name} inflates {member.size // max(1, member.packed)} times")
        data = self._bytes(member.start, member.packed)
        if member.deflated:
            inflater = zlib.decompressobj(-15)
            try:
                data = inflater.decompress(data, member.size + 1)
            except zlib.error:
                raise _Damaged(f"{member.name} cannot be inflated") from None
            if len(data) != member.size or not inflater.eof or inflater.unused_data:
                raise _Damaged(f"{member.name} does not inflate to {member.size} bytes")
        if summed and zlib.crc32(data) != member.crc:
            raise _Damaged(f"{member.name} is not what was written (bad CRC)")
        return data

    def _legacy(self) -> tuple[Any, dict[str, Place]]:
        """What the fourth of the five pickles describes, and where the storages behind them are."""
        reader = io.BufferedReader(self._file)
        try:
            at = 0

            def pickled() -> tuple[Any, dict[str, Storage]]:
                nonlocal at
                machine = Machine(reader, "the file", at)
                value = machine.run()
                at = machine.end
                return value, machine.storages

            if pickled()[0] != MAGIC:
                raise self._cannot(BARE)
            version, machine = pickled()[0], pickled()[0]
            if version != PROTOCOL or not isinstance(machine, dict):
                raise _Damaged(f"the version {_quoted(version)} is not {PROTOCOL}")
            if machine.get("little_endian") is not True:
                raise self._cannot("was written on a big-endian machine: load it there with torch, save as safetensors")
            value, storages = pickled()
            keys, _ = pickled()
        finally:
            reader.detach()
        if not isinstance(keys, list):
            raise _Damaged(f"where the keys of the storages should be is {_what(keys)} (before byte {at})")
        places: dict[str, Place] = {}
        for key in keys:
            if not isinstance(key, str) or key not in storages or key in places:
                raise _Damaged(f"the storage key {_quoted(key)} was not named, or stands twice (before byte {at})")
            if at + 8 > self._size:
                raise _Damaged(f"it is cut off at byte {self._size}, before storage {key}")
            count = int.from_bytes(self._bytes(at, 8), "little", signed=True)
            if count != storages[key].count:
                raise _Damaged(f"storage {key} at byte {at} has {count} elements, not {storages[key].count}")
            places[key] = Place(at + 8, storages[key].nbytes)
            at += 8 + storages[key].nbytes
            if at > self._size:
                raise _Damaged(f"it is cut off at byte {self._size}, within storage {key}, which ends at {at}")
        if at != self._size:
            raise _Damaged(f"{self._size - at} bytes follow the last storage, which ends at byte {at}")
        return value, places

    # The state dict within what was saved

    def _state(self, value: Any) -> list[tuple[str, View]]:
        """Its tensors with their names, dots between the keys of nested dicts."""
        if not isinstance(value, dict):
            raise self._cannot(f"holds {shown(_what(value))} and no state dict: {SAVE}")
        self._describe(value)
        value = {key: inner for key, inner in value.items() if key not in BESIDE or isinstance(inner, View)}
        wrapped = False
        for _ in range(4):
            wrapper = next((key for key in WRAPPERS if _holds_tensors(value.get(key))), None)
            if wrapper is None:
                break
            value, wrapped = value[wrapper], True
            self._describe(value)
        if not _holds_tensors(value):
            for key in (*WRAPPERS, INVERSION):
                if isinstance(value.get(key), Made):
                    raise self._cannot(f"has {shown(_what(value[key]))} as its '{key}' and no state dict: {SAVE}")
            raise self._cannot(f"holds no state dict with tensors: {SAVE}")
        if _holds_tensors(value.get(INVERSION)):
            value = {INVERSION: value[INVERSION]}
        return self._flat(value, wrapped)

    def _describe(self, value: dict[Any, Any]) -> None:
        """Plain values beside the tensors, as texts: the count of steps tells something of some models."""
        for key, said in value.items():
            plain = isinstance(said, int | float) or (isinstance(said, str) and len(said) <= 1000)
            if plain and isinstance(key, str) and len(key) <= 100 and len(self.metadata) < 100:
                self.metadata.setdefault(key, str(said))

    def _flat(self, value: dict[Any, Any], strict: bool) -> list[tuple[str, View]]:
        """`strict`: objects among the tensors are refused, not only those that torch made."""
        found: list[tuple[str, View]] = []
        entries = 0
        within = [("", iter(value.items()))]
        while within:
            prefix, rest = within[-1]
            for key, inner in rest:
                name = f"{prefix}{key if isinstance(key, str | int) else _what(key)}"
                entries += len(inner) + 1 if isinstance(inner, list | tuple) else 1
                if entries > MAX_ENTRIES:
                    raise _Damaged(f"its state dict has more than {MAX_ENTRIES} entries")
                if not 0 < len(name) <= MAX_NAME and isinstance(inner, View | dict):
                    raise _Damaged(f"the name {shown(name)} has {len(name)} letters")
                if isinstance(inner, View):
                    if not isinstance(key, str | int):
                        raise _Damaged(f"a tensor has {name} instead of a name")
                    found.append((name, inner))
                elif isinstance(inner, dict):
                    if len(within) > MAX_DEPTH:
                        raise _Damaged(f"its dicts nest deeper than {MAX_DEPTH}, at {name}")
                    within.append((f"{name}.", iter(inner.items())))
                    break  # and go on here when that one is through
                elif isinstance(inner, list | tuple) and any(isinstance(one, View) for one in inner):
                    raise self._cannot(f"has a list of tensors as {shown(name)}: {SAVE}")
                elif isinstance(inner, Made | Named) and (strict or inner.name.startswith("torch.")):
                    raise self._cannot(f"has {shown(_what(inner))} among its tensors, as {shown(name)}: {SAVE}")
            else:
                within.pop()
        return found

    def _check(self, name: str, view: View) -> Tensor:
        """The tensor that the view is, if all of it is in its storage and all of that in the file."""
        storage, item = view.storage, DTYPES[view.dtype].itemsize
        if view.offset < 0 or not all(0 <= number < MAX_NUMBER for number in (*view.shape, *view.stride)):
            raise _Damaged(f"{name}: the offset, a size or a stride is negative or huge")
        elements = math.prod(view.shape)
        if elements > MAX_ELEMENTS:
            raise _Damaged(f"{name}: the shape {list(view.shape)} is too large")
        place = self._places.get(storage.key)
        if place is None:
            raise _Damaged(f"{name}: storage {storage.key} is not in the file")
        if place.nbytes != storage.nbytes:
            raise _Damaged(
                f"{name}: storage {storage.key} has {place.nbytes} bytes, the pickle says {storage.count} x "
                f"{storage.dtype or 'byte'}"
            )
        room = storage.nbytes // item
        if elements > room:
            raise _Damaged(f"{name}: it has {elements} elements, its storage only {room} (an expanded view)")
        last = view.offset + sum((size - 1) * step for size, step in zip(view.shape, view.stride, strict=True))
        if elements and last >= room:
            raise _Damaged(f"{name}: it reaches element {last} of a storage of {room}")
        if view.marks:
            raise _Damaged(f"{name}: it is marked {view.marks}, so its numbers are not those that are stored")
        return Tensor(view.dtype, view.shape)


def _holds_tensors(value: object) -> bool:
    """Whether it is a dict with a tensor in it or in a dict within. Each dict is looked at once, however often used."""
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, View):
            return True
        if isinstance(one, dict) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(one.values())
            if len(waiting) + len(seen) > MAX_ENTRIES:
                raise _Damaged(f"its dicts have more than {MAX_ENTRIES} entries")
    return False
