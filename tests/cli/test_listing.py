"""`bitagent runs`: every artifact once, with what can be said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from tests.stages import small_run
from tests.stages.test_visualize import make_evaluation


def test_every_artifact_is_a_line(bitagent: Callable[..., Result], tmp_path: Path) -> None:
    run = small_run.make_run(tmp_path / "runs" / "walker-smoke")
    small_run.make_data(run, "random")
    make_evaluation(run, "walk", 0.5)
    broken = run.root / "model" / "bitagent-s0"
    broken.mkdir(parents=True)
    (broken / "artifact.json").write_text("{")
    (run.root / "model" / ".hidden.tmp").mkdir()
    (run.root / "model" / ".hidden.tmp" / "artifact.json").write_text("{}")
    header, *lines = bitagent("runs").stdout.splitlines()
    assert header.split() == ["artifact", "stage", "age", "score", "size"]
    assert [line.split()[:2] for line in lines] == [
        ["runs/walker-smoke/data/random", "collect"],
        ["runs/walker-smoke/evaluation/bitagent-s0/walk", "evaluate"],
        ["runs/walker-smoke/model/bitagent-s0", "damaged"],
    ]
    assert lines[1].split()[2:4] == ["now", "0.50"] and all(line.endswith(" MB") for line in lines)


def test_nothing_made_yet(bitagent: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert "no artifact in runs; begin with: bitagent quickstart" in bitagent("runs").stdout
