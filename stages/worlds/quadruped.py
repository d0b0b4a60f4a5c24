"""Quadruped: the suite's four-legged body on flat ground, its walk and run, our stand, and further poses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from stages.worlds.biped import ramp
from stages.worlds.body import Array, Body, Features, Memberships, Phrases, Task, TaskMaker, over, under, with_reward
from stages.worlds.suite import mujoco, quadruped, tolerance

FLOOR_SIZE = 100  # m, the suite's for run: walk's smaller floor differs to the eye alone
TOES = ["toe_front_left", "toe_back_left", "toe_back_right", "toe_front_right"]


class QuadrupedPhysics(quadruped.Physics):
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


def keep_upright(physics: QuadrupedPhysics) -> float:
    """Keep the back up: 1 upright, falling linearly to 0 upside down; the first factor of the suite's walk."""
    return float(tolerance(float(physics.torso_upright()), (1, float("inf")), 2, "linear", 0))


def jump_up(physics: QuadrupedPhysics) -> float:
    """Leave the ground, back up: keep_upright * ramp of the torso's height from 0 at .6 m to 1 at 1 m."""
    return keep_upright(physics) * ramp(physics.torso_height(), 0.6, 1.0)


def two_legs(physics: QuadrupedPhysics) -> float:
    """Rear up on two legs: ramp of the torso's pitch from 0 at 17 to 1 at 64 degrees, times that of the height of
    the third lowest toe from 0 at .3 m to 1 at .8 m."""
    return ramp(physics.rearing(), 0.3, 0.9) * ramp(physics.toe_heights()[2], 0.3, 0.8)


def lie_down(physics: QuadrupedPhysics) -> float:
    """Lie on the floor, either way up: ramp of the torso's height from 0 at .7 m to 1 at .25 m."""
    return ramp(physics.torso_height(), 0.7, 0.25)


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


def quadruped_task(reward: Callable[[QuadrupedPhysics], float]) -> TaskMaker:
    """A task that starts as the suite's walk and observes the same."""
    return with_reward(partial(quadruped.Move, 0), reward)


BODY = Body(
    name="quadruped",
    model_xml=quadruped.make_model(floor_size=FLOOR_SIZE),
    physics=QuadrupedPhysics,
    control_timestep=0.02,
    camera=2,
    tasks=(
        Task("stand", "spider standing", 15, 990, quadruped_task(keep_upright), training=True),
        Task("walk", "spider walking fast", 10, 960, partial(quadruped.Move, 0.5), training=True),
        Task("run", "spider running fast", 10, 930, partial(quadruped.Move, 5), training=True),
        Task("jump", "spider jumping high", 15, 875, quadruped_task(jump_up)),
        Task("two_legs", "spider rearing up on two legs", 14, 875, quadruped_task(two_legs)),
        Task("lie_down", "spider lying down on the floor", 750, 965, quadruped_task(lie_down)),
    ),
    features=quadruped_features,
    behaviours=quadruped_behaviours,
    nouns=("spider", "robot", "four-legged robot", "quadruped", "creature", "animal"),
    phrases=QUADRUPED_PHRASES,
)
