"""The expert from pixels: its reward head, and the dataset it becomes."""

from __future__ import annotations

import signal

import pytest
import torch

from stages import collect
from stages.agents.dreamer import TaskReward
from stages.core.world_model import State
from stages.data.episodes import Dataset
from stages.runtime.config import Run
from stages.runtime.errors import BadInput, Interrupted
from stages.runtime.update import make_optimizer
from stages.worlds import tasks
from tests.agents.pixel_agents import agent_config, make_training, make_windows
from tests.stages.test_collect import config


def test_the_head_learns_the_reward_of_a_control_step_from_the_state() -> None:
    torch.manual_seed(0)
    agent, batch = make_training("dreamer").agent, make_windows()
    with torch.no_grad():
        seen = agent.observe(batch, batch["image"])
    optimizer = make_optimizer(list(agent.reward.parameters()), 1e-2, 0.0)
    for _ in range(100):
        optimizer.zero_grad()
        agent.reward.loss(seen, batch).backward()
        optimizer.step()
    true, earned = batch["reward"] / tasks.ACTION_REPEAT, ~batch["is_first"]
    with torch.no_grad():
        error = (agent.reward(seen.state) - true)[earned].abs().mean()  # (B, T) → ()
    assert float(error) < 0.1 < float(true[earned].std())


def test_its_error_reaches_the_world_model_but_not_from_an_episodes_first_frame() -> None:
    agent, batch = make_training("dreamer").agent, make_windows()
    with torch.no_grad():
        for parameter in agent.reward.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the head begins at zero
    seen = agent.observe(batch, batch["image"])
    agent.reward.loss(seen, batch).backward()
    encoder = agent.model.rssm.encoder[0].weight.grad
    assert encoder is not None and encoder.abs().sum() > 0
    changed = dict(batch, reward=batch["reward"].clone())
    changed["reward"][0, 0] += 1.0  # window 0 begins an episode
    with torch.no_grad():
        assert torch.equal(agent.reward.loss(seen, changed), agent.reward.loss(seen, batch))
        changed["reward"][0, 1] += 1.0
        assert not torch.equal(agent.reward.loss(seen, changed), agent.reward.loss(seen, batch))


def test_the_reward_is_read_from_any_leading_shape() -> None:
    head = TaskReward(7, 5, 1)
    h, z = torch.randn(2, 3, 4), torch.randn(2, 3, 3)
    assert head(State(h, z, torch.zeros(2, 3, 1))).shape == (2, 3)


def test_an_expert_from_pixels_becomes_a_dataset_that_says_its_algorithm(walker_run: Run) -> None:
    options = {"source": "expert", "task": "stand", "frames": 1500, "workers": 1}
    (artifact,) = collect.run(config(), walker_run, collect.Order(algo="dreamer", **options), agent_config())
    extra = artifact.meta["extra"]
    assert artifact.path == walker_run.root / "data" / "expert-stand"
    assert (extra["algo"], extra["source"], extra["task"], extra["episodes"]) == ("dreamer", "expert", "stand", 3)
    assert artifact.meta["config"]["algo"] == "dreamer" and artifact.meta["config"]["dreamer"]["units"] == 13
    assert [d for d, _ in extra["learning_curve"]] == [500, 1000, 1500]
    assert [r for _, r in extra["learning_curve"]] == pytest.approx(extra["returns"], abs=0.01)
    assert len(extra["evaluation_returns"]) == 1 and "normalized_score" in extra
    assert Dataset.open([artifact.path], "walker").has("image")
    left = {p.name for p in artifact.path.parent.iterdir() if not p.name.startswith(".")}
    assert left == {"expert-stand", "expert-stand.log"}
    with pytest.raises(BadInput, match="--fresh"):  # one replay a task: another algorithm's is not mistaken for it
        collect.run(config(), walker_run, collect.Order(algo="td3", **options))


def test_a_signal_names_the_algorithm_in_the_command_that_continues(
    walker_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(collect, "train_online", interrupt)
    with pytest.raises(Interrupted, match=r"--source expert --task stand --algo dreamer"):
        collect.run(
            config(),
            walker_run,
            collect.Order(source="expert", task="stand", algo="dreamer", workers=1),
            agent_config(),
        )
