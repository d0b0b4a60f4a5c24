"""Training on CUDA without a GPU: what the first contact would stumble over. The checks are in worker.py.

They run in a process of their own, under a small library that shows PyTorch a device which is not there. Needs g++
and Linux.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cuda_fake.worker import CHECKS

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
PACKAGE = Path(torch.__file__).parent

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++"),
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this PyTorch knows CUDA itself: see test_update.py"),
]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fake_cuda.cpp as a library."""
    made = tmp_path_factory.mktemp("cuda") / "fake_cuda.so"
    flags = ["-std=c++20", "-O0", "-w", "-fno-rtti", "-shared", "-fPIC", f"-I{PACKAGE / 'include'}"]
    link = [f"-L{PACKAGE / 'lib'}", "-lc10", f"-Wl,-rpath,{PACKAGE / 'lib'}"]
    subprocess.run(["g++", *flags, str(HERE / "fake_cuda.cpp"), "-o", str(made), *link], check=True)
    return made


def run_checks(library: Path, names: list[str]) -> dict[str, str]:
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.cuda_fake.worker", *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("kind", sorted({name.split(":")[0] for name in CHECKS}))
def test_on_one_device_without_waiting(library: Path, kind: str) -> None:
    """No operator on two devices, no copy between them and no value read back; kernels as many as are allowed."""
    found = run_checks(library, [name for name in CHECKS if name.split(":")[0] == kind])
    assert found and not any(found.values()), "\n".join(f"{k}: {v}" for k, v in found.items() if v)
