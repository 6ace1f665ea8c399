"""The app as people run it: its own process, the real worker, the embedded model, driven by mouse and keys alone.

On a virtual screen (Xvfb) where there is one and Qt can use it, else offscreen; the tests' names say which.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_things import alive
from conftest import ROOT, needs_mlx
from PIL import Image

from mlxldm.job import Job
from mlxldm.picture import read_record

NEEDED = ("xcb-cursor", "xcb-icccm", "xcb-keysyms", "xcb-image", "xcb-render-util", "xkbcommon-x11")  # by Qt for X
SCREEN = "xvfb" if shutil.which("Xvfb") and all(map(ctypes.util.find_library, NEEDED)) else "offscreen"
WORDS = "a red lighthouse by the sea at dusk"

pytestmark = [
    needs_mlx,
    pytest.mark.skipif(os.name == "nt", reason="processes are looked at with ps"),
    pytest.mark.parametrize("screen", [SCREEN], indirect=True),
]


@pytest.fixture
def screen(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What the environment says about the screen; one of our own where there is Xvfb."""
    if request.param == "offscreen":
        yield {"QT_QPA_PLATFORM": "offscreen"}
        return
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    with server:
        yield {"QT_QPA_PLATFORM": "xcb", "DISPLAY": f":{server.stdout.readline().strip()}"}
        server.terminate()


class App:
    """The app's process, and the hand in it."""

    def __init__(self, home: Path, screen: dict[str, str], *files: Path):
        self.home = home
        environment = {**os.environ, **screen, "MLXLDM_HOME": str(home), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "app_hand.py", *files], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def tell(self, *words: Any) -> Any:
        """Do something, as app_hand.py says."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        heard, _, _ = select.select([self.process.stdout], [], [], 60)
        assert heard, f"no answer to {words}"
        line = self.process.stdout.readline()
        assert line, "the app went: " + self.process.communicate()[1]
        said = json.loads(line)
        assert not isinstance(said, dict) or "error" not in said, said
        return said

    def until(self, true: Callable[[dict[str, Any]], object], limit: float = 60) -> dict[str, Any]:
        """Look until something is seen."""
        end = time.monotonic() + limit
        while not true(seen := self.tell("look")):
            assert time.monotonic() < end, f"never seen: {seen}"
            time.sleep(0.05)
        return seen

    def ready(self) -> dict[str, Any]:
        """Wait for the worker."""
        return self.until(lambda seen: any("ready" in text for text in seen["buttons"]))

    def pictures(self) -> list[Path]:
        """What is on the disk, in the order in which it was made."""
        return sorted((self.home / "pictures").rglob("*.png"))

    def drawn(self, count: int) -> list[Path]:
        """Wait until there are so many, and nothing runs any more."""
        self.until(lambda seen: len(self.pictures()) >= count and "Stop" not in seen["buttons"], 120)
        assert len(self.pictures()) == count
        return self.pictures()

    def family(self) -> list[int]:
        """The process and its children."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        return [self.process.pid, *(pid for pid, parent in pairs if parent == self.process.pid)]

    def quit(self) -> None:
        """By its key. It goes in peace and leaves nobody behind."""
        family = self.family()
        assert len(family) == 2, "the app and its worker"
        self.tell("keys", "Ctrl+Q")
        output = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, output
        end = time.monotonic() + 10
        while any(map(alive, family)):
            assert time.monotonic() < end, "somebody is left"
            time.sleep(0.05)

    def kill(self) -> None:
        """Whatever is left of it after a test that failed."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def start(tmp_path: Path, screen: dict[str, str]) -> Iterator[Callable[..., App]]:
    """`start()`: the app, over the same home each time."""
    apps: list[App] = []

    def make(*files: Path) -> App:
        apps.append(App(tmp_path / "home", screen, *files))
        return apps[-1]

    yield make
    for app in apps:
        app.kill()


def job_in(path: Path) -> Job:
    """What a picture says how it was made, complete."""
    found = read_record(path)
    assert found.job is not None and found.job.seed is not None
    return found.job


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def check_inpainted(home: Path, made: Path, before: Path) -> Job:
    """The mask is in the job and kept; outside of it no pixel changed, inside of it they did."""
    job = job_in(made)
    assert job.mask is not None and job.image is not None
    mask = pixels(home / "app" / "inputs" / Path(job.mask).name)[..., 0] > 127
    assert 0.01 < mask.mean() < 0.9
    old, new = pixels(before), pixels(made)
    assert np.array_equal(old[~mask], new[~mask]), "not masked, so not touched"
    assert (old[mask] != new[mask]).any(-1).mean() > 0.5
    return job


def test_by_hand_from_words_to_a_painted_mask_and_over_a_restart(start, tmp_path):
    app = start()
    assert app.ready()["platform"] == {"xvfb": "xcb"}.get(SCREEN, SCREEN)
    # Words to a picture.
    app.tell("click", "Prompt")
    app.tell("type", WORDS)
    app.tell("click", "Settings")
    app.tell("click", "Seed")
    app.tell("type", "5")
    app.tell("click", "Generate")
    (first,) = app.drawn(1)
    job = job_in(first)
    assert (job.prompt, job.seed, job.mask) == (WORDS, 5, None) and pixels(first).shape == (128, 128, 3)
    # A picture from another program.
    outside = tmp_path / "outside.png"
    across = np.linspace(0, 255, 128, dtype=np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(across, across[:, None], 90), -1).astype(np.uint8)).save(outside)
    app.tell("drop", "Picture", str(outside))
    app.until(lambda seen: "Paint a Mask" in seen["buttons"])
    # A mask over its middle.
    app.tell("click", "Paint a Mask")
    app.tell("stroke", "Mask painter", [[0.4, 0.5], [0.5, 0.45], [0.6, 0.55]])
    app.until(lambda seen: "Edit the Mask" in seen["buttons"])
    app.tell("click", "Generate")
    second = next(path for path in app.drawn(2) if path != first)
    job = check_inpainted(app.home, second, outside)
    assert (job.prompt, job.seed) == (WORDS, 5)
    # Two jobs of three pictures each, and away while the first of them runs.
    app.tell("click", "Without a start picture")
    app.tell("click", "How many pictures")
    app.tell("keys", "Ctrl+A", "3")
    app.tell("click", "Generate")
    app.until(lambda seen: "Stop" in seen["buttons"])
    app.tell("click", "Seed")
    app.tell("keys", "Ctrl+A", "9")
    app.tell("click", "Add to queue")
    app.quit()
    there = app.pictures()
    assert 2 <= len(there) < 8 and not list(app.home.rglob("*.part"))
    # Nothing starts by itself; then all of it comes, and nothing twice.
    app = start()
    app.ready()
    left = 8 - len(there)
    app.until(lambda seen: f"{left} pictures were waiting." in seen["texts"])
    time.sleep(1.5)
    assert app.pictures() == there and "Stop" not in app.tell("look")["buttons"]
    app.tell("click", "Resume")
    made = [job_in(path) for path in app.drawn(8)]
    assert sorted(job.seed for job in made if job.mask is None) == [5, 5, 6, 7, 9, 10, 11]
    assert pixels(first).tobytes() == next(
        pixels(path).tobytes() for path in app.pictures() if path != first and job_in(path).seed == 5 and path != second
    ), "the same words and seed, before and after"
    app.quit()


def test_by_keyboard_alone(start, tmp_path):
    app = start()
    assert app.ready()["focus"] == "Prompt"
    # Start, type, generate many, stop.
    app.tell("type", WORDS)
    app.tell("keys", *["Tab"] * 3, "Ctrl+A", "8")
    assert app.tell("look")["focus"] == "How many pictures"
    app.tell("keys", "Ctrl+Return")
    app.until(lambda seen: any("tep 1" in text for text in seen["texts"]))
    app.tell("keys", "Ctrl+.")
    app.until(lambda seen: "Generate" in seen["buttons"])
    stopped = len(app.pictures())
    assert stopped < 8
    app.tell("keys", "Ctrl+A", "1", "Ctrl+E", "Ctrl+A")
    app.tell("type", "a blue house in the snow")
    app.tell("keys", "Ctrl+Return")
    house = next(path for path in app.drawn(stopped + 1) if "blue" in job_in(path).prompt)
    # Search, take what is found, use its settings again.
    app.tell("keys", "Ctrl+E", "Ctrl+A")
    app.tell("type", "something else")
    app.tell("keys", "Ctrl+F")
    app.tell("type", "blue house")
    app.until(lambda seen: seen["fields"]["Search prompts"] == "blue house")
    app.tell("keys", "Return", "Home")
    assert app.tell("look")["focus"] == "Pictures"
    app.tell("keys", "Ctrl+R")
    assert app.tell("look")["fields"]["Prompt"] == "a blue house in the snow"
    # Paint a mask: two dabs and the line between them.
    app.tell("keys", "Ctrl+I")
    app.until(lambda seen: seen["focus"] == "Mask painter")
    app.tell("keys", "]", "]", "Left", "Left", "Return", "Shift+Right", "Shift+Right", "Shift+Return")
    app.until(lambda seen: "Edit the Mask" in seen["buttons"])
    app.tell("keys", "Ctrl+Return")
    inpainted = next(path for path in app.drawn(stopped + 2) if job_in(path).mask)
    check_inpainted(app.home, inpainted, house)
    # Save a copy of it: it is the one that is shown.
    target = tmp_path / "copy.png"
    app.tell("keys", "Ctrl+S")
    app.until(lambda seen: "Save a Copy" in seen["window"])
    app.tell("keys", "Ctrl+A")
    app.tell("type", str(target))
    app.tell("keys", "Return")
    app.until(lambda seen: target.exists())
    assert target.read_bytes() == inpainted.read_bytes()
    app.quit()
