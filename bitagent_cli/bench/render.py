"""Frames a second of the ray renderer beside OpenGL and dm_control's own default path, on the same states.

Also the contact sheet docs/renderers.png:

    python -c "from pathlib import Path; from bitagent_cli.bench import render; render.draw_sheet(Path('docs/renderers.png'))"
"""  # noqa: E501

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages import worlds
from stages.report.figures import save_png, strip
from stages.runtime.errors import BadInput
from stages.worlds.opengl import find_platform
from stages.worlds.render import Renderer
from stages.worlds.tasks import DOMAINS, make_env, task_names

GL_STATES = 40  # as many states as the slow paths are timed on,
LIMIT_S = 5.0  # unless that takes longer than this


def measure_renderers(
    domains: Sequence[str] = DOMAINS, size: int = 64, frames: int = 500, sheet: Path | None = None
) -> dict[str, Any]:
    """Measure each domain, ray on one core and a software OpenGL on as many as it takes.

    With `sheet`, also draw the contact sheet there.

    Returns:
        {"size", "opengl": name or a sentence that says why there is none, "domains": {domain: {"ray": frames/s,
        "gl": ..., "dm_control": ..., "ratio": ray / dm_control}}}; without OpenGL the last three are None.
    """
    try:
        opengl, found = find_platform()[1], True
    except BadInput as missing:
        opengl, found = str(missing), False
    speeds = {domain: bench_domain(domain, size, frames, found) for domain in domains}
    if sheet is not None:
        draw_sheet(sheet)
    return {"size": size, "opengl": opengl, "domains": speeds}


def bench_domain(domain: str, size: int, frames: int, opengl: bool) -> dict[str, float | None]:
    """Frames/s of each path on states of one random episode."""
    states = random_states(domain, frames)
    ray = rendering_speed(Renderer(domain, size).render, states)
    if not opengl:
        return {"ray": ray, "gl": None, "dm_control": None, "ratio": None}
    spread = states[:: max(1, len(states) // GL_STATES)]
    other = in_child(domain, size, spread)
    return {"ray": ray, **other, "ratio": round(ray / other["dm_control"], 1)}


def random_states(domain: str, count: int) -> np.ndarray:
    """(count, nq + nv) states of random episodes."""
    env, rng = make_env(domain, task_names(domain)[0]), np.random.default_rng(0)
    step = env.reset(seed=0)
    states = [step.state]
    while len(states) < count:
        step = env.reset() if step.is_last else env.step(rng.uniform(-1, 1, env.action_dim))
        states.append(step.state)
    return np.stack(states)


def rendering_speed(draw: Callable[[np.ndarray], object], states: Iterable[np.ndarray]) -> float:
    """1 / the median time of a frame, after a warm-up frame; at most LIMIT_S of frames.

    The median, because other work on the machine delays some frames and not most.
    """
    states = list(states)
    draw(states[0])
    seconds: list[float] = []
    for state in states:
        began = time.perf_counter()
        draw(state)
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > LIMIT_S:
            break
    return round(1 / statistics.median(seconds), 1)


def in_child(domain: str, size: int, states: np.ndarray) -> dict[str, float]:
    """Time the OpenGL paths in a process of their own: dm_control chooses its library once, when imported."""
    platform = find_platform()[0]
    environment = {**os.environ, "MUJOCO_GL": platform, "PYOPENGL_PLATFORM": platform}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bitagent_cli.bench.render", domain, str(size)],
        input=json.dumps(states.tolist()), env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BadInput(f"dm_control's renderer failed with {platform} ({said[-1]}); try another MUJOCO_GL")
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def child_main(domain: str, size: int) -> None:
    """Read states from stdin, print {"gl": frames/s, "dm_control": frames/s}."""
    states = np.array(json.load(sys.stdin))
    physics, camera = worlds.make_physics(domain), worlds.BODIES[domain].camera

    def default_path(state: np.ndarray) -> np.ndarray:
        with physics.reset_context():
            physics.data.qpos[:] = state[: physics.model.nq]
        return physics.render(height=size, width=size, camera_id=camera)

    default = rendering_speed(default_path, states)
    physics.free()
    gl = rendering_speed(Renderer(domain, size, backend="gl").render, states)
    print(json.dumps({"gl": gl, "dm_control": default}))


def draw_sheet(path: Path, size: int = 128, poses: int = 3) -> None:
    """Write a picture: for each domain `poses` moments of one episode, ray above gl. Raises BadInput without OpenGL."""
    ray_row, gl_row = [], []
    for domain in DOMAINS:
        ray, gl = Renderer(domain, size), Renderer(domain, size, backend="gl")
        for state in random_states(domain, 60 + 12 * poses)[60::12]:
            ray_row.append(ray.render(state))
            gl_row.append(gl.render(state))
    save_png(path, strip([("ray", np.stack(ray_row)), ("gl", np.stack(gl_row))]))


if __name__ == "__main__":
    child_main(sys.argv[1], int(sys.argv[2]))
