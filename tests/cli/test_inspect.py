from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from stages.core import artifacts
from stages.core.artifacts import Artifact

Bitagent = Callable[..., Result]
Refused = Callable[..., None]


def make(path: Path, stage: str, *inputs: Artifact, value: float = 0.0) -> Artifact:
    tensors = {"model": {"weight": torch.full((3, 5), value), "bias": torch.zeros(3, dtype=torch.float16)}}
    return artifacts.save(
        path, stage, tensors, domain="walker", config={"lr": 0.1, "value": value}, seed=4, inputs=inputs
    )


@pytest.fixture
def policy(tmp_path: Path) -> Artifact:
    """dataset → embeddings and model → policy."""
    data = make(tmp_path / "data" / "random", "collect")
    embeddings = make(tmp_path / "embeddings" / "random", "embed", data)
    model = make(tmp_path / "model" / "bitagent-s0", "pretrain", data, embeddings)
    return make(tmp_path / "policy" / "walk", "behave", model)


def test_says_what_it_is_and_holds(bitagent: Bitagent, policy: Artifact) -> None:
    result = bitagent("inspect", policy.path)
    assert result.exit_code == 0, result.output
    for words in ("behave (walker), seed 4", policy.id, "lr: 0.1", "model.safetensors"):
        assert words in result.stdout
    weight = next(line for line in result.stdout.splitlines() if "weight" in line)
    assert weight.split() == ["weight", "F32", "[3,", "5]", "60", "B"]


def test_follows_provenance_to_the_dataset(bitagent: Bitagent, policy: Artifact) -> None:
    lines = bitagent("inspect", policy.path).stdout.splitlines()
    tree = lines[lines.index("made from") + 1 : lines.index("files")]
    assert [line.split()[0] for line in tree] == [
        "pretrain:bitagent-s0", "collect:random", "embed:random", "collect:random",
    ]  # fmt: skip
    assert [len(line) - len(line.lstrip()) for line in tree] == [2, 4, 4, 6]
    assert "data/random" in tree[1] and "listed above" in tree[3]


def test_says_when_an_input_is_gone_or_rebuilt(bitagent: Bitagent, policy: Artifact, tmp_path: Path) -> None:
    make(tmp_path / "model" / "bitagent-s0", "pretrain", value=1.0)
    assert "rebuilt since" in bitagent("inspect", policy.path).stdout
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    assert "no longer on disk" in bitagent("inspect", policy.path).stdout


def test_verify_passes_whole_and_finds_a_flipped_byte(
    bitagent: Bitagent, policy: Artifact, assert_refused: Refused
) -> None:
    assert "every checksum verified" in bitagent("inspect", policy.path, "--verify").stdout
    file = policy.path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert bitagent("inspect", policy.path).exit_code == 0
    assert_refused(bitagent("inspect", policy.path, "--verify"), "model.safetensors", "checksum")


def test_verify_finds_edited_metadata(bitagent: Bitagent, policy: Artifact, assert_refused: Refused) -> None:
    file = policy.path / "artifact.json"
    meta = json.loads(file.read_text())
    meta["config"]["lr"] = 0.2
    file.write_text(json.dumps(meta))
    assert_refused(bitagent("inspect", policy.path, "--verify"), "artifact.json")


@pytest.mark.parametrize("edit", [{"inputs": 3}, {"input_paths": []}, {"versions": "x"}, {"inputs": {"a": None}}])
def test_odd_metadata_is_no_crash(bitagent: Bitagent, policy: Artifact, edit: dict[str, object]) -> None:
    file = policy.path / "artifact.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    assert bitagent("inspect", policy.path).exit_code == 0


def test_a_cycle_of_inputs_ends(bitagent: Bitagent, policy: Artifact) -> None:
    file = policy.path / "artifact.json"
    meta = json.loads(file.read_text()) | {"inputs": {"behave:walk": policy.id}, "input_paths": {policy.id: "."}}
    file.write_text(json.dumps(meta))
    assert "listed above" in bitagent("inspect", policy.path).stdout


def test_not_an_artifact(bitagent: Bitagent, tmp_path: Path, assert_refused: Refused) -> None:
    assert_refused(bitagent("inspect", tmp_path), "is not an artifact")
    assert_refused(bitagent("inspect", tmp_path / "nowhere"), "is not an artifact")
    assert_refused(bitagent("inspect", __file__), "is not an artifact")
