"""A policy with what it needs to act, in a run folder of its own: what `push` sends, and what `bitagent demo` plays.

pack_up(artifact, Path("shared"))          as it is: the same ids
shrink(artifact, Path("demo"))          its tensors in fewer bits: artifacts of their own, made from the first
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stages.backbones import load_backbone
from stages.policies.policy import ACTOR
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput

DEPTH = {"backbone": 1, "collect": 2, "pretrain": 2, "behave": 3, "embed": 3, "evaluate": 3, "transfer": 2}
SOME = 4096  # weights of the smallest matrix that is kept in fewer bits: what is smaller weighs little


def root_of(artifact: Artifact) -> Path:
    """The run's folder that an artifact lies in. Raises BadInput for one that is of no use elsewhere."""
    stage = artifact.meta["stage"]
    if stage not in DEPTH:
        raise BadInput(
            f"{artifact.path} is a {stage} artifact: share a dataset, a backbone, a model, a policy or a score"
        )
    return artifact.path.absolute().parents[DEPTH[stage] - 1]


def needed(artifact: Artifact) -> list[Artifact]:
    """An artifact, and the backbone of its run where it was made with the one that is trained there."""
    found = [artifact]
    if artifact.meta["extra"].get("backbone") == "offline":
        found.insert(0, artifacts.load(root_of(artifact) / "backbone", "backbone", domain=artifact.domain))
    return found


def pack_up(artifact: Artifact, folder: Path) -> list[Artifact]:
    """Copy an artifact, and what it needs, to the same places below `folder`."""
    root, copied = root_of(artifact), []
    for one in needed(artifact):
        artifacts.verify(one)
        place = folder / one.path.absolute().relative_to(root)
        shutil.copytree(one.path, place, dirs_exist_ok=True)
        copied.append(artifacts.load(place))
    return copied


def shrink(policy: Artifact, folder: Path) -> list[Artifact]:
    """Write a policy and its backbone below `folder` in 8 bits, the actor in half precision, without critics.

    They load as any artifact does: `Artifact.tensors` gives float32 again.
    """
    root, written = root_of(policy), dict[str, Artifact]()
    for one in needed(policy):
        meta, place = one.meta, folder / one.path.absolute().relative_to(root)
        extra = dict(meta["extra"])
        if "backbone" in written:
            extra["backbone_id"] = load_backbone("offline", folder, "cpu").id
        stems = [name.removesuffix(".safetensors") for name in meta["files"] if name.endswith(".safetensors")]
        tensors = {stem: fewer_bits(one.tensors(stem), actor_alone=stem == "actor_critic") for stem in stems}
        about = {"domain": one.domain, "config": meta["config"], "seed": meta["seed"], "resolved": meta["resolved"]}
        written[meta["stage"]] = artifacts.save(place, meta["stage"], tensors, inputs=[one], extra=extra, **about)
    return list(written.values())


def fewer_bits(tensors: Mapping[str, Tensor], actor_alone: bool = False) -> dict[str, Tensor]:
    """Matrices in 8 bits with a scale a row, the actor's in 16; what is small, embeddings among it, stays as it is.

    `actor_alone`: leave out the critics, which only learning needs.
    """
    kept = {name: value for name, value in tensors.items() if not actor_alone or name.startswith(ACTOR)}
    found: dict[str, Tensor] = {}
    for name, value in kept.items():
        if value.ndim < 2 or value.numel() <= SOME or not value.is_floating_point():
            found[name] = value
        elif name.startswith(ACTOR):
            found[name] = value.half()
        else:
            found[name], found[name + artifacts.SCALE] = in_8_bits(value)
    return found


def in_8_bits(value: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (R, ...) as int8 and the scale (R, 1, ...) of each row; see `artifacts.expanded`."""
    scale = value.abs().amax(tuple(range(1, value.ndim)), keepdim=True).clamp(min=1e-12) / 127
    return (value / scale).round().to(torch.int8), scale
