"""The wheel, installed where there is no checkout: presets, templates, bodies and the demo's place come along."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "collect.random_episodes=1", "embed.offline.updates=2", "pretrain.updates=2",
    "pretrain.dynamics.updates=2", "behave.updates=2",
    "visualize.error_windows=2", "visualize.reward_windows=20", "visualize.reward_glance=2",
)  # fmt: skip
STAGES = ("collect --source random", "embed", "pretrain", "behave --task run", "evaluate --task run", "visualize")


def run(*words: str | Path, cwd: Path = ROOT) -> str:
    ran = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, (words, ran.stdout[-1500:], ran.stderr[-3000:])
    return ran.stdout


@pytest.mark.timeout(1200)
def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    """A fresh environment that sees the packages of this one, but not its BiTAgent."""
    pytest.importorskip("hatchling", reason="comes with the extra `dev`")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "bitagent_cli/preset_files/paper.yaml", "bitagent_cli/demo_files/README.md", "stages/report/report.html.j2",
        "stages/report/head.html.j2", "stages/report/paper_results.yaml", "stages/worlds/stickman.xml",
        "bitagent/__init__.py",
    ):  # fmt: skip
        assert name in inside, name
    assert not any(name.startswith("tests/") for name in inside)

    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")  # .pth files in there do not count
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert str(tmp_path) in run(python, "-c", "import stages; print(stages.__file__)", cwd=elsewhere)
    small = [word for setting in TINY for word in ("--set", setting)]
    for stage in STAGES:
        said = run(python.with_name("bitagent"), *stage.split(), "--preset", "stickman", "--scale", "smoke", *small,
                   cwd=elsewhere)  # fmt: skip
        assert f"{stage.split()[0]}: " in said.splitlines()[-1]
    assert (elsewhere / "runs" / "stickman-smoke" / "report" / "report.html").exists()
