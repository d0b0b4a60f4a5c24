from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from bitagent_cli import presets
from stages.runtime.errors import BadInput


def refusal(name: str = "walker", scale: str = "smoke", *sets: str) -> str:
    with pytest.raises(BadInput) as caught:
        presets.resolve(name, scale, sets)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------- layers


@pytest.mark.parametrize("scale", presets.SCALES)
@pytest.mark.parametrize("domain", ["walker", "cheetah", "quadruped", "stickman"])
def test_every_shipped_preset_resolves(domain: str, scale: str) -> None:
    assert presets.resolve(domain, scale).domain == domain


def test_domains_are_the_four() -> None:
    assert presets.domains() == ["cheetah", "quadruped", "stickman", "walker"]


def test_every_default_lives_in_paper_yaml_alone() -> None:
    """No field of the schema has a default of its own, and paper.yaml names every key."""

    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.is_required(), f"{model.__module__}.{name} has a default outside presets/paper.yaml"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)

    check(presets.Preset)


def test_scale_overrides_paper_and_set_overrides_scale() -> None:
    paper, smoke = presets.resolve("walker", "paper"), presets.resolve("walker", "smoke")
    assert smoke.model.deter < paper.model.deter
    changed = presets.resolve("walker", "smoke", ["model.deter=96", "pretrain.objective.mllm=0", "model.deter=80"])
    assert (changed.model.deter, changed.pretrain.objective.mllm) == (80, 0.0)
    assert changed.model.dim_z == smoke.model.dim_z


def test_scientific_notation_without_a_dot_is_a_number() -> None:
    assert presets.resolve("walker", "smoke", ["pretrain.lr=1e-4"]).pretrain.lr == 1e-4


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_need_no_quotes_though_yaml_takes_them_for_booleans(word: str) -> None:
    assert presets.resolve("walker", "smoke", [f"pretrain.compile={word}"]).pretrain.compile == word


def test_own_file_builds_on_a_domain_and_its_scales_block_wins(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "base: cheetah\nmodel: {deter: 72}\nscales:\n  smoke: {model: {dim_z: 40}}\n  paper: {model: {dim_z: 41}}\n"
    )
    smoke = presets.resolve(str(file), "smoke")
    assert (smoke.domain, smoke.model.deter, smoke.model.dim_z) == ("cheetah", 72, 40)
    assert presets.resolve(str(file), "paper").model.dim_z == 41
    assert presets.resolve(str(file), "smoke", ["model.deter=73"]).model.deter == 73
    file.write_text("domain: cheetah\nmodel:\n")
    assert presets.resolve(str(file), "smoke") == presets.resolve("cheetah", "smoke")


# ---------------------------------------------------------------------------- methods


@pytest.mark.parametrize("scale", presets.SCALES)
def test_every_method_resolves_at_every_scale(scale: str) -> None:
    for method in presets.methods():
        assert presets.resolve("walker", scale, (), method).domain == "walker", method


def test_ablations_add_one_component_a_row() -> None:
    """Table 2: base, + L_MLLM, + TAMF, + TARO; and all but TAMF (Fig. 3)."""
    found = {m: presets.resolve("walker", "smoke", (), m) for m in presets.methods()}
    parts = {
        m: (p.pretrain.objective.mllm > 0, p.model.fusion == "tamf", p.pretrain.objective.joint_behavior > 0)
        for m, p in found.items()
    }
    assert parts["ablation-base"] == (False, False, False)
    assert parts["ablation-mllm"] == (True, False, False)
    assert parts["ablation-tamf"] == (True, True, False)
    assert parts["bitagent"] == (True, True, True)
    assert parts["bitagent-no-tamf"] == (True, False, True)
    assert found["bitagent"] == presets.resolve("walker", "smoke")


def test_set_overrides_the_method_and_labels_have_their_methods_block() -> None:
    chosen = presets.resolve("walker", "smoke", ["model.fusion=tamf"], "bitagent-no-tamf")
    assert chosen == presets.resolve("walker", "smoke")
    for label in ("bitagent-no-tamf-transfer-cheetah", "bitagent-no-tamf-oracle", "bitagent-no-tamf-data-free"):
        assert presets.resolve("walker", "smoke", (), label).model.fusion == "sum"
    assert presets.resolve("walker", "smoke", (), "transfer-cheetah") == presets.resolve("walker", "smoke")


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"unknown method 'bitagnet' \(did you mean 'bitagent'\?\)"):
        presets.resolve("walker", "smoke", (), "bitagnet")


# ---------------------------------------------------------------------------- what is refused


def test_unknown_preset_scale_and_key_name_the_nearest() -> None:
    assert "'walker'" in refusal("wlker")
    assert "cheetah" in refusal("zzzzzz") and "stickman" in refusal("zzzzzz")
    assert "--scale laptop" in refusal("laptop")
    assert "'laptop'" in refusal("walker", "labtop")
    assert "'model.detr' in --set (did you mean 'model.deter'?)" in refusal("walker", "smoke", "model.detr=3")
    assert "'model.deter'" in refusal("walker", "smoke", "modl.deter=3")
    assert "model" in refusal("walker", "smoke", "xyzzy=3")
    assert "'pretrain.objective.mllm'" in refusal("walker", "smoke", "pretrain.objective.mlm=3")


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("model.deter=wide", "a whole number"),
        ("model.deter=1.5", "a whole number"),
        ("model.deter=", "a whole number"),
        ("model.deter.x=1", "a whole number"),
        ("pretrain.lr=fast", "a number"),
        ("pretrain.lr=[1]", "a number"),
        ("pretrain.bf16=perhaps", "true or false"),
        ("model.fusion=door", "'tamf' or 'sum'"),
        ("model=3", "a block of keys"),
        ("pretrain.backbone=[a]", "text"),
        ("pretrain.lr=.nan", "finite"),
        ("pretrain.lr=.inf", "finite"),
    ],
)
def test_wrong_type_names_key_value_and_type(setting: str, wanted: str) -> None:
    message = refusal("walker", "smoke", setting)
    assert setting.split("=")[0].removesuffix(".x") in message and wanted in message and "--set" in message


@pytest.mark.parametrize("setting", ["model.deter", "=3", ".=3", "model..deter=3", "", "domain=cheetah"])
def test_malformed_settings(setting: str) -> None:
    refusal("walker", "smoke", setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("pretrain.log_every=0", "pretrain.log_every=0 in --set is too small: give 1 or more"),
        ("behave.updates=-5", "give 1 or more"),
        ("collect.expert.decisions.walk=0", "give 1 or more"),
        ("collect.expert.keep_episodes=-1", "give 0 or more"),
        ("pretrain.lr=-1.0e-4", "give 0 or more"),
        ("pretrain.label_quantile=1.5", "less than or equal to 1"),
        ("collect.random_correlation=1.0", "less than 1"),
        ("collect.expert.upset_decisions=[40, 10]", "give the shortest length"),
    ],
)
def test_values_out_of_range(setting: str, words: str) -> None:
    assert words in refusal("walker", "smoke", setting)


@pytest.mark.parametrize("setting", ["collect.expert.keep_episodes=0", "pretrain.objective.mllm=0", "pretrain.lr=0"])
def test_zero_where_it_means_something(setting: str) -> None:
    presets.resolve("walker", "smoke", [setting])


def test_a_bad_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: walker\nmodel: {detr: 3}\n")
    assert "mine.yaml" in refusal(str(file)) and "'model.deter'" in refusal(str(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: &x [1]\nb: *x\n", "aliases"),
        (b"- 1\n- 2\n", "not a list"),
        (b"model: {deter: 1\n", "not plain YAML"),
        (b"model: {deter: 1}\nmodel: {deter: 2}\n", "appears twice"),
        (b"base: walker\n1: 2\n", "not a word"),
        (b"base: walker\n? [a, b]\n: 1\n", ""),
        (b"base: walkr\n", "'walker'"),
        (b"model: {deter: 1}\n", "base: walker"),
        (b"base: walker\ndomain: cheetah\n", "leave one"),
        (b"base: walker\nscales: {big: {}}\n", "unknown scale"),
        (b"base: walker\nscales: 3\n", "scales"),
        (b"base: walker\nscales: {smoke: 3}\n", "scales.smoke"),
        (b"!!python/object/apply:os.system ['true']\n", "not plain YAML"),
        (b"base: walker\nmodel: {deter: !!int ''}\n", "not plain YAML"),
        (b"base: walker\npretrain: {bf16: !!bool maybe}\n", "not plain YAML"),
        (b"\xff\xfe\x00", "not text"),
        (b"[" * 50_000, "nested too deeply"),
        (b"base: walker\nmodel: " + b"{a: " * 20_000, "nested too deeply"),
        (b"x" * (2**17 + 1), "128 KiB"),
    ],
)
def test_hostile_and_broken_files(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    assert words in refusal(str(file))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "cannot read" in refusal(str(tmp_path / "none.yaml"))
    assert "cannot read" in refusal(f"{tmp_path}/")


def test_a_yaml_bomb_costs_nothing(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(rows))
    tracemalloc.start()
    refusal(str(file))
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=60), st.sampled_from(presets.known_keys()).flatmap(
    lambda key: st.text(max_size=20).map(lambda value: f"{key}={value}"))))  # fmt: skip
def test_any_setting_is_taken_or_refused_in_words(setting: str) -> None:
    try:
        presets.resolve("walker", "smoke", [setting])
    except BadInput as error:
        assert str(error)


def test_the_dynamics_alone_can_be_switched_off() -> None:
    assert presets.resolve("walker", "smoke", ["pretrain.dynamics.updates=0"]).pretrain.dynamics.updates == 0
    with pytest.raises(BadInput, match=r"pretrain\.updates=0 .* is too small: give 1 or more"):
        presets.resolve("walker", "smoke", ["pretrain.updates=0"])
