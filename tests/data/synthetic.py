"""Small datasets of random pixels for tests of the data rooms, and processes to kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.episodes import DatasetWriter, Episode
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run

ROOT = Path(__file__).resolve().parents[2]

# Sizes that differ from each other, so that a swapped axis cannot pass unseen.
SIZE, ACTIONS, STATES = 4, 6, 5


def make_episode(number: int, rows: int = 20, *, image: bool = True, state: bool = True) -> Episode:
    """Episode `number`: its actions spell (number, row), so a window's place can be read from its content."""
    random = np.random.default_rng(number)
    action = random.normal(size=(rows, ACTIONS)).astype(np.float32)
    action[:, 0], action[:, 1] = number, np.arange(rows)
    return Episode(
        image=random.integers(0, 256, (rows, 3, SIZE, SIZE), dtype=np.uint8) if image else None,
        action=action,
        reward=random.random(rows, np.float32),
        is_first=np.arange(rows) == 0,
        is_terminal=np.arange(rows) == rows - 1,
        state=random.normal(size=(rows, STATES)) if state else None,
        seed=1000 + number,
    )


def make_run(root: Path, **changed: Any) -> Run:
    return Run(**{"domain": "walker", "scale": "smoke", "root": root, "quiet": True, **changed})


def make_writer(path: Path, **changed: Any) -> DatasetWriter:
    """A writer whose run, config or facts are changed by name."""
    about: dict[str, Any] = {"domain": "walker", "seed": 0, "resolved": {}, "config": {"noise": 0.3}, "inputs": ()}
    about |= {"source": "random", "task": "", "renderer": "ray", "image_size": SIZE, "fresh": False} | changed
    taken = {name: about.pop(name) for name in ("domain", "seed", "resolved", "config", "inputs", "fresh")}
    run = make_run(path.parent, **{name: taken[name] for name in ("domain", "seed", "resolved")})
    return DatasetWriter(path, run, taken["config"], about, taken["inputs"], taken["fresh"])


def make_dataset(path: Path, lengths: Sequence[int] = (20, 12, 31), first: int = 0, **changed: Any) -> Artifact:
    """A dataset of episodes numbered from `first`, of these lengths."""
    writer = make_writer(path, **changed)
    image = bool(writer.facts["image_size"])
    for index, rows in enumerate(lengths):
        writer.append(index, make_episode(first + index, rows, image=image))
    return writer.finish()


def make_branches(
    path: Path, origins: Sequence[tuple[int, int, int]], rows: int = 20, first: int = 100, **changed: Any
) -> Artifact:
    """A dataset of branches of these origins, episodes numbered from `first`, by default cut from one called random."""
    writer = make_writer(path, source="branch", **{"cut_from": ["random"], **changed})
    for index, origin in enumerate(origins):
        episode = make_episode(first + index, rows, image=bool(writer.facts["image_size"]))
        writer.append(index, replace(episode, is_first=np.zeros(rows, bool), origin=origin))
    return writer.finish()


def write_meta(path: Path, meta: dict[str, Any]) -> None:
    """Replace an artifact.json by one whose id and seal fit its content, as a careful forger would."""
    signed = meta | {"id": storage.digest({key: meta[key] for key in artifacts.CONTENT})}
    (path / "artifact.json").write_text(json.dumps(storage.seal(signed)))


def assert_same(found: Episode, wanted: Episode) -> None:
    for name, value in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def start(code: str, *arguments: str | Path, stdin: int | None = None) -> subprocess.Popen[str]:
    """Run Python code in a process of its own that can import the project."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True, env=environment)
