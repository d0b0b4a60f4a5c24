"""Branches: simulated again to the bit, other actions of three kinds, and what each is cut from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from stages import worlds
from stages.agents.branch import BranchConfig, Branches, find_sources, replay
from stages.agents.replay import play_episode, random_policy
from stages.data.episodes import DatasetWriter
from stages.data.shards import Episode
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from tests.core.helpers import BRANCH


def play(domain: str, task: str, seed: int) -> Episode:
    env = tasks.make_env(domain, task)
    return play_episode(env, seed, random_policy(env, seed, 0.5)).episode


def make_source(run: Run, name: str, episodes: list[Episode], source: str, task: str = "") -> Artifact:
    facts = {"source": source, "task": task, "renderer": "", "image_size": 0, "camera": None}
    writer = DatasetWriter(run.root / "data" / name, run, {"reward_task": "walk"}, facts)
    for number, episode in enumerate(episodes):
        writer.append(number, episode)
    return writer.finish()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two sources: two episodes of an expert and one of random actions."""
    made = Run(domain="walker", scale="smoke", root=tmp_path_factory.mktemp("branch") / "walker-smoke", quiet=True)
    make_source(made, "expert-run", [play("walker", "run", seed) for seed in (1, 2)], "expert", "run")
    make_source(made, "random", [play("walker", "walk", 3)], "random")
    return made


def branches(run: Run, seed: int = 0, **changed: Any) -> Branches:
    return Branches("walker", seed, find_sources(run.root / "data", run), BranchConfig(**BRANCH | changed))


@pytest.mark.parametrize("domain", worlds.PAPER)
def test_a_moment_goes_on_as_recorded_bit_for_bit(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the solver's last solution or an actuator's own state matter; the body need not be put anywhere."""

    def refuse(*_: object) -> None:
        raise AssertionError("the simulation differed from the recorded states")

    episode = play(domain, tasks.task_names(domain)[0], 5)
    assert episode.state is not None
    monkeypatch.setattr(tasks.Env, "place", refuse)
    env = tasks.make_env(domain, tasks.task_names(domain)[0])
    moments = replay(env, episode, [40, 90])
    for row in (90, 40, 90):  # in any order, as often as one likes
        env.rewind(moments[row])
        again = [env.step(action).state for action in episode.action[row + 1 : row + 31]]
        np.testing.assert_array_equal(again, episode.state[row + 1 : row + 31])


def test_states_of_another_machine_are_taken_as_recorded(run: Run) -> None:
    episode = play("walker", "walk", 3)
    assert episode.state is not None
    other = dataclasses.replace(episode, state=episode.state * (1 + 1e-9))
    env = tasks.make_env("walker", "walk")
    env.rewind(replay(env, other, [60])[60])
    after = env.step(other.action[61]).state
    assert other.state is not None
    assert 0 < np.abs(after - other.state[61]).max() < 1e-6


@pytest.mark.parametrize("number", range(6))
def test_a_branch_is_its_source_then_what_other_actions_do(run: Run, number: int) -> None:
    """The lead-in as recorded, and after it what a fresh environment does along all the actions from the reset."""
    made = branches(run)
    ((_, branch),) = made.play([number])
    assert branch.origin is not None and branch.state is not None
    dataset, episode, row = branch.origin
    source = made.data[dataset].episode(episode)
    assert source.state is not None
    lead, rows = slice(row, row + 9), BRANCH["lead"] + 1 + BRANCH["length"]
    assert len(branch) == rows and branch.seed == source.seed
    np.testing.assert_array_equal(branch.state[:9], source.state[lead])
    np.testing.assert_array_equal(branch.action[:9], source.action[lead])
    assert not branch.is_first.any() and not branch.is_terminal.any() and not branch.reward.any()

    env = tasks.make_env("walker", "run" if made.sources[dataset].meta["name"] == "expert-run" else "walk")
    env.reset(source.seed)
    for action in (*source.action[1 : lead.stop], *branch.action[9:-1]):
        env.step(action)
    np.testing.assert_array_equal(env.step(branch.action[-1]).state, branch.state[-1])
    assert not np.array_equal(branch.state[-1], source.state[row + rows - 1])


def test_without_noise_the_datas_own_actions_give_the_data(run: Run) -> None:
    made = branches(run, noise=(0.0, 0.0))
    same = []
    for number, branch in made.play(range(12)):
        cut = made.cut(number)
        stretch = slice(cut.row - 8, cut.row + 11)
        source = made.data[cut.dataset].episode(cut.episode)
        assert branch.state is not None and source.state is not None
        if np.array_equal(branch.action, source.action[stretch]):
            np.testing.assert_array_equal(branch.state, source.state[stretch])
            same.append(number)
    assert len(same) >= 2


def test_other_actions_are_of_three_kinds_in_equal_shares(run: Run) -> None:
    made, count = branches(run), 600
    windows = {
        stretch.tobytes()
        for data in made.data
        for number in range(data.n_episodes)
        for stretch in np.lib.stride_tricks.sliding_window_view(data.episode(number).action, 10, 0).swapaxes(1, 2)
    }
    kinds, spreads = [], []
    for number in range(count):
        cut = made.cut(number)
        action = made.actions(number, cut)
        assert action.shape == (10, 6) and action.dtype == np.float32 and np.abs(action).max() <= 1
        own = made.data[cut.dataset].episode(cut.episode).action[cut.row + 1 : cut.row + 11]
        inside = np.abs(action) < 1  # where nothing was clipped
        apart = float((action - own)[inside].std())
        kinds.append("window" if action.tobytes() in windows else "noise" if apart < 0.62 else "uniform")
        if kinds[-1] == "noise":
            spreads.append(apart)
    shares = [kinds.count(kind) / count for kind in ("noise", "window", "uniform")]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.07)
    assert min(spreads) < 0.12 and max(spreads) > 0.4


def test_sources_share_equally_and_moments_leave_room(run: Run) -> None:
    made = branches(run)
    cuts = [made.cut(number) for number in range(900)]
    assert np.mean([cut.dataset for cut in cuts]) == pytest.approx(0.5, abs=0.05)  # though one has twice the episodes
    rows = [cut.row for cut in cuts]
    assert 8 <= min(rows) < 14 and 484 < max(rows) <= 490  # 8 of the data before, 10 after
    assert {cut.episode for cut in cuts if cut.dataset == 0} == {0, 1}


def test_a_branch_depends_on_seed_and_number_alone(run: Run) -> None:
    together = dict(branches(run).play([7, 2, 5]))
    for number in (5, 7):
        ((_, alone),) = branches(run).play([number])
        for name in ("action", "state"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(together[number], name))
        ((_, reseeded),) = branches(run, seed=1).play([number])
        assert reseeded.origin != alone.origin


def test_only_experts_and_random_data_with_states_are_cut(tmp_path: Path) -> None:
    run = Run(domain="walker", scale="smoke", root=tmp_path / "walker-smoke", quiet=True)
    with pytest.raises(BadInput, match=r"collect the replays first: bitagent collect --preset walker --scale smoke$"):
        find_sources(run.root / "data", run)
    episode = play("walker", "walk", 3)
    make_source(run, "explore", [episode], "explore")
    blind = dataclasses.replace(episode, state=None, image=np.zeros((len(episode), 3, 8, 8), np.uint8))
    facts = {"source": "random", "task": "", "renderer": "ray", "image_size": 8, "camera": None}
    writer = DatasetWriter(run.root / "data" / "blind", run, {}, facts)
    writer.append(0, blind)
    writer.finish()
    with pytest.raises(BadInput, match="to cut branches from; collect the replays first"):
        find_sources(run.root / "data", run)
    make_source(run, "random", [episode], "random")
    assert [a.meta["name"] for a in find_sources(run.root / "data", run)] == ["random"]


def test_episodes_too_short_for_a_branch_are_refused(run: Run) -> None:
    assert branches(run, length=490, lead=10).cut(0).row == 10
    with pytest.raises(BadInput, match=r"no episode has the 502 rows of a branch; lower collect\.branch\.length"):
        branches(run, length=491, lead=10).cut(0)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c | {"noise": (0.6, 0.05)},
        lambda c: c | {"noise": (-0.1, 0.05)},
        lambda c: c | {"lead": 6},
        lambda c: c | {"length": 0},
        lambda c: c | {"episodes": 0},
    ],
)
def test_wrong_settings_are_refused(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        BranchConfig(**change(BRANCH))
