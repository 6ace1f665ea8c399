"""Safetensors files from strangers: what is legal is read exactly, everything else is refused with its cause."""

from __future__ import annotations

import gc
import json
import os
import random
import struct

import numpy as np
import pytest

from mlxldm.errors import UserError
from mlxldm.tensors import DTYPES, Tensor, TensorFile, from_bfloat16, header, to_bfloat16


def file(text: bytes | str | dict, data: bytes = b"", length: int | None = None) -> bytes:
    if isinstance(text, dict):
        text = json.dumps(text)
    if isinstance(text, str):
        text = text.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list, begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"a": entry([2], 0, 8)}
W1 = '"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
W2 = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

# name: (file, the cause that has to be named)
REFUSED = {
    "header_len_2e63": (file(GOOD, b"x" * 8, length=1 << 63), "header length is 9223372036854775808"),
    "header_len_past_eof": (file(GOOD, b"x" * 8, length=10000), "header length is 10000"),
    "offsets_past_eof": (file({"a": entry([1000], 0, 4000)}, b"x" * 8), "data is 8 bytes, tensors cover 4000"),
    "negative_offset": (file({"a": entry([2], -8, 0)}, b"x" * 8), "a: a number is negative"),
    "overlap": (file({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"x" * 12), "b: hole or overlap at 4"),
    "hole": (file({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, b"x" * 24), "b: hole or overlap at 16"),
    "dtype_size_mismatch": (file({"a": entry([1000, 1000], 0, 8)}, b"x" * 8), "8 bytes for shape [1000, 1000] F32"),
    "shape_overflow": (file({"a": entry([1 << 33, 1 << 33], 0, 16)}, b"x" * 16), "16 bytes for shape"),
    "shape_wraps_to_8": (file({"a": entry([(1 << 62) + 2], 0, 8)}, b"x" * 8), "a: a number is negative, huge"),
    "duplicate_key": (file("{" + W1 + "," + W2 + "}", b"x" * 4), "duplicate key 'w'"),
    "duplicate_inner_key": (file('{"w":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}}'), "duplicate"),
    "trailing_bytes": (file(GOOD, b"x" * 20), "data is 20 bytes, tensors cover 8"),
    "truncated": (file(GOOD, b"x" * 5), "data is 5 bytes, tensors cover 8"),
    "not_utf8_name": (file(b'{"\xff\xfe":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "not UTF-8"),
    "deep_json": (file('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "nests too deep"),
    "metadata_bomb": (file({"__metadata__": {"a": "x" * (9 << 20)}, **GOOD}, b"x" * 8), "__metadata__ is too large"),
    "lone_surrogate_name": (file('{"a\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "bad tensor name"),
    "unknown_dtype": (file({"a": entry([2], 0, 8, "F3")}, b"x" * 8), "dtype 'F3'"),
    "float_shape_nan": (file('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', b"x" * 8), "constant NaN"),
    "float_shape": (file('{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', b"x" * 8), "not whole"),
    "true_shape": (file('{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', b"x" * 4), "not whole"),
    "many_tensors": (file({str(i): entry([0], 0, 0) for i in range(100_001)}), "too many"),
    "many_dims": (file({"a": entry([1] * 9, 0, 4)}, b"x" * 4), "bad shape"),
    "metadata_not_str": (file({"__metadata__": {"a": 1}, **GOOD}, b"x" * 8), "__metadata__ is not"),
    "entry_is_a_list": (file({"a": []}), "a: the entry is not"),
    "entry_says_more": (file({"a": {**entry([2], 0, 8), "more": 1}}, b"x" * 8), "a: the entry is not"),
    "not_an_object": (file("[]" + " " * 8), "does not begin with {"),
    "huge_digits": (file('{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]}}'), "not JSON"),
    "escape_codes": (file({"\x1b[31m": entry([3], 0, 8)}, b"x" * 8), "\\x1b[31m: 8 bytes"),
    "empty": (b"", "0 bytes, too short"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_its_cause(case, tmp_path):
    path = tmp_path / f"{case}.safetensors"
    path.write_bytes(REFUSED[case][0])
    gc.collect()  # what other tests left is not to be closed meanwhile
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(UserError) as error:
        TensorFile(path)
    assert REFUSED[case][1] in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 1000
    if before:
        assert len(os.listdir("/proc/self/fd")) == before  # nothing stays open


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        TensorFile(tmp_path / "pipe")


def test_legal_oddities_are_accepted(tmp_path):
    path = tmp_path / "a.safetensors"
    names = {"../../../../etc/passwd": entry([2], 0, 8), "empty": entry([0, 3], 8, 8), "none": entry([0], 8, 8)}
    path.write_bytes(file({**names, "scalar": entry([], 8, 12)}, np.array([np.nan, np.inf, 3], "<f4").tobytes()))
    opened = TensorFile(path)
    assert opened.tensors["scalar"] == Tensor("F32", ())
    assert opened.read("scalar") == np.float32(3) and opened.read("empty").shape == (0, 3)
    assert np.isnan(opened.read("../../../../etc/passwd")[0])


def test_what_our_header_describes_the_usual_library_reads_too(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="needs the safetensors library to compare with")
    rng = np.random.default_rng(0)
    arrays = {
        f"t.{kind}": rng.integers(0, 2, (3, 5)).astype(kind)
        for name, kind in DTYPES.items() if name != "BF16"
    }  # fmt: skip
    kinds = {f"t.{kind}": name for name, kind in DTYPES.items() if name != "BF16"}
    tensors = {name: Tensor(kinds[name], array.shape) for name, array in arrays.items()}
    head = header(tensors, {"layout": "OHWI"})
    assert len(head) % 4096 == 0
    path = tmp_path / "ours.safetensors"
    path.write_bytes(head + b"".join(array.tobytes() for array in arrays.values()))
    library.save_file(arrays, tmp_path / "theirs.safetensors")
    for opened in (TensorFile(path), TensorFile(tmp_path / "theirs.safetensors")):
        assert set(opened.tensors) == set(arrays)
        assert all((opened.read(name) == array).all() for name, array in arrays.items())
    assert all((library.load_file(path)[name] == array).all() for name, array in arrays.items())


def test_bfloat16_goes_both_ways_and_rounds_to_even():
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = np.isfinite(from_bfloat16(bits))
    assert (to_bfloat16(from_bfloat16(bits[finite])) == bits[finite]).all()
    halves = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF807FFF], np.uint32).view(np.float32)
    assert to_bfloat16(halves).tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80]


def test_random_damage_gives_our_own_error_or_a_readable_file(tmp_path):
    rng = random.Random(0)
    good = file({"a": entry([2], 0, 8), "b": entry([1, 3], 8, 14, "BF16")}, bytes(range(14)))
    path = tmp_path / "mutant.safetensors"
    for _ in range(800):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)
        try:
            opened = TensorFile(path)
        except UserError:
            continue
        for name in opened.tensors:
            opened.read(name)
        opened.close()


def test_a_file_that_shrinks_meanwhile_is_an_error_and_no_crash(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(file(GOOD, b"x" * 8))
    opened = TensorFile(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(UserError, match="changed while it was read"):
        opened.read("a")
