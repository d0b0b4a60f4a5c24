from __future__ import annotations

import pytest

from bitagent_cli.bench import random_returns, render
from stages.core import opengl
from stages.core.tasks import get_task


def test_without_opengl_the_ray_renderer_is_still_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opengl, "PLATFORMS", ("absent",))
    opengl.find_platform.cache_clear()
    try:
        found = render.run(domains=["cheetah"], frames=5)
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
