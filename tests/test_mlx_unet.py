"""The MLX U-Net computes what diffusers' UNet2DConditionModel computes, for every config it claims to know."""

from __future__ import annotations

import numpy as np
import pytest
from weights import ArrayFolder, assert_same, of_torch, random

from mlxldm.config import UNetConfig
from mlxldm.errors import UserError

pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")
import mlxldm.on_mlx  # noqa: E402, F401, I001  (before mlx.core: brings the fast BLAS)
import mlx.core as mx  # noqa: E402
from mlxldm.on_mlx.device import form  # noqa: E402
from mlxldm.on_mlx.model import fill, pad_heads  # noqa: E402
from mlxldm.on_mlx.unet import UNet  # noqa: E402

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
SMALL = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": (CROSS, PLAIN),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
}
FEWER = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": (PLAIN, CROSS, CROSS),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": (1, 2, 4),
    "mid_block_type": "UNetMidBlock2D",
    "use_linear_projection": True,
    **SDXL,
}
WIDTH = {"projection_class_embeddings_input_dim": 12}
KINDS = {
    "sd1": {
        "block_out_channels": (80, 160, 160, 160),
        "down_block_types": (CROSS,) * 3 + (PLAIN,),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "sd2": {
        "block_out_channels": (16, 32, 64),
        "down_block_types": (CROSS, CROSS, PLAIN),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": (1, 2, 4),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "block_out_channels": (16, 32, 32),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": (1, 2, 4),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        **SDXL,
    },
    "ssd-1b": {
        **FEWER,
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "vega": {**FEWER, "transformer_layers_per_block": (1, 1, 2)},
    "layers that differ, with a middle": {
        **FEWER,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "transformer_layers_per_block": [1, [2, 1], [3, 2]],
        "reverse_transformer_layers_per_block": [[1, 3, 2], [2, 1, 3], 1],
    },
    "one level": {"block_out_channels": (16,), "down_block_types": (CROSS,), "up_block_types": ("CrossAttnUpBlock2D",)},
    "no middle": {"mid_block_type": None},
    "no text": {"down_block_types": (PLAIN,) * 2, "up_block_types": ("UpBlock2D",) * 2, "mid_block_type": None},
    "layers per level": {"layers_per_block": (1, 3), "cross_attention_dim": (24, 24)},
    "only cross-attention": {"only_cross_attention": True},
    "only cross-attention below": {
        "down_block_types": (CROSS,) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "only_cross_attention": (True, False),
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "another eps, sines first": {"norm_eps": 1e-3, "flip_sin_to_cos": False, "freq_shift": 1},
    "inpainting channels": {"in_channels": 9},
    "guidance embedded": {"time_cond_proj_dim": 12},
    "classes, table": {"num_class_embeds": 5},
    "classes, timestep": {"class_embed_type": "timestep"},
    "classes, identity": {"class_embed_type": "identity"},
    "classes, projection": {"class_embed_type": "projection", **WIDTH},
    "classes, simple projection": {"class_embed_type": "simple_projection", **WIDTH},
}


def theirs(**more):
    """diffusers' U-Net with shaken norms and biases."""
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: nothing to compare with")
    torch.manual_seed(3)
    model = diffusers.UNet2DConditionModel(**(SMALL | more)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ours(model) -> UNet:
    config = UNetConfig.from_dict(dict(model.config))
    return fill(UNet(config), ArrayFolder({"denoiser": of_torch(model)}), "denoiser", mx.float32)


def inputs(config: dict, batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Latents, text and whatever else this config wants, NumPy, NHWC."""
    draw = np.random.RandomState(5).standard_normal
    wanted = {
        "x": draw((batch, height, width, config.get("in_channels", 4))).astype(np.float32),
        "text": draw((batch, 7, SMALL["cross_attention_dim"])).astype(np.float32),
    }
    time = 4 * config.get("block_out_channels", SMALL["block_out_channels"])[0]
    kind = config.get("class_embed_type")
    if config.get("num_class_embeds") or kind == "timestep":
        wanted["labels"] = np.arange(1, batch + 1)
    elif kind:
        wanted["labels"] = draw((batch, time if kind == "identity" else 12)).astype(np.float32)
    if config.get("addition_embed_type"):
        wanted["pooled"] = draw((batch, 20)).astype(np.float32)
        wanted["sizes"] = np.array([[64, 48, 0, 8, 64, 48]] * batch, np.float32)
    if config.get("time_cond_proj_dim"):
        wanted["condition"] = draw((batch, config["time_cond_proj_dim"])).astype(np.float32)
    return wanted


def run_theirs(model, given: dict, timestep: float) -> np.ndarray:
    import torch

    def tensor(name):
        return torch.from_numpy(given[name]) if name in given else None

    added = {"text_embeds": tensor("pooled"), "time_ids": tensor("sizes")} if "pooled" in given else None
    with torch.no_grad():
        out = model(
            tensor("x").permute(0, 3, 1, 2), timestep, tensor("text"), class_labels=tensor("labels"),
            timestep_cond=tensor("condition"), added_cond_kwargs=added,
        ).sample  # fmt: skip
    return out.permute(0, 2, 3, 1).numpy()


def run_ours(model: UNet, given: dict, timestep: float) -> np.ndarray:
    arrays = {name: mx.array(value) for name, value in given.items()}
    added = (arrays["pooled"], given["sizes"]) if "pooled" in given else None
    time = model.embed(timestep, labels=arrays.get("labels"), added=added, condition=arrays.get("condition"))
    return np.array(model(arrays["x"], time, model.keys_values(arrays["text"])))


@pytest.mark.parametrize("kind", KINDS)
def test_every_config_computes_what_diffusers_computes(kind):
    model = theirs(**KINDS[kind])
    given = inputs(KINDS[kind], 2, 8, 8)
    assert_same(run_ours(ours(model), given, 401.0), run_theirs(model, given, 401.0))


@pytest.mark.parametrize("size", [(8, 16), (24, 8), (9, 13), (10, 7), (1, 1)])
def test_portrait_landscape_and_odd_sizes(size):
    model = theirs(**KINDS["sd2"])
    given = inputs(KINDS["sd2"], 1, *size)
    assert_same(run_ours(ours(model), given, 37.5), run_theirs(model, given, 37.5))


def test_the_gpu_form_computes_the_same():
    model = theirs(**KINDS["sd1"])
    given = inputs(KINDS["sd1"], 2, 8, 8)
    with form(is_gpu=True):
        found = run_ours(ours(model), given, 401.0)
    assert_same(found, run_theirs(model, given, 401.0))


def small_unet(**more) -> UNet:
    """A U-Net of ours alone, from a NumPy seed."""
    config = UNetConfig.from_dict(SMALL | more)
    return fill(UNet(config), ArrayFolder({"denoiser": random(config, 11)}), "denoiser", mx.float32)


@pytest.mark.parametrize("only_cross", [False, True])
@pytest.mark.parametrize("is_gpu", [False, True])
def test_padding_heads_from_40_to_64_changes_nothing(only_cross, is_gpu):
    more = {"block_out_channels": (80, 160), "only_cross_attention": only_cross}
    plain, padded = small_unet(**more), small_unet(**more)
    pad_heads(padded)
    assert [a.head for a in plain.attentions()] != [a.head for a in padded.attentions()]
    assert {a.head for a in padded.attentions()} == {64, 80}
    given = inputs(more, 2, 8, 8)
    with form(is_gpu):
        assert_same(run_ours(padded, given, 10.0), run_ours(plain, given, 10.0), at_least=100)


def test_a_prompt_and_a_time_change_the_output():
    model, given = small_unet(), inputs({}, 1, 8, 8)
    first = run_ours(model, given, 10.0)
    assert np.abs(first - run_ours(model, given, 900.0)).max() > 1e-2
    given["text"] = given["text"][:, ::-1].copy() * 2
    assert np.abs(first - run_ours(model, given, 10.0)).max() > 1e-3


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_stays_half_precision_and_near(dtype):
    config = UNetConfig.from_dict(SMALL | KINDS["sdxl"])
    folder = ArrayFolder({"denoiser": random(config, 11)})
    exact, half = (fill(UNet(config), folder, "denoiser", kind) for kind in (mx.float32, dtype))
    given = inputs(KINDS["sdxl"], 1, 8, 8)
    error = run_ours(half, given, 401.0) - run_ours(exact, given, 401.0)
    assert 1e-5 < np.abs(error).max() < (0.05 if dtype == mx.float16 else 0.4)
    text = half.keys_values(mx.array(given["text"]))
    assert {array.dtype for pair in text for array in pair} == {dtype}
    assert half.embed(3.0, added=(mx.array(given["pooled"]), given["sizes"])).dtype == dtype


def test_a_group_norm_far_from_zero_is_exact_enough():
    from mlxldm.on_mlx.layers import GroupNorm

    draw = np.random.RandomState(0).standard_normal
    x = (30 + draw((1, 64, 64, 32))).astype(np.float32)
    norm = GroupNorm(8, 32, 1e-5)
    wide = x.astype(np.float64).reshape(1, -1, 8, 4)
    mean, var = wide.mean(axis=(1, 3), keepdims=True), wide.var(axis=(1, 3), keepdims=True)
    expected = ((wide - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    assert_same(np.array(norm(mx.array(x))), expected)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("conv_in.bias"), "tiny's denoiser has no weights for: conv_in.bias"),
        (lambda w: w.update({"more.weight": np.zeros(3)}), "tiny's denoiser has weights without a place: more.weight"),
        (
            lambda w: w.update({"conv_in.weight": np.zeros((16, 4, 3, 3))}),
            "conv_in.weight (16, 4, 3, 3) instead of (16, 3, 3, 4)",
        ),
        (lambda w: [w.pop(name) for name in sorted(w)[:8]], " and 3 more"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_with_names(change, complaint):
    config = UNetConfig.from_dict(SMALL)
    weights = random(config, 11)
    change(weights)
    with pytest.raises(UserError) as caught:
        fill(UNet(config), ArrayFolder({"denoiser": weights}), "denoiser", mx.float32)
    assert complaint in str(caught.value)
    assert str(caught.value).count(".weight") + str(caught.value).count(".bias") <= 5
