"""What the walker and the stickman share: poses and their rewards, features, behaviours and words.

Every reward lies in [0, 1] per control step and is written in the suite's terms: `tolerance` is 1 inside
bounds and falls to a given value at a margin outside them. Heights are in metres; on both bodies the
hip is 0.95 m above the sole of a straight leg.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from stages.worlds.body import (
    Array,
    Features,
    Memberships,
    Phrases,
    TaskMaker,
    over,
    planar_features,
    under,
    with_reward,
)
from stages.worlds.suite import mujoco, tolerance, walker

INF = float("inf")
# m/s at which legs of 1.2 m change from walking to running: a Froude number v² / (g L) of about 0.5
RUNNING = 2.5


class BipedPhysics(walker.Physics):
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


def ramp(value: float, zero: float, one: float) -> float:
    """Linear from 0 at `zero` to 1 at `one`, flat beyond both; falling when `one` < `zero`."""
    return min(max(float(value - zero) / (one - zero), 0.0), 1.0)


def tall(physics: BipedPhysics) -> float:
    """tolerance(torso height, [stand height, inf), margin half of it)."""
    return float(tolerance(physics.torso_height(), (physics.stand_height, INF), physics.stand_height / 2))


def stand_up(physics: BipedPhysics) -> float:
    """(3 tall + upright) / 4, the suite's reward for walker stand."""
    return (3 * tall(physics) + physics.upright()) / 4


def one_foot(physics: BipedPhysics) -> float:
    """Stand with one foot in the air: stand * lift, lift rising from 0 at a difference of .2 m between the feet's
    heights to 1 at .5 m."""
    low, high = sorted(physics.foot_heights())
    return stand_up(physics) * ramp(high - low, 0.2, 0.5)


def high_kick(physics: BipedPhysics) -> float:
    """Stand with one foot as high as the hip: stand * kick, kick rising to 1 with a foot at 1.1 m."""
    return stand_up(physics) * ramp(max(physics.foot_heights()), 0.05, 1.1)


def low(physics: BipedPhysics) -> float:
    """1 with the torso on the floor (.15 m), falling linearly to 0 at .6 m."""
    return ramp(physics.torso_height(), 0.6, 0.15)


def lying_down(physics: BipedPhysics) -> float:
    """Lie stretched out: low * flat^2, flat = 1 - mean steepness of torso, thighs and legs."""
    return low(physics) * (1 - float(physics.steepness().mean())) ** 2


def sit_knees(physics: BipedPhysics) -> float:
    """Kneel, sitting on the heels: (3 kneel + 1) / 4 * upright^2; kneel = torso height within the seat's range
    (margin .3) * both knees on the floor (below .12 m, margin .3)."""
    seat = tolerance(physics.torso_height(), (physics.stand_height - 0.75, physics.stand_height - 0.45), 0.3)
    knees = np.prod([tolerance(float(height), (-INF, 0.12), 0.3) for height in physics.knee_heights()])
    return (3 * float(seat * knees) + 1) / 4 * physics.upright() ** 2


def lunge_pose(physics: BipedPhysics) -> float:
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


def flipping(physics: BipedPhysics) -> float:
    """Somersaults, either way: spin * off; spin rises from 0 at 1 rad/s of the torso's rotation to 1 at 8 rad/s, off
    from 0 with the torso at .2 m to 1 at .7 m, so that rolling about on the floor earns little."""
    return ramp(physics.spin(), 1, 8) * ramp(physics.torso_height(), 0.2, 0.7)


def biped_task(reward: Callable[[BipedPhysics], float]) -> TaskMaker:
    """A task that starts as the walker's and observes the same."""
    return with_reward(partial(walker.PlanarWalker, 0), reward)


# ---------------------------------------------------------------------------- features and behaviours


def biped_features(model: mujoco.MjModel, position: Array, rotation: Array, velocity: Array) -> Features:
    """Motion, and where feet and knees are."""

    def point(body: str, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Array:
        index = model.body(body).id
        return position[:, index] + rotation[:, index] @ np.array(offset)

    feet = np.stack([point("right_foot"), point("left_foot")], 1)  # (N, 2, 3)
    knees = np.stack([point(f"{side}_leg", (0.0, 0.0, 0.25)) for side in ("right", "left")], 1)
    top = point("torso", (0.0, 0.0, 0.3))
    return planar_features(model, velocity) | {
        "foot_high": feet[:, :, 2].max(1),
        "foot_low": feet[:, :, 2].min(1),
        "knee_low": knees[:, :, 2].min(1),
        "knee_high": knees[:, :, 2].max(1),
        "feet_apart": np.abs(feet[:, 0, 0] - feet[:, 1, 0]),
        "top": top[:, 2],
    }


def biped_behaviours(f: Features) -> Memberships:
    """Behaviours of two legs: the ten classes, then attributes, which may be true beside them."""
    speed = f["speed"]
    up = over(f["upright"], 0.6, 0.3)
    on_feet = up * over(f["height"], 0.92, 0.15) * over(f["knee_low"], 0.28, 0.08)
    slow = under(np.abs(speed), 0.4, 0.25)
    one_up = over(f["foot_high"] - f["foot_low"], 0.2, 0.08)
    # a gait may be a hop or a deep stride: the body need only stay up and off the floor
    moving = over(f["upright"], 0.5, 0.3) * over(f["height"], 0.68, 0.12) * under(np.abs(f["spin"]), 3.0, 0.8)
    low = under(f["height"], 0.45, 0.12)
    flat = under(np.abs(f["upright"]), 0.55, 0.2)
    calm_spin = under(np.abs(f["spin"]), 3.0, 0.8)
    kneel = over(f["upright"], 0.45, 0.3) * under(f["height"], 0.98, 0.12) * over(f["height"], 0.4, 0.1)
    return {
        "stand": on_feet * slow * (1 - one_up),
        "one_leg": on_feet * one_up * under(np.abs(speed), 0.7, 0.3),
        "walk": moving * over(speed, 0.4, 0.25) * under(speed, RUNNING, 0.6),
        "run": moving * over(speed, RUNNING, 0.6),
        "backward": moving * over(f["height"], 0.85, 0.12) * over(-speed, 0.5, 0.2),
        "kneel": kneel * under(f["knee_low"], 0.22, 0.08) * under(np.abs(speed), 0.6, 0.3),
        "on_back": low * flat * over(f["facing"], 0.6, 0.25) * calm_spin,
        "on_front": low * flat * under(f["facing"], -0.6, 0.25) * calm_spin,
        "upside_down": under(f["upright"], -0.5, 0.2),
        "flip": over(np.abs(f["spin"]), 3.5, 0.8),
        # attributes: true beside the ten classes above
        "lying": low * flat * calm_spin,
        "on_feet": on_feet,
        "crouch": up * under(f["height"], 1.05, 0.1) * over(f["height"], 0.5, 0.1) * over(f["knee_low"], 0.2, 0.08),
        "falling": over(-f["climb"], 1.0, 0.4),
        "lean_forward": over(f["upright"], 0.3, 0.2) * under(f["facing"], -0.35, 0.15),
        "lean_back": over(f["upright"], 0.3, 0.2) * over(f["facing"], 0.35, 0.15),
        "jump": over(f["foot_low"], 0.3, 0.1) * over(f["upright"], 0.5, 0.3) * over(f["height"], 1.1, 0.15),
        "high_kick": on_feet * over(f["foot_high"], 0.75, 0.12),
        "lunge": up * over(f["feet_apart"], 0.75, 0.12) * under(np.abs(speed), 1.0, 0.4) * over(f["height"], 0.6, 0.12),
        "still": under(np.abs(speed), 0.3, 0.2) * under(f["effort"], 1.5, 0.8),
        "struggle": low * over(f["effort"], 3.0, 1.0),
        "forward": over(speed, 0.4, 0.25),
        "fast": over(np.abs(speed), RUNNING, 0.6),
    }


# ---------------------------------------------------------------------------- words

BIPED_PHRASES: Phrases = {
    "stand": (
        ("standing without walking", "keeping upright", "staying straight on both legs", "holding still while standing",
         "being motionless on its legs", "standing still", "standing upright", "standing on both legs", "standing tall",
         "staying upright without moving", "keeping still on two feet", "holding an upright posture",
         "remaining upright in place", "standing at rest", "standing straight", "standing still with a straight back",
         "keeping balance on both feet", "stopping and standing upright", "waiting on both feet",
         "staying on both legs", "standing up tall", "being upright and still", "=an upright posture",
         "=a straight upright stance", "=straight and upright"),
        ("standing motionless on two legs", "keep upright in one spot", "standing firmly on both feet",
         "stay up straight", "a motionless upright stance", "stand still on both legs without walking",
         "remaining straight up without any steps", "a still standing position"),
    ),
    "one_leg": (
        ("lifting a foot up", "posing on a single leg", "keeping one foot off the floor", "standing with one foot up",
         "=a single-leg pose", "=balance on one foot", "standing on one leg", "standing on one foot",
         "balancing on a single leg", "balancing on one foot", "lifting one leg while standing",
         "holding one foot in the air", "raising a foot off the ground", "keeping one leg raised",
         "standing with a knee lifted", "balancing like a flamingo", "raising one knee and staying in place",
         "=a one-legged stance", "=one foot up"),
        ("balancing on one leg", "poised on a single foot", "stand with one leg lifted", "a pose on just one leg",
         "hold yourself up on one foot", "one leg off the floor, the other straight"),
    ),
    "walk": (
        ("stepping along", "going for a walk", "going forward on foot", "taking a walk", "pacing ahead",
         "=a brisk walk", "=a stroll", "walking", "walking forward", "walking fast", "walking quickly",
         "walking at a steady pace", "walking slowly", "strolling forward", "taking steps forward", "stepping forward",
         "marching forward", "walking ahead", "moving forward step by step", "striding forward",
         "walking with a clean gait", "walking briskly", "ambling forward", "walking upright", "=a walk",
         "=a walking gait", "=a fast walk"),
        ("walking onward at a good pace", "take a brisk walk", "strolling along", "a clean walking motion",
         "pacing forward step after step", "walk ahead at an easy pace", "moving along on foot"),
    ),
    "run": (
        ("moving very fast on foot", "speeding forward", "racing", "bolting forward", "running at full tilt", "=a race",
         "=a dash", "running", "running forward", "running fast", "running quickly", "sprinting", "racing ahead",
         "dashing forward", "running at high speed", "rushing forward on foot", "sprinting forward",
         "running as fast as possible", "running with a clean gait", "running with long strides", "hurtling forward",
         "=a run", "=a running gait", "=a sprint", "=a fast run"),
        ("sprinting ahead", "run at full speed", "dashing ahead very quickly", "a clean fast running motion",
         "racing onward", "run onward as quickly as you can", "a very quick run to the front"),
    ),
    "backward": (
        ("moving to the rear", "walking away backwards", "stepping to the rear", "going in the backward direction",
         "pulling back", "travelling backwards", "=a retreat", "=backward steps", "walking backward",
         "walking backwards", "stepping backward", "moving backward", "going back", "backing up", "retreating",
         "reversing on foot", "taking steps back", "walking back", "moving in reverse", "=a backward walk",
         "=steps to the rear"),
        ("walking in reverse", "step backwards", "backing away", "a walk in the backward direction", "walk rearwards",
         "move back step by step"),
    ),
    "kneel": (
        ("putting both knees on the ground", "dropping to the knees", "being down on the knees",
         "squatting on the knees", "=a pose on the knees", "=a prayer on the knees", "kneeling",
         "kneeling on the floor", "sitting on its knees", "resting on the knees", "kneeling down", "being on its knees",
         "sitting back on the heels", "staying on both knees", "praying on the knees", "going down on the knees",
         "=a kneeling pose", "=knees on the floor"),
        ("kneel on the ground", "sit on your knees", "down on both knees", "a pose with the knees on the ground",
         "stay on your knees", "lower yourself to a kneel"),
    ),
    "on_back": (
        ("lying with the belly up", "resting with the face to the sky", "facing the sky on the floor",
         "reclining on the back", "lying backwards on the floor", "=a face-up rest", "=the back on the floor",
         "lying on its back", "lying face up", "resting on the back", "lying flat on the back",
         "lying with the chest up", "sleeping on the back", "lying on the floor looking at the sky",
         "staying down on its back", "sprawling on the back", "=flat on the back", "=belly up"),
        ("lying supine", "lie on your back", "stretched out on its back", "a body resting face up",
         "rest on the floor with the face toward the sky", "lying flat, belly upward"),
    ),
    "on_front": (
        ("lying with the face to the floor", "resting face down", "lying with the belly on the floor",
         "facing the floor while lying", "sleeping face down", "=a face-down rest", "=the chest on the floor",
         "=the stomach on the floor", "lying on its front", "lying face down", "lying on the stomach",
         "resting on its belly", "lying on the chest", "lying flat with the face on the floor",
         "staying down on the belly", "sprawling face down", "sleeping on the stomach", "=flat on the belly",
         "=face down on the floor"),
        ("lying prone", "lie on your stomach", "stretched out face down", "a body resting on its chest",
         "rest on the floor with the face downward", "lying flat on the tummy"),
    ),
    "upside_down": (
        ("hanging head down", "holding the feet in the air with the head down", "standing on the hands",
         "being inverted", "pointing the legs at the sky", "having the feet above the head",
         "=feet up, head on the floor", "=an upside-down body", "=legs over the head", "standing on its head",
         "doing a headstand", "being upside down", "balancing on the head", "turning upside down",
         "holding the legs above the head", "resting on the head with the legs up", "=a headstand",
         "=head down, legs up", "=an inverted pose"),
        ("stand on your head", "inverted with the feet in the air", "a handstand pose", "held upside down",
         "put the head on the floor and the feet up", "turned over with legs above the body"),
    ),
    "flip": (
        ("turning over in the air", "rolling head over heels", "turning a cartwheel", "spinning around", "doing a roll",
         "whirling the body around", "=a quick roll of the whole body", "=a cartwheel", "doing a flip",
         "doing backflips", "tumbling", "somersaulting", "rolling over", "flipping over", "spinning through the air",
         "doing a somersault", "tumbling head over heels", "rotating quickly", "=a flip", "=a backflip",
         "=a somersault"),
        ("do a front flip", "turning a somersault", "whirling around head over heels", "a fast roll",
         "flip the whole body over", "spin the body in a complete turn"),
    ),
    "lying": (
        ("lying down", "lying on the floor", "lying horizontally", "resting flat on the ground", "staying on the floor",
         "=flat on the ground"),
        ("stretched out on the ground",),
    ),
    "on_feet": (
        ("being on its feet", "staying on its feet", "keeping the body up", "=on its feet"),
        ("up on its legs",),
    ),
    "crouch": (
        ("crouching", "squatting", "bending both knees", "crouching low on the feet", "=a squat", "=bent knees"),
        ("squatting down",),
    ),
    "falling": (
        ("falling down", "falling over", "losing balance", "toppling over", "collapsing", "dropping to the floor",
         "=a fall"),
        ("tripping and falling",),
    ),
    "lean_forward": (("leaning forward", "bending forward", "bowing", "=a forward lean"), ("bent over forward",)),
    "lean_back": (
        ("leaning back", "bending backward", "leaning backwards", "=a backward lean"),
        ("bent over backwards",),
    ),
    "jump": (
        ("jumping", "leaping up", "hopping", "jumping into the air", "=a jump", "=both feet off the ground"),
        ("a leap into the air",),
    ),
    "high_kick": (
        ("kicking high", "standing and kicking", "raising a leg very high", "=a high kick"),
        ("kick in the air",),
    ),
    "lunge": (
        ("doing the splits", "lunging", "standing with the legs wide apart", "=a lunge", "=a lunge pose"),
        ("a wide lunge stance",),
    ),
    "still": (("being still", "staying motionless", "=not moving at all", "=no motion"), ("holding perfectly still",)),
    "struggle": (
        ("struggling on the floor", "kicking on the ground", "wriggling on the floor",
         "flailing the legs on the ground"),
        ("thrashing on the floor",),
    ),
    "forward": (("moving forward", "going forward", "=forward motion"), ("travelling forward",)),
    "fast": (("moving fast", "moving at high speed", "=high speed"), ("rapid motion",)),
}  # fmt: skip
