"""Models of EDM's noise levels draw what diffusers draws: Playground 2.5's kind, CosXL's, and CosXL Edit's."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import has, needs_torch

from mlxldm.config import ScheduleConfig, VaeConfig
from mlxldm.errors import UserError
from mlxldm.job import Job
from mlxldm.schedule import Schedule

PLAYGROUND = {
    "_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002,
    "rho": 7.0, "num_train_timesteps": 1000, "prediction_type": "epsilon", "solver_order": 2, "solver_type": "midpoint",
    "thresholding": False, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "lower_order_final": True,
    "euler_at_final": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0,
}  # fmt: skip
COSXL = {
    "_class_name": "EDMEulerScheduler", "sigma_data": 1.0, "sigma_max": 120.0, "sigma_min": 0.002,
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "rho": 7.0,
}  # fmt: skip
MEAN, STD = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)  # Playground 2.5's
CONTINUOUS = (
    "ddim ddpm euler euler_a heun lms dpm2 dpm2_a dpmpp_2s dpmpp_2m dpmpp_2m_sde dpmpp_sde dpmpp_3m_sde unipc deis "
    "euler_cfgpp dpmpp_2m_cfgpp"
).split()


def plan(config=COSXL, steps=6, spacing="model", sampler="euler", **more):
    return Schedule(ScheduleConfig.from_diffusers(config), "sdxl").plan(steps, spacing, sampler, **more)


def test_a_config_reads_its_own_words_back():
    for config in (PLAYGROUND, COSXL, {"_class_name": "EDMEulerScheduler"}):
        read = ScheduleConfig.from_diffusers(config)
        assert ScheduleConfig.from_dict(json.loads(json.dumps(read.to_dict()))) == read
        assert (read.sigma_data, read.options["sigma_max"]) == (
            config.get("sigma_data", 0.5), config.get("sigma_max", 80.0)
        )  # fmt: skip
    noisy = ScheduleConfig.from_diffusers(PLAYGROUND | {"algorithm_type": "sde-dpmsolver++"})
    assert noisy.sampler == "dpmpp_2m_sde"
    vae = VaeConfig(latents_mean=MEAN, latents_std=STD, scaling_factor=0.5)
    assert VaeConfig.from_dict(json.loads(json.dumps(vae.to_dict()))) == vae


@pytest.mark.parametrize("change, said", [
    ({"sigma_data": 0.0}, "sigma_data"),
    ({"sigma_min": 90.0}, "above 0, the first below the second"),
    ({"sigma_max": "much"}, "above 0, the first below the second"),
    ({"rho": -1.0}, "above 0"),
    ({"sigma_schedule": "linear"}, "sigma_schedule is not karras or exponential"),
    ({"prediction_type": "sample"}, "prediction"),
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        ScheduleConfig.from_diffusers(PLAYGROUND | change)


@pytest.mark.parametrize("change, said", [
    ({"latents_std": None}, "only one of"),
    ({"latents_mean": (0.0, 1.0)}, "4 numbers each"),
    ({"latents_std": (1.0, 0.0, 1.0, 1.0)}, "cannot be"),
    ({"shift_factor": 0.1}, "no shift_factor"),
])  # fmt: skip
def test_latents_that_cannot_be_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        VaeConfig(**({"latents_mean": MEAN, "latents_std": STD} | change))


@pytest.mark.parametrize("wish, said", [
    ({"sampler": "pndm"}, "pndm steps from timestep to timestep"),
    ({"sampler": "lcm"}, "lcm steps from timestep"),
    ({"spacing": "trailing"}, "trailing is made for timesteps"),
    ({"spacing": "beta"}, "beta is made for timesteps"),
    ({"spacing": "ays"}, "a table for"),
    ({"part": (0.0, 0.8)}, "no timesteps to share with a refiner"),
])  # fmt: skip
def test_what_asks_for_timesteps_is_refused_in_one_sentence(wish, said):
    with pytest.raises(UserError, match=said) as error:
        plan(**wish)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [PLAYGROUND, COSXL], ids=["playground", "cosxl"])
@pytest.mark.parametrize("sampler", CONTINUOUS)
@pytest.mark.parametrize("spacing", ["model", "exponential"])
def test_every_sampler_walks_to_the_mean_of_what_it_was_taught(sampler, spacing, config):
    """For Gaussian data the clean guess is known, and with it where every walk goes: to data of the same spread."""
    from mlxldm.samplers import CFGPP, SAMPLERS

    spread, middle = config["sigma_data"], 0.3
    walk = plan(config, 60, spacing, sampler)
    assert walk.sigmas[0] == pytest.approx(config["sigma_max"]) and walk.sigmas[-1] == 0
    random = np.random.default_rng(1)
    x = random.standard_normal(20_000) * walk.start_scale

    def denoise(x, sigma):
        assert walk.timestep(sigma) == pytest.approx(np.log(sigma) / 4)
        guess = middle + (x - middle) * spread**2 / (sigma**2 + spread**2)
        return (guess, guess) if sampler in CFGPP else guess

    *_, (x, _) = SAMPLERS[sampler](denoise, x, walk.sigmas, lambda: random.standard_normal(20_000), **walk.options)
    x = x * walk.end_scale
    assert x.mean() == pytest.approx(middle, abs=0.05 * spread)
    assert x.std() == pytest.approx(spread, rel=0.1)


if has("torch") and has("mlx") and has("diffusers"):
    import diffusers
    import single_files
    import tiny
    import torch
    from PIL import Image
    from test_large_models import as_bytes, same
    from test_parity import NEGATIVE, PROMPT, put_back

    import mlxldm.backend
    from mlxldm_convert import view
    from mlxldm_convert.detect import Wish


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(kind)`: diffusers' parts, our models of the folder by backend, and the folder."""
    root, made = tmp_path_factory.mktemp("edm"), {}

    def make(kind: str):
        if kind not in made:
            config = PLAYGROUND if kind == "playground" else COSXL
            pipe = tiny.sdxl()
            pipe.register_modules(scheduler=getattr(diffusers, config["_class_name"]).from_config(config))
            if kind == "playground":
                pipe.register_modules(vae=tiny.vae(latents_mean=MEAN, latents_std=STD, scaling_factor=0.5))
            if kind == "cosxl-edit":
                own = {key: value for key, value in pipe.unet.config.items() if key[0] != "_"}
                pipe.register_modules(unet=tiny.unet(**own | {"in_channels": 8}))
            path = tiny.save(pipe, root / kind)
            index = json.loads((path / "model_index.json").read_text())
            if kind == "cosxl-edit":
                index |= {"is_cosxl_edit": True, "_class_name": "StableDiffusionXLInstructPix2PixPipeline"}
            (path / "model_index.json").write_text(json.dumps(index))
            folder = view(path)
            ours = {name: mlxldm.backend.load(folder, name, "cpu", "float32") for name in ("mlx", "torch")}
            made[kind] = pipe.components, ours, path
        return made[kind]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of a picture and a mask, 64 × 96."""
    root = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[0:96, 0:64] / 96
    Image.fromarray((np.stack([x, y, (x + y > 0.7) * 0.8], -1) * 255).astype(np.uint8)).save(root / "image.png")
    mask = np.zeros((96, 64), np.uint8)
    mask[24:72, 20:50] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return str(root / "image.png"), str(root / "mask.png")


CASES = [
    # kind, diffusers' scheduler if not the model's own, our sampler, spacing
    ("playground", None, "dpmpp_2m", "model"),
    ("playground", "EDMEulerScheduler", "euler", "karras"),
    ("playground", ("EDMEulerScheduler", {"sigma_schedule": "exponential"}), "euler", "exponential"),
    ("cosxl", None, "euler", "model"),
    ("cosxl", "EDMDPMSolverMultistepScheduler", "dpmpp_2m", "model"),
    ("cosxl", ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}), "dpmpp_2m_sde", "model"),
]


@pytest.mark.parametrize("kind, scheduler, sampler, spacing, task", [
    (*case, task) for case in CASES for task in ("text", "image", "mask")
    # whose latents' mean and spread diffusers' inpainting pipeline takes no notice of
    if (case[0], task) != ("playground", "mask")
])  # fmt: skip
@needs_torch
def test_the_picture_is_that_of_diffusers(kind, scheduler, sampler, spacing, task, models, pictures):
    parts, ours, path = models(kind)
    image, mask = pictures
    config = PLAYGROUND if kind == "playground" else COSXL
    name, more = scheduler if isinstance(scheduler, tuple) else (scheduler or config["_class_name"], {})
    parts = parts | {"scheduler": getattr(diffusers, name).from_config(config, **more)}
    cls = "StableDiffusionXL" + {"text": "", "image": "Img2Img", "mask": "Inpaint"}[task] + "Pipeline"
    pipe = getattr(diffusers, cls)(**parts)
    pipe.set_progress_bar_config(disable=True)
    job = Job(PROMPT, NEGATIVE, seed=7, steps=6, guidance=3.0, sampler=sampler, spacing=spacing, width=64, height=96)
    given = {}
    if task != "text":
        job, given = job.replace(image=image, strength=0.7), {"image": Image.open(image), "strength": 0.7}
    if task == "mask":
        job, given = job.replace(mask=mask), given | {"mask_image": Image.open(mask)}
    if task != "image":
        given |= {"width": 64, "height": 96}
    wanted = pipe(
        PROMPT, negative_prompt=NEGATIVE, guidance_scale=3.0, num_inference_steps=6, output_type="np",
        generator=torch.Generator().manual_seed(7), **given,
    ).images[0]  # fmt: skip
    wanted = as_bytes(wanted)
    if task == "mask":
        wanted = put_back(wanted, image, mask)
    same(ours, job, wanted, [{"seed": 8}, {"prompt": "a boat"}])


@needs_torch
def test_an_editing_model_is_given_latents_with_their_scale(models, pictures, tmp_path):
    parts, ours, path = models("cosxl-edit")
    image, _ = pictures
    parts = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    pipe = diffusers.StableDiffusionXLInstructPix2PixPipeline(**parts, is_cosxl_edit=True)
    pipe.set_progress_bar_config(disable=True)
    job = Job(PROMPT, NEGATIVE, seed=7, steps=6, guidance=3.0, image_guidance=1.5, width=64, height=96, image=image)
    wanted = pipe(
        PROMPT, negative_prompt=NEGATIVE, image=Image.open(image), guidance_scale=3.0, image_guidance_scale=1.5,
        num_inference_steps=6, generator=torch.Generator().manual_seed(7), output_type="np", width=64, height=96,
    ).images[0]  # fmt: skip
    same(ours, job, as_bytes(wanted), [{"seed": 8}, {"image_guidance": 4.0}])
    index = json.loads((path / "model_index.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(path, other)
    (other / "model_index.json").write_text(json.dumps(index | {"is_cosxl_edit": False}))
    with pytest.raises(UserError, match="is_cosxl_edit = False, which does not go with its U-Net and scheduler"):
        view(other)


@needs_torch
def test_a_single_file_says_so_by_marks(tmp_path):
    state = single_files.original(single_files.pipeline("sdxl"))
    numbers = {"edm_mean": torch.tensor(MEAN).reshape(1, 4, 1, 1), "edm_std": torch.tensor(STD).reshape(1, 4, 1, 1)}
    wish = Wish(family="sdxl")
    manifest = view(single_files.write(state | numbers, tmp_path / "playground.safetensors"), wish).manifest
    assert (manifest.vae.latents_mean, manifest.vae.latents_std, manifest.vae.scaling_factor) == (MEAN, STD, 0.5)
    assert (manifest.schedule.sigma_data, manifest.schedule.prediction) == (0.5, "epsilon")
    assert (manifest.defaults.sampler, manifest.defaults.guidance) == ("dpmpp_2m", 3.0)

    ends = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.004)}
    manifest = view(single_files.write(state | ends, tmp_path / "cosxl.safetensors"), wish).manifest
    schedule = manifest.schedule
    assert (schedule.sigma_data, schedule.prediction, schedule.sampler) == (1.0, "v", "euler")
    assert (schedule.options["sigma_min"], schedule.options["sigma_max"]) == (0.004, 120.0)
    assert manifest.defaults.guidance == 5.0 and manifest.vae.latents_mean is None

    wrong = {
        "only one of edm_mean": {"edm_mean": numbers["edm_mean"]},
        "no usable edm_vpred.sigma_max": {"edm_vpred.sigma_max": torch.tensor(-1.0)},
    }
    for i, (said, marks) in enumerate(wrong.items()):
        with pytest.raises(UserError, match=said):
            view(single_files.write(state | marks, tmp_path / f"wrong{i}.safetensors"), wish)
    with pytest.raises(UserError, match="leave --prediction"):
        view(tmp_path / "cosxl.safetensors", Wish(family="sdxl", prediction="epsilon"))
