"""The random numbers are torch's, to the last places of float32: against stored ones, and against torch where it is."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from mlxldm.noise import Noise, Nvidia, TorchCpu

# The first numbers of torch.randn(16), torch.randn(4) and the last of torch.randn(20), for torch 2.13 on x86.
STORED = {
    0: (
        [-1.1258398, -1.1523602, -0.2505786, -0.4338788, 0.8487103, 0.6920092],
        [1.5409961, -0.2934289, -2.1787894, 0.5684313],
        [0.9318266, 1.259009, 2.0049805, 0.0537369],
    ),
    42: (
        [1.9269153, 1.4872841, 0.9007172, -2.1055212, 0.6784184, -1.2345449],
        [0.3366904, 0.1288094, 0.2344624, 0.230333],
        [-0.3097267, -0.3957105, 0.8034093, -0.6215954],
    ),
    2**32 - 1: (
        [-2.6642973, -1.0910487, 0.4514475, 0.2283607, 1.8986179, 1.5642089],
        [1.2197631, -0.3929795, 1.0230751, -0.3734211],
        [1.6243832, -1.1137654, 0.6557478, -1.2096902],
    ),
}

# What a GPU makes of seed 0: published with A1111's web UI (modules/rng_philox.py).
CUDA_0 = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]


@pytest.mark.parametrize("seed", STORED)
def test_the_first_numbers_of_a_seed(seed):
    many, few, last = STORED[seed]
    np.testing.assert_allclose(TorchCpu(seed).normal(16)[:6], many, atol=1e-6)
    np.testing.assert_allclose(TorchCpu(seed).normal(4), few, atol=1e-6)
    np.testing.assert_allclose(TorchCpu(seed).normal(20)[-4:], last, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is missing")
@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 5, 2**63])
def test_every_draw_of_a_stream_is_torchs(seed):
    """Also below 16 numbers (made in pairs, of which one is kept for later) and beside multiples of 16."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    stream = TorchCpu(seed)
    for size in (1, 16, 3, 5, 17, 31, 15, 32, 33, 64, 2, 100, 1024, 7, 4096, 1, 16387):
        expected = torch.randn(size, generator=generator).numpy()
        np.testing.assert_allclose(stream.normal(size), expected, rtol=0, atol=1e-6, err_msg=f"{size} numbers")


def test_a_gpus_numbers():
    np.testing.assert_allclose(Nvidia(0).normal(12).reshape(3, 4), CUDA_0, rtol=0, atol=3e-7)


def test_a_gpus_next_draw_is_another_and_sizes_share_a_beginning():
    stream = Nvidia(7)
    first, second = stream.normal(64), stream.normal(64)
    assert np.abs(first - second).max() > 1
    np.testing.assert_array_equal(Nvidia(7).normal(32), first[:32])
    assert np.abs(Nvidia(7 + 2**32).normal(64) - first).max() > 1  # all 64 bits of the seed count


@pytest.mark.parametrize("kind", ["torch-cpu", "nvidia"])
def test_draws_are_channel_last_of_a_channel_first_stream(kind):
    numbers = Noise(3, kind).draw(1, 5, 6, 4)
    stream = (TorchCpu(3) if kind == "torch-cpu" else Nvidia(3)).normal(120)
    assert numbers.dtype == np.float32 and numbers.flags.c_contiguous
    np.testing.assert_array_equal(numbers, stream.reshape(1, 4, 5, 6).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("kind", ["torch-cpu", "nvidia"])
def test_the_numbers_are_standard_normal(kind):
    numbers = Noise(11, kind).draw(1, 128, 128, 4).ravel()
    assert abs(numbers.mean()) < 0.02 and abs(numbers.std() - 1) < 0.02
    assert abs((np.abs(numbers) < 1).mean() - 0.6827) < 0.01


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="noise"):
        Noise(0, "metal")
