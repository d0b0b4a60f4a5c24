"""FOUNDER (Wang et al. 2025): an embedding is mapped to a goal state; the reward is minus the time to reach it.

Both parts are trained in pretraining, on the world model's own rollouts under the data's actions, so that behaviour
learning finds them frozen as it does every other grounding. The distance is read from the stochastic states alone:
the goal, mapped from an embedding, has no recurrent state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.nets import MLP, categorical_kl, sample_one_hot, unimix_log_probs
from stages.core.settings import ModelConfig, ObjectiveConfig
from stages.core.world_model import Noise, Observed, State, TaskContext
from stages.methods.genrl import Aligner
from stages.methods.plain import PlainWorldModel
from stages.runtime.config import Section

LAYERS = 2


class FounderConfig(Section):
    """Constants of FOUNDER; defaults and comments in presets/paper.yaml."""

    horizon: int
    far: float
    noise: float


class Founder(PlainWorldModel):
    """World model, mapping network, temporal-distance predictor, and GenRL's aligner for prompts in words.

    Args:
        horizon: steps of the rollouts that the distance is learned from; what is farther apart counts as so far.
        far: share of the pairs whose second state is another rollout's: distance 1.
        noise: α of the aligner's training noise.
    """

    def __init__(
        self, config: ModelConfig, dim_embedding: int, dim_action: int, horizon: int, far: float, noise: float
    ) -> None:
        super().__init__(config, dim_embedding, dim_action, dim_tau=config.dim_s)
        self.horizon, self.far, self.noise = horizon, far, noise
        self.aligner = Aligner(dim_embedding, config.units)
        self.mapping = MLP(dim_embedding, self.dim_z, config.units, LAYERS)
        self.distance_net = MLP(2 * self.dim_z, 1, config.units, LAYERS)

    def task(self, embedding: Tensor) -> TaskContext:
        """τ is the goal state the policy is conditioned on: the mode of the mapped distribution, (B, C·K)."""
        given = super().task(embedding)
        aligned = self.aligner(given.semantics)  # (B, dim_e); of text as it is, the mapping makes no pose
        goal = sample_one_hot(self.map(aligned), None)  # (B, C·K)
        return TaskContext(goal, given.gates, aligned)

    def map(self, e: Tensor) -> Tensor:
        """Embedding (..., dim_e) → log-probabilities of the state it shows (..., C, K)."""
        return unimix_log_probs(self.mapping(e).unflatten(-1, self.rssm.shape), self.config.unimix)

    def distance(self, s: Tensor, goal: Tensor) -> Tensor:
        """Predicted steps from state s (..., C·K) to goal (..., C·K), as a share of the horizon: (...) in (0, 1)."""
        return torch.sigmoid(self.distance_net(torch.cat([s, goal.to(s.dtype)], -1)).float()).squeeze(-1)

    # ------------------------------------------------------------------ pretraining

    def grounding_terms(self, seen: Observed, config: ObjectiveConfig, noise: Noise) -> dict[str, Tensor]:
        """KL from the posterior of the window's last frame to the mapping, and the errors of aligner and distance."""
        with torch.no_grad():
            states = self.rollouts(seen, self.horizon, noise)  # (N, H+1, C·K)
        first, second, steps = pairs(states, self.far, noise)
        return {
            "mapping": categorical_kl(seen.posterior, self.map(seen.state.e)).mean(),
            "aligner": self.aligner.loss(seen.state.e, self.noise, noise),
            "distance": F.mse_loss(self.distance(first, second), steps),
        }

    def rollouts(self, seen: Observed, horizon: int, noise: Noise) -> Tensor:
        """Stochastic states (N, H+1, C·K) imagined under the data's actions, from every (H+1)-th frame."""
        start, steps, actions = seen.stretches(horizon)
        task = PlainWorldModel.task(self, start.e)
        states, _, _ = self.imagine(start, lambda _, t: actions[:, t], steps.shape[1], task, noise)
        return states.z

    # ------------------------------------------------------------------ reward

    def text_rollout(self, actions: Tensor, task: TaskContext, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """The goal state at every step."""
        steps, log_probs = actions.shape[1] + 1, self.map(task.semantics)
        return task.tau.unsqueeze(1).expand(-1, steps, -1), log_probs.unsqueeze(1).expand(-1, steps, -1, -1)

    def reward(self, task: TaskContext, state: State, action: Tensor, space: str) -> Tensor:
        """Minus the predicted distance to the goal state, in (-1, 0)."""
        goal = task.tau.unsqueeze(1).expand(-1, state.z.shape[1] - 1, -1)
        return -self.distance(state.z[:, 1:], goal)


def pairs(states: Tensor, far: float, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """One pair of states from each step of each rollout, and the steps between them as a share of the horizon.

    The second state is drawn evenly from the first's own step and those after it; for a share `far` of the pairs it is
    taken from the next rollout of the batch instead, at distance 1.

    Args:
        states: (N, H+1, D).
    Returns:
        first and second (N, H+1, D), distance (N, H+1) in [0, 1].
    """
    count, length, _ = states.shape
    at = torch.arange(length, device=states.device)
    ahead = (noise.uniform(count, length) * (length - at)).long().clamp(max=length - 1)  # 0..H - t
    second = torch.minimum(at + ahead, at[-1])  # (N, H+1)
    other = noise.uniform(count, length) < far
    row = torch.arange(count, device=states.device)[:, None]
    row = torch.where(other, (row + 1) % count, row)
    distance = torch.where(other, 1.0, (second - at) / max(length - 1, 1))
    return states, states[row, second], distance
