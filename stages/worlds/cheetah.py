"""Cheetah: the suite's planar runner, its run, and GenRL's two poses."""

from __future__ import annotations

import numpy as np

from stages.worlds.body import (
    Array,
    Body,
    Features,
    Memberships,
    Phrases,
    Task,
    above,
    below,
    heights,
    over,
    planar_features,
    under,
    with_reward,
)
from stages.worlds.suite import cheetah, mujoco


def cheetah_standing(physics: cheetah.Physics) -> float:
    """Higher foot at 1 m * lower foot down at .15 m."""
    low, high = sorted(heights(physics, "bfoot", "ffoot"))
    return above(high, 1.0) * below(low, 0.15)


def cheetah_lying(physics: cheetah.Physics) -> float:
    """(low + legs up) / 2: torso down at .15 m, the sum of the feet's heights at .45 m. On its back, that is."""
    (torso,), feet = heights(physics, "torso"), heights(physics, "bfoot", "ffoot")
    return (below(torso, 0.15) + above(feet.sum(), 0.45)) / 2


# ---------------------------------------------------------------------------- features and behaviours


def cheetah_features(model: mujoco.MjModel, position: Array, rotation: Array, velocity: Array) -> Features:
    """Motion, and where the feet are."""
    feet = [position[:, model.body(name).id, 2] for name in ("bfoot", "ffoot")]
    return planar_features(model, velocity) | {"foot_low": np.minimum(*feet), "foot_high": np.maximum(*feet)}


def cheetah_behaviours(f: Features) -> Memberships:
    """The ten classes, then attributes."""
    speed = f["speed"]
    level = over(f["upright"], 0.7, 0.2)
    on_feet = level * over(f["height"], 0.42, 0.08)
    calm_spin = under(np.abs(f["spin"]), 4.0, 1.0)
    return {
        "stand": on_feet * under(np.abs(speed), 0.5, 0.3),
        "walk": on_feet * over(speed, 0.5, 0.3) * under(speed, 3.0, 0.7),
        "run": over(f["upright"], 0.5, 0.3) * over(speed, 3.0, 0.7) * calm_spin,
        "backward": over(f["upright"], 0.5, 0.3) * over(-speed, 0.5, 0.3),
        "belly": level * under(f["height"], 0.35, 0.06) * under(np.abs(speed), 0.8, 0.4),
        "upside_down": under(f["upright"], -0.5, 0.25) * calm_spin,
        "hind_legs": over(f["facing"], 0.6, 0.2) * calm_spin,
        "nose": under(f["facing"], -0.6, 0.2) * calm_spin,
        "flip": over(np.abs(f["spin"]), 4.0, 1.0),
        "jump": over(f["foot_low"], 0.35, 0.1) * level,
        # attributes
        "sprint": over(f["upright"], 0.5, 0.3) * over(speed, 7.0, 0.8) * calm_spin,
        "on_feet": on_feet,
        "still": under(np.abs(speed), 0.3, 0.2) * under(f["effort"], 2.0, 1.0),
        "forward": over(speed, 0.5, 0.3),
        "fast": over(np.abs(speed), 3.0, 0.7),
    }


# ---------------------------------------------------------------------------- words

CHEETAH_PHRASES: Phrases = {
    "stand": (
        ("standing still", "standing on four legs", "staying in place on its feet", "standing at rest",
         "waiting on all fours", "standing without moving", "remaining in place", "stopping and standing",
         "=a resting stance", "=a still stance"),
        ("stand motionless on all fours", "keep in one spot on its feet", "quietly standing"),
    ),
    "walk": (
        ("walking", "walking forward", "walking slowly", "trotting forward", "jogging", "moving forward at a slow pace",
         "taking steps forward", "ambling forward", "walking on four legs", "=a walk", "=a slow trot"),
        ("trot ahead slowly", "strolling along", "a gentle walking gait"),
    ),
    "run": (
        ("running", "running forward", "running fast", "galloping", "running on four legs", "running like an animal",
         "racing ahead", "running quickly", "running like a dog", "dashing forward", "running like a cheetah", "=a run",
         "=a gallop", "=a running gait"),
        ("gallop ahead", "run onward", "a fast four-legged run", "bounding forward quickly"),
    ),
    "backward": (
        ("walking backward", "moving backward", "running backwards", "backing up", "stepping back", "reversing",
         "going back", "retreating", "=backward motion"),
        ("move in reverse", "backing away", "going backwards"),
    ),
    "belly": (
        ("lying down", "lying on its belly", "lying on the floor", "resting on the belly", "crouching on the ground",
         "sleeping on the floor", "=belly on the floor", "=flat on the belly"),
        ("lie flat on the ground", "lying prone", "stretched out on the floor"),
    ),
    "upside_down": (
        ("lying on its back", "being upside down", "lying with the legs in the air", "turning upside down",
         "resting on the back", "=legs up, back down", "=belly up"),
        ("lie on your back", "rolled onto its back", "inverted with the feet in the air"),
    ),
    "hind_legs": (
        ("standing on its hind legs", "standing like a human", "rearing up", "standing upright on the back legs",
         "raising the front legs", "standing on two legs", "=front legs up", "=a rearing pose"),
        ("stand on the back feet like a person", "upright on the hind legs", "a reared-up stance"),
    ),
    "nose": (
        ("standing on its head", "standing on the front legs", "standing on its nose", "raising the back legs",
         "being head down", "diving onto the nose", "=back legs up", "=a headstand"),
        ("balance on the front feet", "head down with the rear in the air", "a nose stand"),
    ),
    "flip": (
        ("doing a flip", "flipping over", "tumbling", "somersaulting", "doing backflips", "rolling over",
         "spinning through the air", "=a flip", "=a somersault"),
        ("do a front flip", "tumbling head over heels", "a fast roll"),
    ),
    "jump": (
        ("jumping", "leaping", "jumping into the air", "leaping high off the ground", "springing up",
         "jumping with all feet off the ground", "hopping up", "=a jump", "=a big leap"),
        ("a leap into the air", "jump up high", "bouncing off the ground"),
    ),
    "sprint": (
        ("sprinting", "running at top speed", "running as fast as possible", "sprinting forward",
         "galloping at full speed", "hurtling forward", "=a sprint", "=top speed"),
        ("sprint ahead", "racing at maximum speed", "a full-speed gallop"),
    ),
    "on_feet": (("being on its feet", "staying on all four feet", "=on its feet"), ("up on its legs",)),
    "still": (("being still", "staying motionless", "=not moving at all", "=no motion"), ("holding perfectly still",)),
    "forward": (("moving forward", "going forward", "=forward motion"), ("travelling forward",)),
    "fast": (("moving fast", "moving at high speed", "=high speed"), ("rapid motion",)),
}  # fmt: skip


# ---------------------------------------------------------------------------- the record

BODY = Body(
    name="cheetah",
    model_xml=cheetah.get_model_and_assets()[0],
    physics=cheetah.Physics,
    control_timestep=0.01,
    camera=0,
    tasks=(
        Task("run", "running like a quadruped", 9, 890, cheetah.Cheetah, training=True),
        Task("standing", "standing like a human", 5, 930, with_reward(cheetah.Cheetah, cheetah_standing)),
        Task("lying_down", "lying down", 430, 920, with_reward(cheetah.Cheetah, cheetah_lying)),
    ),
    features=cheetah_features,
    behaviours=cheetah_behaviours,
    nouns=("cheetah", "robot", "animal", "four-legged robot", "creature", "quadruped"),
    phrases=CHEETAH_PHRASES,
)
