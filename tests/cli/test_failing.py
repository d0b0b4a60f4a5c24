from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable

import pytest
import torch
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner, Result

from bitagent_cli.failing import Commands
from stages.runtime.errors import BadInput, Interrupted


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


@pytest.mark.parametrize(("said", "words"), [("No space left on device", "disk is full"), ("File too large", "ulimit")])
def test_a_full_disk_seen_by_safetensors(said: str, words: str) -> None:
    result = run_raising(SafetensorError(f'IoError(Os {{ code: 28, message: "{said}" }})'))
    assert result.exit_code == 2 and words in result.stderr


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "x"), SafetensorError("odd")])
def test_a_bug_keeps_its_exception(error: Exception) -> None:
    result = run_raising(error)
    assert result.exit_code == 1 and result.exception is error
