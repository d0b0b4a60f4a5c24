"""The dataset as latents: posterior states encoded once, so that behaviour learning touches no pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.world_model import Noise, State, TaskContext, WorldModel
from stages.data.episodes import Dataset
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.runtime.loop import progress
from stages.runtime.update import autocast, roomy

EARLY = 64  # decisions after an episode's beginning, in which a body that fell gets up


@dataclass
class Latents:
    """Posterior states of every row under each of K prompts.

    h (K, N, deter), z (K, N, dim_z), e (N, dim_e): float16, on the training device where they fit, else on the CPU.
    The rest is on the training device: action (N, A), reward (N,), the true one: float32.
    `episodes` (E, 2) are the first row and the length of every episode. `decisions` are the rows that an action of
    the data follows; `early` those of them in the first steps of an episode.
    """

    h: Tensor
    z: Tensor
    e: Tensor
    action: Tensor
    reward: Tensor
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
RewardFunction = Callable[[Tensor, State, Tensor], Tensor]


@torch.no_grad()
def label_rewards(latents: Latents, reward: RewardFunction, horizon: int, rows_at_once: int = 8192) -> Tensor:
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
            found[k, rows[:, 1:]] = reward(
                prompt[:, 0], latents.state(rows, prompt), latents.action[rows[:, 1:]]
            ).float()
    return found


def _stretches(start: int, length: int, horizon: int) -> Tensor:
    last = start + length - 1 - horizon
    return torch.tensor([*range(start, last, horizon), last])


@dataclass
class Outcomes:
    """What followed every row within n steps of its episode, under K prompts.

    reward (K, N) the discounted sum of rewards, row (N,) the row reached, discount (N,) γ to the steps taken.
    """

    reward: Tensor
    row: Tensor
    discount: Tensor


def outcomes(latents: Latents, reward: Tensor, discount: float, n_step: int) -> Outcomes:
    """n-step outcomes of rewards (K, N). Episodes end by a time limit, which is no end of reward: shorter, no zeros."""
    row = torch.arange(reward.shape[1], device=reward.device)
    last = row.clone()
    for start, length in latents.episodes.tolist():
        last[start : start + length] = start + length - 1
    total = torch.zeros_like(reward)
    for k in range(1, n_step + 1):
        total += discount ** (k - 1) * reward[:, (row + k).clamp(max=len(row) - 1)] * (row + k <= last)
    reached = torch.minimum(row + n_step, last)
    return Outcomes(total, reached, discount ** (reached - row).float())


def standardized(latents: Latents, reward: Tensor) -> Tensor:
    """Rewards (K, N) with zero mean and unit variance over the data, under each prompt: values then start near 0."""
    reached = latents.decisions + 1  # an episode's first row is never arrived at
    mean, std = reward[:, reached].mean(1, keepdim=True), reward[:, reached].std(1, keepdim=True)
    return (reward - mean) / std.clamp(min=1e-6)


@torch.no_grad()
def posterior_modes(model: WorldModel, dataset: Dataset, device: torch.device, *, quiet: bool, bf16: bool) -> Tensor:
    """The likeliest class of every variable of the posterior q(s | x) of every row: (N, C) int16, on the CPU."""
    modes = torch.empty(dataset.n_frames, model.config.classes, dtype=torch.int16)
    bar = progress(dataset.n_frames, 0, "encode", "frame", quiet)
    for rows in torch.arange(dataset.n_frames).split(2048):
        image = torch.from_numpy(dataset.rows("image", rows.numpy())).to(device)
        with autocast(device, bf16):
            modes[rows] = model.rssm.posterior(image).argmax(-1).short().cpu()
        bar.update(len(rows))
    bar.close()
    return modes


def data_modes(model: WorldModel, source: Artifact, dataset: Dataset, run: Run, device: torch.device) -> Tensor:
    """Posterior modes (N, C) of the data of the model `source`, an artifact of its own: all its policies read the same.

    It depends on the model alone, so they are read in the precision the model was trained in. Waits for another
    process that is making it.
    """
    path = run.root / "latents" / str(source.meta["name"])
    with storage.locked(path, wait=True):
        found = artifacts.reuse(path, "latents", {}, run.seed, [source], fresh=False, renew=True)
        if found is None:
            bf16 = bool(source.meta["config"]["pretrain"]["bf16"])
            modes = posterior_modes(model, dataset, device, quiet=run.quiet, bf16=bf16)
            about: dict[str, Any] = {"domain": run.domain, "config": {}, "seed": run.seed, "inputs": [source]}
            found = artifacts.save(path, "latents", {"posterior": {"modes": modes}}, **about)
        with artifacts.rebuilding(found):
            modes = found.tensors("posterior")["modes"]
            if modes.shape != (dataset.n_frames, model.config.classes):
                raise ValueError("it holds states of another shape than the model's")
            if modes.min() < 0 or modes.max() >= model.config.categories:
                raise ValueError("it holds states that the model does not have")
        return modes


@torch.no_grad()
def encode(
    model: WorldModel,
    dataset: Dataset,
    modes: Tensor,
    prompts: TaskContext,
    horizon: int,
    device: torch.device,
    *,
    bf16: bool,
) -> Latents:
    """Filter every episode from its first frame under each prompt, with the posterior's `modes` (N, C).

    Raises:
        BadInput: no episode is longer than `horizon`.
    """
    count, rows = len(prompts.tau), dataset.n_frames
    c = model.config
    width = count * (c.deter + model.dim_z) + model.dim_embedding
    half = {"dtype": torch.float16, "device": roomy(2 * rows * width, device)}
    h, z = torch.empty(count, rows, c.deter, **half), torch.empty(count, rows, model.dim_z, **half)  # type: ignore[call-overload]
    e_all = torch.empty(rows, model.dim_embedding, **half)  # type: ignore[call-overload]
    for episodes in _equal_length_groups(dataset, rows_at_once=16384):
        start, length = dataset.episode_info.start[episodes], int(dataset.episode_info.length[episodes[0]])
        index = start[:, None] + np.arange(length)  # (B, T)
        flat = torch.from_numpy(index.ravel()).to(h.device)
        action = torch.from_numpy(dataset.rows("action", index)).to(device)
        e = torch.from_numpy(dataset.rows("embedding", index)).to(device).float()
        s = F.one_hot(modes[torch.from_numpy(index)].to(device).long(), c.categories).flatten(-2).float()  # (B, T, S)
        is_first = torch.zeros(index.shape, dtype=torch.bool, device=device)
        is_first[:, 0] = True
        with autocast(device, bf16):
            e = model.adapter(F.normalize(e, dim=-1))
            for k in range(count):
                fused = model.fuse(e, s, prompts.gates[k].expand(len(index), 1, -1, -1))
                states = model.rssm.scan(fused, action, is_first, model.rssm.first(len(index)))
                h[k, flat], z[k, flat] = (x.flatten(0, 1).half().to(h.device) for x in (states, fused))
        e_all[flat] = e.flatten(0, 1).half().to(h.device)
    info = dataset.episode_info
    long_enough = np.flatnonzero(info.length > horizon)
    if not len(long_enough):
        raise BadInput(f"no episode is longer than behave.horizon = {horizon}; lower it or collect longer episodes")
    episodes = np.stack([info.start, info.length], 1)[long_enough]  # (E, 2)
    every = np.arange(dataset.n_frames)
    decisions = [start + np.arange(length - 1) for start, length in episodes]
    early = [d[:EARLY] for d in decisions]
    return Latents(
        h,
        z,
        e_all,
        torch.from_numpy(dataset.rows("action", every)).to(device),
        torch.from_numpy(dataset.rows("reward", every)).float().to(device),
        *(torch.from_numpy(x).to(device) for x in (episodes, np.concatenate(decisions), np.concatenate(early))),
    )


def _equal_length_groups(dataset: Dataset, rows_at_once: int) -> list[np.ndarray]:
    """Episodes of one length together, about `rows_at_once` rows a group."""
    groups = []
    lengths = dataset.episode_info.length
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        size = max(1, rows_at_once // int(length))
        groups += [same[i : i + size] for i in range(0, len(same), size)]
    return groups
