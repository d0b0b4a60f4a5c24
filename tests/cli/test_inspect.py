from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from tests.data.real_data import make_data
from tests.data.synthetic import make_branches, write_meta

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


def test_a_dataset_shows_the_returns_of_each_source_and_task(bitagent: Bitagent, tmp_path: Path) -> None:
    data = make_data(tmp_path, task="walk", episodes=3, rows=6)
    lines = bitagent("inspect", data.path).stdout.splitlines()
    at = next(
        i for i, line in enumerate(lines) if line.strip().startswith("expert walk: 3 episodes, 18 frames, return")
    )
    bars = [line for line in lines[at + 1 :] if " to " in line]
    counts = [int(line.split("to")[1].split()[1]) for line in bars]
    assert sum(counts) == 3 and all(("█" in line) == (count > 0) for line, count in zip(bars, counts, strict=True))


def test_branches_are_shown_without_returns(bitagent: Bitagent, tmp_path: Path) -> None:
    data = make_branches(tmp_path / "branch", [(0, 0, 1), (0, 2, 3)])
    out = bitagent("inspect", data.path).stdout
    assert "branch: 2 stretches cut from random, 40 frames, no reward" in out and "█" not in out


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


@pytest.mark.parametrize(
    "edit",
    [
        {"config": {"lr": 0.2}}, {"seed": 5}, {"inputs": {"a": None}}, {"extra": {"score": 1.0}},  # the id covers these
        {"inputs": 3}, {"input_paths": []}, {"input_paths": {"a": 1}}, {"versions": "x"}, {"wall_seconds": None},
    ],
    ids=str,
)  # fmt: skip
def test_edited_metadata_is_refused(
    bitagent: Bitagent, policy: Artifact, assert_refused: Refused, edit: dict[str, object]
) -> None:
    file = policy.path / "artifact.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    assert_refused(bitagent("inspect", policy.path), "artifact.json is missing or corrupted")


@pytest.mark.parametrize("edit", [{"inputs": {"a": None}}, {"inputs": {"a": "b"}, "input_paths": {}}, {"extra": {}}])
def test_forged_metadata_is_no_crash(bitagent: Bitagent, policy: Artifact, edit: dict[str, object]) -> None:
    write_meta(policy.path, policy.meta | edit)
    assert bitagent("inspect", policy.path).exit_code == 0


def test_control_characters_do_not_reach_the_terminal(bitagent: Bitagent, policy: Artifact) -> None:
    write_meta(policy.path, policy.meta | {"extra": {"note": "\x1b[2Jgone", "\x07": "bell"}})
    shown = bitagent("inspect", policy.path).stdout
    assert "\x1b" not in shown and "\x07" not in shown and "[2Jgone" in shown


def test_a_cycle_of_inputs_ends(bitagent: Bitagent, policy: Artifact, tmp_path: Path) -> None:
    """Two artifacts that name each other as input."""
    model = artifacts.load(tmp_path / "model" / "bitagent-s0")
    write_meta(model.path, model.meta | {"inputs": {"behave:walk": "x"}, "input_paths": {"x": "../../policy/walk"}})
    forged = artifacts.load(model.path)
    places = {forged.id: "../../model/bitagent-s0"}
    write_meta(policy.path, policy.meta | {"inputs": {"pretrain:bitagent-s0": forged.id}, "input_paths": places})
    assert bitagent("inspect", policy.path).exit_code == 0


def test_an_input_named_twice_is_listed_once(bitagent: Bitagent, policy: Artifact) -> None:
    (name, wanted), *_ = policy.meta["inputs"].items()
    write_meta(policy.path, policy.meta | {"inputs": {name: wanted, "again": wanted}})
    assert "listed above" in bitagent("inspect", policy.path).stdout


def test_not_an_artifact(bitagent: Bitagent, tmp_path: Path, assert_refused: Refused) -> None:
    assert_refused(bitagent("inspect", tmp_path), "is not an artifact")
    assert_refused(bitagent("inspect", tmp_path / "nowhere"), "is not an artifact")
    assert_refused(bitagent("inspect", __file__), "is not an artifact")
