"""Draw the app's window in its states, light and dark, in two sizes and at scale 2: pictures to look at.

    QT_QPA_PLATFORM=offscreen python tools/screens.py [--out DIR] [--only NAME] [--scale 2] [--keep]

All states but "real" come from the scripted worker of the tests, and the gallery's pictures from
tools/scenes/render.py: what the embedded model learned from, larger than it draws. What code can see of a window's
looks (tests/app_looks.py) is checked in every one of them: exit code 1 if anything is wrong. `--keep` writes what
docs/screens/ has: a handful as they are, and all that were drawn, small, on a sheet for each scheme and size.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCREENS = ROOT / "docs" / "screens"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools" / "scenes")]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

SCENES = (11, 16, 9, 40, 31, 21, 12, 5, 34, 19, 26, 8, 2, 27, 7, 18, 25, 36)  # numbers of the renderer's pictures
SIZES = {"wide": (1280, 800), "small": (1024, 640)}
KEPT = (
    "real-light-wide", "generating-light-wide", "idle-dark-wide", "painting-light-wide", "first-light-small",
    "extending-dark-small", "comparing-light-small", "models-light-small", "backends-dark-small", "loras-dark-small",
    "crashed-light-small",
)  # fmt: skip


def gallery(place: Path) -> list[Path]:
    """Pictures with their jobs inside, made once into `place`."""
    if not place.exists():
        import numpy as np
        import render
        import words

        from mlxldm.job import Job
        from mlxldm.picture import save_png

        place.mkdir(parents=True)
        for at, number in enumerate(SCENES):
            rng = np.random.default_rng([number, 7])
            factors = render.sample(rng)
            pixels, _ = render.render(factors, rng, 512)
            prompt, _ = words.caption_with_labels(factors, rng)
            job = Job(prompt=prompt, model="dreamshaper-8", seed=1000 + 37 * number, steps=25, guidance=7.5,
                      sampler="dpmpp_2m", spacing="karras", width=512, height=512)  # fmt: skip
            save_png(place / f"{at:02}.png", pixels, job, {"mlxldm": "0.1.0", "backend": "mlx", "seconds": 8.7})
    return sorted(place.glob("*.png"))


def main() -> int:
    """Draw; 1 if a window has something that code can find wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "mlxldm-screens")
    parser.add_argument("--only", default="", help="parts of names, with commas")
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
    wrong, twice = 0, "@2" if asked.scale == 2 else ""
    sheets: dict[str, list[Path]] = {}
    for state in STATES:
        for scheme in ("light", "dark"):
            for size in SIZES:
                name = f"{state}-{scheme}-{size}"
                if any(part in name for part in asked.only.split(",")):
                    target = asked.out / f"{name}{twice}.png"
                    sheets.setdefault(f"all-{scheme}-{size}{twice}", []).append(target)
                    found = draw(app, state, scheme, size, made, target)
                    print(target, *found, sep="\n    ", flush=True)
                    wrong += len(found)
                    if asked.keep and name in KEPT and asked.scale == 1:
                        packed(target, SCREENS / f"{name}.png")
    for name, drawn in sheets.items():
        if asked.keep and len(drawn) == len(STATES):
            sheet(drawn, SCREENS / f"{name}.webp")
    return bool(wrong)


def draw(app, state: str, scheme: str, size: str, made: list[Path], target: Path) -> list[str]:
    """One window in one state; what is wrong with it."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["MLXLDM_HOME"] = home
        bare = state in ("first", "real")  # without pictures
        if not bare:
            fill(Path(home) / "pictures", made)
        from app_looks import complaints

        from app import theme
        from app.client import Client
        from app.window import Window

        theme.apply(app, scheme)
        flags = ["--pace", "0.12"] if state in ("generating", "stopping", "corner") else ["--pace", "0.02"]
        flags += ["--load", "60"] if state == "loading" else []
        flags += ["--refuse"] if state == "down" else []
        flags += ["--loras"] if state == "loras" else []
        scripted = (sys.executable, [str(ROOT / "tests" / "fake_worker.py"), *flags], {})
        client = Client() if state == "real" else Client(scripted)
        window = Window(client)
        window.settings.setValue("appearance", scheme)
        window.resize(*SIZES[size])
        window.show()
        until(app, lambda: client.greeting is not None or state == "down")
        until(app, lambda: bare or len(window.gallery_model.shown) == len(made))
        until(app, lambda: window.panel.model.count() > 1 or state in ("down", "real"))
        above = STATES[state](app, window)
        if client.greeting is not None and state != "real":
            client.greeting.update(backend="mlx", device_name="CPU")
            window._follow()
        spend(app, 0.6)
        until(app, lambda: not window.thumbnails._wanted)
        found = complaints(window) + (complaints(above) if above is not None else [])
        together(window, above).save(str(target))
        window.close()
        if above is not None:
            above.close()
        window.deleteLater()
        spend(app, 0.1)
    return found


def together(window, above):
    """A window's picture, with what is open above it: where that is, or in the middle if it is a sheet."""
    from PySide6.QtCore import QPoint, QRect, Qt
    from PySide6.QtGui import QColor, QPainter

    picture = window.grab()
    if above is None:
        return picture
    place = QRect(above.pos() - window.pos(), above.size())
    if above.windowFlags() & Qt.WindowType.Popup != Qt.WindowType.Popup:
        place.moveCenter(window.rect().center())
    painter = QPainter(picture)
    painter.setPen(Qt.PenStyle.NoPen)
    for spread in range(12, 0, -1):
        painter.setBrush(QColor(0, 0, 0, 6))
        painter.drawRoundedRect(place.adjusted(-spread, -spread, spread, spread).translated(0, 4), spread, spread)
    painter.drawPixmap(place.topLeft() + QPoint(0, 0), above.grab())
    painter.end()
    return picture


def fill(folder: Path, made: list[Path]) -> None:
    """The pictures as if they had been made over some days."""
    now = time.time()
    for at, path in enumerate(made):
        when = now - (at // 6) * 86400 - at * 60
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


def chosen(window, prompt: str = "A red lighthouse on a cliff at dusk, gouache, soft light", **more) -> None:
    """The controls as somebody left them."""
    from mlxldm.job import Job

    window.panel.show_job(Job(**{"prompt": prompt, "model": "dreamshaper-8", "count": 4, **more}))
    window.panel.disclosure.setChecked(True)


def queued(window, *wishes: tuple[str, int], **more) -> None:
    """Jobs, one after the other."""
    from mlxldm.job import Job

    for prompt, count in wishes:
        window._add(Job(**{"prompt": prompt, "count": count, "seed": 3, "width": 512, "height": 512, **more}))


MODELS = [
    {"name": "scenes", "family": "sd1", "state": "ready", "path": "/s", "bytes": 24_750_134, "origin": "embedded"},
    {"name": "dreamshaper-8", "family": "sd1", "task": "text-to-image", "kind": "single file", "state": "ready",
     "path": "/Users/ada/Models/dreamshaper-8.safetensors", "bytes": 2_130_000_000, "origin": "registered"},
    {"name": "juggernaut-xl", "family": "sdxl", "task": "text-to-image", "kind": "single file", "state": "ready",
     "path": "/Volumes/SSD/juggernaut-xl.safetensors", "bytes": 6_940_000_000, "origin": "added",
     "folder": "/Volumes/SSD"},
    {"name": "ink wash", "family": "sd1", "state": "LoRA", "path": "/Users/ada/Models/ink wash.safetensors",
     "bytes": 37_900_000, "origin": "added", "folder": "/Users/ada/Models"},
    {"name": "dream", "state": "damaged", "why": "Its end is missing: 3.1 of 4.2 GB are there. Get it again.",
     "path": "/Users/ada/Models/dream.ckpt", "bytes": 3_100_000_000, "origin": "added", "folder": "/Users/ada/Models"},
    {"name": "Archive", "state": "not there", "path": "/Volumes/Archive", "origin": "added",
     "folder": "/Volumes/Archive"},
]  # fmt: skip

REAL = (
    "a red lighthouse by the sea at dusk", "a blue house in the snow at night",
    "a green tent in the mountains in autumn", "a yellow boat on a lake at dawn",
    "a white windmill on a hill in summer", "an orange balloon over the desert at noon",
    "a purple house by the sea in spring", "snowy mountains at night under a full moon",
    "a red boat on a lake at dusk", "a red lighthouse by the sea at dusk",
)  # fmt: skip

# The states. Some return what is open above the window.


def first(app, window) -> None:
    """Nothing was ever made."""


def real(app, window) -> None:
    """What the embedded model really draws, by the real worker."""
    from mlxldm.job import Job

    made = []
    window.queue.saved.connect(lambda picture, job: made.append(picture))
    for i, words in enumerate(REAL):
        window._add(Job(prompt=words, seed=5 if i == len(REAL) - 1 else 10 + i))
    until(app, lambda: len(made) == len(REAL), 120)
    spend(app, 1)
    window.say(None)
    window.panel.prompt.setPlainText(REAL[-1])
    window._select(0)
    spend(app, 2)  # until the estimate is there


def idle(app, window) -> None:
    """A picture, and the controls."""
    chosen(window)
    window.gallery_model.favour([window.gallery_model.shown[i] for i in (2, 5)], True)
    window._select(1)


def typing(app, window) -> None:
    """A prompt that is too long for the model."""
    chosen(window, "A lighthouse on a cliff at dusk, gouache, soft light, " + "painted with very many words " * 15)
    window.panel.negative.replace("blurry, text, frame")
    window._select(1)
    window.panel.prompt.setFocus()
    until(app, lambda: window.panel.counter.isVisible())


def no_model(app, window) -> None:
    """The worker has nothing to draw with."""
    window._rows = []
    window._models([{"name": "gone", "state": "not there"}])
    window._models([])
    window.panel.set_models([])


def loading(app, window) -> None:
    """A model is read."""
    idle(app, window)
    queued(window, ("a lighthouse on a cliff", 1))
    until(app, lambda: window.queue.state.value == "loading")


def generating(app, window) -> None:
    """The first of four pictures, its preview, and a queue."""
    from PySide6.QtCore import QSize, Qt
    from PySide6.QtGui import QImage

    idle(app, window)
    queued(window, ("hang gliders over a valley at dusk, gouache", 4), steps=25)
    queued(window, ("an owl in ink on old paper, very detailed", 8), ("a castle at night", 1))
    until(app, lambda: window.queue.progress is not None and window.queue.progress.step == 2)
    spend(app, 0.3)
    for step in range(3, 15):
        window.queue.progress.stepped(0, step, 25, 0.31)
    small = QImage(window.gallery_model.shown[-2].path).scaled(QSize(40, 40), Qt.AspectRatioMode.KeepAspectRatio,
                                                              Qt.TransformationMode.SmoothTransformation)  # fmt: skip
    window.queue.preview.emit(small)
    window._progress()


def corner(app, window) -> None:
    """Another picture is looked at meanwhile."""
    generating(app, window)
    window._select(6)
    spend(app, 0.3)


def stopping(app, window) -> None:
    """Asked to stop, and deaf."""
    idle(app, window)
    queued(window, ("hang on a cliff", 1), steps=8)
    until(app, lambda: window.queue.progress is not None and window.queue.progress.step == 2)
    window.do_stop()
    until(app, lambda: window.queue.may_force)


def waiting(app, window) -> None:
    """A queue from before, and a start picture."""
    from app.errors import of_waiting

    idle(app, window)
    window.queue.pause()
    queued(window, ("a lighthouse on a cliff", 2), ("an owl in ink", 1), ("a fox in the snow, woodcut", 4))
    window.say(of_waiting(7))
    window.start_from(window.gallery_model.shown[4].path)


def _ended(app, window, prompt: str) -> None:
    idle(app, window)
    queued(window, (prompt, 1))
    until(app, lambda: window.viewer.bar.notice is not None)


def error_memory(app, window) -> None:
    """A job that does not fit."""
    _ended(app, window, "memory of a lighthouse on a cliff")


def error_wish(app, window) -> None:
    """A job that cannot be."""
    _ended(app, window, "wish upon a star")


def error_fault(app, window) -> None:
    """Our fault, with what happened."""
    _ended(app, window, "fault lines in a desert")
    window.viewer.bar.more.setChecked(True)


def error_saving(app, window) -> None:
    """A full disk."""
    from app.errors import of_saving

    idle(app, window)
    window.say(of_saving("No space left on device", "/Volumes/Pictures/mlxldm"))


def crashed(app, window) -> None:
    """The worker went."""
    idle(app, window)
    queued(window, ("crash of a wave on a cliff", 1))
    until(app, lambda: window.viewer.bar.notice is not None and window.client.greeting is not None)


def silent(app, window) -> None:
    """The worker does not answer."""
    from app.errors import of_silence

    idle(app, window)
    window.say(of_silence())


def lost(app, window) -> None:
    """The line to another machine broke, and a model is on its way."""
    from app.errors import of_line

    idle(app, window)
    window.say(of_line("‘studio.local’ does not answer any more.", 5, "Timeout, server studio.local not responding."))
    window.desk.task.emit("sd-turbo: Downloading 57 % · 2 min left")


def down(app, window) -> None:
    """Nothing here can draw."""
    until(app, lambda: window.viewer.bar.notice is not None)


def nothing_found(app, window) -> None:
    """A search without a hit."""
    idle(app, window)
    window.side.search.setText("zebra")


def painting(app, window, extend: bool = False) -> None:
    """A mask over the picture."""
    from PySide6.QtCore import QPointF

    idle(app, window)
    window.do_extend() if extend else window.do_mask()
    painter = window.inpaint.painter
    for width, places in ((140, [(120, 330), (210, 310), (280, 345)]), (70, [(385, 120), (415, 175)])):
        painter.layer.begin()
        for start, stop in zip(places, places[1:], strict=False):
            painter.layer.line(QPointF(*start), QPointF(*stop), width)
        painter.layer.end()
    painter._move_ring(QPointF(415, 175))


def extending(app, window) -> None:
    """Room at its right and above it."""
    painting(app, window, True)
    window.inpaint.painter.set_sides((2,), 256)
    window.inpaint.painter.set_sides((1,), 64)


def dropping(app, window) -> None:
    """A picture is held over the place to start from."""
    from PySide6.QtCore import QMimeData, Qt, QUrl
    from PySide6.QtGui import QDragEnterEvent

    idle(app, window)
    data, well = QMimeData(), window.panel.well
    data.setUrls([QUrl.fromLocalFile(window.gallery_model.shown[0].path)])
    app.sendEvent(well, QDragEnterEvent(well.rect().center(), Qt.DropAction.CopyAction, data,
                                        Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier))  # fmt: skip


def comparing(app, window) -> None:
    """Two pictures, and what was set differently."""
    idle(app, window)
    window.compare(*(window.gallery_model.shown[at].path for at in (5, 0)))


def advanced(app, window) -> None:
    """All that can be set."""
    chosen(window, hires=2.0, variation="99:0.3", model="a-turbo")
    window._select(3)
    window.panel.advanced.button.setChecked(True)
    spend(app, 0.3)
    window.panel._scroll.verticalScrollBar().setValue(10_000)


def loras(app, window) -> None:
    """Two LoRAs that are worn, and one that does not fit."""
    chosen(window, loras=["ink wash:0.8", "soft light:0.35", "xl-film"])
    window._select(1)
    until(app, lambda: window.panel.loras.isVisible())
    spend(app, 0.5)
    window.panel._scroll.ensureWidgetVisible(window.panel.loras, 0, 0)


def details(app, window):
    """All that is known of a picture."""
    idle(app, window)
    window.do_details()
    return _opened(app, "Details")


def shortcuts(app, window):
    """All keys."""
    idle(app, window)
    window.do_shortcuts()
    return _opened(app, "Keyboard Shortcuts")


def _models(app, window):
    """The sheet, with a list that nobody was asked for."""
    from app.shelf import Item, Keeper

    class Still(Keeper):
        def refresh(self) -> None:
            self.listed.emit()

    idle(app, window)
    keeper = Still()
    keeper.shelf.show_models(MODELS)
    keeper.shelf.show_task("stabilityai/sd-turbo", Item("stabilityai/sd-turbo", "running", fraction=0.57,
                                                        message="Downloading 57 % · 2 min left"))  # fmt: skip
    keeper.shelf.show_task("dreamshaper-8-8bit", Item("dreamshaper-8-8bit", "running", fraction=0.31,
                                                      message="Converting 31 % · U-Net"))  # fmt: skip
    window.desk._keepers[""] = keeper
    window.desk.show_models()
    return window.desk._sheets[""]


def models(app, window):
    """What is here, what is under way, what is wrong."""
    sheet = _models(app, window)
    sheet.list.setCurrentIndex(sheet.keeper.shelf.index(3))
    return sheet


def model_damaged(app, window):
    """One that cannot be used, and why."""
    sheet = _models(app, window)
    sheet.list.setCurrentIndex(sheet.keeper.shelf.index(sheet.keeper.shelf.row_of("dream")))
    return sheet


def model_get(app, window):
    """A few to begin with."""
    sheet = _models(app, window)
    sheet.show_get()
    return sheet


def model_convert(app, window):
    """How one is converted."""
    sheet = models(app, window)
    sheet.show_convert()
    return sheet


def model_report(app, window):
    """What a conversion wrote."""
    sheet = _models(app, window)
    parts = {"text": (123_060_480, 72, 110), "denoiser": (859_520_964, 260, 780), "vae": (83_653_863, 24, 29)}
    said = {"path": "/Users/ada/Library/Caches/mlxldm/models/dreamshaper-8-8bit", "seconds": 41.0, "parts": {
        part: {"bytes": values * 11 // 10, "values": values, "quantized": matrices, "saved": saved * 10**6,
               "error": 0.0031, "sha256": "5f1c0de2a9b47e63" * 4}
        for part, (values, matrices, saved) in parts.items()}}  # fmt: skip
    sheet.keeper.written.emit("dreamshaper-8-8bit", said)
    return sheet


def _backends(app, window, *hosts: str):
    """What this machine has."""
    from app.probe import Found

    idle(app, window)
    window.desk.settings.set("hosts", list(hosts))
    backends = (
        {"name": "mlx", "ready": True, "version": "0.32.4", "devices": ["gpu", "cpu"], "device_name": "Apple M2",
         "memory": 16 << 30},
        {"name": "torch", "ready": True, "version": "2.13.0", "devices": ["cpu"], "device_name": "CPU"},
    )  # fmt: skip
    popover = window.desk._popover("Where pictures are made")
    auto = {"backend": "mlx", "device": None, "why": "Apple silicon"}
    popover.show_here(Found("Apple M2", "mlx", 16 << 30, "0.1.0", 7, backends, auto))
    window.desk.show_backends(window.panel.backend)
    return popover


def backends(app, window):
    """What this machine has, and one over ssh that was tested."""
    from app import probe
    from mlxldm import __version__

    popover = _backends(app, window)
    found = probe.Found("NVIDIA RTX 4090", "torch", 24 << 30, __version__, 12)
    popover._answered("ada@studio.local", found)
    return popover


def backends_refused(app, window):
    """A machine that cannot be reached."""
    popover = _backends(app, window, "ada@studio.local")
    popover.host.setText("ada@attic.local")
    popover._unanswered("‘attic.local’ asks for a password. Set up a key: ssh-copy-id ada@attic.local")
    return popover


def preferences(app, window):
    """The settings' page."""
    idle(app, window)
    window.do_preferences()
    return window.desk._page


def _opened(app, title: str):
    until(app, lambda: any(one.isVisible() and one.windowTitle() == title for one in app.topLevelWidgets()))
    return next(one for one in app.topLevelWidgets() if one.isVisible() and one.windowTitle() == title)


STATES = {
    one.__name__: one
    for one in (first, real, idle, typing, no_model, loading, generating, corner, stopping, waiting, error_memory,
                error_wish, error_fault, error_saving, crashed, silent, lost, down, nothing_found, painting, extending,
                dropping, comparing, advanced, loras, models, model_damaged, model_get, model_convert, model_report,
                backends, backends_refused, preferences, details, shortcuts)
}  # fmt: skip


def packed(source: Path, target: Path) -> None:
    """The same picture in fewer bytes."""
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as whole:
        whole.convert("RGB").save(target, optimize=True)


def sheet(sources: list[Path], target: Path, wide: int = 640, columns: int = 4) -> None:
    """All of them, small, with their names."""
    from PIL import Image, ImageDraw

    with Image.open(sources[0]) as first:
        high = round(wide * first.height / first.width)
    cell = wide + 12, high + 28
    whole = Image.new("RGB", (columns * cell[0], -(-len(sources) // columns) * cell[1]), (96, 96, 100))
    names = ImageDraw.Draw(whole)
    for i, source in enumerate(sources):
        x, y = i % columns * cell[0] + 6, i // columns * cell[1]
        names.text((x, y + 7), source.stem, fill="white")
        with Image.open(source) as one:
            whole.paste(one.convert("RGB").resize((wide, high), Image.Resampling.LANCZOS), (x, y + 22))
    whole.save(target, quality=80, method=6)


if __name__ == "__main__":
    sys.exit(main())
