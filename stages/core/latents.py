"""The dataset as latents, from which behaviour learns without touching a pixel; stages/behave.py encodes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.core.world_model import Noise, State


@dataclass
class Latents:
    """Posterior states of every row under each of K prompts.

    h (K, N, deter), z (K, N, dim_z), e (N, dim_e): float16, on the training device where they fit, else on the CPU.
    The rest is on the training device: action (N, A), reward (N,), the true one, and imitated (N,), 1 where the next
    action was a policy's and 0 on a branch: float32.
    `episodes` (E, 2) are the first row and the length of every episode. `decisions` are the rows that an action of
    the data follows; `early` those of them in the first steps of an episode.
    """

    h: Tensor
    z: Tensor
    e: Tensor
    action: Tensor
    reward: Tensor
    imitated: Tensor
    episodes: Tensor
    decisions: Tensor
    early: Tensor

    def draw(self, count: int, start_fraction: float, noise: Noise) -> Tensor:
        """Rows (count,) of `decisions`, `start_fraction` of them of `early`."""
        first, u = noise.uniform(count) < start_fraction, noise.uniform(count)
        early, any_ = (r[(u * len(r)).long().clamp(max=len(r) - 1)] for r in (self.early, self.decisions))
        return torch.where(first, early, any_)

    def state(self, rows: Tensor, prompt: Tensor) -> State:
        """States (..., ·) at `rows` under prompts of the same shape, on their device."""
        k, n = prompt.to(self.h.device), rows.to(self.h.device)
        return State(self.h[k, n], self.z[k, n], self.e[n]).map(lambda x: x.to(rows.device).float())


# (prompt (N,), states (N, H+1, ·), actions (N, H, A)) → reward (N, H) of arriving at states 1..H
PromptReward = Callable[[Tensor, State, Tensor], Tensor]


@torch.no_grad()
def label_rewards(latents: Latents, reward: PromptReward, horizon: int, rows_at_once: int = 8192) -> Tensor:
    """A learned reward of every row under each prompt, (K, N); 0 at an episode's first row.

    Every episode is cut into stretches of `horizon` steps, the last one ending with the episode, so that the
    reward is read as in imagination: over a rollout of that many steps from any state.
    """
    found = torch.zeros(len(latents.h), len(latents.reward), device=latents.reward.device)
    begin = torch.cat([_stretches(int(a), int(n), horizon) for a, n in latents.episodes.cpu()]).to(found.device)
    for start in begin.split(max(1, rows_at_once // horizon)):
        rows = start[:, None] + torch.arange(horizon + 1, device=start.device)  # (M, H+1)
        for k in range(len(found)):
            prompt = torch.full_like(rows, k)
            earned = reward(prompt[:, 0], latents.state(rows, prompt), latents.action[rows[:, 1:]])
            found[k, rows[:, 1:]] = earned.float()
    return found


def _stretches(start: int, length: int, horizon: int) -> Tensor:
    last = start + length - 1 - horizon
    return torch.tensor([*range(start, last, horizon), last])


@dataclass
class Outcomes:
    """What followed every row within n steps of its episode, under K prompts.

    reward (K, N) the discounted sum of rewards, row (N,) the row reached, discount (N,) γ to the steps taken. Rewards
    are counted from their mean over the data, `mean` (K,), in units of their deviation, `spread` (K,), and `sharpened`.
    """

    reward: Tensor
    row: Tensor
    discount: Tensor
    mean: Tensor
    spread: Tensor


def sharpened(reward: Tensor, sharpness: float) -> Tensor:
    """exp(sharpness · reward), standardised for a standard normal `reward`; at 0 the reward itself.

    A similarity learned by contrast is the log of a density ratio, which hardly tells good from best.
    """
    if not sharpness:
        return reward
    mean = math.exp(sharpness**2 / 2)
    return ((sharpness * reward).exp() - mean) / (mean * math.sqrt(math.expm1(sharpness**2)))


def outcomes(latents: Latents, reward: Tensor, discount: float, n_step: int, sharpness: float) -> Outcomes:
    """n-step outcomes of rewards (K, N). Episodes end by a time limit, which is no end of reward: shorter, no zeros."""
    earned = reward[:, latents.decisions + 1]  # an episode's first row is never arrived at
    mean, spread = earned.mean(1), earned.std(1).clamp(min=1e-6)
    reward = sharpened(((reward.T - mean) / spread).T, sharpness)
    row = torch.arange(reward.shape[1], device=reward.device)
    last = row.clone()
    for start, length in latents.episodes.tolist():
        last[start : start + length] = start + length - 1
    total = torch.zeros_like(reward)
    for k in range(1, n_step + 1):
        total += discount ** (k - 1) * reward[:, (row + k).clamp(max=len(row) - 1)] * (row + k <= last)
    reached = torch.minimum(row + n_step, last)
    return Outcomes(total, reached, discount ** (reached - row).float(), mean, spread)
