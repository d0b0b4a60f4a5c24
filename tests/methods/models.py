"""Tiny models of the baselines, and what every grounding's tests ask of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitagent_cli import presets
from stages import methods
from stages.core.world_model import Noise, State, TaskContext, WorldModel
from tests.core.helpers import (
    DIM_ACTION,
    DIM_E,
    make_batch,
    make_labels,
    model_config,
    objective_config,
    scramble,
    unit,
)

PLAIN = "reward"


def make(method: str, **changes: Any) -> WorldModel:
    """A tiny model of a method, with no parameter at its initial value."""
    torch.manual_seed(0)
    constants = methods.constants_of(method, presets.resolve("walker", "smoke", (), method).groundings)
    model = methods.build(method, model_config(), DIM_E, DIM_ACTION, constants | changes)
    scramble(model)
    return model


def loss(model: WorldModel, length: int = 16, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    return model.pretraining_loss(make_batch(length=length), make_labels(), objective_config(), Noise("cpu"))


def rollout(model: WorldModel, count: int = 3, horizon: int = 10) -> tuple[TaskContext, State, Tensor]:
    """Prompts, an imagined sequence of states with gradient to its actions (N, H, A), and those."""
    torch.manual_seed(1)
    task = model.task(unit(count, generator=torch.Generator().manual_seed(3)))
    image = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
    action = (torch.rand(count, horizon, DIM_ACTION) * 2 - 1).requires_grad_()
    start = model.observe_step(image, None, torch.zeros(count, DIM_ACTION), unit(count), task)
    states, _, _ = model.imagine(start, lambda _, t: action[:, t], horizon, task, Noise("cpu"))
    return task, states, action


def assert_duties(model: WorldModel, grounding: set[str]) -> None:
    """Both duties in one go: a finite loss whose gradient reaches every parameter, each from where it should; a reward
    of the right shape, differentiable through the dynamics to the actions.

    Args:
        grounding: names of the modules that only the grounding's own terms train.
    """
    total, terms = loss(model)
    assert all(torch.isfinite(value) for value in (total, *terms.values()))
    total.backward()
    for name, parameter in model.named_parameters():
        later = name.startswith("rssm.imagination.")  # its turn comes when the dynamics are trained alone
        assert later or (parameter.grad is not None and parameter.grad.any()), name
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with_world_alone = terms["kl"] + terms["image"]
    assert with_world_alone < total, "the grounding's terms are part of the loss"
    batch = make_batch(length=16)
    torch.manual_seed(0)
    model.pretraining_loss(batch, make_labels(), objective_config(world_model=0.0), Noise("cpu"))[0].backward()
    for name, parameter in model.named_parameters():
        own = name.split(".")[0] in grounding
        if own:
            torch.testing.assert_close(parameter.grad, whole[name], msg=name)
        else:
            assert parameter.grad is None or not parameter.grad.any(), f"the grounding moves the world model: {name}"
    task, states, action = rollout(model)
    reward = model.reward(task, states, action, PLAIN)
    assert reward.shape == (3, 10) and torch.isfinite(reward).all()
    reward.sum().backward()
    assert action.grad is not None and action.grad.any(), "no gradient through the dynamics"
