"""Batches of windows from a dataset: a pure function of (seed, step), so any run can resume or split its batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.data.episodes import Dataset
from stages.runtime.errors import BadInput
from stages.runtime.update import CAPTURE, roomy

KEYS = ("image", "action", "reward", "is_first", "is_terminal")


@dataclass(frozen=True)
class Windows:
    """Which windows are drawn, and what is read before them.

    start_fraction: this fraction of the windows begins at an episode's first row (on average exactly; the rest are
        drawn from all starts). Branches have no beginning: of them, windows begin where video windows have their past.
    part_weights: relative weight of each part of the dataset; None: by its number of windows.
    left_out: episodes never drawn from, (E,) bool.
    past: add `past`, so many frames before each window; an episode's first is repeated before its start (needs
        `image` among the keys).
    """

    start_fraction: float = 0.0
    part_weights: Sequence[float] | None = None
    left_out: np.ndarray | None = None
    past: int = 0


class Sampler:
    """Draws (B, T) windows uniformly over all starts whose window stays inside its episode.

    Args:
        batch, length: B and T of the global batch.
        keys: the arrays of a batch; default image, action, reward, is_first, is_terminal, and the embedding when the
            dataset was opened with embeddings.
        device: "cpu" maps the files and gathers there; any other device holds those arrays whole
            and gathers on it (same batches). The dataset must fit.

    Raises:
        BadInput: no episode is long enough, no frames where images are asked for, or a wrong
            fraction or weight.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch: int,
        length: int,
        seed: int,
        windows: Windows = Windows(),
        keys: Sequence[str] | None = None,
        device: str = "cpu",
    ) -> None:
        if not 0.0 <= windows.start_fraction <= 1.0:
            raise BadInput(f"start_fraction {windows.start_fraction} is no fraction; give a number from 0 to 1")
        self.dataset, self.batch, self.length, self.seed = dataset, batch, length, seed
        self.start_fraction, self.past = windows.start_fraction, windows.past
        self.keys = keys or [*KEYS, *(["embedding"] if dataset.has("embedding") else [])]
        for key in self.keys:
            dataset.row_shape(key)  # says what to do when the dataset does not hold it
        info = dataset.episode_info
        usable = np.ones(dataset.n_episodes, bool) if windows.left_out is None else ~windows.left_out  # (E,)
        long_enough = np.flatnonzero((info.length - info.past >= length) & usable)
        if not len(long_enough):
            raise BadInput(
                f"no episode has {length} rows (the longest has {info.length.max()}); ask for shorter sequences"
            )
        self.first_row = (info.start + info.past)[long_enough]  # (E',)
        starts = (info.length - info.past)[long_enough] - length + 1  # (E',) windows in each episode
        self.cumulative = np.concatenate([[0], np.cumsum(starts)])  # (E'+1,)
        part = info.part[long_enough]
        self.part_bounds = np.searchsorted(part, np.arange(len(dataset.parts) + 1))  # (P+1,) into E'
        weights = self._weights(windows.part_weights)
        ends = np.cumsum(weights)
        self.part_ends = ends / ends[-1]  # (P,) cumulative probability
        begun = np.cumsum(np.where([p.cut for p in dataset.parts], 0, weights))
        self.begun_ends = begun / begun[-1] if begun[-1] else None  # the same over parts that are no branches
        self.resident = {k: _to_device(dataset, k, device) for k in self.keys} if device != "cpu" else {}
        self.device = device

    def _weights(self, weights: Sequence[float] | None) -> np.ndarray:
        windows = np.diff(self.cumulative[self.part_bounds])  # (P,)
        if weights is None:
            return windows
        given = np.asarray(weights, np.float64)
        if given.shape != windows.shape or not np.isfinite(given).all() or (given < 0).any():
            raise BadInput(f"the dataset has {len(windows)} parts: give as many weights, none negative")
        given = np.where(windows > 0, given, 0.0)
        if not given.sum():
            raise BadInput(f"no part with a positive weight has an episode of {self.length} rows; weigh another one")
        return given

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The global batch of one step: (B,) global first rows, (B,) part indices."""
        random = np.random.Generator(np.random.Philox(key=np.array([self.seed % 2**64, step], np.uint64)))
        u, v = random.random((2, self.batch))
        at_start = np.zeros(self.batch, bool)
        count = int(self.batch * self.start_fraction + random.random())
        at_start[random.permutation(self.batch)[:count]] = True
        part = np.searchsorted(self.part_ends, u, side="right")  # (B,)
        if self.begun_ends is None:
            at_start[:] = False
        else:
            part = np.where(at_start, np.searchsorted(self.begun_ends, u, side="right"), part)
        low, high = self.part_bounds[part], self.part_bounds[part + 1]  # (B,) episodes of the part
        first, last = self.cumulative[low], self.cumulative[high]
        window = first + (v * (last - first)).astype(np.int64)  # (B,)
        episode = np.searchsorted(self.cumulative, window, side="right") - 1
        offset = window - self.cumulative[episode]
        episode = np.where(at_start, low + (v * (high - low)).astype(np.int64), episode)
        return self.first_row[episode] + np.where(at_start, 0, offset), part

    def sample(self, step: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """The batch of one step, or the slice of it that process `rank` of `world` works on.

        image (B, T, 3, H, H) uint8, action (B, T, A), reward (B, T), is_first and is_terminal (B, T)
        bool, embedding (B, T, D) float16, and task (B,) int64: the index into dataset.parts; past
        (B, past, 3, H, H) uint8 when asked for.
        """
        if self.batch % world:
            raise BadInput(f"a batch of {self.batch} does not divide over {world} processes; choose another batch size")
        mine = slice(rank * self.batch // world, (rank + 1) * self.batch // world)
        starts, part = (a[mine] for a in self.draw(step))
        if self.resident:
            rows = torch.from_numpy(starts).to(self.device)[:, None] + torch.arange(self.length, device=self.device)
            batch = {name: array[rows] for name, array in self.resident.items()}
        else:
            batch = {k: torch.from_numpy(self.dataset.windows(k, starts, self.length)) for k in self.keys}
        batch["task"] = torch.from_numpy(part).to(self.device)
        if self.past:
            batch["past"] = self._frames_before(starts)
        return batch

    def _frames_before(self, starts: np.ndarray) -> Tensor:
        """(B, past, 3, H, W) uint8."""
        first = self.dataset.episode_start[np.searchsorted(self.dataset.episode_start, starts, side="right") - 1]
        rows = np.maximum(starts[:, None] + np.arange(-self.past, 0), first[:, None])  # (B, past)
        if self.resident:
            return self.resident["image"][torch.from_numpy(rows).to(self.device)]
        return torch.from_numpy(self.dataset.rows("image", rows))


def check_frame_size(dataset: Dataset, size: int) -> None:
    """Raise BadInput when the dataset's frames are not of the height and width that a model reads."""
    if dataset.has("image") and dataset.image_size != size:
        raise BadInput(
            f"{dataset.parts[0].artifact.path} holds frames of {dataset.image_size} pixels and the model reads {size}: "
            f"collect with --size {size} into another --out, and embed that"
        )


def data_device(dataset: Dataset, device: torch.device) -> str:
    """Where batches are gathered: on the GPU when frames and embeddings fit beside the training (`roomy`)."""
    row = int(np.prod(dataset.row_shape("image"))) + 2 * dataset.dim_embedding + 4 * dataset.action_dim + 1
    return str(roomy(dataset.n_frames * row, device))


def _to_device(dataset: Dataset, name: str, device: str, rows: int = 8192) -> Tensor:
    """One array of the whole dataset as a tensor on a device, copied in blocks of rows."""
    first = torch.from_numpy(dataset.rows(name, np.arange(1)))
    whole = torch.empty((dataset.n_frames, *first.shape[1:]), dtype=first.dtype, device=device)
    for begin in range(0, dataset.n_frames, rows):
        index = np.arange(begin, min(begin + rows, dataset.n_frames))
        whole[begin : begin + len(index)] = torch.from_numpy(dataset.rows(name, index)).to(device)
    return whole


def prefetch(
    sampler: Sampler,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world: int = 1,
    depth: int = 2,
    device: str = "cpu",
) -> Generator[dict[str, Tensor], None, None]:
    """Yield the batches of steps start_step..stop_step-1 in order, `depth` of them made ahead in a thread.

    With a CUDA `device` the thread also copies them there, from pinned memory. Leaving the loop early
    ends the thread.
    """

    def make(step: int) -> dict[str, Tensor]:
        with CAPTURE:
            batch = sampler.sample(step, rank, world)
            if device == "cpu" or sampler.device != "cpu":
                return batch
            return {k: v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}

    def begin() -> None:
        """A new thread's device is the first GPU, whichever the process computes on: memory would be pinned there."""
        if device != "cpu":
            torch.cuda.set_device(device)

    with ThreadPoolExecutor(1, "prefetch", begin) as pool:
        queue = deque(pool.submit(make, step) for step in range(start_step, min(start_step + depth, stop_step)))
        try:
            for step in range(start_step, stop_step):
                batch = queue.popleft().result()
                if step + depth < stop_step:
                    queue.append(pool.submit(make, step + depth))
                yield batch
        finally:
            for waiting in queue:
                waiting.cancel()
