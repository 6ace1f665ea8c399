"""A short soak; and that its checker finds what it is there to find."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
import sys
from pathlib import Path

import app_things
import fake_worker
import pytest
from conftest import ROOT, needs_mlx

from mlxldm_app.history import History

sys.path.insert(0, str(ROOT / "tools"))
import soak  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")

STOPPED = {"kind": "cancelled", "moment": "step", "after": 0.1}
JOBS = [{"n": n, "job": {"prompt": f"soak {n:05} a hill", "steps": 2, "seed": n * 10, "count": 1 + (n == 1)},
         "fault": STOPPED if n == 2 else None} for n in range(4)]  # fmt: skip


@needs_mlx
def test_a_short_soak_with_every_fault(tmp_path):
    planned = soak.plan(13, len(soak.FAULTS), seed=4)
    problems, figures = soak.soak(tmp_path, planned)
    assert problems == [], "\n".join(problems)
    assert set(figures["faults"]) == set(soak.FAULTS)
    assert sum(figures["endings"].values()) == 13 and figures["endings"]["aside"] == figures["endings"]["failed"] == 1
    assert figures["starts of the app"] == 4 and figures["starts of the worker"] >= 8
    assert "soak" in "\n".join(path.name for path in soak.look(tmp_path).files)


def test_a_plan_is_the_same_for_the_same_seed_and_has_every_fault():
    planned = soak.plan(1000, 100, seed=1)
    assert planned == soak.plan(1000, 100, seed=1) != soak.plan(1000, 100, seed=2)
    faults = [one["fault"] for one in planned if one["fault"]]
    assert len(faults) == 100 and {one["kind"] for one in faults} == set(soak.FAULTS)
    moments = {(one["kind"], one["moment"]) for seed in range(9) for one in _faults(seed)}
    assert moments == {(kind, when) for kind, (_, all_of_them) in soak.FAULTS.items() for when in all_of_them}


def _faults(seed: int) -> list[dict]:
    return [one["fault"] for one in soak.plan(1000, 100, seed) if one["fault"]]


class Home:
    """What an app leaves on the disk that drew all of `JOBS` but the third, which was stopped."""

    def __init__(self, place: Path):
        self.place = place
        self.events = [{"what": what, "n": one["n"]} for one in JOBS for what in ("adding", "added", "started")]
        self.events += [{"what": "fault", "n": 2, "kind": "cancelled"},
                        {"what": "end", "n": 2, "state": "cancelled", "error": None}]  # fmt: skip
        (place / "app").mkdir(parents=True)
        self.history = History(place / "app" / "mlxldm.db")
        for n, seed in ((0, 0), (1, 10), (1, 11), (3, 30)):
            self.draw(n, seed)

    def draw(self, n: int, seed: int, name: str = "", indexed: bool = True) -> Path:
        path = self.place / "pictures" / "2026-11-21" / (name or f"{seed:04}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"job": {"prompt": JOBS[n]["job"]["prompt"], "seed": seed}, "made_by": {}}
        path.write_bytes(fake_worker.png(16, 16, seed, {"mlxldm": json.dumps(record)}))
        if indexed:
            from mlxldm_app import pictures

            self.history.add_pictures([pictures.read(path)])
        return path

    def add(self, n: int, state: str, error: str | None = None, pos: float = 1.0) -> None:
        from mlxldm.job import Job

        entry = self.history.add_job(Job.from_json(JOBS[n]["job"]), pos)
        entry.state, entry.error = state, error
        self.history.keep_job(entry)

    def problems(self, end: bool = True, events: list[dict] | None = None) -> list[str]:
        return soak.check(soak.look(self.place), self.events if events is None else events, JOBS, end)[0]


@pytest.fixture
def home(tmp_path):
    app_things.application()
    made = Home(tmp_path / "home")
    yield made
    made.history.close()


def test_a_good_end_is_found_good(home):
    found = soak.look(home.place)
    assert soak.check(found, home.events, JOBS, end=True) == ([], {"pictures": 3, "cancelled": 1})
    assert len(found.files) == 4 == len(found.indexed)


def test_a_lost_picture_is_found(home):
    (home.place / "pictures" / "2026-11-21" / "0011.png").unlink()
    assert "job 1 is lost" in home.problems()
    assert "job 1 is lost" in home.problems(end=False)
    home.history.missing([str(home.place / "pictures" / "2026-11-21" / "0011.png")])
    assert home.problems(events=[*home.events, {"what": "picture deleted", "n": 1, "seed": 11}]) == []


def test_a_picture_that_was_made_twice_is_found(home):
    home.draw(0, 0, "again.png")
    assert home.problems() == ["job 0: a picture was made twice"]
    home.draw(0, 7)
    assert "job 0: seed 7, unasked" in home.problems()


@pytest.mark.parametrize("cut", [0, 8, 100, -4])
def test_a_picture_that_is_not_whole_is_found(home, cut):
    path = home.place / "pictures" / "2026-11-21" / "0030.png"
    path.write_bytes(path.read_bytes()[:cut])
    (first, *_) = home.problems(end=False)
    assert first.startswith("0030.png is no whole picture")


def test_a_picture_without_its_job_is_found(home):
    (home.place / "pictures" / "2026-11-21" / "0030.png").write_bytes(fake_worker.png(16, 16, 1, {}))
    assert any(problem.startswith("0030.png is no whole picture with its job inside") for problem in home.problems())


def test_what_is_left_over_is_found(home):
    (home.place / "pictures" / "2026-11-21" / "0031.png.part").write_bytes(b"x")
    assert home.problems() == ["a file was left over: 0031.png.part"]
    assert home.problems(end=False) == [], "in the middle there may be one"


def test_an_index_that_is_not_what_the_folder_has_is_found(home):
    home.draw(2, 20, indexed=False)
    assert "0020.png is in the folder, but not in the index" in home.problems()


def test_two_ends_of_one_job_are_found(home):
    home.add(0, "cancelled")
    assert home.problems() == ["job 0 ended twice: all of its pictures are there, and it is cancelled"]
    failed = {"what": "end", "n": 2, "state": "failed", "error": "a reason"}
    assert "job 2 ended twice: cancelled, failed" in home.problems(events=[*home.events, failed])


def test_an_end_without_a_reason_is_found(home):
    nameless = [event if event["what"] != "end" else {**event, "state": "failed"} for event in home.events]
    assert home.problems(events=nameless) == ["job 2 is failed, and nothing says why"]


def test_a_job_that_was_set_aside_for_nothing_is_found(home):
    aside = [*home.events[:-1], {"what": "end", "n": 2, "state": "aside", "error": "a reason"}]
    assert home.problems(events=aside) == ["job 2 was set aside, and killed no worker"]
    poisoned = [{**one, "fault": one["fault"] and {**one["fault"], "kind": "poisoned job"}} for one in JOBS]
    assert soak.check(soak.look(home.place), aside, poisoned, end=True)[0] == []


def test_jobs_that_never_end_and_a_wrong_order_are_found(home):
    (home.place / "pictures" / "2026-11-21" / "0000.png").unlink()
    home.history.missing([str(home.place / "pictures" / "2026-11-21" / "0000.png")])
    home.add(0, "waiting", pos=2.0)
    home.add(3, "waiting", pos=1.0)
    problems = home.problems()
    assert "job 0 is still waiting" in problems and "the queue's order is [3, 0]" in problems
    assert "job 3 is made, and still waiting" in problems
    assert "the app started with a queue of [3, 0]" in home.problems(events=[{"what": "life", "found": [3, 0]}])
    late = [*home.events[2:], home.events[0], home.events[1], {"what": "started", "n": 0}]
    assert "job 0 was begun after a later one" in home.problems(events=late[1:])


def test_a_damaged_database_is_found(home):
    home.history.close()
    database = home.place / "app" / "mlxldm.db"
    whole = database.read_bytes()
    database.write_bytes(whole[:4096] + b"\xff" * 200 + whole[4296:])
    assert any("database" in problem for problem in home.problems())
    database.write_bytes(b"no database" * 1000)
    assert any("the database cannot be read" in problem for problem in home.problems())
    shutil.copy(database, home.place / "app" / "mlxldm.db.damaged-1")
    sqlite3.connect(home.place / "app" / "mlxldm.db").close()
    assert any("put aside as damaged" in problem for problem in home.problems())


def test_a_fault_that_never_came_and_an_app_that_complained_are_found(home):
    quiet = [event for event in home.events if event["what"] != "fault"]
    assert home.problems(events=quiet) == ["the fault of job 2 (cancelled) never came"]
    raised = [*home.events, {"what": "wrong", "text": "something began by itself"}]
    assert home.problems(events=raised) == ["something began by itself"]


def test_a_job_that_was_about_to_be_added_may_be_added_again_and_one_that_was_added_may_not_be_lost(home):
    jobs = copy.deepcopy(JOBS) + [{"n": 4, "job": {"prompt": "soak 00004 x", "seed": 40}, "fault": None}]
    found = soak.look(home.place)
    adding = [*home.events, {"what": "adding", "n": 4}]
    assert soak.check(found, adding, jobs, end=False)[0] == []
    assert soak.check(found, [*adding, {"what": "added", "n": 4}], jobs, end=False)[0] == ["job 4 is lost"]


def test_the_time_to_recover_is_the_longest(home):
    events = [{"t": t, "what": what, "kind": kind, "moment": "step"} for t, what, kind in (
        (1.0, "fault", "app killed"), (3.5, "step", ""), (4.0, "fault", "cancelled"), (99.0, "step", ""),
        (100.0, "fault", "worker killed, idle"), (101.0, "step", ""))]  # fmt: skip
    assert soak.recovery(events) == (2.5, "app killed, step")


def test_a_process_that_outlives_its_app_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "LEAVING", 0.3)
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    (tmp_path / "tools").mkdir()
    script = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    (tmp_path / "tools" / "soak_app.py").write_text(script)
    code, outlived, problems = soak.run_app(tmp_path)
    assert code == 0 and outlived > 0.3 and problems == ["1 processes outlived the app by more than 0 s"]
