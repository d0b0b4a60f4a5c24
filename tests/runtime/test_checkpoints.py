"""Checkpoints on disk: what a failure or a hand leaves of them, and what is made of it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.runtime import checkpoints, storage
from stages.runtime.errors import BadInput


def test_a_failed_checkpoint_leaves_the_one_before_and_no_draft(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "a", 1, {"model": {"w": torch.ones(2)}}, {"lr": 1})
    with pytest.raises(RuntimeError):
        tensors: Any = {"model": {"a": torch.ones(4), "b": Unwritable()}}
        checkpoints.write(tmp_path / "a", 2, tensors, {"lr": 1})
    assert not (tmp_path / ".a.checkpoint.tmp").exists()
    found = checkpoints.read(tmp_path / "a", {"lr": 1})
    assert found is not None and found[0] == 1


class Unwritable:
    def detach(self) -> None:
        raise RuntimeError("the disk is gone")


@pytest.mark.parametrize(
    "edit", [{"step": 2}, {"about": {"lr": 2}}, {"files": {}}, {"schema": 0}, {"extra": 1}], ids=str
)
def test_an_edited_checkpoint_is_refused(tmp_path: Path, edit: dict[str, object]) -> None:
    checkpoints.write(tmp_path / "a", 1, {"model": {"w": torch.ones(2)}}, {"lr": 1})
    file = tmp_path / "a.checkpoint" / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    with pytest.raises(BadInput, match=r"checkpoint.json is missing or corrupted"):
        checkpoints.read(tmp_path / "a", {"lr": 1})


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENOMEM])
def test_a_checkpoint_that_cannot_be_read_is_not_called_corrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    about = {"config": {}, "inputs": {}}
    checkpoints.write(tmp_path / "a", 1, {"model": {"x": torch.zeros(2)}}, about)

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for module, name in ((storage, "file_sha256"), (checkpoints, "load_file")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            with pytest.raises(BadInput, match=r"model.safetensors cannot be read: ") as caught:
                checkpoints.read(tmp_path / "a", about)
        assert "corrupted" not in str(caught.value) and "delete" not in str(caught.value)
    assert checkpoints.read(tmp_path / "a", about)
