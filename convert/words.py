"""What a LoRA's file says of how it is used: the words that call it, and how strongly.

Three places say so, and the first that does is believed: the description that AUTOMATIC1111's web UI keeps beside a
LoRA (https://github.com/AUTOMATIC1111/stable-diffusion-webui, `extensions-builtin/Lora`), the trigger phrase of
ModelSpec (https://github.com/Stability-AI/ModelSpec), and the captions it was taught with, which kohya's trainer counts
in `ss_tag_frequency` (https://github.com/kohya-ss/sd-scripts).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from mlxldm.errors import UserError
from mlxldm.folder import read_json

from .read import Source

LONGEST = 500  # letters of a phrase
MOST = 12  # phrases or words
OFTEN = 0.5  # how often a caption's word has to be there, of the one that is there most


def hints(file: Source) -> dict[str, Any]:
    """`words`: phrases for a prompt, the best first; `weight`: how strongly it is meant, or None where nobody says."""
    kept = _beside(file)
    phrase = file.metadata.get("modelspec.trigger_phrase")
    words = _phrases(kept.get("activation text")) or _phrases(phrase) or _frequent(file)
    weight = kept.get("preferred weight")
    known = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight) and weight != 0
    return {"words": words, "weight": float(weight) if known else None}  # type: ignore[arg-type]


def _beside(file: Source) -> dict[str, Any]:
    """AUTOMATIC1111's description, `NAME.json` beside `NAME.safetensors`."""
    path = file.path.with_suffix(".json")
    try:
        found = read_json(path) if path.is_file() else {}
    except (UserError, OSError):  # somebody else's file, and only a hint
        return {}
    return found if isinstance(found, dict) else {}


def _phrases(text: Any) -> list[str]:
    """One phrase a line: what is to be put into the prompt at once."""
    if not isinstance(text, str):
        return []
    lines = (" ".join(line.split()).strip(" ,") for line in text.splitlines())
    return list(dict.fromkeys(line[:LONGEST] for line in lines if line))[:MOST]


def _frequent(file: Source) -> list[str]:
    """The words that most of its captions have: what it was taught to answer to is among them."""
    try:
        folders = json.loads(file.metadata.get("ss_tag_frequency") or "{}")
    except (ValueError, RecursionError):
        return []
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if tag.strip() and len(tag) <= LONGEST and isinstance(count, int) and 0 < count < 1 << 53:
                counts[" ".join(tag.split())] += count
    common = counts.most_common(MOST)
    return [tag for tag, count in common if count >= OFTEN * common[0][1]]
