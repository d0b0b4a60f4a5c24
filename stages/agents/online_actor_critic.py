"""Actor and critic of the agents that collect data: DreamerV3's, in imagination, through the dynamics."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stages.agents.two_hot import TwoHotHead
from stages.core.actor_critic import Actor, lambda_return, moved_range
from stages.core.settings import ActorCriticConfig
from stages.runtime.update import Terms


def gaussian_entropy(std: Tensor) -> Tensor:
    """Entropy in nats summed over the last axis."""
    return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class OnlineActorCritic(nn.Module):
    """Actor and two-hot critic, with a slow copy and the running range of the returns.

    Args:
        entropy: weight of the policy's entropy in what the actor climbs.
    """

    return_range: Tensor

    def __init__(self, inp: int, dim_action: int, config: ActorCriticConfig, entropy: float) -> None:
        super().__init__()
        self.config, self.entropy = config, entropy
        self.actor = Actor(inp, dim_action, config)
        self.critic = TwoHotHead(inp, config.units, config.layers)
        self.slow = TwoHotHead(inp, config.units, config.layers).requires_grad_(False)
        self.slow.load_state_dict(self.critic.state_dict())
        self.register_buffer("return_range", torch.zeros(()))

    def act(self, features: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised action, whose clipping passes the gradient straight through, and its deviation: (..., A)."""
        mean, std = self.actor(features)
        action = mean + std * normal
        return action + (action.clamp(-1, 1) - action).detach(), std

    def value(self, features: Tensor, *, slow: bool = False) -> Tensor:
        head = self.slow if slow else self.critic
        return head.mean(head(features))

    @torch.no_grad()
    def update_slow(self) -> None:
        """Move the slow critic toward the critic."""
        slow, fast = (list[Tensor](m.parameters()) for m in (self.slow, self.critic))
        torch._foreach_lerp_(slow, fast, self.config.slow_rate)

    def losses(self, features: Tensor, reward: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Terms]:
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
        objective = returns / moved_range(self.return_range, returns, c) + self.entropy * gaussian_entropy(std)
        logits = self.critic(features[:, :-1].detach())
        critic = (self.critic.loss(logits, returns.detach()) * weight).mean()
        metrics = {
            "imagined_reward": reward.mean(),
            "imagined_return": returns.mean(),
            "return_scale": self.return_range,
            "policy_std": std.mean(),
        }
        return -(objective * weight).mean(), critic, {k: v.detach() for k, v in metrics.items()}
