"""Actor and critic learned in imagination, anchored to the dataset (Section 3.2; DreamerV3, AWAC).

The actor climbs the λ-return of imagined rollouts through the differentiable dynamics. Where the
data is thin the model can be exploited, so an anchor pulls the actor toward those dataset actions
whose real, text-rewarded outcome beat the critic's expectation; no true reward is involved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stages.core.config import Section
from stages.core.nets import MLP, TwoHotHead


class ActorCriticConfig(Section):
    """Constants of behaviour learning; defaults and comments in presets/paper.yaml."""

    units: int
    layers: int
    discount: float
    trace: float
    entropy: float
    imagination: float
    anchor: float
    anchor_temperature: float
    data_value: float
    expectile: float
    slow_rate: float
    return_floor: float
    return_rate: float
    min_std: float
    max_std: float


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


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density summed over the last axis."""
    return (-0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_entropy(std: Tensor) -> Tensor:
    """Entropy in nats summed over the last axis."""
    return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class ActorCritic(nn.Module):
    """Actor, two-hot critic, its slow copy, and the running range of returns."""

    return_range: Tensor

    def __init__(self, inp: int, dim_action: int, config: ActorCriticConfig) -> None:
        super().__init__()
        self.config = config
        self.actor = Actor(inp, dim_action, config)
        self.critic = TwoHotHead(inp, config.units, config.layers)
        self.slow = TwoHotHead(inp, config.units, config.layers).requires_grad_(False)
        self.slow.load_state_dict(self.critic.state_dict())
        self.register_buffer("return_range", torch.zeros(()))

    def value(self, features: Tensor, *, slow: bool = False) -> Tensor:
        head = self.slow if slow else self.critic
        return head.mean(head(features))

    @torch.no_grad()
    def update_slow(self) -> None:
        """Move the slow critic toward the critic."""
        for slow, fast in zip(self.slow.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(fast, self.config.slow_rate)

    @torch.no_grad()
    def _return_scale(self, returns: Tensor) -> Tensor:
        """Running 5-95 percentile range, floored: rewards in [-1, 1] would vanish under DreamerV3's floor of 1."""
        low, high = torch.quantile(returns.detach().flatten(), torch.tensor([0.05, 0.95], device=returns.device))
        self.return_range.lerp_(high - low, self.config.return_rate)
        return self.return_range.clamp(min=self.config.return_floor)

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
        objective = returns / self._return_scale(returns) + c.entropy * gaussian_entropy(std)
        logits = self.critic(features[:, :-1].detach())
        critic = (self.critic.loss(logits, returns.detach()) * weight).mean()
        metrics = {
            "imagined_reward": reward.mean(),
            "imagined_return": returns.mean(),
            "return_scale": self.return_range,
            "policy_std": std.mean(),
        }
        return -(objective * weight).mean(), critic, {k: v.detach() for k, v in metrics.items()}

    def data_losses(
        self, features: Tensor, action: Tensor, returns: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Anchor and critic losses on decisions of the data with the text-rewarded returns that followed.

        Args:
            features: (N, I) posterior states, constant. action: (N, A). returns: (N,).
        """
        c = self.config
        logits = self.critic(features)
        advantage = (returns - self.critic.mean(logits)).detach()  # (N,)
        spread = advantage.std().clamp(min=1e-4)
        weight = ((advantage - advantage.mean()) / spread / c.anchor_temperature).clamp(max=4.0).exp()
        weight = weight / weight.mean()
        # Above 1/2 the critic expects what the better actions of the data earn, not the average one (IQL, Eq. 5).
        asymmetry = torch.where(advantage > 0, c.expectile, 1 - c.expectile)
        mean, std = self.actor(features)
        log_prob = gaussian_log_prob(action, mean, std)
        metrics = {"data_return": returns.mean(), "anchor": -log_prob.mean(), "data_std": std.mean()}
        return (
            -(weight * log_prob).mean(),
            (2 * asymmetry * self.critic.loss(logits, returns)).mean(),
            {k: v.detach() for k, v in metrics.items()},
        )
