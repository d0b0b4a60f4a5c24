"""Cheetah: the suite's planar runner."""

from __future__ import annotations

from collections.abc import Callable

from dm_control.suite import base, cheetah
from numpy.random import RandomState

CONTROL_TIMESTEP = 0.01
Physics = cheetah.Physics


def model_xml() -> str | bytes:
    """The suite's own model, unchanged."""
    return cheetah.get_model_and_assets()[0]


TASKS: dict[str, Callable[[RandomState], base.Task]] = {
    "run": lambda random: cheetah.Cheetah(random=random),
}
