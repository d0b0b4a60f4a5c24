"""Datasets being made: what each will hold, and the jobs that train, play, render and write it side by side."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.agents.dreamer import DreamerJob, train_dreamer
from stages.agents.expert import train_expert
from stages.agents.explore import ExploreJob, train_explorer
from stages.agents.replay import DECISIONS, ReplayJob, derive_seed, load_episode, play_episode, random_policy
from stages.data.episodes import DatasetWriter
from stages.data.shards import Episode
from stages.runtime import checkpoints
from stages.runtime.config import Run
from stages.runtime.loop import progress, stop_signals
from stages.runtime.workers import Channel, Figure, Pool
from stages.worlds import tasks
from stages.worlds.render import render_states

ROWS = DECISIONS + 1
CHUNK = 8  # episodes a rendering job


@dataclass(frozen=True)
class Look:
    """How frames are made: pixels, camera (None: the domain's own), or none at all."""

    size: int
    camera: int | None
    states_only: bool


@dataclass
class Target:
    """One dataset to make: `record` decides its content, `episodes` of its source are kept, in order."""

    run: Run
    source: str
    task: str
    path: Path
    record: dict[str, Any]
    look: Look
    episodes: list[int]
    job: ReplayJob | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    rendering: int = 0  # rendering jobs still to come back

    @property
    def label(self) -> str:
        return self.path.name

    def writer(self, fresh: bool = False) -> DatasetWriter:
        """A writer on this target; each process makes its own."""
        look = {"renderer": "ray", "image_size": self.look.size, "camera": self.look.camera}
        look |= {"renderer": "", "image_size": 0} if self.look.states_only else {}
        return DatasetWriter(
            self.path, self.run, self.record, {"source": self.source, "task": self.task, **look}, fresh=fresh
        )


def drop_work(target: Target) -> None:
    """Remove what only the making of the dataset needed."""
    checkpoints.drop(target.path)
    if target.job:
        shutil.rmtree(target.job.replay, ignore_errors=True)


def make(run: Run, targets: list[Target], workers: int, options: list[str]) -> None:
    """Train, play and render side by side; every dataset is finished as soon as its parts are there.

    Args:
        options: of `bitagent collect`, to go on after a stop.

    Raises:
        Interrupted: stopped by a signal, after saving.
    """
    began = time.time()
    with stop_signals() as stop, _bar(run, targets) as report, Pool(workers, lambda: bool(stop), report) as pool:
        for target in targets:
            target.writer(fresh=run.fresh)
            match target.job:
                case None:
                    _submit_chunks(pool, target, play_random)
                case ExploreJob():
                    pool.submit(target.label, train_explorer, target.job)
                case DreamerJob():
                    pool.submit(target.label, train_dreamer, target.job)
                case _:
                    pool.submit(target.label, train_expert, target.job)
        by_label = {t.label: t for t in targets}
        for label, result in pool.results():
            target = by_label[label]
            if target.job and not target.facts:
                if result is not None:
                    target.facts = result
                    _submit_chunks(pool, target, render_replay)
                continue
            target.rendering -= result
            if not target.rendering:
                _finish(target, run, began)
        if stop:
            raise stop.leave(run.command("collect", *options))


def _submit_chunks(pool: Pool, target: Target, function: Callable[..., int]) -> None:
    """Queue the jobs that write this target's episodes, CHUNK at a time, leaving out what is on disk."""
    have = set(target.writer().numbers())
    todo = [(new, old) for new, old in enumerate(target.episodes) if new not in have]
    target.rendering = len(todo)
    pool.report(target.label, ROWS * len(have), None)
    for i in range(0, len(todo), CHUNK):
        pool.submit(target.label, function, target, todo[i : i + CHUNK])
    if not todo:
        pool.submit(target.label, _nothing_left)


def _nothing_left(channel: Channel) -> int:
    """Every episode was written before a stop: only the merge remains."""
    return 0


def render_replay(target: Target, numbers: list[tuple[int, int]], channel: Channel) -> int:
    """Write episodes of a replay with their frames; (number in the dataset, in the replay)."""
    job = target.job
    assert job is not None
    return _write(target, ((new, load_episode(job.replay, old).episode) for new, old in numbers), channel)


def play_random(target: Target, numbers: list[tuple[int, int]], channel: Channel) -> int:
    """Play and write episodes of a random policy."""
    env, correlation = tasks.make_env(target.run.domain, target.record["reward_task"]), target.record["correlation"]
    seeds = [(new, derive_seed(target.run.seed, target.run.domain, "random", new)) for new, _ in numbers]
    return _write(
        target, ((n, play_episode(env, s, random_policy(env, s, correlation)).episode) for n, s in seeds), channel
    )


def _write(target: Target, episodes: Iterator[tuple[int, Episode]], channel: Channel) -> int:
    """Render and append (number, episode) pairs, made one by one, until asked to stop; how many were written."""
    writer, written, look = target.writer(), 0, target.look
    for number, episode in episodes:
        if not look.states_only:
            assert episode.state is not None
            episode.image = render_states(target.run.domain, episode.state, look.size, look.camera)
        writer.append(number, episode)
        channel.report(len(episode))
        written += 1
        if channel.stopped():
            break
    return written


def _finish(target: Target, run: Run, began: float) -> None:
    artifact = target.writer().finish(len(target.episodes), about=target.facts, began=began)
    drop_work(target)
    if not run.quiet:
        extra = artifact.meta["extra"]
        score = f", score {extra['normalized_score']:.2f} without noise" if "normalized_score" in extra else ""
        print(f"{target.path}: {extra['episodes']} episodes, {extra['frames']} frames{score}")


@contextmanager
def _bar(run: Run, targets: list[Target]) -> Iterator[Any]:
    """The one bar over all datasets: decisions played and frames rendered, with the last returns or figures."""
    played = sum(t.job.total * DECISIONS for t in targets if t.job)
    total = played + sum(ROWS * len(t.episodes) for t in targets)
    shown: dict[str, str] = {}
    with progress(total, 0, f"collect {run.domain}", "frame", run.quiet) as bar:

        def report(label: str, frames: int, figure: Figure) -> None:
            bar.update(frames)
            if figure is not None:
                shown[label.removeprefix("expert-")] = figure if isinstance(figure, str) else f"{figure:.0f}"
                bar.set_postfix(shown)

        yield report
