"""What people read when something went wrong: what happened, what it means for the picture, one thing to do."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Notice:
    """A bar under the picture. `actions` are (what the button says, the name of the command behind it)."""

    text: str
    actions: tuple[tuple[str, str], ...] = ()
    details: str = ""
    kind: str = "error"  # or "question", "news"
    about: int | None = field(default=None, compare=False)  # a job's number


def report(notice: Notice, facts: list[str]) -> str:
    """An error as a text to send: without what is quoted, which may be a prompt or a file, and without the home."""
    said = re.sub("‘[^’]*’", "‘…’", notice.text)
    text = "\n".join([*facts, "", said, "", notice.details])
    return text.replace(os.path.expanduser("~"), "~")


def of_job(title: str, end: dict) -> Notice:
    """The bar for a job's `error`."""
    kind, message = end.get("kind"), str(end.get("message") or "").strip()
    details = str(end.get("details") or "")
    if kind == "wish":
        return Notice(message, (), details)
    if kind == "memory":
        return Notice(f"There is not enough memory for {title}. Try a smaller size, or close other programs.",
                      (("Use a smaller size", "smaller"),), details or message)  # fmt: skip
    if kind == "numbers":
        return Notice(f"{title} came out as no numbers, and was stopped. Other settings may work: fewer steps, another "
                      f"sampler.", (("Try again", "again"),), details or message)  # fmt: skip
    if kind == "protocol":
        return Notice(f"The generator did not understand {title}. Are both of one version?", (), details or message)
    return Notice(f"Something went wrong inside mlxldm with {title}. It is kept in the queue.",
                  (("Try again", "again"),), details or message)  # fmt: skip


def of_crash(title: str | None, crash_text: str, details: str, kind: str, aside: bool) -> Notice:
    """The bar for a worker that went; `aside`: the job did it twice."""
    if kind == "memory":
        what = "The generator used up the memory and was stopped by the system. It is running again"
    else:
        what = "The generator stopped unexpectedly. It was restarted"
    details = f"{crash_text}\n\n{details}".strip()
    if title is None:
        return Notice(f"{what}.", (), details, "news")
    if aside:
        return Notice(f"{title} stopped the generator twice and was set aside. The rest of the queue goes on.",
                      (("Try once more", "again"),), details)  # fmt: skip
    less = (("Try with less memory", "smaller"),) if kind == "memory" else ()
    return Notice(f"{what}; {title} is back in the queue, paused.", (("Resume", "again"), *less), details)


def of_down(crash_text: str, details: str, kind: str) -> Notice:
    """The bar when there is no worker, and none comes by itself."""
    if kind == "refused":
        return Notice(f"Nothing here can draw: {crash_text}", (("Try again", "restart"),), details)
    if kind == "line":
        return Notice(crash_text, (("Try again", "restart"), ("Work on this machine", "work_here")), details)
    if kind == "start":
        return Notice(f"The generator cannot run: {crash_text}.", (("Try again", "restart"),), details)
    return Notice("The generator stopped three times in two minutes, so it was not started again. Your queue is kept.",
                  (("Start it again", "restart"),), f"{crash_text}\n\n{details}".strip())  # fmt: skip


def of_line(crash_text: str, seconds: float, details: str) -> Notice:
    """The bar when the line to another machine broke."""
    return Notice(f"{crash_text} Trying again in {seconds:.0f} s; what waits goes on then.",
                  (("Now", "restart"), ("Work on this machine", "work_here")), details)  # fmt: skip


def of_waiting(count: int) -> Notice:
    """The bar on start, when pictures were waiting."""
    what = "A picture was waiting." if count == 1 else f"{count} pictures were waiting."
    return Notice(what, (("Resume", "resume"), ("Discard", "discard")), kind="question")


def of_saving(reason: str, folder: str) -> Notice:
    """The bar when a finished picture could not be written."""
    return Notice(f"The picture could not be saved in {folder}: {reason}. It is kept here until it is.",
                  (("Save again", "save_again"),))  # fmt: skip


def of_adding(reason: str) -> Notice:
    """The bar when a job could not be put into the queue."""
    return Notice(f"This was not put into the queue, which cannot be saved: {reason}. Is the disk full?")


def of_keeping(reason: str) -> Notice:
    """The bar when the queue could not be written."""
    return Notice(f"The queue could not be saved: {reason}. Is the disk full? Nothing more starts until it can be.",
                  (("Save again", "save_again"),))  # fmt: skip


def of_silence() -> Notice:
    """The bar when the worker does not answer."""
    return Notice("The generator is not answering. It may only be busy.", (("Start it again", "force_stop"),))


def of_unused(text: str, details: str) -> Notice | None:
    """The bar for tensors of a LoRA that have no place in the model; None where all have."""
    return Notice(text, (), details, "news") if text else None
