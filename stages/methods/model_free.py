"""The model-free rows: IQL, TD3+BC and TD3 from pixels on the offline dataset, without a world model.

The networks and updates are those of the TD3 experts (td3.py), on features of a convolutional
encoder that the critics train (Yarats et al. 2021, DrQ-v2). The reward of a frame is the cosine of the backbone's
embedding of its window and of the prompt; with `--oracle-reward` it is the true one. Both are standardised over the
dataset: episodes end by time alone, so a constant changes no policy, and values need not climb to it first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from stages.core.latents import sharpened
from stages.data.episodes import Dataset
from stages.methods.pixels import PixelEncoder, random_shift, transitions
from stages.methods.td3 import IQL, TD3, TD3BC, OfflineTD3, TD3Config
from stages.runtime.checkpoints import Resumable
from stages.runtime.config import Section, Share
from stages.runtime.errors import BadInput
from stages.runtime.names import MODEL_FREE
from stages.runtime.update import autocast

REWARD_ROWS = 65536  # behind mean and spread of the reward


class OfflineRLConfig(Section):
    """Section `offline_rl` of the preset; defaults and comments in presets/paper.yaml."""

    updates: int
    depth: int
    features: int
    stack: int
    shift: int
    n_step: int
    start_fraction: Share
    sharpness: NonNegativeFloat
    alpha: float
    expectile: Share
    temperature: float
    bf16: bool
    log_every: int
    checkpoint_every: int
    td3: TD3Config


MakeAgent = Callable[[OfflineRLConfig, int, int, int, torch.device], TD3]
AGENTS: dict[str, MakeAgent] = {
    "td3": lambda c, *sizes: OfflineTD3(c.td3, *sizes),
    "td3-bc": lambda c, *sizes: TD3BC(c.td3, *sizes, alpha=c.alpha),
    "iql": lambda c, *sizes: IQL(c.td3, *sizes, expectile=c.expectile, temperature=c.temperature, updates=c.updates),
}
assert set(AGENTS) == set(MODEL_FREE)


class PixelLearner(Resumable):
    """Encoder and agent; `update` is one step on a batch of windows.

    Everything random in an update is drawn from a generator seeded by (seed, step): a checkpoint needs no random state.
    """

    def __init__(
        self, config: OfflineRLConfig, kind: str, action_dim: int, seed: int, device: torch.device, reward: BatchReward
    ) -> None:
        self.config, self.device, self.reward, self.seed = config, device, reward, seed
        self.encoder = PixelEncoder(config.depth, config.stack, config.features).to(device)
        self.agent = AGENTS[kind](config, config.features, action_dim, seed, device)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), config.td3.lr, fused=True)
        self.parts = {**self.agent.parts, "encoder": self.encoder, "encoder_optimizer": self.optimizer}
        self.generator = torch.Generator()

    def update(self, batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """One update of agent and encoder; the encoder learns from the critics alone."""
        self.generator.manual_seed(self.seed * 1_000_003 + step)
        config = self.config
        drawn = transitions(batch, self.reward(batch), config.stack, config.n_step, config.td3.discount)
        obs = self.encode(drawn["obs"])  # (B, D)
        with torch.no_grad():
            next_obs = self.encode(drawn["next_obs"])
        self.optimizer.zero_grad()
        terms = self.agent.update({**drawn, "obs": obs, "next_obs": next_obs}, step, self.generator)
        self.optimizer.step()
        return terms | {"data_reward": drawn["reward"].mean()}

    def encode(self, image: Tensor) -> Tensor:
        """Features (B, D) of randomly shifted stacks (B, 3k, H, W)."""
        size = 2 * self.config.shift + 1
        shift = torch.randint(size, (len(image), 2), generator=self.generator) - self.config.shift
        with autocast(self.device, self.config.bf16):
            return self.encoder(random_shift(image, shift.to(image.device)))


# ---------------------------------------------------------------------------- reward

BatchReward = Callable[[Mapping[str, Tensor]], Tensor]  # a batch of the sampler → (B, T), for arriving at each frame


def make_reward(dataset: Dataset, prompt: Tensor, task: str, sharpness: float, device: torch.device) -> BatchReward:
    """Similarity to the prompt (dim_e,) or, of a `task` that is named, the true reward.

    Standardised by its mean and spread over the data that is used, and a similarity `sharpened`. Raises BadInput when
    there is none of the task.
    """

    key = "reward" if task else "embedding"

    def raw(batch: Mapping[str, Tensor]) -> Tensor:
        found = batch[key].float()
        return found if task else F.normalize(found, dim=-1) @ prompt.to(found.device)

    used = np.flatnonzero(part_weights(dataset, task)) if task else np.arange(len(dataset.parts))
    share = REWARD_ROWS // len(used)
    parts = [dataset.parts[int(i)] for i in used]
    rows = [np.linspace(p.first_row, p.last_row - 1, min(share, p.frames)).astype(np.int64) for p in parts]
    values = raw({key: torch.from_numpy(dataset.rows(key, np.concatenate(rows)))})
    mean, spread = values.mean().to(device), values.std().clamp(min=1e-6).to(device)
    return lambda batch: sharpened((raw(batch) - mean) / spread, 0.0 if task else sharpness)


def part_weights(dataset: Dataset, task: str) -> list[float]:
    """The true reward is recorded for a task's own data alone: the frames of those parts, 0 for the others.

    Raises BadInput when there is none.
    """
    weights = [float(p.frames) if p.task == task else 0.0 for p in dataset.parts]
    if not any(weights):
        raise BadInput(
            f"--oracle-reward needs data of task {task}; make it with: bitagent collect --source expert --task {task}"
        )
    return weights
