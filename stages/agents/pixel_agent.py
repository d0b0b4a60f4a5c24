"""The agent from pixels: world model without language, a reward of its own, a policy in imagination, and their losses.

pixel_training.py trains one; explore.py and dreamer.py say what it is rewarded for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from stages.agents.online_actor_critic import OnlineActorCritic
from stages.agents.replay import DECISIONS
from stages.core.joint_model import JointModel
from stages.core.objective import image_error, kl_losses
from stages.core.settings import ActorCriticConfig, ModelConfig, ObjectiveConfig
from stages.core.world_model import Noise, Observed, State, TaskContext
from stages.runtime.config import PartShare, Section, Share
from stages.runtime.update import Batch, Terms

NO_SEMANTICS = 1  # width of the embedding that is always zero


class OnlineConfig(Section):
    """What the agents from pixels have in common; defaults and comments in presets/paper.yaml."""

    random_episodes: PositiveInt
    updates: PositiveInt
    batch: PositiveInt
    length: int = Field(ge=2, le=DECISIONS + 1)
    start_fraction: Share
    recent_fraction: Share
    recent_episodes: PositiveInt
    decoded: PositiveInt
    lr: float
    policy_lr: float
    discount: PartShare
    max_std: float
    entropy: float
    saturation: float
    clip: float
    units: PositiveInt
    imagined: PositiveInt
    horizon: PositiveInt
    bf16: bool
    checkpoint_episodes: PositiveInt


@dataclass(frozen=True)
class AgentConfig:
    """The sections of other stages that the networks and losses of an agent from pixels are made from."""

    model: ModelConfig
    objective: ObjectiveConfig
    actor_critic: ActorCriticConfig

    @property
    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {name: part.model_dump() for name, part in vars(self).items()}


class Reward(nn.Module):
    """What an agent is rewarded for: fitted to the replay beside the world model, read in imagination."""

    def loss(self, seen: Observed, batch: Batch) -> Tensor:
        """The error () that fits it to a batch and the world model's reading `seen` of that batch."""
        raise NotImplementedError

    def forward(self, state: State) -> Tensor:
        """The reward (...) of arriving at states (..., ·)."""
        raise NotImplementedError


class Agent(nn.Module):
    """World model, reward and policy, with their losses.

    The world model is the joint model with the direct sum for a fusion and semantics that are always zero, so z
    is a function of the stochastic state alone; its language side is never trained.
    """

    def __init__(
        self, config: OnlineConfig, parts: AgentConfig, reward: Reward, dim_action: int, device: str = "cpu"
    ) -> None:
        super().__init__()
        sizes = parts.model.model_copy(update={"fusion": "sum", "imagined_semantics": "hold", "reads_imagined": True})
        own = {name: getattr(config, name) for name in ("units", "discount", "max_std")}
        self.config, self.objective, self.noise = config, parts.objective, Noise(device)
        self.model = JointModel(sizes, NO_SEMANTICS, dim_action)
        self.reward = reward
        constants, features = parts.actor_critic.model_copy(update=own), sizes.deter + sizes.dim_z
        self.learner = OnlineActorCritic(features, dim_action, constants, config.entropy)
        self.to(device)

    def nothing(self, *lead: int) -> tuple[Tensor, TaskContext]:
        """The semantics that are not there (*lead, 1), and the context of no prompt (lead[0], ...)."""
        e = torch.zeros(*lead, NO_SEMANTICS, device=self.noise.device)
        with torch.no_grad():
            return e, self.model.task(torch.zeros(lead[0], NO_SEMANTICS, device=self.noise.device))

    def observe(self, batch: Batch, image: Tensor) -> Observed:
        """Filter windows of the replay: image (B, T, 3, 64, 64)."""
        e, context = self.nothing(*image.shape[:2])
        return self.model.observe(image, batch["action"], batch["is_first"], e, context, self.noise)

    def model_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        """L_WM (Eq. 12), with `decoded` frames of a window reconstructed, and the error of the reward.

        Args:
            batch: image (B, T, 3, 64, 64) uint8, action (B, T, A), reward (B, T), is_first (B, T), true at t = 0 alone.
        Returns:
            the loss, and terms among which h (B, T, deter) and z (B, T, dim_z) are the posterior states.
        """
        image = batch["image"]
        seen = self.observe(batch, image)
        terms = kl_losses(seen, self.objective)
        terms["image"] = image_error(self.model, seen.state.z, image, self.config.decoded)
        terms["reward"] = self.reward.loss(seen, batch)
        total = terms["kl"] + terms["image"] + terms["reward"]
        terms |= {"h": seen.state.h, "z": seen.state.z.float()}
        return total, {k: v.detach() for k, v in terms.items()}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        """Actor and critic losses on rollouts under the policy, from h (N, deter), z (N, dim_z).

        The reward is taken times 1 - γ: returns are then near 1, as the critic and the floor of the return range
        expect, whatever γ.
        """
        count, horizon = len(batch["h"]), self.config.horizon
        e, context = self.nothing(count)
        normal = self.noise.normal(count, horizon, self.model.dim_action)
        stds = []

        def act(features: Tensor, step: int) -> Tensor:
            action, std = self.learner.act(features.detach(), normal[:, step])
            stds.append(std)
            return action

        start = State(batch["h"], batch["z"], e)
        states, _, _ = self.model.imagine(start, act, horizon, context, self.noise)
        reward = self.reward(states.map(lambda x: x[:, 1:])) * (1 - self.learner.config.discount)  # (N, H)
        actor, critic, terms = self.learner.losses(states.features, reward, torch.stack(stds, 1))
        raw, _ = self.learner.actor.net(states.features.detach()).float().chunk(2, -1)  # the mean before its tanh
        loss = actor + critic + self.config.saturation * raw.square().sum(-1).mean()
        terms |= {"actor": actor, "critic": critic, "policy_mean": raw.abs().mean()}
        return loss, {k: v.detach() for k, v in terms.items()}

    @torch.no_grad()
    def act(self, image: Tensor, state: State | None, action: Tensor, normal: Tensor) -> tuple[Tensor, State]:
        """A sampled action (1, A) for one frame (1, 3, 64, 64), after `action`; `state` None begins an episode."""
        e, context = self.nothing(1)
        state = self.model.observe_step(image, state, action, e, context)
        mean, std = self.learner.actor(state.features)
        return (mean + std * normal).clamp(-1.0, 1.0), state
