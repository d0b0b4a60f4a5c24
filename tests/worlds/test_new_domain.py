"""docs/extending.md is true: its examples, put into a copy of the code, run from collection to pretraining."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(python|yaml|diff)\n# ([\w./]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = [
    "collect.random_episodes=2", "collect.expert.decisions.default=1000", "collect.expert.evaluation_episodes=1",
    "embed.offline.updates=2", "pretrain.updates=2",
]  # fmt: skip


def extend(copy: Path) -> list[str]:
    """Write the page's examples into a copy of the code; returns the files that were written or changed."""
    blocks = BLOCK.findall((ROOT / "docs" / "extending.md").read_text())
    for kind, name, text in blocks:
        file = copy / name
        if kind != "diff":
            assert not file.exists()
            file.write_text(text)
            continue
        lines = text.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        assert file.read_text().count(before) == 1, f"{name} no longer holds:\n{before}"
        file.write_text(file.read_text().replace(before, "".join(line[1:] for line in lines if line[0] != "-")))
    return [name for _, name, _ in blocks]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with the page's domain, backbone and method."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("stages", "bitagent_cli", "presets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert set(extend(folder)) == {
        "stages/worlds/hopper.py", "presets/hopper.yaml",
        "stages/backbones/patches.py", "stages/backbones/__init__.py",
        "stages/methods/readout.py", "stages/methods/__init__.py", "presets/paper.yaml",
    }  # fmt: skip
    return folder


def bitagent(copy: Path, command: str, *options: str) -> None:
    words = [command, "--preset", "hopper", "--scale", "smoke", "--out", "run", "--quiet", *options]
    words += [word for setting in SMALL for word in ("--set", setting)]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bitagent_cli", *words], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_domain_is_one_file_of_worlds_and_one_preset(copy: Path) -> None:
    bitagent(copy, "collect")
    bitagent(copy, "embed")
    bitagent(copy, "pretrain")
    made = {str(file.parent.relative_to(copy / "run")) for file in (copy / "run").rglob("artifact.json")}
    data = ("random", "expert-stand", "expert-hop", "branch")
    wanted = [f"{kind}/{name}" for kind in ("data", "embeddings/offline") for name in data]
    assert made == {*wanted, "backbone", "model/bitagent-s0"}


def test_a_backbone_and_a_method_are_a_file_and_their_name(copy: Path) -> None:
    bitagent(copy, "collect")  # what is there is reused
    bitagent(copy, "embed", "--backbone", "patches")
    bitagent(copy, "pretrain", "--method", "readout", "--set", "pretrain.backbone=patches")
    assert (copy / "run" / "embeddings" / "patches" / "random" / "artifact.json").exists()
    assert (copy / "run" / "model" / "readout-s0" / "artifact.json").exists()


def test_the_record_and_its_file_have_one_name(copy: Path) -> None:
    misnamed = copy / "stages" / "worlds" / "jumper.py"
    misnamed.write_text((copy / "stages" / "worlds" / "hopper.py").read_text())
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import stages.worlds"], cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True, text=True,
        )  # fmt: skip
    finally:
        misnamed.unlink()
    assert "stages/worlds/jumper.py calls its body 'hopper'" in done.stderr
