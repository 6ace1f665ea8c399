"""The other layouts of Stable Diffusion: each opens from a file and from a folder, alike, and says what it is for."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from mlxldm.config import ClipTextConfig, ControlNetConfig, UNetConfig, VaeConfig
from mlxldm.errors import UserError
from mlxldm.folder import Manifest, open_folder
from mlxldm.generate import resolve
from mlxldm.job import Job
from mlxldm.parameters import parameters
from mlxldm.tensors import Tensor, header

pytest.importorskip("torch", reason="needs torch and diffusers, which build the checkpoints")
pytest.importorskip("diffusers", reason="needs diffusers, which builds the checkpoints")

import single_files  # noqa: E402
import test_gguf  # noqa: E402
import torch  # noqa: E402
import weights  # noqa: E402

from mlxldm_convert import names, original, single, view, write  # noqa: E402
from mlxldm_convert.__main__ import main  # noqa: E402
from mlxldm_convert.detect import Wish, detect  # noqa: E402

# kind: (family, task, prediction)
KINDS = {
    "sd1-inpaint": ("sd1", "inpaint", "epsilon"),
    "sd1-edit": ("sd1", "edit", "epsilon"),
    "sd2-inpaint": ("sd2", "inpaint", "epsilon"),
    "sd2-depth": ("sd2", "depth", "epsilon"),
    "sdxl-inpaint": ("sdxl", "inpaint", "epsilon"),
    "sdxl-edit": ("sdxl", "edit", "epsilon"),
    "ssd-1b": ("sdxl", "text-to-image", "epsilon"),
    "vega": ("sdxl", "text-to-image", "epsilon"),
    "sdxl-refiner": ("sdxl-refiner", "refine", "epsilon"),
    "upscaler": ("upscaler", "upscale", "v"),
}
FEWER_LAYERS = ("ssd-1b", "vega")  # drawn with as SDXL is


@pytest.fixture(scope="module")
def pipes():
    return {kind: single_files.pipeline(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def files(pipes, tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    return {kind: single_files.write(single_files.original(pipe), root / f"{kind}.safetensors")
            for kind, pipe in pipes.items()}  # fmt: skip


@pytest.fixture(scope="module")
def folders(pipes, tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {kind: single_files.folder(pipe, kind, root / kind) for kind, pipe in pipes.items()}


def modules(pipe) -> dict:
    texts = [text for text in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if text is not None]
    return {"denoiser": pipe.unet, "vae": pipe.vae} | dict(zip(("text", "text_2"), texts, strict=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_holds_the_pipeline_and_says_what_it_is_for(kind, pipes, files):
    family, task, prediction = KINDS[kind]
    folder = view(files[kind], Wish(family=kind))
    manifest = folder.manifest
    assert (manifest.family, manifest.task, manifest.schedule.prediction) == KINDS[kind]
    assert set(manifest.parts) == set(modules(pipes[kind]))
    single_files.holds(folder, modules(pipes[kind]))
    said = " ".join(folder.report()["why"])
    assert "--family" in said and "attention heads" in said


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_reads_the_same_numbers_in_the_file(kind, pipes, files, folders):
    import diffusers

    for cls, part in ((diffusers.UNet2DConditionModel, "unet"), (diffusers.AutoencoderKL, "vae")):
        read = cls.from_single_file(str(files[kind]), config=str(folders[kind]), subfolder=part)
        wanted = getattr(pipes[kind], part).state_dict()
        assert read.state_dict().keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in read.state_dict().items())


def test_diffusers_reads_the_refiners_text_encoder_in_the_file(pipes, files):
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from safetensors.torch import load_file

    encoder = pipes["sdxl-refiner"].text_encoder_2
    read = convert_open_clip_checkpoint(encoder, load_file(files["sdxl-refiner"]), "conditioner.embedders.0.model.")
    wanted = encoder.state_dict()
    assert all(torch.equal(read[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_and_a_file_of_one_model_agree(kind, pipes, files, folders):
    file, folder = view(files[kind], Wish(family=kind)), view(folders[kind])
    assert (folder.manifest.family, folder.manifest.task) == KINDS[kind][:2]
    for part in file.manifest.parts:
        assert file.names(part) == folder.names(part)
        for name in file.names(part):
            assert np.array_equal(file.read(part, name), folder.read(part, name)), (part, name)
    ours, theirs = file.manifest.denoiser, folder.manifest.denoiser
    fields = "heads down_block_types mid_block_type up_block_types uneven_layers_down uneven_layers_up"
    for name in (fields + " num_class_embeds use_linear_projection addition_time_embed_dim").split():
        assert getattr(ours, name) == getattr(theirs, name), name
    for config in (ours, theirs):  # what our config says is what diffusers builds
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            built = UNet2DConditionModel(**config.to_diffusers())
        shapes = {name: value.shape for name, value in pipes[kind].unet.state_dict().items()}
        assert {name: value.shape for name, value in built.state_dict().items()} == shapes
    assert file.manifest.low_scale == folder.manifest.low_scale
    assert (file.manifest.low_scale is not None) == (kind == "upscaler")
    skips = [(m.manifest.text.skip, m.manifest.text.projection_dim) for m in (file, folder)]
    assert skips[0] == skips[1]
    assert file.tokenizer_files(1) and folder.tokenizer_files(1)
    pads = [m.manifest.text.pad_token_id == 0 for m in (file, folder)]  # "!" in either vocabulary
    assert pads == [kind in ("sd2-inpaint", "sd2-depth", "sdxl-refiner", "upscaler")] * 2


@pytest.mark.parametrize("kind", ["sd1-inpaint", "ssd-1b", "sdxl-refiner", "upscaler"])
def test_what_is_written_reads_back_with_its_task(kind, files, tmp_path):
    source = view(files[kind], Wish(family=kind))
    written = open_folder(write(source, tmp_path / kind).path)
    single_files.same(source, written)
    found, given = written.manifest, source.manifest
    assert (found.family, found.task, found.low_scale) == (given.family, given.task, given.low_scale)
    assert Manifest.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("kind", FEWER_LAYERS)
def test_a_model_from_which_layers_were_taken_away_takes_a_job(kind, files):
    manifest = view(files[kind], Wish(family=kind)).manifest
    assert resolve(Job(prompt="x"), manifest).sampler == manifest.defaults.sampler


@pytest.mark.parametrize("kind", ["sdxl-edit", "sdxl-refiner", "upscaler"])
def test_a_model_that_wants_a_picture_says_so_in_a_sentence(kind, files):
    manifest = view(files[kind], Wish(family=kind)).manifest
    with pytest.raises(UserError, match="give (it|one) with --image") as error:
        resolve(Job(prompt="x"), manifest)
    assert "\n" not in str(error.value) and manifest.name in str(error.value)


def test_what_does_not_belong_to_the_parts_is_left_out_with_a_reason(files, folders):
    ignored = view(files["sd2-depth"], Wish(family="sd2-depth")).report()["ignored"]
    assert "MiDaS" in ignored["depth_model.model.pretrained.cls_token"]
    assert "low_scale_model.betas" in view(files["upscaler"], Wish(family="upscaler")).report()["ignored"]
    assert "MiDaS" in view(folders["sd2-depth"]).report()["ignored"]["depth_estimator"]


def test_the_upscalers_own_schedule_is_read_in_the_file(pipes, tmp_path):
    state = single_files.original(pipes["upscaler"])
    state["low_scale_model.betas"] = torch.linspace(0.0002**0.5, 0.03**0.5, 1000) ** 2
    folder = view(single_files.write(state, tmp_path / "a.safetensors"), Wish(family="upscaler"))
    assert (folder.manifest.low_scale.beta_start, folder.manifest.low_scale.beta_end) == (0.0002, 0.03)
    state["low_scale_model.betas"] = torch.linspace(0.0002, 0.03, 1000)
    with pytest.raises(UserError, match="schedule that is not known"):
        view(single_files.write(state, tmp_path / "b.safetensors"), Wish(family="upscaler"))
    del state["low_scale_model.betas"]
    folder = view(single_files.write(state, tmp_path / "c.safetensors"), Wish(family="upscaler"))
    assert folder.manifest.low_scale.beta_end == 0.02 and "the family's own" in " ".join(folder.report()["why"])


def test_the_family_may_be_said_for_all_of_its_layouts(files):
    assert view(files["sd1-inpaint"], Wish(family="sd1")).manifest.task == "inpaint"
    assert view(files["sdxl-edit"], Wish(family="sdxl")).manifest.task == "edit"
    with pytest.raises(UserError, match="9 input and 4 output channels .* but InstructPix2Pix .* takes 8"):
        view(files["sd1-inpaint"], Wish(family="sd1-edit"))


def test_other_programs_shapes_of_linear_maps_are_understood(pipes, tmp_path):
    state = single_files.original(pipes["sdxl-inpaint"])
    four = {name: value[..., None, None] if "transformer_blocks" not in name and ".proj_" in name and value.ndim == 2
            else value
            for name, value in state.items()}  # fmt: skip
    plain, cpp = (
        view(single_files.write(these, tmp_path / f"{i}.safetensors"), Wish(family="sdxl"))
        for i, these in enumerate((state, four))
    )
    single_files.same(plain, cpp)


def test_marks_of_what_would_be_drawn_wrong_are_refused(pipes, tmp_path):
    state = single_files.original(pipes["sdxl-inpaint"])
    unet = "model.diffusion_model."
    for name in ("scaled_fp8", "out.2.scale_weight"):
        path = single_files.write({**state, unet + name: torch.zeros(1)}, tmp_path / "m.safetensors")
        with pytest.raises(UserError, match="float8"):
            view(path, Wish(family="sdxl"))


# The real sizes, as headers of files without any numbers in them

L = {"vocab_size": 49408}
H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, **L}
G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, **L}
CLIP_L, OPEN_H = ("clip", ClipTextConfig(**L)), ("openclip", ClipTextConfig(**H))
OPEN_G = ("openclip", ClipTextConfig(**G, projection_dim=1280))
VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
       "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}  # fmt: skip
VAE_F4 = {**VAE, "block_out_channels": [128, 256, 512], "down_block_types": ["DownEncoderBlock2D"] * 3,
          "up_block_types": ["UpDecoderBlock2D"] * 3}  # fmt: skip
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
SD1 = {"cross_attention_dim": 768}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
XL = {
    "block_out_channels": [320, 640, 1280], "down_block_types": [PLAIN, CROSS, CROSS],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
FEWER = {"mid_block_type": "UNetMidBlock2D"}
REAL = {
    "sd1": ([CLIP_L], SD1, VAE),
    "sd1-inpaint": ([CLIP_L], {**SD1, "in_channels": 9}, VAE),
    "sd1-edit": ([CLIP_L], {**SD1, "in_channels": 8}, VAE),
    "sd2": ([OPEN_H], SD2, VAE),
    "sd2-inpaint": ([OPEN_H], {**SD2, "in_channels": 9}, VAE),
    "sd2-depth": ([OPEN_H], {**SD2, "in_channels": 5}, VAE),
    "sdxl": ([CLIP_L, OPEN_G], XL, VAE),
    "sdxl-inpaint": ([CLIP_L, OPEN_G], {**XL, "in_channels": 9}, VAE),
    "sdxl-edit": ([CLIP_L, OPEN_G], {**XL, "in_channels": 8}, VAE),
    "ssd-1b": ([CLIP_L, OPEN_G], {**XL, **FEWER, "transformer_layers_per_block": [1, [2, 2], [4, 4]],
                                  "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]}, VAE),
    "vega": ([CLIP_L, OPEN_G], {**XL, **FEWER, "transformer_layers_per_block": [1, 1, 2]}, VAE),
    "sdxl-refiner": ([OPEN_G], {
        **XL, "block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24],
        "down_block_types": [PLAIN, CROSS, CROSS, PLAIN], "transformer_layers_per_block": 4,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 2560,
    }, VAE),
    "upscaler": ([OPEN_H], {
        "in_channels": 7, "block_out_channels": [256, 512, 512, 1024], "down_block_types": [PLAIN, CROSS, CROSS, CROSS],
        "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"], "cross_attention_dim": 1024,
        "only_cross_attention": [True, True, True, False], "num_class_embeds": 1000, "use_linear_projection": True,
    }, VAE_F4),
}  # fmt: skip
# Parameters of the published U-Nets, in millions
SIZES = {"sd1": 859.5, "sd2": 865.9, "sdxl": 2567.5, "sdxl-refiner": 2259.5, "upscaler": 473.4, "ssd-1b": 1300}


def shapes_of(config, name_of, prefix: str) -> dict[str, tuple[int, ...]]:
    found = {}
    for ours, shape in parameters(config).items():
        theirs, cut = name_of(ours, config)
        found[prefix + theirs] = tuple(names._theirs(shape, cut))
    return found


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of the kind's published file, in the original's names."""
    texts, unet, vae = REAL[kind]
    found = shapes_of(UNetConfig.from_dict(unet), original.unet_name, "model.diffusion_model.")
    found |= shapes_of(VaeConfig.from_dict(vae), original.vae_name, "first_stage_model.")
    for i, (form, config) in enumerate(texts):
        inner = "transformer." if form == "clip" else "model."
        prefix = f"conditioner.embedders.{i}.{inner}" if "sdxl" in single.table_of(kind)["family"] else (
            f"cond_stage_model.{inner}")  # fmt: skip
        found |= shapes_of(config, original.clip_name if form == "clip" else original.openclip_name, prefix)
    return found


def empty(found: dict[str, tuple[int, ...]], path):
    """A safetensors file of these shapes that is one hole."""
    tensors = {name: Tensor("F8_E4M3", shape) for name, shape in found.items()}
    head = header(tensors, {"format": "pt"})
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(math.prod(shape) for shape in found.values()))
    return path


@pytest.mark.parametrize("kind", REAL)
def test_a_published_layout_is_recognised_by_its_shapes_alone(kind, tmp_path):
    path = empty(shapes(kind), tmp_path / "model.safetensors")
    found = detect(path, Wish(prediction="epsilon"))
    table = single.table_of(kind)
    assert (found.manifest.family, found.manifest.task) == (table["family"], table["task"])
    assert any(reason.startswith(table["title"]) for reason in found.why)
    wanted = UNetConfig.from_dict(REAL[kind][1])
    assert parameters(found.manifest.denoiser) == parameters(wanted)
    assert found.manifest.denoiser.heads == wanted.heads
    size = sum(math.prod(shape) for shape in parameters(wanted).values()) / 1e6
    assert size == pytest.approx(SIZES.get(kind, size), rel=0.03 if kind == "ssd-1b" else 2e-4)
    view(path, Wish(prediction="epsilon"))  # every tensor has its place


# Parts alone


def alone(path) -> str:
    with pytest.raises(UserError) as error:
        view(path)
    assert "\n" not in str(error.value)
    return str(error.value)


PLAIN = lambda name, config: (name, "")  # noqa: E731


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "", "diffusion_model.", "unet."])
def test_a_unet_alone_opens_in_either_names(kind, prefix, tmp_path):
    config = UNetConfig.from_dict(REAL[kind][1])
    table = single.table_of(kind)
    for i, name_of in enumerate((original.unet_name, PLAIN)):
        path = empty(shapes_of(config, name_of, prefix), tmp_path / f"{i}.safetensors")
        folder = view(path, Wish(prediction="epsilon"))
        manifest = folder.manifest
        assert (manifest.family, manifest.task, list(manifest.parts)) == (table["family"], "part", ["denoiser"])
        found = manifest.denoiser
        assert parameters(found) == parameters(config) and found.heads == config.heads
        assert found.only_cross_attention[1:3] == config.only_cross_attention[1:3]
        assert {name: t.shape for name, t in folder.names("denoiser").items()} == parameters(config)
        with pytest.raises(UserError, match=r"a part of one \(U-Net\)"):
            resolve(Job(prompt="x"), manifest)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_an_autoencoder_alone_opens_once_its_family_is_said(prefix, tmp_path):
    for config, family in ((VaeConfig.from_dict(VAE), "sdxl"), (VaeConfig.from_dict(VAE_F4), "upscaler")):
        for i, name_of in enumerate((original.vae_name, PLAIN)):
            path = empty(shapes_of(config, name_of, prefix), tmp_path / f"{i}-{family}.safetensors")
            said = alone(path)
            assert "how its latents are scaled is in no such file" in said and "--family sdxl" in said
            manifest = view(path, Wish(family=family)).manifest
            assert (manifest.task, list(manifest.parts)) == ("part", ["vae"])
            assert parameters(manifest.vae) == parameters(config)
            assert manifest.vae.scaling_factor == {"sdxl": 0.13025, "upscaler": 0.08333}[family]


def test_a_text_encoder_alone_opens_in_either_names(tmp_path):
    bare = lambda name, config: (name.removeprefix("text_model."), "")  # noqa: E731
    for form, config, family, part in ((*CLIP_L, "sd1", "text"), (*OPEN_H, "sd2", "text"), (*OPEN_G, "sdxl", "text_2")):
        own = original.clip_name if form == "clip" else original.openclip_name
        for prefix in ("", "cond_stage_model.model.", "text_encoder."):
            for i, name_of in enumerate((own, PLAIN, bare)):
                if "cond" in prefix and i:
                    continue
                whole = {} if prefix else {"visual.conv1.weight": (8, 3, 2, 2), "logit_scale": ()}
                path = empty(shapes_of(config, name_of, prefix) | whole, tmp_path / f"{i}.safetensors")
                folder = view(path)
                manifest = folder.manifest
                assert (manifest.family, manifest.task, list(manifest.parts)) == (family, "part", [part])
                assert len(folder.report()["ignored"]) == len(whole)
                found = manifest.parts[part]
                assert (found.hidden_size, found.projection_dim) == (config.hidden_size, config.projection_dim)
                assert found.hidden_act == ("quick_gelu" if form == "clip" else "gelu")
                assert found.skip == (-2 if family == "sdxl" else -1)
                assert folder.tokenizer_files(2 if part == "text_2" else 1)


def test_a_part_alone_holds_the_numbers_of_its_file_and_is_written(pipes, tmp_path):
    pipe = pipes["sdxl-inpaint"]
    for part, module, family in (("denoiser", pipe.unet, "sdxl"), ("vae", pipe.vae, "sdxl")):
        path = single_files.write(module.state_dict(), tmp_path / f"{part}.safetensors")
        source = view(path, Wish(family=family))
        for name, array in weights.of_torch(module).items():
            assert np.array_equal(source.read(part, name), array), name
        single_files.same(source, open_folder(write(source, tmp_path / part).path))


CONTROLS = {
    "sd1": {"cross_attention_dim": 12, "attention_head_dim": 8, "block_out_channels": [32, 64, 64, 64]},
    "sd2": {"cross_attention_dim": 12, "attention_head_dim": [1, 1, 1, 1], "block_out_channels": [32, 64, 64, 64],
            "use_linear_projection": True},
    "sdxl": {"cross_attention_dim": 12, "attention_head_dim": [1, 1, 2], "block_out_channels": [32, 64, 128],
             "use_linear_projection": True, "transformer_layers_per_block": [1, 2, 3],
             "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
             "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
             "projection_class_embeddings_input_dim": 30},
}  # fmt: skip


@pytest.mark.parametrize("family", CONTROLS)
def test_a_controlnet_opens_from_either_names_and_from_its_folder(family, tmp_path):
    from diffusers import ControlNetModel
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    model = ControlNetModel(**CONTROLS[family], conditioning_embedding_out_channels=[4, 8, 12])
    for value in model.parameters():  # what is added begins as zeros
        torch.nn.init.normal_(value, std=0.1)
    wanted = weights.of_torch(model)
    model.save_pretrained(tmp_path / "folder")
    state = model.state_dict()
    config = view(tmp_path / "folder", Wish(family=family)).manifest.parts["controlnet"]
    back = {original.controlnet_name(name, config)[0]: name for name in state}
    for prefix in ("", "control_model."):
        renamed = {prefix + theirs: state[ours] for theirs, ours in back.items()}
        single_files.write(renamed, tmp_path / f"original{prefix}safetensors")
    if family != "sdxl":  # diffusers' own reading of the original's names
        plain = {f"control_model.{theirs}": state[ours] for theirs, ours in back.items()}
        theirs = convert_controlnet_checkpoint(plain, dict(model.config))
        hints = {name for name in state if "cond_embedding" in name}  # always taken to be as many as in published ones
        assert all(torch.equal(theirs[name].reshape(value.shape), value) for name, value in state.items()
                   if name not in hints)  # fmt: skip
    single_files.write(state, tmp_path / "diffusers.safetensors")
    for name in ("folder", "originalsafetensors", "originalcontrol_model.safetensors", "diffusers.safetensors"):
        source = view(tmp_path / name, Wish(family=family))
        assert (source.manifest.family, source.manifest.task) == (family, "part")
        assert list(source.manifest.parts) == ["controlnet"]
        assert source.names("controlnet").keys() == wanted.keys()
        for tensor, array in wanted.items():
            assert np.array_equal(source.read("controlnet", tensor), array), tensor
        found = source.manifest.parts["controlnet"]
        fields = ("down_block_types", "transformer_layers_per_block", "conditioning_embedding_out_channels")
        assert all(getattr(found, field) == getattr(config, field) for field in fields)
    with torch.device("meta"):
        built = ControlNetModel(**config.to_diffusers())
    assert {name: value.shape for name, value in built.state_dict().items()} == {k: v.shape for k, v in state.items()}
    single_files.same(source, open_folder(write(source, tmp_path / "written").path))
    with pytest.raises(UserError, match=r"a part of one \(ControlNet\)"):
        resolve(Job(prompt="x"), source.manifest)


def test_a_published_controlnet_is_recognised_by_its_shapes_alone(tmp_path):
    for kind in ("sd1", "sd2", "sdxl"):
        config = ControlNetConfig.from_dict({key: value for key, value in REAL[kind][1].items() if "up_" not in key})
        for i, name_of in enumerate((original.controlnet_name, PLAIN)):
            found = view(empty(shapes_of(config, name_of, ""), tmp_path / f"{kind}-{i}.safetensors"))
            assert found.manifest.family == kind
            assert parameters(found.manifest.parts["controlnet"]) == parameters(config)
            assert found.manifest.parts["controlnet"].heads == config.heads


def test_several_parts_that_are_no_model_are_named(tmp_path):
    found = shapes_of(UNetConfig.from_dict(SD1), PLAIN, "unet.") | shapes_of(VaeConfig.from_dict(VAE), PLAIN, "vae.")
    said = alone(empty(found, tmp_path / "two.safetensors"))
    assert "the U-Net of Stable Diffusion 1.x alone" in said and "4 latent channels, 8 pixels" in said
    assert "neither a whole model nor one part alone" in said


def test_a_component_of_a_folder_is_named(folders):
    inner = folders["sd1-inpaint"] / "unet"
    assert "UNet2DConditionModel with 9 input channels" in alone(inner)


def test_a_component_in_a_folder_of_its_own_opens_by_its_config(folders, tmp_path):
    for name, part, kind, family in (("vae", "vae", "sd2-depth", "sd1"), ("unet", "denoiser", "sdxl-inpaint", "sdxl")):
        path = shutil.copytree(folders[kind] / name, tmp_path / kind / name)
        folder = view(path, Wish(family="sdxl-inpaint" if part == "denoiser" else None))
        whole = view(folders[kind])
        assert (folder.manifest.family, folder.manifest.task) == (family, "part")
        assert folder.manifest.parts[part] == whole.manifest.parts[part]
        assert folder.names(part) == whole.names(part)
    config = tmp_path / "sd2-depth" / "vae" / "config.json"
    values = json.loads(config.read_text())
    for scale, family in ((0.13025, "sdxl"), (0.08333, "upscaler")):
        config.write_text(json.dumps({**values, "scaling_factor": scale}))
        assert view(config.parent).manifest.family == family
    config.write_text(json.dumps({**values, "scaling_factor": 0.5}))
    assert "scaled by 0.5, as those of no family known here" in alone(config.parent)
    text = shutil.copytree(folders["sdxl-inpaint"] / "text_encoder", tmp_path / "text")
    assert "of single components this version reads" in alone(text)


def gguf(state: dict[str, torch.Tensor], path):
    infos, data, end = [], [], 0
    for name, value in state.items():
        content = value.float().numpy().tobytes()
        infos.append(test_gguf.info(name, list(value.shape)[::-1], test_gguf.NUMBER["F32"], end))
        data += [content, bytes(-len(content) % 32)]
        end += len(content) + len(data[-1])
    path.write_bytes(test_gguf.file(infos, b"".join(data)))
    return path


def test_gguf_files_hold_whole_models_or_the_unet_of_comfyuis(pipes, files, tmp_path):
    state = single_files.original(pipes["ssd-1b"])
    four = {name: value[..., None, None] if ".1.proj_" in name and value.ndim == 2 else value
            for name, value in state.items()}  # stable-diffusion.cpp's  # fmt: skip
    single_files.same(view(gguf(four, tmp_path / "a.gguf"), Wish(family="sdxl")),
                      view(files["ssd-1b"], Wish(family="sdxl")))  # fmt: skip
    begin = "model.diffusion_model."
    unet = {name.removeprefix(begin): value for name, value in state.items() if name.startswith(begin)}
    part = view(gguf(unet, tmp_path / "b.gguf"), Wish(family="ssd-1b"))
    whole = view(files["ssd-1b"], Wish(family="sdxl"))
    assert part.manifest.task == "part" and part.names("denoiser") == whole.names("denoiser")


def test_a_whole_model_in_diffusers_names_in_one_file_is_told_apart_from_parts(pipes, tmp_path):
    pipe = pipes["sd1-inpaint"]
    state = {f"{prefix}.{name}": value
             for prefix, module in (("unet", pipe.unet), ("vae", pipe.vae), ("text_encoder", pipe.text_encoder))
             for name, value in module.state_dict().items()}  # fmt: skip
    said = alone(single_files.write(state, tmp_path / "m.safetensors"))
    assert "holds a whole model, but not in the original code's names" in said and "'unet.'" in said


def test_an_unknown_unet_is_told_its_fingerprint_and_the_nearest_family(tmp_path):
    found = {name: tuple(7 if n == 768 and "attn2" in name else n for n in shape)
             for name, shape in shapes("sd1-inpaint").items()}  # fmt: skip
    said = alone(empty(found, tmp_path / "m.safetensors"))
    assert "text width 7" in said and "9 input channels" in said and "sd1-inpaint is the nearest" in said


# Folders that contradict themselves


def test_a_folder_whose_channels_say_nothing_known_is_refused(folders, tmp_path):
    def refused(kind: str, said: str, **changes) -> None:
        path = shutil.copytree(folders[kind], tmp_path / f"{kind}-{said[:3]}")
        config = json.loads((path / "unet" / "config.json").read_text()) | changes
        (path / "unet" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=said):
            view(path)

    refused("sd1-inpaint", "no kind of model", in_channels=6)
    refused("sd1-inpaint", "weights take 9", in_channels=8)
    refused("upscaler", "some of what the x4 upscaler has", num_class_embeds=None)
    refused("ssd-1b", "lacks reverse", reverse_transformer_layers_per_block=None)


def test_layers_said_block_by_block_are_kept_only_where_they_differ():
    base = dict(REAL["ssd-1b"][1])
    config = UNetConfig.from_dict(base)
    assert config.uneven_layers_down == ((1, 1), (2, 2), (4, 4))
    assert config.uneven_layers_up == ((4, 4, 10), (2, 1, 1), (1, 1, 1))
    assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert UNetConfig.from_dict(config.to_diffusers()) == config
    even = UNetConfig.from_dict({**base, "reverse_transformer_layers_per_block": [[4, 4, 4], 2, 1]})
    assert even.uneven_layers_down is None and even.transformer_layers_per_block == (1, 2, 4)
    for name, value in (("uneven_layers_up", None), ("uneven_layers_down", ((1, 1), (2,), (4, 4)))):
        with pytest.raises(UserError):
            dataclasses.replace(config, **{name: value})


def test_the_converter_writes_an_inpainting_model(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(files["sd1-inpaint"]), str(out), "--family", "sd1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "sd1"
    assert json.loads((out / "model.json").read_text())["task"] == "inpaint"
