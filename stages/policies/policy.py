"""A trained policy, usable from Python in five lines.

policy = Policy.load("runs/walker-laptop/policy/bitagent-s0/walk")
policy.reset()
action = policy.act(frame)          # frame (3, 64, 64) uint8 → action (A,) in [-1, 1]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.backbones import Backbone, backbone_of
from stages.backbones.tuning import retune
from stages.core.actor_critic import Actor, Values
from stages.core.nets import IMAGE_SIZE
from stages.core.settings import ActorCriticConfig
from stages.core.world_model import State, TaskContext, WorldModel
from stages.methods import open_model
from stages.methods.model_free import OfflineRLConfig
from stages.methods.pixels import PixelEncoder
from stages.methods.td3 import DeterministicActor, resolve_precision
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact, load_weights
from stages.runtime.errors import BadInput
from stages.runtime.names import is_model_free

ACTOR, SLOW_VALUES = "actor.", "slow_values."  # the names of their tensors begin so


@dataclass(frozen=True)
class Acting:
    """How a policy acts.

    Args:
        semantics_every: the backbone reads the last 8 frames every so many steps; its embedding is held between. 0: as
            often as it read the data that the policy learned from.
        sample: draw actions instead of taking the mean.
    """

    device: str = "cpu"
    semantics_every: int = 0
    sample: bool = False


class Policy:
    """What every policy does: acts, frame by frame, on the prompt it was trained for.

    `backbone_size` is the height and width of the frames its backbone reads.
    """

    backbone_size: int

    @staticmethod
    def load(path: str | Path, device: str = "cpu", *, semantics_every: int = 0, sample: bool = False) -> Policy:
        """Open a policy artifact, of whatever method; see `Acting`.

        Raises BadInput when it, or the backbone of its run, is missing or changed, or when it is deterministic and
        actions are to be drawn.
        """
        artifact = artifacts.load(Path(path), "behave")
        if is_model_free(str(artifact.meta["config"].get("method"))):
            if sample:
                raise BadInput(f"{artifact.path} holds a deterministic policy, which has no actions to sample")
            return PixelPolicy.open(artifact, device)
        return LatentPolicy.open(artifact, Acting(device, semantics_every, sample))

    def reset(self, prompt: int = 0) -> None:
        """Forget the past: the next frame is the first of an episode.

        Args:
            prompt: index of the prompt followed, for a policy trained on several.
        """
        raise NotImplementedError

    def act(self, frames: np.ndarray, backbone_frames: np.ndarray | None = None) -> np.ndarray:
        """Action for one frame (3, 64, 64) or for N environments in step (N, 3, 64, 64).

        Args:
            backbone_frames: the same view at `backbone_size`; by default `frames`.
        Returns:
            (A,) or (N, A), float32 in [-1, 1].
        """
        raise NotImplementedError


class LatentPolicy(Policy):
    """Filters frames with the world model; see `Policy.load` for the arguments."""

    def __init__(
        self, model: WorldModel, actor: Actor, backbone: Backbone, embedding: Tensor, size: int, acting: Acting
    ) -> None:
        self.model, self.actor, self.backbone = model, actor, backbone
        self.backbone_size, self.acting, self.device = size, acting, torch.device(acting.device)
        with torch.no_grad():
            self.contexts = model.task(embedding.to(self.device))
        self.reset()

    @classmethod
    def open(cls, artifact: Artifact, acting: Acting) -> LatentPolicy:
        """With the world model in the artifact and the backbone of its run."""
        model = open_model(artifact, torch.device(acting.device))
        embedding = artifact.tensors("prompt")["embedding"]
        root = artifact.path.resolve().parents[2]
        return cls.assemble(artifact, root, model, load_actor(artifact, model), embedding, acting)

    @classmethod
    def assemble(
        cls, artifact: Artifact, root: Path, model: WorldModel, actor: Actor, embedding: Tensor, acting: Acting
    ) -> LatentPolicy:
        """An actor, in training maybe, with the backbone of the run at `root` that its policy or model was made of."""
        again = f"bitagent {artifact.meta['stage']} --fresh (with this run's --preset, --scale and --out)"
        backbone = backbone_of(artifact, artifact.meta["extra"]["backbone"], root, acting.device, again)
        as_the_model = retune(backbone, artifact) or backbone.enlarged  # tuned on its frames, or made to read them
        size = IMAGE_SIZE if as_the_model else backbone.frame_size
        acting = replace(acting, semantics_every=acting.semantics_every or embedded_every(artifact))
        return cls(model, actor, backbone, embedding, size, acting)

    def reset(self, prompt: int = 0) -> None:
        index = torch.tensor([prompt], device=self.device)
        self.task: TaskContext = self.contexts.rows(index)
        self.state: State | None = None
        self.window: list[Tensor] = []
        self.steps = 0

    @torch.no_grad()
    def act(self, frames: np.ndarray, backbone_frames: np.ndarray | None = None) -> np.ndarray:
        image = batched(frames, self.device)  # (N, 3, 64, 64)
        looked_at = image if backbone_frames is None else batched(backbone_frames, self.device)
        action = self.step(image, looked_at).cpu().numpy()
        return action[0] if frames.ndim == 3 else action

    @torch.no_grad()
    def step(self, image: Tensor, looked_at: Tensor) -> Tensor:
        """`act` on the device: frames (N, 3, 64, 64), and those that the backbone looks at, → action (N, A)."""
        task = self.task.expand(len(image))
        e = self._semantics(looked_at)  # (N, dim_e)
        if self.state is None:
            self.action = torch.zeros(len(image), self.model.dim_action, device=self.device)
        self.state = self.model.observe_step(image, self.state, self.action, e, task)
        mean, std = self.actor(torch.cat([self.state.features, task.tau], -1))
        self.action = (mean + std * torch.randn_like(std)).clamp(-1, 1) if self.acting.sample else mean
        self.steps += 1
        return self.action

    def _semantics(self, image: Tensor) -> Tensor:
        """e_v of the last 8 frames, the first repeated at an episode's start; zeros where the model reads none."""
        if not self.model.reads_semantics:
            return torch.zeros(len(image), self.model.dim_embedding, device=self.device)
        self.window = [*self.window, image][-self.backbone.window :]
        if self.steps % self.acting.semantics_every == 0 or self.state is None:
            padded = [self.window[0]] * (self.backbone.window - len(self.window)) + self.window
            e = self.backbone.encode_video(torch.stack(padded, 1)).to(self.device)  # (N, dim_e)
            # Datasets hold embeddings in float16: act on what training saw.
            self.held = self.model.adapter(F.normalize(e.half().float(), dim=-1))
        return self.held


class PixelPolicy(Policy):
    """A model-free policy: reads a stack of the last frames, the first repeated before it, and no backbone."""

    backbone_size = IMAGE_SIZE  # there is no backbone that would want others

    def __init__(self, encoder: PixelEncoder, actor: DeterministicActor, stack: int, device: torch.device) -> None:
        self.encoder, self.actor, self.stack, self.device = encoder, actor, stack, device
        self.reset()

    @classmethod
    def open(cls, artifact: Artifact, device: str) -> PixelPolicy:
        """With the encoder and the actor in the artifact."""
        tensors = {name: artifact.tensors(name) for name in ("encoder", "actor")}
        with artifacts.rebuilding(artifact):
            config = OfflineRLConfig.model_validate(artifact.meta["config"]["offline_rl"])
            dim_action = artifact.meta["extra"]["dim_action"]
            artifacts.require_fit(tensors["encoder"], (config.depth, config.stack, config.features))
            artifacts.require_fit(tensors["actor"], (config.td3.units, dim_action))
            encoder = PixelEncoder(config.depth, config.stack, config.features)
            precision = resolve_precision(config.td3.precision, device)
            actor = DeterministicActor(config.features, dim_action, config.td3.units, precision)
        for module, name in ((encoder, "encoder"), (actor, "actor")):
            load_weights(module, tensors[name], artifact.path)
            module.to(device).requires_grad_(False)
        return cls(encoder, actor, config.stack, torch.device(device))

    def reset(self, prompt: int = 0) -> None:
        self.window: list[Tensor] = []

    @torch.no_grad()
    def act(self, frames: np.ndarray, backbone_frames: np.ndarray | None = None) -> np.ndarray:
        image = batched(frames, self.device)  # (N, 3, 64, 64)
        self.window = [*(self.window or [image] * (self.stack - 1)), image][-self.stack :]
        action = self.actor(self.encoder(torch.cat(self.window, 1))).cpu().numpy()  # (N, A)
        return action[0] if frames.ndim == 3 else action


def embedded_every(artifact: Artifact) -> int:
    """Frames from one embedding to the next in the data that a model or a policy learned from."""
    return int(artifact.meta["extra"].get("stride", 1))


def batched(frames: np.ndarray, device: torch.device) -> Tensor:
    """One frame or N of them → (N, 3, H, W) on the device."""
    batch = torch.from_numpy(frames.copy()).to(device)  # the copy is contiguous, and may be written to
    return batch if frames.ndim == 4 else batch[None]


def load_actor(artifact: Artifact, model: WorldModel) -> Actor:
    """The actor of a policy artifact, frozen, on the model's device; its critics are not needed to act.

    Raises:
        BadInput: the tensors do not fit the configuration that the artifact records.
    """
    return _load_part(artifact, model, ACTOR, Actor)


def load_values(artifact: Artifact, model: WorldModel) -> Values:
    """The slow values of a policy artifact, from which its learner took every target; else as `load_actor`."""
    return _load_part(artifact, model, SLOW_VALUES, Values)


Part = TypeVar("Part", Actor, Values)


def _load_part(
    artifact: Artifact, model: WorldModel, prefix: str, make: Callable[[int, int, ActorCriticConfig], Part]
) -> Part:
    found = artifact.tensors("actor_critic").items()
    tensors = {name.removeprefix(prefix): value for name, value in found if name.startswith(prefix)}
    with artifacts.rebuilding(artifact):
        config = ActorCriticConfig.model_validate(artifact.meta["config"]["behave"]["actor_critic"])
        artifacts.require_fit(tensors, (config.units,), config.layers)
        part = make(model.dim_policy, model.dim_action, config)
    load_weights(part, tensors, artifact.path)
    return part.to(next(model.parameters()).device).requires_grad_(False)
