"""Which parameters each loss reaches for every `mllm.train`, through the joint loss itself, on tiny backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.backbones import Backbone
from stages.backbones.internvideo2 import InternVideo2Backbone
from stages.backbones.offline.tower import load_offline
from stages.backbones.tuning import IN_LOOP, Mode, make_trainable
from stages.core.bitagent import BiTAgent
from stages.core.world_model import Labels
from stages.pretrain import JointObjective
from stages.runtime.distributed import World
from tests.backbones.test_internvideo2 import make_model as make_internvideo2
from tests.backbones.trained import make_offline
from tests.core.helpers import DIM_ACTION, make_batch, model_config, objective_config, scramble

MODES: tuple[Mode, ...] = ("none", "adapter", "last-k", "lora", "full")
OFF = dict.fromkeys(
    ("world_model", "mllm", "joint_behavior", "rollout", "text_imagination", "semantic_prediction"), 0.0
)
LOSSES = {"L_WM": "world_model", "L_MLLM": "mllm", "L_JBO": "joint_behavior"}  # each alone, by its weight
KEY_BIASES = ("k_bias",)  # the softmax does not see a shift of its logits: their gradient is rounding


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the offline backbone's artifact."""
    folder = tmp_path_factory.mktemp("backbone")
    make_offline(folder)
    return folder


def make_backbone(kind: str, root: Path) -> Backbone:
    if kind == "offline":
        return load_offline(root, "cpu")
    return InternVideo2Backbone(make_internvideo2(), None, "tiny", "cpu")


def make_objective(backbone: Backbone, mode: Mode, loss: str) -> JointObjective:
    """The objective of pretraining with one loss alone, and nothing at an initial value that hides a gradient."""
    torch.manual_seed(0)
    model = BiTAgent(model_config(), backbone.dim, DIM_ACTION, adapter=mode == "adapter")
    scramble(model)
    for parameter in make_trainable(backbone, mode, k=2, rank=2):
        parameter.data += 0.05 * torch.randn(parameter.shape)
    config = objective_config(**(OFF | {LOSSES[loss]: 1.0, "free_nats": 0.0, "pseudo_text": 0.0}))
    text = F.normalize(torch.randn(2, backbone.dim), dim=-1)
    labels = Labels(text, torch.tensor([True, True]), torch.tensor([-1.0, -1.0]))  # every segment shows its prompt
    return JointObjective(
        model, labels, config, World(0, 1, torch.device("cpu")), backbone if mode in IN_LOOP else None
    )


def batch_for(backbone: Backbone) -> dict[str, torch.Tensor]:
    batch = make_batch(batch=2)
    batch["embedding"] = F.normalize(torch.randn(*batch["action"].shape[:2], backbone.dim), dim=-1).half()
    batch["past"] = torch.randint(0, 256, (2, backbone.window - 1, 3, 64, 64), dtype=torch.uint8)
    return batch


def promised(backbone: Backbone, mode: Mode) -> set[str]:
    """Names of what a mode trains of the backbone, read from its definition rather than from requires_grad."""
    names = {id(p): n for n, p in backbone.owner.named_parameters()}
    if mode == "lora":
        return {n for n in names.values() if ".lora_A." in n or ".lora_B." in n}
    modules = {"last-k": backbone.layers()[-2:], "full": [backbone.video]}.get(mode, [])
    return {names[id(p)] for m in modules for p in m.parameters()}


def alive(module: nn.Module) -> set[str]:
    return {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["offline", "internvideo2"])
def test_each_loss_reaches_just_what_the_mode_promises(kind: str, mode: Mode, loss: str, root: Path) -> None:
    if mode == "lora":
        pytest.importorskip("peft")
    backbone = make_backbone(kind, root)
    objective = make_objective(backbone, mode, loss)
    total, _ = objective(batch_for(backbone))
    total.backward()
    of_backbone, of_adapter = alive(backbone.owner), alive(objective.model.adapter)
    assert alive(objective.model)  # the loss itself is alive
    wanted = promised(backbone, mode)
    assert of_backbone <= wanted
    assert {n for n in wanted - of_backbone if not n.endswith(KEY_BIASES)} == set()
    assert of_adapter == {n for n, _ in objective.model.adapter.named_parameters()}
    assert bool(of_backbone) == (mode in IN_LOOP) and bool(of_adapter) == (mode == "adapter")
