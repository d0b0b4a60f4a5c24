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


def read(file: Path) -> Rows:
    """The rows of one log; a last line that is still being written is left out."""
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def grouped(root: Path) -> dict[str, dict[str, list[Rows]]]:
    """{stage folder: {name without its seed: [rows, one list a seed]}}, e.g. {"policy": {"bitagent walk": [...]}}."""
    found: dict[str, dict[str, list[Rows]]] = {}
    for file in files(root):
        folder, *names = file.relative_to(root).parts[:-1]
        label = " ".join(names).removesuffix(".log")
        name = re.sub(r"-s\d+(?= |$)", "", label)
        if rows := read(file):
            found.setdefault(folder, {}).setdefault(name, []).append(rows)
    return found
