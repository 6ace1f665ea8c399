"""Tasks of the first latent diffusion models: what they take and refuse, and that they draw what the originals draw.

The originals are the networks of `compvis.py` and the DDIM of the original code, both written apart from ours; where
diffusers has a pipeline for a task, that is asked as well.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import has
from little import Little

from mlxldm.errors import UserError
from mlxldm.generate import generate, resolve
from mlxldm.job import Box, Job


@pytest.mark.parametrize(
    "given",
    [
        {"label": 0},
        {"boxes": (Box(1, (0.0, 0.0, 1.0, 1.0)),)},
        {"semantic": "map.png"},
        {"database": "pictures"},
        {"neighbours": 3},
        {"clip": "clip"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_model_of_words_refuses_what_it_cannot_use(given):
    with pytest.raises(UserError, match=r"The job has .*, which only models .*; little is none: leave it out\.") as e:
        resolve(Job("x", **given), Little().manifest)
    assert "\n" not in str(e.value)


if not (has("torch") and has("diffusers") and has("mlx")):
    pytest.skip("needs MLX, torch and diffusers: they draw what is compared", allow_module_level=True)

import compvis  # noqa: E402
import diffusers  # noqa: E402
import little  # noqa: E402
import single_files  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from test_parity import APART, BAR, SCHEDULERS, psnr  # noqa: E402
from test_zoo import built, built_stage, filled  # noqa: E402

import mlxldm.backend  # noqa: E402
from mlxldm_convert import view  # noqa: E402
from mlxldm_convert.detect import Wish  # noqa: E402

BACKENDS = ("mlx", "torch")
WORDS = [*"[PAD] [UNK] [CLS] [SEP] [MASK] a red house boat dusk ##s at snow".split(), *map(chr, range(0x3B1, 0x3E0))]
STEPS = 4


def small(name: str) -> compvis.Zoo:
    """The little model; with as many places as diffusers' pipeline gives a text, and a layout of two boxes."""
    zoo = compvis.little(compvis.ZOO[name])
    places = {"ldm-layout": 8, "ldm-text": 77, "ldm-text256": 77}.get(name)
    if places:
        zoo = replace(zoo, condition=(zoo.condition[0], zoo.condition[1] | {"places": places}))
    return zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """`zoo(name)`: the original networks; `zoo(name, "view")`: their file; `zoo(name, backend)`: our model of it."""
    root, made = tmp_path_factory.mktemp("tasks"), {}

    def get(name: str, what: str = "networks"):
        if (name, what) in made:
            return made[name, what]
        path = root / name / "model.safetensors"
        if what == "networks":
            state, found = compvis.whole(small(name))
            path.parent.mkdir()
            single_files.write(state | compvis.tables(small(name)), path)
            (path.parent / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        elif what == "view":
            get(name)
            found = view(path, Wish(family=name, ema=False))
        else:
            found = mlxldm.backend.load(get(name, "view"), what, "cpu", "float32")
        return made.setdefault((name, what), found)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield get
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of what jobs are given: pictures, a mask, maps of labels, a CLIP, a folder of pictures."""
    root = tmp_path_factory.mktemp("given")

    def painted(name: str, seed: int, width: int, height: int) -> str:
        spots = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC).save(root / name)
        return str(root / name)

    (root / "some").mkdir()
    for i in range(6):
        painted(f"some/{i}.png", 10 + i, 40, 50)
    white = np.zeros((32, 64), np.uint8)
    white[5:26, 11:50] = 255
    Image.fromarray(white).save(root / "mask.png")
    for i in range(2):
        labels = np.random.default_rng(i).integers(0, 5, (8, 16), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(labels).save(root / f"labels{i}.png")
    found = {
        "picture": painted("a.png", 1, 64, 32),
        "other": painted("b.png", 2, 64, 32),
        "tiny": painted("c.png", 3, 16, 8),
        "mask": str(root / "mask.png"),
        "labels": str(root / "labels0.png"),
        "others": str(root / "labels1.png"),
        "some": str(root / "some"),
        "clip": str(root / "clip"),
    }
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    torch.manual_seed(3)
    transformers.CLIPModel(config).save_pretrained(root / "clip")
    for name, data in little.tokenizer_files().items():
        (root / "clip" / name).write_bytes(data)
    return found


def drawn(model, job: Job) -> np.ndarray:
    return next(event.pixels for event in generate(model, job) if hasattr(event, "pixels"))


def job_of(name: str, files: dict[str, str], **changes) -> Job:
    """A job that the model can do."""
    given = {
        "ldm-classes": {"label": 3},
        "ldm-classes-v2": {"label": 3, "guidance": 3.0},
        "ldm-text256": {"prompt": "a red house, at dusk", "negative": "snow", "guidance": 5.0},
        "ldm-text": {"prompt": "boats, a Red House", "guidance": 1.0, "width": 128, "height": 64},
        "ldm-churches": {"width": 128, "height": 128},
        "ldm-layout": {"boxes": (Box(7, (0.1, 0.2, 0.6, 0.9)), Box(20, (0.5, 0.0, 1.0, 0.4))), "guidance": 2.0},
        "ldm-semantic": {"semantic": files["labels"]},
        "ldm-sr": {"image": files["tiny"]},
        "ldm-inpaint": {"image": files["picture"], "mask": files["mask"]},
        "ldm-retrieval": {"prompt": "a boat", "clip": files["clip"], "database": files["some"], "neighbours": 3,
                          "guidance": 5.0, "width": 128, "height": 128},
    }.get(name, {})  # fmt: skip
    if "image" not in given and "semantic" not in given:
        given = {"width": 64, "height": 32} | given
    return Job(**{"seed": 7, "steps": STEPS, "sampler": "ddim", **given, **changes})


# ---------------------------------------------------------------------------------------------------------------------
# The original code's way, in torch: what the networks are told, and its DDIM


def told(name: str, net, job: Job):
    """What the U-Net attends to, what for guidance, and what it is given beside the latents."""
    if name in ("ldm-text", "ldm-text256"):
        tokenizer = transformers.BertTokenizer({word: i for i, word in enumerate(WORDS)})
        how = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
        texts = [tokenizer(text, **how)["input_ids"] for text in (job.prompt, job.negative or "")]
        return *(net["text"].transformer(ids) for ids in texts), None
    if name.startswith("ldm-classes"):
        return net["classes"](torch.tensor([job.label])), net["classes"](torch.tensor([6])), None
    if name == "ldm-layout":  # 60 tokens: 7 by 7 places, 59 is none
        ids = [*(7, 8, 5 * 7 + 4), *(20, 3, 2 * 7 + 6), *(0, 48)]
        none = [59] * 6 + [0, 48]
        return *(net["text"].transformer(torch.tensor([row])) for row in (ids, none)), None
    if name == "ldm-semantic":
        with Image.open(job.semantic) as labels:
            labels = torch.from_numpy(np.asarray(labels).astype(np.int64))
        one_hot = torch.nn.functional.one_hot(labels, 5).permute(2, 0, 1)[None].float()
        return None, None, net["rescaler"](one_hot)
    if name == "ldm-sr":
        return None, None, pixels_of(job.image)
    if name == "ldm-inpaint":
        mask = (pixels_of(job.mask)[:, :1] > 0).float()
        hidden = (1 - mask) * (pixels_of(job.image) + 1) / 2
        around = net["vae"].encode(2 * hidden - 1)
        shrunk = torch.nn.functional.interpolate(mask, size=around.shape[-2:])
        return None, None, torch.cat([around, 2 * shrunk - 1], dim=1)
    if name == "ldm-retrieval":
        clip = transformers.CLIPModel.from_pretrained(job.clip)
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        from mlxldm.tokenizer import ClipTokenizer

        ids = ClipTokenizer.from_files(little.tokenizer_files()).ids(job.prompt)
        text = clip.text_projection(clip.text_model(input_ids=torch.tensor([ids])).pooler_output)
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        pictures = [Image.open(f"{job.database}/{i}.png") for i in range(6)]
        pixels = CLIPImageProcessorPil(**sizes)(pictures, return_tensors="pt")["pixel_values"]
        rows = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        text, rows = (x / x.norm(dim=-1, keepdim=True) for x in (text, rows))
        near = rows[(rows @ text[0]).argsort(descending=True)[: job.neighbours]]
        context = torch.cat([text, near])[None]
        return context, torch.zeros_like(context), None
    return None, None, None


def pixels_of(path: str) -> torch.Tensor:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


@torch.no_grad()
def original(name: str, net, job: Job) -> np.ndarray:
    """The picture that the original networks draw with the DDIM of the original code (eta 0)."""
    plan = small(name)
    stage = compvis.FIRST_STAGES[plan.first]
    factor = 2 ** (len(stage.levels) - 1)
    width, height = (job.width, job.height) if job.width else (64, 32)  # as large as the files that are given
    attends, without, beside = told(name, net, job)
    x = torch.randn(1, stage.latent, height // factor, width // factor,
                    generator=torch.Generator().manual_seed(job.seed))  # fmt: skip
    alphas = compvis.tables(plan)["alphas_cumprod"].double()
    times = list(range(1, 1001, 1000 // job.steps))
    for t, before in reversed(list(zip(times, [0, *times[:-1]], strict=True))):

        def guess(text, x=x, t=t):
            seen = x if beside is None else torch.cat([x, beside], dim=1)
            return net["denoiser"](seen, torch.tensor([t]), text)

        said = guess(attends)
        if (job.guidance or 1) > 1:
            free = guess(without)
            said = free + job.guidance * (said - free)
        here, there = alphas[t].float(), alphas[before].float()
        clean = (x - (1 - here).sqrt() * said) / here.sqrt()
        x = there.sqrt() * clean + (1 - there).sqrt() * said
    picture = ((net["vae"].decode(x / plan.scale) + 1) / 2).clamp(0, 1)
    if name == "ldm-inpaint":
        mask = (pixels_of(job.mask)[:, :1] > 0).float()
        picture = (1 - mask) * (pixels_of(job.image) + 1) / 2 + mask * picture
    return (picture[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)


OTHERWISE = {
    "ldm-classes": [{"label": 4}],
    "ldm-classes-v2": [{"label": 4}, {"guidance": 1.0}],
    "ldm-text256": [{"prompt": "a boat"}, {"negative": "a boat"}, {"guidance": 2.0}],
    "ldm-text": [{"prompt": "a boat"}],
    "ldm-layout": [{"boxes": (Box(8, (0.1, 0.2, 0.6, 0.9)),)}, {"guidance": 1.0}],
    "ldm-semantic": [{"semantic": "others"}],
    "ldm-sr": [{"image": "other", "width": 64, "height": 32}],
    "ldm-inpaint": [{"image": "other"}],
    "ldm-retrieval": [{"prompt": "snow"}, {"neighbours": 1}, {"database": None, "neighbours": None}],
}


@pytest.mark.parametrize("name", compvis.ZOO)
def test_a_job_is_the_picture_of_the_original(name, zoo, files):
    job = job_of(name, files)
    wanted = original(name, zoo(name), job)
    found = {which: drawn(zoo(name, which), job) for which in BACKENDS}
    figures = {which: psnr(picture, wanted) for which, picture in found.items()}
    figures["mlx and torch"] = psnr(*found.values())
    print(name, wanted.shape, {what: round(decibels, 1) for what, decibels in figures.items()})
    assert wanted.std() > 10 and min(figures.values()) >= BAR
    for change in [{"seed": 8}, *OTHERWISE.get(name, [])]:
        change = {key: files.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
        other = drawn(zoo(name, "mlx"), job_of(name, files, **change))
        assert psnr(other, found["mlx"]) <= APART, change


SAMPLERS = {
    "ldm-uncond": "euler_a", "ldm-inpaint": "dpmpp_2m", "ldm-sr": "euler", "ldm-semantic": "heun",
    "ldm-layout": "unipc", "ldm-classes": "ddpm", "ldm-classes-v2": "dpmpp_sde", "ldm-text256": "lms",
    "ldm-retrieval": "dpm2",
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_task_goes_with_every_kind_of_sampler(name, zoo, files):
    job = job_of(name, files, sampler=SAMPLERS[name])
    found = [drawn(zoo(name, which), job) for which in BACKENDS]
    assert psnr(*found) >= BAR
    assert psnr(found[0], drawn(zoo(name, "mlx"), job_of(name, files))) <= APART


def test_guidance_goes_every_way_without_words_too(zoo, files):
    name = "ldm-classes-v2"
    plain = drawn(zoo(name, "mlx"), job_of(name, files))
    for change in ({"sampler": "ddim_cfgpp", "guidance": 0.5}, {"guidance_start": 0.5}, {"guidance_rescale": 0.9}):
        job = job_of(name, files, **change)
        found = [drawn(zoo(name, which), job) for which in BACKENDS]
        assert psnr(*found) >= BAR, change
        assert psnr(found[0], plain) <= APART, change


# ---------------------------------------------------------------------------------------------------------------------
# diffusers' pipelines

PIPES = [
    *(("ldm-uncond", sampler, 64, 64) for sampler in ("ddim", "euler", "dpmpp_2m", "pndm")),
    *(("ldm-text", sampler, *size) for sampler, *size in (("ddim", 64, 64), ("unipc", 128, 64))),
    *(("ldm-sr", sampler, *size) for sampler, *size in (("ddim", 32, 64), ("dpmpp_2m", 32, 32))),
]


@pytest.fixture(scope="module")
def pipes(zoo):
    """diffusers' pipeline of a model, of the tensors in our view of its file."""
    made = {}

    def get(name: str):
        if name in made:
            return made[name]
        folder = zoo(name, "view")
        scheduler = diffusers.DDIMScheduler(
            beta_start=folder.manifest.schedule.beta_start, beta_end=folder.manifest.schedule.beta_end,
            beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False, clip_sample=False,
        )  # fmt: skip
        parts = {"unet": built(folder), "vqvae": built_stage(folder), "scheduler": scheduler}
        if name == "ldm-text":
            from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

            bert = LDMBertModel(LDMBertConfig(**folder.manifest.text.to_diffusers()))
            inner = torch.nn.Module()
            inner.model = bert.model
            filled(inner, folder, "text")
            parts |= {"bert": bert, "tokenizer": transformers.BertTokenizer({w: i for i, w in enumerate(WORDS)})}
        kinds = {"ldm-uncond": "LDMPipeline", "ldm-text": "LDMTextToImagePipeline"}
        pipe = getattr(diffusers, kinds.get(name, "LDMSuperResolutionPipeline"))(**parts)
        pipe.set_progress_bar_config(disable=True)
        made[name] = pipe, scheduler.config
        return made[name]

    return get


@pytest.mark.parametrize(("name", "sampler", "width", "height"), PIPES)
def test_a_job_is_the_picture_of_diffusers(name, sampler, width, height, zoo, pipes, tmp_path):
    pipe, config = pipes(name)
    cls, changes, _ = SCHEDULERS[sampler]
    pipe.scheduler = getattr(diffusers, cls).from_config(config, **changes)
    how = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(7), "output_type": "np"}
    job = Job(seed=7, steps=4, sampler=sampler, width=width, height=height)
    if name == "ldm-uncond":
        pipe.unet.register_to_config(sample_size=width // 4)
        wanted = pipe(**how).images[0]
    elif name == "ldm-text":
        job = job.replace(prompt="a red house at dusk", guidance=6.0)
        wanted = pipe(job.prompt, height=height, width=width, guidance_scale=6.0, **how).images[0]
    else:
        spots = np.random.default_rng(4).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        picture = Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "small.png")
        job = job.replace(image=str(tmp_path / "small.png"), width=None, height=None)
        wanted = pipe(picture, **how).images[0]
    wanted = np.round(wanted * 255).astype(np.uint8)
    mlx, torch_ = (drawn(zoo(name, which), job) for which in BACKENDS)
    figures = [psnr(mlx, wanted), psnr(torch_, wanted), psnr(mlx, torch_)]
    print(name, sampler, wanted.shape, [round(decibels, 1) for decibels in figures])
    assert wanted.std() > 10 and min(figures) >= BAR


# ---------------------------------------------------------------------------------------------------------------------
# Sizes and defaults


def test_sizes_are_those_of_the_input_or_the_models_own(zoo, files):
    def size(name: str, **given):
        job = resolve(job_of(name, files, **given), zoo(name, "view").manifest)
        return job.width, job.height

    assert size("ldm-sr") == (64, 32) and size("ldm-sr", width=96) == (96, 32)  # four times 16 x 8
    assert size("ldm-semantic") == size("ldm-inpaint") == (64, 32)
    assert size("ldm-uncond", width=None, height=None) == (256, 256)
    assert size("ldm-retrieval", width=None, height=None) == (768, 768)
    with pytest.raises(UserError, match="The width is 72, but it must be a multiple of 32, for example 64"):
        size("ldm-uncond", width=72)


def test_what_is_not_said_is_the_models_own(zoo, files):
    def resolved(name: str, **given):
        job = resolve(job_of(name, files, steps=None, sampler=None, **given), zoo(name, "view").manifest)
        assert resolve(job, zoo(name, "view").manifest) == job
        return job

    for name in compvis.ZOO:
        assert resolved(name).steps == 50 and resolved(name).sampler == "ddim"
    assert resolved("ldm-classes-v2", guidance=None).guidance == 3.0
    assert resolved("ldm-classes").guidance == resolved("ldm-uncond").guidance == 1.0
    assert resolved("ldm-retrieval", guidance=None, neighbours=None).neighbours == 6  # all there are; 10 at most


# ---------------------------------------------------------------------------------------------------------------------
# What does not go together


def box(*sides: float, label: int = 1) -> tuple[Box, ...]:
    return (Box(label, sides),)


WRONG = [
    ("ldm-uncond", {"prompt": "x"}, "has a prompt, but .* is an unconditional model, which is told nothing: leave it"),
    ("ldm-uncond", {"negative": "x"}, "has a negative prompt, but .* is an unconditional model"),
    ("ldm-uncond", {"guidance": 2.0}, "knows no guidance"),
    ("ldm-uncond", {"image": "picture"}, "has an image, but .* is an unconditional model"),
    ("ldm-uncond", {"label": 1}, "has a class, which only models of classes take"),
    ("ldm-churches", {"depth": "picture"}, "has a depth map, which only models with depth take"),
    ("ldm-classes", {"label": None}, r"draws pictures of a class \(--class\): say which .* from 0 to 6"),
    ("ldm-classes", {"label": 7}, "no class 7"),
    ("ldm-classes", {"label": -1}, "no class -1"),
    ("ldm-classes", {"prompt": "dog"}, "has a prompt, but .* draws pictures of a class"),
    ("ldm-classes", {"image": "picture", "mask": "mask"}, "has an image, but .* draws pictures of a class"),
    ("ldm-classes", {"guidance": 3.0}, "not learned to draw without a class"),
    ("ldm-classes", {"sampler": "euler_cfgpp"}, "not learned to draw without a class"),
    ("ldm-classes", {"guidance_start": 0.5}, "has a guidance start, but a guidance of 1 is none"),
    ("ldm-semantic", {"sampler": "euler_cfgpp"}, "euler_cfgpp is for models that are guided"),
    ("ldm-sr", {"guidance_rescale": 0.5}, "has a guidance rescale, which only models that are guided"),
    ("ldm-classes-v2", {"boxes": box(0, 0, 1, 1)}, "has boxes, which only models that draw by boxes take"),
    ("ldm-layout", {"boxes": None}, "say what is where"),
    ("ldm-layout", {"boxes": ()}, "say what is where"),
    ("ldm-layout", {"boxes": box(0, 0, 1.5, 1)}, "go from 0 to 1"),
    ("ldm-layout", {"boxes": box(0, 0, 1, 1) * 3}, "knows 2 at most"),
    ("ldm-layout", {"boxes": box(0, 0, 1, 1, label=59)}, "no label 59"),
    ("ldm-layout", {"prompt": "x"}, "has a prompt, but .* draws by boxes"),
    ("ldm-semantic", {"semantic": None}, "give a PNG whose pixels are numbers of labels, from 0 to 4"),
    ("ldm-semantic", {"semantic": "picture"}, "is none of PASCAL VOC.s colour map"),
    ("ldm-semantic", {"semantic": "mask"}, "has the label 255"),
    ("ldm-semantic", {"semantic": "none.png"}, "There is no file 'none.png'"),
    ("ldm-semantic", {"guidance": 7.0}, "knows no guidance"),
    ("ldm-sr", {"image": None}, r"makes small pictures \(--image\) larger, 4 times: give one"),
    ("ldm-sr", {"strength": 0.5}, "has a strength, but"),
    ("ldm-sr", {"mask": "mask"}, "has a mask, but"),
    ("ldm-sr", {"prompt": "sharp"}, "has a prompt, but"),
    ("ldm-inpaint", {"mask": None}, "give both"),
    ("ldm-inpaint", {"image": None}, "mask but no image"),
    ("ldm-inpaint", {"strength": 0.5}, "has a strength, but"),
    ("ldm-inpaint", {"prompt": "x"}, "has a prompt, but .* without words"),
    ("ldm-text", {"label": 1}, "has a class, which only models of classes take"),
    ("ldm-text", {"mask": "mask"}, "has a mask but no image"),
    ("ldm-retrieval", {"clip": None}, "with --clip"),
    ("ldm-retrieval", {"clip": "some"}, "has no config.json"),
    ("ldm-retrieval", {"database": None}, "but no folder to find them in"),
    ("ldm-retrieval", {"database": "clip"}, "has no pictures in it"),
    ("ldm-retrieval", {"neighbours": 7}, "asks for 7 neighbours, but of the 6 pictures"),
    ("ldm-retrieval", {"neighbours": 0}, "asks for 0 neighbours"),
    ("ldm-retrieval", {"negative": "x"}, "has a negative prompt, but"),
    ("ldm-retrieval", {"prompt": "a boat " * 40}, "The prompt is too long"),
]


@pytest.mark.parametrize(("name", "change", "said"), WRONG)
def test_what_does_not_go_together_is_said_in_one_sentence(name, change, said, zoo, files):
    change = {key: files.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(UserError, match=said) as error:
        resolve(job_of(name, files, **change), zoo(name, "view").manifest)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# As people ask for it


def test_a_model_of_words_starts_from_pictures_too(zoo, files):
    job = job_of("ldm-text256", files, image=files["picture"], strength=0.7)
    masked = job.replace(mask=files["mask"])
    for each in (job, masked):
        found = [drawn(zoo("ldm-text256", which), each) for which in BACKENDS]
        assert psnr(*found) >= BAR
        other = drawn(zoo("ldm-text256", "mlx"), each.replace(image=files["other"]))
        assert psnr(found[0], other) <= APART


ASKED = {
    "ldm-uncond": [],
    "ldm-classes": ["--class", "3"],
    "ldm-layout": ["--box", "7:0.1,0.2,0.6,0.9", "--boxes", "BOXES"],
    "ldm-semantic": ["--semantic", "labels"],
    "ldm-inpaint": ["--image", "picture", "--mask", "mask"],
}


@pytest.mark.parametrize("name", ASKED)
def test_the_command_line_draws_it_and_draws_it_again(name, zoo, files, tmp_path, capsys):
    from mlxldm.cli import main
    from mlxldm_convert.write import write

    (tmp_path / "boxes.json").write_text('[{"label": 20, "box": [0.5, 0, 1, 0.4]}]')
    given = [files.get(word, word) for word in ASKED[name]]
    given = [str(tmp_path / "boxes.json") if word == "BOXES" else word for word in given]
    folder = tmp_path / "model"
    write(zoo(name, "view"), folder)
    how = ["--backend", "torch", "--device", "cpu", "--precision", "float32"]
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    size = [] if "--image" in given or "--semantic" in given else ["--width", "64", "--height", "32"]
    asked = ["generate", "--model", str(folder), "--seed", "7", "--steps", "2", *size, *given, *how]
    assert main([*asked, "-o", str(first)]) == 0, capsys.readouterr().err
    assert main(["generate", "--job", str(first), *how, "-o", str(second)]) == 0
    with Image.open(first) as a, Image.open(second) as b:
        assert a.size == (64, 32) and np.array_equal(a, b)
    assert main([*asked, "--seed", "8", "-o", str(second)]) == 0
    with Image.open(first) as a, Image.open(second) as b:
        assert psnr(np.asarray(a), np.asarray(b)) <= APART
    capsys.readouterr()
    assert main(["generate", "a dog", "--model", str(folder), *given, *how, "-o", str(second)]) == 2
    said = capsys.readouterr().err
    assert "The job has a prompt, but" in said and "leave it out" in said


def test_a_model_of_words_still_asks_for_a_prompt_that_it_can_read(zoo, tmp_path, capsys):
    from mlxldm.cli import main
    from mlxldm_convert.write import write

    def said(*prompt: str) -> str:
        assert main(["generate", *prompt, "--model", str(tmp_path / "model"), "--backend", "torch"]) == 2
        return capsys.readouterr().err

    write(zoo("ldm-text", "view"), tmp_path / "model")
    assert "What should be drawn? Give a prompt" in said()
    (tmp_path / "model" / "tokenizer" / "vocab.txt").unlink()
    assert "lay vocab.txt of bert-base-uncased" in said("a red house")
    (tmp_path / "model" / "tokenizer" / "vocab.txt").write_text("\n".join([*WORDS, "more"]))
    assert "has 61 tokens, but the model's text encoder knows 60" in said("a red house")
