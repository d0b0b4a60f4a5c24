"""Scores over tasks and seeds together, with stratified-bootstrap intervals (Agarwal et al. 2021).

Scores come as {task: one score a seed}; seeds are resampled within their task, so an interval needs two of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
LEVELS = np.linspace(0.0, 1.1, 111)  # scores at which a profile is drawn

Scores = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Interval:
    """A figure, or an array of them, with its confidence interval (percentiles of the bootstrap)."""

    value: Any
    low: Any
    high: Any

    def text(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def interquartile_mean(scores: Scores) -> Interval:
    """Mean of the middle half of all runs together."""

    def middle(*samples: np.ndarray) -> Any:
        from scipy.stats import trim_mean  # takes a second to import, and every stage imports this module

        return trim_mean(np.concatenate(samples, -1), 0.25, axis=-1)

    return _interval([*scores.values()], middle)


def mean_score(scores: Scores) -> Interval:
    """Mean over tasks of the mean over their seeds."""
    return _interval([*scores.values()], lambda *samples: np.mean([s.mean(-1) for s in samples], 0))


def probability_of_improvement(ours: Scores, theirs: Scores) -> Interval:
    """How often a run of ours is better than one of theirs at the same task, mean over tasks; a tie counts half."""

    def better(*samples: np.ndarray) -> Any:
        pairs = zip(samples[: len(ours)], samples[len(ours) :], strict=True)
        return np.mean([_wins(x, y) for x, y in pairs], 0)

    return _interval([*ours.values(), *(theirs[task] for task in ours)], better)


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The share of pairs of seeds in which x (..., S) is better than y (..., R): (...)."""
    a, b = x[..., :, None], y[..., None, :]
    return ((a > b) + 0.5 * (a == b)).mean((-2, -1))


def profile(scores: Scores) -> Interval:
    """The share of runs whose score is above each of `LEVELS`, mean over tasks: (L,) each."""

    def share(*samples: np.ndarray) -> Any:
        return np.mean([(s[..., None, :] > LEVELS[:, None]).mean(-1) for s in samples], 0)

    return _interval([*scores.values()], share)


def _interval(groups: Sequence[Sequence[float]], statistic: Callable[..., Any]) -> Interval:
    """A statistic of samples (..., S), one a task, that reduces their last axis; each is resampled for itself."""
    rng = np.random.default_rng(0)
    samples = [np.asarray(group, np.float64) for group in groups]
    drawn = statistic(*(s[rng.integers(len(s), size=(RESAMPLES, len(s)))] for s in samples))  # (RESAMPLES, ...)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return Interval(statistic(*samples), low, high)
