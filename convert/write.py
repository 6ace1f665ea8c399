"""A model folder, streamed to disk one tensor at a time, under a temporary name until it is complete.

Half a model is never visible: everything goes to a hidden folder beside the target, is flushed to the disk, read back
by the strict reader, and only then renamed. Whatever goes wrong, the hidden folder is removed and nothing else touched;
what a killed run could not remove, the next one does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import queue
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm import quantized
from mlxldm.errors import UserError, nearest
from mlxldm.folder import LAYOUT, Folder, Manifest, Packed, beside, open_folder
from mlxldm.tensors import Tensor, from_bfloat16, header, shown, to_bfloat16

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

# Linears that stay as they are: a few small ones whose error every pixel of every step would carry.
NOT_QUANTIZED = ("time_embedding.", "add_embedding.", "class_embedding.", "text_projection.", ".embeddings.", ".embed_")
FLUSH = 1 << 27  # bytes after which the disk is made to begin, so that it is not idle until the end

Progress = Callable[[int, int, str], None]  # bytes that are done, bytes in all, and the part that is being written


@dataclass
class Outcome:
    """What became of one part: counted and measured while it was written."""

    bytes: int = 0
    sha256: str = ""
    values: int = 0
    not_finite: int = 0
    quantized: int = 0  # matrices
    saved: int = 0  # bytes, against the same in half precision
    error: float = 0.0  # of all quantized matrices: root mean square, relative to theirs
    kept: dict[str, int] = field(default_factory=dict)  # matrices that were not quantized: {why: how many}


@dataclass(frozen=True)
class Written:
    """A folder that was written: where, and what became of each part."""

    path: Path
    parts: dict[str, Outcome]
    source: dict[str, str]  # sha256 of every weight file it came from


def write(
    folder: Folder,
    dst: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    bits: int | None = None,
    group: int = 64,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write `folder` as a model folder `dst`, which must not exist yet.

    `dtype` is "float16", "float32" or "bfloat16"; None keeps each tensor as it is stored. With `bits` (2, 3, 4, 5, 6
    or 8) the Linears of U-Net and text encoders become MLX's affine codes in groups of `group`, or of the next smaller
    size that divides a matrix' width; all else becomes `dtype`, float16 unless it says bfloat16.

    Raises UserError if the target exists, the disk is too small, a number does not fit the dtype, or is none (unless
    `allow_nonfinite`); in every case nothing is left behind.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"The dtype '{dtype}' is not known.{nearest(dtype, DTYPES)} Known are {', '.join(DTYPES)}.")
    if bits is not None and (bits not in quantized.BITS or group not in quantized.GROUPS):
        raise UserError(
            f"{bits} bits in groups of {group} are not possible: bits are {_list(quantized.BITS)}, groups "
            f"{_list(quantized.GROUPS)}."
        )
    if bits is not None and dtype == "float32":
        raise UserError("A quantized model keeps the rest in half precision: say --dtype float16 or bfloat16, or none.")
    if bits is not None and folder.manifest.quantization is not None:
        raise UserError(
            f"{folder.manifest.name} is quantized already, and twice would only add its errors: convert the original."
        )
    dst = Path(os.path.abspath(os.path.expanduser(dst)))
    nothing_there(dst)

    recipe = Recipe(dtype if bits is None else dtype or "float16", bits, group)
    plans = {part: recipe.stored(folder, part) for part in folder.manifest.parts}
    total = sum(tensor.nbytes for plan in plans.values() for tensors in plan.values() for tensor in tensors.values())
    with hiding(dst) as hidden, ThreadPoolExecutor(1) as beside_it:
        free = shutil.disk_usage(dst.parent).free
        if free < total * 1.02 + (1 << 20):
            raise UserError(
                f"The model needs {total / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free at {shown(dst.parent)}."
            )
        # read a second time, but by another core and mostly from the system's cache
        sums = beside_it.submit(folder.hashes)
        parts: dict[str, Outcome] = {}
        done = 0
        files: dict[str, _Output] = {}
        with contextlib.ExitStack() as closing:  # at the end: the disk works on one part while the next is read
            for part, plan in plans.items():
                file = files[part] = closing.enter_context(_Output(hidden / f"{part}.safetensors"))
                outcome = parts[part] = _part(folder, part, plan, recipe, file, done, total, progress)
                done += outcome.bytes
                if outcome.not_finite and not allow_nonfinite:
                    raise UserError(_not_finite(part, outcome, folder, plan))
        for part, file in files.items():
            parts[part].sha256 = file.sha256
        for number, part in ((1, "text"), (2, "text_2")):
            if part in folder.manifest.parts:
                _tokenizer(folder, number, hidden)
        source = sums.result()
        manifest = _manifest(folder, dst.name, recipe, source)
        text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        _file(hidden / "model.json", text.encode("utf-8"))
        sync_folder(hidden)
        open_folder(hidden)  # as strict as any later reader
        os.rename(hidden, dst)
        sync_folder(dst.parent)
    return Written(dst, parts, source)


def check(folder: Folder, progress: Progress | None = None) -> dict[str, Outcome]:
    """Read every tensor, write nothing: the numbers counted, and those that are none."""
    parts: dict[str, Outcome] = {}
    total = sum(folder.nbytes(part) for part in folder.manifest.parts)
    done = 0
    for part in folder.manifest.parts:
        outcome = parts[part] = Outcome()
        for name, tensor in folder.names(part).items():
            quantized_already = name in folder.groups(part)
            bits = folder.read(part, name) if quantized_already else folder.raw(part, name)
            outcome.not_finite += not_finite(bits, tensor.dtype)
            outcome.values += math.prod(tensor.shape)
            done += tensor.nbytes
            if progress:
                progress(done, total, part)
    return parts


@dataclass(frozen=True)
class Recipe:
    """What tensors are stored as."""

    dtype: str | None
    bits: int | None
    group: int

    def stored(self, folder: Folder, part: str) -> dict[str, dict[str, Tensor]]:
        """For each tensor of ours, the one or three that will be written for it."""
        plan: dict[str, dict[str, Tensor]] = {}
        already = folder.groups(part)
        for name, tensor in folder.names(part).items():
            bits: int | None = self.bits
            group = self.group_of(part, name, tensor.shape)
            if name in already and self.dtype is None:
                bits, group = (folder.manifest.quantization or {})["bits"], already[name]
            if bits is not None and group is not None:
                codes, scales, biases = quantized.packed_shapes(tensor.shape, bits, group)
                plan[name] = {
                    name: Tensor("U32", codes),
                    beside(name, "scales"): Tensor("F16", scales),
                    beside(name, "biases"): Tensor("F16", biases),
                }
            else:
                plan[name] = {name: Tensor(DTYPES[self.dtype], tensor.shape) if self.dtype else tensor}
        return plan

    def group_of(self, part: str, name: str, shape: tuple[int, ...]) -> int | None:
        """The group in which a matrix is quantized; None for what is not."""
        if self.bits is None or self.stays(part, name, shape) is not None:
            return None
        return quantized.group_for(shape[1], self.group)

    def stays(self, part: str, name: str, shape: tuple[int, ...]) -> str | None:
        """Why a matrix is not quantized, None if it is; "" for what is no matrix."""
        if len(shape) != 2 or not name.endswith(".weight"):
            return ""
        if part == "vae":
            return "the autoencoder has next to none, and every pixel passes through them"
        if part in ("classes", "rescaler") or any(mark in name for mark in NOT_QUANTIZED):
            return "embeddings and projections of time and text: small, and used by everything"
        if quantized.group_for(shape[1], self.group) is None:
            return f"a width that no group of {min(quantized.GROUPS)} divides"
        return None


def _part(
    folder: Folder,
    part: str,
    plan: dict[str, dict[str, Tensor]],
    recipe: Recipe,
    file: _Output,
    before: int,
    total: int,
    progress: Progress | None,
) -> Outcome:
    """Hand all tensors of a part over to `file`; what became of them, but for the sum, which is known at its end."""
    outcome = Outcome()
    tensors = {name: tensor for some in plan.values() for name, tensor in some.items()}
    marks = {"format": "mlxldm", "layout": LAYOUT, "part": part}
    found, already = folder.names(part), folder.groups(part)
    off = whole = 0.0
    file.write(header(tensors, marks))
    for name, some in plan.items():
        if len(some) == 3:
            if recipe.bits is None:
                packed = folder.packed(part, name)
            else:
                packed, wrong, size = _quantize(folder, part, name, some, recipe)
                off, whole = off + wrong, whole + size
            outcome.quantized += 1
            outcome.saved += 2 * math.prod(found[name].shape) - sum(t.nbytes for t in some.values())
            arrays = [packed.codes, packed.scales, packed.biases]
        else:
            bits = folder.read(part, name) if name in already else folder.raw(part, name)
            array, bad = _cast(bits, found[name].dtype, some[name].dtype, part, name)
            outcome.not_finite += bad
            arrays = [array]
            why = recipe.stays(part, name, some[name].shape) if recipe.bits else None
            if why:
                outcome.kept[why] = outcome.kept.get(why, 0) + 1
        outcome.values += math.prod(found[name].shape)
        for tensor, array in zip(some.values(), arrays, strict=True):
            assert array.shape == tensor.shape, f"{part}: {name} is {array.shape}, planned {tensor.shape}"
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            outcome.bytes += tensor.nbytes
        if progress:
            progress(before + outcome.bytes, total, part)
    outcome.error = math.sqrt(off / whole) if whole else 0.0
    return outcome


def _quantize(
    folder: Folder, part: str, name: str, some: dict[str, Tensor], recipe: Recipe
) -> tuple[Packed, float, float]:
    """The codes, the sum of their squared errors, and that of the squared weights."""
    assert recipe.bits is not None
    weight = folder.read(part, name)
    group = weight.shape[1] // some[beside(name, "scales")].shape[1]
    if weight.dtype == np.float64:
        weight = weight.astype(np.float32)
    try:
        three = quantized.quantize(weight, recipe.bits, group)
    except UserError as error:
        raise UserError(f"{part}: {shown(name)}: {error}") from None
    size = float(np.square(weight, dtype=np.float64).sum()) if weight.size < 1 << 20 else _squares(weight)
    wrong = quantized.error(weight, *three, recipe.bits, group) ** 2 * size if size else 0.0
    return Packed(*three, recipe.bits, group), wrong, size


def _squares(weight: np.ndarray) -> float:
    """The sum of squares, a block of rows at a time: as float64 the whole would be four times as large as it is."""
    return sum(float(np.square(rows, dtype=np.float64).sum()) for rows in np.array_split(weight, 64))


EXPONENT = {"F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80), "F32": (np.uint32, 0x7F800000)}


def not_finite(bits: np.ndarray, dtype: str) -> int:
    """How many of the stored numbers are NaN or infinite: those whose exponent is all ones. Five times as fast as
    np.isfinite on float16."""
    kind, mask = EXPONENT[dtype]
    words = bits.reshape(-1).view(kind)
    step = 1 << 20
    blocks = (words[i : i + step] for i in range(0, words.size, step))
    return sum(int(np.count_nonzero((block & mask) == mask)) for block in blocks)


def _cast(bits: np.ndarray, found: str, wanted: str, part: str, name: str) -> tuple[np.ndarray, int]:
    """Stored bits of one dtype as those of another, and how many were not finite before."""
    bad = not_finite(bits, found)
    if found == wanted:
        return bits, bad
    values = from_bfloat16(bits) if found == "BF16" else bits
    if wanted == "BF16":
        return to_bfloat16(values), bad
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype({"F32": "<f4", "F16": "<f2"}[wanted])
    if not_finite(cast, wanted) > bad:
        raise UserError(f"{part}: {shown(name)} has numbers too large for float16: use --dtype bfloat16 or float32.")
    return cast, bad


def _not_finite(part: str, outcome: Outcome, folder: Folder, plan: dict[str, dict[str, Tensor]]) -> str:
    """The sentence that says so, with the first of them."""
    for name, some in plan.items():
        if len(some) == 1 and not_finite(folder.raw(part, name), folder.names(part)[name].dtype):
            break
    return (
        f"{part}: {outcome.not_finite} numbers are NaN or infinite, the first in {shown(name)}: the checkpoint is "
        f"damaged; --allow-nonfinite writes it all the same."
    )


def _tokenizer(folder: Folder, number: int, hidden: Path) -> None:
    files = folder.tokenizer_files(number)
    if not files:
        return  # layouts come as tokens, and a BERT's words may not have been at hand
    home = hidden / ("tokenizer" if number == 1 else f"tokenizer_{number}")
    os.mkdir(home)
    for name, data in files.items():
        _file(home / name, data)
    sync_folder(home)


def _manifest(folder: Folder, name: str, recipe: Recipe, sums: dict[str, str]) -> Manifest:
    """The folder's manifest under its new name, with the sums of the files it came from and what it is stored as."""
    source: dict[str, Any] = {**folder.manifest.source, "sha256": sums}
    quantization = folder.manifest.quantization if recipe.dtype is None else None
    if recipe.bits is not None:
        quantization = {"mode": "affine", "bits": recipe.bits, "group": recipe.group}
    if recipe.dtype is not None:
        source["dtype"] = recipe.dtype
    return dataclasses.replace(folder.manifest, name=name, source=source, quantization=quantization)


# ---------------------------------------------------------------------------------------------------------------------
# The disk

def nothing_there(dst: Path) -> None:
    """A UserError if `dst` exists, or the folder that it would be in does not."""
    if os.path.lexists(dst):
        raise UserError(f"{shown(dst)} exists already: choose another name, or remove it first.")
    if not dst.parent.is_dir():
        raise UserError(f"There is no folder {shown(dst.parent)} to write into: create it first.")


@contextlib.contextmanager
def hiding(dst: Path) -> Iterator[Path]:
    """A new hidden folder beside `dst`, gone afterwards unless it was renamed; what is in the way is a UserError."""
    _sweep(dst)
    hidden = dst.parent / f".{dst.name}.part-{os.getpid()}-{secrets.token_hex(4)}"
    lock = None
    try:
        os.mkdir(hidden)
        lock = _lock(hidden)
        yield hidden
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk at {shown(dst.parent)} is full: nothing was written.") from None
        raise UserError(f"{shown(dst)} cannot be written: {error.strerror or error}.") from error
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _sweep(dst: Path) -> None:
    """Remove what killed runs for the same target left: their folders are there, but nobody holds the lock."""
    for left in dst.parent.glob(f".{dst.name}.part-*-*"):
        number = _lock(left)
        if number is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(number)


def _lock(folder: Path) -> int | None:
    """Hold a folder until the number is closed, by whatever end of the process; None if another one holds it."""
    try:
        import fcntl
    except ImportError:
        return None  # without such locks nothing is ever taken for left behind
    number = None
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if number is not None:
            os.close(number)
        return None
    return number


class _Lane:
    """A thread that does one thing with all data in turn, while whoever hands it over goes on."""

    def __init__(self, work: Callable[[bytes | memoryview], None]) -> None:
        self._work = work
        self._queue: queue.Queue[bytes | memoryview | None] = queue.Queue(1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, data: bytes | memoryview) -> None:
        """Hand over; what went wrong with earlier data is raised here."""
        if self._error is not None:
            raise self._error
        self._queue.put(data)

    def end(self) -> BaseException | None:
        """Wait until all is done; what went wrong, if anything."""
        self._queue.put(None)
        self._thread.join()
        return self._error

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            if self._error is None:  # after an error, take what comes, so that nobody waits for room
                try:
                    self._work(data)
                except BaseException as found:
                    self._error = found


class _Output:
    """A new file, written by one thread and hashed by another while the next tensor is read and laid out.

    What is handed over must not change afterwards. `sha256` is there when it is closed.
    """

    def __init__(self, path: Path) -> None:
        self._number = create(path)
        self._digest = hashlib.sha256()
        self._waiting = 0
        self._flusher = ThreadPoolExecutor(1)
        self._flushed: Future[None] | None = None
        self.sha256 = ""

    def __enter__(self) -> _Output:
        self._lanes = _Lane(self._digest.update), _Lane(self._store)
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append; what went wrong with earlier data is raised here."""
        for lane in self._lanes:
            lane.put(data)

    def __exit__(self, *error: object) -> None:
        try:
            wrong = [found for lane in self._lanes if (found := lane.end()) is not None]
            self._flusher.shutdown()
            if error[0] is None:
                if wrong:
                    raise wrong[0]
                if self._flushed is not None:
                    self._flushed.result()
                _sync(self._number)
        finally:
            os.close(self._number)
        self.sha256 = self._digest.hexdigest()

    def _store(self, data: bytes | memoryview) -> None:
        _all(self._number, data)
        self._waiting += len(data)
        if self._waiting >= FLUSH and (self._flushed is None or self._flushed.done()):
            if self._flushed is not None:
                self._flushed.result()
            self._flushed = self._flusher.submit(os.fsync, self._number)
            self._waiting = 0


def create(path: Path) -> int:
    """A new file to write, which must not exist; its number."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o644)


def _file(path: Path, data: bytes) -> None:
    with os.fdopen(create(path), "wb", buffering=0) as file:
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


def sync_folder(path: Path) -> None:
    """Make new names in a folder last; systems that cannot open folders do it themselves."""
    if os.name != "posix":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)
