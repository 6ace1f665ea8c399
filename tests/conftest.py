"""What every test may use. Tiny models are in `tiny.py`; nothing here downloads anything."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before any library is imported: no network, no progress bars, no waiting for a hub that is not asked.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# One thread each: tiny models gain nothing from more, and lose much where other processes take turns with them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

sys.path.insert(0, str(ROOT / "tests"))  # so that tests can say `import tiny`


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for models and the hub's cache that is nobody's real one, in this process and in those it starts."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MLXLDM_HOME", str(folder / "mlxldm"))
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    return folder


def has(module: str) -> bool:
    """Whether a module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


needs_torch = pytest.mark.skipif(not has("torch") or not has("diffusers"), reason="torch and diffusers are missing")
needs_mlx = pytest.mark.skipif(not has("mlx"), reason="MLX is missing")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory):
    """`tiny_folder(kind, layout)`: a tiny diffusers pipeline of `tiny.KINDS`, saved once for the whole run."""
    for module in ("torch", "diffusers", "transformers"):
        pytest.importorskip(module, reason=f"{module} is not installed: it builds the tiny pipelines")
    import tiny

    root = tmp_path_factory.mktemp("tiny")
    return lambda kind="sd1", layout="today": tiny.saved(kind, layout, root)


@pytest.fixture(scope="session")
def little_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little model folder of ours, made without torch."""
    import little

    return little.write(tmp_path_factory.mktemp("little") / "little")
