"""What the walker and the stickman share: poses and their rewards, features, behaviours and words.

Rewards are those of GenRL's tasks (Mazzaglia et al. 2024, its code), functions of the state after a control step.
A body's height is that of its frame: hip (thigh), middle of the shin (leg), centre of the foot.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from stages.worlds.body import (
    Array,
    Features,
    Memberships,
    Phrases,
    Reward,
    TaskMaker,
    above,
    below,
    heights,
    over,
    planar_features,
    ramp,
    under,
    with_reward,
)
from stages.worlds.suite import mujoco, walker

# m/s at which legs of 1.2 m change from walking to running: a Froude number v² / (g L) of about 0.5
RUNNING = 2.5
SPIN = 16  # of flips: whole-body angular momentum, kg m²/s


def biped_task(reward: Reward) -> TaskMaker:
    """A task that starts as the walker's and observes the same."""
    return with_reward(partial(walker.PlanarWalker, 0), reward)


def pair(physics: walker.Physics, part: str) -> Array:
    """Heights of the left and the right body of a part (2,), m."""
    return heights(physics, f"left_{part}", f"right_{part}")


def flat(physics: walker.Physics, body: str = "torso") -> float:
    """1 when the body's long axis lies level, 0 when it is vertical."""
    return 1 - abs(float(physics.named.data.xmat[body, "zz"]))


def stand_at(physics: walker.Physics, height: float) -> float:
    """(3 high + upright) / 4: the torso at `height`, and 1 upright, .5 level, 0 upside down."""
    return (3 * above(physics.torso_height(), height) + (1 + float(physics.torso_upright())) / 2) / 4


def one_foot(physics: walker.Physics) -> float:
    """Torso at 1 m * higher foot at .5 m * lower foot down at .1 m."""
    low, high = sorted(pair(physics, "foot"))
    return above(physics.torso_height(), 1.0) * above(high, 0.5) * below(low, 0.1)


def high_kick(physics: walker.Physics, height: float) -> float:
    """Torso at 1 m * (3 kick + lower foot down at .1 m) / 4; kick: the higher foot at the standing torso's `height`."""
    low, high = sorted(pair(physics, "foot"))
    return above(physics.torso_height(), 1.0) * (3 * above(high, height) + below(low, 0.1)) / 4


def lying_down(physics: walker.Physics) -> float:
    """(3 low + flat + thighs + legs + feet) / 7: torso, thighs, legs and feet down at .1 m, the torso level."""
    limbs = sum(below(pair(physics, part).mean(), 0.1) for part in ("thigh", "leg", "foot"))
    return (3 * below(physics.torso_height(), 0.1) + flat(physics) + limbs) / 7


def sit_knees(physics: walker.Physics) -> float:
    """stand_at .55 m * (3 legs down at .15 m + feet down at .1 m) / 4 * close; close falls with the horizontal
    distances of each foot from its hip beyond .1 m."""
    kneel = (3 * below(pair(physics, "leg").mean(), 0.15) + below(pair(physics, "foot").mean(), 0.1)) / 4
    x = physics.named.data.xpos[["left_foot", "right_foot", "left_thigh", "right_thigh"], "x"]  # (4,)
    away = np.maximum(np.abs(x[:2] - x[2:]), 0.1) - 0.1  # (2,)
    return stand_at(physics, 0.55) * kneel * float(np.exp(-away.mean()))


def lunge_pose(physics: walker.Physics) -> float:
    """stand_at .75 m * (lower leg down at .1 m + higher leg at .25 m + thigh of the higher leg level + lower leg
    level) / 4."""
    left, right = pair(physics, "leg")
    front, rear = ("left" if left >= right else "right"), ("left" if left <= right else "right")
    legs = below(min(left, right), 0.1) + above(max(left, right), 0.25)
    return stand_at(physics, 0.75) * (legs + flat(physics, f"{front}_thigh") + flat(physics, f"{rear}_leg")) / 4


def headstand(physics: walker.Physics) -> float:
    """(3 feet + 2 thighs) / 5: the feet up at 1.1 m, the thighs at 1 m."""
    return (3 * above(pair(physics, "foot").mean(), 1.1) + 2 * above(pair(physics, "thigh").mean(), 1.0)) / 5


def flipping(physics: walker.Physics) -> float:
    """headstand * (5 spin + 1) / 6: whole-body angular momentum of 16 kg m²/s about y, either way."""
    momentum = float(physics.named.data.subtree_angmom["torso", 1])
    return headstand(physics) * (5 * ramp(abs(momentum), SPIN) + 1) / 6


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
