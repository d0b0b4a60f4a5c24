"""Every method through the stages at tiny size: pretrain where there is a model, behave, evaluate, act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitagent_cli import presets
from stages import behave, evaluate, methods, pretrain
from stages.backbones.tuning import ADAPTER
from stages.data.episodes import Dataset
from stages.data.inputs import find_inputs
from stages.data.sampler import Sampler
from stages.methods import model_free
from stages.policies import goals
from stages.policies.goals import Ask, Variant
from stages.policies.policy import Policy
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from tests.core.helpers import model_config, objective_config
from tests.stages import small_run
from tests.stages.test_behave import config as behave_config

ABLATIONS = ("ablation-base", "ablation-mllm", "ablation-tamf", "bitagent-no-tamf")
BASELINES = ("genrl", "wm-clip", "founder")
MODEL_FREE = ("iql", "td3-bc", "td3")
EVALUATE = evaluate.Config(episodes=2, sample=False, semantics_every=1, video=False, renderer="auto")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = small_run.make_run(tmp_path_factory.mktemp("methods") / "walker-smoke")
    small_run.make_inputs(made)
    return made


@pytest.fixture(autouse=True)
def _short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "CONTROL_STEPS", 12)


def offline(method: str = "td3", **changes: Any) -> model_free.OfflineRLConfig:
    small = {"updates": 6, "bf16": False, "log_every": 1, "checkpoint_every": 2, "depth": 2}
    return presets.resolve("walker", "smoke", (), method).offline_rl.model_copy(update=small | changes)


def make_model(run: Run, method: str) -> Artifact:
    preset = presets.resolve("walker", "smoke", (), method)
    weights = preset.pretrain.objective
    objective = objective_config(mllm=weights.mllm, joint_behavior=weights.joint_behavior)
    config = small_run.pretrain_config(updates=2, objective=objective)
    sizes = model_config(fusion=preset.model.fusion)
    return pretrain.run(pretrain.Sections(config, sizes, constants=preset.groundings), run, method=method)


def learn(run: Run, method: str, **options: Any) -> Artifact:
    changes = options.pop("changes", {})
    space = presets.resolve("walker", "smoke", (), method).behave.space
    variant = Variant(method, oracle=options.pop("oracle", False), data_free=options.pop("data_free", False))
    ask = Ask(**{"task": "walk"} | options)
    config = behave_config(updates=2, space=space)
    return behave.run(config, run, ask, variant, offline(method, **changes), "offline")


def trained(policy: Artifact) -> tuple[str, str]:
    return policy.meta["files"]["encoder.safetensors"], policy.meta["files"]["actor.safetensors"]


@pytest.mark.parametrize("method", [*ABLATIONS, *BASELINES, *MODEL_FREE])
def test_a_method_learns_is_scored_and_acts(run: Run, method: str) -> None:
    if method not in MODEL_FREE:
        model = make_model(run, method)
        assert model.meta["config"]["method"] == method
    policy = learn(run, method)
    assert policy.path == run.root / "policy" / f"{method}-s0" / "walk"
    rows = small_run.logged(policy)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    scores = evaluate.run(EVALUATE, run, Ask(task="walk"), method=method)
    assert scores.meta["extra"]["rows"][0]["method"] == method
    assert scores.tensors("episodes")["walk.reward"].shape == (2, 6)
    player = Policy.load(policy.path)
    frame = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    one = player.act(frame)
    assert one.shape == (6,) and np.abs(one).max() <= 1
    player.reset()
    np.testing.assert_allclose(player.act(np.stack([frame, frame]))[1], one, atol=1e-5)


def test_the_constants_of_a_grounding_are_recorded_and_decide(run: Run) -> None:
    found = make_model(run, "genrl")
    assert found.meta["config"]["grounding"] == {"window": 8, "kl_balance": 0.8, "noise": 0.5}
    other = presets.resolve("walker", "smoke", ["groundings.genrl.noise=0.1"]).groundings
    with pytest.raises(BadInput, match=r"grounding\.noise \(0\.5 there, 0\.1 now\)"):
        pretrain.run(
            pretrain.Sections(small_run.pretrain_config(updates=2), model_config(), constants=other),
            run,
            method="genrl",
        )
    with pytest.raises(BadInput, match="section `groundings`"):
        pretrain.run(pretrain.Sections(small_run.pretrain_config(), model_config()), run, method="genrl")


def test_a_baseline_trains_nothing_of_the_backbone(run: Run) -> None:
    tuned = ADAPTER.model_copy(update={"train": "full"})
    with pytest.raises(BadInput, match=r"genrl reads a frozen backbone: leave out --set mllm\.train=full"):
        constants = presets.resolve("walker", "smoke").groundings
        pretrain.run(
            pretrain.Sections(small_run.pretrain_config(), model_config(), mllm=tuned, constants=constants),
            run,
            method="genrl",
        )
    assert methods.tuned_by("genrl-transfer-cheetah", ADAPTER).train == "none"
    assert all(methods.tuned_by(method, tuned) is tuned for method in ("bitagent", "ablation-mllm"))


def test_a_baseline_dreams_up_its_own_starts(run: Run) -> None:
    make_model(run, "founder")
    policy = learn(run, "founder", data_free=True)
    assert policy.path.parent.name == "founder-data-free-s0"
    assert "data_return" not in small_run.logged(policy)[0]
    Policy.load(policy.path).act(np.zeros((3, 64, 64), np.uint8))
    with pytest.raises(BadInput, match="td3 learns from the dataset alone"):
        learn(run, "td3", data_free=True)


def test_the_command_that_goes_on_is_that_of_the_label(run: Run) -> None:
    goal = behave.parse_goal("walker", Ask("walk"))
    for label, options in {
        "bitagent": "", "iql": " --method iql", "iql-oracle": " --method iql --oracle-reward",
        "bitagent-data-free": " --data-free", "transfer-cheetah": " --method transfer-cheetah",
    }.items():  # fmt: skip
        wanted = f"bitagent behave --preset walker --scale smoke --task walk{options} --seed 0"
        assert goals.behave_command(run, goal, label) == wanted


# ---------------------------------------------------------------------------- model-free


def test_a_model_free_policy_needs_no_model_and_says_where_it_comes_from(run: Run) -> None:
    policy = learn(run, "td3")
    assert {key.split(":")[0] for key in policy.meta["inputs"]} == {"collect", "embed"}
    about = policy.meta["config"]
    assert (about["method"], about["backbone"], about["tasks"]) == ("td3", "offline", ["walk"])
    with pytest.raises(BadInput, match=r"td3 learns from pixels without a world model: .*bitagent behave"):
        make_model(run, "td3")
    with pytest.raises(BadInput, match=r"one prompt a policy"):
        learn(run, "td3", task=None, many=("walk", "run"))


def test_the_oracle_learns_from_the_true_reward_of_its_task_alone(run: Run) -> None:
    policy = learn(run, "iql", oracle=True)
    assert policy.path.parent.name == "iql-oracle-s0"
    assert trained(policy) != trained(learn(run, "iql"))
    with pytest.raises(BadInput, match=r"data of task run.*bitagent collect --source expert --task run"):
        learn(run, "iql", task="run", oracle=True)
    evaluate.run(EVALUATE, run, Ask(task="walk"), method="iql-oracle")
    with pytest.raises(BadInput, match="iql-oracle names what --oracle-reward made: give --method iql --oracle-reward"):
        learn(run, "iql-oracle")
    with pytest.raises(BadInput, match="deterministic policy"):
        Policy.load(policy.path, sample=True)


def test_goals_of_one_name_share_no_policy(run: Run, tmp_path: Path) -> None:
    """A prompt or a video that is called like a task, and two videos of one name, are other goals."""
    videos = [tmp_path / name / "walk.gif" for name in ("one", "other")]
    for value, video in enumerate(videos):
        video.parent.mkdir()
        video.write_bytes(bytes([value]) * 9)
    asks = [Ask("walk"), Ask(prompt="walk"), *(Ask(video=str(video)) for video in videos)]
    assert len({behave.parse_goal("walker", ask).name for ask in asks}) == 4
    learn(run, "td3")
    for ask in asks[1:]:
        with pytest.raises(BadInput, match=r"does not exist; make it with: bitagent behave .*--(prompt|video)"):
            evaluate.run(EVALUATE, run, ask, method="td3")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"many": ("stand", "run")}, "--tasks stand,run --seed 0"),
        ({"prompt": "hop along"}, '--prompt "hop along" --seed 0'),
        ({"task": "run", "method": "td3-oracle"}, "--task run --method td3 --oracle-reward --seed 0"),
    ],
)
def test_a_missing_policy_names_the_command_that_makes_it(run: Run, options: dict[str, Any], wanted: str) -> None:
    options = dict(options)
    with pytest.raises(BadInput) as refused:
        method = options.pop("method", "bitagent")
        evaluate.run(EVALUATE, run, Ask(**options), method=method)
    assert str(refused.value).endswith(f"make it with: bitagent behave --preset walker --scale smoke {wanted}")


@pytest.mark.parametrize("oracle", [False, True])
def test_reward_is_the_sharpened_similarity_or_the_true_one(run: Run, oracle: bool) -> None:
    prompt, (data, embeddings) = F.normalize(torch.arange(1.0, 10.0), dim=0), find_inputs(run, "offline")
    dataset = Dataset.open([a.path for a in data], "walker", [a.path for a in embeddings])
    rows = np.arange(dataset.n_frames)
    e = F.normalize(torch.from_numpy(dataset.rows("embedding", rows)).float(), dim=-1)
    values = torch.from_numpy(dataset.rows("reward", rows)) if oracle else e @ prompt
    mine = [p for p in dataset.parts if p.task == "walk" or not oracle]
    used = torch.cat([values[p.first_row : p.last_row] for p in mine])
    batch = Sampler(dataset, 8, 5, 0).sample(0)
    found = model_free.make_reward(dataset, prompt, "walk" if oracle else "", 1.0, torch.device("cpu"))(batch)
    starts, _ = Sampler(dataset, 8, 5, 0).draw(0)
    wanted = (values[torch.from_numpy(starts[:, None] + np.arange(5))] - used.mean()) / used.std()
    if not oracle:  # a log-normal's mean and deviation at sharpness 1
        wanted = (wanted.exp() - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    torch.testing.assert_close(found, wanted.float(), atol=1e-4, rtol=1e-4)


def test_a_killed_model_free_run_goes_on_bit_for_bit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learn(run, "td3-bc", task="stand")
    other = small_run.make_run(run.root, seed=0)
    small_run.at_step(monkeypatch, 5, small_run.die)
    path = Path(run.root / "policy" / "td3-bc-s0" / "run")
    with pytest.raises(small_run.Killed):
        learn(other, "td3-bc", video=None, task="run")
    assert small_run.checkpoint_step(path) == 4
    torch.manual_seed(12345)
    resumed = learn(other, "td3-bc", task="run")
    assert [row["step"] for row in small_run.logged(resumed)] == [1, 2, 3, 4, 5, 6]
    again = learn(small_run.make_run(run.root, fresh=True), "td3-bc", task="run")
    assert trained(resumed) == trained(again)
    assert trained(resumed) != trained(whole), "another prompt, another reward"
