"""The first latent diffusion models: each opens from a file of the original code's names, and is what was in it.

The files are made of networks written apart (`compvis.py`). That names and numbers are in their places is shown by
computing: the same input through the network that was written and through diffusers', filled from our view of the file.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import shutil

import numpy as np
import pytest

from mlxldm import hub
from mlxldm.config import (
    KINDS,
    BertConfig,
    ClassEmbedderConfig,
    ClipTextConfig,
    RescalerConfig,
    UNetConfig,
    VaeConfig,
    VqConfig,
)
from mlxldm.errors import UserError
from mlxldm.folder import Manifest, open_folder
from mlxldm.parameters import parameters
from mlxldm.tensors import Tensor, header

pytest.importorskip("torch", reason="needs torch and diffusers: they compute what the files hold")
pytest.importorskip("diffusers", reason="needs torch and diffusers: they compute what the files hold")

import compvis  # noqa: E402
import diffusers  # noqa: E402
import single_files  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from mlxldm_convert import original, view, write  # noqa: E402
from mlxldm_convert.__main__ import main  # noqa: E402
from mlxldm_convert.detect import Wish  # noqa: E402

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def little():
    """For each model its file's tensors and its networks, at small width."""
    return {name: compvis.whole(compvis.little(zoo)) for name, zoo in compvis.ZOO.items()}


@pytest.fixture(scope="module")
def files(little, tmp_path_factory):
    """Each model's file as it was published: some with averaged weights, twice the raw ones here."""
    root = tmp_path_factory.mktemp("zoo")
    found = {}
    for name, zoo in compvis.ZOO.items():
        state = little[name][0] | compvis.tables(zoo)
        if zoo.ema:
            state = single_files.averaged(state, 2.0)
        found[name] = single_files.write(state, root / f"{name}.safetensors")
    return found


def filled(module, folder, part: str):
    """A torch module with the tensors of one of our parts: convolutions back to OIHW, matrices to 1x1 convolutions."""
    state = {}
    for name, value in module.state_dict().items():
        array = folder.read(part, name)
        if array.ndim == 4:
            array = array.transpose(0, 3, 1, 2)
        state[name] = torch.from_numpy(np.ascontiguousarray(array)).reshape(value.shape)
    assert set(state) == set(folder.names(part))
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def built(folder):
    """diffusers' U-Net of a folder."""
    config = folder.manifest.denoiser
    unet = filled(getattr(diffusers, config.diffusers)(**config.to_diffusers()), folder, "denoiser")
    for name, heads in config.picture_attention().items():
        unet.get_submodule(name).heads = heads
    return unet


def built_stage(folder):
    """diffusers' autoencoder of a folder."""
    config = folder.manifest.parts["vae"]
    kind = {"vq": diffusers.VQModel, "kl": diffusers.AutoencoderKL}[config.KIND]
    return filled(kind(**config.to_diffusers()), folder, "vae")


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected, most: float = 1e-4) -> None:
    assert found.shape == expected.shape and expected.std() > 0.1
    assert (found - expected).abs().max() <= most


# ---------------------------------------------------------------------------------------------------------------------
# The same numbers, in their places


@pytest.mark.parametrize("name", compvis.ZOO)
def test_a_unet_computes_what_the_original_does(name, little, files):
    zoo, net = compvis.ZOO[name], little[name][1]["denoiser"]
    unet = built(view(files[name], Wish(family=name, ema=False)))
    text = None if zoo.unet.context is None else drawn(2, 5, 64, seed=1)
    x, t = drawn(2, zoo.unet.takes, 16, 16), torch.tensor([7, 901])
    more = {} if text is None else {"encoder_hidden_states": text}
    with torch.no_grad():
        close(unet(x, t, **more).sample, net(x, t, text))


@pytest.mark.parametrize("name", compvis.FIRST_STAGES)
def test_a_first_stage_computes_what_the_original_does(name, tmp_path):
    net = compvis.seeded(compvis.stage(name, small=True), 3)
    path = single_files.write(net.state_dict(), tmp_path / "m.safetensors")
    stage = built_stage(view(path, Wish(family="ldm-first-stage")))
    with torch.no_grad():
        found = stage.encode(drawn(1, 3, 64, 64))
        z = net.encode(drawn(1, 3, 64, 64))
        close(found.latents if name.startswith("vq") else found.latent_dist.mean, z)
        close(stage.decode(z).sample, net.decode(z))


@pytest.mark.parametrize("name", compvis.FIRST_STAGES)
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_published_first_stage_alone_is_recognised(name, prefix, tmp_path):
    """Codes and latents tell them from all other autoencoders, but for kl-f8, which has the shapes of SD's."""
    with torch.device("meta"):
        state = compvis.stage(name).state_dict() | {"loss.discriminator.main.0.weight": torch.ones(1)}
    path = empty({prefix + key: tuple(value.shape) for key, value in state.items()}, tmp_path / "model.safetensors")
    if name == "kl-f8":
        with pytest.raises(UserError, match="or --family ldm-first-stage"):
            view(path)
    folder = view(path, Wish(family="ldm-first-stage" if name == "kl-f8" else None))
    config, plan = folder.manifest.parts["vae"], compvis.FIRST_STAGES[name]
    assert (folder.manifest.task, folder.manifest.family) == ("part", "ldm-first-stage")
    assert (config.factor, config.latent_channels, config.scaling_factor) == (
        2 ** (len(plan.levels) - 1), plan.latent, 1.0
    )  # fmt: skip
    assert getattr(config, "num_vq_embeddings", 0) == plan.codes
    attends = [i for i, kind in enumerate(config.down_block_types) if kind.startswith("Attn")]
    assert attends == list(plan.attends) and config.mid_block_add_attention == plan.middle
    with pytest.raises(UserError, match="are scaled is in the whole model's file only"):
        view(path, Wish(family="ldm-churches"))


def test_a_first_stage_in_diffusers_names_is_the_same(files, tmp_path):
    source = view(files["ldm-classes"], Wish(family="ldm-classes"))  # vq-f8, which attends in a level
    path = single_files.write(built_stage(source).state_dict(), tmp_path / "m.safetensors")
    folder = view(path)
    assert folder.manifest.parts["vae"].down_block_types == source.manifest.parts["vae"].down_block_types
    for name in source.names("vae"):
        assert np.array_equal(folder.read("vae", name), source.read("vae", name))


@pytest.mark.parametrize("name", ["ldm-uncond", "ldm-churches", "ldm-layout"])
def test_a_unet_alone_is_the_same_in_either_names(name, files, little, tmp_path):
    source = view(files[name], Wish(family=name, ema=False))
    unet = {key.removeprefix(UNET): value for key, value in little[name][0].items() if key.startswith(UNET)}
    for i, state in enumerate((unet, built(source).state_dict())):
        folder = view(single_files.write(state, tmp_path / f"{i}.safetensors"), Wish(family=name))
        assert folder.manifest.task == "part"
        assert folder.manifest.denoiser == source.manifest.denoiser
        for key in source.names("denoiser"):
            assert np.array_equal(folder.read("denoiser", key), source.read("denoiser", key))


@pytest.mark.parametrize("name", ["ldm-text", "ldm-layout"])
def test_berts_text_is_that_of_the_original(name, little, files):
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertEncoder

    folder = view(files[name], Wish(family=name))
    config = folder.manifest.parts["text"]
    assert (config.vocab_size, config.max_position_embeddings, config.num_attention_heads) == (60, 9, 8)
    encoder = LDMBertEncoder(LDMBertConfig(**config.to_diffusers()))
    state = {name.removeprefix("model."): torch.from_numpy(folder.read("text", name)) for name in folder.names("text")}
    encoder.load_state_dict(state)
    ids = torch.tensor([[1, 5, 59, 0, 0, 7, 2, 3, 4]])
    with torch.no_grad():
        close(encoder.eval()(ids).last_hidden_state, little[name][1]["text"].transformer(ids))


def test_the_class_embedder_and_the_rescaler_keep_their_numbers(little, files):
    for name, key in (("ldm-classes", "classes"), ("ldm-classes-v2", "classes"), ("ldm-semantic", "rescaler")):
        folder = view(files[name], Wish(family=name))
        (ours, theirs), = little[name][1][key].state_dict().items()
        assert np.array_equal(folder.read(key, ours), theirs.reshape(theirs.shape[:2]).numpy())
    assert folder.manifest.parts["rescaler"] == RescalerConfig(5, 3, 2)
    # what the config says, computed with another interpolation than the original's
    labels = drawn(1, 5, 16, 16)
    halved = labels.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5))
    quarter = halved.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    mixed = torch.einsum("oi,bihw->bohw", torch.from_numpy(folder.read("rescaler", "channel_mapper.weight")), quarter)
    close(mixed, little["ldm-semantic"][1]["rescaler"](labels).detach())
    empty = [view(files[n], Wish(family=n)).manifest.parts["classes"].empty for n in ("ldm-classes", "ldm-classes-v2")]
    assert empty == [None, 6]


def test_heads_that_are_wrong_would_be_seen(little, files):
    """Query, key and value are cut head by head: another number of heads is another network."""
    net = little["ldm-inpaint"][1]["denoiser"]
    x, t = drawn(1, 7, 16, 16), torch.tensor([500])
    unet = built(view(files["ldm-inpaint"], Wish(family="ldm-inpaint", heads=4, ema=False)))
    with torch.no_grad():
        assert (unet(x, t).sample - net(x, t)).abs().max() > 1e-2


# ---------------------------------------------------------------------------------------------------------------------
# What a file is, and what it says


@pytest.mark.parametrize("name", compvis.ZOO)
def test_a_file_says_what_the_model_is_for_and_how_noise_was_added(name, files):
    zoo = compvis.ZOO[name]
    folder = view(files[name], Wish(family=name))
    manifest, said = folder.manifest, " ".join(folder.report()["why"])
    assert (manifest.family, manifest.task) == (name, zoo.task)
    assert set(manifest.parts) == set(zoo.parts)
    schedule = manifest.schedule
    assert (schedule.beta_schedule, schedule.beta_start, schedule.beta_end) == ("scaled_linear", *zoo.betas)
    assert schedule.prediction == "epsilon" and "alphas_cumprod" in said
    vae = manifest.parts["vae"]
    assert vae.scaling_factor == pytest.approx(zoo.scale, rel=1e-6)
    assert isinstance(vae, VqConfig if zoo.first.startswith("vq") else VaeConfig)
    assert ("averaged weights are used" in said) == zoo.ema
    weight = folder.read("denoiser", "conv_in.bias")
    raw = view(files[name], Wish(family=name, ema=False)).read("denoiser", "conv_in.bias")
    assert np.array_equal(weight, raw * (2 if zoo.ema else 1))
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def empty(shapes: dict[str, tuple[int, ...]], path, **numbers: float):
    """A safetensors file of these shapes that is one hole, but for single `numbers`."""
    tensors = {name: Tensor("F8_E4M3", shape) for name, shape in shapes.items()}
    head = header(tensors | {name: Tensor("F32", ()) for name in numbers}, {"format": "pt"})
    with open(path, "wb") as file:
        file.write(head)
        file.seek(len(head) + sum(math.prod(shape) for shape in shapes.values()))
        file.write(np.array(list(numbers.values()), "<f4").tobytes())
        file.truncate()
    return path


@pytest.mark.parametrize("name", compvis.ZOO)
def test_a_published_model_is_recognised_by_its_shapes_alone(name, tmp_path):
    zoo = compvis.ZOO[name]
    with torch.device("meta"):
        state, _ = compvis.whole(zoo, small=False)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    if zoo.ema:
        shapes |= {"model_ema.diffusion_model" + key[len(UNET) :].replace(".", ""): shape
                   for key, shape in shapes.items() if key.startswith(UNET)}  # fmt: skip
    path = empty(shapes, tmp_path / "model.safetensors", **({"scale_factor": zoo.scale} if zoo.buffer else {}))
    folder = view(path)  # every tensor has its place
    manifest = folder.manifest
    assert (manifest.family, manifest.task) == (name, zoo.task)
    assert manifest.denoiser.heads == tuple(zoo.unet.heads_at(times * zoo.unet.base) for times in zoo.unet.levels)
    plan = compvis.FIRST_STAGES[zoo.first]
    assert manifest.parts["vae"].block_out_channels == tuple(128 * times for times in plan.levels)
    assert manifest.parts["vae"].scaling_factor == pytest.approx(zoo.scale)
    assert manifest.defaults.width == manifest.denoiser.sample_size[0] * manifest.parts["vae"].factor
    said = " ".join(folder.report()["why"])
    assert ("CelebA-HQ, FFHQ and LSUN bedrooms are alike" in said) == (name == "ldm-uncond")
    assert ("needs vocab.txt" in said) == name.startswith("ldm-text")
    assert folder.tokenizer_files() == {}


# Parameters of the U-Nets, in millions
SIZES = {"ldm-uncond": 274.06, "ldm-text": 872.3}


@pytest.mark.parametrize("name", SIZES)
def test_real_sizes_are_those_published(name):
    with torch.device("meta"):
        net = compvis.UNet(compvis.ZOO[name].unet)
    assert sum(value.numel() for value in net.parameters()) / 1e6 == pytest.approx(SIZES[name], rel=2e-4)


def test_what_lies_beside_the_parts_is_left_out_with_a_reason(files, little, tmp_path):
    def ignored(name, more):
        state = little[name][0] | compvis.tables(compvis.ZOO[name]) | more
        path = single_files.write(state, tmp_path / "m.safetensors")
        return view(path, Wish(family=name)).report()

    stage = {f"cond_stage_model.{name.removeprefix('first_stage_model.')}": value.clone()
             for name, value in little["ldm-inpaint"][0].items() if name.startswith("first_stage_model.")}  # fmt: skip
    report = ignored("ldm-inpaint", stage | {"first_stage_model.loss.discriminator.main.0.weight": torch.zeros(1)})
    (name,) = [name for name in report["ignored"] if name.startswith("cond_stage_model.")]
    assert "the first stage a second time" in report["ignored"][name] and f"{len(stage) - 1} more" in name
    assert "training" in report["parts"]["vae"]["ignored"]["loss.discriminator.main.0.weight"]
    assert any("computed" in reason for reason in report["ignored"].values())
    report = ignored("ldm-churches", {"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1)})
    assert "was read" in report["ignored"]["scale_factor"]
    assert any("training" in reason for reason in report["ignored"].values())
    report = ignored("ldm-text", {})
    assert "no use" in report["parts"]["text"]["ignored"]["to_logits.weight"]


def test_the_files_own_table_of_noise_wins_and_must_be_known(little, tmp_path):
    def schedule(alphas, name="ldm-sr"):
        state = little[name][0] | {"alphas_cumprod": alphas}
        return view(single_files.write(state, tmp_path / "m.safetensors"), Wish(family=name)).manifest.schedule

    betas = torch.linspace(0.002**0.5, 0.0175**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    for stored in (alphas, alphas.float()):
        found = schedule(stored)
        assert (found.beta_start, found.beta_end) == (0.002, 0.0175)
    own = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0155**0.5, 1000) ** 2, 0)
    assert schedule(own.half()).beta_end == 0.0155
    for other in (torch.cumprod(1 - torch.linspace(0.002, 0.0175, 1000), 0), own[:900], own * float("nan"), own[:0]):
        with pytest.raises(UserError, match="by a schedule that is not known"):
            schedule(other)


def test_a_scale_in_the_file_wins(little, tmp_path):
    def scale(value, name):
        state = little[name][0] | {"scale_factor": value}
        path = single_files.write(state, tmp_path / "m.safetensors")
        return view(path, Wish(family=name)).manifest.parts["vae"].scaling_factor

    assert scale(torch.tensor(0.22765929), "ldm-churches") == 0.22765929
    assert scale(torch.tensor(0.25, dtype=torch.float64), "ldm-churches") == 0.25
    assert scale(torch.tensor(0.3).half(), "ldm-text") == pytest.approx(0.3, rel=1e-3)
    assert scale(torch.tensor(0.18215).half(), "ldm-text") == 0.18215  # what half precision left of the family's
    with pytest.raises(UserError, match="scaled by nan"):
        scale(torch.tensor(float("nan")), "ldm-churches")
    with pytest.raises(UserError, match="lacks scale_factor"):
        scale(torch.ones(2), "ldm-churches")


def test_berts_words_are_those_that_lie_beside_the_file(little, files, tmp_path):
    path = single_files.write(little["ldm-text256"][0], tmp_path / "m.safetensors")

    def said():
        folder = view(path, Wish(family="ldm-text256"))
        return " ".join(folder.report()["why"]), folder.tokenizer_files()

    why, found = said()
    assert "needs vocab.txt of bert-base-uncased beside it" in why and found == {}
    words = "\n".join(f"word{i}" for i in range(60)) + "\n"
    (tmp_path / "vocab.txt").write_text(words)
    why, found = said()
    assert "are those of vocab.txt beside it" in why and found == {"vocab.txt": words.encode()}
    written = write(view(path, Wish(family="ldm-text256")), tmp_path / "out").path
    assert open_folder(written).tokenizer_files() == found
    (tmp_path / "vocab.txt").write_text("too few\n")
    why, found = said()
    assert "has 1 words, its text encoder 60: it is not used" in why and found == {}
    written = write(view(path, Wish(family="ldm-text256")), tmp_path / "without").path
    assert open_folder(written).tokenizer_files() == {} and not (written / "tokenizer").exists()
    layout = view(files["ldm-layout"], Wish(family="ldm-layout"))
    assert "vocab.txt" not in " ".join(layout.report()["why"])  # boxes come as tokens


# ---------------------------------------------------------------------------------------------------------------------
# Written and read again


@pytest.mark.parametrize(
    "name", ["ldm-uncond", "ldm-churches", "ldm-inpaint", "ldm-semantic", "ldm-layout", "ldm-classes-v2", "ldm-text"]
)
def test_what_the_converter_writes_is_what_the_file_holds(name, files, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(files[name]), str(out), "--family", name, "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    source, written = view(files[name], Wish(family=name)), open_folder(out)
    single_files.same(source, written)
    for part, config in source.manifest.parts.items():
        checked = report["parts"][part]["verified"]
        assert checked["tensors"] == checked["equal"] == len(parameters(config))
    manifest = json.loads((out / "model.json").read_text())
    assert {part: manifest["parts"][part]["kind"] for part in manifest["parts"]} == {
        part: config.KIND for part, config in source.manifest.parts.items()
    }
    assert report["parts"]["denoiser"].get("split", 0) == 6 * len(source.manifest.denoiser.picture_attention())


@pytest.mark.parametrize("name", ["ldm-churches", "ldm-layout", "ldm-semantic"])
def test_only_what_may_be_is_quantized(name, files, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(files[name]), str(out), "--family", name, "--quantize", "8", "--verify", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)["parts"]
    folder = open_folder(out)
    assert set(folder.groups("vae")) == set() and verified["denoiser"]["verified"]["quantized"] > 10
    for part in set(folder.manifest.parts) - {"denoiser"}:
        for matrix in folder.groups(part):
            assert part == "text" and "embed" not in matrix
    assert bool(folder.groups("text")) if name == "ldm-layout" else True


# ---------------------------------------------------------------------------------------------------------------------
# diffusers' folders of them


PIPELINES = {"ldm-text": "LDMTextToImagePipeline", "ldm-sr": "LDMSuperResolutionPipeline", "ldm-uncond": "LDMPipeline"}


@pytest.fixture(scope="module")
def folders(files, tmp_path_factory):
    """The three folders, as today's diffusers writes them, with a BERT of other numbers than `ldm-text`'s file."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
    from transformers import BertTokenizer

    root, found = tmp_path_factory.mktemp("folders"), {}
    words = [*"[PAD] [UNK] [CLS] [SEP] [MASK]".split(), *(f"word{i}" for i in range(55))]
    (root / "vocab.txt").write_text("\n".join(words))
    for name, kind in PIPELINES.items():
        source = view(files[name], Wish(family=name))
        start, end = compvis.ZOO[name].betas
        more = {}
        if name == "ldm-text":
            bert = LDMBertModel(LDMBertConfig(**source.manifest.parts["text"].to_diffusers()))
            more = {"bert": bert, "tokenizer": BertTokenizer(str(root / "vocab.txt"))}
        pipe = getattr(diffusers, kind)(
            unet=built(source), vqvae=built_stage(source), **more,
            scheduler=diffusers.DDIMScheduler(beta_start=start, beta_end=end, beta_schedule="scaled_linear"),
        )  # fmt: skip
        pipe.save_pretrained(root / name)
        found[name] = root / name
    return found


def changed(source, path, file: str, **changes):
    """A copy of a folder with keys of one JSON file changed; None takes them away."""
    copy = shutil.copytree(source, path)
    values = json.loads((copy / file).read_text()) | changes
    (copy / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return copy


@pytest.mark.parametrize("name", PIPELINES)
def test_a_folder_and_a_file_of_one_model_agree(name, files, folders):
    file, folder = view(files[name], Wish(family=name)), view(folders[name])
    ours, theirs = file.manifest, folder.manifest
    assert (theirs.family, theirs.task) == (name, compvis.ZOO[name].task) == (ours.family, ours.task)
    assert set(theirs.parts) == set(ours.parts)
    for part in ("denoiser", "vae"):
        assert folder.names(part) == file.names(part)
        for tensor in file.names(part):
            assert np.array_equal(folder.read(part, tensor), file.read(part, tensor)), (part, tensor)
    same = "block_out_channels down_block_types up_block_types heads mid_block_type cross_attention_dim downsample_type"
    assert all(getattr(ours.denoiser, key) == getattr(theirs.denoiser, key) for key in same.split())
    assert (theirs.schedule.beta_start, theirs.schedule.beta_end) == compvis.ZOO[name].betas
    assert Manifest.from_json(json.loads(json.dumps(theirs.to_json()))) == theirs
    if name == "ldm-text":
        assert theirs.parts["text"] == ours.parts["text"] and "tokenizer.json" in folder.tokenizer_files()
        assert "to_logits.weight" in folder.report()["parts"]["text"]["ignored"]


def test_a_folder_is_written_and_verified(folders, tmp_path, capsys):
    for name, path in folders.items():
        assert main([str(path), str(tmp_path / name), "--verify", "--json"]) == 0
        single_files.same(view(path), open_folder(tmp_path / name))
        assert json.loads(capsys.readouterr().out)["family"] == name
    assert "tokenizer.json" in open_folder(tmp_path / "ldm-text").tokenizer_files()


def test_a_folder_of_2022_is_understood(folders, tmp_path):
    """PyTorch's own files, other names of the attention, keys that were forgotten since."""
    old = changed(folders["ldm-uncond"], tmp_path / "old", "scheduler/scheduler_config.json", tensor_format="pt",
                  _class_name="DDIMScheduler")  # fmt: skip
    attention = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for part in ("unet", "vqvae"):
        (path,) = (old / part).glob("*.safetensors")
        state = {}
        for name, value in load_file(path).items():
            head, _, last = name.rpartition(".")
            found = next((new for new in attention if ".attentions." in name and head.endswith(f".{new}")), None)
            state[f"{head.removesuffix(found)}{attention[found]}.{last}" if found else name] = value
        path.unlink()
        torch.save(state, old / part / "diffusion_pytorch_model.bin")
    before, today = view(old), view(folders["ldm-uncond"])
    for part in ("denoiser", "vae"):
        assert before.names(part) == today.names(part)
        assert all(np.array_equal(before.read(part, name), today.read(part, name)) for name in today.names(part))


def test_latents_with_codes_are_scaled_by_one_unless_it_is_said(folders, tmp_path):
    def scale(number, **changes):
        path = changed(folders["ldm-uncond"], tmp_path / str(number), "vqvae/config.json", **changes)
        folder = view(path)
        return folder.manifest.parts["vae"].scaling_factor, " ".join(folder.report()["why"])

    assert scale(1)[0] == 1.0
    found, why = scale(2, scaling_factor=None)
    assert found == 1.0 and "is not said: by 1" in why
    assert scale(3, scaling_factor=0.18215)[0] == 0.18215  # of no published size: what it says


def test_a_folder_of_a_published_size_is_told_by_its_unet(folders, tmp_path):
    """The U-Net of CelebA-HQ in diffusers' names, as one hole, with what diffusers writes of its scale."""
    path = changed(folders["ldm-uncond"], tmp_path / "m", "vqvae/config.json", scaling_factor=0.18215)
    with torch.device("meta"):
        unet = diffusers.UNet2DModel(attention_head_dim=32, sample_size=64)
    (path / "unet" / "config.json").write_text(unet.to_json_string())
    (file,) = (path / "unet").glob("*.safetensors")
    empty({name: tuple(value.shape) for name, value in unet.state_dict().items()}, file)
    folder = view(path)
    why = " ".join(folder.report()["why"])
    assert "LDM unconditional, 256 pixels" in why and "scaled by 1, not by 0.18215" in why
    assert folder.manifest.parts["vae"].scaling_factor == 1.0
    assert folder.manifest.defaults.width == 256 and folder.manifest.denoiser.heads == (7, 14, 21, 28)


def test_a_folder_that_is_not_whole_or_not_known_is_refused(folders, tmp_path):
    def said(number, name, file="model_index.json", **changes):
        with pytest.raises(UserError) as error:
            view(changed(folders[name], tmp_path / str(number), file, **changes))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "pipelines with a vqvae this version reads" in said(1, "ldm-uncond", _class_name="VQDiffusionPipeline")
    assert "has no bert" in said(2, "ldm-text", bert=None)
    assert "no such pipeline has" in said(3, "ldm-uncond", unet=["diffusers", "Transformer2DModel"])
    assert "no such pipeline has" in said(4, "ldm-uncond", safety_checker=["x", "Y"])
    assert "no such model has" in said(5, "ldm-uncond", bert=["latent_diffusion", "LDMBertModel"])
    assert "for super-resolution it would take 6" in said(6, "ldm-uncond", _class_name="LDMSuperResolutionPipeline")
    assert "text of width 64, but its text encoders give 128" in said(7, "ldm-text", "bert/config.json", d_model=128)
    assert "middle without attention" in said(8, "ldm-text", unet=["diffusers", "UNet2DModel"])
    with pytest.raises(UserError, match="but --family says ldm-sr"):
        view(folders["ldm-uncond"], Wish(family="ldm-sr"))


def test_a_component_in_a_folder_of_its_own_opens(folders, tmp_path):
    whole = view(folders["ldm-uncond"])
    for component, part in (("unet", "denoiser"), ("vqvae", "vae")):
        copy = shutil.copytree(folders["ldm-uncond"] / component, tmp_path / component)
        folder = view(copy, Wish(family="ldm-uncond" if part == "denoiser" else None))
        assert folder.manifest.task == "part" and folder.manifest.parts == {part: whole.manifest.parts[part]}
        assert folder.names(part) == whole.names(part)
        with pytest.raises(UserError, match="of single components this version reads"):
            view(changed(copy, tmp_path / f"{component} of no class", "config.json", _class_name=[1]))


def test_what_is_pulled_of_such_a_repository():
    folder = {"bert": "config.json pytorch_model.bin", "scheduler": "scheduler_config.json",
              "tokenizer": "special_tokens_map.json tokenizer_config.json vocab.txt",
              "unet": "config.json diffusion_pytorch_model.bin", "vqvae": "config.json diffusion_pytorch_model.bin"}
    names = [f"{part}/{name}" for part, some in folder.items() for name in some.split()] + ["model_index.json"]
    assert set(hub.needed([*names, "README.md", "unet/diffusion_flax_model.msgpack"])) == {*names, "README.md"}
    files = ["model.ckpt", "vocab.txt", "model.yaml", "other.txt"]
    assert set(hub.needed(files, "model.ckpt")) == {"model.ckpt", "vocab.txt", "model.yaml"}


def test_random_damage_to_a_folders_configs_gives_a_sentence_or_a_model(folders):
    rng = random.Random(0)
    junk = [None, True, -1, 0, 1.5, 1 << 70, "", "resnet", [], [[1]], {}, {"a": 1}, [32] * 4, ["DownBlock2D"] * 4]
    files = [path for folder in folders.values() for path in sorted(folder.rglob("*config.json"))]
    files += [folder / "model_index.json" for folder in folders.values()]
    for _ in range(300):
        path = rng.choice([path for path in files if "tokenizer" not in path.parts])
        before = path.read_text()
        values = json.loads(before)
        values[rng.choice([*values, "add_attention", "num_class_embeds", "heads"])] = rng.choice(junk)
        path.write_text(json.dumps(values))
        try:
            view(next(folder for folder in folders.values() if path.is_relative_to(folder)))
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500
        path.write_text(before)


# ---------------------------------------------------------------------------------------------------------------------
# Configs


CONFIGS = [
    UNetConfig.from_dict({"_class_name": "UNet2DModel", "downsample_type": "resnet", "upsample_type": "resnet",
                          "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32}),
    UNetConfig.from_dict({"_class_name": "UNet2DModel", "sample_size": 64, "num_class_embeds": 5,
                          "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"],
                          "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"],
                          "block_out_channels": [32, 64, 96], "attention_head_dim": None, "layers_per_block": 1}),
    VqConfig.from_dict({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], "vq_embed_dim": 6,
                        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], "latent_channels": 4,
                        "block_out_channels": [32, 64], "num_vq_embeddings": 9, "mid_block_add_attention": False}),
    VaeConfig.from_dict({"down_block_types": ["AttnDownEncoderBlock2D"], "up_block_types": ["AttnUpDecoderBlock2D"]}),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_implies_the_parameters_that_diffusers_builds(config):
    name = {"unet": getattr(config, "diffusers", ""), "kl": "AutoencoderKL", "vq": "VQModel"}[config.KIND]
    with torch.device("meta"):
        module = getattr(diffusers, name)(**config.to_diffusers())
    shapes = {key: (s[:2] if s[2:] == (1, 1) else (s[0], *s[2:], s[1])) if len(s) == 4 else s
              for key, s in ((key, tuple(value.shape)) for key, value in module.state_dict().items())}  # fmt: skip
    assert parameters(config) == shapes
    assert KINDS[config.KIND].from_dict(json.loads(json.dumps(config.to_dict()))) == config
    saved = dict(module.config)
    if config.KIND == "unet":
        saved["_class_name"] = name
    assert KINDS[config.KIND].from_dict(json.loads(json.dumps(saved))) == config


def test_heads_of_a_unet_without_text_are_a_size_in_diffusers():
    assert CONFIGS[0].heads == (28, 56, 84, 112) and CONFIGS[1].heads == (1, 1, 1)
    with torch.device("meta"):
        unet = diffusers.UNet2DModel(attention_head_dim=32)
    for name, heads in UNetConfig.from_dict({**unet.config, "_class_name": "UNet2DModel"}).picture_attention().items():
        assert unet.get_submodule(name).heads == heads


def test_berts_config_is_read_as_transformers_saves_it(tmp_path):
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    LDMBertConfig(d_model=64, encoder_layers=3, head_dim=16, encoder_ffn_dim=100).save_pretrained(tmp_path)
    config = BertConfig.from_transformers(json.loads((tmp_path / "config.json").read_text()))
    assert config == BertConfig(30522, 64, 100, 3, 8, 16)
    with torch.device("meta"):
        model = LDMBertModel(LDMBertConfig(**config.to_diffusers()))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if "to_logits" not in name}
    assert parameters(config) == shapes
    for key, value in (("activation_function", "relu"), ("scale_embedding", True), ("hidden_size", 65)):
        with pytest.raises(UserError):
            BertConfig.from_transformers({"d_model": 64, key: value})


@pytest.mark.parametrize(
    "kind, values",
    [
        (UNetConfig, {"_class_name": "UNet2DModel", "add_attention": False}),
        (UNetConfig, {"_class_name": "UNet2DModel", "resnet_time_scale_shift": "scale_shift"}),
        (UNetConfig, {"_class_name": "UNet2DModel", "attn_norm_num_groups": 8}),
        (UNetConfig, {"_class_name": "UNet2DModel", "time_embedding_type": "learned", "num_train_timesteps": 10}),
        (UNetConfig, {"_class_name": "UNet2DModel", "attention_head_dim": 0}),
        (UNetConfig, {"_class_name": "UNet2DModel", "down_block_types": ["CrossAttnDownBlock2D"] * 4}),
        (UNetConfig, {"_class_name": "UNet2DModel", "block_out_channels": 7}),
        (UNetConfig, {"down_block_types": ["AttnDownBlock2D"] * 4}),
        (UNetConfig, {"downsample_type": "resnet"}),
        (UNetConfig, {"cross_attention_dim": []}),
        (VqConfig, {"num_vq_embeddings": 0}),
        (VqConfig, {"lookup_from_codebook": True}),
        (VqConfig, {"norm_type": "spatial"}),
        (BertConfig, {"num_hidden_layers": 1000}),
        (BertConfig, {"pad_token_id": 30522}),
        (ClassEmbedderConfig, {"empty": 1000}),
        (RescalerConfig, {"method": "nearest"}),
        (RescalerConfig, {"stages": 99}),
    ],
)
def test_a_config_that_would_be_drawn_wrong_is_refused(kind, values):
    with pytest.raises(UserError) as error:
        kind.from_dict(values)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Files that are none of these


def refused(state, path, **wish) -> str:
    with pytest.raises(UserError) as error:
        view(single_files.write(state, path), Wish(**wish))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_parts_that_do_not_belong_together_are_refused(little, tmp_path):
    path = tmp_path / "m.safetensors"
    state = little["ldm-uncond"][0]
    assert "no known family" in refused(state, path) and "--family" in refused(state, path)
    assert "reads no text" in refused({**state, **{"cond_stage_model.embedding.weight": torch.ones(7, 64)}}, path,
                                      family="ldm-classes-v2")  # fmt: skip
    assert "without the classes" in refused(state, path, family="ldm-classes-v2")
    assert "takes 6 and gives 3" in refused(state, path, family="ldm-sr")
    assert "which is none" in refused(state, path, family="ldm-first-stage")
    semantic = little["ldm-semantic"][0]
    wrong = {**semantic, "cond_stage_model.channel_mapper.weight": torch.ones(4, 5, 1, 1)}
    assert "its rescaler gives 4" in refused(wrong, path, family="ldm-semantic")
    flat = {**semantic, "cond_stage_model.channel_mapper.weight": torch.ones(3, 5)}
    assert "no usable channel_mapper.weight" in refused(flat, path, family="ldm-semantic")
    text = {name: value for name, value in little["ldm-text"][0].items() if "pos_emb" not in name}
    assert "lacks its embeddings" in refused(text, path, family="ldm-text")
    wide = {**little["ldm-classes"][0], "cond_stage_model.embedding.weight": torch.ones(7, 65)}
    assert "give 65" in refused(wide, path, family="ldm-classes")


def test_a_clip_is_no_bert(tmp_path):
    shapes = parameters(ClipTextConfig(hidden_size=768, num_hidden_layers=1))
    path = empty(shapes, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match="is a CLIP text encoder, but that of LDM text-to-image"):
        view(path, Wish(family="ldm-text"))


def test_a_tensor_that_is_missing_or_too_many_is_named(little, tmp_path):
    path = tmp_path / "m.safetensors"
    state = dict(little["ldm-churches"][0]) | compvis.tables(compvis.ZOO["ldm-churches"])
    gone = {name: value for name, value in state.items() if name != f"{UNET}middle_block.1.proj_out.bias"}
    assert "lacks 1 of the denoiser's" in refused(gone, path, family="ldm-churches")
    more = {**state, f"{UNET}input_blocks.1.1.extra": torch.ones(1)}
    assert "input_blocks.1.1.extra" in refused(more, path, family="ldm-churches")
    cut = {**state, f"{UNET}middle_block.1.qkv.weight": torch.ones(96, 128, 1)}
    assert "expected [384, 128, 1]" in refused(cut, path, family="ldm-churches")
    one = {name: value for name, value in state.items() if not name.startswith(f"{UNET}input_blocks.1.1.")}
    assert "some blocks attend and others do not" in refused(one, path, family="ldm-churches")
    assert "heads" in refused(state, path, family="ldm-churches", heads=7)


def test_random_names_and_shapes_give_a_sentence_or_a_model(little, tmp_path):
    rng = random.Random(0)
    states = {name: {key: tuple(value.shape) for key, value in state.items()} for name, (state, _) in little.items()}
    for _ in range(100):
        name = rng.choice(list(states))
        found = dict(states[name])
        for _ in range(rng.choice([1, 1, 2, 20])):
            key = rng.choice(list(found))
            shape, kept = found.pop(key), rng.random()
            if kept > 0.3:
                number = str(rng.choice([0, 1, 5, 11, 99, 1000, 10**20]))
                other = re.sub(r"\d+", lambda m: m[0] if rng.random() < 0.6 else number, key)  # noqa: B023
                found[other] = tuple(n if rng.random() < 0.8 else rng.choice([0, 1, 3, 33, 64]) for n in shape)
        try:
            view(empty(found, tmp_path / "m.safetensors", **({"scale_factor": 1.0} if "churches" in name else {})),
                 Wish(family=rng.choice([name, name, None, *compvis.ZOO])))  # fmt: skip
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500


def test_names_with_large_numbers_make_no_long_loops(little):
    shapes = {name.removeprefix(UNET): Tensor("F32", tuple(value.shape))
              for name, value in little["ldm-inpaint"][0].items() if name.startswith(UNET)}  # fmt: skip
    for name in ("input_blocks.999999999999.0.op.weight", "output_blocks.99999999999.1.in_layers.0.weight",
                 "input_blocks.999.0.in_layers.2.weight"):  # fmt: skip
        original_or_error(original.unet, {**shapes, name: Tensor("F32", (32,))}, 8, None)
    for function, name in (
        (original.vae, "encoder.down.99999999999.block.0.conv1.weight"),
        (original.bert, "attn_layers.layers.99999999999.1.to_q.weight"),
        (original.vae, "encoder.down.98.block.0.conv1.weight"),
    ):
        original_or_error(function, {name: Tensor("F32", (32, 3, 3, 3))})


def original_or_error(function, *arguments):
    with contextlib.suppress(UserError):
        function(*arguments)
