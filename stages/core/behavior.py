"""Behaviour learning as one loss: imagined rollouts, and transitions of the data under the learned reward.

behavior = Behavior(model, learner, prompts, config, noise, oracle=None)
found = data_outcomes(behavior, latents)
loss, terms = behavior(draw_batch(latents, found, config, noise, prompts=1))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.core.actor_critic import ActorCritic, Transitions
from stages.core.latents import Latents, Outcomes, label_rewards, outcomes, sharpened
from stages.core.nets import autocast_dtype, unrolled
from stages.core.settings import BehaviorConfig
from stages.core.world_model import Noise, State, TaskContext, WorldModel
from stages.runtime.update import Batch, Terms

DREAMED = 4  # horizons that a data-free start lies at most into its dreamed episode


class Behavior(nn.Module):
    """One behaviour update as a loss: imagined rollouts and data, for K prompts at once."""

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
        self.sharpness = 0.0 if oracle else config.sharpness  # the true reward is no similarity

    def reward(self, task: TaskContext, state: State, action: Tensor) -> Tensor:
        """The grounding's reward (Eq. 10), or the oracle's, of arriving at states 1..H: (N, H)."""
        if self.oracle is not None:
            return self.oracle(state.features[:, 1:]).squeeze(-1).float()
        return self.model.reward(task, state, action, self.config.space)

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """batch: prompt (N,) and, unless data-free, what `draw_batch` reads of the data."""
        weights, task = self.config.actor_critic, self.prompts.rows(batch["prompt"])
        if "h" not in batch:
            return self.dreamed_loss(task)
        loss, terms = self.data_loss(batch, task)
        if weights.imagination:
            # Spread over the batch, so that the shares of several processes are the rows of one.
            every, count = max(1, self.config.decisions // self.config.imagined), self.config.imagined
            some = {k: batch[k][::every][:count] for k in ("h", "z", "e", "prompt", "mean", "spread")}
            task = self.prompts.rows(some["prompt"])
            start, scale = State.read(some), (some["mean"], some["spread"])
            imagined, more = self.imagined_loss(start, task, not weights.transitions, scale)
            loss, terms = loss + weights.imagination * imagined, terms | more
        return loss, terms

    def data_loss(self, batch: Batch, task: TaskContext) -> tuple[Tensor, Terms]:
        """Weighted actor and critic losses on transitions of the data."""
        weights, state, following = self.config.actor_critic, State.read(batch), State.read(batch, "next_")
        now, then = (x.to(autocast_dtype(x)) for x in (self.inputs(state, task), self.inputs(following, task)))
        parts = (batch["action"], batch["reward"], batch["discount"], then, batch["normal"], batch["imitated"])
        actor, critic, terms = self.learner.data_losses(Transitions(now, *parts))
        return weights.anchor * actor + weights.transitions * critic, terms

    def imagined_loss(
        self, start: State, task: TaskContext, alone: bool, scale: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Terms]:
        """Error of the values on rollouts of the model under the policy from `start` (Eq. 6, 8, 10).

        Args:
            alone: whether imagination teaches the action values too, as no data do.
            scale: mean and spread (N,) of the prompts' rewards over the data; without, rewards stay what they are.
        """
        states, actions, _ = self.rollout(start, task, self.config.horizon)
        with torch.no_grad():
            reward = self.reward(task, states, actions)  # (N, H)
            reward = sharpened(((reward.T - scale[0]) / scale[1]).T, self.sharpness) if scale else reward
        features = self.inputs(states, task)
        return self.learner.imagination_loss(features.to(autocast_dtype(features)), actions if alone else None, reward)

    def dreamed_loss(self, task: TaskContext) -> tuple[Tensor, Terms]:
        """Actor and critic losses without data, at states of the model's own making."""
        start = self.dreamed_starts(task)
        loss, terms = self.imagined_loss(start, task, alone=True)
        features = self.inputs(start, task)
        climb, more = self.learner.climb_loss(features, self.learner.actor(features)[0])
        return self.config.actor_critic.imagination * loss + climb, terms | more

    @torch.no_grad()
    def dreamed_starts(self, task: TaskContext) -> State:
        """States (N, ...) of the model's own making: a step drawn from a long rollout of the policy, which begins
        where the model expects episodes to begin."""
        states, _, _ = self.rollout(self.model.first_state(task, self.noise), task, DREAMED * self.config.horizon)
        count, steps = states.h.shape[:2]
        step = (self.noise.uniform(count) * steps).long().clamp(max=steps - 1)
        row = torch.arange(count, device=step.device)
        return states.map(lambda x: x[row, step])

    @torch.no_grad()
    def rollout(self, start: State, task: TaskContext, steps: int) -> tuple[State, Tensor, Tensor]:
        """The model under the policy's actions with the noise of the values' targets: states (N, H+1, ...), actions
        (N, H, A) and priors (N, H, C, K)."""
        normal = self.noise.normal(len(task.tau), steps, self.model.dim_action)
        off = self.config.actor_critic.target_noise * normal  # (N, H, A)

        def act(features: Tensor, step: int) -> Tensor:
            mean, _ = self.learner.actor(torch.cat([features, task.tau], -1))
            return (mean + off[:, step]).clamp(-1, 1)

        with unrolled(self.learner.actor):
            return self.model.imagine(start, act, steps, task, self.noise)

    def inputs(self, state: State, task: TaskContext) -> Tensor:
        """What actor and critic read: (N, ..., dim_policy)."""
        tau = task.tau if state.h.dim() == 2 else task.tau.unsqueeze(1).expand(-1, state.h.shape[1], -1)
        return torch.cat([state.features, tau], -1)


def data_outcomes(behavior: Behavior, latents: Latents) -> Outcomes:
    """What followed every row of the data under each prompt, by the reward of imagination, standardised."""

    def reward(prompt: Tensor, state: State, action: Tensor) -> Tensor:
        return behavior.reward(behavior.prompts.rows(prompt), state, action)

    config = behavior.config
    found = label_rewards(latents, reward, config.horizon)
    return outcomes(latents, found, config.actor_critic.discount, config.actor_critic.n_step, behavior.sharpness)


def draw_batch(
    latents: Latents | None, found: Outcomes | None, config: BehaviorConfig, noise: Noise, prompts: int
) -> Batch:
    """Transitions of the dataset, or no data; each row asks for one prompt.

    Returns:
        prompt (N,); with data h, z, e (N, ·), action (N, A), reward and discount (N,), next_h, next_z, next_e (N, ·)
        of the state reached, normal (N, A), imitated (N,), and mean and spread (N,) of the prompt's reward.
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
        "imitated": latents.imitated[rows],
        "mean": found.mean[prompt],
        "spread": found.spread[prompt],
    }
