"""A model folder, streamed to disk one tensor at a time, under a temporary name until it is complete.

Half a model is never visible: everything goes to a hidden folder beside the target, is flushed to the disk, read back
by the strict reader, and only then renamed. Whatever goes wrong, the hidden folder is removed and nothing else touched.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlxldm.errors import UserError, nearest
from mlxldm.folder import LAYOUT, Folder, Manifest, open_folder
from mlxldm.tensors import Tensor, header, shown, to_bfloat16

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

Progress = Callable[[float, str], None]  # the part that is done, 0 to 1, and what is being written


def write(
    folder: Folder,
    dst: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `folder` as a model folder `dst`, which must not exist yet. Returns its path.

    `dtype` is "float16", "float32" or "bfloat16"; None keeps each tensor as it is stored. Raises UserError if the
    target exists, the disk is too small, or a number does not fit the dtype; in every case nothing is left behind.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"The dtype '{dtype}' is not known.{nearest(dtype, DTYPES)} Known are {', '.join(DTYPES)}.")
    dst = Path(os.path.abspath(os.path.expanduser(dst)))
    if os.path.lexists(dst):
        raise UserError(f"{shown(dst)} exists already: choose another name, or remove it first.")
    if not dst.parent.is_dir():
        raise UserError(f"There is no folder {shown(dst.parent)} to write into: create it first.")

    plans = {part: _stored(folder.names(part), dtype) for part in folder.manifest.parts}
    total = sum(tensor.nbytes for tensors in plans.values() for tensor in tensors.values())
    free = shutil.disk_usage(dst.parent).free
    if free < total * 1.02 + (1 << 20):
        raise UserError(
            f"The model needs {total / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free at {shown(dst.parent)}."
        )
    hidden = dst.parent / f".{dst.name}.part-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        os.mkdir(hidden)
        done = 0
        for part, tensors in plans.items():
            done = _part(folder, part, tensors, hidden / f"{part}.safetensors", done, total, progress)
        for number, part in ((1, "text"), (2, "text_2")):
            if part in folder.manifest.parts:
                _tokenizer(folder, number, hidden)
        manifest = _manifest(folder, dst.name, dtype)
        text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        _file(hidden / "model.json", text.encode("utf-8"))
        _sync_folder(hidden)
        open_folder(hidden)  # as strict as any later reader
        os.rename(hidden, dst)
        _sync_folder(dst.parent)
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk at {shown(dst.parent)} is full: nothing was written.") from None
        raise UserError(f"{shown(dst)} cannot be written: {error.strerror or error}.") from error
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return dst


def _stored(tensors: dict[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """The tensors as they will be written."""
    if dtype is None:
        return tensors
    return {name: Tensor(DTYPES[dtype], tensor.shape) for name, tensor in tensors.items()}


def _part(
    folder: Folder, part: str, tensors: dict[str, Tensor], path: Path, done: int, total: int, progress: Progress | None
) -> int:
    marks = {"format": "mlxldm", "layout": LAYOUT, "part": part}
    with os.fdopen(_create(path), "wb", buffering=0) as file:
        _all(file.fileno(), header(tensors, marks))
        for name, tensor in tensors.items():
            array = _cast(folder.read(part, name), tensor.dtype, f"{part}: {name}")
            assert array.shape == tensor.shape, f"{part}: {name} is {array.shape}, planned {tensor.shape}"
            _all(file.fileno(), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            done += tensor.nbytes
            if progress:
                progress(done / max(total, 1), part)
        _sync(file.fileno())
    return done


def _cast(array: np.ndarray, dtype: str, what: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise UserError(f"{shown(what)} holds NaN or infinite numbers: the checkpoint is damaged.")
    if dtype == "BF16":
        return to_bfloat16(array)
    wanted = np.dtype({"F32": "<f4", "F16": "<f2"}[dtype])
    if array.dtype == wanted:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if not np.isfinite(cast).all():
        raise UserError(f"{shown(what)} has numbers too large for float16: use --dtype bfloat16 or float32.")
    return cast


def _tokenizer(folder: Folder, number: int, hidden: Path) -> None:
    home = hidden / ("tokenizer" if number == 1 else f"tokenizer_{number}")
    os.mkdir(home)
    for name, data in folder.tokenizer_files(number).items():
        _file(home / name, data)
    _sync_folder(home)


def _manifest(folder: Folder, name: str, dtype: str | None) -> Manifest:
    """The folder's manifest under its new name, with the sums of the files it came from and the dtype it has now."""
    source = dict(folder.manifest.source)
    if hasattr(folder, "hashes"):
        source["sha256"] = folder.hashes()
    if dtype is not None:
        source["dtype"] = dtype
    return dataclasses.replace(folder.manifest, name=name, source=source)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o644)


def _file(path: Path, data: bytes) -> None:
    with os.fdopen(_create(path), "wb", buffering=0) as file:
        _all(file.fileno(), data)
        _sync(file.fileno())


def _all(number: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(number, rest[: 1 << 26]) :]


def _sync(number: int) -> None:
    """Through to the disk itself; on a Mac fsync alone stops at the drive's own memory."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(number, fcntl.F_FULLFSYNC)
    else:
        os.fsync(number)


def _sync_folder(path: Path) -> None:
    """Make new names in a folder last; systems that cannot open folders do it themselves."""
    if os.name != "posix":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
