"""mlxldm-convert: look at a checkpoint, say what it is, and write it as a model folder.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 2 something the person can fix (one
sentence), 1 our fault (a traceback), 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxldm import store
from mlxldm.errors import UserError
from mlxldm.quantized import BITS, GROUPS
from mlxldm.tensors import shown
from mlxldm.terminal import Bar, Parser, guarded, size, whole

from .adapters import Adapter, Inversion
from .beside import about, beside, copy
from .detect import Wish
from .verify import verify
from .view import View, view
from .write import DTYPES, check, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""

    def run() -> int:
        parser = _parser()
        args, rest = parser.parse_known_args(arguments)
        parser.refuse(rest)
        return _convert(args)

    return guarded("mlxldm-convert", run, "nothing was written")


def _parser() -> Parser:
    parser = Parser(
        prog="mlxldm-convert", description="Write a checkpoint as a model folder of mlxldm, or say what it is."
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint file, a diffusers folder, or a hub id in the cache")
    parser.add_argument("target", metavar="DST", nargs="?", help="the folder to write (default: in the models folder)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="store all weights so (default: as they are)")
    parser.add_argument(
        "--quantize", type=whole, choices=BITS, metavar="BITS",
        help="store the Linears of U-Net and text encoders in 2, 3, 4, 5, 6 or 8 bits: less memory, not more speed",
    )  # fmt: skip
    parser.add_argument(
        "--group", type=whole, choices=GROUPS, default=64, metavar="N",
        help="weights that share a scale: 32, 64 or 128 (default 64); smaller is closer and larger",
    )  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="read the result back and compare it with the source")
    parser.add_argument("--allow-nonfinite", action="store_true", help="write numbers that are NaN or infinite too")
    parser.add_argument("--family", metavar="NAME", help="what the source is, if that cannot be seen: sd1, sd2, sdxl")
    parser.add_argument("--prediction", choices=["eps", "epsilon", "v"], help="what the model predicts")
    parser.add_argument("--heads", type=whole, metavar="N", help="attention heads of the U-Net, at every level")
    parser.add_argument("--no-ema", action="store_true", help="take the raw weights where a file has averaged ones too")
    parser.add_argument("--dry-run", action="store_true", help="only say what the source is and what would be written")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _convert(args: argparse.Namespace) -> int:
    source = Path(args.source).expanduser()
    if not source.exists():
        source = store.locate(args.source)
    prediction = {"eps": "epsilon"}.get(args.prediction, args.prediction)
    try:
        folder = view(source, Wish(args.family, prediction, args.heads, not args.no_ema))
    except UserError:  # only then, so that no model's header is read twice
        change = beside(source) if source.is_file() else None
        if change is None:
            raise
        return _change(change, args)
    report: dict[str, Any]
    if isinstance(folder, View):
        report = folder.report()
    else:
        manifest = folder.manifest
        report = {
            "source": str(source),
            "kind": "model folder of mlxldm",
            "name": manifest.name,
            "family": manifest.family,
            "license": manifest.license,
            "why": ["model.json says so"],
            "ignored": {},
            "missing": [],
            "parts": {
                part: {
                    "file": f"{part}.safetensors",
                    "tensors": len(folder.names(part)),
                    "dtypes": sorted({tensor.dtype for tensor in folder.names(part).values()}),
                    "bytes": folder.nbytes(part),
                }
                for part in manifest.parts
            },
        }
    if args.target is None:
        target = store.home() / folder.manifest.name
        if not args.dry_run:
            target.parent.mkdir(parents=True, exist_ok=True)
    else:
        target = Path(args.target)
    report["target"] = str(target)
    report["written"] = not args.dry_run
    if args.dry_run and args.verify:
        raise UserError("There is nothing to --verify in a --dry-run: leave one of them out.")
    if not args.json:
        _print(report)
    bar = Bar()

    def progress(done: int, total: int, part: str) -> None:
        verb = "reading" if args.dry_run else "writing"
        bar.move(done / max(total, 1), f"{verb} {part:9} {size(done):>8} of {size(total)}")

    try:
        bar.show("reading" if args.dry_run else "writing")
        if args.dry_run:
            outcomes = check(folder, progress)
            report["sha256"] = folder.hashes()
        else:
            made = write(
                folder, target, dtype=args.dtype, bits=args.quantize, group=args.group,
                allow_nonfinite=args.allow_nonfinite, progress=progress,
            )  # fmt: skip
            outcomes, report["sha256"] = made.parts, made.source
        for part, outcome in outcomes.items():
            report["parts"][part]["result"] = dataclasses.asdict(outcome)
        if args.verify:
            bar.show("comparing the result with the source")
            for part, compared in verify(folder, target).items():
                report["parts"][part]["verified"] = dataclasses.asdict(compared)
    finally:
        bar.clear()
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        _results(report)
    return 0


def _change(found: Adapter | Inversion, args: argparse.Namespace) -> int:
    """A LoRA or a textual inversion: what it is, and a copy in safetensors if a name is given."""
    for name, given in (("--quantize", args.quantize), ("--dtype", args.dtype), ("--verify", args.verify)):
        if given:
            raise UserError(f"{name} is for models; a LoRA or textual inversion is copied bit for bit: leave it out.")
    said = about(found)
    said["written"] = args.target is not None and not args.dry_run
    if said["written"]:
        said["target"] = str(copy(found, args.target))
    if args.json:
        print(json.dumps(said, ensure_ascii=False))
        return 0
    kind = f", {said['kind']}" if "kind" in said else ""
    print(f"{shown(said['source'])}: {said['what']}{kind}, for family {said['base'] or 'not known'}")
    for reason in said.get("why", ()):
        print(f"  because {shown(reason)}")
    for part, (changed, there) in said.get("modules", {}).items():
        print(f"  {part:9} {changed} of {there} modules changed")
    for part, (count, width) in said.get("vectors", {}).items():
        print(f"  {part:9} {count} vectors of {width} for the word {shown(said['token'])}")
    if said.get("ranks"):
        print(f"  ranks     {', '.join(map(str, said['ranks']))}")
    for word in said.get("inversions", ()):
        print(f"  brings along the word {shown(word)}")
    for name, reason in said.get("unmatched", {}).items():
        print(f"  left out: {shown(name)} ({reason})")
    if said["written"]:
        print(f"written: {shown(said['target'])}")
    elif args.target is None and not args.dry_run:
        print("nothing written: give a name that ends in .safetensors for a copy")
    return 0


def _results(report: dict[str, Any]) -> None:
    """What was found out while reading and writing."""
    print("checked:" if not report["written"] else f"written: {shown(report['target'])}")
    for part, what in report["parts"].items():
        found = what["result"]
        said = [f"{found['values']:,} numbers", f"{found['not_finite'] or 'none'} NaN or infinite"]
        if report["written"]:
            said.insert(0, size(found["bytes"]))
        if found["quantized"]:
            said.append(f"{found['quantized']} matrices quantized (saves {size(found['saved'])}, error "
                        f"{100 * found['error']:.2g} %)")  # fmt: skip
        print(f"  {part:9} {', '.join(said)}")
        for why, count in found["kept"].items():
            print(f"            {count} matrices kept: {why}")
        if "verified" in what:
            same = what["verified"]
            kinds = (("equal", "equal bit for bit"), ("rounded", "rounded"), ("quantized", "quantized"))
            words = ", ".join(f"{same[key]} {word}" for key, word in kinds if same[key])
            print(f"            verified: {same['tensors']} tensors, {words}")
        if found["sha256"]:
            print(f"            sha256 {found['sha256']}")
    for name, digest in report["sha256"].items():
        print(f"  from {shown(name)}: sha256 {digest}")


def _print(report: dict[str, Any]) -> None:
    print(f"{shown(report['source'])}: {report['kind']}, family {report['family']}")
    for reason in report["why"]:
        print(f"  because {shown(reason)}")
    for part, what in report["parts"].items():
        print(
            f"  {part:9} {what['tensors']:5} tensors, {what['bytes'] / 1e6:9.2f} MB as {', '.join(what['dtypes'])}"
            f"  from {shown(what['file'])}"
        )
        changes = {"renamed": "renamed", "channels_last": "made channel-last", "matrices": "1x1 made matrices"}
        changes["split"] = "cut from larger ones"
        said = [f"{what[key]} {word}" for key, word in changes.items() if what.get(key)]
        if said:
            print(f"            {', '.join(said)}")
        for name, reason in what.get("ignored", {}).items():
            print(f"            left out: {shown(name)} ({reason})")
    for name, reason in report["ignored"].items():
        print(f"  left out: {shown(name)} ({reason})")
    print("  missing: none")


if __name__ == "__main__":
    sys.exit(main())
