"""Quadruped: the suite's four-legged body on flat ground, its walk and run, and our stand."""

from __future__ import annotations

from collections.abc import Callable

from dm_control.suite import base, quadruped
from dm_control.utils.rewards import tolerance
from numpy.random import RandomState

CONTROL_TIMESTEP = 0.02
FLOOR_SIZE = 100  # m, the suite's for run: walk's smaller floor differs to the eye alone
Physics = quadruped.Physics


def model_xml() -> str | bytes:
    """The suite's flat-ground model with the floor of its run task."""
    return quadruped.make_model(floor_size=FLOOR_SIZE)


def upright(physics: quadruped.Physics) -> float:
    """1 with the back up, falling linearly to 0 upside down."""
    return float(tolerance(float(physics.torso_upright()), (1, float("inf")), 2, "linear", 0))


class Stand(quadruped.Move):
    """Keep the back up: reward = upright, the first factor of the suite's walk and run."""

    def __init__(self, random: RandomState) -> None:
        super().__init__(desired_speed=0, random=random)

    def get_reward(self, physics: quadruped.Physics) -> float:
        return upright(physics)


TASKS: dict[str, Callable[[RandomState], base.Task]] = {
    "stand": Stand,
    "walk": lambda random: quadruped.Move(desired_speed=0.5, random=random),
    "run": lambda random: quadruped.Move(desired_speed=5, random=random),
}
