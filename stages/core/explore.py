"""The online explorer: Plan2Explore on our world model, its whole replay kept on disk.

    train_explorer(job, channel)    # runs or continues; returns when the replay holds every episode
    load_episode(job.replay, 12)    # any episode of the replay

No reward and no language: the world model is the joint model read without semantics, and the policy seeks
states where an ensemble of one-step predictors disagrees (Sekar et al. 2020). Random episodes come first; then
updates on the replay, so many for every episode in it, and one more episode from pixels, in turn. Everything
random is drawn from generators seeded by (seed, domain, task, episode or update), so a checkpoint is the
networks, the optimizers and the number of updates: a stopped run continues to the same bits as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from stages.core import checkpoints, tasks
from stages.core.actor_critic import ActorCritic, ActorCriticConfig
from stages.core.agent import JointModel, ModelConfig, Noise, Observed, State, TaskContext
from stages.core.config import Section, Share
from stages.core.experts import (
    DECISIONS,
    Policy,
    ReplayJob,
    correlated_noise,
    episode_file,
    play,
    random_policy,
    store_episode,
)
from stages.core.nets import MLP
from stages.core.objective import ObjectiveConfig, world_model_loss
from stages.core.render import render_states
from stages.core.running import Metrics, require_finite
from stages.core.shards import Shard, allow_open_files, read_sealed
from stages.core.training import Batch, Terms, load_optimizer_tensors, make_optimizer, make_update, optimizer_tensors
from stages.core.workers import Channel

NO_SEMANTICS = 1  # width of the embedding that is always zero


class ExploreConfig(Section):
    """Section `collect.explore` of the preset; defaults and comments in presets/paper.yaml."""

    in_all: bool
    episodes: PositiveInt
    random_episodes: PositiveInt
    updates: PositiveInt
    batch: PositiveInt
    length: int = Field(ge=2, le=DECISIONS + 1)
    start_fraction: Share
    lr: float
    policy_lr: float
    saturation: float
    clip: float
    members: int = Field(ge=2)
    layers: PositiveInt
    imagined: PositiveInt
    horizon: PositiveInt
    bf16: bool
    checkpoint_episodes: PositiveInt


@dataclass(frozen=True)
class AgentConfig:
    """The sections of other stages that the explorer's networks and losses are made from."""

    model: ModelConfig
    objective: ObjectiveConfig
    actor_critic: ActorCriticConfig

    @property
    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        parts = {"model": self.model, "objective": self.objective, "actor_critic": self.actor_critic}
        return {name: part.model_dump() for name, part in parts.items()}


@dataclass(frozen=True)
class ExploreJob(ReplayJob):
    """The exploration of one domain; `task` only names the reward that is recorded and never read.

    `correlation` in time is that of the random episodes' actions and of the noise the policy is sampled with.
    """

    config: ExploreConfig
    agent: AgentConfig
    correlation: float
    device: str = "cpu"

    @property
    def about(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        facts = {"domain": self.domain, "task": self.task, "seed": self.seed, "episodes": self.episodes}
        config = self.config.model_dump(exclude={"in_all", "episodes"})
        return {**facts, "correlation": self.correlation, "config": config, "agent": self.agent.record}


# ---------------------------------------------------------------------------- what is learned


class Ensemble(nn.Module):
    """Networks that differ in their initial weights alone and predict one step: (..., I) → (M, ..., O)."""

    def __init__(self, members: int, inp: int, out: int, units: int, layers: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(MLP(inp, out, units, layers) for _ in range(members))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x).float() for member in self.members])

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Squared error to target (..., O), summed over features and members, mean over the rest."""
        return (self(x) - target).square().sum((0, -1)).mean()

    def disagreement(self, x: Tensor) -> Tensor:
        """Variance over the members, mean over features: (..., I) → (...) (Plan2Explore, Eq. 3)."""
        return self(x).var(0, unbiased=False).mean(-1)


class Explorer(nn.Module):
    """World model, ensemble and policy, with their losses.

    The world model is the joint model with the direct sum for a fusion and semantics that are always zero, so z
    is a function of the stochastic state alone; its language side is never trained. What the ensemble predicts is
    the posterior q(s_t | x_t), which reads the image alone: our embedding of the frame. It does so from h_t, what
    the dynamics make of (h, z) a step before and the action taken there.
    """

    def __init__(self, config: ExploreConfig, agent: AgentConfig, dim_action: int, device: str = "cpu") -> None:
        super().__init__()
        sizes = agent.model.model_copy(update={"fusion": "sum", "imagined_semantics": "hold"})
        self.config, self.objective, self.noise = config, agent.objective, Noise(device)
        self.model = JointModel(sizes, NO_SEMANTICS, dim_action)
        features, dim_s = sizes.deter + sizes.dim_z, sizes.classes * sizes.categories
        self.ensemble = Ensemble(config.members, sizes.deter, dim_s, sizes.units, config.layers)
        self.learner = ActorCritic(features, dim_action, agent.actor_critic)
        self.to(device)

    def nothing(self, *lead: int) -> tuple[Tensor, TaskContext]:
        """The semantics that are not there (*lead, 1), and the context of no prompt (lead[0], ...)."""
        e = torch.zeros(*lead, NO_SEMANTICS, device=self.noise.device)
        with torch.no_grad():
            return e, self.model.task(torch.zeros(lead[0], NO_SEMANTICS, device=self.noise.device))

    def observe(self, batch: Batch, image: Tensor) -> Observed:
        """Filter windows of the replay: image (B, T, 3, 64, 64)."""
        e, context = self.nothing(*image.shape[:2])
        return self.model.observe(image, batch["action"], batch["is_first"], e, context, self.noise)

    def model_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        """L_WM (Eq. 12) and the ensemble's error; its inputs and targets are constants, so it moves no world model.

        Args:
            batch: image (B, T, 3, 64, 64) uint8, action (B, T, A), is_first (B, T) true at most at t = 0.
        Returns:
            the loss, and terms among which h (B, T, deter) and z (B, T, dim_z) are the posterior states.
        """
        image = batch["image"]
        seen = self.observe(batch, image)
        terms = world_model_loss(self.model, seen, image, batch["is_first"], self.objective)
        h = seen.state.h[:, 1:].detach()  # (B, T-1, deter); the first has no past to predict from
        terms["ensemble"] = self.ensemble.loss(h, seen.posterior[:, 1:].detach().exp().flatten(-2))
        total = terms["kl"] + terms["image"] + terms["ensemble"]
        with torch.no_grad():
            terms["disagreement"] = self.ensemble.disagreement(h).mean()
        terms |= {"h": seen.state.h, "z": seen.state.z.float()}
        return total, {k: v.detach() for k, v in terms.items()}

    def reward(self, h: Tensor, usual: Tensor) -> Tensor:
        """Disagreement about the frames at h (N, H, deter), in units of its `usual` value in the replay: (N, H).

        Times 1 - γ: returns are then near 1, as the critic and the floor of the return range expect, whatever γ.
        """
        return self.ensemble.disagreement(h) / usual.clamp(min=1e-8) * (1 - self.learner.config.discount)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        """Actor and critic losses on rollouts under the policy, from h (N, deter), z (N, dim_z); needs `usual` ()."""
        count, horizon = len(batch["h"]), self.config.horizon
        e, context = self.nothing(count)
        normal = self.noise.normal(count, horizon, self.model.dim_action)

        stds = []

        def act(features: Tensor, step: int) -> Tensor:
            action, std = self.learner.actor.sample(features.detach(), normal[:, step])
            stds.append(std)
            return action

        start = State(batch["h"], batch["z"], e)
        states, _, _ = self.model.imagine(start, act, horizon, context, self.noise)
        reward = self.reward(states.h[:, 1:], batch["usual"])
        actor, critic, terms = self.learner.imagination_losses(states.features, reward, torch.stack(stds, 1))
        raw, _ = self.learner.actor.net(states.features.detach()).float().chunk(2, -1)  # the mean before its tanh
        loss = actor + critic + self.config.saturation * raw.square().sum(-1).mean()
        return loss, terms | {
            "actor": actor.detach(),
            "critic": critic.detach(),
            "policy_mean": raw.abs().mean().detach(),
        }

    @torch.no_grad()
    def act(self, image: Tensor, state: State | None, action: Tensor, normal: Tensor) -> tuple[Tensor, State]:
        """A sampled action (1, A) for one frame (1, 3, 64, 64), after `action`; `state` None begins an episode."""
        e, context = self.nothing(1)
        state = self.model.observe_step(image, state, action, e, context)
        mean, std = self.learner.actor(state.features)
        return (mean + std * normal).clamp(-1.0, 1.0), state


class Training:
    """An explorer and its optimizers; `update` is one step of world model, ensemble and policy."""

    def __init__(self, config: ExploreConfig, agent: AgentConfig, dim_action: int, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.explorer = explorer = Explorer(config, agent, dim_action, device)
        model, learner = explorer.model, explorer.learner
        trained = [model.rssm, model.fusion, model.decoder]
        parts: dict[str, tuple[list[nn.Module], float]] = {
            "model": (trained, config.lr), "ensemble": ([explorer.ensemble], config.lr),
            "actor": ([learner.actor], config.policy_lr), "critic": ([learner.critic], config.policy_lr),
        }  # fmt: skip
        self.optimizers = {
            name: make_optimizer([p for m in modules for p in m.parameters() if p.requires_grad], lr, 0.0)
            for name, (modules, lr) in parts.items()
        }
        clipped = {name: (optimizer, config.clip) for name, optimizer in self.optimizers.items()}
        make = partial(make_update, device=torch.device(device), bf16=config.bf16, compiled=False)
        self.learn = make(explorer.model_loss, [clipped["model"], clipped["ensemble"]])
        self.improve = make(explorer.policy_loss, [clipped["actor"], clipped["critic"]], after=learner.update_slow)

    def update(self, batch: Batch) -> Terms:
        """World model and ensemble on the batch; then the policy, in imagination from some of its states."""
        terms = self.learn(batch)
        h, z = (terms.pop(name).flatten(0, 1) for name in ("h", "z"))  # (B·T, ·)
        chosen = torch.randperm(len(h), device=h.device)[: self.config.imagined]
        start = {"h": h[chosen], "z": z[chosen], "usual": terms["disagreement"]}
        self._freeze(True)  # the policy's gradient passes through the model, which it must not move
        improved = self.improve(start)
        self._freeze(False)
        return terms | {name: value for name, value in improved.items() if name not in terms}

    def _freeze(self, frozen: bool) -> None:
        for module in (self.explorer.model, self.explorer.ensemble):
            module.requires_grad_(not frozen)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint needs to continue bit for bit."""
        groups = {name: optimizer_tensors(optimizer) for name, optimizer in self.optimizers.items()}
        return {"explorer": self.explorer.state_dict()} | groups

    def load(self, groups: Mapping[str, dict[str, Tensor]]) -> None:
        """Inverse of `tensors`."""
        self.explorer.load_state_dict(groups["explorer"])
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(optimizer, groups[name])


# ---------------------------------------------------------------------------- replay and playing


class PixelReplay:
    """Episodes with frames, memory-mapped; windows are drawn evenly over episodes and never leave theirs."""

    def __init__(self, episodes: int) -> None:
        allow_open_files(episodes)
        self.shards: list[Shard] = []

    def add(self, file: Path) -> None:
        self.shards.append(Shard(file))

    def sample(self, config: ExploreConfig, rng: np.random.Generator, device: str) -> dict[str, Tensor]:
        """image (B, T, 3, 64, 64) uint8, action (B, T, A), is_first (B, T); some begin at an episode's first row."""
        at_start = round(config.batch * config.start_fraction)
        windows = []
        for row in range(config.batch):
            arrays = self.shards[rng.integers(len(self.shards))].arrays
            start = rng.integers(len(arrays["reward"]) - config.length + 1) if row >= at_start else 0
            windows.append({k: arrays[k][start : start + config.length] for k in ("image", "action", "is_first")})
        stacked = {k: np.stack([window[k] for window in windows]) for k in windows[0]}
        return {k: torch.from_numpy(array).to(device) for k, array in stacked.items()}


def pixel_policy(explorer: Explorer, env: tasks.Env, noise: np.ndarray, frames: list[np.ndarray]) -> Policy:
    """The policy sampled with noise (DECISIONS, A), from the frames alone; each frame seen goes into `frames`."""
    device = explorer.noise.device
    state, action = None, torch.zeros(1, env.action_dim, device=device)
    normal = torch.from_numpy(noise).float().to(device)

    def act(observation: np.ndarray, decision: int) -> np.ndarray:
        nonlocal state, action
        frames.append(env.render())
        image = torch.from_numpy(frames[-1]).to(device)[None]  # (1, 3, 64, 64)
        action, state = explorer.act(image, state, action, normal[decision])
        return action[0].cpu().numpy()

    return act


# ---------------------------------------------------------------------------- training


def train_explorer(job: ExploreJob, channel: Channel) -> dict[str, Any] | None:
    """Explore, or go on exploring, until the replay holds `job.episodes`; None when told to stop before.

    Returns:
        facts for artifact.json.
    """
    torch.set_num_threads(1)
    config, env = job.config, tasks.make_env(job.domain, job.task)
    training = Training(config, job.agent, env.action_dim, job.device, job.seed_of("explore", "networks"))
    job.replay.mkdir(parents=True, exist_ok=True)
    done = _resume(job, training)
    first = min(config.random_episodes, job.episodes)
    begun = max(first, done // config.updates + 1)  # episodes played so far: number n after n * updates updates
    if done:
        channel.report(begun * DECISIONS)
    elif not _explore_randomly(job, env, first, channel):
        return None
    replay = PixelReplay(job.episodes)
    for number in range(begun):
        file = episode_file(job.replay, number)
        read_sealed(file)  # what an earlier attempt left is learned from only when it is what was written
        replay.add(file)
    metrics = Metrics(job.path.parent / f"{job.path.name}.log", start_step=begun)
    for number in range(begun, job.episodes):
        terms: Terms = {}
        while done < number * config.updates:
            if channel.stopped():
                _checkpoint(job, done, training)
                return None
            terms = _update(job, training, replay, done)
            done += 1
        figures = _figures(job, number, terms)
        metrics.log(number, {"decisions": number * DECISIONS, **figures})
        _explore(job, env, training.explorer, number)
        replay.add(episode_file(job.replay, number))
        channel.report(DECISIONS, f"disagreement {figures['disagreement']:.2g}, image {figures['image']:.0f}")
        if (number + 1) % config.checkpoint_episodes == 0 or number + 1 == job.episodes:
            _checkpoint(job, done, training)
    metrics.close()
    return {"updates": done, "random_episodes": first}


def _explore_randomly(job: ExploreJob, env: tasks.Env, episodes: int, channel: Channel) -> bool:
    """Play the random episodes into the replay; false when told to stop before they are all there."""
    for number in range(episodes):
        if channel.stopped():
            return False
        seed = job.seed_of("explore", number)
        rollout = play(env, seed, random_policy(env, seed, job.correlation))
        assert rollout.episode.state is not None
        rollout.episode.image = render_states(job.domain, rollout.episode.state)
        store_episode(job.replay, number, rollout)
        channel.report(DECISIONS)
    return True


def _explore(job: ExploreJob, env: tasks.Env, explorer: Explorer, number: int) -> None:
    """Play one episode from pixels into the replay."""
    seed = job.seed_of("explore", number)
    noise = correlated_noise(np.random.default_rng(seed), DECISIONS, env.action_dim, job.correlation)
    frames: list[np.ndarray] = []
    rollout = play(env, seed, pixel_policy(explorer, env, noise, frames))
    rollout.episode.image = np.stack([*frames, env.render()])  # (T, 3, 64, 64); no action follows the last
    store_episode(job.replay, number, rollout)


def _update(job: ExploreJob, training: Training, replay: PixelReplay, step: int) -> Terms:
    seed = job.seed_of("explore", "update", step)
    torch.manual_seed(seed)
    return training.update(replay.sample(job.config, np.random.default_rng(seed), job.device))


def _figures(job: ExploreJob, number: int, terms: Terms) -> dict[str, float]:
    """The terms as floats. Raises BadInput when one is not finite."""
    figures = {name: float(value) for name, value in terms.items()}
    lower = f"collect.explore.lr={job.config.lr / 3:.2g}"
    require_finite(number, figures, checkpoints.folder(job.path), lower)
    return figures


def _checkpoint(job: ExploreJob, updates: int, training: Training) -> None:
    checkpoints.save(job.path, updates, training.tensors(), job.about)


def _resume(job: ExploreJob, training: Training) -> int:
    """Restore networks and optimizers from the last checkpoint; the number of updates done."""
    found = checkpoints.load(job.path, job.about)
    if found is None:
        return 0
    done, groups = found
    training.load(groups)
    return done
