"""Walker: the suite's planar biped and its stand, walk and run."""

from __future__ import annotations

from collections.abc import Callable

from dm_control.suite import base, walker
from numpy.random import RandomState

CONTROL_TIMESTEP = 0.025
Physics = walker.Physics


def model_xml() -> str | bytes:
    """The suite's own model, unchanged."""
    return walker.get_model_and_assets()[0]


TASKS: dict[str, Callable[[RandomState], base.Task]] = {
    "stand": lambda random: walker.PlanarWalker(move_speed=0, random=random),
    "walk": lambda random: walker.PlanarWalker(move_speed=1, random=random),
    "run": lambda random: walker.PlanarWalker(move_speed=8, random=random),
}
