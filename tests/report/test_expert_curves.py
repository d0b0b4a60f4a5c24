"""How experts learned: curves, scores and minutes, read from the datasets and logs that their training left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitagent_cli import presets
from stages.report import chapters, expert_curves, figures
from stages.report.scene import Scene
from stages.runtime import artifacts
from stages.worlds import tasks
from tests.stages import small_run

RETURNS = [30.0, 400.0, 770.0]  # of walker run: random's, the middle, the reference's


def make_expert(root: Path, place: str = "data", **extra: Any) -> None:
    about = {
        "source": "expert", "task": "run", "learning_curve": [[500 * (i + 1), r] for i, r in enumerate(RETURNS)],
        "evaluation_returns": [770.0, 770.0], **extra,
    }  # fmt: skip
    path = root / place / "expert-run"
    artifacts.save(path, "collect", {}, domain="walker", config={}, seed=7, extra=about)
    rows = [(1, 60.0), (2, 90.0), (3, 30.0), (4, 3000.0)]  # stopped after the second; the fourth played on afterwards
    log = root / place / "expert-run.log" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text("".join(json.dumps({"step": n, "seconds": s, "decisions": 500 * n}) + "\n" for n, s in rows))


def test_curves_and_table_say_what_the_training_reached(tmp_path: Path) -> None:
    make_expert(tmp_path, algo="dreamer")
    artifacts.save(tmp_path / "data" / "random", "collect", {}, domain="walker", config={}, seed=7, extra={})
    (found,) = expert_curves.find_experts(tmp_path)
    (name, (decisions, score)), *rest = expert_curves.expert_curves([found]).items()
    assert name == "walker run, dreamer" and not rest
    assert decisions.tolist() == [500, 1000, 1500] and score.tolist() == [0.0, 0.5, 1.0]
    table = expert_curves.experts_table([found])
    assert table is not None
    assert table.rows == [["walker run, dreamer", "1500", "0.50", "1.00 ± 0.00", "770", "7", "2.0"]]
    assert table.numbers[0]["score"] == tasks.normalized_score(tasks.get_task("walker", "run"), 770.0)


def test_a_run_without_experts_has_no_table(tmp_path: Path) -> None:
    assert expert_curves.find_experts(tmp_path) == [] and expert_curves.experts_table([]) is None


def test_several_runs_share_one_picture(tmp_path: Path) -> None:
    make_expert(tmp_path / "a")
    make_expert(tmp_path / "b", place="states", algo="dreamer")
    experts = [expert for name in "ab" for expert in expert_curves.find_experts(tmp_path / name)]
    curves = expert_curves.expert_curves(experts)
    assert list(curves) == ["walker run, td3", "walker run, dreamer"]
    panels = figures.learning_curves(tmp_path / "curves.png", curves)
    assert [panel.name for panel in panels] == ["curves-1.png", "curves-2.png"]
    assert all(panel.stat().st_size > 5000 for panel in panels)


def test_the_report_shows_them(tmp_path: Path) -> None:
    made, folder = small_run.make_run(tmp_path / "walker-smoke"), tmp_path / "report"
    folder.mkdir()
    scene = Scene(presets.resolve("walker", "smoke").visualize, made, "bitagent", False, folder)
    assert chapters.experts(scene) is None
    make_expert(made.root)
    chapter = chapters.experts(scene)
    assert chapter is not None and [c.files for c in chapter.charts] == [("experts.png",)]
    files = {"experts.png", *(f"experts.{kind}" for kind in ("md", "csv", "tex", "json"))}
    assert {p.name for p in folder.iterdir()} == files
