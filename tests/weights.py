"""Weights of tiny models in the shape of a model folder: from diffusers' modules, or from a NumPy seed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from mlxldm.folder import Packed
from mlxldm.parameters import parameters
from mlxldm.tensors import Tensor


class ArrayFolder:
    """A folder that lives in memory: {part: {name: array}}, with what a loader asks a folder for."""

    def __init__(self, parts: dict[str, dict[str, np.ndarray]], manifest=None):
        self.parts = parts
        self.manifest = manifest or SimpleNamespace(name="tiny")

    def names(self, part: str) -> dict[str, Tensor]:
        return {name: Tensor("F32", array.shape) for name, array in self.parts[part].items()}

    def read(self, part: str, name: str) -> np.ndarray:
        return self.parts[part][name]

    def raw(self, part: str, name: str) -> np.ndarray:
        return self.read(part, name)

    def groups(self, part: str) -> dict[str, int]:
        return {}

    def packed(self, part: str, name: str) -> Packed:
        raise KeyError(name)

    def hashes(self) -> dict[str, str]:
        return {}


def of_torch(module) -> dict[str, np.ndarray]:
    """A torch module's parameters as a model folder has them: convolutions OHWI, 1x1 convolutions as matrices.

    CLIP's names get the prefix that transformers 5 drops.
    """
    arrays = {}
    clip = type(module).__name__.startswith("CLIP")
    for name, parameter in module.state_dict().items():
        if name.endswith("position_ids"):
            continue
        array = parameter.detach().float().numpy()
        if array.ndim == 4:
            array = array[:, :, 0, 0] if array.shape[2:] == (1, 1) else array.transpose(0, 2, 3, 1)
        if clip and not name.startswith(("text_model.", "text_projection.")):
            name = "text_model." + name
        arrays[name] = np.ascontiguousarray(array)
    return arrays


def random(config, seed: int) -> dict[str, np.ndarray]:
    """Every parameter of a part with that config, from NumPy's frozen generator; no norm or bias is trivial."""
    stream = np.random.RandomState(seed)
    arrays = {}
    for name, shape in parameters(config).items():
        values = stream.standard_normal(shape)
        if len(shape) > 1:
            values = values / (1.0 if "embedding." in name else math.sqrt(math.prod(shape[1:])))
        else:
            values = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        arrays[name] = values.astype(np.float32)
    return arrays


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """Decibels between two arrays, the peak being the range of what was expected."""
    error = np.mean((np.asarray(found, np.float64) - np.asarray(expected, np.float64)) ** 2)
    peak = float(np.ptp(expected))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def assert_same(found, expected, at_least: float = 80.0) -> None:
    """Equal shapes, no NaN, at least 80 dB, and no single value off by more than 1e-4 of the range."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    decibels = psnr(found, expected)
    assert decibels >= at_least, f"{decibels:.1f} dB"
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)
