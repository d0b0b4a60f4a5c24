"""Damaged, edited and forged files of every kind, and presets full of mistakes: a seeded share of `make torture`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.runtime import artifacts, checkpoints, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput
from stages.runtime.names import backbone_folder
from tests.data.synthetic import ROOT, make_dataset, write_meta
from tests.faults import mutants
from tests.faults.pipeline import Pipeline
from tests.faults.torture import Tally, cases, outcome, torture_files, torture_presets


def test_damaged_edited_and_forged_files(pipeline: Pipeline, tmp_path: Path) -> None:
    root = tmp_path / "sound"
    shutil.copytree(pipeline.root / "walker-smoke", root / "walker-smoke")
    tally = Tally(tmp_path / "torture.json")
    torture_files(root, tally, wanted=200, seed=1)
    assert not tally.bad
    assert {case.name.split()[0] for case in cases(root)} <= {key.split()[-1] for key in tally.counts}


def test_mutated_presets(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "torture.json")
    torture_presets(tmp_path, tally, wanted=150, seed=1)
    assert not tally.bad
    assert tally.counts["preset read"] and tally.counts["preset refused"]


def test_the_counting_sees_what_it_should() -> None:
    """A torture that could not fail would prove nothing."""

    def recurse() -> None:
        recurse()

    assert outcome(lambda: None) == "read"
    assert "ZeroDivisionError" in outcome(lambda: 1 // 0)
    assert "RecursionError" in outcome(recurse)

    def refuse() -> None:
        raise BadInput("no")

    assert outcome(refuse) == "refused"


def test_a_flaw_in_reading_would_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its checksums, damaged tensors are read as if nothing had happened: the torture says so."""
    import random

    import torch

    from tests.faults.torture import mutate

    made = artifacts.save(tmp_path / "a", "x", {"t": {"w": torch.arange(1000)}}, domain="walker", config={}, seed=0)
    case = mutants.Case("model safetensors", made.path / "t.safetensors", lambda: made.tensors("t"))
    tally = Tally(tmp_path / "torture.json")
    for seed in range(20):
        mutate(case, random.Random(seed), tally, "damaged")
    assert not tally.bad
    monkeypatch.setattr(artifacts, "check_file", lambda artifact, name: None)
    for seed in range(20):
        mutate(case, random.Random(seed), tally, "damaged")
    assert tally.counts["silent corruption"] > 3


@pytest.fixture
def dataset(tmp_path: Path) -> Artifact:
    return make_dataset(tmp_path / "data")


def test_a_newer_schema_asks_for_an_update(dataset: Artifact, tmp_path: Path) -> None:
    write_meta(dataset.path, dataset.meta | {"schema": storage.SCHEMA + 1})
    with pytest.raises(BadInput, match=r"newer BiTAgent \(schema 2, this one reads 1\); update"):
        artifacts.load(dataset.path)
    checkpoints.write(tmp_path / "model", 3, {}, {})
    file = tmp_path / "model.checkpoint" / "checkpoint.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(BadInput, match="newer BiTAgent"):
        checkpoints.read(tmp_path / "model", {})


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", ".hidden", "x" * 300, "a\x00b", "/etc/passwd", ""])
def test_names_of_files_stay_inside(dataset: Artifact, name: str) -> None:
    write_meta(dataset.path, dataset.meta | {"files": {name: "0"}})
    with pytest.raises(BadInput, match="corrupted"):
        artifacts.load(dataset.path)


@pytest.mark.parametrize("name", ["..", ".", "/", "../..", ".cache", "a\nb"])
def test_a_backbone_cannot_name_another_folder(name: str) -> None:
    with pytest.raises(BadInput, match="cannot name a folder"):
        backbone_folder(name)


def test_backbones_in_folders_keep_their_names() -> None:
    assert backbone_folder("google/siglip2-base") == "google--siglip2-base"
    assert (
        backbone_folder("./models/clip/")
        == backbone_folder("models/clip")
        == backbone_folder("x/../models/clip")
        == "models--clip"
    )
    assert backbone_folder("/srv/models/clip") == "srv--models--clip"


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"\xff\xfe", b"null", b'{"schema": 1e999}', b'{"schema": true}']
)
def test_an_artifact_json_that_is_none(dataset: Artifact, content: bytes) -> None:
    (dataset.path / "artifact.json").write_bytes(content)
    with pytest.raises(BadInput, match="corrupted"):
        artifacts.load(dataset.path)


def test_an_endless_artifact_json_is_not_read(dataset: Artifact) -> None:
    with (dataset.path / "artifact.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BadInput, match="larger than 16 MiB"):
        artifacts.load(dataset.path)


def test_a_wrong_opengl_is_one_sentence_wherever_it_is_met() -> None:
    """MUJOCO_GL=nonsense breaks the import of MuJoCo itself; every room that imports it says so in words."""
    code = """
import importlib, json, sys
from stages.runtime.errors import BadInput
said = {}
for room in sys.argv[1:]:
    try:
        importlib.import_module(room)
    except Exception as error:
        said[room] = [type(error).__name__, str(error)]
    for name in [n for n in sys.modules if n.startswith("stages") and n != "stages.runtime.errors"]:
        del sys.modules[name]
print(json.dumps(said))
"""
    rooms = ["tasks", "render", "opengl", "raycast", "suite", "motion"]
    names = [*(f"stages.worlds.{room}" for room in rooms), "stages.data.episodes"]
    environment = {"MUJOCO_GL": "nonsense", "PATH": "", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True)
    said = json.loads(ran.stdout)
    for name in names[:-1]:
        assert said[name][0] == "BadInput" and "MUJOCO_GL=nonsense" in said[name][1], said
    assert names[-1] not in said, "datasets are read without MuJoCo"
