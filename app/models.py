"""What the worker says of a model, and what that means for the controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

EMBEDDED = "scenes"

# What a task takes beside its own. One that is not listed is shown with everything.
TASKS = {
    "text-to-image": "prompt negative image strength mask extend hires rescale",
    "inpaint": "prompt negative image strength mask extend rescale",
    "edit": "prompt negative image",
    "depth": "prompt negative image strength hires rescale",
    "refine": "prompt negative image strength rescale",
    "upscale": "prompt negative image rescale",
    "super-resolution": "image",
    "unconditional": "",
    "class-to-image": "rescale",
    "semantic": "",
    "layout": "rescale",
    "retrieval": "prompt negative rescale",
}
FAMILIES = {"ldm-inpaint": "image mask extend"}  # what takes less than its task says
NEEDS = {"inpaint": "mask", "edit": "image", "refine": "image", "upscale": "image", "super-resolution": "image"}
TWICE = ("sdxl", "ssd-1b", "vega")  # families whose words two text encoders read
ENLARGES = ("upscale", "super-resolution")
SIDES = {"sd1": 512, "sd2": 768, "sdxl": 1024}  # the usual side of a family, where the model does not say


@dataclass(frozen=True)
class Model:
    """One that can be chosen, or cannot and says why."""

    name: str
    family: str | None = None
    task: str = "text-to-image"
    state: str = "ready"
    why: str = ""
    path: str = ""
    bytes: int | None = None
    width: int = 512
    height: int = 512
    steps: int = 25
    guidance: float = 7.5
    sampler: str | None = None

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Model:
        """From a row of the worker's list, whatever of it is there."""
        defaults = row.get("defaults")
        defaults = defaults if isinstance(defaults, dict) else {}
        family = row.get("family")
        side = SIDES.get(str(family), 512)
        return cls(
            name=str(row.get("name")), family=family, task=row.get("task") or "text-to-image",
            state=str(row.get("state") or "ready"), why=str(row.get("why") or ""), path=str(row.get("path") or ""),
            bytes=row.get("bytes"), width=defaults.get("width", side), height=defaults.get("height", side),
            steps=defaults.get("steps", 25), guidance=defaults.get("guidance", 7.5), sampler=defaults.get("sampler"),
        )  # fmt: skip

    @property
    def title(self) -> str:
        """What people read."""
        if self.name == EMBEDDED:
            return "Scenes (small, built in)"
        return self.name.rpartition("/")[2]

    @property
    def usable(self) -> bool:
        """Whether a picture can be made with it now."""
        return self.state == "ready"

    @property
    def about(self) -> str:
        """Its kind, size and place, for a tooltip; or why it cannot be used."""
        size = f"{self.bytes / 1e9:.1f} GB" if self.bytes and self.bytes >= 1e8 else ""
        size = size or (f"{self.bytes / 1e6:.0f} MB" if self.bytes else "")
        state = {"ready": "", "not there": "Its disk is not connected, or it was moved."}.get(self.state, self.state)
        return "\n".join(filter(None, (" · ".join(filter(None, (self.family, size))), self.path, self.why or state)))

    def takes(self, what: str) -> bool:
        """Whether it has a use for a field of a job: `prompt`, `negative`, `image`, `mask`, `extend` ..."""
        if what == "negative" and not self.guided:
            return False
        own = FAMILIES.get(str(self.family), TASKS.get(self.task, TASKS["text-to-image"]))
        return what in own.split()

    def reads(self, encoders: int) -> bool:
        """Whether it has so many CLIPs that read words."""
        family = str(self.family)
        return not family.startswith("ldm") and (encoders == 1 or family in TWICE)

    def lacks(self, image: bool, masked: bool) -> str:
        """What it cannot draw without and is not there yet, as what to do; "" if nothing."""
        needs = NEEDS.get(self.task)
        if needs is not None and not image:
            return "Choose a picture first"
        return "Paint a mask first" if needs == "mask" and not masked else ""

    @property
    def redraws(self) -> bool:
        """Whether it draws over a whole picture, and can so make one larger."""
        return self.takes("strength") and not self.lacks(image=True, masked=False)

    @property
    def guided(self) -> bool:
        """Whether guidance changes anything: distilled models have it built in."""
        return self.guidance > 1.0

    def sizes(self) -> list[tuple[str, int, int]]:
        """Shapes of about the model's own number of pixels, by name."""
        area = self.width * self.height
        step = 64 if min(self.width, self.height) >= 512 else 8

        def shape(ratio: float) -> tuple[int, int]:
            return max(step, round(sqrt(area * ratio) / step) * step), max(
                step, round(sqrt(area / ratio) / step) * step
            )

        square = (self.width, self.height) if self.width == self.height else shape(1)
        return [
            ("Square", *square),
            ("Portrait", *shape(2 / 3)),
            ("Landscape", *shape(3 / 2)),
            ("Wide", *shape(16 / 9)),
        ]


def usable(rows: list[dict[str, Any]]) -> list[Model]:
    """The models to choose from: whole ones, each once, those that cannot be used now at the end.

    One in an added folder that shares its name with another is called by its path.
    """
    found: dict[str, Model] = {}
    for row in rows:
        if row.get("task") != "part" and row.get("state") in ("ready", "not there", "damaged"):
            model = Model.from_row(row)
            if model.name in found and row.get("origin") == "added":
                model = replace(model, name=model.path)
            found.setdefault(model.name, model)
    return sorted(found.values(), key=lambda model: not model.usable)
