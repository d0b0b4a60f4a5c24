"""The explorer: what its ensemble measures, what learns from what, its replay, and stops that lose nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bitagent_cli import presets
from stages import collect, pretrain
from stages.core import artifacts, checkpoints, experts, explore, tasks
from stages.core.actor_critic import ActorCriticConfig
from stages.core.config import Run
from stages.core.episodes import Dataset
from stages.core.errors import BadInput
from stages.core.experts import DECISIONS, Rollout, store_episode
from stages.core.explore import (
    AgentConfig,
    Ensemble,
    ExploreConfig,
    ExploreJob,
    Explorer,
    PixelReplay,
    Training,
    episode_file,
    pixel_policy,
    train_explorer,
)
from stages.core.render import render_states
from tests.core.helpers import DIM_ACTION, EXPLORE, make_batch, model_config, objective_config
from tests.stages import small_run

ACTOR_CRITIC: dict[str, Any] = {
    "units": 14, "layers": 1, "discount": 0.9, "trace": 0.95, "entropy": 0.0, "imagination": 1.0, "anchor": 1.0,
    "climb": 5.0, "n_step": 3, "target_noise": 0.2, "target_noise_clip": 0.5, "slow_rate": 0.02, "return_floor": 0.1,
    "return_rate": 0.01, "min_std": 0.1, "max_std": 1.0,
}  # fmt: skip


def config(**changes: Any) -> ExploreConfig:
    return ExploreConfig(**{**EXPLORE, **changes})


def agent() -> AgentConfig:
    return AgentConfig(model_config(), objective_config(), ActorCriticConfig(**ACTOR_CRITIC))


def make_training(dim_action: int = DIM_ACTION) -> Training:
    return Training(config(), agent(), dim_action, "cpu", 0)


def batch(dim_action: int = DIM_ACTION) -> dict[str, Tensor]:
    made = make_batch(3, 6, starts=((0, 0),))
    made["action"] = torch.rand(3, 6, dim_action) * 2 - 1
    return made


def copies(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


# ---------------------------------------------------------------------------- the ensemble


@torch.no_grad()
def test_disagreement_is_the_variance_of_the_members_predictions() -> None:
    torch.manual_seed(0)
    ensemble, x = Ensemble(4, 5, 3, 7, 2), torch.randn(2, 6, 5)
    found = ensemble.disagreement(x)
    assert found.shape == (2, 6)
    for row in range(2):
        for t in range(6):
            predictions = [member(x[row, t]).tolist() for member in ensemble.members]
            total = 0.0
            for feature in range(3):
                values = [p[feature] for p in predictions]
                mean = sum(values) / 4
                total += sum((value - mean) ** 2 for value in values) / 4
            assert float(found[row, t]) == pytest.approx(total / 3, rel=1e-4)


def test_the_members_agree_on_what_they_were_fitted_to_and_disagree_elsewhere() -> None:
    torch.manual_seed(0)
    ensemble, seen = Ensemble(5, 4, 3, 32, 2), torch.randn(256, 4).abs()  # one orthant ...
    optimizer = torch.optim.Adam(ensemble.parameters(), 3e-3)
    before = ensemble.disagreement(seen).mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        ensemble.loss(seen, torch.sin(seen[:, :3])).backward()
        optimizer.step()
    after = ensemble.disagreement(seen).mean().item()
    assert after < before / 5
    assert ensemble.disagreement(-seen).mean().item() > 5 * after  # ... and the opposite one


# ---------------------------------------------------------------------------- what learns from what


def model_gradients(explorer: Explorer) -> dict[str, Tensor]:
    torch.manual_seed(1)
    explorer.zero_grad()
    explorer.model_loss(batch())[0].backward()
    return {n: p.grad.clone() for n, p in explorer.model.named_parameters() if p.grad is not None}


def test_the_ensembles_error_moves_no_part_of_the_world_model() -> None:
    explorer = make_training().explorer
    gradients = model_gradients(explorer)
    assert gradients["rssm.encoder.0.weight"].abs().sum() > 0 and gradients["decoder.stem.weight"].abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in explorer.ensemble.parameters())
    with torch.no_grad():
        for parameter in explorer.ensemble.parameters():
            parameter.mul_(-3.0)
    for name, gradient in model_gradients(explorer).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=0, atol=0)


def test_a_policy_update_moves_actor_and_critic_alone_and_reads_the_dynamics() -> None:
    training = make_training()
    explorer, learner = training.explorer, training.explorer.learner
    terms = training.learn(batch())
    start = {"h": terms["h"][:, 1], "z": terms["z"][:, 1], "usual": terms["disagreement"]}
    modules = {"model": explorer.model, "ensemble": explorer.ensemble, "actor": learner.actor, "critic": learner.critic}
    before = {name: copies(module) for name, module in modules.items()}
    explorer.zero_grad()
    training._freeze(True)
    training.improve(start)
    assert all(p.grad is None for name in ("model", "ensemble") for p in modules[name].parameters())
    # without an entropy bonus the actor has no gradient but through the imagined dynamics and their disagreement
    assert sum(float(p.grad.abs().sum()) for p in learner.actor.parameters() if p.grad is not None) > 0
    moved = {
        n: any(not torch.equal(a, b) for a, b in zip(before[n], copies(m), strict=True)) for n, m in modules.items()
    }
    assert moved == {"model": False, "ensemble": False, "actor": True, "critic": True}


def test_an_update_moves_everything_that_is_trained_and_nothing_of_the_language_side() -> None:
    training = make_training()
    model, learner = training.explorer.model, training.explorer.learner
    trained = {"rssm": model.rssm, "state": model.fusion.fuse_state, "decoder": model.decoder,
               "ensemble": training.explorer.ensemble, "actor": learner.actor, "slow critic": learner.slow}  # fmt: skip
    still = {"adapter": model.adapter, "aligner": model.aligner, "text": model.text_dynamics}
    before = {name: copies(module) for name, module in (trained | still).items()}
    terms = [training.update(batch()) for _ in range(2)][-1]
    for name, module in (trained | still).items():
        moved = any(not torch.equal(a, b) for a, b in zip(before[name], copies(module), strict=True))
        assert moved == (name in trained), name
    assert {"image", "kl", "ensemble", "disagreement", "imagined_reward", "policy_std"} <= terms.keys()
    assert all(value.ndim == 0 and torch.isfinite(value) for value in terms.values())


@torch.no_grad()
def test_the_reward_is_one_minus_gamma_where_disagreement_is_as_usual() -> None:
    explorer = make_training().explorer
    h = torch.randn(4, 3, explorer.model.config.deter)
    found = explorer.ensemble.disagreement(h)
    reward = explorer.reward(h, found.mean())
    assert float(reward.mean()) == pytest.approx(1 - ACTOR_CRITIC["discount"], rel=1e-4)
    torch.testing.assert_close(reward / reward[0, 0], found / found[0, 0])


# ---------------------------------------------------------------------------- replay and playing


def test_windows_are_rows_of_one_episode_and_some_begin_it(tmp_path: Path) -> None:
    replay = PixelReplay(2)
    episodes = [small_run.make_episode(number, rows=9) for number in range(2)]
    for number, episode in enumerate(episodes):
        store_episode(tmp_path, number, Rollout(episode, np.zeros((9, 2), np.float32)))
        replay.add(episode_file(tmp_path, number))
    rng, starts = np.random.default_rng(0), set[int]()
    for _ in range(30):
        drawn = replay.sample(config(), rng, "cpu")
        assert drawn["image"].shape == (3, 6, 3, 64, 64)
        assert bool(drawn["is_first"][0, 0]) and not drawn["is_first"][:, 1:].any()  # a third begin an episode
        for image, action in zip(drawn["image"].numpy(), drawn["action"].numpy(), strict=True):
            found = [(e, s) for e in range(2) for s in range(4) if np.array_equal(episodes[e].image[s : s + 6], image)]  # type: ignore[index]
            assert len(found) == 1
            e, s = found[0]
            np.testing.assert_array_equal(action, episodes[e].action[s : s + 6])
            starts.add(s)
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize("domain", tasks.DOMAINS)
def test_every_body_is_played_from_its_own_frames_and_learned_from(domain: str) -> None:
    env = tasks.make_env(domain, tasks.task_names(domain)[0])
    training, frames = make_training(env.action_dim), list[np.ndarray]()
    noise = np.random.default_rng(0).standard_normal((DECISIONS, env.action_dim))
    policy, step = pixel_policy(training.explorer, env, noise, frames), env.reset(0)
    states, actions = [], []
    for decision in range(3):
        states.append(step.state)
        actions.append(policy(step.observation, decision))
        step = env.step(actions[-1])
    assert np.abs(actions).max() <= 1 and not np.array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(np.stack(frames), render_states(domain, np.stack(states)))
    again = pixel_policy(training.explorer, env, noise, [])
    env.reset(0)
    np.testing.assert_array_equal(again(step.observation, 0), actions[0])  # sees frames alone, forgets the past
    training.update(batch(env.action_dim))


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


def explore_in(folder: Path, channel: Recorder) -> dict[str, Any] | None:
    """Two random episodes, 6 updates, an episode, 3 updates, an episode: all of them short."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (experts, explore):
            patch.setattr(module, "DECISIONS", SHORT)
        return train_explorer(job(folder), channel)


def job(folder: Path) -> ExploreJob:
    return ExploreJob("walker", "stand", 0, 4, folder / "explore", config(), agent(), 0.5)


def left_behind(folder: Path) -> dict[str, bytes]:
    """The replay, and the last checkpoint's tensors."""
    saved = checkpoints.folder(job(folder).path)
    files = [*sorted(job(folder).replay.glob("episode-*")), *sorted(saved.glob("*.safetensors"))]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, channel = tmp_path_factory.mktemp("whole"), Recorder()
    assert explore_in(folder, channel) == {"updates": 9, "random_episodes": 2}
    assert channel.frames == 4 * SHORT
    assert channel.figures[:2] == [None, None] and channel.figures[-1].startswith("disagreement ")
    assert len(left_behind(folder)) == 4 + 5  # episodes; networks and four optimizers
    return folder


INTERRUPTIONS = {
    "stopped while random": Recorder(stop_at=2),
    "stopped in the first updates": Recorder(stop_at=4),
    "stopped in later updates": Recorder(stop_at=10),
    "killed while random": Recorder(die_at=1),
    "killed before the first checkpoint": Recorder(die_at=3),
    "killed after it": Recorder(die_at=4),
}


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_a_stopped_or_killed_exploration_continues_to_the_same_bits(
    how: str, undisturbed: Path, tmp_path: Path
) -> None:
    with contextlib.suppress(Killed):
        assert explore_in(tmp_path, INTERRUPTIONS[how]) is None
    assert left_behind(tmp_path) != left_behind(undisturbed)
    second = Recorder()
    assert explore_in(tmp_path, second) == {"updates": 9, "random_episodes": 2}
    assert second.frames == 4 * SHORT  # what was done before counts as done
    assert left_behind(tmp_path) == left_behind(undisturbed)
    first, again = (small_run.logged(artifacts.Artifact(job(f).path, {})) for f in (undisturbed, tmp_path))
    assert first == again and [row["step"] for row in again] == [2, 3]


# ---------------------------------------------------------------------------- the stage


def collect_config(**changes: Any) -> collect.Config:
    explore = config(episodes=2, random_episodes=1, updates=1, **changes)
    return presets.load("walker", "smoke").collect.model_copy(update={"explore": explore})


def test_exploration_becomes_a_dataset_that_is_embedded_and_pretrained_on(walker_run: Run) -> None:
    (artifact,) = collect.run(collect_config(), walker_run, source="explore", workers=1, agent=agent())
    assert artifact.path == walker_run.root / "data" / "explore"
    extra = artifact.meta["extra"]
    assert (extra["source"], extra["task"], extra["episodes"], extra["frames"]) == ("explore", "", 2, 1002)
    left = {p.name for p in artifact.path.parent.iterdir() if not p.name.startswith(".")}
    assert left == {"explore", "explore.log"}  # no checkpoint, replay or partial folder
    dataset = Dataset.open([artifact.path], "walker")
    episode = dataset.episode(1)
    assert episode.image is not None and episode.state is not None
    np.testing.assert_array_equal(episode.image[::50], render_states("walker", episode.state[::50]))
    (again,) = collect.run(collect_config(in_all=True), walker_run, source="explore", workers=1, agent=agent())
    assert again.id == artifact.id  # whether `all` explores does not change what exploration makes
    other = dataclasses.replace(agent(), model=model_config(deter=20))
    with pytest.raises(BadInput, match=r"deter.*--fresh"):
        collect.run(collect_config(), walker_run, source="explore", workers=1, agent=other)
    small_run.make_backbone(walker_run)
    (embedded,) = small_run.make_embeddings(walker_run)
    assert artifact.id in embedded.meta["inputs"].values()
    model = pretrain.run(small_run.pretrain_config(updates=1), model_config(), walker_run)
    assert {artifact.id, embedded.id} <= set(model.meta["inputs"].values())


@pytest.mark.parametrize("in_all", [False, True])
def test_all_explores_when_the_preset_says_so(in_all: bool, walker_run: Run) -> None:
    look = collect.make_look("walker", None, None, False)
    planned = collect.plan(collect_config(in_all=in_all), walker_run, "all", None, None, look, agent())
    assert ("explore" in [target.label for target in planned]) == in_all


@pytest.mark.parametrize("wrong", [{"length": 502}, {"members": 1}, {"updates": 0}, {"start_fraction": 1.5}])
def test_sizes_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        config(**wrong)
