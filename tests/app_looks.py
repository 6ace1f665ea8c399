"""What can be said about a window's looks without eyes: `complaints(window)` lists it in sentences.

Clipped texts, widgets outside their parents, letters that the font has not (they would be boxes), and texts whose
contrast, measured in the drawn pixels, is below 4.5 (https://www.w3.org/TR/WCAG21/#contrast-minimum), and what takes
the focus without a name for screen readers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from PySide6.QtCore import QModelIndex, QRect, Qt
from PySide6.QtGui import QAccessible, QColor, QFontMetrics, QImage
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractScrollArea,
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QRadioButton,
    QToolButton,
    QWidget,
)

from mlxldm_app import theme

CONTRAST = 4.5
ROOM = 1  # pixels by which a layout may round


def complaints(window: QWidget) -> list[str]:
    """What is wrong with what a window shows now."""
    image = window.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    found = []
    for widget in window.findChildren(QWidget):
        if widget.isVisible() and widget.window() is window and not widget.visibleRegion().isEmpty():
            name = f"{type(widget).__name__} {widget.accessibleName() or widget.objectName() or spoken(widget)!r}"
            found += [f"{name}: {what}" for what in (*outside(widget), *clipped(widget), *unnamed(widget))]
            for text, place in texts(widget):
                lacking = sorted({one for one in text if one.isprintable() and not one.isspace()
                                  and not QFontMetrics(widget.font()).inFontUcs4(ord(one))})  # fmt: skip
                if lacking:
                    found.append(f"{name}: no glyphs for {lacking} in {text!r}")
                value = measured(image, widget, place)
                if value is not None and value < CONTRAST:
                    found.append(f"{name}: {text[:40]!r} has a contrast of {value:.2f}")
    return found


def spoken(widget: QWidget) -> str:
    """A widget's own text."""
    return widget.text() if isinstance(widget, QLabel | QAbstractButton) else ""


def outside(widget: QWidget) -> Iterator[str]:
    """Beyond its parent, unless that scrolls."""
    parent = widget.parentWidget()
    one: QWidget | None = widget
    while one is not None:
        if isinstance(one, QAbstractScrollArea) or isinstance(one.parentWidget(), QAbstractScrollArea):
            return
        one = one.parentWidget()
    if parent is not None and not widget.isWindow() and not parent.rect().contains(widget.geometry()):
        yield f"{widget.geometry()} is outside {parent.rect()}"


def clipped(widget: QWidget) -> Iterator[str]:
    """Less room than the text needs. What ends in … on purpose is not clipped; its tooltip has the rest."""
    metrics = QFontMetrics(widget.font())
    if isinstance(widget, QLabel):
        if widget.wordWrap() and widget.text():
            if widget.heightForWidth(widget.width()) > widget.height() + ROOM:
                yield f"{widget.text()[:60]!r} needs {widget.heightForWidth(widget.width())}, has {widget.height()}"
        elif widget.text() and widest(metrics, widget.text()) > widget.contentsRect().width() + ROOM:
            yield f"{widget.text()[:60]!r} needs {widest(metrics, widget.text())}, has {widget.width()}"
        if widget.text() and metrics.height() > widget.height() + ROOM:
            yield f"{widget.text()[:60]!r} is {metrics.height()} high and has {widget.height()}"
    elif isinstance(widget, QPushButton | QCheckBox | QRadioButton) and widget.text():
        icon = widget.iconSize().width() + 4 if not widget.icon().isNull() else 0
        sign = 22 if not isinstance(widget, QPushButton) else 0
        if widest(metrics, widget.text()) + icon + sign > widget.width() + ROOM:
            yield f"{widget.text()!r} needs {widest(metrics, widget.text()) + icon + sign}, has {widget.width()}"
        if metrics.height() > widget.height():
            yield f"{widget.text()!r} is {metrics.height()} high and has {widget.height()}"
    elif isinstance(widget, QComboBox):
        if metrics.horizontalAdvance(widget.currentText()) > widget.width() - 30:
            yield f"{widget.currentText()!r} needs {metrics.horizontalAdvance(widget.currentText())}"
    elif isinstance(widget, QAbstractSpinBox):
        line = widget.lineEdit()
        margins = line.textMargins()
        needs = metrics.horizontalAdvance(line.text()) + margins.left() + margins.right()
        if needs > line.width() + 2 * ROOM:
            yield f"{line.text()!r} needs {needs}, has {line.width()}"
    elif isinstance(widget, QLineEdit):
        needs = 0 if widget.text() else metrics.horizontalAdvance(widget.placeholderText()) + 8
        if needs > widget.width():
            yield f"{widget.placeholderText()!r} needs {needs}, has {widget.width()}"


def unnamed(widget: QWidget) -> Iterator[str]:
    """Takes the focus, and a screen reader has no name for it. A choice's own text is its value, not its name."""
    takes = widget.focusPolicy() & Qt.FocusPolicy.TabFocus and widget.focusProxy() is None and widget.isEnabled()
    if not takes or widget.objectName().startswith("qt_") or type(widget) is QWidget:
        return
    about = QAccessible.queryAccessibleInterface(widget)
    name = widget.accessibleName() if isinstance(widget, QComboBox) else about.text(QAccessible.Text.Name)
    if not name.strip():
        yield "has no name for screen readers"


def widest(metrics: QFontMetrics, text: str) -> int:
    """Pixels of its longest line; an & is the line below a letter."""
    return max(metrics.horizontalAdvance(line) for line in text.replace("&&", "\0").replace("&", "").split("\n"))


def texts(widget: QWidget) -> Iterator[tuple[str, QRect]]:
    """What a widget has written, and where in it."""
    if isinstance(widget, QLabel) and widget.text():
        yield widget.text(), widget.rect()
    elif isinstance(widget, QAbstractButton) and widget.text():
        tool = isinstance(widget, QToolButton) and widget.toolButtonStyle() == Qt.ToolButtonStyle.ToolButtonIconOnly
        if not tool:
            yield widget.text(), widget.rect()
    elif isinstance(widget, QComboBox) and widget.currentText():
        yield widget.currentText(), widget.rect().adjusted(4, 4, -24, -4)
    elif isinstance(widget, QLineEdit) and (widget.text() or widget.placeholderText()):
        yield widget.text() or widget.placeholderText(), widget.rect().adjusted(3, 3, -3, -3)
    elif isinstance(widget, QPlainTextEdit) and (widget.toPlainText() or widget.placeholderText()):
        yield widget.toPlainText() or widget.placeholderText(), widget.rect().adjusted(3, 3, -12, -3)
    elif isinstance(widget, QAbstractItemView) and widget.accessibleName() != "Pictures":  # those write nothing
        for row in range(min(widget.model().rowCount(QModelIndex()), 200)):
            index = widget.model().index(row, 0)
            text, place = index.data(Qt.ItemDataRole.DisplayRole), widget.visualRect(index)
            if isinstance(text, str) and text and widget.viewport().rect().contains(place):
                yield text, place.translated(widget.viewport().pos())


def measured(image: QImage, widget: QWidget, place: QRect) -> float | None:
    """The contrast of what is written there: its ground is the commonest colour, its ink the one farthest from that.

    None where that cannot be told: over a picture, or where most of it is covered.
    """
    scale = image.devicePixelRatio()
    corner = widget.mapTo(widget.window(), place.topLeft())
    seen = widget.visibleRegion().boundingRect()
    if not seen.contains(place.adjusted(2, 2, -2, -2) & widget.rect()):
        return None
    rect = QRect(round(corner.x() * scale), round(corner.y() * scale), round(place.width() * scale),
                 round(place.height() * scale)) & image.rect()  # fmt: skip
    part = image.copy(rect)  # with a name: its bytes live no longer than it
    counts: Counter[int] = Counter(memoryview(bytes(part.constBits())).cast("I"))
    ground, most = counts.most_common(1)[0] if counts else (0, 0)
    if not counts or most < 0.35 * counts.total():
        return None
    name = QColor(ground).name()
    inks = [colour for colour, count in counts.items() if colour != ground and count > 1] or [ground]
    return max(theme.contrast(QColor(colour).name(), name) for colour in inks)
