"""Reading back the metrics.jsonl files that training stages write."""

from __future__ import annotations

import json
import re
from pathlib import Path

Rows = list[dict[str, float]]


def files(root: Path) -> list[Path]:
    """Every metrics.jsonl of a run, in a stable order."""
    return sorted(root.glob("*/*.log/metrics.jsonl")) + sorted(root.glob("*/*/*.log/metrics.jsonl"))


def sizes(root: Path) -> dict[str, int]:
    """{path under `root`: bytes}, which tells whether a log has grown."""
    return {str(file.relative_to(root)): file.stat().st_size for file in files(root)}


def read_log(file: Path) -> Rows:
    """The rows of one log, none when there is no such file; a line cut short or damaged is left out."""
    if not file.exists():
        return []
    rows = (_row(line) for line in file.read_text(errors="replace").splitlines())
    return [row for row in rows if row is not None]


def _row(line: str) -> dict[str, float] | None:
    """One line of a log: an object of numbers with its step."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(row, dict) and "step" in row and all(isinstance(v, int | float) for v in row.values())
    return row if sound else None


def grouped(root: Path) -> dict[str, dict[str, list[Rows]]]:
    """{stage folder: {name without its seed: [rows, one list a seed]}}, e.g. {"policy": {"bitagent walk": [...]}}."""
    found: dict[str, dict[str, list[Rows]]] = {}
    for file in files(root):
        folder, *names = file.relative_to(root).parts[:-1]
        label = " ".join(names).removesuffix(".log")
        name = re.sub(r"-s\d+(?= |$)", "", label)
        if rows := read_log(file):
            found.setdefault(folder, {}).setdefault(name, []).append(rows)
    return found
