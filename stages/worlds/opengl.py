"""Frames through OpenGL, for those who want MuJoCo's own pictures: hardware EGL, or software where there is none.

The library is chosen here and not by MUJOCO_GL alone, because PyOpenGL binds one platform for the life
of a process: each candidate is first tried in a child process, so a driver that fails or crashes costs
nothing but the try.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import weakref

import numpy as np

from stages.runtime.errors import BadInput
from stages.worlds.suite import mujoco

PLATFORMS = ("egl", "osmesa")  # in order of preference
PROBE = (
    "import importlib, sys; c = importlib.import_module('mujoco.' + sys.argv[1]).GLContext(8, 8); "
    "c.make_current(); from OpenGL import GL; print(GL.glGetString(GL.GL_RENDERER).decode()); c.free()"
)


@functools.cache
def find_platform() -> tuple[str, str]:
    """(platform, name of the renderer) of the first OpenGL that works here; MUJOCO_GL narrows the choice.

    Raises BadInput when none does.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    for platform in (asked,) if asked in (*PLATFORMS, "glfw") else PLATFORMS:
        command = [sys.executable, "-W", "ignore", "-c", PROBE, platform]
        tried = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        if tried.returncode == 0:
            return platform, tried.stdout.strip().splitlines()[-1]
    raise BadInput(
        f"no OpenGL works here ({asked or ' or '.join(PLATFORMS)}): install libegl1 or libosmesa6, "
        "or use the ray renderer, which needs none"
    )


class GLDrawer:
    """MuJoCo's renderer; `effects` adds shadows, reflections and multisampling (slow in software)."""

    def __init__(self, model: mujoco.MjModel, size: int, camera: int, effects: bool) -> None:
        platform, self.device = find_platform()
        try:
            context_type = importlib.import_module(f"mujoco.{platform}").GLContext
        except (ImportError, AttributeError) as error:
            raise BadInput(
                f"OpenGL is already bound to another platform in this process ({str(error).splitlines()[0]}); "
                f"set MUJOCO_GL={platform} before starting Python"
            ) from None
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if not effects:
            model.vis.quality.offsamples = 0
        self.model, self.size, self.data = model, size, mujoco.MjData(model)
        self.window = context_type(size, size)
        self.window.make_current()
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self.context)
        # contexts left to the interpreter's own teardown raise from half-dismantled modules
        weakref.finalize(self, _release, self.context, self.window)
        self.scene, self.option = mujoco.MjvScene(model, maxgeom=1000), mujoco.MjvOption()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.scene.flags[flag] = effects
        self.view = mujoco.MjvCamera()
        self.view.type, self.view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera

    def __call__(self, qpos: np.ndarray) -> np.ndarray:
        """(nq,) positions → (3, size, size) uint8."""
        model, data = self.model, self.data
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        self.window.make_current()
        mujoco.mjv_updateScene(model, data, self.option, None, self.view, mujoco.mjtCatBit.mjCAT_ALL.value, self.scene)
        frame = np.empty((self.size, self.size, 3), np.uint8)
        whole = mujoco.MjrRect(0, 0, self.size, self.size)
        mujoco.mjr_render(whole, self.scene, self.context)
        mujoco.mjr_readPixels(frame, None, whole, self.context)
        return np.ascontiguousarray(frame[::-1].transpose(2, 0, 1))  # OpenGL counts rows from the bottom


def _release(context: mujoco.MjrContext, window: object) -> None:
    window.make_current()  # type: ignore[attr-defined]
    context.free()
    window.free()  # type: ignore[attr-defined]
