"""Behave: learn a policy for a prompt from offline pixels, in imagination and on the data, with no true reward
(Section 3.2).

    bitagent behave --preset walker --task run
    bitagent behave --preset walker --prompt "stand still on both legs"
    bitagent behave --preset walker --tasks stand,walk,run        one policy for all three
    bitagent behave --preset walker --task run --method td3-bc    without a world model

Reads runs/<run>/model/<method>-s<seed>, data/* and embeddings/*; writes runs/<run>/policy/<method>-s<seed>/<name>,
and once a model runs/<run>/latents/<method>-s<seed>, what the posterior reads in its data. The loss of an update is
stages/core/behavior.py; the model-free methods are stages/methods/model_free.py.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.backbones import backbone_id
from stages.backbones.embeddings import open_training_data, retrain_command
from stages.backbones.tuning import mllm_of
from stages.core.actor_critic import ActorCritic
from stages.core.backward_path import BackwardPath
from stages.core.behavior import Behavior, data_outcomes, draw_batch
from stages.core.latents import Latents
from stages.core.nets import IMAGE_SIZE, MLP
from stages.core.settings import BehaviorConfig as Config
from stages.core.world_model import Noise, State, TaskContext, WorldModel
from stages.data.episodes import Dataset
from stages.data.inputs import find_inputs
from stages.data.sampler import Sampler, Windows, check_frame_size, data_device, prefetch
from stages.methods import BASELINES, base_method, open_model
from stages.methods.model_free import OfflineRLConfig, PixelLearner, make_reward, part_weights
from stages.methods.states import posterior_modes
from stages.policies.goals import Ask, Goal, Variant, behave_command, embed_goal, parse_goal
from stages.policies.play import play_policy, training_renderer
from stages.policies.policy import Acting, LatentPolicy, embedded_every
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact, Recipe
from stages.runtime.checkpoints import Resumable
from stages.runtime.compiling import keep_compiled, should_capture, should_compile
from stages.runtime.config import Run
from stages.runtime.distributed import World, require_one_process, world
from stages.runtime.errors import BadInput
from stages.runtime.loop import Loop, progress, seed_everything
from stages.runtime.names import DATA_FREE, ORACLE, is_model_free, method_option
from stages.runtime.update import Batch, Terms, make_optimizer, make_update, roomy
from stages.worlds import tasks

EARLY = 64  # decisions after an episode's beginning, in which a body that fell gets up


def run(
    config: Config,
    run: Run,
    ask: Ask,
    variant: Variant = Variant(),  # noqa: B008 (frozen)
    offline: OfflineRLConfig | None = None,
    backbone: str | None = None,
) -> Artifact:
    """Train and save a policy.

    Args:
        offline, backbone: section `offline_rl`, and whose embeddings are read; needed by the model-free methods alone.

    Raises:
        BadInput: no model or no data, options that do not go together. Interrupted: on a signal, after saving.
    """
    goal = parse_goal(run.domain, ask)
    check_options(config, goal, variant)
    if not is_model_free(variant.method):
        return learn_in_latents(config, run, goal, variant)
    if offline is None or backbone is None:
        raise BadInput(f"method {variant.method} needs the preset's section `offline_rl` and the name of a backbone")
    return learn_from_pixels(offline, backbone, run, goal, variant)


def check_options(config: Config, goal: Goal, variant: Variant) -> None:
    """Raise BadInput for options that do not go together."""
    method, oracle, data_free = variant.method, variant.oracle, variant.data_free
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
    if config.backward.every and (oracle or is_model_free(method) or base_method(method) in BASELINES):
        raise BadInput("behave.backward teaches BiTAgent's text imagination by its own reward: leave it out here")


# ---------------------------------------------------------------------------- with a world model


def learn_in_latents(config: Config, run: Run, goal: Goal, variant: Variant) -> Artifact:
    """The policy of a world model: the data encoded once under the prompts, then actor and critic on latents alone."""
    method, label = variant.method, variant.label
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
    path = run.root / "policy" / f"{label}-s{run.seed}" / goal.name
    recipe = Recipe(run, path, "behave", record, [source])
    if found := recipe.reuse():
        return found
    with world(run.device) as place, storage.locked(path) if place.is_main else nullcontext():
        # Inputs: the frozen world model, and what the prompts mean to it.
        device = place.device
        model = open_model(source, device)
        embedding = embed_goal(goal, source, run, source.meta["extra"]["backbone"], retrain_command(source, run))
        config = share(config, place, len(embedding))
        seed_everything(run.seed)
        with torch.no_grad():
            prompts = model.task(embedding.to(device))

        # Data: every row's posterior state under each prompt; for the control row, a head of the true reward.
        latents, oracle = None, None
        if not variant.data_free:
            dataset = open_training_data(source, run)
            modes = data_modes(model, source, dataset, run, device)
            latents = encode_data(model, dataset, modes, prompts, config.horizon, device)
            oracle = fit_oracle(latents, dataset, goal.tasks[0], config, place, run.quiet) if variant.oracle else None

        # Learner: actor and critics, and the loss of an update.
        seed_everything(run.seed + 1)
        learner = ActorCritic(model.dim_policy, model.dim_action, config.actor_critic).to(device)
        halves = (learner.actor, learner.values)
        actor, critic = (make_optimizer(list(half.parameters()), config.lr, 0.0) for half in halves)
        noise = Noise(device, place.rank, place.size)
        behavior = Behavior(model, learner, prompts, config, noise, oracle)
        loss = across(behavior, place)
        keep_compiled(run.root)
        compiled = should_compile(config.compile, device)
        captured = should_capture(config.compile, device, place.size)
        clipped = [(actor, config.clip), (critic, config.clip)]
        update = make_update(
            loss, clipped, device, bf16=config.bf16, compiled=compiled, captured=captured, after=learner.update_slow
        )
        watched, renderer = None, training_renderer(source) or "ray"
        if config.watch_every and place.is_main:
            with torch.random.fork_rng():  # loading a backbone draws numbers
                watched = LatentPolicy.assemble(
                    source, run.root, model, learner.slow_actor, embedding, Acting(str(device))
                )

        parts: dict[str, nn.Module | torch.optim.Optimizer] = {"learner": learner, "actor": actor, "critic": critic}

        # Backward path: now and then the language side learns from what the policy is imagined to do.
        backward = BackwardPath(behavior) if config.backward.every else None
        if backward:
            language = make_optimizer(list(backward.language.parameters()), config.backward.lr, 0.0)
            parts |= {"language": backward.language, "language_optimizer": language}
            refine = make_update(
                across(backward, place), [(language, config.clip)], device, bf16=config.bf16, compiled=compiled
            )
        trained = Resumable(**parts)

        # Loop: transitions of the data, and rollouts of the model, under rewards of the text.
        with Loop(recipe, config, place, behave_command(run, goal, label), ("behave.lr", config.lr)) as loop:
            loop.resume(trained.load)
            if backward:
                backward.refresh()
            found_outcomes = data_outcomes(behavior, latents) if latents else None
            for step in loop.steps():
                batch = draw_batch(latents, found_outcomes, config, noise, len(prompts.tau))
                terms = update(batch)
                if backward and step % config.backward.every == 0 and step < config.updates:
                    starts = config.model_copy(update={"decisions": config.imagined})
                    for _ in range(config.backward.updates):
                        learned = refine(draw_batch(latents, found_outcomes, starts, noise, len(prompts.tau)))
                    terms = terms | {name: learned[name] for name in ("backward_behavior", "backward_shown")}
                    backward.refresh()
                    found_outcomes = data_outcomes(behavior, latents) if latents else None
                if watched and step % config.watch_every == 0:
                    loop.log(step, watch(behavior, watched, batch, run, goal, renderer))
                loop.after(step, terms, trained.tensors, show=("imagined_reward", "imitation", "value"))

        # Artifact: the actor, averaged over its last updates, with the model and the prompt it goes with.
        learner.actor.load_state_dict(learner.slow_actor.state_dict())
        if place.is_main:
            extra = {k: source.meta["extra"][k] for k in ("dim_embedding", "dim_action", "backbone", "backbone_id")}
            extra["stride"] = embedded_every(source)
            tuned = {"backbone": source.tensors("backbone")} if mllm_of(source).in_loop else {}
            recipe.save(
                {
                    "model": model.state_dict(),
                    "actor_critic": {k: v for k, v in learner.state_dict().items() if not k.startswith("slow_actor.")},
                    "prompt": {"embedding": embedding},
                    **tuned,
                },
                {**extra, "mllm": mllm_of(source).model_dump(), "summary": loop.values},
            )
        place.barrier()
        return artifacts.load(path, "behave")


def across(loss: nn.Module, place: World) -> nn.Module:
    """The loss as it is taken over all processes, whose gradients are averaged."""
    return nn.parallel.DistributedDataParallel(loss, find_unused_parameters=True) if place.size > 1 else loss


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
def watch(
    behavior: Behavior, policy: LatentPolicy, batch: Batch, run: Run, goal: Goal, renderer: str
) -> dict[str, float]:
    """The policy as it is: the mean reward of its imagined rollouts beside its score in the real environment.

    Nothing is learned from it, and random numbers go on as if nobody had looked.
    """
    config = behavior.config
    with torch.random.fork_rng():
        task = behavior.prompts.rows(batch["prompt"])
        start = State.read(batch) if "h" in batch else behavior.dreamed_starts(task)
        states, actions, _ = behavior.rollout(start, task, config.horizon)
        seen = {"watch/imagined_reward": float(behavior.reward(task, states, actions).mean())}
        for index, name in enumerate(goal.tasks):
            policy.reset(index)
            returns = play_policy(policy, run.domain, name, config.watch_episodes, renderer=renderer).returns
            about = tasks.get_task(run.domain, name)
            seen[f"watch/score_{name}"] = float(np.mean([tasks.normalized_score(about, r) for r in returns]))
    return seen


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


# ---------------------------------------------------------------------------- the data as latents


def data_modes(model: WorldModel, source: Artifact, dataset: Dataset, run: Run, device: torch.device) -> Tensor:
    """Posterior modes (N, C) of the data of the model `source`, an artifact of its own: all its policies read the same.

    It depends on the model alone. Waits for another process that is making it.
    """
    path = run.root / "latents" / str(source.meta["name"])
    record = {"precision": "float32"}
    recipe = Recipe(run, path, "latents", record, [source])
    with storage.locked(path, wait=True):
        # What was read in another precision is made again: nobody asks for these by a command of their own.
        stale = artifacts.finished(path, fresh=False) and artifacts.load(path, "latents").meta["config"] != record
        found = artifacts.reuse(path, "latents", record, run.seed, [source], fresh=stale, renew=True)
        if found is None:
            modes = posterior_modes(model, dataset, device, quiet=run.quiet)
            found = recipe.save({"posterior": {"modes": modes}})
        with artifacts.rebuilding(found):
            modes = found.tensors("posterior")["modes"]
            if modes.shape != (dataset.n_frames, model.config.classes):
                raise ValueError("it holds states of another shape than the model's")
            if modes.min() < 0 or modes.max() >= model.config.categories:
                raise ValueError("it holds states that the model does not have")
        return modes


@torch.no_grad()
def encode_data(
    model: WorldModel,
    dataset: Dataset,
    modes: Tensor,
    prompts: TaskContext,
    horizon: int,
    device: torch.device,
) -> Latents:
    """Filter every episode from its first frame under each prompt, with the posterior's `modes` (N, C).

    In float32, as a policy filters when it acts: it is to meet the states that it learned from.

    Raises:
        BadInput: no episode is longer than `horizon`.
    """
    count, rows = len(prompts.tau), dataset.n_frames
    c = model.config
    width = count * (c.deter + model.dim_z) + model.dim_embedding
    half = {"dtype": torch.float16, "device": roomy(2 * rows * width, device)}
    h, z = torch.empty(count, rows, c.deter, **half), torch.empty(count, rows, model.dim_z, **half)  # type: ignore[call-overload]
    e_all = torch.empty(rows, model.dim_embedding, **half)  # type: ignore[call-overload]
    for episodes in equal_length_groups(dataset, rows_at_once=16384):
        start, length = dataset.episode_info.start[episodes], int(dataset.episode_info.length[episodes[0]])
        index = start[:, None] + np.arange(length)  # (B, T)
        flat = torch.from_numpy(index.ravel()).to(h.device)
        action = torch.from_numpy(dataset.rows("action", index)).to(device)
        e = torch.from_numpy(dataset.rows("embedding", index)).to(device).float()
        s = F.one_hot(modes[torch.from_numpy(index)].to(device).long(), c.categories).flatten(-2).float()  # (B, T, S)
        is_first = torch.zeros(index.shape, dtype=torch.bool, device=device)
        is_first[:, 0] = True
        e = model.adapter(F.normalize(e, dim=-1))
        for k in range(count):
            fused = model.fuse(e, s, prompts.gates[k].expand(len(index), 1, -1, -1))
            states = model.rssm.scan(fused, action, is_first, model.rssm.first(len(index)))
            h[k, flat], z[k, flat] = (x.flatten(0, 1).half().to(h.device) for x in (states, fused))
        e_all[flat] = e.flatten(0, 1).half().to(h.device)
    info = dataset.episode_info
    long_enough = np.flatnonzero(info.length > horizon)
    if not len(long_enough):
        raise BadInput(f"no episode is longer than behave.horizon = {horizon}; lower it or collect longer episodes")
    episodes = np.stack([info.start, info.length], 1)[long_enough]  # (E, 2)
    every = np.arange(dataset.n_frames)
    lead = info.past[long_enough]  # rows of a branch whose video windows lack their past
    decisions = [start + np.arange(past, length - 1) for (start, length), past in zip(episodes, lead, strict=True)]
    early = [d[:EARLY] for d, past in zip(decisions, lead, strict=True) if not past] or decisions
    action, reward = (torch.from_numpy(dataset.rows(k, every)).float().to(device) for k in ("action", "reward"))
    rows_of = (torch.from_numpy(x).to(device) for x in (episodes, np.concatenate(decisions), np.concatenate(early)))
    tried = np.repeat([p.source == "branch" for p in dataset.parts], [p.frames for p in dataset.parts])  # (N,)
    return Latents(h, z, e_all, action, reward, torch.from_numpy(~tried).float().to(device), *rows_of)


def equal_length_groups(dataset: Dataset, rows_at_once: int) -> list[np.ndarray]:
    """Episodes of one length together, about `rows_at_once` rows a group."""
    groups = []
    lengths = dataset.episode_info.length
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        size = max(1, rows_at_once // int(length))
        groups += [same[i : i + size] for i in range(0, len(same), size)]
    return groups


# ---------------------------------------------------------------------------- without a world model


def learn_from_pixels(config: OfflineRLConfig, backbone: str, run: Run, goal: Goal, variant: Variant) -> Artifact:
    """The policy of a model-free method, from stacked frames and the similarity of their embeddings to the prompt."""
    label, path = variant.label, run.root / "policy" / f"{variant.label}-s{run.seed}" / goal.name
    if len(goal.prompts) > 1:
        raise BadInput(f"method {label} learns one prompt a policy: give --task, --prompt or --video")
    data, embeddings = find_inputs(run, backbone)
    again = run.command("embed", "--backbone", backbone, "--fresh")
    embedding = embed_goal(goal, embeddings[0], run, backbone, again)  # (1, dim_e)
    asked = {"prompts": [*goal.prompts], "tasks": [*goal.tasks]}
    record = {"offline_rl": config.model_dump(), "method": label, "backbone": backbone, **asked}
    recipe = Recipe(run, path, "behave", record, [*data, *embeddings])
    if found := recipe.reuse():
        return found
    require_one_process(f"behave --method {label}")
    with world(run.device) as place, storage.locked(path):
        # Inputs: windows of frames; the reward is the similarity to the prompt, or the true one of the task's own data.
        dataset = Dataset.open([a.path for a in data], run.domain, [a.path for a in embeddings])
        check_frame_size(dataset, IMAGE_SIZE)
        seed_everything(run.seed)
        task = goal.tasks[0] if variant.oracle else ""
        reward = make_reward(dataset, embedding[0].to(place.device), task, config.sharpness, place.device)
        sampler = Sampler(
            dataset,
            config.td3.batch,
            config.stack + config.n_step,
            run.seed,
            Windows(config.start_fraction, part_weights(dataset, task) if task else None),
            keys=("image", "action", "is_first", "is_terminal", "reward" if task else "embedding"),
            device=data_device(dataset, place.device),
        )

        # Learner and loop.
        learner = PixelLearner(config, variant.method, dataset.action_dim, run.seed, place.device, reward)
        rate = ("offline_rl.td3.lr", config.td3.lr)
        with Loop(recipe, config, place, behave_command(run, goal, label), rate) as loop:
            loop.resume(learner.load)
            batches = prefetch(sampler, loop.start, config.updates, device=str(place.device))
            for step, batch in zip(loop.steps(), batches, strict=False):
                terms = learner.update(batch, step)
                loop.after(step, terms, learner.tensors, show=("value", "critic_loss"))

        # Artifact.
        extra = {
            "dim_embedding": embedding.shape[-1],
            "dim_action": dataset.action_dim,
            "backbone": backbone,
            "backbone_id": backbone_id(embeddings[0], backbone, run),
            "summary": loop.values,
        }
        weights = {"encoder": learner.encoder.state_dict(), "actor": learner.agent.actor.state_dict()}
        return recipe.save({**weights, "prompt": {"embedding": embedding}}, extra)
