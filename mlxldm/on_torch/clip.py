"""The two towers of a CLIP, as transformers has them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..tokenizer import Tokenizer
from .model import TextEncoder


class TorchClip:
    """A CLIP on a torch device, in float32; see `mlxldm.backend.Clip`."""

    def __init__(self, tokenizer: Tokenizer, text: TextEncoder, vision: nn.Module, device: torch.device):
        self._tokenizer, self._text, self._vision, self._device = tokenizer, text, vision, device

    @torch.no_grad()
    def text(self, prompt: str) -> np.ndarray:
        _, summary = self._text.read([self._tokenizer.ids(prompt, self._text.config.max_position_embeddings)])
        assert summary is not None, "a CLIP's text tower projects"
        return summary[0].float().cpu().numpy()

    @torch.no_grad()
    def pictures(self, pixels: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self._device)
        return self._vision(pixel_values=x).image_embeds.float().cpu().numpy()
