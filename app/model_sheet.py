"""The sheet with the models: what is here and what is wrong with it; add, download, convert, forget."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from PySide6.QtCore import QFile, QRectF, QSize, Qt, QUrl, Signal
from PySide6.QtGui import (
    QColor,
    QDesktopServices,
    QDragEnterEvent,
    QDropEvent,
    QFont,
    QKeyEvent,
    QKeySequence,
    QPainter,
    QPalette,
)
from PySide6.QtWidgets import (
    QDialog,
    QFileDialog,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListView,
    QPlainTextEdit,
    QPushButton,
    QStackedWidget,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from . import theme
from .shelf import Index, Item, Keeper, Role, gigabytes
from .widgets import Combo, Elided, restyle

CHECKPOINTS = "Checkpoints (*.safetensors *.ckpt *.gguf *.pt *.pth *.bin);;All files (*)"

# A few to begin with: what people read, what for, about how many bytes, licence, what the hub calls it.
SOME = (
    ("Stable Diffusion 1.5", "The best known; for 8 GB of memory and more", 2.1e9, "CreativeML OpenRAIL-M",
     "Comfy-Org/stable-diffusion-v1-5-archive/v1-5-pruned-emaonly-fp16.safetensors"),
    ("SD-Turbo", "Pictures in one to four steps", 5.2e9, "Stability AI’s, non-commercial", "stabilityai/sd-turbo"),
    ("Stable Diffusion XL", "Large pictures; for 16 GB of memory and more", 6.9e9, "CreativeML Open RAIL++-M",
     "stabilityai/stable-diffusion-xl-base-1.0/sd_xl_base_1.0.safetensors"),
)  # fmt: skip

FORMS = (
    ("As it is, half precision", None, "float16"),
    ("8 bit: half of that, hardly a difference", 8, None),
    ("4 bit: a quarter, visibly less exact", 4, None),
    ("Full precision, for the CPU", None, "float32"),
)


class Row(QStyledItemDelegate):
    """Paints a model: name and size, below what it is or what is wrong; a bar while it is under way."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: N802
        """All are of one height."""
        return QSize(200, 2 * option.fontMetrics.lineSpacing() + 20)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """In the colours of the scheme."""
        item: Item = index.data(Role.ITEM)
        c, palette = theme.colours(), option.palette
        chosen = bool(option.state & QStyle.StateFlag.State_Selected)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        place = QRectF(option.rect).adjusted(2, 1, -2, -1)
        if chosen:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(palette.color(QPalette.ColorRole.Highlight))
            painter.drawRoundedRect(place, 6, 6)
        text = c.on_accent if chosen else c.text
        quiet = c.on_accent if chosen else c.quiet
        line = option.fontMetrics.lineSpacing()
        inner = place.adjusted(12, 8, -12, -8)
        top = QRectF(inner.left(), inner.top(), inner.width(), line)
        below = QRectF(inner.left(), top.bottom() + 2, inner.width(), line)
        bold = QFont(option.font)
        bold.setWeight(QFont.Weight.DemiBold)
        size = item.size
        room = option.fontMetrics.horizontalAdvance(size) + 16 if size else 0
        painter.setFont(bold)
        painter.setPen(text if item.usable or item.fraction is not None else quiet)
        _line(painter, top.adjusted(0, 0, -room, 0), item.title)
        painter.setFont(option.font)
        painter.setPen(quiet)
        painter.drawText(top, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, size)
        bad = item.state in ("no", "damaged", "not there", "stopped")
        if bad:
            sign = c.on_accent if chosen else c.amber if item.state in ("not there", "stopped") else c.red
            theme.draw(painter, "warning", QRectF(below.left(), below.center().y() - 7, 14, 14), QColor(sign))
            painter.setPen(QColor(sign))
            below.setLeft(below.left() + 20)
        running = item.state == "running"
        _line(painter, below.adjusted(0, 0, -170 if running else 0, 0), item.about)
        if running:
            bar = QRectF(below.right() - 150, below.center().y() - 2, 150, 4)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(c.line))
            painter.drawRoundedRect(bar, 2, 2)
            painter.setBrush(QColor(c.on_accent if chosen else c.accent))
            bar.setWidth(bar.width() * min(1.0, max(item.fraction or 0.0, 0.02)))
            painter.drawRoundedRect(bar, 2, 2)
        painter.restore()


def _line(painter: QPainter, place: QRectF, text: str) -> None:
    shown = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, int(place.width()))
    painter.drawText(place, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, shown)


class ModelSheet(QDialog):
    """What the window shows for "Models". `keeper` is asked for everything."""

    picked = Signal(str)  # a model to draw with, by its name or path

    def __init__(self, keeper: Keeper, parent: QWidget | None = None, here: bool = True):
        """`here`: the models are on this machine, so that files can be shown and dropped."""
        super().__init__(parent, Qt.WindowType.Sheet)
        self.setWindowTitle("Models")
        self.setWindowModality(Qt.WindowModality.WindowModal)
        self.setAcceptDrops(here)
        self.resize(660, 560)
        self.keeper, self._here = keeper, here
        self._source: Item | None = None
        self._awaited = ""  # a path that was added, until it is listed
        self.pages = QStackedWidget()
        self.pages.addWidget(self._list_page())
        self.pages.addWidget(self._get_page())
        self.pages.addWidget(self._convert_page())
        self.pages.addWidget(self._report_page())
        layout = QVBoxLayout(self)
        layout.setContentsMargins(20, 18, 20, 16)
        layout.addWidget(self.pages)
        keeper.refused.connect(self.say)
        keeper.written.connect(self._written)
        keeper.listed.connect(self._choose_awaited)
        keeper.shelf.modelReset.connect(self._follow)
        keeper.shelf.dataChanged.connect(self._follow)
        self._follow()

    # Pages.

    def _list_page(self) -> QWidget:
        page, layout, top = _page("Models")
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search models")
        self.search.setAccessibleName("Search models")
        self.search.setClearButtonEnabled(True)
        self.search.setFixedWidth(220)
        self.search.textChanged.connect(self.keeper.shelf.search)
        top.addWidget(self.search)

        self.card = QFrame()
        self.card.setObjectName("notice")
        words = QLabel("The model that is built in draws right away. Larger ones know much more of the world, and come "
                       "from the hub once; nothing you draw leaves this machine.")  # fmt: skip
        words.setWordWrap(True)
        more = _button("Get more…", self.show_get, primary=True)
        inside = QHBoxLayout(self.card)
        inside.setContentsMargins(14, 12, 14, 12)
        inside.setSpacing(14)
        inside.addWidget(words, 1)
        inside.addWidget(more)
        layout.addWidget(self.card)

        self.list = QListView()
        self.list.setModel(self.keeper.shelf)
        self.list.setItemDelegate(Row(self.list))
        self.list.setUniformItemSizes(True)
        self.list.setAccessibleName("Models")
        self.list.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.selectionModel().currentChanged.connect(lambda *_: self._follow())
        self.list.activated.connect(lambda _: self._use())
        layout.addWidget(self.list, 1)

        self.where = Elided()
        self.where.setProperty("quiet", True)
        self.why = QLabel()
        self.why.setWordWrap(True)
        self.why.setTextFormat(Qt.TextFormat.PlainText)
        self.why.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        layout.addSpacing(2)
        layout.addWidget(self.where)
        layout.addWidget(self.why)
        self.use_button = _button("Draw with It", self._use)
        self.convert_button = _button("Convert…", self.show_convert)
        self.go_button = _button("Continue", self._go_on)
        self.stop_button = _button("Stop", self._stop)
        self.show_button = _button(_reveal_words(), self._reveal)
        self.forget_button = _button("Forget", self._forget)
        self.trash_button = _button("Move to Trash", self._trash)
        buttons = (self.use_button, self.go_button, self.stop_button, self.convert_button, self.show_button,
                   self.forget_button, self.trash_button)  # fmt: skip
        layout.addLayout(_row(*buttons, None))
        layout.addSpacing(2)
        line = QFrame()
        line.setFixedHeight(1)
        line.setStyleSheet("background: palette(midlight);")
        layout.addWidget(line)
        layout.addSpacing(2)
        self.get_button = _button("Get…", self.show_get)
        self.file_button = _button("Add File…", self._choose_file)
        self.folder_button = _button("Add Folder…", self._choose_folder)
        self.done_button = _button("Done", self.accept)
        layout.addLayout(_row(self.get_button, self.file_button, self.folder_button, None, self.done_button))
        for button in (self.file_button, self.folder_button):
            button.setVisible(self._here)
        return page

    def _get_page(self) -> QWidget:
        page, layout, _ = _page("Get a Model")
        grid = QGridLayout()
        grid.setHorizontalSpacing(16)
        grid.setVerticalSpacing(2)
        grid.setColumnStretch(0, 1)
        self.some: list[QPushButton] = []
        for number, (name, what, size, licence, wanted) in enumerate(SOME):
            title, about, terms = QLabel(name), Elided(what), Elided(f"Licence: {licence}")
            font = title.font()
            font.setWeight(QFont.Weight.DemiBold)
            title.setFont(font)
            about.setProperty("quiet", True)
            terms.setProperty("quiet", True)
            weight = QLabel(f"about {gigabytes(int(size))}")
            weight.setProperty("quiet", True)
            button = _button("Download", lambda wanted=wanted: self._pull(wanted))
            button.setAccessibleName(f"Download {name}")
            self.some.append(button)
            row = 4 * number
            grid.addWidget(title, row, 0)
            grid.addWidget(about, row + 1, 0)
            grid.addWidget(terms, row + 2, 0)
            grid.addWidget(weight, row, 1, 3, 1, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight)
            grid.addWidget(button, row, 2, 3, 1, Qt.AlignmentFlag.AlignVCenter)
            grid.setRowMinimumHeight(row + 3, 16)
        layout.addSpacing(6)
        layout.addLayout(grid)
        other = QLabel("Any other model of the Hugging Face hub, by its name or web address:")
        other.setWordWrap(True)
        layout.addWidget(other)
        self.wanted = QLineEdit()
        self.wanted.setPlaceholderText("owner/name, or owner/name/file.safetensors")
        self.wanted.setAccessibleName("Name or web address of a model")
        self.wanted.returnPressed.connect(lambda: self._pull(self.wanted.text()))
        self.download_button = _button("Download", lambda: self._pull(self.wanted.text()), primary=True)
        self.download_button.setAccessibleName("Download the model with this name")
        self.wanted.textChanged.connect(lambda text: self.download_button.setEnabled(bool(text.strip())))
        self.download_button.setEnabled(False)
        field = QHBoxLayout()
        field.setSpacing(8)
        field.addWidget(self.wanted, 1)
        field.addWidget(self.download_button)
        layout.addLayout(field)
        note = QLabel("A download that is cut goes on where it stopped. You can also load a file in a browser and drop "
                      "it onto this sheet. Read a model’s licence on its page before you use it.")  # fmt: skip
        note.setProperty("quiet", True)
        note.setWordWrap(True)
        layout.addWidget(note)
        layout.addStretch(1)
        layout.addLayout(_row(_button("Back", self.show_list), None))
        return page

    def _convert_page(self) -> QWidget:
        page, layout, _ = _page("Convert")
        self.convert_about = QLabel()
        self.convert_about.setWordWrap(True)
        layout.addWidget(self.convert_about)
        grid = QGridLayout()
        grid.setHorizontalSpacing(12)
        grid.setVerticalSpacing(10)
        grid.setColumnStretch(1, 1)
        self.form = Combo()
        self.form.setAccessibleName("Form")
        for words, *_ in FORMS:
            self.form.addItem(words)
        self.form.currentIndexChanged.connect(lambda _: self._propose())
        self.target = QLineEdit()
        self.target.setAccessibleName("Name of the new model")
        self.target.textChanged.connect(self._check_target)
        for row, (words, widget) in enumerate((("Form", self.form), ("New name", self.target))):
            label = QLabel(words)
            label.setBuddy(widget)
            grid.addWidget(label, row, 0, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            grid.addWidget(widget, row, 1)
        layout.addLayout(grid)
        self.target_says = QLabel()
        self.target_says.setProperty("level", "red")
        self.target_says.setWordWrap(True)
        layout.addWidget(self.target_says)
        layout.addStretch(1)
        self.start_convert = _button("Convert", self._convert, primary=True)
        layout.addLayout(_row(_button("Back", self.show_list), None, self.start_convert))
        return page

    def _report_page(self) -> QWidget:
        page, layout, _ = _page("Converted")
        self.report = QPlainTextEdit()
        self.report.setReadOnly(True)
        self.report.setAccessibleName("What the converter wrote")
        layout.addWidget(self.report, 1)
        layout.addLayout(_row(None, _button("Done", self.show_list)))
        return page

    def add(self, path: str) -> None:
        """A checkpoint or a folder of them, in place; it is chosen when it is there, or said why not."""
        self._awaited = path
        self.show_list()
        self.keeper.add(path)

    def _choose_awaited(self) -> None:
        shelf = self.keeper.shelf
        for row in range(shelf.rowCount()):
            item = shelf.at(shelf.index(row))
            if self._awaited and item is not None and self._awaited in (item.path, item.folder):
                self._awaited = ""
                self.list.setCurrentIndex(shelf.index(row))

    def show_list(self) -> None:
        """The models that are here."""
        self.pages.setCurrentIndex(0)
        self.list.setFocus()

    def show_get(self) -> None:
        """Where models come from."""
        self.pages.setCurrentIndex(1)
        self.wanted.setFocus()

    def show_convert(self) -> None:
        """How the chosen model should be written."""
        item = self.current
        if item is not None:
            self._source = item
            self.convert_about.setText(f"‘{item.title}’ becomes a model folder of its own, which loads fastest. The "
                                       f"original stays as it is.")  # fmt: skip
            self._propose()
            self.pages.setCurrentIndex(2)
            self.target.setFocus()

    # What is shown.

    @property
    def current(self) -> Item | None:
        """The chosen row."""
        return self.keeper.shelf.at(self.list.currentIndex())

    def say(self, sentence: str) -> None:
        """What went wrong with what was asked; until another row is chosen."""
        restyle(self.why, level="red")
        self.why.setText(sentence)
        self.why.setVisible(True)

    def _follow(self) -> None:
        shelf, item = self.keeper.shelf, self.current
        if item is None and shelf.rowCount():
            self.list.setCurrentIndex(shelf.index(0))
            return
        only_embedded = all(one.origin == "embedded" for one in shelf.models) and not shelf.tasks
        self.card.setVisible(only_embedded)
        self.where.say(item.place if item and item.origin != "embedded" else "")
        self.where.setVisible(bool(self.where.whole))
        wrong = item.wrong if item else ""
        restyle(self.why, level="amber" if item and item.state in ("not there", "stopped") else "red")
        self.why.setText(wrong)
        self.why.setVisible(bool(wrong))
        state = item.state if item else ""
        files = item is not None and item.fraction is None and item.origin != "embedded"
        there = files and state != "not there"
        self.use_button.setVisible(state == "ready")
        self.go_button.setVisible(state == "stopped")
        self.stop_button.setVisible(state == "running")
        self.convert_button.setVisible(there and state == "ready")
        self.show_button.setVisible(there and self._here)
        self.forget_button.setVisible(bool(item and (item.forgettable or state == "stopped")))
        inside = item is not None and item.origin == "added" and item.path != item.folder
        self.forget_button.setText("Forget Its Folder" if inside else "Forget")
        self.trash_button.setVisible(there and self._here and item is not None and item.origin == "own")

    # What is asked for.

    def _pull(self, wanted: str) -> None:
        if wanted.strip():
            self.keeper.pull(wanted)
            self.wanted.clear()
            self.show_list()
            self.list.setCurrentIndex(self.keeper.shelf.index(max(0, self.keeper.shelf.row_of(wanted.strip()))))

    def _go_on(self) -> None:
        if self.current is not None:
            self.keeper.pull(self.current.name)

    def _stop(self) -> None:
        if self.current is not None:
            self.keeper.stop(self.current.name)

    def _use(self) -> None:
        item = self.current
        if item is not None and item.usable:
            self.picked.emit(item.path if item.origin == "added" else item.name)
            self.accept()

    def _forget(self) -> None:
        if self.current is not None:
            self.keeper.forget(self.current)

    def _trash(self) -> None:
        item = self.current
        if item is None or item.origin != "own":
            return
        moved = QFile.moveToTrash(item.path)
        if moved if isinstance(moved, bool) else moved[0]:
            self.keeper.changed.emit()
            self.keeper.refresh()
        else:
            self.say(f"‘{item.title}’ could not be moved to the Trash.")

    def _reveal(self) -> None:
        if self.current is not None:
            reveal(self.current.path)

    def _propose(self) -> None:
        if self._source is not None:
            base = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self._source.name).stem).strip("-._") or "model"
            _, bits, dtype = FORMS[self.form.currentIndex()]
            self.target.setText(f"{base}-{bits}bit" if bits else f"{base}-{'half' if dtype == 'float16' else 'full'}")

    def _check_target(self, name: str) -> None:
        taken = any(item.name == name for item in self.keeper.shelf.models)
        good = bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", name))
        says = f"There is a model called ‘{name}’ already." if taken else ""
        if name and not good:
            says = "A name has letters, digits, ‘.’, ‘_’ and ‘-’, and begins with one of the first two."
        self.target_says.setText(says)
        self.start_convert.setEnabled(good and not taken)

    def _convert(self) -> None:
        item = self._source
        if item is not None:
            _, bits, dtype = FORMS[self.form.currentIndex()]
            source = item.path if item.origin == "added" else item.name
            self.keeper.convert(source, self.target.text(), bits, dtype)
            self.show_list()
            self.list.setCurrentIndex(self.keeper.shelf.index(0))

    def _written(self, name: str, message: dict[str, Any]) -> None:
        self.report.setPlainText(report(name, message))
        self.pages.setCurrentIndex(3)

    def _choose_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Add a Checkpoint", "", CHECKPOINTS)
        if path:
            self.add(path)

    def _choose_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Add a Folder of Checkpoints")
        if path:
            self.add(path)

    # From outside.

    def showEvent(self, event: Any) -> None:  # noqa: N802
        """As it is now."""
        super().showEvent(event)
        self.keeper.refresh()
        self.list.setFocus()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Esc goes back a page before it closes; Return is the list's, not that of a button somewhere."""
        if event.key() == Qt.Key.Key_Escape and self.pages.currentIndex():
            self.show_list()
        elif event.key() == Qt.Key.Key_Escape:
            self.reject()
        elif event.matches(QKeySequence.StandardKey.Find):
            self.show_list()
            self.search.setFocus()
        else:
            event.ignore()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        """Files and folders are welcome."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        """Add them, in place."""
        event.acceptProposedAction()
        for url in event.mimeData().urls():
            if url.isLocalFile():
                self.add(url.toLocalFile())


PARTS = {"denoiser": "U-Net", "vae": "Autoencoder", "text": "Text encoder", "text_2": "Second text encoder"}


def report(name: str, message: dict[str, Any]) -> str:
    """What a conversion wrote, to be read and copied."""
    lines = [f"‘{name}’ is ready.", "", str(message.get("path") or ""), ""]
    parts = message.get("parts") if isinstance(message.get("parts"), dict) else {}
    for part, what in parts.items():  # type: ignore[union-attr]
        line = f"{PARTS.get(part, part)}: {gigabytes(what.get('bytes'))}, {int(what.get('values') or 0):,} numbers"
        if what.get("quantized"):
            line += (f"; {what['quantized']} matrices quantized, {gigabytes(what.get('saved'))} saved, "
                     f"error {100 * float(what.get('error') or 0):.2g} %")  # fmt: skip
        lines.append(line)
        lines += [f"    {count} kept as they were: {why}" for why, count in (what.get("kept") or {}).items()]
        if what.get("not_finite"):
            lines.append(f"    {what['not_finite']} are no finite numbers")
        lines.append(f"    sha256 {what.get('sha256') or 'unknown'}")
    return "\n".join(lines)


def reveal(path: str) -> None:
    """Show a file in the system's file manager: chosen where it can do that, else the folder it is in."""
    if sys.platform == "darwin":
        subprocess.Popen(["open", "-R", path])
    elif sys.platform == "win32":
        subprocess.Popen(["explorer", "/select,", path.replace("/", "\\")])
    else:
        folder = path if Path(path).is_dir() else str(Path(path).parent)
        QDesktopServices.openUrl(QUrl.fromLocalFile(folder))


def _reveal_words() -> str:
    return {"darwin": "Show in Finder", "win32": "Show in Explorer"}.get(sys.platform, "Show in Folder")


def _page(title: str) -> tuple[QWidget, QVBoxLayout, QHBoxLayout]:
    page = QWidget()
    layout = QVBoxLayout(page)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(10)
    heading = QLabel(title)
    heading.setProperty("heading", True)
    top = QHBoxLayout()
    top.addWidget(heading)
    top.addStretch(1)
    layout.addLayout(top)
    return page, layout, top


def _button(words: str, do: Any, primary: bool = False) -> QPushButton:
    button = QPushButton(words)
    button.setAutoDefault(False)
    if primary:
        button.setProperty("primary", True)
        button.setStyleSheet("padding: 5px 14px;")
    button.clicked.connect(lambda _=False: do())
    return button


def _row(*widgets: QWidget | None) -> QHBoxLayout:
    row = QHBoxLayout()
    row.setSpacing(8)
    for widget in widgets:
        if widget is None:
            row.addStretch(1)
        else:
            row.addWidget(widget)
    return row
