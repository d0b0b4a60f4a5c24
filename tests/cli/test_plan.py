"""`make plan`: what exists, what is missing, and hours only where something was measured."""

from __future__ import annotations

import json
from pathlib import Path

from bitagent_cli import plan


def make(file: Path, seconds: float) -> str:
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"wall_seconds": seconds}))
    return str(file)


def test_a_path_says_domain_stage_and_method() -> None:
    policy = plan.parse("runs/walker-laptop/policy/genrl-transfer-stickman-s0/walk/artifact.json")
    assert (policy.domain, policy.stage, policy.what) == ("walker", "behave", "genrl-transfer-stickman")
    data = plan.parse("/tmp/data/r/walker-smoke/data/expert-walk/artifact.json")
    assert (data.domain, data.stage, data.what) == ("walker", "collect", "expert-walk")
    report = plan.parse("runs/paper-laptop/report/artifact.json")
    assert (report.domain, report.stage, report.what) == ("paper", "visualize", "")


def test_hours_come_from_the_same_stage_and_method(tmp_path: Path) -> None:
    root = tmp_path / "walker-laptop" / "policy"
    wanted = [
        make(root / "bitagent-s0" / "walk" / "artifact.json", 1800.0),
        str(root / "bitagent-s0" / "run" / "artifact.json"),
        str(root / "iql-s0" / "run" / "artifact.json"),
    ]
    items = [plan.parse(path) for path in wanted]
    seconds = plan.measured(items)
    assert [plan.estimate(item, seconds) for item in items] == [1800.0, 1800.0, None]
    behave, total = plan.rows(items, seconds)
    assert behave == ["walker", "behave", "1", "2", "0.5", "0.5 and 1 not measured"]
    assert total[0] == "all"


def test_the_own_domain_counts_before_others(tmp_path: Path) -> None:
    def model(domain: str, seed: int) -> Path:
        return tmp_path / f"{domain}-laptop" / "model" / f"genrl-s{seed}" / "artifact.json"

    made = [make(model("walker", 0), 100.0), make(model("cheetah", 0), 300.0)]
    items = [plan.parse(path) for path in [*made, str(model("walker", 1)), str(model("stickman", 0))]]
    seconds = plan.measured(items)
    assert plan.estimate(items[2], seconds) == 100.0
    assert plan.estimate(items[3], seconds) == 200.0


def test_nothing_measured_stays_blank(tmp_path: Path) -> None:
    file = tmp_path / "walker-laptop" / "data" / "random" / "artifact.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    items = [plan.parse(str(file)), plan.parse(str(file.parents[1] / "expert-run" / "artifact.json"))]
    assert plan.rows(items, plan.measured(items))[0] == ["walker", "collect", "1", "1", "", ""]
