"""What `import mlxldm` offers to Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import needs_mlx

import mlxldm

CPU = {"backend": "mlx", "device": "cpu"}


@needs_mlx
def test_draw_gives_a_picture_and_keeps_the_model(little_folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = str(little_folder)
    first = mlxldm.draw("a house", model=model, seed=3, steps=2, **CPU)
    assert first.size == (64, 64) and first.mode == "RGB"
    monkeypatch.setattr(mlxldm, "load", lambda *_, **__: pytest.fail("loaded again"))
    again = mlxldm.draw("a house", model=model, seed=3, steps=2, **CPU)
    assert np.array_equal(np.asarray(first), np.asarray(again))
    other = mlxldm.draw("a house", model=model, seed=4, steps=2, **CPU)
    assert not np.array_equal(np.asarray(first), np.asarray(other))


@needs_mlx
def test_generate_yields_steps_then_a_picture(little_folder: Path):
    model = mlxldm.load(str(little_folder), **CPU)
    events = list(mlxldm.generate(model, mlxldm.Job("a house", seed=3, steps=3, count=2)))
    assert [type(event).__name__ for event in events] == (["Step"] * 3 + ["Picture"]) * 2
    pixels = events[3].pixels
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(mlxldm.draw("a house", model=str(little_folder), seed=3, steps=3, **CPU)))
    assert [event.job.seed for event in events if hasattr(event, "pixels")] == [3, 4]


@needs_mlx
def test_a_folder_that_is_only_presented_runs_too():
    import little

    model = mlxldm.load(little.Little(), **CPU)
    assert model.memory()["weights"] > 0 and model.precision == "float32"
    model.unload()


@needs_mlx
def test_no_part_of_a_prompt_is_left_out(little_folder: Path):
    wishes = {"model": str(little_folder), "seed": 1, "guidance": 1.0, **CPU}
    one, other = (np.asarray(mlxldm.draw("a house " * 20 + last, **wishes)) for last in ("boat", "tree"))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "wishes", [{"stepps": 3}, {"steps": "3"}, {"count": 2}, {"model": "scens"}, {"backend": "mxl"}, {"device": "gup"}]
)
def test_mistakes_are_one_sentence(little_folder: Path, wishes: dict):
    with pytest.raises(mlxldm.UserError) as caught:
        mlxldm.draw("x", **{"model": str(little_folder), **wishes})
    assert "\n" not in str(caught.value)
