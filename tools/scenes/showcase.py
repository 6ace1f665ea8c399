"""The contact sheet of the README: 16 sentences, drawn by the shipped model through the program itself.

    python tools/scenes/showcase.py docs/scenes.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
from sheet import contact_sheet

import mlxldm
from mlxldm.generate import Picture

PROMPTS = (
    "a red lighthouse by the sea at dusk",
    "a blue sailboat on the lake in summer",
    "a purple tent in the desert at night under a full moon",
    "a yellow hot air balloon over snowy mountains",
    "a green house on the hills in autumn, left",
    "a white windmill in a spring meadow at noon",
    "an orange tent among pine trees at sunrise",
    "winter, a pink cottage on the right, clear sky",
    "a red boat on the sea at sunset",
    "crescent moon over the mountains, starry night, a blue house",
    "cactus in the desert, clouds, midday",
    "a purple balloon over the lake at dawn",
    "autumn trees by the lake, the sun is shining",
    "a white lighthouse in the snow, night",
    "a yellow windmill on the left, cloudy, hills",
    "palm trees by the ocean, summer, a green tent in the center",
)
SCALE = 2


def main() -> None:
    model = mlxldm.load()
    pictures = []
    for seed, prompt in enumerate(PROMPTS, 1):
        for event in mlxldm.generate(model, mlxldm.Job(prompt, seed=seed)):
            if isinstance(event, Picture):
                pictures.append(event.pixels)
    if pictures[0].shape[0] < 256:  # so that the captions below have room
        size = (pictures[0].shape[1] * SCALE, pictures[0].shape[0] * SCALE)
        big = [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) for picture in pictures]
        pictures = [np.asarray(image) for image in big]
    contact_sheet(pictures, PROMPTS, 4).save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
