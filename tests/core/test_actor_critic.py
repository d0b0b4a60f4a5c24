"""Actor and critic against their formulas written out in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.core.actor_critic import ActorCritic, Transitions, lambda_return
from stages.core.settings import ActorCriticConfig
from tests.core import literal
from tests.core.helpers import scramble

CONFIG: dict[str, Any] = {
    "units": 14,
    "layers": 1,
    "discount": 0.9,
    "trace": 0.7,
    "transitions": 1.0,
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


# ---------------------------------------------------------------------------- values


def policy(learner: ActorCritic, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The actor's mean and deviation (A,) at features (I,)."""
    mean, raw = np.split(literal.mlp(literal.under(literal.weights(learner), "actor.net"), features), 2)
    return np.tanh(mean), 0.1 + 0.9 * literal.sigmoid(raw)


def values(learner: ActorCritic, kind: str, features: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Both action values (2,) of `kind`, values or slow_values."""
    w, pair = literal.weights(learner), np.concatenate([features, action])
    return np.array([literal.mlp(literal.under(w, f"{kind}.nets.{i}"), pair)[0] for i in range(2)])


def state_value(learner: ActorCritic, kind: str, features: np.ndarray) -> float:
    return float(literal.mlp(literal.under(literal.weights(learner), f"{kind}.state_net"), features)[0])


def smaller(learner: ActorCritic, features: np.ndarray, action: np.ndarray) -> float:
    return float(values(learner, "slow_values", features, action).min())


def moved_scale(old: float, climbed: list[float], floor: float = 0.1) -> float:
    """The running range after values with these percentiles, at a rate of 0.3."""
    low, high = np.quantile(climbed, [0.05, 0.95])
    return max(old + 0.3 * ((high - low) - old), floor)


def transitions(count: int = 9) -> Transitions:
    """Transitions of the data with noise that the target's bound cuts, some that end nearer than others, and some whose
    action is nobody's."""
    discount = torch.where(torch.arange(count) % 3 == 0, 0.9, 0.9**3)
    action, normal = random(count, ACTION, seed=2).clamp(-1, 1), 3 * random(count, ACTION, seed=4)
    features, following, reward = random(count, INP), random(count, INP, seed=3), random(count, seed=1)
    return Transitions(features, action, reward, discount, following, normal, (torch.arange(count) % 4 > 0).float())


@pytest.mark.parametrize("imagination", [0.0, 0.7])
def test_data_losses(imagination: float) -> None:
    """TD3+BC: clipped double values of a smoothed target action, for half of which imagination's state value stands;
    climb the smaller value, stay near what was done."""
    learner, batch = make(imagination=imagination), transitions()
    learner.value_range.fill_(2.0)
    critic, climbed, imitation, width = 0.0, [], 0.0, 0.0
    for n in range(9):
        features, following, action = (array(x)[n] for x in (batch.features, batch.following, batch.action))
        noise = np.clip(0.2 * array(batch.normal)[n], -0.3, 0.3)
        target = smaller(learner, following, np.clip(policy(learner, following)[0] + noise, -1, 1))
        if imagination:
            target = (target + state_value(learner, "slow_values", following)) / 2
        target = array(batch.reward)[n] + array(batch.discount)[n] * target
        critic += ((values(learner, "values", features, action) - target) ** 2).sum() / 9
        mean, std = policy(learner, features)
        climbed.append(smaller(learner, features, mean))
        if n % 4:  # six of nine are somebody's actions
            imitation += ((action - mean) ** 2).mean() / 6
            width += ((std - abs(action - mean)) ** 2).mean() / 6
    scale = moved_scale(2.0, climbed)
    found_actor, found_critic, _ = learner.data_losses(batch)
    assert found_actor.item() == pytest.approx(imitation + width - 2.0 * np.mean(climbed) / scale, rel=1e-4)
    assert found_critic.item() == pytest.approx(critic, rel=1e-4)


@pytest.mark.parametrize("alone", [False, True])
def test_imagination_loss(alone: bool) -> None:
    """The state value learns the λ-returns of all imagined states; where no data teach the action values, they learn
    those of all imagined actions."""
    learner = make()
    features, action, reward = random(5, 4, INP), random(5, 3, ACTION, seed=2).clamp(-1, 1), random(5, 3, seed=1)
    error = 0.0
    for n in range(5):
        following = np.array([state_value(learner, "slow_values", f) for f in array(features)[n]])
        target = literal_lambda_return(array(reward)[n], following, 0.9, 0.7)
        found = np.array([state_value(learner, "values", f) for f in array(features)[n, :3]])
        error += ((found - target) ** 2).sum() / 15
        if alone:
            for step in range(3):
                pair = values(learner, "values", array(features)[n, step], array(action)[n, step])
                error += ((pair - target[step]) ** 2).sum() / 15
    loss, _ = learner.imagination_loss(features, action if alone else None, reward)
    assert loss.item() == pytest.approx(error, rel=1e-4)


def test_data_teach_actions_and_imagination_states() -> None:
    """What imagination does not see, that one action is better than another, it does not blur."""
    learner, features = make(), random(5, 4, INP)
    learner.imagination_loss(features, None, random(5, 3))[0].backward()
    moved = {n for n, p in learner.values.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved and all(name.startswith("state_net.") for name in moved)
    learner.zero_grad()
    learner.data_losses(transitions())[1].backward()
    assert not any(p.grad is not None and p.grad.any() for p in learner.values.state_net.parameters())


def test_the_range_of_values_is_floored() -> None:
    """Values that hardly differ must not be blown up without bound."""
    learner, features = make(return_floor=50.0), random(5, INP)
    climbed = [smaller(learner, f, policy(learner, f)[0]) for f in array(features)]
    loss, terms = learner.climb_loss(features, learner.actor(features)[0])
    assert 0 < terms["value_range"] < 50
    assert loss.item() == pytest.approx(-2.0 * np.mean(climbed) / 50, rel=1e-4)


# ---------------------------------------------------------------------------- who learns from what


def touched(learner: torch.nn.Module, loss: Tensor) -> set[str]:
    learner.zero_grad()
    loss.backward(retain_graph=True)
    return {n.split(".")[0] for n, p in learner.named_parameters() if p.grad is not None and p.grad.any()}


def test_each_loss_moves_its_own_network() -> None:
    learner, features = make(), random(5, 4, INP)
    assert touched(learner, learner.imagination_loss(features, random(5, 3, ACTION), random(5, 3))[0]) == {"values"}
    actor, critic, _ = learner.data_losses(transitions())
    assert touched(learner, actor) == {"actor"}
    assert touched(learner, critic) == {"values"}
    assert touched(learner, learner.climb_loss(features[:, 0], learner.actor(features[:, 0])[0])[0]) == {"actor"}


def test_nobody_s_actions_are_not_imitated() -> None:
    """The actor's loss does not change with them, but for the values that it climbs."""
    learner, batch = make(climb=0.0), transitions()
    before = learner.data_losses(batch)[0]
    batch.action = torch.where(batch.imitated.bool().unsqueeze(-1), batch.action, 0.9)
    torch.testing.assert_close(learner.data_losses(batch)[0], before)
    batch.imitated = torch.zeros(9)
    assert learner.data_losses(batch)[0] == 0, "no share to divide by"


def test_slow_copies_start_equal_and_follow() -> None:
    """The values at `slow_rate`, the actor that plays at a hundredth."""
    fresh = ActorCritic(INP, ACTION, ActorCriticConfig(**CONFIG))
    for fast, slow in ((fresh.values, fresh.slow_values), (fresh.actor, fresh.slow_actor)):
        assert all(torch.equal(a, b) for a, b in zip(fast.parameters(), slow.parameters(), strict=True))
    learner = make()
    before = {n: p.clone() for n, p in learner.named_parameters()}
    learner.update_slow()
    for name, p in learner.named_parameters():
        if "slow" in name:
            assert not p.requires_grad
            fast, rate = before[name.replace("slow_", "")], 0.01 if name.startswith("slow_actor") else 0.25
            torch.testing.assert_close(p, (1 - rate) * before[name] + rate * fast)
        else:
            assert torch.equal(p, before[name])


def test_the_actor_finds_the_best_action_of_the_data() -> None:
    """One state, one step: reward falls with the distance to 0.5, the data's actions are spread evenly around 0."""
    learner = make(climb=8.0, n_step=1)
    features, ones = torch.zeros(256, INP), torch.ones(256)
    optimizer = torch.optim.Adam([*learner.actor.parameters(), *learner.values.parameters()], 3e-3)
    for step in range(900):
        action = 2 * torch.rand(256, ACTION, generator=torch.Generator().manual_seed(step)) - 1
        reward = -(action - 0.5).square().sum(-1)
        batch = Transitions(features, action, reward, torch.zeros(256), features, torch.zeros(256, ACTION), ones)
        actor, critic, _ = learner.data_losses(batch)
        optimizer.zero_grad()
        (actor + critic).backward()
        optimizer.step()
        learner.update_slow()
    mean = learner.actor(features[:1])[0][0]
    assert (mean > 0.15).all() and (mean < 0.6).all()  # imitation alone would give 0


def test_the_actor_finds_the_best_action_that_imagination_knows() -> None:
    """The same reward, of which no transition tells: the values learn it from rollouts of the policy alone."""
    learner = make(climb=1.0, trace=1.0, discount=0.5)
    features = random(1, 1, INP, seed=5).expand(256, 2, INP)
    halves = ((learner.actor, 3e-4), (learner.values, 1e-2))
    optimizer = torch.optim.Adam([{"params": list(half.parameters()), "lr": lr} for half, lr in halves])
    for step in range(600):
        normal = torch.randn(256, ACTION, generator=torch.Generator().manual_seed(step))
        mean = learner.actor(features[:, 0])[0]
        action = (mean.detach() + 0.4 * normal).clamp(-1, 1)
        reward = -(action - 0.5).square().sum(-1, keepdim=True)
        loss = learner.imagination_loss(features, action.unsqueeze(1), reward)[0]
        loss = loss + learner.climb_loss(features[:, 0], mean)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_slow()
    mean = learner.actor(features[:1, 0])[0][0]
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5), atol=0.2, rtol=0)
