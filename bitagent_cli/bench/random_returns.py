"""Returns of a uniformly random policy beside the minimum that normalises each task's score.

bitagent bench random-returns                 # the training tasks, a Markdown table
bitagent bench random-returns --zero-shot     # all tasks
"""

from __future__ import annotations

from collections.abc import Sequence

from stages.evaluate import random_returns
from stages.worlds.tasks import Task

EPISODES = 20
COLUMNS = ("task", "mean", "sd", "lowest", "highest", "min", "within 2 sd")


def row(task: Task, episodes: int = EPISODES) -> list[str]:
    """The cells of a task: its random returns, the reference minimum, and whether |mean - min| is at most 2 sd."""
    returns = random_returns(task.domain, task.name, episodes)
    mean, sd = returns.mean(), returns.std(ddof=1)
    numbers = [f"{value:.1f}" for value in (mean, sd, returns.min(), returns.max())]
    return [
        f"{task.domain} {task.name}", *numbers, f"{task.min_return:g}",
        "yes" if abs(mean - task.min_return) <= 2 * sd else "no",
    ]  # fmt: skip


def print_table(tasks: Sequence[Task], episodes: int = EPISODES) -> None:
    """Print a Markdown table, row by row as each is measured."""
    for cells in (COLUMNS, ["---"] * len(COLUMNS)):
        print(f"| {' | '.join(cells)} |")
    for task in tasks:
        print(f"| {' | '.join(row(task, episodes))} |", flush=True)
