"""The interface of every video-language backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.data.catalog import ENLARGED
from stages.worlds.motion import WINDOW, window_rows


class Backbone(ABC):
    """A pair of encoders into one space of unit vectors: 8 frames of video, and text.

    Attributes:
        id: stable name with a hash of the weights, for provenance.
        dim: width of the embeddings.
        frame_size: height and width it wants its frames in; others are resized (`resample`: bicubic or bilinear).
        video: everything the video side computes with; what `mllm.train` may train.
        owner: the module in which layers of the video side can be replaced (LoRA).
        enlarged: whether it reads the stored frames at whatever size they have (see `enlarge`).
        trainable: whether `encode_video` keeps the graph for gradients (stages.backbones.tuning sets it).
    """

    id: str
    dim: int
    frame_size: int
    window: int = WINDOW
    resample: str = "bicubic"
    video: nn.Module
    owner: nn.Module
    device: str
    enlarged: bool = False
    trainable: bool = False

    def enlarge(self) -> None:
        """From here on, read the stored frames, bilinearly resized, as GenRL's backbone does; the id says so."""
        self.enlarged, self.resample, self.id = True, "bilinear", self.id + ENLARGED

    @abstractmethod
    def _video(self, frames: Tensor) -> Tensor:
        """uint8 (N, 8, 3, S, S) at frame_size, on the device → (N, dim), not normalised."""

    @abstractmethod
    def _text(self, texts: list[str]) -> Tensor:
        """(M, dim), not normalised."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The video side's layers from input to output, for training the last k."""

    @abstractmethod
    def linears(self) -> list[nn.Linear]:
        """The linear maps of the video side that LoRA may adapt."""

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames (N, 8, 3, H, W), oldest first → (N, dim) float32, unit norm, on the device."""
        if frames.ndim != 5 or frames.shape[1:3] != (self.window, 3) or frames.dtype != torch.uint8:
            raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}, not uint8 (N, {self.window}, 3, H, W)")
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            resized = resize(frames.to(self.device).flatten(0, 1), self.frame_size, self.resample)
            return F.normalize(self._video(resized.unflatten(0, (-1, self.window))).float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Sentences → (M, dim) float32, unit norm, on the device."""
        with torch.no_grad():
            return F.normalize(self._text(list(texts)).float(), dim=-1)

    @torch.no_grad()
    def encode_episode(self, frames: np.ndarray, batch: int, stride: int = 1) -> Tensor:
        """The embedding of the window that ends at each frame of one episode: uint8 (T, 3, H, W) → (T, dim).

        The first frame is repeated before the start. Equals `encode_video` on those windows; with a stride on every
        stride-th, whose embedding the frames up to the next one hold.
        """
        rows = window_rows(np.array([0, len(frames)]))[::stride]  # (T / stride, 8)
        resized = resize(torch.from_numpy(np.ascontiguousarray(frames)).to(self.device), self.frame_size, self.resample)
        parts = [torch.from_numpy(rows[i : i + batch]) for i in range(0, len(rows), batch)]
        found = torch.cat([self.encode_video(resized[part]) for part in parts])
        return held(found, stride, len(frames))


def held(found: Tensor, stride: int, length: int) -> Tensor:
    """Rows of every stride-th frame (T / stride, D) → (T, D): each holds until the next."""
    return found.repeat_interleave(stride, 0)[:length]


def linears_of(modules: Sequence[nn.Module]) -> list[nn.Linear]:
    """Every linear map inside these modules."""
    return [m for module in modules for m in module.modules() if isinstance(m, nn.Linear)]


def resize(frames: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """uint8 (N, 3, H, W) → uint8 (N, 3, size, size), antialiased; unchanged when it already fits."""
    if frames.shape[-2:] == (size, size):
        return frames
    wide = F.interpolate(frames.float(), (size, size), mode=mode, antialias=True, align_corners=False)
    return wide.round().clamp(0, 255).to(torch.uint8)
