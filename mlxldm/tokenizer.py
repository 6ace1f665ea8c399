"""Text to token ids, exactly as transformers' fast tokenizers do it: CLIP's byte-pair encoding, and BERT's word pieces.
Standard library only.

CLIP: a prompt is cut into words (letters, single digits, runs of anything else), each word is written as UTF-8 bytes,
each byte as one of 256 printable letters (GPT-2's table), and neighbouring symbols are merged by rank until none fits.
The last symbol of a word carries `</w>`.

Three details decide whether rare prompts come out right: white space is Unicode's White_Space, which `str.isspace` is
not (U+001C to U+001F); lower-casing goes letter by letter, without Python's rule for the last sigma of a word; and
words are found with `unicodedata` categories, because `re` has no \\p{L}.

BERT: a prompt is lower-cased and loses its accents, punctuation and Chinese characters are words of their own, and each
word is cut into the longest pieces that the vocabulary has, from its beginning on.
"""

from __future__ import annotations

import copy
import heapq
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

from mlxldm.errors import UserError

MAX_BYTES = 64 << 20
MAX_VOCABULARY = 1_000_000
WHITE_SPACE = frozenset(map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)))) | frozenset(
    "\u2028\u2029\u202f\u205f\u3000"
)
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# The written special tokens that the scanner takes whole, and what the byte-level step then makes of them.
WRITTEN = {BOS: ("<|", "startoftext", "|>"), EOS: ("<|", "endoftext", "|>")}


def _byte_letters() -> dict[int, str]:
    """GPT-2's table: printable bytes stand for themselves, the others for U+0100 and on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = (byte for byte in range(256) if byte not in plain)
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + i) for i, byte in enumerate(rest)}}


# Where the tables of Python (3.11: Unicode 14) and of the `tokenizers` library (0.23: Unicode 16, its NFC 9) differ;
# found by asking both about every code point.
NEW_LETTERS = (
    (0x1C89, 0x1C8A), (0xA7CB, 0xA7CD), (0xA7DA, 0xA7DC), (0x105C0, 0x105F3), (0x10D4A, 0x10D65), (0x10D6F, 0x10D85),
    (0x10EC2, 0x10EC4), (0x1123F, 0x11240), (0x11380, 0x11389), (0x1138B, 0x1138B), (0x1138E, 0x1138E),
    (0x11390, 0x113B5), (0x113B7, 0x113B7), (0x113D1, 0x113D1), (0x113D3, 0x113D3), (0x11BC0, 0x11BE0),
    (0x11F02, 0x11F02), (0x11F04, 0x11F10), (0x11F12, 0x11F33), (0x1342F, 0x1342F), (0x13441, 0x13446),
    (0x13460, 0x143FA), (0x16100, 0x1611D), (0x16D40, 0x16D6C), (0x18CFF, 0x18CFF), (0x1B132, 0x1B132),
    (0x1B155, 0x1B155), (0x1DF25, 0x1DF2A), (0x1E030, 0x1E06D), (0x1E4D0, 0x1E4EB), (0x1E5D0, 0x1E5ED),
    (0x1E5F0, 0x1E5F0), (0x2B739, 0x2B739), (0x2EBF0, 0x2EE5D), (0x31350, 0x323AF),
)  # fmt: skip
NEW_NUMBERS = (
    (0x10D40, 0x10D49), (0x116D0, 0x116E3), (0x11BF0, 0x11BF9), (0x11F50, 0x11F59), (0x16130, 0x16139),
    (0x16D70, 0x16D79), (0x1CCF0, 0x1CCF9), (0x1D2C0, 0x1D2D3), (0x1E4F0, 0x1E4F9), (0x1E5F1, 0x1E5FA),
)  # fmt: skip
# Marks that Python's NFC moves or joins, and the library's older NFC (Unicode 9) leaves where they stand.
NEW_MARKS = (
    (0x07FD, 0x07FD), (0x0898, 0x089F), (0x08CA, 0x08D3), (0x09FE, 0x09FE), (0x0C3C, 0x0C3C), (0x0D3B, 0x0D3C),
    (0x0EBA, 0x0EBA), (0x1715, 0x1715), (0x1ABF, 0x1ACE), (0x1DF6, 0x1DFA), (0xA82C, 0xA82C), (0x10D24, 0x10D27),
    (0x10EAB, 0x10EAC), (0x10F46, 0x10F50), (0x10F82, 0x10F85), (0x11070, 0x11070), (0x1133B, 0x1133B),
    (0x1145E, 0x1145E), (0x11839, 0x1183A), (0x11930, 0x11930), (0x1193D, 0x1193E), (0x11943, 0x11943),
    (0x119E0, 0x119E0), (0x11A34, 0x11A34), (0x11A47, 0x11A47), (0x11A99, 0x11A99), (0x11D42, 0x11D42),
    (0x11D44, 0x11D45), (0x11D97, 0x11D97), (0x16FF0, 0x16FF1), (0x1E130, 0x1E136), (0x1E2AE, 0x1E2AE),
    (0x1E2EC, 0x1E2EF),
)  # fmt: skip
MARKS = re.compile("([" + "".join(f"{chr(a)}-{chr(b)}" for a, b in NEW_MARKS) + "])")
NEW_LOWER = {
    **{chr(upper): chr(upper + 1) for upper in (0x1C89, 0xA7CC, 0xA7CE, 0xA7D2, 0xA7D4, 0xA7DA)},
    **{chr(upper): chr(upper + 0x20) for upper in range(0x10D50, 0x10D66)},
    **{chr(upper): chr(upper + 0x1B) for upper in range(0x16EA0, 0x16EB9)},
    "\ua7cb": "\u0264",
    "\ua7dc": "\u019b",
}
LETTERS = _byte_letters()
BYTES = {letter: byte for byte, letter in LETTERS.items()}


class Tokenizer(Protocol):
    """What both kinds below can do. `size` is the number of ids, `pad` the one that fills a prompt up."""

    size: int
    pad: int
    comma: int | None  # the id of a comma
    vectors: Mapping[int, int]  # how many ids from one on stand for a word together; for one there is no need

    def encode(self, text: str) -> list[int]: ...

    def framed(self, ids: Sequence[int], length: int = 77) -> list[int]: ...

    def name(self, token: int) -> str: ...

    def ids(self, text: str, length: int = 77) -> list[int]: ...

    def check(self, text: str, length: int = 77, name: str = "prompt") -> None: ...


def open_tokenizer(config: Any, files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of a text encoder (its `ClipTextConfig` or `BertConfig`) from the files of its folder.

    Raises UserError for files that make none, or one with more tokens than the text encoder knows.
    """
    tokenizer = (WordPiece if config.KIND == "bert" else ClipTokenizer).from_files(files)
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"The tokenizer has {tokenizer.size} tokens, but the model's text encoder knows {config.vocab_size}: they "
            f"do not belong together."
        )
    return tokenizer


def _left_out(rest: str, length: int, name: str) -> None:
    if rest:
        raise UserError(
            f"The {name} is too long for this model, which reads {length - 2} tokens: {rest!r} would be left out; "
            f"shorten it."
        )


class ClipTokenizer:
    """Text to CLIP token ids.

    `bos`, `eos`, `pad` are the ids that frame and fill a prompt; `size` is the number of ids.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: list[tuple[str, str]],
        *,
        bos: str = BOS,
        eos: str = EOS,
        pad: str = EOS,
        unknown: str = EOS,
        written: Mapping[str, bool] | None = None,
    ) -> None:
        """`written` are further tokens taken whole where they stand in a prompt: {token: only after normalisation}."""
        if not 0 < len(vocabulary) <= MAX_VOCABULARY or not all(isinstance(name, str) for name in vocabulary):
            raise UserError(f"The tokenizer has {len(vocabulary)} tokens; 1 to {MAX_VOCABULARY} were expected.")
        ids = vocabulary.values()
        if not all(type(i) is int for i in ids) or set(ids) != set(range(len(vocabulary))):
            raise UserError("The tokenizer's ids are not 0, 1, 2, ... each once: its vocabulary is damaged.")
        self._ids = dict(vocabulary)
        self._names = {i: name for name, i in vocabulary.items()}
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, pair in enumerate(merges):
            if pair[0] + pair[1] not in self._ids:
                raise UserError(f"The tokenizer merges {pair[0]!r} and {pair[1]!r} to a token it does not have.")
            self._ranks[pair] = rank
        for role, token in (("start", bos), ("end", eos), ("padding", pad), ("unknown", unknown)):
            if token not in self._ids:
                raise UserError(f"The tokenizer's {role} token {token!r} is not in its vocabulary.")
        self.bos, self.eos, self.pad = self._ids[bos], self._ids[eos], self._ids[pad]
        self._unknown = self._ids[unknown]
        self.comma: int | None = self._ids.get(",</w>")
        self.size = len(self._ids)
        specials = {**{token: False for token in (bos, eos, pad, unknown)}, **(written or {})}
        self._words: tuple[tuple[list[int], list[int]], ...] = ()  # what is read, and the vectors it stands for
        self.vectors: Mapping[int, int] = {}
        self._raw = sorted((t for t, late in specials.items() if t and not late), key=len, reverse=True)
        self._late = sorted((t for t, late in specials.items() if t and late), key=len, reverse=True)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> ClipTokenizer:
        """From the contents of a tokenizer folder: `vocab.json` and `merges.txt`, or `tokenizer.json`.

        Special tokens come from `tokenizer_config.json` and `special_tokens_map.json` where they say so; an older
        folder (without `added_tokens_decoder`) means what the map says when the two differ.
        """
        config, special = _json(files, "tokenizer_config.json"), _json(files, "special_tokens_map.json")
        whole = _json(files, "tokenizer.json")
        written: dict[str, bool] = {}
        if "vocab.json" in files and "merges.txt" in files:
            vocabulary = _json(files, "vocab.json")
            merges = _merges(_text(files, "merges.txt"))
        elif whole:
            model = whole.get("model")
            if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
                raise UserError("tokenizer.json is not a byte-pair encoding: this is not a CLIP tokenizer.")
            if model.get("end_of_word_suffix") != "</w>" or model.get("continuing_subword_prefix"):
                raise UserError("tokenizer.json does not end words with </w>: this is not a CLIP tokenizer.")
            names, pairs = model.get("vocab"), model.get("merges")
            if not isinstance(names, dict) or not isinstance(pairs, list) or len(pairs) > MAX_VOCABULARY:
                raise UserError("tokenizer.json has no usable vocab and merges: it is damaged.")
            vocabulary = names
            merges = [_pair(item.split(" ") if isinstance(item, str) else item) for item in pairs]
        else:
            raise UserError("The tokenizer has neither vocab.json with merges.txt nor tokenizer.json.")
        added = whole.get("added_tokens")
        for item in added if isinstance(added, list) else []:
            if isinstance(item, dict) and isinstance(item.get("content"), str):
                if item["content"] not in vocabulary and item.get("id") == len(vocabulary):
                    vocabulary = {**vocabulary, item["content"]: item["id"]}
                written[item["content"]] = bool(item.get("normalized"))
        decided = dict(written)  # what tokenizer.json says of a token holds whatever the other files say
        if isinstance(decoder := config.get("added_tokens_decoder"), dict):
            config, special = special | config, {}
            for item in decoder.values():
                if isinstance(item, dict) and isinstance(item.get("content"), str):
                    written[item["content"]] = bool(item.get("normalized"))
        said = config | special
        roles = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "pad": "pad_token"}
        tokens: dict[str, str] = {}
        for role, key in roles.items():
            value = said.get(key)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                tokens[role] = content
                # the same token in several roles: the last one says how it is looked for
                written[content] = isinstance(value, dict) and bool(value.get("normalized"))
        return cls(vocabulary, merges, written=written | decided, **tokens)

    def with_words(self, words: Iterable[tuple[Sequence[str], int]]) -> Self:
        """A tokenizer that also knows words of textual inversions: the names of each, and its number of vectors.

        Vector k of them all has the id -1 - k, and takes a token's place. A word is found as AUTOMATIC1111 finds it,
        where the tokens of its name stand in a text, so that a space more or less, or a capital, makes no difference;
        of several that begin at one place, the longest.
        """
        other, found, k = copy.copy(self), [], 0
        vectors: dict[int, int] = {}
        other._names = dict(self._names)
        for names, count in words:
            ids = [-1 - i for i in range(k, k + count)]
            other._names |= {ids[0]: names[0] + "</w>", **dict.fromkeys(ids[1:], "")}
            found += [(read, ids) for name in names if (read := self._plain(name))]
            vectors[ids[0]] = count
            k += count
        other.vectors = vectors
        other._words = tuple(sorted(found, key=lambda pair: len(pair[0]), reverse=True))
        return other

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without start, end and padding."""
        ids = self._plain(text)
        return _replaced(ids, self._words) if self._words else ids

    def _plain(self, text: str) -> list[int]:
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # lone surrogates have no UTF-8
        ids: list[int] = []
        for piece, is_special in _split(text, self._raw):
            if is_special:
                ids.append(self._ids[piece])
                continue
            for part, is_late in _split(_normalise(piece), self._late):
                if is_late:
                    ids.append(self._ids[part])
                    continue
                for word in _words(part):
                    ids.extend(self._word(word))
        return ids

    def ids(self, text: str, length: int = 77) -> list[int]:
        """`length` ids as the text encoder wants them: start, the prompt as far as it fits, end, padding."""
        return self.framed(self.encode(text)[: length - 2], length)

    def framed(self, ids: Sequence[int], length: int = 77) -> list[int]:
        """`length` ids: start, the ones given (at most `length` - 2), end, padding."""
        return [self.bos, *ids, self.eos] + [self.pad] * (length - 2 - len(ids))

    def name(self, token: int) -> str:
        """How the vocabulary writes a token, with its bytes as text where they are some; `</w>` ends a word."""
        name, end = self._names[token], ""
        if name.endswith("</w>") and name != "</w>":
            name, end = name.removesuffix("</w>"), "</w>"
        if not all(letter in BYTES for letter in name):
            return name + end  # a special token
        try:
            return bytes(BYTES[letter] for letter in name).decode("utf-8") + end
        except UnicodeDecodeError:  # a part of a letter
            return name + end

    def left_out(self, text: str, length: int = 77) -> str:
        """The end of `text` (lower-cased, as the model reads it) that `ids` had no room for; "" if all of it fits."""
        rest = self.encode(text)[length - 2 :]
        return self.decode(rest)

    def check(self, text: str, length: int = 77, name: str = "prompt") -> None:
        """UserError, saying what does not fit, if `ids` would leave out a part of `text`."""
        _left_out(self.left_out(text, length), length, name)

    def decode(self, ids: list[int]) -> str:
        """What ids say, lower-cased and with single spaces between words."""
        out = bytearray()
        for letter in "".join(self._names[i] for i in ids).replace("</w>", " "):
            out += bytes([BYTES[letter]]) if letter in BYTES else letter.encode("utf-8")
        return out.decode("utf-8", "replace").strip()

    def _word(self, word: str) -> list[int]:
        """Byte-pair encoding of one word: always the pair of lowest rank, the leftmost of equals."""
        symbols = [LETTERS[byte] for byte in word.encode("utf-8")]
        symbols[-1] += "</w>"
        # A linked list of symbols and a heap of possible merges, so that a prompt of one endless word stays quick.
        after = [*range(1, len(symbols)), -1]
        before = [*range(-1, len(symbols) - 1)]
        live: list[str | None] = list(symbols)
        heap: list[tuple[int, int, str, str]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                a, b = live[left], live[right]
                assert a is not None and b is not None
                rank = self._ranks.get((a, b))
                if rank is not None:
                    heapq.heappush(heap, (rank, left, a, b))

        for i in range(len(symbols) - 1):
            offer(i, i + 1)
        while heap:
            _, left, a, b = heapq.heappop(heap)
            right = after[left]
            if live[left] != a or right < 0 or live[right] != b:
                continue  # one of the two was merged away meanwhile
            live[left], live[right] = a + b, None
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [self._ids.get(symbol, self._unknown) for symbol in live if symbol is not None]


def _replaced(ids: list[int], words: Sequence[tuple[list[int], list[int]]]) -> list[int]:
    """`ids` with every run of them that is a word's, the first of `words` first, as what it stands for."""
    out: list[int] = []
    at = 0
    while at < len(ids):
        name, stands = next((word for word in words if word[0] == ids[at : at + len(word[0])]), ([0], ids[at : at + 1]))
        out += stands
        at += len(name)
    return out


def _split(text: str, tokens: list[str]) -> Iterator[tuple[str, bool]]:
    """`text` cut at every token standing in it, leftmost and longest first: (piece, is a token)."""
    start = position = 0
    while position < len(text):
        hit = next((token for token in tokens if text.startswith(token, position)), None)
        if hit is None:
            position += 1
            continue
        if position > start:
            yield text[start:position], False
        yield hit, True
        start = position = position + len(hit)
    if start < len(text):
        yield text[start:], False


def _normalise(text: str) -> str:
    """Unicode's NFC form, white space as single blanks, lower case letter by letter."""
    text = "".join(unicodedata.normalize("NFC", run) for run in MARKS.split(text))
    return "".join(" " if c in WHITE_SPACE else NEW_LOWER.get(c) or c.lower() for c in text)


def _kind(letter: str) -> str:
    """"L" letter, "N" number, " " white space, "?" anything else."""
    if letter in WHITE_SPACE:
        return " "
    category = unicodedata.category(letter)
    if category == "Cn":  # not assigned, as far as this Python knows
        code = ord(letter)
        for kind, ranges in (("L", NEW_LETTERS), ("N", NEW_NUMBERS)):
            if any(first <= code <= last for first, last in ranges):
                return kind
    return category[0] if category[0] in "LN" else "?"


def _words(text: str) -> Iterator[str]:
    """CLIP's words: 's and its kin, runs of letters, single digits, runs of anything else; white space parts them."""
    position = 0
    while position < len(text):
        if text[position] == "<":
            token = next((token for token in WRITTEN if text.startswith(token, position)), None)
            if token is not None:
                yield from WRITTEN[token]
                position += len(token)
                continue
        if text[position] == "'":
            short = next((short for short in CONTRACTIONS if text.startswith(short, position)), None)
            if short is not None:
                yield short
                position += len(short)
                continue
        kind = _kind(text[position])
        end = position + 1
        if kind in "L?":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != " ":
            yield text[position:end]
        position = end


# ---------------------------------------------------------------------------------------------------------------------
# BERT


ROLES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
LONGEST_WORD = 100  # letters; longer ones are unknown
# Blocks of Chinese characters, each of them a word (the table of Google's BERT)
CHINESE = (
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF)),
    *((0x2A700, 0x2CEAF), (0x2F800, 0x2FA1F)),
)
NO_WORDS = (
    "The model comes without its text encoder's words: lay vocab.txt of bert-base-uncased "
    "(https://huggingface.co/google-bert/bert-base-uncased) beside the checkpoint, or into the folder tokenizer of a "
    "converted model."
)


class WordPiece:
    """Text to the ids of BERT's uncased vocabulary (Devlin et al. 2018, https://arxiv.org/abs/1810.04805).

    `cls`, `sep`, `pad` are the ids that frame and fill a prompt; `size` is the number of ids.

    As BertTokenizerFast, which the latent diffusion models were trained with: letters become small one by one, without
    the rule for the last sigma of a word that the slow tokenizer follows. Characters younger than the fast one's tables
    (Unicode 9) are what Python's say; bert-base-uncased has none of them.
    """

    def __init__(self, vocabulary: Mapping[str, int], special: Mapping[str, str] | None = None) -> None:
        """`special` are the special tokens by their ROLES, where they have other names than BERT's."""
        if not 0 < len(vocabulary) <= MAX_VOCABULARY:
            raise UserError(f"The tokenizer has {len(vocabulary)} words; 1 to {MAX_VOCABULARY} were expected.")
        ids = vocabulary.values()
        if not all(type(i) is int for i in ids) or set(ids) != set(range(len(vocabulary))):
            raise UserError("The tokenizer's ids are not 0, 1, 2, ... each once: its vocabulary is damaged.")
        self._ids = dict(vocabulary)
        self._names = {i: name for name, i in self._ids.items()}
        self._longest = max(map(len, self._ids))
        self.size = len(self._ids)
        tokens = ROLES | dict(special or {})
        for role, token in tokens.items():
            if token not in self._ids and role != "mask_token":
                raise UserError(
                    f"The tokenizer's vocabulary has no {token}: it is not that of bert-base-uncased, which the model "
                    f"needs."
                )
        self.cls, self.sep, self.pad, self._unknown = (self._ids[token] for token in list(tokens.values())[:4])
        self.comma: int | None = self._ids.get(",")
        self.vectors: Mapping[int, int] = {}
        self._special = sorted((token for token in tokens.values() if token in self._ids), key=len, reverse=True)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> WordPiece:
        """From the contents of a tokenizer folder: `vocab.txt`, or `tokenizer.json`.

        Raises UserError, saying which file to get, where there is neither: no checkpoint has the words in it.
        """
        config, whole = _json(files, "tokenizer_config.json"), _json(files, "tokenizer.json")
        said: dict[str, Any] = {**_json(files, "special_tokens_map.json"), **config}
        if "vocab.txt" in files:
            words = _text(files, "vocab.txt").split("\n")
            lines = [word.removesuffix("\r") for word in (words[:-1] if words[-1] == "" else words)]
            vocabulary: dict[str, int] = {word: i for i, word in enumerate(lines)}
        elif whole:
            model, how = whole.get("model"), whole.get("normalizer")
            if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
                raise UserError("tokenizer.json has no usable vocab: it is damaged.")
            if model.get("type", "WordPiece") != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
                raise UserError("tokenizer.json does not cut words into ## pieces: this is not a BERT tokenizer.")
            if model.get("max_input_chars_per_word", LONGEST_WORD) != LONGEST_WORD:
                raise UserError(f"tokenizer.json does not know words of {LONGEST_WORD} letters: this is not BERT's.")
            vocabulary = model["vocab"]
            if isinstance(how, dict):
                said = {"do_lower_case": how.get("lowercase", True), "strip_accents": how.get("strip_accents")} | said
        else:
            raise UserError(NO_WORDS)
        for key, usual in (("do_lower_case", True), ("strip_accents", None), ("tokenize_chinese_chars", True)):
            if said.get(key, usual) not in (usual, True):
                raise UserError(f"The tokenizer says {key} = {said[key]}, but only the uncased BERT is known here.")
        special = {}
        for role in ROLES:
            token = said.get(role)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token:
                special[role] = token
        return cls(vocabulary, special)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without [CLS], [SEP] and padding."""
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # lone surrogates have no UTF-8
        ids: list[int] = []
        for piece, is_special in _split(text, self._special):
            if is_special:
                ids.append(self._ids[piece])
            else:
                for word in _bert_words(piece):
                    ids.extend(self._pieces(word))
        return ids

    def ids(self, text: str, length: int = 77) -> list[int]:
        """`length` ids as the text encoder wants them: [CLS], the prompt as far as it fits, [SEP], [PAD]."""
        return self.framed(self.encode(text)[: length - 2], length)

    def framed(self, ids: Sequence[int], length: int = 77) -> list[int]:
        """`length` ids: [CLS], the ones given (at most `length` - 2), [SEP], [PAD]."""
        return [self.cls, *ids, self.sep] + [self.pad] * (length - 2 - len(ids))

    def name(self, token: int) -> str:
        """How the vocabulary writes a token; `##` begins what is not the beginning of a word."""
        return self._names[token]

    def check(self, text: str, length: int = 77, name: str = "prompt") -> None:
        """UserError, saying what does not fit, if `ids` would leave out a part of `text`."""
        _left_out(self.decode(self.encode(text)[length - 2 :]), length, name)

    def decode(self, ids: list[int]) -> str:
        """What ids say, as far as the vocabulary knows it."""
        return " ".join(self._names[i] for i in ids).replace(" ##", "").removeprefix("##")

    def _pieces(self, word: str) -> list[int]:
        """The longest pieces of the vocabulary one after the other; one unknown, if a place has none."""
        if len(word) > LONGEST_WORD:
            return [self._unknown]
        found: list[int] = []
        start = 0
        while start < len(word):
            before = "##" if start else ""
            ends = range(min(len(word), start + self._longest), start, -1)
            end = next((end for end in ends if before + word[start:end] in self._ids), None)
            if end is None:
                return [self._unknown]
            found.append(self._ids[before + word[start:end]])
            start = end
        return found


def _bert_words(text: str) -> Iterator[str]:
    """BERT's words: small letters without accents between white space; punctuation and Chinese stand alone."""
    clean = []
    for letter in text:
        category = unicodedata.category(letter)
        if letter in "\t\n\r" or letter in WHITE_SPACE and category != "Cc":
            clean.append(" ")
        elif letter != "\ufffd" and category not in ("Cc", "Cf", "Co"):
            chinese = any(first <= ord(letter) <= last for first, last in CHINESE)
            clean.append(f" {letter} " if chinese else letter)
    bare = (c for c in unicodedata.normalize("NFD", "".join(clean)) if unicodedata.category(c) != "Mn")
    word = ""
    for letter in "".join(c.lower() for c in bare):
        alone = unicodedata.category(letter)[0] == "P" or letter in "$+<=>^`|~"  # ASCII's own, by BERT's table
        if letter != " " and not alone:
            word += letter
            continue
        if word:
            yield word
        if alone:
            yield letter
        word = ""
    if word:
        yield word


# ---------------------------------------------------------------------------------------------------------------------
# Reading the files


def _text(files: Mapping[str, bytes], name: str) -> str:
    data = files[name]
    if len(data) > MAX_BYTES:
        raise UserError(f"The tokenizer's {name} has {len(data) >> 20} MB; at most {MAX_BYTES >> 20} were expected.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"The tokenizer's {name} is not UTF-8 text: it is damaged.") from None


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(_text(files, name))
    except (ValueError, RecursionError):
        raise UserError(f"The tokenizer's {name} is not JSON: it is damaged.") from None
    if not isinstance(value, dict):
        raise UserError(f"The tokenizer's {name} is not an object: it is damaged.")
    return value


def _pair(item: Any) -> tuple[str, str]:
    if isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(half, str) and half for half in item):
        return item[0], item[1]
    raise UserError(f"The tokenizer has the merge {str(item)[:40]!r}, but two symbols were expected: it is damaged.")


def _merges(text: str) -> list[tuple[str, str]]:
    lines = text.split("\n")
    if lines and lines[0].startswith("#version"):  # "#" alone is a legal symbol
        lines = lines[1:]
    lines = [line.rstrip("\r") for line in lines]
    if len(lines) > MAX_VOCABULARY:
        raise UserError(f"The tokenizer's merges.txt has {len(lines)} lines; at most {MAX_VOCABULARY} were expected.")
    return [_pair(line.split(" ")) for line in lines if line]
