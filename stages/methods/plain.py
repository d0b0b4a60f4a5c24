"""The world model of the baselines: no semantics in the latent, whose stochastic state alone is decoded (GenRL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.nets import ImageDecoder
from stages.core.objective import world_model_loss
from stages.core.rssm import RSSM
from stages.core.settings import ModelConfig, ObjectiveConfig
from stages.core.world_model import Labels, Noise, Observed, State, TaskContext, WorldModel


class PlainWorldModel(WorldModel):
    """z is the stochastic state s; the policy is told of a prompt by its text embedding, unless a subclass says else.

    Subclasses add `grounding_terms` (their loss, with the world model detached) and `reward`.

    Args:
        config: sizes shared with the joint model; those of TAMF and z do not matter here.
        dim_tau: width of what the policy is told of the prompt; default: of the text embedding.
    """

    reads_semantics: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, dim_embedding: int, dim_action: int, dim_tau: int | None = None) -> None:
        super().__init__()
        self.config, self.dim_embedding, self.dim_action = config, dim_embedding, dim_action
        self.dim_z = config.dim_s
        self.dim_tau = dim_embedding if dim_tau is None else dim_tau
        self.adapter = nn.Identity()
        self.rssm = RSSM(config, self.dim_z, dim_action)
        self.decoder = ImageDecoder(self.dim_z, config.depth)

    def task(self, embedding: Tensor) -> TaskContext:
        """The embedding itself, (B, dim_e); there are no gates."""
        embedding = F.normalize(embedding.float(), dim=-1)
        return TaskContext(embedding, embedding.new_zeros(len(embedding), 0, 1), embedding)

    def fuse(self, e: Tensor, s: Tensor, gates: Tensor) -> Tensor:
        """s alone."""
        return s

    def imagined_semantics(self, state: State, h: Tensor, s: Tensor) -> Tensor:
        """Held: nothing reads them."""
        return state.e

    def predict_semantics(self, h: Tensor, s: Tensor) -> Tensor:
        """Zeros: nothing reads them."""
        return h.new_zeros(*h.shape[:-1], self.dim_embedding)

    def pretraining_loss(
        self, batch: Mapping[str, Tensor], labels: Labels, config: ObjectiveConfig, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_WM (Eq. 12) plus the grounding's terms; no label of a task is used."""
        image, action, is_first = batch["image"], batch["action"], batch["is_first"]
        e = F.normalize(batch["embedding"].float(), dim=-1)  # (B, T, dim_e)
        seen = self.observe(image, action, is_first, e, PlainWorldModel.task(self, e[:, 0]), noise)
        terms = world_model_loss(self, seen, image, config)
        grounding = self.grounding_terms(seen.detached(), config, noise)
        total = config.world_model * (terms["kl"] + terms["image"]) + torch.stack(list(grounding.values())).sum()
        return total, {k: v.detach() for k, v in (terms | grounding).items()}

    def grounding_terms(self, seen: Observed, config: ObjectiveConfig, noise: Noise) -> dict[str, Tensor]:
        """Losses, by name, whose sum trains the grounding. `seen` carries no gradient: the world model never moves."""
        raise NotImplementedError
