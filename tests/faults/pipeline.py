"""The pipeline at a size that takes seconds: its commands, what they make, and copies to break.

`Pipeline.build` makes every artifact once, without a fault; `branch` gives a folder with the inputs of one
step, in which that step can be killed and repeated; `ids` is what must come out again.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from stages.runtime import artifacts
from tests.faults.forks import Door, Ended

SETTINGS = (
    "collect.random_episodes=2", "collect.explore.random_episodes=1", "collect.explore.updates=2",
    "collect.expert.decisions.walk=1000", "collect.expert.decisions.run=500", "collect.expert.keep_episodes=2",
    "collect.expert.updates_per_decision=0.03", "collect.expert.checkpoint_episodes=1",
    "collect.expert.random_episodes=1", "collect.expert.evaluation_episodes=1",
    "embed.offline.updates=12", "embed.offline.checkpoint_every=3", "embed.offline.batch=8",
    "pretrain.updates=12", "pretrain.checkpoint_every=3", "pretrain.objective.horizon=3", "pretrain.batch=2",
    "behave.updates=12", "behave.checkpoint_every=3", "behave.decisions=8", "behave.imagined=4", "behave.horizon=3",
    "transfer.updates=6", "evaluate.video=false", "evaluate.semantics_every=50",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One command: its words, the folder of its domain, and the artifacts it reads and makes below the root."""

    name: str
    words: tuple[str, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    domain: str = "walker"


DATA = ("walker-smoke/data/random", "walker-smoke/data/expert-walk")
SIDES = ("walker-smoke/embeddings/offline/random", "walker-smoke/embeddings/offline/expert-walk")
BACKBONE, MODEL = "walker-smoke/backbone", "walker-smoke/model/bitagent-s0"
POLICY, SCORES = "walker-smoke/policy/bitagent-s0/walk", "walker-smoke/evaluation/bitagent-s0/walk"
TARGET = ("cheetah-smoke/data/random", "cheetah-smoke/backbone", "cheetah-smoke/embeddings/offline/random")
ADAPTED = tuple(
    f"cheetah-smoke/{place}"
    for place in ("model/transfer-walker-s0", "policy/transfer-walker-s0/run", "evaluation/transfer-walker-s0/run")
)
EXPLORED = ("cheetah-smoke/data/explore",)  # last, and where no step looks for more data
BRANCHES = ("cheetah-smoke/data/branch",)  # likewise

STEPS = (
    Step("collect random", ("collect", "--source", "random", "--workers", "1"), (), DATA[:1]),
    Step("collect expert", ("collect", "--source", "expert", "--task", "walk", "--workers", "1"), (), DATA[1:]),
    Step("embed", ("embed",), DATA, (BACKBONE, *SIDES)),
    Step("pretrain", ("pretrain",), (*DATA, *SIDES, BACKBONE), (MODEL,)),
    Step("behave", ("behave", "--task", "walk"), (*DATA, *SIDES, BACKBONE, MODEL), (POLICY,)),
    Step("evaluate", ("evaluate", "--task", "walk"), (BACKBONE, POLICY), (SCORES,)),
    Step("target data", ("collect", "--source", "random", "--workers", "1"), (), TARGET[:1], "cheetah"),
    Step("target embed", ("embed",), TARGET[:1], TARGET[1:], "cheetah"),
    Step("transfer", ("transfer", "--src", "walker", "--task", "run"), (*TARGET, MODEL), ADAPTED, "cheetah"),
    Step("collect explore", ("collect", "--source", "explore", "--workers", "1"), (), EXPLORED, "cheetah"),
    Step("collect branch", ("collect", "--source", "branch", "--workers", "1"), TARGET[:1], BRANCHES, "cheetah"),
)  # fmt: skip
KILLED = tuple(step for step in STEPS if not step.name.startswith("target"))


def find(name: str) -> Step:
    return next(step for step in STEPS if step.name == name)


@dataclass
class Pipeline:
    """Everything made once without a fault, below `root`; `seconds` of the processor is what each step took."""

    door: Door
    root: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def build(self) -> Pipeline:
        """Run every step, or read how long each took when that was done before."""
        times = self.root / "seconds.json"
        if times.exists():
            self.seconds = json.loads(times.read_text())
            return self
        for step in STEPS:
            ended = self.run(step, self.root)
            assert ended.code == 0, (step.name, ended)
            self.seconds[step.name] = ended.processor
        times.write_text(json.dumps(self.seconds))
        return self

    def words(self, step: Step, root: Path, *more: str) -> list[str]:
        """The command line of a step with its output below `root`."""
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        options = ["--preset", step.domain, "--scale", "smoke", "--device", "cpu", "--quiet"]
        return [*step.words, *options, "--out", str(root / f"{step.domain}-smoke"), *settings, *more]

    def run(self, step: Step, root: Path, *more: str, **faults: object) -> Ended:
        return self.door.run(*self.words(step, root, *more), **faults)  # type: ignore[arg-type]

    def branch(self, step: Step, root: Path) -> Path:
        """A folder that holds copies of what the step reads, and nothing else."""
        shutil.rmtree(root, ignore_errors=True)
        for place in step.reads:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(self.root / place, root / place, copy_function=os.link)
        return root

    def ids(self, step: Step, root: Path | None = None) -> dict[str, str]:
        """Id of every artifact the step makes: it covers the checksum of each file. All are verified first."""
        found = {}
        for place in step.makes:
            artifact = artifacts.load((root or self.root) / place)
            artifacts.verify(artifact)
            found[place] = artifact.id
        return found
