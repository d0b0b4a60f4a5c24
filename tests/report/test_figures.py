"""Pictures show the frames they were given, where they say they are; charts draw the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from stages.report import aggregate, figures


def clip(*colors: tuple[int, int, int], size: int = 8) -> np.ndarray:
    """One plain frame a colour: (T, 3, size, size)."""
    return np.stack([np.broadcast_to(np.array(c, np.uint8)[:, None, None], (3, size, size)) for c in colors])


RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def test_strip_puts_every_frame_in_its_row_and_column() -> None:
    rows = [("a", clip(RED, GREEN, size=20)), ("a longer label", clip(BLUE, size=20))]
    sheet, pitch = figures.strip(rows, ["+1", "+2"]), 20 + figures.GAP
    left = sheet.shape[1] - 2 * pitch
    assert sheet.shape[0] == figures.HEADER + 2 * pitch
    centres = [[sheet[figures.HEADER + r * pitch + 10, left + c * pitch + 10] for c in (0, 1)] for r in (0, 1)]
    assert [[tuple(p) for p in row] for row in centres] == [[RED, GREEN], [BLUE, figures.PAPER]]
    assert (sheet[:, :left] != figures.PAPER[0]).any(), "no label was written"


def test_a_row_is_as_tall_as_its_label() -> None:
    sheet = figures.strip([("one\ntwo\nthree", clip(RED)), ("", clip(BLUE))])
    assert tuple(sheet[figures.GAP + 4, -figures.GAP - 4]) == RED
    second = int(np.flatnonzero((sheet[:, -figures.GAP - 4] == BLUE).all(-1))[0])
    assert second - figures.GAP > 3 * 10, "the label runs into the next row"


def test_film_holds_the_last_frame_of_a_short_clip_and_scales() -> None:
    pages = figures.film([("x", [clip(RED, GREEN, BLUE), clip(GREEN)])], columns=["one", "two"], scale=3)
    assert len(pages) == 3
    y = figures.HEADER + 12
    first, second = pages.shape[2] - 2 * 27 + 12, pages.shape[2] - 27 + 12
    assert [tuple(page[y, first]) for page in pages] == [RED, GREEN, BLUE]
    assert [tuple(page[y, second]) for page in pages] == [GREEN] * 3


def test_film_tells_context_from_imagination() -> None:
    pages = figures.film([("real", [clip(RED, RED, RED, RED)])], seen=2)
    left = pages.shape[2] - (16 + figures.GAP)
    bar = [tuple(page[figures.HEADER - 2, left + 1]) for page in pages]
    assert bar == [figures.SEEN, figures.SEEN, figures.IMAGINED, figures.IMAGINED]
    lengths = [int((page[figures.HEADER - 2, left:] != figures.PAPER[0]).any(-1).sum()) for page in pages]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_gif_gives_back_every_frame_even_equal_ones(tmp_path: Path) -> None:
    frames = clip(RED, RED, RED, GREEN, GREEN, BLUE, size=16)
    figures.save_gif(tmp_path / "a.gif", frames.transpose(0, 2, 3, 1), 80)
    back = figures.read_gif(tmp_path / "a.gif", 80)
    assert back.shape == frames.shape and back.dtype == np.uint8
    np.testing.assert_allclose(back.astype(int), frames, atol=8)


def draw_error(path: Path) -> list[Path]:
    return figures.prediction_error(
        path,
        {
            "horizon": [1, 2],
            "model": [3.0, 4.0],
            "single_rollout": [3.5, 5.0],
            "copy_last_frame": [5.0, 9.0],
            "windows": 7,
            "rollouts": 8,
        },
    )


def draw_gates(path: Path) -> list[Path]:
    return figures.gate_bars(path, {"stand": [0.2, 0.9], "run": [0.4, 0.1]})


def draw_traces(path: Path) -> list[Path]:
    wave = np.sin(np.arange(30))
    return figures.reward_traces(
        path, {"walk": {"expert": (wave, wave**2), "random": (wave, wave**2)}, "run": {"random": (wave, wave**2)}}
    )


SCORES = {"walk": {"random": (0.0, 0.0), "bitagent": (0.8, 0.1)}, "run": {"bitagent": (-0.1, 0.02)}}


def draw_scores(path: Path) -> list[Path]:
    return figures.score_bars(path, {"walker": SCORES})


def draw_transfers(path: Path) -> list[Path]:
    return figures.score_bars(
        path, {"walker → stickman": SCORES, "stickman → walker": SCORES, "cheetah → walker": SCORES}
    )


def draw_curves(path: Path) -> list[Path]:
    rows = [{"step": i, "loss": 1.0 / (i + 1), "seconds": i} for i in range(5)]
    return figures.curves(
        path, {"bitagent": [rows, rows[:3]], "genrl": [[{"step": 0, "kl": 2.0}, {"step": 1, "kl": 1.0}]]}
    )


def draw_counterfactuals(path: Path) -> list[Path]:
    lines = {"real": np.linspace(0, 1, 16), "imagined": np.linspace(0, 2, 16)}
    return figures.counterfactual_rewards(path, {"walk": {"the data's": lines, "uniform": lines}, "run": {"x": lines}})


def draw_aggregates(path: Path) -> list[Path]:
    scores = {"bitagent": {"a": [0.8, 0.9], "b": [0.5, 0.7]}, "genrl": {"a": [0.4, 0.6], "b": [0.6, 0.7]}}
    middles = {m: aggregate.interquartile_mean(s) for m, s in scores.items()}
    return figures.aggregates(path, {"iqm": middles}, {m: aggregate.profile(s) for m, s in scores.items()})


DRAW = [
    draw_counterfactuals, draw_error, draw_gates, draw_traces, draw_scores, draw_transfers, draw_curves,
    draw_aggregates,
]  # fmt: skip


@pytest.mark.parametrize(("draw", "count"), list(zip(DRAW, (2, 1, 2, 3, 2, 6, 2, 2), strict=True)))
def test_every_panel_is_a_picture_that_fits_a_phone(tmp_path: Path, draw: Any, count: int) -> None:
    panels = draw(tmp_path / "chart.png")
    assert len(panels) == count and set(panels) == set(tmp_path.iterdir())
    for panel in panels:
        with Image.open(panel) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert tuple(pixels[0, 0]) == (255, 255, 255)
        assert pixels.shape[0] > 150 and pixels.shape[1] <= 2 * 390
        coloured = (pixels.max(-1).astype(int) - pixels.min(-1)) > 60
        assert coloured.sum() > 50, "no line or bar in colour"


def test_prompts_are_text_and_a_users_matplotlibrc_is_not_asked(tmp_path: Path) -> None:
    prompts = {r"earn $\x$": [0.2, 0.9], "walk $$": [0.4, 0.1]}
    plain = figures.gate_bars(tmp_path / "plain.png", prompts)
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "savefig.dpi": 20}):
        other = figures.gate_bars(tmp_path / "other.png", prompts)
    assert [a.read_bytes() for a in plain] == [b.read_bytes() for b in other]


@pytest.mark.parametrize(("lines", "panels"), [(2, [0, 1]), (7, [0]), (1, [])])
def test_a_legend_stands_where_lines_need_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int, panels: list[int]
) -> None:
    """On every panel for a few lines, on the first for many, nowhere for one."""
    named: list[list[str]] = []
    monkeypatch.setattr(Figure, "legend", lambda self, handles, labels, **_: named.append(list(labels)))
    rows = [{"step": i, "loss": 1.0, "kl": 2.0} for i in range(3)]
    figures.curves(tmp_path / "curves.png", {f"policy {i}": [rows] for i in range(lines)})
    assert named == [[f"policy {i}" for i in range(lines)]] * len(panels)


def test_several_seeds_become_mean_and_range_as_far_as_all_go() -> None:
    ax = Figure().subplots()
    one = (np.array([0, 10, 20]), np.array([1.0, 2.0, 3.0]))
    other = (np.array([0, 10]), np.array([3.0, 6.0]))
    figures._band(ax, [one, other], "bitagent", "red")
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [0, 10])
    np.testing.assert_allclose(line.get_ydata(), [2.0, 4.0])
    assert line.get_label() == "bitagent (2 seeds)"
    low, high = (
        ax.collections[0].get_paths()[0].vertices[:, 1].min(),
        ax.collections[0].get_paths()[0].vertices[:, 1].max(),
    )
    assert (low, high) == (1.0, 6.0)


def test_one_seed_is_drawn_whole() -> None:
    ax = Figure().subplots()
    figures._band(ax, [(np.array([0, 5]), np.array([1.0, 0.0]))], "bitagent", "red")
    assert not ax.collections and ax.get_lines()[0].get_label() == "bitagent"
