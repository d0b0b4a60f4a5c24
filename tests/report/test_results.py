"""Tables: what was not run is blank, the paper's values stay the paper's, aggregates are right."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.report import aggregate, results, tables
from stages.report.results import Result
from stages.report.tables import Table
from stages.runtime import artifacts
from stages.runtime.errors import BadInput
from stages.worlds import tasks


def evaluate(
    root: Path,
    task: str,
    seed: int,
    score: float,
    method: str = "bitagent",
    goal: str = "",
    *,
    domain: str = "walker",
    **row: Any,
) -> None:
    """An evaluation artifact as the stage writes it."""
    about = {"task": task, "method": method, "seed": seed, "scale": "smoke", "episodes": 2, "return": 100 * score,
             "score": score, "stderr": 0.05, "random_score": 0.01, "backbone": "offline",
             "prompts": [goal or task]} | row  # fmt: skip
    path = root / "evaluation" / f"{method}-s{seed}" / (goal or task)
    with artifacts.writing(
        path, "evaluate", domain=domain, config={"score": score}, seed=seed, extra={"rows": [about]}
    ):
        pass


def gather(root: Path) -> list[Result]:
    return results.gather(root, "walker")


def column(table: Table, name: str) -> dict[str, str]:
    index = table.columns.index(name)
    return {row[0]: row[index] for row in table.rows}


def row(table: Table, name: str) -> dict[str, str]:
    (found,) = [dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == name]
    del found["method"]
    return found


def test_paper_values_are_complete() -> None:
    paper = tables.paper_results()
    wanted = {f"{d} {t}" for d in tasks.DOMAINS for t in tasks.task_names(d)}
    methods = {"iql", "td3-bc", "td3", "wm-clip", "genrl", "founder", "bitagent"}
    assert paper["table1"].keys() == wanted
    assert all(row.keys() == methods for row in paper["table1"].values())
    means = {m: np.mean([row[m][0] for row in paper["table1"].values()]) for m in methods}
    overall = {
        "iql": 0.39,
        "td3-bc": 0.34,
        "td3": 0.45,
        "wm-clip": 0.69,
        "genrl": 0.82,
        "founder": 0.87,
        "bitagent": 0.91,
    }
    for method, printed in overall.items():
        assert means[method] == pytest.approx(printed, abs=0.011), method  # the paper's own last row
    assert {t: row["bitagent"][0] for t, row in paper["table2"].items()} == {
        "walker stand": 1.03, "walker run": 0.87, "walker walk": 1.02,
    }  # fmt: skip


def test_what_was_not_run_is_blank_and_the_paper_is_marked(tmp_path: Path) -> None:
    evaluate(tmp_path, "walk", 0, 0.5)
    evaluate(tmp_path, "walk", 1, 0.7)
    table = tables.tasks_table(gather(tmp_path), "walker")
    assert table is not None
    assert row(table, "bitagent") == {"walker stand": "", "walker walk": "0.60 ± 0.10 (2)", "walker run": ""}
    assert row(table, "random") == {"walker stand": "", "walker walk": "0.01", "walker run": ""}
    assert row(table, "paper: bitagent")["walker run"] == "0.87 ± 0.02"
    assert [line[0] for line in table.rows] == ["random", "bitagent", "paper: bitagent"]
    assert "not ours" in table.note
    assert [n["task"] for n in table.numbers] == ["walk"], "the paper's values are no numbers of ours"


def test_one_seed_shows_the_error_over_episodes(tmp_path: Path) -> None:
    evaluate(tmp_path, "run", 3, 0.3, stderr=0.04)
    assert row(tables.tasks_table(gather(tmp_path), "walker"), "bitagent")["walker run"] == "0.30 [0.04]"


def test_overall_rows_need_every_task(tmp_path: Path) -> None:
    for seed in (0, 1):
        for task, score in (("stand", 0.9), ("walk", 0.6), ("run", 0.3)):
            evaluate(tmp_path, task, seed, score + 0.02 * seed)
        evaluate(tmp_path, "walk", seed, 0.1, "genrl")
    found = gather(tmp_path)
    ours = row(tables.tasks_table(found, "walker"), "bitagent")
    theirs = row(tables.tasks_table(found, "walker"), "genrl")
    assert ours["mean of tasks"] == "0.61" and theirs["mean of tasks"] == ""
    assert ours["interquartile mean, 95 % interval"].startswith("0.61 (0.6")
    assert theirs["interquartile mean, 95 % interval"] == ""


def test_interquartile_mean_drops_the_outer_quarters_of_all_scores() -> None:
    found = aggregate.interquartile_mean({"a": [0.0, 0.4, 0.5], "b": [0.6, 0.7, 9.0], "c": [0.5, 0.5]})
    assert found.value == pytest.approx(np.mean([0.5, 0.5, 0.5, 0.6]))
    assert found.low <= found.value <= found.high


def test_interval_resamples_seeds_within_their_task() -> None:
    """Tasks that differ but seeds that do not: a stratified interval has no width."""
    for figure in (aggregate.interquartile_mean, aggregate.mean_score):
        narrow = figure({"a": [0.1, 0.1], "b": [0.9, 0.9]})
        assert narrow.low == pytest.approx(narrow.high)
        wide = figure({"a": [0.1, 0.3], "b": [0.7, 0.9]})
        assert wide.high - wide.low > 0.05


def test_mean_weighs_tasks_alike() -> None:
    assert aggregate.mean_score({"a": [0.2, 0.4], "b": [0.9, 0.9, 0.9]}).value == pytest.approx((0.3 + 0.9) / 2)


def test_probability_of_improvement_counts_pairs_within_a_task() -> None:
    """Task a: 3 of 4 pairs won and a tie; b: none. The mean over tasks, not over pairs."""
    ours, theirs = {"a": [0.5, 0.7], "b": [0.1, 0.2]}, {"a": [0.5, 0.4], "b": [0.9, 0.9], "c": [0.0, 0.0]}
    found = aggregate.probability_of_improvement(ours, theirs)
    assert found.value == pytest.approx((3.5 / 4 + 0.0) / 2)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_intervals_are_those_of_resampled_seeds() -> None:
    """Two seeds 0 and 1: a quarter of the resamples are twice 0, a quarter twice 1, so the interval is all there is."""
    found = aggregate.mean_score({"a": [0.0, 1.0]})
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    many = np.random.default_rng(0).normal(size=400)
    found = aggregate.mean_score({"a": many.tolist()})
    assert found.high - found.low == pytest.approx(2 * 1.96 * many.std() / 20, rel=0.1)


def test_profile_is_the_share_of_runs_above_each_score() -> None:
    found = aggregate.profile({"a": [0.25, 0.75], "b": [0.5, 0.5]})
    at = {round(level, 2): value for level, value in zip(aggregate.LEVELS, found.value, strict=True)}
    assert (at[0.0], at[0.3], at[0.6], at[0.8]) == (1.0, 0.75, 0.25, 0.0)
    assert (found.low <= found.value).all() and (found.value <= found.high).all()


def test_methods_are_compared_where_both_have_two_seeds_of_every_task(tmp_path: Path) -> None:
    for seed in (0, 1):
        for task, score in (("stand", 0.9), ("walk", 0.6)):
            evaluate(tmp_path, task, seed, score)
            evaluate(tmp_path, task, seed, score - 0.1, "genrl")
        evaluate(tmp_path, "stand", seed, 0.2, "founder")
    evaluate(tmp_path, "stand", 0, 0.8, "wm-clip")
    evaluate(tmp_path, "walk", 0, 0.8, "wm-clip")
    compared = results.comparable(gather(tmp_path))
    assert list(compared) == ["bitagent", "genrl"]
    table = tables.aggregate_table(compared)
    assert table and "walker stand, walker walk" in table.note
    assert table.rows == [
        ["bitagent", "0.75 (0.75 to 0.75)", "0.75 (0.75 to 0.75)", "", "2"],
        ["genrl", "0.65 (0.65 to 0.65)", "0.65 (0.65 to 0.65)", "1.00 (1.00 to 1.00)", "2"],
    ]
    assert tables.aggregate_table({"bitagent": compared["bitagent"]}) is None
    assert results.comparable([r for r in gather(tmp_path) if r.method != "bitagent"]) == {}


def test_zero_shot_prompts_have_a_table_of_their_own(tmp_path: Path) -> None:
    evaluate(tmp_path, "stand", 0, 0.9)
    evaluate(tmp_path, "flipping", 0, 0.3)
    evaluate(tmp_path, "flipping", 0, 0.2, "genrl")
    found = gather(tmp_path)
    table = tables.zero_shot_table(found)
    assert table and table.columns == ["task", "random", "bitagent", "genrl"]
    assert [line[0] for line in table.rows[:6]] == [
        f"walker {t}" for t in ("one_foot", "high_kick", "lying_down", "sit_knees", "lunge_pose", "flipping")
    ]
    assert column(table, "genrl")["walker flipping"] == "0.20 [0.05]"
    trained = tables.tasks_table(found, "walker")
    assert trained and "walker flipping" not in trained.columns
    assert "Backbone: offline, a small in-domain stand-in" in trained.note, "an evaluation says it without its policy"
    assert tables.zero_shot_table([r for r in found if r.task == "stand"]) is None


def test_prompts_and_multi_task_policies_have_tables_of_their_own(tmp_path: Path) -> None:
    evaluate(tmp_path, "stand", 0, 0.9)
    evaluate(tmp_path, "stand", 0, 0.4, goal="balance-on-one-leg-77abbf")
    evaluate(tmp_path, "stand", 0, 0.7, goal="stand+walk")
    found = gather(tmp_path)
    assert row(tables.tasks_table(found, "walker"), "bitagent")["walker stand"] == "0.90 [0.05]"
    assert tables.tasks_table([r for r in found if not r.single_task], "walker") is None
    several = tables.multi_task_table(found, "walker")
    assert several and row(several, "bitagent")["walker stand"] == "0.70 [0.05]"
    prompts = tables.prompts_table(found)
    assert prompts and prompts.rows == [["balance-on-one-leg-77abbf", "stand", "bitagent", "0", "0.01", "0.40 [0.05]"]]
    assert tables.prompts_table([r for r in found if r.single_task]) is None


def test_ablation_keeps_the_papers_rows_in_order(tmp_path: Path) -> None:
    evaluate(tmp_path, "run", 0, 0.8)
    assert tables.ablation_table(gather(tmp_path), "walker") is None
    evaluate(tmp_path, "run", 0, 0.6, "ablation-base")
    table = tables.ablation_table(gather(tmp_path), "walker")
    assert table is not None
    methods = ["ablation-base", "ablation-mllm", "ablation-tamf", "bitagent"]
    assert [line[0] for line in table.rows] == ["random", *methods, *(f"paper: {m}" for m in methods)]
    assert row(table, "ablation-tamf")["walker run"] == "" and row(table, "bitagent")["walker run"] == "0.80 [0.05]"
    assert tables.ablation_table(gather(tmp_path), "cheetah") is None


def test_formats_agree(tmp_path: Path) -> None:
    evaluate(tmp_path, "walk", 0, 0.5)
    table = tables.tasks_table(gather(tmp_path), "walker")
    assert table is not None
    rows = list(csv.reader(io.StringIO(tables.comma_separated(table))))
    assert rows == [table.columns, *table.rows]
    lines = [line for line in tables.markdown(table).splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]] == rows
    tex = tables.latex(table)
    assert tex.count(r"\\") == 1 + len(table.rows) and r"$\pm$" in tex and "±" not in tex.split(r"\begin")[1]


def test_latex_escapes() -> None:
    assert tables._tex("50 % of a_b & {c}") == r"50 \% of a\_b \& \{c\}"


def test_corrupted_evaluation_is_named(tmp_path: Path) -> None:
    evaluate(tmp_path, "walk", 0, 0.5)
    (tmp_path / "evaluation/bitagent-s0/walk/artifact.json").write_text("{")
    with pytest.raises(BadInput, match="walk"):
        gather(tmp_path)


def test_gain_is_paired_by_seed() -> None:
    assert tables.paired_gains({0: 0.5, 1: 0.8, 2: 9.0}, {1: 0.4, 0: 0.3}) == pytest.approx([0.2, 0.4])
    assert tables.paired_gains({0: 0.5, 1: 0.7}, {3: 0.1}) == pytest.approx([0.5])


def test_the_gain_stands_beside_both_scores(tmp_path: Path) -> None:
    names = ("transfer-cheetah", "transfer-control")
    for seed, scores in enumerate(((0.8, 0.5), (0.7, 0.6))):
        for method, score in zip(names, scores, strict=True):
            evaluate(tmp_path, "walk", seed, score, method)
    evaluate(tmp_path, "run", 0, 0.1, names[0])
    evaluate(tmp_path, "run", 1, 0.3, names[1])
    table = tables.gain_table(gather(tmp_path), "walker", ["walk", "run"], *names)
    assert table.columns == ["task", "random", *names, "gain"]
    assert table.rows == [
        ["walker walk", "0.01", "0.75 ± 0.05 (2)", "0.55 ± 0.05 (2)", "+0.20 ± 0.10"],
        ["walker run", "0.01", "0.10 [0.05]", "0.30 [0.05]", "-0.20"],
    ]
    assert table.numbers == [
        {"task": "walk", names[0]: {0: 0.8, 1: 0.7}, names[1]: {0: 0.5, 1: 0.6}, "gain": 0.2, "paired_seeds": 2},
        {"task": "run", names[0]: {0: 0.1}, names[1]: {1: 0.3}, "gain": -0.2, "paired_seeds": 1},
    ]


def test_one_evaluation_is_a_table_with_a_row_a_task() -> None:
    row = {"domain": "walker", "task": "walk", "method": "genrl", "seed": 3, "scale": "smoke", "episodes": 2,
           "return": 512.3, "score": 0.51234, "stderr": 0.02, "random_return": 40.0, "random_score": 0.001}  # fmt: skip
    table = tables.score_table([row, row | {"task": "run"}])
    assert table.columns == ["task", "method", "seed", "score", "± stderr", "return", "random score"]
    assert table.rows[0] == ["walker walk", "genrl", "3", "0.512", "0.020", "512", "0.001"]
    assert [r[0] for r in table.rows] == ["walker walk", "walker run"] and table.numbers[0] == row


def make_policy(root: Path, method: str, task: str, minutes: float, models: tuple[float, ...]) -> None:
    """A policy that took so many minutes on a model that did, or on none, and its evaluation."""
    now = time.time()
    inputs = []
    for model in models:
        path = root / "model" / f"{method}-s0"
        inputs.append(artifacts.save(path, "pretrain", {}, domain="walker", config={}, seed=0, began=now - 60 * model))
    about = {"domain": "walker", "config": {"prompts": [task]}, "seed": 0, "extra": {"backbone": "offline"}}
    path = root / "policy" / f"{method}-s0" / task
    policy = artifacts.save(path, "behave", {}, inputs=inputs, began=now - 60 * minutes, **about)
    row = {"task": task, "method": method, "seed": 0, "scale": "smoke", "episodes": 2, "return": 1.0, "score": 0.5,
           "stderr": 0.05, "random_score": 0.01}  # fmt: skip
    with artifacts.writing(
        root / "evaluation" / f"{method}-s0" / task, "evaluate", domain="walker", config={}, seed=0, inputs=[policy],
        extra={"rows": [row]},
    ):  # fmt: skip
        pass


def test_training_time_is_that_of_the_model_and_of_one_policy(tmp_path: Path) -> None:
    for task, minutes in (("stand", 4.0), ("walk", 6.0)):
        make_policy(tmp_path, "genrl", task, minutes, (10.0,))
        make_policy(tmp_path, "iql", task, minutes, ())
    evaluate(tmp_path, "walk", 0, 0.2, method="other")
    table = tables.tasks_table(gather(tmp_path), "walker")
    assert table is not None
    shown = {name: row(table, name)["training, minutes"] for name in ("genrl", "iql", "other", "random")}
    assert shown == {"genrl": "15.0", "iql": "5.0", "other": "", "random": ""}
    assert "wall time of the model and of one task's policy" in table.note


# ---------------------------------------------------------------------------- all domains


def everything(folder: Path) -> list[Result]:
    return [r for domain in tasks.DOMAINS for r in results.gather(folder / domain, domain)]


def test_table_1_holds_every_task_of_the_paper_and_blanks(tmp_path: Path) -> None:
    evaluate(tmp_path / "walker", "run", 0, 0.3)
    evaluate(tmp_path / "cheetah", "run", 0, 0.6, "genrl", domain="cheetah")
    evaluate(tmp_path / "walker", "run", 0, 0.9, "transfer-stickman")
    evaluate(tmp_path / "walker", "run", 0, 0.1, "ablation-base")
    table = tables.paper_table(everything(tmp_path))
    assert [row[0] for row in table.rows] == [f"{d} {t}" for d in tasks.DOMAINS for t in tasks.task_names(d)]
    assert table.columns[2:9] == [
        "iql", "td3-bc", "td3", "wm-clip", "genrl", "founder", "bitagent",
    ]  # fmt: skip
    ours = {name: column(table, name) for name in ("bitagent", "genrl", "iql")}
    assert ours["bitagent"].pop("walker run") == "0.30 [0.05]"
    assert ours["genrl"].pop("cheetah run") == "0.60 [0.05]"
    assert not any(value for cells in ours.values() for value in cells.values())
    assert column(table, "paper: bitagent")["stickman run"] == "0.49 ± 0.02"


def test_table_1_leaves_out_a_domain_that_the_paper_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tables.paper_table([]).rows
    hop = replace(tasks.get_task("walker", "walk"), domain="hopper", name="hop")
    monkeypatch.setattr(tasks, "DOMAINS", (*tasks.DOMAINS, "hopper"))
    monkeypatch.setattr(tasks, "TASKS", (*tasks.TASKS, hop))
    assert tasks.task_names("hopper") == ["hop"] and tables.paper_table([]).rows == rows


def test_transfers_stand_by_pair_and_task_and_not_among_the_scores(tmp_path: Path) -> None:
    for seed in (0, 1):
        evaluate(tmp_path / "stickman", "run", seed, 0.4 + seed / 5, "transfer-walker", domain="stickman")
    evaluate(tmp_path / "stickman", "run", 0, 0.2, "genrl-transfer-walker", domain="stickman")
    evaluate(tmp_path / "stickman", "run", 0, 0.1, "transfer-control", domain="stickman")
    evaluate(tmp_path / "walker", "walk", 0, 0.6, "transfer-quadruped")
    evaluate(tmp_path / "walker", "walk", 0, 0.8)
    found = everything(tmp_path)
    table = tables.transfer_table(found)
    assert table and [row[0] for row in table.rows][:2] == ["walker → stickman run", "quadruped → walker walk"]
    assert column(table, "bitagent")["walker → stickman run"] == "0.50 ± 0.10 (2)"
    assert column(table, "genrl")["quadruped → walker walk"] == ""
    assert column(table, "bitagent, from scratch") == {
        "walker → stickman run": "0.10 [0.05]", "quadruped → walker walk": "", "mean of tasks": "",
    }  # fmt: skip
    assert table.numbers[0]["source"] == "walker" and table.numbers[0]["domain"] == "stickman"
    bars = results.transfer_bars(found)
    assert bars["walker → stickman"]["run"].keys() == {"bitagent", "genrl"}
    walker = tables.tasks_table([r for r in found if r.domain == "walker"], "walker")
    assert [line[0] for line in walker.rows] == ["random", "bitagent", "paper: bitagent"]
    assert tables.transfer_table([r for r in found if not r.source]) is None
