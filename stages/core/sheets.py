"""Contact sheets: a dataset at a glance, as one picture.

save_png(contact_sheet(Dataset.open([path], "walker")), Path("walker.png"))
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stages.data.episodes import Dataset

GAP = 2
LABEL_HEIGHT = 40  # three lines
INK, PAPER = (32, 32, 32), (255, 255, 255)


def contact_sheet(dataset: Dataset, columns: int = 12) -> np.ndarray:
    """The first, best, median and worst episode of each source and task, `columns` frames in a row.

    Returns (height, width, 3) uint8: one row of frames an episode, from its first to its last, with
    source, task, place and return at the left. An episode with two places gets one row. Raises
    BadInput when the dataset holds no frames.
    """
    size = dataset.row_shape("image")[-1]
    rows = [(label, number) for group in _groups(dataset) for label, number in _chosen(dataset, group).items()]
    pitch = max(size, LABEL_HEIGHT) + GAP
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = max(int(ruler.multiline_textbbox((0, 0), label)[2]) for label, _ in rows) + 12
    sheet = Image.new("RGB", (left + columns * (size + GAP), len(rows) * pitch + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (label, number) in enumerate(rows):
        top = GAP + index * pitch
        draw.multiline_text((6, top + (pitch - GAP) // 2), label, fill=INK, anchor="lm", spacing=1)
        start, length = dataset.episode_start[number], dataset.episode_length[number]
        frames = dataset.rows("image", start + np.linspace(0, length - 1, columns).astype(np.int64))  # (C, 3, H, H)
        for column, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame.transpose(1, 2, 0)), (left + column * (size + GAP), top))
    return np.asarray(sheet)


def _groups(dataset: Dataset) -> list[np.ndarray]:
    """The episodes of each source and task, in the order of the parts."""
    info = dataset.episode_info
    names = dict.fromkeys((part.source, part.task) for part in dataset.parts)
    return [np.flatnonzero((info.source == source) & (info.task == task)) for source, task in names]


def _chosen(dataset: Dataset, group: np.ndarray) -> dict[str, int]:
    """Label → episode number: first, best, median and worst of a group, each episode once."""
    info = dataset.episode_info
    order = group[np.argsort(info.returns[group], kind="stable")]
    places = {"first": group[0], "best": order[-1], "median": order[(len(order) - 1) // 2], "worst": order[0]}
    named: dict[int, list[str]] = {}
    for place, number in places.items():
        named.setdefault(int(number), []).append(place)
    title = f"{info.source[group[0]]} {info.task[group[0]]}".strip()
    return {f"{title}\n{', '.join(words)}\n{info.returns[n]:.1f}": n for n, words in named.items()}


def save_png(image: np.ndarray, path: Path) -> None:
    """Write an (H, W, 3) uint8 image as PNG, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="PNG")
