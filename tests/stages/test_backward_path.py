"""The backward path while behaviour is learned: Eq. 14 on the policy's imagined rollouts, for the language side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stages import behave, pretrain
from stages.core.backward_path import BackwardPath
from stages.core.world_model import State, TaskContext
from stages.methods import open_model
from stages.policies.goals import Ask, Variant
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from tests.core.helpers import model_config
from tests.stages import small_run
from tests.stages.test_behave import behavior, config

BACKWARD: dict[str, Any] = {"backward": {"every": 2, "updates": 2, "lr": 1e-2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = small_run.make_run(tmp_path_factory.mktemp("backward") / "walker-smoke")
    small_run.make_uneven_inputs(made)
    for method in ("bitagent", "other"):
        pretrain.run(
            pretrain.Sections(small_run.pretrain_config(updates=2), model_config(text_actions="none")),
            made,
            method=method,
        )
    return made


def test_the_gradient_reaches_all_of_the_language_side_and_nothing_else(run: Run) -> None:
    module, batch = behavior(run)
    path = BackwardPath(module)
    loss, terms = path({**batch, "mean": torch.full((10,), -1.0)})
    loss.backward()
    assert terms["backward_shown"] == 1
    reached = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    language = {n for n, _ in module.named_parameters() if n.split(".")[1] in ("aligner", "text_map", "text_dynamics")}
    assert reached == language


def test_the_loss_is_eq_14_where_the_prompt_is_shown(run: Run) -> None:
    """Against the sum over steps, variables and classes, written out from the equation."""
    module, batch = behavior(run)
    task, start, horizon = module.prompts.rows(batch["prompt"]), State.read(batch), module.config.horizon
    torch.manual_seed(7)
    states, actions, prior = module.rollout(start, task, horizon)
    _, text = module.model.text_rollout(actions, task, module.noise)
    earned = module.reward(task, states, actions).mean(1)
    mean = earned.median().expand(10)
    weights = [module.config.actor_critic.discount**t for t in range(1, horizon + 1)]
    wanted = 0.0
    for n in range(10):
        for t in range(horizon):
            kl = (prior[n, t].exp() * (prior[n, t] - text[n, t + 1])).sum().item()
            wanted += weights[t] / sum(weights) * kl * (earned[n] >= mean[n]).item() / 10
    torch.manual_seed(7)
    loss, terms = BackwardPath(module)({**batch, "mean": mean})
    assert 0 < terms["backward_shown"] < 1
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_refreshing_takes_what_is_kept_anew_where_it_lies(run: Run) -> None:
    module, batch = behavior(run)
    path = BackwardPath(module)

    def rewards(prompts: Any) -> Tensor:
        task = prompts.rows(batch["prompt"])
        torch.manual_seed(1)
        states, actions, _ = module.rollout(State.read(batch), task, 4)
        return module.model.reward(task, states, actions, "relative")

    before = rewards(module.prompts)
    (kept,) = [v for (_, steps), v in module.prompts.references.items() if steps == 4]
    with torch.no_grad():
        for p in path.language.parameters():
            p.add_(0.3 * torch.randn_like(p))
    torch.testing.assert_close(rewards(module.prompts), before, rtol=0, atol=0)
    path.refresh()
    after = rewards(module.prompts)
    assert (after - before).abs().max() > 1e-3
    assert any(kept is v for v in module.prompts.references.values())
    fresh = TaskContext(module.prompts.tau, module.prompts.gates, module.model.text_semantics(module.prompts.tau))
    torch.testing.assert_close(rewards(fresh), after)


def test_a_round_moves_the_language_side_alone_and_a_killed_run_goes_on_bit_for_bit(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = behave.run(config(**BACKWARD), run, Ask(task="walk"), Variant(method="other"))
    before = open_model(small_run.model_artifact(run)).state_dict()
    moved = {name.split(".")[0] for name, value in whole.tensors("model").items() if (value != before[name]).any()}
    assert moved == {"aligner", "text_map", "text_dynamics"}
    rows = {row["step"]: row for row in small_run.logged(whole)}
    assert [step for step, row in rows.items() if "backward_behavior" in row] == [2, 4]  # none after the last update
    assert max(rows[step]["backward_behavior"] for step in (2, 4)) > 0  # unless no rollout shows the prompt

    small_run.at_step(monkeypatch, 3, small_run.die)  # before the round of step 4
    with pytest.raises(small_run.Killed):
        behave.run(config(**BACKWARD), run, Ask(task="walk"))
    resumed = behave.run(config(**BACKWARD), run, Ask(task="walk"))
    assert digests(resumed) == digests(whole)


def test_it_works_without_data(run: Run) -> None:
    made = behave.run(config(updates=3, **BACKWARD), run, Ask(task="run"), Variant(data_free=True))
    assert "backward_behavior" in small_run.logged(made)[1]


@pytest.mark.parametrize("variant", [Variant(method="genrl"), Variant(method="td3"), Variant(oracle=True)])
def test_what_has_no_text_imagination_or_another_reward_is_refused(run: Run, variant: Variant) -> None:
    with pytest.raises(BadInput, match=r"behave\.backward teaches BiTAgent's text imagination by its own reward"):
        behave.run(config(**BACKWARD), run, Ask(task="walk"), variant)


def digests(made: Artifact) -> list[str]:
    return [str(made.meta["files"][f"{part}.safetensors"]) for part in ("actor_critic", "model")]
