"""The face every backend shows (`Model`), and the choice of one: MLX or torch, imported only when it is used."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np

    from .adapters import Weights, Word
    from .clip import ClipFolder
    from .folder import Folder, Manifest
    from .plan import Machine
    from .prompt import Reader, Tokens

BACKENDS = ("mlx", "torch")
PRECISIONS = ("float32", "float16", "bfloat16")
INSTALL_TORCH = 'pip install "mlxldm[torch]"'

Array = Any  # an mlx.core.array or a torch.Tensor; the pipeline uses + - * / on it and nothing else


class Clip(Protocol):
    """A loaded CLIP: texts and pictures as vectors, the nearer in direction the more they are of the same."""

    def text(self, prompt: str) -> np.ndarray:
        """The vector (width,) of a text, float32, of any length."""

    def pictures(self, pixels: np.ndarray) -> np.ndarray:
        """The vectors (N, width) of pictures (N, S, S, 3) as `retrieval.prepared` makes them."""


class Model(Protocol):
    """A loaded model. Arrays are float32, NHWC, one picture (N = 1) unless a line says otherwise."""

    manifest: Manifest
    reader: Reader  # its tokenizers
    precision: str  # of PRECISIONS: what the U-Net computes in
    machine: Machine  # where it is: what the memory plan goes by
    weights: Weights  # those that adapters change
    description: str  # for people: "MLX 0.32.4 on the CPU (OpenBLAS), float32"

    def array(self, x: np.ndarray) -> Array:
        """`x` as a float32 array on the model's device."""

    def numpy(self, x: Array) -> np.ndarray:
        """`x` as float32 NumPy; waits until it is computed."""

    def encode_text(
        self,
        prompt: Tokens | str | None,
        negative: Tokens | str | None,
        width: int,
        height: int,
        zeros: bool = False,
        *,
        scores: tuple[float, float] | None = None,
        level: int | None = None,
        guidance: float | None = None,
    ) -> Any:
        """The conditioning for `predict`, opaque to everyone else. `negative` None means: no guidance, one row.

        A string is a text as `reader` reads it. The context is the chunks of a text one after the other, each encoded
        alone; of two texts the shorter is filled up with empty chunks. Weights multiply the hidden states of their
        tokens, and the mean of all numbers of a chunk is then brought back to what it was, as in A1111's web UI.
        What stands for the text as a whole (SDXL) is that of its first chunk.

        `zeros`: all that the encoders make of the negative prompt becomes zeros (`Manifest.zeros_for_empty`). So does
        it of a `prompt` that is None.
        `width` and `height` are the picture's, in pixels (some families are told the size). What depends on the
        text alone (keys and values of the cross attention) is computed once here or on first use, not every step.
        What single kinds of networks are told besides: `scores`, how beautiful the picture is to be, and one for the
        negative prompt (SDXL's refiner); `level`, the noise in the small picture (the x4 upscaler); `guidance`, which
        they do themselves (latent consistency models).
        """

    def embed_ids(self, ids: Sequence[int]) -> Array:
        """What a BERT text encoder makes of tokens that are numbers already (1, len(ids), width); for `condition`.

        Raises `UserError` for more tokens than it reads, or numbers that are none (`BertConfig.check`).
        """

    def embed_class(self, label: int) -> Array:
        """What stands for a class (1, 1, width); for `condition`. `UserError` if there is none of that number."""

    def rescale(self, labels: Array) -> Array:
        """A map of labels (1, H, W, labels), 1 where a pixel has the label and 0 elsewhere, at the size and with the
        channels that the network takes beside its latents (1, h, w, c); for `predict`'s `more`."""

    def condition(self, told: Array | None, without: Array | None) -> Any:
        """The conditioning for `predict` of a network that attends to `told` (1, L, width), which is no text.

        `without` (1, L, width) is what it is told for guidance; None: no guidance. `told` None: it attends to nothing.
        What depends on them alone is computed once here, as in `encode_text`.
        """

    def learn(self, words: Sequence[Word]) -> None:
        """From now on prompts may use these words of textual inversions, and no others."""

    def text_states(self, prompt: Tokens | str) -> Array:
        """What the cross attention is given for `prompt` (1, positions, width): how `doctor` sees the text encoder."""

    def predict(
        self, x: Array, timestep: float, cond: Any, more: Array | None = None
    ) -> tuple[Array, Array | None]:
        """The network's raw output (the noise, or v) with the prompt, and with the negative prompt or None.

        `x` (1, h, w, c) is already scaled by 1/sqrt(sigma² + 1). `more` (1, h, w, c') are channels that some networks
        take after those of `x`: a mask and the picture around it.
        """

    def glance(self, x: Array, timestep: float, cond: Any) -> Array:
        """`predict` of the prompt alone, of a picture whose size will not come again."""

    def deviation(self, x: Array) -> Array:
        """The standard deviation of all the numbers in `x`, (1, 1, 1, 1); nothing waits for it."""

    def encode_image(self, pixels: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (1, h, w, c) of the latent of `pixels` (1, H, W, 3) in [-1, 1].

        Both already carry the autoencoder's scaling factor. With a table of codes (VQ) the latent is certain: it is the
        mean, as it is before its places become codes, and the deviation is 0.
        """

    def decode(self, latent: Array) -> Array:
        """Pixels (1, H, W, 3), about [-1, 1], of a latent (1, h, w, c) that carries the scaling factor.

        H = h times the autoencoder's `factor`. With a table of codes, each place first becomes the nearest code.
        """

    def load_clip(self, folder: ClipFolder) -> Clip:
        """The two towers of a CLIP, on this model's device; letting go of it unloads it."""

    def seamless(self, axes: str) -> None:
        """From now on pictures continue on their other side, along "x", "y" or "both"; "" is the end of it.

        Every convolution pads with what is on the other side instead of zeros. `generate` calls this around a job.
        """

    def evaluate(self, x: Array) -> Array:
        """`x`, its computation finished or at least started for good; `generate` calls it once a step."""

    def memory(self) -> dict[str, int]:
        """Bytes: {"weights": ..., "peak": ...}."""

    def unload(self) -> None:
        """Let go of the weights."""


@dataclass(frozen=True)
class Choice:
    """A backend and a device of it, and why, in a few words for a person."""

    backend: str
    device: str | None  # None: whatever the backend takes by itself
    why: str


def load(folder: Folder, backend: str = "auto", device: str | None = None, precision: str = "auto") -> Model:
    """The model in `folder` on a backend: `auto`, `mlx` or `torch`.

    `device` is `cpu` or `gpu` for MLX, `cpu`, `cuda`, `cuda:1` or `mps` for torch. `precision` is `auto` or a name
    of PRECISIONS. Raises `UserError` for a name it does not know and for a backend or device that is not here.
    """
    choice = choose(backend, device)
    check_precision(precision)
    return _module(choice.backend).load(folder, choice.device, precision)


def machine(choice: Choice, precision: str = "auto") -> Machine:
    """Where `load` would put a model and in what precision, without loading one; raises as `load` does."""
    check_precision(precision)
    found: Machine = _module(choice.backend).machine(choice.device, precision)
    return found


def check_precision(precision: str) -> None:
    """`UserError` unless `precision` is `auto` or a name of PRECISIONS."""
    if precision not in ("auto", *PRECISIONS):
        raise UserError(
            f"There is no precision {precision!r}.{nearest(precision, PRECISIONS)} "
            f"There are auto, {', '.join(PRECISIONS)}."
        )


def choose(backend: str = "auto", device: str | None = None) -> Choice:
    """Which backend will run, and why; torch is imported only where it is asked for or an NVIDIA driver is here."""
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"There is no backend {backend!r}.{nearest(backend, BACKENDS)} There are auto, mlx and torch.")
    device = None if device in (None, "auto") else device
    if backend == "auto":
        return _auto(device)
    missing = _missing(backend)
    if missing:
        raise UserError(missing)
    return Choice(backend, _checked_device(backend, device), "asked for")


def _auto(device: str | None) -> Choice:
    """Apple silicon: MLX. An NVIDIA card torch can use: torch. Otherwise the CPU, on the faster of the two."""
    if device is not None and device.split(":")[0] in ("cuda", "mps"):
        if _missing("torch"):
            raise UserError(_missing("torch"))
        return Choice("torch", _checked_device("torch", device), f"{device} is a device of torch")
    if device == "gpu":
        if _missing("mlx"):
            raise UserError(_missing("mlx"))
        return Choice("mlx", _checked_device("mlx", device), "gpu is a device of MLX")
    if device not in (None, "cpu"):
        raise UserError(f"There is no device {device!r}.{nearest(device, DEVICES)} There are {', '.join(DEVICES)}.")

    mlx, torch = not _missing("mlx"), not _missing("torch")
    if mlx and on_apple_silicon():
        return Choice("mlx", device, "Apple silicon")
    if torch and device is None and nvidia_driver():
        first = str((_module("torch").probe() or {}).get("device"))
        if first.startswith("cuda"):
            return Choice("torch", first, "an NVIDIA GPU")
    if mlx:
        facts = _module("mlx").probe()
        if device is None and facts["device"] == "gpu":
            return Choice("mlx", "gpu", "MLX has a GPU here")
        why = "the CPU was asked for" if device else "no GPU was found"
        if facts.get("fast", True):
            return Choice("mlx", "cpu", why)
        if torch:
            return Choice("torch", "cpu", f"{why}, and MLX has no fast BLAS library")
        return Choice("mlx", "cpu", f"{why}; {facts['note'].rstrip('.')}")
    if torch:
        return Choice("torch", device, "MLX is not installed")
    raise UserError(f"Neither MLX nor torch is installed here; {INSTALL_TORCH} brings the second.")


DEVICES = ("cpu", "gpu", "cuda", "mps")
_OWN_DEVICES = {"mlx": ("cpu", "gpu"), "torch": ("cpu", "cuda", "mps")}


def _checked_device(backend: str, device: str | None) -> str | None:
    """`device` if this backend has it here; `UserError` with the ones it has otherwise."""
    if device is None:
        return None
    kind, _, index = device.partition(":")
    own = _OWN_DEVICES[backend]
    if kind not in own or (index and not (kind == "cuda" and index.isdecimal())):
        raise UserError(f"{backend} has no device {device!r}.{nearest(device, own)} It knows {', '.join(own)}.")
    if kind == "cpu":
        return device
    here = devices(_module(backend).probe() or {})
    if device not in here and not (device == "cuda" and "cuda:0" in here):
        raise UserError(f"{backend} has no {device} on this machine; it has {' and '.join(here)}.")
    return device


def devices(facts: dict[str, Any]) -> list[str]:
    """The devices a backend has here, by what its probe said; the first is the one it takes by itself."""
    return list(dict.fromkeys([facts.get("device", "cpu"), *facts.get("devices", ()), "cpu"]))


def available(names: Iterable[str] = BACKENDS) -> list[dict[str, Any]]:
    """One dict a backend, for `mlxldm backends`: name, ready, and its probe's facts or, not ready, a note what to do.

    Each is imported for that, which takes seconds for torch: who has chosen one asks for that one only.
    A probe (`on_mlx.probe`, `on_torch.probe`) says at least version and device (its own first choice), and what it can
    of: devices, device_name, memory (bytes), blas, fast (False: this CPU is used badly) and note (then: what helps).
    """
    rows: list[dict[str, Any]] = []
    for name in names:
        missing = _missing(name)
        if missing:
            rows.append({"name": name, "ready": False, "note": missing})
            continue
        try:
            facts = _module(name).probe()
            problem = None if facts else "it says nothing about itself"
        except ImportError as error:
            facts, problem = None, str(error)
        if facts is None:
            rows.append({"name": name, "ready": False, "note": f"It is installed, but importing it fails: {problem}."})
        else:
            rows.append({**facts, "name": name, "ready": True, "devices": devices(facts)})
    return rows


def on_apple_silicon() -> bool:
    """Whether this is a Mac with an M chip."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def nvidia_driver() -> bool:
    """Whether an NVIDIA driver is here: a look at the file system, because asking torch costs seconds."""
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()  # dxg: Windows' Linux


def _missing(backend: str) -> str:
    """Why `backend` cannot be imported, as a sentence with the command that helps; empty if it can."""
    if backend == "mlx":
        if importlib.util.find_spec("mlx") is not None and importlib.util.find_spec("mlx.core") is not None:
            return ""
        command = 'pip install "mlx[cpu]"' if sys.platform == "linux" else "pip install mlx"
        where = "MLX runs on Apple silicon and on Linux; here, use --backend torch"
        can = on_apple_silicon() or sys.platform == "linux"
        return f"The mlx backend needs MLX, which is not installed: {command if can else where}."
    gone = [name for name in ("torch", "diffusers", "transformers") if importlib.util.find_spec(name) is None]
    if not gone:
        return ""
    verb = "is" if len(gone) == 1 else "are"
    return f"The torch backend needs {', '.join(gone)}, which {verb} not installed: {INSTALL_TORCH}."


def _module(backend: str) -> Any:
    """The backend's package. The only place that imports one; never both for one model."""
    if backend == "mlx":
        from . import on_mlx

        return on_mlx
    from . import on_torch

    return on_torch
