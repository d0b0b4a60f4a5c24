"""What `mllm.train` trains of a backbone's video side.

    mode       parameters of the backbone
    none       none
    adapter    none: the residual adapter on its embedding is part of the joint model
    last-k     its last k layers and its output head
    lora       low-rank updates of the linear maps in its blocks (Hu et al., 2022; needs peft)
    full       all of the video side

The text side stays as it is: the prompt is what the agent is asked for. Layers stay in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from stages.core.backbones.base import Backbone
from stages.core.errors import BadInput

Mode = Literal["none", "adapter", "last-k", "lora", "full"]
IN_LOOP: tuple[Mode, ...] = ("last-k", "lora", "full")  # the backbone runs in the training loop


def make_trainable(backbone: Backbone, mode: Mode, k: int = 2, rank: int = 8) -> list[nn.Parameter]:
    """Free the mode's parameters, freeze the others, and return the free ones in a fixed order.

    Afterwards `backbone.encode_video` keeps the graph, when the mode frees anything. Freed parameters are
    float32. Call it once on a freshly loaded backbone: `lora` changes its modules.

    Args:
        k: layers of last-k. rank: of lora.

    Raises:
        BadInput: k or rank is out of range, or peft is missing.
    """
    backbone.owner.requires_grad_(False)
    chosen: list[nn.Parameter] = []
    if mode == "last-k":
        layers = backbone.layers()
        if not 1 <= k <= len(layers):
            raise BadInput(f"last-k with k = {k}, but {backbone.id} has {len(layers)} layers: use 1 to {len(layers)}")
        chosen = [p for layer in layers[-k:] for p in layer.parameters()]
    elif mode == "lora":
        chosen = _add_lora(backbone, rank)
    elif mode == "full":
        chosen = list(backbone.video.parameters())
    for parameter in chosen:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    backbone.trainable = bool(chosen)
    return chosen


def _add_lora(backbone: Backbone, rank: int) -> list[nn.Parameter]:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise BadInput("mllm.train = lora needs the package peft; install it: pip install 'bitagent[lora]'") from None
    if rank < 1:
        raise BadInput(f"a LoRA rank of {rank} is not positive: use at least 1")
    wanted = {id(m) for m in backbone.linears()}
    names = [name for name, m in backbone.owner.named_modules() if id(m) in wanted]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=names)
    inject_adapter_in_model(config, backbone.owner)
    backbone.owner.requires_grad_(False)
    return [p for name, p in backbone.owner.named_parameters() if ".lora_" in name]


def tuned_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """The trained parameters by name, to be saved with the model that trained them."""
    return {name: p.detach() for name, p in backbone.owner.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_tuned(backbone: Backbone, tensors: Mapping[str, Tensor]) -> None:
    """Put saved tensors back into a backbone prepared by `make_trainable` with the same mode, k and rank.

    Raises BadInput when they belong to another backbone, mode or size.
    """
    here = {name: p for name, p in backbone.owner.named_parameters() if p.requires_grad}
    if {n: tuple(p.shape) for n, p in here.items()} != {n: tuple(t.shape) for n, t in tensors.items()}:
        raise BadInput(
            f"the trained part of the backbone does not fit {backbone.id}: it comes from another backbone or "
            "mllm.train; pretrain again with --fresh"
        )
    for name, parameter in here.items():
        parameter.copy_(tensors[name])
