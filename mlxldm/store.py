"""Where models live on this machine, and how a name becomes one.

A name is, in this order: the embedded model ("scenes", or none given), a path, a model in the user's models folder, a
model registered there from elsewhere, or a hub id that is in the hub's cache already. Each registered model is a small
file of its own, `NAME.json` with the path, made in one step: two programs registering at once lose nothing. A disk that
is not there now is a state, not an error.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlxldm.errors import UserError, nearest
from mlxldm.folder import Folder, Manifest, open_folder, read_json
from mlxldm.tensors import shown

EMBEDDED = "scenes"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")

Present = Callable[[Path], Folder]


def home() -> Path:
    """The user's models folder: `$MLXLDM_HOME/models`, or where this system keeps a program's data."""
    own = os.environ.get("MLXLDM_HOME")
    if own:
        return Path(own).expanduser() / "models"
    import platformdirs

    return platformdirs.user_data_path("mlxldm") / "models"


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
    if NAME.fullmatch(name):
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
            from mlxldm.hub import cached

            snapshot = cached(name)
            if snapshot is not None:
                return snapshot
    if _exists(path):
        return path
    known = [EMBEDDED, *(row["name"] for row in models())]
    if "/" in name:
        raise UserError(
            f"There is no folder '{shown(name)}' and no such model on this machine.{nearest(name, known)} To download "
            f"it from the hub: mlxldm pull {shown(name)}"
        )
    raise UserError(
        f"There is no model '{shown(name)}'.{nearest(name, known)} Known are: {', '.join(dict.fromkeys(known))}."
    )


def register(name: str, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Remember that `name` is the model at `path`.

    A name that means another model already is left alone (UserError), unless `force`.
    """
    if not NAME.fullmatch(name) or name == EMBEDDED:
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
    content = json.dumps({"name": name, "path": str(target)}, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{entry.name}.{os.getpid()}-{secrets.token_hex(4)}"
        temporary.write_text(content, encoding="utf-8")
        try:
            if force:
                os.replace(temporary, entry)
            else:
                os.link(temporary, entry)  # fails if it exists, unlike a rename
        except FileExistsError:
            before = _registered(name)
            if before is None or before.resolve() != target.resolve():
                raise UserError(
                    f"The name '{name}' is taken by the model at {shown(before)}: choose another name, or "
                    f"remove {shown(entry)} (the model itself stays)."
                ) from None
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be written: {error.strerror or error}.") from error


def forget(name: str) -> None:
    """Drop a registered name; the model itself stays where it is."""
    if not NAME.fullmatch(name) or not (home() / _entry(name)).exists():
        raise UserError(f"No model '{shown(name)}' is registered.{nearest(name, [row['name'] for row in models()])}")
    (home() / _entry(name)).unlink()


def models() -> list[dict[str, Any]]:
    """Every model known here, the embedded one first: name, family, state, path, bytes.

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
            name = entry.stem.replace("--", "/", 1)
            path = _registered(name)
            if path is not None:
                yield name, path


def _row(name: str, path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "family": None, "state": "ready", "path": str(path), "bytes": None}
    if not _exists(path):
        return {**row, "state": "not there"}
    if (path / "model.json").exists():
        try:
            row["family"] = Manifest.from_json(read_json(path / "model.json")).family
            row["bytes"] = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        except (UserError, OSError):
            row["state"] = "damaged"
    return row


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system, a folder we may not look into
        return False


def _entry(name: str) -> str:
    return name.replace("/", "--") + ".json"


def _registered(name: str) -> Path | None:
    """Where a registered name points, or None; a damaged entry counts as none."""
    entry = home() / _entry(name)
    if not entry.is_file():
        return None
    try:
        values = read_json(entry)
    except UserError:
        return None
    path = values.get("path") if isinstance(values, dict) else None
    return Path(path) if isinstance(path, str) and path and "\0" not in path else None
