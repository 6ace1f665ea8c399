"""LoRAs and textual inversions: what the worker says of them, how a job asks for them, what they did to a picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

LORA, WORD = "LoRA", "textual inversion"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
TEXT = re.compile(rf"([^:].*?)(?::({NUMBER}))?((?::{NUMBER})?(?::lbw=[^:]*)?)", re.DOTALL)
PARTS = {"denoiser": "the U-Net", "text": "the text encoder", "text_2": "the second text encoder"}


@dataclass(frozen=True)
class Adapter:
    """One that is registered, and whether the chosen model can wear it."""

    name: str  # by which a job finds it
    what: str = LORA
    kind: str = ""  # lora, loha, ...
    family: str = ""
    bytes: int | None = None
    path: str = ""
    words: tuple[str, ...] = ()  # that call it
    weight: float | None = None  # as it is meant
    fits: bool = True
    why: str = ""  # it does not

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Adapter:
        """From a row of the worker's list, whatever of it is there."""
        words, size, weight = row.get("words"), row.get("bytes"), row.get("weight")
        return cls(
            name=str(row.get("name")), what=str(row.get("what") or LORA), kind=str(row.get("kind") or ""),
            family=str(row.get("family") or ""), bytes=size if isinstance(size, int) else None,
            path=str(row.get("path") or ""), fits=row.get("fits") is True, why=str(row.get("why") or ""),
            words=tuple(word for word in words if isinstance(word, str)) if isinstance(words, list) else (),
            weight=float(weight) if isinstance(weight, int | float) else None,
        )  # fmt: skip

    @property
    def title(self) -> str:
        """What people read."""
        return title(self.name)

    @property
    def about(self) -> str:
        """Its kind, size and first words, in a line."""
        from .shelf import gigabytes  # with the list of models, which the window does not begin with

        kind = {"lora": "", "textual inversion": ""}.get(self.kind, self.kind)
        return " · ".join(filter(None, (kind, gigabytes(self.bytes), *self.words[:1])))


def title(name: str) -> str:
    """A name as people read it: where two files have the same, jobs name them by their paths."""
    return Path(name).stem if os.path.isabs(name) else name


@dataclass(frozen=True)
class Wear:
    """A LoRA in a job: "NAME:0.8", and perhaps more behind it (`mlxldm.job.Job.loras`)."""

    name: str
    weight: float = 1.0
    more: str = ""  # the text encoders' own strength, the blocks'
    on: bool = True
    said: str = field(default="", compare=False)  # how the job wrote it

    @classmethod
    def of(cls, text: str) -> Wear:
        """From a job's text; one that says nothing sensible stays as it is, and the worker will say so."""
        match = TEXT.fullmatch(text)
        if match is None:
            return cls(text, said=text)
        return cls(match[1], 1.0 if match[2] is None else float(match[2]), match[3], said=text)

    @property
    def text(self) -> str:
        """As a job has it."""
        return self.said or f"{self.name}:{self.weight:g}{self.more}"

    def weighing(self, weight: float) -> Wear:
        """The same with another weight."""
        return replace(self, weight=weight, said="")


class Wardrobe:
    """What is registered, by every name that it may be called."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()):
        self.all = [Adapter.from_row(row) for row in rows]
        self._called: dict[str, Adapter] = {}
        for one in self.all:
            for name in (one.name, one.path, one.title, os.path.basename(one.path)):
                self._called.setdefault(name.casefold(), one)

    @property
    def loras(self) -> list[Adapter]:
        """The LoRAs that the model can wear, by their names."""
        return sorted((one for one in self.all if one.fits and one.what == LORA), key=lambda one: one.title.casefold())

    @property
    def inversions(self) -> list[Adapter]:
        """The textual inversions that it can read."""
        return [one for one in self.all if one.fits and one.what == WORD]

    def get(self, name: str) -> Adapter | None:
        """The one of that name, or None."""
        return self._called.get(name.casefold())

    def at(self, path: str) -> Adapter | None:
        """The one in that file, or None."""
        real = os.path.realpath(path)
        return next((one for one in self.all if one.path and os.path.realpath(one.path) == real), None)


def told(effect: Any) -> list[str]:
    """What a picture's record says its adapters did, in lines; nothing for what is no such record."""
    if not isinstance(effect, dict):
        return []
    lines = []
    for lora in _loras(effect):
        modules = lora.get("modules")
        modules = modules if isinstance(modules, dict) else {}
        where = ", ".join(f"{count} modules of {PARTS.get(part, part)}" for part, count in modules.items())
        weights = lora.get("weights")
        changed = f"weights changed by {weights:.2%}" if isinstance(weights, int | float) else ""
        about = "; ".join(filter(None, (str(lora.get("kind") or ""), where, changed)))
        lines.append(f"{lora.get('text')}: {about}")
        lines += [f"    not used: {tensors} – {why}" for tensors, why in _left(lora).items()]
    answer, words = effect.get("answer"), effect.get("words")
    if isinstance(answer, int | float):
        of = effect.get("answer_of")  # it was measured when they came, and not for every weight since
        texts = [lora.get("text") for lora in _loras(effect)]
        with_what = f" with {', '.join(map(str, of))}" if isinstance(of, list) and of != texts else ""
        lines.append(f"the U-Net’s answer changed by {answer:.2%}{with_what}")
    lines += [f"‘{word}’ stood for its vectors" for word in words] if isinstance(words, list) else []
    return lines


def unused(effect: dict[str, Any]) -> tuple[str, str]:
    """A sentence about tensors that have no place in the model, and which; two empty texts where there are none."""
    some = [lora for lora in _loras(effect) if isinstance(lora.get("unmatched"), int) and lora["unmatched"]]
    if not some:
        return "", ""
    parts = [f"{lora['unmatched']} of the tensors of ‘{lora.get('name')}’" for lora in some]
    details = [f"{lora.get('name')}: {tensors} – {why}" for lora in some for tensors, why in _left(lora).items()]
    verb = "has" if len(some) == 1 and some[0]["unmatched"] == 1 else "have"
    return f"{' and '.join(parts)} {verb} no place in this model: the rest is used.", "\n".join(details)


def _loras(effect: dict[str, Any]) -> list[dict[str, Any]]:
    loras = effect.get("loras")
    return [lora for lora in loras if isinstance(lora, dict)] if isinstance(loras, list) else []


def _left(lora: dict[str, Any]) -> dict[str, Any]:
    left = lora.get("left")
    return left if isinstance(left, dict) else {}
