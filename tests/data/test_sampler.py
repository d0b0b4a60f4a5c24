"""The sampler: which windows it draws, how often, from (seed, step) alone, and how batches are split and prefetched."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from stages.data import episodes as room
from stages.data.episodes import Dataset, write_sidecar
from stages.data.sampler import KEYS, Sampler, Windows, prefetch
from stages.runtime.errors import BadInput
from stages.runtime.update import CAPTURE
from tests.data.synthetic import make_dataset, make_episode, make_run

LENGTHS = ((20, 12, 9, 31), (14, 25))  # of two parts; with windows of 10 one episode is too short
LENGTH = 10


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(room, "SHARD_BYTES", 6000)  # two or three episodes a shard
    make_dataset(tmp_path / "random", LENGTHS[0])
    make_dataset(tmp_path / "expert", LENGTHS[1], first=4, source="expert", task="walk")
    return Dataset.open([tmp_path / "random", tmp_path / "expert"], "walker")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def places(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) episode and row, which the synthetic actions spell."""
    return batch["action"][..., 0].long(), batch["action"][..., 1].long()


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # mapped, and held whole
def test_frames_before_a_window_repeat_the_episodes_first(dataset: Dataset, device: str) -> None:
    """Window after window, the frames of the sidecar rule: those before the start are the first frame again."""
    sampler = Sampler(dataset, 16, LENGTH, 0, Windows(0.3, past=7), device=device)
    clamped = 0
    for step in range(5):
        batch = sampler.sample(step)
        episode, row = places(batch)
        assert batch["past"].shape == (16, 7, *batch["image"].shape[2:]) and batch["past"].dtype == torch.uint8
        for index in range(16):
            number, first = int(episode[index, 0]), int(row[index, 0])
            image = make_episode(number, (*LENGTHS[0], *LENGTHS[1])[number]).image
            assert image is not None
            wanted = image[np.maximum(np.arange(first - 7, first), 0)]
            np.testing.assert_array_equal(batch["past"][index].numpy(), wanted)
            clamped += first < 7
        share = sampler.sample(step, rank=1, world=2)
        assert torch.equal(share["past"], batch["past"][8:])
    assert 0 < clamped < 80


def test_windows_hold_the_rows_of_one_episode(dataset: Dataset) -> None:
    sampler = Sampler(dataset, 16, LENGTH, seed=0)
    for step in range(20):
        batch = sampler.sample(step)
        episode, row = places(batch)
        assert (episode == episode[:, :1]).all()
        assert (row == row[:, :1] + torch.arange(LENGTH)).all()
        assert torch.equal(batch["task"], (episode[:, 0] >= 4).long())
        assert torch.equal(batch["is_first"], row == 0)
        assert not batch["is_first"][:, 1:].any()
        for index in range(16):
            number, first = int(episode[index, 0]), int(row[index, 0])
            wanted = make_episode(number, (*LENGTHS[0], *LENGTHS[1])[number])
            for key in KEYS:
                found = batch[key][index].numpy()
                np.testing.assert_array_equal(found, getattr(wanted, key)[first : first + LENGTH], err_msg=key)
                assert found.dtype == getattr(wanted, key).dtype


def test_all_starts_are_equally_likely(dataset: Dataset) -> None:
    sampler = Sampler(dataset, 500, LENGTH, seed=0)
    starts = np.concatenate([sampler.draw(step)[0] for step in range(100)])
    info = dataset.episode_info
    valid = [s + o for s, n in zip(info.start, info.length, strict=True) for o in range(n - LENGTH + 1)]
    counts = np.array([(starts == row).sum() for row in valid])
    assert counts.sum() == len(starts) == 50_000  # nothing but valid starts
    expected = len(starts) / len(valid)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(valid) - 1
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_batches_depend_on_seed_and_step_alone(dataset: Dataset) -> None:
    one, two = Sampler(dataset, 8, LENGTH, seed=3), Sampler(dataset, 8, LENGTH, seed=3)
    [two.sample(step) for step in range(5)]  # history does not matter
    assert same(one.sample(7), two.sample(7))
    assert not same(one.sample(7), one.sample(8))
    assert not same(one.sample(7), Sampler(dataset, 8, LENGTH, seed=4).sample(7))
    assert not np.array_equal(Sampler(dataset, 8, LENGTH, seed=-1).draw(0)[0], one.draw(0)[0])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_one_global_batch(dataset: Dataset, world: int) -> None:
    sampler = Sampler(dataset, 8, LENGTH, seed=0)
    slices = [sampler.sample(5, rank, world) for rank in range(world)]
    assert all(len(piece["action"]) == 8 // world for piece in slices)
    whole = sampler.sample(5)
    assert same({key: torch.cat([piece[key] for piece in slices]) for key in whole}, whole)


def test_a_batch_that_does_not_divide_is_refused(dataset: Dataset) -> None:
    with pytest.raises(BadInput, match="divide over 3 processes"):
        Sampler(dataset, 8, LENGTH, seed=0).sample(0, 0, 3)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_fraction_of_windows_begins_at_the_reset(dataset: Dataset, fraction: float) -> None:
    sampler = Sampler(dataset, 10, LENGTH, 0, Windows(fraction))
    starts = np.stack([sampler.draw(step)[0] for step in range(300)])  # (300, 10)
    begins = np.isin(starts, dataset.episode_start)
    by_chance = 5 / 60  # five long enough episodes, 60 windows in all
    assert begins.mean() == pytest.approx(fraction + (1 - fraction) * by_chance, abs=0.02)
    assert np.ptp(begins.mean(0)) < 0.2  # anywhere in the batch
    if fraction == 1.0:
        counts = [(starts == row).sum() for row in dataset.episode_start]
        assert counts[2] == 0 and min(counts[:2] + counts[3:]) > 450  # 600 expected of each that is long enough


def test_parts_can_be_weighed(dataset: Dataset) -> None:
    def share(weights: list[float] | None) -> float:
        sampler = Sampler(dataset, 100, LENGTH, 0, Windows(0.2, weights))
        return float(np.concatenate([sampler.draw(step)[1] for step in range(100)]).mean())

    assert share(None) == pytest.approx(21 / 60, abs=0.02)
    assert share([1, 3]) == pytest.approx(0.75, abs=0.02)
    assert share([0, 1]) == 1.0 and share([2, 0]) == 0.0
    for wrong in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(BadInput, match="weight"):
            Sampler(dataset, 4, LENGTH, 0, Windows(part_weights=wrong))


def test_episodes_can_be_left_out(dataset: Dataset) -> None:
    left_out = np.arange(dataset.n_episodes) != 3
    sampler = Sampler(dataset, 50, LENGTH, 0, Windows(0.2, left_out=left_out))
    starts = np.concatenate([sampler.draw(step)[0] for step in range(20)])
    assert set(np.searchsorted(dataset.episode_start, starts, side="right") - 1) == {3}
    with pytest.raises(BadInput, match="no episode has"):
        Sampler(dataset, 50, LENGTH, 0, Windows(left_out=np.ones(dataset.n_episodes, bool)))


def test_embeddings_come_with_the_batch(dataset: Dataset, tmp_path: Path) -> None:
    paths = [part.artifact.path for part in dataset.parts]
    sidecars = [tmp_path / f"embedded-{path.name}" for path in paths]
    for path, sidecar, part in zip(paths, sidecars, dataset.parts, strict=True):
        rows = [len(shard.arrays["reward"]) for shard in Dataset.open([path], "walker").shards]
        blocks = np.split(np.arange(part.first_row, part.last_row)[:, None] * np.ones(3), np.cumsum(rows)[:-1])
        write_sidecar(sidecar, make_run(tmp_path), [part.artifact], blocks, {}, {"backbone": "count"})
    opened = Dataset.open(paths, "walker", sidecars)
    sampler = Sampler(opened, 6, LENGTH, seed=0)
    batch = sampler.sample(0)
    assert batch["embedding"].dtype == torch.float16
    wanted = torch.from_numpy(sampler.draw(0)[0])[:, None] + torch.arange(LENGTH)
    assert torch.equal(batch["embedding"], wanted[..., None].expand(-1, -1, 3).half())
    assert set(Sampler(opened, 6, LENGTH, seed=0, keys=("action",)).sample(0)) == {"action", "task"}


def test_what_cannot_be_sampled_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the longest has 31"):
        Sampler(dataset, 4, 32, seed=0)
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadInput, match="from 0 to 1"):
            Sampler(dataset, 4, LENGTH, 0, Windows(fraction))
    make_dataset(tmp_path / "states", renderer="", image_size=0)
    states = Dataset.open([tmp_path / "states"], "walker")
    with pytest.raises(BadInput, match="--render"):
        Sampler(states, 4, LENGTH, seed=0)
    assert "image" not in Sampler(states, 4, LENGTH, seed=0, keys=("action", "reward")).sample(0)


def test_a_dataset_held_on_the_device_gives_the_same_batches(dataset: Dataset) -> None:
    mapped = Sampler(dataset, 8, LENGTH, 0, Windows(0.3))
    held = Sampler(dataset, 8, LENGTH, 0, Windows(0.3), device="cpu:0")
    assert held.resident and same(mapped.sample(3, 1, 2), held.sample(3, 1, 2))


def test_no_python_loop_runs_over_the_items(tmp_path: Path) -> None:
    """The number of Python and C calls of a batch does not depend on its size."""
    make_dataset(tmp_path / "data", (30, 40))

    def calls(batch: int) -> int:
        sampler, count = Sampler(Dataset.open([tmp_path / "data"], "walker"), batch, LENGTH, seed=0), 0
        sampler.sample(0)

        def seen(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(seen)
        try:
            sampler.sample(1)
        finally:
            sys.setprofile(None)
        return count

    assert calls(4) == calls(400)


def test_prefetch_yields_every_step_in_order(dataset: Dataset) -> None:
    sampler = Sampler(dataset, 8, LENGTH, seed=0)
    for depth in (1, 3, 50):
        batches = list(prefetch(sampler, 4, 11, rank=1, world=2, depth=depth))
        assert len(batches) == 7
        assert all(same(batch, sampler.sample(step, 1, 2)) for step, batch in enumerate(batches, 4))
    assert list(prefetch(sampler, 5, 5)) == []


def test_prefetch_ends_its_thread_when_left_early(dataset: Dataset) -> None:
    before = threading.active_count()
    batches = prefetch(Sampler(dataset, 8, LENGTH, seed=0), 0, 1000)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


def test_prefetch_passes_errors_on(dataset: Dataset) -> None:
    with pytest.raises(BadInput, match="divide"):
        next(prefetch(Sampler(dataset, 8, LENGTH, seed=0), 0, 10, world=3))


def test_the_prefetch_thread_is_on_the_gpu_it_copies_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new thread's device is the first GPU: on the second rank, memory would be pinned there."""
    chosen: list[tuple[str, str]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.append((threading.current_thread().name, str(device)))
    )
    make_dataset(tmp_path / "a")
    sampler = Sampler(Dataset.open([tmp_path / "a"], "walker"), 2, 4, 0)
    for device in ("cpu", "cuda:1"):
        batches = prefetch(sampler, 0, 1, device=device)
        with suppress(Exception):  # there is no such GPU to copy to
            next(batches)
        batches.close()
    assert chosen == [("prefetch_0", "cuda:1")]


def test_no_batch_is_made_while_a_graph_is_recorded(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    sampler = Sampler(Dataset.open([tmp_path / "a"], "walker"), 2, 4, 0)
    made = threading.Event()
    drawn = sampler.sample
    sampler.sample = lambda *where: made.set() or drawn(*where)  # type: ignore[func-returns-value, method-assign]
    batches = prefetch(sampler, 0, 3)
    with CAPTURE:
        waiting = threading.Thread(target=next, args=(batches,))
        waiting.start()
        assert not made.wait(0.2)
    assert made.wait(30)
    waiting.join()
    batches.close()
