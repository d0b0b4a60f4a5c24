"""The four bodies: for each domain its model, its physics and its dm_control tasks."""

from __future__ import annotations

from typing import Any

from numpy.random import RandomState

from stages.worlds import cheetah, quadruped, stickman, walker
from stages.worlds.suite import base, common, mujoco, no_compiler_advice

WORLDS: dict[str, Any] = {"walker": walker, "cheetah": cheetah, "quadruped": quadruped, "stickman": stickman}


def make_model(domain: str) -> mujoco.MjModel:
    """The compiled model of a domain; one per domain, whatever the task."""
    with no_compiler_advice():
        return mujoco.MjModel.from_xml_string(WORLDS[domain].model_xml(), common.ASSETS)


def make_physics(domain: str) -> Any:
    """A fresh dm_control physics of a domain."""
    with no_compiler_advice():
        return WORLDS[domain].Physics.from_xml_string(WORLDS[domain].model_xml(), common.ASSETS)


def make_task(domain: str, task: str, random: RandomState) -> base.Task:
    """A fresh dm_control task drawing its episode starts from `random`."""
    return WORLDS[domain].TASKS[task](random)


def control_timestep(domain: str) -> float:
    """Seconds of one control step; an episode has 1000."""
    return float(WORLDS[domain].CONTROL_TIMESTEP)
