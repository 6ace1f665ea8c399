"""What NumPy computes in MLX's memory is what the functions are, also far from zero, in odd shapes and in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")
import mlxldm.on_mlx  # noqa: E402, F401, I001  (before mlx.core: brings the fast BLAS)
import mlx.core as mx  # noqa: E402
from mlxldm.on_mlx import cpu, layers  # noqa: E402
from mlxldm.on_mlx.device import form  # noqa: E402

@pytest.fixture(params=["one core", "all cores"], autouse=True)
def worth(request, monkeypatch):
    """Every test here runs twice: in one thread, and shared out among three whatever the size."""
    if request.param == "all cores":
        monkeypatch.setattr(cpu, "WORTH", 1)
        monkeypatch.setattr(cpu, "cores", lambda: 3)


FAR = np.concatenate([np.linspace(-300, 300, 4001), [-1e30, 1e30, 0.0, -0.0, 1e-30]]).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x.astype(np.float64)))


def phi(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.astype(np.float64)])


@pytest.mark.parametrize("is_gpu", [False, True])
def test_activations_are_exact_near_and_far(is_gpu):
    x = FAR if not is_gpu else FAR[np.abs(FAR) < 1e4]
    with form(is_gpu):
        assert np.allclose(layers.silu(mx.array(x)[None]), x * sigmoid(x), rtol=1e-5, atol=1e-6)
        assert np.allclose(layers.gelu(mx.array(x)[None]), x * phi(x), rtol=1e-5, atol=1e-6)
        assert np.allclose(layers.quick_gelu(mx.array(x)[None]), x * sigmoid(1.702 * x), rtol=1e-5, atol=1e-6)


def test_the_input_of_an_activation_stays_what_it_was():
    x = mx.array(FAR[None])
    mx.eval(x)
    for function in (layers.silu, layers.gelu, layers.quick_gelu):
        mx.eval(function(x))
    layers.affine(x[:, None, None, :], mx.ones_like(x), mx.ones_like(x), act=True)
    assert np.array_equal(np.array(x)[0], FAR)


def test_a_gate_that_is_half_of_a_wider_array_and_rows_longer_than_a_block():
    draw = np.random.RandomState(0).standard_normal
    for shape in ((1, 7, 2 * 33), (2, 3, 2 * cpu.BLOCK + 2)):
        x = draw(shape).astype(np.float32)
        left, right = np.split(x.astype(np.float64), 2, axis=-1)
        expected = left * right * phi(right.ravel()).reshape(right.shape)
        assert np.allclose(layers.gated(*mx.split(mx.array(x), 2, axis=-1)), expected, atol=1e-6)


@pytest.mark.parametrize("piece", [1, 300, 5000, 1 << 22])
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_attention_in_pieces_of_any_size(piece, spread):
    draw = np.random.RandomState(0).standard_normal
    q, k, v = (draw((2, 3, length, 8)) for length in (11, 7, 7))
    scores = (spread * q) @ k.swapaxes(-1, -2) * 0.35
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = weights / weights.sum(axis=-1, keepdims=True) @ v
    found = cpu.attend(*(mx.array(x.astype(np.float32)) for x in (spread * q, k, v)), 0.35, piece)
    assert np.allclose(found, expected, atol=2e-5 * spread)


@pytest.mark.parametrize("band", [1, 20_000, 1 << 23])
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 7, 12), (3, 11, 5), (1, 1, 1), (2, 2, 9)])
def test_winograd_is_the_convolution(monkeypatch, band, shape):
    monkeypatch.setattr(cpu, "TILES", 1)
    monkeypatch.setattr(cpu, "BAND", band)
    draw = np.random.RandomState(0).standard_normal
    x, weight = (mx.array(draw(size).astype(np.float32)) for size in ((*shape, 16), (24, 3, 3, 16)))
    for shift in (mx.array(draw((1, 24)).astype(np.float32)), mx.array(draw((shape[0], 24)).astype(np.float32))):
        found = cpu.conv3x3(x, weight, shift)
        assert found.shape == (*shape, 24)
        assert np.allclose(found, mx.conv2d(x, weight, padding=1) + shift[:, None, None, :], atol=1e-4)


def test_a_convolution_to_few_channels_is_the_convolution():
    draw = np.random.RandomState(0).standard_normal
    x, weight = (mx.array(draw(size).astype(np.float32)) for size in ((2, 6, 9, 36), (4, 3, 3, 36)))
    shift = mx.array(draw((1, 4)).astype(np.float32))
    found = cpu.conv3x3(x, weight, shift)
    assert np.allclose(found, mx.conv2d(x, weight, padding=1) + shift[:, None, None, :], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 16, 16), (2, 9, 21, 18), (1, 12, 12, 8), (1, 3, 3, 32), (1, 13, 11, 64)])
@pytest.mark.parametrize("band", [1, 1 << 23])
def test_a_convolution_of_repeated_pixels_is_one_of_the_repeated_picture(shape, band, monkeypatch):
    monkeypatch.setattr(cpu, "BAND", band)
    draw = np.random.RandomState(0).standard_normal
    x, shift = mx.array(draw(shape).astype(np.float32)), mx.array(draw((1, 7)).astype(np.float32))
    weight = mx.array(draw((7, 3, 3, shape[-1])).astype(np.float32))
    found = cpu.conv3x3(x, weight, shift, twice=True)
    expected = mx.conv2d(layers.doubled(x), weight, padding=1) + shift
    assert np.allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("shape", [(1, 5, 7, 12), (3, 33, 2, 6), (1, 1, 2, cpu.BLOCK + 8)])
@pytest.mark.parametrize("act", [False, True])
def test_a_norm_is_the_same_in_its_own_memory_and_in_another(shape, act):
    draw = np.random.RandomState(0).standard_normal
    x = mx.array((0.3 + draw(shape)).astype(np.float32))
    norm = layers.GroupNorm(2, shape[-1], 1e-6)
    norm.weight, norm.bias = (mx.array(draw(shape[-1]).astype(np.float32)) for _ in range(2))
    values = np.array(x).astype(np.float64).reshape(shape[0], -1, 2, shape[-1] // 2)
    values = (values - values.mean(axis=(1, 3), keepdims=True)) / np.sqrt(values.var(axis=(1, 3), keepdims=True) + 1e-6)
    expected = values.reshape(shape) * np.array(norm.weight) + np.array(norm.bias)
    expected = expected * sigmoid(expected) if act else expected
    before = np.array(x)
    kept = np.array(norm(x, act=act))
    assert np.array_equal(np.array(x), before)
    assert np.allclose(kept, expected, atol=2e-4)
    assert np.array_equal(np.array(norm(x, act=act, spend=True)), kept)
