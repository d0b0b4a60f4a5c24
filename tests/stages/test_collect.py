"""Collect: what the datasets hold, that they repeat bit for bit, and that stops lose nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import collect
from stages.agents import target
from stages.agents.expert import ExpertJob, _upsets, train_expert
from stages.data.episodes import Dataset
from stages.runtime import checkpoints, logs
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput, Interrupted
from stages.worlds.render import render_states
from tests.core.helpers import BRANCH, DREAMER, EXPLORE

TD3 = {
    "units": 32, "batch": 32, "lr": 1e-3, "discount": 0.99, "tau": 0.01, "actor_every": 2,
    "target_noise": 0.2, "target_noise_clip": 0.5, "precision": "float32",
}  # fmt: skip
EXPERT = {
    "decisions": {"default": 2000}, "keep_episodes": 2, "settled_episodes": 0, "settled_noise": 0.2, "upset_every": 100,
    "upset_decisions": (10, 40), "random_episodes": 1, "updates_per_decision": 0.02,
    "n_step": 3, "noise_start": 1.0, "noise_end": (0.1, 0.5), "noise_decisions": 1500, "noise_correlation": 0.9,
    "evaluation_episodes": 1, "checkpoint_episodes": 2, "td3": TD3,
}  # fmt: skip


def config(**expert: Any) -> collect.Config:
    parts = {"random_episodes": 2, "random_correlation": 0.5, "explore": EXPLORE, "dreamer": DREAMER, "branch": BRANCH}
    return collect.Config.model_validate(parts | {"expert": EXPERT | expert})


class Killed(Exception):
    """Stands for a SIGKILL: nothing of the training runs after it."""


class Recorder:
    """A channel that stops or dies after some episodes."""

    def __init__(self, stop_after: int = 99, die_after: int = 99) -> None:
        self.frames, self.episodes, self.stop_after, self.die_after = 0, 0, stop_after, die_after

    def report(self, frames: int, episode_return: float | None = None) -> None:
        self.frames += frames
        self.episodes = self.frames // 500
        if self.episodes >= self.die_after:
            raise Killed

    def stopped(self) -> bool:
        return self.episodes >= self.stop_after


def content(artifact: Artifact) -> dict[str, str]:
    """Checksums of the shards."""
    return {k: v for k, v in artifact.meta["files"].items() if k.endswith(".safetensors")}


def one(made: list[Artifact]) -> Artifact:
    assert len(made) == 1
    return made[0]


def test_an_expert_dataset_holds_kept_episodes_with_frames_of_their_states(walker_run: Run) -> None:
    artifact = one(collect.run(config(), walker_run, collect.Order(source="expert", task="walk", workers=1)))
    extra = artifact.meta["extra"]
    assert artifact.path == walker_run.root / "data" / "expert-walk"
    assert (extra["source"], extra["task"], extra["episodes"], extra["frames"]) == ("expert", "walk", 2, 1002)
    curve = extra["learning_curve"]
    assert [d for d, _ in curve] == [500, 1000, 1500, 2000]
    assert [r for _, r in curve][:: len(curve) - 1] == pytest.approx(extra["returns"], abs=0.01)  # first and last
    assert len(extra["evaluation_returns"]) == 1 and "normalized_score" in extra
    dataset = Dataset.open([artifact.path], "walker")
    episode = dataset.episode(1)
    assert episode.image is not None and episode.state is not None
    np.testing.assert_array_equal(episode.image[::100], render_states("walker", episode.state[::100]))
    left = {p.name for p in artifact.path.parent.iterdir() if not p.name.startswith(".")}
    assert left == {"expert-walk", "expert-walk.log"}  # no checkpoint, replay or partial folder
    trained = logs.read_log(artifact.path.parent / "expert-walk.log" / "metrics.jsonl")[-1]["seconds"]
    assert artifact.meta["wall_seconds"] >= trained  # the training counts, not the merge alone


def test_the_finished_agent_plays_on_and_all_of_it_is_kept(walker_run: Run) -> None:
    artifact = one(
        collect.run(config(settled_episodes=2), walker_run, collect.Order(source="expert", task="walk", workers=1))
    )
    extra = artifact.meta["extra"]
    assert extra["episodes"] == 4 and len(extra["learning_curve"]) == 4
    assert extra["returns"][2:] == pytest.approx(extra["settled_returns"], abs=0.01)
    shorter = dataclasses.replace(walker_run, root=walker_run.root.with_name("shorter"))
    options = {"source": "expert", "task": "walk", "frames": 1000, "workers": 1}
    exactly = one(collect.run(config(settled_episodes=2), shorter, collect.Order(**options)))
    assert exactly.meta["extra"]["frames"] == 1002  # --frames counts them all


def test_a_settled_episode_is_upset_in_stretches() -> None:
    upset = _upsets(np.random.default_rng(0), config(upset_every=50, upset_decisions=(3, 3)).expert)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], upset, [0]])))
    lengths = edges[1::2] - edges[::2]
    assert 1 <= len(lengths) <= 30 and (lengths >= 3).all()
    assert 0.02 < np.mean([_upsets(np.random.default_rng(i), config().expert).mean() for i in range(50)]) < 0.4


def test_random_data_repeats_bit_for_bit_side_by_side_or_not(walker_run: Run, tmp_path: Path) -> None:
    first = one(collect.run(config(), walker_run, collect.Order(source="random", workers=1)))
    other = dataclasses.replace(walker_run, root=tmp_path / "other")
    assert content(one(collect.run(config(), other, collect.Order(source="random", workers=2)))) == content(first)
    reseeded = dataclasses.replace(walker_run, root=tmp_path / "seed", seed=1)
    assert content(one(collect.run(config(), reseeded, collect.Order(source="random", workers=1)))) != content(first)
    assert first.meta["extra"]["task"] == ""


def job(folder: Path) -> ExpertJob:
    return ExpertJob("walker", "walk", 0, 3, folder / "expert-walk", config().expert, 1)


def replay_bytes(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(job(folder).replay.glob("episode-*"))]


@pytest.mark.parametrize("first", [Recorder(stop_after=3), Recorder(die_after=1), Recorder(die_after=4)])
def test_a_stopped_or_killed_training_continues_to_the_same_bits(first: Recorder, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    facts = train_expert(job(whole), Recorder())
    with contextlib.suppress(Killed):
        assert train_expert(job(parts), first) is None
    second = Recorder()
    assert train_expert(job(parts), second) == facts
    assert second.frames == 2000  # what was done before counts as done
    assert len(replay_bytes(whole)) == 4 and replay_bytes(parts) == replay_bytes(whole)


def test_a_stop_while_rendering_is_saved_and_continued(walker_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(target, "render_states", explode)
        with pytest.raises(Killed):
            collect.run(config(), walker_run, collect.Order(source="expert", task="walk", workers=1))
    trained = collect.train_expert

    def only_evaluate(job: ExpertJob, channel: Any) -> Any:
        found = checkpoints.read(job.path, job.about)
        assert found is not None and found[0] == job.episodes
        return trained(job, channel)

    monkeypatch.setattr(collect, "train_expert", only_evaluate)
    artifact = one(collect.run(config(), walker_run, collect.Order(source="expert", task="walk", workers=1)))
    assert artifact.meta["extra"]["episodes"] == 2


def test_a_signal_ends_with_the_command_that_continues(walker_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    play = target.play_episode

    def play_and_interrupt(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return play(*args)

    with monkeypatch.context() as patch:
        patch.setattr(target, "play_episode", play_and_interrupt)
        with pytest.raises(Interrupted, match=r"collect --preset walker .*--source random --frames 1000") as caught:
            collect.run(config(), walker_run, collect.Order(source="random", frames=1000, workers=1))
    assert caught.value.exit_code == 143
    kept = list((walker_run.root / "data" / "random.partial").glob("episode-*"))
    assert len(kept) == 1  # the one in flight when the signal came was finished, the next not begun
    artifact = one(collect.run(config(), walker_run, collect.Order(source="random", frames=1000, workers=1)))
    assert artifact.meta["extra"]["episodes"] == 2


def test_random_data_are_the_same_whichever_expert_is_asked_for(walker_run: Run) -> None:
    def record(order: collect.Order) -> dict[str, Any]:
        return collect.random_target(config(), walker_run, order, target.Look(64, None, False)).record

    assert record(collect.Order(task="run")) == record(collect.Order()) == record(collect.Order(source="random"))
    assert record(collect.Order(source="random", task="run"))["reward_task"] == "run"


def test_a_finished_dataset_is_reused_and_another_config_refused(walker_run: Run, capsys: Any) -> None:
    loud = dataclasses.replace(walker_run, quiet=False)
    first = one(collect.run(config(), loud, collect.Order(source="random", workers=1, states_only=True)))
    again = one(collect.run(config(), loud, collect.Order(source="random", workers=1, states_only=True)))
    assert again.id == first.id and "reused" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"episodes.*--fresh"):
        collect.run(config(), loud, collect.Order(source="random", frames=500, workers=1, states_only=True))
    fresh = dataclasses.replace(loud, fresh=True)
    shorter = one(collect.run(config(), fresh, collect.Order(source="random", frames=500, workers=1, states_only=True)))
    assert shorter.meta["extra"]["episodes"] == 1


def test_states_travel_alone_and_become_the_same_frames(walker_run: Run) -> None:
    states = one(collect.run(config(), walker_run, collect.Order(source="random", workers=1, states_only=True)))
    assert states.path.parent.name == "states" and states.meta["extra"]["renderer"] == ""
    rendered = one(collect.run(config(), walker_run, collect.Order(render=states.path, workers=1)))
    assert rendered.path == walker_run.root / "data" / "random"
    other = dataclasses.replace(walker_run, root=walker_run.root.with_name("other"))
    straight = one(collect.run(config(), other, collect.Order(source="random", workers=1)))
    assert content(rendered) == content(straight)
    small = one(collect.run(config(), walker_run, collect.Order(render=states.path, size=16, camera=1, workers=1)))
    assert small.path == walker_run.root / "frames" / "random-16-camera1"
    with pytest.raises(BadInput, match="has frames already"):
        collect.run(config(), walker_run, collect.Order(render=rendered.path, workers=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "expret"}, "did you mean 'expert'"),
        ({"source": "expert", "task": "wlak"}, "did you mean 'walk'"),
        ({"frames": 0}, "--frames 0"),
        ({"workers": 0}, "--workers 0"),
        ({"import_dir": Path("nowhere")}, "nowhere"),
        ({"render": Path("nowhere")}, "nowhere"),
    ],
)
def test_wrong_options_are_refused(walker_run: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        collect.run(config(), walker_run, collect.Order(**options))
