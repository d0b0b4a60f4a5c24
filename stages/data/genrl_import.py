"""GenRL's public datasets: one .npz an episode, read into shards without trusting a byte of them.

    artifact, embeddings, skipped = import_genrl(Path("genrl/walker"), run)

Format (GenRL, Mazzaglia et al. 2024): arrays with a leading T: observation, action, reward, is_first,
is_terminal, and perhaps clip_video, the InternVideo2 embedding of frames t-7..t. Other arrays are
ignored. There is no physics state, so an imported dataset cannot be rendered again.
"""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.data.episodes import Dataset, DatasetWriter, write_sidecar
from stages.data.shards import Episode, episode_arrays
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.runtime.loop import progress, stop_signals
from stages.runtime.names import natural_key
from stages.worlds.tasks import action_dim

BACKBONE = "internvideo2"
CLIP_DIM = 512
FRAME = (3, 64, 64)
MAX_ROWS = 20_000  # 40 times a full episode: 240 MB of frames
MAX_NPY_HEADER = 10_000
# What zipfile and NumPy raise on files that are not what they should be.
BROKEN = (
    OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError, RuntimeError, MemoryError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


class Skipped(NamedTuple):
    """An episode left out: its file, relative to the folder, and what is wrong with it."""

    file: str
    reason: str


def import_genrl(
    folder: Path, run: Run, task: str = "", strict: bool = False, workers: int = 1
) -> tuple[Artifact, Artifact | None, list[Skipped]]:
    """Import a folder of GenRL episodes, searched recursively, in natural order of their names.

    They go into data/imported[-task] of the run, their clip_video into embeddings/internvideo2/imported[-task].

    A broken or odd episode is skipped and named in the result, or stops the import when `strict`.
    Episodes without clip_video are good ones; but one of them means no sidecar embeddings at all
    (None), as a sidecar covers every frame: `bitagent embed` makes embeddings then. Episode seeds
    are unknown: -1. A stopped import continues where it was.

    Raises:
        BadInput: no .npz in the folder, none usable, or (strict) the first bad one.
    """
    files = find_episodes(folder)
    listing = [[name, file.stat().st_size] for name, file in files.items()]
    facts: dict[str, Any] = {"source": "imported", "task": task}
    config = {"import": "genrl", "files": storage.digest(listing), **facts}
    path = run.root / "data" / (f"imported-{task}" if task else "imported")
    with storage.locked(path):
        artifact = artifacts.reuse(path, "collect", config, run.seed, [], run.fresh)
        if artifact is not None:
            skipped = [Skipped(*pair) for pair in artifact.meta["extra"]["skipped"]]
            if strict and skipped:
                raise _refusal(folder, skipped[0])
        else:
            facts |= {"renderer": "genrl", "image_size": FRAME[-1]}
            writer = DatasetWriter(path, run, config, facts, fresh=run.fresh)
            artifact, skipped = _import_episodes(folder, files, writer, strict, workers)
    left_out = {skip.file for skip in skipped}
    used = [file for name, file in files.items() if name not in left_out]
    return artifact, _import_embeddings(used, artifact, run), skipped


def find_episodes(folder: Path) -> dict[str, Path]:
    """{relative name: file} of every .npz below a folder, links followed, in natural order.

    What several paths lead to counts once, by the path without links where there is one. Raises BadInput when there is
    none.
    """
    files: list[Path] = []
    seen: set[Path] = set()
    folders = deque([folder] if folder.is_dir() else [])
    while folders:
        here = folders.popleft()
        if here.resolve() in seen:
            continue
        seen.add(here.resolve())
        for entry in sorted(here.iterdir()):
            if entry.is_dir():  # links to folders last
                (folders.append if entry.is_symlink() else folders.appendleft)(entry)
            elif entry.name.endswith(".npz") and entry.is_file():
                files.append(entry)
    known: dict[Path, Path] = {}  # the file itself → the path it goes by
    for file in sorted(files, key=Path.is_symlink):
        known.setdefault(file.resolve(), file)
    found = {file.relative_to(folder).as_posix(): file for file in known.values()}
    if not found:
        raise BadInput(f"{folder} holds no .npz episode; give the folder of a GenRL dataset")
    return {name: found[name] for name in sorted(found, key=natural_key)}


def _refusal(folder: Path, skip: Skipped) -> BadInput:
    return BadInput(f"{folder / skip.file}: {skip.reason}; remove the file, or import without --strict to skip it")


def _import_episodes(
    folder: Path, files: dict[str, Path], writer: DatasetWriter, strict: bool, workers: int
) -> tuple[Artifact, list[Skipped]]:
    names, actions = list(files), action_dim(writer.run.domain)

    def convert(number: int) -> str:
        """Import one file under its place in the listing; returns '' or what is wrong with it."""
        if writer.has(number):
            return ""
        try:
            episode = read_episode(files[names[number]], actions)
        except BROKEN as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        writer.append(number, episode)
        return ""

    skipped: list[Skipped] = []
    bar = progress(len(files), 0, "import", "episode", writer.run.quiet)
    with stop_signals() as stop, bar, ThreadPoolExecutor(max(workers, 1)) as pool:
        for number, reason in enumerate(pool.map(convert, range(len(files)))):
            bar.update()
            if reason:
                skipped.append(Skipped(names[number], reason))
            if (reason and strict) or stop:
                pool.shutdown(wait=True, cancel_futures=True)
            if reason and strict:
                raise _refusal(folder, skipped[-1])
            if stop:
                raise stop.leave("the same command")
    left_out = {skip.file for skip in skipped}
    numbers = [number for number, name in enumerate(names) if name not in left_out]
    if not numbers:
        raise BadInput(
            f"none of the {len(files)} episodes in {folder} can be used; {skipped[0].file}: {skipped[0].reason}"
        )
    return writer.finish(numbers, about={"skipped": [list(skip) for skip in skipped]}), skipped


def _import_embeddings(files: list[Path], artifact: Artifact, run: Run) -> Artifact | None:
    """The sidecar of clip_video, or None when an episode has none."""
    if not all(_has_clip(file) for file in files):
        return None
    config = {"import": "genrl", "backbone": BACKBONE}
    path = run.root / "embeddings" / BACKBONE / artifact.path.name
    with storage.locked(path):
        found = artifacts.reuse(path, "embed", config, artifact.meta["seed"], [artifact], run.fresh)
        if found is not None:
            return found
        return write_sidecar(path, run, [artifact], _embedding_blocks(files, artifact), config, {"backbone": BACKBONE})


def _has_clip(file: Path) -> bool:
    with _reopened(file) as archive:
        return has_clip(archive)


def _embedding_blocks(files: list[Path], artifact: Artifact) -> Iterator[np.ndarray]:
    """One (N, 512) block a shard, read again from the files of its episodes."""
    remaining = iter(files)
    for shard in Dataset.open([artifact.path], artifact.domain).shards:
        block = []
        for length in np.diff(shard.arrays["episode_start"]):
            with _reopened(next(remaining)) as archive:
                block.append(read_clip(archive, int(length)))
        yield np.concatenate(block)


@contextmanager
def _reopened(file: Path) -> Iterator[zipfile.ZipFile]:
    """A file that was sound when its episode was imported."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except BROKEN as error:
        raise BadInput(f"{file} changed while it was imported ({error}); import again with --fresh") from None


# ---------------------------------------------------------------------------- one file


def read_episode(file: Path, actions: int) -> Episode:
    """One .npz as an Episode of `actions`-dimensional actions.

    The first row's action and reward, which led to no frame, become 0. Raises one of BROKEN saying
    what is wrong: truncated, pickled, a missing array, an unexpected dtype or shape.
    """
    with zipfile.ZipFile(file) as archive:
        episode = Episode(
            image=read_array(archive, "observation", np.uint8, FRAME),
            action=read_array(archive, "action", np.float32, (actions,)),
            reward=read_array(archive, "reward", np.float32, (), (1,)).reshape(-1),
            is_first=read_array(archive, "is_first", np.bool_, ()),
            is_terminal=read_array(archive, "is_terminal", np.bool_, ()),
            state=None,
            seed=-1,
        )
        if has_clip(archive):
            read_clip(archive, len(episode))
    episode.action[:1], episode.reward[:1] = 0, 0
    episode_arrays(episode)
    return episode


def has_clip(archive: zipfile.ZipFile) -> bool:
    return "clip_video.npy" in archive.namelist()


def read_clip(archive: zipfile.ZipFile, rows: int) -> np.ndarray:
    """clip_video (T, 512) as unit-norm embeddings.

    Its first rows, which saw no full window of 8 frames, are zeros (7 or 8 of them, by GenRL's version): however many
    they are, they are filled from the first row that is not. Raises ValueError for any other row that is no embedding.
    """
    clip = read_array(archive, "clip_video", np.float32, (CLIP_DIM,))
    if len(clip) != rows:
        raise ValueError(f"clip_video has {len(clip)} rows in an episode of {rows}; it needs as many")
    made = np.flatnonzero((clip != 0).any(axis=1))  # rows that hold anything
    if not len(made):
        raise ValueError("clip_video holds zeros alone; leave the array out")
    first = int(made[0])
    if len(gaps := np.setdiff1d(np.arange(first, rows), made)):
        raise ValueError(f"clip_video is all zero in row {gaps[0]}, after its first embedding")
    norm = np.linalg.norm(clip[first:], axis=1, keepdims=True)  # (T - first, 1)
    if not (np.isfinite(norm).all() and (norm > 0.1).all()):
        raise ValueError("clip_video holds rows that are not embeddings (no unit norm)")
    unit = clip[first:] / norm
    return np.concatenate([np.repeat(unit[:1], first, axis=0), unit])


def read_array(archive: zipfile.ZipFile, name: str, dtype: Any, *tails: tuple[int, ...]) -> np.ndarray:
    """One array (T, *tail) of an .npz; what its header declares is checked before any memory is asked for."""
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"it has no array {name!r}") from None
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} is in an unknown .npy version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, found = read(stream, max_header_size=MAX_NPY_HEADER)
        if found.hasobject:
            raise ValueError(f"{name} holds pickled objects, which are never loaded")
        if found != dtype or not shape or shape[1:] not in tails:
            raise ValueError(f"{name} is {found} {shape}, not {np.dtype(dtype)} {('T', *tails[0])}")
        if not 0 < shape[0] <= MAX_ROWS:
            raise ValueError(f"{name} has {shape[0]} rows; an episode has 1 to {MAX_ROWS}")
        if math.prod(shape) * found.itemsize != member.file_size - stream.tell():
            raise ValueError(f"{name} declares {shape}, which is not what it holds")
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=MAX_NPY_HEADER)
    return np.ascontiguousarray(array)
