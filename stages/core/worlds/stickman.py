"""Stickman: our planar humanoid with arms (stickman.xml) and its tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dm_control.suite import base, walker
from dm_control.utils.rewards import tolerance
from numpy.random import RandomState

CONTROL_TIMESTEP = 0.025
STAND_HEIGHT = 1.15  # m, of the torso's centre


class Physics(walker.Physics):
    """The walker's measures hold: same names of torso and velocity sensor."""


def model_xml() -> str:
    """Our own MJCF; it includes the suite's common materials, sky and lights."""
    return Path(__file__).with_name("stickman.xml").read_text()


class Move(walker.PlanarWalker):
    """Stand, or move forward at `move_speed` m/s while standing.

    standing = tolerance(torso height, [1.15, inf), margin .575); stand = (3 standing + upright) / 4;
    reward = stand, or stand * (5 move + 1) / 6 with move = tolerance(speed, [v, inf), margin v / 2,
    linear, .5 at the margin).
    """

    def get_reward(self, physics: Physics) -> float:
        stand = stand_reward(physics)
        if self._move_speed == 0:
            return stand
        speed = self._move_speed
        move = tolerance(physics.horizontal_velocity(), (speed, float("inf")), speed / 2, "linear", 0.5)
        return float(stand * (5 * move + 1) / 6)


def stand_reward(physics: Physics) -> float:
    """(3 standing + upright) / 4 with a standing height of 1.15 m."""
    standing = tolerance(physics.torso_height(), (STAND_HEIGHT, float("inf")), STAND_HEIGHT / 2)
    return float((3 * standing + (1 + physics.torso_upright()) / 2) / 4)


TASKS: dict[str, Callable[[RandomState], base.Task]] = {
    "stand": lambda random: Move(move_speed=0, random=random),
    "walk": lambda random: Move(move_speed=1, random=random),
    "run": lambda random: Move(move_speed=8, random=random),
}
