"""BiTAgent as a grounding: the joint objective (Eq. 11) and the text-conditioned reward (Eq. 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from stages.core.joint_model import JointModel
from stages.core.objective import joint_loss
from stages.core.reward import text_reward
from stages.core.settings import ObjectiveConfig
from stages.core.world_model import Labels, Noise, State, TaskContext


class BiTAgent(JointModel):
    """The joint model with its two duties; the ablations are the same class under other switches."""

    spaces: ClassVar[tuple[str, ...]] = ("relative", "decoded", "both", "z")

    def pretraining_loss(
        self, batch: Mapping[str, Tensor], labels: Labels, config: ObjectiveConfig, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_total of Eq. 11."""
        return joint_loss(self, batch, labels, config, noise)

    def reward(self, task: TaskContext, state: State, action: Tensor, space: str) -> Tensor:
        """Eq. 10."""
        return text_reward(self, task, state.z, action, space)
