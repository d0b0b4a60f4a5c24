"""BiTAgent from Python: environments, datasets, models and policies, a line each.

    env = bitagent.make("walker-walk", obs="pixels")                          # a Gymnasium environment
    windows = bitagent.load_dataset("runs/walker-laptop/data/random", length=32)   # a PyTorch dataset
    model = bitagent.load_model("runs/walker-laptop/model/bitagent-s0")
    frames = model.imagine("walk fast", steps=20)                                  # what the text looks like to it
    policy = bitagent.load_policy("runs/walker-laptop/policy/bitagent-s0/walk")    # policy.reset(), policy.act(frame)

What is missing or damaged raises `bitagent.BadInput`, whose message says what to do. A whole example is
examples/from_python.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.backbones import Backbone, backbone_of
from stages.core.world_model import WorldModel
from stages.data.episodes import Dataset
from stages.methods import open_model
from stages.policies.packing import root_of
from stages.policies.policy import Policy
from stages.report.diagnostics import text_dream
from stages.runtime import artifacts
from stages.runtime.errors import BadInput

__all__ = ["BadInput", "TextModel", "Windowed", "load_dataset", "load_model", "load_policy", "make"]


def make(name: str, **options: Any) -> Any:
    """A task as a Gymnasium environment: 'walker-walk', with the options of stages/worlds/gym.py (obs, size, ...).

    Raises BadInput when Gymnasium is not installed, gymnasium.error.NameNotFound for a task that is not there.
    """
    import stages.worlds.gym as tasks_of_gym

    return tasks_of_gym.gymnasium.make(f"bitagent/{name}-v0", **options)


class Windowed(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Every window of `length` rows inside an episode, as {array: (T, ...)}; frames are (T, 3, S, S) uint8."""

    def __init__(self, data: Dataset, length: int, keys: list[str]) -> None:
        info = data.episode_info
        starts = [s + np.arange(n - length + 1) for s, n in zip(info.start, info.length, strict=True) if n >= length]
        if not starts:
            raise BadInput(f"no episode has {length} rows (the longest has {info.length.max()}); give a smaller length")
        self.data, self.length, self.keys, self.starts = data, length, keys, np.concatenate(starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = self.starts[index : index + 1]
        if index < 0 or not len(start):
            raise IndexError(index)
        return {key: torch.from_numpy(self.data.windows(key, start, self.length)[0]) for key in self.keys}


def load_dataset(path: str | Path, length: int, keys: list[str] | None = None) -> Windowed:
    """A dataset of a run, see `Windowed`.

    Args:
        keys: of image, action, reward, is_first, is_terminal, state; by default image, action and reward.
    """
    found = artifacts.load(Path(path), "collect")
    return Windowed(Dataset.open([found.path], found.domain), length, keys or ["image", "action", "reward"])


class TextModel:
    """A world model with the backbone that reads its texts; `world_model` is the PyTorch module."""

    def __init__(self, world_model: WorldModel, backbone: Backbone) -> None:
        self.world_model, self.backbone = world_model, backbone
        self.device = next(world_model.parameters()).device

    def imagine(self, text: str, steps: int) -> np.ndarray:
        """What a text looks like to the model, decoded (Eq. 7, 8): frames (steps + 1, 3, 64, 64) uint8."""
        with torch.no_grad():
            context = self.world_model.task(self.backbone.encode_text([text]).to(self.device))
        actions = torch.zeros(1, steps, self.world_model.dim_action, device=self.device)
        return text_dream(self.world_model, context, actions)[0]


def load_model(path: str | Path, device: str = "cpu") -> TextModel:
    """The model of a pretrain artifact, or the one in a policy."""
    found = artifacts.load(Path(path))
    backbone = backbone_of(found, found.meta["extra"]["backbone"], root_of(found), device, "bitagent pretrain --fresh")
    return TextModel(open_model(found, device), backbone)


def load_policy(path: str | Path, device: str = "cpu") -> Policy:
    """A policy artifact: `reset()` before an episode, then `act(frame)`, see stages/policies/policy.py."""
    return Policy.load(path, device)
