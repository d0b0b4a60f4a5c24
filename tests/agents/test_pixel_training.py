"""Agents from pixels: what learns from what, their replay, and stops that lose nothing."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.agents import pixel_training
from stages.agents import replay as replays
from stages.agents.pixel_training import PixelReplay, pixel_policy, train_online
from stages.agents.replay import DECISIONS, PlayedEpisode, episode_file, store_episode
from stages.runtime import artifacts, checkpoints
from stages.worlds import tasks
from stages.worlds.render import render_states
from tests.agents.pixel_agents import KINDS, copies, explore_config, make_job, make_training, make_windows
from tests.stages import small_run

# ---------------------------------------------------------------------------- what learns from what


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_update_moves_actor_and_critic_alone_and_reads_the_dynamics(kind: str) -> None:
    training = make_training(kind)
    agent, learner = training.agent, training.agent.learner
    training.learn(make_windows())  # a two-hot head begins at zero, without a gradient to its input
    terms = training.learn(make_windows())
    start = {"h": terms["h"][:, 1], "z": terms["z"][:, 1]}
    modules = {"model": agent.model, "reward": agent.reward, "actor": learner.actor, "critic": learner.critic}
    before = {name: copies(module) for name, module in modules.items()}
    agent.zero_grad()
    training._freeze(True)
    training.improve(start)
    assert all(p.grad is None for name in ("model", "reward") for p in modules[name].parameters())
    # without an entropy bonus the actor has no gradient but through the imagined dynamics and their reward
    assert sum(float(p.grad.abs().sum()) for p in learner.actor.parameters() if p.grad is not None) > 0
    moved = {
        n: any(not torch.equal(a, b) for a, b in zip(before[n], copies(m), strict=True)) for n, m in modules.items()
    }
    assert moved == {"model": False, "reward": False, "actor": True, "critic": True}


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_moves_everything_that_is_trained_and_nothing_of_the_language_side(kind: str) -> None:
    training = make_training(kind)
    model, learner = training.agent.model, training.agent.learner
    trained = {"rssm": model.rssm, "state": model.fusion.fuse_state, "decoder": model.decoder,
               "reward": training.agent.reward, "actor": learner.actor, "slow critic": learner.slow}  # fmt: skip
    still = {"adapter": model.adapter, "aligner": model.aligner, "text": model.text_dynamics}
    before = {name: copies(module) for name, module in (trained | still).items()}
    terms = [training.update(make_windows()) for _ in range(2)][-1]
    for name, module in (trained | still).items():
        moved = any(not torch.equal(a, b) for a, b in zip(before[name], copies(module), strict=True))
        assert moved == (name in trained), name
    assert {"image", "kl", "reward", "imagined_reward", "policy_std"} <= terms.keys()
    assert all(value.ndim == 0 and torch.isfinite(value) for value in terms.values())


# ---------------------------------------------------------------------------- replay and playing


@pytest.fixture
def replay(tmp_path: Path) -> tuple[PixelReplay, list[Any]]:
    """A replay of three episodes of nine rows, and these."""
    found = PixelReplay(3)
    episodes = [small_run.make_episode(number, rows=9) for number in range(3)]
    for number, episode in enumerate(episodes):
        store_episode(tmp_path, number, PlayedEpisode(episode, np.zeros((9, 2), np.float32)))
        found.add(episode_file(tmp_path, number))
    return found, episodes


def drawn_places(replay: tuple[PixelReplay, list[Any]], **changes: Any) -> set[tuple[int, int]]:
    """(episode, first row) of every window of many batches, each of which is found in its episode as it is."""
    rng, places, (found, episodes) = np.random.default_rng(0), set[tuple[int, int]](), replay
    for _ in range(30):
        drawn = found.sample(explore_config(**changes), rng, "cpu")
        assert drawn["image"].shape == (3, 6, 3, 64, 64) and not drawn["is_first"][:, 1:].any()
        columns = (drawn[name].numpy() for name in ("image", "action", "reward", "is_first"))
        for image, action, reward, first in zip(*columns, strict=True):
            ((e, s),) = [
                (e, s) for e in range(3) for s in range(4) if np.array_equal(episodes[e].image[s : s + 6], image)
            ]
            np.testing.assert_array_equal(action, episodes[e].action[s : s + 6])
            np.testing.assert_array_equal(reward, episodes[e].reward[s : s + 6])
            assert bool(first[0]) == (s == 0)
            places.add((e, s))
    return places


@pytest.mark.parametrize(
    ("shares", "episodes", "starts"),
    [
        ({"start_fraction": 0.3, "recent_fraction": 0.5}, {0, 1, 2}, {0, 1, 2, 3}),
        ({"start_fraction": 1.0, "recent_fraction": 0.0}, {0, 1, 2}, {0}),
        ({"start_fraction": 0.0, "recent_fraction": 1.0, "recent_episodes": 2}, {1, 2}, {0, 1, 2, 3}),
    ],
)
def test_windows_are_rows_of_one_episode(
    shares: dict[str, Any], episodes: set[int], starts: set[int], replay: tuple[PixelReplay, list[Any]]
) -> None:
    places = drawn_places(replay, **shares)
    assert {e for e, _ in places} == episodes and {s for _, s in places} == starts


@pytest.mark.parametrize("domain", tasks.DOMAINS)
def test_every_body_is_played_from_its_own_frames_and_learned_from(domain: str) -> None:
    env = tasks.make_env(domain, tasks.task_names(domain)[0])
    training, frames = make_training("explore", env.action_dim), list[np.ndarray]()
    noise = np.random.default_rng(0).standard_normal((DECISIONS, env.action_dim))
    policy, step = pixel_policy(training.agent, env, noise, frames), env.reset(0)
    states, actions = [], []
    for decision in range(3):
        states.append(step.state)
        actions.append(policy(step.observation, decision))
        step = env.step(actions[-1])
    assert np.abs(actions).max() <= 1 and not np.array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(np.stack(frames), render_states(domain, np.stack(states)))
    again = pixel_policy(training.agent, env, noise, [])
    env.reset(0)
    np.testing.assert_array_equal(again(step.observation, 0), actions[0])  # sees frames alone, forgets the past
    training.update(make_windows(env.action_dim))


# ---------------------------------------------------------------------------- stops


SHORT = 40  # decisions of an episode in these tests


class Killed(Exception):
    """Stands for a SIGKILL: nothing of the training runs after it."""


class Recorder:
    """A channel that dies once so many episodes are reported, or stops when asked for the n-th time whether to."""

    def __init__(self, die_at: float = math.inf, stop_at: float = math.inf) -> None:
        self.frames, self.asked, self.die_at, self.stop_at = 0, 0, die_at, stop_at
        self.figures: list[Any] = []

    def report(self, frames: int, figure: Any = None) -> None:
        self.frames += frames
        self.figures.append(figure)
        if self.frames >= self.die_at * SHORT:
            raise Killed

    def stopped(self) -> bool:
        self.asked += 1
        return self.asked >= self.stop_at


def train_in(kind: str, folder: Path, channel: Recorder) -> dict[str, Any] | None:
    """Two random episodes, 6 updates, an episode, 3 updates, an episode: all of them short."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (replays, pixel_training):
            patch.setattr(module, "DECISIONS", SHORT)
        return train_online(make_job(kind, folder), channel)


def left_behind(kind: str, folder: Path) -> dict[str, bytes]:
    """The replay, and the last checkpoint's tensors."""
    job = make_job(kind, folder)
    saved = checkpoints.folder(job.path)
    files = [*sorted(job.replay.glob("episode-*")), *sorted(saved.glob("*.safetensors"))]
    return {file.name: file.read_bytes() for file in files}


@dataclass
class Whole:
    """An undisturbed training."""

    kind: str
    folder: Path
    facts: dict[str, Any]


@pytest.fixture(scope="module", params=KINDS)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    kind, folder, channel = request.param, tmp_path_factory.mktemp("whole"), Recorder()
    facts = train_in(kind, folder, channel)
    assert facts is not None and facts["updates"] == 9
    assert channel.frames == 4 * SHORT
    assert channel.figures[:2] == [None, None] and channel.figures[-1].startswith("return ")
    assert len(left_behind(kind, folder)) == 4 + 5  # episodes; networks and four optimizers
    return Whole(kind, folder, facts)


# when the channel is asked to stop for the n-th time, or dies once so many episodes are reported
INTERRUPTIONS = {
    "stopped while random": {"stop_at": 2},
    "stopped in the first updates": {"stop_at": 4},
    "stopped in later updates": {"stop_at": 10},
    "killed while random": {"die_at": 1},
    "killed before the first checkpoint": {"die_at": 3},
    "killed after it": {"die_at": 4},
}


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_a_stopped_or_killed_training_continues_to_the_same_bits(how: str, undisturbed: Whole, tmp_path: Path) -> None:
    kind = undisturbed.kind
    with contextlib.suppress(Killed):
        assert train_in(kind, tmp_path, Recorder(**INTERRUPTIONS[how])) is None
    assert left_behind(kind, tmp_path) != left_behind(kind, undisturbed.folder)
    second = Recorder()
    assert train_in(kind, tmp_path, second) == undisturbed.facts
    assert second.frames == 4 * SHORT  # what was done before counts as done
    assert left_behind(kind, tmp_path) == left_behind(kind, undisturbed.folder)
    logs = [small_run.logged(artifacts.Artifact(make_job(kind, f).path, {})) for f in (undisturbed.folder, tmp_path)]
    assert logs[0] == logs[1] and [row["step"] for row in logs[1]] == [2, 3]
