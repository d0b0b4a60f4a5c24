"""What `mllm.train` trains of a backbone's video side.

    mode       parameters of the backbone
    none       none
    adapter    none: the residual adapter on its embedding is part of the joint model
    last-k     its last k layers and its output head
    lora       low-rank updates of the linear maps in its blocks (Hu et al., 2022; needs peft)
    full       all of the video side

The text side stays as it is: the prompt is what the agent is asked for. Layers stay in evaluation mode.

The last three run the backbone in the training loop, on the model's own 64×64 frames, which it resizes
with torch where it wants others; e_v is then its output, without an adapter. What they trained is saved
with the model, and whatever later reads e_v for that model reads it from the tuned backbone. Pseudo-text and
video prompts stay the frozen backbone's, whose space the prompts' text is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stages.backbones import backbone_of
from stages.backbones.base import Backbone, resize
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run, Section
from stages.runtime.errors import BadInput

Mode = Literal["none", "adapter", "last-k", "lora", "full"]
IN_LOOP: tuple[Mode, ...] = ("last-k", "lora", "full")  # the backbone runs in the training loop


class MllmConfig(Section):
    """Section `mllm` of the preset; defaults and comments in presets/paper.yaml."""

    train: Mode
    last_k: int
    lora_rank: int

    @property
    def in_loop(self) -> bool:
        return self.train in IN_LOOP

    @property
    def record(self) -> dict[str, Any]:
        """What of it decides a model's content: nothing for the adapter, which all models had before this choice."""
        sizes = {"last-k": {"last_k": self.last_k}, "lora": {"lora_rank": self.lora_rank}}
        return {} if self.train == "adapter" else {"mllm": {"train": self.train, **sizes.get(self.train, {})}}


ADAPTER = MllmConfig(train="adapter", last_k=1, lora_rank=1)


def mllm_of(artifact: Artifact) -> MllmConfig:
    """How a model artifact, or the policy made from it, was trained; with the adapter where it does not say."""
    found = artifact.meta["extra"].get("mllm")
    return MllmConfig.model_validate(found) if found else ADAPTER


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


def load_tower(
    config: MllmConfig, name: str, embedded: Artifact, run: Run, device: torch.device, source: Artifact | None
) -> Backbone | None:
    """The backbone to train in the loop, its chosen parameters free; None in the modes that need none there.

    Args:
        embedded: the embeddings of a dataset it is trained beside.
        source: a model whose tuned backbone it goes on from, if that is the same backbone.

    Raises:
        BadInput: the embeddings are another backbone's, or it cannot be loaded or trained.
    """
    if not config.in_loop:
        return None
    backbone = backbone_of(embedded, name, run.root, str(device), run.command("embed", "--backbone", name, "--fresh"))
    make_trainable(backbone, config.train, config.last_k, config.lora_rank)
    if source and source.meta["extra"]["backbone_id"] == backbone.id:
        load_tuned(backbone, source.tensors("backbone"))
    return backbone


def retune(backbone: Backbone, artifact: Artifact) -> bool:
    """Give a freshly loaded backbone what a model or policy artifact trained of it; whether there was any."""
    config = mllm_of(artifact)
    if not config.in_loop:
        return False
    make_trainable(backbone, config.train, config.last_k, config.lora_rank)
    load_tuned(backbone, artifact.tensors("backbone"))
    backbone.owner.requires_grad_(False)
    backbone.trainable = False
    return True


def window_embeddings(backbone: Backbone, past: Tensor, image: Tensor) -> Tensor:
    """The embedding of the window that ends at each frame of a batch of sequences, with gradients: (B, T, dim).

    Equals what `bitagent embed` stores for these frames, but for the rounding to float16.

    Args:
        past: (B, 7, 3, H, W) uint8, the frames before the first. image: (B, T, 3, H, W) uint8.
    """
    frames = torch.cat([past, image], 1)  # (B, 7 + T, 3, H, W)
    sized = resize(frames.flatten(0, 1), backbone.frame_size, backbone.resample).unflatten(0, frames.shape[:2])
    windows = sized.unfold(1, backbone.window, 1).movedim(-1, 2)  # (B, T, 8, 3, S, S)
    return backbone.encode_video(windows.flatten(0, 1)).unflatten(0, image.shape[:2])
