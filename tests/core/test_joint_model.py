"""The joint model: acting equals training, imagination is Eq. 6-8, and a saved model comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.core.joint_model import JointModel
from stages.core.world_model import Noise, Observed, State, TaskContext
from stages.methods import open_model
from stages.runtime import artifacts
from stages.runtime.artifacts import load_weights
from stages.runtime.errors import BadInput
from tests.core import literal
from tests.core.helpers import DIM_ACTION, DIM_E, make_batch, make_model, model_config, unit

BOUNDARIES = ((0, 0), (1, 3), (2, 2), (2, 6))


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def close(found: Tensor, wanted: object, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(array(found), np.asarray(wanted), rtol=tolerance, atol=tolerance)


def prompts(count: int = 3) -> Tensor:
    return unit(count, generator=torch.Generator().manual_seed(5))


def filtered(model: JointModel, noise: Noise | None = None) -> tuple[dict[str, Tensor], TaskContext, Observed]:
    batch = make_batch(starts=BOUNDARIES)
    task = model.task(prompts())
    e = model.adapter(batch["embedding"].float())
    return batch, task, model.observe(batch["image"], batch["action"], batch["is_first"], e, task, noise)


# ---------------------------------------------------------------------------- task and MLLM side


def test_task_context() -> None:
    model = make_model()
    y = prompts()
    task = model.task(y)
    world = literal.World(model)
    for i, row in enumerate(array(y)):
        tau = world.tau(row)
        close(task.tau[i], tau, 1e-5)
        close(task.semantics[i], world.psi(tau), 1e-5)
        gates = literal.under(literal.under(world.w, "fusion"), "allocator")
        close(task.gates[i], [literal.gate(gates, tau, layer) for layer in range(2)], 1e-5)


def test_task_context_rows() -> None:
    task = make_model().task(prompts())
    names = ("tau", "gates", "semantics")
    for name in names:
        whole = getattr(task, name)
        assert torch.equal(getattr(task.rows(torch.tensor([2, 0])), name), whole[[2, 0]])
        assert torch.equal(getattr(task.repeat_interleave(2), name), whole[[0, 0, 1, 1, 2, 2]])
        one = task.rows(torch.tensor([1]))
        assert torch.equal(getattr(one.expand(4), name), whole[[1, 1, 1, 1]])


def test_adapter_starts_at_the_backbone_and_keeps_unit_norm() -> None:
    torch.manual_seed(0)
    e = unit(4, 3)
    torch.testing.assert_close(JointModel(model_config(), DIM_E, DIM_ACTION).adapter(e), e)
    model = make_model()
    adapted = model.adapter(e)
    world = literal.World(model)
    close(adapted[1, 2], world.adapt(array(e)[1, 2]), 1e-5)
    assert (adapted - e).abs().max() > 0.01
    close(adapted.norm(dim=-1), np.ones((4, 3)), 1e-5)


# ---------------------------------------------------------------------------- filtering


def test_one_frame_at_a_time_equals_all_at_once() -> None:
    """The path used when acting gives the state used when training, with episode boundaries inside."""
    model = make_model()
    batch, task, seen = filtered(model)
    e = model.adapter(batch["embedding"].float())
    for b in range(3):
        state: State | None = None
        one = task.rows(torch.tensor([b]))
        for t in range(8):
            if batch["is_first"][b, t]:
                state = None
            now = slice(t, t + 1)
            state = model.observe_step(batch["image"][b, now], state, batch["action"][b, now], e[b, now], one)
            for name in ("h", "z", "e"):
                wanted = getattr(seen.state, name)[b, t]
                torch.testing.assert_close(getattr(state, name)[0], wanted, rtol=1e-5, atol=1e-5)


def test_filtering_a_batch_of_environments_equals_each_alone() -> None:
    model = make_model()
    batch, task, _ = filtered(model)
    e = model.adapter(batch["embedding"].float())
    first = model.observe_step(batch["image"][:, 0], None, batch["action"][:, 0], e[:, 0], task)
    second = model.observe_step(batch["image"][:, 1], first, batch["action"][:, 1], e[:, 1], task)
    one = task.rows(torch.tensor([2]))
    alone = model.observe_step(batch["image"][2:, 0], None, batch["action"][2:, 0], e[2:, 0], one)
    alone = model.observe_step(batch["image"][2:, 1], alone, batch["action"][2:, 1], e[2:, 1], one)
    torch.testing.assert_close(second.features[2:], alone.features)


def test_observe_is_equation_1_and_4() -> None:
    model = make_model()
    torch.manual_seed(11)
    batch, _, seen = filtered(model, Noise("cpu"))
    torch.manual_seed(11)
    uniform = array(torch.rand(3, 8, 3))
    world = literal.World(model)
    for b in range(2):
        tau = world.tau(array(prompts())[b])
        h, z = world.first(), np.zeros(12)
        for t in range(8):
            posterior = world.posterior(batch["image"][b, t].numpy())
            close(seen.posterior[b, t].exp(), posterior)
            s = literal.one_hot(posterior, uniform[b, t])
            close(seen.s[b, t], s)
            if t == 0 or batch["is_first"][b, t]:
                h = world.step(world.first(), np.zeros(12), np.zeros(2))
            else:
                h = world.step(h, z, array(batch["action"])[b, t])  # z of the frame before
            z = world.fuse(world.adapt(array(batch["embedding"])[b, t]), s, tau)
            close(seen.state.h[b, t], h)
            close(seen.state.z[b, t], z)
            close(seen.prior[b, t].exp(), world.prior(h))


def test_what_came_before_the_window_is_not_guessed() -> None:
    """The first column of a window inside an episode restarts, whatever action led to it."""
    model = make_model()
    batch, task, seen = filtered(model)
    assert not batch["is_first"][1, 0]
    e = model.adapter(batch["embedding"].float())
    changed = batch["action"].clone()
    changed[:, 0] += 1.0
    again = model.observe(batch["image"], changed, batch["is_first"], e, task, None)
    assert torch.equal(again.state.h, seen.state.h)


# ---------------------------------------------------------------------------- imagination


@pytest.mark.parametrize("semantics", ["predict", "hold"])
@pytest.mark.parametrize("noisy", [True, False])
def test_imagination_is_equation_6(semantics: str, noisy: bool) -> None:
    model = make_model(imagined_semantics=semantics)
    _, task, seen = filtered(model)
    start = seen.state.map(lambda x: x[:, 4])
    actions = torch.rand(3, 5, DIM_ACTION, generator=torch.Generator().manual_seed(6)) * 2 - 1
    torch.manual_seed(12)
    states, taken, priors = model.imagine(start, lambda _, t: actions[:, t], 5, task, Noise("cpu") if noisy else None)
    torch.manual_seed(12)
    uniforms = np.stack([array(torch.rand(3, 3)) for _ in range(5)], 1) if noisy else None
    assert torch.equal(taken, actions)
    world = literal.World(model)
    for b in range(3):
        tau = world.tau(array(prompts())[b])
        h, z, e, prior = world.imagine(
            array(start.h)[b], array(start.z)[b], array(start.e)[b], tau, array(actions)[b],
            None if uniforms is None else uniforms[b],
        )  # fmt: skip
        close(states.h[b], h)
        close(states.z[b], z)
        close(states.e[b], e)
        close(priors[b].exp(), prior)


@pytest.mark.parametrize("reads_imagined", [False, True])
def test_following_known_actions_is_imagining_under_them(reads_imagined: bool) -> None:
    model = make_model(reads_imagined=reads_imagined)
    _, task, seen = filtered(model)
    start = seen.state.map(lambda x: x[:, 4])
    actions = torch.rand(3, 5, DIM_ACTION, generator=torch.Generator().manual_seed(6)) * 2 - 1
    torch.manual_seed(12)
    states, _, priors = model.imagine(start, lambda _, t: actions[:, t], 5, task, Noise("cpu"))
    torch.manual_seed(12)
    h, followed = model.follow(start, actions, task, Noise("cpu"))
    torch.testing.assert_close(h, states.h[:, 1:])
    torch.testing.assert_close(followed, priors)


def test_the_actor_is_asked_at_the_state_it_stands_in() -> None:
    model = make_model()
    _, task, seen = filtered(model)
    start = seen.state.map(lambda x: x[:, 0])
    asked = []

    def act(features: Tensor, step: int) -> Tensor:
        asked.append((step, features))
        return torch.zeros(3, DIM_ACTION)

    states, _, _ = model.imagine(start, act, 3, task, None)
    assert [step for step, _ in asked] == [0, 1, 2]
    assert torch.equal(torch.stack([f for _, f in asked], 1), states.features[:, :3])


# ---------------------------------------------------------------------------- text imagination


@pytest.mark.parametrize("actions_seen", ["policy", "none"])
@pytest.mark.parametrize("noisy", [True, False])
def test_text_imagination_is_equations_7_and_8(actions_seen: str, noisy: bool) -> None:
    model = make_model(text_actions=actions_seen)
    task = model.task(prompts())
    actions = torch.rand(3, 4, DIM_ACTION, generator=torch.Generator().manual_seed(6)) * 2 - 1
    torch.manual_seed(13)
    z, log_probs = model.text_rollout(actions, task, Noise("cpu") if noisy else None)
    torch.manual_seed(13)
    uniforms = np.stack([array(torch.rand(3, 3)) for _ in range(5)], 1) if noisy else None
    world = literal.World(model)
    for b in range(3):
        tau = world.tau(array(prompts())[b])
        wanted, probs = world.text_imagine(tau, array(actions)[b], None if uniforms is None else uniforms[b])
        close(z[b], wanted)
        close(log_probs[b].exp(), probs)


@pytest.mark.parametrize(("actions_seen", "follows"), [("policy", True), ("none", False)])
def test_text_imagination_follows_executed_actions_only_where_told(actions_seen: str, follows: bool) -> None:
    model = make_model(text_actions=actions_seen)
    task = model.task(prompts())
    still, _ = model.text_rollout(torch.zeros(3, 4, DIM_ACTION), task, None)
    moving, _ = model.text_rollout(torch.ones(3, 4, DIM_ACTION), task, None)
    assert torch.equal(still[:, 0], moving[:, 0])
    assert torch.equal(still, moving) is not follows


@pytest.mark.parametrize("actions_seen", ["policy", "none"])
def test_forced_text_imagination_equals_free_running_on_its_own_states(actions_seen: str) -> None:
    """Teacher-forced with the free rollout's own modes, and from f_map(τ) again where an episode starts."""
    model = make_model(text_actions=actions_seen)
    task = model.task(prompts())
    action = make_batch(starts=BOUNDARIES)["action"]
    is_first = make_batch(starts=BOUNDARIES)["is_first"]
    z, log_probs, s = torch.zeros(3, 8, 12), torch.zeros(3, 8, 3, 5), torch.zeros(3, 8, 15)
    for b in range(3):
        starts = sorted({0, *(t for i, t in BOUNDARIES if i == b)})
        for begin, end in zip(starts, [*starts[1:], 8], strict=True):
            one = task.rows(torch.tensor([b]))
            free_z, free = model.text_rollout(action[b : b + 1, begin + 1 : end], one, None)
            z[b, begin:end], log_probs[b, begin:end] = free_z[0], free[0]
    s = torch.nn.functional.one_hot(log_probs.argmax(-1), 5).float().flatten(-2)
    forced, forced_z = model.text_forced(s, action, is_first, task)
    torch.testing.assert_close(forced, log_probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(forced_z, z, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- noise


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_processes_share_the_noise_of_the_global_batch(kind: str) -> None:
    def draw(noise: Noise, batch: int) -> Tensor:
        torch.manual_seed(3)
        getattr(noise, kind)(batch, 2)  # whatever was drawn before must be in step, too
        return getattr(noise, kind)(batch, 3, 5)

    whole = draw(Noise("cpu"), 6)
    halves = [draw(Noise("cpu", rank, 2), 3) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), whole)


def test_the_origin_is_what_a_tuned_backbone_sees_and_a_frozen_one_asks() -> None:
    model, stored = make_model(), make_batch(length=4)["embedding"].flatten(0, 1).float()  # (12, dim_e)
    image, semantics = make_batch(length=4)["image"].flatten(0, 1), stored.flip(0)
    with torch.no_grad():
        model.conclude(image, stored, semantics)
        e, gates = model.adapter(semantics), model.task(stored).gates
        s = torch.eye(5)[model.rssm.posterior(image).argmax(-1)].flatten(-2)  # (12, C·K)
        close(model.semantic_origin, e.mean(0))
        close(model.decoded_origin, model.decoder.stem(model.fuse(e, s, gates)).mean(0))


# ---------------------------------------------------------------------------- loading


def saved(path: Path, model: JointModel) -> artifacts.Artifact:
    extra = {"dim_embedding": DIM_E, "dim_action": DIM_ACTION}
    config = {"model": model.config.model_dump(), "method": "bitagent"}
    weights = {"model": model.state_dict()}
    return artifacts.save(path, "pretrain", weights, domain="walker", config=config, seed=0, extra=extra)


def test_a_saved_model_comes_back_frozen(tmp_path: Path) -> None:
    model = make_model()
    found = open_model(saved(tmp_path / "model", model))
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    model = make_model()
    tensors = dict(model.state_dict())
    tensors["rssm.h_first"] = torch.zeros(17)
    with pytest.raises(BadInput, match=r"h_first.*--fresh"):
        load_weights(model, tensors, Path("somewhere"))
    del tensors["rssm.h_first"]
    with pytest.raises(BadInput, match="h_first"):
        load_weights(model, tensors, Path("somewhere"))
