"""Nobody's test machine has Metal, so every graph is looked at: only operations and types that Metal's backend has.

`mx.export_function` names each primitive of a graph with the types of its arrays. What the lists below allow is what
mlx/backend/metal implements for these types (read at MLX 0.32).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from golden.make import ALONE, BERT, CLIP, RESCALER, UNETS, VAES, VQ, given
from weights import ArrayFolder, random

from mlxldm.config import BertConfig, ClipTextConfig, ClipVisionConfig, RescalerConfig, UNetConfig, VaeConfig, VqConfig

pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")
import mlxldm.on_mlx  # noqa: E402, F401, I001  (before mlx.core: brings the fast BLAS)
import mlx.core as mx  # noqa: E402
from mlxldm.on_mlx.bert import BertText  # noqa: E402
from mlxldm.on_mlx.clip import ClipText  # noqa: E402
from mlxldm.on_mlx.clip_vision import ClipVision  # noqa: E402
from mlxldm.on_mlx.device import form  # noqa: E402
from mlxldm.on_mlx.model import fill, pad_heads  # noqa: E402
from mlxldm.on_mlx.told import Rescaler  # noqa: E402
from mlxldm.on_mlx.unet import UNet, guidance_waves  # noqa: E402
from mlxldm.on_mlx.vae import Vae, Vq  # noqa: E402

VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 20,
    "patch_size": 5, "projection_dim": 24,
}  # fmt: skip
# U-Nets that are told more than a text: the noise of the small picture, the guidance
TOLD = {
    "upscaler": UNETS["sd1"] | {"num_class_embeds": 5},
    "lcm": UNETS["sd1"] | {"time_cond_proj_dim": 12},
}
METAL = set(
    "Abs Add AddMM Arange ArgReduce AsStrided AsType Broadcast BroadcastAxes Concatenate Convolution Copy Cos Divide "
    "Equal Erf Exp ExpandDims Flatten Full Gather GatherAxis Greater GreaterEqual LayerNorm Less LessEqual Log Matmul "
    "Maximum Minimum Multiply Negative NumberOfElements Pad Power Reduce Reshape Rsqrt ScaledDotProductAttention "
    "Select Sigmoid Sin Slice Softmax Split Sqrt Square Squeeze StopGradient Subtract Tanh Transpose Unflatten".split()
)
TYPES = {mx.float16, mx.bfloat16, mx.float32, mx.int32, mx.uint32, mx.bool_}
HEAVY = {"Convolution", "Matmul", "AddMM"}  # where a promotion to float32 would cost twice the time


def primitives(fn: Callable, *inputs: mx.array) -> list[dict]:
    """Every primitive of fn's graph: name, arguments, inputs and outputs as (letter, shape, type)."""
    seen: list[dict] = []
    mx.export_function(seen.append, fn, *inputs)
    return [entry for entry in seen if entry["type"] == "primitive"]


def complaints(graph: list[dict], dtype: mx.Dtype) -> list[str]:
    """What in a graph Metal could not run, and heavy work that is not in `dtype`."""
    found = []
    for node in graph:
        types = [array[2] for array in node["inputs"] + node["outputs"]]
        if node["name"] not in METAL:
            found.append(f"{node['name']} is not in Metal's backend")
        found += [f"{node['name']} uses {kind}" for kind in types if kind not in TYPES]
        if node["name"] in HEAVY and any(kind != dtype for kind in types):
            found.append(f"{node['name']} of {node['inputs']} is not all {dtype}")
    return found


def graphs(dtype: mx.Dtype) -> dict[str, tuple[Callable, list[mx.array]]]:
    """The graphs of every part as a GPU would get them, with inputs."""
    inputs = given()
    arrays = {name: mx.array(array) for name, array in inputs.items() if name != "ids"}

    def part(kind, config, name, seed):
        return fill(kind(config), ArrayFolder({name: random(config, seed)}), name, dtype)

    tower = part(ClipText, ClipTextConfig(**CLIP), "text", 1)
    bert = part(BertText, BertConfig(**BERT), "text", 5)
    vq = part(Vq, VqConfig.from_dict(VQ), "vae", 4)
    rescaler = part(Rescaler, RescalerConfig(**RESCALER), "rescaler", 6)
    vision = part(ClipVision, ClipVisionConfig(**VISION), "vision", 7)
    found: dict[str, tuple[Callable, list[mx.array]]] = {
        "vision": (vision, [mx.zeros((2, 20, 20, 3), dtype)]),
        "text": (lambda: list(vars_of(tower(inputs["ids"].tolist()))), []),
        "bert": (lambda: bert(inputs["ids"].tolist()).hidden, []),
        "vq decode": (vq.decode, [arrays["latent"]]),
        "vq encode": (lambda x: list(vq.encode(x)), [arrays["pixels"]]),
        "rescaler": (rescaler, [arrays["pixels"].astype(dtype)]),
    }
    for kind, settings in VAES.items():
        vae = part(Vae, VaeConfig.from_dict(settings), "vae", 3)
        found[f"{kind} decode"] = (vae.decode, [arrays["latent"]])
        found[f"{kind} encode"] = (lambda x, vae=vae: list(vae.encode(x)), [arrays["pixels"]])
    for kind, settings in ALONE.items():
        alone = part(UNet, UNetConfig.from_dict(settings), "denoiser", 2)
        pad_heads(alone, (24,))
        found[f"unet {kind}"] = (lambda x, unet=alone: unet(x, unet.embed(3.0), []), [arrays["even"]])
    for kind, settings in UNETS.items():
        unet = part(UNet, UNetConfig.from_dict(settings), "denoiser", 2)
        pad_heads(unet)

        def step(x, text, pooled, unet=unet):
            return unet(x, unet.embed(3.0, added=(pooled, inputs["sizes"])), unet.keys_values(text))

        found[f"unet {kind}"] = (step, [arrays["latent"], arrays["text"], arrays["pooled"].astype(dtype)])
    for kind, settings in TOLD.items():
        unet = part(UNet, UNetConfig.from_dict(settings), "denoiser", 2)
        pad_heads(unet)
        more = {"labels": mx.array([3, 3])} if kind == "upscaler" else {"condition": guidance_waves([8.5] * 2, 12)}

        def told(x, text, unet=unet, more=more):
            return unet(x, unet.embed(3.0, **more), unet.keys_values(text))

        found[f"unet {kind}"] = (told, [arrays["latent"], arrays["text"]])
    return found


def vars_of(output) -> tuple[mx.array, mx.array]:
    return output.hidden, output.pooled


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32])
@pytest.mark.parametrize(
    "name",
    [
        *("text", "vision", "bert", "vq decode", "vq encode", "rescaler"),
        *(f"{kind} {way}" for kind in VAES for way in ("decode", "encode")),
        *(f"unet {kind}" for kind in (*UNETS, *ALONE, *TOLD)),
    ],
)
def test_every_graph_runs_on_metal_in_its_own_type(name, dtype):
    with form(is_gpu=True):
        fn, inputs = graphs(dtype)[name]
        graph = primitives(fn, *inputs)
    assert len(graph) > (10 if name == "rescaler" else 50)
    assert sum(node["name"] in HEAVY for node in graph) > (0 if name == "rescaler" else 5)
    assert complaints(graph, dtype) == []


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (lambda x: mx.linalg.svd(x, stream=mx.cpu)[0], "SVD is not in Metal's backend"),
        (lambda x: mx.linalg.inv(x.astype(mx.float32), stream=mx.cpu), "Inverse is not in Metal's backend"),
        (lambda x: x.astype(mx.float64, stream=mx.cpu), "AsType uses mlx.core.float64"),
        (lambda x: x.astype(mx.float32) @ x.astype(mx.float32), "is not all mlx.core.float16"),
        (lambda x: mx.array(np.ones((4, 4), np.float32)) @ x, "is not all mlx.core.float16"),
    ],
)
def test_the_check_can_fail(bad, complaint):
    x = mx.ones((4, 4), dtype=mx.float32 if "SVD" in complaint else mx.float16)
    assert any(complaint in line for line in complaints(primitives(bad, x), mx.float16))


def test_a_gpu_never_stores_the_scores_of_a_padded_head():
    """With heads padded to 64, attention of Stable Diffusion 1.x is the fused kernel's at every size it has."""
    with form(is_gpu=True):
        unet = UNet(UNetConfig.from_dict(UNETS["sd1"] | {"block_out_channels": (80, 160)}))
        pad_heads(unet)
        assert {attention.head for attention in unet.attentions()} == {64, 80}
        assert all(math.isclose(a.scale, (a.to_out[0].weight.shape[0] // a.heads) ** -0.5) for a in unet.attentions())
