"""What the offline backbone understands of a run's data, and how fast it is (for docs/backbones.md).

bitagent bench embed --preset walker

The share of episodes that the tower's training leaves out, `embed.offline.holdout`, is what is measured on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.backbones import load_backbone
from stages.backbones.offline.captions import CLASSES
from stages.backbones.offline.contrast import label_windows
from stages.backbones.offline.tower import OfflineBackbone, VideoTower
from stages.data.episodes import Dataset, held_out_episodes
from stages.runtime import artifacts
from stages.runtime.errors import BadInput
from stages.worlds import tasks

CLIPS = 300  # a class or a task
GALLERIES = 500  # a sentence
EXPERT = 0.9  # an expert's episode reaches this share of its part's best return
BATCH = 512

Sentences = Mapping[str, Sequence[str]]  # {class: its paraphrases}


def measure_backbone(root: Path, domain: str, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Measure the backbone of a run on episodes it never saw.

    Returns:
        `retrieval` and, of an untrained video tower, `retrieval_random_weights`; `prompts`; `smoothness`;
        `frames_per_second`; `training_seconds`, of the tower, by the clock; `threads` of PyTorch.

    Raises:
        BadInput: there is no backbone, or a dataset it learned from has gone or changed.
    """
    backbone = load_backbone("offline", root, device)
    assert isinstance(backbone, OfflineBackbone)
    artifact = artifacts.load(root / "backbone", "backbone")
    dataset = Dataset.open(training_data(root, artifact), domain)
    held = held_out_episodes(dataset, float(artifact.meta["config"]["holdout"]))
    windows, membership, concepts = label_windows(dataset)
    clips = class_clips(dataset, windows, membership, held, seed)
    sentences = {c.name: c.held_out for c in concepts[:CLASSES]}
    control = with_random_video(backbone, artifact, seed)
    return {
        "backbone": backbone.id,
        "held_out_episodes": int(held.sum()),
        "retrieval": retrieval(dataset, backbone, clips, sentences, seed),
        "retrieval_random_weights": retrieval(dataset, control, clips, sentences, seed),
        "prompts": prompt_ranking(dataset, backbone, windows, held, seed),
        "smoothness": smoothness(dataset, backbone, held),
        "frames_per_second": embedding_speed(dataset, backbone),
        "training_seconds": artifact.meta["wall_seconds"],
        "threads": torch.get_num_threads(),
    }


def training_data(root: Path, backbone: artifacts.Artifact) -> list[Path]:
    """The datasets the backbone was trained on, in the same order, so that the same episodes are held out."""
    wanted = set(backbone.meta["inputs"].values())
    found = [a.path for a in artifacts.find(root, "data/*", "collect") if a.id in wanted]
    if len(found) != len(wanted):
        raise BadInput(
            f"a dataset that {backbone.path} was trained on has gone or changed, so it is not known which episodes it "
            "never saw; train it again with: bitagent embed --backbone offline --fresh"
        )
    return found


def with_random_video(backbone: OfflineBackbone, artifact: artifacts.Artifact, seed: int) -> OfflineBackbone:
    """The same backbone with an untrained video tower: the control."""
    control = OfflineBackbone(artifact, backbone.device)
    torch.manual_seed(seed)
    control.video = VideoTower(control.config).eval().to(backbone.device)
    return control


def class_clips(
    dataset: Dataset, windows: np.ndarray, membership: np.ndarray, held: np.ndarray, seed: int
) -> list[np.ndarray]:
    """Windows (n, 8) of held-out episodes that clearly show each of the ten classes or fewer, at most CLIPS a class."""
    random = np.random.default_rng(seed)
    classes = membership[:, :CLASSES]
    best = classes.argmax(1)  # (N,)
    clear = (classes.max(1) > 0.5) & np.repeat(held, dataset.episode_length)
    kinds = range(classes.shape[1])
    return [windows[_some(random, np.flatnonzero(clear & (best == k)), CLIPS)] for k in kinds]


def retrieval(
    dataset: Dataset, backbone: OfflineBackbone, clips: Sequence[np.ndarray], sentences: Sentences, seed: int
) -> dict[str, Any]:
    """Text-to-video retrieval among the behaviour classes on paraphrases never trained on.

    Each sentence chooses from galleries of one clip per class. A class of which no held-out clip was
    found is left out, and named.

    Args:
        clips: of each class. sentences: {class: its paraphrases}, in the same order.

    Returns:
        {"top1": mean over classes, "chance", "absent": [name], "classes": {name: {"top1", "clips", "sentences"}}}.
    """
    random = np.random.default_rng(seed)
    present = [(name, embed_windows(dataset, backbone, c)) for name, c in zip(sentences, clips, strict=True) if len(c)]
    video = [v for _, v in present]
    classes = {}
    for own, (name, mine) in enumerate(present):
        text = backbone.encode_text(sentences[name])  # (M, dim)
        share = hits(text, video, own, random)
        classes[name] = {"top1": round(share, 3), "clips": len(mine), "sentences": len(text)}
    return {
        "top1": round(float(np.mean([c["top1"] for c in classes.values()])), 3) if classes else None,
        "chance": round(1 / len(present), 3) if present else None,
        "absent": [name for name in sentences if name not in classes],
        "classes": classes,
    }


def hits(text: Tensor, video: Sequence[Tensor], own: int, random: np.random.Generator) -> float:
    """Share of galleries in which a sentence's most similar clip is that of its own class.

    Args:
        text: (M, dim) sentences of class `own`. video: (n, dim) clips of each class; a gallery draws one of each.
    """
    scores = [(text @ v.T).cpu().numpy() for v in video]  # each (M, n)
    drawn = np.stack([s[:, random.integers(s.shape[1], size=GALLERIES)] for s in scores], -1)  # (M, G, classes)
    return float((drawn.argmax(-1) == own).mean())


def prompt_ranking(
    dataset: Dataset, backbone: OfflineBackbone, windows: np.ndarray, held: np.ndarray, seed: int
) -> dict[str, Any]:
    """For each task's expert episodes: the share of clips on which its own default prompt scores highest.

    Over the held-out expert episodes; over all expert episodes of a task that has none held out.
    """
    random = np.random.default_rng(seed)
    found = [p for p in dataset.parts if p.task]
    text = backbone.encode_text([tasks.get_task(dataset.domain, p.task).prompt for p in found])
    result = {}
    for own, part in enumerate(found):
        chosen, seen_in_training = expert_episodes(dataset, dataset.parts.index(part), held)
        rows = np.concatenate([dataset.episode_start[e] + np.arange(dataset.episode_length[e]) for e in chosen])
        video = embed_windows(dataset, backbone, windows[_some(random, rows, 4 * CLIPS)])
        share = torch.bincount((video @ text.T).argmax(1), minlength=len(found)) / len(video)
        result[part.task] = {
            "own": round(float(share[own]), 3),
            "shares": {p.task: round(float(s), 3) for p, s in zip(found, share, strict=True)},
            "episodes": len(chosen),
            "held_out": not seen_in_training,
        }
    return result


def expert_episodes(dataset: Dataset, part: int, held: np.ndarray) -> tuple[np.ndarray, bool]:
    """Episodes of a part near its best return, held-out ones if any; and whether training saw them."""
    info = dataset.episode_info
    mine = info.part == part
    expert = mine & (info.returns >= EXPERT * info.returns[mine].max())
    unseen = np.flatnonzero(expert & held)
    return (unseen, False) if len(unseen) else (np.flatnonzero(expert), True)


def smoothness(dataset: Dataset, backbone: OfflineBackbone, held: np.ndarray) -> dict[str, float]:
    """Mean cosine between neighbouring windows, and between windows of different episodes."""
    some = [_embed_episode(dataset, backbone, int(e)) for e in np.flatnonzero(held)[:20]]
    near = torch.cat([(e[1:] * e[:-1]).sum(1) for e in some]).mean()
    spread = [e[:: max(1, len(e) // 50)] for e in some]
    far = torch.stack([(a @ b.T).mean() for a, b in itertools.pairwise(spread)])
    return {"next_frame": round(float(near), 3), "other_episode": round(float(far.mean()), 3)}


def embedding_speed(dataset: Dataset, backbone: OfflineBackbone, episodes: int = 40) -> float:
    """Frames embedded a second along whole episodes, reading included, after a warm-up."""
    _embed_episode(dataset, backbone, 0)
    numbers = range(min(episodes, dataset.n_episodes))
    began = time.perf_counter()
    count = sum(len(_embed_episode(dataset, backbone, n).cpu()) for n in numbers)
    return round(count / (time.perf_counter() - began))


def embed_windows(dataset: Dataset, backbone: OfflineBackbone, windows: np.ndarray) -> Tensor:
    """Windows of dataset rows (N, 8) → (N, dim)."""
    parts = [windows[i : i + BATCH] for i in range(0, len(windows), BATCH)]
    return torch.cat([backbone.encode_video(torch.from_numpy(dataset.rows("image", p))) for p in parts])


def _embed_episode(dataset: Dataset, backbone: OfflineBackbone, number: int) -> Tensor:
    image = dataset.episode(number).image
    assert image is not None  # it was trained on frames
    return backbone.encode_episode(image, BATCH)


def _some(random: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
    return np.sort(random.choice(rows, min(count, len(rows)), replace=False)) if len(rows) else rows
