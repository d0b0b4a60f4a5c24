"""Coverage: bins counted literally, datasets compared at equal frames."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from stages.data.episodes import Dataset
from stages.report import coverage
from stages.worlds import tasks
from tests.data.real_data import make_data, play


def test_bins_of_a_walker_are_those_of_its_coordinates() -> None:
    states = play("walker", "stand", 40, 0).state
    assert states is not None
    env = tasks.make_env("walker", "stand")
    found = coverage.bins("walker", states)
    for state, row in zip(states, found, strict=True):
        env._physics.data.qpos[:], env._physics.data.qvel[:] = state[:9], state[9:]
        env._physics.forward()
        data = env._physics.named.data
        pitch = math.remainder(-data.qpos["rooty"][0], 2 * math.pi)  # the joint turns the nose down
        wanted = (env._physics.torso_height() / 0.1, pitch / (math.pi / 12), data.qvel["rootx"][0] / 0.5)
        assert row.tolist() == [math.floor(value) for value in wanted]
    assert coverage.occupied_bins("walker", states) == len({tuple(row) for row in found.tolist()})
    assert coverage.occupied_bins("walker", np.concatenate([states, states[::-1]])) == len(np.unique(found, axis=0))


@pytest.mark.parametrize("domain", tasks.DOMAINS)
def test_every_body_has_bins(domain: str) -> None:
    states = play(domain, tasks.task_names(domain)[0], 30, 0).state
    assert states is not None and 1 < coverage.occupied_bins(domain, states) <= 30
    assert coverage.occupied_bins(domain, np.repeat(states[:1], 3, 0)) == 1


def test_datasets_are_compared_at_equal_frames(tmp_path: Path) -> None:
    small, large = make_data(tmp_path, episodes=2, rows=20), make_data(tmp_path, task="walk", episodes=6, rows=20)
    datasets = {a.path.name: Dataset.open([a.path], "walker") for a in (large, small)}
    np.testing.assert_array_equal(
        coverage.spread_rows(datasets["expert-walk"], 40), [*range(20), *range(100, 120)]
    )  # whole episodes, first and last
    table = coverage.coverage_table(datasets)
    assert table is not None
    assert [(n["dataset"], n["frames"]) for n in table.numbers] == [("expert-walk", 40), ("random", 40)]
    counts = [n["occupied_bins"] for n in table.numbers]
    assert table.rows == [
        ["expert-walk", "40", str(counts[0]), f"{counts[0] / counts[1]:.2f}"],
        ["random", "40", str(counts[1]), "1.00"],
    ]
    assert coverage.coverage_table({"random": datasets["random"]}) is None
