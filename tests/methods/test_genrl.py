"""GenRL's connector, aligner and reward, against their equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.nets import sample_one_hot
from stages.core.world_model import Noise, Observed, State, TaskContext
from stages.methods.genrl import GenRL, aligned_reward, clipped_cosine, perturb
from stages.runtime.errors import BadInput
from tests.core.helpers import DIM_E, make_batch, unit
from tests.methods import models


def make(**changes: object) -> GenRL:
    model = models.make("genrl", **changes)
    assert isinstance(model, GenRL)
    return model


def test_both_duties() -> None:
    models.assert_duties(make(), {"connector", "connector_start", "aligner"})


def test_the_latent_is_the_stochastic_state_alone() -> None:
    model = make()
    task, states, _ = models.rollout(model)
    assert states.z.shape[-1] == model.decoder.stem.in_features == 3 * 5
    torch.testing.assert_close(states.z.unflatten(-1, (3, 5)).sum(-1), torch.ones(3, 11, 3))
    assert model.dim_policy == 16 + 15 + DIM_E and task.gates.shape == (3, 0, 1)


def test_the_terms_are_the_kl_from_the_connectors_steps_and_the_aligners_cosine() -> None:
    """Step by step, with x = √dim_e · e of the window: h₀ = f(x), s₀ sampled from the prior of h₀,
    h_t = GRU(h_{t-1}, [s_{t-1}, x]), KL(prior ‖ posterior).

    The aligner: 1 - cos(f((1 - α) e + α n / |n|), e), α = 0.5.
    """
    model = make(window=4)
    batch = make_batch(length=10)
    e = F.normalize(batch["embedding"].float(), dim=-1)
    torch.manual_seed(2)
    seen = model.observe(batch["image"], batch["action"], batch["is_first"], e, model.task(e[:, 0]), Noise("cpu"))
    torch.manual_seed(5)
    terms = model.grounding_terms(seen, models.objective_config(), Noise("cpu"))
    torch.manual_seed(5)
    uniform, normal = torch.rand(3, 3), torch.randn(*e.shape)
    noisy = 0.5 * e + 0.5 * normal / normal.norm(dim=-1, keepdim=True)
    cosine = F.cosine_similarity(model.aligner(noisy / noisy.norm(dim=-1, keepdim=True)), e, dim=-1)
    torch.testing.assert_close(terms["aligner"], 1 - cosine.mean())
    video = math.sqrt(DIM_E) * e
    h = torch.tanh(model.connector_start(video[:, 3]))
    below = model.connector.prior(h).exp().cumsum(-1)[..., :-1] <= uniform.unsqueeze(-1)
    s = F.one_hot(below.sum(-1), 5).float().flatten(1)
    wanted = []
    for t in range(8):  # two whole windows of the ten frames
        h = model.connector.gru(torch.cat([s, video[:, 4 * (t // 4) + 3]], -1), h)
        ours, theirs = model.connector.prior(h), seen.posterior[:, t]
        wanted.append((ours.exp() * (ours - theirs)).sum((1, 2)))
        s = seen.s[:, t]
    torch.testing.assert_close(terms["connector"], 0.8 * torch.stack(wanted).mean())


def test_the_kl_of_two_known_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connector (0.9, 0.1), posterior (0.5, 0.5): 0.8 · KL(connector ‖ posterior) = 0.2944; the other way 0.4087."""
    model = make(window=2)
    ours, theirs = (torch.tensor(p).log().expand(1, 2, 1, 2) for p in ([0.9, 0.1], [0.5, 0.5]))
    monkeypatch.setattr(model, "connect", lambda *_: ours)
    state = State(torch.zeros(1, 2, 16), torch.zeros(1, 2, 2), unit(1)[:, None].expand(1, 2, DIM_E))
    seen = Observed(state, torch.zeros(1, 2, 2), theirs, theirs, torch.zeros(1, 2, 2), torch.zeros(1, 2))
    terms = model.grounding_terms(seen, models.objective_config(), Noise("cpu"))
    assert terms["connector"].item() == pytest.approx(0.2944, abs=1e-4)


def test_perturb() -> None:
    """Noise of norm α against a share 1 - α of the embedding: cosine between the two is known when orthogonal."""
    e = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(perturb(e, torch.tensor([[0.0, 7.0]]), 0.5), torch.tensor([[0.5**0.5, 0.5**0.5]]))
    torch.testing.assert_close(perturb(e, torch.tensor([[0.0, 7.0]]), 0.0), e)


def test_the_aligner_learns_to_denoise() -> None:
    """Embeddings of two clusters: what comes back is nearer to the clean one than what went in."""
    model = make()
    centres = unit(2, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.aligner.parameters(), 1e-2)
    torch.manual_seed(0)
    for _ in range(60):
        e = centres[torch.randint(2, (64,))]
        noisy = perturb(e, torch.randn(64, DIM_E), 0.5)
        value = 1 - (model.aligner(noisy) * e).sum(-1).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert (model.aligner(noisy) * e).sum(-1).mean() > (noisy * e).sum(-1).mean() + 0.1


def test_target_is_the_connector_unrolled_without_sampling() -> None:
    model = make()
    task = model.task(unit(2))
    found, priors = model.text_rollout(torch.zeros(2, 4, 2), task, None)
    assert found.shape == (2, 5, 15) and priors.shape == (2, 5, 3, 5)
    video = math.sqrt(DIM_E) * task.semantics
    h = torch.tanh(model.connector_start(video))
    s = sample_one_hot(model.connector.prior(h), None)
    for t in range(5):
        h = model.connector.gru(torch.cat([s, video], -1), h)
        s = sample_one_hot(model.connector.prior(h), None)
        torch.testing.assert_close(found[:, t], s)
    torch.testing.assert_close(task.semantics, model.aligner(task.tau))


def test_with_noise_the_first_state_is_sampled_from_the_prior() -> None:
    """The frequencies of 4 000 samples are the prior's probabilities."""
    model = make()
    torch.manual_seed(0)
    h, s = model.connector_first(unit(1).expand(4000, DIM_E), Noise("cpu"))
    found = s.unflatten(-1, (3, 5)).mean(0)
    torch.testing.assert_close(found, model.connector.prior(h[0]).exp(), atol=0.03, rtol=0)
    assert found.max() < 0.97  # it is not always the mode


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ([3.0, 4.0], [3.0, 4.0], 1.0),
        ([1.0, 0.0], [2.0, 0.0], 0.5),
        ([1.0, 0.0], [0.0, 9.0], 0.0),
        ([1.0, 0.0], [-1.0, 0.0], -1.0),
    ],
)
def test_clipped_cosine(a: list[float], b: list[float], wanted: float) -> None:
    """1 for equal vectors alone: a longer one of the same direction is not as good."""
    found = clipped_cosine(torch.tensor([[a]]).float(), torch.tensor([[b]]).float())
    torch.testing.assert_close(found, torch.tensor([[[wanted]]]))


def aligned_literally(similarity: Tensor, window: int) -> list[list[float]]:
    out = []
    for table in similarity.tolist():
        horizon = len(table)
        size = min(window, horizon)
        fits = [sum(table[k + i][i] for i in range(size)) / size for k in range(horizon - size + 1)]
        best = fits.index(max(fits))
        out.append([table[t][max(t - best, 0)] for t in range(horizon)])
    return out


@pytest.mark.parametrize(("horizon", "window"), [(10, 4), (5, 8), (6, 6)])
def test_reward_is_taken_at_the_start_that_fits_best(horizon: int, window: int) -> None:
    similarity = torch.randn(7, horizon, horizon, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(aligned_reward(similarity, window), torch.tensor(aligned_literally(similarity, window)))


def test_a_sequence_that_reaches_the_target_late_earns_one_from_then_on() -> None:
    """The target's states, three steps late, after three steps at its first state."""
    model = make(window=4)
    task = model.task(unit(2))
    target, _ = model.text_rollout(torch.zeros(2, 7, 2), task, None)  # (2, 8, 15)
    late = torch.cat([target[:, :1].expand(-1, 3, -1), target], 1)[:, :9]
    state = models.State(torch.zeros(2, 9, 16), late, torch.zeros(2, 9, DIM_E))
    torch.testing.assert_close(model.reward(task, state, torch.zeros(2, 8, 2), models.PLAIN), torch.ones(2, 8))


def test_rows_of_one_prompt_share_its_target() -> None:
    model = make()
    task, state, action = models.rollout(model, count=3)
    index = torch.tensor([2, 0, 2])
    shared = task.rows(index)
    alone = TaskContext(shared.tau, shared.gates, shared.semantics)
    options = models.PLAIN
    torch.testing.assert_close(
        model.reward(shared, state, action, options), model.reward(alone, state, action, options), rtol=1e-4, atol=1e-5
    )


def test_sequences_shorter_than_a_window_are_refused() -> None:
    with pytest.raises(BadInput, match=r"windows of 8 frames: raise pretrain\.length from 5"):
        models.loss(make(), length=5)
