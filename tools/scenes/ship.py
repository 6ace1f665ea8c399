"""Make the trained model the one that ships: convert it into mlxldm/scenes, with its defaults and licence.

    python tools/scenes/ship.py OUT        OUT: the diffusers folder that train.py wrote

Afterwards run tools/make_reference.py, and look at pictures before committing.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import convert
from mlxldm.config import Defaults
from mlxldm.folder import Folder, Manifest

STEPS, GUIDANCE, SAMPLER = 14, 3.0, "dpmpp_2m"


class Described:
    """A folder with another manifest."""

    def __init__(self, folder: Folder, manifest: Manifest):
        self.folder, self.manifest = folder, manifest

    def __getattr__(self, name: str):
        return getattr(self.folder, name)


def main() -> None:
    folder = convert.view(sys.argv[1])
    own = folder.manifest.defaults
    manifest = dataclasses.replace(
        folder.manifest,
        name="scenes",
        defaults=Defaults(own.width, own.height, STEPS, GUIDANCE, SAMPLER, "model"),
        license="MIT",
        source={"name": "tools/scenes"},
    )
    target = ROOT / "mlxldm" / "scenes"
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        made = convert.write(Described(folder, manifest), Path(place) / "scenes", dtype="float16").path
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
