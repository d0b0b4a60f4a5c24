"""`bitagent quickstart`: every stage in order, the plan first, one line of result a stage, and a report that grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from bitagent_cli.presets import Preset
from bitagent_cli.session import tell
from stages import behave, collect, embed, evaluate, pretrain, visualize
from stages.policies.goals import Ask
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.distributed import World
from stages.runtime.loop import duration
from stages.worlds import tasks

# Minutes of the walker at laptop scale on a machine whose update of the joint model takes SECONDS.
SECONDS = 0.24
MINUTES = {"collect": 8.5, "embed": 1.5, "pretrain": 10.0, "behave": 6.5, "evaluate": 0.5, "visualize": 1.5}
GLANCE = {"error_windows": 64, "reward_glance": 8, "reward_windows": 400}  # of the report while others stages wait

Step = tuple[str, Callable[[], Sequence[Artifact]]]


def run_stages(preset: Preset, run: Run) -> None:
    """Make everything of one domain, one policy and its report; what is finished is reused.

    Raises what the stages raise.
    """
    steps = stages_of(preset, run)
    if not run.quiet:
        print(plan_of(preset, run, [name for name, _ in steps]), flush=True)
    glance = preset.visualize.model_copy(update=GLANCE)
    for number, (name, step) in enumerate(steps, 1):
        if not run.quiet:
            print(f"[{number}/{len(steps)}] {name}", flush=True)
        tell(run, *step())
        if name in ("collect", "pretrain"):
            visualize.run(glance, replace(run, quiet=True))


def stages_of(preset: Preset, run: Run) -> list[Step]:
    """Every stage by name, in order; one policy for all of the paper's tasks."""
    agent = collect.AgentConfig(preset.model, preset.pretrain.objective, preset.behave.actor_critic)
    ask = Ask(many=tasks.task_names(run.domain))
    return [
        ("collect", lambda: collect.run(preset.collect, run, agent=agent)),
        ("embed", lambda: embed.run(preset.embed, run)),
        ("pretrain", lambda: [pretrain.run(preset.sections, run)]),
        ("behave", lambda: [behave.run(preset.behave, run, ask)]),
        ("evaluate", lambda: [evaluate.run(preset.evaluate, run, ask)]),
        ("visualize", lambda: [visualize.run(preset.visualize, run)]),
    ]


def plan_of(preset: Preset, run: Run, names: Sequence[str]) -> str:
    """What will be made and how long that takes here, as far as this scale was timed."""
    report = (run.root / "report" / "report.html").absolute().as_uri()
    where = f"the report grows at {report}"
    if run.scale != "laptop":
        return f"plan: {', '.join(names)}; {where}"
    each = seconds_an_update(preset, run)
    minutes = {name: MINUTES[name] * each / SECONDS for name in names}
    parts = ", ".join(f"{name} {duration(m)}" for name, m in minutes.items())
    total = duration(sum(minutes.values()))
    return f"plan: {parts}\nabout {total} in all, as an update of the model takes {each:.2g} s here; {where}"


def seconds_an_update(preset: Preset, run: Run) -> float:
    """Time of one update of the joint model on this machine, on random data of the preset's sizes."""
    from bitagent_cli.bench.train import DIM_ACTION, joint_update, time_calls
    from stages.core.bitagent import BiTAgent

    with torch.random.fork_rng():
        place = World(0, 1, torch.device(run.device))
        model = BiTAgent(preset.model, preset.embed.offline.dim, DIM_ACTION).to(place.device)
        batch, _, update = joint_update(preset.pretrain, model, place)
        return time_calls(lambda: update(batch), place.device, count=3, warmup=2)
