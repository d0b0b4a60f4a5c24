"""The two ways a command ends early on purpose; everything else is a bug and exits with 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """The user can fix this: one sentence that says what is wrong and what to do. Exit code 2."""


class Interrupted(Exception):
    """A signal stopped the stage after it saved its checkpoint. Exit code 128 + signal number."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, or lists them all: ' (did you mean x?)'."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
