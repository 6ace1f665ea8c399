"""A thousand jobs through the real app and the real worker, and a hundred faults: is anything lost, or made twice?

    python tools/soak.py [--jobs 1000] [--faults 100] [--seed 1] [--home DIR]

The app runs in processes of its own (`tools/soak_app.py`), without a screen, with the embedded model at 2 steps. Which
faults hit which jobs, and when, comes from the seed. This program starts the app, starts it again when it was killed,
and looks at what is on the disk after every end of it. Exit code 0 if all is well, else 1; then the files are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
STEPS = 2
SUBJECTS = ("a red lighthouse by the sea", "a green hill", "a blue house in the snow", "two pine trees at dusk")
PATIENCE = 120.0  # seconds without a word of the app after which it hangs
LEAVING = 10.0  # seconds that a worker may take to go after its app

# What is done to a job, when, and how often in a hundred. "renamed" and "anytime" are kills by another thread.
FAULTS = {
    "worker killed, idle": (8, ("idle",)),
    "worker killed, drawing": (14, ("step",)),
    "worker killed, between picture and done": (10, ("saved",)),
    "poisoned job": (4, ("step",)),
    "app closed": (4, ("idle", "step", "saved")),
    "app killed": (18, ("idle", "added", "step", "written", "renaming", "renamed", "saved", "ended", "anytime")),
    "app killed, -wal deleted": (6, ("step", "renamed", "saved", "anytime")),
    "disk full": (10, ("step",)),
    "input picture deleted": (6, ("added",)),
    "picture deleted": (6, ("saved",)),
    "cancelled": (9, ("started", "step", "waiting")),
    "force stop": (5, ("step",)),
}
APP_KILLED = ("app killed", "app killed, -wal deleted")
ENDS = {(0, "app closed"), *((-signal.SIGKILL, kind) for kind in APP_KILLED)}  # of the app, by its code and the fault
BAD = ("cancelled", "failed", "aside")  # ends of a job without all of its pictures

LAST = b"\0\0\0\0IEND\xaeB`\x82"  # the chunk that ends a PNG
Event = dict[str, Any]
Planned = dict[str, Any]


# What is to be done.


def plan(jobs: int, faults: int, seed: int) -> list[Planned]:
    """The jobs, each with `n`, what the app is asked for, and perhaps a fault; every kind once before any twice."""
    rng = random.Random(seed)
    kinds = list(FAULTS)
    if faults > len(kinds):
        kinds += rng.choices(kinds, [often for often, _ in FAULTS.values()], k=faults - len(kinds))
    hit = dict(zip(sorted(rng.sample(range(jobs), faults)), rng.sample(kinds[:faults], faults), strict=True))
    planned = []
    for n in range(jobs):
        job: dict[str, Any] = {"prompt": f"soak {n:05} {rng.choice(SUBJECTS)}", "steps": STEPS, "seed": n * 10}
        kind = hit.get(n)
        if rng.random() < 0.1 or kind == "input picture deleted":
            job["strength"] = 1.0  # and a picture to start from, which the app process makes
        if rng.random() < 0.1:
            job["count"] = 2
        fault = {"kind": kind, "moment": rng.choice(FAULTS[kind][1]), "after": rng.uniform(0.0, 0.6)} if kind else None
        planned.append({"n": n, "job": job, "fault": fault})
    return planned


def number(prompt: str) -> int:
    """Which job a prompt is of; -1 for none of ours."""
    words = prompt.split()
    return int(words[1]) if len(words) > 1 and words[0] == "soak" and words[1].isdigit() else -1


# What was done.


@dataclass
class Found:
    """What is on the disk."""

    made: dict[tuple[int, int], list[Path]] = field(default_factory=dict)  # (job, seed): its pictures
    rows: dict[int, tuple[str, str | None]] = field(default_factory=dict)  # job: state in the queue, error
    order: list[int] = field(default_factory=list)  # jobs that wait, ran or are paused, in the queue's order
    parts: list[Path] = field(default_factory=list)  # files that are not whole yet
    indexed: set[Path] = field(default_factory=set)  # pictures that the index says are there
    problems: list[str] = field(default_factory=list)

    @property
    def files(self) -> set[Path]:
        """Every picture."""
        return {path for paths in self.made.values() for path in paths}


def look(home: Path) -> Found:
    """All of the app's files as they are, and what is wrong with one alone. The database is read from a copy."""
    found = Found()
    for path in sorted([*home.rglob("*.part"), *(home / "models").glob(".*.json.*")]):
        found.parts.append(path)
    for path in sorted((home / "pictures").rglob("*.png")):
        try:
            with Image.open(path) as picture:
                picture.verify()  # every chunk's check sum
            with Image.open(path) as picture:
                picture.load()
                job = json.loads(picture.info["mlxldm"])["job"]
            if not path.read_bytes().endswith(LAST):
                raise ValueError("it has no end")
            found.made.setdefault((number(job["prompt"]), job["seed"]), []).append(path)
        except Exception as error:  # of any kind: a person could not open it either
            kind = type(error).__name__
            found.problems.append(f"{path.name} is no whole picture with its job inside: {kind} {error}")
    with tempfile.TemporaryDirectory() as place:
        for path in (home / "app").glob("mlxldm.db*"):
            if path.name.endswith("-shm"):
                continue
            shutil.copy(path, place)
            if "damaged" in path.name:
                found.problems.append(f"the database was put aside as damaged: {path.name}")
        db = sqlite3.connect(Path(place) / "mlxldm.db")
        try:
            (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
            if verdict != "ok":
                found.problems.append(f"the database is damaged: {verdict}")
            for params, state, error in db.execute("SELECT params, state, error FROM job ORDER BY pos"):
                n = number(json.loads(params)["prompt"])
                if n in found.rows:
                    found.problems.append(f"job {n} is in the queue twice")
                found.rows[n] = state, error
                if state not in BAD:
                    found.order.append(n)
            found.indexed = {Path(path) for (path,) in db.execute("SELECT path FROM image WHERE missing = 0")}
        except sqlite3.Error as error:
            found.problems.append(f"the database cannot be read: {error}")
        finally:
            db.close()
    return found


def events_of(home: Path) -> list[Event]:
    """What the app's processes wrote down, in order; a last line that a kill cut off is none."""
    try:
        lines = (home / "journal").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def check(found: Found, events: list[Event], planned: list[Planned], end: bool) -> tuple[list[str], Counter[str]]:
    """What is wrong, and how the jobs ended; at the `end` all must have."""
    problems, endings = list(found.problems), Counter[str]()
    taken = {event["n"] for event in events if event["what"] == "added"}
    deleted = Counter((event["n"], event["seed"]) for event in events if event["what"] == "picture deleted")
    said: dict[int, tuple[str, str | None]] = {}
    for event in events:
        if event["what"] == "end":
            before = said.setdefault(event["n"], (event["state"], event["error"]))
            if before[0] != event["state"]:
                problems.append(f"job {event['n']} ended twice: {before[0]}, {event['state']}")
        elif event["what"] == "life" and event["found"] != sorted(event["found"]):
            problems.append(f"the app started with a queue of {event['found']}")
        elif event["what"] == "wrong":
            problems.append(event["text"])
    for key in found.made:
        if not (0 <= key[0] < len(planned)):
            problems.append(f"a picture of no job that was wanted: {found.made[key][0].name}")
    for one in planned:
        n, job = one["n"], one["job"]
        wanted = [(n, job["seed"] + i) for i in range(job.get("count", 1))]
        copies = [len(found.made.get(key, ())) + deleted[key] for key in wanted]
        extra = [key[1] for key in found.made if key[0] == n and key not in wanted]
        if max(copies) > 1 or extra:
            problems.append(f"job {n}: a picture was made twice" if not extra else f"job {n}: seed {extra[0]}, unasked")
        state, error = found.rows.get(n) or said.get(n) or (None, None)
        if state in BAD:
            if min(copies):
                problems.append(f"job {n} ended twice: all of its pictures are there, and it is {state}")
            elif state == "aside" and (one["fault"] or {}).get("kind") != "poisoned job":
                problems.append(f"job {n} was set aside, and killed no worker")
            elif state != "cancelled" and not error:
                problems.append(f"job {n} is {state}, and nothing says why")
            endings[state] += 1
        elif min(copies):
            if state is not None and end:
                problems.append(f"job {n} is made, and still {state}")
            endings["pictures"] += 1
        elif state is None and (n in taken or end):
            problems.append(f"job {n} is lost")
        elif end:
            problems.append(f"job {n} is still {state}")
    if found.order != sorted(found.order):
        problems.append(f"the queue's order is {found.order}")
    starts = list(dict.fromkeys(event["n"] for event in events if event["what"] == "started"))
    if starts != sorted(starts):
        late = next(b for a, b in zip(starts, starts[1:], strict=False) if b < a)
        problems.append(f"job {late} was begun after a later one")
    if end:
        problems += [f"a file was left over: {path.name}" for path in found.parts]
        for path in found.files ^ found.indexed:
            where = "index, but not there" if path in found.indexed else "folder, but not in the index"
            problems.append(f"{path.name} is in the {where}")
        hit = {event["n"] for event in events if event["what"] == "fault"}
        problems += [f"the fault of job {one['n']} ({one['fault']['kind']}) never came" for one in planned
                     if one["fault"] and one["n"] not in hit]  # fmt: skip
    return problems, endings


def recovery(events: list[Event]) -> tuple[float, str]:
    """The longest time from a kill to the next step of any job, in seconds, and what was killed."""
    worst, killed = (0.0, "nothing"), None
    for event in events:
        if event["what"] == "fault" and ("killed" in event["kind"] or event["kind"] in ("poisoned job", "force stop")):
            killed = event
        elif event["what"] == "step" and killed is not None:
            worst = max(worst, (event["t"] - killed["t"], f"{killed['kind']}, {killed['moment']}"))
            killed = None
    return worst


# Doing it.


def group(leader: int) -> list[int]:
    """The processes that live in the process group that the app began."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, of, state in rows if int(of) == leader and not state.startswith("Z")]


def run_app(home: Path) -> tuple[int, float, list[str]]:
    """One life of the app: its exit code, the seconds that its worker outlived it, and what was wrong."""
    surroundings = {**os.environ, "MLXLDM_HOME": str(home), "TMPDIR": str(home / "tmp"), "QT_QPA_PLATFORM": "offscreen"}
    journal, problems = home / "journal", []
    with open(home / "stderr", "ab") as log:
        app = subprocess.Popen([sys.executable, str(ROOT / "tools" / "soak_app.py")], env=surroundings, stderr=log,
                               start_new_session=True)  # fmt: skip
        heard, size = time.monotonic(), -1
        while app.poll() is None:
            time.sleep(0.05)
            now = journal.stat().st_size if journal.exists() else 0
            if now != size:
                heard, size = time.monotonic(), now
            elif time.monotonic() - heard > PATIENCE:
                problems.append(f"the app did nothing for {PATIENCE:.0f} s")
                app.kill()
                app.wait()
    left = time.monotonic()
    while group(app.pid) and time.monotonic() - left < LEAVING:
        time.sleep(0.05)
    outlived = time.monotonic() - left
    orphans = group(app.pid)
    if orphans:
        problems.append(f"{len(orphans)} processes outlived the app by more than {LEAVING:.0f} s")
        os.killpg(app.pid, signal.SIGKILL)
    return app.returncode, outlived, problems


def soak(home: Path, planned: list[Planned], say: Any = print) -> tuple[list[str], dict[str, Any]]:
    """All of it, in a folder of its own: what was wrong, and the figures."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    (home / "plan.json").write_text(json.dumps(planned))
    began, lives, outlived = time.monotonic(), 0, 0.0
    while True:
        code, after, problems = run_app(home)
        lives, outlived = lives + 1, max(outlived, after)
        events = events_of(home)
        last = next((event for event in reversed(events) if event["what"] == "fault"), None)
        kind = last["kind"] if last is not None else ""
        whole = code == 0 and bool(events) and events[-1]["what"] == "finished"
        if not whole and (code, kind) not in ENDS:
            problems.append(f"the app ended with code {code}")
        if (code, kind) == (-signal.SIGKILL, "app killed, -wal deleted"):
            for ending in ("-wal", "-shm"):
                (home / "app" / f"mlxldm.db{ending}").unlink(missing_ok=True)
        found = look(home)
        more, endings = check(found, events, planned, end=whole)
        problems += more + tracebacks(home)
        if problems or whole:
            break
        seconds = time.monotonic() - began
        say(f"{sum(endings.values())} of {len(planned)} jobs, {lives} ends of the app, {seconds:.0f} s")
    if whole:
        problems += [f"a temporary file was left over: {path.name}" for path in (home / "tmp").iterdir()]
    worst, killed = recovery(events)
    hit = {event["n"]: event["kind"] for event in events if event["what"] == "fault"}
    figures = {
        "jobs": len(planned),
        "faults": dict(sorted(Counter(hit.values()).items())),
        "endings": dict(sorted(endings.items())),
        "pictures": len(found.files),
        "starts of the app": lives,
        "starts of the worker": sum(event["what"] == "worker" for event in events),
        "seconds": round(time.monotonic() - began, 1),
        "worst recovery": f"{worst:.1f} s ({killed})",
        "longest that a worker outlived its app": f"{outlived:.1f} s",
    }
    return problems, figures


def tracebacks(home: Path) -> list[str]:
    """What the app's process said that it should not have had to."""
    text = (home / "stderr").read_text(errors="replace")
    return [f"the app raised: {text[text.index('Traceback'):][:3000]}"] if "Traceback" in text else []


def lines(figures: dict[str, Any]) -> Iterable[str]:
    """The report."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield f"{name}: {sum(value.values())}"
            yield from (f"    {count:5} {what}" for what, count in value.items())
        else:
            yield f"{name}: {value}"


def main() -> int:
    """Soak and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path, help="an empty folder to do it in, which is kept")
    asked = parser.parse_args()
    if not 0 <= asked.faults <= asked.jobs:
        parser.error("there can be one fault a job at most")
    home = asked.home or Path(tempfile.mkdtemp(prefix="mlxldm-soak-"))
    if home.exists() and any(home.iterdir()):
        parser.error(f"{home} is not empty")
    problems, figures = soak(home, plan(asked.jobs, asked.faults, asked.seed), lambda text: print(text, flush=True))
    print("\n".join(lines(figures)))
    for problem in problems:
        print(f"WRONG: {problem}")
    if problems:
        print(f"The files are in {home}.")
    elif asked.home is None:
        shutil.rmtree(home)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
