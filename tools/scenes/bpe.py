"""Train a byte-level BPE in CLIP's format in which every word of `words.words()` is one token.

`python bpe.py FOLDER` writes vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json. The order of
ids is CLIP's: 256 bytes, the same ending a word, the merges, start and end. Counts come from captions of the grammar,
ties are broken by the text of the pair, so the same grammar gives the same files.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte, in CLIP's order (that of GPT-2's byte table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    out = {b: chr(b) for b in plain}
    for b in range(256):
        if b not in out:
            out[b] = chr(256 + len(out) - len(plain))
    return out


def train(counts: dict[str, int]) -> list[tuple[str, str]]:
    """The merges, best first, until every counted word is one token."""
    letters = byte_letters()
    parts = {}
    for word in sorted(counts):
        spelled = [letters[b] for b in word.encode()]
        spelled[-1] += "</w>"
        parts[word] = spelled
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, spelled in parts.items():
            for pair in zip(spelled, spelled[1:], strict=False):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for word, spelled in parts.items():
            out: list[str] = []
            i = 0
            while i < len(spelled):
                if i + 1 < len(spelled) and (spelled[i], spelled[i + 1]) == best:
                    out.append(best[0] + best[1])
                    i += 2
                else:
                    out.append(spelled[i])
                    i += 1
            parts[word] = out


def write(folder: Path, captions: int = 4000, length: int = 32) -> int:
    """Write the tokenizer's files into `folder`; returns the number of tokens."""
    from render import sample
    from words import caption, tokens, words

    rng = np.random.default_rng(7)
    counts: Counter[str] = Counter({w: 1 for w in words()})
    for _ in range(captions):
        counts.update(t for t in tokens(caption(sample(rng), rng)) if t in counts)
    merges = train(counts)
    letters = list(byte_letters().values())
    names = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges] + [START, END]
    if len(set(names)) != len(names):
        raise AssertionError("two merges spell the same token")
    folder.mkdir(parents=True, exist_ok=True)

    def put(name: str, text: str) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    put("vocab.json", json.dumps({n: i for i, n in enumerate(names)}, ensure_ascii=False))
    put("merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    put("special_tokens_map.json", json.dumps(special, indent=2) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    put("tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    return len(names)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])), "tokens")
