"""Which backend is taken on which machine. The machines are made up; nothing is imported for them."""

from __future__ import annotations

import pytest

from mlxldm import backend
from mlxldm.backend import Choice, choose
from mlxldm.errors import UserError

CPU = {"version": "1", "device": "cpu", "devices": ["cpu"], "fast": True, "note": ""}
SLOW = {**CPU, "fast": False, "note": "MLX multiplies slowly here: install OpenBLAS."}
METAL = {"version": "1", "device": "gpu", "devices": ["gpu", "cpu"], "fast": True, "note": ""}
CUDA = {"version": "1", "device": "cuda:0", "devices": ["cuda:0", "cuda:1", "cpu"], "fast": True, "note": ""}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with these probes; None: not installed."""

    def machine(mlx=None, torch=None, apple=False, nvidia=False):
        class Module:
            def __init__(self, facts):
                self.facts = facts

            def probe(self):
                return self.facts

        facts = {"mlx": mlx, "torch": torch}
        monkeypatch.setattr(backend, "_module", lambda name: Module(facts[name]))
        monkeypatch.setattr(backend, "_missing", lambda name: "" if facts[name] else f"{name} is not installed.")
        monkeypatch.setattr(backend, "on_apple_silicon", lambda: apple)
        monkeypatch.setattr(backend, "nvidia_driver", lambda: nvidia)

    return machine


def taken(choice: Choice) -> tuple[str, str | None]:
    assert choice.why and not choice.why.endswith(".")
    return choice.backend, choice.device


def test_auto_takes_the_fastest_that_is_here(machine):
    machine(mlx=METAL, torch=CPU, apple=True)
    assert taken(choose()) == ("mlx", None)
    machine(mlx=CPU, torch=CUDA, nvidia=True)
    assert taken(choose()) == ("torch", "cuda:0")
    machine(mlx=CPU, torch=CPU, nvidia=True)
    assert taken(choose()) == ("mlx", "cpu")
    machine(mlx=CPU, torch=CPU)
    assert taken(choose()) == ("mlx", "cpu")
    machine(mlx=SLOW, torch=CPU)
    assert taken(choose()) == ("torch", "cpu")
    machine(mlx=SLOW)
    assert taken(choose()) == ("mlx", "cpu") and "OpenBLAS" in choose().why
    machine(mlx=METAL, nvidia=True)
    assert taken(choose()) == ("mlx", "gpu")
    machine(torch=CPU)
    assert taken(choose()) == ("torch", None)
    machine()
    with pytest.raises(UserError, match="Neither MLX nor torch"):
        choose()


def test_torch_is_not_asked_without_an_nvidia_driver(machine, monkeypatch: pytest.MonkeyPatch):
    """Importing it takes seconds."""
    machine(mlx=CPU, torch=CUDA)
    found = backend._module
    monkeypatch.setattr(backend, "_module", lambda name: found(name) if name == "mlx" else pytest.fail("torch"))
    assert taken(choose()) == ("mlx", "cpu")


def test_a_device_says_which_backend(machine):
    machine(mlx=CPU, torch=CUDA, nvidia=True)
    assert taken(choose(device="cpu")) == ("mlx", "cpu")
    assert taken(choose(device="cuda")) == ("torch", "cuda")
    assert taken(choose(device="cuda:1")) == ("torch", "cuda:1")
    machine(mlx=METAL, torch=CPU, apple=True)
    assert taken(choose(device="gpu")) == ("mlx", "gpu")
    assert taken(choose(device="cpu")) == ("mlx", "cpu")


def test_what_was_asked_for_is_taken_or_refused(machine):
    machine(mlx=CPU, torch=CUDA, nvidia=True)
    assert taken(choose("mlx")) == ("mlx", None)
    assert taken(choose("torch", "cpu")) == ("torch", "cpu")
    for name, device, said in [
        ("mlx", "gpu", "mlx has no gpu on this machine; it has cpu"),
        ("torch", "cuda:7", "torch has no cuda:7 on this machine; it has cuda:0 and cuda:1 and cpu"),
        ("torch", "mps", "torch has no mps"),
        ("mlx", "cuda", "mlx has no device 'cuda'"),
        ("torch", "cuda:x", "no device 'cuda:x'"),
        ("auto", "cuda:7", "torch has no cuda:7"),
        ("auto", "gpu", "mlx has no gpu"),
        ("auto", "tpu", "no device 'tpu'"),
        ("jax", None, "no backend 'jax'"),
    ]:
        with pytest.raises(UserError, match=said):
            choose(name, device)
    machine(mlx=CPU)
    with pytest.raises(UserError, match="not installed"):
        choose("torch")
    with pytest.raises(UserError, match="not installed"):
        choose(device="cuda")


def test_what_is_missing_is_said_with_its_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name, *_: None)
    assert backend._missing("torch") == (
        'The torch backend needs torch, diffusers, transformers, which are not installed: pip install "mlxldm[torch]".'
    )
    for system, chip, said in [
        ("linux", "x86_64", 'pip install "mlx[cpu]"'),
        ("darwin", "arm64", "pip install mlx"),
        ("darwin", "x86_64", "--backend torch"),
        ("win32", "AMD64", "--backend torch"),
    ]:
        monkeypatch.setattr(backend.sys, "platform", system)
        monkeypatch.setattr(backend.platform, "machine", lambda chip=chip: chip)
        assert said in backend._missing("mlx")


def test_precisions():
    for name in ("auto", "float32", "float16", "bfloat16"):
        backend.check_precision(name)
    with pytest.raises(UserError, match="Did you mean 'float32'"):
        backend.check_precision("float3")
