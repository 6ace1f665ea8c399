"""The language of prompts: worked examples of A1111's documentation, chunks, choices, and what nobody can mean."""

from __future__ import annotations

import contextlib
import random
import re
import time
from pathlib import Path

import pytest

from mlxldm.adapters import wish
from mlxldm.errors import UserError
from mlxldm.prompt import (
    Network,
    Part,
    Pass,
    Run,
    Words,
    compose,
    cut,
    networks,
    schedule,
    script,
    weigh,
)
from mlxldm.wildcards import Chooser, has_choices


class WordTokenizer:
    """A word, a token: its number is the order in which it first came; a comma is 1."""

    size, pad, comma = 1000, 0, 1
    vectors: dict[int, int] = {}

    def __init__(self):
        self.words = {",": 1}

    def encode(self, text: str) -> list[int]:
        found = re.findall(r",|[^\s,]+", text)
        return [self.words.setdefault(word, len(self.words) + 1) for word in found]

    def framed(self, ids, length=77):
        return [900, *ids, 901] + [self.pad] * (length - 2 - len(ids))


def weights(text: str) -> list[tuple[str | None, float]]:
    return [(run.text, round(run.weight, 6)) for run in weigh(text)]


# Weights


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("a (word)", [("a ", 1), ("word", 1.1)]),
        ("a ((word))", [("a ", 1), ("word", 1.21)]),
        ("a [word]", [("a ", 1), ("word", 0.909091)]),
        ("a (word:1.5)", [("a ", 1), ("word", 1.5)]),
        ("a (word:0.25)", [("a ", 1), ("word", 0.25)]),
        ("a (word: -1 )", [("a ", 1), ("word", -1)]),
        (r"a \(word\)", [("a (word)", 1)]),
        (r"anime_\(character\) [x]", [("anime_(character) ", 1), ("x", 0.909091)]),
        ("a ((red:1.3) house)", [("a ", 1), ("red", 1.43), (" house", 1.1)]),
        ("a (((farm))), daytime", [("a ", 1), ("farm", 1.331), (", daytime", 1)]),
        ("(one)(two)", [("onetwo", 1.1)]),  # neighbours of one weight are one text
        ("(a:1.1) b", [("a", 1.1), (" b", 1)]),
        ("(open", [("open", 1.1)]),  # to the end
        ("[open (more", [("open ", 0.909091), ("more", 1)]),
        ("closed) here]", [("closed) here]", 1)]),  # closes nothing
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 0.909091)]),  # they may overlap
        ("(name:other)", [("name:other", 1.1)]),  # no number
        ("[word:1.3]", [("word:1.3", 0.909091)]),  # that is a schedule's, here it is text
        ("word:1.3)", [("word:1.3)", 1)]),
        ("a \\ b \\", [("a \\ b \\", 1)]),
        ("", [("", 1)]),
        ("a BREAK b", [("a ", 1), (None, 1), (" b", 1)]),
        ("(a BREAK b)", [("a ", 1.1), (None, 1.1), (" b", 1.1)]),
        ("BREAKFAST unBREAK", [("BREAKFAST unBREAK", 1)]),
    ],
)
def test_weights(text, runs):
    assert weights(text) == runs


def test_without_emphasis_everything_is_text():
    assert weigh("a (b:1.3) [c] BREAK \\(d", "none") == [Run("a (b:1.3) [c] BREAK \\(d")]


# Schedules


def spans(text: str, steps: int, **more) -> list[tuple[str, int]]:
    """What is said, and up to which step."""
    found: list[tuple[str, int]] = []
    for step, said in enumerate(schedule(text, Pass(steps, **more)), 1):
        if found and found[-1][0] == said:
            found[-1] = said, step
        else:
            found.append((said, step))
    return found


@pytest.mark.parametrize(
    ("text", "steps", "said"),
    [
        (
            "a [fantasy:cyberpunk:16] landscape",
            20,
            [("a fantasy landscape", 16), ("a cyberpunk landscape", 20)],
        ),
        (
            "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
            "[ in background:0.25] [shoddy:masterful:0.5]",
            100,
            [
                ("fantasy landscape with a mountain and an oak in foreground shoddy", 25),
                ("fantasy landscape with a lake and an oak in foreground in background shoddy", 50),
                ("fantasy landscape with a lake and an oak in foreground in background masterful", 60),
                ("fantasy landscape with a lake and an oak in background masterful", 75),
                ("fantasy landscape with a lake and a christmas tree in background masterful", 100),
            ],
        ),
        ("a [big:5] house", 8, [("a  house", 5), ("a big house", 8)]),
        ("a [big::5] house", 8, [("a big house", 5), ("a  house", 8)]),
        ("[[a::4]:2]", 6, [("", 2), ("a", 4), ("", 6)]),
        ("[a:[b:c:0.75]:0.25]", 4, [("a", 1), ("b", 3), ("c", 4)]),
        ("[a:b:0]", 4, [("b", 4)]),
        ("[a:b:0.0]", 4, [("b", 4)]),
        ("[a:b:1.0]", 4, [("a", 4)]),
        ("[a:b:9]", 4, [("a", 4)]),
        ("[a:b: 2 ]", 4, [("a", 2), ("b", 4)]),
        ("[(a:1.2):(b):2]", 4, [("(a:1.2)", 2), ("(b)", 4)]),
        (r"[\[a\:x\]:b:2]", 4, [(r"\[a\:x\]", 2), ("b", 4)]),
        # what is none stays as it is
        ("[word] [a:b] [a:b:c:2] [a|b:2] 12:30 a|b", 4, [("[word] [a:b] [a:b:c:2] [a|b:2] 12:30 a|b", 4)]),
        ("[[a:b:2]", 4, [("[a", 2), ("[b", 4)]),
        ("[a (b:c:2] d) [x:y:2]", 4, [("[a (b:c:2] d) x", 2), ("[a (b:c:2] d) y", 4)]),
        ("a ) b ] [x:y:2", 4, [("a ) b ] [x:y:2", 4)]),
        ("\\", 2, [("\\", 2)]),
    ],
)
def test_schedules(text, steps, said):
    assert spans(text, steps) == said


def test_alternation():
    walk = Pass(8)
    assert schedule("[cow|horse] in a field", walk)[:3] == ["cow in a field", "horse in a field", "cow in a field"]
    words = "cow|cow|horse|man|siberian tiger|ox|man".split("|")
    assert schedule(f"[{'|'.join(words)}]", walk) == [*words, "cow"]
    assert schedule("a [b|]", Pass(3)) == ["a b", "a ", "a b"]
    assert schedule("[[a|b]|c]", Pass(4)) == ["a", "c", "a", "c"]  # both count the same steps
    assert schedule("[[a|b]:c:0.5]", Pass(4)) == ["a", "b", "c", "c"]


def test_a_second_walk_has_its_own_schedule():
    """A1111: parts from 1 to 2 and steps beyond the first walk's are the second one's."""
    first, second = {"more": True}, {"before": 10}
    assert spans("[a:b:0.5]", 10, **first) == [("a", 5), ("b", 10)] and spans("[a:b:0.5]", 4, **second) == [("b", 4)]
    assert spans("[a:b:1.5]", 10, **first) == [("a", 10)] and spans("[a:b:1.5]", 4, **second) == [("a", 2), ("b", 4)]
    assert spans("[a:b:13]", 10, **first) == [("a", 10)] and spans("[a:b:13]", 4, **second) == [("a", 3), ("b", 4)]


# Composition, networks


def test_composition():
    assert compose("a cat :1.2 AND a dog AND a penguin :2.2") == [
        Part("a cat ", 1.2), Part(" a dog ", 1.0), Part(" a penguin ", 2.2)
    ]  # fmt: skip
    assert compose("half past 12:30") == [Part("half past 12:30", 1.0)]  # nothing to weigh it against
    assert compose("a:-.5 AND b:c AND ") == [Part("a", -0.5), Part(" b:c ", 1.0), Part(" ", 1.0)]
    assert len(compose("SAND AND BANDAGE and")) == 2


def test_networks_are_taken_out():
    text, found = networks("a <lora:style:0.8> cat <LoRA:other one:0.5:0.7><hypernet:x> <3 <a:>")
    assert text == "a  cat  <3 <a:>"
    assert found == (
        Network("lora", ("style", "0.8")), Network("lora", ("other one", "0.5", "0.7")), Network("hypernet", ("x",))
    )  # fmt: skip
    assert [(n.name, n.text_weight, n.weight) for n in found] == [
        ("style", 0.8, 0.8), ("other one", 0.5, 0.7), ("x", 1, 1)
    ]  # fmt: skip
    named = Network("lora", ("a", "te=0.2", "unet=0.4"))
    assert (named.text_weight, named.weight) == (0.2, 0.4) and str(named) == "<lora:a:te=0.2:unet=0.4>"
    with pytest.raises(UserError, match="'much' is no number"):
        _ = Network("lora", ("a", "much")).weight


BLOCKS = ",".join("1" * 17)


@pytest.mark.parametrize(
    ("tag", "lora"),
    [
        ("<lora:style:0.3>", "style:0.3"),
        ("<LoRA: style :0.30>", "style:0.3"),
        ("<lyco:style>", "style:1"),
        ("<lora:style:0.4:0.2>", "style:0.2:0.4"),  # the U-Net's number is the second one there, the first one here
        ("<lora:style:te=0.4:unet=0.2>", "style:0.2:0.4"),
        ("<lora:style:unet=0.2>", "style:0.2:1"),
        ("<lora:style:0.5:te=0>", "style:0"),  # without a number of its own, the U-Net's is the text encoders'
        ("<lora:style:0.5:te=0:unet=0.5>", "style:0.5:0"),
        ("<lora:style:-1e-3>", "style:-0.001"),
        (f"<lora:style:0.3:lbw={BLOCKS}>", f"style:0.3:lbw={BLOCKS}"),
        (f"<lora:style:lbw={BLOCKS}:0.3:0.2>", f"style:0.2:0.3:lbw={BLOCKS}"),
        (f"<lora:style:0.3:{BLOCKS}>", f"style:0.3:lbw={BLOCKS}"),  # as it was before there was lbw=
        ("<lora:a=b, c:1>", "a=b, c:1"),
    ],
)
def test_tags_say_what_flags_say(tag, lora):
    """In the order of A1111's extra_networks_lora.py; and back again."""
    ((network,),) = (networks(tag)[1],)
    assert network.lora() == lora
    again = wish(lora).tag(network.name)
    assert networks(again)[1][0].lora() == lora


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("<hypernet:x:1>", "which is a hypernetwork: leave it out"),
        ("<segment:x>", "of a kind that is not known here"),
        ("<lora:x:1:1:8>", "'8' is not known here"),
        ("<lora:x:1:dyn=8>", "'dyn=' is not known here"),
        ("<lora:x:1:stop=8>", "'stop=' is not known here"),
        ("<lora:x:much>", "'much' is no number"),
        ("<lora:x:nan>", "'nan' is no number"),
    ],
)
def test_what_no_lora_here_can_do_is_one_sentence(tag, said):
    with pytest.raises(UserError) as caught:
        networks(tag)[1][0].lora()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_script_has_what_leads_each_step():
    lines = script("a [b|c] <lora:x:1> :2 AND d", "e [f:1]", Pass(2))
    assert [[(words.first.split(), words.second.split(), weight) for words, weight in line] for line in lines] == [
        [(["a", "b"], ["e"], 2), (["d"], ["e"], 1)],
        [(["a", "c"], ["e", "f"], 2), (["d"], ["e", "f"], 1)],
    ]
    assert script("a AND b", None, Pass(1), composed=False) == [((Words("a AND b"), 1.0),)]
    with pytest.raises(UserError, match="2 parts with AND between them and the second prompt 3"):
        script("a AND b", "c AND d AND e", Pass(1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(a:1.2.3)", "'1.2.3', which is no number"),
        ("(a:.)", "'.', which is no number"),
        ("(founded:1874)", "the weight 1874, but 1.3 is strong"),
        ("((a:50):50)", "the weight 2500"),
        ("(" * 200, "deep"),
        ("[word:1.3]", "For a weight write (word:1.3)"),
        ("[a:b:2.5]", "from 0 to 1"),
        ("[a:b:-0.5]", "from 0 to 1"),
        ("[a:b:-3]", "steps count from 1"),
        ("[a:b:1e99]", "steps count from 1"),
        ("a :1000 AND b", "the weight 1000"),
    ],
)
def test_what_nobody_can_mean_is_one_sentence(text, said):
    with pytest.raises(UserError) as caught:
        for line in script(text, None, Pass(4)):
            for words, _ in line:
                weigh(words.first)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# Chunks


def chunks(text: str, length: int = 77) -> list[list[str]]:
    tokens = WordTokenizer()
    found = cut(weigh(text), tokens, length)
    names = {number: word for word, number in tokens.words.items()}
    for chunk in found:
        assert len(chunk.ids) == len(chunk.weights) == length and chunk.used <= length - 2
        assert chunk.ids[0] == 900 and chunk.ids[chunk.used + 1] == 901
        assert set(chunk.ids[chunk.used + 2 :]) <= {0} and set(chunk.weights[chunk.used + 1 :]) == {1.0}
    return [[names[number] for number in chunk.ids[1 : chunk.used + 1]] for chunk in found]


def words(count: int, first: int = 0) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count))


def test_chunks_of_75():
    assert list(map(len, chunks(""))) == [0] and list(map(len, chunks(words(75)))) == [75]
    assert list(map(len, chunks(words(120)))) == [75, 45]  # the documentation's example
    assert list(map(len, chunks(words(225)))) == [75, 75, 75]
    assert list(map(len, chunks(words(10), length=8))) == [6, 4]


def test_a_chunk_ends_behind_its_last_comma():
    """Unless that is more than 20 tokens back."""
    assert list(map(len, chunks(words(60) + ", " + words(40, 60)))) == [61, 40]
    assert list(map(len, chunks(words(55) + ", " + words(40, 55)))) == [56, 40]
    assert list(map(len, chunks(words(54) + ", " + words(40, 54)))) == [75, 20]
    assert chunks(words(75) + ", a")[1] == [",", "a"]  # a comma itself pulls nothing along
    assert list(map(len, chunks(words(74) + ", " + words(10, 74)))) == [75, 10]
    assert list(map(len, chunks(words(60) + ", " + words(74, 60)))) == [61, 74]  # what moved has no comma any more


def test_break_ends_a_chunk():
    assert chunks("a b BREAK c") == [["a", "b"], ["c"]]
    assert chunks("a BREAK BREAK b") == [["a"], [], ["b"]]
    assert chunks("BREAK a BREAK") == [[], ["a"]]


def test_weights_go_with_their_tokens():
    tokens = WordTokenizer()
    (chunk,) = cut(weigh("a (red:1.3) house"), tokens, 8)
    assert chunk.ids == (900, 2, 3, 4, 901, 0, 0, 0) and chunk.weights == (1, 1, 1.3, 1, 1, 1, 1, 1)
    first, second = cut(weigh(words(60) + ", (" + words(40, 60) + ":0.5)"), tokens)
    assert set(first.weights) == {1.0} and second.weights[1:41] == (0.5,) * 40


# Choices


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "animals").mkdir()
    (tmp_path / "colour.txt").write_text("# colours\n\nred\nblue\n  green  \n")
    (tmp_path / "animals" / "cats.txt").write_text("\ufefftabby\n{black|white} cat\n", "utf-8")
    (tmp_path / "animals" / "dogs.txt").write_text("3::collie\n1::pug\n")
    (tmp_path / "both.txt").write_text("__colour__ __animals/cats__\n")
    (tmp_path / "loop.txt").write_text("a __loop__\n")
    (tmp_path / "wide.txt").write_text("{3$$__wide__|__wide__|__wide__}\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    return tmp_path


def drawn(text: str, folder: Path | None = None, count: int = 300) -> dict[str, int]:
    found: dict[str, int] = {}
    for seed in range(count):
        said = Chooser(seed, None if folder is None else str(folder))(text)
        found[said] = found.get(said, 0) + 1
    return found


def test_choices(folder):
    assert drawn("a {red|blue} one").keys() == {"a red one", "a blue one"}
    assert drawn("{2$$a|b|c}").keys() == {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}
    assert drawn("{2$$ and $$a|b}").keys() == {"a and b", "b and a"}
    assert drawn("{1-2$$a|b}").keys() == drawn("{-2$$a|b}").keys() == {"a", "b", "a, b", "b, a"}
    assert drawn("{4$$a|b}").keys() == {"a, b", "b, a"} == drawn("{2-$$a|b}").keys()
    assert drawn("{a|{b|c} d|}").keys() == {"a", "b d", "c d", ""}
    often = drawn("{3::a|1::b|0::c}", count=1000)
    assert often.keys() == {"a", "b"} and 700 < often["a"] < 800
    assert drawn("{[cow|horse]|(dog:1.2)}").keys() == {"[cow|horse]", "(dog:1.2)"}  # the schedule's bar is its own
    assert drawn("{masterpiece}, {a [b|c]} { }").keys() == {"{masterpiece}, {a [b|c]} { }"}  # letters
    assert drawn("{a|b").keys() == {"{a|b"} and drawn("a|b}").keys() == {"a|b}"}


def test_wildcards(folder):
    assert drawn("a __colour__ one", folder).keys() == {"a red one", "a blue one", "a green one"}
    assert drawn("__animals/cats__", folder).keys() == {"tabby", "black cat", "white cat"}
    often = drawn("__animals/dogs__", folder, 1000)
    assert often.keys() == {"collie", "pug"} and 700 < often["collie"] < 800
    assert len(drawn("__both__", folder)) == 9
    assert drawn("__animals/*__", folder).keys() == {"tabby", "black cat", "white cat", "collie", "pug"}
    pairs = drawn("{2$$__colour__}", folder)
    assert len(pairs) == 6 and all(len(set(pair.split(", "))) == 2 for pair in pairs)


def test_a_seed_says_the_same_again(folder):
    text = "{a|b|c|d} __colour__ {2$$x|y|z}"
    assert Chooser(7, str(folder))(text) == Chooser(7, str(folder))(text)
    assert Chooser(0, str(folder))("{a|b|c|d} {a|b|c|d} {a|b|c|d}") == "d d b"  # on every machine, in every version
    assert has_choices(text) and not has_choices("a [b|c] {d} snake__case") and not has_choices(None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__color__", "no wildcard __color__"),
        ("__color__", "Did you mean 'colour'?"),
        ("__../colour__", "no wildcard"),
        ("__empty__", "has no values: empty.txt"),
        ("__loop__", "lead back to itself"),
        ("__wide__", "lead back to itself"),
        ("{3-1$$a|b}", "the smaller number comes first"),
        ("{0::a|0::b}", "weights of 0 in all"),
        ("${x=1}", "a variable"),
    ],
)
def test_choices_that_cannot_be_made_are_one_sentence(folder, text, said):
    with pytest.raises(UserError) as caught:
        Chooser(1, str(folder))(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_wildcards_need_a_folder(tmp_path):
    with pytest.raises(UserError, match="say which with --wildcards"):
        Chooser(1)("__colour__")
    with pytest.raises(UserError, match="no folder of wildcards"):
        Chooser(1, str(tmp_path / "none"))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text in UTF-8"):
        Chooser(1, str(tmp_path))("__bad__")


# Anything


PIECES = [
    *"()[]{}:|\\<>,$ \n", "(", "[", ":1.3)", ":0.5]", ":3]", "::", "AND", " BREAK ", "a", "red house", "2$$",
    "1e9", ".", "-1", "日本", "\x00", "🙂", "__x__", "<lora:a:1>",
]  # fmt: skip
LONG = [
    *"()[]{} :\\", "[a", "[a)", "(a)", "[a|", "::", "a:1 ", "{a|", "<a", "<a:", "[a:b:1]", "{a}", "$$", "{2$$", "__",
    "__a", " AND", "BREAK",
]  # fmt: skip


def test_no_text_is_too_strange():
    """20,000 random texts: each is understood, or refused in one sentence."""
    numbers, tokens, began = random.Random(0), WordTokenizer(), time.perf_counter()
    refused = 0
    for i in range(20_000):
        text = "".join(numbers.choice(PIECES) for _ in range(numbers.randrange(1, 24)))
        try:
            if has_choices(text):
                text = Chooser(i)(text)
            for line in script(text, None, Pass(3, 2 * (i % 2))):
                for said, _ in line:
                    cut(weigh(said.first), tokens, 10)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error).replace("\\n", "") or "\n" in text
    assert 100 < refused < 15_000 and time.perf_counter() - began < 60


@pytest.mark.parametrize("piece", LONG)
def test_long_texts_take_little_time(piece):
    text, began = piece * (40_000 // len(piece)), time.perf_counter()
    for step in (
        lambda: Chooser(1)(text) if has_choices(text) else None,
        lambda: [weigh(said.first) for said, _ in script(text, None, Pass(2))[0]],
    ):
        with contextlib.suppress(UserError):
            step()
    assert time.perf_counter() - began < 5
