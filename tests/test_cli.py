"""The command line: what it prints where, what it writes, its exit codes, and every kind of bad input."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import adapter_files
import numpy as np
import pytest
from conftest import needs_mlx, needs_torch
from PIL import Image

import mlxldm
from mlxldm import backend, cli, terminal
from mlxldm.doctor import psnr
from mlxldm.job import Job
from mlxldm.picture import load_image, read_job, read_record


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]):
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def draw(run, little_folder: Path):
    """`mlxldm generate` with the little model on MLX's CPU."""

    def draw(*arguments: str | Path) -> tuple[int, str, str]:
        return run("generate", *arguments, "--model", little_folder, "--backend", "mlx", "--device", "cpu")

    return draw


def refused(result: tuple[int, str, str], *said: str) -> None:
    """Exit code 2, nothing on stdout, one sentence on stderr that says these things, no traceback."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.startswith("mlxldm: ") and err.count("\n") == 1 and "Traceback" not in err, err
    for words in said:
        assert words in err, err


# Drawing.


@needs_mlx
def test_a_picture_with_its_job_inside(draw, here: Path):
    code, out, err = draw("a red house", "--seed", "7", "--negative", "snow", "-o", "out.png")
    assert (code, out) == (0, "out.png\n"), err
    assert [path.name for path in here.iterdir()] == ["out.png"]
    with Image.open("out.png") as picture:
        assert picture.size == (64, 64) and picture.mode == "RGB"
        assert "a red house" in picture.info["parameters"] and "Seed: 7" in picture.info["parameters"]
        assert np.asarray(picture).std() > 1
    record = read_record("out.png")
    job, made_by = record.job, record.made_by
    assert (job.prompt, job.negative, job.seed, job.steps, job.sampler) == ("a red house", "snow", 7, 4, "ddim")
    assert made_by["mlxldm"] == mlxldm.__version__ and "MLX" in made_by["backend"]


@needs_mlx
def test_the_choice_and_its_reason_are_said(draw, here: Path):
    _, _, err = draw("x", "-o", "out.png", "--steps", "1")
    assert err.count("\n") == 1 and "MLX" in err and "float32" in err and "asked for" in err


@needs_mlx
def test_make_it_again_from_the_picture_and_from_json(draw, here: Path):
    draw("a house", "--seed", "5", "--sampler", "euler_a", "--steps", "2", "-o", "first.png")
    draw("--job", "first.png", "-o", "again.png")
    assert Path("first.png").read_bytes() == Path("again.png").read_bytes()
    Path("job.json").write_text(json.dumps(read_job("first.png").to_json()))
    draw("--job", "job.json", "-o", "json.png")
    assert np.array_equal(load_image("first.png", 64, 64), load_image("json.png", 64, 64))
    draw("--job", "first.png", "--seed", "6", "-o", "other.png")
    assert read_job("other.png") == read_job("first.png").replace(seed=6)
    assert not np.array_equal(load_image("first.png", 64, 64), load_image("other.png", 64, 64))


@needs_mlx
def test_a_picture_of_another_program(draw, run, here: Path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    settings = "Steps: 2, Sampler: DPM adaptive, CFG scale: 4, Seed: 9, Size: 64x64, Model hash: 0123456789, "
    settings += "Model: dreams, Denoising strength: 0.5"
    info.add_text("parameters", f"a boat\nNegative prompt: rain\n{settings}")
    Image.new("RGB", (8, 8)).save("a1111.png", pnginfo=info)
    code, _, err = draw("--job", "a1111.png", "-o", "again.png")
    assert code == 0 and "a job of A1111's web UI" in err, err
    assert "not taken over: sampler DPM adaptive; strength 0.5: give the picture it started from" in err
    job = read_job("again.png")
    assert (job.prompt, job.negative, job.seed, job.steps, job.guidance) == ("a boat", "rain", 9, 2, 4.0)
    assert job.noise == "nvidia" and job.sampler == "ddim" and job.width == 64
    code, out, err = run("generate", "--job", "a1111.png", "-o", "none.png")
    assert (code, out) == (2, "") and "made with the model 'dreams' (hash 0123456789), which is not here" in err
    assert "Traceback" not in err and not Path("none.png").exists()
    code, out, _ = run("show", "a1111.png", "--json")
    assert code == 0 and json.loads(out)["made_by"]["not_taken_over"] == ["sampler DPM adaptive"]
    assert "A1111's web UI" in run("show", "a1111.png")[1]


@needs_mlx
def test_names_of_pictures(draw, here: Path):
    """Without -o nothing is ever replaced; with it, that file is."""
    for _ in range(2):
        assert draw("A red, red house!", "--seed", "7", "--steps", "1")[0] == 0
    draw("x", "--seed", "3", "--steps", "1", "--count", "2")
    draw("", "--seed", "1", "--steps", "1")
    draw("x", "--seed", "3", "--steps", "1", "-o", ".")
    draw("x", "--seed", "3", "--steps", "1", "--count", "2", "-o", "y.png")
    draw("z", "--seed", "3", "--steps", "1", "-o", "y-1.png")
    assert sorted(path.name for path in here.iterdir()) == [
        "a-red-red-house-7-2.png", "a-red-red-house-7.png", "picture-1.png",
        "x-3-2.png", "x-3.png", "x-4.png", "y-1.png", "y-2.png",
    ]  # fmt: skip
    assert read_job("y-1.png").prompt == "z" and read_job("y-2.png").seed == 4


@needs_mlx
def test_parts_of_pictures_and_variations_are_made_again_from_the_picture(draw, here: Path):
    draw("a house", "--seed", "5", "-o", "old.png")
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:40, 16:40] = 255
    Image.fromarray(pixels).save("mask.png")
    wishes = (
        ["--image", "old.png", "--mask", "mask.png", "--mask-grow", "2", "--mask-blur", "3", "--only-masked"],
        ["--image", "old.png", "--extend", "16,0,8,0"],
        ["--variation", "9:0.25", "--seamless", "x", "--hires", "1.5", "--hires-steps", "3"],
    )
    for wish in wishes:
        code, _, err = draw("a boat", "--seed", "5", "--steps", "2", *wish, "-o", "first.png")
        assert code == 0, err
        assert draw("--job", "first.png", "-o", "again.png")[0] == 0
        assert Path("first.png").read_bytes() == Path("again.png").read_bytes()
    code, out, _ = draw("a boat", "--seed", "5", "--steps", "1", "--variation", "9:0.25", "--count", "2")
    assert code == 0 and out.split() == ["a-boat-5-9.png", "a-boat-5-10.png"]
    refused(draw("a boat", "--seamless", "z"), "no seamless 'z'")


@needs_mlx
def test_a_count_is_that_many_seeds(draw, here: Path):
    code, out, err = draw("x", "--seed", "3", "--count", "2", "--steps", "2", "--json", "-o", "a.png")
    assert code == 0, err
    report = json.loads(out)
    assert [picture["seed"] for picture in report["pictures"]] == [3, 4]
    assert [picture["path"] for picture in report["pictures"]] == ["a-1.png", "a-2.png"]
    assert report["job"]["count"] == 2 and report["backend"]["name"] == "mlx" and report["memory"]["weights"] > 0
    draw("x", "--seed", "4", "--steps", "2", "-o", "b.png")
    assert np.array_equal(load_image("b.png", 64, 64), load_image("a-2.png", 64, 64))
    assert read_job("a-2.png") == read_job("b.png")


@needs_mlx
def test_starting_from_a_picture_and_a_mask(draw, here: Path):
    Image.new("RGB", (75, 50), "red").save("start.png")
    Image.new("L", (75, 50), 255).save("mask.png")
    assert draw("x", "--image", "start.png", "--strength", "0.5", "--seed", "1", "-o", "a.png")[0] == 0
    with Image.open("a.png") as picture:
        assert picture.size == (72, 48)
    assert draw("x", "--image", "start.png", "--mask", "mask.png", "--seed", "1", "-o", "b.png")[0] == 0
    assert read_job("b.png").mask == "mask.png"


@needs_mlx
def test_an_existing_device_file_is_written_in_place(draw, here: Path):
    assert draw("x", "--steps", "1", "-o", "/dev/null")[0] == 0
    assert not Path("/dev/null").is_file()


@needs_mlx
@needs_torch
def test_a_diffusers_folder_runs_in_place_on_both_backends(run, here: Path, tiny_folder):
    for name in ("mlx", "torch"):
        arguments = ["--model", tiny_folder("sd1"), "--seed", "3", "--steps", "2", "--width", "64", "--height", "64"]
        where = ["--backend", name, "--device", "cpu", "--precision", "float32"]
        code, _, err = run("generate", "a red house", *arguments, *where, "-o", f"{name}.png")
        assert code == 0, err
    assert psnr(load_image("mlx.png", 64, 64), load_image("torch.png", 64, 64), 2.0) >= 50  # eight bits, rounded


# Bad input: exit 2, one sentence, nothing written.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--backend", "mxl"], ["mxl", "Did you mean 'mlx'?"]),
        (["x", "--device", "gup"], ["gup", "Did you mean 'gpu'"]),
        (["x", "--precision", "float61"], ["float61", "Did you mean 'float16'"]),
        (["x", "--model", "scens"], ["scens", "scenes"]),
        (["x", "--model", "nobody/nothing"], ["nobody/nothing"]),
        (["x", "--stepps", "3"], ["--stepps", "Did you mean '--steps'"]),
        (["x", "y"], ["'y'", "quotes"]),
        ([], ["prompt"]),
        (["x", "--steps", "many"], ["--steps", "'many' is not a whole number"]),
        (["x", "--guidance"], ["--guidance"]),
        (["--job", "missing.json"], ["missing.json"]),
    ],
)
def test_arguments_that_are_wrong(run, here: Path, arguments: list[str], said: list[str]):
    refused(run("generate", *arguments), *said)
    assert not list(here.iterdir())


@needs_mlx
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--sampler", "eular"], ["eular", "Did you mean 'euler'"]),
        (["x", "--spacing", "karas"], ["karas", "Did you mean 'karras'?"]),
        (["x", "--noise", "nvida"], ["nvida", "nvidia"]),
        (["x", "--width", "60"], ["60", "8"]),
        (["x", "--height", "0"], ["0"]),
        (["x", "--width", "-64"], ["-64"]),
        (["x", "--steps", "0"], ["0"]),
        (["x", "--count", "0"], ["0"]),
        (["x", "--guidance", "nan"], ["nan"]),
        (["x", "--strength", "0.5"], ["image"]),
        (["x", "--mask", "missing.png"], ["image"]),
        (["x", "--image", "missing.png"], ["missing.png"]),
        (["a (house:1.2.3)"], ["'1.2.3', which is no number"]),
        (["x", "--negative", "[house:1.3]"], ["For a weight write (word:1.3)"]),
        (["<lora:nowhere:1> x"], ["no LoRA or textual inversion 'nowhere' here"]),
        (["<lora:a:b> x"], ["<lora:a:b>", "'b' is no number"]),
        (["<lora:a:1:0.5:9> x"], ["<lora:a:1:0.5:9>", "'9' is not known"]),
        (["<lora:a:1:dyn=4> x"], ["'dyn=' is not known"]),
        (["<lora:a:1:lbw=1,2> x"], ["2 weights for blocks"]),
        (["<hypernet:a:1> x"], ["<hypernet:a:1>", "a hypernetwork: leave it out"]),
        (["<other:a:1> x"], ["<other:a:1>", "not known here: leave it out"]),
        (["a __colour__ house"], ["__colour__", "--wildcards"]),
        (["x", "--wildcards", "nowhere", "--negative", "{a|b}"], ["no folder of wildcards 'nowhere'"]),
        (["x", "--emphasis", "non"], ["Did you mean 'none'?"]),
        (["x", "--clip-skip", "99"], ["clip skip is 99", "1 (the last) to"]),
        (["x", "--prompt-2", "y"], ["second prompt", "two text encoders"]),
        (["x", "-o", "nowhere/a.png"], ["nowhere"]),
        (["x", "-o", "a.jpg"], ["a.jpg", ".png"]),
        (["x", "-o", "/proc/a.png"], ["/proc/a.png", "cannot be written"]),
    ],
)
def test_wishes_that_cannot_be_met(draw, here: Path, arguments: list[str], said: list[str]):
    refused(draw(*arguments), *said)
    assert not list(here.iterdir())


def test_damaged_and_foreign_folders(run, here: Path, tmp_path: Path, little_folder: Path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("hello")
    refused(run("generate", "x", "--model", foreign), str(foreign))
    import shutil

    cut = shutil.copytree(little_folder, tmp_path / "cut")
    weights = cut / "denoiser.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(run("generate", "x", "--model", cut), "denoiser")
    gone = shutil.copytree(little_folder, tmp_path / "gone")
    (gone / "vae.safetensors").unlink()
    refused(run("generate", "x", "--model", gone), "vae")
    odd = shutil.copytree(little_folder, tmp_path / "odd")
    (odd / "model.json").write_text("{")
    refused(run("generate", "x", "--model", odd), "model.json")
    assert not list(here.iterdir())


def test_missing_torch_names_the_command_that_installs_it(run, here: Path, monkeypatch: pytest.MonkeyPatch):
    found = backend.importlib.util.find_spec
    monkeypatch.setattr(
        backend.importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest)
    )
    refused(run("generate", "x", "--backend", "torch"), 'pip install "mlxldm[torch]"')


def test_commands_that_are_wrong(run):
    refused(run("genrate", "x"), "genrate", "Did you mean 'generate'?")
    refused(run("show", "scens"), "scens", "scenes")
    refused(run("models", "--jsn"), "--jsn", "Did you mean '--json'?")
    refused(run("pull"), "HUB-ID")
    refused(run("--versoin"), "--versoin")


# The other commands.


def test_version_and_help(run):
    assert run("--version")[:2] == (0, f"mlxldm {mlxldm.__version__}\n")
    code, out, _ = run()
    assert code == 0 and all(word in out for word in ("generate", "pull", "models", "show", "backends", "doctor"))


def test_help_names_every_sampler_and_spacing():
    from mlxldm.samplers import SAMPLERS
    from mlxldm.schedule import SPACINGS

    assert list(cli.SAMPLERS) == list(SAMPLERS) and list(cli.SPACINGS) == list(SPACINGS)


def test_every_field_of_a_job_has_its_flag():
    import dataclasses

    kept = {"template", "negative_template", "template_2", "negative_template_2"}  # what a prompt was is no wish
    assert set(cli._WISHES) | kept == {field.name for field in dataclasses.fields(Job)}


def test_tokens_shows_what_a_model_reads(run, little_folder: Path):
    code, out, err = run("tokens", "a (cat:1.3) BREAK 日", "--model", little_folder)
    assert code == 0 and err == ""
    assert "text, chunk 1 of 2: 4 of" in out and "text, chunk 2 of 2: 3 of" in out  # a byte, a token
    rows = [line.split() for line in out.splitlines()]
    assert [row[1:] for row in rows[1:5]] == [["a</w>", "1"], ["c", "1.3"], ["a", "1.3"], ["t</w>", "1.3"]]

    code, out, err = run("tokens", "a [b|c] <lora:x:0.5> AND d :0.5", "--model", little_folder, "--steps", 5, "--json")
    about = json.loads(out)
    assert code == 0 and about["taken_out"] == ["<lora:x:0.5>"]
    assert [each["steps"] for each in about["told"]] == [[1, 3, 5], [2, 4]]
    second = about["told"][1]["prompts"]
    assert [each["weight"] for each in second] == [1.0, 0.5] and second[0]["text"].split() == ["a", "c"]
    assert [token["token"] for token in second[1]["encoders"]["text"][0]] == ["d</w>"]
    assert "steps 1, 3, 5 of 5" in run("tokens", "[b|c]", "--model", little_folder, "--steps", 5)[1]
    refused(run("tokens", "(a:1.2.3)", "--model", little_folder), "no number")


def test_show_a_model(run, little_folder: Path):
    code, out, err = run("show", little_folder)
    assert code == 0 and "little" in out and "sd1" in out and "denoiser" in out and "MIT" in out, err
    about = json.loads(run("show", little_folder, "--json")[1])
    assert about["defaults"]["steps"] == 4 and about["schedule"]["prediction"] == "epsilon"
    assert set(about["parts"]) == {"text", "denoiser", "vae"}
    assert about["parameters"] == sum(part["parameters"] for part in about["parts"].values()) > 10_000


@needs_mlx
def test_show_a_picture(run, draw, here: Path):
    draw("a house", "--seed", "5", "--steps", "1", "-o", "a.png")
    code, out, _ = run("show", "a.png")
    assert code == 0 and "a house" in out and "seed" in out
    assert Job.from_json(json.loads(run("show", "a.png", "--json")[1])["job"]) == read_job("a.png")


def test_models_and_backends(run):
    assert run("models")[0] == 0
    assert isinstance(json.loads(run("models", "--json")[1])["models"], list)
    code, out, _ = run("backends")
    assert code == 0 and "mlx" in out and "torch" in out and "auto takes" in out
    rows = json.loads(run("backends", "--json")[1])["backends"]
    assert [row["name"] for row in rows] == ["mlx", "torch"]


def test_wildcards_are_in_the_folder_beside_the_models_unless_another_is_given(run, draw, here: Path):
    from mlxldm import store

    refused(draw("a __colour__ house", "--steps", "1"), "__colour__", "--wildcards")
    (store.wildcards() / "deep").mkdir(parents=True)
    (store.wildcards() / "colour.txt").write_text("red\n")
    (here / "colour.txt").write_text("blue\n")
    draw("a __colour__ house", "--steps", "1", "-o", here / "a.png")
    draw("a __colour__ house", "--steps", "1", "--wildcards", here, "-o", here / "b.png")
    draw("a house", "--steps", "1", "-o", here / "c.png")
    jobs = [read_job(here / f"{name}.png") for name in "abc"]
    assert [job.prompt for job in jobs] == ["a red house", "a blue house", "a house"]
    assert {job.wildcards for job in jobs} == {None} and jobs[0].template == "a __colour__ house"
    assert "red" in run("tokens", "__colour__")[1]
    refused(draw("a __color__ house"), "no wildcard __color__", "Did you mean 'colour'")


def test_adapters_are_added_and_listed(run, here: Path):
    adapter_files.for_the_embedded(here / "soft ink.safetensors", {"modelspec.trigger_phrase": "in ink"})
    adapter_files.for_the_embedded(here / "wash.safetensors")
    code, out, err = run("models", "add", here / "soft ink.safetensors")
    assert code == 0 and "soft ink" in out and "made for another model" in err, "that it is for ours is seen beside it"
    code, out, _ = run("adapters")
    assert code == 0 and out.split()[:3] == ["soft", "ink", "LoRA"] and "in ink" in out and "wash" not in out
    assert run("models", "add", here)[0] == 0
    rows = json.loads(run("adapters", "--model", "scenes", "--json")[1])["adapters"]
    assert [row["name"] for row in rows] == ["soft ink", "wash"] and all(row["fits"] for row in rows)
    (here / "deep").mkdir()
    adapter_files.for_the_embedded(here / "deep" / "wash.safetensors")
    names = [row["name"] for row in json.loads(run("adapters", "--json")[1])["adapters"]]
    assert names == ["soft ink", str(here / "wash.safetensors"), str(here / "deep" / "wash.safetensors")]
    refused(run("models", "add"), "a folder or file is missing")
    refused(run("models", "add", here / "nothing"), "There is no file or folder")
    code, out, err = run("generate", "x", "--steps", "1", "--lora", "soft ink:0.5", "-o", here / "a.png", "--backend",
                         "mlx", "--device", "cpu")  # fmt: skip
    assert code == 0 and "soft ink:0.5: lora" in err
    assert read_record(here / "a.png").made_by["adapters"]["loras"][0]["name"] == "soft ink.safetensors"
    code, out, _ = run("show", here / "a.png")
    assert code == 0 and "soft ink:0.5" in out
    assert run("models", "forget", here)[0] == run("models", "forget", here / "soft ink.safetensors")[0] == 0
    assert json.loads(run("adapters", "--json")[1]) == {"adapters": []}


def test_pull_prints_where_the_model_is(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mlxldm import hub
    from mlxldm.errors import UserError

    def pull(repo, progress):
        progress(0.0, "asking")
        progress(0.5, "downloading")
        if repo == "some/body":
            raise UserError("The hub cannot be reached: check the network.")
        return tmp_path

    monkeypatch.setattr(hub, "pull", pull)
    assert run("pull", "owner/name") == (0, f"{tmp_path}\n", "")
    assert json.loads(run("pull", "owner/name", "--json")[1]) == {"id": "owner/name", "path": str(tmp_path)}
    refused(run("pull", "some/body"), "cannot be reached")


# In a process of its own.


def start(*arguments: str | Path, **more) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "mlxldm.cli", *map(str, arguments)], **more)


@needs_mlx
def test_control_c_leaves_nothing_half_written(here: Path, little_folder: Path):
    slow = ["x", "--model", little_folder, "--backend", "mlx", "--device", "cpu", "--seed", "1"]
    process = start("generate", *slow, "--steps", "1", "--count", "2000", "-o", "a.png", stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "a-1.png\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err
    written = [path.name for path in here.iterdir()]
    assert set(["a-1.png", *out.split()]) <= set(written) and all(name.endswith(".png") for name in written)
    for name in written:
        read_job(name)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@needs_mlx
def test_a_bar_on_a_terminal_only(draw, here: Path, monkeypatch: pytest.MonkeyPatch):
    """Steps and time left, taken away at the end; a pipe gets the one line about the backend and nothing else."""
    monkeypatch.setattr(terminal.Bar, "AFTER", 0.0)
    screen = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        assert draw("x", "--steps", "3", "--count", "2", "-o", "a.png")[0] == 0
    shown = screen.getvalue()
    assert "picture 1/2, step 3/3" in shown and " s left" in shown and "loading the model" in shown
    assert shown.split("\r")[-2].strip() == ""
    assert "\r" not in draw("x", "--steps", "3", "-o", "a.png")[2]


def test_the_time_left(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = terminal.Bar()
    bar.show("drawing")
    now[0] += 0.1
    bar.move(0.5, "step 1/2")
    assert "left" not in sys.stderr.getvalue()  # over in 0.2 s
    now[0] += 9.9
    bar.move(0.25, "step 1/4")
    assert sys.stderr.getvalue().endswith("step 1/4  [######..................]  30 s left")
    now[0] += 3590
    bar.move(0.5, "step 2/4")
    assert "1 h 0 min left" in sys.stderr.getvalue()


def test_our_own_fault_shows_a_traceback(run, monkeypatch: pytest.MonkeyPatch):
    def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(backend, "available", broken)
    code, out, err = run("backends")
    assert code == 1 and out == "" and "ZeroDivisionError: ours" in err and "report" in err


@pytest.mark.parametrize(
    "said",
    ["[malloc] Unable to allocate 9 bytes.", "[METAL] Command buffer execution failed: Insufficient Memory (0000)"],
)
def test_mlx_without_memory_is_a_sentence(run, monkeypatch: pytest.MonkeyPatch, said: str):
    def too_much(*_):
        raise RuntimeError(said)

    monkeypatch.setattr(backend, "available", too_much)
    code, out, err = run("backends")
    assert code == 2 and out == "" and "memory is not enough" in err and err.count("\n") == 1
