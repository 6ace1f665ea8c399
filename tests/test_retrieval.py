"""Pictures that are found for a text: CLIP's vision tower, what it is shown, and whose neighbours are the nearest."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil

import little
import numpy as np
import pytest
from conftest import needs_torch
from PIL import Image

from mlxldm import retrieval, store
from mlxldm.clip import open_clip
from mlxldm.config import ClipTextConfig, ClipVisionConfig
from mlxldm.errors import UserError
from mlxldm.parameters import parameters

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": 514, "max_position_embeddings": 77, "bos_token_id": 512, "eos_token_id": 513}  # fmt: skip
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3,
          "image_size": 30, "patch_size": 7}  # fmt: skip
BACKENDS = ["mlx", "torch"]


@pytest.fixture(scope="module")
def theirs():
    """A tiny CLIP of transformers', with numbers large enough that everything counts."""
    pytest.importorskip("torch", reason="compares with transformers")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    import torch

    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    torch.manual_seed(5)
    model = transformers.CLIPModel(config).eval().requires_grad_(False)
    for value in model.parameters():
        value += 0.1 * torch.randn(value.shape)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip"
    theirs.save_pretrained(path)
    for name, data in little.tokenizer_files().items():
        (path / name).write_bytes(data)
    return path


def loaded(folder, backend):
    if backend == "mlx":
        pytest.importorskip("mlxldm.on_mlx")
        from mlxldm.on_mlx.clip_vision import MlxClip

        return MlxClip(open_clip(str(folder)))
    import torch

    from mlxldm.on_torch.build import build_clip

    return build_clip(open_clip(str(folder)), torch.device("cpu"))


def painted(path, seed: int, width: int = 50, height: int = 40):
    """A picture of a few soft spots."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@needs_torch
@pytest.mark.parametrize("backend", BACKENDS)
def test_both_towers_are_those_of_transformers(backend, theirs, folder):
    import torch

    clip = loaded(folder, backend)
    pixels = np.random.default_rng(0).normal(size=(3, 30, 30, 3)).astype(np.float32)
    wanted = theirs.visual_projection(
        theirs.vision_model(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooler_output
    ).numpy()
    found = clip.pictures(pixels)
    assert found.shape == (3, 24) and found.dtype == np.float32 and wanted.std() > 0.1
    assert np.abs(found - wanted).max() <= 1e-4
    for prompt in ("a red boat", ""):
        ids = torch.tensor([open_clip_ids(folder, prompt)])
        wanted = theirs.text_projection(theirs.text_model(input_ids=ids).pooler_output)[0].numpy()
        assert np.abs(clip.text(prompt) - wanted).max() <= 1e-4 and wanted.std() > 0.1


def open_clip_ids(folder, prompt):
    from mlxldm.tokenizer import ClipTokenizer

    return ClipTokenizer.from_files(open_clip(str(folder)).tokenizer_files()).ids(prompt)


@needs_torch
@pytest.mark.parametrize("size", [(50, 40), (40, 51), (224, 224), (301, 224), (225, 400), (1000, 33)])
def test_pictures_are_prepared_as_transformers_does(size, tmp_path):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    path = painted(tmp_path / "a.png", 1, *size)
    processor = CLIPImageProcessorPil()
    with Image.open(path) as picture:
        wanted = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    found = retrieval.prepared(path, 224)
    assert found.shape == (224, 224, 3) and found.dtype == np.float32
    assert np.abs(found - wanted).max() <= 1e-5


@needs_torch
def test_the_neighbours_are_the_nearest_and_stand_after_the_text(folder, tmp_path):
    clip, opened = loaded(folder, "torch"), open_clip(str(folder))
    paths = [painted(tmp_path / "some" / f"{i}.png", i) for i in range(7)]
    painted(tmp_path / "some" / "inner" / "deep.JPEG", 9)
    (tmp_path / "some" / "notes.txt").write_text("no picture")
    there, rows = retrieval.vectors(str(tmp_path / "some"), clip, opened)
    assert there == [*paths, tmp_path / "some" / "inner" / "deep.JPEG"]
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    alone = clip.pictures(retrieval.prepared(paths[3], 30)[None])[0]
    assert np.allclose(rows[3], alone / np.linalg.norm(alone), atol=1e-5)
    text = clip.text("a boat")
    order = sorted(range(8), key=lambda i: -float(rows[i] @ text))
    assert retrieval.nearest(text, rows, 3).tolist() == order[:3]
    context = retrieval.context("a boat", clip, rows, 3)
    assert context.shape == (1, 4, 24) and context.dtype == np.float32
    assert np.allclose(context[0], [text / np.linalg.norm(text), *rows[order[:3]]], atol=1e-6)
    assert retrieval.context("a boat", clip, None, 0).shape == (1, 1, 24)
    assert retrieval.context("a boat", clip, rows, 99).shape == (1, 9, 24)


class Counting:
    """A CLIP that says how many pictures it was shown, and sees their mean colours."""

    seen = 0

    def pictures(self, pixels):
        self.seen += len(pixels)
        return pixels.mean((1, 2)) + 2


class Opened:
    digest = "one"

    class vision:  # noqa: N801
        image_size = 16


def test_vectors_are_remembered_while_nothing_changes(home, tmp_path):
    folder = tmp_path / "some"
    paths = [painted(folder / f"{i}.png", i) for i in range(10)]

    def seen(digest="one"):
        clip, opened = Counting(), Opened()
        opened.digest = digest
        return clip, retrieval.vectors(str(folder), clip, opened)[1]

    first, rows = seen()
    again, same = seen()
    assert first.seen == 10 and again.seen == 0 and np.array_equal(rows, same)
    assert seen("another CLIP")[0].seen == 10 and seen()[0].seen == 0
    painted(paths[4], 77)
    os.utime(paths[4], ns=(1, 1))
    third, changed = seen()
    assert third.seen == 1 and np.array_equal(np.delete(changed, 4, 0), np.delete(rows, 4, 0))
    assert not np.array_equal(changed[4], rows[4])
    paths[0].unlink()
    painted(folder / "new.png", 8)
    assert seen()[0].seen == 1 and len(seen()[1]) == 10
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{i}.png" for i in [*range(1, 10), "new"])
    (kept, other) = sorted((store.cache() / "pictures").iterdir())
    for stored in (kept, other):
        stored.write_bytes(b"damaged")
    assert seen()[0].seen == 10 and seen()[0].seen == 0


def test_whoever_stops_goes_on_from_there(tmp_path):
    class Stopped(Counting):
        def pictures(self, pixels):
            if self.seen:
                raise KeyboardInterrupt
            return super().pictures(pixels)

    for i in range(11):
        painted(tmp_path / f"{i}.png", i)
    with pytest.raises(KeyboardInterrupt):
        retrieval.vectors(str(tmp_path), Stopped(), Opened())
    clip = Counting()
    there, rows = retrieval.vectors(str(tmp_path), clip, Opened())
    assert clip.seen == 11 - retrieval.BATCH and len(there) == len(rows) == 11


def test_what_is_no_picture_is_named_and_left_out(tmp_path, caplog):
    painted(tmp_path / "a.png", 1)
    (tmp_path / "d.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    painted(tmp_path / "c.png", 2, 1000, 10)
    with caplog.at_level(logging.WARNING):
        there, rows = retrieval.vectors(str(tmp_path), Counting(), Opened())
    assert [path.name for path in there] == ["a.png"] and rows.shape == (1, 3)
    assert "b.png' is not a picture" in caplog.text and "c.png' is more than 32 times as long" in caplog.text
    assert "There is no file" in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="None of the 3 pictures in .* can be read"):
        retrieval.vectors(str(tmp_path), Counting(), Opened())


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        retrieval.pictures(str(tmp_path / "none"))
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    with pytest.raises(UserError, match="has no pictures in it"):
        retrieval.pictures(str(tmp_path))


@needs_torch
def test_a_clip_as_old_versions_saved_it_is_the_same(theirs, folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    old = shutil.copytree(folder, tmp_path / "old")
    values = json.loads((old / "config.json").read_text())
    twice = {f"{name}_dict": {"hidden_size": values[name]["hidden_size"]} for name in ("text_config", "vision_config")}
    for name in ("text_config", "vision_config"):
        del values[name]["hidden_size"]
    (old / "config.json").write_text(json.dumps(values | twice))
    tensors = load_file(old / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    save_file(tensors, old / "model.safetensors")
    ours, today = open_clip(str(old)), open_clip(str(folder))
    assert (ours.text, ours.vision) == (today.text, today.vision) and ours.digest != today.digest
    assert ours.names("vision") == today.names("vision") and ours.names("text") == today.names("text")
    assert today.digest == open_clip(str(folder)).digest


# What transformers wrote into both towers' configs in 2022, as openai/clip-vit-large-patch14 has it.
WRITTEN = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "attention_dropout": 0.0,
    "bad_words_ids": None, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False, "dropout": 0.0,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "finetuning_task": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "hidden_act": "quick_gelu", "id2label": {"0": "LABEL_0"}, "initializer_factor": 1.0,
    "initializer_range": 0.02, "is_decoder": False, "is_encoder_decoder": False, "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-05, "length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "prefix": None, "problem_type": None, "projection_dim": 768,
    "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True,
    "return_dict_in_generate": False, "sep_token_id": None, "task_specific_params": None, "temperature": 1.0,
    "tie_encoder_decoder": False, "tie_word_embeddings": True, "tokenizer_class": None, "top_k": 50, "top_p": 1.0,
    "torch_dtype": None, "torchscript": False, "transformers_version": "4.16.0.dev0", "use_bfloat16": False,
}  # fmt: skip


def test_the_published_clips_config_is_read():
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    vision = WRITTEN | sizes | ids | {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 14}
    assert ClipVisionConfig.from_transformers(vision) == ClipVisionConfig()
    assert sum(math.prod(shape) for shape in parameters(ClipVisionConfig()).values()) == 303_966_208
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    text = WRITTEN | sizes | ids | {"model_type": "clip_text_model", "vocab_size": 49408, "max_position_embeddings": 77}
    text["architectures"] = ["CLIPTextModelWithProjection"]
    assert ClipTextConfig.from_transformers(text) == ClipTextConfig(projection_dim=768)


@needs_torch
def test_a_clip_in_the_hubs_cache_is_found_by_its_id(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    storage = tmp_path / "models--some--clip"
    shutil.copytree(folder, storage / "snapshots" / "abc")
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text("abc")
    assert open_clip("some/clip").vision == open_clip(str(folder)).vision


@needs_torch
def test_what_is_no_clip_is_said_in_one_sentence(folder, tmp_path):
    def said(number, match, change):
        copy = shutil.copytree(folder, tmp_path / str(number))
        change(copy)
        with pytest.raises(UserError, match=match) as error:
            open_clip(str(copy))
        assert "\n" not in str(error.value)

    def config(**changes):
        def change(path):
            values = json.loads((path / "config.json").read_text()) | changes
            (path / "config.json").write_text(json.dumps(values))

        return change

    def vision(**changes):
        def change(path):
            values = json.loads((path / "config.json").read_text())
            config(vision_config=values["vision_config"] | changes)(path)

        return change

    def pickled(path):
        (path / "model.safetensors").rename(path / "pytorch_model.bin")

    for name in (str(tmp_path / "none"), "openai/clip-vit-large-patch14", "../openai/x"):
        with pytest.raises(UserError, match="There is no folder .* hf download openai/clip-vit-large-patch14"):
            open_clip(name)
    said(1, "has no config.json", lambda path: (path / "config.json").unlink())
    said(2, "its pytorch_model.bin is not read: a CLIP is config.json, model.safetensors", pickled)
    said(3, "says 'bert', but 'clip' was expected", config(model_type="bert"))
    said(4, "vision_config is not an object", config(vision_config=[1]))
    said(5, "lacks 16 of the vision's", vision(num_hidden_layers=4))
    said(6, "which no model has", vision(num_attention_heads=5))
    said(7, "projection_dim is 0", config(projection_dim=0))
    said(8, "does not know", vision(window_size=3))
    said(9, "neither vocab.json", lambda path: (path / "vocab.json").unlink())
