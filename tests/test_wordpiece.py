"""BERT's tokenizer, against transformers' own where that is installed and by hand everywhere."""

from __future__ import annotations

import json
import random
import time
import unicodedata

import pytest

from mlxldm.config import BertConfig, ClipTextConfig
from mlxldm.errors import UserError
from mlxldm.tokenizer import ClipTokenizer, WordPiece, open_tokenizer

# pieces in bert-base-uncased's style: some words whole, letters of many scripts as begin and as rest of a word
WORDS = "a the red house boat light ##house ##boat un ##aff ##able ete straße ελλασ οδος οδοσ москва 日 本 語 한국 שלום"
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…—。「」«»¿"
LETTERS = "abcdefghijklmnopqrstuvwxyzß0123456789αβγδεσςοабвмосква日本語שלוםᄒ"


def vocabulary() -> list[str]:
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    single = [*MARKS, *LETTERS, *("##" + letter for letter in LETTERS if letter not in "日本語x")]
    return list(dict.fromkeys([*special, *single, *WORDS.split()]))


def files() -> dict[str, bytes]:
    return {"vocab.txt": ("\n".join(vocabulary()) + "\n").encode()}


def text(rng: random.Random) -> str:
    """Words of the vocabulary, letters of many scripts, signs, white space and controls of all kinds, in any order."""
    pools = [
        LETTERS, LETTERS.upper(), MARKS, "éàüñçøłİıŁÅﬁ½ẞΆΈ", "\u0301\u0308\u0323e\u05b0", "漢字かなカナ한국어조선",
        "\x00\x01\x1c\x1f\x7f\x85\xa0\u2028\u2029\u3000\u200b\u200d\ufeff\ufffd\u00ad\ue000", " \t\r\n", "😀👩☀️🇩🇪",
    ]  # fmt: skip
    out = []
    for _ in range(rng.randint(0, 25)):
        kind = rng.random()
        if kind < 0.3:
            out.append(rng.choice(WORDS.replace("##", "").split()))
        elif kind < 0.35:
            out.append(rng.choice(["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", "[sep]", "[unused0]", "x" * 100]))
        elif kind < 0.4:
            out.append("ab" * rng.randint(48, 52))
        elif kind < 0.6:
            out.append(chr(rng.choice([rng.randrange(0x20, 0x3000), rng.randrange(0x20, 0x30000)])))
        else:
            out.append("".join(rng.choices(rng.choice(pools), k=rng.randint(1, 4))))
        out.append(rng.choice(["", "", " "]))
    return "".join(out)


def old(words: str) -> bool:
    """Whether all characters are of Unicode 3.2 and mean the same today: every tokenizer's tables agree."""
    was = [unicodedata.ucd_3_2_0.category(c) for c in words]
    return all(a == unicodedata.category(c) and a not in ("Cn", "Cs") for a, c in zip(was, words, strict=True))


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        made = "".join(c for c in text(rng) if old(c) or c in "😀👩🇩🇪")
        found.append(made)
    return found


@pytest.fixture(scope="module")
def fast():
    transformers = pytest.importorskip("transformers", reason="compares with transformers' tokenizer")
    return transformers.BertTokenizer({word: i for i, word in enumerate(vocabulary())})


def test_5000_texts_are_read_as_transformers_reads_them(fast):
    ours = WordPiece.from_files(files())
    unknown = 0
    for each in texts(5000):
        how = {"padding": "max_length", "truncation": True, "max_length": 77}
        assert ours.ids(each) == fast(each, **how)["input_ids"], repr(each)
        unknown += ours._unknown in ours.encode(each)
    assert 1000 < unknown < 4900  # neither nothing nor everything is known


def test_the_first_tokenizer_reads_the_same_but_for_the_last_sigma(tmp_path):
    pytest.importorskip("transformers", reason="compares with transformers' tokenizer")
    from transformers.models.bert.tokenization_bert_legacy import BasicTokenizer, WordpieceTokenizer

    basic, pieces = BasicTokenizer(), WordpieceTokenizer({word: 0 for word in vocabulary()}, "[UNK]")
    ours = WordPiece.from_files(files())
    for each in texts(2000, seed=1):
        each = each.replace("Σ", "").replace("[", "")  # written special tokens are cut out before
        theirs = [piece for word in basic.tokenize(each) for piece in pieces.tokenize(word)]
        assert [ours._names[i] for i in ours.encode(each)] == theirs, repr(each)
    assert ours.decode(ours.encode("ΟΔΟΣ")) == "οδοσ" and basic.tokenize("ΟΔΟΣ") == ["οδος"]


def test_by_hand():
    tokenizer = WordPiece.from_files(files())
    names = [tokenizer._names[i] for i in tokenizer.ids("The  Red\tLIGHTHOUSE, Été! [SEP] 日本 zzé ☃", 24)]
    assert names == (
        "[CLS] the red light ##house , ete ! [SEP] 日 本 z ##z ##e [UNK] [SEP]".split() + ["[PAD]"] * 8
    )  # fmt: skip
    assert tokenizer.ids("") == [tokenizer.cls, tokenizer.sep] + [tokenizer.pad] * 75
    assert tokenizer.encode("a" * 101) == [tokenizer._unknown] and len(tokenizer.encode("a" * 100)) == 100
    assert tokenizer.encode("\ud800") == []  # half a character is none


def test_what_does_not_fit_is_said():
    tokenizer = WordPiece.from_files(files())
    tokenizer.check("red house " * 37, 77)
    with pytest.raises(UserError, match=r"prompt is too long .* reads 75 tokens: 'lighthouse boat' would be left out"):
        tokenizer.check("red " * 75 + "Lighthouse BOAT")
    assert len(tokenizer.ids("red " * 500, 77)) == 77 and tokenizer.ids("red " * 500)[-1] == tokenizer.sep


def test_every_form_of_the_files_is_the_same_tokenizer(fast, tmp_path):
    fast.save_pretrained(tmp_path)
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "tokenizer.json" in saved and "vocab.txt" not in saved
    windows = {"vocab.txt": files()["vocab.txt"].replace(b"\n", b"\r\n")}
    expected = WordPiece.from_files(files())
    for each in (saved, windows, {"vocab.txt": files()["vocab.txt"].rstrip()}, {**files(), **saved}):
        found = WordPiece.from_files(each)
        assert found._ids == expected._ids and found.ids("Été [MASK] red") == expected.ids("Été [MASK] red")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "lay vocab.txt of bert-base-uncased .* beside the checkpoint"),
        ({"vocab.txt": b"a\nb\n"}, r"has no \[CLS\]: it is not that of bert-base-uncased"),
        ({"vocab.txt": b"[PAD]\n[PAD]\n"}, "not 0, 1, 2"),
        ({"vocab.txt": b"\xff\xfe"}, "not UTF-8"),
        ({"vocab.txt": b""}, "has 0 words"),
        ({"tokenizer.json": b"{"}, "is not JSON"),
        ({"tokenizer.json": json.dumps({"model": {"type": "BPE", "vocab": {}}}).encode()}, "not a BERT tokenizer"),
        ({"tokenizer.json": b'{"model": {"vocab": {"a": "0"}}}'}, "not 0, 1, 2"),
        ({"tokenizer.json": b'{"model": []}'}, "no usable vocab"),
        ({**files(), "tokenizer_config.json": b'{"do_lower_case": false}'}, "only the uncased BERT"),
        ({**files(), "special_tokens_map.json": b'{"cls_token": "<s>"}'}, "has no <s>"),
    ],
)
def test_files_that_are_no_such_tokenizer_are_refused(given, said):
    with pytest.raises(UserError, match=said) as error:
        WordPiece.from_files(given)
    assert "\n" not in str(error.value)


def test_a_text_encoder_says_which_tokenizer_it_has():
    count = len(vocabulary())
    assert isinstance(open_tokenizer(BertConfig(vocab_size=count), files()), WordPiece)
    with pytest.raises(UserError, match=f"has {count} tokens, but the model's text encoder knows 60"):
        open_tokenizer(BertConfig(vocab_size=60), files())
    import little

    assert isinstance(open_tokenizer(ClipTextConfig(), little.tokenizer_files()), ClipTokenizer)


def test_long_texts_are_read_quickly():
    tokenizer = WordPiece.from_files(files())
    began = time.perf_counter()
    tokenizer.ids("ab" * 200_000)
    tokenizer.ids("a b. " * 40_000)
    assert time.perf_counter() - began < 5
