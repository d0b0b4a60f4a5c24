"""The sections of a preset that decide what the model is and how it learns; every default is in presets/paper.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.runtime.compiling import Compile
from stages.runtime.config import Section, Share

Space = Literal["z", "relative", "decoded", "both"]


class ModelConfig(Section):
    """Sizes and variants of the joint model; defaults and comments in presets/paper.yaml."""

    depth: int
    deter: int
    classes: int
    categories: int
    dim_z: int
    dim_task: int
    units: int
    fusion: Literal["tamf", "sum"]
    fusion_layers: int
    expert_hidden: int
    layer_scale: float
    unimix: float
    imagined_semantics: Literal["predict", "hold"]
    reads_imagined: bool
    text_actions: Literal["policy", "none"]

    @property
    def dim_s(self) -> int:
        """Width of s: classes one-hot variables, flattened."""
        return self.classes * self.categories


class ObjectiveConfig(Section):
    """Weights and constants of the objective; defaults and comments in presets/paper.yaml."""

    world_model: float
    decoded: PositiveInt
    mllm: float
    joint_behavior: float
    rollout: float
    text_imagination: float
    semantic_prediction: float
    kl_dynamics: float
    kl_representation: float
    free_nats: float
    align_video: float
    horizon: int
    discount: float
    pseudo_text: float
    pseudo_text_noise: float


class DynamicsConfig(Section):
    """The part of pretraining that trains the dynamics alone; defaults and comments in presets/paper.yaml."""

    updates: int
    batch: int
    length: int
    horizon: int
    lr: float
    codes: float
    semantics: float
    states: float
    branches: Share


class ActorCriticConfig(Section):
    """Constants of behaviour learning; defaults and comments in presets/paper.yaml."""

    units: int
    layers: int
    discount: float
    trace: float
    transitions: float
    imagination: float
    anchor: float
    climb: float
    n_step: int
    target_noise: float
    target_noise_clip: float
    slow_rate: float
    return_floor: float
    return_rate: float
    min_std: float
    max_std: float


class BackwardConfig(Section):
    """The backward path while behaviour is learned; defaults and comments in presets/paper.yaml."""

    every: NonNegativeInt
    updates: PositiveInt
    lr: float


class BehaviorConfig(Section):
    """Section `behave` of the preset; defaults and comments in presets/paper.yaml."""

    updates: int
    decisions: int
    imagined: int
    horizon: int
    start_fraction: Share
    lr: float
    clip: float
    space: Space
    sharpness: NonNegativeFloat
    oracle_updates: int
    bf16: bool
    compile: Compile
    log_every: int
    checkpoint_every: int
    watch_every: int
    watch_episodes: int
    backward: BackwardConfig
    actor_critic: ActorCriticConfig
