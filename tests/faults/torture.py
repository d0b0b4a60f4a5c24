"""`make torture`: hundreds of kills and thousands of damaged files, counted.

    python -m tests.faults.torture --kills 200 --mutations 2000 --folder /var/tmp/torture

Counts are kept in <folder>/torture.json after every trial, so a stopped torture goes on. It exits with 1 when
anything was silently corrupt, ended in a traceback or hung, and lists what.

- A kill: SIGKILL at a random moment of a command, which is then given again, killed again, and at last let end.
  What it made must have the ids (and so the bytes) of an undisturbed run.
- A damaged or edited file must be refused with BadInput, or be read to the very same content.
- A forged file (its checksums were corrected too) may be read, but never ends in a traceback.
- A mutated preset is taken or refused with BadInput.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from typer.testing import CliRunner

from bitagent_cli import presets
from bitagent_cli.app import app
from stages.data.episodes import Dataset
from stages.data.inputs import find_inputs
from stages.data.shards import episode_arrays, read_sealed, write_shard
from stages.methods import open_model
from stages.policies.policy import load_actor
from stages.report import results
from stages.runtime import artifacts, checkpoints
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from tests.faults import mutants
from tests.faults.forks import Door, Ended
from tests.faults.mutants import Case
from tests.faults.pipeline import BACKBONE, DATA, KILLED, MODEL, POLICY, SCORES, SIDES, Pipeline, Step

SLOW = 20  # seconds of computing after which reading a file counts as a hang
KILLS_A_RUN = 4


@dataclass
class Tally:
    """What was done and what went wrong, kept on disk."""

    file: Path
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, file: Path) -> Tally:
        if not file.exists():
            return cls(file)
        found = json.loads(file.read_text())
        return cls(file, Counter(found["counts"]), found["bad"])

    def save(self) -> None:
        self.file.write_text(json.dumps({"counts": dict(sorted(self.counts.items())), "bad": self.bad}, indent=1))

    def fail(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.bad.append(f"{kind}: {what}")
        print(self.bad[-1], flush=True)

    def total(self, prefix: str) -> int:
        return sum(n for key, n in self.counts.items() if key.startswith(prefix))

    def report(self) -> str:
        lines = [f"{key:<44}{count:>7}" for key, count in sorted(self.counts.items())]
        verdict = [f"{kind:<44}{self.counts[kind]:>7}" for kind in ("silent corruption", "traceback", "hang", "other")]
        return "\n".join([*lines, "-" * 51, *verdict])


# ---------------------------------------------------------------------------- kills


def kill(pipeline: Pipeline, step: Step, root: Path, chance: random.Random, tally: Tally, kills: int) -> None:
    """Kill a step up to `kills` times, each time at a random moment, then let it end and compare. Works in `root`.

    A moment is drawn evenly from the processor time of the whole step, also for a command that goes on from where
    the one before was killed: it may be done before, and ends the run.
    """
    pipeline.branch(step, root)
    for number in range(kills):
        moment = chance.uniform(0.0, pipeline.seconds[step.name])
        ended = pipeline.run(step, root, signals=[(moment, signal.SIGKILL)])
        if not acceptable(ended, (0, 137), step, tally):
            return
        if ended.code == 0:
            if not number:
                pipeline.seconds[step.name] = ended.processor  # a whole command takes less by now: aim earlier
            break
        tally.counts[f"kill {step.name}"] += 1
        tally.counts[f"moment {int(10 * moment / pipeline.seconds[step.name])}/10"] += 1
        tally.counts[f"left {left_behind(root)}"] += 1
    else:
        if not acceptable(pipeline.run(step, root), (0,), step, tally):
            return
    compare(pipeline, step, root, tally)


def left_behind(root: Path) -> str:
    """What a kill left of the work done: 'a draft' says that it struck inside a write."""
    if any(root.rglob(".*.tmp")) or any(root.rglob(".*.old")) or any(root.rglob(".*.gone")):
        return "a draft"
    kept = any(any(root.rglob(pattern)) for pattern in ("*.checkpoint", "*.partial/*", "*.replay/*"))
    return "progress" if kept else "nothing or whole artifacts"


def acceptable(ended: Ended, codes: tuple[int, ...], step: Step, tally: Tally) -> bool:
    """Whether a command ended as it should after a kill; counts what it did instead."""
    if ended.hung:
        tally.fail("hang", f"{step.name} after a kill")
    elif ended.code not in codes:
        kind = "traceback" if "Traceback" in ended.stderr else "other"
        tally.fail(kind, f"{step.name} after a kill: {ended.code} {ended.stderr[-300:]}")
    return not ended.hung and ended.code in codes


def compare(pipeline: Pipeline, step: Step, root: Path, tally: Tally) -> None:
    """A step that ended must have made what the undisturbed one made."""
    wanted, found = pipeline.ids(step), pipeline.ids(step, root)
    other = [place for place in wanted if found[place] != wanted[place]]
    if other:
        tally.fail("silent corruption", f"{step.name} ended with another {', '.join(other)}")
    else:
        tally.counts[f"identical {step.name}"] += 1


def torture_kills(pipeline: Pipeline, tally: Tally, wanted: int, seed: int) -> None:
    while (done := tally.total("kill ")) < wanted:
        step = min(
            KILLED, key=lambda s: pipeline.seconds[s.name] * (1 + tally.counts[f"kill {s.name}"])
        )  # a fair share
        kills = min(KILLS_A_RUN, wanted - done)
        kill(pipeline, step, tally.file.parent / "killed", random.Random(f"{seed} {tally.counts}"), tally, kills)
        tally.save()
        print(f"kills {tally.total('kill ')}/{wanted}: {step.name}", flush=True)


# ---------------------------------------------------------------------------- damaged files


def cases(root: Path) -> list[Case]:
    """Every kind of file a run leaves, and how a stage reads it."""
    run = Run("walker", "smoke", root / "walker-smoke", quiet=True)
    checkpoint, replay = make_work(root)
    found = [
        Case(f"{kind} {file.suffix[1:]}", file, read)
        for kind, places, read in (
            ("dataset", DATA, lambda: find_inputs(run, "offline")),
            ("embeddings", SIDES, lambda: find_inputs(run, "offline")),
            ("backbone", (BACKBONE,), lambda: read_backbone(root)),
            ("model", (MODEL,), lambda: open_model(artifacts.load(root / MODEL, "pretrain"))),
            ("policy", (POLICY,), lambda: read_policy(root / POLICY)),
            ("evaluation", (SCORES,), lambda: read_scores(root)),
        )
        for place in places
        for file in artifact_files(root / place)
    ]
    return [
        *found,
        *(Case(f"checkpoint {f.suffix[1:]}", f, lambda: checkpoints.read(checkpoint, {"a": 1}))
          for f in sorted(checkpoints.folder(checkpoint).iterdir())),
        Case("waiting episode", replay, lambda: read_sealed(replay)),
    ]  # fmt: skip


def artifact_files(folder: Path) -> list[Path]:
    return [folder / name for name in ("artifact.json", *artifacts.load(folder).meta["files"])]


def read_backbone(root: Path) -> object:
    backbone = artifacts.load(root / BACKBONE, "backbone")
    return backbone.tensors("model"), backbone.tensors("sentences")


def read_policy(path: Path) -> object:
    policy = artifacts.load(path, "behave")
    return load_actor(policy, open_model(policy)), policy.tensors("prompt")


def read_scores(root: Path) -> object:
    artifacts.verify(artifacts.load(root / SCORES, "evaluate"))
    return results.gather(root / "walker-smoke", "walker")


def make_work(root: Path) -> tuple[Path, Path]:
    """A checkpoint and an episode that waits for its dataset, as a stop leaves them."""
    tensors = artifacts.load(root / MODEL).tensors("model")
    path = root / "work" / "model"
    checkpoints.write(path, 12, {"model": tensors, "rng": checkpoints.rng_state()}, {"a": 1})
    episode = Dataset.open([root / DATA[1]], "walker").episode(0)
    waiting = root / "work" / "episode-00000000.safetensors"
    write_shard(waiting, {name: [array[:50]] for name, array in episode_arrays(episode).items()}, sealed=True)
    return path, waiting


class TooSlow(BaseException):
    """Raised into whatever reads for more than SLOW seconds."""


@contextmanager
def bounded() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise TooSlow

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SLOW)  # of this process's own time: the machine may be busy
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(30 * SLOW)  # and for what waits without working
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def outcome(read: Callable[[], object]) -> str:
    """'refused', 'read', 'hang', or the traceback of anything else."""
    try:
        with bounded():
            read()
    except BadInput:
        return "refused"
    except TooSlow:
        return "hang"
    except BaseException:
        return traceback.format_exc()
    return "read"


def mutate(case: Case, chance: random.Random, tally: Tally, style: str) -> None:
    """One damaged file, read as the stages read it and shown by `bitagent inspect --verify`."""
    sound = case.file.read_bytes()
    make = {"damaged": lambda: mutants.damage(sound, chance)}.get(style)
    content = make() if make else getattr(mutants, style)(case.file, chance)
    if content == sound:
        return
    with mutants.replaced(case.file, content):
        found = outcome(case.read)
        shown = 2 if case.file.parent.name.endswith(("checkpoint", "work")) else inspect(case.file.parent)
    tally.counts[f"mutation {style} {case.name.split()[0]}"] += 1
    what = f"{style} {case.name} ({case.file.name}), {len(content)} bytes"
    if found == "hang" or shown == "hang":
        tally.fail("hang", what)
    elif found not in ("read", "refused") or shown not in (0, 2):
        tally.fail("traceback", f"{what}: {found[-400:]} {shown}")
    elif style != "forged" and "read" in (found, "read" if shown == 0 else "") and not same(case.file, sound, content):
        tally.fail("silent corruption", what)


def same(file: Path, sound: bytes, content: bytes) -> bool:
    """Whether two JSON files say the same; other files never do when their bytes differ."""
    try:
        return file.suffix == ".json" and json.loads(sound) == json.loads(content)
    except ValueError:
        return False


def inspect(path: Path) -> int | str:
    """Exit code of `bitagent inspect --verify`, or what else happened."""
    codes: list[int | str] = []

    def call() -> None:
        ended = CliRunner().invoke(app, ["inspect", str(path), "--verify"])
        codes.append(ended.exit_code if ended.exit_code in (0, 2) else repr(ended.exception))

    return codes[0] if outcome(call) == "read" else "hang"


def torture_files(root: Path, tally: Tally, wanted: int, seed: int) -> None:
    mutants.restore(root)
    known = cases(root)
    forgeable = [case for case in known if case.file.name == "artifact.json"]
    for case in known:
        assert outcome(case.read) == "read", (case.name, outcome(case.read))
    while (done := tally.total("mutation ")) < wanted:
        chance = random.Random(f"{seed} file {done}")
        style = chance.choice(("damaged", "damaged", "damaged", "edited", "edited", "forged"))
        mutate(chance.choice(forgeable if style == "forged" else known), chance, tally, style)
        if done % 50 == 0:
            tally.save()
            print(f"mutations {done}/{wanted}", flush=True)
    tally.save()


# ---------------------------------------------------------------------------- presets


def torture_presets(folder: Path, tally: Tally, wanted: int, seed: int) -> None:
    file = folder / "mine.yaml"
    while (done := tally.total("preset ")) < wanted:
        chance = random.Random(f"{seed} preset {done}")
        content = mutants.mutate_preset(chance)
        file.write_bytes(content)
        setting = f"{chance.choice(presets.known_keys())}={chance.choice(mutants.SCALARS)}"
        settings = [setting] if chance.random() < 0.5 else []
        found = outcome(lambda given=settings: presets.resolve(str(file), "smoke", given))  # type: ignore[misc]
        tally.counts[f"preset {found if found in ('read', 'refused') else 'failed'}"] += 1
        if found not in ("read", "refused"):
            tally.fail("hang" if found == "hang" else "traceback", f"{content!r} {settings} {found[-400:]}")
        if done % 50 == 0:
            tally.save()
    tally.save()


# ---------------------------------------------------------------------------- the command


def main() -> int:
    words = argparse.ArgumentParser(description="Kill, damage and forge; see the module's text.")
    words.add_argument("--kills", type=int, default=200)
    words.add_argument("--mutations", type=int, default=2000, help="of artifacts; half as many presets are added")
    words.add_argument("--folder", type=Path, default=Path("runs/torture"), help="kept, so that a second call goes on")
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    tally = Tally.load(given.folder / "torture.json")
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Door() as door:
        pipeline = Pipeline(door, (given.folder / "sound").resolve()).build()
        torture_presets(given.folder, tally, given.mutations // 2, given.seed)
        torture_files(pipeline.root, tally, given.mutations, given.seed)
        torture_kills(pipeline, tally, given.kills, given.seed)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) / 1024
    shutil.rmtree(given.folder / "killed", ignore_errors=True)
    tally.save()
    print(f"{tally.report()}\nmemory grew by at most {grown:.0f} MiB while reading damaged files")
    return int(bool(tally.bad))


if __name__ == "__main__":
    sys.exit(main())
