"""Quadruped: the suite's four-legged body on flat ground, its walk and run, and GenRL's further tasks."""

from __future__ import annotations

from functools import partial

import numpy as np

from stages.worlds.body import (
    INF,
    Array,
    Body,
    Features,
    Memberships,
    Phrases,
    Task,
    below,
    heights,
    over,
    under,
    with_reward,
)
from stages.worlds.suite import mujoco, quadruped, tolerance

FLOOR_SIZE = 100  # m, the suite's for run: walk's smaller floor differs to the eye alone
START = partial(quadruped.Move, 0)
TOES = ("toe_front_left", "toe_back_left", "toe_back_right", "toe_front_right")


def back_up(physics: quadruped.Physics) -> float:
    """1 with the back up, falling linearly to 0 upside down; the first factor of the suite's walk."""
    return float(tolerance(float(physics.torso_upright()), (1, INF), 2, "linear", 0))


def jump_up(physics: quadruped.Physics) -> float:
    """back_up * height of the centre of mass: linear from .5 on the floor to 1 at 1 m."""
    height = float(physics.named.data.sensordata["center_of_mass"][2])
    return back_up(physics) * float(tolerance(height, (1, INF), 1, "linear", 0.5))


def two_legs(physics: quadruped.Physics) -> float:
    """1 while the two highest toes are at .8 m in the mean, else 0, * the two lowest down at .2 m in the mean."""
    toes = np.sort(heights(physics, *TOES))  # (4,)
    return float(toes[2:].mean() >= 0.8) * below(toes[:2].mean(), 0.2)


def lie_down(physics: quadruped.Physics) -> float:
    """The torso down at .2 m, either way up."""
    return below(float(heights(physics, "torso")[0]), 0.2)


# ---------------------------------------------------------------------------- features and behaviours


def quadruped_features(model: mujoco.MjModel, position: Array, rotation: Array, velocity: Array) -> Features:
    """Motion in the torso's own frame, and where the toes are."""
    torso = model.body("torso").id
    linear = np.einsum("nji,nj->ni", rotation[:, torso], velocity[:, :3])  # in the torso's own frame
    toes = np.stack(
        [position[:, model.body(f"toe_{end}_{side}").id, 2] for end in ("front", "back") for side in ("left", "right")],
        1,
    )
    return {
        "speed": linear[:, 0],
        "side_speed": np.abs(linear[:, 1]),
        "turn": np.abs(velocity[:, 5]),
        "spin": np.abs(velocity[:, 3:5]).max(1),
        "climb": velocity[:, 2],
        "effort": np.abs(velocity[:, 6:]).mean(1),
        "toe_low": toes.min(1),
        "toe_high": toes.max(1),
    }


def quadruped_behaviours(f: Features) -> Memberships:
    """The ten classes, then attributes."""
    speed = f["speed"]
    up = over(f["upright"], 0.7, 0.2)
    off_floor = over(f["height"], 0.36, 0.06)
    on_feet = up * off_floor
    pace = np.hypot(speed, f["side_speed"])
    straight = under(f["side_speed"] - np.abs(speed), 0.1, 0.15)
    return {
        "stand": on_feet * under(pace, 0.25, 0.12) * under(f["turn"], 0.6, 0.3),
        "walk": on_feet * straight * over(speed, 0.25, 0.12) * under(speed, 1.6, 0.5),
        "run": up * straight * over(speed, 1.6, 0.5),
        "backward": on_feet * straight * over(-speed, 0.25, 0.12),
        "sideways": on_feet * (1 - straight) * over(f["side_speed"], 0.3, 0.12),
        "turn": on_feet * over(f["turn"], 0.8, 0.3) * under(pace, 0.6, 0.25),
        "belly": up * under(f["height"], 0.32, 0.06) * under(pace, 0.4, 0.2),
        "upside_down": under(f["upright"], -0.4, 0.25),
        "on_side": under(np.abs(f["upright"]), 0.4, 0.2) * under(np.abs(f["facing"]), 0.5, 0.2),
        "two_legs": over(f["facing"], 0.55, 0.2),
        # attributes
        "on_feet": on_feet,
        "jump": over(f["toe_low"], 0.2, 0.08) * over(f["upright"], 0.3, 0.3),
        "still": under(pace, 0.15, 0.1) * under(f["effort"], 1.0, 0.5),
        "forward": over(speed, 0.25, 0.12),
        "fast": over(pace, 1.6, 0.5),
        "tumble": over(f["spin"], 3.0, 1.0),
    }


# ---------------------------------------------------------------------------- words

QUADRUPED_PHRASES: Phrases = {
    "stand": (
        ("standing still", "standing on four legs", "standing upright", "staying in place on its feet",
         "standing at rest", "standing without moving", "remaining in place", "stopping and standing",
         "=a resting stance", "=a still stance"),
        ("stand motionless on all fours", "keep in one spot on its feet", "quietly standing"),
    ),
    "walk": (
        ("walking", "walking forward", "walking slowly", "walking fast", "walking quickly", "taking steps forward",
         "ambling forward", "walking on four legs", "walking at a steady pace", "crawling forward", "=a walk",
         "=a walking gait"),
        ("walk ahead briskly", "strolling along", "a four-legged walk"),
    ),
    "run": (
        ("running", "running forward", "running fast", "galloping", "running on four legs", "racing ahead",
         "running quickly", "dashing forward", "sprinting", "running as fast as possible", "=a run", "=a gallop"),
        ("run ahead at full speed", "sprinting forward", "a fast four-legged run"),
    ),
    "backward": (
        ("walking backward", "moving backward", "backing up", "stepping back", "reversing", "going back", "retreating",
         "=backward motion"),
        ("move in reverse", "backing away", "walking backwards"),
    ),
    "sideways": (
        ("walking sideways", "moving sideways", "stepping to the side", "walking like a crab", "moving to the side",
         "=a sideways walk"),
        ("crab walking", "sidestepping", "shift sideways"),
    ),
    "turn": (
        ("turning around", "turning in place", "rotating in place", "spinning on the spot",
         "turning around its own axis", "=a turn in place"),
        ("rotate on the spot", "spinning around in place", "a turn about itself"),
    ),
    "belly": (
        ("lying down", "lying on its belly", "lying on the floor", "resting on the belly", "crouching on the ground",
         "sitting on the floor", "=belly on the floor", "=flat on the belly"),
        ("lie flat on the ground", "stretched out on the floor", "resting low on the floor"),
    ),
    "upside_down": (
        ("lying on its back", "being upside down", "lying with the legs in the air", "turning upside down",
         "resting on the back", "=legs up, back down", "=belly up"),
        ("lie on your back", "rolled onto its back", "inverted with the feet in the air"),
    ),
    "on_side": (
        ("lying on its side", "tipping over sideways", "resting on one side", "leaning on its side", "=on its side"),
        ("lie on one flank", "tipped over to the side", "a body lying sideways"),
    ),
    "two_legs": (
        ("standing on two legs", "standing on its hind legs", "rearing up", "raising the front legs",
         "standing like a human", "=front legs up", "=on two legs"),
        ("stand on the back feet", "upright on the hind legs", "a reared-up stance"),
    ),
    "on_feet": (("being on its feet", "staying on all four feet", "=on its feet"), ("up on its legs",)),
    "jump": (("jumping", "leaping", "jumping into the air", "hopping", "=a jump"), ("a leap into the air",)),
    "still": (("being still", "staying motionless", "=not moving at all", "=no motion"), ("holding perfectly still",)),
    "forward": (("moving forward", "going forward", "=forward motion"), ("travelling forward",)),
    "fast": (("moving fast", "moving at high speed", "=high speed"), ("rapid motion",)),
    "tumble": (("tumbling", "rolling over", "flipping over", "falling over", "=a tumble"), ("going head over heels",)),
}  # fmt: skip


# ---------------------------------------------------------------------------- the record


BODY = Body(
    name="quadruped",
    model_xml=quadruped.make_model(floor_size=FLOOR_SIZE),
    physics=quadruped.Physics,
    control_timestep=0.02,
    camera=2,
    tasks=(
        Task("stand", "spider standing", 15, 990, with_reward(START, back_up), training=True),
        Task("walk", "spider walking fast", 10, 960, partial(quadruped.Move, 0.5), training=True),
        Task("run", "spider running fast", 10, 930, partial(quadruped.Move, 5), training=True),
        Task("jump", "spider jumping", 15, 875, with_reward(START, jump_up)),
        Task("two_legs", "on two legs", 14, 875, with_reward(START, two_legs)),
        Task("lie_down", "lying down", 750, 965, with_reward(START, lie_down)),
    ),
    features=quadruped_features,
    behaviours=quadruped_behaviours,
    nouns=("spider", "robot", "four-legged robot", "quadruped", "creature", "animal"),
    phrases=QUADRUPED_PHRASES,
)
