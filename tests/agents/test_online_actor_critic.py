"""Actor and critic of the online agents against their formulas written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.agents.online_actor_critic import OnlineActorCritic, gaussian_entropy
from stages.core.actor_critic import lambda_return
from stages.core.settings import ActorCriticConfig
from tests.core import literal
from tests.core.helpers import scramble
from tests.core.test_actor_critic import ACTION, CONFIG, INP, array, literal_lambda_return, moved_scale, random, touched


def make_online(entropy: float = 0.02, floor: float = 0.1) -> OnlineActorCritic:
    torch.manual_seed(0)
    learner = OnlineActorCritic(INP, ACTION, ActorCriticConfig(**{**CONFIG, "return_floor": floor}), entropy)
    scramble(learner)
    return learner


def test_gaussian_entropy() -> None:
    std = random(4, 2, seed=2).abs() + 0.1
    for i in range(4):
        entropy = sum(0.5 * math.log(2 * math.pi * math.e * s * s) for s in array(std)[i])
        assert gaussian_entropy(std)[i].item() == pytest.approx(entropy, rel=1e-5)


def test_slow_critic_starts_equal() -> None:
    learner = OnlineActorCritic(INP, ACTION, ActorCriticConfig(**CONFIG), 0.0)
    features = random(5, INP)
    assert torch.equal(learner.value(features), learner.value(features, slow=True))


def test_actions_are_clipped_and_the_gradient_passes() -> None:
    learner = make_online()
    actor = learner.actor
    features, normal = random(50, INP), 2 * random(50, ACTION, seed=1)
    mean, std = actor(features)
    action, spread = learner.act(features, normal)
    assert torch.equal(spread, std)
    torch.testing.assert_close(action, (mean + std * normal).clamp(-1, 1), atol=1e-6, rtol=0)
    assert (action.abs() > 1 - 1e-6).any() and action.abs().max() <= 1 + 1e-6
    straight = torch.autograd.grad((mean + std * normal).sum(), list(actor.parameters()))
    through = torch.autograd.grad(action.sum(), list(actor.parameters()))
    for a, b in zip(straight, through, strict=True):
        torch.testing.assert_close(a, b)


def two_hot_loss(logits: np.ndarray, target: float, bins: np.ndarray) -> float:
    x = float(np.clip(np.sign(target) * np.log(1 + abs(target)), bins[0], bins[-1]))
    below = min(int(np.searchsorted(bins, x, side="right")) - 1, len(bins) - 2)
    share = (x - bins[below]) / (bins[below + 1] - bins[below])
    log_p = np.log(literal.softmax(logits))
    return -float((1 - share) * log_p[below] + share * log_p[below + 1])


def value(logits: np.ndarray, bins: np.ndarray) -> float:
    inner = float((literal.softmax(logits) * bins).sum())
    return float(np.sign(inner) * (np.exp(abs(inner)) - 1))


def heads(learner: OnlineActorCritic, features: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Literal slow values (N, H+1), critic logits (N, H+1, K), actor means and deviations."""
    w, x = literal.weights(learner), array(features)
    bins = array(learner.critic.bins)
    slow = np.array([[value(literal.mlp(literal.under(w, "slow.net"), f), bins) for f in row] for row in x])
    logits = np.array([[literal.mlp(literal.under(w, "critic.net"), f) for f in row] for row in x])
    raw = np.array([[literal.mlp(literal.under(w, "actor.net"), f) for f in row] for row in x])
    return slow, logits, np.tanh(raw[..., :ACTION]), 0.1 + 0.9 * literal.sigmoid(raw[..., ACTION:])


def deviations(learner: OnlineActorCritic, features: Tensor) -> Tensor:
    """Of the policy at states 0..H-1, as a rollout hands them on."""
    return learner.actor(features[:, :-1].detach())[1]


def test_losses_of_an_imagined_rollout() -> None:
    learner = make_online()
    features, reward = random(5, 4, INP), random(5, 3, seed=1)
    learner.return_range.fill_(2.0)
    slow, logits, _, std = heads(learner, features)
    returns = np.array([literal_lambda_return(r, v, 0.9, 0.7) for r, v in zip(array(reward), slow, strict=True)])
    scale = moved_scale(2.0, list(returns.ravel()))
    bins = array(learner.critic.bins)
    actor, critic = 0.0, 0.0
    for n in range(5):
        for t in range(3):
            entropy = sum(0.5 * math.log(2 * math.pi * math.e * s * s) for s in std[n, t])
            actor -= 0.9**t * (returns[n, t] / scale + 0.02 * entropy) / 15
            critic += 0.9**t * two_hot_loss(logits[n, t], returns[n, t], bins) / 15
    found_actor, found_critic, metrics = learner.losses(features, reward, deviations(learner, features))
    assert found_actor.item() == pytest.approx(actor, rel=1e-4)
    assert found_critic.item() == pytest.approx(critic, rel=1e-4)
    assert metrics["return_scale"].item() == pytest.approx(scale, rel=1e-4)


def test_return_range_is_floored() -> None:
    """Returns that hardly differ must not be blown up without bound."""
    learner = make_online(entropy=0.0, floor=50.0)
    features, reward = random(5, 4, INP), random(5, 3, seed=1)
    actor, _, metrics = learner.losses(features, reward, deviations(learner, features))
    assert 0 < metrics["return_scale"] < 50
    slow, _, _, _ = heads(learner, features)
    returns = np.array([literal_lambda_return(r, v, 0.9, 0.7) for r, v in zip(array(reward), slow, strict=True)])
    assert actor.item() == pytest.approx(-(returns * 0.9 ** np.arange(3)).mean() / 50, rel=1e-4)


def test_actor_loss_climbs_the_return_through_the_features_and_the_critic_loss_does_not() -> None:
    learner = make_online(entropy=0.0)
    features = random(5, 4, INP).requires_grad_()
    reward = features[:, 1:].sum(-1).tanh()
    actor, critic, _ = learner.losses(features, reward, deviations(learner, features))
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


def test_each_loss_of_an_imagined_rollout_moves_its_own_network() -> None:
    learner = make_online()
    features = random(5, 4, INP).requires_grad_()
    reward = (features[:, 1:].sum(-1)).tanh()
    actor, critic, _ = learner.losses(features, reward, deviations(learner, features))
    assert touched(learner, actor) == {"actor"}  # the entropy; returns come through the features
    assert touched(learner, critic) == {"critic"}


def test_the_slow_critic_follows() -> None:
    learner = make_online()
    before = {n: p.clone() for n, p in learner.named_parameters()}
    learner.update_slow()
    for name, p in learner.named_parameters():
        if "slow" in name:
            assert not p.requires_grad
            torch.testing.assert_close(p, 0.75 * before[name] + 0.25 * before[name.replace("slow.", "critic.")])
        else:
            assert torch.equal(p, before[name])
