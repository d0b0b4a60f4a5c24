"""Checkpoints: what a stopped training goes on from, in `<artifact>.checkpoint`, whole or absent like the artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.runtime import storage
from stages.runtime.update import load_optimizer_tensors, optimizer_tensors

Groups = dict[str, dict[str, Tensor]]  # a checkpoint's tensors: {file: {name: tensor}}


class Resumable:
    """What is trained: modules and optimizers, by the names they are saved under."""

    def __init__(self, **parts: nn.Module | torch.optim.Optimizer) -> None:
        self.parts = parts

    def tensors(self) -> Groups:
        """Everything a checkpoint needs to continue bit for bit."""
        return {k: v.state_dict() if isinstance(v, nn.Module) else optimizer_tensors(v) for k, v in self.parts.items()}

    def load(self, groups: Groups) -> None:
        """Inverse of `tensors`."""
        for name, part in self.parts.items():
            if isinstance(part, nn.Module):
                part.load_state_dict(groups[name])
            else:
                load_optimizer_tensors(part, groups[name])


def folder(path: Path) -> Path:
    return path.parent / f"{path.name}.checkpoint"


def write(path: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
    """Replace the checkpoint of artifact `path` atomically. `about` must name config and inputs."""
    target = folder(path)
    with storage.draft(target) as draft:
        for name, group in tensors.items():
            storage.write_tensors(draft / f"{name}.safetensors", group)
        files = {f.name: storage.file_sha256(f) for f in sorted(draft.iterdir())}
        state = {"schema": storage.SCHEMA, "step": step, "about": about, "files": files}
        (draft / "checkpoint.json").write_text(json.dumps(storage.seal(state)))
        storage.replace_folder(draft, target)


def read(path: Path, about: Mapping[str, Any]) -> tuple[int, Groups] | None:
    """The checkpoint of artifact `path` when it was made with the same `about`, else None.

    A checkpoint that does not verify is refused (BadInput) rather than silently dropped.
    """
    target = folder(path)
    storage.recover(target)
    file = target / "checkpoint.json"
    if not file.exists():
        return None
    state = storage.read_json(file)
    if storage.seal(state) != state:
        raise storage.corrupted(file, ValueError("its content does not match its seal: it was edited or damaged"))
    if state["about"] != storage.plain(about):
        return None
    tensors = {}
    for name, wanted in state["files"].items():
        storage.check_name(target, name)
        try:
            if storage.file_sha256(target / name) != wanted:
                raise ValueError("checksum differs")
            tensors[name.removesuffix(".safetensors")] = load_file(str(target / name))
        except (SafetensorError, OSError, ValueError) as error:
            raise storage.corrupted(target / name, error) from None
    return int(state["step"]), tensors


def drop(path: Path) -> None:
    storage.remove_folder(folder(path))


def rng_state() -> dict[str, Tensor]:
    """PyTorch's random state (CPU, and CUDA where present), for bit-exact resumption."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
