"""The one place that knows whether the arrays live on a GPU: which of two exact forms of a layer is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

_local = threading.local()


def gpu() -> bool:
    """Whether the form for GPUs is to be built."""
    forced = getattr(_local, "gpu", None)
    return bool(mx.default_device() == mx.gpu) if forced is None else forced


@contextmanager
def form(is_gpu: bool) -> Iterator[None]:
    """Build the other device's form of every layer, so that tests can look at Metal's graphs on any machine."""
    before = getattr(_local, "gpu", None)
    _local.gpu = is_gpu
    try:
        yield
    finally:
        _local.gpu = before


def fused(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as one kernel on the GPU. Compiled once per thread, because MLX's graphs belong to their thread."""

    def call(*args: Any) -> Any:
        if mx.default_device() != mx.gpu:
            return fn(*args)
        compiled = _local.__dict__.setdefault("compiled", {})
        if fn not in compiled:
            compiled[fn] = mx.compile(fn)
        return compiled[fn](*args)

    call.__doc__ = fn.__doc__
    return call
