"""`bitagent bench embed`: its measures on hand-made embeddings, and the whole of it on a tiny run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from bitagent_cli.app import app
from bitagent_cli.bench import embed as bench
from bitagent_cli.presets import resolve
from stages import embed
from stages.backbones.offline.captions import class_names
from stages.data.episodes import Dataset, held_out_episodes
from stages.runtime import artifacts
from stages.runtime.config import Run
from tests.data.real_data import make_data

HOLDOUT = 0.5
Refused = Callable[..., None]


def test_hits_of_a_perfect_a_wrong_and_a_blind_backbone() -> None:
    axes = torch.eye(10)
    video = [axes[k].expand(7, -1) for k in range(10)]
    random = np.random.default_rng(0)
    assert bench.hits(axes[3].expand(2, -1), video, 3, random) == 1.0
    assert bench.hits(axes[4].expand(2, -1), video, 3, random) == 0.0
    generator = torch.Generator().manual_seed(0)
    text, *blind = (F.normalize(torch.randn(200, 16, generator=generator), dim=-1) for _ in range(11))
    assert bench.hits(text, blind, 3, random) == pytest.approx(0.1, abs=0.02)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Random episodes and three tasks' "experts" of the real walker, with a barely trained backbone."""
    made = Run(domain="walker", scale="smoke", root=tmp_path_factory.mktemp("bench") / "walker-smoke", quiet=True)
    for first, task in enumerate(("", "stand", "walk", "run")):
        make_data(made.root, "walker", task, episodes=3, rows=24, seed=10 * first)
    settings = [f"embed.offline.{k}={v}" for k, v in {"updates": 4, "holdout": HOLDOUT}.items()]
    embed.run(resolve("walker", "smoke", settings).embed, made)
    return made


def test_it_prints_every_number_as_json(run: Run) -> None:
    done = CliRunner().invoke(app, ["bench", "embed", "--scale", "smoke", "--out", str(run.root), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    for key in ("retrieval", "retrieval_random_weights"):
        named = found[key]
        assert set(named["classes"]) | set(named["absent"]) == set(class_names("walker"))
        assert named["chance"] == pytest.approx(1 / len(named["classes"]), abs=1e-3)
        tops = [c["top1"] for c in named["classes"].values()]
        assert named["top1"] == pytest.approx(np.mean(tops), abs=2e-3)
        assert all(c["clips"] and c["sentences"] for c in named["classes"].values())
    assert set(found["prompts"]) == {"stand", "walk", "run"}
    for task, row in found["prompts"].items():
        assert row["own"] == row["shares"][task] and sum(row["shares"].values()) == pytest.approx(1.0, abs=3e-3)
    assert found["frames_per_second"] > 0 and found["training_seconds"] > 0 and found["threads"] > 0


def test_clips_are_of_held_out_episodes_alone(run: Run) -> None:
    artifact = artifacts.load(run.root / "backbone", "backbone")
    dataset = Dataset.open(bench.training_data(run.root, artifact), "walker")
    held = held_out_episodes(dataset, HOLDOUT)
    assert 0 < held.sum() < dataset.n_episodes
    windows, membership, _ = bench.label_windows(dataset)
    clips = bench.class_clips(dataset, windows, membership, held, seed=0)
    rows = np.concatenate(clips)
    episode = np.searchsorted(dataset.episode_start, rows, side="right") - 1  # (n, 8)
    assert len(rows) and held[episode].all()
    assert len(clips) == 10 and len(bench.class_clips(dataset, windows, membership[:, :3], held, seed=0)) == 3


def test_a_changed_dataset_is_refused(run: Run, tmp_path: Path, assert_refused: Refused) -> None:
    root = tmp_path / "run"
    shutil.copytree(run.root, root)
    shutil.rmtree(root / "data" / "random")
    make_data(root, "walker", episodes=2, rows=9, seed=77)
    done = CliRunner().invoke(app, ["bench", "embed", "--scale", "smoke", "--out", str(root), "--device", "cpu"])
    assert_refused(done, "has gone or changed", "--fresh")
