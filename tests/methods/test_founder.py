"""FOUNDER's mapping, temporal distance and reward, against their equations."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from stages.core.nets import categorical_kl
from stages.core.world_model import Noise
from stages.methods.founder import Founder, pairs
from tests.core.helpers import make_batch, unit
from tests.methods import models


def make(**changes: object) -> Founder:
    model = models.make("founder", **changes)
    assert isinstance(model, Founder)
    return model


def test_both_duties() -> None:
    models.assert_duties(make(), {"mapping", "distance_net", "aligner"})


def test_the_mapping_is_held_to_the_posterior_of_the_windows_last_frame() -> None:
    model, batch = make(), make_batch()
    e = F.normalize(batch["embedding"].float(), dim=-1)
    seen = model.observe(batch["image"], batch["action"], batch["is_first"], e, model.task(e[:, 0]), Noise("cpu"))
    terms = model.grounding_terms(seen, models.objective_config(), Noise("cpu"))
    probs = 0.99 * torch.softmax(model.mapping(e).unflatten(-1, (3, 5)), -1) + 0.01 / 5
    torch.testing.assert_close(terms["mapping"], categorical_kl(seen.posterior, probs.log()).mean())


def test_the_goal_is_the_mode_of_the_mapped_text_and_conditions_the_policy() -> None:
    model, text = make(), unit(4)
    task = model.task(text)
    wanted = model.mapping(model.aligner(text)).unflatten(-1, (3, 5)).argmax(-1)
    assert torch.equal(task.tau.unflatten(-1, (3, 5)).argmax(-1), wanted)
    assert model.dim_policy == 16 + 15 + 15
    dreamt, _ = model.text_rollout(torch.zeros(4, 3, 2), task, None)
    assert torch.equal(dreamt, task.tau.unsqueeze(1).expand(-1, 4, -1))


def test_pairs_know_their_distance() -> None:
    """States spell (rollout, step), so where a pair comes from can be read from it."""
    torch.manual_seed(0)
    rollout, step = torch.arange(50.0), torch.arange(6.0)
    states = torch.stack(torch.meshgrid(rollout, step, indexing="ij"), -1)  # (50, 6, 2)
    first, second, distance = pairs(states, 0.3, Noise("cpu"))
    same = first[..., 0] == second[..., 0]
    assert torch.equal(first, states)
    gap = second[..., 1] - first[..., 1]
    torch.testing.assert_close(distance[same], gap[same] / 5)
    assert (distance[~same] == 1).all() and 0.2 < (~same).float().mean() < 0.4
    assert gap.min() == 0 and set(gap[:, 0].tolist()) == {0, 1, 2, 3, 4, 5}
    _, _, near = pairs(states, 0.0, Noise("cpu"))
    assert near.max() == 1 and (near[:, -1] == 0).all()


def test_rollouts_follow_the_datas_actions_from_every_stretch() -> None:
    """A stretch's first state is the posterior's, and changing one action changes what follows it alone."""
    model, batch = make(), make_batch(length=8)
    e = F.normalize(batch["embedding"].float(), dim=-1)
    seen = model.observe(batch["image"], batch["action"], batch["is_first"], e, model.task(e[:, 0]), None)

    def roll(action: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(4)
        return model.rollouts(replace(seen, action=action), 3, Noise("cpu")).unflatten(0, (3, 2))  # (B, n, H+1, C·K)

    found = roll(batch["action"])
    assert found.shape == (3, 2, 4, 15)
    torch.testing.assert_close(found[:, :, 0], seen.s[:, [0, 4]])
    other = batch["action"].clone()
    other[1, 6] += 50.0
    changed = (roll(other) != found).any(-1)
    assert changed[1, 1, 2:].any() and changed.sum() == changed[1, 1, 2:].sum()


def test_the_distance_is_learned() -> None:
    """Rollouts that walk through four states in order: the predictor learns how far apart they are."""
    model = make(far=0.0)
    optimizer = torch.optim.Adam(model.distance_net.parameters(), 3e-2)
    walk = torch.eye(15)[:4].expand(16, -1, -1)  # (N, H+1, C·K)
    torch.manual_seed(0)
    for _ in range(80):
        first, second, steps = pairs(walk, 0.0, Noise("cpu"))
        value = F.mse_loss(model.distance(first, second), steps)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    at = torch.arange(4)
    found = model.distance(torch.eye(15)[at], torch.eye(15)[3].expand(4, -1))
    torch.testing.assert_close(found, (3 - at) / 3, atol=0.12, rtol=0)


def test_reward_is_minus_the_distance_to_the_goal() -> None:
    model = make()
    task, states, action = models.rollout(model)
    found = model.reward(task, states, action, models.PLAIN)
    for n in range(3):
        for t in range(10):
            logit = model.distance_net(torch.cat([states.z[n, t + 1], task.tau[n]]))
            torch.testing.assert_close(found[n, t], -torch.sigmoid(logit)[0])
