"""What macOS's Foundation is asked for by `awake`, through the runtime of Objective-C. Imported on a Mac only."""

from __future__ import annotations

import ctypes
from typing import Any

OBJC = "/usr/lib/libobjc.A.dylib"
FOUNDATION = "/System/Library/Frameworks/Foundation.framework/Foundation"


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
