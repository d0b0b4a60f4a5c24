"""Frames made again from a dataset's physics states, which take 100 to 250 bytes a step and travel well.

render_dataset(states, Path("data/random-224"), run, size=224, camera=None, workers=4)
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from stages import worlds
from stages.data.episodes import Dataset, DatasetWriter
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.loop import progress, stop_signals
from stages.runtime.workers import follow_parent
from stages.worlds import tasks
from stages.worlds.render import render_states

COUNTS = ("episodes", "frames", "returns", "action_dim", "state_dim")  # made anew by the writer


def open_states(source: Artifact) -> Dataset:
    """Open one dataset for its physics states. Raises BadInput when it has none."""
    dataset = Dataset.open([source.path], source.domain)
    dataset.row_shape("state")
    return dataset


def render_dataset(source: Artifact, path: Path, run: Run, size: int, camera: int | None, workers: int) -> Artifact:
    """Make a dataset with frames (E, T, 3, size, size) from the physics states of another, over processes.

    It keeps the source's seed. A stopped run continues where it was. The ray renderer gives the same bytes in every
    process. Raises BadInput when the source holds no states.
    """
    tasks.check_domain(source.domain)
    seed, camera = source.meta["seed"], None if camera == worlds.BODIES[source.domain].camera else camera
    config = {"render": {"size": size, "camera": camera, "renderer": "ray"}}
    if (found := artifacts.reuse(path, "collect", config, seed, [source], run.fresh)) is not None:
        return found
    dataset = open_states(source)
    facts = {key: value for key, value in source.meta["extra"].items() if key not in COUNTS}
    facts |= {"renderer": "ray", "image_size": size, "camera": camera}
    again = f"bitagent collect --preset {source.domain} --render {source.path} --size {size}"
    with storage.locked(path):
        writer = DatasetWriter(path, replace(run, seed=seed), config, facts, [source], run.fresh)
        missing = [number for number in range(dataset.n_episodes) if not writer.has(number)]
        rows = dataset.episode_length
        bar = progress(dataset.n_frames, dataset.n_frames - int(rows[missing].sum()), "render", "frame", run.quiet)
        with stop_signals() as stop, bar, closing(_render_all(writer, missing, workers)) as rendered:
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


def _render_all(writer: DatasetWriter, numbers: list[int], workers: int) -> Generator[int, None, None]:
    """Yield the number of each episode once it is on disk."""
    if workers <= 1 or len(numbers) <= 1:
        yield from (_render_episode(writer, number) for number in numbers)
        return
    with ProcessPoolExecutor(min(workers, len(numbers)), get_context("spawn"), follow_parent) as pool:
        try:
            for done in as_completed([pool.submit(_render_episode, writer, number) for number in numbers]):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@lru_cache(maxsize=1)
def _opened(path: Path, domain: str, identity: str) -> Dataset:
    """A worker's own mapping of the source, kept from one episode to the next; `identity` is the source's id."""
    return Dataset.open([path], domain)


def _render_episode(writer: DatasetWriter, number: int) -> int:
    (source,), facts = writer.inputs, writer.facts
    episode = _opened(source.path, source.domain, source.id).episode(number)
    assert episode.state is not None  # open_states saw to it
    episode.image = render_states(source.domain, episode.state, facts["image_size"], facts["camera"])
    writer.append(number, episode)
    return number
