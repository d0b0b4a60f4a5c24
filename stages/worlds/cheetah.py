"""Cheetah: the suite's planar runner, its run, and two poses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from numpy.random import RandomState

from stages.worlds.biped import ramp
from stages.worlds.suite import base, cheetah

CONTROL_TIMESTEP = 0.01


class Physics(cheetah.Physics):
    """The suite's physics with the torso's height and pitch."""

    def torso_height(self) -> float:
        """Height of the torso's centre, m; .7 on four straight legs."""
        return float(self.named.data.xpos["torso", "z"])

    def rearing(self) -> float:
        """Sine of the torso's pitch: 1 with the head straight up, 0 level, -1 head down."""
        return float(self.named.data.xmat["torso", "zx"])


def model_xml() -> str | bytes:
    """The suite's own model, unchanged."""
    return cheetah.get_model_and_assets()[0]


class Pose(cheetah.Cheetah):
    """A task whose reward is a function of the physics; episodes start as the suite's run."""

    def __init__(self, reward: Callable[[Physics], float], random: RandomState) -> None:
        super().__init__(random=random)
        self._reward = reward

    def get_reward(self, physics: Physics) -> float:
        return self._reward(physics)


def standing(physics: Physics) -> float:
    """Stand on the hind legs: ramp of the torso's rearing from 0 level to 1 at 64 degrees, times that of its
    height from 0 at .5 m to 1 at .9 m."""
    return ramp(physics.rearing(), 0, 0.9) * ramp(physics.torso_height(), 0.5, 0.9)


def lying_down(physics: Physics) -> float:
    """Lie flat: (2 low + level) / 3; low falls from 1 at a torso height of .3 m, about as low as the springs of the
    legs let it, to 0 at .65 m; level is 1 - |rearing|."""
    return (2 * ramp(physics.torso_height(), 0.65, 0.3) + 1 - abs(physics.rearing())) / 3


TASKS: dict[str, Callable[[RandomState], base.Task]] = {
    "run": lambda random: cheetah.Cheetah(random=random),
    "standing": partial(Pose, standing),
    "lying_down": partial(Pose, lying_down),
}
