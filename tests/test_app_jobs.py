"""The queue with the scripted worker: every way a job can go, and that none is lost or made twice."""

from __future__ import annotations

import os
import shutil
import sqlite3

import pytest
from app_things import alive, application, command, full_disk, gone, spend, until
from PySide6.QtGui import QImage

from mlxldm.job import Job
from mlxldm_app import client, jobs, pictures
from mlxldm_app.client import Client
from mlxldm_app.history import History
from mlxldm_app.jobs import Queue, State, duration, smaller, title


class Made:
    """A queue, what it said, and where its pictures are."""

    def __init__(self, place, *flags: str):
        application()
        self.place = place
        self.history = History(place / "a.db")
        self.client = Client(command(*flags))
        self.queue = Queue(self.history, self.client, lambda: place / "pictures", place / "inputs")
        self.notices, self.states = [], [self.queue.state]
        self.queue.notice.connect(self.notices.append)
        self.queue.changed.connect(lambda: self.states[-1] is self.queue.state or self.states.append(self.queue.state))

    def start(self) -> Made:
        self.client.start()
        self.queue.greet()
        until(lambda: self.client.greeting)
        return self

    def empty(self) -> bool:
        return self.queue.running is None and not [one for one in self.queue.waiting if one.state == "waiting"]

    def seeds(self) -> list[int]:
        return [self.history.record(one.id)["job"]["seed"] for one in reversed(self.history.pictures())]

    def entries(self) -> list[tuple[str, str]]:
        return [(entry.job.prompt, entry.state) for entry in self.history.jobs()]

    def close(self) -> None:
        self.client.close()
        self.history.close()
        gone(self.queue, self.client)


@pytest.fixture
def made(tmp_path):
    """`made(*flags)` makes one; another call in the same test finds the same files."""
    all_of_them = []

    def make(*flags: str) -> Made:
        all_of_them.append(Made(tmp_path, *flags))
        return all_of_them[-1]

    yield make
    for one in all_of_them:
        one.close()


def test_jobs_are_drawn_in_their_order_and_forgotten_when_done(made):
    it = made("--load", "0.05").start()
    for seed, front in ((10, False), (20, False), (30, True)):
        it.queue.add(Job(prompt="fine", seed=seed, count=2), front)
    until(it.empty)
    assert it.seeds() == [10, 11, 30, 31, 20, 21]
    assert it.entries() == [] and it.queue.state is State.IDLE
    assert it.states[:4] == [State.STARTING, State.IDLE, State.GENERATING, State.LOADING] or State.LOADING in it.states
    assert all(os.path.exists(one.path) for one in it.history.pictures())


def test_a_seed_is_drawn_when_a_job_is_added_and_so_the_same_after_a_crash(made):
    it = made()
    entry = it.queue.add(Job(prompt="fine"))
    assert entry.job.seed is not None and it.history.jobs()[0].job.seed == entry.job.seed


def test_what_waited_waits_after_a_kill_and_nothing_starts_by_itself(made):
    it = made("--pace", "0.05").start()
    it.queue.add(Job(prompt="fine one", seed=1, count=3))
    it.queue.add(Job(prompt="fine two", seed=50))
    until(lambda: len(it.history.pictures()) == 1)
    it.client._process.kill()  # the app is killed: nothing is said to anybody
    it.client.blockSignals(True)
    again = made().start()
    assert [state for _, state in again.entries()] == ["paused", "waiting"]
    assert again.notices[0].text == "3 pictures were waiting."
    spend(0.3)
    assert again.queue.running is None and len(again.history.pictures()) == 1
    again.queue.resume()
    until(again.empty)
    assert again.seeds() == [1, 2, 3, 50], "every picture once"


def test_discarding_what_waited(made):
    made().queue.add(Job(prompt="fine", seed=1))
    again = made().start()
    again.queue.clear_waiting()
    again.queue.resume()
    spend(0.1)
    assert again.entries() == [] and not again.history.pictures() and not again.queue.held


def test_stopping_keeps_the_words_and_goes_on(made):
    it = made("--pace", "0.02").start()
    it.queue.add(Job(prompt="slow one", seed=1, steps=60))
    it.queue.add(Job(prompt="fine", seed=2))
    until(lambda: it.queue.progress is not None and it.queue.progress.step)
    it.queue.stop()
    assert it.queue.state is State.STOPPING
    until(it.empty)
    assert it.entries() == [("slow one", "cancelled")] and it.seeds() == [2]
    it.queue.clear_ended()
    assert it.entries() == []


def test_a_job_that_is_deaf_is_stopped_by_force(made, monkeypatch):
    monkeypatch.setattr(jobs, "FORCE_AFTER", 0.2)
    it = made().start()
    it.queue.add(Job(prompt="hang", seed=1, steps=4))
    it.queue.add(Job(prompt="fine", seed=2))
    until(lambda: it.queue.progress is not None and it.queue.progress.step == 2)
    it.queue.stop()
    assert not it.queue.may_force
    until(lambda: it.queue.may_force)
    it.queue.force_stop()
    until(lambda: it.seeds() == [2])
    assert it.entries() == [("hang", "cancelled")] and not it.queue.may_force


def test_a_crash_costs_one_picture_and_the_job_is_paused_at_the_head(made):
    it = made().start()
    it.queue.add(Job(prompt="crash at the second", seed=1, count=3))
    it.queue.add(Job(prompt="fine", seed=50))
    until(lambda: it.seeds() == [1, 50])
    assert it.entries() == [("crash at the second", "paused")]
    assert any("is back in the queue, paused" in notice.text for notice in it.notices if notice)
    entry = it.queue.waiting[0]
    assert (entry.done, entry.crashes) == (1, 1)
    it.queue.again(entry.id)  # two are left now; the second of those is the third
    until(lambda: it.entries() == [("crash at the second", "aside")])
    assert any("stopped the generator twice" in notice.text for notice in it.notices if notice)
    assert it.seeds() == [1, 50, 2]
    it.queue.resume()
    spend(0.2)
    assert it.queue.running is None, "what was set aside does not come back by itself"


def test_used_up_memory_is_said_as_such(made):
    it = made().start()
    it.queue.add(Job(prompt="oom", seed=1, width=512, height=512))
    until(lambda: it.notices and it.notices[-1] is not None)
    assert "used up the memory" in it.notices[-1].text and ("Try with less memory", "smaller") in it.notices[-1].actions
    until(lambda: it.client.greeting)
    it.queue.smaller(it.queue.last.id)
    assert (it.queue.running.job.width, it.queue.running.job.height) == (384, 384)


@pytest.mark.parametrize("kind, says", [("wish", "This is a wish."), ("memory", "not enough memory"),
                                        ("numbers", "no numbers"), ("fault", "inside mlxldm")])  # fmt: skip
def test_errors_are_sentences_and_the_queue_goes_on(made, kind, says):
    it = made().start()
    it.queue.add(Job(prompt=kind, seed=1))
    until(lambda: it.queue.state is State.ERROR)
    assert says in it.notices[-1].text and "Traceback" not in it.notices[-1].text
    it.queue.add(Job(prompt="fine", seed=2))
    until(it.empty)
    assert it.seeds() == [2] and it.entries()[0][1] == "failed"


def test_a_full_disk_loses_no_picture(made, monkeypatch):
    it = made().start()
    place = it.place / "pictures"
    place.write_text("a file where the folder should be")
    it.queue.add(Job(prompt="fine", seed=1, count=2))
    it.queue.add(Job(prompt="fine", seed=9))
    until(lambda: it.queue.unsaved == 2 and it.queue.running is None)
    assert "could not be saved" in it.notices[-1].text
    spend(0.1)
    assert it.queue.running is None, "nothing more is made while what is made has no place"
    place.unlink()
    it.queue.save_again()
    until(lambda: len(it.history.pictures()) == 3)
    assert it.seeds() == [1, 2, 9]


def test_what_found_no_room_is_made_again_if_the_app_is_killed_then(made):
    it = made().start()
    place = it.place / "pictures"
    place.write_text("a file where the folder should be")
    it.queue.add(Job(prompt="fine", seed=1, count=2))
    until(lambda: it.queue.unsaved == 2 and it.queue.running is None)
    assert [(one.state, one.done) for one in it.history.jobs()] == [("paused", 0)]
    place.unlink()
    again = made().start()
    assert again.notices[0].text == "2 pictures were waiting."
    again.queue.resume()
    until(again.empty)
    assert again.seeds() == [1, 2] and again.entries() == []


@pytest.mark.parametrize("when", ["drawing", "writing", "ending", "counting"])
def test_a_disk_that_is_full_for_the_queue_too_loses_nothing(made, monkeypatch, when):
    it = made("--pace", "0.03").start()
    first = it.queue.add(Job(prompt="slow", seed=1, count=2))
    it.queue.add(Job(prompt="fine", seed=9))
    until(lambda: it.queue.progress is not None and it.queue.progress.step)
    if when in ("ending", "counting"):  # there is room for pictures, but not for the queue any more
        name = {"ending": "drop_jobs", "counting": "has_saved"}[when]
        whole = getattr(it.history, name)

        def full(*arguments):
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(it.history, name, full)
        until(lambda: it.queue.stuck)
        monkeypatch.setattr(it.history, name, whole)
    else:
        until(lambda: when == "drawing" or len(it.history.pictures()) == 1)
        with full_disk():
            until(lambda: it.queue.stuck and it.queue.running is None)
    assert any(notice and "could not be saved" in notice.text for notice in it.notices)
    until(lambda: it.queue.running is None)
    spend(0.1)
    assert it.queue.running is None and it.queue.stuck
    it.queue.save_again()
    assert not it.queue.stuck and first.done == 2
    until(lambda: it.empty() and not it.entries())
    assert it.seeds() == [1, 2, 9] and not list(it.place.rglob("*.part"))


def test_a_picture_that_was_written_when_the_app_was_killed_is_counted(made):
    for prompt, count, left in (("one", 1, []), ("two", 2, [("two", "paused")])):
        it = made()
        entry = it.queue.add(Job(prompt=prompt, seed=1, count=count))
        entry.state = "running"
        it.history.keep_job(entry)
        path = pictures.place(it.place / "pictures", entry.job)
        it.history.will_save(entry, path)
        path.write_bytes(b"a picture")
        again = made()  # the first never came to count it
        assert again.entries() == left
        assert [one.done for one in again.history.jobs()] == [1] * len(left)
        assert [one.done for one in made().history.jobs()] == [1] * len(left), "and it is counted once"


def test_half_a_picture_is_not_counted_and_taken_away(made):
    it = made()
    entry = it.queue.add(Job(prompt="one", seed=1))
    path = pictures.place(it.place / "pictures", Job(prompt="one"))
    it.history.will_save(entry, path)
    half, inputs = path.with_name(path.name + ".part"), it.place / "inputs"
    inputs.mkdir()
    for part in (half, inputs / "start.png.part"):
        part.write_bytes(b"half a p")
    again = made()
    assert [(one.state, one.done) for one in again.history.jobs()] == [("waiting", 0)]
    assert not list(it.place.rglob("*.part"))


def test_a_worker_that_dies_after_the_last_picture_has_made_them_all(made):
    it = made().start()
    it.queue.add(Job(prompt="late", seed=1, count=2))
    it.queue.add(Job(prompt="fine", seed=9))
    until(lambda: it.empty() and not it.entries())
    assert it.seeds() == [1, 2, 9]
    assert any(notice and notice.text == "The generator used up the memory and was stopped by the system. "
               "It is running again." for notice in it.notices)  # fmt: skip


def test_a_crash_while_nothing_runs_is_not_blamed_on_the_job_before(made):
    it = made().start()
    it.queue.add(Job(prompt="crash", seed=1))
    until(lambda: it.entries() == [("crash", "paused")] and it.client.greeting)
    it.notices.clear()
    os.kill(it.client.pid, 9)
    until(lambda: it.notices)
    assert "crash" not in it.notices[0].text and it.queue.waiting[0].crashes == 1


def test_a_smaller_job_has_less_to_draw_at_once(tmp_path):
    twice = Job(prompt="x", width=64, height=64, hires=2.0, hires_strength=0.4)
    assert smaller(twice) == Job(prompt="x", width=64, height=64)
    assert (smaller(Job(width=1024, height=768)).width, smaller(Job()).height) == (768, 384)
    QImage(640, 256, QImage.Format.Format_RGB32).save(str(tmp_path / "a.png"))
    image = str(tmp_path / "a.png")
    assert smaller(Job(image=image)) == Job(image=image, width=448, height=192)
    grown = smaller(Job(image=image, extend="0,0,64,0"))
    assert grown == Job(image=image, extend="0,0,64,0", only_masked=True, width=448, height=192)


def test_a_smaller_job_takes_the_place_of_another_only_where_it_can_be_kept(made):
    it = made()
    entry = it.queue.add(Job(prompt="large", seed=1, width=512, height=512))
    with full_disk():
        it.queue.smaller(entry.id)
    assert "not put into the queue" in it.notices[-1].text and it.queue.waiting == [entry]
    it.queue.smaller(entry.id)
    assert [(one.prompt, one.width) for one in (row.job for row in it.history.jobs())] == [("large", 384)]


def test_an_input_picture_that_is_gone_is_said(made):
    it = made().start()
    it.queue.add(Job(prompt="fine", seed=1, image=str(it.place / "inputs" / "gone.png")))
    until(lambda: it.entries() == [("fine", "failed")])
    assert "image is not there any more" in it.notices[-1].text


def test_pausing_moving_and_removing(made):
    it = made().start()
    it.queue.pause()
    for seed in (1, 2, 3, 4):
        it.queue.add(Job(prompt=f"fine {seed}", seed=seed))
    numbers = [entry.id for entry in it.queue.waiting]
    it.queue.move(numbers[3], -1)
    it.queue.move(numbers[3], -1)
    it.queue.move(numbers[0], 1)
    it.queue.remove(numbers[1])
    assert [entry.job.seed for entry in it.queue.waiting] == [4, 1, 3]
    assert [entry.job.seed for entry in it.history.jobs()] == [4, 1, 3], "on the disk, too"
    spend(0.1)
    assert it.queue.running is None
    it.queue.resume()
    until(it.empty)
    assert it.seeds() == [4, 1, 3]


def test_nothing_to_draw_with(made):
    it = made("--refuse")
    it.client.start()
    until(lambda: it.queue.state is State.DOWN)
    assert it.notices[-1].text.startswith("Nothing here can draw") and it.notices[-1].actions == (
        ("Try again", "restart"),
    )
    it.queue.add(Job(prompt="fine", seed=1))
    assert len(it.queue.waiting) == 1


def test_a_line_that_breaks_costs_nothing_and_is_tried_again(made, monkeypatch):
    monkeypatch.setattr(client, "AGAIN", (0.2, 60.0))
    it = made("--pace", "0.02")
    it.client.use(command("--pace", "0.02"), "me@studio.local")
    until(lambda: it.client.greeting)
    it.queue.add(Job(prompt="line to another machine", seed=1, steps=4))
    it.queue.add(Job(prompt="fine", seed=2))
    until(lambda: it.queue.state is State.LOST)
    assert it.entries() == [("line to another machine", "waiting"), ("fine", "waiting")]
    notice = next(one for one in reversed(it.notices) if one)
    assert notice.text.startswith("‘studio.local’ does not answer.") and "Trying again in 0 s" in notice.text
    assert notice.actions == (("Now", "restart"), ("Work on this machine", "work_here"))
    until(lambda: it.queue.state is State.GENERATING)  # by itself
    until(lambda: it.queue.state is State.LOST)
    it.client.use(command("--pace", "0.02"))  # here, where only a worker that crashes ends so
    until(lambda: it.queue.state is State.CRASHED)
    until(lambda: len(it.history.pictures()) == 1)
    assert it.entries() == [("line to another machine", "paused")]


def test_another_worker_takes_over_when_the_running_job_has_ended(made):
    it = made("--pace", "0.05").start()
    it.queue.add(Job(prompt="fine", seed=1, steps=4))
    it.queue.add(Job(prompt="fine too", seed=2))
    until(lambda: it.queue.progress is not None and it.queue.progress.step == 1)
    first = it.client.pid
    it.client.use(command("--pace", "0.01"))
    assert it.client.leaving and it.client.pid == first
    until(lambda: len(it.history.pictures()) == 1)
    until(lambda: it.client.pid != first)
    assert not it.client.leaving
    until(lambda: len(it.history.pictures()) == 2 and it.queue.state is State.IDLE)
    assert State.STARTING in it.states[1:] and not [one for one in it.notices if one]
    until(lambda: not alive(first))


def test_a_crash_while_another_worker_waits_is_said_and_that_one_takes_over(made):
    it = made("--pace", "0.05").start()
    it.queue.add(Job(prompt="crash", seed=1, steps=4))
    until(lambda: it.queue.progress is not None and it.queue.progress.step == 1)
    it.client.use(command("--name", "far"))
    until(lambda: it.client.greeting is not None and it.client.greeting["backend"] == "far")
    assert "stopped unexpectedly" in next(one for one in it.notices if one).text
    assert it.entries() == [("crash", "paused")] and it.queue.state is State.IDLE


def test_who_hears_of_an_end_may_choose_another_worker_again(made):
    it = made("--pace", "0.05").start()
    it.client.ended.connect(lambda *_: it.client.use(command("--name", "farther")))
    it.queue.add(Job(prompt="fine", seed=1, steps=3))
    until(lambda: it.queue.progress is not None and it.queue.progress.step == 1)
    it.client.use(command("--name", "far"))
    until(lambda: it.client.greeting is not None and it.client.greeting["backend"] == "farther")
    assert not it.client.leaving and len(it.history.pictures()) == 1


def test_every_state_has_been_seen_by_these_tests():
    assert {state.value for state in State} == {
        "starting", "down", "idle", "loading", "generating", "stopping", "error", "crashed", "lost",
    }  # fmt: skip


def test_titles_and_times():
    assert title(Job(prompt="a  red\nfox")) == "‘a red fox’" and title(Job()) == "A picture without words"
    assert len(title(Job(prompt="word " * 40))) < 45 and title(Job(prompt="x" * 90)).endswith("…’")
    assert [duration(s) for s in (0.2, 9, 61, 120, 700, 7000)] == [
        "1 s",
        "9 s",
        "1 min 1 s",
        "2 min",
        "12 min",
        "1 h 57 min",
    ]


def test_no_space_is_left_behind(made):
    it = made().start()
    it.queue.add(Job(prompt="fine", seed=1, count=2))
    until(it.empty)
    assert not list((it.place / "pictures").rglob("*.part"))
    shutil.rmtree(it.place / "pictures")


def test_a_job_that_a_dead_worker_was_handed_did_not_kill_it(made):
    it = made().start()
    os.kill(it.client.pid, 9)
    it.queue.add(Job(prompt="fine", seed=1))  # before anybody has noticed
    assert it.queue.running is not None
    until(lambda: it.entries() == [("fine", "paused")] and it.client.greeting)
    assert it.queue.waiting[0].crashes == 0
    it.queue.resume()
    until(lambda: it.seeds() == [1])
