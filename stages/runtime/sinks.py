"""Where a log goes beside metrics.jsonl, by `--log`: TensorBoard or Weights & Biases, both optional."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.runtime.errors import BadInput, nearest

SINKS = {"tensorboard": "bitagent[logs]", "wandb": "bitagent[wandb]"}  # and what installs them
PROJECT = "bitagent"


def check_sink(name: str) -> None:
    """Raise BadInput for a sink that is not known or not installed."""
    if name and name not in SINKS:
        raise BadInput(f"unknown log {name!r}: {nearest(name, SINKS)}")
    if name and find_spec(name) is None:
        raise BadInput(f'--log {name} needs it: pip install "{SINKS[name]}"')


class TensorBoard:
    """Event files in `tensorboard/` beside the log."""

    def __init__(self, folder: Path, start: int, anew: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        if anew:
            for file in place.glob("events.out.tfevents.*"):
                file.unlink()
        self.writer = SummaryWriter(str(place), purge_step=start)  # what is logged again is not shown twice

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of project `bitagent`, named after the log's place; a training that goes on goes on there, too."""

    def __init__(self, folder: Path, anew: bool) -> None:
        import wandb

        known = folder / "wandb.id"
        if anew or not known.exists():
            known.write_text(secrets.token_hex(8))
        name = "/".join(folder.absolute().parts[-4:]).removesuffix(".log")
        self.run = wandb.init(project=PROJECT, name=name, dir=str(folder), id=known.read_text(), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def open_sink(name: str, folder: Path, start: int, anew: bool) -> Any:
    """The sink of that name, None for ''.

    Args:
        start: points of an earlier process at or after this step are replaced.
        anew: nothing of an earlier process counts.
    """
    check_sink(name)
    if name == "wandb":
        return WeightsAndBiases(folder, anew)
    return TensorBoard(folder, start, anew) if name else None
