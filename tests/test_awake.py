"""Staying awake, with a runtime of Objective-C's shape that writes down what it is asked: macOS itself is not here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlxldm.awake import MAY_SLEEP, USER_INITIATED, Awake
from mlxldm.process_info import ProcessInfo

RUNTIME = r"""
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static void say(const char *what) {
    FILE *file = fopen(getenv("ASKED"), "a"); fprintf(file, "%s\n", what); fclose(file);
}
void *objc_getClass(const char *name) { return (void *)strdup(name); }
void *sel_registerName(const char *name) { return (void *)strdup(name); }
void *objc_autoreleasePoolPush(void) { say("push"); return (void *)7; }
void objc_autoreleasePoolPop(void *pool) { say(pool == (void *)7 ? "pop" : "pop of another"); }
void *objc_msgSend(void *self, void *selector, uint64_t one, void *two) {
    char line[400];
    const char *name = selector;
    if (!strcmp(name, "processInfo")) return strdup("the process");
    if (!strcmp(name, "stringWithUTF8String:")) return strdup((char *)one);
    if (!strcmp(name, "beginActivityWithOptions:reason:")) {
        snprintf(line, 400, "%s begins %llx: %s", (char *)self, (unsigned long long)one, (char *)two);
        say(line);
        return strdup("activity");
    }
    if (!strcmp(name, "endActivity:")) {
        snprintf(line, 400, "%s ends %s", (char *)self, (char *)one);
        say(line);
        return 0;
    }
    snprintf(line, 400, "%s %s", name, (char *)self); say(line);
    return self;
}
"""


class Written:
    """Grants activities by number, and writes them down."""

    def __init__(self):
        self.said: list[tuple] = []

    def begin(self, options: int, reason: str) -> int:
        self.said.append(("begin", options, reason))
        return len(self.said)

    def end(self, token: int) -> None:
        self.said.append(("end", token))


def test_one_activity_for_all_who_work():
    granted = Written()
    awake = Awake(granted)
    with awake.working("a"), awake.working("b"):
        assert granted.said == [("begin", USER_INITIATED, "a")]
    assert granted.said[1:] == [("end", 1)]
    with pytest.raises(ZeroDivisionError), awake.working("c", sleepless=False):
        raise ZeroDivisionError
    assert granted.said[2:] == [("begin", MAY_SLEEP, "c"), ("end", 3)]
    awake.end()
    assert len(granted.said) == 4, "an end too many changes nothing"


def test_from_many_threads():
    granted = Written()
    awake = Awake(granted)

    def work() -> None:
        for _ in range(200):
            with awake.working("x"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kinds = [one[0] for one in granted.said]
    assert kinds == ["begin", "end"] * (len(kinds) // 2)


@pytest.mark.skipif(sys.platform == "darwin", reason="here it does something")
def test_elsewhere_it_is_nothing():
    with Awake().working("x"):
        pass


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("cc"), reason="there is no C compiler")
def test_the_messages_of_objective_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Against a runtime in C that has only registers to look at: whether numbers and texts arrive where they should."""
    (tmp_path / "objc.c").write_text(RUNTIME)
    library = tmp_path / "libobjc.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, tmp_path / "objc.c"], check=True)
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    info = ProcessInfo(str(library), None)
    with Awake(info).working("Making pictures"):
        pass
    assert (tmp_path / "asked").read_text().splitlines() == [
        "push", f"the process begins {USER_INITIATED:x}: Making pictures", "retain activity", "pop",
        "push", "the process ends activity", "release activity", "pop",
    ]  # fmt: skip
