"""Choices in prompts: {red|blue}, {2$$a|b|c}, {3::often|1::seldom}, and __colour__, a line of the file colour.txt.

The syntax is that of Dynamic Prompts (https://github.com/adieyal/sd-dynamic-prompts), without its variables, its
templates with parameters, and its YAML and JSON files. Braces without | or $$ in them are letters, and a | within
square brackets is the schedule's, not theirs. Only what is chosen is looked at further, and each choice is one random
number, so that a seed always says the same. Standard library only.
"""

from __future__ import annotations

import fnmatch
import math
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError, nearest
from .job import Job

# What is left to chance in these is kept there when it is chosen.
TEMPLATES = {
    "prompt": "template", "negative": "negative_template",
    "prompt_2": "template_2", "negative_2": "negative_template_2",
}  # fmt: skip
PROMPTS = tuple(TEMPLATES)
DEEPEST = 30  # choices within choices; more is a file that leads back to itself
MOST = 10_000  # choices in a prompt
LONGEST = 100_000  # letters of what comes out
LARGEST_FILE = 16 << 20  # bytes

_WILDCARD = re.compile(r"__(?! )((?:(?!__)[\w*./ -])+)(?<! )__")
_HOW_MANY = re.compile(r"\s*(?:(?P<low>\d{0,6})-(?P<high>\d{0,6})|(?P<both>\d{1,6}))\s*\$\$")
_SEPARATOR = re.compile(r"([^${}|]*)\$\$")
_WEIGHT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*::")


@dataclass(frozen=True)
class Choice:
    """What braces leave open: `low` to `high` of the options, which are text to be looked at when they are chosen."""

    options: list[str]
    low: int = 1
    high: int = 1
    separator: str = ", "


def has_choices(text: str | None) -> bool:
    """Whether a prompt leaves anything to chance."""
    if text is None:
        return False
    pairs = _pairs(text)
    braces = (start for start in pairs if text[start] == "{")
    return _WILDCARD.search(text) is not None or any(_choice(text, start, pairs) for start in braces)


def asks_for_files(job: Job) -> bool:
    """Whether a job's prompts have wildcards, and it does not say where their files are."""
    texts = (getattr(job, name) for name in PROMPTS)
    return job.wildcards is None and any(_WILDCARD.search(text) for text in texts if text)


def chosen(job: Job) -> Job:
    """The job of one picture with the choices in its prompts made, from its seed; what they were is kept."""
    texts = {name: text for name in PROMPTS if (text := getattr(job, name)) and has_choices(text)}
    if not texts or any(getattr(job, name) is not None for name in TEMPLATES.values()):
        return job
    if job.seed is None:
        raise UserError("The job's prompt leaves something to choose, which is done from its seed: give it one.")
    choose = Chooser(job.seed, job.wildcards)
    made = {name: choose(text) for name, text in texts.items()}
    kept = {TEMPLATES[name]: text for name, text in texts.items()}
    return job.replace(**made, **({"template": job.prompt} | kept), wildcards=None)


def pictures(job: Job) -> Iterator[Job]:
    """The job of each of its pictures, with the choices in their prompts made."""
    return (chosen(job.numbered(index)) for index in range(job.count))


def tellings(job: Job) -> Iterator[Job]:
    """The jobs of those pictures that are told different things: of the first alone, if nothing is left to choose."""
    for own in pictures(job):
        yield own
        if not any(has_choices(getattr(job, name)) for name in PROMPTS):
            return


class Chooser:
    """Makes the choices of one picture, from its seed. `folder` has the files of wildcards; None: there are none."""

    def __init__(self, seed: int, folder: str | None = None):
        self._random = random.Random(seed)
        self._files = None if folder is None else Files(folder)
        self._left = MOST

    def __call__(self, text: str) -> str:
        """`text` with every choice made. Raises UserError for a wildcard that is not there and choices without end."""
        if "${" in text:
            raise UserError("The prompt has a variable, ${...}, which is not known here; write what it stands for.")
        return self._said(text, 0)

    def _said(self, text: str, depth: int) -> str:
        if depth > DEEPEST or self._left < 0:
            raise UserError(
                f"The prompt has more than {MOST} choices, or choices within choices {DEEPEST} deep: does a wildcard's "
                f"file lead back to itself?"
            )
        said: list[str] = []
        for piece in _pieces(text):
            if isinstance(piece, str):
                said.append(_WILDCARD.sub(lambda match: self._pick(self._lines(match[1]), 1, depth)[0], piece))
            else:
                said.append(self._made(piece, depth))
            if sum(map(len, said)) > LONGEST:
                raise UserError(f"The prompt becomes longer than {LONGEST} letters when its choices are made.")
        return "".join(said)

    def _made(self, choice: Choice, depth: int) -> str:
        options = choice.options
        alone = _WILDCARD.fullmatch(options[0].strip()) if len(options) == 1 else None
        if alone:  # several lines of one file, each once
            options = self._lines(alone[1])
        low, high = min(choice.low, len(options)), min(choice.high, len(options))
        count = low if low == high else low + int(self._random.random() * (high - low + 1))
        picked = self._pick(options, count, depth)
        return picked[0] if len(picked) == 1 else choice.separator.join(each.strip() for each in picked)

    def _pick(self, options: Sequence[str], count: int, depth: int) -> list[str]:
        """`count` of the options, each at most once, by their weights, with their own choices made."""
        left = [_weighed(option) for option in options]
        picked = []
        for _ in range(count):
            self._left -= 1
            total = math.fsum(weight for weight, _ in left)
            if not 0 < total < math.inf:
                raise UserError(f"The prompt's choice of {_short(options)} has weights of {total:g} in all.")
            place, taken = self._random.random() * total, 0
            for taken, (weight, _) in enumerate(left):  # noqa: B007
                place -= weight
                if place < 0:
                    break
            picked.append(left.pop(taken)[1])
        return [self._said(text, depth + 1) for text in picked]

    def _lines(self, name: str) -> list[str]:
        if self._files is None:
            raise UserError(
                f"The prompt has the wildcard __{name}__, but no folder with files of wildcards is given: say which "
                f"with --wildcards."
            )
        return self._files.lines(name)


class Files:
    """The text files of a folder and its folders: a wildcard is the path of one, without .txt."""

    def __init__(self, folder: str):
        self._root = Path(folder).expanduser()
        if not self._root.is_dir():
            raise UserError(f"There is no folder of wildcards {folder!r}.")
        self._paths = dict(sorted(self._found()))

    @property
    def names(self) -> list[str]:
        """All wildcards."""
        return list(self._paths)

    def _found(self) -> Iterator[tuple[str, Path]]:
        for where, folders, names in os.walk(self._root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if name.lower().endswith(".txt") and not name.startswith("."):
                    path = Path(where, name)
                    yield path.relative_to(self._root).with_suffix("").as_posix(), path

    def lines(self, name: str) -> list[str]:
        """What a wildcard can stand for: the lines of its file, or files if there is a * in it, without comments."""
        names = [name] if name in self._paths else fnmatch.filter(self._paths, name) if "*" in name else []
        if not names:
            raise UserError(
                f"There is no wildcard __{name}__ in {str(self._root)!r}.{nearest(name, self._paths)} It would be a "
                f"file {name}.txt with one of its values in each line."
            )
        lines = [line for each in names for line in self._read(self._paths[each])]
        if not lines:
            raise UserError(f"The wildcard __{name}__ has no values: {', '.join(f'{each}.txt' for each in names)}.")
        return lines

    @staticmethod
    def _read(path: Path) -> list[str]:
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise UserError(f"{str(path)!r} is too large for a file of wildcards.")
            lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from None
        except UnicodeDecodeError:
            raise UserError(f"{str(path)!r} is not text in UTF-8; save it as that.") from None
        return [line for line in lines if line and not line.startswith("#")]


def _weighed(option: str) -> tuple[float, str]:
    match = _WEIGHT.match(option)
    return (float(match[1]), option[match.end() :]) if match else (1.0, option)


def _short(options: Sequence[str]) -> str:
    said = " | ".join(options)
    return repr(said if len(said) < 60 else said[:60] + " ...")


# Braces


def _pieces(text: str) -> Iterator[str | Choice]:
    """Text, and what braces in it leave open."""
    pairs, at, begin = _pairs(text), 0, 0
    for start in sorted(pairs):
        if text[start] != "{" or start < at:
            continue
        choice = _choice(text, start, pairs)
        if choice is None:
            continue  # letters; what is between them comes in its turn
        if start > begin:
            yield text[begin:start]
        yield choice
        at = begin = pairs[start] + 1
    if begin < len(text):
        yield text[begin:]


def _pairs(text: str) -> dict[int, int]:
    """Where braces and square brackets open, and where they close; those without the other are letters."""
    pairs: dict[int, int] = {}
    open_: dict[str, list[int]] = {"}": [], "]": []}
    for place, letter in enumerate(text):
        if letter in "{[":
            open_["}" if letter == "{" else "]"].append(place)
        elif letter in "}]" and open_[letter]:
            start = open_[letter].pop()
            pairs[start] = place
            other = open_["]" if letter == "}" else "}"]
            while other and other[-1] > start:  # opened in here, and not closed
                other.pop()
    return pairs


def _choice(text: str, start: int, pairs: dict[int, int]) -> Choice | None:
    """What the braces that open at `start` leave open; None: they are letters."""
    end = pairs[start]
    many = _HOW_MANY.match(text, start + 1, end)
    low = high = 1
    separator = ", "
    begin = start + 1
    if many:
        begin = many.end()
        low, high = int(many["both"] or many["low"] or 1), int(many["both"] or many["high"] or 10**6)
        between = _SEPARATOR.match(text, begin, end)
        if between:
            separator, begin = between[1], between.end()
        if low > high:
            raise UserError(f"The prompt chooses from {low} to {high} of something: the smaller number comes first.")
    options, at = [], begin
    while at < end:
        if text[at] in "{[" and at in pairs:
            at = pairs[at]
        elif text[at] == "|":
            options.append(text[begin:at])
            begin = at + 1
        at += 1
    options.append(text[begin:end])
    return Choice(options, low, high, separator) if many or len(options) > 1 else None
