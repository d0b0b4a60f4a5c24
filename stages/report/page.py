"""The report: one self-contained HTML page of tables, pictures and provenance. It loads nothing from a network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.report import tables
from stages.report.tables import Table
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput

MEDIA = {".png": "image/png", ".gif": "image/gif"}


@dataclass(frozen=True)
class Picture:
    """A PNG or GIF of the report's folder. A chart is inverted in the dark; frames of the world are not."""

    file: str
    caption: str
    chart: bool = False


@dataclass
class Chapter:
    """One part of the report."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass
class Node:
    """An artifact in the provenance tree. `state`: '' as recorded, 'above' when its inputs are shown already,
    'changed' or 'gone' when the folder holds something else or nothing now."""

    path: str
    id: str
    state: str = ""
    stage: str = ""
    created: str = ""
    seconds: float = 0.0
    commit: str = ""
    inputs: list[Node] = field(default_factory=list)


def provenance(made: Sequence[Artifact], base: Path) -> list[Node]:
    """What the given artifacts were made from, down to the datasets; paths are shown relative to `base`."""
    seen: set[str] = set()
    return [_node(artifact.path, artifact.id, base.resolve(), seen) for artifact in made]


def _node(path: Path, wanted: str, base: Path, seen: set[str]) -> Node:
    path = path.resolve()
    shown = str(path.relative_to(base)) if path.is_relative_to(base) else path.name
    try:
        meta = artifacts.load(path).meta
    except BadInput:
        return Node(shown, wanted, "gone")
    if meta["id"] != wanted:
        return Node(shown, wanted, "changed")
    node = Node(shown, wanted, "", meta["stage"], meta["created"], meta["wall_seconds"], meta["commit"])
    if wanted in seen and meta["inputs"]:
        node.state = "above"
    else:
        node.inputs = [_node(path / where, key, base, seen) for key, where in meta["input_paths"].items()]
    seen.add(wanted)
    return node


def write_report(
    folder: Path, title: str, facts: Mapping[str, str], chapters: Sequence[Chapter], tree: Sequence[Node]
) -> None:
    """Write report.html into `folder`, with the pictures that lie there inlined.

    Args:
        facts: short lines under the title, e.g. {"scale": "laptop"}.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = lambda name: inline(folder / name)
    page = environment.get_template("report.html.j2")
    html = page.render(title=title, facts=facts, chapters=chapters, tree=tree)
    (folder / "report.html").write_text(html, encoding="utf-8")


def save_table(folder: Path, stem: str, table: Table) -> None:
    """One table as Markdown, CSV and LaTeX, and the numbers behind it as JSON."""
    formats = {"md": tables.markdown, "csv": tables.comma_separated, "tex": tables.latex}
    for suffix, form in formats.items():
        (folder / f"{stem}.{suffix}").write_text(form(table))
    save_json(folder, stem, table.numbers)


def save_json(folder: Path, stem: str, value: Any) -> None:
    (folder / f"{stem}.json").write_text(json.dumps(value, indent=1) + "\n")


def inline(file: Path) -> str:
    """A picture as a data: URL."""
    return f"data:{MEDIA[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
