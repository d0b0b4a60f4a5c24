from __future__ import annotations

from pathlib import Path

import pytest

from bitagent_cli.bench import data, random_returns, render
from stages.worlds import opengl
from stages.worlds.tasks import get_task


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


def test_random_returns_are_reproducible_and_summarised() -> None:
    task = get_task("cheetah", "run")
    returns = random_returns.random_returns(task, 2)
    (row,) = random_returns.run([task], 2)
    assert row["task"] == "cheetah run" and row["min"] == task.min_return
    assert row["mean"] == pytest.approx(returns.mean(), abs=0.1)
    assert row["lowest"] <= row["mean"] <= row["highest"]


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
