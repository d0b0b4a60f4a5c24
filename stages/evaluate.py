"""Evaluate: run a policy in the real environment and normalise its return by random and expert.

    bitagent evaluate --preset walker --task run
    bitagent evaluate --preset walker --prompt "balance on one leg" --score-as one_foot
    bitagent evaluate --preset walker --video clip.mp4 --score-as walk

Reads runs/<run>/policy/<method>-s<seed>/<name>; writes runs/<run>/evaluation/<method>-s<seed>/<name>.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import imageio.v3 as iio
import numpy as np
import torch

from stages.policies.goals import Ask, behave_command, parse_goal
from stages.policies.play import FIRST_SEED, PlayedPolicy, play_policy, training_renderer
from stages.policies.policy import Policy, embedded_every
from stages.report.page import save_table
from stages.report.tables import score_table
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact, Recipe
from stages.runtime.config import Run, Section
from stages.runtime.errors import BadInput
from stages.runtime.loop import seed_everything
from stages.worlds import tasks
from stages.worlds.render import Renderer

VIDEO_STRIDE = 4  # every fourth decision is a frame of the GIF


class Config(Section):
    """Section `evaluate` of the preset; defaults and comments in presets/paper.yaml."""

    episodes: int
    sample: bool
    semantics_every: int
    video: bool
    renderer: Literal["auto", "ray", "gl", "genrl"]


def run(config: Config, run: Run, ask: Ask, *, score_as: str | None = None, method: str = "bitagent") -> Artifact:
    """Evaluate one policy and save scores, table and videos.

    Args:
        ask: which policy, as it was trained.
        score_as: the task whose reward scores a policy trained on a free prompt or a video.
    """
    goal = parse_goal(run.domain, ask)
    name, label = goal.name, f"{method}-s{run.seed}"
    source = artifacts.load(
        run.root / "policy" / label / name, "behave", domain=run.domain, made_by=behave_command(run, goal, method)
    )
    scored = scored_tasks(source, run, score_as)
    path = run.root / "evaluation" / label / name
    config = config.model_copy(update={"semantics_every": config.semantics_every or embedded_every(source)})
    record = {"evaluate": config.model_dump(), "tasks": scored, "method": method}
    recipe = Recipe(run, path, "evaluate", record, [source])
    if found := recipe.reuse():
        return found
    renderer = choose_renderer(config, run, source)
    policy = Policy.load(source.path, run.device, semantics_every=config.semantics_every, sample=config.sample)
    seed_everything(run.seed)
    rows: list[dict[str, Any]] = []
    rollouts: dict[str, PlayedPolicy] = {}
    for index, task_name in enumerate(scored):
        policy.reset(index if ask.many else 0)
        rollouts[task_name] = play_policy(
            policy, run.domain, task_name, config.episodes, renderer=renderer,
            keep_every=VIDEO_STRIDE if config.video else 0, quiet=run.quiet,
        )  # fmt: skip
        rows.append(score_row(run, task_name, source, rollouts[task_name].returns, config.episodes))
    table = score_table(rows)
    with storage.locked(path), recipe.writing({"rows": rows}) as draft:
        rewards = {f"{t}.reward": torch.from_numpy(r.reward.astype(np.float32)) for t, r in rollouts.items()}
        storage.write_tensors(draft / "episodes.safetensors", rewards)
        save_table(draft, "scores", table)
        for task_name, result in rollouts.items():
            write_videos(draft, task_name, result)
    return artifacts.load(path, "evaluate")


def scored_tasks(source: Artifact, run: Run, score_as: str | None) -> list[str]:
    """The tasks whose rewards score this policy. Raises BadInput for a free prompt or a video without `score_as`."""
    names = list(source.meta["config"]["tasks"]) or ([score_as] if score_as else [])
    if not names:
        known = ", ".join(tasks.task_names(run.domain, training_only=False))
        raise BadInput(f"a policy for a free prompt has no reward of its own: add --score-as TASK, one of {known}")
    return [tasks.get_task(run.domain, n).name for n in names]


def choose_renderer(config: Config, run: Run, source: Artifact) -> str:
    """The renderer that draws what the policy sees: the one of its training data, or the one asked for.

    Raises BadInput when it does not work here.
    """
    learned_from = training_renderer(source)
    asked = config.renderer if config.renderer != "auto" else learned_from or "ray"
    if learned_from is None and config.renderer == "auto":
        note = "its training data is no longer there, so frames are drawn by ray, the default of collect"
        print(f"note: {note}; if it learned from imported frames: --set evaluate.renderer=genrl", file=sys.stderr)
    elif learned_from not in (None, asked):
        print(f"note: the policy learned from {learned_from} frames and sees {asked} ones here", file=sys.stderr)
    try:
        Renderer(run.domain, backend=asked)
    except BadInput as error:
        if config.renderer != "auto":
            raise
        way = "to go on with other frames than it learned from: --set evaluate.renderer=ray"
        raise BadInput(f"this policy learned from {asked} frames, which cannot be drawn here: {error}; {way}") from None
    return asked


def random_returns(domain: str, task: str, episodes: int) -> np.ndarray:
    """Returns of uniformly random actions from the same episode starts."""
    rng = np.random.default_rng(FIRST_SEED)
    out = []
    for i in range(episodes):
        env = tasks.make_env(domain, task, seed=FIRST_SEED + i)
        step, total = env.reset(seed=FIRST_SEED + i), 0.0
        while not step.is_last:
            step = env.step(rng.uniform(-1, 1, env.action_dim))
            total += step.reward
        out.append(total)
    return np.array(out)


def score_row(run: Run, task: str, source: Artifact, returns: np.ndarray, episodes: int) -> dict[str, Any]:
    """One line of the results table; scores are (return - random) / (expert - random), Section 4.1."""
    about = tasks.get_task(run.domain, task)
    scores = np.array([tasks.normalized_score(about, r) for r in returns])
    random = random_returns(run.domain, task, episodes)
    return {
        "domain": run.domain,
        "task": task,
        "method": source.meta["config"]["method"],
        "seed": run.seed,
        "scale": source.meta["resolved"].get("scale", run.scale),  # the policy's, whatever this run's is
        "episodes": len(returns),
        "return": round(float(returns.mean()), 1),
        "score": round(float(scores.mean()), 3),
        "stderr": round(float(scores.std(ddof=1) / len(scores) ** 0.5), 3) if len(scores) > 1 else 0.0,
        "random_return": round(float(random.mean()), 1),
        "random_score": round(float(np.mean([tasks.normalized_score(about, r) for r in random])), 3),
        "policy": source.id,
        "prompts": list(source.meta["config"]["prompts"]),
        "backbone": source.meta["extra"]["backbone"],
    }


def write_videos(folder: Path, task: str, result: PlayedPolicy) -> None:
    """best and worst episode as GIFs."""
    if result.frames is None:
        return
    for name, index in (("best", result.returns.argmax()), ("worst", result.returns.argmin())):
        iio.imwrite(folder / f"{task}-{name}.gif", result.frames[index].transpose(0, 2, 3, 1), duration=80, loop=0)
