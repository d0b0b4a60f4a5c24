"""A policy with what it needs to act, in a run folder of its own: what `push` sends, and what `bitagent demo` plays.

pack(artifact, Path("shared"))          as it is: the same ids
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
SOME, MANY = 4096, 65_536  # weights of a matrix that is kept in 16 bits, and in 8: many hide the error of each
EXACT = (ACTOR, "rssm.posterior_net.", "rssm.gru.", "fusion.", "video.")  # what acts: in 16 bits all the same


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


def pack(artifact: Artifact, folder: Path) -> list[Artifact]:
    """Copy an artifact, and what it needs, to the same places below `folder`."""
    root, copied = root_of(artifact), []
    for one in needed(artifact):
        artifacts.verify(one)
        place = folder / one.path.absolute().relative_to(root)
        shutil.copytree(one.path, place, dirs_exist_ok=True)
        copied.append(artifacts.load(place))
    return copied


def shrink(policy: Artifact, folder: Path) -> list[Artifact]:
    """Write a policy and its backbone below `folder` in half precision, most large matrices in 8 bits, no critics.

    They load as any artifact does: weights become float32 again.
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
    """Matrices as float16, the largest as float8; what is small, embeddings among it, stays as it is.

    `actor_alone`: leave out the critics, which only learning needs.
    """
    kept = {name: value for name, value in tensors.items() if not actor_alone or name.startswith(ACTOR)}
    return {name: value.to(_dtype(name, value)) for name, value in kept.items()}


def _dtype(name: str, value: Tensor) -> torch.dtype:
    if value.ndim < 2 or value.numel() <= SOME or not value.is_floating_point():
        return value.dtype
    return torch.float8_e4m3fn if value.numel() > MANY and not name.startswith(EXACT) else torch.float16
