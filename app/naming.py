"""The names of pictures' files, by a pattern that a person may change."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import PurePosixPath

FIELDS = ("day", "number", "prompt", "seed", "model")
PATTERN = "{day}/{number}-{prompt}"


def wrong_pattern(pattern: str) -> str:
    """Why a pattern of file names cannot be used, in a sentence; empty if it can."""
    unknown = [field for field in re.findall(r"\{([^{}]*)\}", pattern) if field not in FIELDS]
    rest = re.sub(r"\{[^{}]*\}", "", pattern)
    steps = PurePosixPath(pattern).parts
    if unknown:
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        return f"{{{unknown[0]}}} is nothing that is known: there are {known}."
    if "{" in rest or "}" in rest or re.search(r'[\\:*?"<>|\x00-\x1f]', rest):
        return 'A name cannot have any of \\ : * ? " < > | { } in it.'
    if not steps or pattern.startswith("/") or pattern.endswith("/") or ".." in steps:
        return "A pattern is a name below the pictures folder, with / between folders."
    if "{number}" in "/".join(steps[:-1]):
        return "{number} counts the files of a folder: it belongs into the file’s name."
    if not re.search(r"\{(number|seed)\}", steps[-1]):
        return "The file’s name needs {number} or {seed}, or pictures would have one name."
    return ""


def file_name(pattern: str, when: datetime, number: int, prompt: str, seed: int, model: str) -> str:
    """The path of a picture below the pictures folder, without its ending; no fact can leave its folder."""
    plain = re.sub(r"[^\w.-]+", "-", model.rpartition("/")[2]).strip("-.")[:60] or "model"
    facts = {"day": f"{when:%Y-%m-%d}", "number": f"{number:04}", "prompt": words(prompt) or "picture",
             "seed": str(seed), "model": plain}  # fmt: skip
    return re.sub(r"\{(\w+)\}", lambda match: facts[match[1]], pattern)


def words(prompt: str, most: int = 40) -> str:
    """The first words of a prompt, as a file's name may have them on every system."""
    found = re.findall(r"\w+", prompt.lower())
    text = ""
    for word in found:
        if len(text) + 1 + len(word) > most:
            break
        text += f"-{word}" if text else word
    return text or "".join(found)[:most]


def number_in(pattern: str, name: str) -> int:
    """The {number} of a file that this pattern named, its folder left out; 0 for another's."""
    parts = re.split(r"(\{\w+\})", pattern.rpartition("/")[2])
    kinds = {"{number}": r"(\d+)", "{day}": r"[\d-]+", "{seed}": r"\d+"}
    found = re.fullmatch("".join(kinds.get(part, ".*" if part.startswith("{") else re.escape(part)) for part in parts),
                         name)  # fmt: skip
    return int(found[1]) if found and "{number}" in pattern else 0
