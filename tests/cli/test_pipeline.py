"""The stages through the door: same seed, same bits; a prompt no file mentions; provenance."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bitagent_cli.app import app
from stages.runtime import artifacts

TINY = (
    "collect.random_episodes=1", "collect.expert.decisions.walk=1000", "collect.expert.keep_episodes=1",
    "embed.offline.updates=3", "pretrain.updates=3", "behave.updates=2", "behave.decisions=4",
)  # fmt: skip
PROMPT = "wave one leg about like a flag"


def call(root: Path, *words: str) -> Result:
    options = ["--scale", "smoke", "--device", "cpu", "--out", str(root)]
    settings = [word for setting in TINY for word in ("--set", setting)]
    result = CliRunner().invoke(app, [*words, *options, *settings], prog_name="bitagent")
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def train(root: Path) -> Path:
    call(root, "collect", "--task", "walk", "--workers", "1")
    call(root, "embed")
    call(root, "pretrain")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walker run up to its model."""
    return train(tmp_path_factory.mktemp("first") / "run")


def checksums(root: Path) -> dict[str, dict[str, str]]:
    """sha256 of every file of every artifact, and the artifact's id."""
    found = {}
    for file in sorted(root.rglob("artifact.json")):
        artifact = artifacts.load(file.parent)
        found[str(file.parent.relative_to(root))] = {**artifact.meta["files"], "id": artifact.id}
    return found


def test_the_same_seed_makes_the_same_tensors(root: Path, tmp_path: Path) -> None:
    first, second = checksums(root), checksums(train(tmp_path / "run"))
    assert set(first) == {
        *(f"{kind}/{name}" for kind in ("data", "embeddings/offline") for name in ("random", "expert-walk", "branch")),
        "backbone", "model/bitagent-s0",
    }  # fmt: skip
    assert first == second


def test_a_prompt_no_file_mentions(root: Path) -> None:
    """Behave, evaluate and inspect: from the policy back to the datasets."""
    assert "behave: walker, scale smoke, cpu, seed 0" in call(root, "behave", "--prompt", PROMPT).stdout
    (policy,) = (root / "policy" / "bitagent-s0").glob("wave-one-leg-about-like-a-flag-*/artifact.json")
    scores = call(root, "evaluate", "--prompt", PROMPT, "--score-as", "stand", "--episodes", "1")
    assert "stand" in scores.stdout
    shown = CliRunner().invoke(app, ["inspect", str(policy.parent), "--verify"]).stdout
    for words in (PROMPT, "every checksum verified", "pretrain:bitagent-s0", "collect:random", "collect:expert-walk"):
        assert words in shown


def test_what_is_made_already_is_reused(root: Path) -> None:
    before = checksums(root)
    for words in (("collect", "--task", "walk"), ("embed",), ("pretrain",)):
        assert "reus" in call(root, *words).stdout
    assert checksums(root) == before


def test_a_dataset_is_described(root: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(root / "data" / "random")]).stdout
    assert "random: 1 episodes, 501 frames, return " in shown
    assert sum(line.endswith("█") for line in shown.splitlines()) == 1


def test_a_baseline_with_and_one_without_a_model(root: Path) -> None:
    """`--method` from the door to the scores."""
    for method in ("wm-clip", "td3-bc"):
        if method == "wm-clip":
            call(root, "pretrain", "--method", method)
        settings = ("--set", "offline_rl.updates=3")
        call(root, "behave", "--method", method, "--task", "walk", *settings)
        shown = call(root, "evaluate", "--method", method, "--task", "walk", "--episodes", "1").stdout
        assert "evaluate: score walk " in shown and f"evaluation/{method}-s0/walk" in shown
