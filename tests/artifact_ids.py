"""The ids of all artifacts below some folders: a refactoring that changes nothing leaves them as they were.

python -m tests.artifact_ids runs/walker-smoke runs/stickman-smoke > before.txt
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path


def artifact_ids(root: Path) -> Iterator[tuple[str, str]]:
    """(path relative to the folder above `root`, id) of every finished artifact but reports, in a stable order.

    A report is left out: its pictures carry the date.
    """
    for file in sorted(root.rglob("artifact.json")):
        meta = json.loads(file.read_text())
        if meta["stage"] != "visualize":
            yield str(file.parent.relative_to(root.parent)), meta["id"]


if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        for place, found in artifact_ids(folder):
            print(f"{found}  {place}")
