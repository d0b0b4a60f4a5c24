"""Datasets of episodes: a writer that loses nothing but the episode in flight, a memory-mapped reader.

    writer = DatasetWriter(path, run, config, {"source": "random", "task": "", "renderer": "ray", "image_size": 64})
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
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.data import catalog
from stages.data.catalog import EpisodeInfo, Part
from stages.data.shards import (
    Arrays,
    Episode,
    Shard,
    as_episode,
    check_episodes,
    episode_arrays,
    join,
    read_header,
    read_sealed,
    write_shard,
)
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput

__all__ = ["Dataset", "DatasetWriter", "Episode", "EpisodeInfo", "Part"]

SHARD_BYTES = 256 * 2**20
RESIDENT_BYTES = 512 * 2**20
FAULT_BYTES = 2 * 2**20  # the system maps up to this much around a page first touched


class DatasetWriter:
    """Appends whole episodes, each durable when `append` returns; `finish` makes the artifact.

    Episodes wait in `<path>.partial/`, one file each under the caller's number, so that parallel
    workers (each with a writer of its own on the same path) and a later run can share the work.

    Args:
        path: the dataset artifact to be.
        run: its domain and seed, with `config`, `facts` and `inputs`, decide whether a partial folder left by a
            stopped run may be continued. config, inputs: as in `artifacts.writing`.
        facts: for artifact.json: source (random, explore, expert, imported), task ("" for task-free data), renderer
            of the frames ("ray", "genrl"; "" for states only), image_size (height = width, 0 for states only), and
            further ones; "camera" is compared when datasets are mixed.
        fresh: drop a partial folder instead of continuing it (the first process only, not workers).

    Raises:
        BadInput: the partial folder was left by a run with another config.
    """

    def __init__(
        self,
        path: Path,
        run: Run,
        config: Mapping[str, Any],
        facts: Mapping[str, Any],
        inputs: Sequence[Artifact] = (),
        fresh: bool = False,
    ) -> None:
        self.path, self.run, self.config, self.facts, self.inputs = path, run, config, facts, inputs
        self.folder = path.parent / f"{path.name}.partial"
        if fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim()

    def _claim(self) -> None:
        """Write partial.json, or check that the one there was written for the same dataset."""
        made = {"domain": self.run.domain, "config": self.config, "seed": self.run.seed}
        wanted = storage.plain({**made, "inputs": artifacts.input_ids(self.inputs), **self.facts})
        file = self.folder / "partial.json"
        if not file.exists():
            storage.replace_file(file, lambda draft: draft.write_text(json.dumps(wanted)))
        try:
            found = json.loads(file.read_text())
        except (ValueError, OSError) as error:
            raise storage.corrupted(file, error) from None
        if found != wanted:
            where = artifacts.first_difference(found, wanted, "it")
            raise BadInput(f"{self.folder} was left by another run: {where}; use --fresh, or choose another --out")

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
        arrays = episode_arrays(episode)
        size = self.facts["image_size"]
        if ("image" in arrays) != bool(size) or (size and arrays["image"].shape[2:] != (size, size)):
            raise ValueError(f"episode {number} does not have the frames of this dataset (image_size {size})")
        storage.replace_file(self._file(number), lambda draft: write_shard(draft, join([arrays]), sealed=True))

    def read(self, number: int) -> Episode:
        """An episode appended earlier, in memory. Raises BadInput when its file is missing or corrupted."""
        arrays = self._read(number)
        return as_episode(arrays, 0)

    def _read(self, number: int) -> dict[str, np.ndarray]:
        arrays = read_sealed(self._file(number))
        check_episodes(self._file(number), arrays)
        return arrays

    def finish(
        self,
        episodes: int | Sequence[int] | None = None,
        about: Mapping[str, Any] | None = None,
        began: float | None = None,
    ) -> Artifact:
        """Merge episodes into the artifact in the order of their numbers, and drop the partial folder.

        `episodes`: how many, from number 0 on (default: all there are), or the very numbers. `about`
        adds facts to artifact.json; `began` is when its making began, by default now. Memory: one shard.
        Raises BadInput when there is no episode, ValueError when one is missing.
        """
        if episodes is None:
            episodes = self.numbers()[-1] + 1 if self.numbers() else 0
        numbers = range(episodes) if isinstance(episodes, int) else episodes
        missing = [number for number in numbers if not self.has(number)]
        if missing:
            raise ValueError(f"episode {missing[0]} of {self.path} was never appended")
        extra: dict[str, Any] = {**self.facts, **(about or {}), "episodes": 0, "frames": 0, "returns": []}
        with artifacts.writing(
            self.path, "collect", domain=self.run.domain, config=self.config, seed=self.run.seed, inputs=self.inputs,
            resolved=self.run.resolved, extra=extra, began=began,
        ) as draft:  # fmt: skip
            for index, group in enumerate(_groups(map(self._read, numbers))):
                self._write_group(draft / f"shard-{index:05d}.safetensors", group, extra)
            if not extra["episodes"]:
                raise BadInput(f"there is not one episode to write to {self.path}; ask for more frames")
        storage.remove_folder(self.folder)
        return artifacts.load(self.path, "collect")

    def _write_group(self, file: Path, group: list[Arrays], extra: dict[str, Any]) -> None:
        """Write whole episodes as one shard and count them in `extra`. Raises BadInput when they do not match."""
        try:
            write_shard(file, join(group))
            for key, value in catalog.dimensions(group[0]).items():
                if extra.setdefault(key, value) != value:
                    raise ValueError(f"{key} is {extra[key]} in one, {value} in another")
        except ValueError as error:
            raise BadInput(
                f"the episodes for {self.path} do not match ({error}); collect them anew with --fresh"
            ) from None
        extra["episodes"] += len(group)
        extra["frames"] += sum(len(a["reward"]) for a in group)
        extra["returns"] += [round(float(a["reward"].sum(dtype=np.float64)), 6) for a in group]


def _groups(episodes: Iterable[Arrays]) -> Iterator[list[Arrays]]:
    """Episodes in order, in groups of at most SHARD_BYTES (one episode at least)."""
    group: list[Arrays] = []
    held = 0
    for arrays in episodes:
        size = sum(a.nbytes for a in arrays.values())
        if group and held + size > SHARD_BYTES:
            yield group
            group, held = [], 0
        group.append(arrays)
        held += size
    if group:
        yield group


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
        self.names = set.intersection(*(set(s.arrays) for s in shards)) | ({"embedding"} if embeddings else set())
        self.offsets = np.cumsum([0, *(len(s.arrays["reward"]) for s in shards)])  # (S+1,) first row of each shard
        self.n_frames, self.n_episodes = int(self.offsets[-1]), len(info.length)
        first = parts[0].artifact.meta["extra"]
        self.domain = parts[0].artifact.domain
        self.action_dim, self.state_dim = int(first["action_dim"]), int(first["state_dim"])
        self.renderer, self.image_size = str(first["renderer"]), int(first["image_size"])
        self.dim_embedding = int(self.embedding_shards[0].arrays["embedding"].shape[1]) if embeddings else 0
        self.episode_start, self.episode_length = info.start, info.length  # (E,) rows
        self._touched = 0

    @classmethod
    def open(cls, paths: Sequence[Path], domain: str, embeddings: Sequence[Path] | None = None) -> Dataset:
        """Open dataset artifacts, with their sidecar embeddings (one for each path, in the same order).

        Raises:
            BadInput: something is missing, corrupted, of another domain, or does not fit together
                (frames of another renderer, camera or size, embeddings of another dataset).
        """
        found = catalog.load_datasets(paths, domain)
        shards = [catalog.open_shards(artifact) for artifact in found]
        sidecars = catalog.open_embeddings(embeddings, found, shards) if embeddings is not None else []
        return cls(*catalog.index_episodes(found, shards), [s for group in shards for s in group], sidecars)

    def has(self, name: str) -> bool:
        """Whether rows hold this array: image, action, reward, is_first, is_terminal, state, embedding."""
        return name in self.names

    def row_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one row of an array. Raises BadInput when the dataset does not hold it."""
        return self._arrays(name)[0].shape[1:]

    def nbytes(self, name: str) -> int:
        """Bytes of one array over all rows."""
        return sum(array.nbytes for array in self._arrays(name))

    def _arrays(self, name: str) -> list[np.ndarray]:
        """One array a shard, in the order of rows."""
        if self.has(name):
            return [s.arrays[name] for s in (self.embedding_shards if name == "embedding" else self.shards)]
        path = self.parts[0].artifact.path
        render, embed = (
            f"bitagent collect --preset {self.domain} --render {path}",
            f"bitagent embed --preset {self.domain}",
        )
        advice = {
            "image": f"holds states without frames; render them with: {render}",
            "state": "was imported and holds no physics state, so no frames can be made from it; collect a dataset",
            "embedding": f"was opened without embeddings; make them with: {embed}",
        }
        if name not in advice:
            raise KeyError(name)
        raise BadInput(f"{path} {advice[name]}")

    def rows(self, name: str, index: Any) -> np.ndarray:
        """Rows of one array by global row numbers of any shape: (*index.shape, *row_shape)."""
        index = np.asarray(index, np.int64)
        return self._gather(name, index.reshape(-1), 1).reshape((*index.shape, *self.row_shape(name)))

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
        self._release(min(len(starts) * (row * length + FAULT_BYTES), row * self.n_frames))
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
        arrays = self.shards[shard].arrays
        return as_episode(arrays, int(np.searchsorted(arrays["episode_start"], start - int(self.offsets[shard]))))

    def describe(self, bins: int = 10) -> dict[str, Any]:
        """What `bitagent inspect` prints: counts, and per part a histogram of episode returns; branches have none."""
        info = self.episode_info
        top = max(float(info.returns.max()), 1.0)
        edges = np.linspace(min(float(info.returns.min()), 0.0), top, bins + 1)
        about = []
        for index, part in enumerate(self.parts):
            returns = info.returns[info.part == index]
            about.append({
                "path": str(part.artifact.path), "source": part.source, "task": part.task,
                "episodes": part.episodes, "frames": part.frames,
                "cut_from": part.artifact.meta["extra"].get("cut_from", []),
                "return_min": float(returns.min()), "return_median": float(np.median(returns)),
                "return_mean": float(returns.mean()), "return_max": float(returns.max()),
                "histogram": np.histogram(returns, edges)[0].tolist(),
            })  # fmt: skip
        return {
            "domain": self.domain, "episodes": self.n_episodes, "frames": self.n_frames,
            "action_dim": self.action_dim, "state_dim": self.state_dim, "renderer": self.renderer,
            "image_size": self.image_size, "dim_embedding": self.dim_embedding,
            "histogram_edges": edges.round(3).tolist(), "parts": about,
        }  # fmt: skip


def _buffer(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def held_out_episodes(dataset: Dataset, share: float) -> np.ndarray:
    """Which episodes are never trained on, for measuring: (E,) bool; a fixed choice, at least one stays in.

    The choice for a smaller share is part of that for a larger one. A branch goes with the episode it was cut from, and
    whether there are branches changes nothing for the others.
    """
    info = dataset.episode_info
    others_first = np.argsort(info.cut, kind="stable")
    chosen = np.zeros(dataset.n_episodes, bool)
    chosen[others_first] = np.random.default_rng(0).random(dataset.n_episodes) < share
    if chosen[~info.cut].all():
        chosen[others_first[0]] = False
    return chosen[info.origin]


def kept_episodes(episodes: int, keep: int) -> list[int]:
    """Which of a run's episodes to keep: all for `keep` 0, else `keep` spread evenly, first and last among them."""
    if keep == 0 or keep >= episodes:
        return list(range(episodes))
    spread = np.linspace(episodes - 1, 0, keep)  # the last one stays even when only one is kept
    return sorted({round(x) for x in spread})


def write_sidecar(
    path: Path,
    run: Run,
    inputs: Sequence[Artifact],
    blocks: Iterable[np.ndarray],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    began: float | None = None,
) -> Artifact:
    """Write the sidecar embeddings of a dataset: one (N, D) block for each of its shards, in their order.

    Stored as float16, under the dataset's own seed.

    Args:
        inputs: the dataset first, then what else the embeddings come from (a backbone).
        facts: for artifact.json's `extra`: backbone and more; the width `dim` is added.

    Raises BadInput when a block is not finite, ValueError when its rows are not those of the shard.
    """
    source = inputs[0]
    extra: dict[str, Any] = dict(facts)
    with artifacts.writing(
        path, "embed", domain=source.domain, config=config, seed=source.meta["seed"], inputs=inputs,
        resolved=run.resolved, extra=extra, began=began,
    ) as draft:  # fmt: skip
        for shard, block in zip(catalog.open_shards(source), blocks, strict=True):
            half = np.asarray(block, np.float16)  # (N, D)
            if half.shape != (len(shard.arrays["reward"]), extra.setdefault("dim", int(half.shape[1]))):
                raise ValueError(f"embeddings {half.shape} for {len(shard.arrays['reward'])} rows of {shard.file.name}")
            if not np.isfinite(half).all():
                raise BadInput(
                    f"backbone {extra['backbone']} gave embeddings that are not finite for {source.path}; use another"
                )
            write_shard(draft / shard.file.name, {"embedding": [half]})
    return artifacts.load(path, "embed")
