"""What a worker, in a real process, keeps between jobs: its model, with other LoRAs each time, and a refiner."""

from __future__ import annotations

import io
import shutil
import time

import numpy as np
import pytest
from conftest import has, needs_torch
from PIL import Image
from test_lora import APART, BAR, Made
from weights import psnr
from workers import Client

from mlxldm import store
from mlxldm.adapters import worn
from mlxldm.generate import Picture, generate
from mlxldm.job import Job

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

BACKENDS = ("mlx", "torch")
JOB = {"prompt": "a red house at dusk", "negative": "snow", "seed": 7, "steps": 2, "guidance": 5.0, "sampler": "ddim",
       "width": 64, "height": 64}  # fmt: skip


def client(backend: str, code: str | None = None) -> Client:
    return Client("--backend", backend, "--device", "cpu", "--precision", "float32", code=code)


def events_of(worker: Client, name: str, **wishes) -> list[dict]:
    worker.generate(name, {**JOB, **wishes})
    return worker.until(name, timeout=200)  # a busy machine takes long to import torch


def drawn(worker: Client, name: str, **wishes) -> tuple[bytes, list[str]]:
    """The PNG of a job, and the models that were loaded for it."""
    events = events_of(worker, name, **wishes)
    assert events[-1]["ev"] == "done", events[-1]
    return events[-2]["payload"], [event["model"] for event in events if event["ev"] == "loading"]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def here(backend: str, model: str, refiner: str | None = None, **wishes) -> np.ndarray:
    """The picture of the same job, drawn in this process by models that drew nothing before."""
    from mlxldm import backend as backends
    from mlxldm.cli import find, find_adapter

    job = Job(**{**JOB, "model": model, "refiner": refiner, **wishes})
    one, *other = (backends.load(find(name), backend, "cpu", "float32") for name in (model, refiner) if name)
    adapters = worn(job, one.manifest, find_adapter)
    events = generate(one, job, refiner=other[0] if other else None, adapters=adapters)
    return next(event.pixels for event in events if isinstance(event, Picture))


@pytest.fixture
def loras(tiny_folder, tmp_path):
    """Two LoRAs for the tiny Stable Diffusion 1 that is called "tiny" here."""
    from mlxldm_convert import view

    folder = tiny_folder("sd1", "today")
    store.register("tiny", folder)
    parts = {part: config for part, config in view(folder).manifest.parts.items() if part != "vae"}
    made = [Made(tmp_path, name, kind, parts, seed=seed).path
            for name, kind, seed in (("a", "lora", 3), ("b", "full", 5))]  # fmt: skip
    return [*made, shutil.copy(made[0], tmp_path / "a again.safetensors")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_loras_come_and_go_without_the_model_being_loaded_again(backend, loras):
    """Each picture is that of a model that drew nothing before, and without LoRAs it is the same to the bit."""
    a, b = map(str, loras[:2])
    wishes = [(), (f"{a}:0.8",), (f"{a}:0.2",), (f"{b}:0.3", f"{a}:0.1")]
    with client(backend) as worker:
        pngs = []
        for number, texts in enumerate(wishes):
            png, loaded = drawn(worker, str(number), model="tiny", loras=list(texts))
            assert loaded == ([] if number else ["sd1-today"])
            pngs.append(png)
        for number in (0, 1):
            assert drawn(worker, "again", model="tiny", loras=list(wishes[number])) == (pngs[number], [])
        shutil.copy(b, a)  # another file of that name
        pngs.append(drawn(worker, "changed", model="tiny", loras=[f"{a}:0.5"])[0])
        wishes.append((f"{b}:0.5",))
        assert drawn(worker, "off", model="tiny") == (pngs[0], [])
    shutil.copy(loras[2], a)
    pictures = [pixels(png) for png in pngs]
    for i, (picture, texts) in enumerate(zip(pictures, wishes, strict=True)):
        assert psnr(picture, here(backend, "tiny", loras=texts)) >= BAR
        assert all(psnr(picture, other) < APART for other in pictures[:i])


def test_a_lora_that_cannot_be_is_one_sentence_and_changes_nothing(loras):
    a = loras[0]
    with client("mlx") as worker:
        plain, _ = drawn(worker, "plain", model="tiny")
        for lora, says in ((":0.5", "the name is missing"), (f"{a}:1000", "beyond 100"), (f"{a}:-101", "beyond 100"),
                           (f"{a}:1e3", "no LoRA or textual inversion"), ("nothing", "no LoRA or textual inversion"),
                           (f"{a}:0.5:lbw=1,2", "2 weights for blocks"), (f"{a}:0.{30 * '0'}1", "changes nothing that"),
                           (f"{a}:0", None)):  # fmt: skip
            end = events_of(worker, lora, model="tiny", loras=[lora])[-1]
            if says is None:
                assert end["ev"] == "done"  # a weight of 0 is a wish as any other
                continue
            assert (end["ev"], end.get("kind")) == ("error", "wish") and says in end["message"], end
            assert "\n" not in end["message"]
            assert drawn(worker, "again", model="tiny") == (plain, [])
        assert drawn(worker, "again", model="tiny") == (plain, [])


STOPPED = """
import sys, time
import mlxldm.worker
from mlxldm.on_{backend}.adapt import {weights} as Weights
real, calls = Weights.change, [0]
def change(self, key, changes):
    calls[0] += 1
    if changes[0][0] == 0.75 and calls[0] % 10 == 9:
        raise ValueError("in the middle")
    if changes[0][0] == 0.25:
        time.sleep(0.02)
    real(self, key, changes)
Weights.change = change
sys.exit(mlxldm.worker.run({backend!r}, "cpu", "float32"))
"""


@pytest.mark.parametrize("backend, weights", [("mlx", "MlxWeights"), ("torch", "TorchWeights")])
def test_what_stops_in_the_middle_of_a_lora_leaves_nothing_of_it(backend, weights, loras):
    """A fault there, and a job that is cancelled while its LoRA is put on."""
    a = str(loras[0])
    with client(backend, STOPPED.format(backend=backend, weights=weights)) as worker:
        plain, _ = drawn(worker, "1", model="tiny")
        half, _ = drawn(worker, "2", model="tiny", loras=[f"{a}:0.5"])
        end = events_of(worker, "3", model="tiny", loras=[f"{a}:0.75"])[-1]
        assert end["kind"] == "fault" and "in the middle" in end["details"]
        assert drawn(worker, "4", model="tiny", loras=[f"{a}:0.5"]) == (half, [])
        assert events_of(worker, "5", model="tiny", loras=[f"{a}:0.75"])[-1]["kind"] == "fault"
        assert drawn(worker, "6", model="tiny") == (plain, [])
        worker.generate("7", {**JOB, "model": "tiny", "loras": [f"{a}:0.25"]})
        time.sleep(0.3)
        worker.send("cancel", id="7")
        events = worker.until("7")
        assert events[-1]["ev"] == "cancelled" and "picture" not in [event["ev"] for event in events]
        assert drawn(worker, "8", model="tiny") == (plain, [])
        assert drawn(worker, "9", model="tiny", loras=[f"{a}:0.5"]) == (half, [])


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """The folders of a tiny Stable Diffusion XL and its refiner."""
    import single_files

    root, paths = tmp_path_factory.mktemp("halves"), []
    for kind in ("sdxl", "sdxl-refiner"):
        pipe = single_files.pipeline(kind)
        for module in (pipe.text_encoder, pipe.text_encoder_2):
            for inner in () if module is None else module.modules():
                if hasattr(inner, "eos_token_id"):
                    inner.eos_token_id = (pipe.tokenizer or pipe.tokenizer_2).eos_token_id
        paths.append(single_files.folder(pipe, kind, root / kind))
    return paths


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_refiner_is_loaded_beside_its_model(backend, halves):
    for name, path in zip(("begins", "ends"), halves, strict=True):
        store.register(name, path)
    both = {"model": "begins", "refiner": "ends", "refiner_start": 0.5, "steps": 4}
    with client(backend) as worker:
        events = events_of(worker, "1", **both)
        assert events[-1]["ev"] == "done", events[-1]
        assert [event["model"] for event in events if event["ev"] == "loading"] == ["sdxl", "sdxl-refiner"]
        assert [event["step"] for event in events if event["ev"] == "step"] == [1, 2, 3, 4]
        first, job = events[-2]["payload"], events[-2]["job"]
        assert job["refiner"] == "ends" and job["refiner_start"] == 0.5
        assert drawn(worker, "2", **both) == (first, [])
        alone, loaded = drawn(worker, "3", model="begins", steps=4)
        assert loaded == []  # and the refiner is let go
        assert drawn(worker, "4", **both) == (first, ["sdxl-refiner"])
        for number, wrong, says in (("5", "begins", "is no refiner"), ("6", "nowhere", "There is no model")):
            end = events_of(worker, number, **{**both, "refiner": wrong})[-1]
            assert end["kind"] == "wish" and says in end["message"]
        sizes = []
        for number, wishes in (("7", both), ("8", {"model": "begins", "steps": 4})):
            worker.send("estimate", id=number, job={**JOB, **wishes})
            sizes.append(worker.until(number, "estimate")[-1])
    assert psnr(pixels(first), pixels(alone)) < APART
    assert psnr(pixels(first), here(backend, **both)) >= BAR
    weights = sum(path.stat().st_size for path in halves[1].glob("unet/*.safetensors"))  # float32
    assert sizes[0]["memory"] - sizes[1]["memory"] > weights > 0
