"""Make `mlxldm/scenes/reference.npz`, which `mlxldm doctor` compares with: the embedded model in torch, float32, CPU.

    python tools/make_reference.py            after the weights in mlxldm/scenes/ changed
"""

from __future__ import annotations

import mlxldm.backend
from mlxldm import doctor, store


def main() -> None:
    folder = store.find(None, None)
    model = mlxldm.backend.load(folder, "torch", "cpu", "float32")
    results = doctor.save_reference(folder, model)
    for name, values in results.items():
        print(f"{name:9} {values.dtype} {values.shape}")
    print(f"{doctor.REFERENCE}: {doctor.REFERENCE.stat().st_size / 1000:.0f} kB, made with {model.description}")
    print(doctor.examine("mlx", "cpu", "float32"))


if __name__ == "__main__":
    main()
