"""What the stages make of branches: trained on, never begun with, never judged by, held out with their source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bitagent_cli import presets
from stages import pretrain, visualize
from stages.backbones.embeddings import open_training_data
from stages.backbones.offline import contrast
from stages.behave import EARLY, encode_data, posterior_modes
from stages.data.episodes import Dataset, held_out_episodes
from stages.data.sampler import Sampler
from stages.methods import open_model
from stages.report import diagnostics
from stages.report.scene import Scene
from stages.runtime.config import Run
from tests.core.helpers import model_config, unit
from tests.stages import small_run

ROWS, HOLDOUT = 19, 0.3
ORIGINS = [(number % 2, number % 3, 0) for number in range(12)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two datasets of three episodes and a dozen branches, more and longer than they are; embedded."""
    made = small_run.make_run(tmp_path_factory.mktemp("branches") / "walker-smoke")
    small_run.make_inputs(made)
    small_run.make_branches(made, ORIGINS, ROWS)
    small_run.make_embeddings(made)
    return made


@pytest.fixture(scope="module")
def drawn(run: Run) -> np.ndarray:
    """First rows of the windows that a model was trained on, which is there afterwards."""
    found, draw = [], Sampler.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "draw", lambda self, step: found.append((self, draw(self, step))) or found[-1][1])
        config = small_run.pretrain_config(updates=20, holdout=HOLDOUT, batch=8)
        pretrain.run(pretrain.Sections(config, model_config()), run)
    joint = [rows for sampler, (rows, _) in found if "image" in sampler.keys]  # thresholds and dynamics read none
    return np.concatenate(joint[:20])


@pytest.fixture
def dataset(run: Run, drawn: np.ndarray) -> Dataset:
    return open_training_data(small_run.model_artifact(run), run)


def test_training_draws_branches_from_where_they_have_a_past(dataset: Dataset, drawn: np.ndarray) -> None:
    info = dataset.episode_info
    episode = np.searchsorted(info.start, drawn, side="right") - 1
    cut = info.cut[episode]
    assert 0.2 < cut.mean() < 0.8
    assert (drawn - info.start[episode])[cut].min() == 7
    assert (drawn == info.start[episode]).mean() >= 0.25  # of whole episodes, though most are branches


def test_a_branch_of_a_held_out_episode_is_not_trained_on(dataset: Dataset, drawn: np.ndarray) -> None:
    info, held = dataset.episode_info, held_out_episodes(dataset, HOLDOUT)
    trained = np.unique(np.searchsorted(info.start, drawn, side="right") - 1)
    assert held[info.cut].any() and not held[trained].any()
    np.testing.assert_array_equal(held[info.cut], held[info.origin[info.cut]])


def test_behaviour_decides_where_a_branch_has_a_past(run: Run, dataset: Dataset) -> None:
    model, cpu = open_model(small_run.model_artifact(run)), torch.device("cpu")
    modes = posterior_modes(model, dataset, cpu, quiet=True)
    latents = encode_data(model, dataset, modes, model.task(unit(2)), 4, cpu)
    info = dataset.episode_info
    first = np.where(info.cut, 7, 0)
    rows = [np.arange(s + f, s + n - 1) for s, f, n in zip(info.start, first, info.length, strict=True)]
    assert latents.decisions.tolist() == np.concatenate(rows).tolist()
    begun = [r[:EARLY] for r, cut in zip(rows, info.cut, strict=True) if not cut]
    assert latents.early.tolist() == np.concatenate(begun).tolist()


def test_the_offline_backbone_learns_from_no_window_without_its_past(dataset: Dataset) -> None:
    class Sentences:
        def encode(self, captions: list[str]) -> torch.Tensor:
            return torch.zeros(len(captions), 384)

    lessons = contrast.prepare_lessons(dataset, 0.0, Sentences())  # type: ignore[arg-type]
    chance = np.diff(lessons.draw, prepend=0.0)
    first = np.where(dataset.episode_info.cut, 7, 0)
    lacking = np.concatenate([
        np.arange(n) < f for n, f in zip(dataset.episode_info.length, first, strict=True)
    ])  # fmt: skip
    assert (chance[lacking] == 0).all() and (chance[~lacking] > 0).any()


def test_nothing_is_judged_by_branches(run: Run, drawn: np.ndarray, tmp_path: Path) -> None:
    preset = presets.resolve("walker", "smoke", ["visualize.context=3", "visualize.horizon=6"])
    scene = Scene(preset.visualize, run, "bitagent", False, tmp_path)
    cut = scene.dataset.episode_info.cut
    assert scene.held_out and not (scene.judged & cut).any()
    assert set(diagnostics.choose_episodes(scene.dataset, ~cut, 6)) == set(np.flatnonzero(~cut))
    best = diagnostics.best_windows(scene.dataset, 40, 9)
    assert not cut[np.searchsorted(scene.dataset.episode_start, best, side="right") - 1].any()


def test_a_report_has_all_its_parts(run: Run, drawn: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["windows=2", "context=3", "horizon=6", "error_windows=4", "dream_steps=4", "reward_horizon=4"]
    preset = presets.resolve("walker", "smoke", [f"visualize.{setting}" for setting in small])
    made = small_run.make_run(run.root, quiet=False)
    report = visualize.run(preset.visualize, made)
    left_out = {line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("left out")}
    assert left_out == {"left out, scores", "left out, policy"}
    assert (report.path / "data-branch.png").exists()
