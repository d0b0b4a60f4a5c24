"""What the parts of a page draw on: the run's artifacts, opened when first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stages import worlds
from stages.backbones import Backbone, backbone_of
from stages.backbones.embeddings import open_training_data, retrain_command
from stages.core.world_model import TaskContext, WorldModel
from stages.data.episodes import Dataset, held_out_episodes
from stages.methods import open_model
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run, Section
from stages.runtime.errors import BadInput
from stages.runtime.names import is_model_free
from stages.worlds import tasks

FOLDERS = ("data/*", "model/*", "policy/*/*", "evaluation/*/*", "transfer/*")


class ViewConfig(Section):
    """Fields of the section `visualize`; defaults and comments in presets/paper.yaml."""

    windows: int
    context: int
    horizon: int
    error_windows: int
    dream_steps: int
    reward_episodes: int
    reward_glance: int
    reward_windows: int
    reward_horizon: int
    counterfactual_states: Annotated[int, Field(ge=2)]


def find_artifacts(run: Run) -> Iterator[Artifact]:
    """Every finished dataset, model, policy, evaluation and transfer of the run."""
    for pattern in FOLDERS:
        yield from artifacts.find(run.root, pattern, domain=run.domain)


@dataclass(frozen=True)
class Learned:
    """A policy, and which of its prompts is meant."""

    artifact: Artifact
    index: int


@dataclass
class Scene:
    """The model `method` of the run's seed, its data, prompts and policies; `folder` is the page to be.

    Every property raises BadInput naming the command that makes what is missing.
    """

    config: ViewConfig
    run: Run
    method: str
    judge_reward: bool
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.method}-s{self.run.seed}"

    @cached_property
    def model_artifact(self) -> Artifact:
        """The model, or a policy that brought its model along to where there is none, as in `demo/`."""
        if is_model_free(self.method):
            raise BadInput(f"{self.method} learned without a world model; look at another --method")
        path = self.run.root / "model" / self.label
        if not path.exists() and self.policies:
            return next(iter(self.policies.values())).artifact
        made_by = self.run.command("pretrain", "--method", self.method, "--seed", str(self.run.seed))
        return artifacts.load(path, "pretrain", domain=self.run.domain, made_by=made_by)

    @cached_property
    def model(self) -> WorldModel:
        return open_model(self.model_artifact, self.run.device)

    @cached_property
    def dataset(self) -> Dataset:
        if self.model_artifact.meta["stage"] != "pretrain":
            raise BadInput(f"{self.run.root} holds a policy without the data behind it")
        return open_training_data(self.model_artifact, self.run)

    @cached_property
    def judged(self) -> np.ndarray:
        """Episodes that the model is judged on, (E,) bool: those its training left out, or else all; no branches."""
        return self._left_out if self.held_out else ~self.dataset.episode_info.cut

    @property
    def held_out(self) -> bool:
        """Whether the model was trained without the episodes it is judged on."""
        return bool(self._left_out.any())

    @cached_property
    def _left_out(self) -> np.ndarray:
        info, training = self.dataset.episode_info, self.model_artifact.meta["config"]["pretrain"]
        held = held_out_episodes(self.dataset, training.get("holdout", 0.0))  # none in models of before the setting
        return held & ~info.cut & (info.length >= self.config.context + self.config.horizon)

    @cached_property
    def policies(self) -> dict[str, Learned]:
        """What follows a text prompt, by prompt: a policy for that one alone, or else one for several."""
        found = artifacts.find(self.run.root, f"policy/{self.label}/*", "behave", domain=self.run.domain)
        asked = [(p, Learned(a, k), a.meta["config"]["prompts"]) for a in found for k, p in enumerate(_texts(a))]
        return {prompt: learned for prompt, learned, beside in sorted(asked, key=lambda one: -len(one[2]))}

    @cached_property
    def prompts(self) -> dict[str, str]:
        """Short name → prompt: the domain's tasks, then free prompts that have a policy."""
        named = {name: tasks.get_task(self.run.domain, name).prompt for name in tasks.task_names(self.run.domain)}
        return named | {p: p for p in self.policies if p not in named.values()}

    @cached_property
    def backbone(self) -> Backbone:
        """The one the model was trained with."""
        name, again = self.model_artifact.meta["extra"]["backbone"], retrain_command(self.model_artifact, self.run)
        return backbone_of(self.model_artifact, name, self.run.root, self.run.device, again)

    @cached_property
    def text(self) -> Tensor:
        """Embeddings of the prompts (K, dim_e)."""
        return self.backbone.encode_text(list(self.prompts.values())).to(self.run.device)

    @cached_property
    def contexts(self) -> TaskContext:
        """The model's reading of the prompts."""
        with torch.no_grad():
            return self.model.task(self.text)

    @property
    def policy_space(self) -> str:
        """What the rewards compare that the policies were trained on; the model's first where there is no policy."""
        trained = [learned.artifact.meta["config"]["behave"].get("space") for learned in self.policies.values()]
        return next((space for space in trained if space in self.model.spaces), self.model.spaces[0])

    @property
    def pause(self) -> int:
        """Milliseconds of a decision, as GIFs count them."""
        seconds = worlds.BODIES[self.run.domain].control_timestep * tasks.ACTION_REPEAT
        return max(20, round(seconds * 100) * 10)


def _texts(policy: Artifact) -> list[str]:
    """The prompts of a policy that are text: a video's stands for a file."""
    return [prompt for prompt in policy.meta["config"]["prompts"] if not prompt.startswith("video ")]
