"""A quick look at a latent: each of its places as one colour, by a linear map fitted to the model's own autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .backend import Model

RIDGE = 1e-3  # keeps the fit of many channels to few places tame
REAL = 8  # how many times as much a real picture counts as the made-up one


class Preview:
    """Latents (1, h, w, c) to pixels (h, w, 3) uint8.

    The map is the one with the least squared error on what it has seen: to begin with, a picture with colours of all
    kinds through the autoencoder; then every picture that was finished. So it needs no table of families.
    """

    def __init__(self, model: Model):
        self._factor = model.manifest.vae.factor
        colours = _colours(max(128, 16 * self._factor))
        mean, _ = model.encode_image(model.array(colours[None]))
        wide = model.manifest.vae.latent_channels + 1
        self._gram, self._cross = np.zeros((wide, wide)), np.zeros((wide, 3))
        self._see(model.numpy(mean), colours, 1)

    def __call__(self, latent: np.ndarray) -> np.ndarray:
        colour = _with_one(latent[0]) @ self._weights
        return np.rint(np.clip(colour * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8)

    def learn(self, latent: np.ndarray, pixels: np.ndarray) -> None:
        """That a latent became these pixels (H, W, 3) uint8; of another size than its own they say nothing."""
        if pixels.shape[:2] == tuple(side * self._factor for side in latent.shape[1:3]):
            self._see(latent, pixels / 127.5 - 1, REAL)

    def _see(self, latent: np.ndarray, picture: np.ndarray, times: float) -> None:
        height, width = latent.shape[1:3]
        places = _with_one(latent[0]).reshape(height * width, -1)
        small = picture.reshape(height, self._factor, width, self._factor, 3).mean(axis=(1, 3)).reshape(-1, 3)
        self._gram += places.T @ places * (times / len(places))
        self._cross += places.T @ small * (times / len(places))
        tame = RIDGE * np.trace(self._gram) / len(self._gram)
        self._weights = np.linalg.solve(self._gram + tame * np.eye(len(self._gram)), self._cross)


def _with_one(latent: np.ndarray) -> np.ndarray:
    ones = np.ones((*latent.shape[:2], 1))
    return np.concatenate([latent.astype(np.float64), ones], axis=-1)


def _colours(side: int) -> np.ndarray:
    """Slow waves in every colour: float32 (side, side, 3) in [-1, 1]."""
    random = np.random.RandomState(0)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = np.zeros((side, side, 3))
    for channel in range(3):
        for _ in range(6):
            across, down, phase = random.uniform(-2, 2), random.uniform(-2, 2), random.uniform(0, 2 * np.pi)
            waves[..., channel] += np.cos(2 * np.pi * (across * x + down * y) + phase)
    return (0.9 * np.tanh(waves / 2)).astype(np.float32)
