"""What a policy is asked for: a task, a prompt, a video or several tasks; its embedding, and its command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stages.backbones import backbone_of
from stages.backbones.prompts import embed_prompt_video, video_digest
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.runtime.names import DATA_FREE, ORACLE, method_option, slug
from stages.worlds import tasks


@dataclass(frozen=True)
class Ask:
    """What a user asks a policy for: one of a task, a prompt, a video, or several tasks at once."""

    task: str | None = None
    prompt: str | None = None
    video: str | None = None
    many: Sequence[str] = ()


@dataclass(frozen=True)
class Variant:
    """How a policy is learned.

    Args:
        method: see `methods` in presets/paper.yaml.
        oracle: the control row; the reward is the true one of the named task.
        data_free: no dataset is read; every imagined rollout begins in a state the model itself dreams up.
    """

    method: str = "bitagent"
    oracle: bool = False
    data_free: bool = False

    @property
    def label(self) -> str:
        """What folders and tables call it."""
        return self.method + (ORACLE if self.oracle else "") + (DATA_FREE if self.data_free else "")


@dataclass(frozen=True)
class Goal:
    """An `Ask` understood: the artifact's name, one prompt text per head and known task names."""

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


def parse_goal(domain: str, ask: Ask) -> Goal:
    """Exactly one of task, prompt, video or several tasks. Raises BadInput for none, two or an unknown task."""
    if sum(bool(x) for x in (ask.task, ask.prompt, ask.video, ask.many)) != 1:
        raise BadInput("give exactly one of --task, --prompt, --video or --tasks")
    if ask.prompt:
        return Goal(slug(ask.prompt), (ask.prompt,), ())
    if ask.video:
        path = Path(ask.video)
        return Goal(slug(path.stem, video_digest(path)), (f"video {path.name}",), (), ask.video)
    names = tuple(ask.many) or (str(ask.task),)
    return Goal("+".join(names), tuple(tasks.get_task(domain, n).prompt for n in names), names)


def embed_goal(goal: Goal, source: Artifact, run: Run, name: str, again: str) -> Tensor:
    """Unit-norm embeddings of the prompts (K, dim_e), by the backbone `name` that `source` was made with.

    Raises BadInput when that has changed since; `again` is the command that makes the source anew.
    """
    backbone = backbone_of(source, name, run.root, run.device, again)
    if goal.video:
        return embed_prompt_video(backbone, Path(goal.video))[None].cpu()
    return backbone.encode_text(list(goal.prompts)).cpu()


def behave_command(run: Run, goal: Goal, label: str) -> str:
    """The command line that makes, or goes on with, the policy of a variant's label."""
    rewarded = label.removesuffix(DATA_FREE)
    method = rewarded.removesuffix(ORACLE)
    flags = [*(["--oracle-reward"] if method != rewarded else []), *(["--data-free"] if rewarded != label else [])]
    return run.command("behave", *goal.options(), *method_option(method), *flags, "--seed", str(run.seed))
