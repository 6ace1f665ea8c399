"""LoRAs and textual inversions in the window: rows, what fits, what is completed, what a picture says of them."""

from __future__ import annotations

import adapter_files
import pytest
from app_things import application, command, gone, spend, until
from conftest import needs_mlx
from PySide6.QtCore import QMimeData, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent, QImage, QTextCursor, QUndoStack
from PySide6.QtTest import QTest

from mlxldm.adapters import Wish, wish
from mlxldm.job import Job
from mlxldm_app.adapters import Wardrobe, Wear, told, unused
from mlxldm_app.client import Client
from mlxldm_app.errors import Notice
from mlxldm_app.lora_rows import LoraRows
from mlxldm_app.prompts import Name, Names, Prompt
from mlxldm_app.weights import reweighed
from mlxldm_app.window import Window

CONTROL = Qt.KeyboardModifier.ControlModifier
ROWS = [
    {"name": "ink", "what": "LoRA", "kind": "lora", "bytes": 36_000_000, "path": "/l/ink.safetensors", "fits": True,
     "words": ["in ink", "old & new"], "weight": 0.7},
    {"name": "/far/Dust.safetensors", "what": "LoRA", "path": "/far/Dust.safetensors", "fits": True, "words": []},
    {"name": "film", "what": "LoRA", "path": "/l/film.pt", "fits": False, "why": "It was made for XL.", "words": ["f"]},
    {"name": "bad-hands", "what": "textual inversion", "path": "/l/bad-hands.pt", "fits": True, "words": ["bad-hands"]},
    {"name": "cat", "what": "textual inversion", "path": "/l/cat.pt", "fits": True, "words": ["<sks>", "cat"]},
]  # fmt: skip


@pytest.fixture
def rows():
    application()
    made = LoraRows(QUndoStack())
    made.resize(280, 600)
    made.setAttribute(Qt.WidgetAttribute.WA_DontShowOnScreen)
    yield made
    gone(made)


@pytest.fixture
def window(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXLDM_HOME", str(tmp_path / "home"))
    application()
    made = Window(Client(command("--loras")))
    made.show()
    made.activateWindow()
    until(lambda: made.client.greeting and made.panel.model.count() > 1 and made.panel.loras.wardrobe.all)
    yield made
    made.close()
    gone(made, made.client)


# What a job says.


@pytest.mark.parametrize("text", [
    "ink", "ink:0.8", "a b (v2):-1", "ink:0.5:0.25", "ink:1:lbw=1,0,1", "ink:.5:2:lbw=" + ",".join("1" * 17),
    "C:/l/ink.pt:2",
])  # fmt: skip
def test_a_row_reads_a_text_as_the_library_does_and_writes_it_back(text):
    wear, asked = Wear.of(text), wish(text.replace("lbw=1,0,1", "lbw=" + ",".join("1" * 12)))
    assert (wear.name, wear.weight, wear.text) == (asked.name, asked.strength, text)
    if "lbw" not in text:
        again = wish(wear.weighing(-0.35).text)
        assert again == Wish(asked.name, -0.35, asked.text_strength)


def test_what_is_registered_is_found_by_all_its_names():
    wardrobe = Wardrobe(ROWS)
    assert [one.title for one in wardrobe.loras] == ["Dust", "ink"]
    for name in ("ink", "INK", "ink.safetensors", "/l/ink.safetensors"):
        assert wardrobe.get(name) is wardrobe.all[0]
    assert wardrobe.get("nothing") is None


# Rows.


def test_there_is_nothing_where_there_is_no_lora(rows):
    assert rows.isHidden()
    rows.show_wardrobe(Wardrobe(ROWS[2:]))
    assert rows.isHidden(), "one for another model is none"
    rows.show_wardrobe(Wardrobe(ROWS))
    assert not rows.isHidden() and not rows.rows


def test_what_is_added_weighed_turned_off_and_removed_can_be_undone(rows):
    wardrobe, undo = Wardrobe(ROWS), rows._undo
    rows.show_wardrobe(wardrobe)
    rows.add(wardrobe.all[0])
    assert rows.texts() == ("ink:0.7",), "with the weight that its file says"
    rows.add(wardrobe.all[1])
    assert rows.texts() == ("ink:0.7", "/far/Dust.safetensors:1")
    row = rows.rows[0]
    for value in (30, 40, 150):
        row.weight.slider.setValue(value)
    assert rows.texts()[0] == "ink:1.5" and rows.rows[0] is row
    undo.undo()
    assert rows.texts()[0] == "ink:0.7" and row.weight.value == 0.7, "a drag is one step"
    undo.redo()
    assert rows.texts()[0] == "ink:1.5"
    row.switch.click()
    assert rows.texts() == ("/far/Dust.safetensors:1",) and not row.weight.isEnabled()
    undo.undo()
    assert len(rows.texts()) == 2 and row.switch.isChecked()
    row.switch.click()
    rows.add(wardrobe.all[0])
    assert len(rows.rows) == 2 and rows.texts()[0] == "ink:1.5", "what is there is turned on"
    row.close_button.click()
    until(lambda: len(rows.rows) == 1)
    undo.undo()
    assert rows.texts()[0] == "ink:1.5" and len(rows.rows) == 2
    while undo.canUndo():
        undo.undo()
    assert rows.texts() == () and not rows.rows


def test_weights_beyond_the_slider_stay_what_they_are(rows):
    rows.show_texts(("ink:5:0.5", "dust:-7.125"))
    assert rows.rows[0].weight.value == 5 and rows.texts() == ("ink:5:0.5", "dust:-7.125")
    rows.rows[0].weight.slider.setValue(-50)
    assert rows.texts()[0] == "ink:-0.5:0.5", "the text encoders keep their own"


def test_one_for_another_model_is_left_out_and_comes_back(rows):
    rows.show_texts(("ink:1", "film:0.5", "lost:1"))
    assert rows.texts() == ("ink:1", "film:0.5", "lost:1"), "until it is known what there is"
    rows.show_wardrobe(Wardrobe(ROWS))
    assert rows.texts() == ("ink:1", "lost:1"), "what is not here is an error in words, and no other picture"
    assert "made for XL" in rows.rows[1].says.text() and "not here" in rows.rows[2].says.text()
    assert rows.rows[0].says.isHidden()
    other = Wardrobe([{**row, "fits": not row["fits"]} for row in ROWS])
    rows.expect()
    assert len(rows.texts()) == 3
    rows.show_wardrobe(other)
    assert rows.texts() == ("film:0.5", "lost:1")


def test_words_are_put_into_the_prompt_with_one_click(rows):
    rows.show_wardrobe(Wardrobe(ROWS))
    rows.show_texts(("ink:1",))
    rows.show()
    spend(0.05)
    row, said = rows.rows[0], []
    rows.inserted.connect(said.append)
    assert row.word.text() == "+ in ink" and [one.text() for one in row.more.menu().actions()] == ["old && new"]
    row.word.click()
    row.more.menu().actions()[0].trigger()
    assert said == ["in ink", "old & new"]
    rows.show_prompt("A fox IN INK")
    assert row.word.text() == "+ old && new" and row.more.isHidden()
    rows.show_prompt("in ink, old & new, <lora:ink:0.3>")
    assert row.word.isHidden() and "both count" in row.says.text()


def test_the_list_to_add_from_is_searched_by_keyboard(rows):
    rows.show_wardrobe(Wardrobe([*ROWS, *({"name": f"x{i}", "what": "LoRA", "fits": True} for i in range(30))]))
    rows.show()
    rows.add_button.click()
    picker = rows.picker
    assert picker.list.count() == 32 and "1 more is for other models" in picker.note.text()
    QTest.keyClicks(picker.search, "IN in")
    assert [picker.list.item(i).text() for i in range(picker.list.count())] == ["ink"], "by its words too"
    QTest.keyClick(picker.search, Qt.Key.Key_Return)
    assert not picker.isVisible() and rows.texts() == ("ink:0.7",)
    rows.open()
    assert picker.list.count() == 31, "what is worn is not offered again"
    QTest.keyClicks(picker.search, "x1")
    QTest.keyClick(picker.search, Qt.Key.Key_Down)
    QTest.keyClick(picker.search, Qt.Key.Key_Return)
    assert rows.texts()[-1] == "x10:1"
    rows.open()
    QTest.keyClicks(picker.search, "zebra")
    assert "None is called so" in picker.note.text()
    QTest.keyClick(picker.search, Qt.Key.Key_Return)
    assert picker.isVisible() and len(rows.texts()) == 2
    picker.hide()


# The window.


def test_a_job_with_loras_goes_in_and_comes_out_and_a_restored_one_is_undone(window):
    panel = window.panel
    job = Job(prompt="a fox", width=64, height=64, loras=("ink wash:0.8", "soft light:0.5:0.25"))
    panel.show_job(job)
    assert panel.job() == job
    panel.loras.rows[0].switch.click()
    off = panel.job()
    assert off.loras == ("soft light:0.5:0.25",)
    panel.restore(Job(prompt="an owl", width=64, height=64))
    assert panel.job().loras == () and not panel.loras.rows
    window.do_undo()
    assert panel.job() == off and [wear.on for wear in panel.loras.wears] == [False, True]
    window.do_undo()
    assert panel.job() == job


def test_rows_follow_the_model(window):
    panel = window.panel
    panel.show_job(Job(prompt="a fox", width=64, height=64, loras=("ink wash:0.8",)))
    panel.model.setCurrentIndex(panel.model.findData("a-turbo"))
    until(lambda: [one.name for one in panel.loras.wardrobe.loras] == ["xl-film"])
    assert panel.job().loras == () and "It is left out with this model" in panel.loras.rows[0].says.text()
    panel.model.setCurrentIndex(panel.model.findData("scenes"))
    until(lambda: panel.job().loras == ("ink wash:0.8",))


def test_a_job_keeps_textual_inversions_that_are_not_registered(window):
    panel = window.panel
    panel.show_job(Job(prompt="a <sks> toy", width=64, height=64, embeddings=("/far/mine.pt", "<sks>")))
    assert panel.job().embeddings == ("/far/mine.pt",), "the worker finds the other one by its word, where it is"


def test_a_dropped_lora_is_registered_and_gets_a_row(window, tmp_path, monkeypatch):
    def drop(path):
        data = QMimeData()
        data.setUrls([QUrl.fromLocalFile(str(path))])
        action, button = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton
        window.dropEvent(QDropEvent(QPointF(9, 9), action, data, button, Qt.KeyboardModifier.NoModifier))
        until(lambda: window.viewer.bar.isVisible())
        text = window.viewer.bar.words.text()
        window.say(None)
        return text

    assert drop(tmp_path / "my lora.safetensors") == "‘my lora.safetensors’ was added to the LoRAs."
    assert window.panel.job().loras == ("my lora:1",)
    window.do_undo()
    assert window.panel.job().loras == () and window.panel.loras.wardrobe.get("my lora"), "it stays registered"
    assert "does not fit the model" in drop(tmp_path / "xl lora.safetensors") and not window.panel.loras.rows
    sheets = []
    monkeypatch.setattr(window.desk, "show_models", lambda paths: (sheets.append(paths), window.say(Notice("models"))))
    drop(tmp_path / "dream.safetensors")
    assert sheets == [[str(tmp_path / "dream.safetensors")]]


def test_rows_that_are_off_are_there_at_the_next_start(window):
    panel = window.panel
    panel.show_job(Job(prompt="a fox", width=64, height=64, loras=("ink wash:0.8", "xl-film:0.5", "soft light:-1")))
    panel.loras.rows[0].switch.click()
    worn = panel.loras.wears
    assert panel.job().loras == ("soft light:-1",)
    window.close()
    again = Window(Client(command("--loras")))
    try:
        until(lambda: again.panel.loras.wears == worn and again.panel.loras.wardrobe.all)
        assert again.panel.job() == panel.job()
    finally:
        again.close()
        gone(again, again.client)


@pytest.mark.parametrize("state", [None, "", "{", "3", "[3]", '[["a", 3]]', '[[3, true], ["ink", false]]'])
def test_rows_of_another_version_are_read_as_far_as_they_go(rows, state):
    rows.recall(state)
    assert rows.texts() == () and len(rows.wears) == (state is not None and "ink" in state)


@needs_mlx
def test_a_lora_in_a_window_with_the_real_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXLDM_HOME", str(tmp_path / "home"))
    path = adapter_files.for_the_embedded(tmp_path / "Ink (v2).safetensors", {"modelspec.trigger_phrase": "in ink"}, 2)
    application()
    window = Window()
    window.show()
    panel = window.panel
    try:
        until(lambda: window.client.greeting and panel.model.count(), 60)
        assert panel.loras.isHidden()
        panel.show_job(Job(prompt="a red house", seed=5, steps=2, width=64, height=64))
        panel.make(False)
        until(lambda: len(window.gallery_model.shown) == 1 and not window.queue.state.busy, 60)
        window.take_file(str(path))
        until(lambda: panel.loras.rows, 60)
        assert "was added to the LoRAs" in window.viewer.bar.words.text() and panel.job().loras == ("Ink (v2):1",)
        panel.loras.rows[0].weight.box.setValue(0.5)
        panel.loras.rows[0].word.click()
        assert panel.prompt.toPlainText() == "a red house, in ink"
        panel.prompt.replace("a red house")
        panel.make(False)
        until(lambda: len(window.gallery_model.shown) == 2 and not window.queue.state.busy, 60)
        assert "2 of the tensors of ‘Ink (v2).safetensors’ have no place" in window.viewer.bar.words.text()
        one, other = (QImage(picture.path) for picture in window.gallery_model.shown)
        assert one != other and window.job_of(window.gallery_model.shown[0]).loras == ("Ink (v2):0.5",)
        made_by = window.history.record(window.gallery_model.shown[0].id)["made_by"]
        assert told(made_by["adapters"])[0].startswith("Ink (v2):0.5: lora; ")
    finally:
        window.close()
        gone(window)


def test_a_picture_says_what_its_loras_did_and_what_was_left_is_a_warning(window, monkeypatch):
    panel, shown = window.panel, []
    panel.show_job(Job(prompt="a fox", width=64, height=64, seed=3, loras=("soft light:0.5",)))
    panel.make(False)
    until(lambda: len(window.gallery_model.shown) == 1 and not window.queue.state.busy)
    bar = window.viewer.bar
    assert bar.isVisible() and bar.words.text().startswith("3 of the tensors of ‘soft light.safetensors’ have no place")
    assert "lora_te_x.alpha and 2 more – belongs to no module" in bar.details.toPlainText()
    monkeypatch.setattr("mlxldm_app.window.show_text", lambda parent, heading, text: shown.append(text))
    window.do_details()
    assert "soft light:0.5: lora; 128 modules of the U-Net; weights changed by 1.23%" in shown[0]
    assert "not used: lora_te_x.alpha and 2 more – belongs to no module" in shown[0]
    assert "the U-Net’s answer changed by 20.00%" in shown[0] and "{" not in shown[0].partition("loras: ")[2]
    panel.restore(Job(prompt="an owl", width=64, height=64))
    window.do_reuse()
    assert panel.job().loras == ("soft light:0.5",)
    panel.restore(Job(prompt="fine", width=64, height=64, seed=4, loras=("ink wash:1",)))
    panel.make(False)
    until(lambda: len(window.gallery_model.shown) == 2 and not window.queue.state.busy)
    assert not bar.isVisible(), "the next one used all"


def test_what_was_measured_with_other_weights_says_so():
    effect = {"loras": [{"text": "ink:0.3"}], "answer": 0.5, "answer_of": ["ink:1"], "words": ["sks"]}
    assert told(effect)[1:] == ["the U-Net’s answer changed by 50.00% with ink:1", "‘sks’ stood for its vectors"]
    assert told({**effect, "answer_of": ["ink:0.3"]})[1] == "the U-Net’s answer changed by 50.00%"


@pytest.mark.parametrize(
    "strange", [None, [], {"loras": 3}, {"loras": [3, {}]}, {"loras": [{"modules": 1, "left": []}]}]
)
def test_records_of_other_versions_are_read_as_far_as_they_go(strange):
    assert isinstance(told(strange), list)
    assert unused(strange if isinstance(strange, dict) else {}) == ("", "")


# Completion.


@pytest.fixture
def prompt():
    application()
    made = Prompt("", 3, 5)
    made.names = Names([Name("ink wash", "<lora:ink wash:0.8>"), Name("thin ink", "<lora:thin ink:1>")],
                       ["bad-hands", "badness", "<sks>", "𝒻ancy🦊"], ["colour", "animals/bird"])  # fmt: skip
    made.show()
    made.activateWindow()
    made.setFocus()
    until(made.hasFocus)
    yield made
    gone(made)


@pytest.mark.parametrize("before, proposed", [
    ("a <", ["<sks>", "ink wash", "thin ink"]), ("a <lo", ["ink wash", "thin ink"]),
    ("<lora:in", ["ink wash", "thin ink"]),
    ("<lora:TH", ["thin ink"]), ("<lora:ink wash:0.8> b", []), ("a, ba", ["bad-hands", "badness"]), ("a b", []),
    ("(hand", ["bad-hands"]), ("badness", []), ("<sk", ["<sks>"]), ("a __", ["__colour__", "__animals/bird__"]),
    ("__bi", ["__animals/bird__"]), ("x__", []), ("zz", []), ("", []),
])  # fmt: skip
def test_names_that_may_be_meant(prompt, before, proposed):
    assert [name.shown for name in prompt.names.proposed(before)[1]] == proposed


def test_names_are_completed_by_keyboard(prompt):
    prompt.setPlainText("🦊 a fox")
    prompt.moveCursor(QTextCursor.MoveOperation.End)
    QTest.keyClicks(prompt, ", bad")
    assert prompt.proposals.isVisible() and prompt.proposals.chosen.shown == "bad-hands"
    QTest.keyClick(prompt, Qt.Key.Key_Down)
    QTest.keyClick(prompt, Qt.Key.Key_Tab)
    assert prompt.toPlainText() == "🦊 a fox, badness" and prompt.hasFocus() and not prompt.proposals.isVisible()
    QTest.keyClicks(prompt, ", <lo")
    QTest.keyClick(prompt, Qt.Key.Key_Return)
    assert prompt.toPlainText() == "🦊 a fox, badness, <lora:ink wash:0.8>"
    prompt.undo()
    assert prompt.toPlainText().startswith("🦊 a fox, badness"), "the field's own undo"
    prompt.setPlainText("")
    QTest.keyClicks(prompt, "__c")
    QTest.keyClick(prompt, Qt.Key.Key_Escape)
    assert not prompt.proposals.isVisible() and prompt.toPlainText() == "__c"
    QTest.keyClick(prompt, Qt.Key.Key_Backspace)
    QTest.keyClicks(prompt, "c")
    QTest.keyClick(prompt, Qt.Key.Key_Enter)
    assert prompt.toPlainText() == "__colour__"
    QTest.keyClick(prompt, Qt.Key.Key_Return)
    assert prompt.toPlainText() == "__colour__\n", "a line's end is one again"
    QTest.keyClicks(prompt, "<")
    assert prompt.proposals.isVisible()
    QTest.keyClick(prompt, Qt.Key.Key_Left)
    assert not prompt.proposals.isVisible()


def test_esc_closes_the_list_and_stops_nothing(window):
    panel = window.panel
    panel.show_job(Job(prompt="slow fox", width=64, height=64))
    panel.prompt.setFocus()
    stopped = []
    window.actions_["stop"].setEnabled(True)
    window.actions_["stop"].triggered.connect(lambda *_: stopped.append(1))
    QTest.keyClicks(panel.prompt, " <")
    assert panel.prompt.proposals.isVisible() and panel.prompt.proposals.count() == 4
    QTest.keyClick(panel.prompt, Qt.Key.Key_Escape)
    spend(0.05)
    assert not panel.prompt.proposals.isVisible() and not stopped
    QTest.keyClicks(panel.negative, "__")
    assert panel.negative.proposals.chosen.shown == "__colour__"
    QTest.keyClick(panel.negative, Qt.Key.Key_Escape)
    QTest.keyClicks(panel.negative, " <lo")
    assert not panel.negative.proposals.isVisible(), "a LoRA is no thing to leave out"


def test_words_are_put_at_the_end(prompt):
    said = {"": "in ink", "a fox": "a fox, in ink", "🦊, ": "🦊, in ink", "A fox.\n": "A fox. in ink"}
    for before, after in said.items():
        prompt.setPlainText(before)
        prompt.insert_words("in ink")
        assert prompt.toPlainText() == after
        prompt.undo()
        assert prompt.toPlainText() == before


# The weight of words: ‹› is the selection, ¦ the cursor.


@pytest.mark.parametrize("text, up, after", [
    ("a re¦d fox", True, "a (‹red›:1.1) fox"), ("a (re¦d:1.1) fox", True, "a (‹red›:1.2) fox"),
    ("a (re¦d:1.1) fox", False, "a ‹red› fox"), ("a (red¦) fox", True, "a (‹red›:1.2) fox"),
    ("a (red¦) fox", False, "a ‹red› fox"), ("a red¦ fox", False, "a (‹red›:0.9) fox"),
    ("‹a red› fox", True, "(‹a red›:1.1) fox"), ("‹ a red › fox", True, " (‹a red›:1.1)  fox"),
    ("(a (re¦d:1.2) fox:0.9)", True, "(a (‹red›:1.3) fox:0.9)"), ("(a (red:1.2) f¦ox:0.9)", True, "‹a (red:1.2) fox›"),
    ("(red :1¦.1)", True, "(‹red›:1.2)"), ("((re¦d))", False, "(‹red›)"), ("[re¦d|blue]", True, "[(‹red›:1.1)|blue]"),
    ("x <lora:in¦k:0.8>", True, "x ‹<lora:ink:0.85>›"), ("<lora:a b:0.8:lbw=1,0¦>", False, "‹<lora:a b:0.75:lbw=1,0>›"),
    ("<LORA:ink¦>", True, "‹<lora:ink:1.05>›"), ("\\(re¦d\\)", True, "\\((‹red›:1.1)\\)"),
    ("🦊 狐¦ x", True, "🦊 (‹狐›:1.1) x"),
    ("(x:0.05¦)", False, "(‹x›:0)"), ("(x:-0.5¦)", False, "(‹x›:-0.5)"), ("(x:9.95¦)", True, "(‹x›:10)"),
    ("¦", True, None), ("a ,¦ b", True, None), ("a (b:1.3", True, None),
])  # fmt: skip
def test_the_weight_of_the_words_under_the_cursor(text, up, after):
    plain = text.translate({ord(sign): None for sign in "‹›¦"})
    start, end = (text.index("¦"),) * 2 if "¦" in text else (text.find("‹"), text.find("›") - 1)
    made = reweighed(plain, max(start, 0), max(end, 0), up)
    if after is None:
        assert made is None or text == "a (b:1.3"
    else:
        assert made == (after.replace("‹", "").replace("›", ""), after.index("‹"), after.index("›") - 1)


def test_a_weight_up_and_down_again_is_where_it_began():
    text, start, end = "a red fox, (a hill:0.85), <lora:ink:0.8>", 3, 3
    for where in (3, 15, 33):
        made, start, end = text, where, where
        for up in (True, True, True, False, False, False):
            made, start, end = reweighed(made, start, end, up)
        assert made == text


def test_words_are_weighed_by_keyboard_and_undone(prompt):
    prompt.setPlainText("🦊 a red fox")
    cursor = prompt.textCursor()
    cursor.setPosition(7)
    prompt.setTextCursor(cursor)
    QTest.keyClick(prompt, Qt.Key.Key_Up, CONTROL)
    assert prompt.toPlainText() == "🦊 a (red:1.1) fox" and prompt.textCursor().selectedText() == "red"
    QTest.keyClick(prompt, Qt.Key.Key_Up, CONTROL)
    assert prompt.toPlainText() == "🦊 a (red:1.2) fox"
    for _ in range(3):
        QTest.keyClick(prompt, Qt.Key.Key_Down, CONTROL)
    assert prompt.toPlainText() == "🦊 a (red:0.9) fox"
    prompt.undo()
    assert prompt.toPlainText() == "🦊 a red fox"
