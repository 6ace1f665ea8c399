"""A checkpoint presented as a model folder that nobody wrote: the manifest and all shapes at once, tensors when asked.

So `--model some/diffusers/folder` runs in place, and writing a folder is this view streamed to disk.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm.errors import UserError
from mlxldm.folder import Folder, Manifest, open_folder, tokenizer_files
from mlxldm.tensors import Tensor, from_bfloat16, shown

from .detect import Found, detect
from .names import Plan, Step, plan
from .read import Weights, open_weights


def view(path: str | os.PathLike[str]) -> Folder:
    """The model at `path` as a model folder: a diffusers folder, a hub snapshot, or a folder written by us.

    Raises UserError, in one sentence, for anything that is not a whole model of a known family.
    """
    path = Path(path)
    try:
        if path.is_dir() and (path / "model.json").exists():
            return open_folder(path)
        return View(detect(path))
    except OSError as error:
        raise UserError(f"{shown(error.filename or path)} cannot be read: {error.strerror or error}.") from error


class View:
    """A diffusers folder seen as a `Folder`. `found` and `plans` say what was decided."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.manifest: Manifest = found.manifest
        self.plans: dict[str, Plan] = {}
        self._weights: dict[str, Weights] = {}
        for part, config in self.manifest.parts.items():
            folder, name = found.folders[part], found.weights[part]
            weights = self._weights[part] = open_weights(found.root, folder, name)
            self.plans[part] = plan(part, config, weights.tensors, shown(found.root / folder / name))

    def names(self, part: str) -> dict[str, Tensor]:
        """Every tensor of a part with its stored dtype and its shape in our layout."""
        return {name: step.tensor for name, step in self.plans[part].steps.items()}

    def raw(self, part: str, name: str) -> np.ndarray:
        """One tensor in our layout with its stored bits; bfloat16 as uint16."""
        step: Step = self.plans[part].steps[name]
        array = self._weights[part].raw(step.source)
        if step.op == "channels last":
            array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
        array = array.reshape(step.tensor.shape)
        return array.astype(np.float32) if array.dtype == np.float64 else array

    def read(self, part: str, name: str) -> np.ndarray:
        """One tensor, in our layout. bfloat16 comes as float32; float16 stays float16."""
        array = self.raw(part, name)
        return from_bfloat16(array) if self.plans[part].steps[name].tensor.dtype == "BF16" else array

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        """The tokenizer's files, by name."""
        return tokenizer_files(self.found.root, "tokenizer" if number == 1 else f"tokenizer_{number}")

    def nbytes(self, part: str) -> int:
        """How many bytes the part's tensors take as stored."""
        return sum(step.tensor.nbytes for step in self.plans[part].steps.values())

    def hashes(self, progress: Callable[[int], None] | None = None) -> dict[str, str]:
        """The sha256 of every weight file, by its path in the folder; `progress` is told the bytes read.

        In a hub cache the file is a link to a blob whose name is the sum already.
        """
        sums = {}
        for part, weights in self._weights.items():
            for path in weights.paths:
                blob = path.resolve().name
                known = path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob)
                sums[f"{self.found.folders[part]}/{path.name}"] = blob if known else _sha256(path, progress)
        return sums

    def report(self) -> dict[str, Any]:
        """What the source is, why we think so, and what happens to its tensors."""
        parts = {}
        for part, steps in self.plans.items():
            dtypes = sorted({step.tensor.dtype for step in steps.steps.values()})
            parts[part] = {
                "file": f"{self.found.folders[part]}/{self.found.weights[part]}",
                "tensors": len(steps.steps),
                "dtypes": dtypes,
                "bytes": self.nbytes(part),
                "renamed": steps.renamed,
                "channels_last": steps.count("channels last"),
                "matrices": steps.count("1x1 to matrix"),
                "ignored": dict(steps.ignored),
            }
        return {
            "source": str(self.found.root),
            "kind": self.manifest.source["kind"],
            "name": self.manifest.name,
            "family": self.manifest.family,
            "license": self.manifest.license,
            "why": list(self.found.why),
            "ignored": dict(self.found.ignored),
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
