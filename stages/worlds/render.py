"""Frames from physics states, as a function of the positions alone.

    frame = Renderer("walker").render(state)                    # (3, 64, 64) uint8
    frames = render_states("walker", states, size=224)

`ray` (default) needs no OpenGL and gives the same bits in every process; `gl` is MuJoCo's own renderer; `genrl` is
the same with shadows, reflections and multisampling: the look of the frames that `collect --import` takes.
"""

from __future__ import annotations

from copy import copy

import numpy as np

from stages import worlds
from stages.runtime.errors import BadInput, nearest
from stages.worlds.opengl import GLDrawer
from stages.worlds.raycast import RayCaster

BACKENDS = ("ray", "gl", "genrl")


class Renderer:
    """Draws the states of one domain.

    `camera` is the model's camera index (None: the side view used by all tasks).
    Raises BadInput for an unknown domain, backend or camera, and for gl and genrl where no OpenGL works.
    """

    def __init__(self, domain: str, size: int = 64, camera: int | None = None, backend: str = "ray") -> None:
        if domain not in worlds.BODIES:
            raise BadInput(f"unknown domain {domain!r}: {nearest(domain, worlds.BODIES)}")
        if backend not in BACKENDS:
            raise BadInput(f"unknown renderer {backend!r}: {nearest(backend, BACKENDS)}")
        if size < 1:
            raise BadInput(f"image size {size} is not positive: give at least 1")
        self.model = worlds.compile_model(domain)
        self.domain, self.size, self.backend = domain, size, backend
        self.camera = worlds.BODIES[domain].camera if camera is None else camera
        if not 0 <= self.camera < self.model.ncam:
            raise BadInput(f"{domain} has no camera {camera}: choose 0 to {self.model.ncam - 1}")
        self._draw: RayCaster | GLDrawer  # (nq,) → (3, size, size) uint8
        if backend == "ray":
            self._draw = RayCaster(self.model, size, self.camera)
        else:
            own = copy(self.model)  # which takes the size of its frames
            self._draw = GLDrawer(own, size, self.camera, effects=backend == "genrl")

    def render(self, state: np.ndarray) -> np.ndarray:
        """(nq + nv,) physics state → (3, size, size) uint8. Raises BadInput for another length, NaN or infinity."""
        expected = self.model.nq + self.model.nv
        if np.shape(state) != (expected,):
            raise BadInput(f"a {self.domain} state has {expected} numbers, got shape {np.shape(state)}")
        if not np.isfinite(state).all():
            raise BadInput(f"a {self.domain} state holds NaN or infinity: it was damaged, or its simulation diverged")
        return self._draw(np.asarray(state[: self.model.nq], np.float64))


def render_states(
    domain: str, states: np.ndarray, size: int = 64, camera: int | None = None, backend: str = "ray"
) -> np.ndarray:
    """(N, nq + nv) physics states → (N, 3, size, size) uint8."""
    renderer = Renderer(domain, size, camera, backend)
    frames = np.empty((len(states), 3, size, size), np.uint8)
    for i, state in enumerate(states):
        frames[i] = renderer.render(state)
    return frames
