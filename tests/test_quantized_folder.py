"""A quantized model folder: written, opened, verified, refused when it is damaged, and run by both backends."""

from __future__ import annotations

import json
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxldm.config import ClipTextConfig, UNetConfig
from mlxldm.errors import UserError
from mlxldm.folder import beside, open_folder
from mlxldm.on_mlx.clip import ClipText
from mlxldm.on_mlx.layers import PackedLinear
from mlxldm.on_mlx.model import fill, pad_heads
from mlxldm.on_mlx.unet import UNet
from mlxldm.parameters import parameters
from mlxldm.tensors import TensorFile
from mlxldm_convert import view, write
from mlxldm_convert.__main__ import main
from mlxldm_convert.verify import verify


@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory):
    """The tiny model, and the same in so many bits."""
    place = tmp_path_factory.mktemp("quantized")

    def make(bits: int, group: int = 64):
        path = place / f"{bits}-{group}"
        return open_folder(path if path.exists() else write(source, path, bits=bits, group=group).path)

    source = view(tiny_folder("sd1", "hub"))
    return source, make


def test_what_fits_is_quantized_and_says_so(folders):
    source, make = folders
    folder = make(8)
    assert folder.manifest.quantization == {"mode": "affine", "bits": 8, "group": 64}
    for part in folder.manifest.parts:
        groups = folder.groups(part)
        assert folder.names(part).keys() == source.names(part).keys()
        for name, tensor in folder.names(part).items():
            assert tensor.shape == source.names(part)[name].shape
            matrix = len(tensor.shape) == 2 and name.endswith(".weight") and part != "vae"
            if matrix and tensor.shape[1] % 32 == 0 and "embedding" not in name:
                assert groups[name] == (64 if tensor.shape[1] % 64 == 0 else 32)
            else:
                assert name not in groups and tensor.dtype == "F16"
    assert not folder.groups("vae") and folder.groups("denoiser") and folder.groups("text")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_matrices_are_what_mlx_makes_of_them(folders, bits):
    source, make = folders
    folder = make(bits, 32)
    for part in ("text", "denoiser"):
        for name, group in folder.groups(part).items():
            weight = mx.array(source.read(part, name)).astype(mx.float16)
            expected = mx.dequantize(*mx.quantize(weight, group, bits), group, bits)
            assert np.array_equal(folder.read(part, name), np.array(expected)), name


def test_a_quantized_folder_can_be_written_again_and_as_weights(folders, tmp_path):
    _, make = folders
    folder = make(4)
    again = write(folder, tmp_path / "again").path
    assert (again / "denoiser.safetensors").read_bytes() == (folder.path / "denoiser.safetensors").read_bytes()
    plain = open_folder(write(folder, tmp_path / "plain", dtype="float16").path)
    assert plain.manifest.quantization is None and not plain.groups("denoiser")
    for name in folder.names("denoiser"):
        assert np.array_equal(plain.read("denoiser", name), folder.read("denoiser", name).astype(np.float16))
    with pytest.raises(UserError, match="quantized already"):
        write(folder, tmp_path / "twice", bits=8)


def test_verify_believes_what_is_right_and_nothing_else(folders, tmp_path):
    source, make = folders
    found = verify(source, make(4).path)
    folder = make(4)
    assert found["denoiser"].quantized == len(folder.groups("denoiser")) > 40
    assert found["denoiser"].tensors == len(folder.names("denoiser"))
    exact = write(source, tmp_path / "exact").path
    assert all(part.equal == part.tensors for part in verify(source, exact).values())
    for dtype in ("float16", "bfloat16"):
        assert verify(source, write(source, tmp_path / dtype, dtype=dtype).path)["vae"].rounded > 100

    for path, name in ((exact, "conv_in.weight"), (tmp_path / "bfloat16", "conv_in.bias"), (folder.path, None)):
        file = path / "denoiser.safetensors"
        name = name or max(folder.groups("denoiser"))
        opened = TensorFile(file)
        offset = opened._start + opened._offsets[name]
        data = bytearray(file.read_bytes())
        kept = bytes(data)
        data[offset + 1] ^= 0xC0
        file.write_bytes(data)
        with pytest.raises(UserError, match=f"does not hold what its source holds: denoiser's {name} differs"):
            verify(source, path)
        file.write_bytes(kept)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda m: m["quantization"].update(bits=7), "quantized in a way that this version does not read"),
        (lambda m: m["quantization"].update(mode="mxfp4"), "quantized in a way"),
        (lambda m: m["quantization"].update(bits=4), "is not a matrix of"),
        (lambda m: m.update(quantization=None), "have no place"),
    ],
)
def test_a_manifest_that_does_not_fit_the_files_is_refused(folders, tmp_path, change, said):
    _, make = folders
    path = write(make(8), tmp_path / "model").path
    manifest = json.loads((path / "model.json").read_text())
    change(manifest)
    (path / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=said):
        open_folder(path)


def distance(one: mx.array, other: mx.array) -> float:
    return float(mx.linalg.norm(one - other) / mx.linalg.norm(other))


def test_mlx_computes_with_the_codes_as_with_their_weights(folders):
    """Kept packed, as on a GPU, and with padded heads: the same function as the dequantized weights."""
    _, make = folders
    folder = make(8, 32)
    config = folder.manifest.denoiser
    plain = fill(UNet(config), folder, "denoiser", mx.float32)
    packed = fill(UNet(config), folder, "denoiser", mx.float32, True)
    count = sum(isinstance(module, PackedLinear) for module in packed.modules())
    assert count == len(folder.groups("denoiser"))
    size = [sum(array.nbytes for _, array in tree_flatten(unet.parameters())) for unet in (plain, packed)]
    assert size[1] < 0.95 * size[0]
    text = mx.random.normal((1, 9, config.cross_attention_dim[0]), key=mx.random.key(1))
    x = mx.random.normal((1, 8, 8, 4), key=mx.random.key(2))

    def run(unet: UNet) -> mx.array:
        return unet(x, unet.embed(500.0), unet.keys_values(text))

    once = run(packed)
    assert distance(once, run(plain)) < 3e-3  # the weights were rounded to float16 when they were dequantized
    pad_heads(packed, (64,))
    assert distance(run(packed), once) < 1e-3

    words = [[1, 5, 7, 2]]
    encoders = [fill(ClipText(folder.manifest.text), folder, "text", mx.float32, keep) for keep in (False, True)]
    assert distance(encoders[1](words).hidden, encoders[0](words).hidden) < 3e-3


def test_packed_layers_keep_their_bias():
    layer = nn.Linear(64, 32)
    three = mx.quantize(layer.weight, 32, 8)
    packed = PackedLinear(*three, 8, 32)
    x = mx.random.normal((2, 64), key=mx.random.key(3))
    assert distance(packed(x), x @ packed.dequantized().T) < 1e-6
    packed.bias = layer.bias
    assert distance(packed(x), x @ packed.dequantized().T + layer.bias) < 1e-6


def test_both_backends_draw_with_it(folders):
    """Eight bits stay close to the whole weights; two do not, so the comparison can fail."""
    pytest.importorskip("torch")
    from mlxldm.backend import load

    source, make = folders
    x = np.random.RandomState(5).standard_normal((1, 8, 8, 4)).astype(np.float32)

    def guess(folder, backend: str) -> np.ndarray:
        model = load(folder, backend, "cpu", "float32")
        with_prompt, _ = model.predict(model.array(x), 500.0, model.encode_text("a red house", None, 64, 64))
        return model.numpy(with_prompt)

    def decibel(one: np.ndarray, other: np.ndarray) -> float:
        return -10 * math.log10(float(np.square(one - other).mean() / np.square(other).mean()))

    for backend in ("mlx", "torch"):
        exact = guess(source, backend)
        assert decibel(guess(make(8), backend), exact) > 30 > decibel(guess(make(2), backend), exact)
    assert decibel(guess(make(8), "mlx"), guess(make(8), "torch")) > 80


def test_the_command_reports_what_it_cost_and_saved(tiny_folder, tmp_path, capsys):
    path, target = tiny_folder("sd1", "hub"), tmp_path / "model"
    arguments = [str(path), str(target), "--quantize", "4", "--group", "32", "--verify", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    unet = report["parts"]["denoiser"]
    assert unet["result"]["quantized"] > 40 and unet["result"]["saved"] > 0
    assert 0.03 < unet["result"]["error"] < 0.15 and unet["result"]["not_finite"] == 0
    assert report["parts"]["vae"]["result"]["error"] == 0 and unet["verified"]["quantized"] > 40
    assert unet["result"]["bytes"] < 0.5 * sum(view(path).nbytes("denoiser") for _ in "1")
    assert main([*arguments[:1], str(tmp_path / "other"), *arguments[2:-1]]) == 0
    said = capsys.readouterr().out
    assert "matrices quantized (saves" in said and "verified:" in said and "matrices kept: " in said
    assert main([str(path), str(tmp_path / "no"), "--quantize", "7"]) == 2
    assert "There is no --quantize 7." in capsys.readouterr().err
    assert main([str(path), str(tmp_path / "no"), "--quantize", "8", "--dtype", "float32"]) == 2
    assert "keeps the rest in half precision" in capsys.readouterr().err


def test_show_tells_the_bits(folders, capsys):
    from mlxldm.cli import main as mlxldm

    _, make = folders
    assert mlxldm(["show", str(make(6).path)]) == 0
    said = capsys.readouterr().out
    assert "6-bit F16" in said and "bits 6" in said
    assert mlxldm(["show", str(make(6).path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantization"]["bits"] == 6


def test_parts_without_configs_of_that_kind_are_not_touched():
    """The rule goes by names and shapes, so it holds for every config there is."""
    from mlxldm_convert.write import Recipe

    recipe = Recipe("float16", 8, 64)
    for part, config in (("text", ClipTextConfig()), ("denoiser", UNetConfig())):
        for name, tensor in parameters(config).items():
            group = recipe.group_of(part, name, tensor)
            assert group is None or tensor[1] % group == 0
            if "embedding" in name or len(tensor) != 2:
                assert group is None
    assert beside("a.b.weight", "scales") == "a.b.scales"
