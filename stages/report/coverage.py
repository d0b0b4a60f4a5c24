"""How much of what a body can do a dataset shows: bins of torso height × pitch × horizontal speed that it occupies.

occupied_bins("walker", states)             # a count
coverage_table({"random": a, "explore": b})  # at equal frames
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stages import worlds
from stages.data.episodes import Dataset, kept_episodes
from stages.report.tables import Table
from stages.worlds.motion import frame_features

HEIGHT, PITCH, SPEED = 0.1, np.pi / 12, 0.5  # sides of a bin: m, rad, m/s


def bins(domain: str, states: np.ndarray) -> np.ndarray:
    """The bin of each physics state: (N, nq + nv) → (N, 3) whole numbers, of height, pitch and forward speed."""
    found = frame_features(worlds.compile_model(domain), domain, states)
    pitch = np.arctan2(found["facing"], found["upright"])
    sides = ((found["height"], HEIGHT), (pitch, PITCH), (found["speed"], SPEED))
    return np.stack([np.floor(value / side) for value, side in sides], 1).astype(np.int64)


def occupied_bins(domain: str, states: np.ndarray) -> int:
    """How many different bins the states (N, nq + nv) lie in."""
    return len(np.unique(bins(domain, states), axis=0))


def spread_rows(dataset: Dataset, frames: int) -> np.ndarray:
    """Rows of whole episodes spread evenly over the dataset, at most `frames` of them."""
    info = dataset.episode_info
    count = max(1, int(frames / info.length.mean()))
    chosen = kept_episodes(dataset.n_episodes, count)
    return np.concatenate([info.start[i] + np.arange(info.length[i]) for i in chosen])[:frames]


def coverage_table(datasets: Mapping[str, Dataset]) -> Table | None:
    """Occupied bins of the datasets that hold states, at as many frames as the smallest has; None for less than two."""
    with_states = {name: dataset for name, dataset in datasets.items() if dataset.has("state")}
    if len(with_states) < 2:
        return None
    frames = min(dataset.n_frames for dataset in with_states.values())
    numbers: list[dict[str, Any]] = []
    for name, dataset in with_states.items():
        rows = spread_rows(dataset, frames)
        count = occupied_bins(dataset.domain, dataset.rows("state", rows))
        numbers.append({"dataset": name, "frames": len(rows), "occupied_bins": count})
    random = next((n["occupied_bins"] for n in numbers if n["dataset"] == "random"), None)
    times = [f"{n['occupied_bins'] / random:.2f}" if random else "" for n in numbers]
    cells = [[*map(str, n.values()), ratio] for n, ratio in zip(numbers, times, strict=True)]
    note = (
        f"Bins of torso height ({HEIGHT} m), pitch ({np.degrees(PITCH):.0f}°) and forward speed ({SPEED} m/s) that the "
        "frames fall into, at equal frames: whole episodes spread evenly over each dataset."
    )
    return Table("Coverage", note, ["dataset", "frames", "occupied bins", "times random's"], cells, numbers)
