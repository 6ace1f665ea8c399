"""The doctor, on a little model: a right machine, a wrong one, and stored results that do not belong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_mlx

from mlxldm import backend, cli, doctor, store
from mlxldm.errors import UserError
from mlxldm.folder import open_folder

PARTS = ["text", "denoiser", "encoder", "decoder", "picture"]


@pytest.fixture
def embedded(little_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The little model in the place of the embedded one, with results stored for it."""
    folder = open_folder(little_folder)
    monkeypatch.setattr(store, "find", lambda *_: folder)
    path = tmp_path / "reference.npz"
    monkeypatch.setattr(doctor, "load_reference", lambda found, load=doctor.load_reference: load(found, path))
    doctor.save_reference(folder, backend.load(folder, "mlx", "cpu", "float32"), path)
    assert path.stat().st_size < 100_000
    return folder, path


@needs_mlx
def test_a_right_machine(embedded, capfd: pytest.CaptureFixture[str]):
    assert cli.main(["doctor", "--backend", "mlx", "--device", "cpu", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["right"] and [check["part"] for check in report["checks"]] == PARTS
    assert all(check["seconds"] > 0 and check["decibel"] >= check["enough"] == 55 for check in report["checks"])
    assert cli.main(["doctor", "--backend", "mlx", "--device", "cpu"]) == 0
    out = capfd.readouterr().out
    assert out.count("\n") == 7 and "MLX" in out and "This machine computes right." in out


@needs_mlx
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_has_its_own_tolerance(embedded, precision: str):
    report = doctor.examine("mlx", "cpu", precision)
    assert report.precision == precision and {check.enough for check in report.checks} == {35.0}
    assert all(check.decibel > 30 for check in report.checks), str(report)


@needs_mlx
@pytest.mark.parametrize(
    ("method", "part"),
    [("text_states", "text"), ("predict", "denoiser"), ("encode_image", "encoder"), ("decode", "decoder")],
)
def test_the_wrong_part_is_named(embedded, monkeypatch: pytest.MonkeyPatch, capfd, method: str, part: str):
    from mlxldm.on_mlx.model import MlxModel

    right = getattr(MlxModel, method)

    def slightly_off(self, *arguments):
        out = right(self, *arguments)
        return tuple(x * 1.02 for x in out) if isinstance(out, tuple) else out * 1.02

    monkeypatch.setattr(MlxModel, method, slightly_off)
    report = doctor.examine("mlx", "cpu", "float32")
    assert not report.right
    wrong = {check.part for check in report.checks if not check.right}
    assert part in wrong and not wrong - {part, "picture"}
    assert cli.main(["doctor", "--backend", "mlx", "--device", "cpu"]) == 1
    assert "does not compute right" in capfd.readouterr().out


@needs_mlx
def test_results_of_other_weights_are_refused(embedded, tmp_path: Path):
    folder, path = embedded
    import little

    other = little.Little()
    other.parts["vae"] = {name: array + 1 for name, array in other.parts["vae"].items()}
    with pytest.raises(UserError, match="other weights"):
        doctor.load_reference(other)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        doctor.load_reference(folder)
    path.unlink()
    with pytest.raises(UserError, match="no stored results"):
        doctor.load_reference(folder)


def test_the_measure():
    wave = np.sin(np.arange(1000))
    assert doctor.psnr(wave, wave) == math.inf
    assert abs(doctor.psnr(wave + 0.002, wave) - 60) < 0.1
    assert math.isnan(doctor.psnr(wave * np.nan, wave)) and math.isnan(doctor.psnr(wave[1:], wave))
    check = doctor.Check("text", math.nan, 55, 0.1)
    assert not check.right and "WRONG" in str(check) and "not numbers" in str(check)
    json.dumps(doctor.Report("", "", "float32", [check]).to_json(), allow_nan=False)
