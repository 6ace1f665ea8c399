"""Single-file checkpoints: every family's layout opens in place, says why, and holds what diffusers reads in it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from mlxldm.errors import UserError
from mlxldm.folder import open_folder

pytest.importorskip("torch", reason="needs torch and diffusers, which build the checkpoints")
pytest.importorskip("diffusers", reason="needs diffusers, which builds the checkpoints")

import single_files  # noqa: E402
import torch  # noqa: E402

from mlxldm_convert import view, write  # noqa: E402
from mlxldm_convert.__main__ import main  # noqa: E402
from mlxldm_convert.detect import Wish  # noqa: E402

KINDS = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def pipes():
    return {kind: single_files.pipeline(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def states(pipes):
    return {kind: single_files.original(pipe) for kind, pipe in pipes.items()}


def modules(pipe) -> dict:
    found = {"text": pipe.text_encoder, "denoiser": pipe.unet, "vae": pipe.vae}
    return found | ({"text_2": pipe.text_encoder_2} if hasattr(pipe, "text_encoder_2") else {})


@pytest.mark.parametrize("end", ["safetensors", "ckpt"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_holds_the_pipeline_it_was_made_from(kind, end, pipes, states, tmp_path):
    path = single_files.write(states[kind], tmp_path / f"model.{end}")
    wish = Wish(family=kind, prediction="v" if kind == "sd2" else "epsilon", heads=8 if kind == "sd1" else None)
    folder = view(path, wish)
    assert folder.manifest.family == kind and folder.manifest.name == "model"
    assert folder.manifest.schedule.prediction == wish.prediction
    single_files.holds(folder, modules(pipes[kind]))
    said = " ".join(folder.report()["why"])
    assert "--family" in said and "--prediction" in said


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_reads_the_same_numbers_in_the_file(kind, pipes, states, tmp_path):
    import diffusers

    path = single_files.write(states[kind], tmp_path / "model.safetensors")
    pipes[kind].save_pretrained(tmp_path / "config")
    for cls, part in ((diffusers.UNet2DConditionModel, "unet"), (diffusers.AutoencoderKL, "vae")):
        read = cls.from_single_file(str(path), config=str(tmp_path / "config"), subfolder=part)
        wanted = getattr(pipes[kind], part).state_dict()
        assert read.state_dict().keys() == wanted.keys()
        for name, value in read.state_dict().items():
            assert torch.equal(value, wanted[name]), name


def test_the_averaged_weights_are_taken_unless_the_person_says_no(states, tmp_path):
    path = single_files.write(single_files.averaged(states["sd1"], 2.0), tmp_path / "both.ckpt")
    raw = view(path, Wish(family="sd1", ema=False))
    average = view(path, Wish(family="sd1"))
    name = "mid_block.resnets.0.conv1.weight"
    assert np.array_equal(average.read("denoiser", name), 2 * raw.read("denoiser", name))
    assert "averaged weights are used" in " ".join(average.report()["why"])
    assert "left, as --no-ema says" in " ".join(raw.report()["why"])
    partly = {k: v for k, v in single_files.averaged(states["sd1"], 2.0).items() if "out2weight" not in k}
    half = view(single_files.write(partly, tmp_path / "half.ckpt"), Wish(family="sd1"))
    assert np.array_equal(half.read("denoiser", name), raw.read("denoiser", name))
    assert "averaged weights that are not used" in half.report()["ignored"].values()


def test_a_written_single_file_equals_its_view(states, tmp_path):
    source = view(single_files.write(states["sdxl"], tmp_path / "a.safetensors"), Wish(family="sdxl"))
    written = open_folder(write(source, tmp_path / "written").path)
    single_files.same(source, written)
    assert list(written.manifest.source["sha256"]) == ["a.safetensors"]
    assert written.tokenizer_files(2) == source.tokenizer_files(2)
    assert written.manifest.text_2.pad_token_id == 0 and written.manifest.text.pad_token_id == 49407


def test_half_precision_stays_as_it_is(states, tmp_path):
    for dtype, bits in ((torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float8_e4m3fn, "F16")):
        half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in states["sd1"].items()}
        folder = view(single_files.write(half, tmp_path / f"{bits}.safetensors"), Wish(family="sd1"))
        for part in folder.manifest.parts:
            assert {tensor.dtype for tensor in folder.names(part).values()} == {bits}
        wanted = half["model.diffusion_model.out.2.bias"].float().numpy()
        assert np.array_equal(folder.read("denoiser", "conv_out.bias").astype(np.float32), wanted)


MARKS = [
    ({"modelspec.prediction_type": "v"}, {}, "v", "modelspec.prediction_type"),
    ({"modelspec.predict_key": "epsilon"}, {}, "epsilon", "modelspec.predict_key"),
    ({"ss_v_parameterization": "True"}, {}, "v", "ss_v_parameterization"),
    ({}, {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, "v", "v_pred"),
    ({}, {}, "epsilon", "predicts epsilon unless marked otherwise"),
]


@pytest.mark.parametrize("metadata, more, prediction, evidence", MARKS, ids=[mark[3][:12] for mark in MARKS])
def test_the_prediction_is_read_from_marks_and_the_mark_is_named(
    metadata, more, prediction, evidence, states, tmp_path
):
    path = single_files.write({**states["sd1"], **more}, tmp_path / "m.safetensors", metadata)
    folder = view(path, Wish(family="sd1"))
    assert folder.manifest.schedule.prediction == prediction
    assert any(evidence in reason for reason in folder.report()["why"])
    assert folder.manifest.schedule.zero_snr is ("ztsnr" in more)


def test_a_yaml_beside_the_file_says_the_prediction(states, tmp_path):
    path = single_files.write(states["sd1"], tmp_path / "m.safetensors")
    (tmp_path / "m.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert view(path, Wish(family="sd1")).manifest.schedule.prediction == "v"


def test_sd2_without_a_mark_is_guessed_from_a_norm_and_the_guess_is_told(states, tmp_path):
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    for factor, prediction in ((0.01, "epsilon"), (1.0, "v")):
        state = {**states["sd2"], name: factor * torch.linspace(-1, 1, len(states["sd2"][name]))}
        folder = view(single_files.write(state, tmp_path / f"{prediction}.safetensors"), Wish(family="sd2"))
        assert folder.manifest.schedule.prediction == prediction
        assert any("a guess" in reason and "--prediction" in reason for reason in folder.report()["why"])


def test_what_is_missing_or_too_much_is_named(states, tmp_path):
    state = states["sd1"]

    def refused(change: dict, gone: str = "nothing", **wish) -> str:
        kept = {k: v for k, v in {**state, **change}.items() if gone not in k}
        path = single_files.write(kept, tmp_path / "bad.safetensors")
        with pytest.raises(UserError) as error:
            view(path, Wish(**{"family": "sd1", **wish}))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "without the vae" in refused({}, gone="first_stage_model")
    assert "without the text" in refused({}, gone="cond_stage_model")
    assert "lacks 1 of" in refused({}, gone="middle_block.0.in_layers.2.bias")
    assert "no place" in refused({"model.diffusion_model.strange.weight": torch.zeros(2)})
    assert "is not known. Did you mean" in refused({}, family="sd11")
    shape = {"model.diffusion_model.out.0.bias": torch.zeros(3)}
    assert "out.0.bias is [3], expected [64]" in refused(shape)
    assert "--family" in refused({}, family=None) and "text width 64" in refused({}, family=None)
    assert "a textual inversion" in refused({"emb_params": torch.zeros(1, 4)}, gone="diffusion_model")


def test_extra_tensors_outside_the_parts_are_left_out_and_counted(states, tmp_path):
    state = {**states["sd1"], "junk.a": torch.zeros(1), "junk.b": torch.zeros(1)}
    folder = view(single_files.write(state, tmp_path / "m.safetensors"), Wish(family="sd1"))
    assert folder.report()["ignored"]["junk.a and 1 more"] == "belongs to no part"


def test_the_converter_says_what_the_file_is_and_writes_it(states, tmp_path, capsys):
    path = single_files.write(states["sd1"], tmp_path / "dream.safetensors")
    assert main([str(path), str(tmp_path / "dream"), "--family", "sd1", "--dtype", "float16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] and report["family"] == "sd1" and report["kind"] == "single file"
    assert open_folder(tmp_path / "dream").manifest.source["kind"] == "single file"
    assert main([str(path), "--family", "sd1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "as --family says" in said and "left out: alphas_cumprod and 1 more" in said
    shutil.rmtree(tmp_path / "dream")


def test_a_folder_of_checkpoints_is_listed_and_its_models_have_names(states, tmp_path, capsys, home):
    from mlxldm import store
    from mlxldm.cli import main as mlxldm
    from mlxldm_convert import look

    disk = tmp_path / "disk"
    (disk / "inner").mkdir(parents=True)
    single_files.write(states["sd1"], disk / "tiny.safetensors")
    (disk / "inner" / "page.ckpt").write_text("<!doctype html>")
    (disk / "notes.txt").write_text("no checkpoint")
    assert mlxldm(["models", "add", str(disk), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert set(rows) == {"tiny", "page"} and {row["state"] for row in rows.values()} == {"no"}
    assert "web page" in rows["page"]["why"] and "--family" in rows["tiny"]["why"]  # tiny's widths are nobody's
    asked = []

    def counted(path):
        asked.append(path.name)
        return look(path)

    assert [row["name"] for row in store.scan(counted)] == ["tiny", "page"]
    assert not asked  # nothing changed, so nothing is opened
    (disk / "inner" / "page.ckpt").write_text("<!doctype html><p>")
    store.scan(counted)
    assert asked == ["page.ckpt"]
    assert store.locate("tiny") == disk / "tiny.safetensors"
    shutil.copy(disk / "tiny.safetensors", disk / "inner")
    with pytest.raises(UserError, match="the name of 2 checkpoints"):
        store.locate("tiny")
    shutil.rmtree(disk)
    assert [row["state"] for row in store.scan(counted)] == ["not there"]
    assert mlxldm(["models", "forget", str(disk)]) == 0 and store.folders() == []
