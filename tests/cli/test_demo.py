"""The demo: made of a policy, loaded by the ordinary code and played; the one that is shipped too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

from bitagent_cli import presets
from bitagent_cli.demo import MAKE, demo_folder, make_demo, open_demo
from stages import behave, pretrain
from stages.policies import packing
from stages.policies.goals import Ask
from stages.policies.policy import LatentPolicy, Policy
from stages.report import performance
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from tests.stages import small_run

MEGABYTES = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A policy for two tasks, of one update, on a model of one update."""
    run = small_run.make_run(tmp_path_factory.mktemp("demo") / "walker-smoke")
    small_run.make_inputs(run)
    preset = presets.resolve("walker", "smoke", small_run.SMALL)
    pretrain.run(preset.sections, run)
    return behave.run(preset.behave, run, Ask(many=["stand", "walk"]))


@pytest.fixture(scope="module")
def made(trained: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "demo"
    make_demo(trained.path, folder)
    return folder


def test_a_demo_has_a_card_and_says_what_it_was_made_from(trained: Artifact, made: Path) -> None:
    policy = artifacts.load(made / "policy" / "bitagent-s0" / "stand+walk", "behave")
    assert policy.meta["inputs"] == {"behave:stand+walk": trained.id} and policy.id != trained.id
    card = (made / "README.md").read_text()
    for words in ("library_name: bitagent", trained.id, "bitagent demo --serve", "pretrain:bitagent-s0", "walk fast"):
        assert words in card, words
    assert {file.name for file in made.iterdir()} == {"README.md", "backbone", "policy"}


@pytest.mark.parametrize("prompt", [None, "hop about"])
def test_a_demo_is_played(
    made: Path, prompt: str | None, bitagent: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance, "DECISIONS", 24)
    asked = [] if prompt is None else ["--prompt", prompt]
    result = bitagent("demo", made, *asked, "--gif", tmp_path / "films" / "a.gif")
    assert result.exit_code == 0, result.output
    assert ("the closest is" in result.stdout) == (prompt is not None) and "Score " in result.stdout
    with Image.open(tmp_path / "films" / "a.gif") as film:
        assert film.n_frames > 1 and film.width > 2 * performance.SIZE


def test_the_shrunk_policy_acts_as_the_one_it_was_made_from(trained: Artifact, made: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (8, 3, 64, 64), dtype=np.uint8)
    acted = []
    for path in (trained.path, made / "policy" / "bitagent-s0" / "stand+walk"):
        policy = Policy.load(path)
        policy.reset(1)
        acted.append(np.stack([policy.act(frame) for frame in frames]))
    np.testing.assert_allclose(*acted, atol=0.02)
    assert np.abs(acted[0]).max() > 0


def test_matrices_in_8_bits_come_back_close_and_what_is_small_as_it_was() -> None:
    sizes = {"matrix": (300, 300), "filters": (32, 16, 4, 4), "actor.net": (100, 100), "prompt": (3, 128), "b": (9000,)}
    tensors = {
        name: torch.randn(size) * 10 ** torch.randn(size[0], *[1] * (len(size) - 1)) for name, size in sizes.items()
    }
    found = packing.fewer_bits(tensors)
    kept = {name: str(found[name].dtype).removeprefix("torch.") for name in sizes}
    assert kept == {"matrix": "int8", "filters": "int8", "actor.net": "float16", "prompt": "float32", "b": "float32"}
    back = artifacts.expanded(found)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        error = (
            (back[name].float() - value).flatten(1).norm(dim=1) / value.flatten(1).norm(dim=1) if value.ndim > 1 else 0
        )
        assert torch.as_tensor(error).max() < 0.02, name
    assert packing.fewer_bits(tensors, actor_alone=True).keys() == {"actor.net"}


def test_a_folder_without_a_policy_is_refused(
    bitagent: Callable[..., Result], assert_refused: Callable[..., None], tmp_path: Path
) -> None:
    assert_refused(bitagent("demo", tmp_path), "no policy to play", MAKE)


def test_the_shipped_demo_is_whole_small_and_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo_folder()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= MEGABYTES * 1e6
    artifacts.verify(*artifacts.find(folder, "backbone"), *artifacts.find(folder, "policy/*/*"))
    monkeypatch.setattr(performance, "DECISIONS", 150)
    shown = performance.perform(open_demo(folder, "cpu", quiet=True), "walk fast clean")
    assert shown.rewards["true"][-50:].mean() > 0.3, "random actions earn 0.03"
    assert isinstance(Policy.load(next(folder.glob("policy/*/*/artifact.json")).parent), LatentPolicy)
