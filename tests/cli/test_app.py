from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from bitagent_cli import __version__

Bitagent = Callable[..., Result]
STAGES = ("collect", "embed", "pretrain", "behave", "evaluate", "transfer", "visualize")
COMMON = ("--preset", "--scale", "--seed", "--device", "--out", "--set", "--fresh", "--quiet")


def test_help_lists_every_command(bitagent: Bitagent) -> None:
    result = bitagent("--help")
    assert result.exit_code == 0
    for name in (*STAGES, "doctor", "inspect", "bench"):
        assert name in result.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_stage_help_has_the_common_options_and_an_example(bitagent: Bitagent, stage: str) -> None:
    text = bitagent(stage, "--help").stdout
    for option in COMMON:
        assert option in text
    assert f"Example: bitagent {stage} " in text


def test_version(bitagent: Bitagent) -> None:
    assert bitagent("--version").stdout == f"bitagent {__version__}\n"


def test_help_does_not_load_pytorch() -> None:
    code = (
        "import sys\nfrom bitagent_cli.app import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(sorted({'torch', 'mujoco', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr


def test_a_folder_called_stages_where_one_works_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("raise RuntimeError('not this one')")
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-m", "bitagent_cli", "collect", "--preset", "nobody"]
    ran = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert ran.returncode == 2 and "unknown preset" in ran.stderr, ran.stderr
