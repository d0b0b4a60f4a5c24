"""Branches as data: no beginning of an episode, held out with what they were cut from, and drawn like the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.data import catalog
from stages.data import episodes as room
from stages.data.episodes import Dataset, held_out_episodes
from stages.data.rerender import render_dataset
from stages.data.sampler import Sampler, Windows
from stages.runtime.errors import BadInput
from stages.worlds.motion import WINDOW
from tests.data.synthetic import (
    assert_same,
    make_branches,
    make_dataset,
    make_episode,
    make_run,
    make_writer,
    write_meta,
)

LENGTHS, LENGTH = (20, 12, 31), 10
ORIGINS = [(0, 2, 5), (0, 0, 3), (0, 2, 9), (0, 1, 1)]


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Branches of two shards come first, as in the order of names."""
    monkeypatch.setattr(room, "SHARD_BYTES", 6000)
    make_dataset(tmp_path / "random", LENGTHS)
    make_branches(tmp_path / "branch", ORIGINS)
    return Dataset.open([tmp_path / "branch", tmp_path / "random"], "walker")


def test_a_branch_is_read_as_written(dataset: Dataset) -> None:
    for number, origin in enumerate(ORIGINS):
        wanted = replace(make_episode(100 + number), is_first=np.zeros(20, bool), origin=origin)
        assert_same(dataset.episode(number), wanted)
    assert dataset.episode(5).origin is None and dataset.episode(5).is_first[0]
    assert dataset.episode_info.origin.tolist() == [6, 4, 6, 5, 4, 5, 6]
    assert dataset.episode_info.cut.tolist() == [True] * 4 + [False] * 3


def test_what_is_no_branch_is_refused(tmp_path: Path) -> None:
    writer, episode = make_writer(tmp_path / "branch", source="branch", cut_from=["random"]), make_episode(0)
    with pytest.raises(ValueError, match="is_first is not false throughout a branch"):
        writer.append(0, replace(episode, origin=(0, 0, 3)))
    with pytest.raises(ValueError, match="is_first is not true at the first row alone"):
        writer.append(0, replace(episode, is_first=np.zeros(20, bool)))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_branch_is_held_out_with_the_episode_it_was_cut_from(tmp_path: Path, share: float) -> None:
    make_dataset(tmp_path / "random", [12] * 40)
    origins = [(0, int(n), 2) for n in np.random.default_rng(0).integers(40, size=60)]
    make_branches(tmp_path / "branch", origins)
    alone = held_out_episodes(Dataset.open([tmp_path / "random"], "walker"), share)
    both = held_out_episodes(Dataset.open([tmp_path / "branch", tmp_path / "random"], "walker"), share)
    np.testing.assert_array_equal(both[60:], alone)  # branches change nothing for the others
    np.testing.assert_array_equal(both[:60], alone[[episode for _, episode, _ in origins]])
    assert both.any() and not both.all()


def test_branches_whose_sources_are_elsewhere_are_held_out_by_themselves(tmp_path: Path) -> None:
    make_branches(tmp_path / "branch", [(0, 0, 2)] * 50)
    held = held_out_episodes(Dataset.open([tmp_path / "branch"], "walker"), 0.3)
    assert 5 < held.sum() < 25


def test_branches_of_data_that_has_changed_are_refused(tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "random", LENGTHS)
    make_branches(tmp_path / "branch", ORIGINS, inputs=[source])
    Dataset.open([tmp_path / "branch", tmp_path / "random"], "walker")
    make_dataset(tmp_path / "random", (20, 12, 30))
    with pytest.raises(BadInput, match="as it is now; run: bitagent collect --preset walker --source branch --fresh"):
        Dataset.open([tmp_path / "branch", tmp_path / "random"], "walker")


@pytest.mark.parametrize("cut_from", [None, "random", []])
def test_branches_that_do_not_say_where_they_were_cut_are_refused(tmp_path: Path, cut_from: object) -> None:
    made = make_branches(tmp_path / "branch", ORIGINS)
    meta = json.loads((made.path / "artifact.json").read_text())
    meta["extra"]["cut_from"] = cut_from
    write_meta(made.path, meta)
    with pytest.raises(BadInput, match="which datasets its branches were cut from"):
        Dataset.open([made.path], "walker")


def test_rendered_branches_are_the_same_branches(tmp_path: Path) -> None:
    """Frames change neither where a branch was cut nor, by name, from what."""
    states = np.zeros((20, 18))
    writer = make_writer(
        tmp_path / "states" / "branch", source="branch", cut_from=["random"], renderer="", image_size=0, camera=None
    )
    plain = replace(make_episode(0, image=False), is_first=np.zeros(20, bool), state=states, origin=(0, 2, 4))
    writer.append(0, plain)
    rendered = render_dataset(writer.finish(), tmp_path / "data" / "branch", make_run(tmp_path), 8, None, workers=1)
    make_dataset(tmp_path / "data" / "random", LENGTHS)
    assert rendered.meta["extra"]["cut_from"] == ["random"]
    assert Dataset.open([rendered.path], "walker").episode(0).origin == (0, 2, 4)


# ---------------------------------------------------------------------------- windows


def drawn(dataset: Dataset, windows: Windows, steps: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """First rows and parts of many batches of ten."""
    sampler = Sampler(dataset, 10, LENGTH, 0, windows)
    pairs = [sampler.draw(step) for step in range(steps)]
    return np.concatenate([s for s, _ in pairs]), np.concatenate([p for _, p in pairs])


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_no_window_takes_a_cut_for_a_beginning(dataset: Dataset, fraction: float) -> None:
    starts, part = drawn(dataset, Windows(fraction))
    of_branches = starts < 80  # 4 × 20 rows
    np.testing.assert_array_equal(part == 0, of_branches)
    offsets = starts[of_branches] % 20
    if fraction < 1:
        assert set(offsets) == {7, 8, 9, 10}  # from where the window of 8 frames is whole, to the end
        counts = np.bincount(offsets)[7:]
        assert counts.min() > 0.6 * counts.max()
    begins = np.isin(starts, dataset.episode_start[4:])
    others = 36  # windows of the three whole episodes, beside 16 of branches
    assert begins.mean() == pytest.approx(fraction + (1 - fraction) * 3 / (others + 16), abs=0.03)
    assert of_branches.mean() == pytest.approx((1 - fraction) * 16 / (others + 16), abs=0.03)
    batch = Sampler(dataset, 10, LENGTH, 0, Windows(fraction, past=7)).sample(0)
    np.testing.assert_array_equal(batch["is_first"], np.isin(batch["action"][..., 0], range(3)) & (_row(batch) == 0))


def _row(batch: dict[str, torch.Tensor]) -> np.ndarray:
    """(B, T), as the synthetic actions spell it."""
    return batch["action"][..., 1].numpy()


def test_frames_before_a_window_of_a_branch_are_its_own(dataset: Dataset) -> None:
    batch = Sampler(dataset, 40, LENGTH, 0, Windows(past=7)).sample(0)
    number = batch["action"][:, 0, 0].long()
    found = 0
    for index in np.flatnonzero(number.numpy() >= 100):
        first = int(_row(batch)[index, 0])
        image = make_episode(int(number[index])).image
        assert image is not None and first >= 7
        np.testing.assert_array_equal(batch["past"][index], image[first - 7 : first])
        found += 1
    assert found


def test_branches_alone_have_no_first_windows(dataset: Dataset, tmp_path: Path) -> None:
    starts, _ = drawn(Dataset.open([tmp_path / "branch"], "walker"), Windows(0.5))
    assert set(starts % 20) == {7, 8, 9, 10}
    with pytest.raises(BadInput, match="no episode has 14 rows"):  # 20, less the 7 that lack their past
        Sampler(Dataset.open([tmp_path / "branch"], "walker"), 4, 14, 0)


def test_without_branches_windows_are_drawn_as_before(tmp_path: Path) -> None:
    """Data made before there were branches trains the same models: a fixed draw."""
    make_dataset(tmp_path / "random", LENGTHS)
    starts, _ = Sampler(Dataset.open([tmp_path / "random"], "walker"), 12, LENGTH, 3, Windows(0.25)).draw(5)
    assert starts.tolist() == [47, 5, 32, 47, 0, 8, 3, 2, 32, 1, 32, 40]


def test_what_is_passed_over_is_what_a_window_lacks() -> None:
    assert catalog.PADDED == WINDOW - 1
