"""The dataset as latents: posterior states encoded once, so that behaviour learning touches no pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.agent import Noise, State, TaskContext
from stages.core.episodes import Dataset
from stages.core.errors import BadInput
from stages.core.nets import sample_one_hot
from stages.core.running import progress
from stages.core.world_model import WorldModel


@dataclass
class Latents:
    """Posterior states of every row under each of K prompts, on the training device.

    h (K, N, deter), z (K, N, dim_z), e (N, dim_e): float16. action (N, A), reward (N,): float32.
    `starts` are the rows from which `horizon` steps stay inside an episode; `episode_starts` those of them that
    begin one.
    """

    h: Tensor
    z: Tensor
    e: Tensor
    action: Tensor
    reward: Tensor
    starts: Tensor
    episode_starts: Tensor

    def draw(self, count: int, start_fraction: float, noise: Noise) -> Tensor:
        """Rows (count,) at which windows begin, `start_fraction` of them at episode starts."""
        first = noise.uniform(count) < start_fraction
        u = noise.uniform(count)
        anywhere = self.starts[(u * len(self.starts)).long().clamp(max=len(self.starts) - 1)]
        beginning = self.episode_starts[(u * len(self.episode_starts)).long().clamp(max=len(self.episode_starts) - 1)]
        return torch.where(first, beginning, anywhere)

    def window(self, rows: Tensor, prompt: Tensor, horizon: int) -> tuple[State, Tensor, Tensor]:
        """States (N, H+1, ...), actions (N, H, A) and true rewards (N, H) of windows that begin at `rows`."""
        steps = rows[:, None] + torch.arange(horizon + 1, device=rows.device)  # (N, H+1)
        which = prompt[:, None]
        state = State(self.h[which, steps].float(), self.z[which, steps].float(), self.e[steps].float())
        return state, self.action[steps[:, 1:]], self.reward[steps[:, 1:]]


@torch.no_grad()
def encode(
    model: WorldModel,
    dataset: Dataset,
    prompts: TaskContext,
    horizon: int,
    device: torch.device,
    *,
    quiet: bool,
    bf16: bool,
) -> Latents:
    """Filter every episode from its first frame under each prompt, with the posterior's mode.

    Raises:
        BadInput: no episode is longer than `horizon`.
    """
    count, rows = len(prompts.tau), dataset.n_frames
    c = model.config
    half = {"dtype": torch.float16, "device": device}
    h, z = torch.empty(count, rows, c.deter, **half), torch.empty(count, rows, model.dim_z, **half)  # type: ignore[call-overload]
    e_all = torch.empty(rows, model.dim_embedding, **half)  # type: ignore[call-overload]
    bar = progress(dataset.n_episodes, 0, "encode", "episode", quiet)
    for episodes in _equal_length_groups(dataset, rows_at_once=4096):
        start, length = dataset.episode_info.start[episodes], int(dataset.episode_info.length[episodes[0]])
        index = start[:, None] + np.arange(length)  # (B, T)
        image = torch.from_numpy(dataset.rows("image", index)).to(device)
        action = torch.from_numpy(dataset.rows("action", index)).to(device)
        e = torch.from_numpy(dataset.rows("embedding", index)).to(device).float()
        is_first = torch.zeros(index.shape, dtype=torch.bool, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            s = sample_one_hot(model.rssm.posterior(image), None)  # (B, T, S)
            e = model.adapter(F.normalize(e, dim=-1))
            is_first[:, 0] = True
            for k in range(count):
                fused = model.fuse(e, s, prompts.gates[k].expand(len(index), 1, -1, -1))
                states = model.rssm.scan(fused, action, is_first, model.rssm.first(len(index)))
                flat = torch.from_numpy(index.ravel()).to(device)
                h[k, flat], z[k, flat] = states.flatten(0, 1).half(), fused.flatten(0, 1).half()
        e_all[torch.from_numpy(index.ravel()).to(device)] = e.flatten(0, 1).half()
        bar.update(len(index))
    bar.close()
    starts, beginnings = _window_starts(dataset, horizon)
    everything = np.arange(rows)
    return Latents(
        h,
        z,
        e_all,
        torch.from_numpy(dataset.rows("action", everything)).to(device),
        torch.from_numpy(dataset.rows("reward", everything)).float().to(device),
        starts.to(device),
        beginnings.to(device),
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


def _window_starts(dataset: Dataset, horizon: int) -> tuple[Tensor, Tensor]:
    info = dataset.episode_info
    long_enough = np.flatnonzero(info.length > horizon)
    if not len(long_enough):
        raise BadInput(f"no episode is longer than behave.horizon = {horizon}; lower it or collect longer episodes")
    starts = [info.start[i] + np.arange(info.length[i] - horizon) for i in long_enough]
    return torch.from_numpy(np.concatenate(starts)), torch.from_numpy(info.start[long_enough])
