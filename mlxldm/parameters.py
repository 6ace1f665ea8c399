"""Which parameters a part with a given config has: their names and shapes, known without any framework.

Shapes are in the model folder's layout: 3x3 convolutions (out, height, width, in), everything that is a matrix (linear
maps and 1x1 convolutions) (out, in). Names are diffusers' and transformers'. The converter checks a checkpoint against
this before it reads a byte of weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlxldm.config import (
    MIDDLE,
    BertConfig,
    ClassEmbedderConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ControlNetConfig,
    PartConfig,
    RescalerConfig,
    UNetConfig,
    VaeConfig,
    VqConfig,
)

Shapes = dict[str, tuple[int, ...]]
Pairs = Iterator[tuple[str, tuple[int, ...]]]


def parameters(config: PartConfig | ClipVisionConfig) -> Shapes:
    """Every parameter of the part: {name: shape}, in the order in which the network uses them."""
    match config:
        case ClipTextConfig():
            return dict(_clip(config))
        case ClipVisionConfig():
            return dict(_vision(config))
        case BertConfig():
            return dict(_bert(config))
        case ClassEmbedderConfig():
            return {"embedding.weight": (config.num_classes, config.hidden_size)}
        case RescalerConfig():
            return dict(_linear("channel_mapper", config.in_channels, config.out_channels, config.bias))
        case ControlNetConfig():  # before the U-Net, which it is too
            return dict(_controlnet(config))
        case UNetConfig():
            return dict(_unet(config))
        case VaeConfig() | VqConfig():
            return dict(_vae(config))


def _linear(name: str, wide: int, out: int, bias: bool = True) -> Pairs:
    yield f"{name}.weight", (out, wide)
    if bias:
        yield f"{name}.bias", (out,)


def _conv(name: str, wide: int, out: int) -> Pairs:
    yield f"{name}.weight", (out, 3, 3, wide)
    yield f"{name}.bias", (out,)


def _norm(name: str, wide: int) -> Pairs:
    yield f"{name}.weight", (wide,)
    yield f"{name}.bias", (wide,)


# ---------------------------------------------------------------------------------------------------------------------
# Text encoders


def _clip(c: ClipTextConfig) -> Pairs:
    wide = c.hidden_size
    yield "text_model.embeddings.token_embedding.weight", (c.vocab_size, wide)
    yield "text_model.embeddings.position_embedding.weight", (c.max_position_embeddings, wide)
    yield from _clip_layers("text_model", c)
    yield from _norm("text_model.final_layer_norm", wide)
    if c.projection_dim is not None:
        yield from _linear("text_projection", wide, c.projection_dim, bias=False)


def _clip_layers(tower: str, c: ClipTextConfig | ClipVisionConfig) -> Pairs:
    wide = c.hidden_size
    for i in range(c.num_hidden_layers):
        layer = f"{tower}.encoder.layers.{i}"
        yield from _norm(f"{layer}.layer_norm1", wide)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{name}", wide, wide)
        yield from _norm(f"{layer}.layer_norm2", wide)
        yield from _linear(f"{layer}.mlp.fc1", wide, c.intermediate_size)
        yield from _linear(f"{layer}.mlp.fc2", c.intermediate_size, wide)


def _vision(c: ClipVisionConfig) -> Pairs:
    wide = c.hidden_size
    yield "vision_model.embeddings.class_embedding", (wide,)
    yield "vision_model.embeddings.patch_embedding.weight", (wide, c.patch_size, c.patch_size, 3)
    yield "vision_model.embeddings.position_embedding.weight", (c.patches + 1, wide)
    yield from _norm("vision_model.pre_layrnorm", wide)
    yield from _clip_layers("vision_model", c)
    yield from _norm("vision_model.post_layernorm", wide)
    yield from _linear("visual_projection", wide, c.projection_dim, bias=False)


def _bert(c: BertConfig) -> Pairs:
    wide, inner = c.hidden_size, c.num_attention_heads * c.head_dim
    yield "model.embed_tokens.weight", (c.vocab_size, wide)
    yield "model.embed_positions.weight", (c.max_position_embeddings, wide)
    for i in range(c.num_hidden_layers):
        layer = f"model.layers.{i}"
        yield from _norm(f"{layer}.self_attn_layer_norm", wide)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from _linear(f"{layer}.self_attn.{name}", wide, inner, bias=False)
        yield from _linear(f"{layer}.self_attn.out_proj", inner, wide)
        yield from _norm(f"{layer}.final_layer_norm", wide)
        yield from _linear(f"{layer}.fc1", wide, c.intermediate_size)
        yield from _linear(f"{layer}.fc2", c.intermediate_size, wide)
    yield from _norm("model.layer_norm", wide)


# ---------------------------------------------------------------------------------------------------------------------
# The U-Net


def _unet(c: UNetConfig) -> Pairs:
    first = c.block_out_channels[0]
    time = 4 * first
    yield from _conv("conv_in", c.in_channels, first)
    yield from _embedding("time_embedding", first, time)
    if c.time_cond_proj_dim is not None:
        yield from _linear("time_embedding.cond_proj", c.time_cond_proj_dim, first, bias=False)
    given = c.projection_class_embeddings_input_dim or 0
    if c.class_embed_type is None and c.num_class_embeds is not None:
        yield "class_embedding.weight", (c.num_class_embeds, time)
    elif c.class_embed_type == "timestep":
        yield from _embedding("class_embedding", first, time)
    elif c.class_embed_type == "projection":
        yield from _embedding("class_embedding", given, time)
    elif c.class_embed_type == "simple_projection":
        yield from _linear("class_embedding", given, time)
    if c.addition_embed_type == "text_time":
        yield from _embedding("add_embedding", given, time)

    last = c.levels - 1
    wide = first
    for level in range(c.levels):
        block, out = f"down_blocks.{level}", c.block_out_channels[level]
        for j, depth in enumerate(c.layers_down(level)):
            yield from _resnet(f"{block}.resnets.{j}", wide, out, time, c)
            if c.down_block_types[level] == "CrossAttnDownBlock2D":
                yield from _transformer(f"{block}.attentions.{j}", level, depth, c.only_cross_attention[level], c)
            elif c.down_block_types[level] == "AttnDownBlock2D":
                yield from _picture_attention(f"{block}.attentions.{j}", out)
            wide = out
        yield from _between(f"{block}.downsamplers.0", c.smaller(level), out, time, c)

    if c.mid_block_type is not None:
        yield from _resnet("mid_block.resnets.0", wide, wide, time, c)
    if c.mid_block_type == "UNetMidBlock2DCrossAttn":
        yield from _transformer("mid_block.attentions.0", last, c.transformer_layers_per_block[last], False, c)
        yield from _resnet("mid_block.resnets.1", wide, wide, time, c)
    elif c.mid_block_type == MIDDLE:
        yield from _picture_attention("mid_block.attentions.0", wide)
        yield from _resnet("mid_block.resnets.1", wide, wide, time, c)

    for i in range(c.levels):
        level = last - i  # upwards the levels come in reverse, and so does every per-level setting but the block types
        block, out = f"up_blocks.{i}", c.block_out_channels[level]
        below = c.block_out_channels[max(level - 1, 0)]
        depths = c.layers_up(i)
        for j, depth in enumerate(depths):
            skip = below if j == len(depths) - 1 else out
            yield from _resnet(f"{block}.resnets.{j}", wide + skip, out, time, c)
            if c.up_block_types[i] == "CrossAttnUpBlock2D":
                yield from _transformer(f"{block}.attentions.{j}", level, depth, c.only_cross_attention[level], c)
            elif c.up_block_types[i] == "AttnUpBlock2D":
                yield from _picture_attention(f"{block}.attentions.{j}", out)
            wide = out
        yield from _between(f"{block}.upsamplers.0", c.larger(i), out, time, c)
    yield from _norm("conv_norm_out", first)
    yield from _conv("conv_out", first, c.out_channels)


def _controlnet(c: ControlNetConfig) -> Pairs:
    for name, shape in _unet(c):
        if not name.startswith(("up_blocks.", "conv_norm_out.", "conv_out.")):
            yield name, shape
    picture, widths = "controlnet_cond_embedding", c.conditioning_embedding_out_channels
    yield from _conv(f"{picture}.conv_in", c.conditioning_channels, widths[0])
    for i, (wide, out) in enumerate(zip(widths, widths[1:], strict=False)):
        yield from _conv(f"{picture}.blocks.{2 * i}", wide, wide)
        yield from _conv(f"{picture}.blocks.{2 * i + 1}", wide, out)
    yield from _conv(f"{picture}.conv_out", widths[-1], c.block_out_channels[0])
    added = [c.block_out_channels[0]]
    for level, wide in enumerate(c.block_out_channels):
        added += [wide] * (c.layers_per_block[level] + (level != c.levels - 1))
    for i, wide in enumerate(added):
        yield from _linear(f"controlnet_down_blocks.{i}", wide, wide)
    yield from _linear("controlnet_mid_block", c.block_out_channels[-1], c.block_out_channels[-1])


def _embedding(name: str, wide: int, out: int) -> Pairs:
    yield from _linear(f"{name}.linear_1", wide, out)
    yield from _linear(f"{name}.linear_2", out, out)


def _between(name: str, how: str | None, wide: int, time: int, c: UNetConfig) -> Pairs:
    """What makes the picture smaller or larger between two levels."""
    if how == "conv":
        yield from _conv(f"{name}.conv", wide, wide)
    elif how == "resnet":
        yield from _resnet(name, wide, wide, time, c)


def _resnet(name: str, wide: int, out: int, time: int | None, c: UNetConfig | None = None) -> Pairs:
    yield from _norm(f"{name}.norm1", wide)
    yield from _conv(f"{name}.conv1", wide, out)
    if time is not None:
        double = c is not None and c.resnet_time_scale_shift == "scale_shift"
        yield from _linear(f"{name}.time_emb_proj", time, 2 * out if double else out)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out)
    if wide != out:
        yield from _linear(f"{name}.conv_shortcut", wide, out)


def _transformer(name: str, level: int, depth: int, only_cross: bool, c: UNetConfig) -> Pairs:
    wide, context = c.block_out_channels[level], c.cross_attention_dim[level]
    yield from _norm(f"{name}.norm", wide)
    yield from _linear(f"{name}.proj_in", wide, wide)
    for k in range(depth):
        block = f"{name}.transformer_blocks.{k}"
        yield from _norm(f"{block}.norm1", wide)
        yield from _attention(f"{block}.attn1", wide, context if only_cross else wide)
        yield from _norm(f"{block}.norm2", wide)
        yield from _attention(f"{block}.attn2", wide, context)
        yield from _norm(f"{block}.norm3", wide)
        yield from _linear(f"{block}.ff.net.0.proj", wide, 8 * wide)  # values and gates
        yield from _linear(f"{block}.ff.net.2", 4 * wide, wide)
    yield from _linear(f"{name}.proj_out", wide, wide)


def _picture_attention(name: str, wide: int) -> Pairs:
    yield from _norm(f"{name}.group_norm", wide)
    yield from _attention(name, wide, wide, bias=True)


def _attention(name: str, wide: int, context: int, bias: bool = False) -> Pairs:
    yield from _linear(f"{name}.to_q", wide, wide, bias)
    yield from _linear(f"{name}.to_k", context, wide, bias)
    yield from _linear(f"{name}.to_v", context, wide, bias)
    yield from _linear(f"{name}.to_out.0", wide, wide)


# ---------------------------------------------------------------------------------------------------------------------
# The autoencoder


def _vae(c: VaeConfig | VqConfig) -> Pairs:
    widths, latent, last = c.block_out_channels, c.latent_channels, len(c.block_out_channels) - 1
    yield from _conv("encoder.conv_in", c.in_channels, widths[0])
    wide = widths[0]
    for i, out in enumerate(widths):
        for j in range(c.layers_per_block):
            yield from _resnet(f"encoder.down_blocks.{i}.resnets.{j}", wide, out, None)
            if c.down_block_types[i] == "AttnDownEncoderBlock2D":
                yield from _picture_attention(f"encoder.down_blocks.{i}.attentions.{j}", out)
            wide = out
        if i != last:
            yield from _conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", out, out)
    yield from _middle("encoder.mid_block", wide, c)
    yield from _norm("encoder.conv_norm_out", wide)
    yield from _conv("encoder.conv_out", wide, c.encoded)
    if isinstance(c, VqConfig):
        yield from _linear("quant_conv", latent, c.code)
        yield "quantize.embedding.weight", (c.num_vq_embeddings, c.code)
        yield from _linear("post_quant_conv", c.code, latent)
    else:
        if c.use_quant_conv:
            yield from _linear("quant_conv", 2 * latent, 2 * latent)
        if c.use_post_quant_conv:
            yield from _linear("post_quant_conv", latent, latent)
    yield from _conv("decoder.conv_in", latent, wide)
    yield from _middle("decoder.mid_block", wide, c)
    for i, out in enumerate(reversed(widths)):
        for j in range(c.layers_per_block + 1):
            yield from _resnet(f"decoder.up_blocks.{i}.resnets.{j}", wide, out, None)
            if c.up_block_types[i] == "AttnUpDecoderBlock2D":
                yield from _picture_attention(f"decoder.up_blocks.{i}.attentions.{j}", out)
            wide = out
        if i != last:
            yield from _conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", out, out)
    yield from _norm("decoder.conv_norm_out", wide)
    yield from _conv("decoder.conv_out", wide, c.out_channels)


def _middle(name: str, wide: int, c: VaeConfig | VqConfig) -> Pairs:
    yield from _resnet(f"{name}.resnets.0", wide, wide, None)
    if c.mid_block_add_attention:
        yield from _picture_attention(f"{name}.attentions.0", wide)
    yield from _resnet(f"{name}.resnets.1", wide, wide, None)
