"""Pictures in and out: start pictures and masks as diffusers prepares them, PNGs that carry the job that made them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError
from .job import Job

if TYPE_CHECKING:
    from PIL import Image

CHUNK = "mlxldm"  # the PNG text chunk with the whole job in JSON
OTHERS = "parameters"  # the one that A1111 writes and most other programs read

Pathlike = str | os.PathLike[str]


# In.


def size_of(path: Pathlike) -> tuple[int, int]:
    """Width and height in pixels of the picture in a file, as it is shown (cameras store some sideways)."""
    return _open(path).size


def load_image(path: Pathlike, width: int, height: int) -> np.ndarray:
    """The picture in a file, stretched to `width` × `height` with Lanczos: float32 (1, height, width, 3) in [-1, 1].

    The same numbers as diffusers' VaeImageProcessor. What is transparent counts as white.
    """
    from PIL import Image

    picture = _open(path)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return 2.0 * (np.asarray(picture, np.float32)[None] / 255.0) - 1.0


def load_mask(path: Pathlike, width: int, height: int, factor: int = 8) -> np.ndarray:
    """The mask in a file at the size of the latent: float32 (1, height/factor, width/factor, 1), 1 = paint anew.

    As diffusers prepares it for inpainting: stretched with Lanczos, grey, cut at one half, every `factor`-th pixel.
    """
    from PIL import Image

    picture = _open(path)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    white = np.asarray(picture.convert("L"), np.float32) / 255.0 >= 0.5
    return white[::factor, ::factor].astype(np.float32)[None, :, :, None]


def load_depth(path: Pathlike, width: int, height: int, factor: int = 8) -> np.ndarray:
    """The depth map in a file at the size of the latent: float32 (1, height/factor, width/factor, 1), from -1 to 1.

    Near is white. As diffusers prepares it: bicubic (Keys 1981 with torch's a = -0.75) to the latent's size, then
    stretched to the whole range. `factor` is even, so that each value is made of the four pixels at the middle of its
    square, in either direction.
    """
    from PIL import Image

    picture = read_picture(path)
    if not picture.mode.startswith(("I", "F")):  # these have more than eight bits
        picture = picture.convert("L")
    picture = Image.fromarray(np.asarray(picture).astype(np.float32))
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    depth = np.asarray(picture, np.float32)
    taps = np.array([-0.09375, 0.59375, 0.59375, -0.09375], np.float32)
    first = factor // 2 - 2
    depth = sum(tap * depth[first + i :: factor][: height // factor] for i, tap in enumerate(taps))
    depth = sum(tap * depth[:, first + i :: factor][:, : width // factor] for i, tap in enumerate(taps))
    low, high = float(depth.min()), float(depth.max())
    if low == high:
        raise UserError(f"{os.fspath(path)!r} is of one grey all over; a depth map is white where it is near.")
    return (2 * (depth - low) / (high - low) - 1)[None, :, :, None]


def read_picture(path: Pathlike) -> Image.Image:
    """The picture in a file, upright and in whatever it is stored as, or a `UserError`."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise UserError(f"There is no file {os.fspath(path)!r}; give the path of a picture.") from None
    except UnidentifiedImageError:
        raise UserError(f"{os.fspath(path)!r} is not a picture; PNG, JPEG and WebP can be read.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{os.fspath(path)!r} is too large a picture; scale it down first.") from None
    except OSError as error:
        raise UserError(f"{os.fspath(path)!r} cannot be read as a picture: {error.strerror or error}.") from None
    except (ValueError, SyntaxError) as error:  # what Pillow raises for some damaged files
        raise UserError(f"{os.fspath(path)!r} is a damaged picture: {error}.") from None


def _open(path: Pathlike) -> Image.Image:
    """The picture in a file, upright and in RGB, or a `UserError`."""
    from PIL import Image

    picture = read_picture(path)
    if picture.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255 instead of scaling them
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white
    return picture.convert("RGB")


# Out.


def check_writable(path: Pathlike) -> None:
    """`UserError` if a picture could not be written to `path`; asked before hours are spent on computing it."""
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{str(target)!r} is a folder; give a file in it, like {str(target / 'picture.png')!r}.")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        return  # /dev/null and its like: written to in place
    folder = target.parent
    if not folder.is_dir():
        raise UserError(f"{str(target)!r} cannot be written: there is no folder {str(folder)!r}; make it first.")
    try:
        probe = _part_of(target)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UserError(f"{str(target)!r} cannot be written: {error.strerror or error}.") from None


def save_png(path: Pathlike, pixels: np.ndarray, job: Job, made_by: dict[str, Any] | None = None) -> Path:
    """Write `pixels` (H, W, 3) uint8 with the job inside; the file is there whole or not at all.

    `made_by` is what else is worth knowing later (version, backend); it stays out of the job. There is no
    date, so that the same job gives the same file.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(CHUNK, json.dumps({"job": job.to_json(), "made_by": made_by or {}}))
    info.add_text(OTHERS, _printable(parameters(job, made_by)))
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png", pnginfo=info)
    return _write(Path(path), data.getvalue())


def _write(target: Path, data: bytes) -> Path:
    """Write beside the target, then rename: an interruption leaves no half file, and no temporary one either."""
    try:
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            target.write_bytes(data)
            return target
        part = _part_of(target)
        try:
            part.write_bytes(data)
            os.replace(part, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
    except OSError as error:
        raise UserError(f"{str(target)!r} cannot be written: {error.strerror or error}.") from None
    return target


def _part_of(target: Path) -> Path:
    return target.with_name(f".{secrets.token_hex(6)}.part")


# The names other programs know our samplers and spacings by.
_SAMPLERS = {
    "ddim": "DDIM", "ddpm": "DDPM", "euler": "Euler", "euler_a": "Euler a", "heun": "Heun", "lms": "LMS",
    "pndm": "PLMS", "dpm2": "DPM2", "dpm2_a": "DPM2 a", "dpmpp_2s": "DPM++ 2S", "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_sde": "DPM++ SDE", "dpmpp_3m_sde": "DPM++ 3M SDE", "unipc": "UniPC",
    "deis": "DEIS", "lcm": "LCM", "tcd": "TCD",
}  # fmt: skip
_SPACINGS = {
    "karras": "Karras", "exponential": "Exponential", "sgm_uniform": "SGM Uniform", "beta": "Beta",
    "ays": "Align Your Steps",
}  # fmt: skip


def parameters(job: Job, made_by: dict[str, Any] | None = None) -> str:
    """The job as the text that A1111 puts into its PNGs: prompt, negative prompt, then one line of settings."""
    settings = {
        "Steps": job.steps,
        "Sampler": _SAMPLERS.get(job.sampler or "", job.sampler),
        "Schedule type": _SPACINGS.get(job.spacing or ""),
        "CFG scale": None if job.guidance is None else f"{job.guidance:g}",
        "Seed": job.seed,
        "Size": f"{job.width}x{job.height}" if job.width and job.height else None,
        "Model": _quoted(Path(job.model).name if job.model else "scenes"),
        "Denoising strength": f"{job.strength:g}" if job.image and job.strength is not None else None,
        "Version": f"mlxldm {(made_by or {}).get('mlxldm', '')}".strip(),
    }
    lines = [job.prompt]
    if job.negative:
        lines.append(f"Negative prompt: {job.negative}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:"\n') else value


def _printable(text: str) -> str:
    """What a PNG text chunk can hold: no NUL (it ends a field) and nothing that is not Unicode text."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


# A picture's job.


def read_job(path: Pathlike) -> Job:
    """The job in a JSON file, or the one inside a PNG that `save_png` wrote."""
    return read_record(path)[0]


def read_record(path: Pathlike) -> tuple[Job, dict[str, Any]]:
    """A file's job and, from a PNG, what made it."""
    file = os.fspath(path)
    try:
        head = _head(path)
        data = _chunk(path) if head.startswith(b"\x89PNG\r\n\x1a\n") else json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"There is no file {file!r}; give a job in JSON or a PNG made by mlxldm.") from None
    except OSError as error:
        raise UserError(f"{file!r} cannot be read: {error.strerror or error}.") from None
    except (ValueError, SyntaxError, RecursionError):
        raise UserError(f"{file!r} is neither a job in JSON nor a readable PNG made by mlxldm.") from None
    if not isinstance(data, dict):
        raise UserError(f"{file!r} holds no job; a job is a JSON object like {{\"prompt\": \"...\"}}.")
    made_by = data.get("made_by")
    if isinstance(data.get("job"), dict):  # a PNG's chunk, or what `generate --json` printed
        data = data["job"]
    try:
        return Job.from_json(data), made_by if isinstance(made_by, dict) else {}
    except UserError as error:
        raise UserError(f"{file!r}: {error}") from None


def _head(path: Pathlike) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def _chunk(path: Pathlike) -> Any:
    from PIL import Image

    texts: dict[str, Any] = {}
    with Image.open(path) as picture:
        texts = dict(_texts(picture))
    if CHUNK not in texts:
        raise UserError(f"{os.fspath(path)!r} has no mlxldm job inside; only PNGs that mlxldm wrote can be made again.")
    return json.loads(texts[CHUNK])


def _texts(picture: Image.Image) -> Iterator[tuple[str, str]]:
    """A PNG's text chunks; those after the pixels (some editors move them there) need the whole file read."""
    yield from ((key, value) for key, value in picture.info.items() if isinstance(value, str))
    if CHUNK not in picture.info:
        picture.load()
        yield from ((key, value) for key, value in picture.info.items() if isinstance(value, str))
