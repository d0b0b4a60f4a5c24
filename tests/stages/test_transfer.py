"""Transfer: everything but the body is carried over, the control is the same at equal budget, the gain is a number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitagent_cli import presets
from stages import methods, pretrain, transfer
from stages.backbones.embeddings import open_training_data, retrain_command
from stages.core.joint_model import JointModel
from stages.methods import open_model
from stages.pretrain import Sections
from stages.report import chapters
from stages.report.scene import Scene
from stages.report.tables import paired_gains
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from tests.core.helpers import DYNAMICS, model_config, scramble
from tests.data.real_data import make_data, make_embeddings
from tests.stages import small_run
from tests.stages.test_visualize import make_evaluation

DIM_E, WALKER, QUADRUPED = 9, 6, 12
CONFIG = transfer.Config(updates=2)


@pytest.fixture(scope="module", autouse=True)
def no_backbone() -> Any:
    """Embeddings of labels without loading a text tower: what is tested here is the weights."""

    class Texts:
        id = "none"

        def encode_text(self, texts: list[str]) -> Tensor:
            return torch.nn.functional.normalize(torch.ones(len(texts), DIM_E), dim=-1)

    patch = pytest.MonkeyPatch()
    patch.setattr(pretrain, "load_backbone", lambda *_: Texts())
    yield
    patch.undo()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with a walker model of one update, and a quadruped's data."""
    folder = tmp_path_factory.mktemp("transfer")
    walker = domain(folder, "walker")
    make_embeddings(make_data(walker.root, rows=14), DIM_E)
    pretrain.run(pretrain.Sections(small_run.pretrain_config(updates=1), model_config()), walker)
    target = domain(folder, "quadruped")
    for task in ("", "run"):
        make_embeddings(make_data(target.root, "quadruped", task, episodes=2, rows=14), DIM_E)
    return folder


def domain(folder: Path, name: str, **changes: Any) -> Run:
    return small_run.make_run(folder / f"{name}-smoke", domain=name, **changes)


def adapt(base: Path, **options: Any) -> Artifact:
    run = domain(base, "quadruped", **options.pop("run", {}))
    sizes = options.pop("model", model_config())
    config = options.pop("config", CONFIG)
    return transfer.run(config, Sections(small_run.pretrain_config(), sizes), run, **{"src": "walker", **options})


@pytest.fixture(scope="module")
def adapted(base: Path) -> Artifact:
    return adapt(base)


# ---------------------------------------------------------------------------- what is carried over


def test_all_but_the_actions_columns_are_carried_over() -> None:
    torch.manual_seed(0)
    source = JointModel(model_config(), DIM_E, WALKER)
    scramble(source, 1)
    target = JointModel(model_config(), DIM_E, QUADRUPED)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    transfer.carry_over(target, source.state_dict(), Path("there"))
    differing = []
    for name, value in target.state_dict().items():
        if name in transfer.BODY:
            shared = 0 if "imagination" in name else source.config.dim_z  # imagination reads actions alone
            assert value.shape[1] == shared + QUADRUPED
            assert torch.equal(value[:, :shared], source.state_dict()[name][:, :shared])
            assert torch.equal(value[:, shared:], before[name][:, shared:])
        else:
            assert torch.equal(value, source.state_dict()[name]), name
        if value.shape != source.state_dict()[name].shape:
            differing.append(name)
    assert set(differing) == set(transfer.BODY), "another weight depends on the body"


@pytest.mark.parametrize("method", ["genrl", "wm-clip", "founder"])
def test_a_baseline_carries_all_but_the_actions_columns_too(method: str) -> None:
    """The input of each recurrence is what depends on the body."""
    constants = methods.constants_of(method, presets.resolve("walker", "smoke").groundings)
    source, target = (methods.build(method, model_config(), DIM_E, body, constants) for body in (WALKER, QUADRUPED))
    transfer.carry_over(target, source.state_dict(), Path("there"))
    own = target.state_dict()
    for name, value in source.state_dict().items():
        if name in transfer.BODY:
            shared = 0 if "imagination" in name else source.dim_z
            assert torch.equal(own[name][:, :shared], value[:, :shared]) and own[name].shape[1] == shared + QUADRUPED
        else:
            assert torch.equal(own[name], value), name


def test_same_number_of_actions_still_means_another_body() -> None:
    """Walker and cheetah both have six actuators, of different joints."""
    torch.manual_seed(0)
    source, target = JointModel(model_config(), DIM_E, WALKER), JointModel(model_config(), DIM_E, WALKER)
    transfer.carry_over(target, source.state_dict(), Path("there"))
    name, dim_z = transfer.BODY[0], source.config.dim_z
    assert not torch.equal(target.state_dict()[name][:, dim_z:], source.state_dict()[name][:, dim_z:])


def test_the_adapted_model_is_a_model_artifact_of_the_target(base: Path, adapted: Artifact) -> None:
    assert adapted.path == base / "quadruped-smoke" / "model" / "transfer-walker-s0"
    assert (adapted.meta["stage"], adapted.domain) == ("pretrain", "quadruped")
    source = artifacts.load(base / "walker-smoke" / "model" / "bitagent-s0")
    assert adapted.meta["inputs"]["pretrain:bitagent-s0"] == source.id
    assert adapted.meta["config"]["pretrain"]["updates"] == CONFIG.updates
    assert open_model(adapted).dim_action == QUADRUPED
    log = (adapted.path.parent / "transfer-walker-s0.log" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == CONFIG.updates + DYNAMICS["updates"]


def test_training_starts_from_the_source(base: Path, adapted: Artifact) -> None:
    """After two updates of learning rate 1e-3 the adapted weights are near the source's, the control's are not."""
    source = artifacts.load(base / "walker-smoke" / "model" / "bitagent-s0").tensors("model")
    control = adapt(base, control=True).tensors("model")
    name = "decoder.stem.weight"
    far = (control[name] - source[name]).abs().mean()
    assert (adapted.tensors("model")[name] - source[name]).abs().mean() < 0.1 * far


def test_control_has_the_same_budget_and_no_source(base: Path, adapted: Artifact) -> None:
    control = adapt(base, control=True)
    assert control.path.name == "transfer-control-s0"
    assert control.meta["config"]["pretrain"] == adapted.meta["config"]["pretrain"]
    assert control.meta["config"]["model"] == adapted.meta["config"]["model"]
    assert not any(key.startswith("pretrain:") for key in control.meta["inputs"])
    assert adapt(base, src="stickman", control=True).id == control.id, "one control serves every source"


def test_later_stages_read_the_targets_data_alone(base: Path, adapted: Artifact) -> None:
    dataset = open_training_data(adapted, domain(base, "quadruped"))
    assert {p.artifact.domain for p in dataset.parts} == {"quadruped"} and len(dataset.parts) == 2


def test_the_command_that_makes_a_model_anew(base: Path, adapted: Artifact) -> None:
    run, options = domain(base, "quadruped"), "--preset quadruped --scale smoke"
    assert retrain_command(adapted, run) == f"bitagent transfer {options} --src walker --seed 0 --fresh"
    control = adapt(base, control=True)
    assert retrain_command(control, run) == f"bitagent transfer {options} --src walker --control --seed 0 --fresh"
    other = {**adapted.meta, "seed": 3, "config": {"method": "genrl"}}
    wanted = f"bitagent pretrain {options} --method genrl --seed 3 --fresh"
    assert retrain_command(replace(adapted, meta=other), run) == wanted


def test_method_names() -> None:
    assert transfer.method_name("bitagent", "walker", False) == "transfer-walker"
    assert transfer.method_name("bitagent", "walker", True) == "transfer-control"
    assert transfer.method_name("genrl", "walker", False) == "genrl-transfer-walker"


# ---------------------------------------------------------------------------- refusals


def test_missing_source_names_the_command(base: Path) -> None:
    with pytest.raises(BadInput, match=r"stickman-smoke.*bitagent pretrain --preset stickman --scale smoke"):
        adapt(base, src="stickman")


def test_other_sizes_are_refused_by_name(base: Path) -> None:
    with pytest.raises(BadInput, match=r"model\.deter 16, the target's preset has 8; use --set model\.deter=16"):
        adapt(base, model=model_config(deter=8), run={"seed": 0, "fresh": True})


def test_embeddings_of_another_width_are_refused(base: Path) -> None:
    source = artifacts.load(base / "walker-smoke" / "model" / "bitagent-s0")
    with pytest.raises(BadInput, match="width 9, the target's are 32 wide"):
        transfer.check_fit(source, model_config(), 32)


def test_source_and_target_must_differ(base: Path) -> None:
    with pytest.raises(BadInput, match="two bodies"):
        adapt(base, src="quadruped")
    with pytest.raises(BadInput, match="did you mean 'walker'"):
        adapt(base, src="wakler")


def test_another_budget_is_refused(base: Path, adapted: Artifact) -> None:
    with pytest.raises(BadInput, match=r"pretrain\.updates \(2 there, 3 now\).*--fresh"):
        adapt(base, config=transfer.Config(updates=3))


# ---------------------------------------------------------------------------- the gain


def test_gain_is_paired_by_seed() -> None:
    assert paired_gains({0: 0.5, 1: 0.8, 2: 9.0}, {1: 0.4, 0: 0.3}) == pytest.approx([0.2, 0.4])
    assert paired_gains({0: 0.5, 1: 0.7}, {3: 0.1}) == pytest.approx([0.5])


def test_comparison_waits_for_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = domain(tmp_path, "walker", quiet=False)
    make_evaluation(run, "walk", 0.8, method="transfer-quadruped")
    assert transfer.compare(run, src="quadruped") is None
    assert "bitagent transfer --src quadruped --dst walker --control" in capsys.readouterr().out
    make_evaluation(run, "stand", 0.8, method="transfer-control")
    assert transfer.compare(run, src="quadruped") is None, "no task was learned by both"


def test_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = domain(tmp_path, "walker", quiet=False)
    for seed, (ours, control) in enumerate(((0.8, 0.5), (0.7, 0.6))):
        make_evaluation(run, "walk", ours, seed=seed, method="transfer-quadruped")
        make_evaluation(run, "walk", control, seed=seed, method="transfer-control")
    make_evaluation(run, "walk", 0.1, method="bitagent")
    found = transfer.compare(run, src="quadruped")
    assert found is not None and found.path == run.root / "transfer" / "quadruped"
    assert {"gain.md", "gain.csv", "gain.tex", "gain.json"} == found.meta["files"].keys()
    (row,) = json.loads((found.path / "gain.json").read_text())
    assert row["gain"] == pytest.approx(0.2) and row["paired_seeds"] == 2
    said = capsys.readouterr().out
    assert "| walker walk | 0.01 | 0.75 ± 0.05 (2) | 0.55 ± 0.05 (2) | +0.20 ± 0.10 |" in said
    assert len(found.meta["input_paths"]) == 4
    again = transfer.compare(run, src="quadruped")
    assert again is not None and again.id == found.id


def test_the_report_shows_the_gain(tmp_path: Path) -> None:
    run = domain(tmp_path, "walker")
    for method, score in (("transfer-quadruped", 0.8), ("transfer-control", 0.5)):
        make_evaluation(run, "walk", score, method=method)
    scene = Scene(presets.resolve("walker", "smoke").visualize, run, "bitagent", False, tmp_path)
    before = chapters.transfers(scene)
    assert before is not None and len(before.tables) == 1 and not before.pictures  # scores, and no gain yet
    transfer.compare(run, src="quadruped")
    chapter = chapters.transfers(scene)
    assert chapter is not None and chapter.tables[1].rows == [
        ["walker walk", "0.01", "0.80 [0.05]", "0.50 [0.05]", "+0.30"]
    ]
