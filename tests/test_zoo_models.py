"""The first latent diffusion models on both backends: what the original networks compute, from files with their names.

The networks are those of `compvis.py`, written apart; the files go through `view` and `backend.load`, as a person's do.
All in float32, little; the last test prints the largest errors, each against the largest number of what was expected.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from weights import psnr

from mlxldm import backend
from mlxldm.errors import UserError
from mlxldm.folder import open_folder

pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")
pytest.importorskip("torch", reason="needs torch and diffusers: they compute what is expected")
pytest.importorskip("diffusers", reason="needs torch and diffusers: they compute what is expected")

import mlxldm.on_mlx  # noqa: E402, F401, I001  (before mlx.core: brings the fast BLAS)
import mlx.core as mx  # noqa: E402
import compvis  # noqa: E402
import single_files  # noqa: E402
import torch  # noqa: E402

from mlxldm.on_mlx.device import form  # noqa: E402
from mlxldm.on_mlx.layers import PackedLinear, PictureAttention  # noqa: E402
from mlxldm.on_mlx.model import fill, pad_heads  # noqa: E402
from mlxldm.on_mlx.unet import UNet  # noqa: E402
from mlxldm.on_mlx.vae import Codes  # noqa: E402
from mlxldm.on_torch.model import nearest  # noqa: E402
from mlxldm_convert import view, write  # noqa: E402
from mlxldm_convert.detect import Wish  # noqa: E402

BACKENDS = ("mlx", "torch")
ENOUGH, APART = 1e-4, 1e-2  # errors of what is the same; of what is not
WORDS = [*"[PAD] [UNK] [CLS] [SEP] [MASK] a red house dusk ##s".split(), *map(chr, range(0x3B1, 0x3E3))]

# each first stage in a model of its own: the U-Net is of little account
STAGES = {
    f"ldm-uncond with {name}": replace(
        compvis.ZOO["ldm-uncond"],
        first=name,
        unet=replace(compvis.ZOO["ldm-uncond"].unet, takes=plan.latent, gives=plan.latent, levels=(1,), attends=()),
    )
    for name, plan in compvis.FIRST_STAGES.items()
}
MODELS = compvis.ZOO | STAGES


class Zoo:
    """Little models: their networks by parts, their files, and what the backends make of these; each made once."""

    def __init__(self, root: Path):
        self.root, self.networks, self.models = root, {}, {}

    def file(self, name: str) -> Path:
        return self.root / name / "model.safetensors"

    def __call__(self, name: str, which: str | None = None, precision: str = "float32"):
        """The networks; or the model of a backend."""
        if name not in self.networks:
            state, self.networks[name] = compvis.whole(compvis.little(MODELS[name]))
            self.file(name).parent.mkdir()
            single_files.write(state | compvis.tables(MODELS[name]), self.file(name))
            (self.root / name / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        if which is None:
            return self.networks[name]
        key = name, which, precision
        if key not in self.models:
            folder = view(self.file(name), Wish(family=name.split()[0]))
            self.models[key] = backend.load(folder, which, "cpu", precision)
        return self.models[key]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


worst: dict[str, tuple[float, str]] = defaultdict(lambda: (0.0, ""))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, in parts of the largest number expected."""
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def same(what: str, name: str, found: dict[str, np.ndarray], expected: np.ndarray) -> None:
    """Both backends found what was expected, and one what the other did."""
    pairs = {which: (found[which], expected) for which in BACKENDS} | {"mlx and torch": tuple(found.values())}
    for which, pair in pairs.items():
        off = error(*pair)
        worst[f"{what}, {which}"] = max(worst[f"{what}, {which}"], (off, name))
        assert off <= ENOUGH, f"{name}, {what}, {which}: {off:.1e}"


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


# ---------------------------------------------------------------------------------------------------------------------
# The U-Nets


@pytest.mark.parametrize("name", compvis.ZOO)
def test_a_unet_guesses_what_the_original_does(name, zoo):
    plan, net = MODELS[name].unet, zoo(name)["denoiser"]
    reads = plan.context is not None
    x, more = drawn(1, 16, 32, plan.gives), drawn(1, 16, 32, plan.takes - plan.gives, seed=1)
    told, without = drawn(1, 5, 64, seed=2), drawn(1, 5, 64, seed=3)

    def original(x, more, text, t=321.0):
        text = torch.from_numpy(text) if reads else None
        return nhwc(net(nchw(np.concatenate([x, more], axis=-1)), torch.tensor([t]), text))

    def guesses(which, text, without, x=x, more=more, t=321.0):
        model = zoo(name, which)
        cond = model.condition(*(None if c is None or not reads else model.array(c) for c in (text, without)))
        both = model.predict(model.array(x), t, cond, model.array(more) if more.shape[-1] else None)
        return [None if guess is None else model.numpy(guess) for guess in both]

    found = {which: guesses(which, told, without) for which in BACKENDS}
    expected = original(x, more, told)
    same("U-Net", name, {which: both[0] for which, both in found.items()}, expected)
    if reads:
        same("U-Net", name, {which: both[1] for which, both in found.items()}, original(x, more, without))
        assert error(found["mlx"][0], found["mlx"][1]) > APART
    # the smallest and another picture, another time, no guidance
    x, more = drawn(1, 16, 16, plan.gives, seed=4), drawn(1, 16, 16, plan.takes - plan.gives, seed=5)
    found = {which: guesses(which, told, None, x, more, 7.0) for which in BACKENDS}
    assert all(none is None for _, none in found.values())
    same("U-Net", name, {which: both[0] for which, both in found.items()}, original(x, more, told, 7.0))
    later = guesses("mlx", told, None, x, more, 900.0)[0]
    assert error(later, found["mlx"][0]) > APART
    if more.shape[-1]:
        assert error(guesses("mlx", told, None, x, more * 0, 7.0)[0], found["mlx"][0]) > APART


# ---------------------------------------------------------------------------------------------------------------------
# The first stages


@pytest.mark.parametrize("name", [*STAGES, *compvis.ZOO])
def test_a_first_stage_encodes_and_decodes_as_the_original_does(name, zoo):
    net, config = zoo(name)["vae"], zoo(name, "mlx").manifest.vae
    wide = MODELS[name].first.startswith("kl")
    pixels = drawn(1, 2 * config.factor, 3 * config.factor, 3)
    mean, deviation, decoded = {}, {}, {}
    with torch.no_grad():
        encoded = net.quant_conv(net.encoder(nchw(pixels)))
        expected = nhwc(encoded[:, : net.latent]) * np.float32(config.scaling_factor)
        picture = nhwc(net.decode(nchw(expected / np.float32(config.scaling_factor))))
    for which in BACKENDS:
        model = zoo(name, which)
        mean[which], deviation[which] = map(model.numpy, model.encode_image(model.array(pixels)))
        decoded[which] = model.numpy(model.decode(model.array(expected)))
        if not wide:
            assert not deviation[which].any()
        other = model.numpy(model.decode(model.array(expected + 1)))
        assert error(other, decoded[which]) > APART
    same("encoder", name, mean, expected)
    same("decoder", name, decoded, picture)
    if wide:
        spread = nhwc(torch.exp(0.5 * encoded[:, net.latent :].clamp(-30, 20))) * np.float32(config.scaling_factor)
        same("encoder's deviation", name, deviation, spread)


def test_a_latent_is_decoded_as_the_nearest_code(zoo):
    """Each place becomes a code: moving it a little changes nothing, moving it to another code is that code."""
    name = "ldm-uncond with vq-f4"
    table = zoo(name)["vae"].quantize.embedding.weight.numpy()
    codes = table[np.random.RandomState(0).randint(0, len(table), (1, 3, 5))]
    for which in BACKENDS:
        model = zoo(name, which)
        exact = model.numpy(model.decode(model.array(codes)))
        near = model.numpy(model.decode(model.array(codes + 1e-3 * drawn(*codes.shape))))
        far = model.numpy(model.decode(model.array(codes[:, ::-1].copy())))
        assert np.array_equal(near, exact) and error(far, exact) > APART


# ---------------------------------------------------------------------------------------------------------------------
# What a picture is to be of


@pytest.mark.parametrize("name", ["ldm-text", "ldm-text256"])
def test_a_prompt_is_read_as_the_original_does(name, zoo):
    net, prompt = zoo(name), "red houses, a dusk"
    ids = [2, 6, 7, 9, 1, 5, 8, 3, 0]  # 9 places; the comma is no word of the little vocabulary
    expected = net["text"].transformer(torch.tensor([ids])).numpy()
    same("BERT", name, {w: (m := zoo(name, w)).numpy(m.text_states(prompt)) for w in BACKENDS}, expected)
    empty = net["text"].transformer(torch.tensor([[2, 3] + [0] * 7]))
    x, found = drawn(1, 8, 8, MODELS[name].unet.takes), {}
    for which in BACKENDS:
        model = zoo(name, which)
        cond = model.encode_text(prompt, "", 64, 64)
        found[which] = [model.numpy(guess) for guess in model.predict(model.array(x), 500.0, cond)]
    for i, text in enumerate((torch.from_numpy(expected), empty)):
        guess = nhwc(net["denoiser"](nchw(x), torch.tensor([500.0]), text))
        same("prompt and U-Net", name, {which: both[i] for which, both in found.items()}, guess)
    for which in BACKENDS:  # what is too long for it at once is read in chunks
        model = zoo(name, which)
        longer = model.numpy(model.text_states("a red house " * 5))
        assert longer.shape[1] > expected.shape[1] and longer.shape[1] % expected.shape[1] == 0


def test_tokens_of_a_layout_are_read_as_the_original_does(zoo):
    name, ids = "ldm-layout", [59, 3, 17, 0, 22, 41, 5]
    expected = zoo(name)["text"].transformer(torch.tensor([ids])).numpy()
    found = {which: (model := zoo(name, which)).numpy(model.embed_ids(ids)) for which in BACKENDS}
    same("BERT", name, found, expected)
    for which in BACKENDS:
        model = zoo(name, which)
        assert error(model.numpy(model.embed_ids(ids[::-1])), found[which]) > APART
        for bad in ([60], [-1], [0] * 10, []):
            with pytest.raises(UserError, match="it reads 1 to 9, which are numbers from 0 to 59"):
                model.embed_ids(bad)


@pytest.mark.parametrize("name", ["ldm-classes", "ldm-classes-v2"])
def test_a_class_stands_where_a_text_would(name, zoo):
    net = zoo(name)
    x, found, guesses = drawn(1, 8, 8, MODELS[name].unet.takes), {}, {}
    for which in BACKENDS:
        model = zoo(name, which)
        told, without = model.embed_class(3), model.embed_class(6)
        found[which] = model.numpy(told)
        cond = model.condition(told, without)
        guesses[which] = [model.numpy(guess) for guess in model.predict(model.array(x), 500.0, cond)]
        for bad in (7, -1):
            with pytest.raises(UserError, match=f"There is no class {bad}: .* from 0 to 6"):
                model.embed_class(bad)
    same("classes", name, found, net["classes"](torch.tensor([3])).numpy())
    for i, label in enumerate((3, 6)):
        text = net["classes"](torch.tensor([label]))
        guess = nhwc(net["denoiser"](nchw(x), torch.tensor([500.0]), text))
        same("class and U-Net", name, {which: both[i] for which, both in guesses.items()}, guess)


def test_a_map_of_labels_is_made_as_small_as_the_latents(zoo):
    name = "ldm-semantic"
    for shape in ((64, 96), (37, 46)):  # the second does not halve evenly
        labels = np.eye(5, dtype=np.float32)[np.random.RandomState(1).randint(0, 5, (1, *shape))]
        found = {which: (model := zoo(name, which)).numpy(model.rescale(model.array(labels))) for which in BACKENDS}
        same("rescaler", name, found, nhwc(zoo(name)["rescaler"](nchw(labels))))


# ---------------------------------------------------------------------------------------------------------------------
# Other numbers, and wrong ones


def asked(model, name: str) -> dict[str, np.ndarray]:
    """What the parts of a model make of fixed inputs."""
    plan, factor = MODELS[name].unet, model.manifest.vae.factor
    x, more = drawn(1, 16, 16, plan.gives), drawn(1, 16, 16, plan.takes - plan.gives, seed=1)
    told = model.array(drawn(1, 5, 64, seed=2)) if plan.context else None
    more = model.array(more) if more.shape[-1] else None
    found = {
        "U-Net": model.predict(model.array(x), 321.0, model.condition(told, None), more)[0],
        "encoder": model.encode_image(model.array(drawn(1, 2 * factor, 4 * factor, 3)))[0],
        "decoder": model.decode(model.array(drawn(1, 4, 8, model.manifest.vae.latent_channels))),
    }
    if name == "ldm-layout":
        found["text"] = model.embed_ids([4, 5, 6, 7])
    if name.startswith("ldm-classes"):
        found["class"] = model.embed_class(2)
    if name == "ldm-semantic":
        found["labels"] = model.rescale(model.array(drawn(1, 64, 64, 5)))
    return {what: model.numpy(array) for what, array in found.items()}


@pytest.mark.parametrize("which", BACKENDS)
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["ldm-churches", "ldm-inpaint", "ldm-semantic", "ldm-layout", "ldm-classes"])
def test_half_precision_is_near_and_float32_outside(name, precision, which, zoo):
    exact, near = asked(zoo(name, which), name), asked(zoo(name, which, precision), name)
    for what, array in near.items():
        assert array.dtype == np.float32 and psnr(array, exact[what]) >= 35, what
    assert not np.array_equal(near["U-Net"], exact["U-Net"])


@pytest.mark.parametrize("name", ["ldm-churches", "ldm-layout"])
def test_quantized_it_is_nearly_the_same_on_both(name, zoo, tmp_path):
    folder = quantized(zoo, name, tmp_path / "quantized")
    exact = asked(zoo(name, "mlx"), name)
    found = {which: asked(backend.load(folder, which, "cpu", "float32"), name) for which in BACKENDS}
    for what, array in exact.items():
        assert psnr(found["mlx"][what], array) >= 30, what
        assert error(found["mlx"][what], found["torch"][what]) <= ENOUGH, what
    assert not np.array_equal(found["mlx"]["U-Net"], exact["U-Net"])


def quantized(zoo, name: str, out):
    zoo(name)
    write(view(zoo.file(name), Wish(family=name)), out, bits=8, group=32)
    return open_folder(out)


@pytest.mark.parametrize("name", ["ldm-uncond", "ldm-inpaint", "ldm-text"])
def test_packed_and_padded_as_on_a_gpu_a_unet_computes_the_same(name, zoo, tmp_path):
    folder = quantized(zoo, name, tmp_path / "quantized")
    plain, packed = (fill(UNet(folder.manifest.denoiser), folder, "denoiser", mx.float32, way) for way in (False, True))
    alone = [attention for attention in packed.attentions() if isinstance(attention, PictureAttention)]
    assert bool(alone) == (name != "ldm-text")
    heads = {attention.head for attention in packed.attentions()}
    pad_heads(packed, (24, 64))
    assert {attention.head for attention in packed.attentions()} != heads
    assert all(isinstance(attention.to_q, PackedLinear) for attention in alone)
    plan = MODELS[name].unet
    x, told = mx.array(drawn(1, 8, 8, plan.takes)), mx.array(drawn(1, 5, 64))
    expected = plain(x, plain.embed(321.0), plain.keys_values(told))
    with form(is_gpu=True):
        found = packed(x, packed.embed(321.0), packed.keys_values(told))
    # the weights were rounded to float16 when they were dequantized
    assert error(np.array(found), np.array(expected)) <= 5e-3


@pytest.mark.parametrize("name", ["ldm-classes", "ldm-sr"])
def test_in_one_batch_as_on_a_gpu_the_guesses_are_the_same(name, zoo, monkeypatch):
    model, plan = zoo(name, "mlx"), MODELS[name].unet
    x, more = model.array(drawn(1, 8, 8, plan.gives)), model.array(drawn(1, 8, 8, plan.takes - plan.gives))
    told = [model.array(drawn(1, 1, 64, seed=i)) if plan.context else None for i in (1, 2)]

    def guesses() -> list[np.ndarray]:
        both = model.predict(x, 321.0, model.condition(*told), more if more.size else None)
        return [model.numpy(guess) for guess in both if guess is not None]

    expected = guesses()
    monkeypatch.setattr(model, "_gpu", True)
    with form(is_gpu=True):
        found = guesses()
    assert len(found) == len(expected) == (2 if plan.context else 1)
    assert max(map(error, found, expected)) <= ENOUGH


def test_the_nearest_of_many_codes_is_the_nearest():
    """As many codes as are published, so that the places are cut; against float64."""
    x, table = drawn(2, 30, 40, 3), drawn(8192, 3, seed=1)
    flat = x.reshape(-1, 1, 3).astype(np.float64)
    expected = np.concatenate([((part - table) ** 2).sum(-1).min(-1) for part in np.split(flat, 24)])
    codes = Codes(8192, 3)
    codes.embedding.weight = mx.array(table)
    found = {"torch": nearest(torch.from_numpy(x), torch.from_numpy(table)).numpy()}
    for is_gpu in (False, True):
        with form(is_gpu):
            found[f"mlx {is_gpu}"] = np.array(codes(mx.array(x)))
    rows = {row.tobytes() for row in table}
    for which, array in found.items():
        assert array.shape == x.shape and {row.tobytes() for row in array.reshape(-1, 3)} <= rows, which
        distances = ((array.reshape(-1, 3).astype(np.float64) - flat[:, 0]) ** 2).sum(-1)
        assert np.abs(distances - expected).max() <= 1e-5, which


class Changed:
    """A folder in which a tensor is gone, or one is too many."""

    def __init__(self, folder, part: str, gone: str | None = None, more: str | None = None):
        self.folder, self.part, self.gone, self.more = folder, part, gone, more

    def names(self, part: str):
        names = dict(self.folder.names(part))
        if part == self.part:
            if self.more:
                names[self.more] = next(iter(names.values()))
            names.pop(self.gone, None)
        return names

    def __getattr__(self, name: str):
        return getattr(self.folder, name)


@pytest.mark.parametrize("which", BACKENDS)
@pytest.mark.parametrize(
    ("name", "part", "tensor"),
    [
        ("ldm-uncond", "denoiser", "mid_block.attentions.0.to_k.bias"),
        ("ldm-uncond", "vae", "quantize.embedding.weight"),
        ("ldm-churches", "denoiser", "up_blocks.0.upsamplers.0.time_emb_proj.weight"),
        ("ldm-layout", "text", "model.embed_positions.weight"),
        ("ldm-classes", "vae", "decoder.up_blocks.0.attentions.1.group_norm.weight"),
        ("ldm-classes", "classes", "embedding.weight"),
        ("ldm-semantic", "rescaler", "channel_mapper.weight"),
    ],
)
def test_a_weight_that_is_gone_or_too_many_is_named(name, part, tensor, which, zoo):
    zoo(name)
    folder = view(zoo.file(name), Wish(family=name))
    short = tensor.removeprefix("model.")  # transformers' and our names differ by that
    with pytest.raises(UserError, match=rf"{part} .*: (model\.)?{short};"):
        backend.load(Changed(folder, part, gone=tensor), which, "cpu", "float32")
    with pytest.raises(UserError, match=f"{part} .*: more.weight;"):
        backend.load(Changed(folder, part, more="more.weight"), which, "cpu", "float32")


def test_text_without_its_words_is_refused_with_what_to_do(zoo, tmp_path):
    zoo("ldm-text")
    path = shutil.copy(zoo.file("ldm-text"), tmp_path / "alone.safetensors")
    for which in BACKENDS:
        with pytest.raises(UserError, match=r"lay vocab.txt of bert-base-uncased .* beside the checkpoint"):
            backend.load(view(path, Wish(family="ldm-text")), which, "cpu", "float32")


def test_memory_counts_every_part_and_unload_lets_go(zoo):
    for name in ("ldm-semantic", "ldm-layout", "ldm-classes"):
        zoo(name)
        folder = view(zoo.file(name), Wish(family=name))
        numbers = sum(int(np.prod(t.shape)) for part in folder.manifest.parts for t in folder.names(part).values())
        for which in BACKENDS:
            model = backend.load(folder, which, "cpu", "float32")
            # torch's own form of a few biases: two in one
            assert 0.99 * 4 * numbers <= model.memory()["weights"] <= 4 * numbers
            model.unload()
            assert model.memory()["weights"] == 0


def test_the_largest_errors():
    """For people: run with -s."""
    assert worst
    print()
    for what, (off, name) in sorted(worst.items()):
        print(f"  {what}: {off:.1e} at worst ({name})")
