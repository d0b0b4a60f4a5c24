"""Which loss reaches which module: the forward and the backward path of the coupling, as one table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.core import objective
from stages.core.joint_model import JointModel
from stages.core.reward import text_reward
from stages.core.world_model import Noise
from tests.core.helpers import DIM_ACTION, make_batch, make_model, objective_config, unit

# Name of the paper → parameters of the module, by prefix.
MODULES = {
    "adapter": ("adapter.",),
    "f_task": ("task_encoder.",),
    "gates": ("fusion.allocator.",),
    "semantic experts": ("fusion.semantic.",),
    "dynamic experts": ("fusion.dynamic.",),
    "h_fuse": ("fusion.fuse_",),
    "q(s|x)": ("rssm.encoder.", "rssm.posterior_net."),
    "gru": ("rssm.gru.", "rssm.h_first"),
    "imagination": ("rssm.imagination.",),
    "p(s|h)": ("rssm.prior_net.",),
    "decoder": ("decoder.",),
    "f_dec": ("semantic_decoder.",),
    "f_sem": ("semantic_predictor.",),
    "f_psi": ("aligner.",),
    "f_map": ("text_map.",),
    "text dynamics": ("text_dynamics.",),
}
FUSION = {"f_task", "gates", "semantic experts", "dynamic experts", "h_fuse"}
INTO_Z = FUSION | {"adapter", "q(s|x)"}
TEXT = {"f_psi", "f_map", "text dynamics"}

# Everything not named must receive no gradient at all.
REACHES = {
    "kl": INTO_Z | {"gru", "p(s|h)"},  # Eq. 12, dynamics
    "image": INTO_Z | {"decoder"},  # Eq. 12, reconstruction
    "semantic_reconstruction": INTO_Z | {"f_dec"},  # Eq. 13
    "alignment": {"adapter", "f_task", "f_psi"},  # Eq. 13
    "semantic_prediction": INTO_Z | {"gru", "f_sem"},
    "text_imagination": FUSION | TEXT,  # Eq. 9: the world model is the fixed teacher
    "joint_behavior": INTO_Z | {"gru", "imagination", "p(s|h)"} | TEXT,  # Eq. 14: the backward path
    "rollout": INTO_Z | {"gru", "imagination", "p(s|h)", "f_sem"},  # the posteriors and e it is held to are fixed
}


def losses(model: JointModel) -> dict[str, Tensor]:
    """Every term with its gradient, on prompts and labels that count, without free nats to hide behind."""
    torch.manual_seed(1)
    noise, config, shown = Noise("cpu"), objective_config(free_nats=0.0), torch.ones(3)
    batch = make_batch(starts=((0, 0), (1, 3)))
    task = model.task(unit(3))
    e = model.adapter(batch["embedding"].float())
    seen = model.observe(batch["image"], batch["action"], batch["is_first"], e, task, noise)
    terms = objective.world_model_loss(model, seen, batch["image"], config)
    terms |= objective.mllm_loss(model, seen, task, shown, config)
    terms["text_imagination"] = objective.text_imagination_loss(model, seen, task, shown)
    terms |= objective.joint_behavior_loss(model, seen, task, shown, config, noise)
    return terms


def reached(model: JointModel, loss: Tensor) -> dict[str, list[str]]:
    """Module → its parameters with a gradient that is not zero."""
    names = [n for n, _ in model.named_parameters()]
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    alive = {n for n, g in zip(trained, gradients, strict=True) if g is not None and g.any()}
    owners = {name: [n for n in names if n.startswith(prefixes)] for name, prefixes in MODULES.items()}
    assert sorted(n for group in owners.values() for n in group) == sorted(names), "the table covers the whole model"
    return {name: [n for n in group if n in alive] for name, group in owners.items() if set(group) & alive}


@pytest.mark.parametrize("term", REACHES)
def test_gradient_map(term: str) -> None:
    model = make_model()
    found = reached(model, losses(model)[term])
    assert set(found) == REACHES[term]
    for name, parameters in found.items():  # not one stray weight: the whole module learns
        whole = [n for n, _ in model.named_parameters() if n.startswith(MODULES[name])]
        assert parameters == whole, name


@pytest.mark.parametrize("term", ["kl", "image", "semantic_reconstruction", "alignment", "joint_behavior"])
def test_backward_path_into_the_mllm_is_open_from_the_first_update(term: str) -> None:
    """With the adapter's LayerScale at its initial zero, that LayerScale itself still gets a gradient."""
    model = make_model()
    with torch.no_grad():
        model.adapter.scale.zero_()
    assert "adapter.scale" in reached(model, losses(model)[term])["adapter"]


def test_fed_with_what_it_imagines_the_filter_learns_from_rollouts() -> None:
    """`reads_imagined`: the rollouts of Eq. 14 go through imagined z, so that what predicts e takes part."""
    fed = (REACHES["joint_behavior"] | {"f_sem"}) - {"imagination"}
    model = make_model(reads_imagined=True)
    assert set(reached(model, losses(model)["joint_behavior"])) == fed
    held = make_model(imagined_semantics="hold", reads_imagined=True)
    assert set(reached(held, losses(held)["joint_behavior"])) == fed - {"f_sem"}


@pytest.mark.parametrize("term", ["kl", "image", "joint_behavior"])
def test_base_row_has_neither_experts_nor_gates(term: str) -> None:
    model = make_model(fusion="sum")
    found = set(reached(model, losses(model)[term]))
    assert not found & {"gates", "semantic experts", "dynamic experts"}
    assert "h_fuse" in found and "adapter" in found


def test_logged_nats_carry_no_gradient() -> None:
    assert not losses(make_model())["kl_nats"].requires_grad


@pytest.mark.parametrize("actions_seen", ["policy", "none"])
def test_actor_learns_through_a_frozen_model(actions_seen: str) -> None:
    """The text reward of an imagined rollout reaches every action through the dynamics, and no weight of the model."""
    model = make_model(text_actions=actions_seen).requires_grad_(False)
    task = model.task(unit(3, generator=torch.Generator().manual_seed(5)))
    actions = torch.zeros(3, 4, DIM_ACTION, requires_grad=True)
    batch = make_batch()
    with torch.no_grad():
        e = model.adapter(batch["embedding"].float())
        seen = model.observe(batch["image"], batch["action"], batch["is_first"], e, task, None)
    start = seen.state.map(lambda x: x[:, 0])
    torch.manual_seed(2)
    states, taken, _ = model.imagine(start, lambda _, t: actions[:, t], 4, task, Noise("cpu"))
    text_reward(model, task, states.z, taken, "z").sum().backward()
    assert actions.grad is not None and actions.grad.abs().sum(-1).all()
    assert all(p.grad is None for p in model.parameters())
