"""The domains and their tasks, from the records of the bodies, and the environment with action repeat 2.

env = make_env("walker", "walk", seed=0)
step = env.reset()
while not step.is_last:
    step = env.step(policy(step.observation))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from stages import worlds
from stages.runtime.errors import BadInput, nearest
from stages.worlds.body import Task
from stages.worlds.render import Renderer
from stages.worlds.suite import flatten_observation, mujoco

DOMAINS: tuple[str, ...] = tuple(worlds.BODIES)
ACTION_REPEAT = 2
WHOLE_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
CONTROL_STEPS = 1000  # an episode: 500 decisions, 501 frames with the reset frame


TASKS: tuple[Task, ...] = tuple(
    replace(task, domain=domain) for domain, body in worlds.BODIES.items() for task in body.tasks
)


def check_domain(domain: str) -> None:
    """Raises BadInput with the nearest known name when `domain` is unknown."""
    if domain not in DOMAINS:
        raise BadInput(f"unknown domain {domain!r}: {nearest(domain, DOMAINS)}")


def get_task(domain: str, name: str) -> Task:
    """The task of that name. Raises BadInput with the nearest known name when there is none."""
    check_domain(domain)
    for task in TASKS:
        if (task.domain, task.name) == (domain, name):
            return task
    raise BadInput(f"{domain} has no task {name!r}: {nearest(name, task_names(domain, training_only=False))}")


def task_names(domain: str, training_only: bool = True) -> list[str]:
    """Names of a domain's tasks: the paper's, or with `training_only=False` the zero-shot ones too."""
    check_domain(domain)
    return [task.name for task in TASKS if task.domain == domain and (task.training or not training_only)]


def normalized_score(task: Task, episode_return: float) -> float:
    """(return - random) / (expert - random)."""
    return (float(episode_return) - task.min_return) / (task.max_return - task.min_return)


@dataclass(frozen=True)
class Step:
    """What the environment returns for a reset or a decision."""

    observation: np.ndarray  # (observation_dim,) float32, the suite's physics observation, flattened
    state: np.ndarray  # (nq + nv,) float64
    reward: float  # sum over the repeated control steps; 0 at a reset
    is_first: bool
    is_last: bool
    is_terminal: bool  # never here: every episode of the suite ends by time alone


@dataclass(frozen=True)
class Snapshot:
    """A moment of an episode, to go back to."""

    simulation: np.ndarray  # MuJoCo's whole state
    steps: int  # control steps since the reset


class Env:
    """One task with action repeat 2. Actions lie in [-1, 1] and span each actuator's control range."""

    def __init__(self, domain: str, task: str, seed: int = 0) -> None:
        wanted = get_task(domain, task)
        self.domain, self.task = domain, task
        self._random = np.random.RandomState(seed % 2**32)
        self._physics = worlds.make_physics(domain)
        self._task = wanted.make(self._random)
        self._substeps = round(worlds.BODIES[domain].control_timestep / self._physics.timestep())
        low, high = self._physics.model.actuator_ctrlrange.T  # (A,) each
        self._centre, self._scale = (low + high) / 2, (high - low) / 2
        self._renderers: dict[tuple[int, int | None, str], Renderer] = {}
        self._steps = CONTROL_STEPS  # no episode is running until the first reset
        self.action_dim: int = self._physics.model.nu
        self.state_dim: int = self._physics.model.nq + self._physics.model.nv
        self.observation_dim: int = self._observe().shape[0]

    @property
    def physics_model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model that is stepped."""
        return self._physics.model.ptr

    def reset(self, seed: int | None = None) -> Step:
        """Start an episode; the same seed gives the same start, None goes on with the environment's own stream."""
        if seed is not None:
            self._random.seed(seed % 2**32)
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics)
        self._steps = 0
        return self._step(0.0, is_first=True)

    def step(self, action: np.ndarray) -> Step:
        """Apply an action (A,), clipped to [-1, 1], for two control steps.

        Raises RuntimeError when the episode is over and ValueError for a wrong shape or a NaN.
        """
        reward = 0.0
        for _ in self._control_steps(action):
            reward += float(self._task.get_reward(self._physics))
        return self._step(reward, is_first=False)

    def advance(self, action: np.ndarray) -> np.ndarray:
        """As `step`, but for the state (nq + nv,) alone, in about half the time."""
        for _ in self._control_steps(action):
            pass
        return self._state()

    def _control_steps(self, action: np.ndarray) -> Iterator[None]:
        if self._steps >= CONTROL_STEPS:
            raise RuntimeError("the episode is over: call reset() first")
        action = np.asarray(action, np.float64)
        if action.shape != (self.action_dim,) or np.isnan(action).any():
            raise ValueError(f"an action of {self.domain} is {self.action_dim} finite numbers, got {action}")
        control = self._centre + self._scale * np.clip(action, -1, 1)
        for _ in range(ACTION_REPEAT):
            self._task.before_step(control, self._physics)
            self._physics.step(self._substeps)
            self._task.after_step(self._physics)
            self._steps += 1
            yield

    def place(self, state: np.ndarray) -> None:
        """Put the body into a state (nq + nv,) within the running episode."""
        self._physics.data.qpos[:], self._physics.data.qvel[:] = np.split(state, [self._physics.model.nq])
        mujoco.mj_step1(self._physics.model.ptr, self._physics.data.ptr)

    def snapshot(self) -> Snapshot:
        """All that decides how the episode goes on: also what the solver starts from and the actuators' own state."""
        model, data = self._physics.model.ptr, self._physics.data.ptr
        found = np.empty(mujoco.mj_stateSize(model, WHOLE_STATE))
        mujoco.mj_getState(model, data, found, WHOLE_STATE)
        return Snapshot(found, self._steps)

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot: the same actions then give the same states, bit for bit."""
        model, data = self._physics.model.ptr, self._physics.data.ptr
        mujoco.mj_setState(model, data, snapshot.simulation, WHOLE_STATE)
        mujoco.mj_step1(model, data)  # dm_control's step begins with what depends on positions and velocities done
        self._steps = snapshot.steps

    def render(self, size: int = 64, camera: int | None = None, backend: str = "ray") -> np.ndarray:
        """The present frame, (3, size, size) uint8."""
        key = (size, camera, backend)
        if key not in self._renderers:
            self._renderers[key] = Renderer(self.domain, size, camera, backend)
        return self._renderers[key].render(self._state())

    def _state(self) -> np.ndarray:
        return np.concatenate([self._physics.data.qpos, self._physics.data.qvel])

    def _observe(self) -> np.ndarray:
        observation = flatten_observation(self._task.get_observation(self._physics))["observations"]
        return observation.astype(np.float32)

    def _step(self, reward: float, is_first: bool) -> Step:
        is_last = self._steps >= CONTROL_STEPS
        return Step(self._observe(), self._state(), reward, is_first, is_last, is_terminal=False)


def make_env(domain: str, task: str, seed: int = 0) -> Env:
    """An environment of a task. Raises BadInput when the domain or the task is unknown."""
    return Env(domain, task, seed)


def action_dim(domain: str) -> int:
    """Number of actuators of a domain."""
    check_domain(domain)
    return int(worlds.compile_model(domain).nu)
