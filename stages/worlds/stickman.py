"""Stickman: our planar humanoid with arms (stickman.xml), its stand, walk and run, and further poses."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from stages.worlds.biped import (
    BIPED_PHRASES,
    INF,
    BipedPhysics,
    biped_behaviours,
    biped_features,
    biped_task,
    flipping,
    high_kick,
    low,
    lunge_pose,
    one_foot,
    ramp,
    sit_knees,
    stand_up,
    tall,
)
from stages.worlds.body import Array, Body, Features, Memberships, Phrases, Task, dof_address, over, under
from stages.worlds.suite import mujoco, tolerance, walker

HANDS = ["right_hand", "left_hand"]


class StickmanPhysics(BipedPhysics):
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


class StickmanMove(walker.PlanarWalker):
    """Stand, or move forward at `move_speed` m/s while standing.

    standing = tolerance(torso height, [1.15, inf), margin .575); stand = (3 standing + upright) / 4;
    reward = stand, or stand * (5 move + 1) / 6 with move = tolerance(speed, [v, inf), margin v / 2,
    linear, .5 at the margin).
    """

    def get_reward(self, physics: StickmanPhysics) -> float:
        if self._move_speed == 0:
            return stand_up(physics)
        speed = self._move_speed
        move = tolerance(physics.horizontal_velocity(), (speed, INF), speed / 2, "linear", 0.5)
        return stand_up(physics) * (5 * float(move) + 1) / 6


def stickman_lying_down(physics: StickmanPhysics) -> float:
    """Lie stretched out: low * flat, flat = 1 - mean steepness of torso, thighs and legs."""
    return low(physics) * (1 - float(physics.steepness().mean()))


def legs_up(physics: StickmanPhysics) -> float:
    """Lie with both feet in the air: low * (5 raised + 1) / 6, raised rising from 0 with the lower foot at .2 m to 1
    at .8 m."""
    return low(physics) * (5 * ramp(min(physics.foot_heights()), 0.2, 0.8) + 1) / 6


def headstand(physics: StickmanPhysics) -> float:
    """Upside down with both feet up: (3 raised + 1) / 4 * inverted; raised rises to 1 with the lower foot at 1.5 m,
    inverted is 1 head down and 0 head up."""
    raised = ramp(min(physics.foot_heights()), 0.1, 1.5)
    return (3 * raised + 1) / 4 * (1 - physics.upright())


def boxing(physics: StickmanPhysics) -> float:
    """Stand with raised fists and punch: stand * (guard + punch) / 2; guard rises to 1 with both hands at shoulder
    height, punch with a hand moving at 2 m/s forward or back."""
    guard = ramp(min(physics.hand_heights()), -0.3, 0.15)
    return stand_up(physics) * (guard + ramp(physics.punch_speed(), 0, 2)) / 2


def hands_up(physics: StickmanPhysics) -> float:
    """Stand with both hands beside the head: standing * upright * hands, hands rising from 0 at the hips to 1 with
    the lower hand .45 m above the torso's centre, the height of the head."""
    return tall(physics) * physics.upright() * ramp(min(physics.hand_heights()), -0.3, 0.45)


# ---------------------------------------------------------------------------- features and behaviours


def stickman_features(model: mujoco.MjModel, position: Array, rotation: Array, velocity: Array) -> Features:
    """The walker's, and where hands and head are."""
    hands = [position[:, model.body(f"{side}_hand").id] for side in ("right", "left")]
    head = position[:, model.body("head").id]
    elbows = [dof_address(model, f"{side}_{joint}") for side in ("right", "left") for joint in ("shoulder", "elbow")]
    return biped_features(model, position, rotation, velocity) | {
        "hands_over_head": np.minimum(hands[0][:, 2], hands[1][:, 2]) - head[:, 2],
        "arm_speed": np.abs(velocity[:, elbows]).mean(1),
        "head": head[:, 2],
    }


def stickman_behaviours(f: Features) -> Memberships:
    """The walker's, and those of the arms."""
    found = biped_behaviours(f)  # the same legs; the torso's origin stands as high
    arms_up = over(f["hands_over_head"], 0.05, 0.12)
    found["upside_down"] = found["upside_down"] * under(f["head"], 0.5, 0.15)
    return found | {
        "hands_up": found["on_feet"] * arms_up,
        "punch": found["on_feet"] * over(f["arm_speed"], 5.0, 1.5) * under(np.abs(f["speed"]), 1.0, 0.4),
        "legs_up": under(f["height"], 0.5, 0.12) * over(f["foot_low"], 0.5, 0.12),
    }


# ---------------------------------------------------------------------------- words

ARM_PHRASES: Phrases = {
    "hands_up": (
        ("standing with the hands up", "raising both arms", "holding the hands over the head", "=hands up",
         "=arms in the air"),
        ("lift both hands high",),
    ),
    "punch": (
        ("punching", "boxing", "swinging the arms fast", "hitting with the fists", "=a punch"),
        ("throw punches",),
    ),
    "legs_up": (
        ("lying with the legs up", "raising the feet while lying", "lying down with feet up", "=legs in the air"),
        ("resting with both legs raised",),
    ),
}  # fmt: skip


# ---------------------------------------------------------------------------- the record

BODY = Body(
    name="stickman",
    model_xml=Path(__file__).with_name("stickman.xml").read_text(),
    physics=StickmanPhysics,
    control_timestep=0.025,
    camera=0,
    tasks=(
        Task("stand", "standing up", 70, 970, partial(StickmanMove, 0), training=True),
        Task("walk", "robot walk fast clean", 35, 960, partial(StickmanMove, 1), training=True),
        Task("run", "robot run fast clean", 25, 830, partial(StickmanMove, 8), training=True),
        Task("one_foot", "standing on one foot", 20, 865, biped_task(one_foot)),
        Task("high_kick", "kicking one leg high in the air", 55, 920, biped_task(high_kick)),
        Task("lying_down", "lying down on the floor", 380, 965, biped_task(stickman_lying_down)),
        Task("legs_up", "lying on the back with the legs up", 115, 935, biped_task(legs_up)),
        Task("sit_knees", "kneeling and sitting on the heels", 40, 966, biped_task(sit_knees)),
        Task("lunge_pose", "lunge with one leg bent in front", 100, 950, biped_task(lunge_pose)),
        Task("headstand", "upside down in a headstand", 180, 955, biped_task(headstand)),
        Task("boxing", "boxing with raised fists", 80, 920, biped_task(boxing)),
        Task("hands_up", "standing with both hands up", 5, 830, biped_task(hands_up)),
        Task("flipping", "doing somersaults", 45, 790, biped_task(flipping)),
    ),
    features=stickman_features,
    behaviours=stickman_behaviours,
    nouns=("stickman", "robot", "humanoid", "man", "person", "figure"),
    phrases=BIPED_PHRASES | ARM_PHRASES,
)
