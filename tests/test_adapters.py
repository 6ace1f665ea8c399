"""LoRA files in every spelling change the modules they were made for, by what the formulas say; the rest is told."""

from __future__ import annotations

import itertools
import json
import time

import adapter_files as files
import numpy as np
import pytest
from adapter_files import Arrays

from mlxldm.errors import UserError
from mlxldm.tensors import TensorFile, to_bfloat16
from mlxldm_convert import adapters
from mlxldm_convert.adapters import MODELS, adapter, bias_delta, delta, factor, inversion, spellings

STREAM = np.random.RandomState(3)


def some(*shape: int) -> np.ndarray:
    return STREAM.standard_normal(shape).astype(np.float32)


def torch_layout(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


# ---------------------------------------------------------------------------------------------------------------------
# Names

# module of ours: what the original calls it, with underscores for dots
KNOWN = {
    "sd1": {
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k":
            "input_blocks_2_1_transformer_blocks_0_attn2_to_k",
        "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
        "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0":
            "output_blocks_11_1_transformer_blocks_0_attn1_to_out_0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks_2_1_conv",
        "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
        "down_blocks.2.downsamplers.0.conv": "input_blocks_9_0_op",
        "time_embedding.linear_1": "time_embed_0",
    },
    "sdxl": {
        "down_blocks.1.attentions.0.transformer_blocks.1.ff.net.0.proj":
            "input_blocks_4_1_transformer_blocks_1_ff_net_0_proj",
        "down_blocks.2.resnets.0.conv_shortcut": "input_blocks_7_0_skip_connection",
        "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
        "up_blocks.2.resnets.1.conv1": "output_blocks_7_0_in_layers_2",
        "add_embedding.linear_2": "label_emb_0_2",
        "conv_in": "input_blocks_0_0",
        "conv_out": "out_2",
    },
}  # fmt: skip


@pytest.mark.parametrize("family", KNOWN)
def test_both_of_kohyas_spellings_mean_our_modules(family):
    for module, original in KNOWN[family].items():
        shape = files.matrices(MODELS[family]["denoiser"])[module]
        for name in (f"lora_unet_{original}", files.kohya("denoiser", module)):
            up = (shape[0], 4, *(1 for _ in shape[2:]))
            file = Arrays({f"{name}.lora_down.weight": (4, *shape[1:]), f"{name}.lora_up.weight": up})
            assert list(adapter(file, MODELS[family]).modules) == [("denoiser", module)], name


@pytest.mark.parametrize("family", MODELS)
def test_no_two_modules_share_a_spelling(family):
    for config in MODELS[family].values():
        table = spellings(config)
        for module in adapters._shapes(config, "weight"):
            assert table[module.replace(".", "_")] == module
        assert set(table.values()) == set(adapters._shapes(config, "weight"))
    unet, text = (set(spellings(MODELS[family][part])) for part in ("denoiser", "text"))
    assert not unet & text  # names without a prefix are looked up in both


SPELLINGS = {
    "kohya": (files.kohya, files.ENDINGS["kohya"]),
    "peft": (files.peft, files.ENDINGS["peft"]),
    "peft with a name": (files.peft, files.ENDINGS["peft with a name"]),
    "diffusers": (files.peft, files.ENDINGS["diffusers"]),
    "processors": (files.processors, ("", "")),
    "comfy": (files.comfy, files.ENDINGS["kohya"]),
}


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_module_is_found_in_every_spelling(family, spelling):
    spell, endings = SPELLINGS[spelling]
    file = files.file(MODELS[family], spell, endings, numbers=False)
    found = adapter(file)
    assert found.base == family and not found.unmatched and file.read == []
    wanted = {(part, module) for part, config in MODELS[family].items() for module in files.matrices(config)}
    assert set(found.modules) == wanted and found.ranks == [2]
    assert found.kind == "locon"  # with the 3x3 convolutions
    for key, module in found.modules.items():
        ours = adapters._torch(module.shape)
        assert ours == files.matrices(MODELS[family][key[0]])[key[1]]
        assert [file.tensors[module.tensors[role]].shape[0] for role in ("down", "up")] == [2, ours[0]]


@pytest.mark.parametrize("spell", [files.lycoris, files.bare, files.wrapped])
def test_names_without_the_part_are_looked_up_in_all(spell):
    file = files.file(MODELS["sd1"], spell, numbers=False)
    assert len(adapter(file).modules) == sum(len(files.matrices(config)) for config in MODELS["sd1"].values())


def test_a_module_under_two_names_is_changed_once():
    module = "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0"
    ours, theirs = files.kohya("denoiser", module), f"lora_unet_{KNOWN['sd1'][module]}"
    pair = {"lora_down.weight": (4, 320), "lora_up.weight": (320, 4)}
    file = Arrays({f"{name}.{end}": shape for name in (theirs, ours) for end, shape in pair.items()})
    found = adapter(file)
    assert [module.tensors["up"] for module in found.modules.values()] == [f"{ours}.lora_up.weight"]
    assert set(found.unmatched.values()) == {"its module is changed under another name too"}
    twice = Arrays({f"{ours}.lora_up.weight": (320, 4), f"{ours}.lora_B.weight": (320, 4)})
    with pytest.raises(UserError, match="has both .*lora_up.weight and .*lora_B.weight"):
        adapter(twice)


def test_a_module_whose_names_differ_by_age_is_put_together():
    block = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"
    file = Arrays({f"{block}.processor.to_out_lora.down.weight": (4, 1280),
                   f"{block}.processor.to_out_lora.up.weight": (1280, 4),
                   f"{block}.to_out.0.lora_magnitude_vector": (1280,), f"{block}.to_out.0.alpha": ()})  # fmt: skip
    (module,) = adapter(file).modules.values()
    assert set(module.tensors) == {"down", "up", "magnitude", "alpha"} and module.kind == "dora"


def test_what_has_no_place_is_told_with_the_reason():
    file = files.file(MODELS["sd1"], only=lambda part, module: "attn2" in module, numbers=False)
    more = {
        "lora_unet_down_blocks_9_attentions_0_proj_in.lora_down.weight": (2, 320),
        "lora_te_text_model_encoder_layers_3_mlp_fc1.alpha": (),
        "lora_unet_conv_in.lora_up.bias": (320,),
        "lora_unet_conv_out.weight": (4, 320, 3, 3),
        "x" * 600: (1,),
        "bundle_emb.word.string_to_param.*": (2, 768),
    }
    found = adapter(Arrays({**file.shapes(), **more}))
    assert list(found.unmatched.values()) == [
        "belongs to no module of Stable Diffusion 1.x", "has no factors beside it", "its ending is none that is known",
        "is a whole weight and no change of one", "its ending is none that is known",
    ]  # fmt: skip
    assert [one.token for one in found.inversions] == ["word"]
    report = json.loads(json.dumps(found.report()))
    assert report["modules"] == {"denoiser": [64, 282]} and report["ranks"] == [2] and report["kind"] == "lora"
    assert report["unmatched"]["lora_unet_conv_in.lora_up.bias and 1 more"] == "its ending is none that is known"


# ---------------------------------------------------------------------------------------------------------------------
# Which model it is for


@pytest.mark.parametrize("family", MODELS)
def test_the_family_is_told_by_the_width_of_the_text(family):
    found = adapter(files.file(MODELS[family], only=lambda part, module: module.endswith("attn2.to_k"), numbers=False))
    width = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[family]
    assert found.base == family
    assert f"its attention reads text of width {width}" in found.why[1] and "as well" not in found.why[0]


def test_what_shapes_cannot_tell_the_metadata_does():
    def only(part, module):
        return part == "text" and "fc1" in module

    names = {"denoiser": "lora_unet", "text": "lora_te"}
    file = files.file(
        MODELS["sd1"], lambda part, module: f"{names[part]}_{module.replace('.', '_')}", only=only, numbers=False
    )
    found = adapter(file)
    assert found.base == "sd1" and "Stable Diffusion XL's as well" in found.why[0]
    file.metadata = {"ss_base_model_version": "sdxl_base_v1-0"}
    found = adapter(file)
    assert found.base == "sdxl" and "its metadata says ss_base_model_version = sdxl_base_v1-0" in found.why
    assert adapter(files.file(MODELS["sd1"], only=only, numbers=False)).base == "sdxl"  # lora_te1_
    file.metadata = {"modelspec.architecture": "flux-1-dev/lora"}
    with pytest.raises(UserError, match="is a LoRA for FLUX"):
        adapter(file)


def test_shapes_win_over_the_metadata_and_it_is_told():
    file = files.file(MODELS["sd2"], numbers=False, metadata={"ss_base_model_version": "sd_v1"})
    found = adapter(file)
    assert found.base == "sd2" and found.why[-1] == "its metadata says ss_base_model_version = sd_v1, which it is not"


def test_a_lora_for_another_model_is_refused_with_its_name():
    file = files.file(MODELS["sdxl"], files.peft, files.ENDINGS["peft"], numbers=False)
    with pytest.raises(UserError, match="the model's .* it was made for Stable Diffusion XL"):
        adapter(file, MODELS["sd1"])
    wide = {f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_{end}.weight": shape
            for end, shape in (("down", (4, 1280)), ("up", (1536, 4)))}  # fmt: skip
    with pytest.raises(UserError, match="made for the SDXL refiner"):
        adapter(Arrays(wide))


REFUSED = {
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "is a LoRA for FLUX",
    "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": "is a LoRA for FLUX",
    "transformer.transformer_blocks.0.attn.to_k.lora_A.weight": "is a LoRA for a transformer",
    "lora_transformer_x.lora_down.weight": "is a LoRA for a transformer",
    "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_up.weight": "is a LoRA for Stable Diffusion 3",
    "lora_te3_encoder_block_0.lora_down.weight": "is a LoRA for FLUX or Stable Diffusion 3",
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight": "is a LoRA for a transformer",
    "down_blocks.0.motion_modules.0.temporal_transformer.x.processor.to_q_lora.down.weight": "moving pictures",
    "lllite_unet_x.conditioning1.0.weight": "ControlNet-LLLite",
    "lora_controlnet": "is a ControlNet",
    "lora_unet_conv_in.oft_blocks": "is an OFT adapter",
    "lora_unet_mid_block_attentions_0_proj_in.a1.weight": "is a GLoRA",
    "unet:0:up": "numbers instead of names",
    "model.diffusion_model.input_blocks.0.0.weight": "no LoRA known here: names like lora_unet_",
    "lora_unet_conv_in.alpha": "which are no LoRA known here",
    "lora_unet_no_such_module.lora_down.weight": "changes 1 modules .*, of which Stable Diffusion 1.x, 2.x or XL has",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(name):
    with pytest.raises(UserError, match=REFUSED[name]) as error:
        adapter(Arrays({name: (4, 4)}))
    assert str(error.value).count("\n") == 0 and str(error.value).endswith(".")


def test_a_file_without_tensors_or_with_strange_names_is_refused_in_one_printable_sentence():
    with pytest.raises(UserError, match="holds 0 tensors \\(none at all\\)"):
        adapter(Arrays({}))
    with pytest.raises(UserError) as error:
        adapter(Arrays({"a\n\x1b[31m.lora_up.weight": (4, 4)}))
    assert str(error.value).isprintable()


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics, written out number by number

TINY = files.tiny("sd1")
CONV = ("denoiser", "down_blocks.1.resnets.0.conv1")  # 4 -> 8, 3x3
LINEAR = ("denoiser", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k")  # 12 -> 4
POINT = ("denoiser", "mid_block.attentions.0.proj_in")  # 16 -> 16, 1x1 in a file, a matrix of ours
NORM = ("denoiser", "mid_block.resnets.0.norm1")
CONV_SHAPE, LINEAR_SHAPE = (8, 4, 3, 3), (4, 12)


def one(key, metadata=None, **tensors) -> adapters.Adapter:
    """An adapter of one module, its tensors named by their endings (`__` for a dot)."""
    name = files.kohya(*key)
    file = Arrays({f"{name}.{end.replace('__', '.')}": value for end, value in tensors.items()}, metadata)
    return adapter(file, TINY)


def test_lora_is_the_product_times_alpha_over_rank():
    down, up = some(3, 12), some(4, 3)
    wanted = np.array([[sum(up[o, r] * down[r, i] for r in range(3)) for i in range(12)] for o in range(4)])
    found = one(LINEAR, lora_down__weight=down, lora_up__weight=up)
    assert found.kind == "lora" and found.ranks == [3] and found.alpha(LINEAR) is None
    got = delta(found, LINEAR)
    assert got.dtype == np.float32 and np.allclose(got, wanted, atol=1e-5)  # without alpha: alpha is the rank
    for alpha in (np.float32(1.5), np.int64(6), np.ones(1, np.float16), np.float32(0)):
        found = one(LINEAR, lora_down__weight=down, lora_up__weight=up, alpha=alpha)
        assert np.allclose(delta(found, LINEAR), wanted * float(np.reshape(alpha, ())) / 3, atol=1e-5)


def test_locon_is_two_convolutions_and_comes_out_channels_last():
    down, up = some(2, 4, 3, 3), some(8, 2, 1, 1)
    wanted = np.einsum("or,rihw->ohwi", up[:, :, 0, 0], down)
    found = one(CONV, lora_down__weight=down, lora_up__weight=up)
    assert found.kind == "locon"
    assert delta(found, CONV).shape == (8, 3, 3, 4) and np.allclose(delta(found, CONV), wanted, atol=1e-5)


def test_locon_with_a_middle_is_a_tucker_product():
    down, mid, up = some(3, 4, 1, 1), some(2, 3, 3, 3), some(8, 2, 1, 1)
    wanted = np.zeros(CONV_SHAPE)
    for m, n in itertools.product(range(2), range(3)):
        for y, x in itertools.product(range(3), range(3)):
            wanted[:, :, y, x] += mid[m, n, y, x] * np.outer(up[:, m, 0, 0], down[n, :, 0, 0])
    found = one(CONV, lora_down__weight=down, lora_mid__weight=mid, lora_up__weight=up, alpha=np.float32(3))
    assert np.allclose(torch_layout(delta(found, CONV)), wanted, atol=1e-5)


@pytest.mark.parametrize("ones", [(), (1, 1)])
def test_a_one_by_one_convolution_is_a_matrix(ones):
    down, up = some(2, 16, *ones), some(16, 2, *ones)
    got = delta(one(POINT, lora_down__weight=down, lora_up__weight=up), POINT)
    assert got.shape == (16, 16) and np.allclose(got, up.reshape(16, 2) @ down.reshape(2, 16), atol=1e-5)


@pytest.mark.parametrize("key, shape", [(LINEAR, LINEAR_SHAPE), (CONV, CONV_SHAPE)])
def test_loha_is_the_product_of_two_products_number_by_number(key, shape):
    flat = int(np.prod(shape[1:]))
    a1, b1, a2, b2 = some(shape[0], 2), some(2, flat), some(shape[0], 2), some(2, flat)
    wanted = ((a1 @ b1) * (a2 @ b2) * 0.5).reshape(shape)
    found = one(key, hada_w1_a=a1, hada_w1_b=b1, hada_w2_a=a2, hada_w2_b=b2, alpha=np.float32(1))
    assert found.kind == "loha" and found.ranks == [2]
    assert np.allclose(torch_layout(delta(found, key)), wanted, atol=1e-5)


def test_loha_of_a_convolution_may_have_cores():
    a1, b1, t1, a2, b2, t2 = some(2, 8), some(2, 4), some(2, 2, 3, 3), some(2, 8), some(2, 4), some(2, 2, 3, 3)

    def tucker(t, a, b):
        got = np.zeros(CONV_SHAPE)
        for i, j in itertools.product(range(2), range(2)):
            got += t[i, j] * np.outer(a[i], b[j])[:, :, None, None]
        return got

    found = one(CONV, hada_w1_a=a1, hada_w1_b=b1, hada_t1=t1, hada_w2_a=a2, hada_w2_b=b2, hada_t2=t2)
    assert np.allclose(torch_layout(delta(found, CONV)), tucker(t1, a1, b1) * tucker(t2, a2, b2), atol=1e-5)


def kron(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    out = np.zeros((len(one) * len(two), one.shape[1] * two.shape[1], *two.shape[2:]))
    for o, i in np.ndindex(out.shape[:2]):
        out[o, i] = one[o // len(two), i // two.shape[1]] * two[o % len(two), i % two.shape[1]]
    return out


def test_lokr_is_a_kronecker_product_scaled_where_a_side_has_a_rank():
    w1, w2, a, b = some(2, 3), some(2, 4), some(2, 3), some(3, 4)
    alpha = np.float32(9999220736)  # LyCORIS' placeholder where both sides are whole
    found = one(LINEAR, lokr_w1=w1, lokr_w2=w2, alpha=alpha)
    assert found.kind == "lokr" and found.ranks == [] and found.scale(LINEAR) == 1
    assert np.allclose(delta(found, LINEAR), kron(w1, w2), atol=1e-5)
    found = one(LINEAR, lokr_w1=w1, lokr_w2_a=a, lokr_w2_b=b, alpha=np.float32(1.5))
    assert np.allclose(delta(found, LINEAR), kron(w1, a @ b) * 0.5, atol=1e-5)
    c, d = some(2, 3), some(3, 3)
    found = one(LINEAR, lokr_w1_a=c, lokr_w1_b=d, lokr_w2=w2, alpha=np.float32(6))
    assert np.allclose(delta(found, LINEAR), kron(c @ d, w2) * 2, atol=1e-5)


def test_lokr_of_a_convolution_is_whole_flat_or_has_a_core():
    w1, whole = some(2, 2), some(4, 2, 3, 3)
    got = delta(one(CONV, lokr_w1=w1, lokr_w2=whole), CONV)
    assert np.allclose(torch_layout(got), kron(w1, whole), atol=1e-5)
    a, b = some(4, 2), some(2, 2 * 9)
    got = delta(one(CONV, lokr_w1=w1, lokr_w2_a=a, lokr_w2_b=b), CONV)
    assert np.allclose(torch_layout(got), kron(w1, (a @ b).reshape(4, 2, 3, 3)), atol=1e-5)
    t, a, b = some(2, 2, 3, 3), some(2, 4), some(2, 2)
    found = one(CONV, lokr_w1=w1, lokr_w2_a=a, lokr_w2_b=b, lokr_t2=t, alpha=np.float32(1))
    core = sum(t[i, j] * np.outer(a[i], b[j])[:, :, None, None] for i in range(2) for j in range(2))
    assert np.allclose(torch_layout(delta(found, CONV)), kron(w1, core) / 2, atol=1e-5)


def test_ia3_multiplies_outputs_or_inputs():
    base = some(4, 12)
    out = one(LINEAR, weight=some(4), on_input=np.int64(0))
    assert out.kind == "ia3" and factor(out, LINEAR).shape == (4, 1) and out.modules[LINEAR].needs_base
    assert np.allclose(delta(out, LINEAR, base), base * factor(out, LINEAR))
    inner = one(LINEAR, weight=some(12), on_input=np.int64(1))
    assert factor(inner, LINEAR).shape == (1, 12)
    conv = one(CONV, weight=some(1, 8, 1, 1), on_input=np.int64(0))
    kernel = some(8, 3, 3, 4)
    assert factor(conv, CONV).shape == (8, 1, 1, 1) and delta(conv, CONV, kernel).shape == kernel.shape
    wrong = one(LINEAR, weight=some(12), on_input=np.int64(0))
    with pytest.raises(UserError, match="12 numbers for outputs .* has 4"):
        factor(wrong, LINEAR)
    with pytest.raises(AssertionError, match="its weight is needed"):
        delta(out, LINEAR)


def test_full_changes_weights_biases_and_norms_as_they_stand():
    diff, bias = some(*CONV_SHAPE), some(8)
    found = one(CONV, diff=diff, diff_b=bias)
    assert found.kind == "full" and np.array_equal(torch_layout(delta(found, CONV)), diff)
    assert np.array_equal(bias_delta(found, CONV), bias)
    norm = one(NORM, w_norm=some(16), b_norm=some(16))
    assert delta(norm, NORM).shape == (16,) and bias_delta(norm, NORM).shape == (16,)
    alone = one(CONV, diff_b=bias)
    assert not delta(alone, CONV).any() and delta(alone, CONV).shape == (8, 3, 3, 4)
    with_lora = one(CONV, lora_down__weight=some(2, 4, 3, 3), lora_up__weight=some(8, 2, 1, 1), diff_b=bias)
    assert with_lora.kind == "locon" and np.array_equal(bias_delta(with_lora, CONV), bias)
    assert bias_delta(one(LINEAR, diff=some(4, 12)), LINEAR) is None


@pytest.mark.parametrize("key, shape", [(LINEAR, LINEAR_SHAPE), (CONV, CONV_SHAPE)])
@pytest.mark.parametrize("per", ["output", "input", "output, PEFT"])
def test_dora_gives_the_changed_weight_its_magnitudes(key, shape, per):
    base, down, up = some(*shape), some(2, *shape[1:]), some(shape[0], 2, *(1 for _ in shape[2:]))
    ones = (1,) * (len(shape) - 2)
    tensors = {"lora_down__weight": down, "lora_up__weight": up, "alpha": np.float32(1)}
    if per == "output":
        axis = 0
        magnitudes = tensors["dora_scale"] = np.abs(some(shape[0], 1, *ones))
    elif per == "input":
        axis = 1
        magnitudes = tensors["dora_scale"] = np.abs(some(1, shape[1], *ones))
    else:  # PEFT has [out], and [1, out, 1, 1] of a convolution
        axis = 0
        magnitudes = np.abs(some(shape[0], 1, *ones))
        tensors["lora_magnitude_vector"] = magnitudes.reshape((1, -1, 1, 1) if ones else (-1,))
    merged = base + 0.5 * (up.reshape(shape[0], 2) @ down.reshape(2, -1)).reshape(shape)
    wanted = np.empty(shape)
    for i in range(shape[axis]):
        row = np.take(merged, i, axis)
        changed = row / np.sqrt((row.astype(np.float64) ** 2).sum()) * magnitudes.reshape(-1)[i]
        wanted[(i,) if axis == 0 else (slice(None), i)] = changed
    found = one(key, **tensors)
    assert found.kind == "dora"
    ours = base.transpose(0, 2, 3, 1) if base.ndim == 4 else base
    assert np.allclose(torch_layout(ours + delta(found, key, ours)), wanted, atol=1e-5)
    with pytest.raises(AssertionError, match="its weight is needed"):
        delta(found, key)


def test_dora_of_a_loha_leaves_a_weight_of_zeros_alone():
    zeros = np.zeros((4, 2), np.float32)
    found = one(LINEAR, hada_w1_a=zeros, hada_w1_b=some(2, 12), hada_w2_a=some(4, 2), hada_w2_b=some(2, 12),
                dora_scale=np.ones((4, 1), np.float32))  # fmt: skip
    assert found.kind == "loha with dora"
    assert not delta(found, LINEAR, np.zeros((4, 12), np.float32)).any()


def test_several_algorithms_in_one_file_are_counted():
    name, other = files.kohya(*LINEAR), files.kohya(*CONV)
    file = Arrays({f"{name}.lora_down.weight": some(2, 12), f"{name}.lora_up.weight": some(4, 2),
                   f"{other}.lokr_w1": some(2, 2), f"{other}.lokr_w2": some(4, 2, 3, 3)})  # fmt: skip
    assert adapter(file, TINY).kind == "mixed: 1 lora, 1 lokr"


# ---------------------------------------------------------------------------------------------------------------------
# PEFT's settings

SETTINGS = {
    "unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"mid_block.attentions.0.proj_in": 16, "proj_in": 1},
    "text_encoder.r": 2, "text_encoder.lora_alpha": 8, "text_encoder.use_rslora": True,
}  # fmt: skip


def test_alpha_is_in_the_metadata_where_diffusers_writes_it():
    file = files.file(TINY, files.peft, files.ENDINGS["peft"], metadata={"lora_adapter_metadata": json.dumps(SETTINGS)})
    found = adapter(file, TINY)
    assert found.scale(LINEAR) == 2 and found.scale(("denoiser", "down_blocks.0.attentions.0.proj_in")) == 0.5
    text = ("text", "text_model.encoder.layers.3.mlp.fc1")
    assert found.scale(text) == pytest.approx(8 / 2**0.5)
    module = found.modules[LINEAR]
    factors = (file.raw(module.tensors[role]) for role in ("up", "down"))
    assert np.allclose(delta(found, LINEAR), 2 * np.matmul(*factors), atol=1e-5)


def test_alpha_is_in_the_file_beside_where_peft_writes_it(tmp_path):
    file = files.file(TINY, files.wrapped, files.ENDINGS["peft"])
    file.path = tmp_path / "adapter_model.safetensors"
    assert adapter(file, TINY).scale(LINEAR) == 1
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    assert adapter(file, TINY).scale(LINEAR) == 3
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(UserError, match="settings that are no JSON object"):
        adapter(file, TINY)


@pytest.mark.parametrize("said", ["{", "[" * 100_000, "3"])
def test_damaged_settings_are_refused(said):
    with pytest.raises(UserError, match="settings that are no JSON object"):
        one(LINEAR, {"lora_adapter_metadata": said}, lora_down__weight=some(2, 12), lora_up__weight=some(4, 2))
    for alpha in ("4\n", True, [4], float("nan"), 10**400):
        strange = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha})}
        found = one(LINEAR, strange, lora_down__weight=some(2, 12), lora_up__weight=some(4, 2))
        with pytest.raises(UserError, match="a number was expected") as error:
            delta(found, LINEAR)
        assert str(error.value).isprintable()


def test_peft_scales_a_lokr_without_factors_by_the_rank_that_was_asked_for():
    said = {"lora_adapter_metadata": json.dumps({"unet.r": 8, "unet.alpha": 4})}
    assert one(LINEAR, said, lokr_w1=some(2, 3), lokr_w2=some(2, 4)).scale(LINEAR) == 0.5
    said = {"lora_adapter_metadata": json.dumps({"unet.r": -8, "unet.alpha": 4, "unet.use_rslora": True})}
    assert one(LINEAR, said, lokr_w1=some(2, 3), lokr_w2=some(2, 4)).scale(LINEAR) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Numbers as files hold them, and files that lie


def test_every_float_is_read_as_float32_and_only_when_asked(tmp_path):
    from safetensors.numpy import save_file

    name = files.kohya(*LINEAR)
    down, up = np.round(some(2, 12), 2), np.round(some(4, 2), 2)
    save_file({f"{name}.lora_down.weight": down.astype(np.float16), f"{name}.lora_up.weight": up.astype(np.float64),
               f"{name}.alpha": np.array(1, np.int64)}, tmp_path / "a.safetensors")  # fmt: skip
    found = adapter(TensorFile(tmp_path / "a.safetensors"), TINY)
    assert np.allclose(delta(found, LINEAR), up @ down.astype(np.float16).astype(np.float32) / 2, atol=1e-6)
    brain = Arrays({f"{name}.lora_down.weight": ("BF16", to_bfloat16(down)),
                    f"{name}.lora_up.weight": ("F8_E5M2", np.full((4, 2), 0x3C, np.uint8))})  # fmt: skip
    got = adapter(brain, TINY)
    assert brain.read == []
    short = (to_bfloat16(down).astype(np.uint32) << 16).view(np.float32)
    assert np.allclose(delta(got, LINEAR), np.ones((4, 2)) @ short, atol=1e-6)


NAN = np.full((4, 2), np.nan, np.float32)


@pytest.mark.parametrize("tensors, said", [
    ({"lora_down__weight": some(2, 12), "lora_up__weight": NAN}, "lora_up.weight that are not finite"),
    ({"lora_down__weight": some(2, 12), "lora_up__weight": some(4, 2), "alpha": np.float32(np.inf)}, "alpha that are"),
    ({"lora_down__weight": some(2, 12) * 1e30, "lora_up__weight": some(4, 2) * 1e30}, "makes numbers of .* not finite"),
    ({"lora_down__weight": some(2, 12).astype(np.float64) * 1e300, "lora_up__weight": some(4, 2)}, "not finite"),
    ({"lora_down__weight": np.ones((2, 12), np.int64), "lora_up__weight": some(4, 2)}, "floating-point numbers are"),
])  # fmt: skip
def test_numbers_that_are_none_are_refused(tensors, said):
    with pytest.raises(UserError, match=said):
        delta(one(LINEAR, **tensors), LINEAR)


HUGE = 1 << 40
HOSTILE = {
    "the ranks differ": ({"lora_down__weight": (2, 12), "lora_up__weight": (4, 3)}, "lora_up.weight of the shape"),
    "half is missing": ({"lora_up__weight": (4, 3)}, "without its down"),
    "rank 0": ({"lora_down__weight": (0, 12), "lora_up__weight": (4, 0)}, "lora_down.weight of the shape"),
    "no axes": ({"lora_down__weight": (), "lora_up__weight": (4, 0)}, "lora_down.weight of the shape"),
    "five axes": ({"lora_down__weight": (2, 12, 1, 1, 1), "lora_up__weight": (4, 2)}, "lora_down.weight of the shape"),
    "another width": ({"lora_down__weight": (2, 13), "lora_up__weight": (4, 2)}, r"change of \[4, 13\]"),
    "a convolution": ({"lora_down__weight": (2, 12, 3, 3), "lora_up__weight": (4, 2)}, r"change of \[4, 12, 3, 3\]"),
    "huge": ({"lora_down__weight": (2, HUGE), "lora_up__weight": (HUGE, 2)}, "change of"),
    "huge rank": ({"lora_down__weight": (HUGE, 12), "lora_up__weight": (4, HUGE)}, "of rank 1099511627776"),
    "a middle for nothing": (
        {"lora_down__weight": (2, 12), "lora_up__weight": (4, 2), "lora_mid__weight": (2, 5, 3, 3)}, "lora_mid.weight"),
    "alphas": ({"lora_down__weight": (2, 12), "lora_up__weight": (4, 2), "alpha": (2,)}, "alpha of the shape"),
    "two algorithms": (
        {"lora_down__weight": (2, 12), "lora_up__weight": (4, 2), "lokr_w1": (2, 2), "lokr_w2": (2, 6)},
        "one module as lokr and as lora"),
    "loha halves": (
        {"hada_w1_a": (4, 2), "hada_w1_b": (2, 12), "hada_w2_a": (4, 2), "hada_w2_b": (2, 11)}, "hada_w2_a"),
    "one core": (
        {"hada_w1_a": (2, 4), "hada_w1_b": (2, 12), "hada_w2_a": (4, 2), "hada_w2_b": (2, 12), "hada_t1": (2, 2, 1, 1)},
        "hada_t1"),
    "lokr both ways": ({"lokr_w1": (2, 2), "lokr_w1_a": (2, 2), "lokr_w2": (2, 6)}, "lokr_w1 of the shape"),
    "lokr without a side": ({"lokr_w1": (2, 2)}, "without its lokr_w2_a"),
    "lokr, huge": ({"lokr_w1": (HUGE, 4), "lokr_w2": (HUGE, 4)}, r"change of \[1208925819614629174706176, 16\]"),
    "ia3 of two axes": ({"weight": (3, 4), "on_input": ()}, "weight of the shape"),
    "ia3 of nobody": ({"weight": (5,), "on_input": ()}, "change of"),
    "magnitudes": (
        {"lora_down__weight": (2, 12), "lora_up__weight": (4, 2), "dora_scale": (5, 1)}, "not the magnitudes"),
    "a bias where none is": ({"lora_down__weight": (2, 12), "lora_up__weight": (4, 2), "diff_b": (4,)}, "has no bias"),
    "one number for each output": ({"diff": (4,)}, "change of"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_factors_that_do_not_go_together_are_refused_before_anything_is_read(case):
    tensors, said = HOSTILE[case]
    with pytest.raises(UserError, match=said) as error:
        one(LINEAR, **tensors)
    assert str(error.value).isprintable() and str(error.value).endswith((".", "?"))


def test_many_names_and_long_names_take_no_time():
    names = {f"lora_unet_{'x_' * 40}{i}.lora_up.weight": (4, 4) for i in range(5_000)}
    begin = time.process_time()
    with pytest.raises(UserError, match="changes 5000 modules"):
        adapter(Arrays(names))
    assert time.process_time() - begin < 5  # 0.3 s on an idle machine
    with pytest.raises(UserError, match="which are no LoRA"):
        adapter(Arrays({"._" * 2_000_000: (1,)}))


# ---------------------------------------------------------------------------------------------------------------------
# diffusers' own converter


def original_names(config):
    """The original's names of the U-Net's modules, by the substitutions of `single_files`."""
    from types import SimpleNamespace

    import single_files

    unet = SimpleNamespace(config=SimpleNamespace(layers_per_block=2, up_block_types=config.up_block_types))
    return {
        module: single_files._unet(f"{module}.weight", unet).removesuffix(".weight")
        for module in files.matrices(config)
    }


@pytest.mark.parametrize("family, spelling", [("sd1", "diffusers"), ("sdxl", "diffusers"), ("sdxl", "original")])
def test_diffusers_finds_the_same_modules_and_the_same_changes(family, spelling):
    pytest.importorskip("torch", reason="needs torch and diffusers, whose converter says what is right")
    lora_conversion_utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    import torch
    from diffusers.utils import state_dict_utils

    model = files.tiny(family)
    names = original_names(model["denoiser"]) if spelling == "original" else {}
    # of SDXL in its own spelling diffusers takes both linear maps of the added embedding for one
    only = (lambda part, module: "add_embedding" not in module) if spelling == "diffusers" else (lambda *_: True)
    file = files.file(
        model, lambda part, module: files.kohya(part, names.get(module, module)), only=only, rank=2, alpha=3.0
    )
    ours = adapter(file, model)
    state = {name: torch.tensor(file.raw(name)) for name in file.tensors}
    if spelling == "original":
        from types import SimpleNamespace

        state = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(state, SimpleNamespace(layers_per_block=2))
    state, alphas = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(state)
    theirs = {}
    for part, prefix in files.DIFFUSERS_PREFIX.items():
        under = {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}.")}
        if part == "denoiser":
            under = state_dict_utils.convert_unet_state_dict_to_peft(under)
        elif under:
            under = state_dict_utils.convert_state_dict_to_diffusers(under)
            under = state_dict_utils.convert_state_dict_to_peft(under)
        for name, value in under.items():
            if name.endswith(".lora_A.weight"):
                theirs[part, name.removesuffix(".lora_A.weight")] = value, under[name.replace("lora_A", "lora_B")]
    assert theirs.keys() == ours.modules.keys()
    assert set(alphas.values()) == {3.0} and len(alphas) == len(theirs)
    for key, (down, up) in theirs.items():
        wanted = (3 / 2) * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:]).numpy()
        got = torch_layout(delta(ours, key))
        assert np.allclose(got, wanted.reshape(got.shape), atol=1e-6), key


@pytest.mark.parametrize("spell", [files.kohya, files.comfy])
@pytest.mark.parametrize("family", MODELS)  # diffusers reads this spelling of SDXL alone
def test_the_original_spelling_is_read_of_every_family(family, spell):
    pytest.importorskip("torch", reason="needs torch, which the substitutions on names import")
    pytest.importorskip("diffusers", reason="needs diffusers, which the substitutions on names import")
    names = original_names(MODELS[family]["denoiser"])
    file = files.file(MODELS[family], lambda part, module: spell(part, names.get(module, module)), numbers=False)
    found = adapter(file)
    assert found.base == family and not found.unmatched
    assert len(found.modules) == sum(len(files.matrices(config)) for config in MODELS[family].values())
    for (part, module), parts in found.modules.items():
        assert parts.tensors["up"] == f"{spell(part, names.get(module, module))}.lora_up.weight"


# ---------------------------------------------------------------------------------------------------------------------
# Textual inversions


@pytest.mark.parametrize("name, token", [
    ("emb_params", "style"), ("string_to_param.*", "style"), ("*", "style"), ("state.string_to_param.*", "style"),
    ("string_to_param._parameters.*", "style"), ("string_to_param.<cat>", "<cat>"), ("<cat-toy>", "<cat-toy>"),
    ("a.b", "a.b"),
])  # fmt: skip
@pytest.mark.parametrize("width, base", [(768, "sd1"), (1024, "sd2")])
def test_a_textual_inversion_is_a_word_and_its_vectors(name, token, width, base):
    vectors = some(3, width)
    found = inversion(Arrays({name: vectors, "string_to_token.*": np.int64(265)}, name="style.pt"))
    assert (found.token, found.base, found.shapes) == (token, base, {"text": (3, width)})
    assert np.array_equal(found.read("text"), vectors)
    assert inversion(Arrays({name: vectors[0]}, name="style.pt")).read("text").shape == (1, width)


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_sdxl_has_vectors_for_both_of_its_text_encoders(names):
    small, large = some(2, 768), some(2, 1280)
    found = inversion(Arrays(dict(zip(names, (small, large), strict=True)), name="style.safetensors"))
    assert (found.token, found.base) == ("style", "sdxl")
    assert np.array_equal(found.read("text"), small) and np.array_equal(found.read("text_2"), large)
    alone = inversion(Arrays({names[1]: large}))
    assert alone.base == "sdxl" and list(alone.tensors) == ["text_2"]
    assert inversion(Arrays({"emb_params": large})).tensors == {"text_2": "emb_params"}


def test_a_textual_inversion_may_be_for_a_model_at_hand():
    assert inversion(Arrays({"<a>": some(1, 12)}), TINY).shapes == {"text": (1, 12)}
    with pytest.raises(UserError, match="vectors of width 768 in <a>, but text encoders here have 12"):
        inversion(Arrays({"<a>": some(1, 768)}), TINY)


@pytest.mark.parametrize("tensors, said", [
    ({}, "holds 0 tensors"),
    ({"lora_unet_conv_in.lora_up.weight": (4, 768)}, "which are no textual inversion"),
    ({"<a>": (1, 768), "<b>": (1, 768)}, "which are no textual inversion"),
    ({"emb_params": (1, 640)}, "vectors of width 640"),
    ({"emb_params": ()}, "vectors of width 0"),
    ({"emb_params": (1, 1, 768)}, "of .1, 1, 768., no vectors"),
    ({"emb_params": (0, 768)}, "0 vectors for a word"),
    ({"emb_params": (76, 768)}, "76 vectors for a word"),
    ({"clip_l": (1, 768), "clip_g": (2, 1280)}, "another number of vectors"),
    ({"clip_l": (1, 768), "clip_g": (1, 768)}, "clip_g of"),
    ({"clip_l": (1, 768), "t5": (1, 4096)}, "for FLUX or SD3"),
    ({" ": (1, 768)}, "empty or endless"),
    ({"a" * 501: (1, 768)}, "empty or endless"),
])  # fmt: skip
def test_what_is_no_textual_inversion_is_refused(tensors, said):
    with pytest.raises(UserError, match=said) as error:
        inversion(Arrays(tensors))
    assert str(error.value).endswith(".")


def test_vectors_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        inversion(Arrays({"<a>": np.full((1, 768), np.nan, np.float32)})).read("text")
