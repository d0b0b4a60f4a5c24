"""Base classes of the preset's sections and of what one invocation of a stage is told.

A stage declares its own section by subclassing `Section`; no field has a default here or there,
because every default lives once, commented, in presets/paper.yaml.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from stages.runtime.errors import BadInput

Share = Annotated[float, Field(ge=0, le=1)]
PartShare = Annotated[float, Field(ge=0, lt=1)]  # less than all


class Section(BaseModel):
    """One part of a preset: strict (an unknown key is an error) and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Run:
    """What one invocation of a stage is told beside its preset sections.

    `root` is the folder that holds the artifacts of one domain at one scale (runs/walker-laptop);
    `resolved` is the whole resolved preset, written into every artifact; `options` are the typed ones that a
    command on the same run must repeat.
    """

    domain: str
    scale: str
    root: Path
    seed: int = 0
    device: str = "cpu"  # "cpu" or "cuda", already resolved
    fresh: bool = False
    renew: bool = False  # make again what was made from inputs that have changed since
    quiet: bool = False
    resolved: dict[str, Any] = field(default_factory=dict)
    preset: str = ""  # as typed, when it is the user's own file and not the domain's
    options: tuple[str, ...] = ()
    log: str = ""  # a sink of runtime/sinks.py beside metrics.jsonl

    def command(self, stage: str, *options: str) -> str:
        """The command line that would make a missing artifact, for error messages."""
        preset = shlex.quote(self.preset or self.domain)
        return " ".join(["bitagent", stage, "--preset", preset, "--scale", self.scale, *options, *self.options])


def resolve_device(name: str) -> str:
    """'auto', 'cpu' or 'cuda' → 'cpu' or 'cuda'. Raises BadInput when CUDA is asked for and absent."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise BadInput(f"unknown device {name!r}: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("no CUDA device is visible to PyTorch: use --device cpu, or see `bitagent doctor`")
    return name
