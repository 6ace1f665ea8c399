"""The first latent diffusion models on both backends: what the original networks compute, from files with their names.

The networks are those of `compvis.py`, written apart; the files go through `view` and `backend.load`, as a person's do.
All in float32, little; the last test prints the largest errors, each against the largest number of what was expected.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from conftest import has

from mlxldm import backend
from mlxldm.errors import UserError

pytestmark = pytest.mark.skipif(not has("mlx"), reason="MLX is missing")
pytest.importorskip("torch", reason="needs torch and diffusers: they compute what is expected")
pytest.importorskip("diffusers", reason="needs torch and diffusers: they compute what is expected")

import compvis  # noqa: E402
import single_files  # noqa: E402
import torch  # noqa: E402

from mlxldm_convert import view  # noqa: E402
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


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """`zoo(name)`: the networks of a little model by their parts; `zoo(name, backend)`: the model from its file."""
    root, networks, models = tmp_path_factory.mktemp("zoo"), {}, {}

    def get(name: str, which: str | None = None):
        family, path = name.split()[0], root / name / "model.safetensors"
        if name not in networks:
            state, networks[name] = compvis.whole(compvis.little(MODELS[name]))
            path.parent.mkdir()
            single_files.write(state | compvis.tables(MODELS[name]), path)
            (path.parent / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        if which is None:
            return networks[name]
        if (name, which) not in models:
            models[name, which] = backend.load(view(path, Wish(family=family)), which, "cpu", "float32")
        return models[name, which]

    return get


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
    with pytest.raises(UserError, match="too long"):
        zoo(name, "mlx").encode_text("a red house " * 5, None, 64, 64)
    with pytest.raises(UserError, match="negative prompt is too long"):
        zoo(name, "torch").encode_text("a", "a red house " * 5, 64, 64)


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


def test_the_largest_errors():
    """For people: run with -s."""
    assert worst
    print()
    for what, (off, name) in sorted(worst.items()):
        print(f"  {what}: {off:.1e} at worst ({name})")
