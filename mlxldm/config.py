"""What a model's parts are made of: their configs as dataclasses that refuse what they do not know.

Every config reads its own `to_dict()` back (`from_dict`), and reads the `config.json` that diffusers or transformers
wrote (`from_dict` for the U-Net and the autoencoder, whose keys are diffusers' own; `from_transformers` for CLIP;
`from_diffusers` for the schedule). A key that is not known is an error, because a forgotten key means a wrong picture
without a message. Two written lists are the exceptions: keys that never change a picture (`HARMLESS`), and keys that
are understood only at one value (`FIXED`).
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from mlxldm.errors import UserError, nearest

MAX_NUMBER = 1 << 24  # no width, count or vocabulary of a real model comes near; keeps hostile configs small
MAX_LAYERS = 256  # of anything that is stacked


# ---------------------------------------------------------------------------------------------------------------------
# Reading strictly


def _check(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated `kind`: lists become tuples, whole floats become ints where ints are meant."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        errors = []
        for choice in arguments:
            if choice is not type(None):
                try:
                    return _check(value, choice, where)
                except UserError as error:
                    errors.append(error)
        raise errors[0]
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) > MAX_LAYERS * 16:
            raise UserError(f"{where} is {_short(value)}, but a list was expected.")
        return tuple(_check(item, arguments[0], where) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {_short(value)}, but an object was expected.")
        return dict(value)
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise UserError(f"{where} is {_short(value)}, but true or false was expected.")
    if kind is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER:
            return value
        raise UserError(f"{where} is {_short(value)}, but a whole number was expected.")
    if kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise UserError(f"{where} is {_short(value)}, but a number was expected.")
    if kind is str:
        if isinstance(value, str) and len(value) <= 10_000:
            return value
        raise UserError(f"{where} is {_short(value)}, but a text was expected.")
    raise AssertionError(f"{where}: no reader for {kind}")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Strict:
    """`from_dict` and `to_dict` for the dataclasses below."""

    WHAT: ClassVar[str] = "config"
    KIND: ClassVar[str] = ""  # of parts: what `model.json` calls them, see `KINDS`
    HARMLESS: ClassVar[frozenset[str]] = frozenset()
    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the config from a dict; an unknown key or a value of the wrong type is a `UserError` naming it."""
        if not isinstance(values, Mapping):
            raise UserError(f"The {cls.WHAT} config is {_short(values)}, but an object was expected.")
        hints = typing.get_type_hints(cls)
        known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            if key in known:
                chosen[key] = _check(value, hints[key], f"The {cls.WHAT} config's {key}")
            elif key in cls.FIXED:
                if value not in cls.FIXED[key]:
                    raise UserError(
                        f"The {cls.WHAT} config says {key} = {_short(value)}, but only "
                        f"{_short(cls.FIXED[key][0])} is supported: this version cannot run that model."
                    )
            elif key.startswith("_") or key in cls.HARMLESS:
                continue
            else:
                raise UserError(
                    f"The {cls.WHAT} config has the key '{key[:80]}', which this version does not know."
                    f"{nearest(key, known)} If the model needs it, mlxldm cannot run it yet."
                )
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; `from_dict` reads them back."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _positive(config: Any, what: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and number <= 0:
                raise UserError(f"The {what} config's {name} is {_short(value)}, but it must be above 0.")


def _one_of(config: Any, what: str, name: str, *choices: Any) -> None:
    value = getattr(config, name)
    for item in value if isinstance(value, tuple) else (value,):
        if item not in choices:
            wanted = ", ".join(repr(choice) for choice in choices)
            raise UserError(f"The {what} config's {name} is {_short(item)}, but this version knows {wanted} only.")


def _per_level(values: Mapping[str, Any], key: str, levels: int, default: Any) -> Any:
    """A diffusers value that may be one for all levels or a list with one per level, as a list."""
    value = values.get(key, default)
    if isinstance(value, list | tuple):
        if len(value) != levels:
            raise UserError(f"The U-Net config's {key} has {len(value)} entries, but the model has {levels} levels.")
        return list(value)
    return [value] * levels


def _resampled(kind: str, between: str) -> str:
    """What follows a block of diffusers' of that kind: "conv" or "resnet"; `between` counts for those that attend."""
    return "resnet" if kind.startswith("Resnet") else between if kind.startswith("Attn") else "conv"


def _unet2d(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a UNet2DModel of diffusers as our fields."""
    defaults = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [224, 448, 672, 896],
        "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
        "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    }
    read = {**defaults, **values, "cross_attention_dim": []}
    middle, size = read.get("mid_block_type", "UNetMidBlock2D"), read.pop("attention_head_dim", 8)
    groups, scaled = read.pop("attn_norm_num_groups", None), read.get("resnet_time_scale_shift") == "scale_shift"
    if middle != "UNetMidBlock2D" or read.pop("add_attention", True) is not True:
        raise UserError("The U-Net config has a middle without attention, which no model known here has.")
    if groups not in (None, read.get("norm_num_groups", 32)) or (scaled and groups is None):
        raise UserError(
            f"The U-Net config has attn_norm_num_groups = {_short(groups)}: only middles whose attention is normed in "
            f"as many groups as all else are known here."
        )
    if read.pop("num_train_timesteps", None) is not None:
        raise UserError("The U-Net config has num_train_timesteps: a learned embedding of the time is not known here.")
    widths = read["block_out_channels"]
    if not isinstance(size, int | None) or size == 0 or not isinstance(widths, list | tuple):
        raise UserError(f"The U-Net config's attention_head_dim is {_short(size)}, but a whole number was expected.")
    # a level that does not attend may have a width that the size does not divide
    heads = [width // size if size and isinstance(width, int) and width % size == 0 else 1 for width in widths]
    return read | {"mid_block_type": MIDDLE, "heads": heads}


def _uneven(values: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """diffusers' transformer layers, where they are given block by block, as our fields; {} where they are not.

    diffusers writes a list for a level whose blocks differ, and then the way up in a setting of its own. What is said
    for a level without transformers counts for nothing, and the form that says least is chosen, so that two configs of
    one network are the same.
    """
    down, up = values.get("transformer_layers_per_block", 1), values.get("reverse_transformer_layers_per_block")
    down = list(down) if isinstance(down, list | tuple) else [down] * levels
    if up is None:
        if not any(isinstance(level, list | tuple) for level in down):
            return {}
        raise UserError(
            "The U-Net config has transformer_layers_per_block with a number for each block, but lacks "
            "reverse_transformer_layers_per_block, which says them for the way up."
        )
    counts = values["layers_per_block"]
    fit = isinstance(up, list | tuple) and len(up) == len(down) == levels
    if not fit or not all(isinstance(count, int) and 0 < count <= MAX_LAYERS for count in counts):
        raise UserError(f"The U-Net config's transformer layers are not those of {levels} levels of blocks.")
    # the first number of a level: the middle has the last level's
    first = [level[0] if isinstance(level, list | tuple) and level else level for level in down]
    found, even = [], []
    for way, plain, more in ((down, "DownBlock2D", 0), (up, "UpBlock2D", 1)):
        kinds = values.get("up_block_types" if more else "down_block_types")
        kinds = kinds if isinstance(kinds, list | tuple) and len(kinds) == levels else [None] * levels
        backwards = slice(None, None, -1 if more else 1)
        usual = [[n] * (count + more) for n, count in zip(first[backwards], counts[backwards], strict=True)]
        even.append(usual)
        found.append(
            [
                same if kind == plain else list(level) if isinstance(level, list | tuple) else [level] * len(same)
                for level, same, kind in zip(way, usual, kinds, strict=True)
            ]
        )
    if found == even:
        return {"transformer_layers_per_block": first}
    return {"transformer_layers_per_block": first, "uneven_layers_down": found[0], "uneven_layers_up": found[1]}


# ---------------------------------------------------------------------------------------------------------------------
# The parts


@dataclass(frozen=True)
class ClipTextConfig(_Strict):
    """A CLIP text encoder (Radford et al. 2021), as OpenAI's and OpenCLIP's towers are in transformers' form."""

    WHAT: ClassVar[str] = "text encoder"
    KIND: ClassVar[str] = "clip"
    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {"model_type": ("clip_text_model",)}
    # Training-time settings, provenance, and what transformers wrote into every config.json over the years (most of it
    # about generating text).
    HARMLESS: ClassVar[frozenset[str]] = _words(
        "add_cross_attention architectures attention_dropout bad_words_ids begin_suppress_tokens "
        "chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample "
        "dropout dtype early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty "
        "finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label "
        "initializer_factor initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length "
        "min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions "
        "output_hidden_states output_scores prefix problem_type pruned_heads remove_invalid_values "
        "repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params "
        "temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p "
        "torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache"
    )

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"  # or "gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None  # width of `text_projection`; None: there is none
    bos_token_id: int = 49406
    eos_token_id: int = 49407  # the pooled output is read at the first of these
    pad_token_id: int = 49407
    skip: int = -1  # the hidden state that conditions the U-Net: -1 last + final norm; -2 last but one, without (SDXL)

    def __post_init__(self) -> None:
        what = self.WHAT
        _positive(self, what, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        _positive(self, what, "num_attention_heads", "max_position_embeddings", "layer_norm_eps", "projection_dim")
        _one_of(self, what, "hidden_act", "quick_gelu", "gelu")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"The text encoder config has hidden_size {self.hidden_size}, which {self.num_attention_heads} heads "
                f"do not divide."
            )
        if self.num_hidden_layers > MAX_LAYERS:
            raise UserError(f"The text encoder config has {self.num_hidden_layers} layers; {MAX_LAYERS} are the most.")
        if not -self.num_hidden_layers <= self.skip <= -1:
            raise UserError(f"The text encoder config's skip is {self.skip}, but -1 (the last layer) or less is meant.")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise UserError(
                    f"The text encoder config's {name} is {getattr(self, name)}, outside its vocabulary of "
                    f"{self.vocab_size}."
                )

    def layer(self, clip_skip: int | None) -> int:
        """The hidden state that conditions the U-Net, as `skip` counts it.

        A clip skip counts as A1111's web UI does, 1 the last layer, 2 the one before; a model that never reads its last
        ones (SDXL) has its own where less than that is skipped. The final norm is taken where `skip` is -1, whichever
        layer it is.
        """
        return self.skip if clip_skip is None else min(self.skip, -clip_skip)

    @classmethod
    def from_transformers(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """From the `config.json` of a CLIPTextModel or CLIPTextModelWithProjection.

        transformers leaves out what has its default, so the defaults here are transformers'. `projection_dim` counts
        only for a model with projection: every config has it. Token ids are the tokenizer's business (old configs say
        eos 2, which is not a token of CLIP's at all): pass them in `changes`.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"The text encoder config is {_short(values)}, but an object was expected.")
        read = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, **values}
        if values.get("architectures") != ["CLIPTextModelWithProjection"]:
            read["projection_dim"] = None
        else:
            read.setdefault("projection_dim", 512)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            read.pop(name, None)
        return cls.from_dict({**read, **changes})


@dataclass(frozen=True)
class ClipVisionConfig(_Strict):
    """CLIP's other tower: a transformer over the patches of a square picture, which gives one vector for the whole.

    No part of a model here, but of a CLIP beside it (`clip.ClipFolder`).
    """

    WHAT: ClassVar[str] = "vision tower"
    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {"model_type": ("clip_vision_model",), "num_channels": (3,)}
    HARMLESS: ClassVar[frozenset[str]] = ClipTextConfig.HARMLESS

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"  # or "gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768

    def __post_init__(self) -> None:
        what = self.WHAT
        _positive(self, what, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        _positive(self, what, "image_size", "patch_size", "layer_norm_eps", "projection_dim")
        _one_of(self, what, "hidden_act", "quick_gelu", "gelu")
        if self.hidden_size % self.num_attention_heads or self.num_hidden_layers > MAX_LAYERS:
            raise UserError(
                f"The {what} config has {self.num_hidden_layers} layers of width {self.hidden_size} in "
                f"{self.num_attention_heads} heads, which no model has."
            )
        if not self.patch_size <= self.image_size <= 4096:
            raise UserError(f"The {what} config has pictures of {self.image_size} and patches of {self.patch_size}.")

    @property
    def patches(self) -> int:
        """How many there are in a picture."""
        return int(self.image_size // self.patch_size) ** 2

    @classmethod
    def from_transformers(cls, values: Mapping[str, Any]) -> Self:
        """From the `vision_config` of a CLIP's `config.json`; what it leaves out has transformers' defaults."""
        defaults = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        read = {**defaults, "patch_size": 32, "projection_dim": 512, **values}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # written into every config
            read.pop(name, None)
        return cls.from_dict(read)

    def to_transformers(self) -> dict[str, Any]:
        """Keyword arguments for transformers' `CLIPVisionConfig`."""
        return self.to_dict()


@dataclass(frozen=True)
class BertConfig(_Strict):
    """The text encoder that the first latent diffusion models learned along (Rombach et al. 2022, appendix): a plain
    transformer of x-transformers, called BERT for its vocabulary.

    Parameters have the names of diffusers' LDMBertModel without its `to_logits`, which nothing reads: a layer is
    `self_attn_layer_norm`, `self_attn.{q,k,v}_proj` (no bias), `self_attn.out_proj`, `final_layer_norm`, `fc1`, `fc2`.
    Every token attends to every other, padding too.
    """

    WHAT: ClassVar[str] = "text encoder"
    KIND: ClassVar[str] = "bert"

    vocab_size: int = 30522
    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 8
    head_dim: int = 64  # of a head; all of them together need not be as wide as the text
    max_position_embeddings: int = 77
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        what = self.WHAT
        _positive(self, what, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        _positive(self, what, "num_attention_heads", "head_dim", "max_position_embeddings")
        if self.num_hidden_layers > MAX_LAYERS:
            raise UserError(f"The text encoder config has {self.num_hidden_layers} layers; {MAX_LAYERS} are the most.")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise UserError(
                f"The text encoder config's pad_token_id is {self.pad_token_id}, outside its vocabulary of "
                f"{self.vocab_size}."
            )

    def check(self, ids: Sequence[int]) -> None:
        """UserError unless these are ids that the text encoder can be given."""
        most, words = self.max_position_embeddings, self.vocab_size
        if not 1 <= len(ids) <= most or not all(0 <= i < words for i in ids):
            raise UserError(
                f"The text encoder is given {len(ids)} tokens, {_short(list(ids))}, but it reads 1 to {most}, which "
                f"are numbers from 0 to {words - 1}."
            )

    @classmethod
    def from_transformers(cls, values: Mapping[str, Any]) -> Self:
        """From the `config.json` of an LDMBertModel; what transformers writes into every config is harmless."""
        if not isinstance(values, Mapping):
            raise UserError(f"The text encoder config is {_short(values)}, but an object was expected.")
        fixed = {"model_type": "ldmbert", "activation_function": "gelu", "scale_embedding": False}
        for key, only in fixed.items():
            if values.get(key, only) != only:
                raise UserError(f"The text encoder config says {key} = {_short(values[key])}, but {only!r} is meant.")
        read: dict[str, Any] = {}
        for key, value in values.items():
            name = BERT_KEYS.get(key, key)
            harmless = key in fixed or key in BERT_HARMLESS or key in ClipTextConfig.HARMLESS
            if not harmless and read.setdefault(name, value) != value:
                raise UserError(f"The text encoder config says two things of {name}: {_short([read[name], value])}.")
        return cls.from_dict(read)

    def to_diffusers(self) -> dict[str, Any]:
        """Keyword arguments for the `LDMBertConfig` in diffusers' latent_diffusion pipeline."""
        back = {name: key for key, name in BERT_KEYS.items()}
        return {back.get(key, key): value for key, value in self.to_dict().items()}


# An LDMBertConfig's names -> ours
BERT_KEYS = {
    "d_model": "hidden_size",
    "encoder_ffn_dim": "intermediate_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
}
BERT_HARMLESS = _words("activation_dropout classifier_dropout encoder_layerdrop init_std bos_token_id eos_token_id")


@dataclass(frozen=True)
class ClassEmbedderConfig(_Strict):
    """A table with a text's stand-in for each class of pictures: one vector, which the U-Net attends to."""

    WHAT: ClassVar[str] = "class embedder"
    KIND: ClassVar[str] = "classes"

    num_classes: int = 1000
    hidden_size: int = 512
    empty: int | None = None  # the class that means none in particular, for guidance; None: it was not trained

    def __post_init__(self) -> None:
        _positive(self, self.WHAT, "num_classes", "hidden_size")
        if self.empty is not None and not 0 <= self.empty < self.num_classes:
            raise UserError(f"The class embedder config's empty is {self.empty} of {self.num_classes} classes.")

    def check(self, label: int) -> None:
        """UserError unless there is this class."""
        if not 0 <= label < self.num_classes:
            last = self.num_classes - 1
            raise UserError(f"There is no class {label}: the model's classes are numbers from 0 to {last}.")


@dataclass(frozen=True)
class RescalerConfig(_Strict):
    """Brings a map of labels (one channel each) to the size of the latents, and its channels to those the U-Net takes:
    each stage makes it smaller by `multiplier`, a 1x1 convolution mixes the channels at the end."""

    WHAT: ClassVar[str] = "rescaler"
    KIND: ClassVar[str] = "rescaler"

    in_channels: int = 182
    out_channels: int = 3
    stages: int = 2
    multiplier: float = 0.5
    method: str = "bilinear"  # torch's interpolate, corners not aligned, no smoothing
    bias: bool = False

    def __post_init__(self) -> None:
        _positive(self, self.WHAT, "in_channels", "out_channels", "multiplier")
        _one_of(self, self.WHAT, "method", "bilinear")
        if not 0 <= self.stages <= 16 or self.multiplier > 1:
            raise UserError(
                f"The rescaler config has {self.stages} stages that make a picture {self.multiplier} times as large; "
                f"it makes pictures smaller, in up to 16 stages."
            )


DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
MIDDLE = "UNetMidBlock2DAttn"  # our name for what UNet2DModel calls UNetMidBlock2D
# Keys of `UNetConfig` that diffusers' other class of U-Net knows, too.
UNET2D = _words(
    "in_channels out_channels sample_size block_out_channels down_block_types mid_block_type up_block_types act_fn "
    "layers_per_block norm_num_groups norm_eps flip_sin_to_cos freq_shift resnet_time_scale_shift class_embed_type "
    "num_class_embeds downsample_type upsample_type"
)


@dataclass(frozen=True)
class UNetConfig(_Strict):
    """The U-Net (Rombach et al. 2022) with diffusers' keys: of UNet2DConditionModel if it attends to text, of
    UNet2DModel if it attends to nothing but the picture (`diffusers` says which).

    Whatever diffusers lets be one value or one per level is a tuple with one per level here, from the first down level
    to the last. `heads` is the number of attention heads per level: diffusers calls it `attention_head_dim`
    (huggingface/diffusers issue 2011) unless `num_attention_heads` is given; in UNet2DModel it is their size.
    `cross_attention_dim` is empty where no text is read.
    """

    WHAT: ClassVar[str] = "U-Net"
    KIND: ClassVar[str] = "unet"
    HARMLESS: ClassVar[frozenset[str]] = frozenset(("dropout", "addition_embed_type_num_heads"))
    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "center_input_sample": (False,),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "dual_cross_attention": (False,),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1.0,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None,),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
        "cross_attention_norm": (None,),
    }

    in_channels: int = 4
    out_channels: int = 4
    sample_size: tuple[int, ...] | None = None  # (height, width) of the latents it was trained on
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    # or MIDDLE: attention to the picture between two residual blocks; or "UNetMidBlock2D": one residual block, no more
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: tuple[int, ...] = (2, 2, 2, 2)
    transformer_layers_per_block: tuple[int, ...] = (1, 1, 1, 1)
    # Models from which layers were taken away (SSD-1B): the layers of each block's transformer, level by level, down
    # from the first and up from the last. None: every block of a level has what the line above says.
    uneven_layers_down: tuple[tuple[int, ...], ...] | None = None
    uneven_layers_up: tuple[tuple[int, ...], ...] | None = None
    heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: tuple[int, ...] = (1280, 1280, 1280, 1280)
    only_cross_attention: tuple[bool, ...] = (False, False, False, False)
    mid_block_only_cross_attention: bool = False
    use_linear_projection: bool = False  # where it came from; proj_in and proj_out are [out, in] here in either case
    upcast_attention: bool = False
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    resnet_time_scale_shift: str = "default"  # or "scale_shift"
    class_embed_type: str | None = None  # or "timestep", "identity", "projection", "simple_projection"
    num_class_embeds: int | None = None
    addition_embed_type: str | None = None  # or "text_time" (SDXL)
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: int | None = None  # guidance as an embedding (latent consistency models)
    # What makes the picture smaller after an AttnDownBlock2D and larger after an AttnUpBlock2D: a convolution, or a
    # residual block ("resnet") as in blocks that are called after it.
    downsample_type: str = "conv"
    upsample_type: str = "conv"

    @property
    def levels(self) -> int:
        """How many resolutions the U-Net has."""
        return len(self.block_out_channels)

    @property
    def diffusers(self) -> str:
        """The name of diffusers' class: "UNet2DConditionModel", or "UNet2DModel" for a U-Net that reads no text."""
        return "UNet2DModel" if self.mid_block_type == MIDDLE else "UNet2DConditionModel"

    def smaller(self, level: int) -> str | None:
        """What makes the picture smaller after a level: "conv", "resnet", or None after the last."""
        if level == self.levels - 1:
            return None
        return _resampled(self.down_block_types[level], self.downsample_type)

    def larger(self, place: int) -> str | None:
        """What makes the picture larger after a level on the way up (place 0 is the lowest), or None after the last."""
        if place == self.levels - 1:
            return None
        return _resampled(self.up_block_types[place], self.upsample_type)

    def picture_attention(self) -> dict[str, int]:
        """The attentions that read the picture alone, with their heads, by diffusers' names of these modules.

        diffusers' UNet2DModel takes one size of head for all levels, where models exist that have 8 heads at each: give
        every `Attention` these heads after it is built.
        """
        found = {}
        for level, count in enumerate(self.layers_per_block):
            for j in range(count if self.down_block_types[level] == "AttnDownBlock2D" else 0):
                found[f"down_blocks.{level}.attentions.{j}"] = self.heads[level]
        if self.mid_block_type == MIDDLE:
            found["mid_block.attentions.0"] = self.heads[-1]
        for place, kind in enumerate(self.up_block_types):
            level = self.levels - 1 - place
            for j in range(self.layers_per_block[level] + 1 if kind == "AttnUpBlock2D" else 0):
                found[f"up_blocks.{place}.attentions.{j}"] = self.heads[level]
        return found

    def layers_down(self, level: int) -> tuple[int, ...]:
        """The layers of each transformer of a level on the way down."""
        if self.uneven_layers_down is not None:
            return self.uneven_layers_down[level]
        return (self.transformer_layers_per_block[level],) * self.layers_per_block[level]

    def layers_up(self, place: int) -> tuple[int, ...]:
        """The layers of each transformer on the way up; place 0 is the lowest level."""
        if self.uneven_layers_up is not None:
            return self.uneven_layers_up[place]
        level = self.levels - 1 - place
        return (self.transformer_layers_per_block[level],) * (self.layers_per_block[level] + 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From diffusers' `unet/config.json` (of either class) or from our own `to_dict()`."""
        if not isinstance(values, Mapping):
            raise UserError(f"The U-Net config is {_short(values)}, but an object was expected.")
        read = _unet2d(values) if values.get("_class_name") == "UNet2DModel" else dict(values)
        channels = read.get("block_out_channels", cls.block_out_channels)
        if not isinstance(channels, list | tuple) or not 1 <= len(channels) <= 16:
            raise UserError(f"The U-Net config's block_out_channels is {_short(channels)}, but a list was expected.")
        levels = len(channels)
        if isinstance(read.get("sample_size"), int):
            read["sample_size"] = [read["sample_size"]] * 2
        named, dims = read.pop("num_attention_heads", None), read.pop("attention_head_dim", 8)
        if "heads" not in read:
            read["heads"] = named if named is not None else dims
        read["layers_per_block"] = _per_level(read, "layers_per_block", levels, 2)
        read |= _uneven(read, levels)
        read.pop("reverse_transformer_layers_per_block", None)
        defaults = {"transformer_layers_per_block": 1, "heads": 8, "cross_attention_dim": 1280}
        for key, default in {**defaults, "only_cross_attention": False}.items():
            if key != "cross_attention_dim" or read.get(key) not in ([], ()):
                read[key] = _per_level(read, key, levels, default)
        if read.get("mid_block_only_cross_attention") is None:
            # diffusers: unless said otherwise, the middle block does as the (single) only_cross_attention says
            only = values.get("only_cross_attention", False)
            read["mid_block_only_cross_attention"] = only if isinstance(only, bool) else False
        if read.get("act_fn") == "swish":
            read["act_fn"] = "silu"
        return super().from_dict(read)

    def __post_init__(self) -> None:
        what = self.WHAT
        _positive(self, what, "in_channels", "out_channels", "block_out_channels", "layers_per_block", "heads")
        _positive(self, what, "transformer_layers_per_block", "cross_attention_dim", "norm_num_groups", "norm_eps")
        _positive(self, what, "sample_size", "num_class_embeds", "addition_time_embed_dim", "time_cond_proj_dim")
        _positive(self, what, "projection_class_embeddings_input_dim")
        _one_of(self, what, "down_block_types", *DOWN_BLOCKS)
        _one_of(self, what, "up_block_types", *UP_BLOCKS)
        _one_of(self, what, "mid_block_type", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", MIDDLE, None)
        _one_of(self, what, "downsample_type", "conv", "resnet")
        _one_of(self, what, "upsample_type", "conv", "resnet")
        _one_of(self, what, "act_fn", "silu")
        _one_of(self, what, "resnet_time_scale_shift", "default", "scale_shift")
        _one_of(self, what, "class_embed_type", None, "timestep", "identity", "projection", "simple_projection")
        _one_of(self, what, "addition_embed_type", None, "text_time")
        if self.sample_size is not None and len(self.sample_size) != 2:
            raise UserError(f"The U-Net config's sample_size is {_short(self.sample_size)}; (height, width) is meant.")
        for name in (
            "down_block_types",
            "up_block_types",
            "layers_per_block",
            "transformer_layers_per_block",
            "heads",
            "cross_attention_dim",
            "only_cross_attention",
        ):
            if name == "cross_attention_dim" and self.diffusers == "UNet2DModel" and not self.cross_attention_dim:
                continue
            if len(getattr(self, name)) != self.levels:
                raise UserError(
                    f"The U-Net config's {name} has {len(getattr(self, name))} entries, but block_out_channels has "
                    f"{self.levels}."
                )
        self._check_uneven()
        self._check_class()
        pairs = zip(self.layers_per_block, self.transformer_layers_per_block, strict=True)
        stacked = sum(layers * inner for layers, inner in pairs)
        stacked += sum(sum(level) for level in self.uneven_layers_down or ())
        stacked += sum(sum(level) for level in self.uneven_layers_up or ())
        if stacked > 4096:
            raise UserError(f"The U-Net config stacks {stacked} layers, which no model does.")
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % heads or width % self.norm_num_groups:
                raise UserError(
                    f"The U-Net config has a level of width {width}, which {heads} heads or {self.norm_num_groups} "
                    f"norm groups do not divide."
                )
        if self.addition_embed_type == "text_time" and None in (
            self.addition_time_embed_dim,
            self.projection_class_embeddings_input_dim,
        ):
            raise UserError(
                "The U-Net config has addition_embed_type 'text_time' but lacks addition_time_embed_dim or "
                "projection_class_embeddings_input_dim."
            )
        if (
            self.class_embed_type is not None
            and self.class_embed_type.endswith("projection")
            and (self.projection_class_embeddings_input_dim is None)
        ):
            raise UserError(
                f"The U-Net config has class_embed_type '{self.class_embed_type}' but lacks "
                f"projection_class_embeddings_input_dim."
            )

    def _check_class(self) -> None:
        """What one of diffusers' two classes has, the other cannot have."""
        alone = self.diffusers == "UNet2DModel"
        others = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if alone else (*DOWN_BLOCKS[2:], *UP_BLOCKS[2:])
        for kind in (*self.down_block_types, *self.up_block_types):
            if kind in others:
                raise UserError(
                    f"The U-Net config has a {kind} and the middle {self.mid_block_type}, which no model has."
                )
        if alone and (len(set(self.layers_per_block)) > 1 or self.cross_attention_dim):
            raise UserError("The U-Net config reads no text, but has text of some width or levels of unequal depth.")
        both = (self.class_embed_type or "").endswith("projection"), self.addition_embed_type, self.time_cond_proj_dim
        if alone and any(both):
            raise UserError("The U-Net config reads no text, but adds to the time what only models of text do.")
        if not alone and "resnet" in (self.downsample_type, self.upsample_type):
            raise UserError("The U-Net config has residual blocks between its levels, but reads text: no model does.")

    def _check_uneven(self) -> None:
        if (self.uneven_layers_down is None) != (self.uneven_layers_up is None):
            raise UserError(
                "The U-Net config says the transformer layers of one way only, down or up, but not of both."
            )
        for name, ways in (
            ("uneven_layers_down", self.uneven_layers_down),
            ("uneven_layers_up", self.uneven_layers_up),
        ):
            if ways is None:
                continue
            blocks = (
                self.layers_per_block if name.endswith("down") else [n + 1 for n in reversed(self.layers_per_block)]
            )
            if [len(level) for level in ways] != list(blocks) or not all(n > 0 for level in ways for n in level):
                raise UserError(
                    f"The U-Net config's {name} is {_short(ways)}, but one number above 0 for each of "
                    f"{_short(list(blocks))} blocks was expected."
                )

    def to_diffusers(self) -> dict[str, Any]:
        """Keyword arguments for the class of diffusers' that `diffusers` names.

        A UNet2DModel needs the heads of `picture_attention` put into it afterwards.
        """
        values = self.to_dict()
        if self.diffusers == "UNet2DModel":
            values = {key: value for key, value in values.items() if key in UNET2D}
            height, width = self.sample_size or (None, None)
            kinds = zip(self.down_block_types[:-1], self.up_block_types[:0:-1], strict=True)
            attends = [*(any(kind.startswith("Attn") for kind in both) for both in kinds), True]
            levels = zip(self.block_out_channels, self.heads, attends, strict=True)
            sizes = {wide // heads for wide, heads, there in levels if there}
            return values | {
                "mid_block_type": "UNetMidBlock2D",
                "layers_per_block": self.layers_per_block[0],
                # with scale and shift the middle's attention would silently lose its norm otherwise
                "attn_norm_num_groups": self.norm_num_groups,
                "attention_head_dim": sizes.pop() if len(sizes) == 1 else None,  # one head each, to begin with
                "sample_size": height if height == width else (height, width),
            }
        del values["downsample_type"], values["upsample_type"]
        values["attention_head_dim"] = values.pop("heads")
        down, up = values.pop("uneven_layers_down"), values.pop("uneven_layers_up")
        if down is not None:
            values |= {"transformer_layers_per_block": down, "reverse_transformer_layers_per_block": up}
        if self.sample_size is not None and self.sample_size[0] == self.sample_size[1]:
            values["sample_size"] = self.sample_size[0]
        if len(set(self.cross_attention_dim)) == 1:
            values["cross_attention_dim"] = self.cross_attention_dim[0]
        return values


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """A ControlNet (Zhang et al. 2023) with the keys of diffusers' ControlNetModel: the way down and the middle of a
    U-Net, what reads the controlling picture, and a 1x1 convolution for everything that is added to the U-Net.

    The way up in the fields is that of the U-Net it belongs to.
    """

    WHAT: ClassVar[str] = "ControlNet"
    KIND: ClassVar[str] = "controlnet"

    conditioning_channels: int = 3  # of the controlling picture
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)  # each but the last halves the picture
    controlnet_conditioning_channel_order: str = "rgb"  # or "bgr"
    global_pool_conditions: bool = False  # what is added is averaged over the picture (shuffle)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From diffusers' `config.json` of a ControlNetModel or from our own `to_dict()`."""
        if isinstance(values, Mapping) and isinstance(values.get("down_block_types"), list | tuple):
            down = list(values["down_block_types"])
            up = [str(kind).replace("Down", "Up") for kind in reversed(down)]
            values = {"up_block_types": up, **values}
        return super().from_dict(values)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, self.WHAT, "conditioning_channels", "conditioning_embedding_out_channels")
        _one_of(self, self.WHAT, "controlnet_conditioning_channel_order", "rgb", "bgr")
        if not 1 <= len(self.conditioning_embedding_out_channels) <= 16:
            raise UserError("The ControlNet config has no usable conditioning_embedding_out_channels.")

    def to_diffusers(self) -> dict[str, Any]:
        """Keyword arguments for diffusers' ControlNetModel."""
        others = {"out_channels", "sample_size", "up_block_types", "mid_block_only_cross_attention"}
        others |= {"time_cond_proj_dim"}
        values = super().to_diffusers()
        layers = values["layers_per_block"]
        values["layers_per_block"] = layers[0] if len(set(layers)) == 1 else layers
        return {key: value for key, value in values.items() if key not in others}


@dataclass(frozen=True)
class _Autoencoder(_Strict):
    """What both kinds of autoencoder have, with the keys they share in diffusers."""

    WHAT: ClassVar[str] = "autoencoder"

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)  # or "AttnDownEncoderBlock2D"
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)  # or "AttnUpDecoderBlock2D"
    layers_per_block: int = 1  # of the encoder; the decoder has one more
    latent_channels: int = 4
    norm_num_groups: int = 32
    act_fn: str = "silu"
    sample_size: int | None = 32
    scaling_factor: float = 0.18215  # latents the U-Net sees = (encoder's - shift_factor) * scaling_factor
    force_upcast: bool = True  # overflows in float16
    mid_block_add_attention: bool = True

    @property
    def factor(self) -> int:
        """How many picture pixels one latent pixel stands for, per side."""
        return 1 << (len(self.block_out_channels) - 1)

    @property
    def encoded(self) -> int:
        """How many channels the encoder gives for one latent pixel."""
        return self.latent_channels

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From diffusers' `vae/config.json` or from our own `to_dict()`."""
        if isinstance(values, Mapping) and values.get("act_fn") == "swish":
            values = {**values, "act_fn": "silu"}
        return super().from_dict(values)

    def __post_init__(self) -> None:
        what = self.WHAT
        _positive(self, what, "in_channels", "out_channels", "block_out_channels", "layers_per_block")
        _positive(self, what, "latent_channels", "norm_num_groups", "sample_size", "scaling_factor")
        _one_of(self, what, "down_block_types", "DownEncoderBlock2D", "AttnDownEncoderBlock2D")
        _one_of(self, what, "up_block_types", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")
        _one_of(self, what, "act_fn", "silu")
        levels = len(self.block_out_channels)
        if not 1 <= levels <= 16 or self.layers_per_block > MAX_LAYERS:
            raise UserError(f"The autoencoder config has {levels} levels of {self.layers_per_block} layers.")
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise UserError(
                    f"The autoencoder config's {name} has {len(getattr(self, name))} entries, but block_out_channels "
                    f"has {levels}."
                )
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise UserError(
                    f"The autoencoder config has a level of width {width}, which {self.norm_num_groups} norm groups do "
                    f"not divide."
                )


@dataclass(frozen=True)
class VaeConfig(_Autoencoder):
    """The autoencoder with a KL-regularised latent (Rombach et al. 2022), with diffusers' AutoencoderKL keys."""

    KIND: ClassVar[str] = "kl"

    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None  # of each channel, where a model was trained on latents without it
    latents_std: tuple[float, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        mean, std = self.latents_mean, self.latents_std
        if (mean is None) != (std is None):
            raise UserError("The autoencoder config has only one of latents_mean and latents_std; both were expected.")
        if mean is None or std is None:
            return
        if self.shift_factor or {len(mean), len(std)} != {self.latent_channels}:
            raise UserError(
                f"The autoencoder config has latents_mean and latents_std, which want {self.latent_channels} numbers "
                f"each, one a channel, and no shift_factor."
            )
        if not all(math.isfinite(each) for each in (*mean, *std)) or min(std) <= 0:
            raise UserError("The autoencoder config has a latents_mean or latents_std that cannot be.")

    @property
    def offset(self) -> float | tuple[float, ...]:
        """What is taken from the encoder's latents, of each channel or of all."""
        return self.latents_mean or self.shift_factor or 0.0

    @property
    def scale(self) -> float | tuple[float, ...]:
        """By what they are then multiplied to be the U-Net's."""
        if self.latents_std is None:
            return self.scaling_factor
        return tuple(self.scaling_factor / std for std in self.latents_std)

    @property
    def encoded(self) -> int:
        """Mean and log variance of each latent channel."""
        return 2 * self.latent_channels

    def to_diffusers(self) -> dict[str, Any]:
        """Keyword arguments for diffusers' `AutoencoderKL`."""
        return self.to_dict()


@dataclass(frozen=True)
class VqConfig(_Autoencoder):
    """The autoencoder with a table of codes (van den Oord et al. 2017; Esser et al. 2021), with keys of diffusers'
    VQModel.

    The U-Net works on what the encoder gives; to decode, each latent pixel is first replaced by the nearest code.
    """

    KIND: ClassVar[str] = "vq"
    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {"norm_type": ("group",), "lookup_from_codebook": (False,)}

    offset: ClassVar[float] = 0.0  # no such model has another

    latent_channels: int = 3
    scaling_factor: float = 1.0  # diffusers' default, 0.18215, is not that of any model here
    force_upcast: bool = False
    num_vq_embeddings: int = 256  # codes
    vq_embed_dim: int | None = None  # channels of a code, if not as many as the latents have

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, self.WHAT, "num_vq_embeddings", "vq_embed_dim")

    @property
    def scale(self) -> float:
        """By what the encoder's latents are multiplied to be the U-Net's."""
        return self.scaling_factor

    @property
    def code(self) -> int:
        """How many channels a code has."""
        return self.vq_embed_dim or self.latent_channels

    def to_diffusers(self) -> dict[str, Any]:
        """Keyword arguments for diffusers' `VQModel`."""
        return self.to_dict()


PartConfig = (
    ClipTextConfig
    | BertConfig
    | ClassEmbedderConfig
    | RescalerConfig
    | UNetConfig
    | ControlNetConfig
    | VaeConfig
    | VqConfig
)
# What `model.json` says a part is.
KINDS: dict[str, type[PartConfig]] = {config.KIND: config for config in typing.get_args(PartConfig)}


# ---------------------------------------------------------------------------------------------------------------------
# The schedule

# diffusers' scheduler class -> our sampler of the same mathematics
SCHEDULERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "pndm",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m",
}
# The levels of EDM (Karras et al. 2022, https://arxiv.org/abs/2206.00364) where a config of those two leaves them out.
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_schedule": "karras", "rho": 7.0}

# What else a scheduler's config may say that changes its steps. Kept as written; the samplers read them.
OPTIONS = _words(
    "skip_prk_steps final_sigmas_type sigma_min sigma_max interpolation_type timestep_type "
    "use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas solver_order solver_type algorithm_type "
    "lower_order_final euler_at_final predict_x0 lambda_min_clipped variance_type "
    "noise_sampler_seed original_inference_steps timestep_scaling sigma_schedule rho"
)


@dataclass(frozen=True)
class ScheduleConfig(_Strict):
    """How noise was added in training, and how the model's own scheduler walks back.

    `spacing` None means: not said, each sampler's own default holds (diffusers' "linspace" for the sigma samplers and
    "leading" for DDIM, DDPM and PNDM). `options` are further keys of diffusers' scheduler config, as written there.

    With `sigma_data`, the spread that latents were taken to have, the model was trained as EDM is (Karras et al. 2022,
    https://arxiv.org/abs/2206.00364): on a continuum of noise levels, from `options`' sigma_min to sigma_max. It knows
    no timesteps, and the betas mean nothing.
    """

    WHAT: ClassVar[str] = "schedule"

    beta_schedule: str = "scaled_linear"  # or "linear", "squaredcos_cap_v2"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    trained_betas: tuple[float, ...] | None = None
    num_train_timesteps: int = 1000
    prediction: str = "epsilon"  # or "v", "sample"
    spacing: str | None = None  # or "leading", "trailing", "linspace"
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None  # None: not said; DDIM's default is True, PNDM's False
    zero_snr: bool = False
    sigma_data: float | None = None
    sampler: str = "ddim"
    options: dict[str, Any] = field(default_factory=dict)

    # Limits on predicted latents are for models of pixels; the latent pipelines switch clipping off themselves.
    # `tensor_format` is of diffusers' first versions, which knew NumPy, too.
    HARMLESS: ClassVar[frozenset[str]] = _words(
        "clip_sample clip_sample_range dynamic_thresholding_ratio sample_max_value tensor_format"
    )
    # Flow matching is a later matter; these stand in today's config files at the value that means "no".
    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "thresholding": (False,),
        "timestep_values": (None,),
        "use_flow_sigmas": (False, None),
        "use_dynamic_shifting": (False, None),
        "flow_shift": (1.0, None),
        "time_shift_type": ("exponential", None),
        "shift_terminal": (None,),
        "solver_p": (None,),
        "disable_corrector": ([], None),
        "sigmas": (None,),
    }

    def __post_init__(self) -> None:
        what = self.WHAT
        _one_of(self, what, "beta_schedule", "scaled_linear", "linear", "squaredcos_cap_v2")
        _one_of(self, what, "prediction", "epsilon", "v", "sample")
        _one_of(self, what, "spacing", None, "leading", "trailing", "linspace")
        if not 1 <= self.num_train_timesteps <= 100_000:
            raise UserError(f"The schedule config has {self.num_train_timesteps} training steps; 1 to 100000 can be.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"The schedule config has betas from {self.beta_start} to {self.beta_end}, but they must rise between "
                f"0 and 1."
            )
        if self.trained_betas is not None and (
            len(self.trained_betas) != self.num_train_timesteps or not all(0 < b <= 1 for b in self.trained_betas)
        ):
            raise UserError("The schedule config's trained_betas are not one number between 0 and 1 per training step.")
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise UserError(f"The schedule config's steps_offset is {self.steps_offset}, outside the training steps.")
        for key, value in self.options.items():
            if key not in OPTIONS:
                raise UserError(f"The schedule config's options have the unknown key '{key[:80]}'.")
            finite = not isinstance(value, float) or math.isfinite(value)
            if not isinstance(value, str | int | float | bool | None) or not finite:
                raise UserError(f"The schedule config's option {key} is {_short(value)}, but one value was expected.")
        if self.options.get("variance_type") in ("learned", "learned_range"):
            raise UserError("The model predicts its own variance, which this version does not support.")
        if self.sigma_data is not None:
            self._check_edm()

    def _check_edm(self) -> None:
        _positive(self, self.WHAT, "sigma_data")
        _one_of(self, self.WHAT, "prediction", "epsilon", "v")
        low, high, rho = (self.options.get(key) or 0 for key in ("sigma_min", "sigma_max", "rho"))
        if not (all(isinstance(each, int | float) for each in (low, high, rho)) and 0 < low < high and rho > 0):
            raise UserError(
                f"The schedule config has sigma_data and sigma_min, sigma_max and rho of {low}, {high} and {rho}, but "
                f"they must be above 0, the first below the second."
            )
        if self.options.get("sigma_schedule") not in ("karras", "exponential"):
            raise UserError("The schedule config has sigma_data, but its sigma_schedule is not karras or exponential.")

    @classmethod
    def from_diffusers(cls, values: Mapping[str, Any]) -> Self:
        """From diffusers' `scheduler_config.json`.

        Raises UserError for a scheduler class that is no diffusion (flow matching), because its numbers would mean
        something else.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"The scheduler config is {_short(values)}, but an object was expected.")
        name = values.get("_class_name")
        if not isinstance(name, str) or name not in SCHEDULERS:
            raise UserError(
                f"The model's scheduler is {_short(name)}, which this version does not know."
                f"{nearest(str(name), SCHEDULERS)}"
            )
        # What a config file leaves out is the scheduler class's own default.
        late = name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
        late = late or name in ("DPMSolverSDEScheduler", "LCMScheduler", "TCDScheduler")
        read: dict[str, Any] = {
            "beta_schedule": "scaled_linear" if name in ("LCMScheduler", "TCDScheduler") else "linear",
            "beta_start": 0.00085 if late else 0.0001,
            "beta_end": 0.012 if late else 0.02,
            "sampler": SCHEDULERS[name],
        }
        options: dict[str, Any] = {}
        if name.startswith("EDM"):
            read, options = {"sigma_data": 0.5, "sampler": SCHEDULERS[name]}, dict(EDM)
        for key, value in values.items():
            if key == "prediction_type":
                read["prediction"] = "v" if value == "v_prediction" else value
            elif key == "timestep_spacing":
                read["spacing"] = value
            elif key == "rescale_betas_zero_snr":
                read["zero_snr"] = value
            elif key in cls.FIXED or key == "set_alpha_to_one":
                read[key] = value
            elif key in OPTIONS:
                if value is not None and value != -math.inf:  # both say "no limit" (lambda_min_clipped) or "not given"
                    options[key] = value
            elif key in ("sampler", "spacing", "prediction", "zero_snr", "options"):
                raise UserError(f"The scheduler config has the key '{key}', which is not diffusers'.")
            else:
                read[key] = value
        if values.get("algorithm_type") == "sde-dpmsolver++" and name.endswith("DPMSolverMultistepScheduler"):
            read["sampler"] = "dpmpp_2m_sde"
        return cls.from_dict({**read, "options": options})


@dataclass(frozen=True)
class LowScaleConfig(_Strict):
    """How the small picture that an upscaler enlarges is noised first: a schedule of its own, in pixels.

    The noise level of a job is a training step of this schedule, and the class that the U-Net is told.
    """

    WHAT: ClassVar[str] = "low scale"

    beta_schedule: str = "scaled_linear"  # or "linear"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    num_train_timesteps: int = 1000
    most: int = 350  # the highest level it was trained with
    level: int = 20  # where nothing is said

    def __post_init__(self) -> None:
        _one_of(self, self.WHAT, "beta_schedule", "scaled_linear", "linear")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"The low scale config has betas from {self.beta_start} to {self.beta_end}, but they must rise between "
                f"0 and 1."
            )
        if not 0 <= self.level <= self.most < self.num_train_timesteps <= 100_000:
            raise UserError(
                f"The low scale config has noise levels to {self.most} of {self.num_train_timesteps}, and {self.level} "
                f"if nothing is said; they must lie within each other."
            )

    @property
    def schedule(self) -> ScheduleConfig:
        """The same as a schedule."""
        return ScheduleConfig(self.beta_schedule, self.beta_start, self.beta_end, None, self.num_train_timesteps)

    @classmethod
    def from_diffusers(cls, values: Mapping[str, Any], most: Any = 350) -> Self:
        """From the `scheduler_config.json` of a pipeline's `low_res_scheduler`, and its `max_noise_level`."""
        schedule = ScheduleConfig.from_diffusers(values)
        if schedule.trained_betas is not None:
            raise UserError("The low scale config has a table of betas, which this version does not read.")
        most = _check(most, int, "The pipeline's max_noise_level")
        return cls(
            schedule.beta_schedule,
            schedule.beta_start,
            schedule.beta_end,
            schedule.num_train_timesteps,
            most,
            min(20, max(most, 0)),
        )


@dataclass(frozen=True)
class Defaults(_Strict):
    """What a job that does not say gets: the model's own size, steps, guidance, sampler and spacing."""

    WHAT: ClassVar[str] = "defaults"

    width: int = 512
    height: int = 512
    steps: int = 25
    guidance: float = 7.5
    sampler: str = "ddim"
    spacing: str = "model"

    def __post_init__(self) -> None:
        _positive(self, self.WHAT, "width", "height", "steps")
        if self.guidance < 0:
            raise UserError(f"The model's default guidance is {self.guidance}, but it cannot be below 0.")
