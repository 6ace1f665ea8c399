"""A checkpoint presented as a model folder that nobody wrote: the manifest and all shapes at once, tensors when asked.

So `--model some.safetensors` runs in place, and writing a folder is this view streamed to disk.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm.errors import UserError
from mlxldm.folder import Folder, Manifest, Packed, open_folder
from mlxldm.tensors import Tensor, from_bfloat16, shown

from .beside import about, beside, called
from .detect import NO_WISH, Found, Wish, detect
from .names import Plan, Step, apply, as_plain, plan


def view(path: str | os.PathLike[str], wish: Wish = NO_WISH) -> Folder:
    """The model at `path` as a model folder: a single file, a diffusers folder, a hub snapshot, or a folder of ours.

    Raises UserError, in one sentence, for anything that is not a whole model of a known family.
    """
    path = Path(path)
    try:
        if path.is_dir() and (path / "model.json").exists():
            return open_folder(path)
        return View(detect(path, wish))
    except OSError as error:
        raise UserError(f"{shown(error.filename or path)} cannot be read: {error.strerror or error}.") from error


def look(path: Path) -> dict[str, Any]:
    """What `path` is, from its headers alone: kind, family, prediction, dtypes, bytes and state, for a list of models.

    `state` is "ready" for a model, "part", "LoRA" or "textual inversion" for what goes into one, or "no" with `why` in
    a sentence for what cannot be used. LoRAs and textual inversions have `what` they are, also where they cannot be
    used, the `words` that call them, and LoRAs the `weight` that they are meant with, if their file says one; and the
    `names` by which they are known beside their file's, and what their trainer wrote down as the `sha256` of their
    numbers.
    """
    nothing = {"kind": None, "family": None, "prediction": None, "dtypes": None, "bytes": None}
    try:
        folder = view(path)
        kinds = {tensor.dtype for part in folder.manifest.parts for tensor in folder.names(part).values()}
        return {
            "kind": folder.manifest.source.get("kind"),
            "family": folder.manifest.family,
            "task": folder.manifest.task,
            "defaults": asdict(folder.manifest.defaults),
            "prediction": folder.manifest.schedule.prediction,
            "dtypes": " ".join(sorted(kinds)),
            "bytes": sum(folder.nbytes(part) for part in folder.manifest.parts),
            "state": "part" if folder.manifest.task == "part" else "ready",
        }
    except UserError as error:
        try:
            found = beside(path) if path.is_file() else None
        except UserError as another:
            return {**nothing, "state": "no", "why": str(another), **called(path)}
        if found is None:
            return {**nothing, "state": "no", "why": str(error)}
    try:
        said = about(found)
        return {
            "kind": said.get("kind", "textual inversion"),
            "family": found.base,
            "prediction": None,
            "dtypes": " ".join(sorted({tensor.dtype for tensor in found.file.tensors.values()})),
            "bytes": said["bytes"],
            "state": said["what"],
            **{key: said[key] for key in ("what", "words", "weight", "names", "sha256") if key in said},
        }
    finally:
        found.file.close()


class View:
    """A checkpoint seen as a `Folder`. `found` and `plans` say what was decided."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.manifest: Manifest = found.manifest
        self.plans: dict[str, Plan] = {}
        for part, config in self.manifest.parts.items():
            source = found.parts[part]
            where = shown(found.path / source.label if found.path.is_dir() else found.path)
            self.plans[part] = plan(part, config, source.weights.tensors, where, source.dialect)

    def names(self, part: str) -> dict[str, Tensor]:
        """Every tensor of a part with its stored dtype and its shape in our layout."""
        return {name: step.tensor for name, step in self.plans[part].steps.items()}

    def raw(self, part: str, name: str) -> np.ndarray:
        """One tensor in our layout with its stored bits; bfloat16 as uint16."""
        step: Step = self.plans[part].steps[name]
        weights = self.found.parts[part].weights
        array = apply(step.op, weights.raw(step.source)).reshape(step.tensor.shape)
        return as_plain(array, weights.tensors[step.source].dtype)

    def read(self, part: str, name: str) -> np.ndarray:
        """One tensor, in our layout. bfloat16 comes as float32; float16 stays float16."""
        array = self.raw(part, name)
        return from_bfloat16(array) if self.plans[part].steps[name].tensor.dtype == "BF16" else array

    def groups(self, part: str) -> dict[str, int]:
        """Empty: other programs' files are not in MLX's quantized form."""
        return {}

    def packed(self, part: str, name: str) -> Packed:
        """Nothing here is quantized."""
        raise KeyError(name)

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        """The tokenizer's files, by name."""
        return self.found.tokenizer(number)

    def nbytes(self, part: str) -> int:
        """How many bytes the part's tensors take as stored."""
        return sum(step.tensor.nbytes for step in self.plans[part].steps.values())

    def hashes(self, progress: Callable[[int], None] | None = None) -> dict[str, str]:
        """The sha256 of every weight file, by its path in the folder; `progress` is told the bytes read.

        In a hub cache the file is a link to a blob whose name is the sum already.
        """
        sums: dict[str, str] = {}
        for source in self.found.parts.values():
            for name, path in source.files.items():
                blob = path.resolve().name
                known = path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob)
                if name not in sums:
                    sums[name] = blob if known else _sha256(path, progress)
        return sums

    def report(self) -> dict[str, Any]:
        """What the source is, why we think so, and what happens to its tensors."""
        parts = {}
        for part, steps in self.plans.items():
            dtypes = sorted({step.tensor.dtype for step in steps.steps.values()})
            parts[part] = {
                "file": self.found.parts[part].label,
                "tensors": len(steps.steps),
                "dtypes": dtypes,
                "bytes": self.nbytes(part),
                "renamed": steps.renamed,
                "channels_last": steps.count("channels last"),
                "matrices": steps.count("1x1 to matrix"),
                "split": sum(step.op.startswith(("rows", "heads")) for step in steps.steps.values()),
                "ignored": dict(steps.ignored),
            }
        return {
            "source": str(self.found.path),
            "kind": self.manifest.source["kind"],
            "name": self.manifest.name,
            "family": self.manifest.family,
            "license": self.manifest.license,
            "why": list(self.found.why),
            "ignored": dict(self.found.ignored),
            "missing": [],  # a part that lacks a tensor is refused before there is a report
            "parts": parts,
        }


def _sha256(path: Path, progress: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 19):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()
