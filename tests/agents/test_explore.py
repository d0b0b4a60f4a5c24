"""The explorer: what its ensemble measures, what learns from its error, and the dataset it becomes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bitagent_cli import presets
from stages import collect, pretrain
from stages.agents.explore import Disagreement, Ensemble
from stages.agents.pixel_agent import Agent
from stages.core.world_model import State
from stages.data.episodes import Dataset
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.worlds.render import render_states
from tests.agents.pixel_agents import agent_config, explore_config, make_training, make_windows
from tests.core.helpers import model_config
from tests.stages import small_run


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


def model_gradients(agent: Agent) -> dict[str, Tensor]:
    torch.manual_seed(1)
    agent.zero_grad()
    agent.model_loss(make_windows())[0].backward()
    return {n: p.grad.clone() for n, p in agent.model.named_parameters() if p.grad is not None}


def test_the_ensembles_error_moves_no_part_of_the_world_model() -> None:
    agent = make_training("explore").agent
    gradients = model_gradients(agent)
    assert gradients["rssm.encoder.0.weight"].abs().sum() > 0 and gradients["decoder.stem.weight"].abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in agent.reward.parameters())
    with torch.no_grad():
        for parameter in agent.reward.parameters():
            parameter.mul_(-3.0)
    for name, gradient in model_gradients(agent).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=0, atol=0)


def test_the_reward_is_one_where_the_members_disagree_as_usual() -> None:
    agent = make_training("explore").agent
    assert isinstance(agent.reward, Disagreement)
    agent.model_loss(make_windows())
    assert 0 < float(agent.reward.usual) < 1
    h = torch.randn(4, 3, agent.model.config.deter)
    found = agent.reward.ensemble.disagreement(h)
    agent.reward.usual.copy_(found.mean())
    reward = agent.reward(State(h, torch.zeros(4, 3, 1), torch.zeros(4, 3, 1)))
    assert reward.mean().item() == pytest.approx(1.0, rel=1e-4)
    torch.testing.assert_close(reward / reward[0, 0], found / found[0, 0])


# ---------------------------------------------------------------------------- the stage


def collect_config(**changes: Any) -> collect.Config:
    explore = explore_config(episodes=2, random_episodes=1, updates=1, **changes)
    return presets.resolve("walker", "smoke").collect.model_copy(update={"explore": explore})


def test_exploration_becomes_a_dataset_that_is_embedded_and_pretrained_on(walker_run: Run) -> None:
    (artifact,) = collect.run(collect_config(), walker_run, collect.Order(source="explore", workers=1), agent_config())
    assert artifact.path == walker_run.root / "data" / "explore"
    extra = artifact.meta["extra"]
    assert (extra["source"], extra["task"], extra["episodes"], extra["frames"]) == ("explore", "", 2, 1002)
    left = {p.name for p in artifact.path.parent.iterdir() if not p.name.startswith(".")}
    assert left == {"explore", "explore.log"}  # no checkpoint, replay or partial folder
    dataset = Dataset.open([artifact.path], "walker")
    episode = dataset.episode(1)
    assert episode.image is not None and episode.state is not None
    np.testing.assert_array_equal(episode.image[::50], render_states("walker", episode.state[::50]))
    (again,) = collect.run(
        collect_config(in_all=True), walker_run, collect.Order(source="explore", workers=1), agent_config()
    )
    assert again.id == artifact.id  # whether `all` explores does not change what exploration makes
    other = dataclasses.replace(agent_config(), model=model_config(deter=20))
    with pytest.raises(BadInput, match=r"deter.*--fresh"):
        collect.run(collect_config(), walker_run, collect.Order(source="explore", workers=1), other)
    small_run.make_backbone(walker_run)
    (embedded,) = small_run.make_embeddings(walker_run)
    assert artifact.id in embedded.meta["inputs"].values()
    model = pretrain.run(pretrain.Sections(small_run.pretrain_config(updates=1), model_config()), walker_run)
    assert {artifact.id, embedded.id} <= set(model.meta["inputs"].values())


@pytest.mark.parametrize("in_all", [False, True])
def test_all_explores_when_the_preset_says_so(in_all: bool, walker_run: Run) -> None:
    look = collect.Look(64, None, states_only=False)
    planned = collect.plan(collect_config(in_all=in_all), walker_run, collect.Order(), look, agent_config())
    assert ("explore" in [target.label for target in planned]) == in_all


@pytest.mark.parametrize("wrong", [{"length": 502}, {"members": 1}, {"updates": 0}, {"start_fraction": 1.5}])
def test_sizes_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        explore_config(**wrong)
