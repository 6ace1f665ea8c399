"""The four networks behind the embedded model: text encoder, autoencoder, denoiser, and the judge that grades them.

The first three are diffusers' and transformers' own classes, so that what is trained here is an ordinary latent
diffusion model (Rombach et al. 2022, https://arxiv.org/abs/2112.10752) in diffusers' folder format.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

LENGTH = 32  # tokens of a caption, specials included
WIDTH = 128  # of the text embedding


def text_encoder(vocab_size: int, bos: int, eos: int) -> CLIPTextModel:
    """CLIP's text transformer, 3 layers of width 128: (n, 32) ids -> (n, 32, 128)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def autoencoder(size: int) -> AutoencoderKL:
    """KL autoencoder, f8, 4 latent channels: (n, 3, s, s) <-> (n, 4, s/8, s/8)."""
    channels = (16, 32, 64, 128) if size <= 128 else (24, 48, 96, 128)
    return AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=size,
    )


def denoiser(size: int) -> UNet2DConditionModel:
    """U-Net on latents, v-prediction: plain blocks at full latent size, cross-attention at the levels below."""
    channels = (96, 192) if size <= 128 else (64, 128, 192)
    lower = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=size // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * lower,
        up_block_types=["CrossAttnUpBlock2D"] * lower + ["UpBlock2D"],
        cross_attention_dim=WIDTH,
        attention_head_dim=[c // 32 for c in channels],  # diffusers means the number of heads by this name
        norm_num_groups=16,
    )


class Judge(nn.Module):
    """Names every attribute of a picture: (n, 3, s, s) in [-1, 1] -> {attribute: (n, values) logits}."""

    def __init__(self, values: dict[str, int], width: int = 32):
        super().__init__()
        # Two channels of coordinates, since a convolution cannot tell left from right.
        layers: list[nn.Module] = [nn.Conv2d(5, width, 5, 2, 2), nn.BatchNorm2d(width), nn.ReLU()]
        for c_in, c_out in [(1, 2), (2, 4), (4, 4), (4, 8)]:
            layers += [
                nn.Conv2d(c_in * width, c_out * width, 3, 2, 1), nn.BatchNorm2d(c_out * width), nn.ReLU(),
                nn.Conv2d(c_out * width, c_out * width, 3, 1, 1), nn.BatchNorm2d(c_out * width), nn.ReLU(),
            ]  # fmt: skip
        self.body = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Dropout(0.2))
        self.heads = nn.ModuleDict({name: nn.Linear(16 * 8 * width, n) for name, n in values.items()})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype).view(1, 1, 1, w).expand(n, 1, h, w)
        features = self.body(torch.cat([x, rows, columns], 1))
        return {name: head(features) for name, head in self.heads.items()}


class Reader(nn.Module):
    """Names what a caption mentions, from the mean of the text encoder's output; only to pre-train that encoder."""

    def __init__(self, encoder: CLIPTextModel, values: dict[str, int]):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, n + 1) for name, n in values.items()})  # last: not mentioned

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = self.encoder(ids).last_hidden_state.mean(1)
        return {name: head(mean) for name, head in self.heads.items()}
