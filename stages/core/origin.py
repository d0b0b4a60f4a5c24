"""The frames whose mean semantics are the origin of BiTAgent's reward (`behave.space: relative`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stages.backbones import Backbone
from stages.backbones.tuning import window_embeddings
from stages.core.world_model import WorldModel
from stages.data.episodes import Dataset, held_out_episodes
from stages.data.sampler import Sampler, Windows

BATCHES, FRAMES = 64, 64  # so many batches of so many frames


@torch.no_grad()
def sample_semantics(
    model: WorldModel, tower: Backbone | None, dataset: Dataset, holdout: float, device: torch.device
) -> Tensor:
    """e (N, dim_e) of single frames of the training data, half of them of random behaviour where there is any.

    The same in every process. Half: a replay of experts says little about what a body does without aim.
    """
    held_out = held_out_episodes(dataset, holdout)  # (E,)
    aimless = np.array([part.source == "random" for part in dataset.parts])[dataset.episode_info.part] & ~held_out
    everything = ~held_out
    keys, past = (("image", "embedding"), tower.window - 1) if tower else (("embedding",), 0)
    found = []
    for drawn in (everything, aimless if aimless.any() else everything):
        sampler = Sampler(dataset, FRAMES, 1, 0, Windows(left_out=~drawn, past=past), keys)
        for step in range(BATCHES // 2):
            batch = {k: v.to(device) for k, v in sampler.sample(step).items()}
            raw = window_embeddings(tower, batch["past"], batch["image"]) if tower else batch["embedding"].float()
            found.append(model.adapter(raw).flatten(0, 1))  # (B, dim_e)
    return torch.cat(found)
