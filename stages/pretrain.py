"""Pretrain: the world model, TAMF, the text imagination and the MLLM adapter, jointly (Section 3.3, Eq. 11).

    bitagent pretrain --preset walker
    torchrun --nproc-per-node 8 -m bitagent_cli pretrain --preset walker

Reads runs/<run>/data/* and runs/<run>/embeddings/<backbone>/*, writes runs/<run>/model/<method>-s<seed>.
The loss is `pretraining_loss` of the method's model: BiTAgent's is stages/core/objective.py. `transfer` trains by the
same loop, from another body's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages import methods
from stages.backbones import Backbone, backbone_id, load_backbone
from stages.backbones.embeddings import tuned_embeddings
from stages.backbones.tuning import ADAPTER, MllmConfig, load_tower, load_tuned, tuned_tensors, window_embeddings
from stages.core.nets import IMAGE_SIZE
from stages.core.objective import dynamics_loss, segment_semantics
from stages.core.settings import DynamicsConfig, ModelConfig, ObjectiveConfig
from stages.core.world_model import Labels, Noise, WorldModel
from stages.data.episodes import Dataset, held_out_episodes
from stages.data.inputs import find_inputs
from stages.data.sampler import Sampler, Windows, check_frame_size, data_device, prefetch
from stages.methods.states import FrozenStates, posterior_modes, sequence_sampler
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact, Recipe
from stages.runtime.checkpoints import Groups, Resumable
from stages.runtime.compiling import Compile, keep_compiled, should_capture, should_compile
from stages.runtime.config import PartShare, Run, Section, Share
from stages.runtime.distributed import World, is_first_process, world
from stages.runtime.errors import BadInput
from stages.runtime.loop import Loop, seed_everything
from stages.runtime.names import is_model_free, method_option
from stages.runtime.update import Batch, Terms, Update, annealed, make_optimizer, make_update, set_lr
from stages.worlds import tasks

EMBEDDED_AT_ONCE = 64  # windows of frames
LABEL_BATCHES, LABEL_SEGMENTS = 32, 256  # so many batches of so many segments a part are behind its threshold
ORIGIN_BATCHES, ORIGIN_FRAMES = 64, 64  # so many batches of so many frames are behind the reward's origin


class Config(Section):
    """Section `pretrain` of the preset; defaults and comments in presets/paper.yaml."""

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
    dynamics: DynamicsConfig


@dataclass(frozen=True)
class Sections:
    """The sections of a preset that a model is made from.

    Args:
        constants: section `groundings`; needed by the baselines alone.
        mllm: what is trained of the backbone; the baselines train nothing of it.
    """

    pretrain: Config
    model: ModelConfig
    mllm: MllmConfig = ADAPTER
    constants: methods.Constants | None = None


@dataclass(frozen=True)
class Job:
    """One model to train.

    Args:
        method: chooses the model's class; `label`, by default the same, names the artifact, model/<label>-s<seed>.
        data, embeddings: what it is trained on, one of each for every dataset.
        command: the command line that goes on after a stop.
        about: what else decides the content, for the record.
        source: the model whose weights it starts from, and `init`, which carries them over.
    """

    sections: Sections
    run: Run
    method: str
    data: list[Artifact]
    embeddings: list[Artifact]
    command: str
    label: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    source: Artifact | None = None
    init: Callable[[WorldModel], None] | None = None

    @property
    def mllm(self) -> MllmConfig:
        return methods.tuned_by(self.method, self.sections.mllm)

    @property
    def constants(self) -> dict[str, Any]:
        return methods.constants_of(self.method, self.sections.constants)

    @property
    def recipe(self) -> Recipe:
        """Where the model goes, and what decides its content."""
        label, s = self.label or self.method, self.sections
        record = {"pretrain": s.pretrain.model_dump(), "model": s.model.model_dump(), **self.mllm.record}
        grounding = {"grounding": self.constants} if self.constants else {}
        return Recipe(
            self.run,
            self.run.root / "model" / f"{label}-s{self.run.seed}",
            "pretrain",
            {**record, "method": label, **grounding, **self.about},
            [*self.data, *self.embeddings, *([self.source] if self.source else [])],
        )


def run(sections: Sections, run: Run, *, method: str = "bitagent") -> Artifact:
    """Train and save the model of a method; see `methods` in presets/paper.yaml.

    Raises:
        BadInput: missing data, a method without a world model. Interrupted: on a signal, after saving a checkpoint.
    """
    if is_model_free(method):
        behave = run.command("behave", "--method", method, "--seed", str(run.seed))
        raise BadInput(f"{method} learns from pixels without a world model: go on with {behave} --task ...")
    data, embeddings = find_inputs(run, sections.pretrain.backbone)
    command = run.command("pretrain", *method_option(method), "--seed", str(run.seed))
    return train_or_reuse(Job(sections, run, method, data, embeddings, command))


def train_or_reuse(job: Job) -> Artifact:
    """The model artifact of a job: the finished one, or trained (from its checkpoint) and saved.

    A model that tuned its backbone also gets the embeddings of its data by the tuned one.
    Raises BadInput when another configuration is there, Interrupted on a signal.
    """
    recipe, run = job.recipe, job.run
    made = recipe.reuse()
    if made is None:
        with world(run.device) as place, storage.locked(recipe.path) if place.is_main else nullcontext():
            backbone = backbone_id(job.embeddings[0], job.sections.pretrain.backbone, run)
            model, tuned, losses = train(job, recipe, place)
            if place.is_main:
                about = {
                    "dim_embedding": model.dim_embedding,
                    "dim_action": model.dim_action,
                    "backbone": job.sections.pretrain.backbone,
                    "backbone_id": backbone,
                    "stride": 1 if job.mllm.in_loop else max(e.meta["config"].get("stride", 1) for e in job.embeddings),
                    "mllm": job.mllm.model_dump(),
                    "losses": losses,
                }
                recipe.save({"model": model.state_dict(), **({"backbone": tuned} if tuned else {})}, about)
            place.barrier()
            made = artifacts.load(recipe.path, "pretrain")
    if job.mllm.in_loop and is_first_process():
        tuned_embeddings(made, job.data, run, job.command)
    return made


def train(job: Job, recipe: Recipe, place: World) -> tuple[WorldModel, dict[str, Tensor], dict[str, float]]:
    """Train the model, from its checkpoint if there is one; it, what was trained of the backbone, its last losses."""
    config, run = job.sections.pretrain, job.run

    # Inputs: the datasets with their embeddings. Some episodes are held out, for judging the model.
    dataset = Dataset.open([a.path for a in job.data], run.domain, [a.path for a in job.embeddings])
    check_frame_size(dataset, IMAGE_SIZE)
    held_out = held_out_episodes(dataset, config.holdout)  # (E,)
    seed_everything(run.seed)

    # Model: the method's, on top of the backbone's embeddings or, with a tower, of the backbone in training.
    sizes, adapter = (dataset.dim_embedding, dataset.action_dim), job.mllm.train == "adapter"
    model = methods.build(job.method, job.sections.model, *sizes, job.constants, adapter)
    if job.init:
        job.init(model)
    model.to(place.device)
    tower = load_tower(job.mllm, config.backbone, job.embeddings[0], run, place.device, job.source)
    freed = [p for p in tower.owner.parameters() if p.requires_grad] if tower else []
    optimizer = make_optimizer([*model.parameters(), *freed], config.lr, config.weight_decay)
    keep_compiled(run.root)
    labels = make_labels(
        dataset, run, config, held_out
    )  # before the checkpoint: loading a backbone draws random numbers
    update = build_update(JointObjective(model, labels, config.objective, place, tower), optimizer, config, place)
    sampler = Sampler(
        dataset,
        config.batch,
        config.length,
        run.seed,
        Windows(config.start_fraction, left_out=held_out, past=tower.window - 1 if tower else 0),
        keys=("image", "action", "is_first", "embedding"),
        device=data_device(dataset, place.device),
    )

    last = make_optimizer(model.dynamics(), config.dynamics.lr, config.weight_decay)
    trained = Resumable(model=model, optimizer=optimizer, dynamics=last)  # the sampler's position is the step itself

    def tensors() -> Groups:
        return trained.tensors() | ({"backbone": tuned_tensors(tower)} if tower else {})

    def load(groups: Groups) -> None:
        trained.load(groups)
        if tower:
            load_tuned(tower, groups["backbone"])

    # Loop: L_total of Eq. 11 on one batch of windows an update; the step size falls over the last part.
    both = config.model_copy(update={"updates": config.updates + config.dynamics.updates})
    with Loop(recipe, both, place, job.command, ("pretrain.lr", config.lr)) as loop:
        loop.resume(load)
        steps = loop.steps()
        batches = prefetch(sampler, loop.start, config.updates, place.rank, place.size, device=str(place.device))
        for batch, step in zip(batches, steps, strict=False):
            set_lr(optimizer, config.lr * annealed(step, config.updates, config.anneal))
            terms = update(batch)
            loop.after(step, terms, tensors, show=("image", "kl_nats"))

        # Then the dynamics alone, on states that no longer change: no image is read, and an update sees more of them.
        if config.dynamics.updates:
            windows = Windows(config.start_fraction, left_out=held_out)
            sequences = sequence_sampler(dataset, config.dynamics, windows, run.seed)
            modes = posterior_modes(model, dataset, place.device, quiet=run.quiet)
            states = FrozenStates(sequences, modes, embed_all(tower, dataset) if tower else None, place)
            update = dynamics_update(model, labels, last, config, place)
            for step in steps:
                set_lr(last, config.dynamics.lr * annealed(step - config.updates, config.dynamics.updates, 1.0))
                terms = update(states.sample(step))
                loop.after(step, terms, tensors, show=("kl_nats", "rollout_nats"))

    # What is fixed when training ends: the reward's origin.
    with torch.no_grad():
        model.conclude(*origin_frames(tower, dataset, held_out, place.device))
    return model, tuned_tensors(tower) if tower else {}, loop.values


# ---------------------------------------------------------------------------- the parts


def make_labels(dataset: Dataset, run: Run, config: Config, held_out: np.ndarray) -> Labels:
    """Prompt embeddings of labelled parts, and the similarity a segment needs to count as showing its prompt.

    The threshold is the `label_quantile` of the similarities of the part's segments, drawn as training draws them.
    """
    known = torch.tensor([bool(part.task) for part in dataset.parts])  # (P,)
    text = torch.zeros(len(known), dataset.dim_embedding)
    threshold = torch.zeros(len(known))
    if known.any():
        backbone = load_backbone(config.backbone, run.root, run.device)
        for i in known.nonzero().flatten().tolist():
            prompt = tasks.get_task(run.domain, dataset.parts[i].task).prompt
            text[i] = backbone.encode_text([prompt])[0].cpu()
        windows = Windows(config.start_fraction, known.tolist(), held_out)
        sampler = Sampler(dataset, LABEL_SEGMENTS, config.length, 0, windows, ("embedding",))
        parts, similarities = [], []
        for step in range(LABEL_BATCHES * int(known.sum())):
            batch = sampler.sample(step)
            parts.append(batch["task"])
            similarities.append((segment_semantics(batch["embedding"].float()) * text[batch["task"]]).sum(-1))
        part, similarity = torch.cat(parts), torch.cat(similarities)  # (N,)
        for i in part.unique().tolist():
            threshold[i] = torch.quantile(similarity[part == i], config.label_quantile)
    device = run.device
    return Labels(text.to(device), known.to(device), threshold.to(device))


class JointObjective(nn.Module):
    """The model's loss as a module of the batch alone, so that DistributedDataParallel can wrap it.

    With a `tower`, a backbone in training, e_v is its embedding of the batch's own frames.
    """

    def __init__(
        self, model: WorldModel, labels: Labels, config: ObjectiveConfig, place: World, tower: Backbone | None = None
    ) -> None:
        super().__init__()
        self.model, self.labels, self.config = model, labels, config
        self.noise = Noise(place.device, place.rank, place.size)
        self.tower = tower
        self.tower_module = tower.owner if tower else None  # a part of this module, as its gradients are averaged too

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        if self.tower:
            batch = {**batch, "semantics": window_embeddings(self.tower, batch["past"], batch["image"])}
        return self.model.pretraining_loss(batch, self.labels, self.config, self.noise)


def build_update(objective: JointObjective, optimizer: torch.optim.Optimizer, config: Config, place: World) -> Update:
    """The joint update for one or several processes, compiled and captured where that pays.

    With a backbone in the loop it is neither: a backbone may copy constants to the device while it runs, which no
    graph can capture.
    """
    loss: nn.Module = objective
    if place.size > 1:
        loss = nn.parallel.DistributedDataParallel(objective, find_unused_parameters=True)
    choice: Compile = config.compile if objective.tower is None else "off"
    compiled, captured = should_compile(choice, place.device), should_capture(choice, place.device, place.size)
    clipped = [(optimizer, config.clip)]
    return make_update(loss, clipped, place.device, bf16=config.bf16, compiled=compiled, captured=captured)


class DynamicsObjective(nn.Module):
    """`dynamics_loss` as a module of the batch alone; what is not the dynamics is frozen."""

    def __init__(self, model: WorldModel, labels: Labels, config: Config, place: World) -> None:
        super().__init__()
        self.model, self.labels, self.config = model, labels, config
        self.noise = Noise(place.device, place.rank, place.size)
        model.requires_grad_(False)
        for parameter in model.dynamics():
            parameter.requires_grad_(True)

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        c = self.config
        return dynamics_loss(self.model, batch, self.labels, c.objective, c.dynamics, self.noise)


def dynamics_update(
    model: WorldModel, labels: Labels, optimizer: torch.optim.Optimizer, config: Config, place: World
) -> Update:
    """The update of the dynamics alone, for one or several processes, compiled and captured where that pays."""
    loss: nn.Module = DynamicsObjective(model, labels, config, place)
    if place.size > 1:
        loss = nn.parallel.DistributedDataParallel(loss)
    compiled = should_compile(config.compile, place.device)
    captured = should_capture(config.compile, place.device, place.size)
    clipped = [(optimizer, config.clip)]
    return make_update(loss, clipped, place.device, bf16=config.bf16, compiled=compiled, captured=captured)


def embed_all(tower: Backbone, dataset: Dataset) -> Tensor:
    """e (N, dim_e) of every row by a backbone that was trained with the model, on the CPU."""
    episodes = (dataset.episode(n).image for n in range(dataset.n_episodes))
    return torch.cat(
        [tower.encode_episode(frames, EMBEDDED_AT_ONCE).cpu() for frames in episodes if frames is not None]
    )


@torch.no_grad()
def origin_frames(
    tower: Backbone | None, dataset: Dataset, held_out: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Single frames (N, 3, 64, 64) of the training data, half of them of random behaviour where there is any; their
    stored embeddings (N, dim_e), and those by the tower, or the same.

    Their mean is the origin of BiTAgent's reward (`behave.space`). Half: a replay of experts says little about what a
    body does without aim. The same in every process.
    """
    random = np.array([part.source == "random" for part in dataset.parts])[dataset.episode_info.part] & ~held_out
    keys, past = ("image", "embedding"), tower.window - 1 if tower else 0
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for drawn in (~held_out, random if random.any() else ~held_out):
        sampler = Sampler(dataset, ORIGIN_FRAMES, 1, 0, Windows(left_out=~drawn, past=past), keys)
        for step in range(ORIGIN_BATCHES // 2):
            batch = {k: v.to(device) for k, v in sampler.sample(step).items()}
            raw = batch["embedding"].float()
            e = window_embeddings(tower, batch["past"], batch["image"]) if tower else raw
            found.append((batch["image"].flatten(0, 1), raw.flatten(0, 1), e.flatten(0, 1)))
    image, embedding, semantics = (torch.cat(part) for part in zip(*found, strict=True))
    return image, embedding, semantics
