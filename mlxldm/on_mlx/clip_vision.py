"""CLIP's vision tower, and the two towers together. Radford et al. 2021, arXiv:2103.00020; names as in transformers'
CLIPVisionModelWithProjection."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..clip import ClipFolder
from ..config import ClipVisionConfig
from ..tokenizer import ClipTokenizer
from .clip import ClipText, Encoder
from .layers import LayerNorm, Linear
from .model import fill


class Patches(nn.Module):
    """A picture as tokens: one for all of it, then its patches, line by line."""

    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        wide, patch = config.hidden_size, config.patch_size
        self.class_embedding = mx.zeros((wide,))
        self.patch_embedding = nn.Conv2d(3, wide, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.patches + 1, wide)

    def __call__(self, pixels: mx.array) -> mx.array:
        patches = self.patch_embedding(pixels).flatten(1, 2)
        first = mx.broadcast_to(self.class_embedding, (patches.shape[0], 1, patches.shape[2]))
        return mx.concatenate([first, patches], axis=1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        self.embeddings = Patches(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)


class ClipVision(nn.Module):
    """Pictures (B, S, S, 3), prepared as `retrieval.prepared` does, to one vector each (B, projection)."""

    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        self.vision_model = VisionTransformer(config)
        self.visual_projection = Linear(config.hidden_size, config.projection_dim, bias=False)

    def __call__(self, pixels: mx.array) -> mx.array:
        tower = self.vision_model
        x = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in tower.encoder.layers:
            x = layer(x)
        return self.visual_projection(tower.post_layernorm(x[:, 0]))


class MlxClip:
    """A CLIP in memory, in float32; see `mlxldm.backend.Clip`."""

    def __init__(self, folder: ClipFolder):
        self._tokenizer = ClipTokenizer.from_files(folder.tokenizer_files())
        self._length = folder.text.max_position_embeddings
        self._text = fill(ClipText(folder.text), folder, "text", mx.float32)
        self._vision = fill(ClipVision(folder.vision), folder, "vision", mx.float32)

    def text(self, prompt: str) -> np.ndarray:
        return np.array(self._text([self._tokenizer.ids(prompt, self._length)]).pooled)[0]

    def pictures(self, pixels: np.ndarray) -> np.ndarray:
        return np.array(self._vision(mx.array(pixels)))
