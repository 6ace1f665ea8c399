"""Diffusers folders seen as model folders, and written as such: nothing lost, nothing guessed, nothing half done."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlxldm.errors import UserError
from mlxldm.folder import open_folder
from mlxldm.parameters import parameters
from mlxldm.tensors import Tensor, TensorFile, header

pytest.importorskip("torch", reason="needs torch and diffusers, which build the folders that are converted")
pytest.importorskip("diffusers", reason="needs diffusers, which builds the folders that are converted")

import weights  # noqa: E402

from mlxldm_convert import view, write  # noqa: E402
from mlxldm_convert.__main__ import main  # noqa: E402


@pytest.fixture
def source(tiny_folder, tmp_path) -> Path:
    """A copy of a tiny SD 1.x in the hub's layout, to spoil."""
    return Path(shutil.copytree(tiny_folder("sd1", "hub"), tmp_path / "source"))


def rewrite(path: Path, change, to: Path | None = None) -> None:
    """Write a safetensors file anew after `change(tensors)`."""
    opened = TensorFile(path)
    tensors = {name: opened.raw(name) for name in opened.tensors}
    opened.close()
    tensors = change(tensors) or tensors
    kinds = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint16": "BF16"}
    heads = {name: Tensor(kinds[str(array.dtype)], array.shape) for name, array in tensors.items()}
    (to or path).write_bytes(header(heads, {"format": "pt"}, 8) + b"".join(a.tobytes() for a in tensors.values()))


def edit(path: Path, **changes) -> None:
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "drop"}))


def everything(folder) -> dict[tuple[str, str], np.ndarray]:
    return {(part, name): folder.read(part, name) for part in folder.manifest.parts for name in folder.names(part)}


def same(one, other) -> bool:
    a, b = everything(one), everything(other)
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and (a[key] == b[key]).all() for key in a)


@pytest.mark.parametrize("layout", ["today", "hub"])
@pytest.mark.parametrize("kind", ["sd1", "sd1-v", "sd2", "sdxl"])
def test_a_view_has_every_tensor_of_the_pipeline_in_our_layout(tiny_folder, kind, layout):
    import diffusers

    path = tiny_folder(kind, layout)
    folder = view(path)
    pipe = diffusers.DiffusionPipeline.from_pretrained(path)
    modules = {"text": pipe.text_encoder, "denoiser": pipe.unet, "vae": pipe.vae}
    if kind == "sdxl":
        modules["text_2"] = pipe.text_encoder_2
    assert set(folder.manifest.parts) == set(modules)
    for part, module in modules.items():
        wanted = weights.of_torch(module)
        assert {name: tensor.shape for name, tensor in folder.names(part).items()} == parameters(
            folder.manifest.parts[part]
        )
        assert wanted.keys() == folder.names(part).keys()
        for name, array in wanted.items():
            found = folder.read(part, name)
            assert found.flags.c_contiguous and found.shape == array.shape and (found == array).all(), name


def test_what_a_view_says_of_the_models_own_settings(tiny_folder):
    sd1, sd2, sdxl = (view(tiny_folder(kind, "hub")).manifest for kind in ("sd1", "sd2", "sdxl"))
    assert (sd1.family, sd2.family, sdxl.family) == ("sd1", "sd2", "sdxl")
    assert (sd1.schedule.prediction, sd2.schedule.prediction) == ("epsilon", "v")
    assert (sd1.defaults.sampler, sd2.defaults.sampler, sdxl.defaults.sampler) == ("pndm", "ddim", "euler")
    assert (sd1.defaults.width, sd1.defaults.height) == (64, 64)  # 8 x 8 latents, 8 pixels each
    assert (sd1.text.skip, sdxl.text.skip, sdxl.text_2.skip) == (-1, -2, -2)
    # the configs say 2 and 1 as the hubs' do; the tokenizers know better, and SD 2.x pads with "!"
    assert sd1.text.eos_token_id == sd1.text.pad_token_id == sd1.text.vocab_size - 1
    assert sd2.text.pad_token_id == 0 == sdxl.text_2.pad_token_id
    assert sd1.text.projection_dim is None and sdxl.text_2.projection_dim == 16
    assert sdxl.zeros_for_empty and not sd1.zeros_for_empty


def test_both_layouts_of_one_model_are_the_same_model(tiny_folder):
    assert same(view(tiny_folder("sd1", "today")), view(tiny_folder("sd1", "hub")))


def test_a_written_folder_equals_the_view_tensor_by_tensor(tiny_folder, tmp_path):
    for kind in ("sd1", "sdxl"):
        source = view(tiny_folder(kind, "hub"))
        path = write(source, tmp_path / kind).path
        written = open_folder(path)
        assert same(source, written) and written.manifest.name == kind
        assert written.manifest.parts == source.manifest.parts and written.manifest.schedule == source.manifest.schedule
        assert [written.tokenizer_files(n) for n in (1, 2)] == [source.tokenizer_files(n) for n in (1, 2)]
        sums = written.manifest.source["sha256"]
        assert len(sums) == len(source.manifest.parts) and all(len(digest) == 64 for digest in sums.values())
        assert same(view(path), written)  # a written folder is its own view


DTYPES = [("float16", "F16", 1e-3), ("bfloat16", "BF16", 8e-3), ("float32", "F32", 0)]


@pytest.mark.parametrize("dtype, bits, error", DTYPES)
def test_a_dtype_is_stored_for_every_tensor(tiny_folder, tmp_path, dtype, bits, error):
    source = view(tiny_folder("sd1", "hub"))
    written = open_folder(write(source, tmp_path / "model", dtype=dtype).path)
    for part in written.manifest.parts:
        assert {tensor.dtype for tensor in written.names(part).values()} == {bits}
        for name in written.names(part):
            assert np.allclose(written.read(part, name), source.read(part, name), rtol=error, atol=1e-6)
    again = write(written, tmp_path / "again").path  # as it is: bit for bit, bfloat16 too
    assert (again / "vae.safetensors").read_bytes() == (tmp_path / "model" / "vae.safetensors").read_bytes()


# What hubs have


def test_the_main_precision_is_taken_and_a_variant_where_there_is_no_other(source):
    unet = source / "unet"
    half = unet / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(unet / "diffusion_pytorch_model.safetensors", half)
    rewrite(half, lambda tensors: {name: array.astype(np.float16) for name, array in tensors.items()})
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"PK\3\4")
    assert {tensor.dtype for tensor in view(source).names("denoiser").values()} == {"F32"}
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    folder = view(source)
    assert {tensor.dtype for tensor in folder.names("denoiser").values()} == {"F16"}
    assert any("fp16" in reason for reason in folder.found.why)


def shards(source: Path, variant: str = "", late: bool = True) -> Path:
    """The U-Net of `source` in two shards and an index, as diffusers writes them; returns the index."""
    unet = source / "unet"
    whole = unet / "diffusion_pytorch_model.safetensors"
    opened = TensorFile(whole)
    names = list(opened.tensors)
    opened.close()
    places = {}
    for i, half in enumerate((names[::2], names[1::2])):
        number = f"-0000{i + 1}-of-00002"
        middle = f"{number}.{variant}" if variant and late else f".{variant}{number}" if variant else number
        name = f"diffusion_pytorch_model{middle}.safetensors"
        rewrite(whole, lambda tensors, half=half: {key: tensors[key] for key in half}, unet / name)
        places |= {key: name for key in half}
    whole.unlink()
    index = unet / f"diffusion_pytorch_model.safetensors.index{'.' + variant if variant else ''}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("variant, late", [("", True), ("fp16", True), ("fp16", False)])
def test_shards_are_one_part(source, tiny_folder, variant, late):
    shards(source, variant, late)
    assert same(view(source), view(tiny_folder("sd1", "hub")))


def test_an_index_that_leads_astray_is_refused(source):
    index = shards(source)
    good = json.loads(index.read_text())["weight_map"]
    first = next(iter(good))
    astray = {
        "../../x": "not a file beside it",
        "/etc/passwd": "not a file beside it",
        "no.safetensors": "not there",
        "diffusion_pytorch_model-00002-of-00002.safetensors": "does not place there",
    }
    for name, said in astray.items():
        index.write_text(json.dumps({"weight_map": {**good, first: name}}))
        with pytest.raises(UserError, match=said):
            view(source)
    index.write_text(json.dumps({"weight_map": {**good, "more": good[first]}}))
    with pytest.raises(UserError, match="lacks more"):
        view(source)
    outside = source.parent / "shard"
    shard = index.parent / good[first]
    shutil.move(shard, outside)
    shard.symlink_to(outside)
    index.write_text(json.dumps({"weight_map": good}))
    with pytest.raises(UserError, match="link out of"):
        view(source)


@pytest.mark.parametrize("four", [True, False])
def test_the_autoencoders_old_attention_names_are_understood(source, tiny_folder, four):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(tensors):
        out = {}
        for name, array in tensors.items():
            for new, before in old.items():
                if new in name:
                    name = name.replace(new, before)
                    if four and array.ndim == 2:
                        array = array[:, :, None, None]
            out[name] = array
        assert out.keys() != tensors.keys()
        return out

    rewrite(source / "vae" / "diffusion_pytorch_model.safetensors", rename)
    folder = view(source)
    assert same(folder, view(tiny_folder("sd1", "hub"))) and folder.plans["vae"].renamed == 16


def test_what_is_left_out_is_left_out_with_a_reason(source, tiny_folder):
    def more(tensors):
        tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]

    rewrite(source / "text_encoder" / "model.safetensors", more)
    edit(source / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (source / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags:\n- x\n---\nlicense: other\n")
    folder = view(source)
    assert same(folder, view(tiny_folder("sd1", "hub")))
    report = folder.report()
    left_out = report["parts"]["text"]["ignored"]
    assert left_out == {"text_model.embeddings.position_ids": "positions are 0, 1, 2, ... always"}
    assert "safety_checker" in report["ignored"] and folder.manifest.license == "creativeml-openrail-m"
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: some-community\n---\n")
    assert view(source).manifest.license == "some-community"


def test_an_old_scheduler_config_is_read_as_diffusers_pipelines_read_it(source):
    edit(source / "scheduler" / "scheduler_config.json", steps_offset=0)
    assert view(source).manifest.schedule.steps_offset == 1
    edit(source / "scheduler" / "scheduler_config.json", _class_name="TCDScheduler")
    defaults = view(source).manifest.defaults
    assert (defaults.sampler, defaults.steps, defaults.guidance) == ("tcd", 4, 1.0)


def test_a_snapshot_in_the_hubs_cache_is_read_through_its_links(source, tmp_path):
    snapshot = tmp_path / "models--some--tiny-sd" / "snapshots" / "abc"
    shutil.copytree(source, snapshot)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(p for p in snapshot.rglob("*") if p.is_file())):
        blob = blobs / f"{i:064x}"
        shutil.move(file, blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    folder = view(snapshot)
    assert same(folder, view(source)) and folder.manifest.source["name"] == "some/tiny-sd"
    assert folder.manifest.name == "tiny-sd"
    assert all(digest.startswith("0" * 60) for digest in folder.hashes().values())  # the blob's name is the sum


# What is refused


def dropped(name):
    return lambda tensors: {key: array for key, array in tensors.items() if key != name}


def added(name):
    return lambda tensors: {**tensors, name: np.zeros(3, np.float32)}


def reshaped(name):
    return lambda tensors: {**tensors, name: tensors[name][..., :-1].copy()}


@pytest.mark.parametrize(
    "file, change, said",
    [
        ("unet/diffusion_pytorch_model", dropped("conv_in.bias"), "lacks 1 of the denoiser's 440 tensors: conv_in."),
        ("vae/diffusion_pytorch_model", added("loss.logvar"), "no place in the part its config describes: loss.logvar"),
        ("unet/diffusion_pytorch_model", reshaped("conv_in.weight"), "is [40, 4, 3, 2], expected [40, 4, 3, 3]"),
        ("text_encoder/model", lambda t: {**t, "final_layer_norm.bias": np.zeros(32, np.float32)}, "which one"),
        ("text_encoder/model", lambda t: {k: v.astype(np.int64) for k, v in t.items()}, "as I64"),
    ],
)
def test_a_tensor_that_is_missing_or_extra_or_misshapen_is_named(source, file, change, said):
    rewrite(source / f"{file}.safetensors", change)
    with pytest.raises(UserError) as error:
        view(source)
    assert said in str(error.value) and file in str(error.value) and "\n" not in str(error.value)


UNET = "unet/diffusion_pytorch_model.safetensors"
FOREIGN = {
    "zip": (b"PK\x03\x04" + b"\0" * 26 + b"archive/data.pkl", "PyTorch checkpoint"),
    "legacy": (bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + b"\0" * 50, "PyTorch checkpoint"),
    "pickle": (b"\x80\x04}.", "bare pickle"),
    "gguf": (b"GGUF" + b"\0" * 50, "GGUF"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "html": (b"<!DOCTYPE html><html>", "web page"),
    "error": (b'{"error":"Repository not found"}', "web page or an error"),
    "empty": (b"", "is empty"),
    "other": (b"MZ" + b"\0" * 50, "no checkpoint of a known kind"),
    "damaged": (b"\x10\0\0\0\0\0\0\0{" + b"x" * 30, "not JSON"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_kind_of_file_is_called_by_its_name(source, kind, capsys):
    data, said = FOREIGN[kind]
    (source / UNET).write_bytes(data)
    (source.parent / "single.bin").write_bytes(data)
    before = sorted(source.parent.iterdir())
    for path in (source, source.parent / "single.bin") if kind != "damaged" else (source,):
        assert main([str(path), str(source.parent / "out")]) == 2
        text = capsys.readouterr()
        assert said in text.err and text.err.count("\n") == 1 and text.out == ""
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda s: (s / "model_index.json").unlink(), "no model_index.json"),
        (lambda s: (s / "model_index.json").write_text("[]"), "not an object"),
        (lambda s: (s / "model_index.json").write_text("{" * 100_000), "not JSON"),
        (lambda s: (s / "unet" / "config.json").unlink(), "no config.json"),
        (lambda s: (s / UNET).unlink(), "unet has no weights"),
        (lambda s: (s / UNET).rename(s / "unet" / "diffusion_flax_model.msgpack"), "another framework"),
        (lambda s: shutil.rmtree(s / "tokenizer"), "no tokenizer files"),
        (lambda s: shutil.rmtree(s / "scheduler"), "no scheduler_config.json"),
        (lambda s: edit(s / "model_index.json", unet=["diffusers", "UNet3D"]), "unet of class UNet3D"),
        (lambda s: edit(s / "model_index.json", transformer=["diffusers", "Flux"]), "component 'transformer'"),
        (lambda s: edit(s / "model_index.json", unet="drop"), "has no unet"),
        (lambda s: edit(s / "unet" / "config.json", in_channels=9), "inpainting"),
        (lambda s: edit(s / "unet" / "config.json", dual_cross_attention=True), "dual_cross_attention"),
        (lambda s: edit(s / "unet" / "config.json", cross_attention_dim=48), "do not belong together"),
        (lambda s: edit(s / "unet" / "config.json", layers_per_block=2), "lacks"),
        (lambda s: edit(s / "text_encoder" / "config.json", vocab_size=5), "outside its vocabulary"),
        (lambda s: edit(s / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEuler"), "FlowMatchEuler"),
    ],
)
def test_a_folder_that_is_not_a_whole_model_is_refused_in_a_sentence(source, spoil, said):
    spoil(source)
    with pytest.raises(UserError) as error:
        view(source)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_numbers_that_are_none_or_do_not_fit_are_named_and_nothing_is_left(source, tmp_path):
    def spoil(value):
        def change(tensors):
            array = tensors["conv_in.bias"].copy()
            array[0] = value
            return {**tensors, "conv_in.bias": array}

        return change

    rewrite(source / UNET, spoil(1e6))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="conv_in.bias has numbers too large for float16"):
        write(view(source), out / "model", dtype="float16")
    rewrite(source / UNET, spoil(np.nan))
    with pytest.raises(UserError, match="1 numbers are NaN or infinite, the first in conv_in.bias"):
        write(view(source), out / "model")
    assert list(out.iterdir()) == []


# Writing


def test_an_existing_target_is_never_touched(tiny_folder, tmp_path):
    source = view(tiny_folder("sd1", "hub"))
    for name, make in (("file", Path.touch), ("folder", Path.mkdir), ("link", lambda p: p.symlink_to("nowhere"))):
        make(tmp_path / name)
        with pytest.raises(UserError, match="exists already"):
            write(source, tmp_path / name)
    with pytest.raises(UserError, match="create it first"):
        write(source, tmp_path / "no" / "where")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


@pytest.mark.parametrize("what", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
def test_whatever_breaks_off_leaves_nothing(tiny_folder, tmp_path, what):
    def stop(done, total, part):
        if part == "denoiser" and done > 0.5 * total:
            raise what

    source = view(tiny_folder("sd1", "hub"))
    expected, said = (UserError, "full") if isinstance(what, OSError) else (what, None)
    with pytest.raises(expected, match=said):
        write(source, tmp_path / "model", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_seen_before_the_work(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="only 0.00 GB are free"):
        write(view(tiny_folder("sd1", "hub")), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, random, signal, sys
from pathlib import Path
from mlxldm_convert import view, write

calls = ("open", "mkdir", "write", "fsync", "rename", "unlink")
real = {name: getattr(os, name) for name in calls}
source, place = view(sys.argv[1]), Path(sys.argv[2])

def run(last):
    # a child that writes, and is killed at its call number `last` to the system
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = [last]
    def counted(name):
        def call(*args, **more):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](*args, **more)
        return call
    for name in calls:
        setattr(os, name, counted(name))
    write(source, place / "model")
    os._exit(0)

points = random.Random(1)
most = next(n for n in range(100, 100000, 100) if run(n) == 0 and not os.system(f"rm -r {place}/*"))
for n in sorted(points.sample(range(1, most - 100), 50)) + list(range(most - 8, most)):
    ended = run(n)
    there = sorted(path.name for path in place.iterdir())
    shown = [name for name in there if not name.startswith(".")]
    assert (ended == 0 or ended == signal.SIGKILL) and shown in ([], ["model"]), (n, ended, there)
    if shown:
        view(place / "model")  # whole, or not there
        os.system(f"rm -r {place}/model")
    assert len(there) - len(shown) <= 1, there  # what one run left, the next took away
assert run(1 << 30) == 0
print(sorted(path.name for path in place.iterdir()), most)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_point_the_target_is_whole_or_not_there(tiny_folder, tmp_path):
    """SIGKILL at 58 calls to the system; what is left is hidden, and the next run removes it and succeeds."""
    command = [sys.executable, "-c", KILLED, str(tiny_folder("sd1", "hub")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("['model']"), done.stderr
    single = open_folder(tmp_path / "model")
    assert same(view(tiny_folder("sd1", "hub")), single)


def test_a_folder_that_somebody_is_writing_is_left_alone(tiny_folder, tmp_path):
    """Two runs for one target: the second does not take the first one's folder for what a killed run left."""
    source = view(tiny_folder("sd1", "hub"))
    seen = []

    def again(*_):
        if not seen:
            seen.append(write(source, tmp_path / "model"))

    with pytest.raises(UserError, match="cannot be written|exists already"):
        write(source, tmp_path / "model", progress=again)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("call", ["write", "fsync", "mkdir", "rename"])
def test_a_full_disk_at_any_call_leaves_nothing(tiny_folder, tmp_path, monkeypatch, call):
    source, real, count = view(tiny_folder("sd1", "hub")), getattr(os, call), [0]
    place = tmp_path / call
    place.mkdir()

    def full(*args, **more):
        count[0] += 1
        if count[0] == (1 if call in ("mkdir", "rename") else 3):
            raise OSError(28, "No space left on device")
        return real(*args, **more)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match="is full: nothing was written"):
        write(source, place / "model")
    monkeypatch.undo()
    assert count[0] and list(place.iterdir()) == []
    write(source, place / "model")


def test_converting_holds_one_tensor_at_a_time(tiny_folder, tmp_path):
    """The largest tensor, not the model, decides what is in memory."""
    import tracemalloc

    source = view(tiny_folder("sd1", "hub"))
    largest = max(tensor.nbytes for part in source.manifest.parts for tensor in source.names(part).values())
    tracemalloc.start()
    write(source, tmp_path / "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * largest + (2 << 20) < sum(source.nbytes(part) for part in source.manifest.parts)


# The command


def test_the_command_reports_writes_and_answers_in_json(tiny_folder, tmp_path, capsys, home):
    path = tiny_folder("sd1", "hub")
    assert main([str(path), str(tmp_path / "dry"), "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["family"] == "sd1" and not report["written"] and not (tmp_path / "dry").exists()
    assert main([str(path), str(tmp_path / "model"), "--dtype", "float16"]) == 0
    text = capsys.readouterr()
    assert "because" in text.out and "made channel-last" in text.out and "written: " in text.out and text.err == ""
    assert same(open_folder(tmp_path / "model"), open_folder(tmp_path / "model"))
    assert main([str(path), str(tmp_path / "model")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([str(path)]) == 0  # into the models folder, found there by name
    from mlxldm import store

    assert store.find(view(path).manifest.name).manifest.family == "sd1"
    assert main(["nothing-like-this"]) == 2
    assert "There is no model 'nothing-like-this'" in capsys.readouterr().err


def test_the_command_runs_from_a_checkout_and_hears_control_c(tiny_folder, tmp_path):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "convert", str(tiny_folder("sd1", "hub")), str(tmp_path / "model")]
    done = subprocess.run([*command, "--dry-run"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "family sd1" in done.stdout, done.stderr
    slow = (
        "import sys, time, os, signal\nimport mlxldm_convert.__main__ as m\n"
        "m.Bar.move = lambda self, f, t: os.kill(os.getpid(), signal.SIGINT) if 0.5 < f < 0.6 else None\n"
        "sys.exit(m.main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", slow, *command[3:]], capture_output=True, text=True)
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_random_damage_to_any_config_gives_a_sentence_or_a_model(source):
    """Wrong types, numbers out of all bounds, lost and strange keys: one sentence, never a traceback."""
    import copy
    import random

    from mlxldm_convert.detect import detect

    rng = random.Random(0)
    junk = [None, True, -1, 1.5, 1 << 70, float("inf"), "", [], [1, 2], [[1]], {}, {"a": 1}, [320] * 4, [None] * 2]
    files = sorted(source.rglob("*.json"))

    def places(value):
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield value, key
                yield from places(value[key])

    for _ in range(300):
        path = rng.choice(files)
        before = path.read_text()
        values = copy.deepcopy(json.loads(before))
        owner, key = rng.choice(list(places(values)))
        owner[key] = rng.choice(junk)
        path.write_text(json.dumps(values))
        try:
            detect(source)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500
        path.write_text(before)


def denied(monkeypatch, path, number):
    """Opening, or making anything below, `path` fails as the system would let it fail (tests may run as root)."""
    for name in ("open", "mkdir"):
        real = getattr(os, name)

        def call(where, *args, real=real, **more):
            if Path(os.fsdecode(where)).is_relative_to(path):
                raise OSError(number, os.strerror(number), os.fsdecode(where))
            return real(where, *args, **more)

        monkeypatch.setattr(os, name, call)


def test_a_source_that_may_not_be_read_is_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "secret.safetensors"
    path.write_bytes(b"x")
    denied(monkeypatch, path, errno.EACCES)
    with pytest.raises(UserError, match=r"secret\.safetensors.*cannot be read: Permission denied"):
        view(path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_target_that_may_not_be_written_is_a_sentence_and_the_next_run_succeeds(number, source, tmp_path):
    folder = view(source)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    place = tmp_path / "place"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        denied(patch, place, number)
        with pytest.raises(UserError, match="cannot be written: " + os.strerror(number)):
            write(folder, place / "out")
    assert not list(place.iterdir())
    write(folder, place / "out")
    assert [path.name for path in place.iterdir()] == ["out"]
    assert all(path.read_bytes() == data for path, data in before.items())
