"""What a backbone sees in a dataset: the clips closest to each text, and similarity along two episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.backbones.base import Backbone
from stages.data.episodes import Dataset
from stages.runtime.drawing import figure
from stages.worlds.motion import window_rows

CLIPS = 5  # closest clips shown for a text, from different episodes
SHOWN = (0, 3, 7)  # frames of a clip that are shown
CHUNK = 65536


def similarities(dataset: Dataset, text: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of every window with every text: (texts, dim) → (texts, N)."""
    out = np.empty((len(text), dataset.n_frames), np.float32)
    for start in range(0, dataset.n_frames, CHUNK):
        rows = np.arange(start, min(start + CHUNK, dataset.n_frames))
        out[:, rows] = text @ dataset.rows("embedding", rows).astype(np.float32).T
    return out


def closest(dataset: Dataset, similarity: NDArray[np.float32], count: int) -> list[int]:
    """Rows of the most similar windows, one an episode, best first."""
    best = [int(s + np.argmax(similarity[s : s + n])) for s, n in _bounds(dataset)]
    return sorted(best, key=lambda row: -float(similarity[row]))[:count]


def example_episodes(dataset: Dataset) -> dict[str, int]:
    """One expert and one random episode where there are such, else the highest and the lowest return."""
    info = dataset.episode_info
    chosen = {}
    for source in ("expert", "random"):
        among = np.flatnonzero(info.source == source)
        if len(among):
            best = int(among[np.argmax(info.returns[among])]) if source == "expert" else int(among[0])
            chosen[f"{source} {info.task[best]}".strip()] = best
    if len(chosen) < 2:
        chosen |= {"highest return": int(np.argmax(info.returns)), "lowest return": int(np.argmin(info.returns))}
    return dict(list(chosen.items())[:2])


def draw_probe(dataset: Dataset, backbone: Backbone, texts: list[str], path: Path) -> Path:
    """Write the contact sheet with curves as a PNG: a row a text, its closest clips left, its curve right.

    Raises BadInput when the dataset holds no frames.
    """
    similarity = similarities(dataset, backbone.encode_text(texts).cpu().numpy())  # (texts, N)
    episodes = example_episodes(dataset)
    rows = window_rows(np.append(dataset.episode_start, dataset.n_frames))
    with figure(path, 15, 1.9 * len(texts) + 0.6) as drawn:
        axes = drawn.subplots(len(texts), 2, width_ratios=[2.6, 1], squeeze=False)
        for (left, right), text, line in zip(axes, texts, similarity, strict=True):
            clips = closest(dataset, line, CLIPS)
            left.imshow(_strip(dataset, rows, clips))
            left.set_title(f"“{text}”:  " + "   ".join(f"{line[c]:.2f}" for c in clips), fontsize=9, loc="left")
            left.axis("off")
            for name, episode in episodes.items():
                start, length = _bounds(dataset)[episode]
                right.plot(line[start : start + length], label=name, linewidth=0.9)
            right.set_ylim(-1, 1)
            right.set_ylabel("cosine", fontsize=8)
            right.tick_params(labelsize=7)
        axes[0, 1].legend(fontsize=7, loc="lower right")
        axes[-1, 1].set_xlabel("decision", fontsize=8)
    return path


def _bounds(dataset: Dataset) -> list[tuple[int, int]]:
    """(first row, length) of every episode."""
    return list(zip(dataset.episode_start.tolist(), dataset.episode_length.tolist(), strict=True))


def _strip(dataset: Dataset, rows: NDArray[np.int64], clips: Sequence[int]) -> NDArray[np.uint8]:
    """The clips side by side, three frames each: (S, W, 3)."""
    picture = []
    for clip in clips:
        frames = dataset.rows("image", rows[clip][list(SHOWN)])  # (3, 3, S, S)
        size = frames.shape[-1]
        picture += [*frames.transpose(0, 2, 3, 1), np.full((size, size // 10, 3), 255, np.uint8)]
    return np.concatenate(picture[:-1], axis=1)
