"""The online expert from pixels: our world model with a reward head, and a policy in imagination (Dreamer).

    train_online(DreamerJob(...), channel)      # runs or continues; returns when the replay holds every episode

World model, imagination, replay and stops are those of pixel_training.py; the reward is a two-hot head fitted to the
true one (Hafner et al. 2023), whose gradient reaches the world model too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor

from stages.agents.pixel_agent import Agent, OnlineConfig, Reward
from stages.agents.pixel_training import OnlineJob, pixel_policy
from stages.agents.replay import replay_facts
from stages.agents.two_hot import TwoHotHead
from stages.core.world_model import Observed, State
from stages.runtime.update import Batch
from stages.worlds import tasks


class DreamerConfig(OnlineConfig):
    """Section `collect.dreamer` of the preset; defaults and comments in presets/paper.yaml."""

    layers: PositiveInt


@dataclass(frozen=True)
class DreamerJob(OnlineJob):
    """One expert to train from pixels, and how many episodes without noise judge it."""

    config: DreamerConfig
    evaluation_episodes: int = field(kw_only=True)
    kind: ClassVar[str] = "dreamer"

    def make_reward(self) -> Reward:
        """A fresh head on the world model's states."""
        sizes, c = self.agent.model, self.config
        return TaskReward(sizes.deter + sizes.dim_z, c.units, c.layers)

    def facts(self, agent: Agent, env: tasks.Env, returns: list[float]) -> dict[str, Any]:
        """Those of `train_expert`."""
        judged = replay_facts(self, returns, env, lambda n: pixel_policy(agent, env, n, []), self.evaluation_episodes)
        return {"algo": "dreamer", **judged}


class TaskReward(Reward):
    """The true reward of a control step, read from a state (h, z)."""

    def __init__(self, inp: int, units: int, layers: int) -> None:
        super().__init__()
        self.head = TwoHotHead(inp, units, layers)

    def loss(self, seen: Observed, batch: Batch) -> Tensor:
        """Cross-entropy on every frame that an action led to; the first of an episode has earned nothing."""
        error = self.head.loss(self.head(seen.state.features), batch["reward"] / tasks.ACTION_REPEAT)  # (B, T)
        earned = (~batch["is_first"]).float()
        return (error * earned).sum() / earned.sum()

    def forward(self, state: State) -> Tensor:
        return self.head.mean(self.head(state.features))
