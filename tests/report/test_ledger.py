"""The ledger: every score with the artifacts behind it; what is gone is left blank."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.report import results
from stages.report.ledger import ledger, wall_minutes
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run


def make(path: Path, stage: str, inputs: list[Artifact], seconds: float, **about: Any) -> Artifact:
    config, extra = about.get("config", {}), about.get("extra", {})
    with artifacts.writing(path, stage, domain="walker", config=config, seed=0, inputs=inputs, extra=extra):
        pass
    found = artifacts.load(path, stage)
    found.meta["wall_seconds"] = seconds
    return found


def chain(root: Path, goal: str, prompt: str = "walk fast clean") -> dict[str, Artifact]:
    """Data, model, policy and evaluation of one goal."""
    data = make(root / "data" / "random", "collect", [], 60.0)
    model = make(root / "model" / "bitagent-s0", "pretrain", [data], 60.0)
    policy = make(root / "policy" / "bitagent-s0" / goal, "behave", [model], 60.0, config={"prompts": [prompt]})
    row = {"task": "walk", "method": "bitagent", "seed": 0, "scale": "laptop", "episodes": 2, "return": 500.0,
           "score": 0.5, "stderr": 0.1, "random_score": 0.0}  # fmt: skip
    evaluation = make(root / "evaluation" / "bitagent-s0" / goal, "evaluate", [policy], 6.0, extra={"rows": [row]})
    return {"model": model, "policy": policy, "evaluation": evaluation}


def row(root: Path) -> dict[str, str]:
    table = ledger(results.gather(root, "walker"), Run("walker", "laptop", root))
    assert len(table.rows) == 1
    return dict(zip(table.columns, table.rows[0], strict=True))


def test_a_score_comes_with_its_ids_its_command_and_its_hardware(tmp_path: Path) -> None:
    made = chain(tmp_path, "walk")
    found = row(tmp_path)
    ids = found["ids: model, policy, evaluation"].split()
    assert ids == [made[k].id[:8] for k in ("model", "policy", "evaluation")]
    assert found["score"] == "0.50 ± 0.10"
    assert found["command"] == "`bitagent evaluate --preset walker --scale laptop --task walk --seed 0`"
    assert found["hardware"] == artifacts.hardware() != ""
    assert all(found[f"{k}, min"] for k in ("data", "model", "policy", "evaluation")) and not found["embeddings, min"]


def test_what_was_made_side_by_side_counts_once(tmp_path: Path) -> None:
    """Two that ended together after 10 and 30 s, one that began 60 s after them and took 20 s."""
    made = [make(tmp_path / str(i), "collect", [], seconds) for i, seconds in enumerate((10.0, 30.0, 20.0))]
    for artifact, minute in zip(made, (0, 0, 1), strict=True):
        artifact.meta["created"] = f"2026-01-01T12:{minute:02d}:20Z"
    assert wall_minutes(made) == pytest.approx((30 + 20) / 60)
    assert wall_minutes(made[:2]) == pytest.approx(0.5) and wall_minutes([]) == 0


def test_what_is_gone_or_was_made_again_is_left_blank(tmp_path: Path) -> None:
    chain(tmp_path, "walk")
    shutil.rmtree(tmp_path / "model")
    found = row(tmp_path)
    assert found["model, min"] == "" and found["data, min"] == "" and found["policy, min"]
    assert len(found["ids: model, policy, evaluation"].split()) == 2


def test_a_policy_for_a_prompt_names_it_and_the_task_that_scored_it(tmp_path: Path) -> None:
    chain(tmp_path, "stand-still", prompt="stand still")
    assert '--prompt "stand still" --score-as walk' in row(tmp_path)["command"]


def test_a_policy_for_a_video_names_the_video(tmp_path: Path) -> None:
    chain(tmp_path, "clip", prompt="video clip.mp4")
    assert "--video clip.mp4 --score-as walk" in row(tmp_path)["command"]
