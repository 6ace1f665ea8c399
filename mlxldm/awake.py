"""Keeps a Mac at it while there is work: no App Nap, and if wanted no sleep. Elsewhere nothing happens.

Every process needs its own: a child does not inherit what its parent was granted. Standard library only, since the
desktop app uses it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator
from typing import Any, Protocol

# NSActivityOptions, https://developer.apple.com/documentation/foundation/nsactivityoptions
IDLE_SLEEP_DISABLED = 1 << 20
USER_INITIATED = 0x00FFFFFF | IDLE_SLEEP_DISABLED
MAY_SLEEP = USER_INITIATED & ~IDLE_SLEEP_DISABLED  # UserInitiatedAllowingIdleSystemSleep

OBJC = "/usr/lib/libobjc.A.dylib"
FOUNDATION = "/System/Library/Frameworks/Foundation.framework/Foundation"


class Activities(Protocol):
    """What grants activities."""

    def begin(self, options: int, reason: str) -> Any:
        """A token of an activity that began."""

    def end(self, token: Any) -> None:
        """It is over."""


class Awake:
    """Holds one activity while anybody works: `with awake.working(...)`, also from several threads and nested."""

    def __init__(self, activities: Activities | None = None):
        """`activities`: who grants them; None: macOS, and nobody on other systems."""
        self._activities = activities
        self._lock = threading.Lock()
        self._count = 0
        self._token: Any = None

    def begin(self, reason: str, sleepless: bool = True) -> None:
        """Somebody works; `sleepless`: the system does not fall asleep by itself meanwhile, its display may."""
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._activities = self._activities or _of_this_system()
                if self._activities is not None:
                    self._token = self._activities.begin(USER_INITIATED if sleepless else MAY_SLEEP, reason)

    def end(self) -> None:
        """One who worked is ready; with the last the activity ends."""
        with self._lock:
            self._count = max(0, self._count - 1)
            if self._count == 0 and self._token is not None and self._activities is not None:
                token, self._token = self._token, None
                self._activities.end(token)

    @contextlib.contextmanager
    def working(self, reason: str, sleepless: bool = True) -> Iterator[None]:
        """`begin` and `end` around some work, whatever becomes of it."""
        self.begin(reason, sleepless)
        try:
            yield
        finally:
            self.end()


class ProcessInfo:
    """NSProcessInfo, through Objective-C's runtime: objc_msgSend has to be called with each method's own signature."""

    def __init__(self, objc: str = OBJC, foundation: str | None = FOUNDATION):
        if foundation:
            ctypes.CDLL(foundation)
        self._objc = ctypes.CDLL(objc)
        self._class = _function(self._objc, "objc_getClass", ctypes.c_void_p, ctypes.c_char_p)
        self._selector = _function(self._objc, "sel_registerName", ctypes.c_void_p, ctypes.c_char_p)
        self._push = _function(self._objc, "objc_autoreleasePoolPush", ctypes.c_void_p)
        self._pop = _function(self._objc, "objc_autoreleasePoolPop", None, ctypes.c_void_p)

    def begin(self, options: int, reason: str) -> int | None:
        """`beginActivityWithOptions:reason:`; the token is kept until `end`."""
        pool = self._push()  # threads of Python have none
        try:
            string = self._send(self._class(b"NSString"), b"stringWithUTF8String:", ctypes.c_char_p(reason.encode()))
            token = self._send(self._info(), b"beginActivityWithOptions:reason:", ctypes.c_uint64(options),
                               ctypes.c_void_p(string))  # fmt: skip
            return self._send(token, b"retain") if token else None
        finally:
            self._pop(pool)

    def end(self, token: int) -> None:
        """`endActivity:`."""
        pool = self._push()
        try:
            self._send(self._info(), b"endActivity:", ctypes.c_void_p(token))
            self._send(token, b"release")
        finally:
            self._pop(pool)

    def _info(self) -> int | None:
        return self._send(self._class(b"NSProcessInfo"), b"processInfo")

    def _send(self, target: int | None, selector: bytes, *arguments: Any) -> int | None:
        """A message; its answer is an object, or nothing that anybody looks at."""
        kinds = [type(argument) for argument in arguments]
        send = _function(self._objc, "objc_msgSend", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, *kinds)
        found: int | None = send(target, self._selector(selector), *arguments)
        return found


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *arguments)((name, library))


def _of_this_system() -> Activities | None:
    if sys.platform != "darwin":
        return None
    try:
        return ProcessInfo()
    except (OSError, AttributeError):  # a system without them: it may nap, and everything else goes on
        return None
