from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages import worlds
from stages.runtime.errors import BadInput
from stages.worlds import opengl, render
from stages.worlds.render import Renderer, render_states
from stages.worlds.suite import mujoco
from stages.worlds.tasks import DOMAINS, make_env, task_names
from tests.worlds.poses import POSES, set_pose

ROOT = Path(__file__).parents[2]
CAMERAS = [(domain, camera) for domain in DOMAINS for camera in range(4 if domain == "quadruped" else 2)]
ROOT_X = {"walker": 1, "stickman": 1, "cheetah": 0, "quadruped": 0}  # index of the horizontal position in a state


def some_states(domain: str, count: int = 6) -> np.ndarray:
    env, rng = make_env(domain, task_names(domain)[0]), np.random.default_rng(0)
    states = []
    for seed in range(count):
        env.reset(seed)
        for _ in range(4 * seed):
            env.step(rng.uniform(-1, 1, env.action_dim))
        states.append(env.reset(seed).state if seed == 0 else env.step(np.zeros(env.action_dim)).state)
    return np.stack(states)


def drawn_state(domain: str) -> np.ndarray:
    """The body as the model draws it, standing."""
    physics = worlds.make_physics(domain)
    set_pose(physics, POSES[domain].get("stand", {}))
    return np.concatenate([physics.data.qpos, physics.data.qvel])


def body(frame: np.ndarray) -> np.ndarray:
    """(S, S) bool: pixels of the body, which is orange where floor and sky are blue."""
    return frame[0].astype(int) > frame[2]


@pytest.mark.parametrize("domain", DOMAINS)
def test_frame_is_a_function_of_positions_alone(domain: str) -> None:
    states, renderer = some_states(domain), Renderer(domain)
    frames = [renderer.render(state) for state in states]
    assert frames[0].shape == (3, 64, 64) and frames[0].dtype == np.uint8
    assert len({frame.tobytes() for frame in frames}) == len(frames)
    still = states[2].copy()
    still[renderer.model.nq :] = 0
    for state, frame in ((states[2], frames[2]), (states[0], frames[0]), (still, frames[2])):
        np.testing.assert_array_equal(renderer.render(state), frame)


@pytest.mark.parametrize(("domain", "camera"), CAMERAS)
def test_casting_only_the_bodies_boxes_loses_nothing(domain: str, camera: int, monkeypatch: pytest.MonkeyPatch) -> None:
    states = some_states(domain)
    quick = render_states(domain, states, camera=camera)
    monkeypatch.setattr("stages.worlds.raycast.RayCaster._candidates", lambda self, *_: np.arange(self.size**2))
    np.testing.assert_array_equal(quick, render_states(domain, states, camera=camera))


def test_another_process_draws_the_same_bytes() -> None:
    states = some_states("quadruped")
    here = hashlib.sha256(render_states("quadruped", states, size=48).tobytes()).hexdigest()
    program = (
        "import sys, hashlib, numpy as np; from stages.worlds.render import render_states; "
        "states = np.frombuffer(sys.stdin.buffer.read()).reshape(-1, 45); "
        "print(hashlib.sha256(render_states('quadruped', states, size=48).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program], input=states.tobytes(), cwd=ROOT, capture_output=True)
    assert done.stdout.decode().strip() == here, done.stderr.decode()
    assert done.stderr == b""  # importing and drawing on a machine without a display says nothing


@pytest.mark.parametrize("domain", DOMAINS)
def test_body_is_seen_and_the_floor_moves_under_it(domain: str) -> None:
    state, renderer = drawn_state(domain), Renderer(domain)
    here = renderer.render(state)
    assert 0.02 < body(here).mean() < 0.3
    moved = state.copy()
    moved[ROOT_X[domain]] += 0.5
    there = renderer.render(moved)
    assert (body(here) == body(there)).mean() > 0.995  # the camera follows
    changed = (here != there).any(0) & ~body(here) & ~body(there)
    assert changed.mean() > 0.02, "the checker floor does not move"
    moved[ROOT_X[domain]] += 1.5  # two squares further on the floor looks the same again
    assert (renderer.render(moved) != here).any(0).mean() < 0.01


def test_sizes_agree_on_what_they_show() -> None:
    state = drawn_state("stickman")
    shares = [body(Renderer("stickman", size=size).render(state)).mean() for size in (64, 224)]
    assert shares[0] == pytest.approx(shares[1], rel=0.1)


def test_env_renders_its_present_state() -> None:
    env = make_env("cheetah", "run")
    env.reset(0)
    step = env.step(np.ones(env.action_dim))
    np.testing.assert_array_equal(env.render(size=32), Renderer("cheetah", 32).render(step.state))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"domain": "wlaker"}, "walker"),
        ({"backend": "rya"}, "ray"),
        ({"camera": 2}, "no camera 2"),
        ({"camera": -1}, "no camera -1"),
        ({"size": 0}, "not positive"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Renderer(**{"domain": "walker", **options})  # type: ignore[arg-type]


def test_a_state_of_another_domain_is_refused() -> None:
    with pytest.raises(BadInput, match="walker state has 18 numbers"):
        Renderer("walker").render(np.zeros(45))
    with pytest.raises(BadInput, match="NaN"):
        Renderer("walker").render(np.full(18, np.nan))


def test_gl_without_a_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opengl, "PLATFORMS", ("absent",))
    opengl.find_platform.cache_clear()
    try:
        with pytest.raises(BadInput, match="ray renderer"):
            Renderer("walker", backend="gl")
    finally:
        opengl.find_platform.cache_clear()


def test_a_model_is_compiled_once_and_gl_changes_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def widen(model: mujoco.MjModel, size: int, camera: int, effects: bool) -> None:
        model.vis.global_.offwidth = size

    monkeypatch.setattr(render, "GLDrawer", widen)
    shared = worlds.compile_model("walker")
    drawn = Renderer("walker", 7, backend="gl")
    assert worlds.compile_model("walker") is shared and Renderer("walker").model is shared
    assert drawn.model.vis.global_.offwidth == shared.vis.global_.offwidth != 7


@pytest.mark.parametrize("domain", DOMAINS)
def test_ray_shows_what_gl_shows(domain: str) -> None:
    try:
        opengl.find_platform()
    except BadInput as missing:
        pytest.skip(str(missing))
    state = drawn_state(domain)
    ray, gl = (Renderer(domain, 128, worlds.BODIES[domain].camera, backend).render(state) for backend in ("ray", "gl"))
    both = body(ray) & body(gl)
    assert both.sum() / (body(ray) | body(gl)).sum() > 0.9
    assert np.abs(ray.astype(int) - gl).mean() < 12


DM_CONTROL = """
import sys, numpy as np
from stages import worlds
from stages.worlds.render import Renderer
for domain, body in worlds.BODIES.items():
    physics = worlds.make_physics(domain)
    physics.reset()
    ours = Renderer(domain, backend="genrl").render(np.concatenate([physics.data.qpos, physics.data.qvel]))
    theirs = physics.render(64, 64, body.camera).transpose(2, 0, 1)
    assert np.array_equal(ours, theirs), domain
"""


def test_genrl_frames_are_those_of_dm_control() -> None:
    """In a process of its own: dm_control binds OpenGL to the platform that MUJOCO_GL names."""
    try:
        platform, _ = opengl.find_platform()
    except BadInput as missing:
        pytest.skip(str(missing))
    environment = os.environ | {"MUJOCO_GL": platform}
    done = subprocess.run([sys.executable, "-c", DM_CONTROL], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
