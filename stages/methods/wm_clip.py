"""WM-CLIP (a variant of GenRL): the reverse connector reads, from a state of the world model, what it looks like."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stages.core.nets import MLP
from stages.core.settings import ModelConfig, ObjectiveConfig
from stages.core.world_model import Noise, Observed, State, TaskContext
from stages.methods.plain import PlainWorldModel

LAYERS = 2


class WMCLIP(PlainWorldModel):
    """World model and reverse connector: [h, s] → embedding."""

    def __init__(self, config: ModelConfig, dim_embedding: int, dim_action: int) -> None:
        super().__init__(config, dim_embedding, dim_action)
        self.reverse = MLP(config.deter + self.dim_z, dim_embedding, config.units, LAYERS)

    def embed(self, state: State) -> Tensor:
        """The embedding a state looks like: (..., dim_e), unit norm."""
        return F.normalize(self.reverse(state.features).float(), dim=-1)

    def grounding_terms(self, seen: Observed, config: ObjectiveConfig, noise: Noise) -> dict[str, Tensor]:
        """1 - cosine to the backbone's embedding e_t."""
        return {"reverse": 1 - (self.embed(seen.state) * seen.state.e).sum(-1).mean()}

    def reward(self, task: TaskContext, state: State, action: Tensor, space: str) -> Tensor:
        """Cosine of the state's embedding and the text's."""
        seen = self.embed(state.map(lambda x: x[:, 1:]))  # (N, H, dim_e)
        return (seen * task.semantics.unsqueeze(1)).sum(-1)
