"""TD3: the hand-written backward, the equations of the update, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitagent_cli import presets
from stages.methods import td3
from stages.methods.model_free import AGENTS
from stages.methods.td3 import (
    IQL,
    TD3,
    TD3BC,
    Critics,
    DeterministicActor,
    FusedMLP,
    OfflineTD3,
    TD3Config,
    expectile_loss,
)

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


@pytest.mark.parametrize("kind", ["td3", "td3-bc"])
def test_the_offline_rows_move_their_targets_with_the_actor_alone(kind: str) -> None:
    """As CORL does; at the actor's turn target ← 0.9 target + 0.1 online, for both networks."""
    agents = {
        "td3": lambda: OfflineTD3(config(), OBS, ACTION, 0),
        "td3-bc": lambda: TD3BC(config(), OBS, ACTION, 0, alpha=2.5),
    }
    agent, g = agents[kind](), torch.Generator().manual_seed(0)
    pairs = [(agent.critics_target, agent.critics), (agent.actor_target, agent.actor)]
    before = [[p.detach().clone() for p in slow.parameters()] for slow, _ in pairs]
    agent.update(batch(), step=1, generator=g)
    for (slow, _), old in zip(pairs, before, strict=True):
        assert all(torch.equal(p, o) for p, o in zip(slow.parameters(), old, strict=True))
    agent.update(batch(1), step=2, generator=g)
    for (slow, online), old in zip(pairs, before, strict=True):
        for p, o, new in zip(slow.parameters(), old, online.parameters(), strict=True):
            torch.testing.assert_close(p, 0.9 * o + 0.1 * new)


def test_the_models_of_the_table_have_delayed_targets_and_iql_acts_at_every_update() -> None:
    for name, make in AGENTS.items():
        settings = presets.resolve("walker", "laptop", (), name).offline_rl
        agent = make(settings, OBS, ACTION, 0, torch.device("cpu"))
        assert agent.delayed_targets == (name != "iql")
        assert agent.config.actor_every == (1 if name == "iql" else 2)


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
    monkeypatch.setattr(td3, "fast_bf16", lambda _: False)
    assert td3.resolve_precision("auto", "cpu") is torch.float32
    monkeypatch.setattr(td3, "fast_bf16", lambda _: True)
    assert td3.resolve_precision("auto", "cpu") is torch.bfloat16
    assert td3.resolve_precision("float32", "cpu") is torch.float32


def test_shapes_and_ranges() -> None:
    actor, critics = DeterministicActor(OBS, ACTION, 16, torch.float32), Critics(OBS, ACTION, 16, torch.float32)
    obs = torch.randn(9, OBS)
    action = actor(obs)
    assert action.shape == (9, ACTION) and action.abs().max() < 0.5  # starts near zero
    assert critics.value(obs, action).shape == (2, 9)
    assert math.isfinite(td3.actor_loss(actor, critics, obs).item())


# ---------------------------------------------------------------------------- the offline variants


def frozen(agent: TD3, data: dict[str, Tensor]) -> Tensor:
    """The gradient of the actor's objective with respect to the actor, the critics as they are."""
    value = agent.actor_objective(data)
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(agent.actor.parameters()))])


def test_td3_bc_weighs_the_value_against_imitation() -> None:
    """TD3+BC, Eq. 3 and 5; the weight is no path for gradients."""
    agent, data = TD3BC(config(), OBS, ACTION, 0, alpha=2.5), batch()
    action = agent.actor(data["obs"])
    q = agent.critics.value(data["obs"], action)[0]
    weight = 2.5 / sum(abs(float(x.detach())) for x in q) * BATCH
    wanted = (-weight * q).mean() + ((action - data["action"]) ** 2).mean()
    torch.testing.assert_close(agent.actor_objective(data), wanted)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(wanted, list(agent.actor.parameters()))])
    torch.testing.assert_close(frozen(agent, data), gradient)


def test_td3_bc_without_value_clones_the_data() -> None:
    agent, g = TD3BC(config(actor_every=1), OBS, ACTION, 0, alpha=0.0), torch.Generator().manual_seed(1)
    for step in range(300):
        obs = torch.randn(64, OBS, generator=g)
        rest = {"next_obs": obs, "discount": torch.zeros(64), "reward": torch.zeros(64)}
        agent.update({"obs": obs, "action": goal(obs), **rest}, step, g)
    obs = torch.randn(256, OBS, generator=g)
    assert F.mse_loss(agent.actor(obs), goal(obs)) < 0.1 * goal(obs).square().mean()


def test_the_expectile_of_a_sample_minimises_its_loss() -> None:
    """At τ = 0.5 the mean; above it, closer to the maximum (IQL, Eq. 4)."""
    sample = torch.tensor([0.0, 1.0, 2.0, 5.0])
    grid = torch.linspace(0, 5, 501)
    best = [grid[torch.stack([expectile_loss(sample - v, tau) for v in grid]).argmin()] for tau in (0.5, 0.7, 0.99)]
    torch.testing.assert_close(best[0], sample.mean())
    literal = [float(abs(0.7 - (u < 0)) * u * u) for u in (sample - 2.0).tolist()]
    torch.testing.assert_close(expectile_loss(sample - 2.0, 0.7), torch.tensor(literal).mean())
    assert best[0] < best[1] < best[2] and best[2] > 4.5


def iql(seed: int = 0, updates: int = 10_000, **changes: object) -> IQL:
    return IQL(config(**changes), OBS, ACTION, seed, expectile=0.7, temperature=3.0, updates=updates)


def test_iql_never_asks_for_the_value_of_an_action_outside_the_data() -> None:
    """Its target is r + γ V(s'); its policy regresses the data's actions by exp(β A) (IQL, Eq. 6 and 7)."""
    agent, data = iql(), batch()
    wanted = data["reward"] + 0.9 * agent.value(data["next_obs"])[0, :, 0]
    torch.testing.assert_close(agent.target(data, torch.full((BATCH, ACTION), 9.0)), wanted)
    q1, q2 = agent.critics_target.value(data["obs"], data["action"])
    advantage = torch.minimum(q1, q2) - agent.value(data["obs"])[0, :, 0]
    torch.testing.assert_close(agent.advantage(data), advantage)
    weight = (3.0 * advantage).exp().clamp(max=100.0).detach()
    errors = ((agent.actor(data["obs"]) - data["action"]) ** 2).sum(-1)
    torch.testing.assert_close(agent.actor_objective(data), (weight * errors).mean())


def test_an_update_of_iql_reads_the_networks_of_before_it() -> None:
    """CORL's order: the state value of before the update in all three losses, the slow critics move at its end."""
    agent, data = iql(actor_every=1), batch()
    q1, q2 = agent.critics_target.value(data["obs"], data["action"])
    value, following = agent.value(data["obs"])[0, :, 0], agent.value(data["next_obs"])[0, :, 0]
    advantage = (torch.minimum(q1, q2) - value).detach()
    target = (data["reward"] + 0.9 * following).detach()
    errors = (agent.critics.value(data["obs"], data["action"]) - target).square().mean(1)  # (2,)
    policy = (3 * advantage).exp().clamp(max=100) * ((agent.actor(data["obs"]) - data["action"]) ** 2).sum(-1)
    slow = [p.detach().clone() for p in agent.critics_target.parameters()]
    terms = agent.update(data, 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(terms["value_loss"], (abs(0.7 - (advantage < 0).float()) * advantage**2).mean())
    torch.testing.assert_close(terms["critic_loss"], errors.sum().detach())
    torch.testing.assert_close(terms["actor_loss"], policy.mean().detach())
    for p, old, new in zip(agent.critics_target.parameters(), slow, agent.critics.parameters(), strict=True):
        torch.testing.assert_close(p, old + 0.1 * (new - old))


def test_the_step_size_of_iqls_actor_falls_by_half_a_cosine() -> None:
    """As CosineAnnealingLR over the run's updates; the others' stay."""
    agent, g = iql(updates=8, lr=1.0), torch.Generator()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for step in range(1, 9):
        agent.update(batch(step), step, g.manual_seed(step))
        assert agent.actor_optimizer.param_groups[0]["lr"] == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert agent.critic_optimizer.param_groups[0]["lr"] == agent.value_optimizer.param_groups[0]["lr"] == 1.0


def test_iql_finds_the_better_of_two_actions_in_the_data() -> None:
    """One state, two actions, one of them rewarded: cloning would give their mean, 0."""
    agent, g = iql(actor_every=1, discount=0.0, lr=1e-2), torch.Generator().manual_seed(0)
    obs = torch.ones(32, OBS)
    action = torch.where(torch.arange(32)[:, None] % 2 == 0, 0.7, -0.7).expand(-1, ACTION)
    data = {"obs": obs, "next_obs": obs, "action": action, "reward": (action[:, 0] > 0).float()}
    for step in range(150):
        agent.update(data | {"discount": torch.zeros(32)}, step, g)
    assert agent.actor(obs)[0].min() > 0.5
    assert 0.6 < float(agent.value(obs)[0, 0, 0].detach()) < 0.95, "an expectile above the mean, below the best"


@pytest.mark.parametrize("kind", ["td3", "td3-bc", "iql"])
def test_an_encoder_learns_from_the_critics_alone(kind: str) -> None:
    """The gradient it receives in an update that moves the actor too is that of the critics' loss."""
    agent = {"td3": lambda: TD3(config(actor_every=1), OBS, ACTION, seed=0),
             "td3-bc": lambda: TD3BC(config(actor_every=1), OBS, ACTION, 0, alpha=2.5),
             "iql": lambda: iql(actor_every=1)}[kind]()  # fmt: skip
    data = batch()
    noise = torch.randn(BATCH, ACTION, generator=torch.Generator().manual_seed(3))
    obs = data["obs"].clone().requires_grad_()
    agent.critic_optimizer.param_groups[0]["lr"] = 0.0
    if isinstance(agent, IQL):
        agent.value_optimizer.param_groups[0]["lr"] = 0.0
    loss = td3.critic_loss(agent.critics, obs, data["action"], agent.target(data, noise))
    (wanted,) = torch.autograd.grad(loss, obs)
    agent.update(data | {"obs": obs}, 1, torch.Generator().manual_seed(3))
    torch.testing.assert_close(obs.grad, wanted)


def test_a_restored_iql_continues_to_the_same_bits() -> None:
    whole, g = iql(), torch.Generator()
    for step in range(4):
        whole.update(batch(step), step, g.manual_seed(step))
        if step == 1:
            saved = {name: {k: v.clone() for k, v in group.items()} for name, group in whole.tensors().items()}
    second = iql(seed=99)
    second.load(saved)
    for step in (2, 3):
        second.update(batch(step), step, g.manual_seed(step))
    for name, group in whole.tensors().items():
        for key, value in group.items():
            assert torch.equal(value, second.tensors()[name][key]), (name, key)
