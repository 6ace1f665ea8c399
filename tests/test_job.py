"""The job through JSON and back, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mlxldm.errors import UserError, nearest
from mlxldm.job import Box, Job


def test_a_job_survives_json():
    job = Job("日本 🙂", negative="snow", seed=0, steps=4, guidance=0.0, width=64, image="a.png", strength=1.0, count=2)
    assert Job.from_json(json.dumps(job.to_json())) == job
    assert Job.from_json(job.to_json()) == job


def test_what_is_not_given_is_left_out_and_zero_is_given():
    data = Job("x", seed=0, guidance=0.0).to_json()
    assert data["seed"] == 0 and data["guidance"] == 0.0
    assert "steps" not in data and "image" not in data and "negative" not in data
    assert Job.from_json(Job("x", negative="").to_json()).negative == "" and Job.from_json(data).negative is None


def test_every_field_survives_alone():
    for field in dataclasses.fields(Job):
        if field.name in ("boxes", "loras", "embeddings"):
            continue
        value = {"int": 3, "float": 0.5, "str": "x", "bool": True}[str(field.type).split(" ")[0]]
        job = Job.from_json({field.name: value})
        assert getattr(job, field.name) == value and Job.from_json(job.to_json()) == job


def test_boxes_survive_and_a_job_with_them_is_still_hashable():
    job = Job(boxes=(Box("Dog", (0.0, 0.25, 0.5, 1.0)), Box(7, (0.1, 0.1, 0.2, 0.2))))
    data = json.loads(json.dumps(job.to_json()))
    assert data["boxes"] == [{"label": "Dog", "box": [0, 0.25, 0.5, 1]}, {"label": 7, "box": [0.1, 0.1, 0.2, 0.2]}]
    assert Job.from_json(data) == job == Job.from_json(job.to_json()) and hash(Job.from_json(data)) == hash(job)
    assert Job.from_json({"boxes": None}).boxes is None and Job.from_json({"boxes": []}).boxes == ()
    assert Job.from_json({"boxes": [{"label": 0, "box": [0, 0, 1, 1]}]}).boxes == (Box(0, (0.0, 0.0, 1.0, 1.0)),)


def test_none_is_not_given_and_a_whole_number_is_a_number():
    assert Job.from_json({"seed": None, "guidance": 7}) == Job(guidance=7.0)
    assert isinstance(Job.from_json({"guidance": 7}).guidance, float)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"stepps": 3}, "Did you mean 'steps'?"),
        ({"steps": "3"}, "steps should be a whole number"),
        ({"steps": True}, "steps should be a whole number"),
        ({"steps": 3.5}, "steps should be a whole number"),
        ({"guidance": "high"}, "guidance should be a number"),
        ({"guidance": 10**400}, "guidance is too large"),
        ({"prompt": None}, "prompt should be a text"),
        ({"boxes": "Dog:0,0,1,1"}, 'Boxes are a list like [{"label": "Dog"'),
        ({"boxes": [["Dog", 0, 0, 1, 1]]}, "but one of them is"),
        ({"boxes": [{"label": "Dog", "box": [0, 0, 1]}]}, "but one of them is"),
        ({"boxes": [{"label": "Dog", "box": [0, 0, 1, "1"]}]}, "but one of them is"),
        ({"boxes": [{"label": None, "box": [0, 0, 1, 1]}]}, "but one of them is"),
        ({"boxes": [{"label": True, "box": [0, 0, 1, 1]}]}, "but one of them is"),
        ({"boxes": [{"label": "Dog", "box": [0, 0, 1, 1], "group": True}]}, "but one of them is"),
        ({"boxes": [{"label": "Dog", "box": [0, 0, 1, 10**400]}]}, "too large"),
        ({"only_masked": 1}, "only_masked should be true or false"),
        ({"count": None}, "count should be a whole number"),
        ("[1]", "A job is a JSON object"),
        ("{", "not a job in JSON"),
        ('{"guidance": NaN}', "not a job in JSON"),
        ("[" * 100_000, "not a job in JSON"),
        (b"\xff\xfe", "not a job in JSON"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(data, said):
    with pytest.raises(UserError, match=None) as caught:
        Job.from_json(data)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_nearest_names():
    assert nearest("eular", ["euler", "euler_a", "ddim"]) == " Did you mean 'euler' or 'euler_a'?"
    assert nearest("MLX", ["mlx", "torch"]) == " Did you mean 'mlx'?"
    assert nearest("gen", ["generate", "show"]) == " Did you mean 'generate'?"
    assert nearest("qqq", ["euler"]) == ""
