"""What a body does, read from its physics states: features of each frame, graded behaviours of each window.

Nothing here sees a reward or a picture. A window is the 8 frames a backbone looks at; a behaviour's
membership is a number in [0, 1] per window, soft around its thresholds, so that what is learnt from
it changes smoothly with speed and posture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stages.worlds.suite import mujoco

WINDOW = 8
Array = NDArray[np.float64]
Features = dict[str, Array]


def window_rows(episode_start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the window that ends at each row, the first frame repeated at an episode's start: (N, 8).

    Args:
        episode_start: (E + 1,) row offsets of the episodes; the last is the number of rows.
    """
    lengths = np.diff(episode_start)
    first = np.repeat(episode_start[:-1], lengths)  # (N,)
    rows = np.arange(episode_start[-1])[:, None] + np.arange(1 - WINDOW, 1)  # (N, 8)
    return np.maximum(rows, first[:, None])


def window_features(model: mujoco.MjModel, domain: str, states: Array, episode_start: NDArray[np.int64]) -> Features:
    """Features of every window, each the mean over its 8 frames: name → (N,). Units: m, m/s, rad/s.

    Args:
        model: the domain's physics. states: (N, nq + nv), whole episodes one after another.
    """
    rows = window_rows(episode_start)
    return {name: value[rows].mean(1) for name, value in frame_features(model, domain, states).items()}


# ---------------------------------------------------------------------------- frames


def frame_features(model: mujoco.MjModel, domain: str, states: Array) -> Features:
    """Kinematic features of every frame: name → (N,)."""
    position, rotation = _body_frames(model, states[:, : model.nq])
    velocity = states[:, model.nq :]
    torso = model.body("torso").id
    found = {
        "height": position[:, torso, 2],
        "upright": rotation[:, torso, 2, 2],  # z of the body's up axis: 1 upright, -1 upside down
        "facing": rotation[:, torso, 2, 0],  # z of the body's forward axis: 1 looks at the sky
    }
    return found | _PARTS[domain](model, position, rotation, velocity)


def _body_frames(model: mujoco.MjModel, qpos: Array) -> tuple[Array, Array]:
    """World positions (N, bodies, 3) and rotations (N, bodies, 3, 3)."""
    data = mujoco.MjData(model)
    position = np.empty((len(qpos), model.nbody, 3))
    rotation = np.empty((len(qpos), model.nbody, 9))
    for i, q in enumerate(qpos):
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        position[i], rotation[i] = data.xpos, data.xmat
    return position, rotation.reshape(len(qpos), model.nbody, 3, 3)


def _dof(model: mujoco.MjModel, joint: str) -> int:
    return int(model.joint(joint).dofadr[0])


def _planar(model: mujoco.MjModel, velocity: Array) -> Features:
    root = [_dof(model, name) for name in ("rootx", "rootz", "rooty")]
    joints = np.delete(velocity, root, axis=1)
    return {
        "speed": velocity[:, root[0]],
        "climb": velocity[:, root[1]],
        "spin": velocity[:, root[2]],  # positive pitches forward
        "effort": np.abs(joints).mean(1),
    }


def _biped(model: mujoco.MjModel, position: Array, rotation: Array, velocity: Array) -> Features:
    def point(body: str, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Array:
        index = model.body(body).id
        return position[:, index] + rotation[:, index] @ np.array(offset)

    feet = np.stack([point("right_foot"), point("left_foot")], 1)  # (N, 2, 3)
    knees = np.stack([point(f"{side}_leg", (0.0, 0.0, 0.25)) for side in ("right", "left")], 1)
    top = point("torso", (0.0, 0.0, 0.3))
    return _planar(model, velocity) | {
        "foot_high": feet[:, :, 2].max(1),
        "foot_low": feet[:, :, 2].min(1),
        "knee_low": knees[:, :, 2].min(1),
        "knee_high": knees[:, :, 2].max(1),
        "feet_apart": np.abs(feet[:, 0, 0] - feet[:, 1, 0]),
        "top": top[:, 2],
    }


def _stickman(model: mujoco.MjModel, position: Array, rotation: Array, velocity: Array) -> Features:
    hands = [position[:, model.body(f"{side}_hand").id] for side in ("right", "left")]
    head = position[:, model.body("head").id]
    elbows = [_dof(model, f"{side}_{joint}") for side in ("right", "left") for joint in ("shoulder", "elbow")]
    return _biped(model, position, rotation, velocity) | {
        "hands_over_head": np.minimum(hands[0][:, 2], hands[1][:, 2]) - head[:, 2],
        "arm_speed": np.abs(velocity[:, elbows]).mean(1),
        "head": head[:, 2],
    }


def _cheetah(model: mujoco.MjModel, position: Array, rotation: Array, velocity: Array) -> Features:
    feet = [position[:, model.body(name).id, 2] for name in ("bfoot", "ffoot")]
    return _planar(model, velocity) | {"foot_low": np.minimum(*feet), "foot_high": np.maximum(*feet)}


def _quadruped(model: mujoco.MjModel, position: Array, rotation: Array, velocity: Array) -> Features:
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


_PARTS: dict[str, Callable[[mujoco.MjModel, Array, Array, Array], Features]] = {
    "walker": _biped,
    "stickman": _stickman,
    "cheetah": _cheetah,
    "quadruped": _quadruped,
}
