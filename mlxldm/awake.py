"""Keeps a Mac at it while there is work: no App Nap, and if wanted no sleep. Elsewhere nothing happens.

Every process needs its own: a child does not inherit what its parent was granted. Standard library only, since the
desktop app uses it too.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, Protocol

# NSActivityOptions, https://developer.apple.com/documentation/foundation/nsactivityoptions
IDLE_SLEEP_DISABLED = 1 << 20
USER_INITIATED = 0x00FFFFFF | IDLE_SLEEP_DISABLED
MAY_SLEEP = USER_INITIATED & ~IDLE_SLEEP_DISABLED  # UserInitiatedAllowingIdleSystemSleep


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


def _of_this_system() -> Activities | None:
    if sys.platform != "darwin":
        return None
    from .process_info import ProcessInfo

    try:
        return ProcessInfo()
    except (OSError, AttributeError):  # a system without them: it may nap, and everything else goes on
        return None
