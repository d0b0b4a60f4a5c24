"""Full disks, read-only folders, and two writers: one sentence, exit code 2, nothing damaged, and it goes on later."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.runtime import storage
from tests.faults.forks import Ended
from tests.faults.pipeline import Pipeline, Step, find


def assert_refused(ended: Ended, *words: str) -> None:
    assert ended.code == 2 and not ended.hung, ended
    assert ended.last_line.startswith("error: ") and "Traceback" not in ended.stderr
    for word in words:
        assert word in ended.last_line, ended.last_line


def assert_goes_on(pipeline: Pipeline, step: Step, root: Path) -> None:
    """Nothing was put in place, no draft is left, and the same command now makes the very artifacts."""
    assert not any((root / place).exists() for place in step.makes)
    assert not list(root.rglob(".*.tmp"))
    ended = pipeline.run(step, root)
    assert ended.code == 0, ended
    assert pipeline.ids(step, root) == pipeline.ids(step)


@pytest.mark.parametrize(("name", "largest"), [("collect random", 2**20), ("pretrain", 2**15)])
def test_a_limit_on_file_sizes(pipeline: Pipeline, tmp_path: Path, name: str, largest: int) -> None:
    step = find(name)
    root = pipeline.branch(step, tmp_path / "small")
    assert_refused(pipeline.run(step, root, largest_file=largest), "ulimit -f")
    assert_goes_on(pipeline, step, root)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB of its own, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a file system needs a privilege this process does not have")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    """Use up the file system but for `leave` bytes."""
    ballast = place / "ballast"
    state = os.statvfs(place)
    free = state.f_bavail * state.f_frsize - leave
    with ballast.open("wb") as file:
        for _ in range(free // 4096):
            file.write(bytes(4096))
    return ballast


@pytest.mark.parametrize(("name", "leave"), [
    ("collect random", 2**20), ("embed", 2**16), ("pretrain", 2**16), ("evaluate", 2**13),
])  # fmt: skip
def test_a_full_disk(pipeline: Pipeline, disk: Path, name: str, leave: int) -> None:
    step = find(name)
    root = disk / "run"
    for place in step.reads:
        shutil.copytree(pipeline.root / place, root / place)
    root.mkdir(exist_ok=True)
    ballast = fill(disk, leave)
    assert_refused(pipeline.run(step, root), "the disk is full")
    ballast.unlink()
    assert_goes_on(pipeline, step, root)


def test_a_read_only_folder(pipeline: Pipeline, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    step = find("pretrain")
    if os.geteuid() == 0:  # permissions do not stop root; a read-only file system does
        disk = request.getfixturevalue("disk")
        shutil.copytree(pipeline.branch(step, tmp_path / "run"), disk, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert_refused(pipeline.run(step, disk), "read-only", "--out")
    else:
        root = pipeline.branch(step, tmp_path / "run")
        (root / "walker-smoke").chmod(0o555)
        assert_refused(pipeline.run(step, root), "permission denied", "--out")
        (root / "walker-smoke").chmod(0o755)


@pytest.mark.parametrize("name", ["collect random", "embed", "pretrain", "behave"])
def test_a_second_writer_is_refused(pipeline: Pipeline, tmp_path: Path, name: str) -> None:
    step = find(name)
    root = pipeline.branch(step, tmp_path / "shared")
    with storage.locked(root / step.makes[0]):
        assert_refused(pipeline.run(step, root), "another process is writing", str(root / step.makes[0]))
    assert not (root / step.makes[0]).exists()


def test_of_two_at_the_same_time_one_writes(pipeline: Pipeline, tmp_path: Path) -> None:
    step = find("pretrain")
    root = pipeline.branch(step, tmp_path / "shared")
    words = pipeline.words(step, root)
    first, second = sorted(pipeline.door.together([words, words]), key=lambda ended: ended.code)
    assert first.code == 0, first
    assert_refused(second, "another process is writing")
    assert pipeline.ids(step, root) == pipeline.ids(step)
