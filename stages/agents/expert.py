"""The online expert: TD3 from physics observations on one task, its whole replay kept on disk.

    train_expert(job, channel)      # runs or continues; returns when the budget of decisions is spent
    load_episode(job.replay, 12)    # any episode of the replay, random to expert

Training goes episode by episode: play one with a fixed policy and noise, store it, then update. When it is over, the
finished agent plays on, and is upset now and then: a replay of gaits alone does not show how to get up. Everything
random is drawn from generators seeded by (seed, task, episode), so a checkpoint is the networks, the
optimizers and the number of episodes: a stopped run continues to the same bits as an undisturbed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor

from stages.agents.replay import (
    DECISIONS,
    PlayedEpisode,
    PolicyFunction,
    ReplayJob,
    correlated_noise,
    load_episode,
    play_episode,
    random_policy,
    replay_facts,
    store_episode,
)
from stages.agents.two_hot import symlog
from stages.methods.td3 import TD3, TD3Config
from stages.runtime.config import PartShare, Section, Share
from stages.runtime.errors import BadInput
from stages.runtime.workers import Channel
from stages.worlds import tasks


class ExpertConfig(Section):
    """Section `collect.expert` of the preset; defaults and comments in presets/paper.yaml."""

    decisions: dict[str, int]
    keep_episodes: int
    settled_episodes: int
    settled_noise: Share
    upset_every: int
    upset_decisions: tuple[int, int]
    random_episodes: int
    updates_per_decision: float
    n_step: int
    noise_start: float
    noise_end: tuple[Share, Share]
    noise_decisions: int
    noise_correlation: PartShare
    evaluation_episodes: int
    checkpoint_episodes: int
    td3: TD3Config

    @field_validator("upset_decisions")
    @classmethod
    def _ascending(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError("give the shortest length, 0 or more, and then the longest")
        return value


@dataclass(frozen=True)
class ExpertJob(ReplayJob):
    """One expert to train for `episodes`, which then plays `settled` more."""

    config: ExpertConfig
    settled: int

    @property
    def total(self) -> int:
        """Episodes in the replay at the end."""
        return self.episodes + self.settled

    @property
    def about(self) -> dict[str, Any]:
        config = self.config.model_dump(exclude={"decisions", "keep_episodes", "settled_episodes"})
        return super().about | {"settled": self.settled, "config": config}

    @property
    def rate(self) -> tuple[str, float]:
        return "collect.expert.td3.lr", self.config.td3.lr


def actor_policy(agent: TD3, noise: np.ndarray) -> PolicyFunction:
    """The actor's action plus noise (DECISIONS, A), clipped to [-1, 1]."""

    def act(observation: np.ndarray, decision: int) -> np.ndarray:
        with torch.no_grad():
            action = agent.actor(symlog(torch.from_numpy(observation))[None])[0].numpy()
        return np.clip(action + noise[decision], -1.0, 1.0)

    return act


# ---------------------------------------------------------------------------- replay


class Replay:
    """All transitions of a run in preallocated tensors, as n-step returns; samples are uniform."""

    def __init__(self, episodes: int, obs_dim: int, action_dim: int, n_step: int, discount: float) -> None:
        decisions = episodes * DECISIONS
        self.n_step, self.discount, self.size, self.rows = n_step, discount, 0, 0
        self.obs = torch.zeros(decisions + episodes, obs_dim)  # (N, O)
        self.row = torch.zeros(decisions, dtype=torch.int64)
        self.next_row = torch.zeros(decisions, dtype=torch.int64)
        self.action = torch.zeros(decisions, action_dim)
        self.reward = torch.zeros(decisions)
        self.bootstrap = torch.zeros(decisions)

    def add(self, observation: np.ndarray, action: np.ndarray, reward: np.ndarray, is_terminal: np.ndarray) -> None:
        """Append one episode of T rows (Dreamer convention: action[t] led to row t)."""
        count = len(reward) - 1
        here, at = slice(self.size, self.size + count), self.rows
        self.obs[at : at + count + 1] = symlog(torch.from_numpy(np.array(observation)))
        per_step = reward[1:].astype(np.float64) / tasks.ACTION_REPEAT  # keeps values below 1 / (1 - discount)
        start = np.arange(count)
        end = np.minimum(start + self.n_step, count)  # time limits bootstrap; only a terminal state does not
        total = np.zeros(count)
        for k in range(self.n_step):
            inside = start + k < count
            total[inside] += self.discount**k * per_step[start[inside] + k]
        self.row[here] = torch.from_numpy(at + start)
        self.next_row[here] = torch.from_numpy(at + end)
        self.action[here] = torch.from_numpy(np.array(action[1:]))
        self.reward[here] = torch.from_numpy(total).float()
        self.bootstrap[here] = torch.from_numpy(self.discount ** (end - start) * ~is_terminal[end]).float()
        self.size += count
        self.rows += count + 1

    def sample(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch for `TD3.update`."""
        i = torch.randint(self.size, (batch,), generator=generator)
        return {
            "obs": self.obs[self.row[i]],
            "next_obs": self.obs[self.next_row[i]],
            "action": self.action[i],
            "reward": self.reward[i],
            "discount": self.bootstrap[i],
        }


# ---------------------------------------------------------------------------- training


def train_expert(job: ExpertJob, channel: Channel) -> dict[str, Any] | None:
    """Train, or go on training, then play on, until the replay holds `job.total`; None when told to stop before.

    Returns:
        facts for artifact.json: the algorithm, the learning curve, the final evaluation and the normalised score.
    """
    torch.set_num_threads(1)
    config, env = job.config, tasks.make_env(job.domain, job.task)
    agent = TD3(config.td3, env.observation_dim, env.action_dim, job.seed_of("networks"))
    replay = Replay(job.episodes, env.observation_dim, env.action_dim, config.n_step, config.td3.discount)
    job.replay.mkdir(parents=True, exist_ok=True)
    done, returns = _resume_expert(job, agent, replay)
    channel.report(done * DECISIONS, returns[-1] if returns else None)
    metrics = job.metrics(done)
    for number in range(done, job.total):
        if channel.stopped():
            job.save(number, agent)
            return None
        settled = number >= job.episodes
        rollout = _settled(job, env, agent, number) if settled else _explore(job, env, agent, number)
        store_episode(job.replay, number, rollout)
        returns.append(rollout.episode_return if settled else _remember(replay, rollout))
        terms = {} if settled else _improve(job, agent, replay, number)
        metrics.log(number, {"decisions": (number + 1) * DECISIONS, "return": returns[-1], **terms})
        channel.report(DECISIONS, returns[-1])
        if (number + 1) % config.checkpoint_episodes == 0 or number + 1 == job.total:
            job.save(number + 1, agent)
    metrics.close()
    facts = replay_facts(job, returns, env, partial(actor_policy, agent), config.evaluation_episodes)
    return {"algo": "td3", **facts, "hidden_dtype": str(agent.actor.dtype).removeprefix("torch.")}


def _explore(job: ExpertJob, env: tasks.Env, agent: TD3, number: int) -> PlayedEpisode:
    config, seed = job.config, job.seed_of(number)
    if number < config.random_episodes:
        return play_episode(env, seed, random_policy(env, seed, config.noise_correlation))
    progress = min(1.0, number * DECISIONS / config.noise_decisions)
    rng = np.random.default_rng(seed)
    correlation = rng.uniform(0.0, config.noise_correlation)  # white noise suits gaits, lasting noise escapes poses
    end = rng.uniform(*config.noise_end)  # a replay that only holds perfect gaits cannot teach recovery
    scale = config.noise_start + (end - config.noise_start) * progress
    noise = correlated_noise(rng, DECISIONS, env.action_dim, correlation)
    return play_episode(env, seed, actor_policy(agent, scale * noise))


def _settled(job: ExpertJob, env: tasks.Env, agent: TD3, number: int) -> PlayedEpisode:
    """The finished agent with little noise, upset now and then by a stretch of random actions."""
    config, seed = job.config, job.seed_of(number)
    rng = np.random.default_rng(seed)
    correlation, scale = rng.uniform(0.0, config.noise_correlation), rng.uniform(0.0, config.settled_noise)
    noise = scale * correlated_noise(rng, DECISIONS, env.action_dim, correlation)
    calm, wild = actor_policy(agent, noise), random_policy(env, seed, config.noise_correlation)
    upset = _upsets(rng, config)

    def act(observation: np.ndarray, decision: int) -> np.ndarray:
        return (wild if upset[decision] else calm)(observation, decision)

    return play_episode(env, seed, act)


def _upsets(rng: np.random.Generator, config: ExpertConfig) -> np.ndarray:
    """Which decisions of an episode (DECISIONS,) are random: stretches of `upset_decisions`, one in `upset_every`."""
    upset = np.zeros(DECISIONS, bool)
    for start in np.flatnonzero(rng.random(DECISIONS) < 1 / config.upset_every):
        upset[start : start + rng.integers(*config.upset_decisions, endpoint=True)] = True
    return upset


def _remember(replay: Replay, rollout: PlayedEpisode) -> float:
    episode = rollout.episode
    replay.add(rollout.observation, episode.action, episode.reward, episode.is_terminal)
    return rollout.episode_return


def _improve(job: ExpertJob, agent: TD3, replay: Replay, number: int) -> dict[str, float]:
    """The updates that follow episode `number`; the terms of the last two, none while acting is still random."""
    config, terms = job.config, dict[str, Tensor]()
    if number + 1 < config.random_episodes:
        return {}
    generator = torch.Generator().manual_seed(job.seed_of(number, "updates"))
    for step in range(round(DECISIONS * config.updates_per_decision)):
        terms |= agent.update(replay.sample(config.td3.batch, generator), step, generator)
    return job.figures(number, terms)


def _resume_expert(job: ExpertJob, agent: TD3, replay: Replay) -> tuple[int, list[float]]:
    """Restore networks and replay from the last checkpoint; (episodes done, their returns)."""
    done = job.resume(agent)
    rollouts = (load_episode(job.replay, number) for number in range(done))
    return done, [r.episode_return if n >= job.episodes else _remember(replay, r) for n, r in enumerate(rollouts)]


def task_decisions(config: ExpertConfig, task: str) -> int:
    """The budget of one task: `decisions[task]`, else `decisions.default`. Raises BadInput when there is neither."""
    found = config.decisions.get(task, config.decisions.get("default"))
    if found is None:
        raise BadInput(f"no budget for {task}: set collect.expert.decisions.{task} or collect.expert.decisions.default")
    return found
