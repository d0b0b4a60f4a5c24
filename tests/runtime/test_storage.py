"""Folders that come and go whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from stages.runtime import storage
from stages.runtime.errors import BadInput


def test_a_folder_goes_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / ".work.gone").mkdir()  # left by a kill
    storage.remove_folder(tmp_path / "work")
    storage.remove_folder(tmp_path / "work")
    assert not any(tmp_path.iterdir())


def test_a_second_writer_is_refused_or_waits(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with storage.locked(tmp_path / "made", wait=True):
            order.append("second")

    waiting = threading.Thread(target=second)
    with storage.locked(tmp_path / "made"):
        with pytest.raises(BadInput, match="another process is writing"), storage.locked(tmp_path / "made"):
            pass
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
