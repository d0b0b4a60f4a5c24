"""Training material and loss of the offline backbone: windows against captions, by sigmoid contrast.

After SigLIP (Zhai et al., 2023), with one change: whether a caption fits a window is not yes or no but
the window's membership in the caption's concept, so close speeds and postures get close embeddings.
No reward and no task label is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages import worlds
from stages.backbones.base import resize
from stages.backbones.offline import captions
from stages.backbones.offline.captions import Concept
from stages.backbones.offline.tower import FRAME_SIZE, Student, TextTower
from stages.data.episodes import Dataset, held_out_episodes
from stages.worlds import motion, tasks

RARE = 0.002  # a concept seen in a smaller share of the windows than this is not drawn as if it had this share


@dataclass(frozen=True)
class Lessons:
    """Everything training draws from.

    windows (N, 8) dataset rows; membership (N, K) float32; draw (N,) cumulative probability of each
    window, so that every concept comes up about as often; sentences, for each of the K concepts
    its captions' MiniLM vectors (M, 384).
    """

    dataset: Dataset
    concepts: list[Concept]
    windows: np.ndarray
    membership: np.ndarray
    draw: np.ndarray
    sentences: list[Tensor]


def label_windows(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, list[Concept]]:
    """The window of each row (N, 8), its membership in each concept (N, K) float32, and the concepts."""
    domain = dataset.domain
    starts = np.append(dataset.episode_start, dataset.n_frames)
    states = dataset.rows("state", np.arange(dataset.n_frames))
    features = motion.window_features(worlds.compile_model(domain), domain, states, starts)
    found = worlds.BODIES[domain].behaviours(features)
    concepts = captions.grammar(domain, frozenset(t.prompt.lower() for t in tasks.TASKS))
    membership = np.stack([found[c.name] for c in concepts], 1).astype(np.float32)
    return motion.window_rows(starts), membership, concepts


def prepare_lessons(dataset: Dataset, holdout: float, text_tower: TextTower) -> Lessons:
    """Label every window of the dataset and embed every caption."""
    windows, membership, concepts = label_windows(dataset)
    weight = (membership / np.maximum(membership.sum(0), RARE * len(membership))).sum(1)
    row_held = np.repeat(held_out_episodes(dataset, holdout), dataset.episode_length)
    weight[row_held] = 0.0
    info = dataset.episode_info
    for start, past in zip(info.start[info.cut], info.past[info.cut], strict=True):
        weight[start : start + past] = 0.0  # a branch moves before its first frame: these windows would not
    draw = np.cumsum(weight, dtype=np.float64)
    return Lessons(
        dataset, concepts, windows, membership, draw / draw[-1], [text_tower.encode(c.captions) for c in concepts]
    )


def draw_lesson(lessons: Lessons, seed: int, step: int, size: int, captions_each: int) -> dict[str, Tensor]:
    """The batch of one step, a function of (seed, step) alone; frames of another size than the tower's are resized.

    Returns:
        frames uint8 (B, 8, 3, 64, 64), sentences (K·C, 384), membership (B, K·C).
    """
    random = np.random.default_rng([seed, step])
    rows = np.searchsorted(lessons.draw, random.random(size), side="right").clip(max=len(lessons.draw) - 1)
    sentences = [s[torch.from_numpy(random.integers(len(s), size=captions_each))] for s in lessons.sentences]
    frames = torch.from_numpy(lessons.dataset.rows("image", lessons.windows[rows]))  # (B, 8, 3, H, H)
    return {
        "frames": resize(frames.flatten(0, 1), FRAME_SIZE).unflatten(0, frames.shape[:2]),
        "sentences": torch.cat(sentences),
        "membership": torch.from_numpy(lessons.membership[rows]).repeat_interleave(captions_each, 1),
    }


def contrastive_loss(student: Student, batch: dict[str, Tensor], bf16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross-entropy between scaled cosines and memberships."""
    frames = batch["frames"]
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=bf16):
        video = student.video(frames)  # (B, dim)
    text = F.normalize(student.text(batch["sentences"]), dim=-1)  # (M, dim)
    cosine = video @ text.T  # (B, M)
    loss = F.binary_cross_entropy_with_logits(student.log_scale.exp() * cosine + student.bias, batch["membership"])
    fits = batch["membership"] > 0.5
    terms = {
        "loss": loss.detach(),
        "cosine_fitting": cosine.detach()[fits].mean() if fits.any() else torch.zeros(()),
        "cosine_other": cosine.detach()[~fits].mean(),
        "scale": student.log_scale.detach().exp(),
    }
    return loss, terms
