from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stages.core.rssm import RSSM, Dynamics
from stages.core.settings import ModelConfig
from tests.core import literal
from tests.core.helpers import MODEL, scramble

Z, ACTION, DETER = 12, 2, 16


def make() -> RSSM:
    torch.manual_seed(0)
    rssm = RSSM(ModelConfig(**MODEL), Z, ACTION)
    scramble(rssm)
    return rssm


def sequence(batch: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, Z, generator=generator), torch.randn(batch, length, ACTION, generator=generator)


def images(*lead: int) -> Tensor:
    return torch.randint(0, 256, (*lead, 3, 64, 64), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def probs(logits: np.ndarray) -> np.ndarray:
    return literal.unimix(logits.reshape(3, 5), 0.01)


def test_posterior_reads_one_image_alone() -> None:
    rssm = make()
    image = images(2, 3)
    found = rssm.posterior(image).exp()
    assert found.shape == (2, 3, 3, 5)
    w = literal.weights(rssm)
    encoder, head = literal.under(w, "encoder"), literal.under(w, "posterior_net")
    for b in range(2):
        for t in range(3):
            wanted = probs(literal.mlp(head, literal.image_encoder(encoder, image[b, t].numpy())))
            np.testing.assert_allclose(found[b, t].detach().numpy(), wanted, atol=1e-5)


def test_prior() -> None:
    rssm = make()
    h = torch.randn(4, DETER, generator=torch.Generator().manual_seed(3))
    head = literal.under(literal.weights(rssm), "prior_net")
    wanted = [probs(literal.mlp(head, row)) for row in h.double().numpy()]
    np.testing.assert_allclose(rssm.prior(h).exp().detach().numpy(), wanted, atol=1e-5)


def literal_scan(w: literal.Weights, z: Tensor, action: Tensor, reset: Tensor, first: np.ndarray) -> np.ndarray:
    """h_t = GRU(h_{t-1}, [z_{t-1}; a_t]); at an episode's start h, z and a of the past are (first, 0, 0)."""
    gru = literal.under(w, "gru")
    zs, actions = z.double().numpy(), action.double().numpy()
    out = np.zeros((*reset.shape, DETER))
    for b in range(len(reset)):
        for t in range(reset.shape[1]):
            if reset[b, t]:
                h, past, a = first, np.zeros(Z), np.zeros(ACTION)
            else:
                h, past, a = out[b, t - 1], zs[b, t - 1], actions[b, t]
            out[b, t] = literal.norm_gru(gru, np.concatenate([past, a]), h)
    return out


def boundaries() -> Tensor:
    reset = torch.zeros(3, 7, dtype=torch.bool)
    reset[:, 0] = True
    reset[1, 3] = reset[2, 1] = reset[2, 6] = True
    return reset


def test_scan_is_the_recurrence_with_restarts_inside() -> None:
    rssm = make()
    z, action = sequence()
    w = literal.weights(rssm)
    found = rssm.scan(z, action, boundaries(), rssm.first(3))
    wanted = literal_scan(w, z, action, boundaries(), np.tanh(w["h_first"]))
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_scan_equals_steps() -> None:
    rssm = make()
    z, action = sequence()
    found = rssm.scan(z, action, boundaries(), rssm.first(3))
    torch.testing.assert_close(rssm.step(found[0, 3], z[0, 3], action[0, 4]), found[0, 4], rtol=1e-5, atol=1e-6)


def test_nothing_crosses_an_episode_boundary() -> None:
    rssm = make()
    z, action = sequence()
    z.requires_grad_()
    action.requires_grad_()
    h = rssm.scan(z, action, boundaries(), rssm.first(3))
    to_z, to_action = torch.autograd.grad(h[1, 3:].sum(), (z, action))
    assert not to_z[1, :3].any(), "frames before the boundary"
    assert not to_action[1, :4].any(), "actions before it, and the one at it"
    assert to_z[1, 3:6].any(-1).all() and to_action[1, 4:].any(-1).all()
    assert not to_z[0].any() and not to_z[2].any(), "other sequences"


def test_first_state_is_learned() -> None:
    rssm = make()
    z, action = sequence()
    rssm.scan(z, action, boundaries(), rssm.first(3)).sum().backward()
    assert rssm.h_first.grad is not None and rssm.h_first.grad.all()


def test_text_dynamics_is_the_same_transition_without_an_encoder() -> None:
    torch.manual_seed(0)
    dynamics = Dynamics(ModelConfig(**MODEL), Z, ACTION)
    names = {name.split(".")[0] for name, _ in dynamics.named_parameters()}
    assert names == {"gru", "prior_net"}


def test_the_action_enters_the_recurrence_at_the_scale_of_s() -> None:
    """By default the bound of a weight is 1 / sqrt(inputs); s has `classes` ones, the action ACTION numbers."""
    weight = RSSM(ModelConfig(**MODEL), Z, ACTION).gru.inp.state_dict()["0.weight"]
    usual = (Z + ACTION) ** -0.5
    assert weight[:, :Z].abs().max() <= usual
    assert usual < weight[:, Z:].abs().max() <= usual * (MODEL["classes"] / ACTION) ** 0.5
