"""Behaviour learning as a stage: on latents of the data, through a frozen model, resumable bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages import behave, pretrain
from stages.backbones.embeddings import open_training_data
from stages.behave import encode_data, posterior_modes
from stages.core import bitagent
from stages.core.actor_critic import ActorCritic
from stages.core.latents import sharpened
from stages.core.world_model import Noise, State
from stages.methods import open_model
from stages.policies.goals import Ask, Variant
from stages.policies.play import PlayedPolicy
from stages.policies.policy import LatentPolicy
from stages.runtime import artifacts, checkpoints, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.distributed import World
from stages.runtime.errors import BadInput, Interrupted
from stages.worlds import tasks
from tests.core.helpers import model_config, unit
from tests.core.test_actor_critic import CONFIG as ACTOR_CRITIC
from tests.stages import small_run

ROOT = Path(__file__).resolve().parents[2]

BEHAVE: dict[str, Any] = {
    "updates": 6,
    "decisions": 10,
    "imagined": 8,
    "horizon": 4,
    "start_fraction": 0.25,
    "lr": 1e-3,
    "clip": 100.0,
    "space": "relative",
    "sharpness": 0.0,
    "oracle_updates": 3,
    "bf16": False,
    "compile": "off",
    "log_every": 1,
    "checkpoint_every": 2,
    "watch_every": 0,
    "watch_episodes": 2,
    "backward": {"every": 0, "updates": 2, "lr": 1e-3},
    "actor_critic": ACTOR_CRITIC,
}


def config(**changes: Any) -> behave.Config:
    return behave.Config.model_validate(BEHAVE | changes)


PARALLEL = config(decisions=12, imagined=4, backward={"every": 3, "updates": 2, "lr": 1e-3})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a barely trained model, whose two datasets have episodes of different lengths."""
    made = small_run.make_run(tmp_path_factory.mktemp("behave") / "walker-smoke")
    small_run.make_uneven_inputs(made)
    for method in ("bitagent", "other", "parallel", "watched"):
        pretrain.run(pretrain.Sections(small_run.pretrain_config(updates=2), model_config()), made, method=method)
    return made


@pytest.fixture(scope="module")
def whole(run: Run) -> Artifact:
    """Six updates without a break."""
    return behave.run(config(), run, Ask(task="walk"), Variant(method="other"))


def trained(artifact: Artifact) -> str:
    return str(artifact.meta["files"]["actor_critic.safetensors"])


# ---------------------------------------------------------------------------- goals


def test_goals() -> None:
    one = behave.parse_goal("walker", Ask("walk"))
    assert (one.name, one.tasks) == ("walk", ("walk",)) and one.prompts == ("walk fast clean",)
    several = behave.parse_goal("walker", Ask(many=("stand", "run")))
    assert several.name == "stand+run" and len(several.prompts) == 2
    free = behave.parse_goal("walker", Ask(prompt="hop on one leg"))
    assert free.prompts == ("hop on one leg",) and free.tasks == () and free.name.startswith("hop-on-one-leg-")


@pytest.mark.parametrize("given", [{}, {"task": "walk", "prompt": "walk"}, {"video": "a.mp4", "many": ("walk",)}])
def test_a_goal_is_exactly_one_thing(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="exactly one of --task, --prompt, --video or --tasks"):
        behave.parse_goal("walker", Ask(**given))


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="walk"):
        behave.parse_goal("walker", Ask("wlak"))


# ---------------------------------------------------------------------------- one update


def behavior(
    run: Run, prompts: int = 2, oracle: torch.nn.Module | None = None, **changes: Any
) -> tuple[behave.Behavior, dict[str, Tensor]]:
    source, c = small_run.model_artifact(run), config(**changes)
    model, dataset = open_model(source), open_training_data(source, run)
    context = model.task(unit(prompts, generator=torch.Generator().manual_seed(3)))
    modes = posterior_modes(model, dataset, torch.device("cpu"), quiet=True)
    latents = encode_data(model, dataset, modes, context, c.horizon, torch.device("cpu"))
    torch.manual_seed(0)
    learner = ActorCritic(16 + 12 + 10, small_run.ACTIONS, c.actor_critic)
    noise = Noise("cpu")
    module = behave.Behavior(model, learner, context, c, noise, oracle)
    return module, behave.draw_batch(latents, behave.data_outcomes(module, latents), c, noise, prompts)


def test_imagination_teaches_the_values_alone_and_moves_nothing_of_the_model(run: Run) -> None:
    module, batch = behavior(run, actor_critic=ACTOR_CRITIC | {"anchor": 0.0, "transitions": 0.0})
    loss, _ = module(batch)
    loss.backward()
    learner = module.learner
    assert any(p.grad is not None and p.grad.any() for p in learner.values.parameters())
    assert not any(p.grad is not None and p.grad.any() for p in learner.actor.parameters())
    assert all(p.grad is None for p in [*module.model.parameters(), *learner.slow_values.parameters()])


def test_the_loss_is_the_weighted_sum_of_its_terms(run: Run) -> None:
    """As far as no weight is 0, which changes who teaches the action values."""
    weights = {"anchor": 0.7, "transitions": 1.3, "imagination": 1.9}

    def value(**changes: float) -> float:
        module, batch = behavior(run, actor_critic=ACTOR_CRITIC | dict.fromkeys(weights, 1.0) | changes)
        torch.manual_seed(5)
        return module(batch)[0].item()

    parts = {name: value(**{name: 2.0}) - value() for name in weights}
    assert all(abs(part) > 1e-3 for part in parts.values())
    assert value() == pytest.approx(sum(parts.values()), rel=1e-3)
    assert value(**weights) == pytest.approx(sum(weights[k] * parts[k] for k in weights), rel=1e-3)


def test_imagination_teaches_the_action_values_only_where_no_data_do(run: Run) -> None:
    def taught(**changes: float) -> bool:
        module, batch = behavior(run, actor_critic=ACTOR_CRITIC | {"anchor": 0.0} | changes)
        task = module.prompts.rows(batch["prompt"])
        loss = module.forward(batch)[0] if changes else module.dreamed_loss(task)[0]
        data = module.data_loss(batch, task)[0] if changes else 0.0
        (loss - data).backward()
        return any(p.grad is not None and p.grad.abs().max() > 1e-9 for p in module.learner.values.nets.parameters())

    assert taught() and taught(transitions=0.0) and not taught(transitions=1.0)


def test_imagined_rewards_are_counted_as_the_data_s(run: Run) -> None:
    """Values learn both in deviations of the data's reward from its mean."""
    module, batch = behavior(run)
    task = module.prompts.rows(batch["prompt"])

    def imagined(scale: tuple[Tensor, Tensor] | None = None) -> float:
        torch.manual_seed(5)
        return module.imagined_loss(State.read(batch), task, False, scale)[1]["imagined_reward"].item()

    plain, mean, spread = imagined(), torch.full((10,), 0.3), torch.full((10,), 0.2)
    assert imagined((mean, spread)) == pytest.approx((plain - 0.3) / 0.2, rel=1e-4)


def test_similarities_are_sharpened_alike_in_the_data_and_in_imagination_and_the_true_reward_never(run: Run) -> None:
    """With a reward that is the same everywhere, what both sources count of it can be written down.

    Without data there is nothing to standardise by, and so nothing to sharpen.
    """
    oracle = torch.nn.Linear(28, 1)
    torch.nn.init.zeros_(oracle.weight)
    torch.nn.init.constant_(oracle.bias, 0.5)
    known = torch.zeros(10), torch.ones(10)
    for sharpness, kind, scale, wanted in (
        (1.0, None, known, sharpened(torch.tensor(0.5), 1.0)),
        (1.0, None, None, 0.5),
        (1.0, oracle, known, 0.5),
        (0.0, None, known, 0.5),
    ):
        module, batch = behavior(run, sharpness=sharpness, oracle=kind)
        module.oracle = oracle
        _, terms = module.imagined_loss(State.read(batch), module.prompts.rows(batch["prompt"]), False, scale)
        assert terms["imagined_reward"].item() == pytest.approx(float(wanted), rel=1e-5)


def test_rollouts_take_the_policy_s_actions_with_the_noise_of_the_targets(run: Run) -> None:
    module, batch = behavior(run)
    task, start = module.prompts.rows(batch["prompt"]), State.read(batch)
    torch.manual_seed(5)
    states, actions, _ = module.rollout(start, task, 3)
    assert states.h.shape[:2] == (10, 4) and not states.h.requires_grad
    torch.manual_seed(5)
    normal = torch.randn(10, 3, small_run.ACTIONS)
    for step in range(3):
        mean, _ = module.learner.actor(torch.cat([states.features[:, step], task.tau], -1))
        torch.testing.assert_close(actions[:, step], (mean + 0.2 * normal[:, step]).clamp(-1, 1))


def test_values_learned_in_imagination_move_the_policy(run: Run) -> None:
    """Nothing is learned from the data's rewards; with imagination's another policy comes out."""
    alone = ACTOR_CRITIC | {"transitions": 0.0}
    goal = Ask(prompt="whatever imagination says")
    made = [
        behave.run(config(actor_critic=alone | {"imagination": weight}), run, goal, Variant(method=method))
        for method, weight in (("bitagent", 1.0), ("other", 0.0))
    ]
    one, other = (artifact.tensors("actor_critic")["actor.net.0.weight"] for artifact in made)
    assert (one - other).abs().max() > 1e-6


# ---------------------------------------------------------------------------- the artifact


def test_policy_artifact(run: Run, whole: Artifact) -> None:
    assert whole.path == run.root / "policy" / "other-s0" / "walk"
    assert set(whole.meta["inputs"]) == {"pretrain:other-s0"}
    model = artifacts.load(run.root / "model" / "other-s0", "pretrain")
    assert {k: whole.meta["extra"][k] for k in ("dim_embedding", "dim_action", "backbone", "backbone_id")} == {
        k: model.meta["extra"][k] for k in ("dim_embedding", "dim_action", "backbone", "backbone_id")
    }
    for name, value in model.tensors("model").items():
        assert torch.equal(whole.tensors("model")[name], value), "the model stayed frozen"
    embedding = whole.tensors("prompt")["embedding"]
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(1))
    assert open_model(whole).dim_action == small_run.ACTIONS
    rows = small_run.logged(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    shown = {"imagined_reward", "data_reward", "value", "critic_data", "critic_imagined", "grad_norm", "grad_norm1"}
    assert shown <= rows[0].keys()


def test_one_policy_for_several_tasks(run: Run) -> None:
    made = behave.run(config(updates=2), run, Ask(many=("stand", "walk", "run")))
    assert made.path.name == "stand+walk+run" and made.tensors("prompt")["embedding"].shape == (3, 9)
    _, batch = behavior(run, prompts=3, decisions=64)
    assert set(batch["prompt"].tolist()) == {0, 1, 2}


def test_the_oracle_row_learns_from_the_true_reward_of_its_task_alone(run: Run) -> None:
    made = behave.run(config(updates=2), run, Ask(task="walk"), Variant(oracle=True))
    assert made.path == run.root / "policy" / "bitagent-oracle-s0" / "walk"
    with pytest.raises(BadInput, match=r"data of task run.*bitagent collect --source expert --task run"):
        behave.run(config(updates=2), run, Ask(task="run"), Variant(oracle=True))
    with pytest.raises(BadInput, match="use it with --task"):
        behave.run(config(updates=2), run, Ask(prompt="walk"), Variant(oracle=True))


def test_data_free_learning_reads_no_dataset(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behave, "open_training_data", lambda *_: pytest.fail("read the dataset"))
    made = behave.run(config(updates=2), run, Ask(task="walk"), Variant(data_free=True))
    assert made.path == run.root / "policy" / "bitagent-data-free-s0" / "walk"
    with pytest.raises(BadInput, match="leave out --data-free"):
        behave.run(config(), run, Ask(task="walk"), Variant(oracle=True, data_free=True))
    with pytest.raises(BadInput, match=r"behave.actor_critic.imagination=1"):
        behave.run(
            config(actor_critic=ACTOR_CRITIC | {"imagination": 0.0}), run, Ask(task="walk"), Variant(data_free=True)
        )


def test_data_free_starts_come_from_rollouts_that_begin_where_episodes_do(run: Run) -> None:
    """With horizon 1 and nothing drawn beyond the first step, a start is the model's own first state."""
    module, _ = behavior(run)
    task = module.prompts.rows(torch.zeros(256, dtype=torch.long))
    starts = module.dreamed_starts(task)
    assert starts.h.shape == (256, 16) and not starts.h.requires_grad
    first = module.model.first_state(task, None).h[0]
    is_first = (starts.h - first).abs().amax(-1) < 1e-6
    assert 0.01 < float(is_first.float().mean()) < 0.2  # one of 4 horizons' 17 states is the first
    module, _ = behavior(run)
    loss, terms = module({"prompt": torch.zeros(8, dtype=torch.long)})
    loss.backward()
    assert "data_reward" not in terms
    assert any(p.grad is not None and p.grad.any() for p in module.learner.values.parameters())


# ---------------------------------------------------------------------------- stopping and going on


def test_a_killed_run_goes_on_bit_for_bit(run: Run, whole: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at step 5, one update after the checkpoint of step 4; with the log of a run that never stopped."""

    small_run.at_step(monkeypatch, 5, small_run.die)
    with pytest.raises(small_run.Killed):
        behave.run(config(), run, Ask(task="walk"))
    path = run.root / "policy" / "bitagent-s0" / "walk"
    assert small_run.checkpoint_step(path) == 4
    torch.manual_seed(12345)
    resumed = behave.run(config(), run, Ask(task="walk"))
    assert trained(resumed) == trained(whole)
    assert small_run.logged(resumed) == small_run.logged(whole)
    assert not checkpoints.folder(path).exists()


def test_a_signal_saves_and_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run.at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match=r"SIGINT.*bitagent behave --preset walker --scale smoke") as stopped:
        behave.run(config(), run, Ask(task="stand"))
    assert stopped.value.exit_code == 130
    path = run.root / "policy" / "bitagent-s0" / "stand"
    assert small_run.checkpoint_step(path) == 3
    uninterrupted = behave.run(config(), run, Ask(task="stand"), Variant(method="other"))
    assert trained(behave.run(config(), run, Ask(task="stand"))) == trained(uninterrupted)


def test_nan_stops_with_the_step_and_leaves_the_checkpoint_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN from update 3 on; neither the log (every 5) nor the checkpoint of step 4 may come first unseen."""
    calls, real = [0], bitagent.text_reward

    def text_reward(*inputs: Any) -> Tensor:
        calls[0] += 1  # twice an update: the data's reward and the imagined
        return real(*inputs) * (float("nan") if calls[0] > 4 else 1.0)

    monkeypatch.setattr(bitagent, "text_reward", text_reward)
    path = run.root / "policy" / "bitagent-s0" / "run"
    with pytest.raises(BadInput, match=r"non-finite at step [45] .*--set behave\.lr") as stopped:
        behave.run(config(log_every=5), run, Ask(task="run"))
    assert str(checkpoints.folder(path)) in str(stopped.value)
    assert small_run.checkpoint_step(path) == 2


# ---------------------------------------------------------------------------- watching


def test_a_watched_policy_is_the_one_nobody_looked_at(
    run: Run, whole: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of the true task and the imagined reward in the log; the same weights bit for bit."""
    played: list[tuple[str, int]] = []

    def short(policy: LatentPolicy, domain: str, task: str, episodes: int, renderer: str) -> PlayedPolicy:
        assert renderer == "ray"
        env = tasks.make_env(domain, task, seed=0)
        env.reset(seed=0)
        frames = np.stack([env.render()] * episodes)
        assert policy.act(frames).shape == (episodes, env.action_dim)
        played.append((task, episodes))
        torch.rand(7)  # whatever an environment draws must not be missing afterwards
        return PlayedPolicy(np.full((episodes, 3), 200.0), None)

    monkeypatch.setattr(behave, "play_policy", short)
    watched = behave.run(config(watch_every=2), run, Ask(task="walk"), Variant(method="watched"))
    assert trained(watched) == trained(whole)
    assert played == [("walk", 2)] * 3
    rows = [row for row in small_run.logged(watched) if "watch/score_walk" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    about = tasks.get_task("walker", "walk")
    assert rows[0]["watch/score_walk"] == pytest.approx(tasks.normalized_score(about, 600.0), abs=1e-5)
    assert all(-1 <= row["watch/imagined_reward"] <= 1 for row in rows)


# ---------------------------------------------------------------------------- several processes


def test_two_processes_learn_the_policy_of_one(run: Run) -> None:
    """The stage under torchrun, imagination and data: one writes, both end, the weights are those of one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "stages" / "behave_worker.py"), str(run.root)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = behave.run(PARALLEL, run, Ask(task="run"), Variant(method="other"))
    made = artifacts.load(run.root / "policy" / "parallel-s0" / "run", "behave")
    assert made.tensors("actor_critic")["value_range"] > 0
    for part in ("actor_critic", "model"):
        for name, value in made.tensors(part).items():
            torch.testing.assert_close(value, wanted.tensors(part)[name], rtol=0, atol=1e-4, msg=name)
    before = small_run.model_artifact(run).tensors("model")["text_map.0.weight"]
    assert (made.tensors("model")["text_map.0.weight"] - before).abs().max() > 1e-4  # one round


def test_an_update_that_does_not_divide_is_refused() -> None:
    place = World(0, 4, torch.device("cpu"))
    with pytest.raises(BadInput, match=r"behave\.decisions = 10 does not divide over 4 processes"):
        behave.share(config(), place, 1)


def test_every_prompt_of_a_policy_gets_as_many_decisions_as_one_alone() -> None:
    found = behave.share(config(decisions=12, imagined=4), World(1, 2, torch.device("cpu")), 3)
    assert (found.decisions, found.imagined) == (18, 6)


# ---------------------------------------------------------------------------- reuse and refusal


def test_a_finished_policy_is_reused_and_another_configuration_refused(
    run: Run, whole: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = small_run.make_run(run.root, quiet=False)
    assert behave.run(config(), loud, Ask(task="walk"), Variant(method="other")).id == whole.id
    assert "reusing" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"behave\.horizon \(4 there, 3 now\).*--fresh"):
        behave.run(config(horizon=3), run, Ask(task="walk"), Variant(method="other"))


def test_missing_model_names_the_command_that_makes_it(run: Run) -> None:
    with pytest.raises(BadInput, match=r"model/bitagent-s7 .*bitagent pretrain --preset walker --scale smoke --seed 7"):
        behave.run(config(), small_run.make_run(run.root, seed=7), Ask(task="walk"))


def test_a_changed_backbone_or_dataset_is_refused(tmp_path: Path) -> None:
    run = small_run.make_run(tmp_path / "walker-smoke")
    small_run.make_data(run, "random")
    backbone = small_run.make_backbone(run)
    small_run.make_embeddings(run)
    pretrain.run(pretrain.Sections(small_run.pretrain_config(updates=1), model_config()), run)
    small_run.make_backbone(run, seed=1)
    with pytest.raises(BadInput, match=rf"with backbone offline-{backbone.id}.*bitagent pretrain .*--seed 0 --fresh"):
        behave.run(config(), run, Ask(task="walk"))
    small_run.make_backbone(run)
    storage.replace_folder(small_run.make_data(run, "other", first=50).path, run.root / "data" / "random")
    with pytest.raises(BadInput, match=r"data/random changed since.*bitagent pretrain .*--seed 0 --fresh"):
        behave.run(config(), run, Ask(task="walk"))


# ---------------------------------------------------------------------------- CUDA


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_both_stages_train_compiled_and_captured(tmp_path: Path) -> None:
    """Past the warm-up, updates are replays of a CUDA graph: anything that waits for the host breaks the capture."""
    run = small_run.make_run(tmp_path / "walker-smoke", device="cuda")
    small_run.make_inputs(run)
    model = pretrain.run(
        pretrain.Sections(
            small_run.pretrain_config(compile="on", bf16=True),
            model_config(),
        ),
        run,
    )
    policy = behave.run(
        config(compile="on", bf16=True, backward={"every": 5, "updates": 2, "lr": 1e-3}), run, Ask(task="walk")
    )
    for made in (model, policy):
        rows = small_run.logged(made)
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        assert all(np.isfinite(list(row.values())).all() for row in rows)
        assert len({row["loss"] for row in rows}) == 6, "a replay that reads an old batch repeats its loss"
