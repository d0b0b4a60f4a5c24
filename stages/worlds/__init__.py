"""The bodies: one module each with a constant BODY, found here, so that a new domain is a new file."""

from __future__ import annotations

import pkgutil
import re
from functools import lru_cache
from importlib import import_module
from typing import Any

from stages.runtime.errors import BadInput
from stages.worlds.body import Body
from stages.worlds.suite import common, mujoco, no_compiler_advice

PAPER = ("walker", "cheetah", "quadruped", "stickman")  # the paper's order


def find_bodies() -> dict[str, Body]:
    """{domain: its record}, the paper's four first, then others by name."""
    # looked for in the text, not by importing: the other modules import this one, and gym needs an extra
    marked = {
        module.name
        for module in pkgutil.iter_modules(__path__)
        if not module.ispkg
        and re.search(rb"^BODY\b", pkgutil.get_data(__name__, f"{module.name}.py") or b"", re.MULTILINE)
    }
    found = {name: import_module(f"{__name__}.{name}").BODY for name in (*PAPER, *sorted(marked.difference(PAPER)))}
    for name, body in found.items():
        if body.name != name:
            raise BadInput(f"stages/worlds/{name}.py calls its body {body.name!r}: give both one name")
    return found


BODIES = find_bodies()


def compile_model(domain: str) -> mujoco.MjModel:
    """The compiled model of a domain, whatever the task. All callers share it, so none may change it."""
    return _compile(BODIES[domain].model_xml)


@lru_cache(maxsize=8)  # compiling takes as long as drawing a hundred frames
def _compile(xml: str | bytes) -> mujoco.MjModel:
    with no_compiler_advice():
        return mujoco.MjModel.from_xml_string(xml, common.ASSETS)


def make_physics(domain: str) -> Any:
    """A fresh dm_control physics of a domain."""
    body = BODIES[domain]
    with no_compiler_advice():
        return body.physics.from_xml_string(body.model_xml, common.ASSETS)
