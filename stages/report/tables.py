"""Tables of scores, the paper's values beside ours, and the formats they are written in.

A cell that was not run is blank. The paper's published values stand in rows or columns of their own, marked
as the paper's, and never enter an average.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stages.report.aggregate import Scores, interquartile_mean, mean_score, probability_of_improvement
from stages.report.results import (
    Cell,
    Groups,
    Result,
    by_method,
    by_task,
    cell_of,
    controls,
    domain_rows,
    ordered,
    trained_for,
    training_minutes,
    transfer_rows,
    unseen,
)
from stages.worlds import tasks

SCORE = (
    "Score = (return - random) / (expert - random): mean ± standard error (seeds); with one seed, [standard error over "
    "episodes]."
)
PUBLISHED = "What is marked paper are its published values (InternVideo2, 10 seeds, paper scale), not ours."
BACKBONES = {"offline": "offline, a small in-domain stand-in for a pretrained video-language model"}


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


def tasks_table(results: Sequence[Result], domain: str) -> Table | None:
    """A row a method, with the wall time behind it, then the paper's (the domain's part of Table 1); None where no
    policy is of one such task."""
    single = trained_for(results)
    if not single:
        return None
    table = _methods_down(_table("Scores by task", domain_rows(single, domain), paper_results()["table1"]))
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


def paper_table(results: Sequence[Result]) -> Table:
    """Table 1: the paper's ten tasks and seven methods, of all domains."""
    published = paper_results()["table1"]
    methods = list(next(iter(published.values())))
    single = [r for r in results if r.single_task and r.method in methods]
    rows = by_task(single, [(d, t) for d in tasks.DOMAINS for t in tasks.task_names(d) if f"{d} {t}" in published])
    return _table("Table 1: scores by task", rows, published, methods)


def zero_shot_table(results: Sequence[Result]) -> Table | None:
    """A row a task whose prompt no data are labelled with, of all domains; None where none was run."""
    mine = [r for r in results if r.single_task and not r.source and unseen(r)]
    if not mine:
        return None
    names = [(task.domain, task.name) for task in tasks.TASKS if not task.training]
    here = [(d, t) for d, t in names if d in {r.domain for r in mine}]
    return _table("Zero-shot prompts", by_task(mine, here), {})


def transfer_table(results: Sequence[Result]) -> Table | None:
    """Fig. 3 in numbers: one row an ordered pair of bodies and task; None when nothing was carried over.

    A column `<method>, from scratch` holds the controls at equal budget, where they were run.
    """
    rows = {}
    for name, found in transfer_rows(results).items():
        scratch = {f"{m}, from scratch": mine for m, mine in by_method(controls(results, found)).items()}
        rows[name] = {**by_method(found), **scratch}
    if not rows:
        return None
    return _table("Fig. 3: transfer between bodies", rows, {}, ordered({m for row in rows.values() for m in row}))


def multi_task_table(results: Sequence[Result], domain: str) -> Table | None:
    """Scores of policies that serve several tasks; None when there are none."""
    several = [r for r in results if r.multi_task]
    if not several:
        return None
    return _methods_down(_table("One policy for several tasks", domain_rows(several, domain), {}))


def ablation_table(results: Sequence[Result], domain: str) -> Table | None:
    """Table 2: components added one by one; None when no ablation was run or the paper has none here."""
    published = {k: v for k, v in paper_results()["table2"].items() if k.startswith(f"{domain} ")}
    methods = list(next(iter(published.values()), {}))
    mine = [r for r in results if r.single_task and r.domain == domain and r.method in methods]
    if not any(r.method.startswith("ablation-") for r in mine):
        return None
    return _methods_down(_table("Effect of each component", domain_rows(mine, domain), published, methods))


def aggregate_table(compared: Mapping[str, Scores]) -> Table | None:
    """Methods over all tasks and seeds, each beside BiTAgent; None where there are not two to compare.

    Args:
        compared: {method: {task: scores}}, BiTAgent first.
    """
    if len(compared) < 2:
        return None
    ours = compared["bitagent"]
    rows, numbers = [], []
    for method, scores in compared.items():
        found = {"iqm": interquartile_mean(scores), "mean": mean_score(scores)}
        if method != "bitagent":
            found["improvement"] = probability_of_improvement(ours, scores)
        shown = [found[name].text() if name in found else "" for name in ("iqm", "mean", "improvement")]
        fewest, most = (pick(len(s) for s in scores.values()) for pick in (min, max))
        rows.append([method, *shown, str(most) if fewest == most else f"{fewest} to {most}"])
        figures = {name: [round(float(x), 4) for x in (i.value, i.low, i.high)] for name, i in found.items()}
        numbers.append({"method": method, "scores": {task: list(s) for task, s in scores.items()}, **figures})
    columns = ["method", "interquartile mean", "mean", "BiTAgent is better", "seeds"]
    note = (
        f"Over {', '.join(ours)}. In parentheses 95 % intervals of the stratified bootstrap over seeds (Agarwal et al. "
        "2021). BiTAgent is better: how often one of its runs beats one of this method's at the same task."
    )
    return Table("Over tasks and seeds", note, columns, rows, numbers)


def prompts_table(results: Sequence[Result]) -> Table | None:
    """Policies for free prompts, each scored by the task its user named; None when there are none."""
    free = [r for r in results if not r.single_task and not r.multi_task]
    if not free:
        return None
    rows, numbers = [], []
    for r in free:
        numbers.append({"goal": r.goal, "task": r.task, "method": r.method, "seed": r.seed, "score": r.score})
        score = f"{r.score:.2f} [{r.stderr:.2f}]"
        rows.append([", ".join(r.prompts), r.task, r.method, str(r.seed), f"{r.random_score:.2f}", score])
    columns = ["prompt", "scored as", "method", "seed", "random", "score"]
    return Table("Free prompts", f"{SCORE} {_conditions(free)}", columns, rows, numbers)


def gain_table(results: Sequence[Result], domain: str, names: Sequence[str], transferred: str, control: str) -> Table:
    """What a model carried over gains on training from scratch: one row a task, both scores, and their difference.

    Args:
        results: of single-task policies of `domain`, in which both methods scored each task of `names`.
        transferred, control: the two methods; the gain is paired by seed where they share any.
    """
    rows, numbers = [], []
    for task in names:
        mine = [r for r in results if r.task == task]
        pair = {m: [r for r in mine if r.method == m] for m in (transferred, control)}
        by_seed = {m: {r.seed: r.score for r in found} for m, found in pair.items()}
        gain = Cell(tuple(paired_gains(by_seed[transferred], by_seed[control])), 0.0)
        shown = f"{gain.mean:+.2f}" + (f" ± {gain.stderr:.2f}" if len(gain.scores) > 1 else "")
        random = np.mean([r.random_score for r in mine])
        rows.append([f"{domain} {task}", f"{random:.2f}", *(cell_of(found).text() for found in pair.values()), shown])
        numbers.append({"task": task, **by_seed, "gain": round(gain.mean, 4), "paired_seeds": len(gain.scores)})
    note = f"{SCORE} Gain: transfer minus the same budget from scratch, by seed."
    return Table(f"Transfer to {domain}", note, ["task", "random", transferred, control, "gain"], rows, numbers)


def paired_gains(transferred: Mapping[int, float], control: Mapping[int, float]) -> list[float]:
    """Differences of {seed: score} by seed; of the means where the two share no seed."""
    shared = sorted(transferred.keys() & control.keys())
    if shared:
        return [transferred[s] - control[s] for s in shared]
    return [float(np.mean(list(transferred.values())) - np.mean(list(control.values())))]


def score_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What one evaluation scored, a row a task.

    Args:
        rows: as an evaluation's artifact.json holds them: domain, task, method, seed, score, stderr, return, ...
    """
    cells = [
        [f"{r['domain']} {r['task']}", str(r["method"]), str(r["seed"]), f"{r['score']:.3f}", f"{r['stderr']:.3f}",
         f"{r['return']:.0f}", f"{r['random_score']:.3f}"]
        for r in rows
    ]  # fmt: skip
    columns = ["task", "method", "seed", "score", "± stderr", "return", "random score"]
    note = "Score = (return - random) / (expert - random); the standard error is over episodes."
    return Table("Scores", note, columns, cells, [dict(row) for row in rows])


def _conditions(results: Sequence[Result]) -> str:
    """Scale and backbone behind the numbers: a stand-in backbone must never pass for the paper's."""
    named = "; ".join(BACKBONES.get(name, name) for name in sorted({r.backbone for r in results if r.backbone}))
    scales = ", ".join(sorted({r.scale for r in results}))
    return f"Scale: {scales}." + (f" Backbone: {named}." if named else "")


def _table(
    title: str, rows: Groups, published: Mapping[str, Mapping[str, tuple[float, float]]], methods: Sequence[str] = ()
) -> Table:
    """The rows, run or not, × the methods given, or those that were run; the paper's values in columns of their own."""
    methods = list(methods) or ordered({m for row in rows.values() for m in row})
    cells = {(name, m): cell_of(found) for name, row in rows.items() for m in methods if (found := row.get(m))}
    theirs = [m for m in methods if any(m in published.get(name, {}) for name in rows)]
    results = [r for row in rows.values() for found in row.values() for r in found]
    lines, numbers = [], []
    for name, row in rows.items():
        random = [r.random_score for found in row.values() for r in found]
        ours = [cells[name, m].text() if (name, m) in cells else "" for m in methods]
        values = [published.get(name, {}).get(m) for m in theirs]
        paper = [f"{v[0]:.2f} ± {v[1]:.2f}" if v else "" for v in values]
        lines.append([name, f"{np.mean(random):.2f}" if random else "", *ours, *paper])
        numbers += [_number(row[m][0], m, cells[name, m]) for m in methods if (name, m) in cells]
    if len(rows) > 1:
        lines += [[*line, *[""] * len(theirs)] for line in _overall(list(rows), methods, cells)]
    note = " ".join([SCORE, *([PUBLISHED] if theirs else []), *([_conditions(results)] if results else [])])
    columns = ["task", "random", *methods, *(f"paper: {m}" for m in theirs)]
    return Table(title, note, columns, lines, numbers)


def _number(first: Result, method: str, cell: Cell) -> dict[str, Any]:
    """One cell for the JSON file; intervals need two seeds."""
    about: dict[str, Any] = {"domain": first.domain, "task": first.task, "method": method}
    if first.source:
        about["source"] = first.source
    about |= {"scores": list(cell.scores), "mean": round(cell.mean, 4), "stderr": round(cell.stderr, 4)}
    about["seeds"] = len(cell.scores)
    if len(cell.scores) > 1:
        middle = interquartile_mean({first.task: cell.scores})
        about |= {"iqm": round(middle.value, 4), "ci_low": round(middle.low, 4), "ci_high": round(middle.high, 4)}
    return about


def _overall(names: Sequence[str], methods: Sequence[str], cells: Mapping[tuple[str, str], Cell]) -> list[list[str]]:
    """Rows over all tasks, for methods that ran every task; the interquartile mean needs two seeds of each."""
    means, middles = ["mean of tasks", ""], ["interquartile mean, 95 % interval", ""]
    for method in methods:
        mine = {name: cells[name, method] for name in names if (name, method) in cells}
        whole = len(mine) == len(names)
        means.append(f"{np.mean([c.mean for c in mine.values()]):.2f}" if whole else "")
        several = whole and all(len(c.scores) > 1 for c in mine.values())
        scores = {name: cell.scores for name, cell in mine.items()}
        middles.append(interquartile_mean(scores).text() if several else "")
    return [row for row in (means, middles) if any(row[2:])]


# ---------------------------------------------------------------------------- formats


def markdown(table: Table) -> str:
    """GitHub's Markdown, with the note below."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
    note = "\n".join(textwrap.wrap(table.note, 118, break_long_words=False, break_on_hyphens=False))
    return f"### {table.title}\n\n{body}\n\n{note}\n"


def comma_separated(table: Table) -> str:
    """CSV of the cells as shown."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.columns, *table.rows])
    return out.getvalue()


def latex(table: Table) -> str:
    r"""A booktabs tabular, to be \input into a paper."""
    header, *rows = [" & ".join(map(_tex, row)) + r" \\" for row in (table.columns, *table.rows)]
    begin = rf"\begin{{tabular}}{{l{'c' * (len(table.columns) - 1)}}}"
    about = f"% {table.title}. {table.note}"
    lines = [about, begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def _tex(text: str) -> str:
    for sign in ("\\", "&", "%", "$", "#", "_", "{", "}"):
        text = text.replace(sign, r"\textbackslash " if sign == "\\" else f"\\{sign}")
    return text.replace("±", r"$\pm$")
