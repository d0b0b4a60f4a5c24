"""Returns of a uniformly random policy beside the minimum that normalises each task's score.

python -m bitagent_cli.bench.random_returns         # the ten training tasks, a Markdown table
python -m bitagent_cli.bench.random_returns all     # the zero-shot tasks too
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.worlds.tasks import TASKS, Task, make_env


def run(tasks: Sequence[Task], episodes: int = 20) -> list[dict[str, Any]]:
    """One row a task: {"task", "mean", "std", "lowest", "highest", "min"}; "min" is the table's."""
    rows = []
    for task in tasks:
        returns = random_returns(task, episodes)
        rows.append(
            {
                "task": f"{task.domain} {task.name}",
                "mean": round(float(returns.mean()), 1),
                "std": round(float(returns.std(ddof=1)), 1),
                "lowest": round(float(returns.min()), 1),
                "highest": round(float(returns.max()), 1),
                "min": task.min_return,
            }
        )
    return rows


def random_returns(task: Task, episodes: int) -> np.ndarray:
    """(episodes,) returns with actions uniform in [-1, 1]; episode i starts from seed i."""
    env, returns = make_env(task.domain, task.name), np.zeros(episodes)
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        step = env.reset(seed)
        while not step.is_last:
            step = env.step(rng.uniform(-1, 1, env.action_dim))
            returns[seed] += step.reward
    return returns


def print_table(tasks: Sequence[Task]) -> None:
    """Print a Markdown table, row by row as each is measured."""
    print("| task | mean | sd | lowest | highest | table's min |\n| --- | --- | --- | --- | --- | --- |")
    for task in tasks:
        (row,) = run([task])
        cells = (row[key] for key in ("task", "mean", "std", "lowest", "highest", "min"))
        print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    print_table([task for task in TASKS if task.training or "all" in sys.argv[1:]])
