"""Quadruped: the suite's four-legged body on flat ground, its walk and run, our stand, and further poses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.random import RandomState

from stages.worlds.biped import ramp
from stages.worlds.suite import base, quadruped, tolerance

CONTROL_TIMESTEP = 0.02
FLOOR_SIZE = 100  # m, the suite's for run: walk's smaller floor differs to the eye alone
TOES = ["toe_front_left", "toe_back_left", "toe_back_right", "toe_front_right"]


class Physics(quadruped.Physics):
    """The suite's physics with heights and pitch."""

    def torso_height(self) -> float:
        """Height of the torso's centre, m; .57 standing as the model is drawn."""
        return float(self.named.data.xpos["torso", "z"])

    def rearing(self) -> float:
        """|sine| of the torso's pitch: 1 with the head straight up or down, 0 level."""
        return abs(float(self.named.data.xmat["torso", "zx"]))

    def toe_heights(self) -> np.ndarray:
        """(4,) heights of the toes' centres, m, lowest first."""
        return np.sort(self.named.data.xpos[TOES, "z"])


def model_xml() -> str | bytes:
    """The suite's flat-ground model with the floor of its run task."""
    return quadruped.make_model(floor_size=FLOOR_SIZE)


class Pose(quadruped.Move):
    """A task whose reward is a function of the physics; episodes start as the suite's walk."""

    def __init__(self, reward: Callable[[Physics], float], random: RandomState) -> None:
        super().__init__(desired_speed=0, random=random)
        self._reward = reward

    def get_reward(self, physics: Physics) -> float:
        return self._reward(physics)


def stand(physics: Physics) -> float:
    """Keep the back up: 1 upright, falling linearly to 0 upside down; the first factor of the suite's walk."""
    return float(tolerance(float(physics.torso_upright()), (1, float("inf")), 2, "linear", 0))


def jump(physics: Physics) -> float:
    """Leave the ground, back up: stand * ramp of the torso's height from 0 at .6 m to 1 at 1 m."""
    return stand(physics) * ramp(physics.torso_height(), 0.6, 1.0)


def two_legs(physics: Physics) -> float:
    """Rear up on two legs: ramp of the torso's pitch from 0 at 17 to 1 at 64 degrees, times that of the height of
    the third lowest toe from 0 at .3 m to 1 at .8 m."""
    return ramp(physics.rearing(), 0.3, 0.9) * ramp(physics.toe_heights()[2], 0.3, 0.8)


def lie_down(physics: Physics) -> float:
    """Lie on the floor, either way up: ramp of the torso's height from 0 at .7 m to 1 at .25 m."""
    return ramp(physics.torso_height(), 0.7, 0.25)


TASKS: dict[str, Callable[[RandomState], base.Task]] = {
    "stand": partial(Pose, stand),
    "walk": lambda random: quadruped.Move(desired_speed=0.5, random=random),
    "run": lambda random: quadruped.Move(desired_speed=5, random=random),
    "jump": partial(Pose, jump),
    "two_legs": partial(Pose, two_legs),
    "lie_down": partial(Pose, lie_down),
}
