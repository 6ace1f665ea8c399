"""LoRA files in everybody's names, and textual inversions: what they change, by how much, and for which model.

`adapter` reads names and shapes only. It finds the module that every tensor belongs to, checks that the factors make a
weight of that module's shape, and says which family the file was made for and what in it has no place. `change` brings
the factors of one module into the one form that `mlxldm.adapters` computes with; until it is asked for, none is read.
`inversion` finds the vectors of a textual inversion.

Names are never taken apart where their underscores stand for dots: every spelling of every module is written down from
the config, and looked up. No two modules of a model share a spelling.

Sources, for the formulas: https://github.com/KohakuBlueleaf/LyCORIS (LoCon, LoHa, LoKr, IA3),
https://github.com/huggingface/peft (LoRA, DoRA), https://arxiv.org/abs/2402.09353 (DoRA).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxldm.adapters import Change, grouped
from mlxldm.config import ClipTextConfig, UNetConfig
from mlxldm.errors import UserError
from mlxldm.folder import read_json
from mlxldm.parameters import parameters
from mlxldm.tensors import from_bfloat16, shown

from . import original
from .names import FLOATS, as_plain
from .read import Source

MAX_NAME = 500  # letters
MAX_RANK = 1 << 14
MAX_VECTORS = 75  # a prompt has room for no more

Key = tuple[str, str]  # "denoiser", "text" or "text_2", and our name of a module in it
Shape = tuple[int, ...]
Model = Mapping[str, Any]  # {part: its config}, as `Manifest.parts` has it
Roles = dict[str, str]  # {what a tensor is: what it is called in its file}

# The models that adapters are made for, as far as names and shapes go.
TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
MODELS: dict[str, Model] = {
    "sd1": {"text": ClipTextConfig(), "denoiser": UNetConfig.from_dict({"cross_attention_dim": 768})},
    "sd2": {
        "text": ClipTextConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
        ),
        "denoiser": UNetConfig.from_dict({"cross_attention_dim": 1024, "use_linear_projection": True}),
    },
    "sdxl": {
        "text": ClipTextConfig(skip=-2),
        "text_2": ClipTextConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
            projection_dim=1280, skip=-2,
        ),
        "denoiser": UNetConfig.from_dict({
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
        }),
    },
}  # fmt: skip

# What a tensor is, by how its name ends. kohya and LyCORIS, PEFT (with or without the adapter's name), diffusers.
ROLES = {
    "down": r"\.lora_down\.weight|\.lora_A(?:\.[^.]+)?\.weight|(?:[._]lora|\.lora_linear_layer)\.down\.weight",
    "up": r"\.lora_up\.weight|\.lora_B(?:\.[^.]+)?\.weight|(?:[._]lora|\.lora_linear_layer)\.up\.weight",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"(?:[._]lora)?\.alpha",
    "magnitude": r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?",  # PEFT's, one for each output
    "dora_scale": r"\.dora_scale",  # LyCORIS', one for each output or for each input, as its shape says
    **{role: rf"\.{role}" for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{role: rf"\.{role}" for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")},
    **{role: rf"\.{role}" for role in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    "on_input": r"\.on_input",
    "diff": r"\.diff|\.w_norm",
    "diff_b": r"\.diff_b|\.b_norm",
    "weight": r"\.weight",  # IA3's; without an on_input beside it, somebody's whole weight
}
# The module is the shortest that leaves a known ending, so that `.lora_up.weight` is not a weight of `lora_up`.
ENDING = re.compile("(.+?)(?:" + "|".join(f"(?P<{role}>{ending})" for role, ending in ROLES.items()) + ")")

# Which way of making a change a role belongs to; those that go with any have none.
ALGORITHMS = {
    **dict.fromkeys(("down", "up", "mid"), "lora"),
    **{role: "loha" for role in ROLES if role.startswith("hada_")},
    **{role: "lokr" for role in ROLES if role.startswith("lokr_")},
    **dict.fromkeys(("weight", "on_input"), "ia3"),
    "diff": "full",
}

# What stands before the module's name, once dots are underscores; nothing may stand there too.
PREFIXES = {
    "denoiser": "lora_unet_ unet_ diffusion_model_ model_diffusion_model_ lycoris_unet_ lycoris_".split() + [""],
    "text": (
        "lora_te_ lora_te1_ text_encoder_ clip_l_ clip_l_transformer_ text_encoders_clip_l_transformer_ "
        "cond_stage_model_transformer_ conditioner_embedders_0_transformer_ clip_h_transformer_ "
        "lycoris_te_ lycoris_te1_ lycoris_text_encoder_ lycoris_"
    ).split() + [""],
    "text_2": (
        "lora_te2_ text_encoder_2_ clip_g_ clip_g_transformer_ text_encoders_clip_g_transformer_ "
        "lycoris_te2_ lycoris_text_encoder_2_"
    ).split(),
}  # fmt: skip

# Recognised by a name and not read: what it is, and what comes with a later version.
REFUSED = tuple((re.compile(pattern), what, later) for pattern, what, later in (
    (r"(double|single|single_transformer)_blocks[._]\d", "a LoRA for FLUX", "transformer models"),
    (r"joint_blocks[._]\d", "a LoRA for Stable Diffusion 3", "transformer models"),
    (r"^(lora_te3_|text_encoder_3\.|lora_t5)", "a LoRA for FLUX or Stable Diffusion 3", "transformer models"),
    (r"^(base_model\.model\.)?transformer\.|^lora_transformer_|^lycoris_transformer_blocks_|"
     r"^diffusion_model\.(blocks|layers|transformer_blocks)\.", "a LoRA for a transformer", "transformer models"),
    (r"motion_modules[._]", "a LoRA for moving pictures (AnimateDiff)", "videos"),
    (r"^lllite_", "a ControlNet-LLLite", "ControlNets"),
    (r"^lora_controlnet$", "a ControlNet in a LoRA's form", "ControlNets"),
    (r"\.(oft_blocks|oft_diag|oft_[rR]|boft_[RrSs])\b", "an OFT adapter", "orthogonal adapters"),
    (r"\.[ab][12]\.weight$", "a GLoRA", "such adapters"),
    (r"\.lambda_layer$", "a T-LoRA", "such adapters"),
    (r"\.lora_E\b", "an AdaLoRA", "such adapters"),
    (r"\.vera_lambda_[bd]\b", "a VeRA", "such adapters"),
    (r"\.ia3_l\b", "an IA3 adapter of PEFT", "such adapters"),
    (r"^(unet|text_encoder):\d+:(up|down)$", "a LoRA whose modules have numbers instead of names", "such adapters"),
))  # fmt: skip

# What trainers write of the model into the metadata.
SAID = {"sd_v1": "sd1", "stable-diffusion-v1": "sd1", "sd_v2": "sd2", "stable-diffusion-v2": "sd2",
        "sdxl": "sdxl", "stable-diffusion-xl": "sdxl"}  # fmt: skip
SAID_OTHER = {"sd3": "Stable Diffusion 3", "stable-diffusion-3": "Stable Diffusion 3", "flux": "FLUX"}


# ---------------------------------------------------------------------------------------------------------------------
# What an adapter is


@dataclass(frozen=True)
class Module:
    """How one module's weight is changed: the factors by their role, and the shape of the weight in our layout."""

    algorithm: str  # "lora", "loha", "lokr", "ia3", "full"
    tensors: Roles
    shape: Shape
    rank: int | None  # None where nothing is of low rank

    @property
    def dora(self) -> bool:
        """Whether its magnitudes are set apart (DoRA), so that the change depends on the weight."""
        return "dora_scale" in self.tensors or "magnitude" in self.tensors

    @property
    def needs_base(self) -> bool:
        """Whether the change cannot be known without the weight."""
        return self.dora or self.algorithm == "ia3"

    @property
    def kind(self) -> str:
        """The algorithm as people call it: a LoRA of a 3x3 convolution is a LoCon, one with magnitudes a DoRA."""
        if self.dora:
            return "dora" if self.algorithm == "lora" else f"{self.algorithm} with dora"
        return "locon" if self.algorithm == "lora" and len(self.shape) == 4 else self.algorithm


@dataclass(frozen=True)
class Adapter:
    """A LoRA file, understood: its modules by (part, our name), and what has no place, by tensor, with the reason."""

    file: Source
    base: str | None  # "sd1", "sd2", "sdxl"; None where the shapes are those of no family
    model: Model  # the configs it was matched with
    modules: dict[Key, Module]
    unmatched: dict[str, str]
    inversions: tuple[Inversion, ...]  # that lie in the same file
    why: list[str]
    settings: dict[str, Any]  # PEFT's, from the metadata or the file beside it

    @property
    def name(self) -> str:
        """What its file is called."""
        return self.file.path.name

    @functools.cached_property
    def changes(self) -> dict[Key, Change]:
        """What changes in each module, read once."""
        return {key: change(self, key) for key in self.modules}

    @property
    def kind(self) -> str:
        """ "lora", "locon", "loha", "lokr", "ia3", "dora", "full", or "mixed: ..." with the count of each."""
        counts = Counter(module.kind for module in self.modules.values())
        if set(counts) == {"lora", "locon"}:
            return "locon"
        if len(counts) == 1:
            return next(iter(counts))
        return "mixed: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())

    @property
    def ranks(self) -> list[int]:
        """The ranks that its modules have, each once."""
        return sorted({module.rank for module in self.modules.values() if module.rank is not None})

    @property
    def coverage(self) -> dict[str, tuple[int, int]]:
        """For each part that it changes: how many of the part's modules, and how many there are (norms left out)."""
        found: dict[str, tuple[int, int]] = {}
        for part, config in self.model.items():
            changed = sum(key[0] == part for key in self.modules)
            if changed:
                found[part] = changed, sum(len(shape) > 1 for shape in _shapes(config, "weight").values())
        return found

    def alpha(self, key: Key) -> float | None:
        """The number that is divided by the rank: the file's own, else what PEFT's settings say; None: nobody says."""
        name = self.modules[key].tensors.get("alpha")
        return number(self.file, name) if name is not None else self._setting(key, "alpha_pattern", "lora_alpha")

    def scale(self, key: Key) -> float:
        """What the product of the factors is multiplied with: alpha / rank, or 1 where no alpha is known."""
        module = self.modules[key]
        rank: float | None = module.rank
        if module.algorithm == "lokr" and rank is None:
            # With both sides whole there is no rank: LyCORIS scales by 1, and its alpha is a placeholder. PEFT scales
            # by the rank that was asked for.
            alpha, rank = self._setting(key, "alpha_pattern", "alpha"), self._setting(key, "rank_pattern", "r")
        else:
            alpha = self.alpha(key)
        if alpha is None or rank is None or rank <= 0:
            return 1.0
        return alpha / (math.sqrt(rank) if _of_part(self.settings, key[0]).get("use_rslora") is True else rank)

    def _setting(self, key: Key, pattern: str, name: str) -> float | None:
        settings = _of_part(self.settings, key[0])
        value = settings.get(name, settings.get(name.removeprefix("lora_")))
        patterns = settings.get(pattern)
        for end, special in patterns.items() if isinstance(patterns, dict) else ():
            # PEFT takes these for regular expressions; diffusers writes plain ends of names, and only those are read
            if f".{key[1]}".endswith(f".{end}"):
                value = special
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e30 < value < 1e30:
            raise UserError(f"{shown(self.file.path)} has the setting {name} = {shown(value)}; a number was expected.")
        return float(value)

    def report(self) -> dict[str, Any]:
        """What there is to say of it, as JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "base": self.base,
            "ranks": self.ranks,
            "modules": {part: list(counts) for part, counts in self.coverage.items()},
            "inversions": [inversion.token for inversion in self.inversions],
            "unmatched": grouped(self.unmatched),
            "why": self.why,
        }


def adapter(file: Source, model: Model | None = None) -> Adapter:
    """The LoRA in `file`, by names and shapes alone, as it changes `model` (by default, the family it was made for).

    Raises UserError for what is for another kind of model, matches nothing, is of an algorithm that is not read, or
    whose factors do not make weights of the modules' shapes.
    """
    said, sentence, other = _metadata(file)
    for pattern, what, later in REFUSED:
        if any(pattern.search(name[:MAX_NAME]) for name in file.tensors):
            raise UserError(f"{shown(file.path)} is {what}; {later} come with a later version.")
    groups, unmatched = _groups(file)
    two = any(flat.startswith(("lora_te1_", "lora_te2_")) for flat in groups)
    places = {family: _places(groups, parts) for family, parts in MODELS.items()}
    counts = {family: _fitting(file, found, MODELS[family]) for family, (found, _) in places.items()}
    best = max(MODELS, key=lambda family: (counts[family], family == said, two and family == "sdxl"))
    base = best if counts[best] else None
    title = TITLES[best] if model is None else "the model"
    model = MODELS[best] if model is None else model
    found, left = _places(groups, model)
    if not found:
        raise UserError(_nothing(file, groups, title))
    if other and all(part != "denoiser" for part, _ in found):
        raise UserError(f"{shown(file.path)} is a LoRA for {other} ({sentence}); it is for no model that can be run.")
    why = _evidence(file, found, counts, base)
    if sentence:
        why.append(f"its metadata says {sentence}" + (", which it is not" if base not in (None, said) else ""))
    modules: dict[Key, Module] = {}
    for key, roles in found.items():
        algorithm, made, rank = _measure(file, roles)
        config, module = model[key[0]], key[1]
        ours = _shapes(config, "weight")[module]
        if not _fits(algorithm, made, _torch(ours)):
            raise UserError(
                f"{shown(file.path)} makes a change of {list(made)} with {shown(next(iter(roles.values())))}, but "
                f"{title}'s {module} is {list(_torch(ours))}: it was made for {_another(file, found, base, title)}."
            )
        _fits_beside(file, roles, ours, module in _shapes(config, "bias"))
        modules[key] = Module(algorithm, roles, ours, rank)
    bundled = _bundled(file, model)
    taken = {name for inversion in bundled for name in inversion.tensors.values()}
    reasons = {**unmatched, **{name: reason.format(title=title) for name, reason in left.items()}}
    return Adapter(
        file=file,
        base=base,
        model=model,
        modules=modules,
        unmatched={name: reasons[name] for name in file.tensors if name in reasons and name not in taken},
        inversions=bundled,
        why=why,
        settings=_settings(file),
    )


def family_of(model: Model) -> str | None:
    """Whose adapters fit a model whole: "sd1", "sd2", "sdxl"; None where its U-Net or text encoders are no family's.

    The first layer may differ: that of models that paint over something takes more channels.
    """
    return next((family for family in MODELS if as_wide(model, family) and _same_unet(model, family)), None)


def as_wide(model: Model, family: str) -> bool:
    """Whether a model has a family's text encoders, by their width."""
    ours, theirs = (
        {part: config.hidden_size for part, config in parts.items() if isinstance(config, ClipTextConfig)}
        for parts in (model, MODELS[family])
    )
    return ours == theirs


def _same_unet(model: Model, family: str) -> bool:
    if "denoiser" not in model:
        return False
    shapes, wanted = _shapes(model["denoiser"], "weight"), _shapes(MODELS[family]["denoiser"], "weight")
    return all(shapes.get(module) == shape for module, shape in wanted.items() if module != "conv_in")


# ---------------------------------------------------------------------------------------------------------------------
# Names


@functools.cache
def _shapes(config: Any, last: str) -> dict[str, Shape]:
    """The shape of the "weight" or the "bias" of every module of a part that has one, in our layout."""
    named = ((name.rpartition("."), shape) for name, shape in parameters(config).items())
    return {module: shape for (module, _, end), shape in named if end == last}


def _flat(module: str) -> str:
    return module.replace(".", "_")


@functools.cache
def spellings(config: ClipTextConfig | UNetConfig) -> dict[str, str]:
    """Every name that a part's modules go by, without prefix and with underscores for dots: {spelling: our module}.

    The U-Net's are diffusers' and the original's; the text encoders' are transformers' with and without `text_model.`
    and, for the attention, diffusers' of before 2024 (`to_q` for `q_proj`). `to_out` is also what `to_out.0` was.
    """
    found: dict[str, str] = {}
    for module in _shapes(config, "weight"):
        names = [module]
        if isinstance(config, UNetConfig):
            names.append(original.unet_name(f"{module}.weight", config)[0].removesuffix(".weight"))
            names += [name.removesuffix(".0") for name in names if name.endswith(".to_out.0")]
        else:
            names += [re.sub(r"self_attn\.(q|k|v|out)_proj", r"self_attn.to_\1", module)]
            names += [name.removeprefix("text_model.") for name in names]
        for name in names:
            found.setdefault(_flat(name), module)
    return found


def _find(flat: str, model: Model) -> tuple[Key, bool] | None:
    """The module that a group of tensors is for, and whether it has our own name there."""
    for part, config in model.items():
        for prefix in PREFIXES.get(part, ()):
            if flat.startswith(prefix):
                rest = flat[len(prefix) :]
                module = spellings(config).get(rest)
                if module is not None:
                    return (part, module), rest == _flat(module)
    return None


def _groups(file: Source) -> tuple[dict[str, Roles], dict[str, str]]:
    """The tensors that belong together, by what stands before their endings; and those with no known ending."""
    groups: dict[str, Roles] = {}
    left: dict[str, str] = {}
    for name in file.tensors:
        match = ENDING.fullmatch(name) if len(name) <= MAX_NAME else None
        if match is None or match.lastgroup is None:
            left[name] = "its ending is none that is known"
            continue
        # attention processors held the first LoRAs of diffusers
        roles = groups.setdefault(_flat(match[1].removeprefix("base_model.model.").replace(".processor", "")), {})
        if match.lastgroup in roles:
            raise UserError(
                f"{shown(file.path)} has both {shown(roles[match.lastgroup])} and {shown(name)}: which one is meant?"
            )
        roles[match.lastgroup] = name
    for roles in groups.values():
        if "weight" in roles and "on_input" not in roles:
            left[roles.pop("weight")] = "is a whole weight and no change of one"
    return {flat: roles for flat, roles in groups.items() if roles}, left


def _places(groups: Mapping[str, Roles], model: Model) -> tuple[dict[Key, Roles], dict[str, str]]:
    """Which group changes which module, and the tensors of those that change none, with the reason."""
    places: dict[Key, Roles] = {}
    left: dict[str, str] = {}
    found = [(flat, _find(flat, model)) for flat in groups]
    # a file may name a module in two spellings; ours is then taken everywhere, as diffusers takes it
    for flat, place in sorted(found, key=lambda one: one[1] is not None and not one[1][1]):
        if place is None:
            left.update(dict.fromkeys(groups[flat].values(), "belongs to no module of {title}"))
        elif places.get(place[0], {}).keys() & groups[flat].keys():
            left.update(dict.fromkeys(groups[flat].values(), "its module is changed under another name too"))
        else:
            places.setdefault(place[0], {}).update(groups[flat])
    for key, roles in list(places.items()):
        if not any(role in ALGORITHMS or role == "diff_b" for role in roles):
            left.update(dict.fromkeys(places.pop(key).values(), "has no factors beside it"))
    return places, left


def _nothing(file: Source, groups: Mapping[str, Roles], title: str) -> str:
    changes = [next(iter(roles.values())) for roles in groups.values() if roles.keys() & ALGORITHMS.keys()]
    if changes:
        some = ", ".join(shown(name) for name in changes[:3])
        known = title if title == "the model" else "Stable Diffusion 1.x, 2.x or XL"
        return f"{shown(file.path)} changes {len(changes)} modules ({some}), of which {known} has none."
    some = ", ".join(shown(name) for name in list(file.tensors)[:3]) or "none at all"
    return (
        f"{shown(file.path)} holds {len(file.tensors)} tensors ({some}), which are no LoRA known here: names like "
        f"lora_unet_*.lora_down.weight or unet.*.lora_A.weight were expected."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


def _torch(ours: Shape) -> Shape:
    """The shape of a weight of ours in torch's layout, which factors are in."""
    return (ours[0], ours[3], ours[1], ours[2]) if len(ours) == 4 else ours


class _Factors:
    """The tensors of one module, by their shapes; what does not go together is a UserError that names it."""

    def __init__(self, file: Source, roles: Roles) -> None:
        self.file, self.roles = file, roles
        self.shapes = {role: file.tensors[name].shape for role, name in roles.items()}

    @property
    def name(self) -> str:
        """What to call them in messages: the first of them."""
        return shown(next(iter(self.roles.values())))

    def bad(self, role: str) -> UserError:
        others = ", ".join(f"{other} {list(shape)}" for other, shape in self.shapes.items() if other != role)
        return UserError(
            f"{shown(self.file.path)} has {shown(self.roles[role])} of the shape {list(self.shapes[role])}, which does "
            f"not go with {others or 'any module'}: it is damaged."
        )

    def shape(self, role: str, *axes: int) -> Shape:
        """The shape of a tensor that must be there and have one of these numbers of axes, none of them empty."""
        if role not in self.shapes:
            raise UserError(f"{shown(self.file.path)} has {self.name} without its {role}: it is damaged.")
        if len(self.shapes[role]) not in axes or 0 in self.shapes[role]:
            raise self.bad(role)
        return self.shapes[role]

    def pair(self, a: str, b: str, core: str) -> tuple[Shape, int]:
        """The shape and rank of a @ b, or of the Tucker product of `core` [i, j, ...] with a [i, out] and b [j, in]."""
        first, second = self.shape(a, 2), self.shape(b, 2)
        if core in self.shapes:
            middle = self.shape(core, 4)
            if middle[:2] != (first[0], second[0]):
                raise self.bad(core)
            return (first[1], second[1], *middle[2:]), second[0]
        if first[1] != second[0]:
            raise self.bad(a)
        return (first[0], second[1]), second[0]


def _lora(factors: _Factors) -> tuple[Shape, int | None]:
    """down [r, in, ...] and up [out, r], or with `mid` [m, r, ...] a Tucker product of down [r, in] and up [out, m]."""
    down, up = factors.shape("down", 2, 4), factors.shape("up", 2, 4)
    rank, inner, made = down[0], down[0], (up[0], *down[1:])
    if "mid" in factors.shapes:
        mid = factors.shape("mid", 4)
        if mid[1] != rank or math.prod(down[2:]) != 1:
            raise factors.bad("mid")
        inner, made = mid[0], (up[0], down[1], *mid[2:])
    if up[1] != inner or math.prod(up[2:]) != 1:
        raise factors.bad("up")
    return made, rank


def _loha(factors: _Factors) -> tuple[Shape, int | None]:
    """Two products of the same shape, multiplied number by number."""
    if ("hada_t1" in factors.shapes) != ("hada_t2" in factors.shapes):
        raise factors.bad("hada_t1" if "hada_t1" in factors.shapes else "hada_t2")
    made, rank = factors.pair("hada_w1_a", "hada_w1_b", "hada_t1")
    if factors.pair("hada_w2_a", "hada_w2_b", "hada_t2")[0] != made:
        raise factors.bad("hada_w2_a")
    return made, rank


def _lokr(factors: _Factors) -> tuple[Shape, int | None]:
    """The Kronecker product of two sides, each whole or a product; without a product there is no rank."""
    rank: int | None = None
    sides: list[Shape] = []
    for side, core in (("lokr_w1", ""), ("lokr_w2", "lokr_t2")):
        if side not in factors.shapes:
            made, rank = factors.pair(f"{side}_a", f"{side}_b", core)
            sides.append(made)
        elif {f"{side}_a", f"{side}_b", core} & factors.shapes.keys():
            raise factors.bad(side)
        else:
            sides.append(factors.shape(side, 2, 4) if core else factors.shape(side, 2))
    one, two = sides
    return (one[0] * two[0], one[1] * two[1], *two[2:]), rank


def _ia3(factors: _Factors) -> tuple[Shape, int | None]:
    """One number for each output or each input; which of them, only `on_input` says, so here is but their count."""
    shape = factors.shape("weight", 1, 2, 4)
    if max(shape) != math.prod(shape):
        raise factors.bad("weight")
    return (math.prod(shape),), None


def _full(factors: _Factors) -> tuple[Shape, int | None]:
    """The change as it stands; () where the bias alone is changed."""
    return factors.shape("diff", 1, 2, 4) if "diff" in factors.shapes else (), None


MEASURES = {"lora": _lora, "loha": _loha, "lokr": _lokr, "ia3": _ia3, "full": _full}


def _measure(file: Source, roles: Roles) -> tuple[str, Shape, int | None]:
    """The algorithm, the shape of the change that the factors make (torch's layout, perhaps flat), and the rank.

    A flat change of a convolution is (out, in * height * width). Raises UserError for factors that do not go together.
    """
    factors = _Factors(file, roles)
    algorithms = sorted({ALGORITHMS[role] for role in roles if role in ALGORITHMS}) or ["full"]
    if len(algorithms) > 1:
        raise UserError(
            f"{shown(file.path)} changes one module as {' and as '.join(algorithms)} ({factors.name}): which one is "
            f"meant?"
        )
    for role in ("alpha", "on_input"):
        if math.prod(factors.shapes.get(role, ())) != 1:
            raise factors.bad(role)
    made, rank = MEASURES[algorithms[0]](factors)
    if rank is not None and rank > MAX_RANK:
        raise UserError(f"{shown(file.path)} has {factors.name} of rank {rank}; no adapter's is above {MAX_RANK}.")
    return algorithms[0], made, rank


def _fits(algorithm: str, made: Shape, wanted: Shape) -> bool:
    """Whether a change of this shape is one of a weight of that shape, both in torch's layout."""
    if not made:  # of the bias alone
        return True
    if algorithm == "ia3":
        return len(wanted) > 1 and made[0] in wanted[:2]
    rest = made[1:2] if len(wanted) == 2 and made[2:] == (1, 1) else made[1:]
    return made[0] == wanted[0] and rest in (wanted[1:], (math.prod(wanted[1:]),))


def _fits_beside(file: Source, roles: Roles, ours: Shape, biased: bool) -> None:
    """What goes with any algorithm must fit the weight too: DoRA's magnitudes, the change of the bias."""
    for role in ("dora_scale", "magnitude"):
        if role in roles and _axis(role, file.tensors[roles[role]].shape, _torch(ours)) is None:
            raise UserError(
                f"{shown(file.path)} has {shown(roles[role])} of the shape {list(file.tensors[roles[role]].shape)}, "
                f"which are not the magnitudes of a weight of {list(_torch(ours))}."
            )
    if "diff_b" in roles and (not biased or file.tensors[roles["diff_b"]].shape != ours[:1]):
        raise UserError(
            f"{shown(file.path)} has {shown(roles['diff_b'])} of the shape "
            f"{list(file.tensors[roles['diff_b']].shape)}, but its module has "
            f"{f'a bias of {ours[0]}' if biased else 'no bias'}."
        )


def _axis(role: str, magnitudes: Shape, weight: Shape) -> int | None:
    """Whose magnitudes they are: the outputs' (0) or the inputs' (1), by their shape; None if they are nobody's."""
    if len(weight) < 2:
        return None
    count = math.prod(magnitudes)
    # PEFT has those of a convolution's outputs as [1, out, 1, 1], which in LyCORIS' layout would be the inputs'
    if count == weight[0] and (role == "magnitude" or magnitudes[:1] == (count,)):
        return 0
    if count == weight[1] and role == "dora_scale" and magnitudes[:2] == (1, count):
        return 1
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Which model it is for


def _fitting(file: Source, places: Mapping[Key, Roles], model: Model) -> int:
    """How many of the modules have the model's shapes."""
    count = 0
    for (part, module), roles in places.items():
        try:
            algorithm, made, _ = _measure(file, roles)
        except UserError:  # it is told when the module is needed
            continue
        count += _fits(algorithm, made, _torch(_shapes(model[part], "weight")[module]))
    return count


def _context(file: Source, places: Mapping[Key, Roles]) -> tuple[int, str] | None:
    """The width of the text that its attention reads, and a tensor that shows it."""
    for (_, module), roles in places.items():
        if module.endswith((".attn2.to_k", ".attn2.to_v")):
            made = _measure(file, roles)[1]
            if len(made) > 1:
                return made[1], next(iter(roles.values()))
    return None


def _evidence(file: Source, places: Mapping[Key, Roles], counts: Mapping[str, int], base: str | None) -> list[str]:
    why = []
    if base is not None:
        alike = [TITLES[family] for family, count in counts.items() if count == counts[base] and family != base]
        why.append(
            f"{counts[base]} of its modules are {TITLES[base]}'s by name and shape"
            + (f"; they are {' and '.join(alike)}'s as well" if alike else "")
        )
    context = _context(file, places)
    if context is not None:
        why.append(f"its attention reads text of width {context[0]} ({shown(context[1])})")
    return why


def _another(file: Source, places: Mapping[Key, Roles], base: str | None, title: str) -> str:
    context = _context(file, places)
    if context is not None and context[0] == 1280:
        return "the SDXL refiner, and refiners come with a later version"
    return TITLES[base] if base is not None and TITLES[base] != title else "another model"


def _metadata(file: Source) -> tuple[str | None, str, str | None]:
    """The family that the metadata names, the words it does so with, and the model outside them that it names."""
    for name in ("ss_base_model_version", "modelspec.architecture"):
        text = file.metadata.get(name, "").lower()
        sentence = f"{name} = {shown(text)}"
        for begin, family in SAID.items():
            if text.startswith(begin):
                return family, sentence, None
        for begin, other in SAID_OTHER.items():
            if text.startswith(begin):
                return None, sentence, other
    return None, "", None


def _settings(file: Source) -> dict[str, Any]:
    """PEFT's settings: from the metadata, where diffusers writes them, or from the file beside `adapter_model`."""
    text = file.metadata.get("lora_adapter_metadata")
    beside = file.path.with_name("adapter_config.json")
    if text is not None:
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError):
            settings = None
    elif file.path.stem == "adapter_model" and beside.is_file():
        settings = read_json(beside)
    else:
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"{shown(file.path)} has settings that are no JSON object: they are damaged.")
    return settings


def _of_part(settings: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The settings of a part; PEFT's own file has one set of them for all."""
    begin = {"denoiser": "unet.", "text": "text_encoder.", "text_2": "text_encoder_2."}[part]
    own = {name.removeprefix(begin): value for name, value in settings.items() if name.startswith(begin)}
    return own or settings


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics


def change(adapter: Adapter, key: Key) -> Change:
    """How a module's weight and bias are changed at strength 1, read from the file.

    Raises UserError for numbers that are not finite.
    """
    module, inputs = adapter.modules[key], adapter.modules[key].shape[-1]
    arrays: tuple[np.ndarray, ...]
    if module.algorithm == "ia3":
        values = factor(adapter, key)
        form, arrays = "factor", (np.broadcast_to(values, (len(values), *module.shape[1:])).reshape(len(values), -1),)
    else:
        form, arrays = _arrays(adapter.file, module)
        arrays = (arrays[0] * np.float32(adapter.scale(key)), *arrays[1:])
        if form == "low":
            arrays = _balanced(*arrays)
    magnitude = _magnitude(adapter.file, module) if module.dora else None
    made = Change(form, tuple(map(np.ascontiguousarray, arrays)), inputs, magnitude, bias_delta(adapter, key))
    with np.errstate(over="ignore", invalid="ignore"):
        square = made.square
    if square is not None and not math.isfinite(square):
        raise UserError(f"{shown(adapter.file.path)} makes numbers of {key[1]} that are not finite: it is damaged.")
    return made


def delta(adapter: Adapter, key: Key, base: np.ndarray | None = None) -> np.ndarray:
    """The change of a module's weight at strength 1: float32, of the weight's shape, in our layout.

    `base`: the weight itself in our layout, whole (not quantized); needed where `needs_base` says so.
    Raises UserError for numbers that are not finite.
    """
    module = adapter.modules[key]
    assert base is not None or not module.needs_base, f"{key}: its weight is needed"
    whole = np.zeros(module.shape, np.float32) if base is None else base.astype(np.float32)
    assert whole.shape == module.shape, key
    return change(adapter, key).of(whole.reshape(len(whole), -1)).reshape(module.shape)


def factor(adapter: Adapter, key: Key) -> np.ndarray:
    """IA3's f of a module, whose weight W becomes W * (1 + f): one number for each output, or for each input.

    float32, of as many axes as the weight in our layout, all but one of length 1.
    """
    module = adapter.modules[key]
    values = _read(adapter.file, module.tensors["weight"]).reshape(-1)
    on_input = number(adapter.file, module.tensors["on_input"]) != 0
    axis = len(module.shape) - 1 if on_input else 0
    if len(values) != module.shape[axis]:
        raise UserError(
            f"{shown(adapter.file.path)} has {len(values)} numbers for {'inputs' if on_input else 'outputs'} in "
            f"{shown(module.tensors['weight'])}, but {key[1]} has {module.shape[axis]}."
        )
    return values.reshape([len(values) if i == axis else 1 for i in range(len(module.shape))])


def bias_delta(adapter: Adapter, key: Key) -> np.ndarray | None:
    """The change of a module's bias at strength 1, float32 [out]; None where there is none."""
    name = adapter.modules[key].tensors.get("diff_b")
    return None if name is None else _read(adapter.file, name)


def _arrays(file: Source, module: Module) -> tuple[str, tuple[np.ndarray, ...]]:
    """The form and the factors of a change, not yet scaled; a Tucker product's middle goes into its second factor."""

    def read(role: str) -> np.ndarray:
        return _read(file, module.tensors[role])

    def pair(a: str, b: str, core: str) -> tuple[np.ndarray, np.ndarray]:
        if core in module.tensors:
            return read(a).T, _rows(np.einsum("ij...,jn->in...", read(core), read(b), optimize=True), module.shape)
        return read(a), _rows(read(b), module.shape)

    if module.algorithm == "lora":
        down, up = read("down"), read("up")
        if "mid" in module.tensors:
            down = np.einsum("ij...,jn->in...", read("mid"), down.reshape(len(down), -1), optimize=True)
        return "low", (up.reshape(len(up), -1), _rows(down, module.shape))
    if module.algorithm == "loha":
        first, second = pair("hada_w1_a", "hada_w1_b", "hada_t1"), pair("hada_w2_a", "hada_w2_b", "hada_t2")
        return "product", (*first, *second)
    if module.algorithm == "lokr":
        return "kronecker", _sides(file, module)
    assert module.algorithm == "full", module
    if "diff" in module.tensors:
        return "full", (_rows(read("diff"), module.shape),)
    return "factor", (np.zeros((1, 1), np.float32),)  # the bias alone is changed


def _balanced(up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same product of factors of like size, by a power of two: float16 then holds the one as well as the other."""
    sizes = [max(float(x.max()), -float(x.min())) for x in (up, down)]
    if 0 in sizes or not all(map(math.isfinite, sizes)):
        return up, down
    power = np.float32(2.0 ** round(math.log2(sizes[0] / sizes[1]) / 2))
    return (up, down) if power == 1 else (up / power, down * power)


def _sides(file: Source, module: Module) -> tuple[np.ndarray, np.ndarray]:
    """The two sides of a Kronecker product, with axes (out, out, height * width, in, in) between them."""
    sides = []
    for side, core in (("lokr_w1", ""), ("lokr_w2", "lokr_t2")):
        if side in module.tensors:
            sides.append(_read(file, module.tensors[side]))
            continue
        a, b = (_read(file, module.tensors[f"{side}_{letter}"]) for letter in "ab")
        if core in module.tensors:
            sides.append(np.einsum("ij...,io,jn->on...", _read(file, module.tensors[core]), a, b, optimize=True))
        else:
            sides.append(a @ b)
    one, two = sides
    places = math.prod(module.shape[1:-1])
    inputs = module.shape[-1] // one.shape[1]
    two = two.reshape(len(two), inputs, places).transpose(0, 2, 1)
    return one.reshape(len(one), 1, 1, -1, 1), two.reshape(1, len(two), places, 1, inputs)


def _rows(values: np.ndarray, shape: Shape) -> np.ndarray:
    """Factors (n, in, height, width) or flat, in torch's layout, as rows (n, ...) of a weight of `shape` in ours."""
    if len(shape) == 4:
        values = values.reshape(len(values), shape[3], *shape[1:3]).transpose(0, 2, 3, 1)
    return values.reshape(len(values), -1)


def _magnitude(file: Source, module: Module) -> np.ndarray:
    """DoRA's magnitudes, (out, 1, 1) or (1, 1, in)."""
    role = "magnitude" if "magnitude" in module.tensors else "dora_scale"
    values = _read(file, module.tensors[role])
    axis = _axis(role, values.shape, _torch(module.shape))
    assert axis is not None, module
    return values.reshape((-1, 1, 1) if axis == 0 else (1, 1, -1))


def _read(file: Source, name: str) -> np.ndarray:
    """A tensor as float32; what is not finite is a UserError."""
    dtype = file.tensors[name].dtype
    if dtype not in FLOATS:
        raise UserError(f"{shown(file.path)} has {shown(name)} as {shown(dtype)}; floating-point numbers are needed.")
    bits = file.raw(name)
    with np.errstate(over="ignore"):
        values = from_bfloat16(bits) if dtype == "BF16" else as_plain(bits, dtype).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise UserError(f"{shown(file.path)} has numbers in {shown(name)} that are not finite: it is damaged.")
    return values


def number(file: Source, name: str) -> float:
    """A single number; trainers write whole ones as integers."""
    values = _read(file, name) if file.tensors[name].dtype in FLOATS else file.raw(name)
    return float(values.reshape(-1)[0])


# ---------------------------------------------------------------------------------------------------------------------
# Textual inversions

TOWERS = {"clip_l": "text", "clip_g": "text_2", "text_encoders_0": "text", "text_encoders_1": "text_2"}
# `_parameters`: where the inventors' own code kept its vectors
VECTORS = re.compile(r"(?:.+\.)?string_to_param\.(?:_parameters\.)?(.+)|emb_params|\*", re.DOTALL)


@dataclass(frozen=True)
class Inversion:
    """A textual inversion: a word, and for each text encoder the n vectors that stand in the word's place."""

    file: Source
    token: str
    base: str | None  # "sd1", "sd2", "sdxl", by the width; None where it is no family's
    tensors: dict[str, str]  # part ("text", "text_2") -> its name in the file
    shapes: dict[str, tuple[int, int]]  # part -> (n, width)
    bundled: bool = False  # whether it lies in a LoRA's file

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called in a prompt: its token, and as its file is called."""
        return tuple(dict.fromkeys((self.token,) if self.bundled else (self.token, self.file.path.stem)))

    def read(self, part: str) -> np.ndarray:
        """The vectors for a text encoder, float32 [n, width]; a UserError for numbers that are not finite."""
        return _read(self.file, self.tensors[part]).reshape(self.shapes[part])


def inversion(file: Source, model: Model | None = None) -> Inversion:
    """The textual inversion in `file`, for `model` (by default, whichever family has vectors of its width).

    AUTOMATIC1111's (`string_to_param`, `emb_params`) are called as their file is; diffusers' have their token as the
    tensor's name; those of SDXL hold one tensor for each text encoder. Raises UserError for what is none of these.
    """
    names = {name: name for name in file.tensors}
    found = _inversion(file, names, file.metadata.get("name") or file.path.stem, model)
    if found is None:
        some = ", ".join(shown(name) for name in list(file.tensors)[:3]) or "none at all"
        raise UserError(
            f"{shown(file.path)} holds {len(file.tensors)} tensors ({some}), which are no textual inversion: "
            f"emb_params, string_to_param, clip_l and clip_g, or one token's name were expected."
        )
    return found


def _bundled(file: Source, model: Model) -> tuple[Inversion, ...]:
    """The textual inversions that a LoRA brings along, as `bundle_emb.TOKEN.` and one's names."""
    bundles: dict[str, dict[str, str]] = {}
    for name in file.tensors:
        match = re.fullmatch(r"bundle_emb\.(.+?)\.(string_to_param\..+|emb_params|clip_[lg])", name[:MAX_NAME])
        if match:
            bundles.setdefault(match[1], {})[match[2]] = name
    found = (_inversion(file, names, token, model) for token, names in bundles.items())
    return tuple(dataclasses.replace(one, bundled=True) for one in found if one is not None)


def _inversion(file: Source, names: Mapping[str, str], token: str, model: Model | None) -> Inversion | None:
    """The textual inversion among some of a file's tensors ({the rest of a name: the name}); None if there is none."""
    if "t5" in names or "t5xxl" in names:
        raise UserError(f"{shown(file.path)} is a textual inversion for FLUX or SD3; it is for no model here.")
    floats = {rest: name for rest, name in names.items() if file.tensors[name].dtype in FLOATS}
    towers = {TOWERS[rest]: name for rest, name in floats.items() if rest in TOWERS}
    marked = [(match, name) for rest, name in floats.items() if (match := VECTORS.fullmatch(rest))]
    widths = _widths(model)
    if towers and len(towers) == len(floats):
        tensors = towers
    elif len(marked) == 1 or (len(floats) == 1 and not marked):
        if marked:
            match, name = marked[0]
            token = match[1] if match[1] not in (None, "*") else token
        else:
            (rest, name), = floats.items()
            if rest.endswith((".weight", ".bias", ".alpha")) or len(file.tensors[name].shape) not in (1, 2):
                return None
            token = rest
        width = file.tensors[name].shape[-1] if file.tensors[name].shape else 0
        part = next((part for part, size in widths if size == width), None)
        if part is None:
            raise UserError(
                f"{shown(file.path)} has vectors of width {width} in {shown(name)}, but text encoders here have "
                f"{', '.join(str(size) for size in dict.fromkeys(size for _, size in widths))}."
            )
        tensors = {part: name}
    else:
        return None
    shapes = _sizes(file, tensors, widths)
    if not token.strip() or len(token) > MAX_NAME:
        raise UserError(f"{shown(file.path)} is a textual inversion of a word that is empty or endless.")
    bases = {("text", 768): "sd1", ("text", 1024): "sd2", ("text_2", 1280): "sdxl"}
    base = "sdxl" if tensors is towers else next((bases.get((part, size[1])) for part, size in shapes.items()), None)
    return Inversion(file, token, base, tensors, shapes)


def _sizes(file: Source, tensors: Mapping[str, str], widths: list[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """(n, width) for each part; what a text encoder cannot take is a UserError."""
    shapes: dict[str, tuple[int, int]] = {}
    for part, name in tensors.items():
        shape = file.tensors[name].shape
        if len(shape) not in (1, 2) or (part, shape[-1]) not in widths:
            raise UserError(f"{shown(file.path)} has {shown(name)} of {list(shape)}, no vectors of that text encoder.")
        shapes[part] = (shape[0] if len(shape) == 2 else 1, shape[-1])
        if not 1 <= shapes[part][0] <= MAX_VECTORS:
            raise UserError(
                f"{shown(file.path)} has {shapes[part][0]} vectors for a word; a prompt has room for {MAX_VECTORS}."
            )
    if len({count for count, _ in shapes.values()}) > 1:
        raise UserError(f"{shown(file.path)} has another number of vectors for each text encoder: it is damaged.")
    return shapes


def _widths(model: Model | None) -> list[tuple[str, int]]:
    """(part, width) of the text encoders that vectors may be for."""
    models = MODELS.values() if model is None else (model,)
    return list(dict.fromkeys(
        (part, config.hidden_size) for one in models for part, config in one.items() if part.startswith("text")
    ))  # fmt: skip
