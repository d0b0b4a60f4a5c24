"""How a command ends: which exceptions become one sentence and which exit code goes with them."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from stages.runtime.errors import BadInput, Interrupted, printable

_AGAIN = "free some space, or choose another --out, and run the same command again"
_DISK = {
    errno.ENOSPC: f"the disk is full: {_AGAIN}",
    errno.EDQUOT: f"the disk quota is used up: {_AGAIN}",
    errno.EROFS: "the file system is read-only: choose another --out",
    errno.EACCES: "permission denied: choose another --out, or correct the permissions",
    errno.EPERM: "operation not permitted: choose another --out, or correct the permissions",
    errno.EFBIG: "a file would become larger than allowed here: raise the limit (ulimit -f), or choose another --out",
    errno.ENOTDIR: "a part of this path is a file: choose another --out",
    errno.EISDIR: "a folder is where a file should be: remove it, or choose another --out",
    errno.ENAMETOOLONG: "the path is too long: choose a shorter --out",
    errno.ELOOP: "the path leads through a loop of links: choose another --out",
}
TYPED = "bitagent.typed"  # where the words of the command line are kept
_SEEN_BY_SAFETENSORS = {"No space left": errno.ENOSPC, "File too large": errno.EFBIG, "quota": errno.EDQUOT}


class Commands(TyperGroup):
    """Runs a command and turns the failures a user can act on into one sentence on stderr.

    BadInput → 2; a signal → 128 + its number, with the command that goes on; a full or read-only disk, or too
    little memory → 2. Anything else is a bug: it keeps its traceback and exits with 1.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        again = _again(ctx.meta[TYPED])
        try:
            with _sigterm_raises():
                return super().invoke(ctx)
        except BadInput as error:
            raise _end(f"error: {error}", 2) from None
        except Interrupted as error:
            raise _end(f"{error.reason}; continue with: {again}", error.exit_code) from None
        except KeyboardInterrupt:
            raise _end(f"stopped by SIGINT; continue with: {again}", 130) from None
        except _Terminated:
            raise _end(f"stopped by SIGTERM; continue with: {again}", 143) from None
        except Exception as error:
            reason = disk_problem(error) or memory_problem(error)
            if reason is None:
                raise
            raise _end(f"error: {reason}", 2) from None


def disk_problem(error: Exception) -> str | None:
    """A sentence when `error` says that the disk is full or not writable, else None."""
    if isinstance(error, OSError):
        reason = _DISK.get(error.errno or 0)
        return f"{error.filename}: {reason}" if reason and error.filename else reason
    if type(error).__name__ == "SafetensorError":
        return next((_DISK[code] for words, code in _SEEN_BY_SAFETENSORS.items() if words in str(error)), None)
    return None


def memory_problem(error: Exception) -> str | None:
    """A sentence when `error` says that memory ran out, else None."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in str(error):
        return (
            "there is not enough memory for these sizes: lower a batch (pretrain.batch, behave.decisions, embed.batch) "
            "or the model's sizes with --set, or choose a smaller --scale"
        )
    return None


@contextmanager
def writing_out() -> Iterator[None]:
    """Around what prints and writes nothing else: what standard output does not take is one sentence on stderr.

    A reader that has gone, or a pipe that is full and does not wait, ends the command with 1, a full disk with 2.
    """
    if sys.stdout is None:  # it was closed before the program began
        typer.echo("standard output is closed: nothing is printed", err=True)
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # here, and not by Python on its way out
    except OSError as error:
        if error.filename is not None:
            raise
        with suppress(OSError):  # what is left in the buffer is written nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reason = f"the output could not be written ({error.strerror}): print to a terminal, or to a file with room"
        raise _end(f"error: {reason}", 2 if error.errno in _DISK else 1) from None


class _Terminated(BaseException):
    """SIGTERM outside a loop that saves; like KeyboardInterrupt, no `except Exception` takes it."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Outside the loops, too, SIGTERM ends the command in order: drafts are removed, locks released."""

    def handle(signum: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signum, signal.SIG_DFL)  # a second one leaves at once
        raise _Terminated

    try:
        previous = signal.signal(signal.SIGTERM, handle)
    except ValueError:  # not the main thread: signals are someone else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _again(words: list[str]) -> str:
    """The command as it was typed, without `--fresh`: that would begin anew instead of going on."""
    return shlex.join(["bitagent", *(word for word in words if word != "--fresh")])


def _end(message: str, code: int) -> typer.Exit:
    typer.echo(printable(message), err=True)
    return typer.Exit(code)
