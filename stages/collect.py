"""Collect: the datasets of a domain, by a random policy, by exploration and by the replays of experts trained online.

    bitagent collect --preset walker
    bitagent collect --preset walker --source explore
    bitagent collect --preset walker --source expert --task run --workers 2
    bitagent collect --preset walker --source expert --task stand --algo dreamer
    bitagent collect --preset walker --states-only
    bitagent collect --preset walker --render runs/walker-laptop/states/random --size 224
    bitagent collect --preset walker --import genrl/walker --task walk

Writes runs/<run>/data/random, data/explore and data/expert-<task>; states/ with --states-only; frames of
another size or camera under frames/. An expert learns from physics observations (TD3) or from pixels (Dreamer), the
explorer from pixels; the frames of the episodes kept are rendered afterwards from the recorded states, whatever the
agent saw.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stages.agents.dreamer import DreamerConfig, DreamerJob
from stages.agents.expert import ExpertConfig, ExpertJob, task_decisions
from stages.agents.explore import ExploreConfig, ExploreJob
from stages.agents.pixel_agent import AgentConfig
from stages.agents.replay import DECISIONS
from stages.core.gathering import Look, Target, drop_work, make
from stages.data.episodes import kept_episodes
from stages.data.genrl_import import import_genrl
from stages.data.rerender import render_dataset
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import PartShare, Run, Section
from stages.runtime.errors import BadInput, nearest
from stages.worlds import tasks
from stages.worlds.render import DEFAULT_CAMERAS

SOURCES = ("random", "explore", "expert", "all")
ALGOS = ("td3", "dreamer")
FRAME_SIZE = 64


class Config(Section):
    """Section `collect` of the preset; defaults and comments in presets/paper.yaml."""

    random_episodes: int
    random_correlation: PartShare
    explore: ExploreConfig
    expert: ExpertConfig
    dreamer: DreamerConfig


def run(
    config: Config,
    run: Run,
    *,
    source: str = "all",
    task: str | None = None,
    algo: str = "td3",
    frames: int | None = None,
    workers: int | None = None,
    states_only: bool = False,
    render: Path | None = None,
    size: int | None = None,
    camera: int | None = None,
    import_dir: Path | None = None,
    strict: bool = False,
    agent: AgentConfig | None = None,
) -> list[Artifact]:
    """Make the datasets of a source, or of all, reusing finished ones; or render or import one.

    Args:
        task: a task of the domain; None for all of the paper's.
        algo: how experts learn: td3 from physics observations, dreamer from pixels.
        frames: decisions per dataset, instead of the preset's; rounded up to whole episodes.
        workers: processes; None for one a core. Datasets are made side by side, the longest first.
        agent: what the agents from pixels are made of; needed where one is asked for.

    Raises:
        BadInput: unknown source, algorithm or task, an unusable size or count, a dataset made another way.
        Interrupted: stopped by a signal, after saving.
    """
    check(run, source, task, algo, frames, workers, size)
    workers, look = workers or os.cpu_count() or 1, make_look(run.domain, size, camera, states_only)
    if import_dir is not None:
        return [import_dataset(run, import_dir, task or "", workers, strict)]
    if render is not None:
        return [render_again(run, render, look, workers)]
    targets = plan(config, run, source, task, algo, frames, look, agent)
    with ExitStack() as locks:
        for target in targets:
            locks.enter_context(storage.locked(target.path))
        open_targets = [t for t in targets if not _reuse(t, run)]
        again = {"--source": source, "--task": task, "--frames": frames, "--size": size, "--camera": camera}
        words = [str(word) for pair in again.items() if pair[1] is not None for word in pair]
        words += ["--algo", algo] * (algo != ALGOS[0]) + ["--states-only"] * states_only
        make(run, open_targets, workers, words)
    return [artifacts.load(t.path, "collect", domain=run.domain) for t in targets]


def check(
    run: Run, source: str, task: str | None, algo: str, frames: int | None, workers: int | None, size: int | None
) -> None:
    """Raise BadInput for options no dataset can be made from."""
    tasks.check_domain(run.domain)
    for what, word, known in (("source", source, SOURCES), ("algorithm", algo, ALGOS)):
        if word not in known:
            raise BadInput(f"unknown {what} {word!r}: {nearest(word, known)}")
    if task:
        tasks.get_task(run.domain, task)
    for name, value, least in (("--frames", frames, 1), ("--workers", workers, 1), ("--size", size, 8)):
        if value is not None and value < least:
            raise BadInput(f"{name} {value} is too small: give {least} or more")


def make_look(domain: str, size: int | None, camera: int | None, states_only: bool) -> Look:
    """The look asked for; the domain's own camera by number is the same as none."""
    return Look(size or FRAME_SIZE, None if camera == DEFAULT_CAMERAS[domain] else camera, states_only)


def import_dataset(run: Run, folder: Path, task: str, workers: int, strict: bool) -> Artifact:
    """Read GenRL's .npz episodes into data/imported[-task], with their embeddings where all carry them."""
    artifact, embeddings, skipped = import_genrl(folder, run, task, strict, workers)
    if not run.quiet:
        for skip in skipped:
            print(f"skipped {skip.file}: {skip.reason}")
        with_embeddings = "with" if embeddings else "without"
        episodes = artifact.meta["extra"]["episodes"]
        print(f"{artifact.path}: {episodes} episodes imported {with_embeddings} embeddings, {len(skipped)} skipped")
    return artifact


def render_again(run: Run, source: Path, look: Look, workers: int) -> Artifact:
    """Frames of a dataset's states: into data/ when they look as a stage expects, else into frames/."""
    found = artifacts.load(source, "collect", domain=run.domain)
    standard = (look.size, look.camera) == (FRAME_SIZE, None)
    suffix = f"-{look.size}" + ("" if look.camera is None else f"-camera{look.camera}")
    path = run.root / ("data" if standard else "frames") / (str(found.meta["name"]) + ("" if standard else suffix))
    if path.resolve() == source.resolve():
        raise BadInput(f"{source} has frames already; give another --size or --camera")
    artifact = render_dataset(found, path, run, look.size, look.camera, workers)
    if not run.quiet:
        print(f"{path}: {artifact.meta['extra']['frames']} frames rendered from {source}")
    return artifact


def plan(
    config: Config,
    run: Run,
    source: str,
    task: str | None,
    algo: str,
    frames: int | None,
    look: Look,
    agent: AgentConfig | None,
) -> list[Target]:
    """The datasets that `source` and `task` name: explorer, experts with the largest budget first, then random."""
    found = []
    if source in ("expert", "all"):
        names = [task] if task else tasks.task_names(run.domain)
        if algo == "dreamer":
            found = [_dreamer_target(config, run, name, frames, look, agent) for name in names]
        else:
            found = [_expert_target(config.expert, run, name, frames, look) for name in names]
        found.sort(key=lambda t: -t.job.episodes if t.job else 0)
    if source == "explore" or (source == "all" and config.explore.in_all):
        found.insert(0, _explore_target(config, run, task, frames if source == "explore" else None, look, agent))
    if source in ("random", "all"):
        found.append(_random_target(config, run, task, frames if source == "random" else None, look))
    return found


def _folder(run: Run, look: Look) -> Path:
    return run.root / ("states" if look.states_only else "data")


def _record(look: Look, **about: Any) -> dict[str, Any]:
    return {**about, "size": look.size, "camera": look.camera, "states_only": look.states_only}


def _expert_target(config: ExpertConfig, run: Run, task: str, frames: int | None, look: Look) -> Target:
    path = _folder(run, look) / f"expert-{task}"
    episodes = -(-(frames or task_decisions(config, task)) // DECISIONS)
    settled = 0 if frames else config.settled_episodes  # --frames counts them all
    settings = config.model_dump(exclude={"decisions", "settled_episodes"})
    record = _record(look, source="expert", task=task, episodes=episodes, settled=settled, expert=settings)
    job = ExpertJob(run.domain, task, run.seed, episodes, path, config, settled)
    kept = [*kept_episodes(episodes, config.keep_episodes), *range(episodes, job.total)]
    return Target(run, "expert", task, path, record, look, kept, job)


def _dreamer_target(
    config: Config, run: Run, task: str, frames: int | None, look: Look, agent: AgentConfig | None
) -> Target:
    assert agent is not None, "an expert from pixels needs the sections its networks are made from"
    path = _folder(run, look) / f"expert-{task}"
    episodes = -(-(frames or task_decisions(config.expert, task)) // DECISIONS)
    about = {"task": task, "episodes": episodes, "correlation": config.random_correlation, "algo": "dreamer"}
    about |= {"dreamer": config.dreamer.model_dump(), "agent": agent.record}
    job = DreamerJob(
        run.domain, task, run.seed, episodes, path, config.dreamer, agent, config.random_correlation, run.device,
        evaluation_episodes=config.expert.evaluation_episodes,
    )  # fmt: skip
    record = _record(look, source="expert", **about)
    return Target(run, "expert", task, path, record, look, list(range(episodes)), job)


def _random_target(config: Config, run: Run, task: str | None, frames: int | None, look: Look) -> Target:
    """Random data carries no task; its rewards are those of `task`, by default the domain's first."""
    task = task or tasks.task_names(run.domain)[0]
    episodes = -(-frames // DECISIONS) if frames else config.random_episodes
    about = {"episodes": episodes, "correlation": config.random_correlation, "reward_task": task}
    path = _folder(run, look) / "random"
    return Target(run, "random", "", path, _record(look, source="random", **about), look, list(range(episodes)))


def _explore_target(
    config: Config, run: Run, task: str | None, frames: int | None, look: Look, agent: AgentConfig | None
) -> Target:
    """Exploration carries no task either; its rewards are recorded as random data's are."""
    assert agent is not None, "the explorer needs the sections its networks are made from"
    task = task or tasks.task_names(run.domain)[0]
    episodes = -(-frames // DECISIONS) if frames else config.explore.episodes
    about = {"episodes": episodes, "correlation": config.random_correlation, "reward_task": task}
    about |= {"explore": config.explore.model_dump(exclude={"in_all", "episodes"}), "agent": agent.record}
    path = _folder(run, look) / "explore"
    job = ExploreJob(
        run.domain, task, run.seed, episodes, path, config.explore, agent, config.random_correlation, run.device
    )
    return Target(run, "explore", "", path, _record(look, source="explore", **about), look, list(range(episodes)), job)


def _reuse(target: Target, run: Run) -> Artifact | None:
    """The finished dataset, saying so; otherwise None, with leftovers dropped when starting anew."""
    found = artifacts.reuse(target.path, "collect", target.record, run.seed, [], run.fresh)
    if found and not run.quiet:
        print(f"{target.path}: finished earlier with the same settings, reused")
    if found or run.fresh:
        drop_work(target)
    return found
