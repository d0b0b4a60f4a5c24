"""TD3: the hand-written backward, the equations of the update, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core import offline_rl
from stages.core.offline_rl import TD3, Actor, Critics, FusedMLP, TD3Config

OBS, ACTION, BATCH = 5, 2, 16


def config(**changes: object) -> TD3Config:
    values = {
        "units": 32, "batch": BATCH, "lr": 3e-3, "discount": 0.9, "tau": 0.1, "actor_every": 2,
        "target_noise": 0.2, "target_noise_clip": 0.5, "precision": "float32",
    }  # fmt: skip
    return TD3Config.model_validate(values | changes)


def batch(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "obs": torch.randn(BATCH, OBS, generator=g),
        "next_obs": torch.randn(BATCH, OBS, generator=g),
        "action": torch.rand(BATCH, ACTION, generator=g) * 2 - 1,
        "reward": torch.rand(BATCH, generator=g),
        "discount": torch.full((BATCH,), 0.9),
    }


def plain_mlp(net: FusedMLP, x: Tensor) -> Tensor:
    """The same networks out of PyTorch's own differentiable operations."""
    w1, b1, w2, b2, w3, b3 = net.params
    h = F.relu(F.layer_norm(x @ w1 + b1, w1.shape[-1:]))  # (K, B, H)
    h = F.relu(F.layer_norm(h @ w2 + b2, w2.shape[-1:]))  # (K, B, H)
    return h @ w3 + b3


def test_forward_and_backward_equal_plain_autograd() -> None:
    torch.manual_seed(0)
    net = FusedMLP(2, OBS, 3, 16, torch.float64).double()
    x, weight = torch.randn(7, OBS).double().requires_grad_(), torch.randn(2, 7, 3).double()
    ours, theirs = net(x), plain_mlp(net, x)
    torch.testing.assert_close(ours, theirs)
    wanted = torch.autograd.grad((theirs * weight).sum(), [x, *net.parameters()])
    found = torch.autograd.grad((ours * weight).sum(), [x, *net.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_only_the_first_members_run() -> None:
    net = FusedMLP(2, OBS, 3, 16, torch.float32)
    x = torch.randn(4, OBS)
    torch.testing.assert_close(net(x, members=1), net(x)[:1])


def test_bfloat16_stays_near_float32_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    exact = FusedMLP(2, OBS, 1, 64, torch.float32)
    rough = FusedMLP(2, OBS, 1, 64, torch.bfloat16)
    rough.load_state_dict(exact.state_dict())
    x = torch.randn(64, OBS)
    a, b = exact(x), rough(x)
    assert b.dtype == torch.float32
    torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)
    a.square().sum().backward()
    b.square().sum().backward()
    for p, q in zip(exact.parameters(), rough.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert F.cosine_similarity(p.grad.flatten(), q.grad.flatten(), dim=0) > 0.99


def test_the_target_is_the_smaller_of_two_smoothed_values() -> None:
    agent, data = TD3(config(), OBS, ACTION, seed=0), batch()
    noise = torch.randn(BATCH, ACTION) * 10  # beyond the clip
    action = agent.actor_target(data["next_obs"]) + (noise * 0.2).clamp(-0.5, 0.5)
    q1, q2 = agent.critics_target.value(data["next_obs"], action.clamp(-1, 1))
    wanted = data["reward"] + 0.9 * torch.minimum(q1, q2)
    torch.testing.assert_close(agent.target(data, noise), wanted)
    data["discount"] = torch.zeros(BATCH)  # past a terminal state only the reward counts
    torch.testing.assert_close(agent.target(data, noise), data["reward"])


def test_an_update_moves_the_actor_on_its_turn_only_and_targets_slowly() -> None:
    agent, g = TD3(config(), OBS, ACTION, seed=0), torch.Generator().manual_seed(0)
    before = [p.detach().clone() for p in agent.actor.parameters()]
    slow = [p.detach().clone() for p in agent.critics_target.parameters()]
    terms = agent.update(batch(), step=1, generator=g)
    assert "actor_loss" not in terms
    for p, old in zip(agent.actor.parameters(), before, strict=True):
        assert torch.equal(p, old)
    for target, old, p in zip(agent.critics_target.parameters(), slow, agent.critics.parameters(), strict=True):
        torch.testing.assert_close(target, old + 0.1 * (p - old))
    critics = [p.detach().clone() for p in agent.critics.parameters()]
    agent.critic_optimizer.param_groups[0]["lr"] = 0.0
    assert "actor_loss" in agent.update(batch(), step=2, generator=g)
    assert any(not torch.equal(p, old) for p, old in zip(agent.actor.parameters(), before, strict=True))
    for p, old in zip(agent.critics.parameters(), critics, strict=True):
        assert torch.equal(p, old)  # the actor's objective does not train the critics
        assert p.requires_grad


def test_it_learns_a_one_step_task() -> None:
    """Reward -|a - f(obs)|² with no future: the actor must find f."""
    agent, g = TD3(config(discount=0.0), OBS, ACTION, seed=0), torch.Generator().manual_seed(1)
    data = batch()
    for step in range(600):
        obs = torch.randn(64, OBS, generator=g)
        action = torch.rand(64, ACTION, generator=g) * 2 - 1
        data = {"obs": obs, "next_obs": obs, "action": action, "discount": torch.zeros(64)}
        agent.update(data | {"reward": -(action - goal(obs)).square().sum(-1)}, step, g)
    obs = torch.randn(256, OBS, generator=g)
    error = (agent.actor(obs) - goal(obs)).square().sum(-1).mean()
    assert error.item() < 0.1 * goal(obs).square().sum(-1).mean().item()


def goal(obs: Tensor) -> Tensor:
    return 0.8 * torch.tanh(obs[:, :ACTION])


def test_a_restored_agent_continues_to_the_same_bits() -> None:
    whole, g = TD3(config(), OBS, ACTION, seed=0), torch.Generator()
    for step in range(6):
        whole.update(batch(step), step, g.manual_seed(step))
    first = TD3(config(), OBS, ACTION, seed=0)
    for step in range(3):
        first.update(batch(step), step, g.manual_seed(step))
    saved = {name: {k: v.clone() for k, v in group.items()} for name, group in first.tensors().items()}
    second = TD3(config(), OBS, ACTION, seed=99)
    second.load(saved)
    for step in range(3, 6):
        second.update(batch(step), step, g.manual_seed(step))
    for name, group in whole.tensors().items():
        for key, value in group.items():
            assert torch.equal(value, second.tensors()[name][key]), (name, key)


def test_the_seed_decides_the_weights_and_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    a = TD3(config(), OBS, ACTION, seed=1).actor.params[0]
    drawn = torch.rand(())
    torch.manual_seed(5)
    b = TD3(config(), OBS, ACTION, seed=1).actor.params[0]
    assert torch.equal(a, b) and torch.equal(drawn, torch.rand(()))
    assert not torch.equal(a, TD3(config(), OBS, ACTION, seed=2).actor.params[0])


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_rl, "cpu_has_bfloat16", lambda: False)
    assert offline_rl.resolve_precision("auto") is torch.float32
    monkeypatch.setattr(offline_rl, "cpu_has_bfloat16", lambda: True)
    assert offline_rl.resolve_precision("auto") is torch.bfloat16
    assert offline_rl.resolve_precision("float32") is torch.float32


def test_shapes_and_ranges() -> None:
    actor, critics = Actor(OBS, ACTION, 16, torch.float32), Critics(OBS, ACTION, 16, torch.float32)
    obs = torch.randn(9, OBS)
    action = actor(obs)
    assert action.shape == (9, ACTION) and action.abs().max() < 0.5  # starts near zero
    assert critics.value(obs, action).shape == (2, 9)
    assert math.isfinite(offline_rl.actor_loss(actor, critics, obs).item())
