"""Collect: the datasets of a domain, by a random policy, by exploration and by the replays of experts trained online.

    bitagent collect --preset walker
    bitagent collect --preset walker --source explore
    bitagent collect --preset walker --source expert --task run --workers 2
    bitagent collect --preset walker --source expert --task stand --algo dreamer
    bitagent collect --preset walker --source branch
    bitagent collect --preset walker --states-only
    bitagent collect --preset walker --render runs/walker-laptop/states/random --size 224
    bitagent collect --preset walker --import genrl/walker --task walk

Writes runs/<run>/data/random, data/explore, data/expert-<task> and data/branch; states/ with --states-only; frames of
another size or camera under frames/. An expert learns from physics observations (TD3) or from pixels
(Dreamer), the explorer from pixels; branches are cut from finished data: stages/agents. The frames of the episodes kept
are rendered afterwards from the recorded states, whatever the agent saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import worlds
from stages.agents.branch import BranchConfig, Branches, find_sources
from stages.agents.dreamer import DreamerConfig, DreamerJob
from stages.agents.expert import ExpertConfig, ExpertJob, task_decisions, train_expert
from stages.agents.explore import ExploreConfig, ExploreJob
from stages.agents.pixel_agent import AgentConfig
from stages.agents.pixel_training import OnlineJob, train_online
from stages.agents.replay import DECISIONS
from stages.agents.target import ROWS, Look, Target, nothing_left, play_branches, play_random, render_replay
from stages.data.episodes import kept_episodes
from stages.data.genrl_import import import_genrl
from stages.data.rerender import render_dataset
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import PartShare, Run, Section
from stages.runtime.errors import BadInput, nearest
from stages.runtime.loop import progress, stop_signals
from stages.runtime.workers import Figure, Pool, usable_cores
from stages.worlds import tasks

SOURCES = ("random", "explore", "expert", "branch", "all")
ALGOS = ("td3", "dreamer")
FRAME_SIZE = 64
CHUNK = 8  # episodes a rendering job


class Config(Section):
    """Section `collect` of the preset; defaults and comments in presets/paper.yaml."""

    random_episodes: int
    random_correlation: PartShare
    explore: ExploreConfig
    expert: ExpertConfig
    dreamer: DreamerConfig
    branch: BranchConfig


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Args:
        source: random, explore, expert, branch, or all of the preset's.
        task: a task of the domain; None for all of the paper's.
        algo: how experts learn: td3 from physics observations, dreamer from pixels.
        frames: decisions per dataset, instead of the preset's; rounded up to whole episodes. Of branches, those under
            other actions.
        workers: processes; None for one a core. Datasets are made side by side, the longest first.
        states_only: physics states, no frames. size, camera: of the frames; by default 64 and the domain's own.
        render: make frames from the states of this dataset instead; import_dir: read GenRL's episodes instead,
            and with `strict` stop at the first bad one.
    """

    source: str = "all"
    task: str | None = None
    algo: str = "td3"
    frames: int | None = None
    workers: int | None = None
    states_only: bool = False
    size: int | None = None
    camera: int | None = None
    render: Path | None = None
    import_dir: Path | None = None
    strict: bool = False

    @property
    def options(self) -> list[str]:
        """Of `bitagent collect`, to go on after a stop."""
        again = {"--source": self.source, "--task": self.task, "--frames": self.frames}
        again |= {"--size": self.size, "--camera": self.camera}
        words = [str(word) for pair in again.items() if pair[1] is not None for word in pair]
        return words + ["--algo", self.algo] * (self.algo != ALGOS[0]) + ["--states-only"] * self.states_only

    def reward_task(self, domain: str) -> str:
        """Whose rewards are recorded where data carry no task: the domain's first; another where only they are made."""
        asked = self.task if self.source in ("random", "explore") else None
        return asked or tasks.task_names(domain)[0]

    def episodes(self, otherwise: int, source: str = "", length: int = DECISIONS) -> int:
        """Whole episodes that hold `frames`; `otherwise` where none are given, or not for this source."""
        asked = self.frames and source in ("", self.source)
        return -(-int(self.frames or 0) // length) if asked else otherwise


def run(config: Config, run: Run, order: Order = Order(), agent: AgentConfig | None = None) -> list[Artifact]:
    """Make the datasets of a source, or of all, reusing finished ones; or render or import one.

    Args:
        agent: what the agents from pixels are made of; needed where one is asked for.

    Raises:
        BadInput: unknown source, algorithm or task, an unusable size or count, a dataset made another way.
        Interrupted: stopped by a signal, after saving.
    """
    check_order(run, order)
    workers = order.workers or usable_cores()
    camera = None if order.camera == worlds.BODIES[run.domain].camera else order.camera
    look = Look(order.size or FRAME_SIZE, camera, order.states_only)
    if order.import_dir is not None:
        return [import_dataset(run, order.import_dir, order.task or "", workers, order.strict)]
    if order.render is not None:
        return [render_again(run, order.render, look, workers)]
    made = make_all(run, plan(config, run, order, look, agent), workers, order.options)
    if order.source == "branch" or (order.source == "all" and config.branch.in_all):  # cut from what is finished now
        made += make_all(run, [branch_target(config.branch, run, order, look)], workers, order.options)
    return made


def make_all(run: Run, targets: list[Target], workers: int, options: list[str]) -> list[Artifact]:
    """The finished datasets, those that are not there made side by side."""
    with ExitStack() as locks:
        for target in targets:
            locks.enter_context(storage.locked(target.path))
        make_datasets(run, [t for t in targets if not reused(t)], workers, options)
    return [artifacts.load(t.path, "collect", domain=run.domain) for t in targets]


def check_order(run: Run, order: Order) -> None:
    """Raise BadInput for options no dataset can be made from."""
    tasks.check_domain(run.domain)
    for what, word, known in (("source", order.source, SOURCES), ("algorithm", order.algo, ALGOS)):
        if word not in known:
            raise BadInput(f"unknown {what} {word!r}: {nearest(word, known)}")
    if order.task:
        tasks.get_task(run.domain, order.task)
    for name, value, least in (
        ("--frames", order.frames, 1),
        ("--workers", order.workers, 1),
        ("--size", order.size, 8),
    ):
        if value is not None and value < least:
            raise BadInput(f"{name} {value} is too small: give {least} or more")


# ---------------------------------------------------------------------------- what to make


def plan(config: Config, run: Run, order: Order, look: Look, agent: AgentConfig | None) -> list[Target]:
    """The datasets that the order names: explorer, experts with the largest budget first, then random."""
    found = []
    if order.source in ("expert", "all"):
        for task in [order.task] if order.task else tasks.task_names(run.domain):
            if order.algo == "dreamer":
                found.append(dreamer_target(config, run, task, order, look, agent))
            else:
                found.append(expert_target(config.expert, run, task, order, look))
        found.sort(key=lambda t: -t.job.episodes if t.job else 0)
    if order.source == "explore" or (order.source == "all" and config.explore.in_all):
        found.insert(0, explore_target(config, run, order, look, agent))
    if order.source in ("random", "all"):
        found.append(random_target(config, run, order, look))
    return found


def expert_target(config: ExpertConfig, run: Run, task: str, order: Order, look: Look) -> Target:
    """An expert from physics observations: its replay, and episodes of the finished agent."""
    episodes = order.episodes(-(-task_decisions(config, task) // DECISIONS))
    settled = 0 if order.frames else config.settled_episodes  # --frames counts them all
    settings = config.model_dump(exclude={"decisions", "settled_episodes"})
    record = {"source": "expert", "task": task, "episodes": episodes, "settled": settled, "expert": settings}
    job = ExpertJob(run.domain, task, run.seed, episodes, place_of(run, look, f"expert-{task}"), config, settled)
    kept = [*kept_episodes(episodes, config.keep_episodes), *range(episodes, job.total)]
    return Target(run, "expert", task, job.path, with_look(record, look), look, kept, job)


def dreamer_target(config: Config, run: Run, task: str, order: Order, look: Look, agent: AgentConfig | None) -> Target:
    """An expert from pixels: its whole replay."""
    assert agent is not None, "an expert from pixels needs the sections its networks are made from"
    episodes = order.episodes(-(-task_decisions(config.expert, task) // DECISIONS))
    record = {"source": "expert", "task": task, "episodes": episodes, "correlation": config.random_correlation}
    record |= {"algo": "dreamer", "dreamer": config.dreamer.model_dump(), "agent": agent.record}
    job = DreamerJob(
        run.domain, task, run.seed, episodes, place_of(run, look, f"expert-{task}"), config.dreamer, agent,
        config.random_correlation, run.device, evaluation_episodes=config.expert.evaluation_episodes,
    )  # fmt: skip
    return Target(run, "expert", task, job.path, with_look(record, look), look, list(range(episodes)), job)


def explore_target(config: Config, run: Run, order: Order, look: Look, agent: AgentConfig | None) -> Target:
    """Exploration carries no task; its rewards are recorded as random data's are."""
    assert agent is not None, "the explorer needs the sections its networks are made from"
    task, episodes = order.reward_task(run.domain), order.episodes(config.explore.episodes, "explore")
    record = {"source": "explore", "episodes": episodes, "correlation": config.random_correlation, "reward_task": task}
    record |= {"explore": config.explore.model_dump(exclude={"in_all", "episodes"}), "agent": agent.record}
    job = ExploreJob(
        run.domain, task, run.seed, episodes, place_of(run, look, "explore"), config.explore, agent,
        config.random_correlation, run.device,
    )  # fmt: skip
    return Target(run, "explore", "", job.path, with_look(record, look), look, list(range(episodes)), job)


def random_target(config: Config, run: Run, order: Order, look: Look) -> Target:
    """Random data carries no task; its rewards are recorded all the same."""
    task, episodes = order.reward_task(run.domain), order.episodes(config.random_episodes, "random")
    record = {"source": "random", "episodes": episodes, "correlation": config.random_correlation, "reward_task": task}
    path = place_of(run, look, "random")
    return Target(run, "random", "", path, with_look(record, look), look, list(range(episodes)))


def branch_target(config: BranchConfig, run: Run, order: Order, look: Look) -> Target:
    """Stretches under other actions, cut from the finished data of experts and of the random policy.

    Finished ones are reused whatever datasets were added since. Raises BadInput when there is nothing to cut from.
    """
    path = place_of(run, look, "branch")
    sources = find_sources(path.parent, run)
    if artifacts.finished(path, run.fresh):
        known = artifacts.load(path, "collect", domain=run.domain).meta["inputs"]
        sources = [a for a in sources if artifacts.input_ids([a]).keys() <= known.keys()] or sources
    episodes = order.episodes(config.episodes, "branch", config.length)
    record = {"source": "branch", "episodes": episodes, "branch": config.model_dump(exclude={"in_all", "episodes"})}
    return Target(
        run, "branch", "", path, with_look(record, look), look, list(range(episodes)),
        branches=Branches(run.domain, run.seed, sources, config), rows=config.rows,
        facts={"lead": config.lead, "cut_from": [a.meta["name"] for a in sources]},
    )  # fmt: skip


def place_of(run: Run, look: Look, name: str) -> Path:
    """Where a dataset of that name goes."""
    return run.root / ("states" if look.states_only else "data") / name


def with_look(record: dict[str, Any], look: Look) -> dict[str, Any]:
    """The record of a dataset: frames decide its content, too."""
    return {**record, **vars(look)}


def reused(target: Target) -> Artifact | None:
    """The finished dataset, saying so; otherwise None, with leftovers dropped when starting anew."""
    run = target.run
    found = artifacts.reuse(target.path, "collect", target.record, run.seed, target.inputs, run.fresh, run.renew)
    if found and not run.quiet:
        print(f"{target.path}: finished earlier with the same settings, reused")
    if found or run.fresh:
        target.drop_work()
    return found


# ---------------------------------------------------------------------------- making them side by side


def make_datasets(run: Run, targets: list[Target], workers: int, options: list[str]) -> None:
    """Train, play and render side by side; every dataset is finished as soon as its parts are there.

    Args:
        options: of `bitagent collect`, to go on after a stop.

    Raises:
        Interrupted: stopped by a signal, after saving.
    """
    began = time.time()
    with (
        stop_signals() as stop,
        collection_bar(run, targets) as report,
        Pool(workers, lambda: bool(stop), report) as pool,
    ):
        for target in targets:
            target.writer(fresh=run.fresh)
            match target.job:
                case None if target.branches:
                    artifacts.verify(*target.inputs)
                    submit_chunks(pool, target, play_branches)
                case None:
                    submit_chunks(pool, target, play_random)
                case OnlineJob():
                    pool.submit(target.label, train_online, target.job)
                case _:
                    pool.submit(target.label, train_expert, target.job)
        by_label = {t.label: t for t in targets}
        for label, result in pool.results():
            target = by_label[label]
            if target.job and not target.facts:
                if result is not None:
                    target.facts = result
                    submit_chunks(pool, target, render_replay)
                continue
            target.rendering -= result
            if not target.rendering:
                finish_dataset(target, run, began)
        if stop:
            raise stop.leave(run.command("collect", *options))


def submit_chunks(pool: Pool, target: Target, function: Callable[..., int]) -> None:
    """Queue the jobs that write this target's episodes, leaving out what is on disk: each as long as CHUNK whole ones.

    Branches of one episode come together, as it is simulated again for them.
    """
    have = set(target.writer().numbers())
    todo = [(new, old) for new, old in enumerate(target.episodes) if new not in have]
    if branches := target.branches:
        todo.sort(key=lambda pair: branches.cut(pair[0]))
    target.rendering = len(todo)
    pool.report(target.label, target.rows * len(have), None)
    chunk = max(1, CHUNK * ROWS // target.rows)
    for i in range(0, len(todo), chunk):
        pool.submit(target.label, function, target, todo[i : i + chunk])
    if not todo:
        pool.submit(target.label, nothing_left)


def finish_dataset(target: Target, run: Run, began: float) -> None:
    artifact = target.writer().finish(len(target.episodes), about=target.facts, began=began)
    target.drop_work()
    if not run.quiet:
        extra = artifact.meta["extra"]
        score = f", score {extra['normalized_score']:.2f} without noise" if "normalized_score" in extra else ""
        print(f"{target.path}: {extra['episodes']} episodes, {extra['frames']} frames{score}")


@contextmanager
def collection_bar(run: Run, targets: list[Target]) -> Iterator[Any]:
    """The one bar over all datasets: decisions played and frames rendered, with the last returns or figures."""
    played = sum(t.job.total * DECISIONS for t in targets if t.job)
    total = played + sum(t.rows * len(t.episodes) for t in targets)
    shown: dict[str, str] = {}
    with progress(total, 0, f"collect {run.domain}", "frame", run.quiet) as bar:

        def report(label: str, frames: int, figure: Figure) -> None:
            bar.update(frames)
            if figure is not None:
                shown[label.removeprefix("expert-")] = figure if isinstance(figure, str) else f"{figure:.0f}"
                bar.set_postfix(shown)

        yield report


# ---------------------------------------------------------------------------- from elsewhere


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
