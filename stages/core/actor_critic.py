"""Actor and values, learned in imagination and on the dataset's own transitions (Section 3.2; TD3+BC, DreamerV3).

Imagination tells rightly where the policy goes, and hardly what one action changes (docs/imagination.md). So it teaches
the value of states, and the data's transitions that of actions. The actor climbs the second, near what the data did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.nets import MLP
from stages.core.settings import ActorCriticConfig
from stages.runtime.distributed import gathered
from stages.runtime.update import Terms

ACTING_RATE = 0.01  # of the actor that plays, an average: single updates move a score by a quarter
IMAGINED = 0.5  # share of the imagined state values in what follows a transition; the rest are action values


@dataclass
class Transitions:
    """N transitions of the data over n steps.

    features (N, I) of the state, action (N, A) taken there, reward (N,) the discounted sum over the n steps, discount
    (N,) γ^n, following (N, I) features of the state after them, normal (N, A) noise of the smoothed target action,
    imitated (N,) 1 where the action was a policy's, 0 where it was only tried out (a branch).
    """

    features: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    following: Tensor
    normal: Tensor
    imitated: Tensor


def lambda_return(reward: Tensor, value: Tensor, discount: float, trace: float) -> Tensor:
    """λ-returns R_t = r_{t+1} + γ((1-λ) V_{t+1} + λ R_{t+1}), R_H = V_H (DreamerV3, Eq. 7), of states 0..H-1: (N, H).

    reward: (N, H), reward[:, t] earned on arriving at state t + 1. value: (N, H+1) of states 0..H.
    """
    out = []
    following = value[:, -1]
    for t in reversed(range(reward.shape[1])):
        following = reward[:, t] + discount * ((1 - trace) * value[:, t + 1] + trace * following)
        out.append(following)
    return torch.stack(out[::-1], 1)


def smoothed_target(
    reward: Tensor, discount: Tensor, action: Tensor, smooth: Tensor, values: Callable[[Tensor], Tensor]
) -> Tensor:
    """Clipped double-Q target with target policy smoothing (TD3, Eq. 10 and 14) → (B,).

    reward, discount: (B,) to the next state. action: (B, A) of the policy there. smooth: (B, A), its clipped noise.
    values: actions (B, A) there → (2, B), by the slow critics.
    """
    return reward + discount * values((action + smooth).clamp(-1, 1)).amin(0)


class Actor(nn.Module):
    """Gaussian with mean in (-1, 1) and bounded standard deviation; actions are clipped to [-1, 1]."""

    def __init__(self, inp: int, dim_action: int, config: ActorCriticConfig) -> None:
        super().__init__()
        self.min_std, self.max_std = config.min_std, config.max_std
        self.net = MLP(inp, 2 * dim_action, config.units, config.layers)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features (..., I) → mean and standard deviation (..., A)."""
        mean, raw = self.net(features).float().chunk(2, -1)
        return torch.tanh(mean), self.min_std + (self.max_std - self.min_std) * torch.sigmoid(raw)


@torch.no_grad()
def moved_range(running: Tensor, values: Tensor, config: ActorCriticConfig) -> Tensor:
    """The 5-95 percentile range of what is climbed: moves `running` () toward that of `values` and returns it.

    Floored: rewards in [-1, 1] would vanish under DreamerV3's floor of 1.
    """
    low, high = torch.quantile(gathered(values.flatten()), torch.linspace(0.05, 0.95, 2, device=values.device))
    running.lerp_(high - low, config.return_rate)
    return running.clamp(min=config.return_floor)


class Values(nn.Module):
    """Twin action values: features (N, I), action (N, A) → (2, N); and the state value. They start at zero."""

    def __init__(self, inp: int, dim_action: int, config: ActorCriticConfig) -> None:
        super().__init__()
        sizes = (config.units, config.layers)
        self.nets = nn.ModuleList(MLP(inp + dim_action, 1, *sizes, zero_out=True) for _ in range(2))
        self.state_net = MLP(inp, 1, *sizes, zero_out=True)

    def state(self, features: Tensor) -> Tensor:
        """What the policy earns from a state on, features (..., I) → (...), as imagination teaches it."""
        return self.state_net(features).squeeze(-1).float()

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        return torch.stack([self._value(net, features, action) for net in self.nets])

    def _value(self, net: nn.Module, features: Tensor, action: Tensor) -> Tensor:
        """net([features, action]): (N,). The first product is in two: who climbs needs no gradient of features."""
        first, *rest = net.children()
        assert isinstance(first, nn.Linear)
        by_features, by_action = first.weight.split([features.shape[-1], action.shape[-1]], 1)
        x = F.linear(features, by_features) + F.linear(action, by_action)
        for layer in rest:
            x = layer(x)
        return x.squeeze(-1).float()


class ActorCritic(nn.Module):
    """Actor and values, with slow copies and the running range of what the action values estimate."""

    value_range: Tensor

    def __init__(self, inp: int, dim_action: int, config: ActorCriticConfig) -> None:
        super().__init__()
        self.config = config
        self.actor = Actor(inp, dim_action, config)
        self.values = Values(inp, dim_action, config)
        self.slow_values = Values(inp, dim_action, config).requires_grad_(False)
        self.slow_values.load_state_dict(self.values.state_dict())
        self.slow_actor = Actor(inp, dim_action, config).requires_grad_(False)
        self.slow_actor.load_state_dict(self.actor.state_dict())
        self.register_buffer("value_range", torch.zeros(()))

    @torch.no_grad()
    def update_slow(self) -> None:
        """Move the slow copies toward what is learned."""
        values = (self.slow_values, self.values, self.config.slow_rate)
        for slow, fast, rate in (values, (self.slow_actor, self.actor, ACTING_RATE)):
            torch._foreach_lerp_(list[Tensor](slow.parameters()), list[Tensor](fast.parameters()), rate)

    def climb_loss(self, features: Tensor, mean: Tensor) -> tuple[Tensor, Terms]:
        """Minus the smaller action value of the policy's `mean` (N, A) at `features` (N, I), in units of its range."""
        value = self.slow_values(features, mean).amin(0)  # (N,)
        climbed = value.mean() / moved_range(self.value_range, value, self.config)
        return -self.config.climb * climbed, {"value": value.mean().detach(), "value_range": self.value_range}

    def imagination_loss(self, features: Tensor, action: Tensor | None, reward: Tensor) -> tuple[Tensor, Terms]:
        """Error of the state value along imagined rollouts, against its own λ-returns (DreamerV3, Eq. 7).

        Args:
            features: (N, H+1, I). reward: (N, H).
            action: (N, H, A), where no data teach the action values and these do.
        """
        with torch.no_grad():
            value = self.slow_values.state(features)  # (N, H+1)
            target = lambda_return(reward, value, self.config.discount, self.config.trace)  # (N, H)
        error = (self.values.state(features[:, :-1]) - target).square().mean()
        metrics = {"imagined_reward": reward.mean(), "imagined_return": target.mean(), "critic_imagined": error}
        if action is not None:
            found = self.values(features[:, :-1].flatten(0, 1), action.flatten(0, 1))  # (2, N·H)
            error = error + (found - target.flatten()).square().mean(1).sum()
        return error, {k: v.detach() for k, v in metrics.items()}

    def data_losses(self, batch: Transitions) -> tuple[Tensor, Tensor, Terms]:
        """Actor and critic losses on transitions of the data under the learned reward (TD3+BC, Eq. 3 and 5).

        The actor climbs the smaller action value, and stays near the actions that were a policy's; its standard
        deviation learns how far that is on average.
        """
        c = self.config
        with torch.no_grad():
            smooth = (batch.normal * c.target_noise).clamp(-c.target_noise_clip, c.target_noise_clip)
            action, values = self.actor(batch.following)[0], partial(self.slow_values, batch.following)
            target = smoothed_target(batch.reward, batch.discount, action, smooth, values)  # (N,)
            if c.imagination:
                target.lerp_(batch.reward + batch.discount * self.slow_values.state(batch.following), IMAGINED)
            share = gathered(batch.imitated).mean().clamp(min=1e-3)
            imitated = (batch.imitated / share).unsqueeze(-1)  # (N, 1), 1 on average
        critic = (self.values(batch.features, batch.action) - target).square().mean(1).sum()
        mean, std = self.actor(batch.features)
        distance = batch.action - mean  # (N, A)
        imitation = (distance.square() * imitated).mean()
        width = ((std - distance.detach().abs()).square() * imitated).mean()
        climb, climbed = self.climb_loss(batch.features, mean)
        metrics = {"data_reward": batch.reward.mean(), "imitation": imitation, "critic_data": critic}
        return imitation + width + climb, critic, {k: v.detach() for k, v in metrics.items()} | climbed
