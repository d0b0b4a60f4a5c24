"""The backward path while behaviour is learned (Fig. 1): what the policy is imagined to do teaches the language side.

path = BackwardPath(behavior)
loss, terms = path(draw_batch(latents, found, config, noise, prompts=1))      # a step of an optimizer, and again
path.refresh()                                                                # the prompts' rewards, as they are now
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from stages.core.behavior import Behavior
from stages.core.joint_model import JointModel
from stages.core.nets import categorical_kl
from stages.core.objective import discounted
from stages.core.reward import refresh_reference
from stages.core.world_model import State
from stages.runtime.update import Batch, Terms


class BackwardPath(nn.Module):
    """L_JBO (Eq. 14) on imagined rollouts of the current policy, for f_ψ, f_map and p̃_ψ.

    The world model is the teacher, as in Eq. 9: pulled toward what a text expects, it would no longer say what actions
    do. τ and the gates stay too, which the policy and the encoded data read. As with labelled data in pretraining, a
    rollout teaches only where it shows the prompt: where its reward is not below the data's mean, or 0 without data.
    """

    def __init__(self, behavior: Behavior) -> None:
        super().__init__()
        assert isinstance(behavior.model, JointModel), "check_options refuses what imagines nothing from text"
        self.behavior, self.model = behavior, behavior.model
        self.language = self.model.language().requires_grad_(True)

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """batch: of `draw_batch`, all of whose rows are starts."""
        behavior = self.behavior
        task = behavior.prompts.rows(batch["prompt"])
        start = State.read(batch) if "h" in batch else behavior.dreamed_starts(task)
        states, actions, prior = behavior.rollout(start, task, behavior.config.horizon)
        with torch.no_grad():
            earned = behavior.reward(task, states, actions).mean(1)  # (N,)
        shown = (earned >= batch.get("mean", torch.zeros_like(earned))).float()
        semantics = self.model.text_semantics(task.tau)  # (N, dim_e)
        _, text = self.model.text_rollout(actions, replace(task, semantics=semantics), behavior.noise)
        weight = discounted(actions.shape[1], behavior.config.actor_critic.discount, earned.device)  # (H,)
        loss = ((categorical_kl(prior, text[:, 1:]) * weight).sum(1) * shown).mean()
        return loss, {"backward_behavior": loss.detach(), "backward_shown": shown.mean()}

    @torch.no_grad()
    def refresh(self) -> None:
        """Take anew, in place, what is kept of the prompts' text side."""
        config, prompts = self.behavior.config, self.behavior.prompts
        prompts.semantics.copy_(self.model.text_semantics(prompts.tau))
        refresh_reference(self.model, prompts, config.space, config.horizon)
