"""Graded behaviours: how much each window of motion is a "walk", a "headstand", ... for every domain.

Each function turns window features (stages.worlds.motion) into {concept: membership (N,)},
every membership in [0, 1]. Concepts are predicates and may overlap (running is also moving fast).
Thresholds are metres, metres a second and radians a second, read off the bodies' own sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stages.worlds.motion import Array, Features

Memberships = dict[str, Array]

# m/s at which legs of 1.2 m change from walking to running: a Froude number v² / (g L) of about 0.5
RUNNING = 2.5


def over(value: Array, threshold: float, width: float) -> Array:
    """Soft `value > threshold`: 0.5 at the threshold, 0.95 at one `width` above it."""
    return 1.0 / (1.0 + np.exp(-3.0 * (value - threshold) / width))


def under(value: Array, threshold: float, width: float) -> Array:
    """Soft `value < threshold`."""
    return over(-value, -threshold, width)


def memberships(domain: str, features: Features) -> Memberships:
    """All concepts of a domain over its windows: name → (N,) in [0, 1]."""
    return _DOMAINS[domain](features)


def _walker(f: Features) -> Memberships:
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


def _stickman(f: Features) -> Memberships:
    found = _walker(f)  # the same legs; the torso's origin stands as high
    arms_up = over(f["hands_over_head"], 0.05, 0.12)
    found["upside_down"] = found["upside_down"] * under(f["head"], 0.5, 0.15)
    return found | {
        "hands_up": found["on_feet"] * arms_up,
        "punch": found["on_feet"] * over(f["arm_speed"], 5.0, 1.5) * under(np.abs(f["speed"]), 1.0, 0.4),
        "legs_up": under(f["height"], 0.5, 0.12) * over(f["foot_low"], 0.5, 0.12),
    }


def _cheetah(f: Features) -> Memberships:
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


def _quadruped(f: Features) -> Memberships:
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


_DOMAINS: dict[str, Callable[[Features], Memberships]] = {
    "walker": _walker,
    "stickman": _stickman,
    "cheetah": _cheetah,
    "quadruped": _quadruped,
}
