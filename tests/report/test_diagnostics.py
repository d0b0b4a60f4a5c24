"""The yardsticks measure what they say: errors, true rewards from states, rewards along episodes, rank correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.bitagent import BiTAgent
from stages.core.reward import text_reward
from stages.core.world_model import TaskContext
from stages.data.episodes import Dataset
from stages.report import diagnostics
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from tests.core.helpers import model_config
from tests.data.real_data import make_dataset

DIM_E = 9


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("diagnostics"), DIM_E)


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> BiTAgent:
    torch.manual_seed(0)
    return BiTAgent(model_config(), DIM_E, dataset.action_dim).requires_grad_(False).eval()


def prompts(model: BiTAgent, count: int = 2) -> TaskContext:
    return model.task(F.normalize(torch.randn(count, DIM_E, generator=torch.Generator().manual_seed(3)), dim=-1))


# ---------------------------------------------------------------------------- open loop


def test_copy_error_is_that_of_the_last_frame_seen(model: BiTAgent, dataset: Dataset) -> None:
    starts = np.array([0, 3, 61])
    found = diagnostics.open_loop(model, dataset, starts, context=4, horizon=5)
    image = dataset.windows("image", starts, 9).astype(np.float64) / 255
    np.testing.assert_array_equal(found.real, dataset.windows("image", starts, 9))
    copied = ((image[:, 3:4] - image[:, 4:]) ** 2).sum((2, 3, 4))
    np.testing.assert_allclose(found.copy, copied, rtol=1e-4)
    predicted = ((found.predicted[:, 4:] / 255 - image[:, 4:]) ** 2).sum((2, 3, 4))
    np.testing.assert_allclose(found.single, predicted, rtol=1e-4)


def test_error_is_that_of_the_mean_of_sampled_rollouts(
    model: BiTAgent, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rollouts, each alone the whole of an estimate, average to the frame that is judged."""
    rollouts: list[Tensor] = []
    decode = diagnostics.decode

    def recorded(model: BiTAgent, z: Tensor) -> Tensor:
        rollouts.append(decode(model, z))
        return rollouts[-1]

    monkeypatch.setattr(diagnostics, "decode", recorded)
    monkeypatch.setattr(diagnostics, "SAMPLES", 3)
    found = diagnostics.open_loop(model, dataset, np.array([0, 3]), context=4, horizon=5, seed=1)
    sampled = [r.numpy().astype(np.float64) for r in rollouts if r.shape[1] == 5][1:]  # the first is the single one
    assert len(sampled) == 3 and not np.array_equal(sampled[0], sampled[1])
    future = dataset.windows("image", np.array([0, 3]), 9)[:, 4:]
    wanted = (((np.mean(sampled, 0) - future) / 255) ** 2).sum((2, 3, 4))
    np.testing.assert_allclose(found.error, wanted, rtol=1e-4)
    again = diagnostics.open_loop(model, dataset, np.array([0, 3]), context=4, horizon=5, seed=1)
    np.testing.assert_array_equal(found.error, again.error)


def test_prediction_does_not_see_the_future(model: BiTAgent, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and embeddings after the context are replaced by noise: what is predicted stays the same."""
    before = diagnostics.open_loop(model, dataset, np.array([2]), context=4, horizon=5).predicted
    real = diagnostics._window

    def blinded(dataset: Dataset, name: str, *rest: Any) -> Tensor:
        window = real(dataset, name, *rest).clone()
        if name != "action":
            window[:, 4:] = torch.randint(0, 255, window[:, 4:].shape).to(window.dtype)
        return window

    monkeypatch.setattr(diagnostics, "_window", blinded)
    after = diagnostics.open_loop(model, dataset, np.array([2]), context=4, horizon=5).predicted
    np.testing.assert_array_equal(before, after)


def test_summary_says_how_far_imagination_wins() -> None:
    frames = np.zeros((1, 1, 3, 64, 64), np.uint8)
    copy = np.full((2, 12), 4.0)
    error = np.where(np.arange(12) < 11, 1.0, 5.0)[None].repeat(2, 0)
    found = diagnostics.open_loop_summary(diagnostics.OpenLoop(frames, frames, error, error, copy), held_out=True)
    assert (found["better_than_copying"], found["times_better_at_10"], found["windows"]) == (11, 4.0, 2)
    assert found["held_out"] is True
    always = diagnostics.open_loop_summary(diagnostics.OpenLoop(frames, frames, copy / 2, copy, copy), held_out=False)
    assert always["better_than_copying"] == 12


def test_windows_stay_inside_their_episodes(dataset: Dataset) -> None:
    every = np.ones(dataset.n_episodes, bool)
    starts = diagnostics.draw_windows(dataset, every, 200, 25, seed=1)
    info = dataset.episode_info
    episode = np.searchsorted(info.start, starts, side="right") - 1
    assert (starts + 25 <= info.start[episode] + info.length[episode]).all()
    assert set(info.part[episode]) == {0, 1}
    with pytest.raises(BadInput, match=r"visualize\.horizon"):
        diagnostics.draw_windows(dataset, every, 3, 31, seed=1)
    with pytest.raises(BadInput, match=r"visualize\.horizon"):
        diagnostics.best_windows(dataset, 3, 31)
    alone = np.arange(dataset.n_episodes) == 1
    starts = diagnostics.draw_windows(dataset, alone, 20, 25, seed=1)
    assert set(np.searchsorted(info.start, starts, side="right") - 1) == {1}


def test_the_best_windows_are_those_of_each_parts_best_episodes_in_turn(dataset: Dataset) -> None:
    info = dataset.episode_info
    best = [np.flatnonzero(info.part == part)[np.argsort(-info.returns[info.part == part])] for part in (0, 1)]
    starts = diagnostics.best_windows(dataset, 3, 20)
    episode = np.searchsorted(info.start, starts, side="right") - 1
    assert episode.tolist() == [best[0][0], best[1][0], best[0][1]]
    np.testing.assert_array_equal(starts, info.start[episode] + (info.length[episode] - 20) // 2)


# ---------------------------------------------------------------------------- true reward


@pytest.mark.parametrize("domain", tasks.DOMAINS)
def test_true_reward_is_the_environments_own(domain: str) -> None:
    for task in tasks.task_names(domain, training_only=False):
        env = tasks.make_env(domain, task, seed=4)
        env.reset(4)
        random = np.random.default_rng(0)
        states, wanted = [], []
        for _ in range(6):
            states.append(env.step(random.uniform(-1, 1, env.action_dim)).state)
            wanted.append(env._task.get_reward(env._physics))
        np.testing.assert_allclose(diagnostics.true_reward(domain, task, np.stack(states)), wanted, atol=1e-9)


# ---------------------------------------------------------------------------- learned reward


def literal(model: BiTAgent, dataset: Dataset, episode: int, task: TaskContext, horizon: int, space: str) -> np.ndarray:
    """The reward along one episode, the slow way: filter it whole, then compare stretch by stretch."""
    found = dataset.episode(episode)
    start = int(dataset.episode_info.start[episode])
    e = dataset.rows("embedding", np.arange(start, start + len(found)))
    image, action, is_first = (torch.from_numpy(np.array(x))[None] for x in (found.image, found.action, found.is_first))
    e = model.adapter(F.normalize(torch.from_numpy(e).float(), dim=-1))[None]
    seen = model.observe(image, action, is_first, e, task, None)
    out = []
    for begin in range(0, len(found) - horizon, horizon):
        z = seen.state.z[:, begin : begin + horizon + 1]
        out.append(text_reward(model, task, z, action[:, begin + 1 : begin + horizon + 1], space)[0])
    return torch.cat(out).numpy()


def test_rewards_along_episodes_equal_the_slow_way(model: BiTAgent, dataset: Dataset) -> None:
    contexts, episodes = prompts(model), np.array([0, 2, 3, 5, 4])
    found = diagnostics.episode_rewards(model, dataset, episodes, contexts, horizon=7)
    assert tuple(found) == model.spaces and found["z"].shape == (2, 5, 28)
    for name in model.spaces:
        for k in range(2):
            for place, episode in enumerate(episodes):
                one = contexts.rows(torch.tensor([k]))
                wanted = literal(model, dataset, int(episode), one, 7, name)
                np.testing.assert_allclose(found[name][k, place], wanted, atol=1e-5)


def test_episodes_cover_the_ranks_of_every_part(dataset: Dataset) -> None:
    info = dataset.episode_info
    every = np.ones(dataset.n_episodes, bool)
    for count in (2, 4, 100):
        chosen = diagnostics.choose_episodes(dataset, every, count)
        assert len(set(chosen)) == len(chosen) and set(info.part[chosen]) == {0, 1}
    alone = np.arange(dataset.n_episodes) == 1
    assert list(diagnostics.choose_episodes(dataset, alone, 4)) == [1]
    both = diagnostics.choose_episodes(dataset, every, 4)
    for part in (0, 1):
        mine = info.returns[info.part == part]
        assert sorted(info.returns[both][info.part[both] == part]) == [mine.min(), mine.max()]


def test_the_true_reward_ranks_itself(dataset: Dataset) -> None:
    episodes = np.arange(dataset.n_episodes)
    rows = dataset.episode_info.start[:, None] + np.arange(1, 29)
    truth = diagnostics.true_reward("walker", "stand", dataset.rows("state", rows).reshape(-1, 18)).reshape(rows.shape)
    noise = np.random.default_rng(0).random(truth.shape)
    rewards = {"same": 3 * truth - 1, "opposite": -truth, "noise": noise, "flat": np.zeros_like(truth)}
    found = diagnostics.reward_diagnostics(dataset, "stand", episodes, rewards, windows=300, seed=0, held_out=True)
    assert found["spearman"]["same"] == pytest.approx(1.0) and found["spearman"]["opposite"] == pytest.approx(-1.0)
    assert abs(found["spearman"]["noise"]) < 0.3 and found["spearman"]["flat"] is None
    assert found["held_out"] is True
    assert set(found["by_source"]) == {"random", "expert of walk"}
    assert sum(s["windows"] for s in found["by_source"].values()) == 300
    random = found["by_source"]["random"]
    assert random["mean"]["same"] == pytest.approx(3 * random["true"] - 1, abs=1e-3)


def test_windows_are_drawn_evenly_from_the_sources_however_few_their_episodes(dataset: Dataset) -> None:
    part = dataset.episode_info.part
    episodes = np.concatenate([np.flatnonzero(part == 0)[:1], np.flatnonzero(part == 1)])
    assert len(episodes) >= 3
    rewards = {"noise": np.random.default_rng(0).random((len(episodes), 28))}
    found = diagnostics.reward_diagnostics(dataset, "stand", episodes, rewards, windows=2000, seed=0, held_out=True)
    assert all(900 < source["windows"] < 1100 for source in found["by_source"].values())


def test_behaviours_tell_standing_from_lying(dataset: Dataset) -> None:
    """A body held upright and one laid flat: the reward of each lands under its own name."""
    height = np.array([1.3, 0.2])[:, None].repeat(8, 1)  # torso
    states = np.zeros((2, 8, 18))
    states[:, :, 0] = height - 1.3  # rootz is relative to the model's own height
    states[1, :, 2] = np.pi / 2
    found = diagnostics._behaviours("walker", states)
    assert found["on_feet"][0] > 0.5 > found["on_feet"][1]
    assert found["lying"][1] > 0.5 > found["lying"][0]


def test_own_replay_is_called_expert(dataset: Dataset) -> None:
    assert [diagnostics.source_name(dataset, p, "walk") for p in (0, 1)] == ["random", "expert"]
    assert diagnostics.source_name(dataset, 1, "run") == "expert of walk"


def test_imported_data_cannot_be_judged(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dataset, "has", lambda self, name: name != "state")
    with pytest.raises(BadInput, match="no physics state"):
        diagnostics.reward_diagnostics(dataset, "walk", np.array([0]), {"a": np.zeros((1, 8))}, 5, 0, False)
