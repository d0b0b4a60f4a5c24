"""The quickstart: its plan first, one line of result a stage, a report that grows, and nothing made twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from bitagent_cli import presets, quickstart
from stages import visualize
from stages.runtime import loop
from stages.runtime.artifacts import Artifact
from tests.stages import small_run

TINY = (
    "collect.random_episodes=1", "collect.expert.decisions.default=500", "collect.expert.keep_episodes=1",
    "embed.offline.updates=2", "pretrain.updates=2",
    "pretrain.dynamics.updates=2", "behave.updates=2", "visualize.error_windows=2",
    "visualize.reward_windows=20", "visualize.reward_glance=2",
)  # fmt: skip


def test_every_stage_says_what_it_made(
    bitagent: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[set[str]] = []
    original = visualize.run

    def note(*given: object, **more: object) -> Artifact:
        found = original(*given, **more)  # type: ignore[arg-type]
        reports.append(set(found.meta["files"]))
        return found

    monkeypatch.setattr(visualize, "run", note)
    settings = [word for setting in TINY for word in ("--set", setting)]
    words = ("quickstart", "--preset", "cheetah", "--scale", "smoke", "--out", "runs/c", *settings)
    result = bitagent(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    said = result.stdout.splitlines()
    report = (tmp_path / "runs" / "c" / "report" / "report.html").as_uri()
    names = ["collect", "embed", "pretrain", "behave", "evaluate", "visualize"]
    assert said[1] == f"plan: {', '.join(names)}; the report grows at {report}"
    assert [line for line in said if line.startswith("[")] == [f"[{i + 1}/6] {name}" for i, name in enumerate(names)]
    for name in names:
        assert sum(line.startswith(f"{name}: ") for line in said) == 1, (name, said)
    assert [("curves-model-1.png" in r, "scores.md" in r) for r in reports] == [
        (False, False), (True, False), (True, True),
    ]  # fmt: skip
    again = bitagent(*words)
    assert again.exit_code == 0 and again.stdout.count("reus") >= 5


def test_the_plan_fits_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    preset, run = presets.resolve("walker", "laptop"), small_run.make_run(tmp_path, scale="laptop")
    monkeypatch.setattr(quickstart, "seconds_an_update", lambda preset, run: 2 * quickstart.SECONDS)
    said = quickstart.plan_of(preset, run, ["collect", "pretrain", "behave"])
    minutes = [2 * quickstart.MINUTES[name] for name in ("collect", "pretrain", "behave")]
    assert f"pretrain {loop.duration(minutes[1])}, behave {loop.duration(minutes[2])}" in said
    assert f"about {loop.duration(sum(minutes))} in all" in said


def test_an_update_is_timed(tmp_path: Path) -> None:
    preset = presets.resolve("walker", "smoke")
    assert 0 < quickstart.seconds_an_update(preset, small_run.make_run(tmp_path)) < 60
