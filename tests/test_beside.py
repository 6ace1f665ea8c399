"""LoRAs and textual inversions through the converter: told from models, said in words, copied bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlxldm.config import UNetConfig
from mlxldm.errors import UserError
from mlxldm_convert import adapters, look, misfit, view
from mlxldm_convert.__main__ import main
from mlxldm_convert.beside import beside, copy
from mlxldm_convert.read import open_file

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # 320 x 320 in Stable Diffusion 1.x
CONV = "down_blocks.0.resnets.0.conv1"
FC1 = "text_model.encoder.layers.0.mlp.fc1"


def numbers(*shape: int) -> np.ndarray:
    return np.random.RandomState(sum(shape)).standard_normal(shape).astype(np.float16)


def kohya() -> dict[str, np.ndarray]:
    query, fc1 = f"lora_unet_{QUERY.replace('.', '_')}", f"lora_te_{FC1.replace('.', '_')}"
    conv = f"lora_unet_{CONV.replace('.', '_')}"
    return {
        f"{query}.lora_down.weight": numbers(4, 320), f"{query}.lora_up.weight": numbers(320, 4),
        f"{query}.alpha": np.array(2, np.float16),
        f"{conv}.lora_down.weight": numbers(4, 320, 3, 3), f"{conv}.lora_up.weight": numbers(320, 4, 1, 1),
        f"{fc1}.lora_down.weight": numbers(4, 768), f"{fc1}.lora_up.weight": numbers(3072, 4),
    }  # fmt: skip


def peft() -> dict[str, np.ndarray]:
    return {
        f"unet.{QUERY}.lora_A.weight": numbers(8, 320), f"unet.{QUERY}.lora_B.weight": numbers(320, 8),
        f"unet.{QUERY}.lora_magnitude_vector": np.abs(numbers(320)),
        f"text_encoder.{FC1}.lora_A.weight": numbers(8, 768), f"text_encoder.{FC1}.lora_B.weight": numbers(3072, 8),
    }  # fmt: skip


def lycoris() -> dict[str, np.ndarray]:
    query, key = f"lora_unet_{QUERY.replace('.', '_')}", f"lora_unet_{QUERY.replace('.', '_')[:-1]}k"
    value, conv = f"lora_unet_{QUERY.replace('.', '_')[:-1]}v", f"lora_unet_{CONV.replace('.', '_')}"
    return {
        **{f"{query}.hada_w{i}_a": numbers(320, 4 + i) for i in (1,)}, f"{query}.hada_w1_b": numbers(5, 320),
        f"{query}.hada_w2_a": numbers(320, 5), f"{query}.hada_w2_b": numbers(5, 320),
        f"{key}.lokr_w1": numbers(8, 8), f"{key}.lokr_w2": numbers(40, 40),
        f"{value}.weight": numbers(320), f"{value}.on_input": np.array(False),
        f"{conv}.diff": numbers(320, 320, 3, 3),
    }  # fmt: skip


FILES = {"kohya": kohya, "peft": peft, "lycoris": lycoris}


def base(key) -> np.ndarray:
    shape = {QUERY[:-1]: (320, 320)}.get(key[1][:-1], (320, 3, 3, 320) if key[1] == CONV else (3072, 768))
    return numbers(*shape).astype(np.float32)


@pytest.mark.parametrize("kind", FILES)
def test_a_copy_changes_every_weight_as_its_source_does(kind, tmp_path):
    path = tmp_path / f"{kind}.safetensors"
    save_file(FILES[kind](), path, {"ss_network_args": "{}"} if kind == "kohya" else None)
    found = beside(path)
    assert found is not None and found.base == "sd1"
    again = beside(copy(found, tmp_path / "copy.safetensors"))
    assert again.modules.keys() == found.modules.keys() and not again.unmatched
    for key in found.modules:
        one, other = (adapters.delta(which, key, base(key)) for which in (found, again))
        assert np.array_equal(one, other), key
        assert np.abs(one).max() > 0
    stored = {array.tobytes() for array in load_file(tmp_path / "copy.safetensors").values()}
    assert {array.tobytes() for array in FILES[kind]().values()} <= stored


def test_the_strength_of_pefts_settings_goes_into_the_copy(tmp_path):
    plain = {name: array for name, array in peft().items() if "magnitude" not in name}
    save_file(plain, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 32, "use_rslora": True}))
    found = beside(tmp_path / "adapter_model.safetensors")
    key = ("denoiser", QUERY)
    assert found.scale(key) == pytest.approx(32 / 8**0.5)
    again = beside(copy(found, tmp_path / "copy.safetensors"))
    np.testing.assert_allclose(adapters.delta(again, key), adapters.delta(found, key), rtol=1e-6)


def test_a_textual_inversion_is_copied_with_its_word(tmp_path):
    for i, (tensors, word, base_of) in enumerate((
        ({"<cat>": numbers(3, 768)}, "<cat>", "sd1"),
        ({"emb_params": numbers(2, 1024)}, "1", "sd2"),
        ({"clip_l": numbers(2, 768), "clip_g": numbers(2, 1280)}, "2", "sdxl"),
    )):  # fmt: skip
        path = tmp_path / f"{i}.safetensors"
        save_file(tensors, path)
        found = beside(path)
        assert (found.token, found.base) == (word, base_of)
        again = beside(copy(found, tmp_path / f"copy-{i}.safetensors"))
        assert again.token == word and again.shapes == found.shapes
        assert all(np.array_equal(again.read(part), found.read(part)) for part in found.tensors)


def test_they_are_told_from_models(tmp_path):
    word = {"emb_params": numbers(2, 768)}
    for name, tensors, what in (("lora", kohya(), "LoRA"), ("word", word, "textual inversion")):
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        with pytest.raises(UserError, match=f"is a {what}, which changes a model and is none itself"):
            view(path)
        row = look(path)
        assert (row["state"], row["family"], row["bytes"]) == (what, "sd1", path.stat().st_size)
    save_file({"some.weight": numbers(3, 3)}, tmp_path / "other.safetensors")
    assert beside(tmp_path / "other.safetensors") is None
    assert look(tmp_path / "other.safetensors")["state"] == "no"


def test_a_lora_for_another_model_is_refused_and_listed_so(tmp_path):
    path = tmp_path / "flux.safetensors"
    save_file({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": numbers(4, 8)}, path)
    with pytest.raises(UserError, match="LoRA for FLUX"):
        beside(path)
    assert "FLUX" in look(path)["why"]


def test_the_command_says_what_it_is_and_copies(tmp_path, capsys):
    path = tmp_path / "some.safetensors"
    save_file(kohya(), path)
    assert main([str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "LoRA, locon, for family sd1" in said and "denoiser  2 of" in said and "written" not in said
    assert main([str(path), str(tmp_path / "copy.safetensors"), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["written"] and out["target"] == str(tmp_path / "copy.safetensors")
    with open_file(tmp_path / "copy.safetensors").path.open("rb") as file:
        assert file.read(1)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["copy.ckpt"], "ends in .safetensors"),
        (["taken.safetensors"], "exists already"),
        (["nowhere/copy.safetensors"], "no folder"),
        (["copy.safetensors", "--quantize", "8"], "--quantize is for models"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_left(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(kohya(), tmp_path / "some.safetensors")
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    assert main(["some.safetensors", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert {entry.name for entry in tmp_path.iterdir()} == {"some.safetensors", "taken.safetensors"}
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"


# What a file says of how it is used.


def test_the_words_that_call_a_lora_are_those_that_its_file_says(tmp_path):
    path = tmp_path / "ink.safetensors"
    captions = {"10_ohwx": {"ohwx style": 90, "a house": 30, "  ": 99}, "5_more": {"ohwx style": 20, "ink  wash": 60}}
    kohya_says = {"ss_tag_frequency": json.dumps(captions)}
    save_file(kohya(), path, kohya_says)
    row = look(path)
    assert (row["words"], row["weight"], row["what"]) == (["ohwx style", "ink wash"], None, "LoRA")
    save_file(kohya(), path, {**kohya_says, "modelspec.trigger_phrase": "in ohwx style,\nink wash, "})
    assert look(path)["words"] == ["in ohwx style", "ink wash"]
    (tmp_path / "ink.json").write_text(json.dumps({"activation text": "ohwx, ink", "preferred weight": 0.7}))
    assert (look(path)["words"], look(path)["weight"]) == (["ohwx, ink"], 0.7)
    for damaged in ('{"activation text": 3, "preferred weight": true}', "[]", "{", '{"preferred weight": 0}'):
        (tmp_path / "ink.json").write_text(damaged)
        assert (look(path)["words"], look(path)["weight"]) == (["in ohwx style", "ink wash"], None)


@pytest.mark.parametrize("said", ["", "[]", "{", '{"a": 3}', '{"a": {"b": "c"}}', '{"a": {"b": -1}}', "[" * 5000])
def test_captions_that_make_no_sense_are_no_words(said, tmp_path):
    save_file(kohya(), tmp_path / "ink.safetensors", {"ss_tag_frequency": said})
    assert look(tmp_path / "ink.safetensors")["words"] == []


def test_a_textual_inversion_is_called_by_its_word_and_its_file(tmp_path):
    save_file({"<sks>": numbers(2, 768)}, tmp_path / "cat.safetensors")
    assert look(tmp_path / "cat.safetensors")["words"] == ["<sks>", "cat"]


def test_families_are_told_by_the_shapes_of_a_model():
    import dataclasses

    for family, parts in adapters.MODELS.items():
        assert adapters.family_of(parts) == family
        paints = {**parts, "denoiser": dataclasses.replace(parts["denoiser"], in_channels=9)}
        assert adapters.family_of(paints) == family
        once = (1,) * parts["denoiser"].levels
        fewer = {**parts, "denoiser": dataclasses.replace(parts["denoiser"], layers_per_block=once)}
        assert adapters.family_of(fewer) is None and adapters.as_wide(fewer, family)
        assert adapters.family_of({"vae": None, "denoiser": parts["denoiser"]}) is None


def test_why_an_adapter_is_not_for_a_model(tmp_path):
    import dataclasses

    path = tmp_path / "ink.safetensors"
    save_file(kohya(), path)
    sd1, sdxl = adapters.MODELS["sd1"], adapters.MODELS["sdxl"]
    assert misfit(path, "sd1", sd1) is None
    assert misfit(path, "sd1", sdxl) == "It was made for Stable Diffusion 1.x."
    fewer = {**sd1, "denoiser": dataclasses.replace(sd1["denoiser"], layers_per_block=(1, 1, 1, 1))}
    assert misfit(path, "sd1", fewer) is None, "the modules that it changes are all there"
    thinner = {**sd1, "denoiser": UNetConfig.from_dict({"cross_attention_dim": 768, "layers_per_block": 1,
                                                        "block_out_channels": [160, 320, 640, 640]})}  # fmt: skip
    assert "it was made for" in misfit(path, "sd1", thinner)
    narrow = {**sd1, "text": dataclasses.replace(sd1["text"], hidden_size=96)}
    assert misfit(path, "sd1", narrow) == "It was made for Stable Diffusion 1.x."
