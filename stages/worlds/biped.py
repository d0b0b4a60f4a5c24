"""What the walker and the stickman share: measures of two legs and a torso, and poses made of them.

Every reward lies in [0, 1] per control step and is written in the suite's terms: `tolerance` is 1 inside
bounds and falls to a given value at a margin outside them. Heights are in metres; on both bodies the
hip is 0.95 m above the sole of a straight leg.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.random import RandomState

from stages.worlds.suite import base, tolerance, walker

INF = float("inf")
SIDES = ("right", "left")


class Physics(walker.Physics):
    """The suite's walker physics with measures of knees, feet and segments, right before left."""

    stand_height = 1.2  # m, of the torso's centre; the stickman's is lower

    def foot_heights(self) -> np.ndarray:
        """(2,) heights of the feet's centres."""
        return self.named.data.xpos[["right_foot", "left_foot"], "z"]

    def foot_positions(self) -> np.ndarray:
        """(2,) positions of the feet along the direction of travel."""
        return self.named.data.xpos[["right_foot", "left_foot"], "x"]

    def knee_heights(self) -> np.ndarray:
        """(2,) heights of the knee joints."""
        return self.named.data.xanchor[["right_knee", "left_knee"], "z"]

    def steepness(self) -> np.ndarray:
        """(5,) |cosine| between the vertical and the long axis of torso, thighs and legs: 0 lying flat."""
        bodies = ["torso", "right_thigh", "left_thigh", "right_leg", "left_leg"]
        return np.abs(self.named.data.xmat[bodies, "zz"])

    def upright(self) -> float:
        """1 with the torso up, .5 lying, 0 upside down."""
        return float(1 + self.torso_upright()) / 2

    def spin(self) -> float:
        """Speed of the torso's rotation, rad/s, either way."""
        return abs(float(self.named.data.qvel["rooty"][0]))


class Pose(walker.PlanarWalker):
    """A task whose reward is a function of the physics; episodes start as the walker's."""

    def __init__(self, reward: Callable[[Physics], float], random: RandomState) -> None:
        super().__init__(move_speed=0, random=random)
        self._reward = reward

    def get_reward(self, physics: Physics) -> float:
        return self._reward(physics)


def ramp(value: float, zero: float, one: float) -> float:
    """Linear from 0 at `zero` to 1 at `one`, flat beyond both; falling when `one` < `zero`."""
    return min(max(float(value - zero) / (one - zero), 0.0), 1.0)


def standing(physics: Physics) -> float:
    """tolerance(torso height, [stand height, inf), margin half of it)."""
    return float(tolerance(physics.torso_height(), (physics.stand_height, INF), physics.stand_height / 2))


def stand(physics: Physics) -> float:
    """(3 standing + upright) / 4, the suite's reward for walker stand."""
    return (3 * standing(physics) + physics.upright()) / 4


def one_foot(physics: Physics) -> float:
    """Stand with one foot in the air: stand * lift, lift rising from 0 at a difference of .2 m between the feet's
    heights to 1 at .5 m."""
    low, high = sorted(physics.foot_heights())
    return stand(physics) * ramp(high - low, 0.2, 0.5)


def high_kick(physics: Physics) -> float:
    """Stand with one foot as high as the hip: stand * kick, kick rising to 1 with a foot at 1.1 m."""
    return stand(physics) * ramp(max(physics.foot_heights()), 0.05, 1.1)


def low(physics: Physics) -> float:
    """1 with the torso on the floor (.15 m), falling linearly to 0 at .6 m."""
    return ramp(physics.torso_height(), 0.6, 0.15)


def lying_down(physics: Physics) -> float:
    """Lie stretched out: low * flat^2, flat = 1 - mean steepness of torso, thighs and legs."""
    return low(physics) * (1 - float(physics.steepness().mean())) ** 2


def sit_knees(physics: Physics) -> float:
    """Kneel, sitting on the heels: (3 kneel + 1) / 4 * upright^2; kneel = torso height within the seat's range
    (margin .3) * both knees on the floor (below .12 m, margin .3)."""
    seat = tolerance(physics.torso_height(), (physics.stand_height - 0.75, physics.stand_height - 0.45), 0.3)
    knees = np.prod([tolerance(float(height), (-INF, 0.12), 0.3) for height in physics.knee_heights()])
    return (3 * float(seat * knees) + 1) / 4 * physics.upright() ** 2


def lunge_pose(physics: Physics) -> float:
    """A deep step: one knee bent in front, the other leg's knee near the floor behind, torso up.

    (3 lunge + upright) / 4; lunge = torso height within (.75, .95) of the hip over bent legs (margin .4) *
    feet .7 m apart (0 when together) * front knee .3 m above the rear one (0 when level).
    """
    feet, knees = physics.foot_positions(), physics.knee_heights()
    front = int(np.argmax(feet))
    apart = ramp(feet[front] - feet[1 - front], 0, 0.7)
    bent = ramp(knees[front] - knees[1 - front], 0, 0.3)
    centre = physics.stand_height - 0.35
    height = tolerance(physics.torso_height(), (centre - 0.1, centre + 0.1), 0.4)
    return (3 * float(height) * apart * bent + physics.upright()) / 4


def flipping(physics: Physics) -> float:
    """Somersaults, either way: spin * off; spin rises from 0 at 1 rad/s of the torso's rotation to 1 at 8 rad/s, off
    from 0 with the torso at .2 m to 1 at .7 m, so that rolling about on the floor earns little."""
    return ramp(physics.spin(), 1, 8) * ramp(physics.torso_height(), 0.2, 0.7)


POSES: dict[str, Callable[[RandomState], base.Task]] = {
    reward.__name__: partial(Pose, reward)
    for reward in (one_foot, high_kick, lying_down, sit_knees, lunge_pose, flipping)
}
