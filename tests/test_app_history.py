"""What must not be lost: the queue on the disk, and an index that can be thrown away."""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import string
import time
from datetime import date

import fake_worker
import pytest
from app_things import application, full_disk, gone, until
from PySide6.QtGui import QImage

from mlxldm.job import Job
from mlxldm_app import pictures, thumbnails
from mlxldm_app.gallery import Gallery, Grid
from mlxldm_app.history import Found, History, Picture


def file(folder, name: str, prompt: str, seed: int = 1, when: float = 0.0):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"job": {"prompt": prompt, "seed": seed}, "made_by": {}})
    path.write_bytes(fake_worker.png(16, 8, seed, {"mlxldm": record}))
    if when:
        os.utime(path, (when, when))
    return path


def scanned(database, folder) -> None:
    application()
    rescan = pictures.Rescan(History(database), folder)
    done = []
    rescan.finished.connect(lambda: done.append(1))
    rescan.start()
    until(lambda: done)
    rescan.close()


def test_jobs_are_there_after_a_kill_and_in_their_order(tmp_path):
    first = History(tmp_path / "a.db")
    jobs = [Job(prompt=f"naïve 狐 {i}", seed=i, steps=3, boxes=None, guidance=0.0) for i in range(3)]
    entries = [first.add_job(job, float(-i)) for i, job in enumerate(jobs)]
    entries[1].state, entries[1].done, entries[1].crashes = "running", 2, 1
    first.keep_job(entries[1])
    second = History(tmp_path / "a.db")  # while the first was never closed
    assert [entry.job for entry in second.jobs()] == jobs[::-1]
    assert (second.jobs()[1].state, second.jobs()[1].done, second.jobs()[1].crashes) == ("running", 2, 1)
    second.drop_jobs([entries[0].id])
    assert len(first.jobs()) == 2


def test_what_is_left_of_a_job_goes_on_with_the_next_seed(tmp_path):
    entry = History(tmp_path / "a.db").add_job(Job(seed=2**32 - 2, count=5), 1.0)
    entry.done = 3
    assert (entry.rest.seed, entry.rest.count) == (2**32 + 1, 2)  # as the library counts them
    entry = History(tmp_path / "a.db").add_job(Job(seed=7, variation="4:0.25", count=5), 2.0)
    entry.done = 3
    assert (entry.rest.seed, entry.rest.variation, entry.rest.count) == (7, "7:0.25", 2)


def test_a_damaged_database_is_put_aside_and_the_pictures_are_found_again(tmp_path):
    file(tmp_path / "p", "a.png", "a fox")
    (tmp_path / "a.db").write_bytes(b"this is no database at all" * 100)
    history = History(tmp_path / "a.db")
    assert history.damaged and os.path.exists(history.damaged)
    scanned(tmp_path / "a.db", tmp_path / "p")
    assert [one.path for one in history.pictures()] == [str(tmp_path / "p" / "a.png")]


def test_a_database_that_cannot_be_opened_now_is_not_put_aside(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as db:
        db.execute("PRAGMA user_version = 0")
    History(tmp_path / "a.db").close()
    (tmp_path / "a.db-wal").mkdir()  # as a full disk, or one that may not be written, would do
    with pytest.raises(sqlite3.OperationalError):
        History(tmp_path / "a.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db", "a.db-wal"]
    (tmp_path / "a.db-wal").rmdir()
    assert History(tmp_path / "a.db").damaged is None


def test_nothing_is_in_the_wal_file_only(tmp_path):
    history = History(tmp_path / "a.db")
    entries = [history.add_job(Job(prompt=f"{i}", seed=i), float(i)) for i in range(3)]
    entries[0].done = 1
    history.keep_job(entries[0])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.db").write_bytes((tmp_path / "a.db").read_bytes())  # what is left if somebody deletes -wal
    assert History(tmp_path / "b" / "a.db").jobs() == entries


def test_a_full_disk_stops_no_scan(tmp_path):
    history = History(tmp_path / "a.db")
    file(tmp_path / "p", "a.png", "a fox")
    with full_disk(0):
        scanned(tmp_path / "a.db", tmp_path / "p")
    assert history.pictures() == []
    scanned(tmp_path / "a.db", tmp_path / "p")
    assert len(history.pictures()) == 1


def test_a_database_of_a_later_version_is_not_touched_but_put_aside(tmp_path):
    History(tmp_path / "a.db").close()
    with sqlite3.connect(tmp_path / "a.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    history = History(tmp_path / "a.db")
    with sqlite3.connect(history.damaged) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)


def test_a_database_of_the_first_version_is_brought_up_with_its_queue_and_hearts(tmp_path):
    history = History(tmp_path / "a.db")
    history.add_job(Job(prompt="waiting", seed=3), 1.0)
    (picture,) = history.add_pictures([Found("/p/a.png", 1e9, 10, 8, 8, {"job": {"prompt": "a red fox"}})])
    history.favour([picture.id], True)
    history.close()
    with sqlite3.connect(tmp_path / "a.db") as db:
        db.executescript("""DROP TABLE words; PRAGMA user_version = 1;
            CREATE VIRTUAL TABLE words USING fts5(prompt, content='image', content_rowid='id',
                tokenize='unicode61 remove_diacritics 2');
            INSERT INTO words(words) VALUES ('rebuild');""")
    db.close()
    history = History(tmp_path / "a.db")
    assert history.damaged is None and [entry.job.prompt for entry in history.jobs()] == ["waiting"]
    assert history.search("r f") == {picture.id} and history.pictures()[0].favourite
    history.add_pictures([Found("/p/a.png", 2e9, 10, 8, 8, {"job": {"prompt": "a green toad"}})])
    assert history.search("fox") == set() and history.search("toad") == {picture.id}


def test_the_index_follows_the_files(tmp_path):
    folder = tmp_path / "p"
    one = file(folder, "2026-01-01/0001-a.png", "a red fox", when=1e9)
    two = file(folder, "deep/er/0002-b.png", "a blue naïve owl", when=2e9)
    (folder / "no.png").write_bytes(b"no picture")
    (folder / "x.png.part").write_bytes(b"half")
    history = History(tmp_path / "a.db")
    scanned(history.path, folder)
    assert [item.path for item in history.pictures()] == [str(two), str(one)]
    number = history.pictures()[1].id
    history.favour([number], True)
    assert history.search("RED fo") == {number} and history.search("naive owl") and history.search("zebra") == set()
    assert history.search('"*(') is None and history.search("") is None
    moved = one.with_name("away.png")
    one.rename(moved)
    scanned(history.path, folder)
    assert str(one) not in [item.path for item in history.pictures()] and len(history.pictures()) == 2
    moved.rename(one)
    scanned(history.path, folder)
    back = [item for item in history.pictures() if item.path == str(one)]
    assert back[0].favourite, "what was a favourite is one again"
    file(folder, "2026-01-01/0001-a.png", "a green toad", seed=2)
    scanned(history.path, folder)
    assert number not in history.search("fox") and history.search("toad") == {number}
    assert history.record(number)["job"]["seed"] == 2


def test_pictures_are_written_whole_under_the_next_number(tmp_path, monkeypatch):
    long = "A Lighthouse / on: a cliff, at dusk with very many words after it"
    first = pictures.save(tmp_path, b"one", Job(prompt=long))
    second = pictures.save(tmp_path, b"two", Job(prompt="日本 🙂"))
    third = pictures.save(tmp_path, b"three", Job())
    today = date.today().isoformat()
    assert [str(path.relative_to(tmp_path)) for path in (first, second, third)] == [
        f"{today}/0001-a-lighthouse-on-a-cliff-at-dusk-with.png", f"{today}/0002-日本.png", f"{today}/0003-picture.png",
    ]  # fmt: skip

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        pictures.save(tmp_path, b"four", Job(prompt="x"))
    assert sorted(path.name for path in first.parent.iterdir()) == sorted(path.name for path in (first, second, third))


def test_names_by_another_pattern_never_meet(tmp_path):
    jobs = [Job(prompt="a hill", seed=4, model="b/c.ckpt"), Job(prompt="a hill", seed=4), Job(prompt="a hill", seed=4)]
    by_seed = [pictures.save(tmp_path, b"", job, "{model}/{seed}") for job in jobs]
    assert [str(path.relative_to(tmp_path)) for path in by_seed] == ["c.ckpt/4.png", "scenes/4.png", "scenes/4-2.png"]
    (tmp_path / "a-hill_0041_9.png").touch()
    (tmp_path / "a-hill_0090_old.png").touch()
    assert pictures.save(tmp_path, b"", jobs[0], "{prompt}_{number}_{seed}").name == "a-hill_0042_4.png"


def test_a_file_without_its_settings_has_the_same_pixels(tmp_path):
    record = {"job": {"prompt": "a secret"}, "made_by": {"mlxldm": "0"}}
    png = fake_worker.png(24, 16, 3, {"mlxldm": json.dumps(record), "parameters": "a secret"})
    plain = pictures.without_texts(png)
    assert b"secret" in png and b"secret" not in plain and pictures.record_of(png) == record
    assert pictures.record_of(plain) == {} and QImage.fromData(plain) == QImage.fromData(png)
    path = tmp_path / "1.2.png"
    path.write_bytes(png)
    pictures.copy_as_jpeg(path)
    assert sorted(os.listdir(tmp_path)) == ["1.2.jpg", "1.2.png"] and QImage(str(tmp_path / "1.2.jpg")).width() == 24
    with pytest.raises(OSError):
        pictures.copy_as_jpeg(tmp_path / "nothing.png")


def test_twenty_thousand_pictures_are_searched_in_a_moment_whatever_is_asked(tmp_path):
    history, dice = History(tmp_path / "a.db"), random.Random(1)
    letters = "aeioulmnrst" * 4 + string.ascii_lowercase
    words = ["".join(dice.choices(letters, k=dice.randint(3, 9))) for _ in range(6000)]
    history.add_pictures(
        Found(f"/p/{i}.png", 1.7e9 + i * 60, 1000, 512, 512,
              {"job": {"prompt": ", ".join(["a picture", *dice.choices(words, k=40), f"number{i % 40}"]), "seed": i}})
        for i in range(20_000)
    )  # fmt: skip
    for text, count in (("number7", 500), ("number7 a", 500), ("p", 20_000), ("pict a n", 20_000), ("zzzzzz", 0)):
        assert len(history.search(text)) == count
    for text in ("number7", "st", "a", "a p o r", "r s t l m n a e i o"):
        best = 9.0
        for _ in range(5):
            began = time.thread_time()  # which programs beside this one do not lengthen
            history.search(text)
            best = min(best, time.thread_time() - began)
        assert best < 0.02, text
    assert len(history.pictures()) == 20_000


def test_a_full_disk_leaves_no_half_of_a_thumbnail(tmp_path):
    application()
    path = tmp_path / "a.png"
    path.write_bytes(fake_worker.png(400, 300, 3, {}))
    picture = Picture(1, str(path), 1.0, 400, 300, False)
    with full_disk():
        assert thumbnails._small(picture, tmp_path / "cache") is not None, "the window shows it all the same"
    assert not [one for one in (tmp_path / "cache").rglob("*") if one.is_file()]
    assert thumbnails._small(picture, tmp_path / "cache").width() == 341
    assert [one.suffix for one in (tmp_path / "cache").rglob("*") if one.is_file()] == [".jpg"]


def test_what_a_scan_has_read_is_shown_unless_something_was_edited_since(tmp_path):
    file(tmp_path / "p", "a.png", "a fox", when=1e9)
    application()
    history, heard = History(tmp_path / "a.db"), []
    rescan = pictures.Rescan(history, tmp_path / "p")
    rescan.changed.connect(lambda found, edits: heard.append((found, edits)))
    rescan.start()
    until(lambda: heard)
    rescan.close()
    assert heard == [(history.pictures(), history.edits)] and len(heard[0][0]) == 1
    before = history.edits
    (one,) = history.pictures()
    history.favour([one.id], True)
    history.missing([one.path])
    history.add_pictures([pictures.read(one.path)])
    entry = history.add_job(Job(seed=1), 1.0)
    history.has_saved(entry, pictures.read(file(tmp_path / "p", "b.png", "an owl")))
    assert history.edits == before + 4
    model = Gallery(history)
    model.load([])
    assert not model.shown
    model.load()
    assert len(model.shown) == 2


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system's clock cannot be moved to another zone")
def test_days_are_found_whatever_the_clock_does(tmp_path, monkeypatch):
    """As each picture's day says, one by one; pictures of the future among them, and both changes of the clock."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    application()
    history = History(tmp_path / "a.db")
    whens = [time.time() + 5e6, time.time()] + [1.7e9 - 4321.0 * at for at in range(9000)]
    history.add_pictures(Found(f"/{at}.png", when, 1, 8, 8, {}) for at, when in enumerate(whens))
    model = Gallery(history)
    grid = Grid(thumbnails.Thumbnails(tmp_path / "t"))
    grid.setModel(model)
    model.load()
    days = [date.fromtimestamp(one.mtime) for one in model.shown]
    assert grid._starts == [row for row, day in enumerate(days) if row == 0 or day != days[row - 1]]
    places = [grid._rect(row) for row in range(200)]
    assert not any(a.intersects(b) for a, b in itertools.pairwise(places))
    gone(grid)
    monkeypatch.undo()
    time.tzset()


def test_a_full_disk_leaves_no_half_of_a_jpeg(tmp_path):
    application()
    path = tmp_path / "a.png"
    path.write_bytes(fake_worker.png(100, 80, 3, {}))
    with full_disk(100), pytest.raises(OSError):
        pictures.copy_as_jpeg(path)
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]
    pictures.copy_as_jpeg(path)
    assert QImage(str(tmp_path / "a.jpg")).width() == 100


@pytest.mark.parametrize("seen", [10, 90])
def test_only_so_many_thumbnails_are_kept_and_all_that_are_seen(tmp_path, seen):
    application()
    made = thumbnails.Thumbnails(tmp_path / "cache")
    made.seen = seen
    path = tmp_path / "a.png"
    path.write_bytes(fake_worker.png(24, 16, 3, {}))
    many = [Picture(number, str(path), 1.0, 24, 16, False) for number in range(400)]
    arrived = []
    made.arrived.connect(arrived.append)
    for at in range(0, len(many), 50):
        for one in many[at : at + 50]:
            made.of(one)
        until(lambda at=at: len(arrived) == at + 50)
    assert len(made._ready) == max(thumbnails.KEPT, 3 * seen) and not made._wanted
    assert all(made.of(one) is not None for one in many[-seen:])
    made.close()
    gone(made)


def test_a_window_with_many_thumbnails_waits_for_none_of_them_for_ever(tmp_path):
    """More wishes at once than are kept of those that were scrolled past."""
    application()
    made, arrived = thumbnails.Thumbnails(tmp_path / "cache"), []
    made.arrived.connect(arrived.append)
    path = tmp_path / "a.png"
    path.write_bytes(fake_worker.png(24, 16, 3, {}))
    made.seen = 2 * thumbnails.BEHIND
    for number in range(made.seen):
        assert made.of(Picture(number, str(path), 1.0, 24, 16, False)) is None
    until(lambda: len(arrived) == made.seen)
    made.close()
    gone(made)
