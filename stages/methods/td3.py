"""TD3: the networks and updates shared by the online experts (state input) and the model-free rows (pixels).

TD3: Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods". TD3+BC:
Fujimoto and Gu 2021. IQL: Kostrikov et al. 2021, "Offline Reinforcement Learning with Implicit Q-Learning". The
networks carry a LayerNorm before each ReLU (Ball et al. 2023, RLPD), which keeps the critics sane at
learning rates and replay sizes where plain ones diverge. Small matrices on one core spend most of
their time between the products, so a whole network is one autograd node with its backward written out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.actor_critic import smoothed_target
from stages.runtime.checkpoints import Resumable
from stages.runtime.config import Section
from stages.runtime.update import fast_bf16, set_lr

Precision = Literal["auto", "float32", "bfloat16"]
LN_EPS = 1e-5


class TD3Config(Section):
    """Section `collect.expert.td3` of the preset; defaults and comments in presets/paper.yaml."""

    units: int
    batch: int
    lr: float
    discount: float
    tau: float
    actor_every: int
    target_noise: float
    target_noise_clip: float
    precision: Precision


class _FusedMLP(torch.autograd.Function):
    """K three-layer MLPs (Linear-LayerNorm-ReLU twice, Linear) as one autograd node.

    forward(x, dtype, w1, b1, w2, b2, w3, b3): x (B, I), w (K, in, out), b (K, 1, out) → (K, B, O) in the
    dtype of w3. The hidden products run in `dtype`; the last layer never does, since bfloat16 has too few
    digits for values of a hundred. Gradients nobody asked for (weights of a frozen critic, inputs of a
    trained one) are not computed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *params: Tensor) -> Tensor:
        w1, b1, w2, b2, w3, b3 = params
        w1, w2 = w1.to(dtype), w2.to(dtype)
        x = x.to(dtype).expand(len(w1), -1, -1)  # (K, B, I)
        pre1, mean1, rstd1, h1 = _hidden(x, w1, b1.to(dtype))  # (K, B, H)
        pre2, mean2, rstd2, h2 = _hidden(h1, w2, b2.to(dtype))  # (K, B, H)
        ctx.save_for_backward(x, w1, w2, w3, pre1, mean1, rstd1, h1, pre2, mean2, rstd2, h2)
        return torch.baddbmm(b3, h2.to(w3.dtype), w3)  # (K, B, O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, w3, pre1, mean1, rstd1, h1, pre2, mean2, rstd2, h2 = ctx.saved_tensors
        grad, keep = grads[0], w3.dtype
        weights = ctx.needs_input_grad[2]
        out: list[Tensor | None] = [None] * 8
        if weights:
            out[6], out[7] = torch.bmm(h2.to(keep).transpose(1, 2), grad), grad.sum(1, keepdim=True)
        d = torch.bmm(grad, w3.transpose(1, 2)).to(h2.dtype)
        d = _hidden_backward(d, pre2, mean2, rstd2, h2)
        if weights:
            out[4], out[5] = torch.bmm(h1.transpose(1, 2), d).to(keep), d.sum(1, keepdim=True).to(keep)
        d = _hidden_backward(torch.bmm(d, w2.transpose(1, 2)), pre1, mean1, rstd1, h1)
        if weights:
            out[2], out[3] = torch.bmm(x.transpose(1, 2), d).to(keep), d.sum(1, keepdim=True).to(keep)
        if ctx.needs_input_grad[0]:
            out[0] = torch.bmm(d, w1.transpose(1, 2)).to(keep).sum(0)
        return tuple(out)


def _hidden(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pre = torch.baddbmm(b, x, w)
    normed, mean, rstd = torch.ops.aten.native_layer_norm(pre, [pre.shape[-1]], None, None, LN_EPS)
    return pre, mean, rstd, normed.relu_()


def _hidden_backward(grad: Tensor, pre: Tensor, mean: Tensor, rstd: Tensor, h: Tensor) -> Tensor:
    grad = torch.ops.aten.threshold_backward(grad, h, 0.0)
    shape = [pre.shape[-1]]
    back = torch.ops.aten.native_layer_norm_backward(grad, pre, shape, mean, rstd, None, None, [True, False, False])
    return back[0]


class FusedMLP(nn.Module):
    """`members` independent MLPs with two hidden layers, run as one: (B, I) → (members, B, O).

    Args:
        dtype: of the hidden products; the parameters stay float32.
        last_gain: scale of the orthogonal initialisation of the last layer.
    """

    def __init__(
        self, members: int, inp: int, out: int, units: int, dtype: torch.dtype, last_gain: float = 1.0
    ) -> None:
        super().__init__()
        self.dtype = dtype
        params = []
        for a, b, gain in ((inp, units, 2**0.5), (units, units, 2**0.5), (units, out, last_gain)):
            maps = [nn.init.orthogonal_(torch.empty(b, a), gain).T for _ in range(members)]
            params += [nn.Parameter(torch.stack(maps).contiguous()), nn.Parameter(torch.zeros(members, 1, b))]
        self.params = nn.ParameterList(params)

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        """x (B, I) → (K, B, O), of the first `members` networks, or all."""
        params = list(self.params) if members is None else [p[:members] for p in self.params]
        return _FusedMLP.apply(x, self.dtype, *params)


class DeterministicActor(FusedMLP):
    """Deterministic policy: features (B, I) → action (B, A) in (-1, 1). Starts near zero action."""

    def __init__(self, inp: int, action_dim: int, units: int, dtype: torch.dtype) -> None:
        super().__init__(1, inp, action_dim, units, dtype, last_gain=0.01)

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        return torch.tanh(super().forward(x, members)[0])


class Critics(FusedMLP):
    """Twin action values: features (B, I), action (B, A) → (2, B), or (1, B) with `members` 1."""

    def __init__(self, inp: int, action_dim: int, units: int, dtype: torch.dtype) -> None:
        super().__init__(2, inp + action_dim, 1, units, dtype)

    def value(self, x: Tensor, action: Tensor, members: int | None = None) -> Tensor:
        return self(torch.cat([x, action], -1), members)[..., 0]


class TD3(Resumable):
    """Actor, twin critics, their targets and optimizers; `update` is one gradient step of TD3.

    `delayed_targets`: the slow networks move only when the actor does (TD3, Algorithm 1), as in the offline rows.
    The online experts move them at every update: what every dataset of theirs was made with stays so.
    """

    delayed_targets: ClassVar[bool] = False

    def __init__(
        self, config: TD3Config, inp: int, action_dim: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.inp, self.seed, self.device = config, inp, seed, device
        dtype = resolve_precision(config.precision, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = DeterministicActor(inp, action_dim, config.units, dtype).to(device)
            self.critics = Critics(inp, action_dim, config.units, dtype).to(device)
        self.actor_target = DeterministicActor(inp, action_dim, config.units, dtype).to(device).requires_grad_(False)
        self.critics_target = Critics(inp, action_dim, config.units, dtype).to(device).requires_grad_(False)
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.critics_target.load_state_dict(self.critics.state_dict())
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), config.lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), config.lr, fused=True)
        self.parts = {
            "actor": self.actor, "critics": self.critics,
            "actor_target": self.actor_target, "critics_target": self.critics_target,
            "actor_optimizer": self.actor_optimizer, "critic_optimizer": self.critic_optimizer,
        }  # fmt: skip

    def update(self, batch: Mapping[str, Tensor], step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """One update: critics always, actor every `actor_every` steps, then the slow targets.

        Args:
            batch: obs (B, I), action (B, A), reward (B,), discount (B,) (0 past a terminal), next_obs (B, I).
                With n-step returns `reward` is their discounted sum and `discount` is γ^n. An `obs` made by an
                encoder receives the critics' gradient, never the actor's.
            generator: noise of the smoothed target action.
        """
        config = self.config
        noise = torch.randn(batch["action"].shape, generator=generator).to(batch["action"].device)
        target = self.target(batch, noise)
        loss = critic_loss(self.critics, batch["obs"], batch["action"], target)
        _minimise(loss, self.critic_optimizer)
        terms = {"critic_loss": loss.detach(), "value": target.mean()}
        acting = step % config.actor_every == 0
        if acting:
            self.critics.requires_grad_(False)
            actor_objective = self.actor_objective({**batch, "obs": batch["obs"].detach()})
            _minimise(actor_objective, self.actor_optimizer)
            self.critics.requires_grad_(True)
            terms["actor_loss"] = actor_objective.detach()
        if acting or not self.delayed_targets:
            soft_update(self.critics_target, self.critics, config.tau)
            soft_update(self.actor_target, self.actor, config.tau)
        return terms

    def actor_objective(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the actor minimises; the critics are frozen meanwhile."""
        return actor_loss(self.actor, self.critics, batch["obs"])

    @torch.no_grad()
    def target(self, batch: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """`smoothed_target` of the slow networks → (B,)."""
        config, obs = self.config, batch["next_obs"]
        smooth = (noise * config.target_noise).clamp(-config.target_noise_clip, config.target_noise_clip)
        values = partial(self.critics_target.value, obs)
        return smoothed_target(batch["reward"], batch["discount"], self.actor_target(obs), smooth, values)


class OfflineTD3(TD3):
    """TD3 as in the offline rows."""

    delayed_targets = True


class TD3BC(OfflineTD3):
    """TD3+BC: the actor also imitates the data's actions; `alpha` weighs the value against that. `args`: see TD3."""

    def __init__(self, *args: Any, alpha: float) -> None:
        super().__init__(*args)
        self.alpha = alpha

    def actor_objective(self, batch: Mapping[str, Tensor]) -> Tensor:
        """-λ Q(s, π(s)) + (π(s) - a)², λ = α / mean |Q| (TD3+BC, Eq. 3 and 5)."""
        action = self.actor(batch["obs"])  # (B, A)
        value = self.critics.value(batch["obs"], action, members=1)  # (1, B)
        scale = self.alpha / value.detach().abs().mean().clamp(min=1e-6)
        return -scale * value.mean() + F.mse_loss(action, batch["action"])


class IQL(TD3):
    """IQL: values of the data's own actions alone, and a policy by advantage-weighted regression on them.

    The policy is the deterministic actor of TD3: a Gaussian of fixed width, whose log-likelihood is a squared error.
    Its step size falls to zero over the run by half a cosine, as in the authors' code.

    Args:
        args: see TD3. expectile: τ of the state value. temperature: β of the policy. updates: of the whole run.
    """

    MAX_WEIGHT = 100.0

    def __init__(self, *args: Any, expectile: float, temperature: float, updates: int) -> None:
        super().__init__(*args)
        self.expectile, self.temperature, self.updates = expectile, temperature, updates
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            self.value = FusedMLP(1, self.inp, 1, self.config.units, self.actor.dtype).to(self.device)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), self.config.lr, fused=True)
        self.parts |= {"value": self.value, "value_optimizer": self.value_optimizer}

    def update(self, batch: Mapping[str, Tensor], step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """State value (IQL, Eq. 5), critics and actor; all three read the state value of before this update.

        Args:
            step: counted from 1.
        """
        loss = expectile_loss(self.advantage({**batch, "obs": batch["obs"].detach()}), self.expectile)
        done = (step - 1) / self.updates
        set_lr(self.actor_optimizer, self.config.lr * 0.5 * (1 + math.cos(math.pi * done)))
        terms = super().update(batch, step, generator)
        _minimise(loss, self.value_optimizer)
        return {"value_loss": loss.detach()} | terms

    def advantage(self, batch: Mapping[str, Tensor]) -> Tensor:
        """min Q̂(s, a) - V(s), the smaller of the slow critics: (B,)."""
        with torch.no_grad():
            value = self.critics_target.value(batch["obs"], batch["action"]).amin(0)  # (B,)
        return value - self.value(batch["obs"])[0, :, 0]

    @torch.no_grad()
    def target(self, batch: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """r + γ V(s') (IQL, Eq. 6) → (B,)."""
        return batch["reward"] + batch["discount"] * self.value(batch["next_obs"])[0, :, 0]

    def actor_objective(self, batch: Mapping[str, Tensor]) -> Tensor:
        """exp(β A) (π(s) - a)² (IQL, Eq. 7)."""
        weight = (self.temperature * self.advantage(batch)).detach().exp().clamp(max=self.MAX_WEIGHT)  # (B,)
        return (weight * (self.actor(batch["obs"]) - batch["action"]).square().sum(-1)).mean()


def critic_loss(critics: Critics, obs: Tensor, action: Tensor, target: Tensor) -> Tensor:
    """Sum over the two critics of the mean squared error against target (B,)."""
    values = critics.value(obs, action)  # (2, B)
    return F.mse_loss(values, target.expand_as(values)) * len(values)


def actor_loss(actor: DeterministicActor, critics: Critics, obs: Tensor) -> Tensor:
    """Deterministic policy gradient through the first critic (TD3, Algorithm 1); freeze the critics first."""
    return -critics.value(obs, actor(obs), members=1).mean()


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Mean of |τ - 1(u < 0)| u²: above a half, small values of `difference`'s subtrahend cost more (IQL, Eq. 4)."""
    return (torch.where(difference < 0, 1 - expectile, expectile) * difference.square()).mean()


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target ← (1 - tau) target + tau online."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)


def _minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def resolve_precision(precision: Precision, device: torch.device | str) -> torch.dtype:
    """The dtype of the hidden products; `auto` takes bfloat16 where the hardware multiplies it."""
    if precision == "auto":
        return torch.bfloat16 if fast_bf16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
