"""`bitagent runs`: every finished artifact below a folder, with its stage, age, score and size."""

from __future__ import annotations

import json
import os
import time
from calendar import timegm
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("artifact", "stage", "age", "score", "size")


def print_runs(folder: Path) -> None:
    """Print one line an artifact, in the order of their paths."""
    rows = list(_rows(folder))
    if not rows:
        print(f"no artifact in {folder}; begin with: bitagent quickstart")
        return
    table = [COLUMNS, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    for row in table:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


def _rows(folder: Path) -> Iterator[tuple[str, ...]]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".checkpoint"))
        if "artifact.json" not in files:
            continue
        folders.clear()
        size = sum((Path(place) / name).stat().st_size for name in files)
        try:
            meta = json.loads((Path(place) / "artifact.json").read_text())
            made = timegm(time.strptime(meta["created"], "%Y-%m-%dT%H:%M:%SZ"))
            found = (str(meta["stage"]), _age(time.time() - made), _score_of(meta))
        except (OSError, ValueError, KeyError, TypeError):
            found = ("damaged", "", "")
        yield (place, *found, f"{size / 1e6:.1f} MB")


def _score_of(meta: dict[str, Any]) -> str:
    """Of an evaluation, the mean over its tasks; of an expert's data, the expert's."""
    rows = meta["extra"].get("rows", []) if meta["stage"] == "evaluate" else []
    if rows:
        return f"{sum(float(row['score']) for row in rows) / len(rows):.2f}"
    expert = meta["extra"].get("normalized_score")
    return "" if expert is None else f"{expert:.2f}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "now"
