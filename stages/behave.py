"""Behave: learn a policy for a prompt in imagination, from offline pixels, with no true reward (Section 3.2).

    bitagent behave --preset walker --task run
    bitagent behave --preset walker --prompt "stand still on both legs"
    bitagent behave --preset walker --tasks stand,walk,run        one policy for all three

Reads runs/<run>/model/<method>-s<seed>, data/* and embeddings/*; writes runs/<run>/policy/<method>-s<seed>/<name>.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.core import artifacts, tasks
from stages.core.actor_critic import ActorCritic, ActorCriticConfig
from stages.core.agent import Noise, State, TaskContext
from stages.core.artifacts import Artifact
from stages.core.backbones import load_backbone
from stages.core.backbones.prompts import embed_prompt_video
from stages.core.config import Run, Section
from stages.core.distributed import World, world
from stages.core.episodes import Dataset
from stages.core.errors import BadInput
from stages.core.grounding import Align, Space
from stages.core.groundings import open_model
from stages.core.latents import Latents, encode
from stages.core.methods import ORACLE, is_model_free, method_option
from stages.core.model_free import OfflineRLConfig, PixelJob, make_policy
from stages.core.naming import slug
from stages.core.nets import MLP
from stages.core.pretraining import find_inputs, open_training_data
from stages.core.running import Metrics, progress, require_finite, seed_everything, stop_signals
from stages.core.training import (
    Batch,
    Compile,
    Terms,
    load_optimizer_tensors,
    make_optimizer,
    make_update,
    optimizer_tensors,
    should_compile,
)
from stages.core.world_model import WorldModel


class Config(Section):
    """Section `behave` of the preset; defaults and comments in presets/paper.yaml."""

    updates: int
    starts: int
    imagined: int
    horizon: int
    start_fraction: float
    lr: float
    clip: float
    align: Align
    space: Space
    oracle_updates: int
    bf16: bool
    compile: Compile
    log_every: int
    checkpoint_every: int
    actor_critic: ActorCriticConfig


@dataclass(frozen=True)
class Goal:
    """What the policy is asked for: the artifact's name, one prompt text per head and known task names."""

    name: str
    prompts: tuple[str, ...]
    tasks: tuple[str, ...]
    video: str = ""

    def options(self) -> tuple[str, str]:
        """The command-line option that asks for it."""
        if self.video:
            return "--video", self.video
        if self.tasks:
            return ("--tasks", ",".join(self.tasks)) if len(self.tasks) > 1 else ("--task", self.tasks[0])
        return "--prompt", f'"{self.prompts[0]}"'


def parse_goal(domain: str, task: str | None, prompt: str | None, video: str | None, many: Sequence[str] = ()) -> Goal:
    """Exactly one of task, prompt, video or several tasks. Raises BadInput for none, two or an unknown task."""
    if sum(bool(x) for x in (task, prompt, video, many)) != 1:
        raise BadInput("give exactly one of --task, --prompt, --video or --tasks")
    if prompt:
        return Goal(slug(prompt), (prompt,), ())
    if video:
        return Goal(slug(Path(video).stem), (f"video {Path(video).name}",), (), video)
    names = tuple(many) or (str(task),)
    return Goal("+".join(names), tuple(tasks.get_task(domain, n).prompt for n in names), names)


def run(
    config: Config,
    run: Run,
    *,
    task: str | None = None,
    prompt: str | None = None,
    video: str | None = None,
    many: Sequence[str] = (),
    method: str = "bitagent",
    oracle: bool = False,
    offline: OfflineRLConfig | None = None,
    backbone: str | None = None,
) -> Artifact:
    """Train and save a policy.

    Args:
        task, prompt, video, many: see `parse_goal`.
        oracle: the control row; the reward is a head fitted to the true reward of the named task.
        offline, backbone: section `offline_rl`, and whose embeddings are read; needed by the model-free methods alone.
    """
    goal = parse_goal(run.domain, task, prompt, video, many)
    if oracle and len(goal.tasks) != 1:
        raise BadInput("--oracle-reward needs the true reward of one task: use it with --task")
    label = f"{method}{ORACLE}" if oracle else method
    if is_model_free(method):
        return learn_from_pixels(offline, run, goal, label, backbone, oracle)
    path = run.root / "policy" / f"{label}-s{run.seed}" / goal.name
    source = artifacts.load(
        run.root / "model" / f"{method}-s{run.seed}",
        "pretrain",
        domain=run.domain,
        made_by=run.command("pretrain", *method_option(method), "--seed", str(run.seed)),
    )
    record = {
        "behave": config.model_dump(),
        **{k: source.meta["config"][k] for k in ("model", "grounding") if k in source.meta["config"]},
        "method": label,
        "prompts": list(goal.prompts),
        "tasks": list(goal.tasks),
    }
    found = artifacts.reuse(path, "behave", record, run.seed, [source], run.fresh)
    if found:
        if not run.quiet:
            print(f"reusing {path}")
        return found
    with world(run.device) as place, artifacts.locked(path):
        began = time.time()
        model = open_model(source, place.device)
        again = run.command("pretrain", *method_option(method), "--fresh")
        embedding = embed_goal(goal, source, run, source.meta["extra"]["backbone"], again)
        trained, summary = train(config, run, place, path, model, embedding, source, goal, record, oracle)
        made = artifacts.save(
            path,
            "behave",
            {"model": model.state_dict(), "actor_critic": trained.state_dict(), "prompt": {"embedding": embedding}},
            domain=run.domain,
            config=record,
            seed=run.seed,
            inputs=[source],
            resolved=run.resolved,
            began=began,
            extra={k: source.meta["extra"][k] for k in ("dim_embedding", "dim_action", "backbone", "backbone_id")}
            | {"summary": summary},
        )
        artifacts.drop_checkpoint(path)
        return made


def learn_from_pixels(
    config: OfflineRLConfig | None, run: Run, goal: Goal, label: str, backbone: str | None, oracle: bool
) -> Artifact:
    """The model-free rows: no model is read, only data and embeddings. Raises BadInput for several prompts."""
    if config is None or backbone is None:
        raise BadInput(f"method {label} needs the preset's section `offline_rl` and the name of a backbone")
    if len(goal.prompts) > 1:
        raise BadInput(f"method {label} learns one prompt a policy: give --task, --prompt or --video")
    data, embeddings = find_inputs(run, backbone)
    again = run.command("embed", "--backbone", backbone, "--fresh")
    how = [*goal.options(), *method_option(label.removesuffix(ORACLE)), *(["--oracle-reward"] if oracle else [])]
    job = PixelJob(
        config=config,
        run=run,
        label=label,
        name=goal.name,
        prompts=goal.prompts,
        tasks=goal.tasks,
        oracle=oracle,
        embedding=embed_goal(goal, embeddings[0], run, backbone, again),
        data=data,
        embeddings=embeddings,
        backbone=backbone,
        command=run.command("behave", *how, "--seed", str(run.seed)),
    )
    return make_policy(job)


def embed_goal(goal: Goal, source: Artifact, run: Run, name: str, again: str) -> Tensor:
    """Unit-norm embeddings of the prompts (K, dim_e), by the backbone `name` that `source` was made with.

    Raises BadInput when that has changed since; `again` is the command that makes the source anew.
    """
    backbone = load_backbone(name, run.root, run.device)
    if backbone.id != source.meta["extra"]["backbone_id"]:
        raise BadInput(
            f"{source.path} was made with backbone {source.meta['extra']['backbone_id']}, here is {backbone.id}; "
            f"make it again with: {again}"
        )
    if goal.video:
        return embed_prompt_video(backbone, Path(goal.video))[None].cpu()
    return backbone.encode_text(list(goal.prompts)).cpu()


class Behavior(nn.Module):
    """One behaviour update as a loss: imagination and anchor, for K prompts at once."""

    def __init__(
        self,
        model: WorldModel,
        learner: ActorCritic,
        prompts: TaskContext,
        config: Config,
        noise: Noise,
        oracle: nn.Module | None,
    ) -> None:
        super().__init__()
        self.model, self.learner, self.oracle = model, learner, oracle
        self.prompts, self.config, self.noise = prompts, config, noise

    def reward(self, task: TaskContext, state: State, action: Tensor) -> Tensor:
        """The grounding's reward (Eq. 10), or the oracle's, of arriving at states 1..H: (N, H)."""
        if self.oracle is not None:
            return self.oracle(state.features[:, 1:]).squeeze(-1).float()
        return self.model.reward(task, state, action, self.config)

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """batch: h, z, e (N, H+1, ·), action (N, H, A), prompt (N,)."""
        weights = self.config.actor_critic
        task = self.prompts.rows(batch["prompt"])
        state = State(batch["h"], batch["z"], batch["e"])
        anchor, data_critic, terms = self.from_data(state, batch["action"], task)
        loss = weights.anchor * anchor + weights.data_value * data_critic
        if weights.imagination:
            count = self.config.imagined
            start = State(*(getattr(state, k)[:count, 0] for k in ("h", "z", "e")))
            actor, critic, imagined = self.from_imagination(start, self.prompts.rows(batch["prompt"][:count]))
            loss = loss + weights.imagination * (actor + critic)
            terms |= imagined | {"actor": actor.detach(), "critic": critic.detach()}
        return loss, terms | {"critic_data": data_critic.detach()}

    def from_data(self, state: State, action: Tensor, task: TaskContext) -> tuple[Tensor, Tensor, Terms]:
        """Anchor and critic losses on the windows themselves, rewarded like imagination."""
        with torch.no_grad():
            reward = self.reward(task, state, action)  # (N, H)
        return self.learner.data_losses(self.inputs(state, task), action, reward)

    def from_imagination(self, start: State, task: TaskContext) -> tuple[Tensor, Tensor, Terms]:
        """Actor and critic losses on rollouts of the model under the policy (Eq. 6, 8, 10)."""
        horizon = self.config.horizon
        normal = self.noise.normal(len(task.tau), horizon, self.model.dim_action)

        def act(features: Tensor, step: int) -> Tensor:
            return self.learner.actor.sample(torch.cat([features.detach(), task.tau], -1), normal[:, step])

        states, actions, _ = self.model.imagine(start, act, horizon, task, self.noise)
        reward = self.reward(task, states, actions)
        return self.learner.imagination_losses(self.inputs(states, task), reward)

    def inputs(self, state: State, task: TaskContext) -> Tensor:
        """What actor and critic read: (N, H+1, dim_policy)."""
        tau = task.tau.unsqueeze(1).expand(-1, state.h.shape[1], -1)
        return torch.cat([state.features, tau], -1)


def train(
    config: Config,
    run: Run,
    place: World,
    path: Path,
    model: WorldModel,
    embedding: Tensor,
    source: Artifact,
    goal: Goal,
    record: dict[str, Any],
    oracle: bool,
) -> tuple[ActorCritic, dict[str, float]]:
    """Encode the data once under the prompts, then update actor and critic on latents alone."""
    seed_everything(run.seed)
    dataset = open_training_data(source, run)
    with torch.no_grad():
        prompts = model.task(embedding.to(place.device))
    latents = encode(model, dataset, prompts, config.horizon, place.device, quiet=run.quiet, bf16=config.bf16)
    head = fit_oracle(latents, dataset, goal.tasks[0], config, place, run.quiet) if oracle else None
    seed_everything(run.seed + 1)
    learner = ActorCritic(model.dim_policy, model.dim_action, config.actor_critic).to(place.device)
    actor, critic = (make_optimizer(list(m.parameters()), config.lr, 0.0) for m in (learner.actor, learner.critic))
    about = {**record, "seed": run.seed, "inputs": artifacts.input_ids([source])}
    start = 0 if run.fresh else restore(path, about, learner, actor, critic)
    noise = Noise(place.device, place.rank, place.size)
    compiled = should_compile(config.compile, place.device)
    update = make_update(
        Behavior(model, learner, prompts, config, noise, head),
        [(actor, config.clip), (critic, config.clip)],
        place.device,
        bf16=config.bf16,
        compiled=compiled,
        captured=compiled,
        after=learner.update_slow,
    )
    metrics = Metrics(path.parent / f"{path.name}.log", start + 1)
    values: dict[str, float] = {}
    bar = progress(config.updates, start, f"behave {goal.name}", "update", run.quiet)
    with stop_signals() as stop, bar:
        for step in range(start + 1, config.updates + 1):
            terms = update(draw_batch(latents, config, noise, len(prompts.tau)))
            last = step == config.updates
            if step % config.log_every == 0 or last:
                values = {k: float(v) for k, v in terms.items()}
                kept = artifacts.checkpoint_path(path)
                require_finite(step, values, kept if kept.exists() else None, "behave.lr")
                metrics.log(step, values)
                bar.set_postfix(
                    imagined=f"{values.get('imagined_reward', 0.0):.2f}",
                    data=f"{values['data_reward']:.2f}",
                    refresh=False,
                )
            bar.update()
            if not last and (stop or step % config.checkpoint_every == 0):
                kept = artifacts.checkpoint_path(path)
                finite = {k: float(v) for k, v in terms.items()}
                require_finite(step, finite, kept if kept.exists() else None, "behave.lr")
                groups = {
                    "learner": learner.state_dict(),
                    "actor": optimizer_tensors(actor),
                    "critic": optimizer_tensors(critic),
                    "rng": artifacts.rng_state(),
                }
                artifacts.save_checkpoint(path, step, groups, about)
                if stop:
                    how = (
                        *method_option(record["method"].removesuffix(ORACLE)),
                        *(("--oracle-reward",) if oracle else ()),
                    )
                    raise stop.leave(run.command("behave", *goal.options(), *how, "--seed", str(run.seed)))
    metrics.close()
    return learner, values


def draw_batch(latents: Latents, config: Config, noise: Noise, prompts: int) -> dict[str, Tensor]:
    """Windows of the dataset; each row asks for one of the prompts."""
    rows = latents.draw(config.starts, config.start_fraction, noise)
    prompt = (noise.uniform(config.starts) * prompts).long().clamp(max=prompts - 1)
    state, action, _ = latents.window(rows, prompt, config.horizon)
    return {"h": state.h, "z": state.z, "e": state.e, "action": action, "prompt": prompt}


def restore(path: Path, about: dict[str, Any], learner: ActorCritic, *optimizers: torch.optim.Optimizer) -> int:
    """Load the checkpoint of this very run, if any; returns the update to go on from."""
    found = artifacts.load_checkpoint(path, about)
    if found is None:
        return 0
    step, groups = found
    learner.load_state_dict(groups["learner"])
    for optimizer, name in zip(optimizers, ("actor", "critic"), strict=True):
        load_optimizer_tensors(optimizer, groups[name])
    artifacts.set_rng_state(groups["rng"])
    return step


def fit_oracle(latents: Latents, dataset: Dataset, task: str, config: Config, place: World, quiet: bool) -> nn.Module:
    """Control row only: regress the true reward per control step on (h, z), from the parts labelled `task`.

    Rewards of other tasks' replays measure another goal, so only this task's parts are used.
    """
    parts = [p for p in dataset.parts if p.task == task]
    if not parts:
        raise BadInput(
            f"--oracle-reward needs data of task {task}; make it with: bitagent collect --source expert --task {task}"
        )
    rows = torch.cat([torch.arange(p.first_row, p.first_row + p.frames) for p in parts]).to(place.device)
    head = MLP(latents.h.shape[-1] + latents.z.shape[-1], 1, config.actor_critic.units, 2).to(place.device)
    optimizer = make_optimizer(list(head.parameters()), 1e-3, 1e-4)

    def loss(batch: Batch) -> tuple[Tensor, Terms]:
        error = (head(batch["features"]).squeeze(-1).float() - batch["reward"]).square().mean()
        return error, {"oracle": error.detach()}

    update = make_update(loss, [(optimizer, 100.0)], place.device, bf16=config.bf16, compiled=False)
    bar = progress(config.oracle_updates, 0, "fit true reward", "update", quiet)
    for _ in range(config.oracle_updates):
        index = rows[torch.randint(len(rows), (1024,), device=place.device)]
        features = torch.cat([latents.h[0, index], latents.z[0, index]], -1).float()
        terms = update({"features": features, "reward": latents.reward[index] / tasks.ACTION_REPEAT})
        bar.set_postfix(mse=f"{float(terms['oracle']):.4f}", refresh=False)
        bar.update()
    bar.close()
    return head.requires_grad_(False)
