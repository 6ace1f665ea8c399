"""Textual inversions in pictures of both backends, against diffusers' own; and where in a text words are found."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from conftest import has, needs_torch
from test_lora import APART, BACKENDS, BAR, JOB, Studio, drawn_by, psnr, weights_of

from mlxldm.adapters import worn
from mlxldm.errors import UserError
from mlxldm.prompt import Reader

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

WIDTHS = {"sd1": {"emb_params": 32}, "sd2": {"emb_params": 32}, "sdxl": {"clip_l": 32, "clip_g": 16}}


@pytest.fixture(scope="module")
def studio(tiny_folder, tmp_path_factory):
    return Studio(tiny_folder, tmp_path_factory.mktemp("words"))


def vectors(studio, kind, name="zorg", count=3, seed=1):
    """A file of an inversion, and its vectors; as large as those of the tiny text encoders."""
    from safetensors.numpy import save_file

    stream = np.random.RandomState(seed)
    tensors = {key: stream.standard_normal((count, width)).astype(np.float32) for key, width in WIDTHS[kind].items()}
    path = studio.root / kind / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return str(path), tensors


def taught(pipe, **words):
    """A copy of diffusers' pipeline that knows the words {token: tensors}."""
    import torch

    pipe = copy.deepcopy(pipe)
    for token, tensors in words.items():
        encoders = [(pipe.text_encoder, pipe.tokenizer)]
        if "clip_g" in tensors:
            encoders.append((pipe.text_encoder_2, pipe.tokenizer_2))
        for values, (encoder, tokenizer) in zip(tensors.values(), encoders, strict=True):
            pipe.load_textual_inversion(torch.from_numpy(values), token, text_encoder=encoder, tokenizer=tokenizer)
    return pipe


def draw(studio, backend, kind, job):
    from mlxldm.generate import Picture, generate
    from mlxldm_convert import adapter

    model = studio.model(backend, kind)
    events = list(generate(model, job, adapters=worn(job, model.manifest, adapter)))
    return next(event.pixels for event in events if isinstance(event, Picture))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_word_draws_what_diffusers_draws(studio, kind):
    path, tensors = vectors(studio, kind)
    other, others = vectors(studio, kind, "bad_words", 1, seed=2)
    pipe = taught(studio.pipe(kind), zorg=tensors, bad_words=others)
    job = JOB.replace(prompt="a zorg house, at dusk", negative="bad_words snow", embeddings=(path, other))
    wanted = drawn_by(pipe, job)
    assert psnr(wanted, drawn_by(studio.pipe(kind), job)) < APART
    for backend in BACKENDS:
        model = studio.model(backend, kind)
        before = weights_of(model, backend)
        assert psnr(draw(studio, backend, kind, job), wanted) >= BAR
        assert weights_of(model, backend) == before
        unknown = draw(studio, backend, kind, job.replace(embeddings=()))
        assert psnr(unknown, wanted) < APART and psnr(unknown, drawn_by(studio.pipe(kind), job)) >= BAR


def test_a_word_takes_as_many_places_as_it_has_vectors(studio):
    """And of two that begin alike, the longer is found; in capitals or not, but never inside another word."""
    (tokenizer,) = Reader(studio.folder("sd1")).tokenizers
    known = tokenizer.with_words([(("zorg",), 3), (("zorg-v2", "<zorg two>"), 2)])
    a, house = tokenizer.encode("a"), tokenizer.encode("house")
    assert known.encode("a zorg house") == [*a, -1, -2, -3, *house]
    assert known.encode("a ZORG-v2 house") == known.encode("a <zorg two> house") == [*a, -4, -5, *house]
    assert known.encode("a zorgs house") == tokenizer.encode("a zorgs house")
    assert known.decode(known.encode("a zorg house")) == "a zorg house"
    assert tokenizer.encode("a zorg house") != known.encode("a zorg house")  # the first one has learned nothing


def test_words_with_numbers_of_vectors_that_differ_are_told_by_name_and_by_file(studio):
    """diffusers' files say a token, and AUTOMATIC1111 goes by the file's name: both are known."""
    from safetensors.numpy import save_file

    from mlxldm_convert import adapter

    model = studio.model("mlx", "sd1")
    path = studio.root / "learned.safetensors"
    save_file({"<cat-toy>": np.ones((2, 32), np.float32)}, path)
    (word,) = worn(JOB.replace(embeddings=(str(path),)), model.manifest, adapter).words
    assert word.names == ("<cat-toy>", "learned") and word.count == 2


def test_what_is_for_another_model_is_refused(studio):
    from safetensors.numpy import save_file

    from mlxldm_convert import adapter

    sd1, sdxl = (studio.model("mlx", kind).manifest for kind in ("sd1", "sdxl"))
    wide = studio.root / "wide.safetensors"
    save_file({"emb_params": np.ones((2, 768), np.float32)}, wide)
    with pytest.raises(UserError, match="vectors of width 768.*text encoders here have 32"):
        worn(JOB.replace(embeddings=(str(wide),)), sd1, adapter)
    path, _ = vectors(studio, "sd1")
    with pytest.raises(UserError, match="'zorg' has vectors of width 32, but .* reads 32 and 16: it was made for"):
        worn(JOB.replace(embeddings=(path,)), sdxl, adapter)
    two, _ = vectors(studio, "sdxl", "two")
    with pytest.raises(UserError, match="two.safetensors"):
        worn(JOB.replace(embeddings=(two,)), sd1, adapter)
    lora = studio.lora("sd1")
    with pytest.raises(UserError, match="is a LoRA and no textual inversion: give it with --lora"):
        worn(JOB.replace(embeddings=(str(lora.path),)), sd1, adapter)
    with pytest.raises(UserError, match="is a textual inversion and no LoRA: give it with --embedding"):
        worn(JOB.replace(loras=(path,)), sd1, adapter)
