"""What the command lines share: exit codes, arguments explained in a sentence, a progress line, figures for people."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .errors import UserError, nearest

TOO_LARGE = "this machine's memory is not enough for that; take a smaller picture or another model."
# How MLX says that there is not enough: its CPU, Metal for one buffer, Metal for a whole command, CUDA.
NO_MEMORY = ("Unable to allocate", "Attempting to allocate", "Insufficient Memory", "cudaMalloc")


def guarded(program: str, run: Callable[[], int], interrupted: str) -> int:
    """`run()`'s exit code; what goes wrong becomes 2 (the person can fix it), 130 (Ctrl-C) or 1 (our fault)."""

    def say(message: str) -> None:
        print(f"{program}: {message}", file=sys.stderr, flush=True)

    try:
        code = run()
        sys.stdout.flush()
        return code
    except UserError as error:
        say(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        say(f"interrupted; {interrupted}.")
        return 130
    except BrokenPipeError:  # `mlxldm models | head -1`: nobody reads any more, which is no fault
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if no_memory(error):
            say(TOO_LARGE)
            return 2
        import traceback

        traceback.print_exc()
        say("this is a fault of mlxldm, not yours; please report it in the project's issues, with the lines above.")
        return 1


def no_memory(error: Exception) -> bool:
    """Whether an error says that there is not enough memory: Python's own, or a framework's."""
    if isinstance(error, RuntimeError):
        return any(mark in str(error) for mark in NO_MEMORY)
    return isinstance(error, MemoryError)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, with the nearest names, instead of printing the usage."""

    def __init__(self, **more: Any) -> None:
        more = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **more}
        super().__init__(**more)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = action.option_strings[0] if action.option_strings else action.dest
            names = [str(choice) for choice in action.choices]
            raise UserError(f"There is no {what} {value!r}.{nearest(str(value), names)} There are {', '.join(names)}.")

    def refuse(self, rest: Sequence[str], advice: str = "") -> None:
        """`UserError` for what `parse_known_args` left over, if anything."""
        if not rest:
            return
        option = rest[0].partition("=")[0]
        if not option.startswith("-"):
            raise UserError(f"{rest[0]!r} is one thing too many.{advice} See {self.prog} --help.")
        known = [name for name in self._option_string_actions if name.startswith("--")]
        raise UserError(f"There is no option {option}.{nearest(option, known)} See {self.prog} --help.")


def _number(kind: type, name: str) -> Any:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from None

    return read


whole = _number(int, "a whole number")
real = _number(float, "a number")


class Bar:
    """A progress line with the time left, on stderr, there only while it is looked at: a terminal, over a second."""

    WIDTH = 24
    AFTER = 1.0  # seconds that a thing must take to be worth a bar

    def __init__(self) -> None:
        self.on = sys.stderr.isatty()
        self.started = 0.0
        self.shown = 0

    def show(self, text: str) -> None:
        """Say what begins now; the next line replaces it, and the time left is counted from here."""
        self.started = time.perf_counter()
        self._write(f"{text} ...")

    def move(self, fraction: float, text: str) -> None:
        """This part of what `show` began is done, 0 to 1."""
        spent = time.perf_counter() - self.started
        left = spent * (1 - fraction) / fraction if fraction else 0.0
        if spent + left >= self.AFTER:
            full = int(self.WIDTH * fraction)
            self._write(f"{text}  [{'#' * full}{'.' * (self.WIDTH - full)}]  {duration(left)} left")

    def _write(self, line: str) -> None:
        if self.on:
            line = line[: _columns() - 1]  # a wrapped line could not be taken away
            sys.stderr.write("\r" + line.ljust(self.shown))
            sys.stderr.flush()
            self.shown = len(line)

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            sys.stderr.write("\r" + " " * self.shown + "\r")
            sys.stderr.flush()
            self.shown = 0


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def duration(seconds: float) -> str:
    """`8 s`, `2 min 5 s`, `1 h 4 min`."""
    count = round(seconds)
    if count < 60:
        return f"{count} s"
    if count < 3600:
        return f"{count // 60} min {count % 60} s"
    return f"{count // 3600} h {count % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes for people: `24.6 MB`, `3.4 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
