"""Every wrong usage ends in one sentence with the way out, exit code 2 and no traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from stages.runtime import artifacts

Bitagent = Callable[..., Result]
Refused = Callable[..., None]

SMOKE = ("--scale", "smoke", "--device", "cpu", "--out", "run")


def fake(path: Path, stage: str, domain: str = "walker") -> Path:
    """A whole artifact of this stage with meaningless content."""
    tensors = {"content": {"x": torch.arange(100)}}
    return artifacts.save(path, stage, tensors, domain=domain, config={}, seed=0).path


def test_unknown_preset(bitagent: Bitagent, assert_refused: Refused) -> None:
    assert_refused(bitagent("collect", "--preset", "wlker"), "'wlker'", "did you mean 'walker'")
    assert_refused(bitagent("collect", "--domain", "wlker"), "did you mean 'walker'")


def test_unknown_scale(bitagent: Bitagent, assert_refused: Refused) -> None:
    assert_refused(bitagent("collect", "--scale", "labtop"), "did you mean 'laptop'")


def test_unknown_key(bitagent: Bitagent, assert_refused: Refused) -> None:
    result = bitagent("pretrain", *SMOKE, "--set", "pretrain.updatez=3")
    assert_refused(result, "'pretrain.updatez'", "did you mean 'pretrain.updates'")


def test_value_of_the_wrong_type(bitagent: Bitagent, assert_refused: Refused) -> None:
    result = bitagent("pretrain", *SMOKE, "--set", "pretrain.updates=many")
    assert_refused(result, "pretrain.updates='many'", "a whole number")


@pytest.mark.parametrize("command", [("pretrain",), ("behave", "--task", "walk")])
def test_compile_is_short_for_the_key_of_the_stage(
    bitagent: Bitagent, assert_refused: Refused, command: tuple[str, ...]
) -> None:
    assert_refused(bitagent(*command, *SMOKE, "--compile", "maybe"), f"{command[0]}.compile='maybe'", "auto")


def test_cuda_without_one(bitagent: Bitagent, assert_refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(bitagent("pretrain", "--device", "cuda"), "--device cpu", "bitagent doctor")
    assert_refused(bitagent("pretrain", "--device", "tpu"), "'tpu'", "auto, cpu or cuda")


@pytest.mark.parametrize(
    ("command", "way_out"),
    [
        (("embed",), "bitagent collect"),
        (("pretrain",), "bitagent collect"),
        (("behave", "--task", "walk"), "bitagent pretrain"),
        (("behave", "--prompt", "walk slowly"), "bitagent pretrain"),
        (("evaluate", "--task", "walk"), "bitagent behave"),
        (("transfer", "--src", "cheetah"), "bitagent collect"),
    ],
)
def test_missing_predecessor(
    bitagent: Bitagent, assert_refused: Refused, command: tuple[str, ...], way_out: str
) -> None:
    assert_refused(bitagent(*command, *SMOKE), f"make it with: {way_out} --preset walker --scale smoke")


def test_embeddings_missing(bitagent: Bitagent, assert_refused: Refused) -> None:
    fake(Path("run/data/random"), "collect")
    assert_refused(bitagent("pretrain", *SMOKE), "make it with: bitagent embed")


@pytest.mark.parametrize("command", ["embed", "pretrain"])
def test_corrupted_dataset(bitagent: Bitagent, assert_refused: Refused, command: str) -> None:
    file = fake(Path("run/data/random"), "collect") / "content.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    assert_refused(bitagent(command, *SMOKE), "content.safetensors is missing or corrupted", "--fresh")


def test_corrupted_model(bitagent: Bitagent, assert_refused: Refused) -> None:
    file = fake(Path("run/model/bitagent-s0"), "pretrain") / "content.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])  # a header length of 2**64 - 1
    assert_refused(bitagent("behave", *SMOKE, "--task", "walk"), "content.safetensors is missing or corrupted")


@pytest.mark.parametrize("command", ["embed", "pretrain"])
def test_dataset_of_another_domain(bitagent: Bitagent, assert_refused: Refused, command: str) -> None:
    fake(Path("run/data/random"), "collect", domain="cheetah")
    assert_refused(bitagent(command, *SMOKE), "belongs to domain cheetah, not walker", "--preset cheetah")


def test_model_of_another_domain(bitagent: Bitagent, assert_refused: Refused) -> None:
    fake(Path("run/model/bitagent-s0"), "pretrain", domain="cheetah")
    assert_refused(bitagent("behave", *SMOKE, "--task", "walk"), "belongs to domain cheetah, not walker")


def test_an_artifact_of_another_stage(bitagent: Bitagent, assert_refused: Refused) -> None:
    fake(Path("run/model/bitagent-s0"), "collect")
    assert_refused(bitagent("behave", *SMOKE, "--task", "walk"), "is a collect artifact, not pretrain")


@pytest.mark.parametrize("prompt", ["", "x" * 100_000, "walk\nrun", "\x1b[2J"])
def test_prompts(bitagent: Bitagent, assert_refused: Refused, prompt: str) -> None:
    assert_refused(bitagent("behave", *SMOKE, "--prompt", prompt), "prompt")
    assert_refused(bitagent("evaluate", *SMOKE, "--prompt", prompt), "prompt")


@pytest.mark.parametrize(
    "options",
    [
        ("--task", "../../model"),
        ("--tasks", "walk,../x"),
        ("--task", "walk", "--method", "../x"),
        ("--task", ""),
    ],
)
@pytest.mark.parametrize("command", ["behave", "evaluate"])
def test_names_stay_inside_the_run(
    bitagent: Bitagent, assert_refused: Refused, command: str, options: tuple[str, ...]
) -> None:
    assert_refused(bitagent(command, *SMOKE, *options), "is not a name")


def test_nothing_to_show(bitagent: Bitagent, assert_refused: Refused) -> None:
    assert_refused(bitagent("visualize", *SMOKE), "nothing to show", "bitagent collect")


def test_transfer_to_itself_or_from_nowhere(bitagent: Bitagent, assert_refused: Refused) -> None:
    assert_refused(bitagent("transfer", *SMOKE, "--src", "walker"), "two bodies")
    assert_refused(bitagent("transfer", *SMOKE, "--src", "wlker"), "did you mean 'walker'")
    assert_refused(bitagent("transfer", *SMOKE, "--src", "cheetah", "--task", "wlak"), "walk")


def test_goals(bitagent: Bitagent, assert_refused: Refused) -> None:
    assert_refused(bitagent("behave", *SMOKE), "exactly one of")
    assert_refused(bitagent("behave", *SMOKE, "--task", "walk", "--prompt", "walk"), "exactly one of")
    assert_refused(bitagent("behave", *SMOKE, "--task", "wlak"), "walk")


def test_methods(bitagent: Bitagent, assert_refused: Refused) -> None:
    for command in (("pretrain",), ("behave", "--task", "walk"), ("evaluate", "--task", "walk")):
        assert_refused(bitagent(*command, *SMOKE, "--method", "gnrl"), "unknown method 'gnrl'", "'genrl'")
    assert_refused(bitagent("pretrain", *SMOKE, "--method", "iql"), "without a world model", "bitagent behave")
    assert_refused(bitagent("pretrain", *SMOKE, "--method", "transfer-cheetah"), "transfer", "give bitagent")
    assert_refused(bitagent("behave", *SMOKE, "--method", "td3", "--task", "walk"), "bitagent collect")
    assert_refused(bitagent("behave", *SMOKE, "--method", "td3", "--tasks", "stand,walk"), "one prompt a policy")
    missing = bitagent("behave", *SMOKE, "--method", "genrl", "--task", "walk")
    assert_refused(missing, "bitagent pretrain --preset walker --scale smoke --method genrl")


def test_out_is_a_file(bitagent: Bitagent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert bitagent("collect", "--out", "file").exit_code == 2


def test_unknown_option_and_command(bitagent: Bitagent) -> None:
    assert bitagent("collect", "--fremes", "3").exit_code == 2
    assert bitagent("colect").exit_code == 2
    assert bitagent("collect", "--seed", "-1").exit_code == 2


def test_the_same_from_a_shell(tmp_path: Path) -> None:
    """As a user meets it: a process, its exit code, and stderr."""
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-m", "bitagent_cli", "pretrain", "--scale", "smoke", "--out", str(tmp_path / "run")]
    ran = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("error: no data in ") and "Traceback" not in ran.stderr
