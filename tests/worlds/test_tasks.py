from __future__ import annotations

import numpy as np
import pytest

from stages import worlds
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from stages.worlds.tasks import DOMAINS, TASKS, Task, get_task, make_env, normalized_score, task_names
from tests.worlds.poses import POSES, set_pose

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


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_pose_earns_its_own_task_the_most(domain: str) -> None:
    physics = worlds.make_physics(domain)
    poses = POSES[domain]
    for name in poses:
        task = get_task(domain, name).make(np.random.RandomState(0))
        earned = {}
        for other, pose in poses.items():
            set_pose(physics, pose)
            earned[other] = float(task.get_reward(physics))
        assert earned[name] > 0.9, (name, earned)
        assert earned[name] == max(earned.values()), (name, earned)
        assert min(earned.values()) < 0.7, (name, earned)


def test_stickman_is_the_body_of_the_table() -> None:
    model = worlds.compile_model("stickman")
    assert [model.actuator(i).name for i in range(model.nu)] == [
        "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
        "left_shoulder", "left_elbow", "right_shoulder", "right_elbow",
    ]  # fmt: skip
    assert model.actuator_gear[:, 0].tolist() == [100, 50, 20, 100, 50, 20, 100, 50, 100, 50]
    degrees = {
        name: tuple(np.rad2deg(model.joint(f"{side}_{name}").range).round())
        for name in ("hip", "knee", "ankle", "shoulder", "elbow")
        for side in ("left", "right")
    }
    assert degrees == {
        "hip": (-20, 100), "knee": (-150, 0), "ankle": (-45, 45), "shoulder": (-20, 100), "elbow": (0, 150),
    }  # fmt: skip
    physics = worlds.make_physics("stickman")
    set_pose(physics, {})
    assert physics.foot_heights() == pytest.approx([0.05, 0.05])  # sole radius .04: it stands a centimetre up
    assert physics.hand_heights() == pytest.approx([-0.4, -0.4])


def test_stickman_stand_reward_by_hand() -> None:
    physics = worlds.make_physics("stickman")
    task = get_task("stickman", "run").make(np.random.RandomState(0))
    set_pose(physics, {"velocity": {"rootx": 6}})  # 6 m/s of 8: half way into the margin, .75
    assert task.get_reward(physics) == pytest.approx((5 * 0.75 + 1) / 6)
    set_pose(physics, {"rooty": 180})
    assert get_task("stickman", "stand").make(np.random.RandomState(0)).get_reward(physics) == pytest.approx(0.75)
