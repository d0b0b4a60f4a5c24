"""An agent that learns online from pixels: our world model, and a policy in imagination for a reward of its own.

    facts = train_online(job, channel)  # runs or continues; None when told to stop before the replay is full
    load_episode(job.replay, 12)        # any episode of the replay

No language: the world model is the joint model read without semantics. What the policy is rewarded for is a module
fitted to the replay beside the world model: stages/agents/explore.py seeks what the model cannot predict yet,
stages/agents/dreamer.py a task's true reward. Random episodes come first; then updates on the replay, so many for every
episode in it, and one more episode from pixels, in turn. Everything random is drawn from generators seeded by (seed,
domain, task, episode or update), so a checkpoint is the networks, the optimizers and the number of updates: a stopped
run continues to the same bits as an undisturbed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from stages.agents.pixel_agent import Agent, AgentConfig, OnlineConfig, Reward
from stages.agents.replay import (
    DECISIONS,
    PolicyFunction,
    ReplayJob,
    correlated_noise,
    episode_file,
    play_episode,
    random_policy,
    store_episode,
)
from stages.data.shards import Shard, allow_open_files, read_sealed
from stages.runtime.checkpoints import Resumable
from stages.runtime.update import Batch, Terms, make_optimizer, make_update
from stages.runtime.workers import Channel
from stages.worlds import tasks
from stages.worlds.render import render_states


@dataclass(frozen=True)
class OnlineJob(ReplayJob):
    """The training of one agent from pixels.

    `correlation` in time is that of the random episodes' actions and of the noise the policy is sampled with.
    """

    config: OnlineConfig
    agent: AgentConfig
    correlation: float
    device: str = "cpu"

    kind: ClassVar[str]  # its section of `collect`; tells its seeds from those of other agents on the same task

    @property
    def about(self) -> dict[str, Any]:
        made = {"config": self.config.model_dump(exclude={"in_all", "episodes"}), "agent": self.agent.record}
        return super().about | {"kind": self.kind, "correlation": self.correlation, **made}

    @property
    def rate(self) -> tuple[str, float]:
        return f"collect.{self.kind}.lr", self.config.lr

    def make_reward(self) -> Reward:
        """A fresh module for what this agent is rewarded for."""
        raise NotImplementedError

    def facts(self, agent: Agent, env: tasks.Env, returns: list[float]) -> dict[str, Any]:
        """Facts for artifact.json of a finished training, from the true returns of every episode."""
        raise NotImplementedError


class Training(Resumable):
    """An agent and its optimizers; `update` is one step of world model, reward and policy."""

    def __init__(self, job: OnlineJob, dim_action: int) -> None:
        torch.manual_seed(job.seed_of(job.kind, "networks"))
        self.config = config = job.config
        self.agent = agent = Agent(config, job.agent, job.make_reward(), dim_action, job.device)
        model, learner = agent.model, agent.learner
        trained = [model.rssm, model.fusion, model.decoder]
        parts: dict[str, tuple[list[nn.Module], float]] = {
            "model": (trained, config.lr), "reward": ([agent.reward], config.lr),
            "actor": ([learner.actor], config.policy_lr), "critic": ([learner.critic], config.policy_lr),
        }  # fmt: skip
        optimizers = {
            name: make_optimizer([p for m in modules for p in m.parameters() if p.requires_grad], lr, 0.0)
            for name, (modules, lr) in parts.items()
        }
        self.parts = {"agent": agent, **optimizers}
        clipped = {name: (optimizer, config.clip) for name, optimizer in optimizers.items()}
        make = partial(make_update, device=torch.device(job.device), bf16=config.bf16, compiled=False)
        self.learn = make(agent.model_loss, [clipped["model"], clipped["reward"]])
        self.improve = make(agent.policy_loss, [clipped["actor"], clipped["critic"]], after=learner.update_slow)

    def update(self, batch: Batch) -> Terms:
        """World model and reward on the batch; then the policy, in imagination from some of its states.

        Only states in the later half of a window are begun from: as when acting, h holds what came before.
        """
        terms = self.learn(batch)
        h, z = (terms.pop(name)[:, self.config.length // 2 :].flatten(0, 1) for name in ("h", "z"))  # (B·T', ·)
        chosen = torch.randperm(len(h), device=h.device)[: self.config.imagined]
        self._freeze(True)  # the policy's gradient passes through the model, which it must not move
        improved = self.improve({"h": h[chosen], "z": z[chosen]})
        self._freeze(False)
        return terms | {name: value for name, value in improved.items() if name not in terms}

    def _freeze(self, frozen: bool) -> None:
        for module in (self.agent.model, self.agent.reward):
            module.requires_grad_(not frozen)


# ---------------------------------------------------------------------------- replay and playing


class PixelReplay:
    """Episodes with frames, memory-mapped; windows never leave theirs.

    Windows are drawn evenly over all episodes, but for a share of the newest: there the policy is now.
    """

    def __init__(self, episodes: int) -> None:
        allow_open_files(episodes)
        self.shards: list[Shard] = []

    def add(self, file: Path) -> None:
        self.shards.append(Shard(file))

    def sample(self, config: OnlineConfig, rng: np.random.Generator, device: str) -> dict[str, Tensor]:
        """image (B, T, 3, 64, 64) uint8, action (B, T, A), reward and is_first (B, T)."""
        windows = []
        for _ in range(config.batch):
            pool = self.shards[-config.recent_episodes :] if rng.random() < config.recent_fraction else self.shards
            arrays = pool[rng.integers(len(pool))].arrays
            starts = len(arrays["reward"]) - config.length + 1
            start = 0 if rng.random() < config.start_fraction else rng.integers(starts)
            rows, names = slice(start, start + config.length), ("image", "action", "reward", "is_first")
            windows.append({name: arrays[name][rows] for name in names})
        stacked = {k: np.stack([window[k] for window in windows]) for k in windows[0]}
        return {k: torch.from_numpy(array).to(device) for k, array in stacked.items()}


def pixel_policy(agent: Agent, env: tasks.Env, noise: np.ndarray, frames: list[np.ndarray]) -> PolicyFunction:
    """The policy sampled with noise (DECISIONS, A), from the frames alone; each frame seen goes into `frames`."""
    device = agent.noise.device
    state, action = None, torch.zeros(1, env.action_dim, device=device)
    normal = torch.from_numpy(noise).float().to(device)

    def act(observation: np.ndarray, decision: int) -> np.ndarray:
        nonlocal state, action
        frames.append(env.render())
        image = torch.from_numpy(frames[-1]).to(device)[None]  # (1, 3, 64, 64)
        action, state = agent.act(image, state, action, normal[decision])
        return action[0].cpu().numpy()

    return act


# ---------------------------------------------------------------------------- training


def train_online(job: OnlineJob, channel: Channel) -> dict[str, Any] | None:
    """Train, or go on training, until the replay holds `job.episodes`; None when told to stop before.

    Returns:
        facts for artifact.json: the number of updates, and those of the job.
    """
    torch.set_num_threads(1)
    config, env = job.config, tasks.make_env(job.domain, job.task)
    training = Training(job, env.action_dim)
    job.replay.mkdir(parents=True, exist_ok=True)
    done = job.resume(training)
    first = min(config.random_episodes, job.episodes)
    begun = max(first, done // config.updates + 1)  # episodes played so far: number n after n * updates updates
    if done:
        channel.report(begun * DECISIONS)
    elif not _play_randomly(job, env, first, channel):
        return None
    replay, returns = PixelReplay(job.episodes), list[float]()

    def remember(number: int) -> None:
        file = episode_file(job.replay, number)
        returns.append(float(read_sealed(file)["reward"].sum(dtype=np.float64)))  # learned from only when unharmed
        replay.add(file)

    for number in range(begun):
        remember(number)
    metrics = job.metrics(begun)
    for number in range(begun, job.episodes):
        terms: Terms = {}
        while done < number * config.updates:
            if channel.stopped():
                job.save(done, training)
                return None
            seed = job.seed_of(job.kind, "update", done)
            torch.manual_seed(seed)
            terms = training.update(replay.sample(config, np.random.default_rng(seed), job.device))
            done += 1
        figures = job.figures(number, terms)
        _play(job, env, training.agent, number)
        remember(number)
        metrics.log(number, {"decisions": number * DECISIONS, "return": returns[-1], **figures})
        channel.report(DECISIONS, f"return {returns[-1]:.0f}, image {figures['image']:.0f}")
        if (number + 1) % config.checkpoint_episodes == 0 or number + 1 == job.episodes:
            job.save(done, training)
    metrics.close()
    return {"updates": done, **job.facts(training.agent, env, returns)}


def _play_randomly(job: OnlineJob, env: tasks.Env, episodes: int, channel: Channel) -> bool:
    """Play the random episodes into the replay; false when told to stop before they are all there."""
    for number in range(episodes):
        if channel.stopped():
            return False
        seed = job.seed_of(job.kind, number)
        rollout = play_episode(env, seed, random_policy(env, seed, job.correlation))
        assert rollout.episode.state is not None
        rollout.episode.image = render_states(job.domain, rollout.episode.state)
        store_episode(job.replay, number, rollout)
        channel.report(DECISIONS)
    return True


def _play(job: OnlineJob, env: tasks.Env, agent: Agent, number: int) -> None:
    """Play one episode from pixels into the replay."""
    seed = job.seed_of(job.kind, number)
    noise = correlated_noise(np.random.default_rng(seed), DECISIONS, env.action_dim, job.correlation)
    frames: list[np.ndarray] = []
    rollout = play_episode(env, seed, pixel_policy(agent, env, noise, frames))
    rollout.episode.image = np.stack([*frames, env.render()])  # (T, 3, 64, 64); no action follows the last
    store_episode(job.replay, number, rollout)
