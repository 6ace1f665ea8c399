"""Pictures with LoRAs, of both backends: against diffusers with the changes computed densely, here, into its weights.

The files are written as trainers write them (`adapter_files`), and what they change is computed in torch's layout, from
the published formulas, without our code. diffusers' own loader is a reference for the U-Net alone: with transformers 5
it draws the text encoder's weights anew.
"""

from __future__ import annotations

import copy
import math

import adapter_files
import numpy as np
import pytest
from conftest import has, needs_torch

from mlxldm.adapters import Wish, block, wish, worn
from mlxldm.errors import UserError
from mlxldm.job import Job

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]

BAR, APART = 55.0, 40.0  # dB: the same picture; another one
BACKENDS = ("mlx", "torch")
JOB = Job("a red house at dusk", "snow", seed=7, steps=2, guidance=5.0, sampler="ddim", width=64, height=64)
PARTS = {"text": "text_encoder", "text_2": "text_encoder_2", "denoiser": "unet"}


def psnr(a, b) -> float:
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


# What every kind does to a weight: factors for a weight of a torch shape, and the change, in torch's layout.


def _lora(shape, stream, rank=2, alpha=1.5):
    down, up = adapter_files.lora(shape, rank, stream)
    change = alpha / rank * (up.reshape(shape[0], rank) @ down.reshape(rank, -1)).reshape(shape)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": np.float32(alpha)}, lambda w: change


def _tucker(shape, stream, rank=2):
    if len(shape) != 4 or shape[2:] == (1, 1):
        return _lora(shape, stream)
    down, up = stream.standard_normal((rank, shape[1], 1, 1)), stream.standard_normal((shape[0], rank, 1, 1))
    mid = stream.standard_normal((rank, rank, *shape[2:])) / math.sqrt(9 * shape[1])
    change = np.einsum("or,rshw,si->oihw", up[..., 0, 0], mid, down[..., 0, 0])
    return {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid}, lambda w: change


def _loha(shape, stream, rank=2):
    width = math.prod(shape[1:])
    a, c = stream.standard_normal((2, shape[0], rank))
    b, d = stream.standard_normal((2, rank, width)) / width**0.25
    change = ((a @ b) * (c @ d)).reshape(shape) / rank * 2.0
    return {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": np.float32(2)}, lambda w: change


def _lokr(shape, stream):
    one = stream.standard_normal((2, 2))
    two = stream.standard_normal((shape[0] // 2, shape[1] // 2, *shape[2:])) / math.sqrt(math.prod(shape[1:]))
    change = np.stack([np.concatenate([one[o, i] * two for i in range(2)], axis=1) for o in range(2)])
    return {"lokr_w1": one, "lokr_w2": two}, lambda w: change.reshape(shape)


def _ia3(shape, stream, on_input=False):
    factor = stream.standard_normal(shape[1] if on_input else shape[0]) * 0.5
    many = factor.reshape([-1 if i == int(on_input) else 1 for i in range(len(shape))])
    return {"weight": factor, "on_input": np.float32(on_input)}, lambda w: w * many


def _dora(shape, stream):
    tensors, change = _lora(shape, stream)
    magnitudes = (0.5 + stream.random_sample((shape[0], *(1 for _ in shape[1:])))) * 1.5

    def change_of(w):
        whole = w + change(w)
        return whole / np.sqrt(np.square(whole).sum(axis=tuple(range(1, w.ndim)), keepdims=True)) * magnitudes - w

    return {**tensors, "dora_scale": magnitudes}, change_of


def _full(shape, stream):
    diff, bias = stream.standard_normal(shape) / math.sqrt(math.prod(shape[1:])), stream.standard_normal(shape[0])
    return {"diff": diff, "diff_b": bias * 0.3}, lambda w: diff


KINDS = {"lora": _lora, "tucker": _tucker, "loha": _loha, "lokr": _lokr, "ia3": _ia3, "dora": _dora, "full": _full}


class Made:
    """A LoRA in a file, and what it makes of diffusers' weights."""

    def __init__(self, root, name, kind, model, only=lambda part, module: True, seed=3):
        from safetensors.numpy import save_file

        stream, tensors = np.random.RandomState(seed), {}
        self.changes, self.biases = {}, {}
        for part, config in model.items():
            biased = {key.removesuffix(".bias") for key in adapter_files.parameters(config) if key.endswith(".bias")}
            for module, shape in adapter_files.matrices(config).items():
                if not only(part, module):
                    continue
                roles, change = KINDS[kind](shape, stream)
                if module not in biased:
                    roles.pop("diff_b", None)
                self.changes[part, module] = change
                if "diff_b" in roles:
                    self.biases[part, module] = roles["diff_b"]
                prefix = adapter_files.KOHYA_PREFIX[part]
                prefix = "lora_te" if (part, len(model)) == ("text", 2) else prefix
                tensors |= {f"{prefix}_{module.replace('.', '_')}.{role}": np.ascontiguousarray(values, np.float32)
                            for role, values in roles.items()}  # fmt: skip
        self.path = root / f"{name}.safetensors"
        save_file(tensors, self.path)


def merge(pipe, *loras):
    """A copy of diffusers' pipeline with `(made, strength, strength of the text encoders)` in its weights."""
    import torch

    before, pipe = layers_of(pipe), copy.deepcopy(pipe)
    layers = layers_of(pipe)
    for made, strength, text_strength in loras:
        for (part, module), change in made.changes.items():
            layer = layers[part, module]
            w = before[part, module].weight.detach().double().numpy()
            strong = strength if part == "denoiser" else text_strength
            matrix = w.reshape(w.shape[:2]) if w.ndim == 4 and w.shape[2:] == (1, 1) else w
            with torch.no_grad():
                layer.weight += torch.from_numpy(strong * change(matrix).reshape(w.shape)).float()
                if (part, module) in made.biases:
                    layer.bias += torch.from_numpy(strong * made.biases[part, module]).float()
    return pipe


def layers_of(pipe):
    """diffusers' layers by our names of them."""
    found = {}
    for part, name in PARTS.items():
        root = getattr(pipe, name, None)
        for module, layer in () if root is None else root.named_modules():
            if part != "denoiser" and module.startswith(("encoder.", "embeddings.", "final_layer_norm")):
                module = f"text_model.{module}"
            found[part, module] = layer
    return found


def drawn_by(pipe, job=JOB, **more):
    """diffusers' picture of a job."""
    import torch
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(job.seed)
    out = pipe(job.prompt, negative_prompt=job.negative, num_inference_steps=job.steps, guidance_scale=job.guidance,
               width=job.width, height=job.height, generator=generator, output_type="np", **more)  # fmt: skip
    return np.rint(out.images[0] * 255).astype(np.uint8)


class Studio:
    """Tiny models, as diffusers' pipelines and loaded by our backends, once each."""

    def __init__(self, tiny_folder, root):
        self.tiny_folder, self.root = tiny_folder, root
        self.models, self.pipes, self.made, self.pictures = {}, {}, {}, {}

    def pipe(self, kind):
        import tiny

        if kind not in self.pipes:
            self.pipes[kind] = tiny.KINDS[kind]()
        return self.pipes[kind]

    def plain(self, kind):
        """diffusers' picture without any of it."""
        if kind not in self.pictures:
            self.pictures[kind] = drawn_by(self.pipe(kind))
        return self.pictures[kind]

    def folder(self, kind):
        from mlxldm_convert import view

        return view(self.tiny_folder(kind, "today"))

    def model(self, backend, kind):
        import mlxldm.backend

        if (backend, kind) not in self.models:
            self.models[backend, kind] = mlxldm.backend.load(self.folder(kind), backend, "cpu", "float32")
        return self.models[backend, kind]

    def parts(self, kind):
        return {part: config for part, config in self.folder(kind).manifest.parts.items() if part != "vae"}

    def lora(self, kind, what="lora", **more):
        name = "-".join([kind, what, *map(str, more.values())])
        if name not in self.made:
            self.made[name] = Made(self.root, name, what, self.parts(kind), **more)
        return self.made[name]

    def draw(self, backend, kind, *loras, job=JOB):
        pixels, _ = self.work(backend, kind, *loras, job=job)
        return pixels

    def work(self, backend, kind, *loras, job=JOB):
        """The picture with LoRAs ("PATH:0.8"), and the effect they had."""
        from mlxldm.generate import Picture, generate
        from mlxldm_convert import adapter

        model = self.model(backend, kind)
        job = job.replace(loras=loras)
        events = list(generate(model, job, adapters=worn(job, model.manifest, adapter)))
        pictures = [event for event in events if isinstance(event, Picture)]
        assert pictures[0].job.loras == loras
        return pictures[0].pixels, events[0]


@pytest.fixture(scope="module")
def studio(tiny_folder, tmp_path_factory):
    return Studio(tiny_folder, tmp_path_factory.mktemp("loras"))


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_every_kind_draws_what_the_changed_weights_draw(studio, kind, what):
    made = studio.lora(kind, what)
    wanted = drawn_by(merge(studio.pipe(kind), (made, 0.3, 0.3)))
    assert psnr(wanted, studio.plain(kind)) < APART
    for backend in BACKENDS:
        pixels, effect = studio.work(backend, kind, f"{made.path}:0.3")
        assert psnr(pixels, wanted) >= BAR, (backend, psnr(pixels, wanted))
        (lora,) = effect.loras
        assert sum(lora["modules"].values()) == len(made.changes) and lora["unmatched"] == 0
        assert 0.02 < lora["weights"] < 10 and effect.answer > 0.01


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_text_encoders_have_a_strength_of_their_own(studio, kind):
    made = studio.lora(kind)
    for u, t in ((0.0, 0.5), (0.4, -0.3)):
        wanted = drawn_by(merge(studio.pipe(kind), (made, u, t)))
        for backend in BACKENDS:
            assert psnr(studio.draw(backend, kind, f"{made.path}:{u}:{t}"), wanted) >= BAR


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_at_once_in_any_order(studio, backend):
    one, two = studio.lora("sd1"), studio.lora("sd1", "dora", seed=5)
    three = studio.lora("sd1", "full", seed=6)
    wanted = drawn_by(merge(studio.pipe("sd1"), (one, 0.5, 0.5), (two, 0.4, 0.4), (three, -0.3, -0.3)))
    texts = [f"{one.path}:0.5", f"{two.path}:0.4", f"{three.path}:-0.3"]
    pixels, effect = studio.work(backend, "sd1", *texts)
    assert psnr(pixels, wanted) >= BAR
    assert psnr(studio.draw(backend, "sd1", *reversed(texts)), pixels) >= 75
    assert len(effect.loras) == 3 and "together" in effect.lines()[-1]


def weights_of(model, backend):
    """Every number of a model's parts as bytes."""
    if backend == "mlx":
        from mlx.utils import tree_flatten

        parts = [*model._texts, model._unet]
        return {(i, name): np.array(array).tobytes() for i, part in enumerate(parts)
                for name, array in tree_flatten(part.parameters())}  # fmt: skip
    parts = [*(encoder.net for encoder in model._encoders), model._unet]
    return {(i, name): array.numpy().tobytes() for i, part in enumerate(parts)
            for name, array in part.state_dict().items()}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_taken_off_leaves_no_bit_behind(studio, backend):
    model = studio.model(backend, "sd1")
    plain = studio.draw(backend, "sd1")
    before = weights_of(model, backend)
    one, two = studio.lora("sd1"), studio.lora("sd1", "full", seed=6)
    few = studio.lora("sd1", only=lambda part, module: "attn1" in module)
    first = studio.draw(backend, "sd1", f"{one.path}:0.8")
    assert psnr(first, plain) < APART
    assert weights_of(model, backend).keys() == before.keys()
    for lora in (f"{two.path}:0.3", f"{few.path}", f"{one.path}:0.2"):
        assert not np.array_equal(studio.draw(backend, "sd1", lora), first)
    assert np.array_equal(studio.draw(backend, "sd1", f"{one.path}:0.8"), first)
    assert np.array_equal(studio.draw(backend, "sd1"), plain) and psnr(plain, studio.plain("sd1")) >= BAR
    assert weights_of(model, backend) == before


# diffusers' own loader, which is right for U-Nets.


@pytest.mark.parametrize("spelling", ["kohya", "peft", "diffusers"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_unet_is_changed_as_diffusers_loader_changes_it(studio, kind, spelling):
    from safetensors.numpy import save_file

    pytest.importorskip("peft", reason="peft is missing: diffusers' loader needs it")
    spell = adapter_files.kohya if spelling == "kohya" else adapter_files.peft
    model = {"denoiser": studio.parts(kind)["denoiser"]}

    def attention(part, module):
        return ".attn" in module

    file = adapter_files.file(model, spell, adapter_files.ENDINGS[spelling], only=attention,
                              alpha=3.0 if spelling == "kohya" else None)  # fmt: skip
    path = studio.root / f"{kind}-{spelling}.safetensors"
    save_file({name: file.raw(name) for name in file.tensors}, path)
    pipe = copy.deepcopy(studio.pipe(kind))
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="one")
    pipe.set_adapters("one", 0.3)
    wanted = drawn_by(pipe)
    assert psnr(wanted, studio.plain(kind)) < APART
    for backend in BACKENDS:
        assert psnr(studio.draw(backend, kind, f"{path}:0.3"), wanted) >= BAR


# Weights that MLX keeps in another form on a GPU.


@pytest.fixture(scope="module")
def quantized(studio):
    """Tiny Stable Diffusion XL in eight bits, in groups of 32."""
    from mlxldm.folder import open_folder
    from mlxldm_convert import write

    path = studio.root / "sdxl-8"
    write(studio.folder("sdxl"), path, bits=8, group=32)
    return open_folder(path)


def as_on_a_gpu(folder, packed):
    """A model whose heads are padded, and whose matrices stay packed, as on Metal."""
    import mlx.core as mx

    from mlxldm.on_mlx.model import MlxModel, fill, pad_heads

    model = MlxModel(folder, "cpu", "float32")
    if packed:
        fill(model._unet, folder, "denoiser", mx.float32, packed=True)
        for part, text in zip(folder.manifest.texts, model._texts, strict=True):
            fill(text, folder, part, mx.float32, packed=True)
    pad_heads(model._unet, (24, 32))
    assert any(attention.head > attention.true_head for attention in model._unet.attentions())
    return model


def unpacked(folder):
    """A model of whole weights that are the packed ones' own, in float32 as they are computed with."""
    import mlx.core as mx

    from mlxldm.on_mlx.model import MlxModel

    model = MlxModel(folder, "cpu", "float32")
    for part, net in (("denoiser", model._unet), *zip(folder.manifest.texts, model._texts, strict=True)):
        for name in folder.groups(part):
            codes = folder.packed(part, name)
            scales, biases = (mx.array(array).astype(mx.float32) for array in (codes.scales, codes.biases))
            whole = mx.dequantize(mx.array(codes.codes), scales, biases, group_size=codes.group, bits=codes.bits)
            net.load_weights([(name, whole)], strict=False)
    return model


@pytest.mark.parametrize("what", ["lora", "tucker", "loha", "ia3", "dora", "full"])
@pytest.mark.parametrize("packed", [False, True])
def test_padded_heads_and_packed_weights_take_them_too(studio, quantized, packed, what):
    """The same as whole weights do; and what is taken off leaves all of it as it was."""
    from mlx.utils import tree_flatten

    from mlxldm.adapters import NONE, put_on
    from mlxldm.generate import generate
    from mlxldm.on_mlx.layers import PackedLinear
    from mlxldm_convert import adapter

    folder = quantized if packed else studio.folder("sdxl")
    one, other = studio.lora("sdxl", what), studio.lora("sdxl", seed=9)
    job = JOB.replace(loras=(f"{one.path}:0.3", f"{other.path}:0.2"))
    adapters = worn(job, folder.manifest, adapter)
    model, whole = as_on_a_gpu(folder, packed), unpacked(folder)
    before = {name: np.array(array) for name, array in tree_flatten(model._unet.parameters())}
    wanted, pixels = (list(generate(each, job, adapters=adapters))[-1].pixels for each in (whole, model))
    assert psnr(pixels, wanted) >= BAR
    layers = [layer for _, layer in model._unet.named_modules() if isinstance(layer, PackedLinear)]
    still = len(layers)
    put_on(model, NONE)
    assert psnr(list(generate(model, JOB))[-1].pixels, wanted) < APART
    after = {name: np.array(array) for name, array in tree_flatten(model._unet.parameters())}
    assert after.keys() == before.keys() and all(np.array_equal(after[name], before[name]) for name in before)
    layers = [layer for _, layer in model._unet.named_modules() if isinstance(layer, PackedLinear)]
    # low-rank factors stand beside packed weights; what has none makes them whole
    assert (len(layers) > 50) is packed and still == (len(layers) if what in ("lora", "tucker") else 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_in_half_precision_the_picture_is_nearly_the_same(studio, backend, precision):
    from mlxldm import backend as backends
    from mlxldm.generate import generate
    from mlxldm_convert import adapter

    job = JOB.replace(loras=(f"{studio.lora('sd1').path}:0.2",))
    model = backends.load(studio.folder("sd1"), backend, "cpu", precision)
    pixels = list(generate(model, job, adapters=worn(job, model.manifest, adapter)))[-1].pixels
    assert psnr(pixels, drawn_by(merge(studio.pipe("sd1"), (studio.lora("sd1"), 0.2, 0.2)))) >= 30


# Blocks.


def test_blocks_are_those_of_the_original_unet():
    """The original's own names say which: input_blocks.4, middle_block, output_blocks.3."""
    from mlxldm_convert.adapters import MODELS
    from mlxldm_convert.original import unet_name

    for family in ("sd1", "sdxl"):
        config = MODELS[family]["denoiser"]
        layers = [len(config.layers_down(level)) for level in range(config.levels)]
        for module in adapter_files.matrices(config):
            first, second, *_ = unet_name(f"{module}.weight", config)[0].split(".")
            wanted = {"input_blocks": "IN", "output_blocks": "OUT", "middle_block": "M00"}.get(first)
            wanted = f"{wanted}{int(second):02}" if wanted in ("IN", "OUT") else wanted
            assert block(module, layers) == wanted, module


def test_blocks_have_weights_of_their_own(studio):
    from mlxldm.adapters import LBW
    from mlxldm_convert import adapter

    made, manifest = studio.lora("sd1"), studio.model("mlx", "sd1").manifest
    numbers = [0.5, *(0.0 for _ in range(25))]
    numbers[LBW[26].index("M00")] = 1.0
    (one,) = worn(Job(loras=(f"{made.path}:0.8:0.4:lbw={','.join(map(str, numbers))}",)), manifest, adapter).worn
    for (part, module), strength in one.strengths.items():
        wanted = 0.2 if part == "text" else 0.8 if module.startswith("mid_block") else 0.0
        if part != "text" and module.startswith(("time_embedding", "conv_out")):
            wanted = 0.8  # in no block
        assert strength == pytest.approx(wanted), module
    middle = {key: change for key, change in made.changes.items()
              if key[1].startswith(("mid_block", "time_embedding", "conv_out"))}  # fmt: skip
    only = copy.copy(made)
    only.changes = middle
    text = f"{made.path}:0.5:0:lbw=0,{','.join('0' for _ in range(6))},1,{','.join('0' for _ in range(9))}"
    wanted = drawn_by(merge(studio.pipe("sd1"), (only, 0.5, 0.0)))
    assert psnr(studio.draw("torch", "sd1", text), wanted) >= BAR


# What sd-webui-lora-block-weight's README and script say of its four lists, written down.
LISTS = {
    12: ("BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05").split(),
    17: ("BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11").split(),
    20: ("BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 "
         "OUT08").split(),
    26: ("BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 IN09 IN10 IN11 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 "
         "OUT06 OUT07 OUT08 OUT09 OUT10 OUT11").split(),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("count", LISTS)
def test_each_list_of_blocks_goes_with_each_model(studio, kind, count):
    """And what it does not name counts nothing."""
    from mlxldm.adapters import LBW
    from mlxldm_convert import adapter

    assert list(LBW[count]) == LISTS[count]
    made, manifest = studio.lora(kind), studio.folder(kind).manifest
    numbers = {name: round(0.01 * (i + 1), 2) for i, name in enumerate(LISTS[count])}
    said = ",".join(map(str, numbers.values()))
    (one,) = worn(Job(loras=(f"{made.path}:2:lbw={said}",)), manifest, adapter).worn
    config = manifest.denoiser
    layers = [len(config.layers_down(level)) for level in range(config.levels)]
    seen = set()
    for (part, module), strength in one.strengths.items():
        place = block(module, layers) if part == "denoiser" else "BASE"
        seen.add(place)
        assert strength == pytest.approx(2 * (1 if place is None else numbers.get(place, 0.0))), (part, module)
    assert {"BASE", "M00", None} < seen and len(seen) > 10


# What is said, and what is refused.


def test_the_effect_is_what_the_weights_say(studio):
    """Against the norms of the changes, computed here."""
    made, pipe = studio.lora("sd1", "dora"), studio.pipe("sd1")
    changes, weights, layers = 0.0, 0.0, layers_of(pipe)
    for (part, module), change in made.changes.items():
        w = layers[part, module].weight.detach().double().numpy()
        w = w.reshape(w.shape[:2]) if w.ndim == 4 and w.shape[2:] == (1, 1) else w
        changes, weights = changes + np.square(change(w)).sum(), weights + np.square(w).sum()
    for backend in BACKENDS:
        _, effect = studio.work(backend, "sd1", f"{made.path}:0.3")
        assert effect.loras[0]["weights"] == pytest.approx(0.3 * math.sqrt(changes / weights), rel=1e-4)
        first, last = effect.lines()
        assert first.startswith(f"{made.path}:0.3: dora, ") and "modules of the U-Net" in first
        assert last.startswith("it changes the denoiser's answer by")
    said = [studio.work(backend, "sd1", f"{made.path}:0.3")[1].answer for backend in BACKENDS]
    assert said[0] == pytest.approx(said[1], rel=1e-3) and said[0] > 0.01


def test_what_changes_nothing_or_fits_nowhere_is_refused(studio):
    from safetensors.numpy import load_file, save_file

    from mlxldm_convert import adapter

    sd1 = studio.model("mlx", "sd1").manifest
    good = load_file(studio.lora("sd1").path)

    def refused(said, manifest=sd1, **tensors):
        path = studio.root / "refused.safetensors"
        path.unlink(missing_ok=True)
        save_file({name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}, path)
        with pytest.raises(UserError, match=said) as error:
            worn(Job(loras=(str(path),)), manifest, adapter)
        assert str(error.value).count(". ") == 0 and "refused.safetensors" in str(error.value)

    refused("changes nothing: all its numbers are zero", **{name: array * 0 for name, array in good.items()})
    refused("is no LoRA and no textual inversion", something=np.ones((2, 4)))
    refused("changes 1 modules .*of which the model has none", **{
        f"lora_unet_nothing.lora_{way}.weight": np.ones(shape) for way, shape in (("down", (2, 4)), ("up", (4, 2)))
    })  # fmt: skip
    some = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = np.ones((2, 80)), np.ones((80, 2))
    for said, a, b in [
        ("of the shape \\[80, 3\\], which does not go with", down, np.ones((80, 3))),
        ("makes a change of \\[80, 64\\].*\\[80, 80\\]", np.ones((2, 64)), up),
        ("numbers in .* that are not finite", down, up * np.nan),
    ]:
        refused(said, **{f"{some}.lora_down.weight": a, f"{some}.lora_up.weight": b})
    with pytest.raises(UserError, match="made for"):
        worn(Job(loras=(str(studio.lora("sdxl").path),)), sd1, adapter)


@pytest.mark.parametrize("text, said", [
    ("", "the name is missing"), (":0.5", "the name is missing"), ("a:200", "beyond 100"),
    ("a:1:lbw=1,2", "2 weights for blocks; 17 or 26"), ("a:lbw=" + ",".join("x" * 17), "17 weights for blocks"),
])  # fmt: skip
def test_texts_that_say_nothing_sensible_are_refused(text, said, studio):
    from mlxldm.generate import resolve

    with pytest.raises(UserError, match=said):
        resolve(JOB.replace(loras=(text,)), studio.model("mlx", "sd1").manifest)


def test_texts_of_loras():
    assert wish("a") == Wish("a") and wish("a:0.5") == Wish("a", 0.5) and wish("a:-1:.5") == Wish("a", -1.0, 0.5)
    assert wish("C:\\loras\\a.safetensors:1") == Wish("C:\\loras\\a.safetensors", 1.0)
    assert wish("a b:c:2") == Wish("a b:c", 2.0)
    blocks = wish(f"a:0.5:lbw={','.join(['1'] * 17)}")
    assert blocks == Wish("a", 0.5, None, (1.0,) * 17)


def test_jobs_keep_them_in_json():
    job = Job("a", loras=("a:0.5", "b"), embeddings=("c",))
    assert job.to_json() == Job("a").to_json() | {"loras": ("a:0.5", "b"), "embeddings": ("c",)}
    assert Job.from_json(job.to_json()) == job == Job.from_json({**job.to_json(), "loras": ["a:0.5", "b"]})
    assert "loras" not in Job("a").to_json()
    with pytest.raises(UserError, match="loras should be a list of texts"):
        Job.from_json({"loras": "a"})


# The command line.


def test_generate_says_what_a_lora_does(studio, capsys):
    import json

    from mlxldm.cli import main

    one, other = studio.lora("sd1"), studio.lora("sd1", "loha")
    out = studio.root / "out.png"
    arguments = ["generate", "a red house", "--model", str(studio.tiny_folder("sd1", "today")), "--backend", "torch",
                 "--device", "cpu", "--steps", "2", "--lora", f"{one.path}:0.3", "--lora", str(other.path), "--width",
                 "64", "--height", "64", "-o", str(out), "--json"]  # fmt: skip
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert f"{one.path}:0.3: lo" in captured.err and "weights change by" in captured.err
    assert "together they change the denoiser's answer by" in captured.err
    said = json.loads(captured.out)
    assert [lora["name"] for lora in said["adapters"]["loras"]] == [one.path.name, other.path.name]
    assert said["job"]["loras"] == [f"{one.path}:0.3", str(other.path)]


def test_merge_writes_the_dense_computation(studio, capsys):
    from mlxldm.cli import main
    from mlxldm.folder import open_folder

    one, other = studio.lora("sd1", "full", seed=6), studio.lora("sd1", "dora")
    target = studio.root / "merged"
    assert main(["merge", str(studio.tiny_folder("sd1", "today")), "--lora", f"{one.path}:0.3", "--lora",
                 f"{other.path}:0.5:0.1", str(target)]) == 0  # fmt: skip
    assert "weights change by" in capsys.readouterr().err
    folder = open_folder(target)
    layers = layers_of(merge(studio.pipe("sd1"), (one, 0.3, 0.3), (other, 0.5, 0.1)))
    for part, module in one.changes:
        layer = layers[part, module]
        w = layer.weight.detach().numpy()
        w = w.reshape(w.shape[:2]) if w.shape[2:] == (1, 1) else w.transpose(0, 2, 3, 1) if w.ndim == 4 else w
        assert np.allclose(folder.read(part, f"{module}.weight"), w, atol=1e-5), module
        if (part, module) in one.biases:
            assert np.allclose(folder.read(part, f"{module}.bias"), layer.bias.detach().numpy(), atol=1e-5)
    assert folder.manifest.source["merged"] == [f"{one.path}:0.3", f"{other.path}:0.5:0.1"]
    assert main(["merge", str(studio.tiny_folder("sd1", "today")), "--lora", str(one.path), str(target)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(studio, quantized, capsys):
    from mlxldm.cli import main

    target = studio.root / "not merged"
    made = studio.lora("sdxl")
    assert main(["merge", str(quantized.path), "--lora", str(made.path), str(target)]) == 2
    assert "is quantized" in capsys.readouterr().err
    assert main(["merge", str(studio.tiny_folder("sd1", "today")), "--lora", str(made.path), str(target)]) == 2
    assert "made for" in capsys.readouterr().err
    assert main(["merge", str(studio.tiny_folder("sd1", "today")), str(target)]) == 2
    assert "--lora" in capsys.readouterr().err and not target.exists()


def test_a_lora_is_found_by_name_in_an_added_folder(studio, tmp_path):
    import shutil

    from mlxldm import store
    from mlxldm.cli import find_adapter

    shutil.copy(studio.lora("sd1").path, tmp_path / "nice.safetensors")
    (tmp_path / "nice").mkdir()
    (tmp_path / "nice" / "nice.safetensors").write_bytes(b"no LoRA")
    store.add_folder(tmp_path)
    parts = studio.parts("sd1")
    assert find_adapter("nice", parts).name == find_adapter("nice.safetensors", parts).name == "nice.safetensors"
    with pytest.raises(UserError, match="no LoRA or textual inversion 'nicer' here. Did you mean 'nice'"):
        find_adapter("nicer", parts)
