"""How the experts of any number of runs learned: one picture of their curves, one table of their scores.

python -m bitagent_cli.bench.expert_curves docs/experts.png runs/walker-laptop runs/cheetah-laptop
"""

from __future__ import annotations

import sys
from pathlib import Path

from stages.core import figures, tables
from stages.core.learning import expert_curves, experts_table, find_experts
from stages.runtime.errors import BadInput


def run(picture: Path, roots: list[Path]) -> str:
    """Draw the curves into `picture`; the table as Markdown. Raises BadInput when the runs hold no expert."""
    found = [expert for root in roots for expert in find_experts(root)]
    table = experts_table(found)
    if table is None:
        raise BadInput(f"no expert in {', '.join(map(str, roots))}; make one with: bitagent collect --source expert")
    figures.learning_curves(picture, expert_curves(found))
    return tables.markdown(table)


if __name__ == "__main__":
    picture, *roots = map(Path, sys.argv[1:])
    print(run(picture, roots))
