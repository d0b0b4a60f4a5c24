"""Actor and critic against their formulas written out in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.core import actor_critic
from stages.core.actor_critic import ActorCritic, Transitions, lambda_return
from stages.core.settings import ActorCriticConfig
from tests.core import literal
from tests.core.helpers import scramble

CONFIG: dict[str, Any] = {
    "units": 14,
    "layers": 1,
    "discount": 0.9,
    "trace": 0.7,
    "entropy": 0.02,
    "imagination": 1.0,
    "anchor": 1.0,
    "climb": 2.0,
    "n_step": 3,
    "target_noise": 0.2,
    "target_noise_clip": 0.3,
    "slow_rate": 0.25,
    "return_floor": 0.1,
    "return_rate": 0.3,
    "min_std": 0.1,
    "max_std": 1.0,
}
INP, ACTION = 6, 2


def make(**changes: Any) -> ActorCritic:
    torch.manual_seed(0)
    learner = ActorCritic(INP, ACTION, ActorCriticConfig(**{**CONFIG, **changes}))
    scramble(learner)
    return learner


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


# ---------------------------------------------------------------------------- λ-return


def literal_lambda_return(reward: np.ndarray, value: np.ndarray, discount: float, trace: float) -> np.ndarray:
    """The definition before it was made recursive: the λ-weighted mean of all n-step returns."""
    horizon = len(reward)
    out = np.zeros(horizon)
    for t in range(horizon):
        longest = horizon - t

        def n_step(n: int, t: int = t) -> float:
            return sum(discount**k * reward[t + k] for k in range(n)) + discount**n * value[t + n]

        out[t] = sum((1 - trace) * trace ** (n - 1) * n_step(n) for n in range(1, longest))
        out[t] += trace ** (longest - 1) * n_step(longest)
    return out


@settings(deadline=None)
@given(st.integers(1, 9), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_lambda_return(horizon: int, discount: float, trace: float, seed: int) -> None:
    reward, value = random(3, horizon, seed=seed).double(), random(3, horizon + 1, seed=seed + 1).double()
    found = lambda_return(reward, value, discount, trace)
    wanted = [literal_lambda_return(r, v, discount, trace) for r, v in zip(array(reward), array(value), strict=True)]
    np.testing.assert_allclose(array(found), wanted, rtol=1e-9, atol=1e-9)


def test_lambda_return_at_its_ends() -> None:
    reward, value = random(2, 4), random(2, 5, seed=1)
    torch.testing.assert_close(lambda_return(reward, value, 0.9, 0.0), reward + 0.9 * value[:, 1:])
    whole = sum(0.9**k * reward[:, k] for k in range(4)) + 0.9**4 * value[:, 4]
    torch.testing.assert_close(lambda_return(reward, value, 0.9, 1.0)[:, 0], whole)


# ---------------------------------------------------------------------------- actor


def test_actor_mean_and_spread() -> None:
    actor = make().actor
    features = 3 * random(50, INP)
    mean, std = actor(features)
    raw = np.array([literal.mlp(literal.under(literal.weights(actor), "net"), x) for x in array(features)])
    np.testing.assert_allclose(array(mean), np.tanh(raw[:, :ACTION]), atol=1e-5)
    np.testing.assert_allclose(array(std), 0.1 + 0.9 * literal.sigmoid(raw[:, ACTION:]), atol=1e-5)


def test_actions_are_clipped_and_the_gradient_passes() -> None:
    actor = make().actor
    features, normal = random(50, INP), 2 * random(50, ACTION, seed=1)
    mean, std = actor(features)
    action, spread = actor.sample(features, normal)
    assert torch.equal(spread, std)
    torch.testing.assert_close(action, (mean + std * normal).clamp(-1, 1), atol=1e-6, rtol=0)
    assert (action.abs() > 1 - 1e-6).any() and action.abs().max() <= 1 + 1e-6
    straight = torch.autograd.grad((mean + std * normal).sum(), list(actor.parameters()))
    through = torch.autograd.grad(action.sum(), list(actor.parameters()))
    for a, b in zip(straight, through, strict=True):
        torch.testing.assert_close(a, b)


def test_gaussian_entropy() -> None:
    std = random(4, 2, seed=2).abs() + 0.1
    for i in range(4):
        entropy = sum(0.5 * math.log(2 * math.pi * math.e * s * s) for s in array(std)[i])
        assert actor_critic.gaussian_entropy(std)[i].item() == pytest.approx(entropy, rel=1e-5)


# ---------------------------------------------------------------------------- critic


def test_slow_critic_starts_equal() -> None:
    learner = ActorCritic(INP, ACTION, ActorCriticConfig(**CONFIG))
    features = random(5, INP)
    assert torch.equal(learner.value(features), learner.value(features, slow=True))


def two_hot_loss(logits: np.ndarray, target: float, bins: np.ndarray) -> float:
    x = float(np.clip(np.sign(target) * np.log(1 + abs(target)), bins[0], bins[-1]))
    below = min(int(np.searchsorted(bins, x, side="right")) - 1, len(bins) - 2)
    share = (x - bins[below]) / (bins[below + 1] - bins[below])
    log_p = np.log(literal.softmax(logits))
    return -float((1 - share) * log_p[below] + share * log_p[below + 1])


def value(logits: np.ndarray, bins: np.ndarray) -> float:
    inner = float((literal.softmax(logits) * bins).sum())
    return float(np.sign(inner) * (np.exp(abs(inner)) - 1))


def heads(learner: ActorCritic, features: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Literal slow values (N, H+1), critic logits (N, H+1, K), actor means and deviations."""
    w, x = literal.weights(learner), array(features)
    bins = array(learner.critic.bins)
    slow = np.array([[value(literal.mlp(literal.under(w, "slow.net"), f), bins) for f in row] for row in x])
    logits = np.array([[literal.mlp(literal.under(w, "critic.net"), f) for f in row] for row in x])
    raw = np.array([[literal.mlp(literal.under(w, "actor.net"), f) for f in row] for row in x])
    return slow, logits, np.tanh(raw[..., :ACTION]), 0.1 + 0.9 * literal.sigmoid(raw[..., ACTION:])


def deviations(learner: ActorCritic, features: Tensor) -> Tensor:
    """Of the policy at states 0..H-1, as a rollout hands them on."""
    return learner.actor(features[:, :-1].detach())[1]


def test_imagination_losses() -> None:
    learner = make()
    features, reward = random(5, 4, INP), random(5, 3, seed=1)
    learner.return_range.fill_(2.0)
    slow, logits, _, std = heads(learner, features)
    returns = np.array([literal_lambda_return(r, v, 0.9, 0.7) for r, v in zip(array(reward), slow, strict=True)])
    low, high = np.quantile(returns, [0.05, 0.95])
    scale = max(2.0 + 0.3 * ((high - low) - 2.0), 0.1)
    bins = array(learner.critic.bins)
    actor, critic = 0.0, 0.0
    for n in range(5):
        for t in range(3):
            entropy = sum(0.5 * math.log(2 * math.pi * math.e * s * s) for s in std[n, t])
            actor -= 0.9**t * (returns[n, t] / scale + 0.02 * entropy) / 15
            critic += 0.9**t * two_hot_loss(logits[n, t], returns[n, t], bins) / 15
    found_actor, found_critic, metrics = learner.imagination_losses(features, reward, deviations(learner, features))
    assert found_actor.item() == pytest.approx(actor, rel=1e-4)
    assert found_critic.item() == pytest.approx(critic, rel=1e-4)
    assert metrics["return_scale"].item() == pytest.approx(scale, rel=1e-4)


def test_return_range_is_floored() -> None:
    """Returns that hardly differ must not be blown up without bound."""
    learner = make(return_floor=50.0, entropy=0.0)
    features, reward = random(5, 4, INP), random(5, 3, seed=1)
    actor, _, metrics = learner.imagination_losses(features, reward, deviations(learner, features))
    assert 0 < metrics["return_scale"] < 50
    slow, _, _, _ = heads(learner, features)
    returns = np.array([literal_lambda_return(r, v, 0.9, 0.7) for r, v in zip(array(reward), slow, strict=True)])
    assert actor.item() == pytest.approx(-(returns * 0.9 ** np.arange(3)).mean() / 50, rel=1e-4)


def transitions(count: int = 9) -> Transitions:
    """Transitions of the data with noise that the target's bound cuts, and some that end nearer than others."""
    discount = torch.where(torch.arange(count) % 3 == 0, 0.9, 0.9**3)
    action, normal = random(count, ACTION, seed=2).clamp(-1, 1), 3 * random(count, ACTION, seed=4)
    return Transitions(random(count, INP), action, random(count, seed=1), discount, random(count, INP, seed=3), normal)


def test_data_losses() -> None:
    """TD3+BC: clipped double values of a smoothed target action; climb the smaller value, stay near the data."""
    learner, batch = make(), transitions()
    learner.value_range.fill_(2.0)
    w = literal.weights(learner)
    _, _, mean, std = (x[0] for x in heads(learner, batch.features[None]))
    _, _, following, _ = (x[0] for x in heads(learner, batch.following[None]))

    def smaller_value(n: int, x: Tensor, action: np.ndarray) -> float:
        pair = np.concatenate([array(x)[n], action])
        return min(literal.mlp(literal.under(w, f"slow_action_values.nets.{i}"), pair)[0] for i in range(2))

    critic, values, imitation, width = 0.0, [], 0.0, 0.0
    for n in range(9):
        noise = np.clip(0.2 * array(batch.normal)[n], -0.3, 0.3)
        target = smaller_value(n, batch.following, np.clip(following[n] + noise, -1, 1))
        target = array(batch.reward)[n] + array(batch.discount)[n] * target
        pair = np.concatenate([array(batch.features)[n], array(batch.action)[n]])
        for i in range(2):
            critic += (literal.mlp(literal.under(w, f"action_values.nets.{i}"), pair)[0] - target) ** 2 / 9
        values.append(smaller_value(n, batch.features, mean[n]))
        distance = array(batch.action)[n] - mean[n]
        imitation += (distance**2).mean() / 9
        width += ((std[n] - abs(distance)) ** 2).mean() / 9
    low, high = np.quantile(values, [0.05, 0.95])
    scale = max(2.0 + 0.3 * ((high - low) - 2.0), 0.1)
    found_actor, found_critic, _ = learner.data_losses(batch)
    assert found_actor.item() == pytest.approx(imitation + width - 2.0 * np.mean(values) / scale, rel=1e-4)
    assert found_critic.item() == pytest.approx(critic, rel=1e-4)


# ---------------------------------------------------------------------------- who learns from what


def touched(learner: ActorCritic, loss: Tensor) -> set[str]:
    learner.zero_grad()
    loss.backward(retain_graph=True)
    return {n.split(".")[0] for n, p in learner.named_parameters() if p.grad is not None and p.grad.any()}


def test_each_loss_moves_its_own_network() -> None:
    learner = make()
    features = random(5, 4, INP).requires_grad_()
    reward = (features[:, 1:].sum(-1)).tanh()
    actor, critic, _ = learner.imagination_losses(features, reward, deviations(learner, features))
    assert touched(learner, actor) == {"actor"}  # the entropy; returns come through the features
    assert touched(learner, critic) == {"critic"}
    actor, critic, _ = learner.data_losses(transitions())
    assert touched(learner, actor) == {"actor"}
    assert touched(learner, critic) == {"action_values"}


def test_slow_critics_follow() -> None:
    learner = make()
    before = {n: p.clone() for n, p in learner.named_parameters()}
    learner.update_slow()
    for name, p in learner.named_parameters():
        if "slow" in name:
            assert not p.requires_grad
            fast = before[name.replace("slow_action_values", "action_values").replace("slow.", "critic.")]
            torch.testing.assert_close(p, 0.75 * before[name] + 0.25 * fast)
        else:
            assert torch.equal(p, before[name])


def test_the_actor_finds_the_best_action_of_the_data() -> None:
    """One state, one step: reward falls with the distance to 0.5, the data's actions are spread evenly around 0."""
    learner = make(climb=8.0, n_step=1)
    features = torch.zeros(256, INP)
    optimizer = torch.optim.Adam([*learner.actor.parameters(), *learner.critics], 3e-3)
    for step in range(600):
        action = 2 * torch.rand(256, ACTION, generator=torch.Generator().manual_seed(step)) - 1
        reward = -(action - 0.5).square().sum(-1)
        batch = Transitions(features, action, reward, torch.zeros(256), features, torch.zeros(256, ACTION))
        actor, critic, _ = learner.data_losses(batch)
        optimizer.zero_grad()
        (actor + critic).backward()
        optimizer.step()
        learner.update_slow()
    mean = learner.actor(features[:1])[0][0]
    assert (mean > 0.15).all() and (mean < 0.6).all()  # imitation alone would give 0


def test_actor_loss_climbs_the_return_through_the_features_and_the_critic_loss_does_not() -> None:
    learner = make(entropy=0.0)
    features = random(5, 4, INP).requires_grad_()
    reward = features[:, 1:].sum(-1).tanh()
    actor, critic, _ = learner.imagination_losses(features, reward, deviations(learner, features))
    assert torch.autograd.grad(critic, features, allow_unused=True, retain_graph=True)[0] is None
    gradient = torch.autograd.grad(actor, features)[0]
    assert gradient[:, 1:].any(-1).all() and not gradient[:, 0].any()
    with torch.no_grad():
        better = features - 0.01 * gradient / gradient.norm()
        returns = [
            lambda_return(x[:, 1:].sum(-1).tanh(), learner.value(x, slow=True), 0.9, 0.7) for x in (features, better)
        ]
        weight = 0.9 ** torch.arange(3)
    assert (returns[1] * weight).mean() > (returns[0] * weight).mean()
