"""The MLX modules against stored results of diffusers and transformers; needs no torch."""

from __future__ import annotations

import numpy as np
import pytest
from golden.make import ALONE, BERT, CLIP, FILE, RESCALER, UNETS, VAES, VQ, given, make
from weights import ArrayFolder, assert_same, random

from mlxldm.config import BertConfig, ClipTextConfig, RescalerConfig, UNetConfig, VaeConfig, VqConfig

pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")
import mlxldm.on_mlx  # noqa: E402, F401, I001  (before mlx.core: brings the fast BLAS)
import mlx.core as mx  # noqa: E402
from mlxldm.on_mlx.bert import BertText  # noqa: E402
from mlxldm.on_mlx.clip import ClipText  # noqa: E402
from mlxldm.on_mlx.device import form  # noqa: E402
from mlxldm.on_mlx.model import fill, pad_heads  # noqa: E402
from mlxldm.on_mlx.told import Rescaler  # noqa: E402
from mlxldm.on_mlx.unet import UNet  # noqa: E402
from mlxldm.on_mlx.vae import Vae, Vq  # noqa: E402


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


@pytest.mark.parametrize("is_gpu", [False, True])
@pytest.mark.parametrize("kind", ALONE)
def test_a_unet_without_text_computes_the_stored_result(stored, kind, is_gpu):
    config = UNetConfig.from_dict(ALONE[kind])
    unet = fill(UNet(config), ArrayFolder({"denoiser": random(config, 2)}), "denoiser", mx.float32)
    assert unet.keys_values(mx.zeros((1, 7, 24))) == []
    with form(is_gpu):
        if is_gpu:
            pad_heads(unet, (24,))  # heads of 16: this once, also below the sizes of real models
            assert {attention.head for attention in unet.attentions()} == {24}
        assert_same(unet(mx.array(given()["even"]), unet.embed(321.0), []), stored[f"unet {kind}"])


@pytest.mark.parametrize("is_gpu", [False, True])
@pytest.mark.parametrize("kind", VAES)
def test_the_autoencoder_computes_the_stored_result(stored, kind, is_gpu):
    config = VaeConfig.from_dict(VAES[kind])
    vae = fill(Vae(config), ArrayFolder({"vae": random(config, 3)}), "vae", mx.float32)
    with form(is_gpu):
        assert_same(vae.decode(mx.array(given()["latent"])), stored[f"{kind} decode"])
        mean, deviation = vae.encode(mx.array(given()["pixels"]))
        assert_same(mean, stored[f"{kind} mean"])
        assert_same(deviation, stored[f"{kind} std"])


@pytest.mark.parametrize("is_gpu", [False, True])
def test_the_autoencoder_with_codes_computes_the_stored_result(stored, is_gpu):
    config = VqConfig.from_dict(VQ)
    vq = fill(Vq(config), ArrayFolder({"vae": random(config, 4)}), "vae", mx.float32)
    with form(is_gpu):
        assert_same(vq.decode(mx.array(given()["latent"])), stored["vq decode"])
        latent, deviation = vq.encode(mx.array(given()["pixels"]))
        assert_same(latent, stored["vq encode"])
        assert not np.array(deviation).any() and deviation.shape == latent.shape


def test_bert_computes_the_stored_result(stored):
    config = BertConfig(**BERT)
    tower = fill(BertText(config), ArrayFolder({"text": random(config, 5)}), "text", mx.float32)
    assert_same(tower(given()["ids"].tolist()).hidden, stored["bert"])


def test_the_rescaler_computes_the_stored_result(stored):
    config = RescalerConfig(**RESCALER)
    rescaler = fill(Rescaler(config), ArrayFolder({"rescaler": random(config, 6)}), "rescaler", mx.float32)
    assert_same(rescaler(mx.array(given()["pixels"])), stored["rescaler"])


def test_the_stored_results_are_what_make_makes(stored):
    for module in ("torch", "diffusers", "transformers"):
        pytest.importorskip(module, reason=f"{module} is not installed: the stored results cannot be made again")
    made = make()
    assert made.keys() == stored.keys()
    for name, array in made.items():
        assert_same(array, stored[name])
