"""Shard files: safetensors written as a stream and read by memory mapping, without loading either whole.

A shard holds whole episodes: arrays over N rows (one row a frame) plus `episode_start` (E+1 row
offsets), `episode_seed` (E) and, of branches, `episode_origin` (E, 3). Images come first, on a page
boundary, so that a window of frames is one contiguous, aligned block of the file. The files of one episode
that wait for a dataset to be finished are sealed: they carry the checksum of their own content, as no
artifact.json has it yet.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.runtime.storage import corrupted

DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}
ORDER = (
    "image", "embedding", "state", "episode_start", "episode_seed", "episode_origin", "action", "reward", "is_first",
    "is_terminal",
)  # fmt: skip
PAGE = 4096
MAX_HEADER_BYTES = 2**20

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in its file: `offset` counts bytes from the start of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


@dataclass
class Episode:
    """One whole episode; every array has a leading T (rows = decisions + the reset row).

    image (T, 3, H, H) uint8 or None; action (T, A); reward (T,); is_first (T,) true at row 0 alone;
    is_terminal (T,); state (T, nq+nv) float64 or None; `seed` is the one the episode was reset with.

    A branch begins in the middle of another episode: `origin` says where (number of the dataset among those it was
    cut from, of the episode in that, and the row), and is_first is nowhere true.
    """

    image: np.ndarray | None
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_terminal: np.ndarray
    state: np.ndarray | None
    seed: int
    origin: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.reward)


def episode_arrays(episode: Episode) -> dict[str, np.ndarray]:
    """An episode as the arrays of a one-episode shard. Raises ValueError saying what is wrong with them."""
    rows = len(episode)
    found = {
        "action": np.asarray(episode.action, np.float32),
        "reward": np.asarray(episode.reward, np.float32),
        "is_first": np.asarray(episode.is_first, np.bool_),
        "is_terminal": np.asarray(episode.is_terminal, np.bool_),
    }
    if episode.image is not None:
        found["image"] = np.asarray(episode.image)
        shape = found["image"].shape
        if found["image"].dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise ValueError(f"images are {found['image'].dtype} {shape}, not uint8 (T, 3, H, H)")
    if episode.state is not None:
        found["state"] = np.asarray(episode.state, np.float64)
    for name, array in found.items():
        if len(array) != rows or array.ndim != {"image": 4, "action": 2, "state": 2}.get(name, 1):
            raise ValueError(f"{name} has shape {array.shape} in an episode of {rows} rows")
    if rows < 2:
        raise ValueError("it has fewer than two rows")
    if found["is_first"][0] != (episode.origin is None) or found["is_first"][1:].any():
        wanted = "true at the first row alone" if episode.origin is None else "false throughout a branch"
        raise ValueError(f"is_first is not {wanted}")
    for name in ("action", "reward", "state"):
        if name in found and not np.isfinite(found[name]).all():
            raise ValueError(f"{name} holds values that are not finite")
    found["episode_start"] = np.array([0, rows], np.int64)
    found["episode_seed"] = np.array([episode.seed], np.int64)
    if episode.origin is not None:
        found["episode_origin"] = np.array([episode.origin], np.int64)
    return found


def as_episode(arrays: Arrays, number: int) -> Episode:
    """One episode of a shard, as views."""
    image, state, origin = arrays.get("image"), arrays.get("state"), arrays.get("episode_origin")
    rows = slice(*arrays["episode_start"][number : number + 2].tolist())
    return Episode(
        image=None if image is None else image[rows],
        action=arrays["action"][rows],
        reward=arrays["reward"][rows],
        is_first=arrays["is_first"][rows],
        is_terminal=arrays["is_terminal"][rows],
        state=None if state is None else state[rows],
        seed=int(arrays["episode_seed"][number]),
        origin=None if origin is None else tuple(origin[number].tolist()),
    )


# ---------------------------------------------------------------------------- reading


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file. Raises BadInput on anything a sound file would not hold."""
    return _read_header(file)[0]


def _read_header(file: Path) -> tuple[dict[str, Entry], dict[str, Any], int]:
    """The tensors, the header as it stands, and where the data begin."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header claims {length} bytes in a file of {size}")
            header = json.loads(handle.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        return {n: _entry(n, about, 8 + length, size) for n, about in tensors.items()}, header, 8 + length
    except (OSError, ValueError, RecursionError) as error:
        raise corrupted(file, error) from None


def _entry(name: str, about: Any, base: int, size: int) -> Entry:
    try:
        dtype, shape, (begin, end) = DTYPES[about["dtype"]], tuple(about["shape"]), about["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"tensor {name!r} has an unreadable description") from None
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"tensor {name!r} has a shape or offset that is no count")
    if base + end > size:
        raise ValueError(f"tensor {name!r} ends outside the file")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} has {end - begin} bytes where its shape needs another number")
    return Entry(dtype, shape, base + begin)


class Shard:
    """One memory-mapped file; `arrays` are read-only views, so opening reads the header alone."""

    def __init__(self, file: Path) -> None:
        self.file = file
        entries = read_header(file)
        try:
            with file.open("rb") as handle:
                self.map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise corrupted(file, error) from None
        self.arrays = {
            name: np.ndarray(e.shape, e.dtype, buffer=self.map, offset=e.offset)
            for name, e in entries.items()
            if math.prod(e.shape)
        }

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()))) if self.arrays else 0

    def release(self) -> None:
        """Drop this process's mapped pages (the system's file cache keeps them): bounds resident memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)


def allow_open_files(count: int) -> None:
    """Make room for `count` more mapped files where the soft limit allows too few (each mapping holds one)."""
    try:
        import resource
    except ImportError:  # not a POSIX system: no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def read_sealed(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a small sealed file, in memory. Raises BadInput when it is not what was written."""
    entries, header, base = _read_header(file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise corrupted(file, error) from None
    try:
        seal = header.pop("__metadata__")["sha256"]
    except (KeyError, TypeError):
        raise corrupted(file, ValueError("it carries no checksum")) from None
    if _seal(header, [memoryview(content)[base:]]) != seal:
        raise corrupted(file, ValueError("its checksum differs"))
    return {
        name: np.frombuffer(content, e.dtype, math.prod(e.shape), e.offset).reshape(e.shape)
        for name, e in entries.items()
    }


def check_episodes(file: Path, arrays: Arrays) -> None:
    """Raise BadInput unless the arrays are those of a dataset shard: names, dtypes, shapes, episode bounds."""
    rows = len(arrays["reward"]) if "reward" in arrays else 0
    episodes = len(arrays.get("episode_seed", ()))
    wanted: dict[str, tuple[Any, int, int]] = {
        "action": (np.float32, 2, rows), "reward": (np.float32, 1, rows), "is_first": (np.bool_, 1, rows),
        "is_terminal": (np.bool_, 1, rows), "episode_start": (np.int64, 1, episodes + 1),
        "episode_seed": (np.int64, 1, episodes),
    }  # fmt: skip
    optional = {
        "image": (np.uint8, 4, rows), "state": (np.float64, 2, rows), "episode_origin": (np.int64, 2, episodes),
    }  # fmt: skip
    wanted |= {name: about for name, about in optional.items() if name in arrays}
    for name, (dtype, ndim, length) in wanted.items():
        found = arrays.get(name)
        if found is None or found.dtype != dtype or found.ndim != ndim or len(found) != length:
            raise corrupted(file, ValueError(f"array {name!r} is missing or of the wrong dtype or shape"))
    if "image" in arrays and (arrays["image"].shape[1] != 3 or arrays["image"].shape[2] != arrays["image"].shape[3]):
        raise corrupted(file, ValueError("images are not (N, 3, size, size)"))
    start = arrays["episode_start"]
    if start[0] != 0 or start[-1] != rows or (np.diff(start) <= 0).any():
        raise corrupted(file, ValueError("episode_start does not divide the rows into episodes"))


# ---------------------------------------------------------------------------- writing


def join(parts: Sequence[Arrays]) -> dict[str, list[np.ndarray]]:
    """Concatenate shards lazily: name → blocks in order, with `episode_start` made anew.

    Raises ValueError when the parts do not hold the same arrays with the same row shapes.
    """
    first = parts[0]
    for part in parts:
        for name in {*first, *part}:
            if name not in first or name not in part:
                raise ValueError(f"only some episodes have {name!r}")
            if part[name].shape[1:] != first[name].shape[1:] or part[name].dtype != first[name].dtype:
                raise ValueError(
                    f"{name!r} is {first[name].shape[1:]} in one episode, {part[name].shape[1:]} in another"
                )
    blocks = {name: [part[name] for part in parts] for name in first}
    if "episode_start" in blocks:
        lengths = np.concatenate([np.diff(b) for b in blocks["episode_start"]])
        blocks["episode_start"] = [np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)]
    return blocks


def write_shard(file: Path, blocks: Mapping[str, Sequence[np.ndarray]], sealed: bool = False) -> None:
    """Write {name: blocks to concatenate along the first axis} as one safetensors file, block by block.

    The bytes depend on the content alone: fixed tensor order, no metadata but, when `sealed`, the checksum.
    """
    known = [n for n in ORDER if n in blocks] + sorted(n for n in blocks if n not in ORDER)
    header: dict[str, Any] = {}
    end = 0
    for name in known:
        head = blocks[name][0]
        shape = [sum(len(b) for b in blocks[name]), *head.shape[1:]]
        begin, end = end, end + math.prod(shape) * head.dtype.itemsize
        header[name] = {"dtype": CODES[head.dtype], "shape": shape, "data_offsets": [begin, end]}
    data = [np.ascontiguousarray(block).data.cast("B") for name in known for block in blocks[name] if block.size]
    if sealed:
        header["__metadata__"] = {"sha256": _seal(header, data)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for block in data:
            handle.write(block)


def _seal(header: Mapping[str, Any], data: Sequence[memoryview]) -> str:
    """Checksum of a file's tensors: what the header says of them, then their bytes."""
    found = hashlib.sha256(json.dumps(header, separators=(",", ":")).encode())
    for block in data:
        found.update(block)
    return found.hexdigest()
