"""Compiling what repeats: small functions, each one kernel, in seconds where an unrolled loss takes minutes.

@fusible
def gates(...): ...

with fusing(should_compile("auto", device)):
    loss(batch)                                 # gates(...) runs compiled in here, as written elsewhere
"""

from __future__ import annotations

import functools
import mmap
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import torch
from pydantic import BeforeValidator

from stages.runtime.errors import BadInput


def _worded(choice: Any) -> Any:
    """YAML reads a bare `on` or `off` as a boolean."""
    return ("off", "on")[choice] if isinstance(choice, bool) else choice


Compile = Annotated[Literal["auto", "off", "on"], BeforeValidator(_worded)]


def should_compile(choice: Compile, device: torch.device) -> bool:
    """`auto` compiles on CUDA, where it can. Raises BadInput for `on` where nothing can be compiled for the device."""
    if choice == "off" or (choice == "auto" and device.type == "cpu"):
        return False
    lack = compiler_lack(device.type)
    if lack and choice == "on":
        raise BadInput(f"compile=on cannot be used: {lack[0]}; {lack[1]}, or use compile=off")
    return lack is None


def should_capture(choice: Compile, device: torch.device, processes: int) -> bool:
    """Whether an update is replayed as a CUDA graph: unless compile=off, by one process alone. It needs no compiler."""
    return choice != "off" and device.type == "cuda" and processes == 1


def keep_compiled(folder: Path) -> None:
    """Let what is compiled from here on be kept below `folder`, for the next start. What the user set stays."""
    for name, kind in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ.setdefault(name, str((folder / ".compiled" / kind).absolute()))


def cpp_compiler() -> str | None:
    """The path of the C++ compiler that torch.compile runs: CXX, else g++ (macOS: clang++); None without one."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


def c_compiler() -> str | None:
    """The path of the C compiler that Triton runs for CUDA: CC, else gcc or clang; None without one."""
    named = os.environ.get("CC")
    return shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang")


def compiler_lack(kind: str = "cpu") -> tuple[str, str] | None:
    """What torch.compile lacks on this machine for a `kind` of device, and what to do; None when it lacks nothing."""
    if kind == "cpu" and cpp_compiler() is None:
        return "no C++ compiler was found", "install g++, or set CXX to the path of one"
    if kind == "cuda":
        if find_spec("triton") is None:
            return "the package triton is not installed", "pip install triton"
        if c_compiler() is None:
            return "Triton found no C compiler", "install gcc, or set CC to the path of one"
        if not (header := Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
            return f"Triton needs {header}", "install Python's headers (python3-dev)"
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()).absolute()
    while not folder.exists():
        folder = folder.parent
    if not runs_code(folder):
        remedy = "set TORCHINDUCTOR_CACHE_DIR to a folder that can be written and is not mounted noexec"
        return f"compiled code cannot be kept and run in {folder}", remedy
    return None


def runs_code(folder: Path) -> bool:
    """Whether files can be made in a folder and mapped as code, as a library is that is loaded from there."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(mmap.PAGESIZE)
            mmap.mmap(file.fileno(), mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------------- small compiled functions

P = ParamSpec("P")
R = TypeVar("R")
SHAPES = 64  # that one function may be compiled for: a batch, a rollout, a reward, with gradient and without

_fused = False


@contextmanager
def fusing(on: bool) -> Iterator[None]:
    """In here `fusible` functions run compiled, when `on`."""
    global _fused
    before, _fused = _fused, on
    try:
        with torch._dynamo.config.patch(recompile_limit=SHAPES):
            yield
    finally:
        _fused = before


def fusible(function: Callable[P, R]) -> Callable[P, R]:
    """A function of tensors that becomes a kernel or two when compiled; within `fusing` it is."""
    compiled: Callable[P, R] = torch.compile(function, dynamic=False, fullgraph=True)

    @functools.wraps(function)
    def either(*args: P.args, **kwargs: P.kwargs) -> R:
        return (compiled if _fused else function)(*args, **kwargs)

    return either
