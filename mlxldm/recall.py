"""What prompts and pictures name, among the LoRAs and textual inversions of this machine.

`look` is the converter's view of a file (`store.Look`), `find` reads an adapter for a model (`adapters.Find`), and
`locate` finds its file; they come from outside, since the library does not know other programs' files.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from . import store
from .adapters import Find, Word, asked, wish, worn
from .errors import UserError
from .folder import Folder, Manifest
from .job import Job
from .others import Found, stem
from .prompt import Network, Pass, Reader, renamed
from .tasks.script import lines
from .wildcards import PROMPTS, tellings

Locate = Callable[[str], Path]

SMALL = 8 << 20  # bytes; no textual inversion is larger


# Textual inversions in prompts.


def with_words(job: Job, folder: Folder, find: Find, look: store.Look, walks: Sequence[Pass]) -> Job:
    """A job with the textual inversions of this machine that its prompts name in these walks (`generate.walks`), as
    A1111 finds those in its folder: by their file's name; or by their token. Those of other models do not count.
    """
    said = _said(job, walks)
    letters = _squeezed(" ".join(said))
    added = store.adapter_files()
    stems = [path.stem for path in added]
    files = [path for path in added if path.stat().st_size <= SMALL]
    names = {path: (path.stem, *says.get("names", ())) for path, says in store.looked(files, look).items()}
    known: list[tuple[str, Word]] = []
    for path in files:
        if any(_squeezed(called) in letters for called in names[path]):
            name = path.stem if stems.count(path.stem) == 1 else str(path)
            with contextlib.suppress(UserError):  # no textual inversion, or for another model
                here = Job(embeddings=(str(path),))
                known += [(name, word) for word in words_of(here, folder.manifest, find)]
    given = {name for word in words_of(job, folder.manifest, find) for name in word.names}
    known = [(name, word) for name, word in known if not given & set(word.names)]
    used = _used([word for _, word in known], said, folder, job.emphasis)
    return job.replace(embeddings=(*job.embeddings, *(name for i, (name, _) in enumerate(known) if i in used)))


def _squeezed(text: str) -> str:
    return "".join(text.lower().split())


def words_of(job: Job, manifest: Manifest, find: Find) -> tuple[Word, ...]:
    """A job's textual inversions, without its LoRAs."""
    return worn(Job(embeddings=job.embeddings), manifest, find).words


def _said(job: Job, walks: Sequence[Pass]) -> list[str]:
    """Everything that the text encoders read for a job's pictures, with its weights still in it."""
    found: dict[str, None] = {}
    for own in tellings(job):
        for walk in walks:
            prompts, negatives = lines(own, walk)
            for words in [*(words for line in prompts for words, _ in line), *negatives]:
                found |= {text: None for text in (words.first, words.second) if text}
    return list(found)


def _used(words: list[Word], said: list[str], folder: Folder, emphasis: str | None) -> set[int]:
    """The numbers of the words that stand in the texts."""
    if not words:
        return set()
    reader = Reader(folder)
    reader.learn([(word.names, word.count) for word in words])
    owner = {-1 - k: i for k, i in enumerate(i for i, word in enumerate(words) for _ in range(word.count))}
    chunks = (chunk for text in said for chunks in reader(text, emphasis or "original").encoders for chunk in chunks)
    return {owner[token] for chunk in chunks for token in chunk.ids if token < 0}


# Fingerprints.


def fingerprints(job: Job, locate: Locate, look: store.Look) -> dict[str, str]:
    """The hashes of what a job's pictures wear, as A1111 writes them, by "lora:NAME" and "embed:NAME"."""
    loras = dict.fromkeys(wish(text).name for own in tellings(job) for text in asked(own))
    found = {f"lora:{name}": store.fingerprint(locate(name), "LoRA", look) for name in loras}
    return found | {f"embed:{name}": store.fingerprint(locate(name), "textual inversion", look)
                    for name in job.embeddings}  # fmt: skip


# Pictures.


def recalled(record: Found, look: store.Look, locate: Locate) -> tuple[Job, list[str]]:
    """A picture's job with its LoRAs and textual inversions by their names here, and what is to be said of them.

    What another program's picture asks for and is not here is left out of the job; of one of ours it stays, and is
    complained about later.
    """
    return _Recaller(record, look, locate).job()


class _Recaller:
    def __init__(self, record: Found, look: store.Look, locate: Locate):
        self._record, self._look, self._locate = record, look, locate
        self.left: list[str] = []

    def job(self) -> tuple[Job, list[str]]:
        job = self._record.job
        job = job.replace(**{
            name: renamed(text, self._network)
            for name in ("prompt", "prompt_2") if (text := getattr(job, name)) is not None
        })  # fmt: skip
        loras = []
        for text in job.loras:
            wanted = wish(text)
            here = self._named("lora", wanted.name, text.removeprefix(wanted.name).removeprefix(":"))
            loras += [] if here is None else [here + text.removeprefix(wanted.name)]
        job = job.replace(loras=tuple(loras))
        mentioned = [key.removeprefix("embed:") for key in self._record.hashes if key.startswith("embed:")]
        embeddings = []
        for name in dict.fromkeys((*job.embeddings, *mentioned)):
            here = self._named("embed", name)
            if here is not None:
                embeddings.append(here)
                job = job if stem(here) == name else _said_otherwise(job, name, stem(here))
        return job.replace(embeddings=tuple(embeddings)), self.left

    def _network(self, network: Network) -> str | None:
        try:
            wish(network.lora())
        except UserError:
            if self._record.program == "mlxldm":
                return network.name
            self.left.append(str(network))
            return None
        return self._named("lora", network.name, ":".join(network.arguments[1:]))

    def _named(self, kind: str, name: str, weight: str = "") -> str | None:
        """What it is called here; None: nothing."""
        what = {"lora": "LoRA", "embed": "textual inversion"}[kind]
        hashes = self._record.hashes
        digest = hashes.get(f"{kind}:{name}") or hashes.get(f"{kind}:{name.replace(',', '')}")  # as A1111 writes it
        digest = digest.lower() if digest is not None and re.fullmatch(r"[0-9a-fA-F]{8,64}", digest) else None
        ours = self._record.program == "mlxldm"
        if ours:  # whose names are those that were found
            try:
                same = digest is None or store.fingerprint(self._locate(name), what, self._look) == digest
                here: tuple[str, bool] | None = name, same
            except UserError:
                here = None
        if not ours or here is None or not here[1]:
            here = store.recall_adapter(stem(name), digest, self._look, what) or (here if ours else None)
        if here is None:
            if ours:
                return name
            at, known_as = f" at {weight}" if weight else "", f" (hash {digest})" if digest else ""
            self.left.append(f"{what} {name}{at}{known_as}, which is not here by name or hash")
            return None
        if not here[1]:
            self.left.append(f"the very {what} {name}: the one here has another hash than {digest}")
        return here[0]


def _said_otherwise(job: Job, name: str, here: str) -> Job:
    """The job whose prompts call a textual inversion by the name that it has here."""
    word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
    said = {key: text for key in PROMPTS if (text := getattr(job, key)) is not None}
    return job.replace(**{key: word.sub(lambda _: here, text) for key, text in said.items()})
