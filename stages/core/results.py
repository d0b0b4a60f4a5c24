"""Tables of scores: gathered from evaluation artifacts, aggregated over seeds, the paper's values beside ours.

A cell that was not run is blank. The paper's published values stand in rows or columns of their own, marked
as the paper's, and never enter an average.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stages.core import artifacts, storage, tasks
from stages.core.artifacts import Artifact
from stages.core.methods import CONTROL, base_method, transfer_source

RESAMPLES = 2000
CONFIDENCE = 0.95


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
    for file in sorted(root.glob("evaluation/*/*/artifact.json")):
        if file.parent.name.startswith("."):
            continue
        artifact = artifacts.load(file.parent, "evaluate", domain=domain)
        try:
            found += [_result(row, artifact) for row in artifact.meta["extra"]["rows"]]
        except (KeyError, TypeError, ValueError) as error:
            raise storage.corrupted(file, error) from None
    return found


def _result(row: dict[str, Any], artifact: Artifact) -> Result:
    """One row of an evaluation's table. Raises KeyError, TypeError or ValueError for anything else."""
    return Result(
        domain=artifact.domain,
        task=str(row["task"]),
        method=str(row["method"]),
        seed=int(row["seed"]),
        goal=artifact.path.name,
        score=float(row["score"]),
        stderr=float(row["stderr"]),
        returns=float(row["return"]),
        scale=str(row["scale"]),
        random_score=float(row["random_score"]),
        artifact=artifact,
    )


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


def interquartile_mean(*samples: np.ndarray, axis: int = -1) -> Any:
    """Mean of the middle half of all samples together (Agarwal et al. 2021)."""
    from scipy.stats import trim_mean  # takes a second to import, and every stage imports this module

    return trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)


def interquartile(groups: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Interquartile mean over tasks and seeds, with its stratified-bootstrap confidence interval.

    Args:
        groups: scores by task, one a seed, at least two each; seeds are resampled within their task.
    Returns:
        (mean, low, high).
    """
    from scipy.stats import bootstrap

    samples = [np.asarray(group, np.float64) for group in groups]
    interval = bootstrap(
        samples,
        interquartile_mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(interquartile_mean(*samples)), float(interval.low), float(interval.high)


# ---------------------------------------------------------------------------- tables


@dataclass
class Table:
    """A table ready to be written: a header and rows of text, and the numbers behind them."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]
    numbers: list[dict[str, Any]] = field(default_factory=list)


@cache
def paper_results() -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """{table: {'walker run': {method: (mean, standard error)}}} as published."""
    return yaml.safe_load((Path(__file__).with_name("paper_results.yaml")).read_text())


SCORE = (
    "Score = (return - random) / (expert - random): mean ± standard error (seeds); with one seed, [standard error over "
    "episodes]."
)
PUBLISHED = "What is marked paper are its published values (InternVideo2, 10 seeds, paper scale), not ours."
BACKBONES = {"offline": "offline, a small in-domain stand-in for a pretrained video-language model"}


Groups = Mapping[str, Mapping[str, Sequence[Result]]]  # row of a table → method → its results


def by_task(results: Sequence[Result], names: Sequence[tuple[str, str]]) -> Groups:
    """{'walker run': {method: results}} for tasks given as (domain, name), run or not."""
    return {f"{d} {t}": _by_method(r for r in results if (r.domain, r.task) == (d, t)) for d, t in names}


def _by_method(results: Iterable[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(base_method(result.method) if result.source else result.method, []).append(result)
    return found


def _domain_rows(results: Sequence[Result], domain: str) -> Groups:
    """All tasks of the domain that the paper has or that were run."""
    extra = {r.task for r in results} - set(tasks.task_names(domain))
    return by_task(results, [(domain, t) for t in [*tasks.task_names(domain), *sorted(extra)]])


def tasks_table(results: Sequence[Result], domain: str) -> Table:
    """A row a method, with the wall time behind it, then the paper's (the domain's part of Table 1)."""
    single = [r for r in results if r.single_task and not r.source]
    table = _methods_down(_table("Scores by task", _domain_rows(single, domain), paper_results()["table1"]))
    minutes = [training_minutes([r for r in single if r.method == row[0]]) for row in table.rows]
    if any(minutes):
        table.columns.append("training, minutes")
        for row, found in zip(table.rows, minutes, strict=True):
            row.append("" if found is None else f"{found:.1f}")
        table.note += " Training: wall time of the model and of one task's policy, on the machine that ran it."
    return table


def _methods_down(table: Table) -> Table:
    """A row a method and a column a task: many methods have a few tasks in one domain."""
    (_, *tasks_across), *rows = zip(table.columns, *table.rows, strict=True)
    return replace(table, columns=["method", *tasks_across], rows=[list(row) for row in rows])


def table_1(results: Sequence[Result]) -> Table:
    """Table 1: the paper's ten tasks and seven methods, of all domains."""
    published = paper_results()["table1"]
    methods = list(next(iter(published.values())))
    single = [r for r in results if r.single_task and r.method in methods]
    rows = by_task(single, [(d, t) for d in tasks.DOMAINS for t in tasks.task_names(d)])
    return _table("Table 1: scores by task", rows, published, methods)


def transfer_table(results: Sequence[Result]) -> Table | None:
    """Fig. 3 in numbers: one row an ordered pair of bodies and task; None when nothing was carried over.

    A column `<method>, from scratch` holds the controls at equal budget, where they were run.
    """
    rows = {}
    for name, found in transfer_rows(results).items():
        scratch = {f"{m}, from scratch": mine for m, mine in _by_method(_controls(results, found)).items()}
        rows[name] = {**_by_method(found), **scratch}
    if not rows:
        return None
    return _table("Fig. 3: transfer between bodies", rows, {}, _ordered({m for row in rows.values() for m in row}))


def transfer_rows(results: Sequence[Result]) -> dict[str, list[Result]]:
    """{'walker → stickman run': results} of the models carried over, sources and targets in the paper's order."""
    pairs = [(s, d) for s in tasks.DOMAINS for d in tasks.DOMAINS if s != d]
    rows = {
        f"{s} → {d} {t}": [r for r in results if r.single_task and (r.source, r.domain, r.task) == (s, d, t)]
        for s, d in pairs
        for t in tasks.task_names(d)
    }
    return {name: found for name, found in rows.items() if found}


def _controls(results: Sequence[Result], moved: Sequence[Result]) -> list[Result]:
    """The controls of the same target and task."""
    domain, task = moved[0].domain, moved[0].task
    return [r for r in results if r.single_task and (r.source, r.domain, r.task) == (CONTROL, domain, task)]


def training_minutes(results: Sequence[Result]) -> float | None:
    """Mean wall time behind these policies: each one's model, which its tasks share, and itself; None where unknown.

    A stopped run counts from where it went on.
    """
    found = []
    for policy in filter(None, map(_policy, results)):
        models = [artifacts.input_path(policy, i) for k, i in policy.meta["inputs"].items() if "pretrain:" in k]
        if all((m / "artifact.json").exists() for m in models):
            made = [policy, *(artifacts.load(m, "pretrain") for m in models)]
            found.append(sum(a.meta["wall_seconds"] for a in made) / 60)
    return float(np.mean(found)) if found else None


def multi_task_table(results: Sequence[Result], domain: str) -> Table | None:
    """Scores of policies that serve several tasks; None when there are none."""
    several = [r for r in results if r.multi_task]
    if not several:
        return None
    return _methods_down(_table("One policy for several tasks", _domain_rows(several, domain), {}))


def ablation_table(results: Sequence[Result], domain: str) -> Table | None:
    """Table 2: components added one by one; None when no ablation was run or the paper has none here."""
    published = {k: v for k, v in paper_results()["table2"].items() if k.startswith(f"{domain} ")}
    methods = list(next(iter(published.values()), {}))
    mine = [r for r in results if r.single_task and r.domain == domain and r.method in methods]
    if not any(r.method.startswith("ablation-") for r in mine):
        return None
    return _methods_down(_table("Effect of each component", _domain_rows(mine, domain), published, methods))


def prompts_table(results: Sequence[Result]) -> Table | None:
    """Policies for free prompts, each scored by the task its user named; None when there are none."""
    free = [r for r in results if not r.single_task and not r.multi_task]
    if not free:
        return None
    columns = ["prompt", "scored as", "method", "seed", "random", "score"]
    rows = [
        [
            ", ".join(_prompts(r)),
            r.task,
            r.method,
            str(r.seed),
            f"{r.random_score:.2f}",
            f"{r.score:.2f} [{r.stderr:.2f}]",
        ]
        for r in free
    ]
    numbers = [{"goal": r.goal, "task": r.task, "method": r.method, "seed": r.seed, "score": r.score} for r in free]
    return Table("Free prompts", f"{SCORE} {_conditions(free)}", columns, rows, numbers)


def _prompts(result: Result) -> list[str]:
    """The text a policy was trained for; its folder's name when the policy is gone."""
    policy = _policy(result)
    return [str(p) for p in policy.meta["config"]["prompts"]] if policy else [result.goal]


def _policy(result: Result) -> Artifact | None:
    """The policy artifact that was evaluated, if it is still there."""
    folders = [result.artifact.path / path for path in result.artifact.meta["input_paths"].values()]
    return next((artifacts.load(f, "behave") for f in folders if (f / "artifact.json").exists()), None)


def _conditions(results: Sequence[Result]) -> str:
    """Scale and backbone behind the numbers: a stand-in backbone must never pass for the paper's."""
    policies = [policy for policy in map(_policy, results) if policy]
    used = sorted({str(policy.meta["extra"]["backbone"]) for policy in policies})
    named = "; ".join(BACKBONES.get(name, name) for name in used)
    scales = ", ".join(sorted({r.scale for r in results}))
    return f"Scale: {scales}." + (f" Backbone: {named}." if named else "")


def _table(
    title: str,
    rows: Groups,
    published: Mapping[str, Mapping[str, tuple[float, float]]],
    methods: Sequence[str] = (),
) -> Table:
    """The rows, run or not, × the methods given, or those that were run."""
    methods = list(methods) or _ordered({m for row in rows.values() for m in row})
    cells = {(name, m): _cell(found) for name, row in rows.items() for m in methods if (found := row.get(m))}
    theirs = [m for m in methods if any(m in published.get(name, {}) for name in rows)]
    columns = ["task", "random", *methods, *(f"paper: {m}" for m in theirs)]
    lines, numbers = [], []
    for name, row in rows.items():
        random = [r.random_score for found in row.values() for r in found]
        values = [published.get(name, {}).get(m) for m in theirs]
        lines.append(
            [name, f"{np.mean(random):.2f}" if random else ""]
            + [cells[name, m].text() if (name, m) in cells else "" for m in methods]
            + [f"{v[0]:.2f} ± {v[1]:.2f}" if v else "" for v in values]
        )
        numbers += [_number(row[m][0], m, cells[name, m]) for m in methods if (name, m) in cells]
    if len(rows) > 1:
        lines += _overall(list(rows), methods, cells, len(theirs))
    results = [r for row in rows.values() for found in row.values() for r in found]
    note = " ".join([SCORE, *([PUBLISHED] if theirs else []), *([_conditions(results)] if results else [])])
    return Table(title, note, columns, lines, numbers)


def _ordered(methods: Iterable[str]) -> list[str]:
    """BiTAgent first, the others by name."""
    return sorted(methods, key=lambda m: (m != "bitagent", m))


def cell(results: Sequence[Result], task: str, method: str) -> Cell | None:
    """The scores of one task and method over seeds; None where it was not run."""
    mine = [r for r in results if (r.task, r.method) == (task, method)]
    return _cell(mine) if mine else None


def _cell(results: Sequence[Result]) -> Cell:
    return Cell(tuple(r.score for r in results), results[0].stderr)


def _number(first: Result, method: str, cell: Cell) -> dict[str, Any]:
    """One cell for the JSON file; intervals need two seeds."""
    about: dict[str, Any] = {"domain": first.domain, "task": first.task, "method": method}
    if first.source:
        about["source"] = first.source
    about |= {"scores": list(cell.scores), "mean": round(cell.mean, 4), "stderr": round(cell.stderr, 4)}
    about["seeds"] = len(cell.scores)
    if len(cell.scores) > 1:
        mean, low, high = interquartile([cell.scores])
        about |= {"iqm": round(mean, 4), "ci_low": round(low, 4), "ci_high": round(high, 4)}
    return about


def _overall(
    names: Sequence[str], methods: Sequence[str], cells: dict[tuple[str, str], Cell], blanks: int
) -> list[list[str]]:
    """Rows over all tasks, for methods that ran every task; the interquartile mean needs two seeds of each."""
    means, middles = ["mean of tasks", ""], ["interquartile mean, 95 % interval", ""]
    for method in methods:
        mine = [cells[name, method] for name in names if (name, method) in cells]
        whole = len(mine) == len(names)
        means.append(f"{np.mean([c.mean for c in mine]):.2f}" if whole else "")
        if whole and all(len(c.scores) > 1 for c in mine):
            mean, low, high = interquartile([c.scores for c in mine])
            middles.append(f"{mean:.2f} ({low:.2f} to {high:.2f})")
        else:
            middles.append("")
    return [row + [""] * blanks for row in (means, middles) if any(row[2:])]


# ---------------------------------------------------------------------------- formats


def markdown(table: Table) -> str:
    """GitHub's Markdown, with the note below."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
    return f"### {table.title}\n\n{body}\n\n{table.note}\n"


def comma_separated(table: Table) -> str:
    """CSV of the cells as shown."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.columns, *table.rows])
    return out.getvalue()


def latex(table: Table) -> str:
    r"""A booktabs tabular, to be \input into a paper."""
    escaped = [[_tex(cell) for cell in row] for row in [table.columns, *table.rows]]
    lines = [" & ".join(row) + r" \\" for row in escaped]
    return "\n".join(
        [
            f"% {table.title}. {table.note}",
            rf"\begin{{tabular}}{{l{'c' * (len(table.columns) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _tex(text: str) -> str:
    for sign in ("\\", "&", "%", "$", "#", "_", "{", "}"):
        text = text.replace(sign, r"\textbackslash " if sign == "\\" else f"\\{sign}")
    return text.replace("±", r"$\pm$")


def bars(results: Sequence[Result], domain: str) -> dict[str, dict[str, tuple[float, float]]]:
    """{task: {method: (mean, standard error)}} of single-task policies, random first; empty when none was scored."""
    single = [r for r in results if r.single_task]
    found: dict[str, dict[str, tuple[float, float]]] = {}
    order = tasks.task_names(domain, training_only=False)
    for task in sorted({r.task for r in single}, key=order.index):
        random = [r.random_score for r in single if r.task == task]
        found[task] = {"random": (float(np.mean(random)), 0.0)}
        for method in _ordered({r.method for r in single if r.task == task}):
            if found_cell := cell(single, task, method):
                found[task][method] = (found_cell.mean, found_cell.stderr)
    return found


def transfer_bars(results: Sequence[Result]) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """{'walker → stickman': {task: {method: (mean, standard error)}}} of the models carried over (Fig. 3)."""
    panels: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for found in transfer_rows(results).values():
        cells = {m: _cell(mine) for m, mine in sorted(_by_method(found).items())}
        panel = panels.setdefault(f"{found[0].source} → {found[0].domain}", {})
        panel[found[0].task] = {m: (c.mean, c.stderr) for m, c in cells.items()}
    return panels
