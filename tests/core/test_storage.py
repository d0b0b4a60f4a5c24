"""Folders that come and go whole."""

from __future__ import annotations

from pathlib import Path

from stages.core import storage


def test_a_folder_goes_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / ".work.gone").mkdir()  # left by a kill
    storage.remove_folder(tmp_path / "work")
    storage.remove_folder(tmp_path / "work")
    assert not any(tmp_path.iterdir())
