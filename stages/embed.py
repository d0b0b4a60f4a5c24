"""Embed: the video-language embedding of the 8-frame window that ends at each frame of every dataset.

    bitagent embed --preset walker --backbone offline
    bitagent embed --preset walker --probe "standing on one leg" --probe "run fast"

Reads runs/<run>/data/*, writes runs/<run>/embeddings/<backbone>/<dataset>. The offline backbone is
trained first, once a run, into runs/<run>/backbone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stages.backbones import Backbone, load_backbone
from stages.backbones.embeddings import EmbeddingJob, FrameSource, compute_embeddings
from stages.backbones.offline.contrast import Lessons, contrastive_loss, draw_batch, prepare
from stages.backbones.offline.tower import Student, TextTower, TowerConfig
from stages.backbones.probe import draw_probe
from stages.data.episodes import Dataset
from stages.data.inputs import find_inputs
from stages.runtime import artifacts, checkpoints, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import PartShare, Run, Section
from stages.runtime.errors import BadInput
from stages.runtime.loop import Metrics, StopRequest, progress, require_finite, seed_everything, stop_signals
from stages.runtime.names import backbone_folder
from stages.runtime.update import (
    fast_bf16,
    load_optimizer_tensors,
    make_optimizer,
    make_update,
    optimizer_tensors,
    set_lr,
)
from stages.worlds import tasks


class OfflineConfig(TowerConfig):
    """Sizes and training of the offline backbone; defaults and comments in presets/paper.yaml."""

    updates: int
    batch: int
    captions: int
    lr: float
    weight_decay: float
    clip: float
    holdout: PartShare
    log_every: int
    checkpoint_every: int


class Config(Section):
    """Section `embed` of the preset; defaults and comments in presets/paper.yaml."""

    backbone: str
    frames: Literal["native", "enlarged"]
    batch: int
    workers: int
    offline: OfflineConfig


@dataclass(frozen=True)
class Training:
    """A tower in training: what an update changes, and what a checkpoint must name."""

    student: Student
    optimizer: torch.optim.Optimizer
    path: Path
    about: dict[str, Any]
    again: str


def run(config: Config, run: Run, *, backbone: str | None = None, probe: Sequence[str] = ()) -> list[Artifact]:
    """Embed every dataset of the run, reusing what is finished; then draw the probe sheet if texts are given.

    Args:
        backbone: offline, internvideo2, a hub id or a folder; None for the preset's.
        probe: texts to look for in the datasets.

    Raises:
        BadInput: no data, a backbone that cannot be loaded, embeddings made another way.
        Interrupted: stopped by a signal, after saving.
    """
    name = backbone or config.backbone
    data, _ = find_inputs(run)
    if name == "offline":
        train_offline(config.offline, run, data)
    loaded = load_backbone(name, run.root, run.device, config.frames == "enlarged")
    inputs = [artifacts.load(run.root / "backbone", "backbone")] if name == "offline" else []
    made = [embed_dataset(config, run, loaded, name, source, inputs) for source in data]
    if probe:
        dataset = Dataset.open([a.path for a in data], run.domain, [a.path for a in made])
        sheet = draw_probe(dataset, loaded, list(probe), run.root / "report" / f"probe-{backbone_folder(name)}.png")
        if not run.quiet:
            print(f"closest clips and similarity curves: {sheet}")
    return made


# ---------------------------------------------------------------------------- the offline tower


def train_offline(config: OfflineConfig, run: Run, data: list[Artifact]) -> Artifact:
    """Train the offline backbone of this run, or reuse it.

    A finished one is reused whatever datasets were added or moved away since; `--fresh` trains it again on all.
    Raises BadInput when no dataset holds both frames and physics states.
    """
    path = run.root / "backbone"
    record = config.model_dump()
    usable = [a for a in data if a.meta["extra"]["state_dim"] and a.meta["extra"]["image_size"]]
    if artifacts.finished(path, run.fresh):
        found, here = artifacts.load(path, "backbone", domain=run.domain), artifacts.input_ids(data)
        same = all(here.get(key, known) == known for key, known in found.meta["inputs"].items())
        if same and found.meta["config"] == storage.plain(record):
            if not run.quiet:
                print(f"reusing {path}")
            return artifacts.current(found)
        # The settings differ, or a dataset it learned from was made again: refuse, or go on to make it again, too.
        artifacts.reuse(path, "backbone", record, found.meta["seed"], usable, False, run.renew)
    if not usable:
        raise BadInput(
            f"no dataset of {run.root} holds both frames and physics states, and the offline backbone learns from "
            f"them; collect some with: {run.command('collect', '--source', 'random')}"
        )
    with storage.locked(path):
        began = time.time()
        seed_everything(run.seed)
        sentences = TextTower(run.device)
        lessons = prepare(Dataset.open([a.path for a in usable], run.domain), config.holdout, sentences)
        student = Student(config).to(run.device)
        about = {"config": record, "seed": run.seed, "inputs": artifacts.input_ids(usable)}
        optimizer = make_optimizer(list(student.parameters()), config.lr, config.weight_decay)
        again = run.command("embed", "--backbone", "offline")
        with stop_signals() as stop:
            last = fit(Training(student, optimizer, path, about, again), lessons, config, run, stop)
            share = (lessons.membership > 0.5).mean(0)
            prompts = [t.prompt for t in tasks.TASKS if t.domain == run.domain]  # kept: no later stage needs MiniLM
            made = artifacts.save(
                path,
                "backbone",
                {"model": student.state_dict(), "sentences": {"vectors": sentences.encode(prompts)}},
                domain=run.domain,
                config=record,
                seed=run.seed,
                inputs=usable,
                resolved=run.resolved,
                began=began,
                extra={
                    "text_tower": sentences.hash,
                    "dim": config.dim,
                    "sentences": prompts,
                    "captions": sum(len(s) for s in lessons.sentences),
                    "concept_share": {c.name: round(float(s), 4) for c, s in zip(lessons.concepts, share, strict=True)},
                    "losses": last,
                },
            )
            checkpoints.drop(path)
            if stop:  # during the last update, or while it was saved: datasets wait to be embedded
                raise stop.leave(again)
        return made


def fit(training: Training, lessons: Lessons, config: OfflineConfig, run: Run, stop: StopRequest) -> dict[str, float]:
    """The training loop; every batch is a function of (seed, step), so a resumed run goes on bit for bit.

    Returns the losses of the last update. Nothing is saved after it, so that a resumed run has them, too.
    """
    device = torch.device(run.device)
    if run.fresh:
        checkpoints.drop(training.path)
    start = restore(training)
    bf16 = fast_bf16(run.device)
    update = make_update(
        lambda batch: contrastive_loss(training.student, dict(batch), bf16),
        [(training.optimizer, config.clip)],
        device,
        bf16=False,  # the loss casts the video tower alone
        compiled=False,
    )
    metrics = Metrics(training.path.parent / f"{training.path.name}.log", start)
    bar = progress(config.updates, start, "backbone", "update", run.quiet)
    last: dict[str, float] = {}
    lower = f"embed.offline.lr={config.lr / 3:.2g}"
    with bar:
        for step in range(start, config.updates):
            set_lr(training.optimizer, config.lr * schedule(step, config.updates))
            batch = draw_batch(lessons, run.seed, step, config.batch, config.captions)
            terms = update({k: v.to(device) for k, v in batch.items()})
            bar.update()
            done = step + 1 == config.updates
            if step % config.log_every == 0 or done:
                last = {k: float(v) for k, v in terms.items()}
                require_finite(step, last, checkpoints.folder(training.path), lower)
                metrics.log(step, last)
                bar.set_postfix(loss=f"{last['loss']:.3f}")
            if not done and (stop or (step + 1) % config.checkpoint_every == 0):
                finite = {k: float(v) for k, v in terms.items()}
                require_finite(step, finite, checkpoints.folder(training.path), lower)
                save(training, step + 1)
                if stop:
                    raise stop.leave(training.again)
    metrics.close()
    return last


def schedule(step: int, updates: int) -> float:
    """Share of the learning rate: a short linear warm-up, then a half cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, min(50, updates // 10)))
    return warm * 0.5 * (1.0 + math.cos(math.pi * step / updates))


def save(training: Training, step: int) -> None:
    tensors = {"model": training.student.state_dict(), "optimizer": optimizer_tensors(training.optimizer)}
    checkpoints.save(training.path, step, tensors, training.about)


def restore(training: Training) -> int:
    """Continue from this tower's checkpoint when there is one; returns the step to go on with."""
    found = checkpoints.load(training.path, training.about)
    if found is None:
        return 0
    step, tensors = found
    training.student.load_state_dict(tensors["model"])
    load_optimizer_tensors(training.optimizer, tensors["optimizer"])
    return step


# ---------------------------------------------------------------------------- embedding


def embed_dataset(
    config: Config, run: Run, backbone: Backbone, name: str, source: Artifact, inputs: list[Artifact]
) -> Artifact:
    """Write the sidecar embeddings of one dataset, going on from a stopped attempt."""
    path = run.root / "embeddings" / backbone_folder(name) / source.path.name
    found = embedded(path, source, backbone) if artifacts.finished(path, run.fresh) else None
    if found:
        if not run.quiet:
            print(f"reusing {path}")
        return artifacts.current(found)
    with storage.locked(path):
        dataset = Dataset.open([source.path], run.domain)
        frames = FrameSource(dataset, backbone.frame_size, config.workers, backbone.enlarged)
        again = run.command("embed", "--backbone", name)
        job = EmbeddingJob(path, frames, name, backbone.id, [source, *inputs], config.batch, again)
        # Refuse others; but the offline backbone is an input: made again, it has another id.
        if not (run.renew and inputs):
            artifacts.reuse(path, "embed", job.record, source.meta["seed"], job.inputs, run.fresh, run.renew)
        return compute_embeddings(job, backbone, run)


def embedded(path: Path, source: Artifact, backbone: Backbone) -> Artifact | None:
    """The finished embeddings of a dataset, imported ones included, when made by this very backbone."""
    if not path.exists():
        return None
    found = artifacts.load(path, "embed", domain=source.domain)
    same = found.meta["extra"].get("backbone_id", backbone.id) == backbone.id
    return found if same and source.id in found.meta["inputs"].values() else None
