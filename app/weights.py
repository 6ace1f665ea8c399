"""The weight of the words under the cursor, `(word:1.1)` and `<lora:name:0.8>`, one step up or down."""

from __future__ import annotations

import re

STEP, LORA_STEP = 0.1, 0.05
MOST = 10.0
# What ends a word, beside spaces: signs of the prompt's language and commas.
ENDS = " \t\n,()[]{}<>|:.\\"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_WEIGHED = re.compile(rf"\((.*?)(?:\s*:\s*({_NUMBER})\s*)?\)", re.DOTALL)
_LORA = re.compile(rf"<lora:([^<>:]+)(?::({_NUMBER}))?((?::[^<>]*)?)>", re.IGNORECASE)


def reweighed(text: str, start: int, end: int, up: bool) -> tuple[str, int, int] | None:
    """`text` with the weight of what is selected, or of what the cursor is in, one step up or down, and the selection.

    A weight that becomes 1 goes with its brackets. None where there is no word.
    """
    for match in _LORA.finditer(text):
        if match.start() <= start and end <= match.end():
            weight = _stepped(1.0 if match[2] is None else float(match[2]), LORA_STEP if up else -LORA_STEP, -MOST)
            said = f"<lora:{match[1]}:{weight:g}{match[3]}>"
            return text[: match.start()] + said + text[match.end() :], match.start(), match.start() + len(said)
    left, right = _inside(text, start, end)
    if left < 0:
        start, end = (start, end) if end > start else _word(text, start)
        start, end = _bare(text, start, end)
        if start == end:
            return None
        left, right, words, before = start, end, text[start:end], 1.0
    else:
        inside = _WEIGHED.fullmatch(text[left:right])
        assert inside is not None, text[left:right]
        words, before = inside[1], 1.1 if inside[2] is None else float(inside[2])
    weight = _stepped(before, STEP if up else -STEP, min(before, 0.0))
    said = words if weight == 1 else f"({words}:{weight:g})"
    at = left if weight == 1 else left + 1
    return text[:left] + said + text[right:], at, at + len(words)


def _stepped(weight: float, step: float, least: float) -> float:
    return round(min(max(weight + step, least), MOST), 4)


def _inside(text: str, start: int, end: int) -> tuple[int, int]:
    """The innermost round brackets, with them, that the selection is in, or is; -1 where there are none."""
    open_: list[int] = []
    best = -1, -1
    for at, sign in enumerate(text):
        if at and text[at - 1] == "\\":
            continue
        if sign == "(":
            open_.append(at)
        elif sign == ")" and open_:
            left = open_.pop()
            beside = start == end and start in (left, at + 1)
            if left <= start and end <= at + 1 and not beside and left > best[0]:
                best = left, at + 1
    return best


def _word(text: str, at: int) -> tuple[int, int]:
    """The word that the cursor is in, or behind, or before."""
    start = end = at
    while start > 0 and text[start - 1] not in ENDS:
        start -= 1
    while end < len(text) and text[end] not in ENDS:
        end += 1
    return start, end


def _bare(text: str, start: int, end: int) -> tuple[int, int]:
    """A selection without the spaces at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
