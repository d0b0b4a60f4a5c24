"""What imagination promises a policy: the rewards and state values it meets there, beside those in the simulator.

From the same states the policy acts on what it imagines, and on what it sees. The value of a state is learned from that
of the state where an imagined rollout ends: what this is too high is learned again and again. How to read it:
docs/imagination.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.core.actor_critic import Actor, Values
from stages.core.world_model import Noise, State, TaskContext
from stages.policies.policy import SLOW_VALUES, load_actor, load_values
from stages.report.counterfactual import AT_ONCE, HORIZON, STEPS, Judge, draw_rows, follow, judges
from stages.report.scene import Scene
from stages.report.tables import Table
from stages.runtime.artifacts import Artifact


@dataclass
class Promise:
    """What a policy meets within H decisions of N states of the data, in the simulator and in one imagined rollout.

    reward, value: (2, N, H) of arriving at the real and at the imagined states, by the policy's own state value.
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


def promise(judge: Judge, actor: Actor, values: Values, rows: np.ndarray, seed: int) -> Promise:
    """What the actor's means lead to from the frames at `rows` (N,), in the simulator and in imagination."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [_promised(judge, actor, values, some) for some in np.split(rows, range(AT_ONCE, len(rows), AT_ONCE))]
    return Promise(*(np.concatenate(both, 1) for both in zip(*parts, strict=True)))


@torch.no_grad()
def _promised(judge: Judge, actor: Actor, values: Values, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and values (2, N, H), see `Promise`."""
    device = judge.prompt.tau.device
    task = judge.prompt.rows(torch.zeros(len(rows), dtype=torch.long, device=device))

    def act(features: Tensor, step: int) -> Tensor:
        return actor(torch.cat([features, task.tau], -1))[0]

    start = judge.seen(rows)
    imagined = judge.model.imagine(start, act, HORIZON, task, Noise(device))[:2]
    both = lived(judge, rows, start, act, task), imagined
    reward = torch.stack([judge.model.reward(task, states, moves, judge.space) for states, moves in both])
    tau = task.tau.unsqueeze(1).expand(-1, HORIZON, -1)
    value = torch.stack([values.state(torch.cat([states.features[:, 1:], tau], -1)) for states, _ in both])
    return reward.cpu().numpy(), value.cpu().numpy()


def lived(
    judge: Judge, rows: np.ndarray, start: State, act: Callable[[Tensor, int], Tensor], task: TaskContext
) -> tuple[State, Tensor]:
    """`WorldModel.imagine`, but in the simulator: states (N, H+1, ·) as the policy sees them, and its actions
    (N, H, A)."""
    env, bodies = judge.bodies(rows)
    past, states, moves = judge.past(rows), [start], list[Tensor]()
    for step in range(HORIZON):
        moves.append(act(states[-1].features, step))
        now = []
        for i, move in enumerate(moves[-1].cpu().numpy()):
            now.append(follow(env, bodies[i], move[None]))  # (1, ·)
            bodies[i] = env.snapshot()
        image, large, e = judge.looked(past, np.array(now))
        past = torch.cat([past[:, 1:], large], 1)
        states.append(judge.model.observe_step(image[:, 0], states[-1], moves[-1], e[:, 0], task))
    stacked = State(*(torch.stack([getattr(s, f.name).float() for s in states], 1) for f in fields(State)))
    return stacked, torch.stack(moves, 1)


def judge_policies(scene: Scene) -> dict[str, Any]:
    """{task: rows of its `Promise`}, of the tasks with a replay in the data of the model and a policy that learned in
    its imagination."""
    found = {}
    for task, (judge, episodes, _) in judges(scene).items():
        learned = scene.policies.get(scene.prompts[task])
        if learned and _imagined(learned.artifact, scene.model_artifact.id):
            states, seed = scene.config.counterfactual_states, scene.run.seed
            rows = draw_rows(scene.dataset, episodes, states, np.random.default_rng(seed))
            parts = load_actor(learned.artifact, scene.model), load_values(learned.artifact, scene.model)
            found[task] = promise(judge, *parts, rows, seed).rows()
    return found


def _imagined(policy: Artifact, model: str) -> bool:
    """Whether a policy learned state values (older ones did not) in the imagination of the model of this id."""
    learns = policy.meta["config"]["behave"]["actor_critic"]["imagination"] > 0
    knows = any(name.startswith(f"{SLOW_VALUES}state_net.") for name in policy.tensors("actor_critic"))
    return learns and knows and model in policy.meta["inputs"].values()


def promises_table(found: dict[str, Any]) -> Table:
    """One row a task and step."""
    numbers = [{"task": task, **row} for task, rows in found.items() for row in rows]
    header = ["task", "step", "reward, real", "imagined", "value, real", "imagined", "gap of values, in their spread"]
    cells = [[str(x) if isinstance(x, str | int) else f"{x:.2f}" for x in row.values()] for row in numbers]
    note = "From states of the task's replay the policy goes on, in the simulator and in imagination."
    return Table("What imagination promises the policy", note, header, cells, numbers)
