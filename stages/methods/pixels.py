"""Transitions in pixels for model-free learning: stacked frames, random shifts, n-step rewards (DrQ-v2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stages.core.nets import ImageEncoder


class PixelEncoder(nn.Module):
    """uint8 stack of k frames (B, 3k, 64, 64) → features (B, D) in (-1, 1).

    Args:
        depth: channels of the first convolution; doubles at each of the four.
        stack: k. features: D.
    """

    def __init__(self, depth: int, stack: int, features: int) -> None:
        super().__init__()
        self.convs = ImageEncoder(depth, 3 * stack)
        self.trunk = nn.Sequential(nn.Linear(self.convs.out_features, features), nn.LayerNorm(features), nn.Tanh())

    def forward(self, image: Tensor) -> Tensor:
        return self.trunk(self.convs(image)).float()


def random_shift(image: Tensor, shift: Tensor) -> Tensor:
    """Each image moved by its own whole pixels, borders repeated: DrQ's padding by replication and random crop.

    Args:
        image: (B, C, H, W). shift: (B, 2) int64, down and right of the crop.
    """
    _, channels, height, width = image.shape
    rows = (torch.arange(height, device=image.device) + shift[:, :1]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=image.device) + shift[:, 1:]).clamp(0, width - 1)  # (B, W)
    source = (rows[:, :, None] * width + columns[:, None]).flatten(1)  # (B, HW) pixel that comes to each place
    moved = image.flatten(2).gather(2, source[:, None].expand(-1, channels, -1))  # a tenth of indexing's time on a CPU
    return moved.unflatten(2, (height, width))


def transitions(
    batch: Mapping[str, Tensor], reward: Tensor, stack: int, n_step: int, discount: float
) -> dict[str, Tensor]:
    """One n-step transition from each window of stack + n_step frames.

    It starts at the window's frame `stack - 1`, or, in a window that begins an episode, at the episode's first frame,
    which stands for the frames before it.

    Args:
        batch: image (B, T, 3, H, W) uint8, action (B, T, A), is_first and is_terminal (B, T).
        reward: (B, T) for arriving at each frame.
    Returns:
        obs and next_obs (B, 3·stack, H, W) uint8, action (B, A), reward (B,), discount (B,).
    """
    image, is_first = batch["image"], batch["is_first"]
    at = torch.where(is_first[:, 0], 0, stack - 1)  # (B,)
    row = torch.arange(len(at), device=at.device)
    steps = at[:, None] + torch.arange(1, n_step + 1, device=at.device)  # (B, n)
    gamma = discount ** torch.arange(n_step, device=at.device)  # (n,)
    ended = batch["is_terminal"][row[:, None], steps].any(1)  # a terminal frame is an episode's last
    return {
        "obs": _stacked(image, at, stack),
        "next_obs": _stacked(image, at + n_step, stack),
        "action": batch["action"][row, at + 1].float(),
        "reward": (reward[row[:, None], steps] * gamma).sum(1),
        "discount": discount**n_step * (~ended).float(),
    }


def _stacked(image: Tensor, at: Tensor, stack: int) -> Tensor:
    """Frames at - stack + 1 .. at of each window, the window's first repeated before it: (B, 3·stack, H, W)."""
    index = (at[:, None] + torch.arange(1 - stack, 1, device=at.device)).clamp(min=0)  # (B, k)
    row = torch.arange(len(at), device=at.device)[:, None]
    return image[row, index].flatten(1, 2)
