"""Embed: the video-language embedding of the 8-frame window that ends at each frame of every dataset.

    bitagent embed --preset walker --backbone offline
    bitagent embed --preset walker --probe "standing on one leg" --probe "run fast"

Reads runs/<run>/data/*, writes runs/<run>/embeddings/<backbone>/<dataset>. The offline backbone is
trained first, once a run, into runs/<run>/backbone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from stages.backbones import Backbone, load_backbone
from stages.backbones.embeddings import EmbeddingJob, FrameSource, compute_embeddings
from stages.backbones.offline.contrast import contrastive_loss, draw_lesson, prepare_lessons
from stages.backbones.offline.tower import Student, TextTower, TowerConfig
from stages.backbones.probe import draw_probe
from stages.data.episodes import Dataset
from stages.data.inputs import find_inputs
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact, Recipe
from stages.runtime.checkpoints import Resumable
from stages.runtime.config import PartShare, Run, Section
from stages.runtime.distributed import World
from stages.runtime.errors import BadInput
from stages.runtime.loop import Loop, seed_everything
from stages.runtime.names import backbone_folder
from stages.runtime.update import (
    fast_bf16,
    make_optimizer,
    make_update,
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
    stride: int
    workers: int
    offline: OfflineConfig


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
    usable = [a for a in data if a.meta["extra"]["state_dim"] and a.meta["extra"]["image_size"]]
    if reused := finished_tower(path, config, run, data, usable):
        if not run.quiet:
            print(f"reusing {path}")
        return reused
    if not usable:
        raise BadInput(
            f"no dataset of {run.root} holds both frames and physics states, and the offline backbone learns from "
            f"them; collect some with: {run.command('collect', '--source', 'random')}"
        )
    recipe, command = (
        Recipe(run, path, "backbone", config.model_dump(), usable),
        run.command("embed", "--backbone", "offline"),
    )
    with storage.locked(path):
        # Inputs: every window with its captions' vectors, by the frozen text tower.
        seed_everything(run.seed)
        sentences = TextTower(run.device)
        lessons = prepare_lessons(Dataset.open([a.path for a in usable], run.domain), config.holdout, sentences)

        # Model: the video tower and a linear map of the sentences' vectors.
        device, bf16 = torch.device(run.device), fast_bf16(run.device)
        student = Student(config).to(device)
        optimizer = make_optimizer(list(student.parameters()), config.lr, config.weight_decay)
        update = make_update(
            lambda batch: contrastive_loss(student, dict(batch), bf16),
            [(optimizer, config.clip)],
            device,
            bf16=False,  # the loss casts the video tower alone
            compiled=False,
        )

        trained = Resumable(model=student, optimizer=optimizer)

        # Loop: every batch is a function of (seed, step), so a resumed run goes on bit for bit.
        with Loop(recipe, config, World(0, 1, device), command, ("embed.offline.lr", config.lr)) as loop:
            loop.resume(trained.load)
            for step in loop.steps():
                set_lr(optimizer, config.lr * schedule(step - 1, config.updates))
                batch = draw_lesson(lessons, run.seed, step - 1, config.batch, config.captions)
                terms = update({k: v.to(device) for k, v in batch.items()})
                loop.after(step, terms, trained.tensors)

            # Artifact: with the tasks' prompts as vectors, so that no later stage needs the text tower for them.
            share = (lessons.membership > 0.5).mean(0)
            prompts = [t.prompt for t in tasks.TASKS if t.domain == run.domain]
            made = recipe.save(
                {"model": student.state_dict(), "sentences": {"vectors": sentences.encode(prompts)}},
                {
                    "text_tower": sentences.hash,
                    "dim": config.dim,
                    "sentences": prompts,
                    "captions": sum(len(s) for s in lessons.sentences),
                    "concept_share": {c.name: round(float(s), 4) for c, s in zip(lessons.concepts, share, strict=True)},
                    "losses": loop.values,
                },
            )
            if loop.stop:  # during the last update, or while it was saved: datasets wait to be embedded
                raise loop.stop.leave(command)
        return made


def finished_tower(
    path: Path, config: OfflineConfig, run: Run, data: list[Artifact], usable: list[Artifact]
) -> Artifact | None:
    """The finished backbone of the run, made with this configuration from datasets that have not changed since."""
    if not artifacts.finished(path, run.fresh):
        return None
    found = artifacts.load(path, "backbone", domain=run.domain)
    here, record = artifacts.input_ids(data), config.model_dump()
    same = all(here.get(key, known) == known for key, known in found.meta["inputs"].items())
    if same and found.meta["config"] == storage.plain(record):
        return artifacts.current(found)
    # The settings differ, or a dataset it learned from was made again: refuse, or go on to make it again, too.
    return artifacts.reuse(path, "backbone", record, found.meta["seed"], usable, False, run.renew)


def schedule(step: int, updates: int) -> float:
    """Share of the learning rate at update `step` from 0: a short linear warm-up, then a half cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, min(50, updates // 10)))
    return warm * 0.5 * (1.0 + math.cos(math.pi * step / updates))


# ---------------------------------------------------------------------------- embedding


def embed_dataset(
    config: Config, run: Run, backbone: Backbone, name: str, source: Artifact, inputs: list[Artifact]
) -> Artifact:
    """Write the sidecar embeddings of one dataset, going on from a stopped attempt."""
    path = run.root / "embeddings" / backbone_folder(name) / source.path.name
    found = embedded(path, source, backbone, config.stride) if artifacts.finished(path, run.fresh) else None
    if found:
        if not run.quiet:
            print(f"reusing {path}")
        return artifacts.current(found)
    with storage.locked(path):
        dataset = Dataset.open([source.path], run.domain)
        frames = FrameSource(dataset, backbone.frame_size, config.workers, backbone.enlarged)
        again = run.command("embed", "--backbone", name)
        job = EmbeddingJob(path, frames, name, backbone.id, [source, *inputs], config.batch, again, config.stride)
        # Refuse others; but the offline backbone is an input: made again, it has another id.
        if not (run.renew and inputs):
            artifacts.reuse(path, "embed", job.record, source.meta["seed"], job.inputs, run.fresh, run.renew)
        return compute_embeddings(job, backbone, run)


def embedded(path: Path, source: Artifact, backbone: Backbone, stride: int) -> Artifact | None:
    """The finished embeddings of a dataset, imported ones included, when made by this very backbone, of every frame or
    at this stride."""
    if not path.exists():
        return None
    found = artifacts.load(path, "embed", domain=source.domain)
    same = found.meta["extra"].get("backbone_id", backbone.id) == backbone.id
    same = same and found.meta["config"].get("stride", 1) in (1, stride)
    return found if same and source.id in found.meta["inputs"].values() else None
