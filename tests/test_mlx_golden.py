"""The MLX modules against stored results of diffusers and transformers; needs no torch."""

from __future__ import annotations

import numpy as np
import pytest
from golden.make import CLIP, FILE, UNETS, VAE, given, make
from weights import ArrayFolder, assert_same, random

from mlxldm.config import ClipTextConfig, UNetConfig, VaeConfig

pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")
import mlxldm.on_mlx  # noqa: E402, F401, I001  (before mlx.core: brings the fast BLAS)
import mlx.core as mx  # noqa: E402
from mlxldm.on_mlx.clip import ClipText  # noqa: E402
from mlxldm.on_mlx.model import fill  # noqa: E402
from mlxldm.on_mlx.unet import UNet  # noqa: E402
from mlxldm.on_mlx.vae import Vae  # noqa: E402


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return dict(file)


def test_clip_computes_the_stored_result(stored):
    config = ClipTextConfig(**CLIP)
    tower = fill(ClipText(config), ArrayFolder({"text": random(config, 1)}), "text", mx.float32)
    answer = tower(given()["ids"].tolist())
    assert_same(answer.hidden, stored["clip hidden"])
    assert_same(answer.pooled, stored["clip pooled"])


@pytest.mark.parametrize("kind", UNETS)
def test_the_unet_computes_the_stored_result(stored, kind):
    config, inputs = UNetConfig.from_dict(UNETS[kind]), given()
    unet = fill(UNet(config), ArrayFolder({"denoiser": random(config, 2)}), "denoiser", mx.float32)
    time = unet.embed(321.0, added=(mx.array(inputs["pooled"]), inputs["sizes"]))
    out = unet(mx.array(inputs["latent"]), time, unet.keys_values(mx.array(inputs["text"])))
    assert_same(out, stored[f"unet {kind}"])


def test_the_autoencoder_computes_the_stored_result(stored):
    config = VaeConfig.from_dict(VAE)
    vae = fill(Vae(config), ArrayFolder({"vae": random(config, 3)}), "vae", mx.float32)
    assert_same(vae.decode(mx.array(given()["latent"])), stored["vae decode"])
    mean, deviation = vae.encode(mx.array(given()["pixels"]))
    assert_same(mean, stored["vae mean"])
    assert_same(deviation, stored["vae std"])


def test_the_stored_results_are_what_make_makes(stored):
    for module in ("torch", "diffusers", "transformers"):
        pytest.importorskip(module, reason=f"{module} is not installed: the stored results cannot be made again")
    made = make()
    assert made.keys() == stored.keys()
    for name, array in made.items():
        assert_same(array, stored[name])
