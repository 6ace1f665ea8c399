"""A whole CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020): its text and its vision tower, from a folder as
transformers saves it (`config.json`, `model.safetensors`, the tokenizer's files).

For models that look at other pictures while they draw: what a text and a picture have in common is an angle between two
vectors. Towers are read as the parts "text" and "vision" of a model folder, in transformers' names.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from .config import ClipTextConfig, ClipVisionConfig
from .errors import UserError
from .folder import Manifest, Packed, check, member, read_json, tokenizer_files
from .hub import snapshot
from .tensors import Tensor, TensorFile, shown
from .tokenizer import ClipTokenizer

WEIGHTS = "model.safetensors"
# Beside the towers in the file: numbers for training, and tables of 0, 1, 2 ... that old versions saved.
NO_WEIGHTS = ("logit_scale", "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
PART_OF = {"text_model": "text", "text_projection": "text", "vision_model": "vision", "visual_projection": "vision"}


class ClipFolder:
    """An opened CLIP, as a model folder (`folder.Folder`) of the parts "text" and "vision".

    `text` and `vision` are the towers' configs; `digest` tells this CLIP from others, and from itself when it changes.
    """

    def __init__(self, path: Path) -> None:
        values = read_json(_file(path, "config.json"))
        if not isinstance(values, dict) or values.get("model_type") != "clip":
            raise UserError(
                f"{shown(path)} is no CLIP: its config.json says "
                f"{shown(values.get('model_type') if isinstance(values, dict) else values)!r}, but 'clip' was expected."
            )
        projection = values.get("projection_dim", 512)
        texts, visions = (
            # what old versions said twice counts the second time
            {**_object(values, name), **_object(values, f"{name}_dict"), "projection_dim": projection}
            for name in ("text_config", "vision_config")
        )
        self._tokens = tokenizer_files(path, ".")
        tokenizer = ClipTokenizer.from_files(self._tokens)
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
        texts["architectures"] = ["CLIPTextModelWithProjection"]
        self.text = ClipTextConfig.from_transformers(texts, **ids)
        self.vision = ClipVisionConfig.from_transformers(visions)
        self.manifest = Manifest(path.resolve().name, "ldm-retrieval", {"text": self.text}, task="part")

        self._weights = TensorFile(_file(path, WEIGHTS))
        self._tensors: dict[str, dict[str, Tensor]] = {"text": {}, "vision": {}}
        for name, tensor in self._weights.tensors.items():
            if name in NO_WEIGHTS:
                continue
            part = PART_OF.get(name.split(".")[0])
            if part is None:
                raise UserError(f"{shown(self._weights.path)} has {shown(name)}, which has no place in a CLIP.")
            shape = tensor.shape
            ours = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
            self._tensors[part][name] = Tensor(tensor.dtype, ours)
        where = shown(self._weights.path)
        check("text", self._tensors["text"], self.text, where)
        check("vision", self._tensors["vision"], self.vision, where)
        about = self._weights.path.stat()
        mark = [str(self._weights.path.resolve()), about.st_size, about.st_mtime_ns, values]
        self.digest = hashlib.sha256(json.dumps(mark, sort_keys=True).encode()).hexdigest()

    def names(self, part: str) -> dict[str, Tensor]:
        return dict(self._tensors[part])

    def raw(self, part: str, name: str) -> np.ndarray:
        return _channels_last(self._weights.raw(name))

    def read(self, part: str, name: str) -> np.ndarray:
        return _channels_last(self._weights.read(name))

    def groups(self, part: str) -> dict[str, int]:
        return {}

    def packed(self, part: str, name: str) -> Packed:
        raise KeyError(name)

    def tokenizer_files(self, number: int = 1) -> dict[str, bytes]:
        return dict(self._tokens)

    def nbytes(self, part: str) -> int:
        return sum(tensor.nbytes for tensor in self._tensors[part].values())

    def hashes(self) -> dict[str, str]:
        return {}


def open_clip(name: str) -> ClipFolder:
    """The CLIP in a folder, or of a hub id in the hub's cache.

    Every weight that its config implies is there, or a UserError says what is not.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        known = snapshot(name) if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None
        if known is None:
            raise UserError(
                f"There is no folder {name!r}, nor a model of that id in the hub's cache: give one with a CLIP, or get "
                f"it with: hf download openai/clip-vit-large-patch14"
            )
        folder = known
    try:
        return ClipFolder(folder)
    except OSError as error:
        raise UserError(f"{shown(error.filename or name)} cannot be read: {error.strerror or error}.") from None


def _file(folder: Path, name: str) -> Path:
    path = member(folder, name)
    if path is None:
        pickled = name == WEIGHTS and (folder / "pytorch_model.bin").exists()
        also = "; its pytorch_model.bin is not read" if pickled else ""
        raise UserError(
            f"{shown(folder)} has no {name}{also}: a CLIP is config.json, {WEIGHTS} and the tokenizer's files, as in "
            f"openai/clip-vit-large-patch14."
        )
    return path


def _object(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    if found is not None and not isinstance(found, dict):
        raise UserError(f"The CLIP's {name} is not an object: its config.json is damaged.")
    return found or {}


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array
