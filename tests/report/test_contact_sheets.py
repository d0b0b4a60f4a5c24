"""Contact sheets: the right episodes, their frames in a row, a readable PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.episodes import Dataset
from stages.report import figures
from stages.report.figures import contact_sheet, save_png
from stages.runtime.errors import BadInput
from tests.data.synthetic import SIZE, make_branches, make_dataset, make_episode, make_writer


def pitch(sheet: np.ndarray, rows: int) -> int:
    """Pixels from a row to the next."""
    height, rest = divmod(sheet.shape[0] - figures.GAP, rows)
    assert not rest and height >= SIZE + figures.GAP
    return height


def frames_of(sheet: np.ndarray, top: int, columns: int) -> np.ndarray:
    """(C, 3, H, H) frames of the row of a sheet that begins at `top`, found from its right edge."""
    left = sheet.shape[1] - columns * (SIZE + figures.GAP)
    cells = [left + c * (SIZE + figures.GAP) for c in range(columns)]
    return np.stack([sheet[top : top + SIZE, x : x + SIZE].transpose(2, 0, 1) for x in cells])


def make_scored(path: Path, returns: list[float], first: int, source: str, task: str) -> None:
    writer = make_writer(path, source=source, task=task)
    for index, value in enumerate(returns):
        episode = make_episode(first + index, 9)
        episode.reward = np.full(9, value / 9, np.float32)
        writer.append(index, episode)
    writer.finish()


def test_branches_have_no_return_to_choose_by(tmp_path: Path) -> None:
    make_branches(tmp_path / "branch", [(0, 0, 1)] * 7)
    dataset = Dataset.open([tmp_path / "branch"], "walker")
    sheet = contact_sheet(dataset, columns=5)
    step = pitch(sheet, 4)
    for row, number in enumerate((0, 2, 4, 6)):
        wanted = dataset.rows("image", 20 * number + np.linspace(0, 19, 5).astype(int))
        np.testing.assert_array_equal(frames_of(sheet, figures.GAP + row * step, 5), wanted)
    make_branches(tmp_path / "branch", [(0, 0, 1)])
    assert pitch(contact_sheet(Dataset.open([tmp_path / "branch"], "walker"), columns=5), 1)


def test_first_best_median_and_worst_of_each_source_and_task(tmp_path: Path) -> None:
    make_scored(tmp_path / "random", [5.0, 9.0, 1.0, 4.0, 3.0, 2.0], 0, "random", "")
    make_scored(tmp_path / "walk", [2.0, 8.0], 6, "expert", "walk")
    make_scored(tmp_path / "more", [11.0], 8, "expert", "walk")  # a second dataset of the same source and task
    dataset = Dataset.open([tmp_path / name for name in ("random", "walk", "more")], "walker")
    sheet = contact_sheet(dataset, columns=5)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    chosen = [0, 1, 4, 2, 6, 8, 7]  # random: first, best, (lower) median, worst; walk: first = worst, best, median
    step = pitch(sheet, len(chosen))
    for row, number in enumerate(chosen):
        image = make_episode(number, 9).image
        assert image is not None
        found = frames_of(sheet, figures.GAP + row * step, 5)
        np.testing.assert_array_equal(found, image[[0, 2, 4, 6, 8]], err_msg=str((row, number)))


def test_labels_are_drawn(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    sheet = contact_sheet(Dataset.open([tmp_path / "data"], "walker"), columns=2)
    left, step = sheet[:, : sheet.shape[1] - 2 * (SIZE + figures.GAP)], pitch(sheet, 3)
    for row in range(3):
        assert (left[row * step : (row + 1) * step] < 128).any()


def test_a_sheet_is_saved_as_png(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    sheet = contact_sheet(Dataset.open([tmp_path / "data"], "walker"))
    save_png(tmp_path / "report" / "data.png", sheet)
    with Image.open(tmp_path / "report" / "data.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), sheet)


def test_states_have_no_sheet(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", renderer="", image_size=0)
    with pytest.raises(BadInput, match="--render"):
        contact_sheet(Dataset.open([tmp_path / "data"], "walker"))
