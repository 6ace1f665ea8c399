"""Draw the app's window in its states, light and dark, in two sizes and at scale 2: pictures to look at.

    QT_QPA_PLATFORM=offscreen python tools/screens.py [--out DIR] [--only NAME] [--keep]

The gallery's pictures are real, made by the embedded model; the states come from the scripted worker of the tests.
`--keep` writes the handful that docs/screens/ has.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

PROMPTS = (
    "a red lighthouse by the sea at dusk", "a green hill under a yellow sun", "a blue house in the snow",
    "a white sailing boat on a calm lake", "two pine trees on a hill in the evening",
    "a castle at night under the moon",
)  # fmt: skip
SIZES = {"wide": (1280, 800), "small": (1024, 640)}
KEPT = ("first-light-small", "idle-light-wide", "idle-dark-wide", "error-light-small", "waiting-dark-small")


def gallery(place: Path) -> list[Path]:
    """Pictures of the embedded model over some days, made once into `place`."""
    if not place.exists():
        place.mkdir(parents=True)
        for at, prompt in enumerate(PROMPTS):
            wish = [prompt, "--seed", str(5 + at), "--count", "3", "-o", str(place / f"{at}.png")]
            command = [sys.executable, "-m", "mlxldm.cli", "generate", *wish]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return sorted(place.glob("*.png"))


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "mlxldm-screens")
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--scale", type=int, default=1)
    asked = parser.parse_args()
    os.environ["QT_SCALE_FACTOR"] = str(asked.scale)
    asked.out.mkdir(parents=True, exist_ok=True)
    made = gallery(asked.out / "gallery")

    from PySide6.QtGui import QFontDatabase
    from PySide6.QtWidgets import QApplication

    app = QApplication(["mlxldm"])
    app.setApplicationName("mlxldm")
    assert "DejaVu Sans" in QFontDatabase.families(), "without fonts Qt draws boxes"
    for state in STATES:
        for scheme in ("light", "dark"):
            for size in SIZES:
                name = f"{state}-{scheme}-{size}"
                if asked.only in name:
                    draw(app, state, scheme, size, made, asked.out / f"{name}{'@2' if asked.scale == 2 else ''}.png")
                    if asked.keep and name in KEPT and asked.scale == 1:
                        shrink(asked.out / f"{name}.png", ROOT / "docs" / "screens" / f"{name}.png")


def draw(app, state: str, scheme: str, size: str, made: list[Path], target: Path) -> None:
    """One window in one state."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["MLXLDM_HOME"] = home
        if state != "first":
            fill(Path(home) / "pictures", made)
        from app import theme
        from app.client import Client
        from app.window import Window

        theme.apply(app, scheme)
        flags = ["--pace", "0.12"] if state in ("generating", "stopping", "corner") else ["--pace", "0.02"]
        flags += ["--load", "60"] if state == "loading" else []
        flags += ["--refuse"] if state == "down" else []
        flags += ["--loras"] if state == "wearing" else []
        client = Client((sys.executable, [str(ROOT / "tests" / "fake_worker.py"), *flags], {}))
        window = Window(client)
        window.settings.setValue("appearance", scheme)
        window.resize(*SIZES[size])
        window.show()
        until(app, lambda: client.greeting is not None or state == "down")
        until(app, lambda: state == "first" or len(window.gallery_model.shown) == len(made))
        STATES[state](app, window)
        spend(app, 0.6)
        window.grab().save(str(target))
        print(target)
        window.close()
        window.deleteLater()
        spend(app, 0.1)


def fill(folder: Path, made: list[Path]) -> None:
    """The pictures as if they had been made over some days."""
    now = time.time()
    for at, path in enumerate(made):
        when = now - (at // 5) * 86400 - at * 60
        day = folder / time.strftime("%Y-%m-%d", time.localtime(when))
        day.mkdir(parents=True, exist_ok=True)
        copy = day / f"{at:04}.png"
        copy.write_bytes(path.read_bytes())
        os.utime(copy, (when, when))


def until(app, true, limit: float = 20) -> None:
    """Let the window live until something is so."""
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, "that never came"
        app.processEvents()
        time.sleep(0.005)


def spend(app, seconds: float) -> None:
    """Let the window live for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        app.processEvents()
        time.sleep(0.005)


def chosen(window, prompt: str = "A lighthouse on a cliff at dusk, gouache, soft light", **more) -> None:
    """The controls as somebody left them."""
    from mlxldm.job import Job

    window.panel.show_job(Job(**{"prompt": prompt, "model": "dreamshaper-8", "count": 4, **more}))
    window.panel.disclosure.setChecked(True)


def idle(app, window) -> None:
    """A picture, and the controls."""
    chosen(window)
    window.gallery_model.favour([window.gallery_model.shown[i] for i in (2, 5)], True)
    window._select(1)


def generating(app, window) -> None:
    """The second of four pictures, and a queue."""
    from mlxldm.job import Job

    idle(app, window)
    for prompt, count in (
        ("a lighthouse on a cliff", 4),
        ("an owl in ink on old paper, very detailed", 8),
        ("a castle at night", 1),
    ):
        window._add(Job(prompt=prompt, count=count, seed=3, steps=12, width=512, height=512))
    until(app, lambda: window.queue.progress is not None and window.queue.progress.index == 1)


def corner(app, window) -> None:
    """Another picture is looked at meanwhile."""
    generating(app, window)
    window._select(6)
    spend(app, 0.3)


def loading(app, window) -> None:
    """A model is read."""
    from mlxldm.job import Job

    idle(app, window)
    window._add(Job(prompt="a lighthouse on a cliff", seed=1))
    until(app, lambda: window.queue.state.value == "loading")


def stopping(app, window) -> None:
    """Asked to stop, and deaf."""
    from mlxldm.job import Job

    idle(app, window)
    window._add(Job(prompt="hang on a cliff", seed=1, steps=8, width=512, height=512))
    until(app, lambda: window.queue.progress is not None and window.queue.progress.step == 2)
    window.do_stop()
    until(app, lambda: window.queue.may_force)


def error(app, window) -> None:
    """A job that does not fit."""
    from mlxldm.job import Job

    idle(app, window)
    window._add(Job(prompt="memory of a lighthouse on a cliff", seed=1))
    until(app, lambda: window.viewer.bar.notice is not None)


def crashed(app, window) -> None:
    """The worker went."""
    from mlxldm.job import Job

    idle(app, window)
    window._add(Job(prompt="crash of a wave on a cliff", seed=1))
    until(app, lambda: window.viewer.bar.notice is not None and window.client.greeting is not None)
    window.viewer.bar.more.setChecked(True)


def down(app, window) -> None:
    """Nothing here can draw."""
    until(app, lambda: window.viewer.bar.notice is not None)


def waiting(app, window) -> None:
    """A queue from before, and a start picture."""
    from app.errors import of_waiting
    from mlxldm.job import Job

    idle(app, window)
    window.queue.pause()
    for prompt, count in (("a lighthouse on a cliff", 2), ("an owl in ink", 1)):
        window._add(Job(prompt=prompt, count=count, seed=3))
    window.say(of_waiting(3))
    window.start_from(window.gallery_model.shown[4].path)


def painting(app, window) -> None:
    """A mask over the second picture, and room at its right."""
    from PySide6.QtCore import QPointF

    idle(app, window)
    window.do_extend()
    painter = window.inpaint.painter
    for width, places in ((34, [(30, 84), (52, 78), (70, 86)]), (18, [(96, 30), (104, 44)])):
        painter.layer.begin()
        for start, stop in zip(places, places[1:], strict=False):
            painter.layer.line(QPointF(*start), QPointF(*stop), width)
        painter.layer.end()
    painter.set_sides((2,), 64)


def comparing(app, window) -> None:
    """Two pictures, and what was set differently."""
    idle(app, window)
    first, second = (window.gallery_model.shown[at].path for at in (5, 0))
    window.compare(first, second)


def advanced(app, window) -> None:
    """All that can be set."""
    chosen(window, hires=2.0, variation="99:0.3", model="a-turbo")
    window.panel.advanced.button.setChecked(True)
    spend(app, 0.3)
    window.panel._scroll.verticalScrollBar().setValue(10_000)


def wearing(app, window) -> None:
    """LoRAs: on, off, and for another model."""
    chosen(window, loras=("ink wash:0.8", "soft light:1.2", "xl-film:0.5"))
    window.panel.disclosure.setChecked(False)
    until(app, lambda: window.panel.loras.wardrobe.all)
    window.panel.loras.rows[1].switch.click()


def first(app, window) -> None:
    """Nothing was ever made."""


STATES = {
    one.__name__: one
    for one in (first, idle, loading, generating, corner, painting, comparing, advanced, wearing, stopping, error,
                crashed, down, waiting)
}


def shrink(source: Path, target: Path) -> None:
    """The same picture in fewer bytes: of 256 colours."""
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    whole = Image.open(source).convert("RGB")
    few = whole.quantize(256, method=Image.Quantize.FASTOCTREE)
    whole.quantize(palette=few, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)


if __name__ == "__main__":
    main()
