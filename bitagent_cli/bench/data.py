"""`bitagent bench data`: the sampler beside two loaders that stack episodes with NumPy, and its peak memory.

The data are synthetic episodes of random pixels; every loader reads the same ones at the same
batch size, from files in the system's cache. Frames go through one thread in all of them.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.data.episodes import Dataset, DatasetWriter, Episode
from stages.data.sampler import KEYS, Sampler
from stages.runtime.config import Run

ROWS, FRAME, ACTIONS, STATES = 501, (3, 64, 64), 6, 18
BATCH, LENGTH = 64, 32
WARM_UP = 5

Batch = dict[str, Tensor]


def measure_data(gigabytes: float = 2.0, batches: int = 60, folder: Path | None = None) -> dict[str, Any]:
    """Write `gigabytes` of episodes below `folder` (default: the system's temporary one), measure, delete them.

    Returns:
        milliseconds a batch and GB/s (see `measure`) of: the sampler; `episodes_in_memory`, a list of episodes
        read whole into memory; `episodes_on_disk`, a list of uncompressed .npz files opened for each item;
        `memory_copy`, one plain copy of a batch's frames. Also the sampler's ratio to each, its time to
        open, and the peak resident memory of a process that samples the whole dataset.
    """
    episodes = max(int(gigabytes * 1e9 / (ROWS * np.prod(FRAME))), 2)
    with tempfile.TemporaryDirectory(dir=folder, prefix="bitagent-bench-") as place:
        path, files = Path(place) / "data", Path(place) / "npz"
        write_episodes(path, files, episodes)
        frame_bytes = BATCH * LENGTH * int(np.prod(FRAME))
        sampler = Sampler(Dataset.open([path], "walker"), BATCH, LENGTH, seed=0)
        loaders: dict[str, Callable[[int], Any]] = {
            "sampler": sampler.sample,
            "episodes_on_disk": list_loader(episodes, lambda number: _read(files / f"{number:06d}.npz")),
            "memory_copy": copies(frame_bytes),
        }
        found = {name: measure(load, batches, frame_bytes) for name, load in loaders.items()}
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            memory = pool.submit(sample_all, path, 2.0).result()
        in_memory = [_read(file) for file in sorted(files.iterdir())]
        found["episodes_in_memory"] = measure(list_loader(episodes, in_memory.__getitem__), batches, frame_bytes)
        size = sum(file.stat().st_size for file in path.iterdir())
    own = found["sampler"]["ms"]
    ratios = {f"times_{name}": round(other["ms"] / own, 2) for name, other in found.items() if name != "sampler"}
    about = {"dataset_gb": round(size / 1e9, 2), "episodes": episodes, "batch": [BATCH, LENGTH]}
    return {**about, **found, **ratios, **memory}


def write_episodes(path: Path, files: Path, episodes: int) -> None:
    """The same episodes as a dataset artifact and as one .npz each."""
    files.mkdir(parents=True)
    facts = {"source": "random", "task": "", "renderer": "noise", "image_size": FRAME[-1]}
    writer = DatasetWriter(path, Run("walker", "bench", path.parent), {"bench": episodes}, facts)
    for number in range(episodes):
        random = np.random.default_rng(number)
        episode = Episode(
            image=np.frombuffer(random.bytes(ROWS * int(np.prod(FRAME))), np.uint8).reshape(ROWS, *FRAME),
            action=random.uniform(-1, 1, (ROWS, ACTIONS)).astype(np.float32),
            reward=random.random(ROWS, np.float32),
            is_first=np.arange(ROWS) == 0,
            is_terminal=np.zeros(ROWS, bool),
            state=random.normal(size=(ROWS, STATES)),
            seed=number,
        )
        writer.append(number, episode)
        np.savez(files / f"{number:06d}.npz", **{key: getattr(episode, key) for key in KEYS})
    writer.finish()


# ---------------------------------------------------------------------------- loaders to compare with


def _read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in KEYS}


def list_loader(episodes: int, read: Callable[[int], dict[str, np.ndarray]]) -> Callable[[int], Batch]:
    """The usual loader: for each item choose an episode to read and a start, slice, then stack the slices."""

    def load(step: int) -> Batch:
        random = np.random.default_rng(step)
        items = []
        for number in random.integers(0, episodes, BATCH):
            episode = read(number)
            start = random.integers(0, len(episode["reward"]) - LENGTH + 1)
            items.append({key: array[start : start + LENGTH] for key, array in episode.items()})
        return {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in KEYS}

    return load


def copies(size: int) -> Callable[[int], np.ndarray]:
    """Copies of `size` bytes out of a block larger than the caches: what one thread's memory bandwidth allows."""
    blocks = np.repeat(np.arange(20, dtype=np.uint8)[:, None], size, 1)
    return lambda step: blocks[step % 20].copy()


# ---------------------------------------------------------------------------- measuring


def measure(load: Callable[[int], Any], batches: int, frame_bytes: int) -> dict[str, float]:
    """Medians over batches, after a few unmeasured ones: milliseconds by the clock and of this thread's
    work (which other processes do not disturb), and the frames' GB/s by the clock."""
    clock, work = [], []
    for step in range(WARM_UP + batches):
        began = time.perf_counter(), time.thread_time()
        load(step)
        clock.append(time.perf_counter() - began[0])
        work.append(time.thread_time() - began[1])
    seconds = statistics.median(clock[WARM_UP:])
    return {
        "ms": round(seconds * 1e3, 3),
        "cpu_ms": round(statistics.median(work[WARM_UP:]) * 1e3, 3),
        "gb_per_s": round(frame_bytes / seconds / 1e9, 2),
    }


def sample_all(path: Path, passes: float) -> dict[str, Any]:
    """What it takes to sample about `passes` times the dataset's frames; in a process of its own."""
    before = peak_bytes()
    began = time.perf_counter()
    dataset = Dataset.open([path], "walker")
    opened = time.perf_counter() - began
    sampler = Sampler(dataset, BATCH, LENGTH, seed=1)
    for step in range(int(passes * dataset.n_frames / (BATCH * LENGTH))):
        sampler.sample(step)
    return {
        "open_ms": round(opened * 1e3, 2),
        "peak_rss_gb": round(peak_bytes() / 1e9, 3),
        "peak_rss_before_opening_gb": round(before / 1e9, 3),
    }


def peak_bytes() -> int:
    """Peak resident memory of this program; /proc where there is one, as ru_maxrss may be the parent's."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
