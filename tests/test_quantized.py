"""Quantized weights: MLX's own bits and numbers, for every width of code and group, in NumPy and in torch."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mlxldm import quantized
from mlxldm.errors import UserError
from mlxldm.quantized import (
    BITS,
    GROUPS,
    dequantize,
    dequantize_torch,
    error,
    fits,
    group_for,
    packed_shapes,
    quantize,
)
from mlxldm.tensors import from_bfloat16, to_bfloat16

ROWS, WIDTH = 6, 384  # not square; every group divides the width

every = pytest.mark.parametrize(("bits", "group"), [(bits, group) for bits in BITS for group in GROUPS])


@pytest.fixture
def mx():
    """MLX on its CPU, whose numbers are ours; after mlxldm.on_mlx, which brings the fast BLAS."""
    mlx = pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed").mx
    with mlx.stream(mlx.cpu):
        yield mlx


def normal(rows: int = ROWS, width: int = WIDTH, size: float = 0.03, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, (rows, width)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """One weight of every kind that could go wrong, in float32."""
    outlier = normal()
    outlier[:, 40] = 100
    outlier[:, 300] = -30_000
    lonely = np.zeros((ROWS, WIDTH), np.float32)
    lonely[:, ::128] = -0.5
    ramp = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH) % 256
    return {
        "normal": normal(),
        "zero": np.zeros((ROWS, WIDTH), np.float32),
        "minus zero": np.full((ROWS, WIDTH), -0.0, np.float32),
        "constant": np.full((ROWS, WIDTH), 0.1, np.float32),
        "negative constant": np.full((ROWS, WIDTH), -3, np.float32),
        "positive": np.abs(normal()) + 0.01,
        "negative": -np.abs(normal()) - 0.01,
        "symmetric": np.concatenate([normal(width=WIDTH // 2), -normal(width=WIDTH // 2)], axis=1),
        "whole numbers": ramp,
        "halves": ramp / 2 - 31.5,  # many fall between two codes
        "one a group": lonely,
        "small": normal(size=1e-3),
        "tiny": normal(size=1e-6),
        "next to nothing": normal(size=3e-8),
        "outlier": outlier,
        "large": normal(size=5000),
    }


def of_mlx(mx, weight: np.ndarray, bits: int, group: int) -> list[np.ndarray]:
    return [np.array(part) for part in mx.quantize(mx.array(weight.astype(np.float16)), group, bits)]


@every
def test_the_bits_are_mlxs_own(mx, bits, group):
    for kind, weight in weights().items():
        theirs = of_mlx(mx, weight, bits, group)
        for given in (weight, weight.astype(np.float16)):
            ours = quantize(given, bits, group)
            for name, our, their in zip(("packed", "scales", "biases"), ours, theirs, strict=True):
                assert our.dtype == their.dtype and our.shape == their.shape, (kind, name)
                assert np.array_equal(our, their), (kind, name)


@every
def test_the_numbers_are_mlxs_own(mx, bits, group):
    """In both types; scales and words at random, so that every bit of every word matters."""
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 1 << 32, (ROWS, WIDTH * bits // 32), np.uint32)
    scales, biases = rng.normal(0, 1, (2, ROWS, WIDTH // group))
    scales[0, 0], biases[1, 0], scales[2, 0] = 60_000, 60_000, 1e-7  # infinite in float16, and lost in it
    for dtype in (np.float16, np.float32):
        with np.errstate(over="ignore"):
            parts = packed, scales.astype(dtype), biases.astype(dtype)
        ours = dequantize(*parts, bits, group)
        theirs = np.array(mx.dequantize(*map(mx.array, parts), group, bits))
        assert ours.dtype == theirs.dtype == dtype and ours.shape == (ROWS, WIDTH)
        assert np.array_equal(ours, theirs), dtype
    for kind, weight in weights().items():
        parts = quantize(weight, bits, group)
        theirs = np.array(mx.dequantize(*map(mx.array, parts), group, bits))
        assert np.array_equal(dequantize(*parts, bits, group), theirs), kind
        assert np.isfinite(theirs).all(), kind


@every
def test_torch_has_the_same_numbers(bits, group):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    places = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for kind, weight in weights().items():
        for scales_dtype in (np.float16, np.float32):
            packed, scales, biases = quantize(weight, bits, group)
            parts = packed, scales.astype(scales_dtype), biases.astype(scales_dtype)
            expected = torch.from_numpy(dequantize(*parts, bits, group))
            tensors = [torch.from_numpy(part) for part in parts]
            for place in places:
                for dtype in (torch.float32, torch.float16, torch.bfloat16):
                    got = dequantize_torch(*tensors, bits, group, dtype, place)
                    assert got.dtype == dtype and got.device.type == place and got.shape == weight.shape
                    assert torch.equal(got.cpu(), expected.to(dtype)), (kind, scales_dtype, dtype, place)
                    there = [tensor.to(place) for tensor in tensors]
                    assert torch.equal(dequantize_torch(*there, bits, group, dtype), got)


def test_torch_takes_signed_words_and_views():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    parts = quantize(normal(), 5, 64)
    packed, scales, biases = map(torch.from_numpy, parts)
    signed = packed.view(torch.int32).T.contiguous().T  # another order in memory
    got = dequantize_torch(signed, scales, biases, 5, 64, torch.float16)
    assert np.array_equal(got.numpy(), dequantize(*parts, 5, 64)) and got.is_contiguous()


@pytest.mark.parametrize(("bits", "expected"), [(2, 0.395), (3, 0.19), (4, 0.09), (5, 0.045), (6, 0.022), (8, 0.0054)])
def test_the_error_of_normal_numbers(bits, expected):
    weight = normal(64, 512)
    assert error(weight, *quantize(weight, bits, 64), bits, 64) == pytest.approx(expected, rel=0.04)
    larger, smaller = (error(weight, *quantize(weight, bits, group), bits, group) for group in (128, 32))
    assert smaller < expected < larger


@every
def test_a_weight_moves_by_half_a_step_at_most(bits, group):
    """By one at the end that is nearer to zero; zero and the other end stay where they were."""
    weight = np.where(np.arange(WIDTH) % 5, normal(), 0).astype(np.float16)
    parts = quantize(weight, bits, group)
    w, back = (x.reshape(ROWS, -1, group).astype(np.float32) for x in (weight, dequantize(*parts, bits, group)))
    step, edge = (part[..., None].astype(np.float32) for part in parts[1:])
    moved, slack = np.abs((back - w) / step), 2**bits * 2**-10  # float16 rounds the step, the product and the sum
    beyond = (w - edge) / step > 2**bits - 0.5
    assert (moved <= np.where(beyond, 1, 0.5) + slack).all()
    assert (moved[w == 0] <= slack).all()
    assert (back == w)[np.abs(w) == np.abs(w).max(axis=-1, keepdims=True)].all()


def test_zero_and_constant_weights_are_exact():
    for kind in ("zero", "minus zero", "constant", "negative constant"):
        weight = weights()[kind].astype(np.float16)
        for bits in BITS:
            parts = quantize(weight, bits, 64)
            assert np.array_equal(dequantize(*parts, bits, 64), weight), (kind, bits)
            assert error(weight, *parts, bits, 64) == 0
            assert not parts[0].any()


@every
def test_quantizing_again_changes_nothing_where_a_group_uses_all_its_range(bits, group):
    """Where the first or the last code is unused, the second range is narrower, and its grid another."""
    parts = quantize(normal(32, 768), bits, group)
    back = dequantize(*parts, bits, group)
    again = quantize(back, bits, group)
    grid = parts[1].shape
    codes = ((back.reshape(*grid, group) - parts[2][..., None]) / parts[1][..., None]).astype(np.float32)
    full = (np.rint(codes.max(axis=-1)) == 2**bits - 1) & (np.rint(codes.min(axis=-1)) == 0)
    assert full.mean() > 0.3
    assert np.array_equal(again[1][full], parts[1][full]) and np.array_equal(again[2][full], parts[2][full])
    words = [packed.reshape(*grid, -1)[full] for packed in (parts[0], again[0])]
    assert np.array_equal(*words)


def test_bfloat16_keeps_all_it_has(mx):
    """Its numbers are float16's too, and scales in float16 lose less than MLX's in bfloat16."""
    bits16 = to_bfloat16(normal(32, 512))
    weight = from_bfloat16(bits16)
    parts = quantize(weight, 8, 64)
    for our, their in zip(parts, of_mlx(mx, weight, 8, 64), strict=True):
        assert np.array_equal(our, their)
    theirs = mx.dequantize(*mx.quantize(mx.array(weight).astype(mx.bfloat16), 64, 8), 64, 8)
    off = np.array(theirs.astype(mx.float32)) - weight
    assert error(weight, *parts, 8, 64) < 0.8 * np.sqrt(np.mean(off**2) / np.mean(weight**2))


def test_blocks_views_and_types_make_no_difference(monkeypatch):
    weight = normal(50, 256)
    whole = quantize(weight, 3, 32)
    back = dequantize(*whole, 3, 32)
    off = error(weight, *whole, 3, 32)
    monkeypatch.setattr(quantized, "BLOCK", 700)  # two rows at a time, and a last block that is not full
    for given in (weight, weight.astype(np.float16), np.asfortranarray(weight), np.repeat(weight, 2, 1)[:, ::2]):
        kept = given.copy()
        for one, other in zip(whole, quantize(given, 3, 32), strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(given, kept)  # the caller's weight is left alone
    assert np.array_equal(dequantize(*map(np.asfortranarray, whole), 3, 32), back)
    assert error(weight, *whole, 3, 32) == pytest.approx(off, rel=1e-12)
    monkeypatch.setattr(quantized, "BLOCK", 100)  # less than a row
    assert np.array_equal(quantize(weight, 3, 32)[0], whole[0])


def test_a_weight_without_rows():
    parts = quantize(np.empty((0, 64), np.float32), 4, 32)
    assert [part.shape for part in parts] == list(packed_shapes((0, 64), 4, 32)) == [(0, 8), (0, 2), (0, 2)]
    assert dequantize(*parts, 4, 32).shape == (0, 64)


def test_memory_does_not_grow_with_the_weight():
    """Ten megabytes beyond the result, for a weight of 32 (64 in float32)."""
    weight = np.ones((4096, 4096), np.float16)
    weight[:, ::2] = -0.5
    tracemalloc.start()
    try:
        parts = quantize(weight, 5, 64)
        peak = tracemalloc.get_traced_memory()[1]
        assert peak <= sum(part.nbytes for part in parts) + 10e6
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        back = dequantize(*parts, 5, 64)
        assert tracemalloc.get_traced_memory()[1] - before <= back.nbytes + 10e6
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        error(weight, *parts, 5, 64)
        assert tracemalloc.get_traced_memory()[1] - before <= 10e6
    finally:
        tracemalloc.stop()


def test_which_groups_fit():
    assert fits((320, 320), 64) and fits((1, 32), 32) and not fits((320, 320), 128)
    assert not fits((320, 4, 3, 3), 32) and not fits((64,), 64) and not fits((4, 0), 32) and not fits((), 32)
    assert [group_for(width, 128) for width in (1280, 320, 224, 4, 0)] == [128, 64, 32, None, None]
    assert [group_for(1280, wanted) for wanted in GROUPS] == list(GROUPS)
    assert packed_shapes((1280, 320), 3, 64) == ((1280, 30), (1280, 5), (1280, 5))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -65536])
def test_what_is_not_finite_or_too_large_is_refused_with_its_row(value):
    weight = normal(3000, 128)
    weight[2345, 67] = value
    with pytest.raises(UserError, match="^Row 2345 of a weight is not finite, or spans more than float16's 65504: .*"):
        quantize(weight, 8, 64)


def test_a_span_beyond_float16_is_refused():
    """Its ends are float16's, but a code times the step is not."""
    weight = normal()
    weight[3, 0], weight[3, 1] = 60_000, -60_000
    for bits in BITS:
        with pytest.raises(UserError, match="^Row 3 "):
            quantize(weight, bits, 32)
    weight[3, 0] = 1000
    for bits in BITS:
        assert np.isfinite(dequantize(*quantize(weight, bits, 32), bits, 32)).all()


def _parts(**other: np.ndarray) -> list[np.ndarray]:
    parts = dict(zip(("packed", "scales", "biases"), quantize(normal(), 4, 64), strict=True))
    return list((parts | other).values())


BAD = {
    "bits is 7": lambda: quantize(normal(), 7, 64),
    "bits is 1,": lambda: packed_shapes((4, 64), 1, 64),
    "group is 48": lambda: quantize(normal(), 4, 48),
    "group is 256": lambda: group_for(1280, 256),
    "group is 0": lambda: fits((4, 64), 0),
    "shape (6, 320) is not a matrix whose rows are groups of 128": lambda: quantize(normal(width=320), 4, 128),
    "shape (64,) is not a matrix": lambda: quantize(np.zeros(64, np.float32), 4, 32),
    "shape (8, 32, 3, 3) is not": lambda: packed_shapes((8, 32, 3, 3), 4, 32),
    "the weight is float64": lambda: quantize(normal().astype(np.float64), 4, 64),
    "the weight is uint16": lambda: quantize(to_bfloat16(normal()), 4, 64),
    "do not belong together at 8 bits": lambda: dequantize(*_parts(), 8, 64),
    "do not belong together at 4 bits, groups of 32": lambda: dequantize(*_parts(), 4, 32),
    "biases (6, 5) do not": lambda: dequantize(*_parts(biases=np.zeros((6, 5), np.float16)), 4, 64),
    "packed (288,)": lambda: dequantize(*_parts(packed=np.zeros(288, np.uint32)), 4, 64),
    "are int32, float16 and float16": lambda: dequantize(*_parts(packed=np.zeros((6, 48), np.int32)), 4, 64),
    "float16 and float32": lambda: dequantize(*_parts(biases=np.zeros((6, 6), np.float32)), 4, 64),
    "the weight has shape (6, 320)": lambda: error(normal(width=320), *_parts(), 4, 64),
}


@pytest.mark.parametrize("sentence", BAD)
def test_a_programmers_mistake_is_named(sentence):
    with pytest.raises(ValueError) as caught:
        BAD[sentence]()
    assert sentence in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_torch_names_the_same_mistakes():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    packed, scales, biases = map(torch.from_numpy, _parts())
    with pytest.raises(ValueError, match="do not belong together at 6 bits"):
        dequantize_torch(packed, scales, biases, 6, 64, torch.float16)
    with pytest.raises(ValueError, match="torch.float32, but 32-bit words and one floating type"):
        dequantize_torch(packed, scales, biases.float(), 4, 64, torch.float16)
    with pytest.raises(ValueError, match="32-bit words"):
        dequantize_torch(packed.long(), scales, biases, 4, 64, torch.float16)


def test_the_error_of_zeros():
    zero = np.zeros((ROWS, WIDTH), np.float16)
    assert error(zero, *quantize(zero, 4, 64), 4, 64) == 0
    assert error(zero, *quantize(normal(), 4, 64), 4, 64) == np.inf
