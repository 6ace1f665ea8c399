"""Boxes with labels as the tokens of a layout."""

from __future__ import annotations

import json

import pytest

from mlxldm import boxes
from mlxldm.config import BertConfig
from mlxldm.errors import UserError
from mlxldm.job import Box

PUBLISHED = BertConfig(vocab_size=8192, max_position_embeddings=92)
LITTLE = BertConfig(vocab_size=26, max_position_embeddings=8)  # 5 x 5 places, 2 objects


def test_places_are_counted_line_by_line_and_what_is_not_there_is_the_last_token():
    found = boxes.tokens([Box(3, (0.25, 0.0, 0.5, 0.75))], LITTLE)
    assert found == [3, 1, 3 * 5 + 2, 25, 25, 25, 0, 24]
    assert boxes.tokens([Box(24, (0.0, 0.0, 1.0, 1.0)), Box(0, (0.5, 0.5, 0.51, 0.6))], LITTLE) == [
        *(24, 0, 24), *(0, 12, 12), *(0, 24),
    ]  # fmt: skip


def test_the_published_model_has_30_objects_on_90_by_90_places():
    found = boxes.tokens([Box("suitcase", (0.1, 0.2, 0.3, 0.4))], PUBLISHED)
    assert len(found) == 92 and found[-2:] == [0, 90 * 90 - 1] and set(found[3:-2]) == {8191}
    assert found[:3] == [339, 18 * 90 + 9, 36 * 90 + 27]  # 0.2 of 89 is 17.8, 0.1 is 8.9; 35.6 and 26.7


def test_places_are_rounded_to_even_where_they_lie_between_two():
    """As Python's round: 1 / 8 of 4 is one half, 3 / 8 is one and a half."""
    assert boxes.tokens([Box(0, (0.125, 0.375, 0.625, 0.875))], LITTLE)[1:3] == [2 * 5 + 0, 4 * 5 + 2]


def test_labels_are_those_of_the_published_model():
    names = boxes.names()
    assert set(names.values()) == set(range(340))
    # in the order of Open Images' ids: /m/011k07, /m/0120dh, ... /m/0zvk5; /m/01s55n (suitcases) was put at the end
    ends = {"Tortoise": 0, "Sea turtle": 1, "Toothbrush": 2, "Helmet": 338, "Suitcase": 339}
    assert {name: names[name] for name in ends} == ends
    assert names["Woman"] == names["Man"] == names["Girl"] == names["Boy"] == names["Person"]
    assert names["Football"] == names["Ball"] and names["Bull"] == names["Cattle"] and len(names) == 352
    assert boxes.tokens([Box("WOMAN", (0.0, 0.0, 1.0, 1.0))], PUBLISHED)[0] == names["Person"]


@pytest.mark.parametrize(
    ("given", "config", "said"),
    [
        ([Box("Dogg", (0.0, 0.0, 1.0, 1.0))], PUBLISHED, "knows no 'Dogg'. Did you mean 'Dog"),
        ([Box("", (0.0, 0.0, 1.0, 1.0))], PUBLISHED, "knows no ''. It knows 340 kinds"),
        ([Box(340, (0.0, 0.0, 1.0, 1.0))], PUBLISHED, "no label 340: the model knows 0 to 339"),
        ([Box(-1, (0.0, 0.0, 1.0, 1.0))], LITTLE, "no label -1: the model knows 0 to 24"),
        ([Box(25, (0.0, 0.0, 1.0, 1.0))], LITTLE, "no label 25"),
        ([Box("Dog", (0.0, 0.0, 1.0, 1.0))], LITTLE, "say 'Dog' as a number below 25"),
        ([Box(0, (0.0, 0.0, 1.01, 1.0))], LITTLE, "The box 1 (0) is 0, 0, 1.01, 1, but"),
        ([Box(0, (-0.1, 0.0, 1.0, 1.0))], LITTLE, "go from 0 to 1"),
        ([Box(0, (0.0, 0.0, 1.0, 1.0)), Box("Cat", (0.5, 0.0, 0.5, 1.0))], LITTLE, "The box 2 (Cat) is"),
        ([Box(0, (0.0, 0.6, 1.0, 0.5))], LITTLE, "top before bottom"),
        ([Box(0, (0.0, 0.0, float("nan"), 1.0))], LITTLE, "is 0, 0, nan, 1"),
        ([Box(0, (0.0, 0.0, 1.0, 1.0))] * 3, LITTLE, "has 3 boxes, but the model knows 2 at most"),
        ([Box(0, (0.0, 0.0, 1.0, 1.0))] * 31, PUBLISHED, "has 31 boxes, but the model knows 30"),
        ([], BertConfig(max_position_embeddings=77), None),
        ([], BertConfig(max_position_embeddings=78), "does not know how it was trained"),
        ([], BertConfig(max_position_embeddings=2), "does not know how it was trained"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(given, config, said):
    if said is None:
        assert len(boxes.tokens(given, config)) == 77
        return
    with pytest.raises(UserError) as caught:
        boxes.tokens(given, config)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_boxes_on_the_command_line():
    assert boxes.from_text("Dog:0.1,0.4,.5,0.9") == Box("Dog", (0.1, 0.4, 0.5, 0.9))
    assert boxes.from_text(" 12 : 0, 0, 1, 1 ") == Box(12, (0.0, 0.0, 1.0, 1.0))
    assert boxes.from_text("a:b:0,0,1,1") == Box("a:b", (0.0, 0.0, 1.0, 1.0))
    for wrong in ("Dog", "Dog:0,0,1", "Dog:0,0,1,x", ":0,0,1,1", "0,0,1,1", ""):
        with pytest.raises(UserError, match="write it like Dog:0.1,0.4,0.5,0.9"):
            boxes.from_text(wrong)


def test_boxes_in_a_file(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([{"label": "Dog", "box": [0, 0, 0.5, 1]}, {"label": 3, "box": [0.5, 0, 1, 1]}]))
    assert boxes.read(str(path)) == (Box("Dog", (0.0, 0.0, 0.5, 1.0)), Box(3, (0.5, 0.0, 1.0, 1.0)))
    texts = {"[": "is not a list of boxes in JSON", "{}": "Boxes are a", "null": "Boxes are a", "[1]": "of them is 1"}
    for text, said in texts.items():
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            boxes.read(str(path))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        boxes.read(str(tmp_path / "none.json"))
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(UserError, match="more than 1 MB"):
        boxes.read(str(path))
