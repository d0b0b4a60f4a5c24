"""Pretrain: the world model, TAMF, the text imagination and the MLLM adapter, jointly (Section 3.3, Eq. 11).

    bitagent pretrain --preset walker
    torchrun --nproc-per-node 8 -m bitagent_cli pretrain --preset walker

Reads runs/<run>/data/* and runs/<run>/embeddings/<backbone>/*, writes runs/<run>/model/<method>-s<seed>.
The loop itself is stages/core/pretraining.py, which `transfer` shares; the loss is stages/core/objective.py.
"""

from __future__ import annotations

from stages import methods
from stages.backbones.tuning import ADAPTER, MllmConfig
from stages.core.pretraining import Job, TrainingConfig, make_model
from stages.core.settings import ModelConfig
from stages.data.inputs import find_inputs
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.runtime.names import is_model_free, method_option


class Config(TrainingConfig):
    """Section `pretrain` of the preset; fields in stages/core/pretraining.py, defaults in presets/paper.yaml."""


def run(
    config: Config,
    model_config: ModelConfig,
    run: Run,
    *,
    method: str = "bitagent",
    constants: methods.Constants | None = None,
    mllm: MllmConfig = ADAPTER,
) -> Artifact:
    """Train and save the model of a method.

    Args:
        method: see `methods` in presets/paper.yaml.
        constants: section `methods`; needed by the baselines alone.
        mllm: what is trained of the backbone; the baselines train nothing of it.

    Raises:
        BadInput: missing data, a method without a world model. Interrupted: on a signal, after saving a checkpoint.
    """
    if is_model_free(method):
        behave = run.command("behave", "--method", method, "--seed", str(run.seed))
        raise BadInput(f"{method} learns from pixels without a world model: go on with {behave} --task ...")
    data, embeddings = find_inputs(run, config.backbone)
    command = run.command("pretrain", *method_option(method), "--seed", str(run.seed))
    own = methods.constants_of(method, constants)
    mllm = methods.tuned_by(method, mllm)
    return make_model(Job(config, model_config, run, method, data, embeddings, command, constants=own, mllm=mllm))
