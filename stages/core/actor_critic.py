"""Actor and critics learned in imagination and on the dataset's own transitions (Section 3.2; DreamerV3, TD3+BC).

The actor climbs the λ-return of imagined rollouts through the differentiable dynamics. Where the data is thin the
model can be exploited, so the actor also climbs action values learned on the dataset's transitions, under the
same text reward, while it stays near the dataset's actions; no true reward is involved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.nets import MLP, TwoHotHead
from stages.core.settings import ActorCriticConfig
from stages.runtime.distributed import gathered


@dataclass
class Transitions:
    """N transitions of the data over n steps.

    features (N, I) of the state, action (N, A) taken there, reward (N,) the discounted sum over the n steps, discount
    (N,) γ^n, following (N, I) features of the state after them, normal (N, A) noise of the smoothed target action.
    """

    features: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    following: Tensor
    normal: Tensor


def lambda_return(reward: Tensor, value: Tensor, discount: float, trace: float) -> Tensor:
    """λ-returns R_t = r_{t+1} + γ((1-λ) V_{t+1} + λ R_{t+1}), R_H = V_H (DreamerV3, Eq. 7).

    Args:
        reward: (N, H), reward[:, t] earned on arriving at state t + 1.
        value: (N, H+1) of states 0..H.
    Returns:
        (N, H) for states 0..H-1.
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

    Args:
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

    def sample(self, features: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised action, whose clipping passes the gradient straight through, and its deviation: (..., A)."""
        mean, std = self(features)
        action = mean + std * normal
        return action + (action.clamp(-1, 1) - action).detach(), std


def gaussian_entropy(std: Tensor) -> Tensor:
    """Entropy in nats summed over the last axis."""
    return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class ActionValues(nn.Module):
    """Twin action values: features (N, I), action (N, A) → (2, N). They start at zero."""

    def __init__(self, inp: int, dim_action: int, config: ActorCriticConfig) -> None:
        super().__init__()
        sizes = (inp + dim_action, 1, config.units, config.layers)
        self.nets = nn.ModuleList(MLP(*sizes, zero_out=True) for _ in range(2))

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        return torch.stack([self._value(net, features, action) for net in self.nets])

    def _value(self, net: nn.Module, features: Tensor, action: Tensor) -> Tensor:
        """net([features, action]): (N,). The first product is taken in two, so that an actor which climbs the value
        asks for no gradient of the features."""
        first, *rest = net.children()
        assert isinstance(first, nn.Linear)
        by_features, by_action = first.weight.split([features.shape[-1], action.shape[-1]], 1)
        x = F.linear(features, by_features) + F.linear(action, by_action)
        for layer in rest:
            x = layer(x)
        return x.squeeze(-1).float()


class ActorCritic(nn.Module):
    """Actor; two-hot critic of imagination and twin action values of the data, each with a slow copy and the running
    range of what it estimates."""

    return_range: Tensor
    value_range: Tensor

    def __init__(self, inp: int, dim_action: int, config: ActorCriticConfig) -> None:
        super().__init__()
        self.config = config
        self.actor = Actor(inp, dim_action, config)
        self.critic = TwoHotHead(inp, config.units, config.layers)
        self.slow = TwoHotHead(inp, config.units, config.layers).requires_grad_(False)
        self.slow.load_state_dict(self.critic.state_dict())
        self.action_values = ActionValues(inp, dim_action, config)
        self.slow_action_values = ActionValues(inp, dim_action, config).requires_grad_(False)
        self.slow_action_values.load_state_dict(self.action_values.state_dict())
        for name in ("return_range", "value_range"):
            self.register_buffer(name, torch.zeros(()))

    @property
    def critics(self) -> list[nn.Parameter]:
        """What the optimizer of the critics trains."""
        return [*self.critic.parameters(), *self.action_values.parameters()]

    def value(self, features: Tensor, *, slow: bool = False) -> Tensor:
        head = self.slow if slow else self.critic
        return head.mean(head(features))

    @torch.no_grad()
    def update_slow(self) -> None:
        """Move the slow critics toward the critics."""
        slow: list[Tensor] = [*self.slow.parameters(), *self.slow_action_values.parameters()]
        torch._foreach_lerp_(slow, list[Tensor](self.critics), self.config.slow_rate)

    @torch.no_grad()
    def _scale(self, running: Tensor, values: Tensor) -> Tensor:
        """Running 5-95 percentile range, floored: rewards in [-1, 1] would vanish under DreamerV3's floor of 1."""
        low, high = torch.quantile(gathered(values.flatten()), torch.linspace(0.05, 0.95, 2, device=values.device))
        running.lerp_(high - low, self.config.return_rate)
        return running.clamp(min=self.config.return_floor)

    def imagination_losses(
        self, features: Tensor, reward: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Actor and critic losses on an imagined rollout.

        Args:
            features: (N, H+1, I), differentiable with respect to the actor through the dynamics.
            reward: (N, H), differentiable likewise.
            std: (N, H, A), the policy's deviation at states 0..H-1.
        """
        c = self.config
        value = self.value(features, slow=True)  # (N, H+1)
        returns = lambda_return(reward, value, c.discount, c.trace)  # (N, H)
        weight = c.discount ** torch.arange(reward.shape[1], device=reward.device)
        objective = returns / self._scale(self.return_range, returns) + c.entropy * gaussian_entropy(std)
        logits = self.critic(features[:, :-1].detach())
        critic = (self.critic.loss(logits, returns.detach()) * weight).mean()
        metrics = {
            "imagined_reward": reward.mean(),
            "imagined_return": returns.mean(),
            "return_scale": self.return_range,
            "policy_std": std.mean(),
        }
        return -(objective * weight).mean(), critic, {k: v.detach() for k, v in metrics.items()}

    def data_losses(self, batch: Transitions) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Actor and critic losses on transitions of the data under the learned reward (TD3+BC, Eq. 3 and 5).

        The actor climbs the smaller action value, in units of its range, and stays near the data's action; its
        standard deviation learns how far that is on average.
        """
        c = self.config
        with torch.no_grad():
            smooth = (batch.normal * c.target_noise).clamp(-c.target_noise_clip, c.target_noise_clip)
            action, values = self.actor(batch.following)[0], partial(self.slow_action_values, batch.following)
            target = smoothed_target(batch.reward, batch.discount, action, smooth, values)  # (N,)
        critic = (self.action_values(batch.features, batch.action) - target).square().mean(1).sum()
        mean, std = self.actor(batch.features)
        value = self.slow_action_values(batch.features, mean).amin(0)  # (N,)
        distance = batch.action - mean  # (N, A)
        imitation = distance.square().mean()
        width = (std - distance.detach().abs()).square().mean()
        climb = c.climb * value.mean() / self._scale(self.value_range, value)
        metrics = {
            "data_reward": batch.reward.mean(),
            "data_value": value.mean(),
            "value_range": self.value_range,
            "imitation": imitation,
            "critic_data": critic,
        }
        return imitation + width - climb, critic, {k: v.detach() for k, v in metrics.items()}
