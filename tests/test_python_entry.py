"""`import bitagent`: the four things it opens, and the example that uses them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import bitagent
from bitagent_cli import presets
from stages import behave, pretrain
from stages.policies.goals import Ask
from stages.runtime.config import Run
from tests.stages import small_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = small_run.make_run(tmp_path_factory.mktemp("entry") / "walker-smoke")
    small_run.make_data(made, "random", rows=20)
    small_run.make_backbone(made)
    small_run.make_embeddings(made)
    preset = presets.resolve("walker", "smoke", small_run.SMALL)
    pretrain.run(preset.sections, made)
    behave.run(preset.behave, made, Ask(task="walk"))
    return made


def test_a_dataset_is_every_window_of_every_episode(run: Run) -> None:
    windows = bitagent.load_dataset(run.root / "data" / "random", length=8, keys=["image", "action"])
    assert len(windows) == 3 * (20 - 8 + 1) == len(list(windows))
    batch = next(iter(DataLoader(windows, batch_size=5)))
    assert batch["image"].shape == (5, 8, 3, 64, 64) and batch["image"].dtype == torch.uint8
    second = small_run.make_episode(1, 20).image  # of the second episode, its second window
    np.testing.assert_array_equal(windows[13 + 1]["image"], second[1:9])
    with pytest.raises(IndexError):
        windows[len(windows)]
    with pytest.raises(bitagent.BadInput, match="no episode has 21 rows"):
        bitagent.load_dataset(run.root / "data" / "random", length=21)


@pytest.mark.parametrize("place", ["model/bitagent-s0", "policy/bitagent-s0/walk"])
def test_a_model_imagines_a_text(run: Run, place: str) -> None:
    frames = bitagent.load_model(run.root / place).imagine("hop on one leg", steps=3)
    assert frames.shape == (4, 3, 64, 64) and frames.dtype == np.uint8


def test_the_example_runs(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    lines = (ROOT / "examples" / "from_python.py").read_text().splitlines()
    assert len(lines) <= 50
    command = [sys.executable, str(ROOT / "examples" / "from_python.py"), str(run.root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stderr
    for words in ("15 windows; a batch of images is (4, 16, 3, 64, 64)", "imagined 13 frames", "50 decisions earned "):
        assert words in ran.stdout
    assert (tmp_path / "dream.gif").exists()
