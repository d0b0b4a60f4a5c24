"""The two ends of embedding a dataset: episodes' frames at the backbone's size, and rows that survive a stop."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.artifacts import remove_folder, replace_file
from stages.core.episodes import Dataset
from stages.core.errors import BadInput
from stages.core.render import render_states
from stages.core.shards import write_shard
from stages.core.workers import follow_parent

SAVE_SECONDS = 30.0
BLOCK = 2**24  # bytes reserved at a time


class FrameSource:
    """The frames of a dataset's episodes for a backbone of a given frame size.

    Stored frames when they have that size; else rendered again from the physics states, by the
    dataset's own renderer and camera; else (imported data) the stored ones, which the backbone resizes.
    `how` says which. Raises BadInput when there are neither frames nor states.
    """

    def __init__(self, dataset: Dataset, size: int, workers: int) -> None:
        facts = dataset.parts[0].artifact.meta["extra"]
        self.dataset, self.size, self.workers = dataset, size, workers
        self.camera: int | None = facts.get("camera")
        name = str(facts["renderer"]) or "ray"
        self.backend, self.supersample = name.removesuffix("-2x2"), name.endswith("-2x2")
        self.rendered = dataset.image_size != size and dataset.has("state")
        if self.rendered:
            self.how = f"{name} at {size}"
        elif dataset.image_size == size:
            self.how = "stored"
        elif dataset.has("image"):
            self.how = f"resized to {size}"
        else:
            raise BadInput(
                f"{dataset.parts[0].artifact.path} holds neither frames nor physics states; collect it again"
            )

    def episodes(self, start: int) -> Iterator[np.ndarray]:
        """uint8 (T, 3, H, W) of each episode from number `start` on."""
        numbers = range(start, self.dataset.n_episodes)
        if not self.rendered:
            for number in numbers:
                yield self._stored(number)
        elif self.workers <= 1:
            for number in numbers:
                yield self._render(number)
        else:
            yield from self._render_ahead(numbers)

    def _stored(self, number: int) -> np.ndarray:
        image = self.dataset.episode(number).image
        assert image is not None
        return image

    def _job(self, number: int) -> tuple[Any, ...]:
        state = self.dataset.episode(number).state
        assert state is not None
        return self.dataset.domain, np.array(state), self.size, self.camera, self.backend, self.supersample

    def _render(self, number: int) -> np.ndarray:
        return render_states(*self._job(number))

    def _render_ahead(self, numbers: range) -> Iterator[np.ndarray]:
        """Render over processes, a few episodes ahead of the backbone, in order."""
        with ProcessPoolExecutor(self.workers, get_context("spawn"), follow_parent) as pool:
            waiting: deque[Future[np.ndarray]] = deque()
            try:
                for number in numbers:
                    waiting.append(pool.submit(render_states, *self._job(number)))
                    if len(waiting) > 2 * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


class PartialEmbeddings:
    """Rows embedded so far, in `<path>.partial/`: a later run of the same work goes on after the last episode.

    Rows left by other work, and rows that differ from their checksum, are made again.

    Args:
        about: config and inputs.
    """

    def __init__(self, path: Path, dataset: Dataset, dim: int, about: Mapping[str, Any]) -> None:
        self.folder, self.dataset = path.parent / f"{path.name}.partial", dataset
        self.about = json.loads(json.dumps(about, default=str))
        self.shape = (dataset.n_frames, dim)
        self._saved = time.monotonic()
        self._hash = hashlib.sha256()  # of the rows so far
        self.episodes = self._resume()
        if not self.episodes:
            self._allocate()
        self._map = self._open()

    def _resume(self) -> int:
        """Episodes that are safe on disk, 0 when they are not this work's or not what was written."""
        try:
            state = json.loads((self.folder / "progress.json").read_text())
            self.episodes = min(int(state["episodes"]), self.dataset.n_episodes)
            rows = self._open()[: self.rows]
            self._hash.update(rows.data)
            if state["about"] == self.about and state["sha256"] == self._hash.hexdigest():
                return self.episodes
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return 0

    def _open(self) -> np.memmap[Any, np.dtype[np.float16]]:
        """The file of all rows, mapped. Raises ValueError when it has another size."""
        return np.memmap(self.folder / "rows.f16", np.float16, "r+", shape=self.shape)

    def _allocate(self) -> None:
        """Make the file anew with every block of it reserved: on a full disk, writing to a hole kills the process."""
        remove_folder(self.folder)
        self.folder.mkdir(parents=True)
        self._hash = hashlib.sha256()
        size = 2 * self.shape[0] * self.shape[1]
        with (self.folder / "rows.f16").open("wb") as file:
            for start in range(0, size, BLOCK):
                file.write(bytes(min(BLOCK, size - start)))

    @property
    def rows(self) -> int:
        return int(self.dataset.episode_length[: self.episodes].sum())

    def restart(self) -> None:
        """Forget the rows of an earlier attempt."""
        self.episodes = 0
        self._allocate()
        self._map = self._open()

    def append(self, embeddings: np.ndarray) -> None:
        """The next episode's embeddings (T, dim). Raises BadInput when they are not finite."""
        if not np.isfinite(embeddings).all():
            raise BadInput("the backbone gave embeddings that are not finite; its weights are damaged: get them again")
        start = self.rows
        rows = self._map[start : start + len(embeddings)]
        rows[:] = embeddings
        self._hash.update(rows.data)
        self.episodes += 1
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Make everything appended so far survive a kill."""
        self._map.flush()
        state = {"about": self.about, "episodes": self.episodes, "sha256": self._hash.hexdigest()}
        replace_file(self.folder / "progress.json", lambda draft: draft.write_text(json.dumps(state)))
        self._saved = time.monotonic()

    def write_shards(self, folder: Path) -> None:
        """One file for each shard of the dataset, of the same name: `embedding` (N, dim) float16."""
        for shard, start, stop in zip(
            self.dataset.shards, self.dataset.offsets[:-1], self.dataset.offsets[1:], strict=True
        ):
            write_shard(folder / shard.file.name, {"embedding": [np.asarray(self._map[start:stop])]})

    def drop(self) -> None:
        remove_folder(self.folder)
