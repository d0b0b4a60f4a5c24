"""A joint model small enough for a test, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.bitagent import BiTAgent
from stages.core.settings import DynamicsConfig, ModelConfig, ObjectiveConfig
from stages.core.world_model import Labels

# Sizes that differ from each other, so that a swapped axis cannot pass unseen.
DIM_E, DIM_ACTION = 9, 2

MODEL: dict[str, Any] = {
    "depth": 2,
    "deter": 16,
    "classes": 3,
    "categories": 5,
    "dim_z": 12,
    "dim_task": 10,
    "units": 14,
    "fusion": "tamf",
    "fusion_layers": 2,
    "expert_hidden": 7,
    "layer_scale": 0.1,
    "unimix": 0.01,
    "imagined_semantics": "predict",
    "reads_imagined": False,
    "text_actions": "policy",
}

OBJECTIVE: dict[str, Any] = {
    "world_model": 1.0,
    "decoded": 8,
    "mllm": 5.0,
    "joint_behavior": 0.1,
    "rollout": 0.5,
    "text_imagination": 1.0,
    "semantic_prediction": 5.0,
    "kl_dynamics": 0.5,
    "kl_representation": 0.1,
    "free_nats": 1.0,
    "align_video": 0.1,
    "horizon": 3,
    "discount": 0.9,
    "pseudo_text": 0.5,
    "pseudo_text_noise": 0.5,
}

DYNAMICS: dict[str, Any] = {
    "updates": 2, "batch": 4, "length": 14, "horizon": 2, "lr": 1e-3, "codes": 0.5, "semantics": 5.0, "states": 2.0,
    "branches": 0.5,
}  # fmt: skip

ONLINE: dict[str, Any] = {
    "random_episodes": 2, "updates": 3, "batch": 3, "length": 6, "start_fraction": 0.34, "recent_fraction": 0.34,
    "recent_episodes": 1, "decoded": 4, "lr": 1e-3, "policy_lr": 1e-3, "discount": 0.9, "max_std": 1.0,
    "entropy": 0.0, "saturation": 0.01, "clip": 100.0, "units": 13, "imagined": 5, "horizon": 4, "bf16": False,
    "checkpoint_episodes": 1,
}  # fmt: skip
EXPLORE: dict[str, Any] = {**ONLINE, "in_all": False, "episodes": 4, "members": 3, "layers": 1}
BRANCH: dict[str, Any] = {"in_all": False, "episodes": 5, "length": 10, "lead": 8, "noise": (0.05, 0.6)}
DREAMER: dict[str, Any] = {**ONLINE, "layers": 1}
ACTOR_CRITIC: dict[str, Any] = {
    "units": 14, "layers": 1, "discount": 0.9, "trace": 0.95, "transitions": 1.0, "imagination": 1.0, "anchor": 1.0,
    "climb": 5.0, "n_step": 3, "target_noise": 0.2, "target_noise_clip": 0.5, "slow_rate": 0.02, "return_floor": 0.1,
    "return_rate": 0.01, "min_std": 0.1, "max_std": 1.0,
}  # fmt: skip


def model_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**MODEL, **changes})


def objective_config(**changes: Any) -> ObjectiveConfig:
    return ObjectiveConfig(**{**OBJECTIVE, **changes})


def dynamics_config(**changes: Any) -> DynamicsConfig:
    return DynamicsConfig(**{**DYNAMICS, **changes})


def scramble(module: nn.Module, seed: int = 0, amount: float = 0.2) -> None:
    """Move every parameter off its initial value: biases, norms and LayerScales at 0 or 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))


def make_model(seed: int = 0, **changes: Any) -> BiTAgent:
    """A tiny joint model with no parameter at its initial value."""
    torch.manual_seed(seed)
    model = BiTAgent(model_config(**changes), DIM_E, DIM_ACTION)
    scramble(model, seed)
    return model


def make_batch(
    batch: int = 3, length: int = 8, seed: int = 0, starts: tuple[tuple[int, int], ...] = ()
) -> dict[str, Tensor]:
    """A batch as the sampler makes it; `starts` are the (sequence, time) of episodes' first frames."""
    generator = torch.Generator().manual_seed(seed)
    is_first = torch.zeros(batch, length, dtype=torch.bool)
    for sequence, time in starts:
        is_first[sequence, time] = True
    action = torch.rand(batch, length, DIM_ACTION, generator=generator) * 2 - 1
    action[is_first] = 0.0
    return {
        "image": torch.randint(0, 256, (batch, length, 3, 64, 64), generator=generator, dtype=torch.uint8),
        "action": action,
        "is_first": is_first,
        "embedding": unit(batch, length, generator=generator).half(),
        "task": torch.arange(batch) % 2,
    }


def unit(*lead: int, generator: torch.Generator | None = None) -> Tensor:
    """Random unit vectors (*lead, DIM_E)."""
    return F.normalize(torch.randn(*lead, DIM_E, generator=generator), dim=-1)


def make_labels(seed: int = 0) -> Labels:
    """Two parts: exploration without a label, and one task whose threshold half of all segments pass."""
    text = unit(2, generator=torch.Generator().manual_seed(seed))
    return Labels(text, torch.tensor([False, True]), torch.tensor([0.0, 0.0]))
