"""What must not be lost: the queue, and an index of the pictures. One SQLite file.

The pictures themselves are the truth about pictures; their index is a cache, which `pictures.Rescan` makes again from
the files. Rows whose file is gone are hidden and not deleted: a disk may come back, and with it what was a favourite.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlxldm.job import Job

VERSION = 2
TURN = threading.Lock()  # to write; one in this process at a time

# With an index of beginnings: a letter begins words in every prompt, whose lists would else be joined at every search.
WORDS = """
CREATE VIRTUAL TABLE words USING fts5(prompt, content='image', content_rowid='id', prefix='1 2',
    tokenize='unicode61 remove_diacritics 2');
"""
SCHEMA = f"""
CREATE TABLE job (
    id INTEGER PRIMARY KEY AUTOINCREMENT, pos REAL NOT NULL, state TEXT NOT NULL, params TEXT NOT NULL,
    count INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, error TEXT,
    crashes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE image (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, mtime REAL NOT NULL, size INTEGER NOT NULL, w INTEGER NOT NULL,
    h INTEGER NOT NULL, prompt TEXT NOT NULL, seed INTEGER, model TEXT, params TEXT NOT NULL,
    fav INTEGER NOT NULL DEFAULT 0, missing INTEGER NOT NULL DEFAULT 0);
CREATE INDEX image_newest ON image (mtime DESC) WHERE missing = 0;
{WORDS}
CREATE TRIGGER image_added AFTER INSERT ON image BEGIN
    INSERT INTO words(rowid, prompt) VALUES (new.id, new.prompt); END;
CREATE TRIGGER image_gone AFTER DELETE ON image BEGIN
    INSERT INTO words(words, rowid, prompt) VALUES ('delete', old.id, old.prompt); END;
CREATE TRIGGER image_changed AFTER UPDATE OF prompt ON image BEGIN
    INSERT INTO words(words, rowid, prompt) VALUES ('delete', old.id, old.prompt);
    INSERT INTO words(rowid, prompt) VALUES (new.id, new.prompt); END;
"""
# Where the next picture of a job is about to be: after a crash, whether it is there says whether it was made.
SAVING = "CREATE TABLE IF NOT EXISTS saving (job INTEGER PRIMARY KEY, path TEXT NOT NULL)"


@dataclass
class Entry:
    """A job in the queue. `done` of its `job.count` pictures are made; the next has seed `job.seed + done`."""

    id: int
    pos: float
    state: str  # waiting, running, paused, aside, failed or cancelled
    job: Job
    done: int
    created: float
    error: str | None
    crashes: int

    @property
    def rest(self) -> Job:
        """The job without the pictures that are made."""
        return self.job.numbered(self.done).replace(count=self.job.count - self.done)


class Picture(NamedTuple):
    """A picture in the gallery. A tuple, because twenty thousand are made at every start."""

    id: int
    path: str
    mtime: float  # seconds since 1970
    width: int
    height: int
    favourite: bool | int


@dataclass(frozen=True)
class Found:
    """What a picture's file says."""

    path: str
    mtime: float
    size: int
    width: int
    height: int
    record: dict[str, Any]  # {"job": ..., "made_by": ...}, or empty


class History:
    """The database at `path`, for one thread. A damaged one is put aside under another name, which `damaged` says.

    `sqlite3.OperationalError` where it cannot be used now: the disk is full, or it may not be written. It stays then.
    """

    def __init__(self, path: Path | str, durable: bool = True):
        """Where not `durable`, a power cut takes what was written last: for what is made again from the files."""
        self.path, self._durable = str(path), durable
        self.damaged: str | None = None
        self.edits = 0  # how often pictures were changed through this one, counted when they are
        try:
            self._db = self._opened()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            aside = f"{self.path}.damaged-{int(time.time())}"
            Path(self.path).rename(aside)
            for more in ("-wal", "-shm"):
                Path(self.path + more).unlink(missing_ok=True)
            self.damaged = aside
            self._db = self._opened()

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            if self._durable:
                db.execute("PRAGMA synchronous = FULL")  # a job that was taken is on the disk
                db.execute("PRAGMA wal_autocheckpoint = 1")  # and in this file: a -wal is easily taken for rubbish
            else:
                db.execute("PRAGMA synchronous = NORMAL")  # waits for the disk once in a thousand pages
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version == 1:  # whose words were indexed without their beginnings
                again = "DROP TABLE words;" + WORDS + "INSERT INTO words(words) VALUES ('rebuild');"
                db.executescript(f"BEGIN IMMEDIATE; {again} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise sqlite3.DatabaseError(f"version {version}")
            db.execute(SAVING)
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, when it is our turn: SQLite itself would let a thread wait in sleeps of up to 100 ms."""
        with TURN, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def close(self) -> None:
        """Nothing more from here."""
        self._db.close()

    # The queue.

    def jobs(self) -> list[Entry]:
        """All of them, in their order."""
        rows = self._db.execute("SELECT id, pos, state, params, done, created, error, crashes FROM job ORDER BY pos")
        entries = []
        for number, pos, state, params, done, created, error, crashes in rows:
            with contextlib.suppress(Exception):  # of a version that had other fields: not ours to run
                entries.append(Entry(number, pos, state, Job.from_json(params), done, created, error, crashes))
        return entries

    def add_job(self, job: Job, pos: float) -> Entry:
        """A job, on the disk when this returns."""
        params, now = json.dumps(job.to_json()), time.time()
        with self._writing() as db:
            cursor = db.execute(
                "INSERT INTO job (pos, state, params, count, created) VALUES (?, 'waiting', ?, ?, ?)",
                (pos, params, job.count, now),
            )
        assert cursor.lastrowid is not None
        return Entry(cursor.lastrowid, pos, "waiting", job, 0, now, None, 0)

    def keep_job(self, entry: Entry) -> None:
        """What has changed of a job."""
        with self._writing():
            self._keep(entry)

    def _keep(self, entry: Entry) -> None:
        self._db.execute(
            "UPDATE job SET pos = ?, state = ?, done = ?, error = ?, crashes = ? WHERE id = ?",
            (entry.pos, entry.state, entry.done, entry.error, entry.crashes, entry.id),
        )

    def drop_jobs(self, numbers: Iterable[int]) -> None:
        """Forget jobs."""
        with self._writing() as db:
            db.executemany("DELETE FROM job WHERE id = ?", [(number,) for number in numbers])

    def will_save(self, entry: Entry, path: Path) -> None:
        """The job's next picture is about to be written to `path`, where nothing is."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO saving (job, path) VALUES (?, ?)", (entry.id, str(path)))

    def has_saved(self, entry: Entry, found: Found) -> Picture:
        """It is written: in the index, and among the job's `done`, which are counted already; both or neither."""
        with self._writing() as db:
            self._keep(entry)
            db.execute("DELETE FROM saving WHERE job = ?", (entry.id,))
            picture = self._put(found)
        self.edits += 1
        return picture

    def recover(self) -> list[Path]:
        """At the start, whatever the end was like: what ran is paused, what is made is counted, what is whole is gone.

        Returns where pictures were about to be; what is not there is not made.
        """
        with self._writing() as db:
            saving = db.execute("SELECT job, path FROM saving").fetchall()
            made = [(number,) for number, path in saving if os.path.exists(path)]
            db.executemany("UPDATE job SET done = done + 1 WHERE id = ?", made)
            db.execute("DELETE FROM saving")
            db.execute("UPDATE job SET state = 'paused' WHERE state = 'running'")
            db.execute("DELETE FROM job WHERE done >= count")
        return [Path(path) for _, path in saving]

    # The pictures.

    def pictures(self) -> list[Picture]:
        """All that are there, newest first."""
        rows = self._db.execute(
            "SELECT id, path, mtime, w, h, fav FROM image WHERE missing = 0 ORDER BY mtime DESC, id DESC"
        )
        return list(map(Picture._make, rows))

    def search(self, text: str) -> set[int] | None:
        """The pictures whose prompt has words that begin like these; None where there is nothing to look for."""
        words = ["".join(c if c.isalnum() else " " for c in word) for word in text.split()]
        terms = [f'"{part}"*' for word in words for part in word.split()]
        if not terms:
            return None
        query = "SELECT group_concat(rowid) FROM words WHERE words MATCH ?"  # one row: a third of the time of many
        (numbers,) = self._db.execute(query, (" ".join(terms),)).fetchone()
        return set(map(int, numbers.split(","))) if numbers else set()

    def record(self, number: int) -> dict[str, Any]:
        """What a picture's file says of how it was made."""
        row = self._db.execute("SELECT params FROM image WHERE id = ?", (number,)).fetchone()
        return json.loads(row[0]) if row else {}

    def known(self) -> dict[str, tuple[float, int, bool]]:
        """Time, size and missing of every file in the index."""
        rows = self._db.execute("SELECT path, mtime, size, missing FROM image")
        return {path: (mtime, size, bool(missing)) for path, mtime, size, missing in rows}

    def add_pictures(self, found: Iterable[Found]) -> list[Picture]:
        """Put files into the index, or what has changed of them."""
        with self._writing():
            pictures = [self._put(one) for one in found]
        self.edits += 1
        return pictures

    def _put(self, one: Found) -> Picture:
        job = one.record.get("job")
        job = job if isinstance(job, dict) else {}
        prompt, seed, model = job.get("prompt"), job.get("seed"), job.get("model")
        number, favourite = self._db.execute(
            """INSERT INTO image (path, mtime, size, w, h, prompt, seed, model, params)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (path) DO UPDATE SET mtime = excluded.mtime, size = excluded.size, w = excluded.w,
            h = excluded.h, prompt = excluded.prompt, seed = excluded.seed, model = excluded.model,
            params = excluded.params, missing = 0 RETURNING id, fav""",
            (one.path, one.mtime, one.size, one.width, one.height, prompt if isinstance(prompt, str) else "",
             seed if type(seed) is int and abs(seed) < 2**63 else None, model if isinstance(model, str) else None,
             json.dumps(one.record)),
        ).fetchone()  # fmt: skip
        return Picture(number, one.path, one.mtime, one.width, one.height, bool(favourite))

    def missing(self, paths: Iterable[str], gone: bool = True) -> None:
        """Files that are not there now, or are again."""
        with self._writing() as db:
            db.executemany("UPDATE image SET missing = ? WHERE path = ?", [(gone, path) for path in paths])
        self.edits += 1

    def favour(self, numbers: Iterable[int], favourite: bool) -> None:
        """A heart, or none. It lives here only: a person's file is never written again."""
        with self._writing() as db:
            db.executemany("UPDATE image SET fav = ? WHERE id = ?", [(favourite, number) for number in numbers])
        self.edits += 1

    def last_prompts(self, count: int = 20) -> list[str]:
        """The newest prompts, each once."""
        rows = self._db.execute("SELECT prompt FROM image WHERE prompt != '' ORDER BY mtime DESC LIMIT 500")
        return list(dict.fromkeys(row[0] for row in rows))[:count]
