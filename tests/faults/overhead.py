"""What checkpoints, checksums and locks cost a run: their time on the run's own files, beside the run's own time.

    python -m tests.faults.overhead runs/walker-laptop [scratch]

Needs a finished pretraining. Each operation is repeated; the fastest counts, as the others waited for other programs
too. Its time is multiplied by how often a run does it and divided by the stage's `wall_seconds` in artifact.json: once
the time on the clock, which on a busy machine includes waiting, once the processor's own time.
Nothing is written into the run: what is measured goes to a scratch folder, by default beside it, on the same disk.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.core import artifacts, checkpoints, storage
from stages.core.artifacts import Artifact
from stages.core.episodes import Dataset
from stages.core.shards import episode_arrays, join, write_shard

REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """Seconds of the fastest of a few repeats: on the clock, and of the processor over all threads."""

    clock: float
    processor: float


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


Row = tuple[str, str, Cost, int, float]


def measure(root: Path, scratch: Path) -> Iterator[Row]:
    """(stage, what, cost of one, how often, seconds of the stage's whole run, 0 where they are not recorded)."""
    backbone = artifacts.load(root / "backbone")
    yield from training(backbone, scratch, "embed", "backbone")
    models = sorted(p.parent for p in root.glob("model/*/artifact.json"))
    model = artifacts.load(models[0], "pretrain")
    yield from training(model, scratch, "pretrain", "pretrain")
    inputs = [artifacts.load(artifacts.input_path(model, wanted)) for wanted in model.meta["inputs"].values()]
    check = cost(lambda: [artifacts.verify(a) for a in inputs])
    size = sum((a.path / name).stat().st_size for a in inputs for name in a.meta["files"]) / 1e9
    compared = f"comparing {size:.2f} GB of inputs with their checksums"
    embedding = sum(a.meta["wall_seconds"] for a in inputs if a.meta["stage"] == "embed")
    yield "embed", compared, check, 1, backbone.meta["wall_seconds"] + embedding
    yield "pretrain", compared, check, 1, model.meta["wall_seconds"]
    for policy in sorted(p.parent for p in root.glob("policy/*/*/artifact.json"))[:1]:
        made = artifacts.load(policy, "behave")
        yield from training(made, scratch, "behave", "behave")
        yield "behave", compared, check, 1, made.meta["wall_seconds"]
    data = next(a for a in inputs if a.meta["stage"] == "collect")
    episode = join([episode_arrays(Dataset.open([data.path], data.domain).episode(0))])
    count = sum(a.meta["extra"]["episodes"] for a in inputs if a.meta["stage"] == "collect")
    waiting = cost(lambda: write_shard(scratch / "waiting", episode, sealed=True))
    yield "collect", "writing a waiting episode with its checksum", waiting, count, 0.0
    yield "collect", "fsync of a waiting episode", cost(lambda: storage.fsync(scratch / "waiting")), count, 0.0
    yield "any", "taking and giving back the lock", cost(lambda: lock(scratch / "locked")), 1, 0.0


def training(made: Artifact, scratch: Path, stage: str, section: str) -> Iterator[Row]:
    """Checkpoints of a training (its tensors, and twice as many in the optimizer) and its artifact."""
    config = made.meta["config"].get(section, made.meta["config"])
    names = [n.removesuffix(".safetensors") for n in made.meta["files"] if n.endswith(".safetensors")]
    groups = {name: made.tensors(name) for name in names}
    slots = {
        f"{g}-{k}": {n: torch.zeros_like(t) for n, t in group.items()} for g, group in groups.items() for k in "mv"
    }
    one = cost(lambda: checkpoints.save(scratch / "made", 1, groups | slots, made.meta["config"]))
    often = max(config["updates"] // config["checkpoint_every"] - 1, 0)
    wall = made.meta["wall_seconds"]
    yield stage, "one checkpoint", one, often, wall
    about = {"domain": made.domain, "config": {}, "seed": 0}
    whole = cost(lambda: artifacts.save(scratch / "made", "x", groups, **about))
    yield stage, "writing the artifact and reading it back", whole, 1, wall


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    print("| stage | what | ms (processor) | times | s of the stage | share (processor) |\n|---|---|---|---|---|---|")
    beside = Path(sys.argv[2]) if len(sys.argv) > 2 else root.parent
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        for stage, what, one, often, wall in measure(root, Path(scratch)):
            share = f"{one.clock * often / wall:.2%} ({one.processor * often / wall:.2%})" if wall else ""
            milliseconds = f"{1e3 * one.clock:.1f} ({1e3 * one.processor:.1f})"
            print(f"| {stage} | {what} | {milliseconds} | {often} | {round(wall, 1) or ''} | {share} |")


if __name__ == "__main__":
    main()
