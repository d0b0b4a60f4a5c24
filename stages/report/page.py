"""The report: one self-contained HTML page of tables, pictures and provenance. It loads nothing from a network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.report import figures, tables
from stages.report.lineage import Node
from stages.report.tables import Table

MEDIA = {".png": "image/png", ".gif": "image/gif"}


@dataclass(frozen=True)
class Picture:
    """A PNG or GIF of the report's folder, frames of the world.

    `large`: as wide as its share of the page, beside others of its kind; else no wider than it is.
    """

    file: str
    caption: str
    large: bool = False


@dataclass(frozen=True)
class Chart:
    """Panels of one chart, a PNG each; inverted in the dark."""

    files: tuple[str, ...]
    caption: str


@dataclass
class Chapter:
    """One part of the report."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)


def write_report(
    folder: Path, title: str, facts: Mapping[str, str], chapters: Sequence[Chapter], tree: Sequence[Node]
) -> None:
    """Write report.html into `folder`, with the pictures that lie there inlined.

    Args:
        facts: short lines under the title, e.g. {"scale": "laptop"}.
    """
    shown = {"title": title, "facts": facts, "chapters": chapters, "tree": tree}
    html = render_page("report.html.j2", shown, folder)
    (folder / "report.html").write_text(html, encoding="utf-8")


def render_page(template: str, shown: Mapping[str, Any], folder: Path | None = None) -> str:
    """A page from a template that lies beside this file; its filter `inline` reads pictures of `folder`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=True, undefined=StrictUndefined)
    environment.loader = FileSystemLoader(Path(__file__).parent)
    environment.filters |= {"inline": lambda name: inline((folder or Path()) / name), "bar": bar_of}
    return environment.get_template(template).render(shown)


def bar_of(cell: str) -> float | None:
    """Per cent of a bar behind a cell that is a score, such as '0.85 ± 0.06 (3)' or '0.85 [0.06]'; None for others."""
    found = re.match(r"(-?\d+\.\d+) [±[]", cell)
    return None if found is None else round(100 * min(1.0, max(0.0, float(found[1]))), 1)


def save_tables(folder: Path, made: Mapping[str, Table | None]) -> list[Table]:
    """Save the tables that there are under their {stem: table}, see `save_table`, and return them."""
    found = {stem: table for stem, table in made.items() if table}
    for stem, table in found.items():
        save_table(folder, stem, table)
    return list(found.values())


def save_table(folder: Path, stem: str, table: Table) -> None:
    """One table as Markdown, CSV and LaTeX, and the numbers behind it as JSON."""
    formats = {"md": tables.markdown, "csv": tables.comma_separated, "tex": tables.latex}
    for suffix, form in formats.items():
        (folder / f"{stem}.{suffix}").write_text(form(table))
    save_json(folder, stem, table.numbers)


def save_frames(folder: Path, file: str, caption: str, frames: np.ndarray, pause: int = 0) -> Picture:
    """Save what `figures` made, (H, W, 3) as a PNG or (T, H, W, 3) as a GIF of `pause` ms a frame, and caption it."""
    if frames.ndim == 4:
        figures.save_gif(folder / file, frames, pause)
    else:
        figures.save_png(folder / file, frames)
    return Picture(file, caption)


def save_json(folder: Path, stem: str, value: Any) -> None:
    (folder / f"{stem}.json").write_text(json.dumps(value, indent=1) + "\n")


def inline(file: Path) -> str:
    """A picture as a data: URL."""
    return f"data:{MEDIA[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
