"""Does this machine compute right, and how fast? Each part of the embedded model against stored float32 results.

The results in `scenes/reference.npz` were made by `tools/make_reference.py` with torch in float32 on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backend as backends
from . import store
from .errors import UserError
from .generate import Picture, generate
from .job import Job
from .noise import Noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import Model
    from .folder import Folder

REFERENCE = Path(__file__).with_name("scenes") / "reference.npz"

# dB. In float32 two right implementations differ by the order of their sums only; half precision has 8 or 11 bits.
ENOUGH = {"float32": 55.0, "float16": 35.0, "bfloat16": 35.0}
PARTS = {
    "text": "text encoder",
    "denoiser": "denoiser",
    "encoder": "autoencoder, in",
    "decoder": "autoencoder, out",
    "picture": "whole picture",
}

JOB = Job(prompt="a red lighthouse by the sea at dusk", negative="snow", seed=7, sampler="ddim")
TIMESTEP = 500.0
PATCH = 64  # pixels a side of what the autoencoder is tried on


@dataclass(frozen=True)
class Check:
    """One part: how near it came (dB, higher is nearer), how near it should come, and the seconds it took."""

    part: str
    decibel: float
    enough: float
    seconds: float

    @property
    def right(self) -> bool:
        return self.decibel >= self.enough  # False for NaN too

    def __str__(self) -> str:
        found = f"{min(self.decibel, 999):.0f} dB" if math.isfinite(self.decibel) or self.decibel > 0 else "not numbers"
        took = f"{self.seconds * 1000:.0f} ms" if self.seconds < 1 else f"{self.seconds:.1f} s"
        verdict = "right" if self.right else "WRONG"
        return f"{PARTS[self.part]:17} {verdict}  {found:>7} (at least {self.enough:.0f})  {took:>7}"


@dataclass(frozen=True)
class Report:
    """All checks on one backend."""

    description: str
    why: str
    precision: str
    checks: list[Check]

    @property
    def right(self) -> bool:
        return all(check.right for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """For `mlxldm doctor --json`."""
        checks = [{**asdict(check), "right": check.right} for check in self.checks]
        for check in checks:
            if not math.isfinite(check["decibel"]):
                check["decibel"] = None if not check["right"] else 999.0
        return {"right": self.right, "backend": self.description, "why": self.why, "checks": checks}

    def __str__(self) -> str:
        verdict = "This machine computes right."
        if not self.right:
            other = "" if self.precision == "float32" else " --precision float32 may help;"
            verdict = f"This machine does not compute right;{other} please report this, with these lines."
        return "\n".join([f"{self.description}: {self.why}", *map(str, self.checks), verdict])


def examine(backend: str = "auto", device: str | None = None, precision: str = "auto") -> Report:
    """Load the embedded model on a backend and compare it, part by part, with the stored results."""
    backends.check_precision(precision)
    choice = backends.choose(backend, device)
    folder = store.find(None, None)
    expected = load_reference(folder)
    model = backends.load(folder, choice.backend, choice.device, precision)
    enough = ENOUGH[model.precision]
    checks = []
    for part, (found, seconds) in measure(model, expected["patch"]).items():
        peak = 255.0 if part == "picture" else None
        checks.append(Check(part, psnr(found, expected[part], peak), enough, seconds))
    return Report(model.description, choice.why, model.precision, checks)


def measure(model: Model, patch: np.ndarray | None = None) -> dict[str, tuple[np.ndarray, float]]:
    """What each part makes of a fixed input, float32 (the picture: uint8), and the seconds it took, the best of three.

    `patch` is what the autoencoder is tried on, uint8 (1, PATCH, PATCH, 3); None: the middle of the picture drawn here.
    """
    drawn, seconds = _picture(model)
    if patch is None:
        patch = middle(drawn)
    pixels = model.array(patch.astype(np.float32) / 127.5 - 1)
    config, factor = model.manifest.denoiser, model.manifest.vae.factor
    x = model.array(Noise(7).draw(1, drawn.shape[0] // factor, drawn.shape[1] // factor, config.in_channels))
    latent = model.array(Noise(8).draw(1, PATCH // factor, PATCH // factor, config.in_channels))
    cond = model.encode_text(JOB.prompt, JOB.negative, drawn.shape[1], drawn.shape[0])

    def both() -> np.ndarray:
        return np.concatenate([model.numpy(guess) for guess in model.predict(x, TIMESTEP, cond) if guess is not None])

    return {
        "text": _timed(lambda: model.numpy(model.text_states(JOB.prompt))),
        "denoiser": _timed(both),
        "encoder": _timed(lambda: model.numpy(model.encode_image(pixels)[0])),
        "decoder": _timed(lambda: model.numpy(model.decode(latent))),
        "picture": (drawn, seconds),
    }


def middle(picture: np.ndarray) -> np.ndarray:
    """The middle PATCH × PATCH pixels of a picture (H, W, 3), as (1, PATCH, PATCH, 3)."""
    top, left = (picture.shape[0] - PATCH) // 2, (picture.shape[1] - PATCH) // 2
    return picture[None, top : top + PATCH, left : left + PATCH]


def psnr(found: np.ndarray, expected: np.ndarray, peak: float | None = None) -> float:
    """Peak signal to noise ratio in dB; the peak is the range of `expected` if not given. Unlike shapes give NaN."""
    if found.shape != expected.shape:
        return math.nan
    wanted = expected.astype(np.float64)
    error = float(np.sqrt(np.mean((found.astype(np.float64) - wanted) ** 2)))
    if error == 0:
        return math.inf
    return 20 * math.log10((peak or float(np.ptp(wanted))) / error) if math.isfinite(error) else math.nan


def load_reference(folder: Folder, path: Path = REFERENCE) -> dict[str, np.ndarray]:
    """The stored results, or `UserError` if there are none or they belong to other weights."""
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError("This installation has no stored results to compare with; install mlxldm again.") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"The stored results are damaged ({error}); install mlxldm again.") from None
    if str(stored.pop("fingerprint")) != fingerprint(folder):
        raise UserError(
            "The stored results belong to other weights than the embedded model's; install mlxldm again, or, having "
            "changed the model, run tools/make_reference.py."
        )
    return stored


def save_reference(folder: Folder, model: Model, path: Path = REFERENCE) -> dict[str, np.ndarray]:
    """Measure `model` and store the results for `examine`."""
    results = {part: found for part, (found, _) in measure(model).items()}
    results["patch"] = middle(results["picture"])
    results["decoder"] = results["decoder"].astype(np.float16)  # the largest; 66 dB is precise enough for a picture
    np.savez_compressed(path, fingerprint=np.array(fingerprint(folder)), **results)  # type: ignore[arg-type]
    return results


def fingerprint(folder: Folder) -> str:
    """Changes with the model's description and its weights; reads one tensor a part, so that it is quick."""
    digest = hashlib.sha256(json.dumps(folder.manifest.to_json(), sort_keys=True).encode())
    for part in folder.manifest.parts:
        tensors = folder.names(part)
        name = max(sorted(tensors), key=lambda name: len(tensors[name].shape))
        digest.update(name.encode() + np.ascontiguousarray(folder.read(part, name)).tobytes())
    return digest.hexdigest()


def _picture(model: Model) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    for event in generate(model, JOB):
        if isinstance(event, Picture):
            return event.pixels, time.perf_counter() - started
    raise AssertionError("generate ended without a picture")


def _timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    best = math.inf
    for _ in range(3):
        started = time.perf_counter()
        found = run()
        best = min(best, time.perf_counter() - started)
    return found, best
