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
                if path.startswith("api/models/" + outer.repo):
                    return self.reply(200, json.dumps(outer.api(path)).encode(), {}, body)
                match = re.fullmatch(re.escape(outer.repo) + r"/resolve/[^/]+/(.+)", path)
                if match and match[1] in outer.files:
                    return self.file(match[1], body)
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

            def file(self, name: str, body: bool):
                data = outer.files[name]
                etag = hashlib.sha256(data).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
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

    def api(self, path: str):
        """/api/models/ID[/revision/R] and /api/models/ID/tree/R."""
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            | ({"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}})
            for name, data in self.files.items()
        ]
        if f"{self.repo}/tree/" in path:
            return entries
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]
        return {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": siblings, "private": False}

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
    ],
)  # fmt: skip
def test_the_weights_of_a_component_are_chosen(folder, names, chosen):
    assert hub.choose_weights(folder, names)[0] == chosen


def test_shards_of_the_chosen_precision_only_are_needed():
    late = [f"unet/{W}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    main = [f"unet/{W}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = [f"unet/{W}.safetensors.index.json", f"unet/{W}.safetensors.index.fp16.json"]
    files = hub.needed(["model_index.json", *late, *main, *index])
    assert set(files) == {"model_index.json", *main, index[0]}
    files = hub.needed(["model_index.json", *late, index[1]])
    assert set(files) == {"model_index.json", *late, index[1]}


@pytest.mark.parametrize(
    "names, said",
    [
        (["model.ckpt", "README.md"], "single-file checkpoints only"),
        (["config.json", "model.bin"], "no model_index.json"),
        (["model_index.json", f"unet/{W}.bin"], "PyTorch pickle"),
        (["model_index.json", "unet/config.json"], "no weights"),
    ],
)
def test_a_repository_without_a_usable_model_is_told_so(names, said):
    with pytest.raises(UserError, match=said):
        hub.needed(names)
