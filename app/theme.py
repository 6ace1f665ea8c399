"""Colours, and the little style sheet that goes with them. Explicit in both schemes, so that every system shows what
was looked at: asked for a dark scheme, Qt without a desktop gives a light one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QGuiApplication, QIcon, QPainter, QPainterPath, QPalette, QPen, QPixmap, QPolygonF
from PySide6.QtWidgets import QApplication, QStyleFactory


@dataclass(frozen=True)
class Colours:
    """One scheme. Every pair of text and ground has a contrast of 4.5 or more; a test computes it."""

    window: str
    base: str  # of fields
    raised: str  # of buttons
    pressed: str
    canvas: str  # behind the picture
    line: str
    border: str  # of fields and buttons
    text: str
    quiet: str  # less important text
    accent: str  # fills
    on_accent: str
    ring: str  # the accent as a line on the window
    amber: str
    red: str
    notice: str  # behind the bar


LIGHT = Colours("#f6f6f8", "#ffffff", "#ffffff", "#e6e6eb", "#ececf0", "#dcdce2", "#cdcdd4", "#1c1c1f", "#63636b",
                "#0a64d6", "#ffffff", "#0a64d6", "#8a5200", "#bd1f14", "#fff4dc")  # fmt: skip
DARK = Colours("#1f1f22", "#29292d", "#34343a", "#44444b", "#17171a", "#34343a", "#45454d", "#f1f1f4", "#a6a6b0",
               "#1a6fe0", "#ffffff", "#5aa2ff", "#f2b645", "#ff8379", "#3a3222")  # fmt: skip


def colours() -> Colours:
    """The scheme that is on."""
    app = QApplication.instance()
    return DARK if app is not None and app.property("dark") else LIGHT


def apply(app: QApplication, appearance: str = "system") -> None:
    """Put on a scheme: "light", "dark", or the system's."""
    dark = appearance == "dark"
    if appearance == "system":
        dark = app.styleHints().colorScheme() == Qt.ColorScheme.Dark
    app.setProperty("dark", dark)
    app.setStyle(QStyleFactory.create("Fusion"))
    app.setPalette(palette(colours()))
    app.setStyleSheet(sheet(colours()))


def palette(c: Colours) -> QPalette:
    """The scheme as Qt wants it."""
    made, role = QPalette(), QPalette.ColorRole
    for which, colour in (
        (role.Window, c.window), (role.WindowText, c.text), (role.Base, c.base), (role.AlternateBase, c.window),
        (role.Text, c.text), (role.Button, c.raised), (role.ButtonText, c.text), (role.BrightText, c.red),
        (role.Highlight, c.accent), (role.HighlightedText, c.on_accent), (role.PlaceholderText, c.quiet),
        (role.ToolTipBase, c.base), (role.ToolTipText, c.text), (role.Link, c.ring), (role.Midlight, c.line),
        (role.Mid, c.border), (role.Light, c.raised), (role.Dark, c.border), (role.Shadow, c.border),
    ):  # fmt: skip
        made.setColor(which, QColor(colour))
    for which in (role.WindowText, role.Text, role.ButtonText):
        made.setColor(QPalette.ColorGroup.Disabled, which, QColor(c.quiet))
    return made


def sheet(c: Colours) -> str:
    """What a palette cannot say."""
    return f"""
    QWidget {{ outline: none; }}
    QToolTip {{ color: {c.text}; background: {c.base}; border: 1px solid {c.border}; padding: 4px; }}
    QPlainTextEdit, QLineEdit, QSpinBox, QDoubleSpinBox {{ background: {c.base}; border: 1px solid {c.border};
        border-radius: 6px; padding: 3px 6px; selection-background-color: {c.accent}; selection-color: {c.on_accent}; }}
    QPlainTextEdit {{ padding: 3px 2px; }}
    QLineEdit {{ min-height: 20px; }}
    QLineEdit QToolButton {{ min-width: 0; min-height: 0; border: none; background: transparent; }}
    QPlainTextEdit:focus, QLineEdit:focus, QSpinBox:focus, QDoubleSpinBox:focus {{ border: 1px solid {c.ring}; }}
    QAbstractSpinBox::up-button, QAbstractSpinBox::down-button {{ width: 0; border: none; }}
    QAbstractSpinBox QLineEdit {{ border: none; border-radius: 0; padding: 0; min-height: 0;
        background: transparent; }}
    QComboBox, QPushButton, QToolButton {{ background: {c.raised}; color: {c.text}; border: 1px solid {c.border};
        border-radius: 6px; padding: 4px 10px; min-height: 18px; }}
    QComboBox {{ padding-right: 22px; }}
    QComboBox::drop-down {{ border: none; width: 22px; }}
    QComboBox::down-arrow {{ image: none; }}
    QComboBox QAbstractItemView {{ background: {c.base}; border: 1px solid {c.border}; padding: 4px;
        selection-background-color: {c.accent}; selection-color: {c.on_accent}; }}
    QPushButton:hover, QToolButton:hover, QComboBox:hover {{ border-color: {c.quiet}; }}
    QPushButton:pressed, QToolButton:pressed {{ background: {c.pressed}; }}
    QPushButton:focus, QToolButton:focus, QComboBox:focus {{ border: 1px solid {c.ring}; }}
    QPushButton:disabled, QToolButton:disabled, QComboBox:disabled {{ color: {c.quiet}; background: {c.window}; }}
    QToolButton {{ padding: 0; min-height: 26px; max-height: 26px; min-width: 28px; }}
    QToolButton::menu-indicator, QPushButton::menu-indicator {{ image: none; }}
    QPushButton[primary="true"] {{ background: {c.accent}; color: {c.on_accent}; border: 1px solid {c.accent};
        border-radius: 8px; padding: 7px; font-weight: 600; }}
    QPushButton[primary="true"]:hover {{ border-color: {c.text}; }}
    QPushButton[primary="true"]:focus {{ border: 1px solid {c.text}; }}
    QPushButton[primary="true"]:disabled {{ background: {c.pressed}; color: {c.text}; border-color: {c.border}; }}
    QPushButton[flat="true"], QToolButton[flat="true"] {{ background: transparent; border: 1px solid transparent;
        text-align: left; padding: 3px 4px 3px 0; }}
    QToolButton[flat="true"] {{ padding: 0; min-width: 24px; min-height: 24px; max-height: 24px; }}
    QPushButton[flat="true"]:hover, QToolButton[flat="true"]:hover {{ background: {c.pressed}; }}
    QPushButton[flat="true"]:focus, QToolButton[flat="true"]:focus {{ border: 1px solid {c.ring}; }}
    QLabel[quiet="true"], QPushButton[quiet="true"] {{ color: {c.quiet}; }}
    QLabel[level="amber"] {{ color: {c.amber}; }}
    QLabel[level="red"] {{ color: {c.red}; }}
    QLabel[heading="true"] {{ font-size: 17px; font-weight: 600; }}
    QSplitter::handle {{ background: {c.line}; }}
    QScrollArea, QScrollArea > QWidget > QWidget {{ background: transparent; border: none; }}
    QFrame#notice {{ background: {c.notice}; border: 1px solid {c.border}; border-radius: 8px; }}
    QFrame#popover {{ border: 1px solid {c.border}; }}
    QFrame#well {{ border: none; background: transparent; }}
    QListView {{ background: transparent; border: none; }}
    QListView:focus {{ border: none; }}
    QTableWidget {{ background: transparent; border: 1px solid transparent; border-radius: 6px; }}
    QTableWidget:focus {{ border-color: {c.ring}; }}
    QHeaderView, QHeaderView::section {{ background: transparent; color: {c.quiet}; border: none; padding: 2px; }}
    QListView#proposals {{ background: {c.base}; border: 1px solid {c.border}; padding: 3px; }}
    QListView#proposals::item {{ padding: 3px 6px; border-radius: 4px; }}
    QListView#proposals::item:selected {{ background: {c.accent}; color: {c.on_accent}; }}
    QRadioButton, QCheckBox {{ spacing: 8px; }}
    QRadioButton::indicator {{ width: 14px; height: 14px; border: 1px solid {c.quiet}; border-radius: 8px;
        background: {c.base}; }}
    QRadioButton::indicator:checked {{ width: 6px; height: 6px; border: 5px solid {c.accent};
        background: {c.on_accent}; }}
    QRadioButton::indicator:focus {{ border-color: {c.ring}; }}
    QSlider {{ min-height: 20px; }}
    QSlider::groove:horizontal {{ height: 4px; border-radius: 2px; background: {c.border}; }}
    QSlider::sub-page:horizontal {{ height: 4px; border-radius: 2px; background: {c.accent}; }}
    QSlider::sub-page:horizontal:disabled {{ background: {c.border}; }}
    QSlider::handle:horizontal {{ width: 14px; height: 14px; margin: -6px 0; border-radius: 8px; background: {c.base};
        border: 1px solid {c.quiet}; }}
    QSlider::handle:horizontal:focus {{ border: 1px solid {c.ring}; background: {c.ring}; }}
    QProgressBar {{ background: {c.line}; border: none; border-radius: 2px; max-height: 4px; min-height: 4px; }}
    QProgressBar::chunk {{ background: {c.accent}; border-radius: 2px; }}
    QScrollBar:vertical {{ background: transparent; width: 10px; margin: 0; }}
    QScrollBar:horizontal {{ background: transparent; height: 10px; margin: 0; }}
    QScrollBar::handle {{ background: {c.border}; border-radius: 3px; margin: 2px; min-height: 28px; min-width: 28px; }}
    QScrollBar::handle:disabled {{ background: transparent; }}
    QScrollBar::handle:hover {{ background: {c.quiet}; }}
    QScrollBar::add-line, QScrollBar::sub-line {{ width: 0; height: 0; }}
    QScrollBar::add-page, QScrollBar::sub-page {{ background: transparent; }}
    QMenuBar {{ background: {c.window}; color: {c.text}; border-bottom: 1px solid {c.line}; padding: 1px 4px; }}
    QMenuBar::item {{ padding: 3px 9px; border-radius: 4px; background: transparent; }}
    QMenuBar::item:selected {{ background: {c.pressed}; }}
    QMenu {{ background: {c.base}; color: {c.text}; border: 1px solid {c.border}; padding: 4px; }}
    QMenu::item {{ padding: 4px 28px 4px 22px; border-radius: 4px; }}
    QMenu::item:selected {{ background: {c.accent}; color: {c.on_accent}; }}
    QMenu::item:disabled {{ color: {c.quiet}; background: transparent; }}
    QMenu::separator {{ height: 1px; background: {c.line}; margin: 4px 8px; }}
    """


def contrast(one: str, other: str) -> float:
    """The contrast of two colours (WCAG 2.1, https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio), 1 to 21."""

    def luminance(name: str) -> float:
        colour = QColor(name)
        values = (colour.redF(), colour.greenF(), colour.blueF())
        parts = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# Icons, drawn: a font may lack the sign, and then shows a box.


def scales() -> list[int]:
    """Pixels for a point, of the screens that are here: for others too, signs alone would take megabytes."""
    return sorted({math.ceil(screen.devicePixelRatio()) for screen in QGuiApplication.screens()})


def icon(name: str, colour: str | None = None, side: int = 16) -> QIcon:
    """A small sign in the text's colour, sharp on every screen."""
    made = QIcon()
    for scale in scales():
        pixmap = QPixmap(QSize(side, side) * scale)
        pixmap.setDevicePixelRatio(scale)
        pixmap.fill(Qt.GlobalColor.transparent)
        painter = QPainter(pixmap)
        draw(painter, name, QRectF(0, 0, side, side), QColor(colour or colours().text))
        painter.end()
        made.addPixmap(pixmap)
    return made


def draw(painter: QPainter, name: str, place: QRectF, colour: QColor) -> None:
    """A sign into a square."""
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.translate(place.topLeft())
    painter.scale(place.width() / 16, place.height() / 16)
    pen = QPen(colour, 1.5, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, Qt.PenJoinStyle.RoundJoin)
    painter.setPen(pen)
    strokes: dict[str, list[list[tuple[float, float]]]] = {
        "close": [[(4, 4), (12, 12)], [(12, 4), (4, 12)]],
        "pause": [[(5.5, 4), (5.5, 12)], [(10.5, 4), (10.5, 12)]],
        "open": [[(4, 6), (8, 10), (12, 6)]],
        "closed": [[(6, 4), (10, 8), (6, 12)]],
        "swap": [[(2.5, 5.5), (13, 5.5)], [(10, 2.5), (13, 5.5), (10, 8)],
                 [(13.5, 11), (3, 11)], [(6, 8.3), (3, 11), (6, 13.7)]],
        "take": [[(13, 3), (13, 9), (4, 9)], [(7, 6), (4, 9), (7, 12)]],
        "tick": [[(4, 8.5), (7, 11.5), (12, 5)]],
        "info": [[(8, 7.5), (8, 11)], [(8, 4.9), (8, 5)]],
        "warning": [[(8, 2.5), (14.5, 13.5), (1.5, 13.5), (8, 2.5)], [(8, 6.5), (8, 9.5)], [(8, 11.5), (8, 11.6)]],
    }  # fmt: skip
    for stroke in strokes.get(name, []):
        painter.drawPolyline(QPolygonF([QPointF(x, y) for x, y in stroke]))
    if name in ("play", "more", "dot"):
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(colour)
        if name == "play":
            painter.drawPolygon(QPolygonF([QPointF(5, 3.5), QPointF(12.5, 8), QPointF(5, 12.5)]))
        for x in {"more": (3, 8, 13), "dot": (8,)}.get(name, ()):
            radius = 1.4 if name == "more" else 3.5
            painter.drawEllipse(QPointF(x, 8), radius, radius)
    if name == "info":
        painter.drawEllipse(QPointF(8, 8), 6.2, 6.2)
    if name == "search":
        painter.drawEllipse(QPointF(7, 7), 4, 4)
        painter.drawLine(QPointF(10, 10), QPointF(13.5, 13.5))
    if name in ("heart", "heart_open"):
        path = QPainterPath(QPointF(8, 13.5))
        path.cubicTo(1, 8.5, 1.5, 3, 5, 3)
        path.cubicTo(6.7, 3, 7.6, 4.2, 8, 5)
        path.cubicTo(8.4, 4.2, 9.3, 3, 11, 3)
        path.cubicTo(14.5, 3, 15, 8.5, 8, 13.5)
        if name == "heart":
            painter.setPen(QPen(QColor(0, 0, 0, 110), 0.8))
            painter.setBrush(colour)
        painter.drawPath(path)
    painter.restore()
