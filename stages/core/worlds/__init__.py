"""The four bodies: for each domain its model, its physics class and its dm_control tasks."""

from __future__ import annotations

import mujoco
from dm_control.suite import base, common
from dm_control.suite.walker import mujoco as dm_mujoco
from numpy.random import RandomState

from stages.core.worlds import cheetah, quadruped, stickman, walker

WORLDS = {"walker": walker, "cheetah": cheetah, "quadruped": quadruped, "stickman": stickman}


def make_model(domain: str) -> mujoco.MjModel:
    """The compiled model of a domain; one per domain, whatever the task."""
    return mujoco.MjModel.from_xml_string(WORLDS[domain].model_xml(), common.ASSETS)


def make_physics(domain: str) -> dm_mujoco.Physics:
    """A fresh dm_control physics of a domain."""
    return WORLDS[domain].Physics.from_xml_string(WORLDS[domain].model_xml(), common.ASSETS)


def make_task(domain: str, task: str, random: RandomState) -> base.Task:
    """A fresh dm_control task drawing its episode starts from `random`."""
    return WORLDS[domain].TASKS[task](random)


def substeps(domain: str, timestep: float) -> int:
    """Physics steps in one control step."""
    return round(WORLDS[domain].CONTROL_TIMESTEP / timestep)
