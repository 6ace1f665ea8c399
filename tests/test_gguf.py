"""GGUF files from strangers: what ggml writes is read to the bit, everything else is refused with its cause."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
import warnings

import numpy as np
import pytest

from mlxldm.errors import UserError
from mlxldm.tensors import DTYPES, Tensor
from mlxldm_convert import gguf
from mlxldm_convert.gguf import BLOCKS, CHUNK, MAX_STRINGS, OTHERS, PLAIN, QUANTIZED, GgufFile, dequantize
from mlxldm_convert.read import open_file

NUMBER = {name: number for number, name in (PLAIN | QUANTIZED).items()}
U8, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64 = 0, 4, 5, 6, 7, 8, 9, 10, 11  # metadata types


# ---------------------------------------------------------------------------------------------------------------------
# A small writer that writes lies too


def text(value: str | bytes, length: int | None = None) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value) if length is None else length) + value


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(key: str, kind: int, count: int, values: bytes = b"") -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + values)


def info(name: str | bytes, dims: list[int], kind: int = 0, offset: int = 0, rank: int | None = None) -> bytes:
    sizes = struct.pack(f"<{len(dims)}Q", *dims)
    return (
        text(name) + struct.pack("<I", len(dims) if rank is None else rank) + sizes + struct.pack("<IQ", kind, offset)
    )


def file(
    infos: list[bytes], data: bytes = b"", pairs: list[bytes] | None = None, *, version: int = 3, alignment: int = 32,
    tensors: int | None = None, keys: int | None = None,
) -> bytes:  # fmt: skip
    pairs = pairs or []
    counts = len(infos) if tensors is None else tensors, len(pairs) if keys is None else keys
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % alignment if infos else 0) + data


def whole(parts: dict[str, tuple[str, list[int], bytes]], pairs: list[bytes] | None = None, **more) -> bytes:
    """A file of {name: (type, shape in NumPy's order, data)}."""
    infos, data = [], b""
    for name, (kind, shape, content) in parts.items():
        data += bytes(-len(data) % more.get("alignment", 32))
        infos.append(info(name, shape[::-1], NUMBER[kind], len(data)))
        data += content
    return file(infos, data, pairs, **more)


def blocks(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Bytes [count, bytes a block] of blocks with random numbers and ordinary scales."""
    rng = np.random.default_rng(seed)
    layout = BLOCKS[kind].layout
    data = rng.integers(0, 256, (count, layout.itemsize), np.uint8)
    for name in {"d", "m", "dmin"} & set(layout.names or ()):
        data.view(layout)[name][:, 0] = rng.standard_normal((count, 1)) / 8
    return data


@pytest.fixture
def opened(tmp_path):
    """`opened(bytes)`: the open file of those bytes."""
    files = []

    def make(data: bytes) -> GgufFile:
        path = tmp_path / f"{len(files)}.gguf"
        path.write_bytes(data)
        files.append(GgufFile(path))
        return files[-1]

    yield make
    for one in files:
        one.close()


# ---------------------------------------------------------------------------------------------------------------------
# What is read


def test_every_plain_type_comes_as_it_is_stored_and_in_numpys_order(opened):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 99, (4, 3, 2)).astype(DTYPES[name]) for name in PLAIN.values()}
    there = opened(whole({name: (name, [4, 3, 2], array.tobytes()) for name, array in arrays.items()}))
    assert there.tensors == {name: Tensor(name, (4, 3, 2)) for name in arrays}
    assert there.types == {name: name for name in arrays}
    for name, array in arrays.items():
        assert there.raw(name).dtype == array.dtype and (there.raw(name) == array).all()


def test_bfloat16_comes_as_bits(opened):
    there = opened(whole({"a": ("BF16", [2], struct.pack("<HH", 0x3F80, 0xC000))}))
    assert there.raw("a").dtype == np.uint16 and there.raw("a").tolist() == [0x3F80, 0xC000]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
@pytest.mark.parametrize("behind", [False, True])
def test_versions_alignments_and_padding_behind_the_last_tensor(version, alignment, behind, opened):
    """Some writers fill the last page up, others stop with the last value."""
    parts = {"a": ("F32", [3], np.arange(3, dtype="<f4").tobytes()), "b": ("F16", [], np.float16(7).tobytes())}
    said = [pair("general.alignment", U32, struct.pack("<I", alignment))]
    data = whole(parts, said, version=version, alignment=alignment)
    there = opened(data + bytes(-len(data) % alignment if behind else 0))
    assert there.raw("a").tolist() == [0, 1, 2] and there.raw("b") == 7 and there.tensors["b"].shape == ()


def test_data_may_lie_in_another_order_than_the_names(opened):
    there = opened(file([info("a", [1], offset=32), info("b", [1])], struct.pack("<f28xf", 1, 2)))
    assert there.raw("a") == 2 and there.raw("b") == 1


def test_metadata_comes_as_text(opened):
    pairs = [
        pair("general.architecture", STRING, text("sdxl")),
        pair("general.name", STRING, text("Größe\x1b[31m")),
        pair("general.file_type", U32, struct.pack("<I", 15)),
        pair("big", U64, struct.pack("<Q", 1 << 63)),
        pair("small", I64, struct.pack("<q", -5)),
        pair("half", F32, struct.pack("<f", 0.5)),
        pair("yes", BOOL, b"\1"),
        array("words", STRING, 2, text("a") + text(b"\xff")),
        array("scores", F32, 3, bytes(12)),
        array("bytes", U8, 0),
    ]
    there = opened(whole({"a": ("F32", [1], bytes(4))}, pairs))
    assert there.metadata == {
        "general.architecture": "sdxl", "general.name": "Größe\x1b[31m", "general.file_type": "15",
        "big": str(1 << 63), "small": "-5", "half": "0.5", "yes": "true",
    }  # fmt: skip
    assert list(there.tensors) == ["a"]


def test_a_file_without_tensors_is_one(opened):
    assert opened(file([])).tensors == {} and opened(file([]) + bytes(8)).metadata == {}


@pytest.mark.parametrize("kind", [I32, I64])
def test_comfyuis_flattened_tensors_get_their_own_shape_back(kind, opened):
    """A convolution, whose rows of 3 are no whole blocks, is stored as rows of 256."""
    data = blocks("Q4_K", 9)
    key = "comfy.gguf.orig_shape.conv.weight"
    shape = np.array([16, 16, 3, 3], {I32: "<i4", I64: "<i8"}[kind])
    there = opened(whole({"conv.weight": ("Q4_K", [9, 256], data.tobytes())}, [array(key, kind, 4, shape.tobytes())]))
    assert there.tensors["conv.weight"] == Tensor("F16", (16, 16, 3, 3)) and there.types["conv.weight"] == "Q4_K"
    assert there.raw("conv.weight").shape == (16, 16, 3, 3)
    assert (there.raw("conv.weight").reshape(9, 256) == dequantize("Q4_K", data).astype(np.float16)).all()


def test_names_are_only_names(opened):
    there = opened(
        whole({"../../../../etc/passwd": ("F32", [1], np.float32(3).tobytes()), "日本": ("F32", [1], bytes(4))})
    )
    assert there.raw("../../../../etc/passwd") == 3 and "日本" in there.tensors


def test_a_checkpoint_is_opened_by_its_first_bytes(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole({"a": ("F32", [1], bytes(4))}))
    there = open_file(path)
    assert isinstance(there, GgufFile) and there.path == path
    there.close()


def test_opening_reads_the_header_alone(tmp_path):
    path = tmp_path / "large.gguf"
    path.write_bytes(file([info("a", [1 << 20, 1 << 14], NUMBER["Q4_0"])]))
    os.truncate(path, path.stat().st_size + (1 << 34) // 32 * 18)  # 9 GB of nothing, which takes no disk
    tracemalloc.start()
    started = time.process_time()
    there = GgufFile(path)
    assert time.process_time() - started < 2 and tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert there.tensors["a"] == Tensor("F16", (1 << 14, 1 << 20))
    there.close()


# ---------------------------------------------------------------------------------------------------------------------
# Blocks, value by value: ggml's loops over one block in Python's numbers, which are exact here. `b` is the block.


def half(b: bytes, at: int) -> float:
    return struct.unpack_from("<e", b, at)[0]


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def nibble(b: bytes, at: int, upper: bool) -> int:
    return b[at] >> 4 if upper else b[at] & 15


def q4_0(b: bytes, i: int) -> float:
    return half(b, 0) * (nibble(b, 2 + i % 16, i >= 16) - 8)


def q4_1(b: bytes, i: int) -> float:
    return half(b, 0) * nibble(b, 4 + i % 16, i >= 16) + half(b, 2)


def q5_0(b: bytes, i: int) -> float:
    fifth = int.from_bytes(b[2:6], "little") >> i & 1
    return half(b, 0) * (nibble(b, 6 + i % 16, i >= 16) + 16 * fifth - 16)


def q5_1(b: bytes, i: int) -> float:
    fifth = int.from_bytes(b[4:8], "little") >> i & 1
    return half(b, 0) * (nibble(b, 8 + i % 16, i >= 16) + 16 * fifth) + half(b, 2)


def q8_0(b: bytes, i: int) -> float:
    return half(b, 0) * signed(b[2 + i])


def two_bits(b: bytes, at: int, i: int) -> int:
    """Each half of a block has 32 bytes, and each quarter of that half two bits of each."""
    return b[at + i // 128 * 32 + i % 32] >> (i % 128 // 32 * 2) & 3


def q2_k(b: bytes, i: int) -> float:
    scale = b[i // 16]
    return half(b, 80) * (scale & 15) * two_bits(b, 16, i) - half(b, 82) * (scale >> 4)


def q3_k(b: bytes, i: int) -> float:
    group = i // 16
    low = nibble(b, 96 + group % 8, group >= 8)
    high = b[104 + group % 4] >> (group // 4 * 2) & 3
    third = b[i % 32] >> (i // 32) & 1
    return half(b, 108) * (low + 16 * high - 32) * (two_bits(b, 32, i) - (0 if third else 4))


def six_bits(b: bytes, group: int) -> tuple[int, int]:
    """A scale and a minimum of the 12 bytes from byte 4 on."""
    s = b[4:16]
    if group < 4:
        return s[group] & 63, s[group + 4] & 63
    return s[group + 4] & 15 | s[group - 4] >> 6 << 4, s[group + 4] >> 4 | s[group] >> 6 << 4


def q4_k(b: bytes, i: int) -> float:
    scale, minimum = six_bits(b, i // 32)
    return half(b, 0) * scale * nibble(b, 16 + i // 64 * 32 + i % 32, i % 64 >= 32) - half(b, 2) * minimum


def q5_k(b: bytes, i: int) -> float:
    scale, minimum = six_bits(b, i // 32)
    fifth = b[16 + i % 32] >> (i // 32) & 1
    number = nibble(b, 48 + i // 64 * 32 + i % 32, i % 64 >= 32) + 16 * fifth
    return half(b, 0) * scale * number - half(b, 2) * minimum


def q6_k(b: bytes, i: int) -> float:
    low = nibble(b, i // 128 * 64 + i % 64, i % 128 >= 64)
    return half(b, 208) * signed(b[192 + i // 16]) * (low + 16 * two_bits(b, 128, i) - 32)


SCALAR = {
    "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0,
    "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}  # fmt: skip
SIZES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
SIZES |= {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def extreme(kind: str) -> np.ndarray:
    """Blocks of random numbers whose scales are also the smallest, the largest, and a negative zero."""
    data = blocks(kind, 12, seed=1)
    data.view(BLOCKS[kind].layout)["d"][:5, 0, 0] = [6e-8, -3e-6, 65504, -65504, -0.0]
    return data


@pytest.mark.parametrize("kind", SCALAR)
def test_each_block_is_decoded_as_ggmls_loops_decode_it(kind):
    data = extreme(kind)
    assert BLOCKS[kind].layout.itemsize == SIZES[kind] and BLOCKS[kind].values == (256 if "K" in kind else 32)
    values = dequantize(kind, data)
    expected = [[SCALAR[kind](bytes(b), i) for i in range(BLOCKS[kind].values)] for b in data]
    assert values.dtype == np.float32 and (values == np.array(expected).astype(np.float32)).all()


def test_a_block_by_hand(opened):
    """Byte 0 is 0x1F, and the others 0x88: of the 32 numbers all are 0 but the first (15 - 8) and the 17th (1 - 8)."""
    there = opened(whole({"a": ("Q4_0", [32], np.float16(0.5).tobytes() + b"\x1f" + b"\x88" * 15)}))
    assert there.raw("a").tolist() == [3.5] + [0.0] * 15 + [-3.5] + [0.0] * 15


@pytest.mark.parametrize("kind", SCALAR)
def test_a_quantized_tensor_is_float16_of_its_values_whatever_its_size(kind, opened):
    """Two rows, a little more than is decoded at a time."""
    values = BLOCKS[kind].values
    data = blocks(kind, 2 * (CHUNK // 2 // values + 3))
    shape = [2, len(data) * values // 2]
    there = opened(whole({"first": ("F32", [5], bytes(20)), "a": (kind, shape, data.tobytes())}))
    assert there.tensors["a"] == Tensor("F16", tuple(shape)) and there.types == {"first": "F32", "a": kind}
    exact = dequantize(kind, data).reshape(shape)
    assert there.raw("a").dtype == np.float16 and (there.raw("a") == exact.astype(np.float16)).all()
    assert (abs(there.raw("a") - exact) <= abs(exact) * 2.0**-11).all()


@pytest.mark.parametrize("kind", SCALAR)
def test_float16_loses_nothing_of_small_values(kind):
    data = blocks(kind, 50)
    fields = data.view(BLOCKS[kind].layout)
    for name in {"d", "m", "dmin"} & set(fields.dtype.names or ()):
        fields[name] = np.random.default_rng(2).integers(0, 3, (50, 1, 1)) * 2.0**-24
    exact = dequantize(kind, data)
    small = abs(exact) <= 2.0**-13
    assert small.any() and (exact.astype(np.float16)[small] == exact[small]).all()


@pytest.mark.parametrize("kind", SCALAR)
def test_infinite_and_missing_scales_are_values_and_no_warnings(kind, opened):
    data = blocks(kind, 4)
    data.view(BLOCKS[kind].layout)["d"][:3, 0, 0] = [np.inf, np.nan, 65504]
    there = opened(whole({"a": (kind, [data.size // SIZES[kind] * BLOCKS[kind].values], data.tobytes())}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.isfinite(there.raw("a")).all()


def test_decoding_takes_little_more_than_the_result(opened):
    count = 1 << 22
    there = opened(whole({"a": ("Q4_0", [count], bytes(count // 32 * 18))}))
    tracemalloc.start()
    array = there.raw("a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.nbytes == 2 * count and peak < array.nbytes + (6 << 20)


def library():
    return pytest.importorskip("gguf", reason="needs llama.cpp's gguf package to compare with")


@pytest.mark.parametrize("kind", SCALAR)
def test_llama_cpps_own_package_decodes_the_same(kind):
    theirs = library()
    data = extreme(kind)
    values = theirs.quants.dequantize(data.reshape(1, -1), theirs.GGMLQuantizationType[kind])
    assert (dequantize(kind, data).view(np.uint32) == values.reshape(len(data), -1).view(np.uint32)).all()


def test_llama_cpps_own_package_writes_what_is_read_here(tmp_path):
    theirs = library()
    rng = np.random.default_rng(0)
    arrays = {
        "plain": rng.standard_normal((3, 5)).astype(np.float32),
        "half": rng.standard_normal(7).astype(np.float16),
    }
    wide = rng.standard_normal((4, 64)).astype(np.float32)
    writer = theirs.GGUFWriter(tmp_path / "theirs.gguf", "sdxl")
    writer.add_array("comfy.gguf.orig_shape.wide", (2, 2, 64))
    writer.add_file_type(7)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    kind = theirs.GGMLQuantizationType.Q8_0
    packed = theirs.quants.quantize(wide, kind)
    writer.add_tensor("wide", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    there = GgufFile(tmp_path / "theirs.gguf")
    assert there.metadata["general.architecture"] == "sdxl" and there.metadata["general.file_type"] == "7"
    assert there.tensors["plain"] == Tensor("F32", (3, 5)) and there.tensors["wide"] == Tensor("F16", (2, 2, 64))
    assert all((there.raw(name) == array).all() for name, array in arrays.items())
    assert (there.raw("wide").reshape(4, 64) == theirs.quants.dequantize(packed, kind).astype(np.float16)).all()
    there.close()


def test_llama_cpps_own_package_reads_what_the_tests_write(tmp_path):
    theirs = library()
    (tmp_path / "ours.gguf").write_bytes(good() + bytes(-len(good()) % 32))
    there = theirs.GGUFReader(tmp_path / "ours.gguf")
    assert [tensor.name for tensor in there.tensors] == ["first", *SCALAR, "last"]
    assert [tensor.tensor_type.name for tensor in there.tensors] == ["F32", *SCALAR, "BF16"]
    assert there.get_field("general.architecture").contents() == "sd1"


# ---------------------------------------------------------------------------------------------------------------------
# What is refused

ONE = [info("a", [2])]
EIGHT = bytes(8)
FULL = "comfy.gguf.orig_shape.a"


def aligned(value: int) -> list[bytes]:
    return [pair("general.alignment", U32, struct.pack("<I", value))]


# name: (file, the cause that has to be named)
REFUSED = {
    # what has crashed or misled other readers
    "string_len_2e63": (
        file([], pairs=[pair("key", STRING, text("", 1 << 63))]),
        "the text of key at byte 39 is 9223372036854775808 bytes long",
    ),
    "kv_count_2e63": (file([], keys=1 << 63), "9223372036854775808 metadata keys, and at most 100000"),
    "tensor_count_2e63": (file(ONE, EIGHT, tensors=1 << 63), "9223372036854775808 tensors, and at most 100000"),
    "array_len_2e63": (
        file([], pairs=[array("words", STRING, 1 << 63)]),
        "words at byte 45 is a list of 9223372036854775808 texts",
    ),
    "nested_array": (file([], pairs=[array("deep", ARRAY, 1)]), "deep is a list of lists"),
    "n_dims_2e32": (file([info("a", [2], rank=(1 << 32) - 1)], EIGHT), "a has 4294967295 dimensions, more than 8"),
    "dims_overflow": (file([info("a", [1 << 40, 1 << 40])], EIGHT), "takes 4835703278458516698824704 bytes, and the"),
    "dim_zero": (file([info("a", [4, 0])]), "a has a dimension of 0 in [0, 4]"),
    "bad_type": (file([info("a", [2], kind=9999)], EIGHT), "a has the type 9999"),
    "offset_past_end": (
        file([info("a", [2], offset=1 << 40)], EIGHT),
        "a ends at byte 1099511627848, and the file has",
    ),
    "alignment_0": (file(ONE, EIGHT, aligned(0)), "alignment is 0, and a power of two"),
    "alignment_2e31": (file(ONE, EIGHT, aligned(1 << 31)), "alignment is 2147483648, and a power of two"),
    "name_len_2e40": (
        file([text("", 1 << 40)], tensors=1) + EIGHT * 3,
        "a tensor's name at byte 24 is 1099511627776 bytes long",
    ),
    "truncated": (file(ONE, bytes(5)), "a ends at byte 72, and the file has only 69 bytes"),
    "dup_tensor": (file([info("a", [2]), info("a", [2], offset=32)], bytes(40)), "the tensor a stands there twice"),
    "overlap": (
        file([info("a", [16]), info("b", [2], offset=32)], bytes(64)),
        "b begins at byte 32 of the data and over",
    ),
    "version_1": (file(ONE, EIGHT, version=1), "its version is 1, and only 2 and 3 are read"),
    "big_endian": (file(ONE, EIGHT, version=3 << 24), "is a big-endian GGUF file (version bytes 00 00 00 03)"),
    "bad_block_row": (
        file([info("a", [33, 32], NUMBER["Q4_0"])], bytes(600)),
        "a has rows of 33 values, but a block of",
    ),
    # the same classes at other places
    "empty": (b"", "GGUF at byte 0 takes 4 bytes, and the file has only 0 bytes left"),
    "magic_alone": (b"GGUF", "the version at byte 4 takes 4 bytes"),
    "other_magic": (b"GGML" + bytes(20), "it does not begin with GGUF"),
    "version_0": (b"GGUF" + bytes(50), "its version is 0"),
    "version_4": (file(ONE, EIGHT, version=4), "its version is 4"),
    "counts_cut": (file([])[:20], "the number of metadata keys at byte 16 takes 8 bytes, and the file has only 4"),
    "tensor_count_above_file": (file(ONE, EIGHT, tensors=5000), "5000 tensors, and the file has only"),
    "kv_count_above_file": (file([], keys=3), "3 metadata keys, and the file has only 0 bytes left"),
    "one_tensor_too_few": (file([info("a", [2]), info("b", [2], offset=32)], bytes(40), tensors=1), "bytes follow"),
    "key_len_2e63": (file([], pairs=[text("", 1 << 63) + EIGHT]), "a metadata key at byte 24 is 92233720368547758"),
    "key_len_past_end": (
        file([], pairs=[text("key", 60_000) + EIGHT]),
        "at byte 32 takes 60000 bytes, and the file has",
    ),
    "text_len_past_end": (file([], pairs=[pair("key", STRING, text("ab", 99))]), "the text of key at byte 47 takes 99"),
    "text_bomb": (
        file([], pairs=[pair("a", STRING, text(b"x" * (5 << 20))), pair("b", STRING, text(b"x" * (5 << 20)))]),
        "its metadata is longer than 8388608",
    ),
    "empty_key": (file([], pairs=[pair("", U8, b"\0")]), "a metadata key is empty"),
    "dup_key": (
        file([], pairs=[pair("a", U8, b"\0"), pair("a", U8, b"\1")]),
        "the metadata key 'a' stands there twice",
    ),
    "key_not_utf8": (file([], pairs=[pair(b"\xff\xfe", U8, b"\0")]), "a metadata key at byte 24 is not UTF-8"),
    "text_not_utf8": (file([], pairs=[pair("key", STRING, text(b"\xff"))]), "the text of key at byte 39 is not UTF-8"),
    "metadata_type_13": (
        file([], pairs=[pair("key", 13, bytes(4))]),
        "key has the metadata type 13, which is not known",
    ),
    "bool_2": (file([], pairs=[pair("key", BOOL, b"\2")]), "key is 2, and a truth value is 0 or 1"),
    "value_cut": (
        file([], pairs=[pair("key", U64, bytes(5))]),
        "key at byte 39 takes 8 bytes, and the file has only 5",
    ),
    "array_type_13": (file([], pairs=[array("key", 13, 1)]), "key is a list of the metadata type 13"),
    "array_of_numbers_2e63": (
        file([], pairs=[array("key", I64, 1 << 63)]),
        "takes 73786976294838206464 bytes, and the",
    ),
    "array_of_texts_past_end": (
        file([], pairs=[array("key", STRING, 9, EIGHT)]),
        "a list of 9 texts, and the file has",
    ),
    "array_text_past_end": (
        file([], pairs=[array("key", STRING, 1, text("", 1 << 62))]),
        "key at byte 59 takes 46116860",
    ),
    "array_of_many_texts": (
        file([], pairs=[array("key", STRING, MAX_STRINGS + 1)]),
        "524289 texts, more than are read",
    ),
    "alignment_24": (file(ONE, EIGHT, aligned(24)), "alignment is 24"),
    "alignment_4": (file(ONE, EIGHT, aligned(4)), "alignment is 4"),
    "alignment_text": (
        file(ONE, EIGHT, [pair("general.alignment", STRING, text("32"))]),
        "the metadata type 8, and 4 was",
    ),
    "alignment_list": (
        file(ONE, EIGHT, [array("general.alignment", U32, 1, bytes(4))]),
        "the metadata type 9, and 4 was",
    ),
    "no_name": (file([info("", [2])], EIGHT), "a tensor has no name"),
    "name_not_utf8": (file([info(b"\xc3\x28", [2])], EIGHT), "a tensor's name at byte 24 is not UTF-8"),
    "name_long": (file([info("a" * 1025, [2])], EIGHT), "is 1025 bytes long, and at most 1024 are read"),
    "nine_dims": (file([info("a", [1] * 9)], EIGHT), "a has 9 dimensions, more than 8"),
    "dims_cut": (file([info("a", [2], rank=7)]), "a at byte"),
    "dims_wrap_to_4": (
        file([info("a", [4194305, 4194305, 211106198978564])], bytes(16)),
        "takes 14855285193791046168434704400 bytes",
    ),
    "dims_2e63": (file([info("a", [1 << 63])], EIGHT), "takes 36893488147419103232 bytes"),
    "removed_type": (file([info("a", [2], kind=4)], EIGHT), "a has the type 4, which is not known"),
    "scalar_of_blocks": (
        file([info("a", [], NUMBER["Q8_0"])], bytes(34)),
        "a has rows of 1 values, but a block of Q8_0",
    ),
    "bad_k_row": (file([info("a", [128, 2], NUMBER["Q6_K"])], bytes(210)), "a block of Q6_K has 256"),
    "offset_unaligned": (
        file([info("a", [2], offset=4)], bytes(12)),
        "begins at byte 4 of the data, which is no multiple",
    ),
    "offset_2e63": (file([info("a", [2], offset=1 << 63)], EIGHT), "a ends at byte 9223372036854775880"),
    "same_place": (file([info("a", [2]), info("b", [2])], EIGHT), "b begins at byte 0 of the data and overlaps a"),
    "hole": (
        file([info("a", [2]), info("b", [2], offset=64)], bytes(72)),
        "b begins at byte 64 of the data and leaves a",
    ),
    "hole_at_front": (
        file([info("a", [2], offset=32)], bytes(40)),
        "a begins at byte 32 of the data and leaves a hole",
    ),
    "trailing_bytes": (file(ONE, bytes(8 + 25)), "25 bytes follow after the last tensor"),
    "trailing_zip": (file(ONE, bytes(32) + b"PK\3\4" * 20), "104 bytes follow after the last tensor"),
    "data_missing": (file(ONE), "a ends at byte 72, and the file has only 64"),
    "shape_of_other_size": (
        file(ONE, EIGHT, [array(FULL, I32, 2, struct.pack("<ii", 3, 1))]),
        "a has 2 values, and its",
    ),
    "shape_negative": (file(ONE, EIGHT, [array(FULL, I32, 2, struct.pack("<ii", -1, -2))]), f"{FULL} is no list of at"),
    "shape_zero": (file(ONE, EIGHT, [array(FULL, I32, 1, bytes(4))]), f"{FULL} is no list of at most 8"),
    "shape_of_floats": (
        file(ONE, EIGHT, [array(FULL, F32, 1, struct.pack("<f", 2))]),
        f"{FULL} is no list of at most 8",
    ),
    "shape_is_text": (file(ONE, EIGHT, [pair(FULL, STRING, text("2"))]), f"{FULL} is no list of at most 8"),
    "shape_long": (file(ONE, EIGHT, [array(FULL, I32, 9, b"\1\0\0\0" * 9)]), f"{FULL} is no list of at most 8"),
    "escape_codes": (file([info("\x1b[31m", [0])]), "\\x1b[31m has a dimension of 0"),
} | {f"type_{name}": (file([info("a", [256], kind)], EIGHT), f"holds a as {name}") for kind, name in OTHERS.items()}


def fds() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_its_cause(case, tmp_path):
    path = tmp_path / f"{case}.gguf"
    path.write_bytes(REFUSED[case][0])
    before = fds()
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(UserError) as error:
        GgufFile(path)
    took, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert REFUSED[case][1] in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 1000
    assert fds() == before and took < 2 and peak < (24 << 20 if case == "text_bomb" else 1 << 20)


def test_a_header_without_end_is_not_followed(tmp_path):
    path = tmp_path / "long.gguf"
    path.write_bytes(file([], pairs=[array("key", U8, 1 << 30)]))
    os.truncate(path, 1 << 31)
    with pytest.raises(
        UserError, match="key at byte 51 takes 1073741824 bytes, and a header of more than 67108864 bytes"
    ):
        GgufFile(path)


def test_many_honest_keys_and_tensors_are_quick(opened):
    pairs = [pair(f"k{i}", U8, b"\0") for i in range(3000)] + [array("words", STRING, 50_000, EIGHT * 50_000)]
    started = time.process_time()
    there = opened(whole({f"t{i}": ("F32", [1], bytes(4)) for i in range(3000)}, pairs))
    assert len(there.tensors) == len(there.metadata) == 3000 and time.process_time() - started < 2


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        GgufFile(tmp_path / "pipe")


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_file_that_shrinks_meanwhile_is_an_error_and_no_crash(kind, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(whole({"a": (kind, [32], bytes(128 if kind == "F32" else 34))}))
    there = GgufFile(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(UserError, match="changed while it was read"):
        there.raw("a")
    there.close()


# ---------------------------------------------------------------------------------------------------------------------
# Random damage

LIES = [0, 1, 7, 8, 9, 31, 32, 33, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1]


def mutant(data: bytes, rng: random.Random, front: int) -> bytes:
    """`data` with one to eight faults, mostly in its first `front` bytes: other bytes, numbers that lie, repeats, cuts.

    It knows nothing of GGUF, and damages other kinds of files as well.
    """
    out = bytearray(data)
    for _ in range(min(rng.randint(1, 8), rng.randint(1, 8))):  # few, mostly: the first is often the last that matters
        at = rng.randrange(min(front, len(out)) if rng.random() < 0.8 else len(out))
        fault = rng.randrange(10)
        if fault < 5:
            out[at] = rng.randrange(256)
        elif fault < 6:
            out[at] ^= 1 << rng.randrange(8)
        elif fault < 8:
            width = rng.choice((4, 8))
            out[at : at + width] = (rng.choice(LIES) % (1 << 8 * width)).to_bytes(width, "little")
        elif fault < 9:
            out[at:at] = out[at : at + rng.randint(1, 40)]
        elif len(out) > 64:
            del out[at : at + rng.randint(1, 16)]
    return bytes(out[: rng.randrange(1, len(out))] if rng.random() < 0.1 else out)


def good() -> bytes:
    """A little of everything: all quantized types, all kinds of metadata, a shape of ComfyUI's."""
    parts = {"first": ("F32", [2, 3], bytes(range(24)))}
    parts |= {kind: (kind, [1, BLOCKS[kind].values], blocks(kind, 1).tobytes()) for kind in SCALAR}
    parts["last"] = ("BF16", [3], bytes(6))
    pairs = [
        pair("general.architecture", STRING, text("sd1")),
        *aligned(32),
        pair("yes", BOOL, b"\1"),
        array("words", STRING, 3, text("a") + text("bc") + text("")),
        array("numbers", F32, 5, bytes(20)),
        array("comfy.gguf.orig_shape.Q4_K", I32, 3, struct.pack("<3i", 4, 8, 8)),
    ]
    return whole(parts, pairs)


def survives(path: os.PathLike[str]) -> bool:
    """Whether the file is accepted and all of it can be read; any error but a sentence for people is raised."""
    try:
        there = GgufFile(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return False
    for name, tensor in there.tensors.items():
        array = there.raw(name)
        assert array.shape == tensor.shape and array.nbytes == tensor.nbytes
    there.close()
    return True


def test_random_damage_gives_our_own_error_or_a_readable_file(tmp_path):
    rng = random.Random(0)
    data = good()
    path = tmp_path / "mutant.gguf"
    path.write_bytes(data)
    assert survives(path)
    before, accepted, slowest = fds(), 0, 0.0
    for _ in range(1500):
        path.write_bytes(mutant(data, rng, front=data.index(b"last") + 32))
        started = time.process_time()
        accepted += survives(path)
        slowest = max(slowest, time.process_time() - started)
    assert fds() == before and slowest < 2 and 0 < accepted < 750


def test_the_types_are_known_once_each():
    numbers = [*PLAIN, *QUANTIZED, *OTHERS]
    assert len(numbers) == len(set(numbers)) and set(QUANTIZED.values()) == set(BLOCKS) == set(SCALAR)
    assert set(PLAIN.values()) <= set(DTYPES) and gguf.ALIGNMENT == 32
