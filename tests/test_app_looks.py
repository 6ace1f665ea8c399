"""That the checks of a window's looks find what is wrong, and that nothing is: sheets, pages, the order of Tab."""

from __future__ import annotations

import pytest
from app_looks import complaints, spoken
from app_things import application, gone, spend, until
from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QComboBox, QLabel, QLineEdit, QPushButton, QSpinBox, QToolButton, QWidget
from test_app_window import files, opened, place  # noqa: F401

from mlxldm.job import Job
from mlxldm_app import probe
from mlxldm_app.remote import Place


@pytest.fixture
def page():
    """An empty window to put something wrong into."""
    application()
    made = QWidget()
    made.resize(300, 200)
    yield made
    made.close()
    gone(made)


def label(parent: QWidget, text: str, style: str = "") -> QLabel:
    made = QLabel(text, parent)
    made.setGeometry(10, 10, 200, 30)
    made.setStyleSheet(style)
    return made


def wrong(page: QWidget) -> str:
    page.show()
    spend(0.05)
    return " ".join(complaints(page))


def test_nothing_is_wrong_with_a_label(page):
    label(page, "All of this can be read")
    assert wrong(page) == ""


def test_what_is_clipped(page):
    label(page, "Of this text not even a half is to be seen here, since its label is narrow").setFixedWidth(90)
    box = QSpinBox(page)
    box.setAccessibleName("Box")
    box.setRange(0, 10**8)
    box.setValue(10**8)
    box.setGeometry(10, 60, 40, 26)
    assert wrong(page).count(" needs ") == 2


def test_what_is_outside(page):
    label(page, "Outside").move(200, 10)
    assert "is outside" in wrong(page)


def test_what_the_font_has_not(page):
    label(page, "A box: \U00013000")
    assert "no glyphs for ['\U00013000']" in wrong(page)


def test_what_is_too_pale(page):
    label(page, "Pale words", "color: #9a9aa0; background: #f6f6f8;")
    assert "has a contrast of 2." in wrong(page)


@pytest.mark.parametrize("kind", [QLineEdit, QToolButton, QComboBox])
def test_what_has_no_name(page, kind):
    widget = kind(page)
    widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    assert "has no name for screen readers" in wrong(page)
    widget.setAccessibleName("What it is")
    assert wrong(page) == ""


# The window and what is opened from it; tools/screens.py looks at far more states.


@pytest.mark.parametrize("size", [(1280, 800), (1024, 640)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_window_and_its_pages(opened, place, scheme, size):  # noqa: F811
    files(place, 5)
    window = opened("--loras", size=size)
    window.set_appearance(scheme)
    until(lambda: len(window.gallery_model.shown) == 5)
    window.panel.show_job(Job(prompt="fine", model="dreamshaper-8", count=64, loras=("ink wash:0.8", "xl-film:0.5")))
    window.panel.disclosure.setChecked(True)
    window.panel.advanced.button.setChecked(True)
    window._add(Job(prompt="fault", seed=1))
    until(lambda: window.viewer.bar.isVisible())
    assert complaints(window) == []
    for command in (window.do_mask, window.do_compare):
        command()
        spend(0.1)
        assert complaints(window) == []
    window.set_appearance("light")


def test_what_is_opened_from_the_window(opened, place, monkeypatch):  # noqa: F811
    monkeypatch.setattr(probe.Probe, "start", lambda self: None)
    files(place, 1)
    window = opened()
    until(lambda: window.shown is not None)
    for command in (window.do_details, window.do_shortcuts, window.do_about, window.do_preferences):
        command()
    window.desk.show_backends(window.panel.backend)
    popover = window.desk._popovers["Where pictures are made"]
    popover.show_here(probe.Found("CPU", "mlx", 16 << 30, "0", 1, (
        {"name": "mlx", "ready": True, "version": "0", "devices": ["cpu"], "device_name": "CPU"},)))  # fmt: skip
    popover._answered("ada@studio.local", probe.Found("RTX 4090", "torch", 24 << 30, "0", 12))
    spend(0.1)
    assert popover.isVisible() and complaints(popover) == []
    keeper = window.desk.keeper(Place())
    monkeypatch.setattr(keeper, "refresh", keeper.listed.emit)
    keeper.shelf.show_models([{"name": "own", "state": "ready", "path": "/own", "bytes": 10**9, "origin": "own"}])
    window.desk.show_models()
    sheet = window.desk._sheets[""]
    sheet.list.setCurrentIndex(keeper.shelf.index(0))
    spend(0.3)
    above = [one for one in QApplication.topLevelWidgets() if one.isVisible() and one is not window]
    assert len(above) == 5 and sheet.isVisible()
    for one in above:
        assert complaints(one) == [], one.windowTitle()
    for show in (sheet.show_get, sheet.show_convert, lambda: sheet.keeper.written.emit("own", {"path": "/own"})):
        show()
        spend(0.1)
        assert complaints(sheet) == []
    for one in above:
        one.close()


def test_tab_goes_as_one_reads(opened, place):  # noqa: F811
    files(place, 5)
    window = opened(size=(1280, 1000))
    until(lambda: window.shown is not None)
    window.panel.disclosure.setChecked(True)
    window.start_from(window.shown.path)
    spend(0.2)
    window.panel.model.setFocus()
    went: list[QWidget] = []
    while (at := window.focusWidget()) not in went:
        went.append(at)
        QTest.keyClick(at, Qt.Key.Key_Tab)
    columns = [window.panel, window.viewer, window.side]
    before = (0, -1, 0)
    for widget in went:
        column = next(number for number, one in enumerate(columns) if one.isAncestorOf(widget))
        corner = widget.mapTo(window, QPoint(0, 0))
        below = corner.y() > before[1] + 8
        beside = abs(corner.y() - before[1]) <= 8 and corner.x() > before[2]
        assert column > before[0] or (column == before[0] and (below or beside)), (widget, spoken(widget), before)
        before = (column, corner.y(), corner.x())
    missing = [
        widget for widget in window.findChildren(QWidget)
        if widget.isVisible() and widget.isEnabled() and widget.focusPolicy() & Qt.FocusPolicy.TabFocus
        and widget.focusProxy() is None and type(widget) is not QWidget and widget not in went
        and isinstance(widget, QPushButton | QToolButton | QLineEdit | QComboBox)
        and not widget.objectName().startswith("qt_")
    ]  # fmt: skip
    assert not missing
