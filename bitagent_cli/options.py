"""Options every stage command takes, and the checks of what a user types."""

from __future__ import annotations

import functools
import inspect
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from stages.runtime.errors import BadInput

MAX_PROMPT_LENGTH = 2000
COMMON = "Common options"


@dataclass(frozen=True)
class Common:
    """The options shared by all stage commands."""

    preset: Annotated[
        str,
        typer.Option(help="walker, cheetah, quadruped, stickman, or the path of a YAML file.", rich_help_panel=COMMON),
    ] = "walker"
    scale: Annotated[
        str,
        typer.Option(
            help="smoke, laptop, paper, or auto: paper with a CUDA device, laptop without.", rich_help_panel=COMMON
        ),
    ] = "auto"
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of all randomness.", rich_help_panel=COMMON)] = 0
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=COMMON)] = "auto"
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds all artifacts of the run.",
            show_default="runs/<domain>-<scale>",
            file_okay=False,
            rich_help_panel=COMMON,
        ),
    ] = None
    set: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override one key of the preset; repeatable.", rich_help_panel=COMMON
        ),
    ] = field(default_factory=list)
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Rebuild even if the artifact exists.", rich_help_panel=COMMON)
    ] = False
    renew: Annotated[
        bool, typer.Option("--renew", help="Rebuild only what an input has changed of since.", rich_help_panel=COMMON)
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress bars, no summary lines.", rich_help_panel=COMMON)
    ] = False

    def override(self, key: str, value: object) -> Common:
        """The same options with one more `--set`: for an option that is short for a preset key."""
        return replace(self, set=[*self.set, f"{key}={value}"])


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options beside its own.

    `command(common, ...)` takes them as its first argument, a `Common`; Typer sees one flat
    signature.
    """
    names = [f.name for f in fields(Common)]
    hints = get_type_hints(Common, include_extras=True)
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=hints[f.name])
        for f in fields(Common)
    ]

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        common = Common(**{name: given.pop(name) for name in names})
        command(common, **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    del flat.__wrapped__
    return flat


def _default(f: Any) -> Any:
    return [] if f.name == "set" else f.default


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


def check_name(name: str | None, option: str) -> str | None:
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
        check_name(name, "--tasks")
    return names
