"""The plumbing of a long training, so that a stage's loop holds the learning alone.

with Loop(recipe, config, place, command, rate=("pretrain.lr", config.lr)) as loop:
    loop.resume(load)                                     # load(groups) puts a checkpoint's tensors back
    for step, batch in zip(loop.steps(), batches):        # batches from loop.start on
        terms = update(batch)
        loop.after(step, terms, tensors)                  # log, guard, save, stop
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stages.runtime import checkpoints, logs
from stages.runtime.artifacts import Recipe
from stages.runtime.checkpoints import Groups
from stages.runtime.distributed import World
from stages.runtime.errors import BadInput, Interrupted
from stages.runtime.sinks import open_sink
from stages.runtime.storage import replace_file

UNTIMED, TIMED = 5, 20  # updates: those that warm up, and those behind an estimate


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class StopRequest:
    """Set by SIGINT or SIGTERM; loops look at it between updates and save before they leave."""

    signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def leave(self, how_to_resume: str) -> Interrupted:
        """The exception that ends the stage; `how_to_resume` is the command that continues it."""
        assert self.signum is not None
        name = signal.Signals(self.signum).name
        return Interrupted(self.signum, f"stopped by {name}, progress saved", how_to_resume)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT/SIGTERM into a polite request; a second one leaves at once.

    Leaving at once harms nothing: whatever is read later was renamed into place whole.
    """
    request = StopRequest()

    def handle(signum: int, frame: FrameType | None) -> None:
        if request:
            os._exit(128 + signum)
        request.signum = signum

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)


class Metrics:
    """Appends one JSON object a line to `metrics.jsonl`, and to a sink of `--log`, see runtime/sinks.py.

    On resume, lines at or after `start_step` are dropped, so a step is never logged twice.
    """

    def __init__(self, folder: Path, start_step: int = 0, sink: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [json.dumps(row) for row in logs.read_log(self.path) if row["step"] < start_step]
        replace_file(self.path, lambda draft: draft.write_text("".join(line + "\n" for line in kept)))
        self.file = self.path.open("a")
        self.sink = open_sink(sink, folder, start_step, anew=not kept)
        self.began = time.time()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write plain floats; `seconds` since this process began is added."""
        row = {"step": step, "seconds": round(time.time() - self.began, 3)}
        row.update({k: round(float(v), 6) for k, v in values.items()})
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.sink:
            self.sink.log(step, {key: float(value) for key, value in values.items()})

    def close(self) -> None:
        self.file.close()
        if self.sink:
            self.sink.close()


def duration(minutes: float) -> str:
    """0.2 → '12 s', 12 → '12 min', 90 → '1.5 h'."""
    if minutes < 1.5:
        return f"{round(minutes * 60)} s"
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def progress(total: int, initial: int, desc: str, unit: str, quiet: bool) -> tqdm[Any]:
    """The one progress bar style: figures that matter as postfix, with rate and ETA."""
    return tqdm(total=total, initial=initial, desc=desc, unit=unit, disable=quiet, dynamic_ncols=True, mininterval=1.0)


def require_finite(step: int, terms: Mapping[str, float], checkpoint: Path | None, lower: str) -> None:
    """Stop when a loss is NaN or infinite, naming the step, the terms and the way on.

    `checkpoint` is where the last good one would be; `lower` sets a lower learning rate, e.g. 'pretrain.lr=3e-5'.
    """
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    if not bad:
        return
    shown = ", ".join(f"{k}={v:.3g}" for k, v in terms.items())
    there = checkpoint is not None and checkpoint.exists()
    kept = f"the last good checkpoint is {checkpoint}" if there else "no checkpoint was written yet"
    raise BadInput(
        f"loss {', '.join(bad)} became non-finite at step {step} ({shown}); {kept}; "
        f"try again with a lower learning rate: --set {lower}"
    )


# ---------------------------------------------------------------------------- the loop of a stage


class Schedule(Protocol):
    """What a loop reads of a stage's section: updates in all, and after how many it logs and saves."""

    @property
    def updates(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...


class Loop:
    """Resume, signals, log, NaN guard, checkpoint and bar of one training; a context manager. Steps count from 1.

    Args:
        recipe: of the artifact that the training makes; a checkpoint is continued when its config, seed and inputs are
            the same, and dropped when the run is `fresh`.
        config: how many updates, and when to log and to save.
        place: this process among those that train together; the first one writes.
        command: the command line that goes on after a stop.
        rate: key and value of the learning rate, which a non-finite loss says to lower.

    `start` is the number of updates that are done already, `values` the terms last looked at.
    """

    def __init__(self, recipe: Recipe, config: Schedule, place: World, command: str, rate: tuple[str, float]) -> None:
        self.recipe, self.config, self.place, self.command = recipe, config, place, command
        self.title = f"{rate[0].split('.')[0]} {recipe.path.name}"
        self.lower = f"{rate[0]}={rate[1] / 3:.2g}"
        self.start, self.values = 0, dict[str, float]()
        self.metrics: Metrics | None = None
        self.bar: tqdm[Any] | None = None

    def __enter__(self) -> Loop:
        self._signals = stop_signals()
        self.stop = self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.__exit__(kind, error, trace)
        for part in (self.bar, self.metrics):
            if part is not None:
                part.close()

    def resume(self, load: Callable[[Groups], None]) -> None:
        """Go on from the checkpoint of this very training, if there is one: `load` puts its tensors back."""
        if self.recipe.run.fresh:
            if self.place.is_main:
                checkpoints.drop(self.recipe.path)
            return
        found = checkpoints.read(self.recipe.path, self.recipe.about)
        if found:
            self.start, groups = found
            rng = groups.pop("rng")
            load(groups)
            checkpoints.set_rng_state(rng)

    def steps(self) -> Iterator[int]:
        """The numbers of the updates that are left, with a bar over them."""
        path, updates, main = self.recipe.path, self.config.updates, self.place.is_main
        log = path.parent / f"{path.name}.log"
        self.metrics = Metrics(log, self.start + 1, self.recipe.run.log) if main else None
        self.bar = progress(updates, self.start, self.title, "update", self.recipe.run.quiet or not main)
        yield from range(self.start + 1, updates + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of the log."""
        if self.metrics:
            self.metrics.log(step, values)

    def after(
        self, step: int, terms: Mapping[str, Tensor], tensors: Callable[[], Groups], show: tuple[str, ...] = ("loss",)
    ) -> None:
        """Log the terms, refuse them when they are not finite, save, and leave when a signal asked to.

        Nothing is saved after the last update: its artifact comes next.

        Args:
            tensors: gives everything that the training goes on from bit for bit, but random states, which are added.
            show: the terms that the bar shows, of those that there are.
        Raises:
            BadInput: a term is not finite. Interrupted: stopped by a signal, after saving.
        """
        assert self.bar is not None, "steps() opens it"
        c, last = self.config, step == self.config.updates
        logging = last or step % c.log_every == 0
        if logging:
            self._look(step, terms)
            self.log(step, self.values)
            self.bar.set_postfix({k: f"{self.values[k]:.3g}" for k in show if k in self.values}, refresh=False)
        self.bar.update()
        self._estimate(step)
        stopping = not last and self.place.stops_at(step, bool(self.stop))
        saving = not last and (stopping or step % c.checkpoint_every == 0)
        if saving and not logging:
            self._look(step, terms)
        if saving and self.place.is_main:
            groups = {**tensors(), "rng": checkpoints.rng_state()}
            checkpoints.write(self.recipe.path, step, groups, self.recipe.about)
        if stopping:
            raise self.stop.leave(self.command)

    def _estimate(self, step: int) -> None:
        """Say once, after the first updates have been timed, how long the others take, when that is a while."""
        done = step - self.start
        if done == UNTIMED:
            self.timed_from = time.monotonic()
        elif done == UNTIMED + TIMED and self.bar is not None and not self.bar.disable:
            each = (time.monotonic() - self.timed_from) / TIMED
            left = each * (self.config.updates - step) / 60
            if left >= 1:
                self.bar.write(f"{self.title}: {each:.2g} s an update here, about {duration(left)} left")

    def _look(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Read the terms. When one is not finite in any process all of them leave: none waits for another."""
        self.values = {name: float(value) for name, value in terms.items()}
        if self.place.any(not all(map(math.isfinite, self.values.values()))):
            require_finite(step, self.values, checkpoints.folder(self.recipe.path), self.lower)
            raise BadInput(f"a loss became non-finite at step {step} in another process: see its message")
