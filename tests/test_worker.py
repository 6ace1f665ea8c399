"""`mlxldm worker` in a real process: what it says, that every job ends once, and that nothing brings it down."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import adapter_files
import numpy as np
import pytest
from conftest import needs_mlx
from PIL import Image
from safetensors.numpy import save_file
from workers import ENDS, Client

from mlxldm.job import Job
from mlxldm.picture import load_image, read_record

pytestmark = needs_mlx
CPU = ("--backend", "mlx", "--device", "cpu")
JOB = {"prompt": "a red house", "seed": 7, "steps": 3}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXLDM_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def worker(home):
    with Client(*CPU) as client:
        yield client


def kinds(events: list[dict]) -> list[str]:
    return [event["ev"] for event in events]


def test_a_job_from_ready_to_done(worker, tmp_path):
    first = worker.first
    assert first["ev"] == "ready" and first["protocol"] == 1 and first["backend"] == "mlx" and first["device"] == "cpu"
    assert first["models"][0]["name"] == "scenes" and "dpmpp_2m" in first["samplers"] and "karras" in first["spacings"]
    worker.generate("j1", {**JOB, "count": 2})
    events = worker.until("j1")
    picture = [*["step", "preview"] * 3, "picture"]
    assert kinds(events) == ["loading", *picture, *picture, "done"]
    assert all(event["id"] == "j1" for event in events)
    step, preview = events[3], events[4]
    assert (step["index"], step["step"], step["of"]) == (0, 2, 3) and step["seconds"] > 0
    assert preview["encoding"] == "rgb8" and preview["bytes"] == preview["width"] * preview["height"] * 3
    for event, seed in ((events[7], 7), (events[-2], 8)):
        assert event["seed"] == seed
        (tmp_path / "a.png").write_bytes(event["payload"])
        assert read_record(tmp_path / "a.png").job == Job.from_json(event["job"])
    worker.generate("j2", {**JOB, "seed": 8})
    again = worker.until("j2")
    assert "loading" not in kinds(again), "the model was in memory"
    assert again[-2]["payload"] == events[-2]["payload"]


def test_pictures_come_along_as_bytes_and_are_called_by_their_names(worker, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    Image.fromarray((np.arange(64) > 32)[None].repeat(64, 0).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    job = {**JOB, "image": "start.png", "mask": "my mask.png", "strength": 1.0}
    worker.generate("j", job, image=tmp_path / "start.png", mask=tmp_path / "mask.png")
    picture = worker.until("j")[-2]
    assert picture["ev"] == "picture" and picture["job"]["mask"] == "my mask.png" and picture["job"]["width"] == 64
    (tmp_path / "a.png").write_bytes(picture["payload"])
    assert load_image(tmp_path / "a.png", 64, 64).shape == (1, 64, 64, 3)
    worker.send("generate", id="k", job=job)
    end = worker.until("k")[-1]
    assert end["kind"] == "wish" and "did not come along: image, mask" in end["message"]
    worker.send("generate", b"xx", id="l", job=job, files={"image": 3})
    assert "files are 3 bytes, but 2 came" in worker.until("l")[-1]["message"]
    worker.send("generate", b"xx", id="m", job=job, files={"../image": 2})
    assert worker.until("m")[-1]["kind"] == "wish"


def test_cancel_takes_one_step_and_a_waiting_job_never_begins(worker):
    worker.generate("long", {**JOB, "steps": 900})
    worker.generate("next", JOB)
    worker.until("long", "step")
    worker.send("cancel", id="next")
    worker.send("cancel", id="long")
    events = worker.until("next")
    assert [event for event in events if event["ev"] in ENDS] == [
        {"ev": "cancelled", "id": "long", "payload": b""}, {"ev": "cancelled", "id": "next", "payload": b""},
    ]  # fmt: skip
    assert sum(event["ev"] == "step" for event in events) < 100
    worker.generate("after", JOB)
    assert kinds(worker.until("after"))[-1] == "done"


def test_previews_as_jpeg_or_not_at_all(worker):
    for wanted in ("jpeg", "none"):
        worker.send("hello", preview=wanted)
        worker.generate(wanted, JOB)
        previews = [event for event in worker.until(wanted) if event["ev"] == "preview"]
        assert len(previews) == (3 if wanted == "jpeg" else 0)
        for event in previews:
            assert event["encoding"] == "jpeg"
            assert Image.open(io.BytesIO(event["payload"])).size == (event["width"], event["height"])


def test_previews_of_every_third_step_and_of_the_last(worker):
    worker.send("hello", every=3)
    worker.generate("j", {**JOB, "steps": 7})
    assert [event["step"] for event in worker.until("j") if event["ev"] == "preview"] == [3, 6, 7]
    worker.send("hello", every="often", preview=[1], memory=float("inf"), idle=-1)  # no sense: as at first
    worker.generate("k", JOB)
    previews = [event for event in worker.until("k") if event["ev"] == "preview"]
    assert [event["encoding"] for event in previews] == ["rgb8"] * 3


def test_a_limit_of_memory_counts_in_the_estimate(worker):
    job = {**JOB, "width": 512, "height": 512}
    worker.send("estimate", id="a", job=job)
    free = worker.until("a", "estimate")[-1]
    worker.send("hello", memory=free["memory"] // 2)
    worker.send("estimate", id="b", job=job)
    tight = worker.until("b", "estimate")[-1]
    assert free["short"] is None and tight["available"] == free["memory"] // 2
    assert tight["memory"] < free["memory"] or tight["short"], "it works in tiles, or says that it does not fit"
    worker.send("hello")
    worker.send("estimate", id="c", job=job)
    assert worker.until("c", "estimate")[-1]["memory"] == free["memory"]


@pytest.mark.parametrize("job, says", [
    ({"prompt": "x", "steps": 0}, "0 steps"), ({"prompt": "x", "stepps": 3}, "no 'stepps'"), ("x", "no job"),
    ({"prompt": "x", "model": "nothing-like-it"}, "There is no model"), ({"prompt": "x", "width": 65}, "width is 65"),
    ({"prompt": 3}, "prompt should be a text"),
])  # fmt: skip
def test_a_wish_that_cannot_be_is_one_sentence(worker, job, says):
    worker.send("generate", id="j", job=job)
    (end,) = worker.until("j")
    assert end["ev"] == "error" and end["kind"] == "wish" and says in end["message"] and end["details"] is None
    assert "\n" not in end["message"]


def test_what_makes_no_sense_is_said_and_the_next_job_runs(worker):
    worker.raw(b"no json\n")
    worker.raw(b"[1, 2]\n")
    worker.raw(b"\xff\xfe\n")
    worker.raw(b"[" * 5000 + b"\n")
    worker.raw(b'{"op": "generate"}\n')
    worker.raw(b'{"op": "dance", "id": "a"}\n')
    worker.raw(b'{"op": "generate", "id": "b", "bytes": -1}\n')
    worker.raw(b'{"op": "generate", "id": "c", "bytes": 1e9}\n')
    worker.raw(b"x" * 300_000 + b"\n")
    worker.generate("j", JOB)
    events = worker.until("j")
    errors = [event for event in events if event["ev"] == "error"]
    assert [event["id"] for event in errors] == [None, None, None, None, None, "a", "b", "c", None]
    assert all(event["kind"] == "protocol" for event in errors) and events[-1]["ev"] == "done"
    worker.generate("long", {**JOB, "steps": 500})
    worker.generate("long", JOB)
    worker.send("cancel", id="long")
    assert "there is a job" in worker.until("long", "error")[-1]["message"]
    assert worker.until("long")[-1]["ev"] == "cancelled"


def test_models_tokens_estimate_and_ping(worker, home):
    worker.send("models", id="m")
    listed = json.loads(worker.until("m", "models")[-1]["payload"])
    assert listed[0]["name"] == "scenes"
    job = {"prompt": "a red house", "negative": "snow", "steps": 3, "seed": 1}
    worker.send("tokens", id="t", job=job)
    counted = worker.until("t", "tokens")[-1]
    assert counted["prompt"] == 3 and counted["negative"] == 1 and counted["limit"] > 3
    worker.send("estimate", id="e", job=job)
    before = worker.until("e", "estimate")[-1]
    assert before["seconds"] is None and 1e7 < before["memory"] < before["available"] and before["short"] is None
    worker.generate("j", job)
    took = worker.until("j")[-1]["seconds"]
    worker.send("estimate", id="f", job={**job, "count": 3})
    estimate = worker.until("f", "estimate")[-1]
    assert estimate["known"] and 0 < estimate["seconds"] < 3 * took + 1
    worker.send("estimate", id="h", job={**job, "count": 3, "hires": 2, "hires_strength": 1})
    twice = worker.until("h", "estimate")[-1]
    assert twice["seconds"] == pytest.approx(5 * estimate["seconds"], abs=0.1), "a pass, and one of four times the size"
    worker.send("ping", id="p")
    assert worker.until("p", "pong")


def test_files_and_folders_are_looked_at_added_and_forgotten(worker, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "odd.safetensors").write_bytes(b"nothing")
    worker.send("look", id="a", path=str(folder / "odd.safetensors"))
    assert worker.until("a", "looked")[-1]["says"]["state"] != "ready"
    worker.send("add", id="b", path=str(folder))
    assert worker.until("b")[-1]["ev"] == "done"
    worker.send("models", id="c")
    assert any(row["name"] == "odd" for row in json.loads(worker.until("c", "models")[-1]["payload"]))
    worker.send("forget", id="d", what=str(folder))
    assert worker.until("d")[-1]["ev"] == "done"
    worker.send("add", id="e", path=str(tmp_path / "nowhere"))
    assert worker.until("e")[-1]["kind"] == "wish"


def test_a_conversion_runs_beside_a_picture(worker, tmp_path):
    worker.generate("j", {**JOB, "steps": 200})
    worker.send("convert", id="c", source="scenes", target=str(tmp_path / "small"), dtype="float32")
    worker.send("cancel", id="j")
    seen = worker.until("c")
    assert seen[-1]["ev"] == "done", seen[-1]
    assert any(event["ev"] == "progress" and 0 <= event["fraction"] <= 1 for event in seen)
    assert (tmp_path / "small" / "model.json").exists()
    worker.send("convert", id="d", source="scenes", target=str(tmp_path / "small"))
    assert worker.until("d")[-1]["kind"] == "wish"


def test_unload_and_idle_let_the_model_go(home):
    with Client(*CPU, "--idle", "0.3") as worker:
        worker.generate("a", JOB)
        worker.until("a")
        worker.send("unload")
        assert worker.next()["ev"] == "unloaded"
        worker.generate("b", JOB)
        assert kinds(worker.until("b"))[0] == "loading"
        assert worker.next()["ev"] == "unloaded"  # by itself
        worker.send("hello", idle=60)
        worker.generate("c", JOB)
        worker.until("c")
        time.sleep(0.6)
        worker.send("hello", idle=0)  # also for a model that is waiting now
        assert worker.next()["ev"] == "unloaded"


def test_closing_stdin_ends_it_at_once_and_kill_leaves_nothing(home, tmp_path):
    with Client(*CPU) as worker:
        worker.generate("a", {**JOB, "steps": 900})
        worker.until("a", "step")
        began = time.monotonic()
        worker.process.stdin.close()
        assert worker.process.wait(10) == 0 and time.monotonic() - began < 3
    with Client(*CPU) as worker:
        worker.generate("a", {**JOB, "steps": 900})
        worker.until("a", "step")
        worker.process.send_signal(signal.SIGKILL)
        assert worker.process.wait(10) == -signal.SIGKILL
        while worker.next() is not None:
            pass


LOADED = """
import sys
from mlxldm.worker import run
run(backend="mlx", device="cpu")
print("loaded:", *(name for name in ("mlx", "torch", "transformers") if name in sys.modules), file=sys.stderr)
"""


def test_it_loads_the_backend_that_draws_and_no_other(home):
    with Client(code=LOADED) as worker:
        worker.generate("j", JOB)
        assert worker.until("j")[-1]["ev"] == "done"
    assert worker.errors.split(b"loaded:")[-1].split() == [b"mlx"]


STRANGE = """
import sys, os, time
import numpy as np
from mlxldm import generate as function
import mlxldm.generate, mlxldm.worker
module = sys.modules["mlxldm.generate"]
real = module.generate
def strange(model, job, *rest, **more):
    print("a library prints")
    os.write(1, b"and another one, past Python\\n")
    if job.prompt == "raise":
        raise ValueError("bad luck")
    if job.prompt == "memory":
        raise MemoryError
    for event in real(model, job, *rest, **more):
        if job.prompt == "slow":
            time.sleep(0.4)
        if job.prompt == "nan" and hasattr(event, "guess") and event.step == 2:
            import dataclasses
            event = dataclasses.replace(event, guess=event.guess * float("nan"))
        yield event
module.generate = strange
sys.exit(mlxldm.worker.run("mlx", "cpu"))
"""


def test_the_next_worker_clears_away_what_a_killed_one_left(home):
    Image.new("RGB", (64, 64), "red").save(home / "start.png")
    place = home / "tmp"
    for other in (f"mlxldm-worker-{os.getpid()}-alive", "mlxldm-worker-notes"):
        (place / other).mkdir(parents=True)
    before = set(place.iterdir())
    with Client(*CPU, environment={"TMPDIR": str(place)}) as worker:
        worker.generate("j", {**JOB, "steps": 500, "image": "start.png", "strength": 1.0}, image=home / "start.png")
        worker.until("j", "step")
        (left,) = set(place.iterdir()) - before
        assert [path.name for path in left.iterdir()] == ["image"]
        worker.process.kill()
        worker.process.wait(10)
    assert left.exists()
    with Client(*CPU, environment={"TMPDIR": str(place)}) as worker:
        worker.send("ping", id="p")
        worker.until("p", "pong")
        assert set(place.iterdir()) == before


def test_prints_faults_and_numbers_that_are_none(home):
    with Client(code=STRANGE) as worker:
        ends = {}
        for prompt in ("raise", "memory", "nan", "fine"):
            worker.generate(prompt, {**JOB, "prompt": prompt})
            events = worker.until(prompt)
            ends[prompt] = events[-1]
            if prompt == "nan":
                assert [event["step"] for event in events if event["ev"] == "step"] == [1, 2]
        assert ends["raise"]["kind"] == "fault" and "bad luck" in ends["raise"]["details"]
        assert ends["memory"]["kind"] == "memory" and "memory is not enough" in ends["memory"]["message"]
        assert ends["nan"]["kind"] == "numbers" and "no numbers" in ends["nan"]["message"]
        assert ends["fine"]["ev"] == "done"
    assert b"a library prints" in worker.errors and b"past Python" in worker.errors


def test_cancel_of_a_slow_model_takes_one_step_at_most(home):
    with Client(code=STRANGE) as worker:
        worker.generate("a", {**JOB, "prompt": "slow", "steps": 50})
        worker.until("a", "step")
        worker.send("cancel", id="a")
        began = time.monotonic()
        events = worker.until("a")
        assert events[-1]["ev"] == "cancelled" and time.monotonic() - began < 5, "all steps would take twenty seconds"
        assert sum(event["ev"] == "step" for event in events) <= 1


def test_a_conversion_that_is_stopped_leaves_nothing(worker, home):
    worker.send("convert", id="c", source="scenes", target="half", quantize=8)
    worker.until("c", "progress")
    worker.send("cancel", id="c")
    assert worker.until("c")[-1]["ev"] == "cancelled"
    left = [path.name for path in (home / "home").iterdir() if "half" in path.name]
    assert left == []
    worker.send("convert", id="d", source="scenes", target="half", quantize=8)
    assert worker.until("d")[-1]["ev"] == "done"


def test_the_end_in_the_middle_of_a_line_or_of_a_payload_is_the_end(home):
    for cut in (b'{"op": "gener', b'{"op": "generate", "id": "a", "job": {}, "bytes": 1000}\n12345'):
        with Client(*CPU) as worker:
            worker.raw(cut)
            worker.process.stdin.close()
            assert worker.process.wait(20) == 0 and worker.next() is None


def test_many_messages_at_once_and_every_job_ends_once(worker):
    """Jobs and cancels in any order, from two threads' worth of messages: one end each."""
    dice = random.Random(1)
    names = [f"j{i}" for i in range(24)]
    sending = threading.Lock()

    def some(mine: list[str]) -> None:
        for name in mine:
            with sending:
                worker.generate(name, {**JOB, "steps": dice.choice([1, 2, 9]), "width": 64, "height": 64})
                if dice.random() < 0.5:
                    worker.send("cancel", id=dice.choice(names))

    threads = [threading.Thread(target=some, args=(names[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends: dict[str, list[str]] = {name: [] for name in names}
    while not all(ends.values()):
        event = worker.next()
        if event["ev"] in ENDS:
            ends[event["id"]].append(event["ev"])
    worker.send("ping", id="p")
    rest = worker.until("p", "pong")
    assert kinds(rest) == ["pong"] and all(len(seen) == 1 for seen in ends.values())
    assert {"done", "cancelled"} == {seen[0] for seen in ends.values()}


def test_a_preview_shows_what_the_picture_becomes(worker):
    """By its second picture the map has seen a real one: the last preview is the picture made small."""
    worker.generate("j", {"prompt": "a red lighthouse by the sea at dusk", "seed": 5, "count": 2})
    events = worker.until("j")
    last = [event for event in events if event["ev"] == "preview"][-1]
    small = np.frombuffer(last["payload"], np.uint8).reshape(last["height"], last["width"], 3).astype(float)
    picture = Image.open(io.BytesIO(events[-2]["payload"])).convert("RGB")
    wanted = np.asarray(picture.resize((last["width"], last["height"]), Image.Resampling.BOX)).astype(float)
    assert np.corrcoef(small.ravel(), wanted.ravel())[0, 1] > 0.9


def test_a_conversion_into_the_models_folder_says_what_it_wrote(worker, home):
    worker.send("convert", id="c", source="scenes", target="small", quantize=8)
    events = worker.until("c", "done")
    told = next(event for event in events if event["ev"] == "converted")
    assert Path(told["path"]).name == "small" and (Path(told["path"]) / "model.json").exists()
    assert told["parts"]["denoiser"]["quantized"] > 0 and 0 < told["parts"]["denoiser"]["error"] < 0.01
    worker.send("models", id="m")
    rows = {row["name"]: row for row in json.loads(worker.until("m", "models")[-1]["payload"])}
    assert rows["small"]["origin"] == "own" and rows["scenes"]["origin"] == "embedded"
    assert rows["small"]["task"] == "text-to-image" and rows["small"]["defaults"]["width"] == 128


def test_rows_say_which_added_folder_they_are_of(worker, tmp_path):
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "here" / "deep" / "none.ckpt").write_bytes(b"no checkpoint")
    worker.send("add", id="a", path=str(tmp_path / "here"))
    worker.until("a", "done")
    worker.send("models", id="m")
    row = json.loads(worker.until("m", "models")[-1]["payload"])[-1]
    assert (row["name"], row["state"], row["origin"]) == ("none", "no", "added") and row["why"]
    assert row["folder"] == str(tmp_path / "here")


def test_what_this_machine_could_draw_with(worker):
    worker.send("backends", id="b")
    answer = worker.until("b", "backends")[-1]
    assert {row["name"] for row in answer["backends"]} == {"mlx", "torch"} and answer["auto"]["backend"]


def listed(worker, **more) -> list[dict]:
    worker.send("adapters", id="list", **more)
    return json.loads(worker.until("list", "adapters")[-1]["payload"])


def test_loras_are_added_listed_worn_and_told(worker, tmp_path):
    (tmp_path / "some").mkdir()
    adapter_files.for_the_embedded(tmp_path / "Ink wash (v2).safetensors", {"modelspec.trigger_phrase": "in ink"})
    adapter_files.for_the_embedded(tmp_path / "some" / "odd.safetensors", strange=3)
    query = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = np.ones((2, 320), np.float32), np.ones((320, 2), np.float32)
    theirs = {f"{query}.lora_down.weight": down, f"{query}.lora_up.weight": up}
    save_file(theirs, tmp_path / "some" / "large.safetensors")
    theirs = {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": down}
    save_file(theirs, tmp_path / "some" / "flux.safetensors")
    (tmp_path / "some" / "broken.safetensors").write_bytes(b"no adapter")
    assert listed(worker) == []
    for path in ("Ink wash (v2).safetensors", "some", "nothing"):
        worker.send("add", id="add", path=str(tmp_path / path))
        end = worker.until("add")[-1]
        assert end["ev"] == ("error" if path == "nothing" else "done"), end
    rows = {row["name"]: row for row in listed(worker)}
    assert set(rows) == {"Ink wash (v2)", "odd", "large", "flux"}, "what is no adapter is no row"
    ink = rows["Ink wash (v2)"]
    assert (ink["what"], ink["state"], ink["words"], ink["weight"]) == ("LoRA", "LoRA", ["in ink"], None)
    assert ink["fits"] and ink["why"] is None and ink["path"] == str(tmp_path / "Ink wash (v2).safetensors")
    assert (rows["large"]["kind"], rows["large"]["bytes"] > 5000) == ("lora", True)
    assert not rows["large"]["fits"] and rows["large"]["why"] == "It was made for Stable Diffusion 1.x."
    assert not rows["flux"]["fits"] and "FLUX" in rows["flux"]["why"]
    worker.send("models", id="m")
    models = {row["name"]: row for row in json.loads(worker.until("m", "models")[-1]["payload"])}
    assert models["large"]["state"] == "LoRA" and models["Ink wash (v2)"]["origin"] == "added"

    worker.generate("plain", {**JOB, "width": 64, "height": 64})
    plain = worker.until("plain")
    assert "effect" not in kinds(plain)
    worker.generate("j", {**JOB, "width": 64, "height": 64, "loras": ["Ink wash (v2):0.8", "odd:0.1"]})
    events = worker.until("j")
    assert kinds(events)[:2] == ["effect", "step"]
    first, second = events[0]["loras"]
    assert (first["text"], first["unmatched"], first["left"]) == ("Ink wash (v2):0.8", 0, {}) and first["weights"] > 0
    assert first["modules"]["denoiser"] > 4 and events[0]["answer"] > 0
    ((tensors, why),) = second["left"].items()
    assert second["unmatched"] == 3 and tensors.endswith("and 2 more") and "no module" in why
    picture = events[-2]["payload"]
    assert picture != plain[-2]["payload"]
    (tmp_path / "a.png").write_bytes(picture)
    told = read_record(tmp_path / "a.png").made_by["adapters"]
    assert {"loras", "answer", "words"} < set(told) and told == {key: events[0][key] for key in told}
    worker.generate("k", {**JOB, "loras": ["large"]})
    assert "of which the model has none" in worker.until("k")[-1]["message"]

    worker.send("forget", id="f", what=str(tmp_path / "Ink wash (v2).safetensors"))
    assert worker.until("f")[-1]["ev"] == "done"
    assert "Ink wash (v2)" not in [row["name"] for row in listed(worker, model="scenes")]
    worker.send("adapters", id="n", model="nothing-like-it")
    assert "There is no model" in worker.until("n")[-1]["message"]


def test_prompts_name_loras_and_words(worker, tmp_path):
    """As flags would, each picture its own; and the counter counts vectors."""
    from mlxldm.store import find

    adapter_files.for_the_embedded(tmp_path / "ink.safetensors")
    width = find(None).manifest.parts["text"].hidden_size
    save_file({"emb_params": np.full((3, width), 0.5, np.float32)}, tmp_path / "zorg.safetensors")
    worker.send("add", id="add", path=str(tmp_path))
    worker.until("add", "done")

    def drawn(name, **job):
        worker.generate(name, {**JOB, "width": 64, "height": 64, **job})
        events = worker.until(name)
        assert events[-1]["ev"] == "done", events[-1]
        return events, [event for event in events if event["ev"] == "picture"]

    _, (flagged,) = drawn("a", loras=["ink:0.8"])
    events, (tagged,) = drawn("b", prompt="a red<lora:INK:0.8> house", negative="<lora:ink:1>")
    assert any(event["ev"] == "log" and "read as words" in event["message"] for event in events)
    _, (tagged,) = drawn("c", prompt="a red<lora:INK:0.8> house")
    pixels = [np.asarray(Image.open(io.BytesIO(event["payload"]))) for event in (flagged, tagged)]
    assert np.array_equal(*pixels)
    (tmp_path / "c.png").write_bytes(tagged["payload"])
    record = read_record(tmp_path / "c.png")
    assert record.job.prompt == "a red<lora:INK:0.8> house" and record.hashes.keys() == {"lora:INK"}
    with Image.open(tmp_path / "c.png") as picture:
        assert f"Lora hashes: INK: {record.hashes['lora:INK']}" in picture.info["parameters"].replace('"', "")

    events, pictures = drawn("d", prompt="a {<lora:ink:0.8>|} house", seed=14, count=4)
    effects = [len(event["loras"]) for event in events if event["ev"] == "effect"]
    prompts = [event["job"]["prompt"] for event in pictures]
    assert effects == [1, 0, 1, 0] and [len(prompt) > 10 for prompt in prompts] == [True, False, True, False]

    _, (word,) = drawn("e", prompt="a zorg house")
    assert word["job"]["embeddings"] == ["zorg"]
    worker.send("tokens", id="t", job={"prompt": "a zorg house", "negative": "{a|b} zorg zorg"})
    counted = worker.until("t", "tokens")[-1]
    assert (counted["prompt"], counted["negative"]) == (5, 7)
    worker.generate("f", {**JOB, "prompt": "<lora:inc:1>"})
    assert "no LoRA or textual inversion 'inc' here. Did you mean 'ink'" in worker.until("f")[-1]["message"]


def test_wildcards_of_this_machine(worker, home):
    worker.send("wildcards", id="w")
    answer = worker.until("w", "wildcards")[-1]
    assert json.loads(answer["payload"]) == [] and answer["folder"] == str(home / "home" / "wildcards")
    (Path(answer["folder"]) / "animals").mkdir(parents=True)
    (Path(answer["folder"]) / "animals" / "bird.txt").write_text("red\n")
    worker.send("wildcards", id="w")
    assert json.loads(worker.until("w", "wildcards")[-1]["payload"]) == ["animals/bird"]
    job = {**JOB, "prompt": "a __animals/bird__ house", "width": 64, "height": 64, "steps": 1}
    worker.send("tokens", id="t", job=job)
    assert worker.until("t", "tokens")[-1]["prompt"] == 3
    worker.generate("j", job)
    assert worker.until("j")[-2]["job"]["prompt"] == "a red house"
