"""Pictures in and out of files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mlxldm.canvas import Canvas
from mlxldm.errors import UserError
from mlxldm.job import Job
from mlxldm.picture import (
    check_writable,
    load_image,
    parameters,
    read_job,
    read_record,
    save_png,
    size_of,
)

PROMPT = "a house, a boat\n日本 🙂"
JOB = Job(PROMPT, "snow", seed=3, steps=4, guidance=7.5, sampler="euler_a", spacing="karras", width=16, height=8)
JOB_TEXT = (
    f"{PROMPT}\nNegative prompt: snow\n"
    "Steps: 4, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, Seed: 3, Size: 16x8, Model: scenes, "
    "RNG: CPU, Version: mlxldm 9.9"
)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@needs_torch
def test_start_pictures_and_masks_are_diffusers_own(tmp_path: Path):
    from diffusers.image_processor import VaeImageProcessor

    path = save(tmp_path / "a.png", noise(61, 83))
    theirs = VaeImageProcessor(vae_scale_factor=8).preprocess(Image.open(path), height=48, width=64)
    assert np.array_equal(load_image(path, 64, 48), theirs.permute(0, 2, 3, 1).numpy())

    masks = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    theirs = masks.preprocess(Image.open(path), height=48, width=64)
    ours = Canvas(Job(image=str(path), mask=str(path), width=64, height=48)).mask
    assert ours.dtype == np.float32 and np.array_equal(ours, theirs.permute(0, 2, 3, 1).numpy())
    assert 0.2 < ours.mean() < 0.8


def test_a_picture_is_upright_opaque_and_eight_bit(tmp_path: Path):
    sideways = Image.fromarray(noise(20, 10))
    exif = sideways.getexif()
    exif[0x0112] = 6  # turn a quarter
    sideways.save(tmp_path / "turned.jpg", exif=exif)
    assert size_of(tmp_path / "turned.jpg") == (20, 10)

    clear = save(tmp_path / "clear.png", np.zeros((8, 8, 4), np.uint8))
    assert load_image(clear, 8, 8).min() == 1.0

    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(deep)
    assert abs(float(load_image(deep, 8, 8).mean()) - (2 * 128 / 255 - 1)) < 1e-6


def test_a_picture_carries_its_job(tmp_path: Path):
    pixels = noise(8, 16)
    path = save_png(tmp_path / "a.png", pixels, JOB, {"mlxldm": "9.9"})
    assert read_job(path) == JOB and read_record(path).made_by == {"mlxldm": "9.9"}
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), pixels)
        assert picture.info["parameters"] == parameters(JOB, {"mlxldm": "9.9"})
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_the_text_for_other_programs():
    assert parameters(JOB, {"mlxldm": "9.9"}) == JOB_TEXT


def test_prompts_that_no_text_chunk_can_hold(tmp_path: Path):
    job = Job("a\0b \udc80")
    assert read_job(save_png(tmp_path / "a.png", noise(8, 8), job)) == job


def test_a_job_from_json_alone_or_in_a_record(tmp_path: Path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(JOB.to_json()))
    assert read_job(path) == JOB
    path.write_text(json.dumps({"pictures": [], "job": JOB.to_json()}))
    assert read_job(path) == JOB


def test_files_that_hold_no_job(tmp_path: Path):
    files = {
        "missing.png": None,
        "empty.png": b"",
        "plain.png": None,
        "cut.png": None,
        "text.json": b"{",
        "list.json": b"[]",
        "wrong.json": b'{"stepps": 3}',
        "binary.json": b"\xff\xfe\x00",
    }
    for name, data in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    save(tmp_path / "plain.png", noise(8, 8))
    whole = save_png(tmp_path / "whole.png", noise(64, 64), JOB).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:60])
    info = PngInfo()
    info.add_text("mlxldm", "{}}")
    Image.fromarray(noise(8, 8)).save(tmp_path / "odd.png", pnginfo=info)
    (tmp_path / "folder.png").mkdir()
    for name in [*files, "odd.png", "folder.png"]:
        with pytest.raises(UserError) as caught:
            read_job(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_pictures(tmp_path: Path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "cut.png").write_bytes(save(tmp_path / "a.png", noise(64, 64)).read_bytes()[:500])
    for name in ("missing.png", "text.png", "folder.png", "cut.png"):
        with pytest.raises(UserError) as caught:
            load_image(tmp_path / name, 8, 8)
        assert name in str(caught.value)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    old = save_png(tmp_path / "a.png", noise(8, 8), JOB).read_bytes()
    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_png(tmp_path / "a.png", noise(16, 16), JOB)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == old


def test_unwritable_places_are_found_before_the_work(tmp_path: Path):
    check_writable(tmp_path / "new.png")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        check_writable(tmp_path / "nowhere" / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no folder"):
        check_writable(tmp_path / "file" / "a.png")
    with pytest.raises(UserError, match="cannot be written"):
        check_writable("/proc/a.png") if Path("/proc").is_dir() else check_writable("/dev/a.png")
