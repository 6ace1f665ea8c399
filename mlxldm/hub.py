"""Models from the Hugging Face hub, into the hub's own cache, where other programs find them too.

Only what a model needs is fetched: of every part one set of weights (safetensors, in the main precision), its configs,
tokenizers and model card; no second precision, no other framework's copy, no single-file checkpoint beside the folders.
Of a repository that holds checkpoints in single files, one of them. A download that was cut goes on where it stopped.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlxldm.errors import UserError, nearest
from mlxldm.folder import PARTS, TOKENIZER_FILES
from mlxldm.tensors import shown
from mlxldm.terminal import size

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# One checkpoint of a repository, owner/name/FILE; FILE may lie in a folder, and begins with no dot.
FILE = re.compile(
    rf"(?P<repo>{ID.pattern})(?P<file>(?:/(?!\.)[^/\\:*?\"<>|\x00-\x1f\x7f\ud800-\udfff]{{1,255}}){{1,8}}"
    r"(?<=\.)(?i:safetensors|ckpt|gguf|pt|pth|bin))"
)
SINGLE = (".safetensors", ".ckpt", ".gguf")  # endings of what is taken for a whole model at the top of a repository
REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]{0,200}")
HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")  # whose addresses are understood whatever hub is asked

Progress = Callable[[float, str], None]  # the part that is done, 0 to 1, and what is going on

COMPONENTS = ("text_encoder", "text_encoder_2", "bert", "unet", "vae", "vqvae")
# Bytes from which a file is fetched by `_fetch`, which goes on where it stopped and which Ctrl-C ends at once.
LARGE = 1 << 20
BEGUN = ".mlxldm.incomplete"
SHARD = re.compile(
    r"(?P<base>.+?)(\.(?P<early>[\w-]+))?-\d{5}-of-\d{5}(\.(?P<late>[\w-]+))?\.(?P<ending>safetensors|bin)"
)
PRECISIONS = ("fp16", "bf16", "fp32")  # the same weights in other numbers; any other variant has weights of its own
# What transformers and diffusers call the weights that a config.json beside them describes.
# The weights of a repository that is one U-Net or autoencoder and nothing else, beside its config.json.
BARE = re.compile(r"diffusion_pytorch_model(\.[\w-]+)?\.(safetensors|bin)(\.index(\.[\w-]+)?\.json)?")
COMPONENT = re.compile(r"(model|pytorch_model|diffusion_pytorch_model)(\.[\w-]+)?\.safetensors")


@dataclass(frozen=True)
class Wanted:
    """What a person asks the hub for: a repository, or one checkpoint of it."""

    repo: str
    file: str | None = None
    revision: str | None = None  # a branch, a tag or a commit; None: the main branch

    @property
    def name(self) -> str:
        """What the model is called on this machine."""
        return f"{self.repo}/{self.file}" if self.file else self.repo


def parted(name: str) -> tuple[str, str] | None:
    """("owner/name", "FILE") of owner/name/FILE, the name of one checkpoint of a repository; None if it is no such."""
    match = FILE.fullmatch(name)
    if match is None or any(len(step.encode()) > 255 for step in name.split("/")):  # more than file systems take
        return None
    return match["repo"], match["file"][1:]


def wanted(text: str) -> Wanted:
    """What `text` asks for: owner/name, owner/name/FILE, or the hub's web address of either; or a UserError."""
    asked = text.strip()
    if re.match(r"https?://", asked, re.IGNORECASE):
        return _addressed(asked)
    asked = asked.removeprefix("hf://").strip("/")
    if ID.fullmatch(asked):
        return Wanted(asked)
    if both := parted(asked):
        return Wanted(*both)
    raise UserError(
        f"'{shown(text)}' is not a hub id: it has the form owner/name, or owner/name/FILE for one checkpoint "
        f"({', '.join(SINGLE)}) of several."
    )


def _addressed(address: str) -> Wanted:
    from huggingface_hub import constants

    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    try:
        host, path = urlsplit(address).netloc.lower(), urlsplit(address).path
    except ValueError:
        host, path = "", ""
    if host not in (urlsplit(endpoint).netloc.lower(), *HUBS):
        raise UserError(
            f"{shown(address)} is not on the hub that is asked, {shown(endpoint)}: give a model of that hub, or name "
            f"another hub in the environment variable HF_ENDPOINT."
        )
    steps = [unquote(step) for step in path.split("/") if step]
    revision: str | None = None
    asked = steps[:2]
    match steps[2:]:
        case []:
            pass
        case ["tree", revision]:
            pass
        case ["blob" | "resolve" | "raw", revision, *inner] if inner:
            asked += inner
        case _:
            asked = []
    name = "/".join(asked)
    if not (ID.fullmatch(name) or parted(name)) or not REVISION.fullmatch(revision or "main"):
        raise UserError(
            f"{shown(address)} is the address of neither a model nor a checkpoint in it ({', '.join(SINGLE)}): copy "
            f"that of the model's page, or that of one file."
        )
    return replace(wanted(name), revision=None if revision == "main" else revision)


def choose_weights(folder: str, names: Iterable[str]) -> tuple[str, str | None]:
    """Which of the files in `folder` (a component of a diffusers folder) holds its weights: (file or index, a note).

    Safetensors before PyTorch's own files, the main precision before fp16 and that before others, one file before
    shards; variants that are no precision (non_ema) come last. Raises UserError if there are none that can be read.
    """
    names = sorted(set(names))
    text = folder.startswith("text_encoder") or folder == "bert"
    bases = {"safetensors": "model" if text else "diffusion_pytorch_model",
             "bin": "pytorch_model" if text else "diffusion_pytorch_model"}  # fmt: skip
    found = []
    for i, (ending, base) in enumerate(bases.items()):
        whole = re.compile(rf"{base}(?:\.([\w-]+))?\.{ending}")
        sharded = re.compile(rf"{base}\.{ending}\.index(?:\.([\w-]+))?\.json")
        for j, pattern in enumerate((whole, sharded)):
            for name in names:
                if (match := pattern.fullmatch(name)) and not SHARD.fullmatch(name):
                    variant = match[1] or ""
                    other = variant not in ("", *PRECISIONS)
                    found.append(((other, i, variant != "", variant != "fp16", variant, j), name, variant))
    if found:
        (_, pickle, *_), chosen, variant = min(found)
        notes = []
        if variant:
            notes.append(f"{folder} has no weights in the main precision; its variant {variant} is used")
        if pickle:
            notes.append(f"the weights of {folder} are a PyTorch checkpoint, {chosen}; nothing in it is run")
        return chosen, "; ".join(notes) or None
    if any(name.endswith((".msgpack", ".h5", ".onnx")) for name in names):
        raise UserError(f"{folder} has weights for another framework only: use a copy of the model with safetensors.")
    raise UserError(
        f"{folder} has no weights ({bases['safetensors']}.safetensors was expected): the model is not complete."
    )


def checkpoint(repo: str, sizes: Mapping[str, int]) -> str | None:
    """The single-file checkpoint that the name of the repository alone means; None if it is no such repository.

    `sizes` are its files with their bytes. Raises UserError, which lists them, if there are several: which of them is
    meant cannot be known.
    """
    if "model.json" in sizes or "model_index.json" in sizes:
        return None
    found = [name for name in sorted(sizes) if parted(f"{repo}/{name}") and name.lower().endswith(SINGLE)
             and "/" not in name and not SHARD.fullmatch(name)
             and not ("config.json" in sizes and COMPONENT.fullmatch(name))]  # fmt: skip
    if len(found) > 1:
        some = [shown(name) + (f" ({size(sizes[name])})" if sizes[name] else "") for name in found]
        more = f" and {len(found) - 12} more" if len(found) > 12 else ""
        raise UserError(
            f"{repo} holds {len(found)} checkpoints, {', '.join(some[:12])}{more}: choose one by its name, as "
            f"{repo}/{shown(found[0])}."
        )
    return found[0] if found else None


def needed(names: Iterable[str], file: str | None = None) -> list[str]:
    """Which files of a repository make the model.

    That of the checkpoint `file`, that of a diffusers folder, or that of a folder written by `mlxldm-convert`.
    """
    names = sorted(names)
    own = {"README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, _, inner = name.rpartition("/")
        by_folder.setdefault(folder, []).append(inner)
    root = by_folder.get("", [])
    chosen = [name for name in root if name in own]
    if file is not None:
        _check_single(file, names)
        # the original code's configuration, which says what the model predicts, and a BERT's words
        beside = (f"{file.rpartition('.')[0]}.yaml", f"{file.rpartition('/')[0]}/vocab.txt".lstrip("/"))
        return [*chosen, file, *(name for name in beside if name in names)]
    tokenizers = [f"{folder}/{name}" for folder in ("tokenizer", "tokenizer_2") for name in by_folder.get(folder, [])
                  if name in TOKENIZER_FILES]  # fmt: skip
    if "model.json" in root:
        return [*chosen, "model.json", *(f"{part}.safetensors" for part in PARTS if f"{part}.safetensors" in root),
                *tokenizers]  # fmt: skip
    if "model_index.json" not in root:
        if "config.json" in root and any(BARE.fullmatch(name) for name in root):
            return [*chosen, *_component("", root)]
        if "config.json" in root:
            raise UserError(
                "it has config.json but no model_index.json and no diffusion_pytorch_model, so it is a model of "
                "another kind: use the repository of a whole text-to-image model, of a U-Net or of an autoencoder."
            )
        raise UserError(
            f"it has neither a model_index.json (a diffusers folder) nor a checkpoint at its top ({', '.join(SINGLE)}):"
            f" use another, or give one file of it as owner/name/FILE."
        )
    if "unet" not in by_folder:
        raise UserError("it has no unet: only text-to-image models with a U-Net can be read; use another.")
    chosen += ["model_index.json", *tokenizers]
    for folder in ("scheduler", "low_res_scheduler"):  # upscalers have the second
        if "scheduler_config.json" in by_folder.get(folder, []):
            chosen.append(f"{folder}/scheduler_config.json")
    for folder in COMPONENTS:
        files = by_folder.get(folder)
        if not files:
            continue
        chosen += _component(f"{folder}/", files)
    return chosen


def _component(folder: str, files: list[str]) -> list[str]:
    """The files of one component that are needed: `folder` is "" or ends with a slash."""
    weights, _ = choose_weights(folder.rstrip("/") or "the repository", files)
    chosen = [weights]
    if "config.json" in files:
        chosen.insert(0, "config.json")
    if index := re.fullmatch(r"(.+)\.(safetensors|bin)\.index(?:\.([\w-]+))?\.json", weights):
        for name in files:
            shard = SHARD.fullmatch(name)
            if shard and (shard["base"], shard["ending"], shard["early"] or shard["late"]) == index.groups():
                chosen.append(name)
    return [folder + name for name in chosen]


def _check_single(file: str, names: list[str]) -> None:
    """A UserError if `file` is not there, or is a piece of a model only."""
    if file not in names:
        there = [name for name in names if name.lower().endswith(SINGLE)]
        known = nearest(file, there) or (f" There are {', '.join(map(shown, there[:5]))}." if there else "")
        raise UserError(f"it has no file {shown(file)}.{known}")
    ours = "model.json" in names and file in (f"{part}.safetensors" for part in PARTS)
    if ours or ("model_index.json" in names and file.rpartition("/")[0] in COMPONENTS):
        raise UserError(f"{shown(file)} is one part of the model in it: give the repository's name alone.")
    if SHARD.fullmatch(file.rpartition("/")[2]):
        raise UserError(f"{shown(file)} is one of several pieces of a model: give the repository's name alone.")


def cached(name: str) -> Path | None:
    """Where owner/name or owner/name/FILE is in the hub's cache, or None. Asks nobody.

    That is the snapshot; the file itself where the snapshot holds one single-file checkpoint. Of several none is
    preferred (UserError).
    """
    repo, file = parted(name) or (name, None)
    folder = snapshot(repo)
    if folder is None:
        return None
    if file:
        return folder / file if (folder / file).is_file() else None
    file = checkpoint(repo, {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()})
    return folder / file if file else folder


def snapshot(repo: str) -> Path | None:
    """The folder of owner/name in the hub's cache as it was last fetched, whole or not; or None. Asks nobody."""
    from huggingface_hub import constants

    storage = Path(constants.HF_HUB_CACHE).expanduser() / ("models--" + repo.replace("/", "--"))
    try:
        commit = (storage / "refs" / "main").read_text().strip()
    except OSError:
        return None
    folder = storage / "snapshots" / commit
    return folder if re.fullmatch(r"[\w.-]+", commit) and folder.is_dir() else None


def pull(text: str, progress: Progress | None = None) -> Path:
    """Download the model that `text` asks for (see `wanted`) into the hub's cache, and register it by its name.

    Returns its folder, or its file if it is a single-file checkpoint. `progress` is called with the fraction done and a
    word, from this thread. Raises UserError, in one sentence, for whatever keeps the model from arriving: no such id,
    no permission, no network, too little disk, or several checkpoints to choose from.
    """
    asked = wanted(text)
    from mlxldm import store

    if progress:
        progress(0.0, f"asking for {asked.name}")
    try:
        snapshot, file = _download(asked, progress)
    except UserError:
        raise
    except Exception as error:
        explained = _explained(error, asked)
        if explained is None:
            raise
        raise explained from error
    path = snapshot / file if file else snapshot
    before = next((row["path"] for row in store.models() if row["name"] == asked.name), None)
    # a newer snapshot of the same repository replaces the older; a name that the person gave to something else stays
    ours = before is not None and Path(before).is_relative_to(os.path.abspath(snapshot.parent))
    store.register(asked.name, path, force=ours)
    if progress:
        progress(1.0, asked.name)
    return path


def _download(asked: Wanted, progress: Progress | None) -> tuple[Path, str | None]:
    """The snapshot with what was asked for in it; and the file, if it is a single-file checkpoint."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    repo = asked.repo
    endpoint = os.environ.get("HF_ENDPOINT") or None
    info = HfApi(endpoint=endpoint).model_info(repo, revision=asked.revision, files_metadata=True)
    sizes = {item.rfilename: item.size or 0 for item in info.siblings or []}
    file = asked.file or checkpoint(repo, sizes)
    try:
        files = needed(sizes, file)
    except UserError as error:
        raise UserError(f"{repo} cannot be used: {error}") from None
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    storage = cache / ("models--" + repo.replace("/", "--"))
    there = storage / "snapshots" / str(info.sha)
    missing = [name for name in files if not (there / name).exists()]
    total = sum(sizes[name] for name in missing)
    nearest_folder = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(nearest_folder).free
    started = _partial(storage)
    if total - started > free - (64 << 20):
        raise UserError(f"{repo} needs {total / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free at {shown(cache)}.")

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
            options: dict[str, Any] = {"endpoint": endpoint, "allow_patterns": only, "max_workers": 4}
            result.append(snapshot_download(repo, revision=asked.revision, **options))
        except BaseException as error:
            failure.append(error)

    # The library's own bars print; bytes on disk say the same, whatever its version, and Ctrl-C is heard at once.
    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
        while worker.is_alive():
            worker.join(0.25)
            if progress and total:
                progress(min((_stored(storage) - before) / total, 1.0), f"downloading {asked.name}")
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
    return path, file


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


def _explained(error: Exception, asked: Wanted) -> UserError | None:
    """What went wrong, as a sentence; None if it is not the world's doing."""
    from huggingface_hub import errors

    repo = asked.repo
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
    if any(isinstance(e, errors.RevisionNotFoundError) for e in chain):
        return UserError(f"{repo} has no revision '{shown(asked.revision)}': see the branches and tags on its page.")
    if any(isinstance(e, errors.RepositoryNotFoundError) for e in chain) or code in (401, 404):
        from mlxldm import store

        known = nearest(repo, [row["name"] for row in store.models() if "/" in row["name"]])
        return UserError(
            f"The hub has no model {repo}, or it is private and you are not logged in.{known} Check the id, or log in "
            f"with `hf auth login`."
        )
    if code == 429:
        return UserError(f"The hub says there were too many requests: wait some minutes, then pull {asked.name} again.")
    if code is not None and code >= 500:
        return UserError(f"The hub has trouble (error {code}): try again later; what has arrived is kept.")
    offline = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if any(isinstance(e, offline) or type(e).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests")
           for e in chain):  # fmt: skip
        return UserError(
            f"The hub cannot be reached: check the network, then pull {asked.name} again; what has arrived is kept."
        )
    return None


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    return code if isinstance(code, int) else None
