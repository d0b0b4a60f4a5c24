"""The two ways a command ends early on purpose; everything else is a bug and exits with 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """The user can fix this: one sentence that says what is wrong and what to do. Exit code 2."""


class Interrupted(Exception):
    """A signal stopped the stage after it saved its checkpoint. Exit code 128 + signal number.

    Args:
        reason: what stopped it and what is saved.
        resume: the command that goes on; the command line puts the very words that were typed in its place.
    """

    def __init__(self, signum: int, reason: str, resume: str) -> None:
        super().__init__(f"{reason}; continue with: {resume}")
        self.exit_code, self.reason = 128 + signum, reason


def printable(text: str) -> str:
    """`text` with what could steer a terminal shown as an escape: a file may have named it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, or lists them all: ' (did you mean x?)'."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
