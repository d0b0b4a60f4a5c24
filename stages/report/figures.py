"""Pictures: strips and films of frames, and the charts of the report. White paper, colours told apart by everyone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from stages.data.episodes import Dataset
from stages.report.aggregate import LEVELS, Interval
from stages.runtime.drawing import figure

if TYPE_CHECKING:  # every stage imports this module, few draw
    from matplotlib.axes import Axes

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
INK, PAPER, SEEN, IMAGINED = (32, 32, 32), (255, 255, 255), (150, 150, 150), (213, 94, 0)
GAP = 3
HEADER = 16
STYLE = {
    "axes.titlesize": 9, "axes.labelsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "grid.linewidth": 0.6, "axes.axisbelow": True,
}  # fmt: skip
MANY = 5  # names in a legend beyond which one legend is enough
SMOOTH = 10  # episodes behind a point of a learning curve

Clip = np.ndarray  # frames (T, 3, H, W) uint8
Groups = Mapping[str, Mapping[str, tuple[float, float]]]  # {task: {method: (mean, half-width)}}


# ---------------------------------------------------------------------------- frames


def strip(rows: Sequence[tuple[str, Clip]], header: Sequence[str] = ()) -> np.ndarray:
    """Clips as rows of frames, label at the left, one header word over each column: (H', W', 3) uint8.

    Clips may differ in length; the picture is as wide as the longest.
    """
    return film([(label, list(clip[:, None])) for label, clip in rows], columns=header, scale=1)[0]


def film(
    rows: Sequence[tuple[str, Sequence[Clip]]], *, columns: Sequence[str] = (), seen: int = 0, scale: int = 2
) -> np.ndarray:
    """Clips side by side, rows of them with a label each: (T, H', W', 3) uint8.

    Args:
        columns: a word over each column.
        seen: frames the model still looks at; a bar over the film is grey during them, then orange.
            0 draws no bar. A clip that ends early stays on its last frame.
    """
    # where things are: labels at the left, words on top, a pitch from frame to frame
    font, ruler = ImageFont.load_default(11), ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [ruler.multiline_textbbox((0, 0), label, font, spacing=2) for label, _ in rows]
    size = rows[0][1][0].shape[-1] * scale
    left, top = max(int(box[2]) for box in boxes) + 12, HEADER * (bool(columns) + bool(seen)) or GAP
    pitch, tall = size + GAP, max(size, *(int(box[3]) for box in boxes)) + GAP

    # what does not move
    blank = Image.new("RGB", (left + max(len(clips) for _, clips in rows) * pitch, top + len(rows) * tall), PAPER)
    draw = ImageDraw.Draw(blank)
    for column, word in enumerate(columns):
        draw.text((left + column * pitch + size // 2, top - HEADER // 2), word, INK, font, "mm")
    for row, (label, _) in enumerate(rows):
        draw.multiline_text((6, top + row * tall + (tall - GAP) // 2), label, INK, font, "lm", spacing=2)

    # the frames
    pages = []
    length = max(len(clip) for _, clips in rows for clip in clips)
    for t in range(length):
        page = blank.copy()
        if seen:
            _progress(page, left, t, length, seen)
        for row, (_, clips) in enumerate(rows):
            for column, clip in enumerate(clips):
                frame = Image.fromarray(clip[min(t, len(clip) - 1)].transpose(1, 2, 0))
                frame = frame.resize((size, size), Image.Resampling.NEAREST)
                page.paste(frame, (left + column * pitch, top + row * tall))
        pages.append(np.asarray(page))
    return np.stack(pages)


def _progress(page: Image.Image, left: int, t: int, length: int, seen: int) -> None:
    """How far the film is, and whether the model still looks."""
    word, color = ("context", SEEN) if t < seen else (f"imagined, step {t - seen + 1}", IMAGINED)
    draw = ImageDraw.Draw(page)
    draw.text((left, 0), word, color, ImageFont.load_default(11))
    draw.rectangle((left, HEADER - 3, left + (page.width - left) * (t + 1) // length, HEADER - 2), fill=color)


def save_gif(path: Path, pages: np.ndarray, milliseconds: int) -> None:
    """Write (T, H, W, 3) uint8 as an endless GIF of few colours: half the size, and no one sees the difference."""
    first, *others = [Image.fromarray(page).quantize(128, dither=Image.Dither.NONE) for page in pages]
    first.save(path, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)


def read_gif(path: Path, milliseconds: int) -> Clip:
    """The frames of a GIF whose frames last so long, (T, 3, H, W) uint8.

    Writers join equal neighbours into one longer frame; they are taken apart again.
    """
    clip = []
    with Image.open(path) as image:
        for page in ImageSequence.Iterator(image):
            times = max(1, round(page.info.get("duration", milliseconds) / milliseconds))
            clip += [np.asarray(page.convert("RGB")).transpose(2, 0, 1)] * times
    return np.stack(clip)


# ---------------------------------------------------------------------------- a dataset at a glance


def contact_sheet(dataset: Dataset, columns: int = 12) -> np.ndarray:
    """The first, best, median and worst episode of each source and task, `columns` frames in a row.

    Returns (height, width, 3) uint8: one row of frames an episode, from its first to its last, with
    source, task, place and return at the left. An episode with two places gets one row. Raises
    BadInput when the dataset holds no frames.
    """
    rows = []
    for label, number in (chosen for group in _sources(dataset) for chosen in _chosen(dataset, group).items()):
        at = np.linspace(0, dataset.episode_length[number] - 1, columns).astype(np.int64)
        rows.append((label, dataset.rows("image", dataset.episode_start[number] + at)))  # (C, 3, H, H)
    return strip(rows)


def _sources(dataset: Dataset) -> list[np.ndarray]:
    """The episodes of each source and task, in the order of the parts."""
    info = dataset.episode_info
    names = dict.fromkeys((part.source, part.task) for part in dataset.parts)
    return [np.flatnonzero((info.source == source) & (info.task == task)) for source, task in names]


def _chosen(dataset: Dataset, group: np.ndarray) -> dict[str, int]:
    """Label → episode number: first, best, median and worst of a group, each episode once; of branches any four."""
    info = dataset.episode_info
    if info.cut[group[0]]:
        return {f"branch\n{n - group[0]}": int(n) for n in group[np.linspace(0, len(group) - 1, 4).astype(int)]}
    order = group[np.argsort(info.returns[group], kind="stable")]
    places = {"first": group[0], "best": order[-1], "median": order[(len(order) - 1) // 2], "worst": order[0]}
    named: dict[int, list[str]] = {}
    for place, number in places.items():
        named.setdefault(int(number), []).append(place)
    title = f"{info.source[group[0]]} {info.task[group[0]]}".strip()
    return {f"{title}\n{', '.join(words)}\n{info.returns[n]:.1f}": n for n, words in named.items()}


def save_png(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 image as PNG, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="PNG")


# ---------------------------------------------------------------------------- charts

WIDE, HIGH = 3.6, 2.5  # inches of a panel: at 100 pixels an inch it fits a phone, and two or three a wide page


def panel_paths(path: Path, count: int) -> list[Path]:
    """Where the panels of a chart go: `path` itself for the only one, else a.png → a-1.png, a-2.png, ..."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(count)]


@contextmanager
def chart(path: Path, count: int = 1, height: float = HIGH) -> Iterator[list[Axes]]:
    """The axes of `count` panels, a PNG each at `panel_paths`: side by side they are as many as the page has room for.

    A panel names its lines when there are several; of more than a handful only the first panel does.
    """
    with ExitStack() as stack:
        drawn = [stack.enter_context(figure(p, WIDE, height, STYLE)) for p in panel_paths(path, count)]
        axes = [one.subplots() for one in drawn]
        yield axes
        for number, (one, ax) in enumerate(zip(drawn, axes, strict=True)):
            named = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
            if len(named) > 1 and (len(named) <= MANY or number == 0):
                one.legend(named.values(), named, loc="outside upper left", ncols=2, fontsize=7)


def prediction_error(path: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Error of open-loop prediction by horizon, beside copying the last frame seen."""
    lines = {
        "copy_last_frame": ("copy last frame", COLORS[6], "--"),
        "single_rollout": ("one rollout", COLORS[1], "-"),
        "model": (f"mean of {summary['rollouts']} rollouts", COLORS[0], "-"),
    }
    with chart(path, height=3.0) as (ax,):
        for key, (label, color, style) in lines.items():
            ax.plot(summary["horizon"], summary[key], color=color, linestyle=style, label=label)
        title = f"mean over {summary['windows']} windows"
        ax.set(title=title, xlabel="steps ahead", ylabel="squared error a frame", ylim=(0, None))
    return [path]


def gate_bars(path: Path, gates: Mapping[str, Sequence[float]]) -> list[Path]:
    """Gate p of each TAMF layer (Eq. 5) by prompt: 0 takes the semantic expert, 1 the dynamic one."""
    layers = len(next(iter(gates.values())))
    with chart(path, layers, _bars_height(len(gates))) as axes:
        for i, ax in enumerate(axes):
            _bars(ax, {name: (values[i], 0.0) for name, values in gates.items()}, list(gates))
            ax.axvline(0.5, color="#888888", linewidth=0.8)
            ax.set(title=f"layer {i + 1}: semantic 0, dynamic 1", xlim=(0, 1.12))
    return panel_paths(path, layers)


def reward_traces(path: Path, traces: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> list[Path]:
    """Learned reward (left axis) over the true one (right axis, 0 to 1) along episodes.

    Args:
        traces: {task: {which episode: (learned (T,), true (T,))}}.
    """
    panels = {f"{task}: {name}": pair for task, group in traces.items() for name, pair in group.items()}
    low = min(learned.min() for learned, _ in panels.values())
    high = max(learned.max() for learned, _ in panels.values())
    with chart(path, len(panels)) as axes:
        for ax, (title, (learned, true)) in zip(axes, panels.items(), strict=True):
            ax.plot(learned, color=COLORS[0], linewidth=0.9, label="learned")
            ax.plot([], color=COLORS[1], linewidth=0.9, label="true")  # for the legend
            ax.set(title=title, ylim=(low, high))
            ax.tick_params(axis="y", colors=COLORS[0])
            other = ax.twinx()
            other.plot(true, color=COLORS[1], linewidth=0.9)
            other.set(ylim=(-0.02, 1.02))
            other.tick_params(colors=COLORS[1])
            other.grid(visible=False)
    return panel_paths(path, len(panels))


def counterfactual_rewards(path: Path, curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> list[Path]:
    """Rewards by decisions after the start, a panel a task, a colour a kind of actions: real solid, imagined dashed.

    Args:
        curves: {task: {kind: {"real": (H,), "imagined": (H,), ...}}}.
    """
    with chart(path, len(curves), height=3.0) as axes:
        for ax, (task, kinds) in zip(axes, curves.items(), strict=True):
            for (kind, lines), color in zip(kinds.items(), COLORS, strict=False):
                steps = np.arange(1, len(lines["real"]) + 1)
                ax.plot(steps, lines["real"], color=color, linewidth=1.3, label=kind)
                ax.plot(steps, lines["imagined"], color=color, linewidth=1.3, linestyle="--")
            ax.set(title=task, xlabel="decisions", ylabel="reward")
    return panel_paths(path, len(curves))


def score_bars(path: Path, panels: Mapping[str, Groups]) -> list[Path]:
    """Scores with whiskers: {title: {task: {method: (mean, half-width)}}}, a panel a task.

    A method keeps its place and colour.
    """
    methods = list(dict.fromkeys(m for groups in panels.values() for group in groups.values() for m in group))
    drawn = {f"{title}: {task}": bars for title, groups in panels.items() for task, bars in groups.items()}
    with chart(path, len(drawn), _bars_height(len(methods))) as axes:
        for ax, (title, bars) in zip(axes, drawn.items(), strict=True):
            _bars(ax, bars, methods)
            ax.axvline(0, color="#888888", linewidth=0.8)
            low, high = (1.15 * limit for limit in ax.get_xlim())
            ax.set(title=title, xlim=(min(low, 0.0), max(high, 1.12)))
    return panel_paths(path, len(drawn))


def aggregates(
    path: Path, panels: Mapping[str, Mapping[str, Interval]], profiles: Mapping[str, Interval]
) -> list[Path]:
    """Methods over all tasks: a point with its interval a method, then the share of runs above every score.

    Args:
        panels: {figure: {method: interval}}. profiles: {method: share of runs above each of `LEVELS`}.
    """
    names = list(profiles)
    with chart(path, len(panels) + 1, max(HIGH, _bars_height(len(names)))) as (*axes, last):
        for ax, (title, found) in zip(axes, panels.items(), strict=True):
            for at, (name, color) in enumerate(zip(names, cycle(COLORS), strict=False)):
                if name in found:
                    ax.plot([found[name].low, found[name].high], [at, at], color=color, linewidth=3, alpha=0.5)
                    ax.plot(found[name].value, at, "o", color=color, markersize=5)
            ax.set_yticks(range(len(names)), names)
            ax.set(title=title, xlim=(-0.02, 1.12), ylim=(len(names) - 0.4, -0.6))
        for (name, share), color in zip(profiles.items(), cycle(COLORS), strict=False):
            last.plot(LEVELS, share.value, color=color, linewidth=1.1, label=name)
            last.fill_between(LEVELS, share.low, share.high, color=color, alpha=0.15, linewidth=0)
        last.set(title="profile", xlabel="score above", ylabel="share of runs", ylim=(0, 1.02))
    return panel_paths(path, len(panels) + 1)


def _bars_height(count: int) -> float:
    return 0.7 + 0.26 * count


def _bars(ax: Axes, bars: Mapping[str, tuple[float, float]], names: Sequence[str]) -> None:
    """A bar a name, from the top, with whiskers where there is an error; a name keeps its place and colour."""
    for at, (name, color) in enumerate(zip(names, cycle(COLORS), strict=False)):
        if name in bars:
            mean, error = bars[name]
            drawn = ax.barh(at, mean, 0.7, xerr=error or None, color=color, error_kw={"linewidth": 1, "capsize": 2})
            ax.bar_label(drawn, fmt="%.2f", fontsize=8, padding=2)
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def learning_curves(path: Path, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[Path]:
    """Normalised score of every training episode as a dot and their running mean over `SMOOTH`, one panel a name.

    Args:
        found: {name: (decisions (E,), score (E,))}.
    """
    with chart(path, len(found)) as axes:
        for ax, (name, (decisions, score)) in zip(axes, found.items(), strict=True):
            thousands, width = decisions / 1000, min(SMOOTH, len(score))
            ax.plot(thousands, score, ".", color=COLORS[5], markersize=2.5, markeredgewidth=0)
            mean = np.convolve(score, np.ones(width) / width, "valid")
            ax.plot(thousands[width - 1 :], mean, color=COLORS[0], linewidth=1.3)
            ax.axhline(0, color="#888888", linewidth=0.8)
            limits = min(-0.1, score.min()), max(1.05, score.max())
            ax.set(title=name, xlabel="thousand decisions", ylabel="score", ylim=limits)
    return panel_paths(path, len(found))


def curves(path: Path, logs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> list[Path]:
    """Training curves, one panel a metric, one line a name; several seeds of a name become mean and range.

    Args:
        logs: {name: [rows of metrics.jsonl, one list a seed]}.
    """
    skip = ("step", "seconds")
    keys = list(dict.fromkeys(k for runs in logs.values() for run in runs for row in run for k in row if k not in skip))
    with chart(path, len(keys)) as axes:
        for ax, key in zip(axes, keys, strict=True):
            for (name, runs), color in zip(logs.items(), cycle(COLORS), strict=False):
                series = [_series(run, key) for run in runs if any(key in row for row in run)]
                if series:
                    _band(ax, series, name, color)
            ax.set(title=key)
    return panel_paths(path, len(keys))


def _series(run: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"], row[key]) for row in run if key in row]
    return np.array([s for s, _ in points]), np.array([v for _, v in points])


def _band(ax: Axes, series: Sequence[tuple[np.ndarray, np.ndarray]], name: str, color: str) -> None:
    """Mean line, and the range over seeds on the steps of the first, as far as all of them go."""
    steps = series[0][0]
    steps = steps[steps <= min(s[-1] for s, _ in series)]
    if len(series) == 1 or not len(steps):
        ax.plot(*series[0], color=color, linewidth=1.1, label=name)
        return
    values = np.stack([np.interp(steps, s, v) for s, v in series])
    ax.plot(steps, values.mean(0), color=color, linewidth=1.1, label=f"{name} ({len(series)} seeds)")
    ax.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
