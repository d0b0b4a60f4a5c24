"""The online explorer: Plan2Explore on our world model, its whole replay kept on disk.

    train_online(ExploreJob(...), channel)      # runs or continues; returns when the replay holds every episode

No reward of a task: the policy seeks states where an ensemble of one-step predictors disagrees (Sekar et al. 2020).
World model, imagination, replay and stops are those of stages/agents/pixel_training.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from stages.agents.pixel_agent import Agent, OnlineConfig, Reward
from stages.agents.pixel_training import OnlineJob
from stages.core.nets import MLP
from stages.core.world_model import Observed, State
from stages.runtime.update import Batch
from stages.worlds.tasks import Env


class ExploreConfig(OnlineConfig):
    """Section `collect.explore` of the preset; defaults and comments in presets/paper.yaml."""

    in_all: bool
    episodes: PositiveInt
    members: int = Field(ge=2)
    layers: PositiveInt


@dataclass(frozen=True)
class ExploreJob(OnlineJob):
    """The exploration of one domain; `task` only names the reward that is recorded and never read."""

    config: ExploreConfig
    kind: ClassVar[str] = "explore"

    def make_reward(self) -> Reward:
        """The disagreement of a fresh ensemble."""
        sizes, c = self.agent.model, self.config
        return Disagreement(Ensemble(c.members, sizes.deter, sizes.dim_s, c.units, c.layers))

    def facts(self, agent: Agent, env: Env, returns: list[float]) -> dict[str, Any]:
        return {"random_episodes": min(self.config.random_episodes, self.episodes)}


class Ensemble(nn.Module):
    """Networks that differ in their initial weights alone and predict one step: (..., I) → (M, ..., O)."""

    def __init__(self, members: int, inp: int, out: int, units: int, layers: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(MLP(inp, out, units, layers) for _ in range(members))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x).float() for member in self.members])

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Squared error to target (..., O), summed over features and members, mean over the rest."""
        return (self(x) - target).square().sum((0, -1)).mean()

    def disagreement(self, x: Tensor) -> Tensor:
        """Variance over the members, mean over features: (..., I) → (...) (Plan2Explore, Eq. 3)."""
        predicted = self(x)  # (M, ..., O)
        return (predicted - predicted.mean(0)).square().mean((0, -1))


class Disagreement(Reward):
    """How much an ensemble disagrees about the frame at a state, in units of what is usual in the replay.

    What the ensemble predicts is the posterior q(s_t | x_t), which reads the image alone: our embedding of the frame.
    It does so from h_t, what the dynamics make of (h, z) a step before and the action taken there.
    """

    usual: Tensor

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.register_buffer("usual", torch.ones(()))

    def loss(self, seen: Observed, batch: Batch) -> Tensor:
        """Its inputs and targets are constants, so it moves no world model."""
        h = seen.state.h[:, 1:].detach()  # (B, T-1, deter); the first has no past to predict from
        with torch.no_grad():
            self.usual.copy_(self.ensemble.disagreement(h).mean())
        return self.ensemble.loss(h, seen.posterior[:, 1:].detach().exp().flatten(-2))

    def forward(self, state: State) -> Tensor:
        return self.ensemble.disagreement(state.h) / self.usual.clamp(min=1e-8)
