"""The log of a training: the estimate, and what TensorBoard shows after a resumed and after a fresh run."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.runtime import logs
from stages.runtime.loop import Metrics, duration


def log(folder: Path, start: int, end: int, loss: float) -> None:
    """Log updates start..end, as one process does."""
    metrics = Metrics(folder, start, "tensorboard")
    for step in range(start, end + 1):
        metrics.log(step, {"loss": loss})
    metrics.close()


def shown(folder: Path) -> list[tuple[int, float]]:
    """The curve that TensorBoard draws: (step, loss)."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_a_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    """The first process logged five updates and was killed; its checkpoint was of the second."""
    log(tmp_path, 1, 5, loss=2.0)
    log(tmp_path, 3, 4, loss=1.0)
    assert shown(tmp_path) == [(1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)]
    assert [row["step"] for row in logs.read_log(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_fresh_run_shows_nothing_of_the_one_before(tmp_path: Path) -> None:
    log(tmp_path, 1, 5, loss=2.0)
    (tmp_path / "tensorboard" / "notes.txt").write_text("mine")
    log(tmp_path, 1, 2, loss=1.0)
    assert shown(tmp_path) == [(1, 1.0), (2, 1.0)]
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 1
    assert (tmp_path / "tensorboard" / "notes.txt").exists(), "only event files are the log's own"


def test_durations() -> None:
    assert [duration(m) for m in (0.2, 1.4, 12, 89, 90)] == ["12 s", "84 s", "12 min", "89 min", "1.5 h"]
