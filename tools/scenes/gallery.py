"""What the embedded model does for each task it can do: the picture in docs/models.md, made by the program itself.

    python tools/scenes/gallery.py docs/gallery.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
from sheet import contact_sheet

import mlxldm
from mlxldm.generate import Picture

SIDE = 256  # pixels of each picture on the sheet


def main() -> None:
    model = mlxldm.load()
    shown: list[np.ndarray] = []
    captions: list[str] = []

    def draw(caption: str, job: mlxldm.Job, show: bool = True) -> np.ndarray:
        picture = [event.pixels for event in mlxldm.generate(model, job) if isinstance(event, Picture)][-1]
        if show:
            add(caption, picture)
        return picture

    def add(caption: str, picture: np.ndarray) -> None:
        shown.append(_fitted(picture))
        captions.append(caption)

    with tempfile.TemporaryDirectory() as place:

        def saved(name: str, picture: np.ndarray) -> str:
            path = Path(place) / name
            Image.fromarray(picture).save(path)
            return str(path)

        words = "a red lighthouse by the sea at dusk"
        light = draw(f"text: {words}", mlxldm.Job(words, seed=5))
        start = saved("light.png", light)
        sketch = _sketch()
        add("a sketch", sketch)
        words = "a green tent by the lake, sunny day"
        job = mlxldm.Job(words, seed=3, image=saved("sketch.png", sketch), strength=0.7)
        draw(f"image, strength 0.7: {words}", job)
        mask = saved("mask.png", _mask(light.shape[0]))
        words = "a blue house by the sea at dusk"
        job = mlxldm.Job(words, seed=3, image=start, mask=mask, mask_blur=4)
        draw(f"mask around the lighthouse: {words}", job)
        words = "the sea at dusk"
        draw(f"extend 64,0,64,0: {words}", mlxldm.Job(words, seed=1, image=start, extend="64,0,64,0"))
        words = "a blue sailboat on the lake in summer"
        draw(f"hires 1.5: {words}", mlxldm.Job(words, seed=2, hires=1.5, hires_strength=0.3))
        base = mlxldm.Job("a purple tent in the desert at night", seed=3)
        draw("text: a purple tent in the desert at night", base)
        draw("its variation 100:0.3", base.replace(variation="100:0.3"))
        draw("its variation 101:0.3", base.replace(variation="101:0.3"))
        draw("negative: moon", base.replace(negative="moon, stars"))
        tile = draw("", mlxldm.Job("snowy mountains, winter, clear sky", seed=2, seamless="x"), show=False)
        add("seamless x: snowy mountains, twice", np.concatenate([tile, tile], axis=1))
        words = "a yellow hot air balloon over the lake"
        draw(f"384 x 128: {words}", mlxldm.Job(words, seed=6, width=384, height=128))
    contact_sheet(shown, captions, 4).save(sys.argv[1], optimize=True)


def _fitted(picture: np.ndarray) -> np.ndarray:
    """The picture as large as fits into the square, in the middle of white."""
    image = Image.fromarray(picture)
    scale = SIDE / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    sheet.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return np.asarray(sheet)


def _sketch(side: int = 128) -> np.ndarray:
    """What a person draws in ten seconds: sky, water, grass, a green triangle."""
    image = Image.new("RGB", (side, side), (150, 200, 240))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, side * 0.55, side, side), fill=(70, 120, 190))
    pen.rectangle((0, side * 0.72, side, side), fill=(90, 160, 70))
    pen.polygon([(side * 0.25, side * 0.85), (side * 0.45, side * 0.5), (side * 0.65, side * 0.85)], fill=(30, 120, 50))
    return np.asarray(image)


def _mask(side: int) -> np.ndarray:
    """White where the lighthouse stands."""
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).rectangle((side * 0.31, side * 0.27, side * 0.7, side * 0.95), fill=255)
    return np.asarray(image)


if __name__ == "__main__":
    main()
