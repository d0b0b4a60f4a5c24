"""Stickman: our planar humanoid with arms (stickman.xml), its stand, walk and run, and further poses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import RandomState

from stages.worlds import biped
from stages.worlds.biped import INF, Pose, low, ramp, stand, standing
from stages.worlds.suite import base, tolerance, walker

CONTROL_TIMESTEP = 0.025
HANDS = ["right_hand", "left_hand"]


class Physics(biped.Physics):
    """The walker's measures, and those of the arms."""

    stand_height = 1.15

    def hand_heights(self) -> np.ndarray:
        """(2,) heights of the hands above the torso's centre; the head's top is at .55."""
        return self.named.data.xpos[HANDS, "z"] - self.named.data.xpos["torso", "z"]

    def punch_speed(self) -> float:
        """Forward or backward speed of the faster hand as seen from the torso, m/s."""
        sensors = self.named.data.sensordata
        hands = np.array([sensors["right_hand_velocity"][0], sensors["left_hand_velocity"][0]])
        return float(np.max(np.abs(hands - sensors["torso_velocity"][0])))


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
        if self._move_speed == 0:
            return stand(physics)
        speed = self._move_speed
        move = tolerance(physics.horizontal_velocity(), (speed, INF), speed / 2, "linear", 0.5)
        return stand(physics) * (5 * float(move) + 1) / 6


def lying_down(physics: Physics) -> float:
    """Lie stretched out: low * flat, flat = 1 - mean steepness of torso, thighs and legs."""
    return low(physics) * (1 - float(physics.steepness().mean()))


def legs_up(physics: Physics) -> float:
    """Lie with both feet in the air: low * (5 raised + 1) / 6, raised rising from 0 with the lower foot at .2 m to 1
    at .8 m."""
    return low(physics) * (5 * ramp(min(physics.foot_heights()), 0.2, 0.8) + 1) / 6


def headstand(physics: Physics) -> float:
    """Upside down with both feet up: (3 raised + 1) / 4 * inverted; raised rises to 1 with the lower foot at 1.5 m,
    inverted is 1 head down and 0 head up."""
    raised = ramp(min(physics.foot_heights()), 0.1, 1.5)
    return (3 * raised + 1) / 4 * (1 - physics.upright())


def boxing(physics: Physics) -> float:
    """Stand with raised fists and punch: stand * (guard + punch) / 2; guard rises to 1 with both hands at shoulder
    height, punch with a hand moving at 2 m/s forward or back."""
    guard = ramp(min(physics.hand_heights()), -0.3, 0.15)
    return stand(physics) * (guard + ramp(physics.punch_speed(), 0, 2)) / 2


def hands_up(physics: Physics) -> float:
    """Stand with both hands beside the head: standing * upright * hands, hands rising from 0 at the hips to 1 with
    the lower hand .45 m above the torso's centre, the height of the head."""
    return standing(physics) * physics.upright() * ramp(min(physics.hand_heights()), -0.3, 0.45)


TASKS: dict[str, Callable[[RandomState], base.Task]] = {
    "stand": lambda random: Move(move_speed=0, random=random),
    "walk": lambda random: Move(move_speed=1, random=random),
    "run": lambda random: Move(move_speed=8, random=random),
    **biped.POSES,
    **{reward.__name__: partial(Pose, reward) for reward in (lying_down, legs_up, headstand, boxing, hands_up)},
}
