"""Frames made again from a dataset's physics states, which take 100 to 250 bytes a step and travel well.

render_dataset(states, Path("data/random-224"), size=224, camera=None, workers=4)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from stages import worlds
from stages.data.episodes import Dataset, DatasetWriter
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.loop import progress, stop_signals
from stages.runtime.workers import follow_parent
from stages.worlds import tasks
from stages.worlds.render import render_states

COUNTS = ("episodes", "frames", "returns", "action_dim", "state_dim")  # made anew by the writer


def renderer_name(backend: str, supersample: bool) -> str:
    """How an artifact names its renderer: frames of another name are not mixed with these."""
    return f"{backend}-2x2" if supersample else backend


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
    tasks.check_domain(source.domain)
    if camera == worlds.BODIES[source.domain].camera:
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
