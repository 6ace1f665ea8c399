"""The names and shapes of the original code (CompVis latent-diffusion, Stability's generative-models): read and mapped.

A single-file checkpoint says nothing about its structure but names and shapes. `unet`, `vae`, `clip`, `bert` ... read a
part's config from them; `unet_name`, `vae_name`, `bert_name` ... give, for each of our tensors, the tensor it is made
from and how. The tables go from our names to theirs, never back: ours are known from the config, and a key that
no name leads to is then a key without a place.

Sources: https://github.com/CompVis/latent-diffusion (ldm/modules/diffusionmodules), checked against diffusers'
`from_single_file` in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlxldm.config import MIDDLE, BertConfig, ClipTextConfig, ControlNetConfig, UNetConfig, VaeConfig, VqConfig
from mlxldm.errors import UserError
from mlxldm.tensors import Tensor

Shapes = Mapping[str, Tensor]
# A source tensor and what is done to it: "" (fitted to our shape), "transposed", "rows 1/3" (the second third of its
# rows), "heads 1/3 of 8" (of its rows the second third of each head's, where there are 8).
From = tuple[str, str]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "class_embedding": "label_emb",
}
PICTURE_ATTENTION = {"group_norm": "norm", "to_out.0": "proj_out"}
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
# x-transformers makes two layers of each of ours: attention, and what follows it.
BERT = {
    "self_attn_layer_norm": (0, "0"),
    "self_attn.q_proj": (0, "1.to_q"),
    "self_attn.k_proj": (0, "1.to_k"),
    "self_attn.v_proj": (0, "1.to_v"),
    "self_attn.out_proj": (0, "1.to_out"),
    "final_layer_norm": (1, "0"),
    "fc1": (1, "1.net.0.0"),
    "fc2": (1, "1.net.2"),
}


def _rest(rest: str, table: Mapping[str, str]) -> str:
    """A module's inner name by a table of modules; what is not in it is called the same by both."""
    module, _, last = rest.rpartition(".")
    return f"{table.get(module, module)}.{last}"


# ---------------------------------------------------------------------------------------------------------------------
# The U-Net


def unet_name(name: str, config: UNetConfig) -> From:
    """The original's tensor for one of our U-Net's (without `model.diffusion_model.`)."""
    n = config.layers_per_block[0]
    for ours, theirs in UNET.items():
        if name.startswith(f"{ours}."):
            rest = name[len(ours) + 1 :]
            if ".attentions." in f"{ours}." and config.mid_block_type == MIDDLE:
                return _picture_attention(theirs, rest, config.heads[-1])
            return f"{theirs}.{_rest(rest, RESNET) if '.resnets.' in f'{ours}.' else rest}", ""
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    assert match, name
    way, b, what, j, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    kind = (config.down_block_types if way == "down" else config.up_block_types)[b]
    if way == "down":
        block, level = f"input_blocks.{1 + b * (n + 1) + j}", b
        if what == "downsamplers":
            block = f"input_blocks.{(b + 1) * (n + 1)}.0"
            resnet = config.smaller(b) == "resnet"
            return f"{block}.{_rest(rest, RESNET) if resnet else 'op.' + rest.removeprefix('conv.')}", ""
    else:
        block, level = f"output_blocks.{b * (n + 1) + j}", config.levels - 1 - b
        if what == "upsamplers":
            block = f"output_blocks.{b * (n + 1) + n}.{2 if 'Attn' in kind else 1}"
            return f"{block}.{_rest(rest, RESNET) if config.larger(b) == 'resnet' else rest}", ""
    if what == "resnets":
        return f"{block}.0.{_rest(rest, RESNET)}", ""
    if kind.startswith("Attn"):
        return _picture_attention(f"{block}.1", rest, config.heads[level])
    return f"{block}.1.{rest}", ""


def _picture_attention(block: str, rest: str, heads: int) -> From:
    """Attention without text: query, key and value are one convolution, whose rows come head by head."""
    module, _, last = rest.rpartition(".")
    if module in ("to_q", "to_k", "to_v"):
        return f"{block}.qkv.{last}", f"heads {'qkv'.index(module[-1])}/3 of {heads}"
    return f"{block}.{_rest(rest, PICTURE_ATTENTION)}", ""


def unet(shapes: Shapes, heads: int | None, head_size: int | None) -> dict[str, Any]:
    """The config, with diffusers' keys, of the U-Net with these tensors.

    Heads cannot be seen in shapes: `heads` is their number at every level, or `head_size` their size. Raises UserError
    where the tensors are not those of a U-Net of this kind.
    """

    def width(name: str, axis: int = 0) -> int:
        tensor = shapes.get(name)
        if tensor is None or len(tensor.shape) <= axis:
            raise UserError(f"The U-Net has no usable {name}: this is not a U-Net of the original code.")
        return tensor.shape[axis]

    inside: dict[str, set[str]] = {}  # the layers of every transformer
    for key in shapes:
        transformer, found, rest = key.partition(".transformer_blocks.")
        if found:
            inside.setdefault(transformer, set()).add(rest.split(".")[0])

    contexts = {tensor.shape[1] for key, tensor in shapes.items()
                if key.endswith("attn2.to_k.weight") and len(tensor.shape) == 2}  # fmt: skip
    alone = not contexts and "middle_block.1.qkv.weight" in shapes  # it attends to the picture and nothing else
    if len(contexts) != 1 and not alone:
        raise UserError(f"The U-Net reads text of {len(contexts)} widths; one was expected.")

    def depth(block: str) -> int:
        return int(f"{block}.1.qkv.weight" in shapes) if alone else len(inside.get(f"{block}.1", ()))

    blocks, smaller, resnets = _levels(shapes)
    widths: list[int] = []
    down: list[list[int]] = [[]]  # the transformer layers of every block, level by level
    for i in range(1, blocks):
        if i in smaller:
            down.append([])
            continue
        down[-1].append(depth(f"input_blocks.{i}"))
        if len(down[-1]) == 1:
            widths.append(width(f"input_blocks.{i}.0.in_layers.2.weight"))
    if [] in down:
        raise UserError("The U-Net's input blocks do not form levels: this is not a U-Net of the original code.")
    layers = [len(level) for level in down]
    places = iter(range(blocks + len(layers)))
    up = [[depth(f"output_blocks.{next(places)}") for _ in range(count + 1)] for count in reversed(layers)]
    if any(0 in level and max(level) for level in (*down, *up)):
        raise UserError("The U-Net has levels of which some blocks attend and others do not, which cannot be run.")
    config: dict[str, Any] = {
        "in_channels": width("input_blocks.0.0.weight", 1),
        "out_channels": width("out.2.weight"),
        "block_out_channels": widths,
        "layers_per_block": layers,
        "heads": [heads or max(1, w // (head_size or 64)) for w in widths],
    }
    if width("input_blocks.1.0.emb_layers.1.weight") == 2 * widths[0]:
        config["resnet_time_scale_shift"] = "scale_shift"
    if "label_emb.weight" in shapes:
        config["num_class_embeds"] = width("label_emb.weight")
    attends, upwards = [level[0] > 0 for level in down], [level[0] > 0 for level in up]
    if alone:
        between, plain = ("resnet", "Resnet{}sampleBlock2D") if resnets else ("conv", "{}Block2D")
        kinds = [["Attn{}Block2D" if there else "{}Block2D" if i == len(layers) - 1 else plain
                  for i, there in enumerate(way)] for way in (attends, upwards)]  # fmt: skip
        return config | {
            "down_block_types": [kind.format("Down") for kind in kinds[0]],
            "mid_block_type": MIDDLE,
            "up_block_types": [kind.format("Up") for kind in kinds[1]],
            "downsample_type": between,
            "upsample_type": between,
            "cross_attention_dim": [],
        }
    context = contexts.pop()
    inner = depth("middle_block")
    if inner and attends[-1] and inner != down[-1][0]:
        raise UserError(
            f"The U-Net's middle has {inner} transformer layers and its last level {down[-1][0]}, which no model known "
            f"here has."
        )
    if inner:  # diffusers' middle block is as deep as the last level says, even where that level does not attend
        down[-1][0] = inner
    config |= {
        "down_block_types": ["CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attends],
        "mid_block_type": _middle(shapes),
        "up_block_types": ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in upwards],
        "transformer_layers_per_block": [[max(n, 1) for n in level] for level in down],
        "reverse_transformer_layers_per_block": [[max(n, 1) for n in level] for level in up],
        "cross_attention_dim": context,
        "only_cross_attention": [_reads_text_only(shapes, b, layers, context) for b in range(len(layers))],
        "mid_block_only_cross_attention": False,
        "use_linear_projection": any(len(tensor.shape) == 2 for key, tensor in shapes.items()
                                     if key.endswith(".proj_in.weight")),
    }  # fmt: skip
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": width("label_emb.0.0.weight", 1),
        }
    return config


def controlnet_name(name: str, config: ControlNetConfig) -> From:
    """The original's tensor for one of our ControlNet's (without `control_model.`)."""
    module, _, last = name.rpartition(".")
    picture = "controlnet_cond_embedding."
    if module.startswith(picture):
        inner = module.removeprefix(picture)
        blocks = 2 * (len(config.conditioning_embedding_out_channels) - 1)
        place = {"conv_in": 0, "conv_out": blocks + 1}.get(inner)
        place = int(inner.removeprefix("blocks.")) + 1 if place is None else place
        return f"input_hint_block.{2 * place}.{last}", ""
    if module.startswith("controlnet_down_blocks."):
        return f"zero_convs.{module.rpartition('.')[2]}.0.{last}", ""
    if module == "controlnet_mid_block":
        return f"middle_block_out.0.{last}", ""
    return unet_name(name, config)


def controlnet(shapes: Shapes, heads: int | None, head_size: int | None) -> dict[str, Any]:
    """The config, with diffusers' keys, of the ControlNet with these tensors; see `unet`."""
    config = unet({**shapes, "out.2.weight": Tensor("F16", (4, 1, 1, 1))}, heads, head_size)
    up = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    levels = config.pop("reverse_transformer_layers_per_block", None)
    if levels is None:
        raise UserError("The ControlNet reads no text, which none known here does.")
    config["transformer_layers_per_block"] = [level[0] for level in config["transformer_layers_per_block"]]
    numbers = sorted(int(match[1]) for key in shapes
                     if (match := re.fullmatch(r"input_hint_block\.(\d{1,2})\.weight", key)))  # fmt: skip
    hints = [shapes[f"input_hint_block.{i}.weight"].shape for i in numbers]
    if len(hints) < 2 or any(len(shape) != 4 for shape in hints):
        raise UserError("The ControlNet has no usable input_hint_block: this is not one of the original code.")
    return config | {
        "up_block_types": up,
        "conditioning_channels": hints[0][1],
        "conditioning_embedding_out_channels": [hints[0][0], *(shape[0] for shape in hints[2:-1:2])],
    }


def _levels(shapes: Shapes) -> tuple[int, set[int], bool]:
    """How many input blocks there are, which of them make the picture smaller, and whether residual blocks do so.

    A residual block that makes smaller looks like any other. But on the way up they stand beside another block, and
    the first that does tells how many blocks a level has.
    """
    # three digits are more than any model has, and no number in a hostile name makes a long loop
    numbers = [int(match[1]) for key in shapes if (match := re.match(r"input_blocks\.(\d{1,3})\.", key))]
    blocks = 1 + max(numbers, default=0)
    smaller = {i for i in range(1, blocks) if f"input_blocks.{i}.0.op.weight" in shapes}
    if smaller:
        return blocks, smaller, False
    larger = (i for i in range(blocks) for k in (1, 2) if f"output_blocks.{i}.{k}.in_layers.0.weight" in shapes)
    n = next(larger, blocks)
    return blocks, set(range(n + 1, blocks, n + 1)), n < blocks


def _middle(shapes: Shapes) -> str | None:
    """diffusers' name for the middle block: whole, its first residual block alone (SSD-1B, Vega), or none."""
    if "middle_block.1.norm.weight" in shapes:
        return "UNetMidBlock2DCrossAttn"
    return "UNetMidBlock2D" if "middle_block.0.in_layers.0.weight" in shapes else None


def _reads_text_only(shapes: Shapes, level: int, layers: list[int], context: int) -> bool:
    """Whether a level's first attention reads the text too, as the x4 upscaler's do at all but the lowest level.

    Where the level is as wide as the text this cannot be seen, and is taken to be no (the upscaler's lowest level).
    """
    block = f"input_blocks.{1 + sum(layers[:level]) + level}.1.transformer_blocks.0.attn1"
    keys, queries = shapes.get(f"{block}.to_k.weight"), shapes.get(f"{block}.to_q.weight")
    if keys is None or queries is None or len(keys.shape) != 2 or len(queries.shape) != 2:
        return False
    return keys.shape[1] == context != queries.shape[1]


# ---------------------------------------------------------------------------------------------------------------------
# The autoencoder


def vae_name(name: str, config: VaeConfig | VqConfig) -> From:
    """The original's tensor for one of our autoencoder's (without `first_stage_model.`)."""
    last = len(config.block_out_channels) - 1
    match = re.fullmatch(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)", name)
    if match:
        side, what, j, rest = match.groups()
        if what == "attentions":
            return f"{side}.mid.attn_1.{_rest(rest, VAE_ATTENTION)}", ""
        return f"{side}.mid.block_{int(j) + 1}.{_rest(rest, VAE_RESNET)}", ""
    what = "resnets|attentions|downsamplers|upsamplers"
    match = re.fullmatch(rf"(?:encoder\.(down)|decoder\.(up))_blocks\.(\d+)\.({what})\.(\d+)\.(.+)", name)
    if match:
        down, up, b, what, j, rest = match.groups()
        block = f"encoder.down.{b}" if down else f"decoder.up.{last - int(b)}"
        if what == "resnets":
            return f"{block}.block.{j}.{_rest(rest, VAE_RESNET)}", ""
        if what == "attentions":
            return f"{block}.attn.{j}.{_rest(rest, VAE_ATTENTION)}", ""
        return f"{block}.{'downsample' if down else 'upsample'}.{rest}", ""
    return name.replace(".conv_norm_out.", ".norm_out."), ""


def vae(shapes: Shapes) -> dict[str, Any]:
    """The config, with diffusers' keys, of the autoencoder with these tensors: of a VQModel if it has codes, of an
    AutoencoderKL otherwise."""
    numbers = [int(match[1]) for key in shapes if (match := re.match(r"encoder\.down\.(\d{1,2})\.", key))]
    levels = 1 + max(numbers, default=-1)
    needed = ["encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_out.weight", "decoder.conv_in.weight"]
    needed += [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    absent = [key for key in needed if key not in shapes or len(shapes[key].shape) != 4]
    if absent or not levels:
        raise UserError(f"The autoencoder has no usable {(absent or needed)[0]}: this is not one of the original code.")
    attends = [f"encoder.down.{i}.attn.0.q.weight" in shapes for i in range(levels)]
    upwards = [f"decoder.up.{i}.attn.0.q.weight" in shapes for i in reversed(range(levels))]
    config: dict[str, Any] = {
        "in_channels": shapes["encoder.conv_in.weight"].shape[1],
        "out_channels": shapes["decoder.conv_out.weight"].shape[0],
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)],
        "down_block_types": ["AttnDownEncoderBlock2D" if there else "DownEncoderBlock2D" for there in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in upwards],
        "layers_per_block": len({key.split(".")[4] for key in shapes if key.startswith("encoder.down.0.block.")}),
        "latent_channels": shapes["decoder.conv_in.weight"].shape[1],
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
    }
    codes = shapes.get("quantize.embedding.weight")
    if codes is None:
        return config | {
            "use_quant_conv": "quant_conv.weight" in shapes,
            "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        }
    if len(codes.shape) != 2:
        raise UserError("The autoencoder has no usable table of codes: this is not one of the original code.")
    return config | {
        "num_vq_embeddings": codes.shape[0],
        "vq_embed_dim": None if codes.shape[1] == config["latent_channels"] else codes.shape[1],
    }


# ---------------------------------------------------------------------------------------------------------------------
# The text encoders


def openclip_name(name: str, config: ClipTextConfig) -> From:
    """OpenCLIP's tensor for one of our text encoder's; its query, key and value are one matrix."""
    if name == "text_projection.weight":
        return "text_projection", "transposed"
    inner = name.removeprefix("text_model.")
    fixed = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    if inner in fixed:
        return fixed[inner], ""
    if inner.startswith("final_layer_norm."):
        return inner.replace("final_layer_norm", "ln_final"), ""
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", inner)
    assert match, name
    i, module, last = match.groups()
    block = f"transformer.resblocks.{i}"
    if module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        return f"{block}.attn.in_proj_{last}", f"rows {'qkv'.index(module[10])}/3"
    return f"{block}.{OPENCLIP[module]}.{last}", ""


def openclip(shapes: Shapes, skip: int, last: bool) -> dict[str, Any]:
    """The config of the OpenCLIP text tower with these tensors.

    `skip` is the hidden state that conditions the U-Net; where it is the last but one and the last layer is not needed
    for a pooled text (`last` False), that layer is left out as diffusers leaves it out, with the final norm kept.
    """
    layers = _count(shapes, r"transformer\.resblocks\.(\d+)\.ln_1\.weight")
    table, places = shapes.get("token_embedding.weight"), shapes.get("positional_embedding")
    wide = shapes.get("transformer.resblocks.0.mlp.c_fc.weight")
    if not layers or table is None or places is None or wide is None or len(table.shape) != 2:
        raise UserError("The text encoder lacks its embeddings or layers: this is not an OpenCLIP text encoder.")
    projection = shapes.get("text_projection")
    return {
        "vocab_size": table.shape[0],
        "hidden_size": table.shape[1],
        "intermediate_size": wide.shape[0],
        "num_hidden_layers": layers if last else layers - 1,
        "num_attention_heads": max(1, table.shape[1] // 64),
        "max_position_embeddings": places.shape[0],
        "hidden_act": "gelu",
        "projection_dim": projection.shape[1] if last and projection is not None else None,
        "skip": skip,
    }


def clip_name(name: str, config: ClipTextConfig) -> From:
    """Transformers' own names, which single files keep."""
    return name, ""


def clip(shapes: Shapes, skip: int) -> dict[str, Any]:
    """The config of OpenAI's CLIP text encoder with these tensors (transformers' names, with `text_model.`)."""
    layers = _count(shapes, r"text_model\.encoder\.layers\.(\d+)\.layer_norm1\.weight")
    table = shapes.get("text_model.embeddings.token_embedding.weight")
    places = shapes.get("text_model.embeddings.position_embedding.weight")
    wide = shapes.get("text_model.encoder.layers.0.mlp.fc1.weight")
    if not layers or table is None or places is None or wide is None or len(table.shape) != 2:
        raise UserError("The text encoder lacks its embeddings or layers: this is not a CLIP text encoder.")
    return {
        "vocab_size": table.shape[0],
        "hidden_size": table.shape[1],
        "intermediate_size": wide.shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, table.shape[1] // 64),
        "max_position_embeddings": places.shape[0],
        "hidden_act": "quick_gelu",
        "skip": skip,
    }


def bert_name(name: str, config: BertConfig) -> From:
    """x-transformers' tensor for one of our BERT's (without `cond_stage_model.transformer.`)."""
    fixed = {
        "model.embed_tokens.weight": "token_emb.weight",
        "model.embed_positions.weight": "pos_emb.emb.weight",
        "model.layer_norm.weight": "norm.weight",
        "model.layer_norm.bias": "norm.bias",
    }
    if name in fixed:
        return fixed[name], ""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    assert match, name
    which, module = BERT[match[2]]
    return f"attn_layers.layers.{2 * int(match[1]) + which}.{module}.{match[3]}", ""


def bert(shapes: Shapes) -> dict[str, Any]:
    """The config of the BERT with these tensors. Heads are of size 64 in all of them (x-transformers' default)."""
    layers = _count(shapes, r"attn_layers\.layers\.(\d+)\.1\.to_q\.weight")
    table, places = shapes.get("token_emb.weight"), shapes.get("pos_emb.emb.weight")
    wide, queries = (shapes.get(f"attn_layers.layers.{name}.weight") for name in ("1.1.net.0.0", "0.1.to_q"))
    if not layers or table is None or places is None or wide is None or queries is None or len(table.shape) != 2:
        raise UserError("The text encoder lacks its embeddings or layers: this is not the BERT of the original code.")
    return {
        "vocab_size": table.shape[0],
        "hidden_size": table.shape[1],
        "intermediate_size": wide.shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, queries.shape[0] // 64),
        "max_position_embeddings": places.shape[0],
    }


def _count(shapes: Shapes, pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in shapes)
