"""The text encoder of the first latent diffusion models. Rombach et al. 2022, arXiv:2112.10752; names as in diffusers'
LDMBertModel."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..config import BertConfig
from .clip import TextOutput
from .layers import LayerNorm, Linear, gelu, join_heads, split_heads


class SelfAttention(nn.Module):
    """Every token looks at all tokens, padding too."""

    def __init__(self, config: BertConfig):
        super().__init__()
        size, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        self.q_proj = Linear(size, inner, bias=False)
        self.k_proj = Linear(size, inner, bias=False)
        self.v_proj = Linear(size, inner, bias=False)
        self.out_proj = Linear(inner, size)
        self.heads = config.num_attention_heads
        self.scale = config.head_dim**-0.5

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(join_heads(mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale)))


class Layer(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.self_attn_layer_norm = LayerNorm(config.hidden_size)
        self.self_attn = SelfAttention(config)
        self.final_layer_norm = LayerNorm(config.hidden_size)
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(gelu(self.fc1(self.final_layer_norm(x))))


class Encoder(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.layer_norm = LayerNorm(config.hidden_size)


class BertText(nn.Module):
    """Token ids to the states that condition a U-Net."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.model = Encoder(config)
        self.config = config

    def __call__(self, ids: Sequence[Sequence[int]]) -> TextOutput:
        """ids: rows of equal length."""
        net = self.model
        tokens = mx.array([list(row) for row in ids], dtype=mx.int32)
        x = net.embed_tokens(tokens) + net.embed_positions.weight[: len(ids[0])]
        for layer in net.layers:
            x = layer(x)
        return TextOutput(net.layer_norm(x), None)
