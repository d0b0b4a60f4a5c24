"""Pretrain: the world model, TAMF, the text imagination and the MLLM adapter, jointly (Section 3.3, Eq. 11).

    bitagent pretrain --preset walker
    torchrun --nproc-per-node 8 -m bitagent_cli pretrain --preset walker

Reads runs/<run>/data/* and runs/<run>/embeddings/<backbone>/*, writes runs/<run>/model/<method>-s<seed>.
The loop itself is stages/core/pretraining.py, which `transfer` shares; the loss is stages/core/objective.py.
"""

from __future__ import annotations

from stages.core.agent import ModelConfig
from stages.core.artifacts import Artifact
from stages.core.backbones.tuning import ADAPTER, MllmConfig
from stages.core.config import Run
from stages.core.pretraining import Job, TrainingConfig, find_inputs, make_model


class Config(TrainingConfig):
    """Section `pretrain` of the preset; fields in stages/core/pretraining.py, defaults in presets/paper.yaml."""


def run(
    config: Config,
    model_config: ModelConfig,
    run: Run,
    *,
    method: str = "bitagent",
    mllm: MllmConfig = ADAPTER,
) -> Artifact:
    """Train and save the joint model. Raises BadInput for missing data, Interrupted on a signal."""
    data, embeddings = find_inputs(run, config.backbone)
    command = run.command("pretrain", "--seed", str(run.seed))
    return make_model(Job(config, model_config, run, method, data, embeddings, command, mllm=mllm))
