from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitagent_cli.bench import data, random_returns, render
from bitagent_cli.presets import resolve
from stages.worlds import opengl
from tests.conftest import Bitagent


def test_without_opengl_the_ray_renderer_is_still_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opengl, "PLATFORMS", ("absent",))
    opengl.find_platform.cache_clear()
    try:
        found = render.measure_renderers(domains=["cheetah"], frames=5)
    finally:
        opengl.find_platform.cache_clear()
    assert "no OpenGL works here" in found["opengl"]
    row = found["domains"]["cheetah"]
    assert row["ray"] > 0 and row["gl"] is row["dm_control"] is row["ratio"] is None


def test_random_returns_stand_beside_the_tables_minimum(monkeypatch: pytest.MonkeyPatch, bitagent: Bitagent) -> None:
    """A line a task: the mean is within twice the sample's deviation of `min`, or it is not."""
    returns = {"stand": [10.0, 20.0, 30.0], "jump": [30.0, 30.5, 29.5], "run": [26.0, 6.0, 16.0]}
    monkeypatch.setattr(random_returns, "random_returns", lambda d, t, n: np.array(returns.get(t, [n, n + 1.0])))
    done = bitagent("bench", "random-returns", "--zero-shot", "--domain", "quadruped")
    assert done.exit_code == 0, done.output
    head, _, *lines = done.stdout.splitlines()
    assert head == "| task | mean | sd | lowest | highest | min | within 2 sd |"
    assert [line.split()[2] for line in lines] == ["stand", "walk", "run", "jump", "two_legs", "lie_down"]
    assert lines[0] == "| quadruped stand | 20.0 | 10.0 | 10.0 | 30.0 | 15 | yes |"
    assert lines[1] == "| quadruped walk | 20.5 | 0.7 | 20.0 | 21.0 | 10 | no |"  # 20 episodes
    assert lines[3] == "| quadruped jump | 30.0 | 0.5 | 29.5 | 30.5 | 15 | no |"
    training = bitagent("bench", "random-returns", "--domain", "quadruped").stdout.splitlines()
    assert training == done.stdout.splitlines()[:5]


def test_the_bench_of_a_collection_adds_up(bitagent: Bitagent) -> None:
    """Minutes of an expert are its decisions times what a decision takes."""
    done = bitagent("bench", "collect", "--preset", "walker", "--scale", "smoke")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["ms"]) == {"update", "acting", "physics"} and min(found["ms"].values()) > 0
    assert 0 < found["share"]["physics"] < 1.5 and 0 < found["share"]["update"] < 1.5
    decisions = resolve("walker", "smoke").collect.expert.decisions
    for task in ("stand", "walk", "run"):
        minutes = decisions.get(task, decisions["default"]) * sum(found["ms"].values()) / 60e3
        assert found["expert_minutes"][task] == pytest.approx(minutes, abs=0.06)
    assert found["frames_per_second"] > 0


def test_the_samplers_bench_measures_every_loader_on_the_same_data(tmp_path: Path) -> None:
    found = data.measure_data(gigabytes=0.01, batches=2, folder=tmp_path)
    assert found["episodes"] == 2 and found["dataset_gb"] == pytest.approx(0.01, abs=0.005)
    loaders = ("sampler", "episodes_on_disk", "episodes_in_memory", "memory_copy")
    assert all(found[name]["ms"] > 0 for name in loaders)
    assert found["times_episodes_on_disk"] == pytest.approx(
        found["episodes_on_disk"]["ms"] / found["sampler"]["ms"], abs=0.01
    )
    assert 0 < found["peak_rss_before_opening_gb"] <= found["peak_rss_gb"]
    assert not list(tmp_path.iterdir())  # what it wrote is gone
