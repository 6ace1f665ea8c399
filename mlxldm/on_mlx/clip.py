"""CLIP's text tower, and the layers of both. Radford et al. 2021, arXiv:2103.00020; names as in transformers'
CLIPTextModel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..config import ClipTextConfig, ClipVisionConfig
from .layers import LayerNorm, Linear, gelu, join_heads, quick_gelu, split_heads


@dataclass
class TextOutput:
    """What a prompt became: `hidden` (B, L, width) for cross-attention, `pooled` (B, width or projection) or None."""

    hidden: mx.array
    pooled: mx.array | None


class SelfAttention(nn.Module):
    """Every token of a text looks at itself and at those before it, every patch of a picture at all."""

    def __init__(self, config: ClipTextConfig | ClipVisionConfig):
        super().__init__()
        size = config.hidden_size
        self.q_proj = Linear(size, size)
        self.k_proj = Linear(size, size)
        self.v_proj = Linear(size, size)
        self.out_proj = Linear(size, size)
        self.heads = config.num_attention_heads
        self.scale = (size // self.heads) ** -0.5
        self.mask = "causal" if isinstance(config, ClipTextConfig) else None

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=self.mask)
        return self.out_proj(join_heads(out))


class Mlp(nn.Module):
    def __init__(self, config: ClipTextConfig | ClipVisionConfig):
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)
        self.act = {"quick_gelu": quick_gelu, "gelu": gelu}[config.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.act(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: ClipTextConfig | ClipVisionConfig):
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = Mlp(config)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: ClipTextConfig | ClipVisionConfig):
        super().__init__()
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]


class Embeddings(nn.Module):
    def __init__(self, config: ClipTextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self._words: mx.array | None = None  # the vectors of textual inversions

    def learn(self, vectors: mx.array | None) -> None:
        """vectors (n, width): what the ids -1, -2 ... -n stand for from now on."""
        self._words = vectors

    def __call__(self, ids: mx.array) -> mx.array:
        if self._words is None:
            tokens = self.token_embedding(ids)
        else:
            words = self._words[mx.maximum(-1 - ids, 0)]
            tokens = mx.where((ids < 0)[..., None], words, self.token_embedding(mx.maximum(ids, 0)))
        return tokens + self.position_embedding.weight[: ids.shape[1]]


class TextTransformer(nn.Module):
    def __init__(self, config: ClipTextConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)


class ClipText(nn.Module):
    """Token ids to the states that condition a U-Net, and one vector for the whole text."""

    def __init__(self, config: ClipTextConfig):
        super().__init__()
        self.text_model = TextTransformer(config)
        if config.projection_dim is not None:
            self.text_projection = Linear(config.hidden_size, config.projection_dim, bias=False)
        self.config = config

    def __call__(self, ids: Sequence[Sequence[int]], clip_skip: int | None = None) -> TextOutput:
        """ids: rows of equal length. The hidden state is the one that `config.layer` says; a model that reads the last
        one has it, and those before it in its place, from the final norm."""
        tower = self.text_model
        x = tower.embeddings(mx.array([list(row) for row in ids], dtype=mx.int32))
        states = [x]
        for layer in tower.encoder.layers:
            x = layer(x)
            states.append(x)
        last = tower.final_layer_norm(x)
        read = self.config.layer(clip_skip)
        hidden = last if read == -1 else states[read]
        if self.config.skip == -1 and read != -1:
            hidden = tower.final_layer_norm(hidden)
        ends = [_end(row, self.config.eos_token_id) for row in ids]
        pooled = mx.stack([last[i, end] for i, end in enumerate(ends)])
        if "text_projection" in self:
            pooled = self.text_projection(pooled)
        return TextOutput(hidden, pooled)


def _end(row: Sequence[int], eos: int) -> int:
    """Where the text ends: the first end mark. A cut text always has one; without any, the last token."""
    return row.index(eos) if eos in row else len(row) - 1
