from __future__ import annotations

import errno
import signal

import pytest
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner, Result

from bitagent_cli.failing import Commands
from stages.core.errors import BadInput, Interrupted


def run_raising(error: BaseException) -> Result:
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    @app.command()
    def other() -> None: ...

    return CliRunner().invoke(app, ["fail"])


def test_bad_input_is_one_sentence_and_2() -> None:
    result = run_raising(BadInput("this is wrong; do that"))
    assert (result.exit_code, result.stderr, result.stdout) == (2, "error: this is wrong; do that\n", "")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_after_a_checkpoint_has_its_own_code(signum: int, code: int) -> None:
    result = run_raising(Interrupted(signum, "progress saved"))
    assert (result.exit_code, result.stderr) == (code, "progress saved\n")


def test_ctrl_c_outside_a_loop() -> None:
    assert run_raising(KeyboardInterrupt()).exit_code == 130


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")],
)
def test_disk_trouble_is_named(code: int, words: str) -> None:
    result = run_raising(OSError(code, "x", "runs/a"))
    assert result.exit_code == 2
    assert "runs/a" in result.stderr and words in result.stderr and result.stderr.count("\n") == 1


def test_a_full_disk_seen_by_safetensors() -> None:
    result = run_raising(SafetensorError('IoError(Os { code: 28, message: "No space left on device" })'))
    assert result.exit_code == 2 and "disk is full" in result.stderr


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "x"), SafetensorError("odd")])
def test_a_bug_keeps_its_exception(error: Exception) -> None:
    result = run_raising(error)
    assert result.exit_code == 1 and result.exception is error
