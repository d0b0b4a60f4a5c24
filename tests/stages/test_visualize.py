"""The report of a small real run: complete, self-contained, honest about what is missing, remade on a change."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitagent_cli import presets
from bitagent_cli.options import check_text
from bitagent_cli.presets import Preset
from stages import behave, evaluate, pretrain, visualize
from stages.backbones.embeddings import open_training_data
from stages.data.episodes import held_out_episodes
from stages.data.sampler import Sampler
from stages.policies.goals import Ask
from stages.policies.play import PlayedPolicy
from stages.report import chapters, counterfactual, figures, performance, playground
from stages.report.scene import Scene
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from tests.data.real_data import make_data
from tests.stages import small_run

SMALL = [
    "pretrain.updates=3", "pretrain.holdout=0", "pretrain.bf16=false", "pretrain.log_every=1",
    "behave.updates=2", "behave.bf16=false", "behave.horizon=5", "behave.log_every=1",
    "visualize.context=3", "visualize.horizon=6", "visualize.error_windows=3",
    "visualize.dream_steps=5", "visualize.reward_glance=4", "visualize.reward_windows=40",
]  # fmt: skip
PROMPT = "hop on <one> leg"


def make_evaluation(run: Run, task: str, score: float, *, seed: int = 0, method: str = "bitagent") -> Artifact:
    """An evaluation as the stage writes it, films and all, without the 500 steps."""
    path = run.root / "evaluation" / f"{method}-s{seed}" / task
    policy = run.root / "policy" / f"{method}-s{seed}" / task
    inputs = [artifacts.load(policy, "behave")] if policy.exists() else []
    prompts = inputs[0].meta["config"]["prompts"] if inputs else [task]
    about = {"task": task, "method": method, "seed": seed, "scale": "smoke", "episodes": 2, "return": 100 * score,
             "score": score, "stderr": 0.05, "random_score": 0.01, "backbone": "offline",
             "prompts": prompts}  # fmt: skip
    frames = np.random.default_rng(seed).integers(0, 255, (2, 12, 3, 64, 64), dtype=np.uint8)
    with artifacts.writing(
        path, "evaluate", domain=run.domain, config={"score": score}, seed=seed, inputs=inputs, extra={"rows": [about]}
    ) as draft:
        evaluate.write_videos(draft, task, PlayedPolicy(np.array([[1.0], [2.0]]), frames))
    return artifacts.load(path, "evaluate")


@pytest.fixture(scope="module")
def preset() -> Preset:
    return presets.resolve("walker", "smoke", SMALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, preset: Preset) -> Run:
    """Real walker episodes, a model of three updates, policies of two, and evaluations."""
    made = small_run.make_run(tmp_path_factory.mktemp("visualize") / "walker-smoke")
    make_data(made.root, task="", episodes=2, rows=24)
    make_data(made.root, task="walk", episodes=3, rows=24, seed=50)
    small_run.make_backbone(made)
    small_run.make_embeddings(made)
    pretrain.run(pretrain.Sections(preset.pretrain, preset.model), made)
    behave.run(preset.behave, made, Ask(task="walk"))
    behave.run(preset.behave, made, Ask(prompt=PROMPT))
    make_evaluation(made, "walk", 0.5)
    make_evaluation(made, "walk", 0.7, seed=1)
    return made


@pytest.fixture(scope="module")
def report(run: Run, preset: Preset) -> Artifact:
    return visualize.run(preset.visualize, run)


def see(preset: Preset, run: Run, **changes: Any) -> Artifact:
    return visualize.run(preset.visualize, small_run.make_run(run.root, **{"quiet": False, **changes}))


# ---------------------------------------------------------------------------- what it makes


def test_every_part_is_there(run: Run, report: Artifact) -> None:
    assert report.path == run.root / "report"
    wanted = {
        "report.html", "scores.md", "scores.csv", "scores.tex", "scores.json", "walk.gif", "policies.gif",
        "imagined-vs-real.png", "imagined-vs-real.gif", "prediction-error.png", "prediction-error.json", "dreams.gif",
        "dreams.png", "gates-1.png", "gates.json", "real-above-text-imagination.png", "reward-1.png", "reward.json",
        "reward-rank.md", "curves-model-1.png", "curves-policy-1.png", "data-random.png", "data-expert-walk.png",
    }  # fmt: skip
    assert wanted <= report.meta["files"].keys()
    artifacts.verify(report)


def test_every_picture_opens_and_is_on_the_page(report: Artifact) -> None:
    html = (report.path / "report.html").read_text()
    pictures = [name for name in report.meta["files"] if name.endswith((".png", ".gif"))]
    for name in pictures:
        with Image.open(report.path / name) as image:
            image.load()
        assert f"<code>{name}</code>" in html
    assert html.count("data:image/") == len(pictures)


def test_films_move(report: Artifact) -> None:
    with Image.open(report.path / "imagined-vs-real.gif") as film:
        assert film.n_frames == 9  # 3 of context, 6 imagined
    with Image.open(report.path / "policies.gif") as film:
        assert film.n_frames == 12


def test_numbers(report: Artifact) -> None:
    error = json.loads((report.path / "prediction-error.json").read_text())
    assert error["windows"] == 3 and len(error["model"]) == len(error["copy_last_frame"]) == 6
    gates = json.loads((report.path / "gates.json").read_text())
    assert list(gates["gates"]) == ["stand", "walk", "run", PROMPT]
    assert all(0 < value < 1 for row in gates["gates"].values() for value in row)
    reward = json.loads((report.path / "reward.json").read_text())
    assert list(reward) == ["stand", "walk", "run"]
    assert reward["walk"]["windows"] == 40 and set(reward["walk"]["by_source"]) == {"random", "expert"}
    assert set(reward["run"]["spearman"]) == {"relative", "decoded", "both", "z", "similarity"}


def test_page_shows_scores_the_paper_apart_and_the_prompt_escaped(report: Artifact) -> None:
    html = (report.path / "report.html").read_text()
    assert html.index("walk: score 0.50 ± 0.05 over 2 episodes") < html.index("Scores by task"), (
        "the policy comes first"
    )
    assert "0.60 <small>± 0.10 (2)</small>" in html and '<tr class="paper"><td class="">paper: bitagent</td>' in html
    assert "1.03 <small>± 0.01</small>" in html and '<td class=""></td>' in html, "tasks not run are blank"
    assert "small in-domain stand-in" in html
    assert "hop on &lt;one&gt; leg" in html and PROMPT not in html


def test_page_tells_where_it_comes_from(run: Run, report: Artifact) -> None:
    html = (report.path / "report.html").read_text()
    for path in ("evaluation/bitagent-s0/walk", "policy/bitagent-s0/walk", "model/bitagent-s0", "data/random"):
        assert artifacts.load(run.root / path).id in html, path


def test_nothing_is_remade_until_something_changes(
    run: Run, report: Artifact, preset: Preset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (report.path / "report.html").stat().st_mtime_ns
    assert see(preset, run).id == report.id
    assert "reusing" in capsys.readouterr().out
    assert (report.path / "report.html").stat().st_mtime_ns == before
    make_evaluation(run, "run", 0.2)
    after = see(preset, run)
    assert "left out" not in capsys.readouterr().out
    assert "| bitagent |  | 0.60 ± 0.10 (2) | 0.20 [0.05] |" in (after.path / "scores.md").read_text()
    assert after.id != report.id and "0.20 [0.05]" in (after.path / "scores.md").read_text()


def test_a_model_is_judged_on_the_episodes_its_training_left_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = presets.resolve("walker", "smoke", [*SMALL, "pretrain.holdout=0.3"])
    made = small_run.make_run(run.root, seed=9)
    drawn, draw = [], Sampler.draw

    def note(sampler: Sampler, step: int) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(draw(sampler, step))
        return drawn[-1]

    monkeypatch.setattr(Sampler, "draw", note)
    model = pretrain.run(pretrain.Sections(preset.pretrain, preset.model), made)
    dataset = open_training_data(model, made)
    held = set(np.flatnonzero(held_out_episodes(dataset, 0.3)))
    rows = np.concatenate([starts for starts, _ in drawn])
    assert len(held) == 3 and held.isdisjoint(np.searchsorted(dataset.episode_start, rows, side="right") - 1)
    report = visualize.run(preset.visualize, made)
    judged = json.loads((report.path / "reward.json").read_text())["walk"]
    assert judged["held_out"] is True and judged["episodes"] <= 3
    assert json.loads((report.path / "prediction-error.json").read_text())["held_out"] is True
    assert "were held out" in (report.path / "report.html").read_text()


def test_text_that_follows_actions_follows_the_policys(run: Run, report: Artifact, preset: Preset) -> None:
    """With `text_actions: policy` the decoded text imagination is driven by what the policy does."""
    scene = Scene(preset.visualize, run, "bitagent", False, run.root)
    for follows in ("policy", "none"):
        scene.model.config = scene.model.config.model_copy(update={"text_actions": follows})
        found = chapters._policy_dream(scene, "walk", 4)
        assert found is not None and found[0].shape == (5, 3, 64, 64) and found[1].shape == (1, 4, 6)
        assert chapters._text_dreams(scene, 4).shape == (4, 5, 3, 64, 64)
    assert chapters._policy_dream(scene, "stand", 4) is None


# ---------------------------------------------------------------------------- what is missing


def test_missing_parts_name_their_commands(tmp_path: Path, preset: Preset, capsys: pytest.CaptureFixture[str]) -> None:
    made = small_run.make_run(tmp_path / "walker-smoke", quiet=False)
    make_data(made.root, episodes=1, rows=10)
    found = visualize.run(preset.visualize, made)
    assert {"report.html", "data-random.png"} == found.meta["files"].keys()
    said = capsys.readouterr().out
    assert "left out, scores: no evaluation yet; make one with: bitagent evaluate --preset walker --scale smoke" in said
    assert said.count("make it with: bitagent pretrain --preset walker --scale smoke") >= 3
    assert "no scores" not in said


def test_nothing_to_show_is_refused(tmp_path: Path, preset: Preset) -> None:
    made = small_run.make_run(tmp_path / "walker-smoke")
    with pytest.raises(BadInput, match=r"nothing to show .*bitagent collect --preset walker --scale smoke"):
        visualize.run(preset.visualize, made)
    assert not list(tmp_path.glob("walker-smoke/*report*/")), "nothing half-made is left"


def test_artifact_of_another_domain_is_refused(run: Run, preset: Preset) -> None:
    with pytest.raises(BadInput, match=r"domain walker.*not cheetah"):
        visualize.run(preset.visualize, small_run.make_run(run.root, domain="cheetah"))


def test_episodes_shorter_than_the_horizon_leave_that_part_out(
    run: Run, preset: Preset, capsys: pytest.CaptureFixture[str]
) -> None:
    config = preset.visualize.model_copy(update={"horizon": 99})
    scene = Scene(config, small_run.make_run(run.root, quiet=False), "bitagent", False, run.root)
    assert visualize.attempt(chapters.imagination, scene) is None
    assert "left out, imagination: no episode has 102 frames; lower visualize.horizon" in capsys.readouterr().out


# ---------------------------------------------------------------------------- other methods


@pytest.mark.parametrize("method", ["genrl", "wm-clip", "founder"])
def test_every_grounding_is_judged_and_shows_what_it_imagines(
    run: Run, preset: Preset, tmp_path: Path, method: str
) -> None:
    pretrain.run(pretrain.Sections(preset.pretrain, preset.model, constants=preset.groundings), run, method=method)
    scene = Scene(preset.visualize, run, method, False, tmp_path)
    chapter = chapters.rewards(scene)
    found = json.loads((tmp_path / "reward.json").read_text())
    assert set(found["walk"]["spearman"]) == {"reward", "similarity"}
    assert chapter.tables[0].rows[0][0] == "rank correlation: reward" and "f_dec" not in chapter.tables[0].note
    if method == "wm-clip":
        with pytest.raises(BadInput, match="imagines nothing from text"):
            chapters.dreams(scene)
    else:
        chapters.dreams(scene)
        assert (tmp_path / "dreams.gif").exists() and not list(tmp_path.glob("gates*.png")), "no fusion, no gates"


@pytest.mark.parametrize("method", ["bitagent", "genrl", "wm-clip", "founder"])
def test_imagination_is_judged_on_the_replays_that_there_are(
    run: Run, preset: Preset, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counterfactual, "CONTEXT", 8)  # with what is imagined, all 24 rows
    pretrain.run(pretrain.Sections(preset.pretrain, preset.model, constants=preset.groundings), run, method=method)
    chapter = chapters.counterfactuals(Scene(preset.visualize, run, method, True, tmp_path))
    assert chapter is not None and "not judged: stand, run" in chapter.text
    walk, gradient, *promised = chapter.tables
    assert len(walk.rows) == 12 and walk.rows[0][:2] == ["the data's", "4"]
    assert "no episode is held out" in walk.note and len(gradient.rows) == 1
    assert [row[:2] for table in promised for row in table.rows] == (
        [["walk", "4"], ["walk", "8"], ["walk", "16"]] if method == "bitagent" else []
    ), "there is a policy of that model alone"
    found = json.loads((tmp_path / "counterfactual.json").read_text())["walk"]
    assert found["states"] == 4 and found["held_out"] is False and set(found["gradient"]) == {"cosine", "norm_ratio"}
    shown = found["curves"]["uniform"]
    assert len(shown["entropy"]) == 16 and min(shown["entropy"]) > 0
    assert abs(shown["real"][7] - found["actions"]["uniform"]["8"]["real"]) <= 0.001
    assert chapter.charts[0].files == ("counterfactual.png",) and (tmp_path / "counterfactual.png").exists()
    assert {"counterfactual-walk.md", "counterfactual-gradient.csv"} <= {file.name for file in tmp_path.iterdir()}


def test_imagination_is_judged_only_when_asked_and_where_it_can_be(run: Run, preset: Preset, tmp_path: Path) -> None:
    assert chapters.counterfactuals(Scene(preset.visualize, run, "bitagent", False, tmp_path)) is None
    scene = Scene(preset.visualize, run, "bitagent", True, tmp_path)
    with pytest.raises(BadInput, match=r"episode of 48 frames .*bitagent collect .*--source expert --task stand"):
        chapters.counterfactuals(scene)
    scene.dataset.names.discard("state")
    with pytest.raises(BadInput, match="hold no physics states to try other actions from"):
        chapters.counterfactuals(scene)
    assert not list(tmp_path.iterdir())


def test_imagination_is_judged_on_held_out_episodes_where_there_are_some(run: Run, preset: Preset) -> None:
    scene = Scene(preset.visualize, run, "bitagent", True, run.root)
    info = scene.dataset.episode_info
    walk, other = np.flatnonzero(info.task == "walk"), np.flatnonzero(info.task != "walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counterfactual, "CONTEXT", 8)
        for held, wanted in ((walk[1:2], ([walk[1]], True)), (other, ([*walk], False)), ([], ([*walk], False))):
            scene.__dict__["_left_out"] = np.isin(np.arange(len(info.task)), held)
            scene.__dict__.pop("judged", None)
            episodes, held_out = counterfactual._episodes(scene, "walk")
            assert (list(episodes), held_out) == wanted


def test_a_model_free_method_has_no_model_to_look_into(run: Run, preset: Preset, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="iql learned without a world model"):
        chapters.rewards(Scene(preset.visualize, run, "iql", False, tmp_path))


# ---------------------------------------------------------------------------- the whole paper


def paper_run(folder: Path, **changes: Any) -> Run:
    return Run(**{"domain": "paper", "scale": "smoke", "root": folder / "paper-smoke", "quiet": True, **changes})


def test_the_paper_page_gathers_every_run_of_the_scale(tmp_path: Path) -> None:
    walker = small_run.make_run(tmp_path / "walker-smoke")
    stickman = small_run.make_run(tmp_path / "stickman-smoke", domain="stickman")
    other = small_run.make_run(tmp_path / "walker-laptop")
    make_evaluation(walker, "walk", 0.5)
    make_evaluation(walker, "walk", 0.3, method="ablation-base")
    make_evaluation(stickman, "run", 0.4, method="transfer-walker")
    make_evaluation(other, "run", 0.11)
    made = visualize.run_paper(paper_run(tmp_path))
    assert made.path == tmp_path / "paper-smoke" / "report"
    files = {file.name for file in made.path.iterdir()}
    assert {f"{stem}.{s}" for stem in ("table1", "table2", "fig3") for s in ("md", "csv", "tex", "json")} <= files
    assert {"fig3.png", "report.html"} <= files
    assert "0.11 [" not in (made.path / "table1.md").read_text()  # of another scale
    page = (made.path / "report.html").read_text()
    assert "walker → stickman run" in page and "paper: bitagent" in page
    assert visualize.run_paper(paper_run(tmp_path)).id == made.id
    make_evaluation(walker, "run", 0.7)
    assert visualize.run_paper(paper_run(tmp_path)).id != made.id


def test_the_paper_page_without_scores_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="make reproduce SCALE=smoke"):
        visualize.run_paper(paper_run(tmp_path))
    (tmp_path / "walker-smoke").mkdir()
    with pytest.raises(BadInput, match="make reproduce SCALE=smoke"):
        visualize.run_paper(paper_run(tmp_path))


def test_fig_4_of_every_report_is_on_the_paper_page(tmp_path: Path) -> None:
    run = small_run.make_run(tmp_path / "walker-smoke")
    make_evaluation(run, "walk", 0.5)
    with artifacts.writing(run.root / "report", "visualize", domain="walker", config={}, seed=0) as draft:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(draft / "real-above-text-imagination.png")
    made = visualize.run_paper(paper_run(tmp_path))
    assert (made.path / "fig4-walker.png").exists()
    assert "Fig. 4" in (made.path / "report.html").read_text()


# ---------------------------------------------------------------------------- the playground


def open_scene(run: Run, preset: Preset) -> Scene:
    return Scene(preset.visualize, run, "bitagent", judge_reward=False, folder=run.root / "report")


def test_the_playground_plays_the_closest_policy_and_shows_clips(
    run: Run, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance, "DECISIONS", 24)
    scene = open_scene(run, preset)
    policy, clips = playground.ask(scene, PROMPT, tmp_path)
    frames = [len(figures.read_gif(tmp_path / film.file, 10_000)) for film in (policy, clips)]
    assert 1 <= frames[0] <= 6 and 1 <= frames[1] <= 8
    assert policy.caption == f"“{PROMPT}”.", "a free prompt has no score"
    assert clips.caption.count("expert of walk") + clips.caption.count("random") == 5
    other = playground.ask(scene, "walk fast", tmp_path)[0]
    assert "no policy was learned for this text" in other.caption and "cosine" in other.caption
    assert other.caption.endswith("(0: random, 1: expert).")


def test_a_performance_is_what_the_environment_and_the_reward_say(
    run: Run, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance, "DECISIONS", 24)
    shown = performance.perform(open_scene(run, preset), "walk fast clean")
    assert shown.task == "walk" and shown.cosine == 1.0
    assert shown.real.shape == (6, 3, performance.SIZE, performance.SIZE) and shown.dream.shape == (2, 3, 64, 64)
    about = tasks.get_task("walker", "walk")
    assert len(shown.rewards["true"]) == 24 and shown.rewards["true"].max() > 0
    assert shown.score == pytest.approx(tasks.normalized_score(about, 2 * shown.rewards["true"].sum()))
    assert len(shown.rewards["learned"]) == 21 - performance.SMOOTH + 1, "three stretches of seven decisions"
    film = performance.film_of(shown)
    assert len(film) == 6 and (film[0] != film[-1]).any()


def test_the_playground_escapes_what_was_typed_and_explains_what_it_refuses(
    run: Run, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[str] = []
    asked = playground.ask

    def note(scene: Scene, prompt: str, folder: Path) -> Any:
        played.append(prompt)
        return asked(scene, prompt, folder)

    monkeypatch.setattr(performance, "DECISIONS", 16)
    monkeypatch.setattr(playground, "ask", note)
    reply = playground.make_reply(open_scene(run, preset), ["walk fast clean"], check_text)
    html = reply(PROMPT)
    assert html.count("data:image/gif;base64,") == 2
    assert "&lt;one&gt;" in html and "<one>" not in html and "http" not in re.sub(r"data:[^\"]*", "", html)
    assert reply(PROMPT) == html and reply(" ") and played == [PROMPT, "walk fast clean"], "each is played once"
    assert "the prompt has 3000 characters" in reply("x" * 3000)


def test_a_playground_without_a_model_says_what_to_do(preset: Preset, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="bitagent pretrain"):
        empty = small_run.make_run(tmp_path)
        visualize.serve(preset.visualize, empty, method="bitagent", port=None, check=str)


def test_one_policy_for_several_tasks_is_shown_under_each_of_its_prompts(run: Run, preset: Preset) -> None:
    made = small_run.make_run(run.root, seed=4)
    pretrain.run(pretrain.Sections(preset.pretrain, preset.model), made)
    both = behave.run(preset.behave, made, Ask(many=["stand", "walk"]))
    alone = behave.run(preset.behave, made, Ask(task="walk"))
    found = Scene(preset.visualize, made, "bitagent", False, run.root).policies
    named = {prompt: (learned.artifact.id, learned.index) for prompt, learned in found.items()}
    assert named == {"standing up straight": (both.id, 0), "walk fast clean": (alone.id, 0)}
