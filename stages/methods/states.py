"""Frames as codes: what is learned without reading an image, the dynamics and behaviour, reads these.

The posterior q(s given x) sees the image alone (Eq. 1), so that once it is trained every frame has one code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.core.settings import DynamicsConfig
from stages.core.world_model import WorldModel
from stages.data.episodes import Dataset
from stages.data.sampler import Sampler, Windows
from stages.runtime.distributed import World
from stages.runtime.loop import progress


@torch.no_grad()
def posterior_modes(model: WorldModel, dataset: Dataset, device: torch.device, *, quiet: bool) -> Tensor:
    """The likeliest class of every variable of the posterior q(s | x) of every row: (N, C) int16, on the CPU.

    In float32, as a policy reads frames: in bfloat16 one frame in eleven has another code.
    """
    modes = torch.empty(dataset.n_frames, model.config.classes, dtype=torch.int16)
    bar = progress(dataset.n_frames, 0, "encode", "frame", quiet)
    for rows in torch.arange(dataset.n_frames).split(2048):
        image = torch.from_numpy(dataset.rows("image", rows.numpy())).to(device)
        modes[rows] = model.rssm.posterior(image).argmax(-1).short().cpu()
        bar.update(len(rows))
    bar.close()
    return modes


@dataclass(frozen=True)
class FrozenStates:
    """Batches of sequences of codes, from which the dynamics learn alone.

    Args:
        modes: (N, C) of `posterior_modes`. semantics: (N, dim_e) beside the stored embeddings, of a backbone that is
            trained with the model.
    """

    sampler: Sampler
    modes: Tensor
    semantics: Tensor | None
    place: World

    def sample(self, step: int) -> dict[str, Tensor]:
        """The batch of one step as `dynamics_loss` reads it, on the training device; this process's share."""
        rank, size = self.place.rank, self.place.size
        batch = self.sampler.sample(step, rank, size)
        first = self.sampler.draw(step)[0]
        mine = first[rank * len(first) // size : (rank + 1) * len(first) // size]
        rows = torch.from_numpy(mine)[:, None] + torch.arange(self.sampler.length)  # (B, T)
        batch["modes"] = self.modes[rows].long()
        if self.semantics is not None:
            batch["semantics"] = self.semantics[rows]
        return {k: v.to(self.place.device) for k, v in batch.items()}


def sequence_sampler(dataset: Dataset, config: DynamicsConfig, windows: Windows, seed: int) -> Sampler:
    """Sequences for `FrozenStates`: a share `branches` of them of branches, where there are any long enough."""
    branch = np.array([part.source == "branch" for part in dataset.parts])  # (P,)
    frames = np.array([part.frames for part in dataset.parts], np.float64)
    share = config.branches if branch.any() else 0.0
    weights = (
        np.where(branch, share, 1 - share) * frames / np.where(branch, frames[branch].sum(), frames[~branch].sum())
    )
    windows = Windows(windows.start_fraction, [*weights], windows.left_out)
    return Sampler(dataset, config.batch, config.length, seed, windows, ("action", "is_first", "embedding"))
