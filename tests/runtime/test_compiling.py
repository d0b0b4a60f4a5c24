"""Compiling: when, what a machine lacks for it, and small functions instead of the whole loss."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
import torch

from stages.runtime import compiling
from stages.runtime.compiling import fusible, fusing
from stages.runtime.errors import BadInput

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_when_to_compile() -> None:
    assert not compiling.should_compile("auto", CPU) and not compiling.should_compile("off", CUDA)


def test_on_cuda_what_triton_lacks_is_named_and_auto_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It compiles a launcher in C, against Python's headers. Capturing needs neither."""
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install triton.*compile=off"):
        compiling.should_compile("on", CUDA)
    assert not compiling.should_compile("auto", CUDA)
    assert compiling.should_capture("auto", CUDA, 1) and not compiling.should_capture("off", CUDA, 1)
    assert not compiling.should_capture("on", CUDA, 2) and not compiling.should_capture("on", CPU, 1)
    monkeypatch.setattr(compiling, "find_spec", lambda name: "found")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="install gcc"):
        compiling.should_compile("on", CUDA)
    fake_program(tmp_path / "clang")
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(BadInput, match=r"Python\.h; install Python's headers"):
        compiling.should_compile("on", CUDA)
    (tmp_path / "Python.h").touch()
    assert compiling.should_compile("auto", CUDA)


def test_what_is_compiled_is_kept_with_the_run_unless_the_user_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    compiling.keep_compiled(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / ".compiled" / "triton")


def test_compiling_without_a_cpp_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A C compiler alone does not do; CXX names another one, or one that is not there."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_program(tmp_path / "gcc")
    with pytest.raises(BadInput, match=r"no C\+\+ compiler.*install g\+\+.*compile=off"):
        compiling.should_compile("on", CPU)
    fake_program(tmp_path / "mine++")
    monkeypatch.setenv("CXX", "mine++")
    assert compiling.should_compile("on", CPU) and compiling.cpp_compiler() == str(tmp_path / "mine++")
    monkeypatch.setenv("CXX", "yours++")
    with pytest.raises(BadInput, match="CXX"):
        compiling.should_compile("on", CPU)


def test_compiling_where_no_code_may_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where /tmp is mounted noexec: mapping a file as code fails there."""
    real, refused = mmap.mmap, {tmp_path / "noexec"}
    (tmp_path / "noexec").mkdir()
    fake_program(tmp_path / "g++")
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "noexec" / "not yet made"))

    def refuse(descriptor: int, *rest: int) -> mmap.mmap:
        if refused & set(Path(os.readlink(f"/proc/self/fd/{descriptor}")).parents):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return real(descriptor, *rest)

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(BadInput, match=r"noexec; set TORCHINDUCTOR_CACHE_DIR"):
        compiling.should_compile("on", CPU)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert compiling.should_compile("on", CPU)


def fake_program(file: Path) -> None:
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)


# ---------------------------------------------------------------------------- small compiled functions


def test_a_fusible_function_is_compiled_within_fusing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And again outside it after an error inside."""
    calls: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: lambda x: calls.append("compiled") or function(x))
    doubled = fusible(lambda x: 2 * x)
    one = torch.ones(2)
    assert torch.equal(doubled(one), 2 * one) and not calls
    with fusing(False):
        doubled(one)
    assert not calls
    with pytest.raises(ZeroDivisionError), fusing(True):
        assert torch.equal(doubled(one), 2 * one) and calls == ["compiled"]
        with fusing(False):
            doubled(one)
        _ = 1 / 0
    doubled(one)
    assert calls == ["compiled"]
