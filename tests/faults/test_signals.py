"""SIGTERM and Ctrl-C: progress is saved, the exit code is right, and the line that is printed goes on."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest

from stages.data.shards import read_sealed
from stages.runtime import artifacts, storage
from tests.faults.pipeline import Pipeline, find

CHECKPOINTS = {
    "collect expert": "walker-smoke/data/expert-walk.checkpoint/checkpoint.json",
    "embed": "walker-smoke/backbone.checkpoint/checkpoint.json",
    "pretrain": "walker-smoke/model/bitagent-s0.checkpoint/checkpoint.json",
    "behave": "walker-smoke/policy/bitagent-s0/walk.checkpoint/checkpoint.json",
    "transfer": "cheetah-smoke/model/transfer-walker-s0.checkpoint/checkpoint.json",
}


@pytest.mark.parametrize(("name", "signum"), [
    ("collect expert", signal.SIGINT), ("embed", signal.SIGTERM), ("pretrain", signal.SIGTERM),
    ("behave", signal.SIGINT), ("transfer", signal.SIGTERM),
])  # fmt: skip
def test_the_printed_line_goes_on_from_the_checkpoint(
    pipeline: Pipeline, tmp_path: Path, name: str, signum: int
) -> None:
    step = find(name)
    root = pipeline.branch(step, tmp_path / "stopped")
    checkpoint = root / CHECKPOINTS[name]
    ended = pipeline.run(step, root, "--fresh", signals=[(0.0, signum)], once=str(checkpoint))
    assert ended.code == 128 + signum, ended
    said = f"stopped by {signal.Signals(signum).name}, progress saved; continue with: "
    assert ended.last_line.startswith(said) and "Traceback" not in ended.stderr
    assert checkpoint.exists()
    words = shlex.split(ended.last_line.removeprefix(said))
    assert words[0] == "bitagent" and "--fresh" not in words
    again = pipeline.door.run(*words[1:])
    assert again.code == 0, again
    assert pipeline.ids(step, root) == pipeline.ids(step)
    assert not checkpoint.exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stage_without_checkpoints_ends_in_order_too(pipeline: Pipeline, tmp_path: Path, signum: int) -> None:
    step = find("evaluate")
    root = pipeline.branch(step, tmp_path / "stopped")
    ended = pipeline.run(step, root, signals=[(pipeline.seconds["evaluate"] / 4, signum)])
    assert ended.code == 128 + signum, ended
    assert "; continue with: bitagent evaluate --task walk" in ended.last_line
    assert not list(root.rglob("evaluation/*/*/artifact.json")) and not list(root.rglob(".*.tmp"))


def test_a_second_ctrl_c_leaves_at_once_with_nothing_half_written(pipeline: Pipeline, tmp_path: Path) -> None:
    """After its first episode the expert has minutes of updates to do before it would look at the first request."""
    step = find("collect expert")
    slow = ("--set", "collect.expert.updates_per_decision=1000")
    ended = pipeline.run(
        step, tmp_path, *slow, once=str(tmp_path / "walker-smoke/data/expert-walk.replay/episode-000000.safetensors"),
        signals=[(0.3, signal.SIGINT), (0.3, signal.SIGINT)],
    )  # fmt: skip
    assert (ended.code, ended.signals, ended.stderr) == (130, 2, "")
    assert ended.after < 5, "it waited"
    assert read_sealed(tmp_path / "walker-smoke/data/expert-walk.replay/episode-000000.safetensors")
    path = tmp_path / "walker-smoke/data/expert-walk"
    assert not path.exists()
    with storage.locked(path):
        pass


def test_a_stopped_rebuild_goes_on_without_fresh(pipeline: Pipeline, tmp_path: Path) -> None:
    """What was there before `--fresh` stays readable, and is not taken for the result of the rebuild."""
    step = find("behave")
    root = pipeline.branch(step, tmp_path / "rebuilt")
    assert pipeline.run(step, root).code == 0
    old = root / step.makes[0]
    before = (old / "artifact.json").stat().st_mtime_ns
    checkpoint = root / CHECKPOINTS["behave"]
    ended = pipeline.run(step, root, "--fresh", signals=[(0.0, signal.SIGTERM)], once=str(checkpoint))
    assert ended.code == 143 and checkpoint.exists()
    assert artifacts.load(old).meta and (old / "artifact.json").stat().st_mtime_ns == before
    assert pipeline.run(step, root).code == 0
    assert (old / "artifact.json").stat().st_mtime_ns > before
    assert pipeline.ids(step, root) == pipeline.ids(step)
    done = (old / "artifact.json").read_bytes()  # when and in how many seconds it was made
    assert pipeline.run(step, root).code == 0
    assert (old / "artifact.json").read_bytes() == done, "finished: reused from here on"


def test_a_diverging_run_says_how_to_go_on(pipeline: Pipeline, tmp_path: Path) -> None:
    step = find("pretrain")
    root = pipeline.branch(step, tmp_path / "diverged")
    ended = pipeline.run(step, root, "--set", "pretrain.lr=1e30", "--set", "pretrain.clip=1e30")
    assert ended.code == 2 and "Traceback" not in ended.stderr
    for words in ("non-finite at step ", "image=", "checkpoint", "--set pretrain.lr=3.3e+29"):
        assert words in ended.last_line
    assert not (root / step.makes[0]).exists()
