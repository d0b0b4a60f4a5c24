"""A backbone tuned by the joint losses: trained, resumed, saved with the model, and used by all that comes after."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import behave, embed, evaluate, pretrain, transfer
from stages.backbones import Backbone, load_backbone
from stages.backbones.embeddings import open_training_data
from stages.backbones.tuning import MllmConfig, Mode, make_trainable, retune, tuned_tensors
from stages.behave import encode_data, posterior_modes
from stages.data.episodes import Dataset
from stages.methods import open_model
from stages.policies.goals import Ask, Variant
from stages.policies.policy import LatentPolicy, Policy
from stages.pretrain import Sections
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from tests.backbones.tiny import save_tiny
from tests.core.helpers import model_config
from tests.stages import small_run
from tests.stages.test_behave import config as behave_config

ROOT = Path(__file__).resolve().parents[2]
TUNED: tuple[Mode, ...] = ("last-k", "lora")


def mllm(mode: Mode) -> MllmConfig:
    return MllmConfig(train=mode, last_k=2, lora_rank=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = small_run.make_run(tmp_path_factory.mktemp("tuned") / "walker-smoke")
    small_run.make_inputs(made)
    return made


def train(run: Run, mode: Mode, method: str = "") -> Artifact:
    if mode == "lora":
        pytest.importorskip("peft")
    return pretrain.run(
        pretrain.Sections(small_run.pretrain_config(), model_config(), mllm=mllm(mode)), run, method=method or mode
    )


def files(artifact: Artifact) -> dict[str, str]:
    return dict(artifact.meta["files"])


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("mode", TUNED)
def test_the_model_holds_what_was_tuned(run: Run, mode: Mode) -> None:
    made = train(run, mode)
    assert made.meta["config"]["mllm"]["train"] == mode
    assert not any(name.startswith("adapter") for name in made.tensors("model"))
    fresh = load_backbone("offline", run.root, "cpu")
    torch.manual_seed(0)
    make_trainable(fresh, mode, k=2, rank=2)
    before, after = tuned_tensors(fresh), made.tensors("backbone")
    assert before.keys() == after.keys() and len(after) >= 3
    for name, tensor in after.items():
        assert tensor.isfinite().all() and not torch.equal(tensor, before[name]), f"{name} never moved"


def test_a_killed_run_resumes_to_the_same_bits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mode: Mode = "lora"
    whole = train(run, mode)
    small_run.at_step(monkeypatch, 5, small_run.die)
    with pytest.raises(small_run.Killed):
        train(run, mode, f"killed-{mode}")
    torch.manual_seed(12345)
    assert files(train(run, mode, f"killed-{mode}")) == files(whole)


def test_two_processes_tune_as_one(run: Run) -> None:
    whole = train(run, "last-k")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = str(ROOT / "tests" / "stages" / "pretrain_worker.py")
    done = subprocess.run(
        [*command, worker, str(run.root), "parallel", "last-k"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = artifacts.load(run.root / "model" / "parallel-s0", "pretrain")
    for group in ("model", "backbone"):
        wanted = whole.tensors(group)
        for name, value in found.tensors(group).items():
            # Where a gradient is next to nothing, Adam makes a step of its rounding.
            apart = (value - wanted[name]).abs()
            assert (apart > 1e-4).float().mean() < 1e-3 and apart.max() < 1e-3, name


def test_without_training_the_embedding_is_the_backbones(run: Run) -> None:
    made = train(run, "none")
    assert "backbone.safetensors" not in made.meta["files"]
    model, e = open_model(made), torch.randn(2, 3, 9)
    assert torch.equal(model.adapter(e), e)
    assert not list(model.adapter.parameters())


def test_another_mode_is_refused_by_name(run: Run) -> None:
    made = train(run, "last-k")
    with pytest.raises(BadInput, match=r"mllm.*last-k.*--fresh"):
        pretrain.run(
            pretrain.Sections(small_run.pretrain_config(), model_config()), run, method=made.meta["config"]["method"]
        )


def test_a_backbone_trained_again_needs_new_embeddings(run: Run, tmp_path: Path) -> None:
    """Its stored embeddings, the frozen side of the prompts, would be another backbone's."""
    root = tmp_path / "walker-smoke"
    shutil.copytree(run.root, root)
    shutil.rmtree(root / "backbone")
    again = small_run.make_run(root)
    small_run.make_backbone(again, seed=1)
    with pytest.raises(BadInput, match=r"make it again with: bitagent embed .*--backbone offline --fresh"):
        train(again, "last-k", "again")


# ---------------------------------------------------------------------------- what comes after


def tuned_backbone(run: Run, made: Artifact) -> Backbone:
    backbone = load_backbone("offline", run.root, "cpu")
    assert retune(backbone, made)
    return backbone


@pytest.mark.parametrize("mode", TUNED)
def test_the_data_is_read_through_the_tuned_backbone(run: Run, mode: Mode) -> None:
    made = train(run, mode)
    dataset, backbone = open_training_data(made, run), tuned_backbone(run, made)
    frozen = load_backbone("offline", run.root, "cpu")
    for number in range(dataset.n_episodes):
        frames = dataset.episode(number).image
        rows = dataset.episode_start[number] + np.arange(dataset.episode_length[number])
        found = torch.from_numpy(dataset.rows("embedding", rows)).float()
        torch.testing.assert_close(found, backbone.encode_episode(frames, 64), rtol=0, atol=1e-3)
        assert (found - frozen.encode_episode(frames, 64)).abs().max() > 1e-2


def test_lost_embeddings_are_made_again(run: Run) -> None:
    made = train(run, "last-k")
    folder = made.path.parent / f"{made.path.name}.embeddings" / "random"
    before = files(artifacts.load(folder, "embed"))
    (folder / "artifact.json").unlink()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    open_training_data(made, run)
    assert files(artifacts.load(folder, "embed")) == before


def test_from_prompt_to_score(run: Run) -> None:
    """Behave on its latents; the policy filters frames to those very latents; evaluate scores it."""
    mode: Mode = "lora"
    made = train(run, mode)
    policy_artifact = behave.run(behave_config(updates=2), run, Ask(task="walk"), Variant(method=mode))
    assert files(policy_artifact)["backbone.safetensors"] == files(made)["backbone.safetensors"]
    policy = Policy.load(policy_artifact.path)
    assert policy.backbone_size == 64
    dataset = open_training_data(made, run)
    cpu = torch.device("cpu")
    modes = posterior_modes(policy.model, dataset, cpu, quiet=True)
    latents = encode_data(policy.model, dataset, modes, policy.contexts, 4, cpu)
    frames = dataset.episode(0).image
    assert frames is not None
    for row, frame in enumerate(frames):
        policy.action = torch.from_numpy(dataset.rows("action", np.array([row])))
        policy.act(frame)
        assert policy.state is not None
        torch.testing.assert_close(policy.state.e[0], latents.e[row].float(), rtol=0, atol=2e-3)
        torch.testing.assert_close(policy.state.z[0], latents.z[0, row].float(), rtol=0, atol=2e-2)
    scored = evaluate.run(
        evaluate.Config(episodes=1, sample=False, semantics_every=0, video=False, renderer="auto"),
        run,
        Ask(task="walk"),
        method=mode,
    )
    assert scored.meta["config"]["evaluate"]["semantics_every"] == 1  # in the loop it read every frame
    (row_of_table,) = scored.meta["extra"]["rows"]
    assert row_of_table["policy"] == policy_artifact.id and np.isfinite(row_of_table["return"])


@pytest.mark.parametrize("frames", ["native", "enlarged"])
def test_a_policy_reads_the_frames_that_its_data_was_embedded_from(tmp_path: Path, frames: str) -> None:
    """Natively the world is rendered at the backbone's 32 pixels; else it reads the model's 64, bilinearly resized."""
    clip = str(tmp_path / "clip")
    save_tiny("clip", Path(clip))
    here = small_run.make_run(tmp_path / "walker-smoke")
    small_run.make_data(here, "random")
    embed.run(
        embed.Config(
            backbone=clip,
            frames=frames,
            batch=64,
            stride=1,
            workers=1,
            offline=embed.OfflineConfig(**small_run.OFFLINE),
        ),
        here,
    )
    pretrain.run(Sections(small_run.pretrain_config(backbone=clip, updates=2), model_config()), here)
    made = behave.run(behave_config(updates=2), here, Ask("walk"))
    policy = Policy.load(made.path)
    assert isinstance(policy, LatentPolicy)
    assert (policy.backbone_size, policy.backbone.enlarged) == ((32, False) if frames == "native" else (64, True))
    assert policy.backbone.id == made.meta["extra"]["backbone_id"]
    if frames == "enlarged":
        assert policy.backbone.resample == "bilinear"
        dataset = open_training_data(artifacts.load(here.root / "model" / "bitagent-s0"), here)
        image = dataset.episode(0).image
        assert image is not None
        for row, frame in enumerate(image[:10]):
            policy.act(frame)
            assert policy.state is not None
            wanted = policy.model.adapter(torch.from_numpy(dataset.rows("embedding", np.array([row]))).float())
            torch.testing.assert_close(policy.held, wanted, rtol=0, atol=2e-3)


# ---------------------------------------------------------------------------- another body, another kind of backbone


def test_a_tuned_backbone_goes_on_from_there_on_another_body(tmp_path: Path) -> None:
    """A small CLIP, shared by both bodies, reads 64-pixel frames at its own size."""
    clip = str(tmp_path / "clip")
    save_tiny("clip", Path(clip))
    runs = {name: small_run.make_run(tmp_path / f"{name}-smoke", domain=name) for name in ("walker", "cheetah")}
    sizes = embed.Config(
        backbone=clip, frames="native", batch=64, stride=1, workers=1, offline=embed.OfflineConfig(**small_run.OFFLINE)
    )
    for one in runs.values():
        small_run.make_data(one, "random")
        embed.run(sizes, one)
    training = small_run.pretrain_config(backbone=clip, updates=2)
    source = pretrain.run(pretrain.Sections(training, model_config(), mllm=mllm("last-k")), runs["walker"])
    still = small_run.pretrain_config(backbone=clip, lr=0.0)
    options = {"src": "walker", "source": runs["walker"].root}
    with pytest.raises(BadInput, match=r"--set mllm\.train=last-k"):
        transfer.run(transfer.Config(updates=1), Sections(still, model_config()), runs["cheetah"], **options)
    made = transfer.run(
        transfer.Config(updates=1), Sections(still, model_config(), mllm=mllm("last-k")), runs["cheetah"], **options
    )
    wanted, found = source.tensors("backbone"), made.tensors("backbone")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert isinstance(open_training_data(made, runs["cheetah"]), Dataset)
