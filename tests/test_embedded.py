"""The model that ships with the project: small enough, whole, and drawing what it drew when its results were stored."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, needs_mlx, needs_torch

from mlxldm import cli, doctor, store
from mlxldm.picture import load_image, read_job

pytestmark = pytest.mark.skipif(not store.embedded().exists(), reason="this checkout has no embedded model")
PROMPT = re.search(r"^DEMO = (.*)$", (ROOT / "Makefile").read_text(), re.M)[1]


def test_it_is_small_and_float16():
    files = [path for path in store.embedded().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32_000_000
    assert doctor.REFERENCE.stat().st_size <= 400_000
    folder = store.find(None)
    assert folder.manifest.name == store.EMBEDDED and folder.manifest.license
    dtypes = {tensor.dtype for part in folder.manifest.parts for tensor in folder.names(part).values()}
    assert dtypes == {"F16"}


@needs_mlx
def test_mlx_computes_what_is_stored():
    """Every part and a whole picture against torch's float32 results, without torch."""
    report = doctor.examine("mlx", "cpu", "float32")
    assert report.right, str(report)


@needs_torch
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_torch_computes_what_is_stored(precision: str):
    report = doctor.examine("torch", "cpu", precision)
    assert report.right, str(report)


@needs_mlx
def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The picture of `make demo`, and that the prompt and the seed matter."""
    monkeypatch.chdir(tmp_path)
    for name, prompt, seed in [("a", PROMPT, 5), ("b", PROMPT, 8), ("c", "a green tent in the desert at night", 5)]:
        assert cli.main(["generate", prompt, "--seed", str(seed), "--backend", "mlx", "-o", f"{name}.png"]) == 0
    job = read_job("a.png")
    assert (job.prompt, job.seed) == (PROMPT, 5)
    demo, other_seed, other_prompt = (load_image(f"{name}.png", job.width, job.height) for name in "abc")
    assert demo.std() > 0.1
    for other in (other_seed, other_prompt):
        assert doctor.psnr(other, demo, 2.0) < 40 and not np.array_equal(other, demo)
