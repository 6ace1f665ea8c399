"""The language of prompts, as A1111's web UI made it common: from a text to the tokens and weights of each step.

    networks   <lora:name:0.8>                  taken out of the prompt and handed over
    compose    a cat :1.2 AND a dog             several prompts that lead together
    schedule   [from:to:when]  [a|b]            the text of each step
    weigh      (word)  [word]  (word:1.3)       runs of text with their weights; BREAK
    cut        chunks as long as the text encoder reads

in this order, so that a later one sees nothing of an earlier one's signs. What can only be a slip of the keyboard is
text, as there: a bracket that nothing closes in a schedule, a `when` that is no number. What cannot be meant at all is
a `UserError`. Standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UserError
from .tokenizer import ClipTokenizer, Tokenizer, open_tokenizer

if TYPE_CHECKING:
    from .folder import Folder

EMPHASES = ("original", "none")
MORE, LESS = 1.1, 1 / 1.1  # what round and square brackets do
LARGEST = 100.0  # weight; 1.5 is much
DEEPEST = 100  # brackets within brackets
BACK = 20  # tokens by which a chunk may end early, behind its last comma


# ---------------------------------------------------------------------------------------------------------------------
# Networks


NETWORKS = ("lora", "lyco")  # the kinds that LoRAs are asked for by


@dataclass(frozen=True)
class Network:
    """Something beside the words that a prompt asks for: <kind:name:weight ...>."""

    kind: str  # "lora", "hypernet", ...
    arguments: tuple[str, ...]  # the name first

    def __str__(self) -> str:
        return f"<{':'.join((self.kind, *self.arguments))}>"

    @property
    def name(self) -> str:
        return self.arguments[0].strip()

    @property
    def weight(self) -> float:
        """How much of it in the U-Net: the second number, or the only one."""
        return self._number("unet", 2, self.text_weight)

    @property
    def text_weight(self) -> float:
        """How much of it in the text encoders: the first number, or 1."""
        return self._number("te", 1, 1.0)

    def lora(self) -> str:
        """As a job's text for a LoRA ("NAME:0.8:0.5", the U-Net's number first; `adapters.wish`).

        A1111's order is the other one: <lora:NAME:te:unet>, or by name, te=, unet=; sd-webui-lora-block-weight's lbw=
        is understood too. Raises UserError for what is no LoRA, and for what none here can do.
        """
        if self.kind not in NETWORKS:
            what = "a hypernetwork" if self.kind == "hypernet" else "of a kind that is not known here"
            raise UserError(f"The prompt has {self}, which is {what}: leave it out; <lora:NAME:0.8> is a LoRA.")
        plain, named = self._arguments
        blocks = named.get("lbw")
        if blocks is None and len(plain) > 2 and "," in plain[2]:  # as it was written before there was lbw=
            blocks, plain = plain[2], plain[:2]
        more = [f"{key}=" for key in named if key not in ("te", "unet", "lbw")] + list(plain[3:])
        if more:
            raise UserError(
                f"The prompt has {self}, whose {more[0]!r} is not known here: <lora:NAME:0.8:0.5> (text encoders, "
                f"U-Net), te=, unet= and lbw= are."
            )
        weight, text_weight = (written(number) for number in (self.weight, self.text_weight))
        text = f"{self.name}:{weight}" + (f":{text_weight}" if text_weight != weight else "")
        return text if blocks is None else f"{text}:lbw={blocks.strip()}"

    @property
    def _arguments(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Those by their place, the name first, and those with a key."""
        name, *more = self.arguments
        pairs = (argument.split("=", 1) for argument in more if "=" in argument)
        plain = (name, *(argument for argument in more if "=" not in argument))
        return plain, {key.strip(): value for key, value in pairs}

    def _number(self, key: str, place: int, otherwise: float) -> float:
        """The argument `key=...`, else the one that stands at `place` among those without a key."""
        plain, named = self._arguments
        written = named.get(key, plain[place] if place < len(plain) and "," not in plain[place] else None)
        if written is None:
            return otherwise
        try:
            number = float(written)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"The prompt has {self}, where {written!r} is no number; write it like <lora:name:0.8>.")
        return number


def written(number: float) -> str:
    """A number as people write it, without an exponent."""
    return f"{number:.8f}".rstrip("0").rstrip(".")


_NETWORK = re.compile(r"<(\w+):([^<>]+)>")


def networks(text: str) -> tuple[str, tuple[Network, ...]]:
    """`text` without its <kind:...>, and what these ask for."""
    found = tuple(Network(match[1].lower(), tuple(match[2].split(":"))) for match in _NETWORK.finditer(text))
    return _NETWORK.sub("", text), found


def renamed(text: str, name: Callable[[Network], str | None]) -> str:
    """`text` with each <kind:...> under another name, or without it where there is none."""

    def other(match: re.Match[str]) -> str:
        network = Network(match[1].lower(), tuple(match[2].split(":")))
        called = name(network)
        if called == network.name:
            return match[0]
        return "" if called is None else str(Network(network.kind, (called, *network.arguments[1:])))

    return _NETWORK.sub(other, text)


# ---------------------------------------------------------------------------------------------------------------------
# Composition


@dataclass(frozen=True)
class Part:
    """One of the prompts that lead together (Liu et al. 2022, https://arxiv.org/abs/2206.01714)."""

    text: str
    weight: float


_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


def compose(text: str) -> list[Part]:
    """The parts of a prompt that AND joins, each with the number behind its last colon as its weight, or 1.

    A prompt without AND is one part, and a colon in it is text.
    """
    texts = _AND.split(text)
    if len(texts) == 1:
        return [Part(text, 1.0)]
    parts = []
    for each in texts:
        words, _, number = each.rpartition(":")
        weighted = _PART_WEIGHT.fullmatch(number.strip())
        parts.append(Part(words, _weight(number)) if weighted else Part(each, 1.0))
    return parts


def _weight(written: str) -> float:
    try:
        weight = float(written)
    except ValueError:
        raise UserError(f"The prompt has the weight {written!r}, which is no number; write it like 1.3.") from None
    return _sane(weight)


def _sane(weight: float) -> float:
    if not abs(weight) <= LARGEST:
        raise UserError(
            f"The prompt has the weight {weight:g}, but 1.3 is strong and {LARGEST:g} the most; for brackets that are "
            f"only brackets write \\( and \\)."
        )
    return weight


# ---------------------------------------------------------------------------------------------------------------------
# Schedules


@dataclass(frozen=True)
class _Edit:
    """[before:after:when]"""

    before: list
    after: list
    last: int  # the last step, from 1, that `before` is for


@dataclass(frozen=True)
class _Turns:
    """[a|b|...]: one after the other, a step each."""

    options: list[list]


@dataclass(frozen=True)
class Pass:
    """What `when` counts in: the steps of one walk of a job that may have two."""

    steps: int
    before: int = 0  # steps of the walk before this one
    more: bool = False  # another walk follows


_SIGN = re.compile(r"\\.|[^\\\[\]():|]+|.", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


def schedule(text: str, walk: Pass) -> list[str]:
    """What a part of a prompt says at each step of a walk.

    `when` counts steps; with a decimal point it is a part of them, and that from 1 to 2 is one of a second walk. The
    step it names is the last one of `from`.
    """
    tree = _tree(text, walk)
    return ["".join(_said(tree, step)) for step in range(1, walk.steps + 1)]


def _tree(text: str, walk: Pass) -> list:
    """Text as a list of strings, of lists (brackets that mean nothing here), and of `_Edit` and `_Turns`."""
    open_: list[list] = [[]]  # the text, and in it the brackets that are still open
    for sign in _SIGN.findall(text):
        if sign in "([":
            open_.append([sign])
            if len(open_) > DEEPEST:
                raise UserError(f"The prompt has brackets within brackets {DEEPEST} deep; nobody can mean that.")
        elif sign in ")]":
            fits = len(open_) > 1 and open_[-1][0] == {")": "(", "]": "["}[sign]
            if not fits:  # no bracket that is open can be closed any more: all of them are text
                for level in open_[1:]:
                    open_[0] += level
                del open_[1:]
                open_[0].append(sign)
                continue
            inside = open_.pop()
            open_[-1].append([*inside, ")"] if sign == ")" else _group(inside[1:], walk))
        else:
            open_[-1].append(sign)
    return [piece for level in open_ for piece in level]


def _group(inside: list, walk: Pass) -> _Edit | _Turns | list:
    """What square brackets mean."""
    if "|" in inside and ":" not in inside:
        return _Turns(_split(inside, "|"))
    *texts, when = _split(inside, ":")
    number = _WHEN.fullmatch(when[0]) if len(when) == 1 and isinstance(when[0], str) else None
    if "|" in inside or number is None or len(texts) not in (1, 2):
        return ["[", *inside, "]"]
    return _Edit([] if len(texts) == 1 else texts[0], texts[-1], _last(number[1], walk))


def _split(pieces: list, sign: str) -> list[list]:
    parts: list[list] = [[]]
    for piece in pieces:
        if piece == sign:
            parts.append([])
        else:
            parts[-1].append(piece)
    return parts


def _last(when: str, walk: Pass) -> int:
    """The step of this walk, from 1, after which the text changes; 0 or less: before the first."""
    value = float(when)
    if "." in when:
        most = 2 if walk.before or walk.more else 1
        if not 0 <= value <= most:
            weight = " For a weight write (word:1.3), with round brackets." if 1 < value <= 2 else ""
            raise UserError(
                f"The prompt changes at {when} of its steps in [...:{when}], but with a decimal point that is a part "
                f"of them, from 0 to {most}.{weight}"
            )
        return int((value - (1 if walk.before else 0)) * walk.steps)
    if not 0 <= value < 1e9:
        raise UserError(f"The prompt changes at step {when} in [...:{when}], but steps count from 1.")
    return int(value) - walk.before


def _said(pieces: list, step: int) -> list[str]:
    said: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            said.append(piece)
        elif isinstance(piece, _Edit):
            said += _said(piece.before if step <= piece.last else piece.after, step)
        elif isinstance(piece, _Turns):
            said += _said(piece.options[(step - 1) % len(piece.options)], step)
        else:
            said += _said(piece, step)
    return said


@dataclass(frozen=True)
class Words:
    """A text without schedules, and the one that a second text encoder reads instead; None: the same."""

    first: str
    second: str | None = None


Line = tuple[tuple[Words, float], ...]  # the prompts that lead one step, with their weights


def script(first: str, second: str | None, walk: Pass, composed: bool = True) -> list[Line]:
    """What a prompt says at each step of a walk, and the one for a second text encoder with it.

    composed: AND parts prompts, and <lora:...> asks for one; in a negative prompt both are words, as in A1111's.
    """

    def parts_of(text: str) -> list[Part]:
        return compose(networks(text)[0]) if composed else [Part(text, 1.0)]

    parts = parts_of(first)
    texts: list[list[str]] = [schedule(part.text, walk) for part in parts]
    others: list[Sequence[str | None]] = [[None] * walk.steps] * len(parts)
    if second is not None:
        others = [schedule(part.text, walk) for part in parts_of(second)]
        others *= len(parts) if len(others) == 1 else 1
        if len(others) != len(parts):
            raise UserError(
                f"The prompt has {len(parts)} parts with AND between them and the second prompt {len(others)}: give "
                f"the second one as many, or one for all."
            )
    return [
        tuple(
            (Words(text[step], other[step]), part.weight)
            for part, text, other in zip(parts, texts, others, strict=True)
        )
        for step in range(walk.steps)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Weights


@dataclass
class Run:
    """Text of one weight; None is a BREAK: the chunk ends here."""

    text: str | None
    weight: float = 1.0


_WEIGHED = re.compile(r"\\[\\()\[\]]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|.", re.DOTALL)
_BREAK = re.compile(r"\bBREAK\b")


def weigh(text: str, emphasis: str = "original") -> list[Run]:
    """The runs of a text without schedules; neighbours of one weight are one run, since words do not go beyond one.

    A bracket that is never closed weighs what follows it to the end, and one that closes nothing is text. With the
    emphasis `none` every letter is text, and BREAK a word.
    """
    if emphasis == "none":
        return [Run(text)]
    runs: list[Run] = []
    starts: dict[str, list[int]] = {")": [], "]": []}  # of the brackets that are open, by what closes them

    def times(factor: float, start: int) -> None:
        for run in runs[start:]:
            run.weight *= factor

    for match in _WEIGHED.finditer(text):
        sign, weight = match[0], match["weight"]
        if sign in ("(", "["):
            starts[")" if sign == "(" else "]"].append(len(runs))
            if len(starts[")"]) + len(starts["]"]) > DEEPEST:
                raise UserError(f"The prompt has more than {DEEPEST} open brackets at once; nobody can mean that.")
        elif weight is not None and starts[")"]:
            times(_weight(weight), starts[")"].pop())
        elif sign in starts and starts[sign]:
            times(MORE if sign == ")" else LESS, starts[sign].pop())
        elif len(sign) == 2 and sign[0] == "\\":
            runs.append(Run(sign[1]))
        else:
            for i, piece in enumerate(_BREAK.split(sign)):
                runs += [Run(None)] * (i > 0) + [Run(piece)]
    for start in starts[")"]:
        times(MORE, start)
    for start in starts["]"]:
        times(LESS, start)

    joined = [Run("")]
    for run in runs:
        if run.text is not None:
            _sane(run.weight)
        last = joined[-1]
        if run.text is not None and last.text is not None and (run.weight == last.weight or not last.text):
            joined[-1] = Run(last.text + run.text, run.weight)
        elif run.text != "":
            joined.append(run)
    return joined


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


@dataclass(frozen=True)
class Chunk:
    """What a text encoder reads at once: start, `used` tokens of the text, end and padding, with their weights."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    used: int


def cut(runs: Sequence[Run], tokenizer: Tokenizer, length: int = 77) -> list[Chunk]:
    """Chunks of `length` tokens. One that is full ends behind its last comma, if that is not far back; the vectors of
    a textual inversion stay together.
    """
    room = length - 2
    chunks: list[list[tuple[int, float]]] = [[]]
    comma: int | None = None  # where the last one stands in the last chunk
    for run in runs:
        if run.text is None:
            chunks.append([])
            comma = None
            continue
        for token in tokenizer.encode(run.text):
            last = chunks[-1]
            if len(last) == room:
                stay = room
                if token != tokenizer.comma and comma is not None and room - comma <= BACK:
                    stay = comma + 1
                chunks[-1:] = [last[:stay], last[stay:]]
                comma = None
            if len(chunks[-1]) + tokenizer.vectors.get(token, 1) > room:
                chunks.append([])
                comma = None
            if token == tokenizer.comma:
                comma = len(chunks[-1])
            chunks[-1].append((token, run.weight))
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()
    return [_chunk(chunk, tokenizer, length) for chunk in chunks]


def _chunk(tokens: Sequence[tuple[int, float]], tokenizer: Tokenizer, length: int) -> Chunk:
    weights = (1.0, *(weight for _, weight in tokens))
    ids = tokenizer.framed([token for token, _ in tokens], length)
    return Chunk(tuple(ids), weights + (1.0,) * (length - len(weights)), len(tokens))


@dataclass(frozen=True)
class Tokens:
    """A text in the tokens of each of a model's text encoders: the same number of chunks for all of them."""

    words: Words
    encoders: tuple[tuple[Chunk, ...], ...]
    skip: int | None = None  # clip skip: see `ClipTextConfig.layer`

    @property
    def chunks(self) -> int:
        return max(map(len, self.encoders))


class Reader:
    """The words of a model: what its tokenizers make of a text. `names` are those of its text encoders' parts."""

    def __init__(self, folder: Folder):
        """Raises UserError where the folder's tokenizers are none, or not those of its text encoders."""
        manifest = folder.manifest
        self.names: list[str] = []
        self.tokenizers: list[Tokenizer] = []
        self._lengths: list[int] = []
        if manifest.task == "layout":
            return  # its text encoder reads numbers of its own
        for number, (part, config) in enumerate(manifest.texts.items(), 1):
            self.names.append(part)
            self.tokenizers.append(open_tokenizer(config, folder.tokenizer_files(number)))
            self._lengths.append(config.max_position_embeddings)

    def learn(self, words: Sequence[tuple[Sequence[str], int]]) -> None:
        """From now on these words of textual inversions, by their names and numbers of vectors, and no others."""
        self.tokenizers = [
            tokenizer.with_words(words) if isinstance(tokenizer, ClipTokenizer) else tokenizer
            for tokenizer in self.tokenizers
        ]

    def __call__(self, words: Words | Tokens | str, emphasis: str = "original", skip: int | None = None) -> Tokens:
        """`words` without schedules in tokens; what was read already stays as it is."""
        if isinstance(words, Tokens):
            return words
        if isinstance(words, str):
            words = Words(words)
        texts = [words.first, words.first if words.second is None else words.second]
        read = zip(texts, self.tokenizers, self._lengths, strict=False)
        encoders = tuple(tuple(cut(weigh(text, emphasis), tokens, length)) for text, tokens, length in read)
        return self.level(Tokens(words, encoders, skip))[0]

    def level(self, *texts: Tokens) -> list[Tokens]:
        """The texts with empty chunks behind them, so that all have as many as the longest."""
        chunks = max(text.chunks for text in texts)
        return [dataclasses.replace(text, encoders=tuple(self._filled(text, chunks))) for text in texts]

    def _filled(self, text: Tokens, chunks: int) -> list[tuple[Chunk, ...]]:
        filled = []
        for own, tokenizer, length in zip(text.encoders, self.tokenizers, self._lengths, strict=True):
            filled.append(own + (_chunk((), tokenizer, length),) * (chunks - len(own)))
        return filled
