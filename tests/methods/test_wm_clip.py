"""WM-CLIP's reverse connector and reward, against their equations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stages.core.nets import MLP
from stages.core.world_model import Noise
from stages.methods.wm_clip import WMCLIP
from stages.runtime.errors import BadInput
from tests.core.helpers import make_batch
from tests.methods import models


def make() -> WMCLIP:
    model = models.make("wm-clip")
    assert isinstance(model, WMCLIP)
    return model


def test_both_duties() -> None:
    models.assert_duties(make(), {"reverse"})


def test_loss_and_reward_are_cosines_of_what_is_read_from_h_and_s() -> None:
    model, batch = make(), make_batch()
    e = F.normalize(batch["embedding"].float(), dim=-1)
    seen = model.observe(batch["image"], batch["action"], batch["is_first"], e, model.task(e[:, 0]), Noise("cpu"))
    terms = model.grounding_terms(seen, models.objective_config(), Noise("cpu"))
    read = MLP.forward(model.reverse, torch.cat([seen.state.h, seen.s], -1))
    torch.testing.assert_close(terms["reverse"], 1 - F.cosine_similarity(read, e, dim=-1).mean())
    task, states, action = models.rollout(model)
    read = model.reverse(torch.cat([states.h, states.z], -1))[:, 1:]
    wanted = F.cosine_similarity(read, task.tau.unsqueeze(1), dim=-1)
    torch.testing.assert_close(model.reward(task, states, action, models.PLAIN), wanted)


def test_it_imagines_nothing_from_text() -> None:
    model = make()
    task, _, action = models.rollout(model)
    with pytest.raises(BadInput, match="WMCLIP imagines nothing from text"):
        model.text_rollout(action, task, None)
