"""CLIP's tokenizer, against transformers' own where that is installed and against stored results everywhere."""

from __future__ import annotations

import json
import random
import time

import pytest

from mlxldm.errors import UserError
from mlxldm.tokenizer import LETTERS, ClipTokenizer

WORDS = "a the red blue house boat tree at dusk dawn with sea mountain under night snow lighthouse balloon"
WORDS += " été ñandú straße москва ελλάς 山 海 雪 日本 한국 שלום"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's layout: 256 byte letters, the same with </w>, merged pairs, start, end. Merges spell out `WORDS`."""
    letters = sorted(LETTERS.values())
    merges: list[tuple[str, str]] = []
    for word in WORDS.split():
        symbols = [LETTERS[byte] for byte in word.encode()]
        symbols[-1] += "</w>"
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            if pair not in merges:
                merges.append(pair)
            symbols[:2] = ["".join(pair)]
    names = [*letters, *(letter + "</w>" for letter in letters)]
    names += [name for name in dict.fromkeys("".join(pair) for pair in merges) if name not in names]
    return {name: i for i, name in enumerate([*names, BOS, EOS])}, merges


def old_files(pad: str = EOS) -> dict[str, bytes]:
    """As the hubs have it: vocab.json, merges.txt."""
    vocab, merges = vocabulary()
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    return {
        "vocab.json": json.dumps(vocab).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges), ""]).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": EOS}).encode(),
    }


def new_files(pad: str = EOS, strings: bool = False) -> dict[str, bytes]:
    """As transformers 5 has it: tokenizer.json alone, merges as pairs (older: as strings)."""
    vocab, merges = vocabulary()
    model = {
        "type": "BPE", "end_of_word_suffix": "</w>", "continuing_subword_prefix": "", "unk_token": EOS,
        "vocab": vocab, "merges": [" ".join(pair) for pair in merges] if strings else merges,
    }  # fmt: skip
    added = [{"id": vocab[t], "content": t, "normalized": False, "special": True} for t in {pad, BOS, EOS}]
    config = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    return {
        "tokenizer.json": json.dumps({"model": model, "added_tokens": added}).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


HAND = [
    "", " ", "a red house", "A RED HOUSE!!", "a  red\t\nhouse\u00a0at\u3000dusk", "it's we're I'VE o'clock 'S '' 's",
    "year 2024, 3½ ²³ ٣٤", "été ÉTÉ e\u0301te\u0301", "ΕΛΛΆΣ ελλας ΟΔΟΣ", "İstanbul ıI", "山海 雪の日本 한국",
    "👩‍👩‍👧 🇩🇪 ☀️", "<|endoftext|> mid <|startoftext|>", "<|ENDOFTEXT|>",
    "a\u001cb\u001db\u001eb\u001fb\u0085b", "\x00\x7f",
    "a\u200bb\ufeffc", "x\u0307\u0323", "ﬁﬂ Å", "\U0001e030 \u1c89\u1c8a \U00010d50", "²᷹̈",
    "_under_score-dash—dash", "!" * 100,
]  # fmt: skip


def mixed(rng: random.Random) -> str:
    pools = [
        "abcdefghijklmnopqrstuvwxyz  '!.,", " 0123456789²½٣", "ΑΒΓΣσςάέ ", "ÀÉÎõüßİıŁ ", "漢字かなカナ ", "한국어 ",
        "עברית العربية ", "😀👩‍👧🇩🇪 ",
        "\u0301\u0307\u0308e ", "\x00\x01\x1c\x1d\x1e\x1f\x85\xa0\u2028\u3000\u200b\ufeff",
    ]  # fmt: skip
    out = []
    for _ in range(rng.randint(1, 30)):
        draw = rng.random()
        if draw < 0.55:
            out.append(rng.choice(rng.choice(pools)))
        elif draw < 0.6:
            out.append(rng.choice([EOS, BOS, EOS.upper(), "'s", "'LL", "!"]))
        elif draw < 0.8:
            out.append(rng.choice(WORDS.split()) + rng.choice(["", " "]))
        elif draw < 0.97:
            out.append(chr(rng.randrange(0x20, 0x3000)))
        else:
            code = rng.randrange(0x110000)
            out.append("x" if 0xD800 <= code < 0xE000 else chr(code))
    return "".join(out)


@pytest.mark.parametrize("pad", [EOS, "!"])
def test_any_prompt_is_cut_as_transformers_cuts_it(pad, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    vocab, merges = vocabulary()
    theirs = transformers.CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)
    ours = [ClipTokenizer.from_files(files) for files in (old_files(pad), new_files(pad), new_files(pad, strings=True))]
    assert {(one.bos, one.eos, one.pad, one.size) for one in ours} == {
        (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, len(vocab))
    }
    rng = random.Random(1)
    prompts = HAND + [mixed(rng) for _ in range(3000)]
    wanted = theirs(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    for prompt, ids in zip(prompts, wanted, strict=True):
        assert ours[0].ids(prompt) == ids, repr(prompt)
    for one in ours[1:]:
        assert [one.ids(prompt) for prompt in prompts[:300]] == wanted[:300]
    theirs.save_pretrained(tmp_path)
    saved = ClipTokenizer.from_files({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert [saved.ids(prompt) for prompt in prompts[:300]] == wanted[:300]


def test_every_letter_of_unicode_is_taken_as_transformers_takes_it():
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    vocab, merges = vocabulary()
    theirs = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    ours = ClipTokenizer(vocab, merges)
    some = [c for c in range(0x3200, 0x33000) if not 0xD800 <= c < 0xE000 and (c % 17 == 0 or 0x10D40 <= c < 0x10D90)]
    codes = [*range(0x3200), *some]
    texts = [f"a{chr(code)}b" for code in codes]
    wanted = theirs(texts, add_special_tokens=False)["input_ids"]
    wrong = [hex(code) for code, text, ids in zip(codes, texts, wanted, strict=True) if ours.encode(text) != ids]
    assert not wrong


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("pad", [EOS, "!"])
@pytest.mark.parametrize("form", ["old", "new"])
def test_special_tokens_written_in_a_prompt_are_found_as_the_files_say(form, pad, late, tmp_path):
    """`normalized` decides whether <|ENDOFTEXT|> is the end token too; the files of the hubs differ in it."""
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    flags = {"lstrip": False, "normalized": late, "rstrip": False, "single_word": False}
    roles = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
    special = {role: {"content": token, **flags} for role, token in roles.items()}
    if form == "old":
        files = old_files(pad)
        config = {role: {"__type": "AddedToken", **value} for role, value in special.items()}
        files["tokenizer_config.json"] = json.dumps({**config, "pad_token": EOS}).encode()
        files["special_tokens_map.json"] = json.dumps({**special, "pad_token": pad}).encode()
    else:
        vocab, merges = vocabulary()
        transformers.CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad).save_pretrained(tmp_path)
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        whole = json.loads(files["tokenizer.json"])
        for token in whole["added_tokens"]:
            token["normalized"] = late
        files["tokenizer.json"] = json.dumps(whole).encode()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    theirs, ours = transformers.CLIPTokenizer.from_pretrained(tmp_path), ClipTokenizer.from_files(files)
    assert ours.pad == theirs.pad_token_id
    rng = random.Random(5)
    for prompt in HAND + [mixed(rng) for _ in range(300)]:
        assert ours.encode(prompt) == theirs(prompt, add_special_tokens=False)["input_ids"], repr(prompt)


STORED = [  # made with transformers 5.23 (tokenizers 0.23)
    ('a red house', [320, 515, 522]),
    ('A RED HOUSE!!', [320, 515, 522, 0, 256]),
    ('a  red\t\nhouse\xa0at\u3000dusk', [320, 515, 522, 529, 532]),
    ("it's we're I'VE o'clock 'S '' 's", [
        72, 339, 6, 338, 86, 324, 6, 81, 324, 328, 6, 85, 324, 334, 262, 66, 75, 78, 66, 330, 6, 338, 6, 262,
        6, 338,
    ]),
    ('year 2024, 3\xbd \xb2\xb3 \u0663\u0664', [
        88, 68, 64, 337, 273, 271, 273, 275, 267, 274, 126, 377, 126, 366, 126, 367, 149, 352, 149, 353,
    ]),
    ('\xe9t\xe9 \xc9T\xc9 e\u0301te\u0301', [577, 577, 577]),
    ('\u0395\u039b\u039b\u0386\u03a3 \u03b5\u03bb\u03bb\u03b1\u03c2 \u039f\u0394\u039f\u03a3', [
        608, 481, 606, 109, 139, 480, 138, 123, 138, 112, 138, 123, 139, 481,
    ]),
    ('\u0130stanbul \u0131I', [328, 136, 485, 584, 64, 77, 65, 84, 331, 128, 109, 328]),
    ('\u5c71\u6d77 \u96ea\u306e\u65e5\u672c \ud55c\uad6d', [610, 109, 613, 614, 103, 159, 223, 106, 620, 625]),
    ('\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2600\ufe0f', [
        172, 253, 239, 102, 158, 222, 235, 172, 253, 239, 102, 158, 222, 235, 172, 253, 239, 356, 172, 253,
        229, 102, 172, 253, 229, 359, 158, 246, 222, 171, 116, 493,
    ]),
    ('<|endoftext|> mid <|startoftext|>', [634, 76, 72, 323, 633]),
    ('<|ENDOFTEXT|>', [27, 347, 68, 77, 67, 78, 69, 83, 68, 87, 339, 91, 285]),
    ('a\x1cb\x1db\x1eb\x1fb\x85b', [320, 472, 321, 473, 321, 474, 321, 475, 321, 321]),
    ('\x00\x7f', [188, 477]),
    ('a\u200bb\ufeffc', [320, 158, 222, 489, 321, 171, 119, 379, 322]),
    ('x\u0307\u0323', [157, 118, 489, 136, 352]),
    ('\ufb01\ufb02 \xc5', [171, 105, 223, 171, 105, 480, 127, 354]),
    ('\U0001e030 \u1c89\u1c8a \U00010d50', [172, 252, 222, 364, 157, 110, 232, 157, 110, 488, 172, 238, 113, 364]),
    ('\xb2\u1df9\u0308', [126, 366, 157, 115, 117, 136, 486]),
    ('_under_score-dash\u2014dash', [
        318, 551, 318, 82, 66, 78, 81, 324, 268, 533, 82, 327, 158, 222, 498, 533, 82, 327,
    ]),
]  # fmt: skip


@pytest.mark.parametrize("prompt, ids", STORED)
def test_stored_results_hold_without_transformers(prompt, ids):
    assert ClipTokenizer.from_files(old_files()).encode(prompt) == ids


def test_a_prompt_is_framed_cut_and_filled():
    one = ClipTokenizer.from_files(old_files())
    assert one.ids("a red house", 8) == [one.bos, *one.encode("a red house"), one.eos, one.pad, one.pad, one.pad]
    assert one.ids("a red house at dusk", 5) == [one.bos, *one.encode("a red house"), one.eos]
    assert one.left_out("a red house at dusk", 5) == "at dusk"
    assert one.left_out("a red house", 5) == "" == one.left_out("", 77)
    assert one.decode(one.encode("Été at 日本!")) == "été at 日本 !"


def test_the_map_of_special_tokens_wins_in_an_old_folder_only():
    """stable-diffusion-2's folders say `!` in the map and the end token in the config, and mean `!`."""
    files = old_files(pad="!")
    assert ClipTokenizer.from_files(files).pad == vocabulary()[0]["!"]
    config = json.loads(files["tokenizer_config.json"]) | {"added_tokens_decoder": {}}
    newer = {**files, "tokenizer_config.json": json.dumps(config).encode()}
    assert ClipTokenizer.from_files(newer).pad == vocabulary()[0][EOS]


def test_one_endless_word_is_quick():
    one = ClipTokenizer.from_files(old_files())
    start = time.perf_counter()
    one.encode("mountain" * 20_000)
    assert time.perf_counter() - start < 5


def damaged(**changes) -> dict[str, bytes]:
    return {**old_files(), **changes}


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "neither vocab.json with merges.txt nor tokenizer.json"),
        ({"vocab.json": b"{}"}, "neither"),
        (damaged(**{"vocab.json": b"[1]"}), "vocab.json is not an object"),
        (damaged(**{"vocab.json": b"{"}), "vocab.json is not JSON"),
        (damaged(**{"vocab.json": b"[" * 100_000}), "vocab.json is not JSON"),
        (damaged(**{"vocab.json": b'{"a": 0, "b": 2}'}), "not 0, 1, 2"),
        (damaged(**{"vocab.json": b'{"a": 0, "b": 0}'}), "not 0, 1, 2"),
        (damaged(**{"vocab.json": b'{"a": true, "b": 0}'}), "not 0, 1, 2"),
        (damaged(**{"merges.txt": b"a b c\n"}), "two symbols were expected"),
        (damaged(**{"merges.txt": b"q zz\n"}), "to a token it does not have"),
        (damaged(**{"merges.txt": b"\xff\xfe"}), "not UTF-8"),
        (damaged(**{"special_tokens_map.json": b'{"pad_token": "nope"}'}), "padding token 'nope' is not"),
        ({"tokenizer.json": b'{"model": {"type": "Unigram"}}'}, "not a byte-pair encoding"),
        ({"tokenizer.json": b'{"model": {"type": "BPE", "end_of_word_suffix": ""}}'}, "not a CLIP tokenizer"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(files, said):
    with pytest.raises(UserError) as error:
        ClipTokenizer.from_files(files)
    assert said in str(error.value) and "\n" not in str(error.value)
