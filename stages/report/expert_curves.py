"""How experts learned: their learning curves and scores, read back from the datasets their replays became.

experts = find_experts(Path("runs/walker-laptop"))
experts_table(experts)
figures.learning_curves(Path("experts.png"), expert_curves(experts))
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from stages.report.tables import Table
from stages.runtime import artifacts, logs
from stages.runtime.artifacts import Artifact
from stages.worlds import tasks

NOTE = (
    "Score = (return - random) / (expert - random), with the reference returns of stages/worlds; `score` is of "
    "episodes without noise after training, ± the standard error over them. Minutes: from the first update on, playing "
    "included."
)


def find_experts(root: Path) -> list[Artifact]:
    """The datasets of a run that an expert's training made, with frames or as states alone, in a stable order."""
    made = [a for place in ("data", "states") for a in artifacts.find(root, f"{place}/*", "collect")]
    return [a for a in made if a.meta["extra"].get("learning_curve")]


def expert_name(expert: Artifact) -> str:
    """Domain, task and algorithm in words."""
    extra = expert.meta["extra"]
    return f"{expert.domain} {extra['task']}, {extra.get('algo', 'td3')}"


def expert_curves(experts: Sequence[Artifact]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (decisions, normalised score of the episode that ended there)}."""
    found = {}
    for expert in experts:
        decisions, returns = np.array(expert.meta["extra"]["learning_curve"], np.float64).T
        found[expert_name(expert)] = (decisions, _score(expert, returns))
    return found


def experts_table(experts: Sequence[Artifact]) -> Table | None:
    """One row an expert: its budget, its last score, and the time it took; None where there is none."""
    if not experts:
        return None
    rows, numbers = [], []
    for expert in experts:
        extra, seed = expert.meta["extra"], expert.meta["seed"]
        returns = np.array(extra["evaluation_returns"], np.float64)
        scores, first = _score(expert, returns), _score(expert, np.array(extra["learning_curve"][:5])[:, 1])
        stderr = float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else 0.0
        decisions, minutes = int(extra["learning_curve"][-1][0]), logged_minutes(expert)
        rows.append([
            expert_name(expert), str(decisions), f"{first.mean():.2f}", f"{scores.mean():.2f} ± {stderr:.2f}",
            f"{returns.mean():.0f}", str(seed), "" if minutes is None else f"{minutes:.1f}",
        ])  # fmt: skip
        numbers.append({
            "expert": expert_name(expert), "decisions": decisions, "first_score": float(first.mean()),
            "score": float(scores.mean()), "stderr": stderr, "return": float(returns.mean()), "seed": seed,
            "minutes": minutes,
        })  # fmt: skip
    columns = ["expert", "decisions", "score of its first 5 episodes", "score", "return", "seed", "minutes"]
    return Table("Experts", NOTE, columns, rows, numbers)


def logged_minutes(expert: Artifact) -> float | None:
    """What the training took by its log, over all the processes that shared it; None where there is no log."""
    log = logs.read_log(expert.path.parent / f"{expert.path.name}.log" / "metrics.jsonl")
    last = expert.meta["extra"]["learning_curve"][-1][0]
    seconds = [row["seconds"] for row in log if "seconds" in row and row.get("decisions", 0) <= last]
    if not seconds:
        return None
    earlier = sum(a for a, b in pairwise(seconds) if b < a)  # each process counts from zero
    return (earlier + seconds[-1]) / 60


def _score(expert: Artifact, returns: np.ndarray) -> np.ndarray:
    task = tasks.get_task(expert.domain, expert.meta["extra"]["task"])
    return np.array([tasks.normalized_score(task, value) for value in returns])
