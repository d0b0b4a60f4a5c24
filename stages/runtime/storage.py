"""Files that are whole or absent, and JSON that is what was written: what artifacts and checkpoints are made with.

A folder or file is written in a hidden sibling, fsynced and renamed into place; a `.lock` beside it keeps a second
writer out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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


def corrupted(file: Path, error: Exception) -> BadInput:
    """The refusal of a file that is not what was written, with the reason and the way out."""
    return BadInput(
        f"{file} is missing or corrupted ({str(error).splitlines()[0]}); "
        "delete its folder and run the command that made it again (--fresh)"
    )


_held: set[Path] = set()  # what this process has the lock of


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the writer's lock of one artifact. When another process holds it, wait for it or raise BadInput."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path.parent / f".{path.name}.lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise BadInput(f"another process is writing {path}; wait for it, or choose another --out") from None
    _held.add(path.resolve())
    try:
        yield
    finally:
        _held.discard(path.resolve())
        lock.release()


# ---------------------------------------------------------------------------- writing


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """An empty hidden sibling of `path`; dropped on any failure, so that a full disk is not left fuller."""
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
    """Make a file's content, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(file), metadata=metadata)


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
