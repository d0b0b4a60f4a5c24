"""Pretrain: the world model, TAMF, the text imagination and the MLLM adapter, jointly (Section 3.3, Eq. 11).

    bitagent pretrain --preset walker
    torchrun --nproc-per-node 8 -m bitagent_cli pretrain --preset walker

Reads runs/<run>/data/* and runs/<run>/embeddings/<backbone>/*, writes runs/<run>/model/<method>-s<seed>.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core import artifacts, tasks
from stages.core.agent import JointModel, ModelConfig, Noise
from stages.core.artifacts import Artifact
from stages.core.backbones import load_backbone
from stages.core.config import Run, Section
from stages.core.distributed import World, world
from stages.core.episodes import Dataset
from stages.core.errors import BadInput
from stages.core.objective import Labels, ObjectiveConfig, joint_loss
from stages.core.running import Metrics, progress, require_finite, seed_everything, stop_signals
from stages.core.sampler import Sampler, prefetch
from stages.core.training import (
    Batch,
    Compile,
    Terms,
    Update,
    load_optimizer_tensors,
    make_optimizer,
    make_update,
    optimizer_tensors,
    should_compile,
)


class Config(Section):
    """Section `pretrain` of the preset; defaults and comments in presets/paper.yaml."""

    backbone: str
    updates: int
    batch: int
    length: int
    lr: float
    weight_decay: float
    clip: float
    start_fraction: float
    label_quantile: float
    bf16: bool
    compile: Compile
    log_every: int
    checkpoint_every: int
    objective: ObjectiveConfig


class JointObjective(nn.Module):
    """The joint loss as a module of the batch alone, so that DistributedDataParallel can wrap it."""

    def __init__(self, model: JointModel, labels: Labels, config: ObjectiveConfig, noise: Noise) -> None:
        super().__init__()
        self.model, self.labels, self.config, self.noise = model, labels, config, noise

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        return joint_loss(self.model, batch, self.labels, self.config, self.noise)


def run(config: Config, model_config: ModelConfig, run: Run, *, method: str = "bitagent") -> Artifact:
    """Train and save the joint model. Raises BadInput for missing data, Interrupted on a signal."""
    path = run.root / "model" / f"{method}-s{run.seed}"
    data, embeddings = find_inputs(run, config.backbone)
    inputs = [*data, *embeddings]
    record = {"pretrain": config.model_dump(), "model": model_config.model_dump(), "method": method}
    found = artifacts.reuse(path, "pretrain", record, run.seed, inputs, run.fresh)
    if found:
        if not run.quiet:
            print(f"reusing {path}")
        return found
    with world(run.device) as place:
        if not place.is_main:
            train(config, model_config, run, place, path, data, embeddings, record)
            place.barrier()
            return artifacts.load(path, "pretrain")
        with artifacts.locked(path):
            began = time.time()
            model, summary = train(config, model_config, run, place, path, data, embeddings, record)
            made = artifacts.save(
                path, "pretrain", {"model": model.state_dict()}, domain=run.domain, config=record, seed=run.seed,
                inputs=inputs, resolved=run.resolved, began=began, extra=describe(model, config.backbone, embeddings, summary),
            )  # fmt: skip
            artifacts.drop_checkpoint(path)
            place.barrier()
            return made


def describe(model: JointModel, backbone: str, embeddings: list[Artifact], summary: dict[str, float]) -> dict[str, Any]:
    """What later stages need to rebuild the model, and its last losses."""
    return {
        "dim_embedding": model.dim_embedding, "dim_action": model.dim_action, "backbone": backbone,
        "backbone_id": embeddings[0].meta["extra"]["backbone_id"], "losses": summary,
    }  # fmt: skip


def find_inputs(run: Run, backbone: str) -> tuple[list[Artifact], list[Artifact]]:
    """Every finished dataset of the run and its embeddings. Raises BadInput naming what makes them."""
    data_folder, slug = run.root / "data", backbone.replace("/", "--")
    paths = sorted(p.parent for p in data_folder.glob("*/artifact.json") if not p.parent.name.startswith("."))
    if not paths:
        raise BadInput(f"no data in {data_folder}; make it with: {run.command('collect')}")
    data = [artifacts.load(p, "collect", domain=run.domain) for p in paths]
    embed = run.command("embed", "--backbone", backbone)
    made = [
        artifacts.load(run.root / "embeddings" / slug / p.name, "embed", domain=run.domain, made_by=embed) for p in paths
    ]
    return data, made


def make_labels(dataset: Dataset, run: Run, config: Config) -> Labels:
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


def train(
    config: Config,
    model_config: ModelConfig,
    run: Run,
    place: World,
    path: Path,
    data: list[Artifact],
    embeddings: list[Artifact],
    record: dict[str, Any],
) -> tuple[JointModel, dict[str, float]]:
    """The training loop: resumes from a checkpoint, saves one regularly and when a signal asks to stop."""
    dataset = Dataset.open([a.path for a in data], run.domain, [a.path for a in embeddings])
    seed_everything(run.seed)
    model = JointModel(model_config, dataset.dim_embedding, dataset.action_dim).to(place.device)
    optimizer = make_optimizer(list(model.parameters()), config.lr, config.weight_decay)
    about = {**record, "seed": run.seed, "inputs": artifacts.input_ids([*data, *embeddings])}
    start = restore(path, about, model, optimizer) if not run.fresh else 0
    update = build_update(model, make_labels(dataset, run, config), optimizer, config, place)
    batch = config.batch // place.size
    if batch * place.size != config.batch:
        raise BadInput(f"pretrain.batch {config.batch} is not a multiple of {place.size} processes; set another batch")
    sampler = Sampler(dataset, config.batch, config.length, run.seed, start_fraction=config.start_fraction,
                      keys=("image", "action", "is_first", "embedding"))  # fmt: skip
    metrics = Metrics(path.parent / f"{path.name}.log", start) if place.is_main else None
    bar = progress(config.updates, start, "pretrain", "update", run.quiet or not place.is_main)
    values: dict[str, float] = {}
    with stop_signals() as stop, bar:
        batches = prefetch(sampler, start, config.updates, rank=place.rank, world=place.size)
        for step, cpu_batch in enumerate(batches, start + 1):
            terms = update({k: v.to(place.device, non_blocking=True) for k, v in cpu_batch.items()})
            if step % config.log_every == 0 or step == config.updates:
                values = {k: float(v) for k, v in terms.items()}
                kept = artifacts.checkpoint_path(path)
                require_finite(step, values, kept if kept.exists() else None, "pretrain.lr")
                if metrics:
                    metrics.log(step, values)
                bar.set_postfix(image=f"{values['image']:.1f}", kl=f"{values['kl_nats']:.1f}", refresh=False)
            bar.update()
            stopping = place.any(bool(stop)) if step % config.log_every == 0 or place.size == 1 else False
            if place.is_main and step < config.updates and (stopping or step % config.checkpoint_every == 0):
                require_finite(step, {k: float(v) for k, v in terms.items()}, None, "pretrain.lr")
                checkpoint(path, step, about, model, optimizer)
            if stopping and step < config.updates:
                raise stop.leave(run.command("pretrain"))
    if metrics:
        metrics.close()
    return model, values


def build_update(
    model: JointModel, labels: Labels, optimizer: torch.optim.Optimizer, config: Config, place: World
) -> Update:
    """The joint update for one or several processes, compiled and captured where that pays."""
    noise = Noise(place.device, place.rank, place.size)
    objective: nn.Module = JointObjective(model, labels, config.objective, noise)
    if place.size > 1:
        objective = nn.parallel.DistributedDataParallel(objective, find_unused_parameters=True)
    compiled = should_compile(config.compile, place.device)
    return make_update(
        objective, [(optimizer, config.clip)], place.device, bf16=config.bf16, compiled=compiled,
        captured=compiled and place.size == 1,
    )  # fmt: skip


def checkpoint(path: Path, step: int, about: dict[str, Any], model: JointModel, optimizer: torch.optim.Optimizer) -> None:
    """Everything the loop needs to go on bit for bit; the sampler's position is the step itself."""
    groups = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer), "rng": artifacts.rng_state()}
    artifacts.save_checkpoint(path, step, groups, about)


def restore(path: Path, about: dict[str, Any], model: JointModel, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint if there is one of this very run; returns the step to go on from."""
    found = artifacts.load_checkpoint(path, about)
    if found is None:
        return 0
    step, groups = found
    model.load_state_dict(groups["model"])
    load_optimizer_tensors(optimizer, groups["optimizer"])
    artifacts.set_rng_state(groups["rng"])
    return step
