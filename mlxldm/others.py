"""Jobs inside the pictures of other programs: what they say of how a picture was made, as far as it can be done here.

A1111's web UI and its forks (the text `parameters`), ComfyUI (the graph in `prompt`), InvokeAI (`invokeai_metadata`),
mflux (EXIF), Draw Things (XMP). Each reader turns what it understands into a `Job`, and lists what it does not: nothing
is dropped without a word. The same job is not always the same picture: each program has its own noise and schedules.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import unescape
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from .adapters import wish
from .errors import UserError
from .job import Job, variation_of
from .prompt import EMPHASES, networks, written

LONGEST = 4 << 20  # letters of a text we read
DEEPEST = 200  # nodes of a graph between a picture and its words


@dataclass
class Found:
    """What a picture says of itself. Of another program's, the job's model, LoRAs and textual inversions are names as
    that program wrote them; `recall.recalled` finds the last two here."""

    program: str
    job: Job
    model_hash: str | None = None  # the beginning of a sha256, or A1111's short old one
    left: list[str] = field(default_factory=list)  # what was not understood, each in a few words
    made_by: dict[str, Any] = field(default_factory=dict)  # of ours: version and backend
    hashes: dict[str, str] = field(default_factory=dict)  # of "lora:NAME" and "embed:NAME", the beginning of some


def read(texts: Mapping[str, str]) -> Found | None:
    """The job in a picture's texts: PNG's by their keys, and "exif" (its UserComment) and "xmp" where it has them.

    None where no program's is recognised.
    """
    for key, reader in READERS.items():
        text = texts.get(key)
        if text is not None and len(text) <= LONGEST:
            try:
                found = reader(text)
            except RecursionError:
                found = None
            if found is not None:
                return found
    return None


# Small things that all readers need.


class _Wish:
    """A job in the making: what is not of the kind a job takes is left over instead."""

    def __init__(self, program: str):
        self.program, self.values, self.left = program, dict[str, Any](), list[str]()
        self.hashes: dict[str, str] = {}

    def take(self, name: str, value: Any, kind: Callable[[Any], Any]) -> None:
        """`value` as the job's `name`; None and "" say nothing."""
        if value is None or value == "":
            return
        try:
            number = kind(value)
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError
            self.values[name] = number
        except (TypeError, ValueError, OverflowError):
            self.leave(f"{name} {_short(value)}")

    def leave(self, what: str) -> None:
        self.left.append(what)

    def lora(self, name: Any, weight: Any = 1, text_weight: Any = None) -> None:
        """A LoRA that the job wears; `text_weight`: of the text encoders, None the same."""
        called = stem(name).replace(":", "") if isinstance(name, str) else ""
        try:
            numbers = [float(one) for one in (1 if weight is None else weight, text_weight) if one is not None]
            text = ":".join([called, *map(written, numbers)])
            wish(text)
        except (TypeError, ValueError, OverflowError, UserError):
            self.leave(f"LoRA {_short(called) or 'without a name'} at {_short(weight)}")
            return
        self.values["loras"] = (*self.values.get("loras", ()), text)

    def word(self, name: str) -> None:
        """A textual inversion that the prompts name."""
        self.values["embeddings"] = tuple(dict.fromkeys((*self.values.get("embeddings", ()), name)))

    def found(self, model_hash: Any = None) -> Found:
        guidance = self.values.get("guidance", 0.0)
        if str(self.values.get("sampler")).endswith("_cfgpp") and guidance > 1:
            self.leave(f"guidance {guidance:g}, which CFG++ counts otherwise there")
            del self.values["guidance"]
        seed = self.values.get("seed")
        if seed is not None and not 0 <= seed < 2**64:
            self.leave(f"seed {seed}")
            del self.values["seed"]
        known = isinstance(model_hash, str) and re.fullmatch(r"[0-9a-fA-F]{8,64}", model_hash)
        return Found(
            self.program, Job(**self.values), model_hash.lower() if known else None, self.left, hashes=self.hashes
        )


def _whole(value: Any) -> int:
    number = float(value)
    if isinstance(value, bool) or number != int(number):
        raise ValueError
    return int(value) if isinstance(value, int | str) and str(value).strip().lstrip("-").isdigit() else int(number)


def stem(value: Any) -> str:
    """A model's name without folders (of either kind of system) and without an ending that checkpoints have."""
    name = PureWindowsPath(PurePosixPath(str(value)).name).name
    return re.sub(r"\.(safetensors|ckpt|pt|pth|bin|gguf)$", "", name, flags=re.IGNORECASE)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else text[:37] + "..."


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text; some programs write NaN."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _sampler(wish: _Wish, name: str, table: Mapping[str, Any]) -> None:
    """A sampler by that program's name; the table has ours, or ours with a spacing where the name says that too."""
    if not name:
        return
    ours = table.get(name.lower())
    if ours is None:
        wish.leave(f"sampler {_short(name)}")
        return
    sampler, spacing = (ours, "") if isinstance(ours, str) else ours
    wish.values["sampler"] = sampler
    if spacing:
        wish.values["spacing"] = spacing


# A1111


# Our names -> its names, for what we write for it and its readers, too.
SAMPLER_NAMES = {
    "ddim": "DDIM", "ddpm": "DDPM", "euler": "Euler", "euler_a": "Euler a", "heun": "Heun", "lms": "LMS",
    "pndm": "PLMS", "dpm2": "DPM2", "dpm2_a": "DPM2 a", "dpmpp_2s": "DPM++ 2S", "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_sde": "DPM++ SDE", "dpmpp_3m_sde": "DPM++ 3M SDE", "unipc": "UniPC",
    "deis": "DEIS", "lcm": "LCM", "tcd": "TCD", "ddim_cfgpp": "DDIM CFG++", "euler_cfgpp": "Euler CFG++",
    "euler_a_cfgpp": "Euler a CFG++", "dpmpp_2m_cfgpp": "DPM++ 2M CFG++",
}  # fmt: skip
SPACING_NAMES = {
    "linspace": "Uniform", "karras": "Karras", "exponential": "Exponential", "sgm_uniform": "SGM Uniform",
    "beta": "Beta", "ays": "Align Your Steps", "trailing": "Simple", "leading": "DDIM",
}  # fmt: skip
A1111_SAMPLERS = {theirs.lower(): ours for ours, theirs in SAMPLER_NAMES.items()}
A1111_SPACINGS = {theirs.lower(): ours for ours, theirs in SPACING_NAMES.items()}
A1111_SPACINGS |= {"automatic": "", "normal": "linspace"}


def a1111(text: str) -> Found | None:
    """The text that A1111 writes: prompt, negative prompt, and a line of settings."""
    prompt, negative, settings = parse_parameters(text)
    if not settings:
        return None
    version = settings.get("Version", "")
    program = "mlxldm" if version.startswith("mlxldm") else "A1111's web UI"
    wish = _Wish(program)
    wish.values["prompt"] = prompt
    if negative:
        wish.values["negative"] = negative
    for key, name, kind in (
        ("Steps", "steps", _whole),
        ("Seed", "seed", _whole),
        ("CFG scale", "guidance", float),
        ("Denoising strength", "strength", float),
        ("Model", "model", stem),
        ("Clip skip", "clip_skip", _whole),
        ("Emphasis", "emphasis", _emphasis),
        ("Template", "template", str),  # of the extension Dynamic Prompts
        ("Negative Template", "negative_template", str),
        ("Template 2", "template_2", str),  # of ours, as the following
        ("Negative Template 2", "negative_template_2", str),
        ("Prompt 2", "prompt_2", str),
        ("Negative prompt 2", "negative_2", str),
    ):
        wish.take(name, settings.pop(key, None), kind)
    width, _, height = settings.pop("Size", "").lower().partition("x")
    wish.take("width", width, _whole)
    wish.take("height", height, _whole)
    sampler, spacing = _cut_spacing(settings.pop("Sampler", ""))
    _sampler(wish, sampler, A1111_SAMPLERS)
    spacing = settings.pop("Schedule type", spacing).lower()
    ours = A1111_SPACINGS.get(spacing)
    if ours is None and spacing:
        wish.leave(f"schedule type {_short(spacing)}")
    elif ours:
        wish.values["spacing"] = ours
    elif program != "mlxldm" and wish.values.get("sampler") in _KARRAS_FIRST and spacing == "automatic":
        wish.values["spacing"] = "karras"  # what its "Automatic" means for these
    # Its noise comes from the graphics card unless it was told otherwise.
    noise = settings.pop("RNG", "").upper()
    if program != "mlxldm":
        wish.values["noise"] = "torch-cpu" if noise == "CPU" else "nvidia"
    elif noise == "NV":
        wish.values["noise"] = "nvidia"
    _second_pass(wish, settings)
    seed, amount = (settings.pop(key, None) for key in ("Variation seed", "Variation seed strength"))
    if seed is not None:
        wish.take("variation", f"{seed}:{amount}", _variation)
    if settings.get("Tiling") == "True":
        wish.values["seamless"] = "both"
        del settings["Tiling"]
    model_hash = settings.pop("Model hash", None)
    _networks(wish, settings)
    for key in ("Version", "Negative prompt", "VAE hash", "Created Date", "User"):
        settings.pop(key, None)
    for key, value in settings.items():
        wish.leave(f"{key} {_short(value)}")
    return wish.found(model_hash)


def _networks(wish: _Wish, settings: dict[str, str]) -> None:
    """The hashes of LoRAs and textual inversions, by the names in the prompt; and Civitai's list of what was used."""
    for key, what in (("Lora hashes", "lora"), ("TI hashes", "embed")):
        for pair in settings.pop(key, "").split(","):
            name, _, digest = (part.strip() for part in pair.rpartition(":"))
            if name:
                wish.hashes[f"{what}:{name}"] = digest
    for key, said in (_object(settings.pop("Hashes", "")) or {}).items():
        if key.startswith(("lora:", "embed:")) and isinstance(said, str):
            wish.hashes.setdefault(key, said)
    for name in wish.hashes:
        if name.startswith("embed:"):
            wish.word(name.removeprefix("embed:"))
    asked = {network.name for network in networks(wish.values["prompt"])[1]}
    for item in _list(settings.pop("Civitai resources", "")):
        kind, called = item.get("type"), item.get("modelName")
        if not isinstance(called, str):
            wish.leave(f"{_short(kind)} {_short(item.get('modelVersionId'))} of Civitai, which has no name")
        elif kind == "checkpoint" and "model" not in wish.values:
            wish.take("model", called, str)
        elif kind in ("lora", "lycoris", "dora") and called not in asked:
            wish.lora(called, item.get("weight", 1))
        elif kind in ("embed", "textualinversion"):
            wish.word(called)
    if settings.get("Civitai metadata") == "{}":
        del settings["Civitai metadata"]


def _list(text: str) -> list[dict[str, Any]]:
    """The objects in a text's list in JSON."""
    try:
        values = json.loads(text)
    except ValueError:
        return []
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _second_pass(wish: _Wish, settings: dict[str, str]) -> None:
    """A picture that is drawn over has the strength of that, and 0 steps are as many as before."""
    if "Hires upscale" not in settings:
        return
    wish.take("hires", settings.pop("Hires upscale"), float)
    if "strength" in wish.values:
        wish.values["hires_strength"] = wish.values.pop("strength")
    wish.take("hires_steps", settings.pop("Hires steps", "0").lstrip("0"), _whole)
    if settings.get("Hires upscaler") == "Lanczos":
        del settings["Hires upscaler"]


def _variation(value: str) -> str:
    try:
        variation_of(value)
    except UserError:
        raise ValueError from None
    return value


def _emphasis(name: str) -> str:
    return EMPHASES[EMPHASES.index(name.lower())]  # ValueError for one that we have not


_KARRAS_FIRST = ("dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")


def _cut_spacing(name: str) -> tuple[str, str]:
    """Older versions wrote the schedule behind the sampler's name: "DPM++ 2M Karras"."""
    for ending in ("karras", "exponential"):
        if name.lower().endswith(" " + ending):
            return name[: -len(ending) - 1], ending
    return name, ""


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """A1111's text as prompt, negative prompt and settings; {} where the last line is none of settings.

    Values with commas, colons or line breaks stand in JSON's quotes.
    """
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    settings = dict(_settings(lines[-1]))
    if "Steps" not in settings and len(settings) < 3:
        return text, "", {}
    words = lines[:-1]
    begin = next((i for i, line in enumerate(words) if line.startswith("Negative prompt:")), len(words))
    negative = "\n".join(words[begin:]).removeprefix("Negative prompt:").strip()
    return "\n".join(words[:begin]).strip(), negative, settings


_SETTING = re.compile(r'\s*([^:,"]+):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
_IN_JSON = re.compile(r'\s*([^:,"]+):\s*(?=[{\[])')


def _settings(line: str) -> Iterator[tuple[str, str]]:
    at = 0
    while match := _SETTING.match(line, at):
        if match.end() == at:
            return
        at, name, value = match.end(), match[1].strip(), match[2].strip()
        if value.startswith(("{", "[")) and (inside := _IN_JSON.match(line, match.start())):
            try:  # Civitai's have commas in them, and no quotes around
                _, length = json.JSONDecoder().raw_decode(line[inside.end() :])
                value, at = line[inside.end() : inside.end() + length], line.find(",", inside.end() + length) + 1
                at = at or len(line)
            except (ValueError, RecursionError):
                pass
        if value.startswith('"'):
            try:
                value = str(json.loads(value))
            except ValueError:
                value = value.strip('"')
        yield name, value


# ComfyUI


COMFY_SAMPLERS = {
    "euler": "euler", "euler_ancestral": "euler_a", "heun": "heun", "lms": "lms", "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_a", "dpmpp_2m": "dpmpp_2m", "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde", "dpmpp_sde": "dpmpp_sde", "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_3m_sde": "dpmpp_3m_sde", "dpmpp_3m_sde_gpu": "dpmpp_3m_sde", "ddim": "ddim", "ddpm": "ddpm",
    "uni_pc": "unipc", "uni_pc_bh2": "unipc", "lcm": "lcm", "deis": "deis", "euler_cfg_pp": "euler_cfgpp",
    "euler_ancestral_cfg_pp": "euler_a_cfgpp",
}  # fmt: skip
COMFY_SPACINGS = {
    "normal": "linspace", "karras": "karras", "exponential": "exponential", "sgm_uniform": "sgm_uniform",
    "simple": "trailing", "ddim_uniform": "leading", "beta": "beta",
}  # fmt: skip
COMFY_ENDS = ("SaveImage", "PreviewImage", "SaveImageWebsocket", "Image Save")


class _Graph:
    """ComfyUI's graph: nodes with inputs that are values or [another node, its output]."""

    def __init__(self, nodes: Mapping[str, Any]):
        self.nodes = {
            str(key): node
            for key, node in nodes.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict) and "class_type" in node
        }

    def kind(self, key: str | None) -> str:
        return "" if key is None else str(self.nodes[key]["class_type"])

    def link(self, key: str | None, name: str) -> str | None:
        """The node that an input comes from."""
        value = None if key is None else self.nodes[key]["inputs"].get(name)
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in self.nodes:
            return str(value[0])
        return None

    def value(self, key: str | None, name: str, depth: int = 0) -> Any:
        """An input's value; one that comes from a node that only holds it is looked up there."""
        if key is None or depth > DEEPEST:
            return None
        other = self.link(key, name)
        if other is None:
            value = self.nodes[key]["inputs"].get(name)
            return None if isinstance(value, list | dict) else value
        inputs = self.nodes[other]["inputs"]
        for inner in (name, "value", "text", "string", "seed", "noise_seed", "int", "float"):
            if inner in inputs:
                return self.value(other, inner, depth + 1)
        return None

    def above(self, key: str | None, wanted: Callable[[str], bool]) -> str | None:
        """The nearest node that fits, against the flow of data."""
        seen: set[str] = set()
        queue = [] if key is None else [key]
        while queue and len(seen) < 10_000:
            here = queue.pop(0)
            if here in seen:
                continue
            seen.add(here)
            if wanted(self.kind(here)):
                return here
            queue += [other for name in self.nodes[here]["inputs"] if (other := self.link(here, name)) is not None]
        return None


def comfy(text: str) -> Found | None:
    """The graph that ComfyUI runs, followed from the saved picture to its sampler, words, model and size."""
    values = _object(text)
    graph = _Graph(values or {})
    ends = [key for key in graph.nodes if graph.kind(key) in COMFY_ENDS] or list(graph.nodes)[-1:]
    sampler = next((found for key in ends if (found := graph.above(key, _samples)) is not None), None)
    if sampler is None:
        sampler = next((key for key in graph.nodes if _samples(graph.kind(key))), None)
    if sampler is None:
        return None
    wish = _Wish("ComfyUI")
    before = graph.above(graph.link(sampler, "latent_image"), _samples)
    if before is not None:
        wish.leave("a second pass over the picture")
        sampler = before
    noise, sigmas, guider = (graph.link(sampler, name) for name in ("noise", "sigmas", "guider"))
    named = graph.link(sampler, "sampler")  # of SamplerCustom: nodes of their own
    wish.take("seed", _first(graph, (sampler, "seed"), (sampler, "noise_seed"), (noise, "noise_seed")), _whole)
    wish.take("steps", _first(graph, (sampler, "steps"), (sigmas, "steps")), _whole)
    wish.take("guidance", _first(graph, (sampler, "cfg"), (guider, "cfg")), float)
    _sampler(wish, str(_first(graph, (sampler, "sampler_name"), (named, "sampler_name")) or ""), COMFY_SAMPLERS)
    spacing = str(_first(graph, (sampler, "scheduler"), (sigmas, "scheduler")) or "").lower()
    if spacing in COMFY_SPACINGS:
        wish.values["spacing"] = COMFY_SPACINGS[spacing]
    elif "AlignYourSteps" in graph.kind(sigmas):
        wish.values["spacing"] = "ays"
    elif spacing:
        wish.leave(f"scheduler {_short(spacing)}")
    for name, ours in (("positive", "prompt"), ("negative", "negative")):
        node = graph.link(sampler, name) or graph.link(guider, name)
        if node is None and ours == "prompt":
            node = graph.link(guider, "conditioning")
        words = _words(graph, wish, node)
        if words:
            wish.values[ours] = _EMBEDDING.sub(lambda match: stem(match[1]), words)
            for name in _EMBEDDING.findall(words):
                wish.word(stem(name))
    _comfy_model(graph, wish, graph.link(sampler, "model") or graph.link(guider, "model"))
    _comfy_latent(graph, wish, graph.link(sampler, "latent_image"), graph.value(sampler, "denoise"))
    for kind in sorted({graph.kind(key) for key in graph.nodes if _changes_much(graph.kind(key))}):
        wish.leave(f"the node {_short(kind)}")
    return wish.found()


_EMBEDDING = re.compile(r"embedding:([^\s,:()]+)")  # how its prompts name textual inversions


def _samples(kind: str) -> bool:
    return kind.startswith(("KSampler", "SamplerCustom")) and not kind.endswith("Select")


def _changes_much(kind: str) -> bool:
    return any(word in kind for word in ("ControlNetApply", "IPAdapter", "FreeU", "ModelSampling", "unCLIP", "Upscale"))


def _first(graph: _Graph, *places: tuple[str | None, str]) -> Any:
    return next((value for key, name in places if (value := graph.value(key, name)) is not None), None)


def _words(graph: _Graph, wish: _Wish, node: str | None, depth: int = 0) -> str:
    """The text of a conditioning, through what is applied to it."""
    if node is None or depth > DEEPEST:
        return ""
    kind = graph.kind(node)
    if "ZeroOut" in kind:
        return ""
    if "TextEncode" in kind:
        texts = [graph.value(node, name) for name in ("text", "text_g", "text_l", "prompt")]
        different = list(dict.fromkeys(text.strip() for text in texts if isinstance(text, str) and text.strip()))
        if len(different) > 1:
            wish.leave(f"second text {_short(different[1])}")
        return different[0] if different else ""
    if "Combine" in kind or "Concat" in kind or "Average" in kind:
        wish.leave(f"the node {_short(kind)}")
    names = ("positive", "conditioning", "conditioning_1", "conditioning_to", "conditioning_from", "conditioning_2")
    return next((said for name in names if (said := _words(graph, wish, graph.link(node, name), depth + 1))), "")


def _comfy_model(graph: _Graph, wish: _Wish, node: str | None) -> None:
    """The checkpoint, through the LoRAs on the way to it."""
    for _ in range(DEEPEST):
        if node is None:
            return
        name = _first(graph, (node, "ckpt_name"), (node, "unet_name"), (node, "model_name"))
        if isinstance(name, str):
            wish.take("model", name, stem)
            return
        lora = graph.value(node, "lora_name")
        if isinstance(lora, str):
            alone = "ModelOnly" in graph.kind(node)
            weight, text_weight = graph.value(node, "strength_model"), graph.value(node, "strength_clip")
            wish.lora(lora, weight, 0 if alone else text_weight)
        for row in graph.nodes[node]["inputs"].values():  # of rgthree's loader of several
            if isinstance(row, dict) and row.get("on") is True and isinstance(row.get("lora"), str):
                wish.lora(row["lora"], row.get("strength", 1), row.get("strengthTwo"))
        node = graph.link(node, "model")


def _comfy_latent(graph: _Graph, wish: _Wish, node: str | None, denoise: Any) -> None:
    """The size of an empty latent, or the picture that was started from."""
    start = graph.above(node, lambda kind: kind.startswith(("EmptyLatent", "LoadImage")))
    if graph.kind(start).startswith("LoadImage"):
        wish.leave(f"start picture {_short(graph.value(start, 'image'))}: give it with --image")
        wish.take("strength", denoise, float)
        return
    wish.take("width", graph.value(start, "width"), _whole)
    wish.take("height", graph.value(start, "height"), _whole)
    if graph.value(start, "batch_size") not in (None, 1):
        wish.leave("pictures of one batch share their noise there: only the first has this seed")


# InvokeAI


def _invoke_samplers() -> dict[str, Any]:
    plain = {
        "ddim": "ddim", "ddpm": "ddpm", "deis": "deis", "lms": "lms", "pndm": "pndm", "heun": "heun", "euler": "euler",
        "euler_a": "euler_a", "kdpm_2": "dpm2", "kdpm_2_a": "dpm2_a", "dpmpp_2s": "dpmpp_2s", "dpmpp_2m": "dpmpp_2m",
        "dpmpp_2m_sde": "dpmpp_2m_sde", "dpmpp_sde": "dpmpp_sde", "unipc": "unipc", "lcm": "lcm", "tcd": "tcd",
    }  # fmt: skip
    return {**plain, **{f"{name}_k": (ours, "karras") for name, ours in plain.items()}}


INVOKE_SAMPLERS = _invoke_samplers()
INVOKE_QUIET = frozenset(
    "app_version generation_mode positive_style_prompt negative_style_prompt rand_device cfg_rescale_multiplier "
    "controlnets ipAdapters t2iAdapters loras vae model canvas_v2_metadata regions metadata_version".split()
)


_TRIGGER = re.compile(r"<([a-zA-Z0-9., _-]+)>")  # how its prompts name textual inversions


def invoke(text: str) -> Found | None:
    """InvokeAI's metadata since version 3."""
    values = _object(text)
    if values is None:
        return None
    wish = _Wish("InvokeAI")
    for key, name, kind in (
        ("positive_prompt", "prompt", str),
        ("negative_prompt", "negative", str),
        ("width", "width", _whole),
        ("height", "height", _whole),
        ("seed", "seed", _whole),
        ("steps", "steps", _whole),
        ("cfg_scale", "guidance", float),
        ("strength", "strength", float),
    ):
        wish.take(name, values.pop(key, None), kind)
    for name in ("prompt", "negative"):
        if name in wish.values:
            for word in _TRIGGER.findall(wish.values[name]):
                wish.word(word)
            wish.values[name] = _TRIGGER.sub(r"\1", wish.values[name])
    _sampler(wish, str(values.pop("scheduler", None) or ""), INVOKE_SAMPLERS)
    if values.get("rand_device", "cpu") != "cpu":
        wish.values["noise"] = "nvidia"
    model = values.get("model")
    if not (isinstance(model, dict) and str(model.get("base", "")).startswith("sdxl")):
        skip = values.pop("clip_skip", None)  # how many layers are left out; of XL it reads the last but one anyway
        wish.take("clip_skip", None if skip in (None, 0) else skip, lambda value: _whole(value) + 1)
    digest = None
    if isinstance(model, dict):
        wish.take("model", model.get("name") or model.get("model_name"), stem)
        digest = str(model.get("hash") or "").removeprefix("sha256:")
    loras = values.get("loras")
    for lora in loras if isinstance(loras, list) else ():
        about = lora.get("model") or lora.get("lora") if isinstance(lora, dict) else None
        if isinstance(about, dict):
            called = about.get("name") or about.get("model_name")
            wish.lora(called, lora.get("weight"))
            digest = about.get("hash")
            if isinstance(digest, str) and digest.startswith("sha256:"):
                wish.hashes[f"lora:{stem(called)}"] = digest.removeprefix("sha256:")
    for key in ("controlnets", "ipAdapters", "t2iAdapters"):
        if values.get(key):
            wish.leave(key)
    for key, value in values.items():
        if key not in INVOKE_QUIET and value not in (None, "", False, [], {}, 0):
            wish.leave(f"{key} {_short(value)}")
    return wish.found(digest)


# mflux and Draw Things


def mflux(text: str) -> Found | None:
    """The JSON that mflux writes into a picture's EXIF."""
    values = _object(text)
    if values is None or "mflux_version" not in values:
        return None
    wish = _Wish("mflux")
    for key, kind in (
        ("prompt", str), ("seed", _whole), ("steps", _whole), ("guidance", float), ("width", _whole),
        ("height", _whole), ("model", stem),
    ):  # fmt: skip
        wish.take(key, values.get(key), kind)
    if values.get("negative_prompt"):
        wish.take("negative", values["negative_prompt"], str)
    paths, scales = values.get("lora_paths") or (), values.get("lora_scales") or ()
    if isinstance(paths, list) and isinstance(scales, list | tuple):
        for i, path in enumerate(paths):
            wish.lora(path, scales[i] if i < len(scales) else 1)
    if values.get("image_path"):
        wish.leave(f"start picture {_short(values['image_path'])}: give it with --image")
    wish.leave("its noise, which comes from MLX itself")
    return wish.found()


DRAW_THINGS_SAMPLERS: dict[str, Any] = {
    "dpm++ 2m karras": ("dpmpp_2m", "karras"), "dpm++ 2m ays": ("dpmpp_2m", "ays"),
    "dpm++ 2m trailing": ("dpmpp_2m", "trailing"), "euler a": "euler_a", "euler ancestral": "euler_a",
    "euler a trailing": ("euler_a", "trailing"), "euler a ays": ("euler_a", "ays"), "ddim": "ddim",
    "ddim trailing": ("ddim", "trailing"), "plms": "pndm", "unipc": "unipc", "unipc trailing": ("unipc", "trailing"),
    "unipc ays": ("unipc", "ays"), "lcm": "lcm", "tcd": "tcd", "dpm++ sde karras": ("dpmpp_sde", "karras"),
    "dpm++ sde trailing": ("dpmpp_sde", "trailing"), "dpm++ sde ays": ("dpmpp_sde", "ays"),
}  # fmt: skip


def draw_things(text: str) -> Found | None:
    """The JSON in the XMP of Draw Things' pictures: its short names are c (prompt), uc (negative), scale (guidance)."""
    inside = text.partition("<exif:UserComment>")[2].partition("</exif:UserComment>")[0]
    item = inside.partition("<rdf:li")[2].partition("</rdf:li>")[0].partition(">")[2]
    values = _object(unescape(item))
    if values is None or "c" not in values:
        return None
    wish = _Wish("Draw Things")
    for key, name, kind in (
        ("c", "prompt", str), ("uc", "negative", str), ("seed", "seed", _whole), ("steps", "steps", _whole),
        ("scale", "guidance", float), ("model", "model", stem),
    ):  # fmt: skip
        wish.take(name, values.get(key), kind)
    width, _, height = str(values.get("size", "")).lower().partition("x")
    wish.take("width", width, _whole)
    wish.take("height", height, _whole)
    _sampler(wish, str(values.get("sampler") or ""), DRAW_THINGS_SAMPLERS)
    if values.get("strength") not in (None, 1, 1.0):
        wish.leave(f"strength {_short(values['strength'])}: give the picture it started from with --image")
    loras = values.get("lora")
    for lora in loras if isinstance(loras, list) else ():
        if isinstance(lora, dict):
            # the name under which it takes files in, with what it did to them behind
            wish.lora(re.sub(r"(_lora)?_(f16|f32|q[68]p)$", "", stem(lora.get("model") or "")), lora.get("weight"))
    return wish.found()


READERS: dict[str, Callable[[str], Found | None]] = {
    "parameters": a1111,
    "prompt": comfy,
    "invokeai_metadata": invoke,
    "exif": lambda text: mflux(text) or a1111(text),  # A1111's JPEG and WebP carry their text there
    "xmp": draw_things,
}
