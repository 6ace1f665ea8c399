"""Maps of labels from PNGs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mlxldm.errors import UserError
from mlxldm.semantic import load_labels, palette, read_labels

MAP = np.array([[0, 1, 181], [90, 91, 5]], np.uint8)


def saved(path, array, mode=None):
    picture = Image.fromarray(array)
    if mode == "P":  # its colours are of no account: all the same
        picture = picture.convert("L")
        picture.putpalette([7, 8, 9] * 256)
    elif mode == "PA":
        picture = Image.merge("LA", (picture, Image.new("L", picture.size, 255)))
    picture.save(path)
    return path


def test_pixels_are_labels_however_the_file_has_them(tmp_path):
    deep = np.repeat(MAP[..., None], 3, axis=2)
    forms = {
        "grey": saved(tmp_path / "grey.png", MAP),
        "palette": saved(tmp_path / "palette.png", MAP, "P"),
        "grey and opaque": saved(tmp_path / "la.png", MAP, "PA"),
        "16 bits": saved(tmp_path / "deep.png", MAP.astype(np.uint16)),
        "grey as colours": saved(tmp_path / "rgb.png", deep),
        "and opaque": saved(tmp_path / "rgba.png", np.dstack([deep, np.full_like(MAP, 255)])),
    }
    for name, path in forms.items():
        assert np.array_equal(read_labels(path, 182), MAP), name
        found = load_labels(path, 3, 2, 182)
        assert found.shape == (1, 2, 3, 182) and found.dtype == np.float32, name
        assert np.array_equal(found[0].argmax(-1), MAP) and np.array_equal(found.sum(-1), np.ones((1, 2, 3))), name
    for name, mode in (("palette", "P"), ("16 bits", "I;16")):
        with Image.open(forms[name]) as picture:
            assert picture.mode == mode


def test_a_map_is_stretched_without_mixing_labels(tmp_path):
    path = saved(tmp_path / "map.png", MAP)
    large = load_labels(path, 6, 8, 182)[0].argmax(-1)
    assert np.array_equal(large, MAP.repeat(4, 0).repeat(2, 1))
    striped = saved(tmp_path / "striped.png", np.tile(np.array([[10, 170]], np.uint8), (8, 8)))
    assert set(np.unique(load_labels(striped, 5, 3, 182).argmax(-1))) <= {10, 170}


def test_colours_are_pascal_vocs(tmp_path):
    # As PASCAL VOC's development kit shows its first classes, and void.
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0),
             15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    colours = palette()
    assert {number: tuple(colours[number].tolist()) for number in known} == known
    assert len(np.unique(colours, axis=0)) == 256
    assert np.array_equal(read_labels(saved(tmp_path / "map.png", colours[MAP]), 182), MAP)
    everything = np.arange(182, dtype=np.uint8).reshape(14, 13)
    opaque = np.dstack([colours[everything], np.full_like(everything, 255)])
    assert np.array_equal(read_labels(saved(tmp_path / "all.png", opaque), 182), everything)


def test_black_and_white_are_labels_zero_and_one(tmp_path):
    path = tmp_path / "map.png"
    Image.fromarray(np.array([[False, True]])).save(path)
    assert np.array_equal(read_labels(path, 5), [[0, 1]])


def test_what_is_no_map_for_the_model_is_said_in_one_sentence(tmp_path):
    colours = MAP.repeat(3).reshape(2, 3, 3).copy()
    colours[0, 0] = 200, 30, 40
    glass = np.dstack([MAP, np.full_like(MAP, 100)])
    cases = {
        "colours": (saved(tmp_path / "a.png", colours), 182, r"has the colour #c81e28 \(at 0, 0\), which is none of"),
        "glass": (saved(tmp_path / "b.png", glass), 182, "is transparent or no map"),
        "182": (saved(tmp_path / "c.png", MAP + 1), 182, r"has the label 182, but the model knows 0 to 181"),
        "five": (saved(tmp_path / "d.png", MAP), 5, r"has the label 5, 90, 91, 181, but the model knows 0 to 4"),
        "void": (saved(tmp_path / "e.png", np.where(MAP == 1, 255, MAP).astype(np.uint8)), 182, "mark for pixels"),
        "many": (saved(tmp_path / "f.png", np.arange(250, dtype=np.uint8)[None]), 9, r"9, 10, 11, 12, 13, \.\.\."),
        "none": (tmp_path / "none.png", 182, "There is no file"),
    }
    for name, (path, labels, said) in cases.items():
        with pytest.raises(UserError, match=said) as error:
            read_labels(path, labels)
        assert "\n" not in str(error.value), name
