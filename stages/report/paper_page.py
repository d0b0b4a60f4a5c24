"""The whole paper on one page: Table 1 over all domains, Table 2, Fig. 3 and Fig. 4, from the runs of one scale.

Each table and figure is what was scored so far; a cell that was not run is blank.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from stages.report import figures, results, tables
from stages.report.chapters import FIG_4, compare_methods
from stages.report.page import Chapter, Chart, Picture, save_tables
from stages.report.results import Result
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput
from stages.worlds import tasks

TAKEN = "Source → target: the model of the source adapts to the target's data; policies are learned and scored there."


def find_runs(folder: Path, scale: str) -> dict[str, Path]:
    """{domain: run folder} of the runs of a scale beside each other. Raises BadInput when there is none."""
    found = {domain: folder / f"{domain}-{scale}" for domain in tasks.DOMAINS}
    there = {domain: root for domain, root in found.items() if root.is_dir()}
    if not there:
        raise BadInput(f"no run of scale {scale} in {folder}; make them with: make reproduce SCALE={scale}")
    return there


def find_reports(runs: dict[str, Path]) -> dict[str, Artifact]:
    """{domain: its report} of the runs that have one."""
    made = {d: artifacts.find(root, "report", "visualize", domain=d) for d, root in runs.items()}
    return {domain: found[0] for domain, found in made.items() if found}


def chapters(folder: Path, found: Sequence[Result], reports: dict[str, Artifact]) -> list[Chapter]:
    """The parts for which there is something, their files written into `folder`."""
    table_1 = Chapter("Table 1", tables=save_tables(folder, {"table1": tables.paper_table(found)}))
    compare_methods(folder, table_1, "aggregate", results.trained_for(found))
    made = [
        table_1,
        Chapter("Table 2", tables=save_tables(folder, {"table2": tables.ablation_table(found, "walker")})),
        Chapter("Zero-shot prompts", tables=save_tables(folder, {"zero-shot": tables.zero_shot_table(found)})),
        figure_3(folder, found),
        figure_4(folder, reports),
    ]
    return [chapter for chapter in made if chapter.tables or chapter.pictures]


def figure_3(folder: Path, found: Sequence[Result]) -> Chapter:
    """Scores after transfer, as a table and as bars."""
    chapter = Chapter("Fig. 3", TAKEN, save_tables(folder, {"fig3": tables.transfer_table(found)}))
    if chapter.tables:
        files = figures.score_bars(folder / "fig3.png", results.transfer_bars(found))
        about = "Scores after transfer between bodies, with standard errors."
        chapter.charts.append(Chart(tuple(file.name for file in files), about))
    return chapter


def figure_4(folder: Path, reports: dict[str, Artifact]) -> Chapter:
    """What each domain's report drew of it."""
    pictures = []
    for domain, report in reports.items():
        if (report.path / FIG_4).exists():
            shutil.copyfile(report.path / FIG_4, folder / f"fig4-{domain}.png")
            pictures.append(Picture(f"fig4-{domain}.png", f"{domain}: real frames above imagined ones."))
    text = "A policy in the real environment, above the text imagination of its prompt, four decisions apart."
    return Chapter("Fig. 4", text, pictures=pictures)
