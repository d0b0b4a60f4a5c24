"""The part of BERT (Devlin et al., 2019) that InternVideo2 reads text with; names as in its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-12


@dataclass(frozen=True)
class BertSizes:
    """BERT-large, cut after the layers that read text alone (fusion_layer = 19)."""

    width: int = 1024
    layers: int = 19
    heads: int = 16
    hidden: int = 4096
    vocabulary: int = 30522
    positions: int = 512


class Embeddings(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.width)
        self.token_type_embeddings = nn.Embedding(2, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=EPS)

    def forward(self, ids: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        kind = self.token_type_embeddings.weight[0]  # one sentence: type 0 throughout
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(place) + kind)


class SelfAttention(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query, self.key, self.value = (nn.Linear(sizes.width, sizes.width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """Linear, then post-norm over the residual."""

    def __init__(self, inp: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inp, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Layer(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(sizes), "output": Output(sizes.width, sizes.width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(sizes.width, sizes.hidden)})
        self.output = Output(sizes.hidden, sizes.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Encoder(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))


class Bert(nn.Module):
    """Token ids (M, L) and attention mask (M, L), 1 = a word → hidden states of the last text layer (M, L, W)."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.embeddings = Embeddings(sizes)
        self.encoder = Encoder(sizes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        allowed = mask.bool()[:, None, None, :]  # (M, 1, 1, L)
        x = self.embeddings(ids)
        for layer in self.encoder.layer:
            x = layer(x, allowed)
        return x
