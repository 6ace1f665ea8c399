"""Models from the Hugging Face hub, into the hub's own cache, where other programs find them too.

Only what a model needs is fetched: of every part one set of weights (safetensors, in the main precision), its configs,
tokenizers and model card; no second precision, no other framework's copy, no single-file checkpoint beside the folders.
A download that was cut goes on where it stopped.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlxldm.errors import UserError, nearest
from mlxldm.folder import PARTS, TOKENIZER_FILES
from mlxldm.tensors import shown

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

Progress = Callable[[float, str], None]  # the part that is done, 0 to 1, and what is going on

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")
# Bytes from which a file is fetched by `_fetch`, which goes on where it stopped and which Ctrl-C ends at once.
LARGE = 1 << 20
BEGUN = ".mlxldm.incomplete"
SHARD = re.compile(r"(?P<base>.+?)(\.(?P<early>[\w-]+))?-\d{5}-of-\d{5}(\.(?P<late>[\w-]+))?\.safetensors")


def choose_weights(folder: str, names: Iterable[str]) -> tuple[str, str | None]:
    """Which of the files in `folder` (a component of a diffusers folder) holds its weights: (file or index, a note).

    Safetensors before everything else, one file before shards, the main precision before fp16 and that before others.
    Raises UserError if there are none that can be read.
    """
    names = set(names)
    base = "model" if folder.startswith("text_encoder") else "diffusion_pytorch_model"
    for name in (f"{base}.safetensors", f"{base}.safetensors.index.json"):
        if name in names:
            return name, None
    whole = re.compile(re.escape(base) + r"\.([\w-]+)\.safetensors")
    sharded = re.compile(re.escape(base) + r"\.safetensors\.index\.([\w-]+)\.json")
    variants: dict[str, str] = {}
    for pattern in (sharded, whole):  # one file replaces the index of the same variant
        for name in sorted(names):
            if (match := pattern.fullmatch(name)) and not SHARD.fullmatch(name):
                variants[match[1]] = name
    if variants:
        variant = "fp16" if "fp16" in variants else sorted(variants)[0]
        return variants[variant], f"{folder} has no weights in the main precision; its variant {variant} is used"
    pickles = [name for name in sorted(names) if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    if pickles:
        raise UserError(
            f"{folder} has its weights as {shown(pickles[0])} only (a PyTorch pickle), which a later version reads: "
            f"use a copy of the model with safetensors."
        )
    if any(name.endswith((".msgpack", ".h5", ".onnx")) for name in names):
        raise UserError(f"{folder} has weights for another framework only: use a copy of the model with safetensors.")
    raise UserError(f"{folder} has no weights ({base}.safetensors was expected): the model is not complete.")


def needed(names: Iterable[str]) -> list[str]:
    """Which files of a repository make the model: of a diffusers folder, or of a folder written by `mlxldm-convert`."""
    names = sorted(names)
    own = {"README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        by_folder.setdefault(folder, []).append(file)
    root = by_folder.get("", [])
    tokenizers = [f"{folder}/{file}" for folder in ("tokenizer", "tokenizer_2") for file in by_folder.get(folder, [])
                  if file in TOKENIZER_FILES]  # fmt: skip
    chosen = [name for name in root if name in own]
    if "model.json" in root:
        return [*chosen, "model.json", *(f"{part}.safetensors" for part in PARTS if f"{part}.safetensors" in root),
                *tokenizers]  # fmt: skip
    if "model_index.json" not in root:
        single = [name for name in root if name.endswith((".safetensors", ".ckpt"))]
        if single:
            raise UserError(
                f"The repository has single-file checkpoints only (as {shown(single[0])}), which a later version "
                f"reads: choose one with a diffusers folder (model_index.json)."
            )
        raise UserError("The repository has no model_index.json, so it is no text-to-image model in diffusers' form.")
    chosen += ["model_index.json", *tokenizers]
    if "scheduler_config.json" in by_folder.get("scheduler", []):
        chosen.append("scheduler/scheduler_config.json")
    for folder in COMPONENTS:
        files = by_folder.get(folder)
        if not files:
            continue
        if "config.json" in files:
            chosen.append(f"{folder}/config.json")
        weights, _ = choose_weights(folder, files)
        chosen.append(f"{folder}/{weights}")
        if ".index." in weights:
            variant = match[1] if (match := re.search(r"\.index\.([\w-]+)\.json$", weights)) else None
            for file in files:
                shard = SHARD.fullmatch(file)
                if shard and (shard["early"] or shard["late"]) == variant:
                    chosen.append(f"{folder}/{file}")
    return chosen


def cached(repo: str) -> Path | None:
    """The snapshot of `repo` that is in the hub's cache, or None. Asks nobody."""
    from huggingface_hub import constants

    storage = Path(constants.HF_HUB_CACHE).expanduser() / ("models--" + repo.replace("/", "--"))
    try:
        commit = (storage / "refs" / "main").read_text().strip()
    except OSError:
        return None
    snapshot = storage / "snapshots" / commit
    return snapshot if re.fullmatch(r"[\w.-]+", commit) and snapshot.is_dir() else None


def pull(repo: str, progress: Progress | None = None) -> Path:
    """Download the model `repo` ("owner/name") into the hub's cache, and register it. Returns its folder.

    `progress` is called with the fraction done and a word, from this thread. Raises UserError, in one sentence, for
    whatever keeps the model from arriving: no such id, no permission, no network, too little disk.
    """
    repo = re.sub(r"^(https?://[^/]+/|hf://)", "", repo.strip()).strip("/")
    if not ID.fullmatch(repo):
        raise UserError(f"'{shown(repo)}' is not a hub id: it has the form owner/name.")
    from mlxldm import store

    if progress:
        progress(0.0, f"asking for {repo}")
    try:
        path = _download(repo, progress)
    except UserError:
        raise
    except Exception as error:
        explained = _explained(error, repo)
        if explained is None:
            raise
        raise explained from error
    before = next((row["path"] for row in store.models() if row["name"] == repo), None)
    # a newer snapshot of the same repository replaces the older; a name that the person gave to something else stays
    store.register(repo, path, force=before is not None and Path(before).parent == path.parent)
    if progress:
        progress(1.0, repo)
    return path


def _download(repo: str, progress: Progress | None) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    endpoint = os.environ.get("HF_ENDPOINT") or None
    info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True)
    sizes = {item.rfilename: item.size or 0 for item in info.siblings or []}
    try:
        files = needed(sizes)
    except UserError as error:
        raise UserError(f"{repo} cannot be used: {error}") from None
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    storage = cache / ("models--" + repo.replace("/", "--"))
    there = storage / "snapshots" / str(info.sha)
    missing = [name for name in files if not (there / name).exists()]
    wanted = sum(sizes[name] for name in missing)
    nearest_folder = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(nearest_folder).free
    started = _partial(storage)
    if wanted - started > free - (64 << 20):
        raise UserError(f"{repo} needs {wanted / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free at {shown(cache)}.")

    result: list[str] = []
    failure: list[BaseException] = []
    before = _stored(storage) - started
    quiet = not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()

    def work() -> None:
        try:
            for name in missing:
                if sizes[name] >= LARGE:
                    _fetch(repo, name, str(info.sha), endpoint, cache, storage)
            only = [_literal(name) for name in files]
            result.append(snapshot_download(repo, endpoint=endpoint, allow_patterns=only, max_workers=4))
        except BaseException as error:
            failure.append(error)

    # The library's own bars print; bytes on disk say the same, whatever its version, and Ctrl-C is heard at once.
    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
        while worker.is_alive():
            worker.join(0.25)
            if progress and wanted:
                progress(min((_stored(storage) - before) / wanted, 1.0), f"downloading {repo}")
    finally:
        if quiet:
            enable_progress_bars()
    if failure:
        raise failure[0]
    path = Path(result[0])
    lacking = [name for name in files if not (path / name).exists()]
    if lacking:
        # the library falls back to what it has when the hub does not answer
        raise UserError(f"{repo} did not arrive whole ({shown(lacking[0])} is missing): run the same command again.")
    return path


def _fetch(repo: str, name: str, commit: str, endpoint: str | None, cache: Path, storage: Path) -> None:
    """Bring one large file into the cache's blobs, going on where an earlier try stopped, even one that was killed.

    Newer versions of the library throw away what has arrived of a file when they are interrupted. Here it stays beside
    the blobs until it is whole; the library then finds the blob in place and links it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url = hf_hub_url(repo, name, revision=commit, endpoint=endpoint)
    about = get_hf_file_metadata(url, endpoint=endpoint)
    if not about.etag or not re.fullmatch(r"[0-9a-zA-Z]{8,128}", about.etag) or not about.size:
        return  # nothing to recognise a begun file by: the library's own way will do
    blob, begun = storage / "blobs" / about.etag, storage / "blobs" / (about.etag + BEGUN)
    lock = cache / ".locks" / storage.name / f"{about.etag}.lock"  # the library's own, so that it waits for us
    lock.parent.mkdir(parents=True, exist_ok=True)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        headers = build_hf_headers()
        if urlsplit(url).netloc != urlsplit(about.location).netloc:
            headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
        with open(begun, "ab") as file:
            if file.tell() > about.size:
                file.truncate(0)
            if file.tell() < about.size:
                http_get(about.location, file, resume_size=file.tell(), headers=headers, expected_size=about.size)
        if begun.stat().st_size != about.size or not _whole(begun, about.etag):
            begun.unlink()
            raise UserError(f"{name} of {repo} arrived damaged: run the same command again.")
        os.replace(begun, blob)


def _whole(path: Path, etag: str) -> bool:
    """Whether the file's sha256 is `etag`; true where the etag is no sha256."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return True
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == etag


def _literal(name: str) -> str:
    """A pattern that matches this file name only."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _stored(storage: Path) -> int:
    """Bytes of a repository in the cache, finished and begun."""
    total = 0
    for file in (storage / "blobs").glob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue  # renamed this moment
    return total


def _partial(storage: Path) -> int:
    """Bytes of files that were begun and not finished, and that `_fetch` goes on with."""
    return sum(file.stat().st_size for file in (storage / "blobs").glob(f"*{BEGUN}"))


def _explained(error: Exception, repo: str) -> UserError | None:
    """What went wrong, as a sentence; None if it is not the world's doing."""
    from huggingface_hub import errors

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    code = next((status for e in chain if (status := _status(e)) is not None), None)
    for e in chain:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"The disk is full: {repo} did not arrive whole; make room, then pull it again.")
        if isinstance(e, PermissionError):
            return UserError(f"{shown(e.filename)} cannot be written: {e.strerror}.")
    if any(isinstance(e, errors.GatedRepoError) for e in chain) or code == 403:
        return UserError(
            f"{repo} is given only to people who accepted its conditions: accept them on its page, then log in with "
            f"`hf auth login`."
        )
    if any(isinstance(e, errors.RepositoryNotFoundError) for e in chain) or code in (401, 404):
        from mlxldm import store

        known = nearest(repo, [row["name"] for row in store.models() if "/" in row["name"]])
        return UserError(
            f"The hub has no model {repo}, or it is private and you are not logged in.{known} Check the id, or log in "
            f"with `hf auth login`."
        )
    if code == 429:
        return UserError(f"The hub says there were too many requests: wait some minutes, then pull {repo} again.")
    if code is not None and code >= 500:
        return UserError(f"The hub has trouble (error {code}): try again later; what has arrived is kept.")
    offline = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if any(isinstance(e, offline) or type(e).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests")
           for e in chain):  # fmt: skip
        return UserError(
            f"The hub cannot be reached: check the network, then pull {repo} again; what has arrived is kept."
        )
    return None


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    return code if isinstance(code, int) else None
