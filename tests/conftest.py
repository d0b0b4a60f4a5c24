"""Shared by all tests: one PyTorch thread, no OpenGL asked for, and a hand on the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from stages.runtime.config import Run

os.environ.pop("MUJOCO_GL", None)

Bitagent = Callable[..., Result]
Refused = Callable[..., None]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two workers on two cores: more threads only get in each other's way, and sums keep their order."""
    torch.set_num_threads(1)


@pytest.fixture
def bitagent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bitagent:
    """Run one command in-process, in an empty working directory: bitagent("collect", "--seed", "1")."""
    from bitagent_cli.app import app

    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="bitagent")

    return call


@pytest.fixture
def walker_run(tmp_path: Path) -> Run:
    """A quiet CPU run of the walker at smoke scale in a folder of its own."""
    return Run(domain="walker", scale="smoke", root=tmp_path / "walker-smoke", quiet=True)


@pytest.fixture
def assert_refused() -> Refused:
    """The contract of bad input: exit code 2, one `error:` line on stderr that holds `words`, no traceback."""

    def check(result: Result, *words: str) -> None:
        assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
        lines = result.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and lines[-1] == errors[0], result.stderr
        assert "Traceback" not in result.output
        for word in words:
            assert word in errors[0], errors[0]

    return check
