"""Episodes played online: policies as functions, jobs with their seeds, and the replay kept on disk, a file an episode.

rollout = play_episode(env, seed, random_policy(env, seed, 0.5))
store_episode(job.replay, 12, rollout)
load_episode(job.replay, 12)    # any episode of the replay, random to expert
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.data.shards import Episode, as_episode, episode_arrays, read_sealed, write_shard
from stages.runtime import checkpoints, storage
from stages.runtime.checkpoints import Resumable
from stages.runtime.loop import Metrics, require_finite
from stages.runtime.update import Terms
from stages.worlds import tasks

DECISIONS = 500  # an episode: 1000 control steps at action repeat 2
PolicyFunction = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class ReplayJob:
    """An agent to train online: `path` is the dataset artifact to be, beside which its work files lie."""

    domain: str
    task: str
    seed: int
    episodes: int
    path: Path

    @property
    def total(self) -> int:
        """Episodes in the replay at the end."""
        return self.episodes

    @property
    def replay(self) -> Path:
        """Folder of the replay's episodes, one file each."""
        return self.path.parent / f"{self.path.name}.replay"

    def seed_of(self, *parts: object) -> int:
        """The seed of one thing in this job: an episode's number, "networks", ..."""
        return derive_seed(self.seed, self.domain, self.task, *parts)

    @property
    def about(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        return {"domain": self.domain, "task": self.task, "seed": self.seed, "episodes": self.episodes}

    @property
    def rate(self) -> tuple[str, float]:
        """Key and value of the learning rate, which a non-finite loss says to lower."""
        raise NotImplementedError

    def resume(self, learner: Resumable) -> int:
        """Restore the learner from the last checkpoint; how far that was, 0 without one."""
        done, groups = checkpoints.read(self.path, self.about) or (0, None)
        if groups:
            learner.load(groups)
        return done

    def save(self, done: int, learner: Resumable) -> None:
        """Replace the checkpoint."""
        checkpoints.write(self.path, done, learner.tensors(), self.about)

    def metrics(self, start: int) -> Metrics:
        """The log, from episode `start` on."""
        return Metrics(self.path.parent / f"{self.path.name}.log", start)

    def figures(self, number: int, terms: Terms) -> dict[str, float]:
        """The terms behind episode `number` as floats. Raises BadInput when one is not finite."""
        found = {name: float(value) for name, value in terms.items()}
        key, value = self.rate
        require_finite(number, found, checkpoints.folder(self.path), f"{key}={value / 3:.2g}")
        return found


def derive_seed(*parts: object) -> int:
    """A 31-bit seed from anything printable: stable over processes and machines."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1


# ---------------------------------------------------------------------------- playing


@dataclass
class PlayedEpisode:
    """One played episode and the observations (T, O) its policy saw."""

    episode: Episode
    observation: np.ndarray

    @property
    def episode_return(self) -> float:
        return float(self.episode.reward.sum(dtype=np.float64))


def play_episode(env: tasks.Env, seed: int, policy: PolicyFunction) -> PlayedEpisode:
    """Play one episode of DECISIONS decisions; `policy` maps (observation, decision number) to an action."""
    step = env.reset(seed)
    steps, actions = [step], [np.zeros(env.action_dim, np.float32)]
    for decision in range(DECISIONS):
        actions.append(np.asarray(policy(step.observation, decision), np.float32))
        step = env.step(actions[-1])
        steps.append(step)
        if step.is_last:
            break
    episode = Episode(
        image=None,
        action=np.stack(actions),
        reward=np.asarray([s.reward for s in steps], np.float32),  # 0 at the reset
        is_first=np.arange(len(steps)) == 0,
        is_terminal=np.asarray([s.is_terminal for s in steps]),
        state=np.stack([s.state for s in steps]),
        seed=seed,
    )
    return PlayedEpisode(episode, np.stack([s.observation for s in steps]).astype(np.float32))


def correlated_noise(rng: np.random.Generator, length: int, dim: int, correlation: float) -> np.ndarray:
    """First-order autoregressive noise (length, dim), unit variance at every step.

    White noise averages out over a stride; noise that lasts pushes a kneeling walker over and up.
    """
    white = rng.standard_normal((length, dim))
    noise = white.copy()
    for t in range(1, length):
        noise[t] = correlation * noise[t - 1] + math.sqrt(1.0 - correlation**2) * white[t]
    return noise


def random_policy(env: tasks.Env, seed: int, correlation: float) -> PolicyFunction:
    """Uniform actions; with `correlation` the Gaussian behind each uniform is autoregressive in time."""
    noise = correlated_noise(np.random.default_rng(seed), DECISIONS, env.action_dim, correlation)
    uniform = torch.erf(torch.from_numpy(noise) / math.sqrt(2.0)).numpy()  # Gaussian → U(-1, 1)
    return lambda observation, decision: uniform[decision]


# ---------------------------------------------------------------------------- files


def episode_file(folder: Path, number: int) -> Path:
    """Where one episode of the replay lies."""
    return folder / f"episode-{number:06d}.safetensors"


def store_episode(folder: Path, number: int, rollout: PlayedEpisode) -> None:
    """Write one episode of the replay; durable when this returns."""
    arrays = episode_arrays(rollout.episode) | {"observation": rollout.observation}
    blocks = {name: [array] for name, array in arrays.items()}
    storage.replace_file(episode_file(folder, number), lambda draft: write_shard(draft, blocks, sealed=True))


def load_episode(folder: Path, number: int) -> PlayedEpisode:
    """Read one episode of the replay, without its frames. Raises BadInput when it is missing or corrupted."""
    arrays = read_sealed(episode_file(folder, number))
    return PlayedEpisode(as_episode(arrays, 0), arrays["observation"])


# ---------------------------------------------------------------------------- judging


def replay_facts(
    job: ReplayJob, returns: list[float], env: tasks.Env, policy: Callable[[np.ndarray], PolicyFunction], episodes: int
) -> dict[str, Any]:
    """Facts for artifact.json from the returns of the replay and of an evaluation, over episodes of their own seeds.

    Args:
        policy: makes one from noise (DECISIONS, A), which is none here.
    """
    quiet = np.zeros((DECISIONS, env.action_dim))
    played = [play_episode(env, job.seed_of("evaluation", i), policy(quiet)) for i in range(episodes)]
    scores = [p.episode_return for p in played]
    mean = float(np.mean(scores))
    return {
        "learning_curve": [[(i + 1) * DECISIONS, round(r, 2)] for i, r in enumerate(returns[: job.episodes])],
        "settled_returns": [round(r, 2) for r in returns[job.episodes :]],
        "evaluation_returns": [round(r, 2) for r in scores],
        "evaluation_return": round(mean, 2),
        "normalized_score": round(tasks.normalized_score(tasks.get_task(job.domain, job.task), mean), 4),
    }
