"""The torch backend's parts against diffusers' and transformers' own, and its strict loading."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import needs_torch

from mlxldm.errors import UserError

pytestmark = needs_torch

PROMPT, NEGATIVE = "a red house at dusk", "snow"


@pytest.fixture(scope="module", autouse=True)
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    """`loaded(kind, layout, precision)`: a model on the CPU, once."""
    from mlxldm import on_torch
    from mlxldm_convert import view

    models: dict = {}

    def get(kind="sd1", layout="today", precision="float32"):
        key = (kind, layout, precision)
        if key not in models:
            models[key] = on_torch.load(view(tiny_folder(kind, layout)), "cpu", precision)
        return models[key]

    return get


@pytest.fixture(scope="module")
def theirs():
    import tiny

    made: dict = {}

    def get(kind="sd1"):
        if kind not in made:
            made[kind] = tiny.KINDS[kind]()
        return made[kind]

    return get


class Edited:
    """A folder with some tensors changed, removed (None) or added."""

    def __init__(self, folder, part, **changes):
        self.folder, self.part, self.changes = folder, part, changes
        self.manifest = folder.manifest

    def names(self, part):
        names = dict(self.folder.names(part))
        if part == self.part:
            for name, array in self.changes.items():
                if array is None:
                    del names[name]
                else:
                    names[name] = dataclasses.replace(next(iter(names.values())), shape=array.shape)
        return names

    def read(self, part, name):
        if part == self.part and name in self.changes:
            return self.changes[name]
        return self.folder.read(part, name)

    def __getattr__(self, name):
        return getattr(self.folder, name)


@pytest.mark.parametrize("layout", ["hub", "today"])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_text(kind, layout, loaded, theirs, torch):
    pipe, model = theirs(kind), loaded(kind, layout)
    cond = model.encode_text(PROMPT, NEGATIVE, 64, 96)
    if kind == "sdxl":
        prompt, negative, pooled, pooled_negative = pipe.encode_prompt(PROMPT, negative_prompt=NEGATIVE, device="cpu")
        torch.testing.assert_close(cond.added["text_embeds"], torch.cat([pooled, pooled_negative]))
        assert cond.added["time_ids"].tolist() == [[96, 64, 0, 0, 96, 64]] * 2
    else:
        prompt, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt=NEGATIVE)
    torch.testing.assert_close(cond.context, torch.cat([prompt, negative]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["sd1", "sd1-v", "sd2", "sdxl"])
def test_unet(kind, loaded, theirs, torch):
    model, unet = loaded(kind), theirs(kind).unet
    cond = model.encode_text(PROMPT, NEGATIVE, 96, 64)
    x = torch.randn(1, 8, 12, 4, generator=torch.Generator().manual_seed(0))
    got = torch.cat(model.predict(x, 321.5, cond))
    with torch.no_grad():
        twice = x.permute(0, 3, 1, 2).repeat(2, 1, 1, 1)
        wanted = unet(twice, 321.5, cond.context, added_cond_kwargs=cond.added).sample
    assert got.dtype == torch.float32 and got.shape == (2, 8, 12, 4)
    torch.testing.assert_close(got, wanted.permute(0, 2, 3, 1), atol=2e-5, rtol=0)


def test_without_a_negative_prompt_there_is_one_row(loaded, torch):
    model = loaded()
    x = torch.randn(1, 8, 8, 4, generator=torch.Generator().manual_seed(0))
    both = model.predict(x, 10.0, model.encode_text(PROMPT, NEGATIVE, 64, 64))
    alone, nothing = model.predict(x, 10.0, model.encode_text(PROMPT, None, 64, 64))
    assert nothing is None
    torch.testing.assert_close(alone, both[0], atol=2e-5, rtol=0)


def test_autoencoder(loaded, theirs, torch):
    model, vae = loaded(), theirs().vae
    numbers = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 64, 96, 3, generator=numbers) * 2 - 1
    factor = vae.config.scaling_factor
    with torch.no_grad():
        wanted = vae.encode(pixels.permute(0, 3, 1, 2)).latent_dist
        mean, std = model.encode_image(pixels)
        torch.testing.assert_close(mean, wanted.mean.permute(0, 2, 3, 1) * factor, atol=1e-5, rtol=0)
        torch.testing.assert_close(std, wanted.std.permute(0, 2, 3, 1) * factor, atol=1e-5, rtol=0)
        latent = torch.randn(1, 8, 12, 4, generator=numbers)
        picture = vae.decode(latent.permute(0, 3, 1, 2) / factor).sample.permute(0, 2, 3, 1)
    torch.testing.assert_close(model.decode(latent), picture, atol=5e-5, rtol=0)


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_upsampling_in_bands_is_upsampling(rows, torch, monkeypatch):
    from diffusers.models.upsampling import Upsample2D

    from mlxldm.on_torch import blocks

    torch.manual_seed(0)
    theirs = Upsample2D(6, use_conv=True).requires_grad_(False)
    x = torch.randn(2, 6, 8, 5).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(blocks, "BAND", rows * 2 * 4 * 6 * 5 * 4)
    torch.testing.assert_close(blocks.Upsample(theirs)(x), theirs(x))


@pytest.mark.parametrize("groups", [1, 4, 12, 24])
@pytest.mark.parametrize("act", [False, True])
def test_a_norm_is_the_same_in_its_own_memory_and_in_another(groups, act, torch):
    from mlxldm.on_torch import blocks

    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(groups, 24).requires_grad_(False)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, add = torch.randn(2, 24, 5, 7).contiguous(memory_format=torch.channels_last), torch.randn(2, 24)
    wanted = norm(x + add[:, :, None, None])
    wanted = torch.nn.functional.silu(wanted) if act else wanted
    own, before = blocks.NormAct(norm, act), x.clone()
    torch.testing.assert_close(own(x, add), wanted)
    assert torch.equal(x, before)
    found = own(x, add, spend=True)
    torch.testing.assert_close(found, wanted)
    assert found.data_ptr() == x.data_ptr()


def test_convolutions_are_channels_last_views_of_what_was_read(loaded, torch):
    model = loaded()
    convolutions = [m for part in (model._unet, model._vae) for m in part.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) > 20
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)


def test_bfloat16_keeps_the_interface_in_float32(loaded, torch):
    exact, rough = loaded(), loaded(precision="bfloat16")
    x = torch.randn(1, 8, 8, 4, generator=torch.Generator().manual_seed(0))
    a, _ = exact.predict(x, 500.0, exact.encode_text(PROMPT, NEGATIVE, 64, 64))
    b, _ = rough.predict(x, 500.0, rough.encode_text(PROMPT, NEGATIVE, 64, 64))
    assert b.dtype == torch.float32
    assert 0 < (a - b).square().mean().sqrt() / a.std() < 0.03
    assert rough.decode(x).dtype == rough.encode_image(torch.zeros(1, 64, 64, 3))[0].dtype == torch.float32
    assert rough.memory()["weights"] < 0.6 * exact.memory()["weights"]


def test_arrays_go_in_and_out(loaded):
    model = loaded()
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 5))
    assert np.array_equal(model.numpy(model.array(x) * 2.0), (x.astype(np.float32) * 2))


@pytest.mark.parametrize(
    "part, changes, words",
    [
        ("denoiser", {"conv_in.bias": None}, ["denoiser lacks", "conv_in.bias"]),
        ("vae", {"extra.weight": np.zeros(3, np.float32)}, ["vae has unknown", "extra.weight"]),
        ("denoiser", {"conv_in.bias": np.zeros(7, np.float32)}, ["conv_in.bias", "(7,)"]),
        ("text", {"text_model.final_layer_norm.bias": None}, ["text lacks", "final_layer_norm.bias"]),
    ],
)
def test_what_is_missing_or_left_over_is_named(tiny_folder, part, changes, words):
    from mlxldm import on_torch
    from mlxldm_convert import view

    with pytest.raises(UserError) as caught:
        on_torch.load(Edited(view(tiny_folder()), part, **changes), "cpu", "float32")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_device_that_is_not_here(tiny_folder):
    from mlxldm import on_torch
    from mlxldm_convert import view

    for name in ("cuda:99", "warp"):
        with pytest.raises(UserError, match=name):
            on_torch.load(view(tiny_folder()), name, "float32")


def test_probe():
    from mlxldm import on_torch

    facts = on_torch.probe()
    assert facts["name"] == "torch" and facts["devices"][-1] == "cpu" and facts["device"] in facts["devices"]


def test_unload_lets_go(tiny_folder):
    import gc
    import weakref

    from mlxldm import on_torch
    from mlxldm_convert import view

    model = on_torch.load(view(tiny_folder()), "cpu", "float32")
    weight = weakref.ref(model._unet.conv_in.weight)
    model.unload()
    gc.collect()
    assert weight() is None


def test_kernels_agree_with_torch(torch):
    from mlxldm.on_torch import kernels

    if not torch.cuda.is_available():
        pytest.skip("Triton's kernels need an NVIDIA GPU")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert kernels.usable(torch.device("cuda", 0), dtype), dtype


def test_a_captured_call_follows_its_inputs(tiny_folder, torch):
    from mlxldm import on_torch
    from mlxldm_convert import view

    if not torch.cuda.is_available():
        pytest.skip("CUDA graphs need an NVIDIA GPU")
    folder = view(tiny_folder())
    fast, slow = on_torch.load(folder, "cuda", "float32"), on_torch.load(folder, "cpu", "float32")
    numbers = torch.Generator().manual_seed(0)
    jobs = ((PROMPT, NEGATIVE, 8), ("a boat", NEGATIVE, 8), ("a boat", None, 8), (PROMPT, "sea", 8), (PROMPT, None, 8))
    jobs += ((PROMPT, "sea", 12),)
    for prompt, negative, size in jobs:
        x = torch.randn(1, size, 8, 4, generator=numbers)
        for timestep in (900.0, 7.5):
            got = fast.predict(x.cuda(), timestep, fast.encode_text(prompt, negative, 64, 8 * size))
            wanted = slow.predict(x, timestep, slow.encode_text(prompt, negative, 64, 8 * size))
            for a, b in zip(got, wanted, strict=True):
                assert (a is None) == (b is None)
                if b is not None:
                    torch.testing.assert_close(a.cpu(), b, atol=1e-3, rtol=0)
    assert fast._captured, "the graph was not used"


def test_a_cpu_gets_bfloat16_where_that_was_measured_to_be_fast(monkeypatch, torch):
    from mlxldm.on_torch import build

    cpu = torch.device("cpu")
    for gain, wanted in ((2.0, torch.bfloat16), (1.0, torch.float32)):
        monkeypatch.setattr(build, "bfloat16_gain", lambda gain=gain: gain)
        assert build._dtype(cpu, "auto")[0] == wanted
        assert build._dtype(cpu, "float32")[0] == torch.float32
    monkeypatch.undo()
    assert 0.1 < build.bfloat16_gain() < 100


def test_only_the_autoencoder_that_overflows_is_kept_in_float32(tiny_folder, torch):
    from mlxldm.on_torch import build
    from mlxldm_convert import view

    manifests = {kind: view(tiny_folder(kind)).manifest for kind in ("sd1", "sdxl")}
    assert build._vae_dtype(manifests["sd1"], torch.float16) == torch.float16
    assert build._vae_dtype(manifests["sdxl"], torch.float16) == torch.float32
    assert build._vae_dtype(manifests["sdxl"], torch.bfloat16) == torch.bfloat16
