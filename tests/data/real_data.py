"""Short episodes of the real environment, with real frames, through the real writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from stages.data.episodes import Dataset, DatasetWriter, Episode
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.worlds import tasks
from stages.worlds.render import render_states


def play(domain: str, task: str, rows: int, seed: int) -> Episode:
    """The first `rows` rows of a random policy's episode."""
    env, random = tasks.make_env(domain, task, seed), np.random.default_rng(seed)
    steps, actions = [env.reset(seed)], [np.zeros(env.action_dim)]
    while len(steps) < rows:
        actions.append(random.uniform(-1, 1, env.action_dim))
        steps.append(env.step(actions[-1]))
    states = np.stack([s.state for s in steps])
    return Episode(
        image=render_states(domain, states),
        action=np.stack(actions).astype(np.float32),
        reward=np.array([s.reward for s in steps], np.float32),
        is_first=np.array([s.is_first for s in steps]),
        is_terminal=np.array([s.is_terminal for s in steps]),
        state=states,
        seed=seed,
    )


def make_data(
    root: Path, domain: str = "walker", task: str = "", episodes: int = 3, rows: int = 30, seed: int = 0
) -> Artifact:
    """A dataset at <root>/data/: `random` without a task, else `expert-<task>`."""
    path = root / "data" / (f"expert-{task}" if task else "random")
    facts = {"source": "expert" if task else "random", "task": task, "renderer": "ray", "image_size": 64}
    writer = DatasetWriter(path, Run(domain, "smoke", root, seed), {"made": "by a test"}, facts)
    for number in range(episodes):
        writer.append(number, play(domain, task or tasks.task_names(domain)[0], rows, seed + number))
    return writer.finish()


def make_embeddings(data: Artifact, dim: int) -> Artifact:
    """Sidecar embeddings that no backbone made: random directions, the same at every call."""
    dataset = Dataset.open([data.path], data.domain)
    path = data.path.parents[1] / "embeddings" / "offline" / data.path.name
    generator = torch.Generator().manual_seed(0)
    with artifacts.writing(
        path, "embed", domain=data.domain, config={}, seed=0, inputs=[data], extra={"backbone_id": "none"}
    ) as draft:
        for shard in dataset.shards:
            e = torch.randn(len(shard.arrays["reward"]), dim, generator=generator)
            storage.write_tensors(draft / shard.file.name, {"embedding": F.normalize(e, dim=-1).half()})
    return artifacts.load(path, "embed")


def make_dataset(root: Path, dim: int) -> Dataset:
    """Random data and the replay of one task, walk, opened with embeddings."""
    parts = [make_data(root), make_data(root, task="walk", seed=50)]
    sidecars = [make_embeddings(part, dim) for part in parts]
    return Dataset.open([p.path for p in parts], "walker", [s.path for s in sidecars])
