"""Can imagination be trusted? What the model says of other actions than the data's, beside what the simulator does.

From held-out states of a task's replay the physics are restored and moved by other actions; the frames are drawn,
embedded and filtered, and their reward under the task's prompt is the truth that the imagined reward is held against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.backbones import Backbone
from stages.core.settings import Measure
from stages.core.world_model import Noise, State, TaskContext, WorldModel
from stages.data.episodes import Dataset
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from stages.worlds.render import render_states

CONTEXT = 32  # frames the model looks at before it imagines
SAMPLES = 4  # imagined rollouts behind an expected reward
NOISE = 0.3  # standard deviation of what is added to the data's actions
PUSH, PUSH_STEPS = 0.2, 4  # of one action dimension for so many decisions: the difference behind a gradient
AT_ONCE = 128  # rollouts in memory together


@dataclass
class Futures:
    """N futures of H decisions: start rows (N,), actions (N, H, A), rewards (N, H) of the real and the imagined."""

    row: np.ndarray
    action: np.ndarray
    real: np.ndarray
    imagined: np.ndarray


@dataclass
class Judge:
    """What the futures of one model are judged with; `prompt` is the context of one prompt."""

    model: WorldModel
    backbone: Backbone
    dataset: Dataset
    prompt: TaskContext
    measure: Measure

    def futures(self, rows: np.ndarray, action: np.ndarray, seed: int = 0) -> Futures:
        """The rewards of `action` (N, H, A) from the frames at `rows` (N,), each with CONTEXT frames before it."""
        parts = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for i in range(0, len(rows), AT_ONCE):
                parts.append(self._rewards(rows[i : i + AT_ONCE], action[i : i + AT_ONCE]))
        real, imagined = (torch.cat(side).cpu().numpy() for side in zip(*parts, strict=True))
        return Futures(rows, action, real, imagined)

    @torch.no_grad()
    def _rewards(self, rows: np.ndarray, action: np.ndarray) -> tuple[Tensor, Tensor]:
        """Real and imagined rewards (N, H)."""
        model, data, horizon = self.model, self.dataset, action.shape[1]
        device = next(model.parameters()).device
        task = self.prompt.expand(len(rows))

        # What the simulator makes of the actions, seen as the model sees data.
        first = rows - CONTEXT + 1
        past = data.windows("image", first, CONTEXT)  # (N, C, 3, S, S)
        states = real_states(data.domain, data.rows("state", rows), action)  # (N, H, ·)
        drawn = render_states(data.domain, states.reshape(-1, states.shape[-1]), data.image_size)
        image = np.concatenate([past, drawn.reshape(len(rows), horizon, *drawn.shape[1:])], 1)  # (N, C+H, 3, S, S)
        e = torch.cat([self._embedded(image, CONTEXT + t) for t in range(horizon)], 1)  # (N, H, dim_e)
        before = torch.from_numpy(data.windows("embedding", first, CONTEXT)).to(device).float()
        e = model.adapter(F.normalize(torch.cat([before, e.half().float()], 1), dim=-1))
        taken = np.concatenate([data.windows("action", first, CONTEXT), action.astype(np.float32)], 1)
        is_first = torch.zeros(taken.shape[:2], dtype=torch.bool, device=device)
        frames, moves = torch.from_numpy(image).to(device), torch.from_numpy(taken).to(device)
        seen = model.observe(frames, moves, is_first, e, task, None).state
        real = model.reward(task, seen.map(lambda x: x[:, CONTEXT - 1 :].float()), moves[:, CONTEXT:], self.measure)

        # What the model imagines of them from the same state.
        start = seen.map(lambda x: x[:, CONTEXT - 1].float())
        return real, self.imagined(start, moves[:, CONTEXT:], task)

    def imagined(self, start: State, action: Tensor, task: TaskContext) -> Tensor:
        """The mean reward (N, H) of SAMPLES rollouts of the model under `action` (N, H, A)."""
        noise, found = Noise(action.device), []
        for _ in range(SAMPLES):
            states, _, _ = self.model.imagine(start, lambda _, t: action[:, t], action.shape[1], task, noise)
            found.append(self.model.reward(task, states, action, self.measure))
        return torch.stack(found).mean(0)

    def _embedded(self, image: np.ndarray, at: int) -> Tensor:
        """(N, 1, dim_e): of the window that ends with frame `at`."""
        window = image[:, at + 1 - self.backbone.window : at + 1]
        return self.backbone.encode_video(torch.from_numpy(np.ascontiguousarray(window)))[:, None]


def real_states(domain: str, states: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Physics states (N, H, ·) that follow `states` (N, ·) under `action` (N, H, A)."""
    env = tasks.make_env(domain, tasks.task_names(domain)[0])
    env.reset(seed=0)
    out = np.empty((*action.shape[:2], states.shape[1]))
    for i, state in enumerate(states):
        env.reset(seed=0)
        env.place(state)
        for t in range(action.shape[1]):
            out[i, t] = env.advance(action[i, t])
    return out


def draw_rows(dataset: Dataset, among: np.ndarray, count: int, horizon: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (count,) of the episodes `among` (E,) bool that have CONTEXT frames up to them and `horizon` after."""
    info = dataset.episode_info
    usable = np.flatnonzero(among & (info.length >= CONTEXT + horizon))
    if not len(usable):
        raise BadInput(f"no episode held out has {CONTEXT + horizon} frames to judge imagination on")
    episode = rng.choice(usable, count)
    return info.start[episode] + CONTEXT - 1 + rng.integers(info.length[episode] - CONTEXT - horizon + 1)


def other_actions(dataset: Dataset, rows: np.ndarray, horizon: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Actions (N, H, A) by kind: the data's, those with noise, those after another row, uniform ones."""
    data = dataset.windows("action", rows + 1, horizon).astype(np.float64)
    return {
        "data": data,
        "noise": np.clip(data + NOISE * rng.standard_normal(data.shape), -1, 1),
        "another": data[rng.permutation(len(rows))],
        "uniform": rng.uniform(-1, 1, data.shape),
    }


def agreement(found: Mapping[str, Futures], steps: tuple[int, ...] = (4, 8, 16)) -> dict[str, Any]:
    """Means and gap of real and imagined rewards by kind and step, and how their changes against the data's actions
    go together: correlation, and slope of the real on the imagined one (1 where imagination can be believed)."""
    table: dict[str, Any] = {}
    base = found["data"]
    for kind, futures in found.items():
        for step in steps:
            real, imagined = futures.real[:, step - 1], futures.imagined[:, step - 1]
            row = {"real": real.mean(), "imagined": imagined.mean(), "gap": (imagined - real).mean()}
            row["correlation"] = np.corrcoef(real, imagined)[0, 1]
            if kind != "data":
                change, wanted = imagined - base.imagined[:, step - 1], real - base.real[:, step - 1]
                row["slope"] = (change * wanted).mean() / (wanted**2).mean()
            table.setdefault(kind, {})[step] = {k: round(float(v), 3) for k, v in row.items()}
    return table


def gradients(judge: Judge, rows: np.ndarray, action: np.ndarray) -> dict[str, float]:
    """The change of the mean reward along A directions, a push of one action dimension over the first decisions: how
    the model's lies to the simulator's. Mean cosine over rows, and the ratio of the norms."""
    n, horizon, width = action.shape
    pushed = np.repeat(action[:, None, None], 2 * width, 1).reshape(n, width, 2, horizon, width)
    for a in range(width):
        for side, sign in enumerate((1, -1)):
            pushed[:, a, side, :PUSH_STEPS, a] += sign * PUSH
    found = judge.futures(np.repeat(rows, 2 * width), pushed.reshape(-1, horizon, width))
    slopes = [x.mean(1).reshape(n, width, 2) @ np.array([1, -1]) / (2 * PUSH) for x in (found.real, found.imagined)]
    real, imagined = slopes  # (N, A) each
    norms = [np.linalg.norm(x, axis=1) for x in slopes]
    cosine = (real * imagined).sum(1) / np.maximum(norms[0] * norms[1], 1e-9)
    return {"cosine": round(float(cosine.mean()), 3), "norm_ratio": round(float(norms[1].mean() / norms[0].mean()), 3)}
