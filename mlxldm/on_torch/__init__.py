"""The PyTorch backend: diffusers' and transformers' modules behind the same face as the MLX one.

Importing this package imports no framework; torch comes with `probe` or `load`.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from ..folder import Folder
    from ..plan import Machine
    from .model import TorchModel

NEEDS = ("torch", "diffusers", "transformers")


def load(folder: Folder, device: str | None = None, precision: str = "auto") -> TorchModel:
    """The model in `folder`, on `device` (None: the best one here) in `precision` (`auto` or a dtype's name).

    Raises `UserError` if torch, diffusers or transformers are missing, the device is not here, the model needs what
    this backend lacks, or the folder's tensors are not those that its config asks for.
    """
    _import()
    from .build import build

    return build(folder, device, precision)


def machine(device: str | None = None, precision: str = "auto") -> Machine:
    """Where `load` would put a model, and in what precision; raises what `load` would for what is not here."""
    _import()
    from .build import machine

    return machine(device, precision)[0]


def _import() -> None:
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"The torch backend needs {', '.join(NEEDS)}, and importing them failed ({error}): "
            f'pip install "mlxldm[torch]".'
        ) from None


def probe() -> dict[str, Any] | None:
    """What torch finds on this machine, without computing anything; None if it cannot be imported.

    `device` is the first choice, `memory` its bytes or None (a CPU's is the system's).
    """
    try:
        import torch
    except ImportError:
        return None
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        devices.append("mps")
    name = memory = None
    if devices and devices[0].startswith("cuda"):
        properties = torch.cuda.get_device_properties(0)
        name, memory = properties.name, properties.total_memory
    return {
        "name": "torch",
        "version": torch.__version__,
        "device": devices[0] if devices else "cpu",
        "devices": [*devices, "cpu"],
        "memory": memory,
        "fast": True,
        "note": name or "",
        "packages": {package: metadata.version(package) for package in NEEDS if _installed(package)},
    }


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
