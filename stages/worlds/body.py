"""The record of a body, and what the bodies' files share.

A module of stages/worlds that defines `BODY = Body(...)` is a domain; nothing else names it but a preset
(docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from stages.worlds.suite import base, mujoco, tolerance

INF = float("inf")
Array = NDArray[np.float64]
Features = dict[str, Array]  # feature → (N,), of frames or of windows; m, m/s, rad/s
Memberships = dict[str, Array]  # concept → (N,) in [0, 1]
Phrases = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]  # concept → (trained on, kept for testing)
TaskMaker = Callable[[RandomState], base.Task]  # episode starts are drawn from the generator
Reward = Callable[[Any], float]  # of a dm_control physics, in [0, 1] for one control step


@dataclass(frozen=True)
class Task:
    """A task, its default prompt and the returns that normalise its score."""

    name: str
    prompt: str
    min_return: float
    max_return: float
    make: TaskMaker
    training: bool = False  # one that behaviours are learned for by default; the others are for zero-shot prompts
    domain: str = ""  # of its body; stages/worlds/tasks.py fills it in


@dataclass(frozen=True)
class Body:
    """All that the project knows of a body.

    The model has a body `torso`, one horizontal floor at z = 0 and at least one camera; it may include the suite's
    common files. The concepts of `behaviours` and `phrases` are the same; the first ten are the classes on which
    retrieval is measured.
    """

    name: str  # of the domain, and of the module
    model_xml: str | bytes
    physics: type[Any]  # a dm_control Physics
    control_timestep: float  # s; an episode has 1000
    camera: int  # from which its tasks are seen
    tasks: tuple[Task, ...]
    # (model, positions (N, bodies, 3), rotations (N, bodies, 3, 3), velocities (N, nv)) → features of each frame,
    # beside those of every torso: `height`, `upright`, `facing`. All have `speed`, forward
    features: Callable[[mujoco.MjModel, Array, Array, Array], Features]
    behaviours: Callable[[Features], Memberships]  # features of windows → how much each shows each concept
    nouns: tuple[str, ...]  # what a caption calls it
    phrases: Phrases  # see stages/backbones/offline/captions.py


def with_reward(start: TaskMaker, reward: Reward) -> TaskMaker:
    """A task that begins and observes as `start`'s does, and is rewarded by `reward`."""

    def make(random: RandomState) -> base.Task:
        task = start(random)
        task.get_reward = reward
        return task

    return make


# ---------------------------------------------------------------------------- rewards


def heights(physics: Any, *bodies: str) -> Array:
    """World z of the bodies' frames (n,), m."""
    return np.asarray(physics.named.data.xpos[list(bodies), "z"])


def above(value: float, bound: float) -> float:
    """1 from `bound` up; below it a Gaussian that is .1 at half of it."""
    return float(tolerance(value, (bound, INF), bound / 2))


def below(value: float, bound: float) -> float:
    """1 up to `bound`; above it a Gaussian that is .1 at two and a half times it."""
    return float(tolerance(value, (-INF, bound), 1.5 * bound))


def ramp(value: float, target: float) -> float:
    """Linear from 0 at 0 to 1 at `target` and beyond; a hard step at 0 for target 0."""
    return float(tolerance(value, (target, INF), target / 2, "linear", 0.5))


# ---------------------------------------------------------------------------- features and behaviours


def planar_features(model: mujoco.MjModel, velocity: Array) -> Features:
    """Motion of a planar root (rootx, rootz, rooty) and of all joints: velocities (N, nv) → `speed`, `climb`, `spin`
    (positive pitches forward), `effort`."""
    root = [dof_address(model, name) for name in ("rootx", "rootz", "rooty")]
    joints = np.delete(velocity, root, axis=1)
    return {
        "speed": velocity[:, root[0]],
        "climb": velocity[:, root[1]],
        "spin": velocity[:, root[2]],
        "effort": np.abs(joints).mean(1),
    }


def dof_address(model: mujoco.MjModel, joint: str) -> int:
    """Where a joint's velocity stands in qvel."""
    return int(model.joint(joint).dofadr[0])


def over(value: Array, threshold: float, width: float) -> Array:
    """Soft `value > threshold`: 0.5 at the threshold, 0.95 at one `width` above it."""
    return 1.0 / (1.0 + np.exp(-3.0 * (value - threshold) / width))


def under(value: Array, threshold: float, width: float) -> Array:
    """Soft `value < threshold`."""
    return over(-value, -threshold, width)
