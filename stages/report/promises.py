"""What imagination promises a policy: rewards and action values along its own actions, beside what really follows.

An action value learns from the values of the states where imagined rollouts end. Where these are higher than those of
the states that the same actions really lead to, the excess is learned again and again. How to read it:
docs/imagination.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.core.actor_critic import ActionValues, Actor
from stages.core.world_model import Noise, State
from stages.policies.policy import load_actor, load_values
from stages.report.counterfactual import AT_ONCE, HORIZON, STEPS, Judge, draw_rows, judges
from stages.report.scene import Scene
from stages.report.tables import Table


@dataclass
class Promise:
    """From N states of the data, along H actions that a policy took in imagination, one rollout each.

    reward, value: (2, N, H) of arriving at the real and at the imagined states. A value is the policy's own, in its
    units: a reward less its mean over the data is 1 where it is one standard deviation.
    """

    reward: np.ndarray
    value: np.ndarray

    def rows(self) -> list[dict[str, float]]:
        """{step, rewards and values of both, what imagination adds to the value} at every one of STEPS.

        `value_gap` is in standard deviations of the real values over the N states.
        """
        found = []
        for step in STEPS:
            (real, imagined), (worth, promised) = self.reward[..., step - 1], self.value[..., step - 1]  # (N,) each
            numbers = {
                "reward_real": real.mean(),
                "reward_imagined": imagined.mean(),
                "value_real": worth.mean(),
                "value_imagined": promised.mean(),
                "value_gap": (promised - worth).mean() / max(worth.std(), 1e-6),
            }
            found.append({"step": step} | {name: round(float(x), 3) for name, x in numbers.items()})
        return found


def promise(judge: Judge, actor: Actor, values: ActionValues, rows: np.ndarray, seed: int) -> Promise:
    """What follows the frames at `rows` (N,) in imagination under the actor's means, and in the simulator under the
    same actions."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [_promised(judge, actor, values, some) for some in np.split(rows, range(AT_ONCE, len(rows), AT_ONCE))]
    return Promise(*(np.concatenate(both, 1) for both in zip(*parts, strict=True)))


@torch.no_grad()
def _promised(judge: Judge, actor: Actor, values: ActionValues, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and values (2, N, H), see `Promise`."""
    device = judge.prompt.tau.device
    task = judge.prompt.rows(torch.zeros(len(rows), dtype=torch.long, device=device))

    def act(features: Tensor, step: int) -> Tensor:
        return actor(torch.cat([features, task.tau], -1))[0]

    start = judge.seen(rows)
    imagined, moves, _ = judge.model.imagine(start, act, HORIZON, task, Noise(device))
    image, e = judge.happened(rows, moves.cpu().numpy()[:, None])
    both = judge.filtered(start, image, moves, e, task), imagined
    reward = torch.stack([judge.model.reward(task, states, moves, judge.space) for states in both])
    value = torch.stack([_values(actor, values, states, task.tau) for states in both])
    return reward.cpu().numpy(), value.cpu().numpy()


def _values(actor: Actor, values: ActionValues, states: State, tau: Tensor) -> Tensor:
    """The smaller value (N, H) of the actor's means at states 1..H of (N, H+1, ·)."""
    features = states.features[:, 1:]
    features = torch.cat([features, tau.unsqueeze(1).expand(*features.shape[:2], -1)], -1).flatten(0, 1)
    return values(features, actor(features)[0]).amin(0).unflatten(0, states.h[:, 1:].shape[:2])


def judge_policies(scene: Scene) -> dict[str, Any]:
    """{task: rows of its `Promise`}, of the tasks with a policy of this model and a replay in its data."""
    found = {}
    for task, (judge, episodes, _) in judges(scene).items():
        learned = scene.policies.get(scene.prompts[task])
        if learned and scene.model_artifact.id in learned.artifact.meta["inputs"].values():
            states, seed = scene.config.counterfactual_states, scene.run.seed
            rows = draw_rows(scene.dataset, episodes, states, np.random.default_rng(seed))
            parts = load_actor(learned.artifact, scene.model), load_values(learned.artifact, scene.model)
            found[task] = promise(judge, *parts, rows, seed).rows()
    return found


def promises_table(found: dict[str, Any]) -> Table:
    """One row a task and step."""
    numbers = [{"task": task, **row} for task, rows in found.items() for row in rows]
    header = ["task", "step", "reward, real", "imagined", "value, real", "imagined", "gap of values, in their spread"]
    cells = [[str(x) if isinstance(x, str | int) else f"{x:.2f}" for x in row.values()] for row in numbers]
    note = "Along the actions that the policy takes in imagination, tried in the simulator from the same states."
    return Table("What imagination promises the policy", note, header, cells, numbers)
