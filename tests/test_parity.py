"""Whole pictures: what diffusers' own pipelines draw for a seed is what both our backends draw, in float32.

Every sampler with most of the spacings that diffusers has for it (test_diffusers_samplers.py has all), from text and
from a picture, and with two of them under a mask; portrait and landscape and both layouts of folders take turns, so
that a hundred small pictures see all of them.
Stable Diffusion XL, whose two texts, zeros and sizes are the model's and not the sampler's, meets some of the samplers.
Only dpmpp_sde is missing: diffusers takes its noise from torchsde. The last test prints the worst figures.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import has, needs_torch

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

BAR, APART, ROUGH = 55.0, 40.0, 35.0  # dB: the same picture; another picture; the same in bfloat16
PROMPT, NEGATIVE, SEED = "a red house at dusk", "snow", 7

SCHEDULERS = {  # sampler -> diffusers' class, what it is told besides the model's config, and its spacings
    "ddim": ("DDIMScheduler", {}, "leading trailing linspace"),
    "ddpm": ("DDPMScheduler", {}, "leading trailing linspace"),
    "euler": ("EulerDiscreteScheduler", {}, "leading trailing linspace karras exponential"),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, "leading trailing linspace"),
    "heun": ("HeunDiscreteScheduler", {}, "leading trailing linspace karras"),
    "lms": ("LMSDiscreteScheduler", {}, "leading trailing linspace exponential"),
    "pndm": ("PNDMScheduler", {}, "leading trailing linspace"),
    "dpm2": ("KDPM2DiscreteScheduler", {}, "karras"),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}, "trailing"),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}, "karras exponential"),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}, "leading trailing linspace karras exponential"),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        "leading trailing linspace karras exponential",
    ),
    "unipc": ("UniPCMultistepScheduler", {}, "leading trailing linspace karras exponential"),
    "deis": ("DEISMultistepScheduler", {}, "karras beta"),
    "lcm": ("LCMScheduler", {}, ""),
    "tcd": ("TCDScheduler", {}, ""),
}
XL_SAMPLERS = {  # sampler -> the spacings that Stable Diffusion XL is drawn with
    "ddim": "model trailing",
    "euler": "model karras",
    "euler_a": "model trailing",
    "heun": "linspace",
    "dpmpp_2m": "karras",
}
HALVES = [
    *itertools.product(("mlx", "torch"), ("bfloat16",), ("ddim", "heun")),
    *itertools.product(("mlx", "torch"), ("float16",), ("ddim",)),
]
TASKS = ("text", "image", "mask")
LAYOUTS, SIZES = ("hub", "today"), ((64, 96), (96, 64))  # width, height


@dataclass(frozen=True)
class Case:
    """One picture. `size` is (width, height)."""

    sampler: str
    spacing: str = "model"
    task: str = "text"
    kind: str = "sd1"
    layout: str = "today"
    size: tuple[int, int] = (64, 96)
    prompt: str = PROMPT
    negative: str | None = NEGATIVE
    seed: int = SEED
    guidance: float = 7.5
    steps: int = 5
    strength: float | None = None
    more: tuple[tuple[str, float], ...] = ()  # further fields of the job

    def __str__(self) -> str:
        return "-".join((self.kind, self.task, self.sampler, self.spacing, self.layout, "x".join(map(str, self.size))))


def _cases() -> list[Case]:
    cases = []
    turn = itertools.cycle(itertools.product(LAYOUTS, SIZES))
    for task in TASKS:
        for sampler, (_, _, spacings) in SCHEDULERS.items():
            if sampler in ("dpm2", "dpm2_a") and task == "mask":
                continue  # diffusers blends with the noise of the step's end while the model hears of its middle
            chosen = ["model", *spacings.split()]
            if task == "mask":  # walks as "image" does: two spacings are enough
                chosen = [chosen[0], chosen[-1]][: len(chosen)]
            for i, spacing in enumerate(chosen):
                layout, size = next(turn)
                strength = {"text": None, "image": (0.8, 0.5)[i % 2], "mask": (1.0, 0.6)[i % 2]}[task]
                case = Case(sampler, spacing, task, layout=layout, size=size, strength=strength)
                cases.append(case)
        next(turn)  # so that a sampler meets another layout and size in the next task
    cases += [Case(s, kind="sd1-v") for s in SCHEDULERS]
    cases += [Case("ddim", kind="sd2"), Case("unipc", kind="sd2", task="image", strength=0.7)]
    cases += [Case("dpmpp_2m", guidance=1.0), Case("pndm", steps=11), Case("ddim", steps=1), Case("heun", steps=2)]
    return cases + _xl_cases()


def _xl_cases() -> list[Case]:
    cases = []
    turn = itertools.cycle(itertools.product(LAYOUTS, SIZES))
    for task in TASKS:
        for sampler, spacings in XL_SAMPLERS.items():
            for spacing in spacings.split()[: 1 if task == "mask" else 2]:
                layout, size = next(turn)
                half = len(cases) // 2 % 2
                strength = {"text": None, "image": (0.8, 0.5)[half], "mask": (1.0, 0.6)[half]}[task]
                cases.append(Case(sampler, spacing, task, "sdxl", layout, size, strength=strength, steps=4))
    # a negative prompt that is not given is zeros, or the empty prompt where the model says so; "" is the empty prompt
    for kind, negative in itertools.product(("sdxl", "sdxl-words"), (None, "")):
        cases.append(Case("euler", kind=kind, negative=negative, size=SIZES[negative is None]))
    cases += [
        Case("ddim", kind="sdxl", negative=None, task="image", strength=0.6),
        Case("ddim", kind="sdxl", negative=None, task="mask", strength=0.6),
        Case("dpmpp_2m", kind="sdxl", guidance=1.0),
        Case("euler", kind="sdxl", guidance=1.0, task="image", strength=0.8),
        Case("euler_a", kind="sdxl", guidance=1.0, task="mask", strength=1.0),
    ]
    # as distilled models are drawn: SDXL-Turbo, SDXL-Lightning, Hyper-SD, LCM, TCD
    for sampler, guidance, steps in (("euler_a", 0, 1), ("euler", 0, 4), ("ddim", 0, 2), ("lcm", 1, 4), ("tcd", 0, 4)):
        cases.append(Case(sampler, "trailing", kind="sdxl", guidance=float(guidance), steps=steps))
    return cases


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures of bytes, in dB; 99 if they are equal."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


class Studio:
    """Draws a `Case` with diffusers, MLX or torch; models, pipelines and pictures are kept."""

    def __init__(self, tiny_folder, root):
        self.tiny_folder, self.root = tiny_folder, root
        self.models: dict = {}
        self.pipes: dict = {}
        self.pictures: dict = {}
        self.worst: dict = defaultdict(lambda: (np.inf, None))

    def draw(self, who: str, case: Case, precision: str = "float32") -> np.ndarray:
        key = (who, case, precision)
        if key not in self.pictures:
            self.pictures[key] = self._diffusers(case) if who == "diffusers" else self._ours(who, case, precision)
        return self.pictures[key]

    def note(self, what: str, decibels: float, case: Case) -> float:
        self.worst[what] = min(self.worst[what], (decibels, case), key=lambda pair: pair[0])
        return decibels

    def start(self, size: tuple[int, int]) -> str:
        """A picture to start from: soft colours with an edge, so that every pixel matters."""
        from PIL import Image

        path = self.root / f"start-{size[0]}.png"
        if not path.exists():
            y, x = np.mgrid[0 : size[1], 0 : size[0]] / 96
            pixels = np.stack([x, y, (x + y > 0.7) * 0.8], axis=-1)
            Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
        return str(path)

    def mask(self, size: tuple[int, int]) -> str:
        """White (to be painted) in the middle."""
        from PIL import Image

        path = self.root / f"mask-{size[0]}.png"
        if not path.exists():
            pixels = np.zeros((size[1], size[0]), np.uint8)
            pixels[24:72, 20:50] = 255
            Image.fromarray(pixels).save(path)
        return str(path)

    def _ours(self, backend: str, case: Case, precision: str) -> np.ndarray:
        import mlxldm.backend
        from mlxldm.generate import generate
        from mlxldm.job import Job
        from mlxldm_convert import view

        key = (backend, case.kind, case.layout, precision)
        if key not in self.models:
            folder = view(self.tiny_folder(case.kind, case.layout))
            self.models[key] = mlxldm.backend.load(folder, backend, "cpu", precision)
        job = Job(
            prompt=case.prompt,
            negative=case.negative,
            seed=case.seed,
            steps=case.steps,
            guidance=case.guidance,
            sampler=case.sampler,
            spacing=case.spacing,
            width=case.size[0],
            height=case.size[1],
            image=None if case.task == "text" else self.start(case.size),
            mask=self.mask(case.size) if case.task == "mask" else None,
            strength=case.strength,
            **dict(case.more),
        )
        return next(event.pixels for event in generate(self.models[key], job) if hasattr(event, "pixels"))

    def _pipe(self, case: Case):
        import diffusers
        import tiny

        xl = case.kind.startswith("sdxl")
        name = "StableDiffusion" + "XL" * xl + {"text": "", "image": "Img2Img", "mask": "Inpaint"}[case.task]
        key = (case.kind, case.task)
        if (case.kind, "text") not in self.pipes:
            self.pipes[case.kind, "text"] = tiny.KINDS[case.kind]()
        text = self.pipes[case.kind, "text"]
        if key not in self.pipes:
            own = "force_zeros_for_empty_prompt"
            said = {own: text.config[own]} if xl else {"requires_safety_checker": False}
            self.pipes[key] = getattr(diffusers, name + "Pipeline")(**text.components, **said)
        pipe = self.pipes[key]
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = scheduler(self.tiny_folder(case.kind, case.layout), case.sampler, case.spacing)
        return pipe

    def _diffusers(self, case: Case) -> np.ndarray:
        import torch
        from PIL import Image

        extra = {name: value for name, value in case.more if name == "guidance_rescale"}
        if case.task != "text":
            extra |= {"image": Image.open(self.start(case.size)), "strength": case.strength}
        if case.task == "mask":
            extra["mask_image"] = Image.open(self.mask(case.size))
        if case.task != "image":
            extra |= {"width": case.size[0], "height": case.size[1]}
        if case.sampler == "tcd":
            extra["eta"] = 0.3  # the scheduler's own default, which the pipelines replace by 0
        picture = self._pipe(case)(
            case.prompt,
            negative_prompt=case.negative,
            guidance_scale=case.guidance,
            num_inference_steps=case.steps,
            generator=torch.Generator("cpu").manual_seed(case.seed),
            output_type="np",
            **extra,
        ).images[0]
        drawn = np.round(picture * 255).astype(np.uint8)
        if case.task == "mask":
            return put_back(drawn, self.start(case.size), self.mask(case.size))
        return drawn


def put_back(drawn: np.ndarray, image: str, mask: str) -> np.ndarray:
    """A picture with that of the file `image` where the mask is black: diffusers leaves that to its users."""
    from PIL import Image

    old, new = (np.asarray(Image.open(path).convert(mode)) for path, mode in ((image, "RGB"), (mask, "L")))
    return np.where(new[..., None] > 127, drawn, old)


def scheduler(folder, sampler: str, spacing: str):
    """diffusers' scheduler for a sampler and a spacing, from the model's own scheduler config.

    Loaded from the folder each time: what a config leaves out is another class's default when that class reads it.
    """
    import json

    import diffusers

    own = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    config = getattr(diffusers, own).from_pretrained(folder / "scheduler").config
    name, changes, _ = SCHEDULERS[sampler]
    if spacing in ("karras", "exponential", "beta"):
        changes = changes | {f"use_{spacing}_sigmas": True}
    elif spacing != "model":
        changes = changes | {"timestep_spacing": spacing}
    return getattr(diffusers, name).from_config(config, **changes)


@pytest.fixture(scope="module")
def studio(tiny_folder, tmp_path_factory):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # pictures this small are slower with more
    yield Studio(tiny_folder, tmp_path_factory.mktemp("studio"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_the_same_seed_gives_the_picture_of_diffusers(studio, case):
    wanted = studio.draw("diffusers", case)
    mlx, torch = studio.draw("mlx", case), studio.draw("torch", case)
    found = {
        "MLX and diffusers": psnr(mlx, wanted),
        "torch and diffusers": psnr(torch, wanted),
        "MLX and torch": psnr(mlx, torch),
    }
    for what, decibels in found.items():
        studio.note(what, decibels, case)
    assert min(found.values()) >= BAR, {what: round(decibels, 1) for what, decibels in found.items()}


@pytest.mark.parametrize("backend", ["mlx", "torch"])
@pytest.mark.parametrize("kind, task", [*(("sd1", task) for task in TASKS), ("sdxl", "text")])
def test_another_wish_gives_another_picture(studio, backend, kind, task):
    """So that the test above can fail: nothing a job says may be without effect."""
    from dataclasses import replace

    plain = Case("euler", kind=kind, task=task, strength=None if task == "text" else 0.8)
    others = {
        "seed": replace(plain, seed=SEED + 1),
        "prompt": replace(plain, prompt="a blue boat"),
        "negative": replace(plain, negative="the sea at night"),
        "guidance": replace(plain, guidance=3.0),
        "sampler": replace(plain, sampler="euler_a"),
    }
    if task != "text":
        others["strength"] = replace(plain, strength=0.5)
    if kind == "sdxl":
        others |= {"negative (none)": replace(plain, negative=None), "negative (empty)": replace(plain, negative="")}
    picture = studio.draw(backend, plain)
    for what, case in others.items():
        decibels = psnr(studio.draw(backend, case), picture)
        assert decibels <= APART, f"another {what} changes too little: {decibels:.1f} dB"
    if kind == "sdxl":
        none, empty = (studio.draw(backend, others[f"negative ({what})"]) for what in ("none", "empty"))
        assert psnr(none, empty) <= APART, "no negative prompt is not the empty one"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=["portrait", "landscape"])
@pytest.mark.parametrize("task", TASKS)
def test_every_layout_and_size(studio, layout, size, task):
    case = Case("ddim", task=task, layout=layout, size=size, strength=None if task == "text" else 0.6)
    wanted = studio.draw("diffusers", case)
    assert min(psnr(studio.draw(who, case), wanted) for who in ("mlx", "torch")) >= BAR


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "pndm", "dpmpp_2m", "unipc"])
def test_bfloat16_stays_close(studio, sampler):
    case = Case(sampler, "trailing", steps=6)
    decibels = psnr(studio.draw("torch", case, "bfloat16"), studio.draw("torch", case))
    studio.note("torch in bfloat16 and in float32", decibels, case)
    assert decibels >= ROUGH


@pytest.mark.parametrize("backend, precision, sampler", HALVES)
def test_half_precision_of_xl_stays_close(studio, backend, precision, sampler):
    case = Case(sampler, "trailing", kind="sdxl", guidance=5.0, steps=6)  # its own guidance
    decibels = psnr(studio.draw(backend, case, precision), studio.draw(backend, case))
    studio.note(f"{backend} in {precision} and in float32, XL", decibels, case)
    assert decibels >= ROUGH


def test_the_worst(studio, capfd):
    with capfd.disabled():
        print()
        for what, (decibels, case) in sorted(studio.worst.items()):
            print(f"  {what}: {decibels:.1f} dB at worst ({case})")
