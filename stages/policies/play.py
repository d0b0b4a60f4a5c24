"""Episodes of a policy in the real environment, several in step; what `evaluate` scores and `behave` may watch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.policies.policy import Policy
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.loop import progress
from stages.worlds import tasks

FIRST_SEED = 100_000  # episodes start where no collected episode does


@dataclass
class PlayedPolicy:
    """N episodes of one task: rewards (N, T) a decision and, when kept, frames (N, T', 3, 64, 64)."""

    reward: np.ndarray
    frames: np.ndarray | None

    @property
    def returns(self) -> np.ndarray:
        return self.reward.sum(1)


def play_policy(
    policy: Policy, domain: str, task: str, episodes: int, *, renderer: str, keep_every: int = 0, quiet: bool = True
) -> PlayedPolicy:
    """`episodes` episodes in step; one forward pass serves all environments.

    Args:
        renderer: ray, gl or genrl; see worlds/render.py.
        keep_every: of so many decisions one's frames are kept; 0 keeps none.
    """
    envs = [tasks.make_env(domain, task, seed=FIRST_SEED + i) for i in range(episodes)]
    steps = [env.reset(seed=FIRST_SEED + i) for i, env in enumerate(envs)]
    size = policy.backbone_size
    rewards: list[list[float]] = []
    kept: list[np.ndarray] = []
    bar = progress(0, 0, f"evaluate {task}", "step", quiet)
    while not steps[0].is_last:
        frames = np.stack([env.render(backend=renderer) for env in envs])  # (N, 3, 64, 64)
        if keep_every and len(rewards) % keep_every == 0:
            kept.append(frames)
        large = np.stack([env.render(size, backend=renderer) for env in envs]) if size > frames.shape[-1] else None
        actions = policy.act(frames, large)
        steps = [env.step(a) for env, a in zip(envs, actions, strict=True)]
        rewards.append([s.reward for s in steps])
        bar.update()
    bar.close()
    return PlayedPolicy(np.array(rewards).T, np.stack(kept, 1) if kept else None)


def training_renderer(artifact: Artifact) -> str | None:
    """The renderer of the frames that a policy or a model learned from, or None when they are no longer there.

    Found from artifact to artifact, by their inputs; a training reads frames of one renderer alone.
    """
    if artifact.meta["stage"] == "collect":
        return str(artifact.meta["extra"]["renderer"]) or "ray"
    wanted = set(artifact.meta["inputs"].values())
    places = (artifacts.input_path(artifact, one) for one in wanted)
    found = (artifacts.load(place) for place in places if (place / "artifact.json").exists())
    still = (one for one in found if one.id in wanted)  # not what was made in its place since
    return next((name for one in still if (name := training_renderer(one))), None)
