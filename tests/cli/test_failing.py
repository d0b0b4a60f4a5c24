from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner, Result

from bitagent_cli.failing import Commands
from stages.runtime.errors import BadInput, Interrupted
from tests.data.synthetic import ROOT, make_dataset


def run_raising(error: BaseException) -> Result:
    def fail() -> None:
        raise error

    return run_calling(fail)


def run_calling(function: Callable[[], None]) -> Result:
    """The command `bitagent fail --fresh --prompt "two words" --out x`, which calls `function`."""
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @app.command()
    def fail(fresh: bool = False, prompt: str = "", out: str = "") -> None:
        function()

    @app.command()
    def other() -> None: ...

    return CliRunner().invoke(app, ["fail", "--fresh", "--prompt", "two words", "--out", "x"])


def test_bad_input_is_one_sentence_and_2() -> None:
    result = run_raising(BadInput("this is wrong; do that"))
    assert (result.exit_code, result.stderr, result.stdout) == (2, "error: this is wrong; do that\n", "")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_after_a_checkpoint_has_its_own_code(signum: int, code: int) -> None:
    result = run_raising(Interrupted(signum, "progress saved", "bitagent fail"))
    assert (result.exit_code, result.stderr) == (
        code,
        "progress saved; continue with: bitagent fail --prompt 'two words' --out x\n",
    )


def test_ctrl_c_outside_a_loop() -> None:
    result = run_raising(KeyboardInterrupt())
    assert result.exit_code == 130 and "continue with: bitagent fail --prompt 'two words' --out x" in result.stderr


def test_sigterm_outside_a_loop() -> None:
    """It unwinds: what a `with` promised to clean up is cleaned up, and the handler before is back."""
    left: list[str] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            left.append("clean")

    before = signal.getsignal(signal.SIGTERM)
    result = run_calling(work)
    assert result.exit_code == 143 and result.stderr.startswith("stopped by SIGTERM; continue with: bitagent fail")
    assert left == ["clean"] and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_too_little_memory_is_named(error: Exception) -> None:
    result = run_raising(error)
    assert result.exit_code == 2 and "not enough memory" in result.stderr and "--set" in result.stderr


def test_a_message_cannot_steer_the_terminal() -> None:
    result = run_raising(BadInput("a file named \x1b[2J\nerror: it"))
    assert result.stderr == "error: a file named \\x1b[2J\\nerror: it\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EFBIG, "ulimit"),
        (errno.ENOTDIR, "is a file"),
        (errno.ENAMETOOLONG, "too long"),
    ],
)
def test_disk_trouble_is_named(code: int, words: str) -> None:
    result = run_raising(OSError(code, "x", "runs/a"))
    assert result.exit_code == 2
    assert "runs/a" in result.stderr and words in result.stderr and result.stderr.count("\n") == 1


def test_another_out_helps_only_what_lies_there(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "mend the links, and run" in run_raising(OSError(errno.ELOOP, "x", str(loop / "a"))).stderr
    below, elsewhere, unnamed = (
        run_raising(OSError(errno.ENOSPC, "x", *place)).stderr for place in (["x/data/a"], ["/some/cache/a"], [])
    )
    assert "choose another --out" in below and "choose another --out" in unnamed
    assert elsewhere == "error: /some/cache/a: the disk is full: free some space, and run the same command again\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT, errno.ENOSYS])
def test_shared_memory_is_named(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A semaphore between processes lies in /dev/shm, which its error does not say; other files there have a name."""

    class Refused:
        SEM_VALUE_MAX = 1

        def __init__(self, *_: Any) -> None:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr("_multiprocessing.SemLock", Refused)
    semaphore = run_calling(lambda: get_context("spawn").Event() and None)
    for result in (semaphore, run_raising(OSError(code, os.strerror(code), "/dev/shm/torch_1"))):
        assert result.exit_code == 2 and result.stderr.startswith("error: /dev/shm, which worker processes need")
        assert "--shm-size" in result.stderr and "--out" not in result.stderr and result.stderr.count("\n") == 1


# ---------------------------------------------------------------------------- an output that takes nothing


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("run") / "data" / "random").path


def run_printing(stdout: int, *words: str | Path, unbuffered: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-u"] if unbuffered else []), "-m", "bitagent_cli", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=120)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_full_output_is_one_sentence(dataset: Path, unbuffered: bool) -> None:
    said = "error: what is printed cannot be written (no space left on device): send it elsewhere, or free some space\n"
    with open("/dev/full", "wb") as full:
        for words in (["inspect", dataset], ["--help"]):
            ran = run_printing(full.fileno(), *words, unbuffered=unbuffered)
            assert (ran.returncode, ran.stderr) == (2, said), words


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_reader_that_left_is_no_error(dataset: Path, unbuffered: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = run_printing(writer, "inspect", dataset, unbuffered=unbuffered)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.parametrize(("said", "words"), [("No space left on device", "disk is full"), ("File too large", "ulimit")])
def test_a_full_disk_seen_by_safetensors(said: str, words: str) -> None:
    result = run_raising(SafetensorError(f'IoError(Os {{ code: 28, message: "{said}" }})'))
    assert result.exit_code == 2 and words in result.stderr


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "x"), SafetensorError("odd")])
def test_a_bug_keeps_its_exception(error: Exception) -> None:
    result = run_raising(error)
    assert result.exit_code == 1 and result.exception is error
