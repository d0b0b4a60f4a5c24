from __future__ import annotations

import numpy as np
import pytest

from stages import worlds
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from stages.worlds.tasks import DOMAINS, TASKS, Task, get_task, make_env, normalized_score, task_names

SPECS = {  # action, nq + nv, observation
    "walker": (6, 18, 24),
    "cheetah": (6, 18, 17),
    "quadruped": (12, 45, 78),
    "stickman": (10, 26, 44),
}
SUITE = [("walker", "stand"), ("walker", "walk"), ("walker", "run"), ("cheetah", "run")]
SUITE += [("quadruped", "walk"), ("quadruped", "run")]
TASK_IDS = [f"{task.domain}-{task.name}" for task in TASKS]


@pytest.mark.parametrize("domain", DOMAINS)
def test_specs_are_the_tables(domain: str) -> None:
    env = make_env(domain, task_names(domain)[0])
    assert (env.action_dim, env.state_dim, env.observation_dim) == SPECS[domain]
    assert tasks.action_dim(domain) == env.action_dim
    step = env.reset(0)
    assert step.observation.shape == (env.observation_dim,) and step.observation.dtype == np.float32
    assert step.state.shape == (env.state_dim,) and step.state.dtype == np.float64
    assert env.physics_model.nq + env.physics_model.nv == env.state_dim
    limits = {"walker": 25, "stickman": 25, "cheetah": 10, "quadruped": 20}  # s, the suite's
    assert 1000 * worlds.BODIES[domain].control_timestep == limits[domain]


def test_ten_training_tasks_and_the_further_ones() -> None:
    assert sum(task.training for task in TASKS) == 10 and len(TASKS) == 31
    assert len({(task.domain, task.name) for task in TASKS}) == 31
    assert DOMAINS == ("walker", "cheetah", "quadruped", "stickman")  # the paper's order
    assert all(task.prompt and task.min_return < task.max_return for task in TASKS)


@pytest.mark.parametrize(("domain", "task"), SUITE)
def test_rewards_and_observations_equal_the_suites(domain: str, task: str) -> None:
    from dm_control import suite

    peer = suite.load(domain, task, task_kwargs={"random": 3})
    env, rng = make_env(domain, task, seed=3), np.random.default_rng(0)
    low, high = peer.action_spec().minimum, peer.action_spec().maximum
    first, step = peer.reset(), env.reset()
    for _ in range(40):
        flat = np.concatenate([np.ravel(value) for value in first.observation.values()])
        np.testing.assert_array_equal(step.observation, flat.astype(np.float32))
        action = rng.uniform(-1, 1, env.action_dim)
        control = (low + high) / 2 + (high - low) / 2 * action
        expected = peer.step(control).reward
        first = peer.step(control)
        step = env.step(action)
        assert step.reward == expected + first.reward


@pytest.mark.parametrize("task", TASKS, ids=TASK_IDS)
def test_rewards_lie_in_zero_to_one_a_control_step(task: Task) -> None:
    env, rng = make_env(task.domain, task.name), np.random.default_rng(1)
    rewards = []
    for seed in range(2):
        env.reset(seed)
        rewards += [env.step(rng.uniform(-1, 1, env.action_dim)).reward for _ in range(25)]
    assert min(rewards) >= 0 and max(rewards) <= 2
    assert len(set(rewards)) > 1  # it depends on what happens


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_episode_is_500_decisions_of_two_control_steps(domain: str) -> None:
    env = make_env(domain, task_names(domain)[-1])
    step, decisions = env.reset(0), 0
    assert step.is_first and not step.is_last and step.reward == 0
    while not step.is_last:
        step = env.step(np.zeros(env.action_dim))
        decisions += 1
        assert not step.is_first and not step.is_terminal
    assert decisions == 500
    assert env._physics.data.time == pytest.approx(1000 * worlds.BODIES[domain].control_timestep)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(env.action_dim))


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_seed_same_episode(domain: str) -> None:
    def rollout(env: tasks.Env, seed: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        states = [env.reset(seed).state]
        states += [env.step(rng.uniform(-1, 1, env.action_dim)).state for _ in range(20)]
        return np.stack(states)

    used, fresh = make_env(domain, task_names(domain)[0], seed=1), make_env(domain, task_names(domain)[0], seed=2)
    used.reset()
    used.step(np.ones(used.action_dim))
    np.testing.assert_array_equal(rollout(used, 7), rollout(fresh, 7))
    assert not np.array_equal(rollout(used, 7)[0], rollout(used, 8)[0])
    assert not np.array_equal(used.reset().state, used.reset().state)


def test_the_environments_seed_decides_unseeded_resets() -> None:
    starts = [[make_env("walker", "walk", seed).reset().state for _ in range(2)] for seed in (5, 5, 6)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])


def test_actions_are_clipped_and_span_the_control_range() -> None:
    env = make_env("quadruped", "walk")
    env.reset(0)
    wild = env.step(np.full(12, 9.0)).state
    np.testing.assert_array_equal(env._physics.data.ctrl, env.physics_model.actuator_ctrlrange[:, 1])
    env.reset(0)
    np.testing.assert_array_equal(env.step(np.ones(12)).state, wild)


@pytest.mark.parametrize("action", [np.zeros(5), np.full(6, np.nan)])
def test_a_broken_action_is_refused(action: np.ndarray) -> None:
    env = make_env("walker", "walk")
    env.reset(0)
    with pytest.raises(ValueError, match="6 finite numbers"):
        env.step(action)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="walker"):
        make_env("wolker", "walk")
    with pytest.raises(BadInput, match="stand"):
        get_task("quadruped", "stnd")
    with pytest.raises(BadInput, match="unknown domain"):
        task_names("hopper")


def test_normalized_score() -> None:
    task = get_task("walker", "stand")
    assert normalized_score(task, 150) == 0 and normalized_score(task, 970) == 1 and normalized_score(task, 560) == 0.5


SIDES = ("right", "left")
STICKMAN_BODIES = {  # position in the parent, its geom's radius (and half length) and position
    "torso": ((0, 0, 1.25), (0.06, 0.25), (0, 0, 0)),
    "neck": ((0, 0, 0.35), (0.045, 0.045), (0, 0, 0)),
    "head": ((0, 0, 0.1), (0.1,), (0, 0, 0)),
    "thigh": ((0, 0.05, -0.25), (0.05, 0.225), (0, 0, -0.225)),
    "leg": ((0, 0, -0.7), (0.04, 0.25), (0, 0, 0)),
    "foot": ((0.06, 0, -0.25), (0.04, 0.1), (0, 0, 0)),
    "arm": ((0, 0.05, 0.2), (0.04, 0.135), (0, 0, -0.135)),
    "forearm": ((0, 0, -0.45), (0.035, 0.15), (0, 0, 0)),
    "hand": ((0, 0, -0.15), (0.05,), (0, 0, 0)),
}
STICKMAN_JOINTS = {  # position, range in degrees, gear of its motor
    "hip": ((0, 0, 0), (-20, 100), 100),
    "knee": ((0, 0, 0.25), (-150, 0), 50),
    "ankle": ((-0.06, 0, 0), (-45, 45), 20),
    "shoulder": ((0, 0, 0), (-20, 100), 100),
    "elbow": ((0, 0, 0.15), (0, 150), 50),
}
STICKMAN_ORDER = [
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "left_shoulder", "left_elbow", "right_shoulder", "right_elbow",
]  # fmt: skip


def test_stickman_is_the_body_of_genrl() -> None:
    model = worlds.compile_model("stickman")
    for part, (place, size, middle) in STICKMAN_BODIES.items():
        for side in SIDES:
            name = part if part in ("torso", "neck", "head") else f"{side}_{part}"
            mirrored = (place[0], -place[1] if side == "right" else place[1], place[2])
            assert model.body(name).pos == pytest.approx(mirrored)
            assert model.geom(name).size[: len(size)] == pytest.approx(size)
            assert model.geom(name).pos == pytest.approx(middle)
    for part, (place, limits, gear) in STICKMAN_JOINTS.items():
        for side in SIDES:
            joint = model.joint(f"{side}_{part}")
            assert joint.pos == pytest.approx(place) and np.rad2deg(joint.range) == pytest.approx(limits)
            assert joint.axis == pytest.approx((0, -1, 0)) and (joint.damping, joint.armature) == (0.1, 0.01)
            assert model.actuator(f"{side}_{part}").gear[0] == gear
    assert [model.joint(i).name for i in range(model.njnt)] == ["rootz", "rootx", "rooty", *STICKMAN_ORDER]
    assert [model.actuator(i).name for i in range(model.nu)] == STICKMAN_ORDER
    assert [model.sensor(i).name for i in range(model.nsensor)] == ["torso_subtreelinvel"]
    assert model.jnt_limited.tolist() == [0] * 3 + [1] * 10 and model.opt.timestep == 0.0025
    assert model.geom("floor").pos == pytest.approx((248, 0, 0))
    assert model.geom("floor").size == pytest.approx((250, 0.8, 0.2))
    assert model.camera("side").pos == pytest.approx((0, -2.25, 1)) and model.camera("side").id == 0
    assert np.array_equal(model.geom_contype, np.ones(model.ngeom))
    assert model.geom_conaffinity.tolist() == [1] + [0] * (model.ngeom - 1)
    assert model.geom_friction == pytest.approx(np.tile((0.7, 0.1, 0.1), (model.ngeom, 1)))
