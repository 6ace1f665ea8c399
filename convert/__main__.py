"""mlxldm-convert: look at a checkpoint, say what it is, and write it as a model folder.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 2 something the person can fix (one
sentence), 1 our fault (a traceback), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxldm import store
from mlxldm.tensors import shown
from mlxldm.terminal import Bar, Parser, guarded, whole

from .detect import Wish
from .view import View, view
from .write import DTYPES, write


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
    folder = view(source, Wish(args.family, prediction, args.heads, not args.no_ema))
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
    if not args.json:
        _print(report)
    if not args.dry_run:
        bar = Bar()
        try:
            bar.show("writing")
            write(folder, target, dtype=args.dtype, progress=lambda done, part: bar.move(done, f"writing {part:9}"))
        finally:
            bar.clear()
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
    elif not args.dry_run:
        print(f"written: {target}")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
