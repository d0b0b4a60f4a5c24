"""Task-Aware Modular Fusion (TAMF) and its task-guided expert allocator (Section 3.1, Eq. 2-5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.settings import ModelConfig


class Expert(nn.Module):
    """One adapter branch of Eq. 3: LayerNorm → GEGLU → Linear → LayerScale.

    The residual of the paper's block is the z^(l-1) term of Eq. 3 itself; an inner one would double
    z at every layer.
    """

    def __init__(self, dim: int, hidden: int, layer_scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)
        self.scale = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, z: Tensor) -> Tensor:
        value, gate = self.up(self.norm(z)).chunk(2, -1)  # (..., hidden) each
        return self.scale * self.down(value * F.gelu(gate))


class ExpertAllocator(nn.Module):
    """The gate p = σ(W2 GELU(W1 LN(τ))) of Eq. 5, one of its own for every layer.

    Returns (..., L, 1) for `gate: scalar` or (..., L, dim) for `gate: channel`.
    """

    def __init__(self, dim_task: int, hidden: int, layers: int, width: int) -> None:
        super().__init__()
        self.layers, self.width = layers, width
        self.norm = nn.LayerNorm(dim_task)
        self.w1 = nn.Linear(dim_task, layers * hidden)
        self.w2 = nn.Parameter(torch.randn(layers, hidden, width) * hidden**-0.5)
        self.bias = nn.Parameter(torch.zeros(layers, 1, width))

    def forward(self, tau: Tensor) -> Tensor:
        x = F.gelu(self.w1(self.norm(tau))).unflatten(-1, (self.layers, -1))  # (..., L, hidden)
        x = torch.einsum("...lh,lhw->...lw", x, self.w2.to(x.dtype)) + self.bias[:, 0].to(x.dtype)
        return torch.sigmoid(x)


class TAMF(nn.Module):
    """z^(L) = f_TAMF(e_v, s, τ): a projection (Eq. 2) and L gated dual-expert layers (Eq. 3, 4).

    With `fusion: sum` it is the ablation's base row: the direct sum of the two embeddings.

    Args:
        config: classes and categories of s, dim_task of τ, dim_z, number of layers L, inner width of an expert, gate.
        dim_semantic: width of e_v.
    """

    def __init__(self, config: ModelConfig, dim_semantic: int) -> None:
        super().__init__()
        c, dim, dim_state = config, config.dim_z, config.dim_s
        enabled = c.fusion == "tamf"
        self.layers = c.fusion_layers if enabled else 0
        self.fuse_semantic = nn.Linear(dim_semantic, dim)
        self.fuse_state = nn.Linear(dim_state, dim, bias=False)
        # e has unit norm and s `classes` ones: by default s would enter z at several times e's scale and hide it.
        nn.init.normal_(self.fuse_semantic.weight, std=(c.classes / (3 * dim_state)) ** 0.5)
        self.allocator = ExpertAllocator(c.dim_task, c.dim_task, c.fusion_layers, dim if c.gate == "channel" else 1)
        self.semantic = nn.ModuleList(Expert(dim, c.expert_hidden, c.layer_scale) for _ in range(self.layers))
        self.dynamic = nn.ModuleList(Expert(dim, c.expert_hidden, c.layer_scale) for _ in range(self.layers))
        if not enabled:
            self.allocator.requires_grad_(False)

    def gates(self, tau: Tensor) -> Tensor:
        """p^(1..L) of Eq. 5: τ (..., dim_task) → (..., L, 1 or dim). Constant while τ is: compute once."""
        return self.allocator(tau)

    def forward(self, e: Tensor, s: Tensor, gates: Tensor) -> Tensor:
        """e (..., dim_semantic), s (..., dim_state), gates (..., L, 1 or dim) → z (..., dim).

        Eq. 2's projection of the concatenation [e; s] is the sum of one projection of each, which is
        also what the base row needs.
        """
        return self.blend(self.fuse_semantic(e), s, gates)

    def blend(self, semantic: Tensor, s: Tensor, gates: Tensor) -> Tensor:
        """`forward` with e projected already: semantic (..., dim) is constant along a text rollout."""
        z = semantic + self.fuse_state(s)  # (..., dim)
        for layer in range(self.layers):
            p = gates[..., layer, :]
            z = z + (1 - p) * self.semantic[layer](z) + p * self.dynamic[layer](z)
        return z
