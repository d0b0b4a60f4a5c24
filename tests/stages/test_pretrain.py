"""Pretraining as a stage: resumes bit for bit, refuses what does not fit, stops before it saves nonsense."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bitagent_cli.presets import resolve as load_preset
from stages import pretrain
from stages.backbones import load_backbone
from stages.backbones.embeddings import open_training_data
from stages.behave import learn_from_pixels
from stages.core import bitagent
from stages.core.joint_model import JointModel
from stages.core.objective import choose_prompts
from stages.core.world_model import Noise, WorldModel
from stages.data.episodes import Dataset, held_out_episodes
from stages.data.sampler import Sampler, Windows
from stages.methods import open_model
from stages.policies.goals import Ask, Variant, parse_goal
from stages.runtime import artifacts, checkpoints
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput, Interrupted
from tests.core.helpers import dynamics_config, model_config, objective_config
from tests.stages import small_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = small_run.make_run(tmp_path_factory.mktemp("pretrain") / "walker-smoke")
    small_run.make_inputs(made)
    return made


def train(run: Run, method: str, **changes: Any) -> Artifact:
    return pretrain.run(pretrain.Sections(small_run.pretrain_config(**changes), model_config()), run, method=method)


@pytest.fixture(scope="module")
def whole(run: Run) -> Artifact:
    """Six updates without a break."""
    return train(run, "whole")


def weights(artifact: Artifact) -> str:
    return str(artifact.meta["files"]["model.safetensors"])


def test_frames_of_another_size_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """Before the first update, by the stages that read frames; the embeddings are made all the same."""
    run = small_run.make_run(tmp_path / "walker-smoke")
    small_run.make_data(run, "random", size=128)
    small_run.make_backbone(run)
    small_run.make_embeddings(run)
    said = "data/random holds frames of 128 pixels and the model reads 64: collect with --size 64"
    with pytest.raises(BadInput, match=said):
        train(run, "whole")
    config = load_preset("walker", "smoke", [])
    with pytest.raises(BadInput, match=said):
        learn_from_pixels(config.offline_rl, "offline", run, parse_goal("walker", Ask("walk")), Variant("td3"))


# ---------------------------------------------------------------------------- what it makes


def test_model_artifact(run: Run, whole: Artifact) -> None:
    assert whole.path == run.root / "model" / "whole-s0"
    extra = whole.meta["extra"]
    assert (extra["dim_embedding"], extra["dim_action"], extra["backbone"]) == (9, small_run.ACTIONS, "offline")
    assert extra["backbone_id"].startswith("offline-")
    assert set(whole.meta["inputs"]) == {
        "collect:random", "collect:expert-walk", "embed:random", "embed:expert-walk",
    }  # fmt: skip
    model = open_model(whole)
    torch.manual_seed(run.seed)
    untrained = type(model)(model.config, 9, small_run.ACTIONS)
    for name, parameter in untrained.named_parameters():
        assert not torch.equal(dict(model.named_parameters())[name], parameter), f"{name} never moved"
    rows = small_run.logged(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {"loss", "kl", "image", "joint_behavior", "text_imagination", "grad_norm"} <= rows[0].keys()
    assert {"loss", "kl_nats", "rollout_nats"} <= rows[6].keys() and "image" not in rows[6]


def test_the_last_updates_move_the_dynamics_alone(run: Run, whole: Artifact) -> None:
    off = train(run, "joint", dynamics=dynamics_config(updates=0))
    model, joint, last = open_model(whole), off.tensors("model"), whole.tensors("model")
    assert isinstance(model, JointModel)
    own = {id(p) for p in model.dynamics()}
    for name, parameter in model.named_parameters():
        assert torch.equal(joint[name], last[name]) == (id(parameter) not in own), name
    assert not checkpoints.folder(whole.path).exists()


def semantics_of(model: WorldModel, dataset: Dataset) -> Tensor:
    """e (N, dim_e) of every frame, none like another."""
    with torch.no_grad():
        return model.adapter(torch.from_numpy(dataset.rows("embedding", np.arange(dataset.n_frames))).float())


@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_the_share_of_segments_that_show_their_prompt_is_the_one_asked_for(tmp_path: Path, quantile: float) -> None:
    """Of segments of the very length that training draws: a mean of frames spreads less than the frames do."""
    run = small_run.make_run(tmp_path / "walker-smoke")
    small_run.make_data(run, "random")
    small_run.make_data(run, "expert-walk", "walk", episodes=12, first=100, rows=30)
    small_run.make_backbone(run)
    small_run.make_embeddings(run)
    data, embeddings = run.root / "data", run.root / "embeddings" / "offline"
    names = ("random", "expert-walk")
    dataset = Dataset.open([data / n for n in names], run.domain, [embeddings / n for n in names])
    config = small_run.pretrain_config(label_quantile=quantile, holdout=0.2)
    held_out = held_out_episodes(dataset, config.holdout)
    labels = pretrain.make_labels(dataset, run, config, held_out)
    assert labels.known.tolist() == [False, True] and not labels.text[0].any()
    windows = Windows(config.start_fraction, [0, 1], held_out)
    batch = Sampler(dataset, 4096, config.length, 7, windows, ("embedding",)).sample(0)
    labelled = objective_config(pseudo_text=0.0)
    shown = choose_prompts(batch["embedding"].float(), batch["task"], labels, labelled, Noise("cpu")).shown
    assert 1 - shown.mean().item() == pytest.approx(quantile, abs=0.03)
    e = torch.nn.functional.normalize(batch["embedding"].float(), dim=-1)
    frames = torch.quantile(e @ labels.text[1], quantile)
    assert abs(labels.threshold[1] - frames) > 0.002  # the quantile of single frames is another


def among(found: Tensor, e: Tensor) -> Tensor:
    """Which rows of found (N, dim_e) are rows of e."""
    return torch.cdist(found.double(), e.double()).min(1).values < 1e-5


def test_it_keeps_the_mean_semantics_half_of_random_behaviour(run: Run, whole: Artifact) -> None:
    model, dataset = open_model(whole), open_training_data(whole, run)
    assert isinstance(model, JointModel)
    held_out = held_out_episodes(dataset, 0.0)
    image, found, semantics = pretrain.origin_frames(None, dataset, held_out, torch.device("cpu"))
    assert torch.equal(semantics, found)  # the backbone is frozen
    gates, found = model.task(found).gates, model.adapter(found)
    torch.testing.assert_close(model.semantic_origin, found.mean(0))
    s = model.rssm.posterior(image).argmax(-1)
    s = torch.nn.functional.one_hot(s, model.config.categories).flatten(-2).float()
    stem = model.decoder.stem(model.fuse(found, s, gates))
    torch.testing.assert_close(model.decoded_origin, stem.mean(0).detach(), rtol=1e-4, atol=1e-4)
    e = semantics_of(model, dataset)
    aimless = torch.cat([e[p.first_row : p.last_row] for p in dataset.parts if p.source == "random"])
    of_all, of_random = found.chunk(2)
    assert among(of_all, e).all() and 0.3 < among(of_all, aimless).float().mean() < 0.7
    assert among(of_random, aimless).all()


def test_without_random_behaviour_the_mean_is_of_all_training_episodes(run: Run, whole: Artifact) -> None:
    model, (data, embeddings) = open_model(whole), (run.root / "data", run.root / "embeddings" / "offline")
    dataset = Dataset.open([data / "expert-walk"], run.domain, [embeddings / "expert-walk"])
    e, held_out = semantics_of(model, dataset), held_out_episodes(dataset, 0.5)
    assert held_out.any() and not held_out.all()
    kept = torch.from_numpy(np.repeat(~held_out, dataset.episode_info.length))  # (N,)
    _, found, _ = pretrain.origin_frames(None, dataset, held_out_episodes(dataset, 0.5), torch.device("cpu"))
    found = model.adapter(found)
    assert among(found, e[kept]).all() and among(e[kept], found).all()


def test_the_seed_decides(run: Run, whole: Artifact) -> None:
    again = train(run, "again")
    assert weights(again) == weights(whole)
    other = train(small_run.make_run(run.root, seed=1), "again")
    assert weights(other) != weights(whole)


# ---------------------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize(("at", "saved"), [(5, 4), (7, 6), (8, 7)])
def test_a_killed_run_goes_on_bit_for_bit(
    at: int, saved: int, run: Run, whole: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed one update after a checkpoint: of the joint training, of its end, and of the dynamics alone."""
    every = 7 if saved == 7 else 2
    small_run.at_step(monkeypatch, at, small_run.die)
    with pytest.raises(small_run.Killed):
        train(run, f"killed-{at}", checkpoint_every=every)
    path = run.root / "model" / f"killed-{at}-s0"
    assert not path.exists()
    assert small_run.checkpoint_step(path) == saved
    torch.manual_seed(12345)
    resumed = train(run, f"killed-{at}", checkpoint_every=every)
    assert weights(resumed) == weights(whole)
    assert not checkpoints.folder(path).exists()


def test_the_log_of_a_resumed_run_is_that_of_a_whole_one(
    run: Run, whole: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run.at_step(monkeypatch, 5, small_run.die)
    with pytest.raises(small_run.Killed):
        train(run, "logged")
    assert small_run.logged(train(run, "logged")) == small_run.logged(whole)


def test_a_signal_saves_and_says_how_to_go_on(run: Run, whole: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run.at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"SIGTERM.*bitagent pretrain --preset walker --scale smoke") as stopped:
        train(run, "stopped")
    assert stopped.value.exit_code == 143
    path = run.root / "model" / "stopped-s0"
    assert small_run.checkpoint_step(path) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert weights(train(run, "stopped")) == weights(whole)


def test_a_checkpoint_of_another_configuration_is_not_continued(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run.at_step(monkeypatch, 5, small_run.die)
    with pytest.raises(small_run.Killed):
        train(run, "changed")
    changed = train(run, "changed", lr=2e-3)
    assert [row["step"] for row in small_run.logged(changed)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert weights(changed) == weights(train(run, "unchanged", lr=2e-3))


def test_two_processes_make_the_model_of_one(run: Run, whole: Artifact) -> None:
    """The stage under torchrun: one writes, both end, and the weights are those of the same global batches."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = str(ROOT / "tests" / "stages" / "pretrain_worker.py")
    done = subprocess.run(
        [*command, worker, str(run.root), "parallel", "adapter"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = whole.tensors("model")
    for name, value in artifacts.load(run.root / "model" / "parallel-s0", "pretrain").tensors("model").items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-4, msg=name)


# ---------------------------------------------------------------------------- NaN guard


def poison(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The joint loss turns into NaN after so many updates, as a diverging run's would."""
    calls, real = [0], bitagent.joint_loss

    def joint_loss(*inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        calls[0] += 1
        total, terms = real(*inputs)
        return (total * float("nan") if calls[0] > after else total), terms

    monkeypatch.setattr(bitagent, "joint_loss", joint_loss)


@pytest.mark.parametrize("log_every", [1, 5])
def test_nan_stops_with_the_step_the_terms_and_the_checkpoint_before(
    run: Run, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    """NaN from update 3 on; the checkpoint of step 2 stays, whether step 3 or step 4 is the first looked at."""
    poison(monkeypatch, after=2)
    method = f"nan-{log_every}"
    path = run.root / "model" / f"{method}-s0"
    with pytest.raises(BadInput, match=r"non-finite at step [34] .*kl=.*--set pretrain\.lr") as stopped:
        train(run, method, log_every=log_every)
    assert str(checkpoints.folder(path)) in str(stopped.value)
    assert small_run.checkpoint_step(path) == 2
    kept = load_file(str(checkpoints.folder(path) / "model.safetensors"))
    assert all(value.isfinite().all() for value in kept.values())


def test_nan_before_any_checkpoint_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, after=0)
    with pytest.raises(BadInput, match=r"step 1 .*no checkpoint was written yet"):
        train(run, "nan-first")


# ---------------------------------------------------------------------------- reuse and refusal


def test_a_finished_model_is_reused(run: Run, whole: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    loud = small_run.make_run(run.root, quiet=False)
    before = (whole.path / "artifact.json").read_bytes()
    assert train(loud, "whole").id == whole.id
    assert "reusing" in capsys.readouterr().out
    assert (whole.path / "artifact.json").read_bytes() == before


def test_another_configuration_is_refused_by_name(run: Run, whole: Artifact) -> None:
    with pytest.raises(BadInput, match=r"pretrain\.lr \(0\.001 there, 0\.01 now\).*--fresh"):
        train(run, "whole", lr=0.01)
    with pytest.raises(BadInput, match=r"model\.unimix"):
        pretrain.run(pretrain.Sections(small_run.pretrain_config(), model_config(unimix=0.02)), run, method="whole")


def test_fresh_makes_it_again(run: Run) -> None:
    first = train(run, "fresh", updates=2)
    second = train(small_run.make_run(run.root, fresh=True), "fresh", updates=3)
    assert second.path == first.path and weights(second) != weights(first)


def test_missing_inputs_name_the_command_that_makes_them(tmp_path: Path) -> None:
    run = small_run.make_run(tmp_path / "walker-smoke")
    with pytest.raises(BadInput, match=r"no data in .*bitagent collect --preset walker --scale smoke"):
        train(run, "missing")
    small_run.make_data(run, "random")
    with pytest.raises(BadInput, match=r"embeddings/offline/random.*bitagent embed .*--backbone offline"):
        train(run, "missing")


def test_data_of_another_domain_is_refused(run: Run) -> None:
    with pytest.raises(BadInput, match=r"domain walker.*not cheetah"):
        train(small_run.make_run(run.root, domain="cheetah"), "elsewhere")


def test_sequences_longer_than_every_episode_are_refused(run: Run) -> None:
    with pytest.raises(BadInput, match=r"no episode has 99 rows"):
        train(run, "long", length=99)


def test_imported_embeddings_that_name_no_backbone_are_taken_for_the_runs_own(tmp_path: Path) -> None:
    run = small_run.make_run(tmp_path / "walker-smoke")
    small_run.make_inputs(run)
    for data in sorted((run.root / "data").iterdir()):
        path = run.root / "embeddings" / "offline" / data.name
        config, files = (
            artifacts.load(path).meta["config"],
            {f.name: f.read_bytes() for f in path.glob("*.safetensors")},
        )
        shutil.rmtree(path)
        made_from = [artifacts.load(data)]
        with artifacts.writing(path, "embed", domain="walker", config=config, seed=0, inputs=made_from) as draft:
            for name, content in files.items():
                (draft / name).write_bytes(content)
    made = pretrain.run(pretrain.Sections(small_run.pretrain_config(updates=1), model_config()), run)
    assert made.meta["extra"]["backbone_id"] == load_backbone("offline", run.root, "cpu").id
