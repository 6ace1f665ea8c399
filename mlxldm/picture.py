"""Pictures in and out: start pictures and masks as diffusers prepares them, PNGs that carry the job that made them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import others
from .adapters import wish
from .errors import UserError
from .job import Job, variation_of
from .others import Found, stem
from .prompt import networks

if TYPE_CHECKING:
    from PIL import Image

CHUNK = "mlxldm"  # the PNG text chunk with the whole job in JSON
OTHERS = "parameters"  # the one that A1111 writes and most other programs read

Pathlike = str | os.PathLike[str]


# In.


def size_of(path: Pathlike) -> tuple[int, int]:
    """Width and height in pixels of the picture in a file, as it is shown (cameras store some sideways)."""
    return open_rgb(path).size


def load_image(path: Pathlike, width: int, height: int) -> np.ndarray:
    """The picture in a file, stretched to `width` × `height` with Lanczos: float32 (1, height, width, 3) in [-1, 1].

    The same numbers as diffusers' VaeImageProcessor. What is transparent counts as white.
    """
    return stretched(np.asarray(open_rgb(path)), width, height)


def stretched(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """As `load_image`, of pixels (H, W, 3) uint8."""
    from PIL import Image

    return floats(resized(Image.fromarray(pixels), (width, height)))


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture stretched to (width, height) with Lanczos; if it has that size, itself."""
    from PIL import Image

    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def floats(picture: Image.Image) -> np.ndarray:
    """A picture in RGB as float32 (1, height, width, 3) in [-1, 1]."""
    return 2.0 * (np.asarray(picture, np.float32)[None] / 255.0) - 1.0


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
    picture = resized(Image.fromarray(np.asarray(picture).astype(np.float32)), (width, height))
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


def open_rgb(path: Pathlike) -> Image.Image:
    """The picture in a file, upright and in RGB, what is transparent white; or a `UserError`."""
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
    return _write(Path(path), png(pixels, job, made_by))


def png(pixels: np.ndarray, job: Job, made_by: dict[str, Any] | None = None) -> bytes:
    """The same file's bytes."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(CHUNK, json.dumps({"job": job.to_json(), "made_by": made_by or {}}))
    info.add_text(OTHERS, _printable(parameters(job, made_by)))
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png", pnginfo=info)
    return data.getvalue()


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


def parameters(job: Job, made_by: dict[str, Any] | None = None) -> str:
    """The job as the text that A1111 puts into its PNGs: prompt, negative prompt, then one line of settings.

    LoRAs stand as tags in the prompt, there as here, behind it those that the job has beside it. `made_by` may have
    their `hashes` (`recall.fingerprints`).
    """
    hashes: dict[str, str] = (made_by or {}).get("hashes") or {}
    loras = [wish(text) for text in job.loras]
    inside = [network for text in (job.prompt, job.prompt_2) for network in networks(text or "")[1]]
    called = {network.name: _named(network.name) for network in inside}
    called |= {lora.name: _named(stem(lora.name)) for lora in loras}
    strength = job.hires_strength if job.hires else job.strength
    settings = {
        "Steps": job.steps,
        "Sampler": others.SAMPLER_NAMES.get(job.sampler or "", job.sampler),
        "Schedule type": others.SPACING_NAMES.get(job.spacing or ""),
        "CFG scale": None if job.guidance is None else f"{job.guidance:g}",
        "Seed": job.seed,
        "Size": f"{job.width}x{job.height}" if job.width and job.height else None,
        "Model": _quoted(Path(job.model).name if job.model else "scenes"),
        "Variation seed": variation_of(job.variation)[0] if job.variation else None,
        "Variation seed strength": f"{variation_of(job.variation)[1]:g}" if job.variation else None,
        "Denoising strength": None if strength is None else f"{strength:g}",
        "Hires upscale": f"{job.hires:g}" if job.hires else None,
        "Hires steps": job.hires_steps,
        "Hires upscaler": "Lanczos" if job.hires else None,
        "Mask blur": job.mask_blur,
        "Inpaint area": "Only masked" if job.only_masked else None,
        "Masked area padding": job.mask_padding,
        "Tiling": "True" if job.seamless == "both" else None,
        "Clip skip": job.clip_skip,
        "Emphasis": "None" if job.emphasis == "none" else None,
        "Prompt 2": _quoted(job.prompt_2) if job.prompt_2 else None,
        "Negative prompt 2": _quoted(job.negative_2) if job.negative_2 else None,
        "Template": _quoted(job.template) if job.template else None,
        "Negative Template": _quoted(job.negative_template) if job.negative_template else None,
        "Template 2": _quoted(job.template_2) if job.template_2 else None,
        "Negative Template 2": _quoted(job.negative_template_2) if job.negative_template_2 else None,
        "Lora hashes": _hashes("lora", called, hashes),
        "TI hashes": _hashes("embed", {name: stem(name) for name in job.embeddings}, hashes),
        "RNG": {"torch-cpu": "CPU", "nvidia": "NV"}[job.noise],
        "Version": f"mlxldm {(made_by or {}).get('mlxldm', '')}".strip(),
    }
    lines = [" ".join([job.prompt, *(lora.tag(called[lora.name]) for lora in loras)])]
    if job.negative:
        lines.append(f"Negative prompt: {job.negative}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None))
    return "\n".join(lines)


def _named(name: str) -> str:
    """A LoRA's name as a tag can hold it."""
    return "".join(letter for letter in name if letter not in ":,<>")


def _hashes(kind: str, names: dict[str, str], hashes: dict[str, str]) -> str | None:
    """ "NAME: HASH, ..." of those whose hash is known; `names` are theirs by what the job calls them."""
    known = [f"{said}: {hashes[f'{kind}:{name}']}" for name, said in names.items() if f"{kind}:{name}" in hashes]
    return _quoted(", ".join(known)) if known else None


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:"\n') else value


def _printable(text: str) -> str:
    """What a PNG text chunk can hold: no NUL (it ends a field) and nothing that is not Unicode text."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


# A picture's job.


def read_job(path: Pathlike) -> Job:
    """The job in a JSON file, or the one inside a picture."""
    return read_record(path).job


def read_record(path: Pathlike) -> Found:
    """What a file says of how a picture is made: a job in JSON, or a picture of ours or of another program (`others`).

    Raises UserError for a file that is neither, and for a picture without a job.
    """
    file = os.fspath(path)
    try:
        with open(path, "rb") as opened:
            head = opened.read(12)
        if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or head[:4] + head[8:] == b"RIFFWEBP":
            texts = _texts(path)
            if CHUNK not in texts:
                found = others.read(texts)
                if found is None:
                    raise UserError(
                        f"{file!r} has no job inside: pictures of mlxldm, A1111's web UI and its forks, ComfyUI, "
                        f"InvokeAI, mflux and Draw Things can be made again, as long as nothing took it away."
                    )
                return found
            data = json.loads(texts[CHUNK])
        else:
            data = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"There is no file {file!r}; give a job in JSON or a picture with one inside.") from None
    except OSError as error:
        raise UserError(f"{file!r} cannot be read: {error.strerror or error}.") from None
    except (ValueError, SyntaxError, RecursionError):
        raise UserError(f"{file!r} is neither a job in JSON nor a readable picture with one inside.") from None
    if not isinstance(data, dict):
        raise UserError(f"{file!r} holds no job; a job is a JSON object like {{\"prompt\": \"...\"}}.")
    made_by = data.get("made_by")
    if isinstance(data.get("job"), dict):  # a picture's chunk, or what `generate --json` printed
        data = data["job"]
    try:
        made_by = made_by if isinstance(made_by, dict) else {}
        said = made_by.get("hashes")
        hashes = {key: value for key, value in said.items() if isinstance(value, str)} if isinstance(said, dict) else {}
        return Found("mlxldm", Job.from_json(data), made_by=made_by, hashes=hashes)
    except UserError as error:
        raise UserError(f"{file!r}: {error}") from None


def _texts(path: Pathlike) -> dict[str, str]:
    """A picture's texts as `others.read` takes them; those after the pixels need the whole file read."""
    from PIL import Image

    with Image.open(path) as picture:
        if not {CHUNK, *others.READERS} & picture.info.keys() and picture.format == "PNG":
            picture.load()  # some editors move them there
        texts = {key: value for key, value in picture.info.items() if isinstance(value, str)}
        comment = picture.getexif().get_ifd(0x8769).get(0x9286)  # EXIF's UserComment
        xmp = picture.info.get("XML:com.adobe.xmp", picture.info.get("xmp"))
    if isinstance(comment, bytes):
        code, comment = comment[:8], comment[8:]
        comment = comment.decode("utf-16-be" if code == b"UNICODE\0" else "utf-8", "replace")
    if isinstance(comment, str):
        texts["exif"] = comment.strip("\0")
    if isinstance(xmp, bytes):
        xmp = xmp.decode("utf-8", "replace")
    return texts if xmp is None else {**texts, "xmp": xmp}
