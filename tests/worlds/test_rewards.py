"""The rewards of all 31 tasks beside the formulas of GenRL's tasks and of the suite, written here a second time.

Quantities are read from MuJoCo itself, not through dm_control: world positions and rotations of body frames, the
whole body's linear and angular momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import mujoco
import numpy as np
import pytest

from stages import worlds
from stages.worlds.tasks import TASKS, Env, Task, get_task, make_env
from tests.worlds.poses import POSES, set_pose

INF = float("inf")
TASK_IDS = [f"{task.domain}-{task.name}" for task in TASKS]


class Body:
    """A physics state and what the formulas read of it."""

    def __init__(self, model: mujoco.MjModel, state: np.ndarray) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self.data.qpos[:], self.data.qvel[:] = state[: model.nq], state[model.nq :]
        mujoco.mj_forward(model, self.data)
        mujoco.mj_subtreeVel(model, self.data)
        self.vx = self.data.body("torso").subtree_linvel[0]
        self.spin = self.data.body("torso").subtree_angmom[1]

    def z(self, name: str) -> float:
        return float(self.data.body(name).xpos[2])

    def x(self, name: str) -> float:
        return float(self.data.body(name).xpos[0])

    def cosine(self, name: str = "torso") -> float:
        """Between the body's z axis and up."""
        return float(self.data.body(name).xmat[8])

    def mean(self, part: str) -> float:
        return (self.z(f"left_{part}") + self.z(f"right_{part}")) / 2

    def forward_speed(self) -> float:
        """Of the torso's site in its own frame."""
        velocity, site = np.empty(6), self.model.site("torso").id
        mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_SITE, site, velocity, 1)
        return float(velocity[3])


def tol(x: float, low: float, high: float, margin: float) -> float:
    outside = max(low - x, x - high, 0.0)
    if outside == 0:
        return 1.0
    return 0.1 ** ((outside / margin) ** 2) if margin else 0.0


def up(x: float, b: float) -> float:
    return tol(x, b, INF, b / 2)


def down(x: float, b: float) -> float:
    return tol(x, -INF, b, 1.5 * b)


def ramp(x: float, b: float) -> float:
    return float(np.clip(x / b, 0, 1))


# ---------------------------------------------------------------------------- formulas


def stand(s: Body, h: float) -> float:
    return (3 * up(s.z("torso"), h) + (1 + s.cosine()) / 2) / 4


def one_foot(s: Body) -> float:
    feet = s.z("left_foot"), s.z("right_foot")
    return up(s.z("torso"), 1.0) * up(max(feet), 0.5) * down(min(feet), 0.1)


def high_kick(s: Body, h: float) -> float:
    feet = s.z("left_foot"), s.z("right_foot")
    return up(s.z("torso"), 1.0) * (3 * up(max(feet), h) + down(min(feet), 0.1)) / 4


def lying_down(s: Body) -> float:
    limbs = down(s.mean("thigh"), 0.1) + down(s.mean("leg"), 0.1) + down(s.mean("foot"), 0.1)
    return (3 * down(s.z("torso"), 0.1) + (1 - abs(s.cosine())) + limbs) / 7


def legs_up(s: Body) -> float:
    return (3 * down(s.z("torso"), 0.1) + (1 - abs(s.cosine()))) / 4 * up(s.mean("foot"), 0.35)


def sit_knees(s: Body) -> float:
    far = [max(0.1, abs(s.x(f"{side}_foot") - s.x(f"{side}_thigh"))) - 0.1 for side in ("left", "right")]
    kneel = (3 * down(s.mean("leg"), 0.15) + down(s.mean("foot"), 0.1)) / 4
    return stand(s, 0.55) * kneel * np.exp(-sum(far) / 2)


def lunge_pose(s: Body) -> float:
    left, right = s.z("left_leg"), s.z("right_leg")
    thigh = "left_thigh" if left >= right else "right_thigh"
    leg = "left_leg" if left <= right else "right_leg"
    level = (1 - abs(s.cosine(thigh))) + (1 - abs(s.cosine(leg)))
    return stand(s, 0.75) * (down(min(left, right), 0.1) + up(max(left, right), 0.25) + level) / 4


def upside(s: Body) -> float:
    return (3 * up(s.mean("foot"), 1.1) + 2 * up(s.mean("thigh"), 1.0)) / 5


def flipping(s: Body) -> float:
    return upside(s) * (5 * ramp(abs(s.spin), 16) + 1) / 6


def boxing(s: Body) -> float:
    speeds = [abs(s.data.body(f"{side}_hand").subtree_linvel[0]) for side in ("left", "right")]
    return stand(s, 1.15) * ramp(max(speeds), 5)


def quadruped_walk(s: Body, target: float) -> float:
    speed = s.forward_speed()
    moving = 1.0 if speed >= target else max(0.0, 1 - 0.5 * (target - speed) / target)
    return (1 + s.cosine()) / 2 * moving


def jump(s: Body) -> float:
    centre = s.data.body("torso").subtree_com[2]
    return (1 + s.cosine()) / 2 * (1.0 if centre >= 1 else max(0.0, 1 - 0.5 * (1 - centre)))


def two_legs(s: Body) -> float:
    toes = sorted(s.z(f"toe_{end}_{side}") for end in ("front", "back") for side in ("left", "right"))
    return float((toes[2] + toes[3]) / 2 >= 0.8) * tol((toes[0] + toes[1]) / 2, -INF, 0.2, 0.3)


def cheetah_standing(s: Body) -> float:
    feet = s.z("bfoot"), s.z("ffoot")
    return tol(max(feet), 1.0, INF, 0.5) * tol(min(feet), -INF, 0.15, 0.225)


def cheetah_lying(s: Body) -> float:
    return (tol(s.z("torso"), -INF, 0.15, 0.225) + tol(s.z("bfoot") + s.z("ffoot"), 0.45, INF, 0.225)) / 2


Formula = Callable[[Body], float]
BIPED: dict[str, Formula] = {
    "one_foot": one_foot,
    "lying_down": lying_down,
    "sit_knees": sit_knees,
    "lunge_pose": lunge_pose,
    "flipping": flipping,
}
FORMULAS: dict[str, dict[str, Formula]] = {
    "walker": {
        **BIPED,
        "stand": lambda s: stand(s, 1.2),
        "walk": lambda s: stand(s, 1.2) * (5 * ramp(s.vx, 1) + 1) / 6,
        "run": lambda s: stand(s, 1.2) * (5 * ramp(s.vx, 8) + 1) / 6,
        "high_kick": lambda s: high_kick(s, 1.2),
    },
    "stickman": {
        **BIPED,
        "stand": lambda s: stand(s, 1.15) * (5 * float(s.vx >= 0) + 1) / 6,
        "walk": lambda s: stand(s, 1.15) * (5 * ramp(s.vx, 1) + 1) / 6,
        "run": lambda s: stand(s, 1.15) * (5 * ramp(s.vx, 8) + 1) / 6,
        "high_kick": lambda s: high_kick(s, 1.15),
        "legs_up": legs_up,
        "headstand": upside,
        "boxing": boxing,
        "hands_up": lambda s: stand(s, 1.15) * up(s.mean("hand"), 1.75),
    },
    "cheetah": {
        "run": lambda s: ramp(s.vx, 10),
        "standing": cheetah_standing,
        "lying_down": cheetah_lying,
    },
    "quadruped": {
        "stand": lambda s: (1 + s.cosine()) / 2,
        "walk": lambda s: quadruped_walk(s, 0.5),
        "run": lambda s: quadruped_walk(s, 5.0),
        "jump": jump,
        "two_legs": two_legs,
        "lie_down": lambda s: tol(s.z("torso"), -INF, 0.2, 0.3),
    },
}


# ---------------------------------------------------------------------------- states


def posed(env: Env, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, float]]:
    """States about the domain's poses, moving, and the reward there: three of each pose."""
    physics = env._physics
    for name in POSES[env.domain]:
        for strength in (0.0, 0.1, 0.5):
            set_pose(physics, POSES[env.domain][name])
            physics.data.qpos[:] += strength * 0.3 * rng.normal(size=physics.model.nq)
            physics.data.qvel[:] += strength * 10 * rng.normal(size=physics.model.nv)
            physics.forward()
            yield env._state(), float(env._task.get_reward(physics))


def played(env: Env, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[np.ndarray, float]]:
    """The states and rewards of every control step of an episode's first decisions; a decision's are summed."""
    seen: list[tuple[np.ndarray, float]] = []
    get_reward = env._task.get_reward

    def watched(physics: object) -> float:
        seen.append((env._state(), float(get_reward(physics))))
        return seen[-1][1]

    monkeypatch.setattr(env._task, "get_reward", watched)
    env.reset(3)
    for decision in range(12):
        reward = env.step(rng.uniform(-1, 1, env.action_dim)).reward
        assert len(seen) == 2 * decision + 2 and reward == pytest.approx(seen[-2][1] + seen[-1][1], abs=1e-12)
    yield from seen


@pytest.mark.parametrize("task", TASKS, ids=TASK_IDS)
def test_rewards_are_the_formulas(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    env, rng = make_env(task.domain, task.name), np.random.default_rng(0)
    found = [*posed(env, rng), *played(env, rng, monkeypatch)]
    formula = FORMULAS[task.domain][task.name]
    wanted = [formula(Body(env.physics_model, state)) for state, _ in found]
    rewards = [reward for _, reward in found]
    np.testing.assert_allclose(rewards, wanted, rtol=0, atol=1e-9)
    assert len(rewards) >= 24 and max(rewards) > 0.3 + min(rewards)  # not all at one end


# ---------------------------------------------------------------------------- by hand


@cache
def one_physics(domain: str) -> Any:
    return worlds.make_physics(domain)


def reward_of(domain: str, name: str, pose: dict[str, object]) -> float:
    physics = one_physics(domain)
    set_pose(physics, pose)
    return float(get_task(domain, name).make(np.random.RandomState(0)).get_reward(physics))


@pytest.mark.parametrize(("speed", "reward"), [(-0.01, 1 / 6), (0.0, 1.0), (0.5, 1.0)])
def test_a_standing_stickman_that_drifts_backward_keeps_a_sixth(speed: float, reward: float) -> None:
    assert reward_of("stickman", "stand", {"velocity": {"rootx": speed}}) == pytest.approx(reward, abs=1e-12)


def test_both_ways_of_flipping_count() -> None:
    spins = [reward_of("walker", "flipping", {"rooty": 180, "velocity": {"rooty": way}}) for way in (1, -1)]
    assert spins[0] == pytest.approx(spins[1]) and 0.5 < spins[0] < 0.6


@pytest.mark.parametrize(
    ("pitch", "expected"),
    [
        (0, {"stand": 1, "jump": 0.72, "lie_down": 0.19}),
        (180, {"stand": 0, "walk": 0, "run": 0, "jump": 0, "two_legs": 0, "lie_down": 1}),
    ],
)
def test_a_quadruped_at_rest(pitch: float, expected: dict[str, float]) -> None:
    """On its feet and on its back, after ten seconds without a motor."""
    physics = worlds.make_physics("quadruped")
    set_pose(physics, {"root": (0, 0, 1, pitch)})
    physics.step(2000)
    for name, reward in expected.items():
        task = get_task("quadruped", name).make(np.random.RandomState(0))
        assert float(task.get_reward(physics)) == pytest.approx(reward, abs=0.005), name


def test_every_pose_is_what_its_task_asks_for() -> None:
    for domain, poses in POSES.items():
        for name in poses:
            earned = {other: reward_of(domain, name, pose) for other, pose in poses.items()}
            assert earned[name] > 0.9 and earned[name] >= max(earned.values()) - 1e-9, (domain, name, earned)
            assert min(earned.values()) < 0.7, (domain, name, earned)
