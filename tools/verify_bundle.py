"""Check that a built macOS app has what MLX needs: `mlx.metallib` beside `libmlx.dylib`, each exactly once.

MLX looks for its Metal library beside the file that holds it; a bundle that moved or doubled either starts, and fails
at the first picture. `python tools/verify_bundle.py build/mlxldm-desktop/macos/app/mlxldm.app` ends with code 0, or
with 1 and the reasons.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAMES = ("libmlx.dylib", "mlx.metallib")
UNWANTED = ("torch", "diffusers", "transformers")  # never in the Mac's bundle


def wrong(bundle: Path) -> list[str]:
    """What is wrong with a bundle, in sentences; nothing if it is right."""
    if not bundle.is_dir():
        return [f"There is no bundle at {bundle}."]
    found: dict[str, list[Path]] = {name: [] for name in NAMES}
    problems = []
    for root, folders, files in os.walk(bundle):
        here = Path(root)
        for name in NAMES:
            if name in files:
                found[name].append(here / name)
        if here.name == "app_packages":
            problems += [f"{name} is in the bundle, and should not be." for name in UNWANTED if name in folders]
    for name, places in found.items():
        shown = ", ".join(str(place.relative_to(bundle)) for place in places)
        if len(places) != 1:
            problems.append(f"{name} is there {len(places)} times{f': {shown}' if places else ''}; it has to be once.")
        for place in places:
            if place.is_symlink():
                problems.append(f"{place.relative_to(bundle)} is a link: MLX looks beside what it points to.")
            elif place.stat().st_size == 0:
                problems.append(f"{place.relative_to(bundle)} is empty.")
    if all(len(places) == 1 for places in found.values()):
        library, metal = (found[name][0] for name in NAMES)
        if library.parent != metal.parent:
            problems.append(f"mlx.metallib is in {metal.parent.relative_to(bundle)}, but libmlx.dylib in "
                            f"{library.parent.relative_to(bundle)}: they have to lie side by side.")  # fmt: skip
    return problems


def main() -> int:
    """Check the bundle that is named."""
    if len(sys.argv) != 2:
        print("usage: verify_bundle.py mlxldm.app", file=sys.stderr)
        return 2
    problems = wrong(Path(sys.argv[1]))
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("mlx.metallib lies beside libmlx.dylib, each once.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
