"""What is made from a dataset: a copy without frames, frames from its states, sidecar embeddings.

export_states(source, Path("states/random"))                     # 100-250 bytes a step: travels well
render_dataset(states, Path("data/random-224"), size=224, camera=None, workers=4)
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from stages.core import catalog
from stages.core.episodes import Dataset, DatasetWriter, write_dataset
from stages.core.shards import episode_arrays, write_shard
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput
from stages.runtime.loop import progress, stop_signals
from stages.runtime.workers import follow_parent
from stages.worlds.render import DEFAULT_CAMERAS, render_states

COUNTS = ("episodes", "frames", "returns", "action_dim", "state_dim")  # made anew by the writer


def renderer_name(backend: str, supersample: bool) -> str:
    """How an artifact names its renderer: frames of another name are not mixed with these."""
    return f"{backend}-2x2" if supersample else backend


# ---------------------------------------------------------------------------- states


def export_states(source: Artifact, path: Path) -> Artifact:
    """Copy a dataset without its frames. Raises BadInput when it holds no physics states."""
    config = {"states_of": source.id}
    if (found := artifacts.reuse(path, "collect", config, source.meta["seed"], [source], fresh=False)) is not None:
        return found
    dataset = open_states(source)

    def without_frames() -> Iterable[dict[str, np.ndarray]]:
        for number in range(dataset.n_episodes):
            arrays = episode_arrays(dataset.episode(number))
            arrays.pop("image", None)
            yield {name: np.array(array) for name, array in arrays.items()}  # a copy: mapped pages are not held

    facts = _facts(source) | {"renderer": "", "image_size": 0, "camera": None}
    with storage.locked(path):
        return write_dataset(
            path, without_frames(), facts,
            domain=source.domain, config=config, seed=source.meta["seed"], inputs=[source],
            resolved=source.meta["resolved"],
        )  # fmt: skip


def open_states(source: Artifact) -> Dataset:
    """Open one dataset for its physics states. Raises BadInput when it has none."""
    dataset = Dataset.open([source.path], source.domain)
    dataset.row_shape("state")
    return dataset


def _facts(source: Artifact) -> dict[str, Any]:
    return {key: value for key, value in source.meta["extra"].items() if key not in COUNTS}


# ---------------------------------------------------------------------------- frames


@dataclass(frozen=True)
class RenderJob:
    """What a worker process needs to know to render any episode of a dataset."""

    source: Path
    source_id: str
    path: Path
    size: int
    camera: int | None
    backend: str
    supersample: bool


def render_dataset(
    source: Artifact,
    path: Path,
    size: int,
    camera: int | None,
    workers: int,
    *,
    backend: str = "ray",
    supersample: bool = False,
    resolved: Mapping[str, Any] | None = None,
    fresh: bool = False,
    quiet: bool = True,
) -> Artifact:
    """Make a dataset with frames (E, T, 3, size, size) from the physics states of another, over processes.

    A stopped run continues where it was. The ray renderer gives the same bytes in every process.
    Raises BadInput when the source holds no states.
    """
    if camera == DEFAULT_CAMERAS.get(source.domain):
        camera = None
    job = RenderJob(source.path.resolve(), source.id, path.resolve(), size, camera, backend, supersample)
    if (found := artifacts.reuse(path, "collect", _config(job), source.meta["seed"], [source], fresh)) is not None:
        return found
    dataset = open_states(source)
    again = f"bitagent collect --preset {source.domain} --render {source.path} --size {size}"
    with storage.locked(path):
        writer = _writer(job, source, resolved, fresh)
        missing = [number for number in range(dataset.n_episodes) if not writer.has(number)]
        rows = dataset.episode_length
        bar = progress(dataset.n_frames, dataset.n_frames - int(rows[missing].sum()), "render", "frame", quiet)
        with stop_signals() as stop, bar, closing(_render_all(job, missing, workers)) as rendered:
            try:
                for number in rendered:
                    bar.update(int(rows[number]))
                    if stop:
                        raise stop.leave(again)
            except BrokenProcessPool:  # Ctrl-C reached a worker that was still starting
                if stop:
                    raise stop.leave(again) from None
                raise
        return writer.finish(dataset.n_episodes)


def _config(job: RenderJob) -> dict[str, Any]:
    return {"render": {"size": job.size, "camera": job.camera, "renderer": renderer_name(job.backend, job.supersample)}}


def _writer(
    job: RenderJob, source: Artifact, resolved: Mapping[str, Any] | None = None, fresh: bool = False
) -> DatasetWriter:
    facts = _facts(source)
    facts |= {"renderer": renderer_name(job.backend, job.supersample), "image_size": job.size, "camera": job.camera}
    named = {key: facts.pop(key) for key in ("source", "task", "renderer", "image_size")}
    return DatasetWriter(
        job.path, domain=source.domain, config=_config(job), seed=source.meta["seed"], inputs=[source],
        resolved=resolved, about=facts, fresh=fresh, **named,
    )  # fmt: skip


def _render_all(job: RenderJob, numbers: list[int], workers: int) -> Generator[int, None, None]:
    """Yield the number of each episode once it is on disk."""
    if workers <= 1 or len(numbers) <= 1:
        yield from (_render_episode(job, number) for number in numbers)
        return
    with ProcessPoolExecutor(min(workers, len(numbers)), get_context("spawn"), follow_parent) as pool:
        try:
            for done in as_completed([pool.submit(_render_episode, job, number) for number in numbers]):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@lru_cache(maxsize=1)
def _opened(job: RenderJob) -> tuple[Dataset, DatasetWriter]:
    source = artifacts.load(job.source, "collect")
    return Dataset.open([job.source], source.domain), _writer(job, source)


def _render_episode(job: RenderJob, number: int) -> int:
    dataset, writer = _opened(job)
    episode = dataset.episode(number)
    assert episode.state is not None  # open_states saw to it
    episode.image = render_states(
        dataset.domain, episode.state, job.size, job.camera, job.backend, job.supersample, workers=1
    )
    writer.append(number, episode)
    return number


# ---------------------------------------------------------------------------- embeddings


def write_embeddings(
    path: Path,
    source: Artifact,
    blocks: Iterable[np.ndarray],
    *,
    backbone: str,
    config: Mapping[str, Any],
    seed: int,
    inputs: Iterable[Artifact] = (),
    resolved: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write the sidecar embeddings of a dataset: one (N, D) block for each of its shards, in their order.

    Stored as float16. `inputs` are artifacts the embeddings come from beside the dataset (a backbone).
    Raises BadInput when a block is not finite, ValueError when its rows are not those of the shard.
    """
    extra: dict[str, Any] = {"backbone": backbone}
    about: dict[str, Any] = {"domain": source.domain, "config": config, "seed": seed, "resolved": resolved}
    with artifacts.writing(path, "embed", inputs=[source, *inputs], extra=extra, **about) as draft:
        for shard, block in zip(catalog.open_shards(source), blocks, strict=True):
            half = np.asarray(block, np.float16)  # (N, D)
            if half.shape != (len(shard.arrays["reward"]), extra.setdefault("dim", int(half.shape[1]))):
                raise ValueError(f"embeddings {half.shape} for {len(shard.arrays['reward'])} rows of {shard.file.name}")
            if not np.isfinite(half).all():
                raise BadInput(
                    f"backbone {backbone} gave embeddings that are not finite for {source.path}; use another"
                )
            write_shard(draft / shard.file.name, {"embedding": [half]})
    return artifacts.load(path, "embed")
