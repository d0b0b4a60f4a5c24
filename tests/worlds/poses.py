"""Joint angles and velocities of what the tasks ask for, as a person would set them by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

Pose = dict[str, Any]  # joint name → position in degrees or metres; "velocity": joint name → rad/s

KNEEL = {"right_hip": 60, "right_knee": -150, "left_hip": 60, "left_knee": -150, "rootz": -0.715}
LUNGE = {"right_hip": 90, "right_knee": -90, "left_hip": -20, "left_knee": -70, "rootz": -0.45}
GUARD = {"right_shoulder": 60, "right_elbow": 100, "left_shoulder": 60, "left_elbow": 100}
UP = {"right_shoulder": 100, "right_elbow": 80, "left_shoulder": 100, "left_elbow": 80}
BIPED: dict[str, Pose] = {
    "stand": {},
    "walk": {"velocity": {"rootx": 1}},
    "run": {"velocity": {"rootx": 8}},
    "one_foot": {"left_hip": 100, "left_knee": -100},
    "high_kick": {"left_hip": 100},
    "sit_knees": KNEEL,
    "lunge_pose": LUNGE,
    "flipping": {"rooty": 180, "rootz": -0.5, "velocity": {"rooty": 3}},
}
POSES: dict[str, dict[str, Pose]] = {
    "walker": {**BIPED, "lying_down": {"rooty": 90, "rootz": -1.2}},
    "stickman": {
        **BIPED,
        "lying_down": {"rooty": 90, "rootz": -1.15},
        "legs_up": {"rooty": -90, "rootz": -1.15, "right_hip": 90, "left_hip": 90},
        "headstand": {"rooty": 180, "rootz": -0.5},
        "boxing": {**GUARD, "velocity": {"right_elbow": -20}},
        "hands_up": UP,
    },
    "cheetah": {
        "run": {"velocity": {"rootx": 10}},
        "standing": {"rooty": -60, "rootz": 0.15},
        "lying_down": {"rooty": 180, "rootz": -0.58},
    },
    "quadruped": {
        "stand": {"root": (0, 0, 0.57, 0)},
        "jump": {"root": (0, 0, 1.1, 0)},
        "two_legs": {"root": (0, 0, 0.8, -70)},
        "lie_down": {"root": (0, 0, 0.2, 0)},
    },
}


def set_pose(physics: Any, pose: Pose) -> None:
    """Put a dm_control physics into a pose; a free root is given as x, y, z and pitch."""
    with physics.reset_context():
        for joint, value in pose.items():
            if joint == "velocity":
                for name, speed in value.items():
                    physics.named.data.qvel[name] = speed
            elif joint == "root":
                half = np.deg2rad(value[3]) / 2
                physics.named.data.qpos[joint] = (*value[:3], np.cos(half), 0, np.sin(half), 0)
            else:
                physics.named.data.qpos[joint] = value if joint == "rootz" else np.deg2rad(value)
