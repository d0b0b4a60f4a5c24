"""What a body does, read from its physics states: features of each frame and of each window.

Nothing here sees a reward or a picture. A window is the 8 frames a backbone looks at. From its features a body's
record grades behaviours (`BODIES[domain].behaviours`): a membership is a number in [0, 1], soft around its
thresholds, so that what is learnt from it changes smoothly with speed and posture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages import worlds
from stages.worlds.body import Array, Features
from stages.worlds.suite import mujoco

WINDOW = 8


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
    return found | worlds.BODIES[domain].features(model, position, rotation, velocity)


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
