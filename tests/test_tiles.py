"""Tiles cover every place once, and what comes out of them is nearly what the whole picture gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from weights import psnr

import mlxldm
from mlxldm import tiles

SCENES = Path(mlxldm.__file__).parent / "scenes"


@pytest.mark.parametrize("length", [1, 33, 47, 64, 65, 81, 97, 128, 160, 321])
@pytest.mark.parametrize("tile", [32, 47, 64, 96, 500])
@pytest.mark.parametrize("scale", [1, 8])
def test_at_every_place_the_weights_are_one_together(length, tile, scale):
    total, covered = np.zeros(length * scale), np.zeros(length * scale, int)
    cuts = tiles.cuts(length, tile, scale)
    for here, weight in cuts:
        assert 0 <= here.start < here.stop <= length and here.stop - here.start <= tile
        assert weight.shape == ((here.stop - here.start) * scale,) and weight.min() >= 0
        total[here.start * scale : here.stop * scale] += weight
        covered[here.start * scale : here.stop * scale] += 1
    assert np.allclose(total, 1, atol=1e-6) and covered.min() == 1
    assert len({here.stop - here.start for here, _ in cuts}) == 1
    for (before, _), (after, _) in zip(cuts, cuts[1:], strict=False):
        assert before.stop - after.start >= tiles.OVERLAP
    if length > tile:  # nothing that touches an inner edge counts
        assert cuts[0][1][-tiles.MARGIN * scale :].max() == 0 == cuts[-1][1][: tiles.MARGIN * scale].max()


def test_a_tile_that_is_all_overlap_is_refused():
    with pytest.raises(ValueError, match="overlap"):
        tiles.cuts(100, tiles.OVERLAP)


class Blocks:
    """An autoencoder whose pixels are their latent: tiles of it must fit together to the last bit but rounding."""

    manifest = SimpleNamespace(vae=SimpleNamespace(factor=8))

    def __init__(self):
        self.sizes = []

    def array(self, x):
        return x

    def numpy(self, x):
        return x

    def decode(self, latent):
        self.sizes.append(latent.shape[1:3])
        return latent[..., :3].repeat(8, 1).repeat(8, 2)

    def encode_image(self, pixels):
        self.sizes.append((pixels.shape[1] // 8, pixels.shape[2] // 8))
        return pixels[:, ::8, ::8], 2 * pixels[:, ::8, ::8]


@pytest.mark.parametrize("shape", [(20, 20), (33, 90), (90, 33), (75, 131)])
def test_what_depends_on_one_place_alone_is_the_same_in_tiles(shape):
    latent = np.random.RandomState(0).standard_normal((1, *shape, 4)).astype(np.float32)
    model = Blocks()
    pixels = tiles.decode(model, latent, 40)
    assert np.allclose(pixels, Blocks().decode(latent), atol=1e-5)
    assert (len(model.sizes) > 1) == (max(shape) > 40) and max(max(size) for size in model.sizes) <= 40
    mean, deviation = tiles.encode(model, pixels, 40)
    assert np.allclose(mean, latent[..., :3], atol=1e-5) and np.allclose(deviation, 2 * mean, atol=1e-5)
    assert max(max(size) for size in model.sizes) <= 40


@pytest.fixture(scope="module", params=["mlx", "torch"])
def scenes(request):
    from mlxldm.backend import load
    from mlxldm.folder import open_folder

    pytest.importorskip("mlxldm.on_mlx" if request.param == "mlx" else "diffusers")
    return load(open_folder(SCENES), request.param, "cpu", "float32")


def test_tiles_of_a_trained_autoencoder_are_nearly_the_whole_picture(scenes):
    """Not quite: GroupNorm sees a tile's mean and variance. Another latent's picture is far away."""
    pixels = picture(256, 320)
    mean, deviation = scenes.encode_image(scenes.array(pixels))
    whole = scenes.numpy(scenes.decode(mean))
    tiled = tiles.decode(scenes, mean, 32)
    assert tiled.shape == whole.shape and tiled.dtype == np.float32
    assert psnr(tiled, whole) > 35
    assert psnr(tiled[:, :, ::-1], whole) < 20
    assert np.array_equal(tiles.decode(scenes, mean, 40), whole)  # one tile suffices
    found, spread = tiles.encode(scenes, pixels, 32)
    assert psnr(scenes.numpy(found), scenes.numpy(mean)) > 25
    assert psnr(scenes.numpy(scenes.decode(found)), whole) > 35
    assert np.all(scenes.numpy(spread) > 0) and spread.shape == deviation.shape


@pytest.mark.parametrize("axes", ["x", "y", "both"])
def test_a_seamless_picture_in_tiles_goes_on_at_its_other_side(scenes, axes):
    pixels = picture(320, 320)
    scenes.seamless(axes)
    try:
        mean, _ = scenes.encode_image(scenes.array(pixels))
        whole = scenes.numpy(scenes.decode(mean))
        tiled, torn = tiles.decode(scenes, mean, 32, axes), tiles.decode(scenes, mean, 32)
        found, _ = tiles.encode(scenes, pixels, 32, axes)
    finally:
        scenes.seamless("")
    assert tiled.shape == whole.shape and found.shape == mean.shape
    edge = np.zeros(whole.shape[1:3], bool)
    if axes != "y":
        edge[:, :16] = edge[:, -16:] = True
    if axes != "x":
        edge[:16] = edge[-16:] = True
    assert psnr(tiled, whole) > 35 and psnr(tiled[:, edge], whole[:, edge]) > psnr(torn[:, edge], whole[:, edge]) + 3
    assert psnr(scenes.numpy(found), scenes.numpy(mean)) > 25


def picture(height: int, width: int) -> np.ndarray:
    """(1, H, W, 3): a sky, a sun, hills: what the embedded model has seen the like of."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pixels = np.stack([0.9 - 0.6 * y / height, 0.3 + 0.2 * y / height, y / height - 0.5], axis=-1)
    pixels[(x - width / 3) ** 2 + (y - height / 3) ** 2 < (height / 8) ** 2] = (1, 0.8, 0.2)
    pixels[y > height * (0.75 + 0.08 * np.sin(x / 25))] = (-0.4, 0.1, -0.5)
    return pixels[None]
