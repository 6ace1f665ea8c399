"""The app's settings: their types, what they refuse, and the page."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

pytest.importorskip("PySide6.QtWidgets", reason="Qt is not here, or not all of it", exc_type=ImportError)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import QSettings, Qt  # noqa: E402
from PySide6.QtTest import QTest  # noqa: E402
from PySide6.QtWidgets import QApplication, QCheckBox, QWidget  # noqa: E402

from mlxldm_app.naming import file_name, wrong_pattern  # noqa: E402
from mlxldm_app.settings import SETTINGS, Settings  # noqa: E402
from mlxldm_app.settings_page import SettingsPage  # noqa: E402


@pytest.fixture
def store(tmp_path: Path) -> QSettings:
    QApplication.instance() or QApplication([])
    return QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat)


def test_values_keep_their_types_over_a_restart(store: QSettings):
    settings = Settings(store)
    assert all(settings.get(name) == setting.default for name, setting in SETTINGS.items())
    wanted = {"inside": False, "memory": 24, "hosts": ["a@b", "c.local"], "place": "torch cuda:1", "appearance": "dark"}
    for name, value in wanted.items():
        settings.set(name, value)
    store.sync()
    again = Settings(QSettings(store.fileName(), QSettings.Format.IniFormat))
    assert {name: again.get(name) for name in wanted} == wanted
    again.reset()
    kept = ("hosts", "place")
    assert all(again.get(name) == setting.default for name, setting in SETTINGS.items() if name not in kept)
    assert again.get("hosts") == wanted["hosts"], "other machines are no defaults"


@pytest.mark.parametrize(("name", "value"), [("memory", 7), ("memory", "8"), ("inside", 1), ("previews", "often"),
                                             ("pattern", "{seed}/../x"), ("appearance", "red")])  # fmt: skip
def test_what_makes_no_sense_is_refused_and_read_as_the_default(store: QSettings, name: str, value: object):
    settings = Settings(store)
    with pytest.raises(ValueError):
        settings.set(name, value)
    store.setValue(name, "nonsense {")
    assert settings.get(name) == SETTINGS[name].default


def test_hosts_that_could_be_options_are_dropped(store: QSettings):
    settings = Settings(store)
    settings.set("hosts", ["-oProxyCommand=x", "a b", "fine", "fine"])
    assert settings.get("hosts") == ["fine"]
    settings.set("place", "ssh -oProxyCommand=x")
    assert settings.get("place") == "auto"


def test_a_change_is_said_once(store: QSettings):
    settings, said = Settings(store), []
    settings.changed.connect(lambda *what: said.append(what))
    settings.set("awake", False)
    settings.set("awake", False)
    assert said == [("awake", False)]


def test_names_of_files():
    facts = (datetime(2026, 11, 20), 7, "A lighthouse, on/a cliff ../..", 42, "owner/my model.ckpt")
    assert file_name("{day}/{number}-{prompt}", *facts) == "2026-11-20/0007-a-lighthouse-on-a-cliff"
    assert file_name("{model}-{seed}", *facts) == "my-model.ckpt-42"
    assert file_name("{prompt}-{seed}", facts[0], 1, "/..", 3, "..") == "picture-3"
    assert not wrong_pattern("{day}/{seed}")
    for bad in ("", "/{seed}", "{seed}/", "../{seed}", "{what}{seed}", "{prompt}", "{seed", "a:{seed}", "{seed}/x",
                "{number}/{seed}"):  # fmt: skip
        assert wrong_pattern(bad), bad


def test_the_page_changes_at_once_and_is_whole(store: QSettings):
    settings = Settings(store)
    page = SettingsPage(settings, "/pictures")
    page.show()
    QApplication.processEvents()
    QTest.mouseClick(page.awake, Qt.MouseButton.LeftButton)
    assert settings.get("awake") is False
    page.pattern.selectAll()
    QTest.keyClicks(page.pattern, "{day}/{nothing}")
    assert settings.get("pattern") == SETTINGS["pattern"].default and "nothing" in page.example.text()
    page.pattern.selectAll()
    QTest.keyClicks(page.pattern, "{seed}")
    assert settings.get("pattern") == "{seed}" and page.example.text() == "42.png"
    page.appearance.setFocus()
    QTest.keyClick(page.appearance, Qt.Key.Key_Down)
    assert settings.get("appearance") == "light"
    page.reset_button.click()
    assert settings.get("awake") is True and page.awake.isChecked() and page.pattern.text() == "{day}/{number}-{prompt}"
    for widget in page.findChildren(QWidget):
        if widget.focusPolicy() != Qt.FocusPolicy.NoFocus and widget.isVisible():
            assert widget.accessibleName() or getattr(widget, "text", lambda: "")(), widget
        if widget.isVisible() and widget.parent() is page:
            assert page.rect().contains(widget.geometry()), widget
    for box in page.findChildren(QCheckBox):
        assert box.width() >= box.sizeHint().width(), box.text()
    page.close()
