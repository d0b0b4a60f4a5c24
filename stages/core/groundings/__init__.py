"""How a prompt reaches the world model: one class a method, each with a pretraining loss and a reward.

The only place that chooses among them by name:

    model = groundings.build("genrl", model_config, dim_embedding, dim_action, preset.groundings)
    model = groundings.open_model(artifact, "cpu")
"""

from __future__ import annotations

from typing import Any

import torch

from stages.backbones.tuning import MllmConfig
from stages.core.agent import load_model
from stages.core.groundings.bitagent import BiTAgent
from stages.core.groundings.founder import Founder, FounderConfig
from stages.core.groundings.genrl import GenRL, GenRLConfig
from stages.core.groundings.wm_clip import WMCLIP
from stages.core.settings import ModelConfig
from stages.core.world_model import WorldModel
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Section
from stages.runtime.errors import BadInput
from stages.runtime.names import base_method


class Constants(Section):
    """Section `groundings` of the preset: what the baselines have beside the shared world model."""

    genrl: GenRLConfig
    founder: FounderConfig


BASELINES: dict[str, type[WorldModel]] = {"wm-clip": WMCLIP, "genrl": GenRL, "founder": Founder}


def constants_of(method: str, constants: Constants | None) -> dict[str, Any]:
    """The constants that a method's model is made with, for its record; none for BiTAgent and its ablations.

    Raises BadInput when they are needed and not given.
    """
    name = base_method(method)
    if name not in BASELINES:
        return {}
    if constants is None:
        raise BadInput(f"method {method} needs its constants: pass the preset's section `groundings`")
    return dict(constants.model_dump().get(name.replace("-", "_"), {}))


def tuned_by(method: str, mllm: MllmConfig) -> MllmConfig:
    """What a method trains of the backbone: BiTAgent what section `mllm` says, the baselines nothing.

    Raises BadInput for a baseline with a backbone in the loop.
    """
    if base_method(method) not in BASELINES:
        return mllm
    if mllm.in_loop:
        raise BadInput(f"{method} reads a frozen backbone: leave out --set mllm.train={mllm.train}")
    return mllm.model_copy(update={"train": "none"})


def build(
    method: str,
    config: ModelConfig,
    dim_embedding: int,
    dim_action: int,
    constants: dict[str, Any],
    adapter: bool = True,
) -> WorldModel:
    """The untrained model of a method; any label that is no baseline's is BiTAgent under some switches.

    Args:
        constants: of `constants_of`.
        adapter: whether BiTAgent's e_v passes the adapter.
    """
    kind = BASELINES.get(base_method(method))
    if kind is None:
        return BiTAgent(config, dim_embedding, dim_action, adapter)
    return kind(config, dim_embedding, dim_action, **constants)


def open_model(artifact: Artifact, device: str | torch.device = "cpu") -> WorldModel:
    """The model a pretrain, behave or transfer artifact holds, frozen; see `agent.load_model`."""
    about = artifact.meta["config"]

    def make(config: ModelConfig, dim_embedding: int, dim_action: int, adapter: bool) -> WorldModel:
        constants = dict(about.get("grounding", {}))
        return build(about["method"], config, dim_embedding, dim_action, constants, adapter)

    return load_model(artifact, device, make)
