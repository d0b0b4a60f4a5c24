"""Task-Aware Modular Fusion (TAMF) and its task-guided expert allocator (Section 3.1, Eq. 2-5)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.nets import LayerNorm, Linear, Repeated, autocast_dtype
from stages.core.settings import ModelConfig
from stages.runtime.compiling import fusible


class Expert(nn.Module):
    """One adapter branch of Eq. 3: LayerNorm → GEGLU → Linear → LayerScale.

    The residual of the paper's block is the z^(l-1) of Eq. 3 itself; an inner one would double z at every layer.
    """

    def __init__(self, dim: int, hidden: int, layer_scale: float) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.up = Linear(dim, 2 * hidden)
        self.down = Linear(hidden, dim)
        self.scale = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * self.down(geglu(self.up(self.norm(z))))


@fusible
def geglu(x: Tensor, share: Tensor | None = None) -> Tensor:
    """(..., 2D), values and gates → (..., D), each unit times its `share` (..., D), where there is one."""
    value, gate = x.chunk(2, -1)
    out = value * F.gelu(gate)
    return out if share is None else out * share


@fusible
def normalised(z: Tensor, kind: torch.dtype) -> Tensor:
    """LayerNorm without scale and shift, in the type of the product that reads it: (..., dim)."""
    return F.layer_norm(z, z.shape[-1:]).to(kind)


@fusible
def weighed(z: Tensor, p: Tensor, semantic: Tensor, dynamic: Tensor) -> Tensor:
    """Eq. 3's sum: z and the two experts' (..., dim), under the gate p (..., 1)."""
    return z + (1 - p) * semantic + p * dynamic


class ExpertAllocator(nn.Module):
    """The gate p = σ(W2 GELU(W1 LN(τ))) of Eq. 5, one of its own for every layer: (..., L, 1)."""

    def __init__(self, dim_task: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.norm = nn.LayerNorm(dim_task)
        self.w1 = nn.Linear(dim_task, layers * hidden)
        self.w2 = nn.Parameter(torch.randn(layers, hidden, 1) * hidden**-0.5)
        self.bias = nn.Parameter(torch.zeros(layers, 1, 1))

    def forward(self, tau: Tensor) -> Tensor:
        x = F.gelu(self.w1(self.norm(tau))).unflatten(-1, (self.layers, -1))  # (..., L, hidden)
        x = torch.einsum("...lh,lhw->...lw", x, self.w2.to(x.dtype)) + self.bias[:, 0].to(x.dtype)
        return torch.sigmoid(x)


class Folded:
    """TAMF's layers with what is constant along a loop done before it: two products a layer instead of four.

    The two experts read the same normalised z, so their norms' scale and shift move into one wide first map; the
    gates and LayerScale move into one wide second map. Equal to Eq. 3 but for rounding.
    """

    def __init__(self, fusion: TAMF) -> None:
        self.fusion = fusion
        self.maps: list[tuple[Repeated, Repeated]] = []
        self.gates: Tensor | None = None

    def __call__(self, z: Tensor, gates: Tensor) -> Tensor:
        """z (..., dim), gates (..., L, 1) → z (..., dim)."""
        pairs = list(zip(self.fusion.semantic, self.fusion.dynamic, strict=True))
        if not self.maps:
            self.maps = [(_first(pair), _second(pair)) for pair in pairs]
        if gates is not self.gates:
            shares = [_share(pair, p) for pair, p in zip(pairs, gates.unbind(-2), strict=True)]
            self.gates, self.shares = gates, [(share.to(autocast_dtype(z)), bias) for share, bias in shares]
        for (first, second), (share, bias) in zip(self.maps, self.shares, strict=True):
            z = added(z, second(geglu(first(normalised(z, autocast_dtype(z))), share)), bias)
        return z


Pair = tuple[Any, Any]  # of a layer's experts


def _first(pair: Pair) -> Repeated:
    """Both experts' `up` on z normalised without scale and shift: (2·2·hidden, dim), values of both, then gates."""
    weights = torch.stack([e.up.weight * e.norm.weight for e in pair])  # (2, 2·hidden, dim)
    biases = torch.stack([(e.up.weight * e.norm.bias).sum(-1) + e.up.bias for e in pair])
    weight, bias = (w.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 2) for w in (weights, biases))
    return Repeated(weight, bias)


def _second(pair: Pair) -> Repeated:
    """Both experts' `down` with their LayerScale: (dim, 2·hidden)."""
    return Repeated(torch.cat([e.scale[:, None] * e.down.weight for e in pair], 1), None)


def _share(pair: Pair, p: Tensor) -> tuple[Tensor, Tensor]:
    """What a gate p (..., 1) gives of each hidden unit (..., 2·hidden), and of the second map's biases (..., dim)."""
    hidden = pair[0].down.in_features
    both = torch.cat([1 - p, p], -1)  # (..., 2)
    biases = torch.stack([e.scale * e.down.bias for e in pair])  # (2, dim)
    return both.repeat_interleave(hidden, -1), both @ biases


@fusible
def added(z: Tensor, change: Tensor, bias: Tensor) -> Tensor:
    """Eq. 3's sum: z (..., dim), what both experts add, and their biases."""
    return z + change + bias


class TAMF(nn.Module):
    """z^(L) = f_TAMF(e_v, s, τ): a projection (Eq. 2) and L gated dual-expert layers (Eq. 3, 4).

    With `fusion: sum` it is the ablation's base row: the direct sum of the two. `dim_semantic` is the width of e_v.
    """

    repeated: Folded | None = None

    def __init__(self, config: ModelConfig, dim_semantic: int) -> None:
        super().__init__()
        c, dim, dim_state = config, config.dim_z, config.dim_s
        enabled = c.fusion == "tamf"
        self.layers = c.fusion_layers if enabled else 0
        self.fuse_semantic = Linear(dim_semantic, dim)
        self.fuse_state = Linear(dim_state, dim, bias=False)
        # e has unit norm and s `classes` ones: by default s would enter z at several times e's scale and hide it.
        nn.init.normal_(self.fuse_semantic.weight, std=(c.classes / (3 * dim_state)) ** 0.5)
        self.allocator = ExpertAllocator(c.dim_task, c.dim_task, c.fusion_layers)
        self.semantic = nn.ModuleList(Expert(dim, c.expert_hidden, c.layer_scale) for _ in range(self.layers))
        self.dynamic = nn.ModuleList(Expert(dim, c.expert_hidden, c.layer_scale) for _ in range(self.layers))
        if not enabled:
            self.allocator.requires_grad_(False)

    def repeat(self) -> Folded | None:
        """The layers as an unrolled loop runs them."""
        return Folded(self) if self.layers else None

    def gates(self, tau: Tensor) -> Tensor:
        """p^(1..L) of Eq. 5: τ (..., dim_task) → (..., L, 1). Constant while τ is: compute once."""
        return self.allocator(tau)

    def forward(self, e: Tensor, s: Tensor, gates: Tensor) -> Tensor:
        """e (..., dim_semantic), s (..., dim_state), gates (..., L, 1) → z (..., dim).

        Eq. 2's projection of [e; s] is the sum of one projection of each, which the base row needs too.
        """
        return self.blend(self.fuse_semantic(e), s, gates)

    def blend(self, semantic: Tensor, s: Tensor, gates: Tensor) -> Tensor:
        """`forward` with e projected already: semantic (..., dim) is constant along a text rollout."""
        z = semantic + self.fuse_state(s)  # (..., dim)
        if self.repeated:
            return self.repeated(z, gates)
        for layer in range(self.layers):
            z = weighed(z, gates[..., layer, :], self.semantic[layer](z), self.dynamic[layer](z))
        return z
