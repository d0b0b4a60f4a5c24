"""Behaviour learning as one loss: imagined rollouts, and transitions of the data under the learned reward.

behavior = Behavior(model, learner, prompts, config, noise, oracle=None)
found = data_outcomes(behavior, latents)
loss, terms = behavior(draw_batch(latents, found, config, noise, prompts=1))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.core.actor_critic import ActorCritic, Transitions
from stages.core.latents import Latents, Outcomes, label_rewards, outcomes, standardized
from stages.core.nets import autocast_dtype, unrolled
from stages.core.settings import BehaviorConfig
from stages.core.world_model import Noise, State, TaskContext, WorldModel
from stages.runtime.update import Batch, Terms

DREAMED = 4  # horizons that a data-free start lies at most into its dreamed episode


class Behavior(nn.Module):
    """One behaviour update as a loss: imagination and anchor, for K prompts at once."""

    def __init__(
        self,
        model: WorldModel,
        learner: ActorCritic,
        prompts: TaskContext,
        config: BehaviorConfig,
        noise: Noise,
        oracle: nn.Module | None,
    ) -> None:
        super().__init__()
        self.model, self.learner, self.oracle = model, learner, oracle
        self.prompts, self.config, self.noise = prompts, config, noise

    def reward(self, task: TaskContext, state: State, action: Tensor) -> Tensor:
        """The grounding's reward (Eq. 10), or the oracle's, of arriving at states 1..H: (N, H)."""
        if self.oracle is not None:
            return self.oracle(state.features[:, 1:]).squeeze(-1).float()
        return self.model.reward(task, state, action, self.config.measure)

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """batch: prompt (N,) and, unless data-free, what `draw_batch` reads of the data."""
        weights, task = self.config.actor_critic, self.prompts.rows(batch["prompt"])
        if "h" not in batch:
            return self.imagined_loss(self.dreamed_starts(task), task)
        loss, terms = self.data_loss(batch, task)
        if weights.imagination:
            # Spread over the batch, so that the shares of several processes are the rows of one.
            every, count = max(1, self.config.decisions // self.config.imagined), self.config.imagined
            start, prompt = State.read(batch).map(lambda x: x[::every][:count]), batch["prompt"][::every][:count]
            imagined, more = self.imagined_loss(start, self.prompts.rows(prompt))
            loss, terms = loss + imagined, terms | more
        return loss, terms

    def data_loss(self, batch: Batch, task: TaskContext) -> tuple[Tensor, Terms]:
        """Weighted actor and critic losses on transitions of the data."""
        state = State.read(batch)
        following = State.read(batch, "next_")
        now, then = (x.to(autocast_dtype(x)) for x in (self.inputs(state, task), self.inputs(following, task)))
        parts = (batch["action"], batch["reward"], batch["discount"], then, batch["normal"])
        actor, critic, terms = self.learner.data_losses(Transitions(now, *parts))
        return self.config.actor_critic.anchor * actor + critic, terms

    def imagined_loss(self, start: State, task: TaskContext) -> tuple[Tensor, Terms]:
        """Weighted actor and critic losses on rollouts of the model under the policy from `start` (Eq. 6, 8, 10)."""
        states, actions, std = self.rollout(start, task, self.config.horizon)
        reward = self.reward(task, states, actions)
        actor, critic, terms = self.learner.imagination_losses(self.inputs(states, task), reward, std)
        loss = self.config.actor_critic.imagination * (actor + critic)
        return loss, terms | {"actor": actor.detach(), "critic": critic.detach()}

    @torch.no_grad()
    def dreamed_starts(self, task: TaskContext) -> State:
        """States (N, ...) of the model's own making: a step drawn from a long rollout of the policy, which begins
        where the model expects episodes to begin."""
        states, _, _ = self.rollout(self.model.first_state(task, self.noise), task, DREAMED * self.config.horizon)
        count, steps = states.h.shape[:2]
        step = (self.noise.uniform(count) * steps).long().clamp(max=steps - 1)
        row = torch.arange(count, device=step.device)
        return states.map(lambda x: x[row, step])

    def rollout(self, start: State, task: TaskContext, steps: int) -> tuple[State, Tensor, Tensor]:
        """The model under the policy's sampled actions: states (N, H+1, ...), actions and deviations (N, H, A)."""
        normal = self.noise.normal(len(task.tau), steps, self.model.dim_action)
        stds = []

        def act(features: Tensor, step: int) -> Tensor:
            action, std = self.learner.actor.sample(torch.cat([features.detach(), task.tau], -1), normal[:, step])
            stds.append(std)
            return action

        with unrolled(self.learner.actor):
            states, actions, _ = self.model.imagine(start, act, steps, task, self.noise)
        return states, actions, torch.stack(stds, 1)

    def inputs(self, state: State, task: TaskContext) -> Tensor:
        """What actor and critic read: (N, ..., dim_policy)."""
        tau = task.tau if state.h.dim() == 2 else task.tau.unsqueeze(1).expand(-1, state.h.shape[1], -1)
        return torch.cat([state.features, tau], -1)


def data_outcomes(behavior: Behavior, latents: Latents) -> Outcomes:
    """What followed every row of the data under each prompt, by the standardised reward of imagination."""

    def reward(prompt: Tensor, state: State, action: Tensor) -> Tensor:
        return behavior.reward(behavior.prompts.rows(prompt), state, action)

    config = behavior.config
    found = standardized(latents, label_rewards(latents, reward, config.horizon))
    return outcomes(latents, found, config.actor_critic.discount, config.actor_critic.n_step)


def draw_batch(
    latents: Latents | None, found: Outcomes | None, config: BehaviorConfig, noise: Noise, prompts: int
) -> Batch:
    """Transitions of the dataset, or no data; each row asks for one prompt.

    Returns:
        prompt (N,); with data h, z, e (N, ·), action (N, A), reward and discount (N,), next_h, next_z, next_e (N, ·)
        of the state reached, and normal (N, A).
    """
    count = config.imagined if latents is None else config.decisions
    prompt = (noise.uniform(count) * prompts).long().clamp(max=prompts - 1)
    if latents is None or found is None:
        return {"prompt": prompt}
    rows = latents.draw(count, config.start_fraction, noise)
    action = latents.action[rows + 1]
    return {
        **vars(latents.state(rows, prompt)),
        **{f"next_{k}": v for k, v in vars(latents.state(found.row[rows], prompt)).items()},
        "prompt": prompt,
        "action": action,
        "reward": found.reward[prompt, rows],
        "discount": found.discount[rows],
        "normal": noise.normal(*action.shape),
    }
