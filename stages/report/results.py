"""Scores: gathered from evaluation artifacts, grouped, and aggregated over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.names import CONTROL, base_method, transfer_source
from stages.worlds import tasks


@dataclass(frozen=True)
class Result:
    """One policy scored on one task; `goal` is the folder it was trained under (a task, tasks, or a prompt)."""

    domain: str
    task: str
    method: str
    seed: int
    goal: str
    score: float
    stderr: float  # over episodes
    returns: float
    scale: str
    random_score: float
    prompts: tuple[str, ...]  # the texts it was trained for
    backbone: str
    artifact: Artifact

    @property
    def single_task(self) -> bool:
        """Whether the policy was trained for this task alone."""
        return self.goal == self.task

    @property
    def source(self) -> str:
        """The body its model was carried over from, `control` for the same budget from scratch, or nothing."""
        return transfer_source(self.method)

    @property
    def multi_task(self) -> bool:
        """Whether it is one policy for several tasks."""
        return "+" in self.goal


def gather(root: Path, domain: str) -> list[Result]:
    """Every evaluation of a run, in a stable order. Raises BadInput when one is corrupted."""
    found = []
    for artifact in artifacts.find(root, "evaluation/*/*", "evaluate", domain=domain):
        try:
            found += [_result(row, artifact) for row in artifact.meta["extra"]["rows"]]
        except (KeyError, TypeError, ValueError) as error:
            raise storage.corrupted(artifact.path / "artifact.json", error) from None
    return found


def _result(row: dict[str, Any], artifact: Artifact) -> Result:
    """One row of an evaluation's table. Raises KeyError, TypeError or ValueError for anything else."""
    return Result(
        domain=artifact.domain, task=str(row["task"]), method=str(row["method"]), seed=int(row["seed"]),
        goal=artifact.path.name, score=float(row["score"]), stderr=float(row["stderr"]), returns=float(row["return"]),
        scale=str(row["scale"]), random_score=float(row["random_score"]),
        prompts=tuple(map(str, row.get("prompts", [artifact.path.name]))), backbone=str(row.get("backbone", "")),
        artifact=artifact,
    )  # fmt: skip


# ---------------------------------------------------------------------------- groups


Groups = Mapping[str, Mapping[str, Sequence[Result]]]  # row of a table → method → its results
Panel = dict[str, dict[str, tuple[float, float]]]  # task → method → (mean, standard error)


def by_task(results: Sequence[Result], names: Sequence[tuple[str, str]]) -> Groups:
    """{'walker run': {method: results}} for tasks given as (domain, name), run or not."""
    return {f"{d} {t}": by_method(r for r in results if (r.domain, r.task) == (d, t)) for d, t in names}


def by_method(results: Iterable[Result]) -> dict[str, list[Result]]:
    """{method: results}; a model carried over counts as the method it was made by."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(base_method(result.method) if result.source else result.method, []).append(result)
    return found


def unseen(result: Result) -> bool:
    """Whether no data are labelled with the task: a zero-shot prompt."""
    return result.task not in tasks.task_names(result.domain)


def trained_for(results: Sequence[Result]) -> list[Result]:
    """Those of policies for one of the training tasks, on a model of their own body."""
    return [r for r in results if r.single_task and not r.source and not unseen(r)]


def domain_rows(results: Sequence[Result], domain: str) -> Groups:
    """All tasks of the domain that the paper has or that were run."""
    extra = {r.task for r in results} - set(tasks.task_names(domain))
    return by_task(results, [(domain, t) for t in [*tasks.task_names(domain), *sorted(extra)]])


def transfer_rows(results: Sequence[Result]) -> dict[str, list[Result]]:
    """{'walker → stickman run': results} of the models carried over, sources and targets in the paper's order."""
    single = [r for r in results if r.single_task]
    names = [(s, d, t) for s in tasks.DOMAINS for d in tasks.DOMAINS if s != d for t in tasks.task_names(d)]
    rows = {name: [r for r in single if (r.source, r.domain, r.task) == name] for name in names}
    return {f"{s} → {d} {t}": found for (s, d, t), found in rows.items() if found}


def controls(results: Sequence[Result], moved: Sequence[Result]) -> list[Result]:
    """The controls of the same target and task."""
    domain, task = moved[0].domain, moved[0].task
    return [r for r in results if r.single_task and (r.source, r.domain, r.task) == (CONTROL, domain, task)]


def ordered(methods: Iterable[str]) -> list[str]:
    """BiTAgent first, the others by name."""
    return sorted(methods, key=lambda m: (m != "bitagent", m))


def policy_of(result: Result) -> Artifact | None:
    """The policy artifact that was evaluated, if it is still there."""
    folders = [result.artifact.path / path for path in result.artifact.meta["input_paths"].values()]
    return next((artifacts.load(f, "behave") for f in folders if (f / "artifact.json").exists()), None)


def training_minutes(results: Sequence[Result]) -> float | None:
    """Mean wall time behind these policies: each one's model, which its tasks share, and itself; None where unknown.

    A stopped run counts from where it went on.
    """
    found = []
    for policy in filter(None, map(policy_of, results)):
        models = [artifacts.input_path(policy, i) for k, i in policy.meta["inputs"].items() if "pretrain:" in k]
        if all((m / "artifact.json").exists() for m in models):
            made = [policy, *(artifacts.load(m, "pretrain") for m in models)]
            found.append(sum(a.meta["wall_seconds"] for a in made) / 60)
    return float(np.mean(found)) if found else None


# ---------------------------------------------------------------------------- aggregation


@dataclass(frozen=True)
class Cell:
    """Scores of one task and method, one a seed."""

    scores: tuple[float, ...]
    episode_stderr: float  # of the only seed, where there is one

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def stderr(self) -> float:
        """Standard error over seeds, or over episodes where there is one seed."""
        if len(self.scores) == 1:
            return self.episode_stderr
        return float(np.std(self.scores, ddof=1) / len(self.scores) ** 0.5)

    def text(self) -> str:
        if len(self.scores) == 1:
            return f"{self.mean:.2f} [{self.stderr:.2f}]"
        return f"{self.mean:.2f} ± {self.stderr:.2f} ({len(self.scores)})"


def cell_of(results: Sequence[Result]) -> Cell:
    """The scores of results that differ in their seed alone."""
    return Cell(tuple(r.score for r in results), results[0].stderr)


def comparable(results: Sequence[Result]) -> dict[str, dict[str, tuple[float, ...]]]:
    """{method: {task: scores}}, BiTAgent first, of the methods that have two seeds or more at each of its tasks.

    Args:
        results: of policies for one task each, or for several; no body's but their own.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for r in results:
        found.setdefault(r.method, {}).setdefault(f"{r.domain} {r.task}", []).append(r.score)
    order = [f"{task.domain} {task.name}" for task in tasks.TASKS]
    wanted = sorted(found.get("bitagent", {}), key=order.index)
    several = {m for m, row in found.items() if wanted and all(len(row.get(task, ())) > 1 for task in wanted)}
    return {m: {task: tuple(found[m][task]) for task in wanted} for m in ordered(several)}


def transfer_bars(results: Sequence[Result]) -> dict[str, Panel]:
    """{'walker → stickman': {task: {method: (mean, standard error)}}} of the models carried over (Fig. 3)."""
    panels: dict[str, Panel] = {}
    for found in transfer_rows(results).values():
        panel = panels.setdefault(f"{found[0].source} → {found[0].domain}", {})
        panel[found[0].task] = _heights(dict(sorted(by_method(found).items())))
    return panels


def _heights(methods: Mapping[str, Sequence[Result]]) -> dict[str, tuple[float, float]]:
    cells = {method: cell_of(found) for method, found in methods.items()}
    return {method: (cell.mean, cell.stderr) for method, cell in cells.items()}
