"""Where models live on this machine, and how a name becomes one.

A name is, in this order: the embedded model ("scenes", or none given), a path, a model in the user's models folder, a
model registered there from elsewhere, a hub id that is in the hub's cache already (owner/name, or owner/name/FILE for
one checkpoint of several), or a checkpoint in one of the folders that were added. LoRAs and textual inversions, whose
files are called anything, are added alone or in folders, and never registered: a model may have the name of one. Each
registered model and each added folder or file is a small file of its own, made in one step: two programs registering at
once lose nothing. A disk that is not there now is a state, not an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxldm.errors import UserError, nearest
from mlxldm.folder import Folder, Manifest, open_folder, read_json
from mlxldm.hub import BARE, SHARD, cached, parted
from mlxldm.tensors import shown

EMBEDDED = "scenes"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")

Present = Callable[[Path], Folder]
# What the converter sees in a checkpoint from its header: family, prediction, dtypes, bytes, kind, or what is wrong.
Look = Callable[[Path], dict[str, Any]]

CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_LOOKING = threading.Lock()
DEPTH = 6  # folders below an added one
LOOKS = 3  # of a checkpoint, by what is asked of it: one that was kept from before it was is looked at again


def home() -> Path:
    """The user's models folder: `$MLXLDM_HOME/models`, or where this system keeps a program's data."""
    own = os.environ.get("MLXLDM_HOME")
    if own:
        return Path(own).expanduser() / "models"
    import platformdirs

    return platformdirs.user_data_path("mlxldm") / "models"


def cache() -> Path:
    """The folder for what can be made again: `$MLXLDM_HOME/cache`, or where this system keeps such things."""
    own = os.environ.get("MLXLDM_HOME")
    if own:
        return Path(own).expanduser() / "cache"
    import platformdirs

    return platformdirs.user_cache_path("mlxldm")


def wildcards() -> Path:
    """The user's folder of wildcards, beside the models: text files, which `__name__` in a prompt is a line of."""
    return home().parent / "wildcards"


def embedded() -> Path:
    """The folder of the model that ships with the package."""
    return Path(__file__).parent / EMBEDDED


def find(name: str | None, present: Present | None = None) -> Folder:
    """The model that `name` means, opened.

    `present` shows other programs' folders as ours (the converter's `view`); without it only folders written by
    `mlxldm-convert` open. Raises UserError, with the nearest names, if there is no such model.
    """
    if name is None or name == EMBEDDED:
        if not (embedded() / "model.json").exists():
            raise UserError("This installation has no embedded model: install mlxldm again, or give --model.")
        return open_folder(embedded())
    path = locate(name)
    if (path / "model.json").exists():
        return open_folder(path)
    if present is not None:
        return present(path)
    raise UserError(f"{shown(path)} was not written by mlxldm-convert: run mlxldm-convert {shown(path)} first.")


def locate(name: str) -> Path:
    """The path that `name` means, existing; or a UserError."""
    if not name or "\0" in name:
        raise UserError("The model's name is empty; give a name, a folder or a hub id.")
    path = Path(name).expanduser()
    if name.startswith((".", "~")) or path.is_absolute() or (os.sep in name and _exists(path)):
        if not _exists(path):
            raise UserError(f"There is no file or folder {shown(path)}.")
        return path
    if _is_name(name):
        registered = _registered(name)
        if registered is not None:
            if not _exists(registered):
                raise UserError(
                    f"The model '{name}' is registered at {shown(registered)}, which is not there now: is its disk "
                    f"connected? If it moved, register it again."
                )
            return registered
        if (home() / name).is_dir():
            return home() / name
        if "/" in name:
            snapshot = cached(name)
            if snapshot is not None:
                return snapshot
        inside = [path for path in _added() if name in (path.name, _name(path))]
        if len(inside) > 1:
            raise UserError(
                f"'{name}' is the name of {len(inside)} checkpoints ({', '.join(shown(path) for path in inside[:3])}): "
                f"give the path of one."
            )
        if inside:
            return inside[0]
    if _exists(path):
        return path
    known = [EMBEDDED, *(row["name"] for row in models())]
    if "/" in name:
        raise UserError(
            f"There is no file or folder '{shown(name)}' and no such model on this machine.{nearest(name, known)} To "
            f"download it from the hub: mlxldm pull {shown(name)}"
        )
    raise UserError(
        f"There is no model '{shown(name)}'.{nearest(name, known)} Known are: {', '.join(dict.fromkeys(known))}."
    )


def recall(name: str, digest: str | None) -> str | None:
    """The model that another program called `name`, or that has the hash it wrote; None if it is not here.

    `digest`: the first digits of the sha256 of its file, or eight of A1111's old kind (of 64 KB in it). Files are read
    for it only where no name fits; a file's digest is kept, and asked again when its size or time has changed.
    """
    ready = [row for row in models() if row["state"] == "ready"]
    inside = list(_added())
    plain = {_plainly(_name(path)): str(path) for path in inside}
    plain |= {_plainly(row["name"]): row["name"] for row in ready}
    if _plainly(name) in plain:
        return plain[_plainly(name)]
    if digest is None:
        return None
    files = {str(path): path for path in inside if path.is_file()}
    for row in ready:
        path = Path(row["path"])
        if path.is_file():
            files[row["name"]] = path
        elif (path / "model.json").exists():
            sums = Manifest.from_json(read_json(path / "model.json")).source.get("sha256")
            if isinstance(sums, dict) and any(str(one).startswith(digest) for one in sums.values()):
                return str(row["name"])
    of = _old_hash if len(digest) == 8 else _sha256
    return next((known for known, path in files.items() if of(path).startswith(digest)), None)


def _plainly(name: str) -> str:
    """A name as it is compared: programs differ in capitals, spaces and signs."""
    return "".join(letter for letter in name.rpartition("/")[2].lower() if letter.isalnum())


def _old_hash(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def _sha256(path: Path) -> str:
    return digests(path)[0]


def digests(path: Path) -> tuple[str, str]:
    """The sha256 of a file, and of the numbers in it alone; of what is no safetensors file, the first one twice.

    The second is what A1111 and kohya's trainers know a LoRA by: it stays the same when the metadata are changed.
    """
    memory = home() / ".digests.json"
    try:
        known = read_json(memory)
    except UserError:
        known = {}
    known = known if isinstance(known, dict) else {}
    entry = known.get(str(path))
    if isinstance(entry, dict) and entry.get("mark") == _mark(path):
        whole, tensors = entry.get("sha256"), entry.get("tensors")
        if isinstance(whole, str) and isinstance(tensors, str):
            return whole, tensors
    whole, tensors = _summed(path)
    with contextlib.suppress(UserError):  # a cache that cannot be kept costs time, no more
        write_json(memory, {**known, str(path): {"mark": _mark(path), "sha256": whole, "tensors": tensors}})
    return whole, tensors


def _summed(path: Path) -> tuple[str, str]:
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if path.suffix.lower() != ".safetensors" or length > path.stat().st_size:
            length = -8
        whole.update(head + file.read(max(length, 0)))
        if length < 0:
            tensors.update(head)
        while block := file.read(1 << 20):
            whole.update(block)
            tensors.update(block)
    return whole.hexdigest(), tensors.hexdigest()


# LoRAs and textual inversions.


def adapter_files() -> list[Path]:
    """Every file among what was added: LoRAs and textual inversions are some of them."""
    return [path for path in _added() if path.is_file()]


def adapters(look: Look) -> list[dict[str, Any]]:
    """The LoRAs and textual inversions among what was added, as `scan` has them: name, path, what, names, sha256 ..."""
    return [row for row in scan(look) if row.get("what")]


def locate_adapter(name: str, look: Look, is_one: Callable[[Path], bool]) -> Path:
    """The file of a LoRA or textual inversion: a path; or one that was added, alone or in a folder, by its name, that
    which its trainer gave it, or the beginning of its hash.

    Capitals count only where they tell two apart. `is_one` says of a file whether it is such a thing, for whatever
    model; it is asked where several have the name. UserError if there is none, or more than one.
    """
    path = Path(name).expanduser()
    if _exists(path) and path.is_file():
        return path
    files = adapter_files()

    def fitting(fold: Callable[[str], str]) -> list[Path]:
        return [file for file in files if fold(name) in (fold(file.stem), fold(file.name))]

    found = fitting(str) or fitting(str.casefold)
    if len(found) > 1:
        found = [file for file in found if is_one(file)]
    rows = [] if found else adapters(look)
    for fold in (str, str.casefold):
        found = found or [Path(row["path"]) for row in rows if fold(name) in map(fold, row["names"])]
    if not found and re.fullmatch("[0-9a-f]{8,64}", name.lower()):
        found = [Path(row["path"]) for row in rows if _is_digest(row, name.lower())][:1]
    if len(found) > 1:
        raise UserError(
            f"'{shown(name)}' is the name of {len(found)} files ({', '.join(shown(file) for file in found[:3])}): give "
            f"the path of one."
        )
    if not found:
        near = nearest(name, [file.stem for file in files] + [called for row in rows for called in row["names"]])
        raise UserError(
            f"There is no LoRA or textual inversion '{shown(name)}' here.{near} Give its path, or add it or the folder "
            f"it is in with: mlxldm models add FILE|FOLDER"
        )
    return found[0]


def recall_adapter(name: str, digest: str | None, look: Look, kind: str) -> tuple[str, bool] | None:
    """The "LoRA" or "textual inversion" (`kind`) that another program called `name`, or that has the hash it
    wrote; None if it is not here. And whether it has that hash, where there is one.

    What it is called here is a name that `locate_adapter` finds. All files are read for a hash only where what has the
    name has another one, or nothing has it.
    """
    rows = [row for row in adapters(look) if row["what"] == kind]
    plain = _plainly(name)
    named = [row for row in rows if plain and plain in map(_plainly, (row["name"], *row["names"]))]
    found = named[:1]
    if digest is not None:
        rest = [row for row in rows if row not in named]
        same = next((row for row in named + rest if _is_digest(row, digest)), None)
        if same is not None:
            found, digest = [same], None
    if not found:
        return None
    name, path = found[0]["name"], found[0]["path"]
    return (name if sum(row["name"] == name for row in rows) == 1 else path), digest is None


def _is_digest(row: dict[str, Any], digest: str) -> bool:
    path = Path(row["path"])
    if (row["sha256"] or "").startswith(digest):
        return True
    return any(one.startswith(digest) for one in digests(path)) or len(digest) == 8 and _old_hash(path) == digest


def fingerprint(path: Path, kind: str, look: Look) -> str:
    """What A1111 writes of a LoRA or textual inversion into its pictures: twelve digits."""
    whole, tensors = digests(path)
    if kind != "LoRA":
        return whole[:12]
    return str(looked([path], look)[path].get("sha256") or tensors)[:12]


def register(name: str, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Remember that `name` is the model at `path`.

    A name that means another model already is left alone (UserError), unless `force`.
    """
    if not _is_name(name) or name == EMBEDDED:
        raise UserError(f"'{shown(name)}' cannot be a model's name: letters, digits, '.', '_' and '-' make one.")
    target = Path(os.path.abspath(path))
    if not target.exists():
        raise UserError(f"There is no file or folder {shown(target)}.")
    folder = home()
    taken = folder / name
    if taken.is_dir():
        if taken.resolve() == target.resolve():
            return
        raise UserError(f"The name '{name}' is taken by the model at {shown(taken)}: choose another name.")
    entry = folder / _entry(name)
    if not write_json(entry, {"name": name, "path": str(target)}, replace=force):
        before = _registered(name)
        if before is None or before.resolve() != target.resolve():
            raise UserError(
                f"The name '{name}' is taken by the model at {shown(before)}: choose another name, or "
                f"remove {shown(entry)} (the model itself stays)."
            )


def write_json(entry: Path, values: dict[str, Any], replace: bool = True) -> bool:
    """Write a small file in one step; False if it exists and must not be replaced."""
    content = json.dumps(values, ensure_ascii=False) + "\n"
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.parent / f".{entry.name}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            temporary.write_text(content, encoding="utf-8")
            if replace:
                os.replace(temporary, entry)
            else:
                os.link(temporary, entry)  # fails if it exists, unlike a rename
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{shown(entry.parent)} cannot be written: {error.strerror or error}.") from error
    return True


def add_folder(path: str | os.PathLike[str]) -> Path:
    """Remember a folder whose checkpoints are models from now on, where they are. Returns its whole path."""
    target = Path(os.path.abspath(os.path.expanduser(path)))
    if not target.is_dir():
        raise UserError(f"There is no folder {shown(target)}.")
    return _remember(target)


def add_file(path: str | os.PathLike[str]) -> Path:
    """Remember one file as if its folder had been added and held nothing else. Returns its whole path."""
    target = Path(os.path.abspath(os.path.expanduser(path)))
    if not target.is_file():
        raise UserError(f"There is no file {shown(target)}.")
    return _remember(target)


def _remember(target: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
    write_json(home() / ".folders" / f"{digest}.json", {"path": str(target)})
    return target


def folders() -> list[Path]:
    """The added folders and files, sorted; those that are not there now among them."""
    found = []
    for entry in sorted((home() / ".folders").glob("*.json")):
        path = _path_in(entry)
        if path is not None:
            found.append(path)
    return sorted(found)


def scan(look: Look) -> list[dict[str, Any]]:
    """Every checkpoint among what was added: name, state, path, bytes and what `look` says of it.

    `look` reads headers only, and is asked again only for a file whose size or time changed since, or that of the
    description beside it.
    """
    rows: list[dict[str, Any]] = [
        {"name": folder.name, "family": None, "state": "not there", "path": str(folder), "bytes": None}
        for folder in folders() if not _exists(folder)
    ]  # fmt: skip
    paths = list(_added())
    says = looked(paths, look)
    return rows + [{"name": _name(path), "path": str(path), **says[path]} for path in paths]


def looked(paths: Sequence[Path], look: Look) -> dict[Path, dict[str, Any]]:
    """What `look` says of files and folders, or said before of those that have not changed since.

    Of several threads that ask at once, as for a first list of two hundred files, one looks and the others wait.
    """
    with _LOOKING:
        return _looked(paths, look)


def _looked(paths: Sequence[Path], look: Look) -> dict[Path, dict[str, Any]]:
    memory = home() / ".seen.json"
    try:
        seen = read_json(memory)
    except UserError:
        seen = {}
    seen = seen if isinstance(seen, dict) else {}
    fresh = {path: about for path, about in seen.items() if _exists(Path(path))}
    for path in paths:
        beside = path.with_suffix(".json")
        mark = [LOOKS, *_mark(path), *(_mark(beside) if path.is_file() and beside.is_file() else ())]
        known = fresh.get(str(path))
        if not isinstance(known, dict) or known.get("mark") != mark:
            fresh[str(path)] = {"mark": mark, "says": look(path)}
    if fresh != seen:
        with contextlib.suppress(UserError):  # a cache that cannot be kept costs time, no more
            write_json(memory, fresh)
    return {path: fresh[str(path)]["says"] for path in paths}


def _added() -> Iterator[Path]:
    """Every checkpoint in the added folders that are there, and every added file, each once."""
    found = (path for folder in folders() if _exists(folder) for path in _checkpoints(folder))
    yield from dict.fromkeys(found)


def _name(path: Path) -> str:
    """What a checkpoint is called that nobody gave a name."""
    return path.stem if path.is_file() else path.name


def _checkpoints(folder: Path) -> Iterator[Path]:
    """Model folders, and files that end like checkpoints, below `folder`, or itself; links are not followed."""
    if folder.is_file():
        yield folder
        return
    base = len(folder.parts)
    for root, inner, files in os.walk(folder):
        here = Path(root)
        if "model.json" in files or "model_index.json" in files:
            inner.clear()
            yield here
            continue
        if "config.json" in files and any(BARE.fullmatch(name) for name in files):
            yield here  # an autoencoder's or a U-Net's own repository
            files = [name for name in files if not BARE.fullmatch(name) and not SHARD.fullmatch(name)]
        inner[:] = sorted(name for name in inner if not name.startswith(".")) if len(here.parts) - base < DEPTH else []
        for name in sorted(files):
            if name.lower().endswith(CHECKPOINTS) and not name.startswith("."):
                yield here / name


def _mark(path: Path) -> list[int]:
    """Size and time of a file; of a folder, those of all the files in it together."""
    if path.is_file():
        about = path.stat()
        return [about.st_size, about.st_mtime_ns]
    stats = [entry.stat() for entry in path.rglob("*") if entry.is_file()]
    return [sum(about.st_size for about in stats), max((about.st_mtime_ns for about in stats), default=0)]


def forget(name: str) -> None:
    """Drop a registered name, or an added folder or file; what they stand for stays where it is."""
    for entry in (home() / ".folders").glob("*.json"):
        if _path_in(entry) == Path(os.path.abspath(os.path.expanduser(name))):
            entry.unlink()
            return
    if not _is_name(name) or not (home() / _entry(name)).exists():
        raise UserError(f"No model '{shown(name)}' is registered.{nearest(name, [row['name'] for row in models()])}")
    (home() / _entry(name)).unlink()


def models() -> list[dict[str, Any]]:
    """Every model known here, the embedded one first: name, family, state, path, bytes.

    Those in our own format have their task and defaults, too.

    `state` is "ready", "not there" (its disk is not connected, or it was moved) or "damaged"; family and bytes are None
    where they are not known without opening the whole model.
    """
    rows = []
    if (embedded() / "model.json").exists():
        rows.append(_row(EMBEDDED, embedded()))
    rows += [_row(name, path) for name, path in sorted(_all())]
    return rows


def _all() -> Iterator[tuple[str, Path]]:
    folder = home()
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and (entry / "model.json").exists():
            yield entry.name, entry
        elif entry.suffix == ".json" and entry.is_file():
            path = _path_in(entry)
            if path is not None:
                said = read_json(entry).get("name")
                known = isinstance(said, str) and _entry(said) == entry.name
                yield said if known else entry.stem.replace("--", "/", 1), path


def _row(name: str, path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "family": None, "state": "ready", "path": str(path), "bytes": None}
    if not _exists(path):
        return {**row, "state": "not there"}
    if (path / "model.json").exists():
        try:
            manifest = Manifest.from_json(read_json(path / "model.json"))
            row |= {"family": manifest.family, "task": manifest.task, "defaults": asdict(manifest.defaults)}
            row["bytes"] = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        except (UserError, OSError):
            row["state"] = "damaged"
    elif path.is_file():
        row["bytes"] = path.stat().st_size
    return row


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system, a folder we may not look into
        return False


def _is_name(name: str) -> bool:
    return bool(NAME.fullmatch(name) or parted(name))


def _entry(name: str) -> str:
    plain = name.replace("/", "--")
    if len(plain) > 200 or not re.fullmatch(r"[A-Za-z0-9._-]+", plain):  # a file on the hub may be called anything
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)[:100]
        plain = f"{readable}--{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return plain + ".json"


def _registered(name: str) -> Path | None:
    """Where a registered name points, or None; a damaged entry counts as none."""
    return _path_in(home() / _entry(name))


def _path_in(entry: Path) -> Path | None:
    if not entry.is_file():
        return None
    try:
        values = read_json(entry)
    except UserError:
        return None
    path = values.get("path") if isinstance(values, dict) else None
    return Path(path) if isinstance(path, str) and path and "\0" not in path else None
