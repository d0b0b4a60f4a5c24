"""Folders that come and go whole."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from stages.runtime import storage
from stages.runtime.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_goes_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / ".work.gone").mkdir()  # left by a kill
    storage.remove_folder(tmp_path / "work")
    storage.remove_folder(tmp_path / "work")
    assert not any(tmp_path.iterdir())


def test_a_second_writer_is_refused_or_waits(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with storage.locked(tmp_path / "made", wait=True):
            order.append("second")

    waiting = threading.Thread(target=second)
    with storage.locked(tmp_path / "made"):
        with pytest.raises(BadInput, match="another process is writing"), storage.locked(tmp_path / "made"):
            pass
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


# ---------------------------------------------------------------------------- what the environment refuses


def refusing(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, code: int) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, name, refuse)


def test_weights_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        storage.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    finally:
        os.umask(mask)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_saved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    with storage.draft(tmp_path / "made") as draft:
        (draft / "file").write_text("content")
        storage.replace_folder(draft, tmp_path / "made")
    assert (tmp_path / "made" / "file").read_text() == "content"
    refusing(monkeypatch, os, "fsync", errno.EIO)
    with pytest.raises(OSError):
        storage.fsync(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("left", [False, True])
def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, left: bool
) -> None:
    """Also where an earlier command has left the file of its lock."""
    if left:
        (tmp_path / ".made.lock").touch()
    monkeypatch.setattr(storage, "_warned", set())
    refusing(monkeypatch, fcntl, "flock", code)
    for _ in range(2):
        with storage.locked(tmp_path / "made"):
            pass
    assert capsys.readouterr().err.count("see to it that no other command writes there") == 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ENODEV, errno.ESTALE])
def test_an_errno_of_the_environment_is_no_corruption(code: int) -> None:
    said = str(storage.corrupted(Path("a.safetensors"), OSError(code, os.strerror(code))))
    assert "cannot be read" in said and ":" in said
    assert "corrupted" not in said and "delete" not in said and "--fresh" not in said
    native = storage.corrupted(Path("a.safetensors"), SafetensorError(f"I/O error: refused (os error {code})"))
    assert str(native) == said


def test_only_content_that_is_wrong_is_to_be_deleted() -> None:
    wrong, gone = ValueError("checksum differs"), FileNotFoundError("No such file or directory")
    assert "delete its folder" in str(storage.corrupted(Path("a"), wrong))
    assert "delete" not in str(storage.corrupted(Path("a"), gone))


def test_no_other_message_advises_to_delete() -> None:
    """Over the product's own words: nothing but a wrong checksum or format says that something may go."""
    advice = re.compile(r"\b(delete|remove|rm -)", re.IGNORECASE)
    allowed = {"); delete its folder and run the command that made it again (--fresh)"}
    found = []
    for top in ("stages", "bitagent_cli"):
        for file in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("BadInput", "Finding"):
                    words = [
                        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                    ]
                    found += [w for w in words if advice.search(w) and w not in allowed]
    assert set(found) <= {
        "; remove the file, or import without --strict to skip it",  # an episode of the user's that is no episode
        ", which is not a word; quote it or remove it",  # a key of the user's preset
    }


def test_a_folder_that_is_a_link_stays_one(tmp_path: Path) -> None:
    """What is made anew goes where the link leads, to the other disk, however often."""
    other, link = tmp_path / "other" / "made", tmp_path / "run" / "made"
    other.mkdir(parents=True)
    link.parent.mkdir()
    link.symlink_to(other)
    for content in ("one", "two"):
        with storage.draft(link) as draft:
            (draft / "file").write_text(content)
            storage.replace_folder(draft, link)
        assert link.is_symlink() and (other / "file").read_text() == content
