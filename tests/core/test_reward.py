"""The text-conditioned reward, Eq. 10."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.core.reward import text_reward
from tests.core import literal
from tests.core.helpers import DIM_ACTION, make_model, unit


@pytest.mark.parametrize("actions_seen", ["policy", "none"])
@pytest.mark.parametrize("space", ["z", "relative", "decoded", "both"])
@pytest.mark.parametrize("shared", [False, True])
def test_equation_10(actions_seen: str, space: str, shared: bool) -> None:
    """Cosine of z_t and z̃^τ_t, of what f_dec or the decoder's stem reads in them less a mean, or of both, for t = 1..H.

    `shared`: the rows are of two prompts.
    """
    model = make_model(text_actions=actions_seen)
    origins = {"relative": model.semantic_origin, "decoded": model.decoded_origin}
    for origin in origins.values():
        origin.normal_(generator=torch.Generator().manual_seed(4))
    y = unit(4, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(4, 6, 12, generator=generator)
    action = torch.rand(4, 5, DIM_ACTION, generator=generator) * 2 - 1
    task = model.task(y)
    if shared:
        index = torch.tensor([1, 0, 0, 1])
        task, y = model.task(y[:2]).rows(index), y[index]
    found = text_reward(model, task, z, action, space)
    assert found.shape == (4, 5)
    world = literal.World(model)

    def read(latent: np.ndarray, space: str) -> np.ndarray:
        if space == "z":
            return literal.normalise(latent)
        if space == "relative":
            found = literal.mlp(literal.under(world.w, "semantic_decoder"), latent)
        else:
            found = literal.linear(literal.under(world.w, "decoder.stem"), latent)
        return literal.normalise(found - origins[space].double().numpy())

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        spaces = ("relative", "decoded") if space == "both" else (space,)
        return float(np.mean([read(one, s) @ read(other, s) for s in spaces]))

    for n in range(4):
        tau = world.tau(y[n].double().numpy())
        reference, _ = world.text_imagine(tau, action[n].double().numpy(), None)
        wanted = [cosine(z[n, t].double().numpy(), reference[t]) for t in range(1, 6)]
        np.testing.assert_allclose(found[n].detach().numpy(), wanted, atol=1e-5)


def test_the_reference_itself_earns_one_at_every_step() -> None:
    model = make_model()
    task = model.task(unit(2, generator=torch.Generator().manual_seed(5)))
    action = torch.rand(2, 5, DIM_ACTION, generator=torch.Generator().manual_seed(6))
    z, _ = model.text_rollout(action, task, None)
    torch.testing.assert_close(text_reward(model, task, z, action, "z"), torch.ones(2, 5))
