"""The app's end of the protocol: framing at every point, and a worker that may do anything."""

from __future__ import annotations

import json
import os
import random
import signal

import pytest
from app_things import alive, application, command, gone, spend, until
from PySide6.QtTest import QSignalSpy

from mlxldm_app import client as module
from mlxldm_app.client import Broken, Client, Frames, worker_command

MESSAGES = [
    ({"ev": "ready", "protocol": 1}, b""),
    ({"ev": "preview", "id": "é✓", "bytes": 6}, b"a\nb{}\n"),
    ({"ev": "picture", "id": "j", "bytes": 0}, b""),
    ({"ev": "log", "message": "x" * 300}, b""),
    ({"ev": "models", "bytes": 3000}, bytes(range(250)) * 12),
]
STREAM = b"".join(json.dumps(message).encode() + b"\n" + payload for message, payload in MESSAGES)


def test_messages_come_whole_from_pieces_cut_anywhere():
    for cut in range(len(STREAM) + 1):
        frames = Frames()
        assert [*frames.feed(STREAM[:cut]), *frames.feed(STREAM[cut:])] == MESSAGES
    frames = Frames()
    assert [one for at in range(len(STREAM)) for one in frames.feed(STREAM[at : at + 1])] == MESSAGES


def test_messages_come_whole_from_random_pieces():
    dice = random.Random(3)
    for _ in range(300):
        sent, stream = [], b""
        for _ in range(dice.randrange(1, 9)):
            payload = dice.randbytes(dice.choice([0, 1, 7, 900]))
            message = {"ev": "x", "id": chr(dice.randrange(32, 0x2FFF)), **({"bytes": len(payload)} if payload else {})}
            sent.append((message, payload))
            stream += json.dumps(message).encode() + b"\n" + payload
        frames, got = Frames(), []
        while stream:
            size = dice.randrange(1, 200)
            got += frames.feed(stream[:size])
            stream = stream[size:]
        assert got == sent


@pytest.mark.parametrize("bad", [
    b"no json\n", b"[1]\n", b'{"op": "x"}\n', b'{"ev": 3}\n', b'{"ev": "x", "bytes": -1}\n',
    b'{"ev": "x", "bytes": 1.5}\n', b'{"ev": "x", "bytes": true}\n', b'{"ev": "x", "bytes": 99999999999}\n',
    b"\xff\xfe\n", b"[" * 5000 + b"\n",
    b"x" * (65 << 10), b"x" * (65 << 10) + b"\n",
])  # fmt: skip
def test_what_is_no_message_is_noise_before_the_first_and_broken_after(bad):
    frames = Frames()
    frames.feed(b'{"ev": "ready"}\n')
    with pytest.raises(Broken):
        frames.feed(bad)
    frames = Frames()
    if len(bad) < 64 << 10:
        assert frames.feed(bad + b'{"ev": "ready"}\n') == [({"ev": "ready"}, b"")] and len(frames.noise) == 1
    else:
        with pytest.raises(Broken):
            frames.feed(bad)


@pytest.fixture
def started():
    """`started(*flags)`: a client of the scripted worker that is ready."""
    application()
    clients = []

    def start(*flags: str) -> Client:
        one = Client(command(*flags))
        clients.append(one)
        one.start()
        until(lambda: one.greeting)
        return one

    yield start
    for one in clients:
        pid = one.pid
        one.close()
        assert not pid or not alive(pid)
        gone(one)


def ends(client: Client) -> QSignalSpy:
    return QSignalSpy(client.ended)


def test_a_job_from_ready_to_done(started):
    client = started()
    seen, over = QSignalSpy(client.said), ends(client)
    client.generate("j", {"prompt": "fine", "seed": 3, "steps": 3, "count": 2})
    until(lambda: over.count())
    kinds = [seen.at(i)[0]["ev"] for i in range(seen.count())]
    assert kinds[0] == "loading" and kinds.count("step") == 6 and kinds.count("picture") == 2
    assert over.at(0)[0] == "j" and over.at(0)[1]["ev"] == "done"
    picture = [seen.at(i) for i in range(seen.count()) if seen.at(i)[0]["ev"] == "picture"][1]
    assert picture[1].startswith(b"\x89PNG") and picture[0]["seed"] == 4


def test_pictures_go_along_with_a_job(started):
    client = started()
    over = ends(client)
    client.generate("j", {"prompt": "fine", "image": "a.png"}, {"image": b"x" * 100_000, "mask": b"yy"})
    until(lambda: over.count())
    assert over.at(0)[1]["ev"] == "done"


def test_cancel_and_force(started):
    client = started("--pace", "0.02")
    over = ends(client)
    client.generate("slow", {"prompt": "slow", "steps": 50})
    client.generate("next", {"prompt": "fine"})
    until(lambda: client._heard and over.count() == 0 and client._running)
    client.cancel("slow")
    until(lambda: over.count() == 2)
    assert [over.at(i)[1]["ev"] for i in range(2)] == ["cancelled", "done"]
    client.generate("deaf", {"prompt": "hang", "steps": 5})
    steps = QSignalSpy(client.said)
    until(lambda: any(steps.at(i)[0].get("step") == 2 for i in range(steps.count())))
    client.cancel("deaf")
    spend(0.2)
    assert over.count() == 2
    crashed, ready, pid = QSignalSpy(client.crashed), QSignalSpy(client.ready), client.pid
    client.kill()
    until(lambda: ready.count())
    assert over.count() == 3 and over.at(2)[1]["ev"] == "cancelled" and crashed.count() == 0
    assert client.pid != pid and not alive(pid)


@pytest.mark.parametrize("how, kind", [("crash", "crash"), ("oom", "memory"), ("garbage", "protocol")])
def test_a_worker_that_goes_ends_its_jobs_once_and_comes_back(started, how, kind):
    client = started()
    over, crashed, ready = ends(client), QSignalSpy(client.crashed), QSignalSpy(client.ready)
    client.generate("a", {"prompt": how, "steps": 9})
    client.generate("b", {"prompt": "fine"})
    until(lambda: ready.count())
    assert sorted(over.at(i)[0] for i in range(over.count())) == ["a", "b"]
    assert all(over.at(i)[1]["kind"] == "crash" for i in range(2))
    assert crashed.count() == 1 and crashed.at(0)[0].kind == kind
    client.generate("c", {"prompt": "fine"})
    until(lambda: over.count() == 3)
    assert over.at(2)[1]["ev"] == "done"


def test_three_crashes_in_two_minutes_and_it_stays_down_until_it_is_started(started):
    client = started()
    down, ready = QSignalSpy(client.down), QSignalSpy(client.ready)
    for turn in range(1, 4):
        os.kill(client.pid, signal.SIGSEGV)
        until(lambda turn=turn: down.count() if turn == 3 else ready.count() == turn)
    spend(0.3)
    assert client.pid == 0 and client.greeting is None
    client.start()
    until(lambda: client.greeting)


def test_crashes_long_ago_do_not_count(started, monkeypatch):
    monkeypatch.setattr(module, "WITHIN", 0.0)
    client = started()
    ready = QSignalSpy(client.ready)
    for turn in range(1, 5):
        os.kill(client.pid, signal.SIGSEGV)
        until(lambda turn=turn: ready.count() == turn)


@pytest.mark.parametrize("flags, kind", [(["--refuse"], "refused"), (["--die"], "crash"), (None, "start")])
def test_a_worker_that_cannot_run_is_said_and_not_started_for_ever(flags, kind):
    application()
    client = Client(command(*flags) if flags else ("/nowhere/at/all", [], {}))
    down = QSignalSpy(client.down)
    client.start()
    until(lambda: down.count())
    assert down.at(0)[0].kind == kind
    if kind == "refused":
        assert "There is no backend here" in down.at(0)[0].text
    client.close()


def test_much_on_stderr_does_not_stop_it_and_its_end_is_kept(started):
    client = started()
    over = ends(client)
    client.generate("j", {"prompt": "flood", "steps": 3})
    until(lambda: over.count())
    assert over.at(0)[1]["ev"] == "done"
    until(lambda: len(client.log) == module.KEPT)


def test_silence_is_said_and_nobody_is_killed(started, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    client = started("--silent")
    client._beat.setInterval(50)
    quiet, pid = QSignalSpy(client.quiet), client.pid
    until(lambda: quiet.count())
    assert quiet.at(0)[0] is True and client.pid == pid
    client.generate("j", {"prompt": "fine"})
    until(lambda: quiet.count() == 2)
    assert quiet.at(1)[0] is False


def test_of_questions_with_one_key_only_the_newest_is_answered(started):
    client, answers = started(), []
    for number in range(5):
        client.ask("tokens", lambda message, _, number=number: answers.append((number, message["prompt"])), "tokens",
                   job={"prompt": "a " * number})  # fmt: skip
    until(lambda: answers)
    spend(0.1)
    assert answers == [(4, 4)]


def test_the_worker_is_started_as_each_kind_of_installation_can(monkeypatch):
    application()
    import sys

    assert worker_command() == (sys.executable, ["-m", "mlxldm.cli", "worker"], {})
    monkeypatch.setenv("BRIEFCASE_MAIN_MODULE", "mlxldm_app")
    program, arguments, environment = worker_command()
    assert environment == {"BRIEFCASE_MAIN_MODULE": "mlxldm.worker"} and program and arguments == ["--worker"]
    monkeypatch.delenv("BRIEFCASE_MAIN_MODULE")
    monkeypatch.setattr(sys, "path", [*sys.path, "/Applications/x.app/Contents/Resources/app_packages"])
    assert worker_command()[2] == {"BRIEFCASE_MAIN_MODULE": "mlxldm.worker"}
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert worker_command()[1:] == (["--worker"], {})
