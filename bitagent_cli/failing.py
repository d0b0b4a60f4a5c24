"""How a command ends: which exceptions become one sentence and which exit code goes with them."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from stages.core.errors import BadInput, Interrupted

_DISK = {
    errno.ENOSPC: "the disk is full: free some space, or choose another --out, and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another --out, and run the same command again",
    errno.EROFS: "the file system is read-only: choose another --out",
    errno.EACCES: "permission denied: choose another --out, or correct the permissions",
    errno.EPERM: "operation not permitted: choose another --out, or correct the permissions",
}


class Commands(TyperGroup):
    """Runs a command and turns the failures a user can act on into one sentence on stderr.

    BadInput → 2; a signal after a checkpoint → 128 + its number; a full or read-only disk → 2.
    Anything else is a bug: it keeps its traceback and exits with 1.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BadInput as error:
            raise _end(f"error: {error}", 2) from None
        except Interrupted as error:
            raise _end(str(error), error.exit_code) from None
        except KeyboardInterrupt:
            raise _end("stopped; the same command continues", 130) from None
        except Exception as error:
            reason = disk_problem(error)
            if reason is None:
                raise
            raise _end(f"error: {reason}", 2) from None


def disk_problem(error: Exception) -> str | None:
    """A sentence when `error` says that the disk is full or not writable, else None."""
    if isinstance(error, OSError):
        reason = _DISK.get(error.errno or 0)
        return f"{error.filename}: {reason}" if reason and error.filename else reason
    if type(error).__name__ == "SafetensorError" and "No space left" in str(error):
        return _DISK[errno.ENOSPC]
    return None


def _end(message: str, code: int) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(code)
