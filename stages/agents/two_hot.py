"""Two-hot regression of a scalar on symlog-spaced bins (DreamerV3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.nets import MLP


def symlog(x: Tensor) -> Tensor:
    """sign(x)·log(1 + |x|)."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(x.abs())


def two_hot(x: Tensor, bins: Tensor) -> Tensor:
    """Weights (..., K) that put x (...) between its two neighbouring bins (K,), ascending (DreamerV3)."""
    x = x.clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, x.contiguous()).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    weight = ((x - low) / (high - low)).unsqueeze(-1)
    return F.one_hot(above - 1, len(bins)) * (1 - weight) + F.one_hot(above, len(bins)) * weight


class TwoHotHead(nn.Module):
    """An MLP that predicts a scalar as a categorical over symlog-spaced bins (DreamerV3)."""

    bins: Tensor

    def __init__(self, inp: int, units: int, layers: int, bins: int = 127, limit: float = 6.0) -> None:
        super().__init__()
        self.net = MLP(inp, bins, units, layers, zero_out=True)
        self.register_buffer("bins", torch.linspace(-limit, limit, bins), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., I) → logits (..., K)."""
        return self.net(x).float()

    def mean(self, logits: Tensor) -> Tensor:
        """Expected value (...) of logits (..., K)."""
        return symexp((torch.softmax(logits, -1) * self.bins).sum(-1))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy (...) against the two-hot code of target (...)."""
        return -(two_hot(symlog(target), self.bins) * torch.log_softmax(logits, -1)).sum(-1)
