"""Models for few steps: latent consistency models draw what diffusers draws, and all of them get their own defaults."""

from __future__ import annotations

import pytest
from conftest import has, needs_torch

from mlxldm.errors import UserError
from mlxldm.generate import generate, resolve
from mlxldm.job import Job

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

import tiny  # noqa: E402
from test_large_models import as_bytes, same  # noqa: E402
from test_parity import PROMPT  # noqa: E402
from test_tasks import drawn, pictures  # noqa: E402, F401

import mlxldm.backend  # noqa: E402
from mlxldm_convert import view  # noqa: E402
from mlxldm_convert.detect import Wish  # noqa: E402
from mlxldm_convert.distilled import kind_of  # noqa: E402


@pytest.fixture(scope="module")
def consistency(tmp_path_factory):
    """(the parts of a latent consistency model, {backend: ours})"""
    import diffusers

    pipe = tiny.sd1()
    pipe.unet = tiny.unet(time_cond_proj_dim=256)
    pipe.scheduler = diffusers.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=True, steps_offset=1
    )
    path = tiny.save(pipe, tmp_path_factory.mktemp("few") / "lcm")
    ours = {name: mlxldm.backend.load(view(path), name, "cpu", "float32") for name in ("mlx", "torch")}
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    return parts, ours


@pytest.mark.parametrize("size, steps, guidance", [((64, 96), 4, 8.5), ((96, 64), 1, 2.0), ((64, 64), 6, 1.0)])
def test_a_latent_consistency_model_draws_what_diffusers_draws(size, steps, guidance, consistency):
    import diffusers
    import torch

    parts, ours = consistency
    pipe = diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        PROMPT, guidance_scale=guidance, num_inference_steps=steps, width=size[0], height=size[1],
        generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).images[0]  # fmt: skip
    job = Job(prompt=PROMPT, seed=7, steps=steps, guidance=guidance, width=size[0], height=size[1])
    assert resolve(job, ours["mlx"].manifest).sampler == "lcm"
    same(ours, job, as_bytes(wanted), [{"seed": 8}, {"prompt": "a boat"}])
    other = drawn(ours["mlx"], job.replace(guidance=guidance + 6))
    assert (other != drawn(ours["mlx"], job)).mean() > 0.1


def test_a_latent_consistency_model_draws_over_a_picture(consistency, pictures):  # noqa: F811
    import diffusers
    import torch
    from PIL import Image

    parts, ours = consistency
    pipe = diffusers.LatentConsistencyModelImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image, _ = pictures(64, 96)
    wanted = pipe(
        PROMPT, image=Image.open(image), strength=1.0, guidance_scale=8.5, num_inference_steps=4,
        generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).images[0]  # fmt: skip
    job = Job(prompt=PROMPT, seed=7, steps=4, guidance=8.5, image=image, strength=1.0)
    same(ours, job, as_bytes(wanted), [{"seed": 8}])


def test_a_model_that_guides_itself_is_asked_once_a_step(consistency, monkeypatch):
    ours = consistency[1]["mlx"]
    rows = []
    predict = ours.predict
    monkeypatch.setattr(ours, "predict", lambda *args: rows.append(predict(*args)) or rows[-1])
    list(generate(ours, Job(prompt=PROMPT, negative="snow", seed=7, steps=3, width=64, height=64)))
    assert len(rows) == 3 and all(without is None for _, without in rows)
    for more in ({"guidance_rescale": 0.5}, {"guidance_start": 0.2}, {"sampler": "ddim_cfgpp"}):
        with pytest.raises(UserError, match="is told the guidance as a number and does it itself"):
            resolve(Job(prompt="x", **more), ours.manifest)


@pytest.mark.parametrize("guidance, steps", [(0.0, 1), (0.0, 4), (1.0, 2)])
def test_a_turbo_model(guidance, steps, tmp_path):
    import diffusers
    import torch

    pipe = tiny.sdxl()
    config = {**pipe.scheduler.config, "timestep_spacing": "trailing"}
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(config)
    pipe.set_progress_bar_config(disable=True)
    folder = view(tiny.save(pipe, tmp_path / "sdxl-turbo"))
    own = folder.manifest.defaults
    assert (own.sampler, own.steps, own.guidance) == ("euler_a", 1, 1.0)
    assert "the name says turbo" in " ".join(folder.report()["why"])
    ours = {name: mlxldm.backend.load(folder, name, "cpu", "float32") for name in ("mlx", "torch")}
    wanted = pipe(
        PROMPT, guidance_scale=guidance, num_inference_steps=steps, width=64, height=96, output_type="np",
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]  # fmt: skip
    job = Job(prompt=PROMPT, seed=7, steps=steps, guidance=guidance, width=64, height=96)
    same(ours, job, as_bytes(wanted), [{"seed": 8}, {"prompt": "a boat"}])


@pytest.mark.parametrize("name, kind", [
    ("sd_xl_turbo_1.0_fp16", "turbo"), ("dreamshaperXL_v21TurboDPMSDE", "turbo"), ("sdxl_lightning_4step", "lightning"),
    ("realvisxlV40_v40LightningBakedvae", "lightning"), ("Hyper-SDXL-8steps", "hyper"), ("v51HyperVAE", "hyper"),
    ("Hyper_Realistic", None), ("hyperrealism", None), ("turbocharged", None), ("LCM_Dreamshaper_v7", "lcm"),
    ("filmclm", None), ("lightningstorm", None),
])  # fmt: skip
def test_names_that_say_it(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize("name, own", [
    ("sd_turbo", ("euler_a", "trailing", 1, 1.0)), ("myTurboMix", ("euler_a", "trailing", 4, 1.0)),
    ("x_lightning_2step", ("euler", "trailing", 2, 1.0)), ("Hyper-SD15-1step", ("euler", "trailing", 1, 1.0)),
    ("photon_lcm", ("lcm", "model", 4, 1.0)), ("photon_30steps", ("pndm", "model", 25, 7.5)),
])  # fmt: skip
def test_a_single_file_gets_the_defaults_of_its_name(name, own, tmp_path):
    import single_files

    state = single_files.original(single_files.pipeline("sd1"))
    folder = view(single_files.write(state, tmp_path / f"{name}.safetensors"), Wish(family="sd1"))
    got = folder.manifest.defaults
    assert (got.steps, got.guidance, got.spacing) == (own[2], own[3], own[1])
    assert own[0] == "pndm" or got.sampler == own[0]
    assert any("the name says" in line for line in folder.report()["why"]) == (own[0] != "pndm")
