"""What pyproject.toml asks for can be installed: on Python 3.13 dm_control stands apart, as its labmaze cannot be."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def applying(lines: Iterable[str], python: str) -> list[Requirement]:
    """Those of some requirements that count on this Python, without extras."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    wanted = map(Requirement, lines)
    return [w for w in wanted if w.marker is None or w.marker.evaluate(environment)]


def everything(python: str) -> set[str]:
    """The packages that `pip install .` brings on this Python, as far as they are installed here to be asked."""
    found: set[str] = set()
    ask = applying(PROJECT["dependencies"], python)
    while ask:
        name = canonicalize_name(ask.pop().name)
        if name not in found:
            found.add(name)
            try:
                ask += applying(metadata.requires(name) or [], python)
            except metadata.PackageNotFoundError:  # of another platform: a build of PyTorch
                continue
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_dm_control_comes_by_itself(python: str) -> None:
    assert "dm-control" in everything(python)


def test_all_that_dm_control_needs_but_labmaze_comes_on_python_3_13() -> None:
    needs = {canonicalize_name(need.name) for need in applying(metadata.requires("dm_control") or [], "3.13")}
    assert needs - everything("3.13") == {"labmaze"}


def test_bounds_leave_out_what_was_seen_to_break() -> None:
    """Typer 0.15 shows no help with Click 8.2; Pillow 10.0 has no fonts of a size; TensorBoard 2.16.0 asks for Keras'
    nightly build; Python 3.14 was not tried."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    declared = {w.name: w.specifier for w in map(Requirement, [*PROJECT["dependencies"], *extras])}
    for name, version in (("typer", "0.15.4"), ("pillow", "10.0.1"), ("tensorboard", "2.16.0")):
        assert Version(version) not in declared[name], name
    assert Version("3.13.9") in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert Version("3.14.0") not in Requirement(f"python{PROJECT['requires-python']}").specifier


@pytest.mark.parametrize(("absent", "said"), [("labmaze", ""), ("dm_control", "pip install --no-deps dm_control")])
def test_the_worlds_need_no_labmaze(absent: str, said: str) -> None:
    code = (
        "import sys\nclass Absent:\n    def find_spec(self, name, path, target=None):\n"
        f"        if name == {absent!r}: raise ModuleNotFoundError('absent', name=name)\n"
        "sys.meta_path.insert(0, Absent())\nimport stages.worlds.suite"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ran.returncode == (1 if said else 0) and said in ran.stderr, ran.stderr
    assert not said or "BadInput" in ran.stderr
