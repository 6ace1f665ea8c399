"""A whole folder in MLX's memory behind the `Model` interface: texts, guesses, latents, precision, threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import needs_torch
from weights import assert_same, psnr

from mlxldm.errors import UserError

pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")
import mlxldm.on_mlx as on_mlx  # noqa: E402, I001  (before mlx.core: brings the fast BLAS)
import mlx.core as mx  # noqa: E402
from mlxldm.on_mlx.model import MlxModel  # noqa: E402


@pytest.fixture(scope="module")
def little() -> MlxModel:
    from little import Little

    return on_mlx.load(Little(), "cpu", "float32")


def latent(height: int = 8, width: int = 10) -> np.ndarray:
    return np.random.RandomState(0).standard_normal((1, height, width, 4)).astype(np.float32)


@needs_torch
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_guess_with_and_without_the_prompt_is_diffusers(tiny_folder, kind):
    import diffusers
    import torch

    from mlxldm_convert import view

    folder = tiny_folder(kind)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    model = on_mlx.load(view(folder), "cpu", "float32")
    prompt, negative = "a red house at dusk", "the sea"
    cond = model.encode_text(prompt, negative, width=80, height=64)
    with torch.no_grad():
        with_prompt, without, *pooled = pipe.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=negative
        )
        added = None
        if pooled:
            sizes = torch.tensor([[64.0, 80, 0, 0, 64, 80]] * 2)
            added = {"text_embeds": torch.cat(pooled), "time_ids": sizes}
        x = torch.from_numpy(latent()).permute(0, 3, 1, 2).repeat(2, 1, 1, 1)
        expected = pipe.unet(x, 500.0, torch.cat([with_prompt, without]), added_cond_kwargs=added).sample
    expected = expected.permute(0, 2, 3, 1).numpy()
    for found, row in zip(model.predict(model.array(latent()), 500.0, cond), expected, strict=True):
        assert_same(model.numpy(found), row[None], at_least=100)
    assert psnr(expected[0], expected[1]) < 40


def test_no_negative_prompt_means_one_guess(little):
    x = little.array(latent())
    both = little.predict(x, 500.0, little.encode_text("a boat", "snow", 80, 64))
    one, none = little.predict(x, 500.0, little.encode_text("a boat", None, 80, 64))
    assert none is None
    assert_same(little.numpy(one), little.numpy(both[0]), at_least=120)


def test_everything_outside_is_float32_and_scaled(little):
    factor = little.manifest.vae.scaling_factor
    pixels = little.array(np.random.RandomState(1).uniform(-1, 1, (1, 64, 80, 3)))
    mean, deviation = little.encode_image(pixels)
    picture = little.decode(mean)
    assert mean.shape == deviation.shape == (1, 8, 10, 4) and picture.shape == (1, 64, 80, 3)
    raw = little._vae.encode(pixels)
    for scaled, own in ((mean, raw[0]), (deviation, raw[1])):
        assert_same(little.numpy(scaled), np.array(own) * factor)
    assert_same(little.numpy(picture), np.array(little._vae.decode(raw[0])))
    assert {x.dtype for x in (mean, deviation, picture)} == {mx.float32}


def test_half_precision_is_near_and_says_so(little):
    from little import Little

    half = on_mlx.load(Little(), "cpu", "float16")
    assert "float16" in half.description and "float32" in little.description
    text = Little().nbytes("text")  # which a CPU reads in float32
    assert 2 * (half.memory()["weights"] - text) == little.memory()["weights"] - text
    guesses = []
    for model in (little, half):
        cond = model.encode_text("a boat", "snow", 80, 64)
        guesses.append(model.numpy(model.predict(model.array(latent()), 500.0, cond)[0]))
    assert 35 < psnr(guesses[1], guesses[0]) < 90


def test_a_model_works_in_the_thread_that_loads_it():
    """MLX's graphs belong to their thread; a worker's engine thread must be able to do everything."""
    from little import Little

    found: list[np.ndarray] = []

    def work() -> None:
        model = on_mlx.load(Little(), "cpu", "float32")
        guess, _ = model.predict(model.array(latent()), 500.0, model.encode_text("a boat", "snow", 80, 64))
        found.append(model.numpy(model.decode(guess)))
        model.unload()

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 2 and np.array_equal(*found)


@pytest.mark.parametrize(
    ("device", "precision", "complaint"),
    [("cuda", "auto", "no device 'cuda'"), (None, "float8", "no precision 'float8'")],
)
def test_what_mlx_does_not_have_is_said_in_one_sentence(device, precision, complaint):
    from little import Little

    with pytest.raises(UserError, match=complaint):
        on_mlx.load(Little(), device, precision)


def test_probe_tells_what_is_here():
    facts = on_mlx.probe()
    assert facts["device"] in facts["devices"] and facts["memory"] > 1 << 28
    assert facts["fast"] == (not facts["note"])


def in_fresh_python(code: str, **env: str) -> subprocess.CompletedProcess:
    import os

    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})


def test_a_blas_that_is_none_is_refused_in_one_sentence(tmp_path):
    if sys.platform == "darwin":
        pytest.skip("macOS has Accelerate, and MLXLDM_BLAS is not looked at")
    bad = tmp_path / "libnothing.so"
    bad.write_bytes(b"no library")
    done = in_fresh_python("import mlxldm.on_mlx", MLXLDM_BLAS=str(bad))
    assert done.returncode and f"UserError: MLXLDM_BLAS={bad} is not a BLAS library" in done.stderr


def test_importing_mlx_first_is_noticed():
    if sys.platform == "darwin":
        pytest.skip("macOS has Accelerate, whatever is imported first")
    done = in_fresh_python("import mlx.core; from mlxldm.on_mlx import BLAS; print(BLAS.advice)")
    assert "import mlxldm.on_mlx before mlx.core" in done.stdout
