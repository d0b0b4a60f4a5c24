"""Where each score comes from: the artifacts behind it, how long they took, on what, and the command that makes it."""

from __future__ import annotations

import shlex
import time
from calendar import timegm
from collections.abc import Sequence

from stages.report.lineage import provenance, still_there
from stages.report.results import Result
from stages.report.tables import Table
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.names import method_option, slug

STAGES = {"collect": "data", "embed": "embeddings", "pretrain": "model", "behave": "policy", "evaluate": "evaluation"}
SHORT = 8  # characters of an id
NOTE = (
    "Minutes of wall time by stage, as recorded in the artifacts (a stopped stage counts from where it went on; what "
    "was made side by side counts once); ids as `bitagent inspect` shows them."
)


def ledger(results: Sequence[Result], run: Run) -> Table:
    """One row for each evaluation of a run: score, command, minutes of each stage, ids, commit and hardware."""
    header = ["task", "method", "seed", "score", "command", *(f"{name}, min" for name in STAGES.values())]
    columns = [*header, "ids: model, policy, evaluation", "commit", "hardware"]
    return Table("How each score was made", NOTE, columns, [_ledger_row(result, run) for result in results])


def _ledger_row(result: Result, run: Run) -> list[str]:
    behind: dict[str, list[Artifact]] = {}
    for artifact in still_there(provenance([result.artifact], run.root)):
        behind.setdefault(artifact.meta["stage"], []).append(artifact)
    policy = next(iter(behind.get("behave", [])), None)
    ids = [behind[stage][0].id[:SHORT] if stage in behind else "" for stage in ("pretrain", "behave", "evaluate")]
    meta, score = result.artifact.meta, f"{result.score:.2f} ± {result.stderr:.2f}"
    return [
        result.task, result.method, str(result.seed), score, _command(result, policy, run),
        *(f"{wall_minutes(behind[stage]):.1f}" if stage in behind else "" for stage in STAGES),
        " ".join(ids), str(meta["commit"]), str(meta["versions"].get("hardware", "")),
    ]  # fmt: skip


def wall_minutes(made: Sequence[Artifact]) -> float:
    """Minutes in which at least one of the artifacts was in the making."""
    ends = [timegm(time.strptime(a.meta["created"], "%Y-%m-%dT%H:%M:%SZ")) for a in made]
    spans = sorted((end - a.meta["wall_seconds"], end) for a, end in zip(made, ends, strict=True))
    total, until = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total / 60


def _command(result: Result, policy: Artifact | None, run: Run) -> str:
    """The command that evaluates; it names the one that makes what it misses."""
    goal = ["--task", result.goal] if result.single_task else ["--tasks", result.goal.replace("+", ",")]
    if not result.single_task and not result.multi_task:
        words = policy.meta["config"]["prompts"][0] if policy else result.goal
        video = words.removeprefix("video ")  # what `parse_goal` calls a prompt that is one
        shown = video != words and result.goal != slug(words)  # a prompt's folder is named by its words
        goal = ["--video", shlex.quote(video)] if shown else ["--prompt", f'"{words}"']
        goal += ["--score-as", result.task]
    return "`" + run.command("evaluate", *goal, *method_option(result.method), "--seed", str(result.seed)) + "`"
