"""Stickman: GenRL's planar humanoid with arms (stickman.xml), its stand, walk and run, and further poses."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from stages.worlds.biped import (
    BIPED_PHRASES,
    biped_behaviours,
    biped_features,
    biped_task,
    flat,
    flipping,
    headstand,
    high_kick,
    lunge_pose,
    lying_down,
    one_foot,
    pair,
    sit_knees,
    stand_at,
)
from stages.worlds.body import (
    Array,
    Body,
    Features,
    Memberships,
    Phrases,
    Task,
    above,
    below,
    dof_address,
    over,
    ramp,
    under,
)
from stages.worlds.suite import mujoco, walker

STANDING = 1.15  # m, height of the torso


def stand_and_move(physics: walker.Physics, speed: float) -> float:
    """stand_at 1.15 m * (5 move + 1) / 6; move: the whole body's forward speed, m/s. With `speed` 0 it is a hard step:
    the slightest motion backward leaves a sixth."""
    return stand_at(physics, STANDING) * (5 * ramp(physics.horizontal_velocity(), speed) + 1) / 6


def legs_up(physics: walker.Physics) -> float:
    """(3 low + flat) / 4 * feet: torso down at .1 m and level, the feet up at .35 m."""
    low = below(physics.torso_height(), 0.1)
    return (3 * low + flat(physics)) / 4 * above(pair(physics, "foot").mean(), 0.35)


def hands_up(physics: walker.Physics) -> float:
    """stand_at 1.15 m * hands at 1.75 m in the mean."""
    return stand_at(physics, STANDING) * above(pair(physics, "hand").mean(), 1.75)


def boxing(physics: walker.Physics) -> float:
    """stand_at 1.15 m * the faster hand at 5 m/s, forward or back, in the world's frame."""
    speeds = np.abs(physics.named.data.subtree_linvel[["left_hand", "right_hand"], "x"])  # (2,)
    return stand_at(physics, STANDING) * ramp(speeds.max(), 5)


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
    physics=walker.Physics,
    control_timestep=0.025,
    camera=0,
    tasks=(
        Task("stand", "standing up", 70, 970, biped_task(partial(stand_and_move, speed=0)), training=True),
        Task("walk", "robot walk fast clean", 35, 960, biped_task(partial(stand_and_move, speed=1)), training=True),
        Task("run", "robot run fast clean", 25, 830, biped_task(partial(stand_and_move, speed=8)), training=True),
        Task("one_foot", "stand on one foot", 20, 865, biped_task(one_foot)),
        Task("high_kick", "stand up and kick", 55, 920, biped_task(partial(high_kick, height=STANDING))),
        Task("lying_down", "lying down horizontally", 380, 965, biped_task(lying_down)),
        Task("legs_up", "lifting legs up while lying down", 115, 935, biped_task(legs_up)),
        Task("sit_knees", "praying", 40, 966, biped_task(sit_knees)),
        Task("lunge_pose", "lunge_pose", 100, 950, biped_task(lunge_pose)),
        Task("headstand", "headstand", 180, 955, biped_task(headstand)),
        Task("boxing", "punch", 80, 920, biped_task(boxing)),
        Task("hands_up", "standing with the hands up", 5, 830, biped_task(hands_up)),
        Task("flipping", "doing flips", 45, 790, biped_task(flipping)),
    ),
    features=stickman_features,
    behaviours=stickman_behaviours,
    nouns=("stickman", "robot", "humanoid", "man", "person", "figure"),
    phrases=BIPED_PHRASES | ARM_PHRASES,
)
