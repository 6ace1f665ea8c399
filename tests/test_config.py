"""Configs refuse what they do not know, read themselves back, and imply exactly the parameters the libraries build."""

from __future__ import annotations

import json
import math

import pytest

from mlxldm.config import SCHEDULERS, ClipTextConfig, Defaults, ScheduleConfig, UNetConfig, VaeConfig
from mlxldm.errors import UserError
from mlxldm.parameters import parameters

SD1 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SDXL = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "layers_per_block": 1,
}
UNETS = {
    "sd1": SD1,
    "sdxl": SDXL,
    "layers per level": {**SMALL, "layers_per_block": [1, 3], "attention_head_dim": [2, 4]},
    "only cross attention": {**SMALL, "only_cross_attention": [True, False]},
    "scale and shift": {**SMALL, "resnet_time_scale_shift": "scale_shift"},
    "class labels": {**SMALL, "num_class_embeds": 10},
    "class projection": {**SMALL, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
    "class linear": {**SMALL, "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 20},
    "class timestep": {**SMALL, "class_embed_type": "timestep"},
    "guidance as an embedding": {**SMALL, "time_cond_proj_dim": 16},
    "no middle": {**SMALL, "mid_block_type": None},
}
VAES = {
    "sd": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
    "small": {"block_out_channels": [32], "mid_block_add_attention": False, "use_quant_conv": False},
}


def ours(shape: tuple[int, ...]) -> tuple[int, ...]:
    """torch's shape as our layout has it."""
    if len(shape) == 4:
        o, i, h, w = shape
        return (o, i) if h == w == 1 else (o, h, w, i)
    return tuple(shape)


def built(make) -> dict[str, tuple[int, ...]]:
    torch = pytest.importorskip("torch", reason="needs torch: the parameters are compared with diffusers' modules")
    pytest.importorskip("diffusers", reason="needs diffusers: the parameters are compared with its modules")
    with torch.device("meta"):
        return {name: ours(tuple(value.shape)) for name, value in make().state_dict().items()}


@pytest.mark.parametrize("which", UNETS)
def test_a_unet_has_the_parameters_that_diffusers_builds(which):
    config = UNetConfig.from_dict(UNETS[which])

    def make():
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(**UNETS[which])

    def again():
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(**config.to_diffusers())

    assert built(make) == parameters(config) == built(again)


@pytest.mark.parametrize("which", VAES)
def test_an_autoencoder_has_the_parameters_that_diffusers_builds(which):
    config = VaeConfig.from_dict(VAES[which])

    def make():
        from diffusers import AutoencoderKL

        return AutoencoderKL(**config.to_diffusers())

    assert built(make) == parameters(config)


@pytest.mark.parametrize("projection", [False, True])
def test_a_text_encoder_has_the_parameters_that_transformers_builds(projection):
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    theirs = transformers.CLIPTextConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=20, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    shapes = built(lambda: kind(theirs))
    prefix = "text_model."
    shapes = {
        name if name.startswith((prefix, "text_projection.")) else prefix + name: shape
        for name, shape in shapes.items()
        if not name.endswith("position_ids")
    }
    values = {**theirs.to_dict(), "architectures": [kind.__name__]}
    config = ClipTextConfig.from_transformers(values, bos_token_id=97, eos_token_id=98, pad_token_id=98)
    assert config.projection_dim == (20 if projection else None)
    assert shapes == parameters(config)


def test_the_sizes_of_the_published_models_come_out_right():
    count = lambda config: sum(math.prod(shape) for shape in parameters(config).values())  # noqa: E731
    assert count(UNetConfig.from_dict(SD1)) == 859_520_964
    assert count(UNetConfig.from_dict(SDXL)) == 2_567_463_684
    assert count(VaeConfig.from_dict(VAES["sd"])) == 83_653_863
    assert count(ClipTextConfig()) == 123_060_480
    big = {"hidden_act": "gelu", "pad_token_id": 0}
    h = ClipTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, **big)
    g = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    assert count(h) == 340_387_840
    assert count(ClipTextConfig(**g, **big, projection_dim=1280)) == 694_659_840
    sd2 = {**SD1, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
    assert count(UNetConfig.from_dict(sd2)) == 865_910_724


def test_heads_are_what_diffusers_calls_attention_head_dim():
    assert UNetConfig.from_dict(SD1).heads == (8, 8, 8, 8)
    assert UNetConfig.from_dict(SDXL).heads == (5, 10, 20)
    assert UNetConfig.from_dict({**SMALL, "attention_head_dim": 8, "num_attention_heads": [2, 4]}).heads == (2, 4)


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig.from_dict(SDXL),
        VaeConfig.from_dict(VAES["sd"]),
        ClipTextConfig(projection_dim=12, skip=-2),
        ScheduleConfig(prediction="v", trained_betas=(0.1,) * 3, num_train_timesteps=3, options={"solver_order": 3}),
        Defaults(sampler="euler"),
    ],
)
def test_a_config_reads_its_own_dict_back(config):
    assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "read, values, said",
    [
        (UNetConfig.from_dict, {**SD1, "dual_cross_attention": True}, "dual_cross_attention = True"),
        (UNetConfig.from_dict, {**SD1, "block_out_chanels": [1]}, "Did you mean 'block_out_channels'"),
        (UNetConfig.from_dict, {**SD1, "block_out_channels": [320, 64]}, "down_block_types has 4 entries"),
        (UNetConfig.from_dict, {**SMALL, "block_out_channels": [32, -64]}, "above 0"),
        (UNetConfig.from_dict, {**SMALL, "attention_head_dim": 5}, "do not divide"),
        (UNetConfig.from_dict, {**SMALL, "in_channels": "4"}, "in_channels is '4', but a whole number"),
        (UNetConfig.from_dict, {**SMALL, "in_channels": True}, "a whole number was expected"),
        (UNetConfig.from_dict, {**SMALL, "in_channels": 1 << 62}, "a whole number was expected"),
        (UNetConfig.from_dict, {**SMALL, "down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        (UNetConfig.from_dict, [], "an object was expected"),
        (UNetConfig.from_dict, {**SMALL, "layers_per_block": 200, "transformer_layers_per_block": 200}, "80000 layers"),
        (VaeConfig.from_dict, {"scaling_factor": float("nan")}, "a number was expected"),
        (VaeConfig.from_dict, {"latents_mean": [0.0]}, "latents_mean"),
        (ClipTextConfig.from_dict, {"hidden_act": "relu"}, "'relu'"),
        (ClipTextConfig.from_dict, {"vocab_size": 10}, "outside its vocabulary of 10"),
        (ClipTextConfig.from_transformers, {"model_type": "t5"}, "model_type"),
        (ScheduleConfig.from_diffusers, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch"),
        (ScheduleConfig.from_diffusers, {"_class_name": "PNDMScheduler", "thresholding": True}, "thresholding"),
        (ScheduleConfig.from_diffusers, {"_class_name": "PNDMScheduler", "beta_end": 2}, "betas"),
        (Defaults.from_dict, {"step": 3}, "Did you mean 'steps'"),
    ],
)
def test_what_a_config_cannot_say_is_refused_in_a_sentence(read, values, said):
    with pytest.raises(UserError) as error:
        read(values)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_scheduler_config_keeps_what_it_says_and_nothing_else():
    pndm = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
    schedule = ScheduleConfig.from_diffusers(pndm)
    assert (schedule.sampler, schedule.spacing, schedule.prediction) == ("pndm", None, "epsilon")
    assert schedule.set_alpha_to_one is False and schedule.options == {"skip_prk_steps": True}
    other = ScheduleConfig.from_diffusers(
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "algorithm_type": "sde-dpmsolver++",
            "lambda_min_clipped": -math.inf,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
            "variance_type": None,
        }
    )
    assert (other.sampler, other.spacing, other.prediction, other.zero_snr) == ("dpmpp_2m_sde", "trailing", "v", True)
    assert (other.beta_schedule, other.beta_end) == ("linear", 0.02)  # diffusers' own defaults where it is silent
    assert other.options == {"algorithm_type": "sde-dpmsolver++"}


@pytest.mark.parametrize(
    "name", [name.removesuffix("Scheduler") for name in SCHEDULERS if "SDE" not in name and "EDM" not in name]
)
def test_every_scheduler_of_today_as_diffusers_saves_it_is_understood(name):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: its schedulers' own configs are read")
    scheduler = getattr(diffusers, f"{name}Scheduler")(beta_start=0.001, beta_end=0.01)
    schedule = ScheduleConfig.from_diffusers(json.loads(scheduler.to_json_string()))
    assert (schedule.beta_start, schedule.beta_end) == (0.001, 0.01)
    assert schedule.beta_schedule == scheduler.config.beta_schedule
