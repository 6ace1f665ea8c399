"""The MLX autoencoder computes what diffusers' AutoencoderKL computes, both ways."""

from __future__ import annotations

import numpy as np
import pytest
from weights import ArrayFolder, assert_same, of_torch, random

from mlxldm.config import VaeConfig
from mlxldm.errors import UserError

pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")
import mlxldm.on_mlx  # noqa: E402, F401, I001  (before mlx.core: brings the fast BLAS)
import mlx.core as mx  # noqa: E402
from mlxldm.on_mlx.device import form  # noqa: E402
from mlxldm.on_mlx.layers import attend  # noqa: E402
from mlxldm.on_mlx.model import fill  # noqa: E402
from mlxldm.on_mlx.vae import Vae  # noqa: E402

FOUR = {
    "block_out_channels": (16, 16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 64,
}


def levels(*widths: int) -> dict:
    """The config of an autoencoder with these widths, widest picture first."""
    n = len(widths)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * n, "up_block_types": ("UpDecoderBlock2D",) * n}
    return {"block_out_channels": widths, **blocks}


KINDS = {
    "f8": {},
    "f2": levels(16, 32),
    "f1": levels(16),
    "16 channels": {**levels(16, 32), "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {**levels(16, 32), "mid_block_add_attention": False},
    "one layer": {**levels(16, 32), "layers_per_block": 1, "in_channels": 1, "out_channels": 1},
}


def theirs(**more):
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: nothing to compare with")
    torch.manual_seed(3)
    model = diffusers.AutoencoderKL(**(FOUR | more)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ours(model) -> Vae:
    config = VaeConfig.from_dict(dict(model.config))
    return fill(Vae(config), ArrayFolder({"vae": of_torch(model)}), "vae", mx.float32)


def draw(*shape: int) -> np.ndarray:
    return np.random.RandomState(5).standard_normal(shape).astype(np.float32)


def check_both_ways(model, found: Vae, height: int, width: int) -> None:
    import torch

    latents = draw(2, height, width, model.config.latent_channels)
    scale = 2 ** (len(model.config.block_out_channels) - 1)
    pixels = draw(2, height * scale, width * scale, model.config.in_channels)
    with torch.no_grad():
        decoded = model.decode(torch.from_numpy(latents).permute(0, 3, 1, 2)).sample
        posterior = model.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).latent_dist
    assert_same(found.decode(mx.array(latents)), decoded.permute(0, 2, 3, 1).numpy())
    mean, deviation = found.encode(mx.array(pixels))
    assert_same(mean, posterior.mean.permute(0, 2, 3, 1).numpy())
    assert_same(deviation, posterior.std.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_every_config_computes_what_diffusers_computes(kind):
    model = theirs(**KINDS[kind])
    check_both_ways(model, ours(model), 6, 6)


@pytest.mark.parametrize("size", [(4, 9), (11, 3), (1, 1)])
def test_portrait_landscape_and_odd_sizes(size):
    model = theirs()
    check_both_ways(model, ours(model), *size)


def test_the_gpu_form_computes_the_same():
    model = theirs()
    with form(is_gpu=True):
        check_both_ways(model, ours(model), 5, 8)


@pytest.mark.parametrize("is_gpu", [False, True])
def test_attention_in_pieces_is_attention(is_gpu):
    q, k, v = (mx.array(draw(2, 3, length, 16)) for length in (50, 30, 30))
    with form(is_gpu):
        whole = attend(q, k, v, 0.25)
        for rows in (1, 7, 49):
            assert_same(attend(q, k, v, 0.25, limit=rows * 2 * 3 * 30 * 4), np.array(whole), at_least=120)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_is_near(dtype):
    config = VaeConfig.from_dict(FOUR)
    folder = ArrayFolder({"vae": random(config, 11)})
    exact, half = (fill(Vae(config), folder, "vae", kind) for kind in (mx.float32, dtype))
    latents = mx.array(draw(1, 4, 4, 4))
    error = np.abs(np.array(half.decode(latents)) - np.array(exact.decode(latents))).max()
    assert 1e-5 < error < (0.05 if dtype == mx.float16 else 0.4)


def test_a_folder_that_does_not_fit_is_refused_with_names():
    config = VaeConfig.from_dict(FOUR)
    weights = random(config, 11)
    weights["decoder.mid_block.attentions.0.query.weight"] = weights.pop("decoder.mid_block.attentions.0.to_q.weight")
    with pytest.raises(UserError, match=r"without a place: decoder\.mid_block\.attentions\.0\.query\.weight"):
        fill(Vae(config), ArrayFolder({"vae": weights}), "vae", mx.float32)
