"""Files that are no model but change one: LoRAs of every kind, and textual inversions. What they are, and a safe copy.

The copy is a safetensors file in the naming that most programs read (kohya's and LyCORIS' with diffusers' modules), its
numbers bit for bit those of the source; so a pickled or oddly named adapter becomes one that opens anywhere.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm.errors import UserError
from mlxldm.tensors import Tensor, header, shown

from . import adapters
from .adapters import MODELS, Adapter, Inversion, Model, Module
from .read import Source, open_file
from .words import hints
from .write import create, hiding, nothing_there, sync_folder

LORA = re.compile(
    r"(lora_unet_|lora_te\d?_|lycoris_).+"
    r"|.*[._](lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_linear_layer|hada_w1_a|lokr_w1(_a)?|on_input)"
    r"(\..*)?"
)
INVERSION = re.compile(r"string_to_param\..+|emb_params|clip_[lg]|bundle_emb\..+")
# What kohya and LyCORIS call each role; a magnitude of PEFT's is a dora_scale of one column.
ENDINGS = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "magnitude": "dora_scale"}


def kind_of(file: Source, model: Model | None = None) -> str | None:
    """ "LoRA" or "textual inversion" by the names in a file; None for what is neither.

    `model`: the configs of the parts it is for, whose widths count; None: those of the families known here.
    """
    if any(LORA.fullmatch(name[: adapters.MAX_NAME]) for name in file.tensors):
        return "LoRA"
    if any(INVERSION.fullmatch(name[: adapters.MAX_NAME]) for name in file.tensors):
        return "textual inversion"
    # diffusers' textual inversions are one tensor that is called as its word
    models = MODELS.values() if model is None else (model,)
    widths = {config.hidden_size for parts in models for part, config in parts.items() if "text" in part}
    only = [(name, tensor) for name, tensor in file.tensors.items() if len(tensor.shape) in (1, 2)]
    if len(file.tensors) == len(only) == 1 and only[0][1].shape[-1] in widths and "." not in only[0][0]:
        return "textual inversion"
    return None


def beside(path: Path, model: Model | None = None) -> Adapter | Inversion | None:
    """The LoRA or textual inversion in a file, None if the file is something else.

    `model`: the configs of the parts it is for; None: whatever it was made for. Raises UserError for one that is
    damaged, or for no model known here, or not for this one.
    """
    file = open_file(path)
    try:
        kind = kind_of(file, model)
        if kind is not None:
            return (adapters.adapter if kind == "LoRA" else adapters.inversion)(file, model)
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def called(path: Path) -> dict[str, Any]:
    """`what` a file is by its names, and what it says of its use and of itself; nothing where it is no adapter.

    For one that fits no family: it may be for a model of nobody's widths.
    """
    try:
        file = open_file(path)
    except (UserError, OSError):
        return {}
    try:
        what = kind_of(file)
        if what is None:
            return {}
        told = hints(file) if what == "LoRA" else {"words": [path.stem]}
        try:
            token = None if what == "LoRA" else adapters.inversion(file).token
        except UserError:  # of other widths
            token = None
        return {"what": what, **told, **_marks(file, token)}
    finally:
        file.close()


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a LoRA or a textual inversion by its names, for whatever model."""
    return bool(called(Path(path)))


def adapter(path: str | os.PathLike[str], model: Model) -> Adapter | Inversion:
    """The LoRA or textual inversion in a file, as it changes `model` (the configs of a manifest's parts).

    Raises UserError, in one sentence, for anything that is none, or is for another model.
    """
    path = Path(path)
    try:
        found = beside(path, model)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror or error}.") from error
    if found is None:
        raise UserError(f"{shown(path)} is no LoRA and no textual inversion.")
    return found


def misfit(path: str | os.PathLike[str], family: str | None, model: Model) -> str | None:
    """Why an adapter is not for `model` (the configs of a manifest's parts), in a sentence; None where it is.

    `family`: which one it was made for, as `look` says. Where the model is of such a family, that decides; else the
    file is looked at.
    """
    own = adapters.family_of(model)
    if family is not None and own != family and (own is not None or not adapters.as_wide(model, family)):
        return f"It was made for {adapters.TITLES[family]}."
    if family is not None and own == family:
        return None
    try:
        adapter(path, model).file.close()
    except UserError as error:
        return str(error)
    return None


def about(found: Adapter | Inversion) -> dict[str, Any]:
    """What there is to say of it, as JSON values."""
    path = found.file.path
    said: dict[str, Any] = {"source": str(path), "bytes": path.stat().st_size}
    if isinstance(found, Adapter):
        told = hints(found.file)
        words = [*told["words"], *(one.token for one in found.inversions)]
        return {**said, "what": "LoRA", **found.report(), "weight": told["weight"], "words": words,
                **_marks(found.file, None)}  # fmt: skip
    vectors = {part: list(shape) for part, shape in found.shapes.items()}
    return {**said, "what": "textual inversion", "name": path.name, "token": found.token, "base": found.base,
            "vectors": vectors, "words": list(found.names), **_marks(found.file, found.token)}  # fmt: skip


def _marks(file: Source, token: str | None) -> dict[str, Any]:
    """By what other programs know it: the `names` it gives itself, and the `sha256` of its numbers, if it says one."""
    name = file.metadata.get("ss_output_name") if token is None else token
    return {"names": [name] if name else [], "sha256": file.metadata.get("sshs_model_hash")}


def copy(found: Adapter | Inversion, dst: str | os.PathLike[str]) -> Path:
    """Write it as a safetensors file `dst`, which must not exist yet: whole, or not at all.

    Raises UserError for a name that does not end in .safetensors, and for an adapter whose strength kohya's naming
    cannot say.
    """
    target = Path(os.path.abspath(os.path.expanduser(dst)))
    if target.suffix != ".safetensors":
        raise UserError(f"{shown(target)} would be a safetensors file: give it a name that ends in .safetensors.")
    nothing_there(target)
    if isinstance(found, Adapter):
        tensors = _kohya(found)
    else:
        keys = {"text": "clip_l", "text_2": "clip_g"} if len(found.tensors) > 1 or "text_2" in found.tensors else {}
        tensors = {keys.get(part, "emb_params"): _raw(found.file, name, found.shapes[part])
                   for part, name in found.tensors.items()}  # fmt: skip
    shapes = {name: tensor for name, (tensor, _) in tensors.items()}
    metadata = {"format": "pt"} | ({"name": found.token} if isinstance(found, Inversion) else {})
    head = header(shapes, metadata)
    total = len(head) + sum(tensor.nbytes for tensor in shapes.values())
    with hiding(target) as folder:
        free = shutil.disk_usage(target.parent).free
        if free < total + (1 << 20):
            raise UserError(f"The copy needs {total:,} bytes, but only {free:,} are free at {shown(target.parent)}.")
        with os.fdopen(create(folder / target.name), "wb") as file:
            file.write(head)
            for _, array in tensors.values():
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        again = open_file(folder / target.name)
        try:  # as strict as any later reader
            adapters.adapter(again, found.model) if isinstance(found, Adapter) else adapters.inversion(again)
        finally:
            again.close()
        os.rename(folder / target.name, target)
        os.rmdir(folder)
        sync_folder(target.parent)
    return target


def _kohya(found: Adapter) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Every tensor of an adapter by kohya's name of its module and LyCORIS' name of its role."""
    two = "text_2" in found.model
    prefix = {"denoiser": "lora_unet", "text": "lora_te1" if two else "lora_te", "text_2": "lora_te2"}
    made: dict[str, tuple[Tensor, np.ndarray]] = {}
    for key, module in found.modules.items():
        name = f"{prefix[key[0]]}_{key[1].replace('.', '_')}"
        for role, theirs in module.tensors.items():
            shape = found.file.tensors[theirs].shape
            if role == "magnitude":
                shape = (shape[0], *(1 for _ in module.shape[1:]))
            made[f"{name}.{ENDINGS.get(role, role)}"] = _raw(found.file, theirs, shape)
        _strength(found, key, module, name, made)
    for bundled in found.inversions:
        for theirs in bundled.tensors.values():
            made[theirs] = _raw(found.file, theirs, found.file.tensors[theirs].shape)
    return made


def _strength(found: Adapter, key: adapters.Key, module: Module, name: str, made: dict[str, Any]) -> None:
    """An alpha in the file where PEFT's settings say one outside of it."""
    scale = found.scale(key)
    if "alpha" in module.tensors:
        plain = 1.0 if module.rank is None else adapters.number(found.file, module.tensors["alpha"]) / module.rank
    else:
        plain = 1.0
    if np.isclose(scale, plain, rtol=1e-6):
        return
    if module.rank is None:
        raise UserError(
            f"{shown(found.file.path)} scales {shown(key[1])} by {scale:.4g}, which this naming cannot say: use the "
            f"file as it is."
        )
    alpha = np.array(scale * module.rank, np.float32)
    made[f"{name}.alpha"] = (Tensor("F32", ()), alpha)


def _raw(file: Source, name: str, shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    """A tensor as it is stored, in another shape of as many numbers."""
    return Tensor(file.tensors[name].dtype, tuple(shape)), file.raw(name).reshape(shape)
