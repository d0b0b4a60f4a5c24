"""What every long loop shares: signals that ask for a stop, a metrics file, a progress bar, a NaN guard."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stages.runtime import logs
from stages.runtime.errors import BadInput, Interrupted
from stages.runtime.storage import replace_file


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
    """Appends one JSON object a line to `metrics.jsonl`; mirrors to TensorBoard when installed.

    On resume, lines at or after `start_step` are dropped, so a step is never logged twice.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [json.dumps(row) for row in logs.read(self.path) if row["step"] < start_step]
        replace_file(self.path, lambda draft: draft.write_text("".join(line + "\n" for line in kept)))
        self.file = self.path.open("a")
        self.board = _tensorboard(folder)
        self.began = time.time()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write plain floats; `seconds` since this process began is added."""
        row = {"step": step, "seconds": round(time.time() - self.began, 3)}
        row.update({k: round(float(v), 6) for k, v in values.items()})
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(key, float(value), step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # optional: the JSON lines hold everything
        return None
    return SummaryWriter(str(folder / "tensorboard"))


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
