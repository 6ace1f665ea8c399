"""What a single-file checkpoint is, and why: told by its tensors' names and shapes, and a few marks its writer left.

Shapes say the family, every width and depth, but not the heads, the prediction, the autoencoder's scale, the schedule:
those stand in `families/*.json`, one file a family. Whatever is decided is written down in `why` with its evidence, and
what the person says (`Wish`) wins.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxldm.config import ClipTextConfig, Defaults, ScheduleConfig, UNetConfig, VaeConfig
from mlxldm.errors import UserError, nearest
from mlxldm.folder import Manifest, read_bytes
from mlxldm.tensors import Tensor, from_bfloat16, shown
from mlxldm.tokenizer import BOS, EOS, LETTERS

from . import names, original
from .detect import Found, PartSource, Wish
from .read import Source, Weights, open_file

HERE = Path(__file__).parent / "families"
UNET = "model.diffusion_model."
EMA = "model_ema.diffusion_model"  # and the rest of the name without its dots

# What lies beside the parts in a checkpoint: by the beginning of its name, why it is left out.
LEFT_OUT = {
    "model_ema.": "bookkeeping of the averaged weights",
    "betas": "the schedule's tables are computed",
    "alphas_cumprod": "the schedule's tables are computed",
    "sqrt_": "the schedule's tables are computed",
    "log_one_minus_": "the schedule's tables are computed",
    "posterior_": "the schedule's tables are computed",
    "logvar": "was needed in training only",
    "lvlb_weights": "was needed in training only",
    "denoiser.sigmas": "the schedule's tables are computed",
    "loss.": "was needed in training only",
    "v_pred": "a mark that was read",
    "ztsnr": "a mark that was read",
}


@dataclass(frozen=True)
class Facts:
    """What the U-Net's shapes say; None where there is no such tensor."""

    width: int  # of the first convolution
    channels: int  # it takes
    context: int | None  # width of the text it reads
    label: int | None  # width of the vector added to the time embedding
    linear: bool  # attention is entered by linear maps
    blocks: int  # input blocks

    def __str__(self) -> str:
        return (
            f"first width {self.width}, {self.channels} input channels, text width {self.context}, "
            f"added vector {self.label}, {self.blocks} input blocks"
        )


# First match wins; the third says what this version lacks for it, None where it can be run.
FAMILIES: tuple[tuple[str, Callable[[Facts], bool], str | None], ...] = (
    ("SDXL refiner", lambda f: f.context == 1280 and f.label == 2560, "refiners"),
    ("SDXL inpainting", lambda f: f.context == 2048 and f.channels == 9, "inpainting models"),
    ("SDXL edit", lambda f: f.context == 2048 and f.channels == 8, "edit models"),
    ("sdxl", lambda f: f.context == 2048 and f.label == 2816 and f.channels == 4, None),
    ("Stable Diffusion x4 upscaler", lambda f: f.context == 1024 and f.channels == 7, "upscalers"),
    ("Stable Diffusion 2.x unCLIP", lambda f: f.context == 1024 and f.label is not None, "unCLIP models"),
    ("Stable Diffusion 2.x inpainting", lambda f: f.context == 1024 and f.channels == 9, "inpainting models"),
    ("Stable Diffusion 2.x depth", lambda f: f.context == 1024 and f.channels == 5, "depth models"),
    ("sd2", lambda f: f.context == 1024 and f.linear and f.channels == 4, None),
    ("Stable Diffusion 1.x inpainting", lambda f: f.context == 768 and f.channels == 9, "inpainting models"),
    ("Stable Diffusion 1.x edit", lambda f: f.context == 768 and f.channels == 8, "edit models"),
    ("sd1", lambda f: f.context == 768 and f.width == 320 and not f.linear and f.channels == 4, None),
)
# Files without a U-Net under its usual name: a tensor that tells what it is instead.
ALONE = (
    (r"(lora_unet_|lora_te\d?_|lycoris_).+", "a LoRA", "adapters"),
    (r".*\.(lora_A|lora_B|lora_down|lora_up|hada_w1_a|lokr_w1)(\..*)?", "a LoRA", "adapters"),
    (r"(control_model\.)?(input_hint_block\.0\.weight|zero_convs\.0\.0\.weight)", "a ControlNet", "ControlNets"),
    (r"controlnet_cond_embedding\.conv_in\.weight", "a ControlNet", "ControlNets"),
    (r"(string_to_param\..+|emb_params)", "a textual inversion", "textual inversions"),
    (r"joint_blocks\.0\..+|(model\.diffusion_model\.)?joint_blocks\..+", "Stable Diffusion 3", "transformer models"),
    (r"(model\.diffusion_model\.)?double_blocks\..+", "FLUX", "transformer models"),
    (r"(first_stage_model\.)?encoder\.down\.0\..+", "an autoencoder alone", "parts of a model alone"),
    (r"input_blocks\.0\.0\.weight", "a U-Net alone", "parts of a model alone"),
    (r"down_blocks\.0\..+", "one component of a diffusers folder", "parts of a model alone"),
    (r"text_model\..+", "a text encoder alone", "parts of a model alone"),
)


def single(path: Path, wish: Wish) -> Found:
    """The model in the file at `path`; a UserError in one sentence if it is none that can be run."""
    file = open_file(path)
    try:
        return _single(path, file, wish)
    except BaseException:
        file.close()
        raise


def _single(path: Path, file: Source, wish: Wish) -> Found:
    why: list[str] = []
    facts = _facts(path, file)
    family = _family(path, facts, wish, why)
    table = _table(family)
    parts: dict[str, PartSource] = {}
    configs: dict[str, Any] = {}
    used: set[str] = set()
    for part, how in table["parts"].items():
        origin = _under(file, how["prefix"])
        if not origin:
            raise UserError(
                f"{shown(path)} is a {table['title']} file without the {part} (no tensor begins with "
                f"'{how['prefix']}'): use one that holds the whole model."
            )
        used.update(origin.values())
        if part == "denoiser":
            averaged = _averaged(file, origin)
            if averaged and wish.ema:
                used.update(averaged.values())
                origin = averaged
                why.append(f"the averaged weights are used ({len(averaged)} of {len(averaged)} are there)")
            elif averaged:
                why.append("the averaged weights are left, as --no-ema says")
        weights = Weights({name: (file, theirs) for name, theirs in origin.items()})
        config, dialect = _part(path, part, how, weights.tensors, wish, why)
        configs[part] = config
        parts[part] = PartSource(weights, dialect, f"{path.name}: {how['prefix']}*", {path.name: path})
    _fits(path, configs)
    prediction, zero = _prediction(path, file, table, wish, why)
    schedule = ScheduleConfig.from_diffusers(
        {**table["schedule"], "prediction_type": "v_prediction" if prediction == "v" else prediction}
        | ({"rescale_betas_zero_snr": True} if zero else {})
    )
    size = 768 if family == "sd2" and prediction == "v" else table["size"]
    manifest = Manifest(
        name=path.stem or "model",
        family=family,
        schedule=schedule,
        defaults=Defaults(
            width=size, height=size, steps=table["steps"], guidance=table["guidance"], sampler=schedule.sampler
        ),
        source={"name": path.name, "kind": "single file"},
        license=file.metadata.get("modelspec.license") or None,
        zeros_for_empty=family == "sdxl",
        **configs,
    )
    return Found(
        path,
        manifest,
        parts,
        lambda number: _tokenizer(table["parts"]["text" if number == 1 else "text_2"]["pad"]),
        why,
        _left_out(file, used),
    )


def _facts(path: Path, file: Source) -> Facts:
    shapes = {name[len(UNET) :]: tensor.shape for name, tensor in file.tensors.items() if name.startswith(UNET)}
    first = shapes.get("input_blocks.0.0.weight")
    if first is None or len(first) != 4:
        for pattern, what, kind in ALONE:
            if any(re.fullmatch(pattern, name) for name in file.tensors):
                raise UserError(f"{shown(path)} is {what}; {kind} come with a later version.")
        some = ", ".join(shown(name) for name in list(file.tensors)[:3]) or "none at all"
        raise UserError(f"{shown(path)} holds {len(file.tensors)} tensors ({some}), which are no model known here.")
    contexts = [shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2]
    label = shapes.get("label_emb.0.0.weight")
    entries = [shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")]
    numbers = [int(match[1]) for name in shapes if (match := re.match(r"input_blocks\.(\d+)\.", name))]
    return Facts(
        width=first[0],
        channels=first[1],
        context=contexts[0] if contexts else None,
        label=label[1] if label and len(label) == 2 else None,
        linear=bool(entries) and len(entries[0]) == 2,
        blocks=1 + max(numbers),
    )


def _family(path: Path, facts: Facts, wish: Wish, why: list[str]) -> str:
    runs = [name for name, _, lacks in FAMILIES if lacks is None]
    if wish.family is not None:
        if wish.family not in runs:
            raise UserError(
                f"The family '{shown(wish.family)}' is not known.{nearest(wish.family, runs)} Known are "
                f"{', '.join(sorted(runs))}."
            )
        why.append(f"it is {wish.family}, as --family says ({facts})")
        return wish.family
    for name, fits, lacks in FAMILIES:
        if fits(facts):
            if lacks is not None:
                raise UserError(f"{shown(path)} is {name} ({facts}); {lacks} come with a later version.")
            why.append(f"{_table(name)['title']}: {facts}")
            return name
    like = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
    closest = like.get(facts.context or 0, "sd2" if facts.linear else "sd1")
    raise UserError(
        f"{shown(path)} is a U-Net of no known family ({facts}); {closest} is the nearest: say --family {closest} if "
        f"it is one."
    )


@functools.cache
def _table(family: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((HERE / f"{family}.json").read_text(encoding="utf-8"))
    return table


def _under(file: Source, prefix: str) -> dict[str, str]:
    """The tensors under a prefix: {name without it: whole name}."""
    return {name[len(prefix) :]: name for name in file.tensors if name.startswith(prefix)}


def _averaged(file: Source, origin: Mapping[str, str]) -> dict[str, str]:
    """The averaged U-Net, if it is there whole. Its names lost their dots, so they are made, not read."""
    made = {name: EMA + name.replace(".", "") for name in origin}
    return made if all(name in file.tensors for name in made.values()) else {}


def _part(
    path: Path, part: str, how: dict[str, Any], shapes: Mapping[str, Tensor], wish: Wish, why: list[str]
) -> tuple[Any, names.Dialect]:
    """A part's config, read from its shapes and its family's table, and whose names it has."""
    if part == "denoiser":
        heads = wish.heads or how.get("heads")
        if wish.heads:
            why.append(f"{wish.heads} attention heads, as --heads says")
        return UNetConfig.from_dict(original.unet(shapes, heads, how.get("head_size"))), names.UNET
    if part == "vae":
        return VaeConfig.from_dict({**original.vae(shapes), **how.get("config", {})}), names.VAE
    if how["names"] == "openclip":
        config, dialect = original.openclip(shapes, how["skip"], how["last"]), names.OPENCLIP
    else:
        bare = not any(name.startswith("text_model.") for name in shapes)
        under = {f"text_model.{name}": tensor for name, tensor in shapes.items()} if bare else shapes
        config, dialect = original.clip(under, how["skip"]), names.CLIP
    ids, _ = _vocabulary()
    if config["vocab_size"] != len(ids):
        raise UserError(
            f"{shown(path)} has a text encoder of {config['vocab_size']} tokens, but CLIP's vocabulary has {len(ids)}: "
            f"only a diffusers folder can bring a tokenizer of its own."
        )
    numbers = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[how["pad"]]}
    return ClipTextConfig.from_dict({**config, **numbers}), dialect


def _fits(path: Path, configs: Mapping[str, Any]) -> None:
    unet, vae = configs["denoiser"], configs["vae"]
    if unet.in_channels != vae.latent_channels or unet.out_channels != vae.latent_channels:
        raise UserError(
            f"{shown(path)} has a U-Net of {unet.in_channels} input and {unet.out_channels} output channels for "
            f"latents of {vae.latent_channels}: inpainting, depth and edit models come with a later version."
        )
    context = sum(configs[part].hidden_size for part in ("text", "text_2") if part in configs)
    if set(unet.cross_attention_dim) != {context}:
        raise UserError(
            f"{shown(path)} has a U-Net that reads text of width {unet.cross_attention_dim[0]}, but its text encoders "
            f"give {context}: its parts do not belong together."
        )


def _prediction(path: Path, file: Source, table: dict[str, Any], wish: Wish, why: list[str]) -> tuple[str, bool]:
    """ "epsilon" or "v", and whether the schedule ends in pure noise; the evidence goes to `why`."""
    zero = "ztsnr" in file.tensors or file.metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    if zero:
        why.append("its marks say that training ended in pure noise (zero-terminal SNR)")
    if wish.prediction is not None:
        why.append(f"it predicts {wish.prediction}, as --prediction says")
        return wish.prediction, zero
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        said = file.metadata.get(key, "").lower()
        if said in ("v", "epsilon", "eps"):
            why.append(f"its metadata says {key} = {said}")
            return "v" if said == "v" else "epsilon", zero
    if file.metadata.get("ss_v_parameterization", "").lower() == "true":
        why.append("its metadata says ss_v_parameterization")
        return "v", zero
    if "v_pred" in file.tensors:
        why.append("it holds the mark v_pred")
        return "v", zero
    beside = path.with_suffix(".yaml")
    if beside.is_file():
        text = read_bytes(beside, 1 << 20).decode("utf-8", "replace")
        said_there = re.search(r"^\s*parameterization\s*:\s*[\"']?(v|eps)\b", text, re.MULTILINE)
        if said_there:
            why.append(f"{shown(beside.name)} beside it says parameterization: {said_there[1]}")
            return ("v" if said_there[1] == "v" else "epsilon"), zero
    if table["prediction"] is not None:
        why.append(f"{table['title']} predicts {table['prediction']} unless marked otherwise")
        return table["prediction"], zero
    return _guessed(file, why), zero


def _guessed(file: Source, why: list[str]) -> str:
    """Stable Diffusion 2.x leaves no mark; the biases of one norm spread more in models that predict v (ComfyUI)."""
    name = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if name not in file.tensors:
        why.append("nothing says what it predicts; v is the family's usual: --prediction epsilon says otherwise")
        return "v"
    bits = file.raw(name)
    values = from_bfloat16(bits) if file.tensors[name].dtype == "BF16" else bits
    spread = float(np.std(values.astype(np.float64)))
    guess = "v" if spread > 0.09 else "epsilon"
    why.append(
        f"a guess: it predicts {guess}, since {name.removeprefix(UNET)} has a deviation of {spread:.3f} (v above "
        f"0.09); --prediction says otherwise"
    )
    return guess


def _left_out(file: Source, used: set[str]) -> dict[str, str]:
    """Every tensor that no part takes, with the reason; tensors of one reason are counted together."""
    groups: dict[str, list[str]] = {}
    for name in file.tensors:
        if name in used:
            continue
        if name.startswith(EMA):
            reason = "averaged weights that are not used"
        else:
            reason = next((why for begin, why in LEFT_OUT.items() if name.startswith(begin)), "belongs to no part")
        groups.setdefault(reason, []).append(name)
    return {
        (found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"): reason
        for reason, found in groups.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# CLIP's tokenizer, which single files do not bring


@functools.cache
def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's tokens with their ids, and its merges: https://github.com/openai/CLIP (MIT), 48,894 merges."""
    merges = gzip.decompress((HERE / "clip_merges.txt.gz").read_bytes()).decode("utf-8").split("\n")[:-1]
    # CLIP numbers the printable bytes first, then the others (GPT-2's table), then the same ending a word
    letters = sorted(LETTERS.values(), key=lambda letter: (ord(letter) >= 256, ord(letter)))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m.split(" ")) for m in merges), BOS, EOS]
    return {token: number for number, token in enumerate(tokens)}, merges


@functools.cache
def _tokenizer(pad: str) -> dict[str, bytes]:
    vocabulary, merges = _vocabulary()
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode("utf-8"),
        "merges.txt": ("#version: 0.2\n" + "\n".join(merges) + "\n").encode("utf-8"),
        "special_tokens_map.json": json.dumps(special).encode("utf-8"),
    }
