"""evaluate: the look of the frames that a policy sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bitagent_cli.presets import resolve as load_preset
from stages.evaluate import Config, choose_renderer
from stages.policies.play import training_renderer
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.worlds import opengl


def make(
    root: Path, stage: str, inputs: list[Artifact], extra: dict[str, Any] | None = None, seed: int = 0
) -> Artifact:
    path = root / stage
    with artifacts.writing(
        path, stage, domain="walker", config={}, seed=seed, inputs=inputs, extra=extra or {}
    ) as draft:
        storage.write_tensors(draft / "data.safetensors", {"x": torch.zeros(1)})
    return artifacts.load(path, stage)


def make_policy(root: Path, renderer: str) -> Artifact:
    """A policy of a model of frames of that renderer, as far as provenance goes."""
    data = make(root, "collect", [], {"renderer": renderer})
    model = make(root, "pretrain", [data, make(root, "embed", [data])])
    return make(root, "behave", [model])


def config(renderer: str) -> Config:
    wanted = load_preset("walker", "smoke").evaluate.model_dump() | {"renderer": renderer}
    return Config(**wanted)


@pytest.fixture
def no_opengl(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(opengl, "PLATFORMS", ("absent",))
    opengl.find_platform.cache_clear()
    yield
    opengl.find_platform.cache_clear()


@pytest.mark.parametrize(("renderer", "found"), [("ray", "ray"), ("genrl", "genrl"), ("", "ray")])
def test_the_renderer_of_the_training_data_is_found_through_the_model(
    tmp_path: Path, renderer: str, found: str
) -> None:
    assert training_renderer(make_policy(tmp_path, renderer)) == found


def test_a_policy_of_ray_frames_sees_ray_frames(
    tmp_path: Path, no_opengl: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose_renderer(config("auto"), Run("walker", "smoke", tmp_path), make_policy(tmp_path, "ray")) == "ray"
    assert capsys.readouterr().err == ""


def test_imported_frames_are_refused_without_opengl_unless_told_to_go_on(
    tmp_path: Path, no_opengl: None, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, run = make_policy(tmp_path, "genrl"), Run("walker", "smoke", tmp_path)
    with pytest.raises(BadInput, match=r"learned from genrl frames.*--set evaluate.renderer=ray"):
        choose_renderer(config("auto"), run, policy)
    assert choose_renderer(config("ray"), run, policy) == "ray"
    assert "learned from genrl frames and sees ray ones" in capsys.readouterr().err


def test_imported_frames_are_drawn_as_they_were(tmp_path: Path) -> None:
    try:
        opengl.find_platform()
    except BadInput as missing:
        pytest.skip(str(missing))
    assert choose_renderer(config("auto"), Run("walker", "smoke", tmp_path), make_policy(tmp_path, "genrl")) == "genrl"


def test_data_that_is_gone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, run = make_policy(tmp_path, "genrl"), Run("walker", "smoke", tmp_path)
    (tmp_path / "collect").rename(tmp_path / "elsewhere")
    assert choose_renderer(config("auto"), run, policy) == "ray"
    assert "no longer there" in capsys.readouterr().err


def test_data_made_anew_in_its_place_is_not_what_it_learned_from(tmp_path: Path) -> None:
    policy = make_policy(tmp_path, "genrl")
    (tmp_path / "collect").rename(tmp_path / "elsewhere")
    make(tmp_path, "collect", [], {"renderer": "ray"}, seed=1)
    assert training_renderer(policy) is None
