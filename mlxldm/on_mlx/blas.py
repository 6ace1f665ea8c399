"""A fast BLAS for MLX on Linux CPUs, which must be in the process before MLX is.

MLX's Linux wheel links the reference BLAS, 27 to 40 times slower than OpenBLAS or MKL. A library loaded with
RTLD_GLOBAL before `import mlx.core` wins over the one the wheel brings, because the global scope is searched first.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..errors import UserError

ADVICE = "install OpenBLAS (Debian, Ubuntu: libopenblas0; Fedora: openblas) or `pip install mkl`, 27 times faster"
KNOWN = (  # what distributions call the threaded OpenBLAS with the C interface
    "libopenblas.so.0", "libopenblasp.so.0", "libopenblaso.so.0", "libopenblas.so",
    "/opt/conda/lib/libopenblas.so", "/usr/lib64/libopenblasp.so.0", "/usr/lib/libopenblas.so",
)  # fmt: skip


@dataclass(frozen=True)
class Blas:
    """What multiplies matrices: its name, the file it came from, and a word for the person if it is slow."""

    name: str
    path: str | None = None
    advice: str | None = None
    library: ctypes.CDLL | None = None

    def threads(self, n: int) -> bool:
        """Use `n` threads for one product from now on; False if this BLAS cannot be told."""
        setter = {"OpenBLAS": "openblas_set_num_threads", "MKL": "MKL_Set_Num_Threads"}.get(self.name)
        if self.library is None or setter is None or not hasattr(self.library, setter):
            return False
        getattr(self.library, setter)(ctypes.c_int(n))
        return True


@cache
def preload() -> Blas:
    """Find a fast BLAS and load it, once per process; call before `import mlx.core`.

    Order: the file in MLXLDM_BLAS, OpenBLAS of the system, MKL's wheel in this Python environment.
    Does nothing on macOS (Accelerate) and for MLX's CUDA build (cuBLAS).
    """
    if sys.platform == "darwin":
        return Blas("Accelerate")
    if _has("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13"):
        return Blas("cuBLAS")
    if "mlx.core" in sys.modules:
        return Blas("the BLAS MLX was imported with", advice="import mlxldm.on_mlx before mlx.core to have a fast one")
    wanted = os.environ.get("MLXLDM_BLAS")
    if wanted:
        library = _load(wanted)
        if library is None or not hasattr(library, "cblas_sgemm"):
            raise UserError(
                f"MLXLDM_BLAS={wanted} is not a BLAS library that can be loaded (it needs cblas_sgemm): "
                "name the file of libopenblas.so or libmkl_rt.so, or unset it."
            )
        return Blas(_name(library), wanted, library=library)
    for path in _places():
        library = _load(path)
        if library is not None and hasattr(library, "cblas_sgemm"):
            return Blas(_name(library), path, library=library)
    return Blas("reference BLAS", advice=ADVICE)


def _places() -> Iterator[str]:
    found = ctypes.util.find_library("openblas")
    if found:
        yield found
    yield from KNOWN
    lib = Path(sys.prefix) / "lib"
    for mkl in sorted(lib.glob("libmkl_rt.so*")):
        for openmp in sorted(lib.glob("libiomp5.so")):  # MKL's threads; it does not look for them beside itself
            _load(str(openmp))
        yield str(mkl)


def _load(path: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None


def _name(library: ctypes.CDLL) -> str:
    if hasattr(library, "openblas_get_config"):
        return "OpenBLAS"
    return "MKL" if hasattr(library, "MKL_Set_Num_Threads") else "a BLAS"


def _has(*names: str) -> bool:
    for name in names:
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        return True
    return False
