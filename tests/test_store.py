"""Names become models, and nothing of the user's is lost on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlxldm import store
from mlxldm.errors import UserError


@pytest.fixture
def model(little_folder: Path, tmp_path: Path) -> Path:
    """A model folder somewhere, to register and to lose."""
    return Path(shutil.copytree(little_folder, tmp_path / "disk" / "mine"))


def test_a_path_is_a_model(model, monkeypatch):
    assert store.find(str(model)).manifest.family == "sd1"
    monkeypatch.chdir(model.parent)
    assert store.find("./mine").manifest.family == store.find("mine").manifest.family == "sd1"
    with pytest.raises(UserError, match="There is no file or folder"):
        store.find("./nothing")


def test_another_programs_folder_is_presented_or_refused(model):
    (model / "model.json").unlink()
    with pytest.raises(UserError, match="run mlxldm-convert"):
        store.find(str(model))
    assert store.find(str(model), lambda path: ("presented", path)) == ("presented", model)


def test_registered_models_are_found_by_name_wherever_they_are(model):
    store.register("mine", model)
    store.register("someone/theirs", model)
    store.register("mine", model)  # the same again is no matter
    assert store.find("mine").manifest.family == "sd1" and store.locate("someone/theirs") == model
    rows = {row["name"]: row for row in store.models()}
    assert rows["mine"]["state"] == "ready" and rows["mine"]["family"] == "sd1" and rows["mine"]["bytes"] > 1000
    assert rows["someone/theirs"]["path"] == str(model)


def test_checkpoints_of_a_repository_have_names_of_their_own(tmp_path, home):
    path = tmp_path / "any.ckpt"
    path.write_bytes(b"x" * 1234)
    names = ["a/b", "a--b", "a/b/c.ckpt", "a/b/c d.ckpt", "a/b/c-d.ckpt", "a/b/old/c.ckpt", "a/b/\u00e9.gguf",
             "a/b/" + "long" * 50 + ".safetensors"]  # fmt: skip
    for name in names[:1] + names[2:]:
        store.register(name, path)
        assert store.locate(name) == path
    rows = {row["name"]: row for row in store.models()}
    assert set(names) - {"a--b"} <= set(rows) and rows["a/b/c d.ckpt"]["bytes"] == 1234
    store.forget("a/b")
    store.register("a--b", path)  # which is no a/b
    listed = [row["name"] for row in store.models()]
    assert "a--b" in listed and "a/b" not in listed
    for name in names[1:]:
        store.forget(name)
    assert not list((home / "mlxldm" / "models").iterdir())


def test_models_in_the_models_folder_are_there_without_registration(model, home):
    target = home / "mlxldm" / "models" / "kept"
    shutil.copytree(model, target)
    assert store.locate("kept") == target
    assert "kept" in [row["name"] for row in store.models()]
    with pytest.raises(UserError, match="taken by the model at"):
        store.register("kept", model, force=True)  # a whole model there is never hidden
    store.register("kept", target)


def test_a_taken_name_is_left_alone_unless_forced(model, tmp_path):
    other = Path(shutil.copytree(model, tmp_path / "other"))
    store.register("mine", model)
    with pytest.raises(UserError, match="taken by the model at .*mine.json"):
        store.register("mine", other)
    assert store.locate("mine") == model
    store.register("mine", other, force=True)
    assert store.locate("mine") == other
    store.forget("mine")
    assert other.exists() and "mine" not in [row["name"] for row in store.models()]
    with pytest.raises(UserError, match="No model 'mine'"):
        store.forget("mine")


def test_a_disk_that_is_not_there_is_a_state(model):
    store.register("mine", model)
    model.rename(model.parent / "away")
    assert {row["name"]: row["state"] for row in store.models()}["mine"] == "not there"
    with pytest.raises(UserError, match="registered at .* not there now"):
        store.find("mine")
    (model.parent / "away").rename(model)
    assert store.find("mine").manifest.family == "sd1"
    (model / "model.json").write_text("{")
    assert {row["name"]: row["state"] for row in store.models()}["mine"] == "damaged"


def test_an_unknown_name_is_told_the_nearest(model):
    store.register("dreamscape", model)
    with pytest.raises(UserError, match="Did you mean 'dreamscape'"):
        store.find("dreamscpae")
    with pytest.raises(UserError, match="mlxldm pull someone/model"):
        store.find("someone/model")
    for name in (
        "",
        "a\0b",
        "../x",
        "a/b/c",
        "x" * 5000,
        "./" + "x" * 300,
        "a/b/c.ckpt",
        "a/b/" + "\u00e9" * 190 + ".ckpt",
    ):
        with pytest.raises(UserError):
            store.find(name)


@pytest.mark.parametrize(
    "name", ["", ".hidden", "a/b/c", "../x", "scenes", "a b", "x" * 200, "a/b/../c.ckpt", "a/b/.c.ckpt", "a/b//c.ckpt"]
)
def test_names_that_could_not_be_told_from_paths_are_refused(name, model):
    with pytest.raises(UserError, match="cannot be a model's name"):
        store.register(name, model)


def test_damaged_entries_hide_nothing_else(model, home):
    store.register("good", model)
    folder = home / "mlxldm" / "models"
    for i, text in enumerate(["", "[]", "{", '{"path": 3}', '{"path": "a\\u0000b"}']):
        (folder / f"bad{i}.json").write_text(text)
    assert [row["name"] for row in store.models() if row["name"] != "scenes"] == ["good"]


def test_programs_that_register_at_once_lose_nothing(model, home):
    code = "import sys\nfrom mlxldm import store\nfor i in range(20): store.register(f'{sys.argv[1]}-{i}', sys.argv[2])"
    runs = [subprocess.Popen([sys.executable, "-c", code, name, str(model)]) for name in ("a", "b")]
    assert [run.wait() for run in runs] == [0, 0]
    names = {row["name"] for row in store.models()}
    assert {f"{who}-{i}" for who in "ab" for i in range(20)} <= names
    assert not [entry for entry in os.listdir(home / "mlxldm" / "models") if entry.startswith(".")]


def test_a_full_disk_leaves_no_half_of_a_small_file(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    store.write_json(tmp_path / "a.json", {"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))  # bytes that a file may have
    try:
        with pytest.raises(UserError, match="cannot be written"):
            store.write_json(tmp_path / "a.json", {"a": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and "1" in (tmp_path / "a.json").read_text()


def test_threads_that_ask_at_once_look_once(home, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.safetensors").write_bytes(b"")
    store.add_folder(folder)
    seen, rows = [], []

    def look(path):
        seen.append(path)
        time.sleep(0.02)
        return {"state": "no"}

    threads = [threading.Thread(target=lambda: rows.append(store.scan(look))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 5 and rows[0] == rows[1] == rows[2] and len(rows[0]) == 5
