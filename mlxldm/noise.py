"""One stream of normal numbers for one seed: torch's CPU generator, or an NVIDIA GPU's, in NumPy.

Noise never comes from a backend, so a seed gives the same picture everywhere, and the one that diffusers gives for
`torch.Generator("cpu").manual_seed(seed)` (or, for "nvidia", the one that A1111's web UI gives on a GPU).
"""

from __future__ import annotations

import math

import numpy as np

KINDS = ("torch-cpu", "nvidia")


class Noise:
    """The random numbers of one picture.

    `kind` is "torch-cpu" or "nvidia"; `seed` any whole number from 0 to 2^64 - 1 (torch's CPU generator looks at the
    low 32 bits only, so 2^32 is the same seed as 0 there).
    """

    def __init__(self, seed: int, kind: str = "torch-cpu") -> None:
        if kind not in KINDS:
            raise ValueError(f"noise is {kind!r}, but must be one of {KINDS}")
        self._stream: TorchCpu | Nvidia = TorchCpu(seed) if kind == "torch-cpu" else Nvidia(seed)

    def draw(self, n: int, h: int, w: int, c: int) -> np.ndarray:
        """The next n·h·w·c numbers, float32 (n, h, w, c): drawn as torch draws (n, c, h, w), then transposed."""
        numbers = self._stream.normal(n * h * w * c).reshape(n, c, h, w)
        return np.ascontiguousarray(numbers.transpose(0, 2, 3, 1))


class Mixed:
    """The numbers of one `Noise`, each array of them turned towards another's: from 0, not at all, to 1, wholly."""

    def __init__(self, noise: Noise, other: Noise, amount: float) -> None:
        self._noise, self._other, self._amount = noise, other, amount

    def draw(self, n: int, h: int, w: int, c: int) -> np.ndarray:
        """As `Noise.draw`; both streams go on by as much."""
        return slerp(self._noise.draw(n, h, w, c), self._other.draw(n, h, w, c), self._amount)


def slerp(a: np.ndarray, b: np.ndarray, amount: float) -> np.ndarray:
    """Spherical interpolation (Shoemake 1985, https://doi.org/10.1145/325334.325242) of (n, h, w, c) float32.

    Every column of every channel is a vector of its own, as it is for the variation seeds of A1111's web UI. What lies
    in one line has no angle to go along and is interpolated straight.
    """
    length = np.linalg.norm(a, axis=1, keepdims=True) * np.linalg.norm(b, axis=1, keepdims=True)
    angle = np.arccos(np.clip((a * b).sum(axis=1, keepdims=True) / length, -1, 1))
    sine = np.sin(angle)
    flat = sine < np.float32(1e-3)
    sine = np.where(flat, np.float32(1), sine)
    first = np.where(flat, np.float32(1 - amount), np.sin(np.float32(1 - amount) * angle) / sine)
    second = np.where(flat, np.float32(amount), np.sin(np.float32(amount) * angle) / sine)
    return first * a + second * b


class TorchCpu:
    """`torch.randn(..., generator=torch.Generator("cpu").manual_seed(seed))`, call after call.

    Source: ATen/native/cpu/DistributionTemplates.h (normal_fill) and ATen/core/DistributionsHelper.h of PyTorch.
    """

    def __init__(self, seed: int) -> None:
        self._mt = np.random.RandomState(seed & 0xFFFFFFFF)  # frozen by NumPy's NEP 19; the same MT19937 as torch's
        self._left_over: float | None = None  # the short path makes numbers in pairs and keeps the second

    def normal(self, size: int) -> np.ndarray:
        """The next `size` standard normal numbers, float32 (size,)."""
        return self._long(size) if size >= 16 else np.array([self._one() for _ in range(size)], np.float32)

    def _raw(self, size: int) -> np.ndarray:
        return self._mt.randint(0, 2**32, size, dtype=np.uint32)

    def _long(self, size: int) -> np.ndarray:
        numbers = self._uniform(size)
        whole = size // 16 * 16
        numbers[:whole] = _box_muller_16(numbers[:whole])
        if whole < size:  # torch fills an incomplete last block by drawing the last 16 numbers again
            numbers[-16:] = _box_muller_16(self._uniform(16))
        return numbers

    def _uniform(self, size: int) -> np.ndarray:
        return (self._raw(size) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)

    def _one(self) -> float:
        if self._left_over is not None:
            value, self._left_over = self._left_over, None
            return value
        raw = [int(number) for number in self._raw(4)]
        u1, u2 = (((high << 32 | low) & (2**53 - 1)) * 2.0**-53 for high, low in (raw[:2], raw[2:]))
        radius, angle = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
        self._left_over = radius * math.sin(angle)
        return radius * math.cos(angle)


def _box_muller_16(uniform: np.ndarray) -> np.ndarray:
    """Blocks of 16 numbers in [0, 1): eight radii and eight angles become eight cosines and eight sines."""
    blocks = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - blocks[:, 0]))
    angle = np.float32(2 * math.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


class Nvidia:
    """`torch.randn(..., device="cuda")` after `torch.manual_seed(seed)`, call after call.

    Philox 4x32 with 10 rounds (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405), one counter per number,
    then cuRAND's Box-Muller. torch lays larger draws out otherwise than one counter per number once a GPU has fewer
    threads than numbers (some 10^5), which no latent here reaches.
    """

    def __init__(self, seed: int) -> None:
        self._key = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
        self._draws = 0

    def normal(self, size: int) -> np.ndarray:
        """The next `size` standard normal numbers, float32 (size,)."""
        counter = np.zeros((4, size), np.uint64)
        counter[0] = self._draws
        counter[2] = np.arange(size)
        self._draws += 1
        x, y = _philox(counter, self._key)[:2]
        unit, turn = 2.0**-32, 2.0**-32 * 2 * math.pi
        radius = np.sqrt(-2 * np.log(x * unit + unit / 2))
        return (radius * np.sin(y * turn + turn / 2)).astype(np.float32)


def _philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds over counters (4, size), each a 32-bit number held in uint64 so that products fit."""
    low = np.uint64(0xFFFFFFFF)
    k0, k1 = key
    for _ in range(10):
        a = counter[0] * np.uint64(0xD2511F53)
        b = counter[2] * np.uint64(0xCD9E8D57)
        counter = np.stack(
            [
                (b >> np.uint64(32)) ^ counter[1] ^ np.uint64(k0),
                b & low,
                (a >> np.uint64(32)) ^ counter[3] ^ np.uint64(k1),
                a & low,
            ]
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return counter
