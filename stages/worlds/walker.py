"""Walker: the suite's planar biped, its stand, walk and run, and further poses (biped.py)."""

from __future__ import annotations

from collections.abc import Callable

from numpy.random import RandomState

from stages.worlds.biped import POSES, Physics
from stages.worlds.suite import base, walker

__all__ = ["CONTROL_TIMESTEP", "TASKS", "Physics", "model_xml"]

CONTROL_TIMESTEP = 0.025


def model_xml() -> str | bytes:
    """The suite's own model, unchanged."""
    return walker.get_model_and_assets()[0]


TASKS: dict[str, Callable[[RandomState], base.Task]] = {
    "stand": lambda random: walker.PlanarWalker(move_speed=0, random=random),
    "walk": lambda random: walker.PlanarWalker(move_speed=1, random=random),
    "run": lambda random: walker.PlanarWalker(move_speed=8, random=random),
    **POSES,
}
