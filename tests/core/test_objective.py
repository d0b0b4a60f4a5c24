"""The joint objective, Eq. 9 and 11-14, against the equations written out in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.core import objective
from stages.core.joint_model import JointModel
from stages.core.world_model import Noise, Observed, State, TaskContext
from tests.core import literal
from tests.core.helpers import DIM_E, dynamics_config, make_batch, make_labels, make_model, objective_config, unit

BOUNDARIES = ((0, 0), (1, 3))
SHOWN = torch.tensor([1.0, 0.0, 1.0])


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def prompts() -> Tensor:
    return unit(3, generator=torch.Generator().manual_seed(5))


def filtered(model: JointModel) -> tuple[dict[str, Tensor], TaskContext, Observed]:
    batch = make_batch(starts=BOUNDARIES)
    task = model.task(prompts())
    torch.manual_seed(1)
    e = model.adapter(batch["embedding"].float())
    return batch, task, model.observe(batch["image"], batch["action"], batch["is_first"], e, task, Noise("cpu"))


def squared(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum())


# ---------------------------------------------------------------------------- Eq. 12


def divergences(seen: Observed) -> np.ndarray:
    """KL(q(s_t) ‖ p(s_t)) of every frame: (B, T)."""
    q, p = array(seen.posterior.exp()), array(seen.prior.exp())
    return np.array([[literal.kl(q[b, t], p[b, t]) for t in range(8)] for b in range(3)])


def test_equation_12_kl_balancing_free_nats_and_image() -> None:
    model = make_model()
    batch, _, seen = filtered(model)
    kl = divergences(seen)
    free = float(np.median(kl))  # so that both sides of it occur
    config = objective_config(free_nats=free, kl_dynamics=0.5, kl_representation=0.3)
    terms = objective.world_model_loss(model, seen, batch["image"], config)
    decoder = literal.under(literal.weights(model), "decoder")
    total, nats, image = 0.0, 0.0, 0.0
    for b in range(3):
        for t in range(8):
            if t > 0 or batch["is_first"][b, t]:  # a window inside an episode has no past at t = 0
                total += (0.5 + 0.3) * max(kl[b, t], free)
                nats += kl[b, t]
            wanted = batch["image"][b, t].numpy().astype(np.float64) / 255.0 - 0.5
            image += squared(literal.image_decoder(decoder, array(seen.state.z)[b, t]), wanted)
    assert terms["kl"].item() == pytest.approx(total / 24, rel=1e-5)
    assert terms["kl_nats"].item() == pytest.approx(nats / 24, rel=1e-5)
    assert terms["image"].item() == pytest.approx(image / 24, rel=1e-5)


def test_some_frames_stand_for_all_in_the_error_of_the_image() -> None:
    """`decoded` frames, the same of each window, all different, drawn anew; the mean over draws is the error of all."""
    model = make_model()
    batch, _, seen = filtered(model)
    each = torch.stack(
        [model.decoder.squared_error(seen.state.z[:, t], batch["image"][:, t]) for t in range(8)]
    ).detach()  # (T,) of the frames at one position of all windows
    pairs = {(i, j): (each[i] + each[j]).item() / 2 for i in range(8) for j in range(i)}
    torch.manual_seed(3)
    found = [objective.image_error(model, seen.state.z, batch["image"], 2).item() for _ in range(300)]
    drawn = [min(pairs, key=lambda pair: abs(pairs[pair] - value)) for value in found]
    assert all(pairs[pair] == pytest.approx(value, rel=1e-5) for pair, value in zip(drawn, found, strict=True))
    assert len(set(drawn)) > 20
    assert sum(pairs.values()) / len(pairs) == pytest.approx(each.mean().item(), rel=1e-5)
    assert np.mean(found) == pytest.approx(each.mean().item(), abs=4 * np.std(found) / 300**0.5)


def test_kl_balancing_moves_each_side_by_its_own_weight() -> None:
    """d KL(sg(q) ‖ p) / d log p = -q and d KL(q ‖ sg(p)) / d log q = q (log q - log p + 1); none below free nats."""
    model = make_model()
    batch, _, seen = filtered(model)
    kl = divergences(seen)
    free = float(np.median(kl))
    config = objective_config(free_nats=free, kl_dynamics=0.5, kl_representation=0.3)
    posterior, prior = (x.detach().requires_grad_() for x in (seen.posterior, seen.prior))
    leaf = replace(seen, posterior=posterior, prior=prior)
    objective.world_model_loss(model, leaf, batch["image"], config)["kl"].backward()
    log_q, log_p = array(posterior), array(prior)
    to_q, to_p = np.zeros_like(log_q), np.zeros_like(log_p)
    for b in range(3):
        for t in range(8):
            if (t > 0 or batch["is_first"][b, t]) and kl[b, t] > free:
                to_p[b, t] = -0.5 * np.exp(log_q[b, t]) / 24
                to_q[b, t] = 0.3 * np.exp(log_q[b, t]) * (log_q[b, t] - log_p[b, t] + 1) / 24
    assert prior.grad is not None and posterior.grad is not None
    np.testing.assert_allclose(array(prior.grad), to_p, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(array(posterior.grad), to_q, rtol=1e-4, atol=1e-7)


# ---------------------------------------------------------------------------- Eq. 13


def test_equation_13_and_the_predictor_of_semantics() -> None:
    model = make_model()
    batch, task, seen = filtered(model)
    terms = objective.mllm_loss(model, seen, task, SHOWN, objective_config(align_video=0.25))
    world = literal.World(model)
    reconstruction, alignment, prediction = 0.0, 0.0, 0.0
    for b in range(3):
        goal = world.psi(world.tau(array(prompts())[b]))
        for t in range(8):
            e = world.adapt(array(batch["embedding"])[b, t])
            z, h, s = (array(x)[b, t] for x in (seen.state.z, seen.state.h, seen.s))
            reconstruction += squared(e, literal.mlp(literal.under(world.w, "semantic_decoder"), z))
            alignment += (1 + 0.25) * squared(e, goal) * SHOWN[b].item()
            prediction += squared(e, world.predict(h, s))
    assert terms["semantic_reconstruction"].item() == pytest.approx(reconstruction / 24, rel=1e-5)
    assert terms["alignment"].item() == pytest.approx(alignment / 24, rel=1e-5)
    assert terms["semantic_prediction"].item() == pytest.approx(prediction / 24, rel=1e-5)


def test_equation_13_cannot_be_won_by_making_e_constant() -> None:
    """Reconstruction and prediction leave e alone; each side of the alignment follows the other's stop-gradient."""
    model = make_model()
    _, task, seen = filtered(model)
    e = seen.state.e.detach().requires_grad_()
    goal = task.semantics.detach().requires_grad_()
    leaf = replace(seen, state=State(seen.state.h, seen.state.z, e))
    context = TaskContext(task.tau, task.gates, goal)
    terms = objective.mllm_loss(model, leaf, context, SHOWN, objective_config(align_video=0.25))
    for name in ("semantic_reconstruction", "semantic_prediction"):
        assert torch.autograd.grad(terms[name], e, allow_unused=True, retain_graph=True)[0] is None, name
    to_e, to_goal = torch.autograd.grad(terms["alignment"], (e, goal))
    weight = SHOWN[:, None, None] / 24
    torch.testing.assert_close(to_e, 0.25 * 2 * (e - goal[:, None]) * weight)
    torch.testing.assert_close(to_goal, (2 * (goal[:, None] - e) * weight).sum(1))


# ---------------------------------------------------------------------------- Eq. 9


@pytest.mark.parametrize("actions_seen", ["policy", "none"])
def test_equation_9_on_the_data(actions_seen: str) -> None:
    model = make_model(text_actions=actions_seen)
    batch, task, seen = filtered(model)
    found = objective.text_imagination_loss(model, seen, task, SHOWN)
    world = literal.World(model)
    total = 0.0
    for b in range(3):
        tau = world.tau(array(prompts())[b])
        start_h, start = world.text_start(tau)
        h, z = start_h, np.zeros(12)
        for t in range(8):
            if t == 0 or batch["is_first"][b, t]:
                h, text, teacher = start_h, start, seen.posterior[b, t]
            else:
                action = array(batch["action"])[b, t] * (actions_seen == "policy")
                h = world.step(h, z, action, "text_dynamics")
                text, teacher = world.prior(h, "text_dynamics"), seen.prior[b, t]
            z = world.fuse(world.psi(tau), array(seen.s)[b, t], tau)
            total += SHOWN[b].item() * literal.kl(array(teacher.exp()), text)
    assert found.item() == pytest.approx(total / 24, rel=1e-4)


# ---------------------------------------------------------------------------- Eq. 14


@pytest.mark.parametrize(("horizon", "starts"), [(3, (0, 4)), (2, (0, 3)), (1, (0, 2, 4, 6)), (30, (0,))])
def test_equation_14_discounted_kl_of_the_two_rollouts(horizon: int, starts: tuple[int, ...]) -> None:
    """Σ_h γ^h KL(world ‖ text) / Σ_h γ^h over rollouts from each start, on the same actions; H is cut to the window.

    `rollout` holds the same rollouts to the data: KL(posterior ‖ world), floored, and the error of ê. Both end where an
    episode begins inside a rollout.
    """
    model = make_model()
    batch, task, seen = filtered(model)
    config = objective_config(horizon=horizon, discount=0.8)
    torch.manual_seed(21)
    found = objective.joint_behavior_loss(model, seen, task, SHOWN, config, Noise("cpu"))
    steps, rollouts = min(horizon, 7), 3 * len(starts)
    torch.manual_seed(21)
    world_noise = array(torch.rand(rollouts, steps, 3))
    text_noise = np.stack([array(torch.rand(rollouts, 3)) for _ in range(steps + 1)], 1)
    world = literal.World(model)
    total = held = 0.0
    for b in range(3):
        tau = world.tau(array(prompts())[b])
        for i, start in enumerate(starts):
            row = b * len(starts) + i
            actions = array(batch["action"])[b, start + 1 : start + 1 + steps]
            h, z, e = (array(getattr(seen.state, k))[b, start] for k in ("h", "z", "e"))
            _, _, es, priors = world.imagine(h, z, e, tau, actions, world_noise[row])
            _, text = world.text_imagine(tau, actions, text_noise[row])
            begins = array(batch["is_first"])[b, start + 1 : start + 1 + steps].tolist()
            counted = begins.index(1) if 1 in begins else steps  # another episode's frames were not predicted
            above = sum(0.8 ** (k + 1) * literal.kl(priors[k], text[k + 1]) for k in range(counted))
            total += SHOWN[b].item() * above / sum(0.8 ** (k + 1) for k in range(steps))
            for k in range(counted):
                seen_s = array(seen.posterior[b, start + 1 + k].exp())
                missed = array(seen.state.e[b, start + 1 + k]) - es[k + 1]
                error = max(config.free_nats, literal.kl(seen_s, priors[k])) + 5.0 * (missed**2).sum()
                held += 0.8 ** (k + 1) * error / sum(0.8 ** (j + 1) for j in range(steps))
    assert found["joint_behavior"].item() == pytest.approx(total / rollouts, rel=1e-4)
    assert found["rollout"].item() == pytest.approx(held / rollouts, rel=1e-4)


@pytest.mark.parametrize("tuned", [False, True])
def test_dynamics_alone_are_cross_entropies_on_fixed_states(tuned: bool) -> None:
    """-log p of the posterior's mode along the data, and in rollouts from where 8 frames were seen; and ê's errors.

    A tuned backbone says what e is; what a sequence is asked for is in the frozen one's space, where prompts are.
    """
    model, config = make_model(), dynamics_config(length=19, horizon=2, semantics=7.0)
    batch = make_batch(length=19, starts=((1, 0), (2, 10)))
    batch["modes"] = torch.randint(0, 5, (3, 19, 3), generator=torch.Generator().manual_seed(3))
    if tuned:
        batch["semantics"] = batch["embedding"].float().flip(0)
    torch.manual_seed(41)
    total, found = objective.dynamics_loss(model, batch, make_labels(), objective_config(), config, Noise("cpu"))
    torch.manual_seed(41)
    prompted = objective.choose_prompts(
        batch["embedding"].float(), batch["task"], make_labels(), objective_config(), Noise("cpu")
    )
    starts = (8, 16)  # of rollouts, after 8 frames of past and then every 8
    noise = array(torch.rand(3 * len(starts), 2, 3))
    world, sums = literal.World(model), dict.fromkeys(("forced", "semantics", "rollout", "ahead", "astray"), 0.0)
    e_all = array(model.adapter(batch.get("semantics", batch["embedding"].float())))
    for b in range(3):
        tau = world.tau(array(prompted.embedding)[b])
        h, z = world.first(), None
        codes = [np.eye(5)[m] for m in batch["modes"][b].numpy()]  # T × (C, K)
        hs, zs = [], []
        for t in range(19):
            begins = t == 0 or bool(batch["is_first"][b, t])
            past, action = (world.first(), np.zeros(12)), np.zeros(2)
            if not begins:
                past, action = (h, z), array(batch["action"])[b, t]
            h = world.step(*past, action)
            prior, e = world.prior(h), e_all[b, t]
            z = world.fuse(e, codes[t].ravel(), tau)
            hs.append(h)
            zs.append(z)
            if t or bool(batch["is_first"][b, 0]):
                sums["forced"] -= np.log(prior[codes[t] == 1]).sum() / 57
            sums["semantics"] += ((e - world.predict(h, codes[t].ravel())) ** 2).sum() / 57
        for i, start in enumerate(starts):
            actions = array(batch["action"])[b, start + 1 : start + 3]
            from_here = (hs[start], zs[start], e_all[b, start], tau, actions, noise[2 * b + i])
            dreamed, _, es, priors = world.imagine(*from_here)
            for k in (1, 2):
                if batch["is_first"][b, start + 1 : start + 1 + k].any():
                    break
                sums["rollout"] -= np.log(priors[k - 1][codes[start + k] == 1]).sum() / 12
                sums["ahead"] += ((e_all[b, start + k] - es[k]) ** 2).sum() / 12
                sums["astray"] += ((hs[start + k] - dreamed[k]) ** 2).mean() / 12
    names = ("kl_nats", "semantic_prediction", "rollout_nats", "rollout_semantics", "rollout_states")
    for name, wanted in zip(names, sums.values(), strict=True):
        assert found[name].item() == pytest.approx(wanted, rel=1e-4), name
    wanted = 0.5 * (sums["forced"] + sums["rollout"]) + 7.0 * (sums["semantics"] + sums["ahead"]) + 2.0 * sums["astray"]
    assert total.item() == pytest.approx(wanted, rel=1e-4)


def test_dynamics_alone_move_the_dynamics_alone() -> None:
    model = make_model()
    batch = make_batch(length=14)
    batch["modes"] = torch.zeros(3, 14, 3, dtype=torch.long)
    own = {id(p) for p in model.dynamics()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)
    objective.dynamics_loss(model, batch, make_labels(), objective_config(), dynamics_config(), Noise("cpu"))[
        0
    ].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {name for name, p in model.named_parameters() if id(p) in own}
    assert {name.split(".")[0] for name in moved} == {"rssm", "semantic_predictor"}


# ---------------------------------------------------------------------------- prompts


def test_prompts_are_labels_or_noised_segments() -> None:
    """LAFITE-style pseudo-text for unlabelled data and for a share of the labelled; a label counts where it shows."""
    labels = make_labels()
    labels.threshold = torch.tensor([0.0, 0.1])
    e = unit(64, 5, generator=torch.Generator().manual_seed(8))
    part = torch.arange(64) % 2
    config = objective_config(pseudo_text=0.4, pseudo_text_noise=0.7)
    torch.manual_seed(31)
    found = objective.choose_prompts(e, part, labels, config, Noise("cpu"))
    torch.manual_seed(31)
    normal, amounts, coins = array(torch.randn(64, DIM_E)), array(torch.rand(64, 1)), array(torch.rand(64))
    kinds = set()
    for i in range(64):
        segment = literal.normalise(array(e)[i].mean(0))
        amount = 0.7 * amounts[i]
        pseudo = literal.normalise((1 - amount) * segment + amount * literal.normalise(normal[i]))
        text = array(labels.text)[1]
        labelled = part[i] == 1 and coins[i] >= 0.4
        shown = not labelled or segment @ text >= 0.1
        kinds.add((bool(labelled), bool(shown)))
        np.testing.assert_allclose(array(found.embedding)[i], text if labelled else pseudo, atol=1e-5)
        assert found.shown[i].item() == shown
    assert kinds == {(True, True), (True, False), (False, True)}


# ---------------------------------------------------------------------------- Eq. 11


def joint(model: JointModel, **changes: float) -> tuple[float, dict[str, float]]:
    torch.manual_seed(41)
    total, terms = objective.joint_loss(
        model, make_batch(starts=BOUNDARIES), make_labels(), objective_config(**changes), Noise("cpu")
    )
    return total.item(), {k: v.item() for k, v in terms.items()}


def test_equation_11_is_the_weighted_sum_of_its_terms() -> None:
    weights = {
        "world_model": 0.7,
        "mllm": 3.0,
        "joint_behavior": 0.2,
        "rollout": 0.4,
        "text_imagination": 0.6,
        "semantic_prediction": 1.3,
    }
    total, t = joint(make_model(), **weights)
    assert total == pytest.approx(
        0.7 * (t["kl"] + t["image"])
        + 3.0 * (t["semantic_reconstruction"] + t["alignment"])
        + 0.2 * t["joint_behavior"]
        + 0.4 * t["rollout"]
        + 0.6 * t["text_imagination"]
        + 1.3 * t["semantic_prediction"],
        rel=1e-5,
    )


def test_terms_are_those_of_the_pieces() -> None:
    """joint_loss hands each piece the adapted embeddings, the drawn prompts and one filtered sequence."""
    model, batch, labels, config = make_model(), make_batch(starts=BOUNDARIES), make_labels(), objective_config()
    _, terms = joint(model)
    torch.manual_seed(41)
    noise = Noise("cpu")
    drawn = objective.choose_prompts(batch["embedding"].float(), batch["task"], labels, config, noise)
    task = model.task(drawn.embedding)
    e = model.adapter(batch["embedding"].float())
    seen = model.observe(batch["image"], batch["action"], batch["is_first"], e, task, noise)
    wanted = objective.world_model_loss(model, seen, batch["image"], config)
    wanted |= objective.mllm_loss(model, seen, task, drawn.shown, config)
    wanted["text_imagination"] = objective.text_imagination_loss(model, seen, task, drawn.shown)
    wanted |= objective.joint_behavior_loss(model, seen, task, drawn.shown, config, noise)
    for name, value in wanted.items():
        assert terms[name] == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize(
    ("fusion", "changes", "gone"),
    [
        (
            "sum",
            {"mllm": 0.0, "text_imagination": 0.0, "joint_behavior": 0.0},
            {"text_imagination", "joint_behavior", "rollout"},
        ),
        ("sum", {"joint_behavior": 0.0}, {"joint_behavior", "rollout"}),
        ("tamf", {"joint_behavior": 0.0}, {"joint_behavior", "rollout"}),
        ("tamf", {}, set()),
    ],
)
def test_rows_of_table_2_are_switches(fusion: str, changes: dict[str, float], gone: set[str]) -> None:
    total, terms = joint(make_model(fusion=fusion), **changes)
    everything = {"kl", "image", "kl_nats", "semantic_reconstruction", "alignment", "semantic_prediction", "gate"}
    assert set(terms) == (everything | {"text_imagination", "joint_behavior", "rollout"}) - gone
    c = objective_config(**changes)
    wanted = terms["kl"] + terms["image"] + c.semantic_prediction * terms["semantic_prediction"]
    wanted += c.mllm * (terms["semantic_reconstruction"] + terms["alignment"])
    wanted += c.text_imagination * terms.get("text_imagination", 0.0)
    wanted += c.joint_behavior * terms.get("joint_behavior", 0.0) + c.rollout * terms.get("rollout", 0.0)
    assert total == pytest.approx(wanted, rel=1e-5)
