"""Branches: what would have happened under other actions, from moments of finished datasets.

    branches = Branches("walker", 0, find_sources(run.root / "data", run), config)
    for number, episode in branches.play([0, 1, 2]):        # without frames
        ...

A branch is `lead` decisions of an episode as they were, then `length` decisions under other actions: the data's own
next ones with white noise, those of another window, or uniform ones held for a few decisions. It has no reward.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from stages.agents.replay import derive_seed
from stages.data.episodes import Dataset
from stages.data.shards import Episode
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run, Section
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from stages.worlds.motion import WINDOW

LONGEST_HOLD = 8  # decisions that a uniform action is held


class BranchConfig(Section):
    """Section `collect.branch` of the preset; defaults and comments in presets/paper.yaml."""

    in_all: bool
    episodes: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=1)]
    lead: Annotated[int, Field(ge=WINDOW - 1)]
    noise: tuple[float, float]

    @field_validator("noise")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError("give the smallest standard deviation, 0 or more, and then the largest")
        return value

    @property
    def rows(self) -> int:
        """Of a branch."""
        return self.lead + 1 + self.length


class Cut(NamedTuple):
    """Where a branch leaves its source: numbers of the dataset, of the episode in it, and of the row in that."""

    dataset: int
    episode: int
    row: int


def find_sources(folder: Path, run: Run) -> list[Artifact]:
    """The finished datasets of experts and of the random policy below `folder`.

    Raises BadInput when there is none with physics states.
    """
    found = artifacts.find(folder.parent, f"{folder.name}/*", "collect", domain=run.domain)
    usable = [a for a in found if a.meta["extra"]["source"] in ("expert", "random") and a.meta["extra"]["state_dim"]]
    if not usable:
        again = run.command("collect", *(["--states-only"] if folder.name == "states" else []))
        raise BadInput(f"no dataset in {folder} to cut branches from; collect the replays first: {again}")
    return usable


@dataclass(frozen=True)
class Branches:
    """The branches of one dataset, each a function of the seed, its number and the sources."""

    domain: str
    seed: int
    sources: list[Artifact]
    config: BranchConfig

    @property
    def data(self) -> list[Dataset]:
        """The sources, each on its own."""
        return _open_sources(self.domain, tuple(a.path for a in self.sources), tuple(a.id for a in self.sources))

    @property
    def usable(self) -> list[tuple[int, np.ndarray]]:
        """(number of a source, its episodes that are long enough). Raises BadInput when there are none."""
        found = [(i, np.flatnonzero(d.episode_length >= self.config.rows)) for i, d in enumerate(self.data)]
        if not any(len(episodes) for _, episodes in found):
            raise BadInput(f"no episode has the {self.config.rows} rows of a branch; lower collect.branch.length")
        return [(i, episodes) for i, episodes in found if len(episodes)]

    def _draw(self, rng: np.random.Generator) -> Cut:
        """A moment with enough of the data before and after it, every source alike."""
        dataset, episodes = self.usable[rng.integers(len(self.usable))]
        episode = int(episodes[rng.integers(len(episodes))])
        last = int(self.data[dataset].episode_length[episode]) - 1 - self.config.length
        return Cut(dataset, episode, int(rng.integers(self.config.lead, last + 1)))

    def _rng(self, number: int, what: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, self.domain, "branch", number, what))

    def cut(self, number: int) -> Cut:
        """Where branch `number` begins to differ."""
        return self._draw(self._rng(number, "cut"))

    def actions(self, number: int, cut: Cut) -> np.ndarray:
        """The other actions (length, A) of branch `number`: one of three kinds, drawn alike."""
        rng, c = self._rng(number, "actions"), self.config
        kind = rng.integers(3)
        if kind == 2:
            hold = int(rng.integers(1, LONGEST_HOLD + 1))
            drawn = rng.uniform(-1, 1, (-(-c.length // hold), self.data[0].action_dim))
            return drawn.repeat(hold, 0)[: c.length].astype(np.float32)
        taken = cut if kind == 0 else self._draw(rng)
        action = self.data[taken.dataset].episode(taken.episode).action[taken.row + 1 : taken.row + 1 + c.length]
        spread = rng.uniform(*c.noise) if kind == 0 else 0.0
        return np.clip(action + spread * rng.standard_normal(action.shape), -1, 1).astype(np.float32)

    def play(self, numbers: Sequence[int]) -> Iterator[tuple[int, Episode]]:
        """(number, branch without frames), one by one, by their sources: each episode is simulated again once."""
        cuts = sorted((self.cut(number), number) for number in numbers)
        for dataset, of_dataset in groupby(cuts, lambda pair: pair[0].dataset):
            env = self._env(dataset)
            for episode, of_episode in groupby(of_dataset, lambda pair: pair[0].episode):
                wanted, source = list(of_episode), self.data[dataset].episode(episode)
                moments = replay(env, source, {cut.row for cut, _ in wanted})
                for cut, number in wanted:
                    env.rewind(moments[cut.row])
                    yield number, self._branch(env, source, cut, self.actions(number, cut))

    def _env(self, dataset: int) -> tasks.Env:
        """An environment that begins episodes as the source's did; of rendered random data the task is not known."""
        about: dict[str, Any] = self.sources[dataset].meta
        task = about["extra"]["task"] or about["config"].get("reward_task") or tasks.task_names(self.domain)[0]
        return tasks.make_env(self.domain, task)

    def _branch(self, env: tasks.Env, source: Episode, cut: Cut, actions: np.ndarray) -> Episode:
        """The lead-in as recorded, then what `actions` (length, A) lead to from where `env` is."""
        assert source.state is not None
        lead = slice(cut.row - self.config.lead, cut.row + 1)
        states = [env.advance(action) for action in actions]
        rows = self.config.rows
        return Episode(
            image=None,
            action=np.concatenate([source.action[lead], actions]),
            reward=np.zeros(rows, np.float32),
            is_first=np.zeros(rows, bool),
            is_terminal=np.zeros(rows, bool),
            state=np.concatenate([source.state[lead], states]),
            seed=source.seed,
            origin=(cut.dataset, cut.episode, lead.start),
        )


@lru_cache(maxsize=1)
def _open_sources(domain: str, paths: tuple[Path, ...], identities: tuple[str, ...]) -> list[Dataset]:
    """A process's own mapping of the sources, kept from one job to the next; `identities` are their ids."""
    return [Dataset.open([path], domain) for path in paths]


def replay(env: tasks.Env, episode: Episode, rows: Collection[int]) -> dict[int, tasks.Snapshot]:
    """Simulate a recorded episode again and keep the moments at `rows`.

    A stored state alone would not do: the solver starts from its last solution, and a quadruped's actuators have a
    state of their own. Where another machine's states differ in the last bits, the body is put where it was.
    """
    assert episode.state is not None
    found = {}
    state = env.reset(episode.seed).state
    for row, wanted in enumerate(episode.state[: max(rows) + 1]):
        if row:
            state = env.advance(episode.action[row])
        if not np.array_equal(state, wanted):
            env.place(wanted)
        if row in rows:
            found[row] = env.snapshot()
    return found
