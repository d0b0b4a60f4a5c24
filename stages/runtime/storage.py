"""Files that are whole or absent, and JSON that is what was written: what artifacts and checkpoints are made with.

A folder or file is written in a hidden sibling, fsynced and renamed into place; a `.lock` beside it keeps a second
writer out.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from stages.runtime.errors import BadInput

SCHEMA = 1
MAX_JSON_BYTES = 16 * 2**20


# What keeps a sound file from being read, or a folder from being locked: errno → what it is and what to do.
ENVIRONMENT = {
    errno.EACCES: "permission denied: ask its owner for the right to read it",
    errno.EPERM: "operation not permitted: ask its owner for the right to read it",
    errno.EIO: "the disk or its connection gave an error: check them, then run the same command again",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "the system has too many files open: close other programs",
    errno.ENOMEM: "there is no memory left to map it: free some, or raise the limit (ulimit -v)",
    errno.ENODEV: "its file system maps no files into memory: copy the run to another disk",
    errno.EOPNOTSUPP: "its file system does not support that: copy the run to another disk",
    errno.ESTALE: "the network file system has lost it: mount it again",
    errno.ETIMEDOUT: "the network file system does not answer: run the same command again when it does",
    errno.ENOTCONN: "the network file system is not connected: mount it again",
    errno.EHOSTDOWN: "the network file system's host is down: run the same command again when it answers",
}
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # of a file system without locks
NO_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}


def corrupted(file: Path, error: Exception) -> BadInput:
    """The refusal of a file that cannot be read as it was written, with the reason and the way out.

    Only what its content or a checksum says is corruption; an errno of the environment says nothing about the file.
    """
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    code = _errno(error)
    if code in (errno.ENOENT, errno.ENOTDIR):
        return BadInput(f"{file} is missing or corrupted ({reason}); run the command that made it again (--fresh)")
    if code is not None:
        told = ENVIRONMENT.get(code, f"{os.strerror(code).lower()}: the file may be sound, correct that and try again")
        return BadInput(f"{file} cannot be read: {told}")
    return BadInput(
        f"{file} is missing or corrupted ({reason}); delete its folder and run the command that made it again (--fresh)"
    )


def _errno(error: Exception) -> int | None:
    """The errno behind an exception; safetensors only writes it into its words."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, FileNotFoundError | PermissionError):  # safetensors raises them without their number
        return errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EACCES
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None


_held: set[Path] = set()  # what this process has the lock of


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the writer's lock of one artifact. When another process holds it, wait for it or raise BadInput."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock, which is the mere existence of the file, would take the file that a lock leaves for a writer.
    lock = FileLock(str(path.parent / f".{path.name}.lock"), fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise BadInput(f"another process is writing {path}; wait for it, or choose another --out") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        _warn_once(f"{path.parent} is on a file system without locks: see to it that no other command writes there")
    _held.add(path.resolve())
    try:
        yield
    finally:
        _held.discard(path.resolve())
        lock.release()


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        print(f"note: {text}", file=sys.stderr)


_warned: set[str] = set()


# ---------------------------------------------------------------------------- writing


def target_of(path: Path) -> Path:
    """Where a folder really lies: one that is a link is replaced where it points to, and stays a link."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """An empty hidden sibling of `path`; dropped on any failure, so that a full disk is not left fuller."""
    path = target_of(path)
    folder = path.parent / f".{path.name}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def replace_folder(draft: Path, path: Path) -> None:
    """fsync everything in `draft`, then rename it to `path`, replacing what is there."""
    path = target_of(path)
    for file in draft.rglob("*"):
        if file.is_file():
            fsync(file)
    fsync(draft)
    old = path.parent / f".{path.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    fsync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: `write` fills a hidden sibling, which is fsynced and renamed into place."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        write(draft)
        fsync(draft)
        draft.rename(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync(file.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, in one step: a kill leaves it whole or leaves a hidden remainder."""
    gone = path.parent / f".{path.name}.gone"
    shutil.rmtree(gone, ignore_errors=True)
    if path.exists():
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def recover(path: Path) -> None:
    """A kill between the two renames of `replace_folder` leaves only `.old`: put it back.

    Not while another process writes there: it is about to put something newer in place.
    """
    old = path.parent / f".{path.name}.old"
    if path.exists() or not old.exists():
        return
    try:
        with nullcontext() if path.resolve() in _held else locked(path):
            if old.exists() and not path.exists():
                old.rename(path)
    except BadInput:
        return


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power cut.

    Some file systems (CIFS, FUSE) sync no folder: there a rename is as durable as they make it.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in NO_SYNC):
            raise


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write {name: tensor} as safetensors, with the rights that the umask leaves: safetensors makes it private."""
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(file))
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


# ---------------------------------------------------------------------------- JSON and checksums


def plain(value: Any) -> Any:
    """`value` as it comes back from JSON: lists for tuples, words for keys and paths."""
    return json.loads(json.dumps(value, default=str))


def digest(value: Any) -> str:
    """Short stable hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def seal(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` with the digest of all of it, which an edit by hand does not survive."""
    sealed: dict[str, Any] = plain({k: v for k, v in meta.items() if k != "seal"})
    return sealed | {"seal": digest(sealed)}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of bounded size and known schema. Raises BadInput for anything else."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("it is larger than 16 MiB")
        meta = json.loads(file.read_text())
        if not isinstance(meta, dict) or type(meta.get("schema")) is not int or meta["schema"] < 1:
            raise ValueError("it names no schema")
    except (ValueError, OSError, RecursionError) as error:
        raise corrupted(file, error) from None
    if meta["schema"] > SCHEMA:
        raise BadInput(
            f"{file.parent} was written by a newer BiTAgent (schema {meta['schema']}, this one reads {SCHEMA}); "
            "update BiTAgent"
        )
    return meta


def check_name(folder: Path, name: str) -> None:
    """Refuse a listed file that is absent or lies elsewhere."""
    try:
        inside = "/" not in name and not name.startswith(".") and (folder / name).is_file()
    except (OSError, ValueError):  # a name no file system takes
        inside = False
    if not inside:
        raise corrupted(folder / name[:100], ValueError("listed in its folder's JSON, not on disk"))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
