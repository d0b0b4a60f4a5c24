"""Looking into a trained model: open-loop prediction, decoded text imaginations, and the learned reward judged.

Nothing here trains. The true reward appears only as a yardstick, recomputed from physics states, so
that every episode can be scored for every task of its domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor

from stages import worlds
from stages.core.actor_critic import Actor
from stages.core.nets import normalize_image, sample_one_hot, to_uint8
from stages.core.world_model import Noise, State, TaskContext, WorldModel
from stages.data.episodes import Dataset
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from stages.worlds.motion import window_features

WINDOW = 8  # frames a reward is averaged over before it is ranked
AT_ONCE = 16  # sequences in memory together
SAMPLES = 16  # rollouts behind the expected frame: of 8, their own noise is 3 % of its error at step 10 (laptop)


# ---------------------------------------------------------------------------- open loop


@dataclass
class OpenLoop:
    """Real and predicted frames (N, C+H, 3, 64, 64) uint8, and errors (N, H), sums of squares over a frame in [0, 1].

    The first C predicted frames are reconstructions (the model still looks). `error` is that of the expected
    frame, the mean over sampled rollouts; `single` that of the one rollout of most likely states, which is
    `predicted`; `copy` that of repeating the last frame seen.
    """

    real: np.ndarray
    predicted: np.ndarray
    error: np.ndarray
    single: np.ndarray
    copy: np.ndarray


@torch.no_grad()
def open_loop(
    model: WorldModel, dataset: Dataset, starts: np.ndarray, context: int, horizon: int, seed: int = 0
) -> OpenLoop:
    """Look at `context` frames, then predict `horizon` more from the data's actions alone.

    The task embedding is pseudo-text of the context, so nothing of the predicted stretch leaks in.

    Args:
        starts: (N,) global rows; each window of context + horizon rows lies inside one episode.
        seed: of the sampled rollouts.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [_open_loop(model, dataset, chunk, context, horizon) for chunk in _chunks(starts)]
    return OpenLoop(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(OpenLoop)))


def _open_loop(model: WorldModel, dataset: Dataset, starts: np.ndarray, context: int, horizon: int) -> OpenLoop:
    device = next(model.parameters()).device
    length = context + horizon
    image, action, e = (_window(dataset, k, starts, length, device) for k in ("image", "action", "embedding"))

    # look: the state after the last frame of the context
    e = F.normalize(e.float(), dim=-1)
    task = model.task(F.normalize(e[:, :context].mean(1), dim=-1))
    is_first = torch.zeros(image.shape[:2], dtype=torch.bool, device=device)
    seen = model.observe(
        image[:, :context], action[:, :context], is_first[:, :context], model.adapter(e[:, :context]), task, None
    )
    last = seen.state.map(lambda x: x[:, -1])

    # imagine: once the most likely states, and often sampled ones, side by side
    def rollouts(count: int, noise: Noise | None) -> Tensor:
        """z of `count` rollouts of every window: (count, N, H, dim_z)."""
        row = torch.arange(len(starts), device=device).repeat(count)
        start, taken = last.map(lambda x: x[row]), action[row]
        imagined, _, _ = model.imagine(start, lambda _, t: taken[:, context + t], horizon, task.rows(row), noise)
        return imagined.z[:, 1:].unflatten(0, (count, -1))

    single = decode(model, rollouts(1, None)[0])  # (N, H, 3, 64, 64) uint8
    expected = sum(normalize_image(decode(model, z)) for z in rollouts(SAMPLES, Noise(device))) / SAMPLES

    # compare with what happened
    future = normalize_image(image[:, context:])
    guesses = expected, normalize_image(single), normalize_image(image[:, context - 1 : context])
    errors = [(guess - future).square().sum((2, 3, 4)) for guess in guesses]  # (N, H) each
    predicted = torch.cat([decode(model, seen.state.z), single], 1)  # (N, C+H, 3, 64, 64)
    return OpenLoop(*(t.cpu().numpy() for t in (image, predicted, *errors)))


def open_loop_summary(result: OpenLoop, held_out: bool) -> dict[str, Any]:
    """Mean errors by horizon, as JSON: the model's and copying's, and how they compare.

    Args:
        held_out: whether the model was trained without these episodes, for the record.
    """
    model, single, copy = result.error.mean(0), result.single.mean(0), result.copy.mean(0)
    ratio = copy / np.maximum(model, 1e-9)
    return {
        "windows": len(result.error),
        "unit": "sum of squared errors over a frame, pixels in [0, 1]",
        "held_out": held_out,
        "horizon": list(range(1, len(model) + 1)),
        "rollouts": SAMPLES,
        "model": model.round(3).tolist(),
        "single_rollout": single.round(3).tolist(),
        "copy_last_frame": copy.round(3).tolist(),
        "better_than_copying": int(np.argmax(ratio < 1)) if (ratio < 1).any() else len(ratio),
        "times_better_at_10": round(float(ratio[9]), 3) if len(ratio) >= 10 else None,
    }


@torch.no_grad()
def decode(model: WorldModel, z: Tensor) -> Tensor:
    """Latents (N, T, dim_z) → frames (N, T, 3, 64, 64) uint8, on the model's device."""
    return torch.stack([to_uint8(model.decoder(sequence)) for sequence in z])


def draw_windows(dataset: Dataset, among: np.ndarray, count: int, length: int, seed: int) -> np.ndarray:
    """Global start rows (count,) of windows of `length` rows of the episodes `among` (E,) bool, evenly over the parts.

    Raises BadInput when no episode is long enough.
    """
    info, rng = dataset.episode_info, np.random.default_rng(seed)
    fitting = _long_enough(dataset, among, length)
    chosen = np.array([rng.choice(fitting[i % len(fitting)]) for i in range(count)])
    return info.start[chosen] + (rng.random(count) * (info.length[chosen] - length + 1)).astype(np.int64)


def best_windows(dataset: Dataset, count: int, length: int) -> np.ndarray:
    """Windows from the middle of the best episodes, the parts with a reward in turn: (count,) start rows.

    Raises BadInput when no episode is long enough.
    """
    info = dataset.episode_info
    fitting = _long_enough(dataset, ~info.cut, length)
    ranked = [episodes[np.argsort(-info.returns[episodes], kind="stable")] for episodes in fitting]
    chosen = np.array([e for turn in zip_longest(*ranked) for e in turn if e is not None][:count])
    return info.start[chosen] + (info.length[chosen] - length) // 2


def _long_enough(dataset: Dataset, among: np.ndarray, length: int) -> list[np.ndarray]:
    """The episodes `among` (E,) bool that have `length` rows, of each part that has any."""
    fitting = _by_part(dataset, among & (dataset.episode_info.length >= length))
    if not fitting:
        raise BadInput(f"no episode has {length} frames; lower visualize.horizon, or collect longer episodes")
    return fitting


def _by_part(dataset: Dataset, among: np.ndarray) -> list[np.ndarray]:
    """Numbers of the episodes `among` (E,) bool, of each part that has any."""
    groups = [np.flatnonzero(among & (dataset.episode_info.part == part)) for part in range(len(dataset.parts))]
    return [group for group in groups if len(group)]


# ---------------------------------------------------------------------------- dreams


@torch.no_grad()
def text_dream(model: WorldModel, task: TaskContext, actions: Tensor) -> np.ndarray:
    """What the model thinks each prompt looks like (Eq. 7, 8): frames (K, H+1, 3, 64, 64) uint8.

    Args:
        actions: (K, H, A) executed actions; zeros where there are none to follow.
    """
    z, _ = model.text_rollout(actions, task, None)
    return decode(model, z).cpu().numpy()


@torch.no_grad()
def policy_dream(
    model: WorldModel, actor: Actor, task: TaskContext, dataset: Dataset, row: int, steps: int
) -> tuple[np.ndarray, Tensor]:
    """What a policy expects to happen from the frame at `row`, an episode's first.

    Returns:
        frames (H+1, 3, 64, 64) uint8 and the mean actions (1, H, A).
    """
    device = next(model.parameters()).device
    image, e = (_window(dataset, k, np.array([row]), 1, device)[:, 0] for k in ("image", "embedding"))
    no_action = torch.zeros(1, model.dim_action, device=device)
    start = model.observe_step(image, None, no_action, model.adapter(F.normalize(e.float(), dim=-1)), task)
    states, actions, _ = model.imagine(
        start, lambda features, _: actor(torch.cat([features, task.tau], -1))[0], steps, task, None
    )
    return decode(model, states.z)[0].cpu().numpy(), actions


# ---------------------------------------------------------------------------- true reward


def true_reward(domain: str, task: str, states: np.ndarray) -> np.ndarray:
    """The task's reward of one control step at each physics state: (N, nq+nv) → (N,) in [0, 1].

    Equals what the environment returned for the last control step that led to the state.
    """
    physics, judge = worlds.make_physics(domain), tasks.get_task(domain, task).make(RandomState(0))
    nq = physics.model.nq
    out = np.empty(len(states))
    for i, state in enumerate(states):
        physics.data.qpos[:], physics.data.qvel[:] = state[:nq], state[nq:]
        physics.forward()  # rewards read sensors
        out[i] = judge.get_reward(physics)
    return out


# ---------------------------------------------------------------------------- learned reward


@torch.no_grad()
def episode_rewards(
    model: WorldModel, dataset: Dataset, episodes: np.ndarray, prompts: TaskContext, horizon: int
) -> dict[str, np.ndarray]:
    """Learned rewards along whole episodes of equal length T, as behaviour learning computes them.

    Episodes are filtered from their first frame and cut into stretches of `horizon` steps.

    Returns:
        {space of the model: (K, E, n·horizon)} for each of K prompts; column t is the reward of arriving at row
        t + 1.
    """
    length = int(dataset.episode_info.length[episodes[0]])
    if length <= horizon or (dataset.episode_info.length[episodes] != length).any():
        raise BadInput(f"the reward along episodes needs episodes of one length, longer than {horizon} decisions")
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {name: [] for name in model.spaces}
    for chunk in _chunks(episodes, 4):
        # what does not depend on the prompt: frames, posterior, embeddings
        starts = dataset.episode_info.start[chunk]
        image, action, e = (_window(dataset, k, starts, length, device) for k in ("image", "action", "embedding"))
        s = sample_one_hot(model.rssm.posterior(image), None)  # (B, T, S)
        e = model.adapter(F.normalize(e.float(), dim=-1))
        is_first = torch.zeros(image.shape[:2], dtype=torch.bool, device=device)
        is_first[:, 0] = True
        for k in range(len(prompts.tau)):
            # filter the whole episodes, then cut them into stretches
            task = prompts.rows(torch.tensor([k], device=device))
            z = model.fuse(e, s, task.gates.unsqueeze(1))
            h = model.rssm.scan(z, action, is_first, model.rssm.first(len(chunk)))
            for name, reward in stretch_rewards(model, State(h, z, e), action, task, horizon).items():
                found[name].append(reward.float().cpu())
    count = len(prompts.tau)  # every chunk of episodes is there once a prompt
    return {n: np.stack([torch.cat(parts[k::count]).numpy() for k in range(count)]) for n, parts in found.items()}


@torch.no_grad()
def stretch_rewards(
    model: WorldModel, state: State, action: Tensor, task: TaskContext, horizon: int
) -> dict[str, Tensor]:
    """Learned rewards of filtered episodes, cut into stretches of `horizon` steps: {space: (B, n·horizon)}.

    Args:
        state: (B, T, ·). action: (B, T, A), the one that led to each row. task: of one prompt.
    """
    count = (action.shape[1] - 1) // horizon
    starts = torch.arange(count, device=action.device)[:, None] * horizon
    index = starts + torch.arange(horizon + 1, device=action.device)  # (n, H+1)
    state = state.map(lambda x: x[:, index].flatten(0, 1))  # (B·n, H+1, ·)
    steps = action[:, index[:, 1:]].flatten(0, 1)  # (B·n, H, A)
    task = task.expand(len(steps))
    rewards = {name: model.reward(task, state, steps, name) for name in model.spaces}
    return {name: reward.reshape(len(action), -1) for name, reward in rewards.items()}


def choose_episodes(dataset: Dataset, among: np.ndarray, count: int) -> np.ndarray:
    """About `count` of the episodes `among` (E,) bool, of the most frequent length: shared by the parts, and even over
    the ranks of return."""
    info = dataset.episode_info
    lengths, frequency = np.unique(info.length[among], return_counts=True)
    usual = among & (info.length == lengths[frequency.argmax()])
    share = max(1, count // sum(not part.cut for part in dataset.parts))
    chosen = []
    for mine in _by_part(dataset, usual):
        ranked = mine[np.argsort(info.returns[mine], kind="stable")]
        chosen.append(ranked[np.unique(np.linspace(0, len(ranked) - 1, share).round().astype(int))])
    return np.concatenate(chosen)


def reward_diagnostics(
    dataset: Dataset,
    task: str,
    episodes: np.ndarray,
    rewards: Mapping[str, np.ndarray],
    windows: int,
    seed: int,
    held_out: bool,
) -> dict[str, Any]:
    """How well learned rewards rank the true reward of `task` over 8-frame windows drawn evenly from all sources.

    Args:
        episodes: (E,) of `choose_episodes`; rewards: {name: (E, T')} of `episode_rewards` for this task's prompt.
        windows: how many windows are drawn.
        held_out: whether the model was trained without these episodes, for the record.
    Returns:
        Spearman's rank correlation of each reward, over all windows and within each source; the mean of each
        reward by source and by what the body does (weighted by graded behaviours of the physics state).
    """
    if not dataset.has("state"):
        raise BadInput("imported data holds no physics state, so no true reward to compare with; collect data instead")
    # windows, as many of each source
    info = dataset.episode_info
    usable = next(iter(rewards.values())).shape[1]
    size = min(WINDOW, usable)
    rng = np.random.default_rng(seed)
    _, part, members = np.unique(info.part[episodes], return_inverse=True, return_counts=True)
    which = rng.choice(len(episodes), windows, p=1 / (members[part] * len(members)))  # (W,)
    columns = rng.integers(usable - size + 1, size=windows)[:, None] + np.arange(size)  # (W, 8)

    # what is true and what was learned, each the mean over a window
    states = dataset.rows("state", info.start[episodes[which]][:, None] + columns + 1)  # (W, 8, S)
    truth = true_reward(dataset.domain, task, states.reshape(-1, states.shape[-1])).reshape(windows, size).mean(1)
    learned = {name: value[which[:, None], columns].mean(1) for name, value in rewards.items()}

    # how they compare: over all windows, by source, and by what the body does
    names = np.array([source_name(dataset, int(p), task) for p in info.part[episodes[which]]])
    sources = {str(source): names == source for source in np.unique(names)}
    behaviours = {n: w for n, w in sorted(_behaviours(dataset.domain, states).items()) if w.sum() >= 0.01 * windows}

    def ranks(among: np.ndarray) -> dict[str, float | None]:
        return {name: _spearman(value[among], truth[among]) for name, value in learned.items()}

    def means(weight: np.ndarray) -> dict[str, Any]:
        return {"true": _mean(truth, weight), "mean": {name: _mean(value, weight) for name, value in learned.items()}}

    return {
        "windows": windows,
        "frames_a_window": size,
        "episodes": len(episodes),
        "held_out": held_out,
        "spearman": ranks(np.ones(windows, bool)),
        "by_source": {n: {"windows": int(m.sum()), **means(m), "spearman": ranks(m)} for n, m in sources.items()},
        "by_behaviour": {n: {"windows": round(float(w.sum()), 1), **means(w)} for n, w in behaviours.items()},
    }


def source_name(dataset: Dataset, part: int, task: str) -> str:
    """'random', 'explore', 'expert' for the task's own replay, 'expert of run' for another's."""
    about = dataset.parts[part]
    return f"{about.source} of {about.task}" if about.task and about.task != task else about.source


def _behaviours(domain: str, states: np.ndarray) -> dict[str, np.ndarray]:
    """Graded behaviours of windows (W, F, S), each frame averaged over the frames before it in the window: (W,)."""
    count, size, width = states.shape
    starts = np.arange(count + 1) * size
    features = window_features(worlds.compile_model(domain), domain, states.reshape(-1, width), starts)
    last = starts[1:] - 1
    return worlds.BODIES[domain].behaviours({name: value[last] for name, value in features.items()})


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation, None where one side does not vary."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import spearmanr  # takes a second to import, and every stage imports this module

    return round(float(spearmanr(a, b).statistic), 3)


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
    return round(float(np.average(values, weights=weight)), 4)


def _window(dataset: Dataset, name: str, starts: np.ndarray, length: int, device: torch.device) -> Tensor:
    return torch.from_numpy(dataset.windows(name, starts, length)).to(device)


def _chunks(items: np.ndarray, size: int = AT_ONCE) -> Sequence[np.ndarray]:
    return [items[i : i + size] for i in range(0, len(items), size)]
