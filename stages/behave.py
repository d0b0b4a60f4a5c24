"""Behave: learn a policy for a prompt from offline pixels, in imagination and on the data, with no true reward
(Section 3.2).

    bitagent behave --preset walker --task run
    bitagent behave --preset walker --prompt "stand still on both legs"
    bitagent behave --preset walker --tasks stand,walk,run        one policy for all three

Reads runs/<run>/model/<method>-s<seed>, data/* and embeddings/*; writes runs/<run>/policy/<method>-s<seed>/<name>,
and once a model runs/<run>/latents/<method>-s<seed>, what the posterior reads in its data.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.backbones.embeddings import open_training_data
from stages.backbones.tuning import mllm_of
from stages.core import model_free
from stages.core.actor_critic import ActorCritic
from stages.core.behavior import Behavior, data_outcomes, draw_batch
from stages.core.latents import Latents, data_modes, encode
from stages.core.model_free import OfflineRLConfig
from stages.core.nets import MLP
from stages.core.settings import BehaviorConfig as Config
from stages.core.world_model import Noise, State, WorldModel
from stages.data.episodes import Dataset
from stages.methods import open_model
from stages.policies.goals import Goal, command_again, embed_goal, parse_goal
from stages.policies.play import play
from stages.policies.policy import LatentPolicy
from stages.runtime import artifacts, checkpoints, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.distributed import World, world
from stages.runtime.errors import BadInput
from stages.runtime.loop import Metrics, progress, require_finite, seed_everything, stop_signals
from stages.runtime.names import DATA_FREE, ORACLE, is_model_free, method_option
from stages.runtime.update import (
    Batch,
    Terms,
    load_optimizer_tensors,
    make_optimizer,
    make_update,
    optimizer_tensors,
    should_compile,
)
from stages.worlds import tasks


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
    data_free: bool = False,
    offline: OfflineRLConfig | None = None,
    backbone: str | None = None,
) -> Artifact:
    """Train and save a policy.

    Args:
        task, prompt, video, many: see `parse_goal`.
        oracle: the control row; the reward is a head fitted to the true reward of the named task.
        data_free: no dataset is read; every imagined rollout begins in a state the model itself dreams up.
        offline, backbone: section `offline_rl`, and whose embeddings are read; needed by the model-free methods alone.
    """
    goal = parse_goal(run.domain, task, prompt, video, many)
    check(config, goal, method, oracle, data_free)
    label = method + (ORACLE if oracle else "") + (DATA_FREE if data_free else "")
    if is_model_free(method):
        return model_free.learn(offline, run, goal, label, backbone, oracle)
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
    found = artifacts.reuse(path, "behave", record, run.seed, [source], run.fresh, run.renew)
    if found:
        if not run.quiet:
            print(f"reusing {path}")
        return found
    with world(run.device) as place, storage.locked(path) if place.is_main else nullcontext():
        began = time.time()
        model = open_model(source, place.device)
        again = run.command("pretrain", *method_option(method), "--fresh")
        embedding = embed_goal(goal, source, run, source.meta["extra"]["backbone"], again)
        trained, summary = train(config, run, place, path, model, embedding, source, goal, record, oracle, data_free)
        if place.is_main:
            artifacts.save(
                path,
                "behave",
                {
                    "model": model.state_dict(),
                    "actor_critic": trained.state_dict(),
                    "prompt": {"embedding": embedding},
                    **({"backbone": source.tensors("backbone")} if mllm_of(source).in_loop else {}),
                },
                domain=run.domain,
                config=record,
                seed=run.seed,
                inputs=[source],
                resolved=run.resolved,
                began=began,
                extra={k: source.meta["extra"][k] for k in ("dim_embedding", "dim_action", "backbone", "backbone_id")}
                | {"mllm": mllm_of(source).model_dump(), "summary": summary},
            )
            checkpoints.drop(path)
        place.barrier()
        return artifacts.load(path, "behave")


def check(config: Config, goal: Goal, method: str, oracle: bool, data_free: bool) -> None:
    """Raise BadInput for options that do not go together."""
    for suffix, option in ((ORACLE, "--oracle-reward"), (DATA_FREE, "--data-free")):
        if method.endswith(suffix):
            learned = method.removesuffix(suffix)
            raise BadInput(f"--method {method} names what {option} made: give --method {learned} {option}")
    if oracle and len(goal.tasks) != 1:
        raise BadInput("--oracle-reward needs the true reward of one task: use it with --task")
    if oracle and data_free:
        raise BadInput("--oracle-reward fits its reward to the dataset: leave out --data-free")
    if data_free and is_model_free(method):
        raise BadInput(f"{method} learns from the dataset alone: leave out --data-free")
    if data_free and not config.actor_critic.imagination:
        raise BadInput("--data-free learns from imagination alone: add --set behave.actor_critic.imagination=1")


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
    data_free: bool,
) -> tuple[ActorCritic, dict[str, float]]:
    """Encode the data once under the prompts, then update actor and critic on latents alone."""
    config = share(config, place, len(embedding))
    seed_everything(run.seed)
    with torch.no_grad():
        prompts = model.task(embedding.to(place.device))
    latents, head = None, None
    if not data_free:
        dataset = open_training_data(source, run)
        modes = data_modes(model, source, dataset, run, place.device)
        latents = encode(model, dataset, modes, prompts, config.horizon, place.device, bf16=config.bf16)
        head = fit_oracle(latents, dataset, goal.tasks[0], config, place, run.quiet) if oracle else None
    seed_everything(run.seed + 1)
    learner = ActorCritic(model.dim_policy, model.dim_action, config.actor_critic).to(place.device)
    actor, critic = (make_optimizer(list(p), config.lr, 0.0) for p in (learner.actor.parameters(), learner.critics))
    about = {**record, "seed": run.seed, "inputs": artifacts.input_ids([source])}
    if run.fresh and place.is_main:
        checkpoints.drop(path)
    start = restore(path, about, learner, actor, critic) if not run.fresh else 0
    lower = f"behave.lr={config.lr / 3:.2g}"
    noise = Noise(place.device, place.rank, place.size)
    behavior = Behavior(model, learner, prompts, config, noise, head)
    found = data_outcomes(behavior, latents) if latents else None
    compiled = should_compile(config.compile, place.device)
    loss: nn.Module = behavior
    if place.size > 1:
        loss = nn.parallel.DistributedDataParallel(behavior, find_unused_parameters=True)
    update = make_update(
        loss,
        [(actor, config.clip), (critic, config.clip)],
        place.device,
        bf16=config.bf16,
        compiled=compiled,
        captured=compiled and place.size == 1,
        after=learner.update_slow,
    )
    metrics = Metrics(path.parent / f"{path.name}.log", start + 1) if place.is_main else None
    watched = None
    if config.watch_every and place.is_main:
        with torch.random.fork_rng():  # loading a backbone draws numbers
            watched = LatentPolicy.assemble(source, run.root, model, learner, embedding, str(place.device))
    values: dict[str, float] = {}
    bar = progress(config.updates, start, f"behave {goal.name}", "update", run.quiet or not place.is_main)
    with stop_signals() as stop, bar:
        for step in range(start + 1, config.updates + 1):
            batch = draw_batch(latents, found, config, noise, len(prompts.tau))
            terms = update(batch)
            last = step == config.updates
            if step % config.log_every == 0 or last:
                values = {k: float(v) for k, v in terms.items()}
                require_finite(step, values, checkpoints.folder(path), lower)
                if metrics:
                    metrics.log(step, values)
                bar.set_postfix(
                    imagined=f"{values.get('imagined_reward', 0.0):.2f}",
                    imitation=f"{values.get('imitation', 0.0):.3f}",
                    value=f"{values.get('data_value', 0.0):.1f}",
                    refresh=False,
                )
            if metrics and watched and step % config.watch_every == 0:
                metrics.log(step, look(behavior, watched, batch, run, goal))
            bar.update()
            stopping = place.any(bool(stop)) if step % config.log_every == 0 or place.size == 1 else False
            if place.is_main and not last and (stopping or step % config.checkpoint_every == 0):
                finite = {k: float(v) for k, v in terms.items()}
                require_finite(step, finite, checkpoints.folder(path), lower)
                groups = {
                    "learner": learner.state_dict(),
                    "actor": optimizer_tensors(actor),
                    "critic": optimizer_tensors(critic),
                    "rng": checkpoints.rng_state(),
                }
                checkpoints.save(path, step, groups, about)
            if stopping and not last:
                raise stop.leave(command_again(run, goal, record["method"]))
    if metrics:
        metrics.close()
    return learner, values


def share(config: Config, place: World, prompts: int) -> Config:
    """What one process has of every update for so many prompts, each of which gets what one alone would get.

    Raises BadInput when an update does not divide over the processes.
    """
    counts = {"decisions": config.decisions, "imagined": config.imagined}
    for name, count in counts.items():
        if count % place.size:
            raise BadInput(f"behave.{name} = {count} does not divide over {place.size} processes; choose another value")
    return config.model_copy(update={name: prompts * count // place.size for name, count in counts.items()})


@torch.no_grad()
def look(behavior: Behavior, policy: LatentPolicy, batch: Batch, run: Run, goal: Goal) -> dict[str, float]:
    """The policy as it is: the mean reward of its imagined rollouts beside its score in the real environment.

    Nothing is learned from it, and random numbers go on as if nobody had looked.
    """
    config = behavior.config
    with torch.random.fork_rng():
        task = behavior.prompts.rows(batch["prompt"])
        start = State(*(batch[k] for k in ("h", "z", "e"))) if "h" in batch else behavior.dreamed_starts(task)
        states, actions, _ = behavior.rollout(start, task, config.horizon)
        seen = {"watch/imagined_reward": float(behavior.reward(task, states, actions).mean())}
        for index, name in enumerate(goal.tasks):
            policy.reset(index)
            returns = play(policy, run.domain, name, config.watch_episodes).returns
            about = tasks.get_task(run.domain, name)
            seen[f"watch/score_{name}"] = float(np.mean([tasks.normalized_score(about, r) for r in returns]))
    return seen


def restore(path: Path, about: dict[str, Any], learner: ActorCritic, *optimizers: torch.optim.Optimizer) -> int:
    """Load the checkpoint of this very run, if any; returns the update to go on from."""
    found = checkpoints.load(path, about)
    if found is None:
        return 0
    step, groups = found
    learner.load_state_dict(groups["learner"])
    for optimizer, name in zip(optimizers, ("actor", "critic"), strict=True):
        load_optimizer_tensors(optimizer, groups[name])
    checkpoints.set_rng_state(groups["rng"])
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
        features = latents.state(index, torch.zeros_like(index)).features
        terms = update({"features": features, "reward": latents.reward[index] / tasks.ACTION_REPEAT})
        bar.set_postfix(mse=f"{float(terms['oracle']):.4f}", refresh=False)
        bar.update()
    bar.close()
    return head.requires_grad_(False)
