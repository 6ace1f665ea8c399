"""PyTorch checkpoints written byte by byte, without torch: good ones, ones that lie, and thousands of damaged ones.

The functions up to `program` give pieces of a pickle, each of which leaves one object on the stack; `checkpoint` and
`legacy` put a whole file around them.
"""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

DATA = struct.pack("<4f", 1, 2, 3, 4)
STORED, DEFLATED = 0, 8
ROOT = "archive"


# Pieces of a pickle


def text(word: str | bytes) -> bytes:
    data = word.encode() if isinstance(word, str) else word
    return b"X" + struct.pack("<L", len(data)) + data


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def several(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def name(module: str, word: str) -> bytes:
    return f"c{module}\n{word}\n".encode()


def call(module: str, word: str, *arguments: bytes) -> bytes:
    return name(module, word) + several(*arguments) + b"R"


ORDERED = call("collections", "OrderedDict")


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    """`view`: b"N" in the older container, where a sixth value says of what storage this is a part."""
    module, _, word = f"torch.{kind}".rpartition(".")
    return several(text("storage"), name(module, word), text(key), text("cpu"), number(count), view) + b"Q"


def tensor(place: bytes | None = None, shape=(2, 2), stride=(2, 1), offset: int = 0) -> bytes:
    place = storage() if place is None else place
    numbers = number(offset), several(*map(number, shape)), several(*map(number, stride))
    return call("torch._utils", "_rebuild_tensor_v2", place, *numbers, b"\x89", ORDERED)


def state(**values: bytes) -> bytes:
    return items((text(key), value) for key, value in values.items())


def items(pairs) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def program(value: bytes, protocol: int = 2) -> bytes:
    return bytes([0x80, protocol]) + value + b"."


# Archives


@dataclass(frozen=True)
class Member:
    """One member of an archive. What is None is written as it is; everything else is a lie about it."""

    name: str
    data: bytes = b""
    method: int = STORED
    packed: bytes | None = None  # what stands in the file instead of the data
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    local_name: str | None = None
    local_size: int | None = None
    header: int | None = None
    late: bool = False  # sum and sizes stand behind the data, as torch has it
    align: int = 0  # where the data begins, by an extra part of the local header
    wide: bool = False  # numbers of 64 bits in the directory


def deflated(data: bytes) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    return made.compress(data) + made.flush()


def archive(members: list[Member], wide: bool = False, prefix: bytes = b"", shift: int = 0, **lies: int) -> bytes:
    """A zip archive. `shift` is added to all offsets (as when something was put before it); `lies`: of the end."""
    out, directory = bytearray(prefix), bytearray()
    for one in members:
        packed = one.packed
        if packed is None:
            packed = deflated(one.data) if one.method == DEFLATED else one.data
        crc = zlib.crc32(one.data) if one.crc is None else one.crc
        size = len(one.data) if one.size is None else one.size
        flags = one.flags | (8 if one.late else 0)
        begin = len(out) + shift if one.header is None else one.header
        written, local = one.name.encode(), (one.local_name or one.name).encode()
        pad = -(len(out) + 30 + len(local) + 4) % one.align if one.align else 0
        extra = b"FB" + struct.pack("<H", pad) + b"Z" * pad if one.align else b""
        said = (0, 0, 0) if one.late else (crc, len(packed), size if one.local_size is None else one.local_size)
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 0, flags, one.method, 0, 0, *said, len(local), len(extra))
        out += local + extra + packed
        if one.late:
            out += struct.pack("<4s3L", b"PK\7\x08", crc, len(packed), size)
        numbers = (len(packed), size, begin)
        more = struct.pack("<2H3Q", 1, 24, size, len(packed), begin) if one.wide else b""
        short = (0xFFFFFFFF,) * 3 if one.wide else numbers
        fields = 0, 0, flags, one.method, 0, 0, crc, *short[:2], len(written), len(more), 0, 0, 0, 0, short[2]
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + written + more
    begin = len(out) + shift
    true = {"count": len(members), "length": len(directory), "begin": begin} | lies
    end = bytearray()
    if wide:
        numbers = true["count"], true["count"], true["length"], true["begin"]
        end += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *numbers)
        end += struct.pack("<4sLQL", b"PK\6\7", 0, begin + len(directory), 1)
    short = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) if wide else (true["count"],) * 2 + (true["length"], true["begin"])
    return bytes(out + directory + end + struct.pack("<4s2H2H2LH", b"PK\5\6", 0, 0, *short, 0))


def usual(pickled: bytes, storages: dict[str, bytes] | None = None) -> dict[str, Member]:
    """The members that torch writes."""
    storages = {"0": DATA} if storages is None else storages
    files = {"data.pkl": pickled, "byteorder": b"little"}
    files |= {f"data/{key}": data for key, data in storages.items()} | {"version": b"3\n"}
    return {key: Member(f"{ROOT}/{key}", data, late=bool(data), align=64) for key, data in files.items()}


def checkpoint(
    value: bytes | None = None,
    storages: dict[str, bytes] | None = None,
    after: bytes = b"",
    more: tuple[Member, ...] = (),
    **changes: dict,
) -> bytes:
    """A checkpoint of today, a state dict with one tensor `a` unless it says otherwise.

    `changes`: fields of members by their name, where _ is a dot or slash: `data_pkl={"crc": 0}`.
    """
    parts = usual(program(state(a=tensor()) if value is None else value) + after, storages)
    for key, fields in changes.items():
        full = next(part for part in parts if re.sub("[./]", "_", part) == key)
        parts[full] = replace(parts[full], **fields)
    return archive([*parts.values(), *more])


def legacy(
    value: bytes | None = None,
    storages: dict[str, bytes] | None = None,
    counts: dict[str, int] | None = None,
    order: str = "\x88",
    protocol: int = 1001,
) -> bytes:
    """A checkpoint of torch before 1.6. `counts`: lies about how many elements a storage has."""
    value = state(a=tensor(storage(view=b"N"))) if value is None else value
    storages = {"0": DATA} if storages is None else storages
    machine = state(little_endian=order.encode("latin-1"))
    keys = b"](" + b"".join(text(key) for key in storages) + b"e"
    out = b"".join(map(program, (number(0x1950A86A20F9469CFC6C), number(protocol), machine, value, keys)))
    for key, data in storages.items():
        out += struct.pack("<q", (counts or {}).get(key, len(data) // 4)) + data
    return out


def zeros(size: int) -> bytes:
    """`size` zero bytes, a multiple of a megabyte, deflated a thousandfold without doing it to all of them."""
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = made.compress(bytes(1 << 20)) + made.flush(zlib.Z_FULL_FLUSH)
    block = made.compress(bytes(1 << 20)) + made.flush(zlib.Z_FULL_FLUSH)
    return first + block * (size // (1 << 20) - 1) + made.flush()


# Damage


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """`count` damaged checkpoints of every container, the same for the same seed.

    Half of them are damaged in the pickle before the archive is made, so that its sum is right and the damage gets
    through to whoever reads the pickle.
    """
    rng = random.Random(seed)
    tensors = {
        "conv.weight": tensor(storage("0", 4), (2, 2), (1, 2)), "conv.bias": tensor(storage("1", 4), (2,), (1,), 2),
        "norm.weight": call("torch._utils", "_rebuild_parameter", tensor(storage("2", 0), (0, 3), (3, 1)), b"\x88N"),
        "flag": call("torch._utils", "_rebuild_tensor_v3", storage("3", 4, "storage.UntypedStorage"), number(0),
                     several(number(4)), several(number(1)), b"\x89", ORDERED, name("torch", "float8_e4m3fn")),
    }  # fmt: skip
    model = items((text(key), value) for key, value in tensors.items())
    more = {
        "epoch": number(3),
        "callbacks": call("argparse", "Namespace") + state(a=b"]") + b"b",
        "lr": b"G" + bytes(8),
    }
    value = state(state_dict=model, **more)
    storages = {"0": DATA, "1": DATA[::-1], "2": b"", "3": b"\x01\x02\x03\x04"}
    older = value.replace(b"tQ", b"NtQ")
    for _ in range(count):
        inside = rng.random() < 0.5
        kind = rng.choice(("zip", "zip", "deflated", "zip64", "legacy", "bare"))
        pickled = program(older if kind == "legacy" else value, rng.choice((2, 4)))
        pickled = damaged(pickled, rng) if inside else pickled
        if kind == "legacy":
            made = legacy(pickled[2:-1], storages, counts={"3": 4})
        elif kind == "bare":
            made = pickled
        else:
            parts = usual(pickled, storages)
            if kind == "deflated":
                parts["data.pkl"] = replace(parts["data.pkl"], method=DEFLATED)
            wide = kind == "zip64"
            made = archive([replace(part, wide=wide) for part in parts.values()], wide=wide)
        yield made if inside else damaged(made, rng)


EDITS = "put put put put number number number take double move cut".split()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to eight edits: bytes and numbers replaced, pieces taken out, doubled, moved, the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        piece = out[at : at + rng.randint(1, 24)]
        edit = rng.choice(EDITS)
        if edit == "put" and at < len(out):
            out[at] = rng.choice((rng.randrange(256), out[at] ^ (1 << rng.randrange(8)), rng.choice(b"(.0RQbtuseqh")))
        elif edit == "number":
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice((0, 1, 1 << (8 * width - 1), (1 << (8 * width)) - 1, rng.randrange(1 << 8 * width)))
            out[at : at + width] = value.to_bytes(width, "little")
        elif edit == "take":
            del out[at : at + len(piece)]
        elif edit == "double":
            out[at:at] = piece
        elif edit == "move":
            to = rng.randrange(len(out) + 1)
            out[to : to + len(piece)] = piece
        elif edit == "cut" and rng.random() < 0.2:
            del out[at:]
    return bytes(out)
