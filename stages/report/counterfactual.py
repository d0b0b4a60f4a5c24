"""Can imagination be trusted? What the model says of other actions than the data's, beside what the simulator does.

From states of a task's replay the physics are restored and moved by other actions; the frames are drawn, embedded
and filtered, and their reward under the task's prompt is the truth that the imagined reward is held against.
How to read it: docs/imagination.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.backbones import Backbone, backbone_of
from stages.backbones.embeddings import retrain_command
from stages.backbones.tuning import retune, window_embeddings
from stages.core.world_model import Noise, State, TaskContext, WorldModel
from stages.data.episodes import Dataset
from stages.report.scene import Scene
from stages.report.tables import Table
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from stages.worlds.render import render_states

CONTEXT = 32  # frames the model looks at before it imagines
HORIZON = 16  # decisions it imagines
STEPS = (4, 8, 16)  # at which the two are compared: a reward reads 8 frames, so what an action does shows late
SAMPLES = 4  # imagined rollouts behind an expected reward
NOISE = 0.3  # standard deviation of what is added to the data's actions
PUSH, PUSH_STEPS = 0.2, 4  # of one action dimension for so many decisions: the difference behind a gradient
AT_ONCE = 128  # rollouts in memory together
KINDS = {"data": "the data's", "noise": "with noise", "another": "of another window", "uniform": "uniform"}


@dataclass
class Futures:
    """K futures of H decisions from each of N rows, all (N, K, H): rewards, the prior's entropy in nats, and how far h
    has strayed from the filter's: mean square of the difference over the variance of h (2: as between any two frames).
    """

    real: np.ndarray
    imagined: np.ndarray
    entropy: np.ndarray
    astray: np.ndarray


class SharedNoise(Noise):
    """The same numbers for `times` rollouts one after the other, so that only their actions tell them apart."""

    def __init__(self, device: torch.device | str, times: int) -> None:
        super().__init__(device)
        self.times = times

    def _rows(self, draw: Callable[..., Tensor], batch: int, *rest: int) -> Tensor:
        return super()._rows(draw, batch // self.times, *rest).repeat_interleave(self.times, 0)


@dataclass
class Judge:
    """What the futures of one model are judged with.

    `frame_size` is that of the frames that its backbone reads, `prompt` the context of one prompt. Every frame is
    embedded; a model of embeddings with a stride was trained on older ones.
    """

    model: WorldModel
    backbone: Backbone
    frame_size: int
    dataset: Dataset
    prompt: TaskContext
    space: str

    def futures(self, rows: np.ndarray, action: np.ndarray, seed: int = 0) -> Futures:
        """What follows the frames at `rows` (N,) under `action` (N, K, H, A) in [-1, 1], the first leading off them.

        The model has seen the CONTEXT frames up to each row, which must lie in one episode.
        """
        count = max(1, AT_ONCE // action.shape[1])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            parts = [self._futures(rows[i : i + count], action[i : i + count]) for i in range(0, len(rows), count)]
        return Futures(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Futures)))

    @torch.no_grad()
    def _futures(self, rows: np.ndarray, action: np.ndarray) -> Futures:
        shape, device = action.shape[:3], next(self.model.parameters()).device
        moves = torch.from_numpy(action.astype(np.float32)).flatten(0, 1).to(device)  # (N·K, H, A)
        task = self.prompt.rows(torch.zeros(len(moves), dtype=torch.long, device=device))
        start = self.seen(rows).map(lambda x: x.repeat_interleave(shape[1], 0))
        image, e = self.happened(rows, action)
        seen = self.filtered(start, image, moves, e, task)
        real = self.model.reward(task, seen, moves, self.space)
        imagined, entropy, h = self.imagined(start, moves, task, shape[1])
        astray = (h - seen.h[:, 1:]).square().mean(-1) / seen.h.var()  # (N·K, H)
        return Futures(*(x.reshape(shape).cpu().numpy() for x in (real, imagined, entropy, astray)))

    def seen(self, rows: np.ndarray) -> State:
        """The filtered states (N, ·) at `rows`, after the CONTEXT frames up to them."""
        device, first = self.prompt.tau.device, rows - CONTEXT + 1
        image, action, e = (
            torch.from_numpy(self.dataset.windows(name, first, CONTEXT)).to(device)
            for name in ("image", "action", "embedding")
        )
        is_first = torch.zeros(image.shape[:2], dtype=torch.bool, device=device)
        e = self.model.adapter(F.normalize(e.float(), dim=-1))
        task = self.prompt.rows(torch.zeros(len(rows), dtype=torch.long, device=device))
        return self.model.observe(image, action, is_first, e, task, None).state.map(lambda x: x[:, -1].float())

    def happened(self, rows: np.ndarray, action: np.ndarray) -> tuple[Tensor, Tensor]:
        """What the simulator makes of it: frames (N·K, H, 3, S, S) uint8 and adapted embeddings (N·K, H, dim_e)."""
        env, found = self.bodies(rows)
        states = np.array(
            [follow(env, body, future) for body, some in zip(found, action, strict=True) for future in some]
        )
        past = self.past(rows).repeat_interleave(action.shape[1], 0)
        image, _, e = self.looked(past, states)  # states (N·K, H, ·)
        return image, e

    def bodies(self, rows: np.ndarray) -> tuple[tasks.Env, list[tasks.Snapshot]]:
        """A simulator, and its snapshot at each of the frames at `rows`."""
        first = rows - CONTEXT + 1
        return bodies(
            self.dataset.domain, *(self.dataset.windows(name, first, CONTEXT) for name in ("state", "action"))
        )

    def past(self, rows: np.ndarray) -> Tensor:
        """The frames up to each row that a window of the backbone's needs before the next one: (N, W-1, 3, S, S)."""
        count = self.backbone.window - 1
        return self._drawn(self.dataset.windows("state", rows - count + 1, count), self.frame_size)

    def looked(self, past: Tensor, states: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Frames of physics states (M, T, ·) that follow `past`: the model's (M, T, 3, 64, 64), the backbone's, and
        their adapted embeddings (M, T, dim_e)."""
        data, device = self.dataset, self.prompt.tau.device
        image = self._drawn(states, data.image_size)
        large = image if self.frame_size == data.image_size else self._drawn(states, self.frame_size)
        e = window_embeddings(self.backbone, past, large).half().float()  # as datasets hold them
        return image.to(device), large, self.model.adapter(F.normalize(e.to(device), dim=-1))

    def _drawn(self, states: np.ndarray, size: int) -> Tensor:
        """Frames (N, T, 3, size, size) of states (N, T, ·), as the dataset's were drawn."""
        data, camera = self.dataset, self.dataset.parts[0].artifact.meta["extra"].get("camera")
        flat = states.reshape(-1, states.shape[-1])
        frames = render_states(data.domain, flat, size, camera, data.renderer or "ray")
        return torch.from_numpy(frames).unflatten(0, states.shape[:2])

    def filtered(self, start: State, image: Tensor, moves: Tensor, e: Tensor, task: TaskContext) -> State:
        """States (N·K, H+1, ·) from `start` on, as a policy would see them."""
        states = [start]
        for t in range(moves.shape[1]):
            states.append(self.model.observe_step(image[:, t], states[-1], moves[:, t], e[:, t], task))
        return State(*(torch.stack([getattr(s, f.name).float() for s in states], 1) for f in fields(State)))

    def imagined(self, start: State, moves: Tensor, task: TaskContext, times: int) -> tuple[Tensor, Tensor, Tensor]:
        """Means over SAMPLES rollouts under `moves` (N·K, H, A): reward and entropy of the prior (N·K, H), and h
        (N·K, H, deter).

        `times` rollouts in a row begin alike and get the same noise.
        """
        noise, rewards, entropies, h = SharedNoise(moves.device, times), [], [], []
        for _ in range(SAMPLES):
            states, _, prior = self.model.imagine(start, lambda _, t: moves[:, t], moves.shape[1], task, noise)
            rewards.append(self.model.reward(task, states, moves, self.space))
            entropies.append(-(prior.exp() * prior).sum((-1, -2)))
            h.append(states.h[:, 1:])
        reward, entropy, state = (torch.stack(x).mean(0) for x in (rewards, entropies, h))
        return reward, entropy, state


def bodies(domain: str, before: np.ndarray, led: np.ndarray) -> tuple[tasks.Env, list[tasks.Snapshot]]:
    """A simulator, and its snapshots at the last of each row of `before` (N, C, ·), which `led` (N, C, A) led to.

    A stored state lacks what the solver starts from and the actuators' own state. So the way there is simulated
    again, and the body put where it was.
    """
    env = tasks.make_env(domain, tasks.task_names(domain)[0])
    env.reset(seed=0)
    beginning, found = env.snapshot(), []
    for states, moves in zip(before, led, strict=True):
        env.rewind(beginning)
        env.place(states[0])
        for state, move in zip(states[1:], moves[1:], strict=True):
            if not np.array_equal(env.advance(move), state):
                env.place(state)
        found.append(env.snapshot())
    return env, found


def follow(env: tasks.Env, body: tasks.Snapshot, action: np.ndarray) -> np.ndarray:
    """Physics states (H, ·) that follow the snapshot `body` under `action` (H, A)."""
    env.rewind(body)
    return np.array([env.advance(move) for move in action])


# ---------------------------------------------------------------------------- where, and what else could be done


def draw_rows(dataset: Dataset, among: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (count,) of the episodes `among` (E,) that have CONTEXT frames up to them and HORIZON after."""
    info, episode = dataset.episode_info, rng.choice(among, count)
    return info.start[episode] + CONTEXT - 1 + rng.integers(info.length[episode] - CONTEXT - HORIZON + 1)


def other_actions(dataset: Dataset, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Actions (N, K, H, A) in the order of KINDS; another window's are those after the next of `rows`."""
    data = dataset.windows("action", rows + 1, HORIZON).astype(np.float64)
    noisy = np.clip(data + NOISE * rng.standard_normal(data.shape), -1, 1)
    return np.stack([data, noisy, np.roll(data, 1, 0), rng.uniform(-1, 1, data.shape)], 1)


def pushed_actions(action: np.ndarray) -> np.ndarray:
    """The actions (N, H, A) with each dimension pushed up and then down at the beginning, in [-1, 1]: (N, 2A, H, A)."""
    width = action.shape[-1]
    pushed = np.repeat(action[:, None], 2 * width, 1)
    for a in range(width):
        pushed[:, 2 * a, :PUSH_STEPS, a] += PUSH
        pushed[:, 2 * a + 1, :PUSH_STEPS, a] -= PUSH
    return np.clip(pushed, -1, 1)


# ---------------------------------------------------------------------------- how the two go together


def agreement(found: Futures) -> dict[str, dict[str, dict[str, float | None]]]:
    """{kind: {step: numbers}} of the K = len(KINDS) futures.

    `real` and `imagined` are mean rewards, `gap` what imagination adds, `correlation` that of the two over the rows.
    `slope` is how much of the real change against the data's actions the imagined one has: 1 where imagination can
    be believed, 0 where it does not see what the actions do. None where nothing varies. `astray` is h's, averaged.
    """
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for k, kind in enumerate(KINDS):
        for step in STEPS:
            real, imagined = found.real[..., step - 1], found.imagined[..., step - 1]  # (N, K)
            row: dict[str, float | None] = {"real": real[:, k].mean(), "imagined": imagined[:, k].mean()}
            row["gap"] = (imagined[:, k] - real[:, k]).mean()
            row["correlation"] = _correlation(real[:, k], imagined[:, k])
            wanted, change = real[:, k] - real[:, 0], imagined[:, k] - imagined[:, 0]
            row["slope"] = (change * wanted).mean() / (wanted**2).mean() if wanted.any() else None
            row["astray"] = found.astray[:, k, step - 1].mean()
            rounded = {name: None if v is None else round(float(v), 3) for name, v in row.items()}
            table.setdefault(kind, {})[str(step)] = rounded
    return table


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None


def gradients(found: Futures) -> dict[str, float]:
    """How the change of the mean reward along every action dimension in the model lies to that in the simulator.

    Args:
        found: the futures of `pushed_actions`.
    Returns:
        cosine: mean over rows; norm_ratio: the imagined gradient's mean length over the real one's.
    """
    real, imagined = ((x[:, ::2] - x[:, 1::2]).mean(-1) / (2 * PUSH) for x in (found.real, found.imagined))  # (N, A)
    length = np.linalg.norm(real, axis=1), np.linalg.norm(imagined, axis=1)
    cosine = (real * imagined).sum(1) / np.maximum(length[0] * length[1], 1e-12)
    ratio = length[1].mean() / max(length[0].mean(), 1e-12)
    return {"cosine": round(float(cosine.mean()), 3), "norm_ratio": round(float(ratio), 3)}


# ---------------------------------------------------------------------------- the tasks of a run


def judge_tasks(scene: Scene) -> dict[str, dict[str, Any]]:
    """{task: what imagination is worth on its replay}, of the training tasks with a replay in the model's data.

    Raises BadInput where there are no physics states, or no replay that is long enough.
    """
    data = scene.dataset
    if not data.has("state"):
        raise BadInput(
            "the model's data hold no physics states to try other actions from; imagination can be judged on data of "
            "`bitagent collect` alone"
        )
    chosen = judges(scene)
    if not chosen:
        raise BadInput(
            f"no task's replay has an episode of {CONTEXT + HORIZON} frames to judge imagination on; make one with: "
            + scene.run.command("collect", "--source", "expert", "--task", tasks.task_names(scene.run.domain)[0])
        )
    states, seed = scene.config.counterfactual_states, scene.run.seed
    return {
        task: {"held_out": held_out, **judge_imagination(judge, episodes, states, seed)}
        for task, (judge, episodes, held_out) in chosen.items()
    }


def judges(scene: Scene) -> dict[str, tuple[Judge, np.ndarray, bool]]:
    """{task: (what judges it, the episodes (E,) of its replay to judge on, whether they were held out)}."""
    fitting = {task: _episodes(scene, task) for task in tasks.task_names(scene.run.domain)}
    if not any(len(episodes) for episodes, _ in fitting.values()):
        return {}
    backbone, size = _video_backbone(scene)
    found = {}
    for k, (task, (episodes, held_out)) in enumerate(fitting.items()):  # the first prompts are the tasks
        if len(episodes):
            prompt = scene.contexts.rows(torch.tensor([k], device=scene.contexts.tau.device))
            judge = Judge(scene.model, backbone, size, scene.dataset, prompt, scene.policy_space)
            found[task] = judge, episodes, held_out
    return found


def judge_imagination(judge: Judge, episodes: np.ndarray, states: int, seed: int) -> dict[str, Any]:
    """Everything that is reported of one task, from so many states of `episodes` (E,)."""
    rng = np.random.default_rng(seed)
    rows = draw_rows(judge.dataset, episodes, states, rng)
    action = other_actions(judge.dataset, rows, rng)
    found = judge.futures(rows, action, seed)
    curves = {
        kind: {f.name: getattr(found, f.name)[:, k].mean(0).round(3).tolist() for f in fields(Futures)}
        for k, kind in enumerate(KINDS)
    }
    gradient = gradients(judge.futures(rows, pushed_actions(action[:, 0]), seed))
    return {"states": states, "actions": agreement(found), "gradient": gradient, "curves": curves}


def _episodes(scene: Scene, task: str) -> tuple[np.ndarray, bool]:
    """Episodes of a task's replay that are long enough, and whether they were held out; all where none of them was."""
    info = scene.dataset.episode_info
    mine = (info.task == task) & ~info.cut & (info.length >= CONTEXT + HORIZON)
    held = mine & scene.judged if scene.held_out else np.zeros_like(mine)
    return np.flatnonzero(held if held.any() else mine), bool(held.any())


def _video_backbone(scene: Scene) -> tuple[Backbone, int]:
    """What embedded the model's data, and the size of the frames it read then."""
    made, again = scene.model_artifact, retrain_command(scene.model_artifact, scene.run)
    name = made.meta["extra"]["backbone"]
    backbone = backbone_of(made, name, scene.run.root, scene.run.device, again)  # another one than for texts: tuned
    as_the_model = retune(backbone, made) or backbone.enlarged
    return backbone, scene.dataset.image_size if as_the_model else backbone.frame_size


def counterfactual_tables(about: dict[str, dict[str, Any]]) -> dict[str, Table | None]:
    """{stem: table}: rewards by kind of actions and step for each task, then gradients and the prior's entropy."""
    made: dict[str, Table | None] = {}
    columns = ["actions", "step", "real", "imagined", "gap", "correlation", "slope", "astray"]
    for task, found in about.items():
        numbers = [
            {"actions": KINDS[kind], "step": int(step), **row}
            for kind, rows in found["actions"].items()
            for step, row in rows.items()
        ]
        unseen = "held-out states" if found["held_out"] else "states the model was trained on (no episode is held out)"
        note = f"Mean reward from {found['states']} {unseen} of the replay of {task}, so many decisions later."
        made[f"counterfactual-{task}"] = Table(
            f"Other actions: {task}", note, columns, [[_cell(n[c]) for c in columns] for n in numbers], numbers
        )
    header = ["task", "cosine", "norm ratio", *(f"entropy, step {step}" for step in (1, *STEPS))]
    rows, numbers = [], []
    for task, found in about.items():
        entropy = {f"entropy_{s}": found["curves"]["data"]["entropy"][s - 1] for s in (1, *STEPS)}
        numbers.append({"task": task, **found["gradient"], **entropy})
        rows.append([_cell(value) for value in numbers[-1].values()])
    note = (
        "The reward's change along each action dimension, in the model and in the simulator: cosine of the two, and "
        "the imagined one's length over the real one's. Entropy of the prior along the data's actions, nats."
    )
    made["counterfactual-gradient"] = Table("Gradient and drift of imagination", note, header, rows, numbers)
    return made


def _cell(value: float | int | str | None) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
