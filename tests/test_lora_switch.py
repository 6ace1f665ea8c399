"""LoRAs that are changed between jobs: no bit stays behind whatever happens, and what it costs is what is said."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import has, needs_torch
from test_lora import APART, BACKENDS, BAR, JOB, as_on_a_gpu, psnr, quantized, studio, weights_of  # noqa: F401

from mlxldm import backend as backends
from mlxldm import plan
from mlxldm.adapters import NONE, Adapters, merged, put_on, worn
from mlxldm.errors import UserError
from mlxldm.generate import generate
from mlxldm.job import Job

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]


def wear(model, *texts: str, find=None) -> Adapters:
    from mlxldm_convert import adapter

    return worn(Job(loras=texts), model.manifest, find or adapter)


def opener():
    """Files that are read once, as a worker does."""
    from mlxldm_convert import adapter

    known = {}

    def find(name, parts):
        if name not in known:
            known[name] = adapter(name, parts)
        return known[name]

    return find


@pytest.mark.parametrize("stop", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("backend", BACKENDS)
def test_whatever_stops_it_in_the_middle_the_weights_are_as_they_were(studio, backend, stop, monkeypatch):  # noqa: F811
    model = studio.model(backend, "sd1")
    put_on(model, NONE)
    before = weights_of(model, backend)
    one, two = wear(model, f"{studio.lora('sd1').path}:0.5"), wear(model, f"{studio.lora('sd1', 'full', seed=6).path}")
    put_on(model, one)
    changed = weights_of(model, backend)
    weights, calls = type(model.weights), []

    def failing(method: str, at: int):
        real = getattr(weights, method)

        def call(self, *args):
            calls.append(method)
            if calls.count(method) == at:
                raise stop
            return real(self, *args)

        return call

    for method, at in (("change", 1), ("change", 40), ("finish", 1)):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(weights, method, failing(method, at))
            with pytest.raises(stop):
                put_on(model, two)
        assert calls.count(method) >= at and weights_of(model, backend) == before, method
        put_on(model, one)
        assert weights_of(model, backend) == changed
    with monkeypatch.context() as patch:  # even what puts them back is stopped
        calls.clear()
        patch.setattr(weights, "change", failing("change", 5))
        patch.setattr(weights, "restore", failing("restore", 2))
        with pytest.raises(stop):
            put_on(model, two)
    assert weights_of(model, backend) != before
    put_on(model, one)
    assert weights_of(model, backend) == changed
    put_on(model, NONE)
    assert weights_of(model, backend) == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_quantized_model_in_any_precision_gets_its_bits_back(studio, quantized, backend, precision):  # noqa: F811
    model = backends.load(quantized, backend, "cpu", precision)
    parts = [*model._texts, model._unet] if backend == "mlx" else [*(one.net for one in model._encoders), model._unet]

    def bits() -> list[bytes]:
        if backend == "mlx":
            import mlx.core as mx
            from mlx.utils import tree_flatten

            return [bytes(memoryview(mx.array(array).view(mx.uint8))) for part in parts
                    for _, array in tree_flatten(part.parameters())]  # fmt: skip
        import torch

        return [array.contiguous().view(torch.uint8).numpy().tobytes() for part in parts for array in part.parameters()]

    before = bits()
    one, other = studio.lora("sdxl"), studio.lora("sdxl", "dora", seed=5)
    for texts in ((f"{one.path}:0.8",), (f"{one.path}:0.5",), (f"{other.path}:0.3", f"{one.path}:-0.2")):
        put_on(model, wear(model, *texts))
        assert bits() != before
    put_on(model, NONE)
    assert bits() == before


def test_packed_weights_are_untouched_beside_their_factors(studio, quantized):  # noqa: F811
    from mlx.utils import tree_flatten

    model = as_on_a_gpu(quantized, packed=True)

    def bits() -> dict:
        return {(i, name): np.array(array).tobytes() for i, part in enumerate([*model._texts, model._unet])
                for name, array in tree_flatten(part.parameters())}  # fmt: skip

    before, one, other = bits(), studio.lora("sdxl"), studio.lora("sdxl", "full", seed=5)
    for texts in ((f"{one.path}:0.8",), (f"{one.path}:0.5",), (f"{other.path}:0.3",), (f"{one.path}:0.1",)):
        put_on(model, wear(model, *texts))
    assert {key for key, value in bits().items() if value != before[key]}  # convolutions, and what was padded
    put_on(model, NONE)
    assert bits() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_rounds_once(studio, backend):  # noqa: F811
    """One product in the weight's own type, as on a GPU: each weight is the exact one's neighbour, at most."""
    from mlxldm.on_mlx.device import form

    model = backends.load(studio.folder("sd1"), backend, "cpu", "bfloat16")
    adapters = wear(model, f"{studio.lora('sd1').path}:0.3", f"{studio.lora('sd1', seed=9).path}:-0.2")
    was = {key: np.array(model.numpy(model.weights.base(key))) for key in adapters.changes()}
    with form(True):
        put_on(model, adapters)
    for key, changes in adapters.changes().items():
        layer = model.weights._place(key).weight if backend == "torch" else model.weights._as_is(key)[1]
        now = model.numpy(layer).reshape(was[key].shape)
        wanted = merged(was[key], changes)
        # half a step of bfloat16's seven bits, and what the factors were rounded by
        assert np.all(np.abs(now - wanted) <= 2**-8 * np.abs(wanted) + 2**-6 * np.abs(wanted - was[key]).max()), key
        assert np.abs(now - wanted).max() < 0.1 * np.abs(wanted - was[key]).max() + 2**-8 * np.abs(wanted).max()


@pytest.mark.parametrize("alpha", [1e-4, 1.0, 1e4])
def test_factors_are_of_like_size_whatever_alpha_is(tmp_path, alpha):
    """float16 has no room for 1e-8, and none for 1e5."""
    import adapter_files as files

    from mlxldm_convert.adapters import adapter

    stream, key = np.random.RandomState(0), ("denoiser", "mid_block.attentions.0.proj_in")
    down, up = (stream.standard_normal(shape).astype(np.float32) for shape in ((2, 16), (16, 2)))
    names = {f"{files.kohya(*key)}.{end}": value for end, value in
             (("lora_down.weight", down * 1e-3), ("lora_up.weight", up), ("alpha", np.float32(alpha)))}  # fmt: skip
    change = adapter(files.Arrays(names), files.tiny("sd1")).changes[key]
    sizes = [np.abs(array).max() for array in change.arrays]
    assert 0.25 <= sizes[0] / sizes[1] <= 4
    assert np.allclose(change.arrays[0] @ change.arrays[1], alpha / 2 * 1e-3 * (up @ down), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_denoiser_is_asked_when_its_answer_would_be_another(studio, backend, monkeypatch):  # noqa: F811
    """Not for a weight of the same order; and what is told then says which one it is of."""
    model = studio.model(backend, "sd1")
    put_on(model, NONE)
    asked, real, find = [], type(model).glance, opener()
    monkeypatch.setattr(type(model), "glance", lambda self, *args: asked.append(1) or real(self, *args))
    a, b = str(studio.lora("sd1").path), str(studio.lora("sd1", "dora").path)
    put_on(model, wear(model, f"{a}:0.8", find=find))
    count = len(asked)
    told = {}
    for text, more in ((f"{a}:0.5", 0), (f"{a}:0.1", 0), (f"{a}:0.01", 1), (f"{a}:0.8", 1), (f"{a}:-0.8", 1),
                       (f"{a}:0.8:0.1", 1), (f"{b}:0.8", 1)):  # fmt: skip
        told[text] = put_on(model, wear(model, text, find=find))
        assert len(asked) == count + more, text
        count = len(asked)
    both = put_on(model, wear(model, f"{a}:0.4", f"{b}:0.8", find=find))
    assert len(asked) == count + 1 and both.answer_of == (f"{a}:0.4", f"{b}:0.8")
    weak = told[f"{a}:0.5"]
    assert weak.answer_of == (f"{a}:0.8",) and weak.lines()[-1].startswith(f"{a}:0.8 changed the denoiser's answer by")
    assert weak.loras[0]["weights"] == pytest.approx(0.625 * told[f"{a}:0.8"].loras[0]["weights"], rel=1e-6)
    assert told[f"{a}:0.01"].answer < 0.5 * weak.answer
    assert told[f"{a}:0.01"].lines()[-1].startswith("it changes the denoiser's answer by")
    put_on(model, NONE)
    assert model.weights.answered is None  # which would keep the file's numbers


def test_what_changes_nothing_that_is_computed_leaves_nothing_either(studio):  # noqa: F811
    model = backends.load(studio.folder("sd1"), "torch", "cpu", "bfloat16")
    before = [tensor.clone() for tensor in model._unet.parameters()]
    text = f"{studio.lora('sd1').path}:0.0000001:0"
    with pytest.raises(UserError, match="changes nothing that"):
        put_on(model, wear(model, text))
    assert all(bool((one == two).all()) for one, two in zip(before, model._unet.parameters(), strict=True))
    assert psnr(list(generate(model, JOB))[-1].pixels, studio.draw("torch", "sd1")) > 25


@pytest.mark.parametrize("what", ["lora", "loha", "dora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_plan_counts_what_is_held_for_them(studio, backend, precision, what):  # noqa: F811
    model = backends.load(studio.folder("sd1"), backend, "cpu", precision)
    adapters = wear(model, f"{studio.lora('sd1', what).path}:0.3")
    read, held = plan._adapted(model.manifest, model.machine, adapters)
    put_on(model, adapters)
    changes = [change for one in adapters.worn for change in one.adapter.changes.values()]
    arrays = [array for change in changes for array in (*change.arrays, change.magnitude) if array is not None]
    assert read == sum(array.nbytes for array in arrays)
    kept = [weight.nbytes for _, weight, _ in model.weights._kept.values()] if backend == "mlx" else [
        weight.nbytes for weight in model.weights._kept.values()
    ]
    moved = [array for change in model.weights._moved.values() for array in (*change.arrays, change.magnitude)
             if array is not None]  # fmt: skip
    if backend == "torch":  # which works with the very numbers that were read, where they are of its type
        theirs = {array.__array_interface__["data"][0] for array in arrays}
        moved = [array for array in moved if array.data_ptr() not in theirs]
    assert held == sum(kept) + sum(array.nbytes for array in moved)
    job = JOB.replace(loras=(f"{studio.lora('sd1', what).path}:0.3",))
    with_, without = (plan.plan(model.manifest, model.machine, job, 10**12, beside)
                      for beside in (plan.Beside(adapters=adapters), plan.ALONE))  # fmt: skip
    assert [stage.name for stage in with_.stages] == ["load", "adapters", "text", "denoise", "decode"]
    assert with_.stages[-1].bytes - without.stages[-1].bytes == read + held
    left = plan.left(model.manifest, model.machine, 10**9, plan.Beside(adapters=adapters))
    assert left == 10**9 - read - held
