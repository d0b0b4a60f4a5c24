"""How a command ends: which exceptions become one sentence and which exit code goes with them."""

from __future__ import annotations

import errno
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from stages.runtime.errors import BadInput, Interrupted, printable

# errno → what is wrong with a file, and what to do about it.
_DISK = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EROFS: ("the file system is read-only", "mount it writable"),
    errno.EACCES: ("permission denied", "correct the permissions"),
    errno.EPERM: ("operation not permitted", "correct the permissions"),
    errno.EFBIG: ("a file would become larger than allowed here", "raise the limit (ulimit -f)"),
    errno.ENOTDIR: ("a part of this path is a file", "move that file"),
    errno.EISDIR: ("a folder is where a file should be", "move that folder"),
    errno.ENAMETOOLONG: ("the path is too long", "shorten it"),
    errno.ELOOP: ("the path leads through a loop of links", "mend the links"),
}
SHARED_MEMORY = Path("/dev/shm")
READER_LEFT = 141  # 128 + SIGPIPE, as of other commands before `| head`
TYPED = "bitagent.typed"  # where the words of the command line are kept
_SEEN_BY_SAFETENSORS = {"No space left": errno.ENOSPC, "File too large": errno.EFBIG, "quota": errno.EDQUOT}


class Commands(TyperGroup):
    """Runs a command and turns the failures a user can act on into one sentence on stderr.

    BadInput → 2; a signal → 128 + its number, with the command that goes on; a full or read-only disk, too little
    memory, or an output that cannot be written → 2; a reader of the output that left → 141, without a word. Anything
    else is a bug: it keeps its traceback and exits with 1.
    """

    def main(self, *args: Any, **more: Any) -> Any:
        """Also write out what is printed, while a failure can still be told."""
        try:
            return super().main(*args, **more)
        except SystemExit as end:
            lost = lost_output()
            raise SystemExit(end.code or lost) from None
        except OSError:
            if not (lost := lost_output("\n")):
                raise
            raise SystemExit(lost) from None

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
            if isinstance(error, OSError) and error.filename is None and (lost := lost_output("\n")):
                raise typer.Exit(lost) from None
            reason = disk_problem(error, _out(ctx.meta[TYPED])) or memory_problem(error)
            if reason is None:
                raise
            raise _end(f"error: {reason}", 2) from None


def disk_problem(error: Exception, root: Path) -> str | None:
    """A sentence when `error` says that a disk is full or not writable, else None.

    Another --out is advised for files below `root`, where the command writes, and for those without a name.
    """
    if isinstance(error, OSError):
        code, file = error.errno, Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    elif type(error).__name__ == "SafetensorError":
        code, file = next((code for words, code in _SEEN_BY_SAFETENSORS.items() if words in str(error)), None), None
    else:
        return None
    below = file is not None and Path(os.path.realpath(file)).is_relative_to(os.path.realpath(root))
    if not below and _in_shared_memory(error, file):
        reason = os.strerror(code or 0).lower()
        return (
            f"{SHARED_MEMORY}, which worker processes need, cannot be written ({reason}): free it, make it larger (a "
            "container's --shm-size) or writable, and run the same command again"
        )
    if code not in _DISK:
        return None
    reason, remedy = _DISK[code]
    if below or file is None:
        remedy += ", or choose another --out"
    return f"{f'{file}: ' if file else ''}{reason}: {remedy}, and run the same command again"


def _in_shared_memory(error: BaseException, file: Path | None) -> bool:
    """Whether an error is of a file in /dev/shm: a named one, or a semaphore, which has no name."""
    if file is not None:
        return file.is_relative_to(SHARED_MEMORY)
    frames = walk_tb(error.__traceback__)
    return isinstance(error, OSError) and any(
        frame.f_globals.get("__name__") == "multiprocessing.synchronize" for frame, _ in frames
    )


def lost_output(probe: str = "") -> int:
    """0 when all that was printed has arrived. Else the exit code, after a sentence unless its reader just left.

    `probe` is written first, to fail where an unbuffered output has nothing left to fail with.
    """
    try:
        print(probe, end="", flush=True)
        return 0
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python tries once more at exit, and would complain
        if error.errno == errno.EPIPE:
            return READER_LEFT
        reason = os.strerror(error.errno or 0).lower()
        typer.echo(
            f"error: what is printed cannot be written ({reason}): send it elsewhere, or free some space", err=True
        )
        return 2


def memory_problem(error: Exception) -> str | None:
    """A sentence when `error` says that memory ran out, else None."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in str(error):
        return (
            "there is not enough memory for these sizes: lower a batch (pretrain.batch, behave.decisions, embed.batch) "
            "or the model's sizes with --set, or choose a smaller --scale"
        )
    return None


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


def _out(words: list[str]) -> Path:
    """The folder that a command as typed writes to: its --out, or runs/."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "--out" or word.startswith("--out="):
            return Path(after if word == "--out" else word.removeprefix("--out="))
    return Path("runs")


def _end(message: str, code: int) -> typer.Exit:
    typer.echo(printable(message), err=True)
    return typer.Exit(code)
