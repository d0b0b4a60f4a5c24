"""What checkpoints, checksums and locks cost a run: their time on the run's own files, beside the run's own time.

    python -m tests.faults.overhead runs/walker-laptop --collected 1500

Measures the stages that are finished. Each operation is repeated; the fastest counts, as the others waited for other
programs too. Its time is multiplied by how often a run does it and divided by the seconds of the stage: once the time
on the clock, which on a busy machine includes waiting, once the processor's own time. The seconds of a stage are
`wall_seconds` of what it made; a collection's, which artifact.json does not record, are given.
Nothing is written into the run: what is measured goes to a scratch folder, by default beside it, on the same disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.data.episodes import Dataset
from stages.data.shards import episode_arrays, join, read_sealed, write_shard
from stages.methods.td3 import TD3, TD3Config
from stages.runtime import artifacts, checkpoints, storage
from stages.runtime.artifacts import Artifact
from stages.worlds import tasks

REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """Seconds of the fastest of a few repeats: on the clock, and of the processor over all threads."""

    clock: float
    processor: float


@dataclass(frozen=True)
class Row:
    """One operation of a stage, how often a run does it, and the seconds of the stage's whole run."""

    stage: str
    what: str
    one: Cost
    often: int
    whole: float


def cost(work: Callable[[], object]) -> Cost:
    found = []
    for _ in range(REPEATS):
        clock, processor = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - clock, time.process_time() - processor))
    clocks, processors = zip(*found, strict=True)
    return Cost(min(clocks), min(processors))


def lock(path: Path) -> None:
    with storage.locked(path):
        pass


def gigabytes(found: Sequence[Artifact]) -> float:
    return sum((a.path / name).stat().st_size for a in found for name in a.meta["files"]) / 1e9


def find(root: Path, pattern: str) -> list[Artifact]:
    return [artifacts.load(file.parent) for file in sorted(root.glob(f"{pattern}/artifact.json"))]


def measure(root: Path, scratch: Path, collected: float) -> Iterator[Row]:
    data, sides = find(root, "data/*"), find(root, "embeddings/*/*")
    yield from collecting(data, scratch, collected)
    frames, embeddings = cost(lambda: artifacts.verify(*data)), cost(lambda: artifacts.verify(*sides))
    for backbone in find(root, "backbone"):
        whole = backbone.meta["wall_seconds"] + sum(a.meta["wall_seconds"] for a in sides)
        yield Row("embed", comparing(data), frames, 1, whole)
        yield from training(backbone, scratch, "embed", backbone.meta["config"], whole)
    for stage, pattern in (("pretrain", "model/*"), ("behave", "policy/*/*")):
        for made in find(root, pattern)[:1]:
            whole = made.meta["wall_seconds"]
            yield Row(stage, comparing(data), frames, 1, whole)
            yield Row(stage, comparing(sides), embeddings, 1, whole)
            yield from training(made, scratch, stage, made.meta["config"][stage], whole)
    for scored in find(root, "evaluation/*/*")[:1]:
        policy = artifacts.load(artifacts.input_path(scored, next(iter(scored.meta["inputs"].values()))))
        one = cost(lambda policy=policy: artifacts.verify(policy))
        yield Row("evaluate", comparing([policy]), one, 1, scored.meta["wall_seconds"])
    yield Row("any", "taking and giving back the lock", cost(lambda: lock(scratch / "locked")), 1, 0.0)


def comparing(found: Sequence[Artifact]) -> str:
    return f"comparing {gigabytes(found):.2f} GB with their checksums"


def collecting(data: Sequence[Artifact], scratch: Path, whole: float) -> Iterator[Row]:
    """Every episode waits in a sealed file and is compared when the dataset is written; experts keep checkpoints."""
    blocks = join([episode_arrays(Dataset.open([data[0].path], data[0].domain).episode(0))])
    count, waiting = sum(a.meta["extra"]["episodes"] for a in data), scratch / "waiting"
    durable = cost(lambda: storage.replace_file(waiting, lambda draft: write_shard(draft, blocks, sealed=True)))
    yield Row("collect", "writing a waiting episode for good, with its checksum", durable, count, whole)
    yield Row("collect", "comparing it with its checksum", cost(lambda: read_sealed(waiting)), count, whole)
    largest = max((f for a in data for f in a.path.glob("shard-*")), key=lambda file: file.stat().st_size)
    size = largest.stat().st_size / 1e9
    often = round(gigabytes(data) / size)
    yield Row("collect", f"checksum of {size:.2f} GB", cost(lambda: storage.file_sha256(largest)), often, whole)
    for expert in (a for a in data if a.meta["extra"]["source"] == "expert"):
        config, extra = expert.meta["config"]["expert"], expert.meta["extra"]
        env = tasks.make_env(expert.domain, extra["task"], seed=0)
        agent = TD3(TD3Config(**config["td3"]), len(env.reset(seed=0).observation), env.action_dim, 0)
        one = cost(lambda agent=agent, config=config: checkpoints.write(scratch / "made", 1, agent.tensors(), config))
        often = len(extra["learning_curve"]) // config["checkpoint_episodes"]
        yield Row("collect", f"one checkpoint of the expert for {extra['task']}", one, often, whole)


def training(made: Artifact, scratch: Path, stage: str, config: Mapping[str, Any], whole: float) -> Iterator[Row]:
    """Checkpoints of a training (its tensors, and twice as many in the optimizer) and its artifact."""
    names = [n.removesuffix(".safetensors") for n in made.meta["files"] if n.endswith(".safetensors")]
    groups = {name: made.tensors(name) for name in names}
    slots: dict[str, dict[str, Tensor]] = {
        f"{g}-{k}": {n: torch.zeros_like(t) for n, t in group.items()} for g, group in groups.items() for k in "mv"
    }
    one = cost(lambda: checkpoints.write(scratch / "made", 1, groups | slots, made.meta["config"]))
    often = max(config["updates"] // config["checkpoint_every"] - 1, 0)
    yield Row(stage, "one checkpoint", one, often, whole)
    about = {"domain": made.domain, "config": {}, "seed": 0}
    saved = cost(lambda: artifacts.save(scratch / "made", "x", groups, **about))
    yield Row(stage, "writing the artifact and reading it back", saved, 1, whole)


def main() -> None:
    words = argparse.ArgumentParser(description="Measure what reliability costs a run; see the module's text.")
    words.add_argument("run", type=Path)
    words.add_argument("--scratch", type=Path, help="a folder on the disk to measure; default: beside the run")
    words.add_argument("--collected", type=float, default=0.0, help="seconds that `collect` took")
    given = words.parse_args()
    root = given.run.resolve()
    print("| stage | what | ms (processor) | times | s of the stage | share (processor) |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=given.scratch or root.parent) as scratch:
        for stage, rows in groupby(measure(root, Path(scratch), given.collected), key=lambda row: row.stage):
            clock = processor = whole = 0.0
            for row in rows:
                one, whole = row.one, row.whole
                clock, processor = clock + one.clock * row.often, processor + one.processor * row.often
                shares = both(one.clock * row.often, one.processor * row.often, whole)
                milliseconds = f"{1e3 * one.clock:.1f} ({1e3 * one.processor:.1f})"
                print(f"| {stage} | {row.what} | {milliseconds} | {row.often} | | {shares} |", flush=True)
            print(f"| {stage} | all | | | {whole:.1f} | {both(clock, processor, whole)} |", flush=True)


def both(clock: float, processor: float, whole: float) -> str:
    return f"{clock / whole:.2%} ({processor / whole:.2%})" if whole else ""


if __name__ == "__main__":
    main()
