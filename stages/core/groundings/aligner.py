"""GenRL's aligner (Mazzaglia et al. 2024): text embeddings, denoised, land where video embeddings live."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.world_model import Noise


class Aligner(nn.Module):
    """A small U-net of fully connected layers, two halvings of the width and back.

    Text or noisy embeddings (..., dim_e) → where video embeddings live, unit norm.
    """

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(dim, units), _block(units, units // 2)])
        self.middle = _block(units // 2, units // 4)
        self.up = nn.ModuleList([_block(units // 4 + units // 2, units // 2), _block(units // 2 + units, units)])
        self.out = nn.Linear(units, dim)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], -1))
        return F.normalize(self.out(x).float(), dim=-1)

    def loss(self, e: Tensor, amount: float, noise: Noise) -> Tensor:
        """1 - cosine of what is denoised from `perturb` and of the video embedding e (..., dim_e) itself."""
        noisy = perturb(e, noise.normal(*e.shape), amount)
        return 1 - (self(noisy) * e).sum(-1).mean()


def _block(inp: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inp, out), nn.LayerNorm(out), nn.SiLU())


def perturb(e: Tensor, normal: Tensor, amount: float) -> Tensor:
    """(1 - α) e + α n / |n|, renormalised: unit vectors (..., dim_e) with Gaussian noise `normal`."""
    return F.normalize((1 - amount) * e + amount * F.normalize(normal, dim=-1), dim=-1)
