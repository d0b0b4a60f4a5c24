"""What a stage finds of a run, whatever lies beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.data.inputs import find_inputs
from stages.runtime import artifacts
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from tests.data.synthetic import make_dataset


@pytest.mark.parametrize("copy", ["random-backup", "a-backup"])
def test_a_backup_copy_of_a_dataset_counts_once(tmp_path: Path, copy: str) -> None:
    """By whatever name it lies there: two folders of one id are one artifact, known by its own name."""
    made = make_dataset(tmp_path / "data" / "random")
    shutil.copytree(made.path, tmp_path / "data" / copy)
    data, embeddings = find_inputs(Run("walker", "smoke", tmp_path))
    assert [a.path.name for a in data] == ["random"] and embeddings == []


def test_a_linked_dataset_is_found_from_what_was_made_of_it(tmp_path: Path) -> None:
    """A model on another disk finds its data, and a linked dataset is data like any other."""
    run, disk = tmp_path / "run", tmp_path / "disk"
    made = make_dataset(disk / "random")
    (run / "data").mkdir(parents=True)
    (run / "data" / "random").symlink_to(made.path)
    (disk / "model").mkdir()
    (run / "model").symlink_to(disk / "model")
    (data,), _ = find_inputs(Run("walker", "smoke", run))
    about = {"domain": "walker", "config": {}, "seed": 0, "inputs": [data]}
    model = artifacts.save(run / "model" / "bitagent-s0", "pretrain", {}, **about)
    assert artifacts.load(artifacts.input_path(model, data.id)).id == data.id


def test_nothing_to_find_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="make it with: bitagent collect --preset walker --scale smoke"):
        find_inputs(Run("walker", "smoke", tmp_path))
