"""Playing, the replay's n-step returns, exploration noise and budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.agents import expert
from stages.agents import replay as replays
from stages.agents.two_hot import symlog
from stages.data.episodes import kept_episodes
from stages.runtime.errors import BadInput
from stages.worlds import tasks


def fill(n_step: int, length: int, terminal: bool = False) -> tuple[expert.Replay, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    observation = rng.standard_normal((length + 1, 3)).astype(np.float32)
    action = rng.uniform(-1, 1, (length + 1, 2)).astype(np.float32)
    reward = rng.uniform(0, 2, length + 1).astype(np.float32)
    is_terminal = np.zeros(length + 1, bool)
    is_terminal[-1] = terminal
    replay = expert.Replay(2, 3, 2, n_step, discount=0.9)
    replay.add(observation, action, reward, is_terminal)
    return replay, observation, action, reward


@pytest.mark.parametrize("terminal", [False, True])
def test_replay_holds_n_step_returns_that_end_with_the_episode(terminal: bool) -> None:
    length, n = 7, 3
    replay, observation, action, reward = fill(n, length, terminal)
    assert replay.size == length
    for t in range(length):
        steps = min(n, length - t)
        wanted = sum(0.9**k * reward[t + 1 + k] / tasks.ACTION_REPEAT for k in range(steps))
        assert replay.reward[t].item() == pytest.approx(wanted, rel=1e-5)
        ended = terminal and t + steps == length
        assert replay.bootstrap[t].item() == pytest.approx(0.0 if ended else 0.9**steps, rel=1e-5)
        np.testing.assert_array_equal(replay.action[t], action[t + 1])  # the action taken at row t
        torch.testing.assert_close(replay.obs[replay.row[t]], symlog(torch.from_numpy(observation[t])))
        torch.testing.assert_close(replay.obs[replay.next_row[t]], symlog(torch.from_numpy(observation[t + steps])))


def test_a_second_episode_does_not_mix_with_the_first() -> None:
    replay, observation, action, reward = fill(3, 7)
    replay.add(observation + 100, action, reward, np.zeros(8, bool))
    first = replay.obs[replay.next_row[:7]]
    second = replay.obs[replay.row[7 : replay.size]]
    assert replay.size == 14 and first.max() < 3 and second.min() > 3
    batch = replay.sample(32, torch.Generator().manual_seed(0))
    again = replay.sample(32, torch.Generator().manual_seed(0))
    assert all(torch.equal(batch[k], again[k]) for k in batch)
    assert batch["obs"].shape == (32, 3) and batch["discount"].shape == (32,)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_noise_has_unit_variance_and_the_correlation_asked_for(correlation: float) -> None:
    noise = replays.correlated_noise(np.random.default_rng(0), 20000, 2, correlation)
    assert noise.std() == pytest.approx(1.0, abs=0.05)
    assert np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1] == pytest.approx(correlation, abs=0.05)


def test_random_actions_are_uniform_whatever_their_correlation() -> None:
    env = tasks.make_env("walker", "walk")
    actions = np.concatenate([
        np.stack([replays.random_policy(env, seed, 0.5)(np.zeros(1), t) for t in range(500)]) for seed in range(4)
    ])  # fmt: skip
    counts, _ = np.histogram(actions, bins=4, range=(-1, 1))
    assert np.abs(actions).max() <= 1
    np.testing.assert_allclose(counts / actions.size, 0.25, atol=0.02)


def test_an_episode_follows_the_data_convention_and_its_seed(tmp_path: Path) -> None:
    env = tasks.make_env("walker", "stand")
    rollout = replays.play_episode(env, 7, replays.random_policy(env, 7, 0.5))
    episode = rollout.episode
    assert len(episode) == 501 and rollout.observation.shape == (501, env.observation_dim)
    assert episode.is_first.sum() == 1 and episode.reward[0] == 0 and not episode.action[0].any()
    assert episode.reward.min() >= 0 and episode.reward.max() <= tasks.ACTION_REPEAT
    again = replays.play_episode(env, 7, replays.random_policy(env, 7, 0.5))
    assert episode.state is not None
    np.testing.assert_array_equal(episode.state, again.episode.state)
    replays.store_episode(tmp_path, 3, rollout)
    loaded = replays.load_episode(tmp_path, 3)
    np.testing.assert_array_equal(loaded.observation, rollout.observation)
    np.testing.assert_array_equal(loaded.episode.reward, episode.reward)
    assert loaded.episode.seed == 7


def test_kept_episodes_span_the_training() -> None:
    assert kept_episodes(5, 0) == [0, 1, 2, 3, 4]
    assert kept_episodes(3, 10) == [0, 1, 2]
    kept = kept_episodes(300, 130)
    assert len(kept) == 130 and kept[0] == 0 and kept[-1] == 299 and max(np.diff(kept)) <= 3
    assert kept_episodes(9, 1) == [8]


def test_seeds_differ_by_every_part() -> None:
    seeds = {replays.derive_seed(s, d, t, n) for s in (0, 1) for d in "ab" for t in "ab" for n in range(3)}
    assert len(seeds) == 24 and all(0 <= s < 2**31 for s in seeds)


def test_a_task_without_budget_is_refused() -> None:
    class Budgets:
        decisions = {"walk": 1000}  # noqa: RUF012

    assert expert.task_decisions(Budgets(), "walk") == 1000  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"collect\.expert\.decisions\.run"):
        expert.task_decisions(Budgets(), "run")  # type: ignore[arg-type]
