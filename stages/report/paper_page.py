"""The whole paper on one page: Table 1 over all domains, Table 2, Fig. 3 and Fig. 4, from the runs of one scale.

Each table and figure is what was scored so far; a cell that was not run is blank.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from stages.report import figures, results, tables
from stages.report.page import Chapter, Picture, save_table
from stages.report.results import Result
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput
from stages.worlds import tasks

FIG_4 = "real-above-text-imagination.png"
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
    made = {domain: root / "report" for domain, root in runs.items()}
    return {d: artifacts.load(p, "visualize", domain=d) for d, p in made.items() if (p / "artifact.json").exists()}


def chapters(folder: Path, found: Sequence[Result], reports: dict[str, Artifact]) -> list[Chapter]:
    """The parts for which there is something, their files written into `folder`."""
    made = [table_1(folder, found), table_2(folder, found), figure_3(folder, found), figure_4(folder, reports)]
    return [chapter for chapter in made if chapter]


def table_1(folder: Path, found: Sequence[Result]) -> Chapter:
    table = tables.table_1(found)
    save_table(folder, "table1", table)
    return Chapter("Table 1", tables=[table])


def table_2(folder: Path, found: Sequence[Result]) -> Chapter | None:
    table = tables.ablation_table(found, "walker")
    if table is None:
        return None
    save_table(folder, "table2", table)
    return Chapter("Table 2", tables=[table])


def figure_3(folder: Path, found: Sequence[Result]) -> Chapter | None:
    table = tables.transfer_table(found)
    if table is None:
        return None
    save_table(folder, "fig3", table)
    figures.transfer_bars(folder / "fig3.png", results.transfer_bars(found))
    picture = Picture("fig3.png", "Scores after transfer between bodies, with standard errors.", chart=True)
    return Chapter("Fig. 3", TAKEN, [table], [picture])


def figure_4(folder: Path, reports: dict[str, Artifact]) -> Chapter | None:
    """What each domain's report drew of it."""
    pictures = []
    for domain, report in reports.items():
        if (report.path / FIG_4).exists():
            shutil.copyfile(report.path / FIG_4, folder / f"fig4-{domain}.png")
            pictures.append(Picture(f"fig4-{domain}.png", f"{domain}: real frames above imagined ones."))
    text = "A policy in the real environment, above the text imagination of its prompt, four decisions apart."
    return Chapter("Fig. 4", text, pictures=pictures) if pictures else None
