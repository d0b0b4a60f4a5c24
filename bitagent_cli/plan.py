"""`make plan`: of the artifacts that `make reproduce` wants, which exist, which are missing, and how long those take.

Reads their artifact.json paths from standard input. The hours come from the wall time that finished artifacts of the
same kind recorded: the same stage and method, of the same domain where there is one. Where nothing was measured they
stay blank.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

STAGES = {
    "data": "collect", "embeddings": "embed", "model": "pretrain", "policy": "behave", "evaluation": "evaluate",
    "report": "visualize",
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """An artifact.json, and the kind of work that makes it: `what` is a method, a dataset or nothing."""

    file: Path
    domain: str
    stage: str
    what: str


def parse(path: str) -> Wanted:
    """'runs/walker-laptop/policy/genrl-s0/walk/artifact.json' → walker, behave, genrl."""
    file = Path(path)
    parts = file.parts[:-1]
    at = max(i for i, part in enumerate(parts) if part in STAGES)
    domain, folder, rest = parts[at - 1].rpartition("-")[0], parts[at], parts[at + 1 :]
    what = rest[-1] if folder in ("data", "embeddings") else rest[0].rpartition("-s")[0] if rest else ""
    return Wanted(file, domain, STAGES[folder], what)


def measured(wanted: Sequence[Wanted]) -> dict[Wanted, float]:
    """Seconds each finished artifact took, as it says itself; one that cannot be read says nothing."""
    found = {}
    for item in wanted:
        with suppress(OSError, ValueError, KeyError, TypeError):
            found[item] = float(json.loads(item.file.read_text())["wall_seconds"])
    return found


def estimate(item: Wanted, seconds: dict[Wanted, float]) -> float | None:
    """Mean seconds of the same stage and method, in the same domain or else in any; None where none was measured."""
    same = {other: s for other, s in seconds.items() if (other.stage, other.what) == (item.stage, item.what)}
    here = {other: s for other, s in same.items() if other.domain == item.domain} or same
    return fmean(here.values()) if here else None


def rows(wanted: Sequence[Wanted], seconds: dict[Wanted, float]) -> list[list[str]]:
    """One row a domain and stage, and the sum: domain, stage, made, missing, hours done, hours to go."""
    keys = dict.fromkeys((item.domain, item.stage) for item in wanted)
    lines = [_sums(d, s, [i for i in wanted if (i.domain, i.stage) == (d, s)], seconds) for d, s in keys]
    return [*lines, _sums("all", "", wanted, seconds)]


def _sums(domain: str, stage: str, items: Sequence[Wanted], seconds: dict[Wanted, float]) -> list[str]:
    missing = [item for item in items if not item.file.exists()]
    guesses = [estimate(item, seconds) for item in missing]
    known = [guess for guess in guesses if guess is not None]
    unknown = len(guesses) - len(known)
    to_go = hours(sum(known)) if known else ""
    if known and unknown:
        to_go += f" and {unknown} not measured"
    done = [seconds[item] for item in items if item in seconds]
    return [domain, stage, str(len(items) - len(missing)), str(len(missing)), hours(sum(done)) if done else "", to_go]


def hours(seconds: float) -> str:
    """Three figures after the point below an hour's tenth, else one."""
    return f"{seconds / 3600:.3f}" if seconds < 360 else f"{seconds / 3600:.1f}"


def main() -> None:
    """Print the rows as a table under their header."""
    wanted = [parse(path) for path in sys.stdin.read().split()]
    table = [["domain", "stage", "made", "missing", "hours done", "hours to go"], *rows(wanted, measured(wanted))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    main()
