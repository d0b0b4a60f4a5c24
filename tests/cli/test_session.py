from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import Result

from bitagent_cli import session
from bitagent_cli.options import Common
from bitagent_cli.session import prepare, resolve_scale
from stages.runtime.distributed import LAUNCHED


def test_auto_scale_follows_device_weights_memory_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the gated weights a GPU runs what needs none, and the first line says so."""
    card, missing, free = SimpleNamespace(total_memory=16 * 2**30), [""], [500.0]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(session, "missing_weights", lambda: missing[0])
    monkeypatch.setattr(session, "free_gib", lambda folder: free[0])
    assert resolve_scale("auto", "cuda", tmp_path) == ("paper", " (auto: CUDA)")
    assert resolve_scale("auto", "cpu", tmp_path)[0] == "laptop"
    assert resolve_scale("smoke", "cuda", tmp_path) == ("smoke", "")
    missing[0] = "they are gated"
    assert resolve_scale("auto", "cuda", tmp_path) == ("gpu", " (auto: CUDA, without InternVideo2's weights)")
    missing[0], free[0] = "", 40.0
    assert resolve_scale("auto", "cuda", tmp_path) == ("gpu", " (auto: 40 GiB of disk, scale paper takes 150)")
    card.total_memory = 4 * 2**30
    assert resolve_scale("auto", "cuda", tmp_path) == ("laptop", " (auto: a GPU of 4 GiB, 8 are needed)")


def test_free_space_is_that_of_the_folder_to_be_made(tmp_path: Path) -> None:
    assert session.free_gib(tmp_path / "not" / "yet") == pytest.approx(session.free_gib(tmp_path), rel=0.1)


def test_prepare_resolves_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    preset, run = prepare(Common(preset="cheetah", seed=3, set=["model.deter=96"]), "pretrain")
    assert (run.domain, run.scale, run.device, run.seed) == ("cheetah", "laptop", "cpu", 3)
    assert run.root == Path("runs/cheetah-laptop")
    assert preset.model.deter == run.resolved["model"]["deter"] == 96
    assert run.resolved["scale"] == "laptop", "an evaluation's scale is the policy's own"
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "pretrain: cheetah, scale laptop (auto: no CUDA), cpu, seed 3, in runs/cheetah-laptop"


def test_quiet_and_the_other_ranks_print_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(Common(scale="smoke", quiet=True), "collect")
    for name in LAUNCHED:  # as torchrun starts the second of two
        monkeypatch.setenv(name, "2" if name == "WORLD_SIZE" else "1")
    _, run = prepare(Common(scale="smoke"), "pretrain")
    assert run.quiet and capsys.readouterr().out == ""


def test_other_commands_are_named_with_the_options_they_need() -> None:
    """A hint such as 'make it with: ...' must lead to the same run."""
    common = Common(scale="smoke", quiet=True, out=Path("my runs/x"), set=["model.deter=96"])
    _, run = prepare(common, "pretrain")
    wanted = "bitagent embed --preset walker --scale smoke --backbone offline --out 'my runs/x' --set model.deter=96"
    assert run.command("embed", "--backbone", "offline") == wanted


def test_collecting_for_a_backbone_that_is_not_there_is_noted(
    bitagent: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The data is made all the same, and nothing is said where the backbone is another one."""
    monkeypatch.setenv("BITAGENT_INTERNVIDEO2", str(tmp_path / "nowhere.pt"))
    words = ("collect", "--scale", "smoke", "--source", "random", "--workers", "1", "--quiet")
    tiny = ("--set", "collect.random_episodes=1")
    assert bitagent(*words, *tiny).stderr == ""
    made = bitagent(*words, *tiny, "--set", "embed.backbone=internvideo2", "--out", tmp_path / "other")
    assert made.exit_code == 0 and (tmp_path / "other" / "data" / "random" / "artifact.json").exists()
    assert made.stderr.startswith("note: ") and made.stderr.count("\n") == 1
    assert "nowhere.pt" in made.stderr and "--set embed.backbone=offline" in made.stderr
