"""A trained policy, usable from Python in five lines.

from stages.core.policy import Policy
policy = Policy.load("runs/walker-laptop/policy/bitagent-s0/walk")
policy.reset()
action = policy.act(frame)          # frame (3, 64, 64) uint8 → action (A,) in [-1, 1]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core import artifacts
from stages.core.actor_critic import ActorCritic, ActorCriticConfig
from stages.core.agent import JointModel, State, TaskContext, load_model, load_weights
from stages.core.artifacts import Artifact
from stages.core.backbones import Backbone, load_backbone
from stages.core.backbones.tuning import retune
from stages.core.errors import BadInput

IMAGE_SIZE = 64  # of the frames the world model reads


class Policy:
    """Filters frames with the world model and acts on the prompt it was trained for.

    Args:
        prompt: index of the prompt followed, for a policy trained on several.
        backbone_size: height and width of the frames the backbone reads.
        semantics_every: the backbone reads the last 8 frames every so many steps; its embedding is held between.
    """

    def __init__(
        self,
        artifact: Artifact,
        model: JointModel,
        learner: ActorCritic,
        backbone: Backbone,
        embedding: Tensor,
        *,
        backbone_size: int,
        device: torch.device,
        semantics_every: int = 1,
        sample: bool = False,
    ) -> None:
        self.artifact, self.model, self.learner, self.backbone = artifact, model, learner, backbone
        self.backbone_size = backbone_size
        self.device, self.semantics_every, self.sample = device, semantics_every, sample
        with torch.no_grad():
            self.contexts = model.task(embedding.to(device))
        self.reset()

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", *, semantics_every: int = 1, sample: bool = False) -> Policy:
        """Open a policy artifact with the backbone of its run. Raises BadInput when either is missing or changed."""
        artifact = artifacts.load(Path(path), "behave")
        where = torch.device(device)
        model = load_model(artifact, where)
        learner = load_learner(artifact, model)
        backbone = load_backbone(artifact.meta["extra"]["backbone"], artifact.path.resolve().parents[2], device)
        if backbone.id != artifact.meta["extra"]["backbone_id"]:
            raise BadInput(
                f"{path} was trained with backbone {artifact.meta['extra']['backbone_id']}, here is {backbone.id}"
            )
        size = IMAGE_SIZE if retune(backbone, artifact) else backbone.frame_size  # it was tuned on the model's frames
        embedding = artifact.tensors("prompt")["embedding"]
        learner.to(where).requires_grad_(False)
        return cls(
            artifact,
            model,
            learner,
            backbone,
            embedding,
            backbone_size=size,
            device=where,
            semantics_every=semantics_every,
            sample=sample,
        )

    def reset(self, prompt: int = 0) -> None:
        """Forget the past: the next frame is the first of an episode."""
        index = torch.tensor([prompt], device=self.device)
        self.task: TaskContext = self.contexts.rows(index)
        self.state: State | None = None
        self.window: list[Tensor] = []
        self.steps = 0

    @torch.no_grad()
    def act(self, frames: np.ndarray, backbone_frames: np.ndarray | None = None) -> np.ndarray:
        """Action for one frame (3, 64, 64) or for N environments in step (N, 3, 64, 64).

        Args:
            backbone_frames: the same view at `backbone_size`; by default `frames`.
        Returns:
            (A,) or (N, A), float32 in [-1, 1].
        """
        single = frames.ndim == 3
        image = self._batched(frames)  # (N, 3, 64, 64)
        task = self.task.expand(len(image))
        e = self._semantics(image if backbone_frames is None else self._batched(backbone_frames))  # (N, dim_e)
        if self.state is None:
            self.action = torch.zeros(len(image), self.model.dim_action, device=self.device)
        self.state = self.model.observe_step(image, self.state, self.action, e, task)
        mean, std = self.learner.actor(torch.cat([self.state.features, task.tau], -1))
        self.action = (mean + std * torch.randn_like(std)).clamp(-1, 1) if self.sample else mean
        self.steps += 1
        action = self.action.cpu().numpy()
        return action[0] if single else action

    def _batched(self, frames: np.ndarray) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
        return batch if frames.ndim == 4 else batch[None]

    def _semantics(self, image: Tensor) -> Tensor:
        """e_v of the last 8 frames, the first repeated at an episode's start."""
        self.window = [*self.window, image][-self.backbone.window :]
        if self.steps % self.semantics_every == 0 or self.state is None:
            padded = [self.window[0]] * (self.backbone.window - len(self.window)) + self.window
            e = self.backbone.encode_video(torch.stack(padded, 1)).to(self.device)  # (N, dim_e)
            # Datasets hold embeddings in float16: act on what training saw.
            self.held = self.model.adapter(F.normalize(e.half().float(), dim=-1))
        return self.held


def load_learner(artifact: Artifact, model: JointModel) -> ActorCritic:
    """Rebuild actor and critic of a policy artifact, on the CPU.

    Raises:
        BadInput: the tensors do not fit the configuration that the artifact records.
    """
    tensors = artifact.tensors("actor_critic")
    width = model.config.deter + model.config.dim_z + model.config.dim_task
    try:
        config = ActorCriticConfig.model_validate(artifact.meta["config"]["behave"]["actor_critic"])
        if config.units > sum(t.numel() for t in tensors.values()) or config.layers > len(tensors):
            raise ValueError("a size is larger than all its weights")  # building it could take all memory
        learner = ActorCritic(width, model.dim_action, config)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise artifacts.corrupted(artifact.path / "artifact.json", error) from None
    load_weights(learner, tensors, artifact.path)
    return learner
