"""The MLX backend: Metal on Apple silicon, the CPU elsewhere.

Importing this package prepares the process for MLX and then imports it, so nothing of ours may import `mlx.core` first.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from . import blas

BLAS = blas.preload()
if sys.platform != "darwin":
    # On a CPU, mx.compile runs a C++ compiler for seconds and the result is slower than no compilation.
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
# Metal's float16 Winograd convolution loses 36 times the precision of a direct one, at every 3x3 layer.
os.environ.setdefault("MLX_CONV_WINOGRAD", "0")

import mlx.core as mx  # noqa: E402

VERSION: str = mx.__version__  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from ..folder import Folder
    from ..plan import Machine
    from .model import MlxModel


def load(folder: Folder, device: str | None = None, precision: str = "auto") -> MlxModel:
    """The model in `folder`, in memory. device: "gpu", "cpu" or None for the best there is; precision: see `model`."""
    from .model import MlxModel

    return MlxModel(folder, device, precision)


def machine(device: str | None = None, precision: str = "auto") -> Machine:
    """Where `load` would put a model, and in what precision; a UserError for what is not here."""
    from .model import machine

    return machine(device, precision)


def probe() -> dict[str, Any]:
    """What MLX is on this machine.

    version; device ("gpu" or "cpu") and its name; devices, all of them; memory in bytes or None; blas, what multiplies
    matrices on the CPU; fast, False where that is slow; note, one sentence about it or empty.
    """
    gpu = mx.is_available(mx.gpu)
    info = mx.device_info()
    return {
        "name": "mlx",
        "version": VERSION,
        "device": "gpu" if gpu else "cpu",
        "device_name": str(info.get("device_name") or info.get("architecture") or "CPU"),
        "devices": ["gpu", "cpu"] if gpu else ["cpu"],
        "memory": int(info["memory_size"]) if "memory_size" in info else _ram(),
        "blas": BLAS.name,
        "fast": gpu or BLAS.advice is None,
        "note": "" if gpu or BLAS.advice is None else f"MLX multiplies with the slow {BLAS.name} here: {BLAS.advice}.",
    }


def _ram() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
