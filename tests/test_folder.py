"""A written model folder: what it says, reads back and refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from little import Little

from mlxldm.errors import UserError
from mlxldm.folder import Manifest, Tensor, member, open_folder
from mlxldm.parameters import parameters
from mlxldm.tensors import TensorFile, header


@pytest.fixture
def folder(little_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(little_folder, tmp_path / "model"))


def change(folder: Path, **changes) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(path: Path, change) -> None:
    """Write a safetensors file anew; `change(tensors, metadata)` edits what is written."""
    opened = TensorFile(path)
    tensors = {name: opened.raw(name) for name in opened.tensors}
    metadata = dict(opened.metadata)
    opened.close()
    change(tensors, metadata)
    kinds = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
    heads = {name: Tensor(kinds[str(array.dtype)], array.shape) for name, array in tensors.items()}
    path.write_bytes(header(heads, metadata) + b"".join(array.tobytes() for array in tensors.values()))


def test_a_written_folder_holds_what_was_given(little_folder):
    given, folder = Little(), open_folder(little_folder)
    assert folder.manifest.to_json()["parts"] == given.manifest.to_json()["parts"]
    for part, config in folder.manifest.parts.items():
        names = folder.names(part)
        assert {name: tensor.shape for name, tensor in names.items()} == parameters(config)
        assert folder.nbytes(part) == sum(tensor.nbytes for tensor in names.values())
        for name in names:
            array = folder.read(part, name)
            assert array.dtype == np.float32 and (array == given.read(part, name)).all()
    assert folder.tokenizer_files() == given.tokenizer_files() and folder.tokenizer_files(2) == {}


def test_a_manifest_reads_itself_back(little_folder):
    manifest = open_folder(little_folder).manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_sixteen_bits_come_as_they_are_or_as_float32(folder):
    def halve(tensors, metadata):
        for i, name in enumerate(tensors):
            if i % 2:
                tensors[name] = tensors[name].astype(np.float16)
            else:
                tensors[name] = (tensors[name].view(np.uint32) >> 16).astype(np.uint16)

    whole = open_folder(folder)
    before = {name: whole.read("vae", name) for name in whole.names("vae")}
    rewrite(folder / "vae.safetensors", halve)
    after = open_folder(folder)
    assert {tensor.dtype for tensor in after.names("vae").values()} == {"BF16", "F16"}
    for name, tensor in after.names("vae").items():
        array = after.read("vae", name)
        assert array.dtype == (np.float32 if tensor.dtype == "BF16" else np.float16)
        assert np.allclose(array, before[name], rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"format": 2}, "format 2"),
        ({"layout": "OIHW"}, "layout 'OIHW'"),
        ({"family": "sd9"}, "family 'sd9'"),
        ({"task": "video"}, "task 'video'"),
        ({"name": 3}, "lacks a usable 'name'"),
        ({"surprise": 1}, "'surprise'"),
        ({"quantization": {"bits": 8}}, "quantized"),
        ({"parts": {}}, "no part 'text'"),
        ({"parts": {"audio": {}}}, "the part 'audio'"),
        ({"schedule": {"beta": 1}}, "'beta'"),
        ({"license": 1}, "license"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(folder, changes, said):
    change(folder, **changes)
    with pytest.raises(UserError) as error:
        open_folder(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def without(name):
    return lambda tensors, metadata: tensors.pop(name)


def shaped(name, shape):
    def edit(tensors, metadata):
        tensors[name] = np.resize(tensors[name], shape)

    return edit


@pytest.mark.parametrize(
    "part, edit, said",
    [
        ("denoiser", without("conv_in.weight"), "lacks 1 of the denoiser's"),
        ("vae", lambda tensors, metadata: tensors.update(loss=np.zeros(3, np.float32)), "no place in the vae: loss"),
        ("denoiser", shaped("conv_in.weight", (8, 4, 3, 3)), "conv_in.weight is [8, 4, 3, 3], expected [8, 3, 3, 4]"),
        ("vae", lambda tensors, metadata: metadata.pop("layout"), "no layout mark"),
        ("vae", lambda tensors, metadata: metadata.update(part="denoiser"), "no layout mark"),
    ],
)
def test_weights_that_do_not_fit_the_manifest_are_named(folder, part, edit, said):
    rewrite(folder / f"{part}.safetensors", edit)
    with pytest.raises(UserError) as error:
        open_folder(folder)
    assert said in str(error.value) and f"{part}.safetensors" in str(error.value)


def test_a_folder_that_is_none_or_half_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        open_folder(tmp_path / "nothing")
    with pytest.raises(UserError, match="no model.json"):
        open_folder(tmp_path)
    (folder / "vae.safetensors").unlink()
    with pytest.raises(UserError, match="no vae.safetensors"):
        open_folder(folder)
    (folder / "model.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not JSON"):
        open_folder(folder)
    with open(folder / "model.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="at most"):
        open_folder(folder)


def test_links_are_followed_inside_the_folder_and_into_a_hub_cache_only(folder, tmp_path):
    outside = tmp_path / "elsewhere.safetensors"
    shutil.move(folder / "vae.safetensors", outside)
    (folder / "vae.safetensors").symlink_to(outside)
    with pytest.raises(UserError, match="link out of the model's folder"):
        open_folder(folder)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (folder / "vae.safetensors").unlink()
    shutil.move(outside, folder / "vae.safetensors")
    shutil.copytree(folder, snapshot)
    for file in list(snapshot.rglob("*")):
        if file.is_file():
            blob = blobs / file.name
            shutil.move(file, blob)
            file.symlink_to(os.path.relpath(blob, file.parent))
    assert open_folder(snapshot).tokenizer_files() == Little().tokenizer_files()
    assert member(snapshot, "nothing") is None
    (snapshot / "up").symlink_to("../../../..")
    with pytest.raises(UserError, match="link out of"):
        member(snapshot, "up")
