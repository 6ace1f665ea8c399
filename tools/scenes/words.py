"""Say what a scene shows, in many ways.

`caption(factors, rng)` writes one sentence or list; `caption_with_labels` also says which factors it names. Every
phrase below is written in words separated by single spaces, so that the vocabulary is what stands in this file. The
sentence forms kept for evaluation are never used in training (`held_out=True` uses nothing else), though every word
of them is.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from render import FACTORS, LIGHTS, TERRAINS, TREES, valid

Factors = dict[str, Any]
LENGTH = 32  # positions of the text encoder, the two special tokens among them

TIME_AT = {
    "dawn": (
        "at dawn",
        "at sunrise",
        "in the early morning",
        "in the morning",
        "at daybreak",
        "in the morning light",
        "at first light",
    ),
    "day": (
        "at noon",
        "by day",
        "in the daytime",
        "at midday",
        "in daylight",
        "during the day",
        "in the afternoon",
        "on a bright day",
    ),
    "dusk": (
        "at dusk",
        "at sunset",
        "in the evening",
        "at twilight",
        "in the evening light",
        "in the golden hour",
        "at sundown",
    ),
    "night": (
        "at night",
        "at midnight",
        "by night",
        "in the night",
        "in the dark",
        "late at night",
        "in the middle of the night",
        "after dark",
    ),
}
TIME_NOUN = {
    "dawn": ("dawn", "sunrise", "morning", "early morning", "daybreak"),
    "day": ("day", "daytime", "noon", "daylight", "midday", "afternoon"),
    "dusk": ("dusk", "sunset", "evening", "twilight", "sundown"),
    "night": ("night", "midnight", "nighttime", "dark night"),
}
SKY = {
    "clear": (
        "under a clear sky",
        "clear sky",
        "with a clear sky",
        "cloudless sky",
        "under a cloudless sky",
        "no clouds",
        "without clouds",
        "clear weather",
    ),
    "cloudy": (
        "under a cloudy sky",
        "cloudy sky",
        "with clouds",
        "overcast",
        "cloudy",
        "clouds in the sky",
        "under clouds",
        "with many clouds",
        "with a cloudy sky",
        "cloudy weather",
        "under an overcast sky",
    ),
}
SEASON_IN = {
    "spring": ("in spring", "in springtime", "in the spring", "with spring flowers", "with blossoms", "with flowers"),
    "summer": ("in summer", "in summertime", "in the summer", "on a summer day"),
    "autumn": ("in autumn", "in fall", "in the fall", "with autumn leaves", "with fallen leaves", "in the autumn"),
    "winter": ("in winter", "in the snow", "in wintertime", "with snow", "covered in snow", "in the winter"),
}
SEASON_ADJ = {
    "spring": ("spring", "springtime", "blooming", "blossoming"),
    "summer": ("summer", "summery", "summertime"),
    "autumn": ("autumn", "autumnal", "fall"),
    "winter": ("snowy", "winter", "wintry", "snow covered", "frozen"),
}
TERRAIN_AT = {
    "sea": (
        "by the sea",
        "at the seaside",
        "by the ocean",
        "on the coast",
        "near the sea",
        "at the beach",
        "next to the sea",
        "on the shore of the sea",
        "at the coast",
        "beside the ocean",
    ),
    "lake": (
        "by a lake",
        "by the lake",
        "at the lake",
        "on the shore of a lake",
        "near a lake",
        "next to a lake",
        "beside the lake",
    ),
    "mountains": (
        "in the mountains",
        "near the mountains",
        "in front of mountains",
        "among mountains",
        "below the mountains",
        "in front of tall peaks",
        "with mountains",
    ),
    "hills": (
        "in the hills",
        "among the hills",
        "on a hill",
        "among rolling hills",
        "in hilly country",
        "in a meadow with hills",
        "with hills",
    ),
    "desert": (
        "in the desert",
        "in a desert",
        "among sand dunes",
        "in the dunes",
        "on the sand of a desert",
        "with sand dunes",
    ),
}
TERRAIN_OVER = {
    "sea": ("over the sea", "above the sea", "over the ocean", "above the ocean"),
    "lake": ("over a lake", "above the lake", "over the lake"),
    "mountains": ("over the mountains", "above the mountains", "over the peaks"),
    "hills": ("over the hills", "above the hills", "over rolling hills"),
    "desert": ("over the desert", "above the desert", "over the dunes"),
}
TERRAIN_ON = {
    "sea": ("on the sea", "at sea", "on the ocean", "in the sea", "on the open sea", "on the waves"),
    "lake": ("on a lake", "on the lake", "on a quiet lake"),
}
TERRAIN_NOUN = {
    "sea": ("sea", "ocean", "coast", "beach", "seaside", "seascape"),
    "lake": ("lake", "lakeside"),
    "mountains": ("mountains", "mountain landscape", "mountain range", "peaks", "mountain"),
    "hills": ("hills", "rolling hills", "hilly landscape", "hill"),
    "desert": ("desert", "dunes", "sand dunes", "desert landscape"),
}
OBJECT = {
    "house": ("house", "cottage", "cabin", "hut", "home", "little house", "small house"),
    "boat": ("boat", "sailboat", "ship", "sailing boat", "sailing ship", "yacht", "small boat"),
    "balloon": ("balloon", "hot air balloon", "air balloon", "big balloon"),
    "tent": ("tent", "camping tent", "camp", "small tent"),
    "windmill": ("windmill", "mill", "old windmill", "wind mill"),
    "lighthouse": ("lighthouse", "light house", "beacon", "tall lighthouse", "light tower"),
}
COLOR = {
    "red": ("red", "red", "crimson", "scarlet", "bright red"),
    "orange": ("orange", "orange", "bright orange", "tangerine"),
    "yellow": ("yellow", "yellow", "golden yellow", "lemon", "bright yellow"),
    "green": ("green", "green", "emerald", "bright green"),
    "blue": ("blue", "blue", "azure", "navy", "bright blue"),
    "purple": ("purple", "purple", "violet", "lilac"),
    "pink": ("pink", "pink", "rose", "bright pink"),
    "white": ("white", "white", "bright white", "pure white"),
}
POSITION = {
    "left": ("on the left", "to the left", "on the left side", "at the left", "left"),
    "center": ("in the middle", "in the center", "in the centre", "at the center", "centered", "center"),
    "right": ("on the right", "to the right", "on the right side", "at the right", "right"),
}
TREE_WITH = {
    "none": ("without trees", "no trees", "treeless"),
    "pine": (
        "with pine trees",
        "with pines",
        "with fir trees",
        "with some pines",
        "and pine trees",
        "with evergreen trees",
        "with conifers",
    ),
    "leafy": (
        "with leafy trees",
        "with trees",
        "with round trees",
        "and leafy trees",
        "with some trees",
        "with oak trees",
    ),
    "palm": ("with palm trees", "with palms", "and palm trees", "under palms", "with some palms"),
    "cactus": ("with cacti", "with cactus plants", "and cacti", "with cactuses", "with a cactus", "with some cacti"),
}
TREE_NOUN = {
    "none": ("no trees", "without trees", "treeless"),
    "pine": ("pine trees", "pines", "fir trees", "conifers", "pine forest", "firs", "evergreens"),
    "leafy": ("leafy trees", "trees", "round trees", "oak trees", "oaks"),
    "palm": ("palm trees", "palms", "palm"),
    "cactus": ("cacti", "cactus", "cactuses"),
}
LIGHT_WITH = {
    "sun": (
        "with the sun",
        "with the sun in the sky",
        "with sun",
        "in the sun",
        "the sun is shining",
        "with a shining sun",
        "in sunlight",
    ),
    "moon": (
        "with a full moon",
        "under a full moon",
        "with the full moon",
        "under the round moon",
        "by the light of the full moon",
    ),
    "crescent": (
        "with a crescent moon",
        "under a crescent moon",
        "with a thin moon",
        "under the half moon",
        "by the light of a crescent moon",
    ),
    "no sun": ("without the sun", "no sun", "the sun is hidden"),
    "no moon": ("without a moon", "no moon", "moonless"),
}
LIGHT_NOUN = {
    "sun": ("sun", "the sun", "sunshine", "shining sun", "sunlight"),
    "moon": ("full moon", "the full moon", "round moon"),
    "crescent": ("crescent moon", "crescent", "thin moon", "half moon"),
    "no sun": ("no sun", "without sun"),
    "no moon": ("no moon", "moonless"),
}
OPENERS = (
    "a painting of",
    "a picture of",
    "an illustration of",
    "a drawing of",
    "a photo of",
    "an image of",
    "a view of",
    "a beautiful picture of",
    "a landscape with",
    "a scene with",
    "a beautiful landscape with",
    "a calm scene with",
    "an artwork of",
    "painting of",
    "illustration of",
    "picture of",
    "photo of",
    "draw",
    "show me",
    "i want",
    "make",
    "please draw",
    "a postcard of",
    "a poster of",
    "a small painting of",
    "a digital painting of",
)
STAND = ("", "", "", "standing", "is", "stands")
ENDINGS = (
    "beautiful",
    "illustration",
    "digital art",
    "flat style",
    "landscape",
    "high quality",
    "peaceful",
    "calm",
    "painting",
    "detailed",
    "pretty",
    "minimal",
    "nice colors",
    "colorful",
    "4 k",
    "artwork",
)
FILLERS = (
    "a an the of with in on at by to from for and or under over above below near behind beside between next front is "
    "are it its there this that these one two three four five many few some lots no not only without sky air water "
    "sand snow ice grass ground field meadow forest tree trees flower flowers leaf leaves branch beautiful pretty nice "
    "lovely wonderful peaceful calm quiet lonely cozy cosy tiny small little big large tall huge high low wide long "
    "old new bright dark light warm cold hot golden silver pale deep soft stars star starry moonlit moonlight sunny "
    "sunlit photo photograph painting picture image illustration drawing art artwork sketch poster postcard wallpaper "
    "background foreground landscape scene scenery view vista panorama style flat vector cartoon minimalist "
    "watercolor oil digital render realistic fantasy dreamy magical colorful colourful color colour quality best "
    "masterpiece detailed simple clean very really so just please show me draw make create generate paint want i you "
    "my your we like looking seen where while when as far away distance horizon reflection reflections reflected "
    "shore bank island bay harbor harbour wave waves river pond valley cliff rock rocks stone dune hill mountain peak "
    "summit building tower farm camping sail sailing sails floating flying drifting standing sitting resting shining "
    "glowing hanging rising setting lit window windows roof door fog mist misty rain storm windy cloud clouds weather "
    "season time early late full half new round thin crescent side edge corner middle center centre left right top "
    "bottom day night morning evening 0 1 2 3 4 5 6 7 8 9 . , ! ? : ; - ' \" ( ) s t k"
)

ATTRIBUTES = ("terrain", "time", "sky", "season", "object", "color", "position", "trees", "light")


class _Draws:
    """Random numbers that belong to a place in the grammar, not to an order of calls.

    Two scenes that differ in one factor so get the same sentence but for that factor's words, which is what a table
    of wrong captions needs.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.place, self.count = seed, "", 0

    def random(self) -> float:
        self.count += 1
        key = f"{self.seed} {self.place} {self.count}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=6).digest(), "big") / 2**48

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def shuffled(self, values: list[Any]) -> list[Any]:
        keys = [self.random() for _ in values]
        return [values[i] for i in sorted(range(len(values)), key=keys.__getitem__)]


def _placed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Give a method of _Said its own random numbers."""

    @functools.wraps(method)
    def run(self: _Said, *args: Any) -> Any:
        before = self.rng.place, self.rng.count
        self.rng.place, self.rng.count = method.__name__, 0
        try:
            return method(self, *args)
        finally:
            self.rng.place, self.rng.count = before

    return run


def _one(rng: _Draws, of: tuple[str, ...]) -> str:
    return of[rng.below(len(of))]


def _light(factors: Factors) -> str:
    value = factors["light"]
    if value == "none":
        return "no moon" if factors["time"] == "night" else "no sun"
    return str(value)


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


class _Said:
    """The phrases of one caption and the factors they name."""

    def __init__(self, factors: Factors, rng: _Draws, keep: float) -> None:
        self.f, self.rng = factors, rng
        self.said: dict[str, Any] = {}
        kept = {n: rng.random() < keep for n in ATTRIBUTES}
        short, order, few = rng.random() < 0.25, rng.shuffled(list(ATTRIBUTES)), 2 + rng.below(3)
        nothing, anyway = rng.random() < 0.15, rng.random() < 0.6
        absent = {n: rng.random() < 0.25 for n in ("trees", "light")}
        self.wanted = {n for n in ATTRIBUTES if kept[n] and factors[n] is not None}
        if short:  # people's sentences often name two to four things
            self.wanted = {n for n in order[: few + 2] if n in self.wanted}
        if factors["object"] == "none":
            if not nothing:
                self.wanted.discard("object")
        elif anyway:
            self.wanted.add("object")
        for name in ("trees", "light"):
            if factors[name] == "none" and not absent[name]:
                self.wanted.discard(name)
        if "object" not in self.wanted:
            self.wanted -= {"color", "position"}
        if not self.wanted & {"object", "terrain"}:
            self.wanted.add("terrain")

    def note(self, *names: str) -> None:
        for name in names:
            self.said[name] = self.f[name]

    def has(self, name: str) -> bool:
        return name in self.wanted and name not in self.said

    @_placed
    def thing(self, article: bool) -> str:
        """The object with its colour, "" if it is not to be named."""
        if not self.has("object"):
            return ""
        self.note("object")
        if self.f["object"] == "none":
            return _one(self.rng, ("an empty landscape", "nothing else", "an empty scene"))
        noun = _one(self.rng, OBJECT[self.f["object"]])
        if self.has("color"):
            self.note("color")
            color = _one(self.rng, COLOR[self.f["color"]])
            first, _, rest = noun.partition(" ")
            if rest and first in ("little", "small", "big", "old", "tall") and self.rng.random() < 0.7:
                noun = f"{first} {color} {rest}"
            else:
                noun = f"{color} {noun}"
        if not article:
            return noun
        return _article(noun) if self.rng.random() < 0.9 else f"the {noun}"

    @_placed
    def where(self) -> str:
        if not self.has("position"):
            return ""
        self.note("position")
        return _one(self.rng, POSITION[self.f["position"]])

    @_placed
    def at_terrain(self) -> str:
        if not self.has("terrain"):
            return ""
        self.note("terrain")
        value, what = self.f["terrain"], self.said.get("object")
        if what == "boat":
            return _one(self.rng, TERRAIN_ON[value])
        if what == "balloon" and self.rng.random() < 0.75:
            return _one(self.rng, TERRAIN_OVER[value])
        return _one(self.rng, TERRAIN_AT[value])

    @_placed
    def noun_terrain(self, article: bool) -> str:
        """The terrain as a thing, sometimes with the season before it."""
        if not self.has("terrain"):
            return ""
        self.note("terrain")
        noun = _one(self.rng, TERRAIN_NOUN[self.f["terrain"]])
        if self.has("season") and self.rng.random() < 0.5:
            self.note("season")
            noun = f"{_one(self.rng, SEASON_ADJ[self.f['season']])} {noun}"
        if article:
            plural = noun.endswith(("mountains", "hills", "peaks", "dunes"))
            return noun if plural else (_article(noun) if self.rng.random() < 0.6 else f"the {noun}")
        return noun

    @_placed
    def time(self) -> str:
        if not self.has("time"):
            return ""
        self.note("time")
        value = self.f["time"]
        draw = self.rng.random()
        if value == "day" and self.has("light") and self.f["light"] == "sun" and draw < 0.3:
            self.note("light")
            return _one(self.rng, ("on a sunny day", "sunny day"))
        if value == "night" and self.f["light"] in ("moon", "crescent") and self.has("light") and draw < 0.15:
            # which moon is not said: the time is
            return _one(self.rng, ("by moonlight", "on a moonlit night"))
        if value == "night" and self.f["sky"] == "clear" and self.has("sky") and draw < 0.3:
            self.note("sky")
            return _one(self.rng, ("on a starry night", "under the stars", "on a clear night"))
        if self.has("season") and draw > 0.85 and value in ("day", "night", "dusk", "dawn"):
            self.note("season")
            noun = {"dawn": "morning", "day": "day", "dusk": "evening", "night": "night"}[value]
            season = self.f["season"]
            return f"on {_article(_one(self.rng, (season, 'fall' if season == 'autumn' else season)))} {noun}"
        return _one(self.rng, TIME_AT[value])

    @_placed
    def season(self) -> str:
        if not self.has("season"):
            return ""
        self.note("season")
        if self.f["season"] == "summer" and self.said.get("time", self.f["time"]) != "day":
            return _one(self.rng, SEASON_IN["summer"][:3])
        return _one(self.rng, SEASON_IN[self.f["season"]])

    @_placed
    def sky(self) -> str:
        if not self.has("sky"):
            return ""
        self.note("sky")
        return _one(self.rng, SKY[self.f["sky"]])

    @_placed
    def trees(self) -> str:
        if not self.has("trees"):
            return ""
        self.note("trees")
        return _one(self.rng, TREE_WITH[self.f["trees"]])

    @_placed
    def light(self) -> str:
        if not self.has("light"):
            return ""
        self.note("light")
        return _one(self.rng, LIGHT_WITH[_light(self.f)])

    def words(self, names: list[str]) -> list[str]:
        """One short form for each name, in this order."""
        return [t for t in (self.word(name) for name in names) if t]

    def word(self, name: str) -> str:
        before = self.rng.place, self.rng.count
        self.rng.place, self.rng.count = "word " + name, 0
        try:
            return self._word(name)
        finally:
            self.rng.place, self.rng.count = before

    def _word(self, name: str) -> str:
        if not self.has(name) or name == "color":
            return ""
        draw, other = self.rng.random(), self.rng.random()
        if name == "object":
            text = str(self.thing(draw < 0.35))
            return f"{text} {self.where()}" if other < 0.6 and self.has("position") else text
        if name == "position":
            return str(self.where())
        if name == "terrain":
            return str(self.noun_terrain(False) if draw < 0.75 else self.at_terrain())
        if name == "season":
            self.note("season")
            value = self.f["season"]
            return _one(self.rng, (*SEASON_ADJ[value][:2], *SEASON_IN[value][:3], value, value, value))
        if name == "time" and draw < 0.3:
            return str(self.time())
        tables = {"time": TIME_NOUN, "sky": SKY, "trees": TREE_NOUN, "light": LIGHT_NOUN}
        self.note(name)
        return _one(self.rng, tables[name][_light(self.f) if name == "light" else self.f[name]])

    def rest(self) -> list[str]:
        """Everything not yet said, as phrases in any order."""
        makers = [self.at_terrain, self.time, self.season, self.sky, self.trees, self.light]
        return [t for t in (make() for make in self.rng.shuffled(makers)) if t]

    def shuffled(self) -> list[str]:
        names = [n for n in ATTRIBUTES if n != "color"]
        return self.rng.shuffled(names)


def _join(parts: list[str], by: str = " ") -> str:
    return by.join(p for p in parts if p)


def _opener(s: _Said, chance: float) -> str:
    return _one(s.rng, OPENERS) if s.rng.random() < chance else ""


def _list(s: _Said) -> str:
    return _join(s.words(s.shuffled()), ", ")


def _telegram(s: _Said) -> str:
    return _join(s.words(s.shuffled()), " ")


def _object_first(s: _Said) -> str:
    thing = s.thing(True)
    head = _join([_opener(s, 0.45), thing or s.noun_terrain(True) or "a landscape"])
    where = s.where()
    rest = s.rest()
    if where:
        rest.insert(s.rng.below(min(len(rest), 2) + 1), where)
    return _join([head, *rest], ", " if s.rng.random() < 0.2 else " ")


def _time_first(s: _Said) -> str:
    lead = _join([s.time(), s.season()] if s.rng.random() < 0.5 else [s.season(), s.time()], " ")
    thing = s.thing(True)
    where = s.where()
    verb = _one(s.rng, STAND) if thing else ""
    rest = s.rest()
    return _join([lead + "," if lead and s.rng.random() < 0.6 else lead, thing, verb, where, *rest])


def _scene_first(s: _Said) -> str:
    head = _join([_opener(s, 0.4), s.noun_terrain(True) or "a landscape"])
    middle = [s.time(), s.season()]
    thing = s.thing(True)
    link = _one(s.rng, ("with", "and", ", with")) if thing else ""
    text = _join([head, *middle, link, thing, s.where(), *s.rest()])
    return text.replace(" ,", ",")


def _sentences(s: _Said) -> str:
    thing = s.thing(True)
    where = s.where()
    parts = []
    if thing:
        parts.append(_join(["there is", thing, where, s.at_terrain() if s.rng.random() < 0.6 else ""]))
    else:
        parts.append(_join(["we see", s.noun_terrain(True) or "a landscape"]))
    if s.has("time"):
        s.note("time")
        parts.append("it is " + _one(s.rng, TIME_NOUN[s.f["time"]]))
    if s.has("season") and s.rng.random() < 0.6:
        s.note("season")
        parts.append("it is " + s.f["season"])
    if s.has("sky") and s.rng.random() < 0.6:
        s.note("sky")
        parts.append("the sky is " + {"clear": "clear", "cloudy": _one(s.rng, ("cloudy", "overcast"))}[s.f["sky"]])
    rest = s.rest()
    if rest:
        parts.append(_join(rest))
    return _join(parts, ". ")


def _season_object(s: _Said) -> str:
    """Adjectives before: "snowy mountains with ...", "a winter night, ...", "trees and a moon"."""
    parts = [s.noun_terrain(False), s.thing(True)]
    if s.rng.random() < 0.5:
        parts.reverse()
    if s.has("trees"):
        s.note("trees")
        parts.append(_one(s.rng, TREE_NOUN[s.f["trees"]]))
    if s.has("light") and s.f["light"] != "none":
        s.note("light")
        parts.append(_one(s.rng, LIGHT_NOUN[_light(s.f)]))
    text = _join([p for p in parts if p], " and ")
    return _join([text, s.where(), *s.rest()])


# Held out: the place before everything; the sky or light first; the object last.
def _place_first(s: _Said) -> str:
    where = s.where()
    thing = s.thing(True)
    rest = s.rest()
    k = len(rest) // 2
    return _join([_join([where, thing]), *rest[:k], "and" if rest[:k] and rest[k:] else "", *rest[k:]])


def _sky_first(s: _Said) -> str:
    first = [t for t in (s.light(), s.sky()) if t]
    thing = s.thing(True)
    return _join([_join(first, " and ") + (":" if first else ""), thing, s.where(), *s.rest()])


def _object_last(s: _Said) -> str:
    s.said["object"] = s.f["object"]  # so that boats are "on" and balloons "over" the water before they are named
    lead = s.rest()
    del s.said["object"]
    thing = s.thing(True)
    return _join([_join(lead, ", "), _join([thing, s.where()])], " : ")


TRAINING = (
    (_list, 0.22),
    (_telegram, 0.12),
    (_object_first, 0.28),
    (_time_first, 0.10),
    (_scene_first, 0.13),
    (_sentences, 0.08),
    (_season_object, 0.07),
)
HELD_OUT = ((_place_first, 0.34), (_sky_first, 0.33), (_object_last, 0.33))


def tokens(text: str) -> list[str]:
    """The words and signs of a caption as CLIP's tokenizer splits them."""
    return re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower())


def caption_with_labels(factors: Factors, rng: np.random.Generator, held_out: bool = False) -> tuple[str, Factors]:
    """A caption and the factors it names, `{name: value}`.

    `held_out=True` writes captions for evaluation, in sentence forms that training never sees. The same generator
    state and factors that differ in one value give the same sentence but for that value's words.
    """
    forms = HELD_OUT if held_out else TRAINING
    edges = np.cumsum([w for _, w in forms])
    for attempt in range(100):
        draws = _Draws(int(rng.integers(2**62)))
        form = forms[int(np.searchsorted(edges, draws.random() * edges[-1], side="right"))][0]
        ending, first, stop = draws.random(), draws.random() < 0.12, draws.random()
        more = _one(draws, ENDINGS)
        said = _Said(factors, draws, (0.72 if held_out else 0.82) if attempt < 20 else 0.5)
        text = " ".join(form(said).replace(" ,", ",").split())
        if not held_out:
            if ending < 0.10:
                text += ", " + more
            if first:
                text = text[:1].upper() + text[1:]
            if stop < 0.12:
                text += "."
            elif stop < 0.27:
                text = text.replace(",", "")
        if said.said and 0 < len(tokens(text)) <= LENGTH - 2:
            return text, {n: said.said[n] for n in ATTRIBUTES if n in said.said}
    raise AssertionError(f"no caption of {LENGTH - 2} tokens came up for {factors}")


def caption(factors: Factors, rng: np.random.Generator, held_out: bool = False) -> str:
    """One caption of at most 30 tokens; see `caption_with_labels`."""
    return caption_with_labels(factors, rng, held_out)[0]


def attributes_mentioned(factors: Factors, rng: np.random.Generator, held_out: bool = False) -> Factors:
    """Only the factors that the caption with this generator state names."""
    return caption_with_labels(factors, rng, held_out)[1]


def wrong(factors: Factors, name: str, rng: np.random.Generator) -> Factors:
    """The same factors with `name` changed to another value, anything that no longer fits moved along with it.

    Values that leave all other factors as they are come first: only cacti, or the moon on a night that becomes a day,
    must move. Without an object there is no colour or position to change: the factors come back as they are.
    """
    out = dict(factors)
    if factors[name] is None:
        return out
    u, v = rng.random(), rng.random()
    others = [c for c in FACTORS[name] if c != factors[name] and c != ("none" if name == "object" else "")]
    fits = [c for c in others if name == "object" or valid({**factors, name: c})]
    if name == "object":
        fits = [c for c in others if TERRAINS[c][FACTORS["terrain"].index(factors["terrain"])] > 0]
    if not fits and name == "terrain":
        fits = [c for c in others if TERRAINS[factors["object"]][FACTORS["terrain"].index(c)] > 0]
    choices = fits or others
    out[name] = choices[int(u * len(choices))]
    if name == "object" and factors["object"] == "none":
        out["color"] = FACTORS["color"][int(v * len(FACTORS["color"]))]
        out["position"] = FACTORS["position"][int(v * len(FACTORS["position"]))]
    for follows, fitting in (("trees", TREES[out["terrain"]]), ("light", LIGHTS[out["time"]])):
        if out[follows] not in fitting:
            out[follows] = fitting[1 + int(v * (len(fitting) - 1))]
    return out


def words() -> list[str]:
    """Every word and sign the text encoder should know as one token, sorted."""
    found = set(FILLERS.split())
    tables = (
        TIME_AT,
        TIME_NOUN,
        SKY,
        SEASON_IN,
        SEASON_ADJ,
        TERRAIN_AT,
        TERRAIN_OVER,
        TERRAIN_ON,
        TERRAIN_NOUN,
        OBJECT,
        COLOR,
        POSITION,
        TREE_WITH,
        TREE_NOUN,
        LIGHT_WITH,
        LIGHT_NOUN,
    )
    phrases = [p for table in tables for values in table.values() for p in values]
    phrases += [*OPENERS, *STAND, *ENDINGS]
    phrases += [
        "a an there is we see it is the sky is clear cloudy overcast nothing else an empty landscape scene",
        "on a sunny day by moonlight moonlit night starry stars spring summer autumn winter fall morning evening",
    ]
    for phrase in phrases:
        found.update(tokens(phrase))
    return sorted(found)
