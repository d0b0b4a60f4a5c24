"""Options every stage command takes, and the checks of what a user types."""

from __future__ import annotations

import functools
import inspect
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from stages.runtime.errors import BadInput

MAX_PROMPT_LENGTH = 2000


def _option(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, **more)


def _shared(help: str, *names: str, **more: Any) -> Any:
    """An option that every stage takes."""
    return _option(help, *names, rich_help_panel="Common options", **more)


@dataclass(frozen=True)
class Common:
    """The options shared by all stage commands."""

    preset: Annotated[str, _shared("walker, cheetah, quadruped, stickman, or the path of a YAML file.")] = "walker"
    scale: Annotated[
        str, _shared("smoke, laptop, gpu, paper, or auto: what suits this machine.")
    ] = "auto"  # fmt: skip
    seed: Annotated[int, _shared("Seed of all randomness.", min=0, max=2**31 - 1)] = 0
    device: Annotated[str, _shared("auto, cpu or cuda.")] = "auto"
    out: Annotated[
        Path | None,
        _shared("Folder that holds all artifacts of the run.", show_default="runs/<domain>-<scale>", file_okay=False),
    ] = None
    set: Annotated[
        list[str], _shared("Override one key of the preset; repeatable.", "--set", metavar="KEY=VALUE")
    ] = field(default_factory=list)  # fmt: skip
    fresh: Annotated[bool, _shared("Rebuild even if the artifact exists.", "--fresh")] = False
    renew: Annotated[bool, _shared("Rebuild only what an input has changed of since.", "--renew")] = False
    log: Annotated[str, _shared("Log trainings of models and policies to wandb or tensorboard, too.")] = ""
    quiet: Annotated[bool, _shared("No progress bars, no summary lines.", "--quiet")] = False

    def override(self, key: str, value: object) -> Common:
        """The same options with one more `--set`: for an option that is short for a preset key."""
        return replace(self, set=[*self.set, f"{key}={value}"])


@dataclass(frozen=True)
class GoalOptions:
    """What behave and evaluate are asked for."""

    task: Annotated[str | None, _option("A task of the domain: stand, walk, run, ...")] = None
    prompt: Annotated[str | None, _option("Any text that describes the behaviour.")] = None
    video: Annotated[Path | None, _option("A video file or folder of frames that shows the behaviour.")] = None
    tasks: Annotated[str | None, _option("Several tasks, one policy: stand,walk,run.")] = None

    def checked(self) -> dict[str, Any]:
        """The fields of `policies.goals.Ask`, checked as far as the text alone allows."""
        return {
            "task": check_word(self.task, "--task"),
            "prompt": None if self.prompt is None else check_text(self.prompt),
            "video": None if self.video is None else str(self.video),
            "many": split_names(self.tasks) or [],
        }


@dataclass(frozen=True)
class CollectOptions:
    """What collect is asked for: the fields of `collect.Order`, with their help."""

    source: Annotated[str, _option("random, explore, expert, branch, or all of the preset's.")] = "all"
    task: Annotated[str | None, _option("Task of the expert source; default: every task of the domain.")] = None
    algo: Annotated[str, _option("How experts learn: td3 (from states) or dreamer (from pixels).")] = "td3"
    frames: Annotated[int | None, _option("Frames per dataset of the source named (all: of each expert).")] = None
    workers: Annotated[int | None, _option("Processes; default: one a core.")] = None
    states_only: Annotated[bool, _option("Store physics states, no frames.", "--states-only")] = False
    size: Annotated[int | None, _option("Height and width of a frame in pixels; default: 64.")] = None
    camera: Annotated[int | None, _option("Camera; default: the domain's own.")] = None
    render: Annotated[
        Path | None, _option("Make frames from the states of a dataset instead.", metavar="DATASET")
    ] = None  # fmt: skip
    import_dir: Annotated[
        Path | None, _option("Read GenRL's public .npz episodes instead.", "--import", metavar="DIR")
    ] = None  # fmt: skip
    strict: Annotated[bool, _option("With --import: stop at the first bad episode.", "--strict")] = False


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Show Typer one flat signature of a command that takes groups of options as dataclasses.

    A parameter whose type is a dataclass is given by the dataclass's fields; those of `Common` come last in the help.
    """
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: p.annotation for name, p in own.items() if is_dataclass(p.annotation)}
    members = {name: _parameters(group) for name, group in groups.items()}
    flat_parameters = [
        part
        for name, p in sorted(own.items(), key=lambda item: item[1].annotation is Common)
        for part in members.get(name, [p.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
    ]

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        made = {n: group(**{p.name: given.pop(p.name) for p in members[n]}) for n, group in groups.items()}
        command(**made, **given)

    flat.__signature__ = inspect.Signature(flat_parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in flat_parameters}
    del flat.__wrapped__
    return flat


def _parameters(group: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass of options as parameters."""
    hints, kind = get_type_hints(group, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    defaults: dict[str, Any] = {f.name: [] if f.name == "set" else f.default for f in fields(group)}
    return [inspect.Parameter(n, kind, default=default, annotation=hints[n]) for n, default in defaults.items()]


def check_text(text: str, what: str = "prompt") -> str:
    """Strip a prompt. Raises BadInput when it is empty, too long, or holds control characters."""
    text = text.strip()
    if not text:
        raise BadInput(f"the {what} is empty: describe the behaviour in a few words")
    if len(text) > MAX_PROMPT_LENGTH:
        raise BadInput(f"the {what} has {len(text)} characters: shorten it to at most {MAX_PROMPT_LENGTH}")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise BadInput(f"the {what} holds control characters: give plain text on one line")
    return text


def check_word(name: str | None, option: str) -> str | None:
    """A task or method name becomes part of a path: refuse anything but a plain word."""
    if name is not None and not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", name):
        raise BadInput(f"{option} {name[:40]!r} is not a name: use lower-case letters, digits, '_' and '-'")
    return name


def split_names(text: str | None) -> list[str] | None:
    """'stand, walk' → ['stand', 'walk']; None stays None."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise BadInput("--tasks is empty: give task names separated by commas, e.g. stand,walk,run")
    for name in names:
        check_word(name, "--tasks")
    return names
