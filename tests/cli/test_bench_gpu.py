"""`bitagent bench gpu`: its parts write what they found whatever the others did; its data travels without frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitagent_cli import presets
from bitagent_cli.bench import gpu
from bitagent_cli.bench.gpu import GpuOrder
from stages.data.episodes import Dataset
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from tests.conftest import Bitagent, Refused
from tests.data.synthetic import make_run

SPEED = {loop: {"ms": 100.0, "kernels": 7, "tflops": 1.5, "peak_gib": 0.5} for loop in ("pretrain", "behave")}


@pytest.fixture
def collected(tmp_path: Path, bitagent: Bitagent) -> Path:
    """A run with frames: two datasets of two episodes."""
    root = tmp_path / "made"
    for source in (("--source", "random"), ("--source", "expert", "--task", "walk")):
        settings = ("--set", "collect.random_episodes=2", "--set", "collect.expert.decisions.default=1500")
        done = bitagent("collect", "--scale", "smoke", "--quiet", "--workers", "1", "--out", root, *source, *settings)
        assert done.exit_code == 0, done.output
    return root


def test_states_travel_and_give_the_same_frames(collected: Path, tmp_path: Path) -> None:
    """Thinned to the size that is allowed, and rendered again where they arrive."""
    whole = Dataset.open([collected / "data" / "random"], "walker")
    size = gpu.pack_states(collected, tmp_path / "states", "walker")
    packed = gpu.carried(tmp_path / "states", "walker")
    assert [a.path.name for a in packed] == ["expert-walk", "random"] and size < 40e6
    assert not any(a.meta["extra"]["image_size"] for a in packed) and packed[0].meta["extra"]["task"] == "walk"
    run = make_run(tmp_path / "there")
    preset = presets.resolve("walker", "smoke", ())
    found = gpu.bring_data(preset, run, GpuOrder(1.0, "walk", states=tmp_path / "states"))
    arrived = Dataset.open([run.root / "data" / "random"], "walker")
    assert found == sum(a.meta["extra"]["episodes"] for a in packed) and arrived.n_frames == whole.n_frames
    rows = np.arange(0, whole.n_frames, 97)
    for key in ("image", "action", "reward", "state"):
        np.testing.assert_array_equal(arrived.rows(key, rows), whole.rows(key, rows))
    thin = gpu.pack_states(collected, tmp_path / "thin", "walker", megabytes=size / 2e6)
    assert 0.2 * size < thin < 0.8 * size


def test_without_datasets_it_says_how_to_make_them(tmp_path: Path, bitagent: Bitagent, assert_refused: Refused) -> None:
    with pytest.raises(BadInput, match="--pack RUN"):
        gpu.carried(tmp_path, "walker")
    assert_refused(bitagent("bench", "gpu", "--scale", "smoke", "--pack", tmp_path), "--states DIR")


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch, walker_run: Run) -> None:
    """As when a card runs out of memory, or a compiler fails."""

    def fails(*_: object) -> dict[str, object]:
        raise RuntimeError("CUDA error: out of luck")

    monkeypatch.setattr(gpu, "same_updates", fails)
    monkeypatch.setattr(gpu, "genrl_speed", lambda *_: {"ms": 3.0})
    monkeypatch.setattr(gpu.bench, "run", lambda *_: dict(SPEED))
    seen: list[dict[str, object]] = []

    def short_run(preset: object, run: Run, order: object, speed: dict[str, object]) -> dict[str, object]:
        seen.append(json.loads((run.root / "gpu.json").read_text()))
        return {"task": "walk", "score": 0.5, "pretrain_minutes": speed["pretrain"]["ms"]}  # type: ignore[index]

    monkeypatch.setattr(gpu, "short_run", short_run)
    gpu.run_all(presets.resolve("walker", "smoke", ()), walker_run, GpuOrder(1.0, "walk"))
    report = json.loads((walker_run.root / "gpu.json").read_text())
    assert "out of luck" in report["same"]["error"] and report["speed"]["pretrain"]["ms"] == 100.0
    assert set(seen[0]) == {"scale", "domain", "machine", "same", "speed", "genrl"}
    header, _, row = (walker_run.root / "gpu.md").read_text().splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["kernels"] == "7, 7" and cells["same as eager"] == "n/a" and cells["pretraining minutes"] == "100.0"
    assert "walk 0.5" in row


def test_what_differs_is_measured_relative_to_its_size() -> None:
    one = [{"loss": 100.0, "kl": 2.0}, {"loss": 50.0, "kl": 1.0}]
    assert gpu.difference(one, [{"loss": 100.0, "kl": 2.0}, {"loss": 50.0, "kl": 1.0}]) == 0
    assert gpu.difference(one, [{"loss": 101.0, "kl": 2.0}, {"loss": 50.0, "kl": 0.8}]) == pytest.approx(0.2)
