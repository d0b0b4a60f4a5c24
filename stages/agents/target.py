"""One dataset to make, and the jobs that write its episodes with their frames, in worker processes.

target = Target(run, "random", "", path, record, Look(64, None, states_only=False), [0, 1, 2])
pool.submit(target.label, play_random, target, [(0, 0), (1, 1)])  # (number in the dataset, in its source)
artifact = target.writer().finish()
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.agents.branch import Branches
from stages.agents.replay import DECISIONS, ReplayJob, derive_seed, load_episode, play_episode, random_policy
from stages.data.episodes import DatasetWriter
from stages.data.shards import Episode
from stages.runtime import checkpoints
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.workers import Channel
from stages.worlds import tasks
from stages.worlds.render import render_states

ROWS = DECISIONS + 1  # of a whole episode


@dataclass(frozen=True)
class Look:
    """How frames are made: pixels, camera (None: the domain's own), or none at all."""

    size: int
    camera: int | None
    states_only: bool


@dataclass
class Target:
    """One dataset to make: `record` and `inputs` decide its content, `episodes` of its source are kept, in order."""

    run: Run
    source: str
    task: str
    path: Path
    record: dict[str, Any]
    look: Look
    episodes: list[int]
    job: ReplayJob | None = None
    branches: Branches | None = None
    rows: int = ROWS  # of an episode
    facts: dict[str, Any] = field(default_factory=dict)
    rendering: int = 0  # rendering jobs still to come back

    @property
    def label(self) -> str:
        return self.path.name

    @property
    def inputs(self) -> list[Artifact]:
        return self.branches.sources if self.branches else []

    def writer(self, fresh: bool = False) -> DatasetWriter:
        """A writer on this target; each process makes its own."""
        look = {"renderer": "ray", "image_size": self.look.size, "camera": self.look.camera}
        look |= {"renderer": "", "image_size": 0} if self.look.states_only else {}
        facts = {"source": self.source, "task": self.task, **look}
        return DatasetWriter(self.path, self.run, self.record, facts, self.inputs, fresh)

    def drop_work(self) -> None:
        """Remove what only the making of the dataset needed."""
        checkpoints.drop(self.path)
        if self.job:
            shutil.rmtree(self.job.replay, ignore_errors=True)


# ---------------------------------------------------------------------------- jobs


def nothing_left(channel: Channel) -> int:
    """Every episode was written before a stop: only the merge remains."""
    return 0


def render_replay(target: Target, numbers: list[tuple[int, int]], channel: Channel) -> int:
    """Write episodes of a replay with their frames; (number in the dataset, in the replay)."""
    job = target.job
    assert job is not None
    return write_rendered(target, ((new, load_episode(job.replay, old).episode) for new, old in numbers), channel)


def play_random(target: Target, numbers: list[tuple[int, int]], channel: Channel) -> int:
    """Play and write episodes of a random policy."""
    env, correlation = tasks.make_env(target.run.domain, target.record["reward_task"]), target.record["correlation"]
    seeds = [(new, derive_seed(target.run.seed, target.run.domain, "random", new)) for new, _ in numbers]
    return write_rendered(
        target, ((n, play_episode(env, s, random_policy(env, s, correlation)).episode) for n, s in seeds), channel
    )


def play_branches(target: Target, numbers: list[tuple[int, int]], channel: Channel) -> int:
    """Cut, play and write branches."""
    branches = target.branches
    assert branches is not None
    return write_rendered(target, branches.play([new for new, _ in numbers]), channel)


def write_rendered(target: Target, episodes: Iterator[tuple[int, Episode]], channel: Channel) -> int:
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
