"""SIGKILL at a random moment of any stage, then the same command again: the same bytes as without.

`make torture` does the same hundreds of times.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.faults.pipeline import KILLED, Pipeline, Step
from tests.faults.torture import Tally, kill


@pytest.mark.parametrize("step", KILLED, ids=lambda step: step.name)
def test_killed_and_repeated_ends_with_the_same_bytes(pipeline: Pipeline, tmp_path: Path, step: Step) -> None:
    tally = Tally(tmp_path / "torture.json")  # the seed's first moments lie in the middle of each step
    kill(pipeline, step, tmp_path / "killed", random.Random(f"0 {step.name}"), tally, kills=2)
    assert not tally.bad
    assert tally.counts[f"identical {step.name}"] >= 1
    assert tally.counts[f"kill {step.name}"] >= 1, "no kill met the command still running"


def test_a_command_killed_before_its_first_line_is_counted_like_any_other(pipeline: Pipeline) -> None:
    ended = pipeline.door.run("--version", signals=[(0.0, signal.SIGKILL)])
    assert (ended.code, ended.signals, ended.stdout, ended.stderr) == (137, 1, "", "")
    assert pipeline.door.run("--version").stdout.startswith("bitagent ")
