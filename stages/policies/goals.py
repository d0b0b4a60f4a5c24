"""What a policy is asked for: a task, a prompt, a video or several tasks; its embedding, and its command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stages.backbones import backbone_of
from stages.backbones.prompts import embed_prompt_video
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.runtime.names import DATA_FREE, ORACLE, method_option, slug
from stages.worlds import tasks


@dataclass(frozen=True)
class Goal:
    """What the policy is asked for: the artifact's name, one prompt text per head and known task names."""

    name: str
    prompts: tuple[str, ...]
    tasks: tuple[str, ...]
    video: str = ""

    def options(self) -> tuple[str, str]:
        """The command-line option that asks for it."""
        if self.video:
            return "--video", self.video
        if self.tasks:
            return ("--tasks", ",".join(self.tasks)) if len(self.tasks) > 1 else ("--task", self.tasks[0])
        return "--prompt", f'"{self.prompts[0]}"'


def parse_goal(domain: str, task: str | None, prompt: str | None, video: str | None, many: Sequence[str] = ()) -> Goal:
    """Exactly one of task, prompt, video or several tasks. Raises BadInput for none, two or an unknown task."""
    if sum(bool(x) for x in (task, prompt, video, many)) != 1:
        raise BadInput("give exactly one of --task, --prompt, --video or --tasks")
    if prompt:
        return Goal(slug(prompt), (prompt,), ())
    if video:
        return Goal(slug(Path(video).stem), (f"video {Path(video).name}",), (), video)
    names = tuple(many) or (str(task),)
    return Goal("+".join(names), tuple(tasks.get_task(domain, n).prompt for n in names), names)


def embed_goal(goal: Goal, source: Artifact, run: Run, name: str, again: str) -> Tensor:
    """Unit-norm embeddings of the prompts (K, dim_e), by the backbone `name` that `source` was made with.

    Raises BadInput when that has changed since; `again` is the command that makes the source anew.
    """
    backbone = backbone_of(source, name, run.root, run.device, again)
    if goal.video:
        return embed_prompt_video(backbone, Path(goal.video))[None].cpu()
    return backbone.encode_text(list(goal.prompts)).cpu()


def command_again(run: Run, goal: Goal, label: str) -> str:
    """The command line that goes on with the policy of a label."""
    rewarded = label.removesuffix(DATA_FREE)
    method = rewarded.removesuffix(ORACLE)
    flags = [*(["--oracle-reward"] if method != rewarded else []), *(["--data-free"] if rewarded != label else [])]
    return run.command("behave", *goal.options(), *method_option(method), *flags, "--seed", str(run.seed))
