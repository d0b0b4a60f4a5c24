"""The tasks as Gymnasium environments (`pip install "bitagent[gym]"`).

    import gymnasium
    import stages.worlds.gym  # registers bitagent/walker-stand-v0 and the like
    env = gymnasium.make("bitagent/walker-stand-v0", obs="pixels", size=64)

One step is one decision (two control steps); an episode is truncated after 500.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stages import worlds
from stages.runtime.errors import BadInput
from stages.worlds.tasks import ACTION_REPEAT, TASKS, Step, get_task, make_env

try:
    import gymnasium
    from gymnasium import spaces
except ImportError:
    raise BadInput('Gymnasium is not installed: pip install "bitagent[gym]"') from None

OBSERVATIONS = ("pixels", "state")


class TaskEnv(gymnasium.Env):
    """A task of ours behind Gymnasium's interface.

    `obs` is "pixels" (size, size, 3) uint8 or "state", the suite's physics observation (D,) float32.
    Rewards are sums over the two control steps. `info["state"]` is the physics state (nq + nv,) float64.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        domain: str,
        task: str,
        obs: str = "pixels",
        size: int = 64,
        backend: str = "ray",
        render_mode: str | None = None,
    ) -> None:
        get_task(domain, task)
        if obs not in OBSERVATIONS:
            raise BadInput(f"unknown observation {obs!r}: use pixels or state")
        rate = round(1 / (worlds.BODIES[domain].control_timestep * ACTION_REPEAT))
        self.metadata = {**self.metadata, "render_fps": rate}
        if render_mode not in (None, "rgb_array"):
            raise BadInput(f"unknown render mode {render_mode!r}: use rgb_array or none")
        self.render_mode, self.obs, self.size, self.backend = render_mode, obs, size, backend
        self.env = make_env(domain, task)
        self.action_space = spaces.Box(-1, 1, (self.env.action_dim,), np.float32)
        seen = spaces.Box(-np.inf, np.inf, (self.env.observation_dim,), np.float32)
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8) if obs == "pixels" else seen

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode drawn from Gymnasium's own generator, so `seed` decides all that follow it too."""
        super().reset(seed=seed)
        step = self.env.reset(int(self.np_random.integers(2**32)))
        return self._observation(step), {"state": step.state}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One decision: (observation, reward, terminated, truncated, info)."""
        step = self.env.step(action)
        return self._observation(step), step.reward, step.is_terminal, step.is_last, {"state": step.state}

    def render(self) -> np.ndarray | None:
        """(size, size, 3) uint8 with render_mode="rgb_array", else None."""
        return self._pixels() if self.render_mode == "rgb_array" else None

    def _observation(self, step: Step) -> np.ndarray:
        return self._pixels() if self.obs == "pixels" else step.observation

    def _pixels(self) -> np.ndarray:
        return np.ascontiguousarray(self.env.render(self.size, backend=self.backend).transpose(1, 2, 0))


def register() -> None:
    """Make every task known to gymnasium.make as bitagent/<domain>-<task>-v0, underscores as dashes."""
    for task in TASKS:
        name = f"bitagent/{task.domain}-{task.name.replace('_', '-')}-v0"
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=TaskEnv, kwargs={"domain": task.domain, "task": task.name})


register()
