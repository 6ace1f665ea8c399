"""Where pictures are made: command lines, what ssh's failures mean, and probes with a stand-in for ssh."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("PySide6.QtWidgets", reason="Qt is not here, or not all of it", exc_type=ImportError)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from app_things import gone  # noqa: E402
from PySide6.QtCore import Qt  # noqa: E402
from PySide6.QtTest import QTest  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

from mlxldm_app import client, probe  # noqa: E402
from mlxldm_app.backends import BackendPopover, places  # noqa: E402
from mlxldm_app.probe import Found, Probe  # noqa: E402
from mlxldm_app.remote import Place  # noqa: E402
from mlxldm_app.ssh import explained, is_host, ssh  # noqa: E402

MAC = Found("Apple M2", "mlx", 16 << 30, "0.1.0", 7, (
    {"name": "mlx", "ready": True, "version": "0.32.4", "devices": ["gpu", "cpu"], "device_name": "Apple M2",
     "memory": 16 << 30},
    {"name": "torch", "ready": False, "note": "not installed"},
), {"backend": "mlx", "device": None, "why": "Apple silicon"})  # fmt: skip


@pytest.fixture(autouse=True)
def app() -> QApplication:
    return QApplication.instance() or QApplication([])  # type: ignore[return-value]


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`ssh` becomes a script that writes its arguments down, and then does what is said."""

    def make(script: str) -> Path:
        path, asked = tmp_path / "bin" / "ssh", tmp_path / "asked"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{asked}"\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
        return asked

    return make


def wait(done: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "nothing came"
        QTest.qWait(10)


@pytest.mark.parametrize("host", ["studio.local", "me@10.0.0.4", "a_b-c", "fe80::1", "me@host"])
def test_hosts(host: str):
    assert is_host(host) and ssh(host)[1][-3:] == [host, "mlxldm", "worker"]
    assert Place.of(Place(host=host).key) == Place(host=host)


@pytest.mark.parametrize("host", ["", "-oProxyCommand=sh", "a b", "a;b", "a\n", "$(x)", "a/b", "ä"])
def test_what_is_no_host(host: str):
    assert not is_host(host)
    with pytest.raises(ValueError):
        ssh(host)
    assert Place.of(f"ssh {host}") == Place()


def test_places_of_this_machine_are_arguments_of_its_worker():
    program, arguments, _ = Place("torch", "cuda:1").command
    assert program == sys.executable and arguments[-5:] == ["worker", "--backend", "torch", "--device", "cuda:1"]
    assert Place().command == client.worker_command()
    for place in (Place(), Place("mlx", "cpu"), Place("torch", "cuda:0"), Place("torch")):
        assert Place.of(place.key) == place
    assert Place.of("torch rm") == Place.of("other cpu") == Place()


def test_the_worker_of_every_way_to_start(monkeypatch: pytest.MonkeyPatch, app: QApplication):
    own = app.applicationFilePath()
    assert client.worker_command() == (sys.executable, ["-m", "mlxldm.cli", "worker"], {})
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert client.worker_command() == (own, ["--worker"], {})
    monkeypatch.delattr(sys, "frozen")
    monkeypatch.setattr(sys, "path", ["/Applications/mlxldm.app/Contents/Resources/app_packages", *sys.path])
    program, arguments, environment = client.worker_command()
    assert program == own and environment == {"BRIEFCASE_MAIN_MODULE": "mlxldm.worker"} and "--worker" in arguments


@pytest.mark.parametrize(("said", "means"), [
    ("ssh: Could not resolve hostname studio: Name or service not known", "No machine is called"),
    ("Host key verification failed.", "answer yes: ssh me@studio"),
    ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "ssh-keygen -R studio"),
    ("me@studio: Permission denied (publickey,password).", "ssh-copy-id me@studio"),
    ("ssh: connect to host studio port 22: Connection refused", "no ssh connections"),
    ("ssh: connect to host studio port 22: Connection timed out", "does not answer"),
    ("bash: line 1: mlxldm: command not found", "not found on ‘studio’"),
    ("zsh:1: command not found: mlxldm", "not found on ‘studio’"),
    ("kex_exchange_identification: Connection closed by remote host", "closed the connection"),
    ("something else", "it said: something else"),
    ("", "ssh ended with code 255"),
])  # fmt: skip
def test_what_ssh_says_becomes_a_sentence(said: str, means: str):
    assert means in explained("me@studio", said, 255)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ssh is a shell script")
def test_another_machine_says_what_it_has(fake_ssh):
    asked = fake_ssh(f'echo "Welcome to studio"; exec "{sys.executable}" -m mlxldm.cli worker --backend mlx')
    asked_for, found, failed = Probe(Place(host="me@studio")), [], []
    asked_for.found.connect(found.append)
    asked_for.failed.connect(failed.append)
    asked_for.start()
    wait(lambda: found or failed)
    assert not failed, failed
    assert found[0].models == 1 and found[0].backend == "mlx" and "mlxldm" in found[0].line
    assert {row["name"] for row in found[0].backends} == {"mlx", "torch"}
    assert asked.read_text().splitlines() == [
        "-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ConnectTimeout=8", "me@studio", "mlxldm",
        "worker"]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ssh is a shell script")
@pytest.mark.parametrize(("script", "means"), [
    ("echo 'bash: mlxldm: command not found' >&2; exit 127", "mlxldm was not found on ‘studio’"),
    ("echo 'Permission denied (publickey).' >&2; exit 255", "ssh-copy-id me@studio"),
    ("""echo '{"ev": "ready", "protocol": 2, "version": "9.0"}'; cat >/dev/null""", "mlxldm 9.0, which speaks another"),
    ("""echo '{"ev": "error", "id": null, "kind": "wish", "message": "Nothing here."}'; exit 2""", "Nothing here."),
    ("echo hello; exit 0", "it said: hello"),
    ("sleep 60", "did not answer within"),
])  # fmt: skip
def test_failures_are_said_once(fake_ssh, script: str, means: str, monkeypatch: pytest.MonkeyPatch):
    if "sleep" in script:
        monkeypatch.setattr(probe, "PATIENCE", 0.5)
    fake_ssh(script)
    asked_for, found, failed = Probe(Place(host="me@studio")), [], []
    asked_for.found.connect(found.append)
    asked_for.failed.connect(failed.append)
    asked_for.start()
    wait(lambda: failed)
    QTest.qWait(50)
    assert len(failed) == 1 and means in failed[0] and not found


def test_where_this_machine_can_draw():
    rows = places(MAC)
    assert [(place.key, title) for place, title, _ in rows] == [("auto", "MLX"), ("mlx cpu", "MLX, CPU (slow)")]
    assert rows[0][2] == "Apple M2 · 16 GB · version 0.32.4 · 7 models"


def test_exactly_one_is_active():
    popover = BackendPopover(Place(), ["me@studio"])
    popover.show_here(MAC)
    chosen, hosts = [], []
    popover.chosen.connect(chosen.append)
    popover.hosts_changed.connect(hosts.append)
    popover.show()
    assert [row.radio.isChecked() for row in popover.rows] == [True, False, False]
    popover.rows[2].radio.click()
    assert [row.radio.isChecked() for row in popover.rows] == [False, False, True]
    assert chosen == [Place(host="me@studio")]
    popover.forget(Place(host="me@studio"))
    assert chosen[-1] == Place() and hosts == [[]] and len(popover.rows) == 2
    assert sum(row.radio.isChecked() for row in popover.rows) == 1
    popover.set_busy(True)
    assert "waits" in popover.note.text()
    gone(popover)


def test_a_machine_that_answers_is_remembered_and_one_that_does_not_is_not(fake_ssh):
    fake_ssh("echo 'Permission denied (publickey).' >&2; exit 255")
    popover, hosts = BackendPopover(Place(), []), []
    popover.hosts_changed.connect(hosts.append)
    popover.show()
    QTest.keyClicks(popover.host, "-oProxy")
    assert not popover.test_button.isEnabled() and "user@host" in popover.result.text()
    popover.host.clear()
    QTest.keyClicks(popover.host, "me@studio")
    QTest.mouseClick(popover.test_button, Qt.MouseButton.LeftButton)
    assert not popover.test_button.isEnabled() and "Asking" in popover.result.text()
    wait(lambda: "ssh-copy-id" in popover.result.text())
    assert popover.test_button.isEnabled() and not hosts
    popover._answered("me@studio", Found("RTX 4090", "torch", 24 << 30, "0.1.0", 12))
    assert hosts == [["me@studio"]] and popover.rows[-1].facts.whole == "RTX 4090 · 24 GB · mlxldm 0.1.0 · 12 models"
    popover.close()
