"""Painting a part of a picture: its mask made larger and softer, a region of it seen from near, room around it.

All of this happens to pictures of bytes, before the autoencoder sees them and after it answered. So what lies outside
the mask comes back as it was, bit for bit, from every model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .errors import UserError
from .job import Job
from .picture import Pathlike, floats, open_rgb, resized, size_of

if TYPE_CHECKING:
    from PIL import Image

PADDING = 32  # pixels around the mask that are drawn with it, as diffusers and A1111 have it
OVERLAP, SOFT = 16, 6  # an extension's own: how far it reaches into the old picture, and the radius of its blur

_Box = tuple[int, int, int, int]  # left, top, right, bottom


# The job.


def resolved(job: Job) -> Job:
    """`job` with what is usual where it says nothing, or a `UserError` where its wishes do not fit together."""
    _check(job)
    if job.extend is not None:
        sides_of(job.extend)
        job = job.replace(
            mask_grow=OVERLAP if job.mask_grow is None else job.mask_grow,
            mask_blur=SOFT if job.mask_blur is None else job.mask_blur,
        )
    if job.only_masked:
        job = job.replace(mask_padding=PADDING if job.mask_padding is None else job.mask_padding)
    return job


def _check(job: Job) -> None:
    if job.masked and job.image is None:
        what = "a mask" if job.extend is None else "an extension"
        raise UserError(f"The job has {what} but no image; give the picture that is to be painted over as well.")
    if not job.masked:
        for name in ("mask_grow", "mask_blur", "only_masked", "mask_padding"):
            if getattr(job, name) is not None:
                option = "--" + name.replace("_", "-")
                raise UserError(f"The job has {option}, but no mask: give one with --mask, or leave it out.")
    if job.mask_padding is not None and not job.only_masked:
        raise UserError("The job has a mask's padding, which goes with --only-masked: give both or leave it out.")
    for name, value in (("blur", job.mask_blur), ("padding", job.mask_padding)):
        if value is not None and value < 0:
            raise UserError(f"The mask's {name} is {value}, but it must be 0 or more pixels.")
    if job.mask is not None:
        size_of(job.mask)  # complains if it cannot be read


def sides_of(text: str) -> _Box:
    """The pixels that a job's extension adds left, above, right and below."""
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError:
        left = top = right = bottom = -1
    if min(left, top, right, bottom) < 0 or max(left, top, right, bottom) == 0:
        raise UserError(
            f"The job's extension is {text!r}, but it must be four whole numbers of pixels, left, top, right and "
            f"bottom, not all of them 0: for example 64,0,64,0."
        )
    return left, top, right, bottom


def extended_size(job: Job) -> tuple[int, int]:
    """Width and height of the job's picture with its extension."""
    assert job.image is not None and job.extend is not None
    width, height = size_of(job.image)
    left, top, right, bottom = sides_of(job.extend)
    return width + left + right, height + top + bottom


# The work.


class Canvas:
    """The picture of a job that paints a part of it: as the model sees it, and as it is given back.

    Raises `UserError` if there is nothing to paint.
    """

    def __init__(self, job: Job):
        assert job.image is not None and job.width is not None and job.height is not None
        size = job.width, job.height
        picture = open_rgb(job.image)
        if job.extend is None and not job.only_masked:
            picture = resized(picture, size)
        white = np.zeros(picture.size[::-1], bool) if job.mask is None else _white(job.mask, picture.size)
        new = np.zeros_like(white)
        self.size = picture.size
        if job.extend is not None:
            self.size = extended_size(job)
            room = self.size if job.only_masked else size  # latents come in whole ones; what they add is cut off again
            picture, white, new = _extended(picture, white, sides_of(job.extend), room)
        if not (white | new).any():
            raise UserError(f"The mask {job.mask!r} is black everywhere, but what is painted anew is what is white.")
        white = grown(white | new, job.mask_grow or 0) | new
        if not white.any():
            raise UserError(f"Shrunk by {-(job.mask_grow or 0)} pixels, the mask {job.mask!r} is black everywhere.")
        self.picture, self.soft = picture, _blurred(white, new, job.mask_blur or 0)
        self.box = region(white, *size, job.mask_padding or 0) if job.only_masked else (0, 0, *picture.size)
        near = [_fitted(whole.crop(self.box), size) for whole in (picture, _grey(white))]
        self.image = floats(near[0])  # (1, H, W, 3) float32 in [-1, 1]
        self.mask = (np.asarray(near[1]) > 127).astype(np.float32)[None, :, :, None]  # 1 is painted anew

    def finish(self, pixels: np.ndarray) -> np.ndarray:
        """What was painted (H, W, 3), back in the picture: (H', W', 3) of bytes, unchanged where the mask is black."""
        from PIL import Image

        painted = Image.fromarray(pixels)
        left, top, right, bottom = self.box
        size = right - left, bottom - top
        if painted.size != size:
            x, y, width, height = _inside(size, painted.size)
            painted = resized(painted.crop((x, y, x + width, y + height)), size)
        finished = self.picture.copy()
        finished.paste(painted, (left, top), self.soft.crop(self.box))
        return np.array(finished.crop((0, 0, *self.size)))


def grown(white: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (h, w) of bools with every white pixel a disc of this radius; below 0, with every black pixel one."""
    if pixels < 0:
        return ~grown(~white, -pixels)
    height, width = white.shape
    rows, never = np.arange(height)[:, None], height + pixels
    above = np.maximum.accumulate(np.where(white, rows, -never), axis=0)
    below = np.minimum.accumulate(np.where(white, rows, height + never)[::-1], axis=0)[::-1]
    away = np.minimum(rows - above, below - rows)  # how far the nearest white pixel of the column is
    reached = np.zeros_like(white)
    for dx in range(max(-pixels, 1 - width), min(pixels, width - 1) + 1):
        near = away <= math.isqrt(pixels * pixels - dx * dx)
        reached[:, max(dx, 0) : width + min(dx, 0)] |= near[:, max(-dx, 0) : width - max(dx, 0)]
    return reached


def region(white: np.ndarray, width: int, height: int, padding: int) -> _Box:
    """The box around all that is white in a mask (h, w), so much larger on each side, then as wide as a picture of
    width and height is for its height, as far as the mask reaches: where diffusers' `padding_mask_crop` looks."""
    (top, bottom), (left, right) = (_span(np.any(white, axis), padding) for axis in (1, 0))
    if (right - left) * height > (bottom - top) * width:
        top, bottom = _widened(top, bottom, (right - left) * height // width, white.shape[0])
    else:
        left, right = _widened(left, right, (bottom - top) * width // height, white.shape[1])
    return left, top, right, bottom


def _span(line: np.ndarray, padding: int) -> tuple[int, int]:
    found = np.flatnonzero(line)
    return max(int(found[0]) - padding, 0), min(int(found[-1]) + 1 + padding, len(line))


def _widened(begin: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """A part of range(limit) made `length` long, evenly to both sides while there is room."""
    length = min(length, limit)
    begin = min(max(begin - (length - (end - begin)) // 2, 0), limit - length)
    return begin, begin + length


def _extended(
    picture: Image.Image, white: np.ndarray, sides: _Box, room: tuple[int, int]
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A picture and its mask on a canvas of the size `room`, and what of that is new.

    What is new shows the picture mirrored and blurred: colours that go on, for models that start from what is there.
    """
    from PIL import Image, ImageFilter

    left, top, right, bottom = sides
    width, height = picture.size
    margins = ((top, room[1] - height - top), (left, room[0] - width - left))
    mirrored = Image.fromarray(np.pad(np.asarray(picture), (*margins, (0, 0)), "symmetric"))
    canvas = mirrored.filter(ImageFilter.GaussianBlur(8))
    canvas.paste(picture, (left, top))
    new = np.ones(room[::-1], bool)
    # a canvas is larger than asked for on the right and below: that is new only where something new was asked for
    new[top : None if bottom == 0 else top + height, left : None if right == 0 else left + width] = False
    return canvas, np.pad(white, margins), new


def _blurred(white: np.ndarray, new: np.ndarray, radius: int) -> Image.Image:
    """How much of what is painted counts, 0 to 255, for a mask; all of it where there is no old picture."""
    from PIL import ImageChops, ImageFilter

    soft = _grey(white).filter(ImageFilter.GaussianBlur(radius)) if radius else _grey(white)
    return ImageChops.lighter(soft, _grey(new))


def _grey(white: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(white.astype(np.uint8) * 255)


def _white(path: Pathlike, size: tuple[int, int]) -> np.ndarray:
    """Where the mask in a file is white (h, w): stretched with Lanczos, grey, cut at one half, as diffusers does it."""
    return np.asarray(resized(open_rgb(path), size).convert("L")) > 127


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture as large as fits in the middle of `size`, its edges going on where that leaves room."""
    from PIL import Image

    left, top, width, height = _inside(picture.size, size)
    pixels = np.asarray(resized(picture, (width, height)))
    margins = [(top, size[1] - top - height), (left, size[0] - left - width)]
    return Image.fromarray(np.pad(pixels, margins + [(0, 0)] * (pixels.ndim - 2), "edge"))


def _inside(picture: tuple[int, int], size: tuple[int, int]) -> _Box:
    """Left, top, width and height of the largest picture of these proportions in the middle of `size`."""
    width = min(size[0], max(1, picture[0] * size[1] // picture[1]))
    height = min(size[1], max(1, picture[1] * size[0] // picture[0]))
    return size[0] // 2 - width // 2, size[1] // 2 - height // 2, width, height
