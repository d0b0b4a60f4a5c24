"""An offline backbone with random weights, without training: what tests need that only look at its shape."""

from __future__ import annotations

from pathlib import Path

import torch

from stages.backbones.offline.tower import OfflineBackbone, Student, TextTower, TowerConfig
from stages.runtime import artifacts

TOWER = {"dim": 6, "depth": 4, "features": 10, "units": 12}


def make_offline(root: Path, seed: int = 0, domain: str = "walker") -> OfflineBackbone:
    """Write a random backbone artifact into root/backbone and load it."""
    torch.manual_seed(seed)
    student = Student(TowerConfig(**TOWER))
    text = TextTower().hash
    made = artifacts.save(
        root / "backbone", "backbone", {"model": student.state_dict()}, domain=domain, config=TOWER, seed=seed,
        extra={"text_tower": text},
    )  # fmt: skip
    return OfflineBackbone(made, "cpu")
