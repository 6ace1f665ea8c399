"""The one kind of error that people may see, and the "did you mean" for names they mistype."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """One sentence for the person who can fix it: what was found, what was expected, what to do.

    Everything else that is raised is our own fault, and the command line shows its traceback.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'euler' or 'euler_a'?"` for a word close to some of `known`, otherwise an empty string."""
    import difflib  # the app's window, which asks nothing of the kind, is smaller without it

    by_small = {name.lower(): name for name in known}
    small = str(word).lower()
    close = difflib.get_close_matches(small, by_small, n=3, cutoff=0.6)
    if not close and len(small) > 1:  # "gen" for "generate" is too short to be close
        close = [name for name in by_small if name.startswith(small)][:3]
    if not close:
        return ""
    return " Did you mean " + " or ".join(repr(by_small[name]) for name in close) + "?"
