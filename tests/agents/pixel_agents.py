"""Agents from pixels small enough for a test: an explorer and an expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.agents.dreamer import DreamerConfig, DreamerJob
from stages.agents.explore import ExploreConfig, ExploreJob
from stages.agents.pixel_agent import AgentConfig
from stages.agents.pixel_training import OnlineJob, Training
from stages.core.settings import ActorCriticConfig
from tests.core.helpers import ACTOR_CRITIC, DIM_ACTION, DREAMER, EXPLORE, make_batch, model_config, objective_config

KINDS = ("explore", "dreamer")


def agent_config() -> AgentConfig:
    return AgentConfig(model_config(), objective_config(), ActorCriticConfig(**ACTOR_CRITIC))


def explore_config(**changes: Any) -> ExploreConfig:
    return ExploreConfig(**{**EXPLORE, **changes})


def make_job(kind: str, folder: Path = Path("nowhere")) -> OnlineJob:
    """A job of four episodes."""
    about = ("walker", "stand", 0, 4, folder / kind)
    if kind == "explore":
        return ExploreJob(*about, explore_config(), agent_config(), 0.5)
    return DreamerJob(*about, DreamerConfig(**DREAMER), agent_config(), 0.5, evaluation_episodes=2)


def make_training(kind: str, dim_action: int = DIM_ACTION) -> Training:
    return Training(make_job(kind), dim_action)


def make_windows(dim_action: int = DIM_ACTION) -> dict[str, Tensor]:
    """A batch of the replay, of which one window begins an episode."""
    made = make_batch(3, 6, starts=((0, 0),))
    made["action"], made["reward"] = torch.rand(3, 6, dim_action) * 2 - 1, torch.rand(3, 6) * 2
    return made


def copies(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]
