"""Datasets that are not played but derived: frames from stored states, and imported recordings."""

from __future__ import annotations

import os
from pathlib import Path

from stages.core import artifacts
from stages.core.artifacts import Artifact
from stages.core.config import Run
from stages.core.derive import render_dataset
from stages.core.errors import BadInput
from stages.core.genrl_import import import_genrl
from stages.core.tasks import get_task

MODEL_SIZE = 64
MAX_NAMED = 10


def render(source: Path, run: Run, *, size: int, camera: int | None, workers: int | None) -> Artifact:
    """Make frames from the states of the dataset at `source`.

    The frames a model trains on (64 pixels, the domain's camera) become data/<name>; any others go to
    frames/<name>-<size>, where pretraining does not look for them.
    """
    if not 16 <= size <= 1024:
        raise BadInput(f"--size {size} is not a usable frame size: give 16 to 1024 pixels")
    found = artifacts.load(source, "collect", domain=run.domain)
    path = run.root / "data" / source.name
    if size != MODEL_SIZE or camera is not None or path.resolve() == source.resolve():
        view = "" if camera is None else f"-camera{camera}"
        path = run.root / "frames" / f"{source.name}-{size}{view}"
    made = render_dataset(
        found,
        path,
        size,
        camera,
        workers or os.cpu_count() or 1,
        resolved=run.resolved,
        fresh=run.fresh,
        quiet=run.quiet,
    )
    if not run.quiet:
        print(f"{path}: {made.meta['extra']['frames']} frames of {size}×{size}")
    return made


def import_recordings(folder: Path, run: Run, *, task: str | None, strict: bool, workers: int | None) -> Artifact:
    """Read GenRL's .npz episodes into data/imported[-task], and their embeddings when all have them."""
    if not folder.is_dir():
        raise BadInput(f"--import {folder} is not a folder; give the folder of a GenRL dataset")
    name = f"imported-{get_task(run.domain, task).name}" if task else "imported"
    made, embeddings, skipped = import_genrl(
        folder, run.root / "data" / name, run.root / "embeddings" / "internvideo2" / name,
        domain=run.domain, task=task or "", strict=strict, seed=run.seed, workers=workers or os.cpu_count() or 1,
        resolved=run.resolved, fresh=run.fresh, quiet=run.quiet,
    )  # fmt: skip
    for skip in skipped[:MAX_NAMED]:
        print(f"skipped {skip.file}: {skip.reason}")
    if len(skipped) > MAX_NAMED:
        print(f"... and {len(skipped) - MAX_NAMED} more")
    if not run.quiet:
        extra = made.meta["extra"]
        also = "with embeddings" if embeddings else f"without embeddings: make them with {run.command('embed')}"
        print(f"{made.path}: {extra['episodes']} episodes, {extra['frames']} frames, {len(skipped)} skipped, {also}")
    return made
