"""`pull` against a little hub on this machine, with the real client: what is fetched, resumed, refused, explained."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from mlxldm import hub, store
from mlxldm.errors import UserError

SLEEP = time.sleep
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the hub's API says about one repository; `log` is what was asked, `cut` files break off half-way once."""

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files = repo, files
        self.log: list[tuple[str, str, str | None]] = []
        self.cut: set[str] = set()
        self.slow = False
        self.status: int | None = None
        self.revisions = {"main": COMMIT}
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body: bool):
                path = unquote(urlsplit(self.path).path).strip("/")
                outer.log.append((self.command, path, self.headers.get("Range")))
                if outer.status is not None:
                    return self.reply(outer.status, b'{"error": "no"}', outer.headers, body)
                match = re.fullmatch(re.escape(outer.repo) + r"/resolve/([^/]+)/(.+)", path)
                if match or path.startswith("api/models/" + outer.repo):
                    named = match or re.search(r"/(?:revision|tree)/([^/]+)", path)
                    commit = outer.commit(named[1] if named else "main")
                    if commit is None:
                        return self.reply(404, b'{"error": "no"}', {"X-Error-Code": "RevisionNotFound"}, body)
                    if not match:
                        return self.reply(200, json.dumps(outer.api(path, commit)).encode(), {}, body)
                    if match[2] in outer.files:
                        return self.file(match[2], body, commit)
                self.reply(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body)

            def reply(self, status: int, data: bytes, headers: dict[str, str], body: bool):
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body and outer.slow:
                    for i in range(0, len(data), 2000):
                        self.wfile.write(data[i : i + 2000])
                        SLEEP(0.5 if len(data) > 200_000 else 0)
                elif body:
                    self.wfile.write(data)

            def file(self, name: str, body: bool, commit: str):
                data = outer.files[name]
                etag = hashlib.sha256(data).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
                start = int(m[1]) if (m := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
                if not body or name not in outer.cut or start:
                    if start and name in outer.cut:
                        return self.reply(503, b"", {}, body)
                    if start:
                        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                    return self.reply(206 if start else 200, data[start:], headers, body)
                self.send_response(200)
                for key, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.connection.shutdown(2)
                self.close_connection = True

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, revision: str) -> str | None:
        """What a branch points to, or the commit itself."""
        return revision if revision in self.revisions.values() else self.revisions.get(revision)

    def api(self, path: str, commit: str):
        """/api/models/ID[/revision/R] and /api/models/ID/tree/R."""
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            | ({"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}})
            for name, data in self.files.items()
        ]
        if f"{self.repo}/tree/" in path:
            return entries
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]
        return {"id": self.repo, "modelId": self.repo, "sha": commit, "siblings": siblings, "private": False}

    def fetched(self) -> set[str]:
        """The files whose bytes were asked for."""
        return {path.partition("/resolve/")[2].partition("/")[2] for method, path, _ in self.log
                if method == "GET" and "/resolve/" in path}  # fmt: skip

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def online(monkeypatch, tmp_path, home):
    """`online(repo, files)` starts a hub; the client's cache is an empty folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hubs: list[Hub] = []

    def start(repo: str, files: dict[str, bytes]) -> Hub:
        hubs.append(Hub(repo, files))
        monkeypatch.setenv("HF_ENDPOINT", hubs[-1].endpoint)
        return hubs[-1]

    yield start
    for one in hubs:
        one.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXTRA = {
    "big-single-file.safetensors": b"x" * 100,
    "big.ckpt": b"x" * 100,
    "README.md": b"---\nlicense: mit\n---\n",
    "sample.png": b"x",
    "unet/diffusion_pytorch_model.bin": b"x",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"x",
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"x",
    "unet/diffusion_flax_model.msgpack": b"x",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"x",
    "text_encoder/pytorch_model.bin": b"x",
    "safety_checker/model.safetensors": b"x",
    "safety_checker/config.json": b"{}",
    "feature_extractor/preprocessor_config.json": b"{}",
    "vae_1_0/diffusion_pytorch_model.safetensors": b"x",
}


def test_only_what_is_needed_is_fetched_and_the_model_opens_offline(online, tiny_folder, monkeypatch):
    pytest.importorskip("diffusers", reason="needs diffusers, which builds the model that is served")
    from mlxldm_convert import view

    files = contents(tiny_folder("sd1", "hub"))
    server = online("some/tiny", {**files, **EXTRA})
    moves: list[float] = []
    path = hub.pull("some/tiny", lambda fraction, text: moves.append(fraction))
    assert server.fetched() == {*files, "README.md"}
    assert moves[0] == 0 and moves[-1] == 1 and all(0 <= move <= 1 for move in moves)
    folder = store.find("some/tiny", view)
    assert folder.manifest.source["name"] == "some/tiny" and folder.manifest.license == "mit"
    assert next(row["path"] for row in store.models() if row["name"] == "some/tiny") == str(path)
    # again: nothing is fetched twice; and without a hub the model is still there
    asked = len([entry for entry in server.log if entry[0] == "GET" and "/resolve/" in entry[1]])
    assert hub.pull("https://huggingface.co/some/tiny") == path
    assert len([entry for entry in server.log if entry[0] == "GET" and "/resolve/" in entry[1]]) == asked
    server.close()
    assert store.find("some/tiny", view).manifest.family == "sd1"
    store.forget("some/tiny")
    assert hub.cached("some/tiny") == path and store.locate("some/tiny") == path
    assert not [name for name in os.listdir(path.parent.parent / "blobs") if name.endswith(".incomplete")]


def test_a_folder_of_ours_can_be_pulled_too(online, little_folder):
    files = contents(little_folder)
    server = online("some/little", {**files, "optimizer.safetensors": b"x"})
    hub.pull("some/little")
    assert server.fetched() == set(files)
    assert store.find("some/little").manifest.family == "sd1"


def hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def test_a_download_that_was_cut_goes_on_where_it_stopped(online, little_folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "LARGE", 1000)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what arrived of the last chunk is lost
    files = contents(little_folder)
    server = online("some/little", files)
    server.cut = {"denoiser.safetensors"}
    monkeypatch.setattr("time.sleep", lambda seconds: SLEEP(min(seconds, 0.02)))  # the client waits between its tries
    with pytest.raises(UserError, match="what has arrived is kept"):
        hub.pull("some/little")
    assert not [row for row in store.models() if row["name"] == "some/little"]  # half a model is no model
    server.cut = set()
    server.log.clear()
    hub.pull("some/little")
    asked = [span for method, path, span in server.log if method == "GET" and path.endswith("/denoiser.safetensors")]
    assert asked == [f"bytes={len(files['denoiser.safetensors']) // 2 // 1000 * 1000}-"]
    assert store.find("some/little").nbytes("denoiser") > 0
    assert not list(hub.cached("some/little").parent.parent.glob("blobs/*.incomplete"))


def test_a_begun_file_that_turns_out_damaged_is_fetched_anew(online, little_folder, monkeypatch):
    monkeypatch.setattr(hub, "LARGE", 1000)
    files = contents(little_folder)
    online("some/little", files)
    data = files["denoiser.safetensors"]
    begun = Path(hub_cache()) / "models--some--little" / "blobs" / (hashlib.sha256(data).hexdigest() + hub.BEGUN)
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="denoiser.safetensors of some/little arrived damaged"):
        hub.pull("some/little")
    assert not begun.exists()
    hub.pull("some/little")
    assert store.find("some/little").manifest.family == "sd1"


@pytest.mark.parametrize(
    "status, headers, said",
    [
        (401, {"X-Error-Code": "RepoNotFound"}, "no model some/thing, or it is private.*hf auth login"),
        (404, {"X-Error-Code": "RepoNotFound"}, "no model some/thing"),
        (403, {"X-Error-Code": "GatedRepo"}, "accepted its conditions"),
        (429, {}, "too many requests"),
        (503, {}, "trouble .error 503"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_sentence(online, monkeypatch, status, headers, said):
    monkeypatch.setattr("time.sleep", lambda seconds: SLEEP(min(seconds, 0.02)))  # the client waits between its tries
    server = online("some/thing", {})
    server.status, server.headers = status, headers
    with pytest.raises(UserError, match=said) as error:
        hub.pull("some/thing")
    assert "\n" not in str(error.value)
    assert not [row for row in store.models() if row["name"] == "some/thing"]


def test_no_network_and_switched_off_network_are_said(online, monkeypatch):
    from huggingface_hub import constants

    online("some/thing", {}).close()
    monkeypatch.setattr("time.sleep", lambda seconds: SLEEP(min(seconds, 0.02)))  # the client waits between its tries
    with pytest.raises(UserError, match="cannot be reached"):
        hub.pull("some/thing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be reached"):
        hub.pull("some/thing")


def test_a_full_disk_is_seen_before_or_said_after(online, little_folder, monkeypatch):
    import huggingface_hub

    online("some/little", contents(little_folder))
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match="only 0.00 GB are free"):
        hub.pull("some/little")
    monkeypatch.setattr(shutil, "disk_usage", real)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(UserError, match="disk is full"):
        hub.pull("some/little")


def test_a_name_given_to_something_else_is_not_taken_away(online, little_folder, tmp_path):
    mine = Path(shutil.copytree(little_folder, tmp_path / "mine"))
    store.register("some/little", mine)
    online("some/little", contents(little_folder))
    with pytest.raises(UserError, match="taken by the model at"):
        hub.pull("some/little")
    assert store.locate("some/little") == mine


def command(*arguments: str) -> subprocess.Popen:
    """mlxldm in a process of its own, with a cache of its own and this hub."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    code = "import sys\nfrom mlxldm import cli, hub\nhub.LARGE = 50_000\nsys.exit(cli.main(sys.argv[1:]))"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, **streams)


def test_the_command_pulls_and_is_heard_when_interrupted(online, little_folder, home):
    server = online("some/little", contents(little_folder))
    server.slow = True
    process = command("pull", "some/little")
    for _ in range(600):
        if "denoiser.safetensors" in server.fetched():
            break
        SLEEP(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)  # not when the file has arrived, a minute later
    assert process.returncode == 130 and "Traceback" not in err and out == "", err
    server.slow = False
    process = command("pull", "some/little", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    path = Path(json.loads(out)["path"])
    assert path.is_relative_to(home) and store.locate("some/little") == path
    process = command("pull", "some/other")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.count("\n") == 1 and "no model some/other" in err


@pytest.mark.parametrize("repo", ["", "one", "a/b/c", "../x", "a b/c", "-a/b"])
def test_what_is_no_id_is_refused_before_anyone_is_asked(repo):
    with pytest.raises(UserError, match="not a hub id"):
        hub.pull(repo)


W = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    "folder, names, chosen",
    [
        ("unet", [f"{W}.safetensors", f"{W}.fp16.safetensors", f"{W}.bin"], f"{W}.safetensors"),
        ("unet", [f"{W}.fp16.safetensors", f"{W}.non_ema.safetensors"], f"{W}.fp16.safetensors"),
        ("unet", [f"{W}.safetensors.index.json", f"{W}-00001-of-00002.safetensors"], f"{W}.safetensors.index.json"),
        ("unet", [f"{W}.safetensors.index.fp16.json", f"{W}.fp16-00001-of-00002.safetensors"],
         f"{W}.safetensors.index.fp16.json"),
        ("text_encoder", ["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        ("text_encoder_2", ["model.fp16.safetensors"], "model.fp16.safetensors"),
        ("unet", [f"{W}.bin", f"{W}.fp16.bin", "diffusion_flax_model.msgpack"], f"{W}.bin"),
        ("unet", [f"{W}.bin", f"{W}.fp16.safetensors"], f"{W}.fp16.safetensors"),
        ("unet", [f"{W}.bin", f"{W}.non_ema.safetensors", f"{W}.non_ema.bin"], f"{W}.bin"),
        ("vae", [f"{W}.bin.index.json", f"{W}-00001-of-00001.bin", f"{W}.fp16.bin"], f"{W}.bin.index.json"),
        ("unet", [f"{W}.bin.index.fp16.json", f"{W}.fp16-00001-of-00001.bin"], f"{W}.bin.index.fp16.json"),
        ("text_encoder", ["pytorch_model.bin", "pytorch_model.fp16.bin"], "pytorch_model.bin"),
        ("text_encoder", ["pytorch_model.bin.index.json", "diffusion_pytorch_model.bin"],
         "pytorch_model.bin.index.json"),
    ],
)  # fmt: skip
def test_the_weights_of_a_component_are_chosen(folder, names, chosen):
    found, note = hub.choose_weights(folder, names)
    assert found == chosen
    assert ("PyTorch" in (note or "")) == (".bin" in found) and ("variant" in (note or "")) == ("fp16" in found)


def test_shards_of_the_chosen_precision_only_are_needed():
    for end in ("safetensors", "bin"):
        late = [f"unet/{W}-0000{i}-of-00002.fp16.{end}" for i in (1, 2)]
        early = [f"unet/{W}.fp16-0000{i}-of-00002.{end}" for i in (1, 2)]
        main = [f"unet/{W}-0000{i}-of-00002.{end}" for i in (1, 2)]
        index = [f"unet/{W}.{end}.index.json", f"unet/{W}.{end}.index.fp16.json"]
        other = [f"unet/{W}-00001-of-00001.bin"] if end == "safetensors" else []
        files = hub.needed(["model_index.json", *late, *main, *index, *other])
        assert set(files) == {"model_index.json", *main, index[0]}
        for shards in (late, early):
            files = hub.needed(["model_index.json", *shards, index[1], *other])
            assert set(files) == {"model_index.json", *shards, index[1]}


def test_both_schedulers_of_an_upscaler_are_needed():
    names = ["model_index.json", f"unet/{W}.bin", "scheduler/scheduler_config.json",
             "low_res_scheduler/scheduler_config.json"]  # fmt: skip
    assert set(hub.needed([*names, "watermarker/config.json"])) == set(names)


def test_a_repository_of_one_part_needs_its_config_and_its_weights():
    names = ["config.json", f"{W}.bin", f"{W}.safetensors", "README.md", "picture.png"]
    assert set(hub.needed(names)) == {"config.json", f"{W}.safetensors", "README.md"}
    shards = [f"{W}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert set(hub.needed(["config.json", *shards, f"{W}.safetensors.index.json"])) == {
        "config.json", *shards, f"{W}.safetensors.index.json"}  # fmt: skip


@pytest.mark.parametrize(
    "names, file, said",
    [
        (["README.md", "a.pt"], None, "neither a model_index.json .* nor a checkpoint at its top"),
        (["config.json", "model.bin"], None, "no model_index.json and no diffusion_pytorch_model"),
        (["model_index.json", f"unet/{W}.pt"], None, "unet has no weights"),
        (["model_index.json", "unet/diffusion_flax_model.msgpack"], None, "another framework"),
        (["model_index.json", "unet/config.json"], None, "no weights"),
        (["model_index.json", f"transformer/{W}.safetensors"], None, "no unet"),
        (["model_index.json", f"unet/{W}.safetensors"], f"unet/{W}.safetensors", "one part of the model"),
        (["model.json", "vae.safetensors"], "vae.safetensors", "one part of the model"),
        (["a-00001-of-00002.safetensors"], "a-00001-of-00002.safetensors", "one of several pieces"),
        (["dreams.ckpt", "other.ckpt"], "draems.ckpt", "no file draems.ckpt. Did you mean 'dreams.ckpt'"),
        (["1.ckpt"], "some/thing/else.gguf", "no file some/thing/else.gguf. There are 1.ckpt"),
    ],
)
def test_a_repository_without_a_usable_model_is_told_so(names, file, said):
    with pytest.raises(UserError, match=said):
        hub.needed(names, file)


@pytest.mark.parametrize(
    "names, chosen",
    [
        (["one.safetensors", "README.md", "one.yaml", "a.pt", "vae/other.safetensors"], "one.safetensors"),
        (["two.ckpt", "model_index.json"], None),
        (["denoiser.safetensors", "model.json"], None),
        (["three.gguf", ".hidden.gguf"], "three.gguf"),
        (["model.safetensors"], "model.safetensors"),
        (["model.safetensors", "config.json"], None),  # a component, or no model of pictures at all
        (["model.safetensors", "config.json", "four.safetensors"], "four.safetensors"),
        (["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"], None),
        (["README.md"], None),
    ],
)
def test_the_name_of_a_repository_means_its_only_checkpoint(names, chosen):
    assert hub.checkpoint("some/thing", dict.fromkeys(names, 1000)) == chosen


def test_of_several_checkpoints_none_is_preferred():
    sizes = {"a.safetensors": 2_130_000_000, "a.ckpt": 4_270_000_000, "b.gguf": 0, "config.yaml": 10}
    with pytest.raises(UserError) as error:
        hub.checkpoint("some/thing", sizes)
    assert str(error.value) == (
        "some/thing holds 3 checkpoints, a.ckpt (4.27 GB), a.safetensors (2.13 GB), b.gguf: choose one by its name, as "
        "some/thing/a.ckpt."
    )
    with pytest.raises(UserError, match=r"holds 40 checkpoints, .*11.gguf and 28 more: choose"):
        hub.checkpoint("some/thing", {f"{i:02}.gguf": 0 for i in range(40)})


HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    "text, repo, file, revision",
    [
        ("a/b", "a/b", None, None),
        (" a/b/ ", "a/b", None, None),
        ("hf://a/b/c.gguf", "a/b", "c.gguf", None),
        ("a/b/c.safetensors", "a/b", "c.safetensors", None),
        ("a/b/old ones/c (1).ckpt", "a/b", "old ones/c (1).ckpt", None),
        (f"{HUB}/a/b", "a/b", None, None),
        (f"{HUB}/a/b/tree/main", "a/b", None, None),
        (f"{HUB}/a/b/tree/fp16", "a/b", None, "fp16"),
        (f"{HUB}/a/b/tree/refs%2Fpr%2F7", "a/b", None, "refs/pr/7"),
        (f"{HUB}/a/b/blob/main/c.safetensors", "a/b", "c.safetensors", None),
        (f"{HUB}/a/b/resolve/main/x/c%20d.ckpt?download=true#top", "a/b", "x/c d.ckpt", None),
        ("http://localhost:9/a/b/raw/v1.2/c.gguf", "a/b", "c.gguf", "v1.2"),
    ],
)
def test_ids_files_and_web_addresses_are_understood(text, repo, file, revision, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    found = hub.wanted(text)
    assert found == hub.Wanted(repo, file, revision)
    assert found.name == (f"{repo}/{file}" if file else repo)


@pytest.mark.parametrize(
    "text, said",
    [
        ("https://example.com/a/b", "not on the hub that is asked, .*HF_ENDPOINT"),
        ("https://[/a/b", "not on the hub"),
        (HUB, "neither a model nor a checkpoint"),
        (f"{HUB}/a", "neither a model nor a checkpoint"),
        (f"{HUB}/datasets/a/b", "neither a model nor a checkpoint"),
        (f"{HUB}/a/b/discussions/1", "neither a model nor a checkpoint"),
        (f"{HUB}/a/b/tree/main/unet", "neither a model nor a checkpoint"),
        (f"{HUB}/a/b/tree/..%2F..%2Fx", "neither a model nor a checkpoint"),
        (f"{HUB}/a/b/blob/main/README.md", "neither a model nor a checkpoint"),
        (f"{HUB}/a/b/blob/main/..%2F..%2Fc.ckpt", "neither a model nor a checkpoint"),
        ("a/b/../c.ckpt", "not a hub id"),
        ("a/b/.c.ckpt", "not a hub id"),
        ("a/b//c.ckpt", "not a hub id"),
        ("a/b/c.png", "not a hub id"),
        ("a/b/" + "\u00e9" * 150 + ".ckpt", "not a hub id"),
        ("a/b/x\n.ckpt", "not a hub id"),
    ],
)
def test_what_is_no_address_of_a_model_is_refused(text, said):
    with pytest.raises(UserError, match=said) as error:
        hub.wanted(text)
    assert "\n" not in str(error.value)


# Checkpoints in single files.


def test_the_only_checkpoint_of_a_repository_is_pulled_and_found_offline(online):
    files = {"README.md": b"---\nlicense: mit\n---\n", "dreams v1.safetensors": b"x" * 3000, "dreams v1.yaml": b"y",
             "other.yaml": b"z", "sample.png": b"p", "samples/more.safetensors": b"q"}  # fmt: skip
    server = online("some/dreams", files)
    path = hub.pull("some/dreams")
    assert server.fetched() == {"README.md", "dreams v1.safetensors", "dreams v1.yaml"}
    assert path.name == "dreams v1.safetensors" and path.is_symlink() and path.read_bytes() == b"x" * 3000
    server.close()
    rows = {row["name"]: row for row in store.models()}
    assert (rows["some/dreams"]["path"], rows["some/dreams"]["bytes"]) == (str(path), 3000)
    assert store.find("some/dreams", lambda path: path) == path
    store.forget("some/dreams")
    assert store.locate("some/dreams") == store.locate("some/dreams/dreams v1.safetensors") == path
    path.resolve().unlink()  # the blob
    with pytest.raises(UserError, match="To download it from the hub: mlxldm pull some/dreams/dreams v1.safetensors"):
        store.locate("some/dreams/dreams v1.safetensors")


def test_of_several_checkpoints_the_named_one_only_is_pulled(online):
    files = {"a.safetensors": b"x" * 2000, "a.ckpt": b"y" * 4000, "old/b (1).ckpt": b"z" * 1000}
    server = online("some/dreams", files)
    with pytest.raises(UserError, match=r"holds 2 checkpoints, a.ckpt \(4 kB\), a.safetensors \(2 kB\): choose one"):
        hub.pull("some/dreams")
    with pytest.raises(UserError, match="some/dreams cannot be used: it has no file b.ckpt. .*a.ckpt"):
        hub.pull("some/dreams/b.ckpt")
    assert server.fetched() == set()
    first = hub.pull("some/dreams/a.safetensors")
    assert server.fetched() == {"a.safetensors"}
    assert store.locate("some/dreams") == first  # the only one that is here
    second = hub.pull(f"{server.endpoint}/some/dreams/blob/main/a.ckpt")
    third = hub.pull("https://huggingface.co/some/dreams/resolve/main/old/b%20(1).ckpt?download=true")
    assert server.fetched() == set(files)
    server.close()
    names = {"a.safetensors": first, "a.ckpt": second, "old/b (1).ckpt": third}
    listed = {row["name"]: row["path"] for row in store.models()}
    for name, path in names.items():
        assert path.read_bytes() == files[name]
        assert listed[f"some/dreams/{name}"] == str(path) and store.locate(f"some/dreams/{name}") == path
    with pytest.raises(UserError, match="some/dreams holds 2 checkpoints, .*choose one"):
        store.locate("some/dreams")
    for name, path in names.items():
        store.forget(f"some/dreams/{name}")
        assert store.locate(f"some/dreams/{name}") == path
    assert not [row for row in store.models() if row["name"].startswith("some/")]


def test_one_checkpoint_of_a_repository_with_folders_too(online, little_folder):
    files = {**contents(little_folder), "whole.safetensors": b"x" * 500}
    server = online("some/little", files)
    assert hub.pull("some/little/whole.safetensors").name == "whole.safetensors"
    assert server.fetched() == {"whole.safetensors"}
    with pytest.raises(UserError, match="vae.safetensors is one part of the model in it"):
        hub.pull("some/little/vae.safetensors")
    hub.pull("some/little")
    assert store.find("some/little").manifest.family == "sd1"
    assert store.locate("some/little/whole.safetensors").read_bytes() == files["whole.safetensors"]


def test_a_checkpoint_that_was_cut_goes_on_where_it_stopped(online, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "LARGE", 1000)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("time.sleep", lambda seconds: SLEEP(min(seconds, 0.02)))
    data = bytes(range(256)) * 400
    server = online("some/dreams", {"a.ckpt": data, "b.ckpt": b"y"})
    server.cut = {"a.ckpt"}
    with pytest.raises(UserError, match="kept"):
        hub.pull("some/dreams/a.ckpt")
    assert not [row for row in store.models() if row["name"].startswith("some/")]
    server.cut = set()
    server.log.clear()
    assert hub.pull("some/dreams/a.ckpt").read_bytes() == data
    asked = [span for method, path, span in server.log if method == "GET" and path.endswith("/a.ckpt")]
    assert asked == [f"bytes={len(data) // 2 // 1000 * 1000}-"]


def test_a_newer_checkpoint_takes_the_place_of_the_older(online):
    server = online("some/dreams", {"a.ckpt": b"old"})
    old = hub.pull("some/dreams")
    server.files["a.ckpt"] = b"newer"
    server.revisions = {"main": "f" * 40}
    new = hub.pull("some/dreams")
    assert new != old and new.read_bytes() == b"newer" and store.locate("some/dreams") == new


def test_a_revision_is_named_in_a_web_address(online):
    server = online("some/dreams", {"a.ckpt": b"main"})
    hub.pull("some/dreams")
    server.revisions["v2"] = "f" * 40
    server.files["a.ckpt"] = b"two"
    path = hub.pull(f"{server.endpoint}/some/dreams/tree/v2")
    assert path.read_bytes() == b"two" and path.parent.name == "f" * 40
    assert store.locate("some/dreams") == path  # what was pulled last
    with pytest.raises(UserError, match="some/dreams has no revision 'v3'"):
        hub.pull(f"{server.endpoint}/some/dreams/tree/v3")


@pytest.fixture
def single_file(monkeypatch):
    """A tiny model of the original code's names as bytes; the converter is told its family, which is seen by widths."""
    pytest.importorskip("diffusers", reason="needs diffusers, which builds the checkpoint")
    import single_files

    import mlxldm_convert

    wish = mlxldm_convert.detect.Wish(family="sd1", heads=8)
    real = mlxldm_convert.view
    monkeypatch.setattr(mlxldm_convert, "view", lambda path: real(path, wish))
    return single_files.original(single_files.pipeline("sd1"))


def test_a_pulled_checkpoint_is_listed_shown_drawn_with_and_converted(online, single_file, tmp_path, capfd):
    import single_files

    from mlxldm import cli
    from mlxldm_convert.__main__ import main as convert

    files = {f"tiny.{end}": single_files.write(single_file, tmp_path / f"tiny.{end}").read_bytes()
             for end in ("ckpt", "safetensors")}  # fmt: skip
    server = online("some/tiny", files)
    assert cli.main(["pull", f"{server.endpoint}/some/tiny/blob/main/tiny.ckpt", "--json"]) == 0
    out, err = capfd.readouterr()
    name = json.loads(out)["id"]
    assert name == "some/tiny/tiny.ckpt" and f"its name here: {name}" in err
    server.close()
    assert cli.main(["models", "--json"]) == 0
    row = next(row for row in json.loads(capfd.readouterr().out)["models"] if row["name"] == name)
    assert row["state"] == "ready" and row["bytes"] == len(files["tiny.ckpt"])
    assert cli.main(["show", name, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["family"] == "sd1"
    picture = tmp_path / "picture.png"
    wish = ["--backend", "torch", "--device", "cpu", "--steps", "1", "--width", "64", "--height", "64"]
    assert cli.main(["generate", "a", "--model", name, *wish, "-o", str(picture)]) == 0, capfd.readouterr().err
    assert picture.stat().st_size > 100
    capfd.readouterr()
    for source in (name, "some/tiny"):  # the cache holds one of the two
        options = ["--family", "sd1", "--heads", "8", "--dry-run", "--json"]
        assert convert([source, str(tmp_path / "mine"), *options]) == 0
        report = json.loads(capfd.readouterr().out)
        assert report["kind"] == "single file" and report["sha256"] == {
            "tiny.ckpt": hashlib.sha256(files["tiny.ckpt"]).hexdigest()
        }


# PyTorch's own files.


def as_bins(files: dict[str, bytes], shards: bool = False) -> dict[str, bytes]:
    """A diffusers folder with its weights as older ones have them; `shards`: the U-Net in two, with an index."""
    import io

    import torch
    from safetensors.torch import load

    def saved(state: dict) -> bytes:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    out = {}
    for name, data in files.items():
        folder, _, file = name.rpartition("/")
        if not file.endswith(".safetensors"):
            out[name] = data
            continue
        base = file.removesuffix(".safetensors").replace("model", "pytorch_model") if file.startswith("model") else W
        state = load(data)
        if not shards or folder != "unet":
            out[f"{folder}/{base}.bin"] = saved(state)
            continue
        names = sorted(state)
        halves = [names[: len(names) // 2], names[len(names) // 2 :]]
        places = {}
        for i, half in enumerate(halves, 1):
            place = f"{base}-{i:05}-of-00002.bin"
            out[f"{folder}/{place}"] = saved({name: state[name] for name in half})
            places |= dict.fromkeys(half, place)
        out[f"{folder}/{base}.bin.index.json"] = json.dumps({"metadata": {}, "weight_map": places}).encode()
    return out


@pytest.mark.parametrize("shards", [False, True])
def test_a_repository_with_pytorch_files_only_is_pulled_and_opens(online, tiny_folder, shards, tmp_path, capfd):
    pytest.importorskip("diffusers", reason="needs diffusers, which builds the model that is served")
    import single_files

    from mlxldm import cli
    from mlxldm_convert import view

    safe = contents(tiny_folder("sd1", "hub"))
    files = as_bins(safe, shards)
    extra = {"unet/diffusion_flax_model.msgpack": b"x", "safety_checker/pytorch_model.bin": b"x", "v1.ckpt": b"x",
             "vae/diffusion_pytorch_model.fp16.bin": b"x", "text_encoder/pytorch_model.fp16.bin": b"x"}  # fmt: skip
    server = online("some/older", {**files, **extra})
    path = hub.pull("some/older")
    assert server.fetched() == set(files)
    server.close()
    folder = store.find("some/older", view)
    single_files.same(folder, view(tiny_folder("sd1", "hub")))
    assert "PyTorch checkpoint" in " ".join(folder.report()["why"])
    assert all(len(digest) == 64 for digest in folder.hashes().values())
    if not shards:
        wish = ["--backend", "torch", "--device", "cpu", "--steps", "1", "--width", "64", "--height", "64"]
        picture = tmp_path / "picture.png"
        assert cli.main(["generate", "a", "--model", "some/older", *wish, "-o", str(picture)]) == 0
        assert picture.stat().st_size > 100
    assert store.locate("some/older") == path
