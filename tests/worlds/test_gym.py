from __future__ import annotations

import numpy as np
import pytest

from stages.runtime.errors import BadInput
from stages.worlds.tasks import TASKS, make_env

gymnasium = pytest.importorskip("gymnasium")


@pytest.mark.parametrize("obs", ["pixels", "state"])
@pytest.mark.parametrize("name", ["bitagent/cheetah-run-v0", "bitagent/quadruped-two-legs-v0"])
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*:UserWarning")
def test_gymnasiums_own_check_passes(name: str, obs: str) -> None:
    from gymnasium.utils.env_checker import check_env

    import stages.worlds.gym  # noqa: F401

    check_env(gymnasium.make(name, obs=obs, render_mode="rgb_array").unwrapped)


def test_every_task_is_registered() -> None:
    import stages.worlds.gym  # noqa: F401

    ids = {name for name in gymnasium.registry if name.startswith("bitagent/")}
    assert ids == {f"bitagent/{task.domain}-{task.name.replace('_', '-')}-v0" for task in TASKS}


def test_episode_is_the_environments() -> None:
    import stages.worlds.gym

    env = stages.worlds.gym.TaskEnv("cheetah", "run", obs="state", render_mode="rgb_array")
    _, info = env.reset(seed=3)
    ended, total, steps = False, 0.0, 0
    while not ended:
        observation, reward, terminated, ended, info = env.step(np.ones(6, np.float32))
        total, steps = total + reward, steps + 1
        assert not terminated and observation.shape == (17,)
    assert steps == 500 and info["state"].shape == (18,)
    assert env.render().shape == (64, 64, 3)
    assert env.metadata["render_fps"] == 50


def test_seed_decides_the_following_episodes_too() -> None:
    import stages.worlds.gym

    env = stages.worlds.gym.TaskEnv("walker", "walk", size=16)
    pairs = []
    for seed in (1, 1, 2):
        first, _ = env.reset(seed=seed)
        second, _ = env.reset()
        pairs.append((first, second))
    np.testing.assert_array_equal(pairs[0], pairs[1])
    assert not np.array_equal(pairs[0][0], pairs[2][0]) and not np.array_equal(*pairs[0])


def test_pixels_are_the_renderers() -> None:
    import stages.worlds.gym

    env = stages.worlds.gym.TaskEnv("walker", "walk", size=32)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (32, 32, 3) and frame.dtype == np.uint8
    np.testing.assert_array_equal(frame.transpose(2, 0, 1), env.env.render(32))
    assert env.render() is None and make_env("walker", "walk").action_dim == env.action_space.shape[0]


@pytest.mark.parametrize("options", [{"obs": "sound"}, {"render_mode": "human"}, {"task": "fly"}])
def test_bad_options_are_refused(options: dict[str, str]) -> None:
    import stages.worlds.gym

    with pytest.raises(BadInput):
        stages.worlds.gym.TaskEnv(**{"domain": "walker", "task": "walk", **options})
