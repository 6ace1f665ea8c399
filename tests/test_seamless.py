"""Seamless pictures: convolutions that continue on the other side, on both backends, held against diffusers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import has, needs_torch
from test_generate import MANIFEST

from mlxldm.errors import UserError
from mlxldm.generate import generate, resolve
from mlxldm.job import Job
from mlxldm.noise import Noise

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

from test_parity import APART, BAR, psnr, scheduler  # noqa: E402

JOB = Job(prompt="a red house at dusk", seed=7, steps=3, guidance=4.0, sampler="ddim", width=128, height=64)
BACKENDS = ("mlx", "torch")


@pytest.fixture(scope="module")
def models(tiny_folder):
    import mlxldm.backend
    from mlxldm_convert import view

    folder = view(tiny_folder("sd1", "today"))
    return {name: mlxldm.backend.load(folder, name, "cpu", "float32") for name in BACKENDS}


def drawn(model, job: Job) -> np.ndarray:
    return next(event.pixels for event in generate(model, job) if hasattr(event, "pixels"))


def test_both_axes_are_what_diffusers_draws_with_circular_padding(models, tiny_folder):
    import tiny
    import torch

    pipe = tiny.KINDS["sd1"]()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler(tiny_folder("sd1", "today"), "ddim", "model")
    for module in (*pipe.unet.modules(), *pipe.vae.modules()):
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"
    wanted = pipe(
        JOB.prompt, guidance_scale=4.0, num_inference_steps=3, width=128, height=64,
        generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).images[0]  # fmt: skip
    wanted = np.round(wanted * 255).astype(np.uint8)
    found = {name: drawn(models[name], JOB.replace(seamless="both")) for name in BACKENDS}
    print({name: round(psnr(found[name], wanted), 1) for name in BACKENDS})
    assert min(psnr(found[name], wanted) for name in BACKENDS) >= BAR


def test_each_axis_is_the_same_on_both_backends_and_no_other(models):
    pictures = []
    for axes in (None, "x", "y", "both"):
        mlx, torch = (drawn(models[name], JOB.replace(seamless=axes)) for name in BACKENDS)
        assert psnr(mlx, torch) >= BAR
        assert all(psnr(mlx, other) <= APART for other in pictures)
        pictures.append(mlx)


@pytest.mark.parametrize("name", BACKENDS)
def test_afterwards_the_model_is_as_before(models, name):
    before = drawn(models[name], JOB)
    walk = generate(models[name], JOB.replace(seamless="both"))
    next(walk)
    walk.close()  # given up in the middle
    assert np.array_equal(drawn(models[name], JOB), before)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("axes, rows, columns", [("both", 8, 8), ("x", 0, 8), ("y", 8, 0)])
def test_rolled_noise_gives_the_rolled_picture(models, monkeypatch, name, axes, rows, columns):
    """By eight latents, which are one at the deepest level: nothing knows where the picture begins."""
    job = JOB.replace(seamless=axes, height=128, steps=2)
    plain = drawn(models[name], job)

    class Rolled(Noise):
        def draw(self, *shape):
            return np.roll(super().draw(*shape), (rows, columns), (1, 2))

    monkeypatch.setattr(sys.modules["mlxldm.generate"], "Noise", Rolled)
    rolled = np.roll(plain, (8 * rows, 8 * columns), (0, 1))
    assert psnr(drawn(models[name], job), rolled) >= BAR
    assert psnr(drawn(models[name], job.replace(seamless=None)), rolled) <= APART


@pytest.mark.parametrize("axes", ["", "x", "y", "both"])
def test_bands_of_a_large_picture_have_no_seams_of_their_own(models, monkeypatch, axes):
    from mlxldm.on_torch import blocks

    model = models["torch"]
    latent = model.array(Noise(3).draw(1, 16, 8, 4))
    model.seamless(axes)
    try:
        whole = model.numpy(model.decode(latent))
        monkeypatch.setattr(blocks, "BAND", 1 << 14)
        np.testing.assert_allclose(model.numpy(model.decode(latent)), whole, atol=1e-4)
    finally:
        model.seamless("")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("axes, axis", [("x", 2), ("y", 1), ("both", 2)])
def test_the_encoder_wraps_too(models, name, axes, axis):
    model = models[name]
    pixels = np.random.RandomState(0).uniform(-1, 1, (1, 64, 96, 3)).astype(np.float32)

    def encoded(pixels):
        return model.numpy(model.encode_image(model.array(pixels))[0])

    model.seamless(axes)
    try:
        found, rolled = encoded(pixels), encoded(np.roll(pixels, 8, axis))
    finally:
        model.seamless("")
    np.testing.assert_allclose(rolled, np.roll(found, 1, axis), atol=1e-4)
    assert np.abs(encoded(np.roll(pixels, 8, axis)) - np.roll(encoded(pixels), 1, axis)).max() > 0.01


@pytest.mark.parametrize("is_gpu", [False, True], ids=["cpu", "gpu's form"])
@pytest.mark.parametrize("axes", ["x", "y", "both"])
@pytest.mark.parametrize(
    "channels, outputs, size, stride",
    [(16, 16, (24, 22), 1), (32, 3, (9, 12), 1), (8, 8, (4, 6), 1), (16, 16, (8, 12), 2), (4, 8, (1, 2), 1)],
    ids=["winograd", "few outputs", "plain", "stride 2", "narrow"],
)
def test_a_convolution_continues_on_the_other_side(channels, outputs, size, stride, axes, is_gpu):
    pytest.importorskip("mlxldm.on_mlx")
    import mlx.core as mx

    from mlxldm.on_mlx.device import form
    from mlxldm.on_mlx.layers import Conv2d

    random = np.random.RandomState(0)
    x, weight = random.randn(2, *size, channels).astype(np.float32), random.randn(outputs, 3, 3, channels)
    conv = Conv2d(channels, outputs, stride=stride)
    conv.weight, conv.bias = mx.array(weight.astype(np.float32)), mx.array(random.randn(outputs).astype(np.float32))
    pads = {axis: "wrap" if axes in (name, "both") else "constant" for axis, name in ((1, "y"), (2, "x"))}
    padded = x
    for axis, mode in pads.items():
        padded = np.pad(padded, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode)
    wanted = sum(
        padded[:, i : i + size[0], j : j + size[1]] @ weight[:, i, j].T for i in range(3) for j in range(3)
    )[:, ::stride, ::stride] + np.array(conv.bias)  # fmt: skip
    with form(is_gpu=is_gpu):
        conv.seamless = axes
        np.testing.assert_allclose(np.array(conv(mx.array(x))), wanted, atol=1e-3)
        conv.seamless = ""
        if min(size) > 1:
            assert np.abs(np.array(conv(mx.array(x))) - wanted).max() > 0.1


def test_metal_has_all_of_it():
    pytest.importorskip("mlxldm.on_mlx")
    import mlx.core as mx
    from golden.make import UNETS, VAE, given
    from test_metal_safe import complaints, primitives

    from mlxldm.config import UNetConfig, VaeConfig
    from mlxldm.on_mlx.device import form
    from mlxldm.on_mlx.layers import Conv2d
    from mlxldm.on_mlx.unet import UNet
    from mlxldm.on_mlx.vae import Vae

    arrays = {name: mx.array(given()[name]) for name in ("latent", "text", "pixels")}
    with form(is_gpu=True):
        unet, vae = UNet(UNetConfig.from_dict(UNETS["sd1"])), Vae(VaeConfig.from_dict(VAE))
        for part in (unet, vae):
            part.set_dtype(mx.float16)
            mx.eval(part.parameters())

        def step(x, text):
            return unet(x, unet.embed(3.0), unet.keys_values(text))

        def encode(x):
            return list(vae.encode(x))

        def wrap(axes):
            for module in (*unet.modules(), *vae.modules()):
                if isinstance(module, Conv2d):
                    module.seamless = axes

        for fn, *names in ((step, "latent", "text"), (vae.decode, "latent"), (encode, "pixels")):
            inputs = [arrays[name] for name in names]
            before = len(primitives(fn, *inputs))
            wrap("both")
            graph = primitives(fn, *inputs)
            wrap("")
            assert len(graph) > before + 10 and complaints(graph, mx.float16) == []


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"seamless": "z"}, "no seamless 'z'"),
        ({"seamless": "x", "width": 72}, "width is 72, .* multiples of 16 only, for example 64"),
        ({"seamless": "both", "height": 72}, "height is 72"),
        ({"seamless": "x", "width": 80, "hires": 1.3}, "width is 104"),
        ({"seamless": "x", "image": "picture.png", "extend": "8,0,0,0"}, "Only whole pictures"),
    ],
)
def test_what_would_have_a_seam_is_refused(tmp_path, wish, words):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    wish = {key: str(tmp_path / value) if key == "image" else value for key, value in wish.items()}
    with pytest.raises(UserError, match=words) as caught:
        resolve(Job(**wish), MANIFEST)
    assert "\n" not in str(caught.value)
    assert resolve(Job(seamless="y", width=72), MANIFEST).width == 72
