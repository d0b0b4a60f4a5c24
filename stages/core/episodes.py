"""Datasets of episodes: a writer that loses nothing but the episode in flight, a memory-mapped reader.

    writer = DatasetWriter(path, domain="walker", config=..., seed=0, source="random", task="", renderer="ray", ...)
    if not writer.has(3):
        writer.append(3, episode)          # durable once it returns; any process, any order
    artifact = writer.finish()             # shards of whole episodes in the order of their numbers

    dataset = Dataset.open([path], "walker", embeddings=[...])
    dataset.rows("image", index)           # a vectorised gather over all shards

Frames, actions and rewards follow the Dreamer convention: `action[t]` led to `image[t]`; zeros where
`is_first`. Rewards are the sum over the repeated control steps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.core import artifacts
from stages.core.artifacts import Artifact
from stages.core.errors import BadInput
from stages.core.shards import (
    Episode,
    Shard,
    allow_open_files,
    as_episode,
    check_episodes,
    join,
    read_arrays,
    read_header,
    write_shard,
)

SHARD_BYTES = 256 * 2**20
RESIDENT_BYTES = 256 * 2**20
FAULT_BYTES = 64 * 2**10  # the system maps about this much around each page first touched
DIMS = {"action_dim": "action", "state_dim": "state"}


class DatasetWriter:
    """Appends whole episodes, each durable when `append` returns; `finish` makes the artifact.

    Episodes wait in `<path>.partial/`, one file each under the caller's number, so that parallel
    workers (each with a writer of its own on the same path) and a later run can share the work.

    Args:
        path: the dataset artifact to be.
        config, seed, resolved, inputs: as in `artifacts.writing`; also decide whether a partial
            folder left by a stopped run may be continued.
        source: random, explore, expert, imported; task: a task name, "" for task-free data.
        renderer: the renderer of the frames ("ray", "gl", ...), "" for states only.
        image_size: height = width of the frames, 0 for states only.
        about: further facts for artifact.json, e.g. {"camera": 0}.
        fresh: drop a partial folder instead of continuing it (the first process only, not workers).

    Raises:
        BadInput: the partial folder was left by a run with another config.
    """

    def __init__(
        self,
        path: Path,
        *,
        domain: str,
        config: Mapping[str, Any],
        seed: int,
        source: str,
        task: str,
        renderer: str,
        image_size: int,
        resolved: Mapping[str, Any] | None = None,
        inputs: Sequence[Artifact] = (),
        about: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> None:
        self.path = path
        self.folder = path.parent / f"{path.name}.partial"
        self.provenance: dict[str, Any] = {
            "domain": domain,
            "config": dict(config),
            "seed": seed,
            "inputs": tuple(inputs),
        }
        self.resolved = dict(resolved or {})
        self.extra: dict[str, Any] = {"source": source, "task": task, "renderer": renderer, "image_size": image_size}
        self.extra |= dict(about or {})
        if fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim()

    def _claim(self) -> None:
        """Write partial.json, or check that the one there was written for the same dataset."""
        wanted = self.provenance | {"inputs": artifacts.input_ids(self.provenance["inputs"])} | self.extra
        wanted = json.loads(json.dumps(wanted, default=str))
        file = self.folder / "partial.json"
        if not file.exists():
            self._replace(file, lambda draft: draft.write_text(json.dumps(wanted)))
        try:
            found = json.loads(file.read_text())
        except (ValueError, OSError) as error:
            raise artifacts.corrupted(file, error) from None
        if found != wanted:
            where = artifacts._first_difference(found, wanted, "it")
            raise BadInput(f"{self.folder} was left by another run: {where}; use --fresh, or choose another --out")

    def _replace(self, file: Path, write: Any) -> None:
        """Write a file whole or not at all: temporary sibling, fsync, rename, fsync of the folder."""
        draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        write(draft)
        artifacts._fsync(draft)
        draft.rename(file)
        artifacts._fsync(self.folder)

    def _file(self, number: int) -> Path:
        return self.folder / f"episode-{number:08d}.safetensors"

    def has(self, number: int) -> bool:
        """Whether this episode is already safe on disk."""
        return self._file(number).exists()

    def numbers(self) -> list[int]:
        """The numbers of all episodes on disk, ascending."""
        return sorted(int(f.name[8:16]) for f in self.folder.glob("episode-????????.safetensors"))

    def frames(self) -> int:
        """Rows on disk so far, over all episodes."""
        return sum(read_header(self._file(n))["reward"].shape[0] for n in self.numbers())

    def append(self, number: int, episode: Episode) -> None:
        """Store episode `number`; when this returns it survives a kill. Raises ValueError on wrong arrays."""
        arrays = episode.arrays()
        size = self.extra["image_size"]
        if ("image" in arrays) != bool(size) or (size and arrays["image"].shape[2:] != (size, size)):
            raise ValueError(f"episode {number} does not have the frames of this dataset (image_size {size})")
        arrays["episode_start"] = np.array([0, len(episode)], np.int64)
        arrays["episode_seed"] = np.array([episode.seed], np.int64)
        self._replace(self._file(number), lambda draft: write_shard(draft, {k: [v] for k, v in arrays.items()}))

    def read(self, number: int) -> Episode:
        """An episode appended earlier. Raises BadInput when its file is missing or corrupted."""
        arrays = read_arrays(self._file(number))
        check_episodes(self._file(number), arrays)
        return as_episode(arrays, slice(None), int(arrays["episode_seed"][0]))

    def finish(self, episodes: int | None = None, about: Mapping[str, Any] | None = None) -> Artifact:
        """Merge episodes 0..`episodes`-1 (default: all there are) into the artifact, and drop the partial folder.

        Never holds more than one shard in memory. `about` adds facts to artifact.json.
        Raises BadInput when there are none, ValueError when a number is missing.
        """
        numbers = self.numbers() if episodes is None else list(range(episodes))
        missing = [i for i, n in enumerate(numbers) if n != i or not self.has(n)]
        if missing:
            raise ValueError(f"episode {missing[0]} of {self.path} was never appended")
        if not numbers:
            raise BadInput(f"there is not one episode to write to {self.path}; ask for more frames")
        extra = self.extra | dict(about or {}) | {"episodes": len(numbers), "frames": 0, "returns": []}
        with artifacts.writing(self.path, "collect", resolved=self.resolved, extra=extra, **self.provenance) as draft:
            for index, group in enumerate(self._groups(numbers)):
                dims = {name: group[0][key].shape[1] if key in group[0] else 0 for name, key in DIMS.items()}
                try:
                    write_shard(draft / f"shard-{index:05d}.safetensors", join(group))
                    if any(extra.setdefault(name, dim) != dim for name, dim in dims.items()):
                        raise ValueError(f"{dims} in some")
                except ValueError as error:
                    raise BadInput(f"the episodes of {self.folder} do not match: {error}; use --fresh") from None
                extra["frames"] += sum(len(a["reward"]) for a in group)
                extra["returns"] += [round(float(a["reward"].sum(dtype=np.float64)), 6) for a in group]
        shutil.rmtree(self.folder)
        return artifacts.load(self.path, "collect")

    def _groups(self, numbers: Iterable[int]) -> Iterator[list[dict[str, np.ndarray]]]:
        """Episodes in order, in groups of at most SHARD_BYTES (one episode at least)."""
        group: list[dict[str, np.ndarray]] = []
        held = 0
        for number in numbers:
            arrays = read_arrays(self._file(number))
            check_episodes(self._file(number), arrays)
            size = sum(a.nbytes for a in arrays.values())
            if group and held + size > SHARD_BYTES:
                yield group
                group, held = [], 0
            group.append(arrays)
            held += size
        yield group


# ---------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Part:
    """One dataset artifact of an opened Dataset: rows `first_row`.. and episodes `first_episode`.. of the whole."""

    artifact: Artifact
    source: str
    task: str
    episodes: int
    frames: int
    first_episode: int
    first_row: int


@dataclass(frozen=True)
class EpisodeInfo:
    """Facts of every episode, as arrays over all episodes: `part` indexes Dataset.parts, `start` is a global row."""

    part: np.ndarray  # (E,) int64
    source: np.ndarray  # (E,) str
    task: np.ndarray  # (E,) str
    returns: np.ndarray  # (E,) float64, sum of the task reward
    length: np.ndarray  # (E,) int64, rows
    start: np.ndarray  # (E,) int64
    seed: np.ndarray  # (E,) int64


class Dataset:
    """One or several dataset artifacts of one domain, memory-mapped; rows are numbered through all of them.

    Opening reads headers and episode bounds alone. Pages touched by gathers are given back every
    RESIDENT_BYTES, so resident memory does not grow with the dataset.
    """

    def __init__(
        self, parts: Sequence[Part], info: EpisodeInfo, shards: Sequence[Shard], embeddings: Sequence[Shard]
    ) -> None:
        self.parts, self.episode_info = list(parts), info
        self.shards, self.embedding_shards = list(shards), list(embeddings)
        self.offsets = np.cumsum([0, *(len(s.arrays["reward"]) for s in shards)])  # (S+1,) first row of each shard
        self.n_frames, self.n_episodes = int(self.offsets[-1]), len(info.length)
        first = parts[0].artifact.meta["extra"]
        self.domain = parts[0].artifact.domain
        self.action_dim, self.state_dim = int(first["action_dim"]), int(first["state_dim"])
        self.renderer, self.image_size = str(first["renderer"]), int(first["image_size"])
        self.embedding_dim = self.embedding_shards[0].arrays["embedding"].shape[1] if embeddings else 0
        self._touched = 0

    @classmethod
    def open(cls, paths: Sequence[Path], domain: str, embeddings: Sequence[Path] | None = None) -> Dataset:
        """Open dataset artifacts, with their sidecar embeddings (one for each path, in the same order).

        Raises:
            BadInput: something is missing, corrupted, of another domain, or does not fit together
                (frames of another renderer or size, embeddings of another dataset).
        """
        if not paths:
            raise BadInput("no dataset to open; make one with `bitagent collect`")
        if embeddings is not None and len(embeddings) != len(paths):
            raise BadInput(f"{len(paths)} datasets but {len(embeddings)} sets of embeddings; run `bitagent embed`")
        found = [artifacts.load(path, "collect", domain=domain, made_by="bitagent collect") for path in paths]
        _require_same(found)
        shards = [_open_shards(artifact) for artifact in found]
        parts, info = _index(found, shards)
        sidecars: list[Shard] = []
        for index, path in enumerate(embeddings or ()):
            sidecars += _open_embeddings(path, found[index], shards[index])
        if len({s.arrays["embedding"].shape[1] for s in sidecars}) > 1:
            raise BadInput(
                "the embeddings are of different sizes; run `bitagent embed` with one backbone for all datasets"
            )
        return cls(parts, info, [s for group in shards for s in group], sidecars)

    def has(self, name: str) -> bool:
        """Whether rows hold this array: image, action, reward, is_first, is_terminal, state, embedding."""
        return bool(self.embedding_shards) if name == "embedding" else name in self.shards[0].arrays

    def row_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one row of an array. Raises BadInput when the dataset does not hold it."""
        return self._arrays(name)[0].shape[1:]

    def _arrays(self, name: str) -> list[np.ndarray]:
        """One array a shard, in the order of rows."""
        if self.has(name):
            return [s.arrays[name] for s in (self.embedding_shards if name == "embedding" else self.shards)]
        path = self.parts[0].artifact.path
        advice = {
            "image": f"holds states without frames; render them with `bitagent collect --preset {self.domain} --render {path}`",
            "state": "was imported and holds no physics state, so it cannot be rendered again",
            "embedding": "was opened without embeddings; make them with `bitagent embed`",
        }
        if name not in advice:
            raise KeyError(name)
        raise BadInput(f"{path} {advice[name]}")

    def rows(self, name: str, index: Any) -> np.ndarray:
        """Rows of one array by global row numbers of any shape: (*index.shape, *row_shape)."""
        index = np.asarray(index, np.int64)
        return self._gather(name, index.reshape(-1), 1).reshape(*index.shape, *self.row_shape(name))

    def windows(self, name: str, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` consecutive rows from each start: (B, T, *row_shape). A window must not leave its episode."""
        return self._gather(name, np.asarray(starts, np.int64), length)

    def _gather(self, name: str, starts: np.ndarray, length: int) -> np.ndarray:
        """(B,) starts → (B, T, *row_shape); one copy a shard touched, a window being one block of its file."""
        arrays = self._arrays(name)
        if len(starts) and (starts.min() < 0 or starts.max() + length > self.n_frames):
            raise IndexError(f"rows outside 0..{self.n_frames - 1}")
        out = np.empty((len(starts), length, *arrays[0].shape[1:]), arrays[0].dtype)
        row = out.nbytes // max(len(starts) * length, 1)
        block = np.dtype(f"V{row * length}")
        flat = np.ndarray((len(starts),), block, buffer=out.data) if out.size else out[:, 0]
        shard = np.searchsorted(self.offsets, starts, side="right") - 1  # (B,)
        for number in np.unique(shard):
            array = arrays[number]
            # every possible window of this shard as one element, overlapping in memory
            view = np.ndarray((len(array) - length + 1,), block, buffer=_buffer(array), strides=(row,))
            chosen = np.flatnonzero(shard == number)
            flat[chosen] = view[starts[chosen] - self.offsets[number]]
        self._release(len(starts) * (row * length + FAULT_BYTES))
        return out

    def _release(self, touched: int) -> None:
        self._touched += touched
        if self._touched > RESIDENT_BYTES:
            self._touched = 0
            for shard in (*self.shards, *self.embedding_shards):
                shard.release()

    def episode(self, number: int) -> Episode:
        """One episode as read-only views of the mapped files."""
        start = int(self.episode_info.start[number])
        shard = int(np.searchsorted(self.offsets, start, side="right")) - 1
        first = start - int(self.offsets[shard])
        rows = slice(first, first + int(self.episode_info.length[number]))
        return as_episode(self.shards[shard].arrays, rows, int(self.episode_info.seed[number]))

    def describe(self, bins: int = 10) -> dict[str, Any]:
        """What `bitagent inspect` prints: counts, and per part a histogram of episode returns."""
        info = self.episode_info
        top = max(float(info.returns.max()), 1.0)
        edges = np.linspace(min(float(info.returns.min()), 0.0), top, bins + 1)
        about = []
        for index, part in enumerate(self.parts):
            returns = info.returns[info.part == index]
            about.append({
                "path": str(part.artifact.path), "source": part.source, "task": part.task,
                "episodes": part.episodes, "frames": part.frames,
                "return_min": float(returns.min()), "return_median": float(np.median(returns)),
                "return_mean": float(returns.mean()), "return_max": float(returns.max()),
                "histogram": np.histogram(returns, edges)[0].tolist(),
            })  # fmt: skip
        return {
            "domain": self.domain, "episodes": self.n_episodes, "frames": self.n_frames,
            "action_dim": self.action_dim, "state_dim": self.state_dim, "renderer": self.renderer,
            "image_size": self.image_size, "embedding_dim": self.embedding_dim,
            "histogram_edges": edges.round(3).tolist(), "parts": about,
        }  # fmt: skip


def _buffer(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _require_same(found: Sequence[Artifact]) -> None:
    """Raise BadInput unless all datasets have the same renderer, frame size and dimensions."""
    keys = ("renderer", "image_size", "action_dim", "state_dim", "episodes", "frames", "source", "task", "returns")
    for artifact in found:
        absent = [key for key in keys if key not in artifact.meta["extra"]]
        if absent:
            raise artifacts.corrupted(artifact.path / "artifact.json", ValueError(f"it has no {absent[0]!r}"))
    first = found[0].meta["extra"]
    for artifact in found[1:]:
        for key in ("renderer", "image_size", "action_dim"):
            if artifact.meta["extra"][key] != first[key]:
                raise BadInput(
                    f"{found[0].path} and {artifact.path} do not mix: {key} is {first[key]!r} in one and "
                    f"{artifact.meta['extra'][key]!r} in the other; render or collect one of them again"
                )


def _open_shards(artifact: Artifact) -> list[Shard]:
    names = sorted(n for n in artifact.meta["files"] if n.startswith("shard-") and n.endswith(".safetensors"))
    extra = artifact.meta["extra"]
    allow_open_files(len(names))
    shards = [Shard(artifact.path / name) for name in names]
    for shard in shards:
        check_episodes(shard.file, shard.arrays)
        image, state = shard.arrays.get("image"), shard.arrays.get("state")
        found = {
            "action_dim": shard.arrays["action"].shape[1],
            "image_size": 0 if image is None else image.shape[2],
            "state_dim": 0 if state is None else state.shape[1],
        }
        for key, value in found.items():
            if extra[key] != value:
                raise artifacts.corrupted(shard.file, ValueError(f"{key} is {value}, artifact.json says {extra[key]}"))
    counts = {
        "episodes": sum(len(s.arrays["episode_seed"]) for s in shards),
        "frames": sum(len(s.arrays["reward"]) for s in shards),
    }
    if (
        any(extra[key] != count for key, count in counts.items())
        or len(extra["returns"]) != counts["episodes"]
        or not shards
    ):
        raise artifacts.corrupted(artifact.path / "artifact.json", ValueError("its counts differ from the shards"))
    return shards


def _index(found: Sequence[Artifact], shards: Sequence[Sequence[Shard]]) -> tuple[list[Part], EpisodeInfo]:
    """Number the episodes and rows of all parts through."""
    parts: list[Part] = []
    starts, seeds, row, episode = [], [], 0, 0
    for artifact, group in zip(found, shards, strict=True):
        extra = artifact.meta["extra"]
        parts.append(Part(artifact, extra["source"], extra["task"], extra["episodes"], extra["frames"], episode, row))
        for shard in group:
            starts.append(shard.arrays["episode_start"][:-1] + row)
            seeds.append(np.array(shard.arrays["episode_seed"]))
            row += len(shard.arrays["reward"])
        episode += extra["episodes"]
    start = np.concatenate(starts)
    part = np.repeat(np.arange(len(parts)), [p.episodes for p in parts])
    info = EpisodeInfo(
        part=part,
        source=np.array([p.source for p in parts])[part],
        task=np.array([p.task for p in parts])[part],
        returns=np.concatenate([np.asarray(a.meta["extra"]["returns"], np.float64) for a in found]),
        length=np.diff(np.append(start, row)),
        start=start,
        seed=np.concatenate(seeds),
    )
    return parts, info


def _open_embeddings(path: Path, dataset: Artifact, shards: Sequence[Shard]) -> list[Shard]:
    sidecar = artifacts.load(path, "embed", domain=dataset.domain, made_by="bitagent embed")
    if dataset.id not in sidecar.meta["inputs"].values():
        raise BadInput(f"{path} was made from another version of {dataset.path}; run `bitagent embed` again")
    allow_open_files(len(shards))
    found = []
    for shard in shards:
        twin = Shard(path / shard.file.name)
        embedding = twin.arrays.get("embedding")
        if embedding is None or embedding.dtype != np.float16 or embedding.ndim != 2:
            raise artifacts.corrupted(twin.file, ValueError("it holds no (N, D) float16 'embedding'"))
        if len(embedding) != len(shard.arrays["reward"]):
            raise artifacts.corrupted(
                twin.file, ValueError(f"{len(embedding)} rows beside {len(shard.arrays['reward'])} frames")
            )
        found.append(twin)
    return found
