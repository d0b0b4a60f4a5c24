"""How a prompt reaches the world model: one class a method, each with a pretraining loss and a reward.

The only place that chooses among them by name:

    model = methods.build("genrl", model_config, dim_embedding, dim_action, constants_of("genrl", preset.groundings))
    model = methods.open_model(artifact, "cpu")
"""

from __future__ import annotations

from typing import Any

import torch

from stages.backbones.tuning import MllmConfig, mllm_of
from stages.core.bitagent import BiTAgent
from stages.core.settings import ModelConfig
from stages.core.world_model import WorldModel
from stages.methods.founder import Founder, FounderConfig
from stages.methods.genrl import GenRL, GenRLConfig
from stages.methods.wm_clip import WMCLIP
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact, load_weights
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
    """The model that a pretrain, behave or transfer artifact holds, frozen, on `device`.

    Raises:
        BadInput: the tensors do not fit the configuration that the artifact records.
    """
    tensors, about, extra = artifact.tensors("model"), artifact.meta["config"], artifact.meta["extra"]
    with artifacts.rebuilding(artifact):
        config = ModelConfig.model_validate(about["model"])
        widths = (extra["dim_embedding"], extra["dim_action"])
        artifacts.require_fit(tensors, (*config.model_dump().values(), *widths), config.fusion_layers)
        constants, adapter = dict(about.get("grounding", {})), mllm_of(artifact).train == "adapter"
        model = build(about["method"], config, *widths, constants, adapter)
    load_weights(model, tensors, artifact.path)
    return model.to(device).requires_grad_(False).eval()
