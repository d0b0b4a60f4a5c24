"""MuJoCo and the parts of dm_control used here, imported in one place and quietly.

Importing dm_control looks for an OpenGL window system. Nothing here needs one, so its absence is not
reported; only a MUJOCO_GL that names a missing library stops the import, and then in one sentence.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from stages.runtime.errors import BadInput

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import mujoco
        from dm_control.mujoco import Physics
        from dm_control.rl.control import flatten_observation
        from dm_control.suite import base, cheetah, common, quadruped, walker
        from dm_control.utils.rewards import tolerance
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        if isinstance(error, ImportError) and error.name == "dm_control":
            raise BadInput("dm_control is not installed: pip install --no-deps dm_control -c constraints.txt") from None
        if "MUJOCO_GL" not in os.environ:
            raise
        raise BadInput(
            f"MUJOCO_GL={os.environ['MUJOCO_GL']} asks for an OpenGL that cannot be loaded here; "
            "unset it: the default renderer needs none"
        ) from None

__all__ = ["Physics", "base", "cheetah", "common", "flatten_observation", "mujoco", "quadruped", "tolerance", "walker"]


@contextmanager
def no_compiler_advice() -> Iterator[None]:
    """Silence MuJoCo's advice about deprecated attributes while it compiles the suite's models."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
