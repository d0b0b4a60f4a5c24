"""How a joint model is trained and saved: the loop behind the stages `pretrain` and `transfer`.

A `Job` says what is trained from what; `make_model` reuses, resumes or trains it, and writes the model artifact.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages import methods
from stages.backbones import Backbone, backbone_id, load_backbone
from stages.backbones.embeddings import tuned_embeddings
from stages.backbones.tuning import (
    ADAPTER,
    MllmConfig,
    load_tower,
    load_tuned,
    tuned_tensors,
    window_embeddings,
)
from stages.core.origin import sample_semantics
from stages.core.settings import ModelConfig, ObjectiveConfig
from stages.core.world_model import Labels, Noise, WorldModel
from stages.data.episodes import Dataset, held_out_episodes
from stages.data.sampler import Sampler, Windows, data_device, prefetch
from stages.runtime import artifacts, checkpoints, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import PartShare, Run, Section, Share
from stages.runtime.distributed import World, world
from stages.runtime.loop import Metrics, progress, require_finite, seed_everything, stop_signals
from stages.runtime.update import (
    Batch,
    Compile,
    Terms,
    Update,
    annealed,
    load_optimizer_tensors,
    make_optimizer,
    make_update,
    optimizer_tensors,
    set_lr,
    should_compile,
)
from stages.worlds import tasks


class TrainingConfig(Section):
    """Fields of the section `pretrain`; defaults and comments in presets/paper.yaml."""

    backbone: str
    updates: int
    batch: int
    length: int
    lr: float
    anneal: Share
    weight_decay: float
    clip: float
    start_fraction: Share
    holdout: PartShare
    label_quantile: Share
    bf16: bool
    compile: Compile
    log_every: int
    checkpoint_every: int
    objective: ObjectiveConfig


@dataclass(frozen=True)
class Job:
    """One model to make.

    Args:
        method: chooses the grounding and names the artifact, model/<method>-s<seed>.
        data, embeddings: what it is trained on, one of each for every dataset.
        command: the command line that goes on after a stop.
        about: what else decides the content, for the record.
        source: the model whose weights it starts from, and `init`, which carries them over.
        constants: of the method's grounding, see `methods.constants_of`.
        mllm: what is trained of the backbone.
    """

    config: TrainingConfig
    model_config: ModelConfig
    run: Run
    method: str
    data: list[Artifact]
    embeddings: list[Artifact]
    command: str
    about: Mapping[str, Any] = field(default_factory=dict)
    source: Artifact | None = None
    init: Callable[[WorldModel], None] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    mllm: MllmConfig = ADAPTER

    @property
    def path(self) -> Path:
        return self.run.root / "model" / f"{self.method}-s{self.run.seed}"

    @property
    def inputs(self) -> list[Artifact]:
        return [*self.data, *self.embeddings, *([self.source] if self.source else [])]

    @property
    def record(self) -> dict[str, Any]:
        sections = {"pretrain": self.config.model_dump(), "model": self.model_config.model_dump(), **self.mllm.record}
        grounding = {"grounding": dict(self.constants)} if self.constants else {}
        return {**sections, "method": self.method, **grounding, **self.about}


def make_model(job: Job) -> Artifact:
    """The model artifact of a job: the finished one, or trained (from its checkpoint) and saved.

    A model that tuned its backbone also gets the embeddings of its data by the tuned one.
    Raises BadInput when another configuration is there, Interrupted on a signal.
    """
    made = _reuse_or_train(job)
    if job.mllm.in_loop and int(os.environ.get("RANK", "0")) == 0:
        tuned_embeddings(made, job.data, job.run, job.command)
    return made


def _reuse_or_train(job: Job) -> Artifact:
    run, path = job.run, job.path
    found = artifacts.reuse(path, "pretrain", job.record, run.seed, job.inputs, run.fresh, run.renew)
    if found:
        if not run.quiet:
            print(f"reusing {path}")
        return found
    with world(run.device) as place:
        if not place.is_main:
            train(job, place)
            place.barrier()
            return artifacts.load(path, "pretrain")
        with storage.locked(path):
            began, backbone = time.time(), backbone_id(job.embeddings[0], job.config.backbone, run)
            model, tuned, summary = train(job, place)
            made = artifacts.save(
                path,
                "pretrain",
                {"model": model.state_dict(), **({"backbone": tuned} if tuned else {})},
                domain=run.domain,
                config=job.record,
                seed=run.seed,
                inputs=job.inputs,
                resolved=run.resolved,
                began=began,
                extra=describe(job, model, backbone, summary),
            )
            checkpoints.drop(path)
            place.barrier()
            return made


def describe(job: Job, model: WorldModel, backbone: str, summary: dict[str, float]) -> dict[str, Any]:
    """What later stages need to rebuild the model, and its last losses."""
    return {
        "dim_embedding": model.dim_embedding,
        "dim_action": model.dim_action,
        "backbone": job.config.backbone,
        "backbone_id": backbone,
        "mllm": job.mllm.model_dump(),
        "losses": summary,
    }


# ---------------------------------------------------------------------------- data


def make_labels(dataset: Dataset, run: Run, config: TrainingConfig) -> Labels:
    """Prompt embeddings of labelled parts, and the similarity a segment needs to count as showing its prompt.

    The threshold is the `label_quantile` of the similarities within the part, on an even sample of rows.
    """
    known = [bool(part.task) for part in dataset.parts]
    text = torch.zeros(len(known), dataset.dim_embedding)
    threshold = torch.zeros(len(known))
    if any(known):
        backbone = load_backbone(config.backbone, run.root, run.device)
        for i, part in enumerate(dataset.parts):
            if known[i]:
                text[i] = backbone.encode_text([tasks.get_task(run.domain, part.task).prompt])[0].cpu()
                rows = np.linspace(part.first_row, part.last_row - 1, 4096).astype(np.int64)
                e = torch.from_numpy(dataset.rows("embedding", rows)).float()
                threshold[i] = torch.quantile(F.normalize(e, dim=-1) @ text[i], config.label_quantile)
    device = run.device
    return Labels(text.to(device), torch.tensor(known, device=device), threshold.to(device))


# ---------------------------------------------------------------------------- the loop


class JointObjective(nn.Module):
    """The model's loss as a module of the batch alone, so that DistributedDataParallel can wrap it.

    With a `tower`, a backbone in training, e_v is its embedding of the batch's own frames.
    """

    def __init__(
        self,
        model: WorldModel,
        labels: Labels,
        config: ObjectiveConfig,
        noise: Noise,
        tower: Backbone | None = None,
    ) -> None:
        super().__init__()
        self.model, self.labels, self.config, self.noise = model, labels, config, noise
        self.tower = tower
        self.tower_module = tower.owner if tower else None  # a part of this module, as its gradients are averaged too

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        if self.tower:
            batch = {**batch, "semantics": window_embeddings(self.tower, batch["past"], batch["image"])}
        return self.model.pretraining_loss(batch, self.labels, self.config, self.noise)


def train(job: Job, place: World) -> tuple[WorldModel, dict[str, Tensor], dict[str, float]]:
    """The training loop: resumes from a checkpoint, saves one regularly and when a signal asks to stop.

    Returns the model, what was trained of the backbone, and the last losses.
    """
    config, run, path = job.config, job.run, job.path
    dataset = Dataset.open([a.path for a in job.data], run.domain, [a.path for a in job.embeddings])
    seed_everything(run.seed)
    sizes, adapter = (dataset.dim_embedding, dataset.action_dim), job.mllm.train == "adapter"
    model = methods.build(job.method, job.model_config, *sizes, dict(job.constants), adapter)
    if job.init:
        job.init(model)
    model.to(place.device)
    tower = load_tower(job.mllm, config.backbone, job.embeddings[0], run, place.device, job.source)
    freed = [p for p in tower.owner.parameters() if p.requires_grad] if tower else []
    optimizer = make_optimizer([*model.parameters(), *freed], config.lr, config.weight_decay)
    about = {**job.record, "seed": run.seed, "inputs": artifacts.input_ids(job.inputs)}
    labels = make_labels(dataset, run, config)  # before the checkpoint: loading a backbone draws random numbers
    if run.fresh and place.is_main:
        checkpoints.drop(path)
    start = restore(path, about, model, optimizer, tower) if not run.fresh else 0
    lower = f"pretrain.lr={config.lr / 3:.2g}"
    update = build_update(model, labels, optimizer, config, place, tower)
    sampler = Sampler(
        dataset,
        config.batch,
        config.length,
        run.seed,
        Windows(
            config.start_fraction,
            left_out=held_out_episodes(dataset, config.holdout),
            past=tower.window - 1 if tower else 0,
        ),
        keys=("image", "action", "is_first", "embedding"),
        device=data_device(dataset, place.device),
    )
    metrics = Metrics(path.parent / f"{path.name}.log", start + 1) if place.is_main else None
    bar = progress(config.updates, start, "pretrain", "update", run.quiet or not place.is_main)
    values: dict[str, float] = {}
    with stop_signals() as stop, bar:
        batches = prefetch(sampler, start, config.updates, place.rank, place.size, device=str(place.device))
        for step, batch in enumerate(batches, start + 1):
            set_lr(optimizer, config.lr * annealed(step, config.updates, config.anneal))
            terms = update(batch)
            if step % config.log_every == 0 or step == config.updates:
                values = {k: float(v) for k, v in terms.items()}
                require_finite(step, values, checkpoints.folder(path), lower)
                if metrics:
                    metrics.log(step, values)
                bar.set_postfix(image=f"{values['image']:.1f}", kl=f"{values['kl_nats']:.1f}", refresh=False)
            bar.update()
            stopping = place.any(bool(stop)) if step % config.log_every == 0 or place.size == 1 else False
            if place.is_main and step < config.updates and (stopping or step % config.checkpoint_every == 0):
                finite = {k: float(v) for k, v in terms.items()}
                require_finite(step, finite, checkpoints.folder(path), lower)
                checkpoint(path, step, about, model, optimizer, tower)
            if stopping and step < config.updates:
                raise stop.leave(job.command)
    if metrics:
        metrics.close()
    model.conclude(sample_semantics(model, tower, dataset, config.holdout, place.device))
    return model, tuned_tensors(tower) if tower else {}, values


def build_update(
    model: WorldModel,
    labels: Labels,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    place: World,
    tower: Backbone | None = None,
) -> Update:
    """The joint update for one or several processes, compiled and captured where that pays.

    With a backbone in the loop it is neither: a backbone may copy constants to the device while it runs, which no
    graph can capture.
    """
    noise = Noise(place.device, place.rank, place.size)
    objective: nn.Module = JointObjective(model, labels, config.objective, noise, tower)
    if place.size > 1:
        objective = nn.parallel.DistributedDataParallel(objective, find_unused_parameters=True)
    compiled = tower is None and should_compile(config.compile, place.device)
    return make_update(
        objective,
        [(optimizer, config.clip)],
        place.device,
        bf16=config.bf16,
        compiled=compiled,
        captured=compiled and place.size == 1,
    )


def checkpoint(
    path: Path,
    step: int,
    about: dict[str, Any],
    model: WorldModel,
    optimizer: torch.optim.Optimizer,
    tower: Backbone | None,
) -> None:
    """Everything the loop needs to go on bit for bit; the sampler's position is the step itself."""
    groups = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer), "rng": checkpoints.rng_state()}
    if tower:
        groups["backbone"] = tuned_tensors(tower)
    checkpoints.save(path, step, groups, about)


def restore(
    path: Path,
    about: dict[str, Any],
    model: WorldModel,
    optimizer: torch.optim.Optimizer,
    tower: Backbone | None,
) -> int:
    """Load the checkpoint if there is one of this very run; returns the step to go on from."""
    found = checkpoints.load(path, about)
    if found is None:
        return 0
    step, groups = found
    model.load_state_dict(groups["model"])
    if tower:
        load_tuned(tower, groups["backbone"])
    load_optimizer_tensors(optimizer, groups["optimizer"])
    checkpoints.set_rng_state(groups["rng"])
    return step
